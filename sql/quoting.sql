--
-- Names that need quotes, and search paths that lead astray.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA quoting;
SET search_path = quoting, public;
\set SHOW_CONTEXT never
\pset format unaligned

--
-- A search_path with traps: pg_catalog last, and before it operators, functions,
-- types and tables that raise an error, or lie, when anything of ours uses them
--

CREATE TABLE t (k int PRIMARY KEY, v varchar(10), n numeric(8,2), j jsonb, a varchar(5)[], seen timestamptz, d text DEFAULT 'default', r regclass);
CREATE TABLE s (k bigint, v text, n numeric, j jsonb, a text[], seen timestamptz, r regclass);
CREATE TABLE nullable (a int, b text, v text, UNIQUE NULLS NOT DISTINCT (a, b));
INSERT INTO t VALUES (1, 'same', 1, '{}', '{a}', '2026-01-01 00:00+00', 'kept', 't'), (2, 'old', 2, '{}', '{b}', '2026-01-01 00:00+00', 'kept', 't'),
    (3, 'newer', 3, '{}', '{c}', '2026-03-03 00:00+00', 'kept', 't');
INSERT INTO s VALUES (1, 'same', 1.00, '{}', '{a}', '2026-01-01 00:00+00', 't'), (2, 'new', 2, '{}', '{b}', '2026-01-02 00:00+00', 't'),
    (3, 'older', 3, '{}', '{c}', '2026-01-01 00:00+00', 't'), (4, 'more', 4, '{"a": 1}', '{d}', NULL, 's'), (4, 'more', 4, '{"a": 1}', '{d}', NULL, 's');

CREATE SCHEMA quoting_traps;
CREATE FUNCTION quoting_traps.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
DO $$
DECLARE
    type text;
    op text;
    name text;
BEGIN
    FOREACH type IN ARRAY '{integer,bigint,smallint,text,varchar,numeric,boolean,oid,regclass,regrole,regtype,name,jsonb,timestamptz,xid8,"\"char\"",bytea,text[]}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION quoting_traps.trap2(%s, %1$s) RETURNS boolean LANGUAGE sql VOLATILE AS ''SELECT quoting_traps.trap()''', type);
        FOREACH op IN ARRAY '{=,<>,<,>,<=,>=}'::text[] LOOP
            EXECUTE format('CREATE OPERATOR quoting_traps.%s (LEFTARG = %s, RIGHTARG = %2$s, FUNCTION = quoting_traps.trap2)', op, type);
        END LOOP;
    END LOOP;
    FOREACH name IN ARRAY '{now,clock_timestamp,pg_current_xact_id,pg_current_snapshot,pg_current_xact_id_if_assigned,pg_backend_pid}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION quoting_traps.%I() RETURNS boolean LANGUAGE sql AS ''SELECT quoting_traps.trap()''', name);
    END LOOP;
    FOREACH name IN ARRAY '{to_jsonb,jsonb_each,pg_has_role,string_agg,"varchar","numeric",quote_literal,octet_length}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION quoting_traps.%I(anyelement) RETURNS boolean LANGUAGE sql AS ''SELECT quoting_traps.trap()''', name);
    END LOOP;
    FOREACH name IN ARRAY '{"varchar","numeric"}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION quoting_traps.%I(%1$I, integer) RETURNS boolean LANGUAGE sql AS ''SELECT quoting_traps.trap()''', name);
        EXECUTE format('CREATE FUNCTION quoting_traps.%I(%1$I, integer, boolean) RETURNS boolean LANGUAGE sql AS ''SELECT quoting_traps.trap()''', name);
    END LOOP;
    FOREACH name IN ARRAY '{int2,int4,int8,bool,text,jsonb,oid,name,regclass,regtype,regrole,xid8,timestamptz,"varchar","numeric",int4_ops}'::text[] LOOP
        EXECUTE format('CREATE TYPE quoting_traps.%I AS ENUM (''trap'')', name);
    END LOOP;
    FOREACH name IN ARRAY '{idem_ledger,idem_audit,idem_batches,idem_staged_rows,pg_class,pg_roles,pg_attribute,pg_locks,s,t,d,c,p,excluded}'::text[] LOOP
        EXECUTE format('CREATE VIEW quoting_traps.%I AS SELECT quoting_traps.trap() AS k', name);
    END LOOP;
    -- exact matches for the functions that the generated statement calls, in a schema that is not ours
    FOREACH name IN ARRAY '{idem_row_staged,idem_row_distinct,idem_row_classify,idem_row_guard,idem_row_applied}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION quoting_traps.%I(bigint, VARIADIC "any") RETURNS boolean AS ''suppress_redundant_updates_trigger'' LANGUAGE internal', name);
    END LOOP;
    CREATE FUNCTION quoting_traps.idem_row_propose(bigint, boolean, VARIADIC "any") RETURNS boolean AS 'suppress_redundant_updates_trigger' LANGUAGE internal;
    CREATE FUNCTION quoting_traps.idem_column_default(bigint, smallint, anyelement) RETURNS anyelement AS 'suppress_redundant_updates_trigger' LANGUAGE internal;
    CREATE FUNCTION quoting_traps.idem_assign("any", anyelement) RETURNS anyelement AS 'suppress_redundant_updates_trigger' LANGUAGE internal;
    CREATE FUNCTION quoting_traps.idem_image(VARIADIC "any") RETURNS bytea AS 'suppress_redundant_updates_trigger' LANGUAGE internal;
