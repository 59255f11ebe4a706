"""Mailboxes and paths: those that are parsed, those that are refused, and round trips."""

from __future__ import annotations

import copy
import pickle
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol.address import Address
from greensmtp.protocol.mailbox import check_domain, quote_local_part

ATEXT = "abcXYZ019!#$%&'*+-/=?^_`{|}~äß中\U0001f600"
LETTERS = "abcXYZ019_äß中"

DOT_STRINGS = st.lists(st.text(ATEXT, min_size=1), min_size=1).map(".".join)
#: All that a quoted local part can hold: also what a dot-string can, which must come out without quotes.
LOCAL_PARTS = DOT_STRINGS | st.text([*map(chr, range(32, 127)), "ä", "中"])
LABELS = st.text(LETTERS, min_size=1, max_size=20) | st.builds(
    "{}-{}".format, st.text(LETTERS, min_size=1, max_size=9), st.text(LETTERS, min_size=1, max_size=9)
)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
LITERALS = st.ip_addresses().map(lambda ip: f"[{'IPv6:' if ip.version == 6 else ''}{ip}]")
DOMAINS = NAMES | LITERALS


@pytest.mark.parametrize(
    ("text", "address", "local_part", "domain"),
    [
        ("jo@example.com", "jo@example.com", "jo", "example.com"),
        ("Jo.Smith+tag@EXAMPLE.Com", "Jo.Smith+tag@example.com", "Jo.Smith+tag", "example.com"),
        ("!#$%&'*+-/=?^_`{|}~@localhost", "!#$%&'*+-/=?^_`{|}~@localhost", "!#$%&'*+-/=?^_`{|}~", "localhost"),
        ("a@1.2", "a@1.2", "a", "1.2"),
        ("a@_dmarc.x-y.example", "a@_dmarc.x-y.example", "a", "_dmarc.x-y.example"),
        ("a@b--c.example", "a@b--c.example", "a", "b--c.example"),
        # the null sender, and the one mailbox that needs no domain
        ("", "", "", ""),
        ("postmaster", "postmaster", "postmaster", ""),
        ("PostMaster", "PostMaster", "PostMaster", ""),
        # quoted local parts; unneeded quotes are dropped
        ('"jo smith"@example.com', '"jo smith"@example.com', "jo smith", "example.com"),
        ('"jo"@example.com', "jo@example.com", "jo", "example.com"),
        (r'"\j\o"@example.com', "jo@example.com", "jo", "example.com"),
        (r'"a\"b\\c"@example.com', r'"a\"b\\c"@example.com', 'a"b\\c', "example.com"),
        ('""@example.com', '""@example.com', "", "example.com"),
        ('"a@b"@example.com', '"a@b"@example.com', "a@b", "example.com"),
        ('"<>,:;"@example.com', '"<>,:;"@example.com', "<>,:;", "example.com"),
        ('".."@example.com', '".."@example.com', "..", "example.com"),
        ('" "@example.com', '" "@example.com', " ", "example.com"),
        ('"@"@[192.0.2.1]', '"@"@[192.0.2.1]', "@", "[192.0.2.1]"),
        # address literals
        ("a@[192.0.2.1]", "a@[192.0.2.1]", "a", "[192.0.2.1]"),
        ("a@[IPv6:2001:DB8::1]", "a@[ipv6:2001:db8::1]", "a", "[ipv6:2001:db8::1]"),
        ("a@[ipv6:::ffff:192.0.2.1]", "a@[ipv6:::ffff:192.0.2.1]", "a", "[ipv6:::ffff:192.0.2.1]"),
        ("a@[X-tag:anything!]", "a@[x-tag:anything!]", "a", "[x-tag:anything!]"),
        # source routes
        ("@one.example:jo@example.com", "jo@example.com", "jo", "example.com"),
        ("@one.example,@two.example:jo@example.com", "jo@example.com", "jo", "example.com"),
        ('@one.example:"j o"@[192.0.2.1]', '"j o"@[192.0.2.1]', "j o", "[192.0.2.1]"),
        # beyond ASCII
        ("jörg@bücher.example", "jörg@bücher.example", "jörg", "bücher.example"),
        ('"jö rg"@例え.テスト', '"jö rg"@例え.テスト', "jö rg", "例え.テスト"),
        ("\U0001f600@example.com", "\U0001f600@example.com", "\U0001f600", "example.com"),
        ("a@क्\u200dष.example", "a@क्\u200dष.example", "a", "क्\u200dष.example"),
    ],
)
def test_an_address_is_parsed(text: str, address: str, local_part: str, domain: str) -> None:
    parsed = Address.parse(text)
    assert (str(parsed), parsed.local_part, parsed.domain) == (address, local_part, domain)
    assert parsed == address
    assert isinstance(parsed, str)
    assert parsed.parameters == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("jo", "needs a domain"),
        ("postmaster2", "needs a domain"),
        (" ", "needs a domain"),
        ("@", "local part"),
        ("@example.com", "local part"),
        ("jo@", "domain"),
        ("jo@@example.com", "local part"),
        ("a@b@example.com", "local part"),
        (".jo@example.com", "local part"),
        ("jo.@example.com", "local part"),
        ("j..o@example.com", "local part"),
        ("j o@example.com", "local part"),
        (" jo@example.com", "local part"),
        ("jo\t@example.com", "local part"),
        ("jo@example.com ", "domain"),
        ("jo(comment)@example.com", "local part"),
        ("j\\o@example.com", "local part"),
        ('j"o"@example.com', "local part"),
        ("jo@example..com", "domain"),
        ("jo@.example.com", "domain"),
        ("jo@example.com.", "domain"),
        ("jo@-example.com", "domain"),
        ("jo@example-.com", "domain"),
        ("jo@exam ple.com", "domain"),
        ("jo@example.com\0", "domain"),
        ("jo@example.com\r\nQUIT", "domain"),
        ("jo@example.com\n", "domain"),
        ("jo\n@example.com", "local part"),
        ("j\0o@example.com", "local part"),
        ("j\x7fo@example.com", "local part"),
        ("jo@exam\x85ple.com", "domain"),
        ("jo@exam\u2028ple.com", "domain"),
        ("j\x9bo@example.com", "local part"),
        ("j\ud800o@example.com", "local part"),
        ("jo@" + "\ud800" * 64, "domain"),
        ('"jo"', "followed by @"),
        ('"jo"example.com', "followed by @"),
        ('"jo" @example.com', "followed by @"),
        ('"jo@example.com', "local part"),
        ('"j"o"@example.com', "followed by @"),
        ('"jo\\"@example.com', "local part"),
        ('"j\ro"@example.com', "local part"),
        ('"j\0o"@example.com', "local part"),
        ('"j\\\0o"@example.com', "local part"),
        ('"j\x85o"@example.com', "local part"),
        ('"j\ud800o"@example.com', "local part"),
        ("jo@[192.0.2.1", "domain"),
        ("jo@192.0.2.1]", "domain"),
        ("jo@[]", "literal"),
        ("jo@[192.0.2]", "literal"),
        ("jo@[192.0.2.256]", "literal"),
        ("jo@[192.0.2.01]", "literal"),
        ("jo@[192.0.2.1/32]", "literal"),
        ("jo@[192.0.2.\u0661]", "literal"),
        ("jo@[192.0.2.1]]", "literal"),
        ("jo@[IPv6:2001:db8::1::2]", "literal"),
        ("jo@[IPv6:]", "literal"),
        ("jo@[IPv6:192.0.2.1]", "literal"),
        ("jo@[IPv6:fe80::1%eth0]", "literal"),
        ('jo@[IPv6:::1%"<any text>\0]', "literal"),
        ("jo@[\u0131pv6:::1]", "literal"),
        ("jo@[tag:]", "literal"),
        ("jo@[-tag:x]", "literal"),
        ("jo@[tag:a b]", "literal"),
        ("jo@[tag:a\\b]", "literal"),
        ("jo@[tag:\u00e4]", "literal"),
        ("@one.example,jo@example.com", "local part"),
        ("@one.example:@two.example:jo@example.com", "local part"),
        ("@one.example,@two.example:", "needs a domain"),
        ("@one..example:jo@example.com", "local part"),
        ("@[192.0.2.1]:jo@example.com", "local part"),
        (f"jo@{'x' * 64}.example", "too long"),
        (f"jo@{'x.' * 127}xx", "too long"),
    ],
)
def test_a_malformed_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason) as caught:
        Address.parse(text)
    assert "\n" not in str(caught.value)


