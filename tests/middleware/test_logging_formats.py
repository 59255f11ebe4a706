"""The Logging middleware: text and JSON, and where they are written."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import sleep
from gevent.event import Event

from greensmtp import log_writer
from greensmtp.log_writer import LogHandler, sole_handler
from greensmtp.middleware import Logging
from greensmtp.middleware.logging.format import Line
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked

SOURCE = ("192.0.2.1", 4711)


@pytest.fixture(autouse=True)
def methods_are_looked_at_each_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_writer, "RECHECK_SECONDS", 0.0)
        yield


@pytest.fixture
def own_logger() -> Any:
    """Return a logger for one test; its handlers are removed afterwards."""
    logger = logging.getLogger("greensmtp.tests.own")
    yield logger
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def session_with(make: MakeServer, middleware: Logging) -> None:
    over = Event()
    server = make(start=False, middleware=[middleware])
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server, source=SOURCE) as peer:
        peer.hello()
        peer.deliver("Hi.\r\n", sender="jos\u00e9@example.org> SMTPUTF8")
        peer.line("QUIT")
        peer.rest()
    assert over.wait(5)
    sleep(0)


def test_json_comes_as_an_object_a_line(
    smtp_server: MakeServer,
    own_logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    middleware = Logging(own_logger, format="json")
    Logging(own_logger, format="json")  # another server's: no line is written twice
    assert repr(middleware).endswith("level='INFO', format='json')")
    session_with(smtp_server, middleware)
    message, session = map(json.loads, capsys.readouterr().err.splitlines())
    assert caplog.records == []
    assert message["sender"] == "jos\u00e9@example.org"
    assert (message["event"], message["level"], message["size"]) == ("transaction", "INFO", 5)
    assert {"timestamp", "session", "peer", "tls", "identity", "recipients", "reply", "seconds"} <= message.keys()
    assert (session["event"], session["reason"], session["session"]) == ("session", "quit", message["session"])


def test_text_comes_as_a_line(
    smtp_server: MakeServer, own_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    session_with(smtp_server, Logging(own_logger.name, "DEBUG", format="text"))
    lines = capsys.readouterr().err.splitlines()
    assert any(" DEBUG " in line and " EHLO client.example -> 250 " in line for line in lines)
    assert any(" message from=<jos\u00e9@example.org> " in line for line in lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_standard_error_that_nothing_reads_holds_up_no_session(
    smtp_server: MakeServer, own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    monkeypatch.setattr("greensmtp.line_writer.MAX_WAITING", 100)
    reading, writing = os.pipe()
    room = fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        server = smtp_server(
            start=False, middleware=[Logging(own_logger, "DEBUG", format=form)], max_idle_commands=10_000
        )
        with dial(server) as peer:
            peer.hello()
            for number in range(2 * room // 100 + 300):
                peer.line(f"NOOP {number} {'x' * 100}")
                peer.expect("250")
        (handler,) = own_logger.handlers
        text = b""
        while b"records dropped" not in text:
            text += os.read(reading, 65536)
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 1 << 20)  # room for the rest, or its thread would outlive the pipe
        handler.close()
    os.close(reading)
    assert b"NOOP 1 x" in text


@pytest.mark.subprocess
@pytest.mark.parametrize("end", ["", "raise ValueError('the end')", "sys.exit(3)"])
def test_what_has_been_logged_is_written_before_the_program_ends(end: str) -> None:
    program = f"""
