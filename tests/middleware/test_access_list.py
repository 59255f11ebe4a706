"""AccessList: allowed and denied networks, and files that change, become malformed, or disappear."""

from __future__ import annotations

import logging
import os
import threading
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from gevent import get_hub
from hypothesis import example, given
from hypothesis import strategies as st

from greensmtp.middleware import AccessList, _watched_file, access_list
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

#: Few bits that differ, so that networks hold each other and addresses hit.
BITS = st.sampled_from([0, 1, 2, 3, 128, 254, 255])
V4 = st.lists(BITS, min_size=4, max_size=4).map(bytes).map(ip_address)
V6 = (
    st.lists(BITS, min_size=16, max_size=16)
    .map(bytes)
    .map(ip_address)
    .filter(lambda a: IPv6Address(int(a)).ipv4_mapped is None)
)
V4_NETWORKS = st.builds(lambda address, prefix: IPv4Network((address, prefix), strict=False), V4, st.integers(0, 32))
V6_NETWORKS = st.builds(lambda address, prefix: IPv6Network((address, prefix), strict=False), V6, st.integers(0, 128))
NETWORKS = st.lists(st.one_of(V4_NETWORKS, V6_NETWORKS), max_size=12)


def expected(address: Any, allow: list[Any], deny: list[Any], otherwise: bool) -> bool:
    """Return the answer of ipaddress, asked for one network after the other."""
    holding = [
        (network.prefixlen, verdict)
        for verdict, list_ in ((True, allow), (False, deny))
        for network in list_
        if address in network
    ]
    if not holding:
        return otherwise
    longest = max(prefix for prefix, _ in holding)
    return (longest, False) not in holding


@given(st.one_of(V4, V6), NETWORKS, NETWORKS, st.booleans())
@example(ip_address("192.0.2.1"), [ip_network("0.0.0.0/0")], [ip_network("192.0.2.1")], True)
def test_it_answers_as_ipaddress_does(address: Any, allow: list[Any], deny: list[Any], otherwise: bool) -> None:
    access = AccessList(map(str, allow), map(str, deny), otherwise="allow" if otherwise else "deny")
    assert access.allows(address) is expected(address, allow, deny, otherwise)


def greeted(server: Any, host: str) -> str:
    with dial(server, source=(host, 4711)) as peer:
        reply = peer.reply()
        if not reply.startswith("220"):
            peer.expect_end()
        return reply[:9]


def test_what_is_denied_gets_554(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[AccessList(deny=["192.0.2.0/24", "2001:db8::/32"])])
    assert greeted(server, "192.0.2.1") == greeted(server, "2001:db8::1") == "554 5.7.1"
    assert greeted(server, "::ffff:192.0.2.1") == "554 5.7.1"
    assert greeted(server, "192.0.3.1").startswith("220")
    assert greeted(server, "2001:db9::1").startswith("220")


def test_an_allow_list_denies_all_other_addresses(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[AccessList(["192.0.2.0/24", "::ffff:10.0.0.0/104"])])
    assert greeted(server, "192.0.2.1").startswith("220")
    assert greeted(server, "10.1.2.3").startswith("220")
    assert greeted(server, "11.1.2.3") == "554 5.7.1"
    assert greeted(server, "2001:db8::1") == "554 5.7.1"
    assert greeted(server, "fe80::1%lo") == "554 5.7.1"


def test_the_more_specific_network_decides(smtp_server: MakeServer) -> None:
    access = AccessList(allow=["192.0.2.7", "10.0.0.0/8"], deny=["192.0.2.0/24", "10.6.0.0/16", "10.0.0.0/8"])
    server = smtp_server(start=False, middleware=[access])
    assert greeted(server, "192.0.2.7").startswith("220")
    assert greeted(server, "192.0.2.8") == "554 5.7.1"
    assert greeted(server, "10.1.1.1") == "554 5.7.1"  # in both lists alike
    assert greeted(server, "198.51.100.1").startswith("220")


@pytest.mark.parametrize(("allow_unix", "reply"), [(True, "220"), (False, "554 5.7.1")])
def test_unix_sockets_are_allowed_unless_said_otherwise(smtp_server: MakeServer, allow_unix: bool, reply: str) -> None:
    access = AccessList(["192.0.2.0/24"], allow_unix=allow_unix)
    with dial(smtp_server(start=False, middleware=[access], lmtp=True)) as peer:
        peer.expect(reply)


def write(path: Path, text: str, _versions: list[int] = [0]) -> Path:  # noqa: B006 - a count
    """Replace a file as an editor does, with a new modification time."""
    path.write_text(text)
    _versions[0] += 1
    os.utime(path, ns=(_versions[0] * 10**9, _versions[0] * 10**9))
    return path


