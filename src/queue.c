/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  The queue of merges: statements on idem_job.
 *
 * Every statement here runs as the table's owner with search_path set to
 * pg_catalog; nothing that a user defined runs with it. Callers hold an SPI
 * connection and check the rights of the user themselves.
 *
 * A job is queued, then running, then succeeded, failed or cancelled; or queued
 * again, to be attempted later. The number of an attempt is committed before the
 * attempt starts, and every statement that ends an attempt asks for it: whoever
 * comes late, since the job was given up meanwhile, changes nothing and rolls
 * back. That alone makes a job end once.
 *
 * Who runs a job, or has taken it to start a process for it, holds a lock of ours
 * on it. So a job that is running, by the table, and that nobody holds, was left
 * by a crash. (The lock can be lost: user code may release all advisory locks of
 * a session. Then the attempt can be given up too early, as above.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "idempotent_ingest.h"
#include "queue.h"
#include "relcheck.h"
#include "security.h"

/* The arguments of idem_merge(), by name and type, in order. */
#define ARGUMENT_NAMES "staging, target, key_cols, batch_id, pipeline, version_cols," \
	" audit_cols, update_cols, exclude_cols, mode, on_duplicate, on_stale," \
	" on_schema_change, on_replay, on_mismatch, nowait, exclusive, dry_run, metadata," \
	" target_predicate"

static const Oid argument_types[IDEM_MERGE_ARGUMENTS] = {
	REGCLASSOID, REGCLASSOID, TEXTARRAYOID, TEXTOID, TEXTOID, TEXTARRAYOID,
	TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, BOOLOID, BOOLOID, BOOLOID, JSONBOID,
	TEXTOID
};

/* Longest time between two attempts, in milliseconds. */
#define MAX_RETRY_DELAY		(60 * 60 * 1000.0)

/* How many jobs are removed in one transaction. */
#define EXPIRE_AT_ONCE	1000

/* The channel of NOTIFY. */
static const char CHANNEL[] = "idem_job";

/* Fill *queue for the queue in a schema. False if there is none. */
static bool
open_queue(Oid schema, IdemQueue *queue)
{
	HeapTuple	tuple;

	queue->relid = idem_security_own_table("idem_job", schema);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(queue->relid));
	if (!HeapTupleIsValid(tuple))
		return false;
	queue->owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	queue->schema_oid = schema;
	queue->schema = pstrdup(quote_identifier(get_namespace_name(schema)));
	return true;
}

/* Find the queue in the schema of our functions. */
void
idem_queue_open(Oid schema, IdemQueue *queue)
{
	if (!open_queue(schema, queue))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the queue of extension \"idempotent_ingest\" is missing"),
				 errhint("Undo what was done to the table \"idem_job\", or restore it from a backup.")));
}

/*
 * Find the queue of the database's extension, and lock the extension, so that it
 * stays until the end of the transaction. False if there is none. For those that
 * no function of the extension has called.
 *
 * DROP EXTENSION locks the extension before any of its tables, which it takes in
 * an order of its own: to hold no more than one of these would be a deadlock.
 */
bool
idem_queue_find(IdemQueue *queue)
{
	IdemSpiArgs args = {0};
	Oid			extension;
	Oid			schema;
	bool		isnull;

	if (idem_spi_execute("SELECT e.oid, e.extnamespace FROM pg_catalog.pg_extension e"
						 " WHERE e.extname OPERATOR(pg_catalog.=) 'idempotent_ingest'",
						 InvalidOid, &args, true) == 0)
		return false;
	extension = DatumGetObjectId(idem_spi_value(0, 1, CurrentMemoryContext, &isnull));
	schema = DatumGetObjectId(idem_spi_value(0, 2, CurrentMemoryContext, &isnull));
	LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
	return open_queue(schema, queue);
}

static uint64
run(const IdemQueue *queue, const char *sql, IdemSpiArgs *args)
{
	IdemIdentity saved;
	uint64		processed;

	idem_security_push(&saved, queue->owner);
	processed = idem_spi_execute(sql, queue->relid, args, false);
	idem_security_pop(&saved);
	return processed;
}

/* A value of the last result that is not NULL. */
static Datum
value(int row, int column)
{
	bool		isnull;

	return idem_spi_value(row, column, CurrentMemoryContext, &isnull);
}

/* Tell those who listen that a job has ended, when this is committed. */
static void
notify(int64 job_id)
{
	Async_Notify(CHANNEL, psprintf("%lld", (long long) job_id));
}

static void
job_tag(LOCKTAG *tag, int64 job_id)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) ((uint64) job_id >> 32), (uint32) job_id,
						 IDEM_LOCK_JOB);
}

