--
-- Retention: batches expire and are still recognised, keys can go, and the
-- newest batch of a pipeline stays.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
LOAD 'idempotent_ingest';
-- Nobody is disturbed by steps that follow each other at once.
SET idempotent_ingest.maintenance_delay = 0;
CREATE SCHEMA retention;
SET search_path = retention, public;
\set SHOW_CONTEXT never
\pset format unaligned

-- What other tests have left is none of our business.
TRUNCATE idem_ledger, idem_retention, idem_sweep, idem_newest;

CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    detail text;
    hint text;
    result text;
BEGIN
    EXECUTE statement INTO result;
    RETURN coalesce(result, 'null');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN state || ': ' || message || E'\n  DETAIL: ' ||
        regexp_replace(detail, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-][0-9:]+', '<time>', 'g') || E'\n  HINT: ' || hint;
END $$;

-- Makes batches older, and lets maintenance look at all of the ledger again,
-- as it does by itself when the time has come.
CREATE FUNCTION age(batches text, days int) RETURNS void LANGUAGE sql AS $$
    UPDATE idem_ledger SET applied_at = applied_at - make_interval(days => days) WHERE batch_id ~ batches;
    UPDATE idem_sweep SET due = '-infinity';
$$;

CREATE VIEW states AS
SELECT target, pipeline, string_agg(batch_id || CASE WHEN expired THEN ' expired' ELSE '' END, ', '
                                    ORDER BY batch_id COLLATE "C") AS batches
FROM idem_batches GROUP BY target, pipeline ORDER BY target::text, pipeline COLLATE "C";

CREATE TABLE t (k int PRIMARY KEY, v text);
CREATE TABLE u (k int PRIMARY KEY, v text);
CREATE TABLE s (k int, v text);
INSERT INTO s VALUES (1, 'one'), (2, 'two');

--
-- Settings
--
SHOW idempotent_ingest.retention;
SHOW idempotent_ingest.key_retention;
SELECT name, setting, unit, context, vartype, min_val, max_val FROM pg_settings
WHERE name IN ('idempotent_ingest.retention', 'idempotent_ingest.key_retention') ORDER BY name;
-- the message has units from PostgreSQL 17 on
\set VERBOSITY sqlstate
SET idempotent_ingest.retention = '-1d';
SET idempotent_ingest.retention = '400000d';
SET idempotent_ingest.retention = 'soon';
\set VERBOSITY default
SET idempotent_ingest.key_retention = '36500d';
SHOW idempotent_ingest.key_retention;
RESET idempotent_ingest.key_retention;

--
-- Nothing is due
--
CALL idem_maintain();
SELECT rows_inserted FROM idem_merge('s', 't', '{k}', 'b1', metadata => '{"file": "a.csv"}');
SELECT idem_claim('c1', 't', fingerprint => 'abc');
UPDATE s SET v = 'TWO' WHERE k = 2;
SELECT rows_updated, expired FROM idem_merge('s', 't', '{k}', 'b2', 'p');
SELECT rows_updated FROM idem_merge('s', 't', '{k}', 'b3', 'p');
SELECT rows_updated FROM idem_merge('s', 't', '{k}', 'b4', on_duplicate => 'any');
CALL idem_maintain();
TABLE states;

--
-- All that are old expire, but for the newest of each pipeline
--
CREATE TABLE before AS SELECT batch_id, xid, applied_at, revision, operation FROM idem_batches;
SELECT age('.', 91);
UPDATE before SET applied_at = applied_at - interval '91 days';
CALL idem_maintain();
TABLE states;
-- there is no more to do
CALL idem_maintain();
-- of those that have expired, this much is left
SELECT l.batch_id, l.target, l.target_type, l.pipeline, (l.xid, l.applied_at, l.revision, l.operation) = (b.xid, b.applied_at, b.revision, b.operation) AS same,
       num_nonnulls(fingerprint, fingerprint_version, fingerprint_columns, earlier_fingerprints, rows_staged, rows_duplicate,
                    rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_stale, rows_skipped, engine, elapsed, role,
                    application_name, options, metadata) AS details
FROM idem_ledger l JOIN before b USING (batch_id) ORDER BY l.batch_id;

--
-- A replay of what has expired: staging is not read, options are not compared
--
SELECT m.status, m.summary, m.pipeline, m.target, m.revision, m.expired, m.applied_at = b.applied_at AS same_time,
       num_nonnulls(rows_staged, rows_duplicate, rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_stale,
                    rows_skipped, fingerprint, engine, elapsed) AS others
