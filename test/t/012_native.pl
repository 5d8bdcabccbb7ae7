# The native engine beside the rest of the server: logical decoding, a standby,
# VACUUM, crashes and cancelled statements in every phase of a merge, savepoints,
# prepared transactions, temporary files and memory. Whatever happened, heap and
# indexes hold together (amcheck), and the log has no complaint about resources
# that were not released.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster(
    'native',
    allows_streaming => 'logical',
    conf => q{
idempotent_ingest.engine = native
max_prepared_transactions = 10
restart_after_crash = on
autovacuum_naptime = 1s
});
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
# The log is kept for it, however often the server is restarted.
$node->safe_psql('postgres', q{SELECT pg_create_physical_replication_slot('standby')});
$standby->append_conf('postgresql.conf', q{primary_slot_name = 'standby'});
$standby->start;

sub contrib
{
    my ($name) = @_;

    return $node->safe_psql('postgres',
        "SELECT count(*) FROM pg_available_extensions WHERE name = '$name'");
}
my $has_amcheck = contrib('amcheck');

# target has an index of every kind that the engine writes to: unique, partial,
# on an expression, and one that is no btree. hold() waits while somebody has the
# advisory lock of its place; there is one for each phase of a merge: staging is
# read, a row is checked, an index entry is made, a trigger fires. Row 600 is in
# the middle, and has come after many others were written.
$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE FUNCTION hold(id int, place int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN
        IF id = 600 THEN
            PERFORM pg_advisory_xact_lock_shared(place);
        END IF;
        RETURN id;
    END $$;
    CREATE FUNCTION hold_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM hold(NEW.id, 4);
        RETURN NULL;
    END $$;
    CREATE TABLE staging (id int, v text, n int, big text);
    INSERT INTO staging
    SELECT i, 'new ' || i, i, CASE WHEN i % 100 = 0 THEN (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 300) j) END
    FROM generate_series(1, 1000) AS i;
    CREATE VIEW staging_read AS SELECT hold(id, 1) AS id, v, n, big FROM staging;
    CREATE TABLE target (id int PRIMARY KEY, v text CHECK (v <> 'bad'), n int, big text, own text DEFAULT 'own',
                         CHECK (hold(id, 2) IS NOT NULL));
    CREATE INDEX target_v ON target (v);
    CREATE INDEX target_n ON target (n) WHERE n % 2 = 0;
    CREATE INDEX target_hold ON target (hold(id, 3));
    CREATE INDEX target_big ON target USING hash (big);
    INSERT INTO target SELECT i, 'old ' || i, -i, CASE WHEN i % 50 = 0 THEN (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 300) j) END
    FROM generate_series(301, 700) AS i;
    CREATE TRIGGER hold AFTER INSERT OR UPDATE ON target FOR EACH ROW EXECUTE FUNCTION hold_trigger();
    CREATE TABLE pristine AS TABLE target;
    -- The other engine, with the same.
    CREATE TABLE target_sql (LIKE target INCLUDING ALL);
});
$node->safe_psql('postgres', 'CREATE EXTENSION amcheck') if $has_amcheck;

# Heap and indexes of every table in the schema hold together, here or on the
# standby: an entry for every row, and nothing that should not be.
sub check_structures
{
    my ($what, $where) = @_;
    my $server = $where // $node;

  SKIP:
    {
        skip 'amcheck is not installed', 2 if !$has_amcheck;
        my ($code, $count, $stderr) = $server->psql(
            'postgres', q{
            SELECT count(bt_index_check(indexrelid, heapallindexed => true)) > 0
            FROM pg_index i JOIN pg_class c ON c.oid = indexrelid
            WHERE relnamespace = 'public'::regnamespace AND relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
              AND relpersistence = 'p' AND relkind = 'i'});
        is("$code $count $stderr", '0 t ', "$what: indexes are sound");
        is( $server->safe_psql(
                'postgres', q{
                SELECT string_agg(c.oid::regclass || ': ' || msg, E'\n')
                FROM pg_class c, verify_heapam(c.oid::regclass, check_toast => true) v
                WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relpersistence = 'p'}),
            '',
            "$what: heaps are sound");
    }
    return;
}

my $differences = q{
    SELECT count(*) FROM ((TABLE target EXCEPT TABLE pristine)
                          UNION ALL (TABLE pristine EXCEPT TABLE target)) d};
my $engine_and_summary = q{SELECT engine || ' ' || summary FROM idem_merge(%s)};
my $applied = 'native applied: 1000 staged, 600 inserted, 400 updated';
my $merge = "'staging', 'target', '{id}', 'batch'";

