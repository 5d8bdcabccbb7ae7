#!/bin/bash
# What "make demo" runs: builds and installs the extension, starts a server that
# lives only as long as this script, delivers a week of real flights the way
# such files arrive (again, twice, late, corrected, and killed in the middle),
# and compares what idem_merge() made of it with what plain SQL makes of it.
# PG_MAJOR=NN chooses one of the PostgreSQL majors that are installed. Exits with 1
# if anything turns out otherwise than the story says.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

key='carrier, flight, origin, sched_dep'
columns="$key, dest, tailnum, dep_delay, arr_delay, air_time, distance, updated_at"

headline()
{
    step=$((${step:-0} + 1))
    printf '\n== %d. %s\n\n' "$step" "$1"
}

# Something the story has just claimed: a sentence, the value, the expected value.
check()
{
    [ "$2" = "$3" ] || die "NOT OK: $1 (expected '$3', found '$2')"
    echo "ok: $1"
}

# Returns when the query says true. It asks again and again, as there is nothing to wait on.
wait_until()
{
    local deadline=$((SECONDS + 60))
    until [ "$(ask "$1" 2>/dev/null)" = t ]; do
        [ "$SECONDS" -lt "$deadline" ] || die "gave up waiting for: $1"
    done
}

copy_in()
{
    sql -c "COPY $1 ($columns) FROM STDIN (FORMAT csv, HEADER match)" <"test/data/$2"
}

fill()
{
    ask "TRUNCATE staging_flights"
    copy_in staging_flights "$1"
}

# Merges what is in staging as batch $2, which file $1 was; the summary has to
# be $3. Then the other ways get the same rows.
merge()
{
    sql -v file="$1" -v batch="$2" -f test/demo/deliver.sql 2>&1 | tee "$work/merged"
    sql -v batch="$2" -f test/demo/others.sql >"$work/others" 2>&1
    check "batch $2" "$(sed -n 's/^ [a-z_]* *| //p' "$work/merged" | tail -n 1 | sed 's/ *$//')" "$3"
}

deliver()
{
    fill "$1"
    merge "$1" "${2:-${1%.csv}}" "$3"
}

major=$(pg_major) || die "no PostgreSQL is installed: run test/setup.sh"
make_workdir
trap stop_server EXIT
trap 'exit 1' INT TERM
build_and_install "$major"
cd "$work/src"
application=demo
# Autovacuum would make the numbers differ from run to run, a checkpoint too.
start_server "$major" <<'END'
autovacuum = off
checkpoint_timeout = 1h
log_line_prefix = ''
END

sql -v ON_ERROR_STOP=1 -c "CREATE EXTENSION idempotent_ingest" -f test/demo/tables.sql
echo "$(ask "SELECT 'PostgreSQL ' || current_setting('server_version')"), idempotent_ingest" \
    "$(ask "SELECT extversion FROM pg_extension WHERE extname = 'idempotent_ingest'")"
echo "Every file below goes into staging_flights, and from there into flights by this call:"
echo
cat test/demo/merge.sql

headline "The first day arrives."
deliver flights-2013-01-01.csv '' "applied: 842 staged, 842 inserted"

headline "The job never got the answer, so it loads the same file again: nothing is written."
before=$(ask "SELECT md5(string_agg(f::text, ',' ORDER BY $key)) FROM flights f")
deliver flights-2013-01-01.csv '' "replayed: 842 staged, 842 inserted"
check "the target is the same, _loaded_at included" \
    "$(ask "SELECT md5(string_agg(f::text, ',' ORDER BY $key)) FROM flights f")" "$before"

headline "The second day's merge is killed in the middle, with kill -9."
fill flights-2013-01-02.csv
# To hit the middle for certain, another session holds the last flight of the
# file in an open transaction: the merge gets there, in key order, and waits.
coproc bystander { application='demo bystander' sql >/dev/null 2>&1; }
bystander_pid=$!
echo "BEGIN; INSERT INTO flights SELECT * FROM staging_flights
      ORDER BY carrier DESC, flight DESC, origin DESC, sched_dep DESC LIMIT 1;" >&"${bystander[1]}"
wait_until "SELECT count(*) = 1 FROM pg_stat_activity
            WHERE application_name = 'demo bystander' AND state = 'idle in transaction'"
pages=$(ask "SELECT pg_relation_size('flights') / 8192")
application='demo loader' sql -v file=flights-2013-01-02.csv -v batch=flights-2013-01-02 \
    -f test/demo/merge.sql >"$work/killed" 2>&1 &
loader=$!
wait_until "SELECT count(*) = 1 FROM pg_stat_activity
            WHERE application_name = 'demo loader' AND cardinality(pg_blocking_pids(pid)) > 0"
sql -c "SELECT loader.application_name AS session, loader.state, loader.wait_event_type, loader.wait_event,
               holder.application_name AS waits_for,
               $pages AS pages_before, pg_relation_size('flights') / 8192 AS pages_now
        FROM pg_stat_activity AS loader
             JOIN pg_stat_activity AS holder ON holder.pid = ANY (pg_blocking_pids(loader.pid))
        WHERE loader.application_name = 'demo loader'"
check "the merge had written rows when it was killed" \
    "$(ask "SELECT pg_relation_size('flights') / 8192 > $pages + 1")" t
