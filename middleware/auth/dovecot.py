"""Authentication by Dovecot: the SASL exchange is passed on to its auth socket."""

from __future__ import annotations

import ipaddress
import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import randbelow
from time import monotonic
from typing import Any

from gevent import Timeout, socket
from gevent.lock import BoundedSemaphore

from greensmtp.errors import ArgumentError
from greensmtp.middleware._validate import check_path, check_seconds
from greensmtp.middleware.auth.credentials import Unavailable
from greensmtp.protocol import canned
from greensmtp.protocol.sasl.exchange import CredentialQuery, Exchange, Identity, Refused
from greensmtp.protocol.sasl.server import MECHANISMS
from greensmtp.session import Session

#: Our version of the auth protocol. Dovecot's must have the same major number.
MAJOR, MINOR = 1, 2
#: Limits in bytes: a line to Dovecot (which takes up to 8192), a line from it, its whole handshake.
MAX_SENT = 8000
MAX_LINE = 16 * 1024
MAX_HANDSHAKE = 64 * 1024
#: Challenges in one exchange. No mechanism has more.
MAX_STEPS = 10
#: When Dovecot is only asked which mechanisms it offers, a client is waiting for the reply to EHLO. So it has a shorter
#: timeout, and a pause after a failure, in seconds.
ASKING = 5.0
PAUSE = 2.0

#: All but SCRAM-SHA-256-PLUS: the auth protocol does not carry channel bindings.
_RELAYED = frozenset(MECHANISMS) - {"SCRAM-SHA-256-PLUS"}

_WORD = re.compile(r"[A-Za-z0-9-]{1,32}")

#: ``\001`` and a letter stand for a character that a field must not have.
_ESCAPES = {"0": "\0", "1": "\001", "t": "\t", "r": "\r", "n": "\n"}


