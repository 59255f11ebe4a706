"""AUTH (RFC 4954): refusals, mechanisms, when they are offered, and the session's identity."""

from __future__ import annotations

import hmac
import re
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep
from gevent import ssl as gevent_ssl

from greensmtp import Reject, in_thread_pool
from greensmtp.middleware import Auth, Logging
from greensmtp.middleware.auth.credentials import Credentials
from greensmtp.testing import Peer, dial
from tests.helpers import b64

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate

USERS = {"jo": "sesame", "ann": "pa=ss,wörd"}
PLAIN_JO = b64encode(b"\0jo\0sesame").decode()
PLAIN_WRONG = b64encode(b"\0jo\0wrong").decode()


def ignore(value: object) -> None:
    """Drop a value, so that a lambda with it returns no decision."""


def offered(hello: str) -> list[str]:
    """Return the mechanisms in a reply to EHLO."""
    found = re.search(r"^250[ -]AUTH (.+)$", hello, re.MULTILINE)
    return found[1].split() if found else []


@pytest.fixture
def peer_of(smtp_server: MakeServer) -> Iterator[Callable[..., Peer]]:
    """Return a peer that has said EHLO to a server with this Auth."""
    peers: list[Peer] = []

    def make(auth: Auth, *, ehlo: bool = True, **options: Any) -> Peer:
        peer = dial(smtp_server(start=False, middleware=[auth], **options), source=("192.0.2.1", 4711))
        peers.append(peer)
        if ehlo:
            peer.hello()
        return peer

    yield make
    for peer in peers:
        peer.close()


def keeping(seen: list[Any], what: Callable[..., Any]) -> Callable[..., None]:
    """Return a handler that accepts, and keeps something."""

    def handler(session: Any, ack: Any, **fields: Any) -> None:
        seen.append(what(session, **fields))
        ack.accept()

    return handler


def in_the_clear(backend: Any = USERS, **options: Any) -> Auth:
    return Auth(backend, allow_plaintext=True, **options)


def tls_peer(smtp_server: MakeServer, certificate: Certificate, auth: Auth, **options: Any) -> Peer:
    """Return a peer that has said EHLO to a server with implicit TLS."""
    server = smtp_server(
        start=False,
        middleware=[auth],
        implicit_tls=True,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        **options,
    )
    peer = dial(server, source=("192.0.2.1", 4711))
    peer.start_tls()
    return peer


# The offer


def test_what_a_mapping_can_do_is_offered_but_no_passwords_in_the_clear(peer_of: Any) -> None:
    peer = peer_of(Auth(USERS), ehlo=False)
    assert offered(peer.hello()) == ["SCRAM-SHA-256", "CRAM-MD5"]


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_everything_is_offered_in_tls(smtp_server: MakeServer, certificate: Certificate, version: str) -> None:
    """Except -PLUS in TLS 1.3, where clients cannot use it."""
    auth = Auth(USERS, check_token=lambda credentials: False)
    server = smtp_server(
        start=False,
        middleware=[auth],
        implicit_tls=True,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
    )
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion[version]
    with dial(server) as peer:
        peer.start_tls(context)
        assert offered(peer.hello()) == [
            *(["SCRAM-SHA-256-PLUS"] if version == "TLSv1_2" else []),
            "SCRAM-SHA-256",
            "CRAM-MD5",
            "OAUTHBEARER",
            "XOAUTH2",
            "PLAIN",
            "LOGIN",
        ]


def test_a_callable_is_for_passwords_only(peer_of: Any) -> None:
    peer = peer_of(in_the_clear(lambda credentials: True), ehlo=False)
    assert offered(peer.hello()) == ["PLAIN", "LOGIN"]


def test_no_line_without_a_mechanism(peer_of: Any) -> None:
    with peer_of(Auth(lambda credentials: True), ehlo=False) as peer:
        assert "AUTH" not in peer.hello()


def test_offered_again_until_it_has_been_used(peer_of: Any) -> None:
    with peer_of(in_the_clear(mechanisms=["PLAIN"])) as peer:
        peer.line("EHLO again")
        assert offered(peer.expect("250")) == ["PLAIN"]
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235 2.7.0")
        peer.line("EHLO again")
        assert offered(peer.expect("250")) == []


