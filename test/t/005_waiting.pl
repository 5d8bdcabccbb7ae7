# Waiting for a batch or for the target's turn: the report to client and log, and
# what ends the wait: the other transaction, nowait, statement_timeout,
# lock_timeout (shorter and longer than deadlock_timeout, after which the report
# comes), a cancel request, a deadlock.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('waiting', conf => 'log_lock_waits = off');

$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE ROLE loader;
    CREATE TABLE staging (id int, v text, version int);
    INSERT INTO staging SELECT i, 'v' || i, 1 FROM generate_series(1, 100) AS i;
    CREATE TABLE target (id int PRIMARY KEY, v text, version int);
    CREATE TABLE second (LIKE target INCLUDING ALL);
    GRANT SELECT ON staging TO loader;
    GRANT ALL ON target, second TO loader;
});

# Reports come after this; tests that wait for none of them set it far away.
my $soon = q{SET deadlock_timeout = '10ms'};
my $never = q{SET deadlock_timeout = '1h'};

sub merge_of
{
    my ($batch, $more) = @_;

    return "SELECT status FROM idem_merge('staging', 'target', '{id}', '$batch'" . ($more // '') . ')';
}

# A session that has merged or claimed and not committed.
sub holder
{
    my ($sql) = @_;
    my $session = $node->background_psql('postgres', on_error_stop => 0);

    $session->query_safe("SET application_name = 'holder'; BEGIN");
    $session->query_safe($sql);
    return ($session, $session->query_safe('SELECT pg_backend_pid()'));
}

# A session that is set up by some statements.
sub session
{
    my (@setup) = @_;
    my $session = $node->background_psql('postgres', on_error_stop => 0);

    $session->query_safe($_) foreach ('\set VERBOSITY verbose', @setup);
    return ($session, $session->query_safe('SELECT pg_backend_pid()'));
}

sub reset_all
{
    $node->safe_psql('postgres',
        q{TRUNCATE target; SELECT idem_forget('target', applied_since => '-infinity')});
    return;
}

# The messages of a wait: what it says, and about whom.
sub is_reported
{
    my ($messages, $what, $pid, $name) = @_;

    like($messages, qr/WARNING:  01000: waiting for \Q$what\E\n/, "$name: reported");
    like($messages,
        qr/DETAIL:  Process $pid holds it, state idle in transaction, in a transaction of [0-9]+:[0-9]{2}:[0-9]{2}\./,
        "$name: with process, state and age of the transaction");
    is(() = $messages =~ /WARNING/g, 1, "$name: once");
    return;
}

#
# The report
#
my $log_end = -s $node->logfile;
my ($holder, $holder_pid) = holder(merge_of('a'));
my ($waiter, $pid) = session($soon);
start($waiter, merge_of('a'));
$node->wait_for_log(qr/WARNING:  waiting for batch "a", which another transaction is working on/, $log_end);
my $log = slurp_file($node->logfile, $log_end);
like($log, qr/\[$pid\].*WARNING:  waiting for batch "a"/, 'the log says who waits');
like($log, qr/\[$pid\].*DETAIL:  Process $holder_pid holds it, state idle in transaction/, 'and for whom');
wait_for_lock($node, $pid);
is($node->safe_psql('postgres', "SELECT pg_blocking_pids($pid)"), "{$holder_pid}", 'pg_blocking_pids knows, too');
is( $node->safe_psql('postgres', "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = $pid"),
    'Lock|advisory', 'pg_stat_activity shows it waiting for a lock');
$holder->query_safe('COMMIT');
my ($stdout, $messages) = finish($waiter);
is($stdout, 'replayed', 'when the other one commits, it replays');
is_reported($messages, 'batch "a", which another transaction is working on', $holder_pid, 'the same batch');
like($messages, qr/HINT:  .*lock_timeout/, 'the same batch: a hint says how to limit the wait');

# The other one rolls back: then it is ours.
reset_all();
$holder->query_safe('BEGIN; ' . merge_of('a'));
start($waiter, merge_of('a'));
wait_for_lock($node, $pid);
$holder->query_safe('ROLLBACK');
($stdout, $messages) = finish($waiter);
is($stdout, 'applied', 'when the other one rolls back, it applies');

# Another batch of the same target: one after the other.
reset_all();
$holder->query_safe('BEGIN; ' . merge_of('a'));
start($waiter, merge_of('b'));
wait_for_lock($node, $pid);
$holder->query_safe('COMMIT');
($stdout, $messages) = finish($waiter);
is($stdout, 'applied', 'another batch of the same target has its turn afterwards');
is_reported($messages, 'another merge into "target"', $holder_pid, 'another batch');
is( $node->safe_psql('postgres', 'SELECT batch_id, rows_inserted, rows_unchanged FROM idem_batches ORDER BY applied_at'),
    "a|100|0\nb|0|100", 'and sees what the first one did');

# A role without rights on the other's activity is told all the same: that much
# it needs to know.
reset_all();
$holder->query_safe('BEGIN; ' . merge_of('a'));
my ($loader, $loader_pid) = session($soon, 'SET ROLE loader');
start($loader, merge_of('a'));
wait_for_lock($node, $loader_pid);
$holder->query_safe('COMMIT');
($stdout, $messages) = finish($loader);
is($stdout, 'replayed', 'an unprivileged role waits and replays');
is_reported($messages, 'batch "a", which another transaction is working on', $holder_pid, 'unprivileged role');

# Claims wait and report in the same way.
$holder->query_safe(q{BEGIN; SELECT idem_claim('claim', 'target')});
start($waiter, q{SELECT idem_claim('claim', 'target')});
wait_for_lock($node, $pid);
$holder->query_safe('COMMIT');
($stdout, $messages) = finish($waiter);
is($stdout, 'f', 'a claim waits, and was made by the other one');
is_reported($messages, 'batch "claim", which another transaction is working on', $holder_pid, 'claim');

# Whoever need not wait is not told anything.
reset_all();
$node->safe_psql('postgres', merge_of('a'));
$holder->query_safe('BEGIN; ' . merge_of('b'));
start($waiter, merge_of('a'));
($stdout, $messages) = finish($waiter);
is($stdout, 'replayed', 'a replay does not wait for merges of other batches');
is($messages, '', 'and there is nothing to report');
start($waiter, q{SELECT status FROM idem_merge('staging', 'second', '{id}', 'b')});
($stdout, $messages) = finish($waiter);
is($stdout, 'applied', 'nor does a merge into another target');
is($messages, '', 'and there is nothing to report');
start($waiter, q{SELECT status FROM idem_merge('staging', 'target', '{id}', dry_run => true)});
($stdout, $messages) = finish($waiter);
is($stdout, 'dry_run', 'nor a dry run');
is($messages, '', 'and there is nothing to report');
$holder->query_safe('ROLLBACK');

# Merges that commute run beside each other; one that does not waits for all.
reset_all();
my $versioned = q{, version_cols => '{version}'};
$holder->query_safe('BEGIN; ' . merge_of('a', $versioned));
$node->safe_psql('postgres', q{CREATE TABLE later AS SELECT id + 1000 AS id, v, version FROM staging; GRANT SELECT ON later TO loader});
start($waiter, q{SELECT status FROM idem_merge('later', 'target', '{id}', 'b', version_cols => '{version}')});
($stdout, $messages) = finish($waiter);
is($stdout, 'applied', 'versioned merges run side by side');
is($messages, '', 'and there is nothing to report');
start($waiter, q{SELECT status FROM idem_merge('later', 'target', '{id}', 'c')});
wait_for_lock($node, $pid);
$holder->query_safe('COMMIT');
($stdout, $messages) = finish($waiter);
is($stdout, 'applied', 'one without versions waits for them');
is_reported($messages, 'another merge into "target"', $holder_pid, 'not versioned');

#
# What ends the wait
#
reset_all();
$holder->query_safe('BEGIN; ' . merge_of('a'));

# name, settings, the statement, SQLSTATE, is the wait reported?
my @cases = (
    [ 'nowait', $never, merge_of('a', ', nowait => true'), '55P03', 0 ],
    [ 'lock_timeout shorter than deadlock_timeout', "SET lock_timeout = '50ms'; $never", merge_of('a'), '55P03', 0 ],
    [ 'lock_timeout as long', q{SET lock_timeout = '50ms'; SET deadlock_timeout = '50ms'}, merge_of('a'), '55P03', 0 ],
    [ 'lock_timeout longer', "SET lock_timeout = '100ms'; $soon", merge_of('a'), '55P03', 1 ],
    [ 'lock_timeout longer, for the turn', "SET lock_timeout = '100ms'; $soon", merge_of('b'), '55P03', 1 ],
    [ 'lock_timeout shorter, for the turn', "SET lock_timeout = '50ms'; $never", merge_of('b'), '55P03', 0 ],
    [ 'statement_timeout before the report', "SET statement_timeout = '50ms'; $never", merge_of('a'), '57014', 0 ],
    [ 'statement_timeout after the report', "SET statement_timeout = '2s'; $soon", merge_of('a'), '57014', 1 ],
    [ 'statement_timeout, for the turn', "SET statement_timeout = '50ms'; $never", merge_of('b'), '57014', 0 ],
    [ 'lock_timeout, for a claim', "SET lock_timeout = '50ms'; $never", q{SELECT idem_claim('a', 'target')}, '55P03', 0 ],
    [ 'nowait of a versioned merge', $never, merge_of('a', "$versioned, nowait => true"), '55P03', 0 ]);

foreach my $case (@cases)
{
    my ($name, $settings, $sql, $code, $reported) = @$case;
    my (undef, $output, $errors) = $node->psql('postgres',
        "\\set VERBOSITY verbose\n$settings; SHOW lock_timeout; $sql; ", on_error_stop => 0);
    my ($got) = $errors =~ /ERROR:  (\w+):/;

    is($got, $code, "$name: SQLSTATE");
    is(() = $errors =~ /WARNING:  01000: waiting for/g, $reported,
        "$name: " . ($reported ? 'reported before' : 'nothing was reported'));
    is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}),
        '0', "$name: nobody waits any more");
}

