/*-------------------------------------------------------------------------
 *
 * engine_sql.c
 *	  Classify and apply a batch by one generated statement.
 *
 * Plans are kept for the rest of the session. One is found again by the text of
 * its statement, which says all about columns and options, together with the
 * OIDs of the relations, for a name can come to mean another one, and the role,
 * so that nobody runs what was planned for another's rights. The plan cache
 * below SPI plans again when a relation changes; a plan is dropped as well when
 * a relation has grown or shrunk a lot since, because what suits ten rows does
 * not suit ten million. That goes for staging with its parts, and for a target
 * without parts: those of a partitioned target are not added up for each merge, and
 * its plan stays until ANALYZE or the like makes it invalid.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "attempt.h"
#include "engine_sql.h"
#include "rowhash.h"
#include "spi_util.h"
#include "sqlgen.h"

#define MAX_KEPT_PLANS	64

/*
 * How many blocks of the target are read in the time in which the rows of one
 * block of staging are looked up; and how many rows that are.
 */
#define LOOKUP_BLOCKS	20
#define ROWS_PER_BLOCK	50

/* The size of a foreign table that nobody has analyzed, in blocks. */
#define UNKNOWN_BLOCKS	100000

/* How often rows of concurrent deletions are tried again. */
#define MAX_ATTEMPTS		10

typedef struct KeptPlan
{
	Oid			role;
	Oid			staging;
	Oid			target;
	char	   *sql;
	SPIPlanPtr	plan;
	uint64		staging_blocks; /* when it was planned */
	uint64		target_blocks;	/* without parts: there can be very many */
	bool		by_index;		/* few rows are staged beside what is stored */
	uint64		last_used;
	int			in_use;			/* a trigger can start the same merge again */
} KeptPlan;

static KeptPlan kept_plans[MAX_KEPT_PLANS];
static uint64 plan_clock = 0;

/*
 * The size of a table in blocks; 0 for what has no storage, but parts that have.
 * What is not known of a foreign table, which can be a part of staging only, is
 * taken for much: it is no harm to read a target as a whole for few rows, beside
 * looking up many one by one.
 */
static BlockNumber
relation_blocks(Oid relid)
{
	Relation	rel = table_open(relid, NoLock);
	BlockNumber blocks = 0;

	if (rel->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		blocks = rel->rd_rel->relpages > 0 ? rel->rd_rel->relpages : UNKNOWN_BLOCKS;
	/* An unlogged table has no storage on a standby; planning says so. */
	else if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind) &&
			 (rel->rd_rel->relpersistence == RELPERSISTENCE_PERMANENT || !RecoveryInProgress()))
		blocks = RelationGetNumberOfBlocks(rel);
	table_close(rel, NoLock);
	return blocks;
}

/*
 * The same for a table with all its parts, as far as it matters. The caller holds a
 * lock on the table.
 */
static uint64
total_blocks(Oid relid, uint64 enough)
{
	uint64		blocks = 0;
	ListCell   *lc;

	if (!has_subclass(relid))
		return relation_blocks(relid);
	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		blocks += relation_blocks(lfirst_oid(lc));
		if (blocks > enough)
			break;
	}
	return blocks;
}

/* Would a plan made for so many blocks be a bad one now? */
static bool
size_differs(uint64 planned, uint64 now)
{
	return now > planned * 2.0 + 8 || planned > now * 2.0 + 8;
}

/*
 * Are so few rows staged that each is better looked up by itself? The planner
 * knows little about a staging table that nobody has analyzed, and would rather
 * read the target as a whole. The caller holds a lock on the target.
 */
static bool
prefers_index(uint64 staging_blocks, Oid target)
{
	uint64		enough = staging_blocks * LOOKUP_BLOCKS;

	return OidIsValid(target) && total_blocks(target, enough) > enough;
}

static void
drop_plan(KeptPlan *entry)
{
	idem_spi_free_plan(entry->plan);
	pfree(entry->sql);
	memset(entry, 0, sizeof(KeptPlan));
}

/*
 * The kept plan of a statement, prepared if there is none: it is planned by the
 * caller, once it is where it will be found again or dropped. The caller holds
 * locks on both relations, and marks the entry while it is in use.
 */
