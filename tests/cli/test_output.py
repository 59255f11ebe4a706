"""The output of ``greensmtp serve``: its log, and output that is not read."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import select
import smtplib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from greensmtp import Ack, Address, Reject, Session, SMTPServer
from greensmtp._native import native
from greensmtp.cli.announce import Announce
from greensmtp.line_writer import MAX_WAITING, LineWriter
from greensmtp.log_writer import LogHandler
from greensmtp.protocol.log_text import MAX_LENGTH
from greensmtp.testing import dial
from tests.helpers import until

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer

Serve = Callable[..., Any]

BODY = b"Subject: Tea\r\n\r\nAt four.\r\n"


def deliver(port: int, *recipients: str, messages: int = 1) -> None:
    """Send messages, in one session."""
    with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=10) as client:
        for _ in range(messages):
            assert client.sendmail("ann@example.com", recipients or ("bob@example.org",), BODY) == {}


# The log


def test_without_problems_the_log_is_empty(serve: Serve) -> None:
    server = serve()
    deliver(server.port)
    server.stop()
    assert server.log == ""


@pytest.mark.parametrize("workers", ["", "workers = 1"])
def test_the_log_may_have_standard_output(serve: Serve, tmp_path: Path, workers: str) -> None:
    """As in a container: then the rest goes to standard error."""
    text = '[[listeners]]\nurl = "127.0.0.1:0"\n[logging]\ntarget = "stdout"\nformat = "json"\nlevel = "info"\n'
    (tmp_path / "greensmtp.toml").write_text(f"{text}[service]\n{workers}\n")
    command = [sys.executable, "-m", "greensmtp"] if workers else None
    server = serve("--config", "greensmtp.toml", wait=False, listeners=1, command=command)
    until(lambda: "listening" in server.log, "the listener")
    deliver(int(server.log.split("listening smtp://127.0.0.1:")[1].split()[0]))
    assert server.stop() == 0
    records = [json.loads(line) for line in server.lines()]
    assert [record["message"].split()[1] for record in records] == ["message", "session"]
    assert re.search(r"^message from=<ann@example\.com> to=<bob@example\.org> size=", server.log, re.MULTILINE)


def test_verbose_logs_sessions_and_messages(serve: Serve) -> None:
    server = serve("-v")
    deliver(server.port)
    server.stop()
    message, session = server.log.splitlines()
    assert re.search(r" INFO \S+ message from=<ann@example\.com> to=<bob@example\.org> size=\d+ .* -> 250 ", message)
    assert re.search(r" INFO \S+ session peer=127\.0\.0\.1 .* messages=1 recipients=1 octets=\d+ -> quit ", session)


def test_verbose_twice_logs_every_command_without_secrets(serve: Serve) -> None:
    server = serve("-vv")
    with server.dial() as peer:
        peer.hello()
        peer.line("AUTH PLAIN AHNlY3JldABzZWNyZXQ=", "NOOP")
        peer.expect("5", "250")
    server.stop()
    assert re.search(r" DEBUG \S+ EHLO client\.example -> 250 ", server.log)
    assert re.search(r" DEBUG \S+ AUTH \*\*\* -> 5", server.log)
    assert "AHNlY3JldABzZWNyZXQ" not in server.log


TROUBLESOME = """
import warnings
import gevent
from greensmtp import signals

@signals.reset.connect
def trouble(session):
    warnings.warn("a warning\\nof two lines")
    gevent.spawn(lambda: {}["not waited for"]).join()
    raise ValueError("a traceback\\nof several lines")
