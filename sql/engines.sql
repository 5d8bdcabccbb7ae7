-- The two engines: which one serves a merge and why, and that both give the same
-- answer: result, content, triggers, errors.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA engines;
SET search_path = engines, public;
RESET client_min_messages;
\set SHOW_CONTEXT never
\pset format unaligned

--
-- The setting
--
LOAD 'idempotent_ingest';
SET idempotent_ingest.engine = native;
SET idempotent_ingest.engine = SQL;
SHOW idempotent_ingest.engine;
\set VERBOSITY sqlstate
SET idempotent_ingest.engine = 'fast';
SET idempotent_ingest.engine = '';
SET idempotent_ingest.motor = native;
\set VERBOSITY default
SHOW idempotent_ingest.engine;
SELECT enumvals, boot_val, context FROM pg_settings WHERE name = 'idempotent_ingest.engine';
RESET idempotent_ingest.engine;

--
-- Which engine, and why
--

-- What idem_explain says, and for a refusal what idem_merge says.
CREATE FUNCTION choice(engine text, staging text, target text, arguments text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    state text;
    message text;
    detail text;
    merged text;
BEGIN
    PERFORM set_config('idempotent_ingest.engine', engine, true);
    EXECUTE format('SELECT engine || '': '' || reason FROM idem_explain(%L, %L %s)', staging, target, arguments) INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    BEGIN
        PERFORM set_config('idempotent_ingest.engine', engine, true);
        EXECUTE format('SELECT engine FROM idem_merge(%L, %L %s)', staging, target, arguments) INTO merged;
    EXCEPTION WHEN OTHERS THEN
        merged := SQLSTATE;
    END;
    -- What neither engine can do is for merge_errors to tell.
    RETURN CASE WHEN message LIKE 'the native engine%' THEN format('%s: %s | %s', state, message, detail) ELSE state END
        || CASE WHEN merged <> state THEN ' (idem_merge: ' || merged || ')' ELSE '' END;
END $$;
CREATE FUNCTION choices(staging text, target text, arguments text DEFAULT '',
                        OUT "auto" text, OUT native text, OUT "sql" text) LANGUAGE sql AS $$
    SELECT choice('auto', staging, target, arguments), choice('native', staging, target, arguments), choice('sql', staging, target, arguments) $$;

CREATE TABLE large (k int, v text) WITH (autovacuum_enabled = off);
INSERT INTO large SELECT i, 'value ' || i FROM generate_series(1, 5000) i;
CREATE TABLE small (k int, v text);
INSERT INTO small VALUES (1, 'one');

CREATE TABLE plain (k int PRIMARY KEY, v text);
\x on
SELECT * FROM choices('large', 'plain');
SELECT * FROM choices('small', 'plain');

-- Staging of every kind and size.
CREATE TABLE nothing (k int, v text);
CREATE VIEW small_view AS TABLE small;
CREATE MATERIALIZED VIEW small_stored AS TABLE small;
CREATE MATERIALIZED VIEW large_stored AS TABLE large;
CREATE TABLE small_parted (k int, v text) PARTITION BY RANGE (k);
CREATE TEMP TABLE small_temp AS TABLE small;
CREATE TEMP TABLE large_temp AS TABLE large;
CREATE UNLOGGED TABLE large_unlogged AS TABLE large;
\x off
SELECT staging, choice('auto', staging, 'plain'), choice('native', staging, 'plain')
FROM unnest('{nothing,small_view,small_stored,large_stored,small_parted,small_temp,large_temp,large_unlogged}'::text[]) staging;

-- Targets: of the first kind both engines can serve all, of the second kind only
-- the sql engine can, of the third kind none can.
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;

CREATE TABLE a_indexes (k int PRIMARY KEY, v text, n int UNIQUE, a int[]);
CREATE INDEX ON a_indexes (lower(v));
CREATE INDEX ON a_indexes (v) WHERE k > 10;
CREATE UNIQUE INDEX ON a_indexes (n, lower(v)) WHERE k < 10;
CREATE INDEX ON a_indexes USING gin (a);
CREATE INDEX ON a_indexes USING hash (v);
CREATE INDEX ON a_indexes USING brin (k);
CREATE TABLE a_constraints (k int PRIMARY KEY CHECK (k > 0), v text NOT NULL, p int REFERENCES plain, CHECK (v <> '' AND k < 1000000));
CREATE TABLE a_columns (k int PRIMARY KEY, v text DEFAULT 'none', i int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (k + 1) STORED, n serial);
CREATE TABLE a_triggers (k int PRIMARY KEY, v text);
CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON a_triggers FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TRIGGER b BEFORE INSERT OR UPDATE ON a_triggers FOR EACH STATEMENT EXECUTE FUNCTION nothing();
CREATE TRIGGER c AFTER INSERT ON a_triggers REFERENCING NEW TABLE AS rows FOR EACH STATEMENT EXECUTE FUNCTION nothing();
CREATE TRIGGER d BEFORE DELETE ON a_triggers FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TRIGGER e BEFORE TRUNCATE ON a_triggers FOR EACH STATEMENT EXECUTE FUNCTION nothing();
CREATE CONSTRAINT TRIGGER f AFTER INSERT OR UPDATE ON a_triggers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TABLE a_policy_not_for_me (k int PRIMARY KEY, v text);
ALTER TABLE a_policy_not_for_me ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON a_policy_not_for_me USING (k > 10);
CREATE TABLE a_parent_of_one (k int, v text);
CREATE TABLE a_child (PRIMARY KEY (k)) INHERITS (a_parent_of_one);
CREATE ACCESS METHOD idem_heap TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE a_heap_by_another_name (k int PRIMARY KEY, v text) USING idem_heap;

CREATE TABLE b_partitioned (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
CREATE TABLE a_partition PARTITION OF b_partitioned FOR VALUES FROM (0) TO (100000);
CREATE TABLE b_had_children (k int PRIMARY KEY, v text);
CREATE TABLE child () INHERITS (b_had_children);
DROP TABLE child;
CREATE TABLE b_before_insert (k int PRIMARY KEY, v text);
CREATE TRIGGER t BEFORE INSERT ON b_before_insert FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TABLE b_before_update (k int PRIMARY KEY, v text);
CREATE TRIGGER t BEFORE UPDATE OF v ON b_before_update FOR EACH ROW WHEN (NEW.k > 10) EXECUTE FUNCTION nothing();
CREATE TABLE b_before_disabled (k int PRIMARY KEY, v text);
CREATE TRIGGER t BEFORE INSERT ON b_before_disabled FOR EACH ROW EXECUTE FUNCTION nothing();
ALTER TABLE b_before_disabled DISABLE TRIGGER t;
CREATE TABLE b_exclusion (k int PRIMARY KEY, v text, r int4range, EXCLUDE USING gist (r WITH &&));
CREATE TABLE b_deferrable (k int PRIMARY KEY, v text, n int UNIQUE DEFERRABLE);
CREATE TABLE b_deferred (k int PRIMARY KEY, v text, n int UNIQUE DEFERRABLE INITIALLY DEFERRED);

CREATE TABLE c_parent (k int PRIMARY KEY, v text);
CREATE TABLE c_child () INHERITS (c_parent);
CREATE TABLE c_rule (k int PRIMARY KEY, v text);
CREATE RULE r AS ON INSERT TO c_rule DO ALSO NOTHING;
CREATE VIEW c_view AS TABLE plain;
CREATE VIEW c_instead AS TABLE plain;
CREATE TRIGGER t INSTEAD OF INSERT ON c_instead FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TEMP TABLE c_temp (k int PRIMARY KEY, v text);
CREATE UNLOGGED TABLE c_unlogged (k int PRIMARY KEY, v text);
CREATE TABLE c_deferrable_key (k int PRIMARY KEY DEFERRABLE, v text);

SELECT relname, c.*
FROM pg_class, choices('large', relname, $$, key_cols => '{k}'$$) c
WHERE relname ~ '^[abc]_' AND relkind IN ('r', 'p', 'v') AND relnamespace IN ('engines'::regnamespace, pg_my_temp_schema())
ORDER BY relname COLLATE "C";

-- By role: row-level security, for the owner only if it is forced; and columns
-- that the caller may not read or write.
CREATE ROLE idem_e_owner;
CREATE ROLE idem_e_user;
CREATE ROLE idem_e_bypass BYPASSRLS;
GRANT USAGE ON SCHEMA engines TO idem_e_owner, idem_e_user, idem_e_bypass;
GRANT SELECT ON large TO PUBLIC;
CREATE TABLE policy (k int PRIMARY KEY, v text);
CREATE TABLE policy_forced (k int PRIMARY KEY, v text);
CREATE TABLE policy_off (k int PRIMARY KEY, v text);
CREATE TABLE rights_all (k int PRIMARY KEY, v text, n int, g int GENERATED ALWAYS AS (k + 1) STORED);
CREATE TABLE rights_columns (LIKE rights_all INCLUDING ALL);
CREATE TABLE rights_no_select (LIKE rights_all INCLUDING ALL);
CREATE TABLE rights_no_insert (LIKE rights_all INCLUDING ALL);
ALTER TABLE policy ENABLE ROW LEVEL SECURITY;
ALTER TABLE policy_forced ENABLE ROW LEVEL SECURITY;
ALTER TABLE policy_forced FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON policy USING (k > 10);
CREATE POLICY p ON policy_forced USING (k > 10);
CREATE POLICY p ON policy_off USING (k > 10);
ALTER TABLE policy OWNER TO idem_e_owner;
ALTER TABLE policy_forced OWNER TO idem_e_owner;
ALTER TABLE policy_off OWNER TO idem_e_owner;
GRANT SELECT, INSERT, UPDATE ON policy, policy_forced, policy_off, rights_all TO idem_e_user, idem_e_bypass;
GRANT SELECT (k, v, n, g), INSERT (k, v, n), UPDATE (v) ON rights_columns TO idem_e_user;
GRANT SELECT (k, v, g), INSERT (k, v, n), UPDATE (v) ON rights_no_select TO idem_e_user;
GRANT SELECT (k, v, n, g), INSERT (k, v), UPDATE (v) ON rights_no_insert TO idem_e_user;
CREATE TABLE seen (role text, target text, mode text, "auto" text, native text);
GRANT SELECT, INSERT ON seen TO PUBLIC;
CREATE FUNCTION look(mode text, VARIADIC targets text[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO seen
    SELECT current_user, target, mode, choice('auto', 'large', target, format(', mode => %L', mode)), choice('native', 'large', target, format(', mode => %L', mode))
    FROM unnest(targets) target $$;
SET ROLE idem_e_owner;
SELECT look('upsert', 'policy', 'policy_forced', 'policy_off');
SET ROLE idem_e_bypass;
SELECT look('upsert', 'policy', 'policy_forced', 'policy_off');
SET ROLE idem_e_user;
SELECT look('upsert', 'policy', 'policy_forced', 'policy_off', 'rights_all', 'rights_columns', 'rights_no_select', 'rights_no_insert');
SELECT look('insert', 'rights_columns', 'rights_no_select', 'rights_no_insert');
SELECT look('update', 'rights_columns', 'rights_no_select', 'rights_no_insert');
RESET ROLE;
SELECT * FROM seen ORDER BY role, target COLLATE "C", mode DESC;

-- Keys: only types whose equal values have the same image.
CREATE DOMAIN whole AS int;
CREATE DOMAIN fraction AS numeric;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b int);
CREATE TYPE span AS RANGE (subtype = int4);
CREATE TABLE by_key (type text, "auto" text, native text);
DO $$
DECLARE
    type text;
BEGIN
    FOREACH type IN ARRAY ARRAY['smallint', 'int', 'bigint', 'whole', 'boolean', '"char"', 'oid', 'date', 'time', 'timestamp', 'timestamptz',
        'uuid', 'bytea', 'text', 'text COLLATE "C"', 'varchar', 'varchar(5)', 'name', 'char(5)', 'mood', 'inet', 'macaddr', 'pg_lsn', 'bit(3)', 'bit varying',
        'numeric', 'numeric(10,2)', 'fraction', 'real', 'double precision', 'bpchar', 'interval', 'timetz', 'money', 'jsonb', 'tsvector',
        'int[]', 'text[]', 'pair', 'int4range', 'span', 'int4multirange'] LOOP
        EXECUTE format('CREATE TABLE typed (k %s PRIMARY KEY, v text); CREATE TABLE typed_large (k %s, v text);', type, type);
        INSERT INTO typed_large (v) SELECT repeat('x', 1000) FROM generate_series(1, 150);
        INSERT INTO by_key SELECT type, choice('auto', 'typed_large', 'typed'), choice('native', 'typed_large', 'typed');
        DROP TABLE typed, typed_large;
    END LOOP;
END $$;
SELECT * FROM by_key WHERE native NOT LIKE '%:%in their image%';
SELECT * FROM by_key WHERE native LIKE '%:%in their image%';
-- Of several columns, one decides; and it is the index that says what is equal.
CREATE TABLE two (a int, b numeric, v text, k int, PRIMARY KEY (a, b));
CREATE TABLE two_s (a int, b numeric, v text, k int);
INSERT INTO two_s (v) SELECT repeat('x', 1000) FROM generate_series(1, 150);
SELECT choice('auto', 'two_s', 'two');
CREATE UNIQUE INDEX ON two (a);
SELECT choice('auto', 'two_s', 'two', $$, key_cols => '{a}'$$);
CREATE TABLE pattern (k text NOT NULL, v text);
CREATE UNIQUE INDEX ON pattern (k text_pattern_ops);
SELECT choice('auto', 'large', 'pattern', $$, key_cols => '{k}'$$);
-- Not every PostgreSQL has citext or is built with ICU, so these only speak up if
-- something is wrong.
SET client_min_messages = warning;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'citext') THEN
        CREATE EXTENSION IF NOT EXISTS citext;
        CREATE TABLE ci (k citext PRIMARY KEY, v text);
        IF choice('auto', 'large', 'ci') <> 'sql: keys can be equal and differ in their image'
            OR choice('native', 'large', 'ci') NOT LIKE '0A000:%their image.' THEN
            RAISE 'citext: %, %', choice('auto', 'large', 'ci'), choice('native', 'large', 'ci');
        END IF;
    END IF;
    IF EXISTS (SELECT FROM pg_collation WHERE collname = 'und-x-icu') THEN
        CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE icu (k text COLLATE nocase PRIMARY KEY, v text);
        CREATE TABLE icu_index (k text NOT NULL, v text);
        CREATE UNIQUE INDEX ON icu_index (k COLLATE nocase);
        IF choice('auto', 'large', 'icu') <> 'sql: keys can be equal and differ in their image'
            OR choice('native', 'large', 'icu') NOT LIKE '0A000:%their image.'
            OR choice('native', 'large', 'icu_index', ', key_cols => ''{k}''') NOT LIKE '0A000:%their image.' THEN
            RAISE 'icu: %, %', choice('auto', 'large', 'icu'), choice('native', 'large', 'icu');
        END IF;
    END IF;
END $$;
RESET client_min_messages;

--
-- The same answers
--

-- Merges by one engine, says what came out, and undoes it. "engine" is the one
-- that did it; the rest is to be the same: status and counts, or the error; the
-- content of the target; what triggers noted; and unless there was an error, a
-- hash of fingerprint and ledger row.
CREATE TABLE log (n serial, msg text);
CREATE FUNCTION outcome(forced text, arguments text, before text, OUT engine text, OUT answer text, OUT content text, OUT noted text, OUT recorded text) LANGUAGE plpgsql AS $$
DECLARE
    merge record;
    detail text;
    table_name text := (regexp_match(arguments, '''\w+'', ''(\w+)'''))[1];
BEGIN
    PERFORM set_config('idempotent_ingest.engine', forced, true);
    IF before <> '' THEN
        EXECUTE before;
    END IF;
    EXECUTE 'SELECT * FROM idem_merge(' || arguments || ')' INTO merge;
    PERFORM set_config('role', 'none', true);
    SET CONSTRAINTS ALL IMMEDIATE;
    engine := merge.engine;
    answer := merge.summary;
    EXECUTE format('SELECT string_agg(x::text, '' '' ORDER BY x::text COLLATE "C") FROM %s x', table_name) INTO content;
    noted := (SELECT string_agg(msg, E'\n  ' ORDER BY n) FROM log);
    recorded := md5((SELECT ROW(merge.fingerprint, status, batch_id, revision, l.fingerprint, fingerprint_columns, rows_staged, rows_duplicate,
                                rows_inserted, rows_updated, rows_unchanged, rows_stale, rows_skipped, turn, options)::text
                     FROM idem_ledger l, (SELECT merge.status) m WHERE l.target = table_name::regclass AND batch_id = merge.batch_id));
    RAISE EXCEPTION SQLSTATE 'P0999';
EXCEPTION WHEN SQLSTATE 'P0999' THEN
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    engine := forced;
    answer := format('%s: %s%s', SQLSTATE, SQLERRM, coalesce(E'\n  ' || regexp_replace(nullif(detail, ''), '\d{4}-\d\d-\d\d [\d:.]+[+-][\d:]+', '<time>'), ''));
END $$;
CREATE FUNCTION by_both(arguments text, before text DEFAULT '') RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    native record := outcome('native', arguments, before);
    plain record := outcome('sql', arguments, before);
BEGIN
    RETURN NEXT format('%s, %s: %s%s%s', native.engine, plain.engine, native.answer,
                       coalesce(E'\n  ' || native.content, ''), coalesce(E'\n  ' || native.noted, ''));
    IF (native.answer, native.content, native.noted, native.recorded) IS DISTINCT FROM (plain.answer, plain.content, plain.noted, plain.recorded) THEN
        RETURN NEXT format('DIFFERENT by sql: %s%s%s', plain.answer,
                           coalesce(E'\n  ' || plain.content, ''), coalesce(E'\n  ' || plain.noted, ''));
        IF native.recorded <> plain.recorded THEN
            RETURN NEXT 'DIFFERENT in the ledger';
        END IF;
    END IF;
END $$;
\pset tuples_only on

CREATE TABLE t (k int PRIMARY KEY, v text, n int, ver int, seen int);
CREATE TABLE s (k int, v text, n int, ver int, seen int);
INSERT INTO t VALUES (1, 'same', 1, 5, 0), (2, 'old', 2, 5, 0), (3, 'newer', 3, 9, 0), (4, NULL, NULL, NULL, 0), (5, 'tie', 5, 5, 0), (9, 'not staged', 9, 9, 0);
INSERT INTO s VALUES (1, 'same', 1, 5, 1), (2, 'new', 2, 6, 1), (3, 'older', 3, 8, 1), (4, NULL, NULL, NULL, 1), (5, 'Tie', 5, 5, 1), (6, 'six', 6, 6, 1), (7, NULL, NULL, NULL, 1);
SELECT by_both($$ 's', 't', '{k}', 'b' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', audit_cols => '{seen}' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', audit_cols => '{seen}', version_cols => '{ver}' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', audit_cols => '{seen}', version_cols => '{ver}', on_stale => 'apply' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', audit_cols => '{seen}', version_cols => '{ver}', on_stale => 'error' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', audit_cols => '{seen}', version_cols => '{ver,n}' $$);
-- Derived ids, and no key named.
SELECT by_both($$ 's', 't' $$);
-- Modes and lists.
SELECT by_both($$ 's', 't', '{k}', 'b', mode => 'insert' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', mode => 'update' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', mode => 'update', version_cols => '{ver}' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', update_cols => '{v}' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', update_cols => '{v}', version_cols => '{ver}' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', update_cols => '{}' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', update_cols => '{v}', audit_cols => '{seen}', mode => 'update' $$);
SELECT by_both($$ 's', 't', '{k}', 'b', exclude_cols => '{v,seen}' $$);
-- Columns that only one of them has.
SELECT by_both($$ 's', 't', '{k}', 'b' $$, 'ALTER TABLE s DROP v, DROP seen');
SELECT by_both($$ 's', 't', '{k}', 'b' $$, 'ALTER TABLE s DROP v, DROP n, DROP ver, DROP seen');
SELECT by_both($$ 's', 't', '{k}', 'b' $$, 'ALTER TABLE t DROP n');
SELECT by_both($$ 's', 't', '{k}', 'b', on_schema_change => 'ignore' $$, 'ALTER TABLE t DROP n');
SELECT by_both($$ 's', 't', '{k}', 'b', on_schema_change => 'add_columns' $$, 'ALTER TABLE s ADD more text; UPDATE s SET more = ''+'' WHERE k > 3');
-- Empty staging, and an empty target.
SELECT by_both($$ 's', 't', '{k}', 'b' $$, 'TRUNCATE s');
SELECT by_both($$ 's', 't', '{k}' $$, 'TRUNCATE s');
SELECT by_both($$ 's', 't', '{k}', 'b' $$, 'DELETE FROM t');
-- Twice, again on purpose, and with other content under the same id.
SELECT by_both($$ 's', 't', '{k}', 'b' $$, $$ SELECT idem_merge('s', 't', '{k}', 'b') $$);
SELECT by_both($$ 's', 't', '{k}', 'b', on_replay => 'reapply' $$, $$ SELECT idem_merge('s', 't', '{k}', 'b'); UPDATE t SET v = 'by hand' WHERE k = 2; $$);
SELECT by_both($$ 's', 't', '{k}', 'b' $$, $$ SELECT idem_merge('s', 't', '{k}', 'b'); UPDATE s SET v = 'more' WHERE k = 2; $$);
SELECT by_both($$ 's', 't', '{k}', 'b', on_mismatch => 'apply' $$, $$ SELECT idem_merge('s', 't', '{k}', 'b'); UPDATE s SET v = 'more' WHERE k = 2; $$);
SELECT by_both($$ 's', 't', '{k}' $$, $$ SELECT idem_merge('s', 't', '{k}'); UPDATE t SET v = 'by hand' WHERE k = 2; $$);

-- Duplicates: the same rows, rows that differ, with and without versions; the
-- order of arrival does not matter.
CREATE TABLE d (k int, v text, ver int, seen int);
CREATE TABLE dt (k int PRIMARY KEY, v text, ver int, seen int);
INSERT INTO dt VALUES (1, 'one', 1, 0), (2, 'two', 2, 0);
INSERT INTO d VALUES (1, 'a', 3, 1), (1, 'b', 2, 1), (1, 'c', 1, 1), (3, 'x', 1, 1), (3, 'x', 1, 1), (4, 'l', 1, 1), (4, 'm', 2, 1), (5, NULL, NULL, 1), (5, 'p', 0, 1);
SELECT by_both($$ 'd', 'dt', '{k}', 'b' $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}' $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', on_duplicate => 'any' $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', on_duplicate => 'any', version_cols => '{ver}' $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', on_duplicate => 'error', version_cols => '{ver}' $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}' $$, 'CREATE TEMP TABLE o ON COMMIT DROP AS SELECT * FROM d ORDER BY random(); TRUNCATE d; INSERT INTO d TABLE o');
-- A tie with other content; one that a greater version makes irrelevant; and one
-- only in the audit column, where the greatest image stays.
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}' $$, $$ INSERT INTO d VALUES (1, 'z', 3, 1) $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}' $$, $$ INSERT INTO d VALUES (1, 'z', 1, 1) $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}', on_duplicate => 'any' $$, $$ INSERT INTO d VALUES (1, 'z', 3, 1) $$);
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}', audit_cols => '{seen}' $$, $$ INSERT INTO d VALUES (1, 'a', 3, 7), (1, 'a', 3, -7), (3, 'x', 1, 0) $$);
-- Twice the whole of it is the same batch.
SELECT by_both($$ 'd', 'dt', '{k}', 'b', version_cols => '{ver}' $$, 'INSERT INTO d TABLE d');
-- Different rows only before the cast.
CREATE TABLE dn (k numeric, v numeric);
CREATE TABLE dnt (k int PRIMARY KEY, v numeric(10,1));
INSERT INTO dn VALUES (1.1, 1.04), (0.9, 1.01), (2, 2);
SELECT by_both($$ 'dn', 'dnt', '{k}', 'b' $$);
SELECT by_both($$ 'dn', 'dnt', '{k}', 'b' $$, 'INSERT INTO dn VALUES (1.4, 7)');
SELECT by_both($$ 'dn', 'dnt', '{k}', 'b' $$, 'INSERT INTO dn VALUES (3e9, 7)');
SELECT by_both($$ 'dn', 'dnt', '{k}', 'b' $$, 'INSERT INTO dn VALUES (5, 1e9)');
-- No key.
SELECT by_both($$ 'dn', 'dnt', '{k}', 'b' $$, 'INSERT INTO dn VALUES (NULL, 1), (NULL, 2)');
CREATE TABLE nnd (k int, k2 text, v text);
CREATE UNIQUE INDEX ON nnd (k, k2) NULLS NOT DISTINCT;
CREATE TABLE nnd_s (k int, k2 text, v text);
INSERT INTO nnd VALUES (NULL, 'a', 'old'), (1, NULL, 'same');
INSERT INTO nnd_s VALUES (NULL, 'a', 'new'), (1, NULL, 'same'), (NULL, NULL, 'none'), (2, NULL, 'two');
SELECT by_both($$ 'nnd_s', 'nnd', '{k,k2}', 'b' $$);
SELECT by_both($$ 'nnd_s', 'nnd', '{k,k2}', 'b' $$, $$ INSERT INTO nnd_s VALUES (NULL, NULL, 'two') $$);
SELECT by_both($$ 'nnd_s', 'nnd', '{k,k2}', 'b', mode => 'update' $$);
-- NULL is a key then, for a column that is NOT NULL as well.
CREATE TABLE nnn (k int NOT NULL, v int);
CREATE UNIQUE INDEX ON nnn (k) NULLS NOT DISTINCT;
CREATE TABLE nnn_s (k int, v int);
INSERT INTO nnn VALUES (0, 1), (9, 1);
INSERT INTO nnn_s VALUES (NULL, 5), (9, 2);
VACUUM ANALYZE nnn;
SELECT by_both($$ 'nnn_s', 'nnn', '{k}', 'b' $$);
SELECT by_both($$ 'nnn_s', 'nnn', '{k}', 'b', mode => 'update' $$);
-- A domain over a type whose operators are those of any enum.
CREATE TYPE feeling AS ENUM ('sad', 'ok', 'glad');
CREATE DOMAIN honest AS feeling CHECK (VALUE <> 'sad');
CREATE TABLE feelings (k honest PRIMARY KEY, v int);
CREATE TABLE feelings_s (k honest, v int);
INSERT INTO feelings VALUES ('ok', 1);
INSERT INTO feelings_s VALUES ('glad', 2), ('ok', 2);
SELECT by_both($$ 'feelings_s', 'feelings', '{k}', 'b' $$);
SELECT by_both($$ 'feelings_s', 'feelings', '{k}', 'b', mode => 'update' $$);
-- Stored rows without a key are nobody's; a key that is the number zero is another one.
CREATE TABLE nd (k int UNIQUE, v text);
CREATE TABLE nd_s AS SELECT i AS k, 'new ' || i AS v FROM generate_series(0, 9) AS i;
INSERT INTO nd VALUES (NULL, 'no key'), (NULL, 'none either'), (1, 'one');
ANALYZE nd;
SELECT by_both($$ 'nd_s', 'nd', '{k}', 'b' $$);
SELECT by_both($$ 'nd_s', 'nd', '{k}', 'b', mode => 'insert' $$);
SELECT by_both($$ 'nd_s', 'nd', '{k}', 'b', mode => 'update' $$);
SELECT by_both($$ 'nd_s', 'nd', '{k}', 'b' $$, 'INSERT INTO nd VALUES (0, ''zero'')');
SELECT by_both($$ 'nd_s', 'nd', '{k}', 'b' $$, $$ ALTER TABLE nd ALTER k TYPE date USING '2000-01-02'::date + k; ALTER TABLE nd_s ALTER k TYPE date USING '2000-01-01'::date + k $$);

