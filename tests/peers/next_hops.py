"""Exim and OpenSMTPD as next hops: unpacked from Debian's packages, each relays to one port and refuses ``never@``."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import debian
from tests.helpers import free_port
from tests.peers.listeners import TIMEOUT
from tests.programs import missing

EXIM = """\
    keep_environment =
    deliver_drop_privilege
    exim_path = {program}
    never_users =
    primary_hostname = exim.example
    spool_directory = {folder}/spool
    log_file_path = {folder}/log/%s
    pid_file_path = {folder}/spool/pid
    local_interfaces = 127.0.0.1
    daemon_smtp_ports = {port}
    host_lookup =
    acl_smtp_rcpt = recipient
    acl_smtp_data = accept
    pipelining_advertise_hosts = *
    chunking_advertise_hosts = *
    tls_advertise_hosts =
    begin acl
    recipient:
      deny
        recipients = never@example.org
        message = 550 5.1.1 never
      accept
    begin routers
    all:
      driver = accept
      transport = on
    begin transports
    on:
      driver = smtp
      hosts = 127.0.0.1
      port = {onwards}
      allow_localhost
      hosts_avoid_tls = *
    begin retry
    """

OPENSMTPD = """\
    listen on 127.0.0.1 port {port} hostname opensmtpd.example
    action "on" relay host smtp://127.0.0.1:{onwards}
    match from any for rcpt-to "never@example.org" reject
    match from any for any action "on"
    """

#: OpenSMTPD's folders are compiled in. In a mount namespace of its own it has others in their place.
OPENSMTPD_START = """\
    set -e
    mount -t tmpfs tmpfs /usr/libexec
    cp -r {root}/usr/libexec/opensmtpd /usr/libexec/
    for name in spool lib run; do mkdir {folder}/$name; done
    mkdir -p {folder}/lib/opensmtpd/empty
    mkdir -m 711 {folder}/spool/smtpd
    mount --bind {folder}/spool /var/spool
    mount --bind {folder}/lib /var/lib
    mount --bind {folder}/run /run
    exec env LD_PRELOAD="$PRELOAD" {root}/usr/sbin/smtpd -d -f {folder}/smtpd.conf
    """


def _exim(folder: Path, port: int, onwards: int) -> tuple[Sequence[str | Path], Mapping[str, str]]:
    program = debian.exim(folder)
    for name in ("spool", "log"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    configuration = EXIM.format(program=program, folder=folder, port=port, onwards=onwards)
    (folder / "exim.conf").write_text(textwrap.dedent(configuration))
    return [program, "-C", folder / "exim.conf", "-bdf", "-q1h"], {}


def _opensmtpd(folder: Path, port: int, onwards: int) -> tuple[Sequence[str | Path], Mapping[str, str]]:
    root = debian.unpack("opensmtpd")
    environment = debian.with_users(folder, "opensmtpd", "opensmtpq")
    environment["PRELOAD"] = environment.pop("LD_PRELOAD")  # it is for this program alone
    (folder / "smtpd.conf").write_text(textwrap.dedent(OPENSMTPD.format(port=port, onwards=onwards)))
    (folder / "start").write_text(textwrap.dedent(OPENSMTPD_START.format(root=root, folder=folder)))
    return ["unshare", "--mount", "sh", folder / "start"], environment


NEXT_HOPS: Mapping[str, Callable[[Path, int, int], tuple[Sequence[str | Path], Mapping[str, str]]]] = {
    "exim": _exim,
    "opensmtpd": _opensmtpd,
}


@contextmanager
def next_hop(name: str, onwards: int) -> Iterator[int]:
    """Start a server that relays to a port, and stop it at the end; yields its own port."""
    # Its processes run as another user, which may not enter pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    folder.chmod(0o755)
    process = None
    try:
        port = free_port()
        try:
            command, environment = NEXT_HOPS[name](folder, port, onwards)
        except debian.Unavailable as error:
            missing(str(error))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
            )
        _wait(name, port, process, folder)
        yield port
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(name: str, port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)  # another process's readiness has no event to wait for
    missing(f"{name} does not start: {(folder / 'output').read_text(errors='replace')[-2000:]}")