"""


def test_the_json_log_has_one_object_per_line(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "troublesome.py").write_text(TROUBLESOME)
    server = serve("--log-format", "json", "-vv", "--plugin", "troublesome")
    with server.dial() as peer:
        peer.hello("client.example")
        peer.send('MAIL FROM:<"a\\\\b"@example.com> BODY=8BITMIME\r\nVRFY \x01\r\nNOOP \u2028\u00e4\r\nRSET\r\n')
        peer.expect("250", "501", "*", "250")
    deliver(server.port, "bob@example.org", "cyd@example.org")
    assert server.stop() == 0
    records = [json.loads(line) for line in server.log.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= record.keys() for record in records)
    by_verb = {record["verb"]: record for record in records if "verb" in record}
    assert by_verb["CONNECT"]["peer"] == "127.0.0.1"
    assert by_verb["EHLO"]["argument"] == "client.example"
    assert by_verb["RCPT"]["reply"] == 250
    *_, end = (record for record in records if record.get("event") == "transaction")
    assert end["sender"] == "ann@example.com"
    assert end["recipients"] == ["bob@example.org", "cyd@example.org"]
    assert end["size"] == len(BODY)
    text = "\n".join(record["message"] + record.get("exc_info", "") for record in records)
    for trouble in ("a warning\nof two lines", "not waited for", "ValueError: a traceback\nof several lines"):
        assert trouble in text


# Output that is not read


#: Run the rest of the command line with some descriptors closed.
CLOSING = "import os, sys; [os.close(int(number)) for number in sys.argv[1]]; os.execv(sys.argv[2], sys.argv[2:])"

#: Tells the port where standard output cannot.
TELLTALE = """
import gevent
def watch(server):
    gevent.spawn(tell, server)
def tell(server):
    while not server.started:
        gevent.sleep(0.01)
    with open("port", "w") as file:
        file.write(str(server.address[1]))