-- Defaults, identities and generated columns.
CREATE TABLE c (
    k int PRIMARY KEY, v text DEFAULT 'none', w text NOT NULL DEFAULT 'must', ser serial, always int GENERATED ALWAYS AS IDENTITY,
    def int GENERATED BY DEFAULT AS IDENTITY, gen text GENERATED ALWAYS AS (k || ':' || coalesce(v, '?')) STORED, computed int DEFAULT 6 * 7);
CREATE TABLE cs (k int, v text);
INSERT INTO c (k, v) VALUES (1, 'one'), (2, 'two');
INSERT INTO cs VALUES (1, 'one'), (2, 'zwei'), (3, 'drei'), (4, NULL);
\set restart 'ALTER SEQUENCE c_ser_seq RESTART 100; ALTER TABLE c ALTER always RESTART 200; ALTER TABLE c ALTER def RESTART 300;'
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart');
SELECT by_both($$ 'cs', 'c', '{k}', 'b', mode => 'update' $$, :'restart');
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE cs DROP v');
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE cs ADD def int; UPDATE cs SET def = -k');
-- Staged values for what is generated are ignored, with a notice.
SET client_min_messages = warning;
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE cs ADD gen text, ADD always int; UPDATE cs SET gen = 7, always = 7');
RESET client_min_messages;
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || $$ ALTER TABLE cs ADD w text; UPDATE cs SET w = 'w' $$);
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE cs ADD w text');
-- A default that fails, and one that asks another table.
CREATE FUNCTION count_t() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM engines.t';
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE c ALTER computed SET DEFAULT 1 / 0');
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE c ALTER computed SET DEFAULT engines.count_t()');
-- As for INSERT, one that fails, or that the caller may not run, is an error even if no row needs it.
CREATE FUNCTION secret() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
REVOKE EXECUTE ON FUNCTION secret() FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON c TO idem_e_user;
GRANT SELECT ON cs TO idem_e_user;
SELECT by_both(arguments, :'restart' || 'DELETE FROM cs WHERE k > 2; ALTER TABLE c ALTER computed SET DEFAULT ' || computed)
FROM (VALUES ('1 / 0'), ('secret(); SET LOCAL ROLE idem_e_user')) d (computed),
     (VALUES ($$ 'cs', 'c', '{k}', 'b' $$), ($$ 'cs', 'c', '{k}', 'b', mode => 'insert' $$), ($$ 'cs', 'c', '{k}', 'b', mode => 'update' $$)) a (arguments);
