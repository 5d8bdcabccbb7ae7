/*-------------------------------------------------------------------------
 *
 * ledger.c
 *	  The ledger: one row for each batch that was applied.
 *
 * Every statement here runs as the ledger's owner with search_path set to
 * pg_catalog, and so does what the owner may have added to the ledger; nothing that
 * another user defined runs with it. Callers hold an SPI connection and check the
 * rights of the user themselves.
 *
 * The row of a batch is written once, in the transaction of the batch and after
 * all else: there is no such thing as a row in progress that a crash could leave
 * behind. Two submitters of a batch meet at the lock of the batch (turn.c), which
 * both take before they look here; the primary key stands behind it, so that
 * even somebody who takes no lock cannot have a batch recorded twice.
 *
 * Once a batch has expired, all that is left of its row is the key and what
 * tells one kind of row from another; its options are NULL, which those of a
 * row that has not expired never are. maintenance.c does that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "idempotent_ingest.h"
#include "ledger.h"
#include "resultrel.h"
#include "security.h"
#include "spi_util.h"

#define ROW_COUNTS "rows_staged, rows_duplicate, rows_inserted, rows_updated," \
	" rows_deleted, rows_unchanged, rows_stale, rows_skipped"

static IdemLedger current;

/*
 * Find the ledger that belongs to one of our functions: in the function's
 * schema. The result is good until the next call.
 */
const IdemLedger *
idem_ledger_open(Oid function)
{
	return idem_ledger_open_in(get_func_namespace(function));
}

/* The same, for those that no function of ours has called. */
const IdemLedger *
idem_ledger_open_in(Oid namespace_oid)
{
	Oid			relid = get_relname_relid("idem_ledger", namespace_oid);
	HeapTuple	tuple;
	const char *schema;
	char	   *earlier;

	/* To find out about each table once will do: it costs two scans. */
	if (relid != current.relid)
		relid = idem_security_own_table("idem_ledger", namespace_oid);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the ledger of extension \"idempotent_ingest\" is missing"),
				 errhint("Undo what was done to the table \"idem_ledger\", or restore it from a backup; a new one would not know which batches were applied.")));
	schema = quote_identifier(get_namespace_name(namespace_oid));
	if (relid != current.relid || strcmp(schema, current.schema) != 0)
	{
		/* Another extension, or another name. */
		earlier = current.schema;
		current.schema = MemoryContextStrdup(TopMemoryContext, schema);
		if (earlier)
			pfree(earlier);
		current.relid = relid;
		current.schema_oid = namespace_oid;
	}
	current.owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return &current;
}

/* The ledger is not as the extension's script made it. */
static void
report_altered(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
			 errmsg("the ledger of extension \"idempotent_ingest\" has other columns than it should"),
			 errdetail_internal("%s", detail),
			 errhint("Undo what was done to the table \"idem_ledger\".")));
}

/* $1 to $4 of every statement on one batch. */
static void
key_arguments(IdemSpiArgs *args, const IdemBatchKey *key)
{
	idem_spi_arg(args, REGCLASSOID, ObjectIdGetDatum(key->target), false);
	idem_spi_arg_text(args, key->pipeline);
	idem_spi_arg_text(args, key->batch_id);
	idem_spi_arg(args, REGROLEOID, ObjectIdGetDatum(key->claimed_by), false);
}

#define WHERE_KEY " WHERE target = $1 AND pipeline = $2 AND batch_id = $3 AND claimed_by = $4"

static uint64
run_cached(const IdemLedger *ledger, const char *sql, IdemSpiArgs *args)
{
	IdemIdentity saved;
	uint64		processed;

	idem_security_push(&saved, ledger->owner);
	processed = idem_spi_execute_cached(sql, ledger->relid, args, false);
	idem_security_pop(&saved);
	return processed;
}

static uint64
run_once(const IdemLedger *ledger, const char *sql, IdemSpiArgs *args)
{
	IdemIdentity saved;
	uint64		processed;

	idem_security_push(&saved, ledger->owner);
	processed = idem_spi_execute(sql, ledger->relid, args, false);
	idem_security_pop(&saved);
	return processed;
}

