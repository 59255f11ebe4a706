"""How ``send`` prepares a message: its envelope, and the bytes that are sent."""

from __future__ import annotations

import gzip
import io
import os
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes, message_from_string, policy
from email.header import Header
from email.headerregistry import Address as NamedAddress
from email.message import EmailMessage
from email.mime.text import MIMEText
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep, socket, spawn
from gevent import subprocess as gevent_subprocess
from gevent.fileobject import FileObject, FileObjectPosix, FileObjectThread

from greensmtp import Ack, MessageStream, NotOffered, Pool, ProtocolError, Session, connect
from greensmtp.client.message import PreparedMessage
from greensmtp.client.message_content import MAX_MEMORY
from greensmtp.middleware import Auth
from greensmtp.protocol import header_envelope
from greensmtp.testing.fixtures import MakeServer
from tests.client.inbox import ENVELOPE, Inbox, composed
from tests.client.scripts import take

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
ALL = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "DSN")


# Recipients


@pytest.mark.parametrize("kind", ["bytes", "file", "compat32", "email"])
@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("a@example.com; b@example.com", ["a@example.com", "b@example.com"]),
        ("shown@example.org <real@example.com>", ["real@example.com"]),
        ("=?utf-8?q?Doe=2C_J=C3=B6?= <jo@example.com>", ["jo@example.com"]),
        ("jo@example.com, JO@example.com", ["jo@example.com", "JO@example.com"]),
    ],
)
def test_recipients_of_every_kind_of_message(inbox: Inbox, kind: str, to: str, expected: list[str]) -> None:
    octets = f"From: {FROM}\r\nTo: {to}\r\n\r\nhi\r\n".encode()
    kinds: dict[str, Callable[[], Any]] = {
        "bytes": lambda: octets,
        "file": lambda: io.BytesIO(octets),
        "compat32": lambda: message_from_bytes(octets),
        "email": lambda: message_from_bytes(octets, policy=policy.default),
    }
    message = kinds[kind]()
    assert inbox.send(message).accepted == tuple(expected)
    assert inbox.recipients == [expected]
    assert inbox.bodies == [octets]


def test_recipients_of_a_composed_message(inbox: Inbox) -> None:
    inbox.send(composed(From=FROM, To="a@example.com; b@example.com"))
    inbox.send(composed(From=FROM, To="shown@example.org <real@example.com>"))
    inbox.send(
        composed(From=FROM, To=(NamedAddress("Doe, Jo", "jo", "example.com"), NamedAddress("", "x", "y.example")))
    )
    assert inbox.recipients == [
        ["a@example.com", "b@example.com"],
        ["real@example.com"],
        ["jo@example.com", "x@y.example"],
    ]


def test_a_non_ascii_name_with_a_comma_stays_one_name(inbox: Inbox) -> None:
    inbox.send(composed(From=FROM, To=NamedAddress("Doe, J\u00f6", "jo", "example.com")))
    assert inbox.recipients == [["jo@example.com"]]
    parsed = message_from_bytes(inbox.bodies[0], policy=policy.default)
    assert [str(address) for address in parsed["To"].addresses] == ['"Doe, J\u00f6" <jo@example.com>']


@pytest.mark.parametrize("name", ["From", "Sender", "To", "Cc", "Bcc"])
@pytest.mark.parametrize("wrong", ['you@example.com, "', "root", "a@b.c d@e.f", "((", "a@example.com, <>"])
def test_an_unreadable_address_list_sends_nothing(inbox: Inbox, name: str, wrong: str) -> None:
    fields = {"From": FROM, "To": TO, name: wrong}
    octets = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\nhi\r\n"
    with connect(*inbox.server.address, timeout=10) as mail:
        for message in (octets, io.BytesIO(octets), message_from_bytes(octets)):
            with pytest.raises(ProtocolError, match=f"the {name} field cannot be read"):
                mail.send(message)
        assert inbox.commands == []
        mail.send(octets, FROM, TO)  # fields that are not used need not be readable
    assert inbox.recipients == [[TO]]


def test_hostile_fields_take_milliseconds() -> None:
    octets = b"From: a@example.com\r\nTo: " + b"a@b.c (" * 7_000 + b"\r\n\r\nhi\r\n"
    began = time.thread_time()
    for message in (octets, message_from_bytes(octets), octets.replace(b"(", b", ")):
        try:
            PreparedMessage(message).close()
        except ProtocolError:
            pass
    assert time.thread_time() - began < 1