# lock_timeout is afterwards what it was before, also in the transaction that
# goes on after a savepoint.
is( $node->safe_psql(
        'postgres',
        qq{\\set ON_ERROR_STOP off
           $soon; SET lock_timeout = '100ms'; BEGIN; SAVEPOINT s; } . merge_of('a')
          . q{; ROLLBACK TO s; SHOW lock_timeout; } . merge_of('other', q{, pipeline => 'p', dry_run => true}) . '; COMMIT'),
    "100ms\ndry_run",
    'after the timeout lock_timeout is what it was, and the transaction goes on');

# A cancel request, before and after the report.
foreach my $case ([ $never, 'pg_cancel_backend before the report' ], [ $soon, 'pg_cancel_backend after the report' ])
{
    my ($setting, $name) = @$case;
    $waiter->query_safe($setting);
    start($waiter, merge_of('a'));
    if ($setting eq $soon)
    {
        wait_for_lock($node, $pid);
    }
    else
    {
        $node->poll_query_until('postgres',
            "SELECT wait_event = 'Extension' FROM pg_stat_activity WHERE pid = $pid")
          or die 'the session did not come to wait';
    }
    $node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
    (undef, $messages) = finish($waiter);
    like($messages, qr/ERROR:  57014:/, "$name: 57014");
    is($waiter->query_safe('SELECT 1'), '1', "$name: the session lives on");
}

