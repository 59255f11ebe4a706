"""SMTP smuggling (CVE-2023-51764 and its family): nothing but CRLF.CRLF ends data, wherever the input is cut."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.attacks.conftest import Play, PlayCut

ENVELOPE = b"EHLO relay.example\r\nMAIL FROM:<sender@example.org>\r\nRCPT TO:<recipient@example.com>\r\n"
INNER = b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nInner\r\n"

#: What may stand before a dot and behind it, for a server that is not strict, like an end of line.
NEARLY_NEWLINES = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\r",
    b"\n\r",
    b"\r\r\n",
    b"\r\n\n",
    b"\r\n\r",
    b"\0",
    b"\0\r\n",
    b"\r\n\0",
    b"\r\0\n",
    b"\0\n",
    b"\n\0",
    b"\r\0",
    b"\x0b",
    b"\x0c",
    b"\x85",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b" \r\n",
    b"\r\n ",
    b"",
]


def ends_data(body: bytes) -> bool:
    """Return True if the body has an end by RFC 5321 section 4.1.1.4. The CRLF of DATA stands before the body."""
    return b"\r\n.\r\n" in b"\r\n" + body


def unstuffed(body: bytes) -> bytes:
    """Remove dot-stuffing as RFC 5321 section 4.5.2 says."""
    return b"\r\n".join(line.removeprefix(b".") for line in body.split(b"\r\n"))


def normalized(body: bytes) -> bytes:
    """Normalize as Postfix 3.9 does: a bare LF ends a line, and a bare CR is a space."""
    return re.sub(rb"\r(?!\n)", b" ", re.sub(rb"\r{0,3}\n", b"\r\n", body))


def is_clean(body: bytes) -> bool:
    """Return True if CR and LF occur in pairs only."""
    rest = body.replace(b"\r\n", b"")
    return b"\r" not in rest and b"\n" not in rest


VECTORS = [
    before + b"." + after
    for before, after in itertools.product(NEARLY_NEWLINES, NEARLY_NEWLINES)
    if not ends_data(b"Outer" + before + b"." + after + INNER)
]


def wire_of(outer: bytes, vector: bytes) -> bytes:
    return ENVELOPE + b"DATA\r\n" + outer + vector + INNER + b".\r\nQUIT\r\n"


#: In one mode each, or in every mode.
SHARES = [5, pytest.param(1, marks=pytest.mark.exhaustive)]
MODES = list(itertools.product([False, True], ["normalize", "reject", "keep"]))


@pytest.mark.parametrize("mode", range(len(MODES)), ids=lambda mode: "-".join(map(str, MODES[mode])))
@pytest.mark.parametrize("share", SHARES, ids=["one in five", "every"])
def test_no_mix_of_cr_lf_and_nul_around_a_dot_ends_data(play: Play, share: int, mode: int) -> None:
    late, bare_newlines = MODES[mode]
    assert len(VECTORS) > 400
    cases = [(vector, outer) for vector in VECTORS for outer in (b"Outer", b"")]
    for vector, outer in cases[mode % share :: share]:
        body = outer + vector + INNER
        if ends_data(body):
            continue
        outcome = play(wire_of(outer, vector), late=late, bare_newlines=bare_newlines)
        assert outcome.senders == ["sender@example.org"], vector
        if bare_newlines != "reject" or is_clean(unstuffed(body)):
            assert outcome.codes == [220, 250, 250, 250, 354, 250, 221], vector
            content = unstuffed(body)
            assert outcome.messages == [normalized(content) if bare_newlines == "normalize" else content], vector
            assert bare_newlines == "keep" or is_clean(outcome.messages[0]), vector
            assert outcome.envelopes == [("sender@example.org", ("recipient@example.com",))], vector
        else:
            assert outcome.codes == [220, 250, 250, 250, 354, 554, 221], vector
            assert outcome.messages == [], vector


@pytest.mark.parametrize("bare_newlines", ["normalize", "reject", "keep"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(
    "vector",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\n.\r\r\n",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n.\r\0\n",
        b"\r\0\n.\r\n",
        b"\n\n.\r\n",
        b"\r\n..\r\n",
        b"\r\n.\n\r\n",
    ],
    ids=repr,
)
def test_no_cut_makes_an_end_of_what_is_none(play_cut: PlayCut, late: bool, bare_newlines: str, vector: bytes) -> None:
    wire = wire_of(b"Outer", vector)
    dot = len(ENVELOPE + b"DATA\r\nOuter")
    outcome = play_cut(wire, start=dot - 1, stop=dot + len(vector) + 2, late=late, bare_newlines=bare_newlines)
    assert outcome.senders == ["sender@example.org"]
    assert len(outcome.messages) == (bare_newlines != "reject" or is_clean(unstuffed(b"Outer" + vector + INNER)))


@pytest.mark.parametrize("vector", [b".\n", b".\r", b".\0\r\n", b"\n.\r\n", b"\r.\r\n", b"..\r\n"], ids=repr)
def test_no_cut_makes_an_end_of_a_first_line_that_is_none(play_cut: PlayCut, vector: bytes) -> None:
    start = len(ENVELOPE)
    outcome = play_cut(
        wire_of(b"", vector), start=start, stop=start + len(b"DATA\r\n" + vector) + 2, bare_newlines="keep"
    )
    assert outcome.messages == [unstuffed(vector + INNER)]
    assert outcome.senders == ["sender@example.org"]


@pytest.mark.parametrize("bare_newlines", ["normalize", "reject", "keep"])
@pytest.mark.parametrize("how", [{}, {"late": True}, {"lazy": True}], ids=["at once", "late", "lazy"])
def test_two_messages_in_one_batch_are_two_at_every_cut(
    play_cut: PlayCut, how: dict[str, bool], bare_newlines: str
) -> None:
    wire = (
        ENVELOPE + b"DATA\r\n..dots\r\n...\r\nend.\r\n.\r\n"
        b"MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n.\r\nNOOP\r\nQUIT\r\n"
    )
    outcome = play_cut(wire, bare_newlines=bare_newlines, **how)
    assert outcome.messages == [b".dots\r\n..\r\nend.\r\n", b""]
    assert outcome.envelopes == [("sender@example.org", ("recipient@example.com",)), ("", ("postmaster",))]
    assert outcome.codes == [220, 250, 250, 250, 354, 250, 250, 250, 354, 250, 250, 221]


def test_a_refused_body_ends_at_its_true_end_at_every_cut(play_cut: PlayCut) -> None:
    wire = (
        ENVELOPE + b"DATA\r\nbare\nnewline\n.\nRSET\r\n.\r\n"
        b"MAIL FROM:<next@example.org>\r\nRCPT TO:<recipient@example.com>\r\nDATA\r\nnext\r\n.\r\nQUIT\r\n"
    )
    outcome = play_cut(wire, start=len(ENVELOPE), bare_newlines="reject")
    assert outcome.codes == [220, 250, 250, 250, 354, 554, 250, 250, 354, 250, 221]
    assert outcome.messages == [b"next\r\n"]


def test_a_chunk_is_counted_and_not_scanned(play_cut: PlayCut) -> None:
    body = b"Outer\r\n.\r\n" + INNER + b".\r\n"
    wire = ENVELOPE + b"BDAT %d LAST\r\n" % len(body) + body + b"QUIT\r\n"
    outcome = play_cut(wire, start=len(ENVELOPE), step=3)
    assert outcome.messages == [body]
    assert outcome.senders == ["sender@example.org"]
    assert outcome.codes == [220, 250, 250, 250, 250, 221]


@pytest.mark.parametrize("end", [b"\n.\n", b"\r.\r", b"\r\n.\n", b"\n.\r\n", b"\r\n.\r", b"\r\n."], ids=repr)
def test_a_body_without_a_true_end_is_never_delivered(play: Play, end: bytes) -> None:
    outcome = play(ENVELOPE + b"DATA\r\nOuter" + end, bare_newlines="keep")
    assert outcome.codes == [220, 250, 250, 250, 354]
    assert outcome.messages == []


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\r\n", b"\n\r"], ids=repr)
def test_data_itself_ended_by_something_else_starts_no_body(play: Play, newline: bytes) -> None:
    outcome = play(ENVELOPE + b"DATA" + newline + b"Subject: no body\r\n.\r\nQUIT\r\n")
    assert 354 not in outcome.codes
    assert outcome.messages == []


CHUNKED = b"Subject: x\r\n\r\nOuter\n.\nInner\rend\r\n"


def in_chunks(body: bytes, parameter: bytes = b"", first: int = 20) -> bytes:
    """Return a session: the body in two chunks, and another transaction."""
    envelope = ENVELOPE.replace(b"example.org>", b"example.org>" + parameter)
    return (
        envelope
        + b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (first, body[:first], len(body) - first, body[first:])
        + b"MAIL FROM:<next@example.org>\r\nRCPT TO:<b@example.com>\r\nBDAT 4 LAST\r\nok\r\nQUIT\r\n"
    )


@pytest.mark.parametrize("parameter", [b"", b" BODY=7BIT", b" BODY=8BITMIME", b" body=8bitmime"])
@pytest.mark.parametrize("bare_newlines", ["normalize", "reject", "keep"])
def test_bare_newlines_in_chunks_are_treated_like_those_in_data_at_every_cut(
    play_cut: PlayCut, bare_newlines: str, parameter: bytes
) -> None:
    outcome = play_cut(in_chunks(CHUNKED, parameter), start=len(ENVELOPE), step=3, bare_newlines=bare_newlines)
    refused = bare_newlines == "reject"
    assert outcome.codes == [220, 250, 250, 250, 250, 554 if refused else 250, 250, 250, 250, 221]
    content = normalized(CHUNKED) if bare_newlines == "normalize" else CHUNKED
    assert outcome.messages == [*([] if refused else [content]), b"ok\r\n"]


@pytest.mark.parametrize("bare_newlines", ["normalize", "reject", "keep"])
@pytest.mark.parametrize("parameter", [b" BODY=BINARYMIME", b" body=binarymime"])
def test_a_binary_body_is_handed_on_unchanged(play_cut: PlayCut, bare_newlines: str, parameter: bytes) -> None:
    outcome = play_cut(
        in_chunks(CHUNKED, parameter),
        start=len(ENVELOPE),
        step=5,
        bare_newlines=bare_newlines,
        max_body_line_length=78,
    )
    assert outcome.codes == [220, 250, 250, 250, 250, 250, 250, 250, 250, 221]
    assert outcome.messages == [CHUNKED, b"ok\r\n"]


@pytest.mark.parametrize("body", [b"abc\r", b"\r", b"abc\r\r", b"a\r\n\r"])
def test_a_cr_at_the_very_end_of_a_chunked_body_is_a_bare_one(play_cut: PlayCut, body: bytes) -> None:
    for bare_newlines, code in (("normalize", 250), ("reject", 554)):
        outcome = play_cut(in_chunks(body, first=1), start=len(ENVELOPE), step=2, bare_newlines=bare_newlines)
        assert outcome.codes == [220, 250, 250, 250, 250, code, 250, 250, 250, 221]
        assert all(map(is_clean, outcome.messages))


def test_a_line_too_long_is_refused_in_chunks_too(play_cut: PlayCut) -> None:
    outcome = play_cut(in_chunks(b"x" * 100 + b"\r\n"), start=len(ENVELOPE), step=7, max_body_line_length=78)
    assert outcome.codes == [220, 250, 250, 250, 250, 554, 250, 250, 250, 221]
    assert outcome.messages == [b"ok\r\n"]


@pytest.mark.parametrize("sender", [b"<>", b"<a@example.org>"])
def test_data_cannot_carry_a_binary_body_whatever_the_sender(play: Play, sender: bytes) -> None:
    outcome = play(
        b"EHLO x\r\nMAIL FROM:"
        + sender
        + b" BODY=BINARYMIME\r\nRCPT TO:<b@example.com>\r\nDATA\r\nBDAT 2 LAST\r\nokQUIT\r\n"
    )
    assert outcome.codes == [220, 250, 250, 250, 503, 250, 221]
    assert outcome.messages == [b"ok"]
