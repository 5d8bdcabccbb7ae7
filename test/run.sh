#!/bin/bash
# What "make test" runs: builds and installs, then runs the suites against
# throw-away servers, and counts what really ran.
#   PG_MAJOR=NN                         which PostgreSQL, of those installed
#   SUITES="regress isolation regress-sql isolation-sql tap package dbt examples stress"
#                                       "-sql": the same tests with the sql engine
#   REGRESS, ISOLATION, PROVE_TESTS     only these tests
#   PYTEST_ARGS="-k microbatch"         only these of the suites in Python
#   DBT_VERSIONS="1.9 1.10"             older dbts to test the package with, too
#   STRESS                              only these parts of test/stress
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

suites=${SUITES:-regress isolation regress-sql isolation-sql tap package dbt examples stress}
engine=
total_passed=0
total_failed=0
total_skipped=0
summary=

# Adds a suite's numbers to the totals: name, passed, failed, skipped.
record()
{
    total_passed=$((total_passed + $2))
    total_failed=$((total_failed + $3))
    total_skipped=$((total_skipped + $4))
    summary+="$1: $(counts "$2" "$3" "$4")"$'\n'
}

counts()
{
    echo "$1 passed, $2 failed$([ "$3" = 0 ] || echo ", $3 skipped")"
}

# The tests of a list in the Makefile, unless the environment has its own.
listed()
{
    if [ -n "${!1:-}" ]; then
        echo "${!1}"
    else
        make -s "print-$1"
    fi
}

# Runs a command, showing and keeping its output; its exit status is in $status.
run()
{
    status=0
    "$@" 2>&1 | tee "$work/output" || status=$?
}

# grep exits with 1 where it counts none.
count()
{
    grep -cE "$@" "$work/output" || true
}

# Regression and isolation tests print "test name ... ok" until PostgreSQL 15,
# "ok 1 - name" since 16. Whatever is listed and did not say ok has failed.
pg_regress_suite()
{
    local name=$1 variable=$2 other=$3 diffs=$4 tests passed failed skipped=0 test
    tests=$(listed "$variable" | xargs)
    if [ -z "$tests" ]; then
        record "$name" 0 0 0
        return
    fi
    run with_cluster "$major" make -s installcheck "$variable=$tests" "$other="
    passed=$(count '^(ok [0-9]+ +[-+] |(test | {4,})[^ ]+ +\.\.\. ok )')
    failed=$(($(wc -w <<<"$tests") - passed))
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
        failed=1
    fi
    if [ -s "$work/src/$diffs" ]; then
        cat "$work/src/$diffs"
    fi
    # NAME_1.out is what a test prints where the server lacks what it is about.
    # pg_regress says "ok" to it, but nothing was tested.
    for test in $tests; do
        if [ -e "expected/${test}_1.out" ] && [ -e "$work/src/results/$test.out" ] &&
            cmp -s "expected/${test}_1.out" "$work/src/results/$test.out"; then
            echo "SKIPPED: test $test, as this server lacks a module that it needs"
            skipped=$((skipped + 1))
        fi
    done
    record "$name" "$((passed - skipped))" "$failed" "$skipped"
}

# A file that dies counts as a failed test, with what prove then says of its
# other tests; tests that were skipped have not passed.
tap_suite()
{
    local tests skipped passed failed file
    tests=$(listed PROVE_TESTS | xargs)
    if ! compgen -G "${tests%% *}" >/dev/null; then
        record tap 0 0 0
        return
    fi
    run prove_tests "$tests"
    skipped=$(count '(^ok [0-9].*# skip|^[^ ]+ \.+ skipped:)' -i)
    passed=$(($(count '^ok [0-9]') - $(count '^ok [0-9].*# skip' -i)))
    failed=$(($(count '^(not ok [0-9]|No subtests run|All [0-9]+ subtests passed)') -
              $(count '^not ok [0-9].*# todo' -i)))
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
        failed=1
    fi
    if [ "$failed" != 0 ]; then
        for file in "$work"/src/tmp_check/log/*; do
            echo "*** ${file##*/} (last 40 lines) ***"
            tail -n 40 "$file"
        done
    fi
    record tap "$passed" "$failed" "$skipped"
}

