"""The header section of a body while it is read: no continuation of a field of ours, and a field that is left out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greensmtp.protocol.header_section import HeaderSection, joint

NAME = b"return-path"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def passed(pieces: Iterable[bytes], without: bytes | None = NAME) -> bytes:
    section = HeaderSection(without)
    whole = list(pieces)
    return b"".join(section.feed(piece, number == len(whole)) for number, piece in enumerate(whole, 1))


def passed_at_every_cut(body: bytes, without: bytes | None = NAME) -> bytes:
    """Return the outcome, which must be the same for the whole, at each cut in two, and byte by byte."""
    whole = passed([body], without)
    for place in range(len(body) + 1):
        assert passed(cut(body, [place]), without) == whole, place
    assert passed([body[index : index + 1] for index in range(len(body))] or [b""], without) == whole
    assert passed([*cut(body, range(len(body))), b""], without) == whole
    return whole


def slowly(body: bytes) -> bytes:
    """Do the same line by line with the whole body."""
    kept: list[bytes] = []
    before, dropping, over = b"\n", False, False
    for line in re.findall(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", body):
        if over or (dropping and line[:1] in (b" ", b"\t")):
            kept += [line] * over
            continue
        if dropping:
            before, dropping = b"\n", False
        field = re.match(rb"([!-9;-~]+)[ \t]*:", line)
        if line in (b"\r\n", b"\n") and before.endswith(b"\n"):
            over = True
        elif field is not None and field[1].lower() == NAME:
            dropping = True
            continue
        elif field is None and not kept:
            kept.append(b"\r\n")
            over = True
        kept.append(line)
        before = line
    return b"".join(kept)


@pytest.mark.parametrize(
    "body",
    [
        b" folded on\r\nSubject: x\r\n\r\nbody\r\n",
        b"\tfolded on\r\n",
        b" \r\n\r\n",
        b"no header\r\n",
        b"no header",
        b"Hello: there".replace(b":", b""),
        b": no name\r\n",
        b"two words: no name\r\n",
        b"\xff: no name\r\n",
        b"\0: no name\r\n",
        b"From",
        b">From",
        b">>>>>>>>>>From jo\r\nSubject: x\r\n\r\n",
        b"x" * 1200 + b": too long a name\r\n",
        b"\rx: a\r\n",
        b"\r",
        b"Return-Path: gone\r\n more\r\nno header\r\nReturn-Path: content\r\n",
        b"Return-Path: gone\r\n\x0bno header\r\n",
    ],
)
def test_a_body_without_a_header_section_gets_an_empty_line_at_every_cut(body: bytes) -> None:
    content = body.removeprefix(b"Return-Path: gone\r\n").removeprefix(b" more\r\n") if b"gone" in body else body
    assert passed_at_every_cut(body) == b"\r\n" + content


@pytest.mark.parametrize("line", [b"From jo@example.com Mon Jan  1 00:00:00 2024", b">>From \xff", b"From a:b"])
@pytest.mark.parametrize("before", [b"", b"Return-Path: gone\r\n"])
def test_an_mbox_line_becomes_a_field_at_every_cut(before: bytes, line: bytes) -> None:
    body = line + b"\r\nSubject: x\r\n\r\nReturn-Path: content\r\n"
    assert passed_at_every_cut(before + body) == b"X-Mailbox-Line: " + body
    assert joint(before + body) == (b"" if before else b"X-Mailbox-Line: ")


def test_the_joint_is_an_empty_line_where_the_body_has_no_header_section() -> None:
    assert joint(b" folded\r\n") == b"\r\n"
    assert joint(b"Subject: x") == joint(b"\r\n") == joint(b"") == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"\r\nbody\r\nReturn-Path: content\r\n",
        b"\n folded\r\n",
        b"Subject: x\r\n\r\nReturn-Path: content\r\n",
        b"Subject: x\n\nReturn-Path: content\n",
        b"Subject: x\n\r\nReturn-Path: content\n",
        b"Subject : x\r\n folded\r\n\tand on\r\n\r\n",
        b"Subject:\r\n",
        b"a:b",
        b"X-Return-Path: x\r\nReturn-Path-X: y\r\nSubject: Return-Path: z\r\n Return-Path: folded\r\n\r\n",
        b"Subject: x\r\nReturn-Pat",
        b"Subject: x\r\nReturn-Path",
        b"Subject: x\r\nReturn-Path  ",
        b"Subject: x\r\nReturn-Path\r\n\r\n",
        b"!\"#$%&'()*+,-./09;<=>?@AZ[\\]^_`az{|}~: any name\r\n\r\n",
    ],
)
def test_everything_else_is_passed_on_as_it_is_at_every_cut(body: bytes) -> None:
    assert passed_at_every_cut(body) == body


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"Return-Path: <a@b>\r\nSubject: x\r\n\r\n", b"Subject: x\r\n\r\n"),
        (b"Subject: x\r\nReturn-Path: <a@b>\r\n\r\nbody", b"Subject: x\r\n\r\nbody"),
        (b"A: 1\r\nRETURN-path \t :\r\n <a\r\n\t@b>\r\nB: 2\r\n\r\n", b"A: 1\r\nB: 2\r\n\r\n"),
        (b"Return-Path: 1\r\nReturn-Path: 2\r\nA: 1\r\nreturn-path:3\r\nB: 2\r\n\r\n", b"A: 1\r\nB: 2\r\n\r\n"),
        (b"Return-Path: <a@b>\r\n\r\nReturn-Path: content\r\n", b"\r\nReturn-Path: content\r\n"),
        (b"Return-Path: <a@b>\r\n", b""),
        (b"Return-Path: <a@b>", b""),
        (b"Return-Path:", b""),
        (b"A: 1\r\nReturn-Path: no end", b"A: 1\r\n"),
        (b"A: 1\nReturn-Path: <a@b>\n folded\nB: 2\n\nReturn-Path: content\n", b"A: 1\nB: 2\n\nReturn-Path: content\n"),
        (b"A: 1\rReturn-Path: <a@b>\rB: 2\r\n\r\n", b"A: 1\rB: 2\r\n\r\n"),
        (b"A: 1\r\n\r\rReturn-Path: content", b"A: 1\r\n\r\r"),
        (b"A: 1\r\ngarbage\r\nReturn-Path: <a@b>\r\n\r\n", b"A: 1\r\ngarbage\r\n\r\n"),
        (b"A: 1\r\nReturn-Path: x\r\n \r\n \r\n\r\nReturn-Path: content", b"A: 1\r\n\r\nReturn-Path: content"),
    ],
)
def test_a_field_is_left_out_only_of_the_header_section_at_every_cut(body: bytes, kept: bytes) -> None:
    assert passed_at_every_cut(body) == kept


def test_without_a_name_nothing_is_left_out() -> None:
    body = b"Return-Path: <a@b>\r\nReturn-Path: <c@d>\r\n\r\n"
    assert passed_at_every_cut(body, None) == body


PARTS = [b"Return-Path", b"return-path:", b" ", b"\t", b":", b"\r\n", b"\n", b"\r", b"A: x", b"text", b"R", b"\r\n\r\n"]
BODIES = st.lists(st.sampled_from(PARTS), max_size=14).map(b"".join)


@given(BODIES, st.lists(st.integers(0, 80), max_size=6))
@example(b"A: x\r\rreturn-path:\n\rreturn-path:", [9])
def test_any_body_is_handled_as_line_by_line(body: bytes, places: list[int]) -> None:
    assert passed(cut(body, places)) == slowly(body)


@given(BODIES)
def test_no_kept_line_can_continue_a_field_of_ours(body: bytes) -> None:
    assert not passed([body]).startswith((b" ", b"\t"))


@given(BODIES, st.lists(st.integers(0, 80), max_size=6))
def test_a_filtered_body_is_not_changed_again(body: bytes, places: list[int]) -> None:
    once = passed(cut(body, places))
    assert passed([once]) == once


def test_a_hostile_section_holds_back_no_more_than_a_name() -> None:
    section = HeaderSection(NAME)
    out = section.feed(b"A: 1\r\nReturn-Path" + b" " * 900)
    assert out == b"A: 1\r\n"
    assert section.feed(b" " * 5_000 + b": <a@b>\r\nB: 2\r\n\r\n", True) == b"B: 2\r\n\r\n"
    section = HeaderSection(NAME)
    assert section.feed(b"x" * 5_000) == b"\r\n" + b"x" * 5_000
