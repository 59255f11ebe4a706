"""What `top` and `trace` share: where the sockets are, and what to say if there are none."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from greensmtp.cli.options import FileType, refuse

if TYPE_CHECKING:
    from greensmtp.service.control_client import ControlClient

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--control",
        type=FileType(),
        metavar="FOLDER",
        help="Folder of the control sockets, as `[service] control` has it. Default: where servers have them by "
        "themselves.",
    ),
    click.option("-c", "--config", type=FileType(), metavar="FILE", help="Take the folder from this configuration."),
)


def control_options(command: Command) -> Command:
    """Add the options that say where the sockets are."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def ask(control: Path | None, config: Path | None, request: dict[str, Any]) -> ControlClient:
    """Connect to the processes of the running servers, and ask them all the same.

    :raises click.ClickException: there are none, or they belong to another user.
    """
    from greensmtp.service.control_client import ControlClient

    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode must not end the command
    folders = find_folders(control, config)
    try:
        client = ControlClient(folders, request)
    except PermissionError as error:
        raise click.ClickException(str(error)) from error
    if not client.pids:
        _no_server(folders, is_named=control is not None or config is not None)
    return client


def find_folders(control: Path | None, config: Path | None) -> list[Path]:
    """Return the folders in which to look for sockets."""
    from greensmtp.config.load import load
    from greensmtp.config.problems import ConfigError
    from greensmtp.service.control import AUTO
    from greensmtp.service.control_folder import folders_to_search

    if control is not None:
        return [control]
    if config is None:
        return folders_to_search()
    try:
        configured = load(config).config.service.control
    except ConfigError as error:
        refuse(error)
    if configured is None:
        raise click.ClickException(f"{config} has no control socket: [service] control is false")
    return folders_to_search() if configured == AUTO else [Path(configured)]


def _no_server(folders: list[Path], *, is_named: bool) -> NoReturn:
    looked = "\n".join(f"  {folder}" for folder in folders)
    hint = (
        "Is it running?"
        if is_named
        else "If it runs, name its folder with --control FOLDER, or its configuration with --config FILE."
    )
    other = "" if os.geteuid() == 0 else " Servers of other users: try again as root."
    raise click.ClickException(f"no running server was found. Looked in:\n{looked}\n{hint}{other}")