class DovecotAuth:
    """Authenticates Dovecot's users by its auth-client protocol over a unix socket.

    ::

        service auth {
          unix_listener auth-client { mode = 0660 ... }
        }

    The mechanisms offered are those that both Dovecot and Auth have, without -PLUS. Each exchange has a connection of
    its own. Dovecot decides a user's name, and which users may act as others.

    :param path: the socket: ``/run/dovecot/auth-client``.
    :param timeout: seconds for each answer. Dovecot delays a refusal by up to 17 seconds on purpose
        (``auth_failure_delay``, and the penalty of an address with many failures).
    :param service: the name of this service in Dovecot's rules and logs.
    :raises ValueError, TypeError: an argument is invalid.
    """

    def __init__(self, path: str | Path, timeout: float = 25.0, service: str = "smtp") -> None:
        if not _WORD.fullmatch(service):
            raise ArgumentError("service", f"takes a word of letters and digits, not {service!r}")
        self._path = check_path("DovecotAuth", path)
        self._timeout = check_seconds("timeout", timeout)
        self._service = service
        self._offered: frozenset[str] = frozenset()
        self._asking = BoundedSemaphore(1)
        #: When it may be asked for its mechanisms again.
        self._again = 0.0

    def offered_mechanisms(self) -> Collection[str]:
        """Return the mechanisms of the last handshake; connect for one if there was none.

        :raises Unavailable: Dovecot does not answer.
        """
        if not self._offered:
            with self._asking:  # one handshake for all greenlets that wait for it
                if not self._offered:
                    self._ask()
        return self._offered

    def _ask(self) -> None:
        if monotonic() < self._again:
            raise Unavailable(f"{self._path}: no answer a moment ago, not asked again yet")
        try:
            with self._connected(min(self._timeout, ASKING)):
                pass
        except Unavailable:
            self._again = monotonic() + PAUSE
            raise

    def relay(self, mechanism: str, session: Session) -> Exchange:
        """Pass one exchange on. The query for its user is made before Dovecot gets a response."""
        row = MECHANISMS[mechanism]
        request = [*self._request(mechanism, session)]
        client_first = row.takes_initial and mechanism != "LOGIN"
        if client_first:
            response = yield b""
            yield CredentialQuery(username=row.name_in(response), mechanism=mechanism)
            request.append(f"resp={_encode(response)}")  # the last field, always
        with self._connected(self._timeout) as line:
            if mechanism not in self._offered:
                raise Refused(canned.AUTH_UNKNOWN_MECHANISM)
            line.send(*request)
            for step in range(MAX_STEPS):
                word, fields = line.answer()
                if word == "OK":
                    return Identity(_user(fields), "", mechanism)
                if word == "FAIL":
                    raise Refused(_refusal(fields))
                response = yield _decode(fields[0] if fields else "")
                if step == 0 and not client_first:
                    yield CredentialQuery(username=row.name_in(response), mechanism=mechanism)
                line.send("CONT", "1", _encode(response))
            raise Unavailable(f"{self._path}: more than {MAX_STEPS} challenges in one exchange")

    def _request(self, mechanism: str, session: Session) -> Iterator[str]:
        yield from ("AUTH", "1", mechanism, f"service={self._service}", "nologin")
        if session.tls:
            yield "secured=tls"
        for name, address in (("r", session.peer), ("l", _local(session))):
            if isinstance(address, tuple):
                try:
                    yield f"{name}ip={ipaddress.ip_address(address[0].partition('%')[0])}"
                    yield f"{name}port={int(address[1])}"
                except (ValueError, AttributeError):
                    pass  # not an IP address: the server was given something else as the peer

    @contextmanager
    def _connected(self, timeout: float) -> Iterator[_Line]:
        """Connect, and complete the handshake.

        :param timeout: seconds for the handshake, and for each answer.
        :raises Unavailable: Dovecot cannot be connected to, or the handshake fails.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            line = _Line(sock, self._path, timeout)
            self._offered = line.shake_hands() or self._offered
            yield line

    def __repr__(self) -> str:
        return f"DovecotAuth({self._path!r})"


class _Line:
    """One connection to Dovecot. A line consists of fields with tabs between them."""

    def __init__(self, sock: Any, path: str, timeout: float) -> None:
        self._socket = sock
        self._path = path
        self._timeout = timeout
        self._buffer = b""

    def shake_hands(self) -> frozenset[str]:
        """Connect; return the mechanisms that both sides have."""
        with self._limit_time():
            try:
                self._socket.connect(self._path)
            except OSError as error:
                raise Unavailable(f"{self._path}: {error.strerror}") from None
            # The number distinguishes connections. It need not be a process ID, but must be unique.
            self.send("VERSION", str(MAJOR), str(MINOR))
            self.send("CPID", str(randbelow(2**31 - 1) + 1))
            found = set()
            size = 0
            while True:
                line = self._line()
                size += len(line)
                word, *fields = line.split("\t")
                if word == "VERSION" and fields[:1] != [str(MAJOR)]:
                    raise Unavailable(
                        f"{self._path}: its auth protocol has version {fields[0] if fields else None}, not {MAJOR}"
                    )
                if word == "MECH" and fields:
                    found.add(fields[0].upper())
                if word == "DONE":
                    return frozenset(found) & _RELAYED
                if size > MAX_HANDSHAKE:
                    raise Unavailable(f"{self._path}: a handshake of more than {MAX_HANDSHAKE} bytes")

    def send(self, *fields: str) -> None:
        """Send a line. The fields need no escaping: they are our own names, numbers, addresses and base64."""
        line = "\t".join(fields).encode()
        if len(line) > MAX_SENT:
            raise Refused(canned.AUTH_MALFORMED)
        with self._limit_time():
            self._try(self._socket.sendall, line + b"\n")

    def answer(self) -> tuple[str, list[str]]:
        """Return the next answer to our request: ``OK``, ``CONT`` or ``FAIL``, and the fields behind its number."""
        with self._limit_time():
            for _ in range(MAX_STEPS):
                word, *fields = self._line().split("\t")
                if word in ("OK", "CONT", "FAIL") and fields[:1] == ["1"]:
                    return word, fields[1:]
        raise Unavailable(f"{self._path}: {MAX_STEPS} lines, none of which answers the request")

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise Unavailable(f"{self._path}: a line of more than {MAX_LINE} bytes")
            piece = self._try(self._socket.recv, 4096)
            if not piece:
                raise Unavailable(f"{self._path}: Dovecot closed the connection")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", "replace")

    def _try(self, call: Any, argument: Any) -> Any:
        try:
            return call(argument)
        except OSError as error:
            raise Unavailable(f"{self._path}: {error.strerror}") from None

    def _limit_time(self) -> Timeout:
        return Timeout(self._timeout, Unavailable(f"{self._path}: no answer within {self._timeout:g} s"))


def _local(session: Session) -> Any:
    try:
        return session.socket.getsockname()
    except OSError:
        return None


def _user(fields: list[str]) -> str:
    name = _parameters(fields).get("user", "")
    if not name:
        raise Unavailable("Dovecot answered OK without a user")
    return name


def _refusal(fields: list[str]) -> Any:
    parameters = _parameters(fields)
    if "temp" in parameters or parameters.get("code") == "temp_fail":
        return canned.AUTH_UNAVAILABLE
    return canned.AUTH_INVALID


def _parameters(fields: list[str]) -> Mapping[str, str]:
    return {name: _unescape(value) for name, _, value in (field.partition("=") for field in fields)}


def _unescape(text: str) -> str:
    first, *rest = text.split("\001")
    return first + "".join(_ESCAPES.get(piece[:1], "") + piece[1:] for piece in rest)


def _encode(response: bytes) -> str:
    return b64encode(response).decode()


def _decode(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except BadBase64:
        raise Unavailable("Dovecot sent a challenge that is not base64") from None