-- It comes before anything that is wrong with staged rows.
SELECT by_both($$ 'cs', 'c', '{k}', 'b' $$, :'restart' || 'ALTER TABLE cs ALTER k TYPE bigint; UPDATE cs SET k = 3000000000 WHERE k = 4; ALTER TABLE c ALTER computed SET DEFAULT 1 / 0');
REVOKE ALL ON c, cs FROM idem_e_user;

-- Constraints: NOT NULL, CHECK, domains, lengths; for new rows and for stored ones.
CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0);
CREATE TABLE n (k int PRIMARY KEY CHECK (k <> 13), v varchar(5) NOT NULL, e even, CHECK (v <> 'bad'), CHECK (e > k) NO INHERIT);
CREATE TABLE ns (k int, v text, e int);
INSERT INTO n VALUES (1, 'one', 2), (2, 'two', 4);
INSERT INTO ns VALUES (1, 'eins', 2), (2, 'two', 4), (3, 'drei', 4);
SELECT by_both($$ 'ns', 'n', '{k}', 'b' $$);
SELECT by_both($$ 'ns', 'n', '{k}', 'b' $$, change) FROM unnest(ARRAY[
    'UPDATE ns SET v = NULL WHERE k = 3', 'UPDATE ns SET v = NULL WHERE k = 1', 'ALTER TABLE ns DROP v',
    'UPDATE ns SET v = ''bad'' WHERE k = 3', 'UPDATE ns SET v = ''bad'' WHERE k = 1', 'INSERT INTO ns VALUES (13, ''x'', 14)',
    'UPDATE ns SET e = 3 WHERE k = 3', 'UPDATE ns SET e = 3 WHERE k = 1', 'UPDATE ns SET e = 2 WHERE k = 3', 'UPDATE ns SET e = NULL',
    'UPDATE ns SET v = ''too long'' WHERE k = 3', 'UPDATE ns SET v = ''too long'' WHERE k = 1', 'UPDATE ns SET v = ''abcde  '' WHERE k = 1',
    -- What only rows violate that are not written is in nobody's way.
    'DELETE FROM ns WHERE k = 3; ALTER TABLE n ADD CHECK (v < ''f'') NOT VALID']) change;
SELECT by_both($$ 'ns', 'n', '{k}', 'b', update_cols => '{v}' $$, $$ ALTER TABLE n ADD CHECK (e > 2) NOT VALID $$);

