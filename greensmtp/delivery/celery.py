"""``CeleryTask``: send mail to a Celery task, through any broker. ``mail_task`` defines such a task.

The frontend stores nothing: the client gets 250 when the broker has confirmed the task. A large message is written
to a folder or bucket that frontends and workers share, since brokers take small messages only.

How it waits. Celery's connections block. In a process patched by gevent, such as ``greensmtp serve``, only the greenlet
blocks; otherwise tasks are published in the thread pool.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from weakref import WeakSet

import gevent
from gevent import Timeout
from gevent.lock import BoundedSemaphore
from gevent.monkey import is_module_patched

from greensmtp.delivery._numbers import check_counts, check_numbers
from greensmtp.delivery._store import open_store
from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.handed_off import MailEnvelope
from greensmtp.errors import ArgumentError, Reject
from greensmtp.protocol.address import Address
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session.server_info import ServerInfo
from greensmtp.thread_pool import BoundedPool

logger = logging.getLogger("greensmtp")

_NO_BROKER = Reply(451, "4.4.1 The queue does not answer")
_TOO_LARGE = Reply(552, "5.3.4 The message is too large for the queue")

#: How many of gevent's ten threads one delivery may use, so that a queue that hangs leaves threads for others.
_THREADS = 4


class TaskSender(Protocol):
    """The part of a Celery application that is used here."""

    def send_task(self, name: str, **options: Any) -> Any:
        """Send a task by its name."""


class CeleryTask(Delivery):
    """Send a task for each message: ``CeleryTask("tasks.receive", broker="redis://127.0.0.1:6379/0")``.

    The client gets 250 when the broker has the task: with AMQP after its confirmation, with Redis after its reply. If
    the broker is unavailable, the reply is 451, and nothing is queued.

    :param task: the name of the task, whose base is ``MailTask``.
    :param broker: the broker's URL.
    :param queue: the queue; None: the one from the task's routing, ``celery`` by default.
    :param store: a folder for the messages that are larger than ``inline``, shared by all frontends and workers, or a
        bucket: ``s3://bucket/prefix``; None: larger messages are refused.
    :param resend: seconds after which a task is sent again for a message that no worker has finished; every message
        is then written to the store. So a task that the broker loses is sent again. None: never.
    :param inline: maximum number of bytes of a message that is part of the task.
    :param timeout: seconds to wait for the broker.
    :param connections: maximum number of tasks published at once; in a process that is not patched, at most 4.
    :param app: in Python, the Celery application to send with, instead of ``broker``.
    :raises ModuleNotFoundError: celery is not installed.
    :raises ArgumentError: an argument is invalid.
    """

    answers = True

    def __init__(
        self,
        task: str,
        *,
        broker: str | None = None,
        queue: str | None = None,
        store: str | Path | None = None,
        inline: int = 256 * 1024,
        resend: float | None = None,
        timeout: float = 10.0,
        connections: int = 10,
        app: TaskSender | None = None,
    ) -> None:
        if not task:
            raise ArgumentError("task", "expected the name of a task; got an empty one")
        if (broker is None) == (app is None):
            raise ArgumentError("broker", "or app must be given, and not both")
        if app is not None and not callable(getattr(app, "send_task", None)):
            raise ArgumentError("app", f"expected a Celery application; got {app!r}")
        check_numbers(timeout=timeout, **({} if resend is None else {"resend": resend}))
        check_counts(inline=inline, connections=connections)
        if resend is not None and store is None:
            raise ArgumentError("resend", "expected a store with it; got none")
        self.task = task
        self._resend = resend
        self._servers = 0
        self._resender: gevent.Greenlet[..., None] | None = None
        self._app: TaskSender = _make_app(str(broker), timeout, connections) if app is None else app
        self._queue = queue
        self._store = None if store is None else open_store(store)
        self._inline = inline
        self._timeout = timeout
        self._free = BoundedSemaphore(connections)
        self._pool = BoundedPool(min(connections, _THREADS))

    def __repr__(self) -> str:
        return f"<CeleryTask {self.task}>"

    def start(self, server: ServerInfo) -> None:
        """Create the folder for large messages, and remove those that no worker has fetched in a week."""
        if self._store is not None:
            self._store.start()
        self._servers += 1  # only now, since what has failed to start is not stopped
        if self._resend is not None and self._resender is None:
            self._resender = gevent.spawn(self._send_again)

    def stop(self, server: ServerInfo) -> None:
        """Stop sending tasks again, with the last server."""
        self._servers -= 1
        if not self._servers and self._resender is not None:
            self._resender.kill()
            self._resender = None

    def begin(self, envelope: Envelope) -> Transfer:
        """Collect a message."""
        return _Queued(self, envelope)

    def prepare(self, envelope: Envelope, open_message: Callable[[], BinaryIO]) -> dict[str, str]:
        """Return the content for the task: the content itself, or its place in the store, after flushing it there.

        :raises Reject: it is too large.
        """
        with open_message() as source:
            content = source.read(self._inline + 1)
        if len(content) <= self._inline and self._resend is None:
            return {"content": base64.b64encode(content).decode()}
        if self._store is None:
            text = "%s: celery: the message has more than %d bytes, and no store is set; replying 552"
            logger.warning(text, envelope.session.log_id, self._inline)
            raise Reject(_TOO_LARGE)
        return {"path": self._store.write(envelope.id, open_message)}

    def remove(self, path: str) -> None:
        """Remove a stored message that no task has."""
        assert self._store is not None
        self._store.remove(path)

    def send(self, envelope: Envelope, recipients: Sequence[Address], content: Mapping[str, str]) -> None:
        """Send the task, and wait for the broker.

        :raises Reject: the broker does not reply.
        """
        session = envelope.session
        about = MailEnvelope.of(envelope, recipients)
        arguments = [about._asdict(), dict(content)]
        try:
            self._publish(envelope.id, arguments)
        except Exception as error:  # of kombu, or of the broker's own library
            logger.warning("%s: celery: %s; replying 451", session.log_id, str(error) or type(error).__name__)
            raise Reject(_NO_BROKER) from None
        if self._resend is not None and self._store is not None:
            # Only now, so that a message that was refused to the client is not sent again.
            try:
                self._store.note(envelope.id, json.dumps(arguments))
            except OSError as error:  # the broker has the task, so it is too late to refuse
                logger.error("%s: celery: cannot note the task: %s", session.log_id, error.strerror)

    def _publish(self, identifier: str, arguments: list[Any]) -> None:
        options: dict[str, Any] = {} if self._queue is None else {"queue": self._queue}
        publish = partial(
            self._app.send_task,
            self.task,
            args=arguments,
            task_id=identifier,
            retry=False,
            ignore_result=True,
            **options,
        )
        # The thread pool's threads cannot be interrupted; they end by the timeouts of their sockets.
        with Timeout(self._timeout, TimeoutError(f"no answer within {self._timeout:g} s")):
            if is_module_patched("socket"):
                with self._free:
                    _call_in_greenlet(publish)
            else:
                self._pool.call(publish)

    def _send_again(self) -> None:
        """Send tasks again for messages that no worker has finished."""
        assert self._resend is not None
        assert self._store is not None
        while True:
            gevent.sleep(self._resend / 2)
            try:
                for text in self._store.overdue(self._resend):
                    self._send_task_again(text)
            except Exception as error:  # to be tried again at the next run
                logger.warning("celery: cannot send unfinished tasks again: %s", str(error) or type(error).__name__)

    def _send_task_again(self, text: str) -> None:
        try:
            arguments = json.loads(text)
            identifier = arguments[0]["id"]
        except (ValueError, LookupError, TypeError):  # it must not hold up the others
            logger.error("celery: cannot send again: a note in the store is malformed: %s", shown(text))
            return
        logger.warning("%s: no worker has finished it in %g s; sent again", identifier, self._resend)
        self._publish(identifier, arguments)


def _call_in_greenlet(function: Callable[[], object]) -> None:
    """Call a function in its own greenlet: it may run on after an interruption, since AMQP waits for the close."""
    greenlet = gevent.spawn(_error_of, function)
    try:
        error = greenlet.get()
    finally:
        greenlet.kill(block=False)
    if error is not None:
        raise error


def _error_of(function: Callable[[], object]) -> Exception | None:
    try:
        function()
    except Exception as error:
        return error
    return None


class _Queued(SpooledTransfer):
    """A message for which a task is sent when it is complete."""

    def __init__(self, delivery: CeleryTask, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._delivery = delivery
        self._content: dict[str, str] = {}

    def prepare(self) -> Result:
        """Store a large message."""
        self._content = self._delivery.prepare(self.envelope, self.open)
        return None

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Send the task."""
        content, self._content = self._content, {}
        # If the broker does not reply, it may still have the task, so the file must stay from here on.
        self._delivery.send(self.envelope, recipients, content)
        return None

    def discard(self) -> None:
        """Remove the stored message, if no task has been sent."""
        if "path" in self._content:
            self._delivery.remove(self._content["path"])


