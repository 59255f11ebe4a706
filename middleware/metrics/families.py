"""The metric families of Metrics, made with prometheus-client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from greensmtp.errors import ArgumentError

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

#: Seconds. Most commands take less than the first.
_COMMAND_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
_MESSAGE_BUCKETS = (0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
#: Bytes: 1 KiB to 64 MiB.
_SIZE_BUCKETS = tuple(float(1 << power) for power in range(10, 27, 2))


class Registry(Protocol):
    """The methods of a ``prometheus_client.CollectorRegistry`` that are used here."""

    def register(self, collector: Any) -> None: ...
    def unregister(self, collector: Any) -> None: ...


class MetricFamilies:
    """The metric families of one registry and namespace, made once."""

    _made: ClassVar[WeakKeyDictionary[Any, dict[str, MetricFamilies]]] = WeakKeyDictionary()

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
            "connections_open", "Open connections", (), namespace, registry=None, multiprocess_mode="livesum"
        )
        self.all.append(self.open)
        self.connections = counter("connections", "Connections")
        self.sessions = counter("sessions", "Sessions that have ended, by reason", "end")
        self.tls = counter("tls_sessions", "Sessions over TLS", "version")
        self.commands = counter("commands", "Answered commands, by reply code", "verb", "code")
        self.command_seconds = histogram("command_seconds", "Seconds from command to reply", _COMMAND_BUCKETS, "verb")
        self.messages = counter("messages", "Messages, by outcome", "outcome")
        self.message_seconds = histogram("message_seconds", "Seconds from MAIL to the last reply", _MESSAGE_BUCKETS)
        self.message_size = histogram("message_size_bytes", "Bytes of a message", _SIZE_BUCKETS)
        self.recipients = counter("recipients", "Recipients of messages, by outcome", "outcome")
        self.auth = counter("auth", "Attempts to authenticate", "mechanism", "outcome")
        self.refusals = counter("refusals", "4xx and 5xx replies, by enhanced status code", "enhanced")

    @classmethod
    def of(cls, registry: Any, namespace: str) -> MetricFamilies:
        """Return those of this registry and namespace.

        :raises ValueError: other metrics in the registry have the same names.
        """
        made = cls._made.setdefault(registry, {})
        families = made.get(namespace)
        if families is None:
            families = cls(namespace)
            registered: list[Any] = []
            try:
                for each in families.all:
                    registry.register(each)
                    registered.append(each)
            except ValueError as error:
                for each in registered:
                    registry.unregister(each)
                raise ArgumentError(
                    "namespace", f"{namespace!r} is taken by other metrics in this registry: {error}"
                ) from error
            made[namespace] = families
        return families


def check_registry(registry: Any) -> Any:
    """Return the registry; the library's own for None.

    :raises TypeError: it is not a registry.
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
