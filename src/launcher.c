/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Starts a worker in each database that has the extension.
 *
 * Only inside a database can be seen what extensions it has, so that a process
 * which is connected to none has to send a worker to look. The worker stays if it
 * finds the extension.
 *
 * What the launcher knows of a database:
 *
 *	UNKNOWN	a worker is to be sent as soon as there is a place for it
 *	STARTED	a worker has been sent, and looks or works
 *	ABSENT	there was no extension; looked again after RECHECK_SECONDS
 *	BACKOFF	the last worker has failed; started again at next_start
 *
 *	from		event											to
 *	(none)		database is listed in pg_database				UNKNOWN
 *	UNKNOWN		place reserved and process registered			STARTED
 *	UNKNOWN		a command has the database blocked, or no place	UNKNOWN
 *	STARTED		worker ends: no extension						ABSENT
 *	STARTED		the same, after CREATE or ALTER EXTENSION		UNKNOWN
 *	STARTED		worker ends: told to (setting, command)			UNKNOWN
 *	STARTED		worker ends otherwise, or never started			BACKOFF
 *	ABSENT		CREATE or ALTER EXTENSION committed there		UNKNOWN
 *	ABSENT		RECHECK_SECONDS have passed						UNKNOWN
 *	BACKOFF		next_start has come								UNKNOWN
 *	BACKOFF		CREATE or ALTER EXTENSION committed there		UNKNOWN
 *	any			not listed any more, a template, or does not
 *				allow connections: a worker is told to end		(none)
 *
 * With idempotent_ingest.worker off, no worker is sent, and those that run end by
 * themselves. At most MAX_LOOKING workers look at a time, so that a server with
 * many databases does not lose all of max_worker_processes to us. One that looks
 * for longer waits for a lock in its database: others do not wait for that.
 *
 * What workers are there is in shared memory, and outlives the launcher: one that
 * follows another which has failed finds them. A crash of any process ends all of
 * them, and the server starts the launcher again with an empty shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "guc.h"
#include "launcher.h"
#include "shmem.h"

/* When a launcher that has failed is started again. */
#define RESTART_SECONDS			5

/* After a failure the first wait, and the longest one. */
#define FIRST_BACKOFF_SECONDS	1
#define MAX_BACKOFF_SECONDS		300

#define RECHECK_SECONDS			600

/* How long to wait when PostgreSQL has no place for a process. */
#define START_RETRY_SECONDS		10

/* How many may look at a time; those that take longer are not counted. */
#define MAX_LOOKING				2
#define LOOKING_SECONDS			5

typedef enum Knowledge
{
	UNKNOWN,
	STARTED,
	ABSENT,
	BACKOFF
} Knowledge;

typedef struct Database
{
	Oid			oid;			/* hash key */
	Knowledge	knowledge;
	bool		listed;			/* in the latest look at pg_database */
	bool		changed;		/* since its worker was started */
	int			failures;		/* in a row */
	TimestampTz next_start;		/* when knowledge is ABSENT or BACKOFF */
	TimestampTz started_at;
	IdemSlot	slot;			/* when it is STARTED */
	BackgroundWorkerHandle *handle; /* of the worker, NULL if it was started
									 * by an earlier launcher */
} Database;

static HTAB *databases;

/* Find what is known of a database; with create, there is an entry then. */
static Database *
lookup(Oid oid, bool create)
{
	bool		found;
	Database   *database = hash_search(databases, &oid, create ? HASH_ENTER : HASH_FIND, &found);

	if (create && !found)
	{
		memset(database, 0, sizeof(*database));
		database->oid = oid;
	}
	return database;
}

/* Go from STARTED to something else. */
static void
worker_has_ended(Database *database, IdemWorkerState outcome)
{
	TimestampTz now = GetCurrentTimestamp();

	if (database->handle)
		pfree(database->handle);
	database->handle = NULL;
	switch (outcome)
	{
		case IDEM_WORKER_ABSENT:
			/* What has changed since then, the worker may not have seen. */
			database->knowledge = database->changed ? UNKNOWN : ABSENT;
			database->failures = 0;
			database->next_start = TimestampTzPlusMilliseconds(now, RECHECK_SECONDS * 1000L);
			break;
		case IDEM_WORKER_STOPPED:
			database->knowledge = UNKNOWN;
			database->failures = 0;
			break;
		default:
			if (TimestampDifferenceExceeds(database->started_at, now, MAX_BACKOFF_SECONDS * 1000))
				database->failures = 0;
			database->knowledge = BACKOFF;
			database->next_start =
				TimestampTzPlusMilliseconds(now, 1000L *
											Min(MAX_BACKOFF_SECONDS,
												FIRST_BACKOFF_SECONDS << Min(database->failures, 20)));
			database->failures++;
			break;
	}
}