def test_helo_offers_nothing(peer_of: Any) -> None:
    with peer_of(in_the_clear(), ehlo=False) as peer:
        assert "AUTH" not in peer.hello(verb="HELO")


def test_lmtp(peer_of: Any) -> None:
    with peer_of(in_the_clear(), ehlo=False, lmtp=True) as peer:
        assert "PLAIN" in offered(peer.hello(verb="LHLO"))
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235")


# The refusals


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("AUTH", "501 5.5.4"),
        ("AUTH PLAIN x y", "501 5.5.4"),
        ("AUTH GSSAPI", "504 5.5.4"),
        ("AUTH X\u0131", "504 5.5.4"),
        ("AUTH PLAIN !!!", "501 5.5.2"),
        ("AUTH PLAIN A", "501 5.5.2"),
        ("AUTH PLAIN AA==AA==", "501 5.5.2"),
        (f"AUTH PLAIN {PLAIN_JO}=", "501 5.5.2"),
        ("AUTH PLAIN \u00fc", "501 5.5.2"),
        ("AUTH PLAIN =", "501 5.5.2"),
        (f"AUTH PLAIN {b64('jo sesame')}", "501 5.5.2"),
        (f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0) + 'sesame' + chr(0))}", "501 5.5.2"),
        (f"AUTH PLAIN {b64(bytes([0, 255, 0, 65]))}", "501 5.5.2"),
        (f"AUTH PLAIN {b64(chr(0) + 'j' * 256 + chr(0) + 'sesame')}", "501 5.5.2"),
        (f"AUTH PLAIN {b64(chr(0) + 'j' + chr(10) + chr(0) + 'sesame')}", "501 5.5.2"),
        (f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0))}", "535 5.7.8"),
        (f"AUTH PLAIN {b64(chr(0) + chr(0) + 'sesame')}", "535 5.7.8"),
        (f"AUTH PLAIN {PLAIN_WRONG}", "535 5.7.8"),
        (f"AUTH PLAIN {b64(chr(0) + 'nobody' + chr(0) + 'sesame')}", "535 5.7.8"),
        (f"AUTH PLAIN {b64('ann' + chr(0) + 'jo' + chr(0) + 'sesame')}", "535 5.7.8"),
        (f"AUTH CRAM-MD5 {b64('jo')}", "501 5.7.0"),
        (f"AUTH CRAM-MD5 {'A' * 13_000}", "500 5.5.6"),
        (f"AUTH SCRAM-SHA-256 {b64('n,,n=jo')}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('x,,n=jo,r=abc')}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('n,,n=j=2o,r=abc')}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('n,,n=jo,r=' + 'a' * 129)}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('n,,m=1,n=jo,r=abc')}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('n,a=,n=jo,r=abc')}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('n,a=' + 'a' * 256 + ',n=jo,r=abc')}", "501 5.5.2"),
        (f"AUTH SCRAM-SHA-256 {b64('p=tls-unique,,n=jo,r=abc')}", "535 5.7.8"),
        ("AUTH SCRAM-SHA-256-PLUS", "504 5.5.4"),
        (f"AUTH XOAUTH2 {b64('user=jo')}", "501 5.5.2"),
        (f"AUTH OAUTHBEARER {b64('n,a=jo')}", "501 5.5.2"),
    ],
)
def test_refused(peer_of: Any, line: str, reply: str) -> None:
    """The session goes on, and the next attempt succeeds."""
    with peer_of(in_the_clear(check_token=lambda credentials: True)) as peer:
        peer.line(line)
        peer.expect(reply)
        peer.line(f"auth plain {PLAIN_JO}")
        peer.expect("235 2.7.0 Authentication succeeded")


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("*", "501 5.7.0"),
        ("=", "501 5.5.2"),
        ("**", "501 5.5.2"),
        ("!", "501 5.5.2"),
        (" " + PLAIN_JO, "501 5.5.2"),
        ("", "501 5.5.2"),
        ("A" * 12_300, "500 5.5.6"),
        ("A\nB", "500 5.5.2"),
        ("\u00fc", "501 5.5.2"),
        ("\0", "501 5.5.2"),
        (PLAIN_WRONG, "535 5.7.8"),
    ],
)
def test_an_answer_that_is_refused(peer_of: Any, answer: str, reply: str) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line("AUTH PLAIN")
        peer.expect("334")
        peer.line(answer)
        peer.expect(reply)
        peer.line("NOOP")
        peer.expect("250")


