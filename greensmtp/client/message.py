"""A message ready to be sent, once or several times: its envelope, what it needs of a server, its octets."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from typing import Any, BinaryIO, Union

from greensmtp.client import rendering
from greensmtp.client.sources import PIECE, Readable, Source, rewindable
from greensmtp.errors import NotOffered
from greensmtp.protocol import address_list, command_builder, header_envelope
from greensmtp.protocol.address import NO_PARAMETERS, Parameters
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.dot_stuffing import DotEncoder, LineEncoder, stuffed, with_crlf
from greensmtp.protocol.esmtp import parse_parameters
from greensmtp.protocol.mime_lines import MimeLines, may_be_binary
from greensmtp.protocol.send_result import SendResult as SendResult
from greensmtp.thread_pool import in_thread_pool

#: Octets up to which a message is kept in one piece. Of a larger file only the header section is; it is read twice: to
#: know what it needs, and to send it.
MAX_MEMORY = 4 * 1024 * 1024
#: Octets in which a file's header section must end.
MAX_HEAD = 1024 * 1024
#: From how many octets on BDAT is worth its command: nothing is looked for or copied then.
CHUNKING_PAYS = 128 * 1024
#: Octets from which on work on a message is done in the thread pool: writing or reading them takes milliseconds.
LARGE = 64 * 1024

#: Parameters that a server needs an extension for (RFC 3461, RFC 4954, RFC 2852, RFC 4865, RFC 6710, RFC 8689). Those
#: of DSN and AUTH are left out where it is not offered, as a relay does (RFC 3461 section 5.2.2, RFC 4954 section 5).
#: The others change what happens to the message, and cannot be.
_LEFT_OUT = {"RET": "DSN", "ENVID": "DSN", "NOTIFY": "DSN", "ORCPT": "DSN", "AUTH": "AUTH"}
_NEEDED = {
    "BY": "DELIVERBY",
    "HOLDFOR": "FUTURERELEASE",
    "HOLDUNTIL": "FUTURERELEASE",
    "MT-PRIORITY": "MT-PRIORITY",
    "REQUIRETLS": "REQUIRETLS",
    "RRVS": "RRVS",
}
#: What is said of this message, on this connection: never what a session's parameters said of another.
_OURS = frozenset({"SIZE", "BODY", "SMTPUTF8"})


#: What ``send`` takes.
Sendable = Union["Message[Any, Any]", bytes, bytearray, memoryview, Readable]  # (Message[...] is typeshed's alone)


@dataclass(slots=True)
class _Form:
    """A message's octets, as a server can take them. (A large file: those of its header section.)"""

    content: bytes
    #: Octets of the whole message, as SIZE has it (RFC 1870): CRLFs included, dots not.
    size: int
    eight_bit: bool
    #: It cannot go as lines.
    binary: bool
    #: This is the head of a file, the rest of which is still there.
    has_rest: bool = False
    stuffed: tuple[bytes, ...] | None = None


