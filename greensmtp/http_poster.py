"""A small HTTP client for hooks: POST over kept connections, without blocking the hub, monkey-patched or not.

It is ``http.client`` over gevent's sockets. Everything is bounded: the time of a whole request, the number of
simultaneous requests, the time that one waits for its turn, and the size of a response. Redirects are not followed:
requests go to the configured URL only.
"""

from __future__ import annotations

import http.client
import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gevent import Timeout, socket, ssl
from gevent.lock import BoundedSemaphore

from greensmtp.errors import ArgumentError

#: Maximum number of bytes that are read of a response's body.
MAX_RESPONSE = 64 * 1024

#: Maximum number of bytes received for a response, including its header section and transfer coding.
MAX_RECEIVED = 512 * 1024

#: Seconds for which an idle connection is kept.
MAX_IDLE = 15.0


#: Bytes; or a function that returns an iterable of them, called for each attempt; or None.
_Body = bytes | Callable[[], Iterable[bytes]] | None


class Response(NamedTuple):
    """A response."""

    status: int
    headers: Mapping[str, str]
    #: The first ``MAX_RESPONSE`` bytes of the body.
    body: bytes


class HTTPFailed(Exception):
    """There is no response: no connection, a timeout, or not HTTP."""


class HTTPPoster:
    """Send POST requests to one URL, from any number of greenlets.

    :param url: ``http://`` or ``https://``. Certificates are verified.
    :param timeout: seconds for a whole request.
    :param connections: maximum number of simultaneous requests.
    :param wait: seconds that a request waits for its turn.
    :param ca: a PEM file with the authorities to trust; None: those of the system.
    :raises ArgumentError: an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        connections: int = 20,
        wait: float = 30.0,
        ca: str | Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        try:
            port, is_url = parts.port, parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            port, is_url = None, False
        if not is_url or not url.isascii() or not url.isprintable() or " " in url:
            raise ArgumentError("url", f"expected a URL like 'https://app.example.com/hook'; got {url!r}")
        if parts.username is not None:
            raise ArgumentError("url", "must hold no password: pass it as a header, Authorization for example")
        for name, value in (("timeout", timeout), ("connections", connections), ("wait", wait)):
            if not (value > 0 and math.isfinite(value)):
                raise ArgumentError(name, f"expected a number above 0; got {value!r}")
        self.timeout = timeout
        self._wait = wait
        self._host, self._port = str(parts.hostname), port
        #: For errors: ``host:port``, or the host alone where the port is the scheme's own.
        self._place = parts.netloc
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._context = _make_context(ca) if parts.scheme == "https" else None
        self._slots = BoundedSemaphore(connections)
        #: Idle connections, each with the time since when it is idle.
        self._idle: deque[tuple[http.client.HTTPConnection, float]] = deque()

    def __repr__(self) -> str:
        return f"<HTTPPoster to {self._host}>"

    def post(
        self, body: bytes | Callable[[], Iterable[bytes]], headers: Mapping[str, str], *, size: int | None = None
    ) -> Response:
        """Send a POST request, and return the response, whatever its status is.

        :param body: bytes; or a function that returns an iterable of them, called for each attempt.
        :param size: the length of the body, if it is an iterable.
        :raises HTTPFailed: there is no response.
        """
        length = len(body) if isinstance(body, bytes) else size
        return self._send("POST", body, {**headers, "Content-Length": str(length)})

    def get(self, headers: Mapping[str, str]) -> Response:
        """Send a GET request, and return the response, whatever its status is.

        :raises HTTPFailed: there is no response.
        """
        return self._send("GET", None, headers)

    def _send(self, method: str, body: _Body, headers: Mapping[str, str]) -> Response:
        if not self._slots.acquire(timeout=self._wait):
            raise HTTPFailed(f"all connections to {self._place} have been busy for {self._wait:g} s")
        try:
            with Timeout(self.timeout, HTTPFailed(f"no answer of {self._place} within {self.timeout:g} s")):
                connection = self._kept()
                if connection is not None:
                    try:
                        return self._ask(connection, method, body, headers)
                    except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                        pass  # the idle connection was closed
                return self._ask(self._new(), method, body, headers)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise HTTPFailed(f"{self._place}: {reason}") from error
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[0].close()

    def _kept(self) -> http.client.HTTPConnection | None:
        while self._idle:
            connection, since = self._idle.pop()
            if monotonic() - since < MAX_IDLE:
                return connection
            connection.close()
        return None

    def _new(self) -> http.client.HTTPConnection:
        connection: Any
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, context=self._context)
        connection.response_class = _BoundedResponse
        connection._create_connection = socket.create_connection  # gevent's, also in an unpatched process
        made: http.client.HTTPConnection = connection
        return made

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, body: _Body, headers: Mapping[str, str]
    ) -> Response:
        is_done = False
        try:
            connection.request(method, self._target, body() if callable(body) else body, headers)
            response = connection.getresponse()
            data = response.read(MAX_RESPONSE)
            if not response.headers or (len(data) < MAX_RESPONSE and response.length):
                raise HTTPFailed(f"the response of {self._host} was cut off")
            # A connection with unread data cannot be reused.
            is_done = not response.will_close and (response.isclosed() or not response.read(1))
            return Response(response.status, dict(response.headers), data)
        finally:
            if is_done:
                self._idle.append((connection, monotonic()))
            else:
                connection.close()


class _BoundedResponse(http.client.HTTPResponse):
    """A response of at most ``MAX_RECEIVED`` bytes. http.client has no bound for 100 Continue and for trailers.

    While bytes are always ready, gevent's sockets do not switch to the hub, so a timeout alone would not end it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach()))


class _Bounded(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._left = MAX_RECEIVED

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise http.client.HTTPException(f"the response has more than {MAX_RECEIVED} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


@cache
def _make_context(ca: str | Path | None) -> ssl.SSLContext:
    # Not create_default_context: in an unpatched process, its context would block the hub.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_default_certs() if ca is None else context.load_verify_locations(ca)
    except OSError as error:
        raise ArgumentError("ca", f"cannot be read: {error.strerror or error}") from error
    return context