# pg_terminate_backend on the holder frees who waits.
$waiter->query_safe($soon);
start($waiter, merge_of('a'));
wait_for_lock($node, $pid);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($holder_pid)");
($stdout) = finish($waiter);
is($stdout, 'applied', 'when the holder is terminated, who waits applies');
give_up($holder);

# Two transactions that merge two targets each, in opposite order, are a
# deadlock: one gets 40P01, and can be retried.
reset_all();
($holder, $holder_pid) = holder(merge_of('x'));
$waiter->query_safe('BEGIN');
$waiter->query_safe(q{SELECT status FROM idem_merge('staging', 'second', '{id}', 'y')});
$waiter->query_safe(q{SET LOCAL deadlock_timeout = '50ms'});
start($holder, q{SELECT status FROM idem_merge('staging', 'second', '{id}', 'x')});
wait_for_lock($node, $holder_pid);
start($waiter, merge_of('y'));
my ($holder_stdout, $holder_messages) = finish($holder);
($stdout, $messages) = finish($waiter);
is(() = "$holder_messages$messages" =~ /deadlock detected/g, 1, 'opposite order: one deadlock');
$_->query('COMMIT') foreach ($holder, $waiter);
is( $node->safe_psql('postgres', q{SELECT count(DISTINCT batch_id), count(*) FROM idem_batches WHERE batch_id IN ('x', 'y')}),
    '1|2', 'one of the transactions is there, whole');
is( $node->safe_psql(
        'postgres', q{
        SELECT string_agg(status, ' ' ORDER BY status)
        FROM (VALUES ('x'), ('y')) AS b (batch), (VALUES ('target'::regclass), ('second')) AS t (target),
             idem_merge('staging', t.target, '{id}', b.batch)}),
    'applied applied replayed replayed',
    'a retry completes the other');

# A holder that never ends its statement: its state is told as it is.
reset_all();
$holder->query_safe('SELECT pg_advisory_lock(1)');
my ($busy, $busy_pid) = session('BEGIN', merge_of('a'));
start($busy, 'SELECT pg_advisory_lock(1)');
wait_for_lock($node, $busy_pid);
start($waiter, merge_of('a'));
wait_for_lock($node, $pid);
$holder->query_safe('SELECT pg_advisory_unlock(1)');
finish($busy);
$busy->query_safe('COMMIT');
($stdout, $messages) = finish($waiter);
is($stdout, 'replayed', 'a busy holder is waited for');
like($messages, qr/DETAIL:  Process $busy_pid holds it, state active/, 'and its state is told');

# Our locks are not those of pg_advisory_lock(): the same numbers do not collide.
reset_all();
my ($class, $object) = split /\|/,
  $busy->query_safe('BEGIN; ' . merge_of('a')) && $busy->query_safe(
    q{SELECT classid::int8, objid::int8 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
      AND classid = 'target'::regclass});
is($waiter->query_safe("SELECT pg_try_advisory_xact_lock($class, $object)"), 't', 'advisory locks of the user do not collide (two keys)');
is($waiter->query_safe("SELECT pg_try_advisory_xact_lock(($class\:\:int8 << 32) | $object)"), 't', 'advisory locks of the user do not collide (one key)');
is($busy->query_safe('SELECT count(*) FROM (SELECT pg_advisory_unlock_all()) u'), '1', 'pg_advisory_unlock_all() is called');
is(sqlstate($node, 'postgres', merge_of('a', ', nowait => true')), '55P03', 'and does not release ours');
$busy->query_safe('COMMIT');

$_->quit foreach ($holder, $waiter, $loader, $busy);
$node->stop;
done_testing();