class PreparedMessage:
    """One message and its envelope. Building it raises all that can be known to be wrong without a server."""

    def __init__(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: Ext = None,
        to_ext: Ext | Sequence[Ext] = None,
    ) -> None:
        """See ``SMTPClient.send``.

        :raises ProtocolError: an address or parameter is malformed, an address field cannot be read, or the message
            names no sender or recipient.
        :raises TypeError: the message is of no kind that we know.
        """
        self._message: Message[Any, Any] | None = None
        self._file: BinaryIO | None = None
        self._source: Source | None = None
        self._copied = False
        self._start = 0
        derived = recipients is None
        derive = sender is None or recipients is None
        content = b""
        fields: header_envelope.Fields = ()
        if isinstance(message, Message):
            self._message = message
            if derive:
                fields = rendering.envelope_fields(message)
        else:
            content = header_envelope.without_mbox_line(self._read(message))
            if derive:
                head = content[: header_envelope.split(content)]
                fields = _off_the_hub(len(head), header_envelope.parse, head)
        if derive:
            length = sum(len(text) for _, text in fields)
            sender, recipients = _off_the_hub(length, _envelope, fields, sender, recipients)
        assert sender is not None
        assert recipients is not None
        self.sender = sender
        self._mailbox = _wire_mailbox(sender)
        self._set_recipients([recipients] if isinstance(recipients, str) else list(recipients), to_ext)
        #: The parameters of MAIL that are given.
        self._given = _parameters(from_ext)
        #: An address or parameter cannot be written without SMTPUTF8.
        self._utf8_address = not (
            self._mailbox.isascii()
            and all(map(bytes.isascii, self.rcpt_lines))
            and all(
                value is None or value.isascii()
                for given in (self._given, *self._rcpt_given)
                for value in given.values()
            )
        )
        self._analyse(content, derived=derived)

    def close(self) -> None:
        """Let go of the copy of a file that could not go back; the caller's own file stays open."""
        if self._copied and self._file is not None:
            self._file.close()

    # Its envelope

    def _set_recipients(self, recipients: list[str], to_ext: Ext | Sequence[Ext]) -> None:
        if not recipients:
            raise ValueError("recipients is empty; pass at least one")
        if to_ext and not isinstance(to_ext, (str, Mapping)):
            if len(to_ext) != len(recipients):
                raise ValueError(f"to_ext has parameters for {len(to_ext)} recipients, not for {len(recipients)}")
            each = dict(zip(recipients, to_ext, strict=True))
            self.recipients = tuple(each)
            self._rcpt_given = [_parameters(given) for given in each.values()]
        else:
            self.recipients = tuple(dict.fromkeys(recipients))
            given = _parameters(to_ext)  # type: ignore[arg-type]
            self._rcpt_given = [given] * len(self.recipients) if given else []
        #: RCPT for each recipient; with parameters, as the last ``mail_line`` has said.
        self.rcpt_lines: Sequence[bytes] = [_rcpt_line(recipient) for recipient in self.recipients]

    # What it is

    def _analyse(self, content: bytes, *, derived: bool) -> None:
        """Find out what it needs. (A file: its head is in ``content`` now, the rest is looked through.)"""
        if self._message is not None:
            content = self._render()
        eight_bit = not content.isascii()
        head = b""
        if derived or self._file is not None or eight_bit or len(content) > MAX_MEMORY:
            end = header_envelope.split(content)
            if end > MAX_HEAD and not derived:
                end = 0  # text without a header section
            head = content[:end]
            if self._file is None and len(content) > MAX_MEMORY and end <= MAX_HEAD:
                # Piece by piece, as a file: each step over all of it would hold up every other greenlet.
                self._file = io.BytesIO(content)
                self._source, self._start = Source(self._file), end
                content = head
            if derived and self._message is None:
                head = header_envelope.without_bcc(head)
                content = head if self._file is not None else head + content[end:]
        #: Raw UTF-8 in the header section (RFC 6532).
        self._utf8_head = eight_bit and not head.isascii() and header_envelope.is_utf8(head)
        #: How the line ends of what follows the head are to be found: it has, or may have, binary parts.
        self._mime = False
        self._head = content
        self._forms: dict[tuple[bool, bool], _Form] = {}
        self._form = self._plain = self._scan_file(content) if self._file is not None else _in_lines(content)

    def _scan_file(self, head: bytes) -> _Form:
        """Read all of a file once, to know what it needs."""
        eight_bit, nul, binary, size = False, b"\0" in head, may_be_binary(head), 0
        overlap = b""
        encoder = LineEncoder()
        for piece in self._file_pieces():
            eight_bit = eight_bit or not piece.isascii()
            nul = nul or b"\0" in piece
            binary = binary or may_be_binary(overlap + piece)
            size += len(encoder.feed(piece))
            overlap = piece[piece.rfind(b"\n", -128) + 1 :][-128:]
        size += len(encoder.finish())
        self._rest_eight_bit = eight_bit
        if nul or binary:
            self._mime = True
            lines = MimeLines()
            lines.feed(head)
            size = sum(len(lines.feed(piece)) for piece in self._file_pieces()) + len(lines.finish())
            binary = nul or lines.needs_binary
            self._mime = binary
        content = with_crlf(head)
        return _Form(content, len(content) + size, eight_bit or not head.isascii(), binary, has_rest=True)

    def _render(self, *, seven_bit: bool = False) -> bytes:
        """The octets of a message object, with Date and Message-ID where they are missing."""
        message = self._message
        assert message is not None
        if not seven_bit:
            self._added = rendering.missing_fields(message, self._mailbox)
        length = rendering.size(message)
        octets: bytes = _off_the_hub(length, rendering.render, message, utf8=self._utf8_address, seven_bit=seven_bit)
        return self._added + octets

    @property
    def size(self) -> int:
        """Octets of the whole message, as the last ``mail_line`` has said it."""
        return self._form.size

    # What it needs

    def mail_line(self, extensions: Mapping[str, str]) -> bytes:
        """MAIL, with what the message needs and the server offers.

        :raises NotOffered: the server does not offer what cannot be done without.
        """
        form = self._form = self._fitting(extensions)
        words = _offered(self._given, extensions)
        if self._rcpt_given:
            self.rcpt_lines = [
                command_builder.rcpt(_wire_mailbox(recipient), " ".join(_offered(given, extensions)))
                for recipient, given in zip(self.recipients, self._rcpt_given, strict=True)
            ]
        if "SIZE" in extensions:
            words.append(f"SIZE={form.size}")
        if form.binary:
            words.append("BODY=BINARYMIME")
        elif form.eight_bit or self._utf8_address:
            words.append("BODY=8BITMIME")
        if self._utf8_address or (self._utf8_head and not _needs_ascii_head(extensions)):
            words.append("SMTPUTF8")
        elif "SMTPUTF8" in self._given and "SMTPUTF8" in extensions:
            words.append("SMTPUTF8")  # for header fields of its parts
        line = f"MAIL FROM:<{self._mailbox}>"
        return " ".join([line, *words]).encode() + b"\r\n"

    def _fitting(self, extensions: Mapping[str, str]) -> _Form:
        """The message as this server can take it: what needs an extension that it does not offer is encoded.

        :raises NotOffered: that cannot be done, or a signature would be broken.
        """
        if self._utf8_address:
            for keyword in ("8BITMIME", "SMTPUTF8"):
                if keyword not in extensions:
                    raise NotOffered(keyword, "an address has characters beyond ASCII")
        form = self._plain
        head = self._utf8_head and _needs_ascii_head(extensions)
        if head:
            form = self._encoded(head=True, body=False)
        missing = ""
        if form.binary:
            # A server that does not know BDAT takes the octets behind it for commands.
            missing = next((keyword for keyword in ("BINARYMIME", "CHUNKING") if keyword not in extensions), "")
        elif form.eight_bit and "8BITMIME" not in extensions:
            missing = "8BITMIME"
        if missing:
            what = "is binary" if form.binary else "has octets beyond ASCII"
            if self._message is None:
                raise NotOffered(missing, f"the message {what}")
            if rendering.is_signed(self._message):
                raise NotOffered(missing, f"the message {what}, is signed and must not be encoded")
            form = self._encoded(head=head, body=True)
            if form.binary or form.eight_bit:
                raise NotOffered(missing, f"the message {what}")
        return form

    def _encoded(self, *, head: bool, body: bool) -> _Form:
        form = self._forms.get((head, body))
        if form is None:
            content = self._render(seven_bit=True) if body else self._plain.content
            if head:
                end = header_envelope.split(content)
                encoded = header_envelope.in_ascii(content[:end])
                if encoded is None or (self._message is not None and rendering.is_signed(self._message)):
                    raise NotOffered("SMTPUTF8", "the header section has characters beyond ASCII")
                if self._file is not None and not body:
                    encoded = with_crlf(encoded)
                    size = self._plain.size - len(content) + len(encoded)
                    form = _Form(encoded, size, self._rest_eight_bit, self._plain.binary, has_rest=True)
                else:
                    content = encoded + content[end:]
            if form is None:
                form = _in_lines(content)
            self._forms[head, body] = form
        return form

    def in_chunks(self, extensions: Mapping[str, str]) -> bool:
        """It goes by BDAT: it must, or that pays."""
        return self._form.binary or ("CHUNKING" in extensions and self._form.size >= CHUNKING_PAYS)

    # Its octets

    def prepare(self) -> None:
        """Do what ``data`` would do first."""
        if not self._form.has_rest:
            self._stuff()

    def data(self) -> Iterable[bytes]:
        """What goes out behind 354, the dot at the end in the last piece; as the last ``mail_line`` has said."""
        return self._stuffed_file() if self._form.has_rest else self._stuff()

    def _stuff(self) -> tuple[bytes, ...]:
        form = self._form
        if form.stuffed is None:
            data = stuffed(form.content)
            # Putting the end to it copies all of it: what is large goes in two pieces.
            form.stuffed = (data + b".\r\n",) if len(data) < PIECE else (data, b".\r\n")
        return form.stuffed

    def _stuffed_file(self) -> Iterator[bytes]:
        encoder = DotEncoder()
        yield encoder.feed(self._form.content)
        for piece in self._file_pieces():
            yield encoder.feed(piece)
        yield encoder.finish()

    def chunks(self) -> Iterator[bytes]:
        """What goes out with BDAT; as the last ``mail_line`` has said."""
        yield self._form.content
        if not self._form.has_rest:
            return
        encoder: LineEncoder | MimeLines = LineEncoder()
        if self._mime:
            encoder = MimeLines()
            encoder.feed(self._head)
        for piece in self._file_pieces():
            yield encoder.feed(piece)
        yield encoder.finish()

    # Files

    def _read(self, message: bytes | bytearray | memoryview | Readable) -> bytes:
        """All of a message, or of a large file its head, ``_file`` being the rest."""
        if isinstance(message, (bytes, bytearray, memoryview)):
            return bytes(message)
        source = Source(message)
        pieces: list[bytes] = []
        size = 0
        while size <= MAX_MEMORY:
            piece = source.read()
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
        content = b"".join(pieces)
        end = header_envelope.split(content)
        if end > MAX_HEAD:
            raise ValueError(f"the header section is {end} octets long; at most {MAX_HEAD} can be sent from a file")
        self._file = rewindable(source, content)
        self._copied = self._file is not message
        self._source = Source(self._file)
        # (From its current position on: the caller may have read something before.)
        self._start = self._file.tell() - size + end
        return content[:end]

    def _file_pieces(self) -> Iterator[bytes]:
        assert self._file is not None
        assert self._source is not None
        self._file.seek(self._start)
        while piece := self._source.read():
            yield piece


