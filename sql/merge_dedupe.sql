-- Several staged rows of one key: identical ones collapse, others are an error,
-- or one of them wins whatever the order in which they lie.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA dedupe;
SET search_path = dedupe, public;
RESET client_min_messages;

-- Identical rows collapse, under every option; NULLs are identical to NULLs.
CREATE TABLE t (k int PRIMARY KEY, v text);
CREATE TABLE s (k int, v text);
INSERT INTO s VALUES (1, 'a'), (2, NULL), (1, 'a'), (2, NULL), (1, 'a'), (3, 'c');
SELECT summary FROM idem_merge('s', 't', '{k}', 'same', on_duplicate => 'any', dry_run => true);
SELECT summary FROM idem_merge('s', 't', '{k}', 'same', on_duplicate => 'error', dry_run => true);
SELECT summary FROM idem_merge('s', 't', '{k}', 'same');
SELECT summary FROM idem_merge('s', 't', '{k}', 'same, latest', version_cols => '{v}', on_duplicate => 'latest', dry_run => true);
-- Without a version there is no latest row.
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('s', 't', '{k}', 'same', on_duplicate => 'latest');
\set VERBOSITY default
TABLE t ORDER BY k;
-- Rows that differ are an error that names the keys; NULL differs from a value.
INSERT INTO s VALUES (2, 'b'), (4, 'd');
SELECT summary FROM idem_merge('s', 't', '{k}', 'error');
SELECT summary FROM idem_merge('s', 't', '{k}', 'error', dry_run => true);
SELECT summary FROM idem_merge('s', 't', '{k}', 'error', mode => 'insert');
SELECT summary FROM idem_merge('s', 't', '{k}', 'error', mode => 'update');
TABLE t ORDER BY k;
SELECT count(*) AS batches FROM idem_batches WHERE target = 't'::regclass AND batch_id = 'error';
SELECT summary FROM idem_merge('s', 't', '{k}', 'any', on_duplicate => 'any');
SELECT * FROM t WHERE k IN (2, 4) ORDER BY k;
-- Ten keys are named at most, in key order; long values are cut.
CREATE TABLE wide (a text COLLATE "C", b int, v int, PRIMARY KEY (a, b));
CREATE TABLE wide_s (v int, b int, a text COLLATE "C");
INSERT INTO wide_s SELECT v, b, 'key, ' || chr(97 + b % 2) FROM generate_series(1, 10) b, generate_series(1, 3) v;
SELECT summary FROM idem_merge('wide_s', 'wide', '{a,b}', '10');
INSERT INTO wide_s SELECT v, 50, repeat('x', 100) || 'y' FROM generate_series(1, 2) v;
SELECT summary FROM idem_merge('wide_s', 'wide', '{a,b}', '11');
DELETE FROM wide_s WHERE b < 50;
SELECT summary FROM idem_merge('wide_s', 'wide', '{a,b}', '1');
SELECT summary FROM idem_merge('wide_s', 'wide', '{b,a}', '1');
-- What differs in a column that does not matter to this call does matter: which
-- of the rows were inserted would otherwise be chance.
SELECT summary FROM idem_merge('wide_s', 'wide', '{a,b}', '1', exclude_cols => '{v}');
SELECT summary FROM idem_merge('wide_s', 'wide', '{a,b}', '1', audit_cols => '{v}');
SELECT v FROM wide;
-- Ignored columns are not merged: rows that differ only there are identical.
ALTER TABLE s ADD ignored int;
TRUNCATE s;
INSERT INTO s VALUES (7, 'x', 1), (7, 'x', 2);
SELECT summary FROM idem_merge('s', 't', '{k}', 'ignored', on_schema_change => 'ignore');