sub merge
{
    my ($arguments, $first) = @_;

    return $node->safe_psql('postgres', ($first // '') . sprintf $engine_and_summary, $arguments);
}

sub set_back
{
    $node->safe_psql(
        'postgres', q{
        SELECT idem_forget('target', applied_since => '-infinity');
        ALTER TABLE target DISABLE TRIGGER hold;
        DELETE FROM target;
        INSERT INTO target TABLE pristine;
        ALTER TABLE target ENABLE TRIGGER hold});
    return;
}

# The retry applies, and the next one replays; then all is set back.
sub check_retry
{
    my ($what) = @_;

    is(merge($merge), $applied, "$what: the retry applies");
    is( $node->safe_psql(
            'postgres',
            q{SELECT count(*) FROM (TABLE staging EXCEPT SELECT id, v, n, big FROM target) d}),
        '0', "$what: every staged row is in the target");
    like(merge($merge), qr/^native replayed: 1000 staged/, "$what: the next call replays");
    check_structures($what);
    set_back();
    return;
}

# Begin a merge and return once it is held in a phase: the session that holds it,
# the one that merges, and the process number of the latter.
my %places = (reading => 1, checking => 2, 'making index entries' => 3, 'firing triggers' => 4);

sub merge_held
{
    my ($phase, $first) = @_;
    my $place = $places{$phase};
    my $holder = $node->background_psql('postgres', on_error_stop => 0);
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $arguments = $merge;

    $arguments =~ s/'staging'/'staging_read'/ if $phase eq 'reading';
    $holder->query_safe("SELECT pg_advisory_lock($place)");
    my $pid = $session->query_safe('SELECT pg_backend_pid()');
    $session->query_safe($first) if defined $first;
    start($session, sprintf $engine_and_summary, $arguments);
    $node->poll_query_until(
        'postgres', qq{
        SELECT EXISTS (SELECT FROM pg_locks
                       WHERE pid = $pid AND NOT granted AND locktype = 'advisory'
                         AND objid = $place AND mode = 'ShareLock' AND objsubid = 1)})
      or die "the merge did not come to be held while $phase";
    return ($holder, $session, $pid);
}

sub let_go
{
    my ($holder) = @_;

    $holder->quit;
    $node->poll_query_until('postgres',
        q{SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')})
      or die 'the locks were not released';
    return;
}

# A merge that was held goes on.
foreach my $phase (sort keys %places)
{
    my ($holder, $session) = merge_held($phase);
    $holder->query_safe('SELECT pg_advisory_unlock_all()');
    my ($stdout) = finish($session);
    is($stdout, $applied, "held while $phase, and let go on");
    $_->quit foreach ($holder, $session);
    set_back();
}

# A cancel request, statement_timeout and lock_timeout, in every phase. The session
# goes on, and its transaction does after a savepoint.
foreach my $phase (sort keys %places)
{
    my ($holder, $session, $pid) =
      merge_held($phase, q{CREATE TEMP TABLE before (x int); BEGIN; INSERT INTO before VALUES (1); SAVEPOINT a});
    $session->{stdin} .= "\\echo :SQLSTATE\n";
    is($node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)"), 't', "cancel is sent while $phase");
    my ($stdout) = finish($session);
    is($stdout, '57014', "cancelled while $phase");
    $session->query_safe('ROLLBACK TO a');
    is($session->query_safe('SELECT count(*) FROM target'), '400', "the transaction goes on after that");
    let_go($holder);
    is( $session->query_safe(sprintf $engine_and_summary, $merge),
        $applied, 'and the merge, in the same transaction');
    $session->query_safe('ROLLBACK');
    $session->quit;
    check_nothing_left($node, $differences, "cancelled while $phase");
}
foreach my $case ([ 'statement_timeout', '57014' ], [ 'lock_timeout', '55P03' ])
{
    my ($setting, $code) = @$case;

    foreach my $phase (sort keys %places)
    {
        my $holder = $node->background_psql('postgres', on_error_stop => 0);
        my $staging = $phase eq 'reading' ? 'staging_read' : 'staging';

        $holder->query_safe("SELECT pg_advisory_lock($places{$phase})");
        is( sqlstate($node, 'postgres',
                "SET $setting = '50ms'; SELECT FROM idem_merge('$staging', 'target', '{id}', 'batch')"),
            $code, "$setting while $phase");
        let_go($holder);
        check_nothing_left($node, $differences, "$setting while $phase");
    }
}
check_retry('cancelled and timed out');

# Wherever else it is when the time is over: at 40 points of a merge whose batch
# does not fit memory.
$node->safe_psql(
    'postgres', q{
    CREATE TABLE wide (id int PRIMARY KEY, v text, n int);
    CREATE INDEX ON wide (v);
    INSERT INTO wide SELECT i * 2, 'old ' || i, i FROM generate_series(1, 20000) i;
    CREATE TABLE wide_staging (id int, v text, n int);
    INSERT INTO wide_staging SELECT i, 'new ' || i, i FROM generate_series(1, 30000) i;
    CREATE TABLE wide_pristine AS TABLE wide});
{
    my %ends;
    my $wrong = 0;
    my $wide = q{idem_merge('wide_staging', 'wide', '{id}', 'wide')};
    my $milliseconds = $node->safe_psql('postgres',
        "SET work_mem = '256kB'; BEGIN; SELECT ceil(extract(epoch FROM elapsed) * 1000) FROM $wide; ROLLBACK");

    foreach my $timeout (map { 1 + int($milliseconds * $_ / 40) } 0 .. 39)
    {
        my $end = sqlstate($node, 'postgres',
            "SET work_mem = '256kB'; SET statement_timeout = $timeout; BEGIN; SELECT FROM $wide; RESET statement_timeout; ROLLBACK");
        $ends{$end}++;
        $wrong++
          if $node->safe_psql('postgres',
            'SELECT count(*) FROM (TABLE wide EXCEPT TABLE wide_pristine) d') ne '0';
    }
    note "a merge takes $milliseconds ms; ", join ', ', map { "$_: $ends{$_}" } sort keys %ends;
    is((grep { $_ !~ /^(57014|none)$/ } keys %ends), 0, 'statement_timeout at 40 points ends with 57014 or not at all');
    cmp_ok($ends{57014}, '>', 0, 'and sometimes it did');
    is($wrong, 0, 'nothing of these merges is left');
    is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_ls_tmpdir()}), '0', 'no temporary file is left');
}

# Temporary files: those of a batch that does not fit memory are limited as all
# others, and go with an error.
{
    my $limited = q{SET work_mem = '64kB'; SET temp_file_limit = '256kB'; };

    is( sqlstate($node, 'postgres', $limited . q{SELECT FROM idem_merge('wide_staging', 'wide', '{id}', 'wide')}),
        '53400', 'temp_file_limit');
    is($node->safe_psql('postgres', 'SELECT count(*) FROM (TABLE wide EXCEPT TABLE wide_pristine) d'),
        '0', 'the target is as it was');
    is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_ls_tmpdir()'), '0', 'no temporary file is left');
    is( merge(q{'wide_staging', 'wide', '{id}', 'wide'}, q{SET work_mem = '64kB'; }),
        'native applied: 30000 staged, 15000 inserted, 15000 updated',
        'without the limit it is done');
    is( $node->safe_psql('postgres', q{
            SELECT count(*) FROM wide w FULL JOIN wide_staging s USING (id)
            WHERE (w.v, w.n) IS DISTINCT FROM (s.v, s.n) AND id <= 30000}),
        '0', 'with the right content');
    is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_ls_tmpdir()'), '0', 'no temporary file is left');
    $node->safe_psql('postgres', q{SELECT idem_forget('wide', 'wide')});
}

# pg_terminate_backend, and crashes: kill -9 of the merging process and an immediate
# shutdown, while rows are written. (The postmaster's death is no different for
# the engine; 001_crash.pl has it.)
foreach my $phase (sort keys %places)
{
    my ($holder, $session, $pid) = merge_held($phase);
    is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)"), 't', "terminated while $phase");
    $node->poll_query_until('postgres',
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
      or die 'the process did not end';
    give_up($session);
    let_go($holder);
    check_nothing_left($node, $differences, "terminated while $phase");
}
check_retry('terminated');
foreach my $phase (sort keys %places)
{
    my ($holder, $session, $pid) = merge_held($phase);
    my $log_end = -s $node->logfile;
    is(kill('KILL', $pid), 1, "killed while $phase");
    $node->wait_for_log(qr/database system is ready to accept connections/, $log_end);
    $node->poll_query_until('postgres', 'SELECT true') or die 'no connection';
    give_up($_) foreach ($holder, $session);
    check_nothing_left($node, $differences, "killed while $phase");
    check_retry("killed while $phase");
}
{
    my ($holder, $session) = merge_held('making index entries');
    # What is in shared buffers goes to disk, so that recovery finds half of it.
    $node->safe_psql('postgres', 'CHECKPOINT');
    $node->stop('immediate');
    give_up($_) foreach ($holder, $session);
    $node->start;
    check_nothing_left($node, $differences, 'immediate shutdown');
    check_retry('immediate shutdown');
}
# Merged and committed just before the crash: all of it is there.
{
    is(merge($merge), $applied, 'merged');
    $node->stop('immediate');
    $node->start;
    is( $node->safe_psql(
            'postgres',
            q{SELECT count(*) FROM (TABLE staging EXCEPT SELECT id, v, n, big FROM target) d}),
        '0', 'every staged row is there after the crash');
    like(merge($merge), qr/^native replayed/, 'and the batch is known');
    check_structures('crash after the merge');
    set_back();
}

# Savepoints and exception blocks: an error takes the merge with it and nothing
# else. Row 999 is refused, when all others have been written.
$node->safe_psql(
    'postgres', q{
    CREATE TABLE bad AS TABLE staging;
    UPDATE bad SET v = 'bad' WHERE id = 999;
    CREATE TABLE calls (n int GENERATED ALWAYS AS IDENTITY, result text);
    CREATE FUNCTION attempt(staging text, batch text) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        result text;
    BEGIN
        SELECT engine || ' ' || status INTO result FROM idem_merge(staging::regclass, 'target', '{id}', batch);
        INSERT INTO calls (result) VALUES (result);
        RETURN result;
    EXCEPTION WHEN OTHERS THEN
        INSERT INTO calls (result) VALUES (SQLSTATE);
        RETURN SQLSTATE;
    END $$});
is( $node->safe_psql('postgres', q{
        BEGIN;
        INSERT INTO calls (result) VALUES ('begun');
        SELECT attempt('bad', '1');
        SELECT attempt('staging', '2');
        SELECT attempt('bad', '3');
        SELECT attempt('bad', '2');
        SELECT attempt('staging', '2');
        COMMIT}),
    "23514\nnative applied\n23514\nII001\nnative replayed", 'exception blocks around merges');
is($node->safe_psql('postgres', q{SELECT string_agg(result, ' ' ORDER BY n) FROM calls}),
    'begun 23514 native applied 23514 II001 native replayed', 'the rest of the transaction is there');
is($node->safe_psql('postgres', q{SELECT string_agg(batch_id, ' ') FROM idem_ledger}),
    '2', 'the ledger has what was applied');
is($node->safe_psql('postgres', q{SELECT count(*) FROM target WHERE v = 'bad' OR v = 'old'}),
    '0', 'and so has the target');
check_structures('exception blocks');
set_back();
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $after = sub {
        my ($sql) = @_;
        $session->query_safe($sql);
        return $session->query_safe(q{SELECT count(*) FILTER (WHERE v LIKE 'new%') FROM target});
    };
    my $do_merge = sprintf $engine_and_summary, $merge;

    is($after->("BEGIN; SAVEPOINT a; $do_merge"), '1000', 'merged after a savepoint');
    is($after->('ROLLBACK TO a'), '0', 'rolled back to it');
    is($after->("$do_merge; RELEASE a; SAVEPOINT b"), '1000', 'merged again, and the savepoint released');
    $session->query(q{SELECT FROM idem_merge('bad', 'target', '{id}', 'more')});
    $session->{stderr} = '';
    is($after->('ROLLBACK TO b'), '1000', 'an error after that undoes only itself');
    is($after->('COMMIT'), '1000', 'committed');
    $session->quit;
}
like(merge($merge), qr/^native replayed/, 'the batch is known');
set_back();

