--
-- The ledger: which calls are replays, which are refused, and what is recorded.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA ledger;
SET search_path = ledger, public;
\set SHOW_CONTEXT never

-- Runs a merge and shows its result, or its error with times masked.
CREATE FUNCTION try_merge(arguments text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    detail text;
    hint text;
    result text;
BEGIN
    EXECUTE 'SELECT format(''%s (revision %s)'', summary, revision) FROM idem_merge(' || arguments || ')' INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN state || ': ' || message || E'\n  DETAIL: ' ||
        regexp_replace(detail, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-][0-9:]+', '<time>', 'g') || E'\n  HINT: ' || hint;
END $$;

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

CREATE TABLE t (k int PRIMARY KEY, v text, n int);
CREATE TABLE s (k int, v text, n int);
INSERT INTO t VALUES (1, 'same', 1), (2, 'old', 2);
INSERT INTO s VALUES (1, 'same', 1), (2, 'new', 2), (3, 'more', 3), (3, 'more', 3);

\pset format unaligned

--
-- A replay returns what was recorded, and writes nothing
--

SELECT status, summary, batch_id, pipeline, target, revision, rows_staged, rows_duplicate, rows_inserted,
       rows_updated, rows_deleted, rows_unchanged, rows_stale, rows_skipped, engine IN ('native', 'sql') AS engine,
       elapsed >= interval '0' AS elapsed, applied_at <= clock_timestamp() AS applied_at
FROM idem_merge('s', 't', '{k}', 'b1', metadata => '{"file": "a.csv"}');
CREATE TABLE first_result AS SELECT * FROM idem_merge('s', 't', '{k}', 'b1');
SELECT status, summary, revision FROM first_result;
-- by hand the target has become another one; the recorded counts stay
UPDATE t SET v = 'changed by hand' WHERE k = 3;
SELECT count(*) AS ledger_before FROM idem_ledger WHERE target = 't'::regclass;
SELECT m.* IS NOT DISTINCT FROM f.* AS same_result
FROM idem_merge('s', 't', '{k}', 'b1', metadata => '{"file": "other.csv"}') m, first_result f;
SELECT count(*) AS ledger_after FROM idem_ledger WHERE target = 't'::regclass;
SELECT * FROM t ORDER BY k;
-- filling staging twice is the same batch
INSERT INTO s SELECT * FROM s;
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
-- the replay wrote neither rows nor the ledger, so that it needs no transaction id
BEGIN;
SELECT try_merge($$'s', 't', '{k}', 'b1', on_mismatch => 'skip'$$);
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
ROLLBACK;

-- the row that people read
SELECT target, pipeline, batch_id, operation, revision, rows_staged, rows_duplicate, rows_inserted, rows_updated,
       rows_deleted, rows_unchanged, rows_stale, rows_skipped, fingerprint = (SELECT fingerprint FROM first_result) AS fingerprint,
       engine IN ('native', 'sql') AS engine, applied_at = (SELECT applied_at FROM first_result) AS applied_at,
       elapsed = (SELECT elapsed FROM first_result) AS elapsed, role = current_user AS role,
       application_name = current_setting('application_name') AS application_name,
       xid < pg_current_xact_id() AS xid, options, metadata
FROM idem_batches WHERE target = 't'::regclass;
-- and what else is kept
SELECT fingerprint_version, fingerprint_columns, earlier_fingerprints, claimed_by, target_type = 't'::regtype AS target_type
FROM idem_ledger WHERE target = 't'::regclass;

--
-- II001: the same id for something else
--

-- content
UPDATE s SET v = 'newer' WHERE k = 2;
INSERT INTO s VALUES (4, 'yet more', 4);
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
-- a single value, also from one empty value to another
UPDATE s SET v = 'new' WHERE k = 2;
DELETE FROM s WHERE k = 4;
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
UPDATE s SET n = NULL WHERE k = 3;
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
UPDATE s SET n = 3 WHERE k = 3;
BEGIN;
UPDATE s SET v = '' WHERE k = 3;
SELECT try_merge($$'s', 't', '{k}', 'empty'$$);
UPDATE s SET v = NULL WHERE k = 3;
SELECT try_merge($$'s', 't', '{k}', 'empty'$$);
ROLLBACK;
-- fewer rows, none at all
BEGIN;
DELETE FROM s WHERE k = 1;
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
DELETE FROM s;
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
ROLLBACK;
-- columns that staging had then
ALTER TABLE s RENAME n TO m;
SELECT try_merge($$'s', 't', '{k}', 'b1', on_schema_change => 'ignore'$$);
ALTER TABLE s RENAME m TO n;
-- options that decide the result, each by its name
CREATE UNIQUE INDEX t_v ON t (v);
SELECT try_merge($$'s', 't', '{v}', 'b1'$$);
DROP INDEX t_v;
SELECT try_merge($$'s', 't', '{k}', 'b1', version_cols => '{n}'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', audit_cols => '{n}'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', update_cols => '{v}'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', exclude_cols => '{v}'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', mode => 'insert'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', on_duplicate => 'any'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', on_stale => 'apply'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', mode => 'update', version_cols => '{n}', on_stale => 'error', on_duplicate => 'any'$$);
-- content and options at once
BEGIN;
DELETE FROM s WHERE k = 1;
SELECT try_merge($$'s', 't', '{k}', 'b1', mode => 'update', exclude_cols => '{v}'$$);
ROLLBACK;
-- what does not decide the result is no difference
SELECT try_merge($$'s', 't', NULL, 'b1', on_duplicate => 'error', on_schema_change => 'ignore', exclusive => true, nowait => true, exclude_cols => '{}'$$);

--
-- on_mismatch => 'skip': a look-up, staging is not read
--

CREATE VIEW unreadable AS SELECT k, v, 1 / (n - n) AS n FROM s;
SELECT try_merge($$'unreadable', 't', '{k}', 'b1', on_mismatch => 'skip'$$);
SELECT try_merge($$'unreadable', 't', '{k}', 'b1', on_mismatch => 'skip', mode => 'insert'$$);
-- a new batch is read all the same
SELECT try($$SELECT status FROM idem_merge('unreadable', 't', '{k}', 'unread', on_mismatch => 'skip')$$);
-- how often a view is read: by the first merge and by a check once each, by a skip never
CREATE SEQUENCE reads;
CREATE FUNCTION read_once() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN PERFORM nextval('ledger.reads'); RETURN true; END $$;
CREATE VIEW counted AS SELECT k, v, n FROM s WHERE k = 1 AND read_once();
DELETE FROM s WHERE ctid NOT IN (SELECT min(ctid) FROM s GROUP BY k);
SELECT try_merge($$'counted', 't', '{k}', 'counted'$$);
SELECT last_value FROM reads;
SELECT try_merge($$'counted', 't', '{k}', 'counted'$$);
SELECT last_value FROM reads;
SELECT try_merge($$'counted', 't', '{k}', 'counted', on_mismatch => 'skip'$$);
SELECT last_value FROM reads;
SELECT idem_forget('t', 'counted');

--
-- on_mismatch => 'apply' and on_replay: the same id again, on purpose
--

SELECT try_merge($$'s', 't', '{k}', 'b1', on_replay => 'error'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1', on_replay => 'error', on_mismatch => 'skip'$$);
-- an error for a mismatch comes before
SELECT try_merge($$'s', 't', '{k}', 'b1', on_replay => 'error', mode => 'insert'$$);
-- a new batch is not a replay
BEGIN;
SELECT try_merge($$'s', 't', '{k}', 'brand new', on_replay => 'error'$$);
SELECT try_merge($$'s', 't', '{k}', 'brand new 2', on_replay => 'reapply'$$);
SELECT try_merge($$'s', 't', '{k}', 'brand new 3', on_mismatch => 'apply'$$);
ROLLBACK;
-- what was changed by hand is brought back, with fresh counts; the fingerprint is the same and is kept once
SELECT status, summary, revision FROM idem_merge('s', 't', '{k}', 'b1', on_replay => 'reapply');
SELECT * FROM t ORDER BY k;
-- other content under the same id
UPDATE s SET v = 'corrected' WHERE k = 3;
SELECT try_merge($$'s', 't', '{k}', 'b1', on_replay => 'reapply'$$);
SELECT status, summary, revision FROM idem_merge('s', 't', '{k}', 'b1', on_mismatch => 'apply', metadata => '{"file": "b.csv"}');
-- which is the batch from now on; the same again is a replay, whatever on_mismatch says
SELECT try_merge($$'s', 't', '{k}', 'b1', on_mismatch => 'apply'$$);
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
UPDATE s SET v = 'more' WHERE k = 3;
SELECT try_merge($$'s', 't', '{k}', 'b1'$$);
-- other options under the same id
SELECT try_merge($$'s', 't', '{k}', 'b1', on_mismatch => 'apply', mode => 'insert'$$);
SELECT revision, cardinality(earlier_fingerprints) AS earlier,
       earlier_fingerprints[1] = (SELECT fingerprint FROM first_result) AS first_kept,
       earlier_fingerprints[2] = earlier_fingerprints[1] AS reapplied_again,
       fingerprint = earlier_fingerprints[1] AS back_again, options, metadata
FROM idem_ledger WHERE target = 't'::regclass AND batch_id = 'b1';
SELECT action, role = current_user AS role, reason, entry ->> 'batch_id' AS batch_id, entry ->> 'revision' AS revision,
       entry ->> 'rows_inserted' AS inserted, entry ->> 'rows_updated' AS updated, entry -> 'metadata' AS metadata, entry ? 'earlier_fingerprints' AS earlier
FROM idem_audit WHERE entry ->> 'batch_id' = 'b1' AND entry ->> 'target' = 'ledger.t' ORDER BY audit_id;
-- one that fails leaves the batch as it was
UPDATE s SET k = NULL WHERE k = 3;
SELECT try_merge($$'s', 't', '{k}', 'b1', on_mismatch => 'apply'$$);
SELECT revision FROM idem_batches WHERE target = 't'::regclass AND batch_id = 'b1';
UPDATE s SET k = 3 WHERE k IS NULL;

-- pipelines: a batch is of one sender
SELECT try_merge($$'s', 't', '{k}', 'p', 'north'$$);
SELECT try_merge($$'s', 't', '{k}', 'p', 'south'$$);
SELECT try_merge($$'s', 't', '{k}', 'p'$$);
SELECT try_merge($$'s', 't', '{k}', 'p', 'North'$$);
SELECT try_merge($$'s', 't', '{k}', 'p', 'north'$$);
SELECT pipeline FROM idem_batches WHERE target = 't'::regclass AND batch_id = 'p' ORDER BY 1;

-- a batch that changes nothing, and an empty one, are recorded like any other
CREATE TABLE nothing (LIKE s);
SELECT try_merge($$'nothing', 't', '{k}', 'empty'$$);
SELECT try_merge($$'nothing', 't', '{k}', 'empty'$$);
INSERT INTO nothing VALUES (1, 'same', 1);
SELECT try_merge($$'nothing', 't', '{k}', 'empty'$$);
TRUNCATE nothing;
-- without an id, an empty batch leaves no trace
SELECT status, batch_id, revision, rows_staged, applied_at FROM idem_merge('nothing', 't');
SELECT count(*) FROM idem_batches WHERE target = 't'::regclass AND rows_staged = 0;

-- columns added meanwhile: the batch is checked by the columns that it had
ALTER TABLE t ADD extra int DEFAULT 7;
SELECT try_merge($$'s', 't', '{k}', 'p'$$);
ALTER TABLE s ADD extra int DEFAULT 8;
SELECT try_merge($$'s', 't', '{k}', 'p'$$);
-- and columns dropped from the target meanwhile
CREATE VIEW view_of_s AS SELECT k, v, n, extra FROM s;
SELECT try_merge($$'view_of_s', 't', '{k}', 'wide'$$);
ALTER TABLE t DROP extra;
SELECT try_merge($$'s', 't', '{k}', 'wide', on_schema_change => 'ignore'$$);
SELECT try_merge($$'view_of_s', 't', '{k}', 'wide', on_schema_change => 'ignore'$$);
DROP VIEW view_of_s;
ALTER TABLE s DROP extra;

-- the options, in one spelling: without defaults, lists sorted where their order means nothing
CREATE TABLE o (a int, b int, x text, y text, ver int, seq int, loaded int, run int, PRIMARY KEY (b, a));
CREATE TABLE o_s (LIKE o);
SELECT try_merge($$'o_s', 'o', '{a,b}', 'o1', version_cols => '{ver,seq}', audit_cols => '{run,loaded}', exclude_cols => '{y,x}', on_duplicate => 'any', on_stale => 'apply'$$);
SELECT try_merge($$'o_s', 'o', '{a,b}', 'o2', update_cols => '{y,x}', mode => 'update', on_duplicate => 'error'$$);
SELECT try_merge($$'o_s', 'o', batch_id => 'o3', update_cols => '{}', version_cols => '{seq,ver}', on_duplicate => 'latest'$$);
SELECT batch_id, options FROM idem_batches WHERE target = 'o'::regclass ORDER BY batch_id;
-- the order of version columns does mean something, that of others does not
SELECT try_merge($$'o_s', 'o', '{b,a}', 'o1', version_cols => '{ver,seq}', audit_cols => '{loaded,run}', exclude_cols => '{x,y}', on_duplicate => 'any', on_stale => 'apply'$$);
SELECT try_merge($$'o_s', 'o', '{b,a}', 'o1', version_cols => '{seq,ver}', audit_cols => '{loaded,run}', exclude_cols => '{x,y}', on_duplicate => 'any', on_stale => 'apply'$$);
-- nor that of the columns in the index of the key, which another one may replace
INSERT INTO o_s VALUES (1, 2, 'x', 'y', 1, 1, 1, 1);
SELECT try_merge($$'o_s', 'o', '{a,b}', 'o4'$$);
SELECT status, batch_id AS id_of_o FROM idem_merge('o_s', 'o', '{a,b}') \gset
ALTER TABLE o DROP CONSTRAINT o_pkey, ADD UNIQUE (a, b), ALTER a SET NOT NULL, ALTER b SET NOT NULL;
SELECT try_merge($$'o_s', 'o', '{a,b}', 'o4'$$);
SELECT status, batch_id = :'id_of_o' AS same_id FROM idem_merge('o_s', 'o', '{a,b}');

--
-- Derived batch ids: content and options make them
--

CREATE TABLE full_t (k int PRIMARY KEY, v text, loaded int);
CREATE TABLE full_s (k int, v text, loaded int);
INSERT INTO full_s VALUES (1, 'A', 1), (2, 'A', 1);
SELECT status, summary, batch_id = 'content:' || right(batch_id, 32) AS derived, length(batch_id) AS length
FROM idem_merge('full_s', 'full_t');
SELECT batch_id AS id_of_a FROM idem_batches WHERE target = 'full_t'::regclass \gset
-- again: the target has it all, so that it is a replay
SELECT status, summary, batch_id = :'id_of_a' AS same_id FROM idem_merge('full_s', 'full_t');
-- other options make another id
BEGIN;
SELECT status, batch_id = :'id_of_a' AS same_id FROM idem_merge('full_s', 'full_t', audit_cols => '{loaded}');
SELECT status, batch_id = :'id_of_a' AS same_id FROM idem_merge('full_s', 'full_t', mode => 'insert');
ROLLBACK;
-- a full extract that goes from A to B and returns to A: skipping it would leave B
UPDATE full_s SET v = 'B';
SELECT try_merge($$'full_s', 'full_t'$$);
UPDATE full_s SET v = 'A';
SELECT replace(try_merge($$'full_s', 'full_t'$$), :'id_of_a', '<id of A>');
SELECT * FROM full_t ORDER BY k;
-- one row that differs
UPDATE full_t SET v = 'A' WHERE k = 1;
SELECT replace(try_merge($$'full_s', 'full_t'$$), :'id_of_a', '<id of A>');
-- a row that was deleted
UPDATE full_t SET v = 'A';
DELETE FROM full_t WHERE k = 2;
SELECT replace(try_merge($$'full_s', 'full_t'$$), :'id_of_a', '<id of A>');
-- the ways out
BEGIN;
SELECT try_merge($$'full_s', 'full_t', on_replay => 'reapply'$$);
SELECT * FROM full_t ORDER BY k;
ROLLBACK;
BEGIN;
SELECT try_merge($$'full_s', 'full_t', batch_id => 'A again'$$);
SELECT * FROM full_t ORDER BY k;
ROLLBACK;
SELECT replace(try_merge($$'full_s', 'full_t', on_replay => 'error'$$), :'id_of_a', '<id of A>');
-- once the target has it again, on_replay => 'error' has nothing else to say
BEGIN;
SELECT try_merge($$'full_s', 'full_t', on_replay => 'reapply'$$);
SELECT replace(try_merge($$'full_s', 'full_t', on_replay => 'error'$$), :'id_of_a', '<id of A>');
ROLLBACK;
-- emptied: all of it is missing
TRUNCATE full_t;
SELECT replace(try_merge($$'full_s', 'full_t'$$), :'id_of_a', '<id of A>');
SELECT try_merge($$'full_s', 'full_t', on_replay => 'reapply'$$);
-- nothing to change although other rows came in
INSERT INTO full_t VALUES (3, 'C', 1);
SELECT try_merge($$'full_s', 'full_t'$$);
-- stale rows are nothing to change
CREATE TABLE ver_t (k int PRIMARY KEY, v text, n int);
CREATE TABLE ver_s (k int, v text, n int);
INSERT INTO ver_s VALUES (1, 'first', 1);
SELECT try_merge($$'ver_s', 'ver_t', version_cols => '{n}'$$);
UPDATE ver_s SET v = 'second', n = 2;
SELECT try_merge($$'ver_s', 'ver_t', version_cols => '{n}'$$);
UPDATE ver_s SET v = 'first', n = 1;
SELECT try_merge($$'ver_s', 'ver_t', version_cols => '{n}'$$);
SELECT * FROM ver_t;

--
-- II004: the batch is in the ledger, and the target has lost it
--

CREATE TABLE day (k int PRIMARY KEY, v text);
CREATE TABLE day_s (k int, v text);
INSERT INTO day_s VALUES (1, 'one'), (2, 'two');
-- truncate and reload, in one transaction, retried after it had been committed
BEGIN;
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
COMMIT;
BEGIN;
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1', on_mismatch => 'skip'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1', on_replay => 'error'$$);
ROLLBACK;
-- the error, not caught, ends the transaction, and nothing is lost; what would be
-- applied is no loss
BEGIN;
DELETE FROM day;
SELECT status FROM idem_merge('day_s', 'day', '{k}', 'no such batch');
\set VERBOSITY sqlstate
SELECT status FROM idem_merge('day_s', 'day', '{k}', 'd1');
\set VERBOSITY default
COMMIT;
SELECT * FROM day ORDER BY k;
-- the same by DELETE, also of some rows only, and of none
BEGIN;
DELETE FROM day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
DELETE FROM day WHERE k = 2;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
DELETE FROM day WHERE k = 99;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- whatever else the transaction did to the table meanwhile
BEGIN;
DELETE FROM day WHERE k = 2;
ANALYZE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
DELETE FROM day WHERE k = 2;
CREATE INDEX ON day (v);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
TRUNCATE day;
INSERT INTO day VALUES (3, 'three');
ALTER TABLE day ADD COLUMN more int;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
CREATE INDEX ON day (v);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- in a savepoint that was released; one that was rolled back is no loss
BEGIN;
SAVEPOINT a;
DELETE FROM day;
RELEASE a;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
SAVEPOINT a;
DELETE FROM day;
ROLLBACK TO a;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
SAVEPOINT b;
TRUNCATE day;
ROLLBACK TO b;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- rows that were put in after a TRUNCATE do not hide it
BEGIN;
TRUNCATE day;
INSERT INTO day VALUES (9, 'other');
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- what was deleted before a batch was recorded is a loss of other batches, not of this one
BEGIN;
DELETE FROM day WHERE k = 1;
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
SELECT idem_claim('c0', 'day');
SELECT try($$SELECT idem_claim('c0', 'day')$$);
SAVEPOINT a;
DELETE FROM day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
SELECT try($$SELECT idem_claim('c0', 'day')$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd0', on_replay => 'reapply'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
ROLLBACK TO a;
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
DELETE FROM day WHERE k = 2;
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd0', pipeline => 'other'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd0', pipeline => 'other'$$);
ROLLBACK;
-- when a TRUNCATE was is not known: to be on the safe side
BEGIN;
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd0'$$);
ROLLBACK;
-- new storage tells of a TRUNCATE where nothing is counted
SET track_counts = off;
BEGIN;
TRUNCATE day;
INSERT INTO day VALUES (9, 'other');
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
RESET track_counts;
-- rewriting the table is no loss
BEGIN;
ALTER TABLE day ALTER v TYPE varchar(10);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- the way out
BEGIN;
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1', on_replay => 'reapply'$$);
SELECT count(*) FROM day;
ROLLBACK;
BEGIN;
TRUNCATE day;
SELECT idem_forget('day', 'd1');
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- a deletion from another table is none here
BEGIN;
DELETE FROM day_s WHERE k = 99;
DELETE FROM full_t;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
ROLLBACK;
-- emptied by an earlier transaction
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
-- a batch that wrote nothing cannot be lost
SELECT try_merge($$'day_s', 'day', '{k}', 'd2', mode => 'update'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd2', mode => 'update'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1', on_replay => 'reapply'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
-- one that has found its rows in the target can be lost, though it wrote none
BEGIN;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1', on_replay => 'reapply'$$);
COMMIT;
CREATE TABLE day_kept AS TABLE day;
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd1'$$);
INSERT INTO day TABLE day_kept;
-- an id of the day that comes with a truncated table is a new batch
BEGIN;
TRUNCATE day;
SELECT try_merge($$'day_s', 'day', '{k}', 'd3'$$);
SELECT count(*) FROM day;
ROLLBACK;
-- partitioned targets: a loss in any part is one, if it is of this transaction;
-- of others, all parts have to be empty
CREATE TABLE parted (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (2);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (2) TO (9) PARTITION BY RANGE (k);
CREATE TABLE parted_2_1 PARTITION OF parted_2 FOR VALUES FROM (2) TO (9);
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);
BEGIN;
TRUNCATE parted;
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
TRUNCATE parted_2_1;
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);
ROLLBACK;
BEGIN;
DELETE FROM parted WHERE k = 1;
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);
ROLLBACK;
-- moving a row to another partition deletes it from its own
BEGIN;
UPDATE parted SET k = 5 WHERE k = 1;
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);
ROLLBACK;
TRUNCATE parted_1;
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);
TRUNCATE parted_2_1;
SELECT try_merge($$'day_s', 'parted', '{k}', 'd1'$$);

