"""Reverse-paths and forward-paths (RFC 5321 section 4.1.2): a ``str`` with its parts and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from greensmtp.protocol.mailbox import ascii_domain, parse_mailbox
from greensmtp.protocol.options import MailOptions, RcptOptions

#: The parameters of a command: keyword in upper case -> the value as sent, or None where there was no ``=``.
Parameters = Mapping[str, str | None]

NO_PARAMETERS: Parameters = MappingProxyType({})


class Address(str):
    """A reverse-path or forward-path: a ``str`` (``"jo@example.com"``, ``""`` for the null sender) with its parts.

    Source routes and needless quotes are dropped, and the domain is in lower case, so that two ways to write one
    mailbox compare equal. The case of the local part is kept.
    """

    __slots__ = ("_mail_options", "_rcpt_options", "domain", "local_part", "parameters")

    #: The local part without quotes and escapes.
    local_part: str
    #: Lower case: ``"example.com"``, ``"[192.0.2.1]"``, ``"[ipv6:2001:db8::1]"``; ``""`` for ``<>`` and
    #: ``<postmaster>``.
    domain: str
    #: The parameters behind the path: ``{"SIZE": "1000", "SMTPUTF8": None}``.
    parameters: Parameters
    _mail_options: MailOptions
    _rcpt_options: RcptOptions

    def __new__(cls, text: str, local_part: str, domain: str, parameters: Parameters = NO_PARAMETERS) -> Address:
        self = str.__new__(cls, text)
        self.local_part = local_part
        self.domain = domain
        self.parameters = parameters
        return self

    @classmethod
    def parse(cls, text: str, parameters: Parameters = NO_PARAMETERS) -> Address:
        """Parse the text between ``<`` and ``>``: a mailbox, perhaps behind a source route, or nothing.

        :raises ProtocolError: the text is not a mailbox; the error says why.
        """
        return cls(*parse_mailbox(text), parameters)

    def with_parameters(self, parameters: Parameters) -> Address:
        """Return the same path with other parameters."""
        return type(self)(str(self), self.local_part, self.domain, MappingProxyType(dict(parameters)))

    @property
    def ascii_domain(self) -> str:
        """The domain with A-labels, as DNS has it: ``"xn--bcher-kva.example"`` for ``"bücher.example"``.

        It is the domain itself where there is no such form: an address literal, or a name that IDNA 2008 forbids.
        """
        return ascii_domain(self.domain)

    def _parse_options(self, verb: str) -> MailOptions | RcptOptions:
        """Parse the parameters of MAIL or RCPT, and keep them as ``mail_options`` or ``rcpt_options``.

        :raises ProtocolError: a value is malformed.
        """
        if verb == "MAIL":
            self._mail_options = options = MailOptions.parse(self.parameters)
            return options
        self._rcpt_options = RcptOptions.parse(self.parameters)
        return self._rcpt_options

    @property
    def mail_options(self) -> MailOptions:
        """The parameters of a reverse-path, typed. Parsed when it is first read.

        :raises ProtocolError: a value is malformed. (The server has refused such a command.)
        """
        try:
            return self._mail_options
        except AttributeError:
            options = self._mail_options = MailOptions.parse(self.parameters)
            return options

    @property
    def rcpt_options(self) -> RcptOptions:
        """The parameters of a forward-path, typed. Parsed when it is first read.

        :raises ProtocolError: a value is malformed. (The server has refused such a command.)
        """
        try:
            return self._rcpt_options
        except AttributeError:
            options = self._rcpt_options = RcptOptions.parse(self.parameters)
            return options

    def __reduce__(self) -> tuple[type[Address], tuple[str, str, str, Parameters]]:
        return type(self), (str(self), self.local_part, self.domain, dict(self.parameters))