def test_two_thousand_recipients(inbox: Inbox) -> None:
    to = ",\r\n ".join(f"Reader {number} <reader{number}@example.com>" for number in range(2000))
    octets = f"From: {FROM}\r\nTo: {to}\r\n\r\nhi\r\n".encode()
    for message in (octets, message_from_bytes(octets), message_from_bytes(octets, policy=policy.default)):
        outgoing = PreparedMessage(message)
        assert len(outgoing.recipients) == 2000
        assert outgoing.size == len(octets)


def test_sharp_s_keeps_its_own_domain(inbox: Inbox) -> None:
    inbox.send(b"x", FROM, ["jo@fa\u00df.de", "jo@fass.de"])
    assert inbox.recipients == [["jo@xn--fa-hia.de", "jo@fass.de"]]
    inbox.send(composed(From=FROM, To="jo@fa\u00df.de"))
    assert inbox.recipients[1] == ["jo@xn--fa-hia.de"]
    assert b"\r\nTo: jo@xn--fa-hia.de\r\n" in inbox.bodies[1]
    inbox.send(composed(From=FROM, To="j\u00f6@fa\u00df.de"))
    assert inbox.recipients[2] == ["j\u00f6@fa\u00df.de"]
    assert "SMTPUTF8" in [command for command in inbox.commands if command.startswith("MAIL")][-1]


def test_a_domain_that_idna_does_not_allow_needs_smtputf8(scripted: Start, inbox: Inbox) -> None:
    script, _, mails = take("8BITMIME")
    with scripted(script).connect() as mail, pytest.raises(NotOffered, match="SMTPUTF8"):
        mail.send(b"x", FROM, "jo@\U0001f4a9.example")
    assert mails == []


def test_a_malformed_line_among_the_header_fields_is_an_error(inbox: Inbox) -> None:
    with pytest.raises(ProtocolError, match="not a header field"):
        inbox.send(b"From: a@example.com\nTo: b@example.com\ngarbage\nCc: c@example.com\n\nhi\n")


# Mbox


@pytest.mark.parametrize("kind", [bytes, io.BytesIO, message_from_bytes])
def test_an_mbox_line_is_dropped(inbox: Inbox, kind: Any) -> None:
    inbox.send(kind(b"From jo@example.com Mon Jan  1 00:00:00 2024\n" + ENVELOPE + b"\r\nFrom here\r\n"))
    assert inbox.bodies == [ENVELOPE + b"\r\nFrom here\r\n"]
    assert inbox.recipients == [[TO, "c@example.com"]]


# Files


