# A merge is part of the caller's transaction, whatever the shape of that:
# two-phase commit, savepoints, exception blocks, cursors, functions, triggers,
# procedures. Its effects and its ledger row stay or go together.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('transactions', conf => 'max_prepared_transactions = 5');

$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE TABLE staging (id int, v text);
    INSERT INTO staging SELECT i, 'v' || i FROM generate_series(1, 100) AS i;
    CREATE TABLE broken AS TABLE staging;
    INSERT INTO broken VALUES (1, 'another');
    CREATE TABLE target (id int PRIMARY KEY, v text);
});

# Begin with an empty target and an empty ledger.
sub reset_all
{
    $node->safe_psql('postgres',
        q{TRUNCATE target; SELECT idem_forget('target', applied_since => '-infinity')});
    return;
}

# Rows of the target, rows of the ledger.
sub state_is
{
    my ($expected, $what) = @_;

    is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM target), (SELECT count(*) FROM idem_ledger)'),
        $expected, $what);
    return;
}

sub merge_of
{
    my ($batch, $more) = @_;

    return "SELECT status FROM idem_merge('staging', 'target', '{id}', '$batch'" . ($more // '') . ')';
}

#
# Two-phase commit
#
$node->safe_psql('postgres', 'BEGIN; ' . merge_of('a') . q{; PREPARE TRANSACTION 'the gid'});
state_is('0|0', 'prepared: nobody sees anything');
is(sqlstate($node, 'postgres', merge_of('a', ', nowait => true')),
    '55P03', 'prepared: nowait does not wait for it');

# It is said who is in the way; lock_timeout ends the wait, also after the report.
my (undef, undef, $stderr) = $node->psql('postgres',
    q{SET deadlock_timeout = '20ms'; SET lock_timeout = '200ms'; } . merge_of('a'));
like($stderr, qr/WARNING:  waiting for batch "a", which another transaction is working on/,
    'prepared: the wait is reported');
like($stderr, qr/DETAIL:  Prepared transaction 'the gid' holds it, prepared [0-9:]+ ago\./,
    'prepared: with its gid');
like($stderr, qr/ERROR:  canceling statement due to lock timeout/, 'prepared: lock_timeout ends the wait');

(undef, undef, $stderr) = $node->psql('postgres',
    q{SET deadlock_timeout = '20ms'; SET lock_timeout = '200ms'; } . merge_of('b'));
like($stderr, qr/WARNING:  waiting for another merge into "target"\n.*'the gid'/,
    'prepared: another batch waits for its turn, and is told the same');

# The prepared transaction outlives a restart, and so does what it holds.
$node->restart;
is(sqlstate($node, 'postgres', merge_of('a', ', nowait => true')),
    '55P03', 'prepared, restarted: it still holds the batch');
state_is('0|0', 'prepared, restarted: nobody sees anything');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'the gid'});
state_is('0|0', 'ROLLBACK PREPARED: nothing is left');
is($node->safe_psql('postgres', merge_of('a')), 'applied', 'ROLLBACK PREPARED: the retry applies');

reset_all();
$node->safe_psql('postgres', 'BEGIN; ' . merge_of('a') . q{; PREPARE TRANSACTION 'two'});
my $waiter = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $waiter->query_safe('SELECT pg_backend_pid()');
start($waiter, merge_of('a'));
wait_for_lock($node, $pid);
$node->safe_psql('postgres', q{COMMIT PREPARED 'two'});
my ($stdout, $messages) = finish($waiter);
is($stdout, 'replayed', 'COMMIT PREPARED: who waited replays');
like($messages, qr/^[^\n]*WARNING:  waiting for batch/, 'COMMIT PREPARED: after it has been told what for');
unlike($messages, qr/ERROR/, 'COMMIT PREPARED: without an error');
is($node->safe_psql('postgres', merge_of('a')), 'replayed', 'COMMIT PREPARED: the retry replays');
state_is('100|1', 'COMMIT PREPARED: all is there');

# Temporary staging cannot be part of a prepared transaction, as in core.
reset_all();
is( sqlstate(
        $node, 'postgres',
        q{CREATE TEMP TABLE temp_staging AS TABLE staging; BEGIN;
          SELECT FROM idem_merge('temp_staging', 'target', '{id}', 'a');
          PREPARE TRANSACTION 'three'}),
    '0A000',
    'PREPARE TRANSACTION after a merge from a temporary table fails');
