-- Keys and values of many types: assignment casts, change by image, keys as
-- their index compares them, NULLS NOT DISTINCT, wide and old tables.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA types;
SET search_path = types, public;
RESET client_min_messages;

CREATE TYPE pair AS (n numeric, t text);
CREATE TYPE color AS ENUM ('red', 'green', 'blue');
CREATE DOMAIN code AS varchar(3) CHECK (VALUE <> 'bad');
CREATE DOMAIN codes AS code[];
CREATE DOMAIN price AS numeric(6,2) NOT NULL;

-- Merges a table ks (k, v) into kt (k, v) with types kt and vt and returns the
-- outcome; the tables are made from two lists of literals.
CREATE FUNCTION try(key_type text, value_type text, stored text[], staged text[], staged_key text DEFAULT NULL, staged_value text DEFAULT NULL)
RETURNS TABLE (outcome text, rows text) LANGUAGE plpgsql AS $$
DECLARE
    r record; dry text;
BEGIN
    SET LOCAL client_min_messages = warning;
    DROP TABLE IF EXISTS kt, ks;
    RESET client_min_messages;
    EXECUTE format('CREATE TABLE kt (k %s PRIMARY KEY, v %s)', key_type, value_type);
    EXECUTE format('CREATE TABLE ks (v %s, k %s)', coalesce(staged_value, value_type), coalesce(staged_key, key_type));
    FOR i IN 1 .. coalesce(array_length(stored, 1), 0) LOOP
        EXECUTE format('INSERT INTO kt (k, v) VALUES (%L, %L)', stored[i][1], stored[i][2]);
    END LOOP;
    FOR i IN 1 .. coalesce(array_length(staged, 1), 0) LOOP
        EXECUTE format('INSERT INTO ks (k, v) VALUES (%L, %L)', staged[i][1], staged[i][2]);
    END LOOP;
    BEGIN
        r := idem_merge('ks', 'kt', '{k}', 'dry', dry_run => true);
        dry := replace(r.summary, 'dry_run', 'applied');
    EXCEPTION WHEN OTHERS THEN
        dry := 'error ' || SQLSTATE;
    END;
    BEGIN
        r := idem_merge('ks', 'kt', '{k}', 'real');
        outcome := r.summary;
        r := idem_merge('ks', 'kt', '{k}', 'again');
        IF r.rows_inserted + r.rows_updated > 0 THEN
            outcome := outcome || ', but again ' || r.summary;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        outcome := 'error ' || SQLSTATE;
    END;
    IF dry <> outcome THEN
        outcome := outcome || ', but the dry run ' || dry;
    END IF;
    EXECUTE 'SELECT string_agg(format(''%s=%s'', k, coalesce(v::text, ''(null)'')), '' '' ORDER BY k) FROM kt' INTO rows;
    RETURN NEXT;
END $$;

