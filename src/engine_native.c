/*-------------------------------------------------------------------------
 *
 * engine_native.c
 *	  Classify and apply a batch by the table access method.
 *
 * The batch is read into a table of keys (native_batch.c). Stored rows are found
 * by one pass over the target, or for a small batch by index probes, or not
 * looked for where all staged keys are above the largest stored one. What is to
 * be written is sorted by key and handed to native_write.c; where stored rows are
 * looked up in the order of the key, each is written while its pages are at hand.
 *
 * All of it happens under one snapshot, as in a statement, and in a
 * subtransaction, which is undone where a statement would have to wait for
 * somebody, or to say what is wrong with the batch: then the sql engine takes
 * the batch. So whatever this engine does not do itself is done as by the other
 * one, and this one never waits for a row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/plancat.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "attempt.h"
#include "compat.h"
#include "engine_native.h"
#include "native_batch.h"
#include "native_changes.h"
#include "native_index.h"
#include "native_number.h"
#include "native_write.h"
#include "progress.h"
#include "relcheck.h"
#include "security.h"

/*
 * Each merge takes a subtransaction. More than 64 of them in one transaction
 * make it slow to look at its rows for everybody, so that a transaction of many
 * small merges leaves them to the other engine.
 */
#define MAX_SUBTRANSACTIONS 32
#define SMALL_BLOCKS		64

/*
 * What is done to find the stored rows costs as many times as much as the visit of
 * one row in a pass over the target, as measured.
 */
#define PAGE_COST		37.0	/* reading a page */
#define FAR_PAGE_COST	100.0	/* one that no pass reads, from outside of
								 * shared buffers */
#define PROBE_COST		25.0	/* descending the index */

/* How many pages a pass over the target keeps at hand, out of temp_buffers perhaps. */
#define MAX_PINS		32

/* As many stored rows for each staged one make a filter worth while. */
#define MIN_FILTERED	2

/* How a probe compares with the visit of one row in the order of the index. */
#define SORTED_PROBE_COST 6.0

/* A target where the engine gave up so often in a row is left alone for a while. */
#define MAX_FALLBACKS	3
#define PAUSE_MERGES	20
#define MAX_WATCHED		32

typedef struct WatchedTarget
{
	Oid			target;
	int			fallbacks;		/* in a row */
	int			pause;			/* merges to leave to the other engine */
} WatchedTarget;

typedef struct NativeRun
{
	IdemSource *source;
	const IdemMergeInfo *info;
	IdemCounts *result_counts;
	char	  **result_fingerprint;
	MemoryContext caller_context;
	bool		contention;

	Relation	target;
	Snapshot	snapshot;
	IdemComparer *comparer;
	IdemBatch  *batch;
	IdemStore  *store;
	IdemCounts *counts;
	MemoryContext row_context;
	IdemRow    *staged;
	Datum	   *stored;			/* by position in info->columns */
	bool	   *stored_nulls;
	AttrNumber	last_compared;	/* how far a stored row must be deformed */
	uint64		matched;		/* rows of the batch that a pass has found */
	bool		stale_error;
	bool		fills;			/* an empty target, which is ours alone */
	IdemChanges *changes;		/* what is to be written, if it has to be
								 * sorted first */
	IdemDefaults *defaults;		/* NULL if new rows get none */
	IdemWriter *writer;			/* NULL: there was nothing to write yet */
} NativeRun;

static WatchedTarget watched[MAX_WATCHED];

/* How often this engine has tried in the current transaction. */
static TransactionId last_transaction = InvalidTransactionId;
static int	merges_of_transaction = 0;

/* Says the operator class that values are equal only if their images are? */
static bool
is_image_equal(const IdemMergeInfo *info, const IdemKeyColumn *key)
{
	const IdemColumn *column = &info->columns[key->column];
	Oid			opfamily = get_opclass_family(key->opclass);
	Oid			function = get_opfamily_proc(opfamily, key->opcintype, key->opcintype,
											 BTEQUALIMAGE_PROC);
	Oid			base = getBaseType(column->type);

	/*
	 * Trailing blanks are part of the image, whatever the operator class
	 * says.
	 */
	if (base == BPCHAROID || type_is_rowtype(base) || OidIsValid(get_element_type(base)) ||
		type_is_range(base) || type_is_multirange(base))
		return false;
	return OidIsValid(function) &&
		DatumGetBool(OidFunctionCall1Coll(function, key->collation,
										  ObjectIdGetDatum(key->opcintype)));
}