def test_another_protocol_in_place_of_an_answer(peer_of: Any) -> None:
    with peer_of(in_the_clear(), max_auth_line_length=64) as peer:
        peer.line("AUTH PLAIN")
        peer.expect("334")
        peer.line(f"GET /{'x' * 100} HTTP/1.1")
        peer.expect("421")
        peer.expect_end()


def test_before_ehlo_and_after_helo(peer_of: Any) -> None:
    with peer_of(in_the_clear(), ehlo=False) as peer:
        peer.expect("220")
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "HELO x", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("503 5.5.1", "250", "503 5.5.1")


def test_within_a_transaction(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line("MAIL FROM:<a@example.com>", f"AUTH PLAIN {PLAIN_JO}", "RSET", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("250", "503 5.5.1", "250", "235")


def test_twice(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}", f"AUTH PLAIN {PLAIN_JO}", "RSET", "EHLO x", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235", "503 5.5.1", "250", "250", "503 5.5.1")


def test_passwords_in_the_clear(peer_of: Any) -> None:
    auth = Auth(USERS, check_token=lambda credentials: True)
    with peer_of(auth) as peer:
        for mechanism in ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"):
            peer.line(f"AUTH {mechanism} {PLAIN_JO}")
            peer.expect("538 5.7.11")


def test_what_was_left_out_for_being_weak(peer_of: Any) -> None:
    with peer_of(Auth(USERS, ["scram-sha-256"])) as peer:
        peer.line("AUTH CRAM-MD5", f"AUTH PLAIN {PLAIN_JO}", "AUTH SCRAM-SHA-256-PLUS")
        peer.expect("534 5.7.9", "534 5.7.9", "504 5.5.4")


def test_errors_end_the_session(peer_of: Any) -> None:
    with peer_of(in_the_clear(), max_errors=2) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_WRONG}", f"AUTH PLAIN {PLAIN_WRONG}")
        peer.expect("535", "535", "421 4.7.0")
        peer.expect_end()


# required


@pytest.mark.parametrize(
    "command",
    [
        *("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", "VRFY jo", "EXPN jo", "HELP", "ETRN x"),
        *("BURL x", "SEND FROM:<a@example.com>", "SOML FROM:<a@example.com>", "SAML FROM:<a@example.com>"),
        *("ATRN", "TURN"),
    ],
)
def test_required(peer_of: Any, command: str) -> None:
    with peer_of(in_the_clear(required=True)) as peer:
        peer.line(command)
        peer.expect("530 5.7.0 Authentication required")
        peer.line("NOOP", "RSET", "EHLO x", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("250", "250", "250", "235")
        peer.line("MAIL FROM:<a@example.com>", "QUIT")
        peer.expect("250", "221")


def test_required_and_a_chunk(peer_of: Any) -> None:
    """The bytes of the chunk are not read as commands."""
    with peer_of(in_the_clear(required=True)) as peer:
        peer.send(b"BDAT 6 LAST\r\nRSET\r\nNOOP\r\n")
        peer.expect("530 5.7.0", "250 2.0.0 Ok")
        peer.expect_nothing()


def test_required_before_tls(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(
        middleware=[Auth(USERS, ["PLAIN"], required=True)],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
    )
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("530 5.7.0 *STARTTLS")
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO x", "MAIL FROM:<a@example.com>", f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<a@example.com>")
        peer.expect("250", "530 5.7.0 Authentication required", "235", "250")


# The identity


def test_it_is_kept_over_rset_and_ehlo_and_gone_after_starttls(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
    sessions: list[Any] = []
    server = smtp_server(
        middleware=[in_the_clear()], certfile=certificate.certfile, keyfile=certificate.keyfile, start=True
    )
    server.on("from", keeping(sessions, lambda session, address: session.identity))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>", "RSET", "MAIL FROM:<>", "EHLO x", "MAIL FROM:<>", "RSET")
        peer.expect("235", "250", "250", "250", "250", "250", "250")
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO x", "MAIL FROM:<>")
        assert "PLAIN" in offered(peer.expect("250"))
        peer.expect("250")
        peer.line("RSET", f"AUTH PLAIN {b64('ann' + chr(0) + 'ann' + chr(0) + USERS['ann'])}", "MAIL FROM:<>")
        peer.expect("250", "235", "250")
    assert [str(identity) for identity in sessions] == ["jo", "jo", "jo", "None", "ann"]
    first, last = sessions[0], sessions[-1]
    assert (first.authcid, first.authzid, first.mechanism) == ("jo", "", "PLAIN")
    assert (last.authcid, last.authzid) == ("ann", "ann")
    with pytest.raises(AttributeError):
        first.authcid = "root"


def test_esmtpa(peer_of: Any, smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: session.protocol))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RSET", f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>")
        peer.expect("250", "250", "235", "250")
    assert seen == ["ESMTP", "ESMTPA"]


