"""The stores that limits are counted in: memory, or a server that may be down.

The ``limits`` library is imported when a store is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakValueDictionary, finalize

from gevent import Timeout
from gevent.monkey import is_module_patched

from greensmtp.errors import ArgumentError
from greensmtp.protocol.log_text import shown
from greensmtp.thread_pool import in_thread_pool

if TYPE_CHECKING:
    from limits.storage import Storage

logger = logging.getLogger("greensmtp.limits")

Answer = TypeVar("Answer")

#: Seconds until a server that failed is tried again: the first pause, and the longest.
_FIRST_PAUSE = 1.0
_MAX_PAUSE = 30.0

#: The schemes of redis-py, which takes our timeouts.
_REDIS = frozenset({"redis", "rediss", "redis+unix"})


class Unavailable(Exception):
    """The store cannot be asked now."""


class Store:
    """A storage of the limits library.

    Memory is asked at once. A server is asked with a timeout, and in gevent's thread pool unless sockets are patched,
    so that the hub never blocks. A server that fails is not asked for a pause, which doubles each time. Then one
    question tries it again, while all others fail at once.
    """

    def __init__(
        self, storage: Storage, shown: str, timeout: float | None, secrets: frozenset[str] = frozenset()
    ) -> None:
        """
        :param shown: its name in logs, without secrets.
        :param timeout: seconds for a question; None: it is in memory.
        :param secrets: texts that no log may show.
        """
        self.storage = storage
        self.shown = shown
        self._timeout = timeout
        self._secrets = secrets
        self._down = False
        self._pause = _FIRST_PAUSE
        self._try_at = 0.0

    def ask(self, question: Callable[[str, int], Answer], key: str, cost: int) -> Answer:
        """Call ``question`` with a key and a cost, and return its answer.

        :raises Unavailable: the store cannot be asked.
        """
        if self._timeout is None:
            return question(key, cost)
        trying = self._down
        if trying:
            now = monotonic()
            if now < self._try_at:
                raise Unavailable
            self._try_at = now + self._pause
        try:
            with Timeout(self._timeout, TimeoutError(f"no answer within {self._timeout:g} s")):
                answer = self._call(partial(question, key, cost), trying)
        except Unavailable:
            raise
        except (Exception, SystemExit) as error:
            self._note_failure(error, trying)
            raise Unavailable from None
        self._note_answer()
        return answer

    def _call(self, question: Callable[[], Answer], trying: bool) -> Answer:
        if is_module_patched("socket"):
            return question()
        return in_thread_pool(self._attempt, question, trying)

    def _attempt(self, question: Callable[[], Answer], trying: bool) -> Answer:
        """Ask the question. Runs in the thread pool."""
        if self._down and not trying:
            raise Unavailable  # the server failed while this call waited for a thread
        return question()

    def _note_failure(self, error: BaseException, trying: bool) -> None:
        if trying:
            self._pause = min(self._pause * 2, _MAX_PAUSE)
        self._try_at = monotonic() + self._pause
        if not self._down:
            self._down = True
            logger.error(
                "%s cannot be asked (%s: %s); until it can, each limit lets pass or refuses as its fail_open says",
                self.shown,
                type(error).__name__,
                self._text(error),
            )

    def _text(self, error: BaseException) -> str:
        """Return an error's text without secrets: old versions of Redis quote unknown commands, passwords included."""
        text = str(error)
        return "text left out: it quotes a secret" if any(secret in text for secret in self._secrets) else shown(text)

    def _note_answer(self) -> None:
        if self._down:
            self._down = False
            self._pause = _FIRST_PAUSE
            logger.warning("%s answers again", self.shown)


_stores: WeakValueDictionary[tuple[str, str | float], Store] = WeakValueDictionary()


