"""The AUTH= parameter of MAIL: the original submitter of the message (RFC 4954 section 5)."""

from __future__ import annotations

from greensmtp.errors import ProtocolError
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import PathCommand
from greensmtp.protocol.xtext import decode_xtext


def with_submitter(command: PathCommand, *, trusted: bool) -> PathCommand:
    """Return MAIL with its AUTH= decoded: a mailbox, or ``<>``.

    It is ``<>`` where the value is not a mailbox: Dovecot's submission service sends the user's login name.

    :param trusted: the client has authenticated; otherwise the parameter means ``<>``.
    """
    address = command.address
    submitter = "<>"
    if trusted:
        try:
            decoded = decode_xtext(address.parameters["AUTH"] or "")
            if decoded != "<>" and (mailbox := Address.parse(decoded)):
                submitter = mailbox  # an Address, which tells our client that the xtext has been decoded
        except ProtocolError:
            pass
    decoded_address = address.with_parameters({**address.parameters, "AUTH": submitter})
    return PathCommand(command.verb, command.argument, decoded_address)
