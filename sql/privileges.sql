--
-- Whoever calls: nobody gets more than plain SQL would give.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA privileges;
SET search_path = privileges, public;
\set SHOW_CONTEXT never

CREATE ROLE idem_p_owner;
CREATE ROLE idem_p_full;
CREATE ROLE idem_p_insert;
CREATE ROLE idem_p_column;
CREATE ROLE idem_p_none;
CREATE ROLE idem_p_outside;	-- every right on the tables, none on the schema
CREATE ROLE idem_p_user;	-- for the grid
GRANT USAGE ON SCHEMA privileges TO idem_p_owner, idem_p_full, idem_p_insert, idem_p_column, idem_p_none, idem_p_user;
GRANT CREATE ON SCHEMA privileges TO idem_p_owner;

-- Runs a statement as a role and undoes it; "ok", the SQLSTATE, or with
-- tell the whole error.
CREATE FUNCTION run_as(role text, statement text, tell boolean DEFAULT false) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    detail text;
    result text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role);
    EXECUTE statement INTO result;
    RAISE EXCEPTION SQLSTATE 'P0999';
EXCEPTION WHEN SQLSTATE 'P0999' THEN
    RETURN 'ok' || CASE WHEN tell THEN coalesce(': ' || result, '') ELSE '' END;
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN CASE WHEN tell THEN state || ': ' || message || coalesce(' | ' || NULLIF(detail, ''), '') ELSE state END;
END $$;

SET ROLE idem_p_owner;
CREATE TABLE t (k int PRIMARY KEY, v text, n int DEFAULT 0);
CREATE TABLE s (k int, v text);
INSERT INTO t VALUES (1, 'same'), (2, 'old');
INSERT INTO s VALUES (1, 'same'), (2, 'new'), (3, 'more');
GRANT SELECT, INSERT, UPDATE ON t TO idem_p_full, idem_p_outside;
GRANT INSERT ON t TO idem_p_insert;
GRANT SELECT (k, v), INSERT (k, v), UPDATE (v) ON t TO idem_p_column;
GRANT SELECT ON s TO idem_p_full, idem_p_insert, idem_p_column, idem_p_none, idem_p_outside;
RESET ROLE;
-- names cannot even be looked up without USAGE, numbers can
SELECT 't'::regclass::oid AS t_oid, 's'::regclass::oid AS s_oid \gset

\pset format unaligned

--
-- Six kinds of role
--

CREATE VIEW kinds AS
SELECT * FROM (VALUES (1, 'superuser', session_user::text), (2, 'owner', 'idem_p_owner'), (3, 'full', 'idem_p_full'),
    (4, 'insert only', 'idem_p_insert'), (5, 'columns', 'idem_p_column'), (6, 'none', 'idem_p_none'),
    (7, 'outside', 'idem_p_outside')) AS x (nr, kind, role);
SELECT kind, mode, run_as(role, format('SELECT summary FROM public.idem_merge(%s, %s, ''{k}'', mode => %L)', :s_oid, :t_oid, mode), true) AS merge
FROM kinds, unnest('{upsert,insert,update}'::text[]) WITH ORDINALITY m (mode, m_nr) ORDER BY nr, m_nr;
-- dry runs and plans need the same
SELECT kind, run_as(role, format('SELECT summary FROM public.idem_merge(%s, %s, ''{k}'', dry_run => true)', :s_oid, :t_oid), true) AS dry_run,
       run_as(role, format('SELECT engine IS NOT NULL FROM public.idem_explain(%s, %s, ''{k}'')', :s_oid, :t_oid), true) AS explain
FROM kinds ORDER BY nr;
-- and so do replays, also those that do not read staging
SELECT status FROM idem_merge('s', 't', '{k}', 'known');
SELECT kind, run_as(role, format('SELECT status FROM public.idem_merge(%s, %s, ''{k}'', ''known'')', :s_oid, :t_oid), true) AS replay,
       run_as(role, format('SELECT status FROM public.idem_merge(%s, %s, ''{k}'', ''known'', on_mismatch => ''skip'')', :s_oid, :t_oid), true) AS skip
