"""``compose`` and ``when``: order, verbs, errors, and DISCONNECT."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from gevent.event import Event

from greensmtp import Command, Reject, Reply, Session, SMTPServer, compose, when
from greensmtp.chain import Proceed, middleware
from greensmtp.chain.chain import Chain
from greensmtp.predicates import authenticated, over_tls
from greensmtp.protocol.esmtp import Extension
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


class Noting:
    """Records every command."""

    def __init__(self, name: str, log: list[str], *verbs: str) -> None:
        self.name = name
        self.log = log
        if verbs:
            self.verbs = verbs

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        self.log.append(f"{self.name} {command.verb}")
        return proceed(session, command)


def passing(session: Session, command: Command, proceed: Proceed) -> Reply:
    return proceed(session, command)


def failing(session: Session, command: Command, proceed: Proceed) -> Reply:
    if command.verb == "NOOP":
        raise LookupError("hunter2")
    return proceed(session, command)


def wrapped(middleware: Any) -> Any:
    """Wrap a middleware in another one, as third-party code may."""

    def wrapper(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply: Reply = middleware(session, command, proceed)
        return reply

    return wrapper


def converse(server: SMTPServer, *lines: str) -> list[str]:
    """Send EHLO, the lines and QUIT, and wait until the server has handled the end of the connection."""
    over = Event()
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        peer.hello()
        replies = []
        for line in (*lines, "QUIT"):
            peer.line(line)
            replies.append(peer.reply())
        peer.expect_end()
        assert over.wait(5)
        peer.let_it_read()
    return replies[:-1]


both_ways = pytest.mark.parametrize("held", [lambda it: it, wrapped], ids=["stacked", "wrapped"])

# compose


@both_ways
def test_members_see_their_verbs_outermost_first(smtp_server: MakeServer, held: Callable[[Any], Any]) -> None:
    log: list[str] = []
    inner = compose(Noting("b", log, "NOOP"), Noting("c", log, "noop", "RSET"), name="inner")
    together = compose(Noting("a", log, "NOOP", "QUIT"), inner)
    assert converse(smtp_server(start=False, middleware=[held(together)]), "NOOP", "RSET", "VRFY x")[0] > "250"
    assert log == ["a NOOP", "b NOOP", "c NOOP", "c RSET", "a QUIT"]


def test_the_chain_is_the_same_as_without_it() -> None:
    a, b, c = Noting("a", [], "NOOP"), Noting("b", []), Noting("c", [], "MAIL")
    terminal = Chain([]).compose("NOOP", lambda session, command: Reply(250))
    composed, plain = Chain([compose(a, compose(b, compose()), c)]), Chain([a, b, c])
    assert composed._links == plain._links
    assert set(composed.verbs) == {"NOOP", "MAIL"}
    assert Chain([compose()]).compose("NOOP", terminal) is terminal


@both_ways
def test_a_composition_of_nothing_lets_everything_pass(smtp_server: MakeServer, held: Callable[[Any], Any]) -> None:
    assert converse(smtp_server(start=False, middleware=[held(compose())]), "NOOP")[0].startswith("250")


@both_ways
def test_a_members_error_is_451_and_in_the_log_with_its_name(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, held: Callable[[Any], Any]
) -> None:
    server = smtp_server(start=False, middleware=[held(compose(passing, compose(failing)))])
    replies = converse(server, "NOOP", "RSET")
    assert [reply[:9] for reply in replies] == ["451 4.3.0", "250 2.0.0"]
    (record,) = caplog.records
    assert f"middleware {__name__}.failing raised at NOOP" in record.getMessage()


def test_verbs_and_extensions_are_those_of_all_members() -> None:
    one = Extension("X-ONE", room={"MAIL": 9})
    a, b = Noting("a", [], "mail"), Noting("b", [], "RCPT")
    a.extensions = b.extensions = (one,)  # type: ignore[attr-defined]
    for together in (compose(a, b), when(over_tls, a, b), compose(when(over_tls, a), compose(b))):
        assert set(together.verbs or ()) == {"MAIL", "RCPT"}
        assert together.extensions == (one,)  # once, or it would add to the line twice
    assert compose(a, passing).verbs is None
    assert compose().verbs == frozenset()


def test_an_extension_within_a_composition_is_accepted_by_the_server(smtp_server: MakeServer) -> None:
    note = Noting("a", [], "NOOP")
    note.extensions = (Extension("X-ONE", mail=frozenset({"X-ONE"})),)  # type: ignore[attr-defined]
    server = smtp_server(start=False, middleware=[when(lambda session: False, compose(note))])
    assert converse(server, "MAIL FROM:<a@example.org> X-ONE=1")[0].startswith("250")


def test_members_are_told_of_start_and_stop() -> None:
    told: list[str] = []

    class Lively(Noting):
        def start(self, server: Any) -> None:
            told.append(f"start {self.name}")
            if self.name == "bad":
                raise OSError("no")

        def stop(self, server: Any) -> None:
            told.append(f"stop {self.name}")

    a, b = Lively("a", []), Lively("b", [])
    for together in (compose(a, passing, compose(b)), when(over_tls, a, b)):
        together.start(None)
        together.stop(None)
        assert told == ["start a", "start b", "stop b", "stop a"]
        told.clear()
    with pytest.raises(OSError, match="no"):
        compose(a, Lively("bad", []), b).start(None)
    assert told == ["start a", "start bad", "stop a"]


# when


def greeted_as(name: str) -> Callable[[Session], bool]:
    return lambda session: session.hostname == name


@both_ways
def test_one_side_or_the_other_sees_a_command(smtp_server: MakeServer, held: Callable[[Any], Any]) -> None:
    log: list[str] = []
    known = when(greeted_as("me"), Noting("then", log, "NOOP", "RSET"), Noting("else", log, "NOOP"))
    server = smtp_server(start=False, middleware=[held(known), Noting("inside", log, "NOOP")])
    converse(server, "NOOP", "RSET", "EHLO me", "NOOP", "RSET")
    assert log == ["else NOOP", "inside NOOP", "then NOOP", "inside NOOP", "then RSET"]


def test_the_predicate_is_asked_at_every_command_that_is_wanted_and_at_no_other(smtp_server: MakeServer) -> None:
    asked: list[Session] = []

    def ask(session: Session) -> bool:
        asked.append(session)
        return len(asked) == 2

    log: list[str] = []
    server = smtp_server(start=False, middleware=[when(ask, Noting("it", log, "NOOP"))])
    converse(server, "NOOP", "RSET", "NOOP", "VRFY x", "NOOP")
    assert len(asked) == 3
    assert log == ["it NOOP"]


@both_ways
def test_a_predicate_that_raises_is_451_and_in_the_log_with_its_name(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, held: Callable[[Any], Any]
) -> None:
    def unsure(session: Session) -> bool:
        raise LookupError("hunter2")

    log: list[str] = []
    both = when(unsure, Noting("then", log, "NOOP"), Noting("else", log, "NOOP"))
    greeted = when(lambda session: session.hostname is not None, both)  # a wrapper sees every command
    server = smtp_server(start=False, middleware=[held(when(lambda session: True, greeted))])
    replies = converse(server, "NOOP")
    assert replies[0].startswith("451 4.3.0")
    assert "hunter2" not in replies[0]
    assert not log
    assert "unsure raised at NOOP" in caplog.records[0].getMessage()
    assert caplog.records[0].levelno == logging.ERROR


def test_a_combined_predicate_that_raises_is_named_as_it_is_combined(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def unsure(session: Session) -> bool:
        raise LookupError

    server = smtp_server(start=False, middleware=[when(~authenticated & unsure, Noting("it", [], "NOOP"))])
    assert converse(server, "NOOP")[0].startswith("451")
    assert f"predicate (~authenticated & {__name__}." in caplog.records[0].getMessage()


def test_a_predicate_may_reject(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def no(session: Session) -> bool:
        raise Reject(550, "5.7.1 no")

    server = smtp_server(start=False, middleware=[when(no, Noting("it", [], "NOOP"))])
    assert converse(server, "NOOP") == ["550 5.7.1 no"]
    assert not caplog.records


def test_the_error_of_what_applies_is_in_the_log_with_its_own_name(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False, middleware=[when(lambda session: True, compose(failing))])
    assert converse(server, "NOOP")[0].startswith("451")
    (record,) = caplog.records
    assert f"middleware {__name__}.failing raised" in record.getMessage()


# Whose end is seen


class Counting:
    """Counts open connections."""

    verbs: tuple[str, ...] | None = ("CONNECT", "DISCONNECT")

    def __init__(self) -> None:
        self.open = 0
        self.highest = 0

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "CONNECT":
            self.open += 1
            self.highest = max(self.open, self.highest)
        elif command.verb == "DISCONNECT":
            self.open -= 1
        return proceed(session, command)


class CountingAll(Counting):
    verbs = None


@pytest.mark.parametrize("kind", [Counting, CountingAll])
@pytest.mark.parametrize("nested", [lambda it: it, lambda it: when(lambda session: True, compose(it))])
@pytest.mark.parametrize("at_first", [True, False])
def test_a_branch_that_saw_the_beginning_sees_the_end_whatever_has_changed(
    smtp_server: MakeServer, kind: type[Counting], nested: Callable[[Any], Any], at_first: bool
) -> None:
    def changing(session: Session) -> bool:
        return (session.hostname is None) == at_first

    then, otherwise = kind(), kind()
    server = smtp_server(start=False, middleware=[when(changing, nested(then), nested(otherwise))])
    for _ in range(2):
        converse(server, "NOOP")
    seen, other = (then, otherwise) if at_first else (otherwise, then)
    assert (seen.open, seen.highest) == (0, 1)
    assert (other.open, other.highest) == (0, 0)


def test_a_branch_without_the_beginning_sees_the_end_if_it_saw_a_command(smtp_server: MakeServer) -> None:
    log: list[str] = []
    then, otherwise = Noting("then", log, "NOOP", "DISCONNECT"), Noting("else", log, "RSET", "DISCONNECT")
    server = smtp_server(start=False, middleware=[when(greeted_as("me"), then, otherwise)])
    converse(server, "EHLO me", "NOOP")
    assert log == ["then NOOP", "then DISCONNECT"]
    log.clear()
    converse(server, "VRFY x")
    assert log == []
    converse(server, "RSET", "EHLO me", "NOOP")
    assert log == ["else RSET", "then NOOP", "then DISCONNECT", "else DISCONNECT"]


@pytest.mark.parametrize("applies", [True, False])
def test_a_branch_that_wants_only_the_end_sees_it_if_the_predicate_is_true(
    smtp_server: MakeServer, applies: bool
) -> None:
    log: list[str] = []
    end = when(greeted_as("me"), Noting("then", log, "DISCONNECT"), Noting("else", log, "NOOP", "DISCONNECT"))
    server = smtp_server(start=False, middleware=[end])
    converse(server, "EHLO me" if applies else "RSET")
    assert log == ["then DISCONNECT"] * applies


@pytest.mark.parametrize("error", [LookupError(), Reject()])
def test_the_end_passes_a_predicate_that_raises(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def unsure(session: Session) -> bool:
        raise error

    log: list[str] = []
    last = Noting("last", log, "DISCONNECT")
    server = smtp_server(start=False, middleware=[when(unsure, Noting("it", log, "DISCONNECT")), last])
    converse(server)
    assert log == ["last DISCONNECT"]
    assert len(caplog.records) == isinstance(error, LookupError)


def test_no_branch_sees_the_end_if_the_beginning_failed(smtp_server: MakeServer) -> None:
    def unsure(session: Session) -> bool:
        raise LookupError

    count = Counting()
    over = Event()
    server = smtp_server(start=False, middleware=[when(unsure, count, count)])
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        peer.expect("421")
        peer.expect_end()
        peer.close()
        assert over.wait(5)
    assert (count.open, count.highest) == (0, 0)


# What they take


def generating(session: Session, command: Command, proceed: Proceed) -> Any:
    yield proceed(session, command)


async def waiting(session: Session, command: Command, proceed: Proceed) -> Reply:
    return proceed(session, command)


class WaitingInstance:
    async def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)


def on_recipient(session: Session, address: str, ack: Any) -> None: ...


def on_message(session: Session, ack: Any) -> None: ...


USED_UP = Noting("x", [])
USED_UP.verbs = iter(("NOOP",))  # type: ignore[assignment]
NUMBERS = Noting("x", [])
NUMBERS.verbs = (1, 2)  # type: ignore[assignment]

WRONG = [
    (generating, r"\(session, command, proceed\) -> Reply.*generating has a yield.*return Reply instead"),
    (waiting, r"\(session, command, proceed\) -> Reply.*waiting is an async def.*wait with gevent"),
    (WaitingInstance(), r"WaitingInstance is an async def"),
    (on_recipient, r"as a handler of the signal 'from' or 'to' does: connect it with server\.on.*on_recipient\)"),
    (on_message, r"a handler of the signal 'connect' or 'received'"),
    (Noting, r"write Noting\(\.\.\.\), not Noting"),
    (None, r"\(session, command, proceed\) -> Reply; None"),
    (lambda session, command: None, r"takes \(session, command\)"),
    (USED_UP, r"verbs of .*\.Noting must be a tuple of str"),
    (NUMBERS, r"verbs of .* not \(1, 2\)"),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
@pytest.mark.parametrize(
    "give",
    [
        compose,
        lambda it: compose(passing, it),
        lambda it: when(over_tls, it),
        lambda it: SMTPServer("127.0.0.1:0").use(it),
    ],
    ids=["compose", "second", "when", "use"],
)
def test_what_is_no_middleware_is_refused_where_it_is_given(give: Callable[[Any], Any], given: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        give(given)


def test_a_parameter_that_is_called_ack_by_chance_is_fine() -> None:
    def passing_on(session: Session, command: Command, proceed: Proceed, ack: bool = True) -> Reply:
        return proceed(session, command)

    compose(passing_on)


def test_what_is_no_middleware_otherwise_is_refused_too() -> None:
    with pytest.raises(TypeError, match=r"has a yield"):
        when(over_tls, passing, generating)


async def later(session: Session) -> bool:
    return True


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (passing, r"a predicate is called as \(session\) -> bool; .*passing takes \(session"),
        (later, r"later is an async def"),
        ("inside 10.0.0.0/8", r"cannot be called"),
        (True, r"cannot be called"),
    ],
)
def test_what_is_no_predicate_is_refused(given: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        when(given, passing)
    if given is not passing:
        with pytest.raises(TypeError, match=text):
            over_tls & given


def test_a_function_gets_its_verbs_by_a_decorator(smtp_server: MakeServer) -> None:
    seen: list[str] = []

    @middleware(verbs=("noop", "RSET"))
    def note(session: Session, command: Command, proceed: Proceed) -> Reply:
        seen.append(command.verb)
        return proceed(session, command)

    with dial(smtp_server(middleware=[note])) as peer:
        peer.hello()
        peer.line("NOOP")
        peer.expect("250")
        peer.line("VRFY jo")
        peer.expect("252")
    assert seen == ["NOOP"]


@pytest.mark.parametrize("verbs", ["MAIL", [1], None])
def test_the_decorator_refuses_what_are_no_verbs(verbs: Any) -> None:
    with pytest.raises(TypeError):
        middleware(verbs=verbs)(passing)


def test_the_decorator_refuses_what_is_no_middleware() -> None:
    without_proceed: Any = lambda session, command: Reply(250)  # noqa: E731
    with pytest.raises(TypeError, match="session, command, proceed"):
        middleware(verbs=("MAIL",))(without_proceed)


def test_when_composes_once_for_each_verb(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[str | None] = []
    compose_chain = Chain.compose

    def counted(chain: Chain, verb: str | None, terminal: Proceed) -> Proceed:
        composed.append(verb)
        return compose_chain(chain, verb, terminal)

    monkeypatch.setattr(Chain, "compose", counted)

    def outer(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)

    with dial(smtp_server(middleware=[outer, when(lambda session: True, compose(outer, outer))])) as peer:
        peer.hello()
        peer.line("NOOP")
        peer.expect("250")
        before = len(composed)
        for _ in range(5):
            peer.line("NOOP")
            peer.expect("250")
        assert len(composed) == before
        peer.line("MADEUP1")
        peer.expect("500")
        before = len(composed)
        peer.line("MADEUP2")
        peer.expect("500")
        assert len(composed) == before