"""


@pytest.fixture
def serve_mute(serve: Serve, tmp_path: Path) -> Callable[..., tuple[Any, int]]:
    """Start a server that cannot print where it listens; return it and its port."""

    def start(*options: str, **popen: Any) -> tuple[Any, int]:
        (tmp_path / "telltale.py").write_text(TELLTALE)
        os.mkfifo(tmp_path / "port")
        with os.fdopen(os.open(tmp_path / "port", os.O_RDONLY | os.O_NONBLOCK)) as file:
            server = serve("--plugin", "telltale:watch", *options, wait=False, **popen)
            select.select([file], [], [], 20)
            os.set_blocking(file.fileno(), True)
            return server, int(file.read())

    return start


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("numbers", "how"), [("1", "forked"), ("12", "forked"), ("012", "forked"), ("012", "fresh process")]
)
def test_mail_is_accepted_while_the_standard_streams_are_closed(serve_mute: Serve, numbers: str, how: str) -> None:
    fresh = [sys.executable, "-c", CLOSING, numbers, Path(sys.executable).with_name("greensmtp")]
    options = {"closed": [*map(int, numbers)]} if how == "forked" else {"command": fresh}
    server, port = serve_mute("-vv", **options)
    for number in numbers:  # what is printed must not end up in a socket, or in a message
        assert Path(f"/proc/{server.process.pid}/fd/{number}").readlink() == Path("/dev/null")
    deliver(port, messages=3)
    assert server.stop() == 0
    assert [message.endswith(b"\r\n" + BODY) for message in server.mail] == [True] * 3
    assert "Traceback" not in server.log


@pytest.mark.subprocess
def test_mail_is_accepted_when_the_disk_of_standard_output_is_full(serve_mute: Serve) -> None:
    with Path("/dev/full").open("wb") as full:
        server, port = serve_mute(stdout=full)
    deliver(port, messages=3)
    assert server.stop() == 0
    assert len(server.mail) == 3
    assert server.log == ""


def test_mail_is_accepted_when_the_reader_of_standard_output_is_gone(serve: Serve) -> None:
    server = serve()
    server.process.stdout.close()
    deliver(server.port, messages=3)
    assert server.stop() == 0
    assert len(server.mail) == 3
    assert server.log == ""


def test_mail_is_accepted_when_standard_output_is_not_read(serve: Serve) -> None:
    server = serve()
    room = fcntl.fcntl(server.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    recipients = [f"{'x' * 60}{number}@example.org" for number in range(room // 400)]
    deliver(server.port, *recipients, messages=10)  # at least twice what the pipe takes
    assert server.stop() == 0
    assert len(server.mail) == 10
    assert server.log == ""


def test_mail_is_accepted_when_the_log_is_not_read(serve: Serve) -> None:
    reading, writing = os.pipe()
    try:
        room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        server = serve("-vv", stderr=writing)
        with server.dial() as peer:
            peer.hello()
            for _ in range(3):
                peer.line(*["NOOP " + "x" * 400] * (room // 400 // 2))
                peer.expect(*["250"] * (room // 400 // 2))
        deliver(server.port)
        assert server.stop() == 0
        assert len(server.mail) == 1
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_record_that_cannot_be_formatted_is_reported_in_the_log(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """By default, logging prints a traceback, which would block the hub if standard error is not read."""
    handler = LogHandler(log_format)
    handler.handle(logging.makeLogRecord({"name": "tea", "msg": "%d", "args": ("sesame",), "pathname": "tea.py"}))
    handler.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot format a record of tea (tea.py, line 0): TypeError(" in line
    assert "sesame" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_slow_reader_is_told_how_many_lines_were_dropped(log_format: str) -> None:
    reading, writing = os.pipe()
    with Path(f"/dev/fd/{writing}").open("w") as stream, pytest.MonkeyPatch.context() as patch:
        os.close(writing)
        room = fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
        patch.setattr("sys.stderr", stream)
        handler = LogHandler(log_format)
        handler.handle(logging.makeLogRecord({"msg": "x" * 2 * room}))
        select.select([reading], [], [], 20)  # from here on, it is stuck in that one
        for number in range(MAX_WAITING + 5):
            handler.handle(logging.makeLogRecord({"msg": f"number {number}"}))
        text = b""
        while b"dropped" not in text:
            text += os.read(reading, 65536)
        handler.close()
    os.close(reading)
    assert f"number {MAX_WAITING - 1}" in text.decode()
    assert f"number {MAX_WAITING}" not in text.decode()
    (gap,) = (line for line in text.decode().splitlines() if "dropped" in line)
    assert "5 records dropped: the log could not be written, or not fast enough" in gap
    if log_format == "json":
        assert json.loads(gap)["level"] == "WARNING"


FORGED = r'<"a> to=<victim@y.z> size=1: 250 2.0.0 Ok: queued as X"@evil.test>'


def test_an_address_cannot_forge_a_line_or_a_field(serve: Serve) -> None:
    server = serve("-vv")
    with server.dial() as peer:
        peer.hello()
        peer.line(f"MAIL FROM:{FORGED}", "RCPT TO:<size=7@example.org>", *["RCPT TO:<bob@example.org>"] * 2)
        peer.line(*[f"RCPT TO:<{number}@example.org>" for number in range(97)])
        peer.line("RCPT TO:<last@example.org>", "DATA", "Subject: x", ".")
        peer.expect(*["250"] * 102, "354", "250")
        peer.line("NOOP message from=<ann@example.com> to=<bob@example.org> size=9 peer=192.0.2.1")
        peer.expect("250")
    line = server.line()
    match = re.fullmatch(
        r"message from=<(\S*)> to=(\S+(?: more\))?) size=(\d+): (250 2\.0\.0 Ok: queued as [\w-]+)", line
    )
    assert match, line
    assert (
        match[1]
        == r'"a\x3e\x20to\x3d\x3cvictim@y.z\x3e\x20size\x3d1:\x20250\x202.0.0\x20Ok:\x20queued\x20as\x20X"@evil.test'
    )
    assert match[2].startswith(r"<size\x3d7@example.org>,<bob@example.org>,")
    assert match[2].endswith("<96@example.org>,...(1 more)")
    assert server.stop() == 0
    assert server.lines() == []
    for text in server.log.splitlines():
        assert len(re.findall(r"\bfrom=", text)) == (" message from=" in text), text


QUOTING = """
from greensmtp import signals

