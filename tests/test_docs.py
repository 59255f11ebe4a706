"""The Python of limits.md, middleware.md and plugins.md is run as it stands, and does what the text says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from greensmtp import signals
from greensmtp.installed import GROUPS
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

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
    assert (len(LIMITS), len(MIDDLEWARE), len(PLUGINS)) == (7, 6, 3)


def test_five_lines_answer_one_verb() -> None:
    assert len(MIDDLEWARE[0].split("\n\n")[1].splitlines()) <= 5
    names = run("middleware.md", MIDDLEWARE[0] + MIDDLEWARE[1])
    with dial(names["server"]) as peer:
        peer.hello()
        peer.line("VRFY jo", "NOOP")
        peer.expect("502 5.5.1 we tell nobody", "250")


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
    names = run("middleware.md", "".join(MIDDLEWARE[:4]))
    assert re.fullmatch(
        r"1\. Logging\S* +every command\n"
        r"2\. when outside\('10\.0\.0\.0/8', 'unix'\) +every command\n"
        r"   2\.1\. edge +every command\n"
        r"      2\.1\.1\. Stopwatch\(\) +CONNECT, DISCONNECT\n"
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
    predicates = (names["authenticated"] | names["inside"]("192.0.2.0/24"), ~names["over_tls"])
    assert all(map(callable, predicates))


def test_the_extension_passes_its_test(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(MIDDLEWARE[4])
    (tmp_path / "test_once.py").write_text(MIDDLEWARE[5])
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
    assert repr(run("middleware.md", MIDDLEWARE[4])["Once"](**entry)) == "Once(10000)"
    plugin, policy = map(tomllib.loads, blocks("plugins.md", "toml"))
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
            peer.line("EHLO mx.example.com")
            peer.expect("550 5.7.1 that is my name")
    finally:
        sys.modules.pop("policy", None)
