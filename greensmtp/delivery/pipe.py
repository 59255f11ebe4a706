"""``Pipe``: pass mail to a command on its standard input; its exit status becomes the reply.

How it works. The command runs when the message is complete, and the client waits for it. ``gevent.subprocess``
starts it without a shell and in its own session, so the hub is not blocked. If the command takes too long, or the
wait is interrupted, its whole process group is killed.

Rules of this file:

- What a client has sent becomes a part of an argument or a variable, never of a program's text. It must not turn an
  argument into an option, unless ``--`` comes before.
- The end of the command's input means that the message is complete. So a command that is given up is killed before its
  input is closed, and nothing interrupts the greenlet that starts it.
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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import gevent
from gevent import Timeout, get_hub, subprocess
from gevent.fileobject import FileObject
from gevent.lock import BoundedSemaphore

from greensmtp.delivery._numbers import check_counts, check_numbers
from greensmtp.delivery._part import wait_for
from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.trace import received_field, return_path
from greensmtp.errors import ArgumentError
from greensmtp.protocol.address import Address
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.server_info import ServerInfo
from greensmtp.thread_pool import Steps

logger = logging.getLogger("greensmtp")

_NOT_NOW = Reply(451, "4.3.0 The message cannot be delivered now")
_BUSY = Reply(451, "4.3.2 Too many messages are being delivered, try again later")
_TOO_LONG = Reply(451, "4.4.7 The delivery took too long")
_IS_OPTION = Reply(553, "5.1.3 This address begins with a hyphen, which is not allowed here")
#: RFC 3463 section 3.6; the client sends the others in another transaction (RFC 5321 section 4.5.3.1.10).
_TOO_MANY = Reply(452, "4.5.3 Too many recipients for one message")

#: Bytes of ``RECIPIENTS``. Linux limits a variable, with its name, to 128 KiB (execve(2)).
_MAX_RECIPIENTS = 120 * 1024

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
        if not _is_command(command):
            raise ArgumentError("command", f'expected a list like ["/usr/bin/program", "-x"]; got {command!r}')
        check_numbers(timeout=timeout, wait=wait)
        check_counts(connections=connections)
        if not _is_environment(environment or {}):
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
        """Refuse a recipient that the command would read as an option; defer those that fit into no variable."""
        if "recipient" in self._guarded and recipient.startswith("-"):
            return _IS_OPTION
        recipients = [recipient] if session.server.lmtp else [*session.to, recipient]
        return _TOO_MANY if len("\n".join(recipients).encode()) > _MAX_RECIPIENTS else None

    def start(self, server: ServerInfo) -> None:
        """Check that commands can be waited for.

        :raises RuntimeError: the server does not run in the main thread, where gevent gets the signal of their end.
        """
        if not get_hub().loop.default:
            raise RuntimeError(
                "Pipe needs a server in the main thread, since gevent waits for commands only there; run this server "
                "by greensmtp.run(server), not in a thread"
            )

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
        output = bytearray()
        # An interrupted Popen would close the input of a command that is already running.
        starting = gevent.spawn(_start, arguments, environment, self._folder, output)
        status: int | None = None
        try:
            with Timeout(self._timeout, _TookTooLong):
                process, _, error = starting.get()
                if error is not None:
                    raise error
                _feed(process.stdin, self._head(transfer.envelope.session), transfer)
                status = process.wait()
        finally:
            # In its own greenlet, which survives if this one is killed again.
            end = gevent.spawn(_end, starting)
            if status is None:
                end.join(3 * _LAST_OUTPUT)  # a program on a file system that hangs does not even start
        # The status decides. An interruption comes too late: the command would get the message a second time.
        wait_for(end.join, lambda: end.dead)
        return status, shown(output.decode("utf-8", "replace").strip().replace("\n", " | "), _LOGGED)


def _is_argument(value: object) -> bool:
    """Return True if a value can be an argument or a variable of a command."""
    return isinstance(value, str) and "\0" not in value


def _is_command(given: object) -> bool:
    return isinstance(given, list | tuple) and all(map(_is_argument, given)) and bool(given and given[0])


def _is_environment(given: object) -> bool:
    return isinstance(given, Mapping) and all(
        _is_argument(name) and name and "=" not in name and _is_argument(value) for name, value in given.items()
    )


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


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], folder: str | Path | None, output: bytearray
) -> tuple[Any, Any, Exception | None]:
    """Start a command. Return it, the greenlet that reads its output, and what went wrong."""
    try:
        # Pipes of our own: when descriptors run out, Popen leaks the first one that it has opened.
        with ExitStack() as theirs, ExitStack() as ours:
            stdin = _open_pipe(reading=theirs, writing=ours)
            stdout = _open_pipe(reading=ours, writing=theirs)
            process: Any = subprocess.Popen(
                arguments,
                stdin=stdin[0],
                stdout=stdout[1],
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
                close_fds=True,
                preexec_fn=_reset_signals,
            )
            ours.pop_all()
        # Unbuffered, so that closing an end writes nothing.
        process.stdin, process.stdout = FileObject(stdin[1], "wb", 0), FileObject(stdout[0], "rb", 0)
    except Exception as error:
        return None, None, error
    return process, gevent.spawn(_read, process.stdout, output), None


def _reset_signals() -> None:
    """Runs in the child, before the command: a command inherits what is ignored, and workers ignore these."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _open_pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """Open a pipe, whose ends are closed by these two."""
    ends = os.pipe()
    reading.callback(os.close, ends[0])
    writing.callback(os.close, ends[1])
    return ends


def _feed(stdin: Any, head: bytes, transfer: SpooledTransfer) -> None:
    """Write the message to the command. The command may stop reading early."""
    message = transfer.open()
    steps = Steps()
    try:
        piece = head
        while piece or (piece := steps.run(message.read, _PIECE)):
            piece = piece[stdin.write(piece) :]
        stdin.close()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    finally:
        steps.end(message.close)  # after a read that is still running


def _end(starting: Any) -> None:
    """Kill the process group of a command, close its pipes, and wait for its end."""
    process, reader, _ = starting.get()
    if process is None:
        return
    # Also after a normal exit: a child may still hold its output open.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        process.stdin.close()
    reader.join(_LAST_OUTPUT)  # a child in another session may hold the output open
    reader.kill()
    try:
        process.wait(timeout=_LAST_OUTPUT)
    except subprocess.TimeoutExpired:
        logger.error("process %d cannot be killed; does it run as another user? Leaving it running", process.pid)


def _read(stdout: Any, kept: bytearray) -> None:
    """Keep the beginning of the command's output, and discard the rest so that the command does not block."""
    with stdout, suppress(OSError):
        while piece := stdout.read(_PIECE):
            kept += piece[: _LOGGED * 4 - len(kept)]
