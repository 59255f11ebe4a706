"""Trusted proxies in a configuration: common keys, a listener's own, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from greensmtp.config.build import assemble
from greensmtp.config.load import Override, load
from greensmtp.config.problems import ConfigError
from greensmtp.server.server import SMTPServer

NONE = "delivery.maildir = false\nmiddleware = []\n"


def servers(folder: Path, text: str, *overrides: Override) -> list[SMTPServer]:
    """Build the servers of a configuration; the addresses of the listeners are added to it."""
    (folder / "greensmtp.toml").write_text(NONE + text)
    return [each.server for each in assemble(load(folder / "greensmtp.toml", overrides)).serving]


def trusts(server: SMTPServer, host: str) -> bool:
    return server._proxies is not None and (host, 1) in server._proxies


def test_listeners_have_the_common_proxies_or_their_own(tmp_path: Path) -> None:
    common, own, none = servers(
        tmp_path,
        """
proxy_from = ["10.0.0.5"]
proxy_tls = true
xclient_from = ["10.0.0.6"]
[[listeners]]
url = "127.0.0.1:0"
[[listeners]]
url = "127.0.0.1:0"
proxy_from = ["10.1.0.0/16", "2001:db8::/32"]
proxy_tls = false
[[listeners]]
url = "127.0.0.1:0"
proxy_from = false
xclient_from = false
""",
    )
    assert [trusts(each, "10.0.0.5") for each in (common, own, none)] == [True, False, False]
    assert [trusts(each, "2001:db8::1") for each in (common, own, none)] == [False, True, False]
    assert [each._proxy_tls for each in (common, own, none)] == [True, False, False]
    assert [list(each._proxy_verbs._verbs) for each in (common, own, none)] == [["XCLIENT"], ["XCLIENT"], []]


def test_the_option_is_for_all_listeners(tmp_path: Path) -> None:
    option = Override("--proxy-from", ("proxy_from",), ["10.0.0.9"])
    text = '[[listeners]]\nurl = "127.0.0.1:0"\nproxy_from = false\n'
    (server,) = servers(tmp_path, text, option)
    assert trusts(server, "10.0.0.9")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('proxy_from = ["10.0.0.1/8"]', "3: proxy_from: takes networks and addresses, like '192.0.2.0/24'"),
        ('proxy_from = "10.0.0.0/8"', "3: proxy_from: expected an array; got a string"),
        ("xclient_from = [7]", "3: xclient_from: expected a string; got an integer"),
        ("xforward_from = true", "3: xforward_from: expected a value, or false to disable; got true"),
        ("proxy_tls = true", "3: proxy_tls: needs proxy_from: the proxies whose TLS counts"),
        ('[[listeners]]\nurl = "127.0.0.1:0"\nproxy_tls = true', "5: listeners.proxy_tls: needs proxy_from"),
        (
            '[[listeners]]\nurl = "127.0.0.1:0"\nproxy_form = []',
            "5: listeners.proxy_form: there is no such key; did you",
        ),
    ],
)
def test_what_is_wrong_is_reported_with_its_line(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        servers(tmp_path, text)
    (line,) = caught.value.lines
    assert f"greensmtp.toml:{error}" in line
