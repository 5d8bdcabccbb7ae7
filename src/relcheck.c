/*-------------------------------------------------------------------------
 *
 * relcheck.c
 *	  What a relation is, and whether it can be staging or target.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "relcheck.h"
#include "spi_util.h"

/* Refuse a regclass that is a mere number. */
void
idem_relcheck_require_exists(Oid relid)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid),
				 errhint("Give the table by its name; it may have been dropped meanwhile.")));
}

/* Lock a relation by OID until the end of the transaction. */
void
idem_relcheck_lock(Oid relid, LOCKMODE mode)
{
	LockRelationOid(relid, mode);
	idem_relcheck_require_exists(relid);
}

/*
 * Where a row of pg_class says that a relation's rows are: the latest row, or
 * with a snapshot the one that it shows, if any.
 */
static Oid
storage_of(Oid relid, Snapshot snapshot)
{
	Relation	catalog = table_open(RelationRelationId, AccessShareLock);
	Oid			storage = InvalidOid;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(catalog, ClassOidIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		storage = ((Form_pg_class) GETSTRUCT(tuple))->relfilenode;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return storage;
}

/*
 * Refuse a relation that others have truncated, rewritten or created since the
 * snapshot of the transaction was taken: under that snapshot it looks empty, and
 * an index can be wrong.
 * Then the snapshot shows another storage for it than it has now, or none. The
 * caller has locked the relation. Partitions are not looked at, since that would
 * take locks on all of them.
 */
void
idem_relcheck_snapshot(Oid relid)
{
	if (IsolationUsesXactSnapshot() &&
		storage_of(relid, GetTransactionSnapshot()) != storage_of(relid, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent change of \"%s\"",
						get_rel_name(relid)),
				 errdetail("It was created, truncated or rewritten after the snapshot of this transaction was taken."),
				 errhint("Run the transaction again.")));
}

/* The qualified, quoted name of a relation that the caller has locked. */
char *
idem_relcheck_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name_or_temp(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/* What a relation is, in a message. */
static char *
relation_kind(Oid relid)
{
	switch (get_rel_relkind(relid))
	{
		case RELKIND_RELATION:
			return "table";
		case RELKIND_PARTITIONED_TABLE:
			return "partitioned table";
		case RELKIND_VIEW:
			return "view";
		case RELKIND_MATVIEW:
			return "materialized view";
		case RELKIND_FOREIGN_TABLE:
			return "foreign table";
		case RELKIND_SEQUENCE:
			return "sequence";
		case RELKIND_INDEX:
		case RELKIND_PARTITIONED_INDEX:
			return "index";
		case RELKIND_COMPOSITE_TYPE:
			return "composite type";
		default:
			return "relation";
	}
}

/* Refuse what no rows can be read from. */
void
idem_relcheck_staging(Oid staging)
{
	switch (get_rel_relkind(staging))
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_VIEW:
		case RELKIND_MATVIEW:
		case RELKIND_FOREIGN_TABLE:
			return;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("cannot read staged rows from \"%s\"", get_rel_name(staging)),
					 errdetail("It is of kind %s.", relation_kind(staging)),
					 errhint("Staging can be a table, a temporary table, a view, a materialized view or a foreign table.")));
	}
}

/*
 * Says an extension's catalog, if the extension is there, that the table is its
 * own? Most often it is not there, which the caches know, while pg_extension would
 * have to be read.
 */
static bool
is_known_to(const char *extension, const char *schema, const char *catalog, const char *sql,
			Oid relid)
{
	IdemSpiArgs args = {0};
	Oid			namespace_oid = get_namespace_oid(schema, true);

	if (!OidIsValid(namespace_oid) || !OidIsValid(get_relname_relid(catalog, namespace_oid)) ||
		!OidIsValid(get_extension_oid(extension, true)))
		return false;
	idem_spi_arg(&args, OIDOID, ObjectIdGetDatum(relid), false);
	return idem_spi_execute(sql, InvalidOid, &args, true) > 0;
}

