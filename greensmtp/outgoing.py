"""A message ready to be sent, once or several times: its envelope, what it needs of a server, its octets."""

from __future__ import annotations

import copy
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.generator import BytesGenerator
from email.message import Message
from email.policy import SMTPUTF8, EmailPolicy, Policy
from functools import lru_cache
from typing import Any, BinaryIO, Protocol, Union

from gevent import get_hub

from greensmtp.errors import NotOffered
from greensmtp.protocol import command_lines, headers
from greensmtp.protocol.addresses import NO_PARAMETERS
from greensmtp.protocol.command_lines import Ext
from greensmtp.protocol.parameters import parse_parameters
from greensmtp.protocol.replies import Reply
from greensmtp.protocol.transparency import DotEncoder, LineEncoder, stuffed, with_crlf

#: Octets of a file that are read at once.
PIECE = 256 * 1024
#: Octets up to which a file is kept in memory. A larger one is read twice: to know what it needs, and to send it.
MAX_MEMORY = 4 * 1024 * 1024
#: Octets in which a file's header section must end.
MAX_HEAD = 1024 * 1024
#: From how many octets on BDAT is worth its command: nothing is looked for or copied then.
CHUNKING_PAYS = 128 * 1024

_BINARY_ENCODING = re.compile(rb"^content-transfer-encoding[ \t]*:[ \t]*binary\b", re.I | re.M)
_QUEUED_AS = re.compile(r"\bqueued(?: mail)?(?: for delivery)?(?: as|:)? +<?([\w.@-]+)>?", re.I)


class Readable(Protocol):
    """A binary file, as far as we need one."""

    def read(self, size: int = ..., /) -> bytes: ...


#: What ``send`` takes.
Sendable = Union["Message[Any, Any]", bytes, bytearray, memoryview, Readable]  # (Message[...] is typeshed's alone)


@dataclass(frozen=True)
class Sent:
    """What became of a message that at least one recipient's server took."""

    sender: str
    #: Each recipient's reply: to RCPT, or in LMTP, where RCPT was accepted, to the message.
    recipients: Mapping[str, Reply] = field(repr=False)
    #: The reply to the message. (LMTP: the first that agrees.)
    reply: Reply

    @property
    def accepted(self) -> tuple[str, ...]:
        """The recipients that the message was taken for."""
        return tuple(recipient for recipient, reply in self.recipients.items() if reply.is_positive)

    @property
    def refused(self) -> dict[str, Reply]:
        """The others, with what was said about each."""
        return {recipient: reply for recipient, reply in self.recipients.items() if not reply.is_positive}

    @property
    def queue_id(self) -> str | None:
        """What the server calls the message, where its reply says ``queued as ...``; all it said is in ``reply``."""
        found = _QUEUED_AS.search(self.reply.text)
        return None if found is None else found[1]