-- Foreign keys, from the target and to it.
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (1), (2), (3);
CREATE TABLE f (k int PRIMARY KEY, p int REFERENCES parent, self int REFERENCES f, code int UNIQUE);
CREATE TABLE f_child (k int REFERENCES f, code int REFERENCES f (code) ON UPDATE CASCADE);
CREATE TABLE fs (k int, p int, self int, code int);
INSERT INTO f VALUES (1, 1, NULL, 10), (2, 2, 1, 20);
INSERT INTO f_child VALUES (1, 10), (2, 20);
-- Row 4 refers to row 5, which comes later in the same batch.
INSERT INTO fs VALUES (1, 2, NULL, 10), (2, 2, 1, 20), (4, 3, 5, 40), (5, 1, 5, 50);
SELECT by_both($$ 'fs', 'f', '{k}', 'b' $$);
SELECT by_both($$ 'fs', 'f', '{k}', 'b' $$, 'INSERT INTO fs VALUES (6, 99, NULL, 60)');
SELECT by_both($$ 'fs', 'f', '{k}', 'b' $$, 'UPDATE fs SET p = 99 WHERE k = 1');
SELECT by_both($$ 'fs', 'f', '{k}', 'b' $$, 'UPDATE fs SET self = 99 WHERE k = 4');
SELECT by_both($$ 'fs', 'f', '{k}', 'b' $$, 'ALTER TABLE f ALTER CONSTRAINT f_p_fkey DEFERRABLE INITIALLY DEFERRED; INSERT INTO fs VALUES (6, 99, NULL, 60)');
SELECT by_both($$ 'fs', 'f', '{k}', 'b' $$, 'UPDATE fs SET code = 11 WHERE k = 1');
-- What a foreign key does to other tables.
SET idempotent_ingest.engine = native;
BEGIN;
UPDATE fs SET code = 11 WHERE k = 1;
SELECT engine, summary FROM idem_merge('fs', 'f', '{k}', 'b');
SELECT * FROM f_child ORDER BY k;
ROLLBACK;
BEGIN;
ALTER TABLE f_child DROP CONSTRAINT f_child_code_fkey, ADD FOREIGN KEY (code) REFERENCES f (code);
UPDATE fs SET code = 11 WHERE k = 1;
\set VERBOSITY terse
SELECT engine, summary FROM idem_merge('fs', 'f', '{k}', 'b');
\set VERBOSITY default
ROLLBACK;
RESET idempotent_ingest.engine;

-- A second unique index. Rows are written in the order of the key, whatever is
-- done to them, so that one engine fails where the other one does.
CREATE TABLE u (k int PRIMARY KEY, u text UNIQUE);
CREATE TABLE us (k int, u text);
INSERT INTO u VALUES (10, 'a'), (20, 'b'), (30, 'c');
SELECT by_both($$ 'us', 'u', '{k}', 'b' $$, 'INSERT INTO us VALUES ' || staged) FROM unnest(ARRAY[
    $$ (10, 'x'), (15, 'new') $$,
    $$ (40, 'b') $$,                    -- new, taken
    $$ (10, 'b') $$,                    -- stored, taken
    $$ (10, 'x'), (20, 'a') $$,         -- what an earlier row gave up
    $$ (10, 'b'), (20, 'x') $$,         -- what a later row gives up
    $$ (10, 'x'), (15, 'a') $$,         -- given up by an update before an insertion
    $$ (5, 'a'), (10, 'x') $$,          -- and after it
    $$ (10, 'b'), (20, 'a') $$,         -- swapped
    $$ (10, 'b'), (20, 'c'), (30, 'a') $$,
    $$ (5, 'z'), (6, 'z') $$,           -- among themselves
    $$ (10, NULL), (20, NULL), (40, NULL) $$,
    $$ (5, 'five'), (10, 'a'), (15, 'b') $$]) staged;
-- All of the batch is looked at before a row is written: whatever the plan, what
-- is wrong with the batch is the error, and not what a constraint says of a row.
CREATE TABLE faulty (k int PRIMARY KEY, v int CHECK (v > 0), ver int);
CREATE TABLE faulty_s (k int, v int, ver int);
INSERT INTO faulty VALUES (1, 1, 1), (2, 2, 2), (3, 2, 2);
INSERT INTO faulty_s VALUES (0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 3, 3), (3, 4, 3);
SELECT by_both($$ 'faulty_s', 'faulty', '{k}', 'b', $$ || arguments,
               format('DISCARD PLANS; SET LOCAL enable_%s = off; SET LOCAL enable_%s = off', barred[1], barred[2]))
FROM (VALUES ($$ mode => 'insert' $$), ($$ mode => 'upsert' $$), ($$ mode => 'update' $$),
             ($$ version_cols => '{ver}', on_duplicate => 'any', on_stale => 'error' $$),
             ($$ version_cols => '{ver}', on_duplicate => 'any', on_stale => 'error', mode => 'update' $$),
             ($$ on_duplicate => 'any' $$), ($$ on_duplicate => 'any', mode => 'update' $$)) a (arguments),
     (VALUES ('{hashjoin,mergejoin}'::text[]), ('{hashjoin,nestloop}'), ('{mergejoin,nestloop}')) b (barred);
-- Before that: a default, and what cannot be converted.
SELECT by_both($$ 'faulty_s', 'faulty', '{k}', 'b', version_cols => '{ver}', on_duplicate => 'any', on_stale => 'error' $$,
               'ALTER TABLE faulty ADD d int DEFAULT ' || d || '; ALTER TABLE faulty_s ALTER k TYPE bigint; INSERT INTO faulty_s VALUES (3000000000, 1, 1)')
FROM (VALUES ('1'), ('1; ALTER TABLE faulty ALTER d SET DEFAULT 1 / 0')) AS d (d);
-- Partial, expression and other indexes; what they find afterwards.
CREATE TABLE x (k int PRIMARY KEY, v text, n int, a int[]);
CREATE INDEX x_lower ON x (lower(v));
CREATE INDEX x_partial ON x (n) WHERE n > 100;
CREATE UNIQUE INDEX x_unique ON x ((n % 1000)) WHERE v LIKE 'u%';
CREATE INDEX x_gin ON x USING gin (a);
CREATE INDEX x_hash ON x USING hash (v);
CREATE INDEX x_include ON x (n) INCLUDE (v);
CREATE INDEX x_brin ON x USING brin (n);
CREATE TABLE xs (k int, v text, n int, a int[]);
INSERT INTO x SELECT i, CASE WHEN i < 5 THEN 'u' ELSE 'V' END || i, i, ARRAY[i, -i] FROM generate_series(1, 200) i;
INSERT INTO xs SELECT i, CASE WHEN i < 5 THEN 'u' ELSE 'W' END || i, CASE WHEN i % 10 = 0 THEN 100 + i ELSE i END, ARRAY[i, 7] FROM generate_series(1, 300) i;
SELECT by_both($$ 'xs', 'x', '{k}', 'b' $$, $$ DELETE FROM xs WHERE k NOT IN (1, 10, 250, 260); DELETE FROM x WHERE k > 10 $$);
SELECT by_both($$ 'xs', 'x', '{k}', 'b' $$, $$ DELETE FROM xs WHERE k > 3; UPDATE xs SET n = 1002 WHERE k = 1; DELETE FROM x WHERE k > 5 $$);
SELECT by_both($$ 'xs', 'x', '{k}', 'b' $$, $$ DELETE FROM xs WHERE k > 3; UPDATE xs SET n = 1002, v = 'not' WHERE k = 1; DELETE FROM x WHERE k > 5 $$);
SET idempotent_ingest.engine = native;
SELECT engine, summary FROM idem_merge('xs', 'x', '{k}', 'b');
CREATE FUNCTION finds(condition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    plan text := '';
    line text;
    n int;
    expected int;
BEGIN
    SET LOCAL enable_seqscan = off;
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) SELECT FROM x WHERE ' || condition LOOP
        plan := plan || coalesce((regexp_match(line, 'x_\w+'))[1], '');
    END LOOP;
    EXECUTE 'SELECT count(*) FROM x WHERE ' || condition INTO n;
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_indexscan = off;
    SET LOCAL enable_bitmapscan = off;
    SET LOCAL enable_indexonlyscan = off;
    EXECUTE 'SELECT count(*) FROM x WHERE ' || condition INTO expected;
    SET LOCAL enable_indexscan = on;
    SET LOCAL enable_bitmapscan = on;
    SET LOCAL enable_indexonlyscan = on;
    RETURN format('%s: %s, %s by a scan of the table', plan, n, expected);
END $$;
SELECT condition, finds(condition) FROM unnest(ARRAY[
    $$ k = 250 $$, $$ lower(v) = 'w250' $$, $$ lower(v) = 'v50' $$, $$ n > 100 AND n = 120 $$, $$ n % 1000 = 3 AND v LIKE 'u%' $$,
    $$ a @> '{7}' $$, $$ a @> '{-50}' $$, $$ v = 'W77' $$]) condition;
RESET idempotent_ingest.engine;

-- Triggers: every one once for each row that is written, none for rows that are
-- not; transition tables have these rows; in the same order by both engines.
CREATE TABLE g (k int PRIMARY KEY, v text, w text DEFAULT 'w');
CREATE TABLE gs (k int, v text);
INSERT INTO g VALUES (1, 'same'), (2, 'old'), (4, 'old'), (6, 'old');
INSERT INTO gs VALUES (1, 'same'), (2, 'new'), (3, 'new'), (4, 'new'), (5, 'new'), (6, 'new');
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO engines.log (msg) VALUES (concat_ws(' ', TG_NAME, TG_WHEN, TG_OP, CASE WHEN TG_LEVEL = 'ROW' AND TG_OP = 'UPDATE' THEN OLD::text END, CASE WHEN TG_LEVEL = 'ROW' THEN NEW::text END));
    RETURN NULL;
END $$;
CREATE FUNCTION note_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO engines.log (msg) SELECT concat_ws(' ', TG_NAME, TG_OP, 'new:', string_agg(n::text, ' ' ORDER BY k)) FROM new_rows n;
    RETURN NULL;
END $$;
CREATE FUNCTION note_both() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO engines.log (msg) SELECT concat_ws(' ', TG_NAME, TG_OP, 'old:', string_agg(o::text, ' ' ORDER BY k)) FROM old_rows o;
    INSERT INTO engines.log (msg) SELECT concat_ws(' ', TG_NAME, TG_OP, 'new:', string_agg(n::text, ' ' ORDER BY k)) FROM new_rows n;
    RETURN NULL;