@pytest.mark.parametrize(
    ("handler", "reply", "known"),
    [
        (lambda session, identity, ack: ack.accept(), "235 2.7.0", True),
        (lambda session, identity, ack: ack.accept(235, "2.7.0 Hello"), "235 2.7.0 Hello", True),
        (lambda session, identity, ack: ack.reject(), "535 5.7.8", False),
        (lambda session, identity, ack: ack.reject(534, "5.7.9 use SCRAM"), "534 5.7.9 use SCRAM", False),
        (lambda session, identity, ack: None, "451", False),
        (lambda session, identity, ack: 1 / 0, "451", False),
    ],
)
def test_the_signal_has_the_last_word(
    smtp_server: MakeServer, handler: Any, reply: str, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(middleware=[in_the_clear(required=True)], start=False)
    server.on("auth", handler)
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>")
        peer.expect(reply, "250" if known else "530")
    assert "sesame" not in caplog.text


def test_the_signal_is_not_asked_about_wrong_credentials(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    server.on("auth", lambda session, identity, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_WRONG}")
        peer.expect("535")


def test_a_late_ack(smtp_server: MakeServer) -> None:
    from gevent import spawn

    server = smtp_server(middleware=[in_the_clear()], start=False)
    server.on("auth", lambda session, identity, ack: ignore(spawn(ack.reject, 454, "4.7.0 later")))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 later")


def test_the_command_signal_is_emitted_for_auth_and_may_decide(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    heard = []

    @server.on("command")
    def closed_at_night(session: Any, command: Any, ack: Any) -> None:
        heard.append(repr(command))
        if command.verb == "AUTH" and len(heard) == 2:
            ack.reject(454, "4.7.0 closed at night")

    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 closed at night", "235")
    assert heard == ["<HelloCommand 'EHLO client.example'>", "<Command 'AUTH ***'>", "<Command 'AUTH ***'>"]


def test_authorize(peer_of: Any) -> None:
    asked = []

    def authorize(identity: Any, session: Any) -> bool:
        asked.append((identity.authcid, identity.authzid))
        return bool(identity.authzid == "office")

    as_office = b64("office\0jo\0sesame")
    with peer_of(in_the_clear(authorize=authorize)) as peer:
        peer.line(f"AUTH PLAIN {b64('boss' + chr(0) + 'jo' + chr(0) + 'sesame')}", f"AUTH PLAIN {as_office}")
        peer.expect("535 5.7.8", "235")
    assert asked == [("jo", "boss"), ("jo", "office")]
    with peer_of(in_the_clear(authorize=lambda identity, session: 1)) as peer:  # which is not True
        peer.line(f"AUTH PLAIN {as_office}")
        peer.expect("535 5.7.8")
    with peer_of(in_the_clear(authorize=lambda identity, session: 1 / 0)) as peer:
        peer.line(f"AUTH PLAIN {as_office}")
        peer.expect("454 4.7.0")


def test_an_authzid_equal_to_the_name_needs_no_authorization(peer_of: Any) -> None:
    with peer_of(in_the_clear(lambda credentials: f"{credentials.username}@example.com")) as peer:
        peer.line(f"AUTH PLAIN {b64('ann' + chr(0) + 'jo' + chr(0) + 'sesame')}")
        peer.expect("535 5.7.8")
        peer.line(f"AUTH PLAIN {b64('jo' + chr(0) + 'jo' + chr(0) + 'sesame')}")
        peer.expect("235")


# AUTH= of MAIL


@pytest.mark.parametrize(
    ("value", "known", "stranger"),
    [
        ("<>", "<>", "<>"),
        ("e+3Dmc2@example.com", "e=mc2@example.com", "<>"),
        ("jo@example.com", "jo@example.com", "<>"),
    ],
)
def test_the_submitter(smtp_server: MakeServer, value: str, known: str, stranger: str) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: address.parameters["AUTH"]))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<a@example.com> AUTH={value} SIZE=9", "RSET", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("250", "250", "235")
        peer.line(f"MAIL FROM:<a@example.com> SIZE=9 AUTH={value}")
        peer.expect("250")
    assert seen == [stranger, known]


@pytest.mark.parametrize("value", ["", "=+3", "=+zz", "=jo", "=jo+40", "=+FF@x", "=jo+0Ax@example.com", "=beep"])
@pytest.mark.parametrize("stack", [(), (in_the_clear,)], ids=["without Auth", "with Auth"])
def test_a_submitter_that_is_not_a_mailbox_is_null(smtp_server: MakeServer, stack: Any, value: str) -> None:
    """Dovecot's submission service sends the user's login name."""
    server = smtp_server(middleware=[each() for each in stack], start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: address.parameters["AUTH"]))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<a@example.com> AUTH{value}", "RSET")
        peer.expect("250", "250")
        if stack:
            peer.line(f"AUTH PLAIN {PLAIN_JO}", f"MAIL FROM:<a@example.com> AUTH{value}")
            peer.expect("235", "250")
    assert set(seen) == {"<>"}


