# On a streaming standby, and wherever a transaction is read-only, what writes is
# refused with 25006 before it does anything, and what only looks works: dry_run
# with exact counts, idem_fingerprint, idem_explain, idem_batches. After the
# promotion batches are replayed and new ones applied.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = make_cluster('primary', allows_streaming => 1);
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

# Of 1000 staged keys 300 are new, 200 have changed, 100 are older than what is
# stored and 400 are as stored; 50 rows are there twice, and for 20 keys there is
# an older row beside the newest one.
$primary->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE TABLE target (id int PRIMARY KEY, v text, version int);
    INSERT INTO target SELECT i, 'v' || i, 10 FROM generate_series(1, 700) AS i;
    CREATE TABLE staging (id int, v text, version int);
    INSERT INTO staging SELECT i, 'v' || i, 10 FROM generate_series(1, 400) AS i;
    INSERT INTO staging SELECT i, 'changed ' || i, 11 FROM generate_series(401, 600) AS i;
    INSERT INTO staging SELECT i, 'stale ' || i, 9 FROM generate_series(601, 700) AS i;
    INSERT INTO staging SELECT i, 'v' || i, 10 FROM generate_series(701, 1000) AS i;
    INSERT INTO staging SELECT i, 'v' || i, 10 FROM generate_series(1, 50) AS i;
    INSERT INTO staging SELECT i, 'older ' || i, 5 FROM generate_series(401, 420) AS i;
    CREATE VIEW staging_view AS SELECT * FROM staging;
    CREATE UNLOGGED TABLE unlogged (LIKE staging);
    CREATE ROLE reader;
    GRANT SELECT ON staging, target TO reader;
    SELECT FROM idem_merge('staging', 'target', '{id}', 'done', mode => 'update', update_cols => '{v}',
                           version_cols => '{version}', on_duplicate => 'latest', on_stale => 'skip');
    UPDATE target SET v = 'v' || id, version = 10;
    VACUUM (FREEZE) target;
});
$primary->wait_for_catchup($standby);

my $arguments = "'%s', 'target', '{id}', 'batch', version_cols => '{version}'";
my $merge = sprintf $arguments, 'staging';
my $counts = 'rows_staged, rows_duplicate, rows_inserted, rows_updated, rows_deleted,'
  . ' rows_unchanged, rows_stale, rows_skipped, fingerprint';
my $expected = '1070|70|300|200|0|400|100|0';
my $fingerprint = $primary->safe_psql('postgres', q{SELECT idem_fingerprint('staging')});
my $ledger = $primary->safe_psql('postgres', 'SELECT * FROM idem_ledger');

