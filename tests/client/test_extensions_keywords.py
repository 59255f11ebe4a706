"""The keywords of ``from_`` and ``to`` against the server's parser: what is sent means what was given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from greensmtp import Address
from greensmtp.client.envelope_options import (
    MAIL_KEYWORDS,
    RCPT_KEYWORDS,
    SEND_KEYWORDS,
    mail_parameters,
    rcpt_parameters,
)
from greensmtp.protocol import command_builder
from greensmtp.protocol.command import PathCommand, parse_command
from greensmtp.protocol.option_values import DeliverBy, OriginalRecipient, ValidSince
from greensmtp.protocol.options import MailOptions, RcptOptions

printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=33)
letters = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=20)
times = st.datetimes(
    datetime(1970, 1, 2),
    datetime(2900, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)
mailboxes = st.builds("{}@example.com".format, st.from_regex(r"[a-z+=]{1,20}", fullmatch=True))

#: One of hold_for and hold_until, or neither.
hold: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"hold_for": st.integers(1, 999_999_999)}),
    st.fixed_dictionaries({"hold_until": times}),
)
mails = st.builds(
    lambda options, hold: options | hold,
    st.fixed_dictionaries(
        {},
        optional={
            "size": st.integers(0, 10**20 - 1),
            "body": st.sampled_from(["7BIT", "8BITMIME", "BINARYMIME"]),
            "smtputf8": st.booleans(),
            "auth": st.just("") | mailboxes,
            "ret": st.sampled_from(["FULL", "HDRS"]),
            "envid": printable,
            "require_tls": st.booleans(),
            "priority": st.integers(-9, 9),
            "deliver_by": st.builds(DeliverBy, st.integers(1, 999_999_999), st.sampled_from(["N", "R"]), st.booleans())
            | st.builds(DeliverBy, st.integers(-999_999_999, 0), st.just("N"), st.booleans()),
        },
    ),
    hold,
)
notify = st.just(frozenset({"NEVER"})) | st.frozensets(st.sampled_from(["SUCCESS", "FAILURE", "DELAY"]), min_size=1)
rcpts = st.fixed_dictionaries(
    {},
    optional={
        "notify": notify,
        "orcpt": st.builds(OriginalRecipient, st.sampled_from(["rfc822", "x400"]), printable)
        | st.builds(OriginalRecipient, st.just("utf-8"), letters),
        "valid_since": st.builds(ValidSince, times, st.sampled_from([None, "C", "R"])),
    },
)


def parsed(line: bytes) -> Address:
    command = parse_command(line.removesuffix(b"\r\n"))
    assert isinstance(command, PathCommand)
    return command.address


@given(mails)
def test_mail_keywords_mean_what_the_server_parses(given: dict[str, Any]) -> None:
    line = command_builder.mail("a@example.com", mail_parameters(given))
    assert line.isascii()
    assert parsed(line).mail_options == MailOptions(**given)


@given(rcpts)
def test_rcpt_keywords_mean_what_the_server_parses(given: dict[str, Any]) -> None:
    line = command_builder.rcpt("a@example.com", rcpt_parameters(given))
    assert line.isascii()
    assert parsed(line).rcpt_options == RcptOptions(**given)


@given(notify, letters, times)
def test_simple_forms_mean_the_same(words: frozenset[Any], address: str, time: datetime) -> None:
    simple = rcpt_parameters({"notify": list(words), "orcpt": address, "valid_since": time})
    kind = "rfc822" if address.isascii() else "utf-8"
    assert simple == rcpt_parameters(
        {"notify": words, "orcpt": OriginalRecipient(kind, address), "valid_since": ValidSince(time)}
    )


def test_the_keywords_are_the_fields_of_the_options() -> None:
    assert set(MailOptions.__dataclass_fields__) == MAIL_KEYWORDS
    assert set(RcptOptions.__dataclass_fields__) == RCPT_KEYWORDS
    assert (MAIL_KEYWORDS | RCPT_KEYWORDS) - {"size", "body", "smtputf8", "orcpt"} == SEND_KEYWORDS
