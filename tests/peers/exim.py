"""Exim as a relay, unpacked from Debian's package: it takes mail for any domain and has a transport for each listener.

Mail for ``anyone@KIND.example`` goes to the listener of that kind; mail for other domains goes to the one in the clear.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests import debian
from tests.peers.listeners import PASSWORD, TIMEOUT, USER, Listener
from tests.programs import missing

if TYPE_CHECKING:
    from tests.conftest import Certificate

#: Transport -> the kind of listener that it delivers to, and its options besides host and port.
TRANSPORTS = {
    "plain": ("plain", "hosts_avoid_tls = *"),
    "auth": ("plain", "hosts_avoid_tls = *\n  hosts_require_auth = *"),
    "starttls": ("starttls", "hosts_require_tls = *"),
    "tls": ("tls", "protocol = smtps"),
    "lmtp": ("lmtp", "protocol = lmtp\n  hosts_avoid_tls = *"),
}

CONFIGURATION = """\
keep_environment =
deliver_drop_privilege
exim_path = {program}
never_users =
primary_hostname = relay.example
spool_directory = {folder}/spool
log_file_path = {folder}/log/%s
log_selector = +all
pid_file_path = {folder}/spool/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
host_lookup =
qualify_domain = plain.example
acl_smtp_rcpt = accept
acl_smtp_data = accept
pipelining_advertise_hosts = *
chunking_advertise_hosts = *
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = {folder}/certificate.pem
tls_privatekey = {folder}/key.pem
begin routers
{routers}
begin transports
{transports}
begin retry
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{user}^{password}
"""
ROUTER = """\
{name}:
  driver = accept
  domains = {name}.example
  transport = {name}
"""
TRANSPORT = """\
{name}:
  driver = smtp
  hosts = 127.0.0.1
  port = {port}
  allow_localhost
  tls_verify_certificates = {authority}
  tls_verify_hosts = *
  tls_verify_cert_hostnames = :
  {options}
"""
SOCKET = """\
socket:
  driver = lmtp
  socket = {path}
  user = mail
"""


class Exim:
    """A running Exim."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def lines(self, pattern: str) -> list[str]:
        """Return the lines of its log in which a pattern is found."""
        text = self._log.read_text() if self._log.exists() else ""
        return [line for line in text.splitlines() if re.search(pattern, line)]

    def wait_for(self, pattern: str) -> str:
        """Wait for a line of its log in which a pattern is found, and return it."""
        deadline = time.monotonic() + TIMEOUT
        while not (lines := self.lines(pattern)):
            assert time.monotonic() < deadline, self.lines("")
            time.sleep(0.02)  # a file that grows is no event
        return lines[0]


@contextmanager
def exim(listeners: Mapping[str, Listener], certificate: Certificate) -> Iterator[Exim]:
    """Start Exim, and stop it at the end."""
    # Its processes run as another user, which may not enter pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="exim-"))
    folder.chmod(0o755)
    process = None
    try:
        try:
            program = debian.exim(folder)
        except debian.Unavailable as error:
            missing(str(error))
        for name in ("spool", "log"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)
        for name, source in (
            ("certificate", certificate.certfile),
            ("key", certificate.keyfile),
            ("authority", certificate.authority),
        ):
            shutil.copyfile(source, folder / f"{name}.pem")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        (folder / "exim.conf").write_text(_configuration(program, folder, port, listeners))
        command: list[str | Path] = [program, "-C", folder / "exim.conf", "-bdf"]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _wait(port, process, folder)
        yield Exim(port, folder / "log" / "main")
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configuration(program: Path, folder: Path, port: int, listeners: Mapping[str, Listener]) -> str:
    routers = [ROUTER.format(name=name) for name in (*TRANSPORTS, "socket")]
    routers.append("others:\n  driver = accept\n  transport = plain\n")
    transports = [
        TRANSPORT.format(
            name=name, port=listeners[kind].port, authority=folder / "authority.pem", options=textwrap.dedent(options)
        )
        for name, (kind, options) in TRANSPORTS.items()
    ]
    transports.append(SOCKET.format(path=listeners["lmtp+unix"].path))
    return CONFIGURATION.format(
        program=program,
        folder=folder,
        port=port,
        routers="".join(routers),
        transports="".join(transports),
        user=USER,
        password=PASSWORD,
    )


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)  # another process's readiness has no event to wait for
    missing(f"Exim does not start: {(folder / 'output').read_text(errors='replace')[-2000:]}")
