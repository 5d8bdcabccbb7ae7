#!/bin/bash
# What "make bench" runs: the same batches by idem_merge() and by what a user
# would write instead, on a server that lives only as long as this script. What
# is measured is in profiles, how in measure.sql and methods/, small batches in
# *.pgbench. docs/benchmark.md explains all of it. Environment:
#   SCALE=20k         staged rows; the published figures are of 1M
#   PROFILES="..."    some of the profiles, and of small, ledger, concurrency
#   METHODS="..."     some of the methods; without naive there are no ratios
#   REPEAT=3          runs of each method; they take turns, and the medians count
#   DURATION=2        seconds for each run of pgbench; 20 if SCALE is 1M or more
#   WORK_MEM=64MB
#   SHARED_BUFFERS=1GB
#   OUT=results/bench where results.csv, results.md and chart.svg are written
#   ADD=yes           keep what OUT has of other profiles, if it was measured on
#                     the same machine with the same settings
#   PG_MAJOR=NN       which PostgreSQL, of those that Debian or Ubuntu installed
#   PG_CONFIG=...     or another one
# Machines are noisy: read the ratios, not the seconds. Exits with 1 if methods
# do not end with the same rows; a goal that is missed is printed as such and is
# no failure.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

scale=${SCALE:-20k}
scale=${scale/%k/000}
scale=${scale/%M/000000}
repeat=${REPEAT:-3}
duration=${DURATION:-$((scale < 1000000 ? 2 : 20))}
for number in "$scale" "$repeat" "$duration"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || die "SCALE, REPEAT and DURATION must be positive numbers"
done
out=${OUT:-results/bench}
mkdir -p "$out"
out=$(realpath "$out")
usual="naive where merge classify ordered dbt dlt auto native sql"
all=$(sed '/^# Run only/,$d; /^#/d; s/ .*//' bench/profiles | xargs)
profiles=${PROFILES:-$all small ledger concurrency}

# Appends a line to results.csv. What comes after profile, method and seconds is
# empty where pgbench measured.
result()
{
    printf '%s,%s,%s,%s,%s,%s,%s,%s,%s\n' "$@" >>"$out/results.csv"
}

# Measures one method once, on the profile that prepare() has made.
measure()
{
    local method=$1 fields peak
    fields=$(sql -At -v base="$base" -v indexes="$indexes" -v merged="$merged" -v method="$method" \
        -v source="$source" -v newest_first="$newest_first" -v options="$options" \
        -v copy_file="$server/copy" -f bench/measure.sql) || die "$name by $method failed"
    peak=$(sed -n 's/^peak|//p' <<<"$fields")
    IFS='|' read -r _ seconds wal growth summary engine content <<<"$(grep '^result|' <<<"$fields")"
    result "$name" "$method" "$seconds" "$wal" "$growth" "$peak" "$engine" "\"$summary\"" "\"$content\""
}

# The tables of a profile, and what measure() needs to know of it.
prepare()
{
    local stored key staged kind copies=false
    read -r name stored key staged kind indexes options methods < <(grep "^$1 " bench/profiles)
    [ -n "$name" ] || die "there is no profile named $1"
    [ "$options" != - ] || options=
    case $methods in
        only*) methods=${methods#only} ;;
        *) methods="$usual $methods" ;;
    esac
    [[ $methods != *copy* ]] || copies=true
    merged=false
    if [ "$stored" = merged ]; then
        merged=true
        stored=1
    fi
    source=staging
    newest_first="(SELECT NULL)"
    if [ "$kind" = duplicates ]; then
        source="(SELECT DISTINCT ON (id) * FROM staging ORDER BY id, updated_at DESC)"
        newest_first="updated_at DESC"
    fi
    base=stored_${stored}_$key
    sql -v stored_table="$base" -v stored="$((stored * scale))" -v key="$key" -v kind="$kind" \
        -v staged="$((staged * scale))" -v merged="$merged" -v copies="$copies" \
        -v copy_file="$server/copy" -f bench/staging.sql
    [ "$merged" = false ] || base=merged
}

run_profile()
{
    local method
    prepare "$1"
    for _ in $(seq "$repeat"); do
        for method in $methods; do
            if [[ " ${METHODS:-$methods} " == *" $method "* ]]; then
                measure "$method"
            fi
        done
    done
}

# pgbench with a script, prepared statements, and commits that wait for no disk:
# what is compared is what a call costs. Prints pgbench's report.
bench()
{
    local script=$1
    shift
    as_postgres env PGOPTIONS='-c synchronous_commit=off' "$bindir/pgbench" -n -M prepared -T "$duration" \
        -h "$server" -U postgres -f "bench/$script.pgbench" "$@" postgres 2>"$work/pgbench.log" ||
        { cat "$work/pgbench.log"; die "pgbench failed: $script $*"; }
}

# A new target of ten times SCALE rows, and staging of SCALE rows.
large_target()
{
    prepare mix_10
    sql -v base="$base" -v indexes=no -f bench/target.sql -c CHECKPOINT
}

