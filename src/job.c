/*-------------------------------------------------------------------------
 *
 * job.c
 *	  One attempt at a queued merge, and the process for it.
 *
 * The process is connected as the role that has enqueued the job: session_user
 * is that role, its settings and those of the database hold, and nothing of the
 * session that has enqueued it does. So RESET ROLE leads nowhere, and deferred
 * triggers run as that role, too. Only our own statements
 * on the queue run as its owner.
 *
 * The merge and "succeeded" are committed in one transaction. So there is no
 * moment at which a job has had its effect and could be taken for one that has
 * not: a retry never follows a commit, with or without a batch id, whatever is
 * killed when.
 *
 * A failure is recorded in a transaction of its own. What this process cannot
 * record, since it cannot connect or does not live, the worker does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "job.h"
#include "shmem.h"

static void
report_cancelled(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("the job was cancelled")));
}

/*
 * Merge as the current user, and record the success, in the current transaction.
 * An error if the attempt was given up or cancelled meanwhile.
 */
void
idem_job_run(const IdemQueue *queue, const IdemAttempt *attempt)
{
	IdemSpiArgs arguments;
	Datum		result;
	bool		cancelled;
	bool		isnull;

	idem_spi_connect();
	idem_queue_hold(attempt->job_id, false);
	if (!idem_queue_load(queue, attempt, &arguments, &cancelled))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the attempt was given up before it has started"),
				 errdetail("Its process came too late: the job had been taken for interrupted.")));
	if (cancelled)
		report_cancelled();

	/*
	 * The function, not what is below it, so that the right to execute it is
	 * asked for. The types of the arguments are exactly the declared ones, so
	 * that no other function of that name is preferred.
	 */
	(void) idem_spi_execute(psprintf("SELECT pg_catalog.to_jsonb(m) FROM %s.idem_merge($1, $2, $3,"
									 " $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,"
									 " $17, $18, $19, $20) AS m", queue->schema),
							InvalidOid, &arguments, false);
	result = idem_spi_value(0, 1, CurrentMemoryContext, &isnull);

	/*
	 * What is deferred to the commit runs now: to record the success locks
	 * the row of the job, and idem_cancel() would have to wait for all that.
	 */
	idem_spi_execute_utility("SET CONSTRAINTS ALL IMMEDIATE");
	if (!idem_queue_succeed(queue, attempt, result))
		report_cancelled();
	idem_spi_finish();
}

/* Begin a transaction with a snapshot. */
static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * The merge, in a transaction; true if it is committed. Else *error is set. It can
 * be cancelled in here, and nowhere else: what comes before and after would not
 * record it.
 */
static bool
try_to_run(const IdemAttempt *attempt, MemoryContext context, ErrorData **error)
{
	volatile bool done = false;

	PG_TRY();
	{
		IdemQueue	queue;
		bool		found;

		begin();
		RESUME_CANCEL_INTERRUPTS();
		/* What nobody would do by hand but psql and the like. */
		if (StatementTimeout > 0)
			enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
		idem_spi_connect();
		found = idem_queue_find(&queue);
		if (found)
			idem_job_run(&queue, attempt);
		idem_spi_finish();
		commit();
		disable_timeout(STATEMENT_TIMEOUT, false);
		HOLD_CANCEL_INTERRUPTS();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		HOLD_CANCEL_INTERRUPTS();
		disable_all_timeouts(false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		MemoryContextSwitchTo(context);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	return done;
}

/* Record the failure, whatever the role's settings are. */
static void
record_failure(const IdemAttempt *attempt, const ErrorData *error)
{
	IdemQueue	queue;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = false;
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());
	idem_spi_connect();
	if (idem_queue_find(&queue))
		(void) idem_queue_fail(&queue, attempt, error->sqlerrcode, error->message);
	idem_spi_finish();
	commit();
}

/* Says in the context of every error which job it was. */
static void
job_error_context(void *arg)
{
	const IdemAttempt *attempt = arg;

	errcontext("job %lld, attempt %d", (long long) attempt->job_id, attempt->attempt);
}

/* The process of one attempt; its place in shared memory says which. */
void
idem_job_main(Datum arg)
{
	MemoryContext context;
	IdemSlot	slot;
	IdemJobInfo job;
	IdemAttempt attempt;
	ErrorData  *error = NULL;
	ErrorContextCallback error_context;

	memcpy(&slot, MyBgworkerEntry->bgw_extra, sizeof(slot));
	if (!idem_shmem_attach_job(slot, &job))
		proc_exit(0);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	HOLD_CANCEL_INTERRUPTS();
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(job.database, job.role, 0);

	context = AllocSetContextCreate(TopMemoryContext, "idempotent_ingest job",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);
	pgstat_report_activity(STATE_RUNNING,
						   psprintf("running job %lld, attempt %d",
									(long long) job.job_id, job.attempt));
	attempt.job_id = job.job_id;
	attempt.attempt = job.attempt;
	attempt.role = job.role;
	error_context.callback = job_error_context;
	error_context.arg = &attempt;
	error_context.previous = error_context_stack;
	error_context_stack = &error_context;
	if (!try_to_run(&attempt, context, &error))
		record_failure(&attempt, error);
	proc_exit(0);
}
