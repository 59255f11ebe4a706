"""Pipe: what the command gets, what its exit status becomes, and what a client cannot do."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from gevent import Timeout, get_hub, getcurrent, idle

from greensmtp import ArgumentError, SMTPServer
from greensmtp._native import native
from greensmtp.delivery import Deliveries, Pipe, pipe
from greensmtp.delivery.contract import SpooledTransfer
from greensmtp.server.thread import ServerThread
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import until

pytestmark = pytest.mark.subprocess

Front = Callable[..., SMTPServer]


@pytest.fixture
def front(smtp_server: MakeServer) -> Front:
    def make(command: list[str], *, lmtp: bool = False, **options: Any) -> SMTPServer:
        server = smtp_server(start=False, lmtp=lmtp)
        Deliveries([Pipe(command, **options)]).attach(server)
        server.start()
        return server

    return make


def shell(script: str) -> list[str]:
    """Return a command that runs a script of sh."""
    return ["/bin/sh", "-c", script]


def deliver(server: SMTPServer, body: str = "Subject: Tea\r\n\r\nAt four.\r\n") -> str:
    with dial(server) as peer:
        peer.hello()
        return peer.deliver(body)


def test_the_command_gets_message_arguments_and_variables(front: Front, tmp_path: Path) -> None:
    script = 'cat >message; env >env; printf "%s\\n" "$0" "$@" >arguments; pwd >pwd'
    command = [*shell(script), "--from={sender}", "{hello}", "--", "{recipient}"]
    server = front(command, environment={"COLOUR": "green"}, folder=str(tmp_path))
    with dial(server) as peer:
        peer.hello()
        peer.line(
            "MAIL FROM:<ann@example.net>", 'RCPT TO:<"$(id) ; x"@example.org>', "RCPT TO:<-cyd@example.org>", "DATA"
        )
        peer.expect("250", "250", "250", "354")
        peer.send(b"Subject: Tea\r\n\r\n..At four.\r\n.\r\n")
        reply = peer.expect("250")
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--from=ann@example.net",
        "client.example",
        "--",
        '"$(id) ; x"@example.org',
        "-cyd@example.org",
    ]
    message = (tmp_path / "message").read_bytes()
    assert message.startswith(b"Return-Path: <ann@example.net>\r\nReceived: from client.example")
    assert message.endswith(b"\r\nSubject: Tea\r\n\r\n.At four.\r\n")
    variables = (tmp_path / "env").read_text()
    assert 'RECIPIENTS="$(id) ; x"@example.org\n-cyd@example.org\n' in variables
    for line in (
        "SENDER=ann@example.net",
        "COLOUR=green",
        "CLIENT_HELO=client.example",
        f"MESSAGE_ID={reply.split()[-1]}",
    ):
        assert line in variables.splitlines()
    assert "HOME=" not in variables
    assert (tmp_path / "pwd").read_text() == f"{tmp_path}\n"


def test_without_trace_the_message_is_as_it_came(front: Front, tmp_path: Path) -> None:
    deliver(front(shell(f"cat >{tmp_path}/message"), trace=False))
    assert (tmp_path / "message").read_bytes() == b"Subject: Tea\r\n\r\nAt four.\r\n"


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        *((0, "250 2.0.0"), (65, "554 5.6.0"), (67, "550 5.1.1"), (68, "550 5.1.2"), (77, "550 5.7.1")),
        *((status, "451 4.3.0") for status in (1, 64, 75, 78, 127)),
    ],
)
def test_the_exit_status_is_the_reply(front: Front, status: int, reply: str) -> None:
    assert deliver(front(shell(f"exit {status}"))).startswith(reply)


def test_a_signal_is_a_451_and_the_output_is_logged(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    reply = deliver(front(shell("echo no such thing >&2; echo 'in two\033 lines'; kill -9 $$")))
    assert reply == "451 4.3.0 The message cannot be delivered now"
    assert r": /bin/sh: signal 9: no such thing | in two\x1b lines" in caplog.text


def test_a_missing_program_is_a_451_and_an_error(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    assert deliver(front(["/no/such/program"])).startswith("451 4.3.0")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "command /no/such/program cannot be run: " in record.getMessage()


@pytest.mark.parametrize("script", ["exec sleep 60", "sleep 60 & echo $! >>{pids}; wait", "trap '' TERM; sleep 60"])
def test_a_command_that_takes_too_long_is_killed_with_its_children(front: Front, tmp_path: Path, script: str) -> None:
    pids = tmp_path / "pids"
    script = f"echo $$ >{pids}; " + script.format(pids=pids)
    assert deliver(front(shell(script), timeout=0.5)).startswith("451 4.4.7")
    until(lambda: not any(map(_runs, pids.read_text().split())), "all have ended")


def _runs(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # it is dead, if process 1 has not collected it


def test_a_child_that_holds_the_output_holds_up_nothing(front: Front) -> None:
    began = time.monotonic()
    assert deliver(front(shell("sleep 60 & exit 0"))).startswith("250")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("script", ["exit 0", "head -c 10 >/dev/null", "cat >/dev/null; yes | head -c 3000000"])
def test_the_command_may_read_little_and_print_much(front: Front, script: str) -> None:
    assert deliver(front(shell(script)), ("x" * 76 + "\r\n") * 20_000).startswith("250")


def test_a_large_message_arrives_whole(front: Front, tmp_path: Path) -> None:
    body = ("x" * 76 + "\r\n") * 40_000
    deliver(front(shell(f"wc -c >{tmp_path}/size"), trace=False), body)
    assert int((tmp_path / "size").read_text()) == len(body)


def test_in_lmtp_each_recipient_has_its_own_run_and_reply(front: Front) -> None:
    command = [*shell('case "$0" in bob@*) exit 67; esac'), "{recipient}"]
    with dial(front(command, lmtp=True)) as peer:
        peer.line("LHLO client.example")
        peer.expect("220", "250")
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>", "DATA")
        peer.expect("250", "250", "250", "354")
        peer.send(b"Hi.\r\n.\r\n")
        peer.expect("550", "250")


def test_an_address_cannot_be_an_option(front: Front) -> None:
    with dial(front(["/bin/true", "{sender}", "{recipient}"])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<-rf@example.net>")
        peer.expect("553")
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<-rf@example.org>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "553", "250")


def test_a_client_name_cannot_be_an_option(front: Front) -> None:
    with dial(front(["/bin/true", "{hello}"])) as peer:
        peer.expect("220")
        peer.line("EHLO -rf")
        peer.expect("250")
        assert peer.deliver("Hi.\r\n").startswith("553")


def test_fields_together_cannot_be_an_option_either(front: Front) -> None:
    with dial(front(["/bin/true", "{sender}{hello}"])) as peer:
        peer.expect("220")
        peer.line("EHLO -rf")
        peer.expect("250")
        assert peer.deliver("Hi.\r\n", sender="").startswith("553")
        assert peer.deliver("Hi.\r\n", sender="ann@example.net").startswith("250")


def test_a_child_that_escapes_with_the_input_holds_up_nothing(front: Front, tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ >{tmp_path}/pid; exec sleep 60' <&0 & sleep 60"
    began = time.monotonic()
    try:
        assert deliver(front(shell(script), timeout=0.5), ("x" * 76 + "\r\n") * 5_000).startswith("451 4.4.7")
        assert time.monotonic() - began < 20
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_commands_wait_for_their_turn(front: Front, tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/pid; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    server = front(shell(script), connections=1, wait=0.1)
    with dial(server) as first, dial(server) as second:
        first.hello()
        first.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>", "DATA")
        first.expect("250", "250", "354")
        first.send(b"Hi.\r\n.\r\n")
        until((tmp_path / "pid").exists, "the first command runs")
        second.hello()
        assert second.deliver("Hi.\r\n") == "451 4.3.2 Too many messages are being delivered, try again later"
        (tmp_path / "go").touch()
        first.expect("250")


def _interrupt_commit(monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[Any], object]) -> None:
    """Call ``interrupt`` with the greenlet that waits for the command, when that begins."""
    execute = Pipe._execute

    def interrupted(*arguments: Any) -> Any:
        interrupt(getcurrent())
        return execute(*arguments)

    monkeypatch.setattr(Pipe, "_execute", interrupted)


def _commands(mark: Path) -> list[str]:
    """Return the processes that have a path in their arguments."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(mark).encode() in each.read_bytes():
                found.append(each.parent.name)
    return found


