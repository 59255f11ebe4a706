"""The numbers of Metrics, in prometheus-client's terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from greensmtp.errors import ArgumentError

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

#: Seconds. Most commands are answered within the first.
_COMMAND_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
_MESSAGE_BUCKETS = (0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
#: Octets: 1 KiB to 64 MiB.
_SIZE_BUCKETS = tuple(float(1 << power) for power in range(10, 27, 2))


class Registry(Protocol):
    """A ``prometheus_client.CollectorRegistry``, as far as this needs it."""

    def register(self, collector: Any) -> None: ...
    def unregister(self, collector: Any) -> None: ...


class Numbers:
    """The metrics of one registry and namespace, made once."""

    _made: ClassVar[WeakKeyDictionary[Any, dict[str, Numbers]]] = WeakKeyDictionary()

    def __init__(self, namespace: str) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.all: list[Any] = []

        def counter(name: str, text: str, *labels: str) -> Counter:
            self.all.append(Counter(name, text, labels, namespace, registry=None))
            return self.all[-1]  # type: ignore[no-any-return]

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            self.all.append(Histogram(name, text, labels, namespace, registry=None, buckets=buckets))
            return self.all[-1]  # type: ignore[no-any-return]

        self.open: Gauge = Gauge(
            "connections_open", "Connections now", (), namespace, registry=None, multiprocess_mode="livesum"
        )
        self.all.append(self.open)
        self.connections = counter("connections", "Connections")
        self.sessions = counter("sessions", "Sessions that are over, by their end", "end")
        self.tls = counter("tls_sessions", "Sessions over TLS", "version")
        self.commands = counter("commands", "Answered commands, by the reply's code", "verb", "code")
        self.command_seconds = histogram("command_seconds", "Time to a command's reply", _COMMAND_BUCKETS, "verb")
        self.messages = counter("messages", "Messages, by what became of them", "outcome")
        self.message_seconds = histogram("message_seconds", "Time from MAIL to the last reply", _MESSAGE_BUCKETS)
        self.message_size = histogram("message_size_bytes", "Octets in a message", _SIZE_BUCKETS)
        self.recipients = counter("recipients", "Recipients of messages, by what became of them", "outcome")
        self.auth = counter("auth", "Attempts to authenticate", "mechanism", "outcome")
        self.refusals = counter("refusals", "4xx and 5xx replies, by enhanced status code", "enhanced")

    @classmethod
    def of(cls, registry: Any, namespace: str) -> Numbers:
        """Those of this registry and namespace."""
        made = cls._made.setdefault(registry, {})
        numbers = made.get(namespace)
        if numbers is None:
            numbers = cls(namespace)
            registered: list[Any] = []
            try:
                for each in numbers.all:
                    registry.register(each)
                    registered.append(each)
            except ValueError as error:
                for each in registered:
                    registry.unregister(each)
                raise ArgumentError(
                    "namespace", f"{namespace!r} has been taken in this registry by somebody else: {error}"
                ) from error
            made[namespace] = numbers
        return numbers


class Codes(dict[int, Callable[[], None]]):
    """code -> what counts it, for one verb; looked up in the library once each."""

    def __init__(self, commands: Counter, verb: str) -> None:
        self._commands = commands
        self._verb = verb

    def __missing__(self, code: int) -> Callable[[], None]:
        count = self[code] = self._commands.labels(self._verb, str(code)).inc
        return count


def check_registry(registry: Any) -> Any:
    """The registry, or the library's own.

    :raises TypeError: it is something else.
    :raises ModuleNotFoundError: the library is missing.
    """
    try:
        from prometheus_client import REGISTRY, CollectorRegistry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Metrics needs prometheus-client: pip install 'greensmtp[metrics]'", name=error.name
        ) from error
    if registry is None:
        return REGISTRY
    if not isinstance(registry, CollectorRegistry):
        raise TypeError(f"registry takes a prometheus_client.CollectorRegistry, or None, not {registry!r}")
    return registry
