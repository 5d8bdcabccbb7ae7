/*-------------------------------------------------------------------------
 *
 * turn.c
 *	  Who may go on: locks on batches, and the turns of merges of one target.
 *
 * Both are advisory locks of our own class, held until the end of the
 * transaction. merge.c says where they stand among the other locks of a merge.
 *
 * A batch is locked before the ledger is asked for it, so that a second
 * submitter can be refused (nowait), time out, and be told whom it waits for;
 * what decides between two of them is the ledger's unique index all the same.
 *
 * Merges of one target take turns, since unchanged rows are not locked, so that
 * two of them could otherwise interleave. Those that commute (I4) run beside
 * each other, as long as they are of the same turn class. This takes TURN_BITS
 * locks, one for each bit of the class: a merge takes SHARE on those of bits
 * that are set and ROW EXCLUSIVE on the others. Each of the two modes goes with
 * itself and not with the other, so that merges of one class never meet and
 * those of different ones meet at the first bit in which they differ. A merge
 * that commutes with nothing takes EXCLUSIVE on the first of the locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "idempotent_ingest.h"
#include "rowhash.h"
#include "security.h"
#include "spi_util.h"
#include "turn.h"

#define TURN_BITS 16

/* How often a waiter looks, before it has waited long enough to report. */
#define POLL_MILLISECONDS 20

/*
 * Tell client and log whom we wait for. The activity of other roles is hidden
 * from the caller, but these hold what the caller wants, so that pid, state and
 * age of the transaction are given: owner, the ledger's, is asked for them.
 */
static void
report_wait(const LOCKTAG *tag, const char *what, Oid owner)
{
	MemoryContext context = CurrentMemoryContext;
	IdemIdentity saved;
	IdemSpiArgs args = {0};
	char	   *holder = NULL;

	idem_spi_arg(&args, OIDOID, ObjectIdGetDatum(tag->locktag_field1), false);
	idem_spi_arg(&args, OIDOID, ObjectIdGetDatum(tag->locktag_field2), false);
	idem_spi_arg(&args, OIDOID, ObjectIdGetDatum(tag->locktag_field3), false);
	idem_spi_arg(&args, INT2OID, Int16GetDatum(tag->locktag_field4), false);
	idem_security_push(&saved, owner);
	if (idem_spi_execute("SELECT CASE WHEN l.pid IS NULL"
						 " THEN 'Prepared transaction ' || COALESCE(quote_literal(x.gid), '?') ||"
						 " ' holds it, prepared ' || COALESCE(date_trunc('second', clock_timestamp() - x.prepared)::text, '?') || ' ago.'"
						 " ELSE 'Process ' || l.pid || ' holds it, state ' || COALESCE(a.state, '?') ||"
						 " ', in a transaction of ' || COALESCE(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?') || '.' END"
						 " FROM pg_catalog.pg_locks l"
						 " LEFT JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid = l.pid"
						 " LEFT JOIN pg_catalog.pg_locks o ON l.pid IS NULL AND o.pid IS NULL AND o.granted"
						 " AND o.locktype = 'transactionid' AND o.virtualtransaction = l.virtualtransaction"
						 " LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = o.transactionid"
						 " WHERE l.locktype = 'advisory' AND l.granted AND l.database = $1"
						 " AND l.classid = $2 AND l.objid = $3 AND l.objsubid = $4"
						 " AND l.pid IS DISTINCT FROM pg_backend_pid()"
						 " ORDER BY a.xact_start LIMIT 1", InvalidOid, &args, true) > 0)
		holder = idem_spi_text(0, 1, context);
	idem_security_pop(&saved);
	ereport(WARNING,
			(errmsg("waiting for %s", what),
			 holder ? errdetail("%s", holder) : 0,
			 errhint("It goes on when that transaction ends; lock_timeout and statement_timeout limit the wait.")));
}

/*
 * Take a lock of ours until the end of the transaction. False if nowait and
 * somebody else has it. What it is for is said after deadlock_timeout (a second
 * by default), as log_lock_waits does; until then we look now and then, for a
 * process that sleeps in the lock manager cannot report.
 */
static bool
acquire(LOCKTAG *tag, LOCKMODE mode, bool nowait, const char *what, Oid owner)
{
	TimestampTz start;
	int			guc_level;

	if (LockAcquire(tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL)
		return true;
	if (nowait)
		return false;
	if (LockTimeout > 0 && LockTimeout <= DeadlockTimeout)
	{
		(void) LockAcquire(tag, mode, false, false);
		return true;
	}
	start = GetCurrentTimestamp();
	do
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(POLL_MILLISECONDS, DeadlockTimeout), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (LockAcquire(tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL)
			return true;
	} while (!TimestampDifferenceExceeds(start, GetCurrentTimestamp(), DeadlockTimeout));
	report_wait(tag, what, owner);

	/* What has passed counts against lock_timeout. */
	guc_level = NewGUCNestLevel();
	if (LockTimeout > 0)
		(void) set_config_option("lock_timeout",
								 psprintf("%d", Max(1, LockTimeout - DeadlockTimeout)),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) LockAcquire(tag, mode, false, false);
	AtEOXact_GUC(true, guc_level);
	return true;
}

/*
 * Lock a batch. False if nowait and another transaction has it. The caller
 * holds an SPI connection, here and below.
 */
bool
idem_turn_lock_batch(Oid target, const char *pipeline, const char *batch_id,
					 Oid claimed_by, bool nowait, Oid owner)
{
	char	   *hashed = idem_rowhash_text(psprintf("%u %u", target, claimed_by),
										   idem_rowhash_text(pipeline, batch_id));
	uint64		hash = idem_rowhash_number(hashed);
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash,
						 IDEM_LOCK_BATCH);
	return acquire(&tag, ExclusiveLock, nowait,
				   psprintf("batch \"%s\", which another transaction is working on", batch_id),
				   owner);
}

/* Take the target's turn, or join those who have it and commute with us. */
void
idem_turn_take(Oid target, bool commutes, int32 turn_class, Oid owner)
{
	char	   *what = psprintf("another merge into \"%s\"", get_rel_name(target));

	for (int bit = 0; bit < (commutes ? TURN_BITS : 1); bit++)
	{
		LOCKTAG		tag;

		SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, target, bit, IDEM_LOCK_TURN);
		(void) acquire(&tag, !commutes ? ExclusiveLock :
					   (turn_class & (1 << bit)) ? ShareLock : RowExclusiveLock,
					   false, what, owner);
	}
}