@pytest.mark.parametrize("value", ["=", "=a=b"])
def test_a_submitter_that_is_no_parameter_is_refused(peer_of: Any, value: str) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line(f"MAIL FROM:<a@example.com> AUTH{value}")
        peer.expect("501 5.5.4")


def test_a_submitter_is_null_without_auth(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: dict(address.parameters)))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com> AUTH=<>", "RSET", "MAIL FROM:<a@example.com> SIZE=9 AUTH=jo@example.com")
        peer.expect("250", "250", "250")
    assert seen == [{"AUTH": "<>"}, {"SIZE": "9", "AUTH": "<>"}]


def test_the_submitter_has_its_room_on_the_line(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line(f"MAIL FROM:<a@example.com> AUTH=jo@{'.'.join(['x' * 60] * 4)}{' ' * 300}")
        peer.expect("250")


# The mechanisms


def test_login(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.converse(f"""
            C: AUTH LOGIN
            S: 334 {b64("Username:")}
            C: {b64("jo")}
            S: 334 {b64("Password:")}
            C: {b64("wrong")}
            S: 535 5.7.8
            C: AUTH LOGIN {b64("jo")}
            S: 334 {b64("Password:")}
            C: *
            S: 501 5.7.0
            C: AUTH LOGIN {b64("jo")}
            S: 334 {b64("Password:")}
            C: {b64("ses" + chr(0) + "ame")}
            S: 501 5.5.2
            C: AUTH LOGIN =
            S: 535 5.7.8
            C: AUTH LOGIN {b64("jo")}
            S: 334 {b64("Password:")}
            C: {b64("sesame")}
            S: 235 2.7.0
        """)


def cram(challenge: str, name: str, password: str) -> str:
    digest = hmac.new(password.encode(), b64decode(challenge.split()[1]), "md5").hexdigest()
    return b64(f"{name} {digest}")


def test_cram_md5(peer_of: Any) -> None:
    challenges = set()
    with peer_of(Auth({**USERS, "to m": "tim", "empty": ""})) as peer:
        for name, password, reply in [
            ("jo", "wrong", "535 5.7.8"),
            ("nobody", "", "535 5.7.8"),
            ("empty", "", "535 5.7.8"),
            ("to m", "tim", "235 2.7.0"),
        ]:
            peer.line("AUTH CRAM-MD5")
            challenge = peer.expect("334")
            challenges.add(challenge)
            assert re.fullmatch(rb"<[0-9a-f]{32}@mx\.example\.com>", b64decode(challenge.split()[1]))
            peer.line(cram(challenge, name, password))
            peer.expect(reply)
    assert len(challenges) == 4


def test_cram_md5_needs_a_digest(peer_of: Any) -> None:
    with peer_of(Auth(USERS)) as peer:
        peer.line("AUTH CRAM-MD5")
        peer.expect("334")
        peer.line(b64("jo sesame"))
        peer.expect("501 5.5.2")


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        ("XOAUTH2", "user={name}\x01auth=Bearer {token}\x01\x01"),
        ("OAUTHBEARER", "n,a={name},\x01host=mx.example.com\x01port=25\x01auth=Bearer {token}\x01\x01"),
        ("OAUTHBEARER", "y,a={name},\x01auth=bearer  {token}\x01\x01"),
    ],
)
def test_tokens(peer_of: Any, mechanism: str, response: str) -> None:
    seen: list[Credentials] = []

    def check(credentials: Credentials) -> bool:
        seen.append(credentials)
        return credentials.token == "t0k~en=="

    with peer_of(in_the_clear(check_token=check)) as peer:
        peer.line(f"AUTH {mechanism} {b64(response.format(name='jo', token='expired'))}")
        error = b64decode(peer.expect("334").split()[1])
        assert b'"status": "invalid_token"' in error
        peer.line("" if mechanism == "XOAUTH2" else "AQ==")
        peer.expect("535 5.7.8")
        peer.line(f"AUTH {mechanism} {b64(response.format(name='jo', token=''))}")
        peer.expect("334")
        peer.line("*")
        peer.expect("501 5.7.0")
        peer.line(f"AUTH {mechanism}")
        peer.expect("334")
        peer.line(b64(response.format(name="jo", token="t0k~en==")))
        peer.expect("235 2.7.0")
    assert [(one.username, one.token, one.password) for one in seen] == [
        ("jo", "expired", None),
        ("jo", "t0k~en==", None),
    ]
    identity = seen[0].session.identity
    assert identity is not None
    assert identity.mechanism == mechanism
    assert "t0k" not in repr(seen)


