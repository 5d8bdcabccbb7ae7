# What the TAP tests of idempotent_ingest share: clusters, sessions that wait,
# and errors by SQLSTATE.
package IdemTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(check_nothing_left init_cluster make_cluster make_database sqlstate start finish give_up
  wait_for_lock summary restore);

# A cluster. conf is added to postgresql.conf, install_path is where PostgreSQL is;
# the other parameters are those of init().
sub init_cluster
{
    my ($name, %params) = @_;
    my $conf = delete $params{conf} // '';
    my $install_path = delete $params{install_path};
    my $node = PostgreSQL::Test::Cluster->new($name, defined $install_path ? (install_path => $install_path) : ());

    push @{ $params{extra} }, '--no-locale', '--encoding=UTF8';
    $node->init(%params);
    $node->append_conf('postgresql.conf', "autovacuum = off\n$conf");
    return $node;
}

# The same, running.
sub make_cluster
{
    my $node = init_cluster(@_);

    $node->start;
    return $node;
}

# A database; with the extension if a schema for it is given.
sub make_database
{
    my ($node, $name, $schema) = @_;

    $node->safe_psql('postgres', qq{CREATE DATABASE "$name" TEMPLATE template0});
    $node->safe_psql($name, "CREATE EXTENSION idempotent_ingest SCHEMA $schema")
      if defined $schema;
    return;
}

# The SQLSTATE of the error that some SQL ends with; 'none' if it does not.
sub sqlstate
{
    my ($node, $db, $sql) = @_;
    my (undef, undef, $stderr) =
      $node->psql($db, $sql, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);

    return $stderr =~ /ERROR:\s+([0-9A-Z]{5})/ ? $1 : 'none';
}

# Merge in a session of its own, and return the summary. The arguments are those
# of idem_merge() as SQL text.
sub summary
{
    my ($node, $db, $arguments) = @_;

    return $node->safe_psql($db, "SELECT summary FROM idem_merge($arguments)");
}

# Send a query to a background session and do not wait for its end.
sub start
{
    my ($session, $sql) = @_;

    $session->{stderr} = '';
    my $stdout = $session->query_until(qr/query sent\n/, "\\echo query sent\n$sql;\n");

    # A quick answer can have come by now: finish() returns it.
    $stdout =~ s/^.*?query sent\n//s;
    $session->{stdout} = $stdout;
    return;
}

# Wait for what start() sent, and return its output and its messages.
sub finish
{
    my ($session) = @_;
    my $stdout = $session->query('');
    my $stderr = $session->{stderr};

    $stdout =~ s/^\n//;
    $session->{stderr} = '';
    return ($stdout, $stderr);
}

# Be done with a session whose server process is gone. To be called before the
# server is started again, which would inherit the pipe that psql reads from.
sub give_up
{
    my ($session) = @_;

    local $SIG{PIPE} = 'IGNORE';
    $session->{stdin} .= "\\q\n";
    eval { $session->{run}->finish; };
    return;
}

# Returns when a process sleeps in the lock manager.
sub wait_for_lock
{
    my ($node, $pid) = @_;

    $node->poll_query_until('postgres',
        "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $pid AND NOT granted)")
      or die "process $pid did not come to wait for a lock";
    return;
}

# Restore a plain dump; dies at the first error.
sub restore
{
    my ($node, $db, $file) = @_;

    $node->command_ok(
        [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', $file ],
        "restored into $db");
    return;
}

# There is no trace of a merge: $differences counts how the target differs from
# what it was.
sub check_nothing_left
{
    my ($node, $differences, $what) = @_;

    is($node->safe_psql('postgres', $differences), '0', "$what: the target is as it was");
    is($node->safe_psql('postgres', 'SELECT count(*) FROM idem_ledger'),
        '0', "$what: the ledger is empty");
    is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}),
        '0', "$what: no lock is left");
    return;
}

1;