FROM kinds ORDER BY nr;
-- the companions
SELECT kind, run_as(role, format('SELECT public.idem_claim(''new'', %s)', :t_oid), true) AS claim,
       run_as(role, 'SELECT public.idem_claim(''new'')', true) AS claim_for_myself,
       run_as(role, format('SELECT public.idem_forget(%s, ''known'')', :t_oid), true) AS forget,
       run_as(role, format('SELECT public.idem_forget(%s, ''known'', dry_run => true)', :t_oid), true) AS count,
       run_as(role, format('SELECT length(public.idem_fingerprint(%s))', :t_oid), true) AS fingerprint
FROM kinds ORDER BY nr;
SELECT kind, run_as(role, format('SELECT length(public.idem_fingerprint(%s, ''{v,k}''))', :t_oid), true) AS fingerprint_of_two
FROM kinds ORDER BY nr;
-- a claim with another fingerprint: what it was before is for those who may see the batch
SELECT idem_claim('printed', 't', fingerprint => 'secret');
SELECT kind, regexp_replace(run_as(role, format('SELECT public.idem_claim(''printed'', %s, fingerprint => ''guess'')', :t_oid), true),
                            ' at .*?( with.*)?\.$', ' at <time>\1.') AS claim
FROM kinds ORDER BY nr;
-- what they see: the batches of tables that they may SELECT from
SELECT kind, run_as(role, 'SELECT string_agg(target::oid::text || batch_id, '','') FROM public.idem_batches WHERE batch_id = ''known''', true)
       = 'ok: ' || :t_oid || 'known' AS sees_it
FROM kinds ORDER BY nr;

-- our own tables: no role can read or write them, nor set traps there
SELECT statement, run_as('idem_p_full', statement, true) AS full
FROM unnest(ARRAY[
    'SELECT count(*) FROM public.idem_ledger', 'SELECT count(*) FROM public.idem_audit',
    'DELETE FROM public.idem_ledger', 'TRUNCATE public.idem_ledger', 'UPDATE public.idem_ledger SET rows_staged = 0',
    'INSERT INTO public.idem_ledger DEFAULT VALUES', 'INSERT INTO public.idem_audit DEFAULT VALUES',
    'SELECT nextval(''public.idem_audit_audit_id_seq'')', 'SELECT last_value FROM public.idem_audit_audit_id_seq',
    'INSERT INTO public.idem_batches (batch_id) VALUES (''x'')', 'UPDATE public.idem_batches SET batch_id = ''x''',
    'DELETE FROM public.idem_batches', 'LOCK TABLE public.idem_ledger', 'CREATE INDEX ON public.idem_ledger (role)',
    'CREATE TRIGGER x BEFORE INSERT ON public.idem_ledger EXECUTE FUNCTION suppress_redundant_updates_trigger()',
    'CREATE RULE x AS ON INSERT TO public.idem_ledger DO INSTEAD NOTHING',
    'SELECT public.idem_merge(''privileges.s'', ''public.idem_ledger'', ''{target}'')']) WITH ORDINALITY u (statement, nr)
ORDER BY nr;
-- the internal functions are of no use to anybody
SELECT run_as('idem_p_none', 'SELECT public.idem_row_staged(NULL, 1)', true) AS by_null,
       run_as('idem_p_none', 'SELECT public.idem_row_staged(1, 1)', true) AS by_number,
       run_as('idem_p_none', 'SELECT public.idem_row_guard(0, 1, 2)', true) AS guard,
       run_as('idem_p_none', 'SELECT public.idem_column_default(0, 1::smallint, NULL::int)', true) AS column_default;

--
-- The grid: every set of rights that a role can have, in every mode, against
-- the statement that one would write by hand
--