# A cursor that merges, and a holdable one.
is( $node->safe_psql('postgres', qq{
        BEGIN;
        DECLARE c CURSOR FOR SELECT engine, status FROM idem_merge($merge);
        DECLARE h CURSOR WITH HOLD FOR SELECT engine, status FROM idem_merge($merge);
        FETCH c; FETCH c;
        COMMIT;
        FETCH h}),
    "native|applied\nnative|replayed", 'cursors');
set_back();

# Many merges in one transaction, which is more than the 64 subtransactions that
# every process has room for; rolled back, and committed. In between somebody else
# looks, whose snapshot has to find out which of them are of that transaction.
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $many = q{
        DO $$
        BEGIN
            FOR i IN 1 .. 200 LOOP
                UPDATE few SET v = 'state ' || i, id = CASE WHEN id > 10 THEN 10 + i ELSE id END;
                IF (SELECT engine FROM idem_merge('few', 'many', '{id}', 'many ' || i)) <> 'native' THEN
                    RAISE EXCEPTION 'merge % was by the other engine', i;
                END IF;
            END LOOP;
        END $$};
    my $state = q{SELECT count(*), count(DISTINCT v), min(v), max(v), (SELECT count(*) FROM idem_ledger WHERE target = 'many'::regclass) FROM many};

    $node->safe_psql(
        'postgres', q{
        CREATE TABLE few AS SELECT i AS id, 'v' AS v FROM generate_series(1, 11) i;
        CREATE TABLE many (id int PRIMARY KEY, v text);
        CREATE INDEX ON many (v)});
    foreach my $end ('ROLLBACK', 'COMMIT')
    {
        $session->query_safe("BEGIN; $many");
        is($session->query_safe($state), '210|200|state 1|state 99|200', '200 merges in a transaction');
        is($node->safe_psql('postgres', $state), '0|0|||0', 'which nobody else sees');
        $session->query_safe($end);
    }
    is($node->safe_psql('postgres', $state), '210|200|state 1|state 99|200', 'committed');
    check_structures('200 merges');

    # auto leaves further small batches of a transaction to the sql engine, lest there
    # be more subtransactions than that; not a large one, and not in the next one.
    my $engines = q{
        SELECT string_agg(left(engine, 1), '' ORDER BY i)
        FROM generate_series(%d, %d) i, LATERAL idem_merge('few', 'many', '{id}', 'auto ' || i)};
    my $auto = 'SET idempotent_ingest.engine = auto; VACUUM FULL few; BEGIN; ';
    like($node->safe_psql('postgres', $auto . sprintf $engines, 1, 100),
        qr/^n{10,64}s{36,}$/, 'many small batches in a transaction');
    like(
        $node->safe_psql(
            'postgres',
            $auto . sprintf($engines, 1, 100) . q{;
            SELECT engine, reason FROM idem_explain('few', 'many', '{id}');
            SELECT engine FROM idem_merge('wide_staging', 'wide', '{id}', 'wide');
            COMMIT; BEGIN;
            } . sprintf($engines, 101, 105)),
        qr/^n+s+\nsql\|the batch is small, and this transaction has merged many\nnative\nnnnnn$/,
        'large ones, and the next transaction');
    $session->quit;
    $node->safe_psql('postgres', q{
        SELECT idem_forget('many', applied_since => '-infinity'), idem_forget('wide', applied_since => '-infinity')});
}

