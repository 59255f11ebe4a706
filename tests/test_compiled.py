"""The compiled build: what setup.py compiles, and what both builds promise."""

from __future__ import annotations

import ast
import copy
import os
import pickle
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import greensmtp
from greensmtp import Ack, Address, Command, MessageStream, Reply, Session
from greensmtp._compiled import is_compiled
from greensmtp.cli import cli
from greensmtp.testing.fixtures import MakeServer

ROOT = Path(__file__).parents[1]


def constant(wanted: str) -> Any:
    """Return the value of a constant of setup.py, which cannot be imported without building."""
    for node in ast.parse((ROOT / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == wanted:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {wanted}")


def modules() -> list[Path]:
    """Return the modules that setup.py names."""
    rooms: dict[str, str] = constant("MODULES")
    return [ROOT / "greensmtp" / room / f"{name}.py" for room, names in rooms.items() for name in names.split()]


def test_each_compiled_module_exists() -> None:
    assert modules()
    assert [path for path in modules() if not path.is_file()] == []


@pytest.mark.skipif(not is_compiled(), reason="the sources are tested")
def test_each_of_them_is_compiled() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules()]
    assert [name for name in names if str(sys.modules[name].__file__).endswith(".py")] == []


def test_the_version_says_which_build_runs() -> None:
    shown = CliRunner().invoke(cli, ["--version"], prog_name="greensmtp").output
    build = "compiled" if is_compiled() else "pure Python"
    assert shown == f"greensmtp, version {greensmtp.__version__} ({build})\n"


def test_no_name_is_caught_as_two_kinds_of_exception() -> None:
    """mypyc gives a variable the type of its first ``except ... as``, and the second one a TypeError."""
    found = []
    for path in modules():
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                caught: dict[str, set[str]] = {}
                for node in ast.walk(function):
                    if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                        caught.setdefault(node.name, set()).add(ast.unparse(node.type))
                found += [f"{path.name}: {function.name}: {name}" for name, kinds in caught.items() if len(kinds) > 1]
    assert found == []


@pytest.mark.subprocess
def test_without_a_compiler_the_build_says_what_to_do() -> None:
    env = {**os.environ, "GREENSMTP_COMPILE": "1", "CC": "no-such-compiler"}
    ran = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "there is no C compiler (no-such-compiler)" in ran.stderr
    assert "unset GREENSMTP_COMPILE" in ran.stderr


@pytest.mark.subprocess
def test_the_build_needs_no_package_of_an_extra(tmp_path: Path) -> None:
    """An installer builds with the packages of REQUIREMENTS alone, and mypyc stops at any error that mypy reports."""
    installed = Path(sysconfig.get_path("purelib"))
    for name, folder in {"gevent": "gevent-stubs", "blinker": "blinker", "idna": "idna"}.items():
        (tmp_path / name).symlink_to(installed / folder)
    options = ["--no-site-packages", f"--cache-dir={tmp_path / 'cache'}", *constant("OPTIONS")]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *(str(path.relative_to(ROOT)) for path in modules())],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"(checked {len(modules())} source files)" in ran.stdout, ran.stdout + ran.stderr
    assert [line for line in ran.stdout.splitlines() if line.startswith("greensmtp/")] == []


def test_users_may_derive_from_what_they_hold() -> None:
    class Named(Command):
        pass

    class Kept(Session):
        pass

    class Counted(MessageStream):
        pass

    assert Named("NOOP").verb == "NOOP"
    assert issubclass(Kept, Session)
    assert issubclass(Counted, MessageStream)


def test_commands_addresses_and_replies_can_be_pickled_and_copied() -> None:
    for each in (Address.parse("jo@example.com"), Reply(250, "2.1.5 Fine")):
        assert pickle.loads(pickle.dumps(each)) == each == copy.copy(each)
    assert pickle.loads(pickle.dumps(Command("NOOP", "x"))).argument == "x"


def test_sessions_streams_and_acks_can_be_referred_to_weakly(smtp_server: MakeServer) -> None:
    from greensmtp.testing import dial

    kept: list[weakref.ref[object]] = []
    server = smtp_server(start=False)

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        kept.extend((weakref.ref(session), weakref.ref(stream), weakref.ref(ack)))
        assert all(each() is not None for each in kept)
        assert (type(session).__name__, type(stream).__name__) == ("Session", "MessageStream")
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("Hi.\r\n").startswith("250")
        peer.line("QUIT")
        peer.rest()
        peer.let_it_read()
    assert [each() for each in kept] == [None] * 3