/*
 * Why the engine cannot serve a merge, NULL if it can: nothing about the target
 * may need the executor itself. The caller holds locks on both relations.
 */
const char *
idem_engine_native_refusal(const IdemMergeInfo *info)
{
	const char *refusal = NULL;
	Relation	target = table_open(info->target, NoLock);
	TriggerDesc *triggers = target->trigdesc;
	List	   *indexes = RelationGetIndexList(target);
	ListCell   *lc;

	if (info->target_predicate)
		refusal = "target_predicate is given";
	else if (info->target_kind != RELKIND_RELATION)
		refusal = "the target is partitioned";
	else if (target->rd_rel->relhassubclass)
		refusal = "the target has child tables";
	else if (target->rd_tableam != GetHeapamTableAmRoutine())
		refusal = "the target is not a heap table";
	else if (idem_relcheck_is_hypertable(info->target))
		refusal = "the target is a hypertable";
	else if (idem_relcheck_is_distributed(info->target))
		refusal = "the target is distributed";
	else if (target->rd_rules)
		refusal = "the target has rules";
	else if (triggers && (triggers->trig_insert_before_row || triggers->trig_update_before_row))
		refusal = "the target has BEFORE ROW triggers";
	else if (check_enable_rls(info->target, InvalidOid, true) == RLS_ENABLED)
		refusal = "row-level security of the target applies";
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (refusal)
			;
		else if (index->rd_index->indisexclusion)
			refusal = "the target has an exclusion constraint";
		else if (!index->rd_index->indimmediate)
			refusal = "the target has a deferrable unique constraint";
		index_close(index, NoLock);
	}
	for (int i = 0; refusal == NULL && i < info->nkeys; i++)
		if (!is_image_equal(info, &info->keys[i]))
			refusal = "keys can be equal and differ in their image";

	/*
	 * A matched row is proposed by the other engine with what the caller may
	 * read of it, and with defaults for the rest.
	 */
	for (int i = 0; refusal == NULL && info->request->mode == IDEM_MODE_UPSERT &&
		 i < RelationGetDescr(target)->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(target), i);

		if (!att->attisdropped &&
			(!idem_security_may(info->target, att->attnum, ACL_SELECT) ||
			 (att->attgenerated == '\0' &&
			  !idem_security_may(info->target, att->attnum, ACL_INSERT))))
			refusal = "the caller may not read and write all columns of the target";
	}
	table_close(target, NoLock);
	return refusal;
}

/* The entry of a target among those that are watched; with add, made if need be. */
static WatchedTarget *
find_watched(Oid target, bool add)
{
	WatchedTarget *least = &watched[0];

	for (int i = 0; i < MAX_WATCHED; i++)
	{
		if (watched[i].target == target)
			return &watched[i];
		if (watched[i].fallbacks + watched[i].pause < least->fallbacks + least->pause)
			least = &watched[i];
	}
	if (!add)
		return NULL;
	memset(least, 0, sizeof(WatchedTarget));
	least->target = target;
	return least;
}

/*
 * Why the other engine will be faster although this one can serve the merge,
 * NULL if it will not.
 */
const char *
idem_engine_native_disadvantage(const IdemMergeInfo *info)
{
	WatchedTarget *target = find_watched(info->target, false);
	Relation	staging;
	bool		small = false;

	if (target && target->pause > 0)
		return "merges of this target met concurrent changes again and again";
	if (merges_of_transaction < MAX_SUBTRANSACTIONS ||
		!TransactionIdEquals(last_transaction, GetTopTransactionIdIfAny()))
		return NULL;
	staging = table_open(info->staging, NoLock);
	if (RELKIND_HAS_TABLE_AM(staging->rd_rel->relkind))
		small = RelationGetNumberOfBlocks(staging) <= SMALL_BLOCKS;
	table_close(staging, NoLock);
	return small ? "the batch is small, and this transaction has merged many" : NULL;
}

