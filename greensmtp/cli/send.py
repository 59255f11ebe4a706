"""``greensmtp send``: send message files."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from signal import SIGINT
from time import monotonic
from typing import Any, get_args
from weakref import WeakKeyDictionary

import click
from gevent import get_hub, getcurrent, joinall, killall, signal_handler, spawn
from gevent import ssl as gevent_ssl

from greensmtp._hostport import parse_url
from greensmtp.client import signals
from greensmtp.client.client import SMTPClient
from greensmtp.client.dial import PORTS, hello_name
from greensmtp.client.options import StartTLS
from greensmtp.client.pool import Pool
from greensmtp.client.trace import trace_lines
from greensmtp.errors import ClientError, EnvelopeMissing, GreenSMTPError, ProtocolError
from greensmtp.protocol import command_builder
from greensmtp.protocol.log_text import printable
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult

#: Exit statuses: everything was sent; something failed permanently; all failures are temporary (EX_TEMPFAIL).
SENT, FAILED, TRY_LATER = 0, 1, 75

#: Seconds until a progress bar is shown.
PROGRESS_DELAY = 1.0

#: Arguments of ``Pool.send`` -> the options that set them.
_OPTIONS = {"sender": "--from", "recipients": "--to"}


def _read_url(text: str) -> dict[str, Any]:
    """Return the options of ``connect`` that a server's URL stands for."""
    try:
        url = parse_url(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a server's URL: write it like mx.example.com, smtp://127.0.0.1:1025, "
            "smtps://mx.example.com, lmtp://[::1]:24 or lmtp+unix:/run/lmtp.sock",
            param_hint="'--server'",
        ) from None
    lmtp = url.scheme == "lmtp"
    if url.path is not None:
        return {"host": url.path, "lmtp": lmtp}
    port = PORTS[url.scheme or "smtp"] if url.port is None else url.port
    return {"host": (url.host, port), "lmtp": lmtp, "tls": url.scheme == "smtps"}


@click.command()
@click.option(
    "--server",
    "servers",
    metavar="URL",
    multiple=True,
    default=("127.0.0.1:1025",),
    show_default=True,
    help="Server: host[:port], smtp://, smtps://, lmtp://, unix:/path or lmtp+unix:/path. Several "
    "servers, for fail-over, must have the same scheme.",
)
@click.option("--from", "sender", help="Envelope sender; default: the message's Sender or From. '' is the null sender.")
@click.option(
    "--to",
    "recipients",
    multiple=True,
    help="Envelope recipient; default: To, Cc and Bcc. May be given several times.",
)
@click.option(
    "--starttls",
    type=click.Choice(get_args(StartTLS)),
    help='Whether to use STARTTLS: "offered" by default, and "require" with --user. "opportunistic" accepts any '
    "certificate, and continues without TLS when the handshake fails.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    help="PEM file of authorities to trust, instead of the system's.",
)
@click.option("--no-verify", is_flag=True, help="Accept any certificate: protects against passive eavesdroppers only.")
@click.option("--user", help="Log in as this user; the password is read from --password-file or $GREENSMTP_PASSWORD.")
@click.option("--password-file", type=click.Path(path_type=Path), help="A file whose first line is the password.")
@click.option("--allow-plaintext", is_flag=True, help="Send the password even without TLS.")
@click.option("--hostname", help="Name to send in EHLO; default: this machine's name.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=4,
    show_default=True,
    metavar="N",
    help="Maximum number of connections.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Timeout for every wait; default: the timeouts of RFC 5321.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the dialogue with the server, without passwords and bodies.")
