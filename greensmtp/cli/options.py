"""The options of ``serve`` and ``check``: a configuration file, and the options that override it."""

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


class ParsedType(click.ParamType[Any]):
    """A value that a function parses; its ValueError is a usage error.

    :param name: the metavariable in --help.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a text; click may also pass a value that has been converted already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FileType(click.Path):
    """A path that is not empty, since an empty one would mean the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the value to a Path, or fail with a usage error."""
        if value == "":
            self.fail("expected a path; got an empty string", param, ctx)
        return super().convert(value, param, ctx)


def read_workers(text: str) -> int | str:
    """Read ``auto`` or a number."""
    if text != "auto" and not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise ValueError(f"expected a number from 1 to 1024, or auto; got {text!r}")
    return text if text == "auto" else int(text)


_OPTIONS = (
    click.option(
        "-c",
        "--config",
        type=FileType(),
        metavar="FILE",
        help="TOML configuration file, such as `greensmtp check` prints; the options below override it.",
    ),
    click.option(
        "--listen",
        "listeners",
        type=ParsedType("URL", Listen.parse),
        multiple=True,
        default=(DEFAULT_URL,),
        show_default=True,
        help=f"Address to listen on; may be given several times: {HELP}. Port 0 means any free port.",
    ),
    click.option("--hostname", help="Name in the banner and in Received header fields; default: this machine's name."),
    click.option(
        "--maildir",
        type=FileType(),
        default=Path(DEFAULT_MAILDIR),
        show_default=True,
        help="Maildir to store mail in; created if missing. A message is stored once for all its recipients, over "
        "LMTP too.",
    ),
    click.option(
        "--no-maildir",
        is_flag=True,
        help="Store nothing: plugins decide about messages; without any, the reply is 554.",
    ),
    click.option("--tls-cert", type=FileType(), help="PEM certificate chain; enables STARTTLS."),
    click.option("--tls-key", type=FileType(), help="PEM private key; default: the one in --tls-cert."),
    click.option(
        "--proxy-from",
        metavar="NETWORK",
        multiple=True,
        help="Network, address or `unix`: proxies that send a PROXY header, which names the client. May be given "
        "several times. Name nothing but your proxies.",
    ),
    click.option(
        "--plugin",
        "plugins",
        metavar="NAME[,optional]",
        multiple=True,
        help="Plugin to load: an installed one, as listed by `greensmtp plugins`; `all` of them; or MODULE[:CALLABLE]. "
        "Importing a module connects its handlers; a callable is called with each server. An optional plugin is "
        "skipped if it fails. May be given several times; handlers run in that order.",
    ),
    click.option(
        "--max-size",
        type=ParsedType("SIZE", parse_size),
        default="32M",
        show_default=True,
        help="Maximum message size in bytes, or 500k, 32M, 1G.",
    ),
    click.option(
        "--workers",
        type=ParsedType("N|auto", read_workers),
        help="Processes that serve: a number, or auto for one on each core. A worker that dies is replaced. Default: "
        "one process, without an arbiter.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Format of the log on standard error.",
    ),
    click.option("-v", "--verbose", count=True, help="Log sessions and messages; given twice, every command."),
)


def _plugins(texts: Iterable[str]) -> list[dict[str, Any]]:
    return [{"name": name, "optional": optional} for name, optional in map(read_option, texts)]


#: parameter -> option, the path of the key that it sets, and the function that converts the value. Later ones win.
_SETS: dict[str, tuple[str, tuple[str, ...], Callable[[Any], Any]]] = {
    "listeners": ("--listen", ("listeners",), lambda value: [{"url": listen.url()} for listen in value]),
    "hostname": ("--hostname", ("hostname",), str),
    "maildir": ("--maildir", ("delivery", "maildir"), str),
    "no_maildir": ("--no-maildir", ("delivery", "maildir"), lambda value: False),
    "tls_cert": ("--tls-cert", ("tls_cert",), str),
    "tls_key": ("--tls-key", ("tls_key",), str),
    "proxy_from": ("--proxy-from", ("proxy_from",), list),
    "plugins": ("--plugin", ("plugins",), _plugins),
    "max_size": ("--max-size", ("limits", "max_message_size"), int),
    "workers": ("--workers", ("service", "workers"), lambda value: value),
    "log_format": ("--log-format", ("logging", "format"), str),
    "verbose": ("--verbose", ("logging", "level"), lambda value: "info" if value == 1 else "debug"),
}


def serve_options(command: Command) -> Command:
    """Decorate a command with all of these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load_given(context: click.Context, content: bytes | None = None) -> Loaded:
    """Load the configuration that this command line describes.

    :param content: what the file contained when it was read before.
    :raises ConfigError: it is invalid.
    """
    # Not at the top: it imports pydantic, which takes a third of a second that the other commands need not spend.
    from greensmtp.config.load import Override, load

    if context.params["no_maildir"] and context.get_parameter_source("maildir") is not ParameterSource.DEFAULT:
        raise click.UsageError("--maildir and --no-maildir exclude each other", context)
    given = [
        Override(option, path, convert(context.params[name]))
        for name, (option, path, convert) in _SETS.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    names: dict[KeyPath, str] = {path: option for option, path, _ in _SETS.values() if option != "--no-maildir"}
    return load(context.params["config"], given, names, content)


class WrongConfig(click.ClickException):
    """A configuration file cannot be used; the message has a line for each problem."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print each line like click's own errors."""
        for line in self.message.splitlines():
            click.echo(f"Error: {line}", file=file, err=file is None)


def refuse(error: ConfigError) -> NoReturn:
    """Exit with status 2, and print the problems."""
    # Keys and values may contain line breaks and terminal control sequences.
    lines = "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in error.lines)
    if error.options:
        raise click.UsageError(lines, click.get_current_context()) from error
    raise WrongConfig(lines) from error
