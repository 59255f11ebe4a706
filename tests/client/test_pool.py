"""The pool: many greenlets, few connections, each of which may have been closed by the server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import spawn
from gevent.event import Event

from greensmtp import (
    Ack,
    AuthenticationFailed,
    Disconnected,
    Pool,
    PoolClosed,
    PoolTimeout,
    RecipientsRefused,
    Session,
    SMTPServer,
)
from tests.client.counter import Counter, pool_of
from tests.client.scripts import for_ever, session, transaction

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


def test_many_greenlets_few_connections(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server) as pool:
        greenlets = [spawn(pool.send, b"%d" % number, FROM, TO) for number in range(200)]
        gevent.joinall(greenlets, raise_error=True)
        assert pool.idle == 3
        assert pool.busy == 0
    assert sorted(map(int, counter.bodies)) == list(range(200))
    assert counter.connections == counter.most == 3
    assert counter.commands.count("RSET") == 197
    assert counter.reasons == ["quit"] * 3


def test_a_refusal_does_not_cost_the_connection(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server) as pool:
        for _ in range(5):
            with pytest.raises(RecipientsRefused):
                pool.send(b"x", FROM, "no@example.com")
            pool.send(b"x", FROM, TO)
    assert counter.connections == 1
    assert len(counter.bodies) == 5


def test_a_connection_is_retired_after_max_messages(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, max_messages=2) as pool:
        for _ in range(5):
            pool.send(b"x", FROM, TO)
    assert counter.connections == 3


def test_a_connection_is_retired_after_max_age(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, max_age=1e-9) as pool:
        for _ in range(3):
            pool.send(b"x", FROM, TO)
            assert pool.idle == 0
    assert counter.connections == 3
    assert counter.reasons == ["quit"] * 3


def test_a_connection_is_retired_after_max_idle(server: SMTPServer, counter: Counter) -> None:
    gone = Event()
    server.on("disconnect", lambda session, reason: gone.set())
    with pool_of(server, max_idle=0.05) as pool:
        pool.send(b"x", FROM, TO)
        assert gone.wait(5)
        assert pool.idle == 0
        assert counter.reasons == ["quit"]
        pool.send(b"x", FROM, TO)
    assert counter.connections == 2


def test_send_waits_while_all_connections_are_busy(server: SMTPServer, counter: Counter) -> None:
    go = Event()
    there = [Event(), Event()]
    waiting = iter(there)

    @server.on("received")
    def hold(session: Session, ack: Ack) -> None:
        if not go.is_set():
            next(waiting).set()
        go.wait()
        ack.accept()

    with pool_of(server, 2) as pool:
        greenlets = [spawn(pool.send, b"x", FROM, TO) for _ in range(5)]
        gevent.wait(there, timeout=20)
        assert pool.busy == 2
        assert counter.connections == 2
        go.set()
        gevent.joinall(greenlets, raise_error=True)
    assert counter.most == 2


def test_close_waits_for_messages_in_progress(server: SMTPServer, counter: Counter) -> None:
    go, there = Event(), Event()

    @server.on("received")
    def hold(session: Session, ack: Ack) -> None:
        there.set()
        go.wait()
        ack.accept()

    pool = pool_of(server, 1)
    sending = spawn(pool.send, b"x", FROM, TO)
    waiting = spawn(pool.send, b"y", FROM, TO)
    there.wait()
    closing = spawn(pool.close)
    gevent.sleep(0)
    with pytest.raises(PoolClosed):
        pool.send(b"z", FROM, TO)
    go.set()
    closing.join(5)
    assert sending.get().reply.code == 250
    with pytest.raises(PoolClosed):
        waiting.get()
    assert counter.bodies == [b"x\r\n"]
    assert counter.reasons == ["quit"]


def test_close_waits_no_longer_than_its_timeout(server: SMTPServer, counter: Counter) -> None:
    go, there = Event(), Event()

    @server.on("received")
    def hold(session: Session, ack: Ack) -> None:
        there.set()
        go.wait()
        ack.accept()

    pool = pool_of(server, 1)
    sending = spawn(pool.send, b"x", FROM, TO)
    there.wait()
    pool.close(timeout=0.05)
    with pytest.raises(Disconnected) as caught:
        sending.get()
    assert not caught.value.safe_to_retry
    go.set()


def test_close_interrupts_connecting(scripted: Start) -> None:
    """A host that never sends its banner; nothing is sent once the pool is closed."""
    there = Event()

    def silent(script: Script) -> None:
        there.set()
        assert script.rest() == b""

    server = scripted(silent, for_ever)
    pool = pool_of(server, 1, timeout=60)
    connecting, waiting = spawn(pool.send, b"x", FROM, TO), spawn(pool.send, b"y", FROM, TO)
    assert there.wait(20)
    pool.close(timeout=0.01)
    for greenlet in (connecting, waiting):
        with pytest.raises(PoolClosed):
            greenlet.get(timeout=20)
    assert (pool.busy, pool.idle, server.connections) == (0, 0, 1)


def test_a_message_cut_off_by_close_is_not_sent_again(scripted: Start) -> None:
    """No server can have the message, and the connection was a kept one; but the pool is closed."""
    there = Event()

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        transaction(script)
        script.expect("RSET")
        there.set()
        script.rest()

    server = scripted(script, for_ever)
    pool = pool_of(server, 1, timeout=60)
    pool.send(b"x", FROM, TO)
    cut_off = spawn(pool.send, b"y", FROM, TO)
    assert there.wait(20)
    pool.close(timeout=0.01)
    with pytest.raises((PoolClosed, Disconnected)):
        cut_off.get(timeout=20)
    assert (server.connections, pool.busy, pool.idle) == (1, 0, 0)


def test_close_lets_connecting_finish_in_time(scripted: Start) -> None:
    there, go = Event(), Event()

    def slow(script: Script) -> None:
        there.set()
        go.wait()
        for_ever(script)

    pool = pool_of(scripted(slow), 1)
    sending = spawn(pool.send, b"x", FROM, TO)
    assert there.wait(20)
    closing = spawn(pool.close)
    gevent.sleep(0)
    go.set()
    closing.get(timeout=20)
    assert sending.get(timeout=20).reply.code == 250


def test_an_interrupted_close_releases_its_slots(server: SMTPServer, counter: Counter) -> None:
    go, there = Event(), Event()

    @server.on("received")
    def hold(session: Session, ack: Ack) -> None:
        there.set()
        go.wait()
        ack.accept()

    pool = pool_of(server, 2)
    sending = spawn(pool.send, b"x", FROM, TO)
    assert there.wait(20)
    closing = spawn(pool.close)
    gevent.sleep(0)
    closing.kill()
    with pytest.raises(Disconnected):
        sending.get(timeout=20)
    assert pool.busy == 0
    go.set()


# Options


def test_a_pool_logs_in(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("AUTH PLAIN")
        script.expect("AUTH PLAIN ")
        script.say("235 in")
        while transaction(script):
            pass

    asked: list[str] = []

    def password() -> str:
        asked.append("asked")
        return "secret"

    server = scripted(script)
    with pool_of(server, username="jo", password=password, allow_plaintext=True) as pool:
        pool.send(b"x", FROM, TO)
    assert asked == ["asked"]


def test_bad_credentials(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("AUTH PLAIN")
        script.hear()
        script.say("535 5.7.8 no")
        script.rest()

    server = scripted(script)
    with (
        pool_of(server, username="jo", password="x", allow_plaintext=True) as pool,
        pytest.raises(Exception, match="535"),
    ):
        pool.send(b"x", FROM, TO)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"max_idle": 0},
        {"username": "jo"},
        {"password": "secret"},
        {"username": "jo", "password": "secret", "mechanism": "MAGIC"},
        {"host": []},
        {"host": "mx.example.com:99999"},
        {"port": 0},
        {"timeout": -1},
        {"starttls": "maybe"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pool(**options)


@pytest.mark.parametrize("name", ["timeot", "stream", "path"])
def test_unknown_options_are_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=f"expected an option of Pool .*got '{name}'"):
        Pool(**{name: 1})  # type: ignore[arg-type]


def test_no_repr_shows_the_password() -> None:
    assert "secret" not in repr(Pool(username="jo", password="secret", token="secret"))


# Credentials that are refused


def refusing(reply: str, tried: list[str]) -> Callable[[Script], None]:
    def script(script: Script) -> None:
        script.greet("AUTH PLAIN")
        tried.append(script.hear())
        script.say(reply)
        while transaction(script):
            pass

    return script


def test_a_wrong_password_is_tried_once(scripted: Start) -> None:
    """The credentials are not tried on the next host or by the next send, since that may lock the account."""
    tried: list[str] = []
    hosts = [scripted(refusing("535 5.7.8 no", tried)) for _ in "ab"]
    places = [f"127.0.0.1:{host.port}" for host in hosts]
    with Pool(places, username="jo", password="wrong", allow_plaintext=True, timeout=5) as pool:
        for _ in range(3):
            with pytest.raises(AuthenticationFailed, match="535") as caught:
                pool.send(b"x", FROM, TO)
            assert caught.value.reply is not None
            assert not caught.value.transient
        with pytest.raises(AuthenticationFailed), pool.connection():
            pass
        assert pool.busy == 0
    assert len(tried) == 1
    assert [host.connections for host in hosts] == [1, 0]


def test_a_wrong_password_is_tried_once_by_many_greenlets(scripted: Start) -> None:
    tried: list[str] = []
    server = scripted(refusing("535 5.7.8 no", tried))
    with pool_of(server, 10, username="jo", password="wrong", allow_plaintext=True) as pool:
        greenlets = [spawn(pool.send, b"x", FROM, TO) for _ in range(30)]
        for greenlet in greenlets:
            with pytest.raises(AuthenticationFailed):
                greenlet.get(timeout=10)
    assert len(tried) == 1


def test_other_credentials_are_tried_at_once(scripted: Start) -> None:
    tried: list[str] = []
    server = scripted(refusing("535 5.7.8 no", tried), refusing("235 in", tried))
    passwords = ["wrong"]
    with pool_of(server, username="jo", password=lambda: passwords[-1], allow_plaintext=True) as pool:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed):
                pool.send(b"x", FROM, TO)
        passwords.append("right")
        assert pool.send(b"x", FROM, TO).reply.code == 250
    assert len(tried) == 2


def test_refused_credentials_are_tried_again_later(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greensmtp.client.pool_login.REFUSED_SECONDS", 0.0)
    tried: list[str] = []
    server = scripted(refusing("535 5.7.8 no", tried), refusing("235 in", tried))
    with pool_of(server, username="jo", password="right", allow_plaintext=True) as pool:
        with pytest.raises(AuthenticationFailed):
            pool.send(b"x", FROM, TO)
        assert pool.send(b"x", FROM, TO).reply.code == 250


def test_a_transient_login_failure_fails_over(scripted: Start) -> None:
    tried: list[str] = []
    hosts = [scripted(refusing(reply, tried)) for reply in ("454 4.7.0 later", "235 in")]
    places = [f"127.0.0.1:{host.port}" for host in hosts]
    with Pool(places, username="jo", password="x", allow_plaintext=True, timeout=5) as pool:
        assert pool.send(b"x", FROM, TO).reply.code == 250
    assert len(tried) == 2


# Lent connections


def test_connection_lends_a_connection(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, 1) as pool:
        with pool.connection() as mail:
            assert pool.busy == 1
            assert "PIPELINING" in mail.extensions
            assert mail.noop().code == 250
            mail.send(b"x", FROM, TO)
            mail.send(b"y", FROM, TO)
        assert (pool.busy, pool.idle) == (0, 1)
        pool.send(b"z", FROM, TO)
    assert counter.bodies == [b"x\r\n", b"y\r\n", b"z\r\n"]
    assert counter.connections == 1


def test_a_lent_connection_with_an_open_transaction_is_reset(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, 1) as pool:
        with pool.connection() as mail:
            mail.from_(FROM)
            mail.to(TO)
        assert counter.commands[-1] == "RSET"
        assert pool.idle == 1
        with suppress(KeyError), pool.connection() as mail:
            mail.from_(FROM)
            raise KeyError
        assert counter.commands[-1] == "RSET"
        assert pool.idle == 1
    assert counter.connections == 1


@pytest.mark.parametrize("end", ["data", "quit", "close", "timeout"])
def test_a_lent_connection_that_is_out_of_step_is_closed(server: SMTPServer, counter: Counter, end: str) -> None:
    with pool_of(server, 1) as pool:
        try:
            with pool.connection() as mail:
                mail.from_(FROM)
                mail.to(TO)
                if end == "data":
                    assert mail.data().code == 354
                elif end == "timeout":
                    raise gevent.Timeout(1)
                else:
                    getattr(mail, end)()
        except gevent.Timeout:
            assert end == "timeout"
        assert mail.closed
        assert (pool.busy, pool.idle) == (0, 0)
        pool.send(b"x", FROM, TO)
    assert counter.bodies[-1] == b"x\r\n"


def test_a_dead_connection_is_not_lent(scripted: Start) -> None:
    server = scripted(session(after=1), session(after=1, goodbye="451 4.4.2 idle"), for_ever)
    with pool_of(server, 1) as pool:
        for _ in range(2):
            pool.send(b"x", FROM, TO)
        with pool.connection() as mail:
            assert mail.send(b"x", FROM, TO).reply.code == 250
        assert pool.idle == 1
    assert server.connections == 3


def test_a_kill_with_a_lent_connection_releases_its_slot(server: SMTPServer, counter: Counter) -> None:
    there = Event()

    def work() -> None:
        with pool.connection() as mail:
            mail.from_(FROM)
            there.set()
            Event().wait()

    with pool_of(server, 1) as pool:
        greenlet = spawn(work)
        assert there.wait(10)
        greenlet.kill()
        assert (pool.busy, pool.idle) == (0, 0)
        assert pool.send(b"x", FROM, TO).reply.code == 250


def test_close_closes_lent_connections_after_its_timeout(server: SMTPServer, counter: Counter) -> None:
    pool = pool_of(server, 1)
    with pool.connection() as mail:
        pool.close(timeout=0.01)
        with pytest.raises(Disconnected):
            mail.noop()
    assert (pool.busy, pool.idle) == (0, 0)
    with pytest.raises(PoolClosed), pool.connection():
        pass


def test_close_ends_waits_for_a_lent_connection(server: SMTPServer, counter: Counter) -> None:
    pool = pool_of(server, 1)
    with pool.connection():
        waiting = spawn(pool.send, b"x", FROM, TO)
        gevent.sleep(0)
        pool.close(timeout=0.01)
        with pytest.raises(PoolClosed):
            waiting.get(timeout=10)


# The wait for a connection


def test_acquire_timeout(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, 1, acquire_timeout=0.01) as pool:
        with pool.connection():
            with pytest.raises(PoolTimeout, match=r"0\.01 s") as caught:
                pool.send(b"x", FROM, TO)
            assert caught.value.transient
            assert caught.value.safe_to_retry
            with pytest.raises(PoolTimeout), pool.connection():
                pass
        assert pool.send(b"x", FROM, TO).reply.code == 250
        assert pool.busy == 0


@pytest.mark.parametrize("seconds", [0, -1])
def test_acquire_timeout_must_be_above_0(seconds: float) -> None:
    with pytest.raises(ValueError, match="acquire_timeout"):
        Pool(acquire_timeout=seconds)


def test_an_interrupted_wait_takes_no_slot(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, 1) as pool:
        with pool.connection():
            waiting = spawn(pool.send, b"x", FROM, TO)
            gevent.sleep(0)
            waiting.kill()
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
                pool.send(b"x", FROM, TO)
        assert pool.busy == 0
        assert pool.send(b"x", FROM, TO).reply.code == 250
