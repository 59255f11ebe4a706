"""Passwords of real clients never appear in logs and metrics."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable
from itertools import product

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from greensmtp import Command, ProtocolError, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Logging, Metrics
from tests.helpers import covering

pytestmark = pytest.mark.peer

Run = Callable[..., str]

USER, PASSWORD = "jo", "hunter2&more"


class Pretender:
    """A middleware that offers AUTH, records all responses, and gives a fixed reply."""

    def __init__(self, answer: Reply) -> None:
        self.answer = answer
        self.heard: list[str] = []

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "AUTH":
            self.heard.append(command.argument)
            try:
                self._challenge(session, command.argument)
            except ProtocolError:
                return Reply(501)
            return self.answer
        reply = proceed(session, command)
        if command.verb == "EHLO" and reply.code == 250:
            return Reply(250, *reply.lines, "AUTH PLAIN LOGIN CRAM-MD5", enhanced=None)
        return reply

    def _challenge(self, session: Session, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        asks = {"LOGIN": ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"], "CRAM-MD5": ["PDEuMkBleGFtcGxlPg=="], "PLAIN": [""]}
        for text in asks[mechanism][1 if initial else 0 :]:
            answer = session.challenge(text)
            self.heard.append(answer.decode())


@pytest.mark.parametrize(
    ("client", "mechanism", "code"),
    covering(product(["swaks", "msmtp"], ["PLAIN", "LOGIN", "CRAM-MD5"], [235, 535, 502])),
)
def test_no_password_is_logged_or_counted(
    run: Run, caplog: pytest.LogCaptureFixture, client: str, mechanism: str, code: int
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = Reply(code)
    pretender = Pretender(answer)
    registry = CollectorRegistry()
    server = SMTPServer(("127.0.0.1", 0), hostname="localhost", middleware=[Logging(), Metrics(registry), pretender])
    server.on("message", lambda session, stream, ack: ack.accept())
    with server.in_thread():
        host, port = server.address[0], server.address[1]
        status = 0 if answer.is_positive else {"swaks": 28, "msmtp": 77}[client]
        if client == "swaks":
            options = ["--auth", mechanism, "--auth-user", USER, "--auth-password", PASSWORD]
            where = ["--server", f"{host}:{port}", "--to", "bob@example.org", "--from", "ann@example.com"]
            run("swaks", *where, *options, status=status)
        else:
            options = [f"--auth={mechanism.lower()}", f"--user={USER}", f"--passwordeval=echo '{PASSWORD}'"]
            where = [f"--host={host}", f"--port={port}", "--from=ann@example.com", "--tls=off"]
            run("msmtp", *where, *options, "bob@example.org", stdin=b"Subject: x\r\n\r\nHi.\r\n", status=status)
    assert pretender.heard
    secrets = {PASSWORD, base64.b64encode(PASSWORD.encode()).decode(), *said(pretender.heard)}
    everything = "".join(json.dumps(record.__dict__, default=str) + record.getMessage() for record in caplog.records)
    everything += generate_latest(registry).decode()
    assert "AUTH ***" in everything
    for secret in secrets:
        assert secret.lower() not in everything.lower()


def said(heard: list[str]) -> set[str]:
    """Return the words of the client's responses, except the names of mechanisms."""
    words = {word for line in heard for word in re.split(r"\s+", line)}
    return words - {"PLAIN", "LOGIN", "CRAM-MD5", ""}