-- Change is by image: values that are equal and not identical are changes, and
-- types without = are values like others.
SELECT t AS value_type, f.* FROM (VALUES
    (1, 'numeric', '1.0', '1.00'), (2, 'numeric', '1.0', '1.0'),
    (3, 'float8', '0', '-0'), (4, 'float4', '-0', '-0'), (5, 'float8', 'NaN', 'NaN'),
    (6, 'json', '{"a":1}', '{"a": 1}'), (7, 'json', '{"a":1}', '{"a":1}'),
    (8, 'jsonb', '{"a":1,"b":2}', '{"b": 2, "a": 1}'), (9, 'jsonb', '[1.0]', '[1.00]'),
    (10, 'point', '(1,2)', '(2,1)'), (11, 'point', '(1,2)', '(1,2)'),
    (12, 'box', '(1,1),(0,0)', '(3,1),(2,0)'), (13, 'box', '(1,1),(0,0)', '(0,0),(1,1)'),
    (14, 'polygon', '((0,0),(1,1),(1,0))', '((1,1),(1,0),(0,0))'), (15, 'circle', '<(0,0),1>', '<(5,5),1>'),
    (16, 'interval', '1 day', '24 hours'), (17, 'interval', '1 day', '1 day'),
    (18, 'timetz', '12:00+00', '13:00+01'), (19, 'timestamptz', '2026-01-01 12:00+00', '2026-01-01 13:00+01'),
    (20, 'numeric[]', '{1.0,NULL}', '{1.00,NULL}'), (21, 'text[]', '[0:1]={a,b}', '{a,b}'), (22, 'text[]', '{}', NULL),
    (23, 'pair', '(1.0,a)', '(1.00,a)'), (24, 'pair', '(1.0,a)', '(1.0,a)'), (25, 'pair', '(,)', NULL),
    (26, 'pair[]', '{"(1.0,a)"}', '{"(1.00,a)"}'), (27, 'pair[]', '{"(1.0,a)",NULL}', '{"(1.0,a)",NULL}'),
    (28, 'numrange', '[1.0,2]', '[1.00,2]'), (29, 'int4range', '[1,2]', '[1,3)'), (30, 'nummultirange', '{[1.0,2]}', '{[1.00,2]}'),
    (31, 'color', 'red', 'blue'), (32, 'color[]', '{red}', '{red}'), (33, 'code', 'abc', 'abd'), (34, 'codes', '{abc}', '{abd}'),
    (35, 'char(5)', 'a', 'a  '), (36, 'varchar', 'a', 'a '), (37, '"char"', 'a', 'b'), (38, 'name', 'a', 'a'),
    (39, 'bytea', '\x00', '\x0000'), (40, 'bit varying', '1', '10'), (41, 'bit(3)', '101', '101'),
    (42, 'inet', '10.0.0.1', '10.0.0.1/8'), (43, 'macaddr', '08:00:2b:01:02:03', '08-00-2b-01-02-03'),
    (44, 'uuid', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'a0eebc999c0b4ef8bb6d6bb9bd380a11'),
    (45, 'tsvector', 'a b', 'b a'), (47, 'oid', '4294967295', '4294967295'), (48, 'boolean', 't', 'true'),
    (49, 'money', '1', '1.00'), (50, 'int8', '-9223372036854775808', '-9223372036854775808'), (51, 'int2', '-1', '-1'),
    (52, 'jsonpath', '$.a', '$."a"'), (53, 'tid', '(0,1)', '(0,2)'), (54, 'regclass', 'pg_class', 'pg_catalog.pg_class'), (55, 'text', '', NULL)
    ) v (n, t, a, b), LATERAL try('int', t, ARRAY[['1', a], ['2', a]], ARRAY[['1', b], ['2', a]]) f
ORDER BY n;

-- Keys of many types: one key is found, one is new, one is stored and not staged.
SELECT t AS key_type, f.* FROM (VALUES
    (1, 'smallint', '1', '2', '3'), (2, 'bigint', '-1', '9223372036854775807', '0'), (3, 'numeric', '1.0', '2', 'NaN'),
    (4, 'float8', '0', 'NaN', '1'), (5, 'text', 'a', 'b', ''), (6, 'varchar(3)', 'a', 'b', 'abc'), (7, 'char(3)', 'a', 'b', ''),
    (8, 'name', 'a', 'b', 'c'), (9, '"char"', 'a', 'b', 'c'), (11, 'date', '2026-01-01', 'infinity', '-infinity'),
    (12, 'timestamptz', '2026-01-01 00:00+00', '2026-01-01 00:00:00.000001+00', 'infinity'), (13, 'interval', '1 day', '1 day 1 us', '1 month'),
    (14, 'uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a13'),
    (15, 'bytea', '\x', '\x00', '\xff'), (16, 'inet', '10.0.0.1', '::1', '10.0.0.0/8'), (17, 'color', 'red', 'green', 'blue'),
    (18, 'code', 'abc', 'abd', 'x'), (19, 'codes', '{abc}', '{}', '{NULL}'), (20, 'int[]', '{1,2}', '{2,1}', '{}'), (21, 'text[]', '{a,NULL}', '{NULL}', '{}'),
    (22, 'pair', '(1,a)', '(1,b)', '(,)'), (23, 'pair[]', '{"(1,a)"}', '{"(1,b)"}', '{}'), (24, 'int4range', '[1,5)', '[1,6)', 'empty'), (25, 'int4multirange', '{[1,5)}', '{[1,2),[3,4)}', '{}'),
    (26, 'numrange', '[1.0,2]', '[1,2)', 'empty'), (27, 'jsonb', '{"a":1}', '{"a":2}', 'null'), (28, 'bit varying', '1', '10', ''), (29, 'oid', '1', '4294967295', '0'),
    (31, 'tid', '(0,1)', '(0,2)', '(1,1)'), (32, 'money', '1', '2', '-1'), (33, 'macaddr', '08:00:2b:01:02:03', '08:00:2b:01:02:04', '08:00:2b:01:02:05'), (34, 'tsvector', 'a', 'b', 'c')
    ) v (n, t, a, b, c), LATERAL try(t, 'int', ARRAY[[a, '1'], [c, '1']], ARRAY[[a, '2'], [a, '2'], [b, '2']]) f