import sys
from greensmtp import SMTPServer
from greensmtp.log_writer import LogHandler, sole_handler
from greensmtp.middleware import Logging
from greensmtp.testing import dial
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", middleware=[Logging(level="DEBUG", format="text")])
with dial(server) as peer:
    peer.hello()
    for number in range(90):
        peer.line(f"NOOP {{number}}")
        peer.expect("250")
{end}
"""
    ran = forked.run(forked.python(program), how=forked.UNPATCHED)
    assert [f"NOOP {number} -> 250" in ran.stderr for number in range(90)] == [True] * 90
    assert ran.stdout == ""


def test_formats_that_are_none_and_two_at_once_are_refused(own_logger: logging.Logger) -> None:
    with pytest.raises(ValueError, match="format takes 'text' or 'json', or None"):
        Logging(own_logger, format="xml")  # type: ignore[arg-type]
    assert own_logger.handlers == []
    Logging(own_logger, format="text")
    with pytest.raises(ValueError, match=r"'greensmtp.tests.own' writes text already; pass another logger for json"):
        Logging(own_logger, format="json")


def test_without_the_library_json_says_what_to_install(
    own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pythonjsonlogger.json", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'greensmtp\[cli\]'"):
        Logging(own_logger, format="json")
    assert own_logger.handlers == []
    Logging(own_logger)


def test_a_level_below_debug_is_kept_apart_from_commands(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setLevel(0)  # the logger alone decides
    session_with(smtp_server, Logging(level=5))
    facts = [record.__dict__ for record in caplog.records if "event" in record.__dict__]
    assert {each["event"] for each in facts} == {"command"}
    assert [each["verb"] for each in facts] == ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


def _without_times(line: str) -> str:
    line = re.sub(r"\d{4}-\d\d-\d\d[ T][\d:.,+]+", "TIME", line)
    line = re.sub(r"\([\d.]+ ms\)|\"seconds\": [\d.e-]+", "SECONDS", line)
    return re.sub(r"[0-9a-f]{13}-[0-9a-f]{6}-[0-9a-f]+|[0-9a-f]{6}-[0-9a-f]+", "ID", line)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("lmtp", [False, True])
def test_a_line_without_a_record_is_what_its_record_would_be(
    smtp_server: MakeServer, own_logger: logging.Logger, tmp_path: Path, form: str, lmtp: bool
) -> None:
    """A filter, that lets all pass, has the ordinary records made."""
    own_logger.propagate = False
    own_logger.setLevel(logging.DEBUG)
    texts = []
    for filtered in (False, True):
        path = tmp_path / f"{filtered}.log"
        handler = LogHandler(form, str(path))
        if filtered:
            handler.addFilter(lambda record: True)
        own_logger.handlers[:] = [handler]
        assert (sole_handler(own_logger, logging.INFO) is None) == filtered
        server = smtp_server(start=False, lmtp=lmtp, middleware=[Logging(own_logger)])
        server.on("message", lambda session, stream, ack: ack.accept())
        over = Event()
        server.on("disconnect", lambda session, reason, over=over: over.set())
        with dial(server, source=SOURCE) as peer:
            peer.line("LHLO two words size=1" if lmtp else "EHLO two words size=1")
            peer.expect("220", "250")
            peer.line("MAIL FROM:<jos\u00e9@example.org> SMTPUTF8", "RCPT TO:<a@example.com>", "RCPT TO:<@>", "DATA")
            peer.expect("250", "250", "501", "354")
            peer.send(b"Hi.\r\n.\r\n")
            peer.expect("250")
            peer.line("MAIL FROM:<>", 'RCPT TO:<"x size=9 -> 250"@example.com>', "RSET", "VRFY two\x01\x02", "QUIT")
            peer.rest()
        assert over.wait(5)
        sleep(0)
        handler.close()
        texts.append([_without_times(line) for line in path.read_text().splitlines()])
    assert texts[0] == texts[1]
    assert len(texts[0]) > 10


@pytest.mark.parametrize("method", ["emit", "filter", "format", "handle"])
def test_a_subclass_of_the_handler_is_not_passed_over(own_logger: logging.Logger, method: str) -> None:
    own_logger.propagate = False
    kind = type("Own", (LogHandler,), {method: lambda self, record: None})
    own_logger.handlers[:] = [kind("text")]
    assert sole_handler(own_logger, logging.INFO) is None
    own_logger.handlers[:] = [LogHandler("text")]
    assert sole_handler(own_logger, logging.INFO) is own_logger.handlers[0]
    own_logger.addHandler(logging.NullHandler())
    assert sole_handler(own_logger, logging.INFO) is None


def test_a_formatter_or_a_record_factory_of_the_program_is_used(
    own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_logger.propagate = False
    handler = LogHandler("text")
    own_logger.handlers[:] = [handler]
    monkeypatch.setattr(logging, "_logRecordFactory", type("Own", (logging.LogRecord,), {}))
    assert sole_handler(own_logger, logging.INFO) is None
    monkeypatch.undo()
    assert sole_handler(own_logger, logging.INFO) is handler
    handler.setFormatter(logging.Formatter("%(message)s"))
    assert sole_handler(own_logger, logging.INFO) is None
    own_logger.handlers[:] = [LogHandler("text")]
    monkeypatch.setattr(logging.Formatter, "converter", time.gmtime)
    assert sole_handler(own_logger, logging.INFO) is None
    monkeypatch.undo()
    own_logger.handlers[0].emit = print  # type: ignore[method-assign, assignment]
    assert sole_handler(own_logger, logging.INFO) is None
    del own_logger.handlers[0].emit
    assert sole_handler(own_logger, logging.INFO) is own_logger.handlers[0]
    own_logger.handlers[0].setLevel(logging.WARNING)
    assert sole_handler(own_logger, logging.INFO) is None


@pytest.mark.parametrize("name", ["handle", "filter", "makeRecord", "callHandlers"])
@pytest.mark.parametrize("is_for_all", [True, False])
def test_an_error_tracker_that_replaces_a_method_of_loggers_gets_records(
    own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, name: str, is_for_all: bool
) -> None:
    """Sentry's and New Relic's replace ``Logger.callHandlers``."""
    own_logger.propagate = False
    own_logger.handlers[:] = [LogHandler("text")]
    monkeypatch.setattr(logging.Logger if is_for_all else own_logger, name, lambda *arguments: None)
    assert sole_handler(own_logger, logging.INFO) is None
    monkeypatch.undo()
    assert sole_handler(own_logger, logging.INFO) is own_logger.handlers[0]


def test_methods_are_looked_at_again_after_a_while(own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "RECHECK_SECONDS", 60.0)
    own_logger.propagate = False
    own_logger.handlers[:] = [LogHandler("text")]
    assert sole_handler(own_logger, logging.INFO) is own_logger.handlers[0]
    monkeypatch.setattr(own_logger, "handle", lambda record: None)
    assert sole_handler(own_logger, logging.INFO) is own_logger.handlers[0]
    in_a_minute = time.monotonic() + 60.0
    monkeypatch.setattr(time, "monotonic", lambda: in_a_minute)
    assert sole_handler(own_logger, logging.INFO) is None


@pytest.mark.parametrize(
    ("kind", "name"), [(logging.Handler, "handle"), (LogHandler, "emit"), (logging.Formatter, "formatTime")]
)
def test_a_replaced_method_of_handlers_or_formatters_gets_records(
    own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    own_logger.propagate = False
    own_logger.handlers[:] = [LogHandler("text")]
    monkeypatch.setattr(kind, name, lambda *arguments: None)
    assert sole_handler(own_logger, logging.INFO) is None


def test_what_was_replaced_before_greensmtp_was_imported_gets_records() -> None:
    code = """
