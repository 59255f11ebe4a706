"""Tracing: the spans of sessions and messages, recorded by the SDK, with hostile and with lost clients."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Auth, Logging, RateLimit, Tracing
from greensmtp.middleware.tracing import traced
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked


class Traces:
    """A server with Tracing, and the spans that have ended."""

    def __init__(
        self, make: MakeServer, *, inside: Any = (), addresses: bool = False, commands: bool = False, **options: Any
    ) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        tracing = Tracing(self.provider, addresses=addresses, commands=commands)
        inside = inside(self.provider) if callable(inside) else inside
        self.server = make(start=False, middleware=[tracing, *inside], **options)
        self.server.on("message", self._take)
        self._over = Event()
        self.server.on("disconnect", lambda session, reason: self._over.set())

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()

    def dial(self) -> Peer:
        self._over.clear()
        return dial(self.server, source=("192.0.2.1", 4711))

    def over(self) -> None:
        assert self._over.wait(5)
        gevent.sleep(0)

    def __getitem__(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (span,) = self.all(name)
        return span

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Return whether a span is a child of another, in the same trace."""
    assert span.parent is not None
    assert span.context is not None
    assert parent.context is not None
    return (span.parent.span_id, span.context.trace_id) == (parent.context.span_id, parent.context.trace_id)


@pytest.fixture
def traces(smtp_server: MakeServer) -> Callable[..., Traces]:
    return lambda **options: Traces(smtp_server, **options)


def send(it: Traces, **options: Any) -> str:
    """Send a message, and QUIT; return the reply to the message."""
    with it.dial() as peer:
        peer.hello()
        reply = peer.deliver(b"hi\r\n", sender="jo@example.org", to=["a@example.com", "b@example.com"], **options)
        peer.line("QUIT")
        peer.rest()
    it.over()
    return reply


# Spans and what they say


def test_a_message_has_a_trace_of_its_own_linked_to_the_session(traces: Callable[..., Traces]) -> None:
    it = traces()
    reply = send(it)
    assert it.names() == ["SMTP receive", "SMTP deliver", "SMTP transaction", "SMTP session"]
    session, transaction = it["SMTP session"], it["SMTP transaction"]
    assert session.parent is None
    assert transaction.parent is None
    (link,) = transaction.links
    assert link.context == session.context
    for name in ("SMTP receive", "SMTP deliver"):
        assert is_child(it[name], transaction)
    assert attributes(transaction) == {
        "network.protocol.name": "smtp",
        "network.transport": "tcp",
        "network.type": "ipv4",
        "server.address": "mx.example.com",
        "client.address": "192.0.2.1",
        "client.port": 4711,
        "smtp.session.id": attributes(session)["smtp.session.id"],
        "smtp.transaction.id": reply.split()[-1],
        "smtp.recipients.count": 2,
        "smtp.message.size": 4,
        "smtp.reply.code": 250,
        "smtp.reply.enhanced_code": "2.0.0",
    }
    assert attributes(session)["smtp.session.end"] == "quit"
    assert attributes(session)["smtp.session.messages"] == 1
    assert {span.status.status_code for span in (session, transaction)} == {StatusCode.UNSET}
    assert transaction.kind == session.kind == trace.SpanKind.SERVER


@pytest.mark.parametrize("code", [451, 550])
def test_a_refused_message_is_an_error_told_by_its_codes_alone(traces: Callable[..., Traces], code: int) -> None:
    it = traces()
    it.server.on("received", lambda session, ack: ack.reject(code, "no <jo@example.org>"))
    send(it)
    for name in ("SMTP transaction", "SMTP deliver"):
        span = it[name]
        assert span.status.status_code == StatusCode.ERROR
        assert re.fullmatch(rf"{code} {code // 100}\.\d+\.\d+", span.status.description or "")
        assert attributes(span)["error.type"] == str(code)
    assert it["SMTP session"].status.status_code == StatusCode.UNSET


