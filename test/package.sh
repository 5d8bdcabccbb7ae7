#!/bin/bash
# Builds the Debian package for one PostgreSQL major and tests it as installed, in
# a copy of the PostgreSQL that is here: what "make install" may have left there
# is not in it. Then the zip file for PGXN.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

bash test/setup.sh
for package in build-essential debhelper postgresql-server-dev-all unzip; do
    if ! have_package "$package"; then
        echo "package: installing $package"
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends "$package" </dev/null >/dev/null
    fi
done

passed=0
failed=0
skipped=0

# The output of a command is what is wrong.
check()
{
    local what=$1 problems
    shift
    problems=$("$@" 2>&1) || problems+=$'\n'"exit status $? of $*"
    if [ -z "$problems" ]; then
        echo "ok - $what"
        passed=$((passed + 1))
    else
        echo "not ok - $what"
        # shellcheck disable=SC2001
        sed 's/^/    /' <<<"$problems"
        failed=$((failed + 1))
    fi
}

build()
{
    as_postgres make -s -C "$work/deb/src" deb PG_SUPPORTED_VERSIONS="$major" >"$work/deb.log" 2>&1 ||
        { tail -n 40 "$work/deb.log"; return 1; }
    [ -e "$deb" ] || ls "$work/deb"
}

# What "make install" installs, and where.
files()
{
    local lib=./usr/lib/postgresql/$major/lib extension=./usr/share/postgresql/$major/extension file
    echo "$lib/idempotent_ingest.so"
    for file in $(make -s print-DATA) idempotent_ingest.control; do
        echo "$extension/$file"
    done
    echo "$lib/bitcode/idempotent_ingest.index.bc"
    for file in $(make -s print-OBJS); do
        echo "$lib/bitcode/idempotent_ingest/${file%.o}.bc"
    done
}

check_files()
{
    local file
    dpkg-deb --fsys-tarfile "$deb" | tar -t >"$work/packaged"
    diff <(files | sort) <(grep -v -e '/$' -e '^./usr/share/doc/' "$work/packaged" | sort) || true
    for file in README.md docs/reference.md changelog copyright; do
        grep -qE "^./usr/share/doc/$name/$file(\.gz)?$" "$work/packaged" || echo "it has no $file"
    done
}

check_depends()
{
    dpkg-deb -f "$deb" Depends | grep -qE "(^|, )postgresql-$major( \(|,|$)" || dpkg-deb -f "$deb" Depends
}

# Some of what debian/tests/installcheck runs, against the files of the package:
# that all tests pass, the other suites see to.
installcheck()
{
    local status=0
    copy_postgresql "$major"
    as_root dpkg-deb -x "$deb" "$work/postgresql"
    start_server "$major" </dev/null
    as_postgres env PGHOST="$server" make -s -C "$work/deb/src" installcheck PG_CONFIG="$bindir/pg_config" \
        REGRESS="merge_basic merge_types ledger privileges oldextversions jobs" ISOLATION="same_batch overlap" \
        >"$work/log" 2>&1 || { status=1; cat "$work/log" "$work"/deb/src/*.diffs; }
    as_postgres "$bindir/pg_ctl" -D "$server/data" -m fast -w stop >/dev/null
    return $status
}

check_dist()
{
    local name
    name=$(make -s print-DISTNAME)
    make -s dist
    mv "$name.zip" "$work/"
    unzip -q "$work/$name.zip" -d "$work/dist"
    diff <(git ls-tree -r --name-only HEAD | grep -vE '^(\.ci/|\.git)') <(cd "$work/dist/$name" && find . -type f | sed 's,^\./,,' | LC_ALL=C sort) || true
}

major=$(pg_major)
bindir=/usr/lib/postgresql/$major/bin
name=postgresql-$major-idempotent-ingest
make_workdir
copy_source "$work/deb/src"
as_root chown -R postgres "$work/deb"
version=$(dpkg-parsechangelog -S Version)_$(dpkg --print-architecture)
deb=$work/deb/${name}_$version.deb

check "debian/ builds $name" build
if [ "$failed" = 0 ]; then
    check "it has the files that make install installs, and documents" check_files
    check "it depends on postgresql-$major" check_depends
    check "its installcheck passes" installcheck
fi
if git rev-parse --git-dir >/dev/null 2>&1; then
    check "make dist has the files of the last commit" check_dist
else
    echo "SKIPPED: make dist, as this is no git checkout"
    skipped=1
fi
echo "$passed passed, $failed failed$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
[ "$failed" = 0 ]
