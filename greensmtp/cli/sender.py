"""Send the files of ``greensmtp send``, and report what fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from signal import SIGINT
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import click
from gevent import get_hub, getcurrent, joinall, killall, signal_handler, spawn

from greensmtp.client import signals
from greensmtp.client.client import SMTPClient
from greensmtp.client.envelope_options import SendKeywords
from greensmtp.client.pool import Pool
from greensmtp.client.trace import trace_lines
from greensmtp.errors import ClientError, EnvelopeMissing, GreenSMTPError
from greensmtp.protocol.log_text import printable
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult
from greensmtp.thread_pool import in_thread_pool

#: Exit statuses: everything was sent; something failed permanently; all failures are temporary (EX_TEMPFAIL).
SENT, FAILED, TRY_LATER = 0, 1, 75

#: Seconds until a progress bar is shown.
PROGRESS_DELAY = 1.0

#: Arguments of ``Pool.send`` -> the options that set them.
_OPTIONS = {"sender": "--from", "recipients": "--to"}


@dataclass
class Sender:
    """Sends all files of one command line."""

    pool: Pool
    #: The envelope; None to take it from the message.
    sender: str | None
    recipients: list[str] | None
    files: tuple[Path, ...]
    #: The parameters of MAIL and RCPT.
    options: SendKeywords = field(default_factory=SendKeywords)
    verbose: bool = False
    quiet: bool = False
    #: The exit status so far.
    status: int = SENT

    def __post_init__(self) -> None:
        self._remaining = iter(self.files)
        self._done = 0
        self._started = monotonic()
        self._bar: Any = None

    def go(self, at_once: int) -> None:
        """Send the files over this many connections."""
        workers = [spawn(self._work) for _ in range(at_once)]
        # Ctrl-C must interrupt this greenlet, not the one that happens to be running.
        throw, callback = getcurrent().throw, get_hub().loop.run_callback
        interrupt = signal_handler(SIGINT, lambda: callback(throw, KeyboardInterrupt))
        try:
            joinall(workers, raise_error=True)
        finally:
            killall(workers)  # give up unfinished messages, or closing the pool would wait for them
            interrupt.cancel()
        if self._bar is not None:
            self._bar.render_finish()
        if self.verbose or (not self.quiet and len(self.files) > 1):
            click.echo(f"{self._done} of {len(self.files)} sent", err=True)

    def _work(self) -> None:
        for path in self._remaining:
            try:
                sent = self._send(path)
            except ClientError as error:
                self._fail(path, str(error), TRY_LATER if error.transient and error.safe_to_retry else FAILED)
            except EnvelopeMissing as error:
                options = " and ".join(_OPTIONS[name] for name in error.arguments)
                self._fail(path, f"{error.why}; pass {options}", FAILED)
            except (GreenSMTPError, ValueError, TypeError) as error:
                self._fail(path, str(error), FAILED)
            except OSError as error:
                self._fail(path, error.strerror or str(error), FAILED)
            except Exception as error:
                # The other messages must still be sent.
                self._fail(path, f"{type(error).__name__}: {error}", FAILED)
            else:
                self._done += 1
                for recipient, reply in sent.refused.items():
                    self._fail(path, f"<{recipient}> {reply}", TRY_LATER if reply.is_transient_failure else FAILED)
            self._progress()

    def _send(self, path: Path) -> SendResult:
        if str(path) == "-":
            if sys.stdin is None:
                raise OSError("standard input is closed")
            return self.pool.send(sys.stdin.buffer, self.sender, self.recipients, **self.options)
        # In a thread, since opening a named pipe waits for a writer.
        with in_thread_pool(path.open, "rb") as file:
            return self.pool.send(file, self.sender, self.recipients, **self.options)

    def _fail(self, path: Path, reason: str, status: int) -> None:
        if self._bar is not None:
            click.echo("\r\x1b[K", err=True, nl=False)
        # A file name need not be UTF-8, and it and the message may have control characters of the terminal.
        click.echo(printable(f"{click.format_filename(path)}: {' | '.join(reason.splitlines())}"), err=True)
        self.status = FAILED if FAILED in (self.status, status) else status

    def _progress(self) -> None:
        if self.quiet or self.verbose or not sys.stderr.isatty():
            return
        if self._bar is None and monotonic() - self._started > PROGRESS_DELAY:
            self._bar = click.progressbar(length=len(self.files), label="Sending", file=sys.stderr)
            self._bar.update(self._done)
        elif self._bar is not None:
            self._bar.update(1)


@contextmanager
def show_dialogue(*, several: bool) -> Iterator[None]:
    """Show the dialogue of every connection on standard error; prefix its number if there are several."""
    numbers = count(1)
    shows: WeakKeyDictionary[SMTPClient, Callable[[str], None]] = WeakKeyDictionary()

    def greeting(client: SMTPClient, reply: Reply) -> None:
        prefix = f"[{next(numbers)}] " if several else ""
        show = shows[client] = partial(_show, prefix)
        show(f"= connected to {_peer(client)}{f', {client.socket.version()}' if client.tls else ''}")
        for line in trace_lines(reply):
            show(line)
        client.trace(show)

    def tls(client: SMTPClient) -> None:
        if client in shows:  # implicit TLS is shown with the banner
            shows[client](f"= {client.socket.version()}")

    signals.greeting.connect(greeting)
    signals.tls.connect(tls)
    try:
        yield
    finally:
        signals.greeting.disconnect(greeting)
        signals.tls.disconnect(tls)


def _show(prefix: str, text: str) -> None:
    click.echo(f"{prefix}{printable(text)}", err=True)


def _peer(client: SMTPClient) -> str:
    try:
        name = client.socket.getpeername()
    except OSError:  # it has said its banner and is gone already
        return "a server that is gone"
    return f"{name[0]} port {name[1]}" if isinstance(name, tuple) else f"{name!s}"
