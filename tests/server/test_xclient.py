"""XCLIENT and XFORWARD: the peers that may send them, and what they change."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from gevent import Timeout

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.chain.compose import when
from greensmtp.delivery import received_field
from greensmtp.middleware import AccessList, Auth, ConnectionLimit, Logging, Metrics, RateLimit
from greensmtp.predicates import outside
from greensmtp.protocol.proxy_header import ProxyHeader
from greensmtp.protocol.sasl.exchange import Identity
from greensmtp.protocol.xclient import names
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.server.test_overload import wait_until
from tests.server.test_proxy import Life

PROXY = ("10.0.0.5", 4711)
OTHER = ("203.0.113.9", 1)

CLIENT = "XCLIENT NAME=client.example ADDR=192.0.2.1 PORT=52000 HELO=helo.example PROTO=ESMTP"
AFTER = ("192.0.2.1", 52000)


def trusting(smtp_server: MakeServer, *middleware: Any, **options: Any) -> SMTPServer:
    """A server that takes both verbs from 10.0.0.0/8, accepts all mail, and does not listen."""
    networks = {"xclient_from": ["10.0.0.0/8"], "xforward_from": ["10.0.0.0/8"]}
    server = smtp_server(start=False, middleware=middleware, **(networks | options))
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


def dial_proxy(server: SMTPServer, source: tuple[str, int] = PROXY) -> Peer:
    """Connect as a proxy that has said EHLO."""
    peer = dial(server, source=source)
    peer.hello()
    return peer


def session_of(server: SMTPServer) -> Session:
    (handler,) = server.connections
    return handler.session


def offers(peer: Peer) -> list[str]:
    """Return the offers of the two verbs in the reply to EHLO."""
    peer.line("EHLO x")
    return [line[4:] for line in peer.expect("250").splitlines() if line[4:].startswith("X")]


# Trusted peers


def test_both_are_offered_to_trusted_peers_alone(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as peer:
        assert offers(peer) == [f"{verb} {' '.join(names(verb))}" for verb in ("XCLIENT", "XFORWARD")]
        peer.line("HELO x")
        assert "X" not in peer.expect("250")
    with dial_proxy(server, OTHER) as peer:
        assert offers(peer) == []


@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
def test_each_has_networks_of_its_own(smtp_server: MakeServer, verb: str) -> None:
    server = smtp_server(start=False, **{f"{verb.lower()}_from": ["10.0.0.5"]})
    other = {"XCLIENT": "XFORWARD", "XFORWARD": "XCLIENT"}[verb]
    with dial_proxy(server) as peer:
        assert [offer.split(" ")[0] for offer in offers(peer)] == [verb]
        peer.line(f"{other} ADDR=192.0.2.1")
        peer.expect("502 5.5.1")


def test_help_names_the_verbs_that_the_peer_may_send(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server, xforward_from=["203.0.113.0/24"])
    for source, known, hidden in ((PROXY, "XCLIENT", "XFORWARD"), (OTHER, "XFORWARD", "XCLIENT")):
        with dial_proxy(server, source) as peer:
            peer.line("HELP")
            verbs = peer.expect("214").split("\n")[0].split()
            assert known in verbs
            assert hidden not in verbs
            peer.line(f"HELP {known}", f"HELP {hidden}")
            peer.expect("214", "504 5.5.4")


@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
def test_others_are_refused(smtp_server: MakeServer, verb: str) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server, OTHER) as peer:
        peer.line(f"{verb} ADDR=192.0.2.1")
        peer.expect("550 5.7.0")
        session = session_of(server)
        assert (session.peer, session.xclient, session.forwarded) == (OTHER, None, None)
    with dial(smtp_server(start=False), source=PROXY) as peer:
        peer.hello()
        peer.line(f"{verb} ADDR=192.0.2.1")
        peer.expect("502 5.5.1")


def test_a_unix_socket_is_trusted_only_by_name(smtp_server: MakeServer) -> None:
    with dial(trusting(smtp_server)) as peer:
        peer.hello()
        assert offers(peer) == []
    with dial(trusting(smtp_server, xclient_from=["unix"])) as peer:
        peer.hello()
        peer.line(CLIENT)
        peer.expect("220")


def test_behind_a_proxy_header_the_client_must_be_trusted_not_the_proxy(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server, proxy_from=["10.0.0.5"])
    for client, code in (("192.0.2.1", "550 5.7.0"), ("10.1.2.3", "220")):
        with dial(server, source=PROXY) as peer:
            peer.send(f"PROXY TCP4 {client} 198.51.100.25 52000 25\r\n".encode())
            peer.hello()
            peer.line("XCLIENT ADDR=192.0.2.9")
            peer.expect(code)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY TCP4 10.0.0.5 198.51.100.25 4711 25\r\n",  # the proxy's own end
        ProxyHeader(2, "UNKNOWN", is_local=True).format(),
        ProxyHeader(2, "UNIX", "/run/client", "/run/proxy").format(),
    ],
    ids=["unknown", "own end", "local", "unix"],
)
def test_a_proxy_header_without_a_client_gives_no_trust(smtp_server: MakeServer, header: bytes) -> None:
    with dial(trusting(smtp_server, proxy_from=["10.0.0.5"]), source=PROXY) as peer:
        peer.send(header)
        peer.hello()
        assert offers(peer) == []
        peer.line("XCLIENT ADDR=192.0.2.1 LOGIN=root", "XFORWARD NAME=x")
        peer.expect("550 5.7.0", "550 5.7.0")


def test_the_client_that_was_named_is_not_trusted(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as peer:
        peer.line(CLIENT)
        peer.expect("220")
        assert offers(peer) == []
        peer.line("XCLIENT ADDR=10.0.0.5", "XFORWARD NAME=x")
        peer.expect("550 5.7.0", "550 5.7.0")
        assert session_of(server).peer == AFTER


@pytest.mark.parametrize("address", ["[UNAVAILABLE]", "[TEMPUNAVAIL]"])
def test_a_client_without_an_address_is_not_trusted_either(smtp_server: MakeServer, address: str) -> None:
    server = trusting(smtp_server, AccessList(allow=["10.0.0.0/8"]), xclient_from=["10.0.0.0/8", "unix"])
    with dial_proxy(server) as peer:
        peer.line(f"XCLIENT ADDR={address}")
        peer.expect("554 5.7.1")
        peer.expect_end()
    with dial_proxy(trusting(smtp_server, xclient_from=["10.0.0.0/8", "unix"])) as peer:
        peer.line(f"XCLIENT ADDR={address} NAME=[UNAVAILABLE]")
        peer.expect("220")
        peer.line(CLIENT)
        peer.expect("550 5.7.0")


# XCLIENT


def test_it_begins_another_session(smtp_server: MakeServer) -> None:
    life = Life()
    server = trusting(smtp_server, life)
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    with dial_proxy(server) as peer:
        peer.deliver()
        peer.line("NONSENSE")
        peer.expect("500")
        session = session_of(server)
        session.notes["mine"] = 1
        peer.line(CLIENT)
        peer.expect("220 mx.example.com ESMTP")
        assert session_of(server) is session
        assert (session.peer, session.peer_host) == (AFTER, "192.0.2.1")
        assert session.xclient == {
            "NAME": "client.example",
            "ADDR": "192.0.2.1",
            "PORT": "52000",
            "HELO": "helo.example",
            "PROTO": "ESMTP",
        }
        assert (session.greeting, session.hostname, session.messages_accepted, session.errors) == (None, None, 0, 0)
        assert session.notes["mine"] == 1
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("503 5.5.1")
        peer.line("EHLO client.example")
        peer.expect("250")
        assert "from client.example ([192.0.2.1])" in received_field(session).decode()
        peer.deliver()
        peer.line("QUIT")
        peer.expect("221")
    wait_until(server, 0)
    assert [(verb, where) for verb, where, _ in life.seen] == [
        *((verb, PROXY) for verb in ("ACCEPT", "CONNECT", "DISCONNECT")),
        *((verb, AFTER) for verb in ("ACCEPT", "CONNECT", "DISCONNECT")),
    ]
    assert reasons == ["xclient", "quit"]


@pytest.mark.parametrize(
    ("arguments", "peer"),
    [
        ("ADDR=IPV6:2001:db8::1 PORT=25", ("2001:db8::1", 25)),
        ("ADDR=IPV6:::ffff:192.0.2.1 PORT=25", ("192.0.2.1", 25)),
        ("addr=192.0.2.1", ("192.0.2.1", 0)),
        ("PORT=77", ("10.0.0.5", 77)),
        ("PORT=[UNAVAILABLE]", PROXY),
        ("NAME=[TEMPUNAVAIL] LOGIN=jo+40example.com", PROXY),
        ("DESTADDR=198.51.100.25 DESTPORT=25", PROXY),
    ],
)
def test_it_may_name_a_part(smtp_server: MakeServer, arguments: str, peer: Any) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as proxy:
        proxy.line(f"XCLIENT {arguments}")
        proxy.expect("220")
        assert session_of(server).peer == peer


def test_several_add_up(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as peer:
        peer.line("XCLIENT NAME=client.example LOGIN=jo", "XCLIENT NAME=[UNAVAILABLE] PORT=7", "XCLIENT ADDR=192.0.2.1")
        peer.expect("220", "220", "220")
        session = session_of(server)
        assert session.xclient == {"LOGIN": "jo", "PORT": "7", "ADDR": "192.0.2.1"}
        assert str(session.identity) == "jo"


@pytest.mark.parametrize(
    "arguments", ["", "ADDR=host.example", "ADDR=192.0.2.1 ADDR=192.0.2.2", "IDENT=x", "PORT=99999", "ADDR", "HELO=+0A"]
)
def test_a_malformed_one_changes_nothing(smtp_server: MakeServer, arguments: str) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as peer:
        peer.line(f"XCLIENT {arguments}")
        peer.expect("501 5.5.4")
        session = session_of(server)
        assert (session.peer, session.xclient, session.greeting) == (PROXY, None, "ehlo")


@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_neither_may_come_in_a_transaction(smtp_server: MakeServer, verb: str, count: int) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as peer:
        for line in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "BDAT 3\r\nx")[:count]:
            peer.line(line)
            peer.expect("250")
        peer.line(f"{verb} ADDR=192.0.2.1")
        peer.expect("503 5.5.1")
        assert session_of(server).from_ == "a@example.org"


def test_what_is_pipelined_behind_it_is_the_clients(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)
    senders: list[Any] = []

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        senders.append((session.peer, session.hostname))
        ack.accept()

    with dial_proxy(server) as peer:
        peer.line(CLIENT, "EHLO client.example", "XCLIENT ADDR=10.0.0.5", "MAIL FROM:<a@example.org>")
        peer.expect("220", "250", "550 5.7.0", "250")
    assert senders == [(AFTER, "client.example")]


@pytest.mark.parametrize(
    "middleware", [AccessList(deny=["192.0.2.1"]), RateLimit("1/hour", on="connections")], ids=repr
)
def test_address_limits_see_the_client(smtp_server: MakeServer, middleware: Any) -> None:
    server = trusting(smtp_server, middleware)
    codes = []
    for source in (PROXY, ("10.0.0.6", 1)):
        with dial_proxy(server, source) as peer:
            peer.line(CLIENT)
            codes.append(peer.reply()[:3])
            if codes[-1] != "220":
                peer.expect_end()
    assert codes == (["554", "554"] if isinstance(middleware, AccessList) else ["220", "421"])


def test_connection_limit_counts_the_client_in_place_of_the_proxy(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=1)
    server = trusting(smtp_server, limit)
    with dial_proxy(server) as first:
        assert limit.count("10.0.0.5") == 1
        first.line(CLIENT)
        first.expect("220")
        assert (limit.count("10.0.0.5"), limit.count("192.0.2.1")) == (0, 1)
        with dial_proxy(server) as second:
            second.line(CLIENT)
            second.expect("421")
            second.expect_end()
    wait_until(server, 0)
    assert limit._counts == {}


def test_a_limit_may_be_for_clients_alone(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=1)
    server = trusting(smtp_server, when(outside("10.0.0.0/8"), limit))
    with dial_proxy(server), dial_proxy(server) as second:
        assert limit._counts == {}
        second.line(CLIENT)
        second.expect("220")
        assert limit.count("192.0.2.1") == 1
    wait_until(server, 0)
    assert limit._counts == {}


def test_a_change_that_is_refused_refuses_xclient(smtp_server: MakeServer) -> None:
    def refuse() -> None:
        raise Reject(550, "5.7.1 staged, and refused")

    def stage(session: Session, command: Command, proceed: Proceed) -> Reply:
        session.stage(refuse)
        return proceed(session, command)

    stage.verbs = ("XCLIENT",)  # type: ignore[attr-defined]
    server = trusting(smtp_server, stage)
    with dial_proxy(server) as peer:
        peer.line(CLIENT)
        peer.expect("550 5.7.1 staged, and refused")
        assert session_of(server).peer == PROXY


def test_long_values_fit_the_line(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)
    with dial_proxy(server) as peer:
        peer.line(f"XCLIENT ADDR=192.0.2.1 LOGIN={'+2B' * 255} HELO={'+2B' * 255}")
        peer.expect("220")
        assert session_of(server).xclient == {"ADDR": "192.0.2.1", "LOGIN": "+" * 255, "HELO": "+" * 255}
    with dial_proxy(server) as peer:
        peer.line(f"XCLIENT ADDR=192.0.2.1 LOGIN={'+2B' * 1000}")
        peer.expect("500 5.5.6")


def test_places_are_counted_by_client(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server, max_connections=10)
    with dial_proxy(server) as peer:
        peer.line(CLIENT)
        peer.expect("220")
        assert set(server._registry.places._holders) == {"192.0.2.1"}
    wait_until(server, 0)
    assert server._registry.places.taken == 0


def test_a_refusal_at_connect_closes(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        if session.peer == AFTER:
            ack.reject(550, "5.7.1 not you")
        else:
            ack.accept()

    with dial_proxy(server) as peer:
        peer.line(CLIENT, "EHLO client.example")
        peer.expect("554 5.7.1 not you")
        peer.expect_end()
    wait_until(server, 0)


def test_login_is_the_identity(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server, Auth({"jo": "secret"}, required=True))
    heard: list[Identity] = []

    @server.on("auth")
    def auth(session: Session, identity: Identity, ack: Ack) -> None:
        heard.append(identity)
        if identity.authcid == "mallory":
            raise Reject(535, "5.7.8 blocked")
        ack.accept()

    with dial_proxy(server) as peer:
        peer.line("XCLIENT LOGIN=jo@example.com ADDR=192.0.2.1", "EHLO x", "MAIL FROM:<a@example.org>")
        peer.expect("220", "250", "250")
        assert session_of(server).identity == Identity("jo@example.com", mechanism="XCLIENT")
        assert session_of(server).protocol == "ESMTPA"
    for login in ("[UNAVAILABLE]", "mallory"):
        with dial_proxy(server) as peer:
            peer.line(f"XCLIENT LOGIN={login} ADDR=192.0.2.1", "EHLO x", "MAIL FROM:<a@example.org>")
            if login == "mallory":
                peer.expect("554 5.7.8 blocked")
                peer.expect_end()
            else:
                peer.expect("220", "250", "530")
    assert [identity.authcid for identity in heard] == ["jo@example.com", "mallory"]


class AnswerXclient:
    """A middleware that answers XCLIENT by itself, before or after the others."""

    verbs = ("XCLIENT",)

    def __init__(self, code: int, *, after: bool) -> None:
        self.code, self.after = code, after

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if self.after:
            proceed(session, command)
        return Reply(self.code, "overruled")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("code", [220, 250, 450, 550])
def test_a_middleware_may_refuse_it_and_no_more(smtp_server: MakeServer, code: int, after: bool) -> None:
    server = trusting(smtp_server, AnswerXclient(code, after=after))
    with dial_proxy(server) as peer:
        peer.line(CLIENT)
        restarts = after and code == 220
        peer.expect("220" if restarts else "451" if code == 220 else str(code))
        assert session_of(server).peer == (AFTER if restarts else PROXY)


def test_a_command_handler_sees_and_may_refuse_them(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)

    @server.on("command")
    def command(session: Session, command: Command, ack: Ack) -> None:
        if command.verb.startswith("X"):
            ack.reject(550, "5.7.1 no")

    with dial_proxy(server) as peer:
        peer.line(CLIENT, "XFORWARD NAME=x")
        peer.expect("550 5.7.1 no", "550 5.7.1 no")


def test_a_login_whose_handler_raises_a_timeout_of_gevents_is_refused(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = trusting(smtp_server)

    @server.on("auth")
    def check(session: Session, identity: Identity, ack: Ack) -> None:
        raise Timeout(1)

    with dial_proxy(server) as peer:
        peer.line(f"{CLIENT} LOGIN=beep", "NOOP")
        peer.expect("421 4.3.0")
        peer.expect_end()
    assert "uncaught gevent.Timeout while handling XCLIENT; replying 451" in caplog.text


def test_receivers_of_the_proxys_session_are_not_the_clients(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server)

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        def local_only(session: Session, address: Address, ack: Ack) -> None:
            ack.accept()

        session.on("to", local_only)
        ack.accept()

    with dial_proxy(server) as peer:
        peer.line(CLIENT)
        peer.expect("220")
        peer.line("EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250", "250", "250")


def test_the_proxys_session_is_a_debug_line(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    numbers = prometheus.CollectorRegistry()
    caplog.set_level(logging.INFO)
    server = trusting(smtp_server, Logging(), Metrics(numbers))
    with dial_proxy(server) as peer:
        peer.line(CLIENT)
        peer.expect("220")
        peer.line("EHLO client.example")
        peer.expect("250")
        peer.line("QUIT")
        peer.expect("221")
    wait_until(server, 0)
    (line,) = [record.getMessage() for record in caplog.records if "session peer=" in record.getMessage()]
    assert "peer=192.0.2.1" in line
    ends = {end: numbers.get_sample_value("greensmtp_sessions_total", {"end": end}) for end in ("xclient", "quit")}
    assert ends == {"xclient": 1, "quit": 1}


# XFORWARD


def test_it_is_known_until_the_transaction_ends(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = trusting(smtp_server, Logging())
    seen: list[Any] = []

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        seen.append(session.forwarded)
        ack.accept()

    with dial_proxy(server) as peer:
        peer.line("XFORWARD NAME=spike.example ADDR=IPV6:2001:db8::9 PROTO=esmtp", "XFORWARD HELO=a+20b SOURCE=REMOTE")
        peer.expect("250 2.0.0", "250 2.0.0")
        assert session_of(server).peer == PROXY
        peer.deliver()
        peer.deliver()
        peer.line("XFORWARD NAME=x", "XFORWARD NAME=[UNAVAILABLE] IDENT=1", "RSET")
        peer.expect("250", "250", "250")
        assert session_of(server).forwarded is None
    first = {"NAME": "spike.example", "ADDR": "2001:db8::9", "PROTO": "ESMTP", "HELO": "a b", "SOURCE": "REMOTE"}
    assert seen == [first, None]
    records = [record for record in caplog.records if getattr(record, "event", "") == "transaction"]
    assert [record.__dict__["forwarded"] for record in records] == seen
    assert "peer=10.0.0.5 client=spike.example[2001:db8::9] -> 250" in records[0].getMessage()
    assert "client=" not in records[1].getMessage()


def test_a_refused_one_changes_nothing(smtp_server: MakeServer) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(450, "4.7.1 later") if "NAME" in command.argument else reply

    refuse.verbs = ("XFORWARD",)  # type: ignore[attr-defined]
    server = trusting(smtp_server, refuse)
    with dial_proxy(server) as peer:
        peer.line("XFORWARD NAME=x", "XFORWARD LOGIN=x", "XFORWARD")
        peer.expect("450", "501 5.5.4", "501 5.5.4")
        assert session_of(server).forwarded is None


def test_it_changes_neither_limits_nor_access(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=1)
    server = trusting(smtp_server, limit, AccessList(deny=["192.0.2.1"]))
    with dial_proxy(server) as peer:
        peer.line("XFORWARD ADDR=192.0.2.1")
        peer.expect("250")
        peer.deliver()
        assert (limit.count("10.0.0.5"), limit.count("192.0.2.1")) == (1, 0)


def test_text_of_a_proxy_cannot_end_a_log_line(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = trusting(smtp_server, Logging())
    with dial_proxy(server) as peer:
        peer.line("XFORWARD NAME=x+3Cfrom+3Da")
        peer.expect("250")
        peer.deliver()
    (line,) = [record.getMessage() for record in caplog.records if "client=" in record.getMessage()]
    assert r"client=x\x3cfrom\x3da[-]" in line


def test_lmtp_has_both(smtp_server: MakeServer) -> None:
    server = trusting(smtp_server, lmtp=True)
    with dial(server, source=PROXY) as peer:
        peer.expect("220")
        peer.line("LHLO x")
        assert "XCLIENT NAME" in peer.expect("250")
        peer.line(CLIENT, "LHLO client.example")
        peer.expect("220 mx.example.com LMTP", "250")


def test_the_body_is_the_clients(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, xclient_from=["10.0.0.0/8"])
    bodies: list[Any] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append((session.peer, stream.read()))

    with dial_proxy(server) as peer:
        peer.line(CLIENT, "EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        peer.expect("220", "250", "250", "250", "354")
        peer.line("x", ".")
        peer.expect("250")
    assert bodies == [(AFTER, b"x\r\n")]
