# pg_upgrade takes the ledger along, row by row as it was, from each older major
# that is installed here with this version of the extension to the next: batches
# are replayed, new ones are applied, and what was queued is run.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The majors, of Debian's packages: those that are older, and the one that is tested.
my ($prefix, $newest) = `pg_config --bindir` =~ m{^(/usr/lib/postgresql)/(\d+)/bin$};
my @majors = grep { $_ < ($newest // 0) && -e "$prefix/$_/lib/idempotent_ingest.so" }
  map { m{/(\d+)$} } glob('/usr/lib/postgresql/*');

plan skip_all => 'there is no older major with the extension here, to upgrade from' if !@majors;
@majors = sort { $a <=> $b } @majors, $newest;

my $conf = "shared_preload_libraries = 'idempotent_ingest'\nmax_worker_processes = 12\nidempotent_ingest.worker = off\n";

# Since 18, initdb turns checksums on; both clusters have to be alike.
sub init_major
{
    my ($major) = @_;
    return init_cluster(
        "major_$major",
        install_path => "$prefix/$major",
        conf => $conf,
        extra => [ $major >= 18 ? '--no-data-checksums' : () ]);
}

my $node = init_major($majors[0]);
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE loader');
make_database($node, 'loads', 'public');
$node->safe_psql(
    'loads', q{
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE staging (id int, exact numeric, txt text, doc jsonb, plain json, feeling mood, duo pair,
                          many text[], at timestamptz, class regclass);
    INSERT INTO staging
    SELECT i, i / 7.0, repeat(md5(i::text), i % 100 * 20), jsonb_build_object('i', i), json_build_object('i', i),
           CASE WHEN i % 2 = 0 THEN 'sad' ELSE 'ok' END::mood, ROW(i, repeat('x', i * 10))::pair,
           ARRAY['a', NULL, i::text], timestamptz '2026-01-01 00:00:00+00' + i * interval '1 hour', 'pg_class'
    FROM generate_series(1, 300) AS i;
    CREATE TABLE target (LIKE staging, PRIMARY KEY (id));
    CREATE TABLE ids AS SELECT i AS id, 'v' || i AS v FROM generate_series(1, 10) AS i;
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
    CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE queued (id int PRIMARY KEY, v text);
    CREATE TABLE expired (id int PRIMARY KEY, v text);
    CREATE TABLE dropped (id int PRIMARY KEY, v text)});

my %merge = (
    plain => q{'staging', 'target', '{id}', 'plain-1', pipeline => 'p', metadata => '{"file": "a.csv"}'},
    derived => q{'ids', 'parted', pipeline => 'derived'},
    parted => q{'ids', 'parted', '{id}', 'parted-1'},
    expired => q{'ids', 'expired', '{id}', 'expired-1'});

is(summary($node, 'loads', $merge{expired}), 'applied: 10 staged, 10 inserted', 'a batch that is to expire');
is(summary($node, 'loads', q{'ids', 'expired', '{id}', 'expired-2'}), 'applied: 10 staged, 10 unchanged',
    'and the newest, which is kept');
$node->safe_psql('loads', q{SELECT idem_set_retention('expired', retention => '1 microsecond')});
$node->safe_psql('loads', 'CALL idem_maintain()');
is($node->safe_psql('loads', q{SELECT batch_id FROM idem_ledger WHERE rows_staged IS NULL}),
    'expired-1', 'it has expired');
is(summary($node, 'loads', $merge{plain}), 'applied: 300 staged, 300 inserted', 'values of many types');
is(summary($node, 'loads', $merge{parted}), 'applied: 10 staged, 10 inserted', 'a partitioned table');
is(summary($node, 'loads', "$merge{parted}, on_replay => 'reapply'"),
    'reapplied: 10 staged, 10 unchanged', 'again');
is(summary($node, 'loads', $merge{derived}), 'applied: 10 staged, 10 unchanged', 'a derived id');
is(summary($node, 'loads', q{'ids', 'dropped', '{id}', 'dropped-1'}),
    'applied: 10 staged, 10 inserted', 'a table that is dropped');
$node->safe_psql(
    'loads', q{
    DROP TABLE dropped;
    SELECT FROM idem_merge('ids', 'queued', '{id}', 'forgotten');
    SELECT idem_forget('queued', 'forgotten', reason => 'test');
    TRUNCATE queued;
    SET ROLE loader;
    SELECT idem_claim('claim of loader')});
my $job = $node->safe_psql('loads', q{SELECT idem_enqueue('ids', 'queued', '{id}', 'queued-1')});

# All that the extension has stored, as it is stored: pg_upgrade keeps even the OIDs.
my $tables = $node->safe_psql(
    'loads', q{
    SELECT string_agg(format('SELECT * FROM %1$s AS t ORDER BY t::text', c.oid::regclass), ';' ORDER BY relname)
    FROM pg_class AS c JOIN pg_depend AS d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass
    WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass AND relkind = 'r'});
is(scalar(split /;/, $tables), 6, 'there are six tables to compare');
my $stored = $node->safe_psql('loads', $tables);
my $fingerprint = $node->safe_psql('loads', q{SELECT idem_fingerprint('staging')});

foreach my $i (1 .. $#majors)
{
    my ($from, $to) = @majors[ $i - 1, $i ];
    my $what = "$from to $to";
    my $new = init_major($to);

    $node->stop;
    # It writes its files to where it is started.
    chdir $new->basedir or die "$!";
    $new->command_ok(
        [
            "$prefix/$to/bin/pg_upgrade", '--no-sync',
            '-b', "$prefix/$from/bin", '-B', "$prefix/$to/bin",
            '-d', $node->data_dir, '-D', $new->data_dir,
            '-s', $new->host, '-p', $node->port, '-P', $new->port ],
        "$what: pg_upgrade");
    $node = $new;
    $node->start;
    is($node->safe_psql('loads', 'SHOW server_version_num') =~ s/\d{4}$//r, $to, "$what: it is $to");
    is($node->safe_psql('loads', $tables), $stored, "$what: every row is as it was");
    is($node->safe_psql('loads', q{SELECT idem_fingerprint('staging')}),
        $fingerprint, "$what: the fingerprint is the same");

    foreach my $name (sort keys %merge)
    {
        is( $node->safe_psql('loads', "SELECT status, rows_staged FROM idem_merge($merge{$name})"),
            'replayed|' . { plain => 300, derived => 10, parted => 10, expired => '' }->{$name},
            "$what: batch $name is replayed");
    }
    is($node->safe_psql('loads', q{SET ROLE loader; SELECT idem_claim('claim of loader')}),
        'f', "$what: a claim is remembered for its role");
    is($node->safe_psql('loads', $tables), $stored, "$what: no replay has written");

    # Undone, for the next upgrade to find all as it was.
    is( sqlstate($node, 'loads', "BEGIN; DELETE FROM ids WHERE id = 1; SELECT FROM idem_merge($merge{parted})"),
        'II001', "$what: other content is a mismatch");
    is( $node->safe_psql(
            'loads', q{
            BEGIN;
            DELETE FROM parted WHERE id <= 3;
            SELECT summary, engine FROM idem_merge('ids', 'parted', '{id}', 'parted-2');
            ROLLBACK}),
        'applied: 10 staged, 3 inserted, 7 unchanged|sql',
        "$what: a new batch is applied");
    is( $node->safe_psql(
            'loads', q{
            BEGIN;
            UPDATE target SET txt = 'changed' WHERE id <= 3;
            SELECT summary, engine FROM idem_merge('staging', 'target', '{id}', 'plain-2');
            ROLLBACK}),
        'applied: 300 staged, 3 updated, 297 unchanged|native',
        "$what: by the native engine, too");
    is( $node->safe_psql(
            'loads', q{
            BEGIN;
            SELECT idem_forget('parted', 'parted-1');
            SELECT count(*) FROM idem_audit;
            ROLLBACK}),
        "1\n3",
        "$what: the audit goes on counting");
}

# The job has waited through all of it.
is($node->safe_psql('loads', 'SELECT status FROM idem_jobs'), 'queued', 'the job is still queued');
$node->append_conf('postgresql.conf', 'idempotent_ingest.worker = on');
$node->reload;
is($node->safe_psql('loads', "SELECT status FROM idem_wait($job, '3 minutes')"), 'succeeded', 'and is run');
is($node->safe_psql('loads', 'SELECT count(*) FROM queued'), '10', 'its rows are there');

$node->stop;
done_testing();
