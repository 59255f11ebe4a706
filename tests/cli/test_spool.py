"""``greensmtp spool``: what it shows, and what it changes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greensmtp.cli import cli
from greensmtp.delivery.spool_folder import Folder, State

ONE, TWO = "6447ef957f640-5c1f0a-1f", "6447ef957f641-5c1f0a-20"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A spool with two messages, which ./greensmtp.toml names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greensmtp.toml").write_text(
        '[[deliveries]]\nuse = "Spool"\npath = "spool"\nto = "smtp://127.0.0.1:25"\n'
    )
    made = Folder(tmp_path / "spool")
    made.make()
    about = {"time": time.time() - 7300, "from": "ann@example.net", "from_ext": {}}
    made.add(ONE, about | {"to": [["bob@example.org", {}], ["cyd@example.org", {}]]}, b"Subject: x\r\n\r\nbody\r\n")
    made.add(TWO, about | {"from": "", "to": [["d\x1b[31m@example.org", {}]]}, b"x" * 2000)
    made.write_state(
        ONE,
        State(attempts=3, due=time.time() + 600, replies={"cyd@example.org": "450 later"}, done=["bob@example.org"]),
    )
    return made


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["spool", *arguments], prog_name="greensmtp")
    assert result.exit_code == status, result.output
    return result


def test_list_shows_what_waits(folder: Folder) -> None:
    text = run("list").stdout
    first, second = text.splitlines()[1:]
    for word in (ONE, "2.0 h", "20 B", "3", "in 10", "<ann@example.net>", "cyd@example.org", "450 later"):
        assert word in first
    for word in (TWO, "2.0 kB", "now", "<>"):
        assert word in second
    assert "\x1b" not in text


def test_list_prints_json(folder: Folder) -> None:
    first, second = map(json.loads, run("list", "--json").stdout.splitlines())
    assert (first["id"], first["attempts"], first["waiting"], first["held"]) == (ONE, 3, ["cyd@example.org"], False)
    assert (second["id"], second["from"], second["size"]) == (TWO, "", 2000)


def test_show(folder: Folder) -> None:
    text = run("show", ONE).stdout
    assert "sent    bob@example.org" in text
    assert "waits   cyd@example.org  450 later" in text
    assert run("show", ONE, "--message").stdout_bytes == b"Subject: x\r\n\r\nbody\r\n"
    assert "got 6447ef957f642-5c1f0a-20" in run("show", "6447ef957f642-5c1f0a-20", status=1).stderr
    assert "expected the ID of a message" in run("show", "../../etc/passwd", status=1).stderr


def test_hold_release_and_retry(folder: Folder) -> None:
    assert run("hold", ONE, TWO).stdout.splitlines() == [f"{ONE} held", f"{TWO} held"]
    assert folder.state(ONE).held
    assert "held" in run("list").stdout
    assert folder.woken() > 0
    run("release", ONE)
    assert (folder.state(ONE).held, folder.state(ONE).due) == (False, 0.0)
    folder.write_state(ONE, State(due=time.time() + 600))
    run("retry")
    assert folder.state(ONE).due == 0.0
    assert folder.state(TWO).held


def test_drop_asks(folder: Folder) -> None:
    refused = CliRunner().invoke(cli, ["spool", "drop", ONE], input="n\n")
    assert refused.exit_code == 1
    assert folder.names() == [ONE, TWO]
    run("drop", ONE, "--yes")
    assert folder.names() == [TWO]
    assert [*(folder.path / "state").iterdir()] == []


def test_what_is_being_sent_is_left_alone(folder: Folder) -> None:
    with folder.open(ONE):
        result = run("drop", "--yes", ONE, TWO, "nothing", status=1)
    assert result.stdout == f"{TWO} deleted\n"
    assert result.stderr.splitlines() == [f"{ONE}: it is being sent just now", "nothing: no such message in the spool"]
    assert folder.names() == [ONE]


def test_dead_letters(folder: Folder) -> None:
    assert run("list", "--dead").stdout == "there are no dead letters\n"
    with folder.open(ONE) as entry:
        entry.state.lost = ["cyd@example.org"]
        entry.state.done.append("cyd@example.org")
        entry.bury()
    assert ONE in run("list", "--dead").stdout
    text = run("show", ONE).stdout
    assert "(dead letter)" in text
    assert "lost    cyd@example.org" in text


def test_an_empty_spool(folder: Folder) -> None:
    run("drop", ONE, TWO, "--yes")
    assert run("list").stdout == "nothing waits\n"


def test_where_it_looks(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ONE in run("--path", "spool", "list").stdout
    assert ONE in run("--config", str(tmp_path / "greensmtp.toml"), "list").stdout
    (tmp_path / "greensmtp.toml").write_text('hostname = "x.example"\n')
    assert 'has no [[deliveries]] with use = "Spool"' in run("list", status=2).stderr
    (tmp_path / "greensmtp.toml").write_text("nonsense")
    assert "greensmtp.toml: " in run("list", status=1).stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "there is no greensmtp.toml here" in run("list", status=2).stderr
    for command in ("list", "retry"):
        assert "elsewhere has no folder " in run("--path", str(tmp_path / "elsewhere"), command, status=1).stderr
    (tmp_path / "elsewhere" / "greensmtp.toml").write_text(
        '[[listeners]]\nurl = "smtp://:25"\n[[listeners.deliveries]]\nuse = "Spool"\npath = "../spool"\n'
    )
    assert ONE in run("list").stdout


DAMAGED = [
    "",
    "[]",
    "{}",
    '{"time":1,"from":"a@x.example","from_ext":{}}',
    '{"time":1,"from":1,"from_ext":{},"to":[1]}',
    "[" * 9000,
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_message_is_named_and_hides_no_other(folder: Folder, line: str) -> None:
    (folder.path / "new" / TWO).write_text(line + "\n")
    result = run("list")
    assert ONE in result.stdout
    assert result.stderr == f"{TWO}: not a message of a spool\n"
    assert "not a message of a spool" in run("show", TWO, status=1).stderr
    assert "damaged" in run("hold", TWO, status=1).stderr


def test_a_damaged_state_is_that_of_a_new_message(folder: Folder) -> None:
    for text in ("", "[]", '{"due": "soon"}', '{"attempts": null}', "[" * 9000):
        (folder.path / "state" / ONE).write_text(text)
        assert folder.state(ONE) == State()
    (folder.path / "state" / ONE).write_text('{"attempts": 2, "of_a_later_version": 1}')
    assert folder.state(ONE) == State(attempts=2)


def test_a_dead_letter_is_sent_again_to_those_who_have_not_got_it(folder: Folder) -> None:
    with folder.open(ONE) as entry:
        entry.state.lost = ["cyd@example.org"]
        entry.state.done.append("cyd@example.org")
        entry.bury()
    assert run("retry", "--dead", ONE).stdout == f"{ONE} due now\n"
    assert [*(folder.path / "dead").iterdir()] == []
    with folder.open(ONE) as entry:
        assert entry.waiting == ["cyd@example.org"]
        assert (entry.state.attempts, entry.state.lost) == (0, [])
    assert "no such dead letter" in run("retry", "--dead", ONE, status=1).stderr


def test_a_dead_letter_is_dropped(folder: Folder) -> None:
    with folder.open(ONE) as entry:
        entry.bury()
    run("drop", "--dead", "--yes", ONE)
    assert [*(folder.path / "dead").iterdir()] == []


def test_retry_says_what_is_held(folder: Folder) -> None:
    run("hold", ONE)
    assert run("retry", ONE).stdout == f"{ONE} stays held; release sends it\n"


def test_the_help_explains_it(folder: Folder) -> None:
    text = run("--help").stdout
    for word in ("list", "show", "retry", "hold", "release", "drop", "greensmtp spool list --dead"):
        assert word in text
