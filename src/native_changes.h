/*-------------------------------------------------------------------------
 *
 * native_changes.h
 *	  Staged rows in the order of the key, and what is stored for each.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_NATIVE_CHANGES_H
#define IDEM_NATIVE_CHANGES_H

#include "native_store.h"
#include "storage/itemptr.h"

typedef struct IdemChanges IdemChanges;

extern IdemChanges *idem_changes_begin(const IdemMergeInfo *info, IdemStore *store,
									   Size memory);
extern void idem_changes_add(IdemChanges *changes, const IdemRow *row, IdemRowRef ref,
							 ItemPointer tid);
extern void idem_changes_add_number(IdemChanges *changes, int64 number, IdemRowRef ref,
									ItemPointer tid);
extern void idem_changes_sort(IdemChanges *changes);
extern bool idem_changes_next(IdemChanges *changes, IdemRow **row, IdemRowRef *ref,
							  ItemPointer tid);
extern void idem_changes_end(IdemChanges *changes);

#endif							/* IDEM_NATIVE_CHANGES_H */
