--
-- Wrong input: what the caller is told, and that nothing has changed after it.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA merge_errors;
SET search_path = merge_errors, public;
\set SHOW_CONTEXT never

-- All that a call could have changed: rows and columns of every table here,
-- the ledger and the audit.
CREATE FUNCTION everything() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    relation regclass;
    rows text;
    result text;
BEGIN
    SELECT format('%s %s %s', (SELECT count(*) FROM idem_ledger), (SELECT count(*) FROM idem_audit),
                  (SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                   WHERE c.relnamespace = 'merge_errors'::regnamespace))
    INTO result;
    FOR relation IN SELECT oid FROM pg_class
                    WHERE relnamespace = 'merge_errors'::regnamespace AND relkind IN ('r', 'p')
                    ORDER BY relname LOOP
        EXECUTE format('SELECT md5(string_agg(x::text, '','' ORDER BY x::text)) FROM %s x', relation)
        INTO rows;
        result := result || ' ' || relation || ' ' || coalesce(rows, '-');
    END LOOP;
    RETURN result;
END $$;

-- What no rollback takes back, and so tells what had been done before an error.
-- Rows that are written to t advance a sequence, too.
CREATE FUNCTION sequences() RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(format('%s.%s %s', schemaname, sequencename, last_value), ' ' ORDER BY schemaname, sequencename)
    FROM pg_sequences
$$;

-- Runs a statement and says how it ended. After an error, nothing may have
-- changed; if something was written before, that is said. Without an error, the
-- first column of the first row is shown.
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before text := everything();
    sequences_before text := sequences();
    state text;
    message text;
    detail text;
    hint text;
    result text;
BEGIN
    BEGIN
        EXECUTE statement INTO result;
        RETURN 'ok: ' || coalesce(result, 'null');
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
            detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    END;
    IF everything() <> before THEN
        RAISE EXCEPTION 'the failed statement has changed something';
    END IF;
    result := state || ': ' || message;
    IF sequences() IS DISTINCT FROM sequences_before THEN
        result := result || E'\n  (rows had been written)';
    END IF;
    IF detail <> '' THEN
        result := result || E'\n  DETAIL: ' || regexp_replace(detail, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-][0-9:]+', '<time>', 'g');
    END IF;
    IF hint <> '' THEN
        result := result || E'\n  HINT: ' || hint;
    END IF;
    RETURN result;
END $$;

-- The same for a merge of s into t.
CREATE FUNCTION try_merge(arguments text) RETURNS text LANGUAGE sql AS $$
    SELECT try('SELECT summary FROM idem_merge(' || arguments || ')')
$$;

CREATE TABLE t (k int PRIMARY KEY, v text, n int, seen timestamptz);
INSERT INTO t VALUES (1, 'one', 1, '2026-01-01 00:00+00');
CREATE SEQUENCE written;
CREATE FUNCTION note_written() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('merge_errors.written'); RETURN NEW; END $$;
CREATE TRIGGER note_written BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note_written();
CREATE TABLE s (k int, v text, n int, seen timestamptz);
INSERT INTO s VALUES (1, 'uno', 1, '2026-01-02 00:00+00'), (2, 'dos', 2, '2026-01-02 00:00+00');

\pset format unaligned
\pset tuples_only on

--
-- Arguments
--

-- NULL where it has no meaning
SELECT try_merge($$NULL, 't'$$);
SELECT try_merge($$'s', NULL$$);
SELECT name || ' -> ' || try_merge(format($$'s', 't', %I => NULL$$, name))
FROM unnest('{pipeline,mode,on_stale,on_schema_change,on_replay,on_mismatch,nowait,exclusive,dry_run}'::text[]) name;

-- and where it means the default
SELECT try_merge($$'s', 't', NULL, NULL, '', NULL, NULL, NULL, NULL, on_duplicate => NULL, metadata => NULL, dry_run => true$$);

-- names
SELECT try_merge($$'s', 't', batch_id => ''$$);
SELECT try_merge($$'s', 't', batch_id => repeat('b', 256)$$);
SELECT try_merge($$'s', 't', batch_id => repeat('é', 128)$$);
SELECT try_merge($$'s', 't', batch_id => 'b', pipeline => repeat('p', 256)$$);
BEGIN;
-- as long as allowed
SELECT try_merge($$'s', 't', batch_id => repeat('é', 127) || 'e', pipeline => repeat('p', 255)$$);
-- bytes are compared: composed and decomposed letters are two batches
SELECT try_merge($$'s', 't', batch_id => U&'\00E9'$$);
SELECT try_merge($$'s', 't', batch_id => U&'e\0301'$$);
SELECT try_merge($$'s', 't', batch_id => U&'\00E9'$$);
ROLLBACK;

