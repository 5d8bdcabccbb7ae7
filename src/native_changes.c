/*-------------------------------------------------------------------------
 *
 * native_changes.c
 *	  Staged rows in the order of the key, and what is stored for each.
 *
 * The key of a row and its reference in the store are sorted: in an array where
 * the key is a number and memory allows, else by a tuplesort. With each goes the
 * place of the stored row that it replaces, if there is one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/tuplesort.h"

#include "compat.h"
#include "native_changes.h"
#include "native_number.h"

/* A change of a row whose key is a number. */
typedef struct NumberedChange
{
	int64		key;
	IdemRowRef	ref;
	uint64		tid;			/* 0 for none */
} NumberedChange;

#define ST_SORT sort_numbered
#define ST_ELEMENT_TYPE NumberedChange
#define ST_COMPARE(a, b) ((a)->key < (b)->key ? -1 : (a)->key > (b)->key)
#define ST_CHECK_FOR_INTERRUPTS
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

#define INITIAL_NUMBERED 1024

struct IdemChanges
{
	const IdemMergeInfo *info;
	IdemStore  *store;
	TupleTableSlot *slot;
	IdemRow    *row;			/* the one at hand */

	NumberedChange *numbered;	/* NULL if keys are no numbers, or too many */
	Size		nnumbered;
	Size		max_numbered;
	Size		next_numbered;
	Size		memory;			/* two thirds for the array */
	int			number_length;
	Tuplesortstate *sort;
	IdemRowRef	refs[IDEM_LOOK_AHEAD];
	ItemPointerData tids[IDEM_LOOK_AHEAD];
	int			count;
	int			next;
};

/* A place in a table as one number, which is NULL for no place. */
static void
pack_tid(ItemPointer tid, Datum *value, bool *isnull)
{
	*isnull = tid == NULL;
	*value = tid == NULL ? (Datum) 0 :
		Int64GetDatum(((int64) ItemPointerGetBlockNumber(tid) << 16) |
					  ItemPointerGetOffsetNumber(tid));
}

static void
unpack_tid(Datum value, bool isnull, ItemPointer tid)
{
	int64		packed = DatumGetInt64(value);

	if (isnull)
		ItemPointerSetInvalid(tid);
	else
		ItemPointerSet(tid, (BlockNumber) (packed >> 16), (OffsetNumber) (packed & 0xFFFF));
}

/*
 * Begin a list of rows of the store, in so many bytes of memory. It lives in the
 * current memory context.
 */
IdemChanges *
idem_changes_begin(const IdemMergeInfo *info, IdemStore *store, Size memory)
{
	IdemChanges *changes = palloc0(sizeof(IdemChanges));
	TupleDesc	tupdesc = CreateTemplateTupleDesc(info->nkeys + 2);
	AttrNumber	attnums[INDEX_MAX_KEYS];
	Oid			operators[INDEX_MAX_KEYS];
	Oid			collations[INDEX_MAX_KEYS];
	bool		nulls_first[INDEX_MAX_KEYS];

	changes->info = info;
	changes->store = store;
	changes->memory = memory;
	for (int i = 0; i < info->nkeys; i++)
		TupleDescInitEntry(tupdesc, i + 1, NULL, info->columns[info->keys[i].column].type, -1, 0);
	TupleDescInitEntry(tupdesc, info->nkeys + 1, NULL, INT8OID, -1, 0);
	TupleDescInitEntry(tupdesc, info->nkeys + 2, NULL, INT8OID, -1, 0);
	tupdesc_finalize_compat(tupdesc);
	changes->slot = MakeSingleTupleTableSlot(tupdesc, &TTSOpsMinimalTuple);
	for (int i = 0; i < info->nkeys; i++)
	{
		attnums[i] = i + 1;
		operators[i] = info->keys[i].sort_operator;
		collations[i] = info->keys[i].collation;
		nulls_first[i] = info->keys[i].nulls_first;
	}
	changes->row = idem_store_make_row(store);
	changes->number_length = idem_number_length(info);
	if (changes->number_length > 0)
	{
		changes->max_numbered = INITIAL_NUMBERED;
		changes->numbered = palloc(sizeof(NumberedChange) * INITIAL_NUMBERED);
		memory /= 3;
	}
	changes->sort = tuplesort_begin_heap(tupdesc, info->nkeys, attnums, operators, collations,
										 nulls_first, Max(memory / 1024, 64), NULL,
										 TUPLESORT_NONE);
	return changes;
}

/* Hand a key with what belongs to it to the sort. */
static void
sort_key(IdemChanges *changes, const Datum *keys, const bool *nulls, IdemRowRef ref,
		 ItemPointer tid)
{
	int			nkeys = changes->info->nkeys;
	TupleTableSlot *slot = changes->slot;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, keys, sizeof(Datum) * nkeys);
	memcpy(slot->tts_isnull, nulls, sizeof(bool) * nkeys);
	slot->tts_values[nkeys] = Int64GetDatum((int64) ref);
	slot->tts_isnull[nkeys] = false;
	pack_tid(tid, &slot->tts_values[nkeys + 1], &slot->tts_isnull[nkeys + 1]);
	ExecStoreVirtualTuple(slot);
	tuplesort_puttupleslot(changes->sort, slot);
}

