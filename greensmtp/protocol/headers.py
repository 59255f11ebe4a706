"""A message's header section, as far as an envelope needs it (RFC 5322 section 3.6, RFC 5321 appendix B)."""

from __future__ import annotations

import re
from email import policy
from email.message import Message
from email.parser import HeaderParser
from email.utils import getaddresses
from typing import Any

from greensmtp.errors import ProtocolError

#: The end of the header section: an empty line, however lines end.
END = re.compile(rb"(?:\A|\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")

_FIELDS = policy.SMTPUTF8
_BCC = re.compile(
    rb"(?:\A|(?<=\n)|(?<=\r)(?!\n))(?:resent-)?bcc[ \t]*:[^\r\n]*(?:\r\n|\r|\n)?(?:[ \t][^\r\n]*(?:\r\n|\r|\n)?)*", re.I
)


def split(message: bytes) -> int:
    """Where the header section ends: the offset of the body, or the length where there is none."""
    end = END.search(message)
    return len(message) if end is None else end.end()


def without_bcc(head: bytes) -> bytes:
    """The header section without Bcc and Resent-Bcc; every other octet stays."""
    return _BCC.sub(b"", head) if b"bcc" in head.lower() else head


def parse(head: bytes) -> Message[str, str]:
    """The fields; UTF-8 in them stays what it is (RFC 6532)."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    return HeaderParser(policy=_FIELDS).parsestr(text)


def sender(message: Message[Any, Any]) -> str:
    """The mailbox that Sender names, or the first in From.

    A message that was resent (RFC 5322 section 3.6.6) has both in its Resent fields.

    :raises ProtocolError: there is none, or there is more than one set of Resent fields.
    """
    prefix = _prefix(message)
    senders = _mailboxes(message, f"{prefix}Sender") or _mailboxes(message, f"{prefix}From")
    if not senders:
        raise ProtocolError("the message has neither From nor Sender: say sender=")
    return senders[0]


def recipients(message: Message[Any, Any]) -> list[str]:
    """The mailboxes that To, Cc and Bcc name, each once; of a message that was resent, the Resent fields.

    :raises ProtocolError: there is none, or there is more than one set of Resent fields.
    """
    prefix = _prefix(message)
    found = [mailbox for name in ("To", "Cc", "Bcc") for mailbox in _mailboxes(message, f"{prefix}{name}")]
    if not found:
        raise ProtocolError("the message has no To, Cc or Bcc: say recipients=")
    return list(dict.fromkeys(found))


def _prefix(message: Message[Any, Any]) -> str:
    resent = len(message.get_all("Resent-Date", ()))
    if resent > 1:
        raise ProtocolError("the message was resent more than once: say sender= and recipients=")
    return "Resent-" if resent else ""


def _mailboxes(message: Message[Any, Any], name: str) -> list[str]:
    found: list[str] = []
    for field in message.get_all(name, ()):
        if hasattr(field, "addresses"):
            found += [address.addr_spec for address in field.addresses if address.addr_spec not in ("", "<>")]
        else:  # a message of the old kind, whose fields are strings
            found += [address for _, address in getaddresses([str(field)]) if address]
    return found
