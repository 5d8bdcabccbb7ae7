--
-- Each released version can be updated to the current one: that leaves what a
-- fresh installation has, and the ledger as it was. What the old scripts define
-- works with the new library.
--
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS idempotent_ingest CASCADE;
RESET client_min_messages;
CREATE SCHEMA oldversions;
SET search_path = oldversions, public;
\pset format unaligned

-- Everything that belongs to the extension, one line for each property.
CREATE FUNCTION catalog() RETURNS SETOF text LANGUAGE sql AS $$
    WITH member AS (
        SELECT d.classid, d.objid, o.type, o.identity
        FROM pg_depend d, pg_extension e, pg_identify_object(d.classid, d.objid, 0) o
        WHERE e.extname = 'idempotent_ingest' AND d.refclassid = 'pg_extension'::regclass
          AND d.refobjid = e.oid AND d.deptype = 'e'
          -- the rows and arrays of tables come with them
          AND o.type <> 'type'
    ), relation AS (
        SELECT c.*, c.oid::regclass::text AS name
        FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
    )
    SELECT concat_ws(' ', type, identity, 'comment:', obj_description(objid, classid::regclass::name)) FROM member
    UNION ALL
    SELECT concat_ws(' ', type, identity, 'initial rights:', i.objsubid, i.privtype, i.initprivs)
    FROM member m JOIN pg_init_privs i ON (i.classoid, i.objoid) = (m.classid, m.objid)
    UNION ALL
    -- NULL means the default
    SELECT concat_ws(' ', p.oid::regprocedure, a)
    FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
    CROSS JOIN unnest(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
    UNION ALL
    SELECT concat_ws(' ', p.oid::regprocedure, p.prokind, p.procost, p.prorows, p.prosupport, p.prosecdef,
                     p.proisstrict, p.provolatile, p.proparallel, pg_get_functiondef(p.oid))
    FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
    UNION ALL
    SELECT concat_ws(' ', name, relkind, relpersistence, relrowsecurity, relreplident, reloptions, relacl,
                     CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END)
    FROM relation
    UNION ALL
    SELECT concat_ws(' ', name, 'column', a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                     a.attcollation::regcollation, a.attstorage, a.attcompression, a.attstattarget, a.attidentity,
                     a.attgenerated, a.attacl,
                     -- later minor versions number the relations here
                     (SELECT array_agg(o) FROM unnest(a.attoptions) AS o WHERE o NOT LIKE 'pg_attver=%'),
                     pg_get_expr(f.adbin, f.adrelid),
                     'comment:', col_description(r.oid, a.attnum))
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef f ON (f.adrelid, f.adnum) = (a.attrelid, a.attnum)
    UNION ALL
    SELECT concat_ws(' ', name, 'constraint', c.conname, c.contype, c.convalidated, pg_get_constraintdef(c.oid))
    FROM relation r JOIN pg_constraint c ON c.conrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', name, 'index', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisclustered,
                     'comment:', obj_description(i.indexrelid, 'pg_class'))
    FROM relation r JOIN pg_index i ON i.indrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', name, 'trigger', pg_get_triggerdef(t.oid)) FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', name, 'rule', pg_get_ruledef(w.oid)) FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid
    UNION ALL
    SELECT concat_ws(' ', 'dumped', c.oid::regclass, c.condition)
    FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS c (oid, condition)
    WHERE e.extname = 'idempotent_ingest'
$$;

CREATE TABLE t (k int PRIMARY KEY, v text);
CREATE TABLE s (k int, v text);
INSERT INTO s VALUES (1, 'one'), (2, 'two');
CREATE ROLE regress_idem_loader;

--
-- 0.1.0, with the library of today
--
CREATE EXTENSION idempotent_ingest SCHEMA public VERSION '0.1.0';
CREATE TABLE version_0_1_0 AS SELECT catalog() AS line;
GRANT EXECUTE ON FUNCTION idem_merge TO regress_idem_loader WITH GRANT OPTION;
REVOKE EXECUTE ON FUNCTION idem_merge FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION idem_explain FROM PUBLIC;

