"""AUTH (RFC 4954), mechanism by mechanism, and with callables that check."""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep

from greensmtp import Reject, in_thread_pool
from greensmtp.middleware import Auth
from greensmtp.middleware.auth.credentials import Credentials
from greensmtp.testing import dial
from tests.helpers import b64
from tests.middleware.logins import PLAIN_JO, PLAIN_WRONG, USERS, in_the_clear

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer


# The mechanisms


def test_login_asks_for_name_and_password(peer_of: Any) -> None:
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


def test_cram_md5_has_a_new_challenge_each_time(peer_of: Any) -> None:
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


def test_cram_md5_without_a_digest_gets_501(peer_of: Any) -> None:
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
def test_a_bearer_token_is_checked(peer_of: Any, mechanism: str, response: str) -> None:
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


def test_a_callable_gets_the_credentials_and_may_return_the_name(peer_of: Any) -> None:
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
def test_an_empty_answer_of_a_callable_gets_535(peer_of: Any, answer: Any) -> None:
    with peer_of(in_the_clear(lambda credentials: answer)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("535")


@pytest.mark.parametrize("answer", [1, [0], object(), b"jo"])
def test_a_callable_that_returns_another_type_gets_454(
    peer_of: Any, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with peer_of(in_the_clear(lambda credentials: answer)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0")
    assert "raised TypeError" in caplog.text


def test_a_callable_that_raises_gets_454(peer_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    def check(credentials: Credentials) -> bool:
        raise KeyError(credentials.password)

    with peer_of(in_the_clear(check)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 Temporary")
    assert "raised KeyError" in caplog.text
    assert "in check" in caplog.text  # where it was
    assert "'sesame'" not in caplog.text


def test_a_callable_that_raises_in_the_thread_pool_gets_454(
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


def test_a_callable_that_rejects_sets_the_reply(peer_of: Any) -> None:
    def check(credentials: Credentials) -> bool:
        raise Reject(432, "4.7.12 a password transition is needed")

    with peer_of(in_the_clear(check)) as peer:
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("432 4.7.12 a password transition is needed")


def test_a_callable_that_takes_too_long_gets_454(peer_of: Any, caplog: pytest.LogCaptureFixture) -> None:
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


# Cut anywhere


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
def test_a_dialogue_cut_at_every_byte(smtp_server: MakeServer, mechanism: str) -> None:
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
