"""The client, command by command, against greensmtp's own server."""

from __future__ import annotations

import io
import socket as stdlib_socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import sleep as switch
from gevent import socket, spawn
from gevent.event import Event

from greensmtp import (
    Ack,
    Address,
    CannotConnect,
    Disconnected,
    MessageStream,
    ProtocolError,
    Reply,
    Session,
    SMTPClient,
    SMTPServer,
    Timeouts,
    client_signals,
    connect,
)
from greensmtp.testing.fixtures import MakeServer

Mail = tuple[Any, list[Any], bytes]


@pytest.fixture
def mails() -> list[Mail]:
    """The bodies that the server has accepted."""
    return []


@pytest.fixture
def server(smtp_server: MakeServer, mails: list[Mail]) -> SMTPServer:
    """A server that accepts every recipient except ``no@...``."""
    return taking(smtp_server(), mails)


def taking(server: SMTPServer, mails: list[Mail]) -> SMTPServer:
    @server.on("to")
    def choose(session: Session, address: Address, ack: Ack) -> None:
        if address.local_part == "no":
            ack.reject(550, "5.1.1 no such user")
        else:
            ack.accept()

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        mails.append((session.from_, list(session.to), stream.read()))

    return server


@pytest.fixture
def mail(server: SMTPServer) -> Iterator[SMTPClient]:
    with connect(*server.address, timeout=10) as mail:
        yield mail


def open_message(mail: SMTPClient) -> None:
    mail.ehlo("client.example")
    assert mail.from_("a@example.com").code == 250
    assert mail.to("b@example.com").code == 250
    assert mail.data().code == 354


def test_a_transaction_command_by_command(mail: SMTPClient, mails: list[Mail], tmp_path: Path) -> None:
    issue = tmp_path / "issue"
    issue.write_bytes(b"Debian\n.\nno more")
    assert mail.greeting is not None
    assert mail.greeting.code == 220
    assert mail.ehlo("example.com").code == 250
    assert mail.from_("substack@example.com") == Reply(250, "2.1.0 Ok")
    assert mail.to("root@example.com").enhanced == "2.1.5"
    assert mail.data().code == 354
    with issue.open("rb") as source:
        reply = mail.message(source)
    assert str(reply).startswith("250 2.0.0 Ok: queued as ")
    assert mail.quit().code == 221
    assert mail.closed
    assert mails == [("substack@example.com", ["root@example.com"], b"Debian\r\n.\r\nno more\r\n")]


def test_refusals_are_replies(mail: SMTPClient) -> None:
    assert mail.from_("a@example.com").code == 503
    mail.helo("client.example")
    assert mail.extensions == {}
    mail.from_("a@example.com")
    refused = mail.to("no@example.com")
    assert refused == Reply(550, "5.1.1 no such user")
    assert refused.is_permanent_failure
    assert mail.data().code == 503
    assert mail.command("TURN").code == 502


def test_ehlo_sets_the_extensions(mail: SMTPClient) -> None:
    reply = mail.ehlo()
    assert reply.lines[0].startswith("mx.example.com")
    assert mail.extensions["PIPELINING"] == ""
    assert int(mail.extensions["SIZE"]) > 1000
    assert mail.hello == reply


def test_vrfy_noop_help_and_other_commands(mail: SMTPClient) -> None:
    mail.ehlo("client.example")
    assert mail.noop().code == 250
    assert mail.help().code // 100 in (2, 5)
    assert mail.vrfy("jo@example.com").code == 252
    mail.from_("a@example.com", {"SIZE": 10, "BODY": "8BITMIME"})
    assert mail.needs_reset
    assert mail.reset().code == 250
    assert not mail.needs_reset
    assert mail.to("b@example.com").code == 503
    mail.from_("", "SIZE=10")
    assert mail.to("b@example.com").code == 250


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"", b""),
        (b"one\r\n", b"one\r\n"),
        (b"one", b"one\r\n"),
        (b"one\ntwo\n", b"one\r\ntwo\r\n"),
        (b"one\rtwo\r", b"one\r\ntwo\r\n"),
        (b".\r\n..\r\n.x\r\n", b".\r\n..\r\n.x\r\n"),
        (b"a\n.\nMAIL FROM:<x@y.z>\n", b"a\r\n.\r\nMAIL FROM:<x@y.z>\r\n"),
        (b"a\r.\rMAIL", b"a\r\n.\r\nMAIL\r\n"),
        (b"\xff\xfe\r\n", b"\xff\xfe\r\n"),
        (bytearray(b"x\r\n"), b"x\r\n"),
        (memoryview(b"x\r\n"), b"x\r\n"),
        ([b"on", b"e\r", b"\n.tw", b"o"], b"one\r\n.two\r\n"),
        (io.BytesIO(b".x\n"), b".x\r\n"),
        (b"y" * 70 + b"\r\n", b"y" * 70 + b"\r\n"),
        ([b"z" * 99 + b"\n"] * 5000, (b"z" * 99 + b"\r\n") * 5000),
    ],
)
def test_every_kind_of_message(mail: SMTPClient, mails: list[Mail], source: Any, expected: bytes) -> None:
    open_message(mail)
    assert mail.message(source).code == 250
    assert mails[0][2] == expected
    assert mail.noop().code == 250


