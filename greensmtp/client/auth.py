"""AUTH on the client's side (RFC 4954 section 4): the choice of mechanisms, and one exchange.

``exposes`` of a mechanism grades what an eavesdropper learns: 0, nothing useful (SCRAM); 1, a digest from which the
password can be guessed (CRAM-MD5); 2, the secret itself.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable, Iterable

from greensmtp.client.exchange import CommandExchange
from greensmtp.errors import AuthenticationFailed, ClientError, Disconnected, ProtocolError
from greensmtp.protocol.errors import SaslFailed
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl.client import MECHANISMS, Mechanism
from greensmtp.thread_pool import in_thread_pool

#: Maximum length in bytes of a command line. A longer initial response is sent after an empty challenge (RFC 4954
#: section 4).
MAX_COMMAND_LINE = 512
#: Maximum number of challenges in an exchange; no supported mechanism needs more.
MAX_CHALLENGES = 5

#: Replies after which another mechanism may succeed: 504, not implemented; 534, too weak for this user; 535, which
#: servers also send if they have no verifier of this kind for the user.
MECHANISM_REFUSED = frozenset({504, 534, 535})

#: A wrong password. After a mechanism that does not send the secret: or one that the server cannot check.
WRONG_PASSWORD = 535
#: The mechanisms that send the secret itself.
SECRET_MECHANISMS = frozenset(name for name, kind in MECHANISMS.items() if kind.exposes > 1)


def log_in(
    exchange: CommandExchange,
    choose: Callable[[Iterable[str]], Mechanism],
    wanted: str | None,
    *,
    secure: bool,
    allow_plaintext: bool,
) -> Reply:
    """Try the offered mechanisms, the strongest first, until one is accepted or no other one can succeed.

    Without TLS, an attacker between client and server could refuse each of them. So no mechanism is tried that exposes
    more than the first one.

    :param choose: returns the strongest of the given mechanisms.
    :param wanted: the only mechanism to try.
    :param secure: True with TLS, or on a unix socket.
    :raises AuthenticationFailed: see ``authenticate``; or no mechanism is usable, or the first exposes too much.
    """
    offered = exchange.extensions.get("AUTH", "").upper().split()
    try:
        mechanism = choose(offered)
    except SaslFailed as error:
        raise AuthenticationFailed(str(error)) from error
    # A caller may choose CRAM-MD5 by name. If it is not named, an attacker could choose it by stripping other offers.
    allowed = mechanism.exposes if allow_plaintext or (wanted is not None and mechanism.exposes < 2) else 0
    if not secure and mechanism.exposes > allowed:
        what = "the secret" if mechanism.exposes > 1 else "a digest that the password can be guessed from"
        raise AuthenticationFailed(
            f"{mechanism.name} would send {what} in the clear: starttls() first, or pass allow_plaintext=True"
        )
    refusal: Reply | None = None
    while True:
        try:
            reply = authenticate(exchange, mechanism)
        except ClientError:
            if refusal is None or refusal.code != WRONG_PASSWORD:
                raise
            return refusal
        # Return the most informative refusal: 535 before all others, and 504 last.
        if refusal is None or reply.is_positive or (refusal.code != WRONG_PASSWORD and reply.code != 504):
            refusal = reply
        if wanted is not None or reply.code not in MECHANISM_REFUSED or exchange.transport.closed:
            return refusal
        offered = [name for name in offered if name != mechanism.name]
        if reply.code == WRONG_PASSWORD:
            if mechanism.exposes > 1:
                return refusal
            if secure:
                # Only sending the secret can decide it; another proof might count as one more failed login.
                offered = [name for name in offered if name in SECRET_MECHANISMS] or offered
        try:
            mechanism = choose(offered)
        except SaslFailed:
            return refusal
        if not secure and mechanism.exposes > allowed:
            return refusal


def authenticate(exchange: CommandExchange, mechanism: Mechanism) -> Reply:
    """Run one exchange, and return the reply that ends it, 4xx and 5xx too.

    :raises AuthenticationFailed: a challenge is invalid, and the exchange was cancelled; or the server accepts, but
        could not prove that it knows the password, and the connection was closed.
    :raises PeerProtocolError: a reply is not valid for AUTH.
    """
    try:
        return _run(exchange, mechanism)
    except AuthenticationFailed:
        raise
    except BaseException as error:
        # In the middle of an exchange, the server would take the next command for a response.
        exchange.transport.close(error)
        raise


def _run(exchange: CommandExchange, mechanism: Mechanism) -> Reply:
    seconds = exchange.timeouts.command
    try:
        initial = mechanism.initial()
    except (ValueError, UnicodeError) as error:
        raise AuthenticationFailed(f"{mechanism.name}: {error}") from error
    line = f"AUTH {mechanism.name}".encode()
    if initial is not None:
        whole = line + b" " + (b64encode(initial) or b"=") + b"\r\n"
        if len(whole) <= MAX_COMMAND_LINE:
            line, initial = whole[:-2], None
    reply = exchange.send(line + b"\r\n", seconds, 334)
    challenges = 0
    while reply.code == 334:
        challenges += 1
        if initial is not None:
            answer, initial = initial, None
        else:
            try:
                if challenges > MAX_CHALLENGES:
                    raise SaslFailed(f"expected at most {MAX_CHALLENGES} challenges; got more")
                answer = _respond(exchange, mechanism, reply.text, seconds)
            except (SaslFailed, BadBase64, ValueError) as error:
                # RFC 4954 section 4: the server must refuse then, and must not send another challenge.
                cancelled = exchange.send(b"*\r\n", seconds)
                if cancelled.is_positive:
                    raise exchange.protocol_error(f"unexpected reply to a cancelled AUTH: {cancelled}") from error
                raise AuthenticationFailed(f"{mechanism.name}, cancelled: {error}", cancelled) from error
        reply = exchange.send(b64encode(answer) + b"\r\n", seconds, 334)
    if reply.is_positive:
        try:
            mechanism.check_success()
        except SaslFailed as error:
            failure = AuthenticationFailed(str(error))
            exchange.transport.close(failure)
            raise failure from error
    return reply


def _respond(exchange: CommandExchange, mechanism: Mechanism, text: str, seconds: float) -> bytes:
    if not mechanism.reads_challenges:
        return mechanism.respond(b"")
    challenge = b64decode(text, validate=True)
    if not mechanism.slow:
        return mechanism.respond(challenge)
    outcome: list[bytes | Exception] = []
    # All threads of the pool may be busy for long, so the wait needs a deadline.
    if not exchange.transport.with_deadline(
        seconds, lambda: outcome.append(in_thread_pool(_outcome, mechanism, challenge))
    ):
        raise Disconnected("timeout")
    answer = outcome[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _outcome(mechanism: Mechanism, challenge: bytes) -> bytes | Exception:
    """Return the response or the error. (``with_deadline`` closes the connection on an error, but the exchange must be
    cancelled on it.)"""
    try:
        return mechanism.respond(challenge)
    except Exception as error:
        return error


def check_credential(text: str, what: str) -> None:
    """Check a username, password or token, without showing it in the error.

    :raises ProtocolError: it has CR, LF, NUL or lone surrogates in it.
    :raises TypeError: it is not a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a str as {what}; got {type(text).__name__}")
    if re.search(r"[\r\n\0\ud800-\udfff]", text):
        raise ProtocolError(f"{what} must not contain CR, LF, NUL or lone surrogates")
