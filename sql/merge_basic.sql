-- What a first user sees: merging, replaying, every mode, pairing by name,
-- defaults, column lists, dry runs, new columns, and all kinds of staging.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA basic;
SET search_path = basic, public;
RESET client_min_messages;

-- The happy path. The columns of staging are in another order, of other types.
CREATE TABLE orders (order_id bigint PRIMARY KEY, customer text NOT NULL,
                     amount numeric(8,2), loaded_by text DEFAULT 'ingest');
CREATE TABLE staging_orders (amount int, customer varchar(20), order_id int);
INSERT INTO staging_orders SELECT i * 10, 'c' || i % 3, i FROM generate_series(1, 1000) i;
SELECT * FROM (SELECT status, summary, batch_id, pipeline, target, revision,
                      rows_staged, rows_duplicate, rows_inserted, rows_updated, rows_deleted,
                      rows_unchanged, rows_stale, rows_skipped,
                      fingerprint = idem_fingerprint('staging_orders') AS fingerprint_ok, engine IN ('native', 'sql') AS engine_ok,
                      applied_at > now() AS applied_ok, elapsed > '0' AS elapsed_ok
               FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-1')) r \gx
SELECT count(*), sum(amount), min(loaded_by), max(loaded_by) FROM orders;
-- A retry returns the recorded result and writes nothing: the same applied_at,
-- the same row versions.
CREATE TABLE before AS SELECT ctid AS tid, xmin AS x, order_id FROM orders;
SELECT r.status, r.summary, r.revision, r.rows_inserted, r.fingerprint = b.fingerprint AS same_fingerprint,
       r.applied_at = b.applied_at AS same_time, r.elapsed = b.elapsed AS same_elapsed
FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-1') r
JOIN idem_batches b ON b.batch_id = 'orders-1' AND b.target = 'orders'::regclass;
SELECT count(*) FROM orders o JOIN before b ON o.ctid = b.tid AND o.xmin = b.x AND o.order_id = b.order_id;
-- The next batch: new, changed and unchanged rows.
UPDATE staging_orders SET amount = amount + 1 WHERE order_id <= 12;
DELETE FROM staging_orders WHERE order_id BETWEEN 13 AND 952;
INSERT INTO staging_orders SELECT i, 'new', i FROM generate_series(1001, 1940) i;
SELECT status, summary FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-2');
SELECT status, summary FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-2');
SELECT count(*), sum(amount) FROM orders;
SELECT count(*) AS differing FROM staging_orders s JOIN orders o USING (order_id)
WHERE (s.amount, s.customer::text) IS DISTINCT FROM (o.amount, o.customer);
-- Pipelines are apart from each other: the same id is another batch.
SELECT status, summary, pipeline FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-2', 'west');
-- on_replay => error and reapply.
SELECT status FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-none', on_replay => 'error');
\set VERBOSITY sqlstate
SELECT status FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-2', on_replay => 'error');
\set VERBOSITY default
UPDATE orders SET amount = 0 WHERE order_id IN (1, 2);
SELECT status, summary, revision FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-2', on_replay => 'reapply');
SELECT status, summary, revision FROM idem_merge('staging_orders', 'orders', '{order_id}', 'orders-2');
SELECT amount FROM orders WHERE order_id IN (1, 2) ORDER BY order_id;
-- The key may be left out: it is the primary key then.
SELECT status, summary FROM idem_merge('staging_orders', 'orders', batch_id => 'by primary key');

-- Filling staging twice changes nothing: same fingerprint, same state.
CREATE TABLE twice (k int PRIMARY KEY, v text);
CREATE TABLE twice_staging (k int, v text);
INSERT INTO twice_staging VALUES (1, 'a'), (2, 'b'), (3, NULL);
SELECT fingerprint AS once FROM idem_merge('twice_staging', 'twice', '{k}', 'b1') \gset
INSERT INTO twice_staging SELECT * FROM twice_staging;
SELECT status, summary, fingerprint = :'once' AS same FROM idem_merge('twice_staging', 'twice', '{k}', 'b1');
SELECT status, summary, fingerprint = :'once' AS same FROM idem_merge('twice_staging', 'twice', '{k}', 'b2');
TABLE twice ORDER BY k;
-- Without a batch id, it is derived from the content.
SELECT status, summary, batch_id ~ '^content:[0-9a-f]{32}$' AS id_ok FROM idem_merge('twice_staging', 'twice', '{k}');
SELECT status, summary FROM idem_merge('twice_staging', 'twice', '{k}');

-- An empty staging relation: with a batch id recorded, without it not.
CREATE TABLE empty_staging (k int, v text);
SELECT status, summary, batch_id, fingerprint IS NOT NULL AS has_fingerprint, revision, applied_at
FROM idem_merge('empty_staging', 'twice', '{k}');
SELECT status, summary, batch_id, revision, applied_at IS NOT NULL AS recorded
FROM idem_merge('empty_staging', 'twice', '{k}', 'empty');
SELECT status, summary FROM idem_merge('empty_staging', 'twice', '{k}', 'empty');
SELECT batch_id, rows_staged FROM idem_batches WHERE target = 'twice'::regclass AND rows_staged = 0;

-- Modes.
CREATE TABLE modes (k int PRIMARY KEY, v text);
CREATE TABLE modes_staging (k int, v text);
INSERT INTO modes VALUES (1, 'same'), (2, 'old'), (9, 'not staged');
INSERT INTO modes_staging VALUES (1, 'same'), (2, 'new'), (3, 'third'), (3, 'third'), (4, 'fourth');
SELECT status, summary FROM idem_merge('modes_staging', 'modes', '{k}', 'i', mode => 'insert', dry_run => true);
SELECT status, summary FROM idem_merge('modes_staging', 'modes', '{k}', 'u', mode => 'update', dry_run => true);
SELECT status, summary FROM idem_merge('modes_staging', 'modes', '{k}', 'm', mode => 'upsert', dry_run => true);
BEGIN;
SELECT status, summary FROM idem_merge('modes_staging', 'modes', '{k}', 'i', mode => 'insert');
TABLE modes ORDER BY k;
ROLLBACK;
BEGIN;
SELECT status, summary FROM idem_merge('modes_staging', 'modes', '{k}', 'u', mode => 'update');
TABLE modes ORDER BY k;
ROLLBACK;
BEGIN;
SELECT status, summary FROM idem_merge('modes_staging', 'modes', '{k}', 'm', mode => 'upsert');
TABLE modes ORDER BY k;
ROLLBACK;
-- A key-only staging table: nothing can change; update changes nothing at all.
CREATE TABLE keys_staging (k int);
INSERT INTO keys_staging VALUES (1), (9), (10), (10);
SELECT status, summary FROM idem_merge('keys_staging', 'modes', '{k}', 'k1', dry_run => true);
SELECT status, summary FROM idem_merge('keys_staging', 'modes', '{k}', 'k0', mode => 'update');
SELECT status, summary FROM idem_merge('keys_staging', 'modes', '{k}', 'k1');
SELECT status, summary FROM idem_merge('keys_staging', 'modes', '{k}', 'k2', mode => 'insert');
TABLE modes ORDER BY k;

-- Target columns that staging lacks take their default when a row is inserted
-- and keep their value when it is updated. Sequences advance by the number of
-- inserted rows, no matter how many rows match.
CREATE SEQUENCE lacking_seq;
CREATE DOMAIN with_default AS text DEFAULT 'from domain';
CREATE TABLE lacking (
    k int PRIMARY KEY, v text,
    plain text,
    literal text DEFAULT 'none',
    from_seq int DEFAULT nextval('lacking_seq'),
    serial_col serial,
    always int GENERATED ALWAYS AS IDENTITY,
    by_default int GENERATED BY DEFAULT AS IDENTITY,
    dom with_default,
    twice_k int GENERATED ALWAYS AS (k * 2) STORED);
CREATE TABLE lacking_staging (v text, k int);
INSERT INTO lacking_staging SELECT 'v' || i, i FROM generate_series(1, 3) i;
SELECT summary FROM idem_merge('lacking_staging', 'lacking', '{k}', '1');
TABLE lacking ORDER BY k;
UPDATE lacking SET plain = 'p' || k, literal = NULL, from_seq = -k, dom = 'mine';
UPDATE lacking_staging SET v = v || '!' WHERE k <= 2;
INSERT INTO lacking_staging VALUES ('v5', 5), ('v4', 4);
SELECT summary FROM idem_merge('lacking_staging', 'lacking', '{k}', '2');
TABLE lacking ORDER BY k;
SELECT last_value FROM lacking_seq;
SELECT last_value FROM lacking_serial_col_seq;
SELECT last_value FROM lacking_always_seq;
SELECT last_value FROM lacking_by_default_seq;
-- NOT NULL and CHECK hold for the row that is stored, not for one with the
-- defaults; a new row has to satisfy them with its defaults.
CREATE TABLE strict (k int PRIMARY KEY, v int, owner text NOT NULL, low int NOT NULL DEFAULT 100,
                     CONSTRAINT strict_low_check CHECK (low < v));
INSERT INTO strict VALUES (1, 10, 'me', 5), (2, 20, 'you', 15);
CREATE TABLE strict_staging (k int, v int);
INSERT INTO strict_staging VALUES (1, 11), (2, 21);
SELECT summary FROM idem_merge('strict_staging', 'strict', '{k}', '1');
SELECT summary FROM idem_merge('strict_staging', 'strict', '{k}', '1u', mode => 'update');
TABLE strict ORDER BY k;
INSERT INTO strict_staging VALUES (3, 30);
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('strict_staging', 'strict', '{k}', '2');     -- owner is null: 23502
ALTER TABLE strict ALTER owner SET DEFAULT 'nobody';
SELECT summary FROM idem_merge('strict_staging', 'strict', '{k}', '2');     -- 100 < 30: 23514
UPDATE strict_staging SET v = 15 WHERE k = 2;
SELECT summary FROM idem_merge('strict_staging', 'strict', '{k}', '2', mode => 'update');   -- 15 < 15: 23514
\set VERBOSITY default
TABLE strict ORDER BY k;
SELECT count(*) AS recorded FROM idem_batches WHERE target = 'strict'::regclass AND batch_id = '2';
UPDATE strict_staging SET v = 300;
SELECT summary FROM idem_merge('strict_staging', 'strict', '{k}', '2');
TABLE strict ORDER BY k;
-- Staged identity values: BY DEFAULT takes them, ALWAYS never does.
CREATE TABLE ids (k int PRIMARY KEY, a int GENERATED ALWAYS AS IDENTITY, d int GENERATED BY DEFAULT AS IDENTITY,
                  g int GENERATED ALWAYS AS (k + 1) STORED);
CREATE TABLE ids_staging (k int, a int, d int, g int);
INSERT INTO ids_staging VALUES (1, 71, 81, 91), (2, 72, 82, 92);
SELECT summary FROM idem_merge('ids_staging', 'ids', '{k}', '1');
UPDATE ids_staging SET a = 0, g = 0;
SELECT summary FROM idem_merge('ids_staging', 'ids', '{k}', '2');
UPDATE ids_staging SET d = d + 1;
SELECT summary FROM idem_merge('ids_staging', 'ids', '{k}', '3');
TABLE ids ORDER BY k;

-- update_cols, exclude_cols.
CREATE TABLE lists (k int PRIMARY KEY, a text, b text, c text);
CREATE TABLE lists_staging (k int, a text, b text, c text);
INSERT INTO lists VALUES (1, 'a', 'b', 'c'), (2, 'a', 'b', 'c');
INSERT INTO lists_staging VALUES (1, 'A', 'B', 'C'), (2, 'a', 'B', 'c'), (3, 'x', 'y', 'z');
SELECT summary FROM idem_merge('lists_staging', 'lists', '{k}', 'update a', update_cols => '{a}', dry_run => true);
SELECT summary FROM idem_merge('lists_staging', 'lists', '{k}', 'update a', update_cols => '{a}');
TABLE lists ORDER BY k;
SELECT summary FROM idem_merge('lists_staging', 'lists', '{k}', 'not b', exclude_cols => '{b}');
TABLE lists ORDER BY k;
SELECT summary FROM idem_merge('lists_staging', 'lists', '{k}', 'none', update_cols => '{}');
SELECT summary FROM idem_merge('lists_staging', 'lists', '{k}', 'u', mode => 'update', exclude_cols => '{a,c}');
TABLE lists ORDER BY k;
-- With only c to be updated, mode update must leave a and b alone too.
UPDATE lists_staging SET a = 'q', b = 'q', c = 'q';
SELECT summary FROM idem_merge('lists_staging', 'lists', '{k}', 'uc', mode => 'update', update_cols => '{c}');
TABLE lists ORDER BY k;

-- Audit columns: written with a row, never a reason to write one.
CREATE TABLE audit (k int PRIMARY KEY, v text, _loaded_at timestamp, _run text);
CREATE TABLE audit_staging (k int, v text, _loaded_at timestamp, _run text);
INSERT INTO audit_staging SELECT i, 'v', '2026-01-01', 'run 1' FROM generate_series(1, 3) i;
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', '1', audit_cols => '{_loaded_at,_run}');
-- A retry by a later run is a replay all the same.
UPDATE audit_staging SET _loaded_at = '2026-01-02', _run = 'run 2';
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', '1', audit_cols => '{_loaded_at,_run}');
-- Without an id it is a batch of its own, in which nothing has changed.
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', audit_cols => '{_loaded_at,_run}');
UPDATE audit_staging SET v = 'w' WHERE k = 2;
INSERT INTO audit_staging VALUES (4, 'v', '2026-01-02', 'run 2');
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', '2', audit_cols => '{_loaded_at,_run}');
TABLE audit ORDER BY k;
-- Rows that differ in audit columns only collapse, and the greatest image wins.
TRUNCATE audit_staging;
INSERT INTO audit_staging VALUES (5, 'v', '2026-01-03', 'b'), (5, 'v', '2026-01-03', 'c'), (5, 'v', '2026-01-03', 'a');
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', '3', audit_cols => '{_loaded_at,_run}');
SELECT * FROM audit WHERE k = 5;
-- With update_cols, audit columns are still written with a row that changes.
TRUNCATE audit_staging;
INSERT INTO audit_staging VALUES (1, 'changed', '2026-01-04', 'run 4'), (2, 'w', '2026-01-04', 'run 4');
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', '4', audit_cols => '{_loaded_at,_run}', update_cols => '{v}');
SELECT status, summary FROM idem_merge('audit_staging', 'audit', '{k}', '5', audit_cols => '{_loaded_at,_run}', mode => 'update');
TABLE audit ORDER BY k;

-- A dry run counts what the merge then does, and writes nothing.
CREATE TABLE dry (k int PRIMARY KEY, v int, ver int, n serial);
INSERT INTO dry SELECT i, i % 7, i % 5 FROM generate_series(1, 500) i;
CREATE TABLE dry_staging (k int, v int, ver int);
INSERT INTO dry_staging SELECT i, i % 6, i % 4 FROM generate_series(200, 800) i;
INSERT INTO dry_staging SELECT k, v, ver FROM dry_staging WHERE k % 3 = 0;
INSERT INTO dry_staging SELECT k, v + 1, ver - 1 FROM dry_staging WHERE k % 10 = 0;
-- Ties, that is rows of one key, of equal versions and with different content, are
-- for on_duplicate => 'any' only.
CREATE TABLE dry_ties (LIKE dry_staging);
INSERT INTO dry_ties TABLE dry_staging;
INSERT INTO dry_ties SELECT k, v + 2, ver FROM dry_staging WHERE k % 7 = 0;
CREATE TABLE dry_results (step int GENERATED ALWAYS AS IDENTITY, mode text, stale text, dup text, dry boolean, counts bigint[], fingerprint text);
DO $$
DECLARE
    m text; st text; d text; r record; is_dry boolean; given bigint;
BEGIN
    FOREACH m IN ARRAY '{upsert,insert,update}'::text[] LOOP
        FOREACH st IN ARRAY '{skip,apply}'::text[] LOOP
            FOREACH d IN ARRAY '{latest,any,any of ties}'::text[] LOOP
                BEGIN
                    FOREACH is_dry IN ARRAY '{true,false}'::boolean[] LOOP
                        SELECT last_value INTO given FROM dry_n_seq;
                        r := idem_merge(CASE d WHEN 'any of ties' THEN 'dry_ties' ELSE 'dry_staging' END, 'dry', '{k}', m || st || d,
                                        version_cols => '{ver}', mode => m, on_stale => st, on_duplicate => split_part(d, ' ', 1), dry_run => is_dry);
                        IF is_dry AND (r.status <> 'dry_run' OR r.applied_at IS NOT NULL
                                       OR EXISTS (SELECT FROM idem_batches WHERE batch_id = m || st || d AND target = 'dry'::regclass)
                                       OR (SELECT last_value FROM dry_n_seq) <> given OR (SELECT count(*) FROM dry) <> 500) THEN
                            RAISE 'the dry run has written';
                        END IF;
                        INSERT INTO dry_results (mode, stale, dup, dry, counts, fingerprint)
                        VALUES (m, st, d, is_dry, ARRAY[r.rows_staged, r.rows_duplicate, r.rows_inserted, r.rows_updated,
                                r.rows_deleted, r.rows_unchanged, r.rows_stale, r.rows_skipped], r.fingerprint);
                    END LOOP;
                    -- Undo the merge, but keep what was counted.
                    RAISE EXCEPTION USING errcode = 'ZZ001', message = (SELECT jsonb_agg(to_jsonb(x)) FROM dry_results x);
                EXCEPTION WHEN sqlstate 'ZZ001' THEN
                    INSERT INTO dry_results (mode, stale, dup, dry, counts, fingerprint)
                    SELECT mode, stale, dup, dry, counts, fingerprint FROM jsonb_populate_recordset(NULL::dry_results, sqlerrm::jsonb)
                    WHERE (mode, stale, dup) = (m, st, d);
                END;
            END LOOP;
        END LOOP;
    END LOOP;
END $$;
SELECT a.mode, a.stale, a.dup, a.counts AS "staged,dup,ins,upd,del,same,stale,skip", a.counts = b.counts AS exact, a.fingerprint = b.fingerprint AS same_print
FROM dry_results a JOIN dry_results b USING (mode, stale, dup) WHERE a.dry AND NOT b.dry ORDER BY a.step;
SELECT count(*) AS recorded FROM idem_batches WHERE target = 'dry'::regclass;
-- It works in a read-only transaction; a merge does not.
BEGIN READ ONLY;
SELECT status, summary FROM idem_merge('dry_staging', 'dry', '{k}', version_cols => '{ver}', dry_run => true);
ROLLBACK;
BEGIN READ ONLY;
\set VERBOSITY sqlstate
SELECT status, summary FROM idem_merge('dry_staging', 'dry', '{k}', version_cols => '{ver}');
\set VERBOSITY default
ROLLBACK;

-- A staged column that the target lacks: error, ignore, add_columns.
CREATE TABLE drift (k int PRIMARY KEY, v text);
CREATE COLLATION backward (provider = libc, locale = 'C');
CREATE TABLE drift_staging (note varchar(7) COLLATE backward, k int, v text, price numeric(6,2), tags varchar(3)[]);
INSERT INTO drift VALUES (1, 'one'), (3, 'three');
INSERT INTO drift_staging VALUES ('hello', 1, 'one', 1.5, '{abc}'), (NULL, 2, 'two', 2, NULL), (NULL, 3, 'three', NULL, NULL);
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', '1');
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'ignored', on_schema_change => 'ignore');
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'ignored', on_schema_change => 'ignore');
TABLE drift ORDER BY k;
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'added', on_schema_change => 'add_columns', dry_run => true);
SELECT count(*) AS columns FROM pg_attribute WHERE attrelid = 'drift'::regclass AND attnum > 0;
-- Rows whose new columns are all NULL are unchanged.
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'added', on_schema_change => 'add_columns');
TABLE drift ORDER BY k;
SELECT attname, format_type(atttypid, atttypmod), collname, attnotnull
FROM pg_attribute LEFT JOIN pg_collation c ON c.oid = attcollation
WHERE attrelid = 'drift'::regclass AND attnum > 0 ORDER BY attnum;
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'added', on_schema_change => 'add_columns');
-- A replay alters nothing, though staging has one more column and though the
-- target has lost one: the content is the one that was applied.
ALTER TABLE drift_staging ADD extra int;
ALTER TABLE drift DROP tags;
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'added', on_schema_change => 'add_columns');
SELECT attname FROM pg_attribute WHERE attrelid = 'drift'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum;
-- A failed merge adds no column either.
INSERT INTO drift_staging (k, v, extra) VALUES (1, 'other', 1);
\set VERBOSITY sqlstate
SELECT status, summary FROM idem_merge('drift_staging', 'drift', '{k}', 'failed', on_schema_change => 'add_columns');
\set VERBOSITY default
SELECT attname FROM pg_attribute WHERE attrelid = 'drift'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum;