END $$;
CREATE TRIGGER r_insert AFTER INSERT ON g FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER r_update AFTER UPDATE ON g FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER r_update_v AFTER UPDATE OF v ON g FOR EACH ROW WHEN (NEW.k > 4) EXECUTE FUNCTION note();
CREATE TRIGGER r_update_w AFTER UPDATE OF w ON g FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER s_before BEFORE INSERT OR UPDATE ON g FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER s_update_v BEFORE UPDATE OF v ON g FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER s_update_w BEFORE UPDATE OF w ON g FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER s_after AFTER INSERT OR UPDATE ON g FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER t_insert AFTER INSERT ON g REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_rows();
CREATE TRIGGER t_update AFTER UPDATE ON g REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_both();
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$);
SELECT by_both($$ 'gs', 'g', '{k}', 'b', mode => 'update' $$);
SELECT by_both($$ 'gs', 'g', '{k}', 'b', mode => 'insert' $$);
SELECT by_both($$ 'gs', 'g', '{k}', 'b', update_cols => '{}' $$);
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, 'UPDATE gs SET v = g.v FROM g WHERE gs.k = g.k; DELETE FROM gs WHERE k IN (3, 5); TRUNCATE log');
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, 'DELETE FROM gs WHERE k <> 3');
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, 'TRUNCATE gs');
-- Only the ledger knows of a replay.
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, $$ SELECT idem_merge('gs', 'g', '{k}', 'b'); TRUNCATE log $$);
-- Constraint triggers, when they are due.
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR UPDATE ON g DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, 'DELETE FROM gs WHERE k NOT IN (2, 3)');
-- A trigger that fails; one that sees what was written; one that merges as well.
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no % please', NEW.k; END $$;
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO engines.log (msg) SELECT format('%s sees %s new', TG_NAME, count(*)) FROM engines.g WHERE v = 'new'; RETURN NULL; END $$;
CREATE FUNCTION merge_more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO engines.log (msg) SELECT summary || ' by ' || TG_NAME FROM idem_merge('engines.cs', 'engines.plain', '{k}', 'from the trigger'); RETURN NULL; END $$;
\set quiet 'DROP TRIGGER r_insert ON g; DROP TRIGGER r_update ON g; DROP TRIGGER r_update_v ON g; DROP TRIGGER t_insert ON g; DROP TRIGGER t_update ON g; DROP TRIGGER s_before ON g; DROP TRIGGER s_update_v ON g; DROP TRIGGER s_after ON g; DROP TRIGGER deferred ON g; '
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, :'quiet' || 'CREATE TRIGGER z AFTER INSERT ON g FOR EACH ROW EXECUTE FUNCTION fail()');
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, :'quiet' || 'CREATE TRIGGER z AFTER UPDATE ON g FOR EACH ROW EXECUTE FUNCTION fail()');
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, :'quiet' || 'CREATE TRIGGER z AFTER INSERT ON g FOR EACH ROW EXECUTE FUNCTION look(); CREATE TRIGGER y BEFORE INSERT OR UPDATE ON g FOR EACH STATEMENT EXECUTE FUNCTION look(); CREATE TRIGGER x AFTER INSERT OR UPDATE ON g FOR EACH STATEMENT EXECUTE FUNCTION look()');
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, :'quiet' || 'CREATE TRIGGER z AFTER INSERT ON g FOR EACH STATEMENT EXECUTE FUNCTION merge_more()');
-- Without triggers for this session.
SELECT by_both($$ 'gs', 'g', '{k}', 'b' $$, 'SET LOCAL session_replication_role = replica');

-- Staging with dropped columns, and a target with some; columns in another order.
CREATE TABLE w (gone1 int, v text, gone2 text, k int PRIMARY KEY, n int, gone3 int DEFAULT 7);
INSERT INTO w VALUES (1, 'one', 'gone', 1, 1, 1), (1, 'two', 'gone', 2, 2, 2);
ALTER TABLE w DROP gone1, DROP gone2, DROP gone3;
CREATE TABLE ws (gone1 text, n int, k int, gone2 int, v text);
INSERT INTO ws VALUES ('gone', 1, 1, 1, 'one'), ('gone', 2, 2, 2, 'zwei'), ('gone', 3, 3, 3, 'drei');
ALTER TABLE ws DROP gone1, DROP gone2;
ALTER TABLE w ADD later text DEFAULT 'later';
ALTER TABLE ws ADD later text DEFAULT 'staged later';
SELECT by_both($$ 'ws', 'w', '{k}', 'b' $$);
SELECT by_both($$ 'ws', 'w', '{k}', 'b' $$, 'ALTER TABLE ws DROP later');
SELECT by_both($$ 'ws', 'w', '{k}', 'b' $$, 'ALTER TABLE w DROP later; ALTER TABLE ws DROP later');
-- By every way to read staging.
CREATE VIEW ws_view AS SELECT v, later, k, n FROM ws;
CREATE MATERIALIZED VIEW ws_stored AS TABLE ws;
CREATE TABLE ws_parted (v text, later text, k int, n int) PARTITION BY LIST (k);
CREATE TABLE ws_part_1 PARTITION OF ws_parted FOR VALUES IN (1, 2);
CREATE TABLE ws_part_2 (n int, k int, gone int, v text, later text);
ALTER TABLE ws_part_2 DROP gone;
ALTER TABLE ws_parted ATTACH PARTITION ws_part_2 DEFAULT;
INSERT INTO ws_parted (v, later, k, n) SELECT v, later, k, n FROM ws;
CREATE TABLE ws_child () INHERITS (ws);
CREATE TABLE ws_other (LIKE ws) USING idem_heap;
INSERT INTO ws_other TABLE ws;
SELECT by_both(format($$ '%s', 'w', '{k}', 'b' $$, staging)) FROM unnest('{ws,ws_view,ws_stored,ws_parted,ws_other}'::text[]) staging;
SELECT by_both($$ 'ws', 'w', '{k}', 'b' $$, $$ INSERT INTO ws_child SELECT * FROM ws WHERE k = 3; DELETE FROM ONLY ws WHERE k = 3 $$);
SELECT by_both($$ 'ws', 'w', '{k}', 'b' $$, $$ CREATE POLICY p ON ws USING (k < 3); ALTER TABLE ws ENABLE ROW LEVEL SECURITY, OWNER TO idem_e_owner; ALTER TABLE ws FORCE ROW LEVEL SECURITY; ALTER TABLE w OWNER TO idem_e_owner; SET LOCAL ROLE idem_e_owner $$);

-- One that cannot be read yet.
CREATE MATERIALIZED VIEW unpopulated AS TABLE s WITH NO DATA;
SELECT by_both($$ 'unpopulated', 't', '{k}', 'b' $$);
-- A partition, and an access method by another name.
SELECT by_both($$ 'gs', 'a_partition', '{k}', 'b' $$);
SELECT by_both($$ 'gs', 'a_partition', '{k}', 'b' $$, 'INSERT INTO gs VALUES (-1, 0)');
SELECT by_both($$ 'gs', 'a_heap_by_another_name', '{k}', 'b' $$);

-- Values of many kinds, changed in their image and not.
CREATE TYPE point3 AS (x int, y numeric, z text);
CREATE TABLE i (k text PRIMARY KEY, n numeric, f float8, j json, jb jsonb, a numeric[], p point3, r numrange, b box, ts timestamptz, m mood, by bytea);
CREATE TABLE i_s (LIKE i);
INSERT INTO i VALUES ('a', 1.0, 0, '{"a":1}', '{"a":1}', '{1.0,NULL}', '(1,1.0,)', '[1.0,2]', '(1,1),(0,0)', '2026-01-01 00:00+00', 'sad', '\x00');
INSERT INTO i_s TABLE i;
SELECT engine, answer FROM outcome('native', $$ 'i_s', 'i', '{k}', 'b' $$, '');
SELECT change, e.engine, e.answer, (e.answer, e.content) IS NOT DISTINCT FROM (p.answer, p.content) AS same
FROM unnest(ARRAY['n = 1.00', 'f = ''-0''', $$ j = '{"a": 1}' $$, $$ jb = '{"a": 1}' $$, 'a = ''{1.00,NULL}''', 'p = ''(1,1.00,)''', 'p = NULL',
    'r = ''[1.00,2]''', 'b = ''(2,1),(1,0)''', 'ts = ''2026-01-01 01:00+01''', 'm = ''happy''', 'by = ''\x0000''', 'f = ''NaN''']) change,
    outcome('native', $$ 'i_s', 'i', '{k}', 'b' $$, 'UPDATE i_s SET ' || change) e,
    outcome('sql', $$ 'i_s', 'i', '{k}', 'b' $$, 'UPDATE i_s SET ' || change) p;