checkpointer="SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
started=$(ask "$checkpointer")
victim=$(ask "SELECT pid FROM pg_stat_activity WHERE application_name = 'demo loader'")
as_postgres sh -c "kill -9 $victim"
wait "$loader" || true
# The server restarts all its processes before it lets anybody in again.
wait_until "SELECT backend_start > '$started' FROM ($checkpointer) AS c"
echo '\q' >&"${bystander[1]}"
wait "$bystander_pid" || true
echo "The job got: $(sed -n '1s/^psql:[^ ]* //p' "$work/killed")"
echo "The server's log says:"
as_postgres grep -E 'was terminated by signal 9|reinitializing|ready to accept' "$server/log" |
    sed -n "s/(PID $victim)/(PID ...)/; 2,\$s/^/    /p"
echo
sql -c "SELECT (SELECT count(*) FROM flights WHERE sched_dep >= '2013-01-02 10:00') AS flights_of_the_day,
               (SELECT count(*) FROM idem_batches WHERE batch_id = 'flights-2013-01-02') AS ledger_rows"
check "the target has nothing of it" "$(ask "SELECT count(*) FROM flights")" 842
check "the ledger has nothing of it" "$(ask "SELECT count(*) FROM idem_batches")" 1
# What a killed transaction leaves on disk is the same for every way of loading,
# and only this one was killed.
ask "VACUUM flights"

headline "The job retries after the crash: the day is applied, once."
deliver flights-2013-01-02.csv '' "applied: 943 staged, 943 inserted"

headline "The fourth day is copied into staging twice by mistake: identical rows collapse."
fill flights-2013-01-04.csv
copy_in staging_flights flights-2013-01-04.csv
merge flights-2013-01-04.csv flights-2013-01-04 "applied: 1830 staged, 915 duplicate, 915 inserted"

headline "The rest of the week arrives, without the third day."
deliver flights-2013-01-05.csv '' "applied: 720 staged, 720 inserted"
deliver flights-2013-01-06.csv '' "applied: 832 staged, 832 inserted"
deliver flights-2013-01-07.csv '' "applied: 933 staged, 933 inserted"

headline "The third day arrives, four days late."
deliver flights-2013-01-03.csv '' "applied: 914 staged, 914 inserted"

headline "The carriers correct the third day: 121 flights changed, and only those are written."
deliver flights-2013-01-03-corrected.csv '' "applied: 914 staged, 121 updated, 793 unchanged"

headline "Somebody sends the uncorrected third day again: known, and not applied again."
deliver flights-2013-01-03.csv '' "replayed: 914 staged, 914 inserted"

headline "And once more under a new name: applied, but what is older than the stored rows stays out."
deliver flights-2013-01-03.csv flights-2013-01-03-resent "applied: 914 staged, 793 unchanged, 121 stale"

headline "A job sends the sixth day under the name of the fifth: refused."
fill flights-2013-01-06.csv
sql -v VERBOSITY=verbose -v file=flights-2013-01-06.csv -v batch=flights-2013-01-05 \
    -f test/demo/merge.sql 2>&1 | sed 's/^psql:[^ ]* //; /^LOCATION:/d' | fold -s -w 119 | tee "$work/refused" || true
check "the error is a mismatch" "$(grep -o 'II001' "$work/refused")" II001

headline "What the ledger says."
sql -c "SELECT batch_id, rows_staged AS staged, rows_duplicate AS duplicate,
               rows_inserted AS inserted, rows_updated AS updated, rows_unchanged AS unchanged,
               rows_stale AS stale, engine
        FROM idem_batches ORDER BY applied_at"

headline "What each way of loading left after the same eleven deliveries."
# The truth is worked out from the files by sort and awk, so that no database
# takes part in it: of each flight, the row with the greatest updated_at.
tail -q -n +2 test/data/*.csv | LC_ALL=C sort -t, -k1,4 -k11,11r |
    awk -F, '!seen[$1, $2, $3, $4]++' | LC_ALL=C sort >"$work/truth"
sql -c "COPY truth FROM STDIN (FORMAT csv)" <"$work/truth"
sql -f test/demo/compare.sql
cat <<'END'
missing  flights of the truth that are not there
doubles  rows beyond the first of their key
wrong    rows that are not what the newest file says
failed   deliveries that ended in an error, listed below the table
written  row versions written by the deliveries that did not
dead     row versions left for VACUUM

The kill by itself hurts none of them: PostgreSQL rolls it back. What hurts are the deliveries
again, twice and late. A carefully written upsert ends with the right rows, too; it keeps no
record, so it cannot tell a retry from new data, nor refuse the wrong file.

END

sql -Atc "COPY (SELECT carrier, flight, origin, to_char(sched_dep, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), dest,
                       tailnum, dep_delay, arr_delay, air_time, distance,
                       to_char(updated_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
                FROM flights) TO STDOUT (FORMAT csv)" | LC_ALL=C sort >"$work/flights"
check "the target holds what the files say, byte for byte (diff)" \
    "$(diff "$work/truth" "$work/flights" | wc -l)" 0
check "it has every flight of the week" "$(wc -l <"$work/flights")" 6099
check "the ledger has nine batches, each applied once" \
    "$(ask "SELECT count(*) || ' ' || max(revision) FROM idem_batches")" "9 1"
check "the ledger accounts for every staged row" \
    "$(ask "SELECT bool_and(rows_staged = rows_duplicate + rows_inserted + rows_updated + rows_deleted
                                          + rows_unchanged + rows_stale + rows_skipped) FROM idem_batches")" t
