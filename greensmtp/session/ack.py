"""Acks: the objects with which receivers of a signal accept or reject, at once or later. See ack_state.py.

This file is plain Python in the compiled build too: handlers may pass arguments of any type, and the emitter needs weak
references to acks.
"""

from __future__ import annotations

from greensmtp.session.ack_rules import Code, Message
from greensmtp.session.ack_state import AckState


class Ack:
    """Accepts or rejects, once: that is the reply to the command.

    A handler may keep it and decide later, from any greenlet or native thread. An ack that is dropped undecided becomes
    a 451.
    """

    __slots__ = ("__weakref__", "_state")

    _state: AckState

    @property
    def decided(self) -> bool:
        """True if it is too late to decide: it has been decided, or the command has been answered without it."""
        return self._state.reply is not None or self._state.closed

    @property
    def accepted(self) -> bool:
        """True if the decision was to accept."""
        reply = self._state.reply
        return reply is not None and reply.code < 400

    def accept(self, code: Code = None, message: Message = None) -> None:
        """Accept. For the signal ``command``: let the command pass to its default action, without arguments.

        :param code: the reply code, by default 250 (``connect``: 220, ``message``: 354, ``auth``: 235); or a Reply,
            for example of a next hop, whose enhanced status code is kept.
        :param message: the reply's text: one line, or several as an iterable or as a str with newlines. It may begin
            with an enhanced status code.
        :raises ValueError: this signal does not accept with that code, or the enhanced status code is of another class.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        state = self._state
        rules = state.rules
        state.decide(rules.accepted if code is message is None else rules.accept(code, message))

    def reject(self, code: Code = None, message: Message = None) -> None:
        """Reject.

        :param code: a 4xx or 5xx reply code, by default 550 (``connect``: 554, ``auth``: 535); or a Reply, for example
            of a next hop: its enhanced status code is kept, and 421 becomes 451, since 421 closes the connection.
        :param message: as for ``accept``.
        :raises ValueError: the code is not 4xx or 5xx, or the enhanced status code is of another class.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        self._state.decide(self._state.rules.reject(code, message))

    def replace(self, code: Code = 250, message: Message = None) -> None:
        """Answer instead of the default action, which does not happen. Only for the signal ``command``.

        :param code: a 2xx, 4xx or 5xx reply code, or a Reply.
        :param message: as for ``accept``.
        :raises ValueError: the code is not one of these, or the enhanced status code is of another class.
        :raises TypeError: this is the ack of another signal.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        self._state.decide(self._state.rules.replace(code, message))

    def __repr__(self) -> str:
        reply = self._state.reply
        return f"<Ack {str(reply) if reply else 'undecided'!r}>"
