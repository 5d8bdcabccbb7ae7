# Both engines give the same answers: random batches of random shapes go through
# each of them, and what they return, report, write and record is compared.
#
#   SEED=n      other random choices; they are the same for the same n
#   BATCHES=n   so many batches at least
#   SHAPE=n     only this one of the targets, with its batches
#   JOBS=n      sessions at a time
#
# The scripts are kept with the logs, as engines_*.sql.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IPC::Run ();
use List::Util qw(sum0);

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RandomMerge;
use Test::More;

my $seed = $ENV{SEED} // 1;
my $wanted = $ENV{BATCHES} // 2000;
my $only = $ENV{SHAPE};
my $jobs = $ENV{JOBS} // 2;

note("SEED=$seed BATCHES=$wanted");

my $node = make_cluster('engines', conf => "shared_buffers = 64MB\nfsync = off\nmax_parallel_workers_per_gather = 0\n");

#
# Batches one after the other
#
my @scripts = (('') x $jobs);
my %expected;
my ($batches, $shapes) = (0, 0);
my %features;

while ($batches < $wanted)
{
    # Each shape is a world of its own, so that it can be had by itself.
    srand($seed * 100_000 + ++$shapes);
    my $shape = make_shape($shapes);
    my %of_shape;
    my $script = shape_script($shape);
    my $count = pick(6 .. 12);

    $script .= batch_script($shape, \%of_shape) for 1 .. $count;
    $script .= end_script($shape);
    $batches += $count;
    next if defined $only && $only != $shapes;
    $scripts[ $shapes % $jobs ] .= "\\echo \@\@ $shapes shape setup\n\\warn \@\@ $shapes shape setup\n$script";
    %expected = (%expected, %of_shape);
    $features{$_}++ foreach keys %{ $shape->{features} };
}

my @sessions;
foreach my $job (0 .. $jobs - 1)
{
    my $file = "$PostgreSQL::Test::Utils::log_path/engines_$job";

    make_database($node, "job$job", 'public');
    $node->safe_psql("job$job", 'CREATE EXTENSION amcheck;' . preamble());
    append_to_file("$file.sql", "SET client_min_messages = notice;\nSET timezone = 'UTC';\n\\set SHOW_CONTEXT never\n" . $scripts[$job]);
    push @sessions,
      IPC::Run::start(
        [ 'psql', '-X', '-q', '-A', '-t', '-d', $node->connstr("job$job"), '-f', "$file.sql" ],
        '>', "$file.out", '2>', "$file.err");
}
$_->finish foreach @sessions;

# What was printed, by "shape batch engine"; the lines of the script are of no
# interest, and the schema is the only name that differs.
sub sections
{
    my ($file) = @_;
    my (%sections, $name);

    open(my $in, '<', $file) or die "could not open $file: $!";
    while (my $line = <$in>)
    {
        if ($line =~ /^@@ (.*)$/)
        {
            $name = $1;
            $sections{$name} = '';
            next;
        }
        $line =~ s/^psql:[^ ]*:\d+: //;
        $line =~ s/\b[ab]\.t\b/X.t/g;
        $line =~ s/ at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00/ at TIME/g if $line =~ /was (applied|recorded) at/;
        $sections{ $name // 'start' } .= $line;
    }
    close($in);
    return \%sections;
}

my (%out, %err);
foreach my $job (0 .. $jobs - 1)
{
    my $file = "$PostgreSQL::Test::Utils::log_path/engines_$job";

    %out = (%out, %{ sections("$file.out") });
    %err = (%err, %{ sections("$file.err") });
}

my (%done, %differs, %engines, %sqlstates, %fates, @differing, @wrong, @unprepared);
my ($eligible, $native) = (0, 0);

foreach my $section (sort grep { / setup$/ } keys %err)
{
    push @unprepared, "$section\n$err{$section}$out{$section}" if "$err{$section}$out{$section}" =~ /ERROR|FATAL|corruption/;
}
foreach my $batch (sort { my @a = split(/ /, $a); my @b = split(/ /, $b); $a[0] <=> $b[0] || $a[1] <=> $b[1] } keys %expected)
{
    my (%engine, %text, %locked);

    foreach my $run ('sql', 'native')
    {
        $text{$run} = ($out{"$batch $run"} // 'nothing') . "--\n" . ($err{"$batch $run"} // 'nothing');
        $engine{$run} = $1 if $text{$run} =~ s/\|engine (\w+)$//m;
        # An attempt that was given up has locked rows all the same.
        $locked{$run} = $1 if $text{$run} =~ s/^image.*\K, (\d+) locked$//m;
    }
    if ($text{sql} ne $text{native} || $text{sql} !~ /^image/m)
    {
        # Once the targets differ, so does what comes later.
        push @differing, "shape and batch $batch\n-- sql:\n$text{sql}-- native:\n$text{native}"
          if !$differs{ $expected{$batch}{shape}{number} }++;
    }
    if ($text{native} =~ /^(applied|reapplied|replayed|dry_run)\|/m)
    {
        my $status = $1;
        my ($staged, $duplicate, $inserted, $updated, $deleted, $unchanged, $stale, $skipped) =
          $text{native} =~ /^\w+\|[^|]*\|(?:[^|]*\|){0,3}?(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|[0-9a-f]{32}\|/m;

        $done{$status}++;
        if ($status =~ /applied/ && defined $staged)
        {
            $engines{ $engine{native} }++;
            $fates{duplicate} += $duplicate;
            $fates{inserted} += $inserted;
            $fates{updated} += $updated;
            $fates{unchanged} += $unchanged;
            $fates{stale} += $stale;
            $fates{skipped} += $skipped;
            push @wrong, "shape and batch $batch: wrong sum\n$text{native}"
              if $staged != $duplicate + $inserted + $updated + $deleted + $unchanged + $stale + $skipped;
            push @wrong, "shape and batch $batch: rows written or locked that were not counted\n$text{native}"
              if $expected{$batch}{clean}
              && ($text{native} !~ /, \Q${\($inserted + $updated)}\E written [0-9a-f]*$/m
                || $locked{sql} > 0
                || $locked{native} > 0 && $engine{native} eq 'native');
        }
    }
    elsif ($text{native} =~ /^(?:error|error at commit|caught) ([0-9A-Z]{5})/m)
    {
        $done{error}++;
        $sqlstates{$1}++;
    }
}

is(scalar(@unprepared), 0, 'all was prepared, and tables and indexes are sound after it')
  or diag(join("\n", @unprepared[ 0 .. ($#unprepared < 4 ? $#unprepared : 4) ]));
is(scalar(@differing), 0, "both engines agree (SEED=$seed)") or diag(join("\n\n", @differing[ 0 .. ($#differing < 9 ? $#differing : 9) ]));
is(scalar(@wrong), 0, "what is counted is what was written (SEED=$seed)") or diag(join("\n\n", @wrong[ 0 .. ($#wrong < 9 ? $#wrong : 9) ]));
note(scalar(keys %expected) . " batches of $shapes shapes");
note("results: " . join(', ', map { "$_ $done{$_}" } sort keys %done));
note("engines: " . join(', ', map { "$_ $engines{$_}" } sort keys %engines));
note("errors: " . join(', ', map { "$_ $sqlstates{$_}" } sort keys %sqlstates));
note("rows: " . join(', ', map { "$_ $fates{$_}" } sort keys %fates));
note("shapes: " . join(', ', map { "$_ $features{$_}" } sort keys %features));

done_testing();
