# pg_dump takes the ledger along: after restoring, the same batches are replayed,
# in another database as well as in another cluster. What is about a dropped
# table or role stays behind. A restore that lacks a target fails the ledger's
# COPY, and there are two ways round.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('source');
my $other = make_cluster('other');
my $dump = $node->basedir . '/dump.sql';
my $archive = $node->basedir . '/dump.custom';

$_->safe_psql('postgres', 'CREATE ROLE loader; CREATE ROLE leaver; CREATE ROLE keeper')
  foreach ($node, $other);
make_database($node, 'source', 'public');

# Values of many types in staging: the fingerprint must not depend on how a
# cluster stores them. Targets: plain, partitioned, and one whose name needs
# quotes everywhere.
$node->safe_psql(
    'source', q{
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE staging (
        id int, small int2, big int8, real float4, wide float8, exact numeric, txt text,
        fixed char(8), raw bytea, day date, at timestamptz, span interval, doc jsonb, plain json,
        feeling mood, duo pair, many text[], period int4range, dom positive, class regclass);
    INSERT INTO staging
    SELECT i, i, i::int8 * 10000000000, i / 3.0, i / 7.0, i / 7.0, repeat(md5(i::text), i % 100 * 20),
           'c' || i, decode(md5(i::text), 'hex'), date '2026-01-01' + i,
           timestamptz '2026-01-01 00:00:00+00' + i * interval '1 hour', i * interval '1 minute',
           jsonb_build_object('i', i), json_build_object('i', i),
           CASE WHEN i % 2 = 0 THEN 'sad' ELSE 'ok' END::mood, ROW(i, repeat('x', i * 10))::pair,
           ARRAY['a', NULL, i::text], int4range(i, i + 3), i, 'pg_class'::regclass
    FROM generate_series(1, 300) AS i;
    CREATE TABLE target (LIKE staging, PRIMARY KEY (id));

    CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (1000);
    CREATE TABLE parted_staging AS SELECT i AS id, 'p' || i AS v FROM generate_series(50, 150) AS i;

    CREATE SCHEMA "We""ird. S";
    CREATE TABLE "We""ird. S"."T'a b" ("K.ey" int PRIMARY KEY, v text);
    CREATE TABLE "We""ird. S".staging ("K.ey" int, v text);
    INSERT INTO "We""ird. S".staging VALUES (1, 'one'), (2, 'two');

    CREATE TABLE dropped (id int PRIMARY KEY);
    CREATE TABLE ids AS SELECT i AS id FROM generate_series(1, 10) AS i;
    CREATE TABLE spare (id int PRIMARY KEY);
    GRANT INSERT, UPDATE, SELECT ON spare TO keeper;
});

my %merge = (
    plain => q{'staging', 'target', '{id}', 'plain-1', pipeline => 'p', metadata => '{"file": "a.csv"}'},
    derived => q{'staging', 'target', pipeline => 'derived'},
    parted => q{'parted_staging', 'parted', batch_id => 'parted-1'},
    weird => q{'"We""ird. S".staging', '"We""ird. S"."T''a b"', '{K.ey}', 'w"eird ''1'''},
    reapplied => q{'ids', 'spare', '{id}', 'spare-1'});

is(summary($node, 'source', $merge{plain}), 'applied: 300 staged, 300 inserted', 'plain target');
is(summary($node, 'source', $merge{derived}), 'applied: 300 staged, 300 unchanged', 'derived id');
is(summary($node, 'source', $merge{parted}), 'applied: 101 staged, 101 inserted', 'partitioned target');
is(summary($node, 'source', $merge{weird}), 'applied: 2 staged, 2 inserted', 'hostile names');
is(summary($node, 'source', $merge{reapplied}), 'applied: 10 staged, 10 inserted', 'to be reapplied');
is(summary($node, 'source', "$merge{reapplied}, on_replay => 'reapply'"),
    'reapplied: 10 staged, 10 unchanged', 'reapplied');