def test_a_message_at_every_cut(mail: SMTPClient, mails: list[Mail]) -> None:
    body = b"a\r\n.\n..\r.b\r\r\n\n"
    for cut in range(len(body) + 1):
        open_message(mail)
        assert mail.message([body[:cut], body[cut:]]).code == 250
    assert {octets for _, _, octets in mails} == {b"a\r\n.\r\n..\r\n.b\r\n\r\n\r\n"}


def test_message_without_a_source_is_a_writer(mail: SMTPClient, mails: list[Mail]) -> None:
    open_message(mail)
    with mail.message() as body:
        assert body.write(b"one\n") == 4
        body.write(b".two")
    assert str(body.reply).startswith("250 2.0.0 Ok: queued as ")
    assert mails[0][2] == b"one\r\n.two\r\n"


def test_an_error_in_the_writers_block_closes_the_connection(mail: SMTPClient, mails: list[Mail]) -> None:
    client_side = RuntimeError("no more")

    def source() -> Iterator[bytes]:
        yield b"half"
        raise client_side

    open_message(mail)
    with pytest.raises(RuntimeError, match="no more"):
        mail.message(source())
    assert mail.closed
    assert [octets for _, _, octets in mails] == []
    with pytest.raises(Disconnected):
        mail.noop()


def test_message_without_354_sends_nothing(mail: SMTPClient, mails: list[Mail]) -> None:
    mail.ehlo("client.example")
    with pytest.raises(ProtocolError, match="data"):
        mail.message(b"x")
    refusal = mail.data()
    assert refusal.code == 503
    assert mail.message(b"x") == refusal
    with mail.message() as body:
        body.write(b"x")
    assert body.reply == refusal
    assert mail.noop().code == 250
    assert mails == []


def test_no_command_is_sent_while_the_server_expects_a_message(mail: SMTPClient, mails: list[Mail]) -> None:
    open_message(mail)
    calls: list[Callable[[], Any]] = [mail.noop, mail.quit, mail.reset, mail.data, mail.ehlo, mail.starttls]
    for call in calls[:1] + calls[2:]:
        with pytest.raises(ProtocolError, match="expects a message"):
            call()
    assert mail.message(b"x").code == 250


def test_a_str_message_is_a_type_error(mail: SMTPClient) -> None:
    open_message(mail)
    with pytest.raises(TypeError, match="bytes"):
        mail.message("text")  # type: ignore[arg-type]


def test_chunks(mail: SMTPClient, mails: list[Mail]) -> None:
    mail.ehlo("client.example")
    mail.from_("a@example.com", "BODY=BINARYMIME")
    mail.to("b@example.com")
    assert mail.bdat(b"\0one\n").code == 250
    assert mail.bdat(b"two", last=True).code == 250
    assert mails[0][2] == b"\0one\ntwo"


# Pipelining


def test_a_group_of_commands(mail: SMTPClient, mails: list[Mail]) -> None:
    mail.ehlo("client.example")
    with mail.pipeline() as batch:
        batch.from_("a@example.com")
        recipient = batch.to("no@example.com")
        batch.to("b@example.com")
        batch.data()
    assert [reply.code for reply in batch] == [250, 550, 250, 354]
    assert batch[recipient].enhanced == "5.1.1"
    assert len(batch) == 4
    mail.message(b"x")
    assert mails[0][1] == ["b@example.com"]


