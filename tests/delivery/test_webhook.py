"""Webhook: what an application gets, and what its answers become."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket, ssl
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer

from greensmtp import SMTPServer
from greensmtp.delivery import Deliveries, Webhook
from greensmtp.delivery.webhook import verify
from greensmtp.http_poster import MAX_RESPONSE
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from greensmtp.webhook_signature import check_signature
from tests.helpers import free_port, until

if TYPE_CHECKING:
    from tests.conftest import Certificate

BODY = b"Subject: Tea\r\n\r\n.At four.\r\n"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Application:
    """An application that keeps requests and gives a status."""

    def __init__(self) -> None:
        self.status, self.answer, self.kind = "204 No Content", b"", "text/plain"
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.ports: set[str] = set()
        self.busy = self.most = 0
        self.pause = 0.0
        self.server = WSGIServer(("127.0.0.1", 0), self._answer, log=None)
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook?a=b"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["REQUEST_METHOD"] == "POST"
        assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/hook", "a=b")
        self.busy += 1
        self.most = max(self.most, self.busy)
        gevent.sleep(self.pause)
        self.busy -= 1
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith(("HTTP_", "CONTENT_"))
        }
        self.ports.add(environ["REMOTE_PORT"])
        self.requests.append((headers, environ["wsgi.input"].read()))
        start_response(self.status, [("Content-Type", self.kind), ("Location", "/elsewhere")])
        return [self.answer]


@pytest.fixture
def application() -> Iterator[Application]:
    made = Application()
    yield made
    made.server.stop(timeout=0)


@pytest.fixture
def front(smtp_server: MakeServer) -> Callable[..., SMTPServer]:
    """Return a function that makes a server with a webhook."""

    def make(url: str, *, server: dict[str, Any] | None = None, **options: Any) -> SMTPServer:
        made = smtp_server(start=False, **(server or {}))
        Deliveries([Webhook(url, **options)]).attach(made)
        made.start()
        return made

    return make


def send(peer: Peer, *recipients: str, end: str = "250 2.0.0", body: bytes = BODY) -> str:
    recipients = recipients or ("bob@example.org",)
    peer.line("MAIL FROM:<ann@example.net>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA")
    peer.expect("250", *["250"] * len(recipients), "354")
    peer.send(body.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return peer.expect(end)


def test_the_application_gets_the_message_and_its_envelope_signed(
    front: Callable[..., SMTPServer], application: Application
) -> None:
    server = front(application.url, secret=[SECRET, "another"], headers={"Authorization": "Bearer x"})
    with dial(server, source=("192.0.2.7", 4711)) as peer:
        peer.hello()
        reply = send(peer, "bob@example.org", "cyd@example.org")
        send(peer)
    (headers, body), _ = application.requests
    assert body == BODY
    assert headers["Content-Type"] == "message/rfc822"
    assert headers["Authorization"] == "Bearer x"
    assert len(application.ports) == 1  # a kept connection
    for secret in (SECRET, "another", ["old", SECRET]):
        envelope = verify(secret, headers, body)
    assert reply.rstrip().endswith(envelope["id"])
    assert headers["Webhook-Id"] == envelope["id"]
    assert envelope | {"id": ""} == {
        "id": "",
        "from": "ann@example.net",
        "to": ["bob@example.org", "cyd@example.org"],
        "peer": "192.0.2.7",
        "hello": "client.example",
        "protocol": "ESMTP",
        "server": "mx.example.com",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Webhook-Signature", "v1,AAAA"),
        ("Webhook-Signature", None),
        ("Webhook-Id", "x"),
        ("Webhook-Timestamp", "1"),
        ("Webhook-Timestamp", "soon"),
        ("Webhook-Timestamp", "1" * 400),
        ("Webhook-Signature", "\udcff"),
        ("Smtp-Envelope", "{}"),
        ("Smtp-Envelope-Signature", "v1,AAAA"),
        ("body", "other"),
    ],
)
def test_what_was_changed_is_not_verified(
    front: Callable[..., SMTPServer], application: Application, name: str, value: str | None
) -> None:
    with dial(front(application.url, secret=SECRET)) as peer:
        peer.hello()
        send(peer)
    headers, body = application.requests[0]
    verify(SECRET, headers, body)
    with pytest.raises(ValueError, match="wrong"):
        verify("another", headers, body)
    if name == "body":
        body = b"other"
    elif value is None:
        del headers[name]
    else:
        headers[name] = value
    with pytest.raises(
        ValueError, match=r"the (request|signature) is (not signed|wrong|too old)|surrogates not allowed"
    ):
        verify(SECRET, headers, body)


def test_a_request_is_verified_for_five_minutes(front: Callable[..., SMTPServer], application: Application) -> None:
    with dial(front(application.url, secret=SECRET)) as peer:
        peer.hello()
        send(peer)
    headers, body = application.requests[0]
    sent = int(headers["Webhook-Timestamp"])
    for seconds in (-300, 0, 300):
        verify(SECRET, headers, body, now=lambda seconds=seconds: sent + seconds)  # type: ignore[misc]
    for seconds in (-301, 301):
        with pytest.raises(ValueError, match="too old"):
            verify(SECRET, headers, body, now=lambda seconds=seconds: sent + seconds)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("status", "answer", "wanted"),
    [
        ("200 OK", b"whatever", "250 2.0.0"),
        ("406 Not Acceptable", b"", "550 5.7.1 The application refuses the message"),
        ("422 Unprocessable", b"no such \xc3\xb6rder\x1b\nmore", "550 5.7.1 no such ?rder?"),
        ("422 Unprocessable", b"5.1.1 no such user", "550 5.1.1 no such user"),
        ("422 Unprocessable", b"4.2.2 full", "550 5.7.1 4.2.2 full"),
        ("422 Unprocessable", b"<html>", "550 5.7.1 The application refuses the message"),
        ("301 Moved", b"", "451 4.3.0"),
        ("404 Not Found", b"", "451 4.3.0"),
        ("413 Too Large", b"", "451 4.3.0"),
        ("500 Oops", b"x" * (MAX_RESPONSE + 1), "451 4.3.0"),
    ],
)
def test_its_status_is_the_reply(
    front: Callable[..., SMTPServer], application: Application, status: str, answer: bytes, wanted: str
) -> None:
    application.status, application.answer = status, answer
    application.kind = "text/html" if answer.startswith(b"<") else "text/plain; charset=utf-8"
    with dial(front(application.url)) as peer:
        peer.hello()
        send(peer, end=wanted)
        application.status = "200 OK"
        send(peer)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("422 Unprocessable", "INFO webhook: the application refused the message: status 422"),
        ("500 Oops", "WARNING webhook: status 500; replying 451"),
    ],
)
def test_a_refusal_is_no_warning_and_a_failure_is_one(
    front: Callable[..., SMTPServer], application: Application, caplog: pytest.LogCaptureFixture, status: str, line: str
) -> None:
    caplog.set_level("INFO", "greensmtp")
    application.status = status
    with dial(front(application.url)) as peer:
        peer.hello()
        send(peer, end="550" if status.startswith("422") else "451")
    (record,) = [each for each in caplog.records if "webhook" in each.getMessage()]
    assert f"{record.levelname} {record.getMessage().partition(': ')[2]}" == line


def test_an_application_that_is_gone_is_named_with_its_port(
    front: Callable[..., SMTPServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "greensmtp")
    port = free_port()
    with dial(front(f"http://127.0.0.1:{port}/")) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
    assert f"webhook: 127.0.0.1:{port}: Connection refused; replying 451" in caplog.text


def test_no_answer_is_451_and_does_not_last(front: Callable[..., SMTPServer], application: Application) -> None:
    with dial(front(f"http://127.0.0.1:{free_port()}/")) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
    application.pause = 30
    with dial(front(application.url, timeout=0.2)) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"hello?\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\nhalf",
    ],
)
def test_what_is_no_http_is_451(front: Callable[..., SMTPServer], says: bytes) -> None:
    def answer(connection: Any, address: Any) -> None:
        while not connection.recv(65536).endswith(BODY):
            pass
        connection.sendall(says)
        connection.shutdown(socket.SHUT_RDWR)

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    try:
        with dial(front(f"http://127.0.0.1:{server.server_port}/", timeout=5)) as peer:
            peer.hello()
            send(peer, end="451 4.4.1")
    finally:
        server.stop(timeout=0)


def test_the_example_of_standard_webhooks_is_verified() -> None:
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",  # by the package standardwebhooks
    }
    check_signature(SECRET, headers, b'{"test": 2432232314}', now=lambda: 1614265330.0)


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000 + b"\r\nx\r\n"),
    ],
    ids=["100", "trailers", "chunks"],
)
def test_a_response_without_end_is_cut_off(
    front: Callable[..., SMTPServer], caplog: pytest.LogCaptureFixture, begins: bytes, goes_on: bytes
) -> None:
    def answer(connection: Any, address: Any) -> None:
        connection.recv(65536)
        connection.sendall(begins)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(goes_on)

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    try:
        with dial(front(f"http://127.0.0.1:{server.server_port}/", timeout=5)) as peer:
            peer.hello()
            send(peer, end="451 4.4.1")
    finally:
        server.stop(timeout=0)
    assert "more than 524288 bytes" in caplog.text


def test_requests_at_once_are_bounded(front: Callable[..., SMTPServer], application: Application) -> None:
    application.pause = 0.05
    server = front(application.url, connections=2)

    def one() -> None:
        with dial(server) as peer:
            peer.hello()
            send(peer)

    gevent.joinall([gevent.spawn(one) for _ in range(6)], raise_error=True)
    assert application.most == 2
    assert len(application.requests) == 6


def test_a_kept_connection_that_was_closed_is_replaced(
    front: Callable[..., SMTPServer], application: Application
) -> None:
    server = front(application.url)
    with dial(server) as peer:
        peer.hello()
        send(peer)
        port: Any = application.server.server_port
        application.server.stop(timeout=0)
        application.server = WSGIServer(("127.0.0.1", port), application._answer, log=None)
        application.server.start()
        send(peer)
    assert len(application.requests) == 2


def test_a_kept_connection_over_tls_that_was_closed_is_replaced(
    front: Callable[..., SMTPServer], certificate: Certificate
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)
    answered = 0

    def answer(connection: Any, address: Any) -> None:
        nonlocal answered
        data = b""
        while not data.endswith(b"at the end\r\n"):
            data = data[-20:] + connection.recv(65536)
        answered += 1
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = StreamServer(("127.0.0.1", 0), answer, ssl_context=context)
    server.start()
    try:
        url = f"https://localhost:{server.server_port}/"
        with dial(front(url, ca=str(certificate.authority), timeout=5)) as peer:
            peer.hello()
            for size in (1, 100, 4000):
                send(peer, body=b"Subject: x\r\n\r\n" + (b"x" * 990 + b"\r\n") * size + b"at the end\r\n")
    finally:
        server.stop(timeout=0)
    assert answered == 3


def test_a_large_message_is_streamed(front: Callable[..., SMTPServer], application: Application) -> None:
    body = b"Subject: x\r\n\r\n" + (b"x" * 990 + b"\r\n") * 3000
    with dial(front(application.url, secret=SECRET)) as peer:
        peer.hello()
        send(peer, body=body)
    headers, got = application.requests[0]
    assert got == body
    verify(SECRET, headers, got)


def test_a_message_beyond_a_bound_goes_by_the_store(
    front: Callable[..., SMTPServer], application: Application, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with dial(front(application.url, secret=SECRET, store=store, inline=len(BODY))) as peer:
        peer.hello()
        send(peer)
        identifier = send(peer, body=BODY * 2).split()[-1]
        application.status = "422 No"
        send(peer, body=BODY * 2, end="550")
        application.status = "500 No"
        send(peer, body=BODY * 2, end="451")
    assert [body for _, body in application.requests] == [BODY, b"", b"", b""]
    assert "path" not in verify(SECRET, *application.requests[0])
    path = Path(verify(SECRET, *application.requests[1])["path"])
    assert path == store / f"{identifier}.eml"
    assert path.read_bytes() == BODY * 2
    assert [*store.iterdir()] == [path]


def test_without_an_answer_a_stored_message_stays(front: Callable[..., SMTPServer], tmp_path: Path) -> None:
    with dial(front(f"http://127.0.0.1:{free_port()}/", store=tmp_path, inline=1)) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
    assert len([*tmp_path.glob("*.eml")]) == 1


def test_what_cannot_be_stored_is_not_posted(
    front: Callable[..., SMTPServer], application: Application, tmp_path: Path
) -> None:
    with dial(front(application.url, store=tmp_path / "store", inline=1)) as peer:
        peer.hello()
        (tmp_path / "store").rmdir()
        send(peer, end="451")
    assert application.requests == []


def test_more_recipients_than_a_header_holds_are_for_the_next_message(
    front: Callable[..., SMTPServer], application: Application
) -> None:
    with dial(front(application.url)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        peer.expect("250")
        taken = 0
        for number in range(200):
            peer.line(f"RCPT TO:<{'x' * 50}{number}@example.org>")
            if peer.reply().startswith("452 4.5.3"):
                break
            taken += 1
        assert 70 < taken < 150
        peer.line("DATA")
        peer.expect("354")
        peer.send(BODY + b".\r\n")
        peer.expect("250")
    assert len(json.loads(application.requests[0][0]["Smtp-Envelope"])["to"]) == taken


def test_a_client_that_vanishes_leaves_nothing(front: Callable[..., SMTPServer], application: Application) -> None:
    server = front(application.url)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(BODY)
    until(lambda: not server.connections, "the client to be gone")
    assert application.requests == []


def test_addresses_cannot_leave_their_header(front: Callable[..., SMTPServer], application: Application) -> None:
    with dial(front(application.url)) as peer:
        peer.hello()
        peer.send('MAIL FROM:<"a\\"b"@example.net> SMTPUTF8\r\nRCPT TO:<jürgen@exämple.org>\r\nDATA\r\n'.encode())
        peer.expect("250", "250", "354")
        peer.send(BODY + b".\r\n")
        peer.expect("250")
    envelope = json.loads(application.requests[0][0]["Smtp-Envelope"])
    assert envelope["from"] == '"a\\"b"@example.net'
    assert envelope["to"][0].startswith("jürgen@")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "ftp://x.example"}, "url: expected a URL like"),
        ({"url": "https://x.example:port/"}, "url: expected a URL like"),
        ({"url": "https://x.example/a b"}, "url: expected a URL like"),
        ({"url": "https://x.example", "secret": []}, "secret: expected a text, or several"),
        ({"url": "https://x.example", "wait": float("inf")}, "wait: expected a number above 0"),
        ({"url": "https://x.example/\r\nX: y"}, "url: expected a URL like"),
        ({"url": "https://jo:secret@x.example/"}, "url must hold no password"),
        ({"url": "https://x.example", "secret": "whsec_!"}, "secret: expected base64"),
        ({"url": "https://x.example", "secret": ""}, "secret: expected a text"),
        ({"url": "https://x.example", "headers": {"X": "a\r\nb"}}, "headers: expected names and values"),
        ({"url": "https://x.example", "timeout": 0}, "timeout: expected a number above 0"),
        ({"url": "https://x.example", "inline": 0}, "inline: expected a whole number of at least 1"),
        ({"url": "https://x.example", "ca": "/nowhere"}, "ca cannot be read"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Webhook(**options)


def test_over_tls_the_certificate_is_checked(
    front: Callable[..., SMTPServer], certificate: Certificate, application: Application
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)
    server = WSGIServer(
        ("127.0.0.1", 0),
        application._answer,
        log=None,
        error_log=None,
        ssl_context=context,
    )
    server.start()
    try:
        for ca, end in ((None, "451 4.4.1"), (str(certificate.authority), "250")):
            with dial(front(f"https://localhost:{server.server_port}/hook?a=b", ca=ca, timeout=5)) as peer:
                peer.hello()
                send(peer, end=end)
    finally:
        server.stop(timeout=0)
    assert [body for _, body in application.requests] == [BODY]
