"""MAIL and RCPT of devices that do not follow RFC 5321: accepted where the server is lenient, refused otherwise."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol.command import PARSERS, PathCommand, parse_command
from greensmtp.protocol.lenient_path import LENIENCIES, LENIENT_PARSERS, explain, rewrite

#: line -> the address and its parameters
LENIENT: list[tuple[str, str, dict[str, str | None]]] = [
    ("MAIL FROM :<a@b.c>", "a@b.c", {}),
    ("MAIL FROM:   <a@b.c>", "a@b.c", {}),
    ("MAIL FROM: a@b.c", "a@b.c", {}),
    ("MAIL FROM:a@b.c", "a@b.c", {}),
    ("MAIL from : a@b.c SIZE=10 BODY=8BITMIME", "a@b.c", {"SIZE": "10", "BODY": "8BITMIME"}),
    ("MAIL FROM:<a@b.c SIZE=10>", "a@b.c", {"SIZE": "10"}),
    ("MAIL FROM:<a@b.c SIZE=10> BODY=7BIT", "a@b.c", {"SIZE": "10", "BODY": "7BIT"}),
    ("MAIL FROM:< a@b.c >", "a@b.c", {}),
    ("MAIL FROM:<a@b.c> SIZE = 10 BODY= 7BIT", "a@b.c", {"SIZE": "10", "BODY": "7BIT"}),
    ("MAIL FROM:<a@b.c>SIZE=10", "a@b.c", {"SIZE": "10"}),
    ("MAIL FROM:<>SIZE=10", "", {"SIZE": "10"}),
    ("MAIL FROM:<a@b.c>AUTH=<>", "a@b.c", {"AUTH": "<>"}),
    ("RCPT TO:<a..b@docomo.example>", '"a..b"@docomo.example', {}),
    ("RCPT TO:<a.@docomo.example>", '"a."@docomo.example', {}),
    ("RCPT TO:<.a@docomo.example>", '".a"@docomo.example', {}),
    ("RCPT TO:..a..@docomo.example NOTIFY=NEVER", '"..a.."@docomo.example', {"NOTIFY": "NEVER"}),
    ("RCPT TO: postmaster", "postmaster", {}),
]


def parse(line: str, *, lenient: bool) -> PathCommand:
    command = parse_command(line.encode(), LENIENT_PARSERS if lenient else PARSERS)
    assert isinstance(command, PathCommand)
    return command


@pytest.mark.parametrize(("line", "address", "parameters"), LENIENT)
def test_a_device_is_understood(line: str, address: str, parameters: dict[str, str | None]) -> None:
    command = parse(line, lenient=True)
    assert command.error is None
    assert command.address == address
    assert command.address.parameters == parameters
    assert command.argument == line.partition(" ")[2]


@pytest.mark.parametrize("line", [line for line, _, _ in LENIENT if line != "MAIL FROM:   <a@b.c>"])
def test_strict_is_the_default(line: str) -> None:
    command = parse_command(line.encode())
    assert command.error is not None
    assert command.error.code in (501, 553)


def test_a_quoted_local_part_with_dots_keeps_its_parts() -> None:
    address = parse("RCPT TO:<a..b@docomo.example>", lenient=True).address
    assert (address.local_part, address.domain) == ("a..b", "docomo.example")


@pytest.mark.parametrize(
    "line",
    [
        "MAIL FROM:",
        "MAIL FROM",
        "MAIL TO:a@b.c",
        "MAIL FROM:Jo <a@b.c>",
        "MAIL FROM:a b@c.d",
        "MAIL FROM:<a@b.c> <d@e.f>",
        "MAIL FROM:a@b.c> SIZE=1",
        "MAIL FROM:<a@b@c.d>",
        "MAIL FROM:<a@b..c>",
        "MAIL FROM:<a@b.c> SIZE=1 SIZE = 2",
        'MAIL FROM:"a b"@c.d',
        'MAIL FROM:<"a = b"@c.d>x',
        "RCPT TO:<>",
        "RCPT TO:",
        "RCPT TO:a@b.c,d@e.f",
        "RCPT TO:<a..b,c@d.e>",
        "RCPT TO:" + "a." * 130 + "@example.com",
    ],
)
def test_what_is_ambiguous_is_refused_with_the_strict_parsers_words(line: str) -> None:
    command = parse(line, lenient=True)
    assert command.error is not None
    assert command.error == parse(line, lenient=False).error


def test_other_commands_are_parsed_as_ever() -> None:
    assert LENIENT_PARSERS.keys() == PARSERS.keys()
    assert {verb for verb in PARSERS if LENIENT_PARSERS[verb] is not PARSERS[verb]} == {"MAIL", "RCPT"}


def test_each_leniency_names_the_devices_that_need_it_and_is_needed() -> None:
    assert all(leniency.devices for leniency in LENIENCIES)
    assert len({leniency.name for leniency in LENIENCIES}) == len(LENIENCIES)


TEXT = st.text('ab@.<> =:"\\,SIZE', max_size=30)


@given(TEXT, st.sampled_from(["MAIL FROM", "RCPT TO"]))
def test_what_is_accepted_is_an_address_that_the_strict_parser_accepts(text: str, verb: str) -> None:
    lenient, strict = parse(f"{verb}:{text}", lenient=True), parse(f"{verb}:{text}", lenient=False)
    if strict.error is None:
        assert (lenient.address, lenient.address.parameters) == (strict.address, strict.address.parameters)
    elif lenient.error is None:
        assert parse(f"{verb}:<{lenient.address}>", lenient=False).address == lenient.address


@pytest.mark.parametrize("text", ["a", " ", "<", ".", "a.", "=", " =", "<a ", "a@", "@a"])
def test_the_time_is_linear(text: str) -> None:
    start = time.process_time()
    rewrite("FROM:" + text * 100_000)
    assert time.process_time() - start < 2


# What a strict server says


@given(TEXT, st.sampled_from(["MAIL FROM", "RCPT TO"]))
def test_the_refusal_names_a_fault_where_a_lenient_server_would_accept(text: str, verb: str) -> None:
    strict, lenient = parse(f"{verb}:{text}", lenient=False), parse(f"{verb}:{text}", lenient=True)
    if strict.error is None:
        return
    reply = explain(strict)
    assert (reply.code, reply.enhanced) == (strict.error.code, strict.error.enhanced)
    assert reply.text.startswith(strict.error.text)
    named = any(leniency.name in reply.text for leniency in LENIENCIES)
    assert named is (lenient.error is None), reply


def test_the_refusal_of_what_is_no_text_names_no_fault() -> None:
    command = parse_command(b"MAIL FROM:a\xff@example.org")
    assert explain(command) == command.error
