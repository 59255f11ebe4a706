"""The Python and the TOML of docs/ are run as they stand, but for paths and ports, and do what the text says."""

from __future__ import annotations

import ast
import base64
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest

from greensmtp import SMTPClient, SMTPServer, connect, signals
from greensmtp.middleware import Auth
from greensmtp.plugins.discovery import GROUPS
from greensmtp.protocol.sasl.exchange import ScramKeys
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


LIMITS = blocks("limits.md")
MIDDLEWARE = blocks("middleware.md")
PLUGINS = blocks("plugins.md")


def run(page: str, source: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a block has defined."""
    names = {} if names is None else names
    exec(compile(source, page, "exec"), names)
    return names


def test_there_are_as_many_blocks_as_tests_below() -> None:
    assert (len(LIMITS), len(MIDDLEWARE), len(PLUGINS)) == (7, 7, 3)


def test_five_lines_answer_one_verb() -> None:
    assert len(MIDDLEWARE[0].split("\n\n")[1].splitlines()) <= 5
    names = run("middleware.md", MIDDLEWARE[0] + MIDDLEWARE[1])
    with dial(names["server"]) as peer:
        peer.hello()
        peer.line("VRFY jo", "NOOP")
        peer.expect("502 5.5.1 we tell nobody", "250")


def test_what_is_staged_is_called_when_the_client_is_told_250(
    smtp_server: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = smtp_server(start=False, middleware=[run("middleware.md", MIDDLEWARE[2])["remember_sender"]])
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "MAIL FROM:<b@example.org>")
        peer.expect("250", "503")
    assert re.fullmatch(r"\S+: mail from a@example\.org\n", capsys.readouterr().out)


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the first block of docs/limits.md has defined."""
    (tmp_path / "drop.txt").write_text("192.0.2.0/24\n")
    monkeypatch.chdir(tmp_path)
    return run("limits.md", LIMITS[0])


def test_the_stack_of_limits_refuses_as_its_table_says(limits: dict[str, Any]) -> None:
    server = limits["server"]
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


@pytest.mark.parametrize("number", range(1, len(LIMITS)))
def test_each_example_of_limits_can_be_made_and_stacked(
    limits: dict[str, Any], smtp_server: MakeServer, number: int
) -> None:
    """A line is an example: each is made, and a server takes it."""
    run("limits.md", LIMITS[number], limits)
    lines = [line.split("  #")[0].strip() for line in LIMITS[number].splitlines()]
    made = [eval(line, limits) for line in lines if line and not line.startswith("from ")]
    assert made
    server = smtp_server(start=False, middleware=made)
    with dial(server) as peer:  # a client on a unix socket, whom nothing that goes by address concerns
        peer.hello()


def test_the_stopwatch_and_the_composition(capsys: pytest.CaptureFixture[str], smtp_server: MakeServer) -> None:
    names = run("middleware.md", "".join((*MIDDLEWARE[:2], *MIDDLEWARE[3:5])))
    assert re.fullmatch(
        r"1\. Logging\S* +every command\n"
        r"2\. when outside\('10\.0\.0\.0/8', 'unix'\) +every command\n"
        r"   2\.1\. edge +every command\n"
        r"      2\.1\.1\. Stopwatch\(\) +ACCEPT, DISCONNECT\n"
        r"      2\.1\.2\. \S*no_verify +every command\n",
        capsys.readouterr().out.replace("greensmtp.middleware.log.", ""),
    )
    told: list[str] = []
    server = smtp_server(start=False, middleware=[names["Stopwatch"](told.append)])
    with dial(names["server"], source=("10.0.0.1", 4711)) as peer:
        peer.hello()
        peer.line("VRFY jo")
        peer.expect("252")
    with dial(server, source=("192.0.2.1", 4711)) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
        peer.let_it_read()
    assert re.fullmatch(r"192\.0\.2\.1: \d\.\d s", told[0])
    trusted, in_the_clear = names["authenticated"] | names["inside"]("192.0.2.0/24"), ~names["over_tls"]
    asked: list[tuple[bool, bool]] = []

    @server.on("connect")
    def ask(session: Any, ack: Any) -> None:
        asked.append((trusted(session), in_the_clear(session)))
        ack.accept()

    for source in ("192.0.2.1", "198.51.100.1"):
        with dial(server, source=(source, 4711)) as peer:
            peer.expect("220")
    assert asked == [(True, True), (False, True)]


@pytest.mark.subprocess
def test_the_extension_passes_its_test(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(MIDDLEWARE[5])
    (tmp_path / "test_once.py").write_text(MIDDLEWARE[6])
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["greensmtp.testing.fixtures"]\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "6 passed" in ran.stdout


def test_the_entry_points_are_those_that_are_looked_for() -> None:
    once, stacked = map(tomllib.loads, blocks("middleware.md", "toml"))
    assert once["project"]["entry-points"] == {"greensmtp.middleware": {"Once": "once:Once"}}
    (entry,) = stacked["middleware"]
    assert entry.pop("use") == "Once"
    assert repr(run("middleware.md", MIDDLEWARE[5])["Once"](**entry)) == "Once(10000)"
    plugin, with_options, policy = map(tomllib.loads, blocks("plugins.md", "toml"))
    assert with_options["plugins"][0].keys() == {"name", "aliases"}
    assert plugin == {"plugins": [{"name": "vacation", "optional": True}]}
    assert policy["project"]["entry-points"].keys() == {*GROUPS.values()}


def test_a_module_and_a_callable(smtp_server: MakeServer) -> None:
    by_import = run("plugins.md", PLUGINS[0])
    try:
        server = smtp_server(start=False)
        run("plugins.md", PLUGINS[1])["install"](server)
        with dial(server) as peer:
            peer.expect("220")
            peer.line("EHLO MX.example.com", "EHLO client.example", "MAIL FROM:<a@example.org>")
            peer.expect("550 5.7.1 that is my name", "250", "250")
            peer.line("RCPT TO:<ann@example.com>", "RCPT TO:<bob@example.com>")
            peer.expect("550 5.1.1 Nobody here but Bob", "250")
    finally:
        signals.to.disconnect(by_import["nobody_but_bob"])


def test_plugging_in_from_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.py").write_text(PLUGINS[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        names = run("plugins.md", PLUGINS[2])
        with dial(names["server"]) as peer:
            peer.expect("220")
            peer.line("EHLO mx.example.com", "EHLO mail.example.com")
            peer.expect("550 5.7.1 that is my name", "550 5.7.1 that is my name")
    finally:
        sys.modules.pop("policy", None)


# The other pages


def test_all_blocks_of_the_other_pages_are_run_below() -> None:
    counts = {page.name: len(blocks(page.name)) for page in DOCS.glob("*.md") if page.name != "performance.md"}
    assert counts == {
        "auth.md": 6,
        "client.md": 2,
        "configuration.md": 0,
        "delivery.md": 3,
        "limits.md": 7,
        "middleware.md": 7,
        "names.md": 0,
        "observability.md": 1,
        "plugins.md": 3,
        "security.md": 0,
        "server.md": 3,
        "testing.md": 1,
    }
    assert {page.name: n for page in DOCS.glob("*.md") if (n := len(blocks(page.name, "toml")))} == {
        "configuration.md": 3,
        "middleware.md": 2,
        "plugins.md": 3,
    }


def defaults(source: str, called: str) -> dict[str, Any]:
    """What a signature, written as a call, says of each argument that is given a default there."""
    tree = ast.parse(source.replace("*, ", "").replace("*where, ", "").replace(", **each_limit", ""), mode="eval")
    assert isinstance(tree.body, ast.Call)
    assert ast.unparse(tree.body.func) == called
    return {str(word.arg): ast.literal_eval(word.value) for word in tree.body.keywords}


@pytest.mark.parametrize(
    ("page", "block", "function", "words"),
    [
        ("auth.md", 1, Auth, ()),
        ("server.md", 0, SMTPServer, ()),
        # connect's are None there, since an option may come in a mapping: what it comes to is the client's default
        ("client.md", 0, SMTPClient, ("host", "port")),
    ],
)
def test_signatures_are_those_of_the_code(page: str, block: int, function: Any, words: tuple[str, ...]) -> None:
    name = "connect" if function is SMTPClient else function.__name__
    said = defaults(blocks(page)[block], name)
    real = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for word in words:
        del said[word], real[word]
    assert said == real


def test_the_submission_server_and_the_signal_auth(tmp_path: Path, certificate: Certificate) -> None:
    page = blocks("auth.md")
    (tmp_path / "users").write_text(f"jo:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    source = page[0].replace("/etc/mail/users", str(tmp_path / "users"))
    for name, path in (("cert.pem", certificate.certfile), ("key.pem", certificate.keyfile)):
        source = source.replace(f'"{name}"', repr(str(path)))
    names = run("auth.md", source)
    sleeping: list[str] = []
    run("auth.md", page[2], {"server": names["server"], "asleep": sleeping.__contains__})
    initial = base64.b64encode(b"\0jo\0secret").decode()
    for asleep, expected in ((["jo"], "454 4.7.0 come back in the morning"), ([], "235")):
        sleeping[:] = asleep
        with dial(names["server"]) as peer:
            peer.hello()
            peer.line("MAIL FROM:<jo@example.com>", "STARTTLS")
            peer.expect("530", "220")
            peer.start_tls()
            peer.line("EHLO client.example", f"AUTH PLAIN {initial}")
            peer.expect("250", expected)


def test_backends_of_ones_own(smtp_server: MakeServer) -> None:
    def ldap_says_yes(username: str, password: str) -> bool:
        return (username, password) == ("jo", "secret")

    names: dict[str, Any] = {"Auth": Auth, "ldap_says_yes": ldap_says_yes}
    for source in blocks("auth.md")[3:6]:
        run("auth.md", source, names)
    users = names["Users"]()
    users.verify = ldap_says_yes
    users.find = {"jo": ScramKeys.derive("secret")}.get
    pooled = Auth(lambda credentials: names["in_thread_pool"](names["check"], credentials), allow_plaintext=True)
    for auth, mechanism in (
        (Auth(users, allow_plaintext=True), "SCRAM-SHA-256"),
        (Auth(users, allow_plaintext=True), "PLAIN"),
        (Auth(names["check"], allow_plaintext=True), "LOGIN"),
        (pooled, "PLAIN"),
    ):
        server = smtp_server(middleware=[auth])
        for password, code in (("secret", 235), ("wrong", 535)):
            with connect(*server.address, timeout=10) as mail:
                mail.ehlo()
                assert mail.login("jo", password, mechanism=mechanism, allow_plaintext=True).code == code


def test_a_pipeline(smtp_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server = smtp_server()
    server.on("message", lambda session, stream, ack: ack.accept())
    with connect(*server.address, timeout=10) as mail:
        mail.ehlo()
        run("client.md", blocks("client.md")[1], {"mail": mail})
        assert mail.message(b"hi\r\n").code == 250
    assert capsys.readouterr().out.count("Reply(") == 3


def test_logs_and_metrics() -> None:
    (source,) = blocks("observability.md")
    with (
        run("observability.md", source.replace("9025", "0").replace("9100", "0"))["server"] as server,
        dial(server) as peer,
    ):
        peer.hello()
    assert re.search(r"1\. Logging.*\n2\. Metrics", str(server.stack))


def test_lmtp_replies_for_each(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, lmtp=True)
    server.on("message", lambda session, stream, ack: ack.accept())
    run("server.md", blocks("server.md")[1], {"server": server, "full": {"jo"}})
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["jo@example.com", "ann@example.com"])
        peer.line("DATA", "hi", ".")
        peer.expect("354", "452 4.2.2 mailbox full", "250")


def test_a_server_in_a_thread(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    def say_hello() -> None:
        with dial(server) as peer:
            peer.hello()

    run(
        "server.md",
        blocks("server.md")[2].replace("...  ", "say_hello()  "),
        {"server": server, "say_hello": say_hello},
    )
    assert not server.started


@pytest.mark.subprocess
def test_the_tests_with_a_sink_pass(tmp_path: Path) -> None:
    (tmp_path / "test_sending.py").write_text(blocks("testing.md")[0])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_configuration_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate, number: int
) -> None:
    text = blocks("configuration.md", "toml")[number]
    if number == 2:  # two ways to give a middleware's argument
        (tmp_path / "mail").write_text("secret\n")
        secret = [line.partition("#")[0] for line in text.replace("/run/secrets/", "").splitlines()]
        text = "".join(
            f"[[middleware]]\nuse = 'Auth'\n[middleware.backend]\njo = {line.partition('=')[2]}\n" for line in secret
        )
    monkeypatch.setenv("MAIL_PASSWORD", "secret")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "policy", raising=False)
    (tmp_path / "policy.py").write_text(PLUGINS[1])
    (tmp_path / "mx.example.com.pem").write_bytes(certificate.certfile.read_bytes())
    (tmp_path / "mx.example.com.key").write_bytes(certificate.keyfile.read_bytes())
    (tmp_path / "greensmtp.toml").write_text(text.replace("/var/mail", str(tmp_path)))
    command = [sys.executable, "-m", "greensmtp", "check", "--config", "greensmtp.toml"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "secret" not in ran.stdout


def test_the_handlers_of_delivery_do_what_the_page_says(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_mail, fields, maildir = blocks("delivery.md")
    monkeypatch.chdir(tmp_path)
    with dial(run("delivery.md", on_mail)["server"]) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: You won the Lottery\r\n\r\n") == "554 5.7.1 No lotteries, please"
        assert peer.deliver(b"\r\nHi\r\n").startswith("250")
    assert capsys.readouterr().out.endswith(" 6 6\n")
    server = smtp_server(start=False)
    run("delivery.md", fields + maildir, {"server": server})
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: x\r\n").startswith("250 2.0.0 Ok: queued as")
    (stored,) = (tmp_path / "maildir" / "new").iterdir()
    assert stored.read_bytes().endswith(
        b"X-Network: outside\r\nAuthentication-Results: mx.example.com; dkim=none\r\nSubject: x\r\n"
    )