@click.option("-q", "--quiet", is_flag=True, help="Show only failures.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILES|-")
def send(  # noqa: PLR0917 - click passes them by name
    servers: tuple[str, ...],
    sender: str | None,
    recipients: tuple[str, ...],
    starttls: str | None,
    ca_file: Path | None,
    no_verify: bool,
    user: str | None,
    password_file: Path | None,
    allow_plaintext: bool,
    hostname: str | None,
    concurrency: int,
    timeout: float | None,
    verbose: bool,
    quiet: bool,
    files: tuple[Path, ...],
) -> None:
    """Send messages: each FILE is one (.eml), and "-" is standard input.

    Each message that cannot be sent, and each rejected recipient, is reported in one line on standard error. The other
    messages are still sent. An mbox "From " line before a message is dropped.

    \b
    Exit status:
      0   all messages were sent to all recipients
      75  some were not, but may be accepted later
      1   some were permanently rejected, or cannot be sent
      2   the command line is wrong

    \b
    Try it:
      greensmtp serve &
      printf 'From: me@example.com\\nTo: you@example.com\\nSubject: hi\\n\\nhello\\n' | greensmtp send -v -
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    places = [_read_url(text) for text in servers]
    if len({(place.get("tls", False), place["lmtp"]) for place in places}) > 1:
        raise click.BadParameter("all servers must have the same scheme", param_hint="'--server'")
    for hint, addresses in (("--from", (sender,) if sender is not None else ()), ("--to", recipients)):
        _check_addresses(addresses, hint)
    _check_hostname(hostname)
    if starttls == "opportunistic" and user is not None:
        raise click.UsageError("--starttls opportunistic verifies no server, so it cannot be used with --user")
    if starttls == "opportunistic" and places[0].get("tls"):
        raise click.UsageError("--starttls opportunistic and smtps:// exclude each other")
    if starttls == "opportunistic" and ca_file is not None:
        raise click.UsageError("--starttls opportunistic accepts any certificate, so --ca-file cannot be used with it")
    options: dict[str, Any] = {} if starttls is None else {"starttls": starttls}
    try:
        pool = Pool(
            [place["host"] for place in places],
            size=min(concurrency, len(files)),
            username=user,
            password=_read_password(user, password_file),
            allow_plaintext=allow_plaintext,
            tls=places[0].get("tls", False),
            lmtp=places[0]["lmtp"],
            ssl_context=_context(ca_file, verify=not no_verify),
            timeout=timeout,
            local_hostname=hostname,
            **options,
        )
    except (ValueError, ProtocolError) as error:
        raise click.UsageError(str(error)) from error
    run = _Sender(pool, sender, list(recipients) or None, files, verbose=verbose, quiet=quiet)
    with _show_dialogue(several=min(concurrency, len(files)) > 1) if verbose else nullcontext(), pool:
        run.go(concurrency)
    sys.exit(run.status)


class _Sender:
    """Send all files of one command line."""

    def __init__(
        self,
        pool: Pool,
        sender: str | None,
        recipients: list[str] | None,
        files: tuple[Path, ...],
        *,
        verbose: bool,
        quiet: bool,
    ) -> None:
        self._pool = pool
        self._sender = sender
        self._recipients = recipients
        self._files = files
        self._remaining = iter(files)
        self._verbose = verbose
        self._quiet = quiet
        self._done = 0
        self._started = monotonic()
        self._bar: Any = None
        self.status = SENT

    def go(self, concurrency: int) -> None:
        """Send the files over at most this many connections at a time."""
        workers = [spawn(self._work) for _ in range(min(concurrency, len(self._files)))]
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
        if self._verbose or (not self._quiet and len(self._files) > 1):
            click.echo(f"{self._done} of {len(self._files)} sent", err=True)

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
            return self._pool.send(sys.stdin.buffer, self._sender, self._recipients)
        with path.open("rb") as file:
            return self._pool.send(file, self._sender, self._recipients)

    def _fail(self, path: Path, reason: str, status: int) -> None:
        if self._bar is not None:
            click.echo("\r\x1b[K", err=True, nl=False)
        # A file name need not be UTF-8, and it and the message may have control characters of the terminal.
        click.echo(printable(f"{click.format_filename(path)}: {' | '.join(reason.splitlines())}"), err=True)
        self.status = FAILED if FAILED in (self.status, status) else status

    def _progress(self) -> None:
        if self._quiet or self._verbose or not sys.stderr.isatty():
            return
        if self._bar is None and monotonic() - self._started > PROGRESS_DELAY:
            self._bar = click.progressbar(length=len(self._files), label="Sending", file=sys.stderr)
            self._bar.update(self._done)
        elif self._bar is not None:
            self._bar.update(1)


@contextmanager
def _show_dialogue(*, several: bool) -> Iterator[None]:
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


def _check_addresses(addresses: tuple[str, ...], option: str) -> None:
    for address in addresses:
        try:
            (command_builder.mail if option == "--from" else command_builder.rcpt)(address)
        except ProtocolError as error:
            raise click.BadParameter(str(error), param_hint=f"'{option}'") from error


def _check_hostname(name: str | None) -> None:
    try:
        if name is not None:
            hello_name(name, "the name to send")
    except ProtocolError as error:
        raise click.BadParameter(str(error), param_hint="'--hostname'") from error


def _read_password(user: str | None, path: Path | None) -> str | None:
    if user is None:
        if path is not None:
            raise click.UsageError("--password-file needs --user")
        return None
    if path is None:
        password = os.environ.get("GREENSMTP_PASSWORD")
        if not password:
            raise click.UsageError("--user needs a password: pass --password-file, or set $GREENSMTP_PASSWORD")
        return password
    try:
        with path.open(encoding="utf-8") as file:
            password = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        )  # the error's own text may show a part of it
        raise click.BadParameter(f"cannot read {str(path)!r}: {reason}", param_hint="'--password-file'") from error
    if not password:
        raise click.BadParameter(f"the first line of {str(path)!r} is empty", param_hint="'--password-file'")
    return password


def _context(ca_file: Path | None, *, verify: bool) -> ssl.SSLContext | None:
    if not verify:
        if ca_file is not None:
            raise click.UsageError("--ca-file and --no-verify exclude each other")
        context: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if ca_file is None:
        return None
    try:
        made: ssl.SSLContext = gevent_ssl.create_default_context(cafile=str(ca_file))
        return made
    except (OSError, ssl.SSLError) as error:
        reason = "it contains no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise click.BadParameter(f"cannot read {str(ca_file)!r}: {reason}", param_hint="'--ca-file'") from error
