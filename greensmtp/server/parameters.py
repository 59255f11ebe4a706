"""Checks of the parameters of MAIL that the server itself offers (RFC 1870, RFC 6152, RFC 6531)."""

from __future__ import annotations

from greensmtp.protocol import canned
from greensmtp.protocol.address import Parameters
from greensmtp.protocol.esmtp import BODY_TYPES
from greensmtp.protocol.reply import Reply


def refuse_values(parameters: Parameters, max_size: float) -> Reply | None:
    """Return the refusal of a value, or None.

    :param max_size: bytes that a message may have; ``inf``: any number.
    """
    if "SIZE" in parameters:
        size = parameters["SIZE"]
        if size is None or not size.isascii() or not size.isdigit() or len(size) > 20:
            return Reply(501, "5.5.4 SIZE takes a number of octets")
        if int(size) > max_size:
            return canned.TOO_LARGE
    if "BODY" in parameters and (parameters["BODY"] or "").upper() not in BODY_TYPES:
        return Reply(501, "5.5.4 BODY takes 7BIT, 8BITMIME or BINARYMIME")
    if parameters.get("SMTPUTF8") is not None:
        return Reply(501, "5.5.4 SMTPUTF8 takes no value")
    return None