/*
 * Hold a job: until the end of the transaction, or with session until
 * idem_queue_let_go(). Those who hold a job do not meet each other: the worker
 * that has taken it and the process that runs it both do.
 */
void
idem_queue_hold(int64 job_id, bool session)
{
	LOCKTAG		tag;

	job_tag(&tag, job_id);
	(void) LockAcquire(&tag, ShareLock, session, false);
}

/* Undo idem_queue_hold() for the session. */
void
idem_queue_let_go(int64 job_id)
{
	LOCKTAG		tag;

	job_tag(&tag, job_id);
	(void) LockRelease(&tag, ShareLock, true);
}

/* Does nobody hold the job? Then nobody can before the end of the transaction. */
static bool
is_abandoned(int64 job_id)
{
	LOCKTAG		tag;

	job_tag(&tag, job_id);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Add a job of the current role, with the arguments of idem_merge(), which the
 * caller has checked. Returns its number.
 */
int64
idem_queue_enqueue(const IdemQueue *queue, const NullableDatum *arguments,
				   TimestampTz run_at, int32 max_attempts, int32 priority)
{
	IdemSpiArgs args = {0};
	Oid			staging = DatumGetObjectId(arguments[0].value);
	Oid			target = DatumGetObjectId(arguments[1].value);

	for (int i = 0; i < IDEM_MERGE_ARGUMENTS; i++)
		idem_spi_arg(&args, argument_types[i], arguments[i].value, arguments[i].isnull);
	idem_spi_arg(&args, REGTYPEOID, ObjectIdGetDatum(get_rel_type_id(staging)), false);
	idem_spi_arg(&args, REGTYPEOID, ObjectIdGetDatum(get_rel_type_id(target)), false);
	idem_spi_arg(&args, REGROLEOID, ObjectIdGetDatum(GetUserId()), false);
	idem_spi_arg(&args, TIMESTAMPTZOID, TimestampTzGetDatum(run_at), false);
	idem_spi_arg(&args, INT4OID, Int32GetDatum(max_attempts), false);
	idem_spi_arg(&args, INT4OID, Int32GetDatum(priority), false);
	(void) run(queue, psprintf("INSERT INTO %s.idem_job (" ARGUMENT_NAMES
							   ", staging_type, target_type, role, run_at, max_attempts, priority)"
							   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,"
							   " $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,"
							   " $26)"
							   " RETURNING job_id", queue->schema), &args);
	return DatumGetInt64(value(0, 1));
}

/* $1, and for queries on attempts $2. */
static void
attempt_arguments(IdemSpiArgs *args, const IdemAttempt *attempt)
{
	idem_spi_arg(args, INT8OID, Int64GetDatum(attempt->job_id), false);
	idem_spi_arg(args, INT4OID, Int32GetDatum(attempt->attempt), false);
}

#define WHERE_ATTEMPT " WHERE job_id = $1 AND attempts = $2 AND status = 'running'"

/* The IdemAttempts that the last statement has returned. */
static List *
returned_attempts(uint64 count)
{
	List	   *attempts = NIL;

	for (uint64 i = 0; i < count; i++)
	{
		IdemAttempt *attempt = palloc(sizeof(IdemAttempt));

		attempt->job_id = DatumGetInt64(value(i, 1));
		attempt->attempt = DatumGetInt32(value(i, 2));
		attempt->role = DatumGetObjectId(value(i, 3));
		attempts = lappend(attempts, attempt);
	}
	return attempts;
}

/*
 * Take up to limit jobs that are due, of a role or, with InvalidOid, of all. Their
 * attempts count from here on. Returns a List of IdemAttempt.
 */
List *
idem_queue_take(const IdemQueue *queue, Oid role, int limit)
{
	IdemSpiArgs args = {0};

	idem_spi_arg(&args, REGROLEOID, ObjectIdGetDatum(role), !OidIsValid(role));
	idem_spi_arg(&args, INT4OID, Int32GetDatum(limit), false);
	return returned_attempts(run(queue,
								 psprintf("WITH due AS MATERIALIZED (SELECT job_id FROM %s.idem_job"
										  " WHERE status = 'queued' AND run_at <= clock_timestamp()%s"
										  " ORDER BY priority DESC, run_at, job_id"
										  " LIMIT $2 FOR UPDATE SKIP LOCKED)"
										  " UPDATE %s.idem_job j SET status = 'running', attempts = j.attempts + 1,"
										  " started_at = clock_timestamp(), sqlstate = NULL, message = NULL"
										  " FROM due WHERE j.job_id = due.job_id"
										  " RETURNING j.job_id, j.attempts, j.role",
										  queue->schema, OidIsValid(role) ? " AND role = $1" : "",
										  queue->schema), &args));
}

/*
 * Lock the row of an attempt, so that what ends the attempt does not wait. False
 * if somebody else has it locked: idem_cancel() does, until its transaction ends.
 */
bool
idem_queue_lock(const IdemQueue *queue, const IdemAttempt *attempt)
{
	IdemSpiArgs args = {0};

	attempt_arguments(&args, attempt);
	(void) run(queue, psprintf("SELECT (SELECT true FROM %s.idem_job" WHERE_ATTEMPT
							   " FOR NO KEY UPDATE SKIP LOCKED) OR NOT EXISTS"
							   " (SELECT FROM %s.idem_job" WHERE_ATTEMPT ")",
							   queue->schema, queue->schema), &args);
	return DatumGetBool(value(0, 1));
}

/*
 * Undo idem_queue_take() for an attempt that was not started; it ends if somebody has
 * cancelled it meanwhile.
 */
void
idem_queue_give_back(const IdemQueue *queue, const IdemAttempt *attempt)
{
	IdemSpiArgs args = {0};

	attempt_arguments(&args, attempt);
	if (run(queue, psprintf("UPDATE %s.idem_job SET status = 'queued', attempts = attempts - 1"
							WHERE_ATTEMPT " RETURNING cancel_requested",
							queue->schema), &args) > 0 &&
		DatumGetBool(value(0, 1)))
		(void) idem_queue_cancel(queue, attempt->job_id);
}

/*
 * Fetch the arguments of idem_merge() for an attempt, into the current memory
 * context. False if the attempt has been given up; *cancelled says whether the job
 * has been cancelled. A relation that was dropped since the job was enqueued is an
 * error, even if another one has got its OID.
 */
bool
idem_queue_load(const IdemQueue *queue, const IdemAttempt *attempt, IdemSpiArgs *arguments,
				bool *cancelled)
{
	IdemSpiArgs args = {0};

	attempt_arguments(&args, attempt);
	if (run(queue, psprintf("SELECT " ARGUMENT_NAMES ", staging_type, target_type, cancel_requested"
							" FROM %s.idem_job" WHERE_ATTEMPT, queue->schema), &args) == 0)
		return false;
	*cancelled = DatumGetBool(value(0, IDEM_MERGE_ARGUMENTS + 3));
	memset(arguments, 0, sizeof(*arguments));
	for (int i = 0; i < IDEM_MERGE_ARGUMENTS; i++)
	{
		bool		isnull;
		Datum		argument = idem_spi_value(0, i + 1, CurrentMemoryContext, &isnull);

		idem_spi_arg(arguments, argument_types[i], argument, isnull);
	}
	for (int i = 0; i < 2; i++)
	{
		Oid			relid = DatumGetObjectId(arguments->values[i]);

		idem_relcheck_require_exists(relid);
		if (get_rel_type_id(relid) != DatumGetObjectId(value(0, IDEM_MERGE_ARGUMENTS + 1 + i)))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("relation with OID %u is not the one that the job was enqueued for",
							relid),
					 errhint("Enqueue the merge again.")));
	}
	return true;
}

