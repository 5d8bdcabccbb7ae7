# Queued merges, with workers: whatever is killed when, every accepted job ends in
# exactly one state, and every batch is applied once. And nobody gets another
# one's rights by the queue.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $kills = $ENV{IDEM_KILLS} // 50;
my $seed = $ENV{IDEM_SEED} // int(rand(1_000_000));
srand($seed);
note "IDEM_SEED=$seed IDEM_KILLS=$kills";

my $node = make_cluster(
    'jobs',
    conf => "shared_preload_libraries = 'idempotent_ingest'\n"
      . "max_worker_processes = 20\n"
      . "restart_after_crash = on\n"
      . "idempotent_ingest.naptime = 1s\n"
      . "idempotent_ingest.job_retry_delay = 10ms\n");

sub job_state
{
    my ($job, $what) = @_;
    $what //= 'status, attempts, sqlstate';
    return $node->safe_psql('postgres', "SELECT $what FROM idem_wait($job)");
}

sub enqueue_as
{
    my ($role, $arguments, $settings) = @_;
    $settings //= '';
    return $node->safe_psql('postgres', "SET ROLE $role; $settings SELECT idem_enqueue($arguments)");
}

$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE TABLE staging (id int, v text);
    INSERT INTO staging SELECT i, 'v' || i FROM generate_series(1, 5) AS i;
    -- who has written a row, as what
    CREATE TABLE target (id int PRIMARY KEY, v text, session name DEFAULT session_user,
                         role name DEFAULT current_user, path text DEFAULT current_setting('search_path'));
    CREATE ROLE loader LOGIN;
    CREATE ROLE other LOGIN;
    CREATE ROLE victim LOGIN SUPERUSER;
    GRANT ALL ON staging TO loader, other;
    GRANT ALL ON target TO loader, other;
    GRANT CREATE ON SCHEMA public TO loader;
    CREATE TABLE secret (v text);
    INSERT INTO secret VALUES ('hidden')});

# A job runs as the role that has enqueued it, with that role's settings, and
# nothing of the session's.
{
    $node->safe_psql('postgres', q{
        CREATE SCHEMA own;
        ALTER ROLE loader IN DATABASE postgres SET search_path = own, public});
    my $job = enqueue_as('loader', "'staging', 'target', '{id}', 'identity'",
        q{SET search_path = public; SET application_name = 'mine';});
    is(job_state($job), 'succeeded|1|', 'a job of a role that the session has set');
    is( $node->safe_psql('postgres', 'SELECT DISTINCT session, role, path FROM target'),
        'loader|loader|own, public', 'it runs as that role, with its settings');
    is( $node->safe_psql('postgres', q{SELECT role, application_name FROM idem_batches WHERE batch_id = 'identity'}),
        "loader|idempotent_ingest job $job", 'the ledger says so');
    $node->safe_psql('postgres', 'TRUNCATE target');
}

# What a table's owner can put in the way of others: triggers that are deferred or
# not, which try to become somebody else. Jobs of loader run them as loader.
{
    $node->safe_psql(
        'postgres', q{
        SET ROLE loader;
        CREATE TABLE seen (kind text, session name, role name, took text);
        GRANT INSERT ON seen TO PUBLIC;
        CREATE FUNCTION grab() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            took text;
            victim text;
        BEGIN
            FOREACH victim IN ARRAY ARRAY['victim', 'postgres', 'other'] LOOP
                BEGIN
                    RESET ROLE;
                    RESET SESSION AUTHORIZATION;
                    EXECUTE format('SET ROLE %I', victim);
                    took := concat_ws(' ', took, victim);
                EXCEPTION WHEN insufficient_privilege THEN
                END;
                BEGIN
                    EXECUTE format('SET SESSION AUTHORIZATION %I', victim);
                    took := concat_ws(' ', took, victim);
                EXCEPTION WHEN insufficient_privilege THEN
                END;
            END LOOP;
            BEGIN
                PERFORM v FROM public.secret;
                took := concat_ws(' ', took, 'the secret');
            EXCEPTION WHEN insufficient_privilege THEN
            END;
            BEGIN
                UPDATE public.idem_job SET role = 'victim';
                took := concat_ws(' ', took, 'the queue');
            EXCEPTION WHEN insufficient_privilege THEN
            END;
            INSERT INTO public.seen VALUES (TG_ARGV[0], session_user, current_user, took);
            RETURN NEW;
        END $$;
        CREATE TABLE trap (id int PRIMARY KEY, v text);
        GRANT ALL ON trap TO other;
        CREATE TRIGGER at_once BEFORE INSERT ON trap FOR EACH ROW EXECUTE FUNCTION grab('at once');
        CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON trap DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION grab('deferred');
        -- a SECURITY DEFINER function of the owner is the owner's
        CREATE FUNCTION definer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.seen VALUES ('definer', session_user, current_user, NULL);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER definer AFTER INSERT ON trap DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION definer()});
    my $job = enqueue_as('loader', "'staging', 'trap', '{id}', 'trap'");
    is(job_state($job), 'succeeded|1|', 'a job into a table with triggers that grab');
    is( $node->safe_psql('postgres', 'SELECT kind, session, role, took, count(*) FROM seen GROUP BY 1, 2, 3, 4 ORDER BY 1'),
        "at once|loader|loader||5\ndeferred|loader|loader||5\ndefiner|loader|loader||5",
        'they run as its role, and get nothing else');
    $node->safe_psql('postgres', 'DELETE FROM trap; TRUNCATE seen');
    $job = enqueue_as('other', "'staging', 'trap', '{id}', 'trap of other'");
    is(job_state($job), 'succeeded|1|', 'a job of another role');
    is( $node->safe_psql('postgres', 'SELECT kind, session, role, took, count(*) FROM seen GROUP BY 1, 2, 3, 4 ORDER BY 1'),
        "at once|other|other|other other|5\ndeferred|other|other|other other|5\ndefiner|other|loader||5",
        'has its own rights, and those of the owner where that owner says so');
}

