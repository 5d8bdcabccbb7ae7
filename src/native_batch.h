/*-------------------------------------------------------------------------
 *
 * native_batch.h
 *	  The staged rows of a batch, one for each key, in memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_NATIVE_BATCH_H
#define IDEM_NATIVE_BATCH_H

#include "native_store.h"
#include "rowcmp.h"
#include "rowfuncs.h"
#include "source.h"

typedef struct IdemBatch IdemBatch;

/* An entry of the table of keys. */
typedef struct IdemBatchEntry
{
	uint64		hash;			/* of the key; of a number, see
								 * native_number.h */
	IdemRowRef	ref;			/* 0: free */
} IdemBatchEntry;

extern IdemBatch *idem_batch_begin(const IdemMergeInfo *info, IdemSource *source,
								   IdemComparer *comparer);
extern void idem_batch_set_bound(IdemBatch *batch, const Datum *keys, const bool *nulls);
extern void idem_batch_read(IdemBatch *batch);
extern void idem_batch_free(IdemBatch *batch);
extern IdemStore *idem_batch_store(const IdemBatch *batch);
extern const char *idem_batch_refusal(const IdemBatch *batch);
extern bool idem_batch_is_above_bound(const IdemBatch *batch);
extern IdemCounts *idem_batch_counts(IdemBatch *batch);
extern const char *idem_batch_fingerprint(const IdemBatch *batch);
extern uint64 idem_batch_size(const IdemBatch *batch);
extern Size idem_batch_spare_memory(const IdemBatch *batch);
extern void idem_batch_forget_rows(IdemBatch *batch);

extern IdemRowRef *idem_batch_refs(const IdemBatch *batch);
extern bool idem_batch_is_sorted(const IdemBatch *batch);
extern IdemRow *idem_batch_next_sorted(IdemBatch *batch);

extern int	idem_batch_number_length(const IdemBatch *batch);
extern uint64 idem_batch_hash(const IdemBatch *batch, const Datum *keys, const bool *nulls);
extern void idem_batch_make_filter(IdemBatch *batch);
extern void idem_batch_prefetch_filter(const IdemBatch *batch, uint64 hash);
extern bool idem_batch_may_have(const IdemBatch *batch, uint64 hash);
extern void idem_batch_prefetch(const IdemBatch *batch, uint64 hash);
extern IdemBatchEntry *idem_batch_lookup(const IdemBatch *batch, uint64 hash);
extern IdemBatchEntry *idem_batch_lookup_next(const IdemBatch *batch, IdemBatchEntry *entry);
extern const IdemBatchEntry *idem_batch_next(const IdemBatch *batch, uint64 *position);
extern bool idem_batch_is_matched(const IdemBatchEntry *entry);
extern void idem_batch_set_matched(IdemBatchEntry *entry);
extern IdemRowRef idem_batch_ref(const IdemBatchEntry *entry);

#endif							/* IDEM_NATIVE_BATCH_H */
