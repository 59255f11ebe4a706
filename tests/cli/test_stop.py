"""Stopping ``greensmtp serve``: transactions in progress finish, connections are closed, the exit status is 0."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greensmtp.testing import Peer

Serve = Callable[..., Any]


def begin_mail(peer: Peer) -> None:
    """Begin a message, up to the 354."""
    peer.hello()
    peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "354")


def refused(server: Any) -> bool:
    """Return True if the server's port refuses connections."""
    try:
        socket.create_connection(("127.0.0.1", server.port), 10).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_only_a_transaction_in_progress_is_waited_for(serve: Serve, number: signal.Signals) -> None:
    server = serve()
    with server.dial() as fresh, server.dial() as idle, server.dial() as busy, server.dial() as early:
        fresh.expect("220")
        idle.hello()
        begin_mail(busy)
        early.hello()
        early.line("MAIL FROM:<ann@example.com>")
        early.expect("250")
        server.process.send_signal(number)
        for peer in (fresh, idle):
            peer.expect("421 4.3.2")
            peer.expect_end()
        assert refused(server)
        busy.line("Subject: Last orders", "")
        early.line("RCPT TO:<bob@example.org>", "DATA")
        early.expect("250", "354")
        early.line("Subject: Just in time", ".", "MAIL FROM:<ann@example.com>")
        early.expect("250 2.0.0")
        busy.line("Please.", ".")
        busy.expect("250 2.0.0", "421 4.3.2")
        busy.expect_end()
        early.rest()
    assert server.wait() == 0
    assert sorted(message.partition(b"Subject: ")[2] for message in server.mail) == [
        b"Just in time\r\n",
        b"Last orders\r\n\r\nPlease.\r\n",
    ]
    assert [line.split(" ")[0] for line in server.lines()] == ["message", "message"]
    assert server.log == ""


def test_without_clients_it_stops_at_once(serve: Serve) -> None:
    server = serve()
    assert server.stop() == 0
    assert server.lines() == []


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    server = serve()
    with server.dial() as idle, server.dial() as busy:
        idle.hello()
        begin_mail(busy)
        server.process.send_signal(signal.SIGTERM)
        idle.expect("421")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(5) == 1
        assert busy.rest() == b""
    assert server.mail == []


def test_every_listener_is_stopped(serve: Serve, tmp_path: Path, certificate: Any) -> None:
    urls = ["127.0.0.1:0", "lmtp://127.0.0.1:0", "smtps://127.0.0.1:0", f"unix:{tmp_path}/mail"]
    options = [word for url in urls for word in ("--listen", url)]
    server = serve(*options, "--tls-cert", certificate.certfile, "--tls-key", certificate.keyfile)
    peers = [server.dial(number) for number in range(len(urls))]
    peers[2].start_tls()
    for peer in peers:
        peer.expect("220")
    server.process.send_signal(signal.SIGTERM)
    for peer in peers:
        peer.expect("421 4.3.2")
        peer.expect_end()
        peer.close()
    assert server.wait() == 0
    assert refused(server)
    assert not (tmp_path / "mail").exists()


def test_an_unfinished_tls_handshake_does_not_delay_the_stop(serve: Serve, certificate: Any) -> None:
    options = ["--tls-cert", certificate.certfile, "--tls-key", certificate.keyfile]
    server = serve("--listen", "smtps://127.0.0.1:0", "--listen", "127.0.0.1:0", *options)
    with server.dial(0) as silent, server.dial(1) as other:
        other.expect("220")
        server.process.send_signal(signal.SIGTERM)
        other.expect("421")
        other.close()
        assert silent.rest() == b""
        assert server.wait(5) == 0


# What a dead server has left


def test_a_stale_unix_socket_is_replaced(serve: Serve, tmp_path: Path) -> None:
    url = f"unix:{tmp_path}/mail"
    killed = serve("--listen", url)
    killed.stop(signal.SIGKILL)
    assert (tmp_path / "mail").is_socket()
    server = serve("--listen", url)
    with server.dial() as peer:
        peer.expect("220")
    assert server.stop() == 0
