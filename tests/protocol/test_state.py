"""The table of refusals, state by state and verb by verb (RFC 5321 section 4.1.4, RFC 3030 section 2)."""

from __future__ import annotations

import pytest

from greensmtp.protocol import canned
from greensmtp.protocol.command import PARSERS
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import REFUSALS, State

#: "ok", or why not: no greeting yet, no or one transaction, no recipient, a body in chunks, within a transaction.
GRID = """
          CONNECTED  GREETED  SENDER   RECIPIENTS  CHUNKS
XCLIENT   ok         ok       in       in          in
XFORWARD  ok         ok       in       in          in
HELO      ok         ok       ok       ok          ok
EHLO      ok         ok       ok       ok          ok
LHLO      ok         ok       ok       ok          ok
MAIL      hello      ok       nested   nested      chunks
RCPT      hello      mail     ok       ok          chunks
DATA      hello      mail     rcpt     ok          chunks
BDAT      hello      mail     rcpt     ok          ok
RSET      ok         ok       ok       ok          ok
NOOP      ok         ok       ok       ok          ok
VRFY      ok         ok       ok       ok          ok
EXPN      ok         ok       ok       ok          ok
HELP      ok         ok       ok       ok          ok
QUIT      ok         ok       ok       ok          ok
STARTTLS  hello      ok       ok       ok          chunks
ETRN      hello      ok       nested   nested      chunks
"""

REASONS: dict[str, Reply | None] = {
    "ok": None,
    "in": canned.PROXY_IN_TRANSACTION,
    "hello": canned.SAY_HELLO_FIRST,
    "nested": canned.NESTED_MAIL,
    "mail": canned.NEED_MAIL,
    "rcpt": canned.NEED_RCPT,
    "chunks": canned.IN_CHUNKS,
}

STATES, *ROWS = (line.split() for line in GRID.strip().splitlines())
CELLS = [(verb, State[state], word) for verb, *words in ROWS for state, word in zip(STATES, words, strict=True)]


@pytest.mark.parametrize(("verb", "state", "word"), CELLS)
def test_a_command_in_a_state_is_allowed_or_refused(verb: str, state: State, word: str) -> None:
    assert REFUSALS.get(verb, {}).get(state) is REASONS[word]


def test_the_grid_has_every_verb_and_every_state() -> None:
    verbs = {*PARSERS, "XCLIENT", "XFORWARD"}
    assert {verb for verb, *_ in ROWS} == verbs
    assert [State[name] for name in STATES] == list(State)
    assert set(REFUSALS) <= verbs


def test_every_refusal_is_503() -> None:
    assert {reply.code for row in REFUSALS.values() for reply in row.values()} == {503}


def test_states_are_in_the_order_of_a_transaction() -> None:
    assert State.CONNECTED < State.GREETED < State.SENDER < State.RECIPIENTS < State.CHUNKS
