"""``send``: envelopes from headers, the server's extensions, LMTP, and errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import HelloRefused, NotOffered, ProtocolError, RecipientsRefused
from greensmtp.client.message import CHUNKING_PAYS
from greensmtp.client.message_content import MAX_MEMORY
from tests.client.inbox import Inbox, composed

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


# Envelopes


def test_the_envelope_is_derived_from_the_headers(inbox: Inbox) -> None:
    message = composed(From="Jo <jo@example.com>", To='"A, B" <ab@example.com>, c@example.com', Cc="d@example.com")
    message["Bcc"] = "secret@example.com, c@example.com"
    sent = inbox.send(message)
    assert inbox.senders == ["jo@example.com"]
    assert inbox.recipients == [["ab@example.com", "c@example.com", "d@example.com", "secret@example.com"]]
    assert b"secret" not in inbox.bodies[0]
    assert b"\r\n\r\nhi\r\n" in inbox.bodies[0]
    assert sent.accepted == ("ab@example.com", "c@example.com", "d@example.com", "secret@example.com")
    assert sent.refused == {}
    assert sent.reply.code == 250
    assert message["Bcc"] == "secret@example.com, c@example.com"  # it is the caller's


def test_sender_takes_precedence_over_from(inbox: Inbox) -> None:
    inbox.send(composed(From="a@example.com, b@example.com", Sender="office@example.com", To=TO))
    assert inbox.senders == ["office@example.com"]


def test_resent_fields_take_precedence(inbox: Inbox) -> None:
    message = composed(From="a@example.com", To="b@example.com")
    message["Resent-Date"] = "Mon, 1 Jan 2024 00:00:00 +0000"
    message["Resent-From"] = "c@example.com"
    message["Resent-To"] = "d@example.com"
    inbox.send(message)
    assert (inbox.senders, inbox.recipients) == (["c@example.com"], [["d@example.com"]])
    message["Resent-Date"] = "Tue, 2 Jan 2024 00:00:00 +0000"
    with pytest.raises(ProtocolError, match="resent"):
        inbox.send(message)


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
@pytest.mark.parametrize("kind", [bytes, io.BytesIO])
def test_bytes_and_files(inbox: Inbox, newline: bytes, kind: Any) -> None:
    lines = [
        b"From: jo@example.com",
        b"bcc: Secret",
        b" <secret@example.com>",
        b"To: to@example.com",
        b"X-Bcc: stays",
        b"",
        b"Bcc: is text here",
        b".",
    ]
    inbox.send(kind(newline.join(lines)))
    assert inbox.recipients == [["to@example.com", "secret@example.com"]]
    assert inbox.bodies == [b"\r\n".join(lines[:1] + lines[3:]) + b"\r\n"]


@pytest.mark.parametrize("newline", [b"\r", b"\r\n", b"\n"])
@pytest.mark.parametrize("first", [False, True])
def test_bcc_is_not_shown_however_lines_end(inbox: Inbox, newline: bytes, first: bool) -> None:
    lines = [
        b"From: jo@example.com",
        b"X: 1",
        b"Bcc: secret@example.com,",
        b"\tmore.secrets@example.com",
        b"To: a@b.example",
    ]
    if first:
        lines = lines[2:4] + lines[:2] + lines[4:]
    inbox.send(newline.join([*lines, b"", b"hi", b""]))
    assert inbox.recipients == [["a@b.example", "secret@example.com", "more.secrets@example.com"]]
    assert inbox.bodies == [b"From: jo@example.com\r\nX: 1\r\nTo: a@b.example\r\n\r\nhi\r\n"]


def test_bytes_with_recipients_are_sent_unchanged(inbox: Inbox) -> None:
    inbox.send(b"Bcc: x@example.com\r\n\r\nhi\r\n", FROM, TO)
    assert inbox.bodies == [b"Bcc: x@example.com\r\n\r\nhi\r\n"]


def test_the_null_sender(inbox: Inbox) -> None:
    inbox.send(composed(From="a@example.com", To=TO), sender="")
    assert inbox.senders == [""]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (composed(To=TO), "From"),
        (composed(From=FROM), "recipients="),
        (b"no header at all", "From"),
    ],
)
def test_a_missing_sender_or_recipient_is_an_error(inbox: Inbox, message: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        inbox.send(message)


def test_a_message_of_an_unknown_type_is_a_type_error(inbox: Inbox) -> None:
    for wrong in ("text", 5, io.StringIO("text")):
        with pytest.raises(TypeError):
            inbox.send(wrong, FROM, TO)
    with pytest.raises(ValueError, match="at least one recipient"):
        inbox.send(b"x", FROM, [])


# Files


def test_a_large_file_is_not_kept_in_memory(inbox: Inbox, tmp_path: Path) -> None:
    inbox.server.bare_newlines = "keep"  # type: ignore[attr-defined]
    line = b"x" * 99 + b"\n"
    path = tmp_path / "large"
    head = b"From: a@example.com\nTo: b@example.com\nBcc: c@example.com\n\n"
    path.write_bytes(head + line * (MAX_MEMORY // 100 + 1000))
    with path.open("rb") as source:
        inbox.send(source)
    expected = b"From: a@example.com\r\nTo: b@example.com\r\n\r\n" + (line[:-1] + b"\r\n") * (MAX_MEMORY // 100 + 1000)
    assert inbox.bodies[0] == expected
    assert inbox.recipients == [["b@example.com", "c@example.com"]]
    assert f"SIZE={len(expected)}" in next(command for command in inbox.commands if command.startswith("MAIL"))


class Pipe:
    """A file that cannot seek."""

    def __init__(self, octets: bytes) -> None:
        self._file = io.BytesIO(octets)

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)


def test_a_large_file_that_cannot_seek_is_sent(inbox: Inbox) -> None:
    octets = b"From: a@example.com\r\nTo: b@example.com\r\n\r\n" + (b"y" * 98 + b"\r\n") * (MAX_MEMORY // 100 + 1000)
    inbox.send(Pipe(octets))
    assert inbox.bodies == [octets]


def test_a_file_is_read_from_its_current_position(inbox: Inbox, tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(b"From - skipped\nFrom: a@example.com\n\nhi\n")
    with path.open("rb") as source:
        source.readline()
        inbox.send(source, None, TO)
    assert inbox.bodies == [b"From: a@example.com\r\n\r\nhi\r\n"]


# Extensions


def mail_line(inbox: Inbox) -> str:
    return next(command for command in inbox.commands if command.startswith("MAIL"))


def test_the_size_is_announced(inbox: Inbox) -> None:
    inbox.send(b"x\n.\n", FROM, TO)
    assert mail_line(inbox) == f"MAIL FROM:<{FROM}> SIZE=6"


def test_eight_bit_is_announced(inbox: Inbox) -> None:
    inbox.send("Subject: x\r\n\r\ngr\u00fc\u00dfe\r\n".encode(), FROM, TO)
    assert "BODY=8BITMIME" in mail_line(inbox)
    assert "SMTPUTF8" not in mail_line(inbox)


def test_utf8_in_the_header_section(inbox: Inbox) -> None:
    inbox.send("Subject: gr\u00fc\u00dfe\r\n\r\nx\r\n".encode(), FROM, TO)
    assert "SMTPUTF8" in mail_line(inbox)


def test_utf8_addresses(inbox: Inbox) -> None:
    inbox.send(composed(From="j\u00f6@example.com", To="Gr\u00e4fin <gr\u00e4fin@b\u00fccher.example>"))
    assert inbox.senders == ["j\u00f6@example.com"]
    assert "SMTPUTF8" in mail_line(inbox)
    assert "gr\u00e4fin@b\u00fccher.example".encode() in inbox.bodies[0]


def test_a_non_ascii_domain_alone_needs_no_extension(inbox: Inbox) -> None:
    inbox.send(b"x", FROM, "jo@b\u00fccher.example")
    assert inbox.recipients == [["jo@xn--bcher-kva.example"]]
    assert "SMTPUTF8" not in mail_line(inbox)


@pytest.mark.parametrize("size", [CHUNKING_PAYS, 3_000_000])
def test_a_large_message_is_sent_by_bdat(inbox: Inbox, size: int) -> None:
    octets = b"a\n." * (size // 3 + 1)
    inbox.send(octets, FROM, TO)
    assert any(command.startswith("BDAT") for command in inbox.commands)
    assert "DATA" not in inbox.commands
    assert inbox.bodies == [octets.replace(b"\n", b"\r\n") + b"\r\n"]


def test_binary_is_sent_unchanged(inbox: Inbox) -> None:
    octets = b"Content-Transfer-Encoding: binary\r\n\r\n\0\n\r\xff."
    inbox.send(octets, FROM, TO)
    assert "BODY=BINARYMIME" in mail_line(inbox)
    assert inbox.bodies == [octets]


def test_parameters_of_the_caller_are_sent(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING", "DSN", "SIZE")
        script.expect(f"MAIL FROM:<{FROM}> RET=HDRS ENVID=x SIZE=3", f"RCPT TO:<{TO}> NOTIFY=SUCCESS,FAILURE", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.body()
        script.say("250 2.0.0 Ok: queued as 4XyZ12")
        script.rest()

    with scripted(script).connect() as mail:
        sent = mail.send(b"x", FROM, TO, from_ext="RET=HDRS ENVID=x", to_ext={"NOTIFY": "SUCCESS,FAILURE"})
    assert sent.queue_id == "4XyZ12"


def one_by_one(*offers: str) -> Callable[[Script], None]:
    """A server without PIPELINING, which reads each command before it sends a reply."""

    def script(script: Script) -> None:
        script.greet(*offers)
        while line := script.hear():
            assert not script._buffer, f"{script._buffer!r} came before the reply to {line}"
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok" if "no@" not in line else "550 no")

    return script


def test_without_pipelining_each_command_waits_for_its_reply(scripted: Start) -> None:
    server = scripted(one_by_one())
    with server.connect() as mail:
        assert mail.send(b"x", FROM, [TO, "no@example.com"]).accepted == (TO,)
        with mail.pipeline() as batch:
            batch.from_(FROM)
            batch.to("no@example.com")
        assert [reply.code for reply in batch] == [250, 550]
        with pytest.raises(RecipientsRefused):
            mail.send(b"x", FROM, ["no@example.com"])


@pytest.mark.parametrize(
    ("message", "sender", "extension"),
    [
        ("Subject: x\r\n\r\ngr\u00fc\u00dfe".encode(), FROM, "8BITMIME"),
        (b"x", "j\u00f6@example.com", "8BITMIME"),
        (b"\0", FROM, "BINARYMIME"),
    ],
)
def test_an_extension_that_is_needed_but_not_offered_is_an_error(
    scripted: Start, message: bytes, sender: str, extension: str
) -> None:
    with scripted(one_by_one()).connect() as mail:
        with pytest.raises(NotOffered, match=extension) as caught:
            mail.send(message, sender, TO)
        assert caught.value.extension == extension
        assert mail.noop().code == 250


def test_smtputf8_is_not_offered(scripted: Start) -> None:
    with scripted(one_by_one("8BITMIME")).connect() as mail, pytest.raises(NotOffered, match="SMTPUTF8"):
        mail.send(b"x", "j\u00f6@example.com", TO)


def test_an_email_message_is_encoded_if_8bitmime_is_not_offered(scripted: Start) -> None:
    bodies: list[bytes] = []

    def script(script: Script) -> None:
        script.greet()
        for reply in ("250 1", "250 2", "354 go"):
            assert "8BITMIME" not in script.hear()
            script.say(reply)
        bodies.append(script.body())
        script.say("250 Ok")
        script.rest()

    message = composed(From=FROM, To=TO)
    message.set_content("gr\u00fc\u00dfe\n", cte="8bit")
    with scripted(script).connect() as mail:
        mail.send(message)
    assert bodies[0].isascii()
    assert b"8bit" not in bodies[0]


@pytest.mark.parametrize("epilogue", [None, "the end"])
@pytest.mark.parametrize("size", [10, CHUNKING_PAYS])
def test_seven_bit_in_data_and_in_chunks(scripted: Start, size: int, epilogue: str | None) -> None:
    """SIZE is that of the encoded message, whose last line has a line end, so that the final dot has its own line."""
    bodies: list[bytes] = []
    sizes: list[int] = []

    def script(script: Script) -> None:
        script.greet("PIPELINING", "SIZE", "CHUNKING")
        sizes.append(int(script.hear().rpartition("SIZE=")[2]))
        script.expect("RCPT")
        if size < CHUNKING_PAYS:
            script.expect("DATA")
            script.say("250 1", "250 2", "354 go")
            bodies.append(script.body())
        else:
            script.say("250 1", "250 2")
            octets = b""
            while line := script.hear():
                octets += script.exactly(int(line.split()[1]))
                script.say("250 Ok")
                if line.endswith("LAST"):
                    break
            bodies.append(octets)
        script.say("250 Ok")
        script.rest()

    message = EmailMessage()
    message["From"], message["To"] = FROM, TO
    message.set_content("gr\u00fc\u00dfe\n" * size, cte="8bit")
    if epilogue is not None:  # text after the last part, without a line end of its own
        message.make_mixed()
        message.epilogue = epilogue
    with scripted(script).connect() as mail:
        assert mail.send(message).reply.code == 250
    assert bodies[0].isascii()
    assert bodies[0].endswith(b"\r\n")
    assert sizes == [len(bodies[0])]


@pytest.mark.parametrize("ending", [b"\r\n", b"\n", b""])
def test_lines_declared_as_binary_need_no_binarymime(inbox: Inbox, ending: bytes) -> None:
    """They are sent as lines, which leaves them unchanged."""
    octets = b"Content-Transfer-Encoding: binary\r\n\r\nhi" + ending
    inbox.send(octets, FROM, TO)
    assert ("BODY=BINARYMIME" in mail_line(inbox)) == (ending != b"\r\n")
    assert inbox.bodies == [octets]


def test_helo_follows_a_refused_ehlo(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.say("220 old")
        script.expect("EHLO")
        script.say("500 what?")
        script.expect("HELO")
        script.say("250 old")
        for reply in ("250 1", "250 2", "354 go"):
            script.hear()
            script.say(reply)
        script.body()
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect() as mail:
        assert mail.send(b"x", FROM, TO).reply.code == 250


def test_a_refused_hello_is_hello_refused(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.say("220 hi")
        while script.hear():
            script.say("550 not you")

    mail = scripted(script).connect()
    with pytest.raises(HelloRefused) as caught:
        mail.send(b"x", FROM, TO)
    assert not caught.value.transient