def test_files_are_read_again_when_they_change(
    smtp_server: MakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greensmtp.access")
    deny = write(
        tmp_path / "deny", "\ufeff# what is bad\n192.0.2.0/24 ; SBL1\n\n  2001:db8::/32  # and this\n198.51.100.7\n"
    )
    allow = write(tmp_path / "allow", "192.0.2.9\n")
    access = AccessList(allow_file=allow, deny_file=deny, check_seconds=0)
    server = smtp_server(start=False, middleware=[access])
    assert greeted(server, "192.0.2.1") == greeted(server, "2001:db8::1") == greeted(server, "198.51.100.7")
    assert greeted(server, "192.0.2.1") == "554 5.7.1"
    assert greeted(server, "192.0.2.9").startswith("220")
    assert not caplog.records
    write(deny, "203.0.113.0/24\n")
    assert greeted(server, "192.0.2.1").startswith("220")
    assert greeted(server, "203.0.113.1") == "554 5.7.1"
    write(allow, "203.0.113.1\n")
    assert greeted(server, "203.0.113.1").startswith("220")
    assert [record.getMessage() for record in caplog.records] == [
        f"access list: read {deny} again: 1 networks",
        f"access list: read {allow} again: 1 networks",
    ]


def test_a_file_is_not_looked_at_more_often_than_asked(smtp_server: MakeServer, tmp_path: Path) -> None:
    deny = write(tmp_path / "deny", "192.0.2.0/24\n")
    server = smtp_server(start=False, middleware=[AccessList(deny_file=deny, check_seconds=3600)])
    write(deny, "")
    assert greeted(server, "192.0.2.1") == "554 5.7.1"


def test_a_broken_file_leaves_the_old_list_in_force_and_is_logged_once(
    smtp_server: MakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "greensmtp.access")
    deny = write(tmp_path / "deny", "192.0.2.0/24\n")
    server = smtp_server(start=False, middleware=[AccessList(deny_file=deny, check_seconds=0)])

    def complaints() -> list[str]:
        for _ in range(3):
            assert greeted(server, "192.0.2.1") == "554 5.7.1"
            assert greeted(server, "198.51.100.1").startswith("220")
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    write(deny, "198.51.100.0/24\n\n192.0.2.0/33\n")
    (only,) = complaints()
    assert only == (
        f"access list: {deny}, line 3: not a network like 192.0.2.0/24 or 2001:db8::/32: '192.0.2.0/33'; "
        "what was read before stays in force"
    )
    write(deny, "198.51.100.1/24\n")
    (only,) = complaints()
    assert "line 1: 198.51.100.1/24 has host bits set; did you mean 198.51.100.0/24?" in only
    deny.unlink()
    (only,) = complaints()
    assert "No such file" in only
    deny.mkdir()  # it can be looked at, but not read
    (only,) = complaints()
    assert "Is a directory" in only
    deny.rmdir()
    write(deny, "198.51.100.0/24\n")
    assert greeted(server, "192.0.2.1").startswith("220")
    assert greeted(server, "198.51.100.1") == "554 5.7.1"


def test_a_file_that_could_not_be_read_for_a_while_is_read_again(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restored permissions change neither the time nor the size of a file."""

    def refuse(*arguments: Any) -> str:
        raise PermissionError(13, "Permission denied", str(deny))

    deny = write(tmp_path / "deny", "192.0.2.0/24\n")
    server = smtp_server(start=False, middleware=[AccessList(deny_file=deny, check_seconds=0)])
    write(deny, "198.51.100.0/24\n")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", refuse)
        assert greeted(server, "192.0.2.1") == "554 5.7.1"
    assert greeted(server, "192.0.2.1").startswith("220")


def test_a_file_system_that_hangs_keeps_one_connection_and_not_for_long(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    stat = _watched_file._version_of

    def hang(path: Path) -> tuple[int, int, int]:
        release.wait(20)
        return stat(path)

    deny = write(tmp_path / "deny", "192.0.2.0/24\n")
    server = smtp_server(start=False, middleware=[AccessList(deny_file=deny, check_seconds=0)])
    write(deny, "198.51.100.0/24\n")
    monkeypatch.setattr(_watched_file, "_version_of", hang)
    monkeypatch.setattr(access_list, "_CHECK_TIMEOUT", 0.05)
    for _ in range(5):
        assert greeted(server, "192.0.2.1") == "554 5.7.1"  # by what was read before
    release.set()
    get_hub().threadpool.join()
    assert greeted(server, "192.0.2.1").startswith("220")


def test_many_networks_cost_no_more_than_few() -> None:
    many = [f"10.{number >> 8 & 255}.{number & 255}.{number >> 16}/32" for number in range(0, 1 << 18, 64)]
    access = AccessList(deny=[*many, "192.0.2.0/24"])
    assert [len(lengths) for lengths in access._table.values()] == [2, 0]  # steps of a look-up
    assert not access.allows(ip_address("10.0.64.0"))
    assert access.allows(ip_address("10.0.65.0"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "AccessList takes allow, deny"),
        ({"allow": "192.0.2.0/24"}, r"allow takes several networks: \['192.0.2.0/24'\]"),
        ({"deny": ["example.com"]}, "deny has a wrong entry: not a network like .*: 'example.com'"),
        ({"deny": ["192.0.2.1/24"]}, "did you mean 192.0.2.0/24?"),
        ({"deny": ["192.0.2.1"], "otherwise": "maybe"}, "otherwise takes 'allow' or 'deny', not 'maybe'"),
        ({"deny": ["192.0.2.1"], "check_seconds": -1}, "check_seconds takes a number of at least 0, not -1"),
        ({"deny": ["192.0.2.1"], "code": 220}, "code takes"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AccessList(**arguments)


def test_a_file_that_is_broken_or_missing_at_the_start_stops_it(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken", "10.0.0.0/8\nnonsense\n")
    with pytest.raises(ValueError, match=r"broken, line 2: not a network .*: 'nonsense'"):
        AccessList(allow_file=broken)
    with pytest.raises(FileNotFoundError, match="missing"):
        AccessList(allow_file=tmp_path / "missing")


def test_its_repr_is_short(tmp_path: Path) -> None:
    assert repr(AccessList(["192.0.2.0/24"])) == "AccessList(allow=['192.0.2.0/24'], otherwise='deny')"
    many = AccessList(deny=[f"192.0.2.{number}" for number in range(9)])
    assert repr(many) == "AccessList(deny=<9 networks>, otherwise='allow')"
    path = write(tmp_path / "list", "")
    assert repr(AccessList(deny_file=path)) == f"AccessList(deny_file={str(path)!r}, otherwise='allow')"
