--
-- Queued merges, run by hand: idem_enqueue, idem_cancel, idem_wait, idem_jobs,
-- idem_run_jobs. The server of this test has no worker; 013_worker.pl and
-- 014_jobs.pl are about those.
--
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest launcher') AS has_worker \gset
\if :has_worker
\echo skipped: a worker would run the jobs
\quit
\endif
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA jobs;
SET search_path = jobs, public;
CREATE TABLE staging (id int, v text);
CREATE TABLE target (id int PRIMARY KEY, v text);
INSERT INTO staging VALUES (1, 'one'), (2, 'two');
CREATE ROLE regress_jobs_loader LOGIN;
CREATE ROLE regress_jobs_other LOGIN;
CREATE ROLE regress_jobs_group NOLOGIN;
GRANT USAGE ON SCHEMA jobs TO regress_jobs_loader, regress_jobs_other, regress_jobs_group;
GRANT SELECT ON staging TO regress_jobs_loader, regress_jobs_other, regress_jobs_group;
GRANT SELECT, INSERT, UPDATE ON target TO regress_jobs_loader, regress_jobs_other, regress_jobs_group;

-- Job numbers depend on what ran before: tell them by their batch.
CREATE FUNCTION job(batch text) RETURNS bigint LANGUAGE sql AS
'SELECT max(job_id) FROM idem_jobs WHERE batch_id = batch';
CREATE FUNCTION status(batch text, OUT status text, OUT attempts int, OUT sqlstate text, OUT message text, OUT summary text)
LANGUAGE sql AS
$$SELECT status, attempts, sqlstate, message, result ->> 'summary' FROM idem_wait(job(batch), '0')$$;

-- enqueued, seen, run
SELECT idem_enqueue('staging', 'target', '{id}', 'b1') IS NOT NULL AS enqueued;
SELECT * FROM status('b1');
SELECT role = current_user::regrole AS own, status, staging, target, batch_id, pipeline, priority, run_at <= now() AS due,
       attempts, max_attempts, cancel_requested, started_at, finished_at, result
FROM idem_jobs WHERE batch_id = 'b1';
CALL idem_run_jobs();
SELECT * FROM status('b1');
SELECT result - '{elapsed,applied_at,fingerprint,engine}'::text[] FROM idem_wait(job('b1'));
SELECT started_at <= finished_at AND enqueued_at <= started_at AS in_order FROM idem_jobs WHERE batch_id = 'b1';
TABLE target ORDER BY id;
CALL idem_run_jobs();

-- the same once more: a replay; without a batch id, derived when it is run
SELECT idem_enqueue('staging', 'target', '{id}', 'b1') IS NOT NULL AS enqueued;
SELECT idem_enqueue('staging', 'target') AS derived \gset
CALL idem_run_jobs(1);
CALL idem_run_jobs(1);
CALL idem_run_jobs(1);
SELECT * FROM status('b1');
SELECT status, result ->> 'summary', result ->> 'batch_id' = (SELECT batch_id FROM idem_batches WHERE target = 'target'::regclass AND batch_id LIKE 'content:%') AS recorded
FROM idem_wait(:derived);

-- all arguments arrive
CREATE TABLE wide_staging (id int, v text, w text, n int, loaded text);
CREATE TABLE wide_target (id int PRIMARY KEY, v text, w text, n int, loaded text);
INSERT INTO wide_staging VALUES (1, 'a', 'b', 2, 'now'), (1, 'c', 'd', 1, 'now');
SELECT idem_enqueue('wide_staging', 'wide_target', '{id}', 'wide', 'pipe', version_cols => '{n}', audit_cols => '{loaded}',
                    update_cols => '{v}', mode => 'insert', on_duplicate => 'latest', on_stale => 'apply',
                    on_schema_change => 'ignore', on_replay => 'reapply', on_mismatch => 'apply', nowait => true,
                    metadata => '{"file": "x"}', run_at => '-infinity', max_attempts => 2, priority => 7) IS NOT NULL AS enqueued;
SELECT key_cols, batch_id, pipeline, version_cols, audit_cols, update_cols, exclude_cols, mode, on_duplicate, on_stale,
       on_schema_change, on_replay, on_mismatch, nowait, exclusive, dry_run, metadata, run_at, max_attempts, priority
FROM idem_job WHERE batch_id = 'wide' \gx
CALL idem_run_jobs();
SELECT * FROM status('wide');
SELECT options, metadata FROM idem_batches WHERE batch_id = 'wide' AND target = 'wide_target'::regclass;