FROM idem_merge('s', 't', '{k}', 'b1') m JOIN before b USING (batch_id);
CREATE VIEW unreadable AS SELECT k, (1 / (k - k))::text AS v FROM s;
SELECT summary FROM idem_merge('unreadable', 't', '{k}', 'b1');
SELECT summary FROM idem_merge('unreadable', 't', '{k}', 'b1', mode => 'insert', on_mismatch => 'skip');
SELECT try($$SELECT summary FROM idem_merge('s', 't', '{k}', 'b1', on_replay => 'error')$$);
-- it writes nothing
BEGIN;
SELECT summary FROM idem_merge('s', 't', '{k}', 'b1');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
ROLLBACK;
-- a claim is still a claim, and its fingerprint is not known any more
SELECT idem_claim('c1', 't', fingerprint => 'abc'), idem_claim('c1', 't', fingerprint => 'other');
SELECT try($$SELECT summary FROM idem_merge('s', 't', '{k}', 'c1')$$);
SELECT try($$SELECT idem_claim('b1', 't')$$);
-- II004 where this transaction has lost the rows
BEGIN;
TRUNCATE t;
SELECT try($$SELECT summary FROM idem_merge('s', 't', '{k}', 'b1')$$);
SELECT try($$SELECT idem_claim('c1', 't')$$);
ROLLBACK;
-- a dry run does not ask the ledger
SELECT summary, expired FROM idem_merge('s', 't', '{k}', 'b1', dry_run => true);

--
-- Applied again on purpose, it is as alive as any
--
SELECT summary, revision, expired FROM idem_merge('s', 't', '{k}', 'b1', on_replay => 'reapply');
SELECT summary, revision, expired FROM idem_merge('s', 't', '{k}', 'b1');
SELECT revision, expired, earlier_fingerprints, options FROM idem_batches JOIN idem_ledger USING (target, pipeline, batch_id, revision, options) WHERE batch_id = 'b1';
-- it is not the oldest any more
CALL idem_maintain();
SELECT summary, revision FROM idem_merge('s', 't', '{k}', 'b2', 'p', on_mismatch => 'apply');
SELECT summary, revision FROM idem_merge('s', 't', '{k}', 'b2', 'p', on_mismatch => 'apply');
SELECT action, entry -> 'fingerprint' AS fingerprint, entry -> 'applied_at' IS NOT NULL AS applied_at FROM idem_audit WHERE entry ->> 'target' = 'retention.t'
ORDER BY audit_id;
CALL idem_maintain();
TABLE states;

--
-- Derived ids are compared with the target all the same
--
INSERT INTO s VALUES (3, 'three');
SELECT summary FROM idem_merge('s', 't', '{k}');
SELECT idem_claim('later', 't');
SELECT age('content', 91);
CALL idem_maintain();
SELECT summary, expired FROM idem_merge('s', 't', '{k}');
UPDATE t SET v = 'changed' WHERE k = 3;
SELECT regexp_replace(try($$SELECT summary FROM idem_merge('s', 't', '{k}')$$), 'content:\w+', 'content:<hash>');
SELECT try($$SELECT summary FROM idem_merge('s', 't', '{k}', on_replay => 'reapply')$$);

--
-- Batches of one table can be kept longer, and of one pipeline shorter
--
TRUNCATE idem_ledger, idem_sweep, idem_newest;
SELECT idem_set_retention('t', '1000 days');
SELECT idem_set_retention('t', '1 day', pipeline => 'p');
SELECT idem_set_retention('t', '0', pipeline => 'for ever');
SELECT count(idem_claim('c' || i, x::regclass, p)) FROM generate_series(1, 3) i, unnest('{t,u}'::text[]) x, unnest('{"",p,for ever}'::text[]) p;
SELECT age('[12]', 2);
CALL idem_maintain();
TABLE states;
SELECT age('[12]', 98);
CALL idem_maintain();
TABLE states;
SELECT age('[12]', 900);
CALL idem_maintain();
TABLE states;
SELECT * FROM idem_retention ORDER BY target::text, pipeline;
-- how values are written does not matter to what is to be looked at again
CREATE TABLE looked AS TABLE idem_sweep;
SET IntervalStyle = iso_8601;
SET bytea_output = escape;
CALL idem_maintain();
SELECT count(*) FROM (TABLE idem_sweep EXCEPT TABLE looked) AS again;
RESET IntervalStyle;
RESET bytea_output;
-- to remove a retention makes maintenance look again
SELECT idem_set_retention('t', pipeline => 'for ever'), idem_set_retention('t');
SELECT count(*) FROM idem_retention;
CALL idem_maintain();
TABLE states;
-- so does a setting
UPDATE idem_ledger SET applied_at = now() - interval '30 minutes';
CALL idem_maintain();
SET idempotent_ingest.retention = '20min';
UPDATE idem_ledger SET applied_at = now() WHERE batch_id = 'c3';
UPDATE idem_ledger SET options = '{}' WHERE batch_id = 'c2';
CALL idem_maintain();
TABLE states;
RESET idempotent_ingest.retention;