def _needs_ascii_head(extensions: Mapping[str, str]) -> bool:
    """True if raw UTF-8 cannot stand in the header section: SMTPUTF8 needs 8BITMIME too (RFC 6531 section 3.1)."""
    return not ("SMTPUTF8" in extensions and "8BITMIME" in extensions)


def _off_the_hub(length: int, function: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function whose work grows with this length: in the thread pool, where it takes long."""
    return in_thread_pool(function, *arguments, **options) if length > LARGE else function(*arguments, **options)


def _envelope(
    fields: header_envelope.Fields, sender: str | None, recipients: str | Iterable[str] | None
) -> tuple[str, str | Iterable[str]]:
    return (
        header_envelope.sender(fields) if sender is None else sender,
        header_envelope.recipients(fields) if recipients is None else recipients,
    )


def _in_lines(content: bytes) -> _Form:
    """A whole message, its line ends made CRLF where it is lines."""
    nul = b"\0" in content
    lines = with_crlf(content)
    # What says that it is binary, but goes through as lines unchanged, needs no more than that. (To look is a pass over
    # all of it.)
    unchanged = lines is content and content.endswith(b"\r\n")
    binary = False
    if nul or (not unchanged and may_be_binary(content)):
        mime, needs_binary = _off_the_hub(len(content), _mime_lines, content)
        binary = nul or needs_binary
        lines = mime if binary else lines
    if not binary and lines and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    return _Form(lines, len(lines), not lines.isascii(), binary)


def _mime_lines(content: bytes) -> tuple[bytes, bool]:
    encoder = MimeLines()
    return encoder.feed(content) + encoder.finish(), encoder.needs_binary


def _parameters(ext: Ext) -> Parameters:
    """
    :raises ProtocolError: they are not well formed.
    """
    text = command_builder.parameters(ext)
    return parse_parameters(text) if text else NO_PARAMETERS


def _offered(given: Parameters, extensions: Mapping[str, str]) -> list[str]:
    """The parameters that a server with these extensions understands.

    :raises NotOffered: one cannot be left out.
    """
    words: list[str] = []
    for keyword, value in given.items():
        if keyword in _OURS or _LEFT_OUT.get(keyword, "") not in ("", *extensions):
            continue
        needed = _NEEDED.get(keyword)
        if needed is not None and needed not in extensions:
            raise NotOffered(needed, f"the parameter {keyword} was given")
        words.append(keyword if value is None else f"{keyword}={value}")
    return words


@lru_cache(maxsize=1024)
def _rcpt_line(address: str) -> bytes:
    """RCPT without parameters. Programs write to the same people again and again."""
    return command_builder.rcpt(_wire_mailbox(address))


@lru_cache(maxsize=1024)
def _wire_mailbox(address: str) -> str:
    """The mailbox; a domain beyond ASCII becomes A-labels where the local part can do without SMTPUTF8."""
    mailbox = command_builder.mailbox(address)
    if mailbox.isascii():
        return mailbox
    local_part, _, domain = mailbox.rpartition("@")
    # A domain that IDNA does not know (an emoji, say) stays as it is, by SMTPUTF8.
    labels = address_list.a_labels(domain) if local_part.isascii() else None
    return mailbox if labels is None else f"{local_part}@{labels}"
