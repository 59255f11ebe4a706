"""TLS on the client's side: default contexts, the handshake, and the decision of the handlers of ``secure``."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from gevent import Timeout
from gevent import ssl as gevent_ssl

from greensmtp.client.timeouts import Timeouts
from greensmtp.client.transport import ClientTransport
from greensmtp.errors import Reject, TLSFailed, TLSUnverified
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import Ack
from greensmtp.session.ack_rules import AckRules
from greensmtp.session.ack_state import AckState
from greensmtp.thread_pool import in_thread_pool

_NO_HANDLERS = Reply(250, "Ok")
_RULES = AckRules(accepted=Reply(250, "Ok"), rejected=Reply(554, "5.7.0 not the intended peer"), default=_NO_HANDLERS)
_UNDECIDED = Reply(554, "5.7.0 it dropped the ack without calling accept() or reject()")

#: Seconds for reading the system's certificate authorities in the thread pool, once per process.
AUTHORITIES_SECONDS = 60.0

#: Calls the handlers of ``secure`` with an ack; False if there are none. It must not keep the ack.
Asker = Callable[[Ack], bool]

_default_context: ssl.SSLContext | None = None
_any_context: ssl.SSLContext | None = None


def default_context() -> ssl.SSLContext:
    """Return the context for clients without ``ssl_context=``: system authorities, names checked, TLS 1.2 or later.

    :raises TLSFailed: reading the authorities timed out.
    """
    global _default_context  # noqa: PLW0603 - reading the authorities takes tens of milliseconds: once is enough
    if _default_context is None:
        timeout = Timeout(AUTHORITIES_SECONDS)
        try:
            with timeout:
                context = in_thread_pool(gevent_ssl.create_default_context)
        except Timeout as expired:
            if expired is not timeout:
                raise
            text = f"reading the system's certificate authorities timed out after {AUTHORITIES_SECONDS:g} s"
            raise TLSFailed(text) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _default_context = context
    return _default_context


def any_context() -> ssl.SSLContext:
    """Return the context of opportunistic TLS (RFC 7435), which accepts any certificate for any name."""
    global _any_context  # noqa: PLW0603 - as above
    if _any_context is None:
        _any_context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _any_context.check_hostname = False
        _any_context.verify_mode = ssl.CERT_NONE
    return _any_context


def upgrade(
    transport: ClientTransport,
    context: ssl.SSLContext,
    server_hostname: str | None,
    timeouts: Timeouts,
    asker: Asker,
) -> None:
    """Do the handshake, then let the handlers of ``secure`` decide. Any error closes the connection.

    :raises TLSUnverified: the certificate does not verify, or a handler rejects the peer.
    :raises TLSFailed: the handshake failed.
    """
    transport.start_tls(context, server_hostname, timeouts.tls)
    try:
        decision = _ask(transport, timeouts, asker)
        if not decision.is_positive:
            raise TLSUnverified(f"a handler of secure rejects the peer: {decision}")
        transport.approved = decision is not _NO_HANDLERS
    except BaseException as error:
        transport.close(error)
        raise


def _ask(transport: ClientTransport, timeouts: Timeouts, asker: Asker) -> Reply:
    """Return the handlers' decision, waiting for it if necessary. An ack that is dropped undecided rejects the peer."""
    state, ack = AckState(_RULES, None), Ack()
    ack._state = state
    try:
        if not asker(ack):
            return _NO_HANDLERS
        if state.reply is None:
            watched = state.watch(ack)
            del ack  # from here on, only handlers hold it
            seconds = timeouts.command
            if not transport.with_deadline(seconds, lambda: state.wait(watched)):
                raise TLSUnverified(f"no handler of secure decided within {seconds:g} s")
    except Reject as reject:
        return Reply(reject.code, reject.message or "rejected")
    finally:
        state.closed = True
    return state.reply or _UNDECIDED
