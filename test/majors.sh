#!/bin/bash
# Builds with -Werror and tests on other PostgreSQL majors, each in a Debian
# chroot that is made once and then reused:
#   test/majors.sh [17 18 19]
# IDEM_CHROOTS is where the chroots are; each takes 1.5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "chroots need root: run this as root or install sudo"
    exec sudo env ${IDEM_CHROOTS:+IDEM_CHROOTS="$IDEM_CHROOTS"} bash test/majors.sh "$@"
fi

chroots=${IDEM_CHROOTS:-/var/cache/idempotent_ingest}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Makes the chroot $2 for major $1. PostgreSQL 19 is a release candidate, in
# experimental: the pins take it from there and everything else from sid. The
# Release files of forky, sid and experimental can be past their date.
make_chroot()
{
    local major=$1 dir=$2 suite
    local options=(--variant=minbase --aptopt='Acquire::Check-Valid-Until "false"')
    case $major in
        15) suite=bookworm ;;
        17) suite=trixie ;;
        18) suite=forky ;;
        19)
            suite=sid
            # shellcheck disable=SC2016
            options+=(--setup-hook='
                sed "s/ sid / experimental /" "$1/etc/apt/sources.list" > "$1/etc/apt/sources.list.d/experimental.list"
                mkdir -p "$1/etc/apt/preferences.d"
                printf "Package: postgresql*-19* libpq*\nPin: release a=experimental\nPin-Priority: 990\n" > "$1/etc/apt/preferences.d/pg19"')
            ;;
        *)
            echo "no Debian suite is known to have it" >"$log"
            return 1
            ;;
    esac
    options+=(--include="postgresql-$major,postgresql-server-dev-$major,libipc-run-perl,libxxhash-dev,make,gcc,libc6-dev")

    if ! command -v mmdebstrap >/dev/null; then
        { apt-get update -qq &&
          DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends mmdebstrap
        } </dev/null >"$log" 2>&1 || return 1
    fi

    # Only a complete chroot gets the name under which it is reused.
    mkdir -p "$chroots"
    rm -rf "$dir.new"
    mmdebstrap "${options[@]}" "$suite" "$dir.new" </dev/null >"$log" 2>&1 || return 1
    mv "$dir.new" "$dir"
}

# Runs a command in the chroot $1. Where mounts are allowed it gets a /proc and
# a /dev/shm, which go away together with every process that it left behind.
# Elsewhere pg_virtualenv cannot stop its servers; they end by themselves, a
# minute after their files have gone.
in_chroot()
{
    local dir=$1
    shift
    if unshare -m -p -f --propagation private \
        mount -t proc proc "$dir/proc" 2>/dev/null; then
        # shellcheck disable=SC2016
        unshare -m -p -f --kill-child --propagation private bash -c '
            mount -t proc proc "$0/proc"
            mkdir -p "$0/dev/shm"
            mount -t tmpfs tmpfs "$0/dev/shm"
            exec chroot "$0" "$@"' "$dir" "$@"
    else
        chroot "$dir" "$@"
    fi
}

# pg_upgrade wants old and new programs in one place: this puts the servers of
# older majors into the chroot $1 of 18, each with the extension, built from the
# copy of the source that is in its directory $2. They come from the suites
# proper: a security update can be later than the server of 18 that is there, and
# pg_upgrade does not go back. Of the development packages the headers will do;
# what else they depend on takes a gigabyte.
add_older_majors()
{
    # shellcheck disable=SC2016
    in_chroot "$1" bash -euc '
        export DEBIAN_FRONTEND=noninteractive
        for pair in 15:bookworm 17:trixie; do
            major=${pair%:*}
            if [ ! -e /usr/include/postgresql/$major ]; then
                sed -n "1s/ forky / ${pair#*:} /p" /etc/apt/sources.list >/etc/apt/sources.list.d/$major.list
                apt-get update -qq -o Acquire::Check-Valid-Until=false
                apt-get install -qq -y --no-install-recommends postgresql-$major
                cd /tmp
                apt-get download -qq postgresql-server-dev-$major
                dpkg-deb -x postgresql-server-dev-${major}_*.deb /
                rm postgresql-server-dev-${major}_*.deb
            fi
            rm -rf /tmp/older
            cp -r "$0" /tmp/older
            # The headers of 15 are no C23, which is what a newer compiler takes them for.
            make -s -C /tmp/older PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config \
                with_llvm=no COPT=-std=gnu17 install
            rm -r /tmp/older
        done' "$2" </dev/null >"$log" 2>&1
}

passed=0
failed=0
skipped=0
summary=

test_major()
{
    local major=$1 dir=$chroots/pg$1 suites="regress isolation" source line reason extras extra
    # TAP starts many servers: once, on the newest release, will do.
    if [ "$major" = 18 ]; then
        suites="regress isolation regress-sql isolation-sql tap"
    fi

    echo "== PostgreSQL $major"
    if [ ! -d "$dir" ]; then
        echo "making the chroot $dir"
    fi
    if [ ! -d "$dir" ] && ! make_chroot "$major" "$dir"; then
        cat "$log"
        reason=$(grep -v '^$' "$log" | tail -n 1)
        summary+="SKIPPED: PostgreSQL $major was NOT tested: the chroot cannot be made: $reason"$'\n'
        skipped=$((skipped + 1))
        return
    fi

    # What tests need beyond the packages of the chroot. Without TimescaleDB its
    # test is skipped; without pg_cron, test/setup.sh fails.
    case $major in
        17) extras="postgresql-17-cron" ;;
        18) extras="postgresql-18-cron postgresql-18-timescaledb" ;;
        *) extras= ;;
    esac
    for extra in $extras; do
        if [ ! -e "$dir/usr/share/doc/$extra" ]; then
            in_chroot "$dir" sh -c "apt-get update -qq -o Acquire::Check-Valid-Until=false &&
                DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $extra" \
                </dev/null >"$log" 2>&1 || echo "$extra cannot be installed"
        fi
    done

    # The numbers of users differ between suites, hence a copy, not a mount.
    source=$(mktemp -d "$dir/tmp/idem.XXXXXX")
    copy_source "$source"
    if [ "$major" = 18 ] && ! add_older_majors "$dir" "${source#"$dir"}"; then
        cat "$log"
        echo "older majors cannot be added, so that pg_upgrade is not tested"
    fi
    in_chroot "$dir" env -i PATH="$PATH" LC_ALL=C.UTF-8 PG_MAJOR="$major" \
        PROFILE=-Werror SUITES="$suites" bash -c "
            cd '${source#"$dir"}' && bash test/setup.sh &&
            install -d -o postgres -g postgres /var/run/postgresql &&
            bash test/run.sh" \
        </dev/null 2>&1 | tee "$log" || true
    rm -rf "$source"

    # A run that died without numbers is a failure.
    line=$(tail -n 1 "$log")
    if [[ ! $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(, ([0-9]+) skipped)?$ ]]; then
        line="0 passed, 1 failed"
        [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(, ([0-9]+) skipped)?$ ]]
    fi
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
    summary+="PostgreSQL $major: $line"$'\n'
}

[ $# != 0 ] || set -- 17 18 19
for major in "$@"; do
    test_major "$major"
done

echo
printf '%s' "$summary"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
