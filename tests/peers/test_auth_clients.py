"""Authentication by real clients, with each backend, a real Dovecot among them."""

from __future__ import annotations

import shlex
import shutil
import smtplib
import ssl
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import argon2
import bcrypt
import pytest
from gevent import Timeout, get_hub, sleep, socket
from gevent import ssl as gevent_ssl
from gevent.subprocess import Popen

from greensmtp import SMTPServer, connect
from greensmtp.middleware import Auth
from greensmtp.testing import dial
from tests.helpers import covering
from tests.programs import find, need_root

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate

#: One dovecot for all.
pytestmark = [pytest.mark.peer, pytest.mark.xdist_group("auth clients")]

Run = Callable[..., str]

#: jo's has what shells, SASL and base64 stumble over; al's is for smtplib, whose passwords are ASCII.
USERS = {"jo": "se same,=\\ö", "al": "sesame"}
PASSWORD, TOKEN = USERS["jo"], "t0ken-"
ENVELOPE = ("ann@example.com", "bob@example.org")
#: backend -> the mechanisms that it has.
BACKENDS = {
    "mapping": ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2", "OAUTHBEARER"],
    "callable": ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"],
    "bcrypt": ["PLAIN", "LOGIN"],
    "argon2": ["PLAIN", "LOGIN"],
    "dovecot": ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"],
}
CASES = [(backend, mechanism) for backend, mechanisms in BACKENDS.items() for mechanism in mechanisms]


def cases(*names: str) -> list[tuple[str, str]]:
    """Return the cases with these mechanisms."""
    return [(backend, mechanism) for backend, mechanism in CASES if mechanism in names]


def with_tls(cases: list[tuple[str, str]]) -> list[tuple[str, str, bool]]:
    """Return each case in the clear and over TLS."""
    return [(*case, tls) for case in cases for tls in (False, True)]


# Dovecot


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Path]:
    """Run Dovecot as an authentication service; yield the path of its socket."""
    program = find("dovecot")
    need_root("dovecot")
    base = Path(tempfile.mkdtemp(prefix="greensmtp-"))  # pytest's own are closed to other users
    base.chmod(0o755)
    try:
        (base / "users").write_text("".join(f"{name}:{{PLAIN}}{password}\n" for name, password in USERS.items()))
        (base / "users").chmod(0o644)
        (base / "dovecot.conf").write_text(
            textwrap.dedent(f"""\
                base_dir = {base}/run
                state_dir = {base}/state
                log_path = {base}/log
                protocols =
                ssl = no
                first_valid_uid = 1
                default_internal_user = dovecot
                auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256
                auth_failure_delay = 0
                passdb {{
                  driver = passwd-file
                  args = {base}/users
                }}
                service auth {{
                  unix_listener {base}/auth.sock {{
                    mode = 0666
                  }}
                }}
                # Without it there is no penalty, which is seconds.
                service anvil {{
                  unix_listener anvil-auth-penalty {{
                    mode = 0
                  }}
                }}
                """)
        )
        process = Popen([program, "-F", "-c", str(base / "dovecot.conf")])
        try:
            _wait_for(base / "auth.sock", base / "log")
            yield base / "auth.sock"
        finally:
            process.terminate()
            process.wait(20)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _wait_for(path: Path, log: Path) -> None:
    with Timeout(20, AssertionError(f"nothing listens at {path}: {log.read_text() if log.exists() else ''}")):
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                    return
                except OSError:
                    sleep(0.02)  # another process's readiness has no event to wait for


# The server


class ConfiguredServer:
    """A server with STARTTLS that records identities and mail."""

    def __init__(self, auth: Auth, certificate: Certificate) -> None:
        self.server = SMTPServer(
            ("127.0.0.1", 0),
            hostname="mx.example.com",
            middleware=[auth],
            certfile=certificate.certfile,
            keyfile=certificate.keyfile,
        )
        self.known: list[tuple[str, str]] = []
        self.mail: list[bytes] = []
        self.server.on("from", self._from)
        self.server.on("message", self._message)

    def _from(self, session: Any, address: Any, ack: Any) -> None:
        self.known.append((str(session.identity), session.identity.mechanism))
        ack.accept()

    def _message(self, session: Any, stream: Any, ack: Any) -> None:
        ack.accept()
        self.mail.append(stream.read())

    @property
    def port(self) -> int:
        return int(self.server.address[1])


def check(credentials: Any) -> bool:
    return bool(USERS.get(credentials.username) == credentials.password)


def check_token(credentials: Any) -> Any:
    return credentials.username in ("jo", "") and credentials.token == TOKEN and "jo"


@pytest.fixture
def serving(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate
) -> Iterator[ConfiguredServer]:
    """Run a server that requires authentication, with the backend of that name."""
    options: dict[str, Any] = {"required": True, "allow_plaintext": True}
    if backend == "dovecot":
        auth = Auth(f"dovecot:{request.getfixturevalue('dovecot')}", **options)
    elif backend in ("bcrypt", "argon2"):
        hasher = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
        hashed: Any = {
            "bcrypt": lambda password: bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode(),
            "argon2": hasher.hash,
        }[backend]
        (tmp_path / "users").write_text("".join(f"{name}:{hashed(USERS[name])}\n" for name in USERS))
        auth = Auth(f"htpasswd:{tmp_path}/users", **options)
    else:
        users: Any = USERS if backend == "mapping" else check
        auth = Auth(users, check_token=check_token, **options)
    serving = ConfiguredServer(auth, certificate)
    with serving.server.in_thread():
        yield serving


# The clients