def test_labels_and_domains_may_have_the_length_that_dns_allows() -> None:
    assert Address.parse(f"jo@{'x' * 63}.{'y' * 63}").domain == f"{'x' * 63}.{'y' * 63}"
    assert len(Address.parse(f"jo@{'x.' * 127}x").domain) == 255


def test_the_null_sender_is_false_and_is_not_none() -> None:
    null = Address.parse("")
    assert not null
    assert null == ""
    assert null is not None


def test_two_ways_to_write_one_mailbox_are_equal() -> None:
    ways = ["jo@example.com", '"jo"@example.com', r'"\jo"@example.com', "@a.example,@b.example:jo@example.com"]
    assert {Address.parse(way) for way in ways} == {"jo@example.com"}


def test_an_address_keeps_its_parameters() -> None:
    parameters = {"SIZE": "1000", "SMTPUTF8": None}
    for text in ("", "postmaster", "jo@example.com", '"j o"@example.com'):
        assert Address.parse(text, parameters).parameters == parameters


@pytest.mark.parametrize("text", ["", "postmaster", "jo@example.com", '@a.example:"j o"@[192.0.2.1]'])
def test_an_address_can_be_pickled_and_copied(text: str) -> None:
    address = Address.parse(text, {"SIZE": "1000"})
    twins = [copy.copy(address), copy.deepcopy(address)]
    twins += [pickle.loads(pickle.dumps(address, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for twin in twins:
        assert type(twin) is Address
        assert twin == address
        assert (twin.local_part, twin.domain) == (address.local_part, address.domain)
        assert twin.parameters == address.parameters


@given(LOCAL_PARTS, DOMAINS)
def test_every_address_round_trips(local_part: str, domain: str) -> None:
    address = Address.parse(f"{quote_local_part(local_part)}@{domain}")
    assert (address.local_part, address.domain) == (local_part, domain.lower())
    again = Address.parse(address)
    assert (again, again.local_part, again.domain) == (address, local_part, domain.lower())


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('@[]:".\\<>-x'), max_size=30))
@example('"a"@[x-tag:b@c]')
@example("a@[x-tag:b@c]")
@example("a@\u0130.example")
@example("a@" + "\u023a" * 63 + ".example")
def test_an_accepted_address_is_parsed_again_from_its_text(text: str) -> None:
    try:
        address = Address.parse(text)
    except ProtocolError:
        return
    again = Address.parse(str(address))
    assert (again, again.local_part, again.domain) == (address, address.local_part, address.domain)
    assert address.domain == address.domain.lower()
    assert address.domain in address


@pytest.mark.parametrize("path", ['"a"@[x-tag:b@c]', "a@[x-tag:b@c]"])
def test_an_address_literal_has_no_at_sign(path: str) -> None:
    with pytest.raises(ProtocolError):
        Address.parse(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("jo@Spam.Example", "jo@spam.example"),
        ("jo@B\u00dcCHER.example", "jo@b\u00fccher.example"),
        ("jo@[IPv6:2001:DB8::1]", "jo@[ipv6:2001:db8::1]"),
        ('"jo"@SPAM.EXAMPLE', "jo@spam.example"),
    ],
)
def test_domains_compare_without_case(one: str, other: str) -> None:
    assert Address.parse(one) == Address.parse(other)
    assert hash(Address.parse(one)) == hash(Address.parse(other))
    assert Address.parse(one).domain == Address.parse(other).domain