-- Rows can become duplicates only when they are cast to the target's types.
CREATE TABLE casts (k numeric(6,2) PRIMARY KEY, v text);
CREATE TABLE casts_s (k numeric, v text);
INSERT INTO casts_s VALUES (1.001, 'a'), (1.002, 'a'), (1.0, 'a'), (1.006, 'b');
SELECT summary FROM idem_merge('casts_s', 'casts', '{k}', '1');
INSERT INTO casts_s VALUES (1.01, 'c');
\set VERBOSITY terse
SELECT summary FROM idem_merge('casts_s', 'casts', '{k}', '2');
\set VERBOSITY default
SELECT summary FROM idem_merge('casts_s', 'casts', '{k}', '2', on_duplicate => 'any');
TABLE casts ORDER BY k;
CREATE TABLE casts_int (k int PRIMARY KEY, v varchar(5));
CREATE TABLE casts_int_s (k float8, v text);
INSERT INTO casts_int_s VALUES (1.4, 'a    '), (0.6, 'a    '), (2.5, 'x'), (1.5, 'x');
SELECT summary FROM idem_merge('casts_int_s', 'casts_int', '{k}', '1');
INSERT INTO casts_int_s VALUES (1.1, 'b');
SELECT summary FROM idem_merge('casts_int_s', 'casts_int', '{k}', '2');
-- An assignment cuts spaces at the end, and nothing else: 'a' with many spaces.
TRUNCATE casts_int_s;
INSERT INTO casts_int_s VALUES (1, 'a       '), (1, 'a         '), (1, 'a    ');
SELECT summary FROM idem_merge('casts_int_s', 'casts_int', '{k}', '3');
SELECT k, '[' || v || ']' FROM casts_int ORDER BY k;
-- char(n): trailing spaces do not count, in the key as in the value.
CREATE TABLE casts_char (k char(5) PRIMARY KEY, v char(3));
CREATE TABLE casts_char_s (k text, v text);
INSERT INTO casts_char_s VALUES ('a', 'x'), ('a   ', 'x '), ('a         ', 'x'), (' a', 'y');
SELECT summary FROM idem_merge('casts_char_s', 'casts_char', '{k}', '1');
SELECT summary FROM idem_merge('casts_char_s', 'casts_char', '{k}', '2');
INSERT INTO casts_char_s VALUES ('a ', 'z');
SELECT summary FROM idem_merge('casts_char_s', 'casts_char', '{k}', '3');
SELECT '[' || k::text || ']' AS k, v FROM casts_char ORDER BY k COLLATE "C";
-- Dates of timestamps, and times of day in other zones.
CREATE TABLE casts_date (k date PRIMARY KEY, v timestamptz(0));
CREATE TABLE casts_date_s (k timestamp, v timestamptz);
INSERT INTO casts_date_s VALUES ('2026-01-01 01:00', '2026-01-01 12:00:00.2+00'), ('2026-01-01 23:00', '2026-01-01 13:00:00.4+01');
SELECT summary FROM idem_merge('casts_date_s', 'casts_date', '{k}', '1');
-- Equal keys that are not identical (1.0 and 1.00): different rows, one key.
CREATE TABLE images (k numeric PRIMARY KEY, v text);
CREATE TABLE images_s (k numeric, v text);
INSERT INTO images_s VALUES (1.0, 'a'), (1.00, 'a');
\set VERBOSITY terse
SELECT summary FROM idem_merge('images_s', 'images', '{k}', '1');
SELECT summary FROM idem_merge('images_s', 'images', '{k}', '1', on_duplicate => 'any');
DELETE FROM images_s WHERE scale(k) = (SELECT scale(k) FROM images);
SELECT summary FROM idem_merge('images_s', 'images', '{k}', '2');
CREATE TABLE floats (k float8 PRIMARY KEY, v float8);
CREATE TABLE floats_s (k float8, v float8);
INSERT INTO floats_s VALUES (0, 1), ('-0', 1);
SELECT summary FROM idem_merge('floats_s', 'floats', '{k}', '1');
DELETE FROM floats_s WHERE k::text = '-0';
INSERT INTO floats_s VALUES ('NaN', 0), ('NaN', 0), ('infinity', 0);
SELECT summary FROM idem_merge('floats_s', 'floats', '{k}', '1');
INSERT INTO floats_s VALUES ('NaN', '-0');
SELECT summary FROM idem_merge('floats_s', 'floats', '{k}', '2');

