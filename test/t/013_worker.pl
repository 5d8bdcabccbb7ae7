# Launcher and workers: they follow extensions, databases and settings, they are
# never in the way of a command, and they stop at once. The time between two
# rounds is a day, so that whatever happens here happens because they were told.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = make_cluster(
    'worker',
    allows_streaming => 1,
    conf => "shared_preload_libraries = 'idempotent_ingest'\n"
      . "max_worker_processes = 20\n"
      . "allow_in_place_tablespaces = on\n"
      . "idempotent_ingest.naptime = 1d\n"
      . "idempotent_ingest.job_retry_delay = 10ms\n");

my $launchers = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest launcher'};

# The worker of a database, once wait_for_worker() has seen it.
sub worker
{
    my ($db, $on) = @_;
    return ($on // $node)->safe_psql(
        'postgres', qq{
        SELECT pid FROM pg_stat_activity WHERE datname = '$db'
          AND backend_type = 'idempotent_ingest worker'});
}

# Poll until the query returns true; $on is the server.
sub wait_for
{
    my ($what, $query, $on) = @_;
    ok(($on // $node)->poll_query_until('postgres', $query), $what);
    return;
}

sub wait_for_worker
{
    my ($db, $what, $other_than, $on) = @_;
    $other_than ||= 0;
    wait_for(
        $what, qq{
        SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = '$db' AND pid <> $other_than
          AND backend_type = 'idempotent_ingest worker' AND query LIKE 'waiting for jobs%'}, $on);
    return worker($db, $on);
}

# A round of the worker that was under way at the reload goes by the old settings.
sub wait_for_reload
{
    my ($pid) = @_;
    wait_for('the worker knows of the reload', qq{
        SELECT state = 'idle' AND state_change > pg_conf_load_time() FROM pg_stat_activity WHERE pid = $pid});
    return;
}

sub wait_for_no_worker
{
    my ($db, $what) = @_;
    wait_for(
        $what, qq{
        SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = '$db'
          AND backend_type LIKE 'idempotent_ingest %'});
    return;
}

# Another worker for a database, at once: one that is terminated counts as failed.
sub restart_worker
{
    my ($db) = @_;
    my $old = worker($db);

    foreach my $value ('off', 'on')
    {
        $node->append_conf('postgresql.conf', "idempotent_ingest.worker = $value");
        $node->reload;
        wait_for_no_worker($db, "the worker of $db ends") if $value eq 'off';
    }
    return wait_for_worker($db, 'and a new one comes', $old);
}

# A database with the extension and something to merge: the trigger holds merges
# of staged_slowly while somebody has advisory lock 1.
sub make_loaded_database
{
    my ($db) = @_;

    make_database($node, $db, 'public');
    $node->safe_psql(
        $db, q{
        CREATE TABLE staging AS SELECT i AS id, 'v' || i AS v FROM generate_series(1, 10) AS i;
        CREATE TABLE target (id int PRIMARY KEY, v text);
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(1);
            RETURN NEW;
        END $$;
        CREATE TABLE held_target (id int PRIMARY KEY, v text);
        CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON held_target
            FOR EACH ROW EXECUTE FUNCTION hold()});
    return;
}

# Enqueue a merge; the arguments are those of idem_enqueue().
sub enqueue
{
    my ($db, $arguments) = @_;
    return $node->safe_psql($db, "SELECT idem_enqueue($arguments)");
}

sub job_status
{
    my ($db, $job, $on) = @_;
    return ($on // $node)->safe_psql($db, "SELECT status FROM idem_wait($job)");
}

# A job that runs and does not end: the session that holds it, and its number.
sub run_held_job
{
    my ($db, $batch, $target) = @_;
    $target //= 'held_target';
    my $holder = $node->background_psql($db, on_error_stop => 0);

    # Unchanged rows would fire no trigger.
    $holder->query_safe("DELETE FROM $target; SELECT pg_advisory_lock(1)");
    my $job = enqueue($db, "'staging', '$target', '{id}', '$batch'");
    $node->poll_query_until(
        $db, q{
        SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND locktype = 'advisory' AND objid = 1
                         AND backend_type = 'idempotent_ingest job')})
      or die 'the job did not start';
    return ($holder, $job);
}

# Start, and CREATE, ALTER and DROP EXTENSION.
{
    wait_for('the launcher runs', "SELECT count(*) = 1 FROM ($launchers) l");
    wait_for('and says what it does', qq{
        SELECT query = 'waiting for changes of databases and extensions' AND state = 'idle' AND datname IS NULL
        FROM pg_stat_activity WHERE pid = ($launchers)});
    is($node->safe_psql('postgres', 'SHOW idempotent_ingest.worker'), 'on', 'workers are on by default');

    make_database($node, 'db', undef);
    wait_for_no_worker('db', 'no worker without the extension');
    $node->safe_psql('db', q{BEGIN; CREATE EXTENSION idempotent_ingest VERSION '0.1.0'; ROLLBACK});
    $node->safe_psql('db', q{CREATE EXTENSION idempotent_ingest VERSION '0.1.0'});
    $node->safe_psql('db', q{ALTER EXTENSION idempotent_ingest UPDATE});
    my $pid = wait_for_worker('db', 'the worker comes with the version that has a queue');

    $node->safe_psql('db', 'BEGIN; DROP EXTENSION idempotent_ingest; ROLLBACK');
    is(worker('db'), $pid, 'a rolled back DROP EXTENSION does not end the worker');
    $node->safe_psql('db', 'DROP EXTENSION idempotent_ingest');
    wait_for_no_worker('db', 'DROP EXTENSION ends the worker');
    $node->safe_psql('db', 'CREATE EXTENSION idempotent_ingest');
    wait_for_worker('db', 'CREATE EXTENSION brings it back');
    $node->safe_psql('db', 'DROP EXTENSION idempotent_ingest; CREATE SCHEMA loads; CREATE EXTENSION idempotent_ingest SCHEMA loads');
    wait_for_worker('db', 'it follows to another schema');
    $node->safe_psql('db', 'DROP SCHEMA loads CASCADE');
    wait_for_no_worker('db', 'DROP SCHEMA ... CASCADE ends the worker');
    $node->safe_psql('db', 'CREATE ROLE installer SUPERUSER; SET ROLE installer; CREATE EXTENSION idempotent_ingest');
    wait_for_worker('db', 'it comes for whoever has installed the extension');
    $node->safe_psql('db', 'DROP OWNED BY installer');
    wait_for_no_worker('db', 'DROP OWNED ends the worker');
    $node->safe_psql('postgres', 'DROP DATABASE db');
}

# At 0.1.0 the extension has no queue: whoever may create tables in its schema can
# put one there, but it is not ours. A lock has the worker wait until all is there.
{
    make_database($node, 'planted', 'public');
    $node->safe_psql(
        'planted', q{
        CREATE ROLE planter;
        GRANT CREATE ON SCHEMA public TO planter;
        CREATE TABLE s (id int);
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE TABLE queue (LIKE idem_job INCLUDING ALL);
        SELECT idem_enqueue('s', 't', max_attempts => 1, run_at => 'infinity');
        INSERT INTO queue OVERRIDING SYSTEM VALUE TABLE idem_job;
        DROP EXTENSION idempotent_ingest;
        CREATE EXTENSION idempotent_ingest SCHEMA public VERSION '0.1.0';
        ALTER TABLE queue OWNER TO planter;
        SET ROLE planter;
        ALTER TABLE queue RENAME TO idem_job;
        CREATE TABLE seen (role name);
        CREATE FUNCTION idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[],
            text, text, text, text, text, text, boolean, boolean, boolean, jsonb, text) RETURNS text LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.seen VALUES (current_user); RETURN 'x'; END$$;
        UPDATE idem_job SET run_at = 'epoch'});
    my $locker = $node->background_psql('planted', on_error_stop => 0);
    my $waker = $node->background_psql('planted', on_error_stop => 0);
    $waker->query_safe(
        'BEGIN; SET LOCAL client_min_messages = warning; ALTER EXTENSION plpgsql UPDATE');
    $locker->query_safe('BEGIN; LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE');
    $waker->query_safe('COMMIT');
    wait_for('a worker looks for the extension', q{
        SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND relation = 'pg_extension'::regclass AND datname = 'planted'
                         AND backend_type = 'idempotent_ingest worker')});
    $locker->query_safe('COMMIT');
    wait_for_no_worker('planted', 'a queue that somebody has put there is none');
    is( $node->safe_psql('planted', 'SELECT (SELECT count(*) FROM seen), status, attempts FROM idem_job'),
        '0|queued|0', 'and nothing in it is run');
    $_->quit foreach $locker, $waker;
    $node->safe_psql('postgres', 'DROP DATABASE planted');
}

