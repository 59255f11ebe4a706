"""Forward: the next hop's replies are the client's, and what it has not accepted is never said to be accepted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery import SRS, Deliveries, Forward, Maildir
from greensmtp.delivery.forward import Hops
from greensmtp.middleware import Auth
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.delivery.forwarding import BODY, MODES, Script, send, url
from tests.delivery.helpers import files
from tests.helpers import free_port, until

if TYPE_CHECKING:
    from tests.conftest import Certificate


@MODES
def test_a_message_passes_with_received_and_added_fields(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = relay(url(mx), mode=mode)

    @server.on("message")
    def add(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.add_header("X-Seen", "yes")

    with dial(server) as peer:
        peer.hello()
        for _ in range(3):  # over one connection to the next hop
            assert "queued as" in send(peer, "bob@example.org", "cyd@example.org")
    assert len(got.mail) == 3
    sender, recipients, body = got.mail[0]
    assert (sender, recipients) == ("ann@example.net", ["bob@example.org", "cyd@example.org"])
    head, _, rest = body.partition(b"X-Seen: yes\r\n")
    assert re.match(rb"Received: from client.example .*\r\n\tby relay.example.com with ESMTP id \S+;", head)
    assert rest == BODY


@MODES
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_with_chunks_and_without_fields(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str, chunked: bool
) -> None:
    mx = smtp_server(extensions={"CHUNKING": chunked, "BINARYMIME": chunked})
    got = helpers.Deliveries(mx)
    with dial(relay(url(mx), mode=mode, received=False)) as peer:
        peer.hello()
        send(peer)
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "250")
        for piece in (BODY[:9], BODY[9:]):
            peer.send(helpers.chunk(piece))
        peer.send(helpers.chunk(b"", last=True))
        peer.expect("250", "250", "250")
        send(peer, body=b"no field\r\n")
    assert [body for _, _, body in got.mail] == [BODY, BODY, b"no field\r\n"]


@MODES
def test_a_body_cannot_continue_our_fields(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    with dial(relay(url(mx), mode=mode)) as peer:
        peer.hello()
        send(peer, body=b" X: y\r\n")
        send(peer, body=b"")
    (_, _, one), (_, _, none) = got.mail
    assert one.partition(b"\r\n\r\n")[2] == b" X: y\r\n"
    assert none.startswith(b"Received: ")


@MODES
@pytest.mark.parametrize(
    ("signal", "reply"),
    [
        ("from", "550 5.1.8 no such sender"),
        ("to", "452 4.2.2 full"),
        ("message", "554 5.7.1 no"),
        ("received", "451 4.7.1 later"),
        ("received", "421 4.3.2 going"),
    ],
)
def test_the_next_hops_refusal_is_the_reply(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str, signal: str, reply: str
) -> None:
    mx = smtp_server()
    on: Any = mx.on
    refuse = {
        "from": lambda session, address, ack: ack.reject(int(reply[:3]), reply[4:]),
        "to": lambda session, address, ack: ack.reject(int(reply[:3]), reply[4:]),
        "message": lambda session, stream, ack: ack.reject(int(reply[:3]), reply[4:]),
        "received": lambda session, ack: ack.reject(int(reply[:3]), reply[4:]),
    }
    on(signal, refuse[signal])
    if signal != "message":
        mx.on("message", lambda session, stream, ack: ack.accept())
    with dial(relay(url(mx), mode=mode)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        said = peer.reply()
        for line in ("RCPT TO:<bob@example.org>", "DATA"):
            if said.startswith("250"):
                peer.line(line)
                said = peer.reply()
        if said.startswith("354"):
            peer.send(BODY + b".\r\n")
            said = peer.reply()
        assert said.strip() == reply.replace("421", "451")
        peer.line("RSET", "NOOP")
        peer.expect("250", "250")


@MODES
def test_half_of_the_recipients(smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)

    @mx.on("to")
    def known(session: Session, address: Address, ack: Ack) -> None:
        ack.accept() if address.local_part == "bob" else ack.reject(550, "5.1.1 unknown")

    with dial(relay(url(mx), mode=mode)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>")
        if mode == "lock-step":
            peer.expect("250", "250", "550 5.1.1 unknown")
            peer.line("DATA")
            peer.expect("354")
            peer.send(BODY + b".\r\n")
            peer.expect("250")
            assert got.mail[0][1] == ["bob@example.org"]
        else:  # nobody gets a message that is refused
            peer.expect("250", "250", "250")
            peer.line("DATA")
            peer.expect("354")
            peer.send(BODY + b".\r\n")
            peer.expect("550 5.1.1 unknown")
            assert got.mail == []


@MODES
def test_in_lmtp_each_recipient_has_its_own_reply(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server(lmtp=True)
    got = helpers.Deliveries(mx)

    @mx.on("received")
    def one_is_full(session: Session, ack: Ack, recipient: Address) -> None:
        ack.reject(452, "4.2.2 full") if recipient.local_part == "cyd" else ack.accept()

    with dial(relay(url(mx, "lmtp"), mode=mode, server={"lmtp": True})) as peer:
        peer.line("LHLO client.example")
        peer.expect("220", "250")
        send(peer, "bob@example.org", "cyd@example.org", "dan@example.org", end="250 2.0.0")
        peer.expect("452 4.2.2 full", "250 2.0.0")
    assert got.mail[0][1] == ["bob@example.org", "cyd@example.org", "dan@example.org"]


@MODES
def test_a_host_that_is_gone_is_451_and_the_next_one_is_tried(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    gone = f"smtp://127.0.0.1:{free_port()}"
    with dial(relay(gone, mode=mode)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        if mode == "lock-step":
            peer.expect("451 4.4.1")
        else:
            peer.line("RCPT TO:<bob@example.org>", "DATA")
            peer.expect("250", "250", "354")
            peer.send(BODY + b".\r\n")
            peer.expect("451 4.4.1")
    with dial(relay([gone, url(mx)], mode=mode)) as peer:
        peer.hello()
        send(peer)
    assert len(got.mail) == 1


@MODES
def test_a_client_that_vanishes_leaves_nothing(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = relay(url(mx), mode=mode)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(b"Subject: x\r\n\r\n" + b"x" * 100_000)
    until(lambda: not server.connections, "the client to be gone")
    with dial(server) as peer:
        peer.hello()
        send(peer)
    assert [len(body) < 1000 for _, _, body in got.mail] == [True]


def refuse_cyd(verb: str) -> Any:
    """Return a middleware that refuses a recipient after the next hop has accepted it."""

    class Refuse:
        verbs = (verb,)

        def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
            reply = proceed(session, command)
            return Reply(550, "5.7.1 not cyd") if "cyd" in str(getattr(command, "address", "")) else reply

    return Refuse()


@MODES
def test_a_recipient_that_a_middleware_refuses_is_not_named_to_the_next_hop(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    with dial(relay(url(mx), mode=mode, server={"middleware": [refuse_cyd("RCPT")]})) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<cyd@example.org>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "550 5.7.1", "250", "354")
        peer.send(BODY + b".\r\n")
        peer.expect("250")
    assert [recipients for _, recipients, _ in got.mail] == [["bob@example.org"]]


def test_in_lock_step_a_late_refusal_of_one_recipient_delivers_to_none(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer]
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = smtp_server(start=False, lmtp=True)

    @server.on("received")
    def not_bob(session: Session, ack: Ack, recipient: Address) -> None:
        ack.reject(550, "5.7.1 not bob") if recipient.local_part == "bob" else ack.accept()

    Deliveries([Forward(url(mx))]).attach(server)
    server.start()
    with dial(server) as peer:
        peer.line("LHLO client.example")
        peer.expect("220", "250")
        send(peer, "bob@example.org", "cyd@example.org", end="550 5.7.1 not bob")
        peer.expect("451 4.3.0")
    assert got.mail == []


# A next hop that misbehaves


@MODES
@pytest.mark.parametrize(
    ("step", "does"),
    [
        (step, does)
        for step in ("banner", "EHLO", "MAIL", "RCPT", "DATA", "body", "end")
        for does in ("close", "garbage", "421 4.3.2 bye", "554 5.3.0 go away")
        # There is no reply within a body, and HELO follows a refused EHLO.
        if (step != "body" or does == "close") and (step != "EHLO" or not does.startswith("554"))
    ],
)
def test_whatever_the_next_hop_does_nothing_is_accepted_and_the_session_goes_on(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, step: str, does: str
) -> None:
    hop = script(**{step: does})
    with dial(relay(f"smtp://127.0.0.1:{hop.server.server_port}", mode=mode)) as peer:
        peer.hello()
        for _ in range(2):
            peer.line("MAIL FROM:<ann@example.net>")
            reply = peer.reply()
            for line in ("RCPT TO:<bob@example.org>", "DATA"):
                if reply.startswith("250"):
                    peer.line(line)
                    reply = peer.reply()
            if reply.startswith("354"):
                peer.send(BODY + b"." + b"\r\n")
                reply = peer.reply()
            own_fault = step in ("banner", "EHLO") or not does.startswith("554")
            assert reply.startswith("451" if own_fault else "554 5.3.0"), reply
            peer.line("RSET")
            peer.expect("250")


@pytest.mark.parametrize("does", ["close", "421 4.3.2 bye"])
@pytest.mark.parametrize(
    ("mode", "step"), [("lock-step", "MAIL"), *(("after-body", each) for each in ("MAIL", "RCPT", "DATA"))]
)
def test_a_host_that_breaks_off_or_says_421_gives_its_turn_to_the_next_one(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, step: str, does: str
) -> None:
    hops = [script(**{step: does}), script(**{step: does}), script()]
    with dial(relay([f"smtp://127.0.0.1:{each.server.server_port}" for each in hops], mode=mode)) as peer:
        peer.hello()
        send(peer)
    assert [each.ended for each in hops] == [0, 0, 1]


def test_in_lmtp_what_was_said_before_the_connection_was_lost_holds(
    relay: Callable[..., SMTPServer], script: Callable[..., Script]
) -> None:
    hop = script(LHLO="250-hop.example\r\n250 PIPELINING\r\n", end="250 2.0.0 ann\r\n550 5.2.1 bob\r\n", after="close")
    with dial(relay(f"lmtp://127.0.0.1:{hop.server.server_port}", server={"lmtp": True})) as peer:
        peer.line("LHLO client.example")
        peer.expect("220", "250")
        send(peer, "ann@example.org", "bob@example.org", "cyd@example.org", end="250")
        peer.expect("550 5.2.1 bob", "451 4.4.2")
    assert hop.ended == 1


def test_a_next_hop_that_hangs_is_ended_by_handler_timeout(
    relay: Callable[..., SMTPServer], script: Callable[..., Script]
) -> None:
    hop = script(RCPT="hang")
    server = relay(f"smtp://127.0.0.1:{hop.server.server_port}", server={"handler_timeout": 0.2})
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "451")
        hop.does.clear()
        peer.line("RSET", "MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "250", "250")


def test_every_end_of_a_transaction_gives_the_connection_back(
    relay: Callable[..., SMTPServer], script: Callable[..., Script]
) -> None:
    hop = script(RCPT="550 5.1.1 no")
    server = relay(f"smtp://127.0.0.1:{hop.server.server_port}", connections=1, wait=0.1)
    ends = ["RSET", "EHLO client.example", "", "QUIT"]
    for end in ends:
        with dial(server) as peer:
            peer.hello()
            peer.line("MAIL FROM:<ann@example.net>")
            peer.expect("250")
            if end:  # else the client just goes
                peer.line(end)
                peer.reply()
                if end != "QUIT":
                    peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
                    peer.expect("250", "550 5.1.1")
        until(lambda: not server.connections, "the client to be gone")


@MODES
def test_a_kept_connection_that_has_died_is_replaced(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop = script()
    server = relay(f"smtp://127.0.0.1:{hop.server.server_port}", mode=mode)
    with dial(server) as peer:
        peer.hello()
        send(peer)
        hop.does["RSET"] = "close"
        send(peer)
    assert hop.ended == 2


@MODES
@pytest.mark.parametrize("refuses", [False, True])
def test_beside_a_maildir_both_have_the_message_or_neither(
    smtp_server: MakeServer, maildir: Maildir, mode: Any, refuses: bool
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)

    @mx.on("received")
    def decide(session: Session, ack: Ack) -> None:
        ack.reject(552, "5.2.3 no") if refuses else ack.accept()

    server = smtp_server(start=False)
    Deliveries([maildir, Forward(url(mx), mode=mode)]).attach(server)
    server.start()
    with dial(server) as peer:
        peer.hello()
        send(peer, end="552 5.2.3 no" if refuses else "250 2.0.0 Ok: queued as")
    assert len(files(maildir)) == (not refuses)
    assert refuses or len(got.mail) == 1
    server.stop(timeout=1)


# TLS and logins


def test_a_token_is_asked_for_each_connection_to_a_verified_host(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], certificate: Certificate
) -> None:
    tokens = iter(["one", "two"])
    seen: list[Any] = []

    def check(credentials: Any) -> bool:
        seen.append((credentials.username, credentials.token))
        return True

    mx = smtp_server(
        middleware=[Auth({}, ["XOAUTH2"], check_token=check)],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
    )
    helpers.Deliveries(mx)
    login: dict[str, Any] = {"username": "jo", "token": lambda: next(tokens)}
    server = relay(url(mx), ca=str(certificate.authority), **login)
    with dial(server) as one, dial(server) as two:
        for peer in (one, two):
            peer.hello()
            peer.line("MAIL FROM:<ann@example.net>")
            peer.expect("250")
    with dial(relay(url(mx), **login)) as peer:  # the system does not know that authority
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        peer.expect("451")
    assert seen == [("jo", "one"), ("jo", "two")]


# What is passed on


def test_what_the_next_hop_does_not_offer(relay: Callable[..., SMTPServer], script: Callable[..., Script]) -> None:
    hop = script()
    with dial(relay(f"smtp://127.0.0.1:{hop.server.server_port}")) as peer:
        peer.hello()
        peer.send("MAIL FROM:<jürgen@example.net> SMTPUTF8\r\n".encode())
        peer.expect("553 5.6.7")
        peer.line("MAIL FROM:<ann@example.net> BODY=BINARYMIME")
        peer.expect("554 5.6.3")
        send(peer)


def test_parameters_and_the_client_are_passed_on(smtp_server: MakeServer, relay: Callable[..., SMTPServer]) -> None:
    mx = smtp_server(xforward_from=["127.0.0.1"], extensions={"DSN": True})
    helpers.Deliveries(mx)
    seen: dict[str, Any] = {}

    @mx.on("message")
    def look(session: Session, stream: MessageStream, ack: Ack) -> None:
        seen.update(session.forwarded or {}, mail=session.from_ext, rcpt=session.to[0].parameters)

    with dial(relay(url(mx), server={"extensions": {"DSN": True}}), source=("192.0.2.7", 4711)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net> RET=HDRS ENVID=x1", "RCPT TO:<bob@example.org> NOTIFY=NEVER", "DATA")
        peer.expect("250", "250", "354")
        peer.send(BODY + b".\r\n")
        peer.expect("250")
    assert (seen["ADDR"], seen["PORT"], seen["HELO"], seen["PROTO"]) == ("192.0.2.7", "4711", "client.example", "ESMTP")
    assert seen["mail"]["RET"] == "HDRS"
    assert seen["mail"]["ENVID"] == "x1"
    assert seen["rcpt"] == {"NOTIFY": "NEVER"}


@MODES
def test_a_message_that_goes_round_is_refused(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    with dial(relay(url(mx), mode=mode, max_hops=3)) as peer:
        peer.hello()
        send(peer, body=b"Received: a\r\nRECEIVED: b\r\nSubject: x\r\n\r\nReceived: c\r\n")
        send(peer, body=b"Received: a\r\nRECEIVED: b\r\nreceived: c\r\n\r\n", end="554 5.4.6")
    assert len(got.mail) == 1


@pytest.mark.parametrize("cut", range(45))
def test_received_fields_are_counted_at_every_cut(cut: int) -> None:
    body = b"Received: a\r\nX: y\r\nReceived: b\r\n\r\nReceived: c\r\n"
    for most, wanted in ((2, True), (3, False)):
        hops, refused = Hops(most), False
        try:
            hops.feed(body[:cut])
            hops.feed(body[cut:])
        except Reject:
            refused = True
        assert refused is wanted


def test_addresses_are_rewritten(smtp_server: MakeServer, relay: Callable[..., SMTPServer]) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = relay(
        url(mx),
        srs_domain="relay.example",
        srs_secret=["new", "old"],
        rewrite_recipient=lambda session, address: f"{address.local_part}@inside.example",
    )
    made = SRS("relay.example", "old").forward("jo@example.com")
    with dial(server) as peer:
        peer.hello()
        send(peer)
        send(peer, made)
        peer.line("MAIL FROM:<>", "RCPT TO:<SRS0=AAAA=AA=example.com=jo@relay.example>")
        peer.expect("250", "550 5.1.1")
    assert got.mail[0][0] == SRS("relay.example", "new").forward("ann@example.net")
    assert got.mail[0][1] == ["bob@inside.example"]
    assert got.mail[1][1] == ["jo@inside.example"]


def test_a_large_body_takes_no_memory(smtp_server: MakeServer, relay: Callable[..., SMTPServer]) -> None:
    import tracemalloc

    mx = smtp_server(max_message_size=None)
    sizes: list[int] = []

    @mx.on("message")
    def count(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        sizes.append(sum(map(len, stream)))

    server = relay(url(mx), server={"max_message_size": None})
    line = b"x" * 998 + b"\r\n"
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        tracemalloc.start()
        try:
            for _ in range(200):
                peer.send(line * 100)
            peer.send(b".\r\n")
            peer.expect("250")
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sizes[0] > 20_000_000
    assert most < 5_000_000


# Arguments


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"to": []}, "to: expected at least one URL"),
        ({"to": "what ever"}, "to: expected the URL of a mail server"),
        ({"to": "lmtp://mx.example.com"}, "to: expected a port for LMTP"),
        ({"to": ["smtp://a.example", "smtps://b.example"]}, "to: expected URLs of one scheme"),
        ({"to": "smtp://a.example", "mode": "late"}, "mode: expected 'lock-step' or 'after-body'"),
        ({"to": "smtp://a.example", "ca": "/none.pem"}, "ca cannot read the authorities in '/none.pem'"),
        ({"to": "smtp://a.example", "max_hops": 0}, "max_hops: expected at least 1"),
        ({"to": "smtp://a.example", "connections": 0}, "above 0 as size"),
        ({"to": "smtp://a.example", "starttls": "maybe"}, "expected as starttls one of"),
        ({"to": "smtp://a.example", "username": "jo"}, "expected a username with a password or a token"),
        ({"to": "smtp://a.example", "srs_domain": "x.example"}, "srs_domain and srs_secret must be given together"),
        ({"to": "smtp://a.example", "srs_domain": "x y", "srs_secret": "s"}, "srs_domain malformed domain"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Forward(**options)