-- ICU collations that are not deterministic are in merge_icu, citext is in
-- merge_citext: not every server has them.

-- "any" depends on what is staged and on nothing else. 20 shuffles of one
-- staging table with duplicates, ties and many types; each with other planner
-- settings and other ways to store the values. The target has lost a column.
CREATE TYPE pair AS (n numeric, t text);
CREATE TYPE color AS ENUM ('red', 'green', 'blue');
CREATE DOMAIN code AS varchar(10);
CREATE TABLE many (
    k1 numeric(8,2), k2 text COLLATE "C", ver int,
    txt text, num numeric, f8 float8, f4 float4, js json, jb jsonb, pt point, bx box,
    arr numeric[], arr2 text[], comp pair, comps pair[], rng numrange, mrng int4multirange,
    en color, cd code, big text, by bytea, ts timestamptz, iv interval, b boolean, c "char", bits bit varying, gone int,
    PRIMARY KEY (k1, k2));
CREATE TABLE base (
    k1 numeric, k2 text COLLATE "C", ver int,
    txt text, num numeric, f8 float8, f4 float4, js json, jb jsonb, pt point, bx box,
    arr numeric[], arr2 text[], comp pair, comps pair[], rng numrange, mrng int4multirange,
    en color, cd code, big text, by bytea, ts timestamptz, iv interval, b boolean, c "char", bits bit varying);
-- 40 keys, 15 rows of each; most columns are equal or nearly equal in many rows.
INSERT INTO base
SELECT (k / 4) + CASE WHEN i % 2 = 0 THEN 0.001 ELSE 0.002 END, 'k' || k % 4,
    CASE WHEN k % 3 = 0 THEN NULL WHEN k % 3 = 1 THEN 7 ELSE i % 4 END,
    CASE WHEN i % 5 = 0 THEN NULL ELSE 't' END,
    (ARRAY[1.0, 1.00, 1.000, 'NaN'::numeric, NULL])[1 + (k + i) % 5],
    (ARRAY['0'::float8, '-0', 'NaN', NULL])[1 + (k + i) % 4],
    (ARRAY['0'::float4, '-0', 'infinity'])[1 + (k * i) % 3],
    (ARRAY['{"a":1}', '{"a": 1}', '{ "a":1 }', NULL]::json[])[1 + (k + i) % 4],
    (ARRAY['{"a":1.0}', '{"a": 1.00}', '{"b":[1,{"c":null}]}']::jsonb[])[1 + (k + i) % 3],
    point(i % 3, 0), box(point(i % 3, 0), point(i % 3 + 1, 1)),
    CASE WHEN i % 4 = 0 THEN ARRAY[1.0, NULL] ELSE ARRAY[1.00, 2] END,
    (ARRAY['{}', '{a,b}', '[0:1]={a,b}', NULL])[1 + (i + k) % 4]::text[],
    CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN ROW(1.0, 'x')::pair ELSE ROW(NULL, NULL)::pair END,
    ARRAY[ROW(i % 2, repeat('y', 300))::pair, NULL],
    numrange(1.0, 2.0 + (i % 2)), int4multirange(int4range(1, 2 + i % 2), int4range(10, 12)),
    (ARRAY['red', 'green', 'blue']::color[])[1 + i % 3], 'c' || i % 2,
    (SELECT string_agg(md5((k * j)::text), '') FROM generate_series(1, CASE WHEN k = 5 THEN 400 ELSE 3 END) j) || repeat('z', 3000) || i % 3,
    decode(md5((i % 4)::text), 'hex'),
    '2026-01-01 00:00+00'::timestamptz + make_interval(hours => i % 2),
    (ARRAY['1 day'::interval, '24 hours', '1 month', '30 days'])[1 + (i + k) % 4],
    i % 2 = 0, chr(65 + i % 2)::"char", B'101'
