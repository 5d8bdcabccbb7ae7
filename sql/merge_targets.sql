-- Targets of every kind: partitioned, with triggers, foreign keys, checks,
-- generated and identity columns, other unique indexes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA targets;
SET search_path = targets, public;
RESET client_min_messages;

-- Partitioned, on two levels; columns in another order in one partition.
CREATE TABLE parted (k int, region text COLLATE "C", v text, n serial, PRIMARY KEY (region, k)) PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu') PARTITION BY RANGE (k);
CREATE TABLE parted_eu_1 PARTITION OF parted_eu FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_eu_2 (v text, n int NOT NULL, gone int, region text COLLATE "C" NOT NULL, k int NOT NULL);
ALTER TABLE parted_eu_2 DROP gone;
ALTER TABLE parted_eu ATTACH PARTITION parted_eu_2 FOR VALUES FROM (100) TO (200);
CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us');
CREATE TABLE parted_s (v text, region text, k int);
INSERT INTO parted_s SELECT 'v' || k, r, k FROM generate_series(50, 149) k, unnest('{eu,us}'::text[]) r;
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', '1');
SELECT tableoid::regclass, count(*), min(k), max(k), count(DISTINCT n) FROM parted GROUP BY 1 ORDER BY 1;
UPDATE parted_s SET v = v || '!' WHERE k IN (60, 140);
UPDATE parted SET n = -k;
INSERT INTO parted_s VALUES ('new', 'eu', 10), ('new', 'eu', 160), ('new', 'us', 500);
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', '2', dry_run => true);
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', '2');
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', '3');
SELECT tableoid::regclass, k, region, v, n FROM parted WHERE v ~ '!|new' ORDER BY region, k;
SELECT count(*) AS wrong FROM parted_s s FULL JOIN parted p USING (k, region) WHERE s.v IS DISTINCT FROM p.v;
UPDATE parted_s SET v = 'u' WHERE k = 70;
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', 'update', mode => 'update');
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', 'insert', mode => 'insert');
-- A row without a partition is 23514, and nothing is left of the batch.
INSERT INTO parted_s VALUES ('nowhere', 'asia', 1), ('x', 'us', 501);
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', 'nowhere');
\set VERBOSITY default
SELECT count(*) AS rows, (SELECT count(*) FROM idem_batches WHERE target = 'parted'::regclass AND batch_id = 'nowhere') AS batches FROM parted WHERE k = 501;
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
SELECT summary FROM idem_merge('parted_s', 'parted', '{k,region}', 'nowhere');
-- Where the planner knows that there is no stored row, staging is read all the same.
CREATE TABLE empty (k int PRIMARY KEY, v text) PARTITION BY LIST (k);
CREATE TABLE empty_s AS SELECT 1 AS k, 'new' AS v;
SELECT summary, fingerprint = idem_fingerprint('empty_s') AS same FROM idem_merge('empty_s', 'empty', '{k}', '1', mode => 'update');
-- What comes to staging while it is read is not taken for written.
CREATE TABLE fills_s (k int, v text);
CREATE TABLE fills (k int PRIMARY KEY, v text);
INSERT INTO fills VALUES (1, 'old');
CREATE FUNCTION fill_staging() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fills_s VALUES (1, 'new'); RETURN NULL; END $$;
CREATE TRIGGER fill BEFORE UPDATE ON fills FOR EACH STATEMENT EXECUTE FUNCTION fill_staging();
SET idempotent_ingest.engine = sql;
SELECT summary FROM idem_merge('fills_s', 'fills', '{k}', '1', mode => 'update');
RESET idempotent_ingest.engine;
TABLE fills;
-- Rows that the caller may read and not update are no matches, be it for all rows.
CREATE TABLE readable (k int PRIMARY KEY, v text);
INSERT INTO readable VALUES (1, 'old');
ALTER TABLE readable ENABLE ROW LEVEL SECURITY;
CREATE POLICY reads ON readable FOR SELECT USING (true);
CREATE ROLE regress_targets_reader;
GRANT USAGE ON SCHEMA targets TO regress_targets_reader;
GRANT SELECT ON empty_s TO regress_targets_reader;
GRANT SELECT, UPDATE ON readable TO regress_targets_reader;
SET ROLE regress_targets_reader;
SELECT summary FROM idem_merge('empty_s', 'readable', mode => 'update');
UPDATE readable SET v = s.v FROM empty_s AS s WHERE s.k = readable.k;
RESET ROLE;
DROP OWNED BY regress_targets_reader;
DROP ROLE regress_targets_reader;
-- A partition as the target, with the batches of its own; its rows have to
-- belong there.
CREATE TABLE part_s (k int, region text, v text);
INSERT INTO part_s VALUES (500, 'us', 'by the partition'), (502, 'us', 'by the partition');
SELECT summary, target FROM idem_merge('part_s', 'parted_us', '{region,k}', '1');
SELECT k, v FROM parted WHERE k >= 500 ORDER BY k;
INSERT INTO part_s VALUES (503, 'eu', 'elsewhere');
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('part_s', 'parted_us', '{region,k}', '2');
\set VERBOSITY default
-- Partitions may not all have what the key needs: an index on the partition only.
CREATE TABLE half (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE half_1 PARTITION OF half FOR VALUES FROM (0) TO (10);
CREATE UNIQUE INDEX ON half_1 (k);
CREATE UNIQUE INDEX half_k ON ONLY half (k);
INSERT INTO part_s SELECT 1, NULL, 'x';
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('part_s', 'half', '{k}', '1', on_schema_change => 'ignore');
\set VERBOSITY default

-- Triggers. Every row that is written fires the row triggers once, and one that is
-- updated BEFORE INSERT as well; rows that are not written fire none.
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, msg text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO targets.log (msg) VALUES (format('%s %s %s', TG_WHEN, TG_OP,
        CASE WHEN TG_LEVEL = 'STATEMENT' THEN 'statement' WHEN TG_OP = 'DELETE' THEN 'row ' || OLD.k ELSE 'row ' || NEW.k END));
    RETURN NEW;
END $$;
CREATE FUNCTION note_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO targets.log (msg) SELECT format('%s %s statement, rows %s', TG_WHEN, TG_OP, string_agg(k::text, ' ' ORDER BY k)) FROM changed;
    RETURN NULL;
END $$;
CREATE TABLE trig (k int PRIMARY KEY, v text);
CREATE TRIGGER trig_br BEFORE INSERT OR UPDATE OR DELETE ON trig FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER trig_ar AFTER INSERT OR UPDATE OR DELETE ON trig FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER trig_bs BEFORE INSERT OR UPDATE OR DELETE ON trig FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER trig_ins_transition AFTER INSERT ON trig REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION note_transition();
CREATE TRIGGER trig_upd_transition AFTER UPDATE ON trig REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION note_transition();
CREATE TABLE trig_s (k int, v text);
INSERT INTO trig_s VALUES (3, 'c'), (1, 'a'), (2, 'b');
SELECT summary FROM idem_merge('trig_s', 'trig', '{k}', '1');
UPDATE trig_s SET v = 'changed' WHERE k = 2;
INSERT INTO trig_s VALUES (4, 'd');
INSERT INTO log (msg) VALUES ('-- batch 2: row 2 changed, row 4 new');
SELECT summary FROM idem_merge('trig_s', 'trig', '{k}', '2');
INSERT INTO log (msg) VALUES ('-- batch 3: nothing new');
SELECT summary FROM idem_merge('trig_s', 'trig', '{k}', '3');
INSERT INTO log (msg) VALUES ('-- replay and dry run');
SELECT summary FROM idem_merge('trig_s', 'trig', '{k}', '3');
UPDATE trig_s SET v = 'again' WHERE k = 1;
SELECT summary FROM idem_merge('trig_s', 'trig', '{k}', '4', dry_run => true);
INSERT INTO log (msg) VALUES ('-- update of row 1');
SELECT summary FROM idem_merge('trig_s', 'trig', '{k}', '4', mode => 'update');
SELECT msg FROM log ORDER BY n;
-- BEFORE triggers that return NULL skip the row, on insert as on update; what
-- they change in a row is stored.
CREATE TABLE skip (k int PRIMARY KEY, v text, touched int DEFAULT 0);
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.v LIKE 'skip%' OR (TG_OP = 'UPDATE' AND NEW.v LIKE 'keep%') THEN
        RETURN NULL;
    END IF;
    NEW.touched := coalesce(NEW.touched, 0) + CASE WHEN TG_OP = 'UPDATE' THEN 100 ELSE 1 END;
    RETURN NEW;
END $$;
CREATE TRIGGER skip BEFORE INSERT OR UPDATE ON skip FOR EACH ROW EXECUTE FUNCTION skip();
INSERT INTO skip VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd');
UPDATE skip SET touched = 0;
CREATE TABLE skip_s (k int, v text);
INSERT INTO skip_s VALUES (1, 'a'), (2, 'B'), (3, 'skip both'), (4, 'keep'), (5, 'skip insert'), (6, 'new'), (6, 'new');
SELECT summary FROM idem_merge('skip_s', 'skip', '{k}', '1');
TABLE skip ORDER BY k;
SELECT summary FROM idem_merge('skip_s', 'skip', '{k}', '2', mode => 'update');
SELECT summary FROM idem_merge('skip_s', 'skip', '{k}', '3', mode => 'insert');
SELECT summary FROM idem_merge('skip_s', 'skip', '{k}', '4');
-- A BEFORE trigger that changes the key: a warning, since the next batch will
-- not find the row.
CREATE TABLE rekey (k text COLLATE "C" PRIMARY KEY, v text);
CREATE FUNCTION rekey() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.k := lower(NEW.k);
    RETURN NEW;
END $$;
CREATE TRIGGER rekey BEFORE INSERT ON rekey FOR EACH ROW EXECUTE FUNCTION rekey();
CREATE TABLE rekey_s (k text COLLATE "C", v text);
INSERT INTO rekey_s VALUES ('A', '1'), ('b', '1'), ('C', '1');
SELECT summary FROM idem_merge('rekey_s', 'rekey', '{k}', '1');
TABLE rekey ORDER BY k;
DELETE FROM rekey_s WHERE k <> 'b';
SELECT summary FROM idem_merge('rekey_s', 'rekey', '{k}', '2');
-- No row has a changed key as it is staged; what the trigger makes of it is found
-- only when the row is inserted, so that a dry run cannot know.
UPDATE rekey_s SET k = 'A';
SELECT summary FROM idem_merge('rekey_s', 'rekey', '{k}', '3', dry_run => true);
SELECT summary FROM idem_merge('rekey_s', 'rekey', '{k}', '3');
UPDATE rekey_s SET v = '2';
SELECT summary FROM idem_merge('rekey_s', 'rekey', '{k}', '4');
-- The staged key is stored, from before the trigger: the row is matched, and is
-- inserted under the other key. That is not a row that somebody has deleted
-- meanwhile, which would be tried again and again.
ALTER TABLE rekey ADD COLUMN kept text NOT NULL DEFAULT 'none', DISABLE TRIGGER rekey;
INSERT INTO rekey VALUES ('E', '1', 'kept');
ALTER TABLE rekey ENABLE TRIGGER rekey;
INSERT INTO rekey_s VALUES ('E', '2');
SELECT summary FROM idem_merge('rekey_s', 'rekey', '{k}', '5');
TABLE rekey ORDER BY k;
-- The same, and one that keeps rows out, where only a partition has the trigger.
CREATE TABLE rekeyed (k text COLLATE "C" PRIMARY KEY, v text, kept text NOT NULL DEFAULT 'none') PARTITION BY RANGE (k);
CREATE TABLE rekeyed_1 PARTITION OF rekeyed DEFAULT;
INSERT INTO rekeyed VALUES ('E', '1', 'kept');
CREATE TRIGGER rekey BEFORE INSERT ON rekeyed_1 FOR EACH ROW EXECUTE FUNCTION rekey();
SELECT summary FROM idem_merge('rekey_s', 'rekeyed', '{k}', '1');
TABLE rekeyed ORDER BY k;
CREATE TABLE only_key (k int PRIMARY KEY) PARTITION BY RANGE (k);
CREATE TABLE only_key_1 PARTITION OF only_key DEFAULT;
CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep_out BEFORE INSERT ON only_key_1 FOR EACH ROW EXECUTE FUNCTION keep_out();
CREATE TABLE only_key_s AS SELECT 1 AS k;
SELECT summary FROM idem_merge('only_key_s', 'only_key', '{k}', '1');
-- Triggers that merge into other tables, each within the merge of the outer one.
CREATE TABLE outer_t (k int PRIMARY KEY, v text);
CREATE TABLE outer_s (k int, v text);
CREATE TABLE inner_t (k int PRIMARY KEY, v text, by_k int);
CREATE TABLE inner_s (k int, v text, by_k int);
CREATE TABLE innermost_t (k int PRIMARY KEY, n int);
CREATE VIEW innermost_s AS SELECT k, length(v) AS n FROM inner_t;
CREATE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    IF TG_TABLE_NAME = 'outer_t' THEN
        DELETE FROM targets.inner_s;
        INSERT INTO targets.inner_s SELECT i, NEW.v, NEW.k FROM generate_series(NEW.k, NEW.k + 2) i;
        r := public.idem_merge('targets.inner_s', 'targets.inner_t', '{k}', format('outer %s %s', NEW.k, TG_OP), NEW.v);
    ELSE
        r := public.idem_merge('targets.innermost_s', 'targets.innermost_t', '{k}', NULL, format('inner %s %s', NEW.k, NEW.by_k));
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER nested_b BEFORE INSERT OR UPDATE ON outer_t FOR EACH ROW EXECUTE FUNCTION nested();
CREATE TRIGGER nested_a AFTER INSERT OR UPDATE ON inner_t FOR EACH ROW EXECUTE FUNCTION nested();
INSERT INTO outer_s VALUES (1, 'x'), (2, 'y'), (5, 'z');
SELECT summary FROM idem_merge('outer_s', 'outer_t', '{k}', '1');
UPDATE outer_s SET v = 'yy' WHERE k = 2;
SELECT summary FROM idem_merge('outer_s', 'outer_t', '{k}', '2');
TABLE outer_t ORDER BY k;
TABLE inner_t ORDER BY k;
TABLE innermost_t ORDER BY k;
SELECT target, count(*), sum(rows_staged) AS staged, sum(rows_inserted) AS inserted, sum(rows_updated) AS updated, sum(rows_unchanged) AS unchanged
FROM idem_batches WHERE target IN ('outer_t'::regclass, 'inner_t'::regclass) GROUP BY 1 ORDER BY 1;
-- An error within takes all of it back.
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING errcode = 'P0042'; END $$;
CREATE TRIGGER fail BEFORE INSERT ON innermost_t FOR EACH ROW WHEN (NEW.k = 12) EXECUTE FUNCTION fail();
INSERT INTO outer_s VALUES (9, 'fine'), (10, 'fails');
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('outer_s', 'outer_t', '{k}', '3');
\set VERBOSITY default
SELECT (SELECT max(k) FROM outer_t) AS o, (SELECT max(k) FROM inner_t) AS i, (SELECT count(*) FROM idem_batches WHERE target IN ('outer_t'::regclass, 'inner_t'::regclass) AND batch_id ~ '^3$|outer (9|10)') AS batches;
-- A trigger that merges into the table which is being merged.
CREATE TABLE selfish (k int PRIMARY KEY, v text);
CREATE TABLE selfish_s (k int, v text);
CREATE VIEW selfish_s2 AS SELECT k + 100 AS k, v FROM selfish WHERE k < 100;
CREATE FUNCTION selfish() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN
        PERFORM public.idem_merge('targets.selfish_s2', 'targets.selfish', '{k}', 'inner');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER selfish AFTER INSERT OR UPDATE ON selfish FOR EACH STATEMENT EXECUTE FUNCTION selfish();
INSERT INTO selfish_s VALUES (1, 'a'), (2, 'b');
SELECT summary FROM idem_merge('selfish_s', 'selfish', '{k}', 'outer');
TABLE selfish ORDER BY k;
-- One that merges the very batch which is being merged, under each answer to a
-- known batch; none of the errors leaves anything behind. Then the same while
-- the batch is applied again.
CREATE TABLE ouroboros (k int PRIMARY KEY, v text);
CREATE FUNCTION ouroboros() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE current_setting('targets.again');
    RETURN NULL;
END $$;
CREATE TRIGGER ouroboros AFTER INSERT OR UPDATE ON ouroboros FOR EACH STATEMENT WHEN (pg_trigger_depth() < 2) EXECUTE FUNCTION ouroboros();
CREATE FUNCTION ouroboros(again text, arguments text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    state text;
    message text;
BEGIN
    PERFORM set_config('targets.again', again, true);
    EXECUTE format('SELECT summary FROM public.idem_merge(''targets.selfish_s'', ''targets.ouroboros'', ''{k}'' %s)', arguments) INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    RETURN state || ': ' || regexp_replace(message, 'content:[0-9a-f]{32}', 'content:...');
END $$;
CREATE VIEW ouroboros_calls (nr, arguments) AS VALUES
    (1, ', ''b'''), (2, ', ''b'', on_mismatch => ''skip'''), (3, ', ''b'', on_mismatch => ''apply'''),
    (4, ', ''b'', on_replay => ''reapply'''), (5, ', ''b'', on_replay => ''error'''), (6, '');
SELECT arguments, ouroboros(format('SELECT public.idem_merge(''targets.selfish_s'', ''targets.ouroboros'', ''{k}'' %s)', arguments),
                            CASE WHEN arguments <> '' THEN ', ''b''' ELSE '' END) FROM ouroboros_calls ORDER BY nr;
SELECT count(*) AS rows, (SELECT count(*) FROM idem_batches WHERE target = 'ouroboros'::regclass) AS batches FROM ouroboros;
SELECT ouroboros('SELECT', ', ''b''');
UPDATE selfish_s SET v = v || '!';
SELECT arguments, ouroboros(format('SELECT public.idem_merge(''targets.selfish_s'', ''targets.ouroboros'', ''{k}'' %s)', arguments),
                            ', ''b'', on_mismatch => ''apply''') FROM ouroboros_calls WHERE arguments <> '' ORDER BY nr;
SET targets.again = $$SELECT public.idem_merge('targets.selfish_s', 'targets.ouroboros', '{k}', 'c')$$;
\set SHOW_CONTEXT never
SELECT summary FROM idem_merge('selfish_s', 'ouroboros', '{k}', 'c');
-- One that claims the running batch; one that has it forgotten, of which the
-- ledger knows nothing yet, and perhaps merges it at once; one that records it
-- by hand.
SELECT ouroboros($$SELECT public.idem_claim('c', 'targets.ouroboros')$$, ', ''c''');
SELECT ouroboros($$SELECT public.idem_forget('targets.ouroboros', 'c')$$, ', ''c''');
SELECT ouroboros($$SELECT public.idem_forget('targets.ouroboros', 'd'), public.idem_merge('targets.selfish_s', 'targets.ouroboros', '{k}', 'd')$$, ', ''d''');
SELECT ouroboros($$INSERT INTO public.idem_ledger (target, pipeline, batch_id, operation, applied_at, xid) VALUES ('targets.ouroboros', '', 'd', 'merge', now(), pg_current_xact_id()) ON CONFLICT DO NOTHING$$, ', ''d''');
-- With a row there is something to forget.
SELECT ouroboros($$SELECT public.idem_forget('targets.ouroboros', 'b')$$, ', ''b'', on_mismatch => ''apply''');
CREATE FUNCTION ouroboros_forgets() RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT public.idem_forget('targets.ouroboros', 'b')::text $$;
CREATE VIEW ouroboros_s AS SELECT 1 AS k, ouroboros_forgets() AS v;
SELECT summary FROM idem_merge('ouroboros_s', 'ouroboros', '{k}', 'b', on_mismatch => 'apply');
SELECT batch_id, revision, rows_inserted, fingerprint IS NOT NULL AS complete FROM idem_batches WHERE target = 'ouroboros'::regclass;
\set SHOW_CONTEXT errors

-- One that sets another role, which is not who has asked for the merge.
CREATE TABLE becomes (k int PRIMARY KEY, v text);
CREATE FUNCTION becomes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET LOCAL ROLE pg_monitor; RETURN NEW; END $$;
CREATE TRIGGER becomes BEFORE INSERT ON becomes FOR EACH ROW EXECUTE FUNCTION becomes();
BEGIN;
SELECT summary FROM idem_merge('selfish_s', 'becomes');
SELECT current_user;
COMMIT;
SELECT role = current_user AS by_who_asked FROM idem_batches WHERE target = 'becomes'::regclass;
-- Foreign keys, on both sides of the merge, checks, and what is generated.
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE child (k int PRIMARY KEY, parent_id int REFERENCES parent, later_id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED,
                    qty int CHECK (qty > 0), qty2 int GENERATED ALWAYS AS (qty * 2) STORED, label text GENERATED ALWAYS AS ('#' || k) STORED);
INSERT INTO parent VALUES (1, 'one'), (2, 'two');
CREATE TABLE child_s (k int, qty int, parent_id int, later_id int);
INSERT INTO child_s VALUES (1, 1, 1, NULL), (2, 2, 2, 2), (3, 3, NULL, 1);
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '1');
UPDATE child_s SET qty = 20, parent_id = 1 WHERE k = 2;
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '2');
TABLE child ORDER BY k;
\set VERBOSITY sqlstate
UPDATE child_s SET parent_id = 99 WHERE k = 3;
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '3');
UPDATE child_s SET parent_id = NULL, qty = 0 WHERE k = 3;
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '3');
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '3', mode => 'update');
-- A deferred constraint fails at commit, and takes batch and ledger row with it.
UPDATE child_s SET qty = 3, later_id = 99 WHERE k = 3;
BEGIN;
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '3');
COMMIT;
\set VERBOSITY default
SELECT count(*) AS batches FROM idem_batches WHERE target = 'child'::regclass AND batch_id = '3';
BEGIN;
SELECT summary FROM idem_merge('child_s', 'child', '{k}', '3');
INSERT INTO parent VALUES (99, 'just in time');
COMMIT;
SELECT k, qty, qty2, later_id, label FROM child ORDER BY k;
-- Mode update may find rows by what is generated; else that is no content here either.
CREATE TABLE child_g (k int, qty int, qty2 bytea, label text);
INSERT INTO child_g VALUES (1, 7, NULL, '#1'), (1, 7, 'x', 'other');
SELECT summary FROM idem_merge('child_g', 'child', '{k}', '5', mode => 'update');
CREATE UNIQUE INDEX child_label ON child (label);
CREATE TABLE child_l (qty int, qty2 int, label text);
INSERT INTO child_l VALUES (8, 1, '#1'), (9, 2, '#9');
SELECT summary FROM idem_merge('child_l', 'child', '{label}', '6', mode => 'update');
SELECT k, qty, qty2, label FROM child ORDER BY k;
DROP INDEX child_label;
-- Rows that are referenced can be merged; a referenced key does not change.
CREATE TABLE parent_s (name text, id int);
INSERT INTO parent_s VALUES ('ONE', 1), ('three', 3);
SELECT summary FROM idem_merge('parent_s', 'parent', '{id}', '1');