CREATE TABLE grid (nr serial, rights text[], mode text, plain text, merge text);
CREATE FUNCTION compare(rights text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    one text;
    mode text;
    plain text;
BEGIN
    REVOKE ALL ON t, s FROM idem_p_user;
    FOREACH one IN ARRAY rights LOOP
        EXECUTE format('GRANT %s TO idem_p_user', one);
    END LOOP;
    FOREACH mode IN ARRAY '{upsert,insert,update}'::text[] LOOP
        plain := CASE mode
            WHEN 'upsert' THEN 'INSERT INTO privileges.t AS t (k, v) SELECT s.k, s.v FROM privileges.s AS s LEFT JOIN privileges.t AS t ON t.k = s.k
                                WHERE t.k IS NULL OR t.v IS DISTINCT FROM s.v
                                ON CONFLICT (k) DO UPDATE SET v = excluded.v WHERE t.v IS DISTINCT FROM excluded.v RETURNING t.k'
            WHEN 'insert' THEN 'INSERT INTO privileges.t AS t (k, v) SELECT s.k, s.v FROM privileges.s AS s LEFT JOIN privileges.t AS t ON t.k = s.k
                                WHERE t.k IS NULL ON CONFLICT (k) DO NOTHING RETURNING t.k'
            ELSE 'UPDATE privileges.t AS t SET v = s.v FROM privileges.s AS s WHERE t.k = s.k AND t.v IS DISTINCT FROM s.v RETURNING t.k' END;
        INSERT INTO grid (rights, mode, plain, merge)
        VALUES (rights, mode, run_as('idem_p_user', plain),
                run_as('idem_p_user', format('SELECT status FROM public.idem_merge(''privileges.s'', ''privileges.t'', ''{k}'', mode => %L)', mode)));
    END LOOP;
    REVOKE ALL ON t, s FROM idem_p_user;
END $$;

-- all subsets of table privileges, then all of column privileges
SELECT count(compare(ARRAY(SELECT g FROM unnest(ARRAY['SELECT ON s', 'SELECT ON t', 'INSERT ON t', 'UPDATE ON t', 'DELETE ON t']) WITH ORDINALITY u (g, i)
                           WHERE set & (1 << i::int - 1) <> 0)))
FROM generate_series(0, 31) set;
SELECT count(compare(ARRAY(SELECT g FROM unnest(ARRAY['SELECT (k) ON t', 'SELECT (v) ON t', 'INSERT (k) ON t', 'INSERT (v) ON t',
                                                      'UPDATE (k) ON t', 'UPDATE (v) ON t']) WITH ORDINALITY u (g, i)
                           WHERE set & (1 << i::int - 1) <> 0) || 'SELECT (k, v) ON s'::text))
FROM generate_series(0, 63) set;
SELECT count(compare(ARRAY(SELECT g FROM unnest(ARRAY['SELECT (k) ON s', 'SELECT (v) ON s']) WITH ORDINALITY u (g, i)
                           WHERE set & (1 << i::int - 1) <> 0) || 'SELECT ON t'::text || 'INSERT ON t'::text || 'UPDATE ON t'::text))
FROM generate_series(0, 3) set;
SELECT mode, plain, merge, count(*) FROM grid GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
-- where they differ
SELECT rights, mode, plain, merge FROM grid WHERE plain <> merge ORDER BY nr;

-- the same for a column that is written and not compared; a dry run needs what
-- the merge needs. The fourth mode is upsert with nothing to set on a match.
CREATE TABLE audit_t (k int PRIMARY KEY, v text, a text);
CREATE TABLE audit_s (k int, v text, a text);
GRANT SELECT ON audit_s TO idem_p_user;
INSERT INTO audit_t VALUES (1, 'old', 'first');
INSERT INTO audit_s VALUES (1, 'new', 'second'), (2, 'new', 'second');
CREATE TABLE audit_grid (nr serial, rights text[], mode text, plain text, merge text, dry_run text);
CREATE FUNCTION compare_audit(rights text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    one text;
    mode text;
    plain text;
    merge text;
BEGIN
    REVOKE ALL ON audit_t FROM idem_p_user;
    FOREACH one IN ARRAY rights || '{INSERT (k\, v),UPDATE (v),SELECT (k\, v)}'::text[] LOOP
        EXECUTE format('GRANT %s ON audit_t TO idem_p_user', one);
    END LOOP;
    FOREACH mode IN ARRAY '{upsert,insert,update,nothing}'::text[] LOOP
        plain := CASE mode
            WHEN 'upsert' THEN 'INSERT INTO privileges.audit_t AS t SELECT k, v, a FROM privileges.audit_s
                                ON CONFLICT (k) DO UPDATE SET v = excluded.v, a = excluded.a WHERE t.v IS DISTINCT FROM excluded.v RETURNING t.k'
            WHEN 'update' THEN 'UPDATE privileges.audit_t AS t SET v = s.v, a = s.a FROM privileges.audit_s AS s
                                WHERE t.k = s.k AND t.v IS DISTINCT FROM s.v RETURNING t.k'
            ELSE 'INSERT INTO privileges.audit_t AS t SELECT k, v, a FROM privileges.audit_s ON CONFLICT (k) DO NOTHING RETURNING t.k' END;
        merge := format('SELECT status FROM public.idem_merge(''privileges.audit_s'', ''privileges.audit_t'', audit_cols => ''{a}'', %s',
                        CASE WHEN mode = 'nothing' THEN 'update_cols => ''{}''' ELSE format('mode => %L', mode) END);
        INSERT INTO audit_grid (rights, mode, plain, merge, dry_run)
        VALUES (rights, mode, run_as('idem_p_user', plain), run_as('idem_p_user', merge || ')'), run_as('idem_p_user', merge || ', dry_run => true)'));
    END LOOP;
END $$;
SELECT count(compare_audit(ARRAY(SELECT g FROM unnest(ARRAY['INSERT (a)', 'UPDATE (a)', 'SELECT (a)']) WITH ORDINALITY u (g, i)
                                 WHERE set & (1 << i::int - 1) <> 0)))
FROM generate_series(0, 7) set;
SELECT mode, plain, merge, dry_run, count(*) FROM audit_grid GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;
SELECT rights, mode, plain, merge, dry_run FROM audit_grid WHERE plain <> merge OR merge <> dry_run ORDER BY nr;
-- a replay, which runs no statement, needs the same
GRANT INSERT (a), UPDATE (a), SELECT (a) ON audit_t TO idem_p_user;
SELECT summary FROM idem_merge('audit_s', 'audit_t', NULL, 'once', audit_cols => '{a}');
SELECT run_as('idem_p_user', 'SELECT summary FROM public.idem_merge(''privileges.audit_s'', ''privileges.audit_t'', NULL, ''once'', audit_cols => ''{a}'')', true) AS may;
REVOKE SELECT (a) ON audit_t FROM idem_p_user;
SELECT run_as('idem_p_user', 'SELECT summary FROM public.idem_merge(''privileges.audit_s'', ''privileges.audit_t'', NULL, ''once'', audit_cols => ''{a}'')', true) AS may_not;

--
-- Whose rights
--

-- a SECURITY DEFINER function lends those of its owner
SET ROLE idem_p_owner;
CREATE FUNCTION load_t(batch text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = privileges, public
AS $$ SELECT summary FROM idem_merge('s', 't', '{k}', batch) $$;
SET ROLE idem_p_none;
SELECT privileges.load_t('lent');
SELECT privileges.load_t('lent');
RESET ROLE;
SELECT role FROM idem_batches WHERE target = 't'::regclass AND batch_id = 'lent';
-- triggers, defaults and checks run as the caller
CREATE FUNCTION who() RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT current_user::text $$;
CREATE FUNCTION note_who() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.by_trigger := current_user; RETURN NEW; END $$;
SET ROLE idem_p_owner;
CREATE TABLE owned (k int PRIMARY KEY, v text, by_default text DEFAULT privileges.who(), by_trigger text);
CREATE TRIGGER note_who BEFORE INSERT OR UPDATE ON owned FOR EACH ROW EXECUTE FUNCTION privileges.note_who();
GRANT SELECT, INSERT, UPDATE ON owned TO idem_p_full;
SET ROLE idem_p_full;
SELECT summary FROM public.idem_merge('privileges.s', 'privileges.owned');
SELECT * FROM privileges.owned WHERE k = 1;
-- a sequence that a default takes its value from needs a right of its own
SET ROLE idem_p_owner;
CREATE TABLE numbered (k int PRIMARY KEY, v text, nr serial);
GRANT SELECT, INSERT, UPDATE ON numbered TO idem_p_full;
RESET ROLE;
SELECT run_as('idem_p_full', 'INSERT INTO privileges.numbered (k, v) SELECT k, v FROM privileges.s RETURNING k', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.s'', ''privileges.numbered'')', true) AS merge;
GRANT USAGE ON SEQUENCE numbered_nr_seq TO idem_p_full;
SELECT run_as('idem_p_full', 'INSERT INTO privileges.numbered (k, v) SELECT k, v FROM privileges.s RETURNING k', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.s'', ''privileges.numbered'')', true) AS merge;
-- to add columns one has to own the table
CREATE TABLE wider AS SELECT k, v, 1 AS added FROM s;
GRANT SELECT ON wider TO idem_p_full, idem_p_owner;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.wider'', ''privileges.t'', on_schema_change => ''add_columns'')', true) AS full,
       run_as('idem_p_owner', 'SELECT summary FROM public.idem_merge(''privileges.wider'', ''privileges.t'', on_schema_change => ''add_columns'')', true) AS owner,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.wider'', ''privileges.t'', on_schema_change => ''ignore'')', true) AS ignore;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.wider'', ''privileges.t'', on_schema_change => ''add_columns'', dry_run => true)', true) AS full_dry_run,
       run_as('idem_p_full', 'SELECT engine IS NOT NULL FROM public.idem_explain(''privileges.wider'', ''privileges.t'', on_schema_change => ''add_columns'')', true) AS full_explain,
       run_as('idem_p_owner', 'SELECT engine IS NOT NULL FROM public.idem_explain(''privileges.wider'', ''privileges.t'', on_schema_change => ''add_columns'')', true) AS owner_explain;
