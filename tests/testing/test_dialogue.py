"""The format of dialogues, and how they are played."""

from __future__ import annotations

import smtplib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gevent import sleep, socket, spawn
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.testing import (
    Dialogue,
    DialoguePlayer,
    DialogueSyntaxError,
    MemoryServer,
    ServerScript,
    ServerUnderTest,
    replay_client,
    replay_in_memory,
)
from greensmtp.testing.dialogue_client import MAX_LINE
from greensmtp.testing.dialogue_player import MAX_REPLY, Wait
from greensmtp.testing.dialogue_text import MAX_SIZE, escape, glob_start, parse_pattern, unescape


def parse(lines: str, header: str = "") -> Dialogue:
    """A dialogue of these lines, which stand from line 4 on."""
    return Dialogue.parse(f"name: a test\n{header or 'topic: x'}\n\n{lines}", "test.smtp")


def play(dialogue: Dialogue, *pieces: bytes) -> DialoguePlayer:
    """Play it to a server that sends one piece whenever it is waited for, and closes the connection then."""
    player = DialoguePlayer(dialogue)
    said = iter(pieces)
    while (action := player.next_action()) is not None:
        if isinstance(action, Wait):
            player.receive(next(said, b""))
    return player


def outcome(dialogue: Dialogue, *pieces: bytes) -> tuple[str, int, str]:
    result = play(dialogue, *pieces).result
    assert result is not None
    return result.verdict, result.line, result.got


# The format


def test_a_dialogue_is_read_with_all_that_its_header_says() -> None:
    dialogue = Dialogue.parse(
        "# a comment\n\nname: a name: with a colon\nrfc: 2033 4.2\ntopic: lmtp\nprotocol: lmtp\n"
        "needs: CHUNKING, SIZE 1000\nserver: max_recipients=2, bare_newlines=reject\nrefuse: no@example.com\n"
        "users: jo:se:cret\n\n# more\nC: LHLO x\\x41\n\nC-raw: a\\r\\0\nS: 250|5xx|END *a\nTLS|END\nS: NOTHING\n"
        "[250] S: END\nH: from <a@b>\n"
    )
    assert dialogue.name == str(dialogue) == "a name: with a colon"
    assert (dialogue.rfc, dialogue.topic, dialogue.lmtp) == ("2033 4.2", "lmtp", True)
    assert dialogue.needs == ("CHUNKING", "SIZE 1000")
    assert dialogue.server == {"max_recipients": 2, "bare_newlines": "reject"}
    assert dialogue.refuse == ("no@example.com",)
    assert dialogue.users == {"jo": "se:cret"}
    assert dialogue.events == ("from <a@b>",)
    assert [step.kind for step in dialogue.steps] == ["send", "send", "reply", "tls", "nothing", "end"]
    assert [step.line for step in dialogue.steps] == [13, 15, 16, 17, 18, 19]
    assert [step.data for step in dialogue.steps[:2]] == [b"LHLO xA\r\n", b"a\r\0"]
    assert dialogue.steps[2].pattern == parse_pattern("END|250|5xx *a")
    assert dialogue.steps[5].condition == parse_pattern("250")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the header has no name"),
        ("name: x\n\n", "the dialogue has no lines"),
        ("name: x\nnmae: y\n\nS: 220\n", ":2: expected a header line"),
        ("need: x\n", "did you mean 'needs'"),
        ("name: x\nname: y\n", ":2: name is given twice"),
        ("S: 220\n", ":1: expected a header line"),
        ("name: x\nprotocol: http\n\nS: 220\n", "protocol is smtp or lmtp, not 'http'"),
        ("name: x\nneeds: chunking\n\nS: 220\n", "needs takes EHLO keywords"),
        ("name: x\nserver: fast\n\nS: 220\n", "server takes options, like max_recipients=2, not 'fast'"),
        ("name: x\nusers: jo\n\nS: 220\n", "users takes names with passwords"),
        ("name: x\nsend: <a@b>\n\nS: 220\n", "send takes paths, like <ann@example.org>"),
        ("name: x\nsend: <a@b> <c@d>\n\nTLS\n", ":4: expected a line that begins with S:, S-raw:, C: or H:"),
        ("name: x\n\nQUIT\n", ":3: expected a line that begins with C:"),
        ("name: x\n\nC:QUIT\n", ":3: expected a line that begins with C:"),
        ("name: x\n\nS: 220 \n", r":3: a space or CR at the end of the line cannot be seen: write \x20"),
        ("name: x\r\n\r\nS: 220\r\n", ":1: a space or CR"),
        ("name: x\n\nS: 25\n", ":3: expected reply codes"),
        ("name: x\n\nS: 150\n", ":3: expected reply codes"),
        ("name: x\n\nS: 250|\n", ":3: expected reply codes"),
        ("name: x\n\nS:\n", ":3: expected reply codes"),
        ("name: x\n\n[] S: 250\n", ":3: expected reply codes"),
        ("name: x\n\n[250] H: quit\n", ":3: an event has no condition"),
        ("name: x\n\nC: \\q\n", r":3: unknown escape '\\q'"),
        ("name: x\n\nC: \\\n", ":3: unknown escape"),
        ("name: x\n\nC: \\x4\n", ":3: unknown escape"),
        ("name: x\n\nC: \\{a*99999999}\n", "stands for more than"),
        ("name: x\n\nC: \\{a*16777210}\nC: b\nC: c\n", ":5: the dialogue sends more than"),
    ],
)
def test_an_error_names_the_line_and_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(DialogueSyntaxError) as raised:
        Dialogue.parse(text, "file.smtp")
    assert str(raised.value).startswith("file.smtp:")
    assert words in str(raised.value)


