"""The command line: ``greensmtp serve``."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from gevent import joinall, signal_handler, spawn
from gevent.event import Event

from greensmtp.ack import Ack
from greensmtp.chain import Proceed
from greensmtp.delivery.maildir import Maildir
from greensmtp.middleware.log import Logging
from greensmtp.output import LineWriter, set_up_logging
from greensmtp.plugins import PluginError, plug_in, read_option
from greensmtp.plugins_cli import plugins as plugins_command
from greensmtp.protocol.addresses import Address
from greensmtp.protocol.commands import END_OF_DATA, Command, EndOfData
from greensmtp.protocol.replies import Reply
from greensmtp.send_cli import send
from greensmtp.server import SMTPServer
from greensmtp.session import Session
from greensmtp.signals import shared
from greensmtp.stream import MessageStream
from greensmtp.urls import HELP, Listen

#: Seconds that transactions in progress get when the server is told to stop.
DRAIN_SECONDS = 30.0


class ListenType(click.ParamType[Listen]):
    """A listener's URL."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Listen:
        """Read it, or say what it takes."""
        if isinstance(value, Listen):
            return value
        try:
            return Listen.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SizeType(click.ParamType[int]):
    """Octets: ``1000``, ``500k``, ``32M``, ``1G`` (powers of 1024)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or say what it takes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12})([kmg]?)b?", value.strip().lower())
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is not a size: write octets, or 500k, 32M, 1G", param, ctx)
        return int(match[1]) << 10 * " kmg".index(match[2] or " ")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="greensmtp")
def cli() -> None:
    """A gevent SMTP and LMTP server framework, run as a server."""


cli.add_command(send)
cli.add_command(plugins_command)


@cli.command()
@click.option(
    "--listen",
    "listeners",
    type=ListenType(),
    multiple=True,
    default=("127.0.0.1:1025",),
    show_default=True,
    help=f"Where to listen; may be given several times: {HELP}. Port 0 takes a free one.",
)
@click.option("--hostname", help="The name in the banner and in Received; this machine's own by default.")
@click.option(
    "--maildir",
    type=click.Path(path_type=Path),
    default=Path("maildir"),
    show_default=True,
    help="The Maildir that takes the mail; made when it is not there.",
)
@click.option(
    "--no-maildir", is_flag=True, help="Store nothing: plugins decide what becomes of messages; without any, 554."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM certificate chain; with it, STARTTLS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM private key; in --tls-cert by default.")
@click.option(
    "--plugin",
    "plugins",
    metavar="NAME[,optional]",
    multiple=True,
    help="An installed plugin, as `greensmtp plugins` lists it; `all` of them; or MODULE[:CALLABLE]: importing a "
    "module connects its handlers, a callable is given each server. An optional one is skipped where it fails. May "
    "be given several times, and is heard in that order.",
)
@click.option(
    "--max-size",
    type=SizeType(),
    default="32M",
    show_default=True,
    help="The largest message, in octets, or like 500k, 32M, 1G.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of standard error."
)
@click.option("-v", "--verbose", count=True, help="Log sessions and messages; twice: every command.")
def serve(  # noqa: PLR0917 - click passes them by name
    listeners: tuple[Listen, ...],
    hostname: str | None,
    maildir: Path,
    no_maildir: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    plugins: tuple[str, ...],
    max_size: int,
    log_format: str,
    verbose: int,
) -> None:
    """Take mail in, and store it in a Maildir.

    A line on standard output for each listener when it is ready, and for each message that was accepted; the log is
    on standard error. SIGTERM or Ctrl-C lets transactions in progress finish, up to 30 seconds; a second one ends at
    once.

    \b
    Try it:
      greensmtp serve --listen 127.0.0.1:1025 --maildir ./maildir
      swaks --server 127.0.0.1:1025 --to you@example.com
      ls maildir/new
    """
    set_up_logging(log_format, verbose)
    stdout = LineWriter(sys.stdout)
    try:
        servers = [
            SMTPServer(
                listener.address,
                hostname=hostname,
                lmtp=listener.lmtp,
                implicit_tls=listener.implicit_tls,
                certfile=tls_cert,
                keyfile=tls_key,
                max_message_size=max_size,
                middleware=[Logging(), Announce(stdout)],
            )
            for listener in listeners
        ]
        _connect(servers, None if no_maildir else Maildir(maildir), plugins)
    except ValueError as error:
        raise click.UsageError(_as_options(str(error)), click.get_current_context()) from error
    except PluginError as error:
        raise click.BadParameter(str(error), click.get_current_context(), param_hint="'--plugin'") from error
    _run(servers, listeners, stdout)


def _connect(servers: list[SMTPServer], maildir: Maildir | None, plugins: tuple[str, ...]) -> None:
    """Plugins are heard between the two halves of the Maildir: what they read flows into it too, what they refuse is
    not stored, and what they leave undecided is accepted."""
    if maildir is not None:
        # Process-wide handlers come before a server's own, in the order in which they were connected.
        @shared.on("message")
        def tap(session: Session, stream: MessageStream, ack: Ack) -> None:
            if session.server in servers:
                maildir.tap(session, stream, ack)

    for name, optional in map(read_option, plugins):
        plug_in(name, servers, optional=optional)
    if maildir is not None:
        for server in servers:
            server.on("message", maildir.accept)
            server.on("received", maildir.store)


def _run(servers: list[SMTPServer], listeners: tuple[Listen, ...], stdout: LineWriter) -> None:
    stopping = Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    # Before the first listener is announced: whoever waits for that line may send a signal next.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal_handler(number, stop)
    try:
        for server, listener in zip(servers, listeners, strict=True):
            try:
                server.start()
            except OSError as error:
                # (Without the address, which is behind a colon: it is in the URL.)
                reason = (error.strerror or str(error)).partition(":")[0]
                raise click.ClickException(f"--listen: cannot listen on {listener.url()}: {reason}") from error
            stdout.say(f"listening {listener.url(server.address)}")
        stopping.wait()
    finally:
        joinall([spawn(server.stop, DRAIN_SECONDS) for server in servers])
        stdout.finish()


class Announce:
    """A line for every message that was accepted, for whichever recipients."""

    verbs = (END_OF_DATA,)

    def __init__(self, stdout: LineWriter) -> None:
        self._stdout = stdout

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Say it once the reply is settled; LMTP settles one for each recipient in turn."""
        assert isinstance(command, EndOfData)
        reply = proceed(session, command)
        if command.recipient is None:
            if reply.is_positive:
                self._say(session, session.to, reply)
            return reply
        accepted = session.notes.setdefault(self, [])
        if reply.is_positive:
            accepted.append((command.recipient, reply))
        if command.recipient is session.to[-1]:
            del session.notes[self]
            if accepted:
                self._say(session, [recipient for recipient, _ in accepted], accepted[-1][1])
        return reply

    def _say(self, session: Session, recipients: Iterable[Address], reply: Reply) -> None:
        size = session.message.size if session.message is not None else 0
        to = ",".join(f"<{address}>" for address in recipients)
        said = str(reply).replace("\n", " | ")
        self._stdout.say(f"message from=<{session.from_}> to={to} size={size}: {said}")


def _as_options(text: str) -> str:
    """The library's names for arguments, in the command line's words."""
    for argument, option in (("certfile", "--tls-cert"), ("keyfile", "--tls-key"), ("hostname", "--hostname")):
        text = re.sub(rf"\b{argument}\b", option, text)
    text = re.sub(r"^maildir: ", "--maildir: ", text).replace(", or ssl_context", "")
    return text.replace("implicit_tls", "smtps://")