static List *
text_array_to_list(Datum array)
{
	Datum	   *values;
	bool	   *nulls;
	int			count;
	List	   *list = NIL;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &count);
	for (int i = 0; i < count; i++)
		list = lappend(list, TextDatumGetCString(values[i]));
	return list;
}

static Datum
list_to_text_array(List *list)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(list_length(list), 1));
	ListCell   *lc;

	foreach(lc, list)
		values[foreach_current_index(lc)] = CStringGetTextDatum(lfirst(lc));
	return PointerGetDatum(construct_array(values, list_length(list), TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * Is there a row with this key, by the snapshot that a statement would have now,
 * or by one that sees all that is committed (latest)? Most batches are new, and
 * this tells it sooner than a statement would, of which most of the time goes to
 * its start and its end. In doubt it is true.
 */
static bool
has_row(const IdemLedger *ledger, const IdemBatchKey *key, bool latest)
{
	/* In the order of the primary key. */
	const Datum values[] = {ObjectIdGetDatum(key->target), CStringGetTextDatum(key->pipeline),
	CStringGetTextDatum(key->batch_id), ObjectIdGetDatum(key->claimed_by)};
	const RegProcedure equals[] = {F_OIDEQ, F_TEXTEQ, F_TEXTEQ, F_OIDEQ};
	ScanKeyData scan_keys[lengthof(values)];
	Relation	table = try_table_open(ledger->relid, AccessShareLock);
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	bool		found;

	if (table == NULL)
		return true;
	(void) RelationGetIndexList(table);
	if (!OidIsValid(table->rd_pkindex))
	{
		table_close(table, NoLock);
		return true;
	}
	index = index_open(table->rd_pkindex, AccessShareLock);
	for (int i = 0; i < lengthof(values); i++)
		ScanKeyEntryInitialize(&scan_keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i], equals[i], values[i]);
	CommandCounterIncrement();
	PushActiveSnapshot(latest ? GetLatestSnapshot() : GetTransactionSnapshot());
	slot = table_slot_create(table, NULL);
	scan = index_beginscan_compat(table, index, GetActiveSnapshot(), lengthof(values));
	index_rescan(scan, scan_keys, lengthof(values), NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	PopActiveSnapshot();
	index_close(index, NoLock);
	table_close(table, NoLock);
	return found;
}

/*
 * Above READ COMMITTED: is there a row that the transaction's snapshot does not
 * see? The primary key would say so in the end; this says it at once.
 */
bool
idem_ledger_is_hidden(const IdemLedger *ledger, const IdemBatchKey *key)
{
	return IsolationUsesXactSnapshot() && has_row(ledger, key, true);
}

/*
 * Look a batch up, and compare its options with those given. With lock, its row
 * is locked, but not against who relies on its being there. False if there is
 * none. A row about an earlier table with the same OID is removed. The entry's
 * parts are palloc'd in the current memory context.
 */
bool
idem_ledger_find(const IdemLedger *ledger, const IdemBatchKey *key, const char *options,
				 bool lock, IdemLedgerEntry *entry)
{
	MemoryContext context = CurrentMemoryContext;
	IdemSpiArgs args = {0};
	bool		isnull;
	Datum		value;

	memset(entry, 0, sizeof(*entry));
	if (!has_row(ledger, key, false))
		return false;
	key_arguments(&args, key);
	idem_spi_arg_text(&args, options);
	if (run_cached(ledger,
				   psprintf("SELECT operation, revision, fingerprint, fingerprint_columns,"
							" " ROW_COUNTS ", engine, applied_at, elapsed, target_type,"
							" options <> $5::jsonb, options IS NULL"
							" FROM %s.idem_ledger" WHERE_KEY "%s",
							ledger->schema, lock ? " FOR NO KEY UPDATE" : ""), &args) == 0)
		return false;

	value = idem_spi_value(0, 16, context, &isnull);
	if (DatumGetObjectId(value) != key->target_type)
	{
		args.count = 4;
		(void) run_once(ledger, psprintf("DELETE FROM %s.idem_ledger" WHERE_KEY, ledger->schema),
						&args);
		return false;
	}
	entry->is_merge = strcmp(idem_spi_text(0, 1, context), "merge") == 0;
	entry->expired = DatumGetBool(idem_spi_value(0, 18, context, &isnull));
	entry->revision = DatumGetInt32(idem_spi_value(0, 2, context, &isnull));
	entry->fingerprint = idem_spi_text(0, 3, context);
	value = idem_spi_value(0, 4, context, &isnull);
	if (!isnull)
		entry->columns = text_array_to_list(value);
	for (int i = 0; i < IDEM_LEDGER_COUNTS; i++)
		entry->rows[i] = DatumGetInt64(idem_spi_value(0, 5 + i, context, &isnull));
	entry->engine = idem_spi_text(0, 13, context);
	entry->applied_at = DatumGetTimestampTz(idem_spi_value(0, 14, context, &isnull));
	value = idem_spi_value(0, 15, context, &entry->elapsed_null);
	if (!entry->elapsed_null)
		entry->elapsed = *DatumGetIntervalP(value);
	if (DatumGetBool(idem_spi_value(0, 17, context, &isnull)) && !isnull)
	{
		/* Somebody can have had the batch forgotten: then it is a new one. */
		if (run_once(ledger,
					 psprintf("SELECT (SELECT string_agg(COALESCE(o.key, n.key), ', '"
							  " ORDER BY COALESCE(o.key, n.key) COLLATE \"C\")"
							  " FROM jsonb_each(options) o FULL JOIN jsonb_each($5::jsonb) n ON n.key = o.key"
							  " WHERE o.value IS DISTINCT FROM n.value)"
							  " FROM %s.idem_ledger" WHERE_KEY,
							  ledger->schema), &args) == 0)
			return idem_ledger_find(ledger, key, options, lock, entry);
		entry->differing = idem_spi_text(0, 1, context);
	}
	return true;
}

/*
 * Lock the row of a batch without waiting. False if somebody else has it; true
 * too if there is none. Whoever has the batch lock meets nobody here but those
 * who take no batch lock, such as idem_forget() without a batch id.
 */
bool
idem_ledger_try_lock(const IdemLedger *ledger, const IdemBatchKey *key)
{
	IdemSpiArgs args = {0};
	char	   *sql = psprintf("SELECT FROM %s.idem_ledger" WHERE_KEY, ledger->schema);

	key_arguments(&args, key);
	/* NOWAIT would be an error that does not name the batch. */
	return run_once(ledger, psprintf("%s FOR NO KEY UPDATE SKIP LOCKED", sql), &args) > 0 ||
		run_once(ledger, sql, &args) == 0;
}

/*
 * Begin to say what is to be recorded: who asks for it, and what for. That is
 * done before anything else runs, which might set another role. What is not
 * given here is zero; palloc'd in the current memory context.
 */
void
idem_ledger_begin_record(IdemLedgerRecord *record, const char *options, Datum metadata,
						 bool metadata_null)
{
	memset(record, 0, sizeof(*record));
	record->role = GetUserNameFromId(GetUserId(), false);
	record->application_name = pstrdup(application_name);
	record->options = options;
	record->metadata = metadata;
	record->metadata_null = metadata_null;
}

/* In the order in which idem_ledger_insert() gives its values. */
static const char *const inserted_columns[] = {
	"target", "pipeline", "batch_id", "claimed_by",
	/* What another revision gets as well. */
	"role", "application_name", "turn", "options", "fingerprint", "fingerprint_version",
	"fingerprint_columns", "engine", "applied_at", "elapsed",
	"rows_staged", "rows_duplicate", "rows_inserted", "rows_updated",
	"rows_deleted", "rows_unchanged", "rows_stale", "rows_skipped", "metadata",
	"target_type", "operation", "revision", "xid"
};

/* Columns that it does not give: earlier_fingerprints. And the indexes that there are. */
#define LEFT_OUT_COLUMNS	1
#define LEDGER_INDEXES		2

/*
 * Options as jsonb, palloc'd in the current memory context. Those of the next batch
 * are most often the same.
 */
static Datum
options_to_jsonb(const char *options)
{
	static char *last_options = NULL;
	static Jsonb *last = NULL;

	if (last == NULL || strcmp(options, last_options) != 0)
	{
		Datum		value = DirectFunctionCall1(jsonb_in, CStringGetDatum(options));
		MemoryContext old_context = MemoryContextSwitchTo(TopMemoryContext);
		char	   *copy = pstrdup(options);
		Jsonb	   *jsonb = DatumGetJsonbPCopy(value);

		MemoryContextSwitchTo(old_context);
		if (last)
		{
			pfree(last_options);
			pfree(last);
		}
		last_options = copy;
		last = jsonb;
	}
	/* What runs before it is stored can be another merge. */
	return datumCopy(JsonbPGetDatum(last), false, -1);
}

/* What a row gets beside its key, by whatever statement: $5 and on. */
static void
record_arguments(IdemSpiArgs *args, const IdemLedgerRecord *record)
{
	bool		is_merge = record->is_merge;

	idem_spi_arg(args, NAMEOID,
				 DirectFunctionCall1(namein, CStringGetDatum(record->role)), false);
	idem_spi_arg_text(args, record->application_name);
	idem_spi_arg(args, INT4OID, Int32GetDatum(record->turn_class ? *record->turn_class : 0),
				 record->turn_class == NULL);
	idem_spi_arg(args, JSONBOID, options_to_jsonb(record->options), false);
	idem_spi_arg_text(args, record->fingerprint);
	idem_spi_arg(args, INT2OID, Int16GetDatum(IDEM_FINGERPRINT_VERSION), !is_merge);
	idem_spi_arg(args, TEXTARRAYOID, list_to_text_array(record->columns), !is_merge);
	idem_spi_arg_text(args, record->engine);
	idem_spi_arg(args, TIMESTAMPTZOID, TimestampTzGetDatum(record->applied_at), false);
	idem_spi_arg(args, INTERVALOID, IntervalPGetDatum(&record->elapsed), !is_merge);
	for (int i = 0; i < IDEM_LEDGER_COUNTS; i++)
		idem_spi_arg(args, INT8OID, Int64GetDatum(record->rows[i]), !is_merge);
	idem_spi_arg(args, JSONBOID, record->metadata, record->metadata_null);
}

/*
 * Put the values of inserted_columns into a slot of the ledger's, and the defaults
 * of whatever columns it has beside. Columns are found by name: their numbers
 * depend on how the ledger came to its release.
 */
static void
fill_slot(IdemResultRel *result, TupleTableSlot *slot, const IdemSpiArgs *args)
{
	TupleDesc	tupdesc = RelationGetDescr(result->rel);
	int			found = 0;

	Assert(args->count == lengthof(inserted_columns));
	ExecClearTuple(slot);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		Expr	   *expression;
		int			argument = 0;

		slot->tts_values[i] = (Datum) 0;
		slot->tts_isnull[i] = true;
		if (att->attisdropped || att->attgenerated != '\0')
			continue;
		while (argument < args->count &&
			   strcmp(inserted_columns[argument], NameStr(att->attname)) != 0)
			argument++;
		if (argument < args->count)
		{
			if (att->atttypid != args->types[argument])
				report_altered(psprintf("Column \"%s\" is of type %s instead of %s.",
										NameStr(att->attname), format_type_be(att->atttypid),
										format_type_be(args->types[argument])));
			slot->tts_values[i] = args->values[argument];
			slot->tts_isnull[i] = args->nulls[argument] == 'n';
			found++;
		}
		else if ((expression = idem_resultrel_default(result->rel, att->attnum)) != NULL)
			slot->tts_values[i] =
				ExecEvalExpr(ExecPrepareExpr(expression, result->estate),
							 GetPerTupleExprContext(result->estate), &slot->tts_isnull[i]);
	}
	if (found < args->count)
		report_altered(psprintf("Of %d columns, %d are there.", args->count, found));
	ExecStoreVirtualTuple(slot);
}

static bool
is_inserted_column(const char *name)
{
	for (int i = 0; i < lengthof(inserted_columns); i++)
		if (strcmp(inserted_columns[i], name) == 0)
			return true;
	return false;
}

static bool
is_not_builtin(Oid function, void *context)
{
	return function >= FirstNormalObjectId;
}

static bool
calls_others(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return check_functions_in_node(node, is_not_builtin, context) ||
		expression_tree_walker(node, calls_others, context);
}

/* Does an entry of the index take functions that do not come with PostgreSQL? */
static bool
index_calls_others(Oid indexrelid)
{
	Relation	index = index_open(indexrelid, AccessShareLock);
	bool		calls = calls_others((Node *) RelationGetIndexExpressions(index), NULL) ||
	calls_others((Node *) RelationGetIndexPredicate(index), NULL);

	index_close(index, NoLock);
	return calls;
}

/*
 * Is the ledger as the extension's script made it, so that nothing but what comes
 * with PostgreSQL runs when a row is inserted? Otherwise it may be the owner's own
 * triggers, defaults, checks or indexes.
 */
static bool
is_unaltered(Relation rel)
{
	TupleDesc	tupdesc = RelationGetDescr(rel);
	const TupleConstr *constr = tupdesc->constr;
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;

	if (rel->trigdesc != NULL ||
		RelationGetNumberOfAttributes(rel) != lengthof(inserted_columns) + LEFT_OUT_COLUMNS ||
		(constr != NULL && (constr->num_check > 0 || constr->has_generated_stored)) ||
		list_length(indexes) != LEDGER_INDEXES)
		return false;
	for (int i = 0; i < tupdesc->natts; i++)
		if (TupleDescAttr(tupdesc, i)->atthasdef &&
			!is_inserted_column(NameStr(TupleDescAttr(tupdesc, i)->attname)))
			return false;
	foreach(lc, indexes)
	{
		if (index_calls_others(lfirst_oid(lc)))
			return false;
	}
	return true;
}

/*
 * Insert a row, as a statement would, but for what it costs to start one, which
 * is much of what a small batch costs. Does not wait. False if somebody else may
 * have inserted the key, or if a trigger does not want the row; then the
 * transaction must not commit.
 */
static bool
insert_row(const IdemLedger *ledger, const IdemSpiArgs *args)
{
	Relation	rel = table_open(ledger->relid, RowExclusiveLock);
	bool		unaltered = is_unaltered(rel);
	TransitionCaptureState *inserted = NULL;
	IdemIdentity saved;
	IdemResultRel result;
	TupleTableSlot *slot;
	bool		done = true;

	if (!unaltered)
	{
		/* As it is for a statement. */
		idem_security_push(&saved, ledger->owner);
		CommandCounterIncrement();
		PushActiveSnapshot(GetTransactionSnapshot());
	}
	idem_resultrel_open(&result, rel, true, NULL, true);
	slot = table_slot_create(rel, NULL);
	AfterTriggerBeginQuery();
	if (rel->trigdesc)
	{
		inserted = MakeTransitionCaptureState(rel->trigdesc, ledger->relid, CMD_INSERT);
		ExecBSInsertTriggers(result.estate, result.relinfo);
	}
	fill_slot(&result, slot, args);
	if (rel->trigdesc && rel->trigdesc->trig_insert_before_row)
		done = ExecBRInsertTriggers(result.estate, result.relinfo, slot);
	if (done)
	{
		idem_resultrel_complete_row(&result, slot, CMD_INSERT);
		table_tuple_insert(rel, slot, result.estate->es_output_cid, 0, NULL);
		done = idem_resultrel_insert_index_entries(&result, slot, false, false);
	}
	/* Where there may be two rows of the key, nobody is to see them. */
	if (done)
	{
		if (rel->trigdesc)
		{
			ExecARInsertTriggers(result.estate, result.relinfo, slot, NIL, inserted);
			ExecASInsertTriggers(result.estate, result.relinfo, inserted);
		}
		AfterTriggerEndQuery(result.estate);
	}
	ExecDropSingleTupleTableSlot(slot);
	idem_resultrel_close(&result);
	if (!unaltered)
	{
		PopActiveSnapshot();
		idem_security_pop(&saved);
	}
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return done;
}

/*
 * Record a batch that had no row. False, and then the transaction must not commit,
 * if it may have one by now, from somebody who takes no batch lock.
 */
bool
idem_ledger_insert(const IdemLedger *ledger, const IdemBatchKey *key,
				   const IdemLedgerRecord *record)
{
	IdemSpiArgs args = {0};

	key_arguments(&args, key);
	record_arguments(&args, record);
	idem_spi_arg(&args, REGTYPEOID, ObjectIdGetDatum(key->target_type), false);
	idem_spi_arg_text(&args, record->is_merge ? "merge" : "claim");
	idem_spi_arg(&args, INT4OID, Int32GetDatum(1), false);
	idem_spi_arg(&args, XID8OID, FullTransactionIdGetDatum(GetTopFullTransactionId()), false);
	return insert_row(ledger, &args);
}

/*
 * Turn the row of a batch into that of its next revision, and keep what it was
 * in idem_audit. action is what idem_audit calls it. The same content once more
 * adds no fingerprint: it may come every few minutes for years. idem_audit gets no
 * earlier ones, which stay in the row.
 */
void
idem_ledger_revise(const IdemLedger *ledger, const IdemBatchKey *key, const char *action,
				   const IdemLedgerRecord *record)
{
	IdemSpiArgs args = {0};
	StringInfoData set;

	key_arguments(&args, key);
	idem_spi_arg_text(&args, record->role);
	idem_spi_arg_text(&args, action);
	(void) run_once(ledger,
					psprintf("INSERT INTO %s.idem_audit (role, action, entry)"
							 " SELECT $5::name, $6, to_jsonb(l) - 'earlier_fingerprints'"
							 " FROM %s.idem_ledger l" WHERE_KEY,
							 ledger->schema, ledger->schema), &args);
	args.count = 4;
	record_arguments(&args, record);
	initStringInfo(&set);
	for (int i = 4; i < args.count; i++)
		appendStringInfo(&set, strcmp(inserted_columns[i], "metadata") == 0 ?
						 " %s = COALESCE($%d, metadata)," : " %s = $%d,",
						 inserted_columns[i], i + 1);
	if (run_once(ledger,
				 psprintf("UPDATE %s.idem_ledger SET revision = revision + 1,"
						  " earlier_fingerprints = CASE WHEN options IS NULL THEN NULL"
						  " WHEN fingerprint = $9 THEN earlier_fingerprints"
						  " ELSE earlier_fingerprints || fingerprint END,"
						  "%s xid = pg_current_xact_id()" WHERE_KEY,
						  ledger->schema, set.data), &args) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("batch \"%s\" was forgotten while it was merged", key->batch_id),
				 errdetail("A trigger, a default or a view that the merge runs has called idem_forget()."),
				 errhint("Call idem_forget() before the merge or after it.")));
}

