"""What a relay in lock-step with its next hop uses: parameters of a received session, bodies of any size, policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Ack, MessageStream, NotOffered, Pool, Reply, Session, SMTPServer, TLSRefused, connect
from greensmtp.client.message_writer import BodyWriter, ChunkWriter
from greensmtp.testing.fixtures import MakeServer
from tests.client.inbox import Inbox

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
DSN = {"RET": "HDRS", "ENVID": "order+207", "SIZE": "1000", "BODY": "8BITMIME"}


def noting(*offers: str) -> tuple[Callable[[Script], None], list[str]]:
    """Return a script that accepts every command, and the commands."""
    heard: list[str] = []

    def script(script: Script) -> None:
        script.greet(*offers)
        while line := script.hear():
            heard.append(line)
            script.say("250 Ok")

    return script, heard


@pytest.mark.parametrize(
    ("offers", "sent"),
    [
        (("DSN", "SIZE 2000", "8BITMIME"), " RET=HDRS ENVID=order+207 SIZE=1000 BODY=8BITMIME"),
        (("8BITMIME",), " BODY=8BITMIME"),
    ],
)
def test_parameters_of_a_session_are_relayed_where_they_are_offered(
    scripted: Start, offers: tuple[str, ...], sent: str
) -> None:
    script, heard = noting(*offers)
    with scripted(script).connect() as mail:
        mail.ehlo()
        mail.from_(FROM, relayed=DSN)
        mail.to(TO, relayed={"NOTIFY": "NEVER"})
        with mail.pipeline() as batch:
            batch.from_(FROM, relayed=DSN)
            batch.to(TO, relayed="NOTIFY=NEVER")
    notify = " NOTIFY=NEVER" if "DSN" in offers else ""
    assert heard[:4] == [f"MAIL FROM:<{FROM}>{sent}", f"RCPT TO:<{TO}>{notify}"] * 2


@pytest.mark.parametrize(
    ("parameter", "extension"),
    [("BODY=8BITMIME", "8BITMIME"), ("SMTPUTF8", "SMTPUTF8"), ("BODY=BINARYMIME", "BINARYMIME")],
)
def test_a_parameter_that_cannot_be_left_out_is_not_offered(scripted: Start, parameter: str, extension: str) -> None:
    script, heard = noting("PIPELINING")
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(NotOffered) as failed:
            mail.from_(FROM, relayed=parameter)
    assert failed.value.extension == extension
    assert heard == ["QUIT"]


@pytest.mark.parametrize("chunked", [None, True, False])
def test_a_body_is_written_in_pieces(inbox: Inbox, chunked: bool | None) -> None:
    with connect(*inbox.server.address, timeout=10) as mail:
        mail.ehlo()
        mail.from_(FROM)
        mail.to(TO)
        with mail.body(chunked=chunked) as body:
            for _ in range(3):
                assert body.write(b".x\r\n" * 100_000) == 400_000
        assert body.reply is not None
        assert body.reply.code == 250
        assert not mail.expects_message
        assert mail.replies == (body.reply,)
    assert inbox.bodies == [b".x\r\n" * 300_000]
    assert isinstance(body, BodyWriter if chunked is False else ChunkWriter)
    assert ("BDAT" in " ".join(inbox.commands)) == (chunked is not False)


def test_a_body_needs_chunking_if_it_was_asked_for(scripted: Start) -> None:
    script, _ = noting("PIPELINING")
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(NotOffered):
            mail.body(chunked=True)


def test_a_refused_chunk_is_the_reply_and_the_rest_is_dropped(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("CHUNKING", "PIPELINING")
        script.expect("MAIL", "RCPT")
        script.say("250 Ok", "250 Ok")
        script.expect("BDAT 524288")
        script.exactly(524288)
        script.say("552 5.3.4 too much")
        script.expect("RSET")
        script.say("250 Ok")
        script.expect("QUIT")
        script.say("221 bye")

    with scripted(script).connect() as mail:
        mail.ehlo()
        with mail.pipeline() as batch:
            batch.from_(FROM)
            batch.to(TO)
        with mail.body() as body:
            for _ in range(3):
                body.write(b"x" * 524288)
        assert body.reply == Reply(552, "5.3.4 too much")
        assert mail.needs_reset
        mail.reset()


def test_a_body_that_is_given_up_closes_the_connection(inbox: Inbox) -> None:
    mail = connect(*inbox.server.address, timeout=10)
    mail.ehlo()
    mail.from_(FROM)
    mail.to(TO)
    body = mail.body()
    body.write(b"half")
    body.__exit__(LookupError, LookupError(), None)
    assert mail.closed
    assert inbox.bodies == []
    with pytest.raises(ValueError, match="given up"):
        body.finish()


def test_only_one_body_is_written_at_a_time(inbox: Inbox) -> None:
    with connect(*inbox.server.address, timeout=10) as mail:
        mail.ehlo()
        mail.from_(FROM)
        mail.to(TO)
        with mail.body() as body:
            body.write(b"x\r\n")
            with pytest.raises(Exception, match="being written already"):
                mail.body()
            with pytest.raises(TypeError, match="expected bytes"):
                body.write("x")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ended"):
            body.write(b"more")


def test_a_refused_data_is_the_reply_of_the_body(inbox: Inbox) -> None:
    with connect(*inbox.server.address, timeout=10) as mail:
        mail.ehlo()
        mail.from_("refuse@example.com")
        mail.to(TO)
        with mail.body(chunked=False) as body:
            body.write(b"x\r\n")
        assert body.reply is not None
        assert body.reply.code == 554


def test_lmtp_replies_are_per_recipient(smtp_server: MakeServer) -> None:
    server = smtp_server(lmtp=True)

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()

    @server.on("received")
    def choose(session: Session, ack: Ack, recipient: Any = None) -> None:
        if recipient == TO:
            ack.reject(452, "4.2.2 full")
        else:
            ack.accept()

    with connect(*server.address, lmtp=True, timeout=10) as mail:
        mail.lhlo()
        mail.from_(FROM)
        mail.to(TO)
        mail.to("c@example.com")
        with mail.body() as body:
            body.write(b"x\r\n")
        assert [reply.code for reply in mail.replies] == [452, 250]


# STARTTLS without verification


def test_encrypt_takes_any_certificate_but_no_plaintext(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)
    server.on("message", lambda session, stream, ack: ack.accept())
    with connect(*server.address, starttls="encrypt", timeout=10) as mail:
        assert mail.send(b"x", FROM, TO).reply.code == 250
        assert mail.tls
        assert not mail.tls_verified


def test_encrypt_refuses_a_server_without_tls(server: SMTPServer) -> None:
    with (
        connect(*server.address, starttls="encrypt", timeout=10) as mail,
        pytest.raises(TLSRefused, match="encrypt"),
    ):
        mail.send(b"x", FROM, TO)


def test_encrypt_takes_no_credentials() -> None:
    with pytest.raises(ValueError, match="verifies no server"):
        Pool("mx.example.com", starttls="encrypt", username="jo", password="x")
    with pytest.raises(ValueError, match="pass one of them"):
        connect("mx.example.com", starttls="encrypt", tls=True)