--
-- An inbox: merged and emptied in one transaction. (That rows which arrive
-- meanwhile are not lost is shown in the isolation test.)
--

CREATE TABLE inbox (k int, v text);
CREATE TABLE orders (k int PRIMARY KEY, v text);
INSERT INTO inbox VALUES (1, 'one'), (2, 'two');
BEGIN;
SELECT try_merge($$'inbox', 'orders'$$);
DELETE FROM inbox;
COMMIT;
-- the next rows are another batch, and an empty inbox is none
SELECT try_merge($$'inbox', 'orders'$$);
INSERT INTO inbox VALUES (3, 'three');
BEGIN;
SELECT try_merge($$'inbox', 'orders'$$);
DELETE FROM inbox;
ROLLBACK;
SELECT count(*) AS in_inbox FROM inbox;
BEGIN;
SELECT try_merge($$'inbox', 'orders'$$);
DELETE FROM inbox;
COMMIT;
-- a fixed id would take every later filling for another content of the batch
INSERT INTO inbox VALUES (4, 'four');
SELECT try_merge($$'inbox', 'orders', '{k}', 'inbox'$$);
DELETE FROM inbox;
INSERT INTO inbox VALUES (5, 'five');
SELECT try_merge($$'inbox', 'orders', '{k}', 'inbox'$$);
SELECT try_merge($$'inbox', 'orders', '{k}', 'inbox', on_mismatch => 'apply'$$);
SELECT * FROM orders ORDER BY k;

