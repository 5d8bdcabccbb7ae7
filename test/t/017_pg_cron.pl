# Scheduled by the real pg_cron, as docs/pg_cron.md has it: every block of that guide
# is run, and what it prints is compared. Rows keep arriving in the inbox; none is
# lost, and none is merged twice, whether runs overlap or fail.
#
# Two servers, so that commands run by connections and by background workers. The
# shortest schedule that every version of pg_cron knows is a minute, and takes one.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $sharedir = `$ENV{PG_CONFIG} --sharedir`;
chomp $sharedir;
plan skip_all => 'pg_cron is not installed (Debian: postgresql-NN-cron)'
  unless -e "$sharedir/extension/pg_cron.control";

# The guide: SQL, role, and what it prints; by heading.
my (%guide, $heading);
my $text = slurp_file("$FindBin::RealBin/../../docs/pg_cron.md");
while ($text =~ /^## ([^\n]+)\n|^```postgresql(?: role=(\w+))?\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?/msg)
{
    if (defined $1) { $heading = $1 }
    else { push @{ $guide{$heading} }, { role => $2 // 'postgres', sql => $3, out => $4 } }
}

# As wide as it has to be: a message has two spaces after ERROR where it came by a
# connection, one where it came from a background worker.
sub trimmed
{
    my ($out) = @_;
    $out =~ s/ +/ /g;
    $out =~ s/-+/-/g;
    $out =~ s/\s+$//mg;
    return $out;
}

sub run_block
{
    my ($node, $block) = @_;
    my ($stdout, $stderr) = run_command(
        [
            'psql', '-XqP', 'pager=off', '-v', 'ON_ERROR_STOP=1', '-d',
            $node->connstr('postgres') . " user=$block->{role}", '-c', $block->{sql}
        ]);

    is($stderr, '', 'no error from: ' . substr($block->{sql}, 0, 60));
    return trimmed($stdout);
}

# Run what the guide has under a heading.
sub follow
{
    my ($node, $under) = @_;

    foreach my $block (@{ $guide{$under} })
    {
        my $out = run_block($node, $block);
        is($out, trimmed($block->{out}), "printed as documented, under $under") if defined $block->{out};
    }
    return;
}

my $writer = PostgreSQL::Test::Utils::tempdir() . '/writer.sql';
append_to_file($writer, <<'END');
\set id random(100, 199)
\set amount random(1, 9999)
WITH new AS (INSERT INTO sent VALUES (:id, :amount, clock_timestamp())
             ON CONFLICT DO NOTHING RETURNING *)
INSERT INTO inbox SELECT * FROM new;
END

my %nodes;
my @writers;
foreach my $mode (qw(connections workers))
{
    my $node = PostgreSQL::Test::Cluster->new($mode);
    $node->init(extra => [ '--no-locale', '--encoding=UTF8' ]);
    $node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_cron'\n"
          . "cron.host = '" . $node->host . "'\n"
          . 'cron.use_background_workers = ' . ($mode eq 'workers' ? 'on' : 'off') . "\n"
          . "max_worker_processes = 20\n");
    $node->start;
    $nodes{$mode} = $node;

    follow($node, 'Setting it up');
    my ($tables, $schedule, $look) = @{ $guide{'Merging an inbox'} };
    run_block($node, $tables);

    # What the guide has no need for: what was sent, which changes were made to the
    # target, an old batch, and a queued one.
    $node->safe_psql('postgres', q{
        CREATE TABLE sent (order_id bigint, amount numeric(10,2), updated_at timestamptz PRIMARY KEY);
        CREATE TABLE arrived (order_id bigint, updated_at timestamptz, UNIQUE (order_id, updated_at));
        CREATE FUNCTION arrive() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
            'BEGIN INSERT INTO arrived VALUES (NEW.order_id, NEW.updated_at); RETURN NULL; END';
        CREATE TRIGGER arrive AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION arrive();

        CREATE TABLE other (id int PRIMARY KEY);
        CREATE TABLE other_staging AS SELECT 1 AS id;
        GRANT ALL ON other, other_staging TO loader;
        SELECT FROM idem_merge('other_staging', 'other', batch_id => 'old');
        SELECT FROM idem_merge('other_staging', 'other', batch_id => 'new');
        UPDATE idem_ledger SET applied_at = now() - interval '100 days' WHERE batch_id = 'old';
        SET ROLE loader;
        SELECT idem_enqueue('other_staging', 'other', batch_id => 'queued')});

    # Both rows of the guide's failure first, so that the first run meets them.
    my ($poison, $failures, $cure) = @{ $guide{'A run that fails'} };
    run_block($node, $poison);
    $node->safe_psql('postgres', q{
        INSERT INTO sent VALUES (7, 11, '2026-11-20 08:00+00')});
    push @writers,
      IPC::Run::start([ 'pgbench', '-n', '-c', '2', '-R', '200', '-T', '1000', '-f', $writer, $node->connstr('postgres') ],
        '<', \undef, '>', \my $ignored, '2>', \my $ignored_too);

    is(run_block($node, $schedule), trimmed($schedule->{out}), 'a merge every minute');
    follow($node, $_) foreach 'Overlapping runs', 'Maintenance', 'Queued merges';
    $node->safe_psql('postgres',
        q{SELECT cron.alter_job(jobid, schedule => '* * * * *') FROM cron.job WHERE schedule <> '* * * * *'});
}

# Tells how a run of a job has ended, once one has; only of those after run $after.
sub ended
{
    my ($node, $job, $status, $after) = @_;
    $after //= 0;
    return $node->poll_query_until('postgres', qq{
        SELECT EXISTS (SELECT FROM cron.job_run_details JOIN cron.job USING (jobid)
                       WHERE jobname = '$job' AND status = '$status' AND runid > $after)});
}

foreach my $mode (sort keys %nodes)
{
    my $node = $nodes{$mode};
    my ($poison, $failures, $cure) = @{ $guide{'A run that fails'} };

    # The first minute. Two runs fail, and leave everything as it was.
    ok(ended($node, $_, 'failed'), "$mode: job $_ fails") foreach 'inbox', 'inbox again';
    is(run_block($node, $failures), trimmed($failures->{out}), "$mode: with the documented message");
    like(run_block($node, $guide{'Merging an inbox'}[2]), qr/^ inbox \| failed \| .*staging has different rows/m,
        "$mode: which is in the list of what has run");
    is($node->safe_psql('postgres', 'SELECT count(*) FROM orders'), '0', "$mode: nothing was merged");
    is($node->safe_psql('postgres', 'SELECT count(*) FROM sent WHERE NOT EXISTS (SELECT FROM inbox WHERE inbox = sent)'),
        '0', "$mode: every row is back in the inbox");

    ok(ended($node, 'maintenance', 'succeeded'), "$mode: maintenance has run");
    is($node->safe_psql('postgres', q{SELECT batch_id FROM idem_batches WHERE expired}), 'old', "$mode: and expired a batch");
    ok(ended($node, 'queue', 'succeeded'), "$mode: the queue was worked on");
    is($node->safe_psql('postgres', q{SELECT status, role FROM idem_jobs}), 'succeeded|loader', "$mode: and a job was run");
    ok(ended($node, 'history', 'succeeded'), "$mode: the history was cleaned up");
}

# The next minute. Both jobs run at once, since the target is locked.
my %holder;
foreach my $mode (sort keys %nodes)
{
    my $node = $nodes{$mode};
    $holder{$mode} = $node->background_psql('postgres', on_error_stop => 0);
    run_block($node, $guide{'A run that fails'}[2]);
    $holder{$mode}->query_safe('BEGIN; LOCK TABLE orders IN SHARE MODE');
}
foreach my $mode (sort keys %nodes)
{
    my $node = $nodes{$mode};
    ok( $node->poll_query_until('postgres', q{
            SELECT count(DISTINCT pid) = 2 FROM pg_stat_activity
            WHERE usename = 'loader' AND query = 'CALL merge_inbox()' AND wait_event_type = 'Lock'}),
        "$mode: two runs at once");
    $holder{$mode}->quit;
    ok(ended($node, $_, 'succeeded'), "$mode: job $_ succeeds") foreach 'inbox', 'inbox again';
    is( $node->safe_psql('postgres', q{
            SELECT count(*) FROM cron.job_run_details AS a JOIN cron.job_run_details AS b USING (jobid)
            WHERE a.runid < b.runid AND a.end_time > b.start_time}),
        '0', "$mode: no job runs beside itself");
    cmp_ok(
        $node->safe_psql('postgres', q{SELECT count(*) FROM idem_batches WHERE pipeline = 'inbox'}),
        '>=', 1, "$mode: the ledger has what was merged");
    like(run_block($node, $guide{'Merging an inbox'}[2]),
        qr/^ inbox( again)? \| succeeded \| .* \| CALL\n(.*\n)* \S{36} \| .* \| [1-9]\d*( \| \d+){4}\n/m,
        "$mode: and so has the list of what has run");
}

# No more rows; what has arrived after the last run is merged by hand.
$_->kill_kill foreach @writers;
foreach my $mode (sort keys %nodes)
{
    my $node = $nodes{$mode};
    $node->safe_psql('postgres', q{SELECT cron.unschedule(jobid) FROM cron.job});
    $node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())})
      or die 'a writer or a run does not end';
    $node->safe_psql('postgres', 'CALL merge_inbox()');

    cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM sent'), '>', 1000, "$mode: rows have arrived all the while");
    is($node->safe_psql('postgres', 'SELECT count(*) FROM inbox'), '0', "$mode: the inbox is empty");
    is( $node->safe_psql('postgres', q{
            SELECT count(*)
            FROM (SELECT DISTINCT ON (order_id) * FROM sent ORDER BY order_id, updated_at DESC) AS newest
            FULL JOIN orders USING (order_id)
            WHERE (newest.amount, newest.updated_at) IS DISTINCT FROM (orders.amount, orders.updated_at)}),
        '0', "$mode: the target has the newest row of each key");
    is( $node->safe_psql('postgres', q{SELECT sum(rows_staged) FROM idem_batches WHERE pipeline = 'inbox'}),
        $node->safe_psql('postgres', 'SELECT count(*) FROM sent'),
        "$mode: each row was taken once");
    is( $node->safe_psql('postgres', q{SELECT sum(rows_inserted + rows_updated) FROM idem_batches WHERE pipeline = 'inbox'}),
        $node->safe_psql('postgres', 'SELECT count(*) FROM arrived'),
        "$mode: and written once");
    $node->stop;
}

done_testing();
