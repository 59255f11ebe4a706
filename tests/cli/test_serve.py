"""``greensmtp serve`` as a process: its options, its output, and errors for wrong options."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from gevent import get_hub

from greensmtp import Limits
from greensmtp.cli import cli
from greensmtp.config.defaults import parse_size
from tests import forked
from tests.delivery.helpers import wait_until

if TYPE_CHECKING:
    from tests.conftest import Certificate

Serve = Callable[..., Any]

SCRIPT = Path(sys.executable).with_name("greensmtp")
BODY = b"Subject: Tea\r\n\r\nAt four.\r\n"


def run(*arguments: str, folder: Path, **options: Any) -> tuple[int, str, str]:
    """Run the command; return its exit status, its standard output, and its standard error in one line."""
    ran = forked.run(forked.command_line(*arguments), cwd=folder, **options)
    return ran.returncode, ran.stdout, " ".join(ran.stderr.split())


def deliver(port: int, *recipients: str, body: bytes = BODY) -> bytes:
    """Send a message; return the text of the reply."""
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.ehlo("client.example")
        client.mail("ann@example.com")
        for recipient in recipients or ("bob@example.org",):
            assert client.rcpt(recipient)[0] == 250
        code, text = client.data(body)
        assert code == 250, text
        return text


# How it is started


@pytest.mark.parametrize("command", [(SCRIPT,), (sys.executable, "-m", "greensmtp")], ids=["greensmtp", "python -m"])
def test_mail_is_stored_in_the_maildir(serve: Serve, command: tuple[str | Path, ...]) -> None:
    server = serve(command=command)
    assert re.fullmatch(r"smtp://127\.0\.0\.1:[1-9]\d+", server.urls[0])
    reply = deliver(server.port)
    (message,) = server.mail
    assert message.endswith(b"\r\n" + BODY)
    assert (
        server.line() == f"message from=<ann@example.com> to=<bob@example.org> size={len(BODY)}: 250 {reply.decode()}"
    )
    assert server.stop() == 0
    assert server.lines() == []
    assert server.log == ""


def test_the_maildir_is_printed_once_before_the_listeners(serve: Serve, tmp_path: Path) -> None:
    server = serve("--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--maildir", "mail", wait=False)
    assert server.line() == f"storing mail in {tmp_path}/mail/new, one file per message"
    assert [server.line().partition(" ")[0] for _ in range(2)] == ["listening"] * 2
    assert server.stop() == 0
    server = serve("--no-maildir", wait=False)
    assert server.line().startswith("listening ")


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_the_maildirs_of_deliveries_are_printed_once_each(
    serve: Serve, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    (tmp_path / "greensmtp.toml").write_text(
        """
        [[listeners]]
        url = "lmtp://127.0.0.1:0"
        [[listeners]]
        url = "smtp://127.0.0.1:0"
        deliveries = [{ use = "Maildir", path = "rest" }, { use = "Maildir", path = "own", for = "*@example.net" }]
        [[deliveries]]
        use = "Maildir"
        path = "inbox/{local}"
        for = "*@example.org"
        [[deliveries]]
        use = "Maildir"
        path = "rest"
        for = "others"
        """
    )
    server = serve("--config", "greensmtp.toml", *workers, command=(SCRIPT,), listeners=2, wait=False)
    assert [server.line() for _ in range(3)] == [
        f"storing mail in {tmp_path}/{path}/new, one file per message" for path in ("inbox/{local}", "rest", "own")
    ]
    assert [server.line().partition(" ")[0] for _ in range(2)] == ["listening"] * 2


def test_a_host_name_in_tls_that_is_not_ascii_is_one_log_line(
    serve: Serve, tmp_path: Path, certificate: Certificate
) -> None:
    (tmp_path / "greensmtp.toml").write_text(
        f"""
        tls_cert = "{certificate.certfile}"
        tls_key = "{certificate.keyfile}"
        [[listeners]]
        url = "smtps://127.0.0.1:0"
        [[tls.certificates]]
        cert = "{certificate.certfile}"
        key = "{certificate.keyfile}"
        """
    )
    server = serve("--config", "greensmtp.toml", listeners=1)
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mx.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(outgoing.read().replace(b"mx.example.org", b"\xc3\xbc.example.org"))
        assert connection.recv(100).startswith(b"\x15")  # an alert
    assert server.stop() == 0
    assert "WARNING exception ignored in b'\\xc3\\xbc.example.org': UnicodeDecodeError: " in server.log
    assert "Traceback" not in server.log


def test_a_line_is_printed_for_each_message(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0", "--listen", "lmtp://127.0.0.1:0")
    deliver(server.port, "bob@example.org", "cyd@example.org")
    assert " to=<bob@example.org>,<cyd@example.org> size=" in server.line()
    with server.dial(1) as peer:
        peer.converse(
            """
            S: 220
            C: LHLO client.example
            S: 250
            C: MAIL FROM:<>
            S: 250
            C: RCPT TO:<bob@example.org>
            S: 250
            C: RCPT TO:<cyd@example.org>
            S: 250
            C: DATA
            S: 354
            C: Subject: Sorry
            C: .
            S: 250 2.0.0
            S: 250 2.0.0
            """
        )
    assert server.line().startswith("message from=<> to=<bob@example.org>,<cyd@example.org> size=16: 250 2.0.0 ")
    assert server.stop() == 0
    assert server.lines() == []
    assert len(server.mail) == 2


@pytest.mark.subprocess
def test_the_help_explains_the_command(tmp_path: Path) -> None:
    status, text, _ = run("serve", "--help", folder=tmp_path)
    assert status == 0
    for word in ("--listen", "--hostname", "--maildir", "--tls-cert", "--tls-key", "--plugin", "--max-size"):
        assert word in text
    for word in ("--log-format", "[text|json]", "-v", "smtps://", "lmtp://", "unix:/", "lmtp+unix:/", "[::1]:1025"):
        assert word in text
    for word in ("127.0.0.1:1025]", "[default: maildir]", "MODULE[:CALLABLE]", "SIGTERM", "greensmtp send -"):
        assert word in " ".join(text.split())
    status, text, _ = run("--help", folder=tmp_path)
    assert status == 0
    assert "serve" in text
    assert not [*tmp_path.iterdir()]


@pytest.mark.subprocess
def test_version_prints_the_version(tmp_path: Path) -> None:
    status, text, _ = run("--version", folder=tmp_path)
    assert status == 0
    assert re.search(r"\d+\.\d+\.\d+", text)


@pytest.mark.subprocess
@pytest.mark.parametrize("name", ["click", "pydantic", "pythonjsonlogger", "tomlkit"])
def test_without_the_extra_the_error_says_how_to_install_it(tmp_path: Path, name: str) -> None:
    program = forked.command_line("serve", first=f"import sys; sys.modules[{name!r}] = None")
    ran = forked.run(program, how=forked.UNPATCHED, cwd=tmp_path)  # which has not imported any of them
    assert ran.returncode == 1
    assert ran.stderr == f"greensmtp: the command line needs {name}: pip install 'greensmtp[cli]'\n"


# --listen, --hostname, TLS


def test_serve_listens_on_every_given_address(serve: Serve, tmp_path: Path, certificate: Any) -> None:
    urls = ["smtp://127.0.0.1:0", "[::1]:0", "smtps://127.0.0.1:0", "lmtp://127.0.0.1:0"]
    paths = [f"unix:{tmp_path}/mail", f"lmtp+unix:{tmp_path}/lmtp"]
    tls = ["--tls-cert", certificate.certfile, "--tls-key", certificate.keyfile]
    server = serve(*(word for url in urls + paths for word in ("--listen", url)), *tls)
    assert [re.sub(r":[1-9]\d*$", "", url) for url in server.urls] == [
        "smtp://127.0.0.1",
        "smtp://[::1]",
        "smtps://127.0.0.1",
        "lmtp://127.0.0.1",
        *paths,
    ]
    for number, url in enumerate(server.urls):
        with server.dial(number) as peer:
            if url.startswith("smtps:"):
                peer.start_tls()
            word, hello = ("LMTP", "LHLO") if url.startswith("lmtp") else ("ESMTP", "EHLO")
            peer.expect(f"220 mx.example.com {word}")
            peer.line(f"{hello} client.example", "MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
            capabilities = peer.expect("250")
            assert ("STARTTLS" in capabilities) == (not url.startswith("smtps:"))
            peer.expect("250", "250", "354")
            peer.line(f"Subject: over {url}", ".")
            peer.expect("250 2.0.0 Ok: queued as")
    mail = server.mail
    assert sorted(re.findall(b"Subject: over (.*)\r\n", b"".join(mail))) == sorted(url.encode() for url in server.urls)
    assert server.stop() == 0
    assert not (tmp_path / "mail").exists()
    assert not (tmp_path / "lmtp").exists()


@pytest.mark.parametrize("one_file", [False, True], ids=["cert and key", "one file"])
def test_starttls(serve: Serve, tmp_path: Path, certificate: Any, one_file: bool) -> None:
    options = ["--tls-cert", certificate.certfile, "--tls-key", certificate.keyfile]
    if one_file:
        both = tmp_path / "both.pem"
        both.write_bytes(certificate.keyfile.read_bytes() + certificate.certfile.read_bytes())
        options = ["--tls-cert", both]
    server = serve(*options)
    with smtplib.SMTP("127.0.0.1", server.port, timeout=10) as client:
        client.starttls(context=ssl.create_default_context(cafile=str(certificate.authority)))
        client.sendmail("ann@example.com", ["bob@example.org"], BODY)
    (message,) = server.mail
    assert b" with ESMTPS id " in message


def test_the_hostname_is_in_the_banner_and_in_the_trace(serve: Serve) -> None:
    server = serve("--hostname", "tea.example.net")
    with server.dial() as peer:
        peer.expect("220 tea.example.net ESMTP")
    deliver(server.port)
    assert b"\r\n\tby tea.example.net with ESMTP id " in server.mail[0]


def test_without_a_certificate_there_is_no_starttls(serve: Serve) -> None:
    with serve().dial() as peer:
        assert "STARTTLS" not in peer.hello()


# --maildir, --no-maildir, --max-size


def test_the_maildir_is_created_at_the_given_path(serve: Serve, tmp_path: Path) -> None:
    server = serve("--maildir", "here/and/there")
    deliver(server.port)
    assert len([*(tmp_path / "here" / "and" / "there" / "new").iterdir()]) == 1


def test_without_maildir_and_plugin_mail_is_rejected(serve: Serve, tmp_path: Path) -> None:
    server = serve("--no-maildir")
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "554 5.3.2")
    assert not server.maildir.exists()


@pytest.mark.parametrize(("size", "number"), [("1000", 1000), ("3k", 3072), ("2M", 2097152), ("1G", 1073741824)])
def test_a_size_is_a_number_of_bytes_with_an_optional_unit(size: str, number: int) -> None:
    assert parse_size(size) == number


def test_the_largest_size_is_announced(serve: Serve) -> None:
    with serve("--max-size", "3k").dial() as peer:
        assert "\n250-SIZE 3072\n" in peer.hello()


def test_the_largest_size_is_the_librarys_by_default(serve: Serve) -> None:
    with serve().dial() as peer:
        assert f"\n250-SIZE {Limits().max_message_size}\n" in peer.hello()


def test_a_message_that_is_too_large_is_rejected_and_not_stored(serve: Serve) -> None:
    server = serve("--max-size", "1000")
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com> SIZE=1001")
        peer.expect("552 5.3.4")
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA", *["x" * 98] * 11, ".")
        peer.expect("250", "250", "354", "552 5.3.4")
        peer.line("NOOP")
        peer.expect("250")
    assert server.mail == []
    wait_until(lambda: not [*(server.maildir / "tmp").iterdir()])  # files are removed in a thread


# What is wrong


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> Path:
    """Return the current folder, with PEM files in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pem").touch()
    (tmp_path / "cert.pem").write_bytes(certificate.certfile.read_bytes())
    key = load_pem_private_key(certificate.keyfile.read_bytes(), None)
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    return tmp_path


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ["--listen", "nonsense"],
            r"'--listen': expected a URL like 127\.0\.0\.1:1025, \[::1\]:1025, smtps://.*; got 'nonsense'",
        ),
        (["--listen", "127.0.0.1:70000"], r"'--listen': .*'127\.0\.0\.1:70000'"),
        (["--listen", "[nonsense]:25"], r"'--listen': .*\[nonsense\] is not an IPv6 address"),
        (["--listen", "http://127.0.0.1:25"], r"'--listen': .*'http://127\.0\.0\.1:25'"),
        (
            ["--listen", "smtps://127.0.0.1:0"],
            r"Invalid value for '--listen': smtps:// needs a certificate: give --tls-cert and --tls-key$",
        ),
        (["--hostname", "not a name"], r"'--hostname': takes a domain name .*'not a name'"),
        (
            ["--maildir", "/dev/null/maildir"],
            r"'--maildir': cannot make '/dev/null/maildir': '/dev/null' is not a",
        ),
        (["--tls-cert", "missing.pem"], r"'--tls-cert': 'missing\.pem' cannot be read: No such file or directory$"),
        (["--tls-cert", "empty.pem"], r"'--tls-cert': 'empty\.pem' .*must be a certificate"),
        (["--tls-cert", "empty.pem", "--tls-key", "missing.pem"], r"'--tls-key': 'missing\.pem' cannot be read"),
        (["--tls-key", "empty.pem"], r"'--tls-key': needs --tls-cert"),
        (["--tls-cert", "cert.pem"], r"'--tls-cert': 'cert\.pem' contains no private key \(PEM\)"),
        (
            ["--tls-cert", "cert.pem", "--tls-key", "locked.pem"],
            r"'--tls-key': 'locked\.pem' is encrypted: remove its passphrase",
        ),
        (
            ["--max-size", "plenty"],
            r"'--max-size': expected a number of bytes, like 1000, 500k, 32M or 1G; got 'plenty'$",
        ),
        (["--max-size", "0"], r"'--max-size': expected a number of bytes, .*; got '0'"),
        (["--log-format", "xml"], r"'--log-format': 'xml' is not one of 'text', 'json'"),
        (["--listne", "127.0.0.1:0"], r"No such option '?--listne'?.*--listen"),
        (["stray"], r"[Uu]nexpected extra argument \(stray\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named_and_explained(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.setattr("greensmtp.cli.output.set_up_logging", lambda *options: None)  # that of the tests is to stay
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *options], prog_name="greensmtp")
    assert ended.value.code == 2
    said = capsys.readouterr()
    error = " ".join(said.err.split())
    assert re.search(rf"Try 'greensmtp serve --help' for help. Error: .*{complaint}", error), error
    assert said.out == ""
    assert not (folder / "maildir").exists()


