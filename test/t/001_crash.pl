# A merge that a crash interrupts leaves nothing, and its retry applies: kill -9
# of the merging process in the middle of the merge, immediate shutdown, and
# kill -9 of the postmaster. With synchronous_commit = off a crash can lose the
# last merges, but never a ledger row without its data or the other way round.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = make_cluster('crash', conf => "restart_after_crash = on\nwal_writer_delay = 10s\n");

# Row 600 cannot be written while somebody holds advisory lock 1. Rows are
# written in key order, so that a merge which waits there is in its middle.
$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE TABLE staging (id int, v text);
    INSERT INTO staging SELECT i, 'new ' || i FROM generate_series(1, 1000) AS i;
    CREATE TABLE target (id int PRIMARY KEY, v text);
    INSERT INTO target SELECT i, 'old ' || i FROM generate_series(301, 700) AS i;
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.id = 600 THEN
            PERFORM pg_advisory_xact_lock_shared(1);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON target FOR EACH ROW EXECUTE FUNCTION hold();
    CREATE TABLE pristine AS TABLE target;
});

my $merge = "'staging', 'target', '{id}', 'batch-1'";
my $differences = q{
    SELECT count(*) FROM ((TABLE target EXCEPT TABLE pristine)
                          UNION ALL (TABLE pristine EXCEPT TABLE target)) d};

# Start a merge and return once it is held in its middle: the session that holds
# it, the one that merges, and the process number of the latter.
sub merge_held
{
    my $holder = $node->background_psql('postgres', on_error_stop => 0);
    $holder->query_safe('SELECT pg_advisory_lock(1)');
    my $before = $node->safe_psql('postgres', q{SELECT pg_relation_size('target')});

    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $pid = $session->query_safe('SELECT pg_backend_pid()');
    start($session, "SELECT status FROM idem_merge($merge)");
    $node->poll_query_until(
        'postgres', qq{
        SELECT EXISTS (SELECT FROM pg_locks
                       WHERE pid = $pid AND NOT granted
                         AND locktype = 'advisory' AND objid = 1 AND mode = 'ShareLock')})
      or die 'the merge did not come to row 600';

    cmp_ok($node->safe_psql('postgres', q{SELECT pg_relation_size('target')}),
        '>', $before, 'the merge has written rows');
    return ($holder, $session, $pid);
}

# The retry applies, the next one replays; then all is set back.
sub check_retry
{
    my ($what) = @_;

    is(summary($node, 'postgres', $merge),
        'applied: 1000 staged, 600 inserted, 400 updated',
        "$what: the retry applies");
    is( $node->safe_psql(
            'postgres', 'SELECT count(*) FROM (TABLE staging EXCEPT TABLE target) d'),
        '0', "$what: every staged row is in the target");
    like(summary($node, 'postgres', $merge), qr/^replayed: 1000 staged/, "$what: the next call replays");
    is( $node->safe_psql('postgres', 'SELECT count(*), min(revision), max(revision) FROM idem_ledger'),
        '1|1|1', "$what: the ledger has one row, of revision 1");
    $node->safe_psql('postgres', q{
        SELECT idem_forget('target', 'batch-1');
        TRUNCATE target;
        INSERT INTO target TABLE pristine});
    return;
}

# Is a process gone, or does it only wait for an init that takes its time?
sub is_dead
{
    my ($pid) = @_;

    return 1 if !kill(0, $pid);
    return -e "/proc/$pid/stat" && slurp_file("/proc/$pid/stat") =~ /\) Z /;
}

# kill -9 of the postmaster, and start again once its processes have noticed that
# it is gone: no session is ended before they have, lest one that waits for another
# goes on. The lock files go too, in case the postmaster's number is still taken.
sub kill_postmaster_and_start
{
    my (@sessions) = @_;
    my $lock_file = $node->data_dir . '/postmaster.pid';
    my $attempts = 10 * $PostgreSQL::Test::Utils::timeout_default;
    my @pids = split /\n/, $node->safe_psql('postgres',
        q{SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()});

    push @pids, (split /\n/, slurp_file($lock_file))[0];
    $node->kill9;
    while (grep { !is_dead($_) } @pids)
    {
        die 'the processes did not end' if $attempts-- == 0;
        usleep(100_000);
    }
    unlink $lock_file, glob($node->host . '/.s.PGSQL.' . $node->port . '*');

    # Before the start: the server would inherit what keeps their input open.
    give_up($_) foreach @sessions;
    $node->start;
    return;
}

# kill -9 of the merging process: the server restarts by itself.
{
    my ($holder, $session, $pid) = merge_held();
    my $log_end = -s $node->logfile;
    is(kill('KILL', $pid), 1, 'the merging process is killed');
    $node->wait_for_log(qr/database system is ready to accept connections/, $log_end);
    $node->poll_query_until('postgres', 'SELECT true') or die 'no connection';
    give_up($_) foreach ($holder, $session);
    check_nothing_left($node, $differences, 'kill -9 of the process');
    check_retry('kill -9 of the process');
}

