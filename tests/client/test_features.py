"""Each feature of the client, by its public names."""

from __future__ import annotations

import io
import ssl
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket
from gevent import ssl as gevent_ssl

from greensmtp import (
    Ack,
    Address,
    MessageStream,
    RecipientsRefused,
    Reply,
    Session,
    SMTPClient,
    SMTPServer,
    TLSUnverified,
    client_signals,
    connect,
)
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import b64

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

FROM, TO = "substack@example.com", "root@example.com"


@pytest.fixture
def bodies() -> list[bytes]:
    """The bodies that the server has accepted."""
    return []


@pytest.fixture
def server(smtp_server: MakeServer, bodies: list[bytes]) -> SMTPServer:
    """A server that accepts mail for its own recipients only."""
    server = smtp_server()

    @server.on("to")
    def choose(session: Session, address: Address, ack: Ack) -> None:
        ack.reject(550, "5.1.1 who?") if address.local_part == "stranger" else ack.accept()

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append(stream.read())

    return server


@pytest.fixture
def mail(server: SMTPServer) -> Iterator[SMTPClient]:
    with connect(*server.address, timeout=10) as mail:
        yield mail


@pytest.fixture
def secure_server(smtp_server: MakeServer, certificate: Certificate) -> SMTPServer:
    """A server that offers STARTTLS."""
    return smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)


@pytest.fixture
def implicit_server(smtp_server: MakeServer, certificate: Certificate) -> SMTPServer:
    """A server with TLS from the first byte."""
    return smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)


@pytest.fixture
def trusting(certificate: Certificate) -> ssl.SSLContext:
    """A context that trusts the test's authority."""
    context: ssl.SSLContext = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    return context


# connect


def test_connect_tells_its_arguments_apart_by_type_and_gives_a_client_that_has_read_the_banner(
    server: SMTPServer,
) -> None:
    host, port = server.address[0], server.address[1]
    for where in ((host, port), (port, host), ({"timeout": 10}, port, host)):
        with connect(*where) as mail:
            assert isinstance(mail, SMTPClient)
            assert mail.greeting is not None
            assert mail.greeting.code == 220
        assert mail.closed


def test_a_string_that_begins_with_a_dot_or_a_slash_is_a_unix_socket(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    smtp_server(listener=str(tmp_path / "mail"))
    for path in ("./mail", str(tmp_path / "mail")):
        with connect(path) as mail:
            assert mail.ehlo("client.example").code == 250


def test_stream_is_the_callers_connected_socket(smtp_server: MakeServer) -> None:
    ours, theirs = socket.socketpair()
    smtp_server(start=False).adopt(theirs)
    with connect(stream=ours) as mail:
        assert mail.ehlo("client.example").code == 250


def test_tls_from_the_start_with_a_peer_that_is_verified(implicit_server: SMTPServer, trusting: ssl.SSLContext) -> None:
    with connect(*implicit_server.address, tls=trusting) as mail:
        assert mail.tls
        assert mail.ehlo("client.example").code == 250
    with pytest.raises(TLSUnverified):
        connect(*implicit_server.address, tls=True)  # the system does not trust that authority


@pytest.mark.parametrize("how", ["on_secure=", "mail.on", "client_signals"])
def test_secure_decides_whether_this_is_the_intended_server(
    secure_server: SMTPServer, trusting: ssl.SSLContext, how: str
) -> None:
    def judge(client: SMTPClient, ack: Ack) -> None:
        ack.accept() if verdict == "accept" else ack.reject()

    for verdict in ("accept", "reject"):
        mail = connect(
            *secure_server.address, ssl_context=trusting, on_secure=judge if how == "on_secure=" else None, timeout=10
        )
        if how == "mail.on":
            mail.on("secure", judge)
        elif how == "client_signals":
            client_signals.secure.connect(judge, sender=mail)
        mail.ehlo("client.example")
        if verdict == "accept":
            assert mail.starttls().code == 220
            mail.close()
        else:
            with pytest.raises(TLSUnverified):
                mail.starttls()
            assert mail.closed


# Commands


@pytest.mark.parametrize("verb", ["helo", "ehlo", "lhlo"])
def test_helo_ehlo_lhlo(smtp_server: MakeServer, verb: str) -> None:
    with connect(*smtp_server(lmtp=verb == "lhlo").address) as mail:
        reply = getattr(mail, verb)("client.example")
    assert reply.code == 250
    assert "client.example" in reply.lines[0]


@pytest.mark.parametrize(
    ("from_ext", "to_ext"),
    [("SIZE=12 BODY=8BITMIME", "NOTIFY=NEVER"), ({"SIZE": 12, "BODY": "8BITMIME"}, {"NOTIFY": "NEVER"})],
    ids=["str", "mapping"],
)
def test_from_and_to_take_an_address_and_parameters(scripted: Start, from_ext: Any, to_ext: Any) -> None:
    def script(script: Script) -> None:
        script.greet("SIZE", "8BITMIME", "DSN")
        script.expect(f"MAIL FROM:<{FROM}> SIZE=12 BODY=8BITMIME")
        script.say("250 Ok")
        script.expect(f"RCPT TO:<{TO}> NOTIFY=NEVER")
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect() as mail:
        mail.ehlo("client.example")
        assert mail.from_(FROM, from_ext).code == 250
        assert mail.to(TO, to_ext).code == 250


def test_data_and_message(mail: SMTPClient, bodies: list[bytes]) -> None:
    def begin() -> None:
        mail.from_(FROM)
        mail.to(TO)
        assert mail.data().code == 354

    mail.ehlo("client.example")
    body = b"beep\r\n.boop\r\n"
    begin()
    assert mail.message(body).code == 250
    begin()
    assert mail.message(io.BytesIO(body)).code == 250
    begin()
    with mail.message() as writing:
        writing.write(body[:5])
        writing.write(body[5:])
    assert writing.reply is not None
    assert writing.reply.code == 250
    assert bodies == [body] * 3


def test_reset_verify_quit(mail: SMTPClient) -> None:
    mail.ehlo("client.example")
    mail.from_(FROM)
    assert mail.reset().code == 250
    assert mail.to(TO).code == 503  # the sender is forgotten
    assert mail.vrfy("root").code == 252
    assert mail.quit().code == 221
    assert mail.closed


@pytest.mark.parametrize("name", [None, "mx.example.com", "other.example"])
def test_starttls_verifies_the_host_or_the_given_name(
    secure_server: SMTPServer, trusting: ssl.SSLContext, name: str | None
) -> None:
    with connect(*secure_server.address, ssl_context=trusting) as mail:
        mail.ehlo("client.example")
        if name == "other.example":
            with pytest.raises(TLSUnverified):
                mail.starttls(server_hostname=name)
            return
        assert (mail.starttls() if name is None else mail.starttls(server_hostname=name)).code == 220
        assert mail.tls
        assert mail.socket.version().startswith("TLSv1.")


#: mechanism -> pairs of command and reply
EXCHANGES = {
    "PLAIN": [(f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0) + 'secret')}", "235 in")],
    "LOGIN": [
        ("AUTH LOGIN", f"334 {b64('Username:')}"),
        (b64("jo"), f"334 {b64('Password:')}"),
        (b64("secret"), "235 in"),
    ],
    # RFC 2195 section 2
    "CRAM-MD5": [
        ("AUTH CRAM-MD5", f"334 {b64('<1896.697170952@postoffice.reston.mci.net>')}"),
        (b64("tim b913a602c7eda7a495b4e6e7334d3890"), "235 in"),
    ],
    "XOAUTH2": [(f"AUTH XOAUTH2 {b64(chr(1).join(('user=jo', 'auth=Bearer t', '', '')))}", "235 in")],
    "OAUTHBEARER": [(f"AUTH OAUTHBEARER {b64(chr(1).join(('n,a=jo,', 'auth=Bearer t', '', '')))}", "235 in")],
}