-- the order: priority, then time; and not before run_at
SELECT idem_enqueue('staging', 'target', '{id}', batch, dry_run => true, run_at => now() - age::interval, priority => priority) IS NOT NULL AS enqueued
FROM (VALUES ('late', '1 hour', 0), ('early', '2 hours', 0), ('urgent', '1 second', 1), ('tomorrow', '-1 day', 2)) AS j (batch, age, priority);
CALL idem_run_jobs();
SELECT batch_id, status FROM idem_jobs WHERE batch_id IN ('late', 'early', 'urgent', 'tomorrow') ORDER BY started_at;
SELECT idem_cancel(job('tomorrow'));
SELECT idem_cancel(job('tomorrow')) AS again, idem_cancel(job('b1')) AS ended;
SELECT * FROM status('tomorrow');

-- errors: what may pass is attempted again, the rest is not
SET client_min_messages = warning;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'no' USING ERRCODE = TG_ARGV[0];
END $$;
CREATE TABLE fails_40001 (LIKE target INCLUDING ALL);
CREATE TABLE fails_55P03 (LIKE target INCLUDING ALL);
CREATE TABLE fails_53100 (LIKE target INCLUDING ALL);
CREATE TABLE fails_08006 (LIKE target INCLUDING ALL);
CREATE TABLE fails_22003 (LIKE target INCLUDING ALL);
CREATE TABLE fails_23514 (LIKE target INCLUDING ALL);
CREATE TABLE fails_42501 (LIKE target INCLUDING ALL);
CREATE TABLE fails_xx000 (LIKE target INCLUDING ALL);
SELECT format('CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON %s DEFERRABLE INITIALLY %s FOR EACH ROW EXECUTE FUNCTION fail(%L)',
              c.oid::regclass, CASE WHEN c.relname IN ('fails_40001', 'fails_22003') THEN 'DEFERRED' ELSE 'IMMEDIATE' END, upper(right(relname, 5)))
FROM pg_class c WHERE relnamespace = 'jobs'::regnamespace AND relname LIKE 'fails______' ORDER BY relname \gexec
SELECT idem_enqueue('staging', c.oid::regclass, '{id}', relname, max_attempts => 2) IS NOT NULL AS enqueued
FROM pg_class c WHERE relnamespace = 'jobs'::regnamespace AND relname LIKE 'fails______' ORDER BY relname;
CALL idem_run_jobs(8);
RESET client_min_messages;
SELECT batch_id, status, attempts, sqlstate, message, finished_at IS NOT NULL AS finished,
       CASE WHEN status = 'queued' THEN run_at > started_at + interval '0.4 s' END AS later
FROM idem_jobs WHERE batch_id LIKE 'fails%' ORDER BY job_id;
SELECT count(*) AS none FROM idem_batches WHERE batch_id LIKE 'fails%';
SELECT batch_id, idem_cancel(job_id) FROM idem_jobs WHERE batch_id LIKE 'fails%' AND status = 'queued' ORDER BY job_id;
SELECT batch_id, status, attempts, sqlstate, message FROM idem_jobs WHERE batch_id LIKE 'fails%' AND status = 'cancelled' ORDER BY job_id;

-- a relation that is gone, or has come in the place of another
CREATE TABLE gone (LIKE staging);
SELECT idem_enqueue('gone', 'target', '{id}', 'gone') IS NOT NULL AS enqueued;
DROP TABLE gone;
CREATE TABLE replaced (LIKE staging);
SELECT idem_enqueue('replaced', 'target', '{id}', 'replaced') IS NOT NULL AS enqueued;
UPDATE idem_job SET staging_type = 'pg_class' WHERE batch_id = 'replaced';
SET client_min_messages = warning;
CALL idem_run_jobs();
RESET client_min_messages;
SELECT status, attempts, sqlstate, regexp_replace(message, '\d+', 'OID') FROM status('gone');
SELECT status, attempts, sqlstate, regexp_replace(message, '\d+', 'OID') FROM status('replaced');

-- an attempt that a crash has left: nobody holds its lock
SELECT idem_enqueue('staging', 'target', '{id}', 'crashed', max_attempts => 2) IS NOT NULL AS enqueued;
UPDATE idem_job SET status = 'running', attempts = 1 WHERE batch_id = 'crashed';
CALL idem_run_jobs(0);
SELECT * FROM status('crashed');
UPDATE idem_job SET status = 'running', attempts = 2 WHERE batch_id = 'crashed';
CALL idem_run_jobs(0);
SELECT * FROM status('crashed');