def sources(octets: bytes, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    file: Any
    path = tmp_path / "message"
    path.write_bytes(octets)
    ours, theirs = socket.socketpair()

    def write() -> None:
        theirs.sendall(octets)
        theirs.close()

    writing = spawn(write)
    with ours.makefile("rb") as file:
        yield "makefile", file
    writing.join()
    ours.close()
    process: Any = gevent_subprocess.Popen(["cat", str(path)], stdout=gevent_subprocess.PIPE)
    yield "subprocess", process.stdout
    process.wait()
    process.stdout.close()
    for kind in (FileObject, FileObjectPosix, FileObjectThread):
        with kind(str(path), "rb") as file:
            yield kind.__name__, file
    reading_end, writing_end = os.pipe()
    writing = spawn(lambda: FileObjectPosix(writing_end, "wb").write(octets))
    with FileObjectPosix(reading_end, "rb") as file:
        yield "pipe", file
    writing.join()
    with path.open("rb") as file:
        yield "file", file
    with path.open("rb", buffering=0) as file:
        yield "unbuffered", file
    (tmp_path / "message.gz").write_bytes(gzip.compress(octets))
    with gzip.open(tmp_path / "message.gz") as file:
        yield "gzip", file
    with gzip.GzipFile(fileobj=FileObjectPosix(str(tmp_path / "message.gz"), "rb")) as file:
        yield "gzip on gevent", file


@pytest.mark.subprocess
@pytest.mark.parametrize("size", [10, MAX_MEMORY])
def test_files_of_every_kind(inbox: Inbox, tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str]) -> None:
    octets = ENVELOPE + b"\r\n" + b"x" * 98 + b"\r\n" + b"y\r\n" * (size // 3)
    for name, source in sources(octets, tmp_path):
        inbox.send(source)
        assert inbox.bodies.pop() == octets, name
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.subprocess
def test_message_sends_a_gevent_file(inbox: Inbox, tmp_path: Path) -> None:
    with connect(*inbox.server.address, timeout=10) as mail:
        for name, source in sources(b"Subject: x\r\n\r\nhi\r\n", tmp_path):
            mail.ehlo("client.example")
            mail.from_(FROM)
            mail.to(TO)
            mail.data()
            assert mail.message(source).code == 250, name


class Wrapper:
    """A file that hides the file inside it, and claims to have a descriptor."""

    __slots__ = ("read",)

    def __init__(self, file: Any) -> None:
        self.read = file.read

    def fileno(self) -> int:
        return -1


def test_anything_but_a_binary_file_is_a_type_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("From: a@example.com\n\nhi\n")
    ours, theirs = socket.socketpair()
    with (tmp_path / "x").open() as text:
        for wrong, what in (
            (text, "open it with 'rb'"),
            (ours, "makefile"),
            (io.StringIO("x"), "'rb'"),
            (5, "got int"),
        ):
            with pytest.raises(TypeError, match=what):
                PreparedMessage(wrong, FROM, TO)  # type: ignore[arg-type]
    with ours.makefile("rb") as file, pytest.raises(TypeError, match="gevent"):
        PreparedMessage(Wrapper(file), FROM, TO)
    with (tmp_path / "x").open("rb") as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        PreparedMessage(closed, FROM, TO)
    ours.close()
    theirs.close()
    assert capfd.readouterr().err == ""


# Parameters


def test_parameters_of_a_session_can_be_forwarded(smtp_server: MakeServer) -> None:
    users = {"jo": "secret"}
    first = smtp_server(middleware=[Auth(users, allow_plaintext=True)])
    inbox = Inbox(smtp_server(middleware=[Auth(users, allow_plaintext=True)]))
    sessions: list[Any] = []

    @first.on("message")
    def forward(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        body = stream.read()
        assert session.from_ is not None
        sessions.append(session.from_ext["AUTH"])
        inbox.send(body + b"more\r\n", session.from_, session.to, from_ext=session.from_ext, to_ext=session.to_ext)

    with connect(*first.address, timeout=10) as mail:
        mail.ehlo("client.example")
        assert mail.login("jo", "secret", allow_plaintext=True).code == 235
        mail.from_(FROM, "SIZE=20 BODY=8BITMIME SMTPUTF8 AUTH=jo+2BAB@example.com")
        mail.to("b@example.com")
        mail.to("c@example.com")
        mail.data()
        assert mail.message(b"hi\r\n").code == 250
    assert sessions == ["jo+AB@example.com"]
    assert inbox.bodies == [b"hi\r\nmore\r\n"]
    mail_line = next(command for command in inbox.commands if command.startswith("MAIL"))
    assert mail_line == f"MAIL FROM:<{FROM}> AUTH=jo+2BAB@example.com SIZE=10 SMTPUTF8"


@pytest.mark.parametrize("dsn", [True, False])
def test_parameters_of_dsn_and_auth_are_omitted_if_not_offered(scripted: Start, dsn: bool) -> None:
    lines: list[str] = []

    def script(script: Script) -> None:
        script.greet(*(["DSN", "AUTH PLAIN"] if dsn else ["SIZE"]))
        while line := script.hear():
            lines.append(line)
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok")

    from_ext = {"RET": "HDRS", "ENVID": "a+20b", "AUTH": "<>", "SIZE": "9999", "BODY": "8BITMIME", "SMTPUTF8": None}
    to_ext = [{"ORCPT": "rfc822;b+2B@example.com", "NOTIFY": "NEVER"}, {}]
    with scripted(script).connect() as mail:
        mail.send(b"x", FROM, [TO, "c@example.com"], from_ext=from_ext, to_ext=to_ext)
    assert lines[:3] == [
        f"MAIL FROM:<{FROM}>" + (" RET=HDRS ENVID=a+20b AUTH=<>" if dsn else " SIZE=3"),
        f"RCPT TO:<{TO}>" + (" ORCPT=rfc822;b+2B@example.com NOTIFY=NEVER" if dsn else ""),
        "RCPT TO:<c@example.com>",
    ]


@pytest.mark.parametrize("ext", ["BY=10;R", {"HOLDFOR": 10}, {"HOLDUNTIL": "2030-01-31T12:00:00Z"}])
def test_other_parameters_are_never_omitted(scripted: Start, ext: Any) -> None:
    script, _, mails = take("SIZE")
    with scripted(script).connect() as mail, pytest.raises(NotOffered):
        mail.send(b"x", FROM, TO, from_ext=ext)
    assert mails == []


def test_to_ext_of_the_wrong_length_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="for 2 recipients; got it for 1"):
        PreparedMessage(b"x", FROM, [TO, "c@example.com"], to_ext=[{}])


def test_one_pool_sends_one_object_from_many_greenlets(inbox: Inbox) -> None:
    message = composed(From=FROM, To=TO)
    message.make_mixed()
    message.add_attachment(b"x" * 100_000, maintype="image", subtype="png")
    before = message.policy
    address: Any = inbox.server.address
    with Pool(address, size=4) as pool:
        greenlets = [spawn(pool.send, message, FROM, f"r{number}@example.com") for number in range(8)]
        for greenlet in greenlets:
            greenlet.get()
    assert len(inbox.bodies) == 8
    assert message.policy is before
    assert all(part.policy is before for part in message.iter_parts())


@pytest.mark.parametrize("name", ["DKIM-Signature", "Message-ID", "References", "List-Unsubscribe", "X-Token"])
def test_no_long_token_becomes_an_encoded_word(inbox: Inbox, name: str) -> None:
    value = f"v=1; <{'QUJD' * 60}@example.com> {'x' * 200}"
    message = composed(From=FROM, To=TO)
    message[name] = value
    inbox.send(message)
    assert b"=?" not in inbox.bodies[0]
    assert message_from_bytes(inbox.bodies[0])[name].replace("\r\n", "") == value


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default])
@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_a_message_that_was_parsed_from_text(inbox: Inbox, scripted: Start, parse_as: Any, charset: str) -> None:
    text = (
        f"From: {FROM}\nTo: J\u00f6 <{TO}>\nSubject: gr\u00fc\u00dfe\nContent-Type: text/plain; charset={charset}\n\n"
        "gr\u00fc\u00dfe\n"
    )
    message = message_from_string(text, policy=parse_as)
    script, bodies, _ = take()
    inbox.send(message)
    with scripted(script).connect() as mail:
        mail.send(message)
    assert inbox.bodies[0].endswith("\r\n\r\ngr\u00fc\u00dfe\r\n".encode(charset))
    for octets in (*inbox.bodies, *bodies):
        parsed = message_from_bytes(octets, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        assert (parsed["Subject"], parsed["To"]) == ("gr\u00fc\u00dfe", f"J\u00f6 <{TO}>")
        assert parsed.get_content().strip() == "gr\u00fc\u00dfe"
    assert bodies[0].isascii()


@pytest.mark.parametrize("size", [10, MAX_MEMORY])
def test_a_message_stream_can_be_forwarded_while_it_arrives(smtp_server: MakeServer, inbox: Inbox, size: int) -> None:
    first = smtp_server()
    octets = ENVELOPE + b"\r\n" + b"x" * 98 + b"\r\n" + b"y\r\n" * (size // 3)

    @first.on("message")
    def forward(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        inbox.send(stream, session.from_, session.to)

    with connect(*first.address, timeout=20) as mail:
        mail.send(octets, FROM, TO)
    assert inbox.bodies == [octets]


@pytest.mark.parametrize(
    "octets",
    [
        b"x" * (MAX_MEMORY + 10) + b"\r\n",
        b"A: b\r\n\r\n" + b".y\r\n" * (MAX_MEMORY // 4 + 10),
        b"A: b\r\n\r\n" + b"\0\r\n" * (MAX_MEMORY // 3 + 10),
    ],
    ids=["no head", "text", "binary"],
)
def test_large_bytes_do_not_block_other_greenlets(octets: bytes, inbox: Inbox) -> None:
    turns = 0

    def take_turns() -> None:
        nonlocal turns
        while True:
            sleep(0.0001)
            turns += 1

    turning = spawn(take_turns)
    outgoing = PreparedMessage(octets, FROM, TO)
    turning.kill()
    assert turns > 5
    assert outgoing.size == len(octets)
    inbox.send(octets, FROM, TO)
    assert inbox.bodies == [octets]


def test_an_address_within_an_old_header_object(inbox: Inbox) -> None:
    message = MIMEText("hi")
    message["From"] = FROM
    message["To"] = Header(f"J\u00f6 <{TO}>", "utf-8")  # type: ignore[assignment]
    cc = Header("Doe, J\u00f6", "utf-8")
    cc.append("<c@example.com>", "us-ascii")
    message["Cc"] = cc  # type: ignore[assignment]
    inbox.send(message)
    assert inbox.recipients == [[TO, "c@example.com"]]
    parsed = message_from_bytes(inbox.bodies[0], policy=policy.default)
    assert [address.addr_spec for address in parsed["To"].addresses] == [TO]
    assert [address.display_name for address in parsed["Cc"].addresses] == ["Doe, J\u00f6"]


@pytest.mark.parametrize(
    "name",
    ["=?utf-8?q?evil=40y=2Eexample=2C?= ", "=?utf-8?q?evil=40y=2Eexample=2C?=", "=?utf-8?q?=C3=B6=2C_evil=40y=2Ez?= "],
)
def test_an_encoded_word_hides_no_recipient(inbox: Inbox, name: str) -> None:
    inbox.send(composed(From=FROM, To=f"{name}<{TO}>"))
    assert inbox.recipients == [[TO]]
    assert [
        str(address)
        for address in header_envelope.recipients(header_envelope.parse(inbox.bodies[0].partition(b"\r\n\r\n")[0]))
    ] == [TO]
    with pytest.raises(ProtocolError, match="the To field cannot be read"):
        inbox.send(composed(From=FROM, To=f"a@example.com; {name}<{TO}>"))
    assert len(inbox.bodies) == 1


HEAD = b"From: a@example.com\r\nTo: b@example.com\r\n"
CUT_OFF = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n"
INNER_CUT_OFF = (
    HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    b"Content-Type: multipart/alternative; boundary=c\r\n\r\n--c\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n"
)
BASE64_MESSAGE = (
    HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nRnJvbTogeEB5LnoKCmlubmVyCg==\r\n--b--\r\n"
)
NO_FIELDS = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nno field at all\r\n--b--\r\n"


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default, policy.SMTP], ids=["old", "default", "smtp"])
@pytest.mark.parametrize(
    "octets", [CUT_OFF, INNER_CUT_OFF, BASE64_MESSAGE, NO_FIELDS], ids=["cut off", "inner", "base64", "no fields"]
)
def test_malformed_mime_is_sent_as_it_was_read(inbox: Inbox, parse_as: Any, octets: bytes) -> None:
    inbox.send(message_from_bytes(octets, policy=parse_as))
    assert inbox.bodies == [octets]


def test_a_replaced_body_is_not_taken_for_header_fields() -> None:
    message = message_from_bytes(
        HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nno field\r\n--b--\r\n"
    )
    part: Any = message.get_payload(0)
    part.set_payload("Subject: not a field")
    outgoing = PreparedMessage(message)
    outgoing.mail_line({})
    assert b"\r\n--b\r\n\r\nSubject: not a field\r\n--b--" in b"".join(outgoing.data())


def test_smtputf8_without_8bitmime_is_not_used(scripted: Start) -> None:
    def script(peer: Script) -> None:
        peer.greet("SMTPUTF8")
        for _ in range(2):
            peer.expect("MAIL FROM:<a@example.com>")
            peer.say("250 ok")
            peer.expect("RCPT")
            peer.say("250 ok")
            peer.expect("DATA")
            peer.say("354 go on")
            assert peer.body() == b"From: a@example.com\r\nTo: =?utf-8?b?SsO2?= <b@example.com>\r\n\r\nhi\r\n"
            peer.say("250 ok")
        peer.rest()

    octets = "From: a@example.com\r\nTo: J\u00f6 <b@example.com>\r\n\r\nhi\r\n".encode()
    with scripted(script).connect() as mail:
        mail.send(octets)
        mail.send(message_from_bytes(octets))
