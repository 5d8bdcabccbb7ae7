/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  What launcher, workers, job processes and sessions know of each other.
 *
 * One lock protects all of it; it is held for a few instructions, and while a
 * signal is sent to a process that has a place here, so that the process cannot
 * be another one by then. A process gives its place back by a callback that is
 * registered before it connects to its database, and therefore runs after it has
 * left the database: a place that is free blocks no DROP DATABASE.
 *
 * There is none of it unless the library is in shared_preload_libraries. The
 * functions that a session calls do nothing then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

#include "shmem.h"

/*
 * How a process of ours is woken. Whatever waits inside of its work, for a lock for
 * example, resets the latch: the flag stays until the process takes it.
 */
typedef struct Bell
{
	Latch	   *latch;			/* NULL: nobody to be woken */
	bool		rung;
} Bell;

typedef struct WorkerPlace
{
	uint32		generation;
	IdemWorkerState state;
	Oid			database;
	int			pid;
	Bell		bell;
	bool		told_to_end;
	bool		wants_place;	/* had a job and no place for its process */
} WorkerPlace;

typedef struct JobPlace
{
	uint32		generation;
	bool		used;
	int			pid;			/* 0 before it has started */
	IdemJobInfo job;
} JobPlace;

/* A database that a session wants us out of. */
typedef struct Block
{
	Oid			database;
	int			pid;			/* of the session; 0: not in use */
} Block;

#define MAX_BLOCKS	32

typedef struct Shared
{
	LWLock	   *lock;
	Bell		launcher;
	WorkerPlace workers[IDEM_MAX_WORKERS];
	JobPlace	jobs[IDEM_MAX_JOB_PROCESSES];
	Block		blocks[MAX_BLOCKS];

	/* Databases that may have got the extension; all if there are too many. */
	int			nchanged;
	bool		all_changed;
	Oid			changed[IDEM_MAX_CHANGED];
} Shared;

static const char NAME[] = "idempotent_ingest";

static Shared *shared;
static shmem_request_hook_type earlier_request_hook;
static shmem_startup_hook_type earlier_startup_hook;

/* What the current transaction asks for, if it commits; IDEM_WAKE_* */
static int	wake;
static List *cancelled = NIL;	/* jobs that are to be cancelled then */

/* Does it block databases until it ends? */
static bool has_blocked;

static void
request(void)
{
	if (earlier_request_hook)
		earlier_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Shared)));
	RequestNamedLWLockTranche(NAME, 1);
}

static void
startup(void)
{
	bool		found;

	if (earlier_startup_hook)
		earlier_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct(NAME, sizeof(Shared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(*shared));
		shared->lock = &(GetNamedLWLockTranche(NAME))->lock;
	}
	LWLockRelease(AddinShmemInitLock);
}

/* To be called while libraries are preloaded. */
void
idem_shmem_init(void)
{
	earlier_request_hook = shmem_request_hook;
	shmem_request_hook = request;
	earlier_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup;
}

/* The place, if it still is what it was handed out for. The lock is held. */
static WorkerPlace *
worker_place(IdemSlot slot)
{
	WorkerPlace *place = &shared->workers[slot.index];

	return place->generation == slot.generation ? place : NULL;
}

static JobPlace *
job_place(IdemSlot slot)
{
	JobPlace   *place = &shared->jobs[slot.index];

	return place->used && place->generation == slot.generation ? place : NULL;
}

static bool
is_blocked(Oid database)
{
	for (int i = 0; i < MAX_BLOCKS; i++)
	{
		if (shared->blocks[i].pid != 0 && shared->blocks[i].database == database)
			return true;
	}
	return false;
}

/* The lock is held. */
static void
ring(Bell *bell)
{
	bell->rung = true;
	if (bell->latch)
		SetLatch(bell->latch);
}

/*
 * Has somebody rung since this was called last with take? To be taken before the
 * process looks at what it may have been woken for, and asked before it sleeps.
 */
static bool
has_rung(Bell *bell, bool take)
{
	bool		rung;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	rung = bell->rung;
	if (take)
		bell->rung = false;
	LWLockRelease(shared->lock);
	return rung;
}

/* Was the launcher, or a worker, woken? As has_rung(). */
bool
idem_shmem_launcher_woken(bool take)
{
	return has_rung(&shared->launcher, take);
}

bool
idem_shmem_worker_woken(IdemSlot slot, bool take)
{
	return has_rung(&shared->workers[slot.index].bell, take);
}