@pytest.mark.parametrize(("backend", "mechanism", "tls"), covering(with_tls(cases("PLAIN", "LOGIN", "CRAM-MD5"))))
def test_swaks(serving: ConfiguredServer, run: Run, certificate: Certificate, mechanism: str, tls: bool) -> None:
    options = ["--tls", "--tls-ca-path", str(certificate.authority), "--tls-verify"] if tls else []
    user = ("--auth", mechanism, "--auth-user", "jo", "--auth-password")
    sender, recipient = ENVELOPE
    where = ("--server", f"127.0.0.1:{serving.port}", "--from", sender, "--to", recipient, *options)
    assert "535 5.7.8" in run("swaks", *where, *user, "wrong", status=28)
    assert "235 2.7.0" in run("swaks", *where, *user, PASSWORD)
    assert serving.known == [("jo", mechanism)]


@pytest.mark.parametrize(("backend", "mechanism", "tls"), covering(with_tls(CASES)))
def test_msmtp(serving: ConfiguredServer, run: Run, certificate: Certificate, mechanism: str, tls: bool) -> None:
    sender, recipient = ENVELOPE
    secret = TOKEN if "OAUTH" in mechanism else PASSWORD
    where = ["--host=127.0.0.1", f"--port={serving.port}", f"--from={sender}", "--domain=client.example"]
    where += ["--tls=on", f"--tls-trust-file={certificate.authority}"] if tls else ["--tls=off"]
    user = [f"--auth={mechanism.lower()}", "--user=jo"]
    mail = b"Subject: x\r\n\r\nx\r\n"
    refused = run("msmtp", *where, *user, "--passwordeval=echo wrong", recipient, stdin=mail, status=77)
    assert "535 5.7.8" in refused
    run("msmtp", *where, *user, f"--passwordeval=echo {shlex.quote(secret)}", recipient, stdin=mail)
    assert serving.known == [("jo", mechanism)]
    assert len(serving.mail) == 1


@pytest.mark.parametrize(("backend", "mechanism"), covering(cases("PLAIN", "LOGIN", "CRAM-MD5", "OAUTHBEARER")))
def test_curl(serving: ConfiguredServer, run: Run, certificate: Certificate, mechanism: str) -> None:
    sender, recipient = ENVELOPE
    url = f"smtp://127.0.0.1:{serving.port}/client.example"
    envelope = ("--mail-from", sender, "--mail-rcpt", recipient, "-T", "-", "--ssl-reqd")
    given = ("-sS", url, *envelope, "--cacert", str(certificate.authority), "--login-options", f"AUTH={mechanism}")

    def user(secret: str) -> list[str]:
        return ["--user", "jo:", "--oauth2-bearer", secret] if "OAUTH" in mechanism else ["--user", f"jo:{secret}"]

    run("curl", *given, *user("wrong"), stdin=b"x\r\n", status=67)
    run("curl", *given, *user(TOKEN if "OAUTH" in mechanism else PASSWORD), stdin=b"x\r\n")
    assert serving.known == [("jo", mechanism)]


class Forced(smtplib.SMTP):
    """Uses one mechanism, whichever it prefers."""

    mechanism = ""

    def ehlo(self, name: str = "") -> Any:
        answer = super().ehlo(name)
        if "auth" in self.esmtp_features:
            assert self.mechanism in self.esmtp_features["auth"].split()
            self.esmtp_features["auth"] = self.mechanism
        return answer


@pytest.mark.parametrize(("backend", "mechanism"), covering(cases("PLAIN", "LOGIN", "CRAM-MD5")))
def test_smtplib(serving: ConfiguredServer, certificate: Certificate, mechanism: str) -> None:
    def speak() -> Any:
        with Forced("127.0.0.1", serving.port, "client.example", timeout=20) as client:
            client.mechanism = mechanism
            client.starttls(context=ssl.create_default_context(cafile=str(certificate.authority)))
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("al", "wrong")
            client.login("al", USERS["al"])
            return client.sendmail(ENVELOPE[0], [ENVELOPE[1]], "Subject: x\r\n\r\nx\r\n")

    # It blocks, and this thread's hub may have something to do.
    assert get_hub().threadpool.apply(speak) == {}
    assert serving.known == [("al", mechanism)]


@pytest.mark.parametrize(("backend", "mechanism"), CASES)
def test_our_own_client(serving: ConfiguredServer, certificate: Certificate, mechanism: str) -> None:
    context = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    secret: Any = {"token": TOKEN} if "OAUTH" in mechanism else {"password": PASSWORD}
    wrong: Any = dict.fromkeys(secret, "wrong")
    with connect("127.0.0.1", serving.port, starttls="require", ssl_context=context) as mail:
        mail.begin()
        assert mail.login("jo", mechanism=mechanism, **wrong).code == 535
        assert mail.login("jo", mechanism=mechanism, **secret).code == 235
        mail.send(b"Subject: x\r\n\r\nx\r\n", *ENVELOPE)
    assert serving.known == [("jo", mechanism)]


@pytest.mark.parametrize("backend", ["mapping", "dovecot"])
def test_our_own_client_takes_the_strongest(serving: ConfiguredServer, backend: str) -> None:
    with connect("127.0.0.1", serving.port, starttls="never") as mail:
        mail.ehlo()
        assert mail.login("jo", PASSWORD).code == 235
        mail.from_("a@example.com")
    assert serving.known == [("jo", "SCRAM-SHA-256")]


def test_what_dovecot_offers_in_the_clear(dovecot: Path, smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, middleware=[Auth(f"dovecot:{dovecot}")])) as peer:
        assert peer.hello().endswith("AUTH SCRAM-SHA-256 CRAM-MD5")
