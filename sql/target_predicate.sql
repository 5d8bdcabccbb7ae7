--
-- target_predicate: what is scanned depends on it, what comes of the merge
-- does not.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA target_predicate;
SET search_path = target_predicate, public;

--
-- Partitions that the condition excludes are not read
--
CREATE TABLE sales (day date, id int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE sales_09 PARTITION OF sales FOR VALUES FROM ('2026-09-01') TO ('2026-10-01');
CREATE TABLE sales_10 PARTITION OF sales FOR VALUES FROM ('2026-10-01') TO ('2026-11-01');
CREATE TABLE sales_11 PARTITION OF sales FOR VALUES FROM ('2026-11-01') TO ('2026-12-01');
INSERT INTO sales SELECT date '2026-09-01' + i % 91, i, 'v' || i FROM generate_series(1, 9000) i;
CREATE TABLE staged AS
SELECT day, id, v || CASE WHEN id % 10 = 0 THEN '!' ELSE '' END AS v FROM sales WHERE day >= '2026-11-01';
ANALYZE sales, staged;

-- How often this session has scanned a table, and its indexes.
CREATE FUNCTION scans(OUT rel regclass, OUT seq bigint, OUT idx bigint) RETURNS SETOF record LANGUAGE sql AS
$$ SELECT relid::regclass, seq_scan, coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables $$;

-- A merge, which is undone, and what of the target it has read.
CREATE FUNCTION try_merge(predicate text, staging text DEFAULT 'staged', target text DEFAULT 'sales', dry boolean DEFAULT false)
RETURNS TABLE (said text, part regclass, read text, scanned boolean) LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := (SELECT jsonb_object_agg(rel, ARRAY[seq, idx]) FROM scans());
    summary text;
BEGIN
    BEGIN
        SELECT m.summary INTO summary
        FROM idem_merge(staging::regclass, target::regclass, dry_run => dry, target_predicate => predicate) m;
        RAISE EXCEPTION USING ERRCODE = 'TT001';
    EXCEPTION WHEN SQLSTATE 'TT001' THEN
    END;
    RETURN QUERY
    SELECT summary, s.rel, CASE WHEN s.seq > 0 OR s.idx > 100 THEN 'much' WHEN s.idx = 0 THEN 'nothing'
                                ELSE format('%s rows', s.idx) END, s.seq > 0
    FROM (SELECT n.rel, n.seq - coalesce(before #>> ARRAY[n.rel::text, '0'], '0')::int,
                 n.idx - coalesce(before #>> ARRAY[n.rel::text, '1'], '0')::int FROM scans() n) AS s (rel, seq, idx)
    WHERE s.rel = target::regclass AND target <> 'sales' OR s.rel IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = target::regclass)
    ORDER BY s.rel::text;
END $$;
-- (Rows that are written are found once more, by index.)
SELECT said, part, read FROM try_merge(NULL);
SELECT said, part, read FROM try_merge($$day >= date '2026-11-01'$$);
SELECT said, part, read FROM try_merge($$day >= date '2026-11-01'$$, dry => true);
-- two rows are where the condition does not lead: they alone are looked up there
INSERT INTO staged VALUES ('2026-09-01', 91, 'v91'), ('2026-09-02', 92, 'v92!');
SELECT said, part, read FROM try_merge($$day >= date '2026-11-01'$$);
SELECT said, part, read FROM try_merge($$day >= date '2026-11-01'$$, dry => true);
SELECT said, part, read FROM try_merge(NULL);

-- An index serves a condition on other columns
CREATE TABLE events (id int PRIMARY KEY, at timestamp NOT NULL, v text);
CREATE INDEX ON events (at);
INSERT INTO events SELECT i, timestamp '2026-01-01' + i * interval '1 minute', 'v' || i FROM generate_series(1, 20000) i;
CREATE TABLE recent AS SELECT id, at, v || '!' AS v FROM events WHERE id > 18000;
ANALYZE events, recent;
SELECT engine FROM idem_explain('recent', 'events', target_predicate => $$at >= timestamp '2026-01-13 12:01'$$);
SET idempotent_ingest.engine = native;
SELECT engine FROM idem_explain('recent', 'events', target_predicate => 'true');
SET idempotent_ingest.engine = sql;
SELECT said, part, scanned FROM try_merge(NULL, 'recent', 'events');
SELECT said, part, scanned FROM try_merge($$at >= timestamp '2026-01-13 12:01'$$, 'recent', 'events');
RESET idempotent_ingest.engine;

--
-- The result is that without it: for conditions that select much, little and
-- nothing, or something else at each row
--
CREATE TABLE t (
    k int PRIMARY KEY,
    version int,
    v text,
    needed text NOT NULL,                       -- staging lacks it
    positive int DEFAULT 1 CHECK (positive > 0),
    n serial
);
CREATE TABLE nullable (a int, b text, v text, UNIQUE NULLS NOT DISTINCT (a, b));
CREATE TABLE keys (k int PRIMARY KEY);
CREATE TABLE s (k int, version int, v text);
CREATE TABLE nullable_s (a int, b text, v text);
CREATE TABLE fired (k int, what text);
CREATE TABLE marker (i int);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fired VALUES (new.k, TG_OP);
    RETURN CASE WHEN new.v <> 'refused' THEN new END;
END $$;

-- What a merge returns, and leaves in the target: rows, with those marked that
-- are old and were locked, the sequence, and what triggers saw. Then everything
-- is undone.
CREATE FUNCTION outcome(staging regclass, target regclass, arguments text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    said text;
    rows text;
    others text;
    first text;
BEGIN
    BEGIN
        PERFORM setval('t_n_seq', 1000);
        INSERT INTO marker VALUES (1) RETURNING xmin::text INTO first;
        EXECUTE format('SELECT concat_ws('' '', summary, fingerprint) FROM idem_merge(%L, %L %s)', staging, target, arguments)
        INTO said;
        EXECUTE format('SELECT concat_ws('' '', count(*) FILTER (WHERE locked), md5(string_agg(x, '','' ORDER BY x)))
                        FROM (SELECT x::text, xmin::text::bigint < %1$s AND xmax::text::bigint >= %1$s FROM %2$s x) AS x (x, locked)',
                       first, target)
        INTO rows;
        SELECT concat_ws(' ', (SELECT last_value FROM t_n_seq), string_agg(concat_ws(' ', k, what), ',' ORDER BY k, what))
        INTO others FROM fired;
        RAISE EXCEPTION USING ERRCODE = 'TT001';
    EXCEPTION
        WHEN SQLSTATE 'TT001' THEN
            RETURN concat_ws(' | ', said, rows, others);
        WHEN OTHERS THEN
            RETURN concat_ws(' ', SQLSTATE, SQLERRM);
    END;
END $$;
CREATE FUNCTION differences(staging regclass, target regclass, arguments text, predicates text[],
                            OUT plain text, OUT compared bigint, OUT different text[]) LANGUAGE sql AS $$
    SELECT p, count(*), array_agg(p2) FILTER (WHERE outcome(staging, target, format('%s, target_predicate => %L', arguments, p2)) <> p)
    FROM (SELECT outcome(staging, target, arguments)) AS x (p), unnest(predicates) AS p2
    GROUP BY p
$$;

INSERT INTO t SELECT i, 5, 'v' || i, 'n' || i FROM generate_series(1, 40) i;
INSERT INTO s SELECT i, 4 + i % 3, 'v' || i || CASE WHEN i % 4 = 0 THEN '!' ELSE '' END FROM generate_series(1, 40) i;
SELECT arguments, split_part(plain, ' | ', 1) AS said, compared, different
FROM unnest(ARRAY['', ', version_cols => ''{version}''', ', mode => ''insert''', ', update_cols => ''{}''',
                  ', exclude_cols => ''{v}''', ', version_cols => ''{version}'', on_stale => ''error''',
                  ', version_cols => ''{version}'', on_stale => ''apply''', ', dry_run => true']) AS a (arguments),
     differences('s', 't', arguments, '{true,false,null,k <= 20,k % 2 = 0,"random() < 0.5","v like ''%1%''"}');

-- with new rows: those want a value for the column that staging lacks
INSERT INTO s SELECT i, 1, 'new' FROM generate_series(41, 50) i;
SELECT split_part(plain, ' | ', 1) AS said, compared, different
FROM differences('s', 't', '', '{true,false,k <= 20}');
ALTER TABLE t ALTER needed SET DEFAULT 'default';
SELECT arguments, split_part(plain, ' | ', 1) AS said, compared, different
FROM unnest(ARRAY['', ', version_cols => ''{version}''', ', mode => ''insert''', ', update_cols => ''{}''']) AS a (arguments),
     differences('s', 't', arguments, '{true,false,null,k <= 20,k % 2 = 0,"random() < 0.5","v like ''%1%''"}');

-- BEFORE triggers see what they would see without it
CREATE TRIGGER fire BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION fire();
UPDATE s SET v = 'refused' WHERE k IN (4, 45);
SELECT split_part(plain, ' | ', 1) AS said, plain LIKE '%,45 INSERT,%' AS fires, compared, different
FROM unnest(ARRAY['', ', update_cols => ''{}''']) AS a (arguments),
     differences('s', 't', arguments, '{true,false,k <= 20,k % 2 = 0}');

-- NULL as a key, a key only, and casts before keys are compared
INSERT INTO nullable SELECT nullif(i % 5, 0), nullif('b' || i, 'b7'), 'v' || i FROM generate_series(1, 20) i;
INSERT INTO nullable_s SELECT a, b, v || CASE WHEN b = 'b9' OR a IS NULL THEN '!' ELSE '' END FROM nullable;
UPDATE nullable_s SET v = 'changed' WHERE b IS NULL;
INSERT INTO nullable_s VALUES (NULL, NULL, 'new'), (5, NULL, 'new');
SELECT split_part(plain, ' | ', 1) AS said, compared, different
FROM differences('nullable_s', 'nullable', ', ''{a,b}''', '{true,false,a > 2,a IS NULL,"b IS NULL"}');
-- other tables in the condition are those that the caller sees, by whatever name
CREATE TEMP TABLE l (a int);
CREATE TEMP TABLE e (a int);
SELECT split_part(plain, ' | ', 1) AS said, compared, different
FROM differences('nullable_s', 'nullable', ', ''{a,b}''',
                 '{a IN (SELECT k FROM s),a IN (SELECT k FROM t),a IN (SELECT l.a FROM l),EXISTS (SELECT FROM e WHERE e.a = nullable.a)}');
SET search_path = public;
SELECT summary FROM idem_merge('target_predicate.nullable_s', 'target_predicate.nullable', '{a,b}', dry_run => true,
                               target_predicate => 'a IN (SELECT k FROM target_predicate.s)');
SET search_path = target_predicate, public;
INSERT INTO keys SELECT generate_series(1, 10);
SELECT split_part(plain, ' | ', 1) AS said, compared, different
FROM differences('s', 'keys', ', on_schema_change => ''ignore''', '{true,false,k < 5}');

-- A replay needs no look at the target, and another condition is no mismatch;
-- nor is the condition a part of a derived id.
CREATE TABLE once (k int PRIMARY KEY, v text);
CREATE VIEW two AS SELECT k, v FROM s WHERE k <= 2;
SELECT summary FROM idem_merge('two', 'once', batch_id => 'b', target_predicate => 'k < 100');
SELECT summary FROM idem_merge('two', 'once', batch_id => 'b', target_predicate => 'k < 99');
SELECT summary FROM idem_merge('two', 'once', batch_id => 'b');
SELECT summary FROM idem_merge('two', 'once', target_predicate => 'k < 100');
SELECT summary FROM idem_merge('two', 'once', target_predicate => 'k > 100');
SELECT count(*), max(options::text) FROM idem_batches WHERE target = 'once'::regclass;

--
-- What the condition can be
--
CREATE FUNCTION try(predicate text, arguments text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    detail text;
    context text;
BEGIN
    EXECUTE format('SELECT summary FROM idem_merge(''two'', ''once'', dry_run => true, target_predicate => %L %s)', predicate, arguments)
    INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, context = PG_EXCEPTION_CONTEXT;
    RETURN concat_ws(' / ', SQLSTATE, SQLERRM, nullif(detail, ''), substring(context from 'argument "target_predicate"'));
END $$;
SELECT predicate, try(predicate) FROM unnest(ARRAY[
    'k > 0', 'once.k > 0 AND once.v IS NOT NULL', 'k > 0 -- and so on', '/* all */ true', 'k IN (SELECT k FROM keys)',
    'EXISTS (SELECT FROM two AS t WHERE t.k = once.k)', 'once IS NOT NULL', 'tableoid = ''once''::regclass', 'v COLLATE "C" > ''a''',
    '', 'k >', 'k > 0) OR (true', 'k > 0, true', 'k > 0 AS x', 'k > 0 FROM keys', 'true WHERE false', 'true ORDER BY 1', 'true LIMIT 1', 'DISTINCT true', 'true FOR UPDATE', 'true; SELECT true', '/* ', 'k', 's.k > 0',
    'nothing > 0', 't.k > 0', 'count(*) > 0', 'rank() OVER () > 0', 'generate_series(1, 2) > 0', '$1 > 0', 'k > ''x''']) AS p (predicate);
SELECT try('true', ', mode => ''update''');
SELECT try(NULL);
-- an error points into the condition
SELECT summary FROM idem_merge('two', 'once', target_predicate => 'k > 0 AND nothing > 0');
-- a column may have any name
CREATE TABLE "odd" ("k" int PRIMARY KEY, "e" text, "l" text, "day of ""week""" int, "select" int);
CREATE TABLE odd_s AS SELECT i AS k, 'e' AS e, 'l' AS l, i AS "day of ""week""", 0 AS "select" FROM generate_series(1, 3) i;
SELECT summary FROM idem_merge('odd_s', 'odd', target_predicate => '"day of ""week""" > 2 AND odd.select = 0 AND e = l');
UPDATE odd_s SET "select" = 1 WHERE k < 3;
SELECT summary FROM idem_merge('odd_s', 'odd', target_predicate => '"day of ""week""" > 2 AND odd.select = 0 AND e <> l');

-- The statement
SELECT statement FROM idem_explain('nullable_s', 'nullable', '{a,b}', target_predicate => 'nullable.a > 0 AND v ~ ''x''') \g (tuples_only format=unaligned)

--
-- The caller needs the right to read what it names, and no more than that
--
CREATE ROLE regress_predicate;
GRANT USAGE ON SCHEMA target_predicate TO regress_predicate;
GRANT SELECT ON two TO regress_predicate;
GRANT INSERT (k, v), UPDATE (v), SELECT (k, v) ON t TO regress_predicate;
GRANT ALL ON SEQUENCE t_n_seq TO regress_predicate;
GRANT INSERT ON fired TO regress_predicate;
SET ROLE regress_predicate;
SELECT summary FROM idem_merge('two', 't', target_predicate => 'k < 2');
\set SHOW_CONTEXT never
SELECT summary FROM idem_merge('two', 't', batch_id => 'b', target_predicate => 'positive > 0');
RESET ROLE;

-- A queued merge has it, too
SELECT idem_enqueue('two', 'once', batch_id => 'q', target_predicate => 'nothing > 0');
SELECT idem_enqueue('two', 'once', batch_id => 'q', target_predicate => 'k < 100') IS NOT NULL AS enqueued;
SELECT target_predicate FROM idem_job WHERE batch_id = 'q';
CALL idem_run_jobs() \g /dev/null
SELECT status FROM idem_wait((SELECT job_id FROM idem_jobs WHERE batch_id = 'q'));
SELECT engine, rows_unchanged FROM idem_batches WHERE batch_id = 'q';

SET client_min_messages = warning;
DROP SCHEMA target_predicate CASCADE;
DROP OWNED BY regress_predicate;
DROP ROLE regress_predicate;
