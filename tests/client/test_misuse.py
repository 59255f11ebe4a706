"""Wrong arguments, calls at the wrong time, and interruptions: the connection stays in step, or is closed."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, socket, spawn
from gevent.event import Event

from greensmtp import (
    Disconnected,
    PeerProtocolError,
    Pool,
    ProtocolError,
    RecipientsRefused,
    SenderRefused,
    SMTPServer,
    connect,
)
from greensmtp.client.message_content import MAX_MEMORY

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


# Arguments


@pytest.mark.parametrize(
    ("where", "options", "error", "text"),
    [
        (("127.0.0.1", "25"), {}, TypeError, "expected a port as an int; got '25'"),
        (("/tmp/" + "x" * 200,), {}, ValueError, "1 to 107 bytes"),
        (("./a\0b",), {}, ValueError, "without NUL"),
        ((), {"path": ""}, ValueError, "1 to 107 bytes"),
        ((), {"source_address": "127.0.0.1"}, TypeError, r"expected \(host, port\)"),
        ((), {"source_address": ("127.0.0.1",)}, TypeError, r"expected \(host, port\)"),
        ((), {"source_address": ("127.0.0.1", "0")}, TypeError, r"expected \(host, port\)"),
        ((), {"local_hostname": "☃ snow"}, ProtocolError, "as local_hostname; got '☃ snow'"),
    ],
)
def test_a_wrong_argument_of_connect(where: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        connect(*where, **options)
    if not where and "path" not in options:
        with pytest.raises(error, match=text):
            Pool("127.0.0.1", 1, **options)


def test_a_path_may_be_a_path_object(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    server = SMTPServer(str(path), hostname="mx.example.com")
    server.on("message", lambda session, stream, ack: ack.accept())
    server.start()
    try:
        for mail in (connect(path), connect(path=path)):
            with mail:
                assert mail.noop().code == 250
        for host in (path, [path]):
            with Pool(host) as pool:
                assert pool.send(b"x", FROM, TO).reply.code == 250
    finally:
        server.stop()


@pytest.mark.parametrize("call", ["ehlo", "helo", "option"])
def test_a_name_beyond_ascii_is_sent_in_a_labels(scripted: Start, call: str) -> None:
    def script(script: Script) -> None:
        script.say("220 mx")
        assert script.hear().endswith(" xn--bcher-kva.example")
        script.say("250 mx")
        script.rest()

    with scripted(script).connect(local_hostname="bücher.example" if call == "option" else None) as mail:
        getattr(mail, "ehlo" if call == "option" else call)(*() if call == "option" else ("bücher.example",))


@pytest.mark.parametrize("name", ["a..ü", "\u2028ü", "ü x"])
def test_a_name_without_a_labels_is_an_error(scripted: Start, name: str) -> None:
    with scripted(lambda script: script.say("220 mx")).connect() as mail, pytest.raises(ProtocolError):
        mail.ehlo(name)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", ProtocolError),
        (" \t", ProtocolError),
        (None, TypeError),
        (b"NOOP", TypeError),
        ("NOOP\r\nQUIT", ProtocolError),
        (" data", ProtocolError),
    ],
)
def test_command_sends_nothing_for_a_line_that_is_no_command(scripted: Start, line: Any, error: Any) -> None:
    def script(script: Script) -> None:
        script.say("220 mx")
        assert script.hear() == "QUIT"
        script.say("221 bye")

    with scripted(script).connect() as mail, pytest.raises(error):
        mail.command(line)


@pytest.mark.parametrize(("credentials"), [(None, "secret"), (b"jo", "secret"), ("jo", b"secret")])
def test_credentials_must_be_text(scripted: Start, credentials: Any) -> None:
    mail = scripted(lambda script: script.say("220 mx")).connect(starttls="never")
    with pytest.raises(TypeError, match="expected a str as"):
        mail.login(*credentials, allow_plaintext=True)


def test_a_pipeline_is_sent_once(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("RSET")
        script.say("250 ok")
        assert script.hear() == "QUIT"
        script.say("221 bye")

    with scripted(script).connect() as mail:
        mail.ehlo()
        with mail.pipeline() as batch:
            batch.reset()
        with pytest.raises(ProtocolError, match="has ended"):
            batch.reset()
        with pytest.raises(ProtocolError, match="has ended"), batch:
            pass


def test_a_wrong_envelope_closes_the_copy_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Any] = []
    make = tempfile.TemporaryFile

    def temporary() -> Any:
        copies.append(make())
        return copies[-1]

    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    with Pool("127.0.0.1", 1) as pool, pytest.raises(ProtocolError):
        pool.send(Unseekable(b"A: b\r\n\r\n" + b"x\r\n" * (MAX_MEMORY // 3 + 10)), FROM, "a\r\nb@example.com")
    assert [copy.closed for copy in copies] == [True]


# Replies


def test_a_disconnect_in_a_later_group_is_no_refusal_of_the_sender(scripted: Start) -> None:
    """With more recipients than one write has, the server refuses one in the second write, and hangs up."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", *["RCPT"] * 99)
        script.say("250 MAIL", *["250 RCPT"] * 99)
        script.expect("RCPT")
        script.say("550 no such user")

    with scripted(script).connect() as mail, pytest.raises(Disconnected) as caught:
        mail.send(b"x", FROM, [f"{number}@example.com" for number in range(150)])
    assert [reply.code for reply in caught.value.replies] == [250] * 100 + [550]
    assert caught.value.safe_to_retry


