#!/bin/bash
# Checks what the compiler and the tests do not. A check is a function that
# prints what is wrong; one that prints nothing has passed.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

bash test/setup.sh

# name of the command, name of the package
for tool in "cppcheck cppcheck" "pg_bsd_indent pg-bsd-indent"; do
    read -r command package <<<"$tool"
    if ! command -v "$command" >/dev/null; then
        echo "lint: installing $package"
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends "$package" </dev/null >/dev/null 2>&1 || true
    fi
done

major=$(pg_major)
export PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config
includes=(-Isrc "-I$("$PG_CONFIG" --includedir-server)")
warnings=(-Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers)
control=idempotent_ingest.control
script=idempotent_ingest--$(make -s print-EXTVERSION).sql

passed=0
failed=0
make_workdir

check()
{
    local what=$1 problems
    shift
    problems=$("$@" 2>&1) || problems+="exit status $? of $*"
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

# The C files with their comments blanked, line numbers kept.
without_comments()
{
    local file
    mkdir "$work/src"
    for file in src/*.[ch]; do
        perl -0777 -pe 's{("(?:\\.|[^"\\])*"|\x27(?:\\.|[^\x27\\])*\x27)|(/\*.*?\*/)}
                         {$1 // $2 =~ s/[^\n]//gr}gsex' "$file" >"$work/$file"
    done
}