# A read-only place to try things in: a node, and what a session says first.
sub check_read_only
{
    my ($node, $first, $what) = @_;

    foreach my $writer (
        "SELECT FROM idem_merge($merge)",
        q{SELECT FROM idem_merge('staging', 'target', '{id}')},
        "SELECT FROM idem_merge($merge, nowait => true, on_replay => 'reapply')",
        q{SELECT idem_claim('claim')},
        q{SELECT idem_claim('claim', 'target')},
        q{SELECT idem_forget('target', 'done')})
    {
        is(sqlstate($node, 'postgres', "$first $writer"), '25006', "$what: $writer is refused");
    }

    # Also for a batch that is in the ledger: the answer does not depend on it.
    is( sqlstate(
            $node, 'postgres',
            "$first SELECT FROM idem_merge('staging', 'target', '{id}', 'done', on_mismatch => 'skip')"),
        '25006',
        "$what: a replay is refused, too");

    foreach my $staging ('staging', 'staging_view')
    {
        is( $node->safe_psql(
                'postgres',
                "$first SELECT status, $counts FROM idem_merge("
                  . sprintf($arguments, $staging) . ', dry_run => true)'),
            "dry_run|$expected|$fingerprint",
            "$what: dry_run from $staging counts exactly");
    }
    is( $node->safe_psql(
            'postgres',
            "$first SELECT status, batch_id IS NULL, $counts FROM idem_merge('staging', 'target', '{id}', "
              . q{mode => 'insert', version_cols => '{version}', dry_run => true)}),
        "dry_run|t|1070|70|300|0|0|0|0|700|$fingerprint",
        "$what: dry_run of mode insert");
    is( $node->safe_psql(
            'postgres',
            "$first SELECT status, $counts FROM idem_merge($merge, mode => 'update', dry_run => true)"),
        "dry_run|1070|70|0|200|0|400|100|300|$fingerprint",
        "$what: dry_run of mode update");
    is(sqlstate($node, 'postgres', "$first SELECT FROM idem_merge('staging', 'target', '{id}', dry_run => true)"),
        '21000', "$what: dry_run finds different rows of one key");
    is( sqlstate($node, 'postgres', "$first SELECT FROM idem_merge($merge, on_stale => 'error', dry_run => true)"),
        'II003',
        "$what: dry_run finds stale rows");

    is($node->safe_psql('postgres', "$first SELECT idem_fingerprint('staging'), idem_fingerprint('staging_view')"),
        "$fingerprint|$fingerprint", "$what: idem_fingerprint");
    is( $node->safe_psql(
            'postgres', "$first SELECT engine, statement LIKE 'INSERT INTO public.target%' FROM idem_explain($merge)"),
        'native|t',
        "$what: idem_explain");
    is( $node->safe_psql(
            'postgres', "$first SELECT engine, locks LIKE 'ACCESS SHARE on %' FROM idem_explain($merge, dry_run => true)"),
        'sql|t',
        "$what: idem_explain of a dry run");
    is($node->safe_psql('postgres', "$first SELECT batch_id FROM idem_batches"), 'done', "$what: idem_batches");
    is($node->safe_psql('postgres', "$first SELECT idem_forget('target', 'done', dry_run => true)"),
        '1', "$what: idem_forget counts");
    is($node->safe_psql('postgres', "$first SELECT * FROM idem_ledger"), $ledger, "$what: the ledger is as it was");
    is( $node->safe_psql(
            'postgres', "$first SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
        '0',
        "$what: no lock of ours is left");
    return;
}

check_read_only($standby, '', 'standby');
check_read_only($primary, 'SET default_transaction_read_only = on;', 'default_transaction_read_only');
check_read_only($primary, 'BEGIN READ ONLY;', 'BEGIN READ ONLY');
check_read_only($primary, 'BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ;', 'REPEATABLE READ READ ONLY');

# The message names the function, as that of a core command names the command.
my (undef, undef, $stderr) = $standby->psql('postgres', "SELECT FROM idem_merge($merge)");
like($stderr, qr/cannot execute idem_merge\(\) (during recovery|in a read-only transaction)/,
    'the message on a standby');

# An unlogged staging table cannot be read there, as core says.
is(sqlstate($standby, 'postgres', q{SELECT idem_fingerprint('unlogged')}),
    '0A000', 'an unlogged table has no content on a standby');

# A dry run says whether the merge would do, and needs the same rights.
is(sqlstate($standby, 'postgres', "SET ROLE reader; SELECT FROM idem_merge($merge, dry_run => true)"),
    '42501', 'a dry run by who may not write is refused');
is($standby->safe_psql('postgres', q{SET ROLE reader; SELECT idem_fingerprint('staging')}),
    $fingerprint, 'a fingerprint needs the right to read only');

# What the dry run has counted is what the merge does.
is($primary->safe_psql('postgres', "SELECT status, $counts FROM idem_merge($merge)"),
    "applied|$expected|$fingerprint", 'the merge does what the dry run has counted');
$primary->wait_for_catchup($standby);
is($standby->safe_psql('postgres', q{SELECT count(*), count(*) FILTER (WHERE v LIKE 'changed%') FROM target}),
    '1000|200', 'its effect comes to the standby');
is($standby->safe_psql('postgres', q{SELECT rows_inserted FROM idem_batches WHERE batch_id = 'batch'}),
    '300', 'and so does its ledger row');
is( $standby->safe_psql(
        'postgres', "SELECT $counts FROM idem_merge($merge, dry_run => true)"),
    "1070|70|0|0|0|900|100|0|$fingerprint",
    'a dry run there finds nothing more to do');

# After a failover the batch is known, and merging goes on.
$primary->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', "SELECT status, $counts FROM idem_merge($merge)"),
    "replayed|$expected|$fingerprint", 'after the promotion the batch is replayed');
is( summary($standby, 'postgres', q{'staging', 'target', '{id}', 'next', version_cols => '{version}'}),
    'applied: 1070 staged, 70 duplicate, 900 unchanged, 100 stale',
    'and the next one is applied');

$standby->stop;
done_testing();