def _make_app(broker: str, timeout: float, connections: int) -> Any:
    try:
        from celery import Celery
    except ModuleNotFoundError:
        raise ModuleNotFoundError("CeleryTask needs celery: pip install 'greensmtp[celery]'") from None
    app = Celery("greensmtp", broker=broker, set_as_current=False)
    app.conf.update(
        broker_connection_timeout=timeout,
        broker_connection_retry=False,
        broker_transport_options={
            "confirm_publish": True,  # AMQP: wait for the broker's confirmation
            "read_timeout": timeout,  # of AMQP; the next ones are of Redis
            "write_timeout": timeout,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry_on_timeout": False,
            "max_retries": 0,
        },
        task_publish_retry=False,
        task_ignore_result=True,
    )
    try:
        if "://" not in broker:  # Celery takes it for the host of a RabbitMQ
            raise ValueError
        _ = app.connection_for_write().transport  # imports the broker's library, and does not connect
    except (ImportError, KeyError, ValueError) as error:
        # Not the text of a ValueError: it may quote the password.
        what = "" if isinstance(error, ValueError) else f": {error.args[0]}"
        raise ArgumentError("broker", f"expected a URL like 'redis://127.0.0.1:6379/0', for Celery{what}") from None
    _share_limit(app, connections)
    return app


#: The Celery applications of this process.
_apps: WeakSet[Any] = WeakSet()


def _share_limit(app: Any, connections: int) -> None:
    """Give all applications the same limit of connections: Celery has one for the process, which the last one sets.

    It cannot be lowered while connections are in use: publishing would fail.
    """
    _apps.add(app)
    limit = max(connections, *(each.conf.broker_pool_limit for each in _apps))
    for each in _apps:
        each.conf.broker_pool_limit = limit
