"""Real servers for the corpus: how each is had, configured and started, on loopback and in a folder of its own.

Each takes mail for everyone but ``no@example.com``, has a size limit of 1,000,000 bytes and a certificate, and, where
it has users, ``jo`` with the password ``secret``. What it takes goes nowhere. Limits on errors are raised as far as
they can be, since dialogues make many.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import environments, machine
from benchmarks.machine import Missing
from tests import debian

HERE = Path(__file__).resolve().parent

#: Seconds until a server must answer.
PATIENCE = 20.0


@dataclass(frozen=True)
class Place:
    """What a server needs to start: a folder that every user may enter, two free ports, a certificate with its key."""

    folder: Path
    port: int
    lmtp_port: int
    pem: Path

    def write(self, name: str, text: str) -> Path:
        """Write a file, without the text's indentation."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
        return path


@dataclass(frozen=True)
class Started:
    """How a server is run: in the foreground, with these additions to the environment."""

    command: list[str]
    environment: dict[str, str]
    version: str


@dataclass(frozen=True)
class FieldServer:
    """One server. ``start`` prepares the place."""

    title: str
    start: Callable[[Place], Started]
    #: What it is configured for: keys of a dialogue's header.
    configured: tuple[str, ...] = ("refuse",)
    #: The protocols that it speaks.
    smtp: bool = True
    lmtp: bool = False


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    version: str
    port: int | None
    lmtp_port: int | None