class Outgoing:
    """One message and its envelope. Building it raises all that can be known to be wrong without a server."""

    def __init__(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: Ext = None,
        to_ext: Ext = None,
    ) -> None:
        """See ``SMTPClient.send``.

        :raises ProtocolError: an address or parameter that is not well formed, or nobody to send to or from.
        :raises TypeError: the message is of no kind that we know.
        """
        self._message: Message[Any, Any] | None = None
        self._file: BinaryIO | None = None
        self._copied = False
        self._start = 0
        derived = recipients is None
        if isinstance(message, Message):
            self._message = message
            fields = message if sender is None or recipients is None else None
            content = b""
        else:
            content = self._read(message)
            derive = sender is None or recipients is None
            fields = headers.parse(content[: headers.split(content)]) if derive else None
        if sender is None:
            assert fields is not None
            sender = headers.sender(fields)
        if recipients is None:
            assert fields is not None
            recipients = headers.recipients(fields)
        everybody = [recipients] if isinstance(recipients, str) else list(dict.fromkeys(recipients))
        if not everybody:
            raise ValueError("recipients is empty: there is nobody to send to")
        self.sender = sender
        self.recipients = tuple(everybody)
        self._mailbox = _wire_mailbox(sender)
        #: The parameters that are given, and their keywords.
        self._parameters = command_lines.parameters(from_ext)
        self._given = parse_parameters(self._parameters) if self._parameters else NO_PARAMETERS
        #: RCPT, for each recipient.
        self.rcpt_lines: Sequence[bytes]
        if to_ext:
            self.rcpt_lines = [command_lines.rcpt(_wire_mailbox(recipient), to_ext) for recipient in everybody]
        else:
            self.rcpt_lines = [_rcpt_line(recipient) for recipient in everybody]
        #: An address cannot be written without SMTPUTF8.
        self._utf8_address = not (self._mailbox.isascii() and all(map(bytes.isascii, self.rcpt_lines)))
        self._find_out(content, derived=derived)
        self._stuffed: tuple[bytes, ...] | None = None
        #: For servers without 8BITMIME: the same message in seven bits.
        self._seven_bit: bytes | None = None
        self._as_seven_bit = False

    def close(self) -> None:
        """Let go of the copy of a file that could not go back; the caller's own file stays open."""
        if self._copied and self._file is not None:
            self._file.close()

    # What it is

    def _find_out(self, content: bytes, *, derived: bool) -> None:
        """Find out what it needs. (A file: its head is in ``content`` now, the rest is looked through.)"""
        if self._message is not None:
            content = _render(self._message, utf8=self._utf8_address)
        self.eight_bit = not content.isascii()
        head = b""
        if derived or self._file is not None or self.eight_bit:
            end = headers.split(content)
            head = content[:end]
            if derived and self._message is None:
                head = headers.without_bcc(head)
                content = head + content[end:]
        #: Raw UTF-8 in the header section (RFC 6532).
        self._utf8_head = self.eight_bit and not head.isascii() and _is_utf8(head)
        lines = with_crlf(content)
        # What says that it is binary, but goes through as lines unchanged, needs no more than that. (To look is a pass
        # over all of it.)
        unchanged = lines is content and content.endswith(b"\r\n") and self._file is None
        self.binary = b"\0" in content or (
            not unchanged and b"inary" in content and _BINARY_ENCODING.search(content) is not None
        )
        self.content = content if self.binary else lines
        #: Octets, as SIZE has it (RFC 1870): CRLFs included, dots not.
        self.size = len(self.content)
        if self._file is not None:
            for piece in self._rest():
                self.eight_bit = self.eight_bit or not piece.isascii()
                self.binary = self.binary or b"\0" in piece
                self.size += len(piece)
        if not unchanged and not self.binary and self._file is None and content and not lines.endswith(b"\r\n"):
            self.content += b"\r\n"
            self.size += 2

    # What it needs

    def mail_line(self, extensions: Mapping[str, str]) -> bytes:
        """MAIL, with what the message needs and the server offers.

        :raises NotOffered: the server does not offer what cannot be done without.
        """
        given = self._given
        line = f"MAIL FROM:<{self._mailbox}>{self._parameters}"
        email = self._message is not None and not self.binary
        self._as_seven_bit = email and self.eight_bit and "8BITMIME" not in extensions
        if "SIZE" in extensions and "SIZE" not in given:
            line += f" SIZE={len(self._in_seven_bits()) if self._as_seven_bit else self.size}"
        if self.binary:
            # Whatever parameters are given: who does not know BDAT takes the octets behind it for commands.
            for keyword in ("BINARYMIME", "CHUNKING"):
                if keyword not in extensions:
                    raise NotOffered(keyword, "the message is binary")
            line += "" if "BODY" in given else " BODY=BINARYMIME"
        elif (self.eight_bit or self._utf8_address) and "BODY" not in given:
            if "8BITMIME" in extensions:
                line += " BODY=8BITMIME"
            elif self._message is None or self._utf8_address:
                raise NotOffered("8BITMIME", "the message has octets beyond ASCII")
        if (self._utf8_address or self._utf8_head) and "SMTPUTF8" not in given:
            if "SMTPUTF8" not in extensions:
                what = "an address" if self._utf8_address else "the header section"
                raise NotOffered("SMTPUTF8", f"{what} has characters beyond ASCII")
            line += " SMTPUTF8"
        return line.encode() + b"\r\n"

    def in_chunks(self, extensions: Mapping[str, str]) -> bool:
        """It goes by BDAT: it must, or that pays."""
        return self.binary or ("CHUNKING" in extensions and self.size >= CHUNKING_PAYS)

    # Its octets

    def prepare(self) -> None:
        """Do what ``data`` would do first."""
        if self._file is None:
            self._stuff()

    def data(self) -> Iterable[bytes]:
        """What goes out behind 354, the dot at the end in the last piece; as the last ``mail_line`` has said."""
        return self._stuff() if self._file is None else self._stuffed_file()

    def _stuff(self) -> tuple[bytes, ...]:
        if self._as_seven_bit:
            return (stuffed(self._in_seven_bits()), b".\r\n")
        if self._stuffed is None:
            data = stuffed(self.content)
            # Putting the end to it copies all of it: what is large goes in two pieces.
            self._stuffed = (data + b".\r\n",) if len(data) < PIECE else (data, b".\r\n")
        return self._stuffed

    def _in_seven_bits(self) -> bytes:
        if self._seven_bit is None:
            assert self._message is not None
            content = with_crlf(_render(self._message, cte_type="7bit"))
            self._seven_bit = content if content.endswith(b"\r\n") else content + b"\r\n"
        return self._seven_bit

    def _stuffed_file(self) -> Iterator[bytes]:
        encoder = DotEncoder()
        yield encoder.feed(self.content)
        for piece in self._file_pieces():
            yield encoder.feed(piece)
        yield encoder.finish()

    def chunks(self) -> Iterator[bytes]:
        """What goes out with BDAT; as the last ``mail_line`` has said."""
        yield self._in_seven_bits() if self._as_seven_bit else self.content
        if self._file is not None:
            yield from self._rest()

    def _rest(self) -> Iterator[bytes]:
        """What of the file is not in ``content``, as BDAT has it."""
        if self.binary:
            yield from self._file_pieces()
            return
        encoder = LineEncoder()
        for piece in self._file_pieces():
            yield encoder.feed(piece)
        yield encoder.finish()

    # Files

    def _read(self, message: bytes | bytearray | memoryview | Readable) -> bytes:
        """All of a message, or of a large file its head, ``_file`` being the rest."""
        if isinstance(message, (bytes, bytearray, memoryview)):
            return bytes(message)
        if isinstance(message, str) or not hasattr(message, "read"):
            raise TypeError(f"a message is an EmailMessage, bytes or a binary file, not {type(message).__name__}")
        pieces: list[bytes] = []
        size = 0
        while size <= MAX_MEMORY:
            piece = read_piece(message)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
        content = b"".join(pieces)
        end = headers.split(content)
        if end > MAX_HEAD:
            raise ValueError(f"no header section of a message is {end} octets long")
        self._file = _rewindable(message, content)
        self._copied = self._file is not message
        # (From its current position on: the caller may have read something before.)
        self._start = self._file.tell() - size + end
        return content[:end]

    def _file_pieces(self) -> Iterator[bytes]:
        assert self._file is not None
        self._file.seek(self._start)
        while True:
            piece = read_piece(self._file)
            if not piece:
                return
            yield piece


