# A logical subscriber. With the ledger it takes over: it replays what the
# publisher had applied, and goes on. Without the ledger it knows nothing of the
# publisher's batches. And a publication of all tables is in nobody's way.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = make_cluster('publisher', allows_streaming => 'logical');
my $subscriber = make_cluster('subscriber');

$_->safe_psql('postgres', 'CREATE ROLE loader') foreach ($publisher, $subscriber);

sub subscribe
{
    my ($db, $publication) = @_;
    $subscriber->safe_psql(
        $db,
        sprintf q{CREATE SUBSCRIPTION "%s" CONNECTION '%s' PUBLICATION %s},
        $db, $publisher->connstr . ' dbname=loads', $publication);
    return;
}

sub wait_until_copied
{
    my ($db) = @_;
    $subscriber->poll_query_until($db,
        q{SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's'))})
      or die "the subscription of $db did not come to be in step";
    return;
}

my $tables = q{
    CREATE TABLE target (id int PRIMARY KEY, v text);
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
    CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE staging (id int, v text);
    INSERT INTO staging SELECT i, 'v' || i FROM generate_series(1, 10) AS i};

# The publisher's transaction ids are ahead of the subscriber's, and those in the
# ledger mean nothing there.
make_database($publisher, 'loads', 'public');
$publisher->safe_psql('loads',
    'DO $$ BEGIN FOR i IN 1 .. 3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$');
$publisher->safe_psql('loads', $tables);
is(summary($publisher, 'loads', q{'staging', 'target', '{id}', 'early'}),
    'applied: 10 staged, 10 inserted', 'a batch before there is a subscriber');
$publisher->safe_psql(
    'loads', q{
    SELECT idem_set_retention('target', '30 days');
    SELECT idem_claim('claim');
    SET ROLE loader;
    SELECT idem_claim('claim of loader')});
$publisher->safe_psql(
    'loads', q{
    CREATE PUBLICATION takes_over FOR TABLE target, parted, idem_ledger, idem_audit, idem_retention;
    CREATE PUBLICATION reads FOR TABLE target, parted});

foreach my $db ('takes_over', 'reads', 'lacks')
{
    make_database($subscriber, $db, 'public');
    $subscriber->safe_psql($db, $tables);
}
subscribe('takes_over', 'takes_over');
subscribe('reads', 'reads');
wait_until_copied($_) foreach ('takes_over', 'reads');

# What comes afterwards: new rows of the ledger, rows that change, and rows that go.
is(summary($publisher, 'loads', q{'staging', 'parted', '{id}', 'late'}),
    'applied: 10 staged, 10 inserted', 'a batch that is replicated');
is(summary($publisher, 'loads', q{'staging', 'target', '{id}', 'early', on_replay => 'reapply'}),
    'reapplied: 10 staged, 10 unchanged', 'another revision of one that was copied');
$publisher->safe_psql(
    'loads', q{
    SELECT FROM idem_merge('staging', 'target', '{id}', 'forgotten');
    SELECT idem_forget('target', 'forgotten', reason => 'test');
    SELECT idem_set_retention('target', '60 days')});
$publisher->wait_for_catchup($_) foreach ('takes_over', 'reads');

my $stored = join ';', map { "SELECT * FROM $_ AS t ORDER BY t::text" } 'target', 'parted', 'idem_ledger',
  'idem_audit', 'idem_retention';
is($subscriber->safe_psql('takes_over', $stored),
    $publisher->safe_psql('loads', $stored), 'the subscriber has every row as it is');
is($subscriber->safe_psql('takes_over', 'SELECT count(*) FROM idem_ledger'), '4', 'of four batches');

# A subscriber without a table that the ledger has rows about cannot apply these
# rows, and goes on when the table is there.
{
    $publisher->safe_psql(
        'loads', q{
        CREATE TABLE only_here (id int PRIMARY KEY, v text);
        CREATE PUBLICATION lacks FOR TABLE idem_ledger;
        SELECT FROM idem_merge('staging', 'only_here', '{id}', 'only-1')});
    my $log = -s $subscriber->logfile;
    subscribe('lacks', 'lacks');
    $subscriber->wait_for_log(qr/relation "public.only_here" does not exist/, $log);
    is($subscriber->safe_psql('lacks', 'SELECT count(*) FROM idem_ledger'), '0', 'nothing of the ledger was copied');
    foreach my $db ('lacks', 'takes_over')
    {
        $subscriber->safe_psql($db, 'CREATE TABLE only_here (id int PRIMARY KEY, v text)');
    }
    wait_until_copied('lacks');
    is( $subscriber->safe_psql('lacks', q{SELECT batch_id FROM idem_batches WHERE target = 'only_here'::regclass}),
        'only-1', 'with the table it is');
    $publisher->wait_for_catchup('takes_over');
    $subscriber->safe_psql('lacks', 'DROP SUBSCRIPTION lacks');
}