@contextmanager
def running(server: FieldServer) -> Iterator[Running]:
    """Start a server, and stop it at the end.

    :raises Missing, debian.Unavailable: it cannot be had here, or does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="greensmtp-field-"))
    folder.chmod(0o755)
    process = None
    try:
        place = Place(folder, machine.free_port(), machine.free_port(), folder / "server.pem")
        certificate = environments.certificate()
        place.pem.write_bytes(certificate.key.read_bytes() + certificate.cert.read_bytes())
        started = server.start(place)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                started.command,
                env=os.environ | started.environment,
                cwd=machine.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ports = (place.port if server.smtp else None, place.lmtp_port if server.lmtp else None)
        for port in ports:
            if port is not None:
                _wait(server, port, process, folder / "log")
        yield Running(started.version, *ports)
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: FieldServer, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as probe:
                probe.settimeout(PATIENCE)
                if probe.recv(3) == b"220":
                    return
        except OSError:
            time.sleep(0.05)
    raise Missing(f"{server.title} does not start: {log.read_text(errors='replace')[-2000:]}")


def _said(command: list[str], **environment: str) -> str:
    """Return the first line that a program prints."""
    ran = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    return (ran.stdout + ran.stderr).splitlines()[0]


# Python and node


def _greensmtp(place: Place) -> Started:
    command = [sys.executable, "-m", "tests.field.greensmtp_server", str(place.port), str(place.lmtp_port)]
    return Started([*command, str(place.pem)], {}, metadata.version("greensmtp"))


def _aiosmtpd(place: Place) -> Started:
    command = [environments.python("aiosmtpd"), str(HERE / "aiosmtpd_server.py")]
    version = next(line for line in (environments.PEERS / "aiosmtpd.txt").read_text().split() if "aiosmtpd==" in line)
    return Started([*command, str(place.port), str(place.lmtp_port), str(place.pem)], {}, version.partition("==")[2])


def _modules() -> Path:
    return Path(environments.node_modules("field", HERE / "npm"))


def _npm_version(name: str) -> str:
    version: str = json.loads((_modules() / name / "package.json").read_text())["version"]
    return version


def _smtp_server(place: Place) -> Started:
    command = [machine.find("node"), str(HERE / "smtp_server.js"), str(place.port), str(place.lmtp_port)]
    return Started([*command, str(place.pem)], {"NODE_PATH": str(_modules())}, _npm_version("smtp-server"))


def _haraka(place: Place) -> Started:
    place.write("config/smtp.ini", f"listen=127.0.0.1:{place.port}\nnodes=0\n")
    place.write("config/plugins", "tls\nauth/flat_file\nfield\n")
    place.write("config/tls.ini", "key=tls_key.pem\ncert=tls_cert.pem\n")
    place.write("config/auth_flat_file.ini", "[core]\nmethods=PLAIN,LOGIN\n[users]\njo=secret\n")
    # Its own file: a section that is left out makes it fail.
    defaults = (_modules() / "Haraka" / "config" / "connection.ini").read_text()
    place.write("config/connection.ini", re.sub(r"(?m)^bytes=\d+$", "bytes=1000000", defaults))
    place.write("config/me", "mx.example.com\n")
    place.write("config/loglevel", "LOGCRIT\n")
    for name in ("tls_key.pem", "tls_cert.pem"):
        shutil.copy(place.pem, place.folder / "config" / name)
    (place.folder / "plugins").mkdir()
    shutil.copy(HERE / "haraka_plugin.js", place.folder / "plugins" / "field.js")
    program = str(_modules() / "Haraka" / "bin" / "haraka")
    return Started([machine.find("node"), program, "-c", str(place.folder)], {}, _npm_version("Haraka"))


# From the system


def _postfix(place: Place) -> Started:
    program = machine.find("postfix")
    if os.geteuid() != 0:
        raise Missing("only root can start postfix")
    for name in ("queue", "data"):
        (place.folder / name).mkdir()
    shutil.chown(place.folder / "data", "postfix")
    place.write(
        "conf/main.cf",
        f"""
        compatibility_level = 3.6
        queue_directory = {place.folder}/queue
        data_directory = {place.folder}/data
        maillog_file = /dev/stdout
        myhostname = mx.example.com
        mydestination =
        inet_interfaces = 127.0.0.1
        inet_protocols = ipv4
        mynetworks = 127.0.0.0/8
        alias_maps =
        alias_database =
        local_recipient_maps =
        default_transport = discard
        relay_transport = discard
        message_size_limit = 1000000
        smtputf8_enable = yes
        smtpd_peername_lookup = no
        smtpd_recipient_restrictions =
          check_recipient_access inline:{{no@example.com=REJECT}}, permit_mynetworks, reject
        smtpd_error_sleep_time = 0
        smtpd_soft_error_limit = 100
        smtpd_hard_error_limit = 200
        smtpd_tls_security_level = may
        smtpd_tls_chain_files = {place.pem}
        """,
    )
    place.write(
        "conf/master.cf",
        f"""
        127.0.0.1:{place.port} inet n - n - - smtpd
        cleanup  unix n - n - 0 cleanup
        qmgr     unix n - n 300 1 qmgr
        tlsmgr   unix - - n 1000? 1 tlsmgr
        rewrite  unix - - n - - trivial-rewrite
        bounce   unix - - n - 0 bounce
        defer    unix - - n - 0 bounce
        trace    unix - - n - 0 bounce
        proxymap unix - - n - - proxymap
        error    unix - - n - - error
        discard  unix - - n - - discard
        anvil    unix - - n - 1 anvil
        postlog  unix-dgram n - n - 1 postlogd
        """,
    )
    version = _said([machine.find("postconf"), "-dh", "mail_version"])
    return Started([program, "-c", str(place.folder / "conf"), "start-fg"], {}, version)


def _strict_postfix(place: Place) -> Started:
    started = _postfix(place)
    with (place.folder / "conf/main.cf").open("a") as main:
        # What Postfix's authors recommend, and have as the default since 3.9; by default not for one's own networks.
        main.write("smtpd_forbid_bare_newline = normalize\nsmtpd_forbid_bare_newline_exclusions =\n")
    return started


def _dovecot(place: Place) -> Started:
    program = machine.find("dovecot")
    if os.geteuid() != 0:
        raise Missing("only root can start dovecot")
    if not Path("/usr/lib/dovecot/lmtp").exists():
        raise Missing("dovecot-lmtpd is not installed")
    mail = place.folder / "mail"
    mail.mkdir()
    shutil.chown(mail, "mail", "mail")
    users = "".join(f"{name}:{{PLAIN}}secret\n" for name in ("bob", "cyd", "dan", "postmaster"))
    place.write("users", users).chmod(0o644)
    configuration = place.write(
        "dovecot.conf",
        f"""
        base_dir = {place.folder}/run
        state_dir = {place.folder}/state
        log_path = /dev/stderr
        protocols = lmtp
        listen = 127.0.0.1
        hostname = mx.example.com
        ssl = no
        mail_location = maildir:{mail}/%n
        mail_uid = mail
        mail_gid = mail
        first_valid_uid = 1
        auth_username_format = %Ln
        passdb {{
          driver = passwd-file
          args = username_format=%n {place.folder}/users
        }}
        userdb {{
          driver = static
          args = uid=mail gid=mail home={mail}/%n
        }}
        service lmtp {{
          inet_listener lmtp {{
            address = 127.0.0.1
            port = {place.lmtp_port}
          }}
        }}
        """,
    )
    return Started([program, "-F", "-c", str(configuration)], {}, _said([program, "--version"]).partition(" ")[0])


# Unpacked from Debian's packages, and not installed


def _exim(place: Place) -> Started:
    program = str(debian.exim(place.folder))
    for name in ("spool", "exim-log"):
        (place.folder / name).mkdir()
        (place.folder / name).chmod(0o777)
    place.pem.chmod(0o644)
    configuration = place.write(
        "exim.conf",
        f"""
        keep_environment =
        never_users =
        primary_hostname = mx.example.com
        spool_directory = {place.folder}/spool
        log_file_path = {place.folder}/exim-log/%slog
        pid_file_path = {place.folder}/spool/pid
        local_interfaces = 127.0.0.1
        daemon_smtp_ports = {place.port}
        host_lookup =
        message_size_limit = 1000000
        allow_domain_literals = true
        smtp_accept_max = 0
        smtp_max_synprot_errors = 100
        smtp_max_unknown_commands = 100
        queue_only = true
        acl_smtp_rcpt = check_rcpt
        acl_smtp_data = accept
        acl_smtp_vrfy = accept
        pipelining_advertise_hosts = *
        chunking_advertise_hosts = *
        smtputf8_advertise_hosts = *
        tls_advertise_hosts = *
        tls_certificate = {place.pem}
        tls_privatekey = {place.pem}
        begin acl
        check_rcpt:
          deny recipients = no@example.com
          accept
        begin routers
        nowhere:
          driver = redirect
          data = :blackhole:
        begin transports
        begin retry
        begin authenticators
        plain:
          driver = plaintext
          public_name = PLAIN
          server_prompts = :
          server_condition = ${{if and {{{{eq{{$auth2}}{{jo}}}}{{eq{{$auth3}}{{secret}}}}}}}}
          server_set_id = $auth2
        login:
          driver = plaintext
          public_name = LOGIN
          server_prompts = Username:: : Password::
          server_condition = ${{if and {{{{eq{{$auth1}}{{jo}}}}{{eq{{$auth2}}{{secret}}}}}}}}
          server_set_id = $auth1
        """,
    )
    return Started([program, "-C", str(configuration), "-bdf"], {}, debian.version("exim4-daemon-light"))


def _opensmtpd(place: Place) -> Started:
    root = debian.unpack("opensmtpd")
    environment = debian.with_users(place.folder, "opensmtpd", "opensmtpq")
    # Without TLS: its keeper of keys finds none in this namespace.
    configuration = place.write(
        "smtpd.conf",
        f"""
        smtp max-message-size 1000000
        listen on 127.0.0.1 port {place.port} hostname mx.example.com
        action "nowhere" relay host smtp://127.0.0.1:9
        match from any for rcpt-to "no@example.com" reject
        match from any for any action "nowhere"
        """,
    )
    # Its folders are compiled in. In a mount namespace of its own it has others in their place.
    script = place.write(
        "start",
        f"""
        set -e
        mount -t tmpfs tmpfs /usr/libexec
        cp -r {root}/usr/libexec/opensmtpd /usr/libexec/
        for name in spool lib run; do mkdir {place.folder}/$name; done
        mkdir -p {place.folder}/lib/opensmtpd/empty
        mkdir -m 711 {place.folder}/spool/smtpd
        mount --bind {place.folder}/spool /var/spool
        mount --bind {place.folder}/lib /var/lib
        mount --bind {place.folder}/run /run
        exec env LD_PRELOAD="$PRELOAD" {root}/usr/sbin/smtpd -d -f {configuration}
        """,
    )
    environment["PRELOAD"] = environment.pop("LD_PRELOAD")
    command = [machine.find("unshare"), "--mount", "sh", str(script)]
    return Started(command, environment, debian.version("opensmtpd"))


def _chasquid(place: Place) -> Started:
    root = debian.unpack("chasquid")
    for name in ("fullchain", "privkey"):
        place.write(f"certs/mx.example.com/{name}.pem", place.pem.read_text())
    place.write("domains/example.com/aliases", "bob: postmaster@example.com\n")
    place.write(
        "chasquid.conf",
        f"""
        hostname: "mx.example.com"
        max_data_size_mb: 1
        smtp_address: "127.0.0.1:{place.port}"
        mail_delivery_agent_bin: "/bin/true"
        data_dir: "{place.folder}/data"
        mail_log_path: "<stderr>"
        """,
    )
    (place.folder / "data").mkdir()
    utility = str(root / "usr/bin/chasquid-util")
    for name in ("bob", "cyd", "dan", "postmaster"):
        subprocess.run(
            [utility, f"--configdir={place.folder}", "user-add", f"{name}@example.com", "--password=secret"],
            check=True,
            capture_output=True,
        )
    program = str(root / "usr/bin/chasquid")
    return Started([program, "-config_dir", str(place.folder)], {}, debian.version("chasquid"))


_ALL = ("refuse", "users")

SERVERS: dict[str, FieldServer] = {
    "greensmtp": FieldServer("greensmtp", _greensmtp, _ALL, lmtp=True),
    "postfix": FieldServer("Postfix, by default", _postfix),
    "strict-postfix": FieldServer("Postfix, bare newlines normalized", _strict_postfix),
    "exim": FieldServer("Exim", _exim, _ALL),
    "opensmtpd": FieldServer("OpenSMTPD", _opensmtpd),
    "chasquid": FieldServer("chasquid", _chasquid),
    "haraka": FieldServer("Haraka", _haraka, _ALL),
    "smtp-server": FieldServer("smtp-server", _smtp_server, _ALL, lmtp=True),
    "dovecot": FieldServer("Dovecot", _dovecot, smtp=False, lmtp=True),
    "aiosmtpd": FieldServer("aiosmtpd", _aiosmtpd, _ALL, lmtp=True),
}
