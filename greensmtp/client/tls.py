"""TLS on the client's side: the context, and what the receivers of ``secure`` say to the peer."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Protocol

from gevent import Timeout
from gevent import ssl as gevent_ssl

from greensmtp.client import signals
from greensmtp.client.transport import ClientTransport
from greensmtp.errors import Reject, TLSFailed, TLSUnverified
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import Ack, AckRules, AckState
from greensmtp.thread_pool import in_thread_pool

if TYPE_CHECKING:
    from greensmtp.client.deadlines import Timeouts

_UNHEARD = Reply(250, "Ok")
_RULES = AckRules(accepted=Reply(250, "Ok"), rejected=Reply(554, "5.7.0 not the peer that is meant"), default=_UNHEARD)
_FORGOTTEN = Reply(554, "5.7.0 it dropped the ack without calling accept() or reject()")

#: Seconds for reading the system's certificate authorities, in the thread pool, once.
AUTHORITIES_SECONDS = 60.0

_default_context: ssl.SSLContext | None = None
_any_context: ssl.SSLContext | None = None


def default_context() -> ssl.SSLContext:
    """The TLS context of clients that are given none: the system's authorities, names checked, TLS 1.2 or later.

    :raises TLSFailed: the authorities could not be read in time.
    """
    global _default_context  # noqa: PLW0603 - reading the authorities takes tens of milliseconds: once is enough
    if _default_context is None:
        late = Timeout(AUTHORITIES_SECONDS)
        try:
            with late:
                context = in_thread_pool(gevent_ssl.create_default_context)
        except Timeout as expired:
            if expired is not late:
                raise
            why = f"the system's certificate authorities could not be read within {AUTHORITIES_SECONDS:g} s"
            raise TLSFailed(why) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _default_context = context
    return _default_context


def any_context() -> ssl.SSLContext:
    """The TLS context of opportunistic TLS (RFC 7435): any certificate, for any name."""
    global _any_context  # noqa: PLW0603 - as above
    if _any_context is None:
        _any_context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _any_context.check_hostname = False
        _any_context.verify_mode = ssl.CERT_NONE
    return _any_context


class _Client(Protocol):
    """What of an ``SMTPClient`` is needed here."""

    @property
    def timeouts(self) -> Timeouts: ...

    @property
    def signals(self) -> signals.ClientSignals: ...


def upgrade(client: _Client, wire: ClientTransport, context: ssl.SSLContext, server_hostname: str | None) -> None:
    """The handshake, and what ``secure`` says to it. Whatever goes wrong closes the connection.

    :raises TLSUnverified: the peer is not who it should be.
    :raises TLSFailed: the handshake failed.
    """
    wire.start_tls(context, server_hostname, client.timeouts.tls)
    try:
        verdict = _ask(client, wire)
        if not verdict.is_positive:
            raise TLSUnverified(f"a handler of secure rejects the peer: {verdict}")
    except BaseException as error:
        wire.close(error)
        raise
    for signal in (signals.shared.tls, client.signals.tls):
        if signal.receivers:
            signal.send(client)


def _ask(client: _Client, wire: ClientTransport) -> Reply:
    """What the receivers decide, at once or later; whoever lets the ack go undecided has refused."""
    receivers = [
        receiver
        for signal in (signals.shared.secure, client.signals.secure)
        for receiver in signal.receivers_for(client)
    ]
    if not receivers:
        return _UNHEARD
    decision = AckState(_RULES)
    ack = Ack(decision)
    try:
        for receiver in receivers:
            receiver(client, ack=ack)
        if decision.reply is None:
            alive = decision.watch(ack)
            del ack, receiver  # from here on, only receivers hold it
            seconds = client.timeouts.command
            if not wire.with_deadline(seconds, lambda: decision.wait(alive)):
                raise TLSUnverified(f"no handler of secure has decided within {seconds:g} s")
    except Reject as reject:
        return Reply(reject.code, reject.message or "rejected")
    finally:
        decision.closed = True
    return decision.reply or _FORGOTTEN
