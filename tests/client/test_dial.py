"""Connecting: hosts as users write them, and several addresses of one host."""

from __future__ import annotations

import errno
import gc
import socket as stdlib_socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, socket, spawn
from gevent import sleep as switch

from greensmtp import CannotConnect, Pool, SMTPServer, connect
from greensmtp.client import dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate

MESSAGE = (b"x", "a@example.com", "b@example.com")


@pytest.fixture
def server(smtp_server: MakeServer) -> SMTPServer:
    server = smtp_server()
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


@pytest.fixture
def six() -> Iterator[Any]:
    """The port of a server on ``::1``."""
    server = SMTPServer(("::1", 0))
    server.on("message", lambda session, stream, ack: ack.accept())
    try:
        server.start()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    yield server.address[1]
    server.stop(1)


# Names


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[127.0.0.1]", "localhost."])
def test_a_host_with_its_port(server: SMTPServer, name: str) -> None:
    place = f"{name}:{server.address[1]}"
    for mail in (connect(place, timeout=10), connect(host=place, timeout=10)):
        with mail:
            assert mail.noop().code in (250, 503)
    with Pool(place, timeout=10) as pool:
        assert pool.send(*MESSAGE).reply.code == 250


@pytest.mark.parametrize("form", ["[::1]:{}", "::1 {}", "[::1] {}"])
def test_ipv6(six: Any, form: str) -> None:
    host, _, port = form.format(six).partition(" ")
    ports = [int(port)] if port else []
    with connect(host, *ports, timeout=10) as mail:
        assert mail.ehlo().code == 250
    with Pool(host, *ports, timeout=10) as pool:
        assert pool.send(*MESSAGE).reply.code == 250


def test_two_ports_are_refused() -> None:
    with pytest.raises(TypeError, match="expected one port"):
        connect("127.0.0.1:25", 26)
    with pytest.raises(TypeError, match="expected one port"):
        Pool([("127.0.0.1:25", 26)])


@pytest.mark.parametrize("name", ["a..b", "x" * 64, "a b", "☃.example", "smtp://a:25", "a:port", "\ud800", "[::g]"])
def test_an_impossible_host_name_is_not_looked_up(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("looked up"))
    for call in (
        lambda: connect(name, timeout=5),
        lambda: connect(host=name, timeout=5),
        lambda: Pool(name),
        lambda: connect("127.0.0.1", 1, server_hostname=name),
        lambda: Pool("127.0.0.1", server_hostname=name),
    ):
        with pytest.raises(ValueError, match="host must be"):
            call()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["nowhere.invalid", "bücher.invalid", "nowhere.invalid.", "fe80::1%nowhere", "1.2.3.4.5"]
)
def test_a_host_that_is_not_found(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """gevent's resolver runs in threads, which must not print anything."""
    with pytest.raises(CannotConnect):
        connect(name, 25, timeout=10)
    assert capfd.readouterr().err == ""


def test_the_a_label_is_looked_up(monkeypatch: pytest.MonkeyPatch, server: SMTPServer) -> None:
    asked: list[str] = []

    def look_up(host: str, port: int, *_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with connect("bücher.example", server.address[1], timeout=10) as mail:
        assert repr(mail) == "<SMTPClient xn--bcher-kva.example open>"
    assert asked == ["xn--bcher-kva.example"]


@pytest.mark.parametrize(
    ("name", "verified"),
    [("localhost.", True), ("LOCALHOST", True), ("[127.0.0.1]", True), ("bücher.example", False)],
)
def test_tls_verifies_the_normalised_host_name(
    smtp_server: MakeServer, certificate: Certificate, name: str, verified: bool
) -> None:
    context = ssl.create_default_context(cafile=str(certificate.authority))
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)
    mail = connect(*server.address, server_hostname=name, ssl_context=context, timeout=10)
    mail.ehlo()
    if verified:
        assert mail.starttls(server_hostname=name).code == 220
        mail.close()
    else:
        with pytest.raises(ConnectionError, match=r"xn--bcher-kva\.example does not verify"):
            mail.starttls()


def test_source_address_by_name_is_looked_up_without_blocking(server: SMTPServer) -> None:
    with connect(*server.address, source_address=("localhost", 0), timeout=10) as mail:
        assert mail.noop().code in (250, 503)


# Several addresses


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """An address that never answers: its backlog is full, and the kernel drops packets."""
    with stdlib_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        while True:
            attempt = socket.socket()
            waiting.append(attempt)
            try:
                with Timeout(0.2):
                    attempt.connect(listener.getsockname())
            except Timeout:
                break
        yield listener.getsockname()
        for attempt in waiting:
            attempt.close()


def closed() -> tuple[str, int]:
    with stdlib_socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
        return address


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses of every host; the test fills the list."""
    found: list[Any] = []
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found],
    )
    return found


def test_a_dead_address_does_not_hide_a_live_one(
    server: SMTPServer, dead: tuple[str, int], addresses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "STAGGER", 0.01)
    addresses += [dead, dead, server.address]
    with Timeout(10), connect("mx.example.com", timeout=60) as mail:
        assert mail.ehlo().code == 250


def test_the_next_address_is_tried_at_once_when_one_refuses(
    server: SMTPServer, addresses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "STAGGER", 30)
    addresses += [closed(), closed(), server.address]
    with Timeout(10), connect("mx.example.com", timeout=60) as mail:
        assert mail.ehlo().code == 250


def test_all_addresses_together_have_one_deadline(
    dead: tuple[str, int], addresses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "STAGGER", 0.01)
    addresses += [dead] * 100
    with Timeout(10), pytest.raises(CannotConnect, match=r"no answer within 0\.1 s"):
        connect("mx.example.com", timeout=0.1)


def test_all_addresses_refuse(addresses: list[Any]) -> None:
    addresses += [closed(), closed(), closed()]
    with pytest.raises(CannotConnect, match="refused") as caught:
        connect("mx.example.com", timeout=10)
    assert caught.value.__cause__ is not None
    assert getattr(caught.value.__cause__, "errno", None) == errno.ECONNREFUSED


def test_address_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(family, 1, 6, "", (str(number), 25)) for number, family in enumerate([six, six, six, four])]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    assert [(family, address[0]) for family, _, address in dial._addresses("x", 25)] == [
        (six, "0"),
        (four, "3"),
        (six, "1"),
        (six, "2"),
    ]


def made_and_closed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    connected = dial._connected

    def note(*arguments: Any) -> Any:
        sock = connected(*arguments)
        made.append(sock)
        return sock

    monkeypatch.setattr(dial, "_connected", note)
    return made


def test_superfluous_connection_attempts_are_closed(
    server: SMTPServer, addresses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them connect, and one is used."""
    monkeypatch.setattr(dial, "STAGGER", 0)
    made = made_and_closed(monkeypatch)
    addresses += [server.address] * 5
    with connect("mx.example.com", timeout=10) as mail:
        for _ in range(20):
            switch(0)
        assert [sock for sock in made if not sock.closed] == [mail.socket]


def test_a_kill_while_connecting_leaves_no_socket_open(
    dead: tuple[str, int], addresses: list[Any], recwarn: pytest.WarningsRecorder
) -> None:
    addresses += [dead, dead]
    dialling = spawn(connect, "mx.example.com", timeout=60)
    switch(0.01)
    dialling.kill()
    switch(0)
    gc.collect()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_an_empty_host_is_not_this_machine() -> None:
    for call in (lambda: connect("", 1), lambda: connect(host="", port=1), lambda: Pool("", 1), lambda: Pool([""], 1)):
        with pytest.raises(ValueError, match="host must not be empty"):
            call()
