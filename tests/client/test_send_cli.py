"""``greensmtp send``."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket, subprocess
from gevent.event import Event
from gevent.subprocess import PIPE

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer
from greensmtp.cli import cli, sender
from greensmtp.testing.fixtures import MakeServer
from tests import forked

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.subprocess

MESSAGE = b"From: me@example.com\nTo: you@example.com\nBcc: they@example.com\n\nhi\n"


def run(*args: object, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
    """Run the command to its end; return its exit status, standard output and standard error."""
    ran = forked.run(forked.command_line("send", *args), input=stdin, env=os.environ | environment)
    return ran.returncode, ran.stdout, ran.stderr


class Inbox:
    def __init__(self, server: SMTPServer) -> None:
        self.server = server
        self.url = f"127.0.0.1:{server.address[1]}"
        self.mails: list[tuple[Any, list[Any], bytes]] = []
        server.on("message", self._take)
        server.on("to", self._choose)

    def _choose(self, session: Session, address: Address, ack: Ack) -> None:
        if address.local_part in ("no", "later"):
            ack.reject(*((550, "5.1.1 unknown") if address.local_part == "no" else (450, "4.2.1 busy")))
        else:
            ack.accept()

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        self.mails.append((session.from_, list(session.to), stream.read()))


@pytest.fixture
def inbox(smtp_server: MakeServer) -> Inbox:
    return Inbox(smtp_server())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five messages."""
    paths = [tmp_path / f"{number}.eml" for number in range(5)]
    for path in paths:
        path.write_bytes(MESSAGE + path.name.encode())
    return paths


def test_standard_input(inbox: Inbox) -> None:
    command = [sys.executable, "-m", "greensmtp", "send", "--server", inbox.url, "-"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.communicate(MESSAGE, timeout=30) == (b"", b"")
    assert process.returncode == 0
    assert inbox.mails == [
        (
            "me@example.com",
            ["you@example.com", "they@example.com"],
            b"From: me@example.com\r\nTo: you@example.com\r\n\r\nhi\r\n",
        )
    ]


def test_files(inbox: Inbox, files: list[Path]) -> None:
    status, _, err = run("--server", f"smtp://{inbox.url}", "--from", "a@x.example", "--to", "b@x.example", *files)
    assert (status, err) == (0, "5 of 5 sent\n")
    assert [(sender, to) for sender, to, _ in inbox.mails] == [("a@x.example", ["b@x.example"])] * 5
    assert len({body for _, _, body in inbox.mails}) == 5


@pytest.mark.parametrize(
    ("to", "status", "text"),
    [
        (["no@x.example"], 1, "550 5.1.1 unknown"),
        (["later@x.example"], 75, "450 4.2.1 busy"),
        (["ok@x.example", "no@x.example"], 1, "<no@x.example> 550 5.1.1 unknown"),
        (["ok@x.example", "later@x.example"], 75, "<later@x.example> 450 4.2.1 busy"),
    ],
)
def test_failures(inbox: Inbox, files: list[Path], to: list[str], status: int, text: str) -> None:
    options = [option for recipient in to for option in ("--to", recipient)]
    got, out, err = run("--server", inbox.url, *options, files[0])
    assert (got, out) == (status, "")
    assert err.startswith(f"{files[0]}: ")
    assert text in err
    assert err.count("\n") == 1


def test_one_failure_does_not_stop_the_other_files(inbox: Inbox, files: list[Path], tmp_path: Path) -> None:
    status, _, err = run("--server", inbox.url, "-q", tmp_path / "missing.eml", *files)
    assert status == 1
    assert "missing.eml: No such file" in err
    assert len(inbox.mails) == 5


def test_a_refused_connection_is_reported(files: list[Path]) -> None:
    status, _, err = run("--server", "127.0.0.1:1", files[0])
    assert status == 75
    assert "cannot connect to 127.0.0.1:1" in err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--server", "nonsense://x", "-"], "'--server'"),
        (["--server", "a:99999", "-"], "'--server'"),
        (["--server", "smtps://a", "--server", "smtp://a", "-"], "the same scheme"),
        (["--user", "jo", "-"], "GREENSMTP_PASSWORD"),
        (["--user", "jo", "--password-file", "/nonexistent", "-"], "'--password-file'"),
        (["--user", "jo", "--password-file", "/dev/null", "-"], "the first line of '/dev/null' is empty"),
        (["--user", "jo", "--password-file", "/", "-"], "'--password-file': cannot read '/': Is a directory"),
        (["--user", "jo", "--password-file", sys.executable, "-"], "it is not UTF-8"),
        (["--password-file", "/dev/null", "-"], "--password-file needs --user"),
        (["--user", "jo", "--password-file", "/dev/zero", "-"], "of '/dev/zero' is longer than 4096 characters"),
        (["--user", "jo", "--password-file", "", "-"], "'--password-file': expected a path; got an empty string"),
        (["--ca-file", "", "-"], "'--ca-file': expected a path; got an empty string"),
        (["-", "-"], '"-" can be given only once'),
        (["--ca-file", "/nonexistent", "-"], "'--ca-file': cannot read '/nonexistent': No such file"),
        (["--ca-file", "/dev/null", "-"], "'--ca-file': cannot read '/dev/null': it contains no PEM certificate"),
        (["--ca-file", "/dev/null", "--no-verify", "-"], "--ca-file and --no-verify exclude each other"),
        (["--from", "not a mailbox", "-"], "'--from': an address needs a domain"),
        (["--to", "not a mailbox", "-"], "'--to': an address needs a domain"),
        (["--to", "", "-"], "'--to': a recipient cannot be empty"),
        (
            ["--hostname", "a b", "-"],
            "'--hostname': expected a host name or an address literal as the name to send; got 'a b'",
        ),
        ([], "Missing argument 'FILE...'"),
    ],
)
def test_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], text: str
) -> None:
    monkeypatch.setenv("GREENSMTP_PASSWORD", "")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        cli.main(["send", *args], prog_name="greensmtp")
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_a_wrong_command_line_ends_it_with_status_2_and_without_a_traceback() -> None:
    status, out, err = run("--server", "nonsense://x", "-")
    assert (status, out) == (2, "")
    assert "Error: Invalid value for '--server'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("args", "option"), [([], "--from"), (["--from", "a@b.example"], "--to")])
