"""Build the lines of MAIL and RCPT: mailboxes in their wire form, and the parameters that a server supports."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from greensmtp.errors import NotOffered
from greensmtp.protocol import command_builder
from greensmtp.protocol.address import NO_PARAMETERS, Parameters
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.esmtp import OPTIONAL, STANDARD, SUBMITTER, Extension, parse_parameters
from greensmtp.protocol.options import MailOptions, RcptOptions

#: Parameters of MAIL and of RCPT as ``send`` takes them: as text or a mapping, or typed.
MailExt = Ext | MailOptions
RcptExt = Ext | RcptOptions

#: parameter -> its extension. Other parameters are private ones, which are sent unchanged.
_OWNERS: Mapping[str, Extension] = {
    keyword: extension for extension in (*STANDARD, *OPTIONAL, SUBMITTER) for keyword in extension.mail | extension.rcpt
}


def parse_ext(ext: MailExt | RcptExt) -> Parameters:
    """Return the parameters that the caller gave.

    :raises ProtocolError: they are malformed.
    """
    text = command_builder.parameters(ext)
    return parse_parameters(text) if text else NO_PARAMETERS


def offered(given: Parameters, extensions: Mapping[str, str]) -> list[str]:
    """Return the parameters that a server with these extensions supports, as words of a command.

    :raises NotOffered: a parameter cannot be left out, since it changes what happens to the message.
    """
    words: list[str] = []
    for keyword, value in given.items():
        owner = _OWNERS.get(keyword)
        if owner is not None:
            needed = "BINARYMIME" if value == "BINARYMIME" else owner.keyword
            if needed not in extensions:
                if _can_be_left_out(owner, keyword, value):
                    continue
                raise NotOffered(needed, f"the parameter {keyword} was given")
        words.append(keyword if value is None else f"{keyword}={value}")
    return words


def _can_be_left_out(owner: Extension, keyword: str, value: str | None) -> bool:
    """True if the message may be sent without this parameter: see ``Extension.omittable``.

    7BIT is what a server without 8BITMIME expects, and RRVS with ``C`` lets the message continue without it (RFC 7293
    section 3.1).
    """
    return (
        owner.omittable
        or (keyword == "BODY" and value == "7BIT")
        or (keyword == "RRVS" and value is not None and value.upper().endswith(";C"))
    )


def takes_utf8(extensions: Mapping[str, str]) -> bool:
    """True if addresses and header fields may have raw UTF-8: SMTPUTF8 needs 8BITMIME too (RFC 6531 section 3.1)."""
    return "SMTPUTF8" in extensions and "8BITMIME" in extensions


@lru_cache(maxsize=1024)
def rcpt_line(address: str) -> bytes:
    """Return RCPT without parameters. Cached, since programs often send to the same recipients."""
    return command_builder.rcpt(address)


#: Returns the mailbox in its wire form.
sent_mailbox = lru_cache(maxsize=1024)(command_builder.mailbox)
