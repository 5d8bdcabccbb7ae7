# docs/reference.md against the catalog, in both directions: functions with their
# parameters, relations with their columns, settings, SQLSTATEs. Everything has a
# COMMENT. docs/troubleshooting.md has every message that comes with a hint,
# docs/design.md every file of src/, and every link leads somewhere.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use IdemTest qw(make_cluster make_database);

my $top = "$FindBin::RealBin/../..";

# A list is what it should be; the lists may be in any order.
sub is_list
{
    my ($got, $expected, $what) = @_;
    return is(join("\n", sort @$got), join("\n", sort @$expected), $what);
}

# The tables of a piece of a document: a list of rows, each a hash by the headers;
# "first" is the first header.
sub rows_of
{
    my (@rows, @headers);

    for (split /\n/, $_[0])
    {
        if (!s/^\| *//) { @headers = (); next }
        s/ *\|$//;
        my @cells = split / *(?<!\\)\| */, $_, -1;
        if (!@headers) { @headers = @cells }
        elsif (!/^-+(\||$)/)
        {
            my %row = (first => $headers[0]);
            @row{@headers} = @cells;
            push @rows, \%row;
        }
    }
    return @rows;
}

# `a`, `b` to `d` => a, b, c, d; ranges are of the given names.
sub names_in
{
    my ($cell, @order) = @_;
    my @names;

    $cell =~ s{`(\w+)`\ to\ `(\w+)`}{
        my ($from, $to) = ($1, $2);
        join ', ', map { "`$_`" } grep { my $n = $_; ($n eq $from .. $n eq $to) } @order
    }gex;
    push @names, $cell =~ /`([\w.]+)`/g;
    return @names;
}

# What the library can say: [file, level, SQLSTATE, hint or not, message] with "..."
# for what is filled in.
sub messages_of_source
{
    my ($includedir) = @_;
    my (%sqlstate, @messages);
    my $nested = qr/(\((?:[^()"']++|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?-1))*\))/;

    for (slurp_file("$includedir/utils/errcodes.h"), slurp_file("$top/src/idempotent_ingest.h"))
    {
        while (/#define (ERRCODE_\w+)\s+MAKE_SQLSTATE\(([^)]*)\)/g)
        {
            my ($name, $state) = ($1, $2);
            $sqlstate{$name} = $state =~ s/[', ]//gr;
        }
    }
    for my $file (sort glob "$top/src/*.c")
    {
        my $source = slurp_file($file) =~ s{("(?:\\.|[^"\\])*")|/\*.*?\*/}{$1 // ''}gser;
        while ($source =~ /\bereport\s*$nested/g)
        {
            my $call = $1;
            my ($level) = $call =~ /^\(\s*(\w+)/;
            my ($code) = $call =~ /\berrcode\s*\(\s*(ERRCODE_\w+)/;
            my $state = $code ? $sqlstate{$code} // "unknown $code" : $level eq 'WARNING' ? '01000' : '';
            while ($call =~ /\berrmsg(_plural)?\s*$nested/g)
            {
                my ($plural, $arguments) = ($1, $2);
                my @texts = $arguments =~ /((?:"(?:\\.|[^"\\])*"\s*)+)/g;
                my $text = join '', $texts[ $plural ? 1 : 0 ] =~ /"((?:\\.|[^"\\])*)"/g;
                $text =~ s/\\"/"/g;
                $text =~ s/%(?:ll|[lz])?[a-z]/.../g;
                push @messages, {
                    file => $file =~ s/.*\///r, level => $level, state => $state,
                    hint => scalar($call =~ /\berrhint/), text => $text
                };
            }
        }
    }
    return @messages;
}

my $node = make_cluster('reference', conf => "shared_preload_libraries = 'idempotent_ingest'");
make_database($node, 'reference', 'public');

# Rows of a query, as lists.
sub ask
{
    return map { [ split /\x1f/, $_, -1 ] } split /\n/,
      $node->safe_psql('reference', $_[0], extra_params => [ '-F', "\x1f" ]);
}

# Every object of the extension, but for sequences of identity columns: kind, OID,
# name, comment.
my $members = q{
    SELECT d.classid::regclass::text AS kind, d.objid,
           coalesce(p.proname, c.relname) AS name, obj_description(d.objid, d.classid::regclass::text) AS comment
    FROM pg_depend AS d
    LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND c.relkind IS DISTINCT FROM 'S'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotent_ingest')};
my %functions = map { $_->[0] => $_->[1] } ask("SELECT name, objid FROM ($members) AS m WHERE kind = 'pg_proc'");
my %relations = map { $_->[0] => $_->[1] } ask("SELECT name, objid FROM ($members) AS m WHERE kind = 'pg_class'");
cmp_ok(scalar keys %functions, '>', 20, 'there are functions');
cmp_ok(scalar keys %relations, '>', 5, 'there are relations');
is_list([ map { $_->[0] } ask("SELECT kind FROM ($members) AS m WHERE kind NOT IN ('pg_proc', 'pg_class', 'pg_type')") ],
    [], 'there are objects of no other kind, but row types');

# Comments
is_list([ map { $_->[0] } ask("SELECT name FROM ($members) AS m WHERE comment IS NULL AND kind <> 'pg_type'") ],
    [], 'every object has a comment');
is_list([ map { $_->[0] } ask("
        SELECT a.attrelid::regclass || '.' || a.attname
        FROM ($members) AS m JOIN pg_attribute AS a ON m.kind = 'pg_class' AND a.attrelid = m.objid
        WHERE a.attnum > 0 AND NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NULL") ],
    [], 'every column has a comment');

# The sections of the reference, by the names in their headings.
my $reference = slurp_file("$top/docs/reference.md");
my %section;
for ($reference =~ /^## (.*?)(?=^## |\z)/msg)
{
    my ($heading) = /^(.*)/;
    my $text = $_;
    $section{$_} = $text for $heading =~ /\b(idem_\w+)/g;
}
my ($internal) = $reference =~ /^## Internal functions$(.*?)(?=^## |\z)/ms;
my ($tables) = $reference =~ /^## Internal tables$(.*?)(?=^## |\z)/ms;
my @internal = map { names_in($_->{function}) } rows_of($internal);
my @tables = map { names_in($_->{table}) } rows_of($tables);
is_list([ keys %section, @internal, @tables ], [ keys %functions, keys %relations ],
    'what has a section, or is listed as internal, is what exists');

# What is documented of a list of things in a section: by name, the row.
sub documented
{
    my ($text, $header, @order) = @_;
    my %rows;

    for my $row (grep { $_->{first} eq $header } rows_of($text))
    {
        $rows{$_} = $row for names_in($row->{$header}, @order);
    }
    return \%rows;
}

# Types and defaults, where a table has them.
sub check_cells
{
    my ($name, $rows, $things) = @_;

    for my $thing (@$things)
    {
        my $row = $rows->{ $thing->{name} } or next;
        if ($row->{type})
        {
            is($row->{type}, $thing->{type}, "$name: type of $thing->{name}");
        }
        if (defined $row->{default})
        {
            is($row->{default} =~ s/^`(.*)`$/$1/r, $thing->{default}, "$name: default of $thing->{name}");
        }
    }
    return;
}

my $type = q{replace(format_type(%s, NULL), ' with time zone', 'tz')};
my %parameters;
for my $name (sort keys %functions)
{
    $parameters{$name} = [ map { { name => $_->[0], type => $_->[1], mode => $_->[2], default => $_->[3] } } ask(
        sprintf "
        SELECT coalesce(a.name, ''), $type, coalesce(p.proargmodes[a.n], 'i'),
               regexp_replace(replace(coalesce(pg_get_function_arg_default(p.oid, a.n::int), ''), 'pg_catalog.', ''),
                              '::[a-z ]+(\\[\\])?\$', '')
        FROM pg_proc AS p, unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargnames)
                           WITH ORDINALITY AS a (type, name, n)
        WHERE p.oid = $functions{$name}
        ORDER BY a.n", 'a.type') ];
}
for my $name (sort grep { $section{$_} } keys %functions)
{
    my $text = $section{$name};
    my @in = grep { $_->{mode} =~ /[ib]/ } @{ $parameters{$name} };
    my @out = grep { $_->{mode} =~ /[otb]/ } @{ $parameters{$name} };
    my $rows = documented($text, 'parameter');
    my @names = keys %$rows;

    # A signature is that of the catalog, but for how a default is written.
    my ($signature) = $text =~ /^```\n\Q$name\E(\(.*?\)) RETURNS/ms;
    if ($signature && $signature !~ /\.\.\./)
    {
        $signature =~ s/\s+/ /g;
        my $expected = join ', ', map {
            "$_->{name} $_->{type}" . ($_->{default} ne '' ? " DEFAULT $_->{default}" : '')
        } @in;
        is($signature, "($expected)", "$name: signature");
    }
    if ($text =~ /parameters of `(idem_\w+)`/)
    {
        push @names, map { $_->{name} } grep { $_->{mode} eq 'i' } @{ $parameters{$1} };
    }
    if (@names)
    {
        is_list(\@names, [ map { $_->{name} } @in ], "$name: parameters");
    }
    elsif (!$signature)
    {
        like($text, qr/\b$_->{name}\b/, "$name: parameter $_->{name}") for @in;
    }
    check_cells($name, $rows, \@in);

    # Columns of the result: a table, or names in the text.
    my $columns = documented($text, 'column', map { $_->{name} } @out);
    if (@out && %$columns)
    {
        is_list([ keys %$columns ], [ map { $_->{name} } @out ], "$name: columns of the result");
        check_cells($name, $columns, \@out);
    }
    else
    {
        like($text, qr/`$_->{name}`/, "$name: $_->{name} of the result") for @out;
    }
}

# Relations. A section on two of them says which columns are in which.
my %columns;
for my $name (sort keys %relations)
{
    $columns{$name} = [ map { { name => $_->[0], type => $_->[1] } } ask(
        sprintf "SELECT attname, $type FROM pg_attribute
                 WHERE attrelid = $relations{$name} AND attnum > 0 AND NOT attisdropped ORDER BY attnum", 'atttypid') ];
}
for my $name (sort grep { $section{$_} } keys %relations)
{
    my @order = map { $_->{name} } @{ $columns{$name} };
    my $rows = documented($section{$name}, 'column', @order);
    my @names = grep {
        my $in_view = $rows->{$_}{'in the view'};
        !defined $in_view || ($name eq 'idem_batches' ? $in_view ne '' : $in_view ne 'only there')
    } keys %$rows;
    is_list(\@names, \@order, "$name: columns");
    check_cells($name, $rows, $columns{$name});
}

# Settings, as SHOW prints them by default.
my %setting = map { $_->[0] => $_->[1] }
  ask("SELECT name, current_setting(name) FROM pg_settings WHERE name LIKE 'idempotent\\_ingest.%'");
my $settings = documented($reference, 'setting');
is_list([ map { "$_ $settings->{$_}{default}" =~ s/`//gr } keys %$settings ],
    [ map { "$_ $setting{$_}" } keys %setting ], 'settings and their defaults');

# SQLSTATEs: those of ours and no other of class II; those that our code raises,
# and none that PostgreSQL does not know.
my @messages = messages_of_source($node->config_data('--includedir-server'));
cmp_ok(scalar @messages, '>', 80, 'messages are found in the sources');
my ($sqlstates) = $reference =~ /^## SQLSTATEs$(.*?)(?=^## |\z)/ms;
my %documented = map { $_ => 1 } map { $_->{SQLSTATE} =~ /\b[0-9A-Z]{5}\b/g } rows_of($sqlstates);
my %raised = map { $_->{state} => 1 } grep { $_->{level} eq 'ERROR' && $_->{state} ne 'XX000' } @messages;
my %known;
my $errcodes = slurp_file($node->config_data('--includedir-server') . '/utils/errcodes.h');
$known{"$1$2$3$4$5"} = 1 while $errcodes =~ /MAKE_SQLSTATE\('(.)','(.)','(.)','(.)','(.)'\)/g;
is_list([ grep { !$documented{$_} } keys %raised ], [], 'every SQLSTATE that is raised is documented');
is_list([ grep { !$raised{$_} && (/^II/ || !$known{$_}) } keys %documented ],
    [], 'every SQLSTATE that is documented exists');

# Messages
my @rows = grep { $_->{first} eq 'message' } rows_of(slurp_file("$top/docs/troubleshooting.md"));
my %explained = map { ($_->{message} =~ s/^`+ ?(.*?) ?`+$/$1/r) => $_->{SQLSTATE} } @rows;
my %said = map { $_->{text} => $_->{state} } @messages;
my %hinted = map { $_->{text} => $_->{state} } grep { $_->{hint} && $_->{state} ne 'XX000' } @messages;
is_list([ grep { !exists $explained{$_} } keys %hinted ], [], 'every message with a hint is in troubleshooting.md');
is_list([ grep { !exists $said{$_} } keys %explained ], [], 'troubleshooting.md has no other message');
is_list([ map { "$explained{$_} $_" } grep { exists $said{$_} } keys %explained ],
    [ map { "$said{$_} $_" } grep { exists $explained{$_} } keys %said ], 'and the right SQLSTATEs');

# Files
my $design = slurp_file("$top/docs/design.md");
my %mentioned = map { $_ => 1 } $design =~ /`(\w+\.c)`/g;
is_list([ keys %mentioned ], [ map { s/.*\///r } glob "$top/src/*.c" ], 'docs/design.md lists the files of src/');

# Links. A heading's anchor is made of its text as GitHub does it.
my (%anchors, @broken);
my @documents = grep { -f "$top/$_" } map { s/^\Q$top\E\///r } glob("$top/*.md $top/*/*.md");
for my $document (@documents)
{
    my %seen;
    for (slurp_file("$top/$document") =~ s/^```.*?^```$//msgr =~ /^#+ (.*)$/mg)
    {
        my $anchor = lc s/[^\w\- ]//gr =~ tr/ /-/r;
        $anchors{$document}{ $anchor . ($seen{$anchor}++ ? '-' . ($seen{$anchor} - 1) : '') } = 1;
    }
}
for my $document (@documents)
{
    my ($dir) = $document =~ /^(.*\/)?/;
    $dir //= '';
    for my $link (slurp_file("$top/$document") =~ s/^```.*?^```$//msgr =~ /\]\(\s*([^)\s]+)\s*\)/g)
    {
        next if $link =~ /^[a-z]+:/;
        my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
        my $file = $path eq '' ? $document : "$dir$path";
        1 while $file =~ s{[^/]+/\.\./}{};
        push @broken, "$document: $link"
          if !-e "$top/$file" || defined $anchor && !$anchors{$file}{$anchor};
    }
}
cmp_ok(scalar @documents, '>', 5, 'there are documents');
is_list(\@broken, [], 'every link leads somewhere');

$node->stop;
done_testing();