-- A composite key of several kinds, hashed and sorted.
CREATE TABLE ck (d date, region text COLLATE "C", code varchar(4), u uuid, v int, PRIMARY KEY (region, d, u, code));
CREATE TABLE ck_s (LIKE ck);
INSERT INTO ck SELECT '2026-01-01'::date + i % 7, 'r' || i % 3, i % 5, md5((i % 11)::text)::uuid, i FROM generate_series(1, 1155) i;
INSERT INTO ck_s SELECT d, region, code, u, CASE WHEN v % 4 = 0 THEN -v ELSE v END FROM ck WHERE v % 2 = 0;
INSERT INTO ck_s SELECT '2026-02-01'::date + i % 7, 'r' || i % 3, i % 5, md5((i % 11)::text)::uuid, i FROM generate_series(1, 1155) i;
SELECT e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM outcome('native', $$ 'ck_s', 'ck', '{d,region,code,u}', 'b' $$, '') e, outcome('sql', $$ 'ck_s', 'ck', '{d,region,code,u}', 'b' $$, '') p;
-- By probes of the index, by a pass over the target, and above all stored keys:
-- the same.
CREATE TABLE way (k int PRIMARY KEY, v int) WITH (autovacuum_enabled = off);
CREATE TABLE way_s (k int, v int) WITH (autovacuum_enabled = off);
INSERT INTO way SELECT i * 2, i FROM generate_series(1, 20000) i;
ANALYZE way;
SELECT what, e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM (VALUES ('few', 'SELECT i * 401, -i FROM generate_series(1, 90) i'),
             ('many', 'SELECT i, -i FROM generate_series(1, 30000) i'),
             ('all above', 'SELECT i, -i FROM generate_series(40001, 45000) i'),
             ('one not above', 'SELECT i, -i FROM generate_series(40000, 45000) i'),
             ('all below', 'SELECT -i, i FROM generate_series(0, 5000) i')) AS w (what, staged),
    outcome('native', $$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s ' || staged) e,
    outcome('sql', $$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s ' || staged) p;
-- Dead rows, and rows that the own transaction has written, deleted and moved.
SELECT e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same, md5(e.content) <> md5(o.content) AS other
FROM (VALUES (1)) one (x),
    LATERAL outcome('native', $$ 'way_s', 'way', '{k}', 'b' $$, 'DELETE FROM way WHERE k % 10 = 0; UPDATE way SET v = 0 WHERE k % 10 = 2; INSERT INTO way SELECT 10 * i, 7 FROM generate_series(1, 5) i; INSERT INTO way_s SELECT i, -i FROM generate_series(1, 3000) i; UPDATE way_s SET v = 0 WHERE k % 20 = 2; DELETE FROM way_s WHERE k % 7 = 0') e,
    LATERAL outcome('sql', $$ 'way_s', 'way', '{k}', 'b' $$, 'DELETE FROM way WHERE k % 10 = 0; UPDATE way SET v = 0 WHERE k % 10 = 2; INSERT INTO way SELECT 10 * i, 7 FROM generate_series(1, 5) i; INSERT INTO way_s SELECT i, -i FROM generate_series(1, 3000) i; UPDATE way_s SET v = 0 WHERE k % 20 = 2; DELETE FROM way_s WHERE k % 7 = 0') p,
    LATERAL outcome('sql', $$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s SELECT i, -i FROM generate_series(1, 3000) i') o;
-- Staging that has the target's columns, whose rows can be compared and stored as
-- they are: not where rows are older than a column, on either side; values out
-- of line, compressed and NULL.
CREATE TABLE entire (k int PRIMARY KEY, v text, n int) WITH (autovacuum_enabled = off);
CREATE TABLE entire_s (k int, v text, n int) WITH (autovacuum_enabled = off);
ALTER TABLE entire ALTER v SET STORAGE external;
INSERT INTO entire SELECT i, repeat(i::text, i * 7), nullif(i % 3, 0) FROM generate_series(1, 1000) i;
INSERT INTO entire_s SELECT k + 500, repeat((k + 500)::text, (k + 500) * 7), nullif((k + 500) % 3, 0) FROM entire;
SELECT change, e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM unnest(ARRAY['SELECT', 'UPDATE entire_s SET v = NULL WHERE k % 2 = 0', 'UPDATE entire_s SET n = -n WHERE k % 100 = 0',
    'ALTER TABLE entire ADD a int DEFAULT 1, ADD b text; ALTER TABLE entire_s ADD a int DEFAULT 1, ADD b text',
    'ALTER TABLE entire ADD a int DEFAULT 1; ALTER TABLE entire_s ADD a int DEFAULT 2',
    'ALTER TABLE entire ADD a int DEFAULT 1; ALTER TABLE entire_s ADD a int; UPDATE entire_s SET a = 1 WHERE k % 2 = 0',
    'ALTER TABLE entire ADD a int; ALTER TABLE entire_s ADD a int DEFAULT 1; UPDATE entire SET a = 1 WHERE k % 2 = 0',
    'ALTER TABLE entire ADD a int DEFAULT 1', 'ALTER TABLE entire ADD CHECK (n IS NULL OR n > 1) NOT VALID',
    'ALTER TABLE entire DROP n; ALTER TABLE entire_s DROP n', 'ALTER TABLE entire_s ALTER n TYPE bigint']) change,
    outcome('native', $$ 'entire_s', 'entire', '{k}', 'b' $$, change) e,
    outcome('sql', $$ 'entire_s', 'entire', '{k}', 'b' $$, change) p;
-- Keys that are numbers, from end to end of their types.
CREATE TABLE number_2 (k int2 PRIMARY KEY, v int);
CREATE TABLE number_4 (k int4 PRIMARY KEY, v int);
CREATE TABLE number_8 (k int8 PRIMARY KEY, v int);
CREATE TABLE number_date (k date PRIMARY KEY, v int);
CREATE TABLE number_timestamp (k timestamp PRIMARY KEY, v int);
CREATE TABLE number_timestamptz (k timestamptz PRIMARY KEY, v int);
SELECT name, e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM (VALUES ('2', '{-32768,-32767,-1,0,1,255,256,32767}'), ('4', '{-2147483648,-65536,-1,0,1,65535,2147483647}'),
             ('8', '{-9223372036854775808,-4294967296,-1,0,1,4294967295,9223372036854775807}'),
             ('date', '{-infinity,4713-01-01 BC,1999-12-31,2000-01-01,2026-11-21,infinity}'),
             ('timestamp', '{-infinity,1999-12-31 23:59:59.999999,2000-01-01,2026-11-21 12:00,infinity}'),
             ('timestamptz', '{-infinity,1999-12-31 23:59:59.999999Z,2000-01-01Z,2026-11-21 12:00Z,infinity}')) AS t (name, keys),
    LATERAL (SELECT format('CREATE TABLE number_s (LIKE number_%1$s); INSERT INTO number_s SELECT k::text::%2$s, 1 FROM unnest(%3$L::%2$s[]) k; INSERT INTO number_%1$s SELECT k, row_number() OVER (ORDER BY k) %% 3 FROM number_s LIMIT 3',
                           name, coalesce('int' || substring(name, '^\d'), name), keys) AS setup) c,
    outcome('native', format($$ 'number_s', 'number_%s', '{k}', 'b' $$, name), setup) e,
    outcome('sql', format($$ 'number_s', 'number_%s', '{k}', 'b' $$, name), setup) p;
-- Rows are written in the order of the key's index.
CREATE TABLE falling (k int NOT NULL, v text) WITH (autovacuum_enabled = off);
CREATE UNIQUE INDEX ON falling (k DESC);
INSERT INTO falling VALUES (2, 'old'), (4, 'four');
CREATE TRIGGER r AFTER INSERT OR UPDATE ON falling FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE falling_s AS SELECT i AS k, CASE i WHEN 4 THEN 'four' ELSE 'new' END AS v FROM generate_series(1, 5) i;
SELECT by_both($$ 'falling_s', 'falling', '{k}', 'b' $$);
-- With so little memory that the batch does not fit: duplicates, versions and
-- wide rows, too.
SET work_mem = '64kB';
CREATE TABLE tight (a int, b text, v int, ver int, wide text, PRIMARY KEY (a, b)) WITH (autovacuum_enabled = off);
CREATE TABLE tight_s (v int, ver int, wide text, b text, a int) WITH (autovacuum_enabled = off);
INSERT INTO tight SELECT i % 100, 'b' || i, i, i % 7, CASE WHEN i % 50 = 0 THEN repeat(i::text, 1000) END FROM generate_series(1, 10000) i;
INSERT INTO tight_s SELECT i, i % 5, CASE WHEN i % 50 = 0 THEN repeat(i::text, 1000) END, 'b' || i, i % 100 FROM generate_series(5001, 20000) i;
INSERT INTO tight_s SELECT i, 9, repeat('x', i % 3000), 'b' || i, i % 100 FROM generate_series(5001, 20000, 11) i;
INSERT INTO tight_s SELECT -i, 9, repeat('x', i % 3000), 'b' || i, i % 100 FROM generate_series(5001, 20000, 77) i;
ANALYZE tight;
SELECT what, e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM (VALUES ($$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s SELECT i, -i FROM generate_series(1, 30000) i'),
             ($$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s SELECT i, -i FROM generate_series(40001, 70000) i'),
             ($$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s SELECT i % 25000, -(i % 25000) FROM generate_series(1, 50000) i'),
             ($$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s SELECT i % 25000, -(i % 24999) FROM generate_series(1, 25003) i'),
             ($$ 'way_s', 'way', '{k}', 'b', mode => 'update' $$, 'INSERT INTO way_s SELECT i, -i FROM generate_series(1, 30000) i'),
             ($$ 'way_s', 'way', '{k}', 'b', mode => 'insert' $$, 'INSERT INTO way_s SELECT i, -i FROM generate_series(1, 30000) i'),
             ($$ 'way_s', 'way', '{k}', 'b' $$, 'INSERT INTO way_s SELECT NULLIF(i, 29999), -i FROM generate_series(1, 30000) i'),
             ($$ 'tight_s', 'tight', '{a,b}', 'b', on_duplicate => 'any' $$, ''),
             ($$ 'tight_s', 'tight', '{a,b}', 'b', on_duplicate => 'any', version_cols => '{ver}' $$, ''),
             ($$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver}' $$, 'DELETE FROM tight_s WHERE v < 0'),
             ($$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver,v}', audit_cols => '{wide}', update_cols => '{}' $$, ''),
             ($$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver}', audit_cols => '{v}' $$, '')) AS w (what, staged),
    outcome('native', what, staged) e, outcome('sql', what, staged) p;
-- The error of rows that differ names the keys, and both engines the same ones.
SELECT e.engine, e.answer = p.answer AS same, split_part(e.answer, E'\n', 1) AS answer
FROM outcome('native', $$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver}' $$, '') e, outcome('sql', $$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver}' $$, '') p;
-- Rows that differ, seen while the batch still fitted; a greater version settles it.
\set tied 'TRUNCATE tight_s; INSERT INTO tight_s VALUES (1, 5, NULL, ''tied'', 0), (2, 5, NULL, ''tied'', 0); INSERT INTO tight_s SELECT i, i % 5, NULL, ''b'' || i, i % 100 FROM generate_series(5001, 20000) i; INSERT INTO tight_s VALUES (3, 6, NULL, ''tied'', 0)'
SELECT e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM outcome('native', $$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver}' $$, :'tied') e, outcome('sql', $$ 'tight_s', 'tight', '{a,b}', 'b', version_cols => '{ver}' $$, :'tied') p;
-- The batch fits, and the list of what is to be written does not.
SET hash_mem_multiplier = 1000;
SELECT name, e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM (VALUES ('2'), ('4'), ('8')) AS t (name),
    LATERAL (SELECT format('CREATE TABLE number_s (LIKE number_%1$s); INSERT INTO number_s SELECT i, 1 FROM generate_series(-4000, 4000) i; INSERT INTO number_%1$s SELECT k, k %% 2 FROM number_s WHERE k < 1000', name) AS setup) c,
    outcome('native', format($$ 'number_s', 'number_%s', '{k}', 'b' $$, name), setup) e,
    outcome('sql', format($$ 'number_s', 'number_%s', '{k}', 'b' $$, name), setup) p;
RESET hash_mem_multiplier;
RESET work_mem;

-- An empty target that the caller has for itself (exclusive) is filled before its
-- indexes are built: the same, in the same order where somebody can tell.
CREATE TABLE e (k int PRIMARY KEY, v text, u text UNIQUE, big text) WITH (autovacuum_enabled = off);
CREATE INDEX ON e (lower(v)) WHERE k > 2;
CREATE TABLE e_child (k int REFERENCES e);
CREATE TABLE es (k int, v text, u text, big text);
INSERT INTO es VALUES (5, 'five', 'e', repeat('x', 10000)), (1, 'one', 'a', NULL), (4, 'four', NULL, NULL), (2, 'two', 'b', NULL), (3, 'three', NULL, NULL), (2, 'two', 'b', NULL);
ALTER TABLE es ALTER big SET STORAGE EXTERNAL;
-- (What is undone leaves its blocks behind, hence the TRUNCATE.)
\set empty 'TRUNCATE e, e_child; UPDATE es SET big = NULL; '
SELECT by_both($$ 'es', 'e', '{k}', 'b', exclusive => true $$, :'empty' || change) FROM unnest(ARRAY['',
    'INSERT INTO e VALUES (2, ''old'')', 'INSERT INTO e VALUES (2, ''old''); DELETE FROM e',
    'INSERT INTO es VALUES (7, ''seven'', ''f'')', 'INSERT INTO es VALUES (4, ''other'')', 'INSERT INTO es VALUES (NULL, ''none'')',
    'ALTER TABLE e ADD CHECK (v <> ''two'')', 'ALTER TABLE e ALTER u SET NOT NULL; UPDATE es SET u = v WHERE k <> 4', 'TRUNCATE es', 'DELETE FROM es WHERE k <> 3']) change;
SELECT by_both($$ 'es', 'e', '{k}', 'b', exclusive => true, mode => 'insert' $$, :'empty');
SELECT by_both($$ 'es', 'e', '{k}', 'b', exclusive => true, mode => 'update' $$, :'empty');
SELECT by_both($$ 'es', 'e', '{k}', 'b', exclusive => true, on_duplicate => 'any' $$, :'empty' || 'INSERT INTO es VALUES (4, ''other'')');
-- Another unique index; the message may be that of an index that cannot be built.
SELECT left(answer, 5) FROM outcome('native', $$ 'es', 'e', '{k}', 'b', exclusive => true $$, :'empty' || 'INSERT INTO es VALUES (7, ''seven'', ''a'')');
SELECT e.engine, e.answer, (e.answer, e.content, e.recorded) IS NOT DISTINCT FROM (p.answer, p.content, p.recorded) AS same
FROM outcome('native', $$ 'tight_s', 'e', '{k}', 'b', on_duplicate => 'any', on_schema_change => 'ignore', exclusive => true $$, 'TRUNCATE e, e_child; SET LOCAL work_mem = ''64kB''; ALTER TABLE tight_s RENAME v TO k; ALTER TABLE tight_s RENAME wide TO v') e,
    outcome('sql', $$ 'tight_s', 'e', '{k}', 'b', on_duplicate => 'any', on_schema_change => 'ignore', exclusive => true $$, 'TRUNCATE e, e_child; ALTER TABLE tight_s RENAME v TO k; ALTER TABLE tight_s RENAME wide TO v') p;
-- Triggers and foreign keys, which find the rows by their indexes.
SELECT by_both($$ 'es', 'e', '{k}', 'b', exclusive => true $$, :'empty' || change) FROM unnest(ARRAY[
    'CREATE TRIGGER r AFTER INSERT ON e FOR EACH ROW EXECUTE FUNCTION note()',
    'CREATE TRIGGER s BEFORE INSERT OR UPDATE ON e FOR EACH STATEMENT EXECUTE FUNCTION note(); CREATE TRIGGER t AFTER INSERT ON e REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_rows()',
    'CREATE CONSTRAINT TRIGGER d AFTER INSERT ON e DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()',
    'ALTER TABLE e ADD parent int DEFAULT 4 REFERENCES e', 'ALTER TABLE e ADD parent int DEFAULT 9 REFERENCES e',
    'ALTER TABLE e ADD parent int DEFAULT 4 REFERENCES e DEFERRABLE INITIALLY DEFERRED']) change;
TRUNCATE e, e_child;
SET idempotent_ingest.engine = native;
-- While a cursor looks at the target.
BEGIN;
DECLARE c CURSOR FOR SELECT k FROM e;
FETCH c;
SELECT engine, summary FROM idem_merge('es', 'e', '{k}', 'b', exclusive => true);
FETCH c;
ROLLBACK;
-- By an index, which cannot be built while the cursor has it.
BEGIN;
CREATE TABLE e_filled (k int PRIMARY KEY, v text);
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
DECLARE c CURSOR FOR SELECT k FROM e_filled WHERE k > 0;
FETCH c;
SELECT engine, summary FROM idem_merge('es', 'e_filled', '{k}', 'b', on_schema_change => 'ignore', exclusive => true);
FETCH c;
SELECT count(*), min(k), max(k) FROM e_filled WHERE k > 0;
ROLLBACK;
-- In a table that is new, and what is left after a rollback.
BEGIN;
CREATE TABLE e_new (LIKE e INCLUDING ALL);
SELECT engine, summary FROM idem_merge('es', 'e_new', '{k}', 'b', exclusive => true);
SAVEPOINT a;
SELECT engine, summary FROM idem_merge('es', 'e', '{k}', 'b', exclusive => true);
SELECT count(*), sum(length(big)) FROM e;
ROLLBACK TO a;
SELECT count(*), sum(length(big)) FROM e;
SELECT engine, summary FROM idem_merge('es', 'e', '{k}', 'b', exclusive => true);
COMMIT;
SELECT count(*), sum(length(big)) FROM e_new;
SET enable_seqscan = off;
SELECT k, v, u, length(big) FROM e_new WHERE k = 5;
SELECT k FROM e_new WHERE u = 'b';
SELECT k FROM e_new WHERE lower(v) = 'five' AND k > 2;
RESET enable_seqscan;
SELECT relname, relreplident, indisprimary, indisunique, indisvalid, indisready, indisclustered FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = 'e_new'::regclass ORDER BY 1;
INSERT INTO e_new VALUES (6, 'six', 'e');
INSERT INTO e_new VALUES (5, 'five', 'f');
RESET idempotent_ingest.engine;

--
-- What is written, and what is not
--
\pset tuples_only off
SET idempotent_ingest.engine = native;
CREATE TABLE q (k int PRIMARY KEY, v text NOT NULL, n int, big text, ser serial, ident int GENERATED ALWAYS AS IDENTITY) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off, fillfactor = 50);
ALTER TABLE q ALTER big SET STORAGE EXTERNAL;
CREATE INDEX ON q (v);
CREATE TABLE qs (k int, v text, n int, big text) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);
ALTER TABLE qs ALTER big SET STORAGE EXTERNAL;
INSERT INTO qs SELECT i, 'value ' || i, 1, CASE WHEN i % 500 = 0 THEN repeat('big', 3000) END FROM generate_series(1, 10000) i;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'first');
CREATE SEQUENCE fired;
CREATE FUNCTION count_fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('engines.fired'); RETURN NULL; END $$;
CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON q FOR EACH ROW EXECUTE FUNCTION count_fired();
VACUUM (FREEZE, ANALYZE) q;
VACUUM (FREEZE, ANALYZE) qs;
-- Everything about the rows that a write or a lock would change.
CREATE FUNCTION state() RETURNS text LANGUAGE sql AS $$
    SELECT md5((SELECT string_agg(format('%s %s %s %s', ctid, xmin, xmax, cmin), ',' ORDER BY ctid) FROM engines.q))
        || format(' %s %s %s %s', (SELECT (last_value, is_called) FROM engines.q_ser_seq), (SELECT (last_value, is_called) FROM engines.q_ident_seq),
                  (SELECT (last_value, is_called) FROM engines.fired), pg_total_relation_size('engines.q')) $$;
CREATE FUNCTION watch(call text, OUT engine text, OUT summary text, OUT untouched boolean, OUT few_records boolean, OUT few_bytes boolean) LANGUAGE plpgsql AS $$
DECLARE
    before text := state();
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (ANALYZE, WAL, BUFFERS OFF, TIMING OFF, FORMAT JSON) CREATE TEMP TABLE result AS SELECT * FROM idem_merge(''qs'', ''q'', ' || call || ')' INTO plan;
    plan := plan->0->'Plan';
    SELECT r.engine, r.summary INTO engine, summary FROM result r;
    DROP TABLE result;
    untouched := state() = before;
    few_records := (plan->>'WAL Records')::int < 20;
    few_bytes := (plan->>'WAL Bytes')::bigint - 8192 * (plan->>'WAL FPI')::bigint < 4096;
END $$;
SELECT * FROM watch($$ '{k}', 'same' $$);
SELECT * FROM watch($$ '{k}', 'insert', mode => 'insert' $$);
SELECT * FROM watch($$ '{k}', 'update', mode => 'update' $$);
SELECT * FROM watch($$ '{k}', 'derived', update_cols => '{v}' $$);
UPDATE qs SET n = 0, v = 'older';
VACUUM (FREEZE) qs;
SELECT * FROM watch($$ '{k}', 'stale', version_cols => '{n}' $$);
SELECT * FROM watch($$ '{k}', 'excluded', exclude_cols => '{n,v}' $$);
UPDATE qs SET n = 1, v = 'value ' || k;
-- The measure itself: one row that changes is one that is written, and one
-- trigger that fires.
UPDATE qs SET n = 5 WHERE k = 5001;
SELECT * FROM watch($$ '{k}', 'one' $$);
SELECT last_value, is_called FROM fired;
SELECT last_value, is_called FROM q_ser_seq;
SELECT last_value, is_called FROM q_ident_seq;

-- An update leaves values alone that are stored out of line and do not change:
-- no new rows in the TOAST table.
SELECT reltoastrelid::regclass AS toast FROM pg_class WHERE oid = 'q'::regclass \gset
CREATE TABLE toast_before AS SELECT chunk_id, chunk_seq, ctid AS tid FROM :toast;
SELECT count(*) > 20 AS has_chunks FROM toast_before;
DROP TRIGGER a ON q;
UPDATE qs SET n = 6 WHERE k % 1000 = 0;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'n only', exclude_cols => '{big}');
ALTER TABLE qs RENAME big TO large;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'n only, without', on_schema_change => 'ignore');
UPDATE qs SET n = 7 WHERE k % 1000 = 0;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'n again, without', on_schema_change => 'ignore');
ALTER TABLE qs RENAME large TO big;
SELECT count(*) AS toast_rows_that_differ FROM toast_before b FULL JOIN :toast t USING (chunk_id, chunk_seq) WHERE b.tid IS DISTINCT FROM t.ctid;
-- A value that is staged anew is stored anew.
UPDATE qs SET n = 8, big = big || '!' WHERE k = 1000;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'big');
SELECT count(DISTINCT t.chunk_id) AS new_values FROM :toast t WHERE chunk_id NOT IN (SELECT chunk_id FROM toast_before);
SELECT count(*) AS wrong FROM q FULL JOIN qs USING (k) WHERE (q.v, q.n, q.big) IS DISTINCT FROM (qs.v, qs.n, qs.big);

