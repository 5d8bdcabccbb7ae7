#!/bin/bash
# Would the tests notice? Each patch in test/mutants/ breaks one thing. This
# applies one after the other, builds, and runs tests until one fails: first those
# that the patch names, then all of them.
#   test/mutants.sh [NAME...]
# A patch begins with a line that says what is broken, and one or more of
#   tests: regress|regress-sql|isolation|isolation-sql|tap NAME...
# PG_CONFIG says which PostgreSQL is used, else PG_MAJOR does as for make test.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

choose_postgresql
bash test/setup.sh patch

patches=()
for name in "$@"; do
    patches+=("test/mutants/$name.patch")
done
[ $# != 0 ] || patches=(test/mutants/*.patch)

purpose()
{
    head -n 1 "$1"
}

named_tests()
{
    sed -n 's/^tests: //p' "$1"
}

all_tests()
{
    echo "regress $(make -s print-REGRESS)"
    echo "isolation $(make -s print-ISOLATION)"
    echo "regress-sql $(make -s print-REGRESS)"
    echo "isolation-sql $(make -s print-ISOLATION)"
    printf 'tap %s\n' test/t/*.pl
}

# The first test of the last run that has failed, or why there is none.
first_failure()
{
    sed -nE -e 's/^(test | {4,})([^ ]+) +\.\.\. FAILED.*/\2/p' -e 's/^not ok [0-9]+ +[-+] ([^ ]+).*/\1/p' \
        -e 's/^(test[^ ]+) +\(Wstat.*/\1/p' "$work/output" | head -n 1 | grep . ||
        echo "time is up, or the server is gone"
}

# Ends the servers of TAP tests whose time was up.
stop_leftovers()
{
    local file
    for file in "$work"/src/tmp_check/t_*/pgdata/postmaster.pid; do
        [ ! -e "$file" ] || as_postgres "$bindir/pg_ctl" -D "${file%/*}" -m immediate -w stop >/dev/null || true
    done
}

# Runs the tests that standard input lists, until some fail, and prints which.
find_killer()
{
    local kind names
    while read -r kind names; do
        if ! run_tests "$kind" "$names" >"$work/output" 2>&1 </dev/null; then
            echo "$kind: $(first_failure)"
            stop_leftovers
            return 0
        fi
    done
    return 1
}

# Makes the installed library a mutant.
become()
{
    as_postgres patch -s -p1 -d "$work/src" <"$1" &&
        as_postgres make -s -C "$work/src" PG_CONFIG="$PG_CONFIG" &&
        as_root make -s -C "$work/src" install PG_CONFIG="$PG_CONFIG"
}

make_workdir
trap stop_server EXIT
trap 'exit 1' INT TERM
copy_postgresql "$major"
build_and_install "$major" || die "the build failed"
as_root cp -a "$work/src" "$work/whole"
start_server "$major" <<<"fsync = off"

# A test that fails anyway would notice everything.
echo "running the tests on what is to be broken"
if killer=$(for patch in "${patches[@]}"; do named_tests "$patch"; done | sort -u | find_killer); then
    cat "$work/output"
    die "there is no mutant, and yet it fails: $killer"
fi

# Many mutants keep a test waiting for what never happens.
export PGISOLATIONTIMEOUT=30 PG_TEST_TIMEOUT_DEFAULT=20
time_limit=600
killed=0
survived=0
table=
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    file=$(sed -n 's,^+++ b/,,p' "$patch")
    if ! become "$patch" >"$work/output" 2>&1; then
        cat "$work/output"
        killer="does not apply or compile"
    else
        killer=$(named_tests "$patch" | find_killer) || killer=$(all_tests | find_killer) || killer=nobody
    fi
    case $killer in
        *:*)
            killed=$((killed + 1))
            echo "ok - $name: $killer"
            ;;
        *)
            survived=$((survived + 1))
            echo "not ok - $name: $killer. $(purpose "$patch")"
            ;;
    esac
    table+=$(printf '%-34s %-22s %s' "$name" "$file" "$killer")$'\n'
    as_postgres cp "$work/whole/$file" "$work/src/$file"
done

echo
printf '%-34s %-22s %s\n' mutant file "noticed by"
printf '%s' "$table"
echo "$killed passed, $survived failed"
[ "$survived" = 0 ]