-- words
SELECT try_merge(format($$'s', 't', %I => 'no such word'$$, name))
FROM unnest('{mode,on_duplicate,on_stale,on_schema_change,on_replay,on_mismatch}'::text[]) name;
SELECT try_merge($$'s', 't', mode => 'UPSERT'$$);
SELECT try_merge($$'s', 't', mode => ''$$);

-- lists of columns
SELECT try_merge(format($$'s', 't', %I => '{}'$$, name))
FROM unnest('{key_cols,version_cols}'::text[]) name;
SELECT name || ' -> ' || try_merge(format($$'s', 't', %I => '{}', dry_run => true$$, name))
FROM unnest('{audit_cols,update_cols,exclude_cols}'::text[]) name;
SELECT try_merge(format($$'s', 't', %I => '{v,NULL}'$$, name))
FROM unnest('{key_cols,version_cols,audit_cols,update_cols,exclude_cols}'::text[]) name;
SELECT try_merge(format($$'s', 't', %I => '{v,n,v}'$$, name))
FROM unnest('{key_cols,version_cols,audit_cols,update_cols,exclude_cols}'::text[]) name;
SELECT try_merge(format($$'s', 't', %I => '{{k,v},{n,seen}}'$$, name))
FROM unnest('{key_cols,version_cols,audit_cols,update_cols,exclude_cols}'::text[]) name;
SELECT try_merge(format($$'s', 't', %I => '{ctid}'$$, name))
FROM unnest('{key_cols,version_cols,audit_cols,update_cols,exclude_cols}'::text[]) name;
SELECT try_merge(format($$'s', 't', %I => '{nowhere_at_all}'$$, name))
FROM unnest('{key_cols,version_cols,audit_cols,update_cols,exclude_cols}'::text[]) name;
-- the closest name; case matters; an empty name
SELECT try_merge($$'s', 't', version_cols => '{seem}'$$);
SELECT try_merge($$'s', 't', key_cols => '{K}'$$);
SELECT try_merge($$'s', 't', key_cols => '{""}'$$);

-- lists that contradict each other or the key
SELECT try_merge($$'s', 't', on_duplicate => 'latest'$$);
SELECT try_merge($$'s', 't', update_cols => '{v}', exclude_cols => '{n}'$$);
SELECT try_merge($$'s', 't', update_cols => '{k}'$$);
SELECT try_merge($$'s', 't', audit_cols => '{k}'$$);
SELECT try_merge($$'s', 't', version_cols => '{k}'$$);
SELECT try_merge($$'s', 't', version_cols => '{seen}', audit_cols => '{seen}'$$);
SELECT try_merge($$'s', 't', version_cols => '{seen}', exclude_cols => '{seen}'$$);

-- the companions have the same checks
SELECT try($$SELECT statement FROM idem_explain('s', 't', mode => NULL)$$);
SELECT try($$SELECT statement FROM idem_explain('s', 't', key_cols => '{v}')$$);
SELECT try($$SELECT idem_fingerprint(NULL)$$);
SELECT try($$SELECT idem_fingerprint('s', '{}')$$);
SELECT try($$SELECT idem_fingerprint('s', '{k,NULL}')$$);
SELECT try($$SELECT idem_fingerprint('s', '{k,k}')$$);
SELECT try($$SELECT idem_fingerprint('s', '{{k,v}}')$$);
SELECT try($$SELECT idem_fingerprint('s', '{k,vv}')$$);
SELECT try($$SELECT idem_fingerprint('s', '{k,nowhere_at_all}')$$);
SELECT try($$SELECT idem_fingerprint('s', '{ctid}')$$);
SELECT try($$SELECT idem_claim(NULL)$$);
SELECT try($$SELECT idem_claim('')$$);
SELECT try($$SELECT idem_claim(repeat('b', 256))$$);
SELECT try($$SELECT idem_claim('b', 't', NULL)$$);
SELECT try($$SELECT idem_claim('b', 't', repeat('p', 256))$$);
SELECT try($$SELECT idem_forget('t')$$);
SELECT try($$SELECT idem_forget('t', 'b', dry_run => NULL)$$);
SELECT try($$SELECT idem_forget(NULL)$$);

-- the library called by the declaration of another version
CREATE FUNCTION old_merge(staging regclass, target regclass, OUT status text, OUT summary text)
AS '$libdir/idempotent_ingest', 'idem_merge' LANGUAGE C;
SELECT try($$SELECT old_merge('s', 't')$$);
DROP FUNCTION old_merge(regclass, regclass);