def test_a_message_without_an_envelope_names_the_option(inbox: Inbox, args: list[str], option: str) -> None:
    status, _, err = run("--server", inbox.url, *args, "-", stdin=b"Subject: hi\n\nho\n")
    assert status == 1
    assert err.endswith(f"; pass {option}\n")


def test_the_null_sender(inbox: Inbox, files: list[Path]) -> None:
    assert run("--server", inbox.url, "--from", "", files[0])[0] == 0
    assert inbox.mails[0][0] == ""


def test_tls(smtp_server: MakeServer, certificate: Certificate, files: list[Path]) -> None:
    inbox = Inbox(smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True))
    url = f"smtps://{inbox.url}"
    status, _, err = run("--server", url, files[0])
    assert status == 1
    assert "does not verify" in err
    assert run("--server", url, "--ca-file", certificate.authority, files[0])[0] == 0
    assert run("--server", url, "--no-verify", files[0])[0] == 0
    assert len(inbox.mails) == 2


def test_starttls_is_required(inbox: Inbox, files: list[Path]) -> None:
    status, _, err = run("--server", inbox.url, "--starttls", "require", files[0])
    assert status == 1
    assert "STARTTLS" in err
    assert inbox.mails == []


@pytest.mark.parametrize("where", ["environment", "file"])
def test_the_password(scripted: Any, files: list[Path], tmp_path: Path, where: str) -> None:
    def script(script: Any) -> None:
        script.greet("AUTH PLAIN")
        script.expect("AUTH PLAIN AGpvAHNlY3JldA==")
        script.say("535 5.7.8 no")
        script.rest()

    path = tmp_path / "password"
    path.write_text("secret\nmore\n")
    args = ["--password-file", path] if where == "file" else []
    server = scripted(script)
    status, _, err = run(
        "--server",
        f"127.0.0.1:{server.port}",
        "--user",
        "jo",
        *args,
        "--allow-plaintext",
        files[0],
        GREENSMTP_PASSWORD="" if args else "secret",
    )
    assert status == 1
    assert "535 5.7.8 no" in err
    assert "secret" not in err


def test_a_password_requires_tls(scripted: Any, files: list[Path]) -> None:
    heard: list[Any] = []

    def script(script: Any) -> None:
        heard.append(script)
        script.greet("AUTH CRAM-MD5 SCRAM-SHA-256")
        script.rest()

    place = f"127.0.0.1:{scripted(script).port}"
    status, _, err = run("--server", place, "--user", "jo", files[0], GREENSMTP_PASSWORD="secret")
    assert status == 1
    assert "does not offer STARTTLS" in err
    assert b"AUTH" not in heard[0].heard


def test_opportunistic_tls_excludes_user(files: list[Path]) -> None:
    args = ("--server", "127.0.0.1:1", "--user", "jo", "--starttls", "opportunistic", files[0])
    status, _, err = run(*args, GREENSMTP_PASSWORD="secret")
    assert status == 2
    assert "opportunistic" in err