/*
 * Record the end of an attempt that has worked. False if it was given up or
 * cancelled meanwhile: then the transaction must not be committed.
 */
bool
idem_queue_succeed(const IdemQueue *queue, const IdemAttempt *attempt, Datum result)
{
	IdemSpiArgs args = {0};

	attempt_arguments(&args, attempt);
	idem_spi_arg(&args, JSONBOID, result, false);
	if (run(queue, psprintf("UPDATE %s.idem_job SET status = 'succeeded', result = $3,"
							" finished_at = clock_timestamp()"
							WHERE_ATTEMPT " AND NOT cancel_requested",
							queue->schema), &args) == 0)
		return false;
	notify(attempt->job_id);
	return true;
}

/* May another attempt end otherwise, with nobody doing anything about it? */
static bool
is_transient(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_OBJECT_IN_USE:
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_ADMIN_SHUTDOWN:
		case ERRCODE_CRASH_SHUTDOWN:
		case ERRCODE_CANNOT_CONNECT_NOW:
		case ERRCODE_IO_ERROR:
			return true;
	}
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'):	/* connection */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* resources */
			return true;
	}
	return false;
}

/* Seconds until the next attempt: doubled each time, and anything between half and all of it. */
static double
retry_delay(int32 attempt)
{
	double		delay = Min(ldexp(idem_guc_job_retry_delay, Min(attempt - 1, 30)), MAX_RETRY_DELAY);

	return delay / 1000.0 * (0.5 + pg_prng_double(&pg_global_prng_state) / 2.0);
}