def open_store(uri: str, timeout: float, owner: str) -> Store:
    """Return the store of a URI: ``"memory://"``, or one of the limits library, such as ``"redis://host:6379"``.

    In memory there is one store for each owner: memory is bounded, and keys in one limit must not push out failures in
    another. On a server there is one for each URI. It is connected to when it is asked.

    :param owner: the name that limits have in common which count together.
    :raises ModuleNotFoundError: a library is missing; the text says what to install.
    :raises ValueError: the URI is invalid; the text shows no secret.
    """
    key = (uri, owner if str(uri).startswith("memory:") else timeout)
    store = _stores.get(key)
    if store is None:
        store = _stores[key] = _open(uri, timeout)
    return store


def shown_uri(uri: str) -> str:
    """Return a URI without the parts that may be secret: user, password, options.

    An ``@`` behind the host may mean that a password with a ``/``, ``?`` or ``#`` in it was not quoted: then only the
    scheme is shown.
    """
    parts = urlsplit(uri)
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"{parts.scheme}://***"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _secrets(uri: str) -> frozenset[str]:
    """Return the passwords in a URI, quoted and unquoted."""
    parts = urlsplit(uri)
    options = parse_qsl(parts.query)
    found = [parts.password or "", *(value for name, value in options if "password" in name.lower())]
    return frozenset(each for text in found for each in (text, unquote(text)) if each)


def _open(uri: str, timeout: float) -> Store:
    if "://" not in str(uri):
        # The value is not shown: it may be a URI with a password that lacks a slash.
        raise ArgumentError("storage", "takes 'memory://' or a URI like 'redis://localhost:6379', with '://' in it")
    try:
        name = shown_uri(uri)
    except ValueError:
        raise ArgumentError("storage", "is not a valid URI") from None  # and is not shown
    scheme = uri.partition("://")[0]
    import_limits()
    if scheme == "memory":
        from greensmtp.middleware.rate_limit.memory import MemoryStorage

        return Store(MemoryStorage(), name, None)
    from limits.errors import ConfigurationError
    from limits.storage import Storage, storage_from_string

    options = _redis_options(timeout) if scheme in _REDIS else {}
    try:
        storage = storage_from_string(uri, **options)
        _check_options(storage)
    # Not chained: the library's text may quote the URI, password included.
    except ConfigurationError:
        raise ArgumentError("storage", f"{name!r} is not supported by limits; pass memory:// or redis://") from None
    except Exception as error:
        kind = type(error).__name__
        text = f"{name!r} cannot be opened ({kind}): check its host, its port, and the options behind '?'"
        raise ArgumentError("storage", text) from None
    if not isinstance(storage, Storage):
        raise ArgumentError("storage", f"{name!r} is for asyncio; pass the URI without async+")
    # Twice the timeout: a question may connect, and then send a command.
    store = Store(storage, name, 2 * timeout, _secrets(uri))
    close = getattr(getattr(storage, "storage", None), "close", None)
    if callable(close):
        finalize(store, close).atexit = False  # the connections are closed with the store
    return store


def _check_options(storage: Any) -> None:
    """Make a connection of redis-py, without connecting it: it looks at the URI's options only then.

    :raises Exception: an option is unknown, or has a wrong value.
    """
    pool = getattr(getattr(storage, "storage", None), "connection_pool", None)
    if pool is not None:
        pool.connection_class(**pool.connection_kwargs)


def import_limits() -> None:
    """Import the limits library.

    :raises ModuleNotFoundError: it is missing; the text says what to install.
    """
    try:
        import limits  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("RateLimit needs limits: pip install 'greensmtp[ratelimit]'") from error


def _redis_options(timeout: float) -> dict[str, Any]:
    try:
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as RedisConnectionError
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a redis:// storage needs redis: pip install 'greensmtp[redis]'") from error
    # One retry at once, for a kept connection that the server has closed. Timeouts are not retried, and no backoff
    # sleeps: the pause is ours.
    retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    return {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": retry, "key_prefix": "greensmtp"}
