"""Plugins of ``greensmtp serve``: how they are found, and the Maildir beside them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greensmtp.testing import Peer
from tests.delivery.helpers import wait_until

Serve = Callable[..., Any]


# How they are found

BY_IMPORT = """
from greensmtp import signals

@signals.to.connect
def nobody_but_bob(session, address, ack):
    if address.local_part == "bob":
        ack.accept()
    else:
        ack.reject(550, "5.1.1 Nobody here but Bob")
"""

BY_CALL = """
class Policy:
    @staticmethod
    def install(server):
        server.on("from", welcome)

def welcome(session, address, ack):
    ack.accept(250, "Welcome, " + address.local_part + ", to " + session.server.hostname)

def greet(server):
    @server.use
    def shout(session, command, proceed):
        return proceed(session, command)
    shout.verbs = ("NOOP",)
"""


def test_plugins_in_the_current_folder_by_import_and_by_call(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "imported.py").write_text(BY_IMPORT)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "called.py").write_text(BY_CALL)
    names = ("imported", "package.called:Policy.install", "package.called:greet")
    server = serve(
        *(word for name in names for word in ("--plugin", name)),
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "lmtp://127.0.0.1:0",
    )
    for number, hello in enumerate(("EHLO", "LHLO")):
        with server.dial(number) as peer:
            peer.expect("220")
            peer.line(f"{hello} client.example", "MAIL FROM:<ann@example.com>", "RCPT TO:<cyd@x>", "RCPT TO:<bob@x>")
            peer.expect("250", "250 2.0.0 Welcome, ann, to mx.example.com", "550 5.1.1 Nobody here but Bob", "250")


# Beside the Maildir

REFUSING = """
from greensmtp import Reject, signals

def decide(session, ack):
    name = session.from_.local_part
    if name == STAGE + "-rejects":
        ack.reject(550, "5.7.1 not this one")
    elif name == STAGE + "-raises":
        raise Reject(554, "5.7.1 nor this one")
    elif name == STAGE + "-fails":
        raise RuntimeError("a bug of the plugin's")
    elif name == STAGE + "-accepts":
        ack.accept(message="as the plugin says")

def install(server):
    if BY_CALL:
        server.on("message", on_message)
        server.on("received", on_received)

def on_message(session, stream, ack):
    global STAGE
    STAGE = "message"
    decide(session, ack)

def on_received(session, ack, recipient=None):
    global STAGE
    STAGE = "received"
    decide(session, ack)

if not BY_CALL:
    signals.message.connect(on_message)
    signals.received.connect(on_received)
"""


@pytest.mark.parametrize("by_call", [False, True], ids=["by import", "by call"])
def test_a_message_that_a_plugin_rejects_is_not_stored(serve: Serve, tmp_path: Path, by_call: bool) -> None:
    (tmp_path / "refusing.py").write_text(f"BY_CALL = {by_call}\n{REFUSING}")
    server = serve("--plugin", "refusing:install")
    with server.dial() as peer:
        peer.hello()
        for stage in ("message", "received"):
            assert send(peer, f"{stage}-rejects") == "550 5.7.1 not this one"
            assert send(peer, f"{stage}-raises") == "554 5.7.1 nor this one"
            assert send(peer, f"{stage}-fails").startswith("451 4.3.0")
        wait_until(lambda: no_trace(server))  # files are removed in a thread
        assert send(peer, "message-accepts", "Subject: One").startswith("250 2.0.0 Ok: queued as ")
        assert send(peer, "received-accepts", "Subject: Two") == "250 2.0.0 as the plugin says"
        assert send(peer, "nobody-decides", "Subject: Three").startswith("250 2.0.0 Ok: queued as ")
    assert subjects(server) == [b"One", b"Two", b"Three"]
    assert server.stop() == 0
    assert server.log.count("\nRuntimeError: a bug of the plugin's\n") == 2


READING = """
from greensmtp import signals

def show(session, stream, ack):
    if session.from_.local_part == "slowly":
        ack.accept()
        seen.append(b"".join(stream))
    elif session.from_.local_part == "half":
        ack.accept()
        seen.append(stream.read(9))
    elif session.from_.local_part == "abort":
        ack.accept()
        seen.append(stream.read(9))
        stream.abort(554, "5.6.0 enough")

def install(server):
    server.on("message", show)
