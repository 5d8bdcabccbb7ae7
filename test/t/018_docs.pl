# Runs every ```sql block of README.md and docs/*.md, in order, each document in a
# database of its own, and compares what psql prints with the ```text block that
# follows; a block without one must print nothing.
#
#   ```sql session=2         a block for another session of the same database
#   ```sql session=2 waits   the same, and its statement comes to wait for a lock;
#                            what it prints then is with the session's next block
#
# "..." in a ```text block stands for anything within a line, and a line of only
# that for any lines; then the width of columns is not compared. Moments with
# microseconds, and process numbers in messages, need no dots: one is as good as
# another; and in a ```text moments block so are moments without microseconds.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IPC::Run qw(start pump finish timeout);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use IdemTest qw(make_cluster make_database wait_for_lock);

my $top = "$FindBin::RealBin/../..";
my $end_of_block = '=== end of block ===';

# Of a document: [line, what follows "sql", the SQL, what it is said to print].
sub blocks_of
{
    my ($document) = @_;
    my (@blocks, $indent, $into, $line);
    my $ignored = '';

    for (split /^/, slurp_file("$top/$document"))
    {
        $line++;
        if (!defined $into && /^( *)```(\w*) *(.*)$/)
        {
            my ($kind, $info) = ($2, $3);
            $indent = $1;
            $into = \$ignored;
            if ($kind eq 'sql')
            {
                push @blocks, { line => $line, info => $info, sql => '' };
                $into = \$blocks[-1]{sql};
            }
            elsif ($kind eq 'text' && @blocks && !defined $blocks[-1]{text})
            {
                @{ $blocks[-1] }{ 'text', 'moments' } = ('', $info eq 'moments');
                $into = \$blocks[-1]{text};
            }
        }
        elsif (defined $into && /^ *```$/) { undef $into }
        elsif (defined $into) { $$into .= s/^$indent//r }
    }
    die "$document: a code block has no end" if defined $into;
    return @blocks;
}

sub open_session
{
    my ($node, $db) = @_;
    my $session = { in => '', out => '', running => 0 };

    $session->{psql} = start(
        [ 'psql', '-X', '-q', '-d', $node->connstr($db), '-P', 'pager=off' ],
        '<', \$session->{in}, '>', \$session->{out}, '2>&1',
        $session->{timer} = timeout($PostgreSQL::Test::Utils::timeout_default));
    ($session->{pid}) = run_sql($session, '\pset tuples_only' . "\nSELECT pg_backend_pid();\n\\pset tuples_only")
      =~ /(\d+)/;
    return $session;
}

# Does not wait for an answer.
sub send_sql
{
    my ($session, $sql) = @_;

    $session->{in} .= "$sql\n\\echo '$end_of_block'\n";
    $session->{running}++;
    $session->{timer}->start;
    $session->{psql}->pump_nb while length $session->{in};
    return;
}

# What a session prints for some SQL, and for what it was sent before.
sub run_sql
{
    my ($session, $sql) = @_;

    send_sql($session, $sql);
    pump($session->{psql}) until (() = $session->{out} =~ /^\Q$end_of_block\E\n/mg) == $session->{running};
    my $printed = $session->{out} =~ s/^\Q$end_of_block\E\n//mgr;
    @$session{ 'out', 'running' } = ('', 0);
    return $printed;
}

sub normalize
{
    my ($text, $moments, $loosely) = @_;
    my $fraction = $moments ? qr/(?:\.\d+)?/ : qr/\.\d+/;

    $text =~ s/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$fraction\+00/<moment>/g;
    $text =~ s/Process \d+/Process <pid>/g;
    if ($loosely)
    {
        $text =~ s/[ \t]+/ /g;
        $text =~ s/--+/-/g;
        $text =~ s/^ //mg;
    }
    $text =~ s/[ \t]+$//mg;
    $text =~ s/\n+\z//;
    return $text;
}

sub is_printed
{
    my ($printed, $block, $where) = @_;
    my $documented = $block->{text} // '';
    my $loosely = $documented =~ /\.\.\./;
    my $got = normalize($printed, $block->{moments}, $loosely);
    my $expected = normalize($documented, $block->{moments}, $loosely);

    return is($got, $expected, $where) if !$loosely;

    my $pattern = quotemeta $expected;
    $pattern =~ s/^(\\\.){3}\\?$/(?s:.*?)/mg;
    $pattern =~ s/(\\\.){3}/.*?/g;
    ok($got =~ /\A$pattern\z/, $where)
      or diag("documented:\n$expected\nprinted:\n$got");
    return;
}

$ENV{PGTZ} = 'UTC';
$ENV{PGDATESTYLE} = 'ISO';
$ENV{PGAPPNAME} = 'docs';
my $node = make_cluster('docs', conf => "shared_preload_libraries = 'idempotent_ingest'");
my $number = 0;

for my $document ('README.md', map { s/^\Q$top\E\///r } sort glob "$top/docs/*.md")
{
    my @blocks = blocks_of($document) or next;
    my $db = 'docs_' . ++$number;
    make_database($node, $db);
    my %session;
    for my $block (@blocks)
    {
        my $where = "$document:$block->{line}";
        my ($name, $waits) = $block->{info} =~ /^(?:session=(\w+)( waits)?)?$/
          or die "$where: cannot make sense of \"$block->{info}\"";
        my $session = $session{ $name // 1 } //= open_session($node, $db);
        if ($waits)
        {
            send_sql($session, $block->{sql});
            wait_for_lock($node, $session->{pid});
            is($block->{text}, undef, "$where: waits");
            next;
        }
        is_printed(run_sql($session, $block->{sql}), $block, $where);
    }
    for my $session (values %session)
    {
        is($session->{running}, 0, "$document: what a session waited for is shown");
        $session->{in} .= "\\q\n";
        finish($session->{psql});
    }
    $node->safe_psql('postgres', "DROP DATABASE $db");
}

$node->stop;
done_testing();
