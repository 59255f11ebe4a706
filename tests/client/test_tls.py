"""TLS: implicit and by STARTTLS, its verification, the signal ``secure``, and the policies."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn
from gevent import ssl as gevent_ssl

from greensmtp import (
    Ack,
    CannotConnect,
    ClientError,
    ProtocolError,
    SMTPClient,
    SMTPServer,
    TLSFailed,
    TLSRefused,
    TLSUnverified,
    client_signals,
    connect,
)
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
MESSAGE = b"Subject: hi\r\n\r\nho\r\n"


def take(server: SMTPServer) -> SMTPServer:
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


@pytest.fixture
def server(smtp_server: MakeServer, certificate: Certificate) -> SMTPServer:
    return take(smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile))


@pytest.fixture
def implicit(smtp_server: MakeServer, certificate: Certificate) -> SMTPServer:
    return take(smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True))


@pytest.fixture(params=["stdlib", "gevent"])
def context(request: pytest.FixtureRequest, certificate: Certificate) -> ssl.SSLContext:
    """A context that trusts the test's authority; the standard library's must not block the hub."""
    module: Any = ssl if request.param == "stdlib" else gevent_ssl
    made: ssl.SSLContext = module.create_default_context(cafile=str(certificate.authority))
    return made


def unverified() -> ssl.SSLContext:
    context: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_starttls(server: SMTPServer, context: ssl.SSLContext) -> None:
    heard: list[Any] = []
    with connect(*server.address, ssl_context=context, timeout=10) as mail:
        mail.on("tls", heard.append)
        mail.ehlo("client.example")
        assert mail.starttls().code == 220
        assert mail.tls
        assert mail.extensions == {}
        assert mail.hello is None
        assert mail.from_(FROM).code == 503  # all is forgotten, the greeting too
        mail.ehlo("client.example")
        assert "STARTTLS" not in mail.extensions
        assert mail.send(b"x", FROM, TO).reply.code == 250
        with pytest.raises(ProtocolError, match="already"):
            mail.starttls()
        late: list[Any] = []
        mail.on("tls", late.append)
    assert heard == late == [mail]


def test_implicit_tls(implicit: SMTPServer, context: ssl.SSLContext) -> None:
    for options in ({"tls": context}, {"tls": True, "ssl_context": context}):
        with connect(*implicit.address, timeout=10, **options) as mail:
            assert mail.tls
            assert mail.socket.version() >= "TLSv1.2"
            assert mail.send(b"x" * 500_000, FROM, TO).reply.code == 250
            assert mail.noop().code == 250


def test_the_certificate_is_verified_by_default(server: SMTPServer, implicit: SMTPServer) -> None:
    with pytest.raises(TLSUnverified, match=r"127\.0\.0\.1 does not verify"):
        connect(*implicit.address, tls=True, timeout=10)
    mail = connect(*server.address, timeout=10)
    mail.ehlo()
    with pytest.raises(TLSUnverified) as caught:
        mail.starttls()
    assert mail.closed
    assert isinstance(caught.value, ClientError)
    assert not caught.value.transient


def test_the_name_is_verified(server: SMTPServer, context: ssl.SSLContext) -> None:
    with connect(*server.address, ssl_context=context, server_hostname="mx.example.com", timeout=10) as mail:
        mail.ehlo()
        assert mail.starttls().code == 220
    mail = connect(*server.address, ssl_context=context, timeout=10)
    mail.ehlo()
    with pytest.raises(TLSUnverified, match="other"):
        mail.starttls(server_hostname="other.example")


def test_verification_without_a_host_name_is_a_type_error(
    smtp_server: MakeServer, certificate: Certificate, tmp_path: Any
) -> None:
    path = str(tmp_path / "s")
    smtp_server(listener=path, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with connect(path, timeout=10) as mail:
        mail.ehlo()
        with pytest.raises(TypeError, match="server_hostname"):
            mail.starttls()
        assert mail.noop().code == 250  # nothing was sent


def test_send_does_not_ask_for_a_name_on_a_unix_socket(
    smtp_server: MakeServer, certificate: Certificate, context: ssl.SSLContext, tmp_path: Any
) -> None:
    path = str(tmp_path / "s")
    take(smtp_server(listener=path, certfile=certificate.certfile, keyfile=certificate.keyfile))
    with connect(path, timeout=10) as mail:
        assert mail.send(MESSAGE, FROM, TO).reply.code == 250
        assert not mail.tls
    with connect(path, timeout=10, server_hostname="mx.example.com", ssl_context=context) as mail:
        assert mail.send(MESSAGE, FROM, TO).reply.code == 250
        assert mail.tls
    with connect(path, timeout=10, ssl_context=unverified()) as mail:
        assert mail.send(MESSAGE, FROM, TO).reply.code == 250
        assert mail.tls
    with connect(path, timeout=10, starttls="require") as mail, pytest.raises(TypeError, match="server_hostname"):
        mail.send(MESSAGE, FROM, TO)


def test_tls_with_a_plain_server_fails(smtp_server: MakeServer) -> None:
    with pytest.raises(TLSFailed):
        connect(*smtp_server().address, tls=True, timeout=10)


# secure


def test_secure_may_accept(server: SMTPServer, context: ssl.SSLContext) -> None:
    asked: list[Any] = []

    def approve(client: SMTPClient, ack: Ack) -> None:
        asked.append(client.socket.getpeercert()["subjectAltName"])
        ack.accept()

    with connect(*server.address, approve, ssl_context=context, timeout=10) as mail:
        mail.ehlo()
        mail.starttls()
        assert mail.tls
    assert ("DNS", "mx.example.com") in asked[0]


def test_pinning_with_a_context_that_does_not_verify(implicit: SMTPServer, certificate: Certificate) -> None:
    expected = ssl.PEM_cert_to_DER_cert(
        certificate.certfile.read_text().split("-----END")[0] + "-----END CERTIFICATE-----\n"
    )

    def pinned(client: SMTPClient, ack: Ack) -> None:
        if client.socket.getpeercert(True) == expected:
            ack.accept()
        else:
            ack.reject()

    with connect(*implicit.address, tls=unverified(), on_secure=pinned, timeout=10) as mail:
        assert mail.ehlo().code == 250


@pytest.mark.parametrize("how", ["reject", "forget", "raise", "late"])
def test_secure_may_reject(server: SMTPServer, context: ssl.SSLContext, how: str) -> None:
    def refuse(client: SMTPClient, ack: Ack) -> None:
        if how == "reject":
            ack.reject(554, "5.7.0 not that one")
        elif how == "raise":
            raise RuntimeError("the handler's own")
        elif how == "late":
            spawn(ack.reject)

    mail = connect(*server.address, ssl_context=context, on_secure=refuse, timeout=10)
    mail.ehlo()
    with pytest.raises(RuntimeError if how == "raise" else TLSUnverified):
        mail.starttls()
    assert mail.closed


def test_secure_may_decide_later(server: SMTPServer, context: ssl.SSLContext) -> None:
    with connect(*server.address, ssl_context=context, timeout=10) as mail:
        mail.on("secure", lambda client, ack: spawn(ack.accept))
        mail.ehlo()
        assert mail.starttls().code == 220
        with pytest.raises(ValueError, match="too late"):
            mail.on("secure", lambda client, ack: ack.accept())


def test_the_process_wide_secure_signal_hears_every_client(server: SMTPServer, context: ssl.SSLContext) -> None:
    heard: list[Any] = []

    def hear(client: SMTPClient, ack: Ack) -> None:
        heard.append(client)
        ack.accept()

    client_signals.secure.connect(hear)
    try:
        with connect(*server.address, ssl_context=context, timeout=10) as mail:
            mail.ehlo()
            mail.starttls()
    finally:
        client_signals.secure.disconnect(hear)
    assert heard == [mail]


def test_secure_without_a_decision_times_out(server: SMTPServer, context: ssl.SSLContext) -> None:
    kept: list[Ack] = []

    def keep(client: SMTPClient, ack: Ack) -> None:
        kept.append(ack)
        object.__setattr__(client.timeouts, "command", 0.05)  # not before: the server may be slower than that

    mail = connect(*server.address, ssl_context=context, on_secure=keep, timeout=10)
    mail.ehlo()
    with pytest.raises(TLSUnverified, match=r"0\.05 s"):
        mail.starttls()
    assert mail.closed


def test_starttls_clears_authenticated_hello_and_extensions(scripted: Start, certificate: Certificate) -> None:
    """RFC 3207 section 4.2 requires that."""

    def script(script: Script) -> None:
        script.greet("STARTTLS", "AUTH PLAIN")
        script.expect("AUTH")
        script.say("235 in")
        script.expect("STARTTLS")
        script.say("220 go")
        context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificate.certfile), str(certificate.keyfile))
        with gevent_ssl.SSLSocket(sock=script.socket, server_side=True, _context=context) as script.socket:
            script.rest()

    mail = scripted(script).connect(ssl_context=unverified())
    mail.ehlo()
    assert mail.login("jo", "secret", allow_plaintext=True).code == 235
    assert mail.authenticated
    mail.starttls()
    assert not mail.authenticated
    mail.close()


def test_the_sockets_own_timeout_is_ignored(implicit: SMTPServer, context: ssl.SSLContext) -> None:
    """With TLS, the socket's own timeout would apply."""
    from gevent import sleep, socket

    @implicit.on("greeting")
    def dawdle(session: Any, greeting: Any, ack: Ack) -> None:
        sleep(0.1)
        ack.accept()

    address: Any = implicit.address
    ours = socket.create_connection(address)
    ours.settimeout(0.01)
    with connect(ours, tls=context, server_hostname="mx.example.com", timeout=20) as mail:
        assert mail.ehlo().code == 250