def test_a_file_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.smtp").write_bytes(b"name: \xff\n")
    with pytest.raises(DialogueSyntaxError, match=r"x\.smtp: expected UTF-8"):
        Dialogue.load(tmp_path / "x.smtp")


@given(st.binary())
def test_bytes_survive_escaping(data: bytes) -> None:
    text = escape(data)
    assert text.isprintable()
    assert unescape(text) == data


def test_escapes() -> None:
    assert unescape(r"a\r\n\t\0\\\x7fé") == b"a\r\n\t\0\\\x7f\xc3\xa9"
    assert unescape(r"\{ab\r\n*3}") == b"ab\r\n" * 3
    assert unescape(r"\\{a*3}") == b"\\{a*3}"
    assert unescape(r"\{a**2}") == b"a*a*"
    assert len(unescape(r"\{a*16777216}")) == MAX_SIZE


@pytest.mark.parametrize(
    ("pattern", "code", "text", "matches"),
    [
        ("250", 250, "anything", True),
        ("250", 251, "", False),
        ("2xx", 252, "", True),
        ("25x|503", 503, "", True),
        ("5xx", 421, "", False),
        ("250 2.1.0", 250, "2.1.0 Ok", True),
        ("250 2.1.0", 250, "Ok", False),
        ("250 *size 10", 250, "mx\nPIPELINING\nSIZE 10000", True),
        ("250 !*STARTTLS", 250, "mx\nSTARTTLS", False),
        ("250 !*STARTTLS", 250, "mx\nSIZE", True),
        (r"250 !*\n", 250, "one line", True),
        (r"250 !*\n", 250, "two\nlines", False),
        ("250 a.c", 250, "abc", False),
    ],
)
def test_patterns(pattern: str, code: int, text: str, matches: bool) -> None:
    assert parse_pattern(pattern).matches(code, text) is matches


def test_a_pattern_of_many_stars_takes_no_exponential_time() -> None:
    assert not glob_start("*a" * 100 + "b", "a" * 10_000)


# The play