@pytest.mark.parametrize("late", [Timeout, Timeout(0.03, TimeoutError("mine"))])
def test_a_timeout_while_an_unsolicited_refusal_is_examined_closes_the_connection(scripted: Start, late: Any) -> None:
    gone = Event()

    def script(script: Script) -> None:
        script.greet()
        script.say("451 4.4.2 and no more")
        gone.wait(5)

    mail = scripted(script).connect()
    mail.ehlo()
    socket.wait_read(mail.socket.fileno(), 5)
    timeout = Timeout(0.03) if late is Timeout else late
    with pytest.raises((Timeout, TimeoutError)), timeout:
        mail.noop()
    assert mail.closed
    gone.set()


def test_a_second_greenlet_is_refused_while_an_unsolicited_refusal_is_examined(scripted: Start) -> None:
    gone = Event()

    def script(script: Script) -> None:
        script.greet()
        script.say("451 4.4.2 and no more")
        gone.wait(5)

    mail = scripted(script).connect()
    mail.ehlo()
    socket.wait_read(mail.socket.fileno(), 5)
    outcomes: list[Exception] = []

    def noop() -> None:
        try:
            mail.noop()
        except Exception as error:
            outcomes.append(error)

    first, second = spawn(noop), spawn(noop)
    second.join()
    assert isinstance(outcomes[0], RuntimeError)
    first.join()
    assert isinstance(outcomes[1], PeerProtocolError)
    gone.set()


def test_no_empty_message_goes_to_a_recipient_whose_sender_was_refused(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("550 no", "250 ok", "354 go")
        rest.append(script.rest())
        over.set()

    rest: list[bytes] = []
    over = Event()
    mail = scripted(script).connect()
    with pytest.raises(SenderRefused):
        mail.send(b"x", FROM, TO)
    assert mail.closed
    assert over.wait(5)
    assert rest == [b""]


# The trace


@pytest.mark.parametrize("at", ["> DATA", "< 354"])
def test_an_error_of_the_trace_closes_the_connection(scripted: Start, at: str) -> None:
    """The reply was read but not acted on: the next command would become text of the message."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT")
        script.say("250 ok", "250 ok")
        if script.hear() == "DATA":
            script.say("354 go")
            assert script.rest() == b""

    def show(line: str) -> None:
        if line.startswith(at):
            raise BrokenPipeError

    mail = scripted(script).connect()
    mail.ehlo()
    mail.trace(show)
    with mail.pipeline() as batch:
        batch.from_(FROM)
        batch.to(TO)
    with pytest.raises(BrokenPipeError):
        mail.data()
    assert mail.closed


def test_the_trace_goes_on_after_a_reconnect_without_tls(scripted: Start) -> None:
    def broken(script: Script) -> None:
        script.greet("STARTTLS")
        script.expect("STARTTLS")
        script.say("220 go")
        script.socket.recv(1)
        script.say("not a handshake")

    def plain(script: Script) -> None:
        script.greet()
        script.rest()

    shown: list[str] = []
    with scripted(broken, plain).connect(starttls="opportunistic") as mail:
        mail.trace(shown.append)
        mail.begin()
    assert [line.split()[1] for line in shown if line[0] == ">"] == ["EHLO", "STARTTLS", "EHLO", "QUIT"]


# Several greenlets


@pytest.mark.parametrize("offers", [(), ("PIPELINING",)])
def test_no_other_greenlet_can_send_into_a_message(scripted: Start, offers: tuple[str, ...]) -> None:
    def script(script: Script) -> None:
        script.greet(*offers)
        if offers:
            script.expect("MAIL", "RCPT", "DATA")
            script.say("250 ok", "250 ok", "354 go")
        else:
            for verb, reply in (("MAIL", "250 ok"), ("RCPT", "250 ok"), ("DATA", "354 go")):
                script.expect(verb)
                script.say(reply)
        assert b"NOOP" not in script.body()
        script.say("250 ok")
        script.rest()

    reading, go_on = Event(), Event()

    class Slow(io.BytesIO):
        passes = 0

        def seek(self, *args: int) -> int:
            self.passes += 1
            return super().seek(*args)

        def read(self, size: int | None = -1, /) -> bytes:
            if self.passes > 1:  # the first pass analyses the message
                reading.set()
                go_on.wait()
            return super().read(size)

    with scripted(script).connect() as mail:
        mail.begin()
        sending = spawn(mail.send, Slow(b"A: b\r\n\r\n" + b"x\r\n" * (MAX_MEMORY // 3 + 10)), FROM, TO)
        assert reading.wait(10)
        with pytest.raises(ProtocolError, match="expects a message"):
            mail.noop()
        go_on.set()
        assert sending.get(timeout=20).reply.code == 250


# The pool


def test_a_pool_keeps_no_transaction_open(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet()
        script.expect("MAIL")
        script.say("250 ok")
        script.expect("RCPT")
        script.say("550 no")
        script.expect("RSET")
        script.say("250 ok")
        assert script.hear() == "QUIT"
        script.say("221 bye")

    server = scripted(script)
    with Pool("127.0.0.1", server.port, timeout=5) as pool:
        with pytest.raises(RecipientsRefused):
            pool.send(b"x", FROM, TO)
        assert pool.idle == 1


def test_a_pool_forgets_a_connection_whose_check_was_interrupted(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet()
        script.expect("RSET")
        script.rest()

    server = scripted(script)
    with Pool("127.0.0.1", server.port, timeout=5) as pool:
        with pool.connection():
            pass
        with pytest.raises(Timeout), Timeout(0.05), pool.connection():
            pass
        assert (pool.busy, pool.idle) == (0, 0)
        assert pool._local.connections._busy == set()


@pytest.mark.parametrize("options", [{"size": "3"}, {"size": None}, {"max_age": None}, {"acquire_timeout": "1"}])
def test_the_numbers_of_a_pool_are_checked_when_it_is_made(options: Any) -> None:
    with pytest.raises(ValueError, match="expected a number above 0 as"):
        Pool("127.0.0.1", **options)
