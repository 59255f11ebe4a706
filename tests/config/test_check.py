"""``greensmtp check``: problems that only building the servers reveals, and the printed configuration."""

from __future__ import annotations

import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from greensmtp import signals
from greensmtp.cli import cli
from greensmtp.config.build import assemble
from greensmtp.config.dump import effective, toml
from greensmtp.config.load import Override, load
from greensmtp.config.problems import ConfigError

Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Run ``greensmtp check`` in an empty folder, with this text as its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(text: str | None, *options: str | Path) -> Result:
        if text is not None:
            Path("greensmtp.toml").write_text(text, "utf-8")
            options = ("--config", "greensmtp.toml", *options)
        return CliRunner().invoke(cli, ["check", *map(str, options)], prog_name="greensmtp")

    return run


def printed(result: Result) -> dict[str, Any]:
    """Return the printed configuration as data."""
    assert (result.exit_code, result.stderr) == (0, "")
    return tomllib.loads(result.stdout)


def complaints(result: Result) -> list[str]:
    """Return the problems that were found."""
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in lines), lines
    return [line.removeprefix("Error: ") for line in lines]


# Problems

BROKEN = """
from pathlib import Path
from greensmtp import ArgumentError
class Fussy:
    def __init__(self, rate: str = "", also: str = "") -> None:
        if rate == "bad":
            raise ArgumentError("rate", f"takes something better than {also!r}")
        if rate == "plain":
            raise ValueError("rate takes something better")
        if rate == "odd":
            raise OSError("the disk says no")
        if rate == "unread":
            Path(also).read_bytes()
        if rate == "poor":
            raise ModuleNotFoundError("Fussy needs gold: pip install 'greensmtp[gold]'")
    def __call__(self, session, command, proceed):
        return proceed(session, command)

class Misshapen:
    def __call__(self, session):
        return None

def install(server):
    raise RuntimeError("not on this one")

def leave(server):
    raise SystemExit("usage: none")

def take_leave():
    raise SystemExit("usage: none")

def wait(server):
    import gevent
    with gevent.Timeout(0.001):
        gevent.sleep(1)
"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "[[middleware]]\nuse = 'broken:Fussy'\nalso = 'x'\nrate = 'bad'",
            "4: middleware.rate: broken:Fussy: takes something better than 'x'",
        ),
        ("[[middleware]]\nuse = 'broken:Fussy'\nrate = 'plain'", "1: middleware: broken:Fussy: rate takes something"),
        ("\n[[middleware]]\nuse = 'broken:Fussy'\nrate = 'odd'", "2: middleware: broken:Fussy: the disk says no"),
        (
            "[[middleware]]\nuse = 'broken:Fussy'\nrate = 'unread'\nalso = 'nix'",
            "4: middleware.also: broken:Fussy: No such file or directory: 'nix'",
        ),
        ("[[middleware]]\nuse = 'broken:Fussy'\nrate = 'poor'", "1: middleware: broken:Fussy: Fussy needs gold: pip "),
        ("[[middleware]]\nuse = 'broken:Misshapen'", "1: middleware: broken:Misshapen: a middleware is called as "),
        ("[[middleware]]\nuse = 'broken:Missing'", "2: middleware.use: "),
        ("[[plugins]]\nname = 'missing'", "2: plugins.name: 'missing': cannot import missing: ModuleNotFoundError"),
        (
            "[[plugins]]\nname = 'broken:install'",
            "2: plugins.name: 'broken:install': install failed: RuntimeError: ",
        ),
        (
            "[[plugins]]\nname = 'broken:leave'",
            "2: plugins.name: 'broken:leave': leave failed: SystemExit: usage: none",
        ),
        ("[[plugins]]\nname = 'broken:wait'", "2: plugins.name: 'broken:wait': wait failed: Timeout: 0.001 seconds"),
        ("[[middleware]]\nuse = 'broken:take_leave'", "1: middleware: broken:take_leave: usage: none"),
        ("hostname = 'a b'", "1: hostname: takes a domain name or an address literal"),
        ("\ntls_cert = 'missing.pem'", "2: tls_cert: 'missing.pem' cannot be read: No such file or directory"),
        ("tls_cert = 'empty'\ntls_key = 'missing.pem'", "2: tls_key: 'missing.pem' cannot be read"),
        ("tls_cert = 'empty'", "1: tls_cert: 'empty' and 'empty' must be a certificate and its private key"),
        ("tls_key = 'empty'", "1: tls_key: needs tls_cert with it"),
        ("[[listeners]]\nurl = '127.0.0.1:0'\ntls_cert = 'x'", "3: listeners.tls_cert: 'x' cannot be read"),
        ("[[listeners]]\nurl = '127.0.0.1:0'\ntls_key = 'x'", "3: listeners.tls_key: needs tls_cert"),
        (
            "[[listeners]]\nurl = 'smtps://127.0.0.1:0'",
            "2: listeners.url: smtps:// needs a certificate: give tls_cert and tls_key",
        ),
        ("[delivery]\nmaildir = 'empty'", "2: delivery.maildir: cannot make 'empty': "),
        ("[delivery]\nmaildir = '/dev/null/x'", "2: delivery.maildir: cannot make '/dev/null/x': "),
        (
            "[logging]\ntarget = 'missing/log'",
            "2: logging.target: cannot write to 'missing/log': the folder",
        ),
        ("[logging]\ntarget = '/'", "2: logging.target: cannot write to '/': it is a folder"),
    ],
)
def test_what_cannot_be_built_is_reported_with_its_line(
    check: Check, tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "empty").touch()
    (line,) = complaints(check(text))
    assert line.startswith(f"greensmtp.toml:{complaint}")
    sys.modules.pop("broken", None)


PLUGIN = """
from pathlib import Path
from typing import Literal
calls = []
def install(server, *, delay: float, words: list[str] = [], path: Path = Path(), mode: Literal["a", "b"] = "a"):
    calls.append({"delay": delay, "words": words, "path": path, "mode": mode})
