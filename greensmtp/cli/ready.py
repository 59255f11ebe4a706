"""``greensmtp ready``: ask a running server whether it takes mail."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path
from time import monotonic, sleep

import click

from greensmtp._hostport import address, join
from greensmtp.cli.options import FileType, ParsedType, refuse
from greensmtp.config.defaults import DEFAULT_URL
from greensmtp.config.urls import HELP, Listen
from greensmtp.protocol.log_text import printable

#: Seconds for a connection and its answer.
QUESTION_SECONDS = 10.0

#: Seconds between two attempts.
PAUSE = 0.2

#: The longest answer.
MAX_ANSWER = 65536


def _read_seconds(text: str) -> float:
    """Parse the value of --wait."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected a number of seconds; got {text!r}")
    return seconds


@click.command()
@click.argument("target", required=False)
@click.option("-c", "--config", type=FileType(), metavar="FILE", help="The server's configuration: where to ask.")
@click.option(
    "-w", "--wait", type=ParsedType("SECONDS", _read_seconds), default=0.0, help="Ask again for up to SECONDS."
)
def ready(target: str | None, config: Path | None, wait: float) -> None:
    """Ask a running server whether it takes mail.

    TARGET is its HTTP address, http://127.0.0.1:9100, or a listener: 127.0.0.1:25, smtps://127.0.0.1:465 and so on.
    Over HTTP it answers for its stores and its hub, too, and tells when it drains; a listener is ready if it sends a
    banner. Without TARGET it is taken from the configuration: [http], else the first listener.

    \b
    Start a server and wait until it is ready:
      greensmtp serve --config greensmtp.toml &
      greensmtp ready --config greensmtp.toml --wait 30

    \b
    Exit status:
      0   it is ready
      1   it is not: standard error says why
      2   the command line or the configuration is wrong
    """
    where = _target(target, config)
    deadline = monotonic() + wait
    while (wrong := _ask(where)) is not None:
        if monotonic() >= deadline:
            raise click.ClickException(f"not ready: {wrong}")
        sleep(PAUSE)
    click.echo("ready")


def _target(target: str | None, config: Path | None) -> tuple[str, int] | Listen:
    """Return the address of HTTP, or a listener."""
    if target is None and config is not None:
        from greensmtp.config.load import load
        from greensmtp.config.problems import ConfigError

        try:
            loaded = load(config).config
        except ConfigError as error:
            refuse(error)
        http_address = address(loaded.http.listen)
        return Listen.parse(loaded.listeners[0].url) if http_address is None else http_address
    text = DEFAULT_URL if target is None else target
    if text.startswith("http://"):
        found = address(text.removeprefix("http://").partition("/")[0])
        if found is None:
            raise click.UsageError(f"expected a URL like http://127.0.0.1:9100; got {text!r}")
        return found
    try:
        return Listen.parse(text)
    except ValueError:
        raise click.UsageError(f"expected a URL like http://127.0.0.1:9100, {HELP}; got {text!r}") from None


def _ask(where: tuple[str, int] | Listen) -> str | None:
    """Return None if the server is ready, else why not."""
    try:
        return _ask_http(*where) if isinstance(where, tuple) else _ask_listener(where)
    except (OSError, http.client.HTTPException, ValueError) as error:
        shown = where.url() if isinstance(where, Listen) else f"http://{join(*where)}"
        return f"{shown}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"


def _ask_http(host: str, port: int) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=QUESTION_SECONDS)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(MAX_ANSWER)
    finally:
        connection.close()
    if response.status == 200:
        return None
    try:
        failures = json.loads(body)["failures"].items()
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"the answer is {response.status} {printable(response.reason)}; is this the [http] address of greensmtp?"
    return "; ".join(printable(f"{name}: {text}") for name, text in failures)


def _ask_listener(listen: Listen) -> str | None:
    unix = isinstance(listen.address, str)
    connection = socket.socket(socket.AF_UNIX) if unix else None
    if connection is None:
        assert isinstance(listen.address, tuple)
        connection = socket.create_connection(listen.address, QUESTION_SECONDS)
    with connection:
        connection.settimeout(QUESTION_SECONDS)
        if unix:
            connection.connect(listen.address)
        if listen.implicit_tls:
            context = ssl.create_default_context()
            # The question is whether the server answers; its identity does not matter.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        with connection:
            line = b""
            deadline = monotonic() + QUESTION_SECONDS
            while b"\n" not in line and len(line) < 1000 and (piece := connection.recv(1000)):
                line += piece
                if monotonic() > deadline:
                    raise TimeoutError(f"no banner within {QUESTION_SECONDS:g} s")
            if line.startswith(b"220"):
                connection.sendall(b"QUIT\r\n")
                return None
    return printable(line.decode("ascii", "replace").strip()) or "the connection was closed without a banner"