# starttls=


def test_send_uses_starttls_if_offered(server: SMTPServer, context: ssl.SSLContext) -> None:
    with connect(*server.address, ssl_context=context, timeout=10) as mail:
        mail.send(b"x", FROM, TO)
        assert mail.tls


def test_send_never_uses_starttls(server: SMTPServer) -> None:
    with connect(*server.address, starttls="never", timeout=10) as mail:
        mail.send(b"x", FROM, TO)
        assert not mail.tls


def test_send_requires_starttls(smtp_server: MakeServer, server: SMTPServer, context: ssl.SSLContext) -> None:
    with connect(*server.address, starttls="require", ssl_context=context, timeout=10) as mail:
        mail.send(b"x", FROM, TO)
        assert mail.tls
    with connect(*smtp_server().address, starttls="require", timeout=10) as mail, pytest.raises(TLSRefused):
        mail.send(b"x", FROM, TO)


def test_ehlo_by_hand_does_not_bypass_starttls(
    smtp_server: MakeServer, server: SMTPServer, context: ssl.SSLContext
) -> None:
    with connect(*smtp_server().address, starttls="require", timeout=10) as mail:
        mail.ehlo()
        with pytest.raises(TLSRefused):
            mail.send(b"x", FROM, TO)
    with connect(*server.address, starttls="require", ssl_context=context, timeout=10) as mail:
        mail.ehlo()
        assert mail.send(b"x", FROM, TO).reply.code == 250
        assert mail.tls


