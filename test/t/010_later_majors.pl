# What only later majors have: a WITHOUT OVERLAPS key (18) looks like a unique index
# and is none that could decide what to update; virtual generated columns (18) are
# ignored in the target and read in staging.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('main');
if ($node->safe_psql('postgres', 'SHOW server_version_num') < 180000)
{
    $node->stop;
    plan skip_all => 'WITHOUT OVERLAPS and virtual generated columns came with PostgreSQL 18';
}
$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION btree_gist;
    CREATE EXTENSION idempotent_ingest;
    CREATE TABLE prices (id int, valid daterange, price int,
                         PRIMARY KEY (id, valid WITHOUT OVERLAPS));
    CREATE TABLE staged_prices (id int, valid daterange, price int);
    INSERT INTO staged_prices VALUES (1, '[2026-01-01,2026-02-01)', 5);
    CREATE TABLE target (id int PRIMARY KEY, v text,
                         doubled int GENERATED ALWAYS AS (id * 2) VIRTUAL);
    CREATE TABLE staging (id int, v text, doubled int);
    INSERT INTO staging VALUES (1, 'a', 5);
    CREATE TABLE virtual_staging (id int, v text GENERATED ALWAYS AS ('v' || id::text) VIRTUAL);
    INSERT INTO virtual_staging VALUES (3);
});

is(sqlstate($node, 'postgres', q{SELECT * FROM idem_merge('staged_prices', 'prices')}),
    '42809', 'a WITHOUT OVERLAPS primary key is refused as the default key');
is(sqlstate($node, 'postgres', q{SELECT * FROM idem_merge('staged_prices', 'prices', '{id,valid}')}),
    '42809', 'and as the named one');
is($node->safe_psql('postgres', 'SELECT count(*) FROM prices'), '0', 'nothing was stored');

is(summary($node, 'postgres', q{'staging', 'target', batch_id => '1'}),
    'applied: 1 staged, 1 inserted', 'a virtual column of the target is not set from staging');
is(summary($node, 'postgres', q{'virtual_staging', 'target', batch_id => '2'}),
    'applied: 1 staged, 1 inserted', 'a virtual column of staging is computed');
is($node->safe_psql('postgres', 'SELECT * FROM target ORDER BY id'),
    "1|a|2\n3|v3|6", 'both rows are as the columns say');
is(summary($node, 'postgres', q{'virtual_staging', 'target', batch_id => '2'}),
    'replayed: 1 staged, 1 inserted', 'it is part of the fingerprint');
$node->safe_psql('postgres',
    q{ALTER TABLE virtual_staging ALTER v SET EXPRESSION AS ('w' || id::text)});
is(sqlstate($node, 'postgres', q{SELECT * FROM idem_merge('virtual_staging', 'target', batch_id => '2')}),
    'II001', 'so that another expression is other content');

done_testing();