# Prepared transactions: prepared, the merge is in the way of its own batch only
# as long as it is there; it survives a restart.
foreach my $end ('ROLLBACK', 'COMMIT')
{
    is($node->safe_psql('postgres', "BEGIN; " . sprintf($engine_and_summary, $merge) . "; PREPARE TRANSACTION 'merge'"),
        $applied, 'merged and prepared');
    is(sqlstate($node, 'postgres', "SELECT FROM idem_merge($merge, nowait => true)"),
        '55P03', 'the batch is taken');
    $node->stop('immediate');
    $node->start;
    is($node->safe_psql('postgres', $differences), '0', 'not to be seen after a restart');
    is(sqlstate($node, 'postgres', "SELECT FROM idem_merge($merge, nowait => true)"),
        '55P03', 'and the batch is still taken');
    $node->safe_psql('postgres', "$end PREPARED 'merge'");
    check_nothing_left($node, $differences, 'ROLLBACK PREPARED') if $end eq 'ROLLBACK';
}
like(merge($merge), qr/^native replayed: 1000 staged/, 'COMMIT PREPARED');
check_structures('prepared transactions');
set_back();
# Beside a prepared update of a row, the other engine waits.
$node->safe_psql('postgres', q{
    BEGIN; UPDATE target SET own = 'prepared' WHERE id = 700; PREPARE TRANSACTION 'update'});
