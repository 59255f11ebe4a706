"""``server.stack`` as a tuple, and its readable text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from greensmtp import Command, Reply, Session, compose, when
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Logging
from greensmtp.predicates import outside
from greensmtp.testing.fixtures import MakeServer


def tarpit(session: Session, command: Command, proceed: Proceed) -> Reply:
    return proceed(session, command)


class Limit:
    verbs: tuple[str, ...] = ("RCPT", "MAIL")

    def __init__(self, rate: str) -> None:
        self.rate = rate

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)

    def __repr__(self) -> str:
        return f"Limit(\n  {self.rate!r})"


class Plain(Limit):
    verbs = ("NOOP",)
    __repr__ = object.__repr__


def test_it_prints_as_a_numbered_list_outermost_first(smtp_server: MakeServer) -> None:
    server = smtp_server(
        start=False,
        middleware=[
            tarpit,
            compose(Limit("1/minute"), compose(Plain(""), tarpit), name="edge"),
            when(outside("10.0.0.0/8"), Limit("9/hour"), compose()),
        ],
    )
    shown = [tuple(re.split(r"(?<=\S)  +", line)) for line in str(server.stack).splitlines()]
    assert shown == [
        (f"1. {__name__}.tarpit", "every command"),
        ("2. edge", "every command"),
        ("   2.1. Limit( '1/minute')", "MAIL, RCPT"),
        ("   2.2. compose", "every command"),
        (f"      2.2.1. {__name__}.Plain", "NOOP"),
        (f"      2.2.2. {__name__}.tarpit", "every command"),
        ("3. when outside('10.0.0.0/8')", "MAIL, RCPT"),
        ("   3.1. Limit( '9/hour')", "MAIL, RCPT"),
        ("   otherwise",),
        ("   3.2. compose", "no command"),
    ]
    aligned = {
        line.index(shown[1]) for line, shown in zip(str(server.stack).splitlines(), shown, strict=True) if shown[1:]
    }
    assert len(aligned) == 1


def test_it_is_a_tuple_and_frozen_at_start(smtp_server: MakeServer) -> None:
    logging = Logging()
    server = smtp_server(middleware=[logging, tarpit])
    assert server.stack == (logging, tarpit)
    assert server.stack[0] is logging
    with pytest.raises(RuntimeError, match="frozen"):
        server.use(tarpit)
    assert str(smtp_server().stack) == "no middleware"


@pytest.mark.parametrize(
    ("middleware", "text"),
    [
        (compose(tarpit, name="edge"), f"compose({__name__}.tarpit, name='edge')"),
        (compose(), "compose()"),
        (
            when(outside("10.0.0.0/8"), tarpit, Limit("1")),
            f"when(outside('10.0.0.0/8'), {__name__}.tarpit, Limit( '1'))",
        ),
    ],
)
def test_what_is_composed_tells_what_it_is_made_of(middleware: Any, text: str) -> None:
    assert repr(middleware) == text
