#!/bin/bash
# Memory errors: regression and isolation tests, with both engines, on a build of
# ours with AddressSanitizer and UndefinedBehaviorSanitizer; and, where the server
# checks assertions, some tests with debug_discard_caches, which shows pointers into
# caches that were kept too long.
#   test/sanitize.sh [asan discard valgrind]
# valgrind finds errors in palloc'd memory as well, if PG_CONFIG names a server
# that was built with CPPFLAGS=-DUSE_VALGRIND and VALGRIND_SUPPRESSIONS the file
# src/tools/valgrind.supp of its source; then it is the default.
# PG_CONFIG says which PostgreSQL is used, else PG_MAJOR does as for make test.
# REGRESS and ISOLATION narrow the tests down.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

choose_postgresql
bash test/setup.sh
make_workdir
trap stop_server EXIT
trap 'exit 1' INT TERM
copy_postgresql "$major"
findings=$work/findings
mkdir -m 1777 "$findings"
regress=${REGRESS:-$(make -s print-REGRESS)}
isolation=${ISOLATION:-$(make -s print-ISOLATION)}

# With debug_discard_caches, everything takes very long: a part of the tests.
discard_regress="merge_versions merge_dedupe ledger quoting"
discard_isolation="same_batch overlap"

passed=0
failed=0

# Runs tests, and counts the run as failed if they or what looks at them says so.
check()
{
    local name="$mode: $1"
    if run_tests "$@" >"$work/output" 2>&1 && [ -z "$(ls "$findings")" ]; then
        echo "ok - $name: $(grep -cE '^(ok [0-9]+ +[-+] |(test | {4,})[^ ]+ +\.\.\. ok )' "$work/output") tests"
        passed=$((passed + 1))
    else
        echo "not ok - $name"
        cat "$work/output" "$findings"/* 2>/dev/null || true
        tail -n 40 "$server/log"
        rm -f "$findings"/*
        failed=$((failed + 1))
    fi
}

# A preloaded libasan alone hangs where another library's constructor allocates
# first: this one comes before all others.
write_first_library()
{
    echo '#include <stdlib.h>
        __attribute__((constructor)) static void first(void) { free(malloc(1)); }' |
        gcc -shared -fPIC -x c -Wl,-z,initfirst -o "$work/first.so" -
}

asan()
{
    local library preload=
    export COPT="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1" \
        MAKEFLAGS="with_llvm=no"
    build_and_install "$major" || die "the build failed"
    unset COPT MAKEFLAGS
    write_first_library
    for library in libasan.so libubsan.so; do
        preload+=$(readlink -f "$(gcc -print-file-name=$library)"):
    done
    server_environment=(LD_PRELOAD="$preload$work/first.so" UBSAN_OPTIONS="print_stacktrace=1:log_path=$findings/ubsan"
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:log_path=$findings/asan")
    start_server "$major" <<<"fsync = off"
    check regress "$regress"
    check isolation "$isolation"
    check regress-sql "$regress"
    check isolation-sql "$isolation"
}

discard()
{
    server_environment=()
    build_and_install "$major" || die "the build failed"
    start_server "$major" <<<"fsync = off"
    if [ "$(ask 'SHOW debug_assertions')" != on ]; then
        echo "SKIPPED: the server was built without assertions, so that it has no debug_discard_caches"
        return
    fi
    ask 'ALTER SYSTEM SET debug_discard_caches = 1'
    ask 'SELECT pg_reload_conf()' >/dev/null
    check regress "${REGRESS:-$discard_regress}"
    check isolation "${ISOLATION:-$discard_isolation}"
    check regress-sql "${REGRESS:-$discard_regress}"
}

# The postmaster and all its children; pg_ctl starts what $bindir has as postgres.
valgrind()
{
    [ -e "${VALGRIND_SUPPRESSIONS:-}" ] || die "VALGRIND_SUPPRESSIONS names no file"
    build_and_install "$major" || die "the build failed"
    as_root tee "$bindir/postgres.valgrind" >/dev/null <<END
#!/bin/sh
exec valgrind -q --trace-children=yes --child-silent-after-fork=no --num-callers=20 --leak-check=no \
    --error-markers=VALGRINDERROR-BEGIN,VALGRINDERROR-END --gen-suppressions=no \
    --suppressions='$VALGRIND_SUPPRESSIONS' --log-file='$findings/%p' '$bindir/postgres' "\$@"
END
    as_root chmod 755 "$bindir/postgres.valgrind"
    server_environment=()
    server_program=$bindir/postgres.valgrind
    start_server "$major" <<<"fsync = off"
    check regress "$regress"
    check isolation "$isolation"
}

if [ $# = 0 ]; then
    if [ -n "${VALGRIND_SUPPRESSIONS:-}" ]; then
        set -- valgrind
    else
        set -- asan discard
    fi
fi
for mode in "$@"; do
    case $mode in
        asan | discard | valgrind) "$mode" ;;
        *) die "no such check: $mode" ;;
    esac
    as_postgres "$bindir/pg_ctl" -D "$server/data" -m fast -w stop >/dev/null
    as_root rm -rf "$server" "$work/src"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