-- and so to have it alone
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.s'', ''privileges.t'', exclusive => true)', true) AS full,
       run_as('idem_p_owner', 'SELECT summary FROM public.idem_merge(''privileges.s'', ''privileges.t'', exclusive => true)', true) AS owner,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.s'', ''privileges.t'', exclusive => true, dry_run => true)', true) AS full_dry_run,
       run_as('idem_p_full', 'SELECT engine FROM public.idem_explain(''privileges.s'', ''privileges.t'', exclusive => true)', true) AS full_explain;
-- staging that is a view: the rights of its owner on what is below, unless it says otherwise
CREATE TABLE hidden AS TABLE s;
CREATE VIEW lends AS SELECT * FROM hidden;
CREATE VIEW lends_not WITH (security_invoker) AS SELECT * FROM hidden;
GRANT SELECT ON lends, lends_not TO idem_p_full;
SELECT relation, run_as('idem_p_full', format('SELECT summary FROM public.idem_merge(%L, ''privileges.t'')', relation), true) AS merge,
       run_as('idem_p_full', format('SELECT length(public.idem_fingerprint(%L))', relation), true) AS fingerprint
FROM unnest('{privileges.lends,privileges.lends_not,privileges.hidden}'::text[]) relation ORDER BY 1;

-- what a session has prepared as one role is of no use to another: its rights are checked before that
SET ROLE idem_p_full;
SELECT status FROM public.idem_merge('privileges.s', 'privileges.t', '{k}', 'plan 1');
SELECT status FROM public.idem_merge('privileges.s', 'privileges.t', '{k}', 'plan 2');
RESET ROLE;
SELECT run_as('idem_p_none', 'SELECT status FROM public.idem_merge(''privileges.s'', ''privileges.t'', ''{k}'', ''plan 3'')', true) AS other_role;
-- and rights that are gone are gone, whatever has been prepared
REVOKE UPDATE ON t FROM idem_p_full;
SELECT run_as('idem_p_full', 'SELECT status FROM public.idem_merge(''privileges.s'', ''privileges.t'', ''{k}'', ''plan 3'')', true) AS revoked;
GRANT UPDATE ON t TO idem_p_full;

