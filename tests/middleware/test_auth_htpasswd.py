"""htpasswd files: both hashes, changes, and how long an unknown user takes."""

from __future__ import annotations

import os
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import argon2
import bcrypt
import pytest
from gevent import killall, spawn, with_timeout

from greensmtp.middleware import Auth
from greensmtp.middleware.auth import htpasswd as module
from greensmtp.middleware.auth.credentials import Credentials
from greensmtp.middleware.auth.htpasswd import Htpasswd
from greensmtp.testing import Peer, dial
from greensmtp.thread_pool import BoundedPool

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def bcrypted(password: str, prefix: str = "$2b$") -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", prefix)


#: The hash of "x", with a salt that is the same in every run: pytest-xdist needs the same test ids in each worker.
BCRYPTED = bcrypt.hashpw(b"x", b"$2b$04$" + b"." * 22).decode()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(
        f"# people\n\njo:{bcrypted('sesame', '$2y$')}\nann:{CHEAP.hash('tahini')}\r\n"
        f"long:{bcrypted('x' * 72)}\ndöner:{bcrypted('knödel')}\n"
    )
    return path


@pytest.fixture
def log_in(smtp_server: MakeServer) -> Iterator[Callable[..., str]]:
    """Try to log in with this Auth, in a new session; return the reply."""
    peers: list[Peer] = []

    def log_in(auth: Auth, name: str, password: str) -> str:
        peer = dial(smtp_server(start=False, middleware=[auth]))
        peers.append(peer)
        peer.hello()
        peer.line(f"AUTH PLAIN {b64encode(f'{chr(0)}{name}{chr(0)}{password}'.encode()).decode()}")
        return peer.reply()

    yield log_in
    for peer in peers:
        peer.close()


@pytest.mark.parametrize(
    ("name", "password", "reply"),
    [
        ("jo", "sesame", "235"),
        ("jo", "tahini", "535"),
        ("ann", "tahini", "235"),
        ("ann", "sesame", "535"),
        ("döner", "knödel", "235"),
        ("nobody", "sesame", "535"),
        ("# people", "x", "535"),
        ("long", "x" * 72, "235"),
        ("long", "x" * 100, "235"),  # htpasswd has cut it off, too
        ("long", "x" * 71, "535"),
        ("ann", "t" * 5000, "535"),
    ],
)
def test_the_password_of_a_user_is_checked(users: Path, log_in: Any, name: str, password: str, reply: str) -> None:
    assert log_in(Auth(f"htpasswd:{users}", allow_plaintext=True), name, password).startswith(reply)


