"""The contract of deliveries: two phases, per-recipient results, what is refused is delivered nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event

from greensmtp import Ack, Command, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery import Deliveries, Delivery, Envelope, Result, Route, SpooledTransfer
from greensmtp.protocol.address import Address
from greensmtp.session.ack_state import HandlerTimeout
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer


class Box(Delivery):
    """Keeps messages in a list, and does in each step what a test asks for."""

    def __init__(self, name: str = "box", *, answers: bool = False, per_recipient: bool = False) -> None:
        self.name = name
        self.answers = answers
        self.per_recipient = per_recipient
        self.steps: list[str] = []
        self.stored: list[tuple[list[str], bytes]] = []
        self.do: dict[str, Callable[[], Any]] = {}

    def step(self, name: str) -> Any:
        self.steps.append(name)
        return self.do.get(name, lambda: None)()

    def begin(self, envelope: Envelope) -> InBox:
        self.step("begin")
        return InBox(self, envelope)


class InBox(SpooledTransfer):
    def __init__(self, box: Box, envelope: Envelope) -> None:
        super().__init__(envelope)
        self.box = box

    def write(self, data: bytes, /) -> None:
        self.box.do.get("write", lambda: None)()
        super().write(data)

    def prepare(self) -> Result:
        self.content = self.open().read()
        result: Result = self.box.step("prepare")
        return result

    def commit(self, recipients: Sequence[Address]) -> Result:
        result: Result = self.box.step("commit")
        self.box.stored.append(([*map(str, recipients)], self.content))
        return result

    def discard(self) -> None:
        self.box.step("discard")


class AskingBox(Box):
    def mail(self, session: Session, sender: Address) -> Reply | None:
        reply: Reply | None = self.step(f"mail {sender}")
        return reply

    def rcpt(self, session: Session, recipient: Address) -> Reply | None:
        reply: Reply | None = self.step(f"rcpt {recipient}")
        return reply

    def reset(self, session: Session) -> None:
        self.step("reset")

    def start(self, server: Any) -> None:
        self.step("start")

    def stop(self, server: Any) -> None:
        self.step("stop")


def refuse(code: int = 550, text: str = "5.7.1 no") -> Callable[[], Any]:
    def raise_it() -> None:
        raise Reject(code, text)

    return raise_it


def fail() -> None:
    raise OSError(28, "no space")


def message(peer: Peer, *recipients: str) -> str:
    """Send a message over SMTP; return the last reply."""
    peer.line("MAIL FROM:<ann@a.example>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA")
    peer.expect("250", *["250"] * len(recipients), "354")
    peer.line("Subject: Tea", ".")
    return peer.reply()


def lmtp(peer: Peer, *recipients: str) -> list[str]:
    """Send a message over LMTP; return the reply for each recipient."""
    peer.line("MAIL FROM:<ann@a.example>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA", "Subject: Tea", ".")
    peer.expect("250", *["250"] * len(recipients), "354")
    return [peer.reply()[:9] for _ in recipients]


def hello(peer: Peer) -> None:
    peer.expect("220")
    peer.line("LHLO client.example")
    peer.expect("250")


# Several


def test_all_are_prepared_before_one_is_committed_and_the_reply_has_the_id(smtp_server: MakeServer) -> None:
    order: list[str] = []
    boxes = [Box("local"), Box("hop", answers=True), Box("archive")]
    for box in boxes:
        for step in ("prepare", "commit"):
            box.do[step] = partial(order.append, f"{step} {box.name}")
    server = smtp_server(start=False)
    ids = []
    server.on("received", lambda session, ack: ids.append(session.transaction_id))
    Deliveries(boxes).attach(server)
    with dial(server) as peer:
        peer.hello()
        assert message(peer, "bob@b.example") == f"250 2.0.0 Ok: queued as {ids[0]}"
    # The one that answers is the first to commit.
    assert order == [f"{step} {name}" for step in ("prepare", "commit") for name in ("hop", "local", "archive")]
    assert [box.stored for box in boxes] == [[(["bob@b.example"], b"Subject: Tea\r\n")]] * 3
    assert not any("discard" in box.steps for box in boxes)


@pytest.mark.parametrize("step", ["begin", "write", "prepare"])
@pytest.mark.parametrize(
    ("error", "reply"), [(refuse(), "550 5.7.1 no"), (fail, "452 4.3.1"), (lambda: 1 / 0, "451 4.3.0")]
)
@pytest.mark.parametrize("lmtp_server", [False, True])
def test_a_refusal_by_one_delivery_delivers_nothing(
    smtp_server: MakeServer, step: str, error: Callable[[], Any], reply: str, *, lmtp_server: bool
) -> None:
    first, second = Box(), Box()
    second.do[step] = error
    server = smtp_server(start=False, lmtp=lmtp_server)
    Deliveries([first, second]).attach(server)
    with dial(server) as peer:
        hello(peer) if lmtp_server else peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@b.example>", "DATA")
        peer.expect("250", "250")
        if step == "begin" and not lmtp_server:
            peer.expect(reply)
        else:
            peer.expect("354")
            peer.line("Subject: Tea", ".")
            peer.expect(reply)
        peer.line("RSET")
        peer.expect("250")
        assert first.stored == second.stored == []
        assert first.steps[-1] == "discard"
        second.do.clear()
        assert (lmtp(peer, "bob@b.example") if lmtp_server else message(peer, "bob@b.example"))[0][:3] in ("2", "250")
    assert len(first.stored) == len(second.stored) == 1


def test_a_refusal_of_the_delivery_that_answers_discards_the_others(smtp_server: MakeServer) -> None:
    hop, local = Box(answers=True), Box()
    hop.do["commit"] = refuse(421, "4.3.2 closing")
    server = smtp_server(start=False)
    Deliveries([local, hop]).attach(server)
    with dial(server) as peer:
        peer.hello()
        assert message(peer, "bob@b.example") == "451 4.3.2 closing"
    assert local.stored == []
    assert local.steps == ["begin", "prepare", "discard"]


def test_the_next_hops_reply_is_ours(smtp_server: MakeServer) -> None:
    hop = Box(answers=True)
    hop.do["commit"] = lambda: Reply(421, "4.3.2 closing")
    server = smtp_server(start=False)
    Deliveries([hop]).attach(server)
    with dial(server) as peer:
        peer.hello()
        assert message(peer, "bob@b.example") == "451 4.3.2 closing"
        hop.do["commit"] = lambda: Reply(554, "5.6.0 virus")
        assert message(peer, "bob@b.example") == "554 5.6.0 virus"
        hop.do["commit"] = lambda: Reply(250, "2.6.0 fine")
        assert message(peer, "bob@b.example") == "250 2.6.0 fine"
        hop.do["commit"] = lambda: Reply(221, "fine", enhanced=None)  # which would end the connection
        assert message(peer, "bob@b.example") == "250 2.0.0 fine"
        hop.do["commit"] = lambda: {"bob@b.example": Reply(250, "2.6.0 for bob"), "ann@b.example": None}
        assert message(peer, "bob@b.example") == "250 2.6.0 for bob"
        assert "queued as" in message(peer, "bob@b.example", "ann@b.example")
        hop.answers = False
        assert "queued as" in message(peer, "bob@b.example")


class GroupingBox(AskingBox):
    def group(self, session: Session, recipient: Address) -> object:
        self.step(f"group {recipient}")
        return recipient.domain


@pytest.mark.parametrize("lmtp_server", [False, True])
def test_recipients_of_another_group_come_in_another_transaction(smtp_server: MakeServer, *, lmtp_server: bool) -> None:
    hop = GroupingBox(answers=True)
    server = smtp_server(start=False, lmtp=lmtp_server)
    Deliveries([hop]).attach(server)
    with dial(server) as peer:
        hello(peer) if lmtp_server else peer.hello()
        hop.steps.clear()
        peer.line("MAIL FROM:<>")
        peer.expect("250")
        assert hop.steps == []  # it is asked with the first recipient
        peer.line("RCPT TO:<one@a.example>", "RCPT TO:<two@b.example>", "RCPT TO:<three@a.example>", "DATA", "x", ".")
        peer.expect("250", "452 4.5.3", "250", "354", *["250"] * (1 + lmtp_server))
    assert [recipients for recipients, _ in hop.stored] == [["one@a.example", "three@a.example"]]
    assert "rcpt two@b.example" not in hop.steps


def test_a_failure_behind_the_first_commit_is_logged_and_kept(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Box(), Box()
    second.do["commit"] = fail
    server = smtp_server(start=False)
    Deliveries([first, second]).attach(server)
    with dial(server) as peer:
        peer.hello()
        assert message(peer, "bob@b.example").startswith("250 2.0.0 Ok: queued as")
    assert len(first.stored) == 1
    assert "discard" not in second.steps
    (record,) = (each for each in caplog.records if each.levelno == logging.CRITICAL)
    assert "Box failed to commit when another delivery had the message already" in record.getMessage()


def test_what_a_middleware_refuses_is_not_committed(smtp_server: MakeServer) -> None:
    def refuse_it(session: Session, command: Command, proceed: Proceed) -> Reply:
        assert proceed(session, command).code == 250
        return Reply(451, "4.7.1 later")

    refuse_it.verbs = ("END-OF-DATA",)  # type: ignore[attr-defined]
    box = Box()
    server = smtp_server(start=False, middleware=[refuse_it])
    Deliveries([box]).attach(server)
    with dial(server) as peer:
        peer.hello()
        assert message(peer, "bob@b.example") == "451 4.7.1 later"
    assert box.steps == ["begin", "prepare", "discard"]


def test_two_deliveries_that_answer_are_refused() -> None:
    with pytest.raises(
        ValueError, match="at most one delivery per recipient that another system answers; got Box and Box"
    ):
        Deliveries([Box(answers=True), Box(answers=True)])
    with pytest.raises(ValueError, match="expected at least one delivery"):
        Deliveries([])


# Interruptions


@pytest.mark.parametrize("error", [HandlerTimeout("ack_timeout", 1.0, "END-OF-DATA"), gevent.Timeout(), GreenletExit()])
@pytest.mark.parametrize("step", ["prepare", "commit"])
def test_an_interruption_leaves_250_and_the_message_or_neither(
    smtp_server: MakeServer, step: str, error: BaseException
) -> None:
    box, reached, go_on = Box(), Event(), Event()

    def wait() -> None:
        reached.set()
        go_on.wait()

    box.do[step] = wait
    server = smtp_server()
    Deliveries([box]).attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@b.example>", "DATA")
        peer.expect("250", "250", "354")
        peer.line("Subject: Tea", ".")
        assert reached.wait(10)
        (connection,) = server.connections
        greenlet: Any = connection.transport.greenlet
        for _ in range(2 if step == "commit" else 1):
            gevent.get_hub().loop.run_callback(greenlet.throw, error)
            gevent.sleep(0)
        go_on.set()
        said = peer.rest() if isinstance(error, GreenletExit) else peer.reply().encode()
    if step == "commit":
        assert said.startswith(b"250 2.0.0 Ok: queued as")
        assert len(box.stored) == 1
        assert "discard" not in box.steps
    else:
        assert not said.startswith(b"250")
        assert box.stored == []
        assert box.steps[-1] == "discard"


# LMTP


def test_lmtp_tells_each_recipient_its_own_result(smtp_server: MakeServer) -> None:
    box = Box()
    box.do["prepare"] = lambda: {"cyd@b.example": Reply(452, "4.2.2 Mailbox full"), "dan@b.example": None}
    server = smtp_server(start=False, lmtp=True)
    Deliveries([box]).attach(server)
    with dial(server) as peer:
        hello(peer)
        replies = lmtp(peer, "bob@b.example", "cyd@b.example", "dan@b.example")
    assert replies == ["250 2.0.0", "452 4.2.2", "250 2.0.0"]
    assert [each for each, _ in box.stored] == [["bob@b.example", "dan@b.example"]]


@pytest.mark.parametrize("answers", [False, True])
def test_a_commit_of_several_recipients_answers_each(smtp_server: MakeServer, answers: bool) -> None:
    box = Box(answers=answers)
    box.do["commit"] = lambda: {"cyd@b.example": Reply(550, "5.1.1 unknown")}
    server = smtp_server(start=False, lmtp=True)
    Deliveries([box]).attach(server)
    with dial(server) as peer:
        hello(peer)
        assert lmtp(peer, "bob@b.example", "cyd@b.example") == ["250 2.0.0", "550 5.1.1"]
    assert box.steps.count("commit") == 1


@pytest.mark.parametrize("per_recipient", [False, True])
def test_lmtp_commits_for_those_that_no_handler_has_refused(smtp_server: MakeServer, per_recipient: bool) -> None:
    box = Box(per_recipient=per_recipient)
    server = smtp_server(start=False, lmtp=True)

    @server.on("received")
    def not_bob(session: Session, ack: Ack, recipient: str) -> None:
        if recipient.startswith("bob"):
            ack.reject(550, "5.1.1 No Bob")

    Deliveries([box]).attach(server)
    with dial(server) as peer:
        hello(peer)
        replies = lmtp(peer, "bob@b.example", "cyd@b.example", "dan@b.example")
    assert replies == ["550 5.1.1", "250 2.0.0", "250 2.0.0"]
    together = [["cyd@b.example", "dan@b.example"]]
    assert [each for each, _ in box.stored] == ([["cyd@b.example"], ["dan@b.example"]] if per_recipient else together)


def test_lmtp_goes_on_without_a_delivery_that_fails(smtp_server: MakeServer) -> None:
    one, other = Box(), Box()
    one.do["write"] = fail
    server = smtp_server(start=False, lmtp=True)
    Deliveries([Route(one, "*@one.example"), Route(other, "*@other.example")]).attach(server)
    with dial(server) as peer:
        hello(peer)
        replies = lmtp(peer, "bob@one.example", "cyd@other.example", "dan@one.example")
    assert replies == ["452 4.3.1", "250 2.0.0", "452 4.3.1"]
    assert other.stored == [(["cyd@other.example"], b"Subject: Tea\r\n")]


# Routes


def test_each_recipient_goes_to_the_deliveries_that_take_it(smtp_server: MakeServer) -> None:
    inbox, user, rest, archive = Box(), Box(), Box(), Box()
    routes = [Route(inbox, "*@Inbox.example"), Route(user, ["Jo@b.example", "sales-*@b.example"])]
    server = smtp_server(start=False)
    Deliveries([*routes, Route(rest, "others"), archive]).attach(server)
    with dial(server) as peer:
        peer.hello()
        to = ["a@inbox.example", "jo@B.example", "sales-uk@b.example", "x@c.example"]
        assert message(peer, *to).startswith("250")
    found = [[recipients for recipients, _ in box.stored] for box in (inbox, user, rest, archive)]
    assert found == [[["a@inbox.example"]], [["jo@b.example", "sales-uk@b.example"]], [["x@c.example"]], found[3]]
    assert len(found[3][0]) == 4


@pytest.mark.parametrize(
    ("pattern", "address", "is_taken"),
    [
        ("*a" * 20 + "*@b.example", "a" * 64 + "@b.example.net", False),  # all ways to match would take years
        ("*a" * 20 + "*@b.example", "a" * 64 + "@b.example", True),
        ("a*b*c@x.example", "a-b-b-c@x.example", True),
        ("a*b*c@x.example", "a-c-b@x.example", False),
        ("jo@*.x.example", "jo@a.x.example.x.example", True),
        ("**@x.example", "jo@x.example", True),
    ],
)
def test_a_pattern_with_many_stars_takes_no_time(
    smtp_server: MakeServer, pattern: str, address: str, is_taken: bool
) -> None:
    server = smtp_server(start=False)
    Deliveries([Route(Box(), pattern)]).attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", f"RCPT TO:<{address}>")
        peer.expect("250", "250" if is_taken else "550 5.1.1")


def test_a_recipient_that_no_delivery_takes_is_refused(smtp_server: MakeServer) -> None:
    box = Box()
    server = smtp_server(start=False)
    server.on("to", lambda session, address, ack: ack.accept() if address.startswith("eager") else None)

    def local(session: Session, address: Address) -> bool:
        return address.domain == "p.example"

    Deliveries([Route(box, ["*@*.inbox.example", local, "u@\u00dcber.example"])]).attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<> SMTPUTF8")
        peer.expect("250")
        for address, reply in (
            ("bob@b.example", "550 5.1.1 No such mailbox here"),
            ("eager@b.example", "550 5.1.1"),
            ("bob@inbox.example", "550 5.1.1"),
            ("bob@a.inbox.example", "250"),
            ("bob@p.example", "250"),
            ("u@xn--ber-goa.example", "250"),
            ("U@\u00fcber.example", "250"),
            ("postmaster", "250"),
        ):
            peer.line(f"RCPT TO:<{address}>")
            peer.expect(reply)
        peer.line("DATA", ".")
        peer.expect("354", "250")
    assert [len(recipients) for recipients, _ in box.stored] == [5]


@pytest.mark.parametrize("pattern", ["", "@", "bob", "@b.example", "bob@", "*"])
def test_a_pattern_that_matches_no_address_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r'expected an address like "jo@example.com"'):
        Route(Box(), pattern)


@pytest.mark.parametrize("make", [Box, lambda: Route(Box())])
def test_one_delivery_without_a_list_is_refused_and_the_error_says_so(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"expected a list of deliveries.*write \[\.\.\.\] around it"):
        Deliveries(make())


def test_a_route_without_patterns_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one pattern"):
        Route(Box(), [])
    with pytest.raises(TypeError, match="a predicate of recipients is called as"):
        Route(Box(), lambda address: True)  # type: ignore[arg-type, misc]
    with pytest.raises(TypeError, match="expected a Delivery"):
        Route("Box")  # type: ignore[arg-type]


# Hooks


def test_hooks_are_asked_at_mail_and_rcpt(smtp_server: MakeServer) -> None:
    box = AskingBox()
    box.do["mail ann@a.example"] = lambda: Reply(250, "2.1.0 hop says yes")
    box.do["rcpt cyd@b.example"] = lambda: Reply(550, "5.1.1 hop says no")
    box.do["rcpt bob@b.example"] = lambda: Reply(250, "2.1.5 hop says yes")
    server = smtp_server(start=False)
    Deliveries([box]).attach(server)
    with server, dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@a.example>", "RCPT TO:<bob@b.example>", "RCPT TO:<cyd@b.example>", "DATA", "x", ".")
        peer.expect("250 2.1.0 hop says yes", "250 2.1.5 hop says yes", "550 5.1.1 hop says no", "354", "250 2.0.0")
        peer.line("MAIL FROM:<eve@a.example>", "RSET", "NOOP")
        peer.expect("250", "250", "250")
        box.do["mail eve@a.example"] = refuse(553, "5.1.8 hop says no")
        peer.line("MAIL FROM:<eve@a.example>", "MAIL FROM:<ann@a.example>", "NOOP")
        peer.expect("553 5.1.8 hop says no", "250", "250")
    steps = ["mail ann@a.example", "rcpt bob@b.example", "rcpt cyd@b.example", "begin", "prepare", "commit", "reset"]
    again = ["mail eve@a.example", "reset", "mail eve@a.example", "reset", "mail ann@a.example", "reset"]
    assert box.steps == ["start", *steps, *again, "stop"]


def test_a_delivery_for_some_recipients_is_asked_about_the_sender_at_rcpt(smtp_server: MakeServer) -> None:
    box, rest = AskingBox(), Box()
    server = smtp_server(start=False)
    Deliveries([Route(box, "*@hop.example"), Route(rest, "others")]).attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@a.example>", "RCPT TO:<bob@b.example>", "RCPT TO:<x@hop.example>")
        peer.line("RCPT TO:<y@hop.example>", "RSET")
        peer.expect("250", "250", "250", "250", "250")
        assert box.steps == ["mail ann@a.example", "rcpt x@hop.example", "rcpt y@hop.example", "reset"]
        box.do["mail ann@a.example"] = lambda: Reply(550, "5.7.1 no")
        peer.line("MAIL FROM:<ann@a.example>", "RCPT TO:<x@hop.example>", "RCPT TO:<b@b.example>", "DATA", "x", ".")
        peer.expect("250", "550 5.7.1 no", "250", "354", "250")
    assert [recipients for recipients, _ in rest.stored] == [["b@b.example"]]


# Fields


def test_fields_that_are_added_up_to_the_commit_are_stored(smtp_server: MakeServer) -> None:
    box = Box()
    server: SMTPServer = smtp_server(start=False)

    @server.on("received")
    def add(session: Session, ack: Ack) -> None:
        assert session.message is not None
        session.message.add_header("X-Checked", "yes")

    Deliveries([box]).attach(server)
    with dial(server) as peer:
        peer.hello()
        message(peer, "bob@b.example")
    assert box.stored[0][1] == b"X-Checked: yes\r\nSubject: Tea\r\n"


@pytest.mark.parametrize("cut", range(1, 60, 3))
@pytest.mark.parametrize("lmtp_server", [False, True])
def test_a_client_that_vanishes_at_any_byte_leaves_nothing(
    smtp_server: MakeServer, cut: int, *, lmtp_server: bool
) -> None:
    body = b"Subject: Tea\r\n\r\nAt five.\r\nOr at six.\r\n.\r\n"[: min(cut, 40)]
    boxes = [Box(), Box(answers=True)]
    over = Event()
    server = smtp_server(lmtp=lmtp_server)
    server.on("disconnect", lambda session, reason: over.set())
    Deliveries(boxes).attach(server)
    with dial(server) as peer:
        hello(peer) if lmtp_server else peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@b.example>", "RCPT TO:<cyd@b.example>", "DATA")
        peer.expect("250", "250", "250", "354")
        peer.send(body)
    assert over.wait(10)
    assert [box.stored for box in boxes] == [[], []]
    assert [box.steps for box in boxes] == [["begin", "discard"]] * 2


def test_a_recipient_given_twice_gets_the_message_once(smtp_server: MakeServer) -> None:
    box = Box(per_recipient=True)
    server = smtp_server(start=False, lmtp=True)
    Deliveries([box]).attach(server)
    with dial(server) as peer:
        hello(peer)
        assert lmtp(peer, "bob@b.example", "bob@b.example") == ["250 2.0.0"] * 2
    assert [recipients for recipients, _ in box.stored] == [["bob@b.example"]]
