"""The next hop: its hosts, and one transaction with it.

A ``Hop`` is one transaction, on a connection that it borrows from the pool of its ``NextHop``. Its methods return
replies that the client may get. Their codes are limited to those that the command allows, and their length is bounded.
Any failure of the connection is a 451, since the client is not the cause.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from gevent import joinall, spawn

from greensmtp._hostport import join, parse_url
from greensmtp.client.client import SMTPClient
from greensmtp.client.message_writer import BodyWriter, ChunkWriter
from greensmtp.client.options import ConnectOptions
from greensmtp.client.pool import Pool
from greensmtp.delivery._identity import Identity
from greensmtp.errors import (
    ArgumentError,
    CannotConnect,
    ClientError,
    Disconnected,
    NotOffered,
    PoolTimeout,
)
from greensmtp.protocol.address import Address
from greensmtp.protocol.enhanced_status import default_for
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import MAX_TEXT, Reply
from greensmtp.protocol.xclient import Missing
from greensmtp.session import Session

logger = logging.getLogger("greensmtp")

#: RFC 3463 sections 3.4, 3.5
NO_ANSWER = Reply(451, "4.4.1 The next hop does not answer")
_LOST = Reply(451, "4.4.2 The connection to the next hop was lost")
_BUSY = Reply(451, "4.3.2 The next hop is busy")
_MISCONFIGURED = Reply(451, "4.3.5 The next hop cannot be used")

#: Replies if a message needs an extension that the next hop lacks (RFC 6531 section 3.5, RFC 8689 section 5).
_NOT_OFFERED = {
    "SMTPUTF8": Reply(553, "5.6.7 The next hop does not take addresses beyond ASCII"),
    "REQUIRETLS": Reply(550, "5.7.30 The next hop does not support REQUIRETLS"),
}
_NOT_CONVERTED = Reply(554, "5.6.3 The next hop does not take such a message, and it cannot be converted")


#: Maximum number of lines of a next hop's reply that the client gets, and of characters in total.
_MOST_LINES = 8
_MOST_TEXT = 4 * MAX_TEXT

#: Positive replies to RCPT (RFC 5321 section 4.3.2; some servers send 252 for 250). Other commands allow 250 only.
_RCPT_CODES = frozenset({250, 251, 252})
_OK_CODES = frozenset({250})


def for_client(reply: Reply, positive: Collection[int] = _OK_CODES) -> Reply:
    """Return a reply of the next hop in the form that the client gets, with its enhanced code or the default one.

    421 becomes 451, and 221 becomes 250, since either would end the connection of a client that is not at fault.

    :param positive: the codes that accept the command; another 2xx becomes 250.
    """
    code, lines = reply.code, reply.lines
    if code < 300 and code not in positive:
        code = 250
    elif code == 421:
        code = 451
    if len(lines) > _MOST_LINES or sum(map(len, lines)) > _MOST_TEXT:
        lines = tuple("\n".join(lines[:_MOST_LINES])[:_MOST_TEXT].split("\n"))
    elif code == reply.code and reply.enhanced is not None:
        return reply
    return Reply(code, *lines, enhanced=reply.enhanced or default_for(code))


def read_places(to: str | Iterable[str]) -> tuple[list[str | tuple[str, int]], ConnectOptions]:
    """Return the hosts of URLs, and the options of ``connect`` that their scheme stands for.

    :raises ArgumentError: a URL is malformed, or their schemes differ.
    """
    urls = [to] if isinstance(to, str) else list(to)
    if not urls:
        raise ArgumentError("to", "expected at least one URL, like 'smtp://mx.example.com:25'")
    places: list[str | tuple[str, int]] = []
    schemes = set()
    for text in urls:
        try:
            url = parse_url(text)
        except ValueError as error:
            raise ArgumentError("to", str(error)) from None
        scheme = url.scheme or "smtp"
        schemes.add(scheme)
        if url.path is not None:
            places.append(url.path)
        elif scheme == "lmtp" and url.port is None:
            raise ArgumentError("to", f"expected a port for LMTP, which has none of its own; got {text!r}")
        else:
            places.append((url.host, url.port or {"smtps": 465}.get(scheme, 25)))
    if len(schemes) > 1:
        raise ArgumentError("to", f"expected URLs of one scheme; got {' and '.join(sorted(schemes))}")
    options: ConnectOptions = {"lmtp": schemes == {"lmtp"}, "tls": schemes == {"smtps"}}
    return places, options


class NextHop:
    """Hosts that are tried in order, with pooled connections.

    :param identities: the identities of connections. Each has its own pool, so that connections are not mixed.
    :param options: options of ``Pool``.
    """

    def __init__(self, to: str | Iterable[str], *, identities: Iterable[Identity] = (), **options: Any) -> None:
        places, scheme = read_places(to)
        self._identities = (Identity(), *identities)
        self._set(places, {**scheme, **options})

    @classmethod
    def of(cls, places: Sequence[str | tuple[str, int]], **options: Any) -> NextHop:
        """Return the next hop at these places."""
        made = cls.__new__(cls)
        made._identities = (Identity(),)
        made._set(places, options)
        return made

    def _set(self, places: Sequence[str | tuple[str, int]], options: dict[str, Any]) -> None:
        self.places = list(places)
        self.lmtp = bool(options.get("lmtp"))
        self._options = options
        self._pools: dict[Identity, Pool] = {}
        self._make_pool("check.invalid", Identity()).close()  # raises now if an option is invalid

    @property
    def name(self) -> str:
        """Its hosts, for the log: ``mx.example.com:25, mx2.example.com:25``."""
        return ", ".join(each if isinstance(each, str) else join(*each) for each in self.places)

    def next_hops(self, recipients: Sequence[Address]) -> list[tuple[NextHop | Reply, list[Address]]]:
        """Return the next hop of each group of recipients: this one, for all of them."""
        return [(self, list(recipients))]

    def _make_pool(self, hostname: str, identity: Identity) -> Pool:
        options = dict(self._options)
        if identity.source_address is not None:
            options["source_address"] = (identity.source_address, 0)
        if identity.local_hostname is not None:
            options["local_hostname"] = identity.local_hostname
        if options.get("local_hostname") is None:
            options["local_hostname"] = hostname
        return Pool(self.places, **options)

    def open(self, hostname: str) -> None:
        """Make the pools. Transactions may begin after that.

        :param hostname: the name for EHLO, unless another was given.
        """
        if not self._pools:
            self._pools = {each: self._make_pool(hostname, each) for each in self._identities}

    @property
    def tries(self) -> int:
        """The number of attempts to begin a transaction: one for a dead pooled connection, and one for each host."""
        return len(self.places) + 1

    def close(self, timeout: float = 5.0) -> None:
        """Close the connections."""
        pools, self._pools = self._pools, {}
        joinall([spawn(pool.close, timeout) for pool in pools.values()])

    @property
    def pool(self) -> Pool:
        """The pool of connections of the default identity.

        :raises RuntimeError: the next hop is not open.
        """
        return self.pool_of(Identity())

    def pool_of(self, identity: Identity) -> Pool:
        """Return the pool of connections of an identity.

        :raises RuntimeError: it is not open.
        """
        if not self._pools:
            raise RuntimeError("this delivery has not started, or has stopped")
        return self._pools[identity]


class Named(Protocol):
    """The owner of a transaction: a session, or a message of a spool."""

    @property
    def log_id(self) -> str:
        """Its ID in the log."""


class Hop:
    """One transaction with the next hop.

    :param begin: called with the client before MAIL: XFORWARD, for example.
    :param identity: the source address and EHLO name to connect with.
    """

    def __init__(
        self,
        next_hop: NextHop,
        subject: Named,
        begin: Callable[[SMTPClient], object] = lambda client: None,
        identity: Identity = Identity(),  # noqa: B008  (it is immutable)
    ) -> None:
        self.identity = identity
        self._next_hop = next_hop
        self._subject = subject
        self._begin = begin
        self._lease = ExitStack()
        self._client: SMTPClient | None = None
        #: The message, from its beginning to its end.
        self._body: BodyWriter | ChunkWriter | None = None
        #: True while a command waits for its reply: if the wait is interrupted, the connection is out of step.
        self._waits = False
        #: True if the connection was lost before the next hop can have accepted the message.
        self.may_begin_again = False
        #: LMTP: the replies to the message that came before the connection was lost.
        self._said: list[Reply] = []
        #: The recipients that the next hop has accepted, in order.
        self.accepted: list[Address] = []

    @property
    def is_open(self) -> bool:
        """True between MAIL and the end."""
        return self._client is not None

    def mail(self, sender: str, parameters: Mapping[str, str | None]) -> Reply:
        """Send MAIL, on another connection if the first one is lost; return the reply."""
        for left in reversed(range(self._next_hop.tries)):
            try:
                self._client = self._lease.enter_context(self._next_hop.pool_of(self.identity).connection())
                self._waits = True
                self._begin(self._client)
                reply = self._client.from_(sender, relayed=parameters)
                self._waits = False
            except ClientError as error:
                self._fail(error)
                if self.may_begin_again and left:
                    continue
                self.may_begin_again = False
                return self._answer(error)
            if reply.code == 421:
                self._leave(reply)
                if left:
                    continue
            elif not reply.is_positive:
                self.close()
            self.may_begin_again = False
            return for_client(reply)
        raise AssertionError("unreachable")

    def rcpt(self, recipient: Address, address: str) -> Reply:
        """Send RCPT, and return the reply.

        :param address: the address for the next hop.
        """
        reply = self._ask(lambda client: client.to(address, relayed=recipient.parameters), _RCPT_CODES)
        if reply.is_positive:
            self.accepted.append(recipient)
        return reply

    def begin_body(self, *, binary: bool) -> Reply | None:
        """Begin the message; return the refusal, if it is refused.

        :param binary: True if it must be sent in chunks (BDAT).
        """

        def begin(client: SMTPClient) -> Reply:
            self._body = client.body(chunked=True if binary else None)
            return self._body.reply or Reply(250, "2.0.0 Ok")

        reply = self._ask(begin)
        return None if reply.is_positive else reply

    def write(self, data: bytes) -> Reply | None:
        """Write the next bytes of the message; return the refusal, if a chunk is refused."""

        def write(client: SMTPClient) -> Reply:
            assert self._body is not None
            self._body.write(data)
            return self._body.reply or Reply(250, "2.0.0 Ok")

        reply = self._ask(write)
        return None if reply.is_positive else reply

    def finish(self) -> list[Reply]:
        """End the message; return its reply, in LMTP one for each accepted recipient."""

        def finish(client: SMTPClient) -> Reply:
            assert self._body is not None
            reply = self._body.finish()
            self._body = None
            return reply

        count = len(self.accepted)
        reply = self._ask(finish, ends=True)
        if self._said:  # RFC 2033 section 4.2: each reply is final, so those before the loss hold
            return [*self._said, *[reply] * (count - len(self._said))]
        replies: Sequence[Reply] = (reply,)
        if self._client is not None and self._next_hop.lmtp and len(self._client.replies) == count:
            replies = self._client.replies
        return [for_client(each) for each in replies]

    def close(self) -> None:
        """End the transaction, and return the connection to the pool. An unfinished message is not delivered."""
        if self._client is not None and (self._waits or self._body is not None):
            self._client.close()
        self._client = self._body = None
        self._waits = False
        self.accepted = []
        lease, self._lease = self._lease, ExitStack()
        lease.close()

    def _ask(
        self, command: Callable[[SMTPClient], Reply], positive: Collection[int] = _OK_CODES, *, ends: bool = False
    ) -> Reply:
        """Send a command, and return the reply for the client.

        :param positive: the codes that accept the command.
        :param ends: True if the command ends the message, so that a 421 is the reply to the message.
        """
        if self._client is None:
            return _LOST
        self._waits = True
        try:
            reply = command(self._client)
            self._waits = False
        except ClientError as error:
            if ends and self._next_hop.lmtp and isinstance(error, Disconnected) and error.after_content:
                self._said = _final(error.replies)
            in_body = self._body is not None and isinstance(error, Disconnected) and not error.after_content
            self._fail(error)
            if in_body and error.reply is not None and error.reply.is_permanent_failure:
                # A 5xx before the end of the body, and the connection closed: the message is refused for good.
                return for_client(error.reply)
            return self._answer(error)
        if reply.code == 421 and not ends:
            self._leave(reply)
        return for_client(reply, positive)

    def _leave(self, reply: Reply) -> None:
        """End the transaction after a 421: this host accepts no more mail for now."""
        self._fail(Disconnected("closed", reply=reply))

    def _fail(self, error: ClientError) -> None:
        """End the transaction after an error."""
        self._waits = self._waits and not isinstance(error, NotOffered)  # NotOffered is raised before anything is sent
        if self._client is not None and isinstance(error, Disconnected):
            self._client.close()
            self._lease.__exit__(type(error), error, error.__traceback__)  # tells the pool that the host has failed
        self.close()
        self.may_begin_again = isinstance(error, Disconnected) and error.safe_to_retry

    def _answer(self, error: ClientError) -> Reply:
        """Return the reply for the client, and log the error, which the reply does not contain."""
        if not isinstance(error, NotOffered):
            logger.warning("%s: next hop %s: %s", self._subject.log_id, self._next_hop.name, shown(error))
        return answer_to(error)


def answer_to(error: ClientError) -> Reply:
    """Return the reply for an error of the client library."""
    if isinstance(error, NotOffered):
        return _NOT_OFFERED.get(error.extension, _NOT_CONVERTED)
    if isinstance(error, PoolTimeout):
        return _BUSY
    if isinstance(error, CannotConnect):
        return NO_ANSWER
    if error.reply is not None and error.reply.is_transient_failure:
        return for_client(error.reply)
    return _LOST if error.transient else _MISCONFIGURED


def _final(replies: Sequence[Reply]) -> list[Reply]:
    """Return the replies to a message; none if one of them is not valid for a message."""
    return [] if any(reply.is_intermediate for reply in replies) else [for_client(reply) for reply in replies]


def xforward(client: SMTPClient, session: Session) -> None:
    """Send the client's address and name to the next hop, if it offers XFORWARD (Postfix's XFORWARD_README).

    Attributes that the client itself has sent by XFORWARD are passed on.

    :raises ClientError: the connection is lost.
    """
    offered = client.extensions.get("XFORWARD", "").upper().split()
    if not offered:
        return
    host = session.peer_host
    known: dict[str, str | Missing | None] = {
        "NAME": Missing.UNAVAILABLE,
        "ADDR": str(host) if host else Missing.UNAVAILABLE,
        "PORT": str(session.peer[1]) if isinstance(session.peer, tuple) else None,
        "PROTO": "SMTP" if session.greeting == "helo" else "ESMTP",
        "HELO": session.hostname,
        "IDENT": session.transaction_id,
        "SOURCE": "REMOTE",
    }
    known.update(session.forwarded or {})
    given: Any = {name.lower(): value for name, value in known.items() if name in offered and value is not None}
    for attributes in (given, *({name: value} for name, value in given.items())):
        try:
            client.xforward(**attributes)
        except ProtocolError:
            continue  # too long for one line, or not a valid name: leave it out
        if attributes is given:
            return
