"""The states of a session, and which command is refused in which state (RFC 5321 section 4.1.4).

The rules of this file:

- The table says what is *refused*. A verb or a state that it does not name is allowed: HELO, EHLO, LHLO, RSET, NOOP,
  VRFY, EXPN, HELP and QUIT at any time, and verbs of extensions, whose middleware decides by itself.
- A refusal changes no state. The server changes it when a command has been accepted:

  ============ =========================================================================================
  state        entered by
  ============ =========================================================================================
  CONNECTED    the banner; TLS is up after STARTTLS, which forgets the greeting (RFC 3207 section 4.2)
  GREETED      HELO, EHLO, LHLO; RSET; the end of a message, accepted or not; a refused BDAT
  SENDER       MAIL
  RECIPIENTS   RCPT
  CHUNKS       BDAT without LAST (RFC 3030 section 2)
  ============ =========================================================================================

- States are in the order of a transaction, so that ``state > State.SENDER`` means that there is a recipient.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply


class State(IntEnum):
    """The state of a session."""

    CONNECTED = 0  #: no greeting yet
    GREETED = 1  #: no transaction
    SENDER = 2  #: MAIL was accepted
    RECIPIENTS = 3  #: at least one RCPT was accepted
    CHUNKS = 4  #: a body is being sent by BDAT, and is not complete


_BEFORE_HELLO = {State.CONNECTED: canned.SAY_HELLO_FIRST}
_IN_CHUNKS = {State.CHUNKS: canned.IN_CHUNKS}
_IN_TRANSACTION = dict.fromkeys((State.SENDER, State.RECIPIENTS, State.CHUNKS), canned.PROXY_IN_TRANSACTION)

#: verb -> state -> the refusal
REFUSALS: Mapping[str, Mapping[State, Reply]] = {
    "XCLIENT": _IN_TRANSACTION,
    "XFORWARD": _IN_TRANSACTION,
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
    "ETRN": {
        **_BEFORE_HELLO,
        State.SENDER: canned.NESTED_MAIL,
        State.RECIPIENTS: canned.NESTED_MAIL,
        **_IN_CHUNKS,
    },
}
