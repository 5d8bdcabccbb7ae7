/*-------------------------------------------------------------------------
 *
 * spi_util.c
 *	  The only way to run SQL in this extension.
 *
 * What prepares or runs a statement expects a connection, made by
 * idem_spi_connect(). Every function reports a failure as an error, and leaves
 * the current memory context as it was, which SPI does not. Results live in SPI's memory until the next statement
 * or idem_spi_finish(): copy them out by idem_spi_value() or idem_spi_text(),
 * which name the context that the copy shall live in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/queryenvironment.h"
#include "utils/regproc.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "spi_util.h"

/* More than there are statements for one extension in one schema. */
#define MAX_KEPT_PLANS	32

typedef struct KeptPlan
{
	char	   *sql;
	Oid			relid;			/* the relation that it must use */
	SPIPlanPtr	plan;			/* NULL: the entry is free */
} KeptPlan;

static KeptPlan kept_plans[MAX_KEPT_PLANS];

/* SPI's result codes that are no failure are positive. */
static void
check(int result, const char *what)
{
	if (result < 0)
		elog(ERROR, "%s failed: %s", what, SPI_result_code_string(result));
}

/* Append an argument. */
void
idem_spi_arg(IdemSpiArgs *args, Oid type, Datum value, bool isnull)
{
	Assert(args->count < IDEM_SPI_MAX_ARGS);
	args->types[args->count] = type;
	args->values[args->count] = value;
	args->nulls[args->count] = isnull ? 'n' : ' ';
	args->count++;
}

/* Append an argument of type text; NULL is NULL. */
void
idem_spi_arg_text(IdemSpiArgs *args, const char *value)
{
	idem_spi_arg(args, TEXTOID,
				 value ? CStringGetTextDatum(value) : (Datum) 0, value == NULL);
}

void
idem_spi_connect(void)
{
	MemoryContext context = CurrentMemoryContext;

	check(SPI_connect(), "SPI_connect");
	MemoryContextSwitchTo(context);
}

/*
 * The same for a procedure, which may commit if it was called so that it can.
 * The connection's memory outlives its transactions.
 */
void
idem_spi_connect_nonatomic(void)
{
	MemoryContext context = CurrentMemoryContext;

	check(SPI_connect_ext(SPI_OPT_NONATOMIC), "SPI_connect_ext");
	MemoryContextSwitchTo(context);
}

/*
 * Commit and begin a new transaction. After an error, too, a new transaction has
 * begun, and whoever catches the error can go on.
 */
void
idem_spi_commit(void)
{
	SPI_commit();
}

void
idem_spi_finish(void)
{
	check(SPI_finish(), "SPI_finish");
}

/*
 * Parse and analyze a statement. With keep, the plan outlives the connection
 * until idem_spi_free_plan().
 */
SPIPlanPtr
idem_spi_prepare(const char *sql, int nargs, Oid *types, int cursor_options, bool keep)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = SPI_prepare_cursor(sql, nargs, types, cursor_options);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (keep)
		check(SPI_keepplan(plan), "SPI_keepplan");
	MemoryContextSwitchTo(context);
	return plan;
}

/*
 * Plan a statement now, and without JIT: compiling calls of our own functions
 * costs more than it saves. With by_index, rows are looked up one by one where
 * that can be done.
 */
void
idem_spi_plan(SPIPlanPtr plan, bool kept, bool by_index)
{
	static const char *const off[] = {"jit", "enable_hashjoin", "enable_mergejoin",
	"enable_seqscan"};
	MemoryContext context = CurrentMemoryContext;
	int			guc_level = NewGUCNestLevel();
	CachedPlan *planned;

	for (int i = 0; i < (by_index ? lengthof(off) : 1); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	planned = SPI_plan_get_cached_plan(plan);
	if (planned)
		ReleaseCachedPlan(planned, kept ? CurrentResourceOwner : NULL);
	AtEOXact_GUC(true, guc_level);
	MemoryContextSwitchTo(context);
}

/* False once anything that the statement depends on has changed. */
bool
idem_spi_plan_is_valid(SPIPlanPtr plan)
{
	return SPI_plan_is_valid(plan);
}

void
idem_spi_free_plan(SPIPlanPtr plan)
{
	MemoryContext context = CurrentMemoryContext;

	check(SPI_freeplan(plan), "SPI_freeplan");
	MemoryContextSwitchTo(context);
}

/*
 * Find a function that goes by one of the names that generated statements call
 * in our schema, and is not ours: an overload that fits the types of a call
 * better than VARIADIC "any" does.
 */
static bool
find_foreign_function(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr))
	{
		Oid			function = ((FuncExpr *) node)->funcid;
		char	   *name = get_func_name(function);

		if (name == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not merge, since a function has been dropped meanwhile"),
					 errhint("Run the transaction again.")));
		if (get_func_namespace(function) == *(Oid *) context &&
			(strncmp(name, "idem_row_", 9) == 0 || strcmp(name, "idem_column_default") == 0 ||
			 strcmp(name, "idem_assign") == 0 || strcmp(name, "idem_image") == 0) &&
			getExtensionOfObject(ProcedureRelationId, function) !=
			get_extension_oid("idempotent_ingest", true))
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
					 errmsg("function %s is not part of extension \"idempotent_ingest\"",
							format_procedure(function)),
					 errdetail("It would be called in place of the extension's own function."),
					 errhint("Drop the function, and revoke CREATE on the extension's schema.")));
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, find_foreign_function, context, 0);
	return expression_tree_walker(node, find_foreign_function, context);
}

