"""ESMTP parameters behind MAIL and RCPT: ``KEYWORD`` or ``KEYWORD=value`` (RFC 5321 section 4.1.1.11)."""

from __future__ import annotations

import re

from greensmtp.protocol.address import NO_PARAMETERS, Parameters, is_text
from greensmtp.protocol.errors import ProtocolError

_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f-\x9f]+))?")


def parse_parameters(text: str) -> Parameters:
    """Read ``"SIZE=1000 BODY=8BITMIME SMTPUTF8"``; keywords are folded to upper case.

    :raises ProtocolError: a malformed parameter, or the same keyword twice.
    """
    if not text:
        return NO_PARAMETERS
    parameters: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None or not is_text(word):
            raise ProtocolError(f"malformed parameter: {word[:40]!r}")
        keyword = match[1].upper()
        if keyword in parameters:
            raise ProtocolError(f"parameter given twice: {keyword}")
        parameters[keyword] = match[2]
    return parameters
