"""Several deliveries that are answered by other systems, in one server: which one takes part in a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from greensmtp import Ack, Address, Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery import Deliveries, Forward, Maildir, Route
from greensmtp.delivery.next_hop import NextHop
from greensmtp.protocol.command import PathCommand
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.delivery.forwarding import BODY, MODES, Script, url
from tests.delivery.helpers import files
from tests.helpers import free_port


@dataclass
class Two:
    """A server with two next hops: mail for a.example goes to ``a``, mail for b.example to ``b``."""

    server: SMTPServer
    hops: dict[str, SMTPServer]
    got: dict[str, helpers.Deliveries]

    def recipients(self) -> list[list[list[str]]]:
        return [[recipients for _, recipients, _ in self.got[name].mail] for name in "ab"]


@pytest.fixture
def two(smtp_server: MakeServer) -> Iterator[Callable[..., Two]]:
    running: list[SMTPServer] = []

    def make(mode: Any = "lock-step", *more: Any, **options: Any) -> Two:
        hops = {name: smtp_server(hostname=f"{name}.example") for name in "ab"}
        server = smtp_server(start=False, **options)
        running.append(server)
        forwards = [Route(Forward(url(hops[name]), mode=mode, timeout=10), f"*@{name}.example") for name in "ab"]
        Deliveries([*more, *forwards]).attach(server)
        server.start()
        return Two(server, hops, {name: helpers.Deliveries(hop) for name, hop in hops.items()})

    yield make
    for each in running:
        each.stop(timeout=1)


def talk(peer: Peer, *lines: str) -> list[str]:
    """Send each line, and return the replies."""
    replies = []
    for line in lines:
        peer.line(line)
        replies.append(peer.reply().strip())
    return replies


def end(peer: Peer, replies: int = 1) -> list[str]:
    """Send a message by DATA; return the replies."""
    peer.line("DATA")
    peer.expect("354")
    peer.send(BODY.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return [peer.reply().strip() for _ in range(replies)]


ANOTHER = "452 4.5.3 This recipient needs another transaction"


@MODES
def test_in_smtp_the_first_recipient_fixes_the_next_hop(two: Callable[..., Two], mode: str) -> None:
    made = two(mode)
    with dial(made.server) as peer:
        peer.hello()
        for first, second in ("ab", "ba"):
            said = talk(
                peer,
                "MAIL FROM:<ann@x.example>",
                f"RCPT TO:<one@{first}.example>",
                f"RCPT TO:<two@{second}.example>",
                f"RCPT TO:<three@{first}.example>",
                "RCPT TO:<none@c.example>",
            )
            assert [line[:9] for line in said] == ["250 2.1.0", "250 2.1.5", "452 4.5.3", "250 2.1.5", "550 5.1.1"]
            assert said[2] == ANOTHER
            assert end(peer)[0].startswith("250 2.0.0 Ok: queued as")
    assert made.recipients() == [[["one@a.example", "three@a.example"]], [["one@b.example", "three@b.example"]]]


@MODES
def test_all_of_it_in_one_packet_and_by_chunks(two: Callable[..., Two], mode: str) -> None:
    made = two(mode)
    with dial(made.server) as peer:
        peer.hello()
        for first, second in ("ab", "ba"):
            lines = "MAIL FROM:<ann@x.example>", f"RCPT TO:<one@{first}.example>", f"RCPT TO:<two@{second}.example>"
            commands = "".join(f"{line}\r\n" for line in lines).encode()
            peer.send(commands + helpers.chunk(BODY[:9]) + helpers.chunk(BODY[9:], last=True))
            peer.expect("250", "250", "452 4.5.3", "250", "250")
    assert made.recipients() == [[["one@a.example"]], [["one@b.example"]]]
    assert [made.got[name].mail[0][2].endswith(BODY) for name in "ab"] == [True, True]


@MODES
def test_in_lmtp_both_take_part_and_each_recipient_has_its_next_hops_reply(two: Callable[..., Two], mode: str) -> None:
    made = two(mode, lmtp=True)

    @made.hops["b"].on("received")
    def full(session: Session, ack: Ack) -> None:
        ack.reject(552, "5.2.2 full")

    @made.hops["a"].on("received")
    def stored(session: Session, ack: Ack) -> None:
        ack.accept(250, "2.6.0 stored by a")

    with dial(made.server) as peer:
        talk(peer, "LHLO client.example")
        peer.expect("250")
        rcpts = [f"RCPT TO:<{each}.example>" for each in ("one@a", "two@b", "three@a")]
        assert {line[:3] for line in talk(peer, "MAIL FROM:<ann@x.example>", *rcpts)} == {"250"}
        assert end(peer, 3) == ["250 2.6.0 stored by a", "552 5.2.2 full", "250 2.6.0 stored by a"]
    assert made.recipients() == [[["one@a.example", "three@a.example"]], [["two@b.example"]]]


@MODES
def test_in_lmtp_both_take_part_by_chunks_in_one_packet(two: Callable[..., Two], mode: str) -> None:
    made = two(mode, lmtp=True)
    for name, hop in made.hops.items():
        hop.on("received", lambda session, ack, name=name: ack.accept(250, f"2.6.0 {name}"))
    with dial(made.server) as peer:
        talk(peer, "LHLO client.example")
        peer.expect("250")
        for _ in range(2):
            lines = "MAIL FROM:<>", *(f"RCPT TO:<{each}.example>" for each in ("one@b", "two@a", "three@b"))
            commands = "".join(f"{line}\r\n" for line in lines).encode()
            peer.send(commands + helpers.chunk(BODY[:9]) + helpers.chunk(BODY[9:], last=True))
            peer.expect("250", "250", "250", "250", "250", "250 2.6.0 b", "250 2.6.0 a", "250 2.6.0 b")
    assert made.recipients() == [[["two@a.example"]] * 2, [["one@b.example", "three@b.example"]] * 2]


@pytest.mark.parametrize("lmtp", [False, True])
@MODES
def test_a_next_hop_that_is_gone_harms_its_own_recipients_only(
    smtp_server: MakeServer, mode: Any, *, lmtp: bool
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = smtp_server(start=False, lmtp=lmtp)
    gone = Forward(f"smtp://127.0.0.1:{free_port()}", mode=mode)
    Deliveries([Route(gone, "*@a.example"), Route(Forward(url(mx), mode=mode), "others")]).attach(server)
    server.start()
    with dial(server) as peer:
        talk(peer, "LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("250")
        replies = talk(peer, "MAIL FROM:<ann@x.example>", "RCPT TO:<one@a.example>", "RCPT TO:<two@b.example>")
        if mode == "lock-step":  # a recipient that was refused fixes nothing
            assert [line[:3] for line in replies] == ["250", "451", "250"]
            assert end(peer)[0].startswith("250")
        elif lmtp:
            assert [line[:3] for line in end(peer, 2)] == ["451", "250"]
        else:
            assert [line[:3] for line in replies] == ["250", "250", "452"]
            assert end(peer)[0].startswith("451 4.4.1")
    assert len(got.mail) == (lmtp or mode == "lock-step")
    server.stop(timeout=1)


class RefuseOne:
    """A middleware that refuses recipients called ``one`` when the next hop has accepted them."""

    verbs = ("RCPT",)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(550, "5.7.1 not one") if str(getattr(command, "address", "")).startswith("one@") else reply


@MODES
def test_a_recipient_that_a_middleware_refuses_fixes_nothing(two: Callable[..., Two], mode: str) -> None:
    made = two(mode, middleware=[RefuseOne()])
    with dial(made.server) as peer:
        peer.hello()
        said = talk(peer, "MAIL FROM:<>", "RCPT TO:<one@a.example>", "RCPT TO:<two@b.example>", "RCPT TO:<x@a.example>")
        assert [line[:3] for line in said] == ["250", "550", "250", "452"]
        # The connection to the other one is free again.
        assert not made.hops["a"].connections or all(each.from_ is None for each in sessions(made.hops["a"]))
        assert end(peer)[0].startswith("250")
    assert made.recipients() == [[], [["two@b.example"]]]


def sessions(server: SMTPServer) -> list[Session]:
    return [each.session for each in server.connections]


def test_after_rset_and_the_end_of_a_message_either_may_be_fixed(two: Callable[..., Two]) -> None:
    made = two()
    with dial(made.server) as peer:
        peer.hello()
        for name in "abab":
            talk(peer, "MAIL FROM:<ann@x.example>")
            assert talk(peer, f"RCPT TO:<bob@{name}.example>")[0].startswith("250")
            talk(peer, "RSET")
            talk(peer, "MAIL FROM:<ann@x.example>")
            other = "b" if name == "a" else "a"
            assert talk(peer, f"RCPT TO:<bob@{other}.example>")[0].startswith("250")
            end(peer)
    assert [len(each) for each in made.recipients()] == [2, 2]


@MODES
def test_beside_a_maildir_for_all_the_recipients_that_no_next_hop_has_may_stand(
    two: Callable[..., Two], maildir: Maildir, mode: str
) -> None:
    made = two(mode, maildir)
    ids: list[str] = []
    made.server.on("to", lambda session, address, ack: ids.append(session.transaction_id))
    with dial(made.server) as peer:
        peer.hello()
        said = talk(peer, "MAIL FROM:<>", *(f"RCPT TO:<x@{name}.example>" for name in "cbca"))
        assert [line[:3] for line in said] == ["250", "250", "250", "250", "452"]
        assert (
            end(peer)[0] == f"250 2.0.0 Ok: queued as {ids[0]}"
        )  # this server's reply, since both deliveries have the message
    assert made.recipients() == [[], [["x@b.example"]]]
    assert files(maildir) == ["new"]


@pytest.mark.parametrize("lmtp", [False, True])
def test_postmaster_without_a_domain_goes_to_the_first_delivery(
    two: Callable[..., Two], maildir: Maildir, *, lmtp: bool
) -> None:
    made = two(lmtp=lmtp)
    with dial(made.server) as peer:
        talk(peer, "LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("250")
        said = talk(peer, "MAIL FROM:<>", "RCPT TO:<x@b.example>", "RCPT TO:<postmaster>", "RCPT TO:<>")
        assert [line[:3] for line in said] == ["250", "250", "250" if lmtp else "452", "501"]
        assert {line[:3] for line in end(peer, 1 + lmtp)} == {"250"}
        assert talk(peer, "MAIL FROM:<>", "RCPT TO:<postmaster>")[1].startswith("250")
        end(peer)
    assert made.recipients() == [[["postmaster"]] * (1 + lmtp), [["x@b.example"]]]
    third = two("lock-step", Route(maildir, "*@c.example"))
    with dial(third.server) as peer:  # the first of the configuration, also if others answer
        peer.hello()
        talk(peer, "MAIL FROM:<>", "RCPT TO:<postmaster>")
        end(peer)
    assert files(maildir) == ["new"]


# A recipient with two of them


@pytest.mark.parametrize(
    ("one", "two", "fails"),
    [
        (None, None, True),
        (None, "*@b.example", True),
        ("others", "others", True),
        ("*@B.example", ["x@a.example", "*@b.example"], True),
        ("jo@b.example", "*@b.example", True),
        ("jo@b.example", "Jo@b.example", True),
        ("jo@b.example", "ann@b.example", False),
        ("*@a.example", "others", False),
        ("*@a.example", "*@*.example", False),  # not every overlap can be seen
    ],
)
def test_an_overlap_is_refused_at_construction_where_it_can_be_seen(one: Any, two: Any, *, fails: bool) -> None:
    routes = [Route(Forward("smtp://127.0.0.1:9"), wanted) for wanted in (one, two)]
    if not fails:
        Deliveries(routes)
        return
    with pytest.raises(
        ValueError, match="at most one delivery per recipient that another system answers; got Forward and Forward"
    ):
        Deliveries(routes)


@pytest.mark.parametrize("lmtp", [False, True])
def test_an_overlap_is_451_at_rcpt_and_logged(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, *, lmtp: bool
) -> None:
    server = smtp_server(start=False, lmtp=lmtp)
    forwards = [Forward(f"smtp://127.0.0.1:{free_port()}", mode="after-body") for _ in range(2)]
    Deliveries([Route(forwards[0], "*@a.example"), Route(forwards[1], "jo@*.example")]).attach(server)
    server.start()
    with dial(server) as peer:
        talk(peer, "LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("250")
        said = talk(peer, "MAIL FROM:<>", "RCPT TO:<jo@a.example>", "RCPT TO:<ann@a.example>", "RCPT TO:<jo@b.example>")
        assert [line[:9] for line in said[1:]] == ["451 4.3.5", "250 2.1.5", "250 2.1.5" if lmtp else "452 4.5.3"]
    assert "jo@a.example would be delivered by Forward and Forward" in caplog.text


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_predicate_that_changes_its_mind_delivers_nothing(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, *, lmtp: bool
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = smtp_server(start=False, lmtp=lmtp)
    takes = {"value": False}

    def second(session: Session, address: Address) -> bool:
        return takes["value"]

    forwards = [Forward(url(mx), mode="after-body") for _ in range(2)]
    Deliveries([Route(forwards[0], "*@a.example"), Route(forwards[1], second)]).attach(server)
    server.start()
    with dial(server) as peer:
        talk(peer, "LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("250")
        talk(peer, "MAIL FROM:<>", "RCPT TO:<jo@a.example>")
        takes["value"] = True
        assert talk(peer, "DATA")[0].startswith("451 4.3.5")
    assert got.mail == []
    assert "would be delivered by Forward and Forward" in caplog.text
    server.stop(timeout=1)


class Expand:
    """A middleware that makes a recipient of each next hop of one RCPT."""

    verbs = ("RCPT",)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        proceed(session, command)
        return proceed(session, PathCommand("RCPT", "", Address.parse("list@b.example")))


def test_one_rcpt_that_a_middleware_expands_over_two_next_hops_is_451(two: Callable[..., Two]) -> None:
    made = two("after-body", middleware=[Expand()])
    with dial(made.server) as peer:
        peer.hello()
        said = talk(peer, "MAIL FROM:<>", "RCPT TO:<list@a.example>", "DATA")
        assert [line[:9] for line in said] == ["250 2.1.0", "451 4.3.5", "503 5.5.1"]
    assert made.recipients() == [[], []]


# What the next hop says to a message


@MODES
@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        ("250 2.6.0 <x@y> Queued mail for delivery", "250 2.6.0 <x@y> Queued mail for delivery"),
        ("250 ok 17 qp 4", "250 2.0.0 ok 17 qp 4"),
        ("250 5.1.1 wrong class", "250 2.0.0 5.1.1 wrong class"),
        ("221 2.0.0 bye", "250 2.0.0 bye"),
        ("299 what", "250 2.0.0 what"),
        ("250-2.0.0 one\r\n250 2.0.0 two", "250-2.0.0 one\n250 2.0.0 two"),
        ("250 2.0.0 \x1b[31m\xe9", "250 2.0.0 ?[31m?"),
    ],
)
def test_the_next_hops_positive_reply_is_the_clients(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, says: str, wanted: str
) -> None:
    hop = script(end=says)
    with dial(relay(f"smtp://127.0.0.1:{hop.server.server_port}", mode=mode)) as peer:
        peer.hello()
        for _ in range(2):
            talk(peer, "MAIL FROM:<ann@x.example>", "RCPT TO:<bob@y.example>")
            assert end(peer) == [wanted]


def test_the_log_has_both_our_id_and_the_next_hops_reply(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], caplog: pytest.LogCaptureFixture
) -> None:
    hop = script(end="250-2.0.0 one\r\n250 2.0.0 two")
    server = relay(f"smtp://127.0.0.1:{hop.server.server_port}")
    ids: list[str] = []
    server.on("received", lambda session, ack: ids.append(session.transaction_id))
    with caplog.at_level("INFO"), dial(server) as peer:
        peer.hello()
        talk(peer, "MAIL FROM:<ann@x.example>", "RCPT TO:<bob@y.example>")
        end(peer)
    assert f"{ids[0]}: next hop: 250 2.0.0 one | two" in caplog.messages


def test_a_reply_of_another_handler_stands(relay: Callable[..., SMTPServer], smtp_server: MakeServer) -> None:
    mx = smtp_server()
    helpers.Deliveries(mx)
    server = smtp_server(start=False)
    server.on("received", lambda session, ack: ack.accept(250, "2.0.0 mine"))
    Deliveries([Forward(url(mx))]).attach(server)
    server.start()
    with dial(server) as peer:
        peer.hello()
        talk(peer, "MAIL FROM:<ann@x.example>", "RCPT TO:<bob@y.example>")
        assert end(peer) == ["250 2.0.0 mine"]
    server.stop(timeout=1)


def test_lmtp_replies_reach_a_client_in_smtp_if_they_are_one(
    relay: Callable[..., SMTPServer], script: Callable[..., Script]
) -> None:
    hop = script(LHLO="250 hop.example", end="250 2.0.0 <ann> saved\r\n250 2.0.0 <bob> saved")
    server = relay(f"lmtp://127.0.0.1:{hop.server.server_port}")
    with dial(server) as peer:
        peer.hello()
        talk(peer, "MAIL FROM:<x@x.example>", "RCPT TO:<ann@y.example>", "RCPT TO:<bob@y.example>")
        assert "Ok: queued as" in end(peer)[0]
        hop.does["end"] = "250 2.0.0 <ann> saved"
        talk(peer, "MAIL FROM:<x@x.example>", "RCPT TO:<ann@y.example>")
        assert end(peer) == ["250 2.0.0 <ann> saved"]


@MODES
def test_an_smtp_hop_behind_lmtp_answers_for_each_recipient(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop = script(end="250 2.6.0 taken")
    with dial(relay(f"smtp://127.0.0.1:{hop.server.server_port}", mode=mode, server={"lmtp": True})) as peer:
        talk(peer, "LHLO client.example")
        peer.expect("250")
        talk(peer, "MAIL FROM:<x@x.example>", "RCPT TO:<ann@y.example>", "RCPT TO:<bob@y.example>")
        assert end(peer, 2) == ["250 2.6.0 taken"] * 2


@MODES
def test_in_lmtp_a_refusal_of_the_first_recipient_is_not_that_of_the_others(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop = script(LHLO="250 hop.example", end="550 5.2.1 <ann> gone\r\n250 2.0.0 <bob> saved\r\n250 2.0.0 <cyd> saved")
    server = relay(f"lmtp://127.0.0.1:{hop.server.server_port}", mode=mode, server={"lmtp": True})
    with dial(server) as peer:
        talk(peer, "LHLO client.example")
        peer.expect("250")
        talk(peer, "MAIL FROM:<x@x.example>", *(f"RCPT TO:<{each}@y.example>" for each in ("ann", "bob", "cyd")))
        assert end(peer, 3) == ["550 5.2.1 <ann> gone", "250 2.0.0 <bob> saved", "250 2.0.0 <cyd> saved"]
        assert talk(peer, "MAIL FROM:<x@x.example>")[0].startswith("250")
    assert hop.ended == 1


def test_the_log_names_next_hops_as_people_write_them() -> None:
    assert NextHop(["smtp://127.0.0.1:2525", "smtp://[::1]"]).name == "127.0.0.1:2525, [::1]:25"
    assert NextHop("lmtp+unix:/run/lmtp.sock").name == "/run/lmtp.sock"
