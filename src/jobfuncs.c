/*-------------------------------------------------------------------------
 *
 * jobfuncs.c
 *	  The functions that people call to have merges run later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "idempotent_ingest.h"
#include "job.h"
#include "ledger.h"
#include "merge.h"
#include "queue.h"
#include "shmem.h"
#include "spi_util.h"
#include "sqlfuncs.h"

/* How often idem_wait() looks, at first and later, in milliseconds. */
#define FIRST_POLL	2
#define LAST_POLL	200

PG_FUNCTION_INFO_V1(idem_enqueue);
PG_FUNCTION_INFO_V1(idem_cancel);
PG_FUNCTION_INFO_V1(idem_wait);
PG_FUNCTION_INFO_V1(idem_run_jobs);
PG_FUNCTION_INFO_V1(idem_job_guard);

/*
 * A trigger on the queue's table: whoever writes a job can have it run as anybody,
 * so that rights on the table, those of pg_write_all_data perhaps, are not enough.
 */
Datum
idem_job_guard(PG_FUNCTION_ARGS)
{
	Relation	table;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("idem_job_guard() can only be called as a trigger")));
	table = ((TriggerData *) fcinfo->context)->tg_relation;
	if (!class_ownercheck_compat(RelationGetRelid(table), GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", RelationGetRelationName(table)),
				 errdetail("A job is run as the role that has enqueued it."),
				 errhint("Use idem_enqueue() and idem_cancel().")));
	return PointerGetDatum(NULL);
}

static void
open_queue(FunctionCallInfo fcinfo, IdemQueue *queue)
{
	idem_queue_open(get_func_namespace(fcinfo->flinfo->fn_oid), queue);
}

/* The process of a job logs in as its role. */
static void
require_login(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		can_login = HeapTupleIsValid(tuple) &&
	((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (!can_login)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("role \"%s\" is not permitted to log in",
						GetUserNameFromId(role, true)),
				 errdetail("A queued merge runs in a process that is connected as the role that has enqueued it."),
				 errhint("Enqueue it as a role with LOGIN, after RESET ROLE for example.")));
}

/*
 * The job must find the rows: in another process, and after a crash too, which
 * it survives. Otherwise the batch would be recorded as one of no rows.
 */
static void
require_durable(Oid staging)
{
	List	   *members = find_all_inheritors(staging, AccessShareLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
	{
		char	   *name = get_rel_name(lfirst_oid(lc));
		char		persistence = get_rel_persistence(lfirst_oid(lc));

		if (persistence == RELPERSISTENCE_TEMP)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot enqueue a merge of temporary relation \"%s\"", name),
					 errdetail("Another process will run it, which cannot read temporary relations of this session."),
					 errhint("Load the rows into a permanent table.")));
		if (persistence == RELPERSISTENCE_UNLOGGED)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot enqueue a merge of unlogged table \"%s\"", name),
					 errdetail("A crash would empty it, and the job would be run all the same."),
					 errhint("Load the rows into a permanent table that is logged.")));
	}
	list_free(members);
}

Datum
idem_enqueue(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"run_at", "max_attempts", "priority"};
	IdemRequest request;
	IdemExplanation explanation;
	IdemQueue	queue;
	NullableDatum arguments[IDEM_MERGE_ARGUMENTS];
	int32		max_attempts;
	int64		job_id;

	idem_sqlfuncs_get_request(fcinfo, IDEM_MERGE_ARGUMENTS, lengthof(names), &request);
	for (int i = 0; i < lengthof(names); i++)
		idem_sqlfuncs_require_argument(fcinfo, IDEM_MERGE_ARGUMENTS + i, names[i], true);
	max_attempts = PG_GETARG_INT32(IDEM_MERGE_ARGUMENTS + 1);
	if (max_attempts < 1 || max_attempts > IDEM_MAX_ATTEMPTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_attempts\" is out of range: %d", max_attempts),
				 errhint("Allowed values: 1 to %d.", IDEM_MAX_ATTEMPTS)));
	PreventCommandIfReadOnly("idem_enqueue()");
	require_login(GetUserId());

	/* All that can be checked now. */
	idem_merge_explain(idem_ledger_open(fcinfo->flinfo->fn_oid), &request, &explanation);
	require_durable(request.staging);

	open_queue(fcinfo, &queue);
	for (int i = 0; i < IDEM_MERGE_ARGUMENTS; i++)
	{
		arguments[i].value = PG_GETARG_DATUM(i);
		arguments[i].isnull = PG_ARGISNULL(i);
	}
	idem_spi_connect();
	job_id = idem_queue_enqueue(&queue, arguments, PG_GETARG_TIMESTAMPTZ(IDEM_MERGE_ARGUMENTS),
								max_attempts, PG_GETARG_INT32(IDEM_MERGE_ARGUMENTS + 2));
	idem_spi_finish();
	idem_shmem_wake_at_commit(IDEM_WAKE_WORKER);
	PG_RETURN_INT64(job_id);
}

