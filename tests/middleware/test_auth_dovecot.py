"""Dovecot's auth socket: a scripted one, and then the real one."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep, socket
from gevent.server import StreamServer

from greensmtp.middleware import Auth
from greensmtp.middleware.auth import dovecot as module
from greensmtp.middleware.auth.dovecot import DovecotAuth
from greensmtp.testing import Peer, dial

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate

HANDSHAKE = (
    "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tCRAM-MD5\tdictionary\tactive\nMECH\tANONYMOUS\tanonymous\nDONE\n"
)
PLAIN_JO = b64encode(b"\0jo\0sesame").decode()


class Fake:
    """A server that sends its handshake, then an answer to each line; with ``cut``, in two pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handshake = HANDSHAKE
        self.answers: list[str] = []
        self.heard: list[list[str]] = []
        self.connections = 0
        self.cut: int | None = None
        self._server = StreamServer(self._listen(), self._serve)
        self._server.start()

    def _listen(self) -> Any:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        return listener

    def _serve(self, sock: Any, _address: Any) -> None:
        self.connections += 1
        answers = iter(self.answers)
        with sock, sock.makefile("rb") as lines:
            heard = [lines.readline() for _ in range(2)]
            assert heard[0] == b"VERSION\t1\t2\n"
            assert heard[1].startswith(b"CPID\t")
            self._say(sock, self.handshake)
            for line in lines:
                self.heard.append(line.decode().removesuffix("\n").split("\t"))
                answer = next(answers, None)
                if answer is None:
                    return
                self._say(sock, answer)

    def _say(self, sock: Any, text: str) -> None:
        octets = text.encode()
        cut = len(octets) if self.cut is None else self.cut
        try:
            sock.sendall(octets[:cut])
            sleep(0)
            sock.sendall(octets[cut:])
        except OSError:
            pass  # the client has disconnected

    def close(self) -> None:
        self._server.stop(1)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    one = Fake(tmp_path / "auth")
    yield one
    one.close()


@pytest.fixture
def peer_of(smtp_server: MakeServer) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(auth: Auth, source: Any = ("192.0.2.1", 4711)) -> Peer:
        peer = dial(smtp_server(start=False, middleware=[auth]), source=source)
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        peer.close()


def auth_at(fake: Fake, **options: Any) -> Auth:
    return Auth(DovecotAuth(fake.path, timeout=5), allow_plaintext=True, **options)


def test_known_mechanisms_of_dovecot_are_offered(fake: Fake, peer_of: Any) -> None:
    auth = auth_at(fake)
    assert peer_of(auth).hello().endswith("AUTH CRAM-MD5 PLAIN")
    assert peer_of(auth).hello().endswith("AUTH CRAM-MD5 PLAIN")
    assert fake.connections == 1  # asked once
    assert repr(auth) == f"Auth(DovecotAuth({str(fake.path)!r}), allow_plaintext=True)"


def test_dovecot_is_asked_once_for_concurrent_clients(fake: Fake, peer_of: Any) -> None:
    auth = auth_at(fake)
    peers = [peer_of(auth) for _ in range(5)]
    for peer in peers:
        peer.line("EHLO client.example")
    for peer in peers:
        peer.expect("220")
        assert peer.expect("250").endswith("AUTH CRAM-MD5 PLAIN")
    assert fake.connections == 1


def test_passwords_in_the_clear_get_538_and_dovecot_is_not_asked(fake: Fake, peer_of: Any) -> None:
    with peer_of(Auth(f"dovecot:{fake.path}")) as peer:
        assert peer.hello().endswith("AUTH CRAM-MD5")
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "AUTH LOGIN", "AUTH ANONYMOUS")
        peer.expect("538", "538", "504")
    assert fake.heard == []


def test_mechanisms_can_be_left_out(fake: Fake, peer_of: Any) -> None:
    assert peer_of(auth_at(fake, mechanisms=["PLAIN", "LOGIN"])).hello().endswith("AUTH PLAIN")


def test_the_request_has_address_and_response(fake: Fake, peer_of: Any) -> None:
    fake.answers = ["OK\t1\tuser=jo@example.com\toriginal_user=jo\n"]
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235 2.7.0")
    fields = fake.heard[0]
    assert fields[:5] == ["AUTH", "1", "PLAIN", "service=smtp", "nologin"]
    assert fields[5:7] == ["rip=192.0.2.1", "rport=4711"]
    assert fields[-1] == f"resp={PLAIN_JO}"