@pytest.mark.parametrize("mechanism", EXCHANGES)
def test_login(scripted: Start, mechanism: str) -> None:
    def script(script: Script) -> None:
        script.greet(f"AUTH {' '.join(EXCHANGES)}")
        for said, answer in EXCHANGES[mechanism]:
            assert script.hear() == said
            script.say(answer)
        script.rest()

    with scripted(script).connect() as mail:
        mail.ehlo("client.example")
        if "OAUTH" in mechanism:
            reply = mail.login("jo", token="t", mechanism=mechanism, allow_plaintext=True)
        elif mechanism == "CRAM-MD5":
            reply = mail.login("tim", "tanstaaftanstaaf", mechanism)
        else:
            reply = mail.login("jo", "secret", mechanism, allow_plaintext=True)
        assert reply.code == 235


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", None])
def test_login_by_scram_and_by_the_strongest_offered(scripted: Start, mechanism: str | None) -> None:
    from scramp import ScramMechanism  # type: ignore[import-untyped]

    def script(script: Script) -> None:
        scram = ScramMechanism("SCRAM-SHA-256")
        salt, stored, server_key, iterations = scram.make_auth_info("secret")
        server = scram.make_server(lambda _name: (salt, stored, server_key, iterations))
        script.greet("AUTH LOGIN PLAIN CRAM-MD5 SCRAM-SHA-256")
        auth, named, first = script.hear().split()
        assert (auth, named) == ("AUTH", "SCRAM-SHA-256")
        server.set_client_first(b64decode(first).decode())
        script.say(f"334 {b64(server.get_server_first())}")
        server.set_client_final(b64decode(script.hear()).decode())
        script.say(f"334 {b64(server.get_server_final())}")
        script.expect("")
        script.say("235 in")
        script.rest()

    with scripted(script).connect() as mail:
        mail.ehlo("client.example")
        assert mail.login("jo", "secret", mechanism).code == 235


# Replies and signals


def test_low_level_calls_return_refusals_but_send_raises_them(mail: SMTPClient) -> None:
    mail.ehlo("client.example")
    assert mail.from_(FROM) == Reply(250, "2.1.0 Ok")
    refused = mail.to("stranger@example.com")
    assert (refused.code, refused.lines, refused.enhanced) == (550, ("who?",), "5.1.1")
    assert mail.reset().is_positive
    with pytest.raises(RecipientsRefused) as caught:
        mail.send(b"Subject: hi\r\n\r\nho\r\n", FROM, "stranger@example.com")
    assert caught.value.recipients == {"stranger@example.com": refused}


def test_late_handlers_of_greeting_and_tls_are_called_at_once(
    secure_server: SMTPServer, trusting: ssl.SSLContext
) -> None:
    heard: list[Any] = []
    with connect(*secure_server.address, ssl_context=trusting) as mail:
        mail.on("tls", lambda client: heard.append("tls"))
        mail.on("greeting", lambda client, reply: heard.append(reply))
        mail.ehlo("client.example")
        mail.starttls()
        assert mail.greeting is not None
        assert mail.greeting.code == 220
        assert heard == [mail.greeting, "tls"]