make_loaded_database('loads');
my $pid = wait_for_worker('loads', 'a worker for database "loads"');
is(job_status('loads', enqueue('loads', "'staging', 'target', '{id}', 'b1'")), 'succeeded', 'a job is run');

# SIGHUP.
{
    $node->append_conf('postgresql.conf', 'idempotent_ingest.worker = off');
    $node->reload;
    wait_for_no_worker('loads', 'worker = off ends the worker');
    wait_for('the launcher says so', qq{
        SELECT query = 'switched off by idempotent_ingest.worker' FROM pg_stat_activity WHERE pid = ($launchers)});
    my $job = enqueue('loads', "'staging', 'target', '{id}', 'b2'");
    $node->append_conf('postgresql.conf', 'idempotent_ingest.worker = on');
    $node->reload;
    $pid = wait_for_worker('loads', 'worker = on starts it again');
    is(job_status('loads', $job), 'succeeded', 'what was enqueued meanwhile is run');

    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 0');
    $node->reload;
    wait_for_reload($pid);
    $job = enqueue('loads', "'staging', 'target', '{id}', 'b3'");
    is( $node->safe_psql('loads', "SELECT status FROM idem_wait($job, '100 ms')"),
        'queued', 'max_workers = 0: no job is run');
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 4');
    $node->reload;
    is(job_status('loads', $job), 'succeeded', 'max_workers = 4: it is');
    is(worker('loads'), $pid, 'by the same worker');
}

