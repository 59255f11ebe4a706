"""``Pipe``: pass mail to a command on its standard input; its exit status becomes the reply.

How it works. The command runs when the message is complete, and the client waits for it. ``gevent.subprocess``
starts it without a shell and in its own session, so the hub is not blocked. If the command takes too long, or the
connection ends, its whole process group is killed.

Rules of this file:

- What a client has sent becomes a part of an argument or a variable, never of a program's text. It must not turn an
  argument into an option, unless ``--`` comes before.
- Only exit statuses about the message or its recipients are permanent errors. All others are 451: a wrong path, a
  missing library or a full disk must not bounce mail.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
from gevent import Timeout, subprocess
from gevent.lock import BoundedSemaphore

from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.trace import received_field, return_path
from greensmtp.errors import ArgumentError
from greensmtp.protocol.address import Address
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.thread_pool import in_thread_pool

logger = logging.getLogger("greensmtp")

_NOT_NOW = Reply(451, "4.3.0 The message cannot be delivered now")
_BUSY = Reply(451, "4.3.2 Too many messages are being delivered, try again later")
_TOO_LONG = Reply(451, "4.4.7 The delivery took too long")
_IS_OPTION = Reply(553, "5.1.3 This address begins with a hyphen, which is not allowed here")

#: Exit statuses of sysexits.h that refuse a message permanently -> the reply.
STATUSES: Mapping[int, Reply] = {
    os.EX_DATAERR: Reply(554, "5.6.0 The message is malformed"),
    os.EX_NOUSER: Reply(550, "5.1.1 No such mailbox here"),
    os.EX_NOHOST: Reply(550, "5.1.2 No such domain here"),
    os.EX_NOPERM: Reply(550, "5.7.1 Not permitted"),
}

#: Characters of the command's output that are logged, and bytes that are kept for them.
_LOGGED = 500
#: Bytes for one write to the command.
_PIECE = 64 * 1024

#: Seconds to wait for the last output of a command that has ended.
_LAST_OUTPUT = 1.0

_FIELDS = ("sender", "recipient", "id", "peer", "hello")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Pipe(Delivery):
    """Run a command for each message: ``Pipe(["/usr/local/bin/file-mail", "--from={sender}", "--", "{recipient}"])``.

    In an argument, ``{sender}``, ``{id}``, ``{peer}`` and ``{hello}`` are replaced by the values of the message. An
    argument ``{recipient}`` becomes one argument for each recipient; in LMTP the command runs once for each. Its
    environment is ``PATH``, ``LANG``, ``environment``, and ``SENDER``, ``RECIPIENTS`` (one a line), ``MESSAGE_ID``,
    ``CLIENT_ADDRESS`` and ``CLIENT_HELO``.

    Exit status 0 is 250; 65 of sysexits.h is 554; 67, 68 and 77 are 550; all others are 451. If the status is not 0,
    the beginning of the command's output is logged.

    :param command: the program and its arguments. There is no shell.
    :param timeout: seconds until the command and its process group are killed; then the reply is 451.
    :param connections: maximum number of commands at once.
    :param wait: seconds that a message waits for a free slot; after that the reply is 451.
    :param environment: further variables.
    :param folder: the working directory; None: that of the server.
    :param trace: put Return-Path and Received before the message.
    :raises ArgumentError: an argument is invalid.
    """

    answers = True
    per_recipient = True

    def __init__(
        self,
        command: Sequence[str],
        *,
        timeout: float = 60.0,
        connections: int = 10,
        wait: float = 30.0,
        environment: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
        trace: bool = True,
    ) -> None:
        if isinstance(command, str) or not command or not all(isinstance(each, str) for each in command):
            raise ArgumentError("command", f'expected a list like ["/usr/bin/program", "-x"]; got {command!r}')
        numbers: dict[str, Any] = {"timeout": timeout, "connections": connections, "wait": wait}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not value > 0:
                raise ArgumentError(name, f"expected a number above 0; got {value!r}")
        if not all(isinstance(each, str) for pair in (environment or {}).items() for each in pair):
            raise ArgumentError(
                "environment", f'expected a table of strings, like {{"NAME": "value"}}; got {environment!r}'
            )
        self._command = [_Argument(each) for each in command]
        if self._command[0].fields:
            raise ArgumentError("command", f"expected the path of a program first; got {command[0]!r}")
        #: Fields at the beginning of an argument, with no ``--`` before. Their values must not begin with a hyphen.
        options = command[: command.index("--")] if "--" in command else command
        self._guarded = {field for text in options for field in _FIELDS if text.startswith(f"{{{field}}}")}
        self._timeout = timeout
        self._wait = wait
        self._free = BoundedSemaphore(connections)
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            **(environment or {}),
        }
        self._folder = folder
        self._trace = trace
        self._warn_if_missing(command[0])

    def _warn_if_missing(self, program: str) -> None:
        """Warn of a program that cannot be run: it may be installed later, and until then the client tries again."""
        if "/" in program:
            is_there = os.access(Path(self._folder or ".", program), os.X_OK)
        else:
            is_there = shutil.which(program, path=self._environment["PATH"]) is not None
        if not is_there:
            logger.warning(
                "Pipe: there is no program %r that this user can run; until there is, the reply is 451", program
            )

    def __repr__(self) -> str:
        return f"<Pipe to {self._command[0].text}>"

    def mail(self, session: Session, sender: Address) -> Reply | None:
        """Refuse a sender that the command would read as an option."""
        return _IS_OPTION if "sender" in self._guarded and sender.startswith("-") else None

    def rcpt(self, session: Session, recipient: Address) -> Reply | None:
        """Refuse a recipient that the command would read as an option."""
        return _IS_OPTION if "recipient" in self._guarded and recipient.startswith("-") else None

    def begin(self, envelope: Envelope) -> Transfer:
        """Collect a message."""
        return _Piped(self, envelope)

    def run(self, envelope: Envelope, recipients: Sequence[Address], transfer: SpooledTransfer) -> Reply | None:
        """Run the command, and return the refusal; None if it accepts the message."""
        session = envelope.session
        values = {
            "sender": str(envelope.sender),
            "id": envelope.id,
            "peer": session.peer_host or "",
            "hello": session.hostname or "",
        }
        arguments: list[str] = []
        for each in self._command:
            parts = list(each.expand(values, recipients))
            # ``mail`` and ``rcpt`` cannot find all of these: the name in EHLO, an empty sender before another field, a
            # recipient that a middleware has rewritten.
            if "--" not in arguments and not each.text.startswith("-") and any(part.startswith("-") for part in parts):
                return _IS_OPTION
            arguments += parts
        environment = {
            **self._environment,
            "SENDER": values["sender"],
            "RECIPIENTS": "\n".join(recipients),
            "MESSAGE_ID": values["id"],
            "CLIENT_ADDRESS": values["peer"],
            "CLIENT_HELO": values["hello"],
        }
        if not self._free.acquire(timeout=self._wait):
            return _BUSY
        try:
            status, output = self._execute(arguments, environment, transfer)
        except _TookTooLong:
            logger.error(
                "%s: command %s exceeded its timeout of %g s; killed it, replying 451",
                session.log_id,
                arguments[0],
                self._timeout,
            )
            return _TOO_LONG
        except (OSError, ValueError) as error:  # no such program; a NUL in an argument
            logger.error("%s: command %s cannot be run: %s; replying 451", session.log_id, arguments[0], error)
            return _NOT_NOW
        finally:
            self._free.release()
        if status == 0:
            return None
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        logger.warning("%s: %s: %s: %s", session.log_id, arguments[0], how, output or "(no output)")
        return STATUSES.get(status, _NOT_NOW)

    def _head(self, session: Session) -> bytes:
        return return_path(session) + received_field(session) if self._trace else b""

    def _execute(
        self, arguments: list[str], environment: Mapping[str, str], transfer: SpooledTransfer
    ) -> tuple[int, str]:
        """Run a command, and return its exit status and the beginning of its output."""
        process: Any = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self._folder,
            start_new_session=True,
            close_fds=True,
            bufsize=0,  # so that closing an end of a pipe writes nothing
        )
        output = bytearray()
        reader = gevent.spawn(_read, process.stdout, output)
        try:
            with Timeout(self._timeout, _TookTooLong):
                _feed(process.stdin, self._head(transfer.envelope.session), transfer)
                status: int = process.wait()
        finally:
            # Also after a normal exit: a child may still hold its output open.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # In its own greenlet, which survives if this one is killed again.
            gevent.spawn(_end, process, reader).join()
        return status, shown(output.decode("utf-8", "replace").strip().replace("\n", " | "), _LOGGED)


class _TookTooLong(Exception):
    """The command has exceeded its timeout."""


class _Argument:
    """An argument of the command, with placeholders."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields = _PLACEHOLDER.findall(text)
        for field in self.fields:
            if field not in _FIELDS:
                known = ", ".join(f"{{{each}}}" for each in _FIELDS)
                raise ArgumentError("command", f"expected {known} in an argument; got {{{field}}} in {text!r}")
        if "recipient" in self.fields and text != "{recipient}":
            raise ArgumentError(
                "command",
                f"expected {{recipient}} as a whole argument, which becomes one for each recipient; got {text!r}",
            )

    def expand(self, values: Mapping[str, str], recipients: Sequence[str]) -> Iterator[str]:
        """Yield the arguments that this one expands to."""
        if self.text == "{recipient}":
            yield from recipients
        else:
            yield _PLACEHOLDER.sub(lambda match: values[match[1]], self.text) if self.fields else self.text


