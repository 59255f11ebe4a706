"""Logging: a line for every session and every transaction, and for every command at DEBUG, without secrets."""

from __future__ import annotations

import logging
from typing import Literal

from greensmtp.errors import ArgumentError
from greensmtp.middleware.logging.output import attach
from greensmtp.middleware.logging.recorder import Recorder


class Logging(Recorder):
    """Logs every session and every transaction at ``level``, when it ends, and every command at DEBUG.

    An AUTH that was refused is logged at ``level`` too. Each record has its facts as attributes, for formatters that
    write JSON: ``event`` (``"session"``, ``"transaction"``, ``"auth"`` or ``"command"``), ``session``, ``peer``,
    ``seconds``, and what records.py puts there. The documentation has a table of them. A transaction ends with the
    reply to its message, with RSET, or with the connection. Its lines begin with ``session.transaction_id``, all others
    with ``session.id``.

    The argument of AUTH is logged as ``***``, and so is every unknown command after a refused AUTH. Answers to
    challenges are not logged at all. Text from the client is cut to a limit, and escaped so that it cannot end a line
    or pass for another field.

    :param logger: a logger, or its name. Default: ``greensmtp.session``.
    :param level: the level of session and transaction lines: a number, or a name like ``"INFO"``.
    :param format: None: the program configures handlers and formatters. ``"text"`` or ``"json"`` (an object a line):
        the logger gets a handler that writes to standard error in a separate thread. It shows records of ``level``
        and above, and does not propagate them.
    :raises ValueError, TypeError: an argument is invalid; the text says what is expected.
    :raises ModuleNotFoundError: ``"json"`` without python-json-logger; the text says how to install it.
    """

    def __init__(
        self,
        logger: logging.Logger | str | None = None,
        level: int | str = logging.INFO,
        format: Literal["text", "json"] | None = None,
    ) -> None:
        if logger is None or isinstance(logger, str):
            logger = logging.getLogger(logger or "greensmtp.session")
        if not isinstance(logger, logging.Logger):
            raise TypeError(f"logger takes a logging.Logger, or the name of one, not {logger!r}")
        level = _check_level(level)
        self.format = format
        if format is not None:
            attach(logger, format, level)
        super().__init__(logger, level)

    def __repr__(self) -> str:
        name = "" if self.logger.name == "greensmtp.session" else f"{self.logger.name!r}, "
        form = "" if self.format is None else f", format={self.format!r}"
        return f"Logging({name}level={logging.getLevelName(self.level)!r}{form})"


def _check_level(level: int | str) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.upper() in names:
        level = names[level.upper()]
    if isinstance(level, bool) or not isinstance(level, int) or level < 1:
        raise ArgumentError("level", f"takes a number of at least 1, or a name like 'INFO' or 'WARNING', not {level!r}")
    return level
