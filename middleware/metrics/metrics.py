"""Metrics: counts of connections, sessions, commands, messages and refusals, for Prometheus."""

from __future__ import annotations

import os
import re
from typing import Any

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError
from greensmtp.http_listener import HTTPListener
from greensmtp.middleware.metrics.families import MetricFamilies, Registry, check_registry
from greensmtp.middleware.metrics.http import SEVERAL_PROCESSES, metrics_app, parse_address
from greensmtp.middleware.metrics.recorder import Recorder
from greensmtp.protocol.command import Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

_NAMESPACE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Metrics:
    """Counts connections, commands and messages. Stack it outermost, so that it sees the replies of other middleware.

    The metrics are in families.py. Connections that are refused at ACCEPT are counted, including those beyond
    ``max_connections``. Needs prometheus-client: ``pip install 'greensmtp[metrics]'``.

    :param registry: a ``prometheus_client.CollectorRegistry``. Default: the library's own, which has metrics of the
        process as well. Several Metrics with one registry and namespace count together.
    :param namespace: the prefix of the names, followed by an underscore.
    :param listen: ``"127.0.0.1:9100"``: serve the metrics at ``http://127.0.0.1:9100/metrics``, from the start of the
        first server that uses them to the stop of the last. Every client that can connect may read them.
    :raises ValueError, TypeError: an argument is invalid; the text says what is expected.
    :raises ModuleNotFoundError: prometheus-client is missing; the text says how to install it.
    """

    def __init__(
        self,
        registry: Registry | None = None,
        namespace: str = "greensmtp",
        listen: str | tuple[str, int] | None = None,
    ) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ArgumentError(
                "namespace", f"takes letters, digits and underscores, like 'greensmtp', not {namespace!r}"
            )
        self._listen = None if listen is None else parse_address(listen)
        #: The registry of the metrics.
        self.registry = check_registry(registry)
        self._namespace = namespace
        self._servers: dict[Any, HTTPListener] = {}
        self._recorder = Recorder(MetricFamilies.of(self.registry, namespace))
        self._by_verb = self._recorder.by_verb

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Count the command, and pass it on."""
        record = self._by_verb.get(command.verb) or self._recorder.learn(command.verb)
        return record(session, command, proceed)

    def __repr__(self) -> str:
        where = "" if self._listen is None else f", listen={_shown(self._listen)!r}"
        return f"Metrics(namespace={self._namespace!r}{where})"

    # The listener

    @property
    def address(self) -> tuple[str, int] | None:
        """The address that ``/metrics`` is served at, with the real port for port 0; None if it is not served now."""
        return next((listener.address for listener in self._servers.values()), None)

    def start(self, server: Any) -> None:
        """Open the listener when a server starts.

        :raises OSError: the address of ``listen`` cannot be bound.
        """
        if self._listen is not None:
            routes = {"/metrics": metrics_app(self.registry)}
            # Each process serves the numbers of all, so any of them may answer.
            several = SEVERAL_PROCESSES in os.environ
            host, port = self._listen[0], self._listen[1] if self.address is None else self.address[1]
            self._servers[server] = HTTPListener.use(self, host, port, routes, reuse_port=several)

    def stop(self, server: Any) -> None:
        """Close the listener when the last server has stopped."""
        listener = self._servers.pop(server, None)
        if listener is not None and listener not in self._servers.values():
            listener.leave(self)


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