FROM generate_series(0, 39) k, generate_series(1, 15) i;
-- Rows that are equal in all columns but one, for one key each: "any" has to
-- look at every column, of every kind.
INSERT INTO base (k1, k2, num) VALUES (100, 'num', 1.0), (100, 'num', 1.00), (100, 'num', 1.000);
INSERT INTO base (k1, k2, f8) VALUES (100, 'f8', '0'), (100, 'f8', '-0');
INSERT INTO base (k1, k2, js) VALUES (100, 'js', '[1, 2]'), (100, 'js', '[1,2]'), (100, 'js', '[1,  2]');
INSERT INTO base (k1, k2, jb) VALUES (100, 'jb', '[1.0]'), (100, 'jb', '[1.00]');
INSERT INTO base (k1, k2, pt) VALUES (100, 'pt', '(1,2)'), (100, 'pt', '(2,1)');
INSERT INTO base (k1, k2, bx) VALUES (100, 'bx', '(1,1),(0,0)'), (100, 'bx', '(2,2),(1,1)');
INSERT INTO base (k1, k2, arr) VALUES (100, 'arr', '{1.0}'), (100, 'arr', '{1.00}'), (100, 'arr', '{NULL}'), (100, 'arr', '{}'), (100, 'arr', NULL);
INSERT INTO base (k1, k2, arr2) VALUES (100, 'arr2', '[0:0]={a}'), (100, 'arr2', '[1:1]={a}'), (100, 'arr2', '{{a}}');
INSERT INTO base (k1, k2, comp) VALUES (100, 'comp', '(1.0,a)'), (100, 'comp', '(1.00,a)'), (100, 'comp', '(,)'), (100, 'comp', NULL);
INSERT INTO base (k1, k2, comps) VALUES (100, 'comps', '{"(1.0,a)"}'), (100, 'comps', '{"(1.00,a)"}'), (100, 'comps', '{NULL}');
INSERT INTO base (k1, k2, rng) VALUES (100, 'rng', '[1.0,2]'), (100, 'rng', '[1.00,2]'), (100, 'rng', 'empty');
INSERT INTO base (k1, k2, en) VALUES (100, 'en', 'red'), (100, 'en', 'green'), (100, 'en', NULL);
INSERT INTO base (k1, k2, iv) VALUES (100, 'iv', '1 day'), (100, 'iv', '24 hours');
INSERT INTO base (k1, k2, big) SELECT 100, 'big', repeat('0123456789', 30000) || i FROM generate_series(1, 3) i;
INSERT INTO base (k1, k2, comp) SELECT 100, 'bigcomp', ROW(1, repeat('abc', 40000) || i)::pair FROM generate_series(1, 3) i;
ALTER TABLE many DROP gone;
CREATE TABLE staged (LIKE base);
CREATE TABLE shuffles (n int, image text, texts text, fingerprint text, result text);
DO $$
DECLARE
    n int; r record; setting text; columns text;
    settings text[] := '{enable_sort,enable_hashjoin,enable_mergejoin,enable_nestloop,enable_seqscan,enable_indexscan,enable_bitmapscan,enable_material,enable_incremental_sort,enable_hashagg}';
