"""Accepting connections when file descriptors run out."""

from __future__ import annotations

import errno

import pytest
from gevent import sleep
from gevent.server import StreamServer

from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


def test_nothing_is_accepted_during_the_pause(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = smtp_server()
    server.accept_pause = 0.2
    tries: list[int] = []

    def full(self: StreamServer) -> None:
        tries.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(StreamServer, "do_read", full)
        peer = dial(server)
        sleep(0.05)
        assert len(tries) == 1
    with peer:
        peer.expect("220")