def test_a_dialogue_that_goes_as_it_must_passes() -> None:
    dialogue = parse("S: 220\nC: EHLO x\nS: 250 *SIZE\nC: QUIT\nS: 221\nS: END\n")
    player = play(dialogue, b"220 hi\r\n", b"250-mx\r\n25", b"0 SIZE\r\n", b"221 bye\r\n")
    assert player.result is not None
    assert (player.result.verdict, player.result.line) == ("pass", 0)
    assert player.replies == [(220, "hi"), (250, "mx\nSIZE"), (221, "bye")]
    assert player.result.transcript == (
        "S: 220 hi", "C: EHLO x", "S: 250-mx", "S: 250 SIZE", "C: QUIT", "S: 221 bye", "S: END",
    )  # fmt: skip
    assert str(player.result) == "pass: a test"


def test_lines_of_the_client_in_a_row_are_one_piece() -> None:
    player = DialoguePlayer(parse("C: A\nC-raw: B\nC: C\nS: 250\nC: D\nS: 250\n"))
    assert player.next_action() == b"A\r\nBC\r\n"
    assert player.next_action() is Wait.BYTES


@pytest.mark.parametrize(
    ("lines", "said", "line", "got"),
    [
        ("S: 220\n", [b"554 no\r\n"], 4, "S: 554 no"),
        ("S: 220\n", [], 4, "the end of the connection"),
        ("S: 220\n", [b"22"], 4, "the end of the connection, behind 22"),
        ("S: 220\nS: END\n", [b"220 a\r\n", b"250 b\r\n"], 5, "S: 250 b"),
        ("S: 220\n", [b"220 a\r\n250 b\r\n"], 4, "S: 250 b"),
        ("S: 220\nS: NOTHING\n", [b"220 a\r\n250 b\r\n"], 5, "S: 250 b"),
        ("S: 220\nS: NOTHING\n", [b"220 a\r\n", b""], 5, "the end of the connection"),
        ("S: 220\nTLS\n", [b"220 a\r\n250 b\r\n"], 5, "S: 250 b"),
        ("S: 220\n", [b"hello\r\n"], 4, "what is not a reply: hello"),
        ("S: 220\n", [b"220 a\nb\r\n"], 4, "what is not a reply: 220 a\\nb"),
        ("S: 220\n", [b"220-a\r\n250 b\r\n"], 4, "a reply whose code changes: 250 b"),
        ("S: 220\n", [b"220-" + b"a" * MAX_REPLY], 4, f"a reply of more than {MAX_REPLY} bytes"),
        ("S: 220\n", [b"220-a\r\n" * 20_000], 4, f"a reply of more than {MAX_REPLY} bytes"),
        ("S: 2xx|END\n", [b"220", b""], 4, "the end of the connection, behind 220"),
    ],
)  # fmt: skip
def test_what_differs_fails_at_its_line(lines: str, said: list[bytes], line: int, got: str) -> None:
    assert outcome(parse(lines), *said) == ("fail", line, got)


def test_the_text_of_a_server_is_shown_without_control_characters() -> None:
    result = play(parse("S: 220\n"), b"554 \x1b[2J\xff\r\n").result
    assert result is not None
    assert result.got == r"S: 554 \x1b[2J\xff"


def test_the_end_may_stand_for_a_reply_and_ends_the_dialogue() -> None:
    dialogue = parse("S: 220\nC: X\nS: 5xx|END\nC: QUIT\nS: 221|END\n")
    assert outcome(dialogue, b"220 a\r\n", b"")[0] == "pass"
    assert outcome(dialogue, b"220 a\r\n", b"500 a\r\n", b"221 b\r\n")[0] == "pass"
    assert outcome(dialogue, b"220 a\r\n", b"500 a\r\n", b"250 b\r\n")[0] == "fail"


def test_421_ends_the_dialogue_unless_the_end_is_expected() -> None:
    dialogue = parse("S: 220\nC: X\nS: 5xx|421\nC: QUIT\nS: 221\n")
    assert outcome(dialogue, b"220 a\r\n", b"421 a\r\n")[0] == "pass"
    dialogue = parse("S: 220\nC: X\nS: 421\nS: END\n")
    assert outcome(dialogue, b"220 a\r\n", b"421 a\r\n")[0] == "pass"
    assert outcome(dialogue, b"220 a\r\n", b"421 a\r\n250 b\r\n")[0] == "fail"


