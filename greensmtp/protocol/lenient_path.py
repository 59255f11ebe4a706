"""MAIL and RCPT as devices write them that do not follow RFC 5321: rewritten so that the strict parser accepts them.

The rules of this file:

- ``LENIENCIES`` has a row for each departure from the grammar: the devices that need it, a pattern, and what replaces
  its match. They are applied one after another, in this order.
- The result goes to the strict parser, so a lenient server accepts no address that a strict one could not. A local part
  with misplaced dots is quoted, which RFC 5321 section 4.1.2 allows: ``"a..b"@example.com``.
- A server comes here only with a command that is malformed: a lenient one to accept it, a strict one to say in its
  reply what is wrong (``explain``).
- Every pattern runs in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from greensmtp.protocol import canned
from greensmtp.protocol.command import PARSERS, Command
from greensmtp.protocol.reply import Reply

_BEGINNING = r"\A((?:FROM|TO):)"
_INSIDE = r'[^<>"\s]'


class Leniency(NamedTuple):
    """A row of the table."""

    name: str
    #: The kind of device or program that needs it.
    devices: str
    pattern: str
    replacement: str


LENIENCIES = (
    Leniency(
        "blanks around the colon",
        "scripts written by hand, programmable controllers",
        r"\A(FROM|TO) *: *",
        r"\1:",
    ),
    Leniency(
        "no angle brackets",
        "alarm panels, power supplies and other embedded mailers",
        rf"{_BEGINNING}({_INSIDE}++)( .*)?",
        r"\1<\2>\3",
    ),
    Leniency(
        "parameters inside the angle brackets",
        "scripts that put brackets around all that follows the colon",
        rf"{_BEGINNING}<({_INSIDE}++) +([^<>\"]*+)>(.*)",
        r"\1<\2> \3\4",
    ),
    Leniency(
        "blanks inside the angle brackets",
        "multifunction printers whose address fields were filled in with blanks",
        rf"{_BEGINNING}< *({_INSIDE}++) *>(.*)",
        r"\1<\2>\3",
    ),
    Leniency(
        "parameters without a blank before them",
        "old mail clients on embedded systems",
        rf"{_BEGINNING}(<[^<>]*+>)([^ ].*)",
        r"\1\2 \3",
    ),
    Leniency(
        "a dot at the beginning or the end of the local part, or two in a row",
        "subscribers of Japanese mobile carriers, who were given such addresses",
        rf"{_BEGINNING}<((?=\.|[^@]*?\.[.@])[^<>\"\s@,:;()\[\]\\]++)@({_INSIDE}++)>(.*)",
        r'\1<"\2"@\3>\4',
    ),
    Leniency(
        "blanks around the = of a parameter",
        "scripts written by hand",
        r"(?<=[A-Za-z0-9-]) *= *",
        "=",
    ),
)


def rewrite(argument: str) -> str:
    """Return the argument of MAIL or RCPT as the strict parser accepts it, if one of LENIENCIES helps."""
    if '"' in argument:
        return argument  # a quoted local part may hold all that the patterns look for
    for leniency in LENIENCIES:
        argument = re.sub(leniency.pattern, leniency.replacement, argument, flags=re.IGNORECASE)
    return argument


def explain(command: Command) -> Reply:
    """Return the refusal of a malformed MAIL or RCPT, with what is wrong where a lenient server would accept it."""
    error = command.error
    assert error is not None
    if error in (canned.NOT_TEXT, canned.ARGUMENT_NOT_TEXT) or '"' in command.argument:
        return error
    if PARSERS[command.verb](command.verb, rewrite(command.argument)).error is not None:
        return error
    names, argument = [], command.argument
    for leniency in LENIENCIES:
        before, argument = argument, re.sub(leniency.pattern, leniency.replacement, argument, flags=re.IGNORECASE)
        if argument != before:
            names.append(leniency.name)
    return Reply(error.code, f"{error.text} ({', '.join(names)})", enhanced=error.enhanced)


def _lenient(parse: Callable[[str, str], Command]) -> Callable[[str, str], Command]:
    def parse_leniently(verb: str, argument: str) -> Command:
        command = parse(verb, argument)
        if command.error is None:
            return command
        rewritten = parse(verb, rewrite(argument))
        if rewritten.error is not None:
            return command  # its error says what is wrong with what the client has sent
        rewritten.argument = argument
        return rewritten

    return parse_leniently


#: For ``parse_command``, in place of its strict parsers.
LENIENT_PARSERS: Mapping[str, Callable[[str, str], Command]] = {
    **PARSERS,
    "MAIL": _lenient(PARSERS["MAIL"]),
    "RCPT": _lenient(PARSERS["RCPT"]),
}
