"""The control socket of a process: the server's side of `greensmtp top` and `greensmtp trace`.

The protocol. A client sends one request, a line of JSON, and gets lines of JSON until it closes the connection:

    {"do": "stats", "interval": 1.0}          a snapshot at once, and one after each interval
    {"do": "trace", "peer": "192.0.2.0/24",   the dialogues of the SMTP clients that match; each condition is
     "from": "@example.com",                  optional
     "session": "5c1f0a-1f"}

Rules of this file:

- Everything is bounded: connections, the size of a request and the time for it, the lines that wait for a client. A
  client that reads too slowly loses lines, and is told their number: ``{"lost": 12}``.
- Only the greenlet that sends to a client waits for that client.
- Without clients it costs nothing: the servers have observers only while a client is connected.
- Only this user and root can connect: the socket has mode 0600 before it listens.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from gevent import Greenlet, Timeout, sleep, socket, spawn
from gevent.event import Event

from greensmtp._log import logger
from greensmtp.chain.chain import Middleware
from greensmtp.protocol.log_text import shown
from greensmtp.server.acceptor import Acceptor
from greensmtp.server.server import SMTPServer
from greensmtp.service.control_folder import default_folders, is_served, prepare_folder, remove_all_stale, socket_path
from greensmtp.service.errors import StartError
from greensmtp.service.tally import Tally
from greensmtp.service.tracer import Tracer, Wanted

#: Maximum number of clients.
MAX_CLIENTS = 8

#: Bytes of a request, and seconds for it.
MAX_REQUEST = 4096
REQUEST_SECONDS = 5.0

#: Lines of a dialogue, and snapshots, that may be queued for a client; and the timeout of sending.
MAX_BACKLOG = 2000
MAX_SNAPSHOTS = 2
SEND_SECONDS = 60.0

#: Minimum and maximum number of seconds between two snapshots.
MIN_INTERVAL, MAX_INTERVAL = 0.1, 3600.0

#: Seconds between two measurements of the hub's lag, at which new servers get observers, too; and how long the highest
#: lag is kept.
BEAT = 0.1
LAG_SECONDS = 5.0

#: The value of ``[service] control`` that means the first of the default folders.
AUTO = "auto"


class Control:
    """The control socket of this process.

    :param folder: the folder for the socket.
    :param servers: returns the servers of this process, including draining ones; called repeatedly, to notice a reload.
    """

    def __init__(self, folder: Path, servers: Callable[[], Sequence[SMTPServer]]) -> None:
        self._folder = folder
        self._servers = servers
        self._path = socket_path(folder, os.getpid())
        self._listener: Acceptor | None = None
        self._clients: set[_Client] = set()
        self._tally: Tally | None = None
        self._tally_users = 0
        self._tracer = Tracer()
        self._beat: Greenlet[..., Any] | None = None
        #: Measurements of the hub's lag: the time, and the lag in seconds.
        self._lags: deque[tuple[float, float]] = deque(maxlen=math.ceil(LAG_SECONDS / BEAT))

    def start(self) -> None:
        """Listen.

        :raises OSError: the socket cannot be created.
        """
        remove_all_stale(self._folder)
        if is_served(self._path):
            raise FileExistsError(f"another server has {self._path.name!r}; does it run in another container?")
        self._path.unlink(missing_ok=True)  # of a process that had this ID
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(str(self._path))
            self._path.chmod(0o600)  # no one can connect before listen()
            listening.listen(MAX_CLIENTS)
        except BaseException:
            listening.close()
            raise
        self._listener = Acceptor(listening, self._serve)
        self._listener.start()

    def stop(self) -> None:
        """Close the socket and its connections."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        for client in [*self._clients]:
            client.close()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("cannot remove %r: %s", str(self._path), error)

    # Clients

    def _serve(self, connection: Any, _: Any) -> None:
        """Serve one client. Runs in its own greenlet."""
        client = _Client(connection)
        try:
            if len(self._clients) >= MAX_CLIENTS:
                client.refuse(f"{MAX_CLIENTS} clients are connected; end one of them")
                return
            self._clients.add(client)
            try:
                self._answer(client)
            except ValueError as error:
                client.refuse(str(error))
            finally:
                self._clients.discard(client)
        except OSError:
            pass  # the client has disconnected
        except Exception:
            logger.exception("a client of the control socket was dropped")
        finally:
            client.close()

    def _answer(self, client: _Client) -> None:
        request = client.read_request()
        action = request.get("do")
        if action == "stats":
            interval = request.get("interval", 1.0)
            is_number = isinstance(interval, int | float) and not isinstance(interval, bool)
            if not is_number or not MIN_INTERVAL <= interval <= MAX_INTERVAL:
                raise ValueError(f"interval takes {MIN_INTERVAL} to {MAX_INTERVAL:g} seconds, not {interval!r}")
            self._send_stats(client, interval)
        elif action == "trace":
            names = {"peer": "peer", "from": "sender", "session": "session"}
            conditions = {name: request[key] for key, name in names.items() if request.get(key) is not None}
            if not all(isinstance(each, str) for each in conditions.values()):
                raise ValueError("peer, from and session take strings")
            client.wanted = Wanted(**conditions)
            self._send_dialogues(client)
        else:
            raise ValueError(f"'do' takes 'stats' or 'trace', not {action!r}")

    def _send_stats(self, client: _Client, interval: float) -> None:
        if self._tally is None:
            self._tally = Tally()
            self._lags.clear()
        client.max_backlog = MAX_SNAPSHOTS
        tally = self._tally
        self._tally_users += 1
        self._attach()
        sender = spawn(client.send_lines)
        try:
            while not client.is_closed:
                lag = max((late for at, late in self._lags if at > monotonic() - max(interval, 1.0)), default=0.0)
                client.put(tally.snapshot(self._servers()) | {"lag": lag})
                client.wait_for_end(interval)
        finally:
            sender.kill()
            self._tally_users -= 1
            if not self._tally_users:
                self._tally = None
                self._detach(tally)

    def _send_dialogues(self, client: _Client) -> None:
        client.put({"pid": os.getpid(), "tracing": True})
        self._tracer.join(client, self._servers())
        self._attach()
        sender = spawn(client.send_lines)
        try:
            while not client.is_closed:
                client.wait_for_end(MAX_INTERVAL)
        finally:
            sender.kill()
            self._tracer.leave(client)
            if not self._tracer.watchers:
                self._detach(self._tracer)

    # Observers

    def _attach(self) -> None:
        """Add observers to the servers, and to new servers when they appear."""
        self._observe()
        if self._beat is None:
            self._beat = spawn(self._keep_observing)

    def _observe(self) -> None:
        for server in self._servers():
            if server._routes is None:
                continue
            if self._tally is not None:
                server._routes.observe(self._tally)
            if self._tracer.watchers:
                server._routes.observe(self._tracer)

    def _detach(self, observer: Middleware) -> None:
        for server in self._servers():
            if server._routes is not None:
                server._routes.forget(observer)

    def _keep_observing(self) -> None:
        try:
            while self._tally is not None or self._tracer.watchers:
                began = monotonic()
                sleep(BEAT)
                now = monotonic()
                self._lags.append((now, max(0.0, now - began - BEAT)))
                self._observe()
        finally:
            self._beat = None


