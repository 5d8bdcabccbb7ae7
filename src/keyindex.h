/*-------------------------------------------------------------------------
 *
 * keyindex.h
 *	  The unique index that decides which rows have the same key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEYINDEX_H
#define IDEM_KEYINDEX_H

#include "relinfo.h"
#include "utils/relcache.h"

extern void idem_keyindex_find(IdemMergeInfo *info, Relation target, List *attnums);

#endif							/* IDEM_KEYINDEX_H */
