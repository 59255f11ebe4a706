"""RFC 5321 as the server keeps it: the exact replies. See docs/conformance/rfc5321.md."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest

from greensmtp import Ack, Reply, Session
from greensmtp.delivery import received_field
from greensmtp.protocol import canned
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting, collect_bodies

if TYPE_CHECKING:
    from tests.conftest import Certificate


def play(smtp_server: MakeServer, script: str) -> None:
    """Play a dialogue with a server that accepts every message."""
    with dial(accepting(smtp_server)) as peer:
        peer.converse(script)


def in_transaction(smtp_server: MakeServer, script: str) -> None:
    """Play a dialogue that begins after EHLO, MAIL and RCPT."""
    with dial(accepting(smtp_server)) as peer:
        peer.hello()
        peer.envelope()
        peer.converse(script)


# 3.1, 3.2, 4.1.1.1: the beginning of a session


def test_the_banner_has_the_name_of_the_server_and_its_protocol(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, hostname="mx.example.com")) as peer:
        assert peer.reply() == "220 mx.example.com ESMTP"


def test_helo_gets_one_line_and_ehlo_has_the_servers_name_first(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, hostname="mx.example.com")) as peer:
        assert peer.hello(verb="HELO") == "250 mx.example.com greets client.example"
        peer.line("EHLO client.example")
        assert peer.reply().startswith("250-mx.example.com greets client.example\n250-")


def test_helo_works_as_a_fallback_for_a_whole_transaction(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.converse("""
            S: 220
            C: HELO client.example
            S: 250
            C: MAIL FROM:<jo@example.org>
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 250
            C: DATA
            S: 354
            C: Subject: x
            C: .
            S: 250
            C: QUIT
            S: 221
            S: END
        """)
    assert bodies == [b"Subject: x\r\n"]


def test_a_refused_connection_gets_554_and_is_closed(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("connect", lambda session, ack: ack.reject(554, "no SMTP service here"))
    with dial(server) as peer:
        peer.converse("""
            S: 554 no SMTP service here
            S: END
        """)


@pytest.mark.parametrize(
    "name", ["printer", "[192.0.2.7]", "[192.0.2.7] laptop", "[IPv6:2001:db8::7]", "under_score.example", "a b"]
)
def test_no_name_in_ehlo_is_refused_for_not_being_a_hosts(smtp_server: MakeServer, name: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.line(f"EHLO {name}")
        peer.expect("250")


def test_ehlo_without_a_name_gets_501_and_changes_nothing(smtp_server: MakeServer) -> None:
    in_transaction(
        smtp_server,
        """
            C: EHLO
            S: 501
            C: DATA
            S: 354
            C: .
            S: 250
        """,
    )


def test_ehlo_in_a_transaction_acts_as_rset(smtp_server: MakeServer) -> None:
    in_transaction(
        smtp_server,
        """
            C: EHLO client.example
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 503
            C: MAIL FROM:<jo@example.org>
            S: 250
        """,
    )


# 4.1.4: the order of commands


@pytest.mark.parametrize("command", ["MAIL FROM:<jo@example.org>", "RCPT TO:<ann@example.com>", "DATA"])
def test_a_transaction_before_a_greeting_gets_503(smtp_server: MakeServer, command: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.line(command)
        peer.expect("503 5.5.1")


@pytest.mark.parametrize(
    ("command", "reply"),
    [("NOOP", "250"), ("HELP", "214"), ("EXPN staff", "252"), ("VRFY jo", "252"), ("RSET", "250"), ("QUIT", "221")],
)
def test_these_commands_need_no_greeting(smtp_server: MakeServer, command: str, reply: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.line(command)
        peer.expect(reply)


def test_mail_in_a_transaction_gets_503_and_the_transaction_goes_on(smtp_server: MakeServer) -> None:
    in_transaction(
        smtp_server,
        """
            C: MAIL FROM:<other@example.org>
            S: 503 5.5.1
            C: DATA
            S: 354
            C: .
            S: 250
        """,
    )


def test_a_malformed_mail_gets_501_and_changes_nothing(smtp_server: MakeServer) -> None:
    play(
        smtp_server,
        """
            S: 220
            C: EHLO client.example
            S: 250
            C: MAIL jo@example.org
            S: 501 5.5.4
            C: RCPT TO:<ann@example.com>
            S: 503
            C: MAIL FROM:<jo@example.org>
            S: 250
        """,
    )


def test_data_without_an_accepted_recipient_gets_503(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("to", lambda session, address, ack: ack.reject(550, "5.1.1 unknown"))
    with dial(server) as peer:
        peer.hello()
        peer.converse("""
            C: MAIL FROM:<jo@example.org>
            S: 250
            C: RCPT TO:<nobody@example.com>
            S: 550
            C: DATA
            S: 503 5.5.1
        """)


# 4.1.1.5 to 4.1.1.10: the other commands


def test_rset_forgets_the_transaction_and_not_the_greeting(smtp_server: MakeServer) -> None:
    in_transaction(
        smtp_server,
        """
            C: RSET
            S: 250
            C: DATA
            S: 503
            C: MAIL FROM:<jo@example.org>
            S: 250
        """,
    )


@pytest.mark.parametrize("command", ["DATA", "RSET", "QUIT"])
def test_a_command_without_arguments_that_has_one_gets_501(smtp_server: MakeServer, command: str) -> None:
    in_transaction(
        smtp_server,
        f"""
            C: {command} now
            S: 501 5.5.4
            C: DATA
            S: 354
            C: .
            S: 250
        """,
    )


def test_noop_and_help_take_any_argument_and_change_nothing(smtp_server: MakeServer) -> None:
    in_transaction(
        smtp_server,
        """
            C: NOOP are you there
            S: 250
            C: HELP
            S: 214
            C: HELP MAIL
            S: 214
            C: VRFY jo
            S: 252
            C: EXPN staff
            S: 252
            C: DATA
            S: 354
            C: .
            S: 250
        """,
    )


def test_quit_in_a_transaction_delivers_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.converse("""
            C: QUIT
            S: 221
            S: END
        """)
    assert bodies == []


def test_a_client_that_closes_without_quit_delivers_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    reasons: list[str] = []
    bodies = collect_bodies(server)
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.half_close()
        assert peer.rest() == b""
    assert (bodies, reasons) == ([], ["closed"])


@pytest.mark.parametrize("command", ["SEND FROM:<jo@example.org>", "SOML FROM:<jo@example.org>", "TURN"])
def test_an_obsolete_command_gets_502(smtp_server: MakeServer, command: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line(command)
        peer.expect("502 5.5.1")


def test_an_unknown_command_gets_500_and_the_session_goes_on(smtp_server: MakeServer) -> None:
    in_transaction(
        smtp_server,
        """
            C: XYZZY
            S: 500 5.5.1
            C: DATA
            S: 354
            C: .
            S: 250
        """,
    )


# 4.1.1.2, 4.1.1.3, 4.1.2: paths


def accepted(peer: Peer, command: str) -> bool:
    """Send MAIL or RCPT in a fresh transaction; return True if it is accepted."""
    peer.line("RSET")
    peer.expect("250")
    if command.startswith("RCPT"):
        peer.line("MAIL FROM:<>")
        peer.expect("250")
    peer.line(command)
    return peer.reply().startswith("250")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("<@one.example,@two.example:Ann@Example.COM>", "Ann@example.com"),
        ('<"Ann"@example.com>', "Ann@example.com"),
        ('<"a\\ b"@example.com>', '"a b"@example.com'),
        ("<Postmaster>", "Postmaster"),
        ("<ann@[192.0.2.1]>", "ann@[192.0.2.1]"),
    ],
)
def test_a_forward_path_becomes_one_mailbox(smtp_server: MakeServer, path: str, address: str) -> None:
    server = smtp_server(start=False)
    seen: list[str] = []

    @server.on("to")
    def note(session: Session, address: str, ack: Ack) -> None:
        seen.append(address)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert accepted(peer, f"RCPT TO:{path}")
    assert seen == [address]


def test_a_name_with_an_underscore_is_accepted(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        assert accepted(peer, "MAIL FROM:<jo@under_score.example>")
        assert not accepted(peer, "MAIL FROM:<jo@-hyphen.example>")


# 4.2: replies


def test_a_reply_without_a_text_has_its_enhanced_code(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("from", lambda session, address, ack: ack.accept(250, ""))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org>")
        assert peer.reply() == "250 2.0.0"


# 4.5.3.1: sizes


@pytest.mark.parametrize(
    "command",
    [
        f"MAIL FROM:<{'a' * 64}@example.org>",
        f"MAIL FROM:<a@{'.'.join(['a' * 49] * 5)}>",
        f"RCPT TO:<{'a' * 64}@{'.'.join(['a' * 37] * 5)}>",
    ],
)
def test_addresses_of_the_sizes_of_the_rfc_are_accepted(smtp_server: MakeServer, command: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        assert accepted(peer, command)


def test_a_message_of_64_kib_is_accepted_by_default(smtp_server: MakeServer) -> None:
    with dial(accepting(smtp_server)) as peer:
        peer.hello()
        assert peer.deliver(b"x" * 998 + b"\r\n" * 66).startswith("250")


# 8, 4.4: what the server leaves alone


@pytest.mark.parametrize(
    "content",
    [
        "Received: this is no trace field\r\n\r\nx\r\n",
        "From: not an address\r\nTo: @@@\r\n\r\nx\r\n",
        "no header section at all\r\n",
        "",
    ],
)
def test_no_message_is_refused_for_its_header_section(smtp_server: MakeServer, content: str) -> None:
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(content.encode()).startswith("250")
    assert bodies == [content.encode()]


# 2.2.2, 4.2, F.4: what the server sends, and what it does not take

#: The codes of RFC 5321 section 4.2.3, and those of extensions (RFC 1985, RFC 3207, RFC 4954).
CODES = {211, 214, 220, 221, 250, 251, 252, 354, 421, 450, 451, 452, 455, 500, 501, 502, 503, 504, 550, 551, 552, 553}
CODES |= {554, 555} | {253, 458, 459} | {235, 334, 432, 454, 530, 534, 535, 538}


def test_the_server_sends_codes_of_the_rfcs_only() -> None:
    assert {reply.code for reply in vars(canned).values() if isinstance(reply, Reply)} <= CODES


def test_a_domain_that_is_a_number_is_refused(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@#123>")
        peer.expect("5")


def test_all_commands_that_are_required_are_implemented(smtp_server: MakeServer) -> None:
    play(
        smtp_server,
        """
            S: 220
            C: EHLO client.example
            S: 250
            C: HELO client.example
            S: 250
            C: MAIL FROM:<jo@example.org>
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 250
            C: DATA
            S: 354
            C: .
            S: 250
            C: RSET
            S: 250
            C: NOOP
            S: 250
            C: VRFY jo
            S: 252
            C: QUIT
            S: 221
            S: END
        """,
    )


def test_expn_is_not_offered_by_default(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        assert "EXPN" not in peer.hello()


def test_the_date_of_received_is_local_time_with_a_year_of_four_digits(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server)
    fields: list[bytes] = []

    @server.on("received")
    def note(session: Session, ack: Ack) -> None:
        fields.append(received_field(session))
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.deliver(b"Subject: x\r\n")
    date = parsedate_to_datetime(fields[0].rpartition(b";")[2].decode().strip())
    assert date.utcoffset() == datetime.now().astimezone().utcoffset()
    assert str(date.year) in fields[0].decode()
    assert abs((datetime.now(UTC) - date).total_seconds()) < 60


def test_nothing_that_is_offered_gets_502(smtp_server: MakeServer, certificate: Certificate) -> None:
    """Each keyword that adds a verb or a parameter has a command here."""
    commands = {
        "SIZE": ["MAIL FROM:<> SIZE=1"],
        "8BITMIME": ["MAIL FROM:<> BODY=8BITMIME"],
        "SMTPUTF8": ["MAIL FROM:<j\u00f6@example.org> SMTPUTF8"],
        "BINARYMIME": ["MAIL FROM:<> BODY=BINARYMIME"],
        "CHUNKING": ["MAIL FROM:<>", "RCPT TO:<ann@example.com>", "BDAT 0 LAST"],
        "STARTTLS": ["STARTTLS"],
        **{keyword: ["NOOP"] for keyword in ("PIPELINING", "ENHANCEDSTATUSCODES", "LIMITS")},
    }
    server = accepting(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with dial(server) as peer:
        for offer in peer.hello().split("\n")[1:]:
            for command in ["RSET", *commands[offer[4:].split()[0]]]:
                peer.line(command)
                peer.expect("2")
