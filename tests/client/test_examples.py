"""The client's examples work as described."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from greensmtp import Ack, MessageStream, Session
from greensmtp.testing.fixtures import MakeServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_client(smtp_server: MakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies: list[bytes] = []
    server = smtp_server()

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append(stream.read())

    issue = tmp_path / "issue"
    issue.write_bytes(b"Debian \\n \\l\n\n")
    runpy.run_path(str(EXAMPLES / "client.py"))["main"](server.address[1], str(issue))
    assert bodies == [b"Debian \\n \\l\r\n\r\n"]
    assert [line[:3] for line in capsys.readouterr().out.splitlines()] == ["354", "250", "221"]


def test_send_many(smtp_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    recipients: list[str] = []
    connections: list[str] = []
    server = smtp_server()

    @server.on("connect")
    def count(session: Session, ack: Ack) -> None:
        connections.append(session.id)
        ack.accept()

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        recipients.extend(session.to)

    assert runpy.run_path(str(EXAMPLES / "send_many.py"))["main"](server.address[1]) == 1000
    assert sorted(recipients) == sorted(f"reader{number}@localhost" for number in range(1000))
    assert len(connections) == 10
    assert "1000 of 1000 sent" in capsys.readouterr().out