-- Updates are heap-only where no index has a column that changes and the page
-- has room: indexes are not touched, and the row stays on its page.
CREATE TABLE pages_before AS SELECT k, ctid AS tid FROM q;
-- What the statistics have counted since the last call; what a transaction has
-- not reported yet is in the counts of the next one as well.
CREATE TABLE counts (inserted bigint, updated bigint, hot bigint);
INSERT INTO counts VALUES (0, 0, 0);
CREATE FUNCTION counted(OUT inserted bigint, OUT updated bigint, OUT hot bigint) LANGUAGE plpgsql AS $$
DECLARE
    now counts := (pg_stat_get_xact_tuples_inserted('q'::regclass), pg_stat_get_xact_tuples_updated('q'::regclass), pg_stat_get_xact_tuples_hot_updated('q'::regclass));
BEGIN
    SELECT now.inserted - c.inserted, now.updated - c.updated, now.hot - c.hot INTO inserted, updated, hot FROM counts c;
    UPDATE counts c SET inserted = now.inserted, updated = now.updated, hot = now.hot;
END $$;
SELECT pg_relation_size('q_pkey') AS pkey, pg_relation_size('q_v_idx') AS v_idx \gset
BEGIN;
SELECT FROM counted();
UPDATE qs SET n = 9 WHERE k % 3 = 0;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'hot');
SELECT * FROM counted();
COMMIT;
SELECT count(*) AS moved_to_another_page FROM q JOIN pages_before b USING (k) WHERE (q.ctid::text::point)[0] <> (b.tid::text::point)[0];
SELECT pg_relation_size('q_pkey') = :pkey AND pg_relation_size('q_v_idx') = :v_idx AS indexes_did_not_grow;
-- Not so if an indexed column changes.
BEGIN;
SELECT FROM counted();
UPDATE qs SET v = 'w' || v WHERE k % 3 = 1 AND k < 1000;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'not hot');
SELECT * FROM counted();
COMMIT;
-- Statistics of what was inserted, too.
BEGIN;
SELECT FROM counted();
INSERT INTO qs SELECT i, 'new', 1, NULL FROM generate_series(20001, 20100) i;
SELECT engine, summary FROM idem_merge('qs', 'q', '{k}', 'new');
SELECT * FROM counted();
COMMIT;