/* A merge that this engine could have served goes to the other one. */
void
idem_engine_native_note_skipped(const IdemMergeInfo *info)
{
	WatchedTarget *target = find_watched(info->target, false);

	if (target && target->pause > 0 && --target->pause == 0)
		target->fallbacks = 0;
}

/* Has the staged row at hand, whose hash is the same, the key of a stored one? */
static bool
has_key_of(const NativeRun *run, TupleTableSlot *slot)
{
	const IdemMergeInfo *info = run->info;

	/* Of numbers the hash says so, unless the stored key is NULL. */
	if (idem_batch_number_length(run->batch) > 0)
		return !slot_attisnull(slot, info->columns[info->keys[0].column].target_attnum);
	for (int i = 0; i < info->nkeys; i++)
	{
		int			column = info->keys[i].column;
		bool		isnull;
		Datum		value = slot_getattr(slot, info->columns[column].target_attnum, &isnull);

		if (!idem_rowhash_equal(run->comparer->images[column],
								run->staged->values[column], run->staged->nulls[column],
								value, isnull))
			return false;
	}
	return true;
}

/* The staged row at hand has a stored one that is the same. */
static void
count_same(NativeRun *run)
{
	if (run->info->request->mode == IDEM_MODE_INSERT)
		run->counts->skipped++;
	else
		run->counts->unchanged++;
}

/* Report how many rows are known not to be written. */
static void
note_unwritten(const NativeRun *run)
{
	const IdemCounts *counts = run->counts;

	pgstat_progress_update_param(PROGRESS_COPY_TUPLES_EXCLUDED,
								 counts->duplicate + counts->unchanged + counts->stale +
								 counts->skipped);
}

static void
begin_writing(NativeRun *run)
{
	run->writer = idem_writer_begin(run->info, run->target, run->defaults, run->snapshot,
									run->fills);
}

/* Insert a row that was fetched, or replace the one at tid. Notes contention. */
static void
write_row(NativeRun *run, IdemRow *row, IdemRowRef ref, ItemPointer tid)
{
	bool		done;

	if (run->writer == NULL)
		begin_writing(run);
	if (tid == NULL && ref != 0 && idem_store_is_whole(run->store, row))
		done = idem_writer_insert_whole(run->writer, &row->tuple);
	else
	{
		if (ref != 0)
			idem_store_deform(run->store, row);
		done = tid == NULL ? idem_writer_insert(run->writer, row->values, row->nulls) :
			idem_writer_update(run->writer, tid, row->values, row->nulls);
	}
	run->contention = !done;
}

static bool
refuses_stale(const NativeRun *run)
{
	return run->info->request->on_stale == IDEM_STALE_ERROR && run->info->nversions > 0;
}

/* There are two lists at a time where stale rows are refused. */
static IdemChanges *
begin_changes(const NativeRun *run)
{
	return idem_changes_begin(run->info, run->store,
							  idem_batch_spare_memory(run->batch) / (refuses_stale(run) ? 2 : 1));
}

/* The staged row at hand is to be written, at once or later. */
static void
change(NativeRun *run, IdemRowRef ref, ItemPointer tid)
{
	if (run->changes)
		idem_changes_add(run->changes, run->staged, ref, tid);
	else
		write_row(run, run->staged, ref, tid);
}

/* The staged row at hand has a stored one: decide what becomes of it. */
static void
classify_pair(NativeRun *run, IdemRowRef ref, TupleTableSlot *slot)
{
	const IdemMergeInfo *info = run->info;
	MemoryContext old_context;
	IdemRowFate fate;

	if (info->request->mode == IDEM_MODE_INSERT)
	{
		run->counts->skipped++;
		return;
	}
	slot_getsomeattrs(slot, run->last_compared);
	for (int i = 0; i < info->ncolumns; i++)
		if (info->columns[i].is_compared)
		{
			run->stored[i] = slot->tts_values[info->columns[i].target_attnum - 1];
			run->stored_nulls[i] = slot->tts_isnull[info->columns[i].target_attnum - 1];
		}
	MemoryContextReset(run->row_context);
	old_context = MemoryContextSwitchTo(run->row_context);
	fate = idem_rowcmp_stored(run->comparer, run->staged->values, run->staged->nulls,
							  run->stored, run->stored_nulls);
	MemoryContextSwitchTo(old_context);
	switch (fate)
	{
		case IDEM_ROW_UNCHANGED:
			run->counts->unchanged++;
			break;
		case IDEM_ROW_STALE:
			run->counts->stale++;
			run->stale_error |= refuses_stale(run);
			break;
		case IDEM_ROW_CHANGED:
			run->counts->updated++;
			change(run, ref, &slot->tts_tid);
			break;
	}
}

