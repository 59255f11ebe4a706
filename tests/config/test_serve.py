"""``greensmtp serve --config``: real processes, listeners of different protocols and stacks, and mail."""

from __future__ import annotations

import json
import os
import re
import smtplib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Serve = Callable[..., Any]

STACKS = """
def shout(text: str, verb: str = "NOOP"):
    def middleware(session, command, proceed):
        reply = proceed(session, command)
        return type(reply)(reply.code, text) if command.verb == verb else reply
    middleware.verbs = (verb,)
    return middleware

class Count:
    def __init__(self):
        self.seen = 0
    verbs = ("NOOP",)
    def __call__(self, session, command, proceed):
        self.seen += 1
        reply = proceed(session, command)
        return type(reply)(reply.code, f"number {self.seen}")
"""


def deliver(peer: Any, hello: str) -> str:
    """Send a message; return the reply."""
    peer.expect("220")
    peer.line(f"{hello} client.example", "MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "250", "354")
    peer.line(f"Subject: by {hello}", ".")
    reply: str = peer.reply()
    return reply


def test_two_listeners_of_different_protocol_and_stack(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "stacks.py").write_text(STACKS)
    (tmp_path / "greensmtp.toml").write_text(
        f"""
        hostname = "mx.example.com"
        [[listeners]]
        url = "127.0.0.1:0"
        [[listeners]]
        url = "lmtp+unix:{tmp_path}/lmtp"
        hostname = "lmtp.example.com"
        limits.max_recipients = 1
        limits.max_message_size = "2k"
        [[listeners.middleware]]
        use = "stacks:shout"
        text = "outer"
        [[listeners.middleware]]
        use = "stacks:shout"
        text = "inner"
        [[middleware]]
        use = "Logging"
        [[middleware]]
        use = "stacks:shout"
        text = "common"
        [logging]
        level = "info"
        [limits]
        max_message_size = "3k"
        """
    )
    server = serve("--config", "greensmtp.toml", listeners=2)
    assert re.fullmatch(r"smtp://127\.0\.0\.1:\d+", server.urls[0])
    assert server.urls[1] == f"lmtp+unix:{tmp_path}/lmtp"
    with server.dial(0) as smtp, server.dial(1) as lmtp:
        assert deliver(smtp, "EHLO").startswith("250 2.0.0 Ok: queued as ")
        assert deliver(lmtp, "LHLO").startswith("250 2.0.0 Ok: queued as ")
        for peer, text in ((smtp, "common"), (lmtp, "outer")):
            peer.line("NOOP")
            peer.expect(f"250 2.0.0 {text}")
        lmtp.line(
            "MAIL FROM:<>", "RCPT TO:<a@example.org>", "RCPT TO:<b@example.org>", "RSET", "MAIL FROM:<> SIZE=2049"
        )
        lmtp.expect("250", "250", "452", "250", "552")
        smtp.line("MAIL FROM:<> SIZE=2049", "RCPT TO:<a@example.org>", "RCPT TO:<b@example.org>", "RSET")
        smtp.expect("250", "250", "250", "250")
        smtp.line("MAIL FROM:<> SIZE=3073")
        smtp.expect("552")
    assert server.stop() == 0
    said = server.lines()
    assert [line.split(" ")[0] for line in said] == ["message", "message"]
    mail = b"".join(server.mail)
    assert b"by mx.example.com with ESMTP id" in mail
    assert b"by lmtp.example.com with LMTP id" in mail
    # (Only the common stack has Logging in it.)
    assert server.log.count("from=<ann@example.com>") == 1


def test_a_stack_that_listeners_share_counts_for_all_of_them(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "stacks.py").write_text(STACKS)
    (tmp_path / "greensmtp.toml").write_text(
        '[[listeners]]\nurl = "127.0.0.1:0"\n[[listeners]]\nurl = "127.0.0.1:0"\n'
        '[[listeners]]\nurl = "127.0.0.1:0"\n[[listeners.middleware]]\nuse = "stacks:Count"\n'
        '[[middleware]]\nuse = "stacks:Count"\n'
    )
    server = serve("-c", "greensmtp.toml", listeners=3)
    for number, count in ((0, 1), (1, 2), (2, 1)):
        with server.dial(number) as peer:
            peer.hello()
            peer.line("NOOP")
            peer.expect(f"250 2.0.0 number {count}")


def test_a_middleware_applies_under_its_conditions(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "stacks.py").write_text(STACKS)
    (tmp_path / "greensmtp.toml").write_text(
        f"""
        [[listeners]]
        url = "127.0.0.1:0"
        [[listeners]]
        url = "unix:{tmp_path}/mail"
        [[middleware]]
        use = "stacks:shout"
        text = "far away"
        only = ["outside:unix"]
        """
    )
    server = serve("--config", "greensmtp.toml", listeners=2)
    for number, text in ((0, "far away"), (1, "Ok")):
        with server.dial(number) as peer:
            peer.hello()
            peer.line("NOOP")
            peer.expect(f"250 2.0.0 {text}")


def test_a_certificate_for_all_and_one_of_its_own(serve: Serve, tmp_path: Path, certificate: Any) -> None:
    (tmp_path / "both.pem").write_bytes(certificate.keyfile.read_bytes() + certificate.certfile.read_bytes())
    (tmp_path / "greensmtp.toml").write_text(
        f"""
        tls_cert = "{certificate.certfile}"
        tls_key = "{certificate.keyfile}"
        [[listeners]]
        url = "127.0.0.1:0"
        [[listeners]]
        url = "smtps://127.0.0.1:0"
        tls_cert = "both.pem"
        [[listeners]]
        url = "127.0.0.1:0"
        tls = false
        """
    )
    server = serve("--config", "greensmtp.toml", listeners=3)
    context = ssl.create_default_context(cafile=str(certificate.authority))
    for number in range(3):
        port = int(server.urls[number].rpartition(":")[2])
        where = ("127.0.0.1", port)
        with (
            smtplib.SMTP_SSL(*where, timeout=10, context=context) if number == 1 else smtplib.SMTP(*where, timeout=10)
        ) as client:
            client.ehlo("client.example")
            assert client.has_extn("STARTTLS") == (number == 0)
            if number == 0:
                client.starttls(context=context)
            client.sendmail("ann@example.com", ["bob@example.org"], b"Subject: x\r\n\r\n")
    assert [b"with ESMTPS id" in mail for mail in server.mail] == [True, True, False]


def test_passwords_of_users_can_be_references(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "boop").write_text("sesame\n")
    (tmp_path / "greensmtp.toml").write_text(
        """
        [[listeners]]
        url = "127.0.0.1:0"
        [[listeners]]
        url = "127.0.0.1:0"
        [[listeners.middleware]]
        use = "RateLimit"
        limit = "1/hour"
        by = "identity"
        [[listeners.middleware]]
        use = "Auth"
        backend = { beep = { env = "BEEP" }, boop = { file = "boop" } }
        mechanisms = ["PLAIN"]
        allow_plaintext = true
        required = true
        """
    )
    server = serve("--config", "greensmtp.toml", "-vv", listeners=2, env=os.environ | {"BEEP": "mellon"})
    port = int(server.urls[1].rpartition(":")[2])
    for user, password in (("beep", "mellon"), ("boop", "sesame")):
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            client.login(user, password)
            client.sendmail("ann@example.com", ["bob@example.org"], b"Subject: x\r\n\r\n")
            with pytest.raises(smtplib.SMTPSenderRefused, match=r"450"):
                client.sendmail("ann@example.com", ["bob@example.org"], b"Subject: x\r\n\r\n")
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client, pytest.raises(smtplib.SMTPSenderRefused, match="530"):
        client.sendmail("ann@example.com", ["bob@example.org"], b"")
    with server.dial(0) as peer:
        assert "AUTH" not in peer.hello()
    assert server.stop() == 0
    assert len(server.mail) == 2
    assert "mellon" not in server.log
    assert "sesame" not in server.log


def test_plugins_delivery_and_logging_follow_the_file(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(
        "def install(server):\n"
        "    server.on('to', lambda session, address, ack: ack.accept(message='2.1.5 so says the plugin'))\n"
    )
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "greensmtp.toml").write_text(
        """
        [[plugins]]
        name = "missing"
        optional = true
        [[plugins]]
        name = "policy:install"
        [delivery]
        maildir = "mail"
        [logging]
        level = "debug"
        format = "json"
        target = "log"
        """
    )
    server = serve("--config", "etc/greensmtp.toml", "--listen", "127.0.0.1:0")
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA", "Subject: x", ".")
        peer.expect("250", "250 2.1.5 so says the plugin", "354", "250")
    assert server.stop() == 0
    assert server.log == ""
    records = [json.loads(line) for line in (tmp_path / "etc" / "log").read_text().splitlines()]
    assert "'missing': cannot import missing" in records[0]["message"]
    assert records[0]["level"] == "WARNING"
    assert {"EHLO", "MAIL"} <= {record.get("verb") for record in records}
    assert len([*(tmp_path / "etc" / "mail" / "new").iterdir()]) == 1
    assert not server.maildir.exists()


def test_options_override_the_file(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text(
        'hostname = "file.example"\nmiddleware = []\n[limits]\nmax_message_size = 1000\n'
        '[delivery]\nmaildir = "elsewhere"\n[[listeners]]\nurl = "unix:/nowhere/at/all"\n'
    )
    options = ["--hostname", "option.example", "--max-size", "3k", "--maildir", "maildir"]
    server = serve("--config", "greensmtp.toml", "--listen", "127.0.0.1:0", *options)
    with server.dial() as peer:
        peer.expect("220 option.example ESMTP")
        peer.line("EHLO client.example")
        assert "SIZE 3072" in peer.reply()
    assert server.maildir.exists()
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_file_the_defaults_serve(serve: Serve, tmp_path: Path) -> None:
    server = serve("-v")
    with server.dial() as peer:
        assert deliver(peer, "EHLO").startswith("250 2.0.0 Ok: queued as ")
    assert server.stop() == 0
    assert "from=<ann@example.com>" in server.log
    assert len(server.mail) == 1


# What is wrong


def test_an_invalid_file_ends_serve_with_status_2_and_leaves_no_trace(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text("[limits]\n\nmax_mesage_size = 3\n[logging]\ntarget = 7\n")
    server = serve("--config", "greensmtp.toml", wait=False)
    assert server.wait() == 2
    assert server.log.splitlines() == [
        "Error: greensmtp.toml:3: limits.max_mesage_size: there is no such key; did you mean max_message_size?",
        "Error: greensmtp.toml:5: logging.target: expected a string; got an integer",
    ]
    assert server.lines() == []
    assert not server.maildir.exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '[[listeners]]\nurl = "smtps://127.0.0.1:0"',
            "2: listeners.url: smtps:// needs a certificate: give tls_cert and",
        ),
        ('[logging]\ntarget = "no/log"', "2: logging.target: cannot write to 'no/log': No such file or directory"),
        ('[delivery]\nmaildir = "greensmtp.toml"', "2: delivery.maildir: cannot make '"),
    ],
)
def test_a_server_that_cannot_be_built_ends_serve_with_status_2(
    serve: Serve, tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "greensmtp.toml").write_text(text)
    server = serve("--config", "greensmtp.toml", wait=False, listeners=1)
    assert server.wait() == 2
    assert server.log.startswith(f"Error: greensmtp.toml:{complaint}")
    assert len(server.log.splitlines()) == 1
    assert not server.maildir.exists()