$node->safe_psql(
    'source', q{
    SELECT FROM idem_merge('ids', 'dropped', '{id}', 'dropped-1');
    SELECT FROM idem_merge('ids', 'spare', '{id}', 'forgotten');
    SELECT idem_forget('spare', 'forgotten', reason => 'test');
    SELECT idem_claim('claim-1', 'spare', fingerprint => 'f1');
    SELECT idem_claim('claim of superuser');
    SET ROLE loader;
    SELECT idem_claim('claim of loader', pipeline => 'x');
    SET ROLE leaver;
    SELECT idem_claim('claim of leaver');
    RESET ROLE;
    DROP TABLE dropped;
    CREATE TABLE dropped (id int PRIMARY KEY);
    DROP ROLE leaver;
});

# Everything of the ledger and of the audit that may not change on the way: OIDs
# by name, and not the transaction ids and row types.
my $image = q{
    SET search_path = pg_catalog;
    SELECT l.target::text, pipeline, batch_id, claimed_by::text, target_type::text, operation,
           revision, fingerprint, fingerprint_version, fingerprint_columns, earlier_fingerprints,
           rows_staged, rows_duplicate, rows_inserted, rows_updated, rows_deleted, rows_unchanged,
           rows_stale, rows_skipped, engine, applied_at, elapsed, role, application_name, turn,
           options, metadata
    FROM public.idem_ledger l
    WHERE EXISTS (SELECT FROM pg_class c WHERE c.oid = l.target AND c.reltype = l.target_type)
       OR l.target = 0 AND EXISTS (SELECT FROM pg_roles r WHERE r.oid = l.claimed_by)
    ORDER BY l.target::text, pipeline, batch_id, claimed_by::text;
    SELECT audit_id, audited_at, action, role, reason, entry - 'xid' - 'target_type' FROM public.idem_audit ORDER BY 1};
my $expected_image = $node->safe_psql('source', $image);
my $fingerprint = $node->safe_psql('source', q{SELECT idem_fingerprint('staging')});

is($node->safe_psql('source', 'SELECT count(*) FROM idem_ledger'),
    '10', 'the ledger still has the rows about a dropped table and a dropped role');
is(scalar(split /\n/, $expected_image), 8 + 2, 'eight of its rows and both of the audit are to be dumped');

$node->command_ok([ 'pg_dump', '-d', $node->connstr('source'), '-f', $dump ], 'pg_dump');
$node->command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('source'), '-f', $archive ], 'pg_dump -Fc');

# What a restored database has to be like.
sub check_restored
{
    my ($to, $db, $what) = @_;

    is($to->safe_psql($db, $image), $expected_image, "$what: ledger and audit are as they were");
    is($to->safe_psql($db, 'SELECT count(*) FROM idem_ledger'),
        '8', "$what: nothing is there about the dropped table and the dropped role");
    is($to->safe_psql($db, q{SELECT idem_fingerprint('staging')}),
        $fingerprint, "$what: the fingerprint is the same");

    foreach my $name (sort keys %merge)
    {
        is( $to->safe_psql($db, "SELECT status, rows_staged FROM idem_merge($merge{$name})"),
            'replayed|' . { plain => 300, derived => 300, parted => 101, weird => 2, reapplied => 10 }->{$name},
            "$what: batch $name is replayed");
    }
    is($to->safe_psql($db, 'SELECT count(*) FROM idem_ledger'), '8', "$what: no replay has written");

    is( $to->safe_psql(
            $db, q{SELECT idem_claim('claim-1', 'spare', fingerprint => 'f1'), idem_claim('claim of superuser')}),
        'f|f',
        "$what: claims are remembered");
    is(sqlstate($to, $db, q{SELECT idem_claim('claim-1', 'spare', fingerprint => 'f2')}),
        'II001', "$what: the fingerprint of a claim, too");
    is($to->safe_psql($db, q{SET ROLE loader; SELECT idem_claim('claim of loader', pipeline => 'x')}),
        'f', "$what: a claim is remembered for its role");
    is($to->safe_psql($db, q{SELECT idem_claim('claim of loader', pipeline => 'x')}),
        't', "$what: and for no other");

    # Other content under a known id is found out, and a new batch merges.
    is(sqlstate($to, $db, "DELETE FROM ids WHERE id = 1; SELECT FROM idem_merge($merge{reapplied})"),
        'II001', "$what: other content is a mismatch");
    is(summary($to, $db, q{'ids', 'spare', '{id}', 'spare-2'}),
        'applied: 9 staged, 9 unchanged', "$what: a new batch is applied");
    is(summary($to, $db, q{'ids', 'dropped', '{id}', 'dropped-1'}),
        'applied: 9 staged, 9 inserted', "$what: a batch of the dropped table is new for the one made anew");

    # The sequence of the audit goes on where it was.
    is($to->safe_psql($db, q{SELECT idem_forget('spare', 'spare-2'); SELECT audit_id FROM idem_audit WHERE reason IS NULL AND action = 'forget'}),
        "1\n3", "$what: the audit goes on counting");
    is($to->safe_psql($db, q{SET ROLE keeper; SELECT count(*) FROM idem_batches WHERE target = 'spare'::regclass}),
        '2', "$what: who may read the target sees its batches");
    is(sqlstate($to, $db, 'SET ROLE keeper; SELECT FROM idem_ledger'),
        '42501', "$what: and not the ledger");
    return;
}

