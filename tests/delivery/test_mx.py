"""MX as the next hop: lookups, the order of hosts, null MX, loops, MTA-STS, and mail that is sent so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import ssl as gevent_ssl

from greensmtp import Reply
from greensmtp.client import dial as client_dial
from greensmtp.delivery import MX, Deliveries, Spool, spool_sender
from greensmtp.delivery.mta_sts import Policies, Policy, fetch, parse_policy
from greensmtp.delivery.next_hop import NextHop
from greensmtp.delivery.resolver import DNSResolver, LookupFailed, MailExchanger, NoSuchDomain
from greensmtp.delivery.spool_folder import Folder
from greensmtp.http_poster import MAX_RESPONSE, HTTPFailed
from greensmtp.http_poster import Response as HTTPResponse
from greensmtp.protocol.address import Address
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.delivery.dns_server import DNSServer
from tests.helpers import until

RECORDS = {
    ("example.com", "MX"): ["20 backup.example.com.", "10 mx.example.com."],
    ("plain.example", "A"): ["192.0.2.1"],
    ("six.example", "AAAA"): ["2001:db8::1"],
    ("null.example", "MX"): ["0 ."],
    ("empty.example", "TXT"): ['"nothing"'],
    ("_mta-sts.example.com", "TXT"): ['"v=STSv1; " "id=20261126"'],
    ("xn--bcher-kva.example", "MX"): ["10 mx.example.com."],
}


@pytest.fixture
def name_server() -> Iterator[DNSServer]:
    made = DNSServer(dict(RECORDS))
    yield made
    made.stop()


def test_records_are_looked_up_and_cached(name_server: DNSServer) -> None:
    resolver = DNSResolver([name_server.address])
    for _ in range(2):
        assert set(resolver.mx("example.com")) == {
            MailExchanger(10, "mx.example.com"),
            MailExchanger(20, "backup.example.com"),
        }
    assert name_server.asked == [("example.com", "MX")]
    assert resolver.mx("null.example") == [MailExchanger(0, "")]
    assert resolver.mx("plain.example") == []
    assert resolver.txt("_mta-sts.example.com") == ["v=STSv1; id=20261126"]
    assert [resolver.has_address(each) for each in ("plain.example", "six.example", "empty.example")] == [
        True,
        True,
        False,
    ]
    with pytest.raises(NoSuchDomain):
        resolver.mx("nothing.example")


def test_a_truncated_answer_comes_over_tcp(name_server: DNSServer) -> None:
    name_server.does["example.com"] = "truncate"
    assert len(DNSResolver([name_server.address]).mx("example.com")) == 2
    assert name_server.tcp_questions == 1


def test_no_answer_fails_in_time_and_blocks_nobody(name_server: DNSServer) -> None:
    name_server.does |= {"example.com": "SERVFAIL", "plain.example": "silent"}
    resolver = DNSResolver([name_server.address], lifetime=0.3)
    with pytest.raises(LookupFailed):
        resolver.mx("example.com")
    beats: list[float] = []

    def beat() -> None:
        while True:
            gevent.sleep(0.01)
            beats.append(time.monotonic())

    beating = gevent.spawn(beat)
    began = time.monotonic()
    with pytest.raises(LookupFailed):
        resolver.mx("plain.example")
    assert time.monotonic() - began < 2
    beating.kill()
    assert len(beats) > 10


def test_a_name_that_is_none_is_no_domain(name_server: DNSServer) -> None:
    resolver = DNSResolver([name_server.address])
    for name in ("x" * 64 + ".example", ".".join(["abcdefgh"] * 40), "a..example"):
        with pytest.raises(NoSuchDomain):
            resolver.mx(name)


def test_an_alias_is_followed_and_a_loop_of_aliases_fails_for_now(name_server: DNSServer) -> None:
    name_server.chains = {
        "alias.example": ["alias.example. 300 IN CNAME example.com.", "example.com. 300 IN MX 10 mx.example.com."],
        "loop.example": ["loop.example. 300 IN CNAME pool.example.", "pool.example. 300 IN CNAME loop.example."],
    }
    resolver = DNSResolver([name_server.address], lifetime=0.5)
    assert resolver.mx("alias.example") == [MailExchanger(10, "mx.example.com")]
    with pytest.raises(LookupFailed):
        resolver.mx("loop.example")


def test_a_huge_answer_is_cut_to_ten_hosts(name_server: DNSServer) -> None:
    name_server.records["huge.example", "MX"] = [f"{1 + number} mx{number}.example." for number in range(1500)]
    name_server.does["huge.example"] = "truncate"
    found = MX("us.example", DNSResolver([name_server.address]), sts=False).hosts("huge.example")
    assert found == tuple(f"mx{number}.example" for number in range(10))


class Table:
    """A resolver in memory."""

    def __init__(self, **tables: Any) -> None:
        self.mx_table: dict[str, Any] = tables.get("mx", {})
        self.hosts: set[str] = tables.get("hosts", set())
        self.texts: dict[str, Any] = tables.get("txt", {})

    def mx(self, domain: str) -> Sequence[MailExchanger]:
        found = self.mx_table.get(domain, [])
        if isinstance(found, Exception):
            raise found
        return [MailExchanger(*each) for each in found]

    def has_address(self, host: str) -> bool:
        return host in self.hosts

    def txt(self, name: str) -> Sequence[str]:
        found = self.texts.get(name, [])
        if isinstance(found, Exception):
            raise found
        return list(found)


@pytest.mark.parametrize(
    ("domain", "wanted"),
    [
        ("two.example", ("a.example", "b.example")),
        ("plain.example", ("plain.example",)),
        ("null.example", "556 5.1.10"),
        ("none.example", "550 5.4.4"),
        ("missing.example", "550 5.1.2"),
        ("broken.example", "451 4.4.3"),
        ("ours.example", "554 5.4.6"),
        ("backup.example", ("a.example",)),
        ("twice.example", ("a.example",)),
        ("us.example", "554 5.4.6"),
        ("wild.example", ("a.example",)),
        ("wilder.example", "550 5.4.4"),
        ("[::::]", "550 5.1.2"),
        ("[192.0.2]", ("192.0.2",)),
    ],
)
def test_the_hosts_of_a_domain(domain: str, wanted: Any) -> None:
    table = Table(
        mx={
            "two.example": [(20, "b.example"), (10, "a.example")],
            "null.example": [(0, "")],
            "missing.example": NoSuchDomain("x"),
            "broken.example": LookupFailed("x"),
            "ours.example": [(10, "us.example"), (20, "b.example")],
            "backup.example": [(10, "a.example"), (20, "us.example"), (20, "b.example"), (30, "c.example")],
            "twice.example": [(10, "a.example"), (20, "a.example")],
            "wild.example": [(10, "a\\032b.example"), (20, "a.example"), (30, "x" * 64 + ".example")],
            "wilder.example": [(10, "*.example")],
        },
        hosts={"plain.example", "us.example"},
    )
    found = MX("us.example", table, sts=False).next_hop(domain)
    if isinstance(wanted, str):
        assert str(found).startswith(wanted)
    else:
        assert isinstance(found, NextHop)
        assert found.places == [(each, 25) for each in wanted]
        assert found._options["starttls"] == "opportunistic"


def test_hosts_of_one_preference_come_in_random_order() -> None:
    table = Table(mx={"x.example": [(10, "a.example"), (10, "b.example"), (5, "c.example")]})
    orders = {MX("us.example", table, sts=False).hosts("x.example") for _ in range(100)}
    assert orders == {("c.example", "a.example", "b.example"), ("c.example", "b.example", "a.example")}


def test_two_domains_with_the_same_hosts_keep_their_own_preferences() -> None:
    table = Table(
        mx={"x.example": [(10, "a.example"), (20, "b.example")], "y.example": [(20, "a.example"), (10, "b.example")]}
    )
    mx = MX("us.example", table, sts=False)
    places = [each.places for each in map(mx.next_hop, ("x.example", "y.example")) if isinstance(each, NextHop)]
    assert places == [[("a.example", 25), ("b.example", 25)], [("b.example", 25), ("a.example", 25)]]


def test_a_domain_is_looked_up_when_its_turn_has_come() -> None:
    table = Table(mx={"x.example": [(10, "a.example")], "y.example": AssertionError("too early")})
    groups = MX("us.example", table, sts=False).next_hops([Address.parse("a@x.example"), Address.parse("a@y.example")])
    assert isinstance(next(groups)[0], NextHop)


def test_recipients_are_grouped_by_domain() -> None:
    table = Table(mx={"x.example": [(10, "a.example")], "xn--bcher-kva.example": [(10, "b.example")]})
    mx = MX("us.example", table, sts=False)
    addresses = [Address.parse(each) for each in ("a@x.example", "b@bücher.example", "c@X.example", "d@[192.0.2.7]")]
    groups = list(mx.next_hops(addresses))
    assert [group for _, group in groups] == [[addresses[0], addresses[2]], [addresses[1]], [addresses[3]]]
    places = [each.places for each, _ in groups if isinstance(each, NextHop)]
    assert places == [[("a.example", 25)], [("b.example", 25)], [("192.0.2.7", 25)]]
    assert next(mx.next_hops(addresses[:1]))[0] is groups[0][0]  # the connections are kept


# MTA-STS

POLICY = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"


def test_a_policy_is_parsed() -> None:
    policy = parse_policy(POLICY)
    assert policy == Policy("enforce", ("mx.example.com", "*.example.net"), 604800)
    hosts = ("mx.example.com", "a.example.net", "a.b.example.net", "example.net", "x.example")
    assert [policy.allows(each) for each in hosts] == [True, True, False, False, False]
    assert parse_policy("version: STSv1\nmode: none\nmax_age: 99999999999"[:-1]).max_age == 31557600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version: STSv2\nmode: enforce\nmx: a\nmax_age: 1",
        "version: STSv1\nmode: maybe\nmx: a\nmax_age: 1",
        "version: STSv1\nmode: enforce\nmax_age: 1",
        "version: STSv1\nmode: enforce\nmx: a",
        "version: STSv1\nmode: enforce\nmx: a\nmax_age: -1",
        "version: STSv1\nmode: enforce\nmx: a\nmax_age: 1\nnonsense",
    ],
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ValueError, match=r"no version|no max_age|without a colon"):
        parse_policy(text)


def test_a_policy_is_kept_and_fetched_again_when_its_record_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("greensmtp.delivery.mta_sts.monotonic", lambda: now[0])
    table = Table(txt={"_mta-sts.example.com": ["v=STSv1; id=1;"]})
    fetched: list[str] = []
    texts: list[Any] = [POLICY]

    def get(domain: str) -> str:
        fetched.append(domain)
        if isinstance(texts[0], Exception):
            raise texts[0]
        return str(texts[0])

    policies = Policies(table, get)

    def mode() -> str | None:
        policy = policies.find("example.com")
        return None if policy is None else policy.mode

    assert [mode(), mode()] == ["enforce", "enforce"]
    assert len(fetched) == 1
    # An attacker who takes the record away does not take the policy.
    for gone in ([], NoSuchDomain("x"), LookupFailed("x"), ["v=STSv1; id=1", "v=STSv1; id=2"], ["v=STSv1"]):
        table.texts["_mta-sts.example.com"] = gone
        assert mode() == "enforce"
    table.texts["_mta-sts.example.com"] = ["v=STSv1; id=2"]
    texts[0] = HTTPFailed("no answer")
    assert [mode(), mode()] == ["enforce", "enforce"]
    assert len(fetched) == 2  # not again at once
    now[0] += 301
    texts[0] = POLICY.replace("enforce", "testing")
    assert mode() == "testing"
    assert len(fetched) == 3
    now[0] += 604801
    table.texts["_mta-sts.example.com"] = []
    assert mode() is None


def test_mail_goes_where_the_policy_allows() -> None:
    table = Table(
        mx={"example.com": [(10, "evil.example"), (20, "mx.example.com")], "other.example": [(10, "evil.example")]},
        txt={"_mta-sts.example.com": ["v=STSv1; id=1"], "_mta-sts.other.example": ["v=STSv1; id=1"]},
    )
    mx = MX("us.example", table)
    assert mx.policies is not None
    mx.policies = Policies(table, lambda domain: POLICY)
    found = mx.next_hop("example.com")
    assert isinstance(found, NextHop)
    assert (found.places, found._options["starttls"]) == ([("mx.example.com", 25)], "require")
    refused = mx.next_hop("other.example")
    assert isinstance(refused, Reply)
    assert str(refused).startswith("451 4.7.5")
    mx.policies = Policies(table, lambda domain: POLICY.replace("enforce", "testing"))
    found = mx.next_hop("other.example")
    assert isinstance(found, NextHop)
    assert found._options["starttls"] == "opportunistic"


def test_a_policy_in_force_is_stronger_than_the_option_starttls() -> None:
    table = Table(mx={"example.com": [(10, "mx.example.com")]}, txt={"_mta-sts.example.com": ["v=STSv1; id=1"]})
    for option in ("off", "offered", "opportunistic"):
        mx = MX("us.example", table, starttls=option)
        mx.policies = Policies(table, lambda domain: POLICY)
        found = mx.next_hop("example.com")
        assert isinstance(found, NextHop)
        assert found._options["starttls"] == "require"


def test_a_policy_that_has_expired_is_fetched_again_under_the_same_record(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("greensmtp.delivery.mta_sts.monotonic", lambda: now[0])
    fetched: list[float] = []

    def get(domain: str) -> str:
        fetched.append(now[0])
        if len(fetched) == 3:
            raise HTTPFailed("no answer")
        return POLICY

    policies = Policies(Table(txt={"_mta-sts.example.com": ["v=STSv1; id=1"]}), get)
    for seconds in (0, 80_000, 86_500, 86_600, 173_100, 173_200, 173_500, 900_000):
        now[0] = seconds
        policy = policies.find("example.com")
        assert policy is not None
        assert policy.mode == "enforce"
    assert fetched == [0, 86_500, 173_100, 173_500, 900_000]


def test_records_of_another_version_do_not_count() -> None:
    table = Table(txt={"_mta-sts.example.com": ["v=STSv1; id=1", "v=STSv12; id=2", "v=spf1 -all"]})
    assert Policies(table, lambda domain: POLICY).find("example.com") is not None


class Response:
    """An HTTPS server for one policy, in memory."""

    def __init__(self, *response: Any) -> None:
        self._response = HTTPResponse(*response)

    def __call__(self, url: str, **options: Any) -> Response:
        assert url == "https://mta-sts.example.com/.well-known/mta-sts.txt"
        return self

    def get(self, headers: Any) -> HTTPResponse:
        return self._response

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ((200, {"content-type": "text/plain; charset=utf-8"}, POLICY.encode()), POLICY),
        ((200, {"Content-Type": "Text/Plain"}, POLICY.encode()), POLICY),
        ((200, {"Content-Type": "text/html"}, POLICY.encode()), None),
        ((200, {}, POLICY.encode()), None),
        ((301, {"Content-Type": "text/plain", "Location": "https://x.example/"}, POLICY.encode()), None),
        ((404, {"Content-Type": "text/plain"}, POLICY.encode()), None),
        ((200, {"Content-Type": "text/plain"}, (POLICY.encode() * 1000)[:MAX_RESPONSE]), None),
    ],
)
def test_what_is_taken_for_a_policy(monkeypatch: pytest.MonkeyPatch, response: Any, text: str | None) -> None:
    monkeypatch.setattr("greensmtp.delivery.mta_sts.HTTPPoster", Response(*response))
    if text is None:
        with pytest.raises(HTTPFailed):
            fetch("example.com")
    else:
        assert fetch("example.com") == text


# All of it


def test_mail_is_sent_to_the_hosts_of_each_domain(
    smtp_server: MakeServer, tmp_path: Path, name_server: DNSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_sender, "SCAN_SECONDS", 0.05)
    one = smtp_server()
    port = int(one.address[1])
    two = smtp_server(listener=("127.0.0.2", port))
    got_one, got_two = helpers.Deliveries(one), helpers.Deliveries(two)
    places = {"mx.one.example": "127.0.0.1", "dead.two.example": "127.0.0.3", "mx.two.example": "127.0.0.2"}
    known: Callable[..., Any] = client_dial._look_up
    monkeypatch.setattr(client_dial, "_look_up", lambda host, port: known(places.get(host, host), port))
    name_server.records |= {
        ("one.example", "MX"): ["10 mx.one.example."],
        ("two.example", "MX"): ["10 dead.two.example.", "20 mx.two.example."],
    }
    server = smtp_server(start=False, hostname="us.example")
    Deliveries(
        [Spool(tmp_path / "spool", mx=True, mta_sts=False, nameservers=[name_server.address], port=port)]
    ).attach(server)
    server.start()
    with dial(server) as peer:
        peer.hello()
        to = ["a@one.example", "b@two.example", "c@one.example", "d@null.example", "e@nothing.example"]
        peer.deliver("Subject: x\r\n\r\ny\r\n", sender="", to=to)
    folder = Folder(tmp_path / "spool")
    until(lambda: folder.names("dead") != [], "the domains that cannot be reached")
    assert [recipients for _, recipients, _ in got_one.mail] == [["a@one.example", "c@one.example"]]
    assert [recipients for _, recipients, _ in got_two.mail] == [["b@two.example"]]
    server.stop(timeout=1)


@pytest.mark.parametrize("mode", ["enforce", "testing"])
def test_a_policy_in_force_keeps_mail_from_hosts_with_the_wrong_certificate_or_without_tls(  # noqa: PLR0917
    smtp_server: MakeServer,
    tmp_path: Path,
    name_server: DNSServer,
    monkeypatch: pytest.MonkeyPatch,
    certificate: Any,
    mode: str,
) -> None:
    monkeypatch.setattr(spool_sender, "SCAN_SECONDS", 0.05)
    trusted = gevent_ssl.create_default_context(cafile=certificate.authority)
    monkeypatch.setattr("greensmtp.client.tls._default_context", trusted)
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    wrong = smtp_server(**files)  # the certificate is for mx.example.com
    port = int(wrong.address[1])
    plain = smtp_server(listener=("127.0.0.2", port))
    right = smtp_server(listener=("127.0.0.3", port), **files)
    got = {name: helpers.Deliveries(each) for name, each in (("wrong", wrong), ("plain", plain), ("right", right))}
    places = {"wrong.example.com": "127.0.0.1", "plain.example.com": "127.0.0.2", "mx.example.com": "127.0.0.3"}
    known: Callable[..., Any] = client_dial._look_up
    monkeypatch.setattr(client_dial, "_look_up", lambda host, port: known(places.get(host, host), port))
    name_server.records |= {
        ("all.example", "MX"): ["10 wrong.example.com.", "20 plain.example.com.", "30 mx.example.com."],
        ("bad.example", "MX"): ["10 wrong.example.com.", "20 plain.example.com."],
        ("_mta-sts.all.example", "TXT"): ['"v=STSv1; id=1"'],
        ("_mta-sts.bad.example", "TXT"): ['"v=STSv1; id=1"'],
    }
    text = f"version: STSv1\nmode: {mode}\nmx: *.example.com\nmax_age: 86400\n"
    init = Policies.__init__
    monkeypatch.setattr(Policies, "__init__", lambda self, resolver: init(self, resolver, lambda domain: text))
    server = smtp_server(start=False, hostname="us.example")
    spool = Spool(tmp_path / "spool", mx=True, nameservers=[name_server.address], port=port, schedule="0.1s, 500s")
    Deliveries([spool]).attach(server)
    server.start()
    with dial(server) as peer:
        peer.hello()
        peer.deliver("Subject: x\r\n\r\ny\r\n", sender="", to=["a@all.example", "b@bad.example"])
    folder = Folder(tmp_path / "spool")
    if mode == "testing":
        until(lambda: not folder.names(), "the message to be sent")
        assert sum(len(each.mail) for each in got.values()) == 2
        assert got["right"].mail == []
    else:
        (name,) = folder.names()
        until(lambda: folder.state(name).attempts == 2, "two tries")
        assert [recipients for _, recipients, _ in got["right"].mail] == [["a@all.example"]]
        assert got["wrong"].mail == got["plain"].mail == []
        assert folder.state(name).replies["b@bad.example"].startswith("451 ")
    server.stop(timeout=1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "to or mx=True must be given"),
        ({"to": "smtp://x.example", "mx": True}, "to or mx=True must be given"),
        ({"mx": True, "username": "jo", "password": "x"}, "mx cannot be used with a username"),
        ({"mx": True, "nameservers": ["x:y"]}, "x"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        Spool(tmp_path, **options)