def test_a_port_in_use_is_reported_with_its_line(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "greensmtp.toml").write_text(f'# one\n[[listeners]]\nurl = "127.0.0.1:{port}"\n')
        server = serve("--config", "greensmtp.toml", wait=False, listeners=1)
        assert server.wait() == 1
    assert server.log == (
        f"Error: greensmtp.toml:3: listeners.url: cannot listen on smtp://127.0.0.1:{port}: Address already in use\n"
    )


FAILING = """
class Failing:
    def __init__(self, error: str) -> None:
        self.error = error
    def start(self, server):
        raise OSError(98, self.error)
    def __call__(self, session, command, proceed):
        return proceed(session, command)
"""


def test_a_middleware_that_fails_to_start_is_reported_in_one_line(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "greensmtp.toml").write_text(
        '[[listeners]]\nurl = "127.0.0.1:0"\n[[middleware]]\nuse = "Logging"\n[[middleware]]\n'
        'use = "failing:Failing"\nerror = "no\\nsuch port"\nonly = ["not over_tls"]\n'
    )
    server = serve("--config", "greensmtp.toml", wait=False, listeners=1)
    assert server.wait() == 1
    assert server.log == (
        "Error: greensmtp.toml:5: middleware: failing:Failing: cannot start: OSError: [Errno 98] no such port "
        f"({tmp_path}/failing.py, line 6)\n"
    )
    assert server.lines() == []


def test_a_delivery_that_fails_to_start_is_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "greensmtp.toml").write_text(
        '[[listeners]]\nurl = "127.0.0.1:0"\n[[deliveries]]\nuse = "Spool"\npath = "file/spool"\n'
        'to = "smtp://127.0.0.1:1"\n'
    )
    server = serve("--config", "greensmtp.toml", wait=False, listeners=1)
    assert server.wait() == 1
    assert "Error: delivery Spool: cannot start: NotADirectoryError: " in server.log


def test_a_plugins_middleware_that_fails_to_start_is_reported_in_one_line(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(f"{FAILING}\ndef install(server):\n    server.use(Failing('no such port'))\n")
    server = serve("--plugin", "failing:install", wait=False)
    assert server.wait() == 1
    assert re.fullmatch(
        r"Error: middleware \S*Failing\S*: cannot start: OSError: \[Errno 98\] no such port \(.*, line 6\)\n",
        server.log,
    ), server.log