-- exclusive is accepted.
SELECT status, summary FROM idem_merge('twice_staging', 'twice', '{k}', 'exclusive', exclusive => true);
-- metadata is kept.
SELECT status FROM idem_merge('twice_staging', 'twice', '{k}', 'meta', metadata => '{"file": "a.csv", "n": [1, 2]}');
SELECT metadata FROM idem_batches WHERE target = 'twice'::regclass AND batch_id = 'meta';

-- Everything that rows can be read from is good for staging.
CREATE TABLE kinds (k int PRIMARY KEY, v text);
CREATE TABLE kinds_source (k int, v text);
INSERT INTO kinds_source VALUES (1, 'a'), (2, 'b');
CREATE VIEW kinds_view AS SELECT v, k FROM kinds_source;
SELECT status, summary FROM idem_merge('kinds_view', 'kinds', '{k}', 'view');
-- A view whose rows are different each time that they are read: once is enough.
CREATE SEQUENCE kinds_seq;
CREATE VIEW kinds_volatile AS SELECT i AS k, 'n' || nextval('kinds_seq') AS v FROM generate_series(1, 3) i;
SELECT status, summary FROM idem_merge('kinds_volatile', 'kinds', '{k}');
SELECT last_value AS reads FROM kinds_seq;
TABLE kinds ORDER BY k;
CREATE VIEW kinds_aggregate AS SELECT k % 2 AS k, string_agg(v, ',' ORDER BY v) AS v FROM kinds_source GROUP BY 1;
SELECT status, summary FROM idem_merge('kinds_aggregate', 'kinds', '{k}', 'aggregate');
CREATE MATERIALIZED VIEW kinds_matview AS SELECT k + 10 AS k, v FROM kinds_source;
SELECT status, summary FROM idem_merge('kinds_matview', 'kinds', '{k}', 'matview');
CREATE TEMP TABLE kinds_temp AS SELECT k + 20 AS k, v FROM kinds_source;
SELECT status, summary FROM idem_merge('kinds_temp', 'kinds', '{k}', 'temp');
BEGIN;
CREATE TEMP TABLE kinds_temp_drop ON COMMIT DROP AS SELECT k + 30 AS k, v FROM kinds_source;
SELECT status, summary FROM idem_merge('kinds_temp_drop', 'kinds', '{k}', 'temp on commit drop');
COMMIT;
CREATE UNLOGGED TABLE kinds_unlogged AS SELECT k + 40 AS k, v FROM kinds_source;
SELECT status, summary FROM idem_merge('kinds_unlogged', 'kinds', '{k}', 'unlogged');
CREATE TABLE kinds_parted (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE kinds_parted_1 PARTITION OF kinds_parted FOR VALUES FROM (0) TO (55);
CREATE TABLE kinds_parted_2 (v text, k int);
ALTER TABLE kinds_parted ATTACH PARTITION kinds_parted_2 FOR VALUES FROM (55) TO (100);
INSERT INTO kinds_parted VALUES (51, 'a'), (52, 'b'), (57, 'c');
SELECT status, summary FROM idem_merge('kinds_parted', 'kinds', '{k}', 'partitioned');
CREATE TABLE kinds_child () INHERITS (kinds_source);
INSERT INTO kinds_child VALUES (61, 'child');
SELECT status, summary FROM idem_merge('kinds_source', 'kinds', '{k}', 'inheritance');
SELECT k, v FROM kinds ORDER BY k;
-- A view of the target itself: what is read was there before the merge.
CREATE VIEW kinds_self AS SELECT k + 1000 AS k, v FROM kinds;
SELECT status, summary FROM idem_merge('kinds_self', 'kinds', '{k}', 'self');
SELECT count(*), max(k) FROM kinds;

-- A view whose rows do not fit memory: no temporary file is left behind.
CREATE TABLE wide (k int PRIMARY KEY, v text);
CREATE VIEW wide_s AS SELECT i AS k, repeat('x', 300) AS v FROM generate_series(1, 500) AS i;
BEGIN;
SET LOCAL work_mem = '64kB';
SELECT summary FROM idem_merge('wide_s', 'wide', '{k}', 'larger than memory');
SELECT length(idem_fingerprint('wide_s'));
COMMIT;

-- The ledger accounts for every row of every merge in this file (I5).
SELECT count(*) > 40 AS many, count(*) FILTER (WHERE rows_staged IS DISTINCT FROM
           rows_duplicate + rows_inserted + rows_updated + rows_deleted + rows_unchanged + rows_stale + rows_skipped) AS unaccounted
FROM idem_ledger WHERE operation = 'merge';

SET client_min_messages = warning;
DROP SCHEMA basic CASCADE;