state_is('0|0', 'and leaves nothing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'nor anything prepared');
is($node->safe_psql('postgres', merge_of('a')), 'applied', 'the retry applies');

#
# Savepoints
#
reset_all();
is( $node->safe_psql(
        'postgres',
        'BEGIN; SAVEPOINT s; ' . merge_of('a') . '; ROLLBACK TO s; SELECT count(*) FROM idem_ledger; '
          . merge_of('a') . '; ' . merge_of('a') . '; RELEASE s; ' . merge_of('a') . '; COMMIT'),
    "applied\n0\napplied\nreplayed\nreplayed",
    'ROLLBACK TO takes the merge back, RELEASE keeps it, and a transaction replays its own batch');
state_is('100|1', 'one batch is left');

reset_all();
is( $node->safe_psql(
        'postgres',
        'BEGIN; ' . merge_of('a') . '; SAVEPOINT s; ' . merge_of('b') . '; ROLLBACK TO s; ' . merge_of('a')
          . '; COMMIT; ' . merge_of('b')),
    "applied\napplied\nreplayed\napplied",
    'only what came after the savepoint is taken back');
state_is('100|2', 'two batches are left');

# An error inside, survived by ON_ERROR_ROLLBACK, leaves nothing of that merge.
reset_all();
is( $node->safe_psql(
        'postgres',
        q{\set ON_ERROR_STOP off
          \set ON_ERROR_ROLLBACK on
          BEGIN; SELECT FROM idem_merge('broken', 'target', '{id}', 'a'); } . merge_of('a') . '; COMMIT'),
    'applied', 'after the error of a broken batch the corrected one is applied under its id');
state_is('100|1', 'and is the only one');

# What the transaction has deleted and taken back is not lost; what it has
# deleted for good is.
is($node->safe_psql('postgres', 'BEGIN; SAVEPOINT s; DELETE FROM target; ROLLBACK TO s; ' . merge_of('a') . '; COMMIT'),
    'replayed', 'a DELETE that was taken back is no obstacle to a replay');
is($node->safe_psql('postgres', 'BEGIN; SAVEPOINT s; TRUNCATE target; ROLLBACK TO s; ' . merge_of('a') . '; COMMIT'),
    'replayed', 'nor is a TRUNCATE that was taken back');
is(sqlstate($node, 'postgres', 'BEGIN; SAVEPOINT s; DELETE FROM target WHERE id = 1; RELEASE s; ' . merge_of('a')),
    'II004', 'a DELETE that was released is');
is(sqlstate($node, 'postgres', 'BEGIN; SAVEPOINT s; TRUNCATE target; RELEASE s; ' . merge_of('a')),
    'II004', 'and so is a TRUNCATE');
state_is('100|1', 'nothing of it has stayed');

#
# Exception blocks
#
reset_all();
is( $node->safe_psql(
        'postgres', q{
        DO $$
        BEGIN
            BEGIN
                PERFORM idem_merge('broken', 'target', '{id}', 'a');
            EXCEPTION WHEN cardinality_violation THEN
                PERFORM idem_merge('staging', 'target', '{id}', 'a');
            END;
            BEGIN
                PERFORM idem_merge('staging', 'target', '{id}', 'b');
                RAISE division_by_zero;
            EXCEPTION WHEN division_by_zero THEN
                NULL;
            END;
        END $$;
        SELECT batch_id, rows_inserted FROM idem_batches}),
    'a|100',
    'an exception block takes back what was merged in it, and nothing else');

# Far more subtransactions than a process keeps in shared memory.
reset_all();
is( $node->safe_psql(
        'postgres', q{
        DO $$
        BEGIN
            FOR i IN 1 .. 200 LOOP
                BEGIN
                    PERFORM idem_merge('staging', 'target', '{id}', 'batch ' || i);
                    IF i % 2 = 0 THEN
                        RAISE division_by_zero;
                    END IF;
                EXCEPTION WHEN division_by_zero THEN
                    NULL;
                END;
            END LOOP;
        END $$;
        SELECT count(*), bool_and(split_part(batch_id, ' ', 2)::int % 2 = 1) FROM idem_batches}),
    '100|t',
    'of 200 subtransactions those that went through have left a batch');
state_is('100|100', 'and the rows of the first');

#
# Cursors
#
reset_all();
is( $node->safe_psql(
        'postgres',
        q{BEGIN; DECLARE c CURSOR WITH HOLD FOR } . merge_of('a')
          . q{; SELECT count(*) FROM idem_ledger; COMMIT; SELECT count(*) FROM idem_ledger; FETCH ALL FROM c; FETCH ALL FROM c; CLOSE c}),
    "0\n1\napplied",
    'a cursor WITH HOLD merges at COMMIT, once');
state_is('100|1', 'and what it did is committed');

reset_all();
is($node->safe_psql('postgres', q{BEGIN; DECLARE c CURSOR WITH HOLD FOR } . merge_of('a') . '; ROLLBACK; SELECT count(*) FROM pg_cursors'),
    '0', 'a cursor WITH HOLD that is rolled back');
state_is('0|0', 'has merged nothing');
is($node->safe_psql('postgres', q{BEGIN; DECLARE c CURSOR FOR } . merge_of('a') . '; COMMIT; SELECT count(*) FROM pg_cursors'),
    '0', 'a cursor that nobody fetches from');
state_is('0|0', 'has merged nothing');
is($node->safe_psql('postgres', q{BEGIN; DECLARE c CURSOR FOR } . merge_of('a') . '; FETCH c; MOVE BACKWARD ALL IN c; FETCH c; COMMIT'),
    "applied\napplied", 'a cursor that goes back shows the same result');
state_is('100|1', 'and has merged once');

# At COMMIT of a cursor WITH HOLD an error ends the transaction. A PostgreSQL with
# assertions does not survive any subtransaction that is undone at this point,
# such as PL/pgSQL's for EXCEPTION.
SKIP:
{
    skip 'PostgreSQL is built with assertions', 2 if $node->safe_psql('postgres', 'SHOW debug_assertions') eq 'on';
    reset_all();
    is( sqlstate(
            $node, 'postgres',
            q{BEGIN; INSERT INTO target VALUES (1000, 'x');
              DECLARE c CURSOR WITH HOLD FOR SELECT status FROM idem_merge('broken', 'target', '{id}', 'a'); COMMIT}),
        '21000',
        'a broken batch fails COMMIT of a cursor WITH HOLD');
    state_is('0|0', 'and the transaction with it');
}

#
# Functions, triggers, procedures, deferred constraints
#
reset_all();
is( $node->safe_psql(
        'postgres', q{
        CREATE FUNCTION load(batch text) RETURNS text LANGUAGE sql
        BEGIN ATOMIC SELECT status FROM idem_merge('staging', 'target', '{id}', batch); END;
        CREATE FUNCTION load_plpgsql(batch text) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        DECLARE
            result record;
        BEGIN
            SELECT * INTO STRICT result FROM public.idem_merge('public.staging', 'public.target', '{id}', batch);
            RETURN result.status;
        END $$;
        SELECT load('a'), load_plpgsql('a'), load_plpgsql('b');
        DO $$ BEGIN PERFORM load('c'); END $$;
        DROP FUNCTION load, load_plpgsql}),
    'applied|replayed|applied',
    'functions merge, with a search_path of their own, too');
state_is('100|3', 'and DO blocks');

# A trigger on an inbox merges each delivery; an error takes back the delivery.
reset_all();
is( $node->safe_psql(
        'postgres', q{
        CREATE TABLE inbox (id int, v text);
        CREATE FUNCTION deliver() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            CREATE TEMP TABLE delivered ON COMMIT DROP AS SELECT * FROM new_rows;
            PERFORM idem_merge('delivered', 'target', '{id}');
            DROP TABLE delivered;
            RETURN NULL;
        END $$;
        CREATE TRIGGER deliver AFTER INSERT ON inbox REFERENCING NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION deliver();
        INSERT INTO inbox VALUES (1, 'one'), (2, 'two');
        INSERT INTO inbox VALUES (2, 'two'), (3, 'three');
        SELECT id, v FROM target ORDER BY id}),
    "1|one\n2|two\n3|three",
    'a statement trigger merges what was inserted');
is(sqlstate($node, 'postgres', q{INSERT INTO inbox VALUES (4, 'four'), (4, 'vier')}),
    '21000', 'a broken delivery fails the INSERT');
is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM inbox), (SELECT count(*) FROM target), (SELECT count(*) FROM idem_ledger)'),
    '4|3|2', 'and leaves neither rows nor batch');

