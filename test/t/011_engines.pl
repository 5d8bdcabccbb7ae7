# Both engines give the same answers: random batches of random shapes go through
# each of them, and what they return, report, write and record is compared.
#
#   SEED=n      other random choices; they are the same for the same n
#   BATCHES=n   so many batches at least
#   SHAPE=n     only this one of the targets, with its batches
#   SCHEDULES=n so many of them beside another transaction
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

my $node = make_cluster('engines', conf => "shared_buffers = 64MB\nfsync = off\nlog_statement = none\n");

do_without_icu()
  if $node->safe_psql('postgres', q(SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu')) == 0;

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
    $of_shape{"$shapes $_"}{number} = keys(%expected) + $_ for 1 .. $count;
    %expected = (%expected, %of_shape);
    $features{$_}++ foreach keys %{ $shape->{features} };
}

my @sessions;
foreach my $job (0 .. $jobs - 1)
{
    my $file = "$PostgreSQL::Test::Utils::log_path/engines_$job";

    make_database($node, "job$job", 'public');
    $node->safe_psql("job$job", 'CREATE EXTENSION amcheck;' . preamble());
    unlink("$file.sql");
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

# The first ten of what went wrong.
sub first_of
{
    return join("\n", @_[ 0 .. ($#_ < 9 ? $#_ : 9) ]);
}

my (%out, %err);
foreach my $job (0 .. $jobs - 1)
{
    my $file = "$PostgreSQL::Test::Utils::log_path/engines_$job";

    %out = (%out, %{ sections("$file.out") });
    %err = (%err, %{ sections("$file.err") });
}

my (%done, %differs, %engines, %sqlstates, %fates, @differing, @wrong, @unprepared, @fallbacks);
my ($eligible, $native) = (0, 0);

foreach my $section (sort grep { / setup$/ } keys %err)
{
    push @unprepared, "$section\n$err{$section}$out{$section}" if "$err{$section}$out{$section}" =~ /ERROR|FATAL|corruption/;
}
foreach my $batch (sort { $expected{$a}{number} <=> $expected{$b}{number} } keys %expected)
{
    my (%engine, %text, %locked);

    foreach my $run ('sql', 'native')
    {
        $text{$run} = ($out{"$batch $run"} // 'nothing') . "--\n" . ($err{"$batch $run"} // 'nothing');
        $engine{$run} = $1 if $text{$run} =~ s/\|engine (\w+)$//m;
        # A row's number from a sequence is not compared; and which row fails first
        # is open where an empty table is filled before it is indexed.
        $text{$run} =~ s/Failing row contains .*/Failing row/
          if $expected{$batch}{shape}{features}{sequence} || $expected{$batch}{exclusive};
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
        my ($staged, $duplicate, $inserted, $updated, $deleted, $unchanged, $stale, $skipped, $recorded) =
          $text{native} =~ /^\w+\|[^|]*\|(?:[^|]*\|){0,3}?(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|[0-9a-f]{32}\|([tf])/m;

        $done{$status}++;
        if ($status =~ /applied/ && defined $staged && $text{native} !~ /^error at commit/m)
        {
            $engines{ $engine{native} }++;
            push @fallbacks, "shape and batch $batch\n$text{native}"
              if $engine{native} ne 'native'
              && $recorded eq 'f'
              && !$expected{$batch}{shape}{features}{'other unique index'}
              && $text{native} !~ /WARNING: .* a version of NaN or infinity/;
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
  or diag(first_of(@unprepared));
is(scalar(@differing), 0, "both engines agree (SEED=$seed)")
  or diag(join("\n\n", @differing[ 0 .. ($#differing < 9 ? $#differing : 9) ]));
is(scalar(@wrong), 0, "what is counted is what was written (SEED=$seed)")
  or diag(join("\n\n", @wrong[ 0 .. ($#wrong < 9 ? $#wrong : 9) ]));
is(scalar(@fallbacks), 0, "the native engine has done what it can do (SEED=$seed)")
  or diag(first_of(@fallbacks));

# That the random choices were choices at all.
my $applied = sum0(values %engines);
cmp_ok($engines{native}, '>=', 0.9 * $applied, 'the native engine has applied nine in ten batches');
SKIP:
{
    skip 'too few batches to see everything', 3 if defined $only || $wanted < 2000;
    is(join(', ', grep { !$features{$_} } known_features()), '', 'shapes had all that they can have');
    is( join(', ', grep { !$sqlstates{$_} } qw(21000 22001 22003 23502 23503 23505 23514 42703 II001 II002 II003)),
        '', 'there were all kinds of errors');
    is( join(', ', grep { !$fates{$_} } qw(duplicate inserted updated unchanged stale skipped)),
        '', 'rows had all kinds of fates');
}
note(scalar(keys %expected) . " batches of $shapes shapes");
note("results: " . join(', ', map { "$_ $done{$_}" } sort keys %done));
note("engines: " . join(', ', map { "$_ $engines{$_}" } sort keys %engines));
note("errors: " . join(', ', map { "$_ $sqlstates{$_}" } sort keys %sqlstates));
note("rows: " . join(', ', map { "$_ $fates{$_}" } sort keys %fates));
note("shapes: " . join(', ', map { "$_ $features{$_}" } sort keys %features));


#
# Batches beside another transaction, which holds rows of the target when they
# are merged, and ends when each merge is done or waits for it.
#
make_database($node, 'concurrent', 'public');
$node->safe_psql('concurrent', preamble());
$node->safe_psql('concurrent', "CREATE SCHEMA st; CREATE TABLE st.s (k int, v text, n int, ver int);");
foreach my $schema ('a', 'b')
{
    $node->safe_psql(
        'concurrent', qq{
        CREATE SCHEMA $schema;
        CREATE TABLE $schema.t (k int PRIMARY KEY, v text, n int, ver int, u int DEFAULT NULL);
        CREATE TABLE $schema.child (k int REFERENCES $schema.t DEFERRABLE INITIALLY DEFERRED);
        CREATE FUNCTION $schema.indexes(plain bool, other bool, trigger bool) RETURNS void LANGUAGE plpgsql AS
        \$\$ BEGIN
            DROP INDEX IF EXISTS $schema.plain, $schema.other;
            DROP TRIGGER IF EXISTS row_u ON $schema.t;
            IF plain THEN CREATE INDEX plain ON $schema.t (n); END IF;
            IF other THEN CREATE UNIQUE INDEX other ON $schema.t (n) WHERE n > 100; END IF;
            IF trigger THEN CREATE TRIGGER row_u AFTER INSERT OR UPDATE ON $schema.t
                FOR EACH ROW EXECUTE FUNCTION d.log_row(); END IF;
        END \$\$;
    });
}

# How many of some sessions wait for a row, once each waits or is done, which its
# application_name says; NULL if that takes too long.
$node->safe_psql(
    'concurrent', q{
    CREATE FUNCTION d.waiters(done text, pids int[], seconds int) RETURNS int LANGUAGE plpgsql AS $$
    DECLARE
        ended int;
        waiting int;
    BEGIN
        LOOP
            PERFORM pg_stat_clear_snapshot();
            SELECT count(*) INTO ended FROM pg_stat_activity
                WHERE pid = ANY (pids) AND application_name = done;
            SELECT count(DISTINCT pid) INTO waiting FROM pg_locks
                WHERE pid = ANY (pids) AND NOT granted AND locktype IN ('transactionid', 'tuple', 'spectoken');
            IF ended + waiting = cardinality(pids) THEN
                RETURN waiting;
            END IF;
            EXIT WHEN clock_timestamp() > statement_timestamp() + make_interval(secs => seconds);
            PERFORM pg_sleep(0.001);
        END LOOP;
        RETURN NULL;
    END $$;
});

my $timeout = $PostgreSQL::Test::Utils::timeout_default;
{
    # All that a background session says about itself is of no use here.
    no warnings 'redefine';
    *PostgreSQL::Test::BackgroundPsql::note = sub { };
}
my $control = $node->background_psql('concurrent', on_error_stop => 0);
my $other = $node->background_psql('concurrent', on_error_stop => 0);
my %merger = map { $_ => $node->background_psql('concurrent', on_error_stop => 0) } 'sql', 'native';
my %schema = (sql => 'a', native => 'b');
my %pid = map { $_ => $merger{$_}->query_safe('SELECT pg_backend_pid()') } keys %merger;

$control->query_safe("SET client_min_messages = warning; SET d.batch = -1");
$merger{$_}->query_safe("SET idempotent_ingest.engine = $_; SET d.batch = 0; SET deadlock_timeout = '60s'") foreach keys %merger;
$merger{$_}->query_safe('\set SHOW_CONTEXT never') foreach keys %merger;
$other->query_safe("SET d.batch = -1");

# Something that another session does to rows of the table %s.t, and perhaps of
# its child %s.child.
sub other_action
{
    my ($key, $free) = @_;
    my $action = pick(
        "UPDATE %s.t SET v = 'other' WHERE k = $key",
        "UPDATE %s.t SET v = 'other' WHERE k = $key",
        "UPDATE %s.t SET ver = ver + 2, v = 'later' WHERE k = $key",
        "UPDATE %s.t SET ver = ver - 2 WHERE k = $key",
        "UPDATE %s.t SET n = n + 100 WHERE k = $key",
        "UPDATE %s.t SET k = $free WHERE k = $key",
        "DELETE FROM %s.t WHERE k = $key",
        "DELETE FROM %s.t WHERE k = $key",
        "DELETE FROM %s.t WHERE k = $key; INSERT INTO %s.t VALUES ($key, 'again', 1, 5)",
        "INSERT INTO %s.t VALUES ($free, 'other', $free, 3)",
        "INSERT INTO %s.t VALUES ($free, 'other', $free + 100, 1)",
        "INSERT INTO %s.t VALUES ($free, 'other', 3, 3) ON CONFLICT (k) DO UPDATE SET v = 'conflict'",
        "INSERT INTO %s.child VALUES ($key)",
        map { "SELECT FROM %s.t WHERE k = $key FOR $_" } 'UPDATE',
        'NO KEY UPDATE', 'SHARE', 'KEY SHARE');

    $action = "SAVEPOINT x; $action; ROLLBACK TO x" if chance(0.08);
    $action = "SAVEPOINT x; $action; RELEASE x" if chance(0.08);
    return $action;
}

my $schedules = $ENV{SCHEDULES} // 300;
my (@unlike, %beside, %outcomes);
foreach my $schedule (1 .. $schedules)
{
    srand($seed * 100_000 + 50_000 + $schedule);
    my $first = pick(1 .. 30);
    my $rows = pick(1, 3, 10, 20);
    my @staged = map { $first + $_ } 0 .. $rows - 1;
    my @stored = grep { $_ % 2 == 0 } @staged;
    my @new = grep { $_ % 2 } @staged;
    my @options = ("batch_id => 'schedule $schedule'");
    my $versions = chance(0.4);

    push @options, "version_cols => '{ver}'" if $versions;
    push @options, pick("mode => 'update'", "mode => 'insert'") if chance(0.3);
    push @options, "on_stale => '" . pick('error', 'apply') . q{'} if $versions && chance(0.3);
    push @options, "update_cols => '{v}'" if chance(0.2);

    my $isolation = pick('READ COMMITTED', 'READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');
    my $snapshot_first = $isolation ne 'READ COMMITTED' && chance(0.5);
    my $early = $snapshot_first && chance(0.4);
    my $end = chance(0.65) ? 'COMMIT' : 'ROLLBACK';
    my @actions;
    for (1 .. pick(1, 1, 2, 3))
    {
        my $key = @stored && chance(0.9) ? pick(@stored) : 2 * pick(1 .. 25);
        my $free = @new && chance(0.8) ? pick(@new) : 101 + $schedule;
        push @actions, other_action($key, $free);
    }
    my @features = map { chance($_) ? 'true' : 'false' } 0.3, 0.2, 0.2;
    my $log = "schedule $schedule: $isolation"
      . ($snapshot_first ? ', snapshot first' : '') . ($early ? ', ended before the merge' : '')
      . "\n  indexes(" . join(', ', @features) . ")\n  " . join("\n  ", @actions, $end)
      . "\n  merge of " . join(' ', @staged) . ' with ' . join(', ', @options);

    $control->query_safe(
            "TRUNCATE a.child, b.child, a.t, b.t, st.s, d.log;"
          . join('', map { "SELECT $_.indexes(" . join(', ', @features) . ');'
              . "INSERT INTO $_.t SELECT k, 'v' || k, k, 3 FROM generate_series(2, 50, 2) AS k;" } 'a', 'b')
          . "SELECT setseed(" . sprintf('%.6f', rand()) . ");"
          . "INSERT INTO st.s SELECT k, CASE WHEN random() < 0.5 THEN 'v' ELSE 'w' END || k, k,"
          . " CASE WHEN random() < 0.5 THEN 3 ELSE floor(random() * 7)::int END"
          . " FROM generate_series($staged[0], $staged[-1]) AS k");

    # Both merges at the same time, unless they would be in each other's way.
    my (%result, %engine, $waits);
    foreach my $group ($isolation eq 'SERIALIZABLE' ? (['sql'], ['native']) : [ 'sql', 'native' ])
    {
        my @engines = @$group;
        my $of_all = join('; ', map { my $action = $_; map { $action =~ s/%s/$schema{$_}/gr } @engines } @actions);

        if ($snapshot_first)
        {
            $merger{$_}->query_safe("BEGIN ISOLATION LEVEL $isolation; SELECT FROM st.s LIMIT 1") foreach @engines;
        }
        $other->query("BEGIN; $of_all" . ($early ? "; $end" : ''));
        foreach my $engine (@engines)
        {
            start($merger{$engine},
                ($snapshot_first ? '' : "BEGIN ISOLATION LEVEL $isolation;\n")
                  . "SELECT summary, rows_staged, fingerprint, engine FROM idem_merge('st.s', '$schema{$engine}.t', "
                  . join(', ', @options)
                  . ");\nCOMMIT;\nSET application_name = 'done $schedule'");
        }
        $waits = $control->query_safe("SELECT d.waiters('done $schedule', '{"
              . join(',', map { $pid{$_} } @engines) . "}', $timeout)");
        die "merges neither wait nor end:\n$log" if $waits eq '';
        $other->query($end) if !$early;
        foreach my $engine (@engines)
        {
            my ($stdout, $stderr) = finish($merger{$engine});

            $stdout =~ s/\|(\w+)$//m and $engine{$engine} = $1;
            $stderr =~ s/\b[ab]\.t\b/X.t/g;
            $stderr =~ s/^psql:<stdin>:\d+: //mg;
            $result{$engine} = "$stdout\n$stderr\n"
              . $control->query_safe(
                    "SELECT 'rows', string_agg(t::text, ' ' ORDER BY k) FROM $schema{$engine}.t;"
                  . "SELECT 'log', string_agg(entry, ' ' ORDER BY entry) FROM d.log WHERE target = '$schema{$engine}' AND batch = 0;"
                  . "SELECT 'ledger', to_jsonb(l) - '{target,target_type,engine,applied_at,elapsed,xid}'::text[]"
                  . " FROM idem_ledger AS l WHERE target = '$schema{$engine}.t'::regclass AND batch_id = 'schedule $schedule'");
        }
    }
    push @unlike, "$log\n-- sql:\n$result{sql}\n-- native:\n$result{native}" if $result{sql} ne $result{native};
    my $outcome = $result{native} =~ /ERROR:/ ? 'error' : $engine{native} // 'unknown';
    $beside{ ($waits ? 'waited, ' : '') . $outcome }++;
}
$_->quit foreach $control, $other, values %merger;

is(scalar(@unlike), 0, "both engines agree beside other transactions (SEED=$seed)")
  or diag(join("\n\n", @unlike[ 0 .. ($#unlike < 4 ? $#unlike : 4) ]));
cmp_ok($beside{$_} // 0, '>', 0, "some merges ended: $_") foreach 'native', 'waited, sql', 'waited, error', 'error';
note("$schedules schedules: " . join('; ', map { "$_ $beside{$_}" } sort keys %beside));

done_testing();