def test_local_parts_compare_with_case() -> None:
    assert Address.parse("Jo@example.com") != Address.parse("jo@example.com")


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        ("Example.COM", "example.com"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("fa\u00df.de", "xn--fa-hia.de"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("my_host.b\u00fccher.example", "my_host.xn--bcher-kva.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        # A capital sigma is a sigma, at the end of a word too: the final one is another domain.
        ("\u039a\u039f\u03a3\u039c\u039f\u03a3-news.example", "xn---news-vbeoxb2bc.example"),
        ("a.\u039f\u0394\u039f\u03a3", "a.xn--pxavbq"),
        ("a.\u03bf\u03b4\u03bf\u03c2", "a.xn--pxavbm"),
        ("\u2603.example", "\u2603.example"),  # not in IDNA 2008
    ],
)
def test_the_ascii_form_of_a_domain(domain: str, ascii_form: str) -> None:
    assert Address.parse(f"jo@{domain}").ascii_domain == ascii_form


def test_the_null_path_has_no_ascii_domain() -> None:
    assert Address.parse("").ascii_domain == ""


@given(NAMES)
def test_the_ascii_form_never_raises(domain: str) -> None:
    address = Address.parse(f"jo@{domain}")
    assert address.ascii_domain.isascii() or address.ascii_domain == address.domain


@given(st.lists(NAMES, min_size=1, max_size=4), LOCAL_PARTS, DOMAINS)
def test_every_source_route_is_dropped(route: list[str], local_part: str, domain: str) -> None:
    mailbox = f"{quote_local_part(local_part)}@{domain}"
    assert Address.parse(f"{','.join('@' + host for host in route)}:{mailbox}") == Address.parse(mailbox)


@given(st.text(st.characters()) | st.text('a@."\\<>[]:, \t\n\r\0-ä:%IPv6'))
def test_any_text_is_refused_or_parsed_as_one_printable_word(text: str) -> None:
    try:
        address = Address.parse(text)
    except ProtocolError:
        return
    address.encode()
    assert not any(char < " " or "\x7f" <= char < "\xa0" or char in "\u2028\u2029" for char in address)
    assert Address.parse(address) == address


@given(st.ip_addresses())
def test_every_ip_address_makes_a_literal(ip: IPv4Address | IPv6Address) -> None:
    tag = "IPv6:" if ip.version == 6 else ""
    check_domain(f"[{tag}{ip}]")
    check_domain(f"[{tag}{ip.exploded}]")


@pytest.mark.parametrize("local_part", ["a\r\nb", "a\nb", "\0", "a\x7f", "a\x85", "a\u2028", "\ud800"])
def test_a_local_part_that_cannot_be_quoted_is_refused(local_part: str) -> None:
    with pytest.raises(ProtocolError, match="control characters"):
        quote_local_part(local_part)
