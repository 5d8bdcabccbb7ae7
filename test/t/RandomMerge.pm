# Random targets, staging relations, batches and calls of idem_merge(), as psql
# scripts that run each call through both engines and print what came of it.
#
# Schema a has the target of the sql engine and schema b that of the native one:
# tables, indexes and constraints have the same names, so that messages are the
# same as well. Whatever is random comes from Perl's rand(), or in the server
# from random() after setseed(): a seed makes the same script and the same data
# each time.
package RandomMerge;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(max min shuffle);

our @EXPORT = qw(pick chance preamble known_features do_without_icu make_shape shape_script batch_script end_script array_literal);

# Functions that the scripts use, and types for columns.
sub preamble
{
    return <<'SQL';
CREATE SCHEMA d;
CREATE TYPE d.mood AS ENUM ('sad', 'meh', 'ok', 'good', 'great');
CREATE TYPE d.comp AS (i int, t text, n numeric);
CREATE DOMAIN d.small AS int CHECK (VALUE < 100);
CREATE DOMAIN d.word AS varchar(6);
CREATE DOMAIN d.id AS int8;
CREATE DOMAIN d.comp_domain AS d.comp CHECK ((VALUE).i < 100);
CREATE TABLE d.parent (id int PRIMARY KEY);
INSERT INTO d.parent SELECT generate_series(0, 999);
CREATE TABLE d.log (target text, batch int, entry text);
CREATE INDEX ON d.log (target, batch);

-- Text that does not compress.
CREATE FUNCTION d.noise(i int, n int) RETURNS text IMMUTABLE LANGUAGE sql AS
$$ SELECT string_agg(md5(j::text || 'of' || i::text), '') FROM generate_series(1, n) AS j $$;

-- A call within a function that catches its errors.
CREATE FUNCTION d.caught(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    message text;
    detail text;
BEGIN
    EXECUTE statement INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN format('caught %s: %s / %s', SQLSTATE, message, detail);
END $$;

-- What is in a table: rows, and those among them that were written since a
-- transaction began, by image; rows that were there and were locked since. The
-- column "seq" has whatever a sequence gave.
CREATE FUNCTION d.image(rel regclass, since text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format(
        'SELECT format(''%%s rows %%s, %%s written %%s, %%s locked'', count(*), '
        '    md5(string_agg(image, '''' ORDER BY image)), '
        '    count(*) FILTER (WHERE new), md5(string_agg(image, '''' ORDER BY image) FILTER (WHERE new)), '
        '    count(*) FILTER (WHERE NOT new AND locked)) '
        'FROM (SELECT record_send(ROW(%s)), xmin::text::bigint >= %s, xmax::text::bigint >= %2$s FROM ONLY %s) '
        '    AS t (image, new, locked)',
        (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
         WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND attname <> 'seq'),
        since, rel) INTO result;
    RETURN result;
END $$;

CREATE FUNCTION d.log_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO d.log VALUES (TG_TABLE_SCHEMA, current_setting('d.batch')::int,
        concat_ws(' ', TG_NAME, TG_OP, CASE TG_OP WHEN 'UPDATE' THEN to_jsonb(OLD) - 'seq' END, to_jsonb(NEW) - 'seq'));
    RETURN NULL;
END $$;

CREATE FUNCTION d.log_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO d.log VALUES (TG_TABLE_SCHEMA, current_setting('d.batch')::int,
        concat_ws(' ', TG_NAME, TG_WHEN, TG_OP));
    RETURN NULL;
END $$;

CREATE FUNCTION d.log_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO d.log SELECT TG_TABLE_SCHEMA, current_setting('d.batch')::int,
        concat_ws(' ', TG_NAME, TG_OP, count(*), md5(string_agg(r, '' ORDER BY r)))
    FROM (SELECT (to_jsonb(row_new) - 'seq')::text COLLATE "C" FROM new_rows AS row_new) AS t (r);
    RETURN NULL;
END $$;

CREATE FUNCTION d.log_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO d.log SELECT TG_TABLE_SCHEMA, current_setting('d.batch')::int,
        concat_ws(' ', TG_NAME, TG_OP, kind, count(*), md5(string_agg(r, '' ORDER BY r)))
    FROM (SELECT 'old', (to_jsonb(row_old) - 'seq')::text COLLATE "C" FROM old_rows AS row_old
          UNION ALL SELECT 'new', (to_jsonb(row_new) - 'seq')::text FROM new_rows AS row_new) AS t (kind, r)
    GROUP BY kind;
    RETURN NULL;
END $$;
SQL
}

# What a column can be: its type, a value of it for a number (#) from 0, and the
# types that it can be staged as: type, value, and a value that does not fit.
# Small numbers of values make most of them equal to what is stored.
my @values = (
    [ 'int2', '(# * 7 - 3)::int2', [ 'int4', '# * 7 - 3', '40000' ], [ 'int8', '#::int8', '3000000000' ] ],
    [   'int4', '# * 1001 - 2',
        [ 'int8', '(# * 1001 - 2)::int8', '3000000000' ],
        [ 'numeric', '# * 1001 - 2.4', "'NaN'::numeric" ],
        [ 'int2', '#::int2' ],
    ],
    [ 'int8', '# * 5000000000', [ 'int4', '#' ], [ 'numeric', '# * 5000000000.4', '1e30' ] ],
    [   'float4', "('{NaN,-0,0,1.5,Infinity,1e-3}'::float4[])[# % 6 + 1]",
        [ 'float8', '# / 3.0::float8', '1e300::float8' ],
    ],
    [ 'float8', "('{NaN,-0,0,1.5,Infinity,1e-3}'::float8[])[# % 6 + 1]", [ 'numeric', '# / 3.0' ] ],
    [   'numeric', "('{1,1.0,1.00,NaN,-0.001,1e20}'::numeric[])[# % 6 + 1]",
        [ 'int4', '#' ], [ 'float8', '#::float8 / 7' ], [ 'numeric(8,1)', '#::numeric(8,1)' ],
    ],
    [   'numeric(10,2)', '#::numeric(10,2)',
        [ 'numeric', '# * 1.005', '1e9' ],
        [ 'float8', '#::float8 / 7', '1e9::float8' ],
    ],
    [   'text', "'text ' || #",
        [ 'varchar(20)', "'varchar ' || #" ],
        [ 'int4', '#' ],
        [ 'char(8)', "('c' || #)::char(8)" ],
        [ 'jsonb', 'to_jsonb(#)' ],
        [ 'bool', '# % 2 = 0' ],
        [ 'timestamp', "timestamp '2020-01-01' + # * interval '1 hour'" ],
    ],
    [   'varchar(6)', "'v' || #",
        [ 'text', "'v' || #", "'far too long'" ],
        [ 'text', "'v' || # || '      '" ],
    ],
    [   'char(4)', "('c' || #)::char(4)",
        [ 'text', "'c' || # || '    '", "'far too long'" ],
        [ 'char(6)', "('c' || #)::char(6)" ],
    ],
    [ 'bytea', 'decode(md5(#::text), \'hex\')' ],
    [   'jsonb', q{jsonb_build_object('a', #, 'b', ARRAY[#, 2])},
        [ 'json', q{('{"b": ' || # || ', "a":  1.0}')::json} ],
    ],
    [ 'json', q{('{"a":' || repeat(' ', # % 3) || # / 3 || '}')::json}, [ 'jsonb', 'to_jsonb(#)' ] ],
    [   'int4[]', q{CASE # WHEN 1 THEN '{}' WHEN 2 THEN '[0:1]={1,NULL}' ELSE ARRAY[#, 1] END::int4[]},
        [ 'int8[]', 'ARRAY[#, 1]::int8[]', 'ARRAY[3000000000]' ], [ 'int2[]', 'ARRAY[#]::int2[]' ],
    ],
    [ 'text[]', q{ARRAY['a', NULL, 'b' || #]} ],
    [   'varchar(4)[]', q{ARRAY['a' || #]::varchar(4)[]},
        [ 'text[]', q{ARRAY['b' || #]}, q{ARRAY['too long']} ],
    ],
    [ 'd.comp', q{ROW(#, 'c' || #, ('{1.0,1.00}'::numeric[])[# % 2 + 1])::d.comp} ],
    [ 'd.comp[]', q{ARRAY[ROW(#, NULL, 1.0), ROW(1, 'x', # / 2)]::d.comp[]} ],
    [   'd.comp_domain', q{ROW(#, NULL, NULL)::d.comp},
        [ 'd.comp', q{ROW(#, NULL, 1)::d.comp}, 'ROW(100, NULL, 1)::d.comp' ],
    ],
    [ 'int4range', 'int4range(#, # + 5)' ],
    [ 'numrange', "numrange(#, # + ('{5.0,5.00}'::numeric[])[# % 2 + 1])" ],
    [ 'int4multirange', 'int4multirange(int4range(#, # + 5), int4range(# + 9, NULL))' ],
    [ 'd.small', '#', [ 'int4', '#', '100' ], [ 'int8', '#::int8', '100::int8' ] ],
    [   'd.word', "'w' || #",
        [ 'text', "'w' || #", "'far too long'" ],
        [ 'varchar(9)', "'w' || #", "'far too l'::varchar(9)" ],
    ],
    [ 'bool', '# % 2 = 0' ],
    [   'date', "date '2020-01-01' + #",
        [ 'timestamp', "timestamp '2020-01-01 13:00' + # * interval '1 day'" ],
    ],
    [   'timestamp(0)', "timestamp '2020-01-01' + # * interval '1 s'",
        [ 'timestamp', "timestamp '2020-01-01' + # * interval '700 ms'" ],
        [ 'date', "date '2020-01-01' + #" ],
    ],
    [   'timestamptz', "timestamptz '2020-01-01 UTC' + # * interval '1 s'",
        [ 'timestamp', "timestamp '2020-01-01' + # * interval '1 s'" ],
    ],
    [ 'time', "time '00:00' + # * interval '1 min'" ],
    [ 'interval', "('{1 day,24 hours,1 mon,30 days}'::interval[])[# % 4 + 1]" ],
    [ 'uuid', "md5('value' || #)::uuid" ],
    [ 'd.mood', '(enum_range(NULL::d.mood))[# % 5 + 1]' ],
    [ 'inet', "'10.0.0.0/8'::inet + #", [ 'cidr', "'10.0.0.0/8'::cidr" ] ],
    [ 'bit(5)', '#::bit(5)', [ 'varbit', '#::bit(5)::varbit', "B'111'::varbit" ] ],
    [ 'point', 'point(#, -0.0)' ],
    [ 'box', 'box(point(0, 0), point(#, 12 - #))' ],
    [ 'tsvector', "to_tsvector('simple', 'a b a c' || #)" ],
    [ 'name', "('n' || #)::name", [ 'text', "'n' || #" ] ],
    [ '"char"', "chr(65 + #)::\"char\"", [ 'text', "chr(65 + #)" ] ],
    [ 'money', '#::money', [ 'numeric', '# + 0.5' ] ],
    [ 'oid', '#::oid', [ 'int8', '#::int8', '(-1)::int8' ] ],
    [ 'pg_lsn', "'0/0'::pg_lsn + #" ],
);

# Values that are compressed, stored out of line, or both.
my @big_values = (
    [ 'text', 'repeat(md5(#::text), 100 + # * 100)', [ 'varchar', 'repeat(md5(#::text), 100 + # * 100)' ] ],
    [ 'text', 'd.noise(#, 100 + # * 100)' ],
    [ 'text', "CASE WHEN # < 3 THEN 'short' ELSE d.noise(# / 2, 100 + # % 2) END" ],
    [ 'bytea', "decode(d.noise(#, 150 + # * 100), 'hex')" ],
    [ 'jsonb', "jsonb_build_object('long', d.noise(#, 100), 'n', #)" ],
    [ 'text[]', 'array_fill(md5(#::text), ARRAY[200])' ],
    [ 'd.comp', 'ROW(#, d.noise(# / 2, 120), 1.0)::d.comp' ],
);

# Types of keys that the native engine serves, in the same way; the last entry
# is how many different values there are, if they are few.
my @keys = (
    {   type => 'int4', expr => '# * 37 - 1000',
        staged => [
            [ 'int8', '(# * 37 - 1000)::int8', '3000000000' ],
            [ 'numeric', '# * 37 - 1000 + 0.2' ],
        ],
    },
    { type => 'int4', expr => '#', staged => [ [ 'int8', '#::int8' ] ] },
    { type => 'int2', expr => '(# - 50)::int2', staged => [ [ 'int4', '# - 50', '40000' ] ] },
    { type => 'int8', expr => '# * 10000000019', staged => [ [ 'int4', '#' ] ] },
    { type => 'uuid', expr => "md5('key' || #)::uuid" },
    {   type => 'text COLLATE "C"', expr => "('{a,B,é,Z,_}'::text[])[# % 5 + 1] || #",
        staged => [
            [ 'varchar(40)', "'k' || #" ],
            [ 'int4', '#' ],
        ],
    },
    { type => 'text COLLATE "und-x-icu"', expr => "('{a,B,é,Z,_}'::text[])[# % 5 + 1] || #" },
    { type => 'text', expr => "CASE # WHEN 0 THEN '' ELSE ('{a,B,é,Z,_}'::text[])[# % 5 + 1] || # END" },
    {   type => 'varchar(8)', expr => "'v' || #",
        staged => [
            [ 'text', "'v' || #", "'far too long'" ],
            [ 'text', "'v' || # || '       '" ],
        ],
    },
    {   type => 'date', expr => "date '2000-01-01' + #",
        staged => [
            [ 'timestamp', "timestamp '2000-01-01' + # * interval '1 day' + random() * interval '5 hours'" ],
        ],
    },
    { type => 'timestamptz', expr => "timestamptz '2020-01-01 UTC' + # * interval '1 min'" },
    {   type => 'timestamp', expr => "timestamp '2020-01-01' + # * interval '1 min'",
        staged => [
            [ 'date', "date '2020-01-01' + #" ],
        ],
    },
    { type => 'bytea', expr => "decode(md5(#::text), 'hex')" },
    { type => 'd.mood', expr => '(enum_range(NULL::d.mood))[# % 5 + 1]', limit => 5 },
    { type => 'bool', expr => '# % 2 = 0', limit => 2 },
    { type => 'd.id', expr => '#', staged => [ [ 'int4', '#' ], [ 'int8', '#::int8' ] ] },
    { type => 'oid', expr => '#::oid' },
    { type => 'd.word', expr => "'w' || #", staged => [ [ 'text', "'w' || #", "'far too long'" ] ] },
    { type => 'name', expr => "('n' || #)::name" },
);

my @versions = (
    [ 'int4', '#' ],
    [ 'int8', '#::int8', [ 'int4', '#' ] ],
    [ 'timestamptz', "timestamptz '2020-01-01 UTC' + # * interval '1 h'" ],
    [   'date', "date '2020-01-01' + #",
        [ 'timestamp', "timestamp '2020-01-01 13:00' + # * interval '1 day'" ],
    ],
    [ 'numeric', "#::numeric / 2" ],
    [ 'numeric(6,1)', '#', [ 'numeric', '# / 20.0' ] ],
    [ 'text COLLATE "C"', "'v' || #" ],
    [ 'd.mood', '(enum_range(NULL::d.mood))[# % 5 + 1]' ],
    [ 'float8', '#::float8 / 4' ],
);
my @endless = (
    [ 'float8', "('{NaN,-0,0,1.5,Infinity,-Infinity}'::float8[])[# % 6 + 1]" ],
    [ 'numeric', "('{1,1.0,NaN,Infinity,-Infinity,1.00}'::numeric[])[# % 6 + 1]" ],
    [   'timestamptz',
        "('{infinity,-infinity,2020-01-01 UTC,2020-01-01 00:00:00.1 UTC,2021-01-01 UTC}'::timestamptz[])[# % 5 + 1]",
    ],
);

sub pick
{
    return $_[ int(rand(@_)) ];
}

sub chance
{
    return rand() < $_[0];
}

sub ident
{
    my ($name) = @_;

    return $name =~ /^[a-z_][a-z0-9_]*$/ ? $name : '"' . $name =~ s/"/""/gr . '"';
}

sub idents
{
    return join(', ', map { ident($_) } @_);
}

sub array_literal
{
    return @_ ? 'ARRAY[' . join(', ', map { "'$_'" } @_) . ']' : "'{}'::text[]";
}

# An expression with its number put in.
sub with_number
{
    my ($expr, $number) = @_;

    return $expr =~ s/#/$number/gr;
}

# A column that staging has, as a type that can be assigned to the target's.
sub stage_as
{
    my ($column, @alternatives) = @_;
    my $alternative = @alternatives && chance(0.4) ? pick(@alternatives) : undef;

    $column->{staged} =
      $alternative
      ? { type => $alternative->[0], expr => $alternative->[1], bad => $alternative->[2] }
      : { type => $column->{type} =~ s/ COLLATE.*//r, expr => $column->{expr} };
    return $column;
}

# Whatever a shape can have, apart from types of values, once shapes were made.
my %known_features = (
    (map { ("staging $_" => 1) } qw(table temp unlogged view partitioned inheritance matview)),
    (map { ("key $_->{type}" => 1) } @keys),
    (map { ("$_ key columns" => 1) } 1 .. 3),
    'lacking column' => 1,
    'extra column' => 1);

sub known_features
{
    return sort keys %known_features;
}

# For servers that were built without ICU.
sub do_without_icu
{
    @keys = grep { $_->{type} !~ /-x-icu/ } @keys;
    delete @known_features{ grep { /-x-icu/ } keys %known_features };
    return;
}

# A target, and the staging relation that goes with it.
sub make_shape
{
    my ($number) = @_;
    my %shape = (number => $number, columns => [], features => {});
    my $features = $shape{features};
    my $want = sub {
        my ($feature, $probability) = @_;
        $known_features{$feature} = 1;
        $features->{$feature} = 1 if chance($probability);
        return $features->{$feature};
    };
    my $add = sub { push @{ $shape{columns} }, $_[0]; return $_[0]; };

    # The key. Column i of a composite one has its own digit of the number.
    my $nkeys = pick(1, 1, 1, 2, 3);
    my $product = 1;
    for my $i (1 .. $nkeys)
    {
        my $last = $i == $nkeys;
        my @candidates = $last && $nkeys > 1 ? grep { !$_->{limit} } @keys : @keys;
        my $key = pick(@candidates);
        my $modulus = min($key->{limit} // 9, pick(2, 3, 7));
        my $digit =
          $nkeys == 1 ? 'k' : $last ? "(k / $product)" : "(k / $product % $modulus)";

        $shape{space} = $key->{limit} if $nkeys == 1;
        $add->(
            stage_as(
                {   name => chance(0.1) ? "Key $i" : "k$i",
                    role => 'key',
                    type => $key->{type},
                    expr => $key->{expr},
                    number => $digit,
                },
                @{ $key->{staged} // [] }));
        $product *= $modulus;
    }
    $features->{"key $_->{type}"} = 1 foreach @{ $shape{columns} };
    $features->{"$nkeys key columns"} = 1;
    my @key = @{ $shape{columns} };

    # Columns that only hold values.
    my $big = $want->('big values', 0.15);
    for my $i (1 .. pick(0, 1, 1, 2, 3, 4))
    {
        my ($type, $expr, @staged) = @{ $big && chance(0.6) ? pick(@big_values) : pick(@values) };
        my $name = chance(0.1) ? "V $i" : "v$i";
        my $column = stage_as({ name => $name, role => 'value', type => $type, expr => $expr }, @staged);

        $column->{constraint} = 'NOT NULL' if chance(0.15);
        # Staging can lack it.
        if (chance(0.1))
        {
            delete $column->{staged};
            $column->{constraint} = 'DEFAULT ' . with_number($expr, '3')
              if chance(0.6) || ($column->{constraint} // '') eq 'NOT NULL';
            $features->{'lacking column'} = 1;
        }
        $features->{"value $type"} = 1;
        $add->($column);
    }
    if (chance(0.4))
    {
        for my $i (1 .. pick(1, 1, 1, 2))
        {
            my ($type, $expr, @staged) = @{ chance(0.15) ? pick(@endless) : pick(@versions) };

            $add->(stage_as({ name => "ver$i", role => 'version', type => $type, expr => $expr }, @staged));
        }
    }
    $add->(stage_as({ name => 'loaded', role => 'audit', type => pick('text', 'int4'), expr => '#' }))
      if $want->('audit', 0.2);

    # Columns that indexes, constraints and triggers are about.
    my $check = $want->('check', 0.3) ? 'CHECK (n < 100)' : '';
    $add->(
        stage_as({ name => 'n', role => 'value', type => 'int4', expr => '#', constraint => $check },
            [ 'int8', '#::int8', '100::int8' ]));
    $add->(stage_as({ name => 's', role => 'value', type => 'text', expr => "'S' || #" })) if chance(0.6);
    if ($want->('other unique index', 0.15))
    {
        $add->(stage_as({ name => 'u', role => 'unique', type => 'int4', expr => '#', number => 'k' }));
    }
    if ($want->('foreign key', 0.15))
    {
        my $deferred = pick('', '', ' DEFERRABLE INITIALLY DEFERRED');
        my $constraint = "REFERENCES d.parent$deferred";
        $add->(
            stage_as({ name => 'f', role => 'value', type => 'int4', expr => '#', constraint => $constraint },
                [ 'int4', '#', '1000' ]));
    }
    $add->({ name => 'g', role => 'generated', type => 'int4', constraint => 'GENERATED ALWAYS AS (n * 2) STORED' })
      if $want->('generated', 0.2);
    if ($want->('sequence', 0.15))
    {
        my $constraint = pick('GENERATED ALWAYS AS IDENTITY', 'GENERATED BY DEFAULT AS IDENTITY',
            q{DEFAULT nextval('d.seq')});
        $add->({ name => 'seq', role => 'sequence', type => 'int8', constraint => $constraint });
    }
    @{ $shape{columns} } = shuffle(@{ $shape{columns} });

    # The index of the key.
    $shape{nulls} = $want->('nulls not distinct', 0.12);
    my $primary = !$shape{nulls} && chance(0.5);
    my $include = $want->('include', 0.1) ? ' INCLUDE (n)' : '';
    my @index = shuffle(@key);
    $shape{primary} = $primary;
    $shape{key} = [ map { $_->{name} } @key ];
    push @{ $shape{ddl} },
      $primary
      ? 'ALTER TABLE %s.t ADD PRIMARY KEY (' . idents(map { $_->{name} } @index) . ")$include;"
      : 'CREATE UNIQUE INDEX key ON %s.t ('
      . join(', ', map { ident($_->{name}) . pick('', '', '', ' DESC', ' NULLS FIRST', ' DESC NULLS LAST') } @index)
      . ")$include" . ($shape{nulls} ? ' NULLS NOT DISTINCT' : '') . ';';
    my @more = (
        [ 'plain index', 0.25, 'CREATE INDEX ON %s.t (n);' ],
        [ 'partial expression index', 0.15, 'CREATE INDEX ON %s.t ((n % 5)) WHERE n > 2;' ],
        [ 'brin index', 0.08, 'CREATE INDEX ON %s.t USING brin (n);' ],
        [ 'hash index', 0.05, 'CREATE INDEX ON %s.t USING hash (n);' ],
        [   'after insert trigger', 0.12,
            'CREATE TRIGGER row_i AFTER INSERT ON %s.t FOR EACH ROW ' . pick('', 'WHEN (NEW.n > 1) ')
              . 'EXECUTE FUNCTION d.log_row();',
        ],
        [   'after update trigger', 0.12,
            'CREATE TRIGGER row_u AFTER UPDATE' . pick('', '', ' OF n') . ' ON %s.t FOR EACH ROW '
              . pick('', 'WHEN (OLD.n IS DISTINCT FROM NEW.n) ') . 'EXECUTE FUNCTION d.log_row();',
        ],
        [   'statement trigger', 0.1,
            'CREATE TRIGGER statement ' . pick('BEFORE', 'AFTER')
              . ' INSERT OR UPDATE ON %s.t FOR EACH STATEMENT EXECUTE FUNCTION d.log_statement();',
        ],
        [   'transition table of inserts', 0.1,
            'CREATE TRIGGER inserted AFTER INSERT ON %s.t REFERENCING NEW TABLE AS new_rows'
              . ' FOR EACH STATEMENT EXECUTE FUNCTION d.log_inserted();',
        ],
        [   'transition tables of updates', 0.1,
            'CREATE TRIGGER updated AFTER UPDATE ON %s.t REFERENCING OLD TABLE AS old_rows'
              . ' NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION d.log_updated();',
        ]);

    foreach my $more (@more)
    {
        push @{ $shape{ddl} }, $more->[2] if $want->($more->[0], $more->[1]);
    }
    push @{ $shape{ddl} }, 'CREATE UNIQUE INDEX other ON %s.t (u' . pick(')', ') WHERE n > 1', ', (n + 0))') . ';'
      if $features->{'other unique index'};

    # The fields of a stored row are not those of the table's definition.
    $want->('dropped columns', 0.2);
    $want->('column added with default', 0.12);
    $shape{fillfactor} = pick(100, 100, 70, 20);

    # Staging.
    $shape{kind} = pick(('table') x 5, 'temp', 'temp', 'unlogged', 'view', 'view', 'partitioned',
        'inheritance', 'matview');
    $features->{"staging $shape{kind}"} = 1;
    if ($features->{'column added with default'})
    {
        push @{ $shape{columns} }, stage_as({ name => 'late', role => 'late', type => 'text', expr => "'late ' || # % 3" });
        delete $shape{columns}[-1]{staged} if chance(0.5);
    }
    # Rows of staging that has the target's columns as they are can be taken whole.
    if ($want->('staging like the target', 0.3))
    {
        foreach my $column (grep { $_->{role} !~ /generated|sequence/ } @{ $shape{columns} })
        {
            $column->{staged} = { type => $column->{type} =~ s/ COLLATE.*//r, expr => $column->{expr} };
        }
        $shape{staged} = [ grep { $_->{staged} } @{ $shape{columns} } ];
    }
    else
    {
        $shape{staged} = [ shuffle(grep { $_->{staged} } @{ $shape{columns} }) ];
    }
    $shape{extra} = chance(0.12);
    $features->{'extra column'} = 1 if $shape{extra};
    $shape{rows} = $big ? pick(0, 5, 100) : pick(0, 5, 30, 30, 300, 300, 300, 3000);
    $shape{space} = min($shape{space} // 30000, max(10, $shape{rows} * 2));
    $shape{batch} = 0;
    return \%shape;
}

# The statement that fills a table with columns' values. spread is how often
# values differ from what the key makes of them, nulls how often they are NULL,
# bad how often they do not fit, from where the rows' numbers k come from.
sub fill
{
    my ($table, $as_staged, $columns, $from, %how) = @_;
    my (@numbers, @exprs);
    my $i = 0;

    foreach my $column (@$columns)
    {
        my $form = $as_staged ? $column->{staged} : $column;
        my $expr;

        $i++;
        if ($column->{role} eq 'key')
        {
            $expr = with_number($form->{expr}, $column->{number});
            if ($how{key_nulls})
            {
                push @numbers, "random() < $how{key_nulls} AS n$i";
                $expr = "CASE WHEN NOT n$i THEN $expr END";
            }
        }
        else
        {
            my $base = $column->{role} eq 'unique' ? 'k' : "(k * 31 + $i * 7) % 6";
            my $other = $column->{role} eq 'unique' ? 'floor(random() * 20)::int' : 'floor(random() * 6)::int';

            # The key's number for most of a unique column's values.
            my $spread =
                $column->{role} eq 'unique' ? min($how{spread}, $how{unique} // 0)
              : $column->{role} eq 'version' ? $how{version_spread}
              :                                $how{spread};
            push @numbers, "CASE WHEN random() < $spread THEN $other ELSE $base END AS v$i";
            $expr = with_number($form->{expr}, "v$i");
            my $nulls = ($column->{constraint} // '') =~ /NOT NULL/ ? $how{bad_nulls} // 0 : $how{nulls};
            if ($nulls > 0)
            {
                push @numbers, "random() < $nulls AS n$i";
                $expr = "CASE WHEN NOT n$i THEN $expr END";
            }
        }
        if ($how{bad} && defined $form->{bad} && $column->{name} eq $how{bad})
        {
            push @numbers, "random() < 0.1 AS b$i";
            $expr = "CASE WHEN b$i THEN $form->{bad} ELSE $expr END";
        }
        push @exprs, $expr;
    }
    return
        "INSERT INTO $table ("
      . idents(map { $_->{name} } @$columns)
      . ')' . ($how{overriding} // '')
      . "\n  SELECT " . join(', ', @exprs)
      . "\n  FROM (SELECT " . join(', ', 'k', @numbers) . " FROM ($from) AS numbers OFFSET 0) AS x"
      . ($how{conflict} // '') . ';';
}

# Create target and staging.
sub shape_script
{
    my ($shape) = @_;
    my @script = (
        'DROP SCHEMA IF EXISTS a, b, st CASCADE;', 'CREATE SCHEMA a; CREATE SCHEMA b; CREATE SCHEMA st;',
        'DROP SEQUENCE IF EXISTS d.seq; CREATE SEQUENCE d.seq;');
    my @columns = grep { $_->{role} ne 'late' } @{ $shape->{columns} };
    my @late = grep { $_->{role} eq 'late' } @{ $shape->{columns} };
    my @definitions = map { ident($_->{name}) . " $_->{type} " . ($_->{constraint} // '') } @columns;
    my @dropped;

    if ($shape->{features}{'dropped columns'})
    {
        for my $i (1 .. pick(1, 2, 3))
        {
            splice @definitions, int(rand(@definitions + 1)), 0, "gone$i " . pick('int', 'text', 'bool', 'int8 DEFAULT 7');
            push @dropped, "gone$i";
        }
    }
    my @given = grep { $_->{expr} } @columns;
    foreach my $schema ('a', 'b')
    {
        push @script, "CREATE TABLE $schema.t (\n  " . join(",\n  ", @definitions) . "\n) WITH (fillfactor = $shape->{fillfactor});",
          map { sprintf($_ =~ s/%(?!s)/%%/gr, $schema) } @{ $shape->{ddl} };
        push @script, "ALTER TABLE $schema.t DROP COLUMN $_;" foreach @dropped;
    }
    push @script, 'SET d.batch = 0;', 'SELECT setseed(' . sprintf('%.6f', rand()) . ') \g /dev/null';
    push @script,
      fill('a.t', 0, \@given,
        "SELECT k FROM generate_series(0, $shape->{space} - 1) AS k ORDER BY random() LIMIT $shape->{rows}",
        spread => 0.1, version_spread => 0.3, nulls => 0.05, key_nulls => $shape->{nulls} ? 0.02 : 0,
        conflict => "\n  ON CONFLICT DO NOTHING");
    my $names = idents(map { $_->{name} } grep { $_->{role} ne 'generated' } @columns);
    push @script, "INSERT INTO b.t ($names) OVERRIDING SYSTEM VALUE SELECT $names FROM a.t;";
    foreach my $late (@late)
    {
        push @script, "ALTER TABLE $_.t ADD COLUMN late text DEFAULT 'late 1';" foreach 'a', 'b';
    }
    push @script, pick('', 'ANALYZE a.t; ANALYZE b.t;', 'VACUUM ANALYZE a.t; VACUUM ANALYZE b.t;');

    # Staging: base is what is filled, st.s what is merged.
    my @staged = map { ident($_->{name}) . " $_->{staged}{type}" } @{ $shape->{staged} };
    splice @staged, int(rand(@staged + 1)), 0, 'extra int DEFAULT 5' if $shape->{extra};
    my $gone = chance(0.15);
    splice @staged, int(rand(@staged + 1)), 0, 'gone text' if $gone;
    my $definition = '(' . join(', ', @staged) . ')';
    my $kind = $shape->{kind};

    $shape->{staging} = 'st.s';
    $shape->{base} = 'st.s';
    if ($kind eq 'temp')
    {
        $shape->{staging} = $shape->{base} = 'pg_temp.s';
        push @script, "CREATE TEMP TABLE s $definition;";
    }
    elsif ($kind eq 'unlogged')
    {
        push @script, "CREATE UNLOGGED TABLE st.s $definition;";
    }
    elsif ($kind eq 'partitioned')
    {
        my $by = ident($shape->{key}[0]);

        push @script, "CREATE TABLE st.s $definition PARTITION BY HASH ($by);",
          map { "CREATE TABLE st.s$_ PARTITION OF st.s FOR VALUES WITH (MODULUS 3, REMAINDER $_);" } 0 .. 2;
    }
    elsif ($kind eq 'inheritance')
    {
        push @script, "CREATE TABLE st.s $definition;";
    }
    elsif ($kind eq 'view' || $kind eq 'matview')
    {
        $shape->{base} = 'st.base';
        push @script, "CREATE TABLE st.base $definition;";
    }
    else
    {
        push @script, "CREATE TABLE st.s $definition;";
    }
    push @script, "ALTER TABLE $shape->{base} DROP COLUMN gone;" if $gone;
    push @script, 'CREATE TABLE st.child () INHERITS (st.s);' if $kind eq 'inheritance';
    push @script, 'CREATE VIEW st.s AS TABLE st.base;' if $kind eq 'view';
    push @script, 'CREATE MATERIALIZED VIEW st.s AS TABLE st.base;' if $kind eq 'matview';
    return join("\n", @script) . "\n";
}

# Options of a call that fit the shape.
sub random_options
{
    my ($shape) = @_;
    my %options;
    my @names = map { $_->{name} } @{ $shape->{staged} };
    my %role = map { $_->{name} => $_->{role} } @{ $shape->{staged} };
    my @versions = sort grep { $role{$_} eq 'version' } @names;
    my @audit = grep { $role{$_} eq 'audit' } @names;
    my @others = grep { $role{$_} ne 'key' && $role{$_} ne 'version' && $role{$_} ne 'audit' } @names;

    $options{key_cols} = array_literal(shuffle(@{ $shape->{key} })) unless $shape->{primary} && chance(0.5);
    $options{version_cols} = array_literal(chance(0.5) ? @versions : $versions[0]) if @versions && chance(0.8);
    $options{audit_cols} = array_literal(@audit) if @audit && chance(0.8);
    if (chance(0.12))
    {
        $options{update_cols} = array_literal(grep { chance(0.5) } @others);
    }
    elsif (@others && chance(0.12))
    {
        $options{exclude_cols} = array_literal(grep { chance(0.5) } @others);
    }
    $options{mode} = pick(q{'insert'}, q{'update'}) if chance(0.2);
    $options{on_duplicate} =
      pick(q{'any'}, q{'any'}, q{'any'}, q{'error'}, $options{version_cols} ? q{'latest'} : q{'any'})
      if chance(0.5);
    $options{on_stale} = pick(q{'error'}, q{'apply'}, q{'apply'}, q{'apply'})
      if $options{version_cols} && chance(0.3);
    $options{on_schema_change} = pick(q{'ignore'}, q{'ignore'}, q{'add_columns'}) if $shape->{extra} && chance(0.9);
    $options{exclusive} = 'true' if chance(0.1);
    $options{metadata} = q{'{"a": 1}'} if chance(0.05);
    $options{pipeline} = q{'p'} if chance(0.1);
    return %options;
}

# What happens to the target before a merge, in each of the schemas.
sub interference
{
    my ($shape, $within) = @_;
    my $some = 'abs(hashint4(n)) % ' . pick(2, 3, 5) . ' = 0';
    my @kinds = (
        "UPDATE %s.t SET n = n + 1 WHERE $some;",
        "DELETE FROM %s.t WHERE $some;",
        "SELECT count(*) FROM (SELECT FROM %s.t WHERE $some "
          . pick('FOR UPDATE', 'FOR KEY SHARE', 'FOR SHARE')
          . ') AS locked \g /dev/null',
        "UPDATE %s.t SET n = n WHERE $some;",
    );
    push @kinds,
      "SAVEPOINT s; UPDATE %s.t SET n = n + 1 WHERE $some; ROLLBACK TO s;",
      "SAVEPOINT s; DELETE FROM %s.t WHERE $some; ROLLBACK TO s;",
      "SAVEPOINT s; UPDATE %s.t SET n = n - 1 WHERE $some; RELEASE s;",
      "DELETE FROM %s.t WHERE $some;"
      if $within;
    push @kinds, 'VACUUM %s.t;', 'ANALYZE %s.t;', 'TRUNCATE %s.t;',
      'CLUSTER %s.t USING ' . ($shape->{primary} ? 't_pkey' : 'key') . ';'
      if !$within;
    return pick(@kinds);
}

# A batch, merged by both engines.
sub batch_script
{
    my ($shape, $expected) = @_;
    my $batch = ++$shape->{batch};
    my $id = "$shape->{number} $batch";
    my @script;
    my $last = $shape->{last};
    my $again = $last && chance(0.12);
    my %options = $again && chance(0.9) ? %{ $last->{options} } : random_options($shape);
    my ($before, $within) = ('', '');
    my $rows;

    push @script, "\\echo \@\@ $id setup", "\\warn \@\@ $id setup";
    if (!$again || chance(0.15))
    {
        # New content.
        my %how = (spread => pick(0, 0.05, 0.3, 1), version_spread => pick(0, 0.3, 1), nulls => pick(0, 0.05, 0.3));
        my $sizes = $shape->{features}{'big values'} ? [ 0, 1, 5, 30, 100 ] : [ 0, 1, 1, 3, 20, 20, 100, 100, 100, 500 ];

        $rows = chance(0.03) ? 2000 : pick(@$sizes);
        $shape->{space} = max($shape->{space}, 3000) if $rows == 2000 && $shape->{space} >= 10;
        $rows = 100 if $rows > 100 && $shape->{features}{'big values'};
        my $duplicates = pick('none', 'none', 'none', 'same', 'any');

        # Sometimes all keys, or most, are above those that are stored.
        my $first = chance(0.1) ? $shape->{space} - pick(0, 0, 3) : 0;
        my $past = $first + $shape->{space} - 1;
        my $from =
          $duplicates eq 'any'
          ? "SELECT floor(random() * $shape->{space})::int + $first AS k FROM generate_series(1, $rows)"
          : "SELECT k FROM generate_series($first, $past) AS k ORDER BY random() LIMIT $rows";

        if (chance(0.08))
        {
            my @can = grep { defined $_->{staged}{bad} } @{ $shape->{staged} };
            $how{bad} = pick(@can)->{name} if @can;
        }
        $how{bad_nulls} = 0.02 if chance(0.1);
        $how{unique} = chance(0.3) ? 0.05 : 0;
        $how{key_nulls} = chance($shape->{nulls} ? 0.5 : 0.03) ? 0.05 : 0;
        push @script, 'SELECT setseed(' . sprintf('%.6f', rand()) . ') \g /dev/null', "TRUNCATE $shape->{base};";
        push @script, fill($shape->{base}, 1, $shape->{staged}, $from, %how);
        push @script, 'WITH moved AS (DELETE FROM ONLY st.s WHERE random() < 0.5 RETURNING *)'
          . ' INSERT INTO st.child SELECT * FROM moved;'
          if $shape->{kind} eq 'inheritance';
        push @script, "INSERT INTO $shape->{base} SELECT * FROM $shape->{base} WHERE random() < 0.3;"
          if $duplicates eq 'same';
        push @script, "ANALYZE $shape->{base};" if chance(0.1);

        # Values that rows do not have, because the column came later.
        my ($n) = grep { $_->{name} eq 'n' } @{ $shape->{staged} };
        push @script, "ALTER TABLE $shape->{base} DROP COLUMN n, ADD COLUMN n $n->{staged}{type} DEFAULT 4;"
          if $shape->{kind} =~ /table|temp|unlogged|inheritance/ && chance(0.05);
        push @script, 'REFRESH MATERIALIZED VIEW st.s;' if $shape->{kind} eq 'matview';
    }
    if ($again)
    {
        $options{batch_id} = $last->{options}{batch_id};
        delete $options{batch_id} if !defined $options{batch_id};
        $options{on_replay} = pick(q{'reapply'}, q{'reapply'}, q{'error'}) if chance(0.5);
        $options{on_mismatch} = pick(q{'apply'}, q{'apply'}, q{'skip'}) if chance(0.4);
    }
    elsif (chance(0.8))
    {
        $options{batch_id} = "'batch $batch'";
    }
    if (chance(0.15))
    {
        $before = interference($shape, 0);
        push @script, map { sprintf($before =~ s/%(?!s)/%%/gr, $_) } 'a', 'b';
    }
    my $block = chance(0.15);
    my $isolation = pick('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');
    $within = interference($shape, 1) if $block && chance(0.6);
    my $dry = chance(0.02);
    $options{dry_run} = 'true' if $dry;
    my $caught = chance(0.15);
    my $work_mem = chance(0.3) ? '64kB' : '4MB';
    push @script, "SET work_mem = '$work_mem'; SET hash_mem_multiplier = " . pick(1, 2) . ';', "SET d.batch = $batch;";

    foreach my $engine ('sql', 'native')
    {
        my $schema = $engine eq 'sql' ? 'a' : 'b';
        my %all = %options;

        # Where stored rows are looked for first makes no difference.
        my $where = (undef, undef, undef, 'true', 'false', '(ctid::text::point)[1]::int % 2 = 0')[ ($shape->{number} + $batch) % 6 ];
        $all{target_predicate} = "'$where'" if $engine eq 'sql' && $where && ($options{mode} // '') ne q{'update'};
        my $arguments = join(', ', "'$shape->{staging}'", "'$schema.t'", map { "$_ => $all{$_}" } sort keys %all);
        my $call =
            "SELECT concat_ws('|', status, summary, batch_id, pipeline, revision, rows_staged, rows_duplicate,"
          . ' rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_stale, rows_skipped, fingerprint,'
          . " applied_at IS NULL, elapsed IS NULL, 'engine ' || engine)\n  FROM idem_merge($arguments)";

        push @script, "\\echo \@\@ $id $engine", "\\warn \@\@ $id $engine", "SET idempotent_ingest.engine = $engine;",
          'SELECT pg_current_xact_id() AS since \gset';
        push @script, "BEGIN ISOLATION LEVEL $isolation;" if $block;
        push @script, sprintf($within =~ s/%(?!s)/%%/gr, $schema) if $within;
        push @script, $caught ? "SELECT d.caught(\$call\$$call\$call\$);" : "$call;";
        push @script, '\if :ERROR', '\echo error :LAST_ERROR_SQLSTATE', '\endif';
        push @script, 'COMMIT;', '\if :ERROR', '\echo error at commit :LAST_ERROR_SQLSTATE', '\endif' if $block;
        push @script, "SELECT 'image', d.image('$schema.t', :'since');",
          "SELECT 'ledger', to_jsonb(l) - '{target,target_type,engine,applied_at,elapsed,xid}'::text[] FROM idem_ledger AS l"
          . " WHERE target = '$schema.t'::regclass AND xid >= :'since'::xid8 ORDER BY pipeline, batch_id;",
          "SELECT 'audit', action, entry - '{target,target_type,engine,applied_at,elapsed,xid}'::text[]"
          . " FROM idem_audit AS x WHERE x.xmin::text::bigint >= :'since'::bigint ORDER BY 3;",
          "SELECT 'log', count(*), md5(string_agg(entry, ' ' ORDER BY entry COLLATE \"C\"))"
          . " FROM d.log WHERE target = '$schema' AND batch = $batch;";
    }
    $shape->{last} = { options => \%options };
    $$expected{"$shape->{number} $batch"} = {
        clean => !$within && !$dry,
        exclusive => defined $options{exclusive},
        shape => $shape,
    };
    return join("\n", @script) . "\n";
}

# After the last batch: tables and indexes are sound.
sub end_script
{
    my ($shape) = @_;
    my $id = "$shape->{number} end";

    return <<"SQL";
\\echo \@\@ $id setup
\\warn \@\@ $id setup
SELECT 'corruption', * FROM verify_heapam('b.t');
SELECT bt_index_check(indexrelid, true) FROM pg_index JOIN pg_class ON oid = indexrelid
  WHERE indrelid = 'b.t'::regclass AND relam = (SELECT oid FROM pg_am WHERE amname = 'btree') \\g /dev/null
TRUNCATE d.log;
\\c
SQL
}

1;