/*
 * Has a merge into the target committed since the snapshot of this transaction
 * was taken? Then a merge under that snapshot would take as unchanged what the
 * other one has changed. turn_class is that of merges which do not matter, for
 * they commute with ours; NULL if all matter. Only above READ COMMITTED. Rows
 * restored from another cluster can have an xid of the future; these are old.
 * A row that was forgotten or revised since is in idem_audit.
 */
bool
idem_ledger_overtaken(const IdemLedger *ledger, Oid target, const int32 *turn_class)
{
	IdemSpiArgs args = {0};
	IdemSpiArgs none = {0};
	IdemIdentity saved;
	char	   *snapshot;
	bool		overtaken;

	idem_security_push(&saved, ledger->owner);
	(void) idem_spi_execute("SELECT pg_current_snapshot()", InvalidOid, &none, false);
	snapshot = idem_spi_text(0, 1, CurrentMemoryContext);
	idem_spi_arg(&args, REGCLASSOID, ObjectIdGetDatum(target), false);
	idem_spi_arg_text(&args, snapshot);
	idem_spi_arg(&args, INT4OID, Int32GetDatum(turn_class ? *turn_class : 0), turn_class == NULL);
	overtaken = idem_spi_execute_latest(psprintf("SELECT FROM (SELECT xid, turn FROM %s.idem_ledger"
												 " WHERE target = $1 AND operation = 'merge'"
												 " AND xid::text::bigint >= pg_snapshot_xmin($2::pg_snapshot)::text::bigint"
												 " UNION ALL"
												 " SELECT (entry->>'xid')::xid8, (entry->>'turn')::integer"
												 " FROM %s.idem_audit WHERE entry->>'target' = $1::text"
												 " AND entry->>'operation' = 'merge'"
												 " AND (entry->>'xid')::bigint >= pg_snapshot_xmin($2::pg_snapshot)::text::bigint) AS merged"
												 " WHERE (turn IS NULL OR $3 IS NULL OR turn <> $3)"
												 " AND xid < pg_snapshot_xmax(pg_current_snapshot())"
												 " AND NOT pg_visible_in_snapshot(xid, $2::pg_snapshot)"
												 " AND xid IS DISTINCT FROM pg_current_xact_id_if_assigned()"
												 " LIMIT 1", ledger->schema, ledger->schema),
										ledger->relid, &args) > 0;
	idem_security_pop(&saved);
	return overtaken;
}

