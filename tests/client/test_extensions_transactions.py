"""One message in several transactions: LIMITS (RFC 9422), 452 4.5.3, and what ``send`` reports after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout

from greensmtp import (
    CannotConnect,
    DataRefused,
    Disconnected,
    NotOffered,
    PartiallyRefused,
    PeerProtocolError,
    Pool,
    RecipientsRefused,
    SenderRefused,
    SendResult,
)
from tests.client.scripts import take

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM = "a@example.com"
FIVE = [f"{name}@example.com" for name in "pqrst"]
TOO_MANY = "452 4.5.3 too many recipients"


class Book:
    """A scripted server with limits of its own: the recipients of each message, by connection."""

    def __init__(self, *offers: str, most: int = 100, refusal: str = TOO_MANY, lmtp: bool = False) -> None:
        self.offers = offers
        self.most = most
        self.refusal = refusal
        self.lmtp = lmtp
        self.sessions: list[list[list[str]]] = []
        #: The reply to the nth message, instead of 250; None closes the connection.
        self.finals: dict[int, str | None] = {}
        #: The reply to the nth MAIL.
        self.mails: dict[int, str | None] = {}
        self._messages = self._mails = 0

    def __call__(self, script: Script) -> None:
        self.sessions.append([])
        script.say("220 mx.example.com")
        script.expect("LHLO" if self.lmtp else "EHLO")
        script.say("250-mx.example.com", *(f"250-{offer}" for offer in self.offers), "250 HELP")
        to: list[str] = []
        while line := script.hear():
            if line.startswith("MAIL"):
                self._mails += 1
                to = []
                reply = self.mails.get(self._mails, "250 Ok")
                if reply is None:
                    return
                script.say(reply)
            elif line.startswith("RCPT"):
                recipient = line[len("RCPT TO:<") :].partition(">")[0]
                if recipient.startswith("no"):
                    script.say("550 5.1.1 no")
                elif len(to) >= self.most:
                    script.say(self.refusal)
                else:
                    to.append(recipient)
                    script.say("250 Ok")
            elif line == "DATA":
                if not to:
                    script.say("503 no recipients")
                    continue
                script.say("354 go")
                script.body()
                self._messages += 1
                final = self.finals.get(self._messages, f"250 2.0.0 Ok: queued as Q{self._messages}")
                if final is None:
                    return
                if final.startswith("250"):
                    self.sessions[-1].append(to)
                script.say(*([final] * (len(to) if self.lmtp else 1)))
                if final.startswith("421"):
                    return
            else:
                script.say("250 Ok")


Sender = Callable[..., SendResult]


@pytest.fixture(params=["client", "pool"])
def send(request: pytest.FixtureRequest, scripted: Start) -> Any:
    """``send(book, recipients)``, by a client of its own and by a pool."""

    def by_client(*scripts: Any, to: list[str], sender: str = FROM, lmtp: bool = False, **options: Any) -> SendResult:
        with scripted(*scripts).connect(lmtp=lmtp) as mail:
            return mail.send(b"x", sender, to, **options)

    def by_pool(*scripts: Any, to: list[str], sender: str = FROM, lmtp: bool = False, **options: Any) -> SendResult:
        with Pool("127.0.0.1", scripted(*scripts).port, timeout=5, lmtp=lmtp) as pool:
            return pool.send(b"x", sender, to, **options)

    return by_client if request.param == "client" else by_pool


# LIMITS


@pytest.mark.parametrize("offers", [("LIMITS RCPTMAX=2", "PIPELINING"), ("LIMITS RCPTMAX=2",)])
def test_rcptmax_splits_a_message(send: Sender, offers: tuple[str, ...]) -> None:
    book = Book(*offers)
    sent = send(book, to=FIVE)
    assert book.sessions == [[FIVE[:2], FIVE[2:4], FIVE[4:]]]
    assert list(sent.recipients) == FIVE
    assert sent.accepted == tuple(FIVE)
    assert sent.queue_id == "Q1"
    assert sent.queue_ids == ("Q1", "Q2", "Q3")
    assert [reply.text for reply in sent.further_replies] == ["Ok: queued as Q2", "Ok: queued as Q3"]


def test_a_message_within_the_limits_is_one_transaction(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=5 MAILMAX=1 RCPTDOMAINMAX=1")
    sent = send(book, to=FIVE)
    assert book.sessions == [[FIVE]]
    assert sent.further_replies == ()
    assert sent.queue_ids == ("Q1",)


def test_ignored_limits_are_ignored(scripted: Start) -> None:
    book = Book("LIMITS RCPTMAX=1")
    with scripted(book).connect(ignore="LIMITS") as mail:
        mail.send(b"x", FROM, FIVE)
    assert book.sessions == [[FIVE]]


@pytest.mark.parametrize("text", ["RCPTMAX=0", "RCPTMAX=x", "RCPTMAX", "", "OTHER=1"])
def test_malformed_limits_are_none(send: Sender, text: str) -> None:
    book = Book(f"LIMITS {text}")
    send(book, to=FIVE)
    assert book.sessions == [[FIVE]]


def test_mailmax_renews_the_connection_within_a_message(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2 MAILMAX=2")
    assert send(book, to=FIVE).accepted == tuple(FIVE)
    assert book.sessions == [[FIVE[:2], FIVE[2:4]], [FIVE[4:]]]


def test_mailmax_renews_the_connection_between_messages(scripted: Start) -> None:
    book = Book("LIMITS MAILMAX=2")
    with scripted(book).connect() as mail:
        for _ in range(5):
            mail.send(b"x", FROM, FIVE[0])
    assert [len(session) for session in book.sessions] == [2, 2, 1]
    book = Book("LIMITS MAILMAX=2")
    with Pool("127.0.0.1", scripted(book).port, timeout=5) as pool:
        for _ in range(5):
            pool.send(b"x", FROM, FIVE[0])
        assert pool.idle == 1
        pool.send(b"x", FROM, FIVE[0])
        assert pool.idle == 0
    assert [len(session) for session in book.sessions] == [2, 2, 2]


def test_rcptdomainmax_counts_the_domains_of_a_session(send: Sender) -> None:
    book = Book("LIMITS RCPTDOMAINMAX=2")
    to = ["a@one.example", "a@two.example", "a@three.example", "b@ONE.example", "b@three.example"]
    assert send(book, to=to).accepted == tuple(to)
    assert book.sessions == [[["a@one.example", "a@two.example", "b@ONE.example"]], [to[2:3] + to[4:]]]


def test_a_pool_keeps_no_connection_that_can_carry_no_more(scripted: Start) -> None:
    book = Book("LIMITS RCPTDOMAINMAX=1")
    with Pool("127.0.0.1", scripted(book).port, timeout=5, max_messages=10**9) as pool, Timeout(10):
        pool.send(b"x", FROM, ["a@one.example", "a@two.example"])
        pool.send(b"x", FROM, ["a@one.example"])
        pool.send(b"x", FROM, ["b@one.example"])
    assert book.sessions == [[["a@one.example"]], [["a@two.example"]], [["a@one.example"], ["b@one.example"]]]


def test_a_session_that_cannot_be_renewed_goes_on_beyond_the_limit(scripted: Start) -> None:
    book = Book("LIMITS MAILMAX=1 RCPTMAX=2 RCPTDOMAINMAX=1")
    with scripted(book).connect() as mail:
        mail.begin()
        mail.authenticated = True
        mail.send(b"x", FROM, ["a@one.example", "a@two.example", "a@three.example"])
    assert book.sessions == [[["a@one.example"], ["a@two.example", "a@three.example"]]]


def test_parameters_go_with_their_recipients(scripted: Start) -> None:
    lines: list[str] = []

    def script(script: Script) -> None:
        script.greet("LIMITS RCPTMAX=1", "DSN", "SIZE")
        while line := script.hear():
            lines.append(line)
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok")

    with scripted(script).connect() as mail:
        mail.send(b"x", FROM, FIVE[:2], to_ext=["NOTIFY=NEVER", "NOTIFY=DELAY"], ret="FULL")
    assert lines == [
        f"MAIL FROM:<{FROM}> RET=FULL SIZE=3",
        f"RCPT TO:<{FIVE[0]}> NOTIFY=NEVER",
        "DATA",
        f"MAIL FROM:<{FROM}> RET=FULL SIZE=3",
        f"RCPT TO:<{FIVE[1]}> NOTIFY=DELAY",
        "DATA",
        "QUIT",
    ]


# 452


@pytest.mark.parametrize("refusal", [TOO_MANY, "452 too many", "552 5.5.3 too many"])
@pytest.mark.parametrize("offers", [("PIPELINING",), ()])
def test_recipients_beyond_452_go_into_further_transactions(
    send: Sender, refusal: str, offers: tuple[str, ...]
) -> None:
    book = Book(*offers, most=2, refusal=refusal)
    sent = send(book, to=["no@example.com", *FIVE])
    assert [to for session in book.sessions for to in session] == [FIVE[:2], FIVE[2:4], FIVE[4:]]
    assert sent.accepted == tuple(FIVE)
    assert sent.refused["no@example.com"].code == 550
    assert sent.queue_ids == ("Q1", "Q2", "Q3")


@pytest.mark.parametrize("refusal", ["452 4.3.1 disk full", "452 4.2.2 mailbox full", "451 4.5.3 no"])
def test_other_refusals_are_final(send: Sender, refusal: str) -> None:
    book = Book(most=2, refusal=refusal)
    sent = send(book, to=FIVE)
    assert book.sessions == [[FIVE[:2]]]
    assert sent.accepted == tuple(FIVE[:2])


def test_452_for_all_recipients_is_a_refusal(send: Sender) -> None:
    book = Book(most=0)
    with pytest.raises(RecipientsRefused) as caught:
        send(book, to=FIVE)
    assert caught.value.transient
    assert len(caught.value.recipients) == 5


def test_452_for_the_rest_ends_the_attempts(send: Sender) -> None:
    greedy = iter([2, 0])

    class Shrinking(Book):
        """Accepts two recipients, and none in the next transaction."""

        def __call__(self, script: Script) -> None:
            self.most = next(greedy, 0)
            super().__call__(script)

    shrinking = Shrinking("LIMITS MAILMAX=1")
    sent = send(shrinking, to=FIVE)
    assert sent.accepted == tuple(FIVE[:2])
    assert {reply.code for reply in sent.refused.values()} == {452}


def test_lmtp_splits_too(send: Sender) -> None:
    book = Book("PIPELINING", most=2, lmtp=True)
    sent = send(book, to=FIVE, lmtp=True)
    assert book.sessions == [[FIVE[:2], FIVE[2:4], FIVE[4:]]]
    assert sent.accepted == tuple(FIVE)


# Refusals and errors in one of several transactions


def test_a_refused_part_is_in_the_result(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.finals = {2: "554 5.7.1 spam"}
    sent = send(book, to=FIVE)
    assert sent.accepted == (*FIVE[:2], FIVE[4])
    assert {name: reply.code for name, reply in sent.refused.items()} == {FIVE[2]: 554, FIVE[3]: 554}
    assert sent.queue_ids == ("Q1", "Q3")


def test_a_refused_part_raises_partially_refused_on_demand(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.finals = {1: "554 5.7.1 spam"}
    with pytest.raises(PartiallyRefused) as caught:
        send(book, to=FIVE, raise_on_partial=True)
    assert caught.value.result.accepted == tuple(FIVE[2:])
    assert not caught.value.safe_to_retry


def test_all_parts_refused(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.finals = {1: "554 no", 2: "451 later", 3: "554 no"}
    with pytest.raises(DataRefused) as caught:
        send(book, to=FIVE)
    assert [reply.code for reply in caught.value.recipients.values()] == [554, 554, 451, 451, 554]
    assert caught.value.transient
    assert caught.value.safe_to_retry


def test_all_recipients_of_all_parts_refused(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=1")
    with pytest.raises(RecipientsRefused, match="all 2 recipients") as caught:
        send(book, to=["no1@example.com", "no2@example.com"])
    assert list(caught.value.recipients) == ["no1@example.com", "no2@example.com"]


def test_a_refused_sender_ends_the_attempts(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.mails = {1: "550 5.7.1 not you"}
    with pytest.raises(SenderRefused) as caught:
        send(book, to=FIVE)
    assert set(caught.value.recipients) == set(FIVE)
    assert book.sessions == [[]]


def test_a_sender_that_is_refused_later(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.mails = {2: "451 4.7.0 slow down"}
    sent = send(book, to=FIVE)
    assert sent.accepted == tuple(FIVE[:2])
    assert {reply.code for reply in sent.refused.values()} == {451}


def test_421_to_a_later_message_is_the_reply_of_the_rest(scripted: Start) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.finals = {2: "421 4.3.2 bye"}
    with scripted(book).connect() as mail:
        sent = mail.send(b"x", FROM, FIVE)
    assert sent.accepted == tuple(FIVE[:2])
    assert {reply.code for reply in sent.refused.values()} == {421}


def test_a_pool_goes_on_after_421_without_sending_twice(scripted: Start) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.finals = {2: "421 4.3.2 bye"}
    with Pool(["127.0.0.1", "localhost"], scripted(book).port, timeout=5) as pool:
        sent = pool.send(b"x", FROM, FIVE)
    assert sent.accepted == tuple(FIVE)
    assert [to for session in book.sessions for to in session] == [FIVE[:2], FIVE[2:4], FIVE[4:]]


def test_a_connection_lost_before_a_later_message(scripted: Start) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.mails = {2: None}
    with scripted(book).connect() as mail, pytest.raises(Disconnected) as caught:
        mail.send(b"x", FROM, FIVE)
    assert not caught.value.after_content
    assert not caught.value.safe_to_retry  # two have it
    assert list(caught.value.recipients) == FIVE[:2]


def test_a_connection_lost_after_a_later_message(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2")
    book.finals = {2: None}
    with pytest.raises(Disconnected) as caught:
        send(book, to=FIVE)
    assert caught.value.after_content
    assert not caught.value.safe_to_retry
    assert list(caught.value.recipients) == FIVE[:2]


@pytest.mark.parametrize("final", [None, "354 what"])
def test_a_recipient_that_may_have_the_message_is_not_called_refused(send: Sender, final: str | None) -> None:
    book = Book(most=2)  # the others get 452 first
    book.finals = {2: final}
    with pytest.raises((Disconnected, PeerProtocolError)) as caught:
        send(book, to=FIVE[:4])
    assert not caught.value.safe_to_retry
    assert {name: reply.code for name, reply in caught.value.recipients.items()} == dict.fromkeys(FIVE[:2], 250)


def test_refusals_stand_when_the_next_transaction_does_not_begin(scripted: Start) -> None:
    book = Book(most=2)
    book.mails = {2: None}
    with scripted(book).connect() as mail:
        sent = mail.send(b"x", FROM, FIVE)
    assert sent.accepted == tuple(FIVE[:2])
    assert {reply.code for reply in sent.refused.values()} == {452}


def test_a_server_that_is_gone_when_the_connection_is_renewed(send: Sender) -> None:
    book = Book("LIMITS RCPTMAX=2 MAILMAX=1")

    def busy(script: Script) -> None:
        script.say("421 4.3.2 busy")

    with pytest.raises(CannotConnect) as caught:
        send(book, busy, to=FIVE)
    assert not caught.value.safe_to_retry
    assert {name: reply.code for name, reply in caught.value.recipients.items()} == dict.fromkeys(FIVE[:2], 250)


# SMTPUTF8


def test_only_recipients_that_need_smtputf8_are_refused_without_it(send: Sender) -> None:
    book = Book()
    sent = send(book, to=["j\u00f6@example.com", *FIVE[:2]])
    assert book.sessions == [[FIVE[:2]]]
    assert sent.accepted == tuple(FIVE[:2])
    assert (reply := sent.refused["j\u00f6@example.com"]).code == 553
    assert reply.enhanced == "5.6.7"


def test_a_sender_that_needs_smtputf8_is_not_offered(send: Sender) -> None:
    book = Book()
    with pytest.raises(NotOffered) as caught:
        send(book, to=["j\u00f6@example.com", *FIVE], sender="j\u00f6@example.com")
    assert caught.value.safe_to_retry
    assert book.sessions == [[]]


def test_low_level_mails_count_for_mailmax(scripted: Start) -> None:
    book = Book("LIMITS MAILMAX=1")
    with scripted(book).connect() as mail:
        mail.begin()
        mail.from_(FROM)
        mail.reset()
        mail.send(b"x", FROM, FIVE[0])
    assert book.sessions == [[], [[FIVE[0]]]]


def test_a_renewed_connection_keeps_its_trace(scripted: Start) -> None:
    shown: list[str] = []
    script, bodies, _ = take("LIMITS MAILMAX=1")
    with scripted(script).connect() as mail:
        mail.trace(shown.append)
        for _ in range(2):
            mail.send(b"x", FROM, FIVE[0])
    assert bodies == [b"x\r\n"] * 2
    assert shown.count("> QUIT") == 2
