"""nginx in front of a server, as in the how-to: XCLIENT, TLS and passwords that end there, PROXY headers."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep, socket
from gevent.pywsgi import WSGIServer

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.delivery import received_field
from greensmtp.middleware import AccessList, Auth, ConnectionLimit, Logging
from greensmtp.testing import Peer
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import auth_plain, free_port
from tests.peers.test_haproxy import CLIENT, peer_over_tls
from tests.programs import missing

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.peer

PAGE = Path(__file__).resolve().parents[2] / "docs/howto/nginx.md"

#: Where distributions put the mail module.
MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")


def mail_module() -> str:
    """Return the path of the mail module."""
    for folder in MODULES:
        path = Path(folder, "ngx_mail_module.so")
        if path.exists():
            return str(path)
    missing("nginx has no mail module (libnginx-mod-mail)")


class Nginx:
    """An nginx of the test's own: with MX on one port, and submission over TLS on another."""

    def __init__(
        self, program: str, folder: Path, auth_port: int, certificate: Certificate, changes: dict[str, str]
    ) -> None:
        self._log = folder / "nginx.log"
        self.mx, self.submission = free_port(), free_port()
        found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
        assert found is not None
        text = found[1]
        replaced = {
            "modules/ngx_mail_module.so": mail_module(),
            "listen 25;": f"listen 127.0.0.1:{self.mx};",
            "listen 465 ssl;": f"listen 127.0.0.1:{self.submission} ssl;",
            "127.0.0.1:8025/auth": f"127.0.0.1:{auth_port}/auth",
            "mx.example.com.pem": str(certificate.certfile),
            "mx.example.com.key": str(certificate.keyfile),
        }
        for old, new in (replaced | changes).items():
            assert old in text
            text = text.replace(old, new)
        head = f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr info;\n"
        (folder / "nginx.conf").write_text(head + text)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-p", folder, "-c", folder / "nginx.conf"],
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
        raise AssertionError("nginx does not listen")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def nginx(program: Callable[[str], str], tmp_path: Path, certificate: Certificate) -> Iterator[Callable[..., Nginx]]:
    """Start one before a server, with the service that it asks; ``changes`` to the configuration: old -> new."""
    stops: list[Callable[[], object]] = []

    def start(server: SMTPServer, changes: dict[str, str] | None = None) -> Nginx:
        assert isinstance(server.address, tuple)
        port = str(server.address[1])

        def auth(environ: dict[str, str], start_response: Callable[..., object]) -> list[bytes]:
            login = environ.get("HTTP_AUTH_USER", ""), environ.get("HTTP_AUTH_PASS", "")
            if environ.get("HTTP_AUTH_METHOD") != "none" and login != ("beep", "boop"):
                start_response("200 OK", [("Auth-Status", "Invalid login"), ("Auth-Error-Code", "535 5.7.8")])
                return []
            headers = [("Auth-Status", "OK"), ("Auth-Server", "127.0.0.1"), ("Auth-Port", port)]
            start_response("200 OK", headers)
            return []

        web = WSGIServer(("127.0.0.1", 0), auth, log=None)
        web.start()
        assert web.server_port is not None
        stops.append(web.stop)
        made = Nginx(program("nginx"), tmp_path, web.server_port, certificate, changes or {})
        stops.append(made.stop)
        return made

    yield start
    for stop in reversed(stops):
        stop()


class Mail:
    """What has come."""

    def __init__(self, server: SMTPServer) -> None:
        self.sessions: list[dict[str, Any]] = []

        @server.on("message")
        def message(session: Session, stream: MessageStream, ack: Ack) -> None:
            ack.accept()
            self.sessions.append(
                {
                    "peer": session.peer_host,
                    "identity": None if session.identity is None else str(session.identity),
                    "xclient": session.xclient,
                    "trace": received_field(session).decode(),
                    "body": stream.read(),
                }
            )


def test_nginx_names_the_client(
    smtp_server: MakeServer, nginx: Callable[..., Nginx], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limit = ConnectionLimit(per_address=1)
    server = smtp_server(middleware=[Logging(), limit], xclient_from=["127.0.0.1"])
    mail = Mail(server)
    proxy = nginx(server)
    with Peer(proxy.dial(proxy.mx)) as peer:
        peer.hello()
        peer.envelope()
        assert (limit.count("127.0.0.1"), limit.count(CLIENT)) == (0, 1)
        # nginx passes on what the client sends.
        peer.line("RSET", "XCLIENT ADDR=127.0.0.1", "XFORWARD NAME=x")
        peer.expect("250", "550 5.7.0", "502")
        peer.deliver()
        peer.line("QUIT")
        peer.expect("221")
    (sent,) = mail.sessions
    assert sent["peer"] == CLIENT
    assert sent["xclient"]["ADDR"] == CLIENT
    assert "from client.example ([127.0.0.2])" in sent["trace"]
    sleep(0.1)
    lines = [record.getMessage() for record in caplog.records if "session peer=" in record.getMessage()]
    assert len(lines) == 1
    assert " peer=127.0.0.2 " in lines[0]


def test_nginx_names_the_user(smtp_server: MakeServer, nginx: Callable[..., Nginx], certificate: Certificate) -> None:
    server = smtp_server(middleware=[Auth({"unused": "x"}, required=True)], xclient_from=["127.0.0.1"])
    mail = Mail(server)
    proxy = nginx(server)
    with peer_over_tls(proxy.dial(proxy.submission), certificate) as peer:
        peer.hello()
        peer.line(auth_plain("beep", "wrong"))
        peer.expect("535")
    with peer_over_tls(proxy.dial(proxy.submission), certificate) as peer:
        peer.hello()
        peer.line(auth_plain("beep", "boop"))
        peer.expect("235")
        peer.deliver()
    (sent,) = mail.sessions
    assert (sent["peer"], sent["identity"]) == (CLIENT, "beep")


def test_a_client_that_is_refused_learns_so(smtp_server: MakeServer, nginx: Callable[..., Nginx]) -> None:
    server = smtp_server(middleware=[AccessList(deny=[CLIENT])], xclient_from=["127.0.0.1"])
    proxy = nginx(server)
    with Peer(proxy.dial(proxy.mx)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("250")
        peer.line("RCPT TO:<b@example.com>")
        assert peer.reply()[0] in "45"


def test_nginx_sends_a_proxy_header_instead(smtp_server: MakeServer, nginx: Callable[..., Nginx]) -> None:
    server = smtp_server(proxy_from=["127.0.0.1"])
    mail = Mail(server)
    proxy = nginx(server, {"xclient on;": "xclient off; proxy_protocol on;"})
    with Peer(proxy.dial(proxy.mx)) as peer:
        peer.hello()
        peer.deliver()
    (sent,) = mail.sessions
    assert (sent["peer"], sent["xclient"]) == (CLIENT, None)
