"""``greensmtp send``: send message files. This file reads the command line; ``sender.py`` sends."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import click
from gevent import ssl as gevent_ssl

from greensmtp._hostport import parse_url
from greensmtp.cli.options import FileType
from greensmtp.cli.sender import Sender, show_dialogue
from greensmtp.client.dial import PORTS, hello_name
from greensmtp.client.envelope_options import SEND_KEYWORDS, SendKeywords, mail_parameters, rcpt_parameters
from greensmtp.client.options import UNVERIFIED, StartTLS
from greensmtp.client.pool import Pool
from greensmtp.errors import ProtocolError
from greensmtp.protocol import command_builder
from greensmtp.protocol.option_values import Notify, Ret

#: Maximum length of a password, in characters. A device, such as /dev/zero, may have no end.
MAX_PASSWORD = 4096


def _read_url(text: str) -> dict[str, Any]:
    """Return the options of ``connect`` that a server's URL stands for."""
    try:
        url = parse_url(text)
    except ValueError:
        raise click.BadParameter(
            "expected a server's URL, like mx.example.com, smtp://127.0.0.1:1025, smtps://mx.example.com, "
            f"lmtp://[::1]:24 or lmtp+unix:/run/lmtp.sock; got {text!r}",
            param_hint="'--server'",
        ) from None
    lmtp = url.scheme == "lmtp"
    if url.path is not None:
        return {"host": url.path, "lmtp": lmtp, "tls": False}
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
    help='Whether to use STARTTLS: "offered" by default, and "require" with --user. "encrypt" and "opportunistic" '
    "accept any certificate, and the latter continues without TLS when the handshake fails.",
)
@click.option(
    "--ca-file",
    type=FileType(),
    help="PEM file of authorities to trust, instead of the system's.",
)
@click.option("--no-verify", is_flag=True, help="Accept any certificate: protects against passive eavesdroppers only.")
@click.option("--user", help="Log in as this user; the password is read from --password-file or $GREENSMTP_PASSWORD.")
@click.option("--password-file", type=FileType(), help="A file whose first line is the password.")
@click.option("--allow-plaintext", is_flag=True, help="Send the password even without TLS.")
@click.option(
    "--notify",
    type=click.Choice(get_args(Notify), case_sensitive=False),
    multiple=True,
    help="When the sender gets a delivery status notification (DSN). All but never may be combined.",
)
@click.option(
    "--ret",
    type=click.Choice(get_args(Ret), case_sensitive=False),
    help="What a notification returns: the full message, or its header section.",
)
@click.option("--envid", metavar="TEXT", help="Identifier of the envelope, which notifications quote.")
@click.option(
    "--require-tls",
    is_flag=True,
    help="Send only over verified TLS, to a server that demands the same of the next one (REQUIRETLS).",
)
@click.option(
    "--priority",
    type=click.IntRange(-9, 9),
    metavar="N",
    help="Priority from -9 to 9 (MT-PRIORITY); more is more urgent.",
)
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
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILE...")
def send(  # noqa: PLR0917 - click passes them by name
    servers: tuple[str, ...],
    sender: str | None,
    recipients: tuple[str, ...],
    starttls: StartTLS | None,
    ca_file: Path | None,
    no_verify: bool,
    user: str | None,
    password_file: Path | None,
    allow_plaintext: bool,
    notify: tuple[Notify, ...],
    ret: Ret | None,
    envid: str | None,
    require_tls: bool,
    priority: int | None,
    hostname: str | None,
    concurrency: int,
    timeout: float | None,
    verbose: bool,
    quiet: bool,
    files: tuple[Path, ...],
) -> None:
    """Send message files to a mail server.

    Each FILE is one message (.eml): header fields, an empty line, the text. "-" is standard input. The header fields
    name the sender and the recipients, unless --from and --to name others. The default server is the one that
    "greensmtp serve" starts.

    Each message that cannot be sent, and each rejected recipient, is reported in one line on standard error. The other
    messages are still sent. -v shows the dialogue with the server. An mbox "From " line before a message is dropped.

    \b
    Exit status:
      0   all messages were sent to all recipients
      75  some were not, but may be accepted later
      1   some were permanently rejected, or cannot be sent
      2   the command line is wrong

    \b
    Try it, with "greensmtp serve" in another terminal:
      printf 'From: me@example.com\\nTo: you@example.com\\nSubject: hi\\n\\nhello\\n' | greensmtp send -v -
    A server with a login and TLS:
      greensmtp send --server smtp://mail.example.com:587 --user jo --password-file secret message.eml
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    if files.count(Path("-")) > 1:
        raise click.UsageError('"-" can be given only once: standard input is one message')
    places = [_read_url(text) for text in servers]
    common: dict[str, Any] = {key: value for key, value in places[0].items() if key != "host"}
    if any(place | common != place for place in places):
        raise click.BadParameter("all servers must have the same scheme", param_hint="'--server'")
    if sender is not None:
        _check("--from", command_builder.mail, sender)
    for recipient in recipients:
        _check("--to", command_builder.rcpt, recipient)
    if hostname is not None:
        _check("--hostname", hello_name, hostname, "the name to send")
    options: SendKeywords = {"ret": ret, "envid": envid, "require_tls": require_tls, "priority": priority}
    if notify:
        options["notify"] = notify
    _check("--notify", rcpt_parameters, options, SEND_KEYWORDS)
    _check("--envid", mail_parameters, options, SEND_KEYWORDS)
    if require_tls and (no_verify or starttls in {"never", *UNVERIFIED}):
        raise click.UsageError("--require-tls needs TLS with a verified server")
    if starttls in UNVERIFIED:
        if user is not None:
            raise click.UsageError(f"--starttls {starttls} verifies no server, so it cannot be used with --user")
        if common["tls"]:
            raise click.UsageError(f"--starttls {starttls} and smtps:// exclude each other")
        if ca_file is not None:
            raise click.UsageError(f"--starttls {starttls} accepts any certificate: leave --ca-file out")
    at_once = min(concurrency, len(files))
    try:
        pool = Pool(
            [place["host"] for place in places],
            size=at_once,
            username=user,
            password=_read_password(user, password_file),
            allow_plaintext=allow_plaintext,
            ssl_context=_context(ca_file, verify=not no_verify),
            timeout=timeout,
            local_hostname=hostname,
            starttls=starttls,
            **common,
        )
    except (ValueError, ProtocolError) as error:
        raise click.UsageError(str(error)) from error
    run = Sender(pool, sender, list(recipients) or None, files, options, verbose=verbose, quiet=quiet)
    with show_dialogue(several=at_once > 1) if verbose else nullcontext(), pool:
        run.go(at_once)
    sys.exit(run.status)


def _check(option: str, check: Callable[..., object], *arguments: object) -> None:
    try:
        check(*arguments)
    except ProtocolError as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from error


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
            password = file.readline(MAX_PASSWORD + 2).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        # The text of a UnicodeDecodeError may show a part of the password.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.BadParameter(f"cannot read {str(path)!r}: {reason}", param_hint="'--password-file'") from error
    if not 1 <= len(password) <= MAX_PASSWORD:
        what = "empty" if not password else f"longer than {MAX_PASSWORD} characters"
        raise click.BadParameter(f"the first line of {str(path)!r} is {what}", param_hint="'--password-file'")
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