/* Is the table a hypertable of TimescaleDB? Its rows are in other tables. */
bool
idem_relcheck_is_hypertable(Oid relid)
{
	return is_known_to("timescaledb", "_timescaledb_catalog", "hypertable",
					   "SELECT FROM _timescaledb_catalog.hypertable h"
					   " JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) h.schema_name"
					   " JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid"
					   " AND c.relname OPERATOR(pg_catalog.=) h.table_name"
					   " WHERE c.oid OPERATOR(pg_catalog.=) $1", relid);
}

/* Is the table one that Citus distributes? Its rows are on other servers. */
bool
idem_relcheck_is_distributed(Oid relid)
{
	return is_known_to("citus", "pg_catalog", "pg_dist_partition",
					   "SELECT FROM pg_catalog.pg_dist_partition p"
					   " WHERE p.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) $1", relid);
}

/*
 * Refuse targets whose batches could be lost or doubled, or that no INSERT
 * serves. staging is InvalidOid where there is none.
 */
void
idem_relcheck_target(Oid relid, Oid staging)
{
	Relation	target = relation_open(relid, NoLock);
	char	   *name = RelationGetRelationName(target);
	List	   *members;
	ListCell   *lc;

	if (staging == relid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("staging and target are the same table \"%s\"", name),
				 errhint("Load the incoming rows into a staging table of their own.")));
	if (target->rd_rel->relkind == RELKIND_VIEW)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use view \"%s\" as target", name),
				 errhint("Name the table below the view as the target.")));
	if (target->rd_rel->relkind != RELKIND_RELATION &&
		target->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot use %s \"%s\" as target", relation_kind(relid), name),
				 errhint("The target must be a table or a partitioned table.")));
	if (IsCatalogRelation(target))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use system catalog \"%s\" as target", name),
				 errhint("The target must be a table of your own.")));
	if (target->rd_rules != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use table \"%s\" with rules as target", name),
				 errdetail("A rule replaces the statement, so that the rows could not be accounted for."),
				 errhint("Use a trigger in place of the rule.")));

	/* Locked, for one that is dropped meanwhile has no properties to look at. */
	members = find_all_inheritors(relid, AccessShareLock, NULL);
	foreach(lc, members)
	{
		Oid			member = lfirst_oid(lc);

		if (member == staging)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("staging \"%s\" is a part of the target \"%s\"",
							get_rel_name(staging), name),
					 errhint("Detach it first, or copy its rows to a table of their own.")));
		if (get_rel_persistence(member) == RELPERSISTENCE_TEMP)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot use temporary table \"%s\" as target", get_rel_name(member)),
					 errdetail("The ledger would remember the batch after the table is gone."),
					 errhint("Use a permanent table as the target.")));
		if (get_rel_persistence(member) == RELPERSISTENCE_UNLOGGED)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot use unlogged table \"%s\" as target", get_rel_name(member)),
					 errdetail("A crash would empty it, and the ledger would still have the batch."),
					 errhint("Run ALTER TABLE %s SET LOGGED first.", idem_relcheck_name(member))));
	}
	if (target->rd_rel->relkind == RELKIND_RELATION && list_length(members) > 1 &&
		!idem_relcheck_is_hypertable(relid))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use table \"%s\" with inheritance children as target", name),
				 errdetail("A unique index does not cover the children, so that a key could be stored twice."),
				 errhint("Use a partitioned table, or merge into the children one by one.")));
	relation_close(target, NoLock);
}

/*
 * Has the target, with all its parts, no blocks at all? False where that cannot
 * be told: of a foreign table without asking; and where an extension keeps rows
 * elsewhere, as TimescaleDB does those of compressed chunks.
 */
bool
idem_relcheck_is_empty(Oid target)
{
	ListCell   *lc;
	bool		empty = true;

	foreach(lc, find_all_inheritors(target, AccessShareLock, NULL))
	{
		Relation	rel = relation_open(lfirst_oid(lc), NoLock);

		if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
			empty &= RelationGetNumberOfBlocks(rel) == 0;
		else if (rel->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
			empty = false;
		relation_close(rel, NoLock);
	}
	return empty && !idem_relcheck_is_hypertable(target) &&
		!idem_relcheck_is_distributed(target);
}
