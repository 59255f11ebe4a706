"""``Webhook``: post mail to an application over HTTP, whose status determines the client's reply."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from greensmtp.delivery._numbers import check_counts
from greensmtp.delivery._store import open_store
from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.forward import is_binary
from greensmtp.errors import Reject
from greensmtp.http_poster import HTTPFailed, HTTPPoster, Response
from greensmtp.protocol import enhanced_status
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.server_info import ServerInfo
from greensmtp.thread_pool import in_thread_pool
from greensmtp.webhook_signature import Signing, check_headers, check_signature, read_secrets

logger = logging.getLogger("greensmtp")

#: The header with the envelope, and the one with its signature.
ENVELOPE, ENVELOPE_SIGNATURE = "SMTP-Envelope", "SMTP-Envelope-Signature"

#: Maximum length in bytes of the envelope's header: servers accept 8 kB for all headers.
MAX_ENVELOPE = 6000

#: Bytes that are read and hashed at once.
_PIECE = 256 * 1024

#: Bytes that are hashed in less time than it takes to wake a thread.
_QUICK = 64 * 1024

_TOO_MANY = Reply(452, "4.5.3 Too many recipients in one message")
_NO_ANSWER = Reply(451, "4.4.1 The application does not answer")
_NOT_NOW = Reply(451, "4.3.0 The application cannot take the message now")
_REFUSED = Reply(550, "5.7.1 The application refuses the message")

#: The statuses that refuse a message permanently; all others except 2xx are 451, so that nothing is lost.
_REFUSING = frozenset({406, 422})


class Webhook(Delivery):
    """Post each message to a URL: ``Webhook("https://app.example.com/hook", secret="whsec_...")``.

    The body of the request is the message as received, ``message/rfc822``. The header ``SMTP-Envelope`` is a JSON
    object in ASCII with the envelope. ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature`` are those of
    Standard Webhooks; the ID is that of the reply ``queued as ID``.

    A status of 2xx is 250; 406 and 422 are 550, with the first line of a text/plain response as the reason; all others
    are 451, so the client tries again, and so is a response that does not come in time. Redirects are not followed.

    :param url: ``https://``, or ``http://``.
    :param secret: signs the requests: ``whsec_`` and base64 as in Standard Webhooks, or any text. With several, in an
        array, each signs the requests, while one is being replaced.
    :param headers: more headers, such as Authorization.
    :param timeout: seconds for a whole request.
    :param connections: maximum number of simultaneous requests.
    :param wait: seconds that a message waits for its turn; then 451.
    :param ca: a PEM file with the authorities to trust; None: those of the system.
    :param store: a folder for messages that are larger than ``inline``, shared with the application, or a bucket:
        ``s3://bucket/prefix``. The request for such a message has no body; ``path`` in the envelope is the file name or
        the S3 URL. None: all messages are posted.
    :param inline: with ``store``, the size in bytes up to which a message is still posted.
    :raises ArgumentError: an argument is invalid.
    """

    answers = True

    def __init__(
        self,
        url: str,
        *,
        secret: str | Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        connections: int = 20,
        wait: float = 30.0,
        ca: str | Path | None = None,
        store: str | Path | None = None,
        inline: int = 1024 * 1024,
    ) -> None:
        check_counts(inline=inline)
        self.store = None if store is None else open_store(store)
        self.inline = inline
        self._keys = read_secrets(secret)
        self._headers = check_headers(headers)
        self._poster = HTTPPoster(url, timeout=timeout, connections=connections, wait=wait, ca=ca)

    def __repr__(self) -> str:
        return f"<Webhook to {self._poster._host}>"

    def rcpt(self, session: Session, recipient: Address) -> Reply | None:
        """Refuse a recipient for now if the envelope would be too large for a header."""
        return None if len(envelope_json(session, [*session.to, recipient])) <= MAX_ENVELOPE else _TOO_MANY

    def begin(self, envelope: Envelope) -> Transfer:
        """Collect a message."""
        return _Posting(self, envelope)

    def start(self, server: ServerInfo) -> None:
        """Create the folder for large messages, and remove those that the application has left for a week."""
        if self.store is not None:
            self.store.start()

    def stop(self, server: ServerInfo) -> None:
        """Close the connections."""
        self._poster.close()

    def post(
        self,
        envelope: Envelope,
        recipients: Sequence[Address],
        open_message: Callable[[], BinaryIO],
        path: str | None = None,
    ) -> Result:
        """Post a message, or the path of a stored one, and return the result."""
        session = envelope.session
        about = envelope_json(session, recipients, path)
        if path is not None:
            open_message = BytesIO
        moment = str(int(time.time()))
        signing, size = Signing(self._keys, envelope.id, moment), 0
        with open_message() as message:
            for piece in _pieces(message):
                size += len(piece)
                in_thread_pool(signing.update, piece) if len(piece) > _QUICK else signing.update(piece)
        headers = {
            "Content-Type": "application/octet-stream" if is_binary(session) else "message/rfc822",
            "User-Agent": "greensmtp",
            ENVELOPE: about,
            "webhook-id": envelope.id,
            "webhook-timestamp": moment,
            **self._headers,
        }
        if self._keys:
            headers["webhook-signature"] = signing.text()
            headers[ENVELOPE_SIGNATURE] = Signing(self._keys, envelope.id, moment, about.encode()).text()

        def body() -> Iterator[bytes]:
            with open_message() as message:
                yield from _pieces(message)

        try:
            response = self._poster.post(body, headers, size=size)
        except HTTPFailed as error:
            logger.warning("%s: webhook: %s; replying 451", session.log_id, error)
            raise Reject(_NO_ANSWER) from None
        if 200 <= response.status < 300:
            return None
        if response.status in _REFUSING:
            logger.info("%s: webhook: the application refused the message: status %d", session.log_id, response.status)
            return refusal(response)
        logger.warning("%s: webhook: status %d; replying 451", session.log_id, response.status)
        return _NOT_NOW


class _Posting(SpooledTransfer):
    """A message that is posted when it is complete."""

    def __init__(self, delivery: Webhook, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._delivery = delivery
        self._path: str | None = None

    def prepare(self) -> Result:
        """Store a large message."""
        store = self._delivery.store
        if store is not None:
            with self.open() as source:
                beginning = source.read(self._delivery.inline + 1)
            if len(beginning) > self._delivery.inline:
                self._path = store.write(self.envelope.id, self.open)
        return None

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Post the message."""
        # Without a response, the application may still have the path, so the file stays.
        path, self._path = self._path, None
        result = self._delivery.post(self.envelope, recipients, self.open, path)
        if result is not None:
            self._path = path
            self.discard()
        return result

    def discard(self) -> None:
        """Remove the stored message, if the application cannot have got its path."""
        path, self._path = self._path, None
        if path is not None and self._delivery.store is not None:
            self._delivery.store.remove(path)