def test_a_token_check_may_return_the_name(peer_of: Any) -> None:
    def token(response: str) -> str:
        return f"AUTH OAUTHBEARER {b64(response + chr(1) + 'auth=Bearer tok' + chr(1) * 2)}"

    with peer_of(in_the_clear(check_token=lambda credentials: "jo")) as peer:
        peer.line(token("n,a=ann,"))  # jo's token, to act as ann
        peer.expect("535 5.7.8")
        peer.line(token("n,,"))
        peer.expect("235")
    with peer_of(in_the_clear(check_token=lambda credentials: True)) as peer:
        peer.line(token("n,,"))  # True is no name
        peer.expect("454 4.7.0")


# A callable


def test_a_callable(peer_of: Any) -> None:
    seen: list[Credentials] = []

    def check(credentials: Credentials) -> bool | str:
        seen.append(credentials)
        return credentials.password == "sesame" and f"{credentials.username}@example.com"

    with peer_of(in_the_clear(check)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_WRONG}", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("535", "235")
    one = seen[1]
    assert (one.username, one.password, one.token, one.mechanism, one.authzid) == ("jo", "sesame", None, "PLAIN", "")
    assert str(one.session.identity) == "jo@example.com"
    assert "sesame" not in repr(one)


@pytest.mark.parametrize("name", ["", "jo"])
def test_empty_credentials_are_refused_without_asking_the_backend(peer_of: Any, name: str) -> None:
    """Some directories treat an empty password as an anonymous login, which succeeds."""
    with peer_of(in_the_clear(lambda credentials: True)) as peer:
        peer.line(f"AUTH PLAIN {b64(chr(0) + name + chr(0))}")
        peer.expect("535 5.7.8")
        peer.line("AUTH LOGIN")
        peer.expect("334")
        peer.line(b64(name))
        if name:
            peer.expect("334")
            peer.line("")
        peer.expect("535 5.7.8")


