"""``sign=`` and ``add_fields=``: what stands before a message when it is sent."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Pool, connect
from greensmtp.client.message_content import MAX_MEMORY
from tests.client.inbox import Inbox, composed
from tests.client.scripts import take

if TYPE_CHECKING:
    from tests.client.conftest import Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
PLAIN = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: hi\r\n\r\n.ho\r\n"
ADDED = re.compile(rb"Date: [^\r\n]+\r\nMessage-ID: <[0-9a-f]{32}@example\.com>\r\n")


def digest(content: bytes) -> bytes:
    return b"X-Digest: " + hashlib.sha256(content).hexdigest().encode() + b"\r\n"


def unsigned(body: bytes) -> bytes:
    """Check the signature of a message, and return the rest of it."""
    signature, _, rest = body.partition(b"\r\n")
    assert signature + b"\r\n" == digest(rest)
    return rest


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO, lambda content: message_from_bytes(content, policy=policy.SMTP)])
def test_a_signature_covers_what_is_sent(inbox: Inbox, wrap: Callable[[bytes], Any]) -> None:
    sent = inbox.send(wrap(PLAIN.replace(b"\r\n", b"\n")), sign=digest)
    assert sent.refused == {}
    assert unsigned(inbox.bodies[0]) == PLAIN
    assert f"SIZE={len(inbox.bodies[0])}" in inbox.commands[1]


@pytest.mark.parametrize("ignore", ["CHUNKING", "PIPELINING"])
def test_a_large_file_is_signed(inbox: Inbox, ignore: str) -> None:
    content = PLAIN + b".x\r\n" * MAX_MEMORY
    with connect(*inbox.server.address, timeout=20, ignore=ignore) as mail:
        mail.send(io.BytesIO(content), sign=digest)
    assert unsigned(inbox.bodies[0]) == content


def test_each_form_of_a_message_has_its_own_signature(scripted: Start) -> None:
    """The first server refuses for now, and the second does not offer 8BITMIME, so that the message is encoded."""
    signed: list[bytes] = []

    def sign(content: bytes) -> bytes:
        signed.append(content)
        return digest(content)

    def later(script: Any) -> None:
        script.greet("8BITMIME")
        script.hear()
        script.say("421 4.3.2 later")

    script, bodies, _ = take()
    servers = scripted(later), scripted(script)
    message = EmailMessage()
    message["From"], message["To"] = FROM, TO
    message.set_content("hö\n", cte="8bit")
    with Pool([("127.0.0.1", server.port) for server in servers], timeout=5) as pool:
        pool.send(message, sign=sign)
    assert [content.isascii() for content in signed] == [False, True]
    assert unsigned(bodies[0]) == signed[1]


def test_a_pool_signs_every_message_once_for_all_recipients(inbox: Inbox) -> None:
    calls: list[bytes] = []

    def sign(content: bytes) -> bytes:
        calls.append(content)
        return digest(content)

    with Pool(*inbox.server.address, timeout=10, sign=sign) as pool:
        pool.send(PLAIN, FROM, [TO, "c@example.com", "no@example.com"])
        pool.send(PLAIN, FROM, TO, sign=lambda content: b"X-Other: 1\r\n")
    assert unsigned(inbox.bodies[0]) == PLAIN == calls[0]
    assert inbox.bodies[1] == b"X-Other: 1\r\n" + PLAIN
    assert len(calls) == 1


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"X: 1",
        b"X: 1\n",
        b"X: 1\r\n\r\n",
        b"X: 1\r\nbody\r\n",
        b"X: \xff\r\n",
        b" X: 1\r\n",
        b"X: 1\r\n\r\nY: 1\r\n",
    ],
)
def test_a_signer_must_return_header_fields(inbox: Inbox, fields: bytes) -> None:
    with pytest.raises(ValueError, match="expected header fields from sign"):
        inbox.send(PLAIN, sign=lambda content: fields)
    assert inbox.bodies == []


def test_a_signer_must_be_a_function_that_returns_bytes(inbox: Inbox) -> None:
    with pytest.raises(TypeError, match="as bytes from sign"):
        inbox.send(PLAIN, sign=lambda content: "X: 1\r\n")
    with pytest.raises(TypeError, match="expected a function"):
        inbox.send(PLAIN, sign="key")
    with pytest.raises(TypeError, match="expected a function"):
        Pool("mx.example.com", sign=b"key")  # type: ignore[arg-type]


def test_what_a_signer_raises_sends_nothing(inbox: Inbox) -> None:
    def sign(content: bytes) -> bytes:
        raise LookupError("no key")

    with Pool(*inbox.server.address, timeout=10) as pool:
        with pytest.raises(LookupError):
            pool.send(PLAIN, sign=sign)
        pool.send(PLAIN)
    assert inbox.bodies == [PLAIN]


# Date and Message-ID


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO, lambda content: message_from_bytes(content, policy=policy.SMTP)])
def test_date_and_message_id_are_added_where_they_are_missing(inbox: Inbox, wrap: Callable[[bytes], Any]) -> None:
    inbox.send(wrap(PLAIN), add_fields=True)
    inbox.send(wrap(b"message-id: <1@x>\r\n" + PLAIN), add_fields=True)
    inbox.send(wrap(b"date: now\r\nmessage-id: <1@x>\r\n" + PLAIN), add_fields=True)
    inbox.send(wrap(PLAIN))
    first, second, third, fourth = inbox.bodies
    added = ADDED.match(first)
    assert added is not None
    assert first[added.end() :] == PLAIN
    assert re.fullmatch(rb"Date: [^\r\n]+\r\nmessage-id: <1@x>\r\n", second[: -len(PLAIN)])
    assert third == b"date: now\r\nmessage-id: <1@x>\r\n" + PLAIN
    assert fourth == PLAIN


def test_they_are_added_to_a_large_file_without_its_bcc(inbox: Inbox) -> None:
    content = b"Bcc: c@example.com\r\n" + PLAIN + b"x\r\n" * (MAX_MEMORY // 2)
    inbox.send(io.BytesIO(content), add_fields=True)
    added = ADDED.match(inbox.bodies[0])
    assert added is not None
    assert inbox.bodies[0][added.end() :] == content.partition(b"\r\n")[2]
    assert f"SIZE={len(inbox.bodies[0])}" in inbox.commands[1]


def test_nothing_is_added_to_a_signed_message_nor_to_text_without_fields(inbox: Inbox) -> None:
    for content in (b"DKIM-Signature: v=1\r\n" + PLAIN, b"text\r\n", b"\r\ntext\r\n"):
        inbox.send(content, FROM, TO, add_fields=True)
        assert inbox.bodies[-1] == content


def test_a_composed_message_is_sent_without_them_if_the_caller_says_so(inbox: Inbox) -> None:
    inbox.send(composed(From=FROM, To=TO), add_fields=False)
    inbox.send(composed(From=FROM, To=TO))
    assert b"Date" not in inbox.bodies[0]
    assert b"Message-ID" not in inbox.bodies[0]
    assert ADDED.match(inbox.bodies[1])


def test_added_fields_are_signed(inbox: Inbox) -> None:
    inbox.send(PLAIN, add_fields=True, sign=digest)
    assert ADDED.match(unsigned(inbox.bodies[0]))
