"""A pool's retries and rate: what is tried again, what is not, and when."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import spawn

from greensmtp import (
    Ack,
    CannotConnect,
    DataRefused,
    Disconnected,
    PartiallyRefused,
    Pool,
    PoolClosed,
    PoolTimeout,
    RecipientsRefused,
    Reply,
    SenderRefused,
    SMTPServer,
)
from greensmtp.client import pool_pace
from tests.client.counter import Counter, pool_of
from tests.client.scripts import for_ever

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO, TOO = "a@example.com", "b@example.com", "c@example.com"
SOON: dict[str, Any] = {"retries": 3, "retry_delay": 0.01}


class Deferring:
    """A server that defers commands, each so many times: ``Deferring(server, {"RCPT TO:<b@example.com>": 2})``."""

    def __init__(self, server: SMTPServer, times: dict[str, int], code: int = 451) -> None:
        self.left = dict(times)
        self.seen: list[str] = []
        self._code = code
        server.on("command", self._command)

    def _command(self, session: Any, command: Any, ack: Ack) -> None:
        line = str(command)
        if not line.startswith(("EHLO", "QUIT", "RSET")):
            self.seen.append(line)
        line = line.partition(" SIZE=")[0]
        if self.left.get(line, 0):
            self.left[line] -= 1
            ack.replace(self._code, "4.3.0 later" if self._code < 500 else "5.3.0 no")
        else:
            ack.accept()


def test_a_deferred_recipient_alone_is_tried_again(server: SMTPServer, counter: Counter) -> None:
    deferring = Deferring(server, {f"RCPT TO:<{TO}>": 2})
    with pool_of(server, **SOON) as pool:
        sent = pool.send(b"x", FROM, [TO, TOO, "no@example.com"])
    assert {name: reply.code for name, reply in sent.recipients.items()} == {TO: 250, TOO: 250, "no@example.com": 550}
    assert len(sent.further_replies) == 1
    assert len(counter.bodies) == 2
    assert [line for line in deferring.seen if TOO in line] == [f"RCPT TO:<{TOO}>"]
    assert [line for line in deferring.seen if "no@" in line] == ["RCPT TO:<no@example.com>"]
    assert len([line for line in deferring.seen if TO in line]) == 3


def test_a_deferred_sender_is_tried_again(server: SMTPServer, counter: Counter) -> None:
    Deferring(server, {f"MAIL FROM:<{FROM}>": 3})
    with pool_of(server, **SOON) as pool:
        assert pool.send(b"x", FROM, [TO, TOO]).refused == {}
    assert len(counter.bodies) == 1


def test_after_the_last_try_the_error_is_raised(server: SMTPServer, counter: Counter) -> None:
    deferring = Deferring(server, {f"MAIL FROM:<{FROM}>": 9})
    with pool_of(server, **SOON) as pool, pytest.raises(SenderRefused) as failed:
        pool.send(b"x", FROM, TO)
    assert failed.value.reply == Reply(451, "4.3.0 later")
    assert deferring.left[f"MAIL FROM:<{FROM}>"] == 5
    assert counter.bodies == []


def test_after_the_last_try_deferred_recipients_are_in_the_result(server: SMTPServer, counter: Counter) -> None:
    deferring = Deferring(server, {f"RCPT TO:<{TO}>": 9})
    with pool_of(server, **SOON) as pool:
        sent = pool.send(b"x", FROM, [TO, TOO])
        assert {name: reply.code for name, reply in sent.recipients.items()} == {TO: 451, TOO: 250}
        assert deferring.left[f"RCPT TO:<{TO}>"] == 5
        with pytest.raises(PartiallyRefused):
            pool.send(b"x", FROM, [TO, TOO], raise_on_partial=True)
    assert len(counter.bodies) == 2


def test_all_recipients_refused_some_for_now(server: SMTPServer, counter: Counter) -> None:
    deferring = Deferring(server, {f"RCPT TO:<{TO}>": 9})
    with pool_of(server, **SOON) as pool, pytest.raises(RecipientsRefused) as failed:
        pool.send(b"x", FROM, [TO, "no@example.com"])
    assert {name: reply.code for name, reply in failed.value.recipients.items()} == {TO: 451, "no@example.com": 550}
    assert failed.value.transient
    assert len([line for line in deferring.seen if "no@" in line]) == 1


def test_a_permanent_refusal_is_not_tried_again(server: SMTPServer, counter: Counter) -> None:
    deferring = Deferring(server, {f"MAIL FROM:<{FROM}>": 9}, code=550)
    with pool_of(server, **SOON) as pool, pytest.raises(SenderRefused):
        pool.send(b"x", FROM, TO)
    assert deferring.left[f"MAIL FROM:<{FROM}>"] == 8


def test_a_deferred_message_is_tried_again(scripted: Start) -> None:
    def later(script: Script) -> None:
        script.greet("PIPELINING")
        for answer in ("451 4.3.0 later", "250 2.0.0 Ok"):
            while script.hear() != "DATA":
                script.say("250 Ok")
            script.say("354 go")
            script.body()
            script.say(answer)
        while script.hear():
            script.say("250 Ok")

    with pool_of(scripted(later), **SOON) as pool:
        assert pool.send(b"x", FROM, TO).reply.code == 250
    with pool_of(scripted(later), retries=0) as pool, pytest.raises(DataRefused):
        pool.send(b"x", FROM, TO)


def test_an_unknown_outcome_is_never_tried_again(scripted: Start) -> None:
    def gone(script: Script) -> None:
        script.greet("PIPELINING")
        while script.hear() != "DATA":
            script.say("250 Ok")
        script.say("354 go")
        script.body()

    server = scripted(gone)
    with pool_of(server, **SOON) as pool, pytest.raises(Disconnected) as failed:
        pool.send(b"x", FROM, TO)
    assert not failed.value.safe_to_retry
    assert server.connections == 1


def test_a_server_that_disconnects_before_the_message_is_tried_again(scripted: Start) -> None:
    def gone(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL")

    server = scripted(gone, gone, for_ever)
    with pool_of(server, **SOON) as pool:
        assert pool.send(b"x", FROM, TO).reply.code == 250
    assert server.connections == 3


def test_a_server_that_is_down_is_tried_again(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def uniform(low: float, high: float) -> float:
        waits.append(low)
        return high

    monkeypatch.setattr(pool_pace._random, "uniform", uniform)
    server = scripted(for_ever)
    server.stop()
    with pool_of(server, **SOON) as pool, pytest.raises(CannotConnect):
        pool.send(b"x", FROM, TO)
    assert waits == [0.5, 0.5, 0.5]


def test_waits_double_up_to_a_limit_and_vary() -> None:
    for tried in range(40):
        longest = min(2.0**tried, pool_pace.MAX_RETRY_SECONDS)
        assert longest / 2 <= pool_pace.retry_seconds(tried, 1.0) <= longest
    assert len({pool_pace.retry_seconds(0, 1.0) for _ in range(10)}) > 1


def test_closing_a_pool_ends_the_wait_for_another_try(server: SMTPServer, counter: Counter) -> None:
    Deferring(server, {f"MAIL FROM:<{FROM}>": 9})
    pool = pool_of(server, retries=3, retry_delay=60)
    sending = spawn(pool.send, b"x", FROM, TO)
    while not pool.idle:
        gevent.sleep(0.01)
    pool.close(0.01)
    with pytest.raises(SenderRefused):
        sending.get(timeout=5)


def test_waiting_for_another_try_holds_no_connection(server: SMTPServer, counter: Counter) -> None:
    Deferring(server, {f"MAIL FROM:<{FROM}>": 9})
    pool = pool_of(server, size=1, retries=3, retry_delay=60)
    sending = spawn(pool.send, b"x", FROM, TO)
    while not pool.idle:
        gevent.sleep(0.01)
    assert pool.send(b"x", "other@example.com", TO).reply.code == 250
    sending.kill()
    pool.close()


# The rate


def test_messages_begin_at_even_intervals(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, rate=50) as pool:
        start = monotonic()
        gevent.joinall([spawn(pool.send, b"x", FROM, TO) for _ in range(6)], raise_error=True)
        assert monotonic() - start >= 5 / 50
        with pool.connection() as mail:
            assert mail.noop().code == 250
        assert monotonic() - start >= 6 / 50
    assert len(counter.bodies) == 6


def test_a_turn_that_comes_too_late_is_a_pool_timeout(server: SMTPServer, counter: Counter) -> None:
    with pool_of(server, rate=0.1, acquire_timeout=1) as pool:
        pool.send(b"x", FROM, TO)
        for _ in range(2):
            with pytest.raises(PoolTimeout, match=r"0\.1 messages/s leave no turn within 1 s"):
                pool.send(b"x", FROM, TO)
        assert pool.busy == 0


def test_closing_a_pool_ends_the_wait_for_a_turn(server: SMTPServer, counter: Counter) -> None:
    pool = pool_of(server, rate=0.01)
    pool.send(b"x", FROM, TO)
    sending = spawn(pool.send, b"x", FROM, TO)
    gevent.sleep(0)
    pool.close(0.01)
    with pytest.raises(PoolClosed):
        sending.get(timeout=5)


@pytest.mark.parametrize("options", [{"retries": -1}, {"retries": True}, {"retry_delay": 0}, {"rate": 0}])
def test_an_option_out_of_range_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"as {next(iter(options))}"):
        Pool("mx.example.com", **options)
