"""PROXY headers from trusted proxies: the client that they name, in whatever pieces, and bad headers."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from gevent import idle, socket, spawn
from gevent import ssl as gevent_ssl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greensmtp import Ack, Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery import received_field
from greensmtp.middleware import AccessList, Auth, ConnectionLimit, EarlyTalker, Logging, Metrics, RateLimit
from greensmtp.protocol.proxy_header import SIGNATURE, ProxyHeader
from greensmtp.protocol.proxy_tlv import AUTHORITY, SSL, SSL_CIPHER, SSL_VERSION, ProxySSL
from greensmtp.server import registry
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.server.test_deadline_monitor import advance
from tests.server.test_overload import wait_until

if TYPE_CHECKING:
    from tests.conftest import Certificate, Cuts

PROXY = ("10.0.0.5", 4711)
CLIENT = ("192.0.2.1", 52000)
HERE = ("198.51.100.25", 25)

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.25 52000 25\r\n"
V2 = ProxyHeader(2, "TCP4", CLIENT, HERE).format()
TLS = ProxySSL(is_tls=True, verify=1, tlvs=((SSL_VERSION, b"TLSv1.3"), (SSL_CIPHER, b"TLS_AES_128_GCM_SHA256")))
V2_TLS = ProxyHeader(2, "TCP4", CLIENT, HERE, tlvs=((AUTHORITY, b"mx.example.com"), (SSL, TLS.format()))).format()
LOCAL = ProxyHeader(2, "UNKNOWN", is_local=True).format()

HEADERS = pytest.mark.parametrize("header", [V1, V2, V2_TLS], ids=["v1", "v2", "v2 with TLVs"])

#: What is not a header, or not all of one.
BAD = {
    "another protocol": b"EHLO client.example\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "malformed v1": b"PROXY TCP4 192.0.2.1 198.51.100.25 52000\r\n",
    "v1 without an end": b"PROXY TCP4 " + b"1" * 200,
    "v2 that announces too much": SIGNATURE + b"\x21\x11\xff\xff" + bytes(200),
    "v2 of an unknown version": SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
}


class Life:
    """A middleware: the peer and TLS at each pseudo-command."""

    verbs = ("ACCEPT", "CONNECT", "DISCONNECT")

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, bool]] = []

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        self.seen.append((command.verb, session.peer, session.tls))
        return proceed(session, command)


def proxied(smtp_server: MakeServer, *middleware: Any, **options: Any) -> SMTPServer:
    """A server that trusts 10.0.0.0/8, and does not listen."""
    return smtp_server(start=False, proxy_from=["10.0.0.0/8"], middleware=middleware, **options)


def dial_through(server: SMTPServer, header: bytes = b"", *, proxy: tuple[str, int] = PROXY) -> Peer:
    """Connect as the proxy, and send a header."""
    peer = dial(server, source=proxy)
    if header:
        peer.send(header)
    return peer


# The client


@HEADERS
def test_the_client_is_known_before_anything_else(smtp_server: MakeServer, header: bytes) -> None:
    life = Life()
    server = proxied(smtp_server, life)
    with dial_through(server) as peer:
        peer.expect_nothing()
        assert life.seen == []
        peer.send(header)
        peer.hello()
        (handler,) = server.connections
        assert handler.session.peer == CLIENT
        assert handler.session.proxy is not None
        assert handler.session.proxy.destination == HERE
        assert "[192.0.2.1]" in received_field(handler.session).decode()
    wait_until(server, 0)
    assert life.seen == [(verb, CLIENT, False) for verb in Life.verbs]


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (ProxyHeader(1, "TCP6", ("2001:db8::1", 99), ("2001:db8::2", 25)), ("2001:db8::1", 99)),
        (ProxyHeader(2, "TCP6", ("2001:db8::1", 99), ("2001:db8::2", 25)), ("2001:db8::1", 99)),
        (ProxyHeader(1, "TCP6", ("::ffff:192.0.2.1", 99), ("::ffff:192.0.2.2", 25)), ("192.0.2.1", 99)),
        (ProxyHeader(2, "TCP6", ("::ffff:c000:201", 99), ("::ffff:192.0.2.2", 25)), ("192.0.2.1", 99)),
        # These name no client that has an address: the proxy is the client.
        (ProxyHeader(1, "UNKNOWN"), PROXY),
        (ProxyHeader(2, "UNKNOWN"), PROXY),
        (ProxyHeader(2, "UNKNOWN", is_local=True), PROXY),
        (ProxyHeader(2, "UNIX", "/run/client", "/run/proxy"), PROXY),
    ],
    ids=lambda given: str(given.source if isinstance(given, ProxyHeader) else given[0]),
)
def test_addresses_have_one_form(smtp_server: MakeServer, header: ProxyHeader, peer: Any) -> None:
    server = proxied(smtp_server)
    with dial_through(server, header.format()) as client:
        client.hello()
        (handler,) = server.connections
        assert handler.session.peer == peer
        assert handler.address == peer[0].replace("db8::1", "db8::")


@HEADERS
def test_a_header_may_be_cut_anywhere(smtp_server: MakeServer, header: bytes, cuts: Cuts) -> None:
    wire = header + b"EHLO client.example\r\n"
    server = proxied(smtp_server)
    for cut in cuts(wire):
        with dial_through(server) as peer:
            peer.send(wire, cut=cut)
            peer.expect("220", "250")
            (handler,) = server.connections
            assert handler.session.peer == CLIENT
        wait_until(server, 0)


@HEADERS
def test_a_header_may_come_byte_by_byte(smtp_server: MakeServer, header: bytes) -> None:
    server = proxied(smtp_server)
    with dial_through(server) as peer:
        for at in range(len(header)):
            peer.send(header[at : at + 1])
            idle()
        peer.hello()


def test_a_peer_outside_of_the_networks_is_served_without_a_header(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server)
    with dial(server, source=("11.0.0.1", 1)) as peer:
        peer.hello()


@pytest.mark.parametrize("header", [V1, V2, LOCAL], ids=["v1", "v2", "LOCAL"])
@pytest.mark.parametrize("trusted", [["10.0.0.0/8"], None])
def test_a_header_of_an_untrusted_peer_is_a_bad_command(smtp_server: MakeServer, header: bytes, trusted: Any) -> None:
    server = smtp_server(start=False, proxy_from=trusted)
    source = ("203.0.113.9", 1)
    with dial(server, source=source) as peer:
        peer.expect("220")
        peer.send(header)
        peer.expect("500")
        (handler,) = server.connections
        assert handler.session.peer == source
        assert handler.session.proxy is None


def test_a_header_of_an_untrusted_peer_is_no_handshake(
    smtp_server: MakeServer, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    server = proxied(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(f"{session.peer_host} {reason}"))
    for header in (V1, V2):
        with dial(server, source=("203.0.113.9", 1)) as peer, suppress(AssertionError):  # it may get a TLS alert
            peer.send(header)
            peer.expect_end()
        wait_until(server, 0)
    assert reasons == ["203.0.113.9 tls"] * 2


def test_only_the_first_header_counts(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server)
    with dial_through(server, V1) as peer:
        peer.hello()
        peer.send(V1.replace(b"192.0.2.1", b"10.0.0.9"))
        peer.expect("500")
        (handler,) = server.connections
        assert handler.session.peer == CLIENT


@pytest.mark.parametrize("networks", [["unix"], ["10.0.0.0/8", "unix"]], ids=str)
def test_a_proxy_may_come_over_a_unix_socket(smtp_server: MakeServer, tmp_path: Path, networks: list[str]) -> None:
    server = smtp_server(listener=str(tmp_path / "smtp.sock"), proxy_from=networks)
    with dial(server) as peer:
        peer.send(V2 + b"EHLO client.example\r\n")
        peer.expect("220", "250")
        (handler,) = server.connections
        assert handler.session.peer == CLIENT


def test_a_proxy_may_have_bound_its_unix_socket(smtp_server: MakeServer, tmp_path: Path) -> None:
    smtp_server(listener=str(tmp_path / "smtp.sock"), proxy_from=["unix"])
    ours = socket.socket(socket.AF_UNIX)
    ours.bind(str(tmp_path / "proxy.sock"))
    ours.connect(str(tmp_path / "smtp.sock"))
    with Peer(ours) as peer:
        peer.send(V2)
        peer.hello()


def test_a_peer_that_is_no_address_is_no_proxy(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, proxy_from=["0.0.0.0/0", "::/0", "unix"])
    with dial(server, source=("client.example", 1)) as peer:
        peer.hello()


def test_a_unix_socket_is_no_proxy_by_itself(smtp_server: MakeServer) -> None:
    with dial(proxied(smtp_server)) as peer:
        peer.hello()


def test_a_proxy_with_a_mapped_address_is_trusted_too(smtp_server: MakeServer) -> None:
    with dial_through(proxied(smtp_server), V1, proxy=("::ffff:10.0.0.5", 1)) as peer:
        peer.hello()


# TLS


def client_hello(certificate: Certificate) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A TLS client in memory that has written its first flight."""
    context = ssl.create_default_context(cafile=str(certificate.authority))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="mx.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return tls, incoming, outgoing


