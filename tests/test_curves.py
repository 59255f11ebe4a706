"""How costs grow: the bytecodes and comparisons for a size, and for ten times that size. Never time.

``python -m benchmarks curves`` measures the same in CPU time, at sizes that would take too long here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from xml.etree import ElementTree

import greenlet
import pytest

from benchmarks.curves import CURVES, GROUPS, panels, report
from benchmarks.curves_chart import draw
from benchmarks.curves_fit import exponent
from greensmtp import Ack, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery._part import Part
from greensmtp.delivery.contract import Delivery, Envelope, Transfer
from greensmtp.delivery.routing import Route
from greensmtp.delivery.runner import Deliveries, _Message
from greensmtp.middleware import RateLimit
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import Command
from greensmtp.service.tally import SESSIONS, Tally
from greensmtp.testing.fixtures import MakeServer
from tests.test_costs import BODY, ENVELOPE, Script, take

pytestmark = pytest.mark.xdist_group("serial")

SMALL, LARGE = 20, 200

#: What ten times the size may cost at most, in what the small size costs: linear, and a little.
LINEAR = 1.1 * LARGE / SMALL

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def counted_bytecodes() -> Iterator[list[int]]:
    """Count the bytecodes that are executed in frames that begin in the block, whatever greenlet they run in."""
    count = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call":
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event == "opcode":
            count[0] += 1
        return trace

    def switched(event: str, arguments: Any) -> None:
        sys.settrace(trace)  # which is each greenlet's own

    before, switching = sys.gettrace(), greenlet.gettrace()
    greenlet.settrace(switched)
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)
        greenlet.settrace(switching)


def bytecodes(act: Callable[[], object]) -> int:
    """Return how many bytecodes an act takes, when it has been done before."""
    act()
    with counted_bytecodes() as count:
        act()
    assert count[0] > 0
    return count[0]


class Counting:
    """An object that counts how often it is compared."""

    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return self is other

    __hash__ = object.__hash__


class PassOn:
    """A middleware that sees every command."""

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)


class Drop(Delivery):
    """A delivery that keeps nothing, and commits for each recipient in LMTP."""

    per_recipient = True

    class Dropped(Transfer):
        settles = True

        def write(self, data: bytes, /) -> None:
            pass

        def commit(self, recipients: Any) -> None:
            pass

    def begin(self, envelope: Envelope) -> Transfer:
        return self.Dropped(envelope)


def recipient(number: int) -> bytes:
    return b"RCPT TO:<r%d@example.com>\r\n" % number


def say_slowly(script: Script, count: int) -> None:
    """Send a message to so many recipients, one command at a time."""
    script.say(ENVELOPE[0])
    for number in range(count):
        script.say(recipient(number))
    script.say(ENVELOPE[2])
    script.socket.sendall(BODY)
    answers = b""
    while answers.count(b"\r\n") < (count if script.smtp_server.lmtp else 1):
        answers += script.hear()
    assert answers.startswith(b"250")


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_recipients_cost_the_same_each(smtp_server: MakeServer, protocol: str) -> None:
    lmtp = protocol == "lmtp"
    server = smtp_server(start=False, lmtp=lmtp)
    if lmtp:
        Deliveries([Route(Drop(), "*@example.com")]).attach(server)
    else:
        server.on("message", take)
    script = Script(server)
    if lmtp:
        script.say(b"LHLO client.example\r\n")
    few, many = (bytecodes(partial(say_slowly, script, count)) for count in (SMALL, LARGE))
    assert many <= LINEAR * few
    script.close()


class Recipient(str):
    """A recipient that counts how often it is compared. Hash collisions compare too, but rarely."""

    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        Recipient.compared += 1
        return str(self) == str(other)

    __hash__ = str.__hash__


def test_lmtp_searches_the_recipients_for_none_of_them(smtp_server: MakeServer) -> None:
    """Each recipient is prepared and committed by itself. A search of the list would compare it with all others."""
    script = Script(smtp_server(start=False))
    (handler,) = script.smtp_server.connections

    def comparisons(count: int) -> int:
        recipients: Any = [Recipient(f"r{number}@example.com") for number in range(count)]
        message = _Message()
        message.parts.append(Part(Drop(), Envelope(handler.session, None, recipients, alone=True)))  # type: ignore[arg-type]
        message.parts[0].begin()
        Recipient.compared = 0
        for each in recipients:
            message.prepare(each)
            message.commit(each)
        compared = Recipient.compared
        message.end()
        return compared

    assert comparisons(LARGE) <= LARGE
    script.close()


def test_handlers_of_a_session_are_sorted_without_comparing_them(smtp_server: MakeServer) -> None:
    """They are put into their order for each signal. Comparing each with each is quadratic."""
    order: list[int] = []

    class Handler(Counting):
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, session: Session, address: Address, ack: Ack) -> None:
            order.append(self.number)
            if not self.number:
                ack.accept()

    server = smtp_server(start=False)
    server.on("message", take)
    script = Script(server)
    (handler,) = server.connections
    for number in reversed(range(LARGE)):
        server.signals.to.connect(Handler(number), sender=handler.session, weak=False)
    Counting.compared = 0
    script.message()
    assert order == [*reversed(range(LARGE))]
    assert Counting.compared == 0
    script.close()


def test_methods_that_are_held_weakly_run_in_their_order(smtp_server: MakeServer) -> None:
    """A method is another object whenever it is asked for, so it is not found by its identity."""
    order: list[int] = []

    class Holder:
        def __init__(self, number: int) -> None:
            self.number = number

        def look(self, session: Session, address: Address, ack: Ack) -> None:
            order.append(self.number)
            if not self.number:
                ack.accept()

    server = smtp_server(start=False)
    server.on("message", take)
    holders = [Holder(number) for number in range(SMALL)]
    for holder in reversed(holders):
        server.signals.to.connect(holder.look)
    script = Script(server)
    script.message()
    assert order == [*reversed(range(SMALL))]
    script.close()


def with_middleware(server: MakeServer, count: int) -> SMTPServer:
    return server(start=False, middleware=[PassOn() for _ in range(count)])


def with_handlers(server: MakeServer, count: int) -> SMTPServer:
    made = server(start=False)
    for number in reversed(range(count)):
        made.on("to", lambda session, address, ack, number=number: None if number else ack.accept())
    return made


@pytest.mark.parametrize("make", [with_middleware, with_handlers])
def test_each_middleware_and_handler_costs_the_same(
    smtp_server: MakeServer, make: Callable[[MakeServer, int], SMTPServer]
) -> None:
    costs = []
    for count in (SMALL, LARGE):
        server = make(smtp_server, count)
        server.on("message", take)
        script = Script(server)
        costs.append(bytecodes(script.message))
        script.close()
    assert costs[0] < costs[1] <= LINEAR * costs[0]


def test_a_recipient_costs_the_same_with_any_number_of_domains(smtp_server: MakeServer) -> None:
    costs = []
    for count in (SMALL, LARGE):
        server = smtp_server(start=False)
        domains = [f"*@d{number}.example" for number in range(1, count)]
        Deliveries([Route(Drop(), each) for each in [*domains, "*@example.com"]]).attach(server)
        script = Script(server)
        costs.append(bytecodes(script.message))
        script.close()
    assert costs[1] <= 1.02 * costs[0]


def test_routes_are_not_compared_with_each_other_at_the_start() -> None:
    """Whether two deliveries that are answered by other systems have recipients in common is looked up."""

    class Answered(Drop):
        answers = True

    def make(count: int) -> Deliveries:
        patterns = [
            [f"*@d{number}.example", f"jo@e{number}.example", f"al@e{number}.example"] for number in range(count)
        ]
        return Deliveries([Route(Answered(), each) for each in patterns])

    few, many = (bytecodes(partial(make, count)) for count in (SMALL, LARGE))
    assert many <= LINEAR * few
    for clash in ("*@d7.example", "jo@e7.example", "jo@d7.example", "*@e7.example"):
        with pytest.raises(ValueError, match="got Answered and Answered"):
            Deliveries([*(Route(Answered(), f"*@d{number}.example") for number in range(SMALL)),
                        *(Route(Answered(), f"jo@e{number}.example") for number in range(SMALL)),
                        Route(Answered(), clash)])  # fmt: skip


@pytest.mark.parametrize("strategy", ["moving-window", "fixed-window", "sliding-window-counter"])
def test_a_message_costs_the_same_with_any_number_of_keys(smtp_server: MakeServer, strategy: Any) -> None:
    limit = RateLimit("1000/hour", by="sender", strategy=strategy)
    server = smtp_server(start=False, middleware=[limit], max_idle_commands=10**6)
    server.on("message", take)
    script = Script(server)
    few = bytecodes(script.message)
    for number in range(LARGE):
        script.say(b"MAIL FROM:<s%d@example.org>\r\n" % number)
        script.say(b"RSET\r\n")
    assert bytecodes(script.message) <= 1.02 * few
    script.close()


def test_a_connection_costs_the_same_beside_any_number_of_them(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_connections=None)
    server.on("message", take)
    script = Script(server)
    alone = bytecodes(script.message)

    def come_and_go() -> None:
        other = Script(server)
        other.close()

    alone_connecting = bytecodes(come_and_go)
    others = [Script(server) for _ in range(LARGE)]
    assert bytecodes(script.message) <= 1.02 * alone
    assert bytecodes(come_and_go) <= 1.1 * alone_connecting
    for each in [script, *others]:
        each.close()


def test_a_snapshot_for_top_has_a_bounded_cost_for_a_connection(smtp_server: MakeServer) -> None:
    """A row costs the most of it, and there are only so many rows."""
    server = smtp_server(start=False, max_connections=None)
    tally = Tally()
    scripts: list[Script] = []
    costs = []
    for count in (SESSIONS, 4 * SESSIONS):
        scripts += [Script(server) for _ in range(count - len(scripts))]
        costs.append(bytecodes(lambda: tally.snapshot([server])))
    assert costs[0] < costs[1] <= 2 * costs[0]
    for each in scripts:
        each.close()


# The benchmark


def test_the_exponent_is_that_of_the_largest_sizes() -> None:
    linear = {size: 50.0 + 3 * size for size in (1, 10, 100, 1_000, 10_000)}
    assert 0.9 < exponent(linear) <= 1.0
    assert exponent(dict.fromkeys(linear, 7.0)) == pytest.approx(0)
    quadratic = {size: 1e6 + size**2 for size in linear}
    assert exponent(quadratic) > 1.5
    with pytest.raises(ValueError, match="two sizes"):
        exponent({1: 1.0})


def test_the_report_names_the_curves_that_are_worse() -> None:
    sizes = GROUPS["routes"].sizes
    text, worse = report({"routes": {size: 1e-6 * size**2 for size in sizes}, "top": dict.fromkeys(sizes, 1e-06)})
    assert "WORSE than linear" in text.splitlines()[0]
    assert "linear or better" in text.splitlines()[1]
    assert worse == ["A message by deliveries (by domains): exponent 2.00"]


def test_the_chart_has_a_panel_for_each_curve_and_both_color_schemes() -> None:
    costs = {name: {1: 1e-3, 10: 2e-3, 100: 0.1} for name in CURVES}
    text = draw(panels(costs), "a note & more")
    assert "prefers-color-scheme: dark" in text
    drawn = ElementTree.fromstring(text)
    assert len(drawn.findall("{*}polyline")) == len(CURVES)
    assert {title for title, _, _ in CURVES.values()} <= {each.text for each in drawn.findall("{*}text")}


@pytest.mark.subprocess
def test_a_quick_run_measures_and_draws(tmp_path: Path) -> None:
    output, chart = tmp_path / "curves.json", tmp_path / "curves.svg"
    command = [sys.executable, "-m", "benchmarks", "curves", "--quick", "--only", "routes,recipients,listeners"]
    command += ["--output", str(output), "--chart", str(chart)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(output.read_text())["costs"]) == {
        "routes", "recipients", "lmtp", "listeners", "listeners_memory",
    }  # fmt: skip
    assert ElementTree.parse(chart).getroot() is not None