# A publication of all tables has those of the extension in it. Nothing that
# writes them is refused.
{
    make_database($publisher, 'all', 'public');
    $publisher->safe_psql('all', $tables . '; CREATE PUBLICATION all_tables FOR ALL TABLES');
    foreach my $statement (
        q{SELECT FROM idem_merge('staging', 'target', '{id}', '1')},
        q{SELECT FROM idem_merge('staging', 'target', '{id}', '1', on_replay => 'reapply')},
        q{SELECT idem_claim('claim')},
        q{SELECT idem_set_retention('target', '1 microsecond')},
        q{SELECT idem_set_retention('target', '2 microseconds')},
        q{SELECT FROM idem_merge('staging', 'target', '{id}', '2')},
        q{CALL idem_maintain()},
        q{SELECT idem_enqueue('staging', 'target', '{id}', '3')},
        q{CALL idem_run_jobs()},
        q{SELECT idem_cancel(idem_enqueue('staging', 'target', '{id}', '4'))},
        q{SELECT idem_forget('target', '1')},
        q{SELECT idem_set_retention('target')},
        q{SELECT idem_set_retention('parted', '1 day'); DROP TABLE parted},
        q{CALL idem_maintain()})
    {
        is(sqlstate($publisher, 'all', $statement), 'none', "all tables are published: $statement");
    }
    is($publisher->safe_psql('all', 'SELECT count(*) FROM idem_retention'),
        '0', 'of the dropped table nothing is left');
}

# Without the ledger, batches of the publisher are none of the subscriber's.
is($subscriber->safe_psql('reads', 'SELECT count(*) FROM idem_batches'), '0', 'no ledger, no batches');
is(summary($subscriber, 'reads', q{'staging', 'target', '{id}', 'early'}),
    'applied: 10 staged, 10 unchanged', 'a batch of the publisher is new, and finds all as it is');

# The publisher is lost, and the subscriber takes over.
$publisher->stop('immediate');
foreach my $db ('takes_over', 'reads')
{
    $subscriber->safe_psql($db, "ALTER SUBSCRIPTION $db DISABLE");
    $subscriber->safe_psql($db, "ALTER SUBSCRIPTION $db SET (slot_name = NONE)");
    $subscriber->safe_psql($db, "DROP SUBSCRIPTION $db");
}
is(summary($subscriber, 'takes_over', q{'staging', 'target', '{id}', 'early'}),
    'replayed: 10 staged, 10 unchanged', 'a batch that was copied is replayed');
is(summary($subscriber, 'takes_over', q{'staging', 'parted', '{id}', 'late'}),
    'replayed: 10 staged, 10 inserted', 'and so is one that was replicated');
is(summary($subscriber, 'takes_over', q{'staging', 'target', '{id}', 'forgotten'}),
    'applied: 10 staged, 10 unchanged', 'what the publisher has forgotten is new');
is( $subscriber->safe_psql(
        'takes_over', q{SELECT idem_claim('claim'); SET ROLE loader; SELECT idem_claim('claim of loader')}),
    "f\nf", 'claims are remembered for their roles');
is( $subscriber->safe_psql(
        'takes_over', q{
        UPDATE staging SET v = 'new' WHERE id = 1;
        BEGIN ISOLATION LEVEL REPEATABLE READ;
        SELECT summary FROM idem_merge('staging', 'target', '{id}', 'next');
        COMMIT}),
    'applied: 10 staged, 1 updated, 9 unchanged', 'a new batch is applied, above READ COMMITTED, too');
is(sqlstate($subscriber, 'takes_over', q{SELECT FROM idem_merge('staging', 'target', '{id}', 'early')}),
    'II001', 'and other content is a mismatch');

# Sequences are not replicated.
my $forget = q{SELECT idem_forget('target', 'next')};
is(sqlstate($subscriber, 'takes_over', "BEGIN; $forget"), '23505', 'numbers of the audit would come twice');
$subscriber->safe_psql('takes_over',
    q{SELECT setval(pg_get_serial_sequence('idem_audit', 'audit_id'), max(audit_id)) FROM idem_audit});
is( $subscriber->safe_psql(
        'takes_over', "$forget; SELECT string_agg(audit_id::text, ' ' ORDER BY audit_id) FROM idem_audit"),
    "1\n1 2 3",
    'until the sequence is set');

$subscriber->stop;
done_testing();