static KeptPlan *
get_plan(const char *sql, Oid staging, Oid target)
{
	uint64		staging_blocks = total_blocks(staging, PG_UINT64_MAX);
	uint64		target_blocks = OidIsValid(target) ? relation_blocks(target) : 0;
	KeptPlan   *oldest = NULL;
	Oid			argtype = INT8OID;
	SPIPlanPtr	plan;

	for (int i = 0; i < MAX_KEPT_PLANS; i++)
	{
		KeptPlan   *entry = &kept_plans[i];

		if (entry->plan && entry->in_use == 0 &&
			(!idem_spi_plan_is_valid(entry->plan) ||
			 (entry->staging == staging && entry->target == target &&
			  (size_differs(entry->staging_blocks, staging_blocks) ||
			   size_differs(entry->target_blocks, target_blocks)))))
			drop_plan(entry);
		if (entry->plan && entry->role == GetUserId() && entry->staging == staging &&
			entry->target == target && strcmp(entry->sql, sql) == 0)
		{
			entry->last_used = ++plan_clock;
			return entry;
		}
		if (entry->in_use == 0 && (oldest == NULL || entry->last_used < oldest->last_used))
			oldest = entry;
	}
	plan = idem_spi_prepare(sql, 1, &argtype, CURSOR_OPT_GENERIC_PLAN, oldest != NULL);
	if (oldest == NULL)
	{
		/* All are in use, by merges within merges: this one is not kept. */
		oldest = palloc0(sizeof(KeptPlan));
		oldest->plan = plan;
		return oldest;
	}
	if (oldest->plan)
		drop_plan(oldest);
	oldest->sql = MemoryContextStrdup(TopMemoryContext, sql);
	oldest->plan = plan;
	oldest->role = GetUserId();
	oldest->staging = staging;
	oldest->target = target;
	oldest->staging_blocks = staging_blocks;
	oldest->target_blocks = target_blocks;
	oldest->by_index = prefers_index(staging_blocks, target);
	oldest->last_used = ++plan_clock;
	return oldest;
}

/*
 * Run a statement for a run. A statement that reads the tuplestore is planned
 * for its very number of rows, and not kept.
 */
static void
run_statement(IdemRun *run, const char *sql, const IdemSource *source, Oid target)
{
	ParamListInfo params = makeParamList(1);
	KeptPlan	unkept = {0};
	KeptPlan   *entry = &unkept;
	Oid			argtype = INT8OID;
	Oid			read = source->rows ? InvalidOid : source->staging;
	Oid			schema = source->ledger->schema_oid;

	params->params[0].ptype = INT8OID;
	params->params[0].value = Int64GetDatum(idem_rowfuncs_handle(run));
	params->params[0].isnull = false;
	params->params[0].pflags = PARAM_FLAG_CONST;
	if (source->rows)
	{
		unkept.plan = idem_spi_prepare(sql, 1, &argtype, CURSOR_OPT_GENERIC_PLAN, false);
		unkept.by_index =
			prefers_index(tuplestore_tuple_count(source->rows) / ROWS_PER_BLOCK, target);
	}
	else
		entry = get_plan(sql, source->staging, target);
	entry->in_use++;
	PG_TRY();
	{
		/* To plan a function of somebody else can mean to run it. */
		idem_spi_require_meaning(entry->plan, read, target, schema);
		/* One that is kept may still lack a plan, if planning failed before. */
		idem_spi_plan(entry->plan, entry->sql != NULL, entry->by_index);
		idem_spi_require_meaning(entry->plan, read, target, schema);
		(void) idem_spi_run_plan(entry->plan, params, source->read_only);
	}
	PG_FINALLY();
	{
		entry->in_use--;
	}
	PG_END_TRY();
	idem_spi_require_meaning(entry->plan, read, target, schema);
}

/* One attempt at a run. Returns what idem_rowfuncs_finish() does. */
static bool
attempt(IdemRunKind kind, const IdemSource *source, const IdemMergeInfo *info, const char *sql,
		int ncolumns, char **names, Oid *types,
		IdemCounts *counts, char **fingerprint)
{
	IdemRun    *run = idem_rowfuncs_begin(kind, info, ncolumns, names, types);
	volatile bool done = false;

	PG_TRY();
	{
		run_statement(run, sql, source, info ? info->target : InvalidOid);
		done = idem_rowfuncs_finish(run, counts, fingerprint);
	}
	PG_FINALLY();
	{
		idem_rowfuncs_end(run);
	}
	PG_END_TRY();
	return done;
}