# found_outside PATTERN FILE...: where the pattern is used but in these files.
found_outside()
{
    local pattern=$1 file
    shift
    for file in src/*.[ch]; do
        if [[ " $* " != *" $file "* ]]; then
            (cd "$work" && grep -HnE "$pattern" "$file") || true
        fi
    done
}

# Runs a piece of Perl on every call of ereport, errmsg and so on: $call is its
# text, $where its file and line.
# shellcheck disable=SC2016
each_call()
{
    (cd "$work" && perl -0777 -ne '
        our $nested = qr/(\((?:[^()"\x27]++|"(?:\\.|[^"\\])*"|\x27(?:\\.|[^\x27\\])*\x27|(?-1))*\))/;
        while (/\b('"$1"')\s*$nested/g)
        {
            my $call = $2;
            my $where = "$ARGV:" . (1 + (substr($_, 0, $-[0]) =~ tr/\n//));
            '"$2"'
        }' src/*.[ch])
}

# shellcheck disable=SC2016
check_ereport_level()
{
    each_call ereport '
        $call =~ /^\(\s*(ERROR|WARNING|NOTICE|INFO|LOG|FATAL|PANIC|DEBUG[1-5]|elevel)\s*,/
            or print "$where: the level is not a level constant\n";'
}

# shellcheck disable=SC2016
check_errcode()
{
    each_call ereport '
        $call !~ /^\(\s*(ERROR|elevel)\b/ or $call =~ /\b(errcode\w*|IDEM_ERRCODE\w*)\s*\(/
            or print "$where: error without errcode\n";'
}

# Acronyms (SQL, OID) may begin a message.
# shellcheck disable=SC2016
check_errmsg()
{
    each_call 'errmsg|errmsg_internal|errmsg_plural' '
        my ($first) = $call =~ /^\(\s*((?:"(?:\\.|[^"\\])*"\s*)+)/ or next;
        my $text = join "", $first =~ /"((?:\\.|[^"\\])*)"/g;
        $text =~ /^[A-Z][^A-Z]/ and print "$where: begins with a capital: $text\n";
        $text =~ /\.$/ and print "$where: ends with a period: $text\n";'
}

check_includes()
{
    grep -nE '^#include ".*\.c"' src/*.[ch] || true
}

check_headers()
{
    local header
    for header in src/*.h; do
        printf '#include "postgres.h"\n#include "%s"\n' "${header#src/}" |
            gcc -fsyntax-only -Werror "${warnings[@]}" "${includes[@]}" -x c - ||
            echo "$header does not compile by itself"
    done
}

check_gcc()
{
    copy_source "$work/build"
    make -s -C "$work/build" -j "$(nproc)" PROFILE=-Werror >"$work/gcc.log" 2>&1 || cat "$work/gcc.log"
}

# clang is there because PostgreSQL's server packages need it for JIT. The
# attributes are gcc's, in PostgreSQL's own headers.
check_clang()
{
    local clang
    clang=$(make -s print-CLANG)
    "$clang" -fsyntax-only "${warnings[@]}" -Wno-ignored-attributes "${includes[@]}" src/*.c
}

# cppcheck does not read PostgreSQL's headers, but it cannot parse our code
# without these.
check_cppcheck()
{
    cat >"$work/cppcheck.h" <<'END'
#define PG_VERSION_NUM 150000
#define PG_MODULE_MAGIC
#define PG_FUNCTION_INFO_V1(name)
#define PG_TRY() do { if (1)
#define PG_CATCH() else
#define PG_FINALLY()
#define PG_END_TRY() } while (0)
#define foreach(cell, list) for (cell = list_head(list); cell; cell = lnext(list, cell))
#define forboth(cell1, list1, cell2, list2) \
    for (cell1 = list_head(list1), cell2 = list_head(list2); cell1 && cell2; \
         cell1 = lnext(list1, cell1), cell2 = lnext(list2, cell2))
END
    cppcheck --quiet --error-exitcode=1 --enable=warning,portability --inline-suppr \
        --suppress=missingInclude --suppress=missingIncludeSystem \
        --std=c99 -Isrc "--include=$work/cppcheck.h" src
}

check_script()
{
    grep -nEi 'OR REPLACE|IF NOT EXISTS' "$script" || true
    grep -qE '^\\echo Use "CREATE EXTENSION idempotent_ingest" to load this file\. \\quit$' "$script" ||
        echo "the guard against sourcing it in psql is missing"
    # As many comments as objects of a name: functions may be overloaded.
    perl -0777 -ne '
        my %missing;
        $missing{"$1 $2"}++ while /^CREATE (FUNCTION|PROCEDURE|AGGREGATE|TABLE|VIEW|TYPE|SEQUENCE) ([\w@.]+)/mg;
        $missing{"$1 $2"}-- while /^COMMENT ON (FUNCTION|PROCEDURE|AGGREGATE|TABLE|VIEW|TYPE|SEQUENCE) ([\w@.]+)/mg;
        $missing{$_} > 0 and print "no comment on $_\n" for sort keys %missing;
        $missing{$_} < 0 and print "comment on what is not created: $_\n" for sort keys %missing;
    ' "$script"
}

# What somebody who may create objects could make of the scripts. The one exception
# is about a view that the update replaces: it belongs to the extension, and
# PostgreSQL lets no script of an extension replace anything else.
check_pgspot()
{
    local file python
    python_environment pgspot test/requirements-pgspot.txt >/dev/null
    for file in $(make -s print-DATA); do
        "${python%/*}/pgspot" "$file" |
            grep -vE '^( Errors: .*|)$|^PS015: Unsafe view creation: extschema\.idem_batches ' || true
    done
}

# Lists that must be equal: a name, and the two lists.
compare()
{
    diff --label "$1" --label "$2" -U0 <(tr ' ' '\n' <<<"$3" | sed '/^$/d' | sort) \
        <(sed '/^$/d' <<<"$4" | sort) | grep -v '^@@' || true
}

# The names of files, without directory and suffix. Of name.out and name_1.out
# the second is another answer to the same test.
names()
{
    local suffix=$1 file name
    shift
    for file in "$@"; do
        [ -e "$file" ] || continue
        name=$(basename "$file" "$suffix")
        if [[ ! $name =~ ^(.*)_[0-9]$ ]] || [ ! -e "$(dirname "$file")/${BASH_REMATCH[1]}$suffix" ]; then
            echo "$name"
        fi
    done
}

check_lists()
{
    local regress isolation
    regress=$(make -s print-REGRESS)
    isolation=$(make -s print-ISOLATION)
    compare "REGRESS in Makefile" sql/ "$regress" "$(names .sql sql/*.sql)"
    compare "REGRESS in Makefile" expected/ "$regress" "$(names .out expected/*.out)"
    compare "ISOLATION in Makefile" test/isolation/specs/ "$isolation" \
        "$(names .spec test/isolation/specs/*.spec)"
    compare "ISOLATION in Makefile" test/isolation/expected/ "$isolation" \
        "$(names .out test/isolation/expected/*.out)"
}

check_versions()
{
    local makefile in_control in_meta in_debian
    makefile=$(make -s print-EXTVERSION)
    in_control=$(sed -n "s/^default_version = '\(.*\)'$/\1/p" "$control")
    in_meta=$(perl -MJSON::PP -0777 -ne '
        my $meta = decode_json($_);
        print "$meta->{version} $meta->{provides}{idempotent_ingest}{version} "
            . $meta->{provides}{idempotent_ingest}{file};' META.json)
    [ -e "$script" ] || echo "no $script, which EXTVERSION of the Makefile asks for"
    [ "$in_control" = "$makefile" ] || echo "Makefile: $makefile, $control: $in_control"
    [ "$in_meta" = "$makefile $makefile $script" ] || echo "Makefile: $makefile, META.json: $in_meta"
    in_debian=$(sed -n '1s/.*(\(.*\)-[^-]*).*/\1/p' debian/changelog)
    [ "$in_debian" = "$makefile" ] || echo "Makefile: $makefile, debian/changelog: $in_debian"
}

