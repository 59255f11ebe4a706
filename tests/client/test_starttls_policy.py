"""Without TLS, nothing is sent from which a password could be guessed, unless the caller allows it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import (
    AuthenticationFailed,
    ClientError,
    Disconnected,
    Pool,
    SMTPServer,
    TLSFailed,
    TLSRefused,
    TLSUnverified,
    connect,
)
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

MESSAGE = (b"x", "a@example.com", "b@example.com")
STRIPPED = "AUTH SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN"


def stripped(script: Script) -> None:
    """A server whose STARTTLS an attacker has stripped; it refuses everything else."""
    script.greet("PIPELINING", STRIPPED)
    while line := script.hear():
        script.say("535 5.7.8 no" if line.startswith("AUTH") else "221 bye" if line == "QUIT" else "502 no")


def taking(script: Script) -> None:
    script.greet("PIPELINING", "AUTH CRAM-MD5 PLAIN")
    while line := script.hear():
        if line == "DATA":
            script.say("354 go")
            script.body()
        elif line == "AUTH CRAM-MD5":
            script.say("334 PHg+")
            script.hear()
            script.say("235 in")
            continue
        script.say("235 in" if line.startswith("AUTH") else "250 Ok")


def recorder(script: Callable[[Script], None], heard: list[Script]) -> Callable[[Script], None]:
    def run(spoken: Script) -> None:
        heard.append(spoken)
        script(spoken)

    return run


def test_a_pool_with_a_username_requires_tls(scripted: Start) -> None:
    heard: list[Script] = []
    server = scripted(recorder(stripped, heard))
    pool = Pool("127.0.0.1", server.port, username="jo", password="secret", timeout=5)
    with pool, pytest.raises(TLSRefused):
        pool.send(*MESSAGE)
    assert b"AUTH" not in heard[0].heard


def test_login_that_sends_ehlo_requires_tls(scripted: Start) -> None:
    heard: list[Script] = []
    server = scripted(recorder(stripped, heard))
    mail = server.connect()
    with pytest.raises(TLSRefused):
        mail.login("jo", "secret")
    mail.close()
    assert b"AUTH" not in heard[0].heard


@pytest.mark.parametrize("begin", ["begin", "send"])
def test_login_after_begin_without_starttls_requires_tls(scripted: Start, begin: str) -> None:
    heard: list[Script] = []
    server = scripted(recorder(stripped, heard))
    mail = server.connect()
    if begin == "begin":
        mail.begin()
    else:
        with pytest.raises(ClientError):
            mail.send(*MESSAGE)
    with pytest.raises(AuthenticationFailed, match="in the clear"):
        mail.login("jo", "secret")
    mail.close()
    assert b"AUTH" not in heard[0].heard


def test_require_holds_for_a_login_by_hand(scripted: Start) -> None:
    with scripted(stripped).connect(starttls="require") as mail:
        mail.ehlo()
        with pytest.raises(AuthenticationFailed, match="in the clear"):
            mail.login("jo", "secret")


@pytest.mark.parametrize("starttls", ["offered", "never"])
def test_cram_md5_is_not_chosen_without_tls(scripted: Start, starttls: str) -> None:
    """An attacker that strips STARTTLS can strip SCRAM as well."""
    with scripted(taking).connect(starttls=starttls) as mail:
        with pytest.raises(AuthenticationFailed, match="allow_plaintext=True"):
            mail.login("jo", "secret")
        assert mail.login("jo", "secret", "CRAM-MD5").code == 235
        assert mail.login("jo", "secret", allow_plaintext=True).code == 235


def test_allow_plaintext_needs_no_tls(scripted: Start) -> None:
    server = scripted(taking)
    with Pool("127.0.0.1", server.port, username="jo", password="x", allow_plaintext=True, timeout=5) as pool:
        assert pool.send(*MESSAGE).reply.code == 250


def test_a_unix_socket_needs_no_tls(tmp_path: Any) -> None:
    server = SMTPServer(str(tmp_path / "smtp"))
    server.on("message", lambda session, stream, ack: ack.accept())
    server.start()
    try:
        with connect(str(tmp_path / "smtp"), timeout=5) as mail, pytest.raises(AuthenticationFailed, match="none"):
            mail.login("jo", "secret")
        pool = Pool(str(tmp_path / "smtp"), username="jo", password="secret", timeout=5)
        with pool, pytest.raises(AuthenticationFailed, match="none"):
            pool.send(*MESSAGE)
    finally:
        server.stop(1)


# Opportunistic TLS (RFC 7435)


@pytest.fixture
def secure(smtp_server: MakeServer, certificate: Certificate) -> SMTPServer:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


def test_opportunistic_takes_any_certificate(secure: SMTPServer) -> None:
    with connect(*secure.address, starttls="opportunistic", timeout=5) as mail:
        assert mail.send(*MESSAGE).reply.code == 250
        assert mail.tls
    with pytest.raises(TLSUnverified), connect(*secure.address, timeout=5) as mail:
        mail.send(*MESSAGE)


def broken_handshake(script: Script) -> None:
    script.greet("PIPELINING", "STARTTLS")
    script.expect("STARTTLS")
    script.say("220 go")
    assert script.socket.recv(1)
    script.send(b"this is no handshake\r\n")


def hangs_up(script: Script) -> None:
    script.greet("PIPELINING", "STARTTLS")
    script.expect("STARTTLS")


def says_421(script: Script) -> None:
    script.greet("PIPELINING", "STARTTLS")
    script.expect("STARTTLS")
    script.say("421 no TLS today")


def hangs_up_in_the_handshake(script: Script) -> None:
    script.greet("PIPELINING", "STARTTLS")
    script.expect("STARTTLS")
    script.say("220 go")


@pytest.mark.parametrize("first", [broken_handshake, hangs_up, says_421, hangs_up_in_the_handshake])
@pytest.mark.parametrize("pooled", [False, True])
def test_opportunistic_reconnects_without_tls(scripted: Start, first: Callable[[Script], None], pooled: bool) -> None:
    server = scripted(first, taking)
    if pooled:
        with Pool("127.0.0.1", server.port, starttls="opportunistic", timeout=5) as pool:
            assert pool.send(*MESSAGE).reply.code == 250
    else:
        with server.connect(starttls="opportunistic") as mail:
            assert mail.send(*MESSAGE).reply.code == 250
            assert not mail.tls
    assert server.connections == 2


@pytest.mark.parametrize("first", [broken_handshake, hangs_up, says_421])
def test_no_other_policy_falls_back(scripted: Start, first: Callable[[Script], None]) -> None:
    server = scripted(first, taking)
    with server.connect() as mail, pytest.raises((TLSFailed, Disconnected)):
        mail.send(*MESSAGE)
    assert server.connections == 1


def test_opportunistic_does_not_reconnect_if_secure_rejects_the_peer(secure: SMTPServer) -> None:
    mail = connect(*secure.address, starttls="opportunistic", on_secure=lambda client, ack: ack.reject(), timeout=5)
    with pytest.raises(TLSUnverified):
        mail.send(*MESSAGE)
    assert mail.closed


def test_opportunistic_continues_if_starttls_is_refused(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING", "STARTTLS")
        script.expect("STARTTLS")
        script.say("454 4.7.0 no key")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.body()
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect(starttls="opportunistic") as mail:
        assert mail.send(*MESSAGE).reply.code == 250


def test_a_stream_cannot_be_reconnected(pair: tuple[Any, Any]) -> None:
    from gevent import spawn

    from tests.client.conftest import Script

    ours, theirs = pair

    def serve() -> None:
        broken_handshake(Script(theirs))

    serving = spawn(serve)
    mail = connect(stream=ours, starttls="opportunistic", timeout=5)
    with pytest.raises(TLSFailed):
        mail.send(*MESSAGE)
    assert mail.closed
    serving.get(timeout=5)


def test_opportunistic_and_credentials_exclude_each_other(secure: SMTPServer) -> None:
    with pytest.raises(ValueError, match="username"):
        Pool("127.0.0.1", username="jo", password="secret", starttls="opportunistic")
    with connect(*secure.address, starttls="opportunistic", timeout=5) as mail:
        for _ in "ab":
            with pytest.raises(AuthenticationFailed, match="opportunistic"):
                mail.login("jo", "secret", allow_plaintext=True)
            mail.begin()


@pytest.mark.parametrize("options", [{"tls": True}, {"ssl_context": ssl.create_default_context()}])
def test_opportunistic_and_verification_exclude_each_other(options: dict[str, Any]) -> None:
    for call in (
        lambda: Pool(starttls="opportunistic", **options),
        lambda: connect(starttls="opportunistic", **options),
    ):
        with pytest.raises(ValueError, match="pass one"):
            call()