# Batches of 1 to 10,000 rows: how long the call took, on the average.
run_small()
{
    local rows method
    for _ in $(seq "$repeat"); do
        large_target
        for rows in 1 100 1000 10000; do
            bench small -r -D rows="$rows" -D stored="$((10 * scale))" >"$work/report"
            for method in hand auto native sql; do
                awk -v method="$method" '/hand_merge|idem_merge/ && index($0, "'\''" method " ") { print $1 / 1000 }' \
                    "$work/report" >"$work/latency"
                result "small_$rows" "$method" "$(cat "$work/latency")"
            done
        done
    done
}

# Replays by id, from a ledger of ten times SCALE batches; staging of SCALE rows
# is not read.
run_ledger()
{
    large_target
    sql -v ledger="$((10 * scale))" -f bench/ledger.sql
    for _ in $(seq "$repeat"); do
        bench replay -D ledger="$((10 * scale))" | awk '/^tps/ { print 1 / $3 }' >"$work/latency"
        result replay_by_id auto "$(cat "$work/latency")"
    done
    sql -c 'TRUNCATE idem_ledger'
}

# Batches of 1,000 rows by one client and by four: seconds for each batch, filling
# of the temporary table included.
run_concurrency()
{
    local clients method
    for _ in $(seq "$repeat"); do
        large_target
        for clients in 1 4; do
            for method in hand turns versions; do
                bench "concurrent_$method" -c "$clients" -j "$clients" -D rows=1000 -D stored="$((10 * scale))" |
                    awk '/^tps/ { print 1 / $3 }' >"$work/latency"
                result "clients_$clients" "$method" "$(cat "$work/latency")"
            done
        done
    done
}

# What the figures depend on, for the head of the report.
describe_machine()
{
    echo "- $(ask 'SELECT version()')"
    echo "- $(lscpu | sed -n 's/^Model name: *//p' | head -n 1), $(nproc) processors," \
        "$(awk '/^MemTotal/ { printf "%.0f GB", $2 / 1e6 }' /proc/meminfo) of memory, $(uname -sr)," \
        "data on $(df --output=fstype "$work" | tail -n 1)"
    echo "- $(ask "SELECT string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name)
                  FROM pg_settings WHERE name IN ('shared_buffers', 'work_mem', 'hash_mem_multiplier', 'jit', 'fsync',
                      'full_page_writes', 'wal_level', 'maintenance_work_mem', 'max_wal_size', 'autovacuum')")"
    echo "- SCALE $scale, $repeat runs of each method"
}

# Prints those lines of the earlier results.csv that are not of what will be
# measured now.
kept_results()
{
    awk -F , -v profiles=" $profiles " '
        {
            profile = $1 ~ /^small_/ ? "small" : $1 ~ /^clients_/ ? "concurrency" : $1 == "replay_by_id" ? "ledger" : $1
        }
        NR > 1 && !index(profiles, " " profile " ")' "$out/results.csv"
}

choose_postgresql
make_workdir
trap stop_server EXIT
trap 'exit 1' INT TERM
build_and_install "$major"
cd "$work/src"
application=bench
on_error_stop=1
# Nothing else shall be at work while something is measured.
start_server "$major" <<END
shared_buffers = ${SHARED_BUFFERS:-1GB}
max_wal_size = 16GB
checkpoint_timeout = 1h
work_mem = '${WORK_MEM:-64MB}'
maintenance_work_mem = 256MB
autovacuum = off
END
sql -f bench/tables.sql

describe_machine >"$work/machine"
: >"$work/kept"
if [ -n "${ADD:-}" ] && [ -e "$out/results.csv" ]; then
    # The description ends at the first heading after it.
    sed -n '/^- /p; /^## /q' "$out/results.md" | diff - "$work/machine" ||
        die "$out/results.md is about another machine, or about other settings"
    kept_results >"$work/kept"
fi
{
    echo "profile,method,seconds,wal,growth,peak,engine,summary,content"
    cat "$work/kept"
} >"$out/results.csv"
for profile in $profiles; do
    started=$SECONDS
    case $profile in
        small | ledger | concurrency) "run_$profile" ;;
        *) run_profile "$profile" ;;
    esac
    echo "$profile: $((SECONDS - started)) s"
done

{
    echo "# Results of the benchmark"
    echo
    cat "$work/machine"
    echo
    echo "Last measured on $(date -u +%Y-%m-%d)."
    sql -v chart="$work/tmp/chart" -f bench/report.sql <"$out/results.csv" | awk -f bench/markdown.awk
} >"$out/results.md"
cat "$out/results.md"

if ! command -v gnuplot >/dev/null; then
    echo "installing gnuplot-nox"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends gnuplot-nox </dev/null >/dev/null 2>&1 || true
fi
if ! command -v gnuplot >/dev/null; then
    echo "there is no gnuplot, so there is no chart"
elif [ -s "$work/tmp/chart" ]; then
    gnuplot -e "data = '$work/tmp/chart'" bench/chart.gp >"$out/chart.svg"
fi
echo "written to $out"

differing=$(ask "SELECT string_agg(profile, ', ') FROM differing")
[ -z "$differing" ] || die "the methods ended with different rows, or the engines with different counts: $differing"
echo "all methods ended with the same rows in every run"
