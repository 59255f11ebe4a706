"""``login``: the strongest mechanism, and nothing in the clear unless the caller allows it."""

from __future__ import annotations

import ssl
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Event as ThreadEvent
from threading import get_ident
from typing import TYPE_CHECKING, Any

import pytest
from gevent import get_hub, spawn
from gevent.event import Event

from greensmtp import (
    AuthenticationFailed,
    Command,
    Disconnected,
    Proceed,
    ProtocolError,
    Reply,
    Session,
    SMTPClient,
    SMTPServer,
    connect,
)
from tests.helpers import b64

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]


def dialogue(*turns: tuple[str, str], offers: str = "AUTH PLAIN LOGIN CRAM-MD5 XOAUTH2 OAUTHBEARER") -> Any:
    """Pairs of command and reply."""

    def script(script: Script) -> None:
        script.greet("PIPELINING", offers)
        for said, answer in turns:
            heard = script.hear()
            assert heard == said, (heard, said)
            script.say(answer)
        script.rest()

    return script


def test_plain(scripted: Start) -> None:
    server = scripted(dialogue((f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0) + 'secret')}", "235 2.7.0 in")))
    with server.connect() as mail:
        mail.ehlo()
        assert mail.login("jo", "secret", "PLAIN", allow_plaintext=True).code == 235
        assert mail.authenticated


def test_login_mechanism(scripted: Start) -> None:
    turns = [
        ("AUTH LOGIN", f"334 {b64('Username:')}"),
        (b64("jo"), f"334 {b64('Password:')}"),
        (b64("secret"), "535 5.7.8 no"),
    ]
    with scripted(dialogue(*turns)).connect() as mail:
        mail.ehlo()
        reply = mail.login("jo", "secret", "login", allow_plaintext=True)
        assert (reply.code, reply.enhanced) == (535, "5.7.8")
        assert not mail.authenticated


def test_cram_md5_is_used_without_tls_if_named(scripted: Start) -> None:
    turns = [
        ("AUTH CRAM-MD5", f"334 {b64('<1896.697170952@postoffice.reston.mci.net>')}"),
        (b64("tim b913a602c7eda7a495b4e6e7334d3890"), "235 in"),
    ]
    with scripted(dialogue(*turns)).connect() as mail:
        mail.ehlo()
        assert mail.login("tim", "tanstaaftanstaaf", "CRAM-MD5").code == 235


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_refused_token(scripted: Start, mechanism: str) -> None:
    initial = {
        "XOAUTH2": "user=jo\x01auth=Bearer t\x01\x01",
        "OAUTHBEARER": "n,a=jo,\x01auth=Bearer t\x01\x01",
    }[mechanism]
    turns = [
        (f"AUTH {mechanism} {b64(initial)}", f"334 {b64('{}')}"),
        ("" if mechanism == "XOAUTH2" else "AQ==", "535 5.7.8 expired"),
    ]
    with scripted(dialogue(*turns)).connect() as mail:
        mail.ehlo()
        assert mail.login("jo", token="t", mechanism=mechanism, allow_plaintext=True).code == 535


@pytest.mark.parametrize(
    "options",
    [
        {"password": "secret", "mechanism": "PLAIN"},
        {"password": "secret", "mechanism": "LOGIN"},
        {"token": "t"},
    ],
)
def test_no_secret_is_sent_in_the_clear(scripted: Start, options: dict[str, Any]) -> None:
    with scripted(dialogue()).connect() as mail:
        mail.ehlo()
        with pytest.raises(AuthenticationFailed, match="in the clear"):
            mail.login("jo", **options)


def test_plain_is_not_used_without_tls_if_only_plain_is_offered(scripted: Start) -> None:
    """An attacker that strips the offers must not get the password."""
    with scripted(dialogue(offers="AUTH PLAIN")).connect() as mail:
        mail.ehlo()
        with pytest.raises(AuthenticationFailed, match="in the clear"):
            mail.login("jo", "secret")