/*
 * Look at a job that the current user may see. Somebody else's is as good as
 * none.
 */
static void
look(const IdemQueue *queue, int64 job_id, IdemJobState *state)
{
	if (!idem_queue_look(queue, job_id, state) ||
		!has_privs_of_role(GetUserId(), state->role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job %lld does not exist", (long long) job_id),
				 errhint("The view idem_jobs lists the jobs of your roles.")));
}

Datum
idem_cancel(PG_FUNCTION_ARGS)
{
	IdemQueue	queue;
	IdemJobState state;
	int64		job_id;
	bool		cancelled;

	idem_sqlfuncs_require_argument(fcinfo, 0, "job", false);
	job_id = PG_GETARG_INT64(0);
	PreventCommandIfReadOnly("idem_cancel()");
	open_queue(fcinfo, &queue);
	idem_spi_connect();
	look(&queue, job_id, &state);
	cancelled = idem_queue_cancel(&queue, job_id);
	idem_spi_finish();
	idem_shmem_wake_at_commit(IDEM_WAKE_WORKER);
	if (cancelled)
		idem_shmem_cancel_at_commit(job_id);
	PG_RETURN_BOOL(cancelled);
}

static void
set_text(Datum *value, bool *isnull, const char *text)
{
	*isnull = text == NULL;
	*value = text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* Microseconds of an interval, as age arithmetic has them. */
static int64
interval_microseconds(const Interval *interval)
{
	return interval->time +
		(interval->day + interval->month * (int64) DAYS_PER_MONTH) * USECS_PER_DAY;
}

/*
 * Look again and again, each time under a new snapshot, until the job has ended
 * or the time is up.
 */
Datum
idem_wait(PG_FUNCTION_ARGS)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		limited = !PG_ARGISNULL(1);
	int64		limit = limited ? interval_microseconds(PG_GETARG_INTERVAL_P(1)) : 0;
	long		poll = FIRST_POLL;
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch = AllocSetContextCreate(context, "idem_wait", ALLOCSET_SMALL_SIZES);
	int64		job_id;
	TupleDesc	tupdesc;
	IdemQueue	queue;
	IdemJobState state;
	Datum		values[6];
	bool		nulls[6] = {0};
	HeapTuple	tuple;

	idem_sqlfuncs_require_argument(fcinfo, 0, "job", false);
	job_id = PG_GETARG_INT64(0);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (;;)
	{
		int64		elapsed;

		MemoryContextReset(scratch);
		MemoryContextSwitchTo(scratch);
		open_queue(fcinfo, &queue);
		idem_spi_connect();
		look(&queue, job_id, &state);
		idem_spi_finish();
		if (state.ended)
			break;
		if (state.is_ours)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot wait for job %lld in the transaction that has enqueued it",
							(long long) job_id),
					 errdetail("The job can be seen by others, and run, when the transaction is committed."),
					 errhint("Commit first, then call idem_wait().")));
		elapsed = GetCurrentTimestamp() - start;
		if (limited && elapsed >= limit)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 limited ? Max(1, Min(poll, (limit - elapsed) / 1000)) : poll,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		poll = Min(poll * 2, LAST_POLL);
	}
	MemoryContextSwitchTo(context);
	values[0] = Int64GetDatum(job_id);
	set_text(&values[1], &nulls[1], state.status);
	values[2] = Int32GetDatum(state.attempts);
	set_text(&values[3], &nulls[3], state.sqlstate);
	set_text(&values[4], &nulls[4], state.message);
	values[5] = state.result;
	nulls[5] = state.result_null;
	tuple = heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls);
	MemoryContextDelete(scratch);
	PG_RETURN_DATUM(HeapTupleGetDatum(tuple));
}

/*
 * Run an attempt in a subtransaction, and commit it. False if it has failed: then
 * its effects are undone, the current transaction is a clean one, and *error is a
 * copy in the current memory context.
 */
static bool
try_to_run(const IdemQueue *queue, const IdemAttempt *attempt, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool in_subtransaction = true;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		idem_job_run(queue, attempt);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		in_subtransaction = false;
		/* What is deferred to the commit can fail as well. */
		idem_spi_commit();
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		if (in_subtransaction)
		{
			RollbackAndReleaseCurrentSubTransaction();
			CurrentResourceOwner = owner;
		}
		MemoryContextSwitchTo(context);
	}
	PG_END_TRY();
	return done;
}