-- a typo is an error at once, with the codes of idem_merge()
\set VERBOSITY terse
SELECT idem_enqueue('staging', 'target', '{idd}');
SELECT idem_enqueue('staging', 'target', mode => 'merge');
SELECT idem_enqueue(NULL, 'target');
SELECT idem_enqueue('staging', 'staging');
SELECT idem_enqueue('staging', 'target', '{v}');
SELECT idem_enqueue('staging', 'target', run_at => NULL);
SELECT idem_enqueue('staging', 'target', max_attempts => 0);
SELECT idem_enqueue('staging', 'target', max_attempts => 1001);
SELECT idem_enqueue('staging', 'target', priority => NULL);
SELECT idem_cancel(NULL);
SELECT idem_wait(NULL);
SELECT idem_cancel(-1);
SELECT idem_wait(-1);
CALL idem_run_jobs(-1);
\set VERBOSITY default
CREATE TEMP TABLE temp_staging (LIKE staging);
SELECT idem_enqueue('temp_staging', 'target');
CREATE UNLOGGED TABLE unlogged_staging (LIKE staging);
SELECT idem_enqueue('unlogged_staging', 'target');
CREATE TABLE parted_staging (LIKE staging) PARTITION BY LIST (id);
CREATE UNLOGGED TABLE unlogged_part PARTITION OF parted_staging DEFAULT;
SELECT idem_enqueue('parted_staging', 'target');
SELECT idem_enqueue(0, 'target');
BEGIN;
CALL idem_run_jobs();
ROLLBACK;
DO $$
DECLARE
    succeeded int;
    failed int;
BEGIN
    CALL idem_run_jobs(NULL, succeeded, failed);
EXCEPTION WHEN invalid_transaction_termination THEN
    RAISE NOTICE '%', SQLERRM;
END $$;
BEGIN;
SELECT idem_enqueue('staging', 'target', '{id}', 'uncommitted') IS NOT NULL AS enqueued;
DO $$
BEGIN
    PERFORM idem_wait(job('uncommitted'));
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RAISE NOTICE '%', regexp_replace(SQLERRM, '\d+', 'N');
END $$;
ROLLBACK;
BEGIN READ ONLY;
SELECT idem_enqueue('staging', 'target');
ROLLBACK;
BEGIN READ ONLY;
SELECT idem_cancel(job('b1'));
ROLLBACK;
BEGIN READ ONLY;
SELECT status FROM idem_wait(job('b1'));
ROLLBACK;

-- a job that waits does not end the wait before its time
SELECT idem_enqueue('staging', 'target', '{id}', 'waiting', run_at => 'infinity') IS NOT NULL AS enqueued;
SELECT status FROM idem_wait(job('waiting'), '10 ms');
SELECT idem_cancel(job('waiting'));

-- roles: nobody sees, cancels, waits for or runs the jobs of others
SET ROLE regress_jobs_loader;
SELECT idem_enqueue('staging', 'target', '{id}', 'theirs') IS NOT NULL AS enqueued;
SELECT job('theirs') AS theirs \gset
SELECT count(*) AS own FROM idem_jobs;
SET ROLE regress_jobs_other;
SELECT count(*) AS others FROM idem_jobs;
\set VERBOSITY sqlstate
SELECT idem_cancel(:theirs);
SELECT idem_wait(:theirs);
SELECT count(*) FROM idem_job;
INSERT INTO idem_job DEFAULT VALUES;
UPDATE idem_job SET role = current_user::regrole;
DELETE FROM idem_job;
SELECT nextval('idem_job_job_id_seq');
\set VERBOSITY default
CALL idem_run_jobs();
RESET ROLE;
CALL idem_run_jobs();
SELECT status FROM idem_wait(:theirs, '0');
GRANT regress_jobs_loader TO regress_jobs_other;
SET ROLE regress_jobs_other;
SELECT count(*) AS of_a_role_that_one_is_in FROM idem_jobs;
SELECT idem_cancel(:theirs);
SELECT status, message FROM idem_wait(:theirs);
RESET ROLE;

