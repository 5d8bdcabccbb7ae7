# Prints the most private memory, in kB, that a process has had from now until it
# ends. VmHWM would not do: it counts the pages of shared buffers that were used.
use strict;
use warnings;

my ($pid) = @ARGV;
my $peak = 0;

# Two hundred times a second costs less than one percent of a processor.
while (open(my $status, '<', "/proc/$pid/status"))
{
    my ($anonymous) = map { /^RssAnon:\s+(\d+)/ ? $1 : () } <$status>;
    $peak = $anonymous if defined $anonymous && $anonymous > $peak;
    select(undef, undef, undef, 0.005);
}
print "peak|$peak\n";
