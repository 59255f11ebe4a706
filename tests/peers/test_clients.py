"""Real clients deliver to ``greensmtp serve``: smtplib, swaks, msmtp, curl."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve_process import ServeProcess, serving

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.peer

Serve = Callable[..., Any]
Run = Callable[..., str]

ANN, BOB, CYD = "ann@example.com", "bob@example.org", "cyd@example.org"

#: Dots at the beginning of lines, non-ASCII bytes, an empty line at the end.
TRICKY = """\
From: Ann <ann@example.com>
Subject: Grüße
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

.
..
.one dot, and one at the end.
From here on: ✓
""".replace("\n", "\r\n").encode()

#: 2 MB, and some lines that need dot-stuffing.
LARGE = b"Subject: Pictures\r\n\r\n" + b"".join(b"%s\r\n" % (b"." * (number % 77)) for number in range(50_000))


class Clients:
    """Each method sends a message to a ``smtp``, ``smtps`` or ``lmtp`` URL, with STARTTLS if asked."""

    def __init__(self, run: Run, folder: Path, authority: Path) -> None:
        self._run = run
        self._folder = folder
        self._authority = authority

    def smtplib(self, url: str, message: bytes, *recipients: str, tls: bool = False) -> None:
        scheme, _, address = url.partition("://")
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=str(self._authority))
        client: smtplib.SMTP
        if scheme == "smtps":
            client = smtplib.SMTP_SSL(host, int(port), "client.example", timeout=20, context=context)
        else:
            kind = smtplib.LMTP if scheme == "lmtp" else smtplib.SMTP
            client = kind(host, int(port), "client.example")
        with client:
            if tls:
                client.starttls(context=context)
            assert client.sendmail(ANN, recipients, message, ["BODY=8BITMIME"]) == {}

    def swaks(self, url: str, message: bytes, *recipients: str, tls: bool = False) -> None:
        scheme, _, address = url.partition("://")
        options = ["--protocol", "LMTP"] if scheme == "lmtp" else []
        options += ["--tls-on-connect"] if scheme == "smtps" else ["--tls"] if tls else []
        options += ["--tls-ca-path", str(self._authority), "--tls-verify"] if tls or scheme == "smtps" else []
        # It ends the last line itself.
        (self._folder / "message").write_bytes(message.replace(b"\r\n", b"\n").removesuffix(b"\n"))
        envelope = ("--ehlo", "client.example", "--from", ANN, "--to", ",".join(recipients))
        self._run("swaks", "--server", address, *envelope, *options, "--data", "@message", "--suppress-data")

    def msmtp(self, url: str, message: bytes, *recipients: str, tls: bool = False) -> None:
        scheme, _, address = url.partition("://")
        host, _, port = address.rpartition(":")
        options = ["--protocol=lmtp"] if scheme == "lmtp" else []
        if tls or scheme == "smtps":
            options += ["--tls=on", f"--tls-trust-file={self._authority}"]
            options += [f"--tls-starttls={'on' if tls else 'off'}"]
        where = (f"--host={host}", f"--port={port}", "--domain=client.example", f"--from={ANN}")
        self._run("msmtp", *where, *options, *recipients, stdin=message)

    def curl(self, url: str, message: bytes, *recipients: str, tls: bool = False) -> None:
        options = ["--ssl-reqd"] if tls else []
        options += ["--cacert", str(self._authority)] if tls or url.startswith("smtps") else []
        to = [word for recipient in recipients for word in ("--mail-rcpt", recipient)]
        self._run("curl", "-sS", f"{url}/client.example", "--mail-from", ANN, *to, *options, "-T", "-", stdin=message)


@pytest.fixture
def clients(run: Run, tmp_path: Path, certificate: Any) -> Clients:
    return Clients(run, tmp_path, certificate.authority)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[ServeProcess]:
    """Serve everything: SMTP with STARTTLS, SMTP over TLS, LMTP. At the end it stops, and has logged nothing."""
    urls = ("smtp://127.0.0.1:0", "smtps://127.0.0.1:0", "lmtp://127.0.0.1:0")
    options = [word for url in urls for word in ("--listen", url)]
    with serving(tmp_path_factory.mktemp("server")) as serve:
        server = serve(*options, "--tls-cert", certificate.certfile, "--tls-key", certificate.keyfile)
        yield server
        assert server.stop() == 0
        assert server.log == ""


@pytest.fixture
def server(shared_server: ServeProcess) -> ServeProcess:
    """Return the server, after removing the mail of other tests."""
    for path in (shared_server.maildir / "new").glob("*"):
        path.unlink()
    return shared_server


NAMES = ["smtplib", "swaks", "msmtp", "curl"]


@pytest.mark.parametrize("name", NAMES)
def test_a_client_delivers_in_the_clear_and_over_tls(server: Any, clients: Clients, name: str) -> None:
    send = getattr(clients, name)
    smtp, smtps, _ = server.urls
    send(smtp, TRICKY, BOB)
    send(smtp, TRICKY, BOB, tls=True)
    send(smtps, TRICKY, BOB)
    mail = server.mail
    assert [message.endswith(b"\r\n" + TRICKY) for message in mail] == [True] * 3
    protocols = [b"with " + word + b" id" for word in (b"ESMTP", b"ESMTPS", b"ESMTPS")]
    assert all(protocol in message for protocol, message in zip(protocols, mail, strict=True))
    assert all(
        message.startswith(b"Return-Path: <ann@example.com>\r\nEnvelope-To: bob@example.org\r\n") for message in mail
    )
    assert all("from=<ann@example.com> to=<bob@example.org> " in server.line() for _ in range(3))


@pytest.mark.parametrize("name", NAMES)
def test_a_client_delivers_2_mb_to_several_recipients(server: Any, clients: Clients, name: str) -> None:
    getattr(clients, name)(server.urls[0], LARGE, BOB, CYD)
    (message,) = server.mail
    assert message.startswith(
        b"Return-Path: <ann@example.com>\r\nEnvelope-To: bob@example.org,\r\n\tcyd@example.org\r\n"
    )
    assert message.endswith(b"\r\n" + LARGE)


# (smtplib reads one reply only, however many recipients there are.)
@pytest.mark.parametrize(("name", "recipients"), [("smtplib", [BOB]), ("swaks", [BOB, CYD]), ("msmtp", [BOB, CYD])])
def test_a_client_delivers_over_lmtp(server: Any, clients: Clients, name: str, recipients: list[str]) -> None:
    getattr(clients, name)(server.urls[2], TRICKY, *recipients)
    (message,) = server.mail
    assert message.endswith(b"\r\n" + TRICKY)
    assert b" with LMTP id " in message


def test_swaks_delivers_over_lmtp_on_a_unix_socket(serve: Serve, run: Run, tmp_path: Path) -> None:
    server = serve("--listen", f"lmtp+unix:{tmp_path}/lmtp")
    said = run("swaks", "--socket", tmp_path / "lmtp", "--protocol", "LMTP", "--from", ANN, "--to", f"{BOB},{CYD}")
    assert said.count("<-  250 2.0.0 Ok: queued as ") == 2
    assert len(server.mail) == 1


def test_swaks_pipelines(server: Any, run: Run) -> None:
    address = server.urls[0].removeprefix("smtp://")
    said = run("swaks", "--server", address, "--pipeline", "--from", ANN, "--to", f"{BOB},{CYD}")
    assert said.count("<-  250 2.1.5 ") == 2
    assert len(server.mail) == 1


@pytest.mark.parametrize("name", ["smtplib", "curl"])
def test_a_client_delivers_to_addresses_beyond_ascii(server: Any, run: Run, name: str) -> None:
    sender, recipient = "josé@example.com", "дана@example.org"
    if name == "smtplib":
        with smtplib.SMTP("127.0.0.1", server.port, timeout=20) as client:
            client.ehlo()
            client.sendmail(sender, [recipient], TRICKY, ["SMTPUTF8", "BODY=8BITMIME"])
    else:
        run("curl", "-sS", server.urls[0], "--mail-from", sender, "--mail-rcpt", recipient, "-T", "-", stdin=TRICKY)
    (message,) = server.mail
    assert message.startswith(f"Return-Path: <{sender}>\r\nEnvelope-To: {recipient}\r\nReceived: from ".encode())
    assert b" with UTF8SMTP id " in message
    assert message.endswith(b"\r\n" + TRICKY)