/* The staged row at hand has no stored one. */
static void
classify_unmatched(NativeRun *run, IdemRowRef ref)
{
	if (run->info->request->mode == IDEM_MODE_UPDATE)
		run->counts->skipped++;
	else
	{
		run->counts->inserted++;
		change(run, ref, NULL);
	}
}

/* Add to a list the rows of the batch that have not been matched; returns how many. */
static int64
list_unmatched(NativeRun *run, IdemChanges *list)
{
	bool		numbers = idem_batch_number_length(run->batch) > 0;
	const IdemBatchEntry *entry;
	IdemRowRef	refs[IDEM_LOOK_AHEAD];
	uint64		position = 0;
	int64		total = 0;
	int			count;

	do
	{
		CHECK_FOR_INTERRUPTS();
		for (count = 0; count < IDEM_LOOK_AHEAD;)
		{
			entry = idem_batch_next(run->batch, &position);
			if (entry == NULL)
				break;
			if (idem_batch_is_matched(entry))
				continue;
			refs[count] = idem_batch_ref(entry);
			if (numbers)
				idem_changes_add_number(list, idem_number_from_hash(entry->hash), refs[count],
										NULL);
			count++;
		}
		for (int i = 0; !numbers && i < count; i++)
		{
			idem_store_prefetch(run->store, refs, count, i);
			idem_store_load(run->store, refs[i], run->staged);
			idem_changes_add(list, run->staged, refs[i], NULL);
		}
		total += count;
	} while (entry);
	return total;
}

/* Decide about all rows that have not been matched. */
static void
classify_rest(NativeRun *run)
{
	/* What has been matched has been counted. */
	if (run->info->request->mode == IDEM_MODE_UPDATE)
		run->counts->skipped = idem_batch_size(run->batch) - run->matched;
	else
		run->counts->inserted = list_unmatched(run, run->changes);
}

/*
 * Find the stored rows by one pass over the target. What is looked at for one row
 * is not in a cache, hence one step for many rows before the next step.
 */