make_database($node, 'again');
restore($node, 'again', $dump);
check_restored($node, 'again', 'another database');

make_database($other, 'again');
restore($other, 'again', $dump);
check_restored($other, 'again', 'another cluster');

# Dumped and restored once more, by pg_restore, in parallel.
make_database($other, 'archive');
$other->command_ok([ 'pg_restore', '--exit-on-error', '-j', '2', '-d', $other->connstr('archive'), $archive ],
    'pg_restore');
check_restored($other, 'archive', 'pg_restore');

my $second = $other->basedir . '/second.sql';
make_database($node, 'second');
$other->command_ok([ 'pg_dump', '-d', $other->connstr('archive'), '-f', $second ], 'pg_dump of what was restored');
restore($node, 'second', $second);
is($node->safe_psql('second', $image), $other->safe_psql('archive', $image),
    'a dump of a restored database restores the same');

# Dumped by two processes, which share a snapshot.
my $directory = $node->basedir . '/dump.dir';
$node->command_ok([ 'pg_dump', '-Fd', '-j', '2', '-d', $node->connstr('source'), '-f', $directory ], 'pg_dump -j');
make_database($other, 'directory');
$other->command_ok([ 'pg_restore', '--exit-on-error', '-j', '2', '-d', $other->connstr('directory'), $directory ],
    'pg_restore of a directory');
check_restored($other, 'directory', 'pg_dump -j');

# Data into a database that has its tables and the extension by then.
my ($schema_only, $data_only) = map { $node->basedir . "/$_.sql" } 'schema', 'data';
$node->command_ok([ 'pg_dump', '--schema-only', '-d', $node->connstr('source'), '-f', $schema_only ],
    'pg_dump --schema-only');
$node->command_ok([ 'pg_dump', '--data-only', '-d', $node->connstr('source'), '-f', $data_only ],
    'pg_dump --data-only');
make_database($other, 'parts');
restore($other, 'parts', $schema_only);
is($other->safe_psql('parts', 'SELECT (SELECT count(*) FROM target), (SELECT count(*) FROM idem_ledger)'),
    '0|0', 'the schema alone has no batches');
restore($other, 'parts', $data_only);
check_restored($other, 'parts', 'schema and data apart');

# A dump of schemas has the ledger's rows if that of the extension is among them,
# and never the extension.
my $schema = $node->basedir . '/public.sql';
$node->command_ok([ 'pg_dump', '-n', 'public', '-d', $node->connstr('source'), '-f', $schema ], 'pg_dump -n public');
unlike(slurp_file($schema), qr/CREATE EXTENSION/, 'a dump of a schema has no CREATE EXTENSION');
like(slurp_file($schema), qr/^COPY public\.idem_ledger /m, 'it has the ledger of that schema');
$node->command_ok([ 'pg_dump', '-n', '"We""ird. S"', '-d', $node->connstr('source'), '-f', $schema ],
    'pg_dump -n of another schema');
unlike(slurp_file($schema), qr/idem_ledger/, 'and none if the extension is elsewhere');

# A dump without the target "spare": its ledger rows name a table that is not
# there, and the whole COPY of the ledger fails. The other tables are restored.
my $partial = $node->basedir . '/partial.custom';
$node->command_ok(
    [ 'pg_dump', '-Fc', '-T', 'spare', '-d', $node->connstr('source'), '-f', $partial ],
    'pg_dump -T spare');