def anything(server, **options):
    calls.append(options)
def plain(server):
    calls.append({})
class Policy:
    def __init__(self, server, delay: int = 0):
        calls.append({"delay": delay})
"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "name = 'policy:install'\ndelay = 1\nwrds = ['a']",
            "4: plugins.wrds: policy:install: there is no such key; di",
        ),
        ("name = 'policy:install'\ndelay = 'x'", "3: plugins.delay: policy:install: expected a number; got a s"),
        (
            "name = 'policy:install'\ndelay = 1979-05-27",
            "3: plugins.delay: policy:install: expected a number; got a date",
        ),
        (
            "name = 'policy:install'\ndelay = 1\nwords = [1]",
            "4: plugins.words: policy:install: expected a string; ",
        ),
        ("name = 'policy:install'\ndelay = 1\nmode = 'c'", '4: plugins.mode: policy:install: expected "a" or "b"'),
        ("name = 'policy:install'", "1: plugins.delay: policy:install: must be given"),
        (
            "name = 'policy:install'\noptional = true\ndelay = []",
            "4: plugins.delay: policy:install: expected a number; g",
        ),
        ("name = 'policy:plain'\ndelay = 1", "3: plugins.delay: policy:plain: there is no such key"),
        ("name = 'policy:Policy'\ndelay = 1.5", "3: plugins.delay: policy:Policy: expected an integer; got a f"),
        ("name = 'policy'\ndelay = 1", "2: plugins.name: 'policy' takes no options: it is a module; name a callable"),
        ("name = 'all'\ndelay = 1", "2: plugins.name: 'all' takes no options"),
    ],
)
def test_wrong_options_of_a_plugin_are_reported_with_their_line(
    check: Check, tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "policy.py").write_text(PLUGIN)
    (line,) = complaints(check(f"[[plugins]]\n{text}"))
    assert line.startswith(f"greensmtp.toml:{complaint}")
    sys.modules.pop("policy", None)