def test_only_plain_and_login_are_offered(users: Path, smtp_server: MakeServer) -> None:
    auth = Auth(Htpasswd(users), allow_plaintext=True)
    assert repr(auth) == f"Auth(Htpasswd({str(users)!r}), allow_plaintext=True)"
    with dial(smtp_server(start=False, middleware=[auth])) as peer:
        assert peer.hello().endswith("AUTH PLAIN LOGIN")
    with pytest.raises(ValueError, match="cannot serve SCRAM-SHA-256, which needs"):
        Auth(f"htpasswd:{users}", ["PLAIN", "SCRAM-SHA-256"])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the head of every hash that is computed, which has its cost."""
    computed: list[str] = []
    threads = set()
    real_bcrypt, real_argon2 = bcrypt.checkpw, argon2.PasswordHasher.verify

    def count_bcrypt(password: bytes, hashed: bytes) -> bool:
        computed.append(f"bcrypt {hashed.decode().split('$')[2]}")
        threads.add(threading.get_ident())
        return real_bcrypt(password, hashed)

    def count_argon2(self: Any, hashed: str, password: str) -> bool:
        computed.append("argon2 " + hashed.split("$")[3])
        threads.add(threading.get_ident())
        return bool(real_argon2(self, hashed, password))

    monkeypatch.setattr(bcrypt, "checkpw", count_bcrypt)
    monkeypatch.setattr(argon2.PasswordHasher, "verify", count_argon2)
    yield computed
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("name", ["jo", "ann", "long", "old", "nobody", "someone", "x" * 200])
@pytest.mark.parametrize("password", ["sesame", "tahini", "wrong"])
def test_every_attempt_computes_one_hash_of_each_kind_in_the_file(
    users: Path, log_in: Any, computed: list[str], name: str, password: str
) -> None:
    with users.open("a") as file:
        file.write(f"old:{bcrypt.hashpw(b'sesame', bcrypt.gensalt(5)).decode()}\n")
        file.write(f"eve:{argon2.PasswordHasher(time_cost=2, memory_cost=8, parallelism=1).hash('tahini')}\n")
    auth = Auth(f"htpasswd:{users}", allow_plaintext=True)
    right = {"jo": "sesame", "old": "sesame", "ann": "tahini"}.get(name) == password
    assert log_in(auth, name, password).startswith("235" if right else "535 5.7.8 Authentication credentials invalid")
    assert sorted(computed) == ["argon2 m=8,t=1,p=1", "argon2 m=8,t=2,p=1", "bcrypt 04", "bcrypt 05"]


def test_a_file_with_one_kind_of_hash_costs_one_hash(tmp_path: Path, log_in: Any, computed: list[str]) -> None:
    path = tmp_path / "users"
    path.write_text(f"user0:{bcrypted('x', '$2a$')}\nuser1:{bcrypted('y', '$2y$')}\n")
    auth = Auth(f"htpasswd:{path}", allow_plaintext=True)
    for name in ("user0", "user1", "nobody"):
        log_in(auth, name, "wrong")
    assert computed == ["bcrypt 04"] * 3


def test_many_kinds_of_hashes_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "users"
    hashes = [argon2.PasswordHasher(time_cost=t, memory_cost=8, parallelism=1).hash("x") for t in (1, 2, 3, 4)]
    path.write_text("".join(f"user{number}:{each}\n" for number, each in enumerate(hashes)))
    Htpasswd(path)
    assert "has 4 kinds of hashes" in caplog.text


def test_others_go_on_while_a_hash_is_computed(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only another greenlet of this hub lets the computation end."""
    goes_on = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: goes_on.wait(10))
    credentials = Credentials("jo", "x", None, "PLAIN", "", None)  # type: ignore[arg-type]
    checking = spawn(Htpasswd(users).check_password, credentials)
    spawn(goes_on.set)
    assert checking.get(timeout=10) is True


def test_a_change_is_seen(users: Path, log_in: Any) -> None:
    auth = Auth(f"htpasswd:{users}", allow_plaintext=True, failures_by_account=None)
    assert log_in(auth, "jo", "sesame")[:3] == "235"
    replace(users, f"jo:{bcrypted('halva')}\n")
    assert log_in(auth, "jo", "sesame")[:3] == "535"
    assert log_in(auth, "jo", "halva")[:3] == "235"
    assert log_in(auth, "ann", "tahini")[:3] == "535"
    replace(users, "")
    assert log_in(auth, "jo", "halva")[:3] == "535"


