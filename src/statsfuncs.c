/*-------------------------------------------------------------------------
 *
 * statsfuncs.c
 *	  The functions behind the view idem_stats.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "security.h"
#include "stats.h"

PG_FUNCTION_INFO_V1(idem_stats_in_memory);
PG_FUNCTION_INFO_V1(idem_stats_memory);
PG_FUNCTION_INFO_V1(idem_stats_reset);

#define STATS_COLUMNS	(1 + IDEM_STATS_OUTCOMES + IDEM_STATS_ROWS + 4)

Datum
idem_stats_in_memory(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(idem_stats_is_there());
}

/* One row for each table that is there still, and that the caller may read. */
Datum
idem_stats_memory(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		reads_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	IdemStatsTarget *targets;
	TimestampTz since;
	int			ntargets;

	InitMaterializedSRF(fcinfo, 0);
	if (!idem_stats_is_there())
		return (Datum) 0;
	ntargets = idem_stats_read(&targets, &since);
	for (int i = 0; i < ntargets; i++)
	{
		const IdemStatsCounts *counts = &targets[i].counts;
		Datum		values[STATS_COLUMNS];
		bool		nulls[STATS_COLUMNS] = {0};
		int			column = 0;

		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(targets[i].target)) ||
			!(reads_all || idem_security_may_read(targets[i].target)))
			continue;
		values[column++] = ObjectIdGetDatum(targets[i].target);
		for (int j = 0; j < IDEM_STATS_OUTCOMES; j++)
			values[column++] = Int64GetDatum(counts->outcomes[j]);
		for (int j = 0; j < IDEM_STATS_ROWS; j++)
			values[column++] = Int64GetDatum(counts->rows[j]);
		values[column++] = Float8GetDatum(counts->microseconds / 1000000.0);
		values[column++] = Int64GetDatum(counts->wal_bytes);
		nulls[column] = counts->last_batch == 0;
		values[column++] = TimestampTzGetDatum(counts->last_batch);
		values[column++] = TimestampTzGetDatum(since);
		Assert(column == STATS_COLUMNS);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Who may call it is a matter of EXECUTE. */
Datum
idem_stats_reset(PG_FUNCTION_ARGS)
{
	if (!idem_stats_is_there())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there are no counts to reset"),
				 errdetail("Without shared memory, idem_stats counts what the ledger has."),
				 errhint("Add idempotent_ingest to \"shared_preload_libraries\".")));
	idem_stats_clear();
	PG_RETURN_VOID();
}
