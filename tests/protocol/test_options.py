"""The typed parameters of MAIL and RCPT: parsed strictly, and formatted to what parses to the same."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import command_builder, options
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import PathCommand, parse_command
from greensmtp.protocol.option_values import DeliverBy, OriginalRecipient, ValidSince
from greensmtp.protocol.options import MailOptions, RcptOptions

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


def mail(text: str) -> MailOptions:
    command = parse_command(f"MAIL FROM:<jo@example.com> {text}".encode())
    assert isinstance(command, PathCommand)
    assert command.error is None
    return command.address.mail_options


def rcpt(text: str) -> RcptOptions:
    command = parse_command(f"RCPT TO:<jo@example.com> {text}".encode())
    assert isinstance(command, PathCommand)
    assert command.error is None
    return command.address.rcpt_options


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("SIZE=0", "size", 0),
        ("SIZE=00100", "size", 100),
        ("size=12345678901234567890", "size", 12345678901234567890),
        ("BODY=8bitmime", "body", "8BITMIME"),
        ("BODY=7BIT", "body", "7BIT"),
        ("BODY=BINARYMIME", "body", "BINARYMIME"),
        ("SMTPUTF8", "smtputf8", True),
        ("AUTH=<>", "auth", ""),
        ("AUTH=jo@example.com", "auth", "jo@example.com"),
        ("AUTH=e+3Dmc2@example.com", "auth", "e=mc2@example.com"),
        ("AUTH=login", "auth", ""),  # RFC 4954 section 5: not a mailbox, so as <>
        ("AUTH=+zz", "auth", ""),
        ("AUTH=a+0D+0Ab@c.d", "auth", ""),
        ("RET=full", "ret", "FULL"),
        ("RET=HDRS", "ret", "HDRS"),
        ("ENVID=QQ314159", "envid", "QQ314159"),
        ("ENVID=a+20b+2B", "envid", "a b+"),
        ("ENVID=" + "x" * 100, "envid", "x" * 100),
        ("REQUIRETLS", "require_tls", True),
        ("MT-PRIORITY=-9", "priority", -9),
        ("MT-PRIORITY=0", "priority", 0),
        ("MT-PRIORITY=9", "priority", 9),
        ("BY=120;R", "deliver_by", DeliverBy(120, "R")),
        ("BY=+120;rt", "deliver_by", DeliverBy(120, "R", trace=True)),
        ("BY=-999999999;NT", "deliver_by", DeliverBy(-999_999_999, "N", trace=True)),
        ("BY=0;N", "deliver_by", DeliverBy(0, "N")),
        ("HOLDFOR=1", "hold_for", 1),
        ("HOLDFOR=999999999", "hold_for", 999_999_999),
        ("HOLDUNTIL=2030-01-31T12:00:00Z", "hold_until", NOON),
        ("HOLDUNTIL=2030-01-31t14:00:00.000+02:00", "hold_until", NOON),
        ("HOLDUNTIL=2030-01-31T12:00:00.123456789z", "hold_until", NOON.replace(microsecond=123456)),
    ],
)
def test_a_parameter_of_mail(text: str, field: str, value: object) -> None:
    assert mail(text) == MailOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("NOTIFY=NEVER", "notify", {"NEVER"}),
        ("NOTIFY=success,DELAY", "notify", {"SUCCESS", "DELAY"}),
        ("NOTIFY=FAILURE", "notify", {"FAILURE"}),
        ("ORCPT=rfc822;jo+2Bx@example.com", "orcpt", OriginalRecipient("rfc822", "jo+x@example.com")),
        ("ORCPT=RFC822;jo@example.com", "orcpt", OriginalRecipient("rfc822", "jo@example.com")),
        ("ORCPT=x400;/C=+3D", "orcpt", None),
        ("ORCPT=rfc822;j+C3+B6rg@example.com", "orcpt", OriginalRecipient("utf-8", "j\u00f6rg@example.com")),
        ("ORCPT=utf-8;j\\x{F6}rg@example.com", "orcpt", OriginalRecipient("utf-8", "j\u00f6rg@example.com")),
        ("ORCPT=utf-8;j\u00f6rg@example.com", "orcpt", OriginalRecipient("utf-8", "j\u00f6rg@example.com")),
        ("RRVS=2030-01-31T12:00:00Z", "valid_since", ValidSince(NOON)),
        ("RRVS=2030-01-31T12:00:00Z;c", "valid_since", ValidSince(NOON, "C")),
        ("RRVS=2030-01-31T12:00:00Z;R", "valid_since", ValidSince(NOON, "R")),
    ],
)
def test_a_parameter_of_rcpt(text: str, field: str, value: object) -> None:
    if value is None:
        command = parse_command(f"RCPT TO:<jo@example.com> {text}".encode())
        assert command.error is not None  # a second = is no value of a parameter
        return
    assert getattr(rcpt(text), field) == value


@pytest.mark.parametrize(
    "text",
    [
        "SIZE",
        "SIZE=x",
        "SIZE=-1",
        "SIZE=\uff11",
        "SIZE=" + "1" * 21,
        "BODY",
        "BODY=9BIT",
        "SMTPUTF8=yes",
        "AUTH",
        "RET",
        "RET=BOTH",
        "RET=FULL,HDRS",
        "ENVID",
        "ENVID=" + "x" * 101,
        "ENVID=+zz",
        "ENVID=+0D+0A",
        "ENVID=a+00",
        "ENVID=+C3+BC",
        "ENVID=\u00fc",
        "ENVID=+7F",
        "REQUIRETLS=1",
        "MT-PRIORITY",
        "MT-PRIORITY=10",
        "MT-PRIORITY=-10",
        "MT-PRIORITY=+1",
        "MT-PRIORITY=-0",
        "MT-PRIORITY=01",
        "BY=120",
        "BY=120;X",
        "BY=0;R",
        "BY=-1;R",
        "BY=1234567890;N",
        "BY=;N",
        "BY=1;NTT",
        "HOLDFOR=0",
        "HOLDFOR=-1",
        "HOLDFOR=01",
        "HOLDFOR=1234567890",
        "HOLDUNTIL=tomorrow",
        "HOLDUNTIL=2030-01-31",
        "HOLDUNTIL=2030-01-31T12:00:00",
        "HOLDUNTIL=2030-02-31T12:00:00Z",
        "HOLDUNTIL=2030-01-31T24:00:01Z",
        "HOLDUNTIL=0001-01-01T00:00:00+23:59",
        "HOLDUNTIL=2030-W01-1T12:00:00Z",
        "HOLDUNTIL=2030-01-31T12:00:00+24:00",
    ],
)
def test_a_malformed_parameter_of_mail_is_refused_by_name(text: str) -> None:
    keyword, _, value = text.partition("=")
    with pytest.raises(ProtocolError, match=rf"^{keyword} takes ") as caught:
        MailOptions.parse({keyword: value or None})
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "text",
    [
        "NOTIFY",
        "NOTIFY=ALWAYS",
        "NOTIFY=NEVER,FAILURE",
        "NOTIFY=FAILURE,",
        "NOTIFY=,",
        "ORCPT=jo@example.com",
        "ORCPT=;jo@example.com",
        "ORCPT=rfc822;",
        "ORCPT=rfc_822;jo",
        "ORCPT=rfc822;jo+x",
        "ORCPT=rfc822;+0D+0A",
        "ORCPT=rfc822;j\u00f6",
        "ORCPT=rfc822;+C3",
        "ORCPT=rfc822;+C2+80",
        "ORCPT=x400;+C3+B6",
        "ORCPT=rfc822;" + "x" * 494,
        "ORCPT=utf-8;",
        "ORCPT=utf-8;\\x{f6}",
        "ORCPT=utf-8;\\x{D800}",
        "ORCPT=utf-8;\\x{110000}",
        "ORCPT=utf-8;\\x{0A}",
        "ORCPT=utf-8;a\\b",
        "ORCPT=utf-8;a+20b",
        "ORCPT=utf-8;" + "\u00f6" * 248,
        "RRVS=2030-01-31",
        "RRVS=2030-01-31T12:00:00Z;",
        "RRVS=2030-01-31T12:00:00Z;X",
        "RRVS=2030-01-31T12:00:00Z;C;R",
    ],
)
def test_a_malformed_parameter_of_rcpt_is_refused_by_name(text: str) -> None:
    keyword, _, value = text.partition("=")
    with pytest.raises(ProtocolError, match=rf"^{keyword} takes "):
        RcptOptions.parse({keyword: value or None})


def test_orcpt_may_have_500_bytes() -> None:
    assert RcptOptions.parse({"ORCPT": "rfc822;" + "x" * 493}).orcpt is not None


def test_a_parameter_that_stands_there_twice_is_refused() -> None:
    command = parse_command(b"MAIL FROM:<> RET=FULL RET=HDRS")
    assert str(command.error) == "501 5.5.4 parameter given twice: RET"


def test_holdfor_and_holduntil_exclude_each_other() -> None:
    with pytest.raises(ProtocolError, match="exclude each other"):
        MailOptions.parse({"HOLDFOR": "1", "HOLDUNTIL": "2030-01-31T12:00:00Z"})
    with pytest.raises(ProtocolError, match="exclude each other"):
        MailOptions(hold_for=1, hold_until=NOON)


def test_parameters_of_other_extensions_are_ignored() -> None:
    assert MailOptions.parse({"XONCE": "ticket", "SIZE": "1"}) == MailOptions(size=1)
    assert RcptOptions.parse({"SIZE": "1"}) == RcptOptions()


def test_without_parameters_all_options_are_one_object() -> None:
    assert Address.parse("a@b.c").mail_options is Address.parse("").mail_options
    assert Address.parse("a@b.c").rcpt_options is Address.parse("d@e.f").rcpt_options


def test_a_decoded_submitter_is_taken_as_it_is() -> None:
    address = Address.parse("a+2Bb@example.com")
    assert MailOptions.parse({"AUTH": address}).auth == "a+2Bb@example.com"


def test_options_are_frozen_and_can_be_pickled() -> None:
    chosen = MailOptions(size=1, hold_until=NOON)
    with pytest.raises(AttributeError):
        chosen.size = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(chosen)) == chosen


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=33)
TIMES = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)
WORDS = st.frozensets(st.sampled_from(["SUCCESS", "FAILURE", "DELAY"]), min_size=1)
TEXT = st.text(max_size=20).filter(lambda text: text != "" and text.isprintable())
MAIL_OPTIONS = st.builds(
    MailOptions,
    size=st.none() | st.integers(0, 10**20 - 1),
    body=st.sampled_from([None, "7BIT", "8BITMIME", "BINARYMIME"]),
    smtputf8=st.booleans(),
    auth=st.sampled_from([None, "", "jo@example.com", '"e=mc2+ "@example.com', "j\u00f6@b\u00fccher.example"]),
    ret=st.sampled_from([None, "FULL", "HDRS"]),
    envid=st.none() | PRINTABLE,
    require_tls=st.booleans(),
    priority=st.none() | st.integers(-9, 9),
    deliver_by=st.none()
    | st.builds(DeliverBy, st.integers(1, 999_999_999), st.just("R"), st.booleans())
    | st.builds(DeliverBy, st.integers(-999_999_999, 999_999_999), st.just("N"), st.booleans()),
    hold_for=st.none() | st.integers(1, 999_999_999),
) | st.builds(MailOptions, hold_until=TIMES)
RCPT_OPTIONS = st.builds(
    RcptOptions,
    notify=st.none() | st.just(frozenset({"NEVER"})) | WORDS,
    orcpt=st.none()
    | st.builds(OriginalRecipient, st.sampled_from(["rfc822", "x400"]), PRINTABLE)
    | st.builds(OriginalRecipient, st.just("utf-8"), TEXT),
    valid_since=st.none() | st.builds(ValidSince, TIMES, st.sampled_from([None, "C", "R"])),
)


@given(MAIL_OPTIONS)
def test_formatted_options_of_mail_parse_to_the_same(chosen: MailOptions) -> None:
    assert MailOptions.parse(chosen.parameters()) == chosen
    line = command_builder.mail("jo@example.com", chosen)
    command = parse_command(line.removesuffix(b"\r\n"))
    assert isinstance(command, PathCommand)
    assert command.error is None
    assert command.address.mail_options == chosen


@given(RCPT_OPTIONS)
def test_formatted_options_of_rcpt_parse_to_the_same(chosen: RcptOptions) -> None:
    assert RcptOptions.parse(chosen.parameters()) == chosen
    line = command_builder.rcpt("jo@example.com", chosen)
    assert line.isascii()
    command = parse_command(line.removesuffix(b"\r\n"))
    assert isinstance(command, PathCommand)
    assert command.address.rcpt_options == chosen


@pytest.mark.parametrize(
    ("chosen", "keyword"),
    [
        (MailOptions(size=-1), "SIZE"),
        (MailOptions(priority=10), "MT-PRIORITY"),
        (MailOptions(envid="x" * 101), "ENVID"),
        (MailOptions(envid="a\r\nb"), "ENVID"),
        (MailOptions(auth="not a mailbox"), "AUTH"),
        (MailOptions(hold_until=datetime(2030, 1, 1)), "HOLDUNTIL"),
        (MailOptions(deliver_by=DeliverBy(0, "R")), "BY"),
        (RcptOptions(notify=frozenset()), "NOTIFY"),
        (RcptOptions(notify=frozenset({"NEVER", "DELAY"})), "NOTIFY"),
        (RcptOptions(orcpt=OriginalRecipient("rfc822", "j\u00f6")), "ORCPT"),
        (RcptOptions(orcpt=OriginalRecipient("rfc 822", "jo")), "ORCPT"),
        (RcptOptions(orcpt=OriginalRecipient("utf-8", "a\nb")), "ORCPT"),
    ],
)
def test_options_that_are_malformed_are_not_sent(chosen: MailOptions | RcptOptions, keyword: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{keyword} takes"):
        chosen.parameters()


VALUES = st.none() | st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("+;:,=-0123456789TZRNC\\x{}"), max_size=40
)


@given(st.dictionaries(st.sampled_from([*options.MAIL, *options.RCPT]), VALUES))
def test_any_value_is_parsed_or_refused(parameters: dict[str, Any]) -> None:
    for kind in (MailOptions, RcptOptions):
        try:
            chosen = kind.parse(parameters)
        except ProtocolError:
            continue
        assert kind.parse(chosen.parameters()) == chosen
