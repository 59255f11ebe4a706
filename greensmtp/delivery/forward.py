"""``Forward``: pass mail on to a next hop while the client waits; the next hop's reply is the client's.

There are two modes. In ``lock-step``, MAIL and RCPT are passed on as they arrive, and the body is streamed; in
``after-body``, the message is collected first. In both, the client gets 250 only after the next hop's 250, so nothing
is queued and nothing bounces.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from greensmtp.chain.validate import check_callable
from greensmtp.client.client import SMTPClient
from greensmtp.client.options import StartTLS
from greensmtp.delivery._identity import Identities, Identity
from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.next_hop import Hop, NextHop, xforward
from greensmtp.delivery.srs import SRS
from greensmtp.delivery.trace import received_field
from greensmtp.errors import ArgumentError, Reject
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.log_text import reply_text
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.server_info import ServerInfo

logger = logging.getLogger("greensmtp")

#: Maximum number of LMTP replies in one log line.
_LOGGED = 10

#: Bytes of a file that are read at once.
_READ = 256 * 1024

_LOOP = Reply(554, "5.4.6 Too many hops: the message has been here before")
#: RFC 5321 section 4.5.4.1: the client tries again with the other recipients.
_OTHERS_REFUSED = Reply(451, "4.3.0 Not all recipients can be served at once; try again")
_NOT_OURS = Reply(550, "5.1.1 No such address")


class Forward(Delivery):
    """Pass mail on: ``Forward("smtp://mx.example.com:25")``. The next hop's reply is the reply to the client.

    A 421 of the next hop becomes 451. The reply is also 451 if the connection cannot be made or is lost. Refusals keep
    their enhanced status code.

    :param to: a URL (``smtp://``, ``smtps://``, ``lmtp://``, ``unix:``, ``lmtp+unix:``), or several, which are tried in
        order; one that fails is skipped for 30 seconds.
    :param mode: ``"lock-step"``: commands are passed on as they arrive, and the body is streamed;
        ``"after-body"``: the message is collected and then sent, so a slow client occupies no connection.
    :param starttls: as for ``connect``: ``"offered"`` and so on.
    :param ca: a PEM file with the authorities to trust; None: those of the system.
    :param username: the user for the next hop, with ``password``, or with ``token`` for XOAUTH2 and OAUTHBEARER; each
        may be a callable, which is called for each new connection.
    :param connections: maximum number of connections.
    :param wait: seconds that a message waits for a connection while all are busy; then 451.
    :param rate: messages per second, at even intervals; None for no limit.
    :param timeout: seconds for each reply of the next hop, except for the reply to the message, which has ten minutes.
    :param source_address: the address to connect from.
    :param local_hostname: the name for EHLO; by default the server's.
    :param identities: other addresses and names, by domain: ``{"a.example": {"source_address": "192.0.2.1",
        "local_hostname": "mail.a.example"}}``. ``connections`` and ``rate`` apply to each of them separately.
    :param identity_by: ``"sender"`` or ``"recipient"``: the address whose domain chooses an identity; or
        ``(session, sender) -> str | None``, which returns a key of it.
    :param received: add a Received field; False only for a filter that must change nothing.
    :param max_hops: refuse a message with this many Received fields, as a mail loop.
    :param xforward: send the client's address and name to the next hop, if it offers XFORWARD.
    :param srs_domain: rewrite reverse-paths by SRS to addresses of this domain, so that bounces return here.
    :param srs_secret: the secret for SRS; or several, the first of which signs.
    :param rewrite_sender: ``(session, sender) -> str``: the reverse-path for the next hop. Before SRS.
    :param rewrite_recipient: ``(session, recipient) -> str``: the recipient for the next hop. After SRS.
    :raises ArgumentError, ValueError: an argument is invalid.
    """

    answers = True

    def __init__(
        self,
        to: str | Sequence[str],
        *,
        mode: Literal["lock-step", "after-body"] = "lock-step",
        starttls: StartTLS | None = None,
        ca: str | Path | None = None,
        username: str | None = None,
        password: str | Callable[[], str] | None = None,
        token: str | Callable[[], str] | None = None,
        connections: int = 20,
        wait: float = 30.0,
        rate: float | None = None,
        timeout: float = 60.0,
        source_address: str | None = None,
        local_hostname: str | None = None,
        identities: Mapping[str, Mapping[str, str]] | None = None,
        identity_by: str | Callable[[Session, Address], str | None] = "sender",
        received: bool = True,
        max_hops: int = 100,
        xforward: bool = True,
        srs_domain: str | None = None,
        srs_secret: str | Sequence[str] | None = None,
        rewrite_sender: Callable[[Session, str], str] | None = None,
        rewrite_recipient: Callable[[Session, str], str] | None = None,
    ) -> None:
        if mode not in ("lock-step", "after-body"):
            raise ArgumentError("mode", f"expected 'lock-step' or 'after-body'; got {mode!r}")
        if max_hops < 1:
            raise ArgumentError("max_hops", f"expected at least 1; got {max_hops!r}")
        if (srs_domain is None) != (srs_secret is None):
            raise ArgumentError("srs_domain", "and srs_secret must be given together; got only one of them")
        self.mode = mode
        self.received = received
        self.max_hops = max_hops
        self.xforward = xforward
        self._identities = Identities(identities, identity_by, Identity(source_address, local_hostname))
        self.next_hop = NextHop(
            to,
            identities=self._identities.all,
            size=connections,
            acquire_timeout=wait,
            rate=rate,
            timeout=timeout,
            starttls=starttls,
            ssl_context=None if ca is None else _make_context(ca),
            username=username,
            password=password,
            token=token,
        )
        self._srs = SRS(srs_domain, srs_secret) if srs_domain is not None and srs_secret is not None else None
        for name, function in (("rewrite_sender", rewrite_sender), ("rewrite_recipient", rewrite_recipient)):
            if function is not None:
                check_callable(function, name, ("session", "address"), "str")
        self._rewrite_sender = rewrite_sender
        self._rewrite_recipient = rewrite_recipient
        self._servers = 0
        if mode == "lock-step":  # only in this mode, the runner calls these at MAIL and RCPT
            vars(self).update(mail=self._ask_mail, rcpt=self._ask_rcpt, reset=self._forget)
        if self._identities.by_recipient:
            vars(self).update(group=self._group)

    def __repr__(self) -> str:
        return f"<Forward to {self.next_hop.places[0]}>"

    def start(self, server: ServerInfo) -> None:
        """Open the next hop."""
        self._servers += 1
        self.next_hop.open(server.hostname)

    def stop(self, server: ServerInfo) -> None:
        """Close the connections, with the last server."""
        self._servers -= 1
        if not self._servers:
            self.next_hop.close()

    def _group(self, session: Session, recipient: Address) -> object:
        return self._identities.of_recipient(recipient)

    # In lock-step

    def _ask_mail(self, session: Session, sender: Address) -> Reply | None:
        self._forget(session)
        if self._identities.by_recipient:
            return None  # MAIL is sent with the first recipient
        return self._begin(session, sender, self._identities.of_sender(session, sender))

    def _begin(self, session: Session, sender: Address, identity: Identity) -> Reply:
        hop = self._renew(session, identity)
        return hop.mail(self.sender(session, sender), sender.parameters)

    def _ask_rcpt(self, session: Session, recipient: Address) -> Reply:
        hop: Hop | None = session.notes.get(self)
        if self._identities.by_recipient:
            identity = self._identities.of_recipient(recipient)
            if hop is None or hop.identity != identity:  # the first one, or those before it were refused
                reply = self._begin(session, session.from_ or Address("", "", ""), identity)
                if not reply.is_positive:
                    self._forget(session)
                    return reply
                hop = session.notes[self]
        assert hop is not None
        return hop.rcpt(recipient, self.recipient(session, recipient))

    def _renew(self, session: Session, identity: Identity) -> Hop:
        """Return a new transaction with the next hop, replacing the previous one."""
        self._forget(session)
        hop = session.notes[self] = self.hop(session, identity)
        return hop

    def _forget(self, session: Session) -> None:
        hop: Hop | None = session.notes.pop(self, None)
        if hop is not None:
            hop.close()

    # A message

    def begin(self, envelope: Envelope) -> Transfer:
        """Begin a message; in lock-step, at the next hop too.

        :raises Reject: the next hop refuses it.
        """
        if self.mode == "after-body":
            return _Collected(self, envelope)
        session = envelope.session
        hop: Hop | None = session.notes.get(self)
        if hop is None or not hop.is_open or hop.accepted != list(envelope.recipients):
            # A middleware has refused what the next hop has accepted, or has changed the recipients.
            hop = self._renew(session, self.identity(envelope))
            self.name(hop, envelope, envelope.recipients)
            if not hop.is_open:
                raise Reject(_OTHERS_REFUSED)
        refusal = hop.begin_body(binary=is_binary(session))
        if refusal is not None:
            raise Reject(refusal)
        return _Passing(self, envelope, hop)

    def identity(self, envelope: Envelope) -> Identity:
        """Return the identity for a message. All its recipients have the same one (``group``)."""
        if self._identities.by_recipient:
            return self._identities.of_recipient(envelope.recipients[0])
        return self._identities.of_sender(envelope.session, envelope.sender)

    def hop(self, session: Session, identity: Identity) -> Hop:
        """Return a new transaction with the next hop, before MAIL."""

        def begin(client: SMTPClient) -> None:
            if self.xforward:
                xforward(client, session)

        return Hop(self.next_hop, session, begin, identity)

    def name(self, hop: Hop, envelope: Envelope, recipients: Sequence[Address]) -> dict[str, Reply | None]:
        """Send MAIL and RCPTs to the next hop; return the refusals. If all recipients are refused, close the hop.

        :raises Reject: the sender is refused; in SMTP, a recipient is; or the connection is lost with none accepted.
        """
        session = envelope.session
        reply = hop.mail(self.sender(session, envelope.sender), envelope.sender.parameters)
        if not reply.is_positive:
            raise Reject(reply)
        refusals: dict[str, Reply | None] = {}
        for recipient in recipients:
            reply = hop.rcpt(recipient, self.recipient(session, recipient))
            if reply.is_positive:
                continue
            refusals[recipient] = reply
            if not session.server.lmtp or not hop.is_open:
                hop.close()
                raise Reject(reply)
        if not hop.accepted:
            hop.close()
        return refusals

    def sender(self, session: Session, sender: Address) -> str:
        """Return the reverse-path for the next hop."""
        address = str(sender) if self._rewrite_sender is None else self._rewrite_sender(session, sender)
        return address if self._srs is None else self._srs.forward(address)

    def recipient(self, session: Session, recipient: Address) -> str:
        """Return the recipient for the next hop.

        :raises Reject: it is an SRS address with a wrong hash, or one that has expired.
        """
        address: str = str(recipient)
        if self._srs is not None:
            try:
                address = self._srs.reverse(address) or address
            except ValueError:
                raise Reject(_NOT_OURS) from None
        return address if self._rewrite_recipient is None else self._rewrite_recipient(session, Address.parse(address))

    def received_field(self, envelope: Envelope) -> bytes:
        """Return the Received field for a message, or nothing."""
        return received_field(envelope.session) if self.received else b""


def _make_context(ca: str | Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
    except OSError as error:  # ssl.SSLError is one
        raise ArgumentError("ca", f"cannot read the authorities in {str(ca)!r}: {error}") from None
    return context


def is_binary(session: Session) -> bool:
    """True if the message is BINARYMIME, with any bytes and without lines (RFC 3030 section 3)."""
    return str(session.from_ext.get("BODY") or "").upper() == "BINARYMIME"


class _Passing(Transfer):
    """A message that is streamed to the next hop."""

    def __init__(self, delivery: Forward, envelope: Envelope, hop: Hop) -> None:
        super().__init__(envelope)
        self._delivery = delivery
        self._hop = hop
        self._hops = Hops(delivery.max_hops)
        #: Separates the body from the fields that are added before it; None: there are none, or it has not begun.
        self._section: HeaderSection | None = None
        self._has_begun = False

    def write(self, data: bytes, /) -> None:
        """Pass the next piece on.

        :raises Reject: the message has too many hops, or the next hop refuses it.
        """
        self._hops.feed(data)
        self._pass(data)

    def commit(self, recipients: Sequence[Address]) -> Result:
        """End the message, and return the next hop's reply."""
        if list(recipients) != self._hop.accepted:
            self._hop.close()
            raise Reject(_OTHERS_REFUSED)
        self._pass(b"", last=True)
        return outcome(self.envelope, self._hop)

    def discard(self) -> None:
        """Close the connection, so that the next hop does not accept half of the message as a whole one."""
        self._hop.close()

    def _pass(self, data: bytes, *, last: bool = False) -> None:
        head = b""
        if not self._has_begun:
            self._has_begun = True
            head = self._delivery.received_field(self.envelope) + self.envelope.take_fields()
            self._section = HeaderSection() if head else None
        if self._section is not None:
            data = head + self._section.feed(data, last)
        if data and (refusal := self._hop.write(data)) is not None:
            raise Reject(refusal)


class _Collected(SpooledTransfer):
    """A message that is sent when it is complete."""

    def __init__(self, delivery: Forward, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._delivery = delivery
        self._hops = Hops(delivery.max_hops)

    def write(self, data: bytes, /) -> None:
        """Collect the next piece.

        :raises Reject: the message has too many hops.
        """
        self._hops.feed(data)
        super().write(data)

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Send the message, and return the next hop's reply.

        If the connection is lost early, or the host sends 421, send the message again, to another host.
        """
        identity = self._delivery.identity(self.envelope)
        for left in reversed(range(self._delivery.next_hop.tries)):
            hop = self._delivery.hop(self.envelope.session, identity)
            try:
                return self._send(hop, recipients)
            except Reject:
                if not (left and hop.may_begin_again):
                    raise
        raise AssertionError("unreachable")

    def _send(self, hop: Hop, recipients: Sequence[Address]) -> Result:
        try:
            refusals = self._delivery.name(hop, self.envelope, recipients)
            if not hop.is_open:
                return refusals
            refusal = hop.begin_body(binary=is_binary(self.envelope.session))
            data = self._delivery.received_field(self.envelope)
            section = HeaderSection() if data else None
            with self.open() as source:
                while refusal is None:
                    piece = source.read(_READ)
                    data += piece if section is None else section.feed(piece, not piece)
                    refusal, data = hop.write(data), b""
                    if not piece:
                        break
            if refusal is not None:
                raise Reject(refusal)
            result = outcome(self.envelope, hop)
        finally:
            hop.close()
        if isinstance(result, Reply):
            if not refusals or not result.is_positive:
                return result
            result = dict.fromkeys(recipients, result)
        return {**(result or {}), **refusals}


def outcome(envelope: Envelope, hop: Hop) -> Result:
    """End a message at the next hop, and return the result."""
    accepted = hop.accepted
    replies = hop.finish()
    hop.close()
    logger.info("%s: next hop: %s", envelope.session.log_id, " / ".join(_shown(reply) for reply in replies[:_LOGGED]))
    if len(replies) < len(accepted) or len(replies) == 1:
        return replies[0]
    return dict(zip(accepted, replies, strict=True))


def _shown(reply: Reply) -> str:
    return f"{reply.code} {reply_text(reply)}"


class Hops:
    """Count the Received fields of a message as it arrives (RFC 5321 section 6.3).

    :param most: the number of fields at which the message is refused.
    """

    _FIELD = re.compile(rb"\nreceived:", re.IGNORECASE)

    def __init__(self, most: int) -> None:
        self._left = most
        #: The last bytes of the previous piece, in which a field's name may begin; initially a line end.
        self._tail = b"\n"
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Count the fields in the next piece.

        :raises Reject: there are too many.
        """
        if self._is_over:
            return
        data = self._tail + data
        end = re.search(rb"\n\r?\n", data)
        self._is_over = end is not None
        self._left -= len(self._FIELD.findall(data, 0, len(data) if end is None else end.start() + 1))
        if self._left <= 0:
            raise Reject(_LOOP)
        # One byte less than the searched text, so that no field is counted twice.
        self._tail = data[-9:]