static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher.latch = NULL;
	LWLockRelease(shared->lock);
}

/*
 * Become the launcher. Places that an earlier one has reserved, and whose
 * process has not come to take it, are freed: it will find that out.
 */
void
idem_shmem_attach_launcher(void)
{
	before_shmem_exit(detach_launcher, (Datum) 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher.latch = MyLatch;
	for (int i = 0; i < IDEM_MAX_WORKERS; i++)
	{
		WorkerPlace *place = &shared->workers[i];

		if (place->state == IDEM_WORKER_STARTING && place->pid == 0)
		{
			place->state = IDEM_WORKER_FREE;
			place->generation++;
		}
	}
	LWLockRelease(shared->lock);
}

/* Reserve a place for the worker of a database. */
IdemReservation
idem_shmem_reserve_worker(Oid database, IdemSlot *slot)
{
	IdemReservation result = IDEM_RESERVATION_FULL;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < IDEM_MAX_WORKERS; i++)
	{
		WorkerPlace *place = &shared->workers[i];

		if (place->state == IDEM_WORKER_FREE)
		{
			if (result == IDEM_RESERVATION_FULL)
				slot->index = i;
			result = IDEM_RESERVED;
		}
		else if (place->database == database)
		{
			result = IDEM_RESERVATION_EXISTS;
			break;
		}
	}
	if (result == IDEM_RESERVED && is_blocked(database))
		result = IDEM_RESERVATION_BLOCKED;
	if (result == IDEM_RESERVED)
	{
		WorkerPlace *place = &shared->workers[slot->index];

		place->state = IDEM_WORKER_STARTING;
		place->database = database;
		place->pid = 0;
		place->bell.latch = NULL;
		place->bell.rung = false;
		place->told_to_end = false;
		place->wants_place = false;
		slot->generation = ++place->generation;
	}
	LWLockRelease(shared->lock);
	return result;
}

/* Free the place of a worker that has ended or was not started. */
void
idem_shmem_release_worker(IdemSlot slot)
{
	WorkerPlace *place;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = worker_place(slot);
	if (place && place->pid == 0)
	{
		place->state = IDEM_WORKER_FREE;
		place->generation++;
	}
	LWLockRelease(shared->lock);
}

/* All places that are in use, into an array of IDEM_MAX_WORKERS; how many. */
int
idem_shmem_workers(IdemWorkerInfo *workers)
{
	int			count = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < IDEM_MAX_WORKERS; i++)
	{
		WorkerPlace *place = &shared->workers[i];

		if (place->state == IDEM_WORKER_FREE)
			continue;
		workers[count].slot.index = i;
		workers[count].slot.generation = place->generation;
		workers[count].database = place->database;
		workers[count].state = place->state;
		workers[count].pid = place->pid;
		count++;
	}
	LWLockRelease(shared->lock);
	return count;
}

/* Tell a worker to end. */
void
idem_shmem_terminate_worker(IdemSlot slot)
{
	WorkerPlace *place;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = worker_place(slot);
	if (place && place->pid != 0)
	{
		place->told_to_end = true;
		(void) kill(place->pid, SIGTERM);
	}
	LWLockRelease(shared->lock);
}

/*
 * Take the list of databases that may have got the extension: their number, or
 * *all. The array has room for IDEM_MAX_CHANGED.
 */
int
idem_shmem_take_changed(Oid *databases, bool *all)
{
	int			count;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	count = shared->nchanged;
	memcpy(databases, shared->changed, count * sizeof(Oid));
	*all = shared->all_changed;
	shared->nchanged = 0;
	shared->all_changed = false;
	LWLockRelease(shared->lock);
	return count;
}

/* Wake those who wait for a place. The lock is held. */
static void
announce_free_place(void)
{
	for (int i = 0; i < IDEM_MAX_WORKERS; i++)
	{
		if (shared->workers[i].wants_place)
			ring(&shared->workers[i].bell);
		shared->workers[i].wants_place = false;
	}
}

/*
 * A worker that ends has failed, unless it has said something else or was told to.
 * The places that it has reserved, and whose process has not come to take it, are
 * freed: a process that comes later finds that out.
 */
