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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp.protocol.option_values import OriginalRecipient
from greensmtp.protocol.options import RcptOptions
from greensmtp.protocol.xtext import encode_xtext
from tests.peers.listeners import NO, PASSWORD, USER, Listener, listening
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
ANN, BOB = "ann@example.com", "bob@example.org"
BODY = ".\n..\n.one dot, and one at the end.\nFrom here on: ✓\n".replace("\n", "\r\n")
MESSAGE = (
    "From: Ann <ann@example.com>\r\nSubject: Dots\r\nMIME-Version: 1.0\r\n"
    f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{BODY}"
)


def make_job(listener: Listener, **more: Any) -> Job:
    """Return a job: a message to this listener."""
    tls = {"starttls": "starttls", "tls": "implicit"}.get(listener.kind)
    job: Job = {
        "host": None if listener.path else "127.0.0.1",
        "port": None if listener.path else listener.port,
        "path": listener.path,
        "lmtp": listener.server.lmtp,
        "tls": tls,
        "authority": str(listener.authority) if tls else None,
        "user": None,
        "dsn": None,
        "chunks": False,
        "require_tls": False,
        "sender": ANN,
        "recipients": [BOB],
        "message": MESSAGE,
    }
    return job | more


def login(mechanism: str, password: str = PASSWORD) -> Job:
    """Return the part of a job that is about AUTH."""
    return {"user": USER, "password": password, "mechanism": mechanism}


@pytest.fixture(scope="module")
def all_listeners(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[dict[str, Listener]]:
    with listening(tmp_path_factory.mktemp("sockets"), certificate) as listeners:
        yield listeners


@pytest.fixture
def listeners(all_listeners: dict[str, Listener]) -> dict[str, Listener]:
    """Return a listener of each kind, without what other tests left in it."""
    for each in all_listeners.values():
        each.clear()
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
            options, to_options = ["BODY=8BITMIME"], []
            if dsn := job["dsn"]:
                options += [f"RET={dsn['ret']}", f"ENVID={encode_xtext(dsn['envid'])}"]
                to_options += [f"NOTIFY={','.join(dsn['notify'])}", f"ORCPT=rfc822;{dsn['recipient']}"]
            refused = client.sendmail(job["sender"], job["recipients"], job["message"].encode(), options, to_options)
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
    logins = [{}, *map(login, MECHANISMS[library])]
    results = library([make_job(listener, **auth) for listener in used for auth in logins], tmp_path)
    assert [result["error"] for result in results] == [""] * len(results)
    assert [result["accepted"] for result in results] == [[BOB]] * len(results)
    body = BODY + ("\r\n" if library is phpmailer else "")  # it adds an empty line
    for listener in used:
        arrived = [listener.take() for _ in logins]
        assert [mail.mechanism for mail in arrived] == [None, *MECHANISMS[library]]
        assert {mail.tls for mail in arrived} == {listener.kind in ("starttls", "tls")}
        assert {mail.body.partition(b"\r\n\r\n")[2] for mail in arrived} == {body.encode()}


@every_library
def test_a_library_learns_of_a_refused_recipient_and_a_wrong_password(
    library: Library, listeners: dict[str, Listener], tmp_path: Path
) -> None:
    listener = listeners["plain"]
    partly, denied = library(
        [make_job(listener, recipients=[BOB, NO]), make_job(listener, **login("PLAIN", "wrong"))], tmp_path
    )
    assert listener.take().recipients == (BOB,)
    if library is curl:
        assert partly["error"] == ""
    else:
        assert (partly["accepted"], partly["refused"]) == ([BOB], [NO])
    assert denied["accepted"] == []
    assert "535" in denied["error"] or (library in (curl, phpmailer) and denied["error"])


def test_nodemailer_sends_to_addresses_beyond_ascii(listeners: dict[str, Listener], tmp_path: Path) -> None:
    listener = listeners["plain"]
    sender, recipient = "josé@example.com", "дана@example.org"
    (result,) = nodemailer([make_job(listener, sender=sender, recipients=[recipient])], tmp_path)
    assert result["error"] == ""
    mail = listener.take()
    assert (mail.sender, mail.recipients) == (sender, (recipient,))
    assert "SMTPUTF8" in mail.sender.parameters


@pytest.mark.parametrize(
    "library", [python_smtplib, nodemailer, net_smtp, phpmailer], ids=lambda library: library.__name__
)
def test_a_library_asks_for_delivery_status_notifications(
    library: Library, listeners: dict[str, Listener], tmp_path: Path
) -> None:
    listener = listeners["plain"]
    dsn = {"ret": "HDRS", "envid": "a=b+c", "notify": ["SUCCESS", "FAILURE"], "recipient": "b@first.example"}
    (result,) = library([make_job(listener, dsn=dsn)], tmp_path)
    assert result["error"] == ""
    mail = listener.take()
    # PHPMailer has NOTIFY only.
    orcpt = None if library is phpmailer else OriginalRecipient("rfc822", "b@first.example")
    assert mail.recipients[0].rcpt_options == RcptOptions(notify=frozenset({"SUCCESS", "FAILURE"}), orcpt=orcpt)
    options = mail.sender.mail_options
    assert (options.ret, options.envid) == ((None, None) if library is phpmailer else ("HDRS", "a=b+c"))


def test_nodemailer_requires_tls_all_the_way(listeners: dict[str, Listener], tmp_path: Path) -> None:
    kinds = ["starttls", "tls", "plain"]
    results = nodemailer([make_job(listeners[kind], require_tls=True) for kind in kinds], tmp_path)
    assert [result["accepted"] for result in results] == [[BOB], [BOB], []]
    assert all(listeners[kind].take().sender.mail_options.require_tls for kind in kinds[:2])


def test_net_smtp_sends_binary_in_chunks(listeners: dict[str, Listener], tmp_path: Path) -> None:
    listener = listeners["plain"]
    message = MESSAGE + "\0, a bare\nnewline, and no line end"
    (result,) = net_smtp([make_job(listener, chunks=True, message=message)], tmp_path)
    assert result["error"] == ""
    mail = listener.take()
    size = len(message.encode())
    assert mail.body == message.encode()
    assert mail.sender.parameters == {"SIZE": str(size), "BODY": "BINARYMIME"}
    chunks = [command for command in listener.commands if command.startswith("BDAT")]
    assert chunks == [f"BDAT {size // 2}", f"BDAT {size - size // 2} LAST"]