-- The ledger knows which engine it was, and a replay says so, whatever is set.
SELECT engine, count(*) FROM idem_batches WHERE target = 'q'::regclass GROUP BY 1;
SET idempotent_ingest.engine = sql;
SELECT engine, status FROM idem_merge('qs', 'q', '{k}', 'new');
RESET idempotent_ingest.engine;

-- A value that was set before the library was loaded.
\c -
SET search_path = engines, public;
SET idempotent_ingest.engine = 'fast';
SELECT engine <> 'fast' AS known FROM idem_explain('small', 'plain');
SELECT current_setting('idempotent_ingest.engine') <> 'fast' AS known;
\c -
SET search_path = engines, public;
SET idempotent_ingest.engine = 'native';
SELECT engine, summary FROM idem_merge('small', 'plain', '{k}', '1');

-- While it runs, the native engine is seen in pg_stat_progress_copy: here by a
-- statement trigger, when all of staging has been read and all rows are written.
CREATE TABLE progress (command text, type text, target regclass, read_all boolean, written bigint, not_written bigint);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO engines.progress SELECT command, type, relid, bytes_total > 0 AND bytes_processed = bytes_total, tuples_processed, tuples_excluded
    FROM pg_stat_progress_copy WHERE pid = pg_backend_pid();
    RETURN NULL;
END $$;
CREATE TABLE watched (k int PRIMARY KEY, v int);
INSERT INTO watched SELECT i, i FROM generate_series(1, 5) AS i;
CREATE TRIGGER see AFTER INSERT ON watched FOR EACH STATEMENT EXECUTE FUNCTION see();
CREATE TABLE watched_s AS SELECT i AS k, CASE WHEN i < 3 THEN -i ELSE i END AS v FROM generate_series(1, 10) AS i;
INSERT INTO watched_s VALUES (10, 10);
SELECT engine, summary FROM idem_merge('watched_s', 'watched', '{k}', 'seen');
TABLE progress;
SELECT count(*) AS left_over FROM pg_stat_progress_copy WHERE pid = pg_backend_pid();

-- A stale row that is refused comes before what writing the others would find.
CREATE TABLE guarded (k int PRIMARY KEY, v int CHECK (v < 100), ver int);
INSERT INTO guarded SELECT i, 0, 5 FROM generate_series(1, 1000) AS i;
ANALYZE guarded;
CREATE TABLE guarded_s (k int, v int, ver int);
INSERT INTO guarded_s VALUES (1, 500, 6), (2, 1, 4);
\set VERBOSITY sqlstate
SET idempotent_ingest.engine = native;
SELECT summary FROM idem_merge('guarded_s', 'guarded', version_cols => '{ver}', on_stale => 'error');
SET idempotent_ingest.engine = sql;
SELECT summary FROM idem_merge('guarded_s', 'guarded', version_cols => '{ver}', on_stale => 'error');
RESET idempotent_ingest.engine;
\set VERBOSITY default

-- Memory does not grow with the rows that are inserted, though values are moved
-- out of line, nor with duplicates of a batch that does not fit.
CREATE FUNCTION tell_memory() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'memory is bounded: %', (SELECT sum(total_bytes) < 6 * 1024 * 1024 FROM pg_backend_memory_contexts WHERE name LIKE 'idem_merge%');
    RETURN NULL;
END $$;
CREATE TABLE wide (k int PRIMARY KEY, a text, b text, c text);
CREATE TRIGGER tell AFTER INSERT ON wide FOR EACH STATEMENT EXECUTE FUNCTION tell_memory();
CREATE TABLE wide_s AS
    SELECT i AS k, r.v || 'a' AS a, r.v || 'b' AS b, r.v || 'c' AS c
    FROM generate_series(1, 6000) AS i, LATERAL (SELECT string_agg(md5(i || '.' || j), '') AS v FROM generate_series(1, 28) AS j) r;
SET idempotent_ingest.engine = native;
SELECT summary FROM idem_merge('wide_s', 'wide', '{k}', 'b');
CREATE TABLE twice (k int PRIMARY KEY, v int);
CREATE TRIGGER tell AFTER INSERT ON twice FOR EACH STATEMENT EXECUTE FUNCTION tell_memory();
CREATE TABLE twice_s AS SELECT i AS k, i AS v FROM generate_series(1, 10000) AS i, generate_series(1, 2);
SET work_mem = '64kB';
SELECT summary FROM idem_merge('twice_s', 'twice', '{k}', 'b');
RESET work_mem;
RESET idempotent_ingest.engine;

-- Few rows, staged where nobody has analyzed them, into a large target: neither
-- engine reads more of it than these.
CREATE TABLE parts (k int PRIMARY KEY, v int) PARTITION BY RANGE (k);
SELECT format('CREATE TABLE parts_%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', i, i * 1000, (i + 1) * 1000) FROM generate_series(0, 39) AS i \gexec
CREATE TABLE not_parted (k int PRIMARY KEY, v int);
INSERT INTO parts SELECT i, i FROM generate_series(0, 39999) AS i;
INSERT INTO not_parted TABLE parts;
ANALYZE parts, not_parted;
CREATE TEMP TABLE few (k int, v int);
INSERT INTO few SELECT i * 700, -i FROM generate_series(1, 50) AS i;
-- what was read before does not count
SELECT pg_stat_force_next_flush();
BEGIN;
SET LOCAL idempotent_ingest.engine = auto;
SELECT engine, summary FROM idem_merge('few', 'parts', '{k}', 'few');
SELECT sum(seq_tup_read + idx_tup_fetch) < 500 AS few_read FROM pg_stat_xact_user_tables WHERE schemaname = 'engines' AND relname LIKE 'parts%';
SELECT engine, summary FROM idem_merge('few', 'not_parted', '{k}', 'few');
SELECT sum(seq_tup_read + idx_tup_fetch) < 500 AS few_read FROM pg_stat_xact_user_tables WHERE schemaname = 'engines' AND relname = 'not_parted';
-- emptied and filled again, and made anew
TRUNCATE few;
INSERT INTO few SELECT i * 700, i FROM generate_series(1, 40) AS i;
SELECT engine, summary FROM idem_merge('few', 'parts', '{k}', 'truncated');
DROP TABLE few;
CREATE TEMP TABLE few (k int, v int);
INSERT INTO few SELECT i * 700, -i FROM generate_series(1, 30) AS i;
SELECT engine, summary FROM idem_merge('few', 'parts', '{k}', 'created');
SELECT sum(seq_tup_read + idx_tup_fetch) < 1200 AS few_read FROM pg_stat_xact_user_tables WHERE schemaname = 'engines' AND relname LIKE 'parts%';
COMMIT;
-- Many rows, staged in parts: they are not looked up one by one.
CREATE TABLE many (k int, v int) PARTITION BY RANGE (k);
CREATE TABLE many_1 PARTITION OF many FOR VALUES FROM (0) TO (20000);
CREATE TABLE many_2 PARTITION OF many FOR VALUES FROM (20000) TO (40000);
INSERT INTO many TABLE not_parted;
SELECT pg_stat_force_next_flush();
BEGIN;
SET LOCAL idempotent_ingest.engine = sql;
SELECT engine, summary FROM idem_merge('many', 'not_parted', '{k}', 'many');
SELECT seq_scan + idx_scan AS scans FROM pg_stat_xact_user_tables WHERE schemaname = 'engines' AND relname = 'not_parted';
COMMIT;

-- How the native engine finds stored rows: by the index if they are few, else by
-- a pass, where most stored rows are not staged (numbers, and keys of two columns).
SET idempotent_ingest.engine = native;
CREATE TABLE stored_n (k int PRIMARY KEY, v int);
INSERT INTO stored_n SELECT i * 2, i FROM generate_series(1, 30000) AS i;
CREATE TABLE stored_t (a text COLLATE "C", b int, v int, PRIMARY KEY (a, b));
INSERT INTO stored_t SELECT 'key ' || i / 100, i * 2, i FROM generate_series(1, 30000) AS i;
VACUUM ANALYZE stored_n, stored_t;
-- One of three is new, one as stored, and one has changed.
CREATE FUNCTION staged_of(rows int, every int) RETURNS TABLE (i int, k int, v int) LANGUAGE sql IMMUTABLE AS $$
    SELECT i * every, i * every * 2 + (i % 3 = 0)::int, i * every * CASE WHEN i % 3 = 1 THEN -1 ELSE 1 END
    FROM generate_series(1, rows) AS i
$$;
CREATE FUNCTION found_by(target regclass, rows int, OUT summary text, OUT passes bigint, OUT by_index bool, OUT count bigint, OUT sum bigint)
LANGUAGE plpgsql AS $$
DECLARE
    before pg_stat_xact_user_tables;
    keys name[] := CASE WHEN target = 'stored_n'::regclass THEN '{k}' ELSE '{a, b}' END;
BEGIN
    SELECT * INTO before FROM pg_stat_xact_user_tables AS s WHERE s.relid = target;
    CREATE TEMP TABLE sought AS SELECT k, v, 'key ' || i / 100 AS a, k AS b FROM staged_of(rows, 30000 / rows);
    EXECUTE format('ALTER TABLE sought %s', CASE WHEN cardinality(keys) = 1 THEN 'DROP a, DROP b' ELSE 'DROP k' END);
    SELECT m.summary INTO summary FROM idem_merge('sought', target, keys, 'batch') AS m;
    SELECT s.seq_scan - before.seq_scan, s.idx_scan - before.idx_scan >= rows INTO passes, by_index
    FROM pg_stat_xact_user_tables AS s WHERE s.relid = target;
    EXECUTE format('SELECT count(*), sum(v) FROM %s', target) INTO count, sum;
END $$;
SELECT format('BEGIN; SELECT * FROM found_by(%L, %s); ROLLBACK', target, rows)
FROM unnest('{stored_n, stored_t}'::text[]) AS target, unnest('{300, 3000, 10000, 30000}'::int[]) AS rows \gexec
RESET idempotent_ingest.engine;

SET client_min_messages = warning;
DROP SCHEMA engines CASCADE;
DROP ROLE idem_e_owner, idem_e_user, idem_e_bypass;
