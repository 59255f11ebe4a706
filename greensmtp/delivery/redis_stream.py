"""``RedisStream``: add each message to a Redis stream, which any number of programs read in a consumer group.

The client gets 250 when Redis has replied. How durable that is depends on Redis: see docs/howto/redis-stream.md.

Rules of this file:

- A command is sent once. If its answer is lost, the message may still be in the stream, and the client's next try
  adds it again, under another ID.
- Nothing is trimmed, since that would lose unread entries. If the stream is full, mail is refused instead.
- redis-py blocks. In a process that gevent has patched, only the greenlet blocks; otherwise it runs in the thread pool.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gevent import Timeout
from gevent.monkey import is_module_patched

from greensmtp.delivery._numbers import check_counts, check_numbers
from greensmtp.delivery._store import open_store, stored_message
from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.handed_off import MailContent, MailEnvelope, read_envelope
from greensmtp.errors import ArgumentError, Reject
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply
from greensmtp.session.server_info import ServerInfo
from greensmtp.thread_pool import BoundedPool

logger = logging.getLogger("greensmtp")

_NO_REDIS = Reply(451, "4.4.1 The queue does not answer")
_FULL = Reply(452, "4.3.1 The queue is full")
_TOO_LARGE = Reply(552, "5.3.4 The message is too large for the queue")

#: How many of gevent's ten threads one delivery may use, so that a queue that hangs leaves threads for others.
_THREADS = 4

#: Add an entry unless the stream has ``ARGV[1]`` entries already.
_ADD = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
"""


class RedisStream(Delivery):
    """Add an entry for each message: ``RedisStream("redis://127.0.0.1:6379/0", stream="mail")``.

    An entry has ``envelope``, a JSON object, and ``content``, the message. A large message has ``path`` instead, a file
    name or an S3 URL. ``read_entry`` reads an entry. If Redis does not answer, the reply is 451.

    :param url: ``redis://``, ``rediss://`` or ``unix://``.
    :param stream: the key of the stream.
    :param maxlen: maximum number of entries in the stream; beyond it mail is refused with 452. None: no limit.
    :param replicas: number of replicas that must have the entry too (WAIT); else the reply is 451.
    :param store: a folder for the messages that are larger than ``inline``, shared with the programs that read, or a
        bucket: ``s3://bucket/prefix``; None: larger messages are refused.
    :param inline: maximum number of bytes of a message that is put into the entry itself.
    :param timeout: seconds to wait for an answer of Redis.
    :param connections: maximum number of connections to Redis, and of entries added at once; in a process that is not
        patched, at most 4.
    :raises ArgumentError: an argument is invalid.
    :raises ModuleNotFoundError: redis is not installed.
    """

    answers = True

    def __init__(
        self,
        url: str,
        *,
        stream: str,
        maxlen: int | None = None,
        replicas: int = 0,
        store: str | Path | None = None,
        inline: int = 256 * 1024,
        timeout: float = 10.0,
        connections: int = 10,
    ) -> None:
        if not stream or not isinstance(stream, str):
            raise ArgumentError("stream", f"expected the key of a stream; got {stream!r}")
        check_numbers(timeout=timeout)
        check_counts(inline=inline, connections=connections, **({} if maxlen is None else {"maxlen": maxlen}))
        check_counts(0, replicas=replicas)
        self._client = _connect(url, timeout, connections)
        self._stream = stream
        self._maxlen = maxlen
        self._replicas = replicas
        self._store = None if store is None else open_store(store)
        self._inline = inline
        self._timeout = timeout
        self._pool = BoundedPool(min(connections, _THREADS))
        self._servers = 0

    def __repr__(self) -> str:
        return f"<RedisStream {self._stream}>"

    def start(self, server: ServerInfo) -> None:
        """Create the folder for large messages, and remove those that no program has fetched in a week."""
        if self._store is not None:
            self._store.start()
        self._servers += 1

    def stop(self, server: ServerInfo) -> None:
        """Close the connections, with the last server."""
        self._servers -= 1
        if not self._servers:
            self._client.connection_pool.disconnect()

    def begin(self, envelope: Envelope) -> Transfer:
        """Collect a message."""
        return _Added(self, envelope)

    def prepare(self, transfer: SpooledTransfer) -> dict[str, bytes]:
        """Return the fields of an entry for a message: its content, or its path in the store.

        :raises Reject: the message is too large.
        """
        with transfer.open() as source:
            content = source.read(self._inline + 1)
        if len(content) <= self._inline:
            return {"content": content}
        if self._store is None:
            text = "%s: redis: the message has more than %d bytes, and no store is set; replying 552"
            logger.warning(text, transfer.envelope.session.log_id, self._inline)
            raise Reject(_TOO_LARGE)
        return {"path": self._store.write(transfer.envelope.id, transfer.open).encode()}

    def remove(self, path: str) -> None:
        """Remove a stored message that no entry refers to."""
        assert self._store is not None
        self._store.remove(path)

    def add(self, envelope: Envelope, recipients: Sequence[Address], content: Mapping[str, bytes]) -> Result:
        """Add an entry, and return the refusal; None if the message is accepted.

        :raises Reject: Redis does not answer.
        """
        about = json.dumps(MailEnvelope.of(envelope, recipients)._asdict())
        log_id = envelope.session.log_id
        try:
            added, copies = self._call(lambda: self._add({"envelope": about, **content}))
        except Exception as error:  # redis-py's errors, whose texts have no password, and timeouts
            logger.warning("%s: redis: %s; replying 451", log_id, str(error) or type(error).__name__)
            raise Reject(_NO_REDIS) from None
        if not added:
            logger.warning("%s: redis: the stream %s has %d entries; replying 452", log_id, self._stream, self._maxlen)
            return _FULL
        if copies < self._replicas:
            logger.warning("%s: redis: %d of %d replicas have the entry; replying 451", log_id, copies, self._replicas)
            raise Reject(_NO_REDIS)
        return None

    def _call(self, function: Callable[[], tuple[Any, int]]) -> tuple[Any, int]:
        # The pool's threads cannot be interrupted; their socket timeouts end them.
        with Timeout(self._timeout, TimeoutError(f"no answer within {self._timeout:g} s")):
            return function() if is_module_patched("socket") else self._pool.call(function)

    def _add(self, fields: Mapping[str, str | bytes]) -> tuple[Any, int]:
        """Add an entry; return its ID, and how many replicas have it. If too few have it, remove it."""
        flat = [part for field in fields.items() for part in field]
        with self._client.pipeline(transaction=False) as commands:  # on one connection, as WAIT requires
            if self._maxlen is None:
                commands.execute_command("XADD", self._stream, "*", *flat)
            else:
                commands.execute_command("EVAL", _ADD, 1, self._stream, self._maxlen, *flat)
            if self._replicas:
                # WAIT must end before our timeout, since its answer decides whether to remove the entry.
                commands.execute_command("WAIT", self._replicas, max(1, int(self._timeout * 500)))
            added, *rest = commands.execute()
        copies = rest[0] if rest else 0
        if added and copies < self._replicas:
            self._client.execute_command("XDEL", self._stream, added)
        return added, copies