--
-- What a target is
--

-- renamed or moved: the same one
ALTER TABLE orders RENAME TO all_orders;
INSERT INTO inbox VALUES (6, 'six');
SELECT try_merge($$'inbox', 'all_orders', '{k}', 'inbox', on_mismatch => 'skip'$$);
CREATE SCHEMA ledger_other;
ALTER TABLE all_orders SET SCHEMA ledger_other;
SELECT target, batch_id, revision FROM idem_batches WHERE target = 'ledger_other.all_orders'::regclass AND batch_id = 'inbox';
-- dropped and made anew: another one, which has no batches
DROP TABLE ledger_other.all_orders;
SELECT count(*) FROM idem_batches WHERE batch_id = 'inbox' AND rows_inserted = 1;
CREATE TABLE orders (k int PRIMARY KEY, v text);
SELECT try_merge($$'inbox', 'orders', '{k}', 'inbox'$$);
-- also where the new table got the OID of the old one: its row type tells
UPDATE idem_ledger SET target_type = 'day'::regtype, rows_inserted = 42 WHERE target = 'orders'::regclass;
SELECT count(*) AS shown FROM idem_batches WHERE target = 'orders'::regclass;
SELECT try_merge($$'inbox', 'orders', '{k}', 'inbox'$$);
SELECT count(*) AS shown FROM idem_batches WHERE target = 'orders'::regclass;
UPDATE idem_ledger SET target_type = 'day'::regtype WHERE target = 'orders'::regclass;
SELECT try($$SELECT idem_claim('inbox', 'orders')$$);
DROP SCHEMA ledger_other;

