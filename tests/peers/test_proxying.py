"""swaks as a proxy of ``greensmtp serve``: PROXY headers, XCLIENT; and postfix, which sends XFORWARD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers.postfix import Postfix

pytestmark = pytest.mark.peer

Serve = Callable[..., Any]
Run = Callable[..., str]

ENVELOPE = ("--helo", "client.example", "--from", "ann@example.com", "--to", "bob@example.org")


@pytest.mark.parametrize("version", [1, 2])
def test_swaks_sends_a_proxy_header(serve: Serve, run: Run, version: int) -> None:
    server = serve("--proxy-from", "127.0.0.1", "-v")
    family = "TCP4" if version == 1 else "AF_INET"
    said = run(
        *("swaks", "--server", f"127.0.0.1:{server.port}", *ENVELOPE, "--proxy-version", str(version)),
        *("--proxy-family", family, "--proxy-source", "192.0.2.1", "--proxy-source-port", "52000"),
        *("--proxy-dest", "198.51.100.25", "--proxy-dest-port", "25"),
    )
    assert "queued as" in said
    (message,) = server.mail
    assert b"Received: from client.example ([192.0.2.1])" in message
    assert server.stop() == 0
    assert " peer=192.0.2.1 " in server.log


def test_swaks_without_a_header_gets_no_banner(serve: Serve, run: Run, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text('proxy_from = ["127.0.0.1"]\nlimits.proxy_timeout = 0.5\n')
    server = serve("--config", "greensmtp.toml", "-v")
    run("swaks", "--server", f"127.0.0.1:{server.port}", *ENVELOPE, status=6)
    server.stop()
    assert "closed a connection from proxy 127.0.0.1: no PROXY header within 0.5 s" in server.log
    assert "-> proxy" in server.log


def test_swaks_sends_xclient(serve: Serve, run: Run, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text('xclient_from = ["127.0.0.1"]\n')
    server = serve("--config", "greensmtp.toml", "-v")
    said = run(
        *("swaks", "--server", f"127.0.0.1:{server.port}", *ENVELOPE),
        *("--xclient-helo", "helo.example", "--xclient-login", "jo@example.com", "--xclient-delim"),
        *("--xclient-addr", "IPV6:2001:db8::1", "--xclient-name", "client.example", "--xclient-port", "52000"),
    )
    assert said.count("<-  220 ") == 3
    (message,) = server.mail
    assert b"Received: from client.example ([IPv6:2001:db8::1])\r\n\tby mx.example.com with ESMTPA id " in message
    assert server.stop() == 0
    assert " peer=2001:db8::1 " in server.log
    assert " identity=jo@example.com " in server.log


def test_postfix_sends_xforward(serve: Serve, postfix: Callable[..., Postfix], tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text('xforward_from = ["127.0.0.1"]\n')
    server = serve("--config", "greensmtp.toml", "-v")
    relay = postfix(relayhost=f"[127.0.0.1]:{server.port}", smtp_send_xforward_command="yes")
    relay.relay(b"Subject: x\r\n\r\nHi.\r\n", "ann@example.com", "bob@example.org")
    assert " to=<bob@example.org> " in server.line()
    assert server.stop() == 0
    assert " client=localhost[127.0.0.1] " in server.log
