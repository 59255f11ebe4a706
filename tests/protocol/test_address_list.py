"""Address lists of header fields: parsed as a whole or not at all, in linear time."""

from __future__ import annotations

import time
from email.header import decode_header, make_header
from email.utils import formataddr, getaddresses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import address_list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("jo@example.com", ["jo@example.com"]),
        ("Jo@Example.com", ["Jo@Example.com"]),
        ("a@example.com, b@example.com", ["a@example.com", "b@example.com"]),
        ("a@example.com; b@example.com", ["a@example.com", "b@example.com"]),
        ("a@example.com;b@example.com;", ["a@example.com", "b@example.com"]),
        (",a@example.com,, ,b@example.com,", ["a@example.com", "b@example.com"]),
        ("Jo <jo@example.com>", ["jo@example.com"]),
        ("<jo@example.com>", ["jo@example.com"]),
        ("Jo<jo@example.com>", ["jo@example.com"]),
        ("shown@example.org <real@example.com>", ["real@example.com"]),
        ('"shown@example.org" <real@example.com>', ["real@example.com"]),
        ('"Doe, Jo" <jo@example.com>, "<x@y.z>" <a@example.com>', ["jo@example.com", "a@example.com"]),
        ("Jo Q. Public <jo@example.com>", ["jo@example.com"]),
        ("[Team] Jo <jo@example.com>", ["jo@example.com"]),
        ("J\u00f6 <jo@example.com>, \u201cX\u201d <x@example.com>", ["jo@example.com", "x@example.com"]),
        ("=?utf-8?q?J=C3=B6=2C_x?= <jo@example.com>", ["jo@example.com"]),
        ("jo@example.com (Jo, or (some) \\) else)", ["jo@example.com"]),
        ("(a@b.c) jo (x) @ (y) example (z) . com (,)", ["jo@example.com"]),
        ("a . b @ c . example", ["a.b@c.example"]),
        ('"a b"@example.com', ['"a b"@example.com']),
        ('"a\\"b" @ example.com', ['"a\\"b"@example.com']),
        ('"jo"@example.com', ["jo@example.com"]),
        ('"j".o@example.com', ["j.o@example.com"]),
        ("jo@[192.0.2.1]", ["jo@[192.0.2.1]"]),
        ("jo@[ IPv6:2001:db8::1 ]", ["jo@[ipv6:2001:db8::1]"]),
        ("O\x92Brien \x96 \x93Jo\x94 <jo@example.com>", ["jo@example.com"]),  # Windows-1252, read as Latin-1
        ("jo@\u0915\u094d\u200d\u0937.example", ["jo@\u0915\u094d\u200d\u0937.example"]),
        ("<@r.example,@s.example:jo@example.com>", ["jo@example.com"]),
        ("Jo <,@r.example,:jo@example.com>", ["jo@example.com"]),
        ("undisclosed-recipients:;", []),
        ("undisclosed-recipients: ;, a@example.com", ["a@example.com"]),
        ("Undisclosed recipients:", []),
        ("Team: a@example.com, B <b@example.com>;, c@example.com", ["a@example.com", "b@example.com", "c@example.com"]),
        ("Team: a@example.com; c@example.com", ["a@example.com", "c@example.com"]),
        ('"My, team": a@example.com', ["a@example.com"]),
        ("Jo\r\n <jo@example.com>,\r\n\tx@example.com\r\n", ["jo@example.com", "x@example.com"]),
        ("Jo <jo@\n example.com>", ["jo@example.com"]),
        ("j\u00f6@b\u00fccher.example", ["j\u00f6@b\u00fccher.example"]),
        ("postmaster", ["postmaster"]),
    ],
)
def test_a_list_is_parsed(text: str, expected: list[str]) -> None:
    assert address_list.read(text, "To") == expected