class _Added(SpooledTransfer):
    """A message that is added to the stream when it is complete."""

    def __init__(self, delivery: RedisStream, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._delivery = delivery
        self._content: dict[str, bytes] = {}

    def prepare(self) -> Result:
        """Store a large message."""
        self._content = self._delivery.prepare(self)
        return None

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Add the entry."""
        # If Redis does not answer, it may still have the entry, so the file must stay from here on.
        content, self._content = self._content, {}
        result = self._delivery.add(self.envelope, recipients, content)
        if result is not None:
            self._content = content
            self.discard()
        return result

    def discard(self) -> None:
        """Remove the stored message, if no entry refers to it."""
        content, self._content = self._content, {}
        if "path" in content:
            self._delivery.remove(content["path"].decode())


def _connect(url: str, timeout: float, connections: int) -> Any:
    try:
        from redis import BlockingConnectionPool, Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise ModuleNotFoundError("RedisStream needs redis: pip install 'greensmtp[redis]'") from None
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),  # a retry could add the message twice
        )
        pool.connection_class(**pool.connection_kwargs)  # parses the options without connecting
    except (AttributeError, TypeError, ValueError):  # its text is left out: it may quote the password
        raise ArgumentError(
            "url",
            "expected a URL like 'redis://127.0.0.1:6379/0'; got one that redis-py cannot parse (not shown: it may "
            "have a password)",
        ) from None
    return Redis(connection_pool=pool)


def read_entry(fields: Mapping[bytes, bytes] | Mapping[str, bytes]) -> tuple[MailEnvelope, MailContent]:
    """Return the envelope and the content of an entry. Call it in the program that reads the stream.

    :param fields: the fields of the entry, as redis-py returns them without ``decode_responses``.
    """
    given = {name.decode() if isinstance(name, bytes) else name: value for name, value in fields.items()}
    path = given.get("path")
    content = MailContent(given.get("content"), None if path is None else path.decode())
    return read_envelope(json.loads(given["envelope"])), content


def settle_entry(client: Any, stream: str, group: str, entry: bytes | str, content: MailContent) -> None:
    """Acknowledge an entry that has been processed, delete it, and remove its stored message.

    :param client: a ``redis.Redis``.
    """
    client.xack(stream, group, entry)
    client.xdel(stream, entry)
    if content.location is not None:
        stored_message(content.location).remove()
