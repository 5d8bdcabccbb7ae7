# Plans are kept for the rest of the session: the second merge of the same kind
# plans nothing, in the sql engine. They are made anew when a relation has changed or has grown a
# lot, and are never shared between roles. log_planner_stats, which writes a line
# for whatever is planned, tells; auto_explain shows which plan was used, and
# does not disturb a merge.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = make_cluster('plans', conf => "log_statement = none\nidempotent_ingest.engine = sql");

$node->safe_psql(
    'postgres', q{
    CREATE EXTENSION idempotent_ingest;
    CREATE ROLE loader;
    CREATE ROLE stranger;
    CREATE TABLE staging (id int, v text);
    INSERT INTO staging SELECT i, 'v' || i FROM generate_series(1, 10) AS i;
    CREATE TABLE target (id int PRIMARY KEY, v text, w text);
    GRANT SELECT ON staging TO loader;
    GRANT ALL ON target TO loader;
});

my $session = $node->background_psql('postgres', on_error_stop => 0);
my $batch = 0;

# Merge a new batch in the session, and return the summary and how many
# statements were planned for it, the call itself not counted.
sub merge
{
    my ($more, $staging) = @_;
    $more //= '';
    $staging //= 'staging';
    $batch++;

    $session->query_safe('SET client_min_messages = log');
    $session->query_safe('SET log_planner_stats = on');
    $session->{stderr} = '';
    my $stdout = $session->query("SELECT summary FROM idem_merge('$staging', 'target', '{id}', 'batch $batch'$more)");
    my $messages = $session->{stderr};
    $session->{stderr} = '';
    $session->query('RESET log_planner_stats');
    $session->query('RESET client_min_messages');
    $session->{stderr} = '';
    my $planned = () = $messages =~ /PLANNER STATISTICS/g;
    my ($error) = $messages =~ /ERROR:  (.*)/;
    return ($error // $stdout, $planned - 1);
}

# The next merge plans again, the one after it does not.
sub is_planned_once
{
    my ($what, $first, $then, @arguments) = @_;
    my ($summary, $planned) = merge(@arguments);

    is($summary, $first, "$what: what it merges");
    cmp_ok($planned, '>', 0, "$what: planned anew");
    ($summary, $planned) = merge(@arguments);
    is($summary, $then, "$what: the same again");
    is($planned, 0, "$what: planned once");
    return;
}

# The statements on the ledger get a plan for good after the fifth time, as any
# prepared statement.
my ($summary, $planned) = merge();
is($summary, 'applied: 10 staged, 10 inserted', 'the first merge');
cmp_ok($planned, '>', 0, 'is planned');
merge() foreach (1 .. 8);
($summary, $planned) = merge();
is($summary, 'applied: 10 staged, 10 unchanged', 'the tenth merge');
is($planned, 0, 'uses plans that were kept');

# Other options are another statement; both are kept.
is_planned_once('other options', 'applied: 10 staged, 10 unchanged', 'applied: 10 staged, 10 unchanged', q{, audit_cols => '{v}'});
($summary, $planned) = merge();
is($planned, 0, 'the first statement is kept beside it');

# What changes a relation.
my $unchanged = 'applied: 10 staged, 10 unchanged';
$session->query_safe(q{ALTER TABLE target ADD COLUMN added text DEFAULT 'default'});
is_planned_once('column added to the target', $unchanged, $unchanged);
$session->query_safe(q{ALTER TABLE staging ADD COLUMN added text; UPDATE staging SET added = 'staged' WHERE id <= 3});
is_planned_once('column added to staging', 'applied: 10 staged, 10 updated', $unchanged);
is($session->query_safe(q{SELECT count(added), count(*) FROM target}), '3|10', 'its values are merged, NULL too');
$session->query_safe('ALTER TABLE staging DROP COLUMN added; ALTER TABLE target DROP COLUMN added');
is_planned_once('column dropped', $unchanged, $unchanged);
$session->query_safe('ALTER TABLE target ALTER COLUMN v TYPE varchar(100)');
is_planned_once('type changed', $unchanged, $unchanged);
$session->query_safe('ALTER TABLE target ALTER COLUMN w SET DEFAULT 5');
$session->query_safe(q{INSERT INTO staging VALUES (11, 'v11')});
is_planned_once('default changed', 'applied: 11 staged, 1 inserted, 10 unchanged', 'applied: 11 staged, 11 unchanged');
is($session->query_safe('SELECT w FROM target WHERE id = 11'), '5', 'the new default is used');
$session->query_safe('DELETE FROM staging WHERE id = 11; DELETE FROM target WHERE id = 11');
$session->query_safe('ALTER TABLE target RENAME COLUMN v TO x; ALTER TABLE target ADD COLUMN v varchar(100)');
is_planned_once('column renamed, another one has its name', 'applied: 10 staged, 10 updated', $unchanged);
is($session->query_safe('SELECT count(x), count(v) FROM target'), '10|10', 'the one by that name is written');
$session->query_safe('ALTER TABLE target RENAME TO elsewhere; CREATE TABLE target (id int PRIMARY KEY, v text)');
is_planned_once('another table by that name', 'applied: 10 staged, 10 inserted', $unchanged);
is($session->query_safe('SELECT count(*) FROM target'), '10', 'it is the one that is written');
$session->query_safe('DROP TABLE target; ALTER TABLE elsewhere RENAME TO target');
is_planned_once('the first table again', $unchanged, $unchanged);

# Indexes.
$session->query_safe('ALTER TABLE target DROP CONSTRAINT target_pkey');
($summary) = merge();
like($summary, qr/^there is no unique index/i, 'index dropped: refused') or note $summary;
$session->query_safe('CREATE UNIQUE INDEX another ON target (id)');
is_planned_once('another index', $unchanged, $unchanged);
$session->query_safe('CREATE INDEX ON target (v)');
is_planned_once('index added', $unchanged, $unchanged);
$session->query_safe('DROP INDEX target_v_idx');
is_planned_once('index dropped', $unchanged, $unchanged);

# Triggers, policies, functions that the statement uses.
$session->query_safe(q{
    CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.w := 'marked'; RETURN NEW; END $$;
    CREATE TRIGGER mark BEFORE INSERT OR UPDATE ON target FOR EACH ROW EXECUTE FUNCTION mark()});
$session->query_safe(q{UPDATE staging SET v = 'new' WHERE id = 1});
($summary) = merge();
is($summary, 'applied: 10 staged, 1 updated, 9 unchanged', 'trigger created: merged');
is($session->query_safe('SELECT w FROM target WHERE id = 1'), 'marked', 'trigger created: fired');
$session->query_safe('DROP TRIGGER mark ON target');

# Staging dropped and made again, as a job does that makes it for every batch:
# another table, with other columns if it likes.
$session->query_safe(q{DROP TABLE staging; CREATE TABLE staging (v text, id bigint); INSERT INTO staging VALUES ('new', 1), ('made', 12)});
is_planned_once('staging made again', 'applied: 2 staged, 1 inserted, 1 unchanged', 'applied: 2 staged, 2 unchanged');
$session->query_safe('DROP TABLE staging; CREATE TEMP TABLE staging (id int, v text)');
$session->query_safe(q{INSERT INTO staging VALUES (1, 'temp')});
is_planned_once('a temporary table', 'applied: 1 staged, 1 updated', 'applied: 1 staged, 1 unchanged');
foreach my $round (1 .. 3)
{
    $session->query_safe(qq{DROP TABLE staging; CREATE TEMP TABLE staging AS SELECT i AS id, 'round $round' AS v FROM generate_series(1, 5) AS i});
    ($summary) = merge();
    is($summary, 'applied: 5 staged, 5 updated', "round $round of a temporary table made again");
}
$session->query_safe('DROP TABLE staging');
($summary) = merge();
like($summary, qr/relation "staging" does not exist/, 'staging dropped');

# More statements than are kept.
foreach my $number (1 .. 70)
{
    $session->query_safe("CREATE TEMP TABLE staging_$number AS SELECT $number AS id, 'many' AS v");
    ($summary, $planned) = merge('', "staging_$number");
    last if $summary !~ /^applied: 1 staged, 1 /;
}
like($summary, qr/^applied: 1 staged, 1 /, '70 staging tables in one session');
($summary, $planned) = merge('', 'staging_70');
is("$summary; $planned", 'applied: 1 staged, 1 unchanged; 0', 'the latest is kept');
($summary, $planned) = merge('', 'staging_1');
is($summary, 'applied: 1 staged, 1 unchanged', 'the oldest works');
cmp_ok($planned, '>', 0, 'and was planned again');

# Roles: what was planned for one is not run for another.
$session->query_safe(q{
    CREATE TABLE staging AS SELECT i AS id, 'role' AS v FROM generate_series(1, 4) AS i;
    GRANT SELECT ON staging TO loader});
is_planned_once('superuser', 'applied: 4 staged, 4 updated', 'applied: 4 staged, 4 unchanged');
$session->query_safe('GRANT SET ON PARAMETER log_planner_stats TO loader, stranger');
$session->query_safe('SET ROLE loader');
is_planned_once('SET ROLE', 'applied: 4 staged, 4 unchanged', 'applied: 4 staged, 4 unchanged');
$session->query_safe('SET ROLE stranger');
($summary) = merge();
like($summary, qr/^permission denied for (table|relation) /, 'a stranger gets nothing by the plans of others');
$session->query_safe('RESET ROLE');
($summary, $planned) = merge();
is($planned, 0, 'RESET ROLE: the plan of before is kept');
$session->query_safe('REVOKE SELECT ON staging FROM loader; SET ROLE loader');
($summary) = merge();
like($summary, qr/^permission denied for table staging/, 'a right that was revoked is gone, plan or not');
$session->query_safe(q{RESET ROLE; GRANT SELECT ON staging TO loader;
    ALTER TABLE staging ENABLE ROW LEVEL SECURITY; CREATE POLICY first_rows ON staging TO loader USING (id <= 2)});
($summary) = merge();
is($summary, 'applied: 4 staged, 4 unchanged', 'row-level security does not hold for the superuser');
$session->query_safe('SET ROLE loader');
is_planned_once('row-level security', 'applied: 2 staged, 2 unchanged', 'applied: 2 staged, 2 unchanged');
$session->query_safe('RESET ROLE; ALTER POLICY first_rows ON staging USING (id <= 3); SET ROLE loader');
($summary) = merge();
is($summary, 'applied: 3 staged, 3 unchanged', 'a policy that changes is followed');
$session->query_safe('RESET ROLE');
$session->quit;

# Plans by auto_explain, which logs what is nested, too.
SKIP:
{
    skip 'auto_explain is not installed', 1
      if $node->psql('postgres', q{LOAD 'auto_explain'}) != 0;

    $session = $node->background_psql('postgres', on_error_stop => 0);
    $session->query_safe(q{
        LOAD 'auto_explain';
        DROP TABLE staging;
        CREATE TABLE staging (id int, v text);
        CREATE TABLE large (id int PRIMARY KEY, v text)});
    $session->query_safe(q{INSERT INTO large SELECT i, 'v' FROM generate_series(1, 50000) AS i});
    $session->query_safe('ANALYZE large');
    $session->query_safe(q{INSERT INTO staging VALUES (1, 'one'); ANALYZE staging});
    $session->query_safe("SET auto_explain.$_ = on")
      foreach ('log_analyze', 'log_verbose', 'log_buffers', 'log_wal', 'log_timing', 'log_triggers', 'log_settings', 'log_nested_statements');

    # Merge, and return the summary and the plan of the statement that merges.
    my $explained_merge = sub {
        my ($id, $more) = @_;
        $session->query_safe('SET auto_explain.log_min_duration = 0; SET client_min_messages = log');
        $session->{stderr} = '';
        my $stdout = $session->query("SELECT summary FROM idem_merge('staging', 'large', '{id}', '$id'" . ($more // '') . ')');
        my $messages = $session->{stderr};
        $session->{stderr} = '';
        $session->query('SET auto_explain.log_min_duration = -1; RESET client_min_messages');
        $session->{stderr} = '';
        my ($plan) = $messages =~ /^((?:Insert|Update) on public\.large .*?(?=^[A-Z]+:  |\z))/ms;
        return ($stdout, $plan // '', $messages);
    };

    my ($said, $plan, $messages) = $explained_merge->('one');
    is($said, 'applied: 1 staged, 1 updated', 'auto_explain: a merge of one row');
    like($plan, qr/Nested Loop.*Index (Only )?Scan using large_pkey/s, 'auto_explain: probes the index');
    unlike($messages, qr/ERROR|WARNING/, 'auto_explain: no error and no warning');

    # 100,000 rows later that would take long; nobody has analyzed the table.
    $session->query_safe(q{TRUNCATE staging; INSERT INTO staging SELECT i, 'w' FROM generate_series(1, 100000) AS i});
    ($said, $plan) = $explained_merge->('many');
    is($said, 'applied: 100000 staged, 50000 inserted, 50000 updated', 'auto_explain: a merge of 100000 rows');
    like($plan, qr/(Merge|Hash) (Left|Right) Join/, 'auto_explain: joins');
    unlike($plan, qr/Nested Loop/, 'auto_explain: and does not loop');
    ($said, $plan) = $explained_merge->('many again');
    is($said, 'applied: 100000 staged, 100000 unchanged', 'auto_explain: the same again');

    # And back.
    $session->query_safe(q{TRUNCATE staging; INSERT INTO staging VALUES (1, 'x'), (2, 'x'); ANALYZE staging});
    ($said, $plan) = $explained_merge->('few');
    is($said, 'applied: 2 staged, 2 updated', 'auto_explain: a merge of two rows');
    like($plan, qr/Index (Only )?Scan using large_pkey/, 'auto_explain: by the index again');
    unlike($plan, qr/Seq Scan on public\.large/, 'auto_explain: and not by reading all of the target');

    ($said) = $explained_merge->('update', q{, mode => 'update'});
    is($said, 'applied: 2 staged, 2 unchanged', 'auto_explain: mode update');
    ($said) = $explained_merge->('few');
    is($said, 'replayed: 2 staged, 2 updated', 'auto_explain: a replay');
    $session->quit;
}

$node->stop;
done_testing();