@pytest.mark.parametrize(
    ("text", "leftover"),
    [
        ('you@example.com, "', '"'),
        ("a@example.com, root", "root"),
        ("Doe, Jo <jo@example.com>", "Doe"),
        ("a@example.com b@example.com", "a@example.com b@example.com"),
        ("a@example.com, <b@example.com> <c@example.com>", "<b@example.com> <c@example.com>"),
        ("a@example.com, Jo <b@example.com> x", "Jo <b@example.com> x"),
        ("a@example.com, b@@example.com", "b@@example.com"),
        ("a@example.com, <b@example.com", "<b@example.com"),
        ("a@example.com, b@example.com>", "b@example.com>"),
        ("a@example.com, <>", "<>"),
        ("a@example.com, (comment", "(comment"),
        ("a@example.com, b@[192.0.2.1", "[192.0.2.1"),
        ("a@example.com, b@[192.0.2.999]", "b@[192.0.2.999]"),
        ("a@example.com, @example.com", "@example.com"),
        ("a@example.com, b@", "b@"),
        ("a@example.com, b..c@example.com", "b..c@example.com"),
        ("a@example.com, b@example.com.", "b@example.com."),
        ("a@example.com, b\\@example.com", "\\\\@example.com"),
        ("a@example.com, b\0@example.com", "\\x00@example.com"),
        ("a@example.com, b@example.com\u00a0, c@example.com", "b@example.com"),
        ("One: Two: a@example.com;;", "Two:"),
        (f"a@example.com, b@{'x' * 64}.com", "b@xxx"),
        ("a@example.com, <@r.example jo@example.com>", "<@r.example jo@example.com>"),
        ("a@example.com, \ud800@example.com", "\\ud800@example.com"),
    ],
)
def test_the_error_names_the_malformed_part(text: str, leftover: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        address_list.read(text, "Resent-To")
    assert "Resent-To" in str(caught.value)
    assert leftover in str(caught.value)


def test_a_long_malformed_part_is_shortened_in_the_error() -> None:
    with pytest.raises(ProtocolError) as caught:
        address_list.read("x " * 10_000, "To")
    assert len(str(caught.value)) < 200


ATOM = st.text(alphabet="abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=6)
LOCAL_PART = st.one_of(
    st.lists(ATOM, min_size=1, max_size=3).map(".".join),
    st.text(alphabet='ab "\\,;:<>@()[].', min_size=1, max_size=6).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
)
LABEL = st.sampled_from(["a", "0", "z9", "a-b", "a--b", "example", "xn--fa-hia", "7-zip"])
DOMAIN = st.lists(LABEL, min_size=1, max_size=3).map(".".join)
ADDRESS = st.builds("{}@{}".format, LOCAL_PART, DOMAIN)
BLANK = st.sampled_from(["", " ", "\t", "\r\n ", " (a, (b) \\) <x@y.z>;) "])
NAME = st.one_of(
    st.just(""),
    st.text(alphabet='ab,;:<>@()"\\ .\u00f6', max_size=8).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
    st.lists(ATOM, min_size=1, max_size=3).map(" ".join),
)


@st.composite
def members(draw: Any) -> tuple[str, list[str]]:
    """A member of a list, and the addresses that ``read`` returns for it."""
    address = draw(ADDRESS)
    blank = draw(BLANK)
    plain = address_list.read(address, "")
    text = draw(
        st.sampled_from(
            [
                address,
                f"{blank}{address}{blank}",
                f"{draw(NAME)}{blank}<{blank}{address}{blank}>{blank}",
                f"{draw(NAME)} <@{draw(DOMAIN)}:{address}>",
            ]
        )
    )
    return text, plain


@given(st.lists(members(), max_size=5), st.sampled_from([",", ", ", ";", ",,", " ,\r\n\t"]))
def test_generated_lists_are_parsed_as_a_whole(generated: list[tuple[str, list[str]]], separator: str) -> None:
    text = separator.join(member for member, _ in generated)
    expected = [address for _, addresses in generated for address in addresses]
    assert address_list.read(text, "To") == expected
    assert address_list.read(f"(no short cut) Group: {text}", "To") == expected


@given(st.text(max_size=60) | st.text(alphabet='a@.,;:<>()[]"\\ \r\n\u00f6=?', max_size=60))
def test_only_protocol_errors_are_raised(text: str) -> None:
    for function in (address_list.read, address_list.encode):
        try:
            result = function(text, "To")
        except ProtocolError:
            continue
        assert isinstance(result, list) or result.isascii()


@given(st.text(alphabet='a@.,;:<>()[]"\\ ', max_size=30))
def test_the_short_cut_changes_nothing(text: str) -> None:
    def read(text: str) -> list[str] | None:
        try:
            return address_list.read(text, "To")
        except ProtocolError:
            return None

    assert read(text) == read(f"(){text}")


@given(st.lists(st.tuples(st.text(alphabet="Jo Qx,.\u00f6", max_size=8), st.builds("{}@{}".format, ATOM, DOMAIN))))
def test_ordinary_lists_are_parsed_as_the_email_package_parses_them(people: list[tuple[str, str]]) -> None:
    text = ", ".join(formataddr((name.strip(), address)) for name, address in people)
    assert address_list.read(text, "To") == [address for _, address in getaddresses([text]) if address]


@pytest.mark.parametrize(
    "member",
    ["reader{}@example.com", "Reader {} <reader{}@example.com>", '"R., {}" <reader{}@example.com>'],
)
def test_two_thousand_recipients_take_milliseconds(member: str) -> None:
    text = ",\r\n ".join(member.format(number, number) for number in range(2000))
    taken = []
    for _ in range(5):
        began = time.thread_time()
        assert len(address_list.read(text, "To")) == 2000
        taken.append(time.thread_time() - began)
    assert min(taken) < 0.05


HOSTILE = [
    *'()"\\<>,;:@.[]',
    *(
        "a:",
        "A:b@c,",
        "a ",
        "a.",
        "(a)",
        "()",
        '"" ',
        "[]",
        "<>",
        "a@b,",
        "a@",
        "<a@b>,",
        '\\"',
        '"\\"',
        "(\\(",
        "<@a,",
    ),
    *("\u00f6", "\u00f6 ", "a@\u00f6.de,", "=?", " ", "\r\n ", "a <", "a <b@c.d"),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_lists_take_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        best = 60.0
        for _ in range(3):
            began = time.thread_time()
            try:
                address_list.read(text, "To")
            except ProtocolError:
                pass
            best = min(best, time.thread_time() - began)
        return best

    # Quadratic work would take 64 times as long.
    assert seconds(32_000) < 25 * max(seconds(4_000), 0.0005)


@pytest.mark.parametrize("text", ["(" * 100_000 + ")" * 100_000 + "a@b.c", '"' + '\\"' * 100_000 + '"@b.c'])
def test_nested_comments_do_not_recurse(text: str) -> None:
    assert len(address_list.read(text, "To")) == 1


# ASCII


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("J\u00f6 Doe <jo@example.com>", "J\u00f6 Doe <jo@example.com>"),
        ('"D\u00f6e, Jo" <jo@example.com>, x@example.com', "D\u00f6e, Jo <jo@example.com>, x@example.com"),
        ("jo@example.com (J\u00f6)", "jo@example.com (J\u00f6)"),
        ("\u00c4rzte: jo@example.com;", "\u00c4rzte: jo@example.com;"),
        ("\u00f6" * 100 + " <jo@example.com>", "\u00f6" * 100 + " <jo@example.com>"),
    ],
)
def test_encoded_names_decode_to_the_original(text: str, expected: str) -> None:
    encoded = address_list.encode(text, "To")
    assert encoded.isascii()
    assert address_list.read(encoded, "To") == address_list.read(text, "To")
    assert str(make_header(decode_header(encoded))).replace("( ", "(").replace(" )", ")").replace(" :", ":") == expected
    assert all(len(word) <= 75 for word in encoded.split())


def test_domains_are_encoded_by_idna_2008() -> None:
    assert address_list.encode("Jo <jo@fa\u00df.de>", "To") == "Jo <jo@xn--fa-hia.de>"


@pytest.mark.parametrize(
    "text", ["j\u00f6@example.com", "=?utf-8?q?x?= \u00f6 <a@b.c>", "jo@\U0001f4a9.example", "\u00f6"]
)
def test_a_list_that_cannot_be_encoded_is_an_error(text: str) -> None:
    with pytest.raises(ProtocolError, match="To"):
        address_list.encode(text, "To")


def test_a_labels() -> None:
    assert address_list.a_labels("Example.com") == "Example.com"
    assert address_list.a_labels("B\u00dcCHER.example") == "xn--bcher-kva.example"
    assert address_list.a_labels("fa\u00df.de") == "xn--fa-hia.de"
    assert address_list.a_labels("\U0001f4a9.la") is None
    assert address_list.a_labels("my_host.b\u00fccher.example") == "my_host.xn--bcher-kva.example"
    assert address_list.a_labels("\u0915\u094d\u200d\u0937.example") == "xn--11b2ezcw70k.example"


@pytest.mark.parametrize(
    "text", ["jo\x92@example.com", "jo@exam\x92ple.com", "j\u200bo@example.com", "jo@e\u200b.example"]
)
def test_an_address_has_no_invisible_characters(text: str) -> None:
    with pytest.raises(ProtocolError, match="To"):
        address_list.read(text, "To")


@pytest.mark.parametrize("piece", ["a ", '"" ', "@", ">", "a."])
def test_a_member_without_end_is_given_up_early(piece: str) -> None:
    text = piece * 500_000
    for reader in (address_list.read, address_list.encode):
        began = time.thread_time()
        with pytest.raises(ProtocolError, match="To"):
            reader(text, "To")
        assert time.thread_time() - began < 0.3


def test_a_list_may_have_several_groups_but_no_group_within_a_group() -> None:
    text = "A: a@x.example;, B: b@x.example; c@x.example"
    assert address_list.read(text, "To") == ["a@x.example", "b@x.example", "c@x.example"]
    with pytest.raises(ProtocolError):
        address_list.read("A: a@x.example, B: b@x.example;", "To")