/*
 * Record the end of an attempt that has failed: the job is queued again if the
 * error may pass and there are attempts left. Returns whether it has ended.
 */
bool
idem_queue_fail(const IdemQueue *queue, const IdemAttempt *attempt, int sqlstate,
				const char *message)
{
	IdemSpiArgs args = {0};

	attempt_arguments(&args, attempt);
	idem_spi_arg_text(&args, unpack_sql_state(sqlstate));
	idem_spi_arg_text(&args, message);
	idem_spi_arg(&args, BOOLOID, BoolGetDatum(is_transient(sqlstate)), false);
	idem_spi_arg(&args, FLOAT8OID, Float8GetDatum(retry_delay(attempt->attempt)), false);
	if (run(queue, psprintf("UPDATE %s.idem_job SET (status, run_at, finished_at) ="
							" (SELECT CASE WHEN again THEN 'queued' WHEN cancel_requested THEN 'cancelled' ELSE 'failed' END,"
							" CASE WHEN again THEN clock_timestamp() + make_interval(secs => $6) ELSE run_at END,"
							" CASE WHEN NOT again THEN clock_timestamp() END"
							" FROM (SELECT $5 AND attempts < max_attempts AND NOT cancel_requested) AS t(again)),"
							" sqlstate = $3, message = $4"
							WHERE_ATTEMPT " RETURNING status <> 'queued'",
							queue->schema), &args) == 0)
		return true;
	if (!DatumGetBool(value(0, 1)))
		return false;
	notify(attempt->job_id);
	return true;
}

/*
 * The attempts that are under way, by the table: of one role, or with InvalidOid
 * of all; only those that somebody has cancelled, if asked for. A List of
 * IdemAttempt.
 */
List *
idem_queue_running(const IdemQueue *queue, Oid role, bool cancelled)
{
	IdemSpiArgs args = {0};

	idem_spi_arg(&args, REGROLEOID, ObjectIdGetDatum(role), !OidIsValid(role));
	idem_spi_arg(&args, BOOLOID, BoolGetDatum(cancelled), false);
	return returned_attempts(run(queue,
								 psprintf("SELECT job_id, attempts, role FROM %s.idem_job"
										  " WHERE status = 'running' AND ($1 IS NULL OR role = $1)"
										  " AND (cancel_requested OR NOT $2) ORDER BY job_id",
										  queue->schema), &args));
}

/*
 * Give up the attempts of a role, or with InvalidOid of all, that nobody holds;
 * but for those in the List of IdemAttempt, which the caller itself holds. False if
 * there are some left, as somebody else has their rows locked.
 */
bool
idem_queue_reclaim(const IdemQueue *queue, Oid role, List *except)
{
	bool		complete = true;
	ListCell   *lc;

	foreach(lc, idem_queue_running(queue, role, false))
	{
		IdemAttempt *attempt = lfirst(lc);
		bool		is_held = false;
		ListCell   *lc2;

		foreach(lc2, except)
			is_held |= ((IdemAttempt *) lfirst(lc2))->job_id == attempt->job_id;
		if (is_held || !is_abandoned(attempt->job_id))
			continue;
		if (idem_queue_lock(queue, attempt))
			(void) idem_queue_fail(queue, attempt, ERRCODE_CRASH_SHUTDOWN,
								   "the attempt was interrupted by a crash or a shutdown");
		else
			complete = false;
	}
	return complete;
}

/*
 * Fail the jobs of roles that were dropped, before a new role gets an old OID. Those
 * whose rows somebody else has locked are left for the next time.
 */
void
idem_queue_fail_roleless(const IdemQueue *queue)
{
	IdemSpiArgs args = {0};
	uint64		count;

	idem_spi_arg_text(&args, unpack_sql_state(ERRCODE_UNDEFINED_OBJECT));
	count = run(queue, psprintf("WITH roleless AS MATERIALIZED (SELECT job_id FROM %s.idem_job j"
								" WHERE status = 'queued' AND NOT EXISTS"
								" (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = j.role)"
								" FOR UPDATE OF j SKIP LOCKED)"
								" UPDATE %s.idem_job j SET status = 'failed', sqlstate = $1,"
								" message = 'the role was dropped', finished_at = clock_timestamp()"
								" FROM roleless WHERE j.job_id = roleless.job_id"
								" RETURNING j.job_id", queue->schema, queue->schema), &args);
	for (uint64 i = 0; i < count; i++)
		notify(DatumGetInt64(value(i, 1)));
}

