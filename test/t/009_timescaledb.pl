# A hypertable of TimescaleDB is an inheritance parent by its catalog entry, and
# is a target all the same: its chunks share the unique index of the hypertable.
# An ordinary inheritance parent stays refused on the same server.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);
plan skip_all => 'TimescaleDB is not installed' unless -e "$libdir/timescaledb.so";

my $node = make_cluster('main',
    conf => "shared_preload_libraries = 'timescaledb'\ntimescaledb.telemetry_level = off\n");
$node->safe_psql(
    'postgres', q{
    SET client_min_messages = warning;
    CREATE EXTENSION timescaledb;
    CREATE EXTENSION idempotent_ingest;
    CREATE TABLE metrics (at timestamptz NOT NULL, device int NOT NULL, value float8,
                          note text DEFAULT 'none');
    SELECT create_hypertable('metrics', 'at', chunk_time_interval => interval '1 day');
    CREATE UNIQUE INDEX ON metrics (device, at);
    CREATE TABLE staging (device int, at timestamptz, value float8);
    INSERT INTO staging
    SELECT d, timestamptz '2026-01-01 00:00+00' + h * interval '1 hour', d * h
    FROM generate_series(1, 5) AS d, generate_series(0, 99) AS h;
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child () INHERITS (parent);
    CREATE TABLE staged_ids (id int);
});

my $arguments = q{'staging', 'metrics', '{device,at}'};
# As long as it has no chunks it looks like any other table.
is($node->safe_psql('postgres', "SELECT engine, reason FROM idem_explain($arguments)"),
    'sql|the target is a hypertable', 'the native engine keeps away from a hypertable');
is(summary($node, 'postgres', "$arguments, 'first'"),
    'applied: 500 staged, 500 inserted', 'a batch spreads over chunks');
is(summary($node, 'postgres', "$arguments, 'first'"),
    'replayed: 500 staged, 500 inserted', 'its retry is a replay');

$node->safe_psql('postgres', q{
    UPDATE staging SET value = value + 1 WHERE device = 3;
    INSERT INTO staging VALUES (9, '2026-03-01 00:00+00', 1);
});
is(summary($node, 'postgres', "$arguments, 'second', dry_run => true"),
    'dry_run: 501 staged, 1 inserted, 100 updated, 400 unchanged', 'a dry run counts');
is(summary($node, 'postgres', "$arguments, 'second'"),
    'applied: 501 staged, 1 inserted, 100 updated, 400 unchanged',
    'only new and changed rows are written, a new chunk is made');
is(summary($node, 'postgres', "$arguments, 'third', mode => 'update'"),
    'applied: 501 staged, 501 unchanged', 'mode update finds the rows in their chunks');
is($node->safe_psql('postgres',
        q{SELECT count(*), count(note), sum(value) = (SELECT sum(value) FROM staging) FROM metrics}),
    '501|501|t', 'the hypertable holds what was staged, and defaults elsewhere');

is(sqlstate($node, 'postgres',
        "BEGIN; DELETE FROM metrics; SELECT * FROM idem_merge($arguments, 'second')"),
    'II004', 'deleting from the chunks loses the batch');
# Compressed, its rows are in other tables, and its chunks have no blocks; so it is
# after a TRUNCATE, which every edition of TimescaleDB has.
$node->safe_psql('postgres', 'TRUNCATE metrics');
is(summary($node, 'postgres', "$arguments, 'second'"),
    'replayed: 501 staged, 1 inserted, 100 updated, 400 unchanged',
    'a hypertable without blocks is not taken for empty');
is(sqlstate($node, 'postgres',
        "BEGIN; TRUNCATE metrics; SELECT * FROM idem_merge($arguments, 'second')"),
    'II004', 'truncating it loses the batch');
is(sqlstate($node, 'postgres', q{SELECT * FROM idem_merge('staged_ids', 'parent', '{id}', 'x')}),
    '0A000', 'an ordinary inheritance parent is refused');

done_testing();