--
-- Row-level security
--

CREATE TABLE tenants_s (k int, tenant text, v text);
CREATE TABLE tenants (k int PRIMARY KEY, tenant text, v text, u text UNIQUE);
INSERT INTO tenants VALUES (1, 'idem_p_full', 'old', 'a'), (2, 'idem_p_column', 'secret', 'b');
INSERT INTO tenants_s VALUES (1, 'idem_p_full', 'new'), (3, 'idem_p_full', 'new'), (2, 'idem_p_column', 'changed');
ALTER TABLE tenants_s ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tenants_s USING (tenant = current_user);
CREATE POLICY own ON tenants USING (tenant = current_user);
GRANT SELECT, INSERT, UPDATE ON tenants, tenants_s TO idem_p_full, idem_p_column;

-- each role reads its own rows, in one session and by one statement
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'')', true) AS full,
       run_as('idem_p_column', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'')', true) AS column,
       run_as(session_user, 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'')', true) AS superuser;
-- and its fingerprint is of these
SET ROLE idem_p_full;
SELECT public.idem_fingerprint('privileges.tenants_s') AS full_fp \gset
SET ROLE idem_p_column;
SELECT public.idem_fingerprint('privileges.tenants_s') = :'full_fp' AS same;
RESET ROLE;
-- a policy that depends on a setting counts at once, also with a plan that is kept
ALTER POLICY own ON tenants_s USING (tenant = current_setting('idem.tenant', true));
SET idem.tenant = 'idem_p_full';
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'', ''{k}'', ''1'')', true) AS full;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'', ''{k}'', ''2'')', true) AS full;
SET idem.tenant = 'nobody';
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'', ''{k}'', ''3'')', true) AS full;
RESET idem.tenant;
ALTER POLICY own ON tenants_s USING (true);
-- a plan that is kept and cannot be made: it is kept once, however often it is tried
CREATE FUNCTION refuse() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE 'refused' USING errcode = 'P0042'; END $$;
CREATE TABLE refuses AS TABLE s;
GRANT SELECT ON refuses TO idem_p_full;
ALTER TABLE refuses ENABLE ROW LEVEL SECURITY;
CREATE POLICY refuse ON refuses USING (refuse());
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.refuses'', ''privileges.t'')', true) AS refused;
SELECT count(*) AS plans FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' \gset
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.refuses'', ''privileges.t'')') AS refused FROM generate_series(1, 3);
SELECT count(*) - :plans AS more_plans FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource';
ALTER POLICY refuse ON refuses USING (true);
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.refuses'', ''privileges.t'')', true) AS not_refused;

