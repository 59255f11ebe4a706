"""SCRAM-SHA-256, with scramp's client at the other end, over real connections."""

from __future__ import annotations

import hashlib
import re
import sys
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest
import scramp.utils  # type: ignore[import-untyped]
from scramp import ScramException

from greensmtp.middleware import Auth
from greensmtp.protocol.sasl.exchange import ScramKeys
from greensmtp.testing import dial
from tests.helpers import b64
from tests.middleware.scram import USERS, answer, client_for, first, log_in, log_in_as

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer


@pytest.mark.parametrize(("name", "password"), USERS.items())
def test_a_login_without_tls(smtp_server: MakeServer, name: str, password: str) -> None:
    server = smtp_server(start=False, middleware=[Auth(USERS)])
    known = []

    @server.on("auth")
    def keep(session: Any, identity: Any, ack: Any) -> None:
        known.append(identity)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert log_in(peer, client_for(name, "wrong")).startswith("535 5.7.8")
        assert log_in(peer, client_for("nobody", password)).startswith("535 5.7.8")
        assert log_in(peer, client_for(name, password)).startswith("235 2.7.0")
    ((identity),) = known
    assert (identity.authcid, identity.mechanism) == (name, "SCRAM-SHA-256")


def test_an_exchange_cut_at_every_byte(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Auth(USERS)])
    length = len(f"AUTH SCRAM-SHA-256 {b64('n,,n=jo,r=nonce')}\r\n")
    cut = 0
    while cut <= length:
        with dial(server) as peer:
            peer.hello()
            client = client_for("jo", "sesame", c_nonce="nonce")
            client.set_server_first(first(peer, client, cut=cut))
            final = f"{b64(client.get_client_final())}\r\n"
            length = max(length, len(final))
            peer.send(final, cut=min(cut, len(final)))
            client.set_server_final(answer(peer))
            peer.send("\r\nNOOP\r\n", cut=min(cut, 8))
            peer.expect("235", "250")
        cut += 1


@pytest.mark.parametrize(
    ("final", "reply"),
    [
        ("*", "501 5.7.0"),
        (b64("c=biws"), "535"),
        (b64("c=biws,r=other,p=AAAA"), "535"),
        (b64("c=!,r=x,p=x"), "535"),
        ("/w==", "501 5.5.2"),
        ("", "535"),
    ],
)
def test_a_malformed_final_message_fails(smtp_server: MakeServer, final: str, reply: str) -> None:
    with dial(smtp_server(start=False, middleware=[Auth(USERS)])) as peer:
        peer.hello()
        assert first(peer, client_for("jo", "sesame")).startswith("r=")
        peer.line(final)
        peer.expect(reply)


def test_an_answer_after_the_proof_must_be_empty(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, middleware=[Auth(USERS, required=True)])) as peer:
        peer.hello()
        client = client_for("jo", "sesame")
        client.set_server_first(first(peer, client))
        peer.line(b64(client.get_client_final()))
        assert answer(peer).startswith("v=")
        peer.line("AA==")
        peer.expect("501 5.5.2")
        peer.line("MAIL FROM:<>")
        peer.expect("530")


# Acting as another user


@pytest.mark.parametrize(
    ("header", "signed", "code"),
    [
        ("n,,", None, "235"),
        ("n,a=jo,", None, "235"),
        ("y,a=jo,", None, "235"),
        ("n,a=ann,", None, "535"),
        ("n,a=jo,", "n,,", "535"),
        ("n,a=jo,", "n,a=ann,", "535"),
        ("n,,", "n,a=jo,", "535"),
    ],
)
def test_an_authzid_must_be_the_name_and_signed(
    smtp_server: MakeServer, header: str, signed: str | None, code: str
) -> None:
    with dial(smtp_server(start=False, middleware=[Auth(USERS)])) as peer:
        peer.hello()
        assert log_in_as(peer, header, signed)[:3] == code