# SIGTERM of each.
{
    my ($holder, $job) = run_held_job('loads', 'held 1');
    my $launcher = $node->safe_psql('postgres', $launchers);
    $node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
    wait_for('a new launcher comes', "SELECT count(*) = 1 FROM ($launchers) l WHERE pid <> $launcher");
    is(worker('loads'), $pid, 'the worker outlives the launcher');

    $node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
    $pid = wait_for_worker('loads', 'a new worker comes', $pid);
    is( $node->safe_psql('loads', "SELECT status, attempts FROM idem_wait($job, '100 ms')"),
        'running|1', 'the job outlives its worker');
    $holder->quit;
    is( $node->safe_psql('loads', "SELECT status, attempts FROM idem_wait($job)"),
        'succeeded|1', 'and succeeds');

    ($holder, $job) = run_held_job('loads', 'held 2');
    $node->safe_psql('postgres',
        q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest job'});
    $node->poll_query_until('loads', "SELECT attempts = 2 FROM idem_jobs WHERE job_id = $job")
      or die 'no second attempt';
    $holder->quit;
    is( $node->safe_psql('loads', "SELECT status, attempts FROM idem_wait($job)"),
        'succeeded|2', 'a job whose process was terminated is attempted again');
}

# Maintenance that fails ends its round, and is not in the way of jobs.
{
    my $log = -s $node->logfile;
    $node->safe_psql('loads', q{
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'maintenance fails'; END $$;
        TRUNCATE idem_sweep;
        CREATE TRIGGER fail BEFORE INSERT ON idem_sweep FOR EACH ROW EXECUTE FUNCTION fail()});
    $pid = restart_worker('loads');
    $node->wait_for_log(qr/ERROR: .*maintenance fails/, $log);
    is(job_status('loads', enqueue('loads', "'staging', 'target', '{id}', 'unmaintained'")),
        'succeeded', 'a job is run though maintenance fails');
    is(worker('loads'), $pid, 'by the worker that met the error');
    $node->safe_psql('loads', 'DROP FUNCTION fail CASCADE');
}

# To look for old jobs is not to read all that have ended. What a process has read
# is known when it has ended.
{
    my $read = q{SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'idem_job'};
    $node->safe_psql('loads', q{
        INSERT INTO idem_job OVERRIDING SYSTEM VALUE
        SELECT (jsonb_populate_record(j, jsonb_build_object('job_id', 1000000 + i, 'batch_id', 'many'))).*
        FROM idem_job AS j, generate_series(1, 10000) AS i WHERE batch_id = 'b1';
        ANALYZE idem_job});
    my $before = $node->safe_psql('loads', $read);
    restart_worker('loads');
    $pid = restart_worker('loads');
    cmp_ok($node->safe_psql('loads', $read) - $before, '<', 1000, 'it has read a few of the jobs');
    $node->safe_psql('loads', q{DELETE FROM idem_job WHERE batch_id = 'many'});
}

# idem_cancel() of a job that is running.
{
    my ($holder, $job) = run_held_job('loads', 'held 3');
    is($node->safe_psql('loads', "SELECT idem_cancel($job)"), 't', 'a running job is cancelled');
    is( $node->safe_psql('loads', "SELECT status, attempts, sqlstate FROM idem_wait($job)"),
        'cancelled|1|57014', 'and ends');
    is( $node->safe_psql('loads', q{SELECT count(*) FROM idem_ledger WHERE batch_id = 'held 3'}),
        '0', 'without a trace in the ledger');
    $holder->quit;
}

# An attempt by hand that fails, so that the worker has something to do again.
{
    $node->safe_psql('loads', q{
        CREATE TABLE by_worker (id int PRIMARY KEY, v text);
        CREATE FUNCTION fail_by_hand() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(1);
            IF (SELECT backend_type = 'client backend' FROM pg_stat_activity WHERE pid = pg_backend_pid()) THEN
                RAISE 'by hand' USING ERRCODE = 'serialization_failure';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail_by_hand BEFORE INSERT ON by_worker FOR EACH ROW EXECUTE FUNCTION fail_by_hand()});
    my $holder = $node->background_psql('loads', on_error_stop => 0);
    my $session = $node->background_psql('loads', on_error_stop => 0);
    $holder->query_safe('SELECT pg_advisory_lock(1)');
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 0');
    $node->reload;
    wait_for('no job is started', 'SELECT current_setting($$idempotent_ingest.max_workers$$) = $$0$$');
    my $job = enqueue('loads', "'staging', 'by_worker', '{id}', 'by hand'");
    my $backend = $session->query_safe('SELECT pg_backend_pid()');
    start($session, 'CALL idem_run_jobs(1)');
    wait_for_lock($node, $backend);
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 4');
    $node->reload;
    is(job_status('loads', enqueue('loads', "'staging', 'target', '{id}', 'meanwhile'")),
        'succeeded', 'the worker starts jobs again');
    wait_for('and has nothing more to do', qq{
        SELECT query = 'waiting for jobs' AND state = 'idle' FROM pg_stat_activity WHERE pid = $pid});
    $holder->quit;
    is((finish($session))[0], '0|1', 'an attempt by hand fails');
    ok( $node->poll_query_until(
            'loads', "SELECT status = 'succeeded' AND attempts = 2 FROM idem_jobs WHERE job_id = $job"),
        'and the worker starts the next one at once');
    $session->quit;
}

# Who cancels twice does not cancel what records the first time, and which waits here
# for the row of the job.
{
    my ($holder, $job) = run_held_job('loads', 'twice');
    my $session = $node->background_psql('loads', on_error_stop => 0);
    my $process = $node->safe_psql('postgres',
        q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest job'});
    $session->query_safe("BEGIN; SELECT idem_cancel($job)");
    $node->safe_psql('postgres', "SELECT pg_cancel_backend($process)");
    wait_for('the failure is to be recorded', qq{
        SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $process AND locktype = 'transactionid' AND NOT granted)});
    $node->safe_psql('postgres', "SELECT pg_cancel_backend($process)");
    $session->query_safe('COMMIT');
    is( $node->safe_psql('loads', "SELECT status, attempts, sqlstate FROM idem_wait($job)"),
        'cancelled|1|57014', 'a job that is cancelled twice is recorded as such');
    $_->quit foreach $holder, $session;
}

# Deferred triggers are interrupted as well.
{
    $node->safe_psql(
        'loads', q{
        CREATE TABLE deferring_target (id int PRIMARY KEY, v text);
        CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON deferring_target DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION hold()});
    my ($holder, $job) = run_held_job('loads', 'deferred', 'deferring_target');
    is($node->safe_psql('loads', "SET lock_timeout = '1min'; SELECT idem_cancel($job)"),
        't', 'a job that is running a deferred trigger is cancelled');
    is($node->safe_psql('loads', "SELECT status, attempts, sqlstate FROM idem_wait($job)"),
        'cancelled|1|57014', 'and ends');
    $holder->quit;
}

# An idem_cancel() that is not committed keeps neither the worker nor other jobs
# waiting: at first the worker knows that the process has ended, then the next one
# finds a job that nobody runs.
{
    my ($holder, $job) = run_held_job('loads', 'held 5');
    my $session = $node->background_psql('loads', on_error_stop => 0);
    $session->query_safe("BEGIN; SELECT idem_cancel($job)");
    $node->safe_psql('postgres',
        q{SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest job'});
    my $other = enqueue('loads', "'staging', 'target', '{id}', 'beside 1'");
    is($node->safe_psql('loads', "SELECT status FROM idem_wait($other, '1 min')"),
        'succeeded', 'an uncommitted idem_cancel() of a job that has ended keeps no other job waiting');
    $node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
    $pid = wait_for_worker('loads', 'a new worker comes', $pid);
    $other = enqueue('loads', "'staging', 'target', '{id}', 'beside 2'");
    is($node->safe_psql('loads', "SELECT status FROM idem_wait($other, '1 min')"),
        'succeeded', 'nor does it with the next worker');
    $session->query_safe('COMMIT');
    is(job_status('loads', $job), 'cancelled', 'once it is committed, the job is cancelled');
    $_->quit foreach $holder, $session;
}

# A job that is due, and that somebody has locked, keeps the worker from nothing: it
# waits, and does not look again and again.
{
    my $session = $node->background_psql('loads', on_error_stop => 0);
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 0');
    $node->reload;
    wait_for_reload($pid);
    my $job = enqueue('loads', "'staging', 'target', '{id}', 'locked'");
    $session->query_safe("BEGIN; SELECT idem_cancel($job)");
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 4');
    $node->reload;
    wait_for('with a locked job the worker waits', qq{
        SELECT wait_event_type = 'Extension' AND state_change > pg_conf_load_time()
        FROM pg_stat_activity WHERE pid = $pid});
    $session->query_safe('ROLLBACK');
    is(job_status('loads', $job), 'succeeded', 'and runs it when it is no longer locked');
    $session->quit;
}

# Who waits for a lock is woken by it, and not for what else has happened then: the
# worker finds that out by itself. (A check for deadlocks that is due only later
# would wake it once more.)
{
    $node->append_conf('postgresql.conf', 'deadlock_timeout = 1ms');
    $node->reload;
    my $locker = $node->background_psql('loads', on_error_stop => 0);
    $locker->query_safe('BEGIN; LOCK TABLE idem_sweep IN ACCESS EXCLUSIVE MODE');
    $locker->query_safe("SELECT pg_terminate_backend($pid)");
    wait_for('the next worker waits for a lock', q{
        SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND datname = 'loads' AND query = 'maintaining the ledger')});
    my $job = enqueue('loads', "'staging', 'target', '{id}', 'woken'");
    $locker->query_safe('COMMIT');
    is($node->safe_psql('loads', "SELECT status FROM idem_wait($job, '1 min')"),
        'succeeded', 'the worker has heard of a job while it waited for a lock');
    $pid = worker('loads');
    $locker->quit;
    $node->append_conf('postgresql.conf', 'deadlock_timeout = 1s');
    $node->reload;
}

# A process that comes late: its attempt was given up, since the worker that had
# started it was gone and nobody held the job. What keeps it waiting is that it
# has to read the settings of its role.
{
    my $blocker = $node->background_psql('loads', on_error_stop => 0);
    my $session = $node->background_psql('loads', on_error_stop => 0);
    my $log = -s $node->logfile;

    $blocker->query_safe('BEGIN; LOCK TABLE pg_db_role_setting IN ACCESS EXCLUSIVE MODE');
    my $job = $session->query_safe(
        q{SELECT idem_enqueue('staging', 'target', '{id}', 'late', max_attempts => 1)});
    my $waiters = q{SELECT count(*) FROM pg_locks WHERE relation = 'pg_db_role_setting'::regclass AND NOT granted};
    my $wait_for_waiters = sub {
        my ($count) = @_;
        my $attempts = 10 * $PostgreSQL::Test::Utils::timeout_default;
        while ($session->query_safe($waiters) ne $count)
        {
            die "not $count processes wait" if $attempts-- == 0;
            usleep(100_000);
        }
    };
    $wait_for_waiters->(1);
    $session->query_safe("SELECT pg_terminate_backend($pid)");
    $wait_for_waiters->(2);
    is($session->query_safe('CALL idem_run_jobs()'), '0|0', 'a job that nobody holds is given up');
    is( $session->query_safe("SELECT status, sqlstate FROM idem_wait($job)"),
        'failed|57P02', 'and has failed, as it has no attempt left');
    $blocker->query_safe('COMMIT');
    $node->wait_for_log(qr/the attempt was given up before it has started/, $log);
    $pid = wait_for_worker('loads', 'a new worker comes', $pid);
    is( $session->query_safe(q{SELECT count(*) FROM idem_ledger WHERE batch_id = 'late'}),
        '0', 'its process does nothing');
    is( $session->query_safe("SELECT status, sqlstate FROM idem_wait($job)"),
        'failed|57P02', 'and changes nothing');
    $_->quit foreach $blocker, $session;
}

# Commands that need the database for themselves. A job is running each time: it
# is interrupted, and attempted again.
{
    my ($holder, $job) = run_held_job('loads', 'held 4');
    $node->safe_psql('postgres', q{
        CREATE ROLE stranger LOGIN CREATEDB;
        CREATE TABLESPACE elsewhere LOCATION ''});
    foreach my $command (
        'DROP DATABASE loads',
        'ALTER DATABASE loads RENAME TO mine',
        'ALTER DATABASE loads SET TABLESPACE elsewhere',
        'CREATE DATABASE mine TEMPLATE loads')
    {
        isnt(sqlstate($node, 'postgres', "SET ROLE stranger; $command"), 'none', "a stranger: $command");
    }
    is(worker('loads'), $pid, 'the worker has not ended for a stranger');
    is(sqlstate($node, 'postgres', 'CREATE DATABASE postgres TEMPLATE loads'), '42P04', 'a name that is taken');
    is(sqlstate($node, 'postgres', 'ALTER DATABASE loads RENAME TO postgres'), '42P04', 'also for RENAME');
    is(sqlstate($node, 'postgres', 'BEGIN; DROP DATABASE loads'), '25001', 'in a transaction block');
    is(worker('loads'), $pid, 'the worker has not ended for what cannot be done');

    # The session that holds the job would be in the way of the command itself.
    $holder->quit;
    is($node->safe_psql('loads', "SELECT status, attempts FROM idem_wait($job)"), 'succeeded|1', 'neither has the job');
}

# A command that fails, as somebody else is in the database.
{
    my $session = $node->background_psql('loads', on_error_stop => 0);
    is(sqlstate($node, 'postgres', 'DROP DATABASE loads'), '55006', 'DROP DATABASE with a session in it');
    $pid = wait_for_worker('loads', 'the worker is back', $pid);
    $session->quit;
}

# A statement that goes on until it is interrupted, as staging.
$node->safe_psql('loads', q{
    CREATE VIEW endless AS SELECT i::int AS id, 'v' AS v FROM (SELECT generate_series(1, 1000000000)) AS g (i)
    WHERE i % 10 = 11});

sub run_endless_job
{
    my ($db) = @_;
    my $job = enqueue($db, "'endless', 'target', '{id}', 'endless', max_attempts => 1000");

    wait_for("an endless job is running in $db", qq{
        SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = '$db' AND backend_type = 'idempotent_ingest job'});
    return $job;
}

# idem_cancel() needs no worker to interrupt what is running.
{
    my $job = run_endless_job('loads');
    $node->append_conf('postgresql.conf', 'idempotent_ingest.worker = off');
    $node->reload;
    wait_for('the worker ends', q{
        SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest worker')});
    is($node->safe_psql('loads', "SELECT status FROM idem_wait($job, '0')"), 'running', 'its job does not');
    is($node->safe_psql('loads', "SELECT idem_cancel($job)"), 't', 'until it is cancelled');
    is(job_status('loads', $job), 'cancelled', 'and it has ended');
    $node->append_conf('postgresql.conf', 'idempotent_ingest.worker = on');
    $node->reload;
    wait_for_worker('loads', 'the worker is back');
}

{
    my $job = run_endless_job('loads');
    $node->safe_psql('postgres', 'BEGIN; ALTER DATABASE loads RENAME TO renamed; SELECT 1; COMMIT');
    wait_for_worker('renamed', 'RENAME with a running job: the worker is back');
    $node->safe_psql('postgres', 'ALTER DATABASE renamed RENAME TO loads');
    wait_for_worker('loads', 'and again');
    $node->safe_psql('postgres', 'ALTER DATABASE loads SET TABLESPACE elsewhere');
    wait_for_worker('loads', 'SET TABLESPACE: the worker is back');
    $node->safe_psql('postgres', 'ALTER DATABASE loads SET TABLESPACE pg_default');
    wait_for_worker('loads', 'and again');
    $node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE loads');
    wait_for_worker('loads', 'CREATE DATABASE ... TEMPLATE: the worker is back');
    wait_for_worker('copy', 'and the copy has one');
    is($node->safe_psql('loads', "SELECT idem_cancel($job)"), 't', 'the job is cancelled');
    is(job_status('loads', $job), 'cancelled', 'and has ended');
    is($node->safe_psql('copy', "SELECT attempts > 0 FROM idem_jobs WHERE job_id = $job"),
        't', 'the copy has a job of its own, which was attempted');

    $node->safe_psql('postgres', 'ALTER DATABASE copy IS_TEMPLATE true');
    wait_for("there is no worker in a template", qq{
        SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'copy'
          AND backend_type = 'idempotent_ingest worker'});
    $node->safe_psql('postgres', 'ALTER DATABASE copy IS_TEMPLATE false');
    wait_for_worker('copy', 'it is back when the database is none any more');
    $node->safe_psql('postgres', 'DROP DATABASE copy');
    is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'copy'}),
        '0', 'DROP DATABASE with a worker and a running job');

    # A session may copy the database that it is in, but nobody else may be there.
    is(sqlstate($node, 'loads', 'CREATE DATABASE copy TEMPLATE loads'),
        'none', 'a session copies the database that it is in');
    wait_for_worker('loads', 'whose worker is back');
    wait_for_worker('copy', 'and the copy has one');
    $node->safe_psql('postgres', 'DROP DATABASE copy');

    # What is copied where no template is named need not be marked as one.
    $node->safe_psql('template1', 'CREATE EXTENSION idempotent_ingest');
    $node->safe_psql('postgres', 'ALTER DATABASE template1 IS_TEMPLATE false');
    wait_for_worker('template1', 'a worker in template1, which is no template');
    is(sqlstate($node, 'postgres', 'CREATE DATABASE copy'), 'none', 'CREATE DATABASE without TEMPLATE');
    wait_for_worker('template1', 'the worker is back');
    wait_for_worker('copy', 'and the new database has one');
    $node->safe_psql('postgres', 'DROP DATABASE copy');
    $node->safe_psql('postgres', 'ALTER DATABASE template1 IS_TEMPLATE true');
    wait_for_no_worker('template1', 'and none is in template1 when it is a template again');
    $node->safe_psql('template1', 'DROP EXTENSION idempotent_ingest');

    # An owner who is no superuser may not end a superuser's process, with FORCE.
    $node->safe_psql('postgres', 'CREATE DATABASE theirs TEMPLATE loads OWNER stranger');
    wait_for_worker('theirs', 'a worker in a database that somebody else owns');
    $node->safe_psql('postgres', 'SET ROLE stranger; DROP DATABASE theirs WITH (FORCE)');
    is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'theirs'}),
        '0', 'its owner drops it with FORCE');
}

