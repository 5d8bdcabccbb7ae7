/*-------------------------------------------------------------------------
 *
 * native_write.c
 *	  Rows into the target through the table access method.
 *
 * What the executor does for INSERT ... ON CONFLICT DO UPDATE is done here by
 * the executor's own functions: defaults, generated columns, constraints, index
 * entries, AFTER triggers. But it does not wait for a row or for an index entry
 * of somebody else: contention is what the functions return, and the caller
 * undoes the attempt.
 *
 * New rows are buffered. Where it can be seen in which order rows are written,
 * that is the order of the key, as in the other engine, and with a second unique
 * index or one of expressions one by one, so that the first fault is the one that
 * is reported; elsewhere new rows may be written later than updates of greater
 * keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/sysattr.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_index.h"
#include "commands/progress.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "utils/backend_progress.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "native_write.h"
#include "resultrel.h"

/* As COPY does it. */
#define MAX_BUFFERED_ROWS	1000
#define MAX_BUFFERED_BYTES	65535

/* What new rows have in columns that staging does not give. */
struct IdemDefaults
{
	int			count;
	AttrNumber *attnums;
	ExprState **states;
};

struct IdemWriter
{
	const IdemMergeInfo *info;
	Relation	target;
	Snapshot	snapshot;
	CommandId	cid;
	IdemResultRel result;
	bool		inserts;		/* as far as statement triggers know */
	bool		updates;
	TransitionCaptureState *inserted_rows;
	TransitionCaptureState *updated_rows;

	const IdemDefaults *defaults;	/* NULL if no new row gets any */

	LockTupleMode lock_mode;	/* of rows that are updated */
	TupleTableSlot *old_slot;
	TupleTableSlot *new_slot;
	BulkInsertState bulk;
	bool		indexes_later;	/* they are built when all rows are there */
	bool		in_order;		/* somebody can tell in which order we write */
	int			max_buffered;
	int			nbuffered;
	int			nslots;			/* made so far */
	Size		buffered_bytes;
	TupleTableSlot *slots[MAX_BUFFERED_ROWS];

	int64		written;		/* for pg_stat_progress_copy */
};

/*
 * Compile the defaults of columns that staging does not give. Lives in the
 * current memory context.
 */
IdemDefaults *
idem_writer_compile_defaults(const IdemMergeInfo *info, Relation target)
{
	TupleDesc	tupdesc = RelationGetDescr(target);
	IdemDefaults *defaults = palloc0(sizeof(IdemDefaults));

	defaults->attnums = palloc(sizeof(AttrNumber) * tupdesc->natts);
	defaults->states = palloc(sizeof(ExprState *) * tupdesc->natts);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		Expr	   *expression;

		if (att->attisdropped || att->attgenerated != '\0' ||
			idem_relinfo_find_column(info, NameStr(att->attname)) >= 0)
			continue;
		expression = idem_resultrel_default(target, att->attnum);
		if (expression == NULL)
			continue;			/* a plain NULL */
		defaults->attnums[defaults->count] = att->attnum;
		defaults->states[defaults->count++] = ExecInitExpr(expression_planner(expression), NULL);
	}
	return defaults;
}

/*
 * Is there a unique index beside that of the key, or, if it is asked for, one
 * with an expression that can fail?
 */
static bool
has_other_index(Oid key_index, Relation target, bool of_expressions)
{
	ListCell   *lc;
	bool		found = false;

	foreach(lc, RelationGetIndexList(target))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		found |= index->rd_index->indisunique && lfirst_oid(lc) != key_index;
		found |= of_expressions &&
			(!heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL) ||
			 !heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL));
		index_close(index, NoLock);
	}
	return found;
}

/* Has this session one of the indexes open already, as an open cursor does? */
static bool
has_index_in_use(Relation target)
{
	ListCell   *lc;
	bool		found = false;

	foreach(lc, RelationGetIndexList(target))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		found |= index->rd_refcnt > 1;
		index_close(index, NoLock);
	}
	return found;
}