static void
detach_worker(int code, Datum arg)
{
	WorkerPlace *place = &shared->workers[DatumGetInt32(arg)];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (place->state == IDEM_WORKER_STARTING || place->state == IDEM_WORKER_RUNNING)
		place->state = place->told_to_end ? IDEM_WORKER_STOPPED : IDEM_WORKER_FAILED;
	place->pid = 0;
	place->bell.latch = NULL;
	for (int i = 0; i < IDEM_MAX_JOB_PROCESSES; i++)
	{
		JobPlace   *job = &shared->jobs[i];

		if (job->used && job->pid == 0 && job->job.database == place->database)
			job->used = false;
	}
	announce_free_place();
	ring(&shared->launcher);
	LWLockRelease(shared->lock);
}

/*
 * Take the place that was reserved for this process, and learn the database. To
 * be called before connecting to it. False if the place is taken back, or the
 * database is not to be connected to now.
 */
bool
idem_shmem_attach_worker(IdemSlot slot, Oid *database)
{
	WorkerPlace *place;
	bool		attached = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = worker_place(slot);
	if (place && place->state == IDEM_WORKER_STARTING && place->pid == 0)
	{
		if (is_blocked(place->database))
		{
			place->state = IDEM_WORKER_STOPPED;
			ring(&shared->launcher);
		}
		else
		{
			place->pid = MyProcPid;
			place->bell.latch = MyLatch;
			*database = place->database;
			attached = true;
		}
	}
	LWLockRelease(shared->lock);
	if (attached)
		on_shmem_exit(detach_worker, Int32GetDatum(slot.index));
	return attached;
}

/* Say that this worker has found the extension, or why it is going to end. */
void
idem_shmem_set_worker(IdemSlot slot, IdemWorkerState state)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->workers[slot.index].state = state;
	ring(&shared->launcher);
	LWLockRelease(shared->lock);
}

/* A free place for a job's process, -1 if limit are in use. The lock is held. */
static int
free_job_place(int limit)
{
	int			used = 0;
	int			index = -1;

	for (int i = 0; i < IDEM_MAX_JOB_PROCESSES; i++)
	{
		if (shared->jobs[i].used)
			used++;
		else if (index < 0)
			index = i;
	}
	return used < limit ? index : -1;
}

/* Reserve a place for a job's process, unless limit are in use. */
bool
idem_shmem_reserve_job(Oid database, int limit, IdemSlot *slot)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot->index = free_job_place(limit);
	if (slot->index >= 0)
	{
		JobPlace   *place = &shared->jobs[slot->index];

		place->used = true;
		place->pid = 0;
		memset(&place->job, 0, sizeof(place->job));
		place->job.database = database;
		slot->generation = ++place->generation;
	}
	LWLockRelease(shared->lock);
	return slot->index >= 0;
}

/*
 * Have this worker woken when a place for a job's process becomes free. False if
 * there is one now.
 */
bool
idem_shmem_want_place(IdemSlot worker, int limit)
{
	bool		wants_place;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	wants_place = free_job_place(limit) < 0;
	shared->workers[worker.index].wants_place = wants_place;
	LWLockRelease(shared->lock);
	return wants_place;
}

/* Say which job the place is for. */
void
idem_shmem_assign_job(IdemSlot slot, const IdemJobInfo *job)
{
	JobPlace   *place;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = job_place(slot);
	if (place)
		place->job = *job;
	LWLockRelease(shared->lock);
}

/* Free a place whose process was not started, or has ended without taking it. */
void
idem_shmem_release_job(IdemSlot slot)
{
	JobPlace   *place;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = job_place(slot);
	if (place && place->pid == 0)
	{
		place->used = false;
		announce_free_place();
	}
	LWLockRelease(shared->lock);
}

static void
detach_job(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->jobs[DatumGetInt32(arg)].used = false;
	announce_free_place();
	LWLockRelease(shared->lock);
}

/* As idem_shmem_attach_worker(), for the process of a job. */
bool
idem_shmem_attach_job(IdemSlot slot, IdemJobInfo *job)
{
	JobPlace   *place;
	bool		attached = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = job_place(slot);
	if (place && !is_blocked(place->job.database))
	{
		place->pid = MyProcPid;
		*job = place->job;
		attached = true;
	}
	LWLockRelease(shared->lock);
	if (attached)
		on_shmem_exit(detach_job, Int32GetDatum(slot.index));
	else
		idem_shmem_release_job(slot);
	return attached;
}

/* Cancel what the process of a job is running. False if there is no process. */
bool
idem_shmem_cancel_job(Oid database, int64 job_id)
{
	bool		found = false;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < IDEM_MAX_JOB_PROCESSES; i++)
	{
		JobPlace   *place = &shared->jobs[i];

		if (place->used && place->pid != 0 &&
			place->job.database == database && place->job.job_id == job_id)
		{
			(void) kill(place->pid, SIGINT);
			found = true;
		}
	}
	LWLockRelease(shared->lock);
	return found;
}