# DROP EXTENSION with jobs queued and running: it waits for the job's locks, as
# for anybody's, and then all is gone.
{
    make_loaded_database('dropping');
    wait_for_worker('dropping', 'a worker for database "dropping"');
    my ($holder, $job) = run_held_job('dropping', 'held');
    enqueue('dropping', "'staging', 'target', '{id}', 'later', run_at => now() + interval '1 day'");
    my $session = $node->background_psql('dropping', on_error_stop => 0);
    my $backend = $session->query_safe('SELECT pg_backend_pid()');
    start($session, 'DROP EXTENSION idempotent_ingest');
    wait_for_lock($node, $backend);
    $holder->quit;
    my (undef, $errors) = finish($session);
    is($errors, '', 'DROP EXTENSION with a job running');
    $session->quit;
    wait_for_no_worker('dropping', 'the worker has ended');
    $node->safe_psql('postgres', 'DROP DATABASE dropping');
}

# DROP EXTENSION while the worker maintains the ledger: the lock has both of them
# wait, one for the tables and the other one for the worker.
{
    make_loaded_database('dropping');
    my $worker = wait_for_worker('dropping', 'a worker for database "dropping"');
    my $locker = $node->background_psql('dropping', on_error_stop => 0);
    my $session = $node->background_psql('dropping', on_error_stop => 0);
    my $backend = $session->query_safe('SELECT pg_backend_pid()');
    my $log = -s $node->logfile;
    $locker->query_safe('BEGIN; LOCK TABLE idem_retention IN ACCESS EXCLUSIVE MODE');
    $locker->query_safe("SELECT pg_terminate_backend($worker)");
    wait_for('the next worker maintains the ledger', q{
        SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND datname = 'dropping' AND query = 'maintaining the ledger')});
    start($session, 'DROP EXTENSION idempotent_ingest');
    wait_for_lock($node, $backend);
    $locker->query_safe('COMMIT');
    my (undef, $errors) = finish($session);
    is($errors, '', 'DROP EXTENSION while the worker maintains the ledger');
    wait_for_no_worker('dropping', 'the worker has ended');
    unlike(slurp_file($node->logfile, $log), qr/deadlock detected/, 'without a deadlock');
    $_->quit foreach $locker, $session;
    $node->safe_psql('postgres', 'DROP DATABASE dropping');
}

