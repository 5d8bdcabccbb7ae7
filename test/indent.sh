#!/bin/bash
# Formats src/ as PostgreSQL's pgindent does, with its indenter and its
# options; --check prints what would change, and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

options="-bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4 -l79 -lp -lpl -nip -npro -sac -tpg -ts4"

# Another version would indent differently.
pg_bsd_indent --version 2>/dev/null | grep -q '^pg_bsd_indent 2\.1\.1 ' ||
    die "pg_bsd_indent 2.1.1 is missing (Debian 12: apt-get install pg-bsd-indent)"

major=$(pg_major)
make_workdir
mkdir "$work/src"

# The indenter must know the names of types. PostgreSQL takes them from the
# debug information of what was built, and so do we; bool and xxHash's type
# are macros there.
for file in src/*.c; do
    gcc -g -c -Isrc "-I$("/usr/lib/postgresql/$major/bin/pg_config" --includedir-server)" \
        -o "$work/$(basename "$file" .c).o" "$file"
done
{
    printf '%s\n' bool XXH128_hash_t
    sed -nE 's/^\} ([A-Za-z]+);$/\1/p' src/*.[ch]
    readelf --debug-dump=info "$work"/*.o |
        awk '/DW_TAG_/ { t = /DW_TAG_typedef/ } t && /DW_AT_name/ { print $NF; t = 0 }'
} | sort -u >"$work/typedefs"

for file in src/*.[ch]; do
    # shellcheck disable=SC2086
    pg_bsd_indent $options "-U$work/typedefs" "$file" "$work/$file"
    # As pgindent: one space before the asterisk of a function's return type.
    sed -Ei 's/^([A-Za-z_][^[:space:]]*)[ \t]+\*$/\1 */' "$work/$file"
    if [ "${1:-}" = --check ]; then
        diff -u --label "$file" --label "$file, indented" "$file" "$work/$file" || true
    elif ! cmp -s "$file" "$work/$file"; then
        echo "formatted $file"
        cat "$work/$file" >"$file"
    fi
done
