"""Run every code block of docs/ and README.md.

A page's Python blocks are run in order, in one namespace and one empty folder. Three rules make that simple:

- A block that begins with a file's name, as a comment or in its docstring, is saved under it first.
- A block that defines ``test_...`` functions is a test file: pytest runs it in a process of its own.
- ``greensmtp.run(...)`` starts the servers in a thread and returns; a port that a page names becomes a free one.

Every TOML block is checked with ``greensmtp check``, unless it is part of a ``pyproject.toml``. What a page needs
before it is run stands in SETUP; what must hold afterwards, beyond not raising, in the tests below.
"""

from __future__ import annotations

import ast
import base64
import logging
import re
import sqlite3
import sys
import tomllib
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bcrypt
import pytest
from click.testing import CliRunner
from django.conf import settings  # type: ignore[import-untyped]
from django.core.mail import get_connection, send_mail  # type: ignore[import-untyped]
from django.test.utils import override_settings  # type: ignore[import-untyped]
from gevent.pywsgi import WSGIServer

import greensmtp
from greensmtp import Mail, SMTPServer, connect, signals
from greensmtp.cli import cli
from greensmtp.middleware import Auth
from greensmtp.plugins.discovery import GROUPS
from greensmtp.protocol.sasl.exchange import ScramKeys
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked
from tests.helpers import free_port

if TYPE_CHECKING:
    from tests.conftest import Certificate

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md") if not {"generated", "_build"} & {*path.parts}]
    + ["README.md"]
)
PYTEST = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
#: Ports that pages name, each of which becomes a free one.
PORTS = re.compile(r"\b(?:9025|9026|9100|8025)\b")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A Python block, and the name of the file that it is, or ``""``."""

    source: str
    file: str

    @classmethod
    def of(cls, source: str) -> Block:
        found = re.match(r'(?:# |""")(\w+\.py)\b', source)
        return cls(source, found[1] if found else "")

    @property
    def is_test(self) -> bool:
        nodes = ast.parse(self.source).body
        return any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)


class Ran:
    """A page whose blocks have been run."""

    def __init__(self, page: str, names: dict[str, Any], folder: Path) -> None:
        self.page = page
        self.names = names
        self.folder = folder
        #: A port that the page names -> the free one that took its place.
        self.ports: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    def run(self) -> None:
        tests: list[Block] = []
        for source in blocks(self.page, "python"):
            block = Block.of(self._with_free_ports(source))
            if block.file:
                (self.folder / block.file).write_text(block.source, "utf-8")
            if block.is_test:
                tests.append(block)
            elif block.file != "conftest.py":
                exec(compile(block.source, self.page, "exec", dont_inherit=True), self.names)
        names = [block.file or f"test_block_{number}.py" for number, block in enumerate(tests)]
        for name, block in zip(names, tests, strict=True):
            (self.folder / name).write_text(block.source, "utf-8")
        if not tests:
            return
        conftest = self.folder / "conftest.py"
        if not conftest.exists():
            conftest.write_text('pytest_plugins = ["greensmtp.testing.fixtures"]\n')
        program = forked.python(PYTEST, "-q", "-p", "no:cacheprovider", *names)
        ran = forked.run(program, how=forked.UNPATCHED, cwd=self.folder, timeout=50)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def _with_free_ports(self, source: str) -> str:
        def replace(found: re.Match[str]) -> str:
            if found[0] not in self.ports:
                self.ports[found[0]] = str(free_port())
            return self.ports[found[0]]

        return PORTS.sub(replace, source)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> Iterator[Path]:
    """The current folder, with the certificates that pages name; its modules and log handlers are forgotten later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("cert.pem", "mx.example.com.pem"):
        (tmp_path / name).write_bytes(certificate.certfile.read_bytes())
    for name in ("key.pem", "mx.example.com.key"):
        (tmp_path / name).write_bytes(certificate.keyfile.read_bytes())
    yield tmp_path
    logger = logging.getLogger("greensmtp.session")  # Logging(format="text") has set it up
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    for name, module in [*sys.modules.items()]:
        if tmp_path in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Ran]]:
    """Run a page's blocks; its servers are stopped, and handlers that it has connected are disconnected, afterwards."""
    connected = {name: dict(signals.shared.named(name).receivers) for name in signals.FIELDS}
    with ExitStack() as servers:

        def run(*given: Any, **_: Any) -> None:
            for server in given:
                if isinstance(server, SMTPServer):
                    servers.enter_context(server.in_thread())

        monkeypatch.setattr(greensmtp, "run", run)

        def run_page(name: str) -> Ran:
            ran = Ran(name, {"__name__": "page", **SETUP.get(name, _nothing)(folder)}, folder)
            ran.run()
            return ran

        yield run_page
    for name, receivers in connected.items():
        signal = signals.shared.named(name)
        for key, held in [*signal.receivers.items()]:
            receiver: Any = held() if isinstance(held, weakref.ref) else held
            if key not in receivers and receiver is not None:
                signal.disconnect(receiver)