static void
scan_target(NativeRun *run)
{
	TableScanDesc scan = table_beginscan_compat(run->target, run->snapshot);
	TupleTableSlot *next = table_slot_create(run->target, NULL);
	TupleTableSlot *stored = table_slot_create(run->target, NULL);
	HeapTupleData tuples[IDEM_LOOK_AHEAD];
	Buffer		buffers[IDEM_LOOK_AHEAD];	/* one pin for each run of equal
											 * ones */
	uint64		hashes[IDEM_LOOK_AHEAD];
	IdemBatchEntry *entries[IDEM_LOOK_AHEAD];
	IdemRowRef	refs[IDEM_LOOK_AHEAD];
	int			candidates[IDEM_LOOK_AHEAD];	/* rows that may be staged */
	bool		more = true;

	while (more)
	{
		int			count;
		int			ncandidates = 0;
		int			npins = 0;

		CHECK_FOR_INTERRUPTS();
		for (count = 0; count < IDEM_LOOK_AHEAD && npins < MAX_PINS; count++)
		{
			Datum		keys[INDEX_MAX_KEYS];
			bool		nulls[INDEX_MAX_KEYS];

			more = table_scan_getnextslot(scan, ForwardScanDirection, next);
			if (!more)
				break;
			/* The scan goes on to use the tuple's header, not only the slot. */
			tuples[count] = *ExecFetchSlotHeapTuple(next, false, NULL);
			buffers[count] = ((BufferHeapTupleTableSlot *) next)->buffer;
			if (count == 0 || buffers[count] != buffers[count - 1])
			{
				IncrBufferRefCount(buffers[count]);
				npins++;
			}
			idem_index_get_key(run->info, next, keys, nulls);
			hashes[count] = idem_batch_hash(run->batch, keys, nulls);
			idem_batch_prefetch_filter(run->batch, hashes[count]);
		}
		for (int i = 0; i < count; i++)
			if (idem_batch_may_have(run->batch, hashes[i]))
			{
				idem_batch_prefetch(run->batch, hashes[i]);
				candidates[ncandidates++] = i;
			}
		for (int i = 0; i < ncandidates; i++)
		{
			entries[i] = idem_batch_lookup(run->batch, hashes[candidates[i]]);
			refs[i] = entries[i] ? idem_batch_ref(entries[i]) : 0;
		}
		for (int i = 0; i < ncandidates; i++)
		{
			int			row = candidates[i];

			idem_store_prefetch(run->store, refs, ncandidates, i);
			for (IdemBatchEntry *entry = entries[i]; entry;
				 entry = idem_batch_lookup_next(run->batch, entry))
			{
				IdemRowRef	ref = idem_batch_ref(entry);

				idem_store_fetch(run->store, ref, run->staged);
				if (idem_store_is_same(run->store, run->staged, &tuples[row]))
					count_same(run);
				else
				{
					idem_store_deform(run->store, run->staged);
					ExecStoreBufferHeapTuple(&tuples[row], stored, buffers[row]);
					if (!has_key_of(run, stored))
						continue;
					classify_pair(run, ref, stored);
				}
				idem_batch_set_matched(entry);
				run->matched++;
				break;
			}
		}
		for (int i = 0; i < count; i++)
			if (i == 0 || buffers[i] != buffers[i - 1])
				ReleaseBuffer(buffers[i]);
	}
	ExecDropSingleTupleTableSlot(stored);
	ExecDropSingleTupleTableSlot(next);
	table_endscan(scan);

	classify_rest(run);
}

/* Find the stored rows of a batch in memory by their index, in its order. */
static void
probe_target(NativeRun *run)
{
	IdemChanges *all = begin_changes(run);
	IdemIndex  *index;
	TupleTableSlot *stored;
	IdemRowRef	ref;
	ItemPointerData tid;
	int64		rows = 0;

	(void) list_unmatched(run, all);
	idem_changes_sort(all);
	index = idem_index_begin(run->info, run->target, run->snapshot, true);
	while (!run->contention && idem_changes_next(all, &run->staged, &ref, &tid))
	{
		CHECK_FOR_INTERRUPTS();
		idem_store_deform(run->store, run->staged);
		stored = idem_index_probe(index, run->staged);
		if (stored)
			classify_pair(run, ref, stored);
		else
			classify_unmatched(run, ref);
		if (IDEM_PROGRESS_IS_DUE(++rows))
			note_unwritten(run);
	}
	idem_index_end(index);
	idem_changes_end(all);
}

/*
 * Find the stored rows of a sorted batch by their index: one after the other, or
 * for a batch that is small beside the target, each by itself.
 */
