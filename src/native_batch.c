/*-------------------------------------------------------------------------
 *
 * native_batch.c
 *	  The staged rows of a batch, one for each key, in memory.
 *
 * A table of keys has 16 bytes for each: a hash, and a reference to the row.
 * Rows of one key are compared, and one of them remains, as soon as the second
 * one comes.
 *
 * What does not fit into memory is sorted by key instead, all of it, by a
 * tuplesort that spills to disk: rows of one key then come one after the other.
 *
 * What the sql engine reports (keys that are NULL, different rows of one key)
 * is not reported here: such a batch is refused, for that engine to say it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/sortsupport.h"
#include "utils/tuplesort.h"

#include "native_batch.h"
#include "native_number.h"
#include "progress.h"

#define INITIAL_SLOTS	1024
#define MAX_PENDING		16
#define FILTER_BITS		4		/* for each slot */

/*
 * A merge shall take no more than get_hash_memory_limit() and 64 MB. Who lives at
 * the same time has shares of that, in eighths of the limit and of those 64 MB;
 * there are eight of them, and one is for the rest.
 */
#define KEYS_SHARE		4		/* the table of keys, and copies of rows */
#define SORT_SHARE		1		/* what does not fit: the table moves to it */
#define HASHES_SHARE	2		/* of distinct rows, as long as staging is
								 * read */

/* Bits of an entry's reference. */
#define MATCHED			(UINT64CONST(1) << 63)	/* by a stored row */
#define TIED			(UINT64CONST(1) << 62)	/* other rows of its version
												 * differ */

#define ST_SORT sort_refs
#define ST_ELEMENT_TYPE IdemRowRef
#define ST_COMPARE(a, b) (*(a) < *(b) ? -1 : *(a) > *(b))
#define ST_CHECK_FOR_INTERRUPTS
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* The receiver of staged rows. */
typedef struct BatchReceiver
{
	DestReceiver pub;
	IdemBatch  *batch;
} BatchReceiver;

/* What a column of the key is compared with. */
typedef struct KeyBound
{
	Datum		value;
	bool		isnull;
	SortSupportData sort;
} KeyBound;

struct IdemBatch
{
	MemoryContext context;
	MemoryContext row_context;	/* reset for each staged row */
	const IdemMergeInfo *info;
	IdemSource *source;
	IdemComparer *comparer;
	IdemFingerprint *fingerprint;
	char	   *fingerprint_text;	/* once all is read */
	IdemCounts	counts;
	const char *refusal;		/* why to leave it to the other engine */

	IdemStore  *store;
	IdemRow    *incoming;		/* the row that is being read */
	IdemRow    *old_row;		/* of one key */
	IdemRow    *new_row;

	/* keys */
	int			number_length;	/* see idem_number_length() */
	KeyBound   *bound;			/* in the order of the key's index, or NULL */
	bool		above_bound;	/* all rows so far */
	IdemBatchEntry *slots;
	uint64		nslots;			/* a power of two */
	uint64		nused;
	uint8	   *filter;			/* see idem_batch_make_filter() */
	IdemBatchEntry pending[MAX_PENDING];	/* not looked up yet */
	int			npending;
	int64		ties;			/* entries that are tied */

	/* rows that do not fit */
	Tuplesortstate *sort;		/* by key; NULL as long as all fit */
	TupleTableSlot *sort_slot;
	IdemRow    *sorted[2];		/* the row at hand, and the one after it */
	bool		has_next;
};

static Size
memory_share(int eighths)
{
	Size		limit = get_hash_memory_limit();

	return Min(limit, eighths * (limit / 8 + (Size) 8 * 1024 * 1024));
}

/* How much memory the rows take. */
static Size
rows_size(const IdemBatch *batch)
{
	return batch->nslots * sizeof(IdemBatchEntry) + idem_store_size(batch->store);
}

/* What is left for others beside the rows: their share at least. */
static Size
memory_left(const IdemBatch *batch, int eighths)
{
	Size		all = memory_share(KEYS_SHARE + eighths);
	Size		rows = rows_size(batch);

	return Max(memory_share(eighths), all - Min(all, rows));
}

