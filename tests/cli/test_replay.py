"""``greensmtp replay``: dialogues against a server at a URL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gevent import socket

from greensmtp.cli import cli
from greensmtp.testing.fixtures import MakeServer

CORPUS = Path(__file__).parent.parent / "corpus"

GOOD = "name: it greets\ntopic: order\nrfc: 5321 3.1\n\nS: 220\nC: QUIT\nS: 221\nS: END\n"
BAD = "name: it says 299\ntopic: odd\n\nS: 220\nC: NOOP\nS: 299 never\n"
ELSEWHERE = "name: it forwards\ntopic: order\nneeds: XFORWARD\n\nS: 220\n"

Replay = Callable[..., Result]


@pytest.fixture
def replay(smtp_server: MakeServer, tmp_path: Path) -> Replay:
    """Run the command with these options against a server that accepts everything."""
    server = smtp_server(max_message_size=1_000_000)
    server.on("message", lambda session, stream, ack: ack.accept())
    for name, text in (("a-good", GOOD), ("b-bad", BAD), ("c-elsewhere", ELSEWHERE)):
        (tmp_path / f"{name}.smtp").write_text(text)
    url = f"smtp://127.0.0.1:{server.address[1]}"
    return lambda *arguments: CliRunner().invoke(cli, ["replay", "--server", url, *map(str, arguments)])


def test_the_corpus_passes(replay: Replay) -> None:
    result = replay(CORPUS)
    assert "FAIL" not in result.output
    assert result.exit_code == 0
    assert result.output.splitlines()[-1].startswith(f"{len(list(CORPUS.glob('*.smtp')))} dialogues: ")


def test_a_failure_is_shown_with_its_line_and_what_came(replay: Replay, tmp_path: Path) -> None:
    result = replay(tmp_path)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"FAIL  {tmp_path}/b-bad.smtp:6  it says 299",
        "      expected  S: 299 never",
        "      got       S: 250 2.0.0 Ok",
        f"n/a   {tmp_path}/c-elsewhere.smtp  it forwards (it needs XFORWARD)",
        "3 dialogues: 1 passed, 1 failed, 1 not applicable",
    ]


def test_verbose_shows_what_passed_and_the_dialogue_that_failed(replay: Replay, tmp_path: Path) -> None:
    lines = replay("-v", tmp_path).output.splitlines()
    assert lines[0] == f"pass  {tmp_path}/a-good.smtp  it greets"
    assert lines[2:5] == ["        S: 220 mx.example.com ESMTP", "        C: NOOP", "        S: 250 2.0.0 Ok"]


def test_the_report_as_json(replay: Replay, tmp_path: Path) -> None:
    result = replay("--format", "json", tmp_path)
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert [each["verdict"] for each in report["dialogues"]] == ["pass", "fail", "not applicable"]
    assert report["dialogues"][1] | {"file": ""} == {
        "file": "",
        "name": "it says 299",
        "topic": "odd",
        "rfc": "",
        "verdict": "fail",
        "line": 6,
        "expected": "S: 299 never",
        "got": "S: 250 2.0.0 Ok",
    }


def test_only_one_topic(replay: Replay, tmp_path: Path) -> None:
    assert replay("--topic", "order", tmp_path).output.splitlines()[-1].startswith("2 dialogues: 1 passed, 0 failed")
    result = replay("--topic", "none", tmp_path)
    assert (result.exit_code, result.output) == (2, "Error: there is no dialogue in these files with the topic none\n")


def test_what_the_client_sends_can_be_replaced(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "x.smtp"
    path.write_text("name: x\n\nS: 220\nC: EHLO client.example\nS: 250 *greets me.example\nC: QUIT\nS: 221\n")
    assert replay("--replace", "client.example=me.example", path).exit_code == 0
    assert replay(path).exit_code == 1
    result = replay("--replace", "client.example", path)
    assert result.exit_code == 2
    assert "expected OLD=NEW, not 'client.example'" in result.output


def test_a_configured_server_is_asked_for_what_a_header_says(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "x.smtp"
    path.write_text("name: x\nrefuse: no@example.com\nserver: max_errors=3\nusers: jo:x\n\nS: 220\nC: QUIT\nS: 221\n")
    assert "(it needs a server with the options max_errors)" in replay(path).output
    partly = replay("--configured", "server", "--configured", "users", path)
    assert "(it needs a server that refuses no@example.com)" in partly.output
    everything = [word for key in ("server", "refuse", "users") for word in ("--configured", key)]
    assert "1 passed" in replay(*everything, path).output


def test_lmtp_dialogues_are_for_lmtp_servers(smtp_server: MakeServer) -> None:
    server = smtp_server(lmtp=True)
    server.on("message", lambda session, stream, ack: ack.accept())
    where = f"127.0.0.1:{server.address[1]}"
    for options in (["--lmtp", "--server", where], ["--server", f"lmtp://{where}"]):
        result = CliRunner().invoke(cli, ["replay", *options, str(CORPUS / "lmtp-lhlo.smtp"), "-v"])
        assert (result.exit_code, result.output.splitlines()[-1][:21]) == (0, "1 dialogue: 1 passed,")
    result = CliRunner().invoke(cli, ["replay", "--server", f"lmtp://{where}", str(CORPUS / "order-helo.smtp")])
    assert "(it is for SMTP)" in result.output


def test_a_malformed_file_names_its_line(replay: Replay, tmp_path: Path) -> None:
    (tmp_path / "d.smtp").write_text("name: x\n\nS: 2200\n")
    result = replay(tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {tmp_path}/d.smtp:3: expected reply codes")


def test_a_server_that_cannot_be_reached_is_no_failure_of_a_dialogue(tmp_path: Path) -> None:
    (tmp_path / "x.smtp").write_text(GOOD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    result = CliRunner().invoke(cli, ["replay", "--server", url, str(tmp_path)])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: cannot replay against {url}: ")
    assert "refused" in result.output


def test_a_url_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.smtp").write_text(GOOD)
    result = CliRunner().invoke(cli, ["replay", "--server", "http://x", str(tmp_path)])
    assert result.exit_code == 2
    assert "expected the URL of a mail server, like smtp://mx.example.com:25; got 'http://x'" in result.output


def test_a_silent_server_is_waited_for_as_long_as_the_timeout(tmp_path: Path) -> None:
    (tmp_path / "x.smtp").write_text(GOOD)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        result = CliRunner().invoke(cli, ["replay", "--server", url, "--timeout", "0.1", str(tmp_path)])
    assert result.exit_code == 1
    assert "got       nothing in time" in result.output
