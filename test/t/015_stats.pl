# The views idem_stats and idem_progress, with the library preloaded: what is
# counted and when, who sees it, and a merge seen from another session.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('stats',
    conf => "shared_preload_libraries = 'idempotent_ingest'\nmax_prepared_transactions = 5");

make_database($node, 'one', 'public');
make_database($node, 'two', 'public');
for my $db ('one', 'two')
{
    $node->safe_psql(
        $db, q{
        CREATE TABLE target (id int PRIMARY KEY, n int);
        CREATE TABLE staging (id int, n int);
        INSERT INTO staging VALUES (1, 1), (2, 2), (2, 2);
    });
}
$node->safe_psql('one', 'CREATE ROLE reader; CREATE ROLE watcher IN ROLE pg_monitor');

# The counts of the outcomes, in the order of the view.
sub outcomes
{
    my ($db, $role) = @_;

    return $node->safe_psql($db,
        ($role ? "SET ROLE $role;" : '')
          . q{SELECT batches_applied, batches_reapplied, batches_replayed, errors_mismatch, errors_already_applied,
                     errors_stale_row, errors_lost_batch, errors_not_in_target, errors_other FROM idem_stats}
    );
}

is(outcomes('one'), '', 'nothing is counted yet');

# One of each outcome
my $call = q{SELECT status FROM idem_merge('staging', 'target', NULL, };
$node->safe_psql('one', "$call 'b1')");
$node->safe_psql('one', "$call 'b1')");
$node->safe_psql('one', "$call 'b1', on_replay => 'reapply')");
$node->safe_psql('one', "$call NULL)");
$node->safe_psql('one', "$call 'dry', dry_run => true)");
is(sqlstate($node, 'one', "$call 'b1', on_replay => 'error')"), 'II002', 'refused');
is(sqlstate($node, 'one', "BEGIN; DELETE FROM target; $call 'b1')"), 'II004', 'refused');
$node->safe_psql('one', 'UPDATE target SET n = 9 WHERE id = 1');
is(sqlstate($node, 'one', "$call NULL)"), 'II005', 'refused');
$node->safe_psql('one', 'UPDATE staging SET n = 3 WHERE id = 2');
is(sqlstate($node, 'one', "$call 'b1')"), 'II001', 'refused');
is(sqlstate($node, 'one', "$call 'b3', version_cols => '{n}', on_stale => 'error')"),
    'II003', 'refused');
$node->safe_psql('one', 'INSERT INTO staging VALUES (NULL, 1)');
is(sqlstate($node, 'one', "$call 'b4')"), '23502', 'failed');
$node->safe_psql('one', 'DELETE FROM staging WHERE id IS NULL');
is(sqlstate($node, 'one', "$call 'b3', version_cols => '{n}', on_stale => 'error', dry_run => true)"),
    'II003', 'a dry run that is refused');
is(outcomes('one'), '2|1|1|1|1|1|1|1|1', 'each outcome is counted once, and none of a dry run');
is( $node->safe_psql(
        'one', q{
        SELECT target, rows_staged, rows_duplicate, rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_stale,
               rows_skipped, elapsed_seconds > 0, wal_bytes > 100, last_batch_at BETWEEN since AND now(), source
        FROM idem_stats}),
    'target|9|3|2|0|0|4|0|0|t|t|t|memory', 'rows, time and WAL');

# Only what commits
$node->safe_psql('one', "BEGIN; $call 'c1'); ROLLBACK");
is(outcomes('one'), '2|1|1|1|1|1|1|1|1', 'what is rolled back is not counted');
$node->safe_psql('one',
    "BEGIN; SAVEPOINT a; $call 'c1'); ROLLBACK TO a; $call 'c2'); SAVEPOINT b; $call 'c3'); RELEASE b; COMMIT");
is(outcomes('one'), '4|1|1|1|1|1|1|1|1', 'nor what is rolled back to a savepoint');
$node->safe_psql('one', "BEGIN; $call 'c4'); PREPARE TRANSACTION 'p'");
is(outcomes('one'), '5|1|1|1|1|1|1|1|1', 'a prepared transaction is counted');
$node->safe_psql('one', "ROLLBACK PREPARED 'p'");

# Who sees it
is(outcomes('one', 'reader'), '', 'without rights on the target nothing is shown');
is(outcomes('one', 'watcher'), '5|1|1|1|1|1|1|1|1', 'pg_monitor sees all');
is(sqlstate($node, 'one', "SET ROLE reader; $call 'd1')"), '42501', 'no rights to merge');
is(outcomes('one'), '5|1|1|1|1|1|1|1|1', 'who may not merge is not counted');
$node->safe_psql('one', 'GRANT SELECT (id) ON target TO reader');
is(outcomes('one', 'reader'), '5|1|1|1|1|1|1|1|1', 'with SELECT on a column it is');
is(outcomes('two'), '', 'another database has its own');
is(sqlstate($node, 'one', 'SET ROLE watcher; SELECT idem_stats_reset()'),
    '42501', 'reset is for those to whom it was granted');
$node->safe_psql('one', 'SELECT idem_stats_reset()');
is(outcomes('one'), '', 'after a reset there is nothing');
$node->safe_psql('one', "$call 'e1')");
$node->safe_psql('one', 'DROP TABLE target');
is(outcomes('one'), '', 'a dropped table is not shown');

# A merge from outside. It stops in a trigger, at an advisory lock that another
# session holds.
$node->safe_psql(
    'two', q{
    CREATE FUNCTION gate(id int) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
        IF id = 5000 THEN
            PERFORM pg_advisory_xact_lock(1);
        END IF;
        RETURN id;
    END $$;
    CREATE TABLE gate_table (id int PRIMARY KEY, n int);
    CREATE FUNCTION gate_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM gate(NEW.id);
        RETURN NEW;
    END $$;
    CREATE TRIGGER gate AFTER INSERT ON gate_table FOR EACH ROW EXECUTE FUNCTION gate_trigger();
    CREATE TABLE plain AS SELECT id, 0 AS n FROM generate_series(1, 6000) AS id;
});
my $watch = q{SELECT pid, target, phase, rows_read, rows_done, rows_total, bytes_read, bytes_total,
                     elapsed_seconds >= 0 FROM idem_progress};
my $holder = $node->background_psql('two', on_error_stop => 0);
my $merger = $node->background_psql('two', on_error_stop => 0);
my $pid = $merger->query_safe('SELECT pg_backend_pid()');

sub watch_merge
{
    my ($engine, $staging, $target, $expected, $what) = @_;

    $holder->query_safe('SELECT pg_advisory_lock(1)');
    $merger->query_safe("SET idempotent_ingest.engine = $engine");
    start($merger, "SELECT summary FROM idem_merge('$staging', '$target', NULL, '$what')");
    wait_for_lock($node, $pid);
    like($node->safe_psql('two', $watch), qr/^$pid\|$expected\|t$/, "$what: progress");
    is($node->safe_psql('one', $watch), '', "$what: not in another database");
    is($node->safe_psql('two', "SET ROLE reader; $watch"), '', "$what: not by another role");
    like($node->safe_psql('two', "SET ROLE watcher; $watch"), qr/^$pid\|$expected/, "$what: pg_monitor sees it");
    $holder->query_safe('SELECT pg_advisory_unlock(1)');
    my ($stdout) = finish($merger);
    like($stdout, qr/6000 staged, 6000 inserted/, "$what: it ended");
    is($node->safe_psql('two', $watch), '', "$what: no progress after that");
    return;
}

watch_merge('sql', 'plain', 'gate_table', 'gate_table\|applying\|5120\|\d+\|\|0\|', 'sql');
$node->safe_psql('two', 'TRUNCATE gate_table');
watch_merge('native', 'plain', 'gate_table', 'gate_table\|applying\|6000\|6000\|6000\|\d+\|\d+', 'native');

# Waiting for the turn
$holder->query_safe("BEGIN; SELECT FROM idem_merge('plain', 'gate_table', NULL, 'other')");
start($merger, "SELECT summary FROM idem_merge('plain', 'gate_table', NULL, 'waits')");
ok( $node->poll_query_until('two', "SELECT EXISTS (SELECT FROM idem_progress WHERE pid = $pid AND phase = 'waiting')"),
    'a merge that waits says so');
$holder->query_safe('COMMIT');
my ($stdout) = finish($merger);
like($stdout, qr/6000 unchanged/, 'it went on');

$holder->quit;
$merger->quit;
$node->stop;

# Not preloaded: the ledger is counted
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
is( $node->safe_psql(
        'two', q{SELECT target, batches_applied, batches_reapplied, batches_replayed, rows_staged, rows_inserted,
                        rows_unchanged, elapsed_seconds > 0, wal_bytes, last_batch_at < now(), source FROM idem_stats}),
    'gate_table|4|0||24000|12000|12000|t||t|ledger',
    'without shared memory the ledger is counted');
is($node->safe_psql('two', 'SET ROLE reader; SELECT count(*) FROM idem_stats'), '0', 'not for everybody');
is($node->safe_psql('two', 'SET ROLE watcher; SELECT count(*) FROM idem_stats'), '1', 'for pg_monitor');
is(sqlstate($node, 'two', 'SELECT idem_stats_reset()'), '55000', 'there is nothing to reset');
$node->stop;

done_testing();