def test_authorize_decides_about_acting_as_another_user(smtp_server: MakeServer) -> None:
    asked = []

    def authorize(identity: Any, session: Any) -> bool:
        asked.append((identity.authcid, identity.authzid))
        return bool(identity.authzid == "of,fice")

    with dial(smtp_server(start=False, middleware=[Auth(USERS, authorize=authorize)])) as peer:
        peer.hello()
        assert log_in_as(peer, "n,a=boss,").startswith("535 5.7.8")
        assert log_in_as(peer, "n,a=of=2Cfice,", "n,a=boss,").startswith("535 5.7.8")
        assert log_in_as(peer, "n,a=of=2Cfice,").startswith("235")
    assert asked == [("jo", "boss"), ("jo", "of,fice")]


# Unknown users


@pytest.mark.parametrize(("name", "password"), [("nobody", "guessed"), ("odd", "guessed"), ("empty", "")])
def test_the_stand_in_password_is_refused(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch, name: str, password: str
) -> None:
    monkeypatch.setattr("greensmtp.middleware.auth.resolver.token_urlsafe", lambda octets: "guessed")
    users = {"jo": "sesame", "odd": "\u0007", "empty": ""}
    with dial(smtp_server(start=False, middleware=[Auth(users)])) as peer:
        peer.hello()
        assert log_in(peer, client_for(name, password)).startswith("535 5.7.8")


def salt(challenge: str) -> str:
    match = re.fullmatch(r"r=[^,]{40,},s=([A-Za-z0-9+/]{22}==),i=4096", challenge)
    assert match, challenge
    return match[1]