def test_thousands_of_pipelined_commands(mail: SMTPClient) -> None:
    mail.ehlo("client.example")
    with mail.pipeline() as batch:
        batch.from_("a@example.com")
        for number in range(2000):
            batch.to(f"b{number}@example.com")
        batch.reset()
    assert [reply.code for reply in batch.replies].count(250) == 1002
    assert [reply.code for reply in batch.replies].count(452) == 1000
    assert mail.noop().code == 250


def test_no_command_follows_data_in_a_pipeline(mail: SMTPClient) -> None:
    mail.ehlo("client.example")
    batch = mail.pipeline()
    batch.data()
    with pytest.raises(ProtocolError, match="last"):
        batch.reset()
    assert mail.noop().code == 250


def test_an_error_in_the_block_sends_nothing(mail: SMTPClient) -> None:
    mail.ehlo("client.example")

    def half_a_batch() -> None:
        with mail.pipeline() as batch:
            batch.from_("a@example.com")
            batch.to("b\r\n@example.com")

    with pytest.raises(ProtocolError):
        half_a_batch()
    assert mail.to("b@example.com").code == 503


# Where to


@pytest.mark.parametrize("shape", ["host port", "port host", "mapping", "tuple", "keywords", "host mapping"])
def test_arguments_in_any_order(server: SMTPServer, shape: str) -> None:
    address: Any = server.address
    host, port = address
    where: tuple[Any, ...] = {
        "host port": (host, port),
        "port host": (port, host),
        "mapping": ({"host": host, "port": port},),
        "tuple": ((host, port),),
        "host mapping": (host, {"port": port}, Timeouts(command=5)),
        "keywords": (),
    }[shape]
    options: dict[str, Any] = {"host": host, "port": port} if not where else {}
    with connect(*where, **options) as mail:
        assert mail.noop().code == 250


def test_a_unix_path(smtp_server: MakeServer, tmp_path: Path) -> None:
    path = str(tmp_path / "smtp.sock")
    smtp_server(listener=path)
    with connect(path) as mail:
        assert mail.ehlo().code == 250


