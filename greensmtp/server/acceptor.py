"""A gevent StreamServer that also listens on unix paths, and goes on when file descriptors run out."""

from __future__ import annotations

import errno
import os
import socket as native_socket
from pathlib import Path
from typing import Any

from gevent.server import StreamServer

from greensmtp._hostport import is_unix_path
from greensmtp._log import logger
from greensmtp.server.listener import disable_nagle, listen

#: Out of file descriptors or memory: a passing condition, not the listener's.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor(StreamServer):
    """Listens and accepts connections; a subclass serves them in ``do_handle``."""

    #: Seconds for which no connection is accepted when descriptors or memory have run out.
    accept_pause: float = 0.1

    backlog = 1024

    _unix_path: str | None = None
    _paused = False

    def set_listener(self, listener: Any) -> None:
        """Take an address as gevent does, or a unix path."""
        if is_unix_path(listener):
            self.family, self.address = native_socket.AF_UNIX, str(listener)
        else:
            super().set_listener(listener)

    def init_socket(self) -> None:
        """Bind as gevent does; remember a unix path that was created, to remove it in the end."""
        created = not hasattr(self, "socket") and self.family == native_socket.AF_UNIX
        super().init_socket()
        disable_nagle(self.socket)
        self._unix_path = str(self.address) if created else None

    @classmethod
    def get_listener(cls, address: Any, backlog: int | None = None, family: int | None = None) -> Any:
        """Return a listening socket on an address or a unix path."""
        assert family is not None
        return listen(address, cls.backlog if backlog is None else backlog, family)

    def close(self) -> None:
        """Stop listening; connections go on."""
        listening = self.started
        super().close()
        if listening and self._unix_path is not None:
            Path(self._unix_path).unlink(missing_ok=True)

    def do_read(self) -> Any:
        """Accept one connection. In the hub."""
        try:
            accepted = super().do_read()
        except ConnectionAbortedError:
            return None
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if not self._paused:
                logger.warning("cannot accept connections for now: %s", os.strerror(error.errno))
            self._paused = True
            # gevent backs off by itself if this raises, but prints a traceback each time.
            self.stop_accepting()
            self._timer = self.loop.timer(self.accept_pause)
            self._timer.start(self._resume)
            return None
        if self._paused and accepted:
            self._paused = False
            logger.warning("accepting connections again")
        return accepted

    def _resume(self) -> None:
        if self.started:
            self.start_accepting()

    def handle(self, socket: Any, peer: Any) -> None:
        """gevent checks that this exists; ``do_handle`` does the work."""
        raise NotImplementedError
