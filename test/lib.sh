# shellcheck shell=bash
# Sourced by the scripts that build and test: who builds, who installs, who
# runs the servers. Callers have changed to the top of the source tree.

# A make that called us may have a job server and command-line variables that
# are not meant for the makes we call.
unset MAKEFLAGS MFLAGS MAKELEVEL

# The programs of a PostgreSQL that is not Debian's; a caller may set it.
bindir=

die()
{
    echo "$*" >&2
    exit 1
}

as_root()
{
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# PostgreSQL refuses to run as root. HOME and TMPDIR must be places that
# postgres may use; all that it writes goes away with $work.
as_postgres()
{
    set -- env HOME="$work/tmp" TMPDIR="$work/tmp" LC_ALL=C.UTF-8 "$@"
    if [ "$(id -u)" = 0 ]; then
        runuser -u postgres -- "$@"
    else
        sudo -u postgres "$@"
    fi
}

have_package()
{
    dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^.i'
}

# Sets $python to the interpreter of an environment that has the packages of
# requirements files, where a later file may have another version than an earlier
# one; made once for each content of these files; everybody can run it.
python_environment()
{
    local name=$1 dir requirements
    shift
    dir=${IDEM_PYTHONS:-/var/cache/idempotent_ingest}/python-$name-$(cat "$@" | sha256sum | cut -c 1-12)
    python=$dir/bin/python
    [ ! -e "$dir/complete" ] || return 0
    if ! have_package python3-venv; then
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends python3-venv </dev/null >/dev/null ||
            die "python3-venv cannot be installed"
    fi
    as_root mkdir -p "$dir"
    as_root /usr/bin/python3 -m venv --clear "$dir"
    for requirements in "$@"; do
        echo "installing the packages of $requirements"
        as_root "$python" -m pip install -q --disable-pip-version-check --no-deps -r "$requirements"
    done
    as_root touch "$dir/complete"
}

# The PostgreSQL major to use: PG_MAJOR, or the newest that is installed with
# all that is needed to build for it, or what the distribution offers.
pg_major()
{
    local dir major found=
    if [ -n "${PG_MAJOR:-}" ]; then
        echo "$PG_MAJOR"
        return
    fi
    for dir in /usr/lib/postgresql/[1-9][0-9]; do
        major=${dir##*/}
        [ "$major" -ge 15 ] || continue
        if have_package "postgresql-$major" && have_package "postgresql-server-dev-$major"; then
            found=$major
        fi
    done
    if [ -z "$found" ]; then
        found=$(apt-cache depends postgresql 2>/dev/null |
                sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1)
    fi
    [ -n "$found" ] || return 1
    echo "$found"
}

# Makes $work, which goes away when the script ends.
make_workdir()
{
    work=$(mktemp -d "${TMPDIR:-/tmp}/idem.XXXXXX")
    trap 'rm -rf "$work" 2>/dev/null || as_root rm -rf "$work"' EXIT
    chmod 755 "$work"
    mkdir -m 1777 "$work/tmp"
}

# The checkout stays clean, and postgres need not be able to read it.
copy_source()
{
    mkdir -p "$1"
    tar -c --exclude-vcs --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
        --exclude=./results --exclude=./output_iso --exclude='./tmp_check*' . | tar -x -C "$1"
}

# Builds a copy of the source as the current user, installs it into PostgreSQL
# $1 and leaves the copy, in $work/src, to postgres.
build_and_install()
{
    export PG_CONFIG=${bindir:-/usr/lib/postgresql/$1/bin}/pg_config
    copy_source "$work/src"
    echo "building for PostgreSQL $1"
    if ! make -C "$work/src" -j "$(nproc)" >"$work/build.log" 2>&1; then
        cat "$work/build.log"
        echo "the build failed" >&2
        return 1
    fi
    grep -A 5 'warning:' "$work/build.log" || true
    if ! as_root make -C "$work/src" install PG_CONFIG="$PG_CONFIG" >"$work/build.log" 2>&1; then
        cat "$work/build.log"
        echo "the installation failed" >&2
        return 1
    fi
    as_root chown -R postgres "$work/src"
    if ! as_postgres test -r "$work/src/Makefile"; then
        echo "the user postgres cannot read $work: set TMPDIR to a directory that everybody may enter" >&2
        return 1
    fi
}

# The PostgreSQL to use: the one that PG_CONFIG names, or else pg_major() does.
# Sets $major, and $bindir if it is not Debian's.
choose_postgresql()
{
    if [ -n "${PG_CONFIG:-}" ]; then
        bindir=$("$PG_CONFIG" --bindir)
        major=$("$PG_CONFIG" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
    else
        major=$(pg_major) || die "no PostgreSQL is installed: run test/setup.sh"
    fi
}

# Copies PostgreSQL into $work, for a build of ours that nobody else shall meet: the
# one that $bindir says, or Debian's of major $1. Sets $bindir.
copy_postgresql()
{
    local root=$work/postgresql/usr
    as_root mkdir -p "$root"/{include,lib/postgresql,share/postgresql}
    case $bindir in
        "" | /usr/lib/postgresql/*)
            as_root cp -a "/usr/lib/postgresql/$1" "$root/lib/postgresql/"
            as_root cp -a "/usr/share/postgresql/$1" "$root/share/postgresql/"
            as_root cp -a /usr/include/postgresql "$root/include/"
            bindir=$root/lib/postgresql/$1/bin
            ;;
        *)
            as_root cp -aT "$bindir/.." "$root"
            bindir=$root/bin
            ;;
    esac
    as_root find "$root" -name '*idempotent_ingest*' -prune -exec rm -rf {} +
}

# Runs tests in $work/src, as postgres, against the server of start_server():
# "regress", "regress-sql", "isolation", "isolation-sql" or "tap", and their names.
# TAP tests start servers of their own. A caller may have set time_limit, in seconds.
time_limit=
run_tests()
{
    local kind=$1 options=
    shift
    case $kind in
        *-sql) options="-c idempotent_ingest.engine=sql" ;;
    esac
    case $kind in
        regress*) set -- installcheck REGRESS="$*" ISOLATION= ;;
        isolation*) set -- installcheck REGRESS= ISOLATION="$*" ;;
        tap) set -- prove PROVE_TESTS="$*" ;;
    esac
    (cd "$work/src" && as_postgres env PGHOST="$server" PGUSER=postgres PGOPTIONS="$options" \
        ${time_limit:+timeout "$time_limit"} make -s "$@" PG_CONFIG="$PG_CONFIG")
}

# Starts a server of major $1 with a data directory in $work and a Unix socket
# there, and with the settings on standard input. $server and $bindir are set. A
# caller may have set server_environment, an array of NAME=VALUE, and server_program.
server_environment=()
server_program=
start_server()
{
    bindir=${bindir:-/usr/lib/postgresql/$1/bin}
    server=$work/server
    as_root install -d -o postgres -m 700 "$server"
    as_postgres "$bindir/initdb" -D "$server/data" -U postgres -A peer -E UTF8 --locale=C.UTF-8 \
        >"$work/initdb.log" 2>&1 || { cat "$work/initdb.log"; die "initdb failed"; }
    { echo "listen_addresses = ''"; echo "unix_socket_directories = '$server'"; cat; } |
        as_postgres tee -a "$server/data/postgresql.conf" >/dev/null
    as_postgres env "${server_environment[@]}" "$bindir/pg_ctl" -D "$server/data" -l "$server/log" \
        ${server_program:+-p "$server_program"} -w start >/dev/null ||
        { as_postgres cat "$server/log"; die "the server did not start"; }
}

# For a trap at exit: ends the server and removes $work.
stop_server()
{
    if [ -n "${server:-}" ] && as_postgres test -e "$server/data/postmaster.pid"; then
        as_postgres "$bindir/pg_ctl" -D "$server/data" -m immediate -w stop >/dev/null || true
    fi
    cd /
    as_root rm -rf "$work"
}

# psql on that server, as its user; $application is its application_name.
sql()
{
    as_postgres env -u PGOPTIONS -u PGSERVICE -u PGSYSCONFDIR -u PGPORT PGTZ=UTC \
        PGAPPNAME="${application:-test}" "$bindir/psql" -X -q -v ON_ERROR_STOP="${on_error_stop:-0}" -h "$server" -U postgres -d postgres \
        -P pager=off -P footer=off "$@"
}

ask()
{
    sql -Atc "$1"
}

# Runs a command, in $work/src and as postgres, against a server of major $1
# that lives only as long. PGHOST, PGPORT and the like are set for it.
with_cluster()
{
    local major=$1
    shift
    (cd "$work/src" && as_postgres pg_virtualenv -v "$major" \
        -c '--locale=C.UTF-8 --encoding=UTF8' \
        ${engine:+-o "idempotent_ingest.engine=$engine"} -- "$@")
}