/*
 * Cancel a job, which the caller may do: at once if it is queued, otherwise its
 * attempt will find out. False if it has ended.
 */
bool
idem_queue_cancel(const IdemQueue *queue, int64 job_id)
{
	IdemSpiArgs args = {0};

	idem_spi_arg(&args, INT8OID, Int64GetDatum(job_id), false);
	idem_spi_arg_text(&args, unpack_sql_state(ERRCODE_QUERY_CANCELED));
	if (run(queue, psprintf("UPDATE %s.idem_job SET cancel_requested = true,"
							" (status, sqlstate, message, finished_at) = ROW"
							"(CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,"
							" CASE status WHEN 'queued' THEN $2 ELSE sqlstate END,"
							" CASE status WHEN 'queued' THEN 'the job was cancelled' ELSE message END,"
							" CASE status WHEN 'queued' THEN clock_timestamp() END)"
							" WHERE job_id = $1 AND status IN ('queued', 'running')"
							" RETURNING status = 'cancelled'", queue->schema), &args) == 0)
		return false;
	if (DatumGetBool(value(0, 1)))
		notify(job_id);
	return true;
}

/*
 * Look at a job as it is at this moment, whatever the snapshot of the
 * transaction. False if there is no such job. The parts are palloc'd in the
 * current memory context.
 */
bool
idem_queue_look(const IdemQueue *queue, int64 job_id, IdemJobState *state)
{
	IdemSpiArgs args = {0};
	IdemIdentity saved;
	uint64		count;

	idem_spi_arg(&args, INT8OID, Int64GetDatum(job_id), false);
	idem_security_push(&saved, queue->owner);
	count = idem_spi_execute_latest(psprintf("SELECT role, status, attempts, sqlstate, message, result,"
											 " status NOT IN ('queued', 'running'), xmin"
											 " FROM %s.idem_job WHERE job_id = $1", queue->schema),
									queue->relid, &args);
	idem_security_pop(&saved);
	if (count == 0)
		return false;
	state->role = DatumGetObjectId(value(0, 1));
	state->status = idem_spi_text(0, 2, CurrentMemoryContext);
	state->attempts = DatumGetInt32(value(0, 3));
	state->sqlstate = idem_spi_text(0, 4, CurrentMemoryContext);
	state->message = idem_spi_text(0, 5, CurrentMemoryContext);
	state->result = idem_spi_value(0, 6, CurrentMemoryContext, &state->result_null);
	state->ended = DatumGetBool(value(0, 7));
	state->is_ours = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(value(0, 8)));
	return true;
}

/*
 * When to take jobs again, if none that are due could be taken in the current
 * transaction: when the next of them will be due, or in so many milliseconds if one
 * was due before, which somebody else must have locked. False if none is queued.
 */
bool
idem_queue_next(const IdemQueue *queue, int retry, TimestampTz *run_at)
{
	IdemSpiArgs args = {0};
	bool		isnull;

	idem_spi_arg(&args, FLOAT8OID, Float8GetDatum(retry / 1000.0), false);
	(void) run(queue, psprintf("SELECT min(CASE WHEN run_at <= now()"
							   " THEN clock_timestamp() + make_interval(secs => $1) ELSE run_at END)"
							   " FROM %s.idem_job WHERE status = 'queued'",
							   queue->schema), &args);
	*run_at = DatumGetTimestampTz(idem_spi_value(0, 1, CurrentMemoryContext, &isnull));
	return !isnull;
}

/*
 * Remove some of the jobs that nobody asks for any more, as the settings say. True
 * if there can be more of them. The index is read from its beginning: for a
 * function of the time in place of $1 it would not be.
 */
bool
idem_queue_expire(const IdemQueue *queue)
{
	IdemSpiArgs args = {0};
	int64		age = idem_guc_job_retention * USECS_PER_MINUTE;

	if (age == 0)
		return false;
	idem_spi_arg(&args, TIMESTAMPTZOID, TimestampTzGetDatum(GetCurrentTimestamp() - age), false);
	idem_spi_arg(&args, INT4OID, Int32GetDatum(EXPIRE_AT_ONCE), false);
	return run(queue, psprintf("WITH old AS MATERIALIZED (SELECT job_id FROM %s.idem_job"
							   " WHERE finished_at < $1"
							   " ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
							   " DELETE FROM %s.idem_job j USING old WHERE j.job_id = old.job_id",
							   queue->schema, queue->schema), &args) == EXPIRE_AT_ONCE;
}
