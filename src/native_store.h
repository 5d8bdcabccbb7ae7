/*-------------------------------------------------------------------------
 *
 * native_store.h
 *	  The staged rows themselves: how to come by one again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_NATIVE_STORE_H
#define IDEM_NATIVE_STORE_H

#include "access/htup.h"
#include "executor/tuptable.h"
#include "relinfo.h"

typedef struct IdemStore IdemStore;

/* Where a row is kept; never 0, and the two highest bits are free. */
typedef uint64 IdemRowRef;

/* So many rows are taken at a time, so that memory can come for many at once. */
#define IDEM_LOOK_AHEAD 128

/* A row at hand; valid until the next one is loaded into the same place. */
typedef struct IdemRow
{
	Datum	   *values;			/* by position in IdemMergeInfo.columns */
	bool	   *nulls;
	TupleTableSlot *slot;		/* what they point into */
	bool		deformed;		/* values and nulls are there */
	HeapTupleData tuple;		/* the row as a whole, see
								 * idem_store_is_whole() */
	struct ExprContext *econtext;	/* of casts */
} IdemRow;

extern IdemStore *idem_store_begin(const IdemMergeInfo *info);
extern void idem_store_free(IdemStore *store);
extern int64 idem_store_bytes(const IdemStore *store);
extern double idem_store_expected_rows(const IdemStore *store);
extern TupleDesc idem_store_descriptor(const IdemStore *store);
extern TupleTableSlot *idem_store_make_slot(IdemStore *store, const TupleTableSlotOps *ops);
extern IdemRow *idem_store_make_row(IdemStore *store);
extern bool idem_store_can_scan(const IdemStore *store);
extern void idem_store_scan(IdemStore *store, IdemRow *row,
							bool (*take) (void *, ItemPointer), void *arg);
extern void idem_store_convert(IdemStore *store, IdemRow *row);
extern IdemRowRef idem_store_put(IdemStore *store, const IdemRow *row, ItemPointer tid);
extern Size idem_store_size(const IdemStore *store);
extern void idem_store_forget_copies(IdemStore *store);
extern void idem_store_prefetch(const IdemStore *store, const IdemRowRef *refs, int count,
								int next);
extern void idem_store_fetch(IdemStore *store, IdemRowRef ref, IdemRow *row);
extern void idem_store_deform(IdemStore *store, IdemRow *row);
extern void idem_store_load(IdemStore *store, IdemRowRef ref, IdemRow *row);
extern bool idem_store_is_whole(const IdemStore *store, const IdemRow *row);
extern bool idem_store_is_same(const IdemStore *store, const IdemRow *row, HeapTuple stored);

#endif							/* IDEM_NATIVE_STORE_H */
