/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Counts of what merges have done, for each target, in shared memory.
 *
 * What a merge has done is counted when its transaction commits, or is
 * prepared, so that the counts agree with the ledger. An error is counted at
 * once: it leaves no trace elsewhere. Whatever is counted is lost with the
 * server's memory, by a restart or a crash.
 *
 * There is room for MAX_TARGETS tables of all databases. Once it is used up,
 * tables that come later are not counted until there is a reset.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "idempotent_ingest.h"
#include "stats.h"

#define MAX_TARGETS		4096

typedef struct Key
{
	Oid			database;
	Oid			target;
} Key;

typedef struct Entry
{
	Key			key;
	IdemStatsCounts counts;
} Entry;

/* The lock is that of the hash table as well. */
typedef struct Shared
{
	LWLock	   *lock;
	TimestampTz since;
} Shared;

/* Counts of the current transaction. */
typedef struct Pending
{
	SubTransactionId subid;
	Oid			target;
	IdemStatsCounts counts;
} Pending;

static const char NAME[] = "idempotent_ingest stats";

static Shared *shared;
static HTAB *entries;
static shmem_request_hook_type earlier_request_hook;
static shmem_startup_hook_type earlier_startup_hook;

static List *pending;			/* of Pending, in TopMemoryContext */

static void
request(void)
{
	if (earlier_request_hook)
		earlier_request_hook();
	RequestAddinShmemSpace(add_size(MAXALIGN(sizeof(Shared)),
									hash_estimate_size(MAX_TARGETS, sizeof(Entry))));
	RequestNamedLWLockTranche(NAME, 1);
}

static void
startup(void)
{
	HASHCTL		control = {0};
	bool		found;

	if (earlier_startup_hook)
		earlier_startup_hook();
	control.keysize = sizeof(Key);
	control.entrysize = sizeof(Entry);
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct(NAME, sizeof(Shared), &found);
	if (!found)
	{
		shared->lock = &(GetNamedLWLockTranche(NAME))->lock;
		shared->since = GetCurrentTimestamp();
	}
	entries = shmem_init_hash_compat("idempotent_ingest targets", MAX_TARGETS, &control,
									 HASH_ELEM | HASH_BLOBS);
	LWLockRelease(AddinShmemInitLock);
}

/* To be called while libraries are preloaded. */
void
idem_stats_init(void)
{
	earlier_request_hook = shmem_request_hook;
	shmem_request_hook = request;
	earlier_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup;
}

/* False if the library was not preloaded: nothing is counted then. */
bool
idem_stats_is_there(void)
{
	return shared != NULL;
}

/* Add one target's counts to another's, or to those of an earlier time. */
static void
add(IdemStatsCounts *sum, const IdemStatsCounts *counts)
{
	for (int i = 0; i < IDEM_STATS_OUTCOMES; i++)
		sum->outcomes[i] += counts->outcomes[i];
	for (int i = 0; i < IDEM_STATS_ROWS; i++)
		sum->rows[i] += counts->rows[i];
	sum->microseconds += counts->microseconds;
	sum->wal_bytes += counts->wal_bytes;
	sum->last_batch = Max(sum->last_batch, counts->last_batch);
}

/* Never an error: it is called after the commit, too. The lock is held. */
static void
add_to_shared(Oid target, const IdemStatsCounts *counts)
{
	Key			key = {MyDatabaseId, target};
	bool		found;
	Entry	   *entry = hash_search(entries, &key, HASH_FIND, NULL);

	if (entry == NULL && hash_get_num_entries(entries) < MAX_TARGETS)
	{
		entry = hash_search(entries, &key, HASH_ENTER_NULL, &found);
		if (entry)
			memset(&entry->counts, 0, sizeof(entry->counts));
	}
	if (entry)
		add(&entry->counts, counts);
}

static void
drop_pending(void)
{
	list_free_deep(pending);
	pending = NIL;
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	ListCell   *lc;

	if (pending == NIL)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			LWLockAcquire(shared->lock, LW_EXCLUSIVE);
			foreach(lc, pending)
			{
				const Pending *item = lfirst(lc);

				add_to_shared(item->target, &item->counts);
			}
			LWLockRelease(shared->lock);
			drop_pending();
			break;
		case XACT_EVENT_ABORT:
			drop_pending();
			break;
		default:
			break;
	}
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId subid, SubTransactionId parent,
					  void *arg)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, pending)
	{
		Pending    *item = lfirst(lc);

		if (item->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			item->subid = parent;
		else
		{
			pending = foreach_delete_current(pending, lc);
			pfree(item);
		}
	}
}

/* Count what a merge has done, if its transaction commits. */
void
idem_stats_count(Oid target, const IdemStatsCounts *counts)
{
	static bool registered;
	SubTransactionId subid = GetCurrentSubTransactionId();
	MemoryContext old_context;
	Pending    *item = pending ? llast(pending) : NULL;

	if (shared == NULL)
		return;
	if (item == NULL || item->target != target || item->subid != subid)
	{
		if (!registered)
		{
			RegisterXactCallback(at_transaction_end, NULL);
			RegisterSubXactCallback(at_subtransaction_end, NULL);
			registered = true;
		}
		old_context = MemoryContextSwitchTo(TopMemoryContext);
		item = palloc0(sizeof(Pending));
		item->subid = subid;
		item->target = target;
		pending = lappend(pending, item);
		MemoryContextSwitchTo(old_context);
	}
	add(&item->counts, counts);
}

/* Count a merge that was refused or has failed. */
void
idem_stats_count_error(Oid target, int sqlstate)
{
	static const int sqlstates[] = {
		ERRCODE_IDEM_MISMATCH, ERRCODE_IDEM_ALREADY_APPLIED, ERRCODE_IDEM_STALE_ROW,
		ERRCODE_IDEM_LOST_BATCH, ERRCODE_IDEM_NOT_IN_TARGET
	};
	IdemStatsCounts counts = {0};
	int			outcome = IDEM_STATS_OTHER_ERROR;

	if (shared == NULL)
		return;
	for (int i = 0; i < lengthof(sqlstates); i++)
		if (sqlstate == sqlstates[i])
			outcome = IDEM_STATS_MISMATCH + i;
	counts.outcomes[outcome] = 1;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	add_to_shared(target, &counts);
	LWLockRelease(shared->lock);
}

/*
 * Copy the counts of the current database, palloc'd in the current memory
 * context. Returns how many targets there are; since is when counting has begun.
 */
int
idem_stats_read(IdemStatsTarget **targets, TimestampTz *since)
{
	HASH_SEQ_STATUS status;
	Entry	   *entry;
	int			ntargets = 0;

	*targets = palloc(sizeof(IdemStatsTarget) * MAX_TARGETS);
	LWLockAcquire(shared->lock, LW_SHARED);
	*since = shared->since;
	hash_seq_init(&status, entries);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->key.database != MyDatabaseId)
			continue;
		(*targets)[ntargets].target = entry->key.target;
		(*targets)[ntargets].counts = entry->counts;
		ntargets++;
	}
	LWLockRelease(shared->lock);
	return ntargets;
}

/* Begin anew, in all databases. */
void
idem_stats_clear(void)
{
	HASH_SEQ_STATUS status;
	Entry	   *entry;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&status, entries);
	while ((entry = hash_seq_search(&status)) != NULL)
		(void) hash_search(entries, &entry->key, HASH_REMOVE, NULL);
	shared->since = GetCurrentTimestamp();
	LWLockRelease(shared->lock);
}