make_database($node, 'partial');
$node->command_checks_all(
    [ 'pg_restore', '-d', $node->connstr('partial'), $partial ],
    1,
    [qr/^$/],
    [ qr/relation "public\.spare" does not exist/, qr/COPY idem_ledger/, qr/errors ignored on restore: 1/ ],
    'a partial restore fails with the ledger');
is($node->safe_psql('partial', 'SELECT (SELECT count(*) FROM target), (SELECT count(*) FROM idem_ledger)'),
    '300|0', 'the data is there, the ledger is not');

# The first way round: an empty table by that name takes its place until the
# restore is done. The rows about it are then those of a dropped table.
make_database($node, 'stand_in');
$node->safe_psql('stand_in', 'CREATE TABLE public.spare ()');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('stand_in'), $partial ],
    'with a stand-in for the table the restore succeeds');
$node->safe_psql('stand_in', 'DROP TABLE public.spare');
is(summary($node, 'stand_in', $merge{plain}), 'replayed: 300 staged, 300 inserted',
    'batches of the other tables are replayed');
is($node->safe_psql('stand_in', q{SELECT count(*) FROM idem_batches WHERE batch_id IN ('spare-1', 'claim-1')}),
    '0', 'those of the missing table do not show');
$node->safe_psql('stand_in', 'CREATE TABLE spare (id int PRIMARY KEY)');
is(summary($node, 'stand_in', $merge{reapplied}), 'applied: 10 staged, 10 inserted',
    'and are new for a table that is made later');
$node->command_ok([ 'pg_dump', '-d', $node->connstr('stand_in'), '-f', $second ], 'pg_dump of it');
make_database($node, 'stand_in_again');
restore($node, 'stand_in_again', $second);

# The second way round, where the source can still be changed: forget first.
make_database($node, 'forgotten');
$node->safe_psql('source', q{SELECT idem_forget('spare', applied_since => '-infinity')});
$node->command_ok(
    [ 'pg_dump', '-Fc', '-T', 'spare', '-d', $node->connstr('source'), '-f', $partial ],
    'pg_dump -T spare, its batches forgotten');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('forgotten'), $partial ],
    'the restore succeeds');
is(summary($node, 'forgotten', $merge{parted}), 'replayed: 101 staged, 101 inserted',
    'batches of the other tables are replayed');

# A dump of single tables has no ledger: where it is restored, a batch is new, is
# applied again, and finds everything as it was.
my $tables = $node->basedir . '/tables.sql';
$node->command_ok(
    [ 'pg_dump', '-t', 'parted*', '-d', $node->connstr('source'), '-f', $tables ],
    'pg_dump -t');
unlike(slurp_file($tables), qr/idem_ledger/, 'a dump of tables has no ledger');
make_database($node, 'tables', 'public');
restore($node, 'tables', $tables);
is(summary($node, 'tables', $merge{parted}), 'applied: 101 staged, 101 unchanged',
    'the batch is applied again and changes nothing');

# Without the role of a claim the COPY fails as well; creating the role is the
# way round, as it is for owners and grants.
my $third = make_cluster('third');
make_database($third, 'again');
$third->psql('postgres', 'CREATE ROLE keeper');
$third->command_checks_all(
    [ 'psql', '-X', '-q', '-d', $third->connstr('again'), '-f', $dump ],
    0,
    [qr/.*/s],
    [qr/role "loader" does not exist.*COPY idem_ledger/s],
    'a claim of a missing role fails the COPY');
is($third->safe_psql('again', 'SELECT count(*) FROM idem_ledger'), '0', 'the ledger is empty');
$third->safe_psql('postgres', 'CREATE ROLE loader');
make_database($third, 'with_role');
restore($third, 'with_role', $dump);
is($third->safe_psql('with_role', $image), $expected_image, 'with the role it is restored');

# The extension cannot be dropped by accident: not while a view of the user's
# depends on it, and dropping it takes the ledger along.
is(sqlstate($third, 'with_role', 'CREATE VIEW mine AS SELECT * FROM idem_batches; DROP EXTENSION idempotent_ingest'),
    '2BP01', 'DROP EXTENSION does not cascade by itself');

$_->stop foreach ($node, $other, $third);
done_testing();
