/*-------------------------------------------------------------------------
 *
 * native_index.h
 *	  Stored rows by the index of the key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_NATIVE_INDEX_H
#define IDEM_NATIVE_INDEX_H

#include "native_store.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

typedef struct IdemIndex IdemIndex;

extern IdemIndex *idem_index_begin(const IdemMergeInfo *info, Relation target, Snapshot snapshot,
								   bool probes);
extern TupleTableSlot *idem_index_probe(IdemIndex *index, const IdemRow *row);
extern TupleTableSlot *idem_index_advance(IdemIndex *index, const IdemRow *row);
extern TupleTableSlot *idem_index_last(IdemIndex *index);
extern void idem_index_end(IdemIndex *index);
extern void idem_index_get_key(const IdemMergeInfo *info, TupleTableSlot *stored,
							   Datum *keys, bool *nulls);

#endif							/* IDEM_NATIVE_INDEX_H */
