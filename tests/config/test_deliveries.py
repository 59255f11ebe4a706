"""``[[deliveries]]``: what it builds, by listener and recipient, and its errors with their lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greensmtp.config.build import assemble
from greensmtp.config.dump import effective, write
from greensmtp.config.load import Override, load
from greensmtp.config.problems import ConfigError

Serve = Callable[..., Any]

OWN = """
from pathlib import Path
from greensmtp.delivery import Delivery

class Own(Delivery):
    def __init__(self, folder: Path, secret: str = "") -> None:
        if secret == "bad":
            raise ValueError("secret is too short")

class Answers(Delivery):
    answers = True

def no_delivery():
    return "no"

def local(session, address):
    return address.startswith("local")
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_delivery", raising=False)
    (tmp_path / "own_delivery.py").write_text(OWN)

    def written(text: str) -> Path:
        path = tmp_path / "greensmtp.toml"
        path.write_text(text)
        return path

    return written


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "[[deliveries]]\nuse = 'Maildor'\npath = 'x'",
            "2: deliveries.use: there is no delivery 'Maildor'; did you mean 'Maildir'?",
        ),
        ("[[deliveries]]\nuse = 'Maildir'", "1: deliveries.path: Maildir: must be given"),
        (
            "[[deliveries]]\nuse = 'Maildir'\npath = 'x'\npaht = 3",
            "4: deliveries.paht: Maildir: there is no such key; did you mean path?",
        ),
        ("[[deliveries]]\nuse = 'Maildir'\npath = 'x'\nfor = 'bob'", "4: deliveries.for: expected an address like"),
        (
            "[[deliveries]]\nuse = 'Maildir'\npath = 'x'\nfor = []",
            "4: deliveries.for: expected a pattern or an array of",
        ),
        (
            "[[deliveries]]\nuse = 'Maildir'\npath = 'x'\nfor = 3",
            "4: deliveries.for: expected a string or an array; got an integer",
        ),
        (
            "[[deliveries]]\nuse = 'Maildir'\npath = 'x'\nfor = 'own_delivery:nix'",
            "4: deliveries.for: Maildir: predicate 'own_delivery:nix': own_delivery has no 'nix'",
        ),
        (
            "[[deliveries]]\nuse = 'Maildir'\npath = '/dev/null/x'",
            "3: deliveries.path: cannot make '/dev/null/x'",
        ),
        (
            "[[deliveries]]\nuse = 'own_delivery:Own'\nfolder = 'x'\nsecret = 'bad'",
            "1: deliveries: own_delivery:Own: secret is too short",
        ),
        (
            "[[deliveries]]\nuse = 'own_delivery:no_delivery'",
            "1: deliveries.for: own_delivery:no_delivery: expected a Delivery; got 'no'",
        ),
        (
            "[[deliveries]]\nuse = 'own_delivery:Answers'\n[[deliveries]]\nuse = 'own_delivery:Answers'",
            "1: deliveries: expected at most one delivery per recipient that another system answers; got Answers",
        ),
        (
            "[delivery]\nmaildir = 'x'\n[[deliveries]]\nuse = 'Maildir'\npath = 'y'",
            "2: delivery.maildir: is for all mail",
        ),
        (
            "[[listeners]]\nurl = '127.0.0.1:0'\n[[listeners.deliveries]]\nuse = 'Maildor'",
            "4: listeners.deliveries.use: there is no delivery",
        ),
    ],
)
def test_an_error_names_the_line_and_the_key(config: Callable[[str], Path], text: str, complaint: str) -> None:
    path = config(text)
    with pytest.raises(ConfigError) as error:
        assemble(load(path))
    (line,) = error.value.lines
    assert line.startswith(f"{path}:{complaint}"), line


def test_the_effective_configuration_can_be_read_again(config: Callable[[str], Path], tmp_path: Path) -> None:
    text = """
        [[deliveries]]
        use = "own_delivery:Own"
        folder = "sub"
        secret = { env = "HOME" }
        [[deliveries]]
        use = "Maildir"
        path = "mail"
        for = ["*@b.example", "own_delivery:local"]
        [[listeners]]
        url = "127.0.0.1:0"
        deliveries = []
    """
    first = load(config(text))
    printed = write(first)
    assert '{env = "HOME"}' in printed
    data = effective(first)
    assert data["deliveries"][0]["folder"] == str(tmp_path / "sub")
    assert "for" not in data["deliveries"][0]
    assert effective(load(config(printed))) == data
    assert not (tmp_path / "mail").exists()


def test_an_option_replaces_the_deliveries_of_the_file(config: Callable[[str], Path]) -> None:
    path = config("[[deliveries]]\nuse = 'Maildir'\npath = 'x'")
    loaded = load(path, [Override("--maildir", ("delivery", "maildir"), "other")])
    assert (loaded.config.delivery.maildir, loaded.config.deliveries) == ("other", [])
    assert load(path).config.delivery.maildir is None


def test_a_dry_run_creates_nothing(config: Callable[[str], Path], tmp_path: Path) -> None:
    assemble(load(config("[[deliveries]]\nuse = 'Maildir'\npath = 'x'")), dry=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.subprocess
def test_recipients_and_listeners_go_where_they_are_sent(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "own_delivery.py").write_text(OWN)
    (tmp_path / "greensmtp.toml").write_text(
        """
        middleware = []
        [[listeners]]
        url = "127.0.0.1:0"
        [[deliveries]]
        use = "Maildir"
        path = "inbox"
        for = "*@inbox.example"
        [[deliveries]]
        use = "Maildir"
        path = "local"
        for = "own_delivery:local"
        """
    )
    server = serve("--config", "greensmtp.toml")
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<a@inbox.example>", "RCPT TO:<local@x.example>", "RCPT TO:<b@x.example>")
        peer.expect("250", "250", "250", "550 5.1.1")
        peer.line("DATA", "Subject: Tea", ".")
        peer.expect("354", "250")
    assert server.stop() == 0
    assert [len([*(tmp_path / name / "new").iterdir()]) for name in ("inbox", "local")] == [1, 1]
    assert not (tmp_path / "maildir").exists()