-- an extension that somebody took apart
BEGIN;
ALTER TABLE idem_ledger RENAME TO no_ledger;
SELECT status FROM idem_merge('s', 't');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
ALTER TABLE idem_job RENAME TO no_job;
SELECT idem_enqueue('s', 't');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
ALTER TABLE idem_ledger RENAME application_name TO program;
SAVEPOINT s;
SELECT status FROM idem_merge('s', 't');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
ALTER TABLE idem_ledger ADD application_name varchar;
SELECT idem_claim('altered', 't');
ROLLBACK;
-- one column more, another one less, as after another history, are no harm
BEGIN;
ALTER TABLE idem_ledger ADD gone text DEFAULT 'gone', ADD note text DEFAULT upper('noted');
ALTER TABLE idem_ledger DROP gone;
SELECT idem_claim('altered', 't');
SELECT batch_id, note, revision, metadata FROM idem_ledger WHERE batch_id = 'altered';
ROLLBACK;
-- a domain's own idea of what is missing
BEGIN;
DELETE FROM idem_ledger;
CREATE DOMAIN required AS text NOT NULL;
ALTER TABLE idem_ledger ADD note required;
SELECT idem_claim('altered', 't');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- a trigger of the ledger that records something else meanwhile, with other options
BEGIN;
CREATE FUNCTION nest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN
        PERFORM public.idem_claim('inner ' || TG_OP, 'merge_errors.t');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER nest BEFORE INSERT OR UPDATE ON idem_ledger EXECUTE FUNCTION nest();
SELECT status FROM idem_merge('s', 't', batch_id => 'outer', exclude_cols => '{v}');
SELECT status FROM idem_merge('s', 't', batch_id => 'outer', exclude_cols => '{v}', on_replay => 'reapply');
SELECT batch_id, options FROM idem_ledger WHERE target = 't'::regclass AND batch_id ~ 'outer|inner' ORDER BY 1;
ROLLBACK;
-- what cannot be recorded is not merged
BEGIN;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER refuse BEFORE INSERT ON idem_ledger FOR EACH ROW EXECUTE FUNCTION refuse();
SAVEPOINT s;
SELECT status FROM idem_merge('s', 't', batch_id => 'not recorded');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT idem_claim('not recorded', 't');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

--
-- Relations
--

SELECT try_merge($$'no_such_table', 't'$$);
SELECT try_merge($$'s', 'no_such_table'$$);
-- any number is a valid regclass; no relation has got as far as the greatest one
SELECT try_merge($$4294967295, 't'$$);
SELECT try_merge($$'s', 4294967295$$);
SELECT try_merge($$'s', 0$$);
SELECT try($$SELECT statement FROM idem_explain('s', 4294967295)$$);
SELECT try($$SELECT idem_fingerprint(4294967295)$$);
SELECT try($$SELECT idem_claim('b', 4294967295)$$);
SELECT try($$SELECT idem_claim('b', 0)$$);
SELECT try($$SELECT idem_forget(4294967295, 'b')$$);

-- staging that has no rows to read
CREATE SEQUENCE a_sequence;
CREATE TYPE a_composite AS (k int, v text);
SELECT try_merge($$'a_sequence', 't'$$);
SELECT try_merge($$'t_pkey', 't'$$);
SELECT try_merge($$'a_composite', 't'$$);
SELECT try($$SELECT idem_fingerprint('a_sequence')$$);
SELECT try($$SELECT idem_fingerprint('t_pkey')$$);
SELECT try($$SELECT idem_fingerprint('a_composite')$$);