is(sqlstate($node, 'postgres', "SET lock_timeout = '50ms'; SELECT FROM idem_merge($merge)"),
    '55P03', 'a prepared update is waited for');
check_nothing_left($node, $differences, 'beside a prepared update');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'update'});
is(merge($merge), $applied, 'and is no obstacle any more');
set_back();

# VACUUM beside merges, and autovacuum. A session merges, each time other content;
# the tables are vacuumed for as long as it does.
$node->safe_psql(
    'postgres', q{
    CREATE TABLE vacuumed (id int PRIMARY KEY, v int, n int) WITH (fillfactor = 70);
    CREATE INDEX ON vacuumed (n);
    CREATE TABLE vacuumed_staging (id int, v int, n int);
    CREATE PROCEDURE merge_often(first int, last int) LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN first .. last LOOP
            TRUNCATE vacuumed_staging;
            INSERT INTO vacuumed_staging SELECT x, i, CASE WHEN x % 3 = 0 THEN i ELSE x END FROM generate_series(i % 5, 3000, 1 + i % 4) x;
            IF i % 7 = 0 THEN
                DELETE FROM vacuumed WHERE id % 100 = i % 100;
            END IF;
            COMMIT;
            IF (SELECT engine FROM idem_merge('vacuumed_staging', 'vacuumed', '{id}', 'vacuumed ' || i)) <> 'native' THEN
                RAISE EXCEPTION 'merge % was by the other engine', i;
            END IF;
            COMMIT;
            -- As on a standby or in a plain statement, all that was staged is there.
            IF EXISTS (TABLE vacuumed_staging EXCEPT TABLE vacuumed) THEN
                RAISE EXCEPTION 'merge % lost something', i;
            END IF;
        END LOOP;
    END $$});
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $pid = $session->query_safe('SELECT pg_backend_pid()');
    my $vacuums = 0;

    start($session, "CALL merge_often(1, 100); SELECT 'done'");
    $node->poll_query_until('postgres', "SELECT state = 'active' FROM pg_stat_activity WHERE pid = $pid")
      or die 'the merges did not start';
    while ($node->safe_psql('postgres', "SELECT state FROM pg_stat_activity WHERE pid = $pid") eq 'active')
    {
        # Freezing, and looking at every page, now and then.
        my $how = $vacuums % 3 == 0 ? '(FREEZE, DISABLE_PAGE_SKIPPING)' : $vacuums % 3 == 1 ? '(INDEX_CLEANUP on)' : '';
        $node->safe_psql('postgres', "VACUUM $how vacuumed; VACUUM vacuumed_staging");
        $vacuums++;
    }
    my ($stdout, $stderr) = finish($session);
    is($stdout, 'done', 'merges beside VACUUM');
    is($stderr, '', 'without complaint');
    note "$vacuums times vacuumed";
    cmp_ok($vacuums, '>', 0, 'and it was vacuumed');
    check_structures('VACUUM');
    $session->quit;
}
$node->safe_psql('postgres', q{
    ALTER TABLE vacuumed SET (autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);
    ALTER SYSTEM SET autovacuum = on});