/* How much memory others may take once a batch in memory has been read. */
Size
idem_batch_spare_memory(const IdemBatch *batch)
{
	return memory_left(batch, SORT_SHARE + HASHES_SHARE);
}

/* The hash of a key, whose values are in the order of its index. */
uint64
idem_batch_hash(const IdemBatch *batch, const Datum *keys, const bool *nulls)
{
	const IdemMergeInfo *info = batch->info;
	uint64		hash = 0;

	if (batch->number_length > 0)
		return idem_number_hash(idem_number_from_datum(keys[0], batch->number_length));
	for (int i = 0; i < info->nkeys; i++)
		hash = idem_rowhash_value(batch->comparer->images[info->keys[i].column],
								  keys[i], nulls[i], hash);
	return hash;
}

/*
 * How many bytes the keys have, if they are numbers; 0 otherwise. Of a number,
 * an entry's hash is as good as the key.
 */
int
idem_batch_number_length(const IdemBatch *batch)
{
	return batch->number_length;
}

static uint64
row_hash(const IdemBatch *batch, const IdemRow *row)
{
	const IdemMergeInfo *info = batch->info;
	Datum		keys[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	for (int i = 0; i < info->nkeys; i++)
	{
		keys[i] = row->values[info->keys[i].column];
		nulls[i] = row->nulls[info->keys[i].column];
	}
	return idem_batch_hash(batch, keys, nulls);
}

/* Have two staged rows the same key? */
static bool
same_key(const IdemBatch *batch, const IdemRow *a, const IdemRow *b)
{
	const IdemMergeInfo *info = batch->info;

	for (int i = 0; i < info->nkeys; i++)
	{
		int			column = info->keys[i].column;

		if (!idem_rowhash_equal(batch->comparer->images[column],
								a->values[column], a->nulls[column],
								b->values[column], b->nulls[column]))
			return false;
	}
	return true;
}

/* Is the image of row a greater than that of b, in the columns that decide? */
static bool
has_greater_image(const IdemBatch *batch, const IdemRow *a, const IdemRow *b, bool audit_only)
{
	StringInfoData image_a;
	StringInfoData image_b;
	int			order;

	initStringInfo(&image_a);
	initStringInfo(&image_b);
	for (int i = 0; i < batch->info->ncolumns; i++)
	{
		if (audit_only && !batch->info->columns[i].is_audit)
			continue;
		idem_rowhash_order(batch->comparer->images[i], a->values[i], a->nulls[i], &image_a);
		idem_rowhash_order(batch->comparer->images[i], b->values[i], b->nulls[i], &image_b);
	}
	order = memcmp(image_a.data, image_b.data, Min(image_a.len, image_b.len));
	return order != 0 ? order > 0 : image_a.len > image_b.len;
}

/*
 * Of two rows of one key, does the new one stay? tied says whether the one that
 * stays contradicts another row of the same version; a greater version settles
 * that. Leaves something behind in the current memory context.
 */
static bool
new_row_wins(IdemBatch *batch, const IdemRow *old, const IdemRow *new, bool *tied)
{
	IdemOnDuplicate rule = batch->info->on_duplicate;

	if (rule != IDEM_DUPLICATE_ERROR)
	{
		int			order = idem_rowcmp_versions(batch->comparer, new->values, new->nulls,
												 old->values, old->nulls);

		if (order > 0)
			*tied = false;
		if (order != 0)
			return order > 0;
	}
	if (rule != IDEM_DUPLICATE_ANY &&
		!idem_rowcmp_same_content(batch->comparer, new->values, new->nulls,
								  old->values, old->nulls))
	{
		*tied = true;
		return false;
	}
	return has_greater_image(batch, new, old, rule != IDEM_DUPLICATE_ANY);
}

/* Leave it to the sql engine to say which keys have different rows. */
static void
refuse_ties(IdemBatch *batch)
{
	batch->refusal = "staging has different rows for one key";
}

static inline IdemBatchEntry *
slot_of(const IdemBatch *batch, uint64 hash)
{
	return &batch->slots[hash & (batch->nslots - 1)];
}

static inline IdemBatchEntry *
slot_after(const IdemBatch *batch, const IdemBatchEntry *slot)
{
	return &batch->slots[(slot - batch->slots + 1) & (batch->nslots - 1)];
}

/* Double the table of keys. False if that would take too much memory. */
static bool
grow(IdemBatch *batch)
{
	IdemBatchEntry *old_slots = batch->slots;
	uint64		old_nslots = batch->nslots;
	uint64		nslots = old_nslots * 2;
	Size		size = nslots * sizeof(IdemBatchEntry);

	/* While it is copied, the old table is there too. */
	if (size + size / 2 + idem_store_size(batch->store) > memory_share(KEYS_SHARE))
		return false;
	batch->slots = MemoryContextAllocExtended(batch->context, size,
											  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	batch->nslots = nslots;
	for (uint64 i = 0; i < old_nslots; i++)
	{
		IdemBatchEntry *slot;

		CHECK_FOR_INTERRUPTS();
		if (old_slots[i].ref == 0)
			continue;
		for (slot = slot_of(batch, old_slots[i].hash); slot->ref != 0;
			 slot = slot_after(batch, slot));
		*slot = old_slots[i];
	}
	pfree(old_slots);
	return true;
}

static void
sort_row(IdemBatch *batch, const IdemRow *row)
{
	TupleTableSlot *slot = batch->sort_slot;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, row->values, sizeof(Datum) * batch->info->ncolumns);
	memcpy(slot->tts_isnull, row->nulls, sizeof(bool) * batch->info->ncolumns);
	ExecStoreVirtualTuple(slot);
	tuplesort_puttupleslot(batch->sort, slot);
}

/*
 * The rows do not fit: sort them from now on, those of the table of keys and
 * those that wait first.
 */
static void
begin_sort(IdemBatch *batch)
{
	const IdemMergeInfo *info = batch->info;
	MemoryContext old_context = MemoryContextSwitchTo(batch->context);
	AttrNumber	attnums[INDEX_MAX_KEYS];
	Oid			operators[INDEX_MAX_KEYS];
	Oid			collations[INDEX_MAX_KEYS];
	bool		nulls_first[INDEX_MAX_KEYS];

	for (int i = 0; i < info->nkeys; i++)
	{
		attnums[i] = info->keys[i].column + 1;
		operators[i] = info->keys[i].sort_operator;
		collations[i] = info->keys[i].collation;
		nulls_first[i] = info->keys[i].nulls_first;
	}
	batch->sort = tuplesort_begin_heap(idem_store_descriptor(batch->store), info->nkeys,
									   attnums, operators, collations, nulls_first,
									   memory_left(batch, SORT_SHARE) / 1024, NULL,
									   TUPLESORT_NONE);
	batch->sort_slot = idem_store_make_slot(batch->store, &TTSOpsVirtual);
	MemoryContextSwitchTo(old_context);
	for (uint64 i = 0; i < batch->nslots; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (batch->slots[i].ref == 0)
			continue;
		idem_store_load(batch->store, idem_batch_ref(&batch->slots[i]), batch->old_row);
		sort_row(batch, batch->old_row);
	}
	for (int i = 0; i < batch->npending; i++)
	{
		idem_store_load(batch->store, batch->pending[i].ref, batch->old_row);
		sort_row(batch, batch->old_row);
	}
	batch->npending = 0;
	/* The rows that contradict these are not there any more. */
	if (batch->ties > 0)
		refuse_ties(batch);
	pfree(batch->slots);
	batch->slots = NULL;
	ExecClearTuple(batch->old_row->slot);
	ExecClearTuple(batch->new_row->slot);
	idem_store_forget_copies(batch->store);
}

/*
 * Put the rows that wait into the table of keys. None of them is at hand, nor has
 * anything in the context of the staged row.
 */
static void
flush_pending(IdemBatch *batch)
{
	MemoryContext old_context = MemoryContextSwitchTo(batch->row_context);

	for (int i = 0; i < batch->npending; i++)
	{
		IdemBatchEntry entry = batch->pending[i];
		IdemBatchEntry *slot;
		bool		loaded = false;
		bool		was_tied;
		bool		tied;

		MemoryContextReset(batch->row_context);
		if (batch->nused >= batch->nslots / 4 * 3 && !grow(batch))
		{
			batch->npending -= i;
			memmove(batch->pending, batch->pending + i,
					sizeof(IdemBatchEntry) * batch->npending);
			begin_sort(batch);
			break;
		}
		for (slot = slot_of(batch, entry.hash); slot->ref != 0; slot = slot_after(batch, slot))
		{
			if (slot->hash != entry.hash)
				continue;
			if (!loaded)
				idem_store_load(batch->store, entry.ref, batch->new_row);
			loaded = true;
			idem_store_load(batch->store, idem_batch_ref(slot), batch->old_row);
			if (same_key(batch, batch->old_row, batch->new_row))
				break;
		}
		if (slot->ref == 0)
		{
			*slot = entry;
			batch->nused++;
			continue;
		}
		batch->counts.duplicate++;
		was_tied = tied = (slot->ref & TIED) != 0;
		if (new_row_wins(batch, batch->old_row, batch->new_row, &tied))
			slot->ref = entry.ref;
		slot->ref = tied ? slot->ref | TIED : slot->ref & ~TIED;
		batch->ties += (int) tied - (int) was_tied;
		/* Without versions nothing can settle it. */
		if (tied && batch->info->nversions == 0)
			refuse_ties(batch);
	}
	batch->npending = 0;
	MemoryContextSwitchTo(old_context);
}

/*
 * Fetch the next of the sorted rows into the place of the one after the row at
 * hand.
 */
static void
fetch_sorted(IdemBatch *batch)
{
	IdemRow    *next = batch->sorted[1];

	batch->has_next = tuplesort_gettupleslot(batch->sort, true, true, next->slot, NULL);
	if (!batch->has_next)
		return;
	slot_getallattrs(next->slot);
	memcpy(next->values, next->slot->tts_values, sizeof(Datum) * batch->info->ncolumns);
	memcpy(next->nulls, next->slot->tts_isnull, sizeof(bool) * batch->info->ncolumns);
}

static void
swap_sorted(IdemBatch *batch)
{
	IdemRow    *next = batch->sorted[1];

	batch->sorted[1] = batch->sorted[0];
	batch->sorted[0] = next;
}

/*
 * The next row in the order of the key, one for each key, of a batch that is
 * sorted; NULL after the last one, or if the batch is refused.
 */
IdemRow *
idem_batch_next_sorted(IdemBatch *batch)
{
	bool		tied;

	if (!batch->has_next)
		return NULL;
	swap_sorted(batch);
	fetch_sorted(batch);
	tied = false;
	while (batch->has_next && same_key(batch, batch->sorted[0], batch->sorted[1]))
	{
		MemoryContext old_context = MemoryContextSwitchTo(batch->row_context);
		bool		wins;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(batch->row_context);
		batch->counts.duplicate++;
		wins = new_row_wins(batch, batch->sorted[0], batch->sorted[1], &tied);
		MemoryContextSwitchTo(old_context);
		if (wins)
			swap_sorted(batch);
		fetch_sorted(batch);
	}
	if (tied)
	{
		refuse_ties(batch);
		return NULL;
	}
	return batch->sorted[0];
}

/* Is the row's key above the bound? */
static bool
is_above_bound(const IdemBatch *batch, const IdemRow *row)
{
	const IdemMergeInfo *info = batch->info;

	for (int i = 0; i < info->nkeys; i++)
	{
		KeyBound   *bound = &batch->bound[i];
		int			column = info->keys[i].column;
		int			order = ApplySortComparator(row->values[column], row->nulls[column],
												bound->value, bound->isnull, &bound->sort);

		if (order != 0)
			return order > 0;
	}
	return false;
}

static bool
has_null_key(const IdemBatch *batch, const bool *nulls)
{
	if (batch->info->nulls_not_distinct)
		return false;
	for (int i = 0; i < batch->info->nkeys; i++)
		if (nulls[batch->info->keys[i].column])
			return true;
	return false;
}

/* Let a row wait for its place in the table of keys. */
static void
add_pending(IdemBatch *batch, const IdemRow *row, ItemPointer tid)
{
	IdemBatchEntry *entry = &batch->pending[batch->npending++];

	entry->hash = row_hash(batch, row);
	entry->ref = idem_store_put(batch->store, row, tid);
	if (rows_size(batch) > memory_share(KEYS_SHARE))
	{
		begin_sort(batch);
		return;
	}
	/* The table is larger than a cache: let memory come while we go on. */
	idem_batch_prefetch(batch, entry->hash);
	if (batch->npending == MAX_PENDING)
		flush_pending(batch);
}

/*
 * Take a row, whose values are in batch->incoming as they were staged, and which
 * may be loaded again by tid. False if the batch is refused.
 */
static bool
take_row(void *arg, ItemPointer tid)
{
	IdemBatch  *batch = arg;
	IdemRow    *row = batch->incoming;
	MemoryContext old_context = MemoryContextSwitchTo(batch->row_context);

	MemoryContextReset(batch->row_context);
	batch->counts.staged++;
	if (IDEM_PROGRESS_IS_DUE(batch->counts.staged))
		pgstat_progress_update_param(IDEM_PROGRESS_ROWS_READ, batch->counts.staged);
	idem_rowhash_add(batch->fingerprint, row->values, row->nulls);
	if (!has_null_key(batch, row->nulls))
		idem_store_convert(batch->store, row);
	if (has_null_key(batch, row->nulls))
		batch->refusal = "a key is null";
	else if (idem_rowcmp_is_endless(batch->comparer, row->values, row->nulls))
		batch->refusal = "a version is NaN or infinity";
	else
	{
		if (batch->bound && batch->above_bound)
			batch->above_bound = is_above_bound(batch, row);
		if (batch->sort)
			sort_row(batch, row);
		else
			add_pending(batch, row, tid);
	}
	MemoryContextSwitchTo(old_context);
	return batch->refusal == NULL;
}

/* Take a row from the executor. */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	IdemBatch  *batch = ((BatchReceiver *) self)->batch;

	slot_getallattrs(slot);
	memcpy(batch->incoming->values, slot->tts_values, sizeof(Datum) * batch->info->ncolumns);
	memcpy(batch->incoming->nulls, slot->tts_isnull, sizeof(bool) * batch->info->ncolumns);
	return take_row(batch, NULL);
}

