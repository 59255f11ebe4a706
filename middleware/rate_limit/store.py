"""Where limits are counted: in memory, or on a server, which may be down.

Imports the ``limits`` library when a store is opened.
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

#: Seconds until a server that could not be asked is tried again, at first and at last.
_FIRST_PAUSE = 1.0
_LAST_PAUSE = 30.0

#: The URIs that redis-py serves, and so the ones that its time-outs can be given to.
_REDIS = frozenset({"redis", "rediss", "redis+unix"})


class Unavailable(Exception):
    """The store cannot be asked just now."""


class Store:
    """A storage of the limits library.

    In memory it is asked right away. On a server it is asked within a time-out, in gevent's thread pool unless sockets
    are patched, so that the hub never waits. When it fails it is left alone for a while, longer each time; then one
    question tries it, while all others are told at once that it is not available.
    """

    def __init__(
        self, storage: Storage, shown: str, timeout: float | None, secrets: frozenset[str] = frozenset()
    ) -> None:
        """
        :param shown: what it is called in a log: no secrets.
        :param timeout: seconds for a question; None: it is in memory, and does not wait.
        :param secrets: what no log may show.
        """
        self.storage = storage
        self.shown = shown
        self._timeout = timeout
        self._secrets = secrets
        self._down = False
        self._pause = _FIRST_PAUSE
        self._try_at = 0.0

    def ask(self, question: Callable[[str, int], Answer], key: str, cost: int) -> Answer:
        """Call ``question``, which asks the storage something about a key.

        :raises Unavailable: it cannot be asked.
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
            self._has_failed(error, trying)
            raise Unavailable from None
        self._has_answered()
        return answer

    def _call(self, question: Callable[[], Answer], trying: bool) -> Answer:
        if is_module_patched("socket"):
            return question()
        return in_thread_pool(self._attempt, question, trying)

    def _attempt(self, question: Callable[[], Answer], trying: bool) -> Answer:
        """Runs in the thread pool."""
        if self._down and not trying:
            raise Unavailable  # it had to wait for a thread, and need not find out once more
        return question()

    def _has_failed(self, error: BaseException, trying: bool) -> None:
        if trying:
            self._pause = min(self._pause * 2, _LAST_PAUSE)
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
        """What an error says; old versions of Redis quote the command that they do not know, password and all."""
        text = str(error)
        return "its text quotes a secret" if any(secret in text for secret in self._secrets) else shown(text)

    def _has_answered(self) -> None:
        if self._down:
            self._down = False
            self._pause = _FIRST_PAUSE
            logger.warning("%s answers again", self.shown)


_stores: WeakValueDictionary[tuple[str, str | float], Store] = WeakValueDictionary()


def open_store(uri: str, timeout: float, owner: str) -> Store:
    """The store of this URI: ``"memory://"``, or a storage that the limits library knows: ``"redis://host:6379"``.

    In memory one for each owner: what is kept is bounded, and nobody shall have his failures forgotten by filling up
    another limit with keys. On a server one for each URI. A server is not connected to before it is asked.

    :param owner: the name of a limit, which those that count together have in common.
    :raises ModuleNotFoundError: a library is missing; the text says what to install.
    :raises ValueError: not such a URI.
    """
    key = (uri, owner if str(uri).startswith("memory:") else timeout)
    store = _stores.get(key)
    if store is None:
        store = _stores[key] = _open(uri, timeout)
    return store


def shown_uri(uri: str) -> str:
    """Return a URI without what may be secret in it: user, password, options.

    An ``@`` behind the host may mean that a password with a ``/``, ``?`` or ``#`` in it was not quoted: then only the
    scheme is shown.
    """
    parts = urlsplit(uri)
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"{parts.scheme}://***"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _secrets(uri: str) -> frozenset[str]:
    """The passwords in a URI, as they stand there and as they are sent."""
    parts = urlsplit(uri)
    options = parse_qsl(parts.query)
    found = [parts.password or "", *(value for name, value in options if "password" in name.lower())]
    return frozenset(each for text in found for each in (text, unquote(text)) if each)


def _open(uri: str, timeout: float) -> Store:
    if "://" not in str(uri):
        # What was given is not shown: it may be a URI with a password that lacks a slash.
        raise ArgumentError("storage", "takes 'memory://' or a URI like 'redis://localhost:6379', with '://' in it")
    try:
        name = shown_uri(uri)
    except ValueError:
        raise ArgumentError("storage", "is not a URI that can be read") from None  # nor one to be shown
    scheme = uri.partition("://")[0]
    import_limits()
    if scheme == "memory":
        from greensmtp.middleware.rate_limit.memory import MemoryStorage

        return Store(MemoryStorage(), name, None)
    from limits.errors import ConfigurationError
    from limits.storage import Storage, storage_from_string

    try:
        storage = storage_from_string(uri, **(_redis_options(timeout) if scheme in _REDIS else {}))
    # Not chained: the library's text may quote the URI, password and all.
    except ConfigurationError:
        raise ArgumentError(
            "storage", f"{name!r} is not one that limits can open; it takes memory:// or redis://"
        ) from None
    except ValueError:
        raise ArgumentError("storage", f"{name!r} is not a URI that its library can read") from None
    if not isinstance(storage, Storage):
        raise ArgumentError("storage", f"{name!r} is for asyncio; take the URI without async+")
    # A connection and a command have the time-out each.
    store = Store(storage, name, 2 * timeout, _secrets(uri))
    close = getattr(getattr(storage, "storage", None), "close", None)
    if callable(close):
        finalize(store, close).atexit = False  # with the store go its connections
    return store


def import_limits() -> Any:
    """The limits library.

    :raises ModuleNotFoundError: it is missing; the text says what to install.
    """
    try:
        import limits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("RateLimit needs limits: pip install 'greensmtp[ratelimit]'") from error
    return limits


def _redis_options(timeout: float) -> dict[str, Any]:
    try:
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as RedisConnectionError
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a redis:// storage needs redis: pip install 'greensmtp[redis]'") from error
    # Once more at once, for a kept connection that the server has closed meanwhile; what takes too long is not
    # tried again, and nothing sleeps in between: the pause is ours.
    retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    return {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": retry, "key_prefix": "greensmtp"}