-- where a policy hides all stored rows for good, staging is read all the same
CREATE TABLE dark (k int PRIMARY KEY, v text);
ALTER TABLE dark ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE ON dark TO idem_p_full;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.s'', ''privileges.dark'', mode => ''update'')', true) AS update;
-- a default or a generated column that calls what the role may not: as with plain SQL, only where it is computed
CREATE FUNCTION secret(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN 'secret ' || v; END $$;
REVOKE EXECUTE ON FUNCTION secret FROM PUBLIC;
CREATE TABLE computed (k int PRIMARY KEY, o text, v text, d text DEFAULT secret('d'), g text GENERATED ALWAYS AS (secret(v)) STORED);
INSERT INTO computed (k, o, v) VALUES (1, 'old', 'old');
CREATE TABLE computed_s AS SELECT 1 AS k, 'new' AS o, 'new' AS v;
GRANT SELECT, INSERT, UPDATE ON computed TO idem_p_full;
GRANT SELECT ON computed_s TO idem_p_full;
SELECT run_as('idem_p_full', 'UPDATE privileges.computed t SET o = s.o FROM privileges.computed_s s WHERE s.k = t.k RETURNING t.g', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.computed_s'', ''privileges.computed'', mode => ''update'', update_cols => ''{o}'')', true) AS merge;
SELECT run_as('idem_p_full', 'UPDATE privileges.computed t SET v = s.v FROM privileges.computed_s s WHERE s.k = t.k RETURNING t.g', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.computed_s'', ''privileges.computed'', mode => ''update'')', true) AS merge;
SELECT run_as('idem_p_full', 'INSERT INTO privileges.computed (k, o, v) TABLE privileges.computed_s ON CONFLICT (k) DO UPDATE SET o = excluded.o', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.computed_s'', ''privileges.computed'', update_cols => ''{o}'')', true) AS merge;
-- a stored row that is hidden: refused, with no word about what it is; plain SQL does the same
SELECT run_as('idem_p_full', 'INSERT INTO privileges.tenants AS t SELECT * FROM privileges.tenants_s ON CONFLICT (k) DO UPDATE SET v = excluded.v', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'')', true) AS merge;
CREATE VIEW claims_to_be AS SELECT k, 'idem_p_full' AS tenant, v FROM tenants_s;
GRANT SELECT ON claims_to_be TO idem_p_full;
SELECT run_as('idem_p_full', 'INSERT INTO privileges.tenants AS t SELECT * FROM privileges.claims_to_be ON CONFLICT (k) DO UPDATE SET v = excluded.v', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.claims_to_be'', ''privileges.tenants'')', true) AS upsert,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.claims_to_be'', ''privileges.tenants'', mode => ''update'')', true) AS update,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.claims_to_be'', ''privileges.tenants'', mode => ''insert'')', true) AS insert;
-- what a dry run says of it: for the caller the row does not exist
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.claims_to_be'', ''privileges.tenants'', dry_run => true)', true) AS dry_run;
-- a row that the caller may see and may not turn into that of somebody else
CREATE VIEW gives_away AS SELECT 1 AS k, 'idem_p_column' AS tenant, 'gift' AS v;
GRANT SELECT ON gives_away TO idem_p_full;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.gives_away'', ''privileges.tenants'')', true) AS upsert,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.gives_away'', ''privileges.tenants'', mode => ''update'')', true) AS update,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.gives_away'', ''privileges.tenants'', exclude_cols => ''{tenant}'')', true) AS excluded;
-- policies that say what may be written
CREATE POLICY checked ON tenants AS RESTRICTIVE FOR INSERT WITH CHECK (v <> 'bad');
CREATE POLICY checked_update ON tenants AS RESTRICTIVE FOR UPDATE USING (true) WITH CHECK (v <> 'worse');
CREATE TABLE bad_s (k int, tenant text, v text);
GRANT SELECT ON bad_s TO idem_p_full;
INSERT INTO bad_s VALUES (9, 'idem_p_full', 'bad');
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.bad_s'', ''privileges.tenants'')', true) AS inserted;
UPDATE bad_s SET k = 1, v = 'worse';
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.bad_s'', ''privileges.tenants'')', true) AS updated,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.bad_s'', ''privileges.tenants'', mode => ''update'')', true) AS in_mode_update;
DROP POLICY checked ON tenants;
DROP POLICY checked_update ON tenants;
-- keys in the detail: none where rows can be hidden
INSERT INTO tenants_s VALUES (1, 'idem_p_full', 'newer');
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.tenants_s'', ''privileges.tenants'')', true) AS duplicates;
CREATE TABLE open_s AS TABLE tenants_s;
GRANT SELECT ON open_s TO idem_p_full;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.open_s'', ''privileges.tenants'')', true) AS duplicates;
-- a value that another unique index has in a hidden row
CREATE TABLE collides (k int, tenant text, u text);
GRANT SELECT ON collides TO idem_p_full;
INSERT INTO collides VALUES (50, 'idem_p_full', 'b');
SELECT run_as('idem_p_full', 'INSERT INTO privileges.tenants (k, tenant, u) TABLE privileges.collides', true) AS plain,
       run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.collides'', ''privileges.tenants'')', true) AS merge;