$node->reload;
{
    my $merged = 100;
    my $vacuumed = 0;

    # As long as it takes autovacuum to come by, but not for ever.
    while (!$vacuumed && $merged < 100 + 20 * 180)
    {
        $node->safe_psql('postgres', sprintf 'CALL merge_often(%d, %d)', $merged + 1, $merged + 20);
        $merged += 20;
        $vacuumed = $node->safe_psql('postgres',
            q{SELECT autovacuum_count FROM pg_stat_user_tables WHERE relname = 'vacuumed'});
    }
    note "autovacuum came within $merged merges";
    cmp_ok($vacuumed, '>', 0, 'merges beside autovacuum');
    $node->safe_psql('postgres', 'ALTER SYSTEM SET autovacuum = off');
    $node->reload;
    check_structures('autovacuum');
}

# The standby has the same, sound on its own.
my $content = q{
    SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM target t
    UNION ALL SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM vacuumed t
    UNION ALL SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM many t
    UNION ALL SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM wide t
    UNION ALL SELECT md5(string_agg(l::text, ',' ORDER BY target, batch_id)) FROM idem_ledger l};
is(merge($merge), $applied, 'one more for the standby');
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $content), $node->safe_psql('postgres', $content),
    'the standby has the same content');
check_structures('standby', $standby);
set_back();

# Logical decoding: of the same merge by either engine, the same changes come out.
# Their order within a merge is not promised. An attempt that was undone leaves
# nothing.
SKIP:
{
    my $slot = $node->psql('postgres',
        q{SELECT pg_create_logical_replication_slot('decoding', 'test_decoding')});
    skip 'test_decoding is not installed', 1 if $slot != 0;

    # The changes since the last call, sorted, by the name of the table that they
    # would have by the other engine.
    my $decoded = sub {
        my $changes = $node->safe_psql(
            'postgres', q{
            SELECT regexp_replace(data, 'table public.target(_sql)?:', 'target:')
            FROM pg_logical_slot_get_changes('decoding', NULL, NULL, 'include-xids', '0', 'skip-empty-xacts', '1')
            WHERE data ~ '^table public.target(_sql)?:'
            ORDER BY data COLLATE "C"});
        return $changes;
    };
    my $reset = sub {
        set_back();
        $node->safe_psql('postgres', q{
            SELECT idem_forget('target_sql', applied_since => '-infinity');
            DELETE FROM target_sql; INSERT INTO target_sql TABLE pristine});
        $decoded->();
    };
    my $by_sql = $merge =~ s/'target'/'target_sql'/r;

    foreach my $identity ('DEFAULT', 'FULL', 'NOTHING')
    {
        $node->safe_psql('postgres',
            "ALTER TABLE target REPLICA IDENTITY $identity; ALTER TABLE target_sql REPLICA IDENTITY $identity");
        foreach my $more ('', q{, mode => 'update'}, q{, exclude_cols => '{big}'})
        {
            $reset->();
            like(merge($merge . $more), qr/^native applied/, "to be decoded, $identity$more");
            my $native = $decoded->();
            like(merge($by_sql . $more, 'SET idempotent_ingest.engine = sql; '), qr/^sql applied/, 'by the other engine');
            my $sql = $decoded->();
            my $count = () = $native =~ /^target:/mg;
            is($count, $more =~ /update/ ? 400 : 1000, "as many changes as rows, $identity$more");
            ok($native eq $sql, "the same changes are decoded, $identity$more");
            like($native, qr/unchanged-toast-datum/, 'a large value that stays is not repeated')
              if $more =~ /exclude/ && $identity ne 'FULL';
        }
    }
    # No changes.
    $reset->();
    merge($merge);
    $decoded->();
    merge(q{'staging', 'target', '{id}', 'the same again'});
    is($decoded->(), '', 'a merge that changes nothing is not decoded');

    # An attempt is undone when the last stored row turns out to be locked.
    $reset->();
    my $locker = $node->background_psql('postgres', on_error_stop => 0);
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $pid = $session->query_safe('SELECT pg_backend_pid()');
    $locker->query_safe('BEGIN; SELECT FROM target WHERE id = 700 FOR UPDATE');
    start($session, sprintf $engine_and_summary, $merge);
    wait_for_lock($node, $pid);
    $locker->query_safe('COMMIT');
    my ($stdout) = finish($session);
    is($stdout, $applied =~ s/native/sql/r, 'the other engine has taken over');
    my $after_fallback = $decoded->();
    merge($by_sql, 'SET idempotent_ingest.engine = sql; ');
    ok($after_fallback eq $decoded->(), 'an attempt that was undone is not decoded');
    $_->quit foreach ($locker, $session);

    # In one transaction with other changes of the same rows, and savepoints.
    $reset->();
    my $mixed = sub {
        my ($table, $arguments) = @_;
        return qq{
            BEGIN;
            UPDATE $table SET own = 'before' WHERE id % 10 = 0;
            SAVEPOINT a;
            SELECT engine FROM idem_merge($arguments);
            ROLLBACK TO a;
            SELECT engine FROM idem_merge($arguments);
            DELETE FROM $table WHERE id % 10 = 1;
            COMMIT};
    };
    $node->safe_psql('postgres', $mixed->('target', $merge));
    my $native = $decoded->();
    $node->safe_psql('postgres', 'SET idempotent_ingest.engine = sql; ' . $mixed->('target_sql', $by_sql));
    ok($native eq $decoded->(), 'among other changes of the transaction');
    $node->safe_psql('postgres', q{SELECT pg_drop_replication_slot('decoding');
        ALTER TABLE target REPLICA IDENTITY DEFAULT});
}

