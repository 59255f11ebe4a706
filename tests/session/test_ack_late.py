"""Acks that are decided late, elsewhere, or never; the connection is usable after each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from gevent import get_hub, sleep, spawn
from gevent.event import Event
from gevent.monkey import get_original

from greensmtp import Ack, Address, AlreadyAcknowledged, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

Handler = Callable[..., Any]


def ask_for_recipient(server: SMTPServer, *handlers: Handler) -> str:
    """Return the reply to RCPT with these handlers; assert that the connection is usable afterwards."""
    for handler in handlers:
        server.on("to", handler)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250")
        reply = peer.reply()
        peer.expect("250 2.0.0")
    return reply


# Elsewhere


def from_a_greenlet(decide: Callable[[], None]) -> None:
    spawn(decide)


def from_gevents_thread_pool(decide: Callable[[], None]) -> None:
    get_hub().threadpool.spawn(decide)


def from_a_native_thread(decide: Callable[[], None]) -> None:
    get_original("_thread", "start_new_thread")(decide, ())


ELSEWHERE = [from_a_greenlet, from_gevents_thread_pool, from_a_native_thread]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_decision_may_come_from_elsewhere(
    smtp_server: MakeServer, elsewhere: Callable[[Callable[[], None]], None]
) -> None:
    def later(session: Session, address: Address, ack: Ack) -> None:
        elsewhere(lambda: ack.reject(550, "5.1.1 thought about it"))

    reply = ask_for_recipient(smtp_server(start=False), later)
    assert reply == "550 5.1.1 thought about it"


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_whole_transaction_may_be_decided_elsewhere(
    smtp_server: MakeServer, elsewhere: Callable[[Callable[[], None]], None]
) -> None:
    server = smtp_server(start=False)
    bodies: list[bytes] = []

    def later(session: Session, ack: Ack, **fields: Any) -> None:
        elsewhere(ack.accept)

    for name in ("connect", "greeting", "from", "to"):
        server.on(name, later)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        spooled = session.notes["spooled"] = stream.spool()
        stream.at_end(spooled.close)
        elsewhere(ack.accept)

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        bodies.append(session.notes["spooled"].read())
        elsewhere(ack.accept)

    with dial(server) as peer:
        peer.hello()
        for body in (b"one\r\n", b"two\r\n"):
            assert peer.deliver(body).startswith("250")
    assert bodies == [b"one\r\n", b"two\r\n"]


def test_that_connection_alone_waits(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    acks: list[Ack] = []
    server.on("from", lambda session, address, ack: acks.append(ack))
    with dial(server) as waits, dial(server) as goes_on:
        waits.hello()
        waits.line("MAIL FROM:<a@example.org>")
        goes_on.hello()
        goes_on.line("NOOP")
        goes_on.expect("250")
        waits.expect_nothing()
        acks.pop().accept()
        waits.expect("250")


def test_what_was_answered_before_does_not_wait_for_a_late_ack(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    held: list[Ack] = []
    server.on("to", lambda session, address, ack: held.append(ack))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250 2.1.0")
        held.pop().accept()
        peer.expect("250 2.1.5")


def test_replies_keep_their_order_when_acks_come_late(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    released = Event()

    def decide(ack: Ack, address: Address) -> None:
        released.wait(5)
        if address.local_part == "no":
            ack.reject(550, f"5.1.1 {address}")
        else:
            ack.accept(250, f"2.1.5 {address}")

    @server.on("to")
    def sometimes_late(session: Session, address: Address, ack: Ack) -> None:
        if address.local_part == "now":
            ack.accept(250, f"2.1.5 {address}")
        else:
            spawn(decide, ack, address)

    @server.on("message")
    def late(session: Session, stream: MessageStream, ack: Ack) -> None:
        spawn(ack.accept)

    names = ["late", "now", "no", "now", "late"]
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", *(f"RCPT TO:<{name}@example.com>" for name in names), "DATA")
        peer.let_it_read()
        released.set()
        peer.expect("250 2.1.0")
        for name in names:
            peer.expect(f"{'550 5.1.1' if name == 'no' else '250 2.1.5'} {name}@example.com")
        peer.expect("354")
        peer.line("text", ".", "QUIT")
        peer.expect("250", "221")
        peer.expect_end()


def test_a_decision_after_the_client_is_gone_is_ignored(smtp_server: MakeServer) -> None:
    server = smtp_server()
    acks: list[Ack] = []
    over = Event()
    asked = Event()
    server.on("disconnect", lambda session, reason: over.set())

    @server.on("from")
    def keep(session: Session, address: Address, ack: Ack) -> None:
        acks.append(ack)
        asked.set()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        assert asked.wait(5)
        peer.close()
    acks.pop().accept()
    assert over.wait(5)


# Forgotten: noticed at once, though the time-out is far away


def never(ack: Ack) -> None:
    """Drop the ack undecided."""


def dies(ack: Ack) -> None:
    raise RuntimeError("a greenlet that dies with the ack in its hands")


def forget(session: Session, address: Address, ack: Ack) -> None:
    pass


def forget_in_a_greenlet(session: Session, address: Address, ack: Ack) -> None:
    spawn(never, ack)


def forget_in_a_greenlet_that_dies(session: Session, address: Address, ack: Ack) -> None:
    spawn(dies, ack)


def forget_in_a_greenlet_that_is_killed(session: Session, address: Address, ack: Ack) -> None:
    spawn(lambda ack: sleep(3600), ack).kill(block=False)


def forget_in_a_native_thread(session: Session, address: Address, ack: Ack) -> None:
    get_original("_thread", "start_new_thread")(never, (ack,))


def forget_in_the_notes(session: Session, address: Address, ack: Ack) -> None:
    session.notes["ack"] = ack
    spawn(session.notes.clear)


FORGETFUL = [
    forget,
    forget_in_a_greenlet,
    forget_in_a_greenlet_that_dies,
    forget_in_a_greenlet_that_is_killed,
    forget_in_a_native_thread,
    forget_in_the_notes,
]


@pytest.mark.parametrize("handler", FORGETFUL)
def test_an_ack_that_is_let_go_is_noticed_at_once(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, handler: Handler
) -> None:
    assert ask_for_recipient(smtp_server(start=False, ack_timeout=3600), handler).startswith("451 4.3.0")
    (record,) = [record for record in caplog.records if record.name == "greensmtp"]
    assert record.levelno == logging.ERROR
    assert handler.__name__ in record.getMessage()


def test_all_handlers_that_could_have_decided_are_named(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    reply = ask_for_recipient(smtp_server(start=False, ack_timeout=3600), forget, forget_in_a_greenlet)
    assert reply.startswith("451")
    (record,) = caplog.records
    assert "forget, " in record.getMessage()
    assert "forget_in_a_greenlet" in record.getMessage()


# Too late


@pytest.mark.usefixtures("clock")
def test_an_ack_that_is_held_undecided_times_out(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    acks: list[Ack] = []

    def hesitates(session: Session, address: Address, ack: Ack) -> None:
        acks.append(ack)

    assert ask_for_recipient(smtp_server(start=False, ack_timeout=0.1), hesitates).startswith("451 4.3.0")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "hesitates" in record.getMessage()
    assert acks[0].decided
    with pytest.raises(AlreadyAcknowledged, match="late"):
        acks[0].accept()


@pytest.mark.usefixtures("clock")
def test_a_receiver_that_does_not_return_times_out(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    cleaned_up: list[bool] = []

    def hangs(session: Session, address: Address, ack: Ack) -> None:
        try:
            sleep(3600)
        except Exception:  # it is no Exception, so that this cannot swallow it
            ack.accept()
        finally:
            cleaned_up.append(True)

    assert ask_for_recipient(smtp_server(start=False, ack_timeout=0.1), hangs).startswith("451 4.3.0")
    assert "hangs" in caplog.text
    assert cleaned_up == [True]


# Each failure of each signal leaves a connection that works


def raises(ack: Ack) -> None:
    raise ArithmeticError


def forgets(ack: Ack) -> None:
    pass


def decides_twice(ack: Ack) -> None:
    ack.reject()
    ack.reject()


def times_out(ack: Ack) -> None:
    sleep(3600)


def provoke(peer: Peer, name: str) -> str:
    """Send what leads to this signal; return the reply."""
    steps = {
        "greeting": ["EHLO client.example"],
        "from": ["MAIL FROM:<a@example.org>"],
        "to": ["RCPT TO:<b@example.com>"],
        "message": ["DATA"],
        "received": ["text", "."],
    }
    for step, lines in steps.items():
        peer.line(*lines)
        reply = peer.reply()
        if step == name:
            return reply
        assert reply[0] in "23", reply
    raise AssertionError(name)


@pytest.mark.parametrize("failure", [raises, forgets, decides_twice, times_out])
@pytest.mark.parametrize("name", ["greeting", "from", "to", "message", "received"])
@pytest.mark.usefixtures("clock")
def test_after_each_failure_the_connection_is_usable(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any, failure: Callable[[Ack], None]
) -> None:
    server = smtp_server(start=False, ack_timeout=0.1 if failure is times_out else 3600)
    calls: list[str] = []

    def fails_once(session: Session, *, ack: Ack, **fields: Any) -> None:
        calls.append(name)
        if len(calls) == 1:
            failure(ack)
        else:
            ack.accept()

    server.on(name, fails_once)
    if name != "message":
        server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.expect("220")
        assert provoke(peer, name).startswith("451 4.3.0")
        peer.line("RSET")
        peer.expect("250")
        assert provoke(peer, "received").startswith("250")
    assert len(calls) == 2
    assert "fails_once" in caplog.records[0].getMessage()


@pytest.mark.parametrize("failure", [raises, forgets, decides_twice, times_out])
@pytest.mark.usefixtures("clock")
def test_a_failure_at_connect_is_a_421(smtp_server: MakeServer, failure: Callable[[Ack], None]) -> None:
    server = smtp_server(start=False, ack_timeout=0.1 if failure is times_out else 3600)
    server.on("connect", lambda session, ack: failure(ack))
    with dial(server) as peer:
        peer.expect("421 4.")
        peer.expect_end()