/* $1 to $5 of the statements of idem_forget(). */
static void
forget_arguments(IdemSpiArgs *args, const IdemBatchKey *key, const TimestampTz *applied_since)
{
	key_arguments(args, key);
	idem_spi_arg(args, TIMESTAMPTZOID,
				 applied_since ? TimestampTzGetDatum(*applied_since) : (Datum) 0,
				 applied_since == NULL);
}

#define WHERE_FORGOTTEN " WHERE target = $1 AND ($2 IS NULL OR pipeline = $2)" \
	" AND ($3 IS NULL OR batch_id = $3) AND claimed_by = $4" \
	" AND ($5 IS NULL OR applied_at >= $5)"

/*
 * The pipelines, in order, of the batches that idem_ledger_forget() would
 * remove; palloc'd in the current memory context.
 */
List *
idem_ledger_pipelines(const IdemLedger *ledger, const IdemBatchKey *key,
					  const TimestampTz *applied_since)
{
	IdemSpiArgs args = {0};
	List	   *pipelines = NIL;
	uint64		count;

	forget_arguments(&args, key, applied_since);
	count = run_once(ledger, psprintf("SELECT DISTINCT pipeline FROM %s.idem_ledger" WHERE_FORGOTTEN
									  " ORDER BY pipeline", ledger->schema), &args);
	for (uint64 i = 0; i < count; i++)
		pipelines = lappend(pipelines, idem_spi_text(i, 1, CurrentMemoryContext));
	return pipelines;
}

