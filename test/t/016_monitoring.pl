# What is in monitoring/: every query runs as a role with pg_monitor and gives its
# labels and values, both exporters have the same metrics, the README lists them,
# and the dashboard shows no other.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use IdemTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = "$FindBin::RealBin/../../monitoring";

# queries.yaml: name, query, columns by usage. Only as much of YAML as is used there.
my (%query, %column, $name, $column);
for (split /\n/, slurp_file("$dir/queries.yaml"))
{
    if (/^(\w+):$/) { $name = $1 }
    elsif (/^    - (\w+):$/) { $column = $1 }
    elsif (/^        usage: "(\w+)"$/) { $column{$name}{$column} = $1 }
    elsif (/^    (.*)$/ && !/description/ && !%{ $column{$name} // {} }) { $query{$name} .= "$1\n" }
}

# sql_exporter.yml
my (%metric, %other_query, $metric);
for (split /\n/, slurp_file("$dir/sql_exporter.yml"))
{
    if (/^  - metric_name: (\w+)$/) { $metric = $1 }
    elsif (/^  - query_name: (\w+)$/) { $name = $1; undef $metric }
    elsif (/^    (type|query_ref): (\w+)$/) { $metric{$metric}{$1} = $2 }
    elsif (/^    (key_labels|values): \[(.*)\]$/) { $metric{$metric}{$1} = $2 }
    elsif (/^      (.*)$/) { $other_query{$name} .= "$1\n" }
}

cmp_ok(scalar keys %query, '>=', 5, 'there are queries');
is_deeply(\%other_query, \%query, 'both exporters run the same queries');

my %metrics_of;
for my $m (keys %metric)
{
    my $of = $metric{$m};
    $metrics_of{ $of->{query_ref} }{ $of->{values} } = uc $of->{type};
    is($m, "$of->{query_ref}_$of->{values}", "$m has the same name in both");
    $metrics_of{ $of->{query_ref} }{$_} = 'LABEL' for split /, /, $of->{key_labels};
}
is_deeply(\%metrics_of, \%column, 'both exporters have the same metrics');

# One exporter can read several databases; and exporters and Prometheus have labels
# of their own, target being sql_exporter's: it does not start with another one.
for my $q (sort keys %column)
{
    is($column{$q}{datname}, 'LABEL', "$q: says in which database");
    is(join(' ', grep { /^(target|job|instance|server)$/ } keys %{ $column{$q} }), '', "$q: has no label that is taken");
}

# Run them, with a merge that is running, so that all have rows
for my $preload ('idempotent_ingest', '')
{
    my $node = make_cluster("monitoring_$preload", conf => "shared_preload_libraries = '$preload'");
    make_database($node, 'app', 'public');
    $node->safe_psql(
        'app', q{
        CREATE ROLE exporter IN ROLE pg_monitor;
        CREATE TABLE target (id int PRIMARY KEY);
        CREATE TABLE staging AS SELECT 1 AS id;
        SELECT FROM idem_merge('staging', 'target', NULL, 'b1');
        SELECT FROM idem_merge('staging', 'target', NULL, 'b1');
    });
    my $holder = $node->background_psql('app', on_error_stop => 0);
    my $merger = $node->background_psql('app', on_error_stop => 0);
    $holder->query_safe("BEGIN; SELECT FROM idem_merge('staging', 'target', NULL, 'b2')");
    start($merger, "SELECT FROM idem_merge('staging', 'target', NULL, 'b3')");
    $node->poll_query_until('app', "SELECT EXISTS (SELECT FROM idem_progress WHERE phase = 'waiting')")
      or die 'no merge waits';

    for my $q (sort keys %query)
    {
        my $rows = decode_json($node->safe_psql('app',
            "SET ROLE exporter; SELECT coalesce(json_agg(q), '[]') FROM ($query{$q}) AS q"));
        # Counters are of memory: those of the ledger would fall when batches expire.
        if (!$preload && grep { $_ eq 'COUNTER' } values %{ $column{$q} })
        {
            is(scalar @$rows, 0, "$q: has no rows without the library preloaded");
            next;
        }
        cmp_ok(scalar @$rows, '>', 0, "$q: has rows");
        my $sound = 1;
        for my $row (@$rows)
        {
            $sound &&= join(' ', sort keys %$row) eq join(' ', sort keys %{ $column{$q} });
            for my $c (keys %{ $column{$q} })
            {
                $sound &&= defined $row->{$c} && ($c ne 'datname' || $row->{$c} eq 'app')
                  && ($column{$q}{$c} eq 'LABEL' || $row->{$c} =~ /^[0-9.e+-]+$/);
            }
        }
        ok($sound, "$q: has all labels, and numbers for values");
        my $labels = join ', ', grep { $column{$q}{$_} eq 'LABEL' } keys %{ $column{$q} };
        is($node->safe_psql('app', "SET ROLE exporter; SELECT count(*) - count(DISTINCT ($labels)) FROM ($query{$q}) AS q"),
            '0', "$q: labels are unique");
    }
    my $replayed = $node->safe_psql('app',
        "SET ROLE exporter; SELECT total FROM ($query{idem_merges}) AS q WHERE outcome = 'replayed'");
    is($replayed, $preload ? '1' : '', 'replays are counted if the library is preloaded');
    $holder->query_safe('COMMIT');
    finish($merger);
    $holder->quit;
    $merger->quit;
    $node->stop;
}

# The README and the dashboard
my $readme = slurp_file("$dir/README.md");
my %listed = map { $_ => 1 } $readme =~ /^\| `(idem_\w+)` \|/mg;
is_deeply([ sort keys %listed ], [ sort keys %metric ], 'the README lists the metrics');

my $dashboard = decode_json(slurp_file("$dir/grafana-dashboard.json"));
my %shown;
for my $panel (@{ $dashboard->{panels} })
{
    for my $target (@{ $panel->{targets} })
    {
        $shown{$_} = 1 for $target->{expr} =~ /\b(idem_\w+)/g;
    }
}
is_deeply([ sort keys %shown ], [ sort keys %metric ], 'the dashboard shows the metrics, and no others');

done_testing();