"""


@pytest.mark.parametrize("where", ["reading", "reading:install"])
def test_what_a_plugin_reads_is_stored_too(serve: Serve, tmp_path: Path, where: str) -> None:
    by_import = "" if ":" in where else "signals.message.connect(show)\n"
    (tmp_path / "reading.py").write_text(f"seen = []\n{READING}{by_import}")
    server = serve("--plugin", where)
    with server.dial() as peer:
        peer.hello()
        assert send(peer, "abort") == "554 5.6.0 enough"
        wait_until(lambda: no_trace(server))  # files are removed in a thread
        assert send(peer, "slowly", "Subject: All of it\r\n\r\n..").startswith("250 2.0.0 Ok: queued as")
        assert send(peer, "half", "Subject: All of it\r\n\r\n..").startswith("250 2.0.0 Ok: queued as")
    assert [message.endswith(b"\r\nSubject: All of it\r\n\r\n.\r\n") for message in server.mail] == [True, True]


def test_a_plugin_may_reject_some_lmtp_recipients(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "choosy.py").write_text(
        "from greensmtp import Reject, signals\n"
        "@signals.received.connect\n"
        "def choose(session, ack, recipient=None):\n"
        "    if recipient.local_part.startswith('no'):\n"
        "        ack.reject(550, '5.1.1 ' + recipient + ' has moved')\n"
    )
    server = serve("--plugin", "choosy", "--listen", "lmtp://127.0.0.1:0")
    with server.dial() as peer:
        peer.expect("220")
        peer.line("LHLO client.example")
        peer.expect("250")
        for recipients in (("nora", "norman"), ("nora", "bob", "norman", "cyd")):
            peer.line(
                "MAIL FROM:<>", *(f"RCPT TO:<{name}@example.org>" for name in recipients), "DATA", "Subject: x", "."
            )
            peer.expect(*["250"] * (1 + len(recipients)), "354")
            peer.expect(*(f"550 5.1.1 {name}@" if name.startswith("no") else "250 2.0.0" for name in recipients))
    assert len(server.mail) == 1
    assert server.line().startswith(
        "message from=<> to=<bob@example.org>,<cyd@example.org> size=12: 250 2.0.0 Ok: queued"
    )


def test_without_a_maildir_the_plugin_decides_alone(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "sink.py").write_text(
        "def install(server):\n    server.on('message', lambda session, stream, ack: ack.accept())\n"
    )
    server = serve("--no-maildir", "--plugin", "sink:install")
    with server.dial() as peer:
        peer.hello()
        assert send(peer, "ann").startswith("250 2.0.0 Ok: queued as ")
    assert not server.maildir.exists()


def test_the_maildir_ignores_servers_that_a_plugin_creates(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "second.py").write_text(
        "import os\n"
        "from greensmtp import SMTPServer\n"
        "server = SMTPServer(('127.0.0.1', 0), hostname='second.example')\n"
        "server.on('message', lambda session, stream, ack: ack.accept())\n"
        "@server.on('received')\n"
        "def look(session, ack):\n"
        "    ack.accept(message=str(os.listdir('maildir/tmp')))\n"
        "server.start()\n"
        "print('second', server.address[1], flush=True)\n"
    )
    server = serve("--plugin", "second", wait=False)
    word, port = server.line().split(" ")
    assert word == "second"
    server.urls = [f"smtp://127.0.0.1:{port}"]
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA", "Subject: x", ".")
        peer.expect("250", "250", "354", "250 2.0.0 []")
    wait_until(lambda: no_trace(server))  # files are removed in a thread


def send(peer: Peer, sender: str, text: str = "Subject: Tea") -> str:
    """Send a message; return the reply that accepts or rejects it."""
    peer.line("RSET", f"MAIL FROM:<{sender}@example.com>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "250")
    reply = peer.reply()
    if reply.startswith("354"):
        peer.line(text, ".")
        reply = peer.reply()
    return reply


def subjects(server: Any) -> list[bytes]:
    """Return the subjects of the stored messages."""
    return re.findall(b"\r\nSubject: (.*)\r\n", b"".join(server.mail))


def no_trace(server: Any) -> bool:
    """Return True if no message was stored or begun."""
    return not server.mail and not [*(server.maildir / "tmp").iterdir()]


def test_a_failed_optional_plugin_is_one_warning_and_the_server_runs(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text("1 / 0\n")
    server = serve("--plugin", "raising,optional", "--plugin", "not_to_be_found,optional")
    with server.dial() as peer:
        peer.hello()
        assert send(peer, "ann").startswith("250")
    assert server.stop() == 0
    assert re.findall(r"WARNING skipped an optional plugin: '(\w+)'", server.log) == ["raising", "not_to_be_found"]
    assert len(server.log.splitlines()) == 2
