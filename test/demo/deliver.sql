-- Merges what is in staging, and notes the WAL that this took.

SELECT pg_current_wal_insert_lsn() AS lsn \gset
\ir merge.sql
INSERT INTO measured
VALUES ('flights', :'batch', :'SQLSTATE', NULL, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn'));
