# The extension in a schema of any name that PostgreSQL lets an extension have:
# everything works there, without the schema in the search_path, for unprivileged
# roles too, and is dumped and restored. (Quotes, dollar signs and backslashes in
# the name are refused by CREATE EXTENSION itself, and by newer releases comments.)

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('names');
my $dump = $node->basedir . '/dump.sql';

$node->safe_psql('postgres', 'CREATE ROLE loader');

# Blanks, capitals, dots, semicolons, key words, what a format string would take
# for its own, letters beyond ASCII, and as many bytes as a name can have.
my @schemas = (
    'Mixed Case.With Dot',
    'select',
    'x; DROP TABLE target;',
    '/ - %s %n %% {} :name',
    'schemä ünïcode ☃',
    '@ext@',
    'a' x 63);

# The functions, tables and views of the extension: some, all in its schema, all
# with a comment.
my $objects = q{
    SELECT count(*) > 15, bool_and(coalesce(c.relnamespace, p.pronamespace) = e.extnamespace),
           bool_and(obj_description(d.objid, d.classid::regclass::name) IS NOT NULL)
    FROM pg_extension e
    JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    WHERE e.extname = 'idempotent_ingest' AND (c.relkind IN ('r', 'v') OR p.oid IS NOT NULL)};
my $number = 0;

foreach my $schema (@schemas)
{
    my $quoted = qq{"$schema"};
    my $db = 'names_' . ++$number;

    make_database($node, $db);
    $node->safe_psql(
        $db, qq{
        CREATE SCHEMA $quoted;
        CREATE EXTENSION idempotent_ingest SCHEMA $quoted;
        CREATE SCHEMA data;
        CREATE TABLE data.staging (id int, v varchar(10), extra text);
        INSERT INTO data.staging SELECT i, 'v' || i, 'x' FROM generate_series(1, 20) AS i;
        CREATE VIEW data.staging_view AS SELECT id, v FROM data.staging;
        CREATE TABLE data.target (id int PRIMARY KEY, v varchar(5), tags varchar(3)[], made timestamptz DEFAULT now());
        CREATE TABLE data.arrays AS SELECT id, v, ARRAY['a', v] AS tags FROM data.staging WHERE id < 10;
        GRANT USAGE ON SCHEMA data, $quoted TO loader;
        GRANT ALL ON ALL TABLES IN SCHEMA data TO loader});

    is($node->safe_psql($db, "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'idempotent_ingest'"),
        $node->safe_psql($db, "SELECT quote_ident('$schema')"), "$schema: created");
    is($node->safe_psql($db, $objects), 't|t|t', "$schema: all objects are there, and have comments");

    # Nothing of this sees the schema by the search_path.
    my $as_loader = 'SET ROLE loader; SET search_path = data;';
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT summary FROM $quoted.idem_merge('staging_view', 'target', '{id}', 'a')"),
        'applied: 20 staged, 20 inserted',
        "$schema: a merge from a view");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT summary FROM $quoted.idem_merge('arrays', 'target', '{id}', 'b', audit_cols => '{v}')"),
        'applied: 9 staged, 9 updated',
        "$schema: a merge with casts of arrays and sorting by image");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT summary FROM $quoted.idem_merge('staging', 'target', '{id}', 'c', on_schema_change => 'ignore', version_cols => '{v}', on_duplicate => 'any')"),
        'applied: 20 staged, 20 unchanged',
        "$schema: a merge with versions");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT summary FROM $quoted.idem_merge('staging', 'target', '{id}', 'd', on_schema_change => 'ignore', mode => 'update')"),
        'applied: 20 staged, 20 unchanged',
        "$schema: mode update");
    is( $node->safe_psql(
            $db, "SET search_path = data; SELECT summary FROM $quoted.idem_merge('staging', 'target', on_schema_change => 'add_columns')"),
        'applied: 20 staged, 20 updated',
        "$schema: a derived id, and a column added");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT status FROM $quoted.idem_merge('staging_view', 'target', '{id}', 'a')"),
        'replayed',
        "$schema: replayed");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT status FROM $quoted.idem_merge('staging_view', 'target', '{id}', 'a', on_replay => 'reapply')"),
        'reapplied',
        "$schema: reapplied");
    is( sqlstate(
            $node, $db,
            "$as_loader DELETE FROM staging WHERE id = 1; SELECT FROM $quoted.idem_merge('staging_view', 'target', '{id}', 'a'); "),
        'II001',
        "$schema: a mismatch is found");
    $node->safe_psql($db, q{INSERT INTO data.staging VALUES (1, 'v1', 'x')});
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT status FROM $quoted.idem_merge('staging_view', 'target', '{id}', dry_run => true)"),
        'dry_run',
        "$schema: dry run");
    is( $node->safe_psql(
            $db,
            "$as_loader BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT status FROM $quoted.idem_merge('staging_view', 'target', '{id}', 'e'); COMMIT"),
        'applied',
        "$schema: REPEATABLE READ");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT position(quote_ident('$schema') || '.idem_row_staged(' IN statement) > 0 FROM $quoted.idem_explain('staging_view', 'target')"),
        't',
        "$schema: idem_explain names its functions with the schema");
    is( $node->safe_psql(
            $db,
            "$as_loader SELECT $quoted.idem_claim('f', 'target'), $quoted.idem_claim('f', 'target'), $quoted.idem_claim('f'), $quoted.idem_claim('f')"),
        't|f|t|f',
        "$schema: idem_claim");
    is($node->safe_psql($db, "$as_loader SELECT $quoted.idem_forget('target', 'b', reason => 'test'), $quoted.idem_forget(NULL, 'f')"),
        '1|1', "$schema: idem_forget");
    is($node->safe_psql($db, "$as_loader SELECT count(*) FROM $quoted.idem_batches"), '6', "$schema: idem_batches");
    is($node->safe_psql($db, "$as_loader SELECT $quoted.idem_fingerprint('staging') = $quoted.idem_fingerprint('staging_view', '{id,v}')"),
        'f', "$schema: idem_fingerprint");
    is(sqlstate($node, $db, "$as_loader DELETE FROM $quoted.idem_ledger"), '42501', "$schema: the ledger is closed");
    is(sqlstate($node, $db, "$as_loader SELECT FROM idem_merge('staging_view', 'target')"),
        '42883', "$schema: the search_path does not have it");

    # Restored, it is as it was. The dump filter names nothing of the schema.
    my $image = qq{SET search_path = pg_catalog;
        SELECT target, pipeline, batch_id, revision, fingerprint, rows_staged, applied_at, options FROM $quoted.idem_batches ORDER BY 1, 2, 3;
        SELECT audit_id, action, reason, entry - 'xid' - 'target_type' FROM $quoted.idem_audit ORDER BY 1};
    my $expected = $node->safe_psql($db, $image);
    $node->command_ok([ 'pg_dump', '-d', $node->connstr($db), '-f', $dump ], "$schema: pg_dump");
    make_database($node, "again_$number");
    restore($node, "again_$number", $dump);
    is($node->safe_psql("again_$number", $image), $expected, "$schema: ledger and audit are restored");
    is( $node->safe_psql(
            "again_$number",
            "$as_loader SELECT status FROM $quoted.idem_merge('staging_view', 'target', '{id}', 'a')"),
        'replayed',
        "$schema: replayed after the restore");
    is( $node->safe_psql(
            "again_$number", "SELECT $quoted.idem_forget('data.target', 'c'); SELECT max(audit_id) FROM $quoted.idem_audit"),
        "1\n4",
        "$schema: the audit goes on counting");

    # The schema is the extension's for good, and can be renamed: a ledger under
    # another name is found all the same.
    is(sqlstate($node, $db, 'ALTER EXTENSION idempotent_ingest SET SCHEMA public'),
        '0A000', "$schema: the extension cannot be moved");
    is( $node->safe_psql(
            $db,
            "SELECT status FROM $quoted.idem_merge('data.staging_view', 'data.target', '{id}', 'a');
             ALTER SCHEMA $quoted RENAME TO renamed;
             SELECT status FROM renamed.idem_merge('data.staging_view', 'data.target', '{id}', 'a');
             SELECT status FROM renamed.idem_merge('data.staging_view', 'data.target', '{id}', 'g')"),
        "replayed\nreplayed\napplied",
        "$schema: renamed in the middle of a session");
    is($node->safe_psql($db, 'DROP EXTENSION idempotent_ingest; DROP SCHEMA renamed; SELECT count(*) FROM data.target'),
        '20', "$schema: dropped without a trace");
}