def read_piece(source: Readable) -> bytes:
    """The next piece of a file. What may wait for a disk does so in the thread pool.

    :raises TypeError: it is a text file.
    """
    piece: Any
    if isinstance(source, (io.BytesIO, tempfile.SpooledTemporaryFile)) or not hasattr(source, "fileno"):
        piece = source.read(PIECE)
    else:
        piece = get_hub().threadpool.apply(source.read, (PIECE,))
    if not isinstance(piece, (bytes, bytearray, memoryview)):
        # None, as a file that does not block gives, would pass for the end of it, and half the message for all of it.
        what = "open it with 'rb'" if isinstance(piece, str) else f"its read() gave {type(piece).__name__}"
        raise TypeError(f"a message is read from a binary file: {what}")
    return piece if isinstance(piece, bytes) else bytes(piece)


def _rewindable(source: Any, seen: bytes) -> BinaryIO:
    """The file, behind what has been read; or a copy of all of it, where it cannot go back."""
    try:
        if source.seekable():
            source.tell()
            return source  # type: ignore[no-any-return]
    except (AttributeError, OSError):
        pass
    copy: Any = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the message
    apply = get_hub().threadpool.apply
    apply(copy.write, (seen,))
    position = copy.tell()
    while True:
        piece = read_piece(source)
        if not piece:
            break
        apply(copy.write, (piece,))
    copy.seek(position)
    return copy  # type: ignore[no-any-return]


@lru_cache(maxsize=1024)
def _rcpt_line(address: str) -> bytes:
    """RCPT without parameters. Programs write to the same people again and again."""
    return command_lines.rcpt(_wire_mailbox(address))


@lru_cache(maxsize=1024)
def _wire_mailbox(address: str) -> str:
    """The mailbox; a domain beyond ASCII becomes A-labels where the local part can do without SMTPUTF8."""
    mailbox = command_lines.mailbox(address)
    if mailbox.isascii():
        return mailbox
    local_part, _, domain = mailbox.rpartition("@")
    if local_part.isascii():
        try:
            return f"{local_part}@{domain.encode('idna').decode()}"
        except UnicodeError:
            pass  # then as it is, by SMTPUTF8
    return mailbox


def _render(message: Message[Any, Any], *, utf8: bool = False, cte_type: str = "8bit") -> bytes:
    """The message's octets, without Bcc."""
    if "bcc" in message or "resent-bcc" in message:
        message = copy.copy(message)  # its list of fields is its own
        del message["bcc"]
        del message["resent-bcc"]
    policy: Policy[Any] = message.policy.clone(linesep="\r\n", cte_type=cte_type)
    if utf8:
        policy = policy.clone(utf8=True) if isinstance(policy, EmailPolicy) else SMTPUTF8
    octets = io.BytesIO()
    BytesGenerator(octets, mangle_from_=False, policy=policy).flatten(message)
    return octets.getvalue()


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True
