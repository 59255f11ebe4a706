"""Client libraries deliver over every kind of listener: smtplib, nodemailer, curl, Net::SMTP, PHPMailer.

A library is run once, and given many jobs: for each kind of listener that it can use, a message without AUTH and one
with each mechanism. The scripts in ``libraries`` do the jobs of a language each.
"""

from __future__ import annotations

import json
import os
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Reject, SMTPServer
from greensmtp.middleware import Auth
from tests.programs import find, missing, need_capabilities

if TYPE_CHECKING:
    from tests.conftest import Certificate

#: One set of listeners for all.
pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.xdist_group("client libraries")]

Job = dict[str, Any]
#: What came of a job: ``accepted`` and ``refused`` recipients, and the text of an ``error``.
Result = dict[str, Any]
Library = Callable[[list[Job], Path], list[Result]]

HERE = Path(__file__).parent / "libraries"
ROOT = HERE.parent.parent.parent
ANN, BOB, NO = "ann@example.com", "bob@example.org", "no@example.org"
BODY = ".\n..\n.one dot, and one at the end.\nFrom here on: ✓\n".replace("\n", "\r\n")
MESSAGE = (
    "From: Ann <ann@example.com>\r\nSubject: Dots\r\nMIME-Version: 1.0\r\n"
    f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{BODY}"
)

#: Kind of listener -> arguments of SMTPServer.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "starttls": {},
    "tls": {"implicit_tls": True},
    "unix": {},
    "lmtp": {"lmtp": True},
    "lmtp+unix": {"lmtp": True},
}


class Listener:
    """A server of one kind that records what its clients do."""

    def __init__(self, kind: str, folder: Path, certificate: Certificate) -> None:
        self.kind = kind
        self.path = str(folder / kind) if kind.endswith("unix") else None
        self.server = SMTPServer(
            self.path or ("127.0.0.1", 0),
            hostname="mx.example.com",
            certfile=certificate.certfile,
            keyfile=certificate.keyfile,
            middleware=[Auth({"jo": "se,=same"}, allow_plaintext=True)],
            **KINDS[kind],
        )
        self.certificate = certificate
        self.commands: list[str] = []
        #: Of each message: the mechanism or None, whether TLS was up, the body.
        self.mail: list[tuple[str | None, bool, bytes]] = []
        self.server.on("command", self._command)
        self.server.on("to", self._to)
        self.server.on("message", self._message)

    def _command(self, session: Any, command: Any, ack: Any) -> None:
        self.commands.append(str(command))

    def _to(self, session: Any, address: Any, ack: Any) -> None:
        if address == NO:
            raise Reject(550, "5.1.1 No such user")
        ack.accept()

    def _message(self, session: Any, stream: Any, ack: Any) -> None:
        ack.accept()
        mechanism = None if session.identity is None else session.identity.mechanism
        self.mail.append((mechanism, bool(session.tls), stream.read()))

    def job(self, **more: Any) -> Job:
        """Return a job: a message to this listener."""
        tls = {"starttls": "starttls", "tls": "implicit"}.get(self.kind)
        job: Job = {
            "host": None if self.path else "127.0.0.1",
            "port": None if self.path else self.server.address[1],
            "path": self.path,
            "lmtp": self.server.lmtp,
            "tls": tls,
            "authority": str(self.certificate.authority) if tls else None,
            "user": None,
            "dsn": None,
            "chunks": False,
            "sender": ANN,
            "recipients": [BOB],
            "message": MESSAGE,
        }
        return job | more

    def jobs(self, mechanisms: Iterable[str]) -> list[Job]:
        """Return a job without AUTH, and one with each mechanism."""
        return [self.job(), *(self.job(**login(mechanism)) for mechanism in mechanisms)]


def login(mechanism: str, password: str = "se,=same") -> Job:
    """Return the part of a job that is about AUTH."""
    return {"user": "jo", "password": password, "mechanism": mechanism}


