"""PolicyHook: ask a program, in any language, for decisions over HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from email.parser import BytesHeaderParser
from email.policy import compat32
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError, ProtocolError
from greensmtp.http_poster import HTTPFailed, HTTPPoster
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import CONNECT, END_OF_DATA, Command, EndOfData
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.session import MessageStream, Session
from greensmtp.session.ack import Ack
from greensmtp.session.server_info import ServerInfo
from greensmtp.webhook_signature import check_headers, read_secrets, signed_headers

logger = logging.getLogger("greensmtp")

Stage = Literal["connect", "from", "to", "message"]

_VERBS: Mapping[Stage, str] = {"connect": CONNECT, "from": "MAIL", "to": "RCPT", "message": END_OF_DATA}
_STAGES: Mapping[str, Stage] = {verb: stage for stage, verb in _VERBS.items()}

#: The states in which MAIL and RCPT are in sequence.
_PLACES = {"from": frozenset({State.GREETED}), "to": frozenset({State.SENDER, State.RECIPIENTS})}

#: Maximum number of bytes of a header section that is sent to the program.
MAX_HEADER = 64 * 1024

#: Recipients before a RCPT that the program is told of.
MAX_RECIPIENTS = 100

_FAILED = Reply(451, "4.3.0 The policy cannot be asked, try again later")
_REFUSED, _DEFERRED = Reply(550, "5.7.1 Refused by policy"), Reply(451, "4.7.1 Try again later")

#: The keys of a response.
_KEYS = frozenset({"action", "code", "text", "add_headers"})


class PolicyHook:
    """Ask a URL about connections, senders, recipients or messages: one POST with JSON, and a JSON response.

    The request has ``stage`` and the values that are known at this stage: ``session``, ``peer``, ``hello``, ``tls``,
    ``protocol``, ``identity``, ``server``; ``from``, the sender, and ``to``, the recipients so far; after
    ``connect`` also ``id``; at ``to`` also ``recipient``, and of the recipients so far the first 100, with the number
    of all in ``to_count``; at ``message`` also ``size`` and ``headers``, a list of names and values.

    The response has ``action``: ``"accept"``, ``"reject"`` or ``"defer"``; for a refusal, ``code`` (4xx or 5xx) and
    ``text``; for an acceptance at ``message``, ``add_headers``, a list of names and values.

    Without a response, or with an invalid one or a status other than 2xx, the reply is 451, unless ``fail_open``.

    :param url: ``https://``, or ``http://``.
    :param stages: the stages at which to ask: ``connect``, ``from``, ``to``, ``message``.
    :param secret: signs the requests by Standard Webhooks; see ``Webhook``.
    :param headers: more headers, such as Authorization.
    :param timeout: seconds for a response.
    :param connections: maximum number of simultaneous requests.
    :param wait: seconds that a request waits for its turn.
    :param fail_open: accept if there is no valid response.
    :param ca: a PEM file with the authorities to trust; None: those of the system.
    :raises ArgumentError: an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        stages: Sequence[Stage] = ("to",),
        secret: str | Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        connections: int = 50,
        wait: float = 5.0,
        fail_open: bool = False,
        ca: str | Path | None = None,
    ) -> None:
        unknown = [each for each in stages if each not in _VERBS]
        if unknown or not stages:
            known = ", ".join(get_args(Stage))
            raise ArgumentError("stages", f"expected some of {known}; got {list(stages)!r}")
        self.stages = tuple(stages)
        self.verbs = tuple(_VERBS[each] for each in stages)
        self.fail_open = fail_open
        self._keys = read_secrets(secret)
        self._headers = {"Content-Type": "application/json", "User-Agent": "greensmtp", **check_headers(headers)}
        #: Makes the ID of each request unique, also after a refused recipient.
        self._count = count()
        self._poster = HTTPPoster(url, timeout=timeout, connections=connections, wait=wait, ca=ca)

    def __repr__(self) -> str:
        return f"PolicyHook(stages={list(self.stages)})"

    def start(self, server: ServerInfo) -> None:
        """Keep the header section of each message, if the stage ``message`` is asked."""
        if "message" in self.stages:
            server.signals.on("message", self._keep_header)

    def stop(self, server: ServerInfo) -> None:
        """Close the connections."""
        self._poster.close()

    def _keep_header(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        if ack.decided and not ack.accepted:
            return
        header = session.transaction_notes[self] = _Header()
        stream.pipe(header, fields=False)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Ask the program, and refuse or pass the command on."""
        stage = _STAGES[command.verb]
        if stage == "message":
            return self._decide_on_message(session, command, proceed)
        about = self._describe(session, stage)
        if stage in ("from", "to"):
            # A command that is malformed or out of its place will be refused: there is nothing to ask.
            if command.error is not None or session.state not in _PLACES[stage]:
                return proceed(session, command)
            address: Address = command.address  # type: ignore[attr-defined]
            about["id"] = session.transaction_id
            about["from" if stage == "from" else "recipient"] = str(address)
            if stage == "to":
                about["to_count"] = len(session.to)
        refusal = self._ask(session, about)
        return proceed(session, command) if refusal is None else refusal

    def _decide_on_message(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Ask once for each message, also in LMTP, where each recipient has its own END-OF-DATA."""
        assert isinstance(command, EndOfData)
        key = (self, "decision")
        if key not in session.transaction_notes:
            session.transaction_notes[key] = _FAILED  # stays, if it is interrupted
            header: _Header | None = session.transaction_notes.get(self)
            about = self._describe(session, "message") | {"id": session.transaction_id}
            about["size"] = 0 if session.message is None else session.message.size
            about["headers"] = [] if header is None else header.fields()
            session.transaction_notes[key] = self._ask(session, about)
        refusal: Reply | None = session.transaction_notes[key]
        return proceed(session, command) if refusal is None else refusal

    def _describe(self, session: Session, stage: Stage) -> dict[str, Any]:
        # All recipients at each RCPT would be a quadratic number of bytes.
        recipients = session.to[:MAX_RECIPIENTS] if stage == "to" else session.to
        return {
            "stage": stage,
            "session": session.id,
            "peer": session.peer_host,
            "hello": session.hostname,
            "tls": session.tls,
            "protocol": session.protocol,
            "identity": None if session.identity is None else str(session.identity),
            "server": session.server.hostname,
            "from": None if session.from_ is None else str(session.from_),
            "to": [str(each) for each in recipients],
        }

    def _ask(self, session: Session, about: dict[str, Any]) -> Reply | None:
        """Return the refusal; None if the program accepts."""
        body = json.dumps(about, separators=(",", ":")).encode()
        identifier = f"{about.get('id', session.id)}.{about['stage']}.{next(self._count)}"
        try:
            response = self._poster.post(body, {**self._headers, **signed_headers(self._keys, identifier, body)})
            if not 200 <= response.status < 300:
                raise HTTPFailed(f"status {response.status}")
            answer = read_answer(response.body, about["stage"])
            if isinstance(answer, Reply):
                return answer
            for name, value in answer:
                assert session.message is not None
                session.message.add_header(name, value)
        except (HTTPFailed, ValueError) as error:
            action = "going on without an answer" if self.fail_open else "replying 451"
            logger.warning("%s: policy hook: %s; %s", session.log_id, error, action)
            return None if self.fail_open else _FAILED
        return None


def read_answer(body: bytes, stage: Stage) -> Reply | list[tuple[str, str]]:
    """Return the refusal in a response, or the header fields to add.

    :raises ValueError: the response is malformed; the text says how.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("expected a JSON object; got malformed JSON") from None
    if not isinstance(answer, dict) or not answer.keys() <= _KEYS:
        raise ValueError(f"expected an object with {', '.join(sorted(_KEYS))} in the answer")
    action, code, text = answer.get("action"), answer.get("code"), answer.get("text")
    if action == "accept":
        return _read_fields(answer.get("add_headers", []), stage)
    if action not in ("reject", "defer"):
        raise ValueError('expected "accept", "reject" or "defer" as action')
    usual = _REFUSED if action == "reject" else _DEFERRED
    if code is None and text is None:
        return usual
    if text is not None and not isinstance(text, str):
        raise ValueError("expected a string as text")
    number = usual.code if code is None else code
    if not isinstance(number, int) or number // 100 not in ((4, 5) if action == "reject" else (4,)):
        raise ValueError("expected 4xx or 5xx as code, and 4xx to defer")
    try:
        if text is None:  # the default enhanced code, if it is of this class
            return Reply(number, *usual.lines, enhanced=usual.enhanced if number // 100 == usual.code // 100 else None)
        return Reply(number, text)
    except ProtocolError as error:
        raise ValueError(f"code and text do not make a valid reply: {error}") from None


def _read_fields(given: Any, stage: Stage) -> list[tuple[str, str]]:
    if given and stage != "message":
        raise ValueError("add_headers is allowed at the stage message only")
    if not isinstance(given, list) or not all(
        isinstance(each, list) and len(each) == 2 and all(isinstance(part, str) for part in each) for each in given
    ):
        raise ValueError("expected a list of [name, value] as add_headers")
    return [(name, value) for name, value in given]


class _Header:
    """A pipe that keeps the header section, up to a limit."""

    def __init__(self) -> None:
        self._data = b""
        self._is_over = False

    def write(self, data: bytes, /) -> None:
        """Keep the part that belongs to the header section."""
        if self._is_over:
            return
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end >= 0 or len(self._data) >= MAX_HEADER:
            self._data = self._data[: min(end + 2 if end >= 0 else MAX_HEADER, MAX_HEADER)]
            self._is_over = True

    def fields(self) -> list[tuple[str, str]]:
        """Return names and unfolded values; bytes that are not UTF-8 are replaced."""
        return [
            (name, "".join(value.splitlines()).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
            for name, value in BytesHeaderParser(policy=compat32).parsebytes(self._data).raw_items()
        ]