--
-- idem_claim
--

CREATE TABLE work (n int);
SELECT try($$SELECT idem_claim('ledger c1', metadata => '{"run": 1}')$$);
SELECT try($$SELECT idem_claim('ledger c1')$$);
SELECT try($$SELECT idem_claim('ledger c1', pipeline => 'other')$$);
-- with a target: another batch, and one for each target
SELECT try($$SELECT idem_claim('ledger c1', 'work')$$);
SELECT try($$SELECT idem_claim('ledger c1', 'work')$$);
SELECT try($$SELECT idem_claim('ledger c1', 'day')$$);
-- the claim and the work commit together
BEGIN;
SELECT idem_claim('c2', 'work');
INSERT INTO work VALUES (1);
ROLLBACK;
BEGIN;
SELECT idem_claim('c2', 'work');
INSERT INTO work VALUES (1);
COMMIT;
SELECT idem_claim('c2', 'work');
DO $$ BEGIN
    IF idem_claim('c3', 'work') THEN INSERT INTO work VALUES (3); END IF;
    IF idem_claim('c3', 'work') THEN INSERT INTO work VALUES (3); END IF;
END $$;
SELECT * FROM work ORDER BY n;
-- fingerprints: compared if both have one
SELECT try($$SELECT idem_claim('ledger f1', 'work', fingerprint => 'abc')$$);
SELECT try($$SELECT idem_claim('ledger f1', 'work', fingerprint => 'abc')$$);
SELECT try($$SELECT idem_claim('ledger f1', 'work')$$);
SELECT try($$SELECT idem_claim('ledger f1', 'work', fingerprint => 'abd')$$);
SELECT try($$SELECT idem_claim('c3', 'work', fingerprint => 'abd')$$);
-- a merge is no claim, and a claim no merge
SELECT try($$SELECT idem_claim('d1', 'day')$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'ledger c1'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'ledger c1', on_mismatch => 'skip'$$);
SELECT try_merge($$'day_s', 'day', '{k}', 'ledger c1', on_mismatch => 'apply', on_replay => 'reapply'$$);
-- a claim of a target that this transaction has emptied
BEGIN;
DELETE FROM work;
SELECT try($$SELECT idem_claim('c3', 'work')$$);
SELECT try($$SELECT idem_claim('c4', 'work')$$);
ROLLBACK;
-- how claims are recorded
SELECT target, pipeline, batch_id, operation, revision, rows_staged, fingerprint, engine, elapsed, options, metadata
FROM idem_batches WHERE operation = 'claim' AND batch_id IN ('ledger c1', 'ledger f1')
ORDER BY batch_id, target::text, pipeline;

