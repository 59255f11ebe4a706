"""The warning about handlers that are connected weakly and would vanish at once."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from greensmtp import Ack, Address, Session, signals
from greensmtp.signals import Signal, Signals
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


def at_module_level(session: Session, address: Address, ack: Ack) -> None: ...


class Policy:
    """Has handlers of several kinds."""

    def check(self, session: Session, address: Address, ack: Ack) -> None: ...

    def __call__(self, session: Session, address: Address, ack: Ack) -> None: ...

    @staticmethod
    def static(session: Session, address: Address, ack: Ack) -> None: ...

    @classmethod
    def of_class(cls, session: Session, address: Address, ack: Ack) -> None: ...


HELD = Policy()


def nested(to: Signal) -> None:
    def handler(session: Session, address: Address, ack: Ack) -> None: ...

    to.connect(handler)


def decorated(to: Signal) -> None:
    @to.connect
    def handler(session: Session, address: Address, ack: Ack) -> None: ...


def via_weakly(to: Signal) -> None:
    @to.connect_via(HELD, weak=True)
    def handler(session: Session, address: Address, ack: Ack) -> None: ...


def via(to: Signal) -> None:
    @to.connect_via(HELD)
    def handler(session: Session, address: Address, ack: Ack) -> None: ...


def for_a_while(to: Signal) -> None:
    with to.connected_to(lambda session, address, ack: None):
        pass


VANISH: dict[str, Callable[[Signal], Any]] = {
    "lambda": lambda to: to.connect(lambda session, address, ack: None),
    "nested function": nested,
    "decorated nested function": decorated,
    "partial": lambda to: to.connect(functools.partial(at_module_level)),
    "method of a temporary": lambda to: to.connect(Policy().check),
    "temporary": lambda to: to.connect(Policy()),
    "for one sender": lambda to: to.connect(lambda session, address, ack: None, sender=HELD),
    "connect_via weakly": via_weakly,
}
STAY: dict[str, Callable[[Signal], Any]] = {
    "function of a module": lambda to: to.connect(at_module_level),
    "method": lambda to: to.connect(HELD.check),
    "instance": lambda to: to.connect(HELD),
    "static method": lambda to: to.connect(Policy.static),
    "class method": lambda to: to.connect(Policy.of_class),
    "lambda, strongly": lambda to: to.connect(lambda session, address, ack: None, weak=False),
    "connect_via": via,
    "connected_to": for_a_while,
}


@pytest.fixture(params=["process", "server"])
def to(request: pytest.FixtureRequest) -> Iterator[Signal]:
    """Yield a signal; disconnect the handlers at the end."""
    signal = signals.to if request.param == "process" else Signals().to
    yield signal
    for receiver in list(signal.receivers_for(HELD)):
        signal.disconnect(receiver)


@pytest.mark.parametrize("what", VANISH)
def test_one_that_would_vanish_is_warned_about_where_it_is_connected(to: Signal, what: str) -> None:
    with pytest.warns(RuntimeWarning, match=r"is connected weakly.*connect it with on\('to', \.\.\.\)") as caught:
        VANISH[what](to)
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.parametrize("what", STAY)
def test_one_that_stays_is_not_warned_about(to: Signal, what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        STAY[what](to)


@pytest.mark.parametrize("how", ["decorator", "plain call"])
def test_signals_on_connects_strongly_for_every_server(smtp_server: MakeServer, how: str) -> None:
    if how == "decorator":

        @signals.on("to")
        def refuse(session: Session, address: Address, ack: Ack) -> None:
            ack.reject(550, "5.7.1 nobody")

        connected: Any = refuse
        del refuse
    else:
        connected = signals.on("to", lambda session, address, ack: ack.reject(550, "5.7.1 nobody"))
    try:
        with dial(smtp_server(start=False)) as peer:
            peer.hello()
            peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
            peer.expect("250", "550 5.7.1 nobody")
    finally:
        signals.to.disconnect(connected)


def test_signals_on_refuses_what_server_on_refuses() -> None:
    with pytest.raises(ValueError, match="did you mean 'to'"):
        signals.on(cast(Any, "too"))
    with pytest.raises(TypeError, match="is called as"):
        signals.on("to", cast(Any, lambda session: None))