ORDER BY n;
SELECT * FROM try('boolean', 'int', ARRAY[['t', '1']], ARRAY[['t', '2'], ['t', '2'], ['f', '2']]);
-- Keys that are equal and not identical are one key, which stays as stored.
SELECT t AS key_type, f.* FROM (VALUES
    (1, 'numeric', '1.0', '1.000'), (2, 'float8', '0', '-0'), (3, 'char(5)', 'a', 'a  '), (4, 'interval', '1 day', '24 hours'),
    (5, 'numeric[]', '{1.0}', '{1.00}'), (6, 'pair', '(1.0,a)', '(1.00,a)'), (7, 'numrange', '[1.0,2]', '[1.00,2.0]'), (8, 'jsonb', '{"a":1.0}', '{"a":1.00}')
    ) v (n, t, a, b), LATERAL try(t, 'int', ARRAY[[a, '1']], ARRAY[[b, '2']]) f ORDER BY n;

-- Assignment casts, with the type modifier: too long is 22001 and never cut.
SELECT st || ' to ' || t AS cast, f.* FROM (VALUES
    (1, 'text', 'varchar(3)', 'abc'), (2, 'text', 'varchar(3)', 'abcd'), (3, 'text', 'varchar(3)', 'abc   '), (4, 'text', 'char(3)', 'abcd'), (5, 'varchar(10)', 'varchar(3)', 'abcd'),
    (6, 'text[]', 'varchar(3)[]', '{abc,NULL}'), (7, 'text[]', 'varchar(3)[]', '{abc,abcd}'), (8, 'varchar(10)[]', 'varchar(3)[]', '{abcd}'), (9, 'varchar[]', 'char(2)[]', '{a,abc}'),
    (10, 'text', 'code', 'abcd'), (11, 'text', 'code', 'bad'), (12, 'text', 'code', 'abc'), (13, 'text[]', 'codes', '{abcd}'), (14, 'text[]', 'codes', '{bad}'), (15, 'text[]', 'codes', '{abc}'),
    (16, 'numeric', 'numeric(4,2)', '99.994'), (17, 'numeric', 'numeric(4,2)', '99.995'), (18, 'numeric[]', 'numeric(4,2)[]', '{1.005,NULL}'), (19, 'numeric[]', 'numeric(4,2)[]', '{100}'),
    (20, 'numeric', 'price', '1.005'), (21, 'numeric', 'price', NULL), (22, 'numeric', 'price', '12345'), (23, 'bigint', 'int', '2147483648'), (24, 'float8', 'int', '2.5'), (25, 'int', 'price', '7'),
    (26, 'bit(5)', 'bit(3)', '10101'), (27, 'bit varying', 'bit varying(3)', '1010'), (28, 'timestamp', 'timestamp(0)', '2026-01-01 00:00:00.5'), (29, 'timestamp', 'date', '2026-01-01 23:59'), (30, 'interval', 'interval day', '1 day 23:00'),
    (31, 'code', 'text', 'abc'), (32, 'int', 'text', '5'), (33, 'int[]', 'bigint[]', '{1,2}'), (34, 'int', 'numeric(3,1)', '100'), (35, 'numeric(10,5)', 'numeric(10,2)', '1.23456'), (36, 'text', 'int', '5'), (37, 'text', 'json', '{}'), (38, 'int', 'boolean', '1'), (39, 'text', 'color', 'red'),
    (40, 'code', 'varchar(2)', 'abc'), (41, 'json', 'jsonb', '{"a": 1}'), (42, 'date', 'timestamp', '2026-01-01')
    ) v (n, st, t, a), LATERAL try('int', t, '{}', ARRAY[['1', a]], staged_value => st) f ORDER BY n;

