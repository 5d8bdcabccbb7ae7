/*-------------------------------------------------------------------------
 *
 * native_store.c
 *	  The staged rows themselves: how to come by one again.
 *
 * A row stays where it is, if staging is a table that fits the buffers and can
 * be asked again under the same snapshot; otherwise it is copied. A reference of
 * eight bytes leads to it in either case.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "commands/progress.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/plancat.h"
#include "parser/parse_coerce.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "utils/backend_progress.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "native_store.h"
#include "relcheck.h"

#define CHUNK_BITS		20
#define CHUNK_SIZE		((Size) 1 << CHUNK_BITS)

/* How many rows before it is loaded what leads to a row, and the row, should come. */
#define LEAD_DISTANCE	64
#define ROW_DISTANCE	32

struct IdemStore
{
	MemoryContext context;
	const IdemMergeInfo *info;
	EState	   *estate;
	ExprState **casts;			/* NULL where there is none */

	Relation	staging;		/* if it is scanned without the executor */
	bool		by_tid;			/* rows are loaded from there again */
	bool		whole;			/* a row is kept just as it will be stored */
	Buffer	   *buffers;		/* where its blocks were seen last */
	Size		buffers_size;

	TupleDesc	copied;			/* of rows that are copied */
	char	  **chunks;
	uint64		nchunks;
	uint64		max_chunks;
	Size		chunk_used;		/* of the last one */
	Size		copied_size;
};

/*
 * A staged value as INSERT would convert it: the expression is over a case test
 * value, and NULL if there is nothing to convert.
 */
static Expr *
cast_expression(const IdemColumn *column)
{
	CaseTestExpr *staged;
	Node	   *expression;

	if (column->staged_type == column->type &&
		(column->typmod < 0 || column->typmod == column->staged_typmod))
		return NULL;
	staged = makeNode(CaseTestExpr);
	staged->typeId = column->staged_type;
	staged->typeMod = column->staged_typmod;
	staged->collation = column->staged_collation;
	expression = coerce_to_target_type(NULL, (Node *) staged, column->staged_type,
									   column->type, column->typmod,
									   COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST, -1);
	if (expression == NULL)
		elog(ERROR, "column \"%s\" cannot be converted", column->name);
	/* Some types differ in name only. */
	return expression == (Node *) staged ? NULL : (Expr *) expression;
}

/*
 * Can the relation be scanned without the executor? Not what has parts, is
 * computed as it is read, may be seen in part only, or not at all.
 */
static bool
may_scan(Relation staging)
{
	TupleDesc	tupdesc = RelationGetDescr(staging);
	char		kind = staging->rd_rel->relkind;

	if ((kind != RELKIND_RELATION && kind != RELKIND_MATVIEW) ||
		staging->rd_rel->relam != HEAP_TABLE_AM_OID || staging->rd_rel->relhassubclass ||
		!RelationIsPopulated(staging) ||
		check_enable_rls(RelationGetRelid(staging), InvalidOid, true) == RLS_ENABLED)
		return false;
	for (int i = 0; i < tupdesc->natts; i++)
		if (attribute_is_virtual_compat(TupleDescAttr(tupdesc, i)))
			return false;
	return RelationUsesLocalBuffers(staging) ||
		!idem_relcheck_is_distributed(RelationGetRelid(staging));
}

/* Make room for a row at hand. It lives as long as the store. */
IdemRow *
idem_store_make_row(IdemStore *store)
{
	MemoryContext old_context = MemoryContextSwitchTo(store->context);
	IdemRow    *row = palloc0(sizeof(IdemRow));
	int			ncolumns = Max(store->info->ncolumns, 1);

	row->values = palloc0(sizeof(Datum) * ncolumns);
	row->nulls = palloc0(sizeof(bool) * ncolumns);
	row->slot = store->by_tid ?
		table_slot_create(store->staging, &store->estate->es_tupleTable) :
		alloc_table_slot_compat(&store->estate->es_tupleTable, store->copied, &TTSOpsMinimalTuple);
	row->econtext = CreateExprContext(store->estate);
	MemoryContextSwitchTo(old_context);
	return row;
}

/* Convert the row's values, which are as they were staged. */
void
idem_store_convert(IdemStore *store, IdemRow *row)
{
	ResetExprContext(row->econtext);
	for (int i = 0; i < store->info->ncolumns; i++)
	{
		if (store->casts[i] == NULL)
			continue;
		row->econtext->caseValue_datum = row->values[i];
		row->econtext->caseValue_isNull = row->nulls[i];
		row->values[i] = ExecEvalExprSwitchContext(store->casts[i], row->econtext,
												   &row->nulls[i]);
	}
}

/*
 * Are rows kept with the columns of the target, all of them and no others, in
 * its order and with its types? Then whole rows can be compared and copied.
 */
