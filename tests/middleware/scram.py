"""SCRAM exchanges with scramp's client."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from typing import Any

from scramp import ScramClient  # type: ignore[import-untyped]

from greensmtp.testing import Peer
from tests.helpers import b64

USERS = {"jo": "sesame", "ann,=x": "pässword"}


def first(peer: Peer, client: Any, mechanism: str = "SCRAM-SHA-256", cut: int | None = None) -> str:
    """Send the client's first message; return the reply, decoded if it is a challenge."""
    peer.send(f"AUTH {mechanism} {b64(client.get_client_first())}\r\n", cut=cut)
    return answer(peer)


def answer(peer: Peer) -> str:
    reply = peer.reply()
    return b64decode(reply[4:]).decode() if reply.startswith("334") else reply


def log_in(peer: Peer, client: Any, mechanism: str = "SCRAM-SHA-256") -> str:
    """Run the exchange up to and including the server's proof."""
    challenge = first(peer, client, mechanism)
    if challenge[:3].isdigit():
        return challenge
    client.set_server_first(challenge)
    peer.line(b64(client.get_client_final()))
    proof = answer(peer)
    if proof[:3].isdigit():
        return proof
    client.set_server_final(proof)
    peer.line("")
    return peer.reply()


def client_for(name: str, password: str, **options: Any) -> Any:
    return ScramClient(["SCRAM-SHA-256"], name, password, **options)


def log_in_as(peer: Peer, header: str, signed: str | None = None, *, bound_to: bytes = b"") -> str:
    """Run jo's exchange by hand, since scramp's client sends no authzid."""
    bare = "n=jo,r=nonce"
    peer.line(f"AUTH SCRAM-SHA-256{'-PLUS' * bool(bound_to)} {b64(header + bare)}")
    challenge = answer(peer)
    nonce, salt, _ = (field[2:] for field in challenge.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", b"sesame", b64decode(salt), 4096)
    key = hmac.digest(salted, b"Client Key", "sha256")
    binding = b64encode((header if signed is None else signed).encode() + bound_to).decode()
    final = f"c={binding},r={nonce}"
    signature = hmac.digest(hashlib.sha256(key).digest(), f"{bare},{challenge},{final}".encode(), "sha256")
    proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
    peer.line(b64(f"{final},p={b64encode(proof).decode()}"))
    reply = answer(peer)
    if reply[:3].isdigit():
        return reply
    assert reply.startswith("v=")
    peer.line("")
    return peer.reply()
