"""AUTH (RFC 4954): refusals, mechanisms, when they are offered, and the session's identity."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import ssl as gevent_ssl

from greensmtp.middleware import Auth, Logging
from greensmtp.middleware.auth.credentials import Credentials
from greensmtp.testing import Peer, dial
from tests.helpers import b64
from tests.middleware.logins import PLAIN_JO, PLAIN_WRONG, USERS, ignore, in_the_clear, offered

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate


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


def test_in_the_clear_only_mechanisms_that_hide_the_password_are_offered(peer_of: Any) -> None:
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


def test_a_callable_offers_plain_and_login_only(peer_of: Any) -> None:
    peer = peer_of(in_the_clear(lambda credentials: True), ehlo=False)
    assert offered(peer.hello()) == ["PLAIN", "LOGIN"]


def test_without_a_usable_mechanism_auth_is_not_offered(peer_of: Any) -> None:
    with peer_of(Auth(lambda credentials: True), ehlo=False) as peer:
        assert "AUTH" not in peer.hello()


def test_auth_is_offered_until_a_login_succeeds(peer_of: Any) -> None:
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


def test_auth_works_over_lmtp(peer_of: Any) -> None:
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
def test_a_refused_command_is_no_obstacle_to_the_next(peer_of: Any, line: str, reply: str) -> None:
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
def test_a_refused_answer_ends_the_exchange(peer_of: Any, answer: str, reply: str) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line("AUTH PLAIN")
        peer.expect("334")
        peer.line(answer)
        peer.expect(reply)
        peer.line("NOOP")
        peer.expect("250")


def test_an_http_request_instead_of_an_answer_gets_421(peer_of: Any) -> None:
    with peer_of(in_the_clear(), max_auth_line_length=64) as peer:
        peer.line("AUTH PLAIN")
        peer.expect("334")
        peer.line(f"GET /{'x' * 100} HTTP/1.1")
        peer.expect("421")
        peer.expect_end()


def test_auth_without_ehlo_gets_503(peer_of: Any) -> None:
    with peer_of(in_the_clear(), ehlo=False) as peer:
        peer.expect("220")
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "HELO x", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("503 5.5.1", "250", "503 5.5.1")


def test_auth_within_a_transaction_gets_503(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line("MAIL FROM:<a@example.com>", f"AUTH PLAIN {PLAIN_JO}", "RSET", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("250", "503 5.5.1", "250", "235")


def test_a_second_auth_gets_503(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}", f"AUTH PLAIN {PLAIN_JO}", "RSET", "EHLO x", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235", "503 5.5.1", "250", "250", "503 5.5.1")


def test_passwords_in_the_clear_get_538(peer_of: Any) -> None:
    auth = Auth(USERS, check_token=lambda credentials: True)
    with peer_of(auth) as peer:
        for mechanism in ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"):
            peer.line(f"AUTH {mechanism} {PLAIN_JO}")
            peer.expect("538 5.7.11")


def test_a_mechanism_that_was_left_out_gets_534(peer_of: Any) -> None:
    with peer_of(Auth(USERS, ["scram-sha-256"])) as peer:
        peer.line("AUTH CRAM-MD5", f"AUTH PLAIN {PLAIN_JO}", "AUTH SCRAM-SHA-256-PLUS")
        peer.expect("534 5.7.9", "534 5.7.9", "504 5.5.4")


def test_too_many_failed_logins_end_the_session(peer_of: Any) -> None:
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
def test_commands_get_530_before_a_required_login(peer_of: Any, command: str) -> None:
    with peer_of(in_the_clear(required=True)) as peer:
        peer.line(command)
        peer.expect("530 5.7.0 Authentication required")
        peer.line("NOOP", "RSET", "EHLO x", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("250", "250", "250", "235")
        peer.line("MAIL FROM:<a@example.com>", "QUIT")
        peer.expect("250", "221")


def test_a_chunk_before_a_required_login_is_skipped(peer_of: Any) -> None:
    """The bytes of the chunk are not read as commands."""
    with peer_of(in_the_clear(required=True)) as peer:
        peer.send(b"BDAT 6 LAST\r\nRSET\r\nNOOP\r\n")
        peer.expect("530 5.7.0", "250 2.0.0 Ok")
        peer.expect_nothing()


def test_530_asks_for_starttls_where_no_login_is_possible_without_it(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
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


def test_the_repr_shows_no_secret() -> None:
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
        (lambda auth: auth("htpasswd:none"), ValueError, r"cannot read '/.+/none': No such file"),
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
def test_wrong_arguments_are_refused(make: Callable[[Any], Auth], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        make(Auth)
    assert "sesame" not in str(caught.value)
