"""Identities for connections to the next hop: source address and EHLO name, by the domain of a sender or recipient.

All identities are configured in advance. So clients cannot add any, and errors in them are found at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from greensmtp.chain.validate import check_callable
from greensmtp.client.dial import hello_name
from greensmtp.errors import ArgumentError
from greensmtp.protocol.address import Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.mailbox import ascii_domain, lower
from greensmtp.session import Session


class Identity(NamedTuple):
    """A source address and an EHLO name for connections to the next hop. None: the default."""

    source_address: str | None = None
    local_hostname: str | None = None


class Identities:
    """Choose an identity for each message.

    :param given: name -> its ``source_address`` and ``local_hostname``; missing ones are taken from ``default``.
    :param by: ``"sender"`` or ``"recipient"``: names are domains; or ``(session, sender) -> name``, or None.
    :param default: the identity if no name matches.
    :raises ArgumentError: an argument is invalid.
    """

    def __init__(
        self,
        given: Mapping[str, Mapping[str, str]] | None,
        by: str | Callable[[Session, Address], str | None],
        default: Identity,
    ) -> None:
        self._default = _checked(default, "source_address", "local_hostname")
        self._function = None if isinstance(by, str) else by
        if self._function is not None:
            check_callable(self._function, "identity_by", ("session", "address"), "str")
        elif by not in ("sender", "recipient"):
            raise ArgumentError("identity_by", f"expected 'sender', 'recipient' or 'module:function'; got {by!r}")
        self._named = {self._key(name): self._read(name, each) for name, each in (given or {}).items()}
        #: True if recipients choose the identity, so that each identity needs its own transaction.
        self.by_recipient = bool(self._named) and by == "recipient"

    @property
    def all(self) -> Collection[Identity]:
        """All identities, each once."""
        return dict.fromkeys((self._default, *self._named.values()))

    def of_sender(self, session: Session, sender: Address) -> Identity:
        """Return the identity for a sender; the default if recipients choose the identity."""
        if not self._named or self.by_recipient:
            return self._default
        name = sender.ascii_domain if self._function is None else self._function(session, sender)
        return self._default if name is None else self._named.get(name, self._default)

    def of_recipient(self, recipient: Address) -> Identity:
        """Return the identity for a recipient. Call it only if ``by_recipient``."""
        return self._named.get(recipient.ascii_domain, self._default)

    def _key(self, name: str) -> str:
        return name if self._function is not None else ascii_domain(lower(name))

    def _read(self, name: str, given: Any) -> Identity:
        names = Identity._fields
        if not isinstance(given, Mapping) or not given or not set(given) <= set(names):
            raise ArgumentError("identities", f"expected {' or '.join(names)}, or both, for {name!r}; got {given!r}")
        return _checked(self._default._replace(**given), "identities", "identities")


def _checked(identity: Identity, source_key: str, name_key: str) -> Identity:
    """Return the identity after checking it.

    :raises ArgumentError: the address is not an IP address, or the name not a host name. The error names the key.
    """
    if identity.source_address is not None:
        try:
            ip_address(identity.source_address)
        except ValueError:
            raise ArgumentError(source_key, f"expected an IP address; got {identity.source_address!r}") from None
    if identity.local_hostname is not None:
        try:
            hello_name(identity.local_hostname, "a host name")
        except (ProtocolError, TypeError, ValueError) as error:
            raise ArgumentError(name_key, str(error)) from None
    return identity
