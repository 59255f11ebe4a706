"""The arguments of VRFY, EXPN, ETRN and HELP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol.verb_arguments import QueueRequest, parse_etrn, parse_help, parse_lookup


@pytest.mark.parametrize(
    ("argument", "name", "address", "smtputf8"),
    [
        ("jo", "jo", None, False),
        ("Jo Smith", "Jo Smith", None, False),
        ("jo@Example.com", "jo@Example.com", "jo@example.com", False),
        ("<jo@example.com>", "jo@example.com", "jo@example.com", False),
        ("<jo@example.com> SMTPUTF8", "jo@example.com", "jo@example.com", True),
        ("j\u00f6  smtputf8", "j\u00f6", None, True),
        ("SMTPUTF8", "SMTPUTF8", None, False),
        ("<jo", "<jo", None, False),
        ("jo>", "jo>", None, False),
        ("postmaster", "postmaster", "postmaster", False),
        ("friends-list SMTPUTF8", "friends-list", None, True),
    ],
)
def test_a_lookup(argument: str, name: str, address: str | None, smtputf8: bool) -> None:
    lookup = parse_lookup(argument)
    assert (lookup.name, lookup.address, lookup.smtputf8) == (name, address, smtputf8)


@pytest.mark.parametrize("argument", ["", "  ", "<>", "< >", "<> SMTPUTF8"])
def test_a_lookup_needs_a_name(argument: str) -> None:
    with pytest.raises(ProtocolError, match="name of a user"):
        parse_lookup(argument)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("Example.com", QueueRequest("domain", "example.com")),
        ("[192.0.2.1]", QueueRequest("domain", "[192.0.2.1]")),
        ("@example.com", QueueRequest("subdomains", "example.com")),
        ("#Queue.1", QueueRequest("queue", "Queue.1")),
        (" @b\u00fccher.example ", QueueRequest("subdomains", "b\u00fccher.example")),
    ],
)
def test_etrn(argument: str, expected: QueueRequest) -> None:
    assert parse_etrn(argument) == expected


@pytest.mark.parametrize("argument", ["", "@", "#", "@@example.com", "a b", "# x", "a..b", "x" * 64, "#" + "x" * 256])
def test_malformed_etrn_is_refused(argument: str) -> None:
    with pytest.raises(ProtocolError):
        parse_etrn(argument)


@pytest.mark.parametrize(("argument", "verb"), [("", ""), (" ", ""), ("mail", "MAIL"), ("Rcpt to", "RCPT")])
def test_help_is_about_a_verb(argument: str, verb: str) -> None:
    assert parse_help(argument) == verb


@given(st.text())
def test_any_argument_is_parsed_or_refused(argument: str) -> None:
    for parse in (parse_lookup, parse_etrn, parse_help):
        try:
            parse(argument)
        except ProtocolError:
            pass
