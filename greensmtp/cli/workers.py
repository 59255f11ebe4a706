"""``greensmtp serve --workers``: gunicorn's arbiter in a program of its own."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from greensmtp.cli.options import load_given
from greensmtp.cli.output import say_places, set_up_logging, start_logging

if TYPE_CHECKING:
    from pathlib import Path

    from greensmtp.config.load import Loaded
    from greensmtp.line_writer import LineWriter
    from greensmtp.service.plan import Plan
    from greensmtp.service.service import Service
    from greensmtp.service.sockets import Sockets

#: Names the process that is to be an arbiter.
_VARIABLE = "GREENSMTP_ARBITER"


def is_arbiter() -> bool:
    """True if this process is to be the arbiter. Its workers do not see that."""
    return os.environ.pop(_VARIABLE, None) == str(os.getpid())


def become_arbiter() -> None:
    """Execute this program again, without patches of the standard library and without middleware and plugins.

    The process stays, with its descriptors, and the arguments are the same.

    :raises ClickException: gunicorn is missing.
    """
    try:
        import gunicorn  # type: ignore[import-untyped]  # noqa: F401
    except ModuleNotFoundError:
        raise click.ClickException("--workers needs gunicorn: pip install 'greensmtp[workers]'") from None
    os.environ[_VARIABLE] = str(os.getpid())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_arbiter(context: click.Context, stdout: LineWriter) -> None:
    """Serve with workers until a signal comes; then exit.

    :raises ConfigError, StartError: it cannot start.
    """
    from greensmtp.config.load import read
    from greensmtp.service.arbiter import ServiceArbiter

    path: Path | None = context.params["config"]

    def load() -> tuple[Loaded, str | None]:
        content = None if path is None else read(path)
        loaded = load_given(context, content)
        return loaded, None if content is None else content.decode("utf-8")

    def start_service(plan: Plan, sockets: Sockets, http: Any) -> Service:
        from greensmtp.cli.announce import Announce
        from greensmtp.service.service import Service

        loaded = load_given(context, None if plan.text is None else plan.text.encode())
        service = Service(
            lambda: loaded,
            sockets=sockets,
            outermost=[Announce(stdout)],
            http=http,
            accept=partial(start_logging, stdout),
        )
        service.start(loaded)
        return service

    def announce(plan: Plan, urls: list[str], http: tuple[str, int] | None) -> None:
        say_places(stdout, plan.maildirs, urls, http)

    ServiceArbiter(load, start_service, partial(set_up_logging, stdout), announce).run()
