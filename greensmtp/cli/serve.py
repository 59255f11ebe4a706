"""``greensmtp serve``: run a server."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from gevent import spawn
from gevent.event import Event

from greensmtp import _notify
from greensmtp.cli.options import load_given, refuse, serve_options
from greensmtp.cli.output import say_places, start_logging
from greensmtp.line_writer import LineWriter
from greensmtp.server.run import signals_handled, wait_for_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from greensmtp.config.load import Loaded
    from greensmtp.service.service import Service


@click.command()
@serve_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Receive mail, and store it in a Maildir.

    Without options it accepts all mail on 127.0.0.1:1025, and stores each message as a file in ./maildir/new. The name
    of the file contains the ID of the reply "queued as ID". A configuration file can add listeners, TLS, authentication
    and limits, and plugins decide what is accepted. "greensmtp check" prints the default configuration to start from.

    \b
    Try it:
      greensmtp serve
    and in another terminal:
      printf 'From: me@example.com\\nTo: you@example.com\\nSubject: hi\\n\\nhello\\n' | greensmtp send -
      cat maildir/new/*

    Standard output has a line for the Maildir, for each listener that is ready, and for each accepted message. The log
    goes to standard error. SIGTERM or Ctrl-C lets transactions in progress finish, for up to 30 seconds; a second one
    ends the server at once. SIGHUP reads the configuration again, without refusing or cutting a connection; if it is
    wrong, the log says so and nothing changes.

    \b
    Exit status:
      0   it was stopped
      1   it could not start: the address is in use, for example
      2   the configuration or the command line is wrong
    """
    from greensmtp.cli.workers import is_arbiter, run_arbiter
    from greensmtp.config.problems import ConfigError
    from greensmtp.service.errors import StartError

    stdout = LineWriter(sys.stdout)
    try:
        if is_arbiter():
            run_arbiter(context, stdout)
        else:
            _serve(partial(load_given, context), stdout)
    except ConfigError as error:
        refuse(error)
    except StartError as error:
        raise click.ClickException(str(error)) from error
    finally:
        stdout.finish()


def _serve(load: Callable[[], Loaded], stdout: LineWriter) -> None:
    """Serve until a signal comes.

    What only root may do comes first: sockets and the pid file. The log, the Maildir and the keys of certificates
    belong to the service's own user, since a reload needs them as well.

    :raises ConfigError, StartError: it cannot start.
    """
    from greensmtp.cli.announce import Announce
    from greensmtp.cli.workers import become_arbiter
    from greensmtp.config.problems import Problem
    from greensmtp.service.control import choose_folder, controlled
    from greensmtp.service.pid_file import pid_file
    from greensmtp.service.privileges import become, find_identity, naming_user
    from greensmtp.service.service import Service
    from greensmtp.service.sockets import Sockets
    from greensmtp.service.systemd import inherited_sockets

    loaded = load()
    config = loaded.config.service
    if config.workers is not None:
        become_arbiter()
    try:
        identity = find_identity(config.user, config.group)
    except ValueError as error:
        raise loaded.source.error([Problem(("service", "user"), str(error))]) from error
    sockets = Sockets(inherited_sockets(), reuse_port=config.reuse_port)
    service = Service(load, sockets=sockets, outermost=[Announce(stdout)], accept=partial(start_logging, stdout))
    with pid_file(config.pid_file):
        folder = choose_folder(config.control, None if identity is None else (identity.uid, identity.gid))
        if identity is not None:
            service.bind(loaded)
            become(identity)
        with naming_user(identity), controlled(folder, lambda: service.all_servers, config.control):
            _run(service, loaded, stdout)


def _run(service: Service, loaded: Loaded, stdout: LineWriter) -> None:
    from greensmtp.service.blocked_hub import blocking_reported
    from greensmtp.service.systemd import notifying

    stopping, hangup = Event(), Event()

    def reload() -> None:
        while True:
            hangup.wait()
            hangup.clear()
            service.reload()

    blocked = loaded.config.service.report_blocked
    with signals_handled(stopping, hangup.set), notifying(), blocking_reported(blocked):
        service.start(loaded)
        urls = [each.listen.url(each.server.address) for each in service.serving]
        say_places(stdout, loaded.maildirs(), urls, service.http_address)
        service.tell_ready()
        reloader = spawn(reload)
        try:
            _wait(service, stopping)
        finally:
            reloader.kill()
            _notify.stopping()
            service.stop()


def _wait(service: Service, stopping: Event) -> None:
    """Wait for a signal, or until plugins have stopped all servers of the current configuration."""
    while not stopping.is_set():
        servers = service.servers
        wait_for_stop(stopping, servers)
        if service.servers == servers:
            return
