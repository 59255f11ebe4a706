"""Metrics: the exemplars, which name a message beside the counts that it has changed."""

from __future__ import annotations

import re

import pytest
from gevent import Timeout, sleep, socket
from gevent.event import Event
from prometheus_client import CollectorRegistry

from greensmtp import Ack, Session, SMTPServer
from greensmtp.middleware import Metrics
from greensmtp.middleware.metrics import recorder
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def scrape(metrics: Metrics, accept: str) -> tuple[str, str]:
    """Return the head and the body of a response."""
    assert metrics.address is not None
    with Timeout(10), socket.create_connection(metrics.address, timeout=10) as connection:
        connection.sendall(
            f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n".encode()
        )
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


def exemplars(body: str) -> dict[str, str]:
    """Return the transaction ID of each sample that has one."""
    return dict(re.findall(r'^(\S+) \S+ # \{transaction_id="([^"]+)"\} \S+ \S+$', body, re.M))


@pytest.fixture
def told(smtp_server: MakeServer) -> tuple[SMTPServer, Metrics]:
    metrics = Metrics(CollectorRegistry(), listen="127.0.0.1:0")
    server = smtp_server(middleware=[metrics])
    server.on("message", lambda session, stream, ack: ack.accept())
    return server, metrics


def test_a_message_is_the_exemplar_of_what_it_is_counted_in(
    told: tuple[SMTPServer, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "EXEMPLAR_SECONDS", 0.0)
    server, metrics = told
    with dial(server) as peer:
        peer.hello()
        first = peer.deliver("x\r\n").split()[-1]
        second = peer.deliver("x" * 2000 + "\r\n").split()[-1]
    head, body = scrape(metrics, OPENMETRICS)
    assert "Content-Type: application/openmetrics-text" in head
    named = exemplars(body)
    assert named['greensmtp_messages_total{outcome="accepted"}'] == second
    assert named['greensmtp_message_size_bytes_bucket{le="1024.0"}'] == first
    assert named['greensmtp_message_size_bytes_bucket{le="4096.0"}'] == second
    assert any(name.startswith("greensmtp_message_seconds_bucket") for name in named)


def test_few_of_many_accepted_messages_are_exemplars_and_each_that_was_refused(
    told: tuple[SMTPServer, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "EXEMPLAR_SECONDS", 3600.0)
    server, metrics = told
    refusals: list[str] = []

    @server.on("received")
    def refuse(session: Session, ack: Ack) -> None:
        if session.from_ == "no@example.org":
            refusals.append(session.transaction_id)
            ack.reject()
        else:
            ack.accept()

    with dial(server) as peer:
        peer.hello()
        first = peer.deliver("x\r\n").split()[-1]
        for _ in range(2):
            peer.deliver("x\r\n")
            peer.deliver("x\r\n", sender="no@example.org")
    named = exemplars(scrape(metrics, OPENMETRICS)[1])
    assert named['greensmtp_messages_total{outcome="accepted"}'] == first
    assert named['greensmtp_messages_total{outcome="refused"}'] == refusals[-1]


def test_a_message_that_was_lost_is_an_exemplar_too(told: tuple[SMTPServer, Metrics]) -> None:
    server, metrics = told
    over, ids = Event(), []

    @server.on("to")
    def note(session: Session, address: object, ack: object) -> None:
        ids.append(session.transaction_id)
        ack.accept()  # type: ignore[attr-defined]

    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA", "x")
        peer.expect("354")
    assert over.wait(5)
    sleep(0)
    assert exemplars(scrape(metrics, OPENMETRICS)[1]) == {'greensmtp_messages_total{outcome="lost"}': ids[0]}


def test_the_older_text_format_has_none(told: tuple[SMTPServer, Metrics]) -> None:
    server, metrics = told
    with dial(server) as peer:
        peer.hello()
        peer.deliver("x\r\n")
    head, body = scrape(metrics, "text/plain")
    assert "Content-Type: text/plain" in head
    assert "transaction_id" not in body
