"""The table of extensions: keywords, parameters, and the room that each adds to a command's line."""

from __future__ import annotations

import pytest

from greensmtp.protocol.ehlo_parameters import LIMITS, NUMBER
from greensmtp.protocol.esmtp import BODY_TYPES, STANDARD, Extension, allowed_parameters, line_room, offer
from greensmtp.protocol.reply import Reply

#: Each as its RFC has it.
TABLE = [
    Extension("PIPELINING"),  # RFC 2920 section 2
    Extension("SIZE", mail=frozenset({"SIZE"}), room={"MAIL": 26}, ehlo=NUMBER, omittable=True),  # RFC 1870 section 3
    Extension("8BITMIME", mail=frozenset({"BODY"}), room={"MAIL": 17}),  # RFC 6152 section 2
    Extension(  # RFC 6531
        "SMTPUTF8",
        mail=frozenset({"SMTPUTF8"}),
        room={"MAIL": 10, "VRFY": 9, "EXPN": 9},
        requires=frozenset({"8BITMIME"}),
    ),
    Extension("CHUNKING"),  # RFC 3030 section 2
    Extension("BINARYMIME", requires=frozenset({"CHUNKING", "8BITMIME"})),  # RFC 3030 section 3
    Extension("ENHANCEDSTATUSCODES"),  # RFC 2034 section 3
    Extension("LIMITS", ehlo=LIMITS),  # RFC 9422
    Extension("STARTTLS", verbs=frozenset({"STARTTLS"})),  # RFC 3207 section 4
]


@pytest.mark.parametrize("expected", TABLE, ids=lambda extension: extension.keyword)
def test_an_extension_is_as_its_rfc_defines_it(expected: Extension) -> None:
    assert [extension for extension in STANDARD if extension.keyword == expected.keyword] == [expected]


def test_there_are_no_other_extensions() -> None:
    assert len(STANDARD) == len(TABLE)


def test_body_types() -> None:
    assert {"7BIT", "8BITMIME", "BINARYMIME"} == BODY_TYPES
    # What RFC 6152 makes room for, RFC 3030 needs no more of.
    assert max(len(f" BODY={name}") for name in BODY_TYPES) <= 17


def test_the_parameters_of_all_extensions_are_allowed_together() -> None:
    dsn = Extension("DSN", mail=frozenset({"RET", "ENVID"}), rcpt=frozenset({"NOTIFY", "ORCPT"}))
    assert allowed_parameters([]) == {"MAIL": set(), "RCPT": set()}
    assert allowed_parameters(STANDARD) == {"MAIL": {"SIZE", "BODY", "SMTPUTF8"}, "RCPT": set()}
    assert allowed_parameters(iter([*STANDARD, dsn])) == {
        "MAIL": {"SIZE", "BODY", "SMTPUTF8", "RET", "ENVID"},
        "RCPT": {"NOTIFY", "ORCPT"},
    }


def test_room_adds_up() -> None:
    dsn = Extension("DSN", room={"MAIL": 100, "RCPT": 500})
    assert line_room([]) == {}
    assert line_room(STANDARD) == {"MAIL": 26 + 17 + 10, "VRFY": 9, "EXPN": 9}
    assert line_room(iter([*STANDARD, dsn])) == {"MAIL": 153, "RCPT": 500, "VRFY": 9, "EXPN": 9}


def test_an_extension_needs_only_a_keyword_and_is_immutable() -> None:
    extension = Extension("X-EXAMPLE")
    assert (extension.mail, extension.rcpt, dict(extension.room)) == (frozenset(), frozenset(), {})
    with pytest.raises(AttributeError):
        extension.keyword = "X-OTHER"  # type: ignore[misc]


def test_offer_adds_a_line_only_to_a_positive_reply() -> None:
    greeted = Reply(250, "mx greets x", "PIPELINING", enhanced=None)
    assert offer(greeted, "XFOO").encode() == b"250-mx greets x\r\n250-PIPELINING\r\n250 XFOO\r\n"
    assert offer(greeted, "AUTH", "PLAIN", "LOGIN").lines[-1] == "AUTH PLAIN LOGIN"
    refused = Reply(550, "5.7.1 no")
    assert offer(refused, "XFOO") is refused


@pytest.mark.parametrize(
    "wrong", [("",), ("X FOO",), ("X_FOO",), ("-X",), ("X\r\nEVIL",), ("X", "a b"), ("X", ""), ("X", "ü")]
)
def test_offer_refuses_a_malformed_keyword_or_parameter(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="EHLO keyword"):
        offer(Reply(250, "hi", enhanced=None), *wrong)