/* Is whatever the query writes, itself or in its WITH clause, the given relation? */
static bool
writes_only(const Query *query, Oid relid)
{
	ListCell   *lc;

	if (query->resultRelation > 0 &&
		rt_fetch(query->resultRelation, query->rtable)->relid != relid)
		return false;
	foreach(lc, query->cteList)
	{
		if (!writes_only((Query *) lfirst_node(CommonTableExpr, lc)->ctequery, relid))
			return false;
	}
	return true;
}

/*
 * Make sure that the statement means what it was generated for: the relations
 * that the caller has locked by OID, and our functions in the given schema.
 * Between locking and parsing, a name can come to mean another relation (a
 * schema was renamed). To be called before the statement is planned, before it is
 * run, and once more afterwards, since a plan that became invalid is analyzed
 * again. InvalidOid for a relation that the statement does not use.
 */
void
idem_spi_require_meaning(SPIPlanPtr plan, Oid read, Oid written, Oid schema)
{
	List	   *relations = NIL;
	bool		writes_it = true;
	ListCell   *lc;

	foreach(lc, SPI_plan_get_plan_sources(plan))
	{
		CachedPlanSource *source = lfirst(lc);
		ListCell   *query_cell;

		relations = list_concat_copy(relations, source->relationOids);
		foreach(query_cell, source->query_list)
		{
			Query	   *query = lfirst_node(Query, query_cell);

			writes_it &= writes_only(query, written);
			(void) find_foreign_function((Node *) query, &schema);
		}
	}
	if (!writes_it ||
		(OidIsValid(read) && !list_member_oid(relations, read)) ||
		(OidIsValid(written) && !list_member_oid(relations, written)))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not merge, since a name has come to mean another relation"),
				 errdetail("A schema or a relation was renamed by a concurrent transaction."),
				 errhint("Run the transaction again.")));
}

/*
 * Run a plan and throw its rows away, one by one, so that memory does not grow
 * with them. Returns how many rows were processed.
 */
uint64
idem_spi_run_plan(SPIPlanPtr plan, ParamListInfo params, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	SPIExecuteOptions options = {0};

	options.params = params;
	options.read_only = read_only;
	options.dest = None_Receiver;
	check(SPI_execute_plan_extended(plan, &options), "SPI_execute_plan");
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

/*
 * Make sure that a statement uses a relation, which a concurrent rename could
 * have put another one in the place of. InvalidOid: nothing to make sure of.
 */
static void
require_use(SPIPlanPtr plan, Oid relid)
{
	ListCell   *lc;

	if (!OidIsValid(relid))
		return;
	foreach(lc, SPI_plan_get_plan_sources(plan))
	{
		if (list_member_oid(((CachedPlanSource *) lfirst(lc))->relationOids, relid))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not find relation \"%s\" by its name", get_rel_name(relid)),
			 errdetail("Its schema was renamed by a concurrent transaction."),
			 errhint("Run the transaction again.")));
}

static uint64
execute_plan(SPIPlanPtr plan, Oid relid, IdemSpiArgs *args, bool read_only)
{
	require_use(plan, relid);
	check(SPI_execute_plan(plan, args->values, args->nulls, read_only, 0), "SPI_execute_plan");
	require_use(plan, relid);
	return SPI_processed;
}

/*
 * Run a statement once, which uses the given relation. Returns how many rows
 * were processed.
 */
uint64
idem_spi_execute(const char *sql, Oid relid, IdemSpiArgs *args, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = idem_spi_prepare(sql, args->count, args->types, 0, false);
	uint64		processed = execute_plan(plan, relid, args, read_only);

	MemoryContextSwitchTo(context);
	return processed;
}

/* The plan of a statement that is run again and again. */
static SPIPlanPtr
keep_plan(const char *sql, Oid relid, IdemSpiArgs *args)
{
	static int	next = 0;
	KeptPlan   *entry;
	SPIPlanPtr	plan;

	for (int i = 0; i < MAX_KEPT_PLANS; i++)
	{
		entry = &kept_plans[i];
		if (entry->plan && entry->relid == relid && strcmp(entry->sql, sql) == 0)
			return entry->plan;
	}
	entry = &kept_plans[next];
	next = (next + 1) % MAX_KEPT_PLANS;
	if (entry->plan)
	{
		plan = entry->plan;
		entry->plan = NULL;
		pfree(entry->sql);
		idem_spi_free_plan(plan);
	}
	plan = idem_spi_prepare(sql, args->count, args->types, 0, true);
	entry->sql = MemoryContextStrdup(TopMemoryContext, sql);
	entry->relid = relid;
	entry->plan = plan;
	return plan;
}