-- Domains that refuse NULL: as the type of a staged column, of a column that
-- staging lacks, and of one that is to be added.
CREATE TABLE nn (k int PRIMARY KEY, v price, d price DEFAULT 3);
CREATE TABLE nn_s (k int, v int);
INSERT INTO nn_s VALUES (1, 1), (2, 2);
SELECT summary FROM idem_merge('nn_s', 'nn', '{k}', '1');
UPDATE nn SET d = 4;
UPDATE nn_s SET v = 3 WHERE k = 2;
INSERT INTO nn_s VALUES (3, 3);
SELECT summary FROM idem_merge('nn_s', 'nn', '{k}', '2');
ALTER TABLE nn_s ADD added price DEFAULT 5;
BEGIN;
DELETE FROM nn_s WHERE k < 3;
DELETE FROM nn;
SELECT summary FROM idem_merge('nn_s', 'nn', '{k}', '3', on_schema_change => 'add_columns', dry_run => true);
SELECT summary FROM idem_merge('nn_s', 'nn', '{k}', '3', on_schema_change => 'add_columns');
TABLE nn ORDER BY k;
ROLLBACK;
-- Rows that are there would get NULL, as by ALTER TABLE.
\set VERBOSITY sqlstate
ALTER TABLE nn ADD added price;
SELECT summary FROM idem_merge('nn_s', 'nn', '{k}', '3', on_schema_change => 'add_columns');
\set VERBOSITY default
TABLE nn ORDER BY k;
SELECT batch_id FROM idem_batches WHERE target = 'nn'::regclass ORDER BY 1;

-- However a value is stored, it is the same value: compressed or not, in line or
-- not, as a column or inside a composite or an array.
CREATE TABLE toast (k int PRIMARY KEY, big text, comp pair, comps pair[], arr text[]);
CREATE TABLE toast_s (k int, big text, comp pair, comps pair[], arr text[]);
CREATE TABLE parts (k int, big text, t text, t1 text, a text);
INSERT INTO parts SELECT i, repeat('0123456789', 100 * i), repeat('ab', 1500), repeat('cd', 1500), repeat('ef', 1500) FROM generate_series(1, 9) i;
INSERT INTO parts SELECT i, repeat('0123456789', 20000), repeat('ab', 150000), repeat('cd', 150000), repeat('ef', 150000) FROM generate_series(10, 11) i;
CREATE TABLE toast_results (n int GENERATED ALWAYS AS IDENTITY, variant text, fields text, status text, summary text, fingerprint text, bytes bigint, compressed boolean);
DO $$
DECLARE
    variant text; fields text; r record;
BEGIN
    FOREACH variant IN ARRAY '{STORAGE EXTERNAL,STORAGE MAIN,STORAGE EXTENDED,COMPRESSION pglz,COMPRESSION lz4,COMPRESSION default}'::text[] LOOP
        FOREACH fields IN ARRAY '{plain,compressed}'::text[] LOOP
            BEGIN
                EXECUTE format('ALTER TABLE toast_s ALTER big SET %1$s, ALTER comp SET %1$s, ALTER comps SET %1$s, ALTER arr SET %1$s', variant);
            EXCEPTION WHEN feature_not_supported THEN       -- built without lz4
                NULL;
            END;
            TRUNCATE toast_s;
            IF fields = 'plain' THEN
                INSERT INTO toast_s SELECT k, big || '', ROW(k, t || '')::pair, ARRAY[ROW(k, t1 || '')::pair, NULL], ARRAY[a || ''] FROM parts;
            ELSE        -- these come compressed and are stored as they come
                INSERT INTO toast_s SELECT k, big, ROW(k, t)::pair, ARRAY[ROW(k, t1)::pair, NULL], ARRAY[a] FROM parts;
            END IF;
            r := idem_merge('toast_s', 'toast', '{k}', variant || fields);
            INSERT INTO toast_results (variant, fields, status, summary, fingerprint, bytes, compressed)
            SELECT variant, fields, r.status, r.summary, r.fingerprint, sum(pg_column_size(comp) + pg_column_size(big)), bool_or(pg_column_compression(big) IS NOT NULL) FROM toast_s;
            r := idem_merge('toast_s', 'toast', '{k}', 'STORAGE EXTERNALplain');
            IF r.status <> 'replayed' THEN
                RAISE 'not replayed';
            END IF;
        END LOOP;
    END LOOP;