# DROP EXTENSION when the worker is about to take jobs: the lock has the worker
# wait, so that the command comes between two of its transactions. The places that
# the worker could have given jobs are those of others then.
{
    make_database($node, 'dropping', 'public');
    wait_for_worker('dropping', 'a worker for database "dropping"');
    my $locker = $node->background_psql('dropping', on_error_stop => 0);
    my $session = $node->background_psql('dropping', on_error_stop => 0);
    my $backend = $session->query_safe('SELECT pg_backend_pid()');
    $locker->query_safe('BEGIN; LOCK TABLE idem_job IN ACCESS EXCLUSIVE MODE; SELECT pg_reload_conf()');
    wait_for('the worker looks at the queue', q{
        SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND datname = 'dropping' AND query = 'looking for jobs to be cancelled')});
    start($session, 'DROP EXTENSION idempotent_ingest');
    wait_for_lock($node, $backend);
    $locker->query_safe('COMMIT');
    my (undef, $errors) = finish($session);
    is($errors, '', 'DROP EXTENSION while the worker looks at the queue');
    wait_for_no_worker('dropping', 'the worker has ended');
    my $job = enqueue('loads', "'staging', 'target', '{id}', 'place'");
    is($node->safe_psql('loads', "SELECT status FROM idem_wait($job, '1 min')"),
        'succeeded', 'jobs of another database find places');
    $_->quit foreach $locker, $session;
    $node->safe_psql('postgres', 'DROP DATABASE dropping');
}

