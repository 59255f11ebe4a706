"""Real servers, started by the tests on free loopback ports with folders of their own, and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gevent import Timeout, socket
from gevent import sleep as switch
from gevent.subprocess import PIPE, Popen, check_call

from tests.helpers import free_port
from tests.programs import find, missing, need_root

#: Seconds in which a server must answer.
TIMEOUT = 20.0


def wait_for(address: Any, log: Any = None) -> None:
    """Wait until connections to the address are accepted."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with Timeout(TIMEOUT, AssertionError(f"nothing listens at {address}: {log() if log else ''}")):
        while True:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(address)
                    return
                except OSError:
                    switch(0.02)  # another process's readiness has no event to wait for


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that other users may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="greensmtp-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def postfix(certificate: Any, next_hop: int, sasl: Path) -> Iterator[int]:
    """Postfix, with STARTTLS, SASL (of Dovecot, at that socket), SMTPUTF8, DSN and CHUNKING.

    What it takes goes to a port of ours.
    """
    program = find("postfix")
    need_root("postfix")
    with folder() as base:
        port = free_port()
        for name in ("conf", "queue", "data"):
            (base / name).mkdir()
        shutil.chown(base / "data", "postfix")
        for name in ("certfile", "keyfile"):
            shutil.copy(getattr(certificate, name), base / f"{name}.pem")
        (base / "conf/main.cf").write_text(
            textwrap.dedent(f"""\
                compatibility_level = 3.6
                queue_directory = {base}/queue
                data_directory = {base}/data
                maillog_file = {base}/log
                maillog_file_prefixes = {base}
                myhostname = mx.example.com
                mydestination =
                inet_interfaces = 127.0.0.1
                inet_protocols = ipv4
                mynetworks = 127.0.0.0/8
                alias_maps =
                alias_database =
                smtputf8_enable = yes
                local_recipient_maps =
                default_transport = smtp:[127.0.0.1]:{next_hop}
                relay_transport = smtp:[127.0.0.1]:{next_hop}
                smtpd_recipient_restrictions =
                  check_recipient_access inline:{{no@example.com=REJECT}}, permit_mynetworks, reject
                smtpd_peername_lookup = no
                smtpd_authorized_xclient_hosts = 127.0.0.0/8
                smtpd_authorized_xforward_hosts = 127.0.0.0/8
                smtpd_error_sleep_time = 0
                smtpd_tls_security_level = may
                smtpd_tls_cert_file = {base}/certfile.pem
                smtpd_tls_key_file = {base}/keyfile.pem
                smtpd_sasl_auth_enable = yes
                smtpd_sasl_type = dovecot
                smtpd_sasl_path = {sasl}
                """)
        )
        (base / "conf/master.cf").write_text(
            textwrap.dedent(f"""\
                127.0.0.1:{port} inet n - n - - smtpd
                cleanup  unix n - n - 0 cleanup
                qmgr     unix n - n 300 1 qmgr
                tlsmgr   unix - - n 1000? 1 tlsmgr
                rewrite  unix - - n - - trivial-rewrite
                bounce   unix - - n - 0 bounce
                defer    unix - - n - 0 bounce
                trace    unix - - n - 0 bounce
                proxymap unix - - n - - proxymap
                smtp     unix - - n - - smtp
                error    unix - - n - - error
                discard  unix - - n - - discard
                anvil    unix - - n - 1 anvil
                scache   unix - - n - 1 scache
                postlog  unix-dgram n - n - 1 postlogd
                """)
        )
        command = [program, "-c", str(base / "conf")]
        started = subprocess.run([*command, "start"], check=False, capture_output=True, timeout=TIMEOUT)
        log = base / "log"
        if started.returncode != 0:
            missing(f"postfix does not start: {started.stderr.decode(errors='replace')}")
        try:
            wait_for(("127.0.0.1", port), lambda: (started, log.read_text() if log.exists() else ""))
            yield port
        finally:
            subprocess.run([*command, "stop"], check=False, capture_output=True, timeout=TIMEOUT)


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[Any]:
    """Start a server that prints its port on its first line, and ends when its input does."""
    process: Any = Popen(command, stdin=PIPE, stdout=PIPE, **options)
    out = process.stdout
    try:
        with Timeout(TIMEOUT, AssertionError(f"{command} does not say its port")):
            line = out.readline()
        assert line.strip().isdigit(), line
        yield int(line)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        out.close()