/*
 * Take note of the workers that have ended. Returns how many are looking for the
 * extension, and have been for a short time.
 */
static int
look_at_workers(void)
{
	static IdemWorkerInfo workers[IDEM_MAX_WORKERS];
	int			count = idem_shmem_workers(workers);
	int			looking = 0;
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < count; i++)
	{
		IdemWorkerInfo *worker = &workers[i];
		Database   *database = lookup(worker->database, true);
		pid_t		pid;

		if (worker->state == IDEM_WORKER_STARTING || worker->state == IDEM_WORKER_RUNNING)
		{
			database->knowledge = STARTED;
			database->slot = worker->slot;
			/* The process may have ended before it has taken its place. */
			if (worker->pid != 0 || database->handle == NULL ||
				GetBackgroundWorkerPid(database->handle, &pid) != BGWH_STOPPED)
			{
				if (worker->state == IDEM_WORKER_STARTING &&
					!TimestampDifferenceExceeds(database->started_at, now, LOOKING_SECONDS * 1000))
					looking++;
				continue;
			}
			worker->state = IDEM_WORKER_FAILED;
		}
		if (worker->pid != 0)
			continue;			/* about to end, and will wake us */
		idem_shmem_release_worker(worker->slot);
		worker_has_ended(database, worker->state);
	}
	return looking;
}

/* The extension may have come to a database, or to the reach of its worker. */
static void
note_change(Database *database)
{
	if (database->knowledge == STARTED)
		database->changed = true;
	else
		database->knowledge = UNKNOWN;
}

/* Look again where the extension may have come to. */
static void
look_at_changes(void)
{
	Oid			changed[IDEM_MAX_CHANGED];
	bool		all;
	int			count = idem_shmem_take_changed(changed, &all);
	HASH_SEQ_STATUS scan;
	Database   *database;

	for (int i = 0; i < count; i++)
	{
		database = lookup(changed[i], false);
		if (database)
			note_change(database);
	}
	if (!all)
		return;
	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		if (database->knowledge != BACKOFF)
			note_change(database);
	}
}

/*
 * Read the list of databases. Workers of those that are not for us (any more)
 * are told to end.
 */
static void
look_at_databases(void)
{
	HASH_SEQ_STATUS scan;
	Database   *database;
	Relation	catalog;
	SysScanDesc rows;
	HeapTuple	row;

	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
		database->listed = false;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	catalog = table_open(DatabaseRelationId, AccessShareLock);
	rows = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	while ((row = systable_getnext(rows)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(row);

		/* A limit below -1: DROP DATABASE was interrupted. */
		if (form->datallowconn && !form->datistemplate && form->datconnlimit >= -1)
			lookup(form->oid, true)->listed = true;
	}
	systable_endscan(rows);
	table_close(catalog, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();

	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		if (database->listed)
			continue;
		if (database->knowledge == STARTED)
			idem_shmem_terminate_worker(database->slot);
		else
			(void) hash_search(databases, &database->oid, HASH_REMOVE, NULL);
	}
}

/* Say once, not each time, that max_worker_processes is too low. */
static void
report_no_process(void)
{
	static bool reported = false;

	if (!reported)
		ereport(LOG,
				(errmsg("could not start a worker of extension \"idempotent_ingest\""),
				 errhint("Consider increasing the configuration parameter \"max_worker_processes\".")));
	reported = true;
}

/* Start a worker; false if there is no place for its process. */
static bool
start_worker(Database *database)
{
	BackgroundWorker process = {0};
	MemoryContext context;
	bool		registered;

	switch (idem_shmem_reserve_worker(database->oid, &database->slot))
	{
		case IDEM_RESERVED:
			break;
		case IDEM_RESERVATION_EXISTS:
		case IDEM_RESERVATION_BLOCKED:
			return true;		/* we will be woken */
		case IDEM_RESERVATION_FULL:
			return false;
	}
	process.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	process.bgw_start_time = BgWorkerStart_RecoveryFinished;
	process.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(process.bgw_library_name, "idempotent_ingest", sizeof(process.bgw_library_name));
	strlcpy(process.bgw_function_name, "idem_worker_main", sizeof(process.bgw_function_name));
	strlcpy(process.bgw_name, "idempotent_ingest worker", sizeof(process.bgw_name));
	strlcpy(process.bgw_type, "idempotent_ingest worker", sizeof(process.bgw_type));
	memcpy(process.bgw_extra, &database->slot, sizeof(database->slot));
	process.bgw_notify_pid = MyProcPid;

	context = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&process, &database->handle);
	MemoryContextSwitchTo(context);
	if (!registered)
	{
		idem_shmem_release_worker(database->slot);
		database->handle = NULL;
		return false;
	}
	database->knowledge = STARTED;
	database->changed = false;
	database->started_at = GetCurrentTimestamp();
	return true;
}