# Workers that cannot look whether the extension is there, as somebody has locked
# what they look at, do not keep others from their databases.
{
    my @sessions;

    foreach my $db (qw(locked_1 locked_2))
    {
        make_database($node, $db, 'public');
        my $worker = wait_for_worker($db, "a worker for database $db");
        push @sessions, $node->background_psql($db, on_error_stop => 0);
        $sessions[-1]->query_safe('BEGIN; LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE');
        $sessions[-1]->query_safe("SELECT pg_terminate_backend($worker)");
    }
    wait_for('two workers wait to look', q{
        SELECT count(*) = 2 FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE NOT granted AND relation = 'pg_extension'::regclass AND backend_type = 'idempotent_ingest worker'});
    make_database($node, 'open', 'public');
    wait_for_worker('open', 'another database gets a worker');
    $_->quit foreach @sessions;
    $node->safe_psql('postgres', "DROP DATABASE $_") foreach qw(locked_1 locked_2 open);
}

# A fast shutdown in the middle of a statement; the job is attempted again.
{
    my $job = run_endless_job('loads');
    my $log = -s $node->logfile;
    $node->stop('fast');
    unlike(slurp_file($node->logfile, $log), qr/PANIC|was terminated by signal/, 'a clean shutdown');
    $node->start;
    wait_for_worker('loads', 'the worker is back after the restart');
    $node->poll_query_until('loads', "SELECT attempts > 1 AND status = 'running' FROM idem_jobs WHERE job_id = $job")
      or die 'the job is not attempted again';
    is($node->safe_psql('loads', "SELECT idem_cancel($job)"), 't', 'the interrupted job runs again, and is cancelled');
    is(job_status('loads', $job), 'cancelled', 'and has ended');
}