class _Client:
    """A connection to the control socket."""

    wanted: Wanted
    max_backlog = MAX_BACKLOG

    def __init__(self, connection: Any) -> None:
        self._socket = connection
        self._lines: deque[dict[str, Any]] = deque()
        self._has_lines = Event()
        #: Number of dropped lines that have not been reported to the client.
        self._lost = 0
        self.is_closed = False

    def read_request(self) -> dict[str, Any]:
        """Return the request.

        :raises ValueError: it is too long or too late, or not a JSON object in one line.
        """
        data = b""
        with Timeout(REQUEST_SECONDS, ValueError(f"no request within {REQUEST_SECONDS:g} s")):
            while b"\n" not in data:
                piece = self._socket.recv(MAX_REQUEST)
                data += piece
                if not piece or len(data) > MAX_REQUEST:
                    raise ValueError(f"expected a line of at most {MAX_REQUEST} bytes")
        try:
            request = json.loads(data.partition(b"\n")[0])
        except (ValueError, RecursionError):
            raise ValueError("expected a JSON object in one line") from None
        if not isinstance(request, dict):
            raise ValueError("expected a JSON object in one line")
        return request

    def refuse(self, reason: str) -> None:
        """Send an error, without waiting for the client."""
        self._socket.settimeout(0.0)
        self._socket.send(json.dumps({"error": shown(reason)}).encode() + b"\n")

    def put(self, line: dict[str, Any]) -> None:
        """Queue a line. If too many are queued already, drop it, and count it as lost."""
        if len(self._lines) >= self.max_backlog:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._lines.append({"lost": lost})
        self._lines.append(line)
        self._has_lines.set()

    def send_lines(self) -> None:
        """Send the queued lines until the client disconnects, or reads nothing for ``SEND_SECONDS``.

        Runs in its own greenlet.
        """
        try:
            self._socket.settimeout(SEND_SECONDS)
            while True:
                self._has_lines.wait()
                batch = [self._lines.popleft() for _ in range(min(100, len(self._lines)))]
                if not self._lines:
                    self._has_lines.clear()
                self._socket.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in batch))
        except OSError:
            self.close()

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the client closes the connection, or for ``seconds``."""
        with Timeout(seconds, False):  # type: ignore[arg-type]
            try:
                while self._socket.recv(MAX_REQUEST):
                    pass
            except OSError:
                pass
            self.is_closed = True

    def close(self) -> None:
        """Close the connection."""
        self.is_closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # ends the wait of another greenlet
        except OSError:
            pass
        self._socket.close()


# In a process that serves a configuration


def choose_folder(configured: str | None, owner: tuple[int, int] | None = None) -> Path | None:
    """Return the folder for the control socket, creating it if it is missing; None for no socket.

    Call it before privileges are dropped.

    :param configured: ``[service] control``: a folder, ``"auto"``, or None.
    :param owner: user and group that the process will have.
    :raises StartError: the configured folder cannot be used. (With ``"auto"``, a warning is logged instead.)
    """
    if configured is None:
        return None
    uid = os.geteuid() if owner is None else owner[0]
    problem: tuple[Path, Exception] | None = None
    for folder in default_folders(uid) if configured == AUTO else [Path(configured).absolute()]:
        try:
            prepare_folder(folder, owner)
        except (OSError, ValueError) as error:
            problem = (folder, error)
        else:
            return folder
    if problem is not None:
        _fail(*problem, configured)
    return None


def _fail(folder: Path, error: Exception, configured: str | None) -> None:
    reason = getattr(error, "strerror", None) or error
    text = f"cannot make the control socket in {str(folder)!r}: {reason}"
    if configured != AUTO:
        raise StartError(text) from error
    logger.warning("%s; `greensmtp top` and `trace` will not see this process; see [service] control", text)


@contextmanager
def controlled(
    folder: Path | None, servers: Callable[[], Sequence[SMTPServer]], configured: str | None = AUTO
) -> Iterator[None]:
    """Serve a control socket while the block runs.

    :param folder: the result of ``choose_folder``.
    :raises StartError: as ``choose_folder`` does.
    """
    if folder is None:
        yield
        return
    control = Control(folder, servers)
    try:
        control.start()
    except OSError as error:
        _fail(folder, error, configured)
    try:
        yield
    finally:
        control.stop()