# pg_terminate_backend() and a statement that is cancelled need no recovery.
foreach my $case ([ 'pg_terminate_backend', '57P01' ], [ 'pg_cancel_backend', '57014' ])
{
    my ($function, $code) = @$case;
    my ($holder, $session, $pid) = merge_held();
    $session->{stdin} .= "\\echo :SQLSTATE\n" if $function eq 'pg_cancel_backend';
    is($node->safe_psql('postgres', "SELECT $function($pid)"), 't', "$function is sent");
    if ($function eq 'pg_cancel_backend')
    {
        my ($stdout) = finish($session);
        is($stdout, $code, "$function ends the merge with $code");
        $session->quit;
    }
    else
    {
        $node->poll_query_until('postgres',
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
          or die 'the process did not end';
        give_up($session);
    }
    $holder->quit;
    $node->poll_query_until('postgres',
        q{SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')})
      or die 'the lock was not released';
    check_nothing_left($node, $differences, $function);
    check_retry($function);
}

# Immediate shutdown, in the middle of the merge.
{
    my ($holder, $session) = merge_held();
    $node->stop('immediate');
    give_up($_) foreach ($holder, $session);
    $node->start;
    check_nothing_left($node, $differences, 'immediate shutdown');
    check_retry('immediate shutdown');
}

# kill -9 of the postmaster, in the middle of the merge.
{
    my ($holder, $session) = merge_held();
    kill_postmaster_and_start($holder, $session);
    check_nothing_left($node, $differences, 'kill -9 of the postmaster');
    check_retry('kill -9 of the postmaster');
}

# The merge is done, the transaction is not committed: the same.
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    is($session->query_safe("BEGIN; SELECT status FROM idem_merge($merge)"),
        'applied', 'merged, not committed');
    is( $node->safe_psql(
            'postgres',
            q{SELECT count(DISTINCT relation) FROM pg_locks
              WHERE mode = 'RowExclusiveLock' AND relation IN ('target'::regclass, 'idem_ledger'::regclass)}),
        '2', 'both target and ledger are written');
    $node->stop('immediate');
    give_up($session);
    $node->start;
    check_nothing_left($node, $differences, 'crash before COMMIT');
    check_retry('crash before COMMIT');
}

# A batch that was acknowledged is there after the crash; of those that were
# committed with synchronous_commit = off, the last may be lost, but as a whole.
$node->safe_psql(
    'postgres', q{
    CREATE TABLE events (batch int, id int, PRIMARY KEY (batch, id));
    CREATE TABLE staged_events (batch int, id int)});

my $one_batch = q{
    DELETE FROM staged_events;
    INSERT INTO staged_events SELECT %d, i FROM generate_series(1, 50) AS i;
    SELECT status FROM idem_merge('staged_events', 'events', '{batch,id}', 'batch %d')};
my $disagreements = q{
    SELECT count(*)
    FROM (SELECT batch_id FROM idem_ledger WHERE target = 'events'::regclass) l
    FULL JOIN (SELECT 'batch ' || batch AS batch_id, count(*) AS rows FROM events GROUP BY 1) e
        ON e.batch_id = l.batch_id
    WHERE l.batch_id IS NULL OR e.rows IS DISTINCT FROM 50};
my $lost = 0;

foreach my $round (0 .. 2)
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $first = $round * 20 + 1;

    foreach my $batch ($first .. $first + 19)
    {
        my $setting = $batch < $first + 5 ? 'on' : 'off';

        $session->query_safe("SET synchronous_commit = $setting");
        my @status = split /\n/, $session->query_safe(sprintf $one_batch, $batch, $batch);
        die "batch $batch was not applied" if $status[-1] ne 'applied';
    }
    kill_postmaster_and_start($session);

    is($node->safe_psql('postgres', $disagreements),
        '0', "round $round: the ledger and the data agree");
    my %there = map { $_ => 1 } split /\n/,
      $node->safe_psql('postgres', q{SELECT batch_id FROM idem_ledger WHERE target = 'events'::regclass});
    is((grep { !$there{"batch $_"} } $first .. $first + 4),
        0, "round $round: what was committed with synchronous_commit = on is there");

    # Whatever came through, sending all of it again ends with each batch once.
    my $wrong = 0;
    foreach my $batch ($first .. $first + 19)
    {
        my @status = split /\n/,
          $node->safe_psql('postgres', sprintf $one_batch, $batch, $batch);
        my $expected = $there{"batch $batch"} ? 'replayed' : 'applied';

        $lost++ if !$there{"batch $batch"};
        $wrong++ if $status[-1] ne $expected;
    }
    is($wrong, 0, "round $round: what is in the ledger is replayed, what is not is applied");
}
note "$lost of 45 merges with synchronous_commit = off were lost";
is($node->safe_psql('postgres', $disagreements), '0', 'after all retries ledger and data agree');
is($node->safe_psql('postgres', 'SELECT count(*) FROM events'),
    '3000', 'after all retries each row is there once');

done_testing();