/*
 * Can somebody tell in which order rows are written? A second unique index can,
 * since one row may take what another one gives up, and triggers can.
 */
static bool
shows_order(const IdemMergeInfo *info, Relation target)
{
	const TriggerDesc *triggers = target->trigdesc;

	return has_other_index(info->index, target, false) ||
		(triggers && (triggers->trig_insert_after_row || triggers->trig_update_after_row));
}

/*
 * Can all rows be written first, in any order, and the indexes be built
 * afterwards? Only into an empty target, of which the caller holds
 * AccessExclusiveLock.
 */
bool
idem_writer_may_fill(const IdemMergeInfo *info, Relation target)
{
	return RelationGetNumberOfBlocks(target) == 0 && !shows_order(info, target) &&
		!has_index_in_use(target);
}

/*
 * Begin to write. The caller holds RowExclusiveLock, and the snapshot is the
 * active one. defaults can be NULL if new rows get none. Lives in the current
 * memory context; BEFORE STATEMENT triggers fire. With indexes_later, for which
 * idem_writer_may_fill() must be true, its indexes are built in
 * idem_writer_finish().
 */
IdemWriter *
idem_writer_begin(const IdemMergeInfo *info, Relation target, const IdemDefaults *defaults,
				  Snapshot snapshot, bool indexes_later)
{
	IdemWriter *writer = palloc0(sizeof(IdemWriter));
	Bitmapset  *updated = NULL;
	IdemMode	mode = info->request->mode;
	bool		one_by_one;

	writer->info = info;
	writer->target = target;
	writer->defaults = defaults;
	writer->snapshot = snapshot;
	writer->inserts = mode != IDEM_MODE_UPDATE;
	writer->updates = mode != IDEM_MODE_INSERT && info->sets_anything;
	for (int i = 0; i < info->ncolumns; i++)
		if (info->columns[i].is_set && writer->updates)
			updated = bms_add_member(updated, info->columns[i].target_attnum -
									 FirstLowInvalidHeapAttributeNumber);

	idem_resultrel_open(&writer->result, target, writer->inserts, updated, !indexes_later);
	writer->lock_mode = ExecUpdateLockMode(writer->result.estate, writer->result.relinfo);
	writer->indexes_later = indexes_later;
	writer->cid = writer->result.estate->es_output_cid;
	one_by_one = has_other_index(info->index, target, true);
	writer->in_order = one_by_one || shows_order(info, target);
	writer->max_buffered = one_by_one ? 1 : MAX_BUFFERED_ROWS;
	writer->bulk = GetBulkInsertState();
	writer->old_slot = table_slot_create(target, NULL);
	writer->new_slot = table_slot_create(target, NULL);

	AfterTriggerBeginQuery();
	if (target->trigdesc)
	{
		if (writer->inserts)
			writer->inserted_rows = MakeTransitionCaptureState(target->trigdesc,
															   RelationGetRelid(target),
															   CMD_INSERT);
		if (writer->updates)
			writer->updated_rows = MakeTransitionCaptureState(target->trigdesc,
															  RelationGetRelid(target),
															  CMD_UPDATE);
		if (writer->inserts)
			ExecBSInsertTriggers(writer->result.estate, writer->result.relinfo);
		if (writer->updates)
			ExecBSUpdateTriggers(writer->result.estate, writer->result.relinfo);
	}
	return writer;
}

/* Set the columns that staging gives: all, or those that a match sets. */
static void
set_staged(const IdemWriter *writer, TupleTableSlot *slot, bool all,
		   const Datum *values, const bool *nulls)
{
	const IdemMergeInfo *info = writer->info;

	for (int i = 0; i < info->ncolumns; i++)
		if (all || info->columns[i].is_set)
		{
			slot->tts_values[info->columns[i].target_attnum - 1] = values[i];
			slot->tts_isnull[info->columns[i].target_attnum - 1] = nulls[i];
		}
}

static void
note_written(IdemWriter *writer, int rows)
{
	writer->written += rows;
	pgstat_progress_update_param(PROGRESS_COPY_TUPLES_PROCESSED, writer->written);
}

