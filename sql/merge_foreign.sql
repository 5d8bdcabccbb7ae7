-- Staging that is a foreign table: file_fdw, which comes with PostgreSQL's
-- contrib modules. (merge_foreign_1.out: where these are not installed.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA merge_foreign;
SET search_path = merge_foreign, public;
SELECT count(*) = 0 AS missing FROM pg_available_extensions WHERE name = 'file_fdw' \gset
\if :missing
DROP SCHEMA merge_foreign CASCADE;
\quit
\endif
CREATE EXTENSION file_fdw SCHEMA merge_foreign;
RESET client_min_messages;
CREATE SERVER merge_foreign_files FOREIGN DATA WRAPPER file_fdw;
CREATE TABLE target (k int PRIMARY KEY, v text, _read_at bigint);
CREATE FOREIGN TABLE staged (v text, k int) SERVER merge_foreign_files
    OPTIONS (program 'printf "a,1\nb,2\nb,2\n,3\n"', format 'csv');
SELECT status, summary FROM idem_merge('staged', 'target', '{k}', '1', dry_run => true);
SELECT status, summary FROM idem_merge('staged', 'target', '{k}', '1');
SELECT status, summary FROM idem_merge('staged', 'target', '{k}', '1');
SELECT status, summary, fingerprint = idem_fingerprint('staged') AS same FROM idem_merge('staged', 'target', '{k}');
TABLE target ORDER BY k;
-- A source that says something else each time it is read. Without a batch id it
-- is read for the fingerprint and for the merge, which have to see the same.
CREATE FOREIGN TABLE clock (k int, v text, _read_at bigint) SERVER merge_foreign_files
    OPTIONS (program 'echo 7,now,$(date +%s%N)', format 'csv');
SELECT status, summary, fingerprint = idem_fingerprint('clock') AS same_by_now FROM idem_merge('clock', 'target', '{k}');
SELECT status, summary FROM idem_merge('clock', 'target', '{k}');
SELECT status, summary FROM idem_merge('clock', 'target', '{k}', 'audited', audit_cols => '{_read_at}');
SELECT status, summary FROM idem_merge('clock', 'target', '{k}', 'audited', audit_cols => '{_read_at}');
-- A source that fails leaves nothing behind.
CREATE FOREIGN TABLE broken (k int, v text) SERVER merge_foreign_files
    OPTIONS (program 'printf "100,x\n101,y\nfoo,z\n"', format 'csv');
\set VERBOSITY sqlstate
SELECT status, summary FROM idem_merge('broken', 'target', '{k}', 'broken');
\set VERBOSITY default
SELECT count(*) AS rows, (SELECT count(*) FROM idem_batches WHERE target = 'target'::regclass AND batch_id = 'broken') AS batches
FROM target WHERE k >= 100;
-- One that is a part of staging: how many rows it has is not known, so that they
-- are not looked up one by one.
CREATE TABLE parts (k int, v int) PARTITION BY RANGE (k);
CREATE FOREIGN TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (100000) SERVER merge_foreign_files
    OPTIONS (program 'seq 1 20000 | sed "s/.*/&,&/"', format 'csv');
CREATE TABLE many (k int PRIMARY KEY, v int);
INSERT INTO many TABLE parts;
ANALYZE many;
SELECT pg_stat_force_next_flush();
BEGIN;
SET LOCAL idempotent_ingest.engine = sql;
SELECT summary FROM idem_merge('parts', 'many', '{k}', 'parts');
SELECT seq_scan + idx_scan AS scans FROM pg_stat_xact_user_tables WHERE schemaname = 'merge_foreign' AND relname = 'many';
COMMIT;
-- A foreign table cannot be the target.
SELECT status FROM idem_merge('target', 'staged', '{k}', 'x');
SET client_min_messages = warning;
DROP SCHEMA merge_foreign CASCADE;