END $$;
CREATE COLLATION quoting_traps."C" FROM "C";
-- this is what a trap does
SET search_path = quoting_traps, quoting, public, pg_catalog;
SELECT 1 = 1 AS hijacked;

SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b1', version_cols => '{seen}', metadata => '{"m": 1}');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b1', version_cols => '{seen}');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b1', version_cols => '{seen}', on_replay => 'reapply');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b1', version_cols => '{seen}', exclude_cols => '{v}', on_mismatch => 'apply');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', version_cols => '{seen}', audit_cols => '{j}', on_duplicate => 'any');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', version_cols => '{seen}', audit_cols => '{j}', on_duplicate => 'any');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b2', mode => 'insert');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b3', mode => 'update', on_stale => 'apply', version_cols => '{seen}');
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', dry_run => true);
CREATE TABLE quoting.nullable_s (a pg_catalog.int8, b pg_catalog.text, v pg_catalog.text);
INSERT INTO quoting.nullable_s VALUES (NULL, 'x', 'v'), (1, NULL, 'v'), (NULL, NULL, 'v');
SELECT status, summary FROM public.idem_merge('quoting.nullable_s', 'quoting.nullable', '{a,b}');
SELECT status, summary FROM public.idem_merge('quoting.nullable_s', 'quoting.nullable', '{b,a}');
CREATE VIEW quoting.s_view AS SELECT * FROM quoting.s;
SELECT status, summary FROM public.idem_merge('quoting.s_view', 'quoting.t', '{k}', 'b4', version_cols => '{seen}');
SELECT pg_catalog.length(public.idem_fingerprint('quoting.s')) AS fingerprint;
SELECT public.idem_claim('quoting', 'quoting.t');
SELECT public.idem_claim('quoting', 'quoting.t', fingerprint => 'x');
SELECT public.idem_forget('quoting.t', 'quoting', dry_run => true);
SELECT public.idem_forget('quoting.t', 'quoting');
SELECT engine IS NOT NULL AS explained FROM public.idem_explain('quoting.s', 'quoting.t');
SET search_path = '';
SELECT status, summary FROM public.idem_merge('quoting.s', 'quoting.t', '{k}', 'b5', version_cols => '{seen}');
-- temporary objects come first in every path that does not say otherwise
CREATE TEMP VIEW pg_class AS SELECT quoting_traps.trap();
CREATE TEMP VIEW idem_ledger AS SELECT quoting_traps.trap();
CREATE TEMP VIEW s AS SELECT quoting_traps.trap();
SET search_path = quoting, public;
SELECT status, summary FROM idem_merge('quoting.s', 'quoting.t', '{k}', 'b6', version_cols => '{seen}');
SELECT batch_id, operation, revision, rows_updated FROM idem_batches WHERE target = 't'::regclass AND batch_id NOT LIKE 'content:%' ORDER BY 1;
DROP VIEW pg_temp.pg_class, pg_temp.idem_ledger, pg_temp.s;
SELECT * FROM t ORDER BY k;
SET client_min_messages = warning;
DROP SCHEMA quoting_traps CASCADE;
RESET client_min_messages;