-- a claim without a target belongs to the role
CREATE ROLE idem_ledger_one;
CREATE ROLE idem_ledger_two;
GRANT idem_ledger_one TO idem_ledger_two;
SET ROLE idem_ledger_one;
SELECT idem_claim('ledger mine');
SELECT idem_claim('ledger mine');
SET ROLE idem_ledger_two;
SELECT idem_claim('ledger mine');
SELECT batch_id, role FROM idem_batches WHERE batch_id = 'ledger mine' ORDER BY role;
SET ROLE idem_ledger_one;
SELECT batch_id, role FROM idem_batches WHERE batch_id = 'ledger mine' ORDER BY role;
SELECT idem_forget(NULL, 'ledger mine', dry_run => true);
SELECT idem_forget(NULL, 'ledger mine');
SELECT idem_claim('ledger mine');
RESET ROLE;
SELECT batch_id, role FROM idem_batches WHERE batch_id = 'ledger mine' ORDER BY role;
SELECT idem_forget(NULL, 'ledger mine');
-- claims of roles that are gone do no harm
REVOKE idem_ledger_one FROM idem_ledger_two;
DROP ROLE idem_ledger_one;
DROP ROLE idem_ledger_two;
SELECT batch_id, role FROM idem_batches WHERE batch_id = 'ledger mine' ORDER BY role;
DELETE FROM idem_ledger WHERE batch_id = 'ledger mine';