# What https://pgxn.org/spec/ asks for, as far as we use it.
# shellcheck disable=SC2016
check_meta()
{
    perl -MJSON::PP -0777 -ne '
        my $meta = decode_json($_);
        my $version = qr/^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/;
        my %known = map { $_ => 1 } qw(name version abstract description maintainer license
            release_status provides prereqs tags resources no_index generated_by meta-spec);
        $known{$_} || /^x_/i or print "unknown key $_\n" for sort keys %$meta;
        $meta->{$_} or print "$_ is missing\n"
            for qw(name version abstract maintainer license provides meta-spec);
        $meta->{version} =~ $version or print "version: $meta->{version}\n";
        $meta->{license} eq "postgresql" or print "license: $meta->{license}\n";
        $meta->{"meta-spec"}{version} eq "1.0.0" or print "meta-spec is not 1.0.0\n";
        ($meta->{release_status} // "stable") =~ /^(stable|testing|unstable)$/ or print "release_status\n";
        for my $name (sort keys %{ $meta->{provides} })
        {
            my $of = $meta->{provides}{$name};
            $of->{version} =~ $version or print "$name: version\n";
            -e $of->{$_} or print "$name: there is no $_\n" for qw(file docfile);
        }
        for my $phase (sort keys %{ $meta->{prereqs} })
        {
            $phase =~ /^(configure|build|test|runtime|develop)$/ or print "prereqs: $phase\n";
            /^(requires|recommends|suggests|conflicts)$/ or print "prereqs: $phase: $_\n"
                for keys %{ $meta->{prereqs}{$phase} };
        }
        length > 256 || m{[/\\[:cntrl:]]} and print "tag: $_\n" for @{ $meta->{tags} };' META.json
}

without_comments
check "PG_VERSION_NUM only in src/compat.h" \
    found_outside '\bPG_VERSION_NUM\b' src/compat.h
check "SPI functions only in src/spi_util" \
    found_outside '\bSPI_[a-z]\w*' src/spi_util.c src/spi_util.h
check "SetUserIdAndSecContext only in src/security.c" \
    found_outside '\bSetUserIdAndSecContext\b' src/security.c
check "ereport is called with a level constant" check_ereport_level
check "every error has an errcode" check_errcode
check "primary messages: lower case, no period" check_errmsg
check "no .c file is included" check_includes
check "every header compiles by itself" check_headers
check "gcc builds without warnings" check_gcc
check "clang finds nothing to warn about" check_clang
check "cppcheck finds nothing" check_cppcheck
check "formatted as pgindent does (make format)" bash test/indent.sh --check
check "install script: guard, no OR REPLACE, everything has a comment" check_script
check "pgspot finds nothing in the scripts" check_pgspot
check "tests listed in the Makefile are the files that exist" check_lists
check "META.json is as PGXN wants it" check_meta
check "one version in Makefile, control file, META.json and debian/changelog" check_versions

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