@signals.on("received")
def thank(session, ack):
    ack.accept(250, f"2.0.0 Ok, {session.to[0]}")
"""


def test_no_reply_that_quotes_the_client_passes_for_a_field(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "quoting.py").write_text(QUOTING)
    server = serve("--plugin", "quoting", "-vv")
    with server.dial() as peer:
        peer.expect("220")
        peer.line("EHLO a from=<ann@example.com> to=<victim@y.z>")
        peer.expect("250")
        peer.line("MAIL FROM:<ann@example.com>", 'RCPT TO:<"x to=<victim@y.z> size=1"@evil.test>', "DATA", "x", ".")
        peer.expect("250", "250", "354", "250 2.0.0 Ok")
    assert len(re.findall(" to=", server.line())) == 1
    assert server.stop() == 0
    for text in server.log.splitlines():
        assert len(re.findall(r"\b(?:to|from)=", text)) == 2 * (" message from=" in text), text


def test_a_long_address_is_shortened(serve: Serve) -> None:
    server = serve()
    with server.dial() as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<{'x' * 64}@example.com>", "RCPT TO:<bob@example.org>", "DATA", "Subject: x", ".")
        peer.expect("250", "250", "354", "250")
    assert len(server.line()) < 2 * MAX_LENGTH
    assert server.stop() == 0


FORGING = """
from greensmtp import signals

@signals.reset.connect
def trouble(session):
    raise ValueError("bad\\n2026-01-01 00:00:00,000 INFO 1-1 message from=<x>\\r\\x1b[2Kgone")
