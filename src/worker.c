/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The worker of one database.
 *
 * The worker takes jobs from the queue and starts a process for each (job.c),
 * as many as idempotent_ingest.max_workers allows for all databases; records how
 * they ended if they could not; and once in a while cleans up. It runs our own
 * statements only, never a merge: nothing that a user has defined can stop it or
 * run with its rights.
 *
 * Each piece of work is one transaction, which begins by looking whether the
 * extension still is there, and locks it so that it stays. An error ends
 * the process; the launcher starts another one after a while. Whatever was under
 * way then is found in the table and in shared memory: there is nothing here that
 * must not be lost. Only an error of maintenance does not: jobs go on.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "guc.h"
#include "ledger.h"
#include "maintenance.h"
#include "queue.h"
#include "security.h"
#include "shmem.h"
#include "worker.h"

/* How many jobs one transaction takes. */
#define TAKE_AT_ONCE		16

/*
 * How long to wait when PostgreSQL has no place for a process, or somebody else has
 * the row of a job locked, in milliseconds.
 */
#define RETRY				1000

/* A job that this worker has taken. */
typedef struct StartedJob
{
	IdemAttempt attempt;		/* first: the list is one of IdemAttempts */
	IdemSlot	slot;
	BackgroundWorkerHandle *handle; /* NULL: no process could be started */
	bool		ended;			/* the process has, or was not started */
} StartedJob;

static IdemSlot my_slot;
static List *started = NIL;		/* of StartedJob; it and they live in
								 * long_lived */
static MemoryContext long_lived;
static MemoryContext scratch;	/* reset in each round */

/* End, with a reason from which the launcher knows when to look again. */
static void
leave(IdemWorkerState outcome)
{
	idem_shmem_set_worker(my_slot, outcome);
	proc_exit(0);
}

/*
 * Begin a transaction of ours, with an SPI connection, and find the queue. If
 * there is none any more, the worker ends. The current memory context is scratch
 * here and after the commit.
 */
static void
begin(IdemQueue *queue, const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(scratch);
	PushActiveSnapshot(GetTransactionSnapshot());
	idem_spi_connect();
	pgstat_report_activity(STATE_RUNNING, activity);
	if (!idem_queue_find(queue))
	{
		idem_spi_finish();
		PopActiveSnapshot();
		CommitTransactionCommand();
		leave(IDEM_WORKER_ABSENT);
	}
}

static void
commit(void)
{
	idem_spi_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(scratch);
	pgstat_report_stat(false);
}

/* Why a job's role cannot be connected as; NULL if it can. Sets *sqlstate. */
static char *
refusal(Oid role, int *sqlstate)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	char	   *reason = NULL;

	if (!HeapTupleIsValid(tuple))
	{
		*sqlstate = ERRCODE_UNDEFINED_OBJECT;
		return "the role was dropped";
	}
	if (!((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin)
	{
		*sqlstate = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		reason = psprintf("role \"%s\" is not permitted to log in",
						  NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname));
	}
	else if (database_aclcheck_compat(MyDatabaseId, role, ACL_CONNECT) != ACLCHECK_OK)
	{
		*sqlstate = ERRCODE_INSUFFICIENT_PRIVILEGE;
		reason = psprintf("role \"%s\" does not have the CONNECT privilege on the database",
						  NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname));
	}
	ReleaseSysCache(tuple);
	return reason;
}

/* Has the process of a job ended, and we have not seen it yet? */
static bool
process_has_ended(void)
{
	ListCell   *lc;
	pid_t		pid;

	foreach(lc, started)
	{
		StartedJob *job = lfirst(lc);

		if (!job->ended && GetBackgroundWorkerPid(job->handle, &pid) == BGWH_STOPPED)
			return true;
	}
	return false;
}

/*
 * Look after processes that have ended, and record what they could not. False if
 * that cannot be done for all of them now.
 */