def test_addresses_and_users_are_left_out_unless_they_are_asked_for(traces: Callable[..., Traces]) -> None:
    for addresses in (False, True):
        it = traces(addresses=addresses, commands=True, inside=[Auth({"beep": "boop"}, allow_plaintext=True)])
        with it.dial() as peer:
            peer.hello()
            peer.line("AUTH PLAIN AGJlZXAAYm9vcA==")
            peer.expect("235")
            peer.deliver(b"hi\r\n", sender="jo@example.org", to=["a@example.com"])
            peer.line("MAIL FROM:<jo@example.org>", "RCPT TO:<no good@example.com>", "RSET", "VRFY ann", "QUIT")
            peer.rest()
        it.over()
        everything = repr([span.to_json() for name in set(it.names()) for span in it.all(name)])
        assert "boop" not in everything
        assert "AGJlZXA" not in everything
        if addresses:
            found = [attributes(span) for span in it.all("SMTP transaction")]
            assert found[0]["smtp.sender"] == "jo@example.org"
            assert found[0]["smtp.recipients"] == ("a@example.com",)
            assert found[0]["user.name"] == "beep"
        else:
            assert "example.org" not in everything
            assert "a@example.com" not in everything
            assert "beep" not in everything


def test_a_refused_sender_ends_the_transaction(traces: Callable[..., Traces]) -> None:
    it = traces(addresses=True)
    it.server.on("from", lambda session, address, ack: ack.reject(550, "5.7.1 not you"))
    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org>")
        peer.expect("550")
        assert attributes(it["SMTP transaction"])["smtp.reply.enhanced_code"] == "5.7.1"
        assert attributes(it["SMTP transaction"])["smtp.sender"] == "jo@example.org"


def test_a_refused_recipient_is_an_event(traces: Callable[..., Traces]) -> None:
    it = traces()

    @it.server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        if address.startswith("b@"):
            ack.reject(550, "5.1.1 no such user")
        else:
            ack.accept()

    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", "x", ".")
        peer.expect("250", "250", "550", "354", "250")
        (event,) = it["SMTP transaction"].events
    assert event.name == "recipient refused"
    assert dict(event.attributes or {}) == {"smtp.reply.code": 550, "smtp.reply.enhanced_code": "5.1.1"}


@pytest.mark.parametrize("verb", ["RSET", "EHLO again"])
def test_a_transaction_that_is_given_up_ends(traces: Callable[..., Traces], verb: str) -> None:
    it = traces()
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line(verb)
        peer.expect("250")
        span = it["SMTP transaction"]
    assert attributes(span)["smtp.transaction.end"] == verb.split(maxsplit=1)[0]
    assert span.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize("verb", ["DATA", "BDAT 100"])
def test_a_client_that_is_lost_in_the_body(traces: Callable[..., Traces], verb: str) -> None:
    it = traces()
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line(verb, "x")
    it.over()
    assert it.names() == ["SMTP receive", "SMTP transaction", "SMTP session"]
    assert attributes(it["SMTP transaction"])["error.type"] in ("closed", "reset")
    assert it["SMTP session"].status.status_code == StatusCode.UNSET


def test_a_data_that_is_refused_and_tried_again(traces: Callable[..., Traces]) -> None:
    refusals = [Reject(451, "4.3.0 later")]

    def once(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "DATA" and refusals:
            raise refusals.pop()
        return proceed(session, command)

    it = traces(inside=[once])
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("451")
        peer.line("DATA", "x", ".")
        peer.expect("354", "250")
    it.over()
    assert [span.status.status_code for span in it.all("SMTP receive")] == [StatusCode.ERROR, StatusCode.UNSET]
    assert attributes(it["SMTP transaction"])["smtp.reply.code"] == 250
    assert "error.type" not in attributes(it["SMTP transaction"])


def test_a_delivery_that_fails_after_all_have_accepted(traces: Callable[..., Traces]) -> None:
    def fail() -> None:
        raise Reject(452, "4.3.1 full")

    it = traces()

    @it.server.on("received")
    def received(session: Session, ack: Ack) -> None:
        session.stage(fail)
        ack.accept()

    assert send(it).startswith("452")
    assert attributes(it["SMTP transaction"])["smtp.reply.code"] == 452


def test_lmtp_has_one_span_for_all_recipients(traces: Callable[..., Traces]) -> None:
    it = traces(lmtp=True)

    @it.server.on("received")
    def received(session: Session, ack: Ack, recipient: Address) -> None:
        if recipient.startswith("b@"):
            ack.reject(452, "4.2.2 full")
        else:
            ack.accept()

    with it.dial() as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["a@example.com", "b@example.com"])
        peer.line("DATA", "x", ".")
        peer.expect("354", "250", "452")
    it.over()
    assert attributes(it["LMTP transaction"])["network.protocol.name"] == "lmtp"
    assert attributes(it["LMTP transaction"])["smtp.reply.code"] == 452
    assert is_child(it["LMTP deliver"], it["LMTP transaction"])