AIOSMTPD = """
import socket
import sys
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import AuthResult

class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("no@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 Ok"
    async def handle_DATA(self, server, session, envelope):
        return "250 2.0.0 %d octets" % len(envelope.content)

def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=data.password == b"secret", handled=False)

class Loopback(Controller):
    def _trigger_server(self):  # it knocks at the port that was asked for, which is 0
        socket.create_connection(self.server.sockets[0].getsockname(), 5).close()

controller = Loopback(Handler(), hostname="127.0.0.1", port=0, enable_SMTPUTF8=True, authenticator=authenticate,
                      auth_require_tls=False)
controller.start()
print(controller.server.sockets[0].getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def aiosmtpd() -> Iterator[int]:
    """Start aiosmtpd, in a Python of its own."""
    with running([sys.executable, "-W", "ignore", "-c", AIOSMTPD]) as port:
        yield port


SMTP_SERVER = """
const { SMTPServer } = require('smtp-server');
const fs = require('fs');
const server = new SMTPServer({
  lmtp: process.argv[1] === 'lmtp',
  key: fs.readFileSync(process.argv[2]), cert: fs.readFileSync(process.argv[3]),
  authMethods: ['PLAIN', 'LOGIN', 'CRAM-MD5', 'XOAUTH2'], authOptional: true, allowInsecureAuth: true,
  onAuth(auth, session, callback) {
    const good = auth.method === 'CRAM-MD5' ? auth.validatePassword('secret')
      : auth.method === 'XOAUTH2' ? auth.accessToken === 'token' : auth.password === 'secret';
    callback(good ? null : new Error('no'), good ? { user: auth.username } : undefined);
  },
  onRcptTo(address, session, callback) {
    const refusal = Object.assign(new Error('no such user'), { responseCode: 550 });
    callback(address.address.startsWith('no@') ? refusal : null);
  },
  onData(stream, session, callback) {
    let size = 0;
    stream.on('data', chunk => { size += chunk.length; });
    stream.on('end', () => callback(null, size + ' octets'));
  },
});
server.on('error', () => {});
server.listen(0, '127.0.0.1', () => console.log(server.server.address().port));
process.stdin.resume().on('end', () => process.exit());
"""


def smtp_server_modules(base: Path) -> Path:
    """Install smtp-server in a folder, and return its node_modules."""
    npm = find("npm")
    try:
        check_call(
            [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "smtp-server@3"],
            cwd=base,
            timeout=45,
        )
    except (subprocess.SubprocessError, OSError) as error:
        missing(f"npm cannot install smtp-server: {error}")
    return base / "node_modules"


@contextmanager
def node_smtp_server(modules: Path, certificate: Any, protocol: str = "smtp") -> Iterator[int]:
    """Start node's smtp-server."""
    command = [find("node"), "-e", SMTP_SERVER, protocol, str(certificate.keyfile), str(certificate.certfile)]
    with running(command, env={**os.environ, "NODE_PATH": str(modules)}) as port:
        yield port


@contextmanager
def dovecot() -> Iterator[Path]:
    """Dovecot, with LMTP at ``lmtp.sock`` and SASL, for postfix, at ``auth.sock``; mail for jo is in ``mail/jo``."""
    program = find("dovecot")
    need_root("dovecot")
    with folder() as base:
        mail = base / "mail"
        mail.mkdir()
        shutil.chown(mail, "mail", "mail")
        (base / "users").write_text("jo:{PLAIN}secret\n")
        (base / "users").chmod(0o644)
        (base / "dovecot.conf").write_text(
            textwrap.dedent(f"""\
                base_dir = {base}/run
                state_dir = {base}/state
                log_path = {base}/log
                protocols = lmtp
                listen = 127.0.0.1
                ssl = no
                mail_location = maildir:{mail}/%n
                mail_uid = mail
                mail_gid = mail
                first_valid_uid = 1
                auth_username_format = %n
                default_internal_user = dovecot
                passdb {{
                  driver = passwd-file
                  args = username_format=%n {base}/users
                }}
                userdb {{
                  driver = static
                  args = uid=mail gid=mail home={mail}/%n
                }}
                auth_failure_delay = 0
                auth_mechanisms = plain login cram-md5 scram-sha-256
                disable_plaintext_auth = no
                service auth {{
                  unix_listener {base}/auth.sock {{
                    mode = 0666
                  }}
                }}
                service anvil {{
                  unix_listener anvil-auth-penalty {{
                    mode = 0
                  }}
                }}
                service lmtp {{
                  unix_listener {base}/lmtp.sock {{
                    mode = 0666
                  }}
                }}
                """)
        )
        log = base / "log"
        process = Popen([program, "-F", "-c", str(base / "dovecot.conf")])
        try:
            wait_for(str(base / "lmtp.sock"), lambda: log.read_text() if log.exists() else "")
            yield base
        finally:
            process.terminate()
            process.wait(TIMEOUT)