static bool
keeps_whole_rows(const IdemStore *store)
{
	const IdemMergeInfo *info = store->info;
	Relation	target = table_open(info->target, NoLock);
	bool		whole = RelationGetNumberOfAttributes(target) == info->ncolumns;

	table_close(target, NoLock);
	if (store->by_tid)
		whole &= RelationGetNumberOfAttributes(store->staging) == info->ncolumns;
	for (int i = 0; i < info->ncolumns; i++)
	{
		whole &= info->columns[i].target_attnum == i + 1;
		if (store->by_tid)
			whole &= info->columns[i].staged_attnum == i + 1 && store->casts[i] == NULL;
	}
	return whole;
}

/*
 * Let the slot have a tuple of staging. It was seen by the snapshot, which keeps
 * its line pointer, so visibility need not be looked at. The tuple itself moves
 * when its page is pruned: a pin keeps it where it is, once a lock has shown
 * that nobody who pruned before the pin is still at it. To look a buffer up costs
 * more than all the rest, hence the guess where it is.
 */
static void
fetch_tuple(IdemStore *store, IdemRowRef ref, IdemRow *row)
{
	BlockNumber block = (BlockNumber) (ref >> 16);
	OffsetNumber offset = (OffsetNumber) (ref & 0xFFFF);
	Buffer		buffer = store->buffers[block];
	Page		page;
	ItemId		item;

	ExecClearTuple(row->slot);
	if (!BufferIsValid(buffer) ||
		!read_recent_buffer_compat(store->staging, block, buffer))
	{
		buffer = ReadBuffer(store->staging, block);
		store->buffers[block] = buffer;
	}
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, offset);
	if (!ItemIdIsNormal(item))
		elog(ERROR, "could not find staged row (%u,%u) again", block, offset);
	row->tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
	row->tuple.t_len = ItemIdGetLength(item);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	row->tuple.t_tableOid = RelationGetRelid(store->staging);
	ItemPointerSet(&row->tuple.t_self, block, offset);
	ExecStorePinnedBufferHeapTuple(&row->tuple, row->slot, buffer);
}

/*
 * Let a row come to the cache: first what leads to it, later the row. Memory is
 * only hinted at, or looked at without a pin, where wrong data cannot do harm.
 * Inline, for gcc removes calls of a function that has no other effect.
 */
static pg_attribute_always_inline void
prefetch_row(const IdemStore *store, IdemRowRef ref, bool lead)
{
#ifdef __GNUC__
	const char *data;

	if (store->by_tid)
	{
		Buffer		buffer = store->buffers[ref >> 16];
		const char *page;
		const ItemIdData *item;

		if (!BufferIsValid(buffer))
			return;
		page = (const char *) BufferGetPage(buffer);
		item = PageGetItemId((Page) page, ref & 0xFFFF);
		if (lead)
		{
			if (!BufferIsLocal(buffer))
				__builtin_prefetch(GetBufferDescriptor(buffer - 1));
			__builtin_prefetch(item);
			return;
		}
		data = page + Min(ItemIdGetOffset(item), BLCKSZ - 256);
	}
	else if (lead)
		return;
	else
		data = store->chunks[ref >> CHUNK_BITS] + (ref & (CHUNK_SIZE - 1));
	for (int i = 0; i < 4; i++)
		__builtin_prefetch(data + i * 64);
#endif
}

/*
 * To be called before each of count rows is fetched, which is the next one: lets
 * those after it come to the cache meanwhile. A reference of 0 is passed over.
 */
void
idem_store_prefetch(const IdemStore *store, const IdemRowRef *refs, int count, int next)
{
	for (int i = next == 0 ? 0 : next + LEAD_DISTANCE - 1;
		 i < Min(count, next + LEAD_DISTANCE); i++)
		if (refs[i] != 0)
			prefetch_row(store, refs[i], true);
	for (int i = next == 0 ? 0 : next + ROW_DISTANCE - 1;
		 i < Min(count, next + ROW_DISTANCE); i++)
		if (refs[i] != 0)
			prefetch_row(store, refs[i], false);
}

/* Fetch a row that was put into the store; what is in it has to be deformed yet. */
void
idem_store_fetch(IdemStore *store, IdemRowRef ref, IdemRow *row)
{
	MinimalTuple tuple;

	row->deformed = false;
	if (store->by_tid)
	{
		fetch_tuple(store, ref, row);
		return;
	}
	tuple = (MinimalTuple) (store->chunks[ref >> CHUNK_BITS] + (ref & (CHUNK_SIZE - 1)));
	ExecStoreMinimalTuple(tuple, row->slot, false);
	row->tuple.t_data = (HeapTupleHeader) ((char *) tuple - MINIMAL_TUPLE_OFFSET);
	row->tuple.t_len = tuple->t_len + MINIMAL_TUPLE_OFFSET;
}

