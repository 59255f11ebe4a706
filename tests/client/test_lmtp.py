"""LMTP's replies for each recipient, when not all of them come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from greensmtp import DataRefused, Disconnected, PartiallyRefused, Pool
from greensmtp.client.message import CHUNKING_PAYS

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM = "a@example.com"
A, B, C, NO = "a@example.com", "b@example.com", "c@example.com", "no@example.com"
EVERYBODY = [A, NO, B, C]


def deliver(*replies: str, chunked: bool = False, then: str = "hang up") -> Callable[[Script], None]:
    """Accept recipients A, B and C and their message; answer it with these replies."""

    def script(script: Script) -> None:
        script.say("220 mx LMTP")
        script.expect("LHLO ")
        script.say("250-mx", "250-CHUNKING", "250 PIPELINING")
        script.expect("MAIL", *["RCPT"] * len(EVERYBODY), *([] if chunked else ["DATA"]))
        script.say("250 Ok", "250 A", "550 no", "250 B", "250 C", *([] if chunked else ["354 go"]))
        if chunked:
            script.exactly(int(script.hear().split()[1]))
        else:
            script.body()
        script.say(*replies)
        if then == "stay":
            script.rest()

    return script


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "replies", [(), ("250 A",), ("452 A", "250 B"), ("452 A", "550 B"), ("250 A", "250 B", "250-half of")]
)
def test_a_disconnect_between_lmtp_replies_keeps_those_that_came(
    scripted: Start, replies: tuple[str, ...], chunked: bool
) -> None:
    """Recipients with a reply have their outcome; that of the others is unknown, so the message is not sent again."""
    whole = [reply for reply in replies if "-" not in reply]
    server = scripted(deliver(*replies, chunked=chunked), deliver())
    with Pool("127.0.0.1", server.port, 1, lmtp=True, timeout=10) as pool:
        with pytest.raises(Disconnected) as caught:
            pool.send(b"x" * (CHUNKING_PAYS if chunked else 1), FROM, EVERYBODY)
        assert caught.value.after_content
        assert not caught.value.safe_to_retry
        assert {who: str(reply) for who, reply in caught.value.recipients.items()} == dict(
            zip((A, B, C), whole, strict=False)
        )
        assert pool.idle == 0
    assert server.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_421_stands_for_the_lmtp_replies_that_follow(scripted: Start, chunked: bool) -> None:
    size = CHUNKING_PAYS if chunked else 1
    mail = scripted(deliver("250 A", "421 4.3.2 going down", chunked=chunked)).connect(lmtp=True)
    sent = mail.send(b"x" * size, FROM, EVERYBODY)
    assert {who: reply.code for who, reply in sent.recipients.items()} == {A: 250, NO: 550, B: 421, C: 421}
    assert sent.accepted == (A,)
    assert mail.closed

    mail = scripted(deliver("550 A", "421 4.3.2 going down", chunked=chunked)).connect(lmtp=True)
    with pytest.raises(DataRefused) as caught:
        mail.send(b"x" * size, FROM, EVERYBODY)
    assert {who: reply.code for who, reply in caught.value.recipients.items()} == {A: 550, NO: 550, B: 421, C: 421}
    assert caught.value.transient
    assert caught.value.safe_to_retry
    assert mail.closed


def test_lmtp_refusals_are_transient_if_one_of_them_is(scripted: Start) -> None:
    mail = scripted(deliver("550 A", "452 B", "550 C", then="stay")).connect(lmtp=True)
    with pytest.raises(DataRefused) as caught:
        mail.send(b"x", FROM, EVERYBODY)
    assert caught.value.transient
    assert not mail.closed
    mail = scripted(deliver("550 A", "452 B", "250 C", then="stay")).connect(lmtp=True)
    with pytest.raises(PartiallyRefused, match=r"3 of 4 .*'b@example.com'") as partly:
        mail.send(b"x", FROM, EVERYBODY, raise_on_partial=True)
    assert partly.value.transient
    assert partly.value.result.accepted == (C,)


def test_more_lmtp_replies_than_recipients_is_an_error(scripted: Start) -> None:
    mail = scripted(deliver("250 A", "250 B", "250 C", "250 D", then="stay")).connect(lmtp=True)
    assert mail.send(b"x", FROM, EVERYBODY).accepted == (A, B, C)
    with pytest.raises(Exception, match="unsolicited reply"):
        mail.send(b"x", FROM, EVERYBODY)
    assert mail.closed