-- A second unique index: its violations are errors; what is unique after the
-- merge may not be so on the way there.
CREATE TABLE second (k int PRIMARY KEY, u text UNIQUE, v int);
CREATE TABLE second_s (k int, u text, v int);
INSERT INTO second VALUES (1, 'a', 1), (2, 'b', 1);
INSERT INTO second_s VALUES (3, 'c', 1), (1, 'a', 2);
SELECT summary FROM idem_merge('second_s', 'second', '{k}', '1');
INSERT INTO second_s VALUES (4, 'b', 1);
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('second_s', 'second', '{k}', '2');
UPDATE second_s SET k = 2, u = 'c' WHERE k = 4;
DELETE FROM second_s WHERE k = 3;
SELECT summary FROM idem_merge('second_s', 'second', '{k}', '2');
\set VERBOSITY default
TABLE second ORDER BY k;
-- The other index as the key: now k is a value that may change.
UPDATE second_s SET k = 33 WHERE u = 'c';
SELECT summary FROM idem_merge('second_s', 'second', '{u}', '3');
TABLE second ORDER BY k;
-- In key order, row 1 gives 'x' free before row 2 takes it.
TRUNCATE second, second_s;
INSERT INTO second VALUES (1, 'x', 1), (2, 'y', 1);
INSERT INTO second_s VALUES (2, 'x', 1), (1, 'z', 1);
SELECT summary FROM idem_merge('second_s', 'second', '{k}', 'in order');
TABLE second ORDER BY k;
-- A swap has no such order: the index is immediate, so that it is checked with
-- each row, and row 1 takes 'y' while row 2 still has it.
TRUNCATE second, second_s;
INSERT INTO second VALUES (1, 'x', 1), (2, 'y', 1);
INSERT INTO second_s VALUES (1, 'y', 1), (2, 'x', 1);
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('second_s', 'second', '{k}', 'swap');
\set VERBOSITY default
TABLE second ORDER BY k;
-- A deferrable constraint on other columns is checked when it is due.
CREATE TABLE deferred (k int PRIMARY KEY, u text, CONSTRAINT deferred_u UNIQUE (u) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO deferred VALUES (1, 'a'), (2, 'b');
CREATE TABLE deferred_s (k int, u text);
INSERT INTO deferred_s VALUES (1, 'b'), (2, 'a'), (3, 'c');
SELECT summary FROM idem_merge('deferred_s', 'deferred', '{k}', 'swap');
TABLE deferred ORDER BY k;
UPDATE deferred_s SET u = 'c';
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('deferred_s', 'deferred', '{k}', 'same');
\set VERBOSITY default
SELECT count(*) AS batches FROM idem_batches WHERE target = 'deferred'::regclass AND batch_id = 'same';
-- Exclusion constraints beside the key hold, too.
CREATE TABLE excl (k int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
CREATE TABLE excl_s (k int, during int4range);
INSERT INTO excl_s VALUES (1, '[1,5)'), (2, '[5,9)');
SELECT summary FROM idem_merge('excl_s', 'excl', '{k}', '1');
UPDATE excl_s SET during = '[4,9)' WHERE k = 2;
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('excl_s', 'excl', '{k}', '2');
\set VERBOSITY default
TABLE excl ORDER BY k;
-- Expression and partial indexes beside the key.
CREATE TABLE others (k int PRIMARY KEY, v text, active boolean);
CREATE UNIQUE INDEX ON others (lower(v)) WHERE active;
CREATE TABLE others_s (k int, v text, active boolean);
INSERT INTO others_s VALUES (1, 'A', true), (2, 'a', false), (3, 'b', true);
SELECT summary FROM idem_merge('others_s', 'others', '{k}', '1');
UPDATE others_s SET active = true WHERE k = 2;
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('others_s', 'others', '{k}', '2');
\set VERBOSITY default
SELECT * FROM others ORDER BY k;

SELECT count(*) > 35 AS many, count(*) FILTER (WHERE rows_staged IS DISTINCT FROM
           rows_duplicate + rows_inserted + rows_updated + rows_deleted + rows_unchanged + rows_stale + rows_skipped) AS unaccounted
FROM idem_ledger WHERE operation = 'merge';

SET client_min_messages = warning;
DROP SCHEMA targets CASCADE;
