/*-------------------------------------------------------------------------
 *
 * source.c
 *	  Staging as a merge reads it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "relcheck.h"
#include "relinfo.h"
#include "security.h"
#include "source.h"
#include "spi_util.h"
#include "sqlgen.h"

/*
 * Begin to read staging, of which the caller holds a lock. The caller holds an
 * SPI connection, and calls idem_source_end() before it ends.
 */
void
idem_source_begin(IdemSource *source, const IdemLedger *ledger, Oid staging, bool read_only)
{
	char		kind = get_rel_relkind(staging);
	ListCell   *lc;

	memset(source, 0, sizeof(*source));
	source->ledger = ledger;
	source->staging = staging;
	source->name = idem_relcheck_name(staging);
	source->read_only = read_only;
	source->materialize = kind == RELKIND_VIEW || kind == RELKIND_FOREIGN_TABLE;
	foreach(lc, idem_relinfo_columns(staging, NIL, false))
	{
		if (idem_security_may(staging, get_attnum(staging, lfirst(lc)), ACL_SELECT))
			source->columns = lappend(source->columns, lfirst(lc));
	}
}

/*
 * Let go of what was materialized, which nothing can read any more. After an
 * error the transaction does that.
 */
void
idem_source_end(IdemSource *source)
{
	if (source->rows)
		tuplestore_end(source->rows);
	source->rows = NULL;
}

/*
 * Lock what the rows come from beside staging itself: its parts, or what a view
 * reads. A snapshot that is taken afterwards shows what was waited for.
 */
void
idem_source_lock(IdemSource *source)
{
	if (!source->materialize && !has_subclass(source->staging))
		return;
	/* To plan a query locks all that it reads. */
	PushActiveSnapshot(GetTransactionSnapshot());
	idem_spi_free_plan(idem_spi_prepare_read(idem_sqlgen_read(source->name, source->columns),
											 source->staging));
	PopActiveSnapshot();
}

/* Make sure that the rows can be read as often as it takes. */
void
idem_source_materialize(IdemSource *source)
{
	TupleDesc	tupdesc;

	if (!source->materialize || source->rows)
		return;
	source->rows = idem_spi_fill_tuplestore(idem_sqlgen_read(source->name, source->columns),
											source->staging, source->read_only, &tupdesc);
	idem_spi_register(IDEM_MATERIALIZED_NAME, source->rows, tupdesc);
}

/*
 * Prepare to read the rows: the given columns in this order. Takes the locks that
 * are needed for it, those of partitions for one; a snapshot that is taken
 * afterwards shows what these have waited for.
 */
void
idem_source_prepare(IdemSource *source, List *columns)
{
	const char *name = source->materialize ? IDEM_MATERIALIZED_NAME : source->name;

	idem_source_materialize(source);
	source->plan = idem_spi_prepare_read(idem_sqlgen_read(name, columns),
										 source->materialize ? InvalidOid : source->staging);
}

/*
 * Hand the rows, as they are staged, to dest. They are read under the active
 * snapshot.
 */
void
idem_source_read(IdemSource *source, DestReceiver *dest)
{
	idem_spi_read(source->plan, source->materialize ? InvalidOid : source->staging, dest);
}
