"""XCLIENT and XFORWARD: attributes as Postfix, nginx and Dovecot send them, and as we do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import xclient
from greensmtp.protocol.command_builder import line
from greensmtp.protocol.xclient import ATTRIBUTES, Attributes, Missing


@pytest.mark.parametrize(
    ("verb", "argument", "expected"),
    [
        (
            "XCLIENT",
            "NAME=spike.porcupine.org ADDR=168.100.189.2 PORT=4242 PROTO=ESMTP HELO=spike",
            {
                "NAME": "spike.porcupine.org",
                "ADDR": "168.100.189.2",
                "PORT": "4242",
                "PROTO": "ESMTP",
                "HELO": "spike",
            },
        ),
        # nginx
        (
            "XCLIENT",
            "ADDR=192.0.2.1 LOGIN=jo+2Bx NAME=[UNAVAILABLE]",
            {"ADDR": "192.0.2.1", "LOGIN": "jo+x", "NAME": Missing.UNAVAILABLE},
        ),
        ("XCLIENT", "addr=ipv6:2001:DB8::1", {"ADDR": "2001:db8::1"}),
        ("XCLIENT", "DESTADDR=IPV6:::1 DESTPORT=25", {"DESTADDR": "::1", "DESTPORT": "25"}),
        ("XCLIENT", "NAME=[tempunavail] PROTO=smtp", {"NAME": Missing.TEMPORARILY, "PROTO": "SMTP"}),
        ("XCLIENT", "HELO=My+20PC", {"HELO": "My PC"}),
        ("XCLIENT", "HELO=" + "x" * 255, {"HELO": "x" * 255}),
        (
            "XFORWARD",
            "IDENT=4f2a1 SOURCE=remote PORT=[UNAVAILABLE]",
            {"IDENT": "4f2a1", "SOURCE": "REMOTE", "PORT": Missing.UNAVAILABLE},
        ),
    ],
)
def test_attributes_are_parsed(verb: str, argument: str, expected: Attributes) -> None:
    assert xclient.parse(verb, argument) == expected


@pytest.mark.parametrize(
    ("verb", "argument", "reason"),
    [
        ("XCLIENT", "", "at least one"),
        ("XCLIENT", "   ", "at least one"),
        ("XCLIENT", "NAME", "XCLIENT takes NAME, ADDR"),
        ("XCLIENT", "COLOUR=blue", "XCLIENT takes"),
        ("XCLIENT", "SOURCE=LOCAL", "XCLIENT takes"),
        ("XFORWARD", "LOGIN=jo", "XFORWARD takes"),
        ("XCLIENT", "NAME=a name=b", "NAME is given twice"),
        ("XCLIENT", "NAME=", "NAME takes"),
        ("XCLIENT", "NAME=a+20b", "NAME takes"),
        ("XCLIENT", "NAME=+zz", "NAME takes"),
        ("XCLIENT", "HELO=+0D+0AQUIT", "HELO takes"),
        ("XCLIENT", "LOGIN=+00", "LOGIN takes"),
        ("XCLIENT", "LOGIN=+E2+80+AE", "LOGIN takes"),
        ("XCLIENT", "HELO=" + "x" * 256, "HELO takes"),
        ("XCLIENT", "ADDR=192.0.2.256", "ADDR takes"),
        ("XCLIENT", "ADDR=2001:db8::1", "ADDR takes"),
        ("XCLIENT", "ADDR=IPV6:192.0.2.1", "ADDR takes"),
        ("XCLIENT", "ADDR=IPV6:fe80::1%eth0", "ADDR takes"),
        ("XCLIENT", "PORT=65536", "PORT takes"),
        ("XCLIENT", "PORT=-1", "PORT takes"),
        ("XCLIENT", "PROTO=HTTP", "PROTO takes"),
        ("XFORWARD", "SOURCE=MOON", "SOURCE takes"),
    ],
)
def test_malformed_attributes_are_refused(verb: str, argument: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        xclient.parse(verb, argument)


def test_ehlo_offers_the_attributes_of_each_verb() -> None:
    assert xclient.names("XCLIENT") == ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
    assert xclient.names("XFORWARD") == ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE")


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30).filter(
    lambda text: text.upper() not in {missing.value for missing in Missing}
)
TEXT = st.text(max_size=30).filter(lambda text: text != "" and text.isprintable() and not text.startswith("["))
ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(0, 65535).map(str)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "NAME": WORDS,
    "ADDR": ADDRESSES,
    "PORT": PORTS,
    "PROTO": st.sampled_from(["SMTP", "ESMTP"]),
    "HELO": TEXT,
    "LOGIN": TEXT,
    "DESTADDR": ADDRESSES,
    "DESTPORT": PORTS,
    "IDENT": WORDS,
    "SOURCE": st.sampled_from(["LOCAL", "REMOTE"]),
}


@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
@given(data=st.data())
def test_formatted_attributes_parse_to_the_same(verb: str, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(xclient.names(verb)), min_size=1))
    attributes = {name: data.draw(VALUES[name] | st.sampled_from(Missing)) for name in chosen}
    argument = xclient.format(verb, attributes)
    assert argument.isascii()
    assert xclient.parse(verb, argument) == attributes
    assert line(verb, argument).count(b"\r\n") == 1


@pytest.mark.parametrize(
    "attributes", [{}, {"NAME": ""}, {"ADDR": "x"}, {"HELO": "a\r\nb"}, {"IDENT": "x"}, {"X": "y"}]
)
def test_malformed_attributes_are_not_sent(attributes: Attributes) -> None:
    with pytest.raises(ProtocolError):
        xclient.format("XCLIENT", attributes)


@given(st.sampled_from(["XCLIENT", "XFORWARD"]), st.sampled_from(sorted(ATTRIBUTES)), st.text(max_size=20))
def test_any_value_is_parsed_or_refused(verb: str, name: str, value: str) -> None:
    try:
        attributes = xclient.parse(verb, f"{name}={value}")
    except ProtocolError:
        return
    assert xclient.parse(verb, xclient.format(verb, attributes)) == attributes
