"""The options of ``serve`` and ``check``: a configuration file, and what overrides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from greensmtp.config.defaults import DEFAULT_MAILDIR, DEFAULT_URL, parse_size
from greensmtp.config.urls import HELP, Listen
from greensmtp.plugins import read_option

if TYPE_CHECKING:
    from greensmtp.config.load import Loaded
    from greensmtp.config.locations import KeyPath
    from greensmtp.config.problems import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])


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
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FileType(click.Path):
    """A path, which is not empty: that would be the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it, or say what it takes."""
        if value == "":
            self.fail("takes a path, not an empty text", param, ctx)
        return super().convert(value, param, ctx)


_OPTIONS = (
    click.option(
        "-c",
        "--config",
        type=FileType(),
        metavar="FILE",
        help="A TOML file, see docs/configuration.md; the options below override what it says.",
    ),
    click.option(
        "--listen",
        "listeners",
        type=ListenType(),
        multiple=True,
        default=(DEFAULT_URL,),
        show_default=True,
        help=f"Where to listen; may be given several times: {HELP}. Port 0 takes a free one.",
    ),
    click.option("--hostname", help="The name in the banner and in Received; this machine's own by default."),
    click.option(
        "--maildir",
        type=FileType(),
        default=Path(DEFAULT_MAILDIR),
        show_default=True,
        help="The Maildir that takes the mail; made when it is not there. Over LMTP, too, it stores one file for "
        "all recipients of a message.",
    ),
    click.option(
        "--no-maildir", is_flag=True, help="Store nothing: plugins decide what becomes of messages; without any, 554."
    ),
    click.option("--tls-cert", type=FileType(), help="PEM certificate chain; with it, STARTTLS."),
    click.option("--tls-key", type=FileType(), help="PEM private key; in --tls-cert by default."),
    click.option(
        "--plugin",
        "plugins",
        metavar="NAME[,optional]",
        multiple=True,
        help="An installed plugin, as `greensmtp plugins` lists it; `all` of them; or MODULE[:CALLABLE]: importing a "
        "module connects its handlers, a callable is given each server. An optional one is skipped where it fails. May "
        "be given several times, and is heard in that order.",
    ),
    click.option(
        "--max-size",
        type=SizeType(),
        default="32M",
        show_default=True,
        help="The largest message, in octets, or like 500k, 32M, 1G.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Of standard error.",
    ),
    click.option("-v", "--verbose", count=True, help="Log sessions and messages; twice: every command."),
)


def _plugins(texts: Iterable[str]) -> list[dict[str, Any]]:
    return [{"name": name, "optional": optional} for name, optional in map(read_option, texts)]


#: parameter -> option, the path of what it sets, and its value there. Later ones have the last word.
_SETS: dict[str, tuple[str, tuple[str, ...], Callable[[Any], Any]]] = {
    "listeners": ("--listen", ("listeners",), lambda value: [{"url": listen.url()} for listen in value]),
    "hostname": ("--hostname", ("hostname",), str),
    "maildir": ("--maildir", ("delivery", "maildir"), str),
    "no_maildir": ("--no-maildir", ("delivery", "maildir"), lambda value: False),
    "tls_cert": ("--tls-cert", ("tls_cert",), str),
    "tls_key": ("--tls-key", ("tls_key",), str),
    "plugins": ("--plugin", ("plugins",), _plugins),
    "max_size": ("--max-size", ("limits", "max_message_size"), int),
    "log_format": ("--log-format", ("logging", "format"), str),
    "verbose": ("--verbose", ("logging", "level"), lambda value: "info" if value == 1 else "debug"),
}


def serve_options(command: Command) -> Command:
    """Give a command all of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load_given(context: click.Context) -> Loaded:
    """The configuration that this command line means.

    :raises ConfigError: it is wrong.
    """
    # Here, and not above: it takes its time, and the other commands do without it.
    from greensmtp.config.load import Override, load

    if context.params["no_maildir"] and context.get_parameter_source("maildir") is not ParameterSource.DEFAULT:
        raise click.UsageError("--maildir and --no-maildir exclude each other", context)
    given = [
        Override(option, path, convert(context.params[name]))
        for name, (option, path, convert) in _SETS.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    names: dict[KeyPath, str] = {path: option for option, path, _ in _SETS.values() if option != "--no-maildir"}
    return load(context.params["config"], given, names)


class WrongConfig(click.ClickException):
    """A configuration file cannot be used; a line for each mistake."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """As click does, line by line."""
        for line in self.message.splitlines():
            click.echo(f"Error: {line}", file=file, err=file is None)


def refuse(error: ConfigError) -> NoReturn:
    """End the command with what is wrong: status 2."""
    # Keys and values may hold anything; here nothing breaks the line, or commands the terminal.
    lines = "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in error.lines)
    if error.options:
        raise click.UsageError(lines, click.get_current_context()) from error
    raise WrongConfig(lines) from error
