#!/bin/bash
# Installs what building and testing need, where it is missing, on Debian and
# Ubuntu. PG_MAJOR=NN asks for one PostgreSQL major, arguments for more packages.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    cat >&2 <<'END'
This installs packages on Debian and Ubuntu only. Elsewhere please install:
  make, a C compiler, PostgreSQL 15 or later with its development files,
  the xxHash headers, and for the TAP tests Perl with IPC::Run
and then: make && make install && make installcheck
END
    exit 1
fi

# Prints those of the given packages that are not installed.
missing()
{
    local package
    for package in "$@"; do
        have_package "$package" || echo "$package"
    done
}

apt_install()
{
    echo "setup: installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "$@" </dev/null >"$log" 2>&1 ||
        { cat "$log" >&2; die "setup: apt-get could not install $*"; }
}

# The packages of a major. Debian has no pg_cron for 19 yet: its test is skipped there.
of_major()
{
    echo "postgresql-$1 postgresql-server-dev-$1"
    [ "$1" -ge 19 ] || echo "postgresql-$1-cron"
}

# The distribution's own may be too old, that of Ubuntu 22.04 for instance.
require_supported()
{
    [ "$1" -ge 15 ] ||
        die "setup: PostgreSQL 15 or later is needed, not $1: Debian 12, Ubuntu 24.04 or later have it"
}

major=$(pg_major) || major=
[ -z "$major" ] || require_supported "$major"
packages="make gcc libc6-dev libxxhash-dev libipc-run-perl postgresql-common $*"
needed="$packages ${major:+$(of_major "$major")}"
# shellcheck disable=SC2086
if [ -n "$major" ] && [ -z "$(missing $needed)" ]; then
    exit 0
fi

if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    die "setup: please install, as root: ${needed:-$packages postgresql-NN postgresql-server-dev-NN}"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

echo "setup: updating the package lists"
as_root apt-get update -qq </dev/null >"$log" 2>&1 || cat "$log" >&2
major=$(pg_major) || die "setup: this distribution has no package named postgresql; set PG_MAJOR"
require_supported "$major"

# A server that is installed for the tests shall not leave a cluster running:
# the setting holds for this installation only.
dropin=/etc/postgresql-common/createcluster.d/idempotent_ingest.conf
if ! have_package "postgresql-$major"; then
    as_root mkdir -p "$(dirname "$dropin")"
    echo 'create_main_cluster = false' | as_root tee "$dropin" >/dev/null
    trap 'rm -f "$log"; as_root rm -f "$dropin"' EXIT
fi
# shellcheck disable=SC2046,SC2086
apt_install $(missing $packages $(of_major "$major"))
