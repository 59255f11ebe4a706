"""Fuzzing: sessions that a model of RFC 5321 predicts, and plain garbage; cut anywhere, with acks at once and late."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.attacks.conftest import Play

#: The same cases in every run: a suite that fails now and then is not looked at. How many depends on the profile.
fuzz = settings(
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


#: 552 or 554.
EITHER = 550


class Model:
    """Predicts the replies and messages of a session."""

    def __init__(self) -> None:
        self.wire = bytearray()
        self.codes = [220]
        self.messages: list[bytes] = []
        self.senders: list[str] = []
        self.state = "connected"
        self.chunks = bytearray()

    def say(self, line: bytes, code: int) -> None:
        self.wire += line + b"\r\n"
        self.codes.append(code)

    def reset(self) -> None:
        if self.state != "connected":
            self.state = "greeted"
        self.chunks.clear()

    # What a peer may say; each is one step.

    def ehlo(self) -> None:
        self.say(b"EHLO relay.example", 250)
        self.state = "greeted"
        self.reset()

    def mail(self) -> None:
        code = 250 if self.state == "greeted" else 503
        self.say(b"MAIL FROM:<sender@example.org> SIZE=10", code)
        if code == 250:
            self.state = "sender"
            self.senders.append("sender@example.org")

    def mail_too_large(self) -> None:
        self.say(b"MAIL FROM:<sender@example.org> SIZE=1001", 552 if self.state == "greeted" else 503)

    def mail_with_unknown_parameter(self) -> None:
        self.say(b"mail from:<sender@example.org> X=1", 555 if self.state == "greeted" else 503)

    def mail_malformed(self) -> None:
        self.say(b"MAIL FROM:sender@example.org", 501)

    def rcpt(self) -> None:
        code = 250 if self.state in ("sender", "recipients") else 503
        self.say(b"RCPT TO:<@ignored.example:recipient@example.com>", code)
        if code == 250:
            self.state = "recipients"

    def rcpt_malformed(self) -> None:
        self.say(b"RCPT TO:<a@b@c>", 501)

    def rset(self) -> None:
        self.say(b"RSET", 250)
        self.reset()

    def noop(self) -> None:
        self.say(b"noop with words", 250)

    def help(self) -> None:
        self.say(b"HELP", 214)

    def verify(self) -> None:
        self.say(b"VRFY somebody", 252)

    def unknown(self) -> None:
        self.say(b"XYZZY", 500)

    def not_implemented(self) -> None:
        self.say(b"ETRN x", 502)

    def starttls(self) -> None:
        # There is no certificate: it is not implemented, or between two chunks out of sequence.
        self.say(b"STARTTLS", 503 if self.state == "chunks" else 502)

    def too_long(self) -> None:
        self.say(b"MAIL FROM:<" + b"x" * 700 + b"\nMAIL FROM:<evil@example.net>", 500)

    def bare_newline(self) -> None:
        self.say(b"NOOP\nMAIL FROM:<evil@example.net>\nRSET", 500)

    def no_text(self) -> None:
        self.say(b"NOOP \0\rMAIL FROM:<evil@example.net>\xff", 501)

    def data(self, body: bytes) -> None:
        if self.state != "recipients":
            self.say(b"DATA", 503)
            return
        self.say(b"DATA", 354)
        self.wire += body + b".\r\n"
        self.codes.append(0)
        self.take(b"\r\n".join(line.removeprefix(b".") for line in body.split(b"\r\n")))

    def take(self, content: bytes) -> None:
        rest = content.replace(b"\r\n", b"")
        faults = [554] * (b"\r" in rest or b"\n" in rest) + [552] * (len(content) > 1_000)
        if faults:
            # Which of two comes first is a matter of the cuts.
            self.codes[-1] = faults[0] if len(faults) == 1 else EITHER
        else:
            self.codes[-1] = 250
            self.messages.append(content)
        self.reset()

    def chunk(self, octets: bytes, last: bool) -> None:
        code = 250 if self.state in ("recipients", "chunks") else 503
        self.say(b"BDAT %d%s" % (len(octets), b" LAST" if last else b""), code)
        self.wire += octets
        if code != 250:
            return
        self.state = "chunks"
        self.chunks += octets
        if last:
            self.take(bytes(self.chunks))

    def chunk_malformed(self) -> None:
        self.say(b"BDAT 5x", 501)
        if self.state in ("recipients", "chunks"):
            self.reset()


Step = Callable[[Model], None]

STEPS: list[Step] = [
    Model.ehlo,
    Model.mail,
    Model.mail_too_large,
    Model.mail_with_unknown_parameter,
    Model.mail_malformed,
    Model.rcpt,
    Model.rcpt_malformed,
    Model.rset,
    Model.noop,
    Model.help,
    Model.verify,
    Model.unknown,
    Model.not_implemented,
    Model.starttls,
    Model.too_long,
    Model.bare_newline,
    Model.no_text,
    Model.chunk_malformed,
]

PIECES = [
    b"text",
    b"\r\n",
    b"\n",
    b"\r",
    b".",
    b"\0",
    b"\r\n.",
    b"\r\n..",
    b"\r\n.\n",
    b"\n.\r\n",
    b"MAIL FROM:<evil@example.net>\r\n",
    b"BDAT 5 LAST\r\n",
    b"QUIT\r\n",
    b"x" * 1_001,
    b"\xff\xc3",
]


def ends_too_soon(body: bytes) -> bool:
    return b"\r\n.\r\n" in b"\r\n" + body


def as_body(pieces: list[bytes]) -> bytes:
    body = b"".join(pieces)
    return body if body.endswith(b"\r\n") or not body else body + b"\r\n"


clean = st.lists(st.sampled_from([b"text", b".", b"\0", b"\r\n", b"\r\n.", b"\r\n..", *PIECES[-5:]]), max_size=8)
dirty = st.lists(st.sampled_from(PIECES), max_size=8)
bodies = st.one_of(clean, dirty).map(as_body).filter(lambda body: not ends_too_soon(body))


def data(body: bytes) -> Step:
    return lambda model: model.data(body)


def chunk(octets: bytes, last: bool) -> Step:
    return lambda model: model.chunk(octets, last)


def transaction(end: Step) -> list[Step]:
    return [Model.ehlo, Model.mail, Model.rcpt, end]


one_step = st.one_of(
    st.sampled_from(STEPS),
    st.builds(data, bodies),
    st.builds(chunk, dirty.map(b"".join), st.booleans()),
)
#: Alone, single steps seldom come to a message.
some_steps = st.one_of(
    one_step.map(lambda step: [step]),
    st.builds(data, bodies).map(transaction),
    st.builds(chunk, dirty.map(b"".join), st.booleans()).map(transaction),
)
conversations = st.lists(some_steps, max_size=12).map(lambda groups: [step for group in groups for step in group])


class How(NamedTuple):
    late: bool
    lazy: bool


hows = st.sampled_from([How(False, False), How(True, False), How(False, True)])
cuts = st.lists(st.floats(0, 1), max_size=12)


@fuzz
@given(steps=conversations, where=cuts, how=hows)
def test_a_session_goes_as_the_rfc_predicts(play: Play, steps: list[Step], where: list[float], how: How) -> None:
    model = Model()
    for step in steps:
        step(model)
    model.say(b"QUIT", 221)
    wire = bytes(model.wire)
    outcome = play(
        wire,
        at=[int(place * len(wire)) for place in where],
        late=how.late,
        lazy=how.lazy,
        max_message_size=1_000,
        bare_newlines="reject",
        max_errors=10_000,
        max_idle_commands=10_000,
    )
    codes = [
        EITHER if expected == EITHER and code in (552, 554) else code
        for code, expected in itertools.zip_longest(outcome.codes, model.codes)
    ]
    assert codes == model.codes
    assert outcome.messages == model.messages
    assert outcome.senders == model.senders


FRAGMENTS = [
    *PIECES,
    b"EHLO x\r\n",
    b"LHLO x\r\n",
    b"HELO x\r\n",
    b"MAIL FROM:<a@example.org>\r\n",
    b"MAIL FROM:<>\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"DATA\r\n",
    b".\r\n",
    b"BDAT 10 LAST\r\n",
    b"BDAT 3\r\n",
    b"BDAT 0\r\n",
    b"BDAT 99999999999999999999\r\n",
    b"RSET\r\n",
    b"NOOP",
    b"STARTTLS\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b" ",
    b"<",
    b'"',
    b"\\",
    b"\t",
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"x" * 13_000 + b"\r\n",
]
garbage = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=20)), max_size=30).map(b"".join)


@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
@fuzz
@given(wire=garbage, where=cuts, how=hows)
@example(
    wire=b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nBDAT 3\r\nabBDAT 0\r\n", where=[0.5], how=How(True, False)
)
def test_garbage_has_the_same_outcome_however_it_is_cut(
    play: Play, lmtp: bool, wire: bytes, where: list[float], how: How
) -> None:
    for bare_newlines in ("normalize", "reject", "keep"):
        whole = play(wire, lmtp=lmtp, bare_newlines=bare_newlines)
        pieces = play(
            wire,
            at=[int(place * len(wire)) for place in where],
            late=how.late,
            lazy=how.lazy,
            lmtp=lmtp,
            bare_newlines=bare_newlines,
        )
        assert pieces == whole
        assert whole.codes[0] == 220
        # A message needs an end, and every end a message.
        assert len(whole.messages) <= whole.codes.count(250)
        assert len(whole.messages) <= wire.count(b"DATA\r\n") + wire.count(b"LAST")