/*
 * Remove batches of one target, or of one role's claims without a target, from
 * the ledger, and keep what they were in idem_audit. NULL for pipeline, batch_id
 * or applied_since: any. Returns how many, and with dry_run only that.
 */
int64
idem_ledger_forget(const IdemLedger *ledger, const IdemBatchKey *key,
				   const TimestampTz *applied_since, const char *reason, bool dry_run)
{
	IdemSpiArgs args = {0};
	bool		isnull;

	forget_arguments(&args, key, applied_since);
	if (dry_run)
	{
		(void) run_once(ledger, psprintf("SELECT count(*) FROM %s.idem_ledger" WHERE_FORGOTTEN,
										 ledger->schema), &args);
		return DatumGetInt64(idem_spi_value(0, 1, CurrentMemoryContext, &isnull));
	}
	idem_spi_arg_text(&args, GetUserNameFromId(GetUserId(), false));
	idem_spi_arg_text(&args, reason);
	return run_once(ledger,
					psprintf("WITH gone AS (DELETE FROM %s.idem_ledger" WHERE_FORGOTTEN
							 " RETURNING *)"
							 " INSERT INTO %s.idem_audit (role, action, reason, entry)"
							 " SELECT $6::name, 'forget', $7, to_jsonb(gone) FROM gone",
							 ledger->schema, ledger->schema), &args);
}