def test_stream_takes_a_gevent_socket(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    ours, theirs = socket.socketpair()
    server.adopt(theirs, "")
    with connect(stream=ours) as mail:
        assert mail.ehlo("client.example").code == 250


def test_stream_takes_over_a_standard_library_socket(server: SMTPServer) -> None:
    address: Any = server.address
    ours = stdlib_socket.create_connection(address)
    with connect(ours) as mail:
        assert mail.ehlo("client.example").code == 250
    assert ours.fileno() == -1  # taken over


@pytest.mark.parametrize(
    ("where", "options", "text"),
    [
        (("a", "b"), {}, "one value for host"),
        ((1, 2), {}, "one value for port"),
        ((2.5,), {}, "expected a host name"),
        ((None,), {}, "expected a host name"),
        (({"hots": "x"},), {}, "an option of connect .*got 'hots'"),
        (("a", "/b"), {}, "got host and path"),
    ],
)
def test_contradictory_arguments_of_connect_are_a_type_error(
    where: tuple[Any, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        connect(*where, **options)


def test_no_server_is_cannot_connect(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CannotConnect, match=f"127.0.0.1:{port}") as caught:
        connect("127.0.0.1", port)
    assert caught.value.transient
    assert caught.value.safe_to_retry
    with pytest.raises(CannotConnect, match=r"smtp\.sock"):
        connect(str(tmp_path / "smtp.sock"))
    with pytest.raises(CannotConnect):
        connect("host\u00e4.invalid.", 25, timeout=10)


def test_a_source_address_and_a_name(server: SMTPServer) -> None:
    seen: list[Any] = []

    @server.on("greeting")
    def see(session: Session, greeting: Any, ack: Ack) -> None:
        seen.append((session.peer, greeting.hostname))
        ack.accept()

    with connect(*server.address, source_address=("127.0.0.2", 0), local_hostname="spike.example") as mail:
        mail.ehlo()
    assert seen[0][0][0] == "127.0.0.2"
    assert seen[0][1] == "spike.example"


@pytest.mark.parametrize("port", [-1, 65536, "25", True])
def test_a_port_out_of_range_is_a_value_error(port: Any) -> None:
    with pytest.raises(ValueError, match="1 to 65535"):
        connect(host="127.0.0.1", port=port)


def test_an_error_after_close_tells_what_closed_the_connection(mail: SMTPClient) -> None:
    mail.close()
    with pytest.raises(Disconnected) as caught:
        mail.noop()
    assert caught.value.__notes__ == ["This connection was closed before, by close()"]


def test_timeouts_of_the_socket_and_the_process_are_ignored(server: SMTPServer) -> None:
    @server.on("greeting")
    def dawdle(session: Session, greeting: Any, ack: Ack) -> None:
        switch(0.1)
        ack.accept()

    stdlib_socket.setdefaulttimeout(0.01)
    try:
        with connect(*server.address, timeout=20) as mail:
            assert mail.ehlo().code == 250
    finally:
        stdlib_socket.setdefaulttimeout(None)
    address: Any = server.address
    ours = socket.create_connection(address)
    ours.settimeout(0.01)
    with connect(ours, timeout=20) as mail:
        assert mail.ehlo().code == 250


@pytest.mark.parametrize("timeout", [0, -1, "x", Timeouts])
def test_timeouts_must_be_above_0(timeout: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        connect("127.0.0.1", 1, timeout=timeout)


def test_the_default_timeouts_are_those_of_rfc_5321() -> None:
    usual = Timeouts()
    assert (usual.banner, usual.command, usual.data_start, usual.data, usual.final) == (300, 300, 120, 180, 600)


# Signals


def test_greeting_is_replayed_to_late_listeners(server: SMTPServer) -> None:
    early: list[Any] = []

    def hear(client: SMTPClient, reply: Reply) -> None:
        early.append((client, reply))

    client_signals.greeting.connect(hear)
    try:
        with connect(*server.address) as mail:
            late: list[Any] = []
            mail.on("greeting", lambda client, reply: late.append((client, reply)))
    finally:
        client_signals.greeting.disconnect(hear)
    assert early == late == [(mail, mail.greeting)]
    with pytest.raises(ValueError, match="expected a signal"):
        mail.on("greetings")  # type: ignore[call-overload]


# Safety


@pytest.mark.parametrize("evil", ["x\r\nQUIT", "x\n", "x\r", "x\0", "x\x7f"])
def test_no_argument_can_end_a_command(mail: SMTPClient, evil: str) -> None:
    mail.ehlo("client.example")
    calls: list[Callable[[str], Any]] = [
        mail.helo,
        mail.ehlo,
        mail.lhlo,
        mail.from_,
        mail.to,
        mail.vrfy,
        mail.help,
        mail.command,
        lambda text: mail.from_("a@example.com", text),
        lambda text: mail.to("a@example.com", {"NOTIFY": text}),
        lambda text: mail.send(b"x", text, "a@example.com"),
        lambda text: mail.send(b"x", "a@example.com", [text]),
        lambda text: mail.send(b"x", "a@example.com", ["b@example.com"], from_ext=text),
        lambda text: connect("127.0.0.1", 1, local_hostname=text),
        lambda text: connect(text, 1),
        lambda text: connect("127.0.0.1", 1, server_hostname=text),
        lambda text: mail.starttls(server_hostname=text),
    ]
    if evil != "x\x7f":
        calls.append(lambda text: mail.login(text, "secret", allow_plaintext=True))
        calls.append(lambda text: mail.login("jo", text, allow_plaintext=True))
        calls.append(lambda text: mail.login("jo", token=text, allow_plaintext=True))
    for call in calls:
        with pytest.raises(ProtocolError):
            call(evil)
    assert mail.noop() == Reply(250, "2.0.0 Ok")


def test_command_refuses_verbs_with_a_method_of_their_own(mail: SMTPClient) -> None:
    with pytest.raises(ProtocolError, match="has its own method"):
        mail.command("data")


def waiting_for_noop(scripted: Any) -> tuple[SMTPClient, Any]:
    """A client, and a greenlet that waits for the reply to NOOP, which never comes."""
    heard = Event()

    def script(script: Any) -> None:
        script.say("220 hi")
        script.hear()
        heard.set()
        script.rest()

    server = scripted(script)
    mail = server.connect(timeout=30)
    waiting = spawn(mail.noop)
    assert heard.wait(20)
    return mail, waiting


def test_closing_from_elsewhere_ends_the_wait(scripted: Any) -> None:
    mail, waiting = waiting_for_noop(scripted)
    mail.close()
    with pytest.raises(Disconnected, match="shutdown"):
        waiting.get(timeout=20)


def test_two_greenlets_cannot_share_a_wait(scripted: Any) -> None:
    mail, waiting = waiting_for_noop(scripted)
    with pytest.raises(RuntimeError, match="another greenlet"):
        mail.noop()
    assert not waiting.ready()
    mail.close()
    waiting.join(20)