static void
ignore_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
ignore(DestReceiver *self)
{
}

/*
 * Begin a batch. The caller holds locks on both relations; what else there is to
 * lock is locked here. The caller also holds an SPI connection. It lives in the
 * current memory context; idem_batch_free() ends what it holds.
 */
IdemBatch *
idem_batch_begin(const IdemMergeInfo *info, IdemSource *source, IdemComparer *comparer)
{
	IdemBatch  *batch = palloc0(sizeof(IdemBatch));
	char	  **names = palloc(sizeof(char *) * Max(info->ncolumns, 1));
	Oid		   *types = palloc(sizeof(Oid) * Max(info->ncolumns, 1));
	bool	   *covered = palloc(sizeof(bool) * Max(info->ncolumns, 1));
	List	   *columns = NIL;

	batch->context = CurrentMemoryContext;
	batch->row_context = AllocSetContextCreate(CurrentMemoryContext, "idem_merge staged row",
											   ALLOCSET_DEFAULT_SIZES);
	batch->info = info;
	batch->source = source;
	batch->comparer = comparer;
	for (int i = 0; i < info->ncolumns; i++)
	{
		names[i] = info->columns[i].name;
		types[i] = info->columns[i].staged_type;
		covered[i] = !info->columns[i].is_audit;
		columns = lappend(columns, names[i]);
	}
	batch->fingerprint = idem_rowhash_begin(info->ncolumns, names, types, covered,
											memory_share(HASHES_SHARE));
	batch->store = idem_store_begin(info);
	if (!idem_store_can_scan(batch->store))
		idem_source_prepare(source, columns);
	batch->incoming = idem_store_make_row(batch->store);
	batch->old_row = idem_store_make_row(batch->store);
	batch->new_row = idem_store_make_row(batch->store);
	batch->nslots = INITIAL_SLOTS;
	while (batch->nslots / 4 * 3 < idem_store_expected_rows(batch->store) &&
		   batch->nslots * 2 * sizeof(IdemBatchEntry) <= memory_share(KEYS_SHARE) / 2)
		batch->nslots *= 2;
	batch->slots = MemoryContextAllocExtended(batch->context,
											  batch->nslots * sizeof(IdemBatchEntry),
											  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	batch->above_bound = true;
	batch->number_length = idem_number_length(info);
	return batch;
}

/*
 * Have it found out whether all staged keys are above this one, in the order of
 * the key's index. Without a bound they are.
 */
void
idem_batch_set_bound(IdemBatch *batch, const Datum *keys, const bool *nulls)
{
	const IdemMergeInfo *info = batch->info;

	batch->bound = palloc0(sizeof(KeyBound) * info->nkeys);
	for (int i = 0; i < info->nkeys; i++)
	{
		const IdemKeyColumn *key = &info->keys[i];
		KeyBound   *bound = &batch->bound[i];
		int16		typlen;
		bool		typbyval;

		get_typlenbyval(info->columns[key->column].type, &typlen, &typbyval);
		bound->isnull = nulls[i];
		bound->value = nulls[i] ? (Datum) 0 : datumCopy(keys[i], typbyval, typlen);
		bound->sort.ssup_cxt = batch->context;
		bound->sort.ssup_collation = key->collation;
		bound->sort.ssup_nulls_first = key->nulls_first;
		PrepareSortSupportFromOrderingOp(key->sort_operator, &bound->sort);
	}
}

/*
 * Read the staged rows, under the active snapshot, which must stay so as long as
 * the batch is used, and must not be older than idem_batch_begin(): it shows what
 * was waited for there. If idem_batch_refusal() then is not NULL, the batch is not
 * for the native engine.
 */
void
idem_batch_read(IdemBatch *batch)
{
	BatchReceiver receiver = {{receive_row, ignore_startup, ignore, ignore, DestNone}};

	receiver.batch = batch;
	if (idem_store_can_scan(batch->store))
		idem_store_scan(batch->store, batch->incoming, take_row, batch);
	else
		idem_source_read(batch->source, &receiver.pub);
	if (batch->refusal == NULL)
		flush_pending(batch);
	if (batch->ties > 0)
		refuse_ties(batch);
	if (batch->refusal)
		return;
	batch->fingerprint_text = idem_rowhash_finish(batch->fingerprint);
	if (batch->sort == NULL)
		return;
	tuplesort_performsort(batch->sort);
	for (int i = 0; i < 2; i++)
	{
		batch->sorted[i] = idem_store_make_row(batch->store);
		batch->sorted[i]->slot = idem_store_make_slot(batch->store, &TTSOpsMinimalTuple);
	}
	fetch_sorted(batch);
}

/* Are the rows sorted, since they do not fit memory? */
bool
idem_batch_is_sorted(const IdemBatch *batch)
{
	return batch->sort != NULL;
}

/* Let go of relations and buffers; the memory goes with its context. */
void
idem_batch_free(IdemBatch *batch)
{
	if (batch->sort)
		tuplesort_end(batch->sort);
	idem_store_free(batch->store);
}

/* Where the rows are. */
IdemStore *
idem_batch_store(const IdemBatch *batch)
{
	return batch->store;
}

/* Why the batch is not for the native engine, NULL if it is. */
const char *
idem_batch_refusal(const IdemBatch *batch)
{
	return batch->refusal;
}

/* Are all keys above the bound that was set? */
bool
idem_batch_is_above_bound(const IdemBatch *batch)
{
	return batch->above_bound;
}

IdemCounts *
idem_batch_counts(IdemBatch *batch)
{
	return &batch->counts;
}

/* The fingerprint of a batch that has been read; it lives as long as the batch. */
const char *
idem_batch_fingerprint(const IdemBatch *batch)
{
	return batch->fingerprint_text;
}

/* About how many keys the batch has: not fewer. */
uint64
idem_batch_size(const IdemBatch *batch)
{
	return batch->counts.staged - batch->counts.duplicate;
}

/* Let the entry of a hash come to the cache. */
void
idem_batch_prefetch(const IdemBatch *batch, uint64 hash)
{
#ifdef __GNUC__
	__builtin_prefetch(slot_of(batch, hash));
#endif
}

static inline uint64
filter_bit(const IdemBatch *batch, uint64 hash)
{
	return hash & (batch->nslots * FILTER_BITS - 1);
}

/*
 * Prepare idem_batch_may_have(), for a batch in memory that has been read: a bit
 * is set where a key's hash has it. That is a 32nd of the table of keys, which
 * stays in a cache that the table does not fit.
 */
void
idem_batch_make_filter(IdemBatch *batch)
{
	batch->filter = MemoryContextAllocExtended(batch->context,
											   batch->nslots * FILTER_BITS / BITS_PER_BYTE,
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (uint64 i = 0; i < batch->nslots; i++)
	{
		uint64		bit = filter_bit(batch, batch->slots[i].hash);

		CHECK_FOR_INTERRUPTS();
		if (batch->slots[i].ref != 0)
			batch->filter[bit / BITS_PER_BYTE] |= 1 << bit % BITS_PER_BYTE;
	}
}

/* Let what idem_batch_may_have() looks at come to the cache. */
void
idem_batch_prefetch_filter(const IdemBatch *batch, uint64 hash)
{
#ifdef __GNUC__
	if (batch->filter)
		__builtin_prefetch(&batch->filter[filter_bit(batch, hash) / BITS_PER_BYTE]);
#endif
}

/* False if no key has the hash; always true without a filter. */
bool
idem_batch_may_have(const IdemBatch *batch, uint64 hash)
{
	uint64		bit = filter_bit(batch, hash);

	return batch->filter == NULL ||
		(batch->filter[bit / BITS_PER_BYTE] & 1 << bit % BITS_PER_BYTE) != 0;
}

static IdemBatchEntry *
first_with_hash(const IdemBatch *batch, IdemBatchEntry *slot, uint64 hash)
{
	for (; slot->ref != 0; slot = slot_after(batch, slot))
		if (slot->hash == hash)
			return slot;
	return NULL;
}

/* The first entry with a hash, and the next one; NULL if there is none. */
IdemBatchEntry *
idem_batch_lookup(const IdemBatch *batch, uint64 hash)
{
	return first_with_hash(batch, slot_of(batch, hash), hash);
}

IdemBatchEntry *
idem_batch_lookup_next(const IdemBatch *batch, IdemBatchEntry *entry)
{
	return first_with_hash(batch, slot_after(batch, entry), entry->hash);
}

void
idem_batch_set_matched(IdemBatchEntry *entry)
{
	entry->ref |= MATCHED;
}

IdemRowRef
idem_batch_ref(const IdemBatchEntry *entry)
{
	return entry->ref & ~(MATCHED | TIED);
}

/* All rows, idem_batch_size() of them, in the order in which they are kept. */
IdemRowRef *
idem_batch_refs(const IdemBatch *batch)
{
	IdemRowRef *refs = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(IdemRowRef) * Max(batch->nused, 1));
	uint64		count = 0;

	for (uint64 i = 0; i < batch->nslots; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (batch->slots[i].ref != 0)
			refs[count++] = idem_batch_ref(&batch->slots[i]);
	}
	sort_refs(refs, count);
	return refs;
}

/*
 * Let go of the rows of a batch in memory, for what comes then needs memory too.
 * What has been counted stays.
 */
void
idem_batch_forget_rows(IdemBatch *batch)
{
	pfree(batch->slots);
	batch->slots = NULL;
	batch->nslots = 0;
	idem_store_forget_copies(batch->store);
}

bool
idem_batch_is_matched(const IdemBatchEntry *entry)
{
	return (entry->ref & MATCHED) != 0;
}

/* Go through all rows, in no order; *position begins with 0. NULL after the last. */
const IdemBatchEntry *
idem_batch_next(const IdemBatch *batch, uint64 *position)
{
	while (*position < batch->nslots)
	{
		const IdemBatchEntry *slot = &batch->slots[(*position)++];

		if (slot->ref != 0)
			return slot;
	}
	return NULL;
}
