"""The line of a TOML text's key, for every way of writing it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.config.locations import KeyPath, TomlError, TomlText

TEXT = '''\
# a comment
hostname = "mx.example.com"

dotted.in.depth = 1
"quoted key" = """
hostname = 7
[limits]
"""
numbers = [
    1,
    2,
]
inline = { one = 1, two = [{ three = 3 }] }

[limits]
max_errors = 3

  [[listeners]]
  url = "one"
  [listeners.limits]
  max_errors = 4

[[listeners]]
url = "two"
limits.max_errors = 5
[[listeners.middleware]]
use = "a"
[[listeners.middleware]]
use = "b"
[last]'''

PLACES: list[tuple[KeyPath, int]] = [
    (("hostname",), 2),
    (("dotted",), 4),
    (("dotted", "in", "depth"), 4),
    (("quoted key",), 5),
    (("numbers",), 9),
    (("numbers", 1), 9),
    (("inline", "two", 0, "three"), 13),
    (("limits",), 15),
    (("limits", "max_errors"), 16),
    (("listeners",), 18),
    (("listeners", 0), 18),
    (("listeners", 0, "url"), 19),
    (("listeners", 0, "limits"), 20),
    (("listeners", 0, "limits", "max_errors"), 21),
    (("listeners", 1), 23),
    (("listeners", 1, "url"), 24),
    (("listeners", 1, "limits", "max_errors"), 25),
    (("listeners", 1, "middleware", 0, "use"), 27),
    (("listeners", 1, "middleware", 1), 28),
    (("listeners", 1, "middleware", 1, "use"), 29),
    (("last",), 30),
    # what is not there: the table that lacks it
    (("limits", "max_size"), 15),
    (("listeners", 1, "middleware", 1, "level"), 28),
    (("hostname", "more"), 2),
    (("numbers", 7), 9),
    (("nothing",), 1),
    ((), 1),
]


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(("path", "line"), PLACES)
def test_the_line_of_a_key_is_where_it_begins(path: KeyPath, line: int, ends: str) -> None:
    assert TomlText(TEXT.replace("\n", ends)).line_of(path) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb =\n", 2),
        ("a = 1\nb = [1,\n2\n", 4),
        ('a = """\n\n', 3),
        ("a = 1\n\na = 2\n", 3),
        ("[a]\nb = 1\n[a]\n", 3),
        ("a = 1\n\nb = \x00\n", 3),
        ("a = 1\rb = 2\n", 1),
        ("=", 1),
        ("a = " + "[" * 50_000, 1),
    ],
)
def test_a_syntax_error_is_reported_with_its_line(text: str, line: int) -> None:
    with pytest.raises(TomlError) as caught:
        TomlText(text)
    assert caught.value.line == line
    assert "(at" not in str(caught.value)


KEYS = st.text(st.sampled_from("ab -.\n\"'#[]=é"), min_size=1, max_size=5)
FILLERS = st.sampled_from(["", "# [comment]", "x{} = 1", 'x{} = """\nkey = 1\n[[table]]\n"""', "x{} = [\n1,\n]"])


@given(st.lists(FILLERS, max_size=8), st.lists(FILLERS, max_size=8), KEYS)
def test_surrounding_text_does_not_change_the_line(before: list[str], after: list[str], key: str) -> None:
    lines = [filler.format(number) for number, filler in enumerate(before)]
    quoted = '"' + "".join(f"\\U{ord(character):08X}" for character in key) + '"'
    rest = [filler.format(number) for number, filler in enumerate(after, 100)]
    text = TomlText("\n".join([*lines, f"[t.{quoted}]", *rest]))
    assert text.line_of(("t", key)) == "\n".join([*lines, ""]).count("\n") + 1


APART = """\
[[d]]
x = 1
[a.b]
y = true
[[d]]
x = 2
[a]
e = false
[[d]]
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("d",), 1),
        (("d", 1), 5),
        (("d", 1, "x"), 6),
        (("d", 2), 9),
        (("a", "b"), 3),
        (("a", "b", "y"), 4),
        (("a", "e"), 8),
    ],
)
def test_parts_of_a_table_that_are_apart_have_their_own_lines(path: KeyPath, line: int) -> None:
    assert TomlText(APART).line_of(path) == line


def test_a_long_file_is_handled_quickly() -> None:
    text = TomlText("".join(f"[[listeners]]\nurl = '{number}'\n" for number in range(1500)))
    assert text.line_of(("listeners", 1400, "url")) == 2802