/*
 * Record that an attempt has failed, in the current transaction. The next one, if
 * there is one, is the worker's to start when its time comes.
 */
static void
fail(const IdemQueue *queue, const IdemAttempt *attempt, const ErrorData *error)
{
	idem_spi_connect();
	if (!idem_queue_fail(queue, attempt, error->sqlerrcode, error->message))
		idem_shmem_wake_at_commit(IDEM_WAKE_WORKER);
	idem_spi_finish();
}

/* Was the job itself cancelled, by idem_cancel()? */
static bool
is_cancelled(const IdemQueue *queue, int64 job_id)
{
	IdemJobState state;
	bool		cancelled;

	idem_spi_connect();
	cancelled = idem_queue_look(queue, job_id, &state) && strcmp(state.status, "cancelled") == 0;
	idem_spi_finish();
	return cancelled;
}

/*
 * Take one job of the role, which is the current one, run it, and record how it ended; each in a
 * transaction of its own. False if none is due. The caller's connection is there to
 * commit only: what is run on it stays in memory until it ends.
 */
static bool
run_one(const IdemQueue *queue, Oid role, int32 *succeeded, int32 *failed)
{
	List	   *taken;
	IdemAttempt attempt;
	ErrorData  *error = NULL;

	idem_spi_connect();
	taken = idem_queue_take(queue, role, 1);
	idem_spi_finish();
	if (taken == NIL)
	{
		idem_spi_commit();
		return false;
	}
	attempt = *(IdemAttempt *) linitial(taken);
	idem_queue_hold(attempt.job_id, true);
	PG_TRY();
	{
		idem_spi_commit();
		if (try_to_run(queue, &attempt, &error))
			(*succeeded)++;
		else
		{
			(*failed)++;
			fail(queue, &attempt, error);
			idem_spi_commit();
		}
	}
	PG_FINALLY();
	{
		idem_queue_let_go(attempt.job_id);
	}
	PG_END_TRY();
	/* A trigger that the merge has fired can have used SET ROLE. */
	if (GetUserId() != role)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("the current role is another one after job %lld",
						(long long) attempt.job_id),
				 errhint("Use SET LOCAL ROLE in triggers and functions.")));
	if (error == NULL)
		return true;

	/* Who has cancelled the CALL does not want the next job to be run. */
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && !is_cancelled(queue, attempt.job_id))
		ReThrowError(error);
	ereport(NOTICE,
			(errcode(error->sqlerrcode),
			 errmsg("job %lld failed: %s", (long long) attempt.job_id, error->message),
			 errdetail_internal("%s", error->detail ? error->detail : "The view idem_jobs has its state."),
			 error->hint ? errhint("%s", error->hint) : 0));
	return true;
}

Datum
idem_run_jobs(PG_FUNCTION_ARGS)
{
	bool		limited = !PG_ARGISNULL(0);
	int32		limit = limited ? PG_GETARG_INT32(0) : 0;
	Oid			role = GetUserId();
	int32		succeeded = 0;
	int32		failed = 0;
	IdemQueue	queue;
	TupleDesc	tupdesc;
	Datum		values[2];
	bool		nulls[2] = {0};
	MemoryContext context = CurrentMemoryContext;
	MemoryContext job_context;

	if (!fcinfo->context || !IsA(fcinfo->context, CallContext) ||
		((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("idem_run_jobs() cannot be called in a transaction block"),
				 errdetail("It runs each job in a transaction of its own."),
				 errhint("Run CALL as a statement of its own.")));
	if (limited && limit < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_jobs\" must not be negative"),
				 errhint("NULL, the default, runs all jobs that are due.")));
	PreventCommandIfReadOnly("idem_run_jobs()");
	open_queue(fcinfo, &queue);

	job_context = AllocSetContextCreate(context, "idem_run_jobs job", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(job_context);
	idem_spi_connect_nonatomic();
	idem_spi_connect();
	(void) idem_queue_reclaim(&queue, role, NIL);
	idem_spi_finish();
	/* What was queued again by that is the worker's as well. */
	idem_shmem_wake_at_commit(IDEM_WAKE_WORKER);
	idem_spi_commit();
	while ((!limited || succeeded + failed < limit) && run_one(&queue, role, &succeeded, &failed))
	{
		MemoryContextReset(job_context);
		CHECK_FOR_INTERRUPTS();
	}
	idem_spi_finish();

	MemoryContextSwitchTo(context);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum(succeeded);
	values[1] = Int32GetDatum(failed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}