# A merge whose target's trigger merges into another table: both or neither.
reset_all();
$node->safe_psql(
    'postgres', q{
    CREATE TABLE summary_staging (day int, n bigint);
    CREATE TABLE summary (day int PRIMARY KEY, n bigint CHECK (day < 2 OR n < 50));
    CREATE FUNCTION summarize() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM summary_staging;
        INSERT INTO summary_staging SELECT id / 50, count(*) FROM target GROUP BY 1;
        PERFORM idem_merge('summary_staging', 'summary', '{day}', 'after ' || (SELECT count(*) FROM target));
        RETURN NULL;
    END $$;
    CREATE TRIGGER summarize AFTER INSERT OR UPDATE ON target FOR EACH STATEMENT EXECUTE FUNCTION summarize()});
is($node->safe_psql('postgres', merge_of('a') . '; SELECT string_agg(day || q || n, r ORDER BY day) FROM summary, (VALUES (\':\', \' \')) AS x(q, r)'),
    "applied\n0:49 1:50 2:1", 'a merge within a merge');
is($node->safe_psql('postgres', 'SELECT count(*) FROM idem_ledger'), '2', 'records both');
$node->safe_psql('postgres', q{INSERT INTO staging SELECT i, 'v' || i FROM generate_series(101, 149) AS i});
is(sqlstate($node, 'postgres', merge_of('b')), '23514', 'an error of the inner one');
is($node->safe_psql('postgres', q{SELECT (SELECT count(*) FROM target), (SELECT count(*) FROM idem_ledger), (SELECT max(n) FROM summary)}),
    '100|2|50', 'takes back both');
