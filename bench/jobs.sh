#!/bin/bash
# Jobs a second: many small merges through the queue, and the same merges called
# directly. Needs a server that preloads the extension, in which PGDATABASE may be
# used: make bench does not start one. The tables are made anew.
#   JOBS=10000 ROWS=10 bash bench/jobs.sh
set -euo pipefail

jobs=${JOBS:-10000}
rows=${ROWS:-10}
run() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

run -c "SET client_min_messages = warning" -c "CREATE EXTENSION IF NOT EXISTS idempotent_ingest" \
    -c "DROP TABLE IF EXISTS bench_job_staging, bench_job_target CASCADE" \
    -c "CREATE TABLE bench_job_staging AS SELECT i AS id, 'value ' || i AS v FROM generate_series(1, $rows) AS i" \
    -c "CREATE TABLE bench_job_target (id int PRIMARY KEY, v text)" \
    -c "ANALYZE bench_job_staging"

seconds()
{
    local start=$EPOCHREALTIME
    "$@" >/dev/null
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'
}

rate()
{
    awk -v n="$jobs" -v s="$1" 'BEGIN { printf "%.0f", n / s }'
}

direct()
{
    for ((i = 1; i <= jobs; i++)); do
        echo "SELECT status FROM idem_merge('bench_job_staging', 'bench_job_target', '{id}', '$1 $i');"
    done | run
}

enqueue()
{
    for ((i = 1; i <= jobs; i++)); do
        echo "SELECT idem_enqueue('bench_job_staging', 'bench_job_target', '{id}', '$1 $i'$2);"
    done | run
}

wait_for_jobs()
{
    while [ "$(run -c "SELECT EXISTS (SELECT FROM idem_jobs WHERE finished_at IS NULL)")" = t ]; do
        read -r -t 0.2 <> <(:) || true
    done
}

prefix=$(run -c "SELECT to_char(clock_timestamp(), 'YYYYMMDDHH24MISSMS')")
s=$(seconds direct "direct $prefix")
echo "called directly, one session: $s s, $(rate "$s") merges/s"
s=$(seconds enqueue "queued $prefix" ", run_at => 'infinity'")
echo "enqueued: $s s, $(rate "$s") jobs/s"
# Nothing wakes the worker but its own round, or the next job.
run -c "UPDATE idem_job SET run_at = '-infinity' WHERE batch_id LIKE 'queued $prefix%'" \
    -c "SELECT idem_enqueue('bench_job_staging', 'bench_job_target', '{id}', 'last $prefix', dry_run => true)" >/dev/null
s=$(seconds wait_for_jobs)
echo "run by workers, $(run -c "SHOW idempotent_ingest.max_workers") at a time: $s s, $(rate "$s") jobs/s"
run -c "SELECT 'jobs that did not succeed: ' || count(*) FROM idem_jobs WHERE status <> 'succeeded' AND batch_id LIKE '% $prefix%'" \
    -c "SELECT 'batches in the ledger: ' || count(*) FROM idem_batches WHERE batch_id LIKE '% $prefix %'"