# A standby waits for its promotion, and then runs what the primary left.
{
    $node->backup('backup');
    my $standby = PostgreSQL::Test::Cluster->new('standby');
    $standby->init_from_backup($node, 'backup', has_streaming => 1);
    $standby->start;
    $node->append_conf('postgresql.conf', 'idempotent_ingest.worker = off');
    $node->reload;
    wait_for_no_worker('loads', 'the primary runs no jobs');
    my $job = enqueue('loads', "'staging', 'target', '{id}', 'left'");
    $node->wait_for_catchup($standby);
    is( $standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'idem%'}),
        '0', 'a standby has neither launcher nor worker');
    is(sqlstate($standby, 'loads', 'CALL idem_run_jobs()'), '25006', 'nor can it run jobs by hand');
    is(sqlstate($standby, 'loads', "SELECT idem_enqueue('staging', 'target')"), '25006', 'or enqueue them');
    is(sqlstate($standby, 'loads', "SELECT idem_cancel($job)"), '25006', 'or cancel them');
    is( $standby->safe_psql('loads', "SELECT status FROM idem_wait($job, '0')"),
        'queued', 'but it can look at them');
    $node->stop;
    $standby->promote;
    wait_for_worker('loads', 'after the promotion it has', 0, $standby);
    is(job_status('loads', $job, $standby), 'succeeded', 'and the job is run');
    $standby->stop;
    $node->start;
}