-- row_security = off asks for an error where rows would be hidden
SET row_security = off;
SELECT run_as('idem_p_full', 'SELECT summary FROM public.idem_merge(''privileges.open_s'', ''privileges.tenants'', on_duplicate => ''any'')', true) AS target,
       run_as('idem_p_full', 'SELECT public.idem_fingerprint(''privileges.tenants_s'')', true) AS staging;
RESET row_security;
-- owners are exempt unless the table says otherwise
ALTER TABLE tenants OWNER TO idem_p_owner;
ALTER TABLE open_s OWNER TO idem_p_owner;
SELECT run_as('idem_p_owner', 'SELECT summary FROM public.idem_merge(''privileges.open_s'', ''privileges.tenants'', on_duplicate => ''any'')', true) AS exempt;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
SELECT run_as('idem_p_owner', 'SELECT summary FROM public.idem_merge(''privileges.open_s'', ''privileges.tenants'', on_duplicate => ''any'')', true) AS forced;
-- nothing of all that was kept
SELECT * FROM tenants ORDER BY k;

-- triggers of the ledger are its owner's affair, whoever merges: each kind once, and
-- what they read and write is nothing that the caller could
CREATE TABLE heard (n serial, of_owner boolean, path text, what text, batches text);
CREATE FUNCTION hear(batches text, what text) RETURNS void LANGUAGE sql
AS $$ INSERT INTO privileges.heard (of_owner, path, what, batches)
      SELECT current_user = pg_get_userbyid(relowner), current_setting('search_path'), what, batches
      FROM pg_class WHERE oid = 'public.idem_ledger'::regclass $$;
CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM privileges.hear(CASE TG_LEVEL WHEN 'ROW' THEN NEW.batch_id END, TG_WHEN || ' ' || TG_LEVEL);
    RETURN NEW;
END $$;
CREATE FUNCTION hear_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM privileges.hear((SELECT string_agg(batch_id, ',') FROM inserted), TG_WHEN || ' ' || TG_LEVEL);
    RETURN NULL;
END $$;
CREATE TRIGGER bs BEFORE INSERT ON public.idem_ledger EXECUTE FUNCTION hear();
CREATE TRIGGER br BEFORE INSERT ON public.idem_ledger FOR EACH ROW EXECUTE FUNCTION hear();
CREATE TRIGGER ar AFTER INSERT ON public.idem_ledger FOR EACH ROW EXECUTE FUNCTION hear();
CREATE TRIGGER als AFTER INSERT ON public.idem_ledger REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION hear_all();
BEGIN;
SET LOCAL ROLE idem_p_full;
SELECT summary, current_setting('search_path') FROM idem_merge('s', 't', batch_id => 'heard');
SELECT current_user;
RESET ROLE;
SELECT of_owner, path, what, batches FROM heard ORDER BY n;
ROLLBACK;
DROP TRIGGER bs ON public.idem_ledger;
DROP TRIGGER br ON public.idem_ledger;
DROP TRIGGER ar ON public.idem_ledger;
DROP TRIGGER als ON public.idem_ledger;
-- so are the defaults and the checks of columns that he has added
CREATE FUNCTION is_owner() RETURNS boolean LANGUAGE sql
AS $$ SELECT current_user = pg_get_userbyid(relowner) AND current_setting('search_path') = 'pg_catalog, pg_temp'
      FROM pg_class WHERE oid = 'public.idem_ledger'::regclass $$;
BEGIN;
ALTER TABLE public.idem_ledger ADD n bigserial, ADD of_owner boolean DEFAULT privileges.is_owner();
ALTER TABLE public.idem_ledger ADD CHECK (batch_id <> 'heard' OR privileges.is_owner());
SELECT run_as('idem_p_full', 'SELECT idem_claim(''heard'', ''privileges.t'')', true);
SET LOCAL ROLE idem_p_full;
SELECT idem_claim('heard', 't');
RESET ROLE;
SELECT n > 0 AS numbered, of_owner FROM public.idem_ledger WHERE batch_id = 'heard';
ROLLBACK;
-- and the default of a column that the functions leave to it, and what an index computes
CREATE FUNCTION of_owner(text) RETURNS text LANGUAGE plpgsql IMMUTABLE
AS $$ BEGIN RETURN CASE WHEN privileges.is_owner() THEN 'owner' ELSE 'caller' END; END $$;
BEGIN;
ALTER TABLE public.idem_ledger ALTER earlier_fingerprints SET DEFAULT ARRAY[privileges.of_owner('')];
SET LOCAL ROLE idem_p_full;
SELECT idem_claim('heard', 't');
RESET ROLE;
SELECT earlier_fingerprints FROM public.idem_ledger WHERE batch_id = 'heard';
ROLLBACK;
BEGIN;
DROP INDEX public.idem_ledger_xid_idx;
CREATE UNIQUE INDEX ON public.idem_ledger (privileges.of_owner(batch_id)) WHERE batch_id = 'heard';
SET LOCAL ROLE idem_p_full;
SELECT idem_claim('heard', 't');
RESET ROLE;
SET LOCAL enable_seqscan = off;
SELECT batch_id FROM public.idem_ledger WHERE batch_id = 'heard' AND privileges.of_owner(batch_id) = 'owner';
ROLLBACK;

\pset format aligned
SET client_min_messages = warning;
DROP SCHEMA privileges CASCADE;
DROP ROLE idem_p_owner, idem_p_full, idem_p_insert, idem_p_column, idem_p_none, idem_p_outside, idem_p_user;
