/*-------------------------------------------------------------------------
 *
 * relcheck.h
 *	  What a relation is, and whether it can be staging or target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RELCHECK_H
#define IDEM_RELCHECK_H

#include "storage/lockdefs.h"

extern void idem_relcheck_require_exists(Oid relid);
extern void idem_relcheck_lock(Oid relid, LOCKMODE mode);
extern void idem_relcheck_snapshot(Oid relid);
extern void idem_relcheck_staging(Oid staging);
extern void idem_relcheck_target(Oid relid, Oid staging);
extern char *idem_relcheck_name(Oid relid);
extern bool idem_relcheck_is_hypertable(Oid relid);
extern bool idem_relcheck_is_distributed(Oid relid);
extern bool idem_relcheck_is_empty(Oid target);

#endif							/* IDEM_RELCHECK_H */
