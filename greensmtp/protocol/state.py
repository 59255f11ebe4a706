"""The transition table (RFC 5321 section 4.1.4): which command may come in which state."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply


class State(IntEnum):
    """Where a session stands."""

    CONNECTED = 0  #: nobody has said hello
    GREETED = 1  #: no transaction
    SENDER = 2  #: MAIL was accepted
    RECIPIENTS = 3  #: at least one RCPT was accepted
    CHUNKS = 4  #: a body is coming in by BDAT, and is not complete


_BEFORE_HELLO = {State.CONNECTED: canned.SAY_HELLO_FIRST}
_IN_CHUNKS = {State.CHUNKS: canned.IN_CHUNKS}

#: verb -> state -> the refusal. What is not named here is allowed at any time: HELO, RSET, NOOP, VRFY, EXPN,
#: HELP, QUIT.
REFUSALS: Mapping[str, Mapping[State, Reply]] = {
    "MAIL": {
        **_BEFORE_HELLO,
        State.SENDER: canned.NESTED_MAIL,
        State.RECIPIENTS: canned.NESTED_MAIL,
        **_IN_CHUNKS,
    },
    "RCPT": {**_BEFORE_HELLO, State.GREETED: canned.NEED_MAIL, **_IN_CHUNKS},
    "DATA": {
        **_BEFORE_HELLO,
        State.GREETED: canned.NEED_MAIL,
        State.SENDER: canned.NEED_RCPT,
        **_IN_CHUNKS,
    },
    "BDAT": {**_BEFORE_HELLO, State.GREETED: canned.NEED_MAIL, State.SENDER: canned.NEED_RCPT},
    "STARTTLS": {**_BEFORE_HELLO, **_IN_CHUNKS},
}