--
-- idem_forget
--

CREATE TABLE many (k int PRIMARY KEY, v text);
SELECT try_merge(format($$'day_s', 'many', '{k}', %L, %L$$, batch, pipeline))
FROM unnest('{m1,m2,m3}'::text[]) batch, unnest('{"",nightly}'::text[]) pipeline;
SELECT idem_claim('m4', 'many');
UPDATE idem_ledger SET applied_at = '2026-01-01 00:00+00' WHERE target = 'many'::regclass AND batch_id = 'm1';
UPDATE idem_ledger SET applied_at = '2026-01-02 00:00+00' WHERE target = 'many'::regclass AND batch_id <> 'm1';
-- each filter, and all together; counted only
SELECT idem_forget('many', 'm1', dry_run => true) AS by_id,
       idem_forget('many', 'M1', dry_run => true) AS by_other_id,
       idem_forget('many', pipeline => 'nightly', dry_run => true) AS by_pipeline,
       idem_forget('many', pipeline => '', dry_run => true) AS by_no_pipeline,
       idem_forget('many', applied_since => '2026-01-02 00:00+00', dry_run => true) AS since,
       idem_forget('many', applied_since => '2026-01-02 00:00:01+00', dry_run => true) AS since_later,
       idem_forget('many', applied_since => '-infinity', dry_run => true) AS everything,
       idem_forget('many', 'm2', 'nightly', '2026-01-02 00:00+00', dry_run => true) AS by_all,
       idem_forget('many', 'm1', 'nightly', '2026-01-02 00:00+00', dry_run => true) AS by_all_none;
