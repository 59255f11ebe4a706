"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp.middleware import Auth
from greensmtp.testing import Peer, dial

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer


@pytest.fixture
def peer_of(smtp_server: MakeServer) -> Iterator[Callable[..., Peer]]:
    """Return a peer that has said EHLO to a server with this Auth."""
    peers: list[Peer] = []

    def make(auth: Auth, *, ehlo: bool = True, **options: Any) -> Peer:
        peer = dial(smtp_server(start=False, middleware=[auth], **options), source=("192.0.2.1", 4711))
        peers.append(peer)
        if ehlo:
            peer.hello()
        return peer

    yield make
    for peer in peers:
        peer.close()