def test_lines_with_a_condition_stand_or_fall_together() -> None:
    dialogue = parse("C: DATA\nS: 354|5xx\n[354] C: .\n[354] S: 250\n[354] C: NOOP\n[354] S: 250\nC: QUIT\nS: 221\n")
    assert outcome(dialogue, b"503 a\r\n", b"221 b\r\n")[0] == "pass"
    assert outcome(dialogue, b"354 a\r\n", b"250 b\r\n", b"250 c\r\n", b"221 d\r\n")[0] == "pass"


def test_a_handshake_may_fail_where_the_dialogue_says_so() -> None:
    for lines, verdict in (("TLS|END\nS: 250\n", "pass"), ("TLS\nS: 250\n", "fail")):
        player = DialoguePlayer(parse(lines))
        assert player.next_action() is Wait.TLS
        player.tls_failed("no")
        assert player.next_action() is None
        assert player.result is not None
        assert player.result.verdict == verdict


def test_silence_is_expected_or_a_failure() -> None:
    player = DialoguePlayer(parse("S: NOTHING\nS: 250\n"))
    assert player.next_action() is Wait.SILENCE
    player.timed_out()
    assert player.next_action() is Wait.BYTES
    player.timed_out()
    assert player.next_action() is None
    assert player.result is not None
    assert player.result.failed
    assert str(player.result) == "test.smtp:5: a test: expected S: 250, got nothing in time"


def test_silence_may_stand_for_a_reply_and_ends_the_dialogue() -> None:
    player = DialoguePlayer(parse("S: 5xx|NOTHING\nC: NOOP\nS: 250\n"))
    assert player.next_action() is Wait.SILENCE
    player.timed_out()
    assert player.next_action() is None
    assert player.result is not None
    assert player.result.verdict == "pass"
    assert outcome(parse("S: 5xx|NOTHING\n"), b"250 a\r\n")[0] == "fail"


# In memory


def test_handlers_must_have_seen_all_events_in_order() -> None:
    lines = "S: 220\nC: EHLO client.example\nS: 250\nC: MAIL FROM:<a@b.example> SIZE=3\nS: 250\n"
    hello, sender = "H: hello EHLO client.example\n", "H: from <a@b.example> SIZE=3\n"
    assert replay_in_memory(parse(lines + hello + sender)).verdict == "pass"
    result = replay_in_memory(parse(lines + sender + hello))
    assert (result.verdict, result.expected, result.got) == (
        "fail",
        "the event 'from <a@b.example> SIZE=3'",
        "the event 'hello EHLO client.example'",
    )
    assert replay_in_memory(parse(lines + hello)).got == "the event 'from <a@b.example> SIZE=3'"


def test_a_server_in_memory_says_what_it_cannot_do() -> None:
    result = replay_in_memory(parse("S: 220\n", "server: max_errors=3\nneeds: AUTH PLAIN, CHUNKING"))
    assert (result.verdict, result.got) == ("not applicable", "needs max_errors, AUTH PLAIN")


def test_an_option_that_a_server_in_memory_does_not_have_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"takes the options max_message_size, .*, and not max_size"):
        MemoryServer(max_size=3)


# The server's side


def hear(lines: str, *pieces: bytes) -> tuple[str, int, str, bytes]:
    """Play the server's side to a client that says one piece whenever it is waited for, and is gone then."""
    script = ServerScript(parse(lines, "send: <a@b.example> <c@d.example>"))
    said, sent = iter(pieces), b""
    while (action := script.next_action()) is not None:
        if isinstance(action, bytes):
            sent += action
        else:
            script.receive(next(said, b""))
    assert script.result is not None
    return script.result.verdict, script.result.line, script.result.got, sent


