/*-------------------------------------------------------------------------
 *
 * native_index.c
 *	  Stored rows by the index of the key.
 *
 * Each staged row can be looked up by itself; or, where staged rows come in the
 * order of the index, the index is read beside them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/sortsupport.h"

#include "compat.h"
#include "native_index.h"

struct IdemIndex
{
	const IdemMergeInfo *info;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *stored;
	bool		started;		/* the first stored row has been asked for */
	bool		found;			/* there is a row in stored */
	ScanKeyData keys[INDEX_MAX_KEYS];
	SortSupportData order[INDEX_MAX_KEYS];
};

/* Take the columns of the key from a stored row. */
void
idem_index_get_key(const IdemMergeInfo *info, TupleTableSlot *stored, Datum *keys, bool *nulls)
{
	for (int i = 0; i < info->nkeys; i++)
		keys[i] = slot_getattr(stored, info->columns[info->keys[i].column].target_attnum,
							   &nulls[i]);
}

/*
 * Begin to read stored rows that the snapshot sees, either by idem_index_probe()
 * alone (probes), or by the others. The caller holds a lock on the target. Lives in
 * the current memory context, until idem_index_end().
 */
IdemIndex *
idem_index_begin(const IdemMergeInfo *info, Relation target, Snapshot snapshot, bool probes)
{
	IdemIndex  *index = palloc0(sizeof(IdemIndex));

	index->info = info;
	index->index = index_open(info->index, AccessShareLock);
	index->stored = table_slot_create(target, NULL);
	for (int i = 0; probes && i < info->nkeys; i++)
	{
		const IdemKeyColumn *key = &info->keys[i];

		ScanKeyEntryInitialize(&index->keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   key->collation, get_opcode(key->equal_operator), (Datum) 0);
	}
	index->scan = index_beginscan_compat(target, index->index, snapshot,
										 probes ? info->nkeys : 0);
	return index;
}

void
idem_index_end(IdemIndex *index)
{
	index_endscan(index->scan);
	ExecDropSingleTupleTableSlot(index->stored);
	index_close(index->index, NoLock);
}

/* The stored row with the key of a staged one; NULL if there is none. */
TupleTableSlot *
idem_index_probe(IdemIndex *index, const IdemRow *row)
{
	const IdemMergeInfo *info = index->info;

	for (int i = 0; i < info->nkeys; i++)
	{
		int			column = info->keys[i].column;

		index->keys[i].sk_argument = row->values[column];
		index->keys[i].sk_flags = row->nulls[column] ? SK_ISNULL | SK_SEARCHNULL : 0;
	}
	index_rescan(index->scan, index->keys, info->nkeys, NULL, 0);
	return index_getnext_slot(index->scan, ForwardScanDirection, index->stored) ?
		index->stored : NULL;
}

/* The stored row with the largest key; NULL if there is none. */
TupleTableSlot *
idem_index_last(IdemIndex *index)
{
	index_rescan(index->scan, NULL, 0, NULL, 0);
	return index_getnext_slot(index->scan, BackwardScanDirection, index->stored) ?
		index->stored : NULL;
}

/* Go to the first stored row. */
static void
start(IdemIndex *index)
{
	for (int i = 0; i < index->info->nkeys; i++)
	{
		const IdemKeyColumn *key = &index->info->keys[i];
		SortSupport order = &index->order[i];

		order->ssup_cxt = GetMemoryChunkContext(index);
		order->ssup_collation = key->collation;
		order->ssup_nulls_first = key->nulls_first;
		PrepareSortSupportFromOrderingOp(key->sort_operator, order);
	}
	index_rescan(index->scan, NULL, 0, NULL, 0);
	index->found = index_getnext_slot(index->scan, ForwardScanDirection, index->stored);
	index->started = true;
}

/* How the stored row at hand compares with a staged one. */
static int
compare(IdemIndex *index, const IdemRow *row)
{
	const IdemMergeInfo *info = index->info;
	Datum		keys[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	int			order = 0;

	idem_index_get_key(info, index->stored, keys, nulls);
	for (int i = 0; order == 0 && i < info->nkeys; i++)
	{
		int			column = info->keys[i].column;

		order = ApplySortComparator(keys[i], nulls[i], row->values[column], row->nulls[column],
									&index->order[i]);
	}
	return order;
}

/*
 * The same as idem_index_probe(), for staged rows in the order of the index: goes on
 * to the first stored row that is not below this one.
 */
TupleTableSlot *
idem_index_advance(IdemIndex *index, const IdemRow *row)
{
	if (!index->started)
		start(index);
	while (index->found)
	{
		int			order = compare(index, row);

		CHECK_FOR_INTERRUPTS();
		if (order >= 0)
			return order == 0 ? index->stored : NULL;
		index->found = index_getnext_slot(index->scan, ForwardScanDirection, index->stored);
	}
	return NULL;
}
