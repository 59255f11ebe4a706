"""Real clients at a full stack of middleware: logging, metrics, limits, tarpit, authentication."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from greensmtp import SMTPServer
from greensmtp.middleware import Auth, ConnectionLimit, Logging, Metrics, RateLimit, Tarpit
from tests.helpers import covering

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.peer

Run = Callable[..., str]

USER, PASSWORD, WRONG = "jo", "hunter2&more", "guessed-it?"
DELAY = 0.1
MAIL = b"Subject: x\r\n\r\nHi.\r\n"


def swaks(run: Run, port: int, certificate: Certificate, mechanism: str, password: str, *, refused: bool) -> str:
    tls = ("--tls", "--tls-ca-path", str(certificate.authority), "--tls-verify")
    user = ("--auth", mechanism, "--auth-user", USER, "--auth-password", password)
    where = ("--server", f"127.0.0.1:{port}", "--from", "ann@example.com", "--to", "bob@example.org")
    return run("swaks", *where, *tls, *user, status=28 if refused else 0)


def msmtp(run: Run, port: int, certificate: Certificate, mechanism: str, password: str, *, refused: bool) -> str:
    tls = ("--tls=on", f"--tls-trust-file={certificate.authority}")
    user = (f"--auth={mechanism.lower()}", f"--user={USER}", f"--passwordeval=echo '{password}'")
    where = ("--host=127.0.0.1", f"--port={port}", "--from=ann@example.com")
    return run("msmtp", *where, *tls, *user, "bob@example.org", stdin=MAIL, status=77 if refused else 0)


@pytest.mark.parametrize(("client", "mechanism"), covering(product([swaks, msmtp], ["PLAIN", "LOGIN", "CRAM-MD5"])))
def test_a_whole_stack(
    run: Run, certificate: Certificate, caplog: pytest.LogCaptureFixture, client: Callable[..., str], mechanism: str
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    connections = ConnectionLimit(per_address=2)
    server = SMTPServer(
        ("127.0.0.1", 0),
        hostname="localhost",
        middleware=[
            Logging(),
            Metrics(registry),
            connections,
            Tarpit(DELAY, factor=1.0),
            RateLimit("2/minute", on="auth_failures"),
            Auth({USER: PASSWORD}, required=True),
            RateLimit("1/minute", by="identity"),
        ],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
    )
    taken: list[bytes] = []

    def take(session: Any, stream: Any, ack: Any) -> None:
        ack.accept()
        taken.append(stream.read())

    server.on("message", take)
    with server.in_thread():
        port = server.address[1]
        assert "535 5.7.8" in client(run, port, certificate, mechanism, WRONG, refused=True)
        client(run, port, certificate, mechanism, PASSWORD, refused=False)
        assert "535 5.7.8" in client(run, port, certificate, mechanism, WRONG, refused=True)
        assert "454 4.7.0" in client(run, port, certificate, mechanism, PASSWORD, refused=True)
    assert len(taken) == 1

    def told(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"greensmtp_{name}", labels) or 0.0

    assert told("auth_total", mechanism=mechanism, outcome="accepted") == 1
    assert told("auth_total", mechanism=mechanism, outcome="refused") >= 2
    assert told("auth_total", mechanism=mechanism, outcome="deferred") >= 1
    assert told("messages_total", outcome="accepted") == 1
    assert told("command_seconds_sum", verb="AUTH") > 2 * DELAY  # what Tarpit holds back is seen as the client sees it
    assert told("connections_open") == connections.count("127.0.0.1") == 0
    everything = "".join(json.dumps(record.__dict__, default=str) + record.getMessage() for record in caplog.records)
    everything += generate_latest(registry).decode()
    assert "AUTH ***" in everything
    assert "identity=jo" in everything
    for secret in (PASSWORD, WRONG):
        for form in (secret, b64encode(secret.encode()).decode(), b64encode(f"\0{USER}\0{secret}".encode()).decode()):
            assert form.lower() not in everything.lower()