def test_unknown_users_look_like_known_ones(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The challenge has the same form, the same salt each time, and takes the same work."""
    computed = []
    real = hashlib.pbkdf2_hmac

    def counting(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        computed.append((name, len(salt), iterations))
        return real(name, password, salt, iterations)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counting)
    auth = Auth({"jo": "sesame", "odd": "\u0007"}, failures_by_client=None, failures_by_account=None)
    work = []
    with dial(smtp_server(start=False, middleware=[auth])) as peer:
        peer.hello()
        salts = []
        for name in ("jo", "jo", "nobody", "nobody", "who", "odd"):
            before = len(computed)
            salts.append(salt(first(peer, client_for(name, "x"))))
            peer.line("*")
            peer.expect("501")
            work.append(computed[before:])
    # At a second attempt as well: keys from a cache would be quicker for known users.
    assert work == [[("sha256", 16, 4096)]] * 6
    assert salts[0] == salts[1]
    assert salts[2] == salts[3]
    assert len(set(salts)) == 4


def test_a_changed_password_counts_at_once(smtp_server: MakeServer) -> None:
    users = {"jo": "sesame"}
    server = smtp_server(start=False, middleware=[Auth(users)])
    with dial(server) as peer:
        peer.hello()
        assert log_in(peer, client_for("jo", "sesame")).startswith("235")
    users["jo"] = "tahini"
    with dial(server) as peer:
        peer.hello()
        assert log_in(peer, client_for("jo", "sesame")).startswith("535")
        assert log_in(peer, client_for("jo", "tahini")).startswith("235")
    del users["jo"]
    with dial(server) as peer:
        peer.hello()
        assert log_in(peer, client_for("jo", "tahini")).startswith("535")


def test_a_backend_may_have_keys_instead_of_passwords(smtp_server: MakeServer) -> None:
    keys = {"jo": ScramKeys.derive("sesame", iterations=5000)}

    class Store:
        def get_scram_keys(self, username: str) -> ScramKeys | None:
            return keys.get(username)

    with dial(smtp_server(start=False, middleware=[Auth(Store())])) as peer:
        assert peer.hello().endswith("AUTH SCRAM-SHA-256")
        assert log_in(peer, client_for("jo", "tahini")).startswith("535")
        challenges = set()
        for _ in range(2):
            challenges.add(salt(first(peer, client_for("nobody", "x"))))
            peer.line("*")
            peer.expect("501")
        assert len(challenges) == 1
        assert log_in(peer, client_for("nobody", "sesame")).startswith("5")
        assert log_in(peer, client_for("jo", "sesame")).startswith("235")
    assert "stored_key" not in repr(keys)


def test_a_key_store_that_returns_another_type_is_a_fault(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Store:
        def get_scram_keys(self, username: str) -> Any:
            return (b"salt", b"hunter2", b"hunter2", 4096)

    with dial(smtp_server(start=False, middleware=[Auth(Store())])) as peer:
        peer.hello()
        assert first(peer, client_for("jo", "x")).startswith("454 4.7.0")
    assert "raised TypeError" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"salt": b"short"}, {"stored_key": b""}, {"server_key": b"x" * 31}, {"iterations": 4095}]
)
def test_malformed_keys_are_refused(wrong: Any) -> None:
    good: dict[str, Any] = {"salt": b"s" * 16, "stored_key": b"k" * 32, "server_key": b"k" * 32}
    ScramKeys(**good)
    with pytest.raises(ValueError, match="12 bytes"):
        ScramKeys(**good | wrong)


class Keys:
    """A backend that knows jo's keys, but no password."""

    def get_scram_keys(self, username: str) -> ScramKeys | None:
        return ScramKeys.derive("sesame", b"j" * 16) if username == "jo" else None


@pytest.mark.parametrize(("length", "iterations"), [(12, 4096), (20, 4096), (32, 10_000)])
def test_unknown_users_look_as_the_backend_says(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, length: int, iterations: int
) -> None:
    class Store(Keys):
        scram_iterations = iterations
        scram_salt_length = length

        def get_scram_keys(self, username: str) -> ScramKeys | None:
            return ScramKeys.derive("sesame", b"j" * length, iterations) if username == "jo" else None

    with dial(smtp_server(start=False, middleware=[Auth(Store())])) as peer:
        peer.hello()
        for name in ("jo", "nobody"):
            challenge = first(peer, client_for(name, "x"))
            assert len(b64decode(challenge.partition(",s=")[2].partition(",")[0])) == length
            assert challenge.endswith(f",i={iterations}")
            peer.line("*")
            peer.expect("501")
    assert "SCRAM keys with" not in caplog.text


@pytest.mark.parametrize("keys", [{"salt": b"j" * 24}, {"salt": b"j" * 16, "iterations": 5000}])
def test_keys_unlike_those_of_unknown_users_are_warned_of_once(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, keys: dict[str, Any]
) -> None:
    class Store(Keys):
        def get_scram_keys(self, username: str) -> ScramKeys | None:
            return ScramKeys.derive("sesame", **keys)

    with dial(smtp_server(start=False, middleware=[Auth(Store())])) as peer:
        peer.hello()
        for _ in range(2):
            first(peer, client_for("jo", "x"))
            peer.line("*")
            peer.expect("501")
    (text,) = (text for text in caplog.messages if "SCRAM keys with" in text)
    assert text.startswith(
        f"auth: SCRAM keys with {len(keys['salt'])} bytes of salt and {keys.get('iterations', 4096)} "
    )


@pytest.mark.parametrize("length", [11, 33, True, "16"])
def test_a_wrong_length_of_salts_is_refused(length: Any) -> None:
    store = Keys()
    store.scram_salt_length = length  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="scram_salt_length takes a whole number of at least 12 and at most 32"):
        Auth(store)


def test_unknown_users_have_the_iterations_that_the_backend_says(smtp_server: MakeServer) -> None:
    class Many:
        scram_iterations = 10_000

        def get_scram_keys(self, username: str) -> ScramKeys | None:
            return ScramKeys.derive("sesame", b"j" * 16, 10_000) if username == "jo" else None

    with dial(smtp_server(start=False, middleware=[Auth(Many())])) as peer:
        peer.hello()
        for name in ("jo", "nobody"):
            assert re.fullmatch(r"r=[^,]{40,},s=[A-Za-z0-9+/]{22}==,i=10000", first(peer, client_for(name, "x")))
            peer.line("*")
            peer.expect("501")
    Many.scram_iterations = 1
    with pytest.raises(ValueError, match="scram_iterations takes a whole number of at least 4096, not 1"):
        Auth(Many())


