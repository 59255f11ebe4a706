"""Whole dialogues, cut between any two bytes of the server's output: SASL, STARTTLS, a message."""

from __future__ import annotations

import ssl
from base64 import b64decode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import ssl as gevent_ssl

from greensmtp import AuthenticationFailed, PeerProtocolError, RecipientsRefused, SMTPClient, TLSFailed
from tests.helpers import b64

if TYPE_CHECKING:
    from tests.client.conftest import Converse, Script
    from tests.conftest import Certificate, Cuts

FROM, TO = "a@example.com", "b@example.com"


#: What precedes every login. ``test_a_message`` cuts that, too.
GREETING = "220 mx.example.com ESMTP\r\n250-mx.example.com\r\n"


def dialogue(offers: str, *turns: tuple[str, str]) -> Callable[[Script], None]:
    """Return a script: the banner, pairs of command and reply, and NOOP and QUIT to see that both sides are in step."""

    def script(script: Script) -> None:
        script.greet("PIPELINING", offers)
        for said, answer in (*turns, ("NOOP", "250 Ok"), ("QUIT", "221 Bye")):
            heard = script.hear()
            assert heard == said, (heard, said)
            script.say(answer)

    return script


TOKEN = {"XOAUTH2": "user=jo\x01auth=Bearer t\x01\x01", "OAUTHBEARER": "n,a=jo,\x01auth=Bearer t\x01\x01"}

#: mechanism -> pairs of command and reply
GOOD: dict[str, list[tuple[str, str]]] = {
    "PLAIN": [(f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0) + 'secret')}", "235-2.7.0 in\r\n235 2.7.0 at last")],
    "LOGIN": [
        ("AUTH LOGIN", f"334 {b64('Username:')}"),
        (b64("jo"), f"334 {b64('Password:')}"),
        (b64("secret"), "235 2.7.0 in"),
    ],
    "CRAM-MD5": [
        ("AUTH CRAM-MD5", f"334 {b64('<1896.697170952@postoffice.reston.mci.net>')}"),
        (b64("jo 733ba87e64ed7e441f062c4ac6db0103"), "235 2.7.0 in"),
    ],
    "XOAUTH2": [(f"AUTH XOAUTH2 {b64(TOKEN['XOAUTH2'])}", "235 2.7.0 in")],
    "OAUTHBEARER": [(f"AUTH OAUTHBEARER {b64(TOKEN['OAUTHBEARER'])}", "235 2.7.0 in")],
}

BAD: dict[str, list[tuple[str, str]]] = {
    "PLAIN": [(GOOD["PLAIN"][0][0], "535-5.7.8 no\r\n535 5.7.8 really")],
    "LOGIN": [*GOOD["LOGIN"][:2], (b64("secret"), "535 5.7.8 no")],
    "CRAM-MD5": [GOOD["CRAM-MD5"][0], (GOOD["CRAM-MD5"][1][0], "535 5.7.8 no")],
    "XOAUTH2": [(GOOD["XOAUTH2"][0][0], f"334 {b64('{}')}"), ("", "535 5.7.8 expired")],
    "OAUTHBEARER": [(GOOD["OAUTHBEARER"][0][0], f"334 {b64('{}')}"), ("AQ==", "535 5.7.8 expired")],
}


def login(mail: SMTPClient, mechanism: str) -> int:
    mail.ehlo()
    secret: dict[str, Any] = {"token": "t"} if mechanism in TOKEN else {"password": "secret"}
    return mail.login("jo", mechanism=mechanism, allow_plaintext=True, **secret).code


@pytest.mark.parametrize(("turns", "code"), [(GOOD, 235), (BAD, 535)], ids=["good", "bad"])
@pytest.mark.parametrize("mechanism", GOOD)
def test_login(converse: Converse, mechanism: str, turns: dict[str, list[tuple[str, str]]], code: int) -> None:
    def client(mail: SMTPClient) -> None:
        assert login(mail, mechanism) == code
        assert mail.authenticated == (code == 235)
        assert mail.noop().code == 250

    converse.at_every_cut(dialogue(f"AUTH {mechanism}", *turns[mechanism]), client, start=len(GREETING))


@pytest.mark.parametrize("answer", ["not base64!", "", "////"])
def test_a_cancelled_login(converse: Converse, answer: str) -> None:
    def script(script: Script) -> None:
        script.greet("AUTH SCRAM-SHA-256")
        script.expect("AUTH SCRAM-SHA-256 ")
        script.say(f"334 {answer}")
        script.expect("*")
        script.say("501 5.7.0 cancelled")
        script.expect("NOOP")
        script.say("250 Ok")
        script.expect("QUIT")
        script.say("221 Bye")

    def client(mail: SMTPClient) -> None:
        with pytest.raises(AuthenticationFailed, match="cancelled"):
            login(mail, "SCRAM-SHA-256")
        assert mail.noop().code == 250

    converse.at_every_cut(script, client, start=len(GREETING))


@pytest.mark.parametrize("prove", [True, False])
def test_scram(converse: Converse, prove: bool) -> None:
    from scramp import ScramMechanism  # type: ignore[import-untyped]

    mechanism = ScramMechanism("SCRAM-SHA-256")
    known = mechanism.make_auth_info("secret", salt=b"salt of the earth")

    def script(script: Script) -> None:
        server = mechanism.make_server(lambda _name: known, s_nonce="nonce")
        script.greet("AUTH SCRAM-SHA-256")
        server.set_client_first(b64decode(script.hear().split()[2]).decode())
        script.say(f"334 {b64(server.get_server_first())}")
        server.set_client_final(b64decode(script.hear()).decode())
        if prove:
            script.say(f"334 {b64(server.get_server_final())}")
            script.expect("")
        script.say("235 2.7.0 in")
        script.rest()

    def client(mail: SMTPClient) -> None:
        if prove:
            assert login(mail, "SCRAM-SHA-256") == 235
            return
        with pytest.raises(AuthenticationFailed, match="prove"):
            login(mail, "SCRAM-SHA-256")
        assert mail.closed

    converse.at_every_cut(script, client, start=len(GREETING), step=1 if prove else 7)