def test_a_plugin_with_required_options_needs_a_configuration_file(check: Check, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(PLUGIN)
    result = check(None, "--plugin", "policy:install")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "'--plugin': policy:install: delay must be given; set its options in a [[plugins]] table" in said
    sys.modules.pop("policy", None)


def test_a_plugin_gets_its_options(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.py").write_text(PLUGIN)
    monkeypatch.setenv("WORD", "sesame")
    text = (
        "[[plugins]]\nname = 'policy:install'\ndelay = 3\nwords = ['a', { env = 'WORD' }]\npath = 'sub'\n"
        "[[plugins]]\nname = 'policy:anything'\npassword = 'boop'\nusers = { jo = 'boop' }\n"
        "[[plugins]]\nname = 'policy:Policy'\ndelay = 1\n"
        "[[listeners]]\nurl = '127.0.0.1:0'\n[[listeners]]\nurl = '127.0.0.1:0'\n"
    )
    result = check(text)
    assert sys.modules["policy"].calls == [
        *[{"delay": 3, "words": ["a", "sesame"], "path": Path("sub"), "mode": "a"}] * 2,
        *[{"password": "boop", "users": {"jo": "boop"}}] * 2,
        *[{"delay": 1}] * 2,
    ]
    assert printed(result)["plugins"] == [
        {
            **{"name": "policy:install", "optional": False, "delay": 3, "path": str(tmp_path / "sub")},
            "words": ["a", {"env": "WORD"}],
        },
        {"name": "policy:anything", "optional": False, "password": "***", "users": {"jo": "***"}},
        {"name": "policy:Policy", "optional": False, "delay": 1},
    ]
    sys.modules.pop("policy", None)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("missing/socket", "'{}/missing': no such folder"),
        ("file/socket", "'{}/file': not a folder"),
        ("file", "it exists and is not a socket"),
        (".", "it exists and is not a socket"),
        ("x" * 107, "the path is longer than 107 bytes"),
    ],
)
def test_a_unix_path_that_cannot_be_bound_is_reported_with_its_line(
    check: Check, tmp_path: Path, path: str, complaint: str
) -> None:
    (tmp_path / "file").touch()
    (line,) = complaints(check(f"[[listeners]]\nurl = 'unix:{tmp_path}/{path}'"))
    assert line.startswith("greensmtp.toml:2: listeners.url: cannot listen on ")
    assert line.endswith(complaint.format(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_unix_path_in_a_folder_that_cannot_be_written_to(check: Check, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    (line,) = complaints(check(f"[[listeners]]\nurl = 'unix:{tmp_path}/locked/socket'"))
    assert line.endswith(f"cannot write to '{tmp_path}/locked'")


def test_a_stale_socket_is_not_a_problem(check: Check, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "socket"))
    assert check(f"[[listeners]]\nurl = 'unix:{tmp_path}/socket'").exit_code == 0


@pytest.mark.parametrize("url", ["127.0.0.1:2525", "unix:{}/socket"])
def test_two_listeners_with_one_address_are_reported(check: Check, tmp_path: Path, url: str) -> None:
    url = url.format(tmp_path)
    (line,) = complaints(check(f"[[listeners]]\nurl = '{url}'\n[[listeners]]\nurl = '{url}'"))
    assert line.startswith("greensmtp.toml:4: listeners.url: another listener already uses ")
    assert check("[[listeners]]\nurl = '127.0.0.1:0'\n[[listeners]]\nurl = '127.0.0.1:0'").exit_code == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[delivery]\nmaildir = '{0}'", "2: delivery.maildir: cannot make '{0}': File name too long"),
        (
            "[logging]\ntarget = 'pipe'",
            "2: logging.target: cannot write to 'pipe': it is a pipe or a socket, not a file",
        ),
    ],
)
def test_a_path_that_is_too_long_for_the_system_is_reported(
    check: Check, tmp_path: Path, text: str, complaint: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (line,) = complaints(check(text.format("x" * 300)))
    assert line == f"greensmtp.toml:{complaint.format('x' * 300)}"


def test_control_characters_in_keys_and_values_are_escaped(check: Check) -> None:
    (line,) = complaints(check('"a\\nb\\u001b[31m" = 1'))
    assert line.startswith("greensmtp.toml:1: a\\nb\\x1b[31m: there is no such key")


def test_options_that_contradict_each_other(check: Check) -> None:
    result = check(None, "--maildir", "x", "--no-maildir")
    assert result.exit_code == 2
    assert "Error: --maildir and --no-maildir exclude each other" in result.stderr
    for option in ("--maildir", "--config", "--tls-cert", "--tls-key"):
        result = check(None, option, "")
        assert result.exit_code == 2
        assert "expected a path; got an empty string" in result.stderr


def test_all_problems_are_reported_at_once(check: Check) -> None:
    text = (
        "[[plugins]]\nname = 'missing'\n[delivery]\nmaildir = '/dev/null/x'\n"
        "[[listeners]]\nurl = '127.0.0.1:0'\ntls_cert = 'x'\n[[listeners]]\nurl = 'smtps://127.0.0.1:0'\n"
        "[logging]\ntarget = '/'"
    )
    assert [line.split(":")[1] for line in complaints(check(text))] == ["2", "4", "7", "9", "11"]


def test_a_wrong_option_is_reported_as_click_does(check: Check) -> None:
    result = check("hostname = 'x'", "--hostname", "a b", "--tls-key", "x")
    assert result.exit_code == 2
    assert "Usage: greensmtp check [OPTIONS]\nTry 'greensmtp check --help' for help.\n\n" in result.stderr
    assert "Error: Invalid value for '--hostname': takes a domain name" in result.stderr
    result = check(None, "--no-such")
    assert result.exit_code == 2


def test_no_error_shows_a_secret(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setenv("SECRET", "open \\sesame'")
    (line,) = complaints(check("[[middleware]]\nuse = 'broken:Fussy'\nrate = 'bad'\nalso = { env = 'SECRET' }"))
    assert line.endswith('Fussy: takes something better than "***"')
    sys.modules.pop("broken", None)


def test_an_optional_plugin_may_be_missing(check: Check) -> None:
    result = check("[[plugins]]\nname = 'missing'\noptional = true")
    assert result.exit_code == 0


def test_default_middleware_without_its_library_is_left_out(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    stack = ({"use": "broken:Fussy", "rate": "poor"}, {"use": "Logging"})
    monkeypatch.setattr("greensmtp.config.load.DEFAULT_STACK", stack)
    monkeypatch.setattr("greensmtp.config.model.DEFAULT_STACK", stack)
    with caplog.at_level("INFO", "greensmtp"):
        assert check("").exit_code == 0
    assert "left broken:Fussy out of the default stack: Fussy needs gold: pip install" in caplog.text
    (line,) = complaints(check("[[middleware]]\nuse = 'broken:Fussy'\nrate = 'poor'"))
    assert "needs gold" in line
    sys.modules.pop("broken", None)


def test_a_server_that_cannot_be_built_leaves_no_handler(tmp_path: Path) -> None:
    before = len(signals.message.receivers)
    maildir = Override("--maildir", ("delivery", "maildir"), "/dev/null/x")
    with pytest.raises(ConfigError):
        assemble(load(None, [maildir]))
    assert len(signals.message.receivers) == before


def test_it_leaves_no_trace(check: Check, tmp_path: Path) -> None:
    before = [len(signals.message.receivers), len(signals.received.receivers)]
    printed(check("[delivery]\nmaildir = 'a/b/c'\n[logging]\ntarget = 'log'\n[[listeners]]\nurl = 'unix:/tmp/never'"))
    assert [path.name for path in tmp_path.iterdir()] == ["greensmtp.toml"]
    assert [len(signals.message.receivers), len(signals.received.receivers)] == before
    assert not Path("/tmp/never").exists()


# The printed configuration


def test_the_defaults_are_all_printed(check: Check, tmp_path: Path) -> None:
    data = printed(check(None))
    assert data["listeners"] == [{"url": "127.0.0.1:1025"}]
    assert data["limits"]["max_message_size"] == 32 * 1024 * 1024
    assert data["limits"]["max_body_line_length"] is False
    assert data["delivery"] == {"maildir": str(tmp_path / "maildir")}
    assert data["logging"] == {"format": "text", "level": "warning", "target": "stderr"}
    assert {"use": "Logging"} in data["middleware"]


def test_options_are_in_the_printed_configuration(check: Check, tmp_path: Path) -> None:
    options = [
        "--listen",
        "lmtp://[::1]:0",
        "--listen",
        f"unix:{tmp_path}/x",
        "--hostname",
        "o.example",
        "--no-maildir",
        "--max-size",
        "3k",
    ]
    data = printed(check("hostname = 'f.example'", *options, "--log-format", "json", "-vv"))
    assert data["listeners"] == [{"url": "lmtp://[::1]:0"}, {"url": f"unix:{tmp_path}/x"}]
    assert (data["hostname"], data["delivery"]["maildir"]) == ("o.example", False)
    assert data["limits"]["max_message_size"] == 3072
    assert (data["logging"]["format"], data["logging"]["level"]) == ("json", "debug")
    assert printed(check(None, "-v"))["logging"]["level"] == "info"


def test_a_value_set_by_an_option_is_not_shown_as_a_reference(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "f.example")
    text = "hostname = { env = 'NAME' }\n[[listeners]]\nurl = '127.0.0.1:0'\nhostname = { env = 'NAME' }"
    assert printed(check(text))["listeners"][0]["hostname"] == {"env": "NAME"}
    data = printed(check(text, "--hostname", "o.example"))
    assert data["hostname"] == "o.example"
    assert data["listeners"] == [{"url": "127.0.0.1:0"}]
    assert printed(check(text, "--listen", "[::1]:0"))["listeners"] == [{"url": "smtp://[::1]:0"}]


def everything(certificate: Any) -> str:
    return f"""
        hostname = "mx.example.com"
        tls_cert = "{certificate.certfile}"
        tls_key = {{ env = "KEY_FILE" }}
        [limits]
        max_connections = false
        command_timeout = 12.5
        [[listeners]]
        url = "smtps://127.0.0.1:0"
        backlog = 7
        limits.max_errors = 3
        [[listeners.middleware]]
        use = "probe:Probe"
        users = {{ "with space" = "boop", "quo\\"ted" = "\\u007f" }}
        password = "boop"
        path = "sub/list"
        [[listeners]]
        url = "lmtp://127.0.0.1:0"
        middleware = []
        tls = false
        [[middleware]]
        use = "Logging"
        level = 10
        [[plugins]]
        name = "probe"
        optional = true
        [delivery]
        maildir = "mail"
        [logging]
        level = "debug"
    """


PROBE = """
from pathlib import Path
class Probe:
    def __init__(self, users: dict[str, str], password: str, path: Path | None = None): ...
    def __call__(self, session, command, proceed): ...
"""


def test_the_printed_configuration_is_the_same_without_secrets(
    check: Check, tmp_path: Path, certificate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_FILE", str(certificate.keyfile))
    (tmp_path / "probe.py").write_text(PROBE)
    first = check(everything(certificate))
    data = printed(first)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = check(first.stdout)
    assert again.stdout == first.stdout
    assert data["tls_key"] == {"env": "KEY_FILE"}
    probe = data["listeners"][0]["middleware"][0]
    assert probe == {
        "use": "probe:Probe",
        "users": {"with space": "***", 'quo"ted': "***"},
        "password": "***",
        "path": str(tmp_path / "sub/list"),
    }
    assert "boop" not in first.stdout
    original, reread = (load(path) for path in (tmp_path / "greensmtp.toml", Path("greensmtp.toml")))
    hidden = effective(reread)
    shown = effective(original)
    assert hidden.pop("listeners")[0]["middleware"][0].keys() == shown.pop("listeners")[0]["middleware"][0].keys()
    assert hidden == shown
    sys.modules.pop("probe", None)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("storage = 'redis://user:pass@host:6379/0'", "redis://***@host:6379/0"),
        ("storage = 'redis://:p@ss/word@host'", "redis://***@host"),
        ("storage = 'redis://host/?password=boop&db=1'", "redis://host/?password=***&db=1"),
        ("storage = 'redis://host/0'", "redis://host/0"),
        ("auth_token = 'boop'", "***"),
        ("password = 12345", "***"),
        ("client_secrets = ['a', 'b']", ["***", "***"]),
        ("api_key = 'boop'", "***"),
        ("users = { beep = 'boop' }", {"beep": "***"}),
        ("accounts = [{ name = 'beep', hash = 'boop' }]", [{"name": "***", "hash": "***"}]),
        ("allow_plaintext_password = true", True),
        ("keys = 'address'", "address"),
        ("networks = ['10.0.0.0/8']", ["10.0.0.0/8"]),
        ("rate = { env = 'RATE' }", {"env": "RATE"}),
        ("users = { beep = { env = 'RATE' } }", {"beep": {"env": "RATE"}}),
    ],
)
def test_secrets_are_hidden(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, shown: Any
) -> None:
    monkeypatch.setenv("RATE", "boop")
    (tmp_path / "taking.py").write_text("def anything(**options):\n    return lambda session, command, proceed: None\n")
    result = check(f"[[middleware]]\nuse = 'taking:anything'\n{line}")
    data = printed(result)
    assert data["middleware"][0][line.partition(" ")[0]] == shown
    assert "boop" not in result.stdout
    sys.modules.pop("taking", None)


TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS | st.dates() | st.times(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_written_toml_reads_back_as_the_same_data(data: dict[str, Any]) -> None:
    assert tomllib.loads(toml(data)) == data


def test_quiet_prints_problems_alone(check: Check) -> None:
    result = check("", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert complaints(check("nothing = 1", "-q")) == complaints(check("nothing = 1"))


def test_the_help_explains_the_command(check: Check) -> None:
    result = check(None, "--help")
    assert result.exit_code == 0
    for word in ("--config FILE", "--listen", "--plugin", "Exit status: 0", "greensmtp check > greensmtp.toml"):
        assert re.search(word, " ".join(result.stdout.split()))


@pytest.mark.parametrize("text", ['user = "no-such-user"', 'user = "nobody"\ngroup = "no-such-group"'])
def test_a_user_or_group_that_does_not_exist_is_found(check: Check, text: str) -> None:
    (line,) = complaints(check(f"[service]\n{text}\n"))
    assert line.startswith("greensmtp.toml:2: service.user: there is no ")


def test_a_user_that_only_root_can_become_may_be_checked_by_others(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert printed(check('[service]\nuser = "nobody"\n'))["service"]["user"] == "nobody"