/* The array has grown too large: go on with the sort, which can spill. */
static void
give_up_array(IdemChanges *changes)
{
	for (Size i = 0; i < changes->nnumbered; i++)
	{
		const NumberedChange *change = &changes->numbered[i];
		Datum		key = idem_number_to_datum(change->key, changes->number_length);
		bool		isnull = false;
		ItemPointerData tid;

		CHECK_FOR_INTERRUPTS();
		unpack_tid(Int64GetDatum((int64) change->tid), change->tid == 0, &tid);
		sort_key(changes, &key, &isnull, change->ref, change->tid == 0 ? NULL : &tid);
	}
	pfree(changes->numbered);
	changes->numbered = NULL;
}

/*
 * Add a row of the store whose key is this number, in a batch where all keys are
 * numbers; tid is that of the stored row, or NULL.
 */
void
idem_changes_add_number(IdemChanges *changes, int64 number, IdemRowRef ref, ItemPointer tid)
{
	NumberedChange *change;
	Datum		packed;
	bool		isnull = false;

	if (changes->numbered && changes->nnumbered == changes->max_numbered &&
		changes->nnumbered * 2 * sizeof(NumberedChange) > changes->memory / 3 * 2)
		give_up_array(changes);
	if (changes->numbered == NULL)
	{
		Datum		key = idem_number_to_datum(number, changes->number_length);

		sort_key(changes, &key, &isnull, ref, tid);
		return;
	}
	if (changes->nnumbered == changes->max_numbered)
	{
		changes->max_numbered *= 2;
		changes->numbered = repalloc_huge(changes->numbered,
										  sizeof(NumberedChange) * changes->max_numbered);
	}
	change = &changes->numbered[changes->nnumbered++];
	change->key = number;
	change->ref = ref;
	pack_tid(tid, &packed, &isnull);
	change->tid = isnull ? 0 : (uint64) DatumGetInt64(packed);
}

/* Add a row; tid is that of the stored row, or NULL. */
void
idem_changes_add(IdemChanges *changes, const IdemRow *row, IdemRowRef ref, ItemPointer tid)
{
	const IdemMergeInfo *info = changes->info;
	Datum		keys[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	for (int i = 0; i < info->nkeys; i++)
	{
		keys[i] = row->values[info->keys[i].column];
		nulls[i] = row->nulls[info->keys[i].column];
	}
	if (changes->number_length > 0)
		idem_changes_add_number(changes, idem_number_from_datum(keys[0], changes->number_length),
								ref, tid);
	else
		sort_key(changes, keys, nulls, ref, tid);
}

/* After the last row has been added, and before the first one is taken. */
void
idem_changes_sort(IdemChanges *changes)
{
	if (changes->numbered)
		sort_numbered(changes->numbered, changes->nnumbered);
	else
		tuplesort_performsort(changes->sort);
}

/* Take some references from the sort. */
static void
look_ahead(IdemChanges *changes)
{
	TupleTableSlot *slot = changes->slot;
	int			nkeys = changes->info->nkeys;

	changes->next = 0;
	changes->count = 0;
	while (changes->count < IDEM_LOOK_AHEAD)
	{
		if (changes->numbered)
		{
			const NumberedChange *change = &changes->numbered[changes->next_numbered];

			if (changes->next_numbered++ >= changes->nnumbered)
				break;
			changes->refs[changes->count] = change->ref;
			unpack_tid(Int64GetDatum((int64) change->tid), change->tid == 0,
					   &changes->tids[changes->count]);
		}
		else
		{
			if (!tuplesort_gettupleslot(changes->sort, true, false, slot, NULL))
				break;
			slot_getallattrs(slot);
			changes->refs[changes->count] = (IdemRowRef) DatumGetInt64(slot->tts_values[nkeys]);
			unpack_tid(slot->tts_values[nkeys + 1], slot->tts_isnull[nkeys + 1],
					   &changes->tids[changes->count]);
		}
		changes->count++;
	}
}

/*
 * Take the next row, fetched and not deformed yet; it is good until the one after
 * it is taken. tid is invalid if there is no stored row. False after the last
 * one.
 */
bool
idem_changes_next(IdemChanges *changes, IdemRow **row, IdemRowRef *ref, ItemPointer tid)
{
	*row = changes->row;
	if (changes->next == changes->count)
		look_ahead(changes);
	if (changes->count == 0)
		return false;
	idem_store_prefetch(changes->store, changes->refs, changes->count, changes->next);
	*ref = changes->refs[changes->next];
	*tid = changes->tids[changes->next++];
	idem_store_fetch(changes->store, *ref, changes->row);
	return true;
}

void
idem_changes_end(IdemChanges *changes)
{
	if (changes->numbered)
		pfree(changes->numbered);
	ExecClearTuple(changes->slot);
	tuplesort_end(changes->sort);
}
