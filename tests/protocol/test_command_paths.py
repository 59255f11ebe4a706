"""MAIL and RCPT: a corpus of raw lines with the address that each holds, or its reply code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import PathCommand, parse_command

JO = "jo@example.com"

#: raw line -> the address and its parameters, or the reply code if it is malformed
PATHS: list[tuple[bytes, str | int, dict[str, str | None]]] = [
    (b"MAIL FROM:<jo@example.com>", JO, {}),
    (b"mail from:<jo@example.com>", JO, {}),
    (b"MAIL FROM: <jo@example.com>", JO, {}),
    (b"MAIL  FROM:  <jo@example.com>  ", JO, {}),
    (b"MAIL\tFROM:<jo@example.com>\tSIZE=1", JO, {"SIZE": "1"}),
    (b"MAIL FROM:<jo@example.com> SIZE=1000 body=8BITMIME", JO, {"SIZE": "1000", "BODY": "8BITMIME"}),
    (b"MAIL FROM:<jo@example.com>   SMTPUTF8", JO, {"SMTPUTF8": None}),
    (b"MAIL FROM:<jo@example.com> ENVID=a..b-.c", JO, {"ENVID": "a..b-.c"}),
    (b"MAIL FROM:<>", "", {}),
    (b"MAIL FROM:<> SIZE=10", "", {"SIZE": "10"}),
    (b'MAIL FROM:<"jo smith"@example.com> SIZE=10', '"jo smith"@example.com', {"SIZE": "10"}),
    (b'MAIL FROM:<"a>b<c"@example.com>', '"a>b<c"@example.com', {}),
    (b'MAIL FROM:<"a\\"> SIZE=1 <\\""@example.com>', '"a\\"> SIZE=1 <\\""@example.com', {}),
    (b"MAIL FROM:<@one.example,@two.example:jo@example.com>", JO, {}),
    ("MAIL FROM:<jörg@bücher.example> SMTPUTF8".encode(), "jörg@bücher.example", {"SMTPUTF8": None}),
    ("MAIL FROM:<a@क्\u200dष.example> SMTPUTF8".encode(), "a@क्\u200dष.example", {"SMTPUTF8": None}),
    (b"RCPT TO:<jo@[192.0.2.1]>", "jo@[192.0.2.1]", {}),
    (b"RCPT TO:<jo@[IPv6:2001:db8::1]> NOTIFY=NEVER", "jo@[ipv6:2001:db8::1]", {"NOTIFY": "NEVER"}),
    (b"RCPT TO:<postmaster>", "postmaster", {}),
    (b"rcpt to:<Postmaster> NOTIFY=NEVER", "Postmaster", {"NOTIFY": "NEVER"}),
    (b"RCPT TO:<a-b@c-d.example>", "a-b@c-d.example", {}),
    # no path
    (b"MAIL", 501, {}),
    (b"MAIL FROM", 501, {}),
    (b"MAIL FROM:", 501, {}),
    (b"MAIL FROM:jo@example.com", 501, {}),
    (b"MAIL FROM:<jo@example.com", 501, {}),
    (b"MAIL FROM:jo@example.com>", 501, {}),
    (b"MAIL FROM:<<jo@example.com>>", 501, {}),
    (b"MAIL FROM <jo@example.com>", 501, {}),
    (b"MAIL FROM :<jo@example.com>", 501, {}),
    (b"MAIL TO:<jo@example.com>", 501, {}),
    (b"RCPT FROM:<jo@example.com>", 501, {}),
    (b"RCPT T:<jo@example.com>", 501, {}),
    (b"RCPT TOO:<jo@example.com>", 501, {}),
    (b"RCPT xTO:<jo@example.com>", 501, {}),
    (b"MAIL FRM:<jo@example.com>", 501, {}),
    (b"MAIL FROM:<jo@example.com>SIZE=10", 501, {}),
    (b'MAIL FROM:<"jo@example.com> SIZE=10', 501, {}),
    (b"MAIL FROM:Jo <jo@example.com>", 501, {}),
    (b"MAIL \xef\xbc\xa6ROM:<jo@example.com>", 501, {}),
    # RFC 5321 section 4.5.3.1.3: 256 bytes with the angle brackets
    (b"MAIL FROM:<" + b"x" * 242 + b"@example.com>", "x" * 242 + "@example.com", {}),
    (b"MAIL FROM:<" + b"x" * 190 + b"@" + b"y" * 63 + b">", "x" * 190 + "@" + "y" * 63, {}),
    (b"MAIL FROM:<" + b"x" * 191 + b"@" + b"y" * 63 + b">", 501, {}),
    (b"MAIL FROM:<" + b"x" * 243 + b"@example.com>", 501, {}),
    (b"RCPT TO:<" + b"x" * 400 + b"@example.com>", 501, {}),
    (b"RCPT TO:<" + "\u00e4".encode() * 122 + b"@example.com>", 501, {}),
    (b"RCPT TO:<" + b"@a.example," * 25 + b"@b.example:jo@example.com>", 501, {}),
    # parameters
    (b"MAIL FROM:<jo@example.com> SIZE=", 501, {}),
    (b"MAIL FROM:<jo@example.com> =", 501, {}),
    (b"MAIL FROM:<jo@example.com> SIZE=1 size=2", 501, {}),
    (b"MAIL FROM:<> SIZE=1 SIZE=1", 501, {}),
    (b"MAIL FROM:<jo@example.com> <x@example.com>", 501, {}),
    # no mailbox
    (b"MAIL FROM:<jo>", 501, {}),
    (b"MAIL FROM:< >", 501, {}),
    (b"MAIL FROM:< jo@example.com>", 501, {}),
    (b"MAIL FROM:<jo@example.com >", 501, {}),
    (b"MAIL FROM:<jo @example.com>", 501, {}),
    (b"MAIL FROM:<jo@example..com>", 501, {}),
    (b"MAIL FROM:<.jo@example.com>", 501, {}),
    (b"MAIL FROM:<j..o@example.com>", 501, {}),
    (b"MAIL FROM:<jo.@example.com>", 501, {}),
    (b"MAIL FROM:<jo@-example.com>", 501, {}),
    (b"MAIL FROM:<jo@example-.com>", 501, {}),
    (b"MAIL FROM:<jo@example.com->", 501, {}),
    (b"MAIL FROM:<a@b@example.com>", 501, {}),
    (b"MAIL FROM:<jo@" + b"x" * 64 + b">", 501, {}),
    (b'MAIL FROM:<a"b"@example.com>', 501, {}),
    (b"RCPT TO:<>", 501, {}),
    (b"RCPT TO:<> NOTIFY=NEVER", 501, {}),
    (b'RCPT TO:<"jo">', 501, {}),
    (b"RCPT TO:<jo@[300.0.2.1]>", 501, {}),
]


@pytest.mark.parametrize(("line", "expected", "parameters"), PATHS)
def test_a_path_is_parsed(line: bytes, expected: str | int, parameters: dict[str, str | None]) -> None:
    command = parse_command(line)
    assert isinstance(command, PathCommand)
    if isinstance(expected, int):
        assert command.error is not None
        assert command.error.code == expected
        assert command.address == ""
    else:
        assert command.error is None
        assert command.address == expected
        assert command.address.parameters == parameters


@pytest.mark.parametrize(
    ("line", "enhanced"),
    [
        (b"MAIL FROM:<jo>", "5.1.7"),
        (b"RCPT TO:<jo>", "5.1.3"),
        (b"RCPT TO:<>", "5.1.3"),
        (b"MAIL FROM:<" + b"x" * 250 + b"@example.com>", "5.1.7"),
        (b"RCPT TO:<" + b"x" * 250 + b"@example.com>", "5.1.3"),
        (b"MAIL FROM:<jo@example.com> =", "5.5.4"),
        (b"MAIL", "5.5.4"),
    ],
)
def test_a_refused_path_has_the_right_enhanced_code(line: bytes, enhanced: str) -> None:
    command = parse_command(line)
    assert command.error is not None
    assert command.error.enhanced == enhanced


LOCAL = st.text("ab01.-+_!ä\"\\ '", min_size=1, max_size=12)
DOMAIN = st.text("ab01.-_ä[]:", min_size=1, max_size=12)


@given(LOCAL, DOMAIN, st.sampled_from(["MAIL FROM", "RCPT TO", "mail From", "rcpt tO"]))
def test_the_fast_pattern_and_the_full_parser_agree(local_part: str, domain: str, verb: str) -> None:
    """A usual path is matched in one step; the address is the same as that of the full parser."""
    command = parse_command(f"{verb}:<{local_part}@{domain}>".encode())
    assert isinstance(command, PathCommand)
    try:
        expected = Address.parse(f"{local_part}@{domain}")
    except ProtocolError:
        assert command.error is not None
        return
    assert command.error is None
    address = command.address
    assert (address, address.local_part, address.domain) == (expected, expected.local_part, expected.domain)
