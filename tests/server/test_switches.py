"""The argument ``extensions``: what is off is not offered, and refused; what is on is offered, and checked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Ack, Address, ArgumentError, MessageStream, Session, SMTPServer
from greensmtp.middleware import Auth
from greensmtp.protocol import esmtp
from greensmtp.protocol.option_values import DeliverBy, OriginalRecipient, ValidSince
from greensmtp.server import extensions
from greensmtp.server.extensions import SWITCHABLE
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import auth_plain, collect_bodies

if TYPE_CHECKING:
    from tests.conftest import Certificate

#: What an extension with a value of its own is switched on with here.
ON: dict[str, Any] = {"FUTURERELEASE": (3600, "2030-01-31T12:00:00Z")}


def offered(peer: Peer, verb: str = "EHLO") -> list[str]:
    """Say hello, and return the lines behind the first."""
    return [line[4:] for line in peer.hello(verb=verb).split("\n")[1:]]


def keywords(lines: list[str]) -> set[str]:
    return {line.split()[0] for line in lines}


# The switch itself


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("keyword", SWITCHABLE)
def test_every_extension_can_be_switched(
    smtp_server: MakeServer, certificate: Certificate, keyword: str, lmtp: bool
) -> None:
    options: dict[str, Any] = {
        "lmtp": lmtp,
        "certfile": certificate.certfile,
        "keyfile": certificate.keyfile,
        "implicit_tls": keyword == "REQUIRETLS",
    }
    for switch in (ON.get(keyword, True), False):
        server = smtp_server(start=False, extensions={keyword.lower(): switch}, **options)
        with dial(server) as peer:
            if options["implicit_tls"]:
                peer.start_tls()
            assert (keyword in keywords(offered(peer, "LHLO" if lmtp else "EHLO"))) is bool(switch)


def test_the_standard_ones_are_on_and_the_optional_ones_off() -> None:
    server = SMTPServer(("127.0.0.1", 0))
    with dial(server) as peer:
        assert keywords(offered(peer)) == {each.keyword for each in esmtp.STANDARD} - {"STARTTLS"}


@pytest.mark.parametrize("keyword", [each.keyword for each in (*esmtp.STANDARD, *esmtp.OPTIONAL)])
def test_what_is_off_has_its_parameters_and_verbs_refused(smtp_server: MakeServer, keyword: str) -> None:
    extension = next(each for each in (*esmtp.STANDARD, *esmtp.OPTIONAL) if each.keyword == keyword)
    off = {keyword: False} if keyword in SWITCHABLE else {}
    with dial(smtp_server(start=False, extensions=off, max_errors=100)) as peer:
        peer.hello()
        for parameter in extension.mail:
            peer.line(f"MAIL FROM:<a@example.org> {parameter}")
            peer.expect(f"555 5.5.4 Unsupported parameter: {parameter}")
        for verb in extension.verbs:
            peer.line(verb, f"{verb} example.com")
            peer.expect("502 5.5.1", "502 5.5.1")
        peer.envelope()
        for parameter in extension.rcpt:
            peer.line(f"RCPT TO:<a@example.org> {parameter}")
            peer.expect(f"555 5.5.4 Unsupported parameter: {parameter}")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"DNS": True}, r"not 'DNS'; did you mean 'DSN'\?"),
        ({"MT_PRIORITY": True}, "did you mean 'MT-PRIORITY'"),
        ({"AUTH": True}, "takes PIPELINING, SIZE, .*not 'AUTH'"),
        ({"XCLIENT": True}, r"XCLIENT is offered to trusted networks: xclient_from=\[...\]"),
        ({"DSN": 1}, "DSN takes true or false, not 1"),
        ({"DELIVERBY": 0}, "DELIVERBY takes the least number of seconds for BY=...;R, true or false, not 0"),
        ({"DELIVERBY": "3600"}, "DELIVERBY takes"),
        ({"MT-PRIORITY": "two words"}, "MT-PRIORITY takes the name of a priority profile"),
        ({"FUTURERELEASE": True}, "FUTURERELEASE takes the most seconds.*, or false, not True"),
        ({"FUTURERELEASE": (3600, datetime(2030, 1, 1))}, "a last time with its time zone"),
        ({"FUTURERELEASE": (3600, "tomorrow")}, "FUTURERELEASE takes"),
        ({"FUTURERELEASE": (True, None)}, "FUTURERELEASE takes"),
        ({5: True}, "not 5"),
    ],
)
def test_a_wrong_switch_is_an_error_that_says_what_is_right(given: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text) as caught:
        SMTPServer(("127.0.0.1", 0), extensions=given)
    assert caught.value.name == "extensions"


def test_a_list_of_extensions_is_an_error_that_shows_a_mapping() -> None:
    given: Any = ["DSN"]
    with pytest.raises(TypeError, match=r"extensions takes a mapping, like \{'DSN': True, 'CHUNKING': False\}"):
        SMTPServer(("127.0.0.1", 0), extensions=given)


# Off


def test_without_chunking_a_chunk_is_refused_and_its_bytes_are_no_commands(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, extensions={"CHUNKING": False})
    bodies = collect_bodies(server)
    with dial(server) as peer:
        assert not {"CHUNKING", "BINARYMIME"} & keywords(offered(peer))
        peer.line("MAIL FROM:<a@example.org> BODY=BINARYMIME")
        peer.expect("555 5.5.4 Unsupported parameter: BODY=BINARYMIME")
        peer.envelope()
        peer.send("BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
        peer.expect("502 5.5.1", "250 2.0.0")
        assert peer.deliver("Subject: x\r\n").startswith("250")
    assert bodies == [b"Subject: x\r\n"]


def test_without_8bitmime_nothing_that_needs_it_is_offered(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, extensions={"8BITMIME": False})
    bodies = collect_bodies(server)
    with dial(server) as peer:
        assert not {"8BITMIME", "SMTPUTF8", "BINARYMIME"} & keywords(offered(peer))
        peer.line("MAIL FROM:<a@example.org> BODY=8BITMIME", "MAIL FROM:<a@example.org> SMTPUTF8")
        peer.expect("555 5.5.4", "555 5.5.4")
        assert peer.deliver(b"gr\xfc\xdfe\r\n").startswith("250")  # from clients that send it unasked
    assert bodies == [b"gr\xfc\xdfe\r\n"]


def test_without_smtputf8_addresses_and_lookups_are_ascii(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, extensions={"SMTPUTF8": False})) as peer:
        assert "SMTPUTF8" not in keywords(offered(peer))
        peer.converse("""
            C: MAIL FROM:<jos\u00e9@example.org> SMTPUTF8
            S: 555 5.5.4 Unsupported parameter: SMTPUTF8
            C: MAIL FROM:<jos\u00e9@example.org>
            S: 553 5.6.7
            C: VRFY jo SMTPUTF8
            S: 555 5.5.4 Unsupported parameter: SMTPUTF8
            C: VRFY jos\u00e9
            S: 553 5.6.7
        """)


def test_without_size_a_message_that_is_too_large_is_refused_at_its_end(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, extensions={"SIZE": False}, max_message_size=10)
    collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org> SIZE=5")
        peer.expect("555")
        assert peer.deliver("x" * 100).startswith("552")


def test_without_pipelining_a_client_that_pipelines_is_served(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, extensions={"PIPELINING": False})) as peer:
        assert "PIPELINING" not in keywords(offered(peer))
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250", "250")


def test_starttls_can_be_off_in_spite_of_a_certificate(smtp_server: MakeServer, certificate: Certificate) -> None:
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    with dial(smtp_server(start=False, extensions={"STARTTLS": False}, **files)) as peer:
        assert "STARTTLS" not in keywords(offered(peer))
        peer.line("STARTTLS", "NOOP")
        peer.expect("502 5.5.1", "250")


# What stands behind the keywords


@pytest.mark.parametrize(
    ("switches", "limits", "line"),
    [
        ({}, {"max_recipients": 7}, "LIMITS RCPTMAX=7"),
        ({}, {"max_recipients": 5_000_000}, "LIMITS RCPTMAX=999999"),
        ({"DELIVERBY": True}, {}, "DELIVERBY"),
        ({"DELIVERBY": 3600}, {}, "DELIVERBY 3600"),
        ({"MT-PRIORITY": True}, {}, "MT-PRIORITY"),
        ({"MT-PRIORITY": "MIXER"}, {}, "MT-PRIORITY MIXER"),
        ({"FUTURERELEASE": (60, "2030-01-31T13:00:00+01:00")}, {}, "FUTURERELEASE 60 2030-01-31T12:00:00Z"),
        ({"FUTURERELEASE": [60, datetime(2030, 1, 1, tzinfo=UTC)]}, {}, "FUTURERELEASE 60 2030-01-01T00:00:00Z"),
        ({"ETRN": True, "RRVS": True}, {}, "RRVS"),
    ],
)
def test_ehlo_has_the_value_behind_the_keyword(
    smtp_server: MakeServer, switches: Any, limits: dict[str, Any], line: str
) -> None:
    with dial(smtp_server(start=False, extensions=switches, **limits)) as peer:
        assert line in offered(peer)


def test_the_last_time_of_futurerelease_moves_with_the_clock(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        minute_now = 0

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2030, 1, 1, 12, cls.minute_now, 30, tzinfo=tz)

    monkeypatch.setattr(extensions, "datetime", Clock)
    for given in (3600, (3600, None)):
        server = smtp_server(start=False, extensions={"FUTURERELEASE": given})
        for minute in (0, 1):
            Clock.minute_now = minute
            with dial(server) as peer:
                assert f"FUTURERELEASE 3600 2030-01-01T13:0{minute}:00Z" in offered(peer)


def test_requiretls_is_offered_over_tls_alone(smtp_server: MakeServer, certificate: Certificate) -> None:
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    with dial(smtp_server(start=False, extensions={"REQUIRETLS": True}, **files)) as peer:
        assert "REQUIRETLS" not in keywords(offered(peer))
        peer.line("MAIL FROM:<a@example.org> REQUIRETLS", "STARTTLS")
        peer.expect("530 5.7.10", "220")
        peer.start_tls()
        peer.line("EHLO client.example")
        assert "REQUIRETLS" in peer.expect("250")
        peer.line("MAIL FROM:<a@example.org> REQUIRETLS")
        peer.expect("250")


# Options


ALL_ON = {
    "DSN": True,
    "MT-PRIORITY": True,
    "DELIVERBY": 60,
    "FUTURERELEASE": (3600, None),
    "RRVS": True,
    "REQUIRETLS": True,
}


@pytest.mark.parametrize("lmtp", [False, True])
def test_options_reach_handlers_typed(smtp_server: MakeServer, lmtp: bool) -> None:
    server = smtp_server(start=False, extensions=ALL_ON, lmtp=lmtp)
    seen: list[Any] = []

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        seen.append(address.mail_options)
        ack.accept()

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        seen.append(address.rcpt_options)
        ack.accept()

    with dial(server) as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        peer.line(
            "MAIL FROM:<a@example.org> SIZE=9 RET=HDRS ENVID=QQ+2B1 MT-PRIORITY=-3 BY=120;RT HOLDFOR=60 BODY=8BITMIME",
            "RCPT TO:<b@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;B+40example.com RRVS=2020-01-31T12:00:00Z;C",
        )
        peer.expect("250", "250")
    mail, rcpt = seen
    assert (mail.size, mail.ret, mail.envid, mail.priority, mail.hold_for) == (9, "HDRS", "QQ+1", -3, 60)
    assert mail.deliver_by == DeliverBy(120, "R", trace=True)
    assert rcpt.notify == {"SUCCESS", "FAILURE"}
    assert rcpt.orcpt == OriginalRecipient("rfc822", "B@example.com")
    assert rcpt.valid_since == ValidSince(datetime(2020, 1, 31, 12, tzinfo=UTC), "C")


@pytest.mark.parametrize(
    ("parameters", "reply"),
    [
        ("RET=ALL", "501 5.5.4 RET takes FULL or HDRS"),
        ("ENVID=+", "501 5.5.4 ENVID"),
        (f"ENVID={'x' * 100}", "250"),
        (f"ENVID={'x' * 101}", "501 5.5.4 ENVID"),
        ("MT-PRIORITY=10", "501 5.5.4 MT-PRIORITY takes a number from -9 to 9"),
        ("BY=60;R", "250"),
        ("BY=59;R", "555 5.5.4"),
        ("BY=59;N", "250"),
        ("BY=0;R", "501 5.5.4 BY"),
        ("BY=soon", "501 5.5.4 BY"),
        ("HOLDFOR=3600", "250"),
        ("HOLDFOR=3601", "501 5.5.4 HOLDFOR or HOLDUNTIL"),
        ("HOLDFOR=0", "501 5.5.4 HOLDFOR"),
        ("HOLDUNTIL=2000-01-01T00:00:00Z", "250"),
        ("HOLDUNTIL=2999-01-01T00:00:00Z", "501 5.5.4 HOLDFOR or HOLDUNTIL"),
        ("HOLDFOR=1 HOLDUNTIL=2000-01-01T00:00:00Z", "501 5.5.4 HOLDFOR and HOLDUNTIL exclude each other"),
        ("REQUIRETLS", "530 5.7.10"),
        ("REQUIRETLS=1", "530 5.7.10"),
    ],
)
def test_options_of_mail_are_checked(smtp_server: MakeServer, parameters: str, reply: str) -> None:
    with dial(smtp_server(start=False, extensions=ALL_ON)) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<a@example.org> {parameters}", "RSET", "MAIL FROM:<a@example.org>")
        peer.expect(reply, "250", "250")


@pytest.mark.parametrize(
    ("parameters", "reply"),
    [
        ("NOTIFY=NEVER", "250"),
        ("NOTIFY=NEVER,DELAY", "501 5.5.4 NOTIFY"),
        ("NOTIFY", "501 5.5.4 NOTIFY"),
        ("ORCPT=jo@example.com", "501 5.5.4 ORCPT"),
        (f"ORCPT=rfc822;{'x' * 493}", "250"),
        (f"ORCPT=rfc822;{'x' * 494}", "501 5.5.4 ORCPT"),
        ("RRVS=2020-01-31", "501 5.5.4 RRVS"),
        ("RET=FULL", "555 5.5.4"),
    ],
)
def test_options_of_rcpt_are_checked(smtp_server: MakeServer, parameters: str, reply: str) -> None:
    with dial(smtp_server(start=False, extensions=ALL_ON)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", f"RCPT TO:<b@example.com> {parameters}", "RCPT TO:<c@example.com>")
        peer.expect("250", reply, "250")


def test_the_lines_of_dsn_may_be_as_long_as_its_rfc_says(smtp_server: MakeServer) -> None:
    """RFC 3461 section 5.2.9; without DSN a line has 512 bytes (RFC 5321 section 4.5.3.1.4)."""
    path = f"RCPT TO:<{'x' * 64}@{'.'.join(['y' * 60] * 2)}.example>"
    line = f"{path} NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;{'z' * 493}"
    for switch, reply in ((True, "250"), (False, "500")):
        with dial(smtp_server(start=False, extensions={"DSN": switch})) as peer:
            peer.hello()
            peer.line("MAIL FROM:<a@example.org>", line)
            peer.expect("250", reply)


# AUTH= (RFC 4954 section 5)


@pytest.mark.parametrize("verb", ["EHLO", "HELO", "LHLO"])
@pytest.mark.parametrize("value", ["<>", "", "jo@example.com", "jo", "jo+40example.com"])
def test_auth_of_mail_is_taken_without_auth_and_means_nobody(smtp_server: MakeServer, verb: str, value: str) -> None:
    server = smtp_server(start=False, lmtp=verb == "LHLO")
    seen: list[Any] = []

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        seen.append((address.mail_options.auth, address.parameters["AUTH"]))
        ack.accept()

    with dial(server) as peer:
        peer.hello(verb=verb)
        peer.line(f"MAIL FROM:<a@example.org> AUTH={value}".removesuffix("="))
        peer.expect("250")
    assert seen == [("", "<>")]


# session.extensions


def test_the_session_has_what_its_client_was_offered(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(
        start=False,
        extensions={"DSN": True, "CHUNKING": False},
        middleware=[Auth({"beep": "boop"})],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
    )
    sessions: list[Session] = []

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    usual = {"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "LIMITS", "DSN"}
    with dial(server) as peer:
        peer.expect("220")
        (session,) = sessions
        assert session.extensions == frozenset()
        peer.line("EHLO client.example")
        reply = peer.expect("250")
        assert session.extensions == {line[4:].split()[0] for line in reply.split("\n")[1:]}
        assert session.extensions == usual | {"STARTTLS"} | ({"AUTH"} if "AUTH" in reply else set())
        peer.line("EHLO")  # malformed: the one before is in force
        peer.expect("501")
        assert "DSN" in session.extensions
        peer.line("HELO client.example")
        peer.expect("250")
        assert session.extensions == frozenset()
        peer.line("EHLO client.example", "STARTTLS")
        peer.expect("250", "220")
        peer.start_tls()
        peer.line("NOOP")
        peer.expect("250")
        assert session.extensions == frozenset()
        peer.line("EHLO client.example")
        peer.expect("250")
        assert session.extensions == usual | {"AUTH"}


# A new EHLO, and QUIT, in a transaction


@pytest.mark.parametrize("verb", ["EHLO", "HELO", "LHLO"])
def test_a_repeated_greeting_ends_the_transaction_and_keeps_tls_and_identity(
    smtp_server: MakeServer, certificate: Certificate, verb: str
) -> None:
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    lmtp = verb == "LHLO"
    server = smtp_server(start=False, middleware=[Auth({"beep": "boop"})], lmtp=lmtp, **files)
    first = "LHLO" if lmtp else "EHLO"
    sessions: list[Session] = []

    @server.on("from")
    def note(session: Session, address: Address, ack: Ack) -> None:
        sessions.append(session)
        session.transaction_notes["seen"] = True
        ack.accept()

    with dial(server) as peer:
        peer.hello(verb=first)
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line(f"{first} client.example", auth_plain("beep", "boop"))
        peer.expect("250", "235")
        peer.envelope()
        peer.line(f"{verb} other.example")
        peer.expect("250")
        (session,) = sessions
        assert (session.from_, session.to, session.hostname) == (None, [], "other.example")
        assert "seen" not in session.transaction_notes
        assert session.tls
        assert session.identity is not None
        peer.line("DATA", "RCPT TO:<b@example.com>")
        peer.expect("503", "503")
        peer.envelope()


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_quit_in_a_transaction_drops_it(
    smtp_server: MakeServer, certificate: Certificate, lmtp: bool, tls: bool
) -> None:
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile, "implicit_tls": True} if tls else {}
    server = smtp_server(start=False, lmtp=lmtp, **files)
    messages: list[Session] = []
    left: list[Any] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        messages.append(session)
        ack.accept()

    server.on("disconnect", lambda session, reason: left.append((reason, session.from_, session.to)))
    with dial(server) as peer:
        if tls:
            peer.start_tls()
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        peer.envelope()
        peer.line("QUIT", "DATA", "not a message", ".")
        peer.expect("221 2.0.0")
        peer.expect_end()
    assert messages == []
    assert left == [("quit", None, [])]