$node->safe_psql(
    'postgres', q{
    DROP TRIGGER summarize ON target;
    DELETE FROM staging WHERE id > 100;
    SELECT idem_forget('summary', applied_since => '-infinity')});

# Procedures that commit between batches.
reset_all();
is( $node->safe_psql(
        'postgres', q{
        CREATE PROCEDURE load_all() LANGUAGE plpgsql AS $$
        BEGIN
            FOR i IN 1 .. 3 LOOP
                PERFORM idem_merge('staging', 'target', '{id}', 'batch ' || i);
                IF i = 3 THEN
                    ROLLBACK;
                ELSE
                    COMMIT;
                END IF;
            END LOOP;
        END $$;
        CALL load_all();
        SELECT string_agg(batch_id, ',' ORDER BY batch_id) FROM idem_batches WHERE target = 'target'::regclass;
        DROP PROCEDURE load_all}),
    'batch 1,batch 2',
    'a procedure keeps what it has committed and loses what it has rolled back');

# "applied" is not the last word: a deferred constraint can still fail COMMIT.
reset_all();
$node->safe_psql(
    'postgres', q{
    CREATE TABLE parents (v text PRIMARY KEY);
    INSERT INTO parents SELECT 'v' || i FROM generate_series(1, 99) AS i;
    ALTER TABLE target ADD CONSTRAINT fk FOREIGN KEY (v) REFERENCES parents DEFERRABLE INITIALLY DEFERRED});
($stdout, $stderr) = ('', '');
$node->psql('postgres', 'BEGIN; ' . merge_of('a') . '; COMMIT', stdout => \$stdout, stderr => \$stderr);
is($stdout, 'applied', 'with a deferred foreign key the merge says applied');
like($stderr, qr/violates foreign key constraint "fk"/, 'and COMMIT fails');
state_is('0|0', 'nothing of the batch is left');
is($node->safe_psql('postgres', q{INSERT INTO parents VALUES ('v100'); } . merge_of('a')),
    'applied', 'with the parent the retry applies');

$node->stop;
done_testing();
