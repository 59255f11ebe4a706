"""``Pipe``: give mail to a command on its standard input; its exit status is the reply.

How it works. The command runs when the message is complete, and the client waits for it. It is started without a shell,
in a session of its own, by ``gevent.subprocess``, so the hub goes on. If it takes too long, or the connection ends,
its whole process group is killed.

Rules of this file:

- What a client has sent becomes a whole argument or a variable, never a part of a program's text. At the beginning of
  an argument it may not be an option, unless ``--`` stands before it.
- Only exit statuses that speak of this message or its recipients are permanent. All else is the operator's business,
  and is a 451: a wrong path, a missing library or a full disk must not bounce mail.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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

#: Exit statuses of sysexits.h that refuse a message for good -> the reply.
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

#: Seconds for what the command has printed to arrive, when it has ended.
_LAST_OUTPUT = 1.0

_FIELDS = ("sender", "recipient", "id", "peer", "hello")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Pipe(Delivery):
    """Runs a command for each message: ``Pipe(["/usr/local/bin/file-mail", "--from={sender}", "--", "{recipient}"])``.

    In an argument, ``{sender}``, ``{id}``, ``{peer}`` and ``{hello}`` stand for those of the message. An argument
    ``{recipient}`` becomes one argument for each recipient; in LMTP the command runs for each recipient by itself. Its
    environment is ``PATH``, ``LANG``, ``environment``, and ``SENDER``, ``RECIPIENTS`` (one a line), ``MESSAGE_ID``,
    ``CLIENT_ADDRESS`` and ``CLIENT_HELO``.

    Exit status 0 is 250; 65, 67, 68 and 77 of sysexits.h are 554 and 550; all others are 451. What the command prints
    is logged.

    :param command: the program and its arguments. There is no shell.
    :param timeout: seconds until the command, and all that it has started, is killed; then 451.
    :param connections: commands at once.
    :param wait: seconds that a message waits for its turn; then 451.
    :param environment: more variables.
    :param folder: the working directory; None: that of the server.
    :param trace: put Return-Path and Received before the message.
    :raises ArgumentError: an argument is wrong.
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
        folder: str | None = None,
        trace: bool = True,
    ) -> None:
        if isinstance(command, str) or not command or not all(isinstance(each, str) for each in command):
            raise ArgumentError("command", f'expected a list like ["/usr/bin/program", "-x"]; got {command!r}')
        numbers: dict[str, Any] = {"timeout": timeout, "connections": connections, "wait": wait}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not value > 0:
                raise ArgumentError(name, f"expected a number above 0; got {value!r}")
        if not all(isinstance(each, str) for pair in (environment or {}).items() for each in pair):
            raise ArgumentError("environment", f"expected names and texts; got {environment!r}")
        self._command = [_Argument(each) for each in command]
        if self._command[0].fields:
            raise ArgumentError("command", f"expected the path of a program first; got {command[0]!r}")
        #: What must not begin with a hyphen: fields that stand at the beginning of an argument, with no ``--`` before.
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

    def __repr__(self) -> str:
        return f"<Pipe to {self._command[0].text}>"

    def mail(self, session: Session, sender: Address) -> Reply | None:
        """Refuse a sender that would be taken for an option."""
        return _IS_OPTION if "sender" in self._guarded and sender.startswith("-") else None

    def rcpt(self, session: Session, recipient: Address) -> Reply | None:
        """Refuse a recipient that would be taken for an option."""
        return _IS_OPTION if "recipient" in self._guarded and recipient.startswith("-") else None

    def begin(self, envelope: Envelope) -> Transfer:
        """Collect a message."""
        return _Piped(self, envelope)

    def run(self, envelope: Envelope, recipients: Sequence[Address], transfer: SpooledTransfer) -> Reply | None:
        """Run the command, and return a refusal, or None."""
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
            # Whatever is made of them: the name in EHLO, an empty sender before another field, a recipient that a
            # middleware has rewritten.
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
            logger.error("%s: %s took more than %g s; killed", session.log_id, arguments[0], self._timeout)
            return _TOO_LONG
        except (OSError, ValueError) as error:  # no such program; a NUL in an argument
            logger.error("%s: %s cannot be run: %s", session.log_id, arguments[0], error)
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
            # Whatever it has started goes too, also if it has ended itself and left a child that holds its output.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # In a greenlet of its own, which goes on if this one is killed once more.
            gevent.spawn(_end, process, reader).join()
        return status, shown(output.decode("utf-8", "replace").strip().replace("\n", " | "), _LOGGED)


class _TookTooLong(Exception):
    """The command has not ended in time."""


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
                f"expected {{recipient}} as an argument by itself, which becomes one for each recipient; got {text!r}",
            )

    def expand(self, values: Mapping[str, str], recipients: Sequence[str]) -> Iterator[str]:
        """Yield what the argument becomes."""
        if self.text == "{recipient}":
            yield from recipients
        else:
            yield _PLACEHOLDER.sub(lambda match: values[match[1]], self.text) if self.fields else self.text


class _Piped(SpooledTransfer):
    """A message that is given to the command when it is complete."""

    def __init__(self, delivery: Pipe, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._delivery = delivery

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Run the command."""
        # By recipient, since in LMTP the next one has a run of its own.
        return dict.fromkeys(recipients, self._delivery.run(self.envelope, recipients, self))


def _feed(stdin: Any, head: bytes, transfer: SpooledTransfer) -> None:
    """Write the message to the command; it need not read all of it."""
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
    """Collect what is left of a command whose process group has been killed."""
    with suppress(OSError):
        process.stdin.close()
    reader.join(_LAST_OUTPUT)  # a child in another session may hold the output open
    reader.kill()
    if process.wait(timeout=_LAST_OUTPUT) is None:
        logger.error("process %d cannot be killed: does it run as another user?", process.pid)


def _read(stdout: Any, kept: bytearray) -> None:
    """Keep the beginning of what the command prints, and read the rest, so that it can go on."""
    with stdout, suppress(OSError):
        while piece := stdout.read(_PIECE):
            kept += piece[: _LOGGED * 4 - len(kept)]