# STARTTLS


@pytest.fixture(scope="module")
def contexts(certificate: Certificate) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The client's and the server's TLS context."""
    ours: ssl.SSLContext = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    theirs: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(str(certificate.certfile), str(certificate.keyfile))
    return ours, theirs


class Records:
    """A Script's socket in TLS. The script sends the TLS records itself, and so can cut them."""

    def __init__(self, script: Script, context: ssl.SSLContext) -> None:
        self._script = script
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ssl.SSLContext.wrap_bio(context, self._in, self._out, server_side=True)
        self._call(self._tls.do_handshake)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                return function(*args)
            except ssl.SSLWantReadError:
                self._flush()
                piece = self._script.socket.recv(65536)
                if not piece:
                    raise ConnectionError("closed in the middle of TLS") from None
                self._in.write(piece)
            finally:
                self._flush()

    def _flush(self) -> None:
        octets = self._out.read()
        if octets:
            self._script.send(octets)

    def recv(self, size: int) -> bytes:
        try:
            octets: bytes = self._call(self._tls.read, size)
        except ConnectionError:
            return b""
        return octets

    def sendall(self, octets: bytes) -> None:
        self._call(self._tls.write, octets)


def in_tls(script: Script, context: ssl.SSLContext) -> None:
    """Answer STARTTLS, and run a dialogue in TLS."""
    script.greet("STARTTLS")
    script.expect("STARTTLS")
    script.say("220-2.0.0 ready", "220 2.0.0 go")
    inner = type(script)(Records(script, context))
    inner.expect("EHLO ")
    inner.say("250-mx.example.com", "250 PIPELINING")
    inner.expect("NOOP")
    inner.say("250 Ok")
    inner.expect("QUIT")
    inner.say("221 Bye")


def test_starttls(converse: Converse, cuts: Cuts, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Cut the plaintext, and, in fewer places, the handshake and what follows it."""
    ours, theirs = contexts
    spoken = len(
        "220 mx.example.com ESMTP\r\n250-mx.example.com\r\n250 STARTTLS\r\n220-2.0.0 ready\r\n220 2.0.0 go\r\n"
    )

    def client(mail: SMTPClient) -> None:
        mail.ehlo()
        assert mail.starttls(ours).code == 220
        assert mail.hello is None
        mail.ehlo()
        assert mail.extensions == {"PIPELINING": ""}
        assert mail.noop().code == 250

    def script(script: Script) -> None:
        in_tls(script, theirs)

    said = converse(script, client)
    assert len(said) > spoken + 1000
    for cut in [*cuts(said, stop=spoken + 12), *cuts(b"x" * len(said), start=spoken + 12, step=43)]:
        converse(script, client, cut)


@pytest.mark.parametrize("extra", ["250 injected\r\n", "250-mx\r\n250 AUTH PLAIN\r\n"])
def test_text_before_the_handshake(
    converse: Converse, cuts: Cuts, contexts: tuple[ssl.SSLContext, ssl.SSLContext], extra: str
) -> None:
    """CVE-2011-0411: at no cut is plaintext taken for text within TLS."""
    ours, theirs = contexts

    def script(script: Script) -> None:
        script.greet("STARTTLS")
        script.expect("STARTTLS")
        try:
            script.send(f"220 go\r\n{extra}".encode())
            Records(script, theirs)
        except (OSError, ssl.SSLError):
            pass
        assert b"EHLO" not in script.heard.split(b"STARTTLS")[1]

    def client(mail: SMTPClient) -> None:
        mail.ehlo()
        with pytest.raises((PeerProtocolError, TLSFailed)):
            mail.starttls(ours)
        assert mail.closed
        assert not mail.tls

    said = f"220 mx.example.com ESMTP\r\n250-mx.example.com\r\n250 STARTTLS\r\n220 go\r\n{extra}".encode()
    for cut in cuts(said, len(said) - len(extra) - len("220 go\r\n"), len(said) + 1):
        converse(script, client, cut)


# A message


def test_a_message(converse: Converse) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING", "SIZE")
        script.expect("MAIL", "RCPT", "RCPT", "DATA")
        script.say("250 2.1.0 Ok", "550-5.1.1 no", "550 5.1.1 such user", "250 2.1.5 Ok", "354 go on")
        assert script.body() == b"x\r\n"
        script.say("250-2.0.0 Ok", "250 2.0.0 queued as 4XyZ")
        script.expect("QUIT")
        script.say("221 Bye")

    def client(mail: SMTPClient) -> None:
        sent = mail.send(b"x", FROM, ["no@example.com", TO])
        assert (sent.accepted, list(sent.refused), sent.queue_id) == ((TO,), ["no@example.com"], "4XyZ")

    converse.at_every_cut(script, client)


def test_354_without_recipients(converse: Converse) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "550 no", "354 go")
        assert script.body() == b""
        script.say("554 nobody")
        script.expect("QUIT")
        script.say("221 Bye")

    def client(mail: SMTPClient) -> None:
        with pytest.raises(RecipientsRefused):
            mail.send(b"the secret body", FROM, TO)

    converse.at_every_cut(script, client)
