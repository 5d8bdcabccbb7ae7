--
-- The fingerprint: what it depends on, and what it does not.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA fingerprint;
SET search_path = fingerprint, public;

-- The fingerprint of what a query returns.
CREATE FUNCTION fp(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE 'CREATE TEMP TABLE fp_rows AS ' || query;
    result := idem_fingerprint('pg_temp.fp_rows');
    DROP TABLE fp_rows;
    RETURN result;
END $$;
CREATE FUNCTION same(a text, b text) RETURNS boolean LANGUAGE sql AS $$ SELECT fp(a) = fp(b) $$;

\pset format unaligned

--
-- Known answers: another major must give the same, and another platform too, where
-- the reference does not say that the type is not portable. If one of these
-- changes, batches that were recorded before are not recognised any more.
--

CREATE TYPE color AS ENUM ('red', 'green', 'blue');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN small AS int CHECK (VALUE < 100);
CREATE TABLE referenced (k int);
SELECT fp('SELECT 1 AS k, ''one''::text AS v UNION ALL SELECT 2, ''two'' UNION ALL SELECT 3, NULL');
SELECT fp('SELECT 1 AS k, ''one''::text AS v WHERE false');
SELECT value, fp(format('SELECT %s AS v', value))
FROM unnest(ARRAY[
    $$true$$, $$'c'::"char"$$, $$(-2)::smallint$$, $$(-3)::int$$, $$(-4)::bigint$$, $$5::oid$$,
    $$1.5::real$$, $$(-2.5)::float8$$, $$'NaN'::float8$$, $$0::numeric$$, $$-123456789.0987654321$$, $$'NaN'::numeric$$,
    $$'12.34'::numeric(10,4)$$,
    $$'text'::text$$, $$''::text$$, $$'größer'::text$$, $$'varchar'::varchar(20)$$, $$'char'::char(6)$$, $$'name'::name$$,
    $$'\x00ff0102'::bytea$$, $$repeat('long', 1000)$$,
    $$'2026-11-20'::date$$, $$'-infinity'::date$$, $$'12:34:56.789'::time$$, $$'12:34:56+01'::timetz$$,
    $$'2026-11-20 12:34:56.789'::timestamp$$, $$'2026-11-20 12:34:56.789+00'::timestamptz$$, $$'infinity'::timestamptz$$,
    $$'1 year 2 months 3 days 04:05:06.7'::interval$$,
    $$'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid$$,
    $$'{"a": [1, 2.50, null], "b": {"c": "d"}}'::json$$, $$'{"b": {"c": "d"}, "a": [1, 2.50, null]}'::jsonb$$,
    $$'(1,2)'::point$$, $$'((1,2),(3,4))'::box$$, $$'<(1,2),3>'::circle$$, $$'((1,2),(3,4),(5,6))'::polygon$$,
    $$'192.168.0.1/24'::inet$$, $$'2001:db8::/32'::cidr$$, $$'08:00:2b:01:02:03'::macaddr$$,
    $$B'101'::bit(3)$$, $$B'10101'::varbit$$, $$'a:1 fat:2'::tsvector$$, $$'fat & cat'::tsquery$$, $$'0/16B3748'::pg_lsn$$,
    $$'green'::color$$, $$42::small$$, $$ROW(1, 'x')::pair$$, $$ROW(NULL, NULL)::pair$$,
    $$'{1,2,NULL}'::int[]$$, $$'{}'::int[]$$, $$'{{a,b},{c,d}}'::text[]$$, $$'[0:1]={1,2}'::int[]$$,
    $$'{red,blue}'::color[]$$, $$ARRAY[ROW(1, 'x')::pair, NULL]$$,
    $$'[1,5)'::int4range$$, $$'empty'::numrange$$, $$'(,2.50]'::numrange$$, $$'[2026-01-01,)'::daterange$$,
    $$'{[1,3),[5,7)}'::int4multirange$$, $$'{}'::int4multirange$$,
    $$'pg_class'::regclass$$, $$'fingerprint.referenced'::regclass$$, $$'int4'::regtype$$, $$'fingerprint.color'::regtype$$,
    $$'pg_catalog'::regnamespace$$, $$'english'::regconfig$$, $$'pg_catalog.int4pl(int,int)'::regprocedure$$,
    $$NULL::int$$, $$NULL::text$$]) WITH ORDINALITY u (value, nr)
ORDER BY nr;
-- many columns take another way through the code
SELECT fp('SELECT ' || string_agg(format('%s AS c%s', i, i), ', ') || ' FROM generate_series(1, 2)') AS wide
FROM generate_series(1, 150) i;
-- many rows, each of them several times
SELECT fp('SELECT i % 5000 AS k, md5((i % 5000)::text) AS v FROM generate_series(1, 20000) i') AS many;

--
-- The set of rows: neither their order nor how often each is there
--

CREATE TABLE rows AS SELECT i AS k, md5(i::text) AS v, NULLIF(i % 7, 0) AS n FROM generate_series(1, 1000) i;
SELECT idem_fingerprint('rows') AS rows_fp \gset
SELECT fp('SELECT * FROM rows ORDER BY v') = :'rows_fp' AS shuffled,
       fp('SELECT * FROM rows ORDER BY k DESC') = :'rows_fp' AS reversed,
       fp('SELECT * FROM rows UNION ALL SELECT * FROM rows') = :'rows_fp' AS twice,
       fp('SELECT * FROM rows UNION ALL SELECT * FROM rows WHERE k < 10 ORDER BY 2') = :'rows_fp' AS some_twice,
       fp('SELECT n, v, k FROM rows') = :'rows_fp' AS columns_in_another_order;
SELECT fp('SELECT * FROM rows WHERE k > 1') = :'rows_fp' AS one_less,
       fp('SELECT * FROM rows UNION ALL SELECT 0, '''', 0') = :'rows_fp' AS one_more,
       fp('SELECT k, CASE k WHEN 500 THEN v || '' '' ELSE v END AS v, n FROM rows') = :'rows_fp' AS one_value,
       fp('SELECT k, v, coalesce(n, 0) AS n FROM rows') = :'rows_fp' AS zero_for_null;
-- two rows that swap a value, two columns that swap theirs
SELECT same('SELECT 1 AS a, 2 AS b UNION ALL SELECT 3, 4', 'SELECT 1 AS a, 4 AS b UNION ALL SELECT 3, 2') AS rows_swapped,
       same('SELECT 1 AS a, 2 AS b', 'SELECT 2 AS a, 1 AS b') AS columns_swapped;
-- whatever kind of relation they come from
CREATE VIEW v AS SELECT * FROM rows;
CREATE MATERIALIZED VIEW m AS SELECT * FROM rows;
CREATE UNLOGGED TABLE u AS SELECT * FROM rows;
CREATE TABLE p (LIKE rows) PARTITION BY HASH (k);
CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE p1 (n int, extra int, v text, k int);
ALTER TABLE p1 DROP extra;
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO p SELECT * FROM rows;
SELECT relation, idem_fingerprint(relation) = :'rows_fp' AS same FROM unnest('{v,m,u,p}'::regclass[]) relation;

--
-- The names of the columns, and which of them
--

SELECT same('SELECT 1 AS a, 2 AS b', 'SELECT 1 AS a, 2 AS c') AS renamed,
       same('SELECT 1 AS a, 2 AS b', 'SELECT 1 AS b, 2 AS a') AS names_swapped,
       same('SELECT 1 AS a', 'SELECT 1 AS "A"') AS upper_case,
       same('SELECT 1 AS ab, 2 AS c', 'SELECT 1 AS a, 2 AS bc') AS boundary_moved,
       same('SELECT 1 AS a', 'SELECT 1 AS a, NULL::int AS b') AS null_column;
SELECT idem_fingerprint('rows', '{k,v,n}') = :'rows_fp' AS all_named,
       idem_fingerprint('rows', '{n,k,v}') = :'rows_fp' AS in_another_order,
       idem_fingerprint('rows', '{k,v}') = :'rows_fp' AS fewer,
       idem_fingerprint('rows', '{k,v}') = fp('SELECT v, k FROM rows') AS like_a_narrower_table,
       idem_fingerprint('rows', '{n}') = fp('SELECT DISTINCT n FROM rows') AS distinct_values;
-- no columns at all
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
\set VERBOSITY sqlstate
SELECT idem_fingerprint('no_columns') IS NULL;
\set VERBOSITY default

--
-- Values by their image
--

SELECT a, b, same('SELECT ' || a || ' AS v', 'SELECT ' || b || ' AS v') AS same
FROM (VALUES
    (1, $$NULL::text$$, $$''::text$$),
    (2, $$''::text$$, $$' '::text$$),
    (3, $$'a'::text$$, $$'A'::text$$),
    (4, $$'é'::text$$, $$U&'e\0301'::text$$),
    (5, $$'1'::text$$, $$1$$),
    (6, $$1$$, $$1::bigint$$),
    (7, $$1.0$$, $$1.00$$),
    (8, $$0.0::float8$$, $$'-0'::float8$$),
    (9, $$'NaN'::float8$$, $$'Infinity'::float8$$),
    (10, $$'{"a":1}'::json$$, $$'{"a": 1}'::json$$),
    (11, $$'{"a":1}'::jsonb$$, $$'{"a": 1}'::jsonb$$),
    (12, $$'{}'::int[]$$, $$NULL::int[]$$),
    (13, $$'{1,2}'::int[]$$, $$'[0:1]={1,2}'::int[]$$),
    (14, $$'{1,2,3,4}'::int[]$$, $$'{{1,2},{3,4}}'::int[]$$),
    (15, $$'{1,NULL}'::int[]$$, $$'{1}'::int[]$$),
    (16, $$'{ab,c}'::text[]$$, $$'{a,bc}'::text[]$$),
    (17, $$'{"",a}'::text[]$$, $$'{NULL,a}'::text[]$$),
    (18, $$'[1,2]'::int4range$$, $$'[1,3)'::int4range$$),
    (19, $$'[1,2]'::numrange$$, $$'[1,2)'::numrange$$),
    (20, $$'[1,2]'::numrange$$, $$'[1.0,2]'::numrange$$),
    (21, $$'empty'::int4range$$, $$'(,)'::int4range$$),
    (22, $$'(,1)'::numrange$$, $$'(1,)'::numrange$$),
    (23, $$ROW(1, NULL)::pair$$, $$ROW(1, '')::pair$$),
    (24, $$ROW(NULL, NULL)::pair$$, $$NULL::pair$$),
    (25, $$'((0,0),(1,1))'::box$$, $$'((5,5),(6,6))'::box$$),
    (26, $$interval '1 month'$$, $$interval '30 days'$$),
    (27, $$'a'::text$$, $$'a'::varchar(9)$$),
    (28, $$42$$, $$42::small$$),
    (29, $$'2026-01-01 00:00+00'::timestamptz$$, $$'2026-01-01 01:00+01'::timestamptz$$)) AS x (nr, a, b)
ORDER BY nr;
-- content that looks like other content followed by a NULL
SELECT same($$SELECT E'a\001'::text AS a, NULL::text AS b$$, $$SELECT 'a'::text AS a, E'\001'::text AS b$$) AS same;

-- of enums the label counts, not the order nor the type
CREATE TYPE other_color AS ENUM ('blue', 'green', 'red');
SELECT same($$SELECT 'red'::color AS c$$, $$SELECT 'red'::other_color AS c$$) AS same_label,
       same($$SELECT 'red'::color AS c$$, $$SELECT 'blue'::color AS c$$) AS another_label;
CREATE TABLE colored (c color);
INSERT INTO colored VALUES ('red');
SELECT idem_fingerprint('colored') AS red \gset
ALTER TYPE color RENAME VALUE 'red' TO 'rouge';
SELECT idem_fingerprint('colored') = :'red' AS label_renamed;
ALTER TYPE color RENAME VALUE 'rouge' TO 'red';
ALTER TYPE color ADD VALUE 'orange' BEFORE 'green';
SELECT idem_fingerprint('colored') = :'red' AS label_added;

-- of reg* types the qualified name counts, whatever search_path and OID are
CREATE TABLE names (c regclass, t regtype, p regproc, o regoperator);
INSERT INTO names VALUES ('referenced', 'color', 'fp', '=(int,int)');
SELECT idem_fingerprint('names') AS names_fp \gset
SET search_path = pg_catalog, public;
SELECT public.idem_fingerprint('fingerprint.names') = :'names_fp' AS another_path;
SET search_path = fingerprint, public;
CREATE SCHEMA fingerprint_elsewhere;
CREATE TABLE fingerprint_elsewhere.referenced (k int);
UPDATE names SET c = 'fingerprint_elsewhere.referenced';
SELECT idem_fingerprint('names') = :'names_fp' AS another_schema;
DROP TABLE referenced;
CREATE TABLE referenced (k int);
UPDATE names SET c = 'referenced';
SELECT idem_fingerprint('names') = :'names_fp' AS made_anew;
SELECT idem_fingerprint('names', '{c}') AS of_referenced \gset
ALTER TABLE referenced RENAME TO renamed;
SELECT idem_fingerprint('names', '{c}') = :'of_referenced' AS renamed;
DROP SCHEMA fingerprint_elsewhere CASCADE;

-- settings that change how values look in text do not count
CREATE TABLE shown (a timestamptz, b interval, c float8, d bytea, e date, f regclass, g xid8, h text COLLATE "C");
INSERT INTO shown VALUES ('2026-11-20 12:00+00', '-1 day -2 hours', 1.0 / 3, '\xdeadbeef', '2026-11-20', 'shown', '5', 'x');
SELECT idem_fingerprint('shown') AS shown_fp \gset
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'German';
SET IntervalStyle = 'sql_standard';
SET extra_float_digits = -10;
SET bytea_output = 'escape';
SET quote_all_identifiers = on;
SELECT idem_fingerprint('shown') = :'shown_fp' AS same;
RESET TimeZone;
RESET DateStyle;
RESET IntervalStyle;
RESET extra_float_digits;
RESET bytea_output;
RESET quote_all_identifiers;

--
-- How values are stored does not count
--

CREATE TABLE long (k int, v text, a text[], r pair, j jsonb, b bytea);
INSERT INTO long
SELECT i, repeat('abc' || i, 3000 * i), ARRAY[repeat('x', 20000), NULL, 'y' || i], ROW(i, repeat('z', 30000))::pair,
       jsonb_build_object('k', repeat('j', 40000)), decode(repeat('00ff', 5000), 'hex')
FROM generate_series(1, 3) i;
SELECT idem_fingerprint('long') AS long_fp \gset
SELECT :'long_fp' AS long;
-- every storage, rewritten; EXTERNAL keeps it out of line and not compressed
CREATE TABLE stored (LIKE long);
ALTER TABLE stored ALTER v SET STORAGE EXTERNAL, ALTER a SET STORAGE EXTERNAL, ALTER r SET STORAGE EXTERNAL,
    ALTER j SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
INSERT INTO stored SELECT k, v || '', a || '{}'::text[], ROW((r).a, (r).b || '')::pair, j || '{}'::jsonb, b || '' FROM long;
SELECT pg_column_size(l.v) < pg_column_size(s.v) AS stored_otherwise FROM long l JOIN stored s USING (k) WHERE k = 3;
SELECT idem_fingerprint('stored') = :'long_fp' AS external;
TRUNCATE stored;
ALTER TABLE stored ALTER v SET STORAGE MAIN, ALTER a SET STORAGE MAIN, ALTER j SET STORAGE EXTENDED;
INSERT INTO stored SELECT k, v || '', a || '{}'::text[], r, j || '{}'::jsonb, b FROM long;
SELECT idem_fingerprint('stored') = :'long_fp' AS main;
-- LZ4, where the server has it
DO $$
BEGIN
    ALTER TABLE fingerprint.stored ALTER v SET COMPRESSION lz4, ALTER a SET COMPRESSION lz4, ALTER j SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END $$;
TRUNCATE stored;
INSERT INTO stored SELECT k, v || '', a || '{}'::text[], r, j || '{}'::jsonb, b FROM long;
SELECT idem_fingerprint('stored') = :'long_fp' AS lz4;
-- VACUUM FULL and CLUSTER write the table anew
VACUUM FULL long;
SELECT idem_fingerprint('long') = :'long_fp' AS vacuum_full;
-- compressed inside a composite or an array, or not
SELECT same($$SELECT ROW(1, v)::pair AS r, ARRAY[v] AS a FROM long WHERE k = 1$$,
            $$SELECT ROW(1, v || '')::pair AS r, ARRAY[v || ''] AS a FROM long WHERE k = 1$$) AS nested;
-- an array that could have NULLs and has none; one that a function built
SELECT same($$SELECT (ARRAY[1, 2, NULL])[1:2] AS a$$, $$SELECT ARRAY[1, 2] AS a$$) AS null_bitmap,
       same($$SELECT array_agg(i) AS a FROM generate_series(1, 3) i$$, $$SELECT '{1,2,3}'::int[] AS a$$) AS built;
-- a short value with a long header, as a default of a column that was added
CREATE TABLE added AS SELECT 1 AS k;
ALTER TABLE added ADD v text DEFAULT 'later', ADD n int;
SELECT idem_fingerprint('added') = fp($$SELECT 1 AS k, 'later'::text AS v, NULL::int AS n$$) AS column_added;
-- dropped columns, of a table and of a composite type
ALTER TABLE added DROP n;
SELECT idem_fingerprint('added') = fp($$SELECT 1 AS k, 'later'::text AS v$$) AS column_dropped;
CREATE TYPE triple AS (a int, x float8, b text);
CREATE TABLE composites (r triple);
INSERT INTO composites VALUES (ROW(1, 2, 'x'));
ALTER TYPE triple DROP ATTRIBUTE x;
SELECT idem_fingerprint('composites') = fp($$SELECT ROW(1, 'x')::fingerprint.pair AS r$$) AS attribute_dropped;

--
-- The memory that it may take does not count
--

CREATE TABLE large AS SELECT i % 30000 AS k, md5((i % 30000)::text) AS v FROM generate_series(1, 60000) i;
SET work_mem = '256MB';
SELECT idem_fingerprint('large') AS large_fp \gset
SELECT :'large_fp' AS large;
SET work_mem = '64kB';
SELECT idem_fingerprint('large') = :'large_fp' AS small_memory;
SET hash_mem_multiplier = 1;
SELECT idem_fingerprint('large') = :'large_fp' AS smaller_memory,
       fp('SELECT * FROM large ORDER BY v') = :'large_fp' AS shuffled,
       fp('SELECT * FROM large WHERE k <> 29999') = :'large_fp' AS one_less;
SELECT idem_fingerprint('rows') = :'rows_fp' AS fits;
-- the same in a merge
CREATE TABLE large_t (k int PRIMARY KEY, v text);
SELECT status, rows_staged, rows_duplicate, rows_inserted, fingerprint = :'large_fp' AS same
FROM idem_merge('large', 'large_t', '{k}', 'large');
RESET work_mem;
RESET hash_mem_multiplier;
SELECT status, rows_staged, rows_duplicate, rows_inserted, fingerprint = :'large_fp' AS same
FROM idem_merge('large', 'large_t', '{k}', 'large');

--
-- What a merge covers: the columns that it merges, as staged, without audit columns
--

CREATE TABLE t (k int PRIMARY KEY, v varchar(20), price numeric(8,2), loaded_at timestamptz, other int GENERATED ALWAYS AS (k + 1) STORED);
CREATE TABLE s (k bigint, v text, price numeric, loaded_at timestamptz, other int);
INSERT INTO s VALUES (1, 'one', 1.5, '2026-01-01 00:00+00', 9);
SET client_min_messages = warning;
SELECT status, fingerprint = idem_fingerprint('s', '{k,v,price}') AS without_audit_and_generated
FROM idem_merge('s', 't', '{k}', 'b1', audit_cols => '{loaded_at}');
SELECT fingerprint_columns FROM idem_ledger WHERE target = 't'::regclass;
-- audit columns may differ in a retry
UPDATE s SET loaded_at = now(), other = 10;
SELECT status FROM idem_merge('s', 't', '{k}', 'b1', audit_cols => '{loaded_at}');
INSERT INTO s SELECT k, v, price, NULL, other FROM s;
SELECT status FROM idem_merge('s', 't', '{k}', 'b1', audit_cols => '{loaded_at}');
-- as staged: what becomes the same value by a cast is another content
UPDATE s SET price = 1.500;
SELECT dry.fingerprint = idem_fingerprint('s', '{k,v,price}') AS of_staged_values, rows_unchanged, rows_updated
FROM idem_merge('s', 't', '{k}', audit_cols => '{loaded_at}', dry_run => true) dry;
\set VERBOSITY sqlstate
SELECT status FROM idem_merge('s', 't', '{k}', 'b1', audit_cols => '{loaded_at}');
\set VERBOSITY default
UPDATE s SET price = 1.5;
-- the target's types and columns do not matter
ALTER TABLE t ALTER price TYPE numeric(12,4), ALTER v TYPE text, ADD added int DEFAULT 1;
SELECT status FROM idem_merge('s', 't', '{k}', 'b1', audit_cols => '{loaded_at}');
-- nor does the order of the columns or the kind of staging
CREATE VIEW s_view AS SELECT loaded_at, price, k, v FROM s;
SELECT status FROM idem_merge('s_view', 't', '{k}', 'b1', audit_cols => '{loaded_at}');

SET client_min_messages = warning;
DROP SCHEMA fingerprint CASCADE;