static void
merge_sorted(NativeRun *run, bool probes)
{
	IdemIndex  *index = idem_index_begin(run->info, run->target, run->snapshot, probes);
	TupleTableSlot *stored;
	IdemRow    *row;
	int64		rows = 0;

	while (!run->contention && (row = idem_batch_next_sorted(run->batch)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		run->staged = row;
		stored = probes ? idem_index_probe(index, row) : idem_index_advance(index, row);
		if (stored)
			classify_pair(run, 0, stored);
		else
			classify_unmatched(run, 0);
		if (IDEM_PROGRESS_IS_DUE(++rows))
			note_unwritten(run);
	}
	idem_index_end(index);
}

/*
 * Tell the batch the largest stored key: where all staged keys are above it,
 * there is nothing to find.
 */
static void
find_largest_key(NativeRun *run)
{
	IdemIndex  *index = idem_index_begin(run->info, run->target, run->snapshot, false);
	TupleTableSlot *stored = idem_index_last(index);
	Datum		keys[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	if (stored)
	{
		idem_index_get_key(run->info, stored, keys, nulls);
		idem_batch_set_bound(run->batch, keys, nulls);
	}
	idem_index_end(index);
}

/*
 * Are the rows of a batch in memory found sooner by the index than by a pass over
 * the target, of so many pages and rows?
 */
static bool
probes_are_cheaper(const NativeRun *run, BlockNumber pages, double tuples)
{
	double		probes = idem_batch_size(run->batch);

	return probes * PROBE_COST +
		Min(probes, pages) * (pages > NBuffers ? FAR_PAGE_COST : PAGE_COST) <
		tuples + pages * PAGE_COST;
}

/*
 * Find the stored rows, and what is to be written; where that comes in the order
 * of the key, write it.
 */
static void
classify(NativeRun *run)
{
	uint64		staged = idem_batch_size(run->batch);
	BlockNumber pages;
	double		tuples;
	double		all_visible;

	estimate_rel_size(run->target, NULL, &pages, &tuples, &all_visible);
	if (idem_batch_is_sorted(run->batch))
		merge_sorted(run, staged * SORTED_PROBE_COST < tuples);
	else if (run->fills)
		run->counts->inserted = staged;
	else if (idem_batch_is_above_bound(run->batch))
	{
		run->changes = begin_changes(run);
		classify_rest(run);
	}
	else if (!probes_are_cheaper(run, pages, tuples))
	{
		run->changes = begin_changes(run);
		if (staged * MIN_FILTERED < tuples)
			idem_batch_make_filter(run->batch);
		scan_target(run);
	}
	else
	{
		/* A stale row is to be reported rather than what writing might find. */
		if (refuses_stale(run))
			run->changes = begin_changes(run);
		probe_target(run);
	}
}

/* Write what has changed, in the order of the key. */
static void
write_changed(NativeRun *run)
{
	IdemRow    *row;
	IdemRowRef	ref;
	ItemPointerData tid;

	idem_changes_sort(run->changes);
	while (!run->contention && idem_changes_next(run->changes, &row, &ref, &tid))
		write_row(run, row, ref, ItemPointerIsValid(&tid) ? &tid : NULL);
}

/*
 * Write all rows of a batch in memory, into a target that is empty, in the order
 * in which they are read fastest: the indexes come later.
 */
static void
write_all(NativeRun *run)
{
	IdemRowRef *refs = idem_batch_refs(run->batch);
	uint64		total = idem_batch_size(run->batch);

	for (uint64 start = 0; start < total; start += IDEM_LOOK_AHEAD)
	{
		int			count = Min(IDEM_LOOK_AHEAD, total - start);

		for (int i = 0; i < count && !run->contention; i++)
		{
			idem_store_prefetch(run->store, refs + start, count, i);
			idem_store_fetch(run->store, refs[start + i], run->staged);
			write_row(run, run->staged, refs[start + i], NULL);
		}
	}
	pfree(refs);
}

/* Write what has not been written yet. */
static void
write_rest(NativeRun *run)
{
	if (run->changes)
		write_changed(run);
	else if (run->fills && !idem_batch_is_sorted(run->batch))
		write_all(run);
	/* Statement triggers fire for nothing, too. */
	if (run->writer == NULL && run->target->trigdesc)
		begin_writing(run);
	if (run->writer == NULL)
		return;
	run->contention = run->contention || !idem_writer_flush(run->writer);
	/* What comes now, indexes and triggers, needs memory of its own. */
	if (run->changes)
		idem_changes_end(run->changes);
	run->changes = NULL;
	if (!idem_batch_is_sorted(run->batch))
		idem_batch_forget_rows(run->batch);
	if (!run->contention)
		idem_writer_finish(run->writer);
}

/* Prepare what the passes over the batch share. */
static void
prepare(NativeRun *run)
{
	const IdemMergeInfo *info = run->info;

	for (int i = 0; i < info->nkeys; i++)
	{
		const IdemColumn *column = &info->columns[info->keys[i].column];

		run->last_compared = Max(run->last_compared, column->target_attnum);
	}
	for (int i = 0; i < info->ncolumns; i++)
		if (info->columns[i].is_compared)
			run->last_compared = Max(run->last_compared, info->columns[i].target_attnum);
	run->row_context = AllocSetContextCreate(CurrentMemoryContext, "idem_merge row",
											 ALLOCSET_DEFAULT_SIZES);
	run->stored = palloc0(sizeof(Datum) * Max(info->ncolumns, 1));
	run->stored_nulls = palloc0(sizeof(bool) * Max(info->ncolumns, 1));
	run->staged = idem_store_make_row(run->store);
	run->counts = idem_batch_counts(run->batch);
}

/* Report how much of staging there is to read. */
static void
begin_progress(const NativeRun *run)
{
	idem_progress_begin(run->info->target, IDEM_PHASE_APPLYING);
	pgstat_progress_update_param(PROGRESS_COPY_BYTES_TOTAL, idem_store_bytes(run->store));
}

/* All of staging has been read. */
static void
note_read(const NativeRun *run)
{
	static const int params[] = {PROGRESS_COPY_BYTES_PROCESSED, IDEM_PROGRESS_ROWS_READ,
	IDEM_PROGRESS_ROWS_TOTAL};
	int64		values[] = {idem_store_bytes(run->store), run->counts->staged,
	run->counts->staged};

	pgstat_progress_update_multi_param(lengthof(params), params, values);
}

/* Classify and apply, in the subtransaction. False to have it undone. */
static bool
attempt(void *arg)
{
	NativeRun  *run = arg;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "idem_merge native",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	bool		done = false;

	run->target = table_open(run->info->target, NoLock);
	run->comparer = idem_rowcmp_begin(run->info);
	run->fills = run->info->request->exclusive &&
		run->info->request->mode != IDEM_MODE_UPDATE &&
		idem_writer_may_fill(run->info, run->target);
	run->batch = idem_batch_begin(run->info, run->source, run->comparer);
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	run->snapshot = GetActiveSnapshot();
	run->store = idem_batch_store(run->batch);
	/* What is wrong with a default is an error at once, as for INSERT. */
	if (run->info->uses_defaults)
		run->defaults = idem_writer_compile_defaults(run->info, run->target);
	prepare(run);
	begin_progress(run);
	find_largest_key(run);
	idem_batch_read(run->batch);
	if (idem_batch_refusal(run->batch) == NULL)
	{
		note_read(run);
		classify(run);
		note_unwritten(run);
		/* A sorted batch can be refused by what comes last. */
		if (idem_batch_refusal(run->batch) == NULL && !run->stale_error && !run->contention)
		{
			write_rest(run);
			done = !run->contention;
		}
	}
	if (done)
	{
		idem_rowfuncs_check(run->counts);
		*run->result_counts = *run->counts;
		*run->result_fingerprint = MemoryContextStrdup(run->caller_context,
													   idem_batch_fingerprint(run->batch));
	}
	if (run->writer)
		idem_writer_free(run->writer);
	if (run->changes)
		idem_changes_end(run->changes);
	idem_batch_free(run->batch);
	table_close(run->target, NoLock);
	PopActiveSnapshot();
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return done;
}

/*
 * Apply the batch. False if it was not applied, and nothing has changed: the
 * other engine must take it. Results are palloc'd in the current memory
 * context.
 */
bool
idem_engine_native_apply(IdemSource *source, const IdemMergeInfo *info,
						 IdemCounts *counts, char **fingerprint)
{
	NativeRun	run = {source, info, counts, fingerprint};
	bool		done;

	run.caller_context = CurrentMemoryContext;
	if (!TransactionIdEquals(last_transaction, GetTopTransactionId()))
		merges_of_transaction = 0;
	last_transaction = GetTopTransactionId();
	merges_of_transaction++;
	/* The tuplestore outlives the subtransaction. */
	idem_source_materialize(source);
	done = idem_attempt_run(attempt, &run);
	if (done || run.contention)
	{
		WatchedTarget *target = find_watched(info->target, run.contention);

		if (target && run.contention && ++target->fallbacks >= MAX_FALLBACKS)
			target->pause = PAUSE_MERGES;
		else if (target && !run.contention)
			target->fallbacks = 0;
	}
	return done;
}