SELECT count(*) FROM idem_batches WHERE target = 'many'::regclass;
SELECT count(*) FROM idem_audit WHERE reason = 'test of the ledger';
SELECT idem_forget('many', 'm2', 'nightly', reason => 'test of the ledger');
SELECT idem_forget('many', 'm2', 'nightly', reason => 'test of the ledger');
SELECT idem_forget('many', applied_since => '2026-01-02 00:00+00', reason => 'test of the ledger');
SELECT batch_id, pipeline FROM idem_batches WHERE target = 'many'::regclass ORDER BY 1, 2;
SELECT action, role = current_user AS role, reason, entry ->> 'target' AS target, entry ->> 'batch_id' AS batch_id,
       entry ->> 'pipeline' AS pipeline, entry ->> 'operation' AS operation, entry ->> 'rows_inserted' AS inserted
FROM idem_audit WHERE reason = 'test of the ledger' ORDER BY 5, 6;
-- the target stays as it is, and what was forgotten can come again
SELECT count(*) FROM many;
SELECT try_merge($$'day_s', 'many', '{k}', 'm2', 'nightly'$$);
SELECT try($$SELECT idem_claim('m4', 'many')$$);
-- rolled back, it is not forgotten
BEGIN;
SELECT idem_forget('many', 'm1');
ROLLBACK;
SELECT try_merge($$'day_s', 'many', '{k}', 'm1'$$);