# What pages need


def _nothing(folder: Path) -> dict[str, Any]:
    return {}


class _Task:
    """Stand in for a Celery task."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def delay(self, *arguments: Any) -> None:
        self.calls.append(arguments)


def _frameworks(folder: Path) -> dict[str, Any]:
    """Stand in for a Celery task, and for the part of Django that the page uses."""
    base = folder / "django" / "core" / "management" / "base.py"
    base.parent.mkdir(parents=True)
    base.write_text("class BaseCommand: pass\n")
    for package in (folder / "django", folder / "django" / "core", folder / "django" / "core" / "management"):
        (package / "__init__.py").touch()
    (folder / "django" / "db.py").write_text("def close_old_connections(): pass\n")
    return {"process": _Task()}


def _auth(folder: Path) -> dict[str, Any]:
    users = f"jo:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n"
    (folder / "users").write_text(users)
    return {"asleep": ["jo"].__contains__, "ldap_says_yes": lambda name, password: (name, password) == ("jo", "secret")}


def _limits(folder: Path) -> dict[str, Any]:
    (folder / "drop.txt").write_text("192.0.2.0/24\n")
    return {}


#: page -> what it needs: writes files into the folder, and returns names.
SETUP: dict[str, Callable[[Path], dict[str, Any]]] = {
    "docs/howto/frameworks.md": _frameworks,
    "docs/reference/middleware/access-list.md": _limits,
    "docs/reference/middleware/auth.md": _auth,
    "docs/reference/middleware/index.md": _limits,
}

#: Pages with tests of their own below, which run them.
CHECKED = {
    "README.md",
    "docs/howto/extension.md",
    "docs/howto/frameworks.md",
    "docs/howto/modify.md",
    "docs/howto/plugins.md",
    "docs/howto/postfix.md",
    "docs/howto/relay.md",
    "docs/howto/send.md",
    "docs/howto/submission.md",
    "docs/reference/client.md",
    "docs/reference/delivery.md",
    "docs/reference/middleware/auth.md",
    "docs/reference/middleware/index.md",
    "docs/reference/server.md",
    "docs/reference/signals.md",
    "docs/topics/logging.md",
    "docs/topics/middleware.md",
    "docs/tutorial/1-receive.md",
    "docs/tutorial/2-decide.md",
    "docs/tutorial/3-deliver.md",
}


@pytest.mark.parametrize("name", [name for name in PAGES if name not in CHECKED and blocks(name, "python")])
def test_every_block_runs(page: Callable[[str], Ran], name: str) -> None:
    page(name)


# What pages say, beyond not raising


def test_readme(page: Callable[[str], Ran], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server = page("README.md")["server"]
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "RCPT TO:<b@localhost>", "DATA")
        peer.expect("250", "550 5.7.1 relaying denied", "250", "354")
        peer.line("Subject: hi", "", "..dot", ".", "QUIT")
        peer.expect("250", "221")
    printed = capfdbinary.readouterr().out
    assert printed.endswith(b"Subject: hi\r\n\r\n.dot\r\n")
    assert b"250 2.0.0 Ok: queued as " in printed


def test_replacing_help(page: Callable[[str], Ran]) -> None:
    with dial(page("docs/reference/signals.md")["server"]) as peer:
        peer.hello()
        peer.line("HELP", "NOOP")
        peer.expect("214 2.0.0 See https://example.com/mail", "250")


def test_lmtp_replies_for_each_recipient(page: Callable[[str], Ran]) -> None:
    with dial(page("docs/reference/server.md")["lmtp_server"]) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["jo@example.com", "ann@example.com"])
        peer.line("DATA", "hi", ".")
        peer.expect("354", "452 4.2.2 mailbox full", "250")


def test_a_pipeline_and_a_pool(page: Callable[[str], Ran], capsys: pytest.CaptureFixture[str]) -> None:
    page("docs/reference/client.md")
    printed = capsys.readouterr().out
    assert len(re.findall(r"^250 2\.0\.0 Ok: queued as \S+$", printed, re.M)) == 1
    assert printed.count("Reply(") == 3
    assert re.search(r"250 2\.0\.0 Ok: queued as \S+ {}\n\Z", printed)


def test_logging_and_metrics(page: Callable[[str], Ran]) -> None:
    server = page("docs/topics/logging.md")["server"]
    assert re.search(r"1\. Logging.*\n2\. Metrics", str(server.stack))
    with server, dial(server) as peer:
        peer.hello()


def test_the_stack_of_limits_refuses_as_its_table_says(page: Callable[[str], Ran]) -> None:
    server = page("docs/reference/middleware/index.md")["server"]
    with dial(server, source=("192.0.2.1", 1)) as denied:
        denied.expect("554 5.7.1 ")
        denied.expect_end()
    with dial(server, source=("198.51.100.1", 1)) as early:
        early.line("EHLO client.example")
        early.expect("554 5.5.1 ")
        early.expect_end()
    peers = [dial(server, source=("198.51.100.2", number)) for number in range(21)]
    peers[-1].expect("421 4.7.0 ")
    for peer in peers:
        peer.close()


def test_middleware(page: Callable[[str], Ran], capsys: pytest.CaptureFixture[str], smtp_server: MakeServer) -> None:
    names = page("docs/topics/middleware.md")
    assert re.fullmatch(
        r"1\. Logging\S* +every command\n"
        r"2\. when outside\('10\.0\.0\.0/8', 'unix'\) +every command\n"
        r"   2\.1\. edge +every command\n"
        r"      2\.1\.1\. Stopwatch\(\) +ACCEPT, DISCONNECT\n"
        r"      2\.1\.2\. \S*no_verify +every command\n",
        re.sub(r"greensmtp\.middleware\.\S*(?=Logging)", "", capsys.readouterr().out),
    )
    with dial(names["server"]) as peer:
        peer.hello()
        peer.line("VRFY jo", "NOOP")
        peer.expect("502 5.5.1 VRFY is disabled", "250")
    with dial(names["composed"], source=("10.0.0.1", 4711)) as peer:
        peer.hello()
        peer.line("VRFY jo")
        peer.expect("252")
    told: list[str] = []
    with dial(smtp_server(start=False, middleware=[names["Stopwatch"](told.append)]), source=("192.0.2.1", 1)) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
        peer.let_it_read()
    assert re.fullmatch(r"192\.0\.2\.1: \d\.\d s", told[0])
    trusted, in_the_clear = names["authenticated"] | names["inside"]("192.0.2.0/24"), ~names["over_tls"]
    asked: list[tuple[bool, bool]] = []

    def ask(session: Any, ack: Any) -> None:
        asked.append((trusted(session), in_the_clear(session)))
        ack.accept()

    server = smtp_server(start=False)
    server.on("connect", ask)
    for source in ("192.0.2.1", "198.51.100.1"):
        with dial(server, source=(source, 4711)) as peer:
            peer.expect("220")
    assert asked == [(True, True), (False, True)]
    with dial(smtp_server(start=False, middleware=[names["remember_sender"]])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "MAIL FROM:<b@example.org>")
        peer.expect("250", "503")
    assert re.fullmatch(r"\S+: mail from a@example\.org\n", capsys.readouterr().out)


def test_the_extension(page: Callable[[str], Ran]) -> None:
    names = page("docs/howto/extension.md")
    project, config = map(tomllib.loads, blocks(names.page, "toml"))
    assert project["project"]["entry-points"] == {"greensmtp.middleware": {"Once": "once:Once"}}
    (entry,) = config["middleware"]
    assert entry.pop("use") == "once:Once"
    assert repr(names["Once"](**entry)) == "Once(10000)"


def test_plugins(page: Callable[[str], Ran], smtp_server: MakeServer) -> None:
    names = page("docs/howto/plugins.md")
    with dial(names["server"]) as peer:
        peer.expect("220")
        peer.line("EHLO mx.example.com", "EHLO mail.example.com", "EHLO client.example", "MAIL FROM:<a@example.org>")
        peer.expect("550 5.7.1 that is my name", "550 5.7.1 that is my name", "250", "250")
        peer.line("RCPT TO:<ann@example.com>", "RCPT TO:<bob@example.com>")
        peer.expect("550 5.1.1 Only Bob gets mail here", "250")
    project = tomllib.loads(blocks(names.page, "toml")[-1])
    assert project["project"]["entry-points"].keys() == {*GROUPS.values()}


def test_delivery(page: Callable[[str], Ran], capsys: pytest.CaptureFixture[str]) -> None:
    names = page("docs/reference/delivery.md")
    with dial(names["server"]) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: You won the Lottery\r\n\r\n") == "554 5.7.1 No lotteries, please"
        assert peer.deliver(b"\r\nHi\r\n").startswith("250")
    assert capsys.readouterr().out.endswith(" 6 6\n")
    with dial(names["other"]) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: x\r\n").startswith("250 2.0.0 Ok: queued as")
    (stored,) = (names.folder / "maildir" / "new").iterdir()
    assert stored.read_bytes().endswith(
        b"X-Network: outside\r\nAuthentication-Results: mx.example.com; dkim=none\r\nSubject: x\r\n"
    )


def test_auth(page: Callable[[str], Ran], smtp_server: MakeServer) -> None:
    names = page("docs/reference/middleware/auth.md")
    initial = base64.b64encode(b"\0jo\0secret").decode()
    for asleep, expected in ((["jo"], "454 4.7.0 come back in the morning"), ([], "235")):
        names.names["asleep"] = asleep.__contains__
        with dial(names["server"]) as peer:
            peer.hello()
            peer.line("MAIL FROM:<jo@example.com>", "STARTTLS")
            peer.expect("530", "220")
            peer.start_tls()
            peer.line("EHLO client.example", f"AUTH PLAIN {initial}")
            peer.expect("250", expected)
    users = names["Users"]()
    users.verify = names["ldap_says_yes"]
    users.find = {"jo": ScramKeys.derive("secret")}.get
    for auth, mechanism in (
        (Auth(users, allow_plaintext=True), "SCRAM-SHA-256"),
        (Auth(users, allow_plaintext=True), "PLAIN"),
        (Auth(names["check"], allow_plaintext=True), "LOGIN"),
        (names["pooled"], "PLAIN"),
    ):
        server = smtp_server(middleware=[auth])
        for password, code in (("secret", 235), ("wrong", 535)):
            with connect(*server.address, timeout=10) as mail:
                mail.ehlo()
                assert mail.login("jo", password, mechanism=mechanism, allow_plaintext=True).code == code


def test_the_first_part_of_the_tutorial(page: Callable[[str], Ran], capsys: pytest.CaptureFixture[str]) -> None:
    names = page("docs/tutorial/1-receive.md")
    printed = re.sub(r"queued as \S+", "queued as 6447ef957f640-5c1f0a-1", capsys.readouterr().out)
    text = (ROOT / names.page).read_text("utf-8")
    for lines in (printed.splitlines(True)[:2], printed.splitlines(True)[-2:]):
        assert f"```text\n{''.join(lines)}```" in text  # the page shows what is printed
    assert names["tickets"] == [
        {"from": "sender@example.org", "subject": "Help", "text": "It is broken.\n", "files": []}
    ]


def test_the_second_part_of_the_tutorial(page: Callable[[str], Ran]) -> None:
    names = page("docs/tutorial/2-decide.md")
    with connect(*names["server"].address, timeout=10) as mail:
        mail.ehlo()
        mail.from_("jo@example.org")
        assert [mail.to("ann@example.com").code, mail.to("support@example.com").code] == [550, 250]


def test_the_third_part_of_the_tutorial(page: Callable[[str], Ran]) -> None:
    names = page("docs/tutorial/3-deliver.md")
    with connect(*names["server"].address, starttls="opportunistic", timeout=10) as mail:
        mail.send(b"Subject: Help\r\n\r\nx\r\n", sender="jo@example.org", recipients=["support@example.com"])
    with closing(sqlite3.connect(names.folder / "desk.db")) as database:
        assert database.execute("SELECT sender, subject, raw FROM tickets").fetchall() == [
            ("jo@example.org", "Help", b"Subject: Help\r\n\r\nx\r\n")
        ]


def test_sending_from_frameworks(page: Callable[[str], Ran], smtp_server: MakeServer) -> None:
    names = page("docs/howto/send.md")
    subjects: list[str] = []
    server = smtp_server(listener=("127.0.0.1", int(names.ports["9025"])))
    server.on_mail(lambda mail: subjects.append(str(mail.headers["Subject"])))
    assert names["app"].test_client().post("/orders").status_code == 204
    names["welcome"]("jo@example.com")
    if not settings.configured:
        settings.configure()
    with override_settings(**{name: value for name, value in names.names.items() if name.isupper()}):
        assert send_mail("Django", "x", "shop@example.com", ["jo@example.com"]) == 1
        django_pool = get_connection()._pool
    assert subjects == ["Your order", "Welcome", "Django"]
    for pool in (names["mail"].pool, names["pool"], django_pool):
        pool.close()


def test_modifying(page: Callable[[str], Ran]) -> None:
    names = page("docs/howto/modify.md")
    with dial(names["server"]) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: x\r\n\r\n", to=["jo+news@example.com"]).startswith("250")
    (stored,) = (names.folder / "maildir" / "new").iterdir()
    assert b"\r\nX-Received-Over: plain text\r\nSubject: x\r\n" in stored.read_bytes()
    assert b"Envelope-To: jo@example.com\r\n" in stored.read_bytes().replace(b"<", b"").replace(b">", b"")


def test_a_webhook_and_its_application(page: Callable[[str], Ran]) -> None:
    names = page("docs/howto/webhook.md")
    application = WSGIServer(("127.0.0.1", int(names.ports["8025"])), names["app"], log=None)
    application.start()
    with closing(application), dial(names["server"]) as peer:
        peer.hello()
        assert peer.deliver("x\r\n", to=["support@example.com"]).startswith("250")
        assert peer.deliver("x\r\n", to=["jo@example.com"]) == "550 5.7.1 no such mailbox"
    names["server"].stop(timeout=1)


def test_relaying_in_the_session(page: Callable[[str], Ran], smtp_server: MakeServer) -> None:
    names = page("docs/howto/relay.md")
    got: list[bytes] = []
    next_hop = smtp_server(listener=("127.0.0.1", int(names.ports["9026"])), start=False)
    next_hop.on("to", lambda session, address, ack: ack.reject(550, "5.1.1 no jo") if "jo" in address else ack.accept())

    @next_hop.on_mail
    def take(mail: Mail) -> None:
        with mail.open() as file:
            got.append(file.read())

    relay = names["relay"]
    with dial(relay) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("451 4.4.1 The next hop does not answer")
    with next_hop:
        with dial(relay) as peer:
            peer.hello()
            peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<jo@example.com>", "RSET")
            peer.expect("250", "550 5.1.1 no jo", "250")
            assert peer.deliver(b"\r\n..hi\r\n", to=["b@example.com"]).startswith("250 2.0.0 Ok: queued as ")
        with dial(relay, source=("192.0.2.1", 4711)) as peer:
            peer.hello()
            peer.line("MAIL FROM:<a@example.org>")
            peer.expect("530 5.7.0")
        relay.stop(timeout=1)
    assert [body.partition(b"\r\n\r\n")[2] for body in got] == [b"..hi\r\n"]


def test_receiving_mail_in_django(page: Callable[[str], Ran]) -> None:
    names = page("docs/howto/frameworks.md")
    saved: list[Any] = []
    names.names["save"] = lambda *given: saved.append((*given, sys._getframe(1).f_code.co_name))
    names["Command"]().handle()
    with connect("127.0.0.1", int(names.ports["9026"]), timeout=10) as mail:
        mail.send(b"Subject: Help\r\n\r\nx\r\n", sender="jo@example.org", recipients=["support@example.com"])
    ((sender, recipients, message, caller),) = saved
    assert (sender, recipients, message["Subject"]) == ("jo@example.org", ("support@example.com",), "Help")
    assert caller != "store"  # the thread pool: a greenlet may not use another one's database connection


def test_submission(page: Callable[[str], Ran]) -> None:
    with dial(page("docs/howto/submission.md")["submission"]) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.com>", "STARTTLS")
        peer.expect("530", "220")
        peer.start_tls()
        peer.line(
            "EHLO client.example",
            f"AUTH PLAIN {base64.b64encode(bytes([0]) + b'jo' + bytes([0]) + b'secret').decode()}",
        )
        peer.expect("250", "235")
        peer.line("MAIL FROM:<ann@example.com>", "MAIL FROM:<jo@example.com>")
        peer.expect("550 5.7.1 jo sends as jo@example.com", "250")


def test_behind_postfix(page: Callable[[str], Ran]) -> None:
    with dial(page("docs/howto/postfix.md")["server"]) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["support@example.com", "ann@example.com"])
        peer.line("DATA", "Subject: x", "", ".")
        peer.expect("354", "250", "550 5.1.1 No such mailbox")


# TOML


CONFIGS = [(page, number) for page in PAGES for number in range(len(blocks(page, "toml")))]


@pytest.mark.subprocess
@pytest.mark.parametrize(("name", "number"), CONFIGS)
def test_configurations_are_right(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    text = blocks(name, "toml")[number]
    if text.startswith("[project]"):
        tomllib.loads(text)
        return
    if "/run/secrets/" in text:  # two ways to give any text
        (folder / "mail").write_text("secret\n")
        values = [line.partition("#")[0].partition("=")[2] for line in text.replace("/run/secrets/", "").splitlines()]
        text = "".join(f"[[middleware]]\nuse = 'Auth'\n[middleware.backend]\njo = {value}\n" for value in values)
    monkeypatch.setenv("MAIL_PASSWORD", "secret")
    monkeypatch.setenv("OLD_NAME", "old.example.com")
    for variable in ("SRS_SECRET", "HOOK_SECRET", "HOOK_TOKEN"):
        monkeypatch.setenv(variable, "secret")
    for source in blocks("docs/howto/plugins.md", "python") + blocks(name, "python"):
        block = Block.of(source)
        if block.file and not block.is_test:
            (folder / block.file).write_text(block.source)
    (folder / "greensmtp.toml").write_text(text.replace("/var/mail", str(folder)))
    ran = CliRunner().invoke(cli, ["check", "--config", "greensmtp.toml"])
    optional = "optional = true" in text  # which is a warning, when it is not installed
    assert (ran.exit_code, optional or ran.stderr == "") == (0, True), ran.output
    assert "use = " in ran.stdout
    assert '= "secret"' not in ran.stdout
