#!/bin/bash
# What of src/ the tests reach: lines, and errors. Runs the tests and a slice of
# the stress tests on a build with gcov, and lists what was not executed.
# PG_CONFIG says which PostgreSQL is used, else PG_MAJOR does as for make test;
# REGRESS, ISOLATION, PROVE_TESTS, HISTORIES, SCHEDULES and CALLS make it shorter.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

choose_postgresql
bash test/setup.sh python3-psycopg python3-hypothesis
make_workdir
trap stop_server EXIT
trap 'exit 1' INT TERM
copy_postgresql "$major"

# Bitcode, which JIT could inline, would count nothing.
export COPT="--coverage -O0" MAKEFLAGS="with_llvm=no"
build_and_install "$major" || die "the build failed"
start_server "$major" <<<"fsync = off"

failed=
run()
{
    local name=$1
    shift
    echo "== $name"
    "$@" >"$work/output" 2>&1 || { failed+=" $name"; tail -n 40 "$work/output"; }
}

stress()
{
    (cd "$work/src" && as_postgres PG_CONFIG="$PG_CONFIG" HISTORIES="${HISTORIES:-1000}" \
        SCHEDULES="${SCHEDULES:-50}" CALLS="${CALLS:-5000}" /usr/bin/python3 -B test/stress/run.py)
}

regress=${REGRESS:-$(make -s print-REGRESS)}
isolation=${ISOLATION:-$(make -s print-ISOLATION)}
run regress run_tests regress "$regress"
run regress-sql run_tests regress-sql "$regress"
run isolation run_tests isolation "$isolation"
run isolation-sql run_tests isolation-sql "$isolation"
run tap run_tests tap "${PROVE_TESTS:-test/t/*.pl}"
run stress stress
# Processes write their counts when they end by themselves.
as_postgres "$bindir/pg_ctl" -D "$server/data" -m fast -w stop >/dev/null

/usr/bin/python3 test/coverage.py "$work/src" || failed+=" coverage"
[ -z "$failed" ] || die "failed:$failed"