@pytest.mark.parametrize("answer", [None, False, ""])
def test_no_is_no(peer_of: Any, answer: Any) -> None:
    with peer_of(in_the_clear(lambda credentials: answer)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("535")


@pytest.mark.parametrize("answer", [1, [0], object(), b"jo"])
def test_anything_but_a_clear_answer_is_no_yes(peer_of: Any, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with peer_of(in_the_clear(lambda credentials: answer)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0")
    assert "raised TypeError" in caplog.text


def test_a_callable_that_raises(peer_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    def check(credentials: Credentials) -> bool:
        raise KeyError(credentials.password)

    with peer_of(in_the_clear(check)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 Temporary")
    assert "raised KeyError" in caplog.text
    assert "in check" in caplog.text  # where it was
    assert "'sesame'" not in caplog.text


def test_a_callable_that_raises_in_the_thread_pool(
    peer_of: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def check(credentials: Credentials) -> bool:
        raise KeyError(credentials.password)

    with peer_of(in_the_clear(lambda credentials: in_thread_pool(check, credentials))) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 Temporary")
    assert "raised KeyError" in caplog.text
    assert "'sesame'" not in caplog.text
    assert capfd.readouterr().err == ""


def test_a_callable_that_rejects(peer_of: Any) -> None:
    def check(credentials: Credentials) -> bool:
        raise Reject(432, "4.7.12 a password transition is needed")

    with peer_of(in_the_clear(check)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("432 4.7.12 a password transition is needed")


def test_a_callable_that_takes_too_long(peer_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    with peer_of(in_the_clear(lambda credentials: sleep(30), timeout=0.01)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0")
    assert "no answer within 0.01 s" in caplog.text


def test_the_stand_in_password_is_refused(peer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown users are checked against a random password."""
    monkeypatch.setattr("greensmtp.middleware.auth.resolver.token_urlsafe", lambda octets: "guessed")
    with peer_of(in_the_clear()) as peer:
        peer.line(f"AUTH PLAIN {b64(chr(0) + 'nobody' + chr(0) + 'guessed')}")
        peer.expect("535 5.7.8")


# Secrets


def test_no_secret_in_any_log(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)

    class Faulty:
        def __call__(self, session: Any, command: Any, proceed: Any) -> Any:
            reply = proceed(session, command)
            if command.verb == "AUTH":
                raise RuntimeError("after all that")
            return reply

    auth = Auth(USERS, allow_plaintext=True, failures_by_client=None)
    server = smtp_server(middleware=[Logging(), Faulty(), auth], start=False, max_errors=100)
    server.on("auth", lambda session, identity, ack: ignore(1 / 0))
    secrets = {"sesame", "wrong", PLAIN_JO, PLAIN_WRONG, b64("sesame"), "hunter2", b64("hunter2")}
    with dial(server) as peer:
        peer.hello()
        for line in (f"AUTH PLAIN {PLAIN_JO}", f"AUTH PLAIN {PLAIN_WRONG}", f"AUTH PLAIN  {PLAIN_JO} hunter2"):
            peer.line(line)
            peer.expect("451")
        peer.line(f"AUTH LOGIN {b64('jo')}")
        peer.expect("334")
        peer.line(b64("hunter2"))
        peer.expect("451")
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
    assert "AUTH ***" in caplog.text
    logged = caplog.text + repr([record.__dict__ for record in caplog.records])
    assert not [secret for secret in secrets if secret in logged]


def test_reprs() -> None:
    class LDAP:
        def check_password(self, credentials: Credentials) -> bool:
            return False

        def __repr__(self) -> str:
            return "LDAP(bind_password='hunter2')"

    assert repr(Auth(USERS, required=True)) == "Auth(<2 users>, required=True)"
    assert repr(Auth(LDAP())) == "Auth(LDAP)"
    assert repr(Auth(lambda credentials: True, allow_plaintext=True)).endswith("<lambda>, allow_plaintext=True)")


# Arguments


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda auth: auth(None), TypeError, "not a NoneType"),
        (lambda auth: auth(dict), TypeError, "not a dict"),
        (lambda auth: auth({"jo": b"sesame"}), TypeError, "user 'jo' does not"),
        (lambda auth: auth("jo:sesame"), ValueError, "htpasswd:"),
        (lambda auth: auth("htpasswd:"), ValueError, "dovecot:"),
        (lambda auth: auth("htpasswd:/nowhere/at/all"), ValueError, "cannot read"),
        (lambda auth: auth(lambda: True), TypeError, r"\(credentials\) -> bool"),
        (lambda auth: auth({}, "PLAIN"), TypeError, r"\['PLAIN', 'LOGIN'\]"),
        (lambda auth: auth({}, ["PLANE"]), ValueError, "did you mean 'PLAIN'"),
        (lambda auth: auth({}, []), ValueError, "no mechanism is left"),
        (lambda auth: auth({}, ["XOAUTH2"]), ValueError, "needs check_token"),
        (lambda auth: auth(lambda credentials: True, ["CRAM-MD5"]), ValueError, "needs the passwords themselves"),
        (lambda auth: auth({}, timeout=0), ValueError, "timeout takes"),
        (lambda auth: auth({}, timeout=True), ValueError, "timeout takes"),
        (lambda auth: auth({}, timeout=float("inf")), ValueError, "timeout takes"),
        (lambda auth: auth({}, required="no"), TypeError, "required takes True or False"),
        (lambda auth: auth({}, allow_plaintext=1), TypeError, "allow_plaintext takes True or False"),
        (lambda auth: auth({}, authorize="all"), TypeError, "authorize must be a callable"),
        (lambda auth: auth({}, check_token="all"), TypeError, "a check must be a callable"),
        (lambda auth: auth({}, failures_by_client="many"), ValueError, "failures_by_client takes"),
        (lambda auth: auth({}, failures_by_account="0/minute"), ValueError, "failures_by_account takes"),
    ],
)
def test_arguments(make: Callable[[Any], Auth], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        make(Auth)
    assert "sesame" not in str(caught.value)


# Cut anywhere


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
def test_cut_at_every_octet(smtp_server: MakeServer, mechanism: str) -> None:
    """A client's bytes mean the same in two pieces, also if they are pipelined after AUTH."""
    bearer = "auth=Bearer t\x01\x01"
    said = {
        "PLAIN": f"AUTH PLAIN\r\n{PLAIN_JO}\r\n",
        "LOGIN": f"AUTH LOGIN\r\n{b64('jo')}\r\n{b64('sesame')}\r\n",
        "CRAM-MD5": f"AUTH CRAM-MD5\r\n{b64('jo ' + '0' * 32)}\r\n",
        "XOAUTH2": f"AUTH XOAUTH2 {b64('user=jo' + chr(1) + bearer)}\r\n\r\n",
        "OAUTHBEARER": f"AUTH OAUTHBEARER {b64('n,a=jo,' + chr(1) + bearer)}\r\nAQ==\r\n",
    }[mechanism]
    replies = {
        "PLAIN": ["334", "235"],
        "LOGIN": ["334", "334", "235"],
        "CRAM-MD5": ["334", "535"],
        "XOAUTH2": ["334", "535"],
        "OAUTHBEARER": ["334", "535"],
    }[mechanism]
    auth = in_the_clear(check_token=lambda credentials: False, failures_by_client=None, failures_by_account=None)
    server = smtp_server(start=False, middleware=[auth])
    for cut in range(len(said) + 1):
        with dial(server) as peer:
            peer.hello()
            peer.send(f"{said}NOOP\r\n", cut=cut)
            peer.expect(*replies, "250 2.0.0 Ok")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_mapping_does_the_same_work_for_every_user(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def call(*args: Any) -> Any:
            done.append(name)
            return real(*args)

        return call

    for name in ("new", "digest", "compare_digest"):
        monkeypatch.setattr(hmac, name, counted(name, getattr(hmac, name)))
    users = {"jo": "sesame", "empty": "", "odd": "\ud800", "long": "x" * 500}
    work = []
    for user in (*users, "nobody"):
        done.clear()
        with dial(smtp_server(start=False, middleware=[in_the_clear(users)])) as peer:
            peer.hello()
            peer.line(f"AUTH {mechanism}")
            said = {
                "PLAIN": [f"\0{user}\0wrong"],
                "LOGIN": [user, "wrong"],
                "CRAM-MD5": [f"{user} {'0' * 32}"],
            }[mechanism]
            for response in said:
                peer.expect("334")
                peer.line(b64encode(response.encode()).decode())
            peer.expect("535 5.7.8")
        work.append(list(done))
    assert work == [work[0]] * 5
    assert "compare_digest" in work[0]