/* Add a database to the list for the launcher. */
static void
note_changed(Oid database)
{
	for (int i = 0; i < shared->nchanged; i++)
	{
		if (shared->changed[i] == database)
			return;
	}
	if (shared->nchanged == IDEM_MAX_CHANGED)
		shared->all_changed = true;
	else
		shared->changed[shared->nchanged++] = database;
}

/* Remove the blocks of this session, and let the launcher look again. */
static void
remove_blocks(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_BLOCKS; i++)
	{
		if (shared->blocks[i].pid == MyProcPid)
		{
			note_changed(shared->blocks[i].database);
			shared->blocks[i].pid = 0;
		}
	}
	ring(&shared->launcher);
	LWLockRelease(shared->lock);
	has_blocked = false;
}

static void
transaction_ends(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		ListCell   *lc;

		foreach(lc, cancelled)
			(void) idem_shmem_cancel_job(MyDatabaseId, *(int64 *) lfirst(lc));
	}
	cancelled = NIL;
	if (event == XACT_EVENT_COMMIT && wake != 0)
	{
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < IDEM_MAX_WORKERS; i++)
		{
			if ((wake & IDEM_WAKE_WORKER) && shared->workers[i].database == MyDatabaseId)
				ring(&shared->workers[i].bell);
		}
		if (wake & IDEM_WAKE_EXTENSION)
			note_changed(MyDatabaseId);
		if (wake & (IDEM_WAKE_EXTENSION | IDEM_WAKE_DATABASES))
			ring(&shared->launcher);
		LWLockRelease(shared->lock);
	}
	wake = 0;
	if (has_blocked)
		remove_blocks();
}

static void
register_callback(void)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(transaction_ends, NULL);
	registered = true;
}

/*
 * When the current transaction commits, wake those who have to do with what it
 * has done: IDEM_WAKE_*. After PREPARE TRANSACTION, they find out by themselves,
 * later.
 */
void
idem_shmem_wake_at_commit(int whom)
{
	if (!shared)
		return;
	register_callback();
	wake |= whom;
}

/*
 * When the current transaction commits, cancel what the process of a job of this
 * database is running. What a subtransaction has cancelled is the worker's to
 * pass on, since only part of that may be committed.
 */
void
idem_shmem_cancel_at_commit(int64 job_id)
{
	MemoryContext old_context;
	int64	   *job;

	if (!shared || GetCurrentTransactionNestLevel() > 1)
		return;
	register_callback();
	old_context = MemoryContextSwitchTo(TopTransactionContext);
	job = palloc(sizeof(int64));
	*job = job_id;
	cancelled = lappend(cancelled, job);
	MemoryContextSwitchTo(old_context);
}

/* Let none of our processes connect to a database. False if there is no room. */
bool
idem_shmem_block(Oid database)
{
	bool		blocked = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_BLOCKS && !blocked; i++)
	{
		if (shared->blocks[i].pid == 0)
		{
			shared->blocks[i].pid = MyProcPid;
			shared->blocks[i].database = database;
			blocked = true;
		}
	}
	LWLockRelease(shared->lock);
	return blocked;
}

/*
 * Undo idem_shmem_block(): now, or with at_end when the transaction ends, since
 * what it has done to the database cannot be seen before.
 */
void
idem_shmem_unblock(bool at_end)
{
	register_callback();
	if (at_end)
		has_blocked = true;
	else
		remove_blocks();
}

/*
 * Tell our processes in a database to end; returns how many there are. One that
 * has not started yet will see that the database is blocked.
 */
int
idem_shmem_terminate(Oid database)
{
	int			count = 0;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < IDEM_MAX_WORKERS; i++)
	{
		WorkerPlace *place = &shared->workers[i];

		if (place->state != IDEM_WORKER_FREE && place->database == database && place->pid != 0)
		{
			place->told_to_end = true;
			(void) kill(place->pid, SIGTERM);
			count++;
		}
	}
	for (int i = 0; i < IDEM_MAX_JOB_PROCESSES; i++)
	{
		JobPlace   *place = &shared->jobs[i];

		if (place->used && place->job.database == database && place->pid != 0)
		{
			(void) kill(place->pid, SIGTERM);
			count++;
		}
	}
	LWLockRelease(shared->lock);
	return count;
}