BEGIN
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns
    FROM pg_attribute WHERE attrelid = 'many'::regclass AND attnum > 0 AND NOT attisdropped;
    FOR n IN 1 .. 20 LOOP
        -- None, one or two of the planner's ways are barred.
        FOREACH setting IN ARRAY settings LOOP
            PERFORM set_config(setting, 'on', true);
        END LOOP;
        IF n % 4 <> 0 THEN
            PERFORM set_config(settings[1 + n % 10], 'off', true);
            PERFORM set_config(settings[1 + n * 3 % 10], 'off', true);
        END IF;
        PERFORM set_config('work_mem', CASE WHEN n % 2 = 0 THEN '64kB' ELSE '64MB' END, true);
        -- Compressed or not, in line or out of it.
        EXECUTE format('ALTER TABLE staged ALTER big SET STORAGE %s, ALTER comp SET STORAGE %s',
                       (ARRAY['MAIN', 'EXTENDED', 'EXTERNAL'])[1 + n % 3], (ARRAY['EXTENDED', 'EXTERNAL', 'MAIN'])[1 + n % 3]);
        TRUNCATE staged;
        IF n = 1 THEN
            INSERT INTO staged SELECT * FROM base ORDER BY ctid;
        ELSIF n = 2 THEN
            INSERT INTO staged SELECT * FROM base ORDER BY ctid DESC;
        ELSE
            INSERT INTO staged SELECT * FROM base ORDER BY md5(n || ctid::text);
        END IF;
        IF n % 7 = 0 THEN
            ANALYZE staged;
        END IF;
        TRUNCATE many;
        r := idem_merge('staged', 'many', '{k1,k2}', 'shuffle ' || n, version_cols => '{ver}', on_duplicate => 'any');
        INSERT INTO shuffles (n, fingerprint, result) VALUES (n, r.fingerprint, r.summary);
        EXECUTE format('UPDATE shuffles SET texts = (SELECT md5(string_agg(t::text, chr(10) ORDER BY k1, k2)) FROM many t),
                        image = (SELECT md5(string_agg(encode(idem_image(%s), ''hex''), chr(10) ORDER BY k1, k2)) FROM many t) WHERE n = %s', columns, n);
    END LOOP;
END $$;
SELECT count(*), count(DISTINCT image) AS images, count(DISTINCT texts) AS texts, count(DISTINCT fingerprint) AS fingerprints, count(DISTINCT result) AS results, max(result) AS result FROM shuffles;
-- The winners are those of PostgreSQL's own order of row images: greatest
-- version first, then greatest image. (Except for arrays of composites, whose
-- parts are compared one by one, since any of them may be compressed.)
SELECT count(*) AS keys, count(*) FILTER (WHERE m *<> best.r) AS wrong
FROM many m JOIN (
    SELECT DISTINCT ON ((r).k1, (r).k2) r
    FROM (SELECT ROW(k1::numeric(8,2), k2, ver, txt, num, f8, f4, js, jb, pt, bx, arr, arr2, comp, comps, rng, mrng,
                     en, cd, big, by, ts, iv, b, c, bits)::many AS r FROM base) x
    ORDER BY (r).k1, (r).k2, (r).ver DESC NULLS LAST, r USING OPERATOR(pg_catalog.*>)) best
  ON (m.k1, m.k2) = ((best.r).k1, (best.r).k2)
WHERE m.k2 <> 'comps';
-- The order is that of record_image_ops over the columns in the target's order.
CREATE TABLE plain (k int PRIMARY KEY, a text, b int, c numeric, d text[], e bytea);
CREATE TABLE plain_s (e bytea, d text[], c numeric, b int, a text, k int);
INSERT INTO plain_s (k, a, b, c, d, e)
SELECT i % 50, CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE repeat('a', i % 4) || i % 2 END, CASE WHEN i % 3 = 0 THEN NULL ELSE i % 4 - 2 END,
    CASE WHEN i % 7 = 0 THEN NULL ELSE (i % 6) * 10.0 ^ (i % 3 - 1) END, CASE WHEN i % 4 > 0 THEN ARRAY['x', NULL, i % 2 || 'y'] END, CASE WHEN i % 2 = 0 THEN '\x00' ELSE '\xff00'::bytea END
FROM generate_series(1, 3000) i;
SELECT summary FROM idem_merge('plain_s', 'plain', '{k}', 'any', on_duplicate => 'any');
SELECT count(*) AS rows, count(*) FILTER (WHERE p *<> best.r) AS wrong
FROM plain p JOIN (SELECT DISTINCT ON (k) k, ROW(k, a, b, c, d, e)::plain AS r FROM plain_s ORDER BY k, ROW(k, a, b, c, d, e)::plain USING OPERATOR(pg_catalog.*>)) best USING (k);

SELECT count(*) > 30 AS many, count(*) FILTER (WHERE rows_staged IS DISTINCT FROM
           rows_duplicate + rows_inserted + rows_updated + rows_deleted + rows_unchanged + rows_stale + rows_skipped) AS unaccounted
FROM idem_ledger WHERE operation = 'merge';

SET client_min_messages = warning;
DROP SCHEMA dedupe CASCADE;