@pytest.mark.parametrize("name", ["jo", "ann,=x", "long", "odd", "empty", "nobody"])
def test_saslprep_looks_at_as_many_characters_for_every_user(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """saslprep takes a few microseconds for each character, so its time could tell users apart."""
    prepared = []
    real = scramp.utils.saslprep

    def counting(text: str) -> str:
        prepared.append(text)
        return str(real(text))

    monkeypatch.setattr("scramp.utils.saslprep", counting)
    users = {**USERS, "long": "x" * 50, "odd": "\u0007", "empty": ""}
    with dial(smtp_server(start=False, middleware=[Auth(users)])) as peer:
        peer.hello()
        said = name.translate({ord("="): "=3D", ord(","): "=2C"})
        peer.line(f"AUTH SCRAM-SHA-256 {b64(f'n,,n={said},r=nonce')}")
        peer.expect("334")
    assert sum(map(len, prepared)) == 64


@pytest.mark.parametrize("users", [USERS, Keys()])
def test_with_the_same_secret_every_process_has_the_same_salts(smtp_server: MakeServer, users: Any) -> None:
    """A salt that differs between processes, or after a restart, would reveal an unknown user."""

    def salts(secret: Any) -> list[str]:
        with dial(smtp_server(start=False, middleware=[Auth(users, secret=secret)])) as peer:
            peer.hello()
            found = []
            for name in ("jo", "nobody", "who"):
                found.append(salt(first(peer, client_for(name, "x"))))
                peer.line("*")
                peer.expect("501")
            assert log_in(peer, client_for("jo", "sesame")).startswith("235")
            return found

    one = salts("0123456789abcdef")
    assert salts(b"0123456789abcdef") == one
    assert len(set(one)) == 3
    for other in (None, "0123456789abcdeg"):
        assert not set(salts(other)[1:]) & set(one)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("hunter2", ValueError, "secret must have at least 16 bytes, not 7"),
        (b"", ValueError, "secret must have at least 16 bytes"),
        (1234567890123456, TypeError, "secret must be bytes or a str, not int"),
    ],
)
def test_a_wrong_secret_is_refused(wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Auth(USERS, secret=wrong)
    assert str(wrong) not in str(caught.value) or not wrong
    assert "hunter2" not in repr(Auth(USERS, secret="hunter2hunter2hunter2"))


@pytest.mark.parametrize(
    ("users", "options", "warned"),
    [
        (Keys(), {}, True),
        (Keys(), {"secret": "0123456789abcdef"}, False),
        (USERS, {}, False),  # known users' salts are made up, too
        (lambda credentials: True, {}, False),
    ],
)
def test_a_missing_secret_is_warned_of_once_at_the_start(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, users: Any, options: Any, warned: bool
) -> None:
    server = smtp_server(start=False, middleware=[Auth(users, required=True, allow_plaintext=True, **options)])
    assert caplog.text == ""
    server.start()
    for _ in range(2):
        with dial(server) as peer:
            peer.hello()
    assert caplog.text.count("SCRAM without Auth(secret=...)") == warned


def test_without_scramp_scram_is_not_offered(monkeypatch: pytest.MonkeyPatch, smtp_server: MakeServer) -> None:
    monkeypatch.setitem(sys.modules, "scramp", None)
    with pytest.raises(ModuleNotFoundError, match=r"greensmtp\[scram\]"):
        Auth(USERS, ["SCRAM-SHA-256"])
    with dial(smtp_server(start=False, middleware=[Auth(USERS)])) as peer:
        assert "AUTH CRAM-MD5" in peer.hello()


def test_the_client_is_not_fooled() -> None:
    """Check the check: scramp's client does verify the server's proof."""
    client = client_for("jo", "sesame", c_nonce="nonce")
    client.get_client_first()
    client.set_server_first("r=nonce123,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096")
    client.get_client_final()
    with pytest.raises(ScramException):
        client.set_server_final("v=AAAA")
