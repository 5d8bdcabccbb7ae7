/*-------------------------------------------------------------------------
 *
 * deletions.h
 *	  What the current transaction has taken from a target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DELETIONS_H
#define IDEM_DELETIONS_H

#include "ledger.h"

/* Rows that the current transaction has inserted and deleted so far. */
typedef struct IdemWritten
{
	int64		inserted;
	int64		deleted;
} IdemWritten;

extern bool idem_deletions_noticed(const IdemBatchKey *key);
extern void idem_deletions_recorded(const IdemBatchKey *key);
extern IdemWritten idem_deletions_begin(Oid target);
extern void idem_deletions_end(Oid target, IdemWritten before, int64 rows_inserted);

#endif							/* IDEM_DELETIONS_H */
