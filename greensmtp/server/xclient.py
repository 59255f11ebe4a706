"""XCLIENT and XFORWARD (Postfix's XCLIENT_README, XFORWARD_README): what trusted peers say about their clients.

The rules of this file:

- Both are offered to, and taken from, a session whose ``peer`` is in the trusted networks. Behind a PROXY header that
  is the client that the header names, never the proxy: or every client of a trusted proxy could name another. A header
  that names no client (UNKNOWN, LOCAL) gives no trust. For the same reason a client that XCLIENT has named is not
  trusted, unless its own address is.
- XCLIENT makes another session of the connection; see ``continuations.after_xclient``. Several add up: each value
  replaces an earlier one, and one that is not known removes it.
- XFORWARD changes nothing but ``session.forwarded``, which lasts until the transaction ends, as in Postfix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from greensmtp.networks import read_address
from greensmtp.protocol import canned, esmtp, xclient
from greensmtp.protocol.command import Command
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.xclient import Attributes, Missing
from greensmtp.server.trusted import TrustedNetworks
from greensmtp.session import Session, SocketAddress

Behaviour = Callable[[Session, Any], Reply]

#: The host of a client whose address the proxy does not know. (``""`` would be the peer of a unix socket, which may be
#: trusted.)
UNKNOWN_HOST = "0.0.0.0"

#: Key in the session's notes: the attributes of an XCLIENT that is being answered.
_REQUESTED = object()

#: It takes effect in after_xclient, which writes another banner in place of this reply.
_RESTART = Reply(220, "2.0.0 Ok")


class ProxyVerbs:
    """XCLIENT and XFORWARD of one server.

    :param xclient_from: the peers that may send XCLIENT; None: none may, and the verb is not implemented.
    :param xforward_from: the same for XFORWARD.
    """

    def __init__(self, xclient_from: TrustedNetworks | None, xforward_from: TrustedNetworks | None) -> None:
        self._verbs: dict[str, tuple[TrustedNetworks, Behaviour]] = {}
        if xclient_from is not None:
            self._verbs["XCLIENT"] = xclient_from, _xclient
        if xforward_from is not None:
            self._verbs["XFORWARD"] = xforward_from, _xforward

    @property
    def extensions(self) -> list[Extension]:
        """The extensions of the verbs that some peer may send."""
        return [extension for extension in (esmtp.XCLIENT, esmtp.XFORWARD) if extension.keyword in self._verbs]

    def hidden_from(self, session: Session) -> frozenset[str]:
        """Return the verbs that this session may not send; EHLO and HELP do not name them."""
        return frozenset(verb for verb, (trusted, _) in self._verbs.items() if not is_trusted(session, trusted))

    def added_to(self, behaviours: Mapping[str, Behaviour]) -> dict[str, Behaviour]:
        """Return what each verb does, with these two, and with their offers in the reply to EHLO."""
        found = dict(behaviours)
        for verb, (trusted, behaviour) in self._verbs.items():
            found[verb] = _refusing_others(trusted, behaviour)
            for hello in ("EHLO", "LHLO"):
                found[hello] = _offering(verb, trusted, found[hello])
        return found


def is_trusted(session: Session, trusted: TrustedNetworks) -> bool:
    """Return True if a session may send a verb that is for these networks."""
    proxy = session.proxy
    # Without a client in the header, the peer is the proxy, and the client may be anyone.
    names_client = proxy is None or (isinstance(proxy.source, tuple) and not proxy.is_local)
    return names_client and session.peer in trusted


def _refusing_others(trusted: TrustedNetworks, behaviour: Behaviour) -> Behaviour:
    def act(session: Session, command: Command) -> Reply:
        return behaviour(session, command) if is_trusted(session, trusted) else canned.NOT_TRUSTED

    return act


def _offering(verb: str, trusted: TrustedNetworks, hello: Behaviour) -> Behaviour:
    names = xclient.names(verb)

    def act(session: Session, command: Command) -> Reply:
        reply = hello(session, command)
        return esmtp.offer(reply, verb, *names) if is_trusted(session, trusted) else reply

    return act


def _xclient(session: Session, command: Command) -> Reply:
    try:
        session.notes[_REQUESTED] = xclient.parse("XCLIENT", command.argument)
    except ProtocolError as error:
        return Reply(501, f"5.5.4 {error}")
    return _RESTART


def _xforward(session: Session, command: Command) -> Reply:
    try:
        attributes = xclient.parse("XFORWARD", command.argument)
    except ProtocolError as error:
        return Reply(501, f"5.5.4 {error}")
    session.stage(setattr, session, "forwarded", merge(session.forwarded, attributes))
    return canned.OK


# For after_xclient


def take_request(session: Session) -> Attributes | None:
    """Return the attributes of the XCLIENT that is being answered, once."""
    attributes: Attributes | None = session.notes.pop(_REQUESTED, None)
    return attributes


def merge(known: Mapping[str, str] | None, attributes: Attributes) -> Mapping[str, str]:
    """Return what is known with another command's attributes: a command may say a part of them only."""
    merged: dict[str, str | Missing] = {**(known or {}), **attributes}
    return {name: value for name, value in merged.items() if isinstance(value, str)}


def named_peer(peer: SocketAddress, attributes: Attributes) -> SocketAddress:
    """Return the peer that an XCLIENT names; the present one if it names none."""
    address, port = attributes.get("ADDR"), attributes.get("PORT")
    if address is None:
        if isinstance(peer, tuple) and isinstance(port, str):
            return (peer[0], int(port))
        return peer
    host = str(read_address(address)) if isinstance(address, str) else UNKNOWN_HOST
    return (host, int(port) if isinstance(port, str) else 0)
