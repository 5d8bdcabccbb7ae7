#!/bin/bash
# What "make stress" runs: all that tries to break the promises, in full, for a
# night; and at the end a table of it.
#   STAGES="stress servers upgrades sanitize coverage mutants"
#                       "servers" are crashes, standbys, dumps, subscribers;
#                       "upgrades" go from PostgreSQL 15 to 17 to 18
#   HISTORIES, SCHEDULES, CRASHES, FAULTS, CALLS, CASES, SEED, STRESS
#                       see test/stress/README.md
# and what test/run.sh and the scripts of the stages take.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

make_workdir
table=
failed=

# Runs a stage; its line of the table has the last thing that it says.
run()
{
    local name=$1 verdict=ok began=$SECONDS parts
    shift
    echo "=== $name"
    "$@" 2>&1 </dev/null | tee "${work:?}/output" || verdict=FAILED
    [ "$verdict" = ok ] || failed+=" $name"
    table+=$(printf '%-10s%-8s%4d min   %s' "$name" "$verdict" $(((SECONDS - began) / 60)) \
        "$(tail -n 1 "$work/output")")$'\n'
    # The table of test/stress/run.py.
    parts=$(sed -n '/^part  /,/^$/s/^./    &/p' "$work/output")
    [ -z "$parts" ] || table+=$parts$'\n'
}

for stage in ${STAGES:-stress servers upgrades sanitize coverage mutants}; do
    case $stage in
        stress)
            run stress env SUITES=stress HISTORIES="${HISTORIES:-100000}" SCHEDULES="${SCHEDULES:-20000}" \
                CRASHES="${CRASHES:-300}" FAULTS="${FAULTS:-5000}" CALLS="${CALLS:-500000}" \
                CASES="${CASES:-10000}" bash test/run.sh
            ;;
        servers) run servers env SUITES=tap bash test/run.sh ;;
        upgrades) run upgrades bash test/majors.sh 18 ;;
        sanitize | coverage | mutants) run "$stage" bash "test/$stage.sh" ;;
        *) die "no such stage: $stage" ;;
    esac
done

echo
printf '%s' "$table"
[ -z "$failed" ] || die "failed:$failed"
