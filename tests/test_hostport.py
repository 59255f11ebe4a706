"""Hosts with ports, unix paths and URLs of mail servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greensmtp._hostport import ServerURL, address, is_port, is_unix_path, join, parse_url, split


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("mx.example.com", "mx.example.com", None),
        ("mx.example.com:25", "mx.example.com", 25),
        ("[::1]", "::1", None),
        ("[::1]:25", "::1", 25),
        ("::1", "::1", None),
        ("fe80::1%eth0", "fe80::1%eth0", None),
        ("[fe80::1%eth0]:25", "fe80::1%eth0", 25),
        (":25", "", 25),
        ("[]:25", "", 25),
        ("a:0", "a", 0),
        ("a:65535", "a", 65535),
    ],
)
def test_a_host_and_its_port_are_split(text: str, host: str, port: int | None) -> None:
    assert split(text) == (host, port)
    if host and port is not None:
        assert split(join(host, port)) == (host, port)
        assert address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["a:", "a:b", "a:65536", "a:123456", "a:-1", "a: 1", "[::1", "::1]", "[::1]25", "[a]b:25", "a:२५", "[[a]]:1"],
)
def test_a_malformed_host_and_port_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected host:port|port: expected at most 65535"):
        split(text)
    assert address(text) is None


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (("127.0.0.1", 0), ("127.0.0.1", 0)),
        (["::1", 25], ("::1", 25)),
        (("127.0.0.1", "25"), None),
        (("127.0.0.1", True), None),
        (("127.0.0.1", 65536), None),
        (("", 25), None),
        (("127.0.0.1", 25, 0, 0), None),
        ("127.0.0.1", None),
        (":25", None),
        ("::1:25", None),
        (25, None),
        (None, None),
    ],
)
def test_an_address_needs_a_host_and_a_port(value: Any, result: Any) -> None:
    assert address(value) == result


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("mx.example.com", ServerURL(None, "mx.example.com", None)),
        ("smtp://127.0.0.1:25/", ServerURL("smtp", "127.0.0.1", 25)),
        ("smtps://[::1]:465", ServerURL("smtps", "::1", 465, bracketed=True)),
        ("lmtp://localhost", ServerURL("lmtp", "localhost", None)),
        ("unix:/run/mail.sock", ServerURL(None, "", None, "/run/mail.sock")),
        ("lmtp+unix:///run/lmtp.sock", ServerURL("lmtp", "", None, "/run/lmtp.sock")),
    ],
)
def test_a_url_is_parsed(text: str, url: ServerURL) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text", ["", "::1", "smtp://", "http://a:80", "a b:25", "a:25/x", "unix:mail", "unix:////", ":25"]
)
def test_other_texts_are_not_urls_of_mail_servers(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected the URL|expected host:port"):
        parse_url(text)


def test_a_unix_path_begins_with_a_slash_or_a_dot() -> None:
    assert all(map(is_unix_path, ("/run/mail.sock", "./mail.sock", Path("mail.sock"))))
    assert not any(map(is_unix_path, ("mail.sock", "", 25, ("/run", 25))))


def test_a_port_is_a_whole_number_up_to_65535() -> None:
    assert all(map(is_port, (0, 25, 65535)))
    assert not any(map(is_port, (-1, 65536, True, "25", 25.0, None)))