# What PostgreSQL refuses leaves nothing behind.
foreach my $schema (q{quo"te}, q{apo'strophe}, 'dol$lar', 'back\slash')
{
    make_database($node, 'refused');
    my $quoted = $schema =~ s/"/""/r;
    my (undef, undef, $stderr) = $node->psql('refused',
        qq{CREATE SCHEMA "$quoted"; CREATE EXTENSION idempotent_ingest SCHEMA "$quoted"});
    like($stderr, qr/invalid character in extension/, "$schema: refused by CREATE EXTENSION");
    is($node->safe_psql('refused', q{SELECT count(*) FROM pg_class WHERE relname LIKE 'idem%'}),
        '0', "$schema: nothing was created");
    $node->safe_psql('postgres', 'DROP DATABASE refused');
}

# Dropping and creating again in one session: no plan and no name of the old
# extension is used with the new one.
make_database($node, 'twice');
is( $node->safe_psql(
        'twice', q{
        CREATE SCHEMA one;
        CREATE SCHEMA two;
        CREATE TABLE staging AS SELECT 1 AS id;
        CREATE TABLE target (id int PRIMARY KEY);
        CREATE EXTENSION idempotent_ingest SCHEMA one;
        SELECT status FROM one.idem_merge('staging', 'target', '{id}', 'a');
        SELECT status FROM one.idem_merge('staging', 'target', '{id}', 'a');
        DROP EXTENSION idempotent_ingest;
        CREATE EXTENSION idempotent_ingest SCHEMA two;
        SELECT status FROM two.idem_merge('staging', 'target', '{id}', 'a');
        SELECT status FROM two.idem_merge('staging', 'target', '{id}', 'a');
        DROP EXTENSION idempotent_ingest;
        CREATE EXTENSION idempotent_ingest SCHEMA one;
        SELECT status FROM one.idem_merge('staging', 'target', '{id}', 'a')}),
    "applied\nreplayed\napplied\nreplayed\napplied",
    'dropped and created again in one session');

# Renamed, and another schema takes the name: the ledger is still the one that
# belongs to the extension, and nothing of the lookalike is run.
is( $node->safe_psql(
        'twice', q{
        SELECT status FROM one.idem_merge('staging', 'target', '{id}', 'a');
        SELECT one.idem_claim('c', 'target');
        ALTER SCHEMA one RENAME TO renamed;
        CREATE SCHEMA one;
        CREATE TABLE one.idem_ledger (LIKE renamed.idem_ledger INCLUDING ALL);
        CREATE TABLE one.idem_audit (LIKE renamed.idem_audit INCLUDING ALL);
        SELECT status FROM renamed.idem_merge('staging', 'target', '{id}', 'a');
        SELECT status FROM renamed.idem_merge('staging', 'target', '{id}', 'b');
        SELECT renamed.idem_claim('c', 'target');
        SELECT renamed.idem_forget('target', 'b');
        SELECT (SELECT count(*) FROM one.idem_ledger), (SELECT count(*) FROM one.idem_audit)}),
    "replayed\nt\nreplayed\napplied\nf\n1\n0|0",
    'a lookalike of the ledger under the old name is left alone');

# The same while merges wait for another one: a new batch goes to the ledger that
# it was looked up in. Another revision is 40001 instead of a row for the lookalike,
# and a retry works.
{
    my ($holder, $new, $known) = map { $node->background_psql('twice', on_error_stop => 0) } 1 .. 3;
    my %call = ($new => q{'e'}, $known => q{'a', on_replay => 'reapply'});

    $holder->query_safe(q{BEGIN; SELECT status FROM renamed.idem_merge('staging', 'target', '{id}', 'd')});
    foreach my $waiter ($new, $known)
    {
        my $pid = $waiter->query_safe('SELECT pg_backend_pid()');
        $waiter->query_safe(q{\set VERBOSITY sqlstate});
        start($waiter, "SELECT status FROM renamed.idem_merge('staging', 'target', '{id}', $call{$waiter})");
        wait_for_lock($node, $pid);
    }
    $node->safe_psql(
        'twice', q{
        BEGIN;
        ALTER SCHEMA one RENAME TO other;
        ALTER SCHEMA renamed RENAME TO one;
        ALTER SCHEMA other RENAME TO renamed;
        COMMIT});
    $holder->query_safe('COMMIT');
    $holder->quit;
    my ($out, $errors) = finish($new);
    is($out, 'applied', 'the schemas are swapped while a merge waits: a new batch');
    is($new->query_safe(q{SELECT status FROM one.idem_merge('staging', 'target', '{id}', 'e')}),
        'replayed', 'it is in the ledger');
    ($out, $errors) = finish($known);
    like($errors, qr/ERROR:\s+40001/, 'the schemas are swapped while a merge waits: a known batch');
    is($known->query_safe(q{SELECT status FROM one.idem_merge('staging', 'target', '{id}', 'a', on_replay => 'reapply')}),
        'reapplied', 'a retry works');
    $_->quit foreach $new, $known;
    is( $node->safe_psql(
            'twice', 'SELECT (SELECT count(*) FROM renamed.idem_ledger), (SELECT count(*) FROM renamed.idem_audit)'),
        '0|0', 'the lookalike has no row');
}

# Roles that get rights on all new tables and sequences get none on ours.
my $rights = q{
    SELECT c.relname, string_agg(privilege_type, ' ' ORDER BY privilege_type)
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
    WHERE a.grantee = 'loader'::regrole AND c.relname LIKE 'idem%' AND c.relname !~ @ GROUP BY c.relname ORDER BY c.relname};
foreach my $version ('0.1.0', '0.2.0')
{
    my $db = "defaults_$version";
    make_database($node, $db);
    $node->safe_psql(
        $db, qq{
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO loader;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO loader;
        CREATE EXTENSION idempotent_ingest VERSION '$version';
        ALTER EXTENSION idempotent_ingest UPDATE});
    # What 0.1.0 had keeps them: somebody may have granted them on purpose.
    my $old = $version eq '0.1.0' ? q{'^idem_(ledger|audit|batches)'} : q{'^$'};
    is($node->safe_psql($db, $rights =~ s/@/$old/r), '', "$version: no default privileges on what is new in 0.2.0");
}

$node->stop;
done_testing();
