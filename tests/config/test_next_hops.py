"""Several next hops in one server, and identities of Forward, from a configuration file; over SMTP and LMTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greensmtp import Ack, Session
from greensmtp.config.build import assemble
from greensmtp.config.load import load
from greensmtp.config.problems import ConfigError
from greensmtp.testing.fixtures import MakeServer

Serve = Callable[..., Any]

OWN = """
def tariff(session, sender):
    return "bulk" if sender.startswith("news") else None

nothing = 3
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
@pytest.mark.parametrize("mode", ["lock-step", "after-body"])
def test_two_next_hops_by_domain(smtp_server: MakeServer, serve: Serve, tmp_path: Path, mode: str, scheme: str) -> None:
    seen: dict[str, list[tuple[str | None, list[str]]]] = {"a": [], "b": []}
    ports = {}
    for name, messages in seen.items():
        mx = smtp_server(hostname=f"{name}.example")

        def look(session: Session, ack: Ack, name: str = name, messages: list[Any] = messages) -> None:
            messages.append((session.hostname, [*map(str, session.to)]))
            ack.accept(250, f"2.6.0 taken by {name}")

        mx.on("message", lambda session, stream, ack: ack.accept())
        mx.on("received", look)
        ports[name] = mx.address[1]
    (tmp_path / "own_tariff.py").write_text(OWN)
    (tmp_path / "greensmtp.toml").write_text(
        f"""
        middleware = []
        hostname = "relay.example"
        [[listeners]]
        url = "{scheme}://127.0.0.1:0"
        [[deliveries]]
        use = "Forward"
        to = "smtp://127.0.0.1:{ports["a"]}"
        mode = "{mode}"
        for = "*@a.example"
        identities = {{ bulk = {{ source_address = "127.0.0.2", local_hostname = "bulk.example" }} }}
        identity_by = "own_tariff:tariff"
        [[deliveries]]
        use = "Forward"
        to = "smtp://127.0.0.1:{ports["b"]}"
        mode = "{mode}"
        for = "others"
        [deliveries.identities."a.example"]
        local_hostname = "mail.a.example"
        """
    )
    server = serve("--config", "greensmtp.toml", listeners=1)
    lmtp = scheme == "lmtp"
    with server.dial() as peer:
        peer.expect("220")
        peer.line("LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("250")
        peer.line("MAIL FROM:<news@a.example>", "RCPT TO:<jo@a.example>", "RCPT TO:<jo@b.example>")
        peer.expect("250", "250", "250" if lmtp else "452 4.5.3")
        peer.line("DATA", "Subject: Tea", ".")
        peer.expect("354", "250 2.6.0 taken by a", *["250 2.6.0 taken by b"] * lmtp)
        if not lmtp:
            peer.line("MAIL FROM:<news@a.example>", "RCPT TO:<jo@b.example>", "DATA", "Subject: Tea", ".")
            peer.expect("250", "250", "354", "250 2.6.0 taken by b")
        peer.line("MAIL FROM:<jo@a.example>", "RCPT TO:<jo@a.example>", "DATA", "Subject: Tea", ".")
        peer.expect("250", "250", "354", "250 2.6.0 taken by a")
    assert server.stop() == 0
    assert seen == {
        "a": [("bulk.example", ["jo@a.example"]), ("relay.example", ["jo@a.example"])],
        "b": [("mail.a.example", ["jo@b.example"])],
    }


HOP = "[[deliveries]]\nuse = 'Forward'\nto = 'smtp://127.0.0.1:9'\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            HOP + HOP,
            "1: deliveries: expected at most one delivery per recipient that another system answers; got Forward",
        ),
        (HOP + "for = '*@a.example'\n" + HOP, "1: deliveries: expected at most one delivery per recipient"),
        (HOP + "identity_by = 'client'", "4: deliveries.identity_by: Forward: expected 'sender', 'recipient' or"),
        (HOP + "identity_by = 'own_tariff:nix'", "4: deliveries.identity_by: Forward: predicate 'own_tariff:nix'"),
        (HOP + "identity_by = 'own_tariff:nothing'", "4: deliveries.identity_by: Forward: predicate 'own_tariff:no"),
        (HOP + "identities = { x = { source = 'y' } }", "4: deliveries.identities: Forward: expected source_address"),
        (HOP + "source_address = 'eth0'", "4: deliveries.source_address: Forward: expected an IP address; got 'eth0'"),
    ],
)
def test_an_error_names_the_line_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_tariff.py").write_text(OWN)
    path = tmp_path / "greensmtp.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        assemble(load(path))
    (line,) = error.value.lines
    assert line.startswith(f"{path}:{complaint}"), line