def test_the_server_of_a_script_says_its_lines_when_the_client_has_said_its_own() -> None:
    lines = "S: 220 hi\nC: EHLO *\nS: 250-mx\nS-raw: 250 \\x41\\r\\n\nC: MAIL FROM:<a@b> *SIZE*\nC: RCPT*\nC: END\n"
    outcome = hear(lines, b"EHLO me\r", b"\nMAIL FROM:<a@b> X SIZE=3\r\nRCPT\r\n")
    assert outcome == ("pass", 0, "", b"220 hi\r\n250-mx\r\n250 A\r\n")


@pytest.mark.parametrize(
    ("lines", "said", "line", "got"),
    [
        ("C: QUIT\n", [b"NOOP\r\n"], 4, "C: NOOP"),
        ("C: QUIT\n", [b"QUIT now\r\n"], 4, "C: QUIT now"),
        ("C: *x*y\n", [b"xz\r\n"], 4, "C: xz"),
        ("C: a*a\n", [b"a\r\n"], 4, "C: a"),
        ("C: *\n", [b"a\nb\r\n"], 4, "C: a\\nb"),
        ("C: *\n", [b"a\rb\r\n"], 4, "C: a\\rb"),
        ("C: QUIT\n", [b"QUI"], 4, "the end of the connection"),
        ("C: QUIT\nC: END\n", [b"QUIT\r\nNOOP\r\n"], 5, "C: NOOP\\r\\n"),
        ("C: *\n", [b"x" * (MAX_LINE + 1)], 4, "a line of more than a megabyte"),
    ],
)  # fmt: skip
def test_what_a_client_says_otherwise_fails_at_its_line(lines: str, said: list[bytes], line: int, got: str) -> None:
    assert hear(lines, *said)[:3] == ("fail", line, got)


def test_a_client_that_says_nothing_is_waited_for_as_long_as_the_timeout() -> None:
    dialogue = parse("S: 220 hi\nC: EHLO *\n", "send: <a@b.example> <c@d.example>")

    def send(dialogue: Dialogue, sock: Any) -> list[str]:
        sleep(5)
        return []

    result = replay_client(dialogue, send=send, timeout=0.05)
    assert (result.verdict, result.line, result.got) == ("fail", 5, "nothing in time")


def drip(sock: Any) -> None:
    with suppress(OSError):
        while True:
            sock.sendall(b"2")
            sleep(0.005)


def test_a_client_that_drips_has_one_deadline_for_a_line() -> None:
    dialogue = parse("S: 220 hi\nC: EHLO *\n", "send: <a@b.example> <c@d.example>")

    def send(dialogue: Dialogue, sock: Any) -> list[str]:
        drip(sock)
        return []

    result = replay_client(dialogue, send=send, timeout=0.05)
    assert (result.verdict, result.got) == ("fail", "nothing in time")


def test_a_server_that_drips_has_one_deadline_for_a_reply() -> None:
    ours, theirs = socket.socketpair()
    dripping = spawn(drip, theirs)
    result = ServerUnderTest(lambda: ours, timeout=0.05).replay(parse("S: 220\n"))
    assert result.verdict == "fail"
    assert result.got.startswith("nothing in time, behind 222")
    dripping.kill()
    theirs.close()


def test_smtplib_passes_a_dialogue_too() -> None:
    dialogue = Dialogue.load(Path(__file__).parent.parent / "corpus" / "client" / "transparency.smtp")

    class Client(smtplib.SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> Any:
            return self.given

        def __init__(self, sock: Any) -> None:
            self.given = sock
            super().__init__("mx.example.com", 25, "client.example")

    def send(dialogue: Dialogue, sock: Any) -> list[str]:
        assert dialogue.send is not None
        with Client(sock) as mail:
            mail.sendmail(dialogue.send[0], dialogue.send[1:], dialogue.body)
        return ["sent 250 2.0.0 Ok"]

    assert replay_client(dialogue, send=send).verdict == "pass"