# Functions and operators in front of PostgreSQL's own, for whoever has this path.
{
    $node->safe_psql(
        'postgres', q{
        SET ROLE loader;
        CREATE FUNCTION public.to_jsonb(anyelement) RETURNS jsonb LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.seen VALUES ('to_jsonb', session_user, current_user); RETURN '{}'; END$$;
        CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.seen VALUES ('clock', session_user, current_user); RETURN 'epoch'; END$$;
        CREATE FUNCTION public.same(text, text) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.seen VALUES ('=', session_user, current_user); RETURN true; END$$;
        CREATE FUNCTION public.same(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.seen VALUES ('=', session_user, current_user); RETURN true; END$$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.same);
        CREATE OPERATOR public.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = public.same);
        -- the function of the job, with other types
        CREATE FUNCTION public.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[],
            text, text, text, text, text, text, boolean, boolean, boolean, json) RETURNS text LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO public.seen VALUES ('idem_merge', session_user, current_user); RETURN 'x'; END$$;
        TRUNCATE seen});
    $node->safe_psql('postgres', q{ALTER DATABASE postgres SET search_path = public, pg_catalog});
    $node->restart;
    my @jobs = map { enqueue_as($_, "'public.staging', 'public.target', '{id}', 'hijack $_'") } qw(other victim);
    is(job_state($_), 'succeeded|1|', 'a job with a hostile search_path') foreach @jobs;
    is($node->safe_psql('postgres', 'SELECT count(*) FROM public.seen'), '0', 'none of it was called');
    is( $node->safe_psql('postgres', "SELECT DISTINCT result ->> 'status' FROM idem_jobs WHERE job_id OPERATOR(pg_catalog.=) ANY ('{$jobs[0],$jobs[1]}')"),
        'applied', 'the results are the real ones');
    $node->safe_psql(
        'postgres', q{
        ALTER DATABASE postgres RESET search_path;
        DROP OPERATOR public.= (text, text);
        DROP OPERATOR public.= (bigint, bigint);
        DROP FUNCTION public.to_jsonb(anyelement), public.clock_timestamp(), public.same(text, text), public.same(bigint, bigint);
        DROP FUNCTION public.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[],
            text, text, text, text, text, text, boolean, boolean, boolean, json);
        TRUNCATE target});
    $node->restart;
}