-- rights are those at the time of running (a notice would have the job's number)
SET client_min_messages = warning;
SET ROLE regress_jobs_loader;
SELECT idem_enqueue('staging', 'target', '{id}', 'revoked') IS NOT NULL AS enqueued;
RESET ROLE;
REVOKE INSERT ON target FROM regress_jobs_loader;
SET ROLE regress_jobs_loader;
CALL idem_run_jobs();
SELECT * FROM status('revoked');
SELECT idem_enqueue('staging', 'target', '{id}', 'no right');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION idem_merge FROM PUBLIC;
GRANT INSERT ON target TO regress_jobs_loader;
SET ROLE regress_jobs_loader;
SELECT idem_enqueue('staging', 'target', '{id}', 'no function') IS NOT NULL AS enqueued;
CALL idem_run_jobs();
SELECT * FROM status('no function');
RESET ROLE;
GRANT EXECUTE ON FUNCTION idem_merge TO PUBLIC;
RESET client_min_messages;

-- a role without LOGIN has no process of its own
SET ROLE regress_jobs_group;
SELECT idem_enqueue('staging', 'target');
RESET ROLE;

-- a trigger that changes the role ends the run, not the job before it; from
-- PostgreSQL 18 on (jobs_2.out) it may not do so, and its job fails
CREATE FUNCTION become() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('role', 'regress_jobs_other', false);
    RETURN NULL;
END $$;
CREATE TABLE becomes (LIKE target INCLUDING ALL);
CREATE CONSTRAINT TRIGGER become AFTER INSERT ON becomes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION become();
SELECT idem_enqueue('staging', 'becomes', '{id}', 'becomes') IS NOT NULL AS enqueued;
\set VERBOSITY sqlstate
CALL idem_run_jobs();
\set VERBOSITY default
RESET ROLE;
SELECT status FROM status('becomes');
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- what one call has in memory does not grow with the jobs that it runs
CREATE TABLE memory (number int GENERATED ALWAYS AS IDENTITY, used bigint);
CREATE FUNCTION note_memory() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs.memory (used) SELECT sum(used_bytes) FROM pg_backend_memory_contexts;
    RETURN NULL;
END $$;
CREATE TABLE noted (LIKE target INCLUDING ALL);
CREATE TRIGGER note_memory AFTER INSERT OR UPDATE ON noted FOR EACH ROW EXECUTE FUNCTION note_memory();
CREATE VIEW ever_new AS SELECT 1 AS id, clock_timestamp()::text AS v;
CREATE VIEW unreadable AS SELECT id, (1 / (id - id))::text AS v FROM staging;
SELECT count(idem_enqueue(staging, 'noted', '{id}', 'noted ' || i || staging))
FROM generate_series(1, 30) AS i, unnest('{ever_new,unreadable}'::regclass[]) AS staging;
SET client_min_messages = warning;
CALL idem_run_jobs();
RESET client_min_messages;
SELECT max(used) FILTER (WHERE number = 30) - max(used) FILTER (WHERE number = 10) < 20 * 2000 AS constant FROM memory;

-- what a worker would do, without one: old jobs go, and those of dropped roles fail
CREATE ROLE regress_jobs_gone LOGIN;
GRANT USAGE ON SCHEMA jobs TO regress_jobs_gone;
GRANT SELECT ON staging TO regress_jobs_gone;
GRANT SELECT, INSERT, UPDATE ON target TO regress_jobs_gone;
SET ROLE regress_jobs_gone;
SELECT idem_enqueue('staging', 'target', '{id}', 'roleless') IS NOT NULL AS enqueued;
RESET ROLE;
DROP OWNED BY regress_jobs_gone;
DROP ROLE regress_jobs_gone;
UPDATE idem_job SET finished_at = now() - interval '8 days' WHERE batch_id IN ('becomes', 'noted 1ever_new');
SELECT count(*) AS old FROM idem_job WHERE finished_at < now() - interval '7 days';
CALL idem_maintain() \g /dev/null
SELECT count(*) AS old FROM idem_job WHERE finished_at < now() - interval '7 days';
SELECT status, sqlstate, message FROM idem_job WHERE batch_id = 'roleless';
SELECT count(*) > 0 AS others_stay FROM idem_job WHERE finished_at IS NOT NULL;

-- rights on all tables are no right to have something run as somebody else
CREATE ROLE regress_jobs_writer;
GRANT pg_write_all_data, pg_read_all_data TO regress_jobs_writer;
SET session_replication_role = replica;
SET ROLE regress_jobs_writer;
INSERT INTO idem_job DEFAULT VALUES;
UPDATE idem_job SET role = 'regress_jobs_loader' WHERE batch_id = 'roleless';
DELETE FROM idem_job;
RESET ROLE;
RESET session_replication_role;
SELECT idem_job_guard();
DROP ROLE regress_jobs_writer;

-- what is dumped: jobs that wait, and whose role and relations are there
SELECT condition LIKE '%finished_at IS NULL%' AS waiting_only
FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS c (oid, condition)
WHERE e.extname = 'idempotent_ingest' AND c.oid = 'idem_job'::regclass;

SET client_min_messages = warning;
DROP SCHEMA jobs CASCADE;
DELETE FROM idem_job;
REVOKE regress_jobs_loader FROM regress_jobs_other;
DROP ROLE regress_jobs_loader, regress_jobs_other, regress_jobs_group;
