-- What a merge that changes nothing writes, read from the log itself: no record
-- is about the target, its indexes or its TOAST table.
-- (merge_noop_wal_1.out: where the contrib module is not installed.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA noop_wal;
SET search_path = noop_wal, public;
SELECT count(*) = 0 AS missing FROM pg_available_extensions WHERE name = 'pg_walinspect' \gset
\if :missing
DROP SCHEMA noop_wal CASCADE;
\quit
\endif
CREATE EXTENSION pg_walinspect SCHEMA noop_wal;
RESET client_min_messages;
CREATE TABLE t (k int PRIMARY KEY, v text, n serial, big text) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);
CREATE INDEX ON t (v);
CREATE TABLE s (k int, v text, big text) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);
INSERT INTO s SELECT i, 'v' || i, CASE WHEN i % 100 = 0 THEN (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 200) j) END FROM generate_series(1, 10000) i;
SELECT summary FROM idem_merge('s', 't', '{k}', '1');
VACUUM (FREEZE, ANALYZE) t;
VACUUM (FREEZE, ANALYZE) s;
-- So that the first look at any page after a checkpoint would be logged with a
-- full image of it (with checksums, hint bits as well).
CHECKPOINT;
CREATE TABLE files AS
SELECT 'table' AS what, pg_relation_filenode('t') AS filenode
UNION ALL SELECT 'index', pg_relation_filenode(indexrelid) FROM pg_index WHERE indrelid = 't'::regclass
UNION ALL SELECT 'toast', pg_relation_filenode(reltoastrelid) FROM pg_class WHERE oid = 't'::regclass
UNION ALL SELECT 'toast index', pg_relation_filenode(indexrelid) FROM pg_index i JOIN pg_class c ON indrelid = reltoastrelid WHERE c.oid = 't'::regclass
UNION ALL SELECT 'sequence', pg_relation_filenode('t_n_seq')
UNION ALL SELECT 'ledger', pg_relation_filenode('idem_ledger');
-- Records between two positions that are about one of these files.
CREATE FUNCTION records(pg_lsn, pg_lsn) RETURNS TABLE (what text, logged boolean) LANGUAGE sql AS $$
    SELECT f.what, bool_or(r.block_ref IS NOT NULL)
    FROM noop_wal.files f LEFT JOIN noop_wal.pg_get_wal_records_info($1, $2) r ON r.block_ref ~ format('rel \d+/\d+/%s\y', f.filenode)
    GROUP BY 1 ORDER BY 1 $$;
SELECT pg_current_wal_insert_lsn() AS lsn \gset
SELECT summary FROM idem_merge('s', 't', '{k}', '2');
SELECT * FROM records(:'lsn', pg_current_wal_flush_lsn());
SELECT pg_current_wal_insert_lsn() AS lsn \gset
BEGIN;      -- something for the log, for there may be nothing else in it
SELECT pg_logical_emit_message(true, 'idempotent_ingest', 'test') IS NOT NULL AS written;
SELECT summary FROM idem_merge('s', 't', '{k}', '2');
SELECT summary FROM idem_merge('s', 't', '{k}', '3', dry_run => true);
COMMIT;
-- (The ledger is read, and PostgreSQL may prune it or set hint bits as it does.)
SELECT * FROM records(:'lsn', pg_current_wal_flush_lsn()) WHERE what <> 'ledger';
-- The measure itself: one row that changes, and one that is new.
UPDATE s SET v = 'changed', big = 'b' || big WHERE k = 5000;
INSERT INTO s VALUES (10001, 'new');
SELECT pg_current_wal_insert_lsn() AS lsn \gset
SELECT summary FROM idem_merge('s', 't', '{k}', '4');
SELECT * FROM records(:'lsn', pg_current_wal_flush_lsn());
SET client_min_messages = warning;
DROP SCHEMA noop_wal CASCADE;