def envelope_json(session: Session, recipients: Sequence[Address], path: str | None = None) -> str:
    """Return the envelope as JSON in ASCII."""
    about: dict[str, Any] = {
        "id": session.transaction_id,
        "from": str(session.from_ or ""),
        "to": [str(each) for each in recipients],
        "peer": session.peer_host,
        "hello": session.hostname,
        "protocol": session.protocol,
        "identity": None if session.identity is None else str(session.identity),
        "server": session.server.hostname,
        "path": path,
    }
    return json.dumps({name: value for name, value in about.items() if value is not None}, separators=(",", ":"))


def refusal(response: Response) -> Reply:
    """Return the reply for a response that refuses, with the first line of its text."""
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/plain":
        lines = response.body[:200].decode("utf-8", "replace").splitlines()
        if lines and lines[0].strip():
            text = "".join(each if each.isprintable() else "?" for each in lines[0].strip())
            has_code = text.startswith("5.") and enhanced_status.LEADING.match(text)
            return Reply(550, text if has_code else f"5.7.1 {text}")
    return _REFUSED


def verify(
    secret: str | Sequence[str], headers: Mapping[str, str], body: bytes, *, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Verify a request of ``Webhook``, in the application, and return its envelope.

    :param secret: the secret, or several of which one must match.
    :param headers: the headers of the request.
    :param body: the body of the request, unchanged.
    :raises ValueError: a signature is missing or wrong, or the request is more than five minutes old or early.
    """
    given = {name.lower(): value for name, value in headers.items()}
    about = given.get(ENVELOPE.lower(), "")
    check_signature(secret, given, body, now=now)
    check_signature(secret, given, about.encode(), name=ENVELOPE_SIGNATURE.lower(), now=now)
    found: dict[str, Any] = json.loads(about)
    return found


def _pieces(message: BinaryIO) -> Iterator[bytes]:
    while piece := message.read(_PIECE):
        yield piece
