"""AUTH, as the client says it (RFC 4954 section 4)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable, Iterable

from greensmtp.client.exchange import CommandExchange
from greensmtp.errors import AuthenticationFailed, ClientError, Disconnected, ProtocolError
from greensmtp.protocol.errors import SaslFailed
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl.client import MECHANISMS, Mechanism
from greensmtp.thread_pool import in_thread_pool

#: Octets in a command line; an initial response that does not fit is sent when asked for (RFC 4954 section 4).
MAX_LINE = 512
#: No mechanism of ours has more challenges.
MAX_CHALLENGES = 5

#: The refusals of a mechanism, behind which another one may do: it is not implemented, or too weak, for this user at
#: least; or the server has no verifier of its kind for this user, which it says as if the password were wrong.
MECHANISM_REFUSED = frozenset({504, 534, 535})

#: A wrong password; or one that the server cannot check by this mechanism, but where it was sent as it is.
WRONG_PASSWORD = 535
SETTLING = frozenset(name for name, kind in MECHANISMS.items() if kind.exposes > 1)


def log_in(
    dialogue: CommandExchange,
    choose: Callable[[Iterable[str]], Mechanism],
    wanted: str | None,
    *,
    secure: bool,
    allow_plaintext: bool,
) -> Reply:
    """Try the mechanisms that are offered, the strongest first, until one is accepted or another one is of no use.

    Without TLS, whoever answers on the way could turn each of them down. So none is tried then that exposes more than
    the first one does.

    :param choose: gives the strongest of some.
    :param wanted: the only one to be tried.
    :param secure: TLS is up, or nobody can be on the way.
    :raises AuthenticationFailed: see ``authenticate``; or none is fit, or the first would expose what it must not.
    """
    offered = dialogue.extensions.get("AUTH", "").upper().split()
    try:
        mechanism = choose(offered)
    except SaslFailed as error:
        raise AuthenticationFailed(str(error)) from error
    # A caller that names CRAM-MD5 has chosen it. Unnamed, an attacker can choose it, by stripping the other offers.
    allowed = mechanism.exposes if allow_plaintext or (wanted is not None and mechanism.exposes < 2) else 0
    if not secure and mechanism.exposes > allowed:
        what = "the secret" if mechanism.exposes > 1 else "a digest that the password can be guessed from"
        raise AuthenticationFailed(
            f"{mechanism.name} would send {what} in the clear: starttls() first, or pass allow_plaintext=True"
        )
    refusal: Reply | None = None
    while True:
        try:
            reply = authenticate(dialogue, mechanism)
        except ClientError:
            if refusal is None or refusal.code != WRONG_PASSWORD:
                raise
            return refusal
        # A wrong password remains one whatever else is refused behind it, and "504 no such mechanism" says the least.
        if refusal is None or reply.is_positive or (refusal.code != WRONG_PASSWORD and reply.code != 504):
            refusal = reply
        if wanted is not None or reply.code not in MECHANISM_REFUSED or dialogue.wire.closed:
            return refusal
        offered = [name for name in offered if name != mechanism.name]
        if reply.code == WRONG_PASSWORD:
            if mechanism.exposes > 1:
                return refusal
            if secure:
                # Only the secret itself can settle it; another proof might be one more failed login.
                offered = [name for name in offered if name in SETTLING] or offered
        try:
            mechanism = choose(offered)
        except SaslFailed:
            return refusal
        if not secure and mechanism.exposes > allowed:
            return refusal


def authenticate(dialogue: CommandExchange, mechanism: Mechanism) -> Reply:
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


def _exchange(dialogue: CommandExchange, mechanism: Mechanism) -> Reply:
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
                    raise SaslFailed("challenges without end")
                answer = _respond(dialogue, mechanism, reply.text, seconds)
            except (SaslFailed, BadBase64, ValueError) as error:
                # RFC 4954 section 4: it must be refused then. (Another challenge would leave us out of step.)
                cancelled = dialogue.ask(b"*\r\n", seconds)
                if cancelled.is_positive:
                    raise dialogue.broken(f"a cancelled AUTH was answered {cancelled}") from error
                raise AuthenticationFailed(f"{mechanism.name}, cancelled: {error}", cancelled) from error
        reply = dialogue.ask(b64encode(answer) + b"\r\n", seconds, 334)
    if reply.is_positive:
        try:
            mechanism.check_success()
        except SaslFailed as error:
            failure = AuthenticationFailed(str(error))
            dialogue.wire.close(failure)
            raise failure from error
    return reply


def _respond(dialogue: CommandExchange, mechanism: Mechanism, text: str, seconds: float) -> bytes:
    if not mechanism.reads_challenges:
        return mechanism.respond(b"")
    challenge = b64decode(text, validate=True)
    if not mechanism.slow:
        return mechanism.respond(challenge)
    outcome: list[bytes | Exception] = []
    # The pool's threads may all be taken by what never ends.
    if not dialogue.wire.with_deadline(seconds, lambda: outcome.append(in_thread_pool(_outcome, mechanism, challenge))):
        raise Disconnected("timeout")
    answer = outcome[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _outcome(mechanism: Mechanism, challenge: bytes) -> bytes | Exception:
    """The answer, or the error: ``timed`` would close the connection, and the exchange has to be cancelled on it."""
    try:
        return mechanism.respond(challenge)
    except Exception as error:
        return error


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
