#!/bin/bash
# What retention costs, against a running server (PGHOST, PGPORT and so on; psql
# and pgbench in the PATH, the extension installed, autovacuum as it is set there):
#
# 1. ROWS batches of the ledger expire in rounds, while 4 clients merge small
#    batches: how long these take, with expiry and without;
# 2. the look-up of a replay among ROWS live and ROWS expired batches, and in an
#    empty ledger. Both were read before, so that it is of use to have as much
#    memory as the ledger is large (11 GB for the default ROWS).
#
#   ROWS=10000000     batches, for each of the two
#   DURATION=10       seconds for each run of pgbench
#   REPEAT=6          runs of each; those with expiry and those without take turns,
#                     so that whatever else the machine does hits both
#
# Works in a database of its own, idem_bench_retention, which it drops at the end.
set -euo pipefail

rows=${ROWS:-10000000}
duration=${DURATION:-10}
repeat=${REPEAT:-6}
database=idem_bench_retention
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sql()
{
    psql -X -q -At -v ON_ERROR_STOP=1 -d "$database" "$@"
}

# run SCRIPT NAME CLIENTS: run pgbench once, and keep the latencies under a name.
run()
{
    rm -f "$work"/log*
    (cd "$work" && pgbench -n -M prepared -c "$3" -j 2 -T "$duration" -l --log-prefix=log -f "$1" "$database" >/dev/null)
    cut -d' ' -f3 "$work"/log* >>"$work/latencies $2"
}

# What was kept: number, median, p99 and maximum.
report()
{
    sort -n "$work/latencies $1" |
        awk -v what="$1" '{ a[NR] = $1 }
                          END { printf "%s: %d calls, median %.3f ms, p99 %.2f ms, max %.2f ms\n",
                                       what, NR, a[int((NR + 1) / 2)] / 1000, a[int(NR * 0.99)] / 1000, a[NR] / 1000 }'
}

# fill FROM TO AGE: batches of four pipelines, applied AGE days ago and later.
fill()
{
    sql -v from="$1" -v to="$2" -v age="$3" <<'END'
INSERT INTO idem_ledger (target, target_type, pipeline, batch_id, operation, fingerprint, fingerprint_version,
                         fingerprint_columns, rows_staged, rows_duplicate, rows_inserted, rows_updated, rows_deleted,
                         rows_unchanged, rows_stale, rows_skipped, engine, applied_at, elapsed, role, application_name,
                         xid, options)
SELECT c.oid, c.reltype, 'pipeline ' || n % 4, 'batch ' || n, 'merge', md5(n::text), 1, '{id,v}', 10, 0, 0, 10, 0, 0, 0, 0,
       'native', now() - :age * interval '1 day' + (n - :from) * interval '1 ms', interval '1 ms', current_user, 'loader',
       pg_current_xact_id(), '{"key": ["id"]}'
FROM generate_series(:from, :to) AS n JOIN pg_class AS c ON c.relname = 'target_' || n % 4 + 1;
VACUUM (FREEZE, ANALYZE) idem_ledger;
CHECKPOINT;
END
}

psql -X -q -d postgres -c "CREATE DATABASE $database"
sql <<'END'
CREATE EXTENSION idempotent_ingest;
SELECT format('CREATE TABLE target_%s (id int PRIMARY KEY, v bigint) WITH (fillfactor = 50)', n) FROM generate_series(1, 4) AS n \gexec
CREATE VIEW incoming AS
SELECT id, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS v FROM generate_series(1, 10) AS id;
CREATE TABLE staging AS TABLE incoming;
SELECT format('INSERT INTO target_%s TABLE incoming', n) FROM generate_series(1, 4) AS n \gexec
END
cat >"$work/merge" <<'END'
\set target :client_id + 1
\set batch random(1, 9000000000000000000)
SELECT 1 / (status = 'applied')::int FROM idem_merge('incoming', ('target_' || :target)::regclass, '{id}', 'new ' || :batch, 'pipeline ' || :client_id);
END
cat >"$work/replay" <<END
\\set n random(1, :batches)
SELECT 1 / (status = 'replayed')::int FROM idem_merge('staging', ('target_' || :n % 4 + 1)::regclass, '{id}', 'batch ' || :n, 'pipeline ' || :n % 4, on_mismatch => 'skip');
END
# replays NAME BATCHES
replays()
{
    local i
    sed -i "s/random(1, .*)/random(1, $2)/" "$work/replay"
    for ((i = 0; i < repeat; i++)); do
        run "$work/replay" "$1" 1
    done
    report "$1"
}

fill 1 400 1
replays "replays, ledger of 400 batches" 400
sql -c 'TRUNCATE idem_ledger'
echo "filling the ledger with $rows old batches"
fill 1 "$rows" 100
for ((i = 0; i < repeat; i++)); do
    run "$work/merge" "merges of 10 rows by 4 clients, without expiry" 4
    psql -X -q -d "$database" -c "SET statement_timeout = '${duration}s'" -c 'CALL idem_maintain()' >"$work/maintained" 2>&1 &
    run "$work/merge" "merges of 10 rows by 4 clients, with expiry" 4
    wait $! || true
    grep -q 'canceling statement' "$work/maintained" || echo "expiry has ended too early: choose a shorter DURATION or more ROWS"
done
report "merges of 10 rows by 4 clients, without expiry"
report "merges of 10 rows by 4 clients, with expiry"
sql -c "SELECT count(*) FILTER (WHERE expired) || ' have expired in $((repeat * duration)) s' FROM idem_batches"
start=$(date +%s)
sql -c 'SET idempotent_ingest.maintenance_delay = 0' -c 'CALL idem_maintain()' |
    sed "s/|.*/ more/; s/\$/, without delay/"
echo "in $(($(date +%s) - start)) s"
sql -c "SELECT 'updates of the ledger: ' || n_tup_upd || ', within their page: ' || n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'idem_ledger'"
fill $((rows + 1)) $((2 * rows)) 1
# What is compared is looking up, not the disk.
sql -c 'SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off; SELECT count(metadata) FROM idem_ledger' >/dev/null
sql -c 'SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(batch_id) FROM idem_ledger' >/dev/null
sql -c "SELECT 'ledger ' || pg_size_pretty(pg_table_size('idem_ledger')) || ', key ' || pg_size_pretty(pg_table_size('idem_ledger_pkey')) || ', sweep ' || pg_size_pretty(pg_total_relation_size('idem_sweep'))"
replays "replays, $rows live and $rows expired batches" $((2 * rows))
psql -X -q -d postgres -c "DROP DATABASE $database"
