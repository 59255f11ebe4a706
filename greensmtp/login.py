"""AUTH, as the client says it (RFC 4954 section 4)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable

from greensmtp.errors import AuthenticationFailed
from greensmtp.protocol.replies import Reply
from greensmtp.protocol.sasl import Mechanism

#: Octets in a command line; an initial response that does not fit is sent when asked for (RFC 4954 section 4).
MAX_LINE = 512
#: No mechanism of ours has more challenges.
MAX_CHALLENGES = 5


def authenticate(mechanism: Mechanism, ask: Callable[[bytes], Reply]) -> Reply:
    """Hold the exchange; ``ask`` sends a line and gives the reply.

    The reply is the one that ends the exchange, 4xx and 5xx too.

    :raises AuthenticationFailed: the server makes no sense, or cannot prove itself; the exchange has been cancelled.
    """
    try:
        initial = mechanism.initial()
    except (ValueError, UnicodeError) as error:  # scramp's, about characters that a password cannot have
        raise AuthenticationFailed(f"{mechanism.name}: {error}") from error
    line = f"AUTH {mechanism.name}".encode()
    if initial is not None:
        whole = line + b" " + (b64encode(initial) or b"=") + b"\r\n"
        if len(whole) <= MAX_LINE:
            line, initial = whole[:-2], None
    reply = ask(line + b"\r\n")
    challenges = 0
    while reply.code == 334:
        challenges += 1
        if initial is not None:
            answer, initial = initial, None
        else:
            try:
                if challenges > MAX_CHALLENGES:
                    raise AuthenticationFailed("challenges without end")
                answer = mechanism.respond(b64decode(reply.text, validate=True))
            except (AuthenticationFailed, BadBase64, ValueError) as error:
                cancelled = ask(b"*\r\n")
                raise AuthenticationFailed(f"{mechanism.name}, cancelled: {error}", cancelled) from error
        reply = ask(b64encode(answer) + b"\r\n")
    if reply.is_positive:
        mechanism.check_success()
    return reply
