"""Write log records as lines of text or JSON, without blocking the hub."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol, TextIO
from weakref import WeakSet

from greensmtp.line_writer import LineWriter
from greensmtp.protocol.log_text import printable

#: Seconds until methods of ``logging`` that another program has replaced are noticed.
RECHECK_SECONDS = 1.0

#: Targets of a log that are no files.
STREAMS = ("stderr", "stdout")


class Event(Protocol):
    """What a line reports. As a str it is the message of its record: printable, on one line."""

    def facts(self) -> dict[str, Any]:
        """Return the attributes of its record."""


class LogHandler(logging.Handler):
    """Write log records as lines to a standard stream, or append them to a file.

    :param log_format: ``text``, or ``json`` for one object per line.
    :param target: ``stderr``, ``stdout``, or the path of a file.
    :raises OSError: the file cannot be opened.
    :raises ModuleNotFoundError: the format is ``json``, and python-json-logger is not installed.
    """

    def __init__(self, log_format: str, target: str = "stderr") -> None:
        # Before super().__init__, which registers this handler to be closed at exit.
        formatter = _json_formatter() if log_format == "json" else _TextFormatter(_TEXT)
        self._stream = {"stderr": sys.stderr, "stdout": sys.stdout}.get(target)
        self._path = None if target in STREAMS else Path(target).absolute()
        self._writer, self._file = self._open()
        super().__init__()
        self.log_format = log_format
        self.setFormatter(formatter)
        self._own_formatter = formatter
        #: The result of the last look at the methods, for which logger, and when to look again.
        self._is_as_made = False
        self._checked_logger: logging.Logger | None = None
        self._recheck_at = 0.0
        #: The second and the level of the last line of ``write``, and their text.
        self._last = (-1, -1, "", "")
        _handlers.add(self)

    def _open(self) -> tuple[LineWriter, TextIO | None]:
        file = None if self._path is None else self._path.open("a", encoding="utf-8")
        return LineWriter(file or self._stream, self._format_gap), file

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record to be written. Never wait."""
        try:
            if self._file is not None and self._file.closed:
                self._writer, self._file = self._open()
            self._writer.say(self.format(record))
        except Exception:
            self.handleError(record)

    def write(self, logger: str, level: int, event: Event) -> None:
        """Write the line that a record of this event would give, without making the record. Never wait.

        Call it only on the handler that ``sole_handler`` has returned.
        """
        try:
            if self._file is not None and self._file.closed:
                self._writer, self._file = self._open()
            now = time.time()
            second = int(now)
            last = self._last  # another native thread may write, too
            if last[0] != second or last[1] != level:
                shown_second = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
                last = self._last = (second, level, shown_second, logging.getLevelName(level))
            if self.log_format == "json":
                fields = {"level": last[3], "logger": logger, "message": str(event), **event.facts()}
                line = _as_json(fields, now)
            else:
                line = f"{last[2]},{int((now - second) * 1000):03d} {last[3]} {event!s}"
            self._writer.say(line)
        except Exception:
            self.handleError(logging.makeLogRecord({"name": logger, "pathname": __file__}))

    def needs_no_record(self, logger: logging.Logger, level: int) -> bool:
        """Return True if only the written line of a record of this logger and level would be observable.

        What a program sets is looked at each time; methods that it has replaced, once in ``RECHECK_SECONDS``.
        """
        if level < self.level or self.filters or self.formatter is not self._own_formatter:
            return False
        now = time.monotonic()
        if logger is not self._checked_logger or now >= self._recheck_at:
            self._recheck_at = now + RECHECK_SECONDS
            self._checked_logger = logger
            self._is_as_made = _has_own_methods(logger, self) and (
                self.log_format == "json" or _writes_usual_times(self._own_formatter)
            )
        return self._is_as_made

    def handleError(self, record: logging.LogRecord) -> None:
        """Log that a record cannot be formatted. The method of ``logging`` would block on standard error."""
        if self._file is not None and self._file.closed:
            return  # it cannot be opened again
        text = f"cannot format a record of {record.name} ({record.pathname}, line {record.lineno})"
        made = {"name": "greensmtp", "levelname": "ERROR", "msg": f"{text}: {sys.exc_info()[1]!r}"}
        self._writer.say(self.format(logging.makeLogRecord(made)))

    def close(self) -> None:
        """Write the waiting records.

        ``logging`` calls this when the process ends, and when ``logging.config`` reads a configuration. In the latter
        case the handler stays with its logger, and later records are written as before.
        """
        is_done = self._writer.finish()
        if is_done and self._file is not None:  # else the thread would write to whatever gets its descriptor next
            self._file.close()
        super().close()

    def reopen(self) -> None:
        """Open the file again by its path, after it was renamed, for instance by logrotate.

        Lines that wait are written to the new file. A standard stream is left as it is.

        :raises OSError: the file cannot be opened; lines are still written to the old one.
        """
        if self._path is None or self._file is None or self._file.closed:
            return
        with self._path.open("a", encoding="utf-8") as file:
            # The thread keeps its descriptor, now the new file's: no write is cut, and none is waited for.
            os.dup2(file.fileno(), self._file.fileno(), inheritable=False)

    def _format_gap(self, lines: int) -> str:
        record = {
            "name": "greensmtp",
            "levelname": "WARNING",
            "msg": f"{lines} records dropped: the log could not be written, or not fast enough",
        }
        return self.format(logging.makeLogRecord(record))