@pytest.mark.parametrize("challenge", ["not base64!", "A", "", b64("r=other,s=AAAA,i=4096")])
def test_a_malformed_challenge_cancels_the_exchange(scripted: Start, challenge: str) -> None:
    def script(script: Script) -> None:
        script.greet("AUTH SCRAM-SHA-256 PLAIN")
        script.expect("AUTH SCRAM-SHA-256 ")
        script.say(f"334 {challenge}")
        script.expect("*")
        script.say("501 5.7.0 cancelled")
        script.expect("NOOP")
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(AuthenticationFailed, match="cancelled") as caught:
            mail.login("jo", "secret")
        assert caught.value.reply is not None
        assert caught.value.reply.code == 501
        assert mail.noop().code == 250


def scram_server(password: str, *, prove: bool = True) -> Any:
    from scramp import ScramMechanism  # type: ignore[import-untyped]

    def script(script: Script) -> None:
        mechanism = ScramMechanism("SCRAM-SHA-256")
        salt, stored, server_key, iterations = mechanism.make_auth_info(password)
        server = mechanism.make_server(lambda _name: (salt, stored, server_key, iterations))
        script.greet("AUTH LOGIN PLAIN SCRAM-SHA-256")
        word = script.hear().split()
        assert word[:2] == ["AUTH", "SCRAM-SHA-256"]
        server.set_client_first(b64decode(word[2]).decode())
        script.say(f"334 {b64(server.get_server_first())}")
        final = b64decode(script.hear()).decode()
        if not prove:
            script.say("235 in, trust me")
        else:
            try:
                server.set_client_final(final)
            except Exception:
                script.say("535 5.7.8 no")
            else:
                script.say(f"334 {b64(server.get_server_final())}")
                script.expect("")
                script.say("235 2.7.0 in")
        script.rest()

    return script


def test_scram(scripted: Start) -> None:
    with scripted(scram_server("secret")).connect() as mail:
        mail.ehlo()
        assert mail.login("jo", "secret").code == 235
    with scripted(scram_server("secret")).connect() as mail:
        mail.ehlo()
        assert mail.login("jo", "wrong").code == 535


def test_scram_with_a_server_that_does_not_know_the_password(scripted: Start) -> None:
    mail = scripted(scram_server("secret", prove=False)).connect()
    mail.ehlo()
    with pytest.raises(AuthenticationFailed, match="prove"):
        mail.login("jo", "secret")
    assert mail.closed
    assert not mail.authenticated