/* Write the rows that wait. False on contention. */
bool
idem_writer_flush(IdemWriter *writer)
{
	bool		done = true;
	MemoryContext old_context;

	if (writer->nbuffered == 0)
		return true;
	/* It does not free what it allocates. */
	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->result.estate));
	table_multi_insert(writer->target, writer->slots, writer->nbuffered, writer->cid,
					   writer->indexes_later ? TABLE_INSERT_SKIP_FSM : 0, writer->bulk);
	MemoryContextSwitchTo(old_context);
	for (int i = 0; i < writer->nbuffered; i++)
	{
		CHECK_FOR_INTERRUPTS();
		ResetPerTupleExprContext(writer->result.estate);
		done = done && idem_resultrel_insert_index_entries(&writer->result, writer->slots[i],
														   false, false);
		if (done && writer->target->trigdesc)
			ExecARInsertTriggers(writer->result.estate, writer->result.relinfo, writer->slots[i], NIL,
								 writer->inserted_rows);
		ExecClearTuple(writer->slots[i]);
	}
	note_written(writer, writer->nbuffered);
	writer->nbuffered = 0;
	writer->buffered_bytes = 0;
	return done;
}

/* The slot for the next row to be buffered. */
static TupleTableSlot *
next_slot(IdemWriter *writer)
{
	CHECK_FOR_INTERRUPTS();
	if (writer->nbuffered == writer->nslots)
		writer->slots[writer->nslots++] = table_slot_create(writer->target, NULL);
	ExecClearTuple(writer->slots[writer->nbuffered]);
	ResetPerTupleExprContext(writer->result.estate);
	return writer->slots[writer->nbuffered];
}

/* Buffer the row that is in the slot, and depends on nothing else any more. */
static bool
buffer_row(IdemWriter *writer, TupleTableSlot *slot)
{
	writer->nbuffered++;
	writer->buffered_bytes += ((HeapTuple) ExecFetchSlotHeapTuple(slot, false, NULL))->t_len;
	if (writer->nbuffered >= writer->max_buffered ||
		writer->buffered_bytes >= MAX_BUFFERED_BYTES)
		return idem_writer_flush(writer);
	return true;
}

/*
 * Insert a row that has all columns of the target, as it has them, but for what
 * the header says of transactions. False on contention; then nothing more may be
 * written.
 */
bool
idem_writer_insert_whole(IdemWriter *writer, HeapTuple row)
{
	TupleTableSlot *slot = next_slot(writer);

	ExecForceStoreHeapTuple(row, slot, false);
	idem_resultrel_complete_row(&writer->result, slot, CMD_INSERT);
	return buffer_row(writer, slot);
}

/*
 * Insert a row, given its staged columns. False on contention; then nothing
 * more may be written.
 */
bool
idem_writer_insert(IdemWriter *writer, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = next_slot(writer);
	MemoryContext old_context;
	int			natts = RelationGetDescr(writer->target)->natts;

	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->result.estate));
	memset(slot->tts_values, 0, sizeof(Datum) * natts);
	memset(slot->tts_isnull, true, sizeof(bool) * natts);
	set_staged(writer, slot, true, values, nulls);
	for (int i = 0; writer->defaults && i < writer->defaults->count; i++)
	{
		int			attribute = writer->defaults->attnums[i] - 1;

		slot->tts_values[attribute] = ExecEvalExpr(writer->defaults->states[i],
												   GetPerTupleExprContext(writer->result.estate),
												   &slot->tts_isnull[attribute]);
	}
	ExecStoreVirtualTuple(slot);
	idem_resultrel_complete_row(&writer->result, slot, CMD_INSERT);

	/*
	 * The values point to what will be something else by the time of the
	 * flush.
	 */
	ExecMaterializeSlot(slot);
	MemoryContextSwitchTo(old_context);
	return buffer_row(writer, slot);
}

/*
 * Update a row that the snapshot sees, given its staged columns. False on
 * contention; then nothing more may be written.
 */