@pytest.mark.parametrize("text", [None, "jo:{SHA}abc=\n", "nonsense\n", ":x\n", b"\xff:x\n"])
def test_a_malformed_change_leaves_the_old_users_in_force(
    users: Path, log_in: Any, text: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The users from before the change stay valid, and one log record says so."""
    auth = Auth(f"htpasswd:{users}", allow_plaintext=True)
    if text is None:
        users.unlink()
    else:
        replace(users, text)
    assert log_in(auth, "jo", "sesame")[:3] == "235"
    assert log_in(auth, "jo", "wrong")[:3] == "535"
    assert caplog.text.count("what was read before stays in force") == 1
    assert {record.thread for record in caplog.records} == {threading.get_ident()}  # no lock of gevent's elsewhere
    assert "abc=" not in caplog.text
    replace(users, f"jo:{bcrypted('halva')}\n")
    assert log_in(auth, "jo", "halva")[:3] == "235"


def test_a_file_that_is_malformed_is_read_once(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = module._read_users

    def counting(path: Path) -> Any:
        read.append(path)
        return real(path)

    monkeypatch.setattr(module, "_read_users", counting)
    backend = Htpasswd(users)
    replace(users, "nonsense\n")
    for _ in range(3):
        assert backend._check("jo", "sesame")
    assert len(read) == 2


def replace(path: Path, text: str | bytes) -> None:
    """Replace a file as an editor does, with a new modification time."""
    was = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    os.utime(path, ns=(was + 2_000_000_000, was + 2_000_000_000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jo:sesame\n", "line 1: the hash is neither"),
        ("# x\njo:$apr1$abc$def\n", "line 2: the hash is neither"),
        ("jo\n", "line 1: expected name:hash"),
        ("jo:$2b$04$short\n", "line 1: the hash is neither"),
        (f"jo:{BCRYPTED.replace('$04$', '$03$')}\n", "line 1: the hash is neither"),
        (f"jo:{BCRYPTED.replace('$04$', '$99$')}\n", "line 1: the hash is neither"),
        ("jo:$argon2id$v=19$m=8,t=1\n", "line 1: the hash is neither"),
        (f"jo:{BCRYPTED}\n\njo:{BCRYPTED}\n", "line 3: second line for 'jo'"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Htpasswd(path)
    assert "sesame" not in str(caught.value)


def test_a_file_that_is_too_large(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        Htpasswd(users)


def test_a_hash_that_cannot_be_computed_is_refused_like_any_other(
    users: Path, log_in: Any, computed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A different reply would reveal that the user exists."""
    with users.open("a") as file:
        file.write(CHEAP.hash("x").replace("t=1", "t=0").join(["broken:", "\n"]))
        file.write(f"odd:$2b$04${'z' * 53}\n")
    auth = Auth(f"htpasswd:{users}", allow_plaintext=True)
    work = []
    for name in ("broken", "odd", "jo", "nobody"):
        computed.clear()
        assert log_in(auth, name, "x") == "535 5.7.8 Authentication credentials invalid"
        work.append([each for each in dict.fromkeys(computed) if "t=0" not in each])
    assert work == [work[0]] * 4
    assert log_in(auth, "jo", "sesame").startswith("235")
    assert caplog.text.count("cannot be computed") == 1
    assert "$argon2" not in caplog.text


@pytest.mark.parametrize("library", ["argon2", "bcrypt"])
def test_a_missing_library_is_an_error_that_names_the_extra(
    users: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=r"greensmtp\[passwords\]"):
        Auth(f"htpasswd:{users}")


@pytest.mark.parametrize("path", [None, 7, ""])
def test_a_wrong_path_is_refused(path: Any) -> None:
    with pytest.raises(TypeError, match="takes a path"):
        Htpasswd(path)


def test_a_thread_that_hangs_keeps_its_place_in_the_pool() -> None:
    """A file system that hangs occupies at most the threads of the pool, however many clients give up."""
    pool = BoundedPool(2)
    gate = threading.Event()
    begun: list[int] = []

    def hang(number: int) -> int:
        begun.append(number)
        gate.wait(20)
        return number

    waiting = [spawn(pool.call, hang, number) for number in range(2)]
    for number in range(2, 6):
        with_timeout(0.01, pool.call, hang, number, timeout_value=None)
    killall(waiting)
    with_timeout(0.01, pool.call, hang, 6, timeout_value=None)
    assert len(begun) <= 2
    gate.set()
    assert pool.call(hang, 7) == 7
    with pytest.raises(ZeroDivisionError):
        pool.call(lambda: 1 / 0)
    assert [pool.call(int, "5") for _ in range(5)] == [5] * 5