--
-- What was merged since a snapshot is found without reading all of ledger and audit
--

BEGIN ISOLATION LEVEL REPEATABLE READ;
SET LOCAL enable_seqscan = off;
SELECT sum(seq_scan) FILTER (WHERE relname = 'idem_ledger') AS ledger_before, sum(seq_scan) FILTER (WHERE relname = 'idem_audit') AS audit_before
FROM pg_stat_xact_all_tables WHERE relid IN ('idem_ledger'::regclass, 'idem_audit'::regclass) \gset
SELECT try_merge($$'day_s', 'many', '{k}', 'since'$$);
SELECT relname, seq_scan - CASE relname WHEN 'idem_audit' THEN :audit_before ELSE :ledger_before END AS seq_scans, idx_scan > 0 AS by_index
FROM pg_stat_xact_all_tables WHERE relid IN ('idem_ledger'::regclass, 'idem_audit'::regclass) ORDER BY 1;
ROLLBACK;

--
-- A merge within another transaction's life
--

-- a batch is recorded with its transaction, or not at all
BEGIN;
SELECT try_merge($$'day_s', 'many', '{k}', 'gone'$$);
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT try_merge($$'day_s', 'many', '{k}', 'gone'$$);
ROLLBACK TO a;
SELECT try_merge($$'day_s', 'many', '{k}', 'stays'$$);
SELECT try_merge($$'day_s', 'many', '{k}', 'stays'$$);
COMMIT;
SELECT batch_id FROM idem_batches WHERE target = 'many'::regclass AND batch_id IN ('gone', 'stays');
-- called for no row, it is not called
SELECT m.status FROM (SELECT WHERE false) none, idem_merge('day_s', 'many', '{k}', 'not called') m;
SELECT count(*) FROM idem_batches WHERE batch_id = 'not called';
-- called for several rows, the first one applies
SELECT m.status FROM generate_series(1, 3) i,
    LATERAL (SELECT * FROM idem_merge('day_s', 'many', '{k}', 'thrice', metadata => to_jsonb(i))) m;
SELECT metadata FROM idem_batches WHERE batch_id = 'thrice';