def test_a_command_whose_start_is_interrupted_gets_no_empty_message(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of its input the command would take what it has for the message, which the client is refused."""
    server = front(shell(f"cat >{tmp_path}/part; mv {tmp_path}/part {tmp_path}/message"))
    _interrupt_commit(monkeypatch, lambda waiting: get_hub().loop.run_callback(waiting.throw, Timeout()))
    assert deliver(server).startswith("451 4.3.0")
    until(lambda: not _commands(tmp_path), "the command has ended")
    assert not (tmp_path / "message").exists()


def test_an_interruption_after_the_exit_status_comes_too_late(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 451 would make the client send the message again."""
    waiting: list[Any] = []
    _interrupt_commit(monkeypatch, waiting.append)
    end = pipe._end

    def interrupted(*arguments: Any) -> None:
        get_hub().loop.run_callback(waiting[0].throw, Timeout())
        idle()
        end(*arguments)

    monkeypatch.setattr(pipe, "_end", interrupted)
    assert deliver(front(shell(f"cat >{tmp_path}/message"))).startswith("250")


def test_a_command_that_cannot_be_killed_is_an_error_in_the_log(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    groups: list[int] = []

    def kill(group: int, number: int) -> None:
        groups.append(group)
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", kill)
        assert deliver(front(shell("exec sleep 60"), timeout=0.2)).startswith("451 4.4.7")
    os.killpg(groups[0], signal.SIGKILL)
    assert f"process {groups[0]} cannot be killed" in caplog.text


def test_a_message_is_not_closed_while_a_thread_reads_it(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing it would block the hub until the thread has what it reads."""
    hangs = native("threading", "Event")()

    class Slow(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            hangs.wait()
            return b""

    message = Slow()
    monkeypatch.setattr(SpooledTransfer, "open", lambda self: message)
    try:
        assert deliver(front(shell("cat >/dev/null"), timeout=0.2)).startswith("451 4.4.7")
        assert not message.closed
    finally:
        hangs.set()
    until(lambda: message.closed, "the message is closed")


def test_recipients_that_fit_into_no_variable_are_deferred(front: Front) -> None:
    server = front(["/bin/true"])
    longest = "x" * 60 + "@" + ".".join(["y" * 60] * 3)
    recipients = pipe._MAX_RECIPIENTS // (len(longest) + 1)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        peer.expect("250")
        for _ in range(recipients):
            peer.line(f"RCPT TO:<{longest}>")
            peer.expect("250")
        peer.line(f"RCPT TO:<{longest}>", "DATA")
        peer.expect("452 4.5.3", "354")
        peer.send(b"Hi.\r\n.\r\n")
        peer.expect("250")


def test_no_descriptor_is_lost_when_descriptors_run_out(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    server = front(shell("cat >/dev/null"))
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("Hi.\r\n").startswith("250")
        before = len([*Path("/dev/fd").iterdir()])
        open_pipe = os.pipe
        for left in range(3):
            pipes = iter([open_pipe] * left)

            def fail(pipes: Iterator[Any] = pipes) -> Any:
                try:
                    return next(pipes)()
                except StopIteration:
                    raise OSError(errno.EMFILE, "Too many open files") from None

            with monkeypatch.context() as patch:
                patch.setattr(os, "pipe", fail)
                assert peer.deliver("Hi.\r\n").startswith("451 4.3.0")
        assert len([*Path("/dev/fd").iterdir()]) == before
        assert peer.deliver("Hi.\r\n").startswith("250")


def test_the_command_ignores_no_signal_that_the_server_ignores(front: Front, tmp_path: Path) -> None:
    """A worker ignores SIGHUP and SIGINT, which a command may send to its own children."""
    server = front(shell(f"grep SigIgn /proc/self/status >{tmp_path}/ignored"))
    numbers = (signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        assert deliver(server).startswith("250")
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    ignored = int((tmp_path / "ignored").read_text().split()[1], 16)
    assert not any(ignored & 1 << number - 1 for number in numbers)


def test_a_server_in_a_thread_is_refused() -> None:
    """gevent would start the command there, and close its input at once: an empty message."""
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    Deliveries([Pipe(["/bin/true"])]).attach(server)
    with pytest.raises(RuntimeError, match="Pipe needs a server in the main thread"):
        ServerThread(server).start()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"command": []}, "command: expected a list"),
        ({"command": "/bin/true"}, "command: expected a list"),
        ({"command": ["{sender}"]}, "command: expected the path of a program first"),
        ({"command": ["/bin/true", "{to}"]}, r"command: expected \{sender\}, .* in an argument; got \{to\}"),
        ({"command": ["/bin/true", "-r{recipient}"]}, r"command: expected \{recipient\} as a whole argument"),
        ({"command": ["/bin/true"], "timeout": 0}, "timeout: expected a number above 0"),
        ({"command": ["/bin/true"], "wait": "1"}, "wait: expected a number above 0"),
        ({"command": ["/bin/true"], "connections": 0.5}, "connections: expected a whole number of at least 1"),
        ({"command": [""]}, "command: expected a list"),
        ({"command": ["/bin/true", "a\0b"]}, "command: expected a list"),
        ({"command": 5}, "command: expected a list"),
        ({"command": ["/bin/true"], "environment": {"A": 1}}, "environment: expected a table of strings"),
        ({"command": ["/bin/true"], "environment": {"A=B": "x"}}, "environment: expected a table of strings"),
        ({"command": ["/bin/true"], "environment": {"A": "x\0"}}, "environment: expected a table of strings"),
        ({"command": ["/bin/true"], "environment": ["A"]}, "environment: expected a table of strings"),
    ],
)
def test_wrong_arguments_are_errors_that_show_how(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        Pipe(**arguments)


def test_a_program_that_is_not_there_is_a_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    Pipe(["cat"])
    Pipe(["/bin/cat"])
    Pipe(["./run"], folder=tmp_path)
    Pipe(["run"], environment={"PATH": str(tmp_path)})
    assert not caplog.records
    for program in ("no-such-program", "./run", f"{tmp_path}/walk"):
        caplog.clear()
        Pipe([program])
        (record,) = caplog.records
        assert f"there is no program {program!r} that this user can run" in record.getMessage()
