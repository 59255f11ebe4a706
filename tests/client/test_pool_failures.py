"""The pool: connections that died, and several hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket, spawn

from greensmtp import CannotConnect, Disconnected, Pool, SenderRefused, SMTPServer
from tests.client.counter import Counter, pool_of
from tests.client.scripts import for_ever, session, transaction

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


# Connections that died


@pytest.mark.parametrize("goodbye", [None, "421 4.4.2 idle for too long"])
def test_a_stale_connection_is_replaced(scripted: Start, goodbye: str | None) -> None:
    server = scripted(session(after=1, goodbye=goodbye), for_ever)
    with pool_of(server, 1) as pool:
        for _ in range(3):
            assert pool.send(b"x", FROM, TO).reply.code == 250
    assert server.connections == 2


def dies_at(verb: str, reply: str | None) -> Callable[[Script], None]:
    """Complete the first transaction; in the second, close the connection at this verb."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        transaction(script)
        while line := script.hear():
            if line.startswith(verb):
                if reply:
                    script.say(reply)
                return
            script.say("354 go" if line == "DATA" else "250 Ok")

    return script


@pytest.mark.parametrize("verb", ["RSET", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reply", [None, "421 4.3.2 going down"])
def test_a_message_that_no_server_can_have_is_sent_again(scripted: Start, verb: str, reply: str | None) -> None:
    server = scripted(dies_at(verb, reply), for_ever)
    with pool_of(server, 1) as pool:
        pool.send(b"one", FROM, TO)
        assert pool.send(b"two", FROM, TO).reply.code == 250
    assert server.connections == 2


def test_a_message_that_a_server_may_have_is_not_sent_again(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        transaction(script)
        while line := script.hear():
            script.say("354 go" if line == "DATA" else "250 Ok")
            if line == "DATA":
                script.body()
                return

    server = scripted(script, for_ever)
    with pool_of(server, 1) as pool:
        pool.send(b"one", FROM, TO)
        with pytest.raises(Disconnected) as caught:
            pool.send(b"two", FROM, TO)
        assert caught.value.after_content
        assert pool.send(b"three", FROM, TO).reply.code == 250
    assert server.connections == 2


def test_a_421_to_a_new_connection_is_raised(scripted: Start) -> None:
    server = scripted(lambda script: (script.greet("PIPELINING"), script.hear(), script.say("421 no")))
    with pool_of(server, 1) as pool, pytest.raises(Exception, match="421"):
        pool.send(b"x", FROM, TO)
    assert server.connections == 1


@pytest.mark.parametrize("extra", ["250 nobody asked", "354 go", "what?"])
def test_a_connection_with_an_unsolicited_reply_is_replaced(scripted: Start, extra: str) -> None:
    """The next message is sent nevertheless."""
    server = scripted(session(after=1, goodbye=extra), for_ever)
    with pool_of(server, 1) as pool:
        for _ in range(2):
            assert pool.send(b"x", FROM, TO).reply.code == 250
    assert server.connections == 2


# Several hosts


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_fail_over(server: SMTPServer, counter: Counter) -> None:
    hosts: list[Any] = [("127.0.0.1", closed_port()), f"127.0.0.1:{server.address[1]}"]
    with Pool(hosts, size=2, timeout=10) as pool:
        gevent.joinall([spawn(pool.send, b"x", FROM, TO) for _ in range(10)], raise_error=True)
    assert len(counter.bodies) == 10


def test_a_host_whose_banner_refuses_service_fails_over(server: SMTPServer, counter: Counter, scripted: Start) -> None:
    busy = scripted(lambda script: script.say("421 busy"))
    with Pool([("127.0.0.1", busy.port), f"127.0.0.1:{server.address[1]}"], timeout=10, max_messages=1) as pool:
        for _ in range(3):
            pool.send(b"x", FROM, TO)
    assert busy.connections == 1  # and is asked last for a while
    assert len(counter.bodies) == 3


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reply", [None, "421 4.3.2 too busy", "HTTP/1.1 400 Bad Request"])
def test_a_host_that_closes_a_new_connection_fails_over(
    server: SMTPServer, counter: Counter, scripted: Start, verb: str, reply: str | None
) -> None:
    """The message goes to the next host, and the first host is tried last for a while."""

    def script(script: Script) -> None:
        script.say("220 hi")
        while line := script.hear():
            if line.startswith(verb):
                if reply:
                    script.say(reply)
                return
            script.say("250-mx", "250 PIPELINING") if line.startswith("EHLO") else script.say("250 Ok")

    first = scripted(script)
    with Pool([("127.0.0.1", first.port), f"127.0.0.1:{server.address[1]}"], timeout=10, max_messages=1) as pool:
        for _ in range(3):
            assert pool.send(b"x", FROM, TO).reply.code == 250
    assert first.connections == 1
    assert len(counter.bodies) == 3


def test_each_host_is_tried_once(scripted: Start) -> None:
    hosts = [scripted(lambda script: (script.greet("PIPELINING"), script.hear(), script.say("421 no"))) for _ in "ab"]
    with (
        Pool([f"127.0.0.1:{host.port}" for host in hosts], timeout=10) as pool,
        pytest.raises(SenderRefused, match="421"),
    ):
        pool.send(b"x", FROM, TO)
    assert [host.connections for host in hosts] == [1, 1]


def test_a_message_that_a_host_may_have_goes_to_no_other_host(
    server: SMTPServer, counter: Counter, scripted: Start
) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.body()

    first = scripted(script)
    with Pool([("127.0.0.1", first.port), f"127.0.0.1:{server.address[1]}"], timeout=10) as pool:
        with pytest.raises(Disconnected) as caught:
            pool.send(b"x", FROM, TO)
        assert caught.value.after_content
    assert counter.bodies == []


def test_all_hosts_down() -> None:
    with Pool([("127.0.0.1", closed_port()), ("127.0.0.1", closed_port())], timeout=5) as pool:
        for _ in range(2):
            with pytest.raises(CannotConnect):
                pool.send(b"x", FROM, TO)
        assert pool.busy == 0