SELECT count(*) > 0 AS has_a_catalog FROM version_0_1_0;
CREATE TABLE first_result AS SELECT * FROM idem_merge('s', 't', '{k}', 'b1', metadata => '{"file": "a"}');
SELECT summary, status, revision FROM first_result;
SELECT summary FROM idem_merge('s', 't', '{k}', 'b1');
SELECT summary FROM idem_merge('s', 't', '{k}', 'b1', on_replay => 'reapply');
SELECT engine IN ('native', 'sql') AS explained FROM idem_explain('s', 't', '{k}');
SELECT length(idem_fingerprint('s'));
SELECT idem_claim('c1', 't'), idem_claim('c1', 't');
SELECT idem_claim('c2'), idem_forget(NULL, 'c2', reason => 'test'), idem_claim('c2');
CREATE TABLE ledger_before AS
SELECT batch_id, operation, revision, fingerprint, rows_staged, rows_inserted, rows_unchanged, engine, applied_at, elapsed,
       role, options, metadata FROM idem_batches;
SELECT batch_id, operation, revision FROM idem_batches ORDER BY batch_id;

ALTER EXTENSION idempotent_ingest UPDATE;
SELECT extversion = (SELECT default_version FROM pg_available_extensions a WHERE a.name = extname) AS updated
FROM pg_extension WHERE extname = 'idempotent_ingest';

-- the ledger is as it was, and old batches are replayed
SELECT count(*) AS differences FROM (
    (TABLE ledger_before EXCEPT
     SELECT batch_id, operation, revision, fingerprint, rows_staged, rows_inserted, rows_unchanged, engine, applied_at,
            elapsed, role, options, metadata FROM idem_batches)
    UNION ALL
    (SELECT batch_id, operation, revision, fingerprint, rows_staged, rows_inserted, rows_unchanged, engine, applied_at,
            elapsed, role, options, metadata FROM idem_batches
     EXCEPT TABLE ledger_before)) AS d;
SELECT summary, revision FROM idem_merge('s', 't', '{k}', 'b1');
SELECT idem_claim('c1', 't'), idem_claim('c2');
INSERT INTO s VALUES (3, 'three');
SELECT summary FROM idem_merge('s', 't', '{k}', 'b2');

-- rights that users gave or took away are as they were
SELECT f::regproc, has_function_privilege('regress_idem_loader', f, 'EXECUTE WITH GRANT OPTION') AS loader,
       has_function_privilege('public', f, 'EXECUTE') AS public,
       (SELECT p.proacl IS NOT DISTINCT FROM i.initprivs FROM pg_proc p LEFT JOIN pg_init_privs i
            ON i.objoid = p.oid AND i.classoid = 'pg_proc'::regclass WHERE p.oid = f) AS initial
FROM unnest('{idem_merge,idem_explain}'::regproc[]::oid[]) AS f;
GRANT EXECUTE ON FUNCTION idem_merge, idem_explain TO PUBLIC;
REVOKE ALL ON FUNCTION idem_merge FROM regress_idem_loader;

--
-- Updated and fresh are the same
--
CREATE TABLE updated AS SELECT catalog() AS line;
DROP EXTENSION idempotent_ingest;
CREATE EXTENSION idempotent_ingest SCHEMA public;
CREATE TABLE fresh AS SELECT catalog() AS line;
SELECT 'only after the update' AS difference, line FROM (TABLE updated EXCEPT ALL TABLE fresh) AS d
UNION ALL
SELECT 'only when fresh', line FROM (TABLE fresh EXCEPT ALL TABLE updated) AS d
ORDER BY 1, 2;

SET client_min_messages = warning;
DROP SCHEMA oldversions CASCADE;
DROP ROLE regress_idem_loader;
