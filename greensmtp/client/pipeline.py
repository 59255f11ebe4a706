"""Groups of commands in one write (RFC 2920)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from greensmtp.client.envelope_lines import MailExt, RcptExt, parse_ext
from greensmtp.client.envelope_options import MailKeywords, RcptKeywords, mail_parameters, merged, rcpt_parameters
from greensmtp.client.exchange import CommandExchange, Step
from greensmtp.errors import ProtocolError
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.reply import Reply

_SENT = "this group of commands has ended; call pipeline() again"


class Pipeline:
    """``with mail.pipeline() as batch:`` collects commands, and sends them at the end of the block.

    Afterwards ``batch.replies`` has their replies in order. Leaving the block by an exception sends nothing. Each call
    returns the index of its reply. If the server does not offer PIPELINING, the commands are sent one by one.
    """

    def __init__(self, exchange: CommandExchange) -> None:
        self._exchange = exchange
        self._steps: list[Step] = []
        #: Why no other command can be added.
        self._full: str | None = None
        #: Filled at the end of the block.
        self.replies: list[Reply] = []

    def from_(self, address: str, ext: Ext = None, *, relayed: MailExt = None, **options: Unpack[MailKeywords]) -> int:
        """Add MAIL; see ``SMTPClient.from_``."""
        return self._add(self._exchange.mail(address, ext, merged(parse_ext(relayed), mail_parameters(options))))

    def to(self, address: str, ext: Ext = None, *, relayed: RcptExt = None, **options: Unpack[RcptKeywords]) -> int:
        """Add RCPT; see ``SMTPClient.to``."""
        return self._add(self._exchange.rcpt(address, ext, merged(parse_ext(relayed), rcpt_parameters(options))))

    def reset(self) -> int:
        """Add RSET."""
        return self._add(self._exchange.reset())

    def data(self) -> int:
        """Add DATA, as the last command."""
        return self._add(self._exchange.data(), last="DATA")

    def vrfy(self, name: str) -> int:
        """Add VRFY, as the last command; see ``SMTPClient.vrfy``."""
        return self._add(self._exchange.lookup("VRFY", name), last="VRFY")

    def expn(self, name: str) -> int:
        """Add EXPN, as the last command; see ``SMTPClient.expn``."""
        return self._add(self._exchange.lookup("EXPN", name), last="EXPN")

    def noop(self, text: str | None = None) -> int:
        """Add NOOP, as the last command."""
        return self._add(self._exchange.plain("NOOP", text), last="NOOP")

    def _add(self, step: Step, last: str | None = None) -> int:
        if self._full is not None:
            raise ProtocolError(self._full)
        if last is not None:
            self._full = f"{last} must be the last command of a group (RFC 2920 section 3.1)"
        self._steps.append(step)
        return len(self._steps) - 1

    def __getitem__(self, index: int) -> Reply:
        return self.replies[index]

    def __iter__(self) -> Iterator[Reply]:
        return iter(self.replies)

    def __len__(self) -> int:
        return len(self._steps)

    def __enter__(self) -> Pipeline:
        if self._full == _SENT:
            raise ProtocolError(_SENT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._full = _SENT
        if kind is None and self._steps:
            self.replies = self._exchange.send_pipelined(self._steps)