@pytest.mark.subprocess
def test_a_wrong_option_exits_with_status_2_without_a_traceback(tmp_path: Path) -> None:
    status, output, error = run("serve", "--max-size", "plenty", folder=tmp_path)
    assert status == 2
    assert error.startswith(
        "Usage: greensmtp serve [OPTIONS] Try 'greensmtp serve --help' for help. Error: Invalid value"
    )
    assert output == ""


def test_a_port_in_use_is_an_error_and_stops_the_other_listeners(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve("--listen", "127.0.0.1:0", "--listen", f"127.0.0.1:{port}", wait=False)
        assert server.wait() == 1
    assert server.log == f"Error: --listen: cannot listen on smtp://127.0.0.1:{port}: Address already in use\n"
    assert server.lines() == []


@pytest.mark.parametrize("what", ["a live server", "a file"])
def test_a_unix_path_in_use_is_an_error(serve: Serve, tmp_path: Path, what: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as taken:
        if what == "a file":
            path.touch()
        else:
            taken.bind(str(path))
            taken.listen()
        server = serve("--listen", f"unix:{path}", wait=False)
        assert server.wait() == 1
    assert server.log == f"Error: --listen: cannot listen on unix:{path}: Address already in use\n"
    assert path.exists()


def test_an_unknown_host_name_is_an_error(serve: Serve) -> None:
    server = serve("--listen", "nowhere.invalid:0", wait=False)
    assert server.wait() == 1
    assert server.log.startswith("Error: --listen: cannot listen on smtp://nowhere.invalid:0: ")
    assert len(server.log.splitlines()) == 1


def test_two_listeners_with_one_address_are_an_error_before_listening(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1", wait=False)
    assert server.wait() == 2
    assert "another listener already uses smtp://127.0.0.1:1" in server.log
    assert server.lines() == []


def test_a_unix_path_that_is_too_long_is_an_error_before_listening(serve: Serve) -> None:
    server = serve("--listen", f"unix:/tmp/{'x' * 103}", wait=False)
    assert server.wait() == 2
    assert "the path is longer than 107 bytes" in server.log
    assert "None" not in server.log


# Odd surroundings


@pytest.mark.subprocess
@pytest.mark.parametrize("arguments", [["check"], ["plugins"], ["--help"]], ids=" ".join)
def test_a_full_disk_gives_one_line(tmp_path: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        status, _, error = run(*arguments, folder=tmp_path, stdout=full)
    assert (status, error) == (1, "greensmtp: cannot write: No space left on device")


@pytest.mark.subprocess
@pytest.mark.parametrize(("command", "closed"), [("check", [1]), ("plugins", [1, 2]), ("check", [0, 1, 2])])
def test_closed_standard_streams_are_no_error(tmp_path: Path, command: str, closed: list[int]) -> None:
    assert run(command, folder=tmp_path, closed=closed) == (0, "", "")


@pytest.mark.subprocess
def test_a_message_from_a_closed_standard_input_is_an_error(tmp_path: Path) -> None:
    arguments = ["send", "--server", "smtp://127.0.0.1:1", "--from", "a@b", "--to", "c@d", "-"]
    status, _, error = run(*arguments, folder=tmp_path, closed=[0])
    assert (status, error) == (1, "-: standard input is closed")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check", "--hostname", os.fsdecode(b"\xff")], "Error: Invalid value for '--hostname': must be UTF-8"),
        (["check", "--config", "."], "Error: .: Is a directory"),
        (["check", "--maildir", "x" * 300], "File name too long"),
        (["serve", "--maildir", "x" * 300], "File name too long"),
    ],
    ids=["not UTF-8", "a folder", "check a long name", "serve with a long name"],
)
def test_an_unusual_argument_is_an_error_without_a_traceback(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    status, output, error = run(*arguments, folder=tmp_path)
    assert (status, output) == (2, "")
    assert complaint in error
    assert "Traceback" not in error


@pytest.mark.subprocess
def test_a_configuration_can_be_read_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = get_hub().threadpool.spawn(pipe.write_text, "\n=\n")
    status, _, error = run("serve", "--config", "pipe", "--listen", "127.0.0.1:0", folder=tmp_path)
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets the writer go where nothing has read
    writing.get(timeout=20)
    assert status == 2
    assert error.startswith("Error: pipe:2: ")
