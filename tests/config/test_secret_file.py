"""The secret that ``greensmtp serve`` generates for Auth and keeps in a file."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greensmtp.config.build import assemble
from greensmtp.config.load import load
from greensmtp.config.secret_file import keep_secret
from tests import forked

Serve = Callable[..., Any]

CONFIG = """
[delivery]
maildir = false
[[listeners]]
url = "127.0.0.1:0"
[[middleware]]
use = "Auth"
required = true
backend = { beep = "boop" }
"""


def test_a_secret_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    was = os.umask(0)
    try:
        secret = keep_secret(path)
    finally:
        os.umask(was)
    assert len(secret) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keep_secret(path) == secret
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]
    assert keep_secret(tmp_path / "other") != secret


def test_the_first_process_decides_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    real = os.link

    def late(source: Any, target: Any) -> None:
        path.write_text("another process's secret")
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert keep_secret(path) == "another process's secret"
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


@pytest.mark.subprocess
def test_processes_that_start_together_get_the_same_secret(tmp_path: Path) -> None:
    code = "import sys, pathlib; from greensmtp.config.secret_file import keep_secret; sys.stdin.read(); "
    code += "print(keep_secret(pathlib.Path(sys.argv[1])))"
    program = forked.python(code, tmp_path / "secret")
    waiting, go = os.pipe()
    with os.fdopen(waiting) as stdin, tempfile.TemporaryFile("w+") as stdout:
        processes = [forked.start(program, stdin=stdin, stdout=stdout) for _ in range(4)]
        os.close(go)
        assert [each.wait(20) for each in processes] == [0] * 4
        stdout.seek(0)
        first, *others = stdout.read().splitlines()
    assert others == [first] * 3
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("data", [b"", b"short\n", b"\xff" * 32, b"x" * 5000])
def test_a_file_without_a_secret_is_an_error_and_not_changed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="contains no secret") as caught:
        keep_secret(path)
    assert "short" not in str(caught.value)
    assert path.read_bytes() == data


def test_serve_keeps_a_secret_beside_its_configuration(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "mx.toml").write_text(CONFIG)
    secrets = set()
    for _ in range(2):
        server = serve("--config", "mx.toml", listeners=1)
        assert server.stop() == 0
        secrets.add((tmp_path / "mx.secret").read_text())
        assert server.log == ""
    assert len(secrets) == 1
    assert stat.S_IMODE((tmp_path / "mx.secret").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "line",
    [
        'secret = "0123456789abcdef"',
        'backend = "dovecot:/run/dovecot/auth-client"',
        'mechanisms = ["plain", "LOGIN"]',
    ],
)
def test_no_secret_is_created_if_one_is_given_or_none_is_needed(tmp_path: Path, line: str) -> None:
    text = CONFIG if not line.startswith("backend") else CONFIG.replace('backend = { beep = "boop" }', "")
    (tmp_path / "mx.toml").write_text(f"{text}{line}\n")
    assemble(load(tmp_path / "mx.toml"))
    assert [each.name for each in tmp_path.iterdir()] == ["mx.toml"]


def test_check_creates_no_secret(tmp_path: Path) -> None:
    (tmp_path / "mx.toml").write_text(CONFIG)
    assemble(load(tmp_path / "mx.toml"), dry=True)
    assert [each.name for each in tmp_path.iterdir()] == ["mx.toml"]


def test_if_no_secret_can_be_kept_the_log_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mx.toml").write_text(CONFIG)
    (tmp_path / "mx.secret").mkdir()
    assemble(load(tmp_path / "mx.toml"))
    assert f"cannot keep Auth's secret in {str(tmp_path / 'mx.secret')!r}: Is a directory" in caplog.text
    assert "set secret = { file = " in caplog.text