-- targets that no batch can be merged into, or not be kept safely
CREATE VIEW a_view AS SELECT * FROM t;
CREATE VIEW instead_view AS SELECT * FROM t;
CREATE FUNCTION instead_of() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE ON instead_view FOR EACH ROW EXECUTE FUNCTION instead_of();
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM t;
CREATE FOREIGN DATA WRAPPER merge_errors_wrapper;
CREATE SERVER merge_errors_server FOREIGN DATA WRAPPER merge_errors_wrapper;
CREATE FOREIGN TABLE a_foreign_table (k int, v text) SERVER merge_errors_server;
CREATE UNLOGGED TABLE an_unlogged_table (k int PRIMARY KEY, v text);
CREATE TEMP TABLE a_temp_table (k int PRIMARY KEY, v text);
CREATE TABLE a_parent (k int PRIMARY KEY, v text, n int, seen timestamptz);
CREATE TABLE a_child () INHERITS (a_parent);
CREATE TABLE with_rule (k int PRIMARY KEY, v text, n int, seen timestamptz);
CREATE RULE a_rule AS ON INSERT TO with_rule DO ALSO NOTIFY something;
CREATE TABLE half_logged (k int PRIMARY KEY, v text, n int, seen timestamptz) PARTITION BY RANGE (k);
CREATE TABLE half_logged_1 PARTITION OF half_logged FOR VALUES FROM (0) TO (10);
CREATE UNLOGGED TABLE half_logged_2 PARTITION OF half_logged FOR VALUES FROM (10) TO (20);
SELECT try_merge(format($$'s', %L, '{k}'$$, name))
FROM unnest('{a_view,instead_view,a_matview,a_sequence,t_pkey,a_composite,a_foreign_table,
              an_unlogged_table,a_temp_table,a_parent,with_rule,half_logged,pg_catalog.pg_class}'::text[]) name;
-- batches of such a target cannot be claimed either
SELECT try(format($$SELECT idem_claim('b', %L)$$, name))
FROM unnest('{a_view,a_matview,a_foreign_table,an_unlogged_table,a_temp_table,a_parent}'::text[]) name;

-- the target itself, or a part of it, as staging
SELECT try_merge($$'t', 't'$$);
CREATE TABLE parts (k int PRIMARY KEY, v text) PARTITION BY LIST (k);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2) PARTITION BY LIST (k);
CREATE TABLE parts_2_2 PARTITION OF parts_2 FOR VALUES IN (2);
SELECT try_merge($$'parts_1', 'parts'$$);
SELECT try_merge($$'parts_2_2', 'parts'$$);

-- a foreign table whose wrapper cannot read, as staging
SELECT try_merge($$'a_foreign_table', 't'$$);

-- staging may be temporary, as opposed to the target
CREATE TEMP TABLE temp_s AS TABLE s;
SELECT try_merge($$'temp_s', 't', dry_run => true$$);

-- a view that fails
CREATE VIEW failing AS SELECT k, v, 1 / (n - 1) AS n, seen FROM s;
SELECT try_merge($$'failing', 't'$$);

--
-- Columns
--

CREATE TABLE one_more (k int, v text, n int, sean timestamptz);
CREATE TABLE more (k int, v text, "N" int, "two words" int);
SELECT try_merge($$'one_more', 't'$$);
SELECT try_merge($$'more', 't'$$);
SELECT try_merge($$'more', 't', on_schema_change => 'ignore', version_cols => '{two words}'$$);
SELECT try_merge($$'more', 't', on_schema_change => 'ignore', dry_run => true$$);
SELECT try_merge($$'more', 't', on_schema_change => 'ignore', key_cols => '{N}'$$);
-- columns that staging lacks
CREATE TABLE fewer (v text, n int);
SELECT try_merge($$'fewer', 't'$$);
SELECT try_merge($$'fewer', 't', '{k}'$$);
CREATE TABLE without_seen (k int, v text, n int);
SELECT try_merge($$'without_seen', 't', version_cols => '{seen}'$$);
CREATE TABLE no_columns ();
SELECT try_merge($$'no_columns', 't'$$);
-- the key cannot be a column that is to be added
SELECT try_merge($$'more', 't', '{two words}', on_schema_change => 'add_columns'$$);
-- only a view can have a column by the name of a system column
CREATE VIEW system_names AS SELECT k, v, 'x'::text AS tableoid FROM s;
SELECT try_merge($$'system_names', 't'$$);
SELECT try_merge($$'system_names', 't', on_schema_change => 'add_columns'$$);
SELECT try_merge($$'system_names', 't', on_schema_change => 'ignore', dry_run => true$$);
SELECT try($$SELECT idem_fingerprint('system_names', '{tableoid}') = idem_fingerprint('system_names', '{v}')$$);

-- types that no assignment converts
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TYPE spirit AS ENUM ('glad', 'sad');
CREATE TABLE typed_t (k int PRIMARY KEY, m mood, a int[], p point);
CREATE TABLE typed_s (k text);
SELECT try_merge($$'typed_s', 'typed_t'$$);
ALTER TABLE typed_s ALTER k TYPE int USING NULL, ADD m spirit;
SELECT try_merge($$'typed_s', 'typed_t'$$);
ALTER TABLE typed_s DROP m, ADD a int;
SELECT try_merge($$'typed_s', 'typed_t'$$);
ALTER TABLE typed_s DROP a, ADD p text;
SELECT try_merge($$'typed_s', 'typed_t'$$);