def test_without_scramp_the_next_strongest_mechanism_is_used(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scramp", None)
    turns = [("AUTH CRAM-MD5", f"334 {b64('<x>')}")]
    server = scripted(dialogue(*turns, offers="AUTH SCRAM-SHA-256 CRAM-MD5"))
    mail = server.connect()
    mail.ehlo()
    with pytest.raises(ImportError, match=r"greensmtp\[scram\]"):
        mail.login("jo", "secret", "SCRAM-SHA-256")
    mail.close()


def test_a_long_initial_response_is_sent_after_the_challenge(scripted: Start) -> None:
    token = "t" * 2000
    turns = [
        ("AUTH XOAUTH2", "334 "),
        (b64(f"user=jo\x01auth=Bearer {token}\x01\x01"), "235 in"),
    ]
    with scripted(dialogue(*turns)).connect() as mail:
        mail.ehlo()
        assert mail.login("jo", token=token, mechanism="XOAUTH2", allow_plaintext=True).code == 235


def test_too_many_challenges_cancel_the_exchange(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("AUTH LOGIN")
        while line := script.hear():
            script.say("501 cancelled" if line == "*" else "334 ")

    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(AuthenticationFailed):
            mail.login("jo", "secret", allow_plaintext=True)


def test_no_common_mechanism_is_an_error(scripted: Start) -> None:
    with scripted(dialogue(offers="AUTH GSSAPI")).connect() as mail:
        mail.ehlo()
        with pytest.raises(AuthenticationFailed, match="GSSAPI"):
            mail.login("jo", "secret")
        with pytest.raises(TypeError):
            mail.login("jo")


def test_hashing_does_not_block_other_greenlets(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing runs in a thread; a login that is killed in the meantime closes the connection."""
    from greensmtp.protocol.sasl.client import ScramSHA256

    threads: list[int] = []
    respond = ScramSHA256.respond

    def note(self: ScramSHA256, challenge: bytes) -> bytes:
        threads.append(get_ident())
        return respond(self, challenge)

    monkeypatch.setattr(ScramSHA256, "respond", note)
    with scripted(scram_server("secret")).connect() as mail:
        mail.ehlo()
        assert mail.login("jo", "secret").code == 235
    assert threads
    assert get_ident() not in threads


@pytest.mark.parametrize("text", ["hunter2\ud800", "\udcffhunter2"])
def test_a_password_that_cannot_be_encoded_is_not_shown(scripted: Start, text: str) -> None:
    with scripted(dialogue()).connect() as mail:
        mail.ehlo()
        for credentials in ({"password": text}, {"token": text}):
            with pytest.raises(ProtocolError, match="surrogates") as caught:
                mail.login("jo", allow_plaintext=True, **credentials)
            assert "hunter2" not in str(caught.value)
            assert caught.value.__context__ is None


def test_killed_while_the_password_is_hashed(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from greensmtp.protocol.sasl.client import ScramSHA256

    there, go = get_hub().loop.async_(), ThreadEvent()
    hashing = Event()
    there.start(hashing.set)

    def respond(self: ScramSHA256, challenge: bytes) -> bytes:
        there.send()
        go.wait(20)
        return b""

    monkeypatch.setattr(ScramSHA256, "respond", respond)

    def script(script: Script) -> None:
        script.greet("AUTH SCRAM-SHA-256")
        script.hear()
        script.say("334 AAAA")
        assert script.rest() == b""

    mail = scripted(script).connect(timeout=20)
    mail.ehlo()
    greenlet = spawn(mail.login, "jo", "secret")
    try:
        assert hashing.wait(20)
        greenlet.kill()
        assert mail.closed
    finally:
        go.set()
        there.stop()
        there.close()


def test_killed_in_the_middle_of_an_exchange(scripted: Start) -> None:
    """The next command would be taken for a response."""
    there = Event()

    def script(script: Script) -> None:
        script.greet("AUTH LOGIN")
        script.hear()
        script.say("334 VXNlcm5hbWU6")
        script.hear()
        there.set()
        assert script.rest() == b""

    mail = scripted(script).connect(timeout=20)
    mail.ehlo()
    greenlet = spawn(mail.login, "jo", "secret", allow_plaintext=True)
    assert there.wait(20)
    greenlet.kill()
    assert mail.closed


def test_the_secret_is_not_shown(scripted: Start) -> None:
    with scripted(dialogue()).connect() as mail:
        mail.ehlo()
        with pytest.raises(ProtocolError) as caught:
            mail.login("jo", "hunter2\r\n", allow_plaintext=True)
        assert "hunter2" not in str(caught.value)


# The next mechanism


@pytest.mark.parametrize("prompt", ["Username:", "334", "", "VXNlcm5hbWU6", "not base64!", "\u00dc"])
def test_login_ignores_the_text_of_its_prompts(scripted: Start, prompt: str) -> None:
    turns = [
        ("AUTH LOGIN", f"334 {prompt}"),
        (b64("jo"), f"334 {prompt}"),
        (b64("secret"), "235 in"),
    ]
    with scripted(dialogue(*turns)).connect() as mail:
        mail.ehlo()
        assert mail.login("jo", "secret", "LOGIN", allow_plaintext=True).code == 235


def test_login_sends_ehlo_first(scripted: Start) -> None:
    turns = [(f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0) + 'secret')}", "235 in")]
    with scripted(dialogue(*turns, offers="AUTH PLAIN")).connect() as mail:
        assert mail.login("jo", "secret", allow_plaintext=True).code == 235
        assert mail.hello is not None


@pytest.fixture
def secure_dialogue(certificate: Certificate) -> Iterator[Callable[..., SMTPClient]]:
    """A client over TLS, whose server answers each AUTH with a given reply."""
    context = ssl.create_default_context(cafile=str(certificate.authority))
    stack = ExitStack()

    def start(offers: str, answers: dict[str, list[str]]) -> SMTPClient:
        def answer(session: Session, command: Command, proceed: Proceed) -> Reply:
            if command.verb == "EHLO":
                return Reply(250, "mx", f"AUTH {offers}")
            if command.verb == "AUTH":
                name = str(command.argument).split()[0]
                tried.append(name)
                code, _, text = answers[name].pop(0).partition(" ")
                return Reply(int(code), text)
            return proceed(session, command)

        server = SMTPServer(
            ("127.0.0.1", 0),
            certfile=certificate.certfile,
            keyfile=certificate.keyfile,
            implicit_tls=True,
            middleware=[answer],
        )
        server.start()
        stack.callback(server.stop, 1)
        mail = connect(*server.address, tls=True, ssl_context=context, server_hostname="localhost", timeout=5)
        stack.callback(mail.close)
        return mail

    tried: list[str] = []
    start.tried = tried  # type: ignore[attr-defined]
    with stack:
        yield start


@pytest.mark.parametrize("code", [504, 534, 535])
def test_over_tls_a_refused_mechanism_is_followed_by_the_next(secure_dialogue: Any, code: int) -> None:
    answers = {"SCRAM-SHA-256": [f"{code} no"], "PLAIN": ["235 in"]}
    assert secure_dialogue("PLAIN SCRAM-SHA-256", answers).login("jo", "secret").code == 235
    assert secure_dialogue.tried == ["SCRAM-SHA-256", "PLAIN"]


def test_a_wrong_password_is_two_failed_logins_at_most(secure_dialogue: Any) -> None:
    answers = {name: ["535 5.7.8 no"] for name in ("SCRAM-SHA-256", "PLAIN")}
    reply = secure_dialogue("LOGIN PLAIN CRAM-MD5 SCRAM-SHA-256", answers).login("jo", "secret")
    assert reply.code == 535
    assert secure_dialogue.tried == ["SCRAM-SHA-256", "PLAIN"]


def test_a_named_mechanism_is_followed_by_no_other(secure_dialogue: Any) -> None:
    answers = {"SCRAM-SHA-256": ["504 no"]}
    assert secure_dialogue("PLAIN SCRAM-SHA-256", answers).login("jo", "secret", "SCRAM-SHA-256").code == 504
    assert secure_dialogue.tried == ["SCRAM-SHA-256"]


@pytest.mark.parametrize("answer", ["454 4.7.0 later", "530 5.7.0 no", "421 4.3.2 bye", "432 4.7.12 new password"])
def test_other_refusals_end_the_login(secure_dialogue: Any, answer: str) -> None:
    answers = {"SCRAM-SHA-256": [answer]}
    assert secure_dialogue("PLAIN SCRAM-SHA-256", answers).login("jo", "secret").code == int(answer[:3])
    assert secure_dialogue.tried == ["SCRAM-SHA-256"]


def test_another_refusal_is_reported_rather_than_504(secure_dialogue: Any) -> None:
    answers = {"SCRAM-SHA-256": ["535 5.7.8 no"], "PLAIN": ["504 no"], "LOGIN": ["504 no"]}
    assert secure_dialogue("PLAIN LOGIN SCRAM-SHA-256", answers).login("jo", "secret").code == 535


def test_a_password_that_scram_cannot_prepare_uses_the_next_mechanism(secure_dialogue: Any) -> None:
    answers = {"PLAIN": ["235 in"]}
    assert secure_dialogue("PLAIN SCRAM-SHA-256", answers).login("jo", "\u0221\ue000secret").code == 235
    assert secure_dialogue.tried == ["PLAIN"]


@pytest.mark.parametrize("code", [504, 534, 535])
def test_without_tls_no_weaker_mechanism_follows(scripted: Start, code: int) -> None:
    """An attacker between client and server can refuse SCRAM."""

    def script(script: Script) -> None:
        script.greet("AUTH SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN")
        script.expect("AUTH SCRAM-SHA-256 ")
        script.say(f"{code} no")
        script.expect("NOOP")
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect(starttls="never") as mail:
        assert mail.login("jo", "secret").code == code
        assert mail.noop().code == 250


def test_without_tls_an_equally_strong_mechanism_follows(scripted: Start) -> None:
    plain = f"AUTH PLAIN {b64(chr(0) + 'jo' + chr(0) + 'secret')}"
    turns = [(plain, "504 no"), ("AUTH LOGIN", "334 "), (b64("jo"), "334 "), (b64("secret"), "235 in")]
    with scripted(dialogue(*turns, offers="AUTH PLAIN LOGIN")).connect() as mail:
        assert mail.login("jo", "secret", allow_plaintext=True).code == 235


@pytest.mark.parametrize("challenge", ["not base64!", b64("r=other,s=AAAA,i=4096"), b64("\xff\xfe")])
def test_a_bad_scram_challenge_prints_no_traceback(
    scripted: Start, challenge: str, capfd: pytest.CaptureFixture[str]
) -> None:
    turns = ["501 5.7.0 cancelled"]

    def script(script: Script) -> None:
        script.greet("AUTH SCRAM-SHA-256")
        script.hear()
        script.say(f"334 {challenge}")
        script.expect("*")
        script.say(*turns)
        script.rest()

    with scripted(script).connect(starttls="never") as mail, pytest.raises(AuthenticationFailed, match="cancelled"):
        mail.login("jo", "secret")
    assert capfd.readouterr().err == ""


def test_hashing_without_a_free_thread_times_out(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from greensmtp.protocol.sasl.client import ScramSHA256

    go = ThreadEvent()
    monkeypatch.setattr(ScramSHA256, "respond", lambda *_: go.wait(20) and b"")

    def script(script: Script) -> None:
        script.greet("AUTH SCRAM-SHA-256")
        script.hear()
        script.say("334 AAAA")
        assert script.rest() == b""

    mail = scripted(script).connect(timeout=0.2, starttls="never")
    try:
        with pytest.raises(Disconnected, match="timeout"):
            mail.login("jo", "secret")
        assert mail.closed
    finally:
        go.set()


@pytest.mark.parametrize("answer", ["454 4.7.0 later", "421 4.7.0 too many", "504 no", "538 5.7.11 no"])
def test_535_is_reported_whatever_follows(secure_dialogue: Any, answer: str) -> None:
    """A pool relies on it, and must not try the next host."""
    answers = {"SCRAM-SHA-256": ["535 5.7.8 no"], "PLAIN": [answer]}
    assert secure_dialogue("PLAIN SCRAM-SHA-256", answers).login("jo", "secret").code == 535
    assert secure_dialogue.tried == ["SCRAM-SHA-256", "PLAIN"]


def test_535_is_reported_if_the_server_closes_the_connection_after_it(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("AUTH PLAIN LOGIN")
        script.expect("AUTH PLAIN ")
        script.say("534 5.7.9 too weak")
        script.expect("AUTH LOGIN")

    mail = scripted(script).connect()
    with pytest.raises(Disconnected):  # 534 tells nothing about the password
        mail.login("jo", "secret", allow_plaintext=True)

    def wrong(script: Script) -> None:
        script.greet("AUTH OAUTHBEARER XOAUTH2 PLAIN")
        script.expect("AUTH OAUTHBEARER ")
        script.say("535 5.7.8 no")

    mail = scripted(wrong).connect()
    assert mail.login("jo", token="t", allow_plaintext=True).code == 535


@pytest.mark.parametrize(
    "echo",
    [
        "500 unknown command: {}",
        "535 5.7.8 no: {}",
        "235 welcome, {}",
        "454-4.7.0 {}\r\n454 4.7.0 later",
    ],
)
@pytest.mark.parametrize("length", [None, 20])
def test_a_reply_that_repeats_the_password_is_masked(scripted: Start, echo: str, length: int | None) -> None:
    def script(peer: Script) -> None:
        peer.greet("AUTH PLAIN")
        peer.say(echo.format(peer.hear()[:length]))
        peer.rest()

    shown: list[str] = []
    with scripted(script).connect(starttls="never") as mail:
        mail.trace(shown.append)
        reply = mail.login("jo", "a secret", allow_plaintext=True)
    octets = b64(b"\0jo\0a secret")
    assert "AUTH PLAIN ***" in str(reply.lines)
    assert octets[:8] not in str((reply, reply.lines, shown))
