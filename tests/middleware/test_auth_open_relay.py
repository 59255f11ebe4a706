"""Auth without a policy that requires it: the log warns when the server starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import SMTPServer, compose, when
from greensmtp.middleware import AccessList, Auth, Chaos, Logging, Metrics, RateLimit, Tarpit
from greensmtp.predicates import over_tls
from greensmtp.signals import shared

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer

USERS = {"beep": "boop"}
WARNING = "auth: nothing decides which recipients a client may send to"


def accept(session: Any, ack: Any, **fields: Any) -> None:
    ack.accept()


def policy(session: Any, command: Any, proceed: Any) -> Any:
    return proceed(session, command)


class AtRcpt:
    verbs = ("RCPT",)

    def __call__(self, session: Any, command: Any, proceed: Any) -> Any:
        return proceed(session, command)


class AtQuit(AtRcpt):
    verbs = ("QUIT",)


class AtQuitWithMembers(AtQuit):
    """A middleware with an attribute of the name that ``compose`` and ``when`` use."""

    def __init__(self, members: Any) -> None:
        self.members = members


class Quiet(Logging):
    """A subclass of Logging."""


class Stamp(Logging):
    def __call__(self, session: Any, command: Any, proceed: Any) -> Any:
        return super().__call__(session, command, proceed)


class Users(Auth):
    def __init__(self, **options: Any) -> None:
        super().__init__(USERS, **options)


def test_the_log_warns_once_for_each_start(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server(start=False, middleware=[Auth(USERS)])
    assert caplog.text == ""
    for number in (1, 2):
        server.start()
        assert caplog.text.count(WARNING) == number
        server.stop()
    (record, _) = (each for each in caplog.records if WARNING in each.getMessage())
    assert (record.levelname, record.name) == ("WARNING", "greensmtp")
    assert "required=True" in record.getMessage()


@pytest.mark.parametrize(
    "stack",
    [
        lambda: [Logging(), RateLimit("100/minute"), RateLimit("9/minute", on="recipients"), Tarpit(), Auth(USERS)],
        lambda: [Metrics(), Chaos("RCPT", probability=0.0), Auth(USERS)],
        lambda: [compose(Logging(), Auth(USERS))],
        lambda: [when(over_tls, Auth(USERS))],
        lambda: [AtQuit(), Auth(USERS)],
        lambda: [AtQuitWithMembers(["ann@example.com"]), Auth(USERS)],
        lambda: [AtQuitWithMembers(3), Auth(USERS)],
        lambda: [Quiet(), Auth(USERS)],
        lambda: [Users()],
        lambda: [AccessList(deny=["192.0.2.0/24"]), Auth(USERS)],
    ],
)
def test_what_decides_nothing_is_no_policy(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, stack: Callable[[], Any]
) -> None:
    server = smtp_server(start=False, middleware=stack())
    for name in ("message", "received", "auth", "greeting", "connect"):
        server.on(name, accept)
    server.start()
    assert caplog.text.count(WARNING) == 1


@pytest.mark.parametrize(
    "stack",
    [
        lambda: [Auth(USERS, required=True)],
        lambda: [Auth(USERS), AtRcpt()],
        lambda: [policy, Auth(USERS)],
        lambda: [Stamp(), Auth(USERS)],
        lambda: [Users(required=True)],
        lambda: [compose(Auth(USERS), AtRcpt())],
        lambda: [when(over_tls, Auth(USERS), otherwise=AtRcpt())],
        lambda: [AccessList(allow=["127.0.0.0/8"]), Auth(USERS)],
    ],
)
def test_a_middleware_that_may_refuse_recipients_is_a_policy(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, stack: Callable[[], Any]
) -> None:
    smtp_server(middleware=stack())
    assert WARNING not in caplog.text


@pytest.mark.parametrize("name", ["to", "from", "command"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_handler_of_recipients_is_a_policy(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any, everywhere: bool
) -> None:
    server: SMTPServer = smtp_server(start=False, middleware=[Auth(USERS)])
    (shared if everywhere else server.signals).on(name, accept)
    try:
        server.start()
    finally:
        shared.named(name).disconnect(accept)
    assert WARNING not in caplog.text