# Settings of a role that are in the way of its own job only.
{
    $node->safe_psql('postgres', q{
        CREATE ROLE reader LOGIN;
        GRANT ALL ON staging, target TO reader;
        ALTER ROLE reader SET default_transaction_read_only = on});
    is(job_state(enqueue_as('reader', "'staging', 'target', '{id}', 'read only'")),
        'failed|1|25006', 'a role that may only read: the failure is recorded all the same');
    $node->safe_psql('postgres', q{
        ALTER ROLE reader RESET default_transaction_read_only;
        ALTER ROLE reader SET statement_timeout = '1ms';
        CREATE VIEW slow AS SELECT i::int AS id, 'v' AS v FROM generate_series(1, 1000000000) AS i WHERE i % 10 = 11;
        GRANT SELECT ON slow TO reader});
    is(job_state(enqueue_as('reader', "'slow', 'target', '{id}', 'timeout', max_attempts => 2")),
        'failed|2|57014', 'statement_timeout ends an attempt, and another one follows');
    $node->safe_psql('postgres', q{ALTER ROLE reader SET default_transaction_isolation = 'serializable'; ALTER ROLE reader RESET statement_timeout});
    is(job_state(enqueue_as('reader', "'staging', 'target', '{id}', 'serializable'")),
        'succeeded|1|', 'serializable transactions');
}

# A role that is dropped or loses its rights, with jobs queued and running.
{
    $node->safe_psql(
        'postgres', q{
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(1);
            RETURN NEW;
        END $$;
        CREATE TABLE held (id int PRIMARY KEY, v text);
        CREATE TRIGGER hold BEFORE INSERT ON held FOR EACH ROW EXECUTE FUNCTION hold();
        CREATE ROLE leaver LOGIN;
        GRANT ALL ON staging, target, held TO leaver});
    my $holder = $node->background_psql('postgres', on_error_stop => 0);
    $holder->query_safe('SELECT pg_advisory_lock(1)');
    my $running = enqueue_as('leaver', "'staging', 'held', '{id}', 'running'");
    $node->poll_query_until('postgres',
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 1)")
      or die 'the job did not start';
    my %queued = map { $_ => enqueue_as('leaver', "'staging', 'target', '{id}', '$_', run_at => 'infinity'") }
      qw(revoked nologin noconnect dropped);

    my $due = sub {
        my ($job) = @_;
        $node->safe_psql('postgres', "UPDATE idem_job SET run_at = '-infinity' WHERE job_id = $job; SELECT pg_reload_conf()");
        return job_state($job);
    };
    $node->safe_psql('postgres', 'REVOKE ALL ON target FROM leaver');
    is($due->($queued{revoked}), 'failed|1|42501', 'a right that was revoked');
    $node->safe_psql('postgres', 'ALTER ROLE leaver NOLOGIN');
    is($due->($queued{nologin}), 'failed|1|28000', 'a role that may not log in any more');
    $node->safe_psql('postgres', 'ALTER ROLE leaver LOGIN; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC');
    is($due->($queued{noconnect}), 'failed|1|42501', 'a role that may not connect any more');
    $node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC');
    $node->safe_psql('postgres', 'REVOKE ALL ON held, staging FROM leaver; DROP ROLE leaver');
    is(job_state($queued{dropped}), 'failed|0|42704', 'a role that was dropped: even a job that is not due');
    $holder->quit;
    like(job_state($running, 'status'), qr/^(succeeded|failed)$/, 'the job that was running has ended, too');
}

# By hand and by a worker: each job is run by one of them. A job that is running
# by hand is cancelled.
{
    my $holder = $node->background_psql('postgres', on_error_stop => 0);
    $holder->query_safe('DELETE FROM held; SELECT pg_advisory_lock(1)');
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 0');
    $node->reload;
    $node->poll_query_until('postgres', q{
        SELECT state = 'idle' AND state_change > pg_conf_load_time() FROM pg_stat_activity
        WHERE backend_type = 'idempotent_ingest worker'})
      or die 'the worker does not wait';
    my $job = enqueue_as('postgres', "'staging', 'held', '{id}', 'by hand'");
    my $runner = $node->background_psql('postgres', on_error_stop => 0);
    start($runner, 'CALL idem_run_jobs()');
    $node->poll_query_until('postgres',
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 1)")
      or die 'the job did not start';
    $node->append_conf('postgresql.conf', 'idempotent_ingest.max_workers = 4');
    $node->reload;
    my $other = enqueue_as('postgres', "'staging', 'target', '{id}', 'by worker'");
    is(job_state($other), 'succeeded|1|', 'the worker runs one job');
    is($node->safe_psql('postgres', "SELECT status, attempts FROM idem_wait($job, '0')"),
        'running|1', 'and leaves the other to whom it belongs');
    is($node->safe_psql('postgres', "SELECT idem_cancel($job)"), 't', 'which is cancelled');
    $holder->quit;
    my ($out) = finish($runner);
    is($out, '0|1', 'the call goes on');
    is(job_state($job), 'cancelled|1|57014', 'the job has ended');
    is($node->safe_psql('postgres', 'SELECT count(*) FROM held'), '0', 'without an effect');
    $runner->quit;

    # NOTIFY
    my $listener = $node->background_psql('postgres', on_error_stop => 0);
    $listener->query_safe('LISTEN idem_job');
    $job = enqueue_as('postgres', "'staging', 'target', '{id}', 'notify'");
    is(job_state($job), 'succeeded|1|', 'a job to be notified of');
    my $heard = '';
    foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
    {
        $heard = $listener->query('SELECT 1');
        last if $heard =~ /idem_job/;
        usleep(100_000);
    }
    like($heard, qr/Asynchronous notification "idem_job" with payload "$job"/, 'NOTIFY with its number');
    $listener->quit;
}

