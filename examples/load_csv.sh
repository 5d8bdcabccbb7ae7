#!/bin/sh
# Load CSV files into the table orders, each of them once, with nothing but psql.
#
#     psql -f tables.sql
#     sh load_csv.sh orders-2026-11-20.csv orders-2026-11-21.csv
#
# A file is a batch, and its name is the batch id. So the script can be killed, and run
# again over the same files, at any time and by anybody: what is in the table already is
# replayed, and only the rest is loaded. Other content under a known name is refused, until
# the batch expires, after 90 days by default. The order of the files does not matter, as the
# greatest updated_at of each order wins. Where to connect to is taken from PGHOST, PGDATABASE
# and the like.
set -eu

attempts=10

# The file is psql's standard input ("pstdin"), as \copy takes no variable for its name;
# the commands come by descriptor 3.
load()
{
    psql -X -q -t -A -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -v batch="$(basename "$1")" \
        -f /dev/fd/3 3<<'END' <"$1"
BEGIN;
CREATE TEMP TABLE incoming (LIKE orders) ON COMMIT DROP;
\copy incoming FROM pstdin (FORMAT csv, HEADER match)
SELECT summary FROM idem_merge('incoming', 'orders', batch_id => :'batch', version_cols => '{updated_at}');
COMMIT;
END
}

# Serialization failure, deadlock, lock not available, connection failure, and sessions
# that the server has ended; with all others, a second attempt fails like the first. psql
# exits with 2 where it has no connection, or lost it.
may_pass()
{
    [ "$1" = 2 ] || grep -qE ': +(40001|40P01|55P03|25P03|08[0-9A-Z]{3}|57P0[1235]): ' "$errors"
}

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

failed=0
for file in "$@"; do
    if [ ! -r "$file" ]; then
        echo "$file cannot be read" >&2
        failed=1
        continue
    fi
    attempt=1
    until summary=$(load "$file" 2>"$errors"); do
        status=$?
        cat "$errors" >&2
        if [ "$attempt" = "$attempts" ] || ! may_pass "$status"; then
            failed=1
            continue 2
        fi
        # If the connection was lost in the middle of COMMIT, nobody can tell whether the
        # file was loaded. If it was, the next attempt is a replay.
        sleep "$attempt"
        attempt=$((attempt + 1))
    done
    echo "$(basename "$file"): $summary"
done
exit "$failed"
