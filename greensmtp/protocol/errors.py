"""The errors that the protocol raises, and the base class of every error of greensmtp. It imports nothing of ours."""

from __future__ import annotations

from typing import Any


class GreenSMTPError(Exception):
    """The base class of every exception that greensmtp raises at its users. All of them can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with ``args``, which is the text, and not what every class takes.
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[GreenSMTPError], args: tuple[Any, ...]) -> GreenSMTPError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ProtocolError(GreenSMTPError):
    """Bytes or text that the protocol's grammar does not allow, given by the program or sent by the peer."""


class ReplySyntaxError(ProtocolError):
    """A server sent bytes that are not a reply (RFC 5321 section 4.2). The client turns it into PeerProtocolError."""


class SaslFailed(GreenSMTPError):
    """The client's side of a SASL exchange cannot go on. The client turns it into AuthenticationFailed."""


class EnvelopeMissing(ProtocolError):
    """A message does not name its sender or its recipients.

    :param why: what the message lacks.
    :param arguments: those of ``send`` that have to be given: ``sender``, ``recipients``.
    """

    def __init__(self, why: str, *arguments: str) -> None:
        super().__init__(why, *arguments)
        self.why = why
        self.arguments = arguments

    def __str__(self) -> str:
        return f"{self.why}; pass {' and '.join(f'{name}=' for name in self.arguments)}"