-- a function of our name with better fitting arguments, in the extension's own
-- schema: whoever may create one there could run code as everybody who merges; the
-- native engine calls none of them
SET idempotent_ingest.engine = sql;
SELECT n.nspname AS extension_schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'idempotent_ingest' \gset
CREATE FUNCTION :"extension_schema".idem_row_staged(bigint, bigint, text, numeric, jsonb, text[], timestamptz, regclass) RETURNS boolean
LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
SELECT status FROM idem_merge('s', 't', '{k}', 'b7', version_cols => '{seen}');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM idem_batches WHERE batch_id = 'b7' AND target = 't'::regclass;
DROP FUNCTION :"extension_schema".idem_row_staged(bigint, bigint, text, numeric, jsonb, text[], timestamptz, regclass);
-- one that the planner would look into, and run what it finds there
CREATE FUNCTION :"extension_schema".trap() RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
SELECT format('SELECT %I.trap()', :'extension_schema') AS body \gset
CREATE FUNCTION :"extension_schema".idem_row_staged(bigint, bigint, text, numeric, jsonb, text[], timestamptz, regclass) RETURNS boolean
LANGUAGE sql AS :'body';
SELECT status FROM idem_merge('s', 't', '{k}', 'b7', version_cols => '{seen}');
\echo :LAST_ERROR_SQLSTATE
DROP FUNCTION :"extension_schema".idem_row_staged(bigint, bigint, text, numeric, jsonb, text[], timestamptz, regclass);
DROP FUNCTION :"extension_schema".trap();
-- each of the functions that a statement calls
CREATE FUNCTION try_overload(signature text, result text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    extension_schema regnamespace := (SELECT extnamespace FROM pg_extension WHERE extname = 'idempotent_ingest');
BEGIN
    EXECUTE format('CREATE FUNCTION %s.%s RETURNS %s LANGUAGE plpgsql AS ''BEGIN RAISE EXCEPTION ''''trapped''''; END''', extension_schema, signature, result);
    PERFORM idem_merge('s', 't', '{k}', 'b7', version_cols => '{seen}', on_duplicate => 'any');
    RETURN 'not refused';
EXCEPTION WHEN ambiguous_function THEN
    RETURN 'refused';
END $$;
SELECT signature, try_overload(signature, result)
FROM (VALUES ('idem_row_staged(bigint, bigint, text, numeric, jsonb, text[], timestamptz, regclass)', 'boolean'),
    ('idem_row_distinct(bigint, int, varchar, numeric, jsonb, varchar[], timestamptz, regclass)', 'boolean'),
    ('idem_row_classify(bigint, int, varchar, varchar, numeric, numeric, jsonb, jsonb, varchar[], varchar[], timestamptz, timestamptz, regclass, regclass)', 'boolean'),
    ('idem_row_propose(bigint, boolean, int)', 'boolean'),
    ('idem_row_guard(bigint, varchar, varchar, numeric, numeric, jsonb, jsonb, varchar[], varchar[], timestamptz, timestamptz, regclass, regclass)', 'boolean'),
    ('idem_row_applied(bigint, int)', 'boolean'), ('idem_column_default(bigint, smallint, text)', 'text'),
    ('idem_assign(text[], varchar[])', 'varchar[]'), ('idem_image(int, varchar, numeric, jsonb, varchar[], timestamptz, regclass)', 'bytea')) f (signature, result);
SELECT status FROM idem_merge('s', 't', '{k}', 'b7', version_cols => '{seen}');
RESET idempotent_ingest.engine;

--
-- Hostile names
--

-- every column carries its own name and the row's number
CREATE TABLE names (nr serial, name text);
INSERT INTO names (name) VALUES ('plain'), ('UPPER'), ('with space'), ('do.t'), ('qu"ote'), ('"quoted"'), ('apostro''phe'), ('back\slash'),
    ('$1'), ('%s%n'), (';DROP TABLE t;--'), ('größe'), ('日本'), (repeat('x', 63)), (repeat('é', 31) || 'e'), ('select'), ('user'), ('order'),
    ('matched'), ('matched_'), ('s'), ('t'), ('p'), ('d'), ('c'), ('l'), ('excluded'), ('EXCLUDED'), ('old'), ('new'), ('idem_staged_rows'),
    ('$$'), ('/*'), ('--'), (E'new\nline'), (' '), ('{a,b}'), ('handle'), ('staged'), ('row'), ('null'), ('key'), ('tableoid_');
SELECT string_agg(format('%I text', name), ', ' ORDER BY nr) AS columns, string_agg(quote_literal(name), ', ' ORDER BY nr) AS values,
       count(*) AS count
FROM names \gset
CREATE SCHEMA "quoting ""Schéma"".x";
CREATE TABLE "quoting ""Schéma"".x"."Tar""get.t" (:columns, "lacking ""default""" int DEFAULT 7, PRIMARY KEY ("qu""ote", "t", "matched", "s"));
CREATE TABLE "quoting ""Schéma"".x"."stag'ing" (:columns);
INSERT INTO "quoting ""Schéma"".x"."stag'ing" VALUES (:values);
SELECT status, summary FROM idem_merge('"quoting ""Schéma"".x"."stag''ing"', '"quoting ""Schéma"".x"."Tar""get.t"', batch_id => 'names');
-- each value is in its own column
SELECT count(*) FILTER (WHERE j.value = j.key) AS right, count(*) FILTER (WHERE j.value <> j.key) AS wrong, count(*) = :count + 1 AS all
FROM "quoting ""Schéma"".x"."Tar""get.t" x, jsonb_each_text(to_jsonb(x)) j;
SELECT target, options FROM idem_batches WHERE batch_id = 'names';
UPDATE "quoting ""Schéma"".x"."stag'ing" SET "EXCLUDED" = 'upper', "excluded" = 'lower', "$1" = 'dollar', " " = 'blank';
SELECT status, summary FROM idem_merge('"quoting ""Schéma"".x"."stag''ing"', '"quoting ""Schéma"".x"."Tar""get.t"', '{"qu\"ote",t,matched,s}',
    version_cols => '{"back\\slash","do.t"}', audit_cols => ARRAY['$$', 'matched_', ';DROP TABLE t;--'], exclude_cols => ARRAY['apostro''phe', ' ', 'l']);
SELECT "EXCLUDED", "excluded", "$1", " ", "lacking ""default""" FROM "quoting ""Schéma"".x"."Tar""get.t";
SELECT status, summary FROM idem_merge('"quoting ""Schéma"".x"."stag''ing"', '"quoting ""Schéma"".x"."Tar""get.t"', batch_id => 'names 2',
    mode => 'update', on_duplicate => 'any');
SELECT status, summary FROM idem_merge('"quoting ""Schéma"".x"."stag''ing"', '"quoting ""Schéma"".x"."Tar""get.t"', batch_id => 'names 2',
    mode => 'update', on_duplicate => 'any');
CREATE VIEW "quoting ""Schéma"".x"."vi""ew" AS SELECT * FROM "quoting ""Schéma"".x"."stag'ing";
SELECT status, summary FROM idem_merge('"quoting ""Schéma"".x"."vi""ew"', '"quoting ""Schéma"".x"."Tar""get.t"', dry_run => true);
SELECT length(idem_fingerprint('"quoting ""Schéma"".x"."vi""ew"', '{"qu\"ote","%s%n"}')) AS fingerprint;
-- what is printed can be run: the statement for the index that is missing
CREATE TABLE "quoting ""Schéma"".x"."no ""index""" ("ke""y" text, "Key.2" text, v text);
DO $$
DECLARE
    hint text;
BEGIN
    PERFORM idem_merge('"quoting ""Schéma"".x"."no ""index"""', '"quoting ""Schéma"".x"."Tar""get.t"');
EXCEPTION WHEN undefined_column THEN
    GET STACKED DIAGNOSTICS hint = MESSAGE_TEXT;
    RAISE NOTICE '%', hint;
END $$;
CREATE TABLE no_index_s ("ke""y" text, "Key.2" text, v text);
INSERT INTO no_index_s VALUES ('a', 'b', 'c');
DO $$
DECLARE
    hint text;
BEGIN
    PERFORM idem_merge('no_index_s', '"quoting ""Schéma"".x"."no ""index"""', '{"ke\"y",Key.2}');
EXCEPTION WHEN invalid_column_reference THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RAISE NOTICE '%', hint;
    EXECUTE substr(hint, length('Run: ') + 1);
END $$;
SELECT status, summary FROM idem_merge('no_index_s', '"quoting ""Schéma"".x"."no ""index"""', '{"ke\"y",Key.2}');
-- columns that are added, with types, collations and lengths that need quotes
CREATE TYPE "quoting ""Schéma"".x"."En""um.type" AS ENUM ('a''b', 'c"d');
CREATE DOMAIN "quoting ""Schéma"".x"."Do main" AS varchar(3);
CREATE TYPE "quoting ""Schéma"".x"."comp""osite" AS ("fie ld" int, "o""ther" text);
CREATE COLLATION "quoting ""Schéma"".x"."Col""lation" FROM "C";
CREATE TABLE adds (k int, "en""um" "quoting ""Schéma"".x"."En""um.type", "do main" "quoting ""Schéma"".x"."Do main",
                   "comp""osite" "quoting ""Schéma"".x"."comp""osite", "Text" text COLLATE "quoting ""Schéma"".x"."Col""lation",
                   "len""gth" varchar(7), "arr ay" numeric(5,2)[], "times" timestamp(3) with time zone);
INSERT INTO adds VALUES (1, 'a''b', 'abc', ROW(1, 'x'), 'text', 'seven', '{1.25,NULL}', '2026-01-01 00:00:00.123+00');
CREATE TABLE added (k int PRIMARY KEY);
SELECT status, summary FROM idem_merge('adds', 'added', on_schema_change => 'add_columns', batch_id => 'added');
SELECT attname, format_type(atttypid, atttypmod), attcollation = (SELECT oid FROM pg_collation WHERE collname = 'Col"lation') AS own_collation
FROM pg_attribute WHERE attrelid = 'added'::regclass AND attnum > 0 ORDER BY attnum;
SELECT (SELECT to_jsonb(a) FROM adds a) = (SELECT to_jsonb(a) FROM added a) AS same;
-- the same by assignment
CREATE TABLE adds_text (k text, "en""um" "quoting ""Schéma"".x"."En""um.type", "do main" text, "Text" text, "len""gth" text, "arr ay" float8[]);
INSERT INTO adds_text VALUES ('2', 'c"d', 'def', 'text 2', 'short', '{2.5}');
CREATE VIEW adds_cast AS SELECT k::bigint, "en""um", "do main", "Text", "len""gth", "arr ay" FROM adds_text;
SELECT status, summary FROM idem_merge('adds_cast', 'added', batch_id => 'assigned');
SELECT k, "en""um", "do main", "Text", "len""gth", "arr ay" FROM added ORDER BY k;
-- a key with a collation and in a partition by another schema's name
CREATE TABLE "quoting ""Schéma"".x"."Par""ted" ("k""" text COLLATE "quoting ""Schéma"".x"."Col""lation" PRIMARY KEY, "v""" text) PARTITION BY HASH ("k""");
CREATE TABLE "quoting ""Schéma"".x"."Par""ted 1" PARTITION OF "quoting ""Schéma"".x"."Par""ted" FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE parted_s ("k""" text, "v""" text);
INSERT INTO parted_s VALUES ('a', 'x'), ('B', 'y');
SELECT status, summary FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"');
SELECT status, summary FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"');

-- batch ids, pipelines and metadata are values, whatever is in them
CREATE TABLE ids (nr serial, id text);
INSERT INTO ids (id) VALUES ('%s%n%d'), (''';DROP TABLE t;--'), ('"'), ('\'), ('$1'), (E'new\nline'), (' '), ('NULL'), ('content:'), ('日本');
SELECT id, (SELECT status FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"', batch_id => id, pipeline => id, metadata => jsonb_build_object(id, id))) AS first,
       (SELECT status FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"', batch_id => id, pipeline => id)) AS second
FROM ids ORDER BY nr;
SELECT count(*) FROM idem_batches b JOIN ids ON b.batch_id = id AND b.pipeline = id AND b.metadata = jsonb_build_object(id, id) AND b.target::text LIKE '%Par%';
-- also where messages name them
UPDATE parted_s SET "v""" = 'z';
\set VERBOSITY terse
SELECT status FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"', batch_id => '%s%n%d', pipeline => '%s%n%d');
\set VERBOSITY default
SELECT status FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"', '{%s%n}');
SELECT status FROM idem_merge('parted_s', '"quoting ""Schéma"".x"."Par""ted"', mode => '%s%n');

-- a name that comes to mean another table: the plan that is kept is not taken for it
CREATE SCHEMA quoting_a;
CREATE TABLE quoting_a.t (k int PRIMARY KEY, v text);
SELECT status, summary FROM idem_merge('s', 'quoting_a.t', '{k}', 'moved', on_schema_change => 'ignore');
ALTER SCHEMA quoting_a RENAME TO quoting_b;
CREATE SCHEMA quoting_a;
CREATE TABLE quoting_a.t (k int PRIMARY KEY, v text);
SELECT status, summary FROM idem_merge('s', 'quoting_a.t', '{k}', 'moved', on_schema_change => 'ignore');
SELECT status, summary FROM idem_merge('s', 'quoting_b.t', '{k}', 'moved', on_schema_change => 'ignore');
SELECT (SELECT count(*) FROM quoting_a.t) AS a, (SELECT count(*) FROM quoting_b.t) AS b;

SET client_min_messages = warning;
DROP SCHEMA quoting_a, quoting_b, "quoting ""Schéma"".x" CASCADE;
RESET client_min_messages;

--
-- Operators in the schema of the key's own ones, for a domain that the key is of:
-- they fit better than those of the index, and are not asked
--

CREATE SCHEMA ops;
CREATE OPERATOR ops.= (LEFTARG = int, RIGHTARG = int, PROCEDURE = int4eq);
CREATE OPERATOR ops.< (LEFTARG = int, RIGHTARG = int, PROCEDURE = int4lt);
CREATE OPERATOR ops.<= (LEFTARG = int, RIGHTARG = int, PROCEDURE = int4le);
CREATE OPERATOR ops.> (LEFTARG = int, RIGHTARG = int, PROCEDURE = int4gt);
CREATE OPERATOR ops.>= (LEFTARG = int, RIGHTARG = int, PROCEDURE = int4ge);
CREATE OPERATOR CLASS ops.int_ops FOR TYPE int USING btree AS
    OPERATOR 1 ops.<, OPERATOR 2 ops.<=, OPERATOR 3 ops.=, OPERATOR 4 ops.>=, OPERATOR 5 ops.>,
    FUNCTION 1 btint4cmp(int, int);
CREATE DOMAIN ops.id AS int;
CREATE FUNCTION ops.hijacked(ops.id, ops.id) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked by %', current_user; END $$;
CREATE OPERATOR ops.= (LEFTARG = ops.id, RIGHTARG = ops.id, PROCEDURE = ops.hijacked);
CREATE OPERATOR ops.< (LEFTARG = ops.id, RIGHTARG = ops.id, PROCEDURE = ops.hijacked);
CREATE TABLE ops.t (k ops.id, v text);
CREATE UNIQUE INDEX ON ops.t (k ops.int_ops);
CREATE TABLE ops.s (k ops.id, v text);
INSERT INTO ops.t VALUES (2, 'old'), (3, 'same');
INSERT INTO ops.s VALUES (3, 'same'), (2, 'new'), (1, 'more');
SELECT summary FROM idem_merge('ops.s', 'ops.t', '{k}', mode => 'update');
SELECT summary FROM idem_merge('ops.s', 'ops.t', '{k}');
SELECT summary FROM idem_merge('ops.s', 'ops.t', '{k}', mode => 'insert');
SELECT * FROM ops.t ORDER BY k;
-- an operator class for the domain itself
CREATE SCHEMA own;
CREATE DOMAIN own.id AS int;
CREATE FUNCTION own.cmp(own.id, own.id) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
DO $$
DECLARE
    name text; operator text;
BEGIN
    FOR name, operator IN VALUES ('lt', '<'), ('le', '<='), ('eq', '='), ('ge', '>='), ('gt', '>') LOOP
        EXECUTE format('CREATE FUNCTION own.%s(own.id, own.id) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS ''int4%1$s''', name);
        EXECUTE format('CREATE OPERATOR own.%s (LEFTARG = own.id, RIGHTARG = own.id, PROCEDURE = own.%s)', operator, name);
    END LOOP;
END $$;
CREATE OPERATOR CLASS own.id_ops FOR TYPE own.id USING btree AS
    OPERATOR 1 own.<, OPERATOR 2 own.<=, OPERATOR 3 own.=, OPERATOR 4 own.>=, OPERATOR 5 own.>,
    FUNCTION 1 own.cmp(own.id, own.id);
CREATE TABLE own.t (k own.id, v text);
CREATE UNIQUE INDEX ON own.t (k own.id_ops DESC);
INSERT INTO own.t VALUES (2, 'old'), (3, 'same');
SELECT summary FROM idem_merge('ops.s', 'own.t', '{k}', mode => 'update');
SELECT summary FROM idem_merge('ops.s', 'own.t', '{k}');
SELECT summary FROM idem_merge('ops.s', 'own.t', '{k}', mode => 'insert');
SELECT * FROM own.t ORDER BY k;
SET client_min_messages = warning;
DROP SCHEMA ops, own CASCADE;
RESET client_min_messages;

--
-- The extension in a schema whose name needs quotes, in a database of its own
--

SELECT current_database() AS this_database \gset
CREATE DATABASE idem_quoting TEMPLATE template0;
\c idem_quoting
\set VERBOSITY sqlstate
-- PostgreSQL itself refuses what a script could not quote
CREATE EXTENSION idempotent_ingest SCHEMA "we""ird";
CREATE SCHEMA "we""ird";
CREATE EXTENSION idempotent_ingest SCHEMA "we""ird";
\set VERBOSITY default
CREATE SCHEMA "We ird.Schéma";
CREATE EXTENSION idempotent_ingest SCHEMA "We ird.Schéma";
CREATE TABLE t (k int PRIMARY KEY, v varchar(5), n numeric(4,2)[], d int DEFAULT 5);
CREATE TABLE s (k int, v text, n numeric[]);
INSERT INTO s VALUES (1, 'one', '{1}'), (2, 'two', '{2}'), (2, 'zwei', '{2}');
-- not in the path
SELECT status, summary FROM "We ird.Schéma".idem_merge('s', 't', batch_id => 'b1', on_duplicate => 'any');
SELECT status, summary FROM "We ird.Schéma".idem_merge('s', 't', batch_id => 'b1', on_duplicate => 'any');
SELECT status, summary FROM "We ird.Schéma".idem_merge('s', 't', batch_id => 'b1', on_duplicate => 'any', on_replay => 'reapply');
-- in the path
SET search_path = "We ird.Schéma", public;
SELECT status, summary FROM idem_merge('s', 't', '{k}', 'b2', mode => 'update', on_duplicate => 'any');
SELECT idem_claim('c', 't');
SELECT idem_claim('c', 't');
SELECT length(idem_fingerprint('t')) AS fingerprint;
SELECT idem_forget('t', 'c');
SELECT target, batch_id, revision FROM idem_batches ORDER BY batch_id;
SELECT * FROM t ORDER BY k;
SELECT position('"We ird.Schéma".idem_row_staged(' IN statement) > 0 AS qualified FROM idem_explain('s', 't', on_duplicate => 'any');
-- where long lines are folded, for a terminal, names stay whole
CREATE TABLE wide (k int PRIMARY KEY, "long, long, 1" text, "long, long, 2" text, "long, long, 3" text, "long, long, 4" text, "long, long, 5" text);
CREATE TABLE wide_staged (LIKE wide);
SELECT count(*) > 30 AS folded, max(length(line)) <= 100 AS narrow,
       bool_and(length(replace(line, '"', '')) % 2 = length(line) % 2) AS whole
FROM idem_explain('wide_staged', 'wide'), regexp_split_to_table(statement, '\n') AS line;
-- dropped and created elsewhere in one session: plans that name the old schema are not used
DROP EXTENSION idempotent_ingest;
CREATE EXTENSION idempotent_ingest SCHEMA public;
SELECT status, summary FROM idem_merge('s', 't', '{k}', 'b1', on_duplicate => 'any');
SELECT target, batch_id, revision FROM idem_batches ORDER BY batch_id;
\c :this_database
DROP DATABASE idem_quoting;
SET client_min_messages = warning;
DROP SCHEMA quoting CASCADE;