# A subscriber, with a second unique index whose values change hands within a
# batch: the order of changes matters there.
{
    my $subscriber = make_cluster('subscriber');
    my $tables = q{
        CREATE TABLE published (id int PRIMARY KEY, code text UNIQUE, big text);
        ALTER TABLE published ALTER big SET STORAGE EXTERNAL;
        CREATE TABLE unidentified (id int NOT NULL, v text);
        CREATE UNIQUE INDEX ON unidentified (id)};
    my $published = q{SELECT count(*), md5(string_agg(p::text, ',' ORDER BY id)) FROM published p};

    set_back();
    $subscriber->safe_psql('postgres', $tables);
    $node->safe_psql(
        'postgres', $tables . q{;
        CREATE PUBLICATION p FOR TABLE published, unidentified;
        CREATE TABLE changes (id int, code text, big text);
        CREATE TABLE unidentified_staging AS SELECT 1 AS id, 'v' AS v;
        INSERT INTO changes SELECT i, 'c' || i, repeat('big', 2000) FROM generate_series(1, 2000) i;
        SELECT FROM idem_merge('changes', 'published', '{id}', '1')});
    $subscriber->safe_psql('postgres',
        sprintf q{CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p}, $node->connstr . ' dbname=postgres');
    $subscriber->poll_query_until('postgres',
        q{SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's'))})
      or die 'the subscription did not come to be in step';
    $node->safe_psql(
        'postgres', q{
        UPDATE changes SET code = 'c' || id - 1;         -- each has the code that the one before gives up
        UPDATE changes SET big = big || '!' WHERE id % 10 = 0;
        INSERT INTO changes SELECT i, 'new ' || i, NULL FROM generate_series(2001, 2500) i});
    is( merge(q{'changes', 'published', '{id}', '2', exclude_cols => '{big}'}),
        'native applied: 2500 staged, 500 inserted, 2000 updated', 'merged into a published table');
    is( merge(q{'changes', 'published', '{id}', '3'}),
        'native applied: 2500 staged, 200 updated, 2300 unchanged', 'and large values');
    $node->wait_for_catchup('s');
    is($subscriber->safe_psql('postgres', $published), $node->safe_psql('postgres', $published),
        'the subscriber has the same content');

    # Without a replica identity rows can be inserted only.
    my $unidentified = q{SELECT engine FROM idem_merge('unidentified_staging', 'unidentified', '{id}', };
    is(sqlstate($node, 'postgres', $unidentified . q{'1')}), '55000', 'no replica identity');
    is(sqlstate($node, 'postgres', $unidentified . q{'1', mode => 'update')}), '55000', 'nor to update');
    is($node->safe_psql('postgres', $unidentified . q{'1', mode => 'insert')}), 'native', 'but to insert');
    $node->wait_for_catchup('s');
    is($subscriber->safe_psql('postgres', 'TABLE unidentified'), '1|v', 'which the subscriber gets');
    $subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION s');
    $subscriber->stop;
}

