"""HAProxy in front: PROXY headers of both versions, TLS ended there, health checks; with the how-to's configuration."""

from __future__ import annotations

import logging
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from gevent import sleep, socket, with_timeout
from gevent import ssl as gevent_ssl

from greensmtp import Session, SMTPServer
from greensmtp.delivery import received_field
from greensmtp.middleware import Auth, Logging
from greensmtp.testing import Peer
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import auth_plain, free_port

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.peer

PAGE = Path(__file__).resolve().parents[2] / "docs/howto/haproxy.md"

#: The client's address, which is not HAProxy's own.
CLIENT = "127.0.0.2"


class HAProxy:
    """An HAProxy of the test's own."""

    def __init__(self, program: str, folder: Path, configuration: str) -> None:
        self._log = folder / "haproxy.log"
        (folder / "haproxy.cfg").write_text(configuration)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-db", "-f", folder / "haproxy.cfg"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def dial(self, port: int) -> Any:
        """Connect to one of its ports, once it listens."""
        for _ in range(200):
            assert self._process.poll() is None, self._log.read_text()
            try:
                return socket.create_connection(("127.0.0.1", port), 10, (CLIENT, 0))
            except ConnectionRefusedError:
                sleep(0.05)
        raise AssertionError("HAProxy does not listen")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def haproxy(program: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[[str], HAProxy]]:
    """Start one with a configuration."""
    running: list[HAProxy] = []

    def start(configuration: str) -> HAProxy:
        running.append(HAProxy(program("haproxy"), tmp_path, configuration))
        return running[-1]

    yield start
    for each in running:
        each.stop()


DEFAULTS = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
"""


def configuration(server: SMTPServer, port: int, options: str, *, bind: str = "", backend: str = "") -> str:
    """Return a configuration with one listener and one server."""
    return f"""{DEFAULTS}
listen mail
    bind 127.0.0.1:{port} {bind}
    {backend}
    server one 127.0.0.1:{server.address[1]} {options}