class _Piped(SpooledTransfer):
    """A message that is passed to the command when it is complete."""

    def __init__(self, delivery: Pipe, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._delivery = delivery

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Run the command."""
        # By recipient, since in LMTP the command runs again for the next one.
        return dict.fromkeys(recipients, self._delivery.run(self.envelope, recipients, self))


def _feed(stdin: Any, head: bytes, transfer: SpooledTransfer) -> None:
    """Write the message to the command. The command may stop reading early."""
    with transfer.open() as message:
        try:
            piece = head
            while piece or (piece := in_thread_pool(message.read, _PIECE)):
                piece = piece[stdin.write(piece) :]
            stdin.close()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise


def _end(process: Any, reader: Any) -> None:
    """Close the pipes of a command whose process group has been killed, and wait for its end."""
    with suppress(OSError):
        process.stdin.close()
    reader.join(_LAST_OUTPUT)  # a child in another session may hold the output open
    reader.kill()
    if process.wait(timeout=_LAST_OUTPUT) is None:
        logger.error("process %d cannot be killed; does it run as another user? Leaving it running", process.pid)


def _read(stdout: Any, kept: bytearray) -> None:
    """Keep the beginning of the command's output, and discard the rest so that the command does not block."""
    with stdout, suppress(OSError):
        while piece := stdout.read(_PIECE):
            kept += piece[: _LOGGED * 4 - len(kept)]
