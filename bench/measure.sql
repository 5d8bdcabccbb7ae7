-- Measures :method in a session of its own, on a new target, and prints seconds,
-- bytes of WAL, growth of the target and its indexes in bytes, summary and engine
-- of our function, and a hash of what the target then holds. peak.pl prints a
-- line more.
\ir target.sql

-- A replay needs the batch in the ledger first. That writes nothing to the
-- target, which has the rows already.
\if :merged
SELECT FROM idem_merge('staging', 'target', '{id}', 'batch') \g /dev/null
\endif

\set summary ''
\set engine ''
\c
SELECT pg_backend_pid() AS backend, pg_total_relation_size('target') AS size \gset
\setenv BACKEND :backend
\! perl bench/peak.pl "$BACKEND" &
CHECKPOINT;
SELECT pg_current_wal_insert_lsn() AS lsn, clock_timestamp() AS started \gset
\i bench/methods/:method.sql
SELECT extract(epoch FROM clock_timestamp() - :'started') AS seconds,
       pg_current_wal_insert_lsn() - :'lsn'::pg_lsn AS wal \gset

\c
SELECT 'result', :'seconds', :'wal', pg_total_relation_size('target') - :size, :'summary', :'engine',
       (SELECT count(*) || ' ' || coalesce(sum(hash_record_extended(t, 0)::numeric), 0) FROM target t);