/*
 * The same for a statement that is run again and again, and runs nothing that
 * could run others of these: its plan is kept.
 */
uint64
idem_spi_execute_cached(const char *sql, Oid relid, IdemSpiArgs *args, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	uint64		processed = execute_plan(keep_plan(sql, relid, args), relid, args, read_only);

	MemoryContextSwitchTo(context);
	return processed;
}

/*
 * Run a query under a snapshot of this moment, whatever the isolation level:
 * to learn what the transaction's own snapshot does not show.
 */
uint64
idem_spi_execute_latest(const char *sql, Oid relid, IdemSpiArgs *args)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = idem_spi_prepare(sql, args->count, args->types, 0, false);

	require_use(plan, relid);
	check(SPI_execute_snapshot(plan, args->values, args->nulls, GetLatestSnapshot(),
							   InvalidSnapshot, true, false, 0), "SPI_execute_snapshot");
	require_use(plan, relid);
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

/* Run a statement that only defines something. */
void
idem_spi_execute_utility(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;

	check(SPI_execute(sql, false, 0), "SPI_execute");
	MemoryContextSwitchTo(context);
}

/* A value of the last result; row and column count from 0 and 1. */
Datum
idem_spi_value(int row, int column, MemoryContext context, bool *isnull)
{
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], tupdesc, column, isnull);
	MemoryContext old_context;
	int16		typlen;
	bool		typbyval;

	if (*isnull)
		return (Datum) 0;
	get_typlenbyval(SPI_gettypeid(tupdesc, column), &typlen, &typbyval);
	old_context = MemoryContextSwitchTo(context);
	value = datumCopy(value, typbyval, typlen);
	MemoryContextSwitchTo(old_context);
	return value;
}

/* A value of the last result in text form, NULL if it is NULL. */
char *
idem_spi_text(int row, int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

/*
 * Prepare and plan a query on a relation, which locks what it reads, for
 * idem_spi_read(). InvalidOid: the query does not use a relation.
 */
SPIPlanPtr
idem_spi_prepare_read(const char *sql, Oid relid)
{
	SPIPlanPtr	plan = idem_spi_prepare(sql, 0, NULL, 0, false);

	idem_spi_plan(plan, false, false);
	idem_spi_require_meaning(plan, relid, InvalidOid, InvalidOid);
	return plan;
}

/* Run the query under the active snapshot, and hand each row to dest. */
void
idem_spi_read(SPIPlanPtr plan, Oid relid, DestReceiver *dest)
{
	MemoryContext context = CurrentMemoryContext;
	SPIExecuteOptions options = {0};

	options.read_only = true;
	options.dest = dest;
	check(SPI_execute_plan_extended(plan, &options), "SPI_execute_plan");
	MemoryContextSwitchTo(context);
	idem_spi_require_meaning(plan, relid, InvalidOid, InvalidOid);
}

/*
 * Run a query on a relation into a tuplestore that lives in the current memory
 * context, and say what its rows look like.
 */
Tuplestorestate *
idem_spi_fill_tuplestore(const char *sql, Oid relid, bool read_only, TupleDesc *tupdesc)
{
	MemoryContext context = CurrentMemoryContext;
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	DestReceiver *dest = CreateDestReceiver(DestTuplestore);
	SPIExecuteOptions options = {0};
	SPIPlanPtr	plan = idem_spi_prepare(sql, 0, NULL, 0, false);
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));

	idem_spi_require_meaning(plan, relid, InvalidOid, InvalidOid);
	*tupdesc = CreateTupleDescCopy(source->resultDesc);
	/* Detoasted: the values must outlive the snapshot that they were read by. */
	SetTuplestoreDestReceiverParams(dest, store, context, true, NULL, NULL);
	options.read_only = read_only;
	options.dest = dest;
	check(SPI_execute_plan_extended(plan, &options), "SPI_execute_plan");
	MemoryContextSwitchTo(context);
	dest->rDestroy(dest);
	idem_spi_require_meaning(plan, relid, InvalidOid, InvalidOid);
	return store;
}

/* Let the connection's statements read a tuplestore under a name. */
void
idem_spi_register(const char *name, Tuplestorestate *store, TupleDesc tupdesc)
{
	MemoryContext context = CurrentMemoryContext;
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));

	enr->md.name = pstrdup(name);
	enr->md.tupdesc = tupdesc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = tuplestore_tuple_count(store);
	enr->reldata = store;
	check(SPI_register_relation(enr), "SPI_register_relation");
	MemoryContextSwitchTo(context);
}