# Memory: the last of many merges of 100,000 rows needs no more than the second one
# did, whether merges go through or fail at their end.
$node->safe_psql(
    'postgres', q{
    CREATE TABLE memory (id int PRIMARY KEY, v text CHECK (v <> 'bad'), n int);
    CREATE TABLE memory_staging (id int, v text, n int);
    INSERT INTO memory_staging SELECT i, 'value of ' || i, 0 FROM generate_series(1, 100000) i;
    CREATE TABLE memory_bad AS TABLE memory_staging;
    UPDATE memory_bad SET v = 'bad', id = 100001 WHERE id = 100000;
    UPDATE memory_bad SET n = -1;
    CREATE VIEW memory_view AS TABLE memory_staging});
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $pid = $session->query_safe('SELECT pg_backend_pid()');
    my $contexts = sub {
        return $session->query_safe('SELECT sum(total_bytes) FROM pg_backend_memory_contexts');
    };
    # What the process has of its own, without shared buffers, in kB.
    my $resident = sub {
        my $status = "/proc/$pid/status";
        return -r $status && slurp_file($status) =~ /^RssAnon:\s+(\d+) kB/m ? $1 : undef;
    };
    my $batch = 0;

    foreach my $case ([ 'memory_staging', 20 ], [ 'memory_view', 10 ], [ 'memory_bad', 10 ])
    {
        my ($staging, $rounds) = @$case;
        my ($contexts_before, $resident_before);
        my $wrong = 0;

        foreach my $round (1 .. $rounds)
        {
            $batch++;
            # Every second row changes.
            $session->query_safe("UPDATE memory_staging SET n = $batch WHERE id % 2 = $batch % 2; VACUUM memory_staging")
              if $staging ne 'memory_bad';
            my $result = $session->query(
                "SELECT engine FROM idem_merge('$staging', 'memory', '{id}', 'memory $batch')");
            $wrong++ if $result ne ($staging eq 'memory_bad' ? '' : 'native');
            $session->{stderr} = '';
            ($contexts_before, $resident_before) = ($contexts->(), $resident->()) if $round == 2;
        }
        my ($contexts_after, $resident_after) = ($contexts->(), $resident->());
        is($wrong, 0, "$rounds merges of 100,000 rows, $staging");
        cmp_ok($contexts_after - $contexts_before, '<', 512 * 1024, "memory contexts did not grow, $staging");
      SKIP:
        {
            skip 'no /proc', 1 if !defined $resident_before;
            note "$staging: $resident_before kB, then $resident_after kB";
            cmp_ok($resident_after - $resident_before, '<', 8 * 1024, "the process did not grow, $staging");
        }
    }
    $session->quit;
    is( $node->safe_psql('postgres', 'SELECT count(*) FROM (TABLE memory_staging EXCEPT TABLE memory) d'),
        '0', 'and all of it is stored');
}

# Within a merge, as a trigger at its end sees it: what is kept does not grow with
# the rows that somebody has locked, nor by the images of those that are compared.
{
    $node->safe_psql(
        'postgres', q{
        CREATE TABLE used (bytes bigint);
        CREATE FUNCTION note_used() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO used SELECT sum(used_bytes) FROM pg_backend_memory_contexts WHERE name LIKE 'idem_merge%';
            RETURN NULL;
        END $$;
        CREATE TABLE parents (id int PRIMARY KEY, v int);
        CREATE TRIGGER note_used AFTER UPDATE ON parents FOR EACH STATEMENT EXECUTE FUNCTION note_used();
        CREATE TABLE children (parent int REFERENCES parents);
        INSERT INTO parents SELECT i, 0 FROM generate_series(1, 20000) AS i;
        CREATE TABLE new_parents AS SELECT id, 1 AS v FROM parents;
        CREATE TABLE documents (id int PRIMARY KEY, v text);
        CREATE TRIGGER note_used AFTER INSERT ON documents FOR EACH STATEMENT EXECUTE FUNCTION note_used();
        CREATE TABLE new_documents AS
        SELECT 1 AS id, string_agg(md5(i || ' ' || j), '') AS v FROM generate_series(1, 12) AS i, generate_series(1, 32000) AS j GROUP BY i});
    my $used = sub {
        my ($what) = @_;
        return $node->safe_psql('postgres',
            "DELETE FROM used; SELECT engine FROM idem_merge($what); SELECT bytes FROM used") =~ s/^native\n//r;
    };
    my $unlocked = $used->(q{'new_parents', 'parents', '{id}', 'unlocked'});
    $node->safe_psql('postgres', 'INSERT INTO children SELECT id FROM parents; UPDATE new_parents SET v = 2');
    my $locked = $used->(q{'new_parents', 'parents', '{id}', 'locked'});
    cmp_ok($locked - $unlocked, '<', 100_000, 'rows that a foreign key has locked take no memory');
    cmp_ok($used->(q{'new_documents', 'documents', '{id}', 'documents', on_duplicate => 'any'}),
        '<', 12_000_000, 'of 12 documents of a megabyte two are compared at a time');
}

# In the end.
check_structures('in the end');
$node->wait_for_catchup($standby);
check_structures('in the end, standby', $standby);
$standby->stop;
$node->stop;
unlike(slurp_file($node->logfile), qr/leak|not closed|still referenced|still active|TRAP|PANIC/,
    'no complaint about resources in the log');

done_testing();
