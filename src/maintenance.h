/*-------------------------------------------------------------------------
 *
 * maintenance.h
 *	  Retention: what keeps the ledger from growing for ever.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_MAINTENANCE_H
#define IDEM_MAINTENANCE_H

#include "datatype/timestamp.h"

#include "ledger.h"

/* What was done. */
typedef struct IdemMaintenanceCounts
{
	int64		expired;		/* batches whose details were cleared */
	int64		deleted;		/* batches that are not known any more */
} IdemMaintenanceCounts;

extern bool idem_maintenance_step(const IdemLedger *ledger, TimestampTz began,
								  IdemMaintenanceCounts *counts);
extern void idem_maintenance_nap(void);
extern void idem_maintenance_set_retention(const IdemLedger *ledger, Oid target,
										   const char *pipeline, const Interval *retention,
										   const Interval *key_retention);

#endif							/* IDEM_MAINTENANCE_H */