/* Let a row that was fetched have its values, converted. */
void
idem_store_deform(IdemStore *store, IdemRow *row)
{
	const IdemMergeInfo *info = store->info;

	if (row->deformed)
		return;
	row->deformed = true;
	slot_getallattrs(row->slot);
	if (store->by_tid)
	{
		for (int i = 0; i < info->ncolumns; i++)
		{
			int			attribute = info->columns[i].staged_attnum - 1;

			row->values[i] = row->slot->tts_values[attribute];
			row->nulls[i] = row->slot->tts_isnull[attribute];
		}
		idem_store_convert(store, row);
		return;
	}
	memcpy(row->values, row->slot->tts_values, sizeof(Datum) * info->ncolumns);
	memcpy(row->nulls, row->slot->tts_isnull, sizeof(bool) * info->ncolumns);
}

/* Fetch a row, and let it have its values. */
void
idem_store_load(IdemStore *store, IdemRowRef ref, IdemRow *row)
{
	idem_store_fetch(store, ref, row);
	idem_store_deform(store, row);
}

/*
 * Is the row that was fetched, in row->tuple but for the header's fields about
 * transactions, what a row of the target would look like? Not if columns were
 * added to a table without the row having been written anew.
 */
bool
idem_store_is_whole(const IdemStore *store, const IdemRow *row)
{
	return store->whole &&
		HeapTupleHeaderGetNatts(row->tuple.t_data) == store->info->ncolumns;
}

/*
 * Is the row that was fetched the same as the stored one, byte by byte? If not,
 * it still may have the same content.
 */
bool
idem_store_is_same(const IdemStore *store, const IdemRow *row, HeapTuple stored)
{
	HeapTupleHeader a = row->tuple.t_data;
	HeapTupleHeader b = stored->t_data;

	return idem_store_is_whole(store, row) && row->tuple.t_len == stored->t_len &&
		HeapTupleHeaderGetNatts(a) == HeapTupleHeaderGetNatts(b) && a->t_hoff == b->t_hoff &&
		(a->t_infomask & HEAP_HASNULL) == (b->t_infomask & HEAP_HASNULL) &&
		memcmp(a->t_bits, b->t_bits, stored->t_len - SizeofHeapTupleHeader) == 0;
}

/* Copy a row; the reference is where the copy is. */
static IdemRowRef
copy_row(IdemStore *store, const IdemRow *row)
{
	MinimalTuple tuple = form_minimal_tuple_compat(store->copied, row->values, row->nulls);
	Size		size = MAXALIGN(tuple->t_len);
	IdemRowRef	ref;

	if (store->nchunks == 0 || store->chunk_used + size > CHUNK_SIZE)
	{
		if (store->nchunks == store->max_chunks)
		{
			store->max_chunks = store->max_chunks * 2 + 64;
			store->chunks = store->chunks ?
				repalloc_huge(store->chunks, sizeof(char *) * store->max_chunks) :
				MemoryContextAllocHuge(store->context, sizeof(char *) * store->max_chunks);
		}
		/* References are not 0: the first row is not at the very beginning. */
		store->chunks[store->nchunks++] =
			MemoryContextAllocHuge(store->context, Max(CHUNK_SIZE, size + MAXIMUM_ALIGNOF));
		store->chunk_used = MAXIMUM_ALIGNOF;
		store->copied_size += Max(CHUNK_SIZE, size);
	}
	ref = ((store->nchunks - 1) << CHUNK_BITS) | store->chunk_used;
	memcpy(store->chunks[store->nchunks - 1] + store->chunk_used, tuple, tuple->t_len);
	store->chunk_used += size;
	heap_free_minimal_tuple(tuple);
	return ref;
}

/*
 * Begin to keep rows. The caller holds locks on both relations; from the scan on,
 * the active snapshot stays so as long as the store is used. It lives in the
 * current memory context; idem_store_free() ends what it holds.
 */
IdemStore *
idem_store_begin(const IdemMergeInfo *info)
{
	IdemStore  *store = palloc0(sizeof(IdemStore));
	Relation	staging = table_open(info->staging, NoLock);
	bool		volatile_casts = false;

	store->context = CurrentMemoryContext;
	store->info = info;
	store->estate = CreateExecutorState();
	store->casts = palloc0(sizeof(ExprState *) * Max(info->ncolumns, 1));
	store->copied = CreateTemplateTupleDesc(info->ncolumns);
	for (int i = 0; i < info->ncolumns; i++)
	{
		const IdemColumn *column = &info->columns[i];
		Expr	   *cast = cast_expression(column);

		TupleDescInitEntry(store->copied, i + 1, NULL, column->type, -1, 0);
		if (cast)
		{
			volatile_casts |= contain_volatile_functions((Node *) cast);
			store->casts[i] = ExecPrepareExpr(cast, store->estate);
		}
	}
	tupdesc_finalize_compat(store->copied);
	if (may_scan(staging))
	{
		store->staging = staging;
		/* To come again for each row must not mean to read it from disk. */
		store->by_tid = !volatile_casts && RelationGetNumberOfBlocks(staging) <=
			(RelationUsesLocalBuffers(staging) ? num_temp_buffers : NBuffers) / 2;
	}
	else
		table_close(staging, NoLock);
	store->whole = keeps_whole_rows(store);
	return store;
}

