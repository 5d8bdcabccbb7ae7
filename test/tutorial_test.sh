#!/bin/bash
# Runs every ```sql block of the documentation, in order, and compares what psql
# prints with the ```text block that follows it; a block without one must print
# nothing. ```sql session=2 is a block for a second session. Moments and process
# numbers differ from run to run, and are compared as <moment> and <pid>.
# Runs as postgres against the server that PGHOST and the like name; see run.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

export PGTZ=UTC PGDATESTYLE=ISO PGAPPNAME=tutorial PGCONNECT_TIMEOUT=60
unset PGOPTIONS PGDATABASE

files='README.md docs/reference.md docs/guide.md docs/operations.md'
database=tutorial
end_of_block='=== end of block ==='
blocks=0
failed=0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die()
{
    echo "$*" >&2
    exit 1
}

# Splits a document into $work/blocks/N, .out and .at: the SQL, what it is said
# to print, and session and line number.
split_document()
{
    rm -rf "$work/blocks"
    mkdir "$work/blocks"
    awk -v dir="$work/blocks" '
        /^ *```/ && !inside {
            match($0, /^ */)
            indent = RLENGTH
            info = substr($0, indent + 4)
            inside = 1
            file = "/dev/null"
            if (info ~ /^sql( |$)/) {
                name = sprintf("%s/%03d", dir, ++count)
                file = name
                session = info ~ /session=/ ? info : "1"
                sub(/.*session=/, "", session)
                print session, NR >(name ".at")
                printf "" >file
                printf "" >(name ".out")
                prints = 0
            } else if (info == "text" && count && !prints++)
                file = name ".out"
            next
        }
        /^ *```/ { inside = 0; next }
        inside { print substr($0, indent + 1) >file }
        END { if (inside) exit 1 }' "$1" || die "$1: a code block has no end"
}

# Starts a psql for a session if it has none yet; it lives until its input ends.
open_session()
{
    local name=$1 input output
    [ -z "${to[$name]:-}" ] || return 0
    mkfifo "$work/in.$name" "$work/out.$name"
    psql -X -q -d "$database" -P pager=off <"$work/in.$name" >"$work/out.$name" 2>&1 &
    exec {input}>"$work/in.$name" {output}<"$work/out.$name"
    rm "$work/in.$name" "$work/out.$name"
    to[$name]=$input
    from[$name]=$output
}

close_sessions()
{
    local name fd
    for name in "${!to[@]}"; do
        fd=${to[$name]}
        exec {fd}>&-
        fd=${from[$name]}
        exec {fd}<&-
    done
    wait
    to=()
    from=()
}

# Prints what a session prints for a file of SQL. Who waits longer than that
# waits for ever: for a lock, or for the end of a statement.
run_block()
{
    local session=$1 line
    { cat "$2"; printf '\n\\echo %s\n' "'$end_of_block'"; } >&"${to[$session]}"
    while IFS= read -r -t 120 -u "${from[$session]}" line; do
        [ "$line" != "$end_of_block" ] || return 0
        printf '%s\n' "$line"
    done
    echo "(the session did not answer)"
    return 1
}

# What must be the same, without spaces at the ends of lines and blank lines at
# the end of the block.
normalize()
{
    sed -E -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]+\+00/<moment>/g' \
        -e 's/Process [0-9]+/Process <pid>/g' \
        -e 's/[ \t]+$//' "$1" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
}

test_document()
{
    local document=$1 block session line
    declare -gA to=() from=()
    psql -X -q -d postgres -c "CREATE DATABASE $database"
    split_document "$document"
    for block in "$work"/blocks/[0-9][0-9][0-9]; do
        [ -e "$block" ] || continue
        blocks=$((blocks + 1))
        read -r session line <"$block.at"
        open_session "$session"
        run_block "$session" "$block" >"$work/printed" || true
        if diff -u --label "$document:$line: documented" --label printed \
            <(normalize "$block.out") <(normalize "$work/printed"); then
            continue
        fi
        failed=$((failed + 1))
    done
    close_sessions
    psql -X -q -d postgres -c "DROP DATABASE $database WITH (FORCE)"
}

# The example at the top of the README, with tables that its numbers come from.
test_example()
{
    local example
    psql -X -q -d postgres -c "CREATE DATABASE $database"
    sed -n '/^    CREATE EXTENSION/,/^$/s/^    //p' README.md >"$work/example"
    psql -X -q -At -v ON_ERROR_STOP=1 -d "$database" >"$work/printed" <<END
CREATE TABLE orders (order_id bigint PRIMARY KEY, amount numeric);
CREATE TABLE staging_orders (LIKE orders);
INSERT INTO orders SELECT i, i FROM generate_series(1, 60) AS i;
INSERT INTO staging_orders SELECT i, CASE WHEN i <= 12 THEN i + 1 ELSE i END FROM generate_series(1, 1000) AS i;
\i $work/example
END
    blocks=$((blocks + 1))
    example=$(sed -n 's/^-- //p' "$work/example" | head -n 1 | tr -s ' ')
    if [ -z "$example" ] ||
        [ "$(cut -d '|' -f 1-2 "$work/printed")" != "applied|$example"$'\n'"replayed|${example/applied/replayed}" ]; then
        echo "README.md: the first example prints:"
        cat "$work/printed"
        failed=$((failed + 1))
    fi
    psql -X -q -d postgres -c "DROP DATABASE $database"
}

test_example
for document in $files; do
    test_document "$document"
done
echo "$blocks blocks, $failed of them print something else"
[ "$failed" = 0 ] && [ "$blocks" -gt 1 ]