static bool
reap(void)
{
	List	   *ended = NIL;
	List	   *recorded = NIL;
	ListCell   *lc;
	IdemQueue	queue;
	pid_t		pid;

	foreach(lc, started)
	{
		StartedJob *job = lfirst(lc);

		if (!job->ended)
			job->ended = GetBackgroundWorkerPid(job->handle, &pid) == BGWH_STOPPED;
		if (job->ended)
			ended = lappend(ended, job);
	}
	if (ended == NIL)
		return true;
	begin(&queue, "recording the end of jobs");
	foreach(lc, ended)
	{
		StartedJob *job = lfirst(lc);

		if (!idem_queue_lock(&queue, &job->attempt))
			continue;
		if (job->handle == NULL)
			idem_queue_give_back(&queue, &job->attempt);
		else
			(void) idem_queue_fail(&queue, &job->attempt, ERRCODE_CRASH_SHUTDOWN,
								   "the process of the job has ended without a result; the server log has the reason");
		recorded = lappend(recorded, job);
	}
	commit();
	foreach(lc, ended)
		idem_shmem_release_job(((StartedJob *) lfirst(lc))->slot);
	foreach(lc, recorded)
	{
		StartedJob *job = lfirst(lc);

		idem_queue_let_go(job->attempt.job_id);
		started = list_delete_ptr(started, job);
		if (job->handle)
			pfree(job->handle);
		pfree(job);
	}
	return list_length(recorded) == list_length(ended);
}

/*
 * Cancel what is running and shall not. Also the processes that an earlier worker
 * has started.
 */
static void
cancel(void)
{
	IdemQueue	queue;
	ListCell   *lc;

	begin(&queue, "looking for jobs to be cancelled");
	foreach(lc, idem_queue_running(&queue, InvalidOid, true))
		(void) idem_shmem_cancel_job(MyDatabaseId, ((IdemAttempt *) lfirst(lc))->job_id);
	commit();
}

/* Give up what nobody runs. False if that cannot be done for all of it now. */
static bool
reclaim(void)
{
	IdemQueue	queue;
	bool		complete;

	begin(&queue, "looking for jobs that were interrupted");
	complete = idem_queue_reclaim(&queue, InvalidOid, started);
	idem_queue_fail_roleless(&queue);
	commit();
	return complete;
}

/* Remove what nobody asks for any more. */
static void
expire(void)
{
	IdemQueue	queue;
	bool		more;

	do
	{
		CHECK_FOR_INTERRUPTS();
		begin(&queue, "removing old jobs");
		more = idem_queue_expire(&queue);
		commit();
	} while (more);
}

/*
 * Do one step of what CALL idem_maintain() does, in the round that began at the
 * given time. False if there is no more to do. An error ends the round and not the
 * process, lest jobs wait for what only the ledger suffers from.
 */