bool
idem_writer_update(IdemWriter *writer, ItemPointer tid, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = writer->new_slot;
	int			natts = RelationGetDescr(writer->target)->natts;
	MemoryContext old_context;
	TM_FailureData failure;
	TM_Result	result;
	IdemUpdateIndexes indexes;
	HeapTupleHeader old;

	CHECK_FOR_INTERRUPTS();
	if (writer->in_order && !idem_writer_flush(writer))
		return false;
	if (!table_tuple_fetch_row_version(writer->target, tid, SnapshotAny, writer->old_slot))
		return false;
	slot_getallattrs(writer->old_slot);
	old = ExecFetchSlotHeapTuple(writer->old_slot, false, NULL)->t_data;
	ExecClearTuple(slot);
	ResetPerTupleExprContext(writer->result.estate);
	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->result.estate));
	memcpy(slot->tts_values, writer->old_slot->tts_values, sizeof(Datum) * natts);
	memcpy(slot->tts_isnull, writer->old_slot->tts_isnull, sizeof(bool) * natts);
	set_staged(writer, slot, false, values, nulls);
	ExecStoreVirtualTuple(slot);
	idem_resultrel_complete_row(&writer->result, slot, CMD_UPDATE);
	/* The old values may go before the new row is stored. */
	ExecMaterializeSlot(slot);
	MemoryContextSwitchTo(old_context);

	/*
	 * An update may only be asked for by who is ready to wait. Where it looks
	 * as if somebody else has the row, if only to keep its key, as a foreign
	 * key does, it is locked first, without waiting. Who takes it between
	 * this look and the update is waited for; that does no harm, since rows
	 * are updated in the order of their keys by everybody who merges.
	 */
	if ((old->t_infomask & HEAP_XMAX_INVALID) == 0 &&
		table_tuple_lock(writer->target, tid, writer->snapshot, writer->old_slot, writer->cid,
						 writer->lock_mode, LockWaitSkip, 0, &failure) != TM_Ok)
		return false;
	result = table_tuple_update_compat(writer->target, tid, slot, writer->cid, writer->snapshot,
									   &failure, &indexes);
	if (result != TM_Ok)
		return false;
	if (indexes != IDEM_UPDATE_NO_INDEXES &&
		!idem_resultrel_insert_index_entries(&writer->result, slot, true,
											 indexes == IDEM_UPDATE_SUMMARIZING_INDEXES))
		return false;
	if (writer->target->trigdesc)
		ExecARUpdateTriggers(writer->result.estate, writer->result.relinfo, NULL, NULL, tid, NULL,
							 slot, NIL, writer->updated_rows, false);
	note_written(writer, 1);
	return true;
}

/* After the last row has been flushed: what is left for the end of a statement. */
void
idem_writer_finish(IdemWriter *writer)
{
	if (writer->indexes_later)
	{
		/* Before the triggers: foreign keys may look the rows up. */
		CommandCounterIncrement();
		reindex_relation_compat(RelationGetRelid(writer->target));
	}
	if (writer->target->trigdesc)
	{
		if (writer->updates)
			ExecASUpdateTriggers(writer->result.estate, writer->result.relinfo, writer->updated_rows);
		if (writer->inserts)
			ExecASInsertTriggers(writer->result.estate, writer->result.relinfo, writer->inserted_rows);
	}
	AfterTriggerEndQuery(writer->result.estate);
}

/*
 * Let go of buffers and indexes. If there was contention, the trigger events
 * that wait are dropped when the subtransaction ends.
 */
void
idem_writer_free(IdemWriter *writer)
{
	/* Backwards: what was pinned last is found first. */
	for (int i = writer->nslots - 1; i >= 0; i--)
		ExecDropSingleTupleTableSlot(writer->slots[i]);
	ExecDropSingleTupleTableSlot(writer->old_slot);
	ExecDropSingleTupleTableSlot(writer->new_slot);
	FreeBulkInsertState(writer->bulk);
	idem_resultrel_close(&writer->result);
}