def test_an_interrupt_ends_send_at_once(inbox: Inbox, files: list[Path]) -> None:
    there, go = Event(), Event()

    @inbox.server.on("received")
    def hold(session: Session, ack: Ack) -> None:
        there.set()
        go.wait()
        ack.accept()

    program = forked.command_line("send", "--server", inbox.url, *files)
    with tempfile.TemporaryFile() as stderr:
        process = forked.start(program, stderr=stderr)
        assert there.wait(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1  # a pool that is closed waits for thirty seconds
        stderr.seek(0)
        err = stderr.read()
    go.set()
    assert b"Traceback" not in err


def test_a_pipe_without_a_writer_holds_up_neither_the_other_files_nor_an_interrupt(
    inbox: Inbox, files: list[Path], tmp_path: Path
) -> None:
    arrived = Event()

    @inbox.server.on("received")
    def note(session: Session, ack: Ack) -> None:
        arrived.set()
        ack.accept()

    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "greensmtp", "send", "--server", inbox.url, str(tmp_path / "pipe"), str(files[0])]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert arrived.wait(20)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 1
    assert b"Traceback" not in err


@pytest.mark.parametrize(("delay", "shown"), [(0.0, True), (60.0, False)], ids=["long", "not long"])
def test_a_progress_bar_on_a_terminal_when_it_takes_long(
    inbox: Inbox, files: list[Path], delay: float, shown: bool
) -> None:
    first = f"from greensmtp.cli import sender; sender.PROGRESS_DELAY = {delay}"
    program = forked.command_line("send", "--server", inbox.url, "--concurrency", 1, *files, first=first)
    ours, theirs = pty.openpty()
    assert forked.start(program, stderr=theirs).wait(30) == 0
    os.close(theirs)
    written = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("Sending" in written, "100%" in written) == (shown, shown)
    assert "5 of 5 sent" in written


def test_no_progress_bar_without_a_terminal(inbox: Inbox, files: list[Path]) -> None:
    first = "from greensmtp.cli import sender; sender.PROGRESS_DELAY = 0.0"
    ran = forked.run(forked.command_line("send", "--server", inbox.url, *files, first=first))
    assert ran.stderr == "5 of 5 sent\n"


# Verbose


def test_verbose_shows_the_dialogue(inbox: Inbox, files: list[Path]) -> None:
    status, out, err = run("--server", inbox.url, "-v", "--to", "you@example.com", "--to", "no@example.com", files[0])
    assert (status, out) == (1, "")
    lines = err.splitlines()
    assert lines[0] == f"= connected to 127.0.0.1 port {inbox.url.rpartition(':')[2]}"
    assert lines[1].startswith("< 220 ")
    for shown in (
        "> RCPT TO:<no@example.com>",
        "< 550 5.1.1 unknown",
        "> DATA",
        "1 of 1 sent",
        "> QUIT",
    ):
        assert shown in lines
    assert any(line.startswith("> MAIL FROM:<me@example.com> SIZE=") for line in lines)
    assert any(line.startswith("< 250 2.0.0 Ok: queued as ") for line in lines)
    assert any(line.startswith("> (") and "bytes of the message" in line for line in lines)
    assert "hi" not in lines  # bodies are not shown


def test_verbose_numbers_the_lines_of_several_connections(inbox: Inbox, files: list[Path]) -> None:
    status, _, err = run("--server", inbox.url, "--verbose", "--concurrency", "2", *files)
    assert status == 0
    assert {line[:4] for line in err.splitlines() if line.startswith("[")} == {"[1] ", "[2] "}
    assert "5 of 5 sent" in err.splitlines()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_verbose_shows_no_secret(scripted: Any, files: list[Path], mechanism: str) -> None:
    challenges = {"PLAIN": [], "LOGIN": ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"], "CRAM-MD5": ["PDEuMkB4Pg=="]}[mechanism]
    heard: list[str] = []

    def script(script: Any) -> None:
        script.greet(f"AUTH {mechanism}")
        heard.append(script.hear().rpartition(" ")[2])
        for challenge in challenges:
            script.say(f"334 {challenge}")
            heard.append(script.hear())
        script.say("535 5.7.8 no")
        script.rest()

    server = scripted(script)
    options = ["--server", f"127.0.0.1:{server.port}", "--user", "jo", "--allow-plaintext", "-v"]
    status, _, err = run(*options, files[0], GREENSMTP_PASSWORD="topsecret")
    assert status == 1
    assert f"> AUTH {mechanism}" in err
    assert "< 535 5.7.8 no" in err
    assert err.count("***") == len(challenges) * 2 + (mechanism == "PLAIN")
    for secret in {"topsecret", *heard, *challenges} - {mechanism}:
        assert secret not in err


def test_verbose_shows_tls(smtp_server: MakeServer, certificate: Certificate, files: list[Path]) -> None:
    inbox = Inbox(smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile))
    status, _, err = run("--server", inbox.url, "--no-verify", "-v", files[0])
    assert status == 0
    lines = err.splitlines()
    assert lines.index("> STARTTLS") < lines.index("= TLSv1.3") < lines.index("1 of 1 sent")