def test_a_refused_connection(traces: Callable[..., Traces]) -> None:
    it = traces()
    it.server.on("connect", lambda session, ack: ack.reject(554, "5.7.1 no"))
    with it.dial() as peer:
        peer.expect("554")
        peer.expect_end()
    it.over()
    assert attributes(it["SMTP session"])["error.type"] == "554"
    assert attributes(it["SMTP session"])["smtp.session.end"] == "refused"


def test_a_handler_that_resets_the_session_leaves_no_span_open(traces: Callable[..., Traces]) -> None:
    it = traces()

    @it.server.on("to")
    def reset(session: Session, address: Address, ack: Ack) -> None:
        session.reset()
        ack.reject()

    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<a@example.com>", "MAIL FROM:<>", "QUIT")
        peer.rest()
    it.over()
    assert it.names() == ["SMTP transaction", "SMTP transaction", "SMTP session"]


def test_a_unix_peer(traces: Callable[..., Traces]) -> None:
    it = traces()
    with dial(it.server) as peer:
        peer.hello()
    it.over()
    found = attributes(it["SMTP session"])
    assert found["network.transport"] == "unix"
    assert not any(name.startswith("client.") for name in found)


# Context


def test_spans_of_handlers_are_children_of_the_message(traces: Callable[..., Traces]) -> None:
    it = traces()
    tracer = it.provider.get_tracer("application")

    def work(name: str) -> Callable[..., None]:
        def handle(session: Session, **fields: Any) -> None:
            with tracer.start_as_current_span(name):
                if "ack" in fields:
                    gevent.sleep(0.001)
                    fields["ack"].accept()

        return handle

    for name in ("greeting", "from", "to", "received", "disconnect"):
        it.server.on(name, work(name))

    @it.server.on("received")
    def stage(session: Session, ack: Ack) -> None:
        session.stage(work("staged"), session)

    send(it)
    transaction = it["SMTP transaction"]
    assert is_child(it["from"], transaction)
    assert all(is_child(span, transaction) for span in it.all("to"))
    assert is_child(it["received"], it["SMTP deliver"])
    assert is_child(it["staged"], it["SMTP deliver"])
    assert is_child(it["greeting"], it["SMTP session"])
    assert is_child(it["disconnect"], it["SMTP session"])


def test_connections_do_not_share_their_context(traces: Callable[..., Traces]) -> None:
    it = traces()
    tracer = it.provider.get_tracer("application")

    @it.server.on("received")
    def received(session: Session, ack: Ack) -> None:
        with tracer.start_as_current_span("work", attributes={"id": session.transaction_id}):
            gevent.sleep(0.005)
        ack.accept()

    jobs = [gevent.spawn(send, it) for _ in range(5)]
    gevent.joinall(jobs, timeout=10, raise_error=True)
    parents = {span.context.span_id: attributes(span) for span in it.all("SMTP deliver") if span.context}
    transactions = {
        span.context.trace_id: attributes(span)["smtp.transaction.id"]
        for span in it.all("SMTP transaction")
        if span.context
    }
    for span in it.all("work"):
        assert span.context is not None
        assert span.parent is not None
        assert span.parent.span_id in parents
        assert transactions[span.context.trace_id] == attributes(span)["id"]
    assert not trace.get_current_span().get_span_context().is_valid