import logging
logging.Logger.callHandlers = lambda logger, record: print("seen")
from greensmtp.log_writer import LogHandler, sole_handler
logger = logging.getLogger("x")
logger.addHandler(LogHandler("text"))
assert sole_handler(logger, logging.INFO) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_logger_of_the_programs_own_kind_gets_records() -> None:
    kind = type("Own", (logging.Logger,), {"handle": lambda self, record: None})
    logger = kind("greensmtp.tests.kind")
    logger.propagate = False
    logger.addHandler(LogHandler("text"))
    assert sole_handler(logger, logging.INFO) is None


def test_what_is_written_without_a_record_cannot_pass_for_another_record(tmp_path: Path) -> None:
    text = "one\n2026-01-01 two\x1b"
    handler = LogHandler("text", str(tmp_path / "log"))
    handler.emit(logging.LogRecord("x", logging.INFO, "", 0, text, (), None))
    handler.write("x", logging.INFO, Line(lambda facts: text, {"session": "s", "seconds": None}))
    handler.close()
    ordinary, indented, ours = (tmp_path / "log").read_text().splitlines()
    assert indented == "  2026-01-01 two\\x1b"
    assert ordinary.endswith(" INFO one")
    assert ours.endswith(r" INFO s one\n2026-01-01 two\x1b (-)")