/*
 * Count the rows of staging and compute the fingerprint of some of its columns.
 * Results are palloc'd in the current memory context here and below.
 */
void
idem_engine_sql_scan(IdemSource *source, List *columns, IdemCounts *counts, char **fingerprint)
{
	int			ncolumns = list_length(columns);
	char	  **names = palloc(sizeof(char *) * ncolumns);
	Oid		   *types = palloc(sizeof(Oid) * ncolumns);
	ListCell   *lc;

	foreach(lc, columns)
		names[foreach_current_index(lc)] = lfirst(lc);
	idem_relinfo_column_types(source->staging, columns, types);
	idem_source_materialize(source);
	(void) attempt(IDEM_RUN_SCAN, source, NULL,
				   idem_sqlgen_scan(source->materialize ? IDEM_MATERIALIZED_NAME : source->name,
									columns, source->ledger->schema),
				   ncolumns, names, types, counts, fingerprint);
}

static void
merge_columns(const IdemMergeInfo *info, char ***names, Oid **types)
{
	*names = palloc(sizeof(char *) * Max(info->ncolumns, 1));
	*types = palloc(sizeof(Oid) * Max(info->ncolumns, 1));
	for (int i = 0; i < info->ncolumns; i++)
	{
		(*names)[i] = info->columns[i].name;
		(*types)[i] = info->columns[i].staged_type;
	}
}

/* The statement that applies the batch, or with dry_run counts what it would do. */
char *
idem_engine_sql_statement(const IdemSource *source, const IdemMergeInfo *info, bool dry_run)
{
	return dry_run ? idem_sqlgen_classify(info, source->ledger->schema, source->materialize) :
		idem_sqlgen_apply(info, source->ledger->schema, source->materialize);
}

/* Count what applying the batch would do. */
void
idem_engine_sql_classify(IdemSource *source, const IdemMergeInfo *info,
						 IdemCounts *counts, char **fingerprint)
{
	char	  **names;
	Oid		   *types;

	merge_columns(info, &names, &types);
	idem_source_materialize(source);
	(void) attempt(IDEM_RUN_CLASSIFY, source, info,
				   idem_engine_sql_statement(source, info, true),
				   info->ncolumns, names, types, counts, fingerprint);
}

/* What attempt() is given, as one argument. */
typedef struct ApplyArguments
{
	const IdemSource *source;
	const IdemMergeInfo *info;
	const char *sql;
	char	  **names;
	Oid		   *types;
	IdemCounts *counts;
	char	  **fingerprint;
} ApplyArguments;

static bool
attempt_apply(void *arg)
{
	ApplyArguments *args = arg;

	return attempt(IDEM_RUN_APPLY, args->source, args->info, args->sql, args->info->ncolumns,
				   args->names, args->types, args->counts, args->fingerprint);
}

/*
 * Apply the batch. A row that was matched and then deleted by somebody else,
 * before it could be locked, would be inserted with stored values of columns
 * that the batch does not set. Then the attempt is undone, and another snapshot
 * shows that the row is gone. Above READ COMMITTED there is no other one.
 */
void
idem_engine_sql_apply(IdemSource *source, const IdemMergeInfo *info,
					  IdemCounts *counts, char **fingerprint)
{
	ApplyArguments args = {source, info};
	bool		can_retry = info->keeps_stored && !IsolationUsesXactSnapshot();

	args.sql = idem_engine_sql_statement(source, info, false);
	args.counts = counts;
	args.fingerprint = fingerprint;
	merge_columns(info, &args.names, &args.types);
	idem_source_materialize(source);

	for (int i = 0; i < (can_retry ? MAX_ATTEMPTS : 1); i++)
	{
		if (can_retry ? idem_attempt_run(attempt_apply, &args) : attempt_apply(&args))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent delete"),
			 errdetail("A stored row of the batch was deleted, or its key was changed, before it could be updated."),
			 errhint("Run the transaction again.")));
}

/* Give the target the columns that only staging has, as the caller. */
void
idem_engine_sql_add_columns(const IdemMergeInfo *info)
{
	idem_spi_execute_utility(idem_sqlgen_add_columns(info));
}