"""


def test_a_record_with_several_lines_cannot_forge_another_record(serve: Serve, tmp_path: Path) -> None:
    """The text of an error may quote a client."""
    (tmp_path / "forging.py").write_text(FORGING)
    server = serve("--plugin", "forging")
    with server.dial() as peer:
        peer.hello()
        peer.line("RSET")
        peer.expect("250")
    assert server.stop() == 0
    first, *others = server.log.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d .* ERROR ", first)
    assert others
    assert not any(line[:1].isdigit() for line in others)
    assert r"  2026-01-01 00:00:00,000 INFO 1-1 message from=<x>\r\x1b[2Kgone" in others


def test_characters_outside_the_encoding_are_escaped(serve: Serve) -> None:
    command = [sys.executable, "-m", "greensmtp"]
    server = serve("-v", command=command, env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<jos\u00e9@example.com> SMTPUTF8", "RCPT TO:<bob@example.org>", "DATA", "Subject: x", ".")
        peer.expect("250", "250", "354", "250")
    assert server.line().startswith(r"message from=<jos\xe9@example.com> to=<bob@example.org> ")
    assert server.stop() == 0
    assert r"message from=<jos\xe9@example.com>" in server.log


# The writer


def test_a_writer_starts_no_thread_before_there_is_something_to_write() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        threads = len([*Path("/proc/self/task").iterdir()])
        writer.finish()
        assert len([*Path("/proc/self/task").iterdir()]) == threads
        writer.say("tea")
        writer.finish(20)
    assert os.read(reading, 100) == b"tea\n"
    os.close(reading)


def test_a_writer_that_has_finished_begins_again() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        for line in ("tea", "toast", "jam"):
            writer.say(line)
            assert writer.finish(20)
            assert writer.finish(20)
    assert os.read(reading, 100) == b"tea\ntoast\njam\n"
    os.close(reading)


def test_lines_that_come_close_together_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began, more = native("threading", "Event")(), native("threading", "Event")()

    def gather(seconds: float) -> None:
        began.set()
        assert more.wait(20)

    monkeypatch.setattr(
        "greensmtp.line_writer.native",
        lambda module, name: gather if name == "sleep" else native(module, name),
    )
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        writer.say("tea")
        assert began.wait(20)
        writer.say("toast")
        more.set()
        assert os.read(reading, 100) == b"tea\ntoast\n"
        assert writer.finish(20)
    os.close(reading)


def test_a_writer_whose_pipe_is_full_says_that_it_has_not_finished() -> None:
    reading, writing = os.pipe()
    room = fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        writer.say("x" * room)
        assert not writer.finish(0.01)
        assert not writer.finish(0.01)
        writer.say("late")
        text = b""
        while not text.endswith(b"late\n"):
            text += os.read(reading, 65536)
        writer.say("later")
        assert writer.finish(20)
        assert os.read(reading, 100) == b"later\n"
    os.close(reading)


@pytest.mark.parametrize("target", ["stderr", "file"])
def test_the_log_goes_on_after_the_program_configures_logging(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """logging.config closes all handlers, but leaves them with their loggers."""
    path = tmp_path / "log"
    with path.open("a") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handler = LogHandler("text", "stderr" if target == "stderr" else str(path))
        for number in (1, 2):
            handler.handle(logging.makeLogRecord({"levelname": "INFO", "msg": f"record {number}"}))
            handler.close()
    assert re.findall(r"INFO (.*)", path.read_text()) == ["record 1", "record 2"]


def test_a_log_that_cannot_be_opened_again_is_silent(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    handler = LogHandler("text", str(folder / "log"))
    handler.close()
    (folder / "log").unlink()
    folder.rmdir()
    descriptor = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)  # likely to be the one that the log had
    handler.handle(logging.makeLogRecord({"levelname": "INFO", "msg": "lost"}))
    handler.close()
    os.close(descriptor)
    assert (tmp_path / "other").read_bytes() == b""


@pytest.mark.subprocess
def test_after_a_fork_the_child_writes_with_a_thread_of_its_own() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        writer.say("parent")
        assert os.read(reading, 100) == b"parent\n"  # its thread goes on, but not in the child
        child = os.fork()
        if not child:
            writer.say("child")
            os._exit(0 if writer.finish(5) else 1)
        assert os.waitpid(child, 0) == (child, 0)
        assert os.read(reading, 100) == b"child\n"
        assert writer.finish(20)
    os.close(reading)


def test_a_non_blocking_descriptor_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    room = fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        writer.say("x" * room + "end")
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(reading, 65536)
        writer.finish(20)
    assert text == b"x" * room + b"end\n"
    os.close(reading)


class Lines:
    """Stand in for standard output."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def announcing(smtp_server: MakeServer, store: Callable[[Lines], None], *, lmtp: bool) -> tuple[SMTPServer, Lines]:
    lines = Lines()
    server = smtp_server(middleware=[Announce(cast(LineWriter, lines))], start=False, lmtp=lmtp)
    server.on("message", lambda session, stream, ack: ack.accept())

    def received(session: Session, ack: Ack, recipient: Address | None = None) -> None:
        session.stage(store, lines)
        ack.accept()

    cast(Any, server).on("received", received)
    return server, lines


@pytest.mark.parametrize("lmtp", [False, True])
def test_the_line_of_a_message_comes_when_it_is_stored(smtp_server: MakeServer, lmtp: bool) -> None:
    server, lines = announcing(smtp_server, lambda lines: lines.say("stored"), lmtp=lmtp)
    with dial(server) as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        assert peer.deliver().startswith("250")
    assert [line.split(" ")[0] for line in lines.said] == ["stored", "message"]


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_message_that_cannot_be_stored_has_no_line(smtp_server: MakeServer, lmtp: bool) -> None:
    def fail(lines: Lines) -> None:
        raise Reject(452, "4.3.1 full")

    server, lines = announcing(smtp_server, fail, lmtp=lmtp)
    with dial(server) as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        assert peer.deliver().startswith("452")
    assert lines.said == []