--
-- Keys
--
SET idempotent_ingest.key_retention = '25min';
SELECT idem_set_retention('u', key_retention => '0', pipeline => 'p');
CALL idem_maintain();
TABLE states;
SELECT idem_claim('c1', 't'), idem_claim('c1', 'u', 'p');
-- the newest stays, whatever its age
SELECT age('.', 1);
CALL idem_maintain();
TABLE states;
RESET idempotent_ingest.key_retention;

--
-- Dropped tables and roles
--
TRUNCATE idem_ledger, idem_retention, idem_sweep, idem_newest;
CREATE ROLE regress_idem_gone;
CREATE TABLE gone (k int PRIMARY KEY);
SELECT idem_claim('1', 'gone'), idem_claim('2', 'gone'), idem_claim('1', 't');
SET ROLE regress_idem_gone;
SELECT idem_claim('1'), idem_claim('2');
RESET ROLE;
CALL idem_maintain();
DROP TABLE gone;
DROP ROLE regress_idem_gone;
CALL idem_maintain();
SELECT target, batch_id, claimed_by::text ~ '^\d+$' AS role_is_gone FROM idem_ledger ORDER BY target, batch_id;
-- claims without a target go when their part of the ledger is looked at
UPDATE idem_sweep SET due = '-infinity';
CALL idem_maintain();
SELECT target, batch_id FROM idem_ledger;
-- so does the retention of a dropped table
CREATE TABLE gone (k int PRIMARY KEY);
SELECT idem_set_retention('gone', '1 day');
DROP TABLE gone;
CALL idem_maintain();
SELECT count(*) FROM idem_retention;
-- a table that has got the OID of another one
UPDATE idem_ledger SET target_type = 'u'::regtype;
UPDATE idem_sweep SET due = '-infinity';
CALL idem_maintain();

--
-- A large ledger is dealt with in several parts
--
TRUNCATE idem_ledger, idem_sweep, idem_newest;
INSERT INTO idem_ledger (target, target_type, pipeline, batch_id, operation, applied_at, role, xid)
SELECT 't', 't'::regtype, '', 'c' || i, 'claim', now(), current_user, pg_current_xact_id() FROM generate_series(10001, 30000) i;
UPDATE idem_ledger SET applied_at = applied_at - interval '91 days' WHERE batch_id <> 'c30000';
CALL idem_maintain();
-- those that the ledger has grown by meanwhile are looked at in a day
SELECT count(*) FILTER (WHERE due BETWEEN now() + interval '80 days' AND now() + interval '91 days') > 1 AS several,
       bool_and(due > now() + interval '22 hours') AS later FROM idem_sweep;
SELECT expired, count(*) FROM idem_batches GROUP BY expired ORDER BY expired;
-- a ledger that was written anew is looked at again
VACUUM FULL idem_ledger;
UPDATE idem_ledger SET options = '{}' WHERE batch_id = 'c10017';
CALL idem_maintain();

-- the clock was set back after that, and then settings have changed
UPDATE idem_sweep SET looked_at = now() + interval '1 year', basis = 'another';
CALL idem_maintain();
SELECT count(*) FROM idem_sweep WHERE basis = 'another';

-- retention so short that what was looked at is due again before the round ends
SELECT idem_set_retention('t', '1 microsecond');
CALL idem_maintain();
SELECT idem_set_retention('t');

-- Batches that find no place on their page when they expire: the parts of the ledger
-- that they move to have been looked at already, and are looked at again in time.
TRUNCATE idem_ledger, idem_sweep, idem_newest;
CREATE FUNCTION add(batches text, number int, age interval) RETURNS void LANGUAGE sql AS $$
    INSERT INTO idem_ledger (target, target_type, pipeline, batch_id, operation, applied_at, role, xid)
    SELECT 't', 't'::regtype, '', rpad(batches || i, 200, '-'), 'claim', now() - age, current_user, pg_current_xact_id()
    FROM generate_series(1, number) i
