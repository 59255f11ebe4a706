"""The spans of Tracing: where a tracer comes from, what a span says of a session, a message and a reply.

Attributes have the names of OpenTelemetry's semantic conventions where there are any. Those of SMTP begin with
``smtp.``. Addresses and users are personal data, and are left out unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from greensmtp.protocol.log_text import LISTED, shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

Attributes = dict[str, Any]


class TracerProvider(Protocol):
    """The method of an ``opentelemetry.trace.TracerProvider`` that is used here, for programs without OpenTelemetry."""

    def get_tracer(self, instrumenting_module_name: str) -> Any: ...


def make_tracer(provider: TracerProvider | None) -> Tracer:
    """Return a tracer of this provider; for None, of the one that the program sets, now or later.

    :raises ModuleNotFoundError: opentelemetry-api is missing.
    """
    try:
        from opentelemetry import trace
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Tracing needs opentelemetry-api: pip install 'greensmtp[tracing]'", name=error.name
        ) from error
    return trace.get_tracer("greensmtp") if provider is None else provider.get_tracer("greensmtp")


def session_attributes(session: Session) -> Attributes:
    """Return what is known of a session when it begins."""
    host = session.peer_host
    found: Attributes = {
        "network.protocol.name": "lmtp" if session.server.lmtp else "smtp",
        "network.transport": "unix" if host is None else "tcp",
        "server.address": session.server.hostname,
        "smtp.session.id": session.id,
    }
    if host is not None:
        found["client.address"] = shown(host)
        found["client.port"] = session.peer[1]
        found["network.type"] = "ipv6" if ":" in host else "ipv4"
    return found


def tls_attributes(session: Session) -> Attributes:
    """Return the facts of TLS."""
    found = {"tls.protocol.version": session.tls_version, "tls.cipher": session.tls_cipher}
    return {name: shown(value) for name, value in found.items() if value is not None}


def envelope_attributes(session: Session, sender: str, recipients: Sequence[str]) -> Attributes:
    """Return the addresses of a transaction, and its user: personal data."""
    found: Attributes = {"smtp.sender": shown(sender), "smtp.recipients": list(map(shown, recipients[:LISTED]))}
    if session.identity is not None:
        found["user.name"] = shown(getattr(session.identity, "authcid", session.identity))
    return found


def note_reply_in(span: Span, reply: Reply) -> None:
    """Set the attributes of a reply. A refusal is the span's error, told by codes: its text may quote the client."""
    span.set_attribute("smtp.reply.code", reply.code)
    if reply.enhanced:
        span.set_attribute("smtp.reply.enhanced_code", reply.enhanced)
    if reply.code >= 400:
        fail(span, str(reply.code), f"{reply.code} {reply.enhanced or ''}".rstrip())


def fail(span: Span, kind: str, description: str | None = None) -> None:
    """Make an error of a span."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, description))


def enter(span: Span, parent: Context | None = None) -> Context:
    """Make a span the current one of this greenlet, and return its context."""
    from opentelemetry import context, trace

    entered = trace.set_span_in_context(span, parent)
    context.attach(entered)
    return entered