@pytest.fixture(scope="module")
def all_listeners(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[dict[str, Listener]]:
    with ExitStack() as stack:
        listeners = {kind: Listener(kind, tmp_path_factory.mktemp("socket"), certificate) for kind in KINDS}
        for each in listeners.values():
            stack.enter_context(each.server.in_thread())
        yield listeners


@pytest.fixture
def listeners(all_listeners: dict[str, Listener]) -> dict[str, Listener]:
    """Return a listener of each kind, without what other tests left in it."""
    for each in all_listeners.values():
        each.commands.clear()
        each.mail.clear()
    return all_listeners


# The libraries


def run(
    command: Sequence[str | Path], given: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program without the user's settings."""
    return subprocess.run(
        command,
        check=False,
        input=given,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        timeout=40,
    )


def run_script(command: Sequence[str | Path], jobs: list[Job], folder: Path, **environment: str) -> list[Result]:
    """Run one of the scripts in ``libraries``."""
    ran = run(command, json.dumps(jobs), folder, **environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    results: list[Result] = json.loads(ran.stdout)
    return results


#: Another Python runs it, since pytest does not find the folder of the benchmarks.
MODULES = """
import sys
from pathlib import Path
from benchmarks.environments import node_modules
print(node_modules("nodemailer", Path(sys.argv[1])))
"""


@cache
def node_modules() -> str:
    """Return the folder of node's modules; they are installed on first use, under ``.bench/``."""
    find("npm")
    made = subprocess.run(
        [sys.executable, "-c", MODULES, HERE / "npm"], check=False, cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    if made.returncode:
        missing(f"npm cannot install nodemailer: {made.stderr[-2000:]}")
    return made.stdout.strip()


def nodemailer(jobs: list[Job], folder: Path) -> list[Result]:
    return run_script([find("node"), HERE / "nodemailer.js"], jobs, folder, NODE_PATH=node_modules())


def net_smtp(jobs: list[Job], folder: Path) -> list[Result]:
    perl = find("perl")
    if (lacks := run([perl, "-MNet::SMTP", "-MIO::Socket::SSL", "-MAuthen::SASL", "-e1"], "", folder)).returncode:
        missing(lacks.stderr)
    return run_script([perl, HERE / "net_smtp.pl"], jobs, folder)


def phpmailer(jobs: list[Job], folder: Path) -> list[Result]:
    php = find("php")
    if not Path("/usr/share/php/libphp-phpmailer").exists():
        missing("PHPMailer (libphp-phpmailer) is not installed")
    return run_script([php, HERE / "phpmailer.php"], jobs, folder)


def curl(jobs: list[Job], folder: Path) -> list[Result]:
    return [_curl(job, folder) for job in jobs]


def _curl(job: Job, folder: Path) -> Result:
    url = f"{'smtps' if job['tls'] == 'implicit' else 'smtp'}://{job['host'] or 'localhost'}:{job['port'] or 25}"
    command = ["curl", "-sS", f"{url}/client.example", "--mail-from", job["sender"], "-T", "-"]
    command += [word for recipient in job["recipients"] for word in ("--mail-rcpt", recipient)]
    command += ["--mail-rcpt-allowfails"]
    command += ["--unix-socket", job["path"]] if job["path"] else []
    command += ["--cacert", job["authority"], "--ssl-reqd"] if job["tls"] else []
    if job["user"]:
        command += ["--user", f"{job['user']}:{job['password']}", "--login-options", f"AUTH={job['mechanism']}"]
    need_capabilities("curl", command)
    ran = run([find("curl"), *command[1:]], job["message"], folder)
    # It does not tell which recipients were refused.
    return {"accepted": [] if ran.returncode else job["recipients"], "refused": [], "error": ran.stderr}


def python_smtplib(jobs: list[Job], folder: Path) -> list[Result]:
    # It blocks, and this thread's hub may have something to do.
    with ThreadPoolExecutor(1) as pool:
        return list(pool.map(_smtplib, jobs))


def _smtplib(job: Job) -> Result:
    context = ssl.create_default_context(cafile=job["authority"])
    client: smtplib.SMTP
    if job["lmtp"]:
        client = smtplib.LMTP(job["path"] or job["host"], job["port"] or 0, "client.example")
    elif job["tls"] == "implicit":
        client = smtplib.SMTP_SSL(job["host"], job["port"], "client.example", timeout=20, context=context)
    else:
        client = smtplib.SMTP(job["host"], job["port"], "client.example", timeout=20)
    try:
        with client:
            if job["tls"] == "starttls":
                client.starttls(context=context)
            if job["user"]:
                client.ehlo_or_helo_if_needed()
                client.user, client.password = job["user"], job["password"]
                name = job["mechanism"].lower().replace("-", "_")
                client.auth(job["mechanism"], getattr(client, f"auth_{name}"))
            options = [] if job["dsn"] is None else [f"RET={job['dsn']['ret']}", f"ENVID={job['dsn']['envid']}"]
            to_options = [] if job["dsn"] is None else [f"NOTIFY={','.join(job['dsn']['notify'])}"]
            refused = client.sendmail(
                job["sender"], job["recipients"], job["message"].encode(), ["BODY=8BITMIME", *options], to_options
            )
    except smtplib.SMTPException as error:
        return {"accepted": [], "refused": [], "error": str(error)}
    return {
        "accepted": [name for name in job["recipients"] if name not in refused],
        "refused": list(refused),
        "error": "",
    }


#: Library -> the kinds of listeners that it can use.
LIBRARIES: dict[Library, list[str]] = {
    python_smtplib: ["plain", "starttls", "tls", "lmtp", "lmtp+unix"],
    nodemailer: ["plain", "starttls", "tls", "unix", "lmtp", "lmtp+unix"],
    curl: ["plain", "starttls", "tls", "unix"],
    net_smtp: ["plain", "starttls", "tls"],
    phpmailer: ["plain", "starttls", "tls"],
}
#: (Net::SMTP needs yet another package for CRAM-MD5.)
MECHANISMS = dict.fromkeys(LIBRARIES, ("PLAIN", "LOGIN", "CRAM-MD5")) | {net_smtp: ("PLAIN", "LOGIN")}
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)


@every_library
def test_a_library_delivers_over_each_kind_of_listener(
    library: Library, listeners: dict[str, Listener], tmp_path: Path
) -> None:
    used = [listeners[kind] for kind in LIBRARIES[library]]
    results = library([job for listener in used for job in listener.jobs(MECHANISMS[library])], tmp_path)
    assert [result["error"] for result in results] == [""] * len(results)
    assert [result["accepted"] for result in results] == [[BOB]] * len(results)
    body = BODY + ("\r\n" if library is phpmailer else "")  # it adds an empty line
    for listener in used:
        secure = listener.kind in ("starttls", "tls")
        assert [mail[:2] for mail in listener.mail] == [(name, secure) for name in (None, *MECHANISMS[library])]
        assert {content.partition(b"\r\n\r\n")[2] for _, _, content in listener.mail} == {body.encode()}


@every_library
def test_a_library_learns_of_a_refused_recipient_and_a_wrong_password(
    library: Library, listeners: dict[str, Listener], tmp_path: Path
) -> None:
    listener = listeners["plain"]
    jobs = [listener.job(recipients=[BOB, NO]), listener.job(**login("PLAIN", "wrong"))]
    partly, denied = library(jobs, tmp_path)
    if library is curl:
        assert partly["accepted"]
    else:
        assert (partly["accepted"], partly["refused"]) == ([BOB], [NO])
    assert len(listener.mail) == 1
    assert denied["error"]
    assert denied["accepted"] == []
    assert "535" in denied["error"] or library in (curl, phpmailer)


def test_nodemailer_sends_to_addresses_beyond_ascii(listeners: dict[str, Listener], tmp_path: Path) -> None:
    listener = listeners["plain"]
    job = listener.job(sender="josé@example.com", recipients=["дана@example.org"])
    (result,) = nodemailer([job], tmp_path)
    assert result["error"] == ""
    (mail,) = (command for command in listener.commands if command.startswith("MAIL"))
    assert mail.startswith("MAIL FROM:<josé@example.com> SMTPUTF8")
    assert "RCPT TO:<дана@example.org>" in listener.commands


def test_net_smtp_sends_binary_in_chunks(listeners: dict[str, Listener], tmp_path: Path) -> None:
    listener = listeners["plain"]
    message = MESSAGE + "\0, a bare\nnewline, and no line end"
    (result,) = net_smtp([listener.job(chunks=True, message=message)], tmp_path)
    assert result["error"] == ""
    size = len(message.encode())
    assert f"MAIL FROM:<{ANN}> SIZE={size} BODY=BINARYMIME" in listener.commands
    assert [command for command in listener.commands if command.startswith("BDAT")] == [
        f"BDAT {size // 2}",
        f"BDAT {size - size // 2} LAST",
    ]
    assert listener.mail[0][2] == message.encode()