$$;
SELECT add('old', 160, '95 days');
ALTER TABLE idem_ledger SET (fillfactor = 10);
SELECT add('new', 80, '0');
ALTER TABLE idem_ledger SET (fillfactor = 80);
CREATE VIEW parts AS
SELECT substr(batch_id, 1, 3) AS batches, applied_at, options IS NULL AS expired, s.*
FROM idem_ledger l JOIN idem_sweep s ON s.first_block = floor((l.ctid::text::point)[0] / 8) * 8;
SET idempotent_ingest.retention = '100d';
CALL idem_maintain();
CREATE TABLE last_part AS SELECT max(first_block) AS of_old FROM parts WHERE batches = 'old';
SET idempotent_ingest.retention = '90d';
SET idempotent_ingest.key_retention = '97d';
CALL idem_maintain();
SELECT count(*) > 0 AS have_moved, bool_and(due <= now() + interval '1 day') AS in_time FROM parts
WHERE expired AND first_block > (SELECT of_old FROM last_part);
RESET idempotent_ingest.retention;
RESET idempotent_ingest.key_retention;

--
-- Rights and bad input
--
CREATE ROLE regress_idem_owner;
GRANT USAGE ON SCHEMA retention TO regress_idem_owner;
GRANT INSERT ON t TO regress_idem_owner;
SET ROLE regress_idem_owner;
CALL idem_maintain();
SELECT try($$SELECT idem_set_retention('t', '1 day')$$);
SELECT try($$SELECT idem_set_retention(NULL, '1 day')$$);
SELECT try($$SELECT count(*) FROM idem_retention$$);
SELECT try($$INSERT INTO idem_sweep VALUES (0, now(), '')$$);
SELECT try($$SELECT count(*) FROM idem_newest$$);
SET idempotent_ingest.retention = 1;
RESET ROLE;
ALTER TABLE t OWNER TO regress_idem_owner;
GRANT EXECUTE ON PROCEDURE idem_maintain TO regress_idem_owner;
SET ROLE regress_idem_owner;
SELECT idem_set_retention('t', '1 day');
CALL idem_maintain();
RESET ROLE;
REVOKE EXECUTE ON PROCEDURE idem_maintain FROM regress_idem_owner;
SELECT idem_set_retention(NULL, '1 day', '2 days', 'p');
SELECT * FROM idem_retention ORDER BY target;
SELECT idem_set_retention(NULL, pipeline => 'p'), idem_set_retention('t');
SELECT try($$SELECT idem_set_retention('t', '-1 day')$$);
SELECT try($$SELECT idem_set_retention('t', NULL, '1001 years')$$);
SELECT try($$SELECT idem_set_retention(999999::regclass, '1 day')$$);
SELECT try($$SELECT idem_set_retention('t', '1 day', pipeline => repeat('x', 256))$$);

-- a procedure that commits
BEGIN;
CALL idem_maintain();
ROLLBACK;
CREATE PROCEDURE by_procedure() LANGUAGE plpgsql AS $$
DECLARE
    expired bigint;
    deleted bigint;
BEGIN
    CALL public.idem_maintain(expired, deleted);
    RAISE NOTICE 'expired %, deleted %', expired, deleted;
END $$;
CALL by_procedure();
CREATE FUNCTION by_function() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    expired bigint;
    deleted bigint;
BEGIN
    CALL public.idem_maintain(expired, deleted);
END $$;
SELECT by_function();
SET default_transaction_read_only = on;
CALL idem_maintain();
RESET default_transaction_read_only;

-- A round looks at a part of the ledger once, even if what it notes there is undone
-- at once, as a round with other settings beside it does.
CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.basis := 'another'; RETURN NEW; END $$;
CREATE TRIGGER undo BEFORE UPDATE ON idem_sweep FOR EACH ROW EXECUTE FUNCTION undo();
TRUNCATE idem_sweep;
SET statement_timeout = '1min';
CALL idem_maintain();
RESET statement_timeout;
SELECT count(*) > 0 AS looked_at, bool_and(basis = 'another') AS undone FROM idem_sweep;
DROP TRIGGER undo ON idem_sweep;

SET client_min_messages = warning;
TRUNCATE idem_ledger, idem_retention, idem_sweep, idem_newest;
DROP SCHEMA retention CASCADE;
DROP ROLE regress_idem_owner;