prove_tests()
{
    # A machine that is busy can be ten times as slow as one that is not.
    (cd "$work/src" && as_postgres env PGCTLTIMEOUT=600 PG_TEST_TIMEOUT_DEFAULT=600 \
        make -s prove PG_CONFIG="$PG_CONFIG" PROVE_TESTS="$1" PROVE_FLAGS="--verbose --jobs=$(nproc)")
}

# A script that says "N passed, M failed" in its last line.
script_suite()
{
    local name=$1
    shift
    run "$@"
    if [[ $(tail -n 1 "$work/output") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(, ([0-9]+) skipped)?$ ]]; then
        record "$name" "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${BASH_REMATCH[4]:-0}"
    else
        record "$name" 0 1 0
    fi
}

# The dbt package, with the real dbt: all tests with the newest one, and with older
# ones those of what it takes from dbt: the hooks, the configs, the batches.
dbt_suite()
{
    local version
    python_environment dbt dbt/test/requirements.txt
    pytest_suite dbt dbt/test
    [ -z "${PYTEST_ARGS:-}" ] || return 0
    for version in ${DBT_VERSIONS:-}; do
        python_environment "dbt-$version" dbt/test/requirements.txt "dbt/test/requirements-$version.txt"
        pytest_suite "dbt-$version" dbt/test/test_package.py::Test{Merge,Configs,Microbatch}
    done
}

# Runs pytest, with $python, on what the arguments after the name say, against a
# server of its own. A test that is known to fail has not passed; its reason is
# printed.
pytest_suite()
{
    local name=$1 failed
    shift
    # shellcheck disable=SC2086
    run with_cluster "$major" "$python" -m pytest -p no:cacheprovider -v -rA "$@" ${PYTEST_ARGS:-}
    failed=$(count '^(FAILED|ERROR) ')
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
        failed=1
    fi
    record "$name" "$(count '^PASSED ')" "$failed" "$(count '^(SKIPPED|XFAIL) ')"
}

# The examples, with the Airflow of an environment of its own.
examples_suite()
{
    local airflow
    python_environment airflow test/examples/requirements-airflow.txt
    airflow=$python
    python_environment examples test/examples/requirements.txt
    IDEM_AIRFLOW=$airflow pytest_suite examples test/examples
}

# test/stress starts servers of its own, and prints a line for each part.
stress_suite()
{
    local passed failed
    bash test/setup.sh python3-psycopg python3-hypothesis
    run stress
    passed=$(count '^ok - ')
    failed=$(count '^not ok - ')
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
        failed=1
    fi
    record stress "$passed" "$failed" "$(count '^SKIPPED: ')"
}

# Debian's modules are those of Debian's Python.
stress()
{
    # shellcheck disable=SC2086
    (cd "$work/src" && as_postgres PG_CONFIG="$PG_CONFIG" SEED="${SEED:-}" PROCESSES="${PROCESSES:-}" \
        HISTORIES="${HISTORIES:-}" SCHEDULES="${SCHEDULES:-}" CRASHES="${CRASHES:-}" FAULTS="${FAULTS:-}" \
        CALLS="${CALLS:-}" CASES="${CASES:-}" \
        /usr/bin/python3 -B test/stress/run.py ${STRESS:-})
}

major=$(pg_major) || die "no PostgreSQL is installed: run test/setup.sh"
[ -x "/usr/lib/postgresql/$major/bin/postgres" ] ||
    die "PostgreSQL $major is not installed: run PG_MAJOR=$major test/setup.sh"
make_workdir
if ! build_and_install "$major"; then
    counts 0 1 0
    exit 1
fi

for suite in $suites; do
    echo "== $suite, PostgreSQL $major"
    engine=
    case $suite in
        *-sql) engine=sql ;;
    esac
    case $suite in
        regress*) pg_regress_suite "$suite" REGRESS ISOLATION regression.diffs ;;
        isolation*) pg_regress_suite "$suite" ISOLATION REGRESS output_iso/regression.diffs ;;
        tap) tap_suite ;;
        package) script_suite package bash test/package.sh ;;
        dbt) dbt_suite ;;
        examples) examples_suite ;;
        stress) stress_suite ;;
        *) die "no such suite: $suite" ;;
    esac
done

echo
printf '%s' "$summary"
if [ $((total_passed + total_failed)) = 0 ]; then
    echo "no test was run"
fi
counts "$total_passed" "$total_failed" "$total_skipped"
[ "$total_failed" = 0 ] && [ "$total_passed" != 0 ]