/* Let go of relations and buffers; the memory goes with its context. */
void
idem_store_free(IdemStore *store)
{
	ExecResetTupleTable(store->estate->es_tupleTable, false);
	if (store->staging)
		table_close(store->staging, NoLock);
	FreeExecutorState(store->estate);
}

/* Throw the copies away; references to them are not good any more. */
void
idem_store_forget_copies(IdemStore *store)
{
	for (uint64 i = 0; i < store->nchunks; i++)
		pfree(store->chunks[i]);
	store->nchunks = 0;
	store->copied_size = 0;
}

/*
 * Put the row at hand, as it was staged at tid, into the store. It must have
 * been converted.
 */
IdemRowRef
idem_store_put(IdemStore *store, const IdemRow *row, ItemPointer tid)
{
	if (store->by_tid)
		return ((uint64) ItemPointerGetBlockNumber(tid) << 16) | ItemPointerGetOffsetNumber(tid);
	return copy_row(store, row);
}

/* How much memory it takes to come by the rows again. */
Size
idem_store_size(const IdemStore *store)
{
	return store->copied_size + store->buffers_size;
}

/* How much there is to scan; 0 if that is the executor's business. */
int64
idem_store_bytes(const IdemStore *store)
{
	return store->staging ? (int64) RelationGetNumberOfBlocks(store->staging) * BLCKSZ : 0;
}

/* About how many rows there are; 0 if only the executor may know. */
double
idem_store_expected_rows(const IdemStore *store)
{
	BlockNumber pages;
	double		tuples = 0;
	double		all_visible;

	if (store->staging)
		estimate_rel_size(store->staging, NULL, &pages, &tuples, &all_visible);
	return tuples;
}

/* What a converted row looks like. */
TupleDesc
idem_store_descriptor(const IdemStore *store)
{
	return store->copied;
}

/* A slot that goes with the store, for converted rows. */
TupleTableSlot *
idem_store_make_slot(IdemStore *store, const TupleTableSlotOps *ops)
{
	return alloc_table_slot_compat(&store->estate->es_tupleTable, store->copied, ops);
}

/* Is staging what idem_store_scan() can read? Else the executor has to. */
bool
idem_store_can_scan(const IdemStore *store)
{
	return store->staging != NULL;
}

/*
 * Take the rows of staging without the executor: each is put into row as it was
 * staged, and given to the function, until that returns false.
 */
void
idem_store_scan(IdemStore *store, IdemRow *row, bool (*take) (void *, ItemPointer), void *arg)
{
	const IdemMergeInfo *info = store->info;
	TupleTableSlot *slot;
	TableScanDesc scan;
	AttrNumber	last = 0;
	BlockNumber block = InvalidBlockNumber;
	int64		bytes = 0;
	bool		more = true;

	slot = table_slot_create(store->staging, &store->estate->es_tupleTable);
	scan = table_beginscan_compat(store->staging, GetActiveSnapshot());
	/* What the snapshot shows is below the end of the table as it is now. */
	if (store->by_tid)
	{
		store->buffers_size = sizeof(Buffer) *
			Max(RelationGetNumberOfBlocks(store->staging), 1);
		store->buffers = MemoryContextAllocExtended(store->context, store->buffers_size,
													MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	}
	for (int i = 0; i < info->ncolumns; i++)
		last = Max(last, info->columns[i].staged_attnum);
	while (more && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		slot_getsomeattrs(slot, last);
		for (int i = 0; i < info->ncolumns; i++)
		{
			row->values[i] = slot->tts_values[info->columns[i].staged_attnum - 1];
			row->nulls[i] = slot->tts_isnull[info->columns[i].staged_attnum - 1];
		}
		if (ItemPointerGetBlockNumber(&slot->tts_tid) != block)
		{
			block = ItemPointerGetBlockNumber(&slot->tts_tid);
			if (store->by_tid)
				store->buffers[block] = ((BufferHeapTupleTableSlot *) slot)->buffer;
			bytes += BLCKSZ;
			pgstat_progress_update_param(PROGRESS_COPY_BYTES_PROCESSED, bytes);
		}
		more = take(arg, &slot->tts_tid);
	}
	table_endscan(scan);
}