-- versions without an order
ALTER TABLE typed_s DROP p, ADD p point;
SELECT try_merge($$'typed_s', 'typed_t', version_cols => '{p}'$$);

-- generated columns are not set from staging
CREATE TABLE generated (k int PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY UNIQUE, v text,
                        twice text GENERATED ALWAYS AS (v || v) STORED);
CREATE TABLE generated_s AS SELECT k, k + 100 AS id, v, 'x' AS twice FROM s;
SELECT try_merge($$'generated_s', 'generated'$$);
SELECT * FROM generated ORDER BY k;
SELECT try_merge($$'generated_s', 'generated', '{id}'$$);
SELECT try_merge($$'generated_s', 'generated', version_cols => '{twice}'$$);
SELECT try_merge($$'generated_s', 'generated', mode => 'update', version_cols => '{twice}'$$);
SELECT try_merge($$'generated_s', 'generated', mode => 'update', version_cols => '{id}'$$);
SELECT try_merge($$'generated_s', 'generated', mode => 'update', update_cols => '{twice}'$$);
SELECT try_merge($$'generated_s', 'generated', mode => 'update', audit_cols => '{twice}'$$);

--
-- Keys
--

CREATE TABLE keys (a int, b int, c int NOT NULL, d text, e text, j json, r int4range, p point);
CREATE TABLE keys_s AS TABLE keys;
-- no index at all, no primary key
SELECT try_merge($$'keys_s', 'keys'$$);
SELECT try_merge($$'keys_s', 'keys', '{a}'$$);
SELECT try_merge($$'keys_s', 'keys', '{d,a}'$$);
-- each index that came close, and why it does not serve
CREATE INDEX keys_plain ON keys (a);
CREATE UNIQUE INDEX keys_partial ON keys (a) WHERE b > 0;
CREATE UNIQUE INDEX keys_wider ON keys (a, b);
CREATE UNIQUE INDEX keys_expression ON keys (abs(c));
CREATE INDEX keys_hash ON keys USING hash (a);
SELECT try_merge($$'keys_s', 'keys', '{a}'$$);
-- an index that has a column twice
CREATE UNIQUE INDEX keys_twice ON keys (d, d text_pattern_ops);
SELECT try_merge($$'keys_s', 'keys', '{d,e}'$$);
DROP INDEX keys_twice;
-- an index that was not finished
INSERT INTO keys (a, b, c) VALUES (1, -1, 1), (1, -2, 2);
CREATE UNIQUE INDEX CONCURRENTLY keys_invalid ON keys (a);
SELECT try_merge($$'keys_s', 'keys', '{a}'$$);
DELETE FROM keys;
DROP INDEX keys_invalid;
-- deferrable constraints
ALTER TABLE keys ADD CONSTRAINT keys_deferrable UNIQUE (b) DEFERRABLE;
SELECT try_merge($$'keys_s', 'keys', '{b}'$$);
CREATE UNIQUE INDEX keys_b ON keys (b);
SELECT try_merge($$'keys_s', 'keys', '{b}'$$);
ALTER TABLE keys DROP CONSTRAINT keys_deferrable;
SELECT try_merge($$'keys_s', 'keys', '{b}', dry_run => true$$);
-- exclusion constraints
ALTER TABLE keys ADD CONSTRAINT keys_exclusion EXCLUDE USING gist (r WITH &&);
SELECT try_merge($$'keys_s', 'keys', '{r}'$$);
ALTER TABLE keys ADD CONSTRAINT keys_exclusion_c EXCLUDE (c WITH =);
SELECT try_merge($$'keys_s', 'keys', '{c}'$$);
-- types that cannot have a unique index
SELECT try_merge($$'keys_s', 'keys', '{j}'$$);
SELECT try_merge($$'keys_s', 'keys', '{p}'$$);
-- a key of several columns, in any order; a part of it is no key
SELECT try_merge($$'keys_s', 'keys', '{b,a}', dry_run => true$$);
SELECT try_merge($$'keys_s', 'keys', '{a,b,c}'$$);
-- indexes that serve: INCLUDE, another operator class, another collation
CREATE UNIQUE INDEX keys_include ON keys (d) INCLUDE (e);
CREATE UNIQUE INDEX keys_pattern ON keys (e text_pattern_ops);
SELECT try_merge($$'keys_s', 'keys', '{d}', dry_run => true$$);
SELECT try_merge($$'keys_s', 'keys', '{e}', dry_run => true$$);
DROP INDEX keys_include;
CREATE UNIQUE INDEX keys_collation ON keys (d COLLATE "POSIX");
SELECT try_merge($$'keys_s', 'keys', '{d}', dry_run => true$$);
-- the unique index of a partition is not one of the table
CREATE TABLE partly_unique (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE partly_unique_1 PARTITION OF partly_unique FOR VALUES FROM (0) TO (10);
CREATE UNIQUE INDEX ON partly_unique_1 (k);
SELECT try_merge($$'s', 'partly_unique', '{k}', on_schema_change => 'ignore'$$);

--
-- Rows
--

-- NULL in the key
CREATE TABLE loose (k int UNIQUE, l int, v text, UNIQUE (k, l));
CREATE TABLE loose_s (k int, l int, v text);
INSERT INTO loose_s VALUES (1, 1, 'a'), (NULL, 2, 'b');
SELECT try_merge($$'loose_s', 'loose', '{k}'$$);
INSERT INTO loose_s VALUES (NULL, 3, 'c'), (3, NULL, 'd');
SELECT try_merge($$'loose_s', 'loose', '{k}', 'nulls'$$);
SELECT try_merge($$'loose_s', 'loose', '{k,l}'$$);
-- the same whatever the order of the rows
CREATE VIEW loose_backwards AS SELECT * FROM loose_s ORDER BY v DESC;
SELECT try_merge($$'loose_backwards', 'loose', '{k,l}'$$);
SELECT try_merge($$'loose_s', 'loose', '{k}', dry_run => true$$);
SELECT try_merge($$'loose_s', 'loose', '{k}', mode => 'update'$$);
SELECT try_merge($$'loose_s', 'loose', '{k}', mode => 'insert'$$);
-- unless the index takes NULL as a value
CREATE TABLE tight (k int UNIQUE NULLS NOT DISTINCT, l int, v text);
SELECT try_merge($$'loose_s', 'tight', '{k}'$$);
DELETE FROM loose_s WHERE l = 3;
SELECT try_merge($$'loose_s', 'tight', '{k}'$$);

-- different rows of one key
CREATE TABLE twice (k int, v text, n int, seen timestamptz);
INSERT INTO twice VALUES (7, 'a', 1, NULL), (7, 'b', 1, NULL);
SELECT try_merge($$'twice', 't'$$);
SELECT try_merge($$'twice', 't', dry_run => true$$);
SELECT try_merge($$'twice', 't', mode => 'insert'$$);
SELECT try_merge($$'twice', 't', mode => 'update'$$);
INSERT INTO twice SELECT i, x, 1, NULL FROM generate_series(20, 31) i, unnest('{a,b,c}'::text[]) x;
SELECT try_merge($$'twice', 't'$$);
-- a tie of the greatest versions; lower ones may differ as they like
SELECT try_merge($$'twice', 't', version_cols => '{n}'$$);
DELETE FROM twice WHERE k <> 7;
INSERT INTO twice VALUES (7, 'c', 2, NULL);
SELECT try_merge($$'twice', 't', version_cols => '{n}', dry_run => true$$);
SELECT try_merge($$'twice', 't', version_cols => '{n}', on_duplicate => 'error'$$);
SELECT try_merge($$'twice', 't', on_duplicate => 'any', dry_run => true$$);
-- keys of several columns, long ones, and NULL as a value
CREATE TABLE long_key (k text, l int, v int, UNIQUE NULLS NOT DISTINCT (k, l));
CREATE TABLE long_key_s (k text, l int, v int);
INSERT INTO long_key_s VALUES (repeat('é', 100), 1, 1), (repeat('é', 100), 1, 2), (NULL, 1, 1), (NULL, 1, 2),
    ('a, b', 1, 1), ('a, b', 1, 2), ('', 1, 1), ('', 1, 2);
SELECT try_merge($$'long_key_s', 'long_key', '{k,l}'$$);
-- rows that become duplicates by a cast
CREATE TABLE rounded (k numeric(6,2) PRIMARY KEY, i int UNIQUE, v text);
CREATE TABLE rounded_s (k numeric, i float8, v text);
INSERT INTO rounded_s VALUES (1.001, 1, 'a'), (1.002, 2, 'b');
SELECT try_merge($$'rounded_s', 'rounded'$$);
UPDATE rounded_s SET k = i, i = 2 + i / 10;
SELECT try_merge($$'rounded_s', 'rounded', '{i}'$$);

-- values that do not fit
UPDATE rounded_s SET k = 99999 WHERE v = 'a';
SELECT try_merge($$'rounded_s', 'rounded'$$);
UPDATE rounded_s SET k = 1, i = 3e9 WHERE v = 'a';
SELECT try_merge($$'rounded_s', 'rounded'$$);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN given AS text NOT NULL;
CREATE TABLE narrow (k int PRIMARY KEY, v varchar(3), w positive, x given, y int NOT NULL CHECK (y < 10),
                     z int REFERENCES t, u int UNIQUE);
CREATE TABLE narrow_s (k int, v text, w int, x text, y int, z int, u int);
INSERT INTO narrow_s VALUES (1, 'abcdef', 1, 'x', 1, 1, 1);
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET v = 'abc', w = 0;
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET w = 1, x = NULL;
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET x = '', y = NULL;
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET y = 10;
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET y = 9, z = 404;
SELECT try_merge($$'narrow_s', 'narrow'$$);
-- trailing spaces are cut, as INSERT does
UPDATE narrow_s SET z = NULL, v = 'abc   ';
SELECT try_merge($$'narrow_s', 'narrow'$$);
-- a second unique index: a new row that collides, and two rows that swap values
INSERT INTO narrow_s VALUES (2, 'b', 1, 'x', 1, NULL, 1);
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET u = k;
SELECT try_merge($$'narrow_s', 'narrow'$$);
UPDATE narrow_s SET u = 3 - k;
SELECT try_merge($$'narrow_s', 'narrow'$$);
-- a column that staging lacks and that has no default
CREATE TABLE needs_more (k int PRIMARY KEY, v text, must int NOT NULL);
SELECT try_merge($$'s', 'needs_more', on_schema_change => 'ignore'$$);

-- no partition for a row
INSERT INTO half_logged_1 SELECT * FROM t;
DROP TABLE half_logged_2;
INSERT INTO s VALUES (11, 'once', 11, NULL);
SELECT try_merge($$'s', 'half_logged'$$);
DELETE FROM s WHERE k = 11;

-- a row that no page can hold
CREATE TABLE large (k int PRIMARY KEY, a text, b text, c text);
ALTER TABLE large ALTER a SET STORAGE PLAIN, ALTER b SET STORAGE PLAIN, ALTER c SET STORAGE PLAIN;
CREATE TABLE large_s AS
SELECT 1 AS k, string_agg(md5(i::text), '') AS a, string_agg(md5('b' || i), '') AS b, string_agg(md5('c' || i), '') AS c
FROM generate_series(1, 120) i;
SELECT try_merge($$'large_s', 'large'$$);

-- stale rows
CREATE TABLE stale AS SELECT k, v, n, seen - interval '2 days' AS seen FROM s WHERE k = 1;
SELECT try_merge($$'stale', 't', version_cols => '{seen}', on_stale => 'error'$$);
SELECT try_merge($$'stale', 't', version_cols => '{seen}', on_stale => 'error', dry_run => true$$);
BEGIN;
INSERT INTO t VALUES (2, 'two', 2, '2026-01-03 00:00+00');
INSERT INTO stale VALUES (2, 'dos', 2, NULL);
SELECT try_merge($$'stale', 't', version_cols => '{seen}', on_stale => 'error'$$);
SELECT try_merge($$'stale', 't', version_cols => '{seen}', on_stale => 'error', mode => 'update'$$);
ROLLBACK;
-- with no version there is nothing that could be stale
BEGIN;
SELECT try_merge($$'stale', 't', on_stale => 'error'$$);
ROLLBACK;

-- several faults at once: all rows without a key come first
CREATE TABLE faulty AS TABLE twice;
INSERT INTO faulty VALUES (NULL, 'x', 1, NULL);
SELECT try_merge($$'faulty', 't'$$);

-- an empty batch is no fault
BEGIN;
TRUNCATE twice;
SELECT try_merge($$'twice', 't', batch_id => 'nothing'$$);
SELECT try_merge($$'twice', 't'$$);
SELECT batch_id, rows_staged FROM idem_batches WHERE target = 't'::regclass;
ROLLBACK;

--
-- Allowed, with a warning
--

-- versions that no other one will ever exceed
CREATE TABLE versions (k int PRIMARY KEY, f float8, g real, n numeric, d date, s timestamp, z timestamptz);
CREATE TABLE versions_s (LIKE versions);
INSERT INTO versions_s VALUES (1, 'NaN', 'Infinity', 'NaN', 'infinity', 'infinity', 'infinity'),
                              (2, 'Infinity', 'NaN', 'Infinity', '2026-01-01', '2026-01-01', '2026-01-01 00:00+00'),
                              (3, '-Infinity', '-Infinity', '-Infinity', '-infinity', '-infinity', '-infinity');
SELECT name || ' -> ' || try_merge(format($$'versions_s', 'versions', version_cols => '{%s}', dry_run => true$$, name))
FROM unnest('{f,g,n,d,s,z}'::text[]) name;

-- a time that depends on the session's time zone
CREATE TABLE zoned (k int PRIMARY KEY, a timestamptz, b timestamptz);
CREATE TABLE zoned_s (k int, a timestamp, b date);
SELECT try_merge($$'zoned_s', 'zoned', dry_run => true$$);

-- a trigger that changes the key, one that drops rows, one that fails
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE NEW.v WHEN 'change' THEN NEW.k := NEW.k + 100;
               WHEN 'drop' THEN RETURN NULL;
               WHEN 'fail' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = 'P0042';
               ELSE NULL;
    END CASE;
    RETURN NEW;
END $$;
CREATE TABLE meddled (k int PRIMARY KEY, v text);
CREATE TRIGGER meddle BEFORE INSERT OR UPDATE ON meddled FOR EACH ROW EXECUTE FUNCTION meddle();
CREATE TABLE meddled_s (k int, v text);
INSERT INTO meddled_s VALUES (1, 'change'), (2, 'drop'), (3, 'keep');
SELECT try_merge($$'meddled_s', 'meddled'$$);
SELECT * FROM meddled ORDER BY k;
INSERT INTO meddled_s VALUES (0, 'keep'), (4, 'fail');
SELECT try_merge($$'meddled_s', 'meddled'$$);

-- foreign keys and triggers that are switched off
SET session_replication_role = replica;
SELECT try_merge($$'s', 't', dry_run => true$$);
RESET session_replication_role;

--
-- The state of the database
--

-- updates that a publication could not tell about
SET client_min_messages = error;	-- about wal_level
CREATE TABLE published (k int UNIQUE, v text, n int, seen timestamptz);
CREATE PUBLICATION merge_errors_publication FOR TABLE published;
RESET client_min_messages;
SELECT try_merge($$'s', 'published', '{k}'$$);
SELECT try_merge($$'s', 'published', '{k}', mode => 'insert'$$);
DROP PUBLICATION merge_errors_publication;

-- read-only transactions
BEGIN READ ONLY;
SELECT try_merge($$'s', 't'$$);
SELECT try($$SELECT idem_claim('b')$$);
SELECT try($$SELECT idem_forget('t', 'b')$$);
SELECT try_merge($$'s', 't', dry_run => true$$);
SELECT try_merge($$'a_view', 'meddled', on_schema_change => 'ignore', dry_run => true$$);
SELECT try($$SELECT idem_forget('t', 'b', dry_run => true)$$);
SELECT try($$SELECT engine IS NOT NULL FROM idem_explain('s', 't')$$);
SELECT try($$SELECT idem_fingerprint('s') = idem_fingerprint('s')$$);
COMMIT;

-- the functions that the generated statement calls, called by hand
SELECT try(call) FROM unnest(ARRAY[
    $$SELECT idem_row_staged(1, 2)$$, $$SELECT idem_row_staged(NULL, 2)$$,
    $$SELECT idem_row_distinct(1, 2)$$, $$SELECT idem_row_distinct(NULL, NULL::text)$$,
    $$SELECT idem_row_classify(1, 2)$$, $$SELECT idem_row_classify(NULL, 2)$$,
    $$SELECT idem_row_propose(1, true, 2)$$, $$SELECT idem_row_propose(NULL, NULL, NULL::int)$$,
    $$SELECT idem_row_guard(1, 2)$$, $$SELECT idem_row_guard(NULL, VARIADIC ARRAY[1, 2])$$,
    $$SELECT idem_row_applied(1, 2)$$, $$SELECT idem_row_applied(NULL, 2)$$,
    $$SELECT idem_column_default(1, 1::smallint, NULL::int)$$,
    $$SELECT idem_column_default(NULL, NULL, NULL::int)$$,
    $$SELECT idem_assign('x'::text, NULL::int)$$,
    $$SELECT idem_assign('12', NULL::int)$$,
    $$SELECT idem_assign(NULL::numeric, NULL::int)$$,
    $$SELECT idem_assign(2.5, NULL::int)$$]) call;
-- a sort key of records that are not of one kind
SELECT count(DISTINCT idem_image(x))
FROM (SELECT ROW('a'::text) UNION ALL SELECT ROW(1) UNION ALL SELECT ROW(1, 'b'::text, 2) UNION ALL SELECT NULL) r (x);

DROP FOREIGN DATA WRAPPER merge_errors_wrapper CASCADE;