def test_log_records_are_written_within_the_messages_span(
    traces: Callable[..., Traces], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    it = traces(inside=[Logging()])
    seen: dict[str, int] = {}

    class Spy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen[record.getMessage()] = trace.get_current_span().get_span_context().trace_id

    spy = Spy()
    loggers = [logging.getLogger("greensmtp"), logging.getLogger("greensmtp.session")]

    @it.server.on("received")
    def fail(session: Session, ack: Ack) -> None:
        raise LookupError

    loggers[0].addHandler(spy)
    try:
        send(it)
    finally:
        loggers[0].removeHandler(spy)
    context = it["SMTP transaction"].context
    assert context is not None
    of_message = [text for text, trace_id in seen.items() if trace_id == context.trace_id]
    assert any("raised; replying 451" in text for text in of_message)
    assert any(" message from=" in text for text in of_message)


@pytest.mark.subprocess
@pytest.mark.parametrize("how", [forked.UNPATCHED, forked.PATCHED], ids=["unpatched", "patched"])
def test_greenlets_keep_their_context_patched_or_not(how: tuple[str, ...]) -> None:
    program = """
import contextvars
import gevent
var = contextvars.ContextVar("var", default=0)
def own(number):
    var.set(number)
    gevent.sleep(0.01)
    return var.get()
found = [job.get() for job in [gevent.spawn(own, number) for number in range(1, 4)]]
assert (found, var.get()) == ([1, 2, 3], 0), found
"""
    process = forked.start(forked.python(program), how=how)
    assert process.wait(20) == 0


# Commands, and other middleware


def test_commands_have_spans_where_they_are_asked_for(traces: Callable[..., Traces]) -> None:
    it = traces(commands=True)
    with it.dial() as peer:
        peer.hello()
        peer.line("NOOP", "XYZZY secret")
        peer.expect("250", "500")
        peer.deliver(b"hi\r\n")
        peer.line("QUIT")
        peer.rest()
    it.over()
    session, transaction = it["SMTP session"], it["SMTP transaction"]
    for name in ("SMTP EHLO", "SMTP NOOP", "SMTP other", "SMTP QUIT"):
        assert is_child(it[name], session), name
    for name in ("SMTP MAIL", "SMTP RCPT"):
        assert is_child(it[name], transaction), name
    assert is_child(it["SMTP DATA"], it["SMTP receive"])
    assert attributes(it["SMTP other"])["error.type"] == "500"
    assert "secret" not in repr(it["SMTP other"].to_json())


def test_a_traced_middleware_has_a_span_for_each_call(traces: Callable[..., Traces]) -> None:
    def inside(provider: TracerProvider) -> list[Any]:
        return [traced(RateLimit("1/hour"), tracer_provider=provider)]

    it = traces(inside=inside)
    with it.dial() as peer:
        peer.hello()
        peer.deliver(b"hi\r\n")
        peer.line("MAIL FROM:<>")
        peer.expect("450")
    it.over()
    first, second = it.all("RateLimit")
    assert is_child(first, it.all("SMTP transaction")[0])
    assert attributes(second) == {
        "smtp.reply.code": 450,
        "smtp.reply.enhanced_code": "4.7.1",
        "error.type": "450",
    }


def test_a_traced_middleware_is_still_the_same(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Faulty:
        verbs = ("NOOP",)

        def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
            raise LookupError("secret")

        def start(self, server: Any) -> None:
            calls.append("start")

        def stop(self, server: Any) -> None:
            calls.append("stop")

    auth = traced(Auth({"beep": "boop"}, allow_plaintext=True))
    server = smtp_server(middleware=[traced(Faulty(), "mine"), auth])
    assert auth.verbs == auth.middleware.verbs  # type: ignore[attr-defined]
    assert "traced(Auth" in str(server.stack)
    with dial(server) as peer:
        assert "AUTH" in peer.hello()
        peer.line("NOOP")
        peer.expect("451")
    server.stop()
    assert calls == ["start", "stop"]
    assert f"middleware {__name__}.test_a_traced_middleware_is_still_the_same.<locals>.Faulty raised" in caplog.text


def test_what_is_no_middleware_is_refused() -> None:
    with pytest.raises(TypeError, match="a middleware is called as"):
        traced(lambda session: None)  # type: ignore[arg-type]


# Without an SDK


def test_without_an_sdk_a_session_keeps_nothing(smtp_server: MakeServer) -> None:
    notes: list[dict[Any, Any]] = []
    tracing = Tracing(trace.NoOpTracerProvider())
    server = smtp_server(start=False, middleware=[tracing])
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: notes.append(dict(session.notes)))
    with dial(server) as peer:
        peer.hello()
        peer.deliver(b"hi\r\n")
    assert notes == [{}]


def test_a_sampler_may_drop_spans(smtp_server: MakeServer) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = smtp_server(start=False, middleware=[Tracing(provider, addresses=True, commands=True)])
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"hi\r\n").startswith("250")
    assert exporter.get_finished_spans() == ()


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'greensmtp\[tracing\]'"):
        Tracing()


def test_it_shows_in_a_stack() -> None:
    assert repr(Tracing()) == "Tracing(addresses=False, commands=False)"