static bool
maintain(TimestampTz began)
{
	volatile bool more = false;

	PG_TRY();
	{
		IdemMaintenanceCounts counts = {0};
		IdemQueue	queue;

		begin(&queue, "maintaining the ledger");
		more = idem_maintenance_step(idem_ledger_open_in(queue.schema_oid), began, &counts);
		commit();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		more = false;
		QueryCancelPending = false;
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		MemoryContextSwitchTo(scratch);
		pgstat_report_stat(false);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	return more;
}

/*
 * Start the process of a job. False if PostgreSQL has no place for one; then reap()
 * gives the job back.
 */
static bool
start_process(const IdemAttempt *attempt, IdemSlot slot)
{
	BackgroundWorker process = {0};
	IdemJobInfo info = {0};
	StartedJob *job;
	MemoryContext context;

	info.database = MyDatabaseId;
	info.role = attempt->role;
	info.job_id = attempt->job_id;
	info.attempt = attempt->attempt;
	idem_shmem_assign_job(slot, &info);

	process.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	process.bgw_start_time = BgWorkerStart_RecoveryFinished;
	process.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(process.bgw_library_name, "idempotent_ingest", sizeof(process.bgw_library_name));
	strlcpy(process.bgw_function_name, "idem_job_main", sizeof(process.bgw_function_name));
	snprintf(process.bgw_name, sizeof(process.bgw_name), "idempotent_ingest job %lld",
			 (long long) attempt->job_id);
	strlcpy(process.bgw_type, "idempotent_ingest job", sizeof(process.bgw_type));
	memcpy(process.bgw_extra, &slot, sizeof(slot));
	process.bgw_notify_pid = MyProcPid;

	context = MemoryContextSwitchTo(long_lived);
	job = palloc0(sizeof(StartedJob));
	job->attempt = *attempt;
	job->slot = slot;
	job->ended = !RegisterDynamicBackgroundWorker(&process, &job->handle);
	started = lappend(started, job);
	MemoryContextSwitchTo(context);
	return !job->ended;
}

/* Say once, not each time, that max_worker_processes is too low. */
static void
report_no_process(void)
{
	static bool reported = false;

	if (!reported)
		ereport(LOG,
				(errmsg("could not start a process for a queued job"),
				 errhint("Consider increasing the configuration parameter \"max_worker_processes\".")));
	reported = true;
}

/*
 * Take jobs that are due, and start a process for each. Returns how many
 * milliseconds to wait at most before the next time.
 */
static long
start_jobs(void)
{
	long		naptime = idem_guc_naptime * 1000L;
	IdemSlot	slots[TAKE_AT_ONCE];
	int			nslots = 0;
	int			used = 0;
	IdemQueue	queue;
	List	   *taken;
	ListCell   *lc;
	bool		all_started = true;
	TimestampTz next;
	bool		has_next = false;

	if (idem_shmem_want_place(my_slot, idem_guc_max_workers))
		return naptime;

	/*
	 * The attempts are committed before any of them starts. The places are
	 * those of all databases: they are not held while we wait for the
	 * extension.
	 */
	begin(&queue, "taking jobs");
	while (nslots < TAKE_AT_ONCE &&
		   idem_shmem_reserve_job(MyDatabaseId, idem_guc_max_workers, &slots[nslots]))
		nslots++;
	taken = idem_queue_take(&queue, InvalidOid, nslots);
	foreach(lc, taken)
	{
		IdemAttempt *attempt = lfirst(lc);
		int			sqlstate;
		char	   *reason = refusal(attempt->role, &sqlstate);

		if (reason)
		{
			(void) idem_queue_fail(&queue, attempt, sqlstate, reason);
			attempt->role = InvalidOid;
		}
		else
			idem_queue_hold(attempt->job_id, true);
	}
	if (list_length(taken) < nslots)
		has_next = idem_queue_next(&queue, RETRY, &next);
	commit();

	foreach(lc, taken)
	{
		IdemAttempt *attempt = lfirst(lc);

		if (OidIsValid(attempt->role))
			all_started &= start_process(attempt, slots[used++]);
	}
	for (int i = used; i < nslots; i++)
		idem_shmem_release_job(slots[i]);
	if (!all_started)
	{
		report_no_process();
		(void) reap();
		return Min(naptime, RETRY);
	}
	if (list_length(taken) == nslots)
		return 0;
	return has_next ?
		Min(naptime, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next)) : naptime;
}

/* Get the settings of the database once more, as the current snapshot has them. */
static void
apply_settings(void)
{
	Relation	settings = table_open(DbRoleSettingRelationId, AccessShareLock);
	Snapshot	snapshot = GetActiveSnapshot();
	Oid			role = GetSessionUserId();

	ApplySetting(snapshot, MyDatabaseId, role, settings, PGC_S_DATABASE_USER);
	ApplySetting(snapshot, InvalidOid, role, settings, PGC_S_USER);
	ApplySetting(snapshot, MyDatabaseId, InvalidOid, settings, PGC_S_DATABASE);
	ApplySetting(snapshot, InvalidOid, InvalidOid, settings, PGC_S_GLOBAL);
	table_close(settings, AccessShareLock);
}