def test_challenges_are_passed_on(fake: Fake, peer_of: Any, smtp_server: MakeServer) -> None:
    fake.answers = [f"CONT\t1\t{b64encode(b'<1.2@x>').decode()}\n", "OK\t1\tuser=jo\n"]
    response = b64encode(b"jo " + b"0" * 32).decode()
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line("AUTH CRAM-MD5")
        peer.expect(f"334 {b64encode(b'<1.2@x>').decode()}")
        peer.line(response)
        peer.expect("235")
    assert [field for field in fake.heard[0] if field.startswith("resp")] == []
    assert fake.heard[1] == ["CONT", "1", response]


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("FAIL\t1\tuser=jo\n", "535 5.7.8"),
        ("FAIL\t1\n", "535 5.7.8"),
        ("FAIL\t1\tuser=jo\ttemp\n", "454 4.7.0"),
        ("FAIL\t1\tuser=jo\tcode=temp_fail\n", "454 4.7.0"),
        ("FAIL\t1\tuser=jo\tcode=user_disabled\treason=no such\ttemp thing\n", "535 5.7.8"),
        ("OK\t1\n", "454 4.7.0"),
        ("OK\t1\tuser=\n", "454 4.7.0"),
        ("OK\t2\tuser=root\nFAIL\t1\n", "535 5.7.8"),
        ("WHAT\t1\nFAIL\t1\n", "535 5.7.8"),
        ("\n" * 100, "454 4.7.0"),
        ("CONT\t1\t!!!\n", "454 4.7.0"),
        (f"CONT\t1\t{'A' * 800}\n", "454 4.7.0"),
        ("x" * 100_000, "454 4.7.0"),
        ("\u00ff\nFAIL\t1\n", "535 5.7.8"),
    ],
)
def test_the_answer_decides_the_reply(
    fake: Fake, peer_of: Any, answer: str, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake.answers = [answer]
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "NOOP")
        peer.expect(reply, "250")
    assert "sesame" not in caplog.text
    assert PLAIN_JO not in caplog.text
    assert ("a line of more than" in caplog.text) == ("x" * 1000 in answer)


def test_an_answer_cut_at_every_byte(fake: Fake, peer_of: Any) -> None:
    fake.answers = ["OK\t1\tuser=a\x01tb\x011\x01x\n"]
    auth = auth_at(fake)
    for cut in range(len(HANDSHAKE)):
        fake.cut = cut
        with peer_of(auth) as peer:
            peer.hello()
            peer.line(f"AUTH PLAIN {PLAIN_JO}")
            peer.expect("235")
    assert fake.connections == len(HANDSHAKE) + 1


def test_a_name_with_escapes(fake: Fake, smtp_server: MakeServer) -> None:
    fake.answers = ["OK\t1\tuser=a\x01tb\x011\x01n\n"]
    server = smtp_server(start=False, middleware=[auth_at(fake)])
    known = []

    @server.on("auth")
    def keep(session: Any, identity: Any, ack: Any) -> None:
        known.append(identity)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235")
    assert [(one.authcid, one.authzid, one.mechanism) for one in known] == [("a\tb\x01\n", "", "PLAIN")]