# Old jobs are removed, after job_retention.
{
    $node->safe_psql('postgres', q{UPDATE idem_job SET finished_at = now() - interval '8 days' WHERE batch_id = 'notify'});
    $node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM idem_job WHERE batch_id = 'notify')})
      or die 'an old job was not removed';
    is($node->safe_psql('postgres', q{SELECT count(*) > 0 FROM idem_job WHERE finished_at IS NOT NULL}), 't', 'later ones are kept');
}

# The worker maintains the ledger as well.
{
    $node->safe_psql('postgres', q{
        CREATE TABLE kept (id int PRIMARY KEY, v text);
        SELECT status FROM idem_merge('staging', 'kept', '{id}', 'old');
        SELECT status FROM idem_merge('staging', 'kept', '{id}', 'new');
        UPDATE idem_ledger SET applied_at = now() - interval '100 days' WHERE batch_id = 'old'});
    $node->append_conf('postgresql.conf', "idempotent_ingest.retention = '89d'");
    $node->reload;
    ok($node->poll_query_until('postgres', q{SELECT expired FROM idem_batches WHERE batch_id = 'old'}), 'the worker lets batches expire');
    is($node->safe_psql('postgres', q{SELECT expired FROM idem_batches WHERE batch_id = 'new'}), 'f', 'but for later ones');

    # A process gets the settings of its database when it connects.
    $node->safe_psql('postgres', q{
        SELECT status FROM idem_merge('staging', 'kept', '{id}', 'middle');
        SELECT status FROM idem_merge('staging', 'kept', '{id}', 'last');
        UPDATE idem_ledger SET applied_at = now() - interval '50 days' WHERE batch_id = 'middle';
        ALTER DATABASE postgres SET idempotent_ingest.retention = '40d'});
    ok($node->poll_query_until('postgres', q{SELECT expired FROM idem_batches WHERE batch_id = 'middle'}), 'by the settings of the database');
    $node->safe_psql('postgres', 'ALTER DATABASE postgres RESET idempotent_ingest.retention');
}

# So far, all processes have ended by themselves: a coverage build has their counts.
$node->restart;

# kill -9 of anything, at random moments, with jobs queued. Each job merges one
# batch of its own; the target counts how often each was applied.
my ($accepted, $enqueued) = (0, 0);
my @jobs;

# Run statements on a server that may be killed meanwhile; returns their output.
sub try_sql
{
    my ($out) = run_command(
        [ 'psql', '-XAtq', '-d', $node->connstr('postgres'), map { ('-c', $_) } @_ ]);
    return $out;
}

sub restart_after_kill
{
    my ($postmaster) = @_;
    my $attempts = 10 * $PostgreSQL::Test::Utils::timeout_default;
    if ($postmaster)
    {
        # Processes that have not noticed yet hold the shared memory.
        while (1)
        {
            unlink $node->data_dir . '/postmaster.pid', glob($node->host . '/.s.PGSQL.' . $node->port . '*');
            last if $node->start(fail_ok => 1);
            die 'the server did not start' if $attempts-- == 0;
            usleep(100_000);
        }
    }
    while (try_sql('SELECT true') ne 't')
    {
        die 'no connection' if $attempts-- == 0;
        usleep(20_000);
    }
    return;
}

