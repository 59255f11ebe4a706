"""AUTH, as the client says it (RFC 4954 section 4)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as BadBase64

from gevent import get_hub

from greensmtp.dialogue import Dialogue
from greensmtp.errors import AuthenticationFailed, ProtocolError
from greensmtp.protocol.replies import Reply
from greensmtp.protocol.sasl import Mechanism

#: Octets in a command line; an initial response that does not fit is sent when asked for (RFC 4954 section 4).
MAX_LINE = 512
#: No mechanism of ours has more challenges.
MAX_CHALLENGES = 5


def authenticate(dialogue: Dialogue, mechanism: Mechanism) -> Reply:
    """Hold the exchange. The reply is the one that ends it, 4xx and 5xx too.

    :raises AuthenticationFailed: the server makes no sense, and the exchange has been cancelled; or it says yes, and
        could not prove itself, and has been hung up on.
    :raises PeerProtocolError: it answers what cannot be an answer.
    """
    try:
        return _exchange(dialogue, mechanism)
    except AuthenticationFailed:
        raise
    except BaseException as error:
        # In the middle of an exchange, the next command would pass for a response (and be a secret's neighbour).
        dialogue.wire.close(error)
        raise


def _exchange(dialogue: Dialogue, mechanism: Mechanism) -> Reply:
    seconds = dialogue.timeouts.command
    try:
        initial = mechanism.initial()
    except (ValueError, UnicodeError) as error:
        raise AuthenticationFailed(f"{mechanism.name}: {error}") from error
    line = f"AUTH {mechanism.name}".encode()
    if initial is not None:
        whole = line + b" " + (b64encode(initial) or b"=") + b"\r\n"
        if len(whole) <= MAX_LINE:
            line, initial = whole[:-2], None
    reply = dialogue.ask(line + b"\r\n", seconds, 334)
    challenges = 0
    while reply.code == 334:
        challenges += 1
        if initial is not None:
            answer, initial = initial, None
        else:
            try:
                if challenges > MAX_CHALLENGES:
                    raise AuthenticationFailed("challenges without end")
                answer = _respond(mechanism, b64decode(reply.text, validate=True))
            except (AuthenticationFailed, BadBase64, ValueError) as error:
                # RFC 4954 section 4: it must be refused then. (Another challenge would leave us out of step.)
                cancelled = dialogue.ask(b"*\r\n", seconds)
                if cancelled.is_positive:
                    raise dialogue.broken(f"a cancelled AUTH was answered {cancelled}") from error
                raise AuthenticationFailed(f"{mechanism.name}, cancelled: {error}", cancelled) from error
        reply = dialogue.ask(b64encode(answer) + b"\r\n", seconds, 334)
    if reply.is_positive:
        try:
            mechanism.check_success()
        except AuthenticationFailed as error:
            dialogue.wire.close(error)
            raise
    return reply


def _respond(mechanism: Mechanism, challenge: bytes) -> bytes:
    if mechanism.slow:
        answer: bytes = get_hub().threadpool.apply(mechanism.respond, (challenge,))
        return answer
    return mechanism.respond(challenge)


def check_credential(text: str | None, what: str) -> None:
    """As ``command_lines.check``, but without showing it.

    :raises ProtocolError: it has CR, LF or NUL in it, or what cannot be encoded.
    :raises TypeError: it is no str.
    """
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str")
    if any(character in text for character in "\r\n\0"):
        raise ProtocolError(f"{what} cannot have CR, LF or NUL in it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ProtocolError(f"{what} cannot have lone surrogates in it")
