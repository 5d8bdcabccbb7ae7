/* idempotent_ingest--0.1.0--0.2.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION idempotent_ingest UPDATE TO '0.2.0'" to load this file. \quit

--
-- The queue of merges (src/queue.c). Only the extension's own functions write
-- it; people read idem_jobs.
--
CREATE TABLE @extschema@.idem_job (
    job_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role             regrole NOT NULL,
    status           text COLLATE "C" NOT NULL DEFAULT 'queued',
    priority         integer NOT NULL,
    run_at           timestamptz NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    max_attempts     integer NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    enqueued_at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at       timestamptz,
    finished_at      timestamptz,
    sqlstate         text COLLATE "C",
    message          text,
    result           jsonb,
    staging_type     regtype NOT NULL,
    target_type      regtype NOT NULL,
    staging          regclass NOT NULL,
    target           regclass NOT NULL,
    key_cols         text[],
    batch_id         text,
    pipeline         text NOT NULL,
    version_cols     text[],
    audit_cols       text[],
    update_cols      text[],
    exclude_cols     text[],
    mode             text NOT NULL,
    on_duplicate     text,
    on_stale         text NOT NULL,
    on_schema_change text NOT NULL,
    on_replay        text NOT NULL,
    on_mismatch      text NOT NULL,
    nowait           boolean NOT NULL,
    exclusive        boolean NOT NULL,
    dry_run          boolean NOT NULL,
    metadata         jsonb,
    CONSTRAINT idem_job_status_check CHECK (status OPERATOR(pg_catalog.=) 'queued' OR status OPERATOR(pg_catalog.=) 'running' OR status OPERATOR(pg_catalog.=) 'succeeded' OR status OPERATOR(pg_catalog.=) 'failed' OR status OPERATOR(pg_catalog.=) 'cancelled')
) WITH (fillfactor = 80);

-- In the order in which jobs are taken; and those that are running.
CREATE INDEX idem_job_waiting_idx ON @extschema@.idem_job (status, priority DESC, run_at, job_id)
WHERE status OPERATOR(pg_catalog.=) 'queued' OR status OPERATOR(pg_catalog.=) 'running';

COMMENT ON TABLE @extschema@.idem_job IS
'One row for each merge that was enqueued; written only by idem_enqueue(), idem_cancel(), idem_run_jobs() and the workers. Read it through the view idem_jobs.';
COMMENT ON COLUMN @extschema@.idem_job.job_id IS 'number of the job';
COMMENT ON COLUMN @extschema@.idem_job.role IS 'role that has enqueued the job, and that it runs as';
COMMENT ON COLUMN @extschema@.idem_job.status IS 'queued, running, succeeded, failed or cancelled';
COMMENT ON COLUMN @extschema@.idem_job.priority IS 'of the jobs that are due, those of higher priority are run first';
COMMENT ON COLUMN @extschema@.idem_job.run_at IS 'not to be run before that; of a job that was attempted, the next attempt';
COMMENT ON COLUMN @extschema@.idem_job.attempts IS 'attempts so far, counted before they start; the number of an attempt tells it from others';
COMMENT ON COLUMN @extschema@.idem_job.max_attempts IS 'when so many attempts have failed, so has the job';
COMMENT ON COLUMN @extschema@.idem_job.cancel_requested IS 'somebody has called idem_cancel(): the attempt under way must not succeed, and none follows';
COMMENT ON COLUMN @extschema@.idem_job.enqueued_at IS 'when it was enqueued';
COMMENT ON COLUMN @extschema@.idem_job.started_at IS 'when the latest attempt was started';
COMMENT ON COLUMN @extschema@.idem_job.finished_at IS 'when the job has ended; NULL while it is queued or running';
COMMENT ON COLUMN @extschema@.idem_job.sqlstate IS 'of the error that the latest attempt has ended with';
COMMENT ON COLUMN @extschema@.idem_job.message IS 'primary message of that error';
COMMENT ON COLUMN @extschema@.idem_job.result IS 'row that idem_merge() has returned';
COMMENT ON COLUMN @extschema@.idem_job.staging_type IS 'row type of staging, which tells it from a later relation with the same OID';
COMMENT ON COLUMN @extschema@.idem_job.target_type IS 'row type of the target, likewise';
COMMENT ON COLUMN @extschema@.idem_job.staging IS 'argument of idem_merge(), as all the columns that follow';
COMMENT ON INDEX @extschema@.idem_job_waiting_idx IS 'finds the next job to be run, and those that are running';

REVOKE ALL ON @extschema@.idem_job FROM PUBLIC;
REVOKE ALL ON SEQUENCE @extschema@.idem_job_job_id_seq FROM PUBLIC;

-- Jobs that have not ended are dumped, as long as all that they need is there.
-- One that was running counts as interrupted where it is restored.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_job', $filter$
WHERE finished_at IS NULL
  AND EXISTS (SELECT FROM pg_catalog.pg_roles r
              WHERE r.oid OPERATOR(pg_catalog.=) role::pg_catalog.oid)
  AND EXISTS (SELECT FROM pg_catalog.pg_class c
              WHERE c.oid OPERATOR(pg_catalog.=) staging::pg_catalog.oid
                AND c.reltype OPERATOR(pg_catalog.=) staging_type::pg_catalog.oid)
  AND EXISTS (SELECT FROM pg_catalog.pg_class c
              WHERE c.oid OPERATOR(pg_catalog.=) target::pg_catalog.oid
                AND c.reltype OPERATOR(pg_catalog.=) target_type::pg_catalog.oid)
$filter$);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_job_job_id_seq', '');

CREATE VIEW @extschema@.idem_jobs WITH (security_barrier) AS
SELECT j.job_id, j.role, j.status, j.staging, j.target, j.batch_id, j.pipeline,
       j.priority, j.run_at, j.attempts, j.max_attempts, j.cancel_requested,
       j.enqueued_at, j.started_at, j.finished_at, j.sqlstate, j.message, j.result
FROM @extschema@.idem_job j
WHERE pg_catalog.pg_has_role(j.role::pg_catalog.oid, 'USAGE');

COMMENT ON VIEW @extschema@.idem_jobs IS
'The merges that were enqueued by the roles whose rights the current user has.';
COMMENT ON COLUMN @extschema@.idem_jobs.job_id IS 'number of the job';
COMMENT ON COLUMN @extschema@.idem_jobs.role IS 'role that has enqueued the job, and that it runs as';
COMMENT ON COLUMN @extschema@.idem_jobs.status IS 'queued, running, succeeded, failed or cancelled';
COMMENT ON COLUMN @extschema@.idem_jobs.staging IS 'relation with the rows to be merged';
COMMENT ON COLUMN @extschema@.idem_jobs.target IS 'table that they are merged into';
COMMENT ON COLUMN @extschema@.idem_jobs.batch_id IS 'as given to idem_enqueue(); NULL if it is to be derived';
COMMENT ON COLUMN @extschema@.idem_jobs.pipeline IS 'sender of the batch, empty string if unnamed';
COMMENT ON COLUMN @extschema@.idem_jobs.priority IS 'of the jobs that are due, those of higher priority are run first';
COMMENT ON COLUMN @extschema@.idem_jobs.run_at IS 'not to be run before that; of a job that was attempted, the next attempt';
COMMENT ON COLUMN @extschema@.idem_jobs.attempts IS 'attempts so far, with the one under way';
COMMENT ON COLUMN @extschema@.idem_jobs.max_attempts IS 'when so many attempts have failed, so has the job';
COMMENT ON COLUMN @extschema@.idem_jobs.cancel_requested IS 'somebody has called idem_cancel()';
COMMENT ON COLUMN @extschema@.idem_jobs.enqueued_at IS 'when it was enqueued';
COMMENT ON COLUMN @extschema@.idem_jobs.started_at IS 'when the latest attempt was started';
COMMENT ON COLUMN @extschema@.idem_jobs.finished_at IS 'when the job has ended; NULL while it is queued or running';
COMMENT ON COLUMN @extschema@.idem_jobs.sqlstate IS 'of the error that the latest attempt has ended with';
COMMENT ON COLUMN @extschema@.idem_jobs.message IS 'primary message of that error';
COMMENT ON COLUMN @extschema@.idem_jobs.result IS 'row that idem_merge() has returned';

GRANT SELECT ON @extschema@.idem_jobs TO PUBLIC;

CREATE FUNCTION @extschema@.idem_enqueue(
    staging          regclass,
    target           regclass,
    key_cols         text[]  DEFAULT NULL,
    batch_id         text    DEFAULT NULL,
    pipeline         text    DEFAULT '',
    version_cols     text[]  DEFAULT NULL,
    audit_cols       text[]  DEFAULT NULL,
    update_cols      text[]  DEFAULT NULL,
    exclude_cols     text[]  DEFAULT NULL,
    mode             text    DEFAULT 'upsert',
    on_duplicate     text    DEFAULT NULL,
    on_stale         text    DEFAULT 'skip',
    on_schema_change text    DEFAULT 'error',
    on_replay        text    DEFAULT 'skip',
    on_mismatch      text    DEFAULT 'error',
    nowait           boolean DEFAULT false,
    exclusive        boolean DEFAULT false,
    dry_run          boolean DEFAULT false,
    metadata         jsonb   DEFAULT NULL,
    run_at           timestamptz DEFAULT pg_catalog.now(),
    max_attempts     integer DEFAULT 5,
    priority         integer DEFAULT 0)
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_enqueue'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 1000;

COMMENT ON FUNCTION @extschema@.idem_enqueue(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb, timestamptz, integer, integer) IS
$comment$Has a merge run later, in a process that is connected as the current role, and returns the number of the job. Checks now what idem_merge() would check; rights are checked again when the job is run.
staging to metadata: the arguments of idem_merge(). Staging must not be a temporary table, and must stay as it is until the job has ended.
run_at: not before that; default now.
max_attempts: attempts that may fail before the job has failed, 1 to 1000; default 5. Only errors that may pass are attempted again.
priority: of the jobs that are due, those of higher priority are run first; default 0.
NOTIFY idem_job, with the number of the job, tells that it has ended.$comment$;

CREATE FUNCTION @extschema@.idem_cancel(job bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_cancel'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 1000;

COMMENT ON FUNCTION @extschema@.idem_cancel(bigint) IS
$comment$Cancels a queued merge; if it is running, its attempt is cancelled and rolled back. false: the job has ended already.
job: number of a job of the current user, or of a role whose rights the user has.$comment$;

CREATE FUNCTION @extschema@.idem_wait(
    job          bigint,
    timeout      interval DEFAULT NULL,
    OUT job_id   bigint,
    OUT status   text,
    OUT attempts integer,
    OUT sqlstate text,
    OUT message  text,
    OUT result   jsonb)
AS 'MODULE_PATHNAME', 'idem_wait'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 10000;

COMMENT ON FUNCTION @extschema@.idem_wait(bigint, interval) IS
$comment$Waits until a queued merge has ended, and returns its state; or its state when the time is up. Not in the transaction that has enqueued the job.
job: number of a job of the current user, or of a role whose rights the user has.
timeout: how long to wait; NULL (default): without limit.$comment$;

CREATE PROCEDURE @extschema@.idem_run_jobs(
    max_jobs        integer DEFAULT NULL,
    INOUT succeeded integer DEFAULT 0,
    INOUT failed    integer DEFAULT 0)
AS 'MODULE_PATHNAME', 'idem_run_jobs'
LANGUAGE C SECURITY INVOKER;

COMMENT ON PROCEDURE @extschema@.idem_run_jobs(integer, integer, integer) IS
$comment$Runs the jobs of the current role that are due, one after the other in this session, each in a transaction of its own, with or without a worker. Returns how many attempts have succeeded, and how many have failed. Not in a transaction block.
max_jobs: most attempts to make; NULL (default): until no job is due.$comment$;