"""


def peer_over_tls(connection: Any, certificate: Certificate) -> Peer:
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate.authority)
    return Peer(context.wrap_socket(connection, server_hostname="mx.example.com"))


def session_of(server: SMTPServer) -> Session:
    """The session of the client; health checks have others."""
    (session,) = [each.session for each in server.connections if each.session.peer_host == CLIENT]
    return session


@pytest.mark.parametrize(
    "options",
    ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id", "send-proxy-v2-ssl-cn"],
)
def test_haproxy_names_the_client(smtp_server: MakeServer, haproxy: Callable[[str], HAProxy], options: str) -> None:
    server = smtp_server(proxy_from=["127.0.0.1"])
    port = free_port()
    backend = 'unique-id-format "id-%ci"\n' if "unique-id" in options else ""
    connection = haproxy(configuration(server, port, options, backend=backend)).dial(port)
    with Peer(connection) as peer:
        peer.hello()
        session = session_of(server)
        assert session.peer == connection.getsockname()
        assert session.proxy is not None
        assert session.proxy.destination == ("127.0.0.1", port)
        assert session.proxy.unique_id == (b"id-127.0.0.2" if backend else None)
        assert b"([127.0.0.2])" in received_field(session)


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit TLS", "STARTTLS"])
def test_tls_passes_through(
    smtp_server: MakeServer, haproxy: Callable[[str], HAProxy], certificate: Certificate, implicit: bool
) -> None:
    server = smtp_server(
        proxy_from=["127.0.0.1"], certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=implicit
    )
    port = free_port()
    connection = haproxy(configuration(server, port, "send-proxy-v2")).dial(port)
    with peer_over_tls(connection, certificate) if implicit else Peer(connection) as peer:
        peer.hello()
        if not implicit:
            peer.line("STARTTLS")
            peer.expect("220")
            peer.start_tls()
            peer.line("EHLO x")
            peer.expect("250")
        assert session_of(server).tls


@pytest.fixture
def bundle(tmp_path: Path, certificate: Certificate) -> Path:
    """The certificate and its key in one file, as HAProxy takes it."""
    path = tmp_path / "bundle.pem"
    path.write_bytes(certificate.certfile.read_bytes() + certificate.keyfile.read_bytes())
    return path


def test_the_configuration_of_the_how_to(
    smtp_server: MakeServer,
    haproxy: Callable[[str], HAProxy],
    certificate: Certificate,
    bundle: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    mx = smtp_server(proxy_from=["127.0.0.1"], middleware=[Logging()])
    submission = smtp_server(
        proxy_from=["127.0.0.1"],
        proxy_tls=True,
        middleware=[Logging(), Auth({"beep": "boop"}, required=True, mechanisms=["PLAIN"])],
    )
    for server in (mx, submission):
        server.on("message", lambda session, stream, ack: ack.accept())
    ports = free_port(), free_port()
    found = re.search(r"```text\n(defaults\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    text = found[1]
    for old, new in {
        "bind :25\n": f"bind 127.0.0.1:{ports[0]}\n",
        "bind :465 ": f"bind 127.0.0.1:{ports[1]} ",
        "/etc/haproxy/mx.example.com.pem": str(bundle),
        "10.0.0.1:2525 check": f"127.0.0.1:{mx.address[1]} check inter 100ms",
        "10.0.0.1:2526 check": f"127.0.0.1:{submission.address[1]} check inter 100ms",
    }.items():
        assert old in text
        text = text.replace(old, new)
    proxy = haproxy(text)
    with Peer(proxy.dial(ports[0])) as peer:
        peer.hello()
        peer.deliver()
        peer.line("QUIT")
        peer.expect("221")
    with peer_over_tls(proxy.dial(ports[1]), certificate) as peer:
        assert "AUTH PLAIN" in peer.hello()
        session = session_of(submission)
        assert (session.tls, session.protocol) == (True, "ESMTPS")
        assert session.tls_version == peer.socket.version()
        assert session.tls_cipher == peer.socket.cipher()[0]
        assert session.proxy is not None
        assert session.proxy.authority == "mx.example.com"
        peer.line(auth_plain("beep", "boop"))
        peer.expect("235")
        peer.deliver()
        peer.line("QUIT")
        peer.expect("221")
    sleep(0.5)  # more checks
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("greensmtp")]
    assert len(lines) == 4
    assert all(" peer=127.0.0.2 " in line for line in lines)


def test_haproxy_names_the_clients_certificate(
    smtp_server: MakeServer, haproxy: Callable[[str], HAProxy], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    authority.issue_cert("mx.example.com").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "bundle.pem"))
    client = authority.issue_cert("jo@example.com", common_name="jo")
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    client.configure_cert(context)
    server = smtp_server(proxy_from=["127.0.0.1"], proxy_tls=True)
    port = free_port()
    bind = f"ssl crt {tmp_path}/bundle.pem ca-file {tmp_path}/authority.pem verify optional"
    proxy = haproxy(configuration(server, port, "send-proxy-v2-ssl-cn", bind=bind))
    with Peer(context.wrap_socket(proxy.dial(port), server_hostname="mx.example.com")) as peer:
        peer.hello()
        header = session_of(server).proxy
        assert header is not None
        assert header.ssl is not None
        assert header.ssl.verified
        assert header.ssl.common_name == "jo"


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("check", ["option smtpchk EHLO probe.example", ""], ids=["smtpchk", "TCP"])
def test_health_checks_pass_and_fill_no_log(
    smtp_server: MakeServer,
    haproxy: Callable[[str], HAProxy],
    version: str,
    check: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server = smtp_server(proxy_from=["127.0.0.1"], middleware=[Logging()])
    checks: list[bool] = []

    @server.on("disconnect")
    def disconnect(session: Session, reason: str) -> None:
        checks.append(session.proxy is not None and session.proxy.is_local)

    port = free_port()
    proxy = haproxy(configuration(server, port, f"{version} check inter 50ms rise 1 fall 1", backend=check))

    def wait() -> None:
        while len(checks) < 5:
            sleep(0.02)

    with_timeout(20, wait)
    assert all(checks)
    assert caplog.messages == []
    with Peer(proxy.dial(port)) as peer:
        peer.hello()
