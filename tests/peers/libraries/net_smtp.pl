# Do jobs with Net::SMTP: reads a list of them, JSON, and prints a list of what came of each.
use strict;
use warnings;
use JSON::PP;
use Net::SMTP;
use Authen::SASL;

sub deliver {
    my ($job) = @_;
    my @tls = $job->{tls} ? (SSL_ca_file => $job->{authority}, SSL_verifycn_name => $job->{host}) : ();
    my $smtp = Net::SMTP->new($job->{host}, Port => $job->{port}, Hello => 'client.example', Timeout => 20,
        ($job->{tls} // '') eq 'implicit' ? (SSL => 1) : (), @tls) or die "no connection: $@\n";
    my $fail = sub { die $_[0] . ': ' . $smtp->code . ' ' . $smtp->message };
    if (($job->{tls} // '') eq 'starttls') {
        $smtp->starttls(@tls) or $fail->('STARTTLS');
    }
    if ($job->{user}) {
        my $sasl = Authen::SASL->new(mechanism => $job->{mechanism},
            callback => { user => $job->{user}, pass => $job->{password}, authname => '' });
        $smtp->auth($sasl) or $fail->('AUTH');
    }
    my $dsn = $job->{dsn};
    $smtp->mail($job->{sender}, Bits => $job->{chunks} ? 'binary' : '8', Size => length $job->{message},
        $dsn ? (Return => $dsn->{ret}, Envelope => $dsn->{envid}) : ()) or $fail->('MAIL');
    my %options = $dsn ? (Notify => $dsn->{notify}, ORcpt => "rfc822;$dsn->{recipient}") : ();
    my @accepted = $smtp->recipient(@{$job->{recipients}}, { SkipBad => 1, %options }) or $fail->('RCPT');
    if ($job->{chunks}) {
        my $half = int(length($job->{message}) / 2);
        $smtp->bdat(substr $job->{message}, 0, $half) or $fail->('BDAT');
        $smtp->bdatlast(substr $job->{message}, $half) or $fail->('BDAT LAST');
    } else {
        $smtp->data($job->{message}) or $fail->('DATA');
    }
    $smtp->quit;
    my %accepted = map { $_ => 1 } @accepted;
    return { accepted => \@accepted, refused => [grep { !$accepted{$_} } @{$job->{recipients}}], error => '' };
}

my $json = JSON::PP->new->utf8;
my @results;
for my $job (@{$json->decode(do { local $/; <STDIN> })}) {
    utf8::encode($job->{message});
    push @results, eval { deliver($job) } || { accepted => [], refused => [], error => "$@" };
}
print $json->encode(\@results), "\n";