END $$;
SELECT n, variant, fields, compressed, summary FROM toast_results ORDER BY n;
SELECT count(DISTINCT fingerprint) AS fingerprints, count(DISTINCT bytes) > 2 AS stored_differently FROM toast_results;
-- The same on the side of the target.
ALTER TABLE toast ALTER big SET STORAGE EXTERNAL, ALTER comp SET STORAGE EXTERNAL, ALTER comps SET STORAGE MAIN, ALTER arr SET STORAGE EXTERNAL;
CREATE TABLE toast_copy (LIKE toast INCLUDING STORAGE);
INSERT INTO toast_copy SELECT k, big || '' AS big, ROW((comp).n, (comp).t || '')::pair AS comp, ARRAY[ROW(comps[1].n, comps[1].t || '')::pair, comps[2]] AS comps, ARRAY[arr[1] || ''] AS arr FROM toast;
TRUNCATE toast;
INSERT INTO toast TABLE toast_copy;
SELECT sum(pg_column_size(t.big)) > 2 * sum(pg_column_size(s.big)) AS big, sum(pg_column_size(t.comp)) > 2 * sum(pg_column_size(s.comp)) AS comp, sum(pg_column_size(t.arr)) > 2 * sum(pg_column_size(s.arr)) AS arr
FROM toast t JOIN toast_s s USING (k);
SELECT summary FROM idem_merge('toast_s', 'toast', '{k}', 'target');
-- One byte at the end of a long value is a change.
UPDATE toast_s SET big = left(big, -1) || 'x' WHERE k = 11;
UPDATE toast_s SET comps = ARRAY[ROW(k, left(comps[1].t, -1) || 'x')::pair, NULL] WHERE k = 10;
SELECT summary FROM idem_merge('toast_s', 'toast', '{k}', 'one byte');
-- Target and staging have the same content. PostgreSQL's own comparison of images
-- takes some of it for different, as it compares what composites and arrays
-- contain as it is stored.
SELECT count(*) FILTER (WHERE t::text <> s::text) AS different, count(*) FILTER (WHERE t *<> s) AS image_differs FROM toast t JOIN toast_s s USING (k);
SELECT summary FROM idem_merge('toast_s', 'toast', '{k}', 'one byte again');

-- Indexes that can be the key: with INCLUDE, with another operator class,
-- direction or collation; also several columns in another order than the call's.
CREATE TABLE idx_s (a text, b text, v text);
INSERT INTO idx_s SELECT chr(96 + i % 5), chr(64 + i), 'v' || i FROM generate_series(1, 15) i;
CREATE FUNCTION try_index(definition text) RETURNS TABLE (outcome text) LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    CREATE TABLE idx (a text NOT NULL, b text NOT NULL, v text);
    EXECUTE 'CREATE UNIQUE INDEX ON idx ' || definition;
    INSERT INTO idx SELECT a, b, CASE WHEN b < 'F' THEN v ELSE 'stored' END FROM idx_s WHERE b < 'K';
    r := idem_merge('idx_s', 'idx', '{a,b}', 'dry', dry_run => true);
    outcome := r.summary;
    r := idem_merge('idx_s', 'idx', '{a,b}', 'real');
    outcome := outcome || '; ' || r.summary || '; ' || CASE WHEN EXISTS (SELECT a, b, v FROM idx EXCEPT SELECT * FROM idx_s) THEN 'wrong' ELSE 'right' END;
    r := idem_merge('idx_s', 'idx', '{a,b}', 'update', mode => 'update');
    outcome := outcome || '; ' || r.summary;
    DROP TABLE idx;
    RETURN NEXT;
END $$;
SELECT d AS index, outcome FROM (VALUES (1, '(a, b)'), (2, '(b, a)'), (3, '(a, b) INCLUDE (v)'), (4, '(a text_pattern_ops, b)'), (5, '(a DESC, b)'),
    (6, '(a DESC NULLS LAST, b NULLS FIRST)'), (7, '(b text_pattern_ops DESC, a)'), (8, '(a COLLATE "C", b COLLATE "POSIX")'), (9, '(b COLLATE "C" DESC NULLS LAST, a)')) v (n, d),
    LATERAL try_index(d) ORDER BY n;