# Without a place for another process, jobs wait, and are run when there is one.
{
    # What the standby has run is still to be run here.
    $node->safe_psql('loads', q{SELECT idem_cancel(job_id) FROM idem_jobs WHERE status = 'queued'});
    $node->append_conf('postgresql.conf', "idempotent_ingest.worker = on\nmax_worker_processes = 3");
    my $log = -s $node->logfile;
    $node->restart;
    wait_for_worker('loads', 'launcher, worker and logical replication launcher take all places');
    my $job = enqueue('loads', "'staging', 'target', '{id}', 'no place'");
    $node->wait_for_log(qr/could not start a process for a queued job/, $log);
    is( $node->safe_psql('loads', "SELECT status IN ('queued', 'running') FROM idem_jobs WHERE job_id = $job"),
        't', 'a job that finds no place waits');
    # A worker that is stopped while it starts a job cannot give the attempt back.
    $node->append_conf('postgresql.conf', 'idempotent_ingest.worker = off');
    $node->reload;
    wait_for_no_worker('loads', 'the worker has given the job back');
    $node->append_conf('postgresql.conf', "idempotent_ingest.worker = on\nmax_worker_processes = 8");
    $node->restart;
    is( $node->safe_psql('loads', "SELECT status, attempts FROM idem_wait($job)"),
        'succeeded|1', 'and has lost no attempt by that');
}

done_testing();