{
    $node->safe_psql(
        'postgres', q{
        DELETE FROM idem_job;
        CREATE TABLE events (batch int, id int, PRIMARY KEY (batch, id));
        CREATE TABLE applied (batch int);
        CREATE FUNCTION count_batch() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN
                INSERT INTO applied SELECT DISTINCT batch FROM new;
                -- long enough to be hit
                PERFORM pg_sleep(random() * 0.05);
                RETURN NULL;
            END$$;
        CREATE TRIGGER count_batch AFTER INSERT ON events REFERENCING NEW TABLE AS new
            FOR EACH STATEMENT EXECUTE FUNCTION count_batch()});
    my %killed;
    my $done = 0;
    while ($done < $kills)
    {
        # Some jobs, half of them without a batch id, each in a transaction.
        my @sql;
        foreach (1 .. 6)
        {
            my $batch = ++$enqueued;
            push @sql,
              "CREATE VIEW batch_$batch AS SELECT $batch AS batch, i AS id FROM generate_series(1, 5) AS i",
              qq{SELECT idem_enqueue('batch_$batch', 'events', '{batch,id}',
                                     CASE WHEN $batch % 2 = 0 THEN 'batch $batch' END, max_attempts => 1000)};
        }
        push @jobs, try_sql(@sql) =~ /^(\d+)$/mg;

        my $kind = (qw(worker launcher job job job postmaster))[ int(rand(6)) ];
        my $pid;
        usleep(int(rand(60_000)));
        if ($kind eq 'postmaster')
        {
            $pid = $node->{_pid};
            $node->kill9;
        }
        else
        {
            $pid = try_sql(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotent_ingest $kind' ORDER BY random() LIMIT 1");
            next if !$pid || !kill('KILL', $pid);
        }
        $done++;
        $killed{$kind}++;
        restart_after_kill($kind eq 'postmaster');
    }
    note 'killed: ', join ', ', map { "$killed{$_} of $_" } sort keys %killed;
    $accepted = @jobs;
    cmp_ok($accepted, '>', $kills, 'jobs were accepted');
    ok( $node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM idem_jobs WHERE finished_at IS NULL)}),
        'all jobs end');
    is( $node->safe_psql('postgres', q{SELECT status, count(*) FROM idem_jobs GROUP BY 1}),
        'succeeded|' . $node->safe_psql('postgres', 'SELECT count(*) FROM idem_jobs'), 'all with success');
    my $there = $node->safe_psql('postgres', 'SELECT count(*) FROM idem_jobs WHERE job_id IN (' . join(',', @jobs) . ')');
    is($there, $accepted, 'each job that was accepted is there once');
    is($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT batch FROM applied GROUP BY 1 HAVING count(*) > 1) d'),
        '0', 'no batch was applied twice');
    is( $node->safe_psql('postgres', q{
            SELECT count(*) FROM idem_jobs j
            WHERE (SELECT count(*) FROM events WHERE batch = split_part(j.staging::text, '_', 2)::int) <> 5}),
        '0', 'every job has had its effect');
    is( $node->safe_psql('postgres', q{
            SELECT count(*) FROM (SELECT DISTINCT batch FROM events) e
            WHERE NOT EXISTS (SELECT FROM idem_jobs j WHERE split_part(j.staging::text, '_', 2)::int = e.batch)}),
        '0', 'and there is no effect without a job');
    is($node->safe_psql('postgres', q{SELECT count(*) FROM idem_batches WHERE target = 'events'::regclass}),
        $node->safe_psql('postgres', 'SELECT count(*) FROM idem_jobs'), 'the ledger has each batch once');
    is($node->safe_psql('postgres', q{SELECT result ->> 'status', count(*) FROM idem_jobs GROUP BY 1}),
        'applied|' . $node->safe_psql('postgres', 'SELECT count(*) FROM idem_jobs'),
        'a success was recorded with its merge: none was a replay');
    note $node->safe_psql('postgres', q{SELECT 'jobs: ' || count(*) || ', attempts: ' || sum(attempts) || ', most: ' || max(attempts) FROM idem_jobs});
}

# A job that crashes the server each time is not run for ever.
{
    $node->safe_psql(
        'postgres', q{
        CREATE TABLE poison (id int PRIMARY KEY, v text);
        CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid());
            PERFORM pg_sleep(1000);
            RETURN NEW;
        END $$;
        CREATE TRIGGER crash BEFORE INSERT ON poison FOR EACH ROW EXECUTE FUNCTION crash()});
    my $job = $node->safe_psql('postgres', "SELECT idem_enqueue('staging', 'poison', '{id}', 'poison', max_attempts => 3)");
    ok( $node->poll_query_until('postgres', "SELECT finished_at IS NOT NULL FROM idem_jobs WHERE job_id = $job"),
        'a job that crashes the server ends');
    is(job_state($job), 'failed|3|57P02', 'after its attempts');
    my $after = $node->safe_psql('postgres', "SELECT idem_enqueue('staging', 'target', '{id}', 'after')");
    is(job_state($after), 'succeeded|1|', 'others are run as before');
}

done_testing();
