"""What follows EHLO, QUIT, STARTTLS, XCLIENT, DATA and BDAT: what is on offer, the end, a handshake, a body.

The rules of this file:

- A continuation gets the chain's reply before it is settled. It writes the replies by itself, and returns False if the
  connection is to be closed.
- STARTTLS takes effect only by the server's own action: a middleware's 220 would leave the client in a handshake.
- Once 354 or a chunk's first byte is on its way, a refusal cannot stop the client. The body is read to its end, and the
  reply comes then.
- A refused BDAT ends the transaction, and its bytes are dropped: the next chunk must not pass for a message.
- A message gets one reply, in LMTP one for each accepted RCPT, in their order (RFC 2033 sections 4.2, 4.3). Each is
  written as soon as it is known: if the connection is cut off in between, the client knows which recipients have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from greensmtp._log import logger
from greensmtp.chain.chain import before_banner
from greensmtp.errors import ConnectionLost, IncompleteMessage, Reject, TransactionReset
from greensmtp.protocol import canned
from greensmtp.protocol.command import END_OF_DATA, ChunkCommand, Command, EndOfData
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl.exchange import Identity
from greensmtp.protocol.state import State
from greensmtp.server.body import skip
from greensmtp.server.chunks import is_wasteful, repeat_refusal
from greensmtp.server.handler import ConnectionHandler
from greensmtp.server.places import client_key
from greensmtp.server.replier import further_recipients
from greensmtp.server.routes import Continuation
from greensmtp.server.supervised import UNSEEN
from greensmtp.server.xclient import merge, named_peer, take_request
from greensmtp.session.ack_state import ENDINGS
from greensmtp.session.stream import MessageStream

#: That of SMTP, which has one reply to a message; LMTP has one for each recipient.
_END: Final = EndOfData()


def after_hello(handler: ConnectionHandler, command: Command, reply: Reply) -> bool:
    """Write the reply to EHLO or LHLO, and keep it: ``session.extensions`` reads it."""
    reply = handler.settle(reply)
    session = handler.session
    if reply.code < 300 and session.greeting is not None:
        session._hello_reply = reply
    return handler.tell(command, reply)


def after_quit(handler: ConnectionHandler, command: Command, reply: Reply) -> bool:
    """Write 221 and end; any other reply is an ordinary one, and the client may go on."""
    if reply.code != 221:
        return handler.answer(command, reply)
    handler.settle(reply)
    handler.transport.write(reply.encode())
    handler.closing = "quit"
    return False


def after_starttls(handler: ConnectionHandler, command: Command, reply: Reply) -> bool:
    """Send 220, shake hands, and forget what the client said before (RFC 3207 section 4.2)."""
    session = handler.session
    requested, session._tls_requested = session._tls_requested, False
    if not requested and reply.code == 220:
        logger.error("%s: %r to STARTTLS, but not by the server's own action; replying 454", session.log_id, reply)
        reply = canned.TLS_UNAVAILABLE
    elif requested and reply.code == 220:
        reply = handler.settle(reply)
    if reply.code != 220:
        return handler.answer(command, reply)
    handler.transport.write(reply.encode())
    handler.flush()
    session._reset_all()
    handler.start_tls()
    return True


def after_xclient(handler: ConnectionHandler, command: Command, reply: Reply) -> bool:
    """Begin another session on this connection, for the client that XCLIENT names, with another banner.

    To middleware and handlers the proxy's session ends with DISCONNECT, and the client's begins with ACCEPT: what
    counts connections, or lets them in by address, needs to know nothing of XCLIENT. Commands that are pipelined behind
    it belong to the client.
    """
    session = handler.session
    attributes = take_request(session)
    if reply.code == 220 and attributes is None:
        logger.error("%s: %r to XCLIENT, but not by the server's own action; replying 451", session.log_id, reply)
        reply = canned.LOCAL_ERROR
    reply = handler.settle(reply)
    if reply.code != 220 or attributes is None:
        return handler.tell(command, reply)
    handler.handle_disconnect("xclient")
    session._disconnect_receivers()  # handlers of CONNECT may connect theirs again
    session._begin_again(named_peer(session.peer, attributes), merge(session.xclient, attributes))
    handler.deferred_recipients = 0
    handler.registry.readdress(handler, client_key(session.peer))
    return handler.admit() and _take_login(handler, command) and handler.greet()


def _take_login(handler: ConnectionHandler, command: Command) -> bool:
    """Set the identity that XCLIENT names, if any; return False, with a reply, if a handler of ``auth`` rejects it."""
    session = handler.session
    assert session.xclient is not None
    login = session.xclient.get("LOGIN")
    if login is None:
        return True
    identity = Identity(login, mechanism="XCLIENT")
    handler.begin_command(command)
    reply: Reply | None
    try:
        reply = session.ask("auth", identity=identity)
    except BaseException as error:
        reply = handler.error_reply(error, command.verb)
    assert reply is not None
    if reply.code >= 400:
        handler.transport.write(before_banner(reply).encode())
        return False
    session.identity = identity
    return True


def after_body(handler: ConnectionHandler, command: Command, reply: Reply) -> bool:
    """Read the rest of the body that DATA or the first BDAT began, reply to the message, and end the transaction."""
    session = handler.session
    stream = session.message
    if stream is None or not stream.opened:
        return _refuse_body(handler, command, reply)
    if reply.code != 354 if command.verb == "DATA" else reply.code >= 300:
        _overrule(handler, stream, reply)
    elif session._staged:
        handler.take_effect(reply)  # if a change raises, the stream has failed
    if not stream.complete:
        _drain(handler, stream)
    if stream.error is not None:
        if isinstance(stream.error, ConnectionLost):
            raise stream.error
        if isinstance(stream.error, TransactionReset):
            # The chunks have been answered; the loop goes on with the command that ended them.
            handler.transport.in_body = False
            session.reset()
            return True
    if handler.routes.lmtp:
        accepted, go_on = _reply_to_each(handler, stream)
    else:
        reply = _end_of_data(handler, stream, _END)
        accepted = go_on = reply.code < 300
        if accepted:  # as in say:
            handler.transport.write(reply.wire or reply.encode())
        else:
            go_on = handler.say(reply)
    session.reset()
    if accepted:
        session.messages_accepted += 1
        session.errors = session._idle_commands = handler.deferred_recipients = 0
        return go_on
    if not go_on or not handler.count_error():
        return False
    return (reply.code >= 500 and not handler.routes.lmtp) or handler.count_idle()


def _end_of_data(handler: ConnectionHandler, stream: MessageStream, end: EndOfData) -> Reply:
    """Have a complete message handled, in LMTP for one recipient, and return the reply."""
    session = handler.session
    # As in begin_command, but what the message has staged stays.
    handler.current = end
    handler.spent = UNSEEN
    handler.identity_before = session.identity
    try:
        reply = handler.routes.end_of_data(session, end)
    except BaseException as error:
        reply = handler.error_reply(error, END_OF_DATA)
    if stream.failure is not None and reply.code < 300:
        logger.error("%s: %r to a message that has failed; replying %s", session.log_id, reply, stream.failure)
        reply = stream.failure
    if session._staged or reply.code >= 300:
        handler.is_storing = True
        try:
            reply = handler.settle(reply)
        finally:
            handler.is_storing = False
    stream.replies.append(reply)
    return reply


def _reply_to_each(handler: ConnectionHandler, stream: MessageStream) -> tuple[bool, bool]:
    """LMTP: reply to the message for each accepted RCPT.

    :return: whether the message was accepted for one recipient, and whether the connection goes on.
    """
    session = handler.session
    further = further_recipients(session)
    accepted, go_on = False, True
    owed: Reply | None = None
    for number, recipient in enumerate(session.to, 1):
        reply = _end_of_data(handler, stream, EndOfData(recipient))
        accepted = accepted or reply.code < 300
        if owed is not None and not _is_worse(reply, owed):
            reply = owed
        if number in further:  # the next recipient belongs to the same RCPT
            owed = reply
            continue
        owed = None
        go_on = handler.say(reply) and go_on
    return accepted, go_on


def _refuse_body(handler: ConnectionHandler, command: Command, reply: Reply) -> bool:
    """Refuse a message whose body does not flow; drop the bytes of a refused chunk."""
    session = handler.session
    if session.message is not None:  # what is no Exception has left it there
        session.message.end()
        session.message = None
    if not isinstance(command, ChunkCommand):
        return handler.answer(command, reply)
    reply = handler.settle(canned.LOCAL_ERROR if reply.code < 300 else reply)
    repeat_refusal(handler, command, reply)
    go_on = handler.tell(command, reply)
    if go_on and is_wasteful(command):
        go_on = handler.count_idle()
    if session.state > State.SENDER:
        session.reset()
    if go_on:
        skip(handler.transport, command.size)
    return go_on


def _overrule(handler: ConnectionHandler, stream: MessageStream, reply: Reply) -> None:
    """Fail a message that a middleware has refused while its body flows already."""
    handler.forget_changes()
    if reply.code < 400:
        logger.error("%s: unexpected reply %r to a message; replying 451", handler.session.log_id, reply)
        reply = canned.LOCAL_ERROR
    stream.fail(reply)


def _is_worse(reply: Reply, owed: Reply) -> bool:
    """Return True if a reply goes before another to the same RCPT: a refusal before a 250, 4xx before 5xx.

    The client must not take a message for delivered that one of the recipients has not got.
    """
    return owed.is_positive or (reply.is_transient_failure and owed.is_permanent_failure)


def _drain(handler: ConnectionHandler, stream: MessageStream) -> None:
    """Read what the handlers have left unread; it still flows to the pipes."""
    while not stream.complete:
        try:
            stream.drain()
        except IncompleteMessage:
            return
        except Reject:
            pass  # raised by a pipe; the stream has taken its reply
        except ENDINGS:
            raise
        except BaseException:
            logger.exception("%s: a pipe of the message raised; replying %s", handler.session.log_id, stream.failure)


#: verb -> its continuation
CONTINUATIONS: Mapping[str, Continuation] = {
    "EHLO": after_hello,
    "LHLO": after_hello,
    "QUIT": after_quit,
    "STARTTLS": after_starttls,
    "XCLIENT": after_xclient,
    "DATA": after_body,
    "BDAT": after_body,
}