/*
 * Start workers where they are wanted, looking being the number of those that
 * look already. Returns how many milliseconds to wait at most before the next
 * time.
 */
static long
start_workers(int looking)
{
	long		timeout = idem_guc_naptime * 1000L;
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS scan;
	Database   *database;

	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		if (!database->listed || database->knowledge == STARTED)
			continue;
		if (database->knowledge != UNKNOWN)
		{
			/* One that is too far away was set before the clock was set back. */
			if (database->next_start > now &&
				!TimestampDifferenceExceeds(now, database->next_start, 1000 *
											Max(MAX_BACKOFF_SECONDS, RECHECK_SECONDS)))
			{
				timeout = Min(timeout, TimestampDifferenceMilliseconds(now, database->next_start));
				continue;
			}
			database->knowledge = UNKNOWN;
		}
		if (looking >= MAX_LOOKING)
		{
			/* When one of them is done, we are woken. */
			timeout = Min(timeout, LOOKING_SECONDS * 1000L);
			continue;
		}
		if (start_worker(database))
		{
			if (database->knowledge == STARTED)
				looking++;
		}
		else
		{
			report_no_process();
			hash_seq_term(&scan);
			return Min(timeout, START_RETRY_SECONDS * 1000L);
		}
	}
	return Max(timeout, 1);
}

/* To be called while libraries are preloaded. */
void
idem_launcher_register(void)
{
	BackgroundWorker process = {0};

	process.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	process.bgw_start_time = BgWorkerStart_RecoveryFinished;
	process.bgw_restart_time = RESTART_SECONDS;
	strlcpy(process.bgw_library_name, "idempotent_ingest", sizeof(process.bgw_library_name));
	strlcpy(process.bgw_function_name, "idem_launcher_main", sizeof(process.bgw_function_name));
	strlcpy(process.bgw_name, "idempotent_ingest launcher", sizeof(process.bgw_name));
	strlcpy(process.bgw_type, "idempotent_ingest launcher", sizeof(process.bgw_type));
	RegisterBackgroundWorker(&process);
}

void
idem_launcher_main(Datum arg)
{
	HASHCTL		control = {0};

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(Database);
	databases = hash_create("idempotent_ingest databases", 64, &control, HASH_ELEM | HASH_BLOBS);
	idem_shmem_attach_launcher();

	for (;;)
	{
		long		timeout = idem_guc_naptime * 1000L;
		int			looking;

		CHECK_FOR_INTERRUPTS();
		(void) idem_shmem_launcher_woken(true);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		pgstat_report_activity(STATE_RUNNING, "looking at databases and workers");
		looking = look_at_workers();
		look_at_changes();
		look_at_databases();
		if (idem_guc_worker)
			timeout = start_workers(looking);
		pgstat_report_activity(STATE_IDLE, idem_guc_worker ?
							   "waiting for changes of databases and extensions" :
							   "switched off by idempotent_ingest.worker");
		/* What has set the latch meanwhile may have been reset: see shmem.c. */
		CHECK_FOR_INTERRUPTS();
		if (!ConfigReloadPending && !idem_shmem_launcher_woken(false))
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
