"""The extensions beside the standard ones: offers, options, and which parameters are refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from greensmtp.protocol import options
from greensmtp.protocol.command import PathCommand, parse_command
from greensmtp.protocol.ehlo_parameters import FutureReleaseLimits, OfferedLimits
from greensmtp.protocol.esmtp import (
    DELIVERBY,
    DSN,
    FUTURERELEASE,
    LIMITS,
    MT_PRIORITY,
    OPTIONAL,
    PIPELINING,
    REQUIRETLS,
    RRVS,
    SIZE,
    SMTPUTF8,
    STANDARD,
    SUBMITTER,
    XCLIENT,
    XFORWARD,
    Extension,
    ParameterCheck,
    allowed_parameters,
    choose,
    parse_offers,
)
from greensmtp.protocol.options import MailOptions
from greensmtp.protocol.reply import Reply

ALL = (*STANDARD, *OPTIONAL)
NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


def test_every_keyword_matches_the_grammar() -> None:
    for extension in ALL:
        for keyword in (extension.keyword, *extension.mail, *extension.rcpt, *extension.verbs):
            assert re.fullmatch(r"[A-Z0-9][A-Z0-9-]*", keyword)


def test_every_parameter_has_a_parser_and_an_extension() -> None:
    allowed = allowed_parameters((*ALL, SUBMITTER))
    assert allowed == {"MAIL": set(options.MAIL), "RCPT": set(options.RCPT)}
    # Each belongs to one extension.
    assert sum(len(each.mail) + len(each.rcpt) for each in (*ALL, SUBMITTER)) == len(options.MAIL) + len(options.RCPT)


@pytest.mark.parametrize(
    ("extension", "longest"),
    [
        (REQUIRETLS, " REQUIRETLS"),
        (MT_PRIORITY, " MT-PRIORITY=-9"),
        (DELIVERBY, " BY=-999999999;NT"),
        (FUTURERELEASE, " HOLDUNTIL=2030-01-31T12:00:00.00Z"),
        (RRVS, " RRVS=2030-01-31T12:00:00+00:00;R"),
    ],
)
def test_the_room_is_that_of_the_longest_parameter(extension: Extension, longest: str) -> None:
    assert set(extension.room.values()) == {len(longest)}


@pytest.mark.parametrize(
    ("extension", "value", "line"),
    [
        (PIPELINING, None, "PIPELINING"),
        (SIZE, 0, "SIZE 0"),
        (SIZE, None, "SIZE"),
        (SIZE, 10_000, "SIZE 10000"),
        (DELIVERBY, None, "DELIVERBY"),
        (DELIVERBY, 240, "DELIVERBY 240"),
        (MT_PRIORITY, None, "MT-PRIORITY"),
        (MT_PRIORITY, "MIXER", "MT-PRIORITY MIXER"),
        (FUTURERELEASE, FutureReleaseLimits(3600, NOON), "FUTURERELEASE 3600 2030-01-31T12:00:00Z"),
        (LIMITS, OfferedLimits(), "LIMITS"),
        (LIMITS, OfferedLimits(10, 100, 1), "LIMITS MAILMAX=10 RCPTMAX=100 RCPTDOMAINMAX=1"),
        (XCLIENT, ("NAME", "ADDR"), "XCLIENT NAME ADDR"),
        (XFORWARD, ("IDENT",), "XFORWARD IDENT"),
    ],
)
def test_an_offer_is_read_as_it_was_written(extension: Extension, value: object, line: str) -> None:
    assert extension.offer_line(value) == line
    offers = parse_offers(Reply(250, "mx greets x", extension.offer_line(value), enhanced=None))
    assert extension.keyword in offers
    assert extension.read_offer(offers) == value


@pytest.mark.parametrize(
    ("extension", "text", "value"),
    [
        (SIZE, "lots", None),
        (DELIVERBY, "-1", None),
        (MT_PRIORITY, "two words", None),
        (FUTURERELEASE, "", None),
        (FUTURERELEASE, "3600", None),
        (FUTURERELEASE, "3600 tomorrow", None),
        (FUTURERELEASE, "x 2030-01-31T12:00:00Z", None),
        (LIMITS, "RCPTMAX=x MAILMAX RCPTDOMAINMAX=0 XMAX=1 rcptmax=7", OfferedLimits(rcpt_max=7)),
        (LIMITS, "RCPTMAX=1000000", OfferedLimits()),
        (LIMITS, "RCPTMAX=\uff11", OfferedLimits()),
        (XCLIENT, "name addr", ("NAME", "ADDR")),
    ],
)
def test_a_malformed_offer_is_ignored(extension: Extension, text: str, value: object) -> None:
    assert extension.read_offer({extension.keyword: text}) == value
    assert extension.read_offer({}) is None


def test_a_limit_beyond_what_limits_can_express_is_the_greatest_that_it_can() -> None:
    assert LIMITS.offer_line(OfferedLimits(rcpt_max=5_000_000)) == "LIMITS RCPTMAX=999999"


@pytest.mark.parametrize(
    ("chosen", "allowed"),
    [
        (MailOptions(), True),
        (MailOptions(hold_for=3600), True),
        (MailOptions(hold_for=3601), False),
        (MailOptions(hold_until=NOON - timedelta(days=1)), True),
        (MailOptions(hold_until=NOON - timedelta(hours=1)), False),
        (MailOptions(hold_until=NOON + timedelta(seconds=1)), False),
    ],
)
def test_future_release_has_two_limits(chosen: MailOptions, allowed: bool) -> None:
    limits = FutureReleaseLimits(3600, NOON)
    assert limits.allow(chosen, NOON - timedelta(hours=2, seconds=1)) is allowed


def test_a_message_cannot_be_held_beyond_the_last_time() -> None:
    limits = FutureReleaseLimits(999_999_999, NOON)
    assert not limits.allow(MailOptions(hold_for=2), NOON - timedelta(seconds=1))
    assert not limits.allow(MailOptions(hold_for=999_999_999), datetime(9999, 1, 1, tzinfo=UTC))


# Which are offered, and which parameters are refused


def test_extensions_are_switched_on_and_off_by_keyword() -> None:
    assert choose() == STANDARD
    assert choose(on=["dsn", "LIMITS"], off=["RRVS"]) == (*STANDARD, DSN)
    assert choose(on=["CHUNKING"], off=["LIMITS"]) == tuple(each for each in STANDARD if each is not LIMITS)
    assert SMTPUTF8 not in choose(off=["smtputf8"])


def test_what_requires_an_extension_goes_with_it() -> None:
    assert not {"BINARYMIME", "CHUNKING"} & {each.keyword for each in choose(off=["CHUNKING"])}
    assert not {"BINARYMIME", "SMTPUTF8", "8BITMIME"} & {each.keyword for each in choose(off=["8BITMIME"])}


@pytest.mark.parametrize(("on", "off"), [(["DNS"], []), ([], ["X"])])
def test_an_unknown_keyword_is_an_error(on: list[str], off: list[str]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        choose(on=on, off=off)


def refusal(check: ParameterCheck, line: str, *, tls: bool = False) -> str:
    command = parse_command(line.encode())
    assert isinstance(command, PathCommand)
    assert command.error is None
    reply = check.refusal(command.verb, command.address, tls=tls)
    return "" if reply is None else str(reply)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("MAIL FROM:<a@b.c>", ""),
        ("MAIL FROM:<a@b.c> SIZE=1 BODY=8BITMIME SMTPUTF8", ""),
        ("MAIL FROM:<a@b.c> BODY=BINARYMIME", ""),
        ("MAIL FROM:<a@b.c> AUTH=<>", ""),
        ("MAIL FROM:<a@b.c> AUTH=login", ""),
        ("MAIL FROM:<a@b.c> RET=HDRS", "555 5.5.4 Unsupported parameter: RET"),
        ("RCPT TO:<a@b.c> NOTIFY=NEVER", "555 5.5.4 Unsupported parameter: NOTIFY"),
        ("RCPT TO:<a@b.c> SIZE=1", "555 5.5.4 Unsupported parameter: SIZE"),
        ("MAIL FROM:<a@b.c> REQUIRETLS", "555 5.5.4 Unsupported parameter: REQUIRETLS"),
        ("MAIL FROM:<a@b.c> SIZE=x", "501 5.5.4 SIZE takes a number of bytes"),
        ("MAIL FROM:<a@b.c> BODY=9BIT", "501 5.5.4 BODY takes 7BIT, 8BITMIME or BINARYMIME"),
        ("MAIL FROM:<a@b.c> SMTPUTF8=1", "501 5.5.4 SMTPUTF8 takes no value"),
    ],
)
def test_parameters_are_checked_against_what_is_offered(line: str, expected: str) -> None:
    assert refusal(ParameterCheck(STANDARD), line) == expected


def test_requiretls_needs_tls() -> None:
    check = ParameterCheck(choose(on=["REQUIRETLS"]))
    assert refusal(check, "MAIL FROM:<a@b.c> REQUIRETLS").startswith("530 5.7.10 ")
    assert refusal(check, "MAIL FROM:<a@b.c> REQUIRETLS", tls=True) == ""


def test_an_extension_that_is_switched_off_has_its_parameters_refused() -> None:
    assert refusal(ParameterCheck(choose(off=["CHUNKING"])), "MAIL FROM:<> BODY=BINARYMIME").startswith("555 5.5.4 ")
    assert refusal(ParameterCheck(choose(off=["CHUNKING"])), "MAIL FROM:<> BODY=8BITMIME") == ""
    for keyword, line in {"SIZE": "SIZE=1", "8BITMIME": "BODY=7BIT", "SMTPUTF8": "SMTPUTF8"}.items():
        assert refusal(ParameterCheck(choose(off=[keyword])), f"MAIL FROM:<> {line}").startswith("555 5.5.4 ")


def test_the_parameters_of_a_middleware_are_allowed_and_not_parsed() -> None:
    check = ParameterCheck((*STANDARD, Extension("XONCE", mail=frozenset({"XONCE"}), rcpt=frozenset({"XONCE"}))))
    assert refusal(check, "MAIL FROM:<> XONCE=any") == refusal(check, "RCPT TO:<a@b.c> XONCE") == ""