-- NULLS NOT DISTINCT: NULL is a key like others.
CREATE TABLE nnd (a int, v text);
CREATE UNIQUE INDEX ON nnd (a) NULLS NOT DISTINCT;
CREATE TABLE nnd_s (a int, v text);
INSERT INTO nnd_s VALUES (1, 'one'), (NULL, 'null');
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '1', dry_run => true);
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '1');
UPDATE nnd_s SET v = 'NULL' WHERE a IS NULL;
INSERT INTO nnd_s VALUES (NULL, 'NULL'), (2, 'two');
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '2', mode => 'insert', dry_run => true);
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '2', mode => 'update', dry_run => true);
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '2');
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '3');
SELECT * FROM nnd ORDER BY a;
INSERT INTO nnd_s VALUES (NULL, 'other');
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '4');
-- Without it, NULL in a key is an error that counts the rows.
CREATE UNIQUE INDEX nnd_distinct ON nnd (a);
DROP INDEX nnd_a_idx;
SELECT summary FROM idem_merge('nnd_s', 'nnd', '{a}', '4', on_duplicate => 'any');
-- Several nullable columns: all patterns of NULLs, in 1 to 5 columns (more than
-- three are joined in another way).
CREATE FUNCTION try_nulls(columns int) RETURNS TABLE (outcome text) LANGUAGE plpgsql AS $$
DECLARE
    r record; m text; names text; digits text;
BEGIN
    SELECT string_agg('c' || i, ', '), string_agg(format('coalesce(c%s, 0)', i), ' + ') INTO names, digits FROM generate_series(1, columns) i;
    EXECUTE 'CREATE TABLE nulls (v int, ' || replace(names, ',', ' int,') || ' int)';
    EXECUTE 'CREATE TABLE nulls_s (LIKE nulls)';
    EXECUTE 'CREATE UNIQUE INDEX ON nulls (' || names || ') NULLS NOT DISTINCT';
    -- Each column is NULL, 1 or 2, and each key has a value of its own. Two thirds
    -- of the keys are stored, about a third of these with another value, and about
    -- a third of all rows are staged twice; which, depends on all columns.
    EXECUTE format('INSERT INTO nulls_s SELECT n, %s FROM generate_series(0, (3 ^ %s)::int - 1) n',
        (SELECT string_agg(format('nullif((n / (3 ^ %s)::int) %% 3, 0)', i - 1), ', ') FROM generate_series(1, columns) i), columns);
    EXECUTE format('INSERT INTO nulls SELECT CASE (%s) %% 3 WHEN 0 THEN -1 ELSE v END, %s FROM nulls_s WHERE coalesce(c1, 0) < 2', digits, names);
    EXECUTE format('INSERT INTO nulls_s SELECT * FROM nulls_s WHERE (%s) %% 3 = 1', digits);
    outcome := columns;
    FOREACH m IN ARRAY '{insert,update,upsert}'::text[] LOOP
        r := idem_merge('nulls_s', 'nulls', string_to_array(names, ', '), 'nulls ' || m, mode => m, dry_run => true);
        outcome := outcome || ' | ' || r.summary;
    END LOOP;
    r := idem_merge('nulls_s', 'nulls', string_to_array(names, ', '), 'u', mode => 'update');
    outcome := outcome || ' | ' || r.summary;
    r := idem_merge('nulls_s', 'nulls', string_to_array(names, ', '), 'nulls');
    outcome := outcome || ' | ' || r.summary || ' | wrong: ' ||
        (SELECT count(*) FROM ((SELECT * FROM nulls EXCEPT ALL SELECT DISTINCT * FROM nulls_s) UNION ALL (SELECT DISTINCT * FROM nulls_s EXCEPT ALL SELECT * FROM nulls)) x);
    r := idem_merge('nulls_s', 'nulls', string_to_array(names, ', '), 'nulls again');
    outcome := outcome || ' | ' || r.summary;
    DROP TABLE nulls, nulls_s;
    RETURN NEXT;
END $$;
\pset format unaligned
SELECT outcome FROM generate_series(1, 5) n, LATERAL try_nulls(n);
\pset format aligned