@HEADERS
@pytest.mark.parametrize("whole", [True, False], ids=["in one piece", "cut behind the header"])
def test_a_handshake_may_follow_in_the_same_piece(
    smtp_server: MakeServer, certificate: Certificate, header: bytes, whole: bool
) -> None:
    server = proxied(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    tls, incoming, outgoing = client_hello(certificate)
    with dial_through(server) as peer:
        peer.send(header + outgoing.read(), cut=None if whole else len(header))
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(peer.socket.recv(65536))
        peer.send(outgoing.read())
        said = b""
        while not said.endswith(b"\r\n"):
            try:
                said += tls.read()
            except ssl.SSLWantReadError:
                incoming.write(peer.socket.recv(65536))
        assert said.startswith(b"220 mx.example.com")
        (handler,) = server.connections
        assert handler.session.tls
        assert handler.session.peer == CLIENT


def test_no_header_is_read_from_a_tls_socket_that_is_adopted(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = proxied(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile)
    ours, theirs = socket.socketpair()
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate.authority)
    connecting = spawn(context.wrap_socket, ours, server_hostname="mx.example.com")
    server.adopt(gevent_ssl.SSLSocket(sock=theirs, server_side=True, _context=server.tls_context), PROXY)
    with Peer(connecting.get(timeout=10)) as peer:
        peer.hello()
        (handler,) = server.connections
        assert (handler.session.tls, handler.session.peer, handler.session.proxy) == (True, PROXY, None)


def test_starttls_works_behind_a_proxy(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = proxied(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with dial_through(server, V2_TLS) as peer:
        assert "STARTTLS" in peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example")
        assert "STARTTLS" not in peer.reply()


def test_tls_of_the_proxy_counts_where_it_is_told_to(smtp_server: MakeServer, certificate: Certificate) -> None:
    life, auth = Life(), Auth({"jo": "secret"})
    server = proxied(
        smtp_server, life, auth, certfile=certificate.certfile, keyfile=certificate.keyfile, proxy_tls=True
    )
    heard: list[bool] = []
    server.on("tls", lambda session: heard.append(session.tls))
    with dial_through(server, V2_TLS) as peer:
        reply = peer.hello()
        assert "STARTTLS" not in reply
        assert "AUTH" in reply
        assert "-PLUS" not in reply
        peer.line("STARTTLS")
        peer.expect("503 5.5.1")
        (handler,) = server.connections
        session = handler.session
        assert (session.tls, session.protocol) == (True, "ESMTPS")
        assert (session.tls_version, session.tls_cipher) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
        assert session.proxy is not None
        assert session.proxy.authority == "mx.example.com"
    wait_until(server, 0)
    assert life.seen == [(verb, CLIENT, True) for verb in Life.verbs]
    assert heard == [True]
    for header in (V1, V2):  # these say nothing of TLS
        with dial_through(server, header) as peer:
            assert "STARTTLS" in peer.hello()


def test_tls_of_the_proxy_does_not_count_unless_it_is_told_to(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server, Auth({"jo": "secret"}, mechanisms=["PLAIN"]))
    with dial_through(server, V2_TLS) as peer:
        assert "AUTH" not in peer.hello()
        (handler,) = server.connections
        assert handler.session.tls is False
        assert handler.session.tls_version is None


def test_logging_and_metrics_know_the_proxys_tls(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    numbers = prometheus.CollectorRegistry()
    caplog.set_level(logging.INFO)
    server = proxied(smtp_server, Logging(), Metrics(numbers), proxy_tls=True)
    with dial_through(server, V2_TLS) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
    wait_until(server, 0)
    (line,) = [record.getMessage() for record in caplog.records if "session peer=" in record.getMessage()]
    assert "peer=192.0.2.1 tls=TLSv1.3/TLS_AES_128_GCM_SHA256" in line
    assert numbers.get_sample_value("greensmtp_tls_sessions_total", {"version": "TLSv1.3"}) == 1


# The proxy itself


def test_what_a_proxy_says_of_tls_forges_no_field_of_a_log_line(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greensmtp.session")
    tls = ProxySSL(is_tls=True, tlvs=((SSL_VERSION, b"TLSv1.3 from=<a@example.org>\r\nx"), (SSL_CIPHER, b"x to=<b>")))
    header = ProxyHeader(2, "TCP4", CLIENT, HERE, tlvs=((SSL, tls.format()),)).format()
    server = proxied(smtp_server, Logging(), proxy_tls=True)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial_through(server, header) as peer:
        peer.hello()
        peer.deliver()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
    message, session = (record.getMessage() for record in caplog.records)
    assert "from=<a@" not in message
    assert "from=" not in session
    assert "to=" not in session
    assert "\n" not in message + session


@pytest.mark.parametrize(
    "header",
    [LOCAL, b"PROXY UNKNOWN\r\n", b"PROXY TCP4 10.0.0.5 10.0.0.1 4711 25\r\n", b""],
    ids=["LOCAL", "UNKNOWN", "the proxy's own address", "no byte"],
)
def test_health_checks_fill_no_log(smtp_server: MakeServer, header: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = proxied(smtp_server, Logging())
    with dial_through(server, header) as peer:
        if header:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
    wait_until(server, 0)
    assert [record for record in caplog.records if record.name.startswith("greensmtp")] == []
    assert not server._registry.arriving.taken


def test_health_checks_without_a_handshake_fill_no_log(
    smtp_server: MakeServer, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = proxied(
        smtp_server, Logging(), certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True
    )
    with dial_through(server, LOCAL) as peer:
        peer.let_it_read()
    wait_until(server, 0)
    assert caplog.messages == []


def test_mail_of_the_proxy_itself_is_logged(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = proxied(smtp_server, Logging())
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial_through(server, LOCAL) as peer:
        peer.hello()
        peer.deliver()
        peer.line("QUIT")
        peer.expect("221")
    wait_until(server, 0)
    events = [record.__dict__["event"] for record in caplog.records if "event" in record.__dict__]
    assert events == ["transaction", "session"]


# Bad headers


def closed_without_a_word(server: SMTPServer, wire: bytes, caplog: pytest.LogCaptureFixture, *, hang_up: bool) -> str:
    """Send this as a proxy: nothing is answered, all is freed, and one line is logged. Return the line."""
    caplog.clear()
    with dial_through(server, wire) as peer:
        if hang_up:
            peer.let_it_read()
            peer.socket.shutdown(1)
        peer.expect_end()
    wait_until(server, 0)
    assert server._registry.arriving.taken == server._registry.places.taken == 0
    (line,) = [record for record in caplog.records if record.name == "greensmtp"]
    assert line.levelno == logging.INFO
    assert "closed a connection from proxy 10.0.0.5" in line.getMessage()
    return line.getMessage()


@pytest.mark.parametrize("wire", BAD.values(), ids=BAD)
@pytest.mark.parametrize("implicit_tls", [False, True], ids=["", "implicit TLS"])
def test_a_malformed_header_closes_the_connection(
    smtp_server: MakeServer,
    certificate: Certificate,
    wire: bytes,
    implicit_tls: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    life = Life()
    server = proxied(
        smtp_server, life, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=implicit_tls
    )
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    closed_without_a_word(server, wire, caplog, hang_up=False)
    assert reasons == ["proxy"]
    assert [verb for verb, _, _ in life.seen] == ["DISCONNECT"]


@HEADERS
def test_an_unfinished_header_is_no_header(
    smtp_server: MakeServer, header: bytes, cuts: Cuts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = proxied(smtp_server)
    for cut in cuts(header):
        line = closed_without_a_word(server, header[:cut], caplog, hang_up=True)
        assert f"the connection ended after {cut} bytes" in line


@pytest.mark.parametrize("wire", [b"", V1[:20], V2[:14]], ids=["nothing", "half of v1", "half of v2"])
def test_a_late_header_closes_the_connection(
    smtp_server: MakeServer, wire: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = proxied(smtp_server, proxy_timeout=7)
    with dial_through(server, wire) as peer:
        peer.let_it_read()
        advance(server, 6)
        assert len(server.connections) == server._registry.arriving.taken == 1
        assert server._registry.places.taken == 0
        advance(server, 2)
        peer.expect_end()
    wait_until(server, 0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "greensmtp"]
    assert f"no PROXY header within 7 s, but {len(wire)} bytes" in line


def test_a_header_that_drips_is_late_too(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server, proxy_timeout=700)
    with dial_through(server) as peer:
        for at in range(4):
            peer.send(V1[at : at + 1])
            peer.let_it_read()
            advance(server, 200)
        peer.expect_end()


@given(
    data=st.binary(max_size=80)
    | st.builds(bytes.__add__, st.sampled_from([b"PROXY ", V1[:30], V2[:16]]), st.binary(max_size=80))
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_proxy_sends_the_server_is_none_the_worse(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    server = proxied(smtp_server)
    with dial_through(server, data) as peer:
        peer.let_it_read()
        with suppress(OSError):
            peer.socket.shutdown(1)
        wait_until(server, 0)
    assert server._registry.arriving.taken == server._registry.places.taken == 0
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_stop_does_not_wait_for_a_header(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server)
    with dial_through(server, V1[:10]) as peer:
        peer.let_it_read()
        began = monotonic()
        server.stop(timeout=10)
        assert monotonic() - began < 5
        peer.expect("421 4.3.2")
        peer.expect_end()


def test_half_headers_do_not_keep_other_clients_out(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_ARRIVING", 5)
    server = proxied(smtp_server, proxy_timeout=7)
    flood = [dial_through(server, V2[:10]) for _ in range(5)]
    flood[0].let_it_read()
    with dial_through(server) as surplus, dial(server, source=("203.0.113.1", 1)) as other:
        surplus.expect("421 4.7.0 Too many connections")
        other.hello()  # it takes the place of one of the flood
        with dial_through(server, V1, proxy=("10.0.0.6", 1)) as through_another:
            through_another.hello()
    advance(server, 8)
    wait_until(server, 0)
    assert server._registry.arriving.taken == 0
    with dial_through(server, V1) as peer:
        peer.hello()
    for each in flood:
        each.close()


# Limits by the real client


def test_clients_of_a_proxy_have_a_place_each(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server, max_connections=2)
    with dial_through(server, V1) as first, dial_through(server) as second, dial_through(server) as other:
        first.hello()
        second.send(V2)
        second.hello()
        other.send(V1.replace(b"192.0.2.1 ", b"192.0.2.9 "))
        other.hello()  # the newcomer from an address with fewer displaces one of the busiest
        first.expect("421 4.7.0")
        with dial_through(server, V1) as third:
            third.expect("421 4.7.0 Too many connections")
    wait_until(server, 0)
    assert server._registry.places.taken == 0
    assert server._registry.places._holders == {}


@pytest.mark.parametrize(
    "middleware",
    [AccessList(deny=["192.0.2.1"]), RateLimit("1/hour", on="connections"), ConnectionLimit(per_address=1)],
    ids=repr,
)
def test_address_limits_see_the_client(smtp_server: MakeServer, middleware: Any) -> None:
    server = proxied(smtp_server, middleware)
    with dial_through(server, V1) as first:
        first.expect("554" if isinstance(middleware, AccessList) else "220")
        if isinstance(middleware, AccessList):
            first.expect_end()
        with dial_through(server, V2) as second:
            assert second.reply().startswith(("421", "554"))
        with dial_through(server, V1.replace(b"192.0.2.1 ", b"192.0.2.9 ")) as other:
            other.expect("220")


def test_early_talkers_are_seen_behind_the_header(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server, EarlyTalker(0.05))
    with dial_through(server, V1 + b"EHLO early.example\r\n") as early, dial_through(server, V1) as patient:
        early.expect("554 5.5.1")
        patient.expect("220")


# Arguments


@pytest.mark.parametrize("name", ["proxy_from", "xclient_from", "xforward_from"])
def test_networks_are_checked_by_name(name: str) -> None:
    def make(value: Any) -> SMTPServer:
        return SMTPServer(("127.0.0.1", 0), **{name: value})

    for wrong in (["10.0.0.1/8"], ["proxy.example"], [7], ["10.0.0.0/8", "UNIX"]):
        with pytest.raises(ValueError, match=f"^{name} takes networks and addresses, like '192.0.2.0/24'"):
            make(wrong)
    for no_list in ("10.0.0.0/8", 7):
        with pytest.raises(TypeError, match=f"^{name} takes a list of networks"):
            make(no_list)
    for right in (None, [], (), ["unix"], iter(["::1", "10.0.0.0/8"])):
        make(right)


def test_proxy_tls_needs_proxies() -> None:
    with pytest.raises(ValueError, match=r"^proxy_tls needs proxy_from"):
        SMTPServer(("127.0.0.1", 0), proxy_tls=True)
    with pytest.raises(TypeError, match=r"^proxy_tls takes True or False"):
        SMTPServer(("127.0.0.1", 0), proxy_from=["::1"], proxy_tls=1)  # type: ignore[arg-type]


def test_a_decision_at_connect_can_use_the_header(smtp_server: MakeServer) -> None:
    server = proxied(smtp_server)

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        assert session.proxy is not None
        if session.proxy.authority == "mx.example.com":
            ack.reject(554, "5.7.1 wrong name")
        else:
            ack.accept()

    with dial_through(server, V2_TLS) as refused, dial_through(server, V2) as served:
        refused.expect("554 5.7.1 wrong name")
        served.expect("220")