/* Have the settings of the database been changed since the worker has got them? */
static bool
settings_have_changed(void)
{
	static char *known = NULL;
	IdemSpiArgs args = {0};
	IdemIdentity saved;
	IdemQueue	queue;
	char	   *settings;

	begin(&queue, "looking at the settings of the database");
	/* They can have been changed since it has connected. */
	if (known == NULL)
		apply_settings();
	idem_security_push(&saved, queue.owner);
	idem_spi_arg(&args, OIDOID, ObjectIdGetDatum(MyDatabaseId), false);
	idem_spi_arg(&args, OIDOID, ObjectIdGetDatum(GetSessionUserId()), false);
	(void) idem_spi_execute("SELECT coalesce(pg_catalog.jsonb_agg(s ORDER BY setdatabase, setrole), '[]')"
							" FROM pg_catalog.pg_db_role_setting s"
							" WHERE setdatabase IN (0, $1) AND setrole IN (0, $2)",
							InvalidOid, &args, true);
	idem_security_pop(&saved);
	settings = idem_spi_text(0, 1, scratch);
	commit();
	if (known == NULL)
		known = MemoryContextStrdup(long_lived, settings);
	return strcmp(known, settings) != 0;
}

/* Settings of users that must not keep the worker from its work. */
static void
override_settings(void)
{
	static const char *const settings[][2] = {
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"idle_in_transaction_session_timeout", "0"},
		{"lock_timeout", "0"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"}	/* not in every major */
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);
}

void
idem_worker_main(Datum arg)
{
	Oid			database;
	TimestampTz last_clean_up = 0;
	bool		has_interrupted = false;
	bool		has_maintenance = false;
	bool		is_outdated = false;
	IdemQueue	queue;

	memcpy(&my_slot, MyBgworkerEntry->bgw_extra, sizeof(my_slot));
	if (!idem_shmem_attach_worker(my_slot, &database))
		proc_exit(0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	override_settings();

	long_lived = AllocSetContextCreate(TopMemoryContext, "idempotent_ingest worker",
									   ALLOCSET_DEFAULT_SIZES);
	scratch = AllocSetContextCreate(long_lived, "idempotent_ingest worker scratch",
									ALLOCSET_DEFAULT_SIZES);
	begin(&queue, "looking for the extension");
	commit();
	idem_shmem_set_worker(my_slot, IDEM_WORKER_RUNNING);

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		bool		has_ended;
		long		timeout;

		CHECK_FOR_INTERRUPTS();
		(void) idem_shmem_worker_woken(my_slot, true);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (!idem_guc_worker)
			leave(IDEM_WORKER_STOPPED);

		MemoryContextReset(scratch);
		has_ended = !reap();
		/* The clock can have been set back. */
		if (now < last_clean_up ||
			TimestampDifferenceExceeds(last_clean_up, now, idem_guc_naptime * 1000))
		{
			is_outdated = settings_have_changed();
			if (!is_outdated)
				expire();
			last_clean_up = now;
			has_interrupted = true;
			has_maintenance = !is_outdated;
		}

		/*
		 * A new worker gets the settings. Jobs that are starting need this
		 * one.
		 */
		if (is_outdated && started == NIL)
			leave(IDEM_WORKER_STOPPED);
		if (has_interrupted)
			has_interrupted = !reclaim();
		cancel();
		timeout = start_jobs();
		if (has_ended || has_interrupted)
			timeout = Min(timeout, RETRY);
		/* Jobs do not wait for more than one step of it. */
		if (has_maintenance)
		{
			has_maintenance = maintain(last_clean_up);
			if (has_maintenance)
				timeout = Min(timeout, idem_guc_maintenance_delay);
		}

		pgstat_report_activity(STATE_IDLE,
							   started == NIL ? "waiting for jobs" :
							   psprintf("waiting for jobs; running: %d", list_length(started)));
		/* What has set the latch meanwhile may have been reset: see shmem.c. */
		CHECK_FOR_INTERRUPTS();
		if (timeout > 0 && !ConfigReloadPending && !process_has_ended() &&
			!idem_shmem_worker_woken(my_slot, false))
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