-- Wide tables: the limit of 1,600 columns; more than 100 arguments of a function.
CREATE FUNCTION make_wide(name text, columns int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (%s)', name, (SELECT string_agg(format('c%s smallint', i), ', ') FROM generate_series(1, columns) i));
    EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (c2, c1)', name);
    EXECUTE format('CREATE TABLE %I (%s)', name || '_s', (SELECT string_agg(format('c%s smallint', i), ', ') FROM generate_series(columns, 1, -1) i));
    EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM generate_series(1, 5) r', name || '_s', (SELECT string_agg('c' || i, ', ') FROM generate_series(1, columns) i),
                   (SELECT string_agg(CASE WHEN i % 7 = 0 AND i > 7 THEN 'NULL' ELSE format('r + %s', i) END, ', ') FROM generate_series(1, columns) i));
END $$;
CREATE TABLE wide_results (columns int, step text, outcome text);
DO $$
DECLARE
    n int; r record; t text;
BEGIN
    FOREACH n IN ARRAY '{49,50,51,97,98,99,100,101,102,1600}'::int[] LOOP
        t := 'wide' || n;
        PERFORM make_wide(t, n);
        r := idem_merge((t || '_s')::regclass, t::regclass, NULL, '1');
        INSERT INTO wide_results VALUES (n, '1 insert', r.summary);
        EXECUTE format('UPDATE %1$I SET c%2$s = -1 WHERE c1 = 2; UPDATE %1$I SET c%2$s = NULL WHERE c1 = 3;
                        INSERT INTO %1$I SELECT * FROM %1$I WHERE c1 = 4; DELETE FROM %3$I WHERE c1 = 6', t || '_s', n, t);
        r := idem_merge((t || '_s')::regclass, t::regclass, NULL, '2', dry_run => true);
        INSERT INTO wide_results VALUES (n, '2 dry', r.summary);
        r := idem_merge((t || '_s')::regclass, t::regclass, NULL, '2', on_duplicate => 'any');
        INSERT INTO wide_results VALUES (n, '3 upsert', r.summary);
        r := idem_merge((t || '_s')::regclass, t::regclass, NULL, '3');
        INSERT INTO wide_results VALUES (n, '4 again', r.summary);
        EXECUTE format('UPDATE %I SET c3 = 0 WHERE c1 < 4', t || '_s');
        r := idem_merge((t || '_s')::regclass, t::regclass, NULL, '4', mode => 'update', audit_cols => '{c5}');
        INSERT INTO wide_results VALUES (n, '5 update', r.summary);
        EXECUTE format('SELECT count(*) FROM %1$I t JOIN %1$I_s s USING (c1, c2) WHERE (t.c3, t.c40, t.c%2$s) IS DISTINCT FROM (s.c3, s.c40, s.c%2$s)', t, n) INTO r;
        INSERT INTO wide_results VALUES (n, '6 differing', r.count);
        EXECUTE format('DROP TABLE %1$I, %1$I_s', t);
    END LOOP;
END $$;
SELECT step, outcome, array_agg(columns ORDER BY columns) AS columns FROM wide_results GROUP BY 1, 2 ORDER BY 1, 2;

-- A composite with NULL in it is neither IS NULL nor IS NOT NULL, and one of NULLs
-- only IS NULL; as keys, both are values like others. v keeps what is stored, which
-- is all that the constraint allows.
CREATE TABLE composites (k int, p pair, v int CHECK (v < 10), w int, UNIQUE NULLS NOT DISTINCT (k, p));
CREATE TABLE composites_s (k int, p pair, v int, w int);
INSERT INTO composites_s VALUES (1, NULL, 1, 1), (1, '(,)', 2, 1), (1, '(2,)', 3, 1), (1, '(2,x)', 4, 1), (NULL, '(2,)', 5, 1), (NULL, NULL, 6, 1);
SELECT summary FROM idem_merge('composites_s', 'composites', '{k,p}', '1');
UPDATE composites_s SET v = v + 10, w = 2;
SELECT summary FROM idem_merge('composites_s', 'composites', '{k,p}', '2', exclude_cols => '{v}');
SELECT summary FROM idem_merge('composites_s', 'composites', '{k,p}', '3', exclude_cols => '{v}', target_predicate => 'k = 1');
SELECT summary FROM idem_merge('composites_s', 'composites', '{k,p}', '4', mode => 'update', update_cols => '{w}');
TABLE composites ORDER BY v;
CREATE TABLE by_composite (p pair PRIMARY KEY, v int CHECK (v < 10), w int);
INSERT INTO by_composite SELECT p, v, w FROM composites WHERE k = 1 AND p IS DISTINCT FROM NULL;
DELETE FROM composites_s WHERE k IS NULL OR p IS NOT DISTINCT FROM NULL;
UPDATE composites_s SET w = 3;
ALTER TABLE composites_s DROP k;
SELECT summary FROM idem_merge('composites_s', 'by_composite', '{p}', '1', exclude_cols => '{v}');
SELECT summary FROM idem_merge('composites_s', 'by_composite', '{p}', '2', exclude_cols => '{v}', target_predicate => 'w = 3');
UPDATE composites_s SET w = 4;
SELECT summary FROM idem_merge('composites_s', 'by_composite', '{p}', '3', exclude_cols => '{v}', target_predicate => 'w = 3');
TABLE by_composite ORDER BY v;

-- Names of 63 bytes, and such that look like our own.
CREATE TABLE "Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx" (
    "κλειδί-κλειδί-κλειδί-κλειδί-κλειδ1" int, matched text, "s" int, "t" int, "k'; --" text, "SELECT" int, "p.matched" int, matched_ int, d int, c int, "a b" text);
CREATE TABLE "Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx" (LIKE "Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx", excluded int DEFAULT 3, matched__ int DEFAULT 4);
ALTER TABLE "Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx" ADD UNIQUE ("κλειδί-κλειδί-κλειδί-κλειδί-κλειδ1", "k'; --");
SELECT octet_length(relname) AS relname, octet_length(attname) AS attname FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid AND attnum = 1
WHERE c.oid = '"Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx"'::regclass;
INSERT INTO "Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx" VALUES (1, 'm', 2, 3, 'key', 4, 5, 6, 7, 8, 'x'), (2, 'm', 2, 3, 'key', 4, 5, 6, 7, 8, 'x');
SELECT summary, target FROM idem_merge('"Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx"', '"Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx"', ARRAY['κλειδί-κλειδί-κλειδί-κλειδί-κλειδ1', 'k''; --'], '1');
UPDATE "Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx" SET matched = 'M', "a b" = 'y' WHERE "κλειδί-κλειδί-κλειδί-κλειδί-κλειδ1" = 2;
SELECT summary FROM idem_merge('"Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx"', '"Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx"', ARRAY['κλειδί-κλειδί-κλειδί-κλειδί-κλειδ1', 'k''; --'], '2', version_cols => '{"SELECT"}', audit_cols => '{matched}');
SELECT summary FROM idem_merge('"Staging of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxx"', '"Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx"', ARRAY['κλειδί-κλειδί-κλειδί-κλειδί-κλειδ1', 'k''; --'], '3', mode => 'update', update_cols => '{d,s,t}');
TABLE "Target of names, ""quoted"", 63 bytes long: xxxxxxxxxxxxxxxxxxxxx" ORDER BY 1;

-- Columns that were dropped, on both sides, and rows from before a column was
-- added with a default.
CREATE TABLE old (gone1 int, k int PRIMARY KEY, gone2 text, v text, gone3 int);
INSERT INTO old VALUES (1, 1, 'x', 'one', 1), (1, 2, 'x', 'two', 1);
ALTER TABLE old DROP gone1, DROP gone2, DROP gone3, ADD added int DEFAULT 42, ADD later text;
CREATE TABLE old_s (v text, gone int, added int, k int);
ALTER TABLE old_s DROP gone, ADD later text;
INSERT INTO old_s VALUES ('one', 42, 1, NULL), ('two', 43, 2, NULL), ('three', NULL, 3, 'l');
SELECT summary FROM idem_merge('old_s', 'old', '{k}', '1');
TABLE old ORDER BY k;
SELECT summary FROM idem_merge('old_s', 'old', '{k}', '2', mode => 'update', on_duplicate => 'any');

SELECT count(*) > 300 AS many, count(*) FILTER (WHERE rows_staged IS DISTINCT FROM
           rows_duplicate + rows_inserted + rows_updated + rows_deleted + rows_unchanged + rows_stale + rows_skipped) AS unaccounted
FROM idem_ledger WHERE operation = 'merge';

SET client_min_messages = warning;
DROP SCHEMA types CASCADE;