#: All of this process.
_handlers: WeakSet[LogHandler] = WeakSet()


def reopen_logs() -> None:
    """Open the files of all LogHandlers again, after logrotate has renamed them. What fails is logged.

    ``greensmtp serve`` does it at SIGHUP. A program calls it in a greenlet, as a handler of its own signal:
    ``gevent.signal_handler(signal.SIGUSR1, reopen_logs)``.
    """
    for handler in list(_handlers):
        try:
            handler.reopen()
        except OSError as error:
            logging.getLogger("greensmtp").error(
                "the log cannot be opened again: %s; still writing to the old file", error
            )


#: The beginning of a line that could be a record's, with its time or without.
_PASSES_FOR_RECORD = re.compile(r"\d| (?! )")


def _own(kind: Any, name: str, *modules: Any) -> object:
    """Return a method as its module has defined it; if another program has replaced it, what no method is."""
    method = getattr(kind, name)
    sources = {each.__file__ for each in modules}
    is_own = isinstance(method, FunctionType) and method.__code__.co_filename in sources
    return method if is_own else object()


#: The methods of a handler and of a logger that a record passes through. An override of one of them needs the record,
#: and error trackers replace them for all loggers. (``attrgetter`` gets all of them in one call.)
_HANDLER_METHODS = frozenset({"handle", "filter", "emit", "format", "acquire"})
_LOGGER_METHODS = frozenset({"handle", "filter", "makeRecord", "callHandlers"})
_methods_of_handler, _methods_of_logger = attrgetter(*_HANDLER_METHODS), attrgetter(*_LOGGER_METHODS)
_OWN_OF_HANDLER = tuple(_own(LogHandler, name, logging, sys.modules[__name__]) for name in _HANDLER_METHODS)
_OWN_OF_LOGGER = tuple(_own(logging.Logger, name, logging) for name in _LOGGER_METHODS)

#: That which writes the time.
_FORMAT_TIME = _own(logging.Formatter, "formatTime", logging)


def _has_own_methods(logger: logging.Logger, handler: LogHandler) -> bool:
    return (
        _methods_of_logger(type(logger)) == _OWN_OF_LOGGER
        and _LOGGER_METHODS.isdisjoint(vars(logger))
        and _methods_of_handler(type(handler)) == _OWN_OF_HANDLER
        and _HANDLER_METHODS.isdisjoint(vars(handler))
    )


def _writes_usual_times(formatter: logging.Formatter) -> bool:
    """Return True unless the program has changed the format of times, as ``Formatter.converter = time.gmtime`` does."""
    return (
        type(formatter).formatTime is _FORMAT_TIME
        and formatter.converter is time.localtime
        and formatter.datefmt is None
        and formatter.default_time_format == "%Y-%m-%d %H:%M:%S"
        and formatter.default_msec_format == "%s,%03d"
    )


#: The format of a record in text.
_TEXT = "%(asctime)s %(levelname)s %(message)s"


class _TextFormatter(logging.Formatter):
    """Start a record with its time, and indent further lines that could pass for another record."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if text.isprintable() else one_record(text)


def one_record(text: str) -> str:
    """Return the text with further lines indented if they begin like a record.

    (fail2ban assigns a line without a time to the previous time; it cuts the time out, which leaves a blank.)
    """
    first, *others = map(printable, text.split("\n"))
    return "\n".join((first, *(f"  {line}" if _PASSES_FOR_RECORD.match(line) else line for line in others)))


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True, rename_fields=names)


_encode = json.JSONEncoder(default=str).encode


def _as_json(fields: dict[str, Any], now: float) -> str:
    """Return the fields as JSON, in the format of python-json-logger."""
    fields["timestamp"] = datetime.fromtimestamp(now, UTC).isoformat()
    return _encode(fields)


def sole_handler(logger: logging.Logger, level: int) -> LogHandler | None:
    """Return the handler if this logger's records of a level reach one LogHandler and nothing else.

    Then only the written line is observable: there is no filter, no other handler, no custom record factory or
    formatter, and no method of ``logging`` that another program has replaced. This check takes half a microsecond,
    making a record ten.
    """
    if logger.filters or logging.getLogRecordFactory() is not logging.LogRecord:
        return None
    found: logging.Handler | None = None
    each: logging.Logger | None = logger
    while each is not None:
        handlers = each.handlers
        if handlers:
            if found is not None or len(handlers) > 1:
                return None
            found = handlers[0]
        each = each.parent if each.propagate else None
    return found if isinstance(found, LogHandler) and found.needs_no_record(logger, level) else None