def test_verbose_and_quiet_exclude_each_other() -> None:
    status, _, err = run("-v", "-q", "-")
    assert status == 2
    assert "exclude each other" in err


# Bad messages


def test_invalid_messages_do_not_stop_the_other_files(inbox: Inbox, files: list[Path], tmp_path: Path) -> None:
    bad = {
        b"quote.eml": b'From: a@example.com\nTo: you@example.com, "\n\nhi\n',
        b"\xff.eml": b"From: a@example.com\nTo: ((((\n\nhi\n",
        b"empty.eml": b"",
        b"nul.eml": b"From: a@example.com\nTo: a\0b@example.com\n\nhi\n",
        b"garbage.eml": bytes(range(256)) * 100,
    }
    paths = [tmp_path / os.fsdecode(name) for name in bad]
    for path, data in zip(paths, bad.values(), strict=True):
        path.write_bytes(data)
    status, _, err = run("--server", inbox.url, "--concurrency", "1", *paths, tmp_path, *files)
    assert status == 1
    assert len(inbox.mails) == len(files)
    assert "Traceback" not in err
    assert "quote.eml: the To field cannot be read" in err
    assert f"{tmp_path}: Is a directory" in err
    assert err.splitlines()[-1] == "5 of 11 sent"
    assert len(err.splitlines()) == 7


def test_a_name_cannot_give_orders_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\x07\u202e.eml"
    path.write_bytes(b"no header")
    status, _, err = run("--server", "127.0.0.1:1", path)
    assert status == 1
    assert r"a\x1b[2J\x07\u202e.eml: " in err


def test_a_server_that_is_gone_has_no_address() -> None:
    with socket.socket() as unconnected:
        client: Any = SimpleNamespace(socket=unconnected)
        assert sender._peer(client) == "a server that is gone"


def test_options_of_extensions(scripted: Any, files: list[Path]) -> None:
    lines: list[str] = []

    def script(script: Any) -> None:
        script.greet("DSN", "MT-PRIORITY")
        while line := script.hear():
            lines.append(line)
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok")

    options = ["--notify", "success", "--notify", "DELAY", "--ret", "hdrs", "--priority", "-3"]
    url = f"127.0.0.1:{scripted(script).port}"
    assert run("--server", url, *options, "--envid", "a b", "--to", "b@x.example", files[0]) == (0, "", "")
    assert lines[:2] == [
        "MAIL FROM:<me@example.com> RET=HDRS ENVID=a+20b MT-PRIORITY=-3",
        "RCPT TO:<b@x.example> NOTIFY=SUCCESS,DELAY",
    ]


def test_require_tls_is_never_left_out(scripted: Any, files: list[Path]) -> None:
    heard: list[str] = []

    def script(script: Any) -> None:
        script.greet("REQUIRETLS")
        while line := script.hear():
            heard.append(line)
            script.say("221 bye")

    status, _, err = run("--server", f"127.0.0.1:{scripted(script).port}", "--require-tls", files[0])
    assert status == 1
    assert "REQUIRETLS was given, and this connection has no TLS" in err
    assert heard in ([], ["QUIT"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--notify", "sometimes"], "'--notify'"),
        (["--notify", "never", "--notify", "delay"], "'--notify': NOTIFY takes NEVER, or a list"),
        (["--ret", "all"], "'--ret'"),
        (["--envid", "j\u00f6"], "'--envid': ENVID takes printable ASCII"),
        (["--envid", ""], "'--envid'"),
        (["--priority", "10"], "'--priority'"),
        (["--require-tls", "--no-verify"], "--require-tls needs TLS with a verified server"),
        (["--require-tls", "--starttls", "opportunistic"], "--require-tls needs TLS with a verified server"),
        (["--require-tls", "--starttls", "never"], "--require-tls needs TLS with a verified server"),
    ],
)
def test_wrong_options_of_extensions(options: list[str], error: str) -> None:
    status, _, err = run(*options, "-")
    assert status == 2
    assert error in " ".join(err.split())