@pytest.mark.parametrize("policy", ["require", "offered"])
def test_a_refused_starttls(scripted: Start, policy: Any) -> None:
    def script(script: Script) -> None:
        script.greet("STARTTLS")
        script.expect("STARTTLS")
        script.say("454 4.7.0 not now")
        for reply in ("250 1", "250 2", "354 go"):
            if not script.hear():
                return
            script.say(reply)
        script.body()
        script.say("250 Ok")
        script.rest()

    mail = scripted(script).connect(starttls=policy)
    if policy == "offered":
        assert mail.send(b"x", FROM, TO).reply.code == 250
    else:
        with pytest.raises(TLSRefused) as caught:
            mail.send(b"x", FROM, TO)
        assert caught.value.reply is not None
        assert caught.value.transient


def test_a_second_send_does_not_bypass_required_starttls(scripted: Start) -> None:
    """A stripped STARTTLS is an error on every attempt."""

    def script(script: Script) -> None:
        script.greet()
        assert b"MAIL" not in script.rest()

    mail = scripted(script).connect(starttls="require")
    for _ in range(2):
        with pytest.raises(TLSRefused):
            mail.send(b"x", FROM, TO)


def test_an_unknown_starttls_policy_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="require"):
        connect("127.0.0.1", 1, starttls="always")  # type: ignore[arg-type]


def test_session_tickets_are_not_unsolicited_replies(implicit: SMTPServer, context: ssl.SSLContext) -> None:
    with connect(*implicit.address, tls=context, timeout=10) as mail:
        for _ in range(5):
            assert mail.noop().code == 250


@pytest.mark.parametrize("lines", [["250 nobody asked"], ["250-half"]])
def test_unsolicited_replies_in_tls(certificate: Certificate, context: ssl.SSLContext, lines: list[str]) -> None:
    from gevent import socket

    from greensmtp import PeerProtocolError

    ours, theirs = socket.socketpair()
    server_side = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(str(certificate.certfile), str(certificate.keyfile))

    def serve() -> None:
        wrapped = gevent_ssl.SSLSocket(sock=theirs, server_side=True, _context=server_side)
        wrapped.sendall(b"220 hi\r\n" + "".join(f"{line}\r\n" for line in lines).encode())
        while wrapped.recv(100):
            pass
        wrapped.close()

    greenlet = spawn(serve)
    mail = connect(stream=ours, tls=context, server_hostname="mx.example.com", timeout=5)
    with pytest.raises(PeerProtocolError):
        mail.noop()
    greenlet.join(5)


def test_tls_at_a_port_without_it_says_what_to_use(server: SMTPServer) -> None:
    with pytest.raises(TLSFailed, match=r"use STARTTLS, without tls=True \(smtp://, not smtps://\)"):
        connect(*server.address, tls=True, ssl_context=unverified(), timeout=5)


def test_plain_text_at_a_port_that_begins_with_tls_says_what_to_use(implicit: SMTPServer) -> None:
    with pytest.raises(CannotConnect, match=r"got no banner: .*needs tls=True \(smtps://\)"):
        connect(*implicit.address, timeout=0.2)
