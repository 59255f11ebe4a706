"""Commands: a corpus of raw lines with the command that each is parsed as, and properties of any bytes."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import (
    END_OF_DATA,
    PARSERS,
    PSEUDO_COMMANDS,
    UNKNOWN,
    ChunkCommand,
    Command,
    EndOfData,
    HelloCommand,
    is_foreign,
    parse_command,
)

#: raw line -> verb, argument, the reply code if it is malformed
LINES: list[tuple[bytes, str, str, int | None]] = [
    (b"QUIT", "QUIT", "", None),
    (b"quit", "QUIT", "", None),
    (b"QuIt  ", "QUIT", "", None),
    (b"QUIT\t", "QUIT", "", None),
    (b"QUIT now", "QUIT", "now", 501),
    (b"DATA", "DATA", "", None),
    (b"DATA x", "DATA", "x", 501),
    (b"RSET", "RSET", "", None),
    (b"RSET all", "RSET", "all", 501),
    (b"STARTTLS", "STARTTLS", "", None),
    (b"STARTTLS please", "STARTTLS", "please", 501),
    (b"NOOP", "NOOP", "", None),
    (b"NOOP  for   ever ", "NOOP", "for   ever", None),
    (b"HELP", "HELP", "", None),
    (b"HELP MAIL", "HELP", "MAIL", None),
    (b"VRFY jo", "VRFY", "jo", None),
    (b"VRFY j\xc3\xb6rg SMTPUTF8", "VRFY", "jörg SMTPUTF8", None),
    (b"VRFY", "VRFY", "", 501),
    (b"VRFY  ", "VRFY", "", 501),
    (b"EXPN list", "EXPN", "list", None),
    (b"EXPN", "EXPN", "", 501),
    # greetings
    (b"EHLO client.example.com", "EHLO", "client.example.com", None),
    (b"helo\tclient.example.com", "HELO", "client.example.com", None),
    (b"LHLO [192.0.2.1]", "LHLO", "[192.0.2.1]", None),
    (b"EHLO  [IPv6:2001:db8::1] ", "EHLO", "[IPv6:2001:db8::1]", None),
    (b"EHLO under_score", "EHLO", "under_score", None),
    (b"EHLO", "EHLO", "", 501),
    (b"EHLO ", "EHLO", "", 501),
    # names that printers and PCs have
    (b"EHLO Copier 3000", "EHLO", "Copier 3000", None),
    (b"HELO\tCopier\t3000", "HELO", "Copier 3000", None),
    (b"EHLO b\xc3\xbcro-pc", "EHLO", "büro-pc", None),
    (b"EHLO b\xfcro-pc", "EHLO", "büro-pc", None),
    (b"HELO  B\xdcRO PC ", "HELO", "BÜRO PC", None),
    (b"LHLO b\xfcro-pc", "LHLO", "büro-pc", None),
    (b"EHLO b\x81ro-pc", "EHLO", "b\\x81ro-pc", None),  # in code page 850
    (b"EHLO b\xe2\x80\x8dc", "EHLO", "b\\u200dc", None),
    (b"EHLO \xff", "EHLO", "ÿ", None),
    (b"EHLO " + b"\xfc" * 255, "EHLO", "ü" * 255, None),
    (b"EHLO " + b"\xfc" * 256, "EHLO", "ü" * 256, 501),
    (b"EHLO b\x1bro\xfc", "EHLO", "b\\x1bro\\xfc", 501),
    (b"EHLO b\xfc\x00", "EHLO", "b\\xfc\\x00", 501),
    (b"EHLO b\xfc\rx", "EHLO", "b\\xfc\\rx", 501),
    (b"EHLO b\xc2\x85x", "EHLO", "b\\xc2\\x85x", 501),
    (b"EHLO b\xe2\x80\xaex", "EHLO", "b\\xe2\\x80\\xaex", 501),
    (b"EHLO\xfc", "EHLO", "\\xfc", 500),
    (b"EHLO " + b"x" * 255, "EHLO", "x" * 255, None),
    (b"EHLO " + b"x" * 256, "EHLO", "x" * 256, 501),
    # verbs that the server does not implement
    (b"AUTH PLAIN AGJlZXAAYm9vcA==", "AUTH", "PLAIN AGJlZXAAYm9vcA==", None),
    (b"ETRN example.com", "ETRN", "example.com", None),
    (b"FROB", "FROB", "", None),
    (b"x y z", "X", "y z", None),
    (b"MAILFROM:<jo@example.com>", "MAILFROM:<JO@EXAMPLE.COM>", "", None),
    (b"", UNKNOWN, "", None),
    (b" ", UNKNOWN, " ", None),
    (b" QUIT", UNKNOWN, " QUIT", None),
    (b"\tQUIT", UNKNOWN, " QUIT", None),
    # the life of a connection is no peer's to tell
    (b"CONNECT", UNKNOWN, "CONNECT", None),
    (b"connect mx.example.com:25", UNKNOWN, "connect mx.example.com:25", None),
    (b"END-OF-DATA", UNKNOWN, "END-OF-DATA", None),
    (b"End-Of-Data\t", UNKNOWN, "End-Of-Data ", None),
    (b"DISCONNECT quit", UNKNOWN, "DISCONNECT quit", None),
    # letters that upper() folds into ASCII make no verb of ours
    ("ma\u0131l FROM:<jo@example.com>".encode(), UNKNOWN, "ma\u0131l FROM:<jo@example.com>", None),
    ("R\u017fET".encode(), UNKNOWN, "R\u017fET", None),
    ("D\u0131\u017fCONNECT".encode(), UNKNOWN, "D\u0131\u017fCONNECT", None),
    ("\uff31\uff35\uff29\uff34".encode(), UNKNOWN, "\uff31\uff35\uff29\uff34", None),
    ("stra\xdfe".encode(), UNKNOWN, "stra\xdfe", None),
    # control characters, and what is not UTF-8
    (b"QUIT\0", "QUIT", r"\x00", 500),
    (b"NOOP \0", "NOOP", r"\x00", 501),
    (b"NOOP \r", "NOOP", r"\r", 501),
    (b"NOOP\nQUIT", "NOOP", r"\nQUIT", 500),
    (b"NOOP \x7f", "NOOP", r"\x7f", 501),
    (b"NOOP \x1b[2J", "NOOP", r"\x1b[2J", 501),
    (b"NOOP \xff", "NOOP", r"\xff", 501),
    (b"NOOP \xc2\x85", "NOOP", r"\xc2\x85", 501),
    (b"NOOP \xe2\x80\xa8", "NOOP", r"\xe2\x80\xa8", 501),
    (b"NOOP \xe2\x80\xae", "NOOP", r"\xe2\x80\xae", 501),  # a mark that turns the log's line around
    (b"NOOP \xc2\xa0", "NOOP", r"\xc2\xa0", 501),
    (b"NOOP \xed\xa0\x80", "NOOP", r"\xed\xa0\x80", 501),
    (b"NOOP \xc0\xaf", "NOOP", r"\xc0\xaf", 501),
    (b"EHLO x\0", "EHLO", r"x\x00", 501),
    (b"MAIL FROM:<jo\0@example.com>", "MAIL", r"FROM:<jo\x00@example.com>", 501),
    (b"BDAT 5\0", "BDAT", r"5\x00", 501),
    (b"auth PLAIN \xff", "AUTH", r"PLAIN \xff", 501),
    (b"CONNECT \0", UNKNOWN, r"CONNECT \x00", 500),
    (b"\0\0\0\0", UNKNOWN, r"\x00\x00\x00\x00", 500),
    (b"\xff\xfe", UNKNOWN, r"\xff\xfe", 500),
]


@pytest.mark.parametrize(("line", "verb", "argument", "code"), LINES)
def test_a_line_is_parsed(line: bytes, verb: str, argument: str, code: int | None) -> None:
    command = parse_command(line)
    assert (command.verb, command.argument) == (verb, argument)
    assert (None if command.error is None else command.error.code) == code


@pytest.mark.parametrize(
    ("line", "size", "last"),
    [
        (b"BDAT 0", 0, False),
        (b"BDAT 86 LAST", 86, True),
        (b"bdat 86  last", 86, True),
        (b"BDAT 9223372036854775808", 2**63, False),
        (b"BDAT " + b"0" * 100 + b"86 LAST", 86, True),
        (b"BDAT", None, False),
        (b"BDAT LAST", None, False),
        (b"BDAT -1", None, False),
        (b"BDAT +1", None, False),
        (b"BDAT 1_000", None, False),
        (b"BDAT 0x10", None, False),
        (b"BDAT 1e3", None, False),
        (b"BDAT 1.0", None, False),
        (b"BDAT 86 FIRST", None, False),
        (b"BDAT 86LAST", None, False),
        (b"BDAT 86 LAST LAST", None, False),
        (b"BDAT " + b"9" * 21, None, False),
        (b"BDAT " + b"9" * 5000, None, False),
        ("BDAT \u0663".encode(), None, False),
        ("BDAT 86 LA\u017fT".encode(), None, False),
        ("BDAT 8²".encode(), None, False),
    ],
)
def test_bdat_is_parsed(line: bytes, size: int | None, last: bool) -> None:
    command = parse_command(line)
    assert isinstance(command, ChunkCommand)
    assert command.error is (canned.BDAT_SYNTAX if size is None else None)
    assert (command.size, command.last) == (size or 0, last)


@pytest.mark.parametrize("verb", ["EHLO", "HELO", "LHLO"])
def test_a_greeting_has_the_clients_name(verb: str) -> None:
    command = parse_command(f"{verb} client.example.com".encode())
    assert isinstance(command, HelloCommand)
    assert command.hostname == "client.example.com"


VERBS = [verb.encode() for verb in (*PARSERS, *PSEUDO_COMMANDS, "AUTH", "HTTP")]
WORDS = st.sampled_from(
    [*VERBS, b" ", b"\t", b":", b"<", b">", b'"', b"\\", b"@", b"FROM:<", b"TO:<a@b>", b"=", b"LAST"]
)
ALMOST = st.lists(WORDS | st.binary(max_size=3), max_size=8).map(b"".join)


@given(st.binary() | ALMOST | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
@example("\u0131".encode())
@example(b"MAIL FROM:<")
def test_any_bytes_are_a_command(line: bytes) -> None:
    command = parse_command(line)
    assert isinstance(command, Command)
    assert command.verb not in PSEUDO_COMMANDS
    assert command.verb
    assert command.verb.isascii()
    assert command.verb == command.verb.upper()
    assert " " not in command.verb
    assert command.error is None or command.error.code in (500, 501, 553)
    # These go into logs, and the reply onto the wire.
    assert all(char.isprintable() or char in "\u200c\u200d" for char in str(command))
    assert repr(command)
    if command.error is not None:
        assert command.error.encode().endswith(b"\r\n")


#: Bytes in the longest line (AUTH's). The lines are as hard to parse as possible: each begins like a path, a route, a
#: domain or a quoted string, and does not end like one.
LONGEST = 12_288
HEADS = [
    b"",
    b"A ",
    b"EHLO ",
    b"BDAT ",
    b"MAIL FROM:",
    b"MAIL FROM:<",
    b"MAIL FROM:<@",
    b'MAIL FROM:<"',
    b"MAIL FROM:<a@",
]
HEADS += [b"MAIL FROM:<a@b> ", b"MAIL FROM:<a@b> A=", b"MAIL FROM:<a@[", b"MAIL FROM:<a@[x", b"MAIL FROM:<a@[IPv6:"]
HEADS += ["MAIL FROM:<ä".encode(), "MAIL FROM:<@ä".encode(), b"RCPT TO:<a.b-.c@d"]
RUNS = [b"a", b".", b"a.", b"-", b"a-", b"a@", b"@a,", b"@a:", b'"', b'""', b'"a"', b"\\", b'\\"', b'\\"a', b" ", b" a"]
RUNS += [
    b"0",
    b"0 ",
    b":",
    b"::",
    b"<",
    b">",
    b"<>",
    b"> ",
    b"=",
    b"A=b ",
    b"\t",
    b"\0",
    b"\xff",
    "ä".encode(),
    "ä.".encode(),
]
TAILS = [b"", b">", b"@", b"@>", b"!", b"\0", b'">', b'"@b>', b"->", b" LAST", b" LAST!", b"> A=b", b"> ="]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_hostile_lines_are_parsed_in_linear_time(head: bytes, every: int) -> None:
    for run, tail in itertools.islice(itertools.product(RUNS, TAILS), None, None, every):
        line = head + run * (LONGEST // len(run)) + tail
        began = time.thread_time()
        parse_command(line)
        taken = time.thread_time() - began
        # A few milliseconds at worst; what takes the square of the length takes a second.
        assert taken < 0.1, line[:40]


@pytest.mark.parametrize(
    "line", [b"AUTH PLAIN c2VjcmV0", b"auth plain c2VjcmV0", b" AUTH PLAIN c2VjcmV0", b"AUTH c2VjcmV0\xff"]
)
def test_a_secret_is_not_in_the_repr(line: bytes) -> None:
    shown = repr(parse_command(line))
    assert "AUTH" in shown
    assert "c2VjcmV0" not in shown


@pytest.mark.parametrize("verb", sorted(PSEUDO_COMMANDS))
def test_no_client_can_send_a_pseudo_command(verb: str) -> None:
    for around in ("{}", "{} x", "{}\t", "{}\0", "{}\r", " {}", "\t{}", "\0{}"):
        for spelled in (verb.upper(), verb.lower(), verb.title()):
            line = around.format(spelled).encode()
            assert parse_command(line).verb not in PSEUDO_COMMANDS, line


def test_end_of_data_has_its_recipient() -> None:
    recipient = Address.parse("jo@example.com")
    assert (EndOfData().verb, EndOfData().argument, EndOfData().recipient) == (END_OF_DATA, "", None)
    assert (EndOfData(recipient).argument, EndOfData(recipient).recipient) == ("jo@example.com", recipient)


@pytest.mark.parametrize(
    ("line", "foreign"),
    [
        (b"GET / HTTP/1.1", True),
        (b"get /", True),
        (b"POST /x HTTP/1.0", True),
        (b"CONNECT mx.example.com:25 HTTP/1.1", True),
        (b"PRI * HTTP/2.0", True),
        (b"BREW /pot HTTP/1.1", True),
        (b"\x16\x03\x01\x02\x00", True),
        (b"GETTY", False),
        (b"FROB x", False),
        (b"NOOP", False),
        (b"", False),
    ],
)
def test_another_protocol_is_recognized_by_its_first_line(line: bytes, foreign: bool) -> None:
    assert is_foreign(line) is foreign


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"AUTH PLAIN AGpvAHNlY3JldA==", "AUTH ***"),
        (b"AUTHPLAIN AGpvAHNlY3JldA==", "AUTH ***"),
        (b"\xff AUTH PLAIN AGpvAHNlY3JldA==", "AUTH ***"),
        (b"AUTH", "AUTH"),
        (b"NOOP jo", "NOOP jo"),
    ],
)
def test_the_text_of_a_command_may_be_logged(line: bytes, shown: str) -> None:
    command = parse_command(line)
    assert str(command) == shown
    assert repr(command) == f"<{type(command).__name__} {shown!r}>"