@pytest.mark.parametrize(
    "handshake",
    [
        "VERSION\t2\t0\nDONE\n",
        "VERSION\n",
        "VERSION\t1\t2\nMECH\tPLAIN\n",  # and then nothing
        "VERSION\t1\t2\nMECH\tPLAIN\n" + "MECH\tX-NEW\n" * 10_000 + "DONE\n",
        "x" * 100_000,
    ],
)
def test_a_malformed_handshake_means_no_auth(
    fake: Fake, peer_of: Any, handshake: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake.handshake = handshake
    auth = Auth(DovecotAuth(fake.path, timeout=0.05), allow_plaintext=True)
    with peer_of(auth) as peer:
        assert "AUTH" not in peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0")
    assert str(fake.path) in caplog.text


def test_no_socket_means_no_auth_and_one_attempt_to_connect(
    tmp_path: Path, peer_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server starts without Dovecot, which may start later."""
    auth = Auth(f"dovecot:{tmp_path}/auth", allow_plaintext=True, required=True)
    with peer_of(auth) as peer:
        assert "AUTH" not in peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>")
        peer.expect("454 4.7.0", "530")
    assert "No such file" in caplog.text
    assert "no answer a moment ago" in caplog.text


def test_auth_is_offered_again_when_dovecot_is_back(fake: Fake, peer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.handshake = "VERSION\t2\t0\n"
    monkeypatch.setattr(module, "PAUSE", 0.0)
    auth = auth_at(fake)
    with peer_of(auth) as peer:
        assert "AUTH" not in peer.hello()
        fake.handshake = HANDSHAKE
        peer.line("EHLO again")
        assert peer.expect("250").endswith("AUTH CRAM-MD5 PLAIN")
        # And a mechanism that is gone when it is wanted:
        fake.handshake = HANDSHAKE.replace("PLAIN", "OTHER")
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("504")
        peer.line("EHLO again")
        assert peer.expect("250").endswith("AUTH CRAM-MD5")


def test_a_hang_up_in_place_of_an_answer_gets_454(fake: Fake, peer_of: Any) -> None:
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0")


def test_challenges_without_end(fake: Fake, peer_of: Any) -> None:
    fake.answers = ["CONT\t1\t\n"] * 20
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        for _ in range(10):
            peer.expect("334")
            peer.line("")
        peer.expect("454 4.7.0")
    assert len(fake.heard) <= 11


def test_giving_up_hangs_up(fake: Fake, peer_of: Any) -> None:
    fake.answers = ["CONT\t1\t\n", "OK\t1\tuser=jo\n"]
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line("AUTH CRAM-MD5")
        peer.expect("334")
        peer.line("*")
        peer.expect("501 5.7.0")
    assert len(fake.heard) == 1


@pytest.mark.parametrize("host", ["192.0.2.1\tuser=root", "a\nb", "", "elsewhere"])
def test_a_client_cannot_add_fields_to_the_request(fake: Fake, peer_of: Any, host: str) -> None:
    fake.answers = ["OK\t1\tuser=jo\n"]
    with peer_of(auth_at(fake), source=(host, 1)) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {b64encode(f'{chr(0)}jo{chr(9)}{chr(0)}x'.encode()).decode()}")
        peer.expect("501 5.5.2")
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235")
    (fields,) = fake.heard
    assert not [field for field in fields if field.startswith(("rip", "user"))]


def test_a_response_that_is_too_long_gets_501(fake: Fake, peer_of: Any) -> None:
    with peer_of(auth_at(fake)) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {b64encode(chr(0).join(['', 'jo', 'x' * 8000]).encode()).decode()}")
        peer.expect("501 5.5.2")
    assert fake.heard == []


def test_accounts_are_limited_before_dovecot_is_asked(fake: Fake, peer_of: Any) -> None:
    fake.answers = ["FAIL\t1\tuser=jo\n"]
    auth = auth_at(fake, failures_by_client=None, failures_by_account="1/minute")
    with peer_of(auth) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("535")
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 Too many")
    assert len(fake.heard) == 1


def test_check_token_may_stand_beside_a_password_backend(fake: Fake, peer_of: Any) -> None:
    auth = auth_at(fake, check_token=lambda credentials: credentials.token == "t")
    with peer_of(auth) as peer:
        assert peer.hello().endswith("AUTH CRAM-MD5 OAUTHBEARER XOAUTH2 PLAIN")
        peer.line(f"AUTH XOAUTH2 {b64encode(b'user=jo' + bytes([1]) + b'auth=Bearer t' + bytes([1, 1])).decode()}")
        peer.expect("235")
    assert fake.heard == []


def test_the_request_to_dovecot_has_tls_service_and_addresses(
    fake: Fake, smtp_server: MakeServer, certificate: Certificate
) -> None:
    fake.answers = ["OK\t1\tuser=jo\n"]
    server = smtp_server(
        middleware=[Auth(DovecotAuth(fake.path, service="submission"))],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
    )
    with dial(server) as peer:
        peer.start_tls()
        assert peer.hello().endswith("AUTH CRAM-MD5 PLAIN")
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("235")
    (fields,) = fake.heard
    assert fields[3:6] == ["service=submission", "nologin", "secured=tls"]
    assert fields[8:10] == ["lip=127.0.0.1", f"lport={server.address[1]}"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"path": None}, TypeError),
        ({"path": ""}, TypeError),
        ({"path": "x", "timeout": 0}, ValueError),
        ({"path": "x", "service": "smtp\tuser=root"}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="takes"):
        DovecotAuth(**options)
