"""``PreparedMessage``: a message and its envelope, ready to be sent once or several times.

- The constructor finds all errors that do not depend on the server. It parses the envelope (``_set_recipients``) and
  analyses the content (``_analyse``).
- ``mail_line(extensions)`` picks a form of the message that this server can accept, and re-encodes the message if
  necessary. ``data``, ``chunks``, ``size`` and ``rcpt_lines`` belong to that form.
- Of a large message, only the header section is kept in memory; a ``MessageRest`` reads the rest.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from email.message import Message
from typing import Any, Union

from greensmtp.client import rendering, rendering_fields
from greensmtp.client.envelope_lines import (
    MailExt,
    RcptExt,
    offered,
    parse_ext,
    rcpt_line,
    sent_mailbox,
    takes_utf8,
)
from greensmtp.client.envelope_options import SEND_KEYWORDS, SendKeywords, mail_parameters, merged, rcpt_parameters
from greensmtp.client.message_content import (
    MAX_HEAD,
    MAX_MEMORY,
    Form,
    MessageRest,
    in_lines,
    offload,
    read_message,
)
from greensmtp.client.signing import Signer, check_signer, signed
from greensmtp.client.sources import READ_BYTES, Readable
from greensmtp.errors import NotOffered
from greensmtp.protocol import command_builder, header_envelope
from greensmtp.protocol.address import NO_PARAMETERS, Parameters
from greensmtp.protocol.dot_stuffing import stuffed, with_crlf
from greensmtp.protocol.options import RcptOptions

#: Size in bytes from which BDAT is faster than DATA: the content is neither searched for dots nor copied.
CHUNKING_PAYS = 128 * 1024

#: Parameters that are computed from this message: a session's parameters describe another one.
_COMPUTED = frozenset({"SIZE", "BODY", "SMTPUTF8"})

#: The messages that ``send`` accepts.
Sendable = Union["Message[Any, Any]", bytes, bytearray, memoryview, Readable]  # (Message[...] is typeshed's alone)


class PreparedMessage:
    """A message and its envelope."""

    # Defaults that most messages do not change.

    #: The caller's parameters for MAIL, and for each RCPT; empty for none.
    _given: Parameters = NO_PARAMETERS
    _rcpt_given: Sequence[Parameters] = ()
    #: True if the message has header fields in UTF-8, as the caller says.
    _utf8_given = False
    #: The message object, if it is one; and what follows the header section of a large message.
    _message: Message[Any, Any] | None = None
    _rest: MessageRest | None = None
    #: True if the header section has raw UTF-8 (RFC 6532).
    _utf8_head = False
    #: True if the message may be sent only over TLS, and only to servers with REQUIRETLS (RFC 8689).
    requires_tls = False
    #: Whether to add Date and Message-ID; None: to composed messages.
    _add_fields: bool | None = None
    _sign: Signer | None = None
    #: The extensions for which ``mail_line`` was last called, and what it returned.
    _line_extensions: Mapping[str, str] | None = None
    _mail_line = b""
    #: The recipients whose addresses need SMTPUTF8.
    utf8_recipients: Sequence[str] = ()

    def __init__(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: MailExt = None,
        to_ext: RcptExt | Sequence[RcptExt] = None,
        add_fields: bool | None = None,
        sign: Signer | None = None,
        options: SendKeywords | None = None,
    ) -> None:
        """See ``SMTPClient.send``.

        :param options: the other keywords of ``send``.
        :raises ProtocolError: an address or parameter is malformed, an address field cannot be read, or the message
            names no sender or recipient.
        :raises TypeError: the message is of an unknown type.
        """
        if add_fields is not None:
            self._add_fields = add_fields
        if sign is not None:
            self._sign = check_signer(sign)
        derived = recipients is None
        content = b""
        if isinstance(message, Message):
            self._message = message
        else:
            content, rest = read_message(message)
            if rest is not None:
                self._rest = rest
            content = header_envelope.without_mbox_line(content)
        try:
            if sender is None or recipients is None:
                fields = self._fields(content)
                length = sum(len(text) for _, text in fields)
                if sender is None:
                    sender = offload(length, header_envelope.sender, fields)
                if recipients is None:
                    recipients = offload(length, header_envelope.recipients, fields)
            self.sender = sender
            self._mailbox = sent_mailbox(sender)
            recipients = [recipients] if isinstance(recipients, str) else list(recipients)
            self._set_recipients(recipients)
            if from_ext or to_ext or options:
                self._set_parameters(recipients, from_ext, to_ext, options or {})
            self._find_utf8()
            self._analyse(content, derived=derived)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the temporary copy of a file that cannot seek; the caller's own file stays open."""
        if self._rest is not None:
            self._rest.close()

    # The envelope

    def _fields(self, content: bytes) -> header_envelope.Fields:
        """Return the header fields, from which the envelope is taken."""
        if self._message is not None:
            return rendering_fields.envelope_fields(self._message)
        head = content[: header_envelope.split(content)]
        fields: header_envelope.Fields = offload(len(head), header_envelope.parse, head)
        return fields

    def _set_recipients(self, recipients: list[str]) -> None:
        if not recipients:
            raise ValueError("expected at least one recipient; got none")
        self.recipients = tuple(dict.fromkeys(recipients))
        #: RCPT for each recipient.
        self.rcpt_lines: Sequence[bytes] = list(map(rcpt_line, self.recipients))

    def _set_parameters(
        self,
        recipients: list[str],
        from_ext: MailExt,
        to_ext: RcptExt | Sequence[RcptExt],
        options: SendKeywords,
    ) -> None:
        """Parse the parameters that the caller gave.

        :param recipients: as given by the caller; the same one may appear twice.
        """
        given = merged(parse_ext(from_ext), mail_parameters(options, SEND_KEYWORDS))
        self._given = {keyword: value for keyword, value in given.items() if keyword not in _COMPUTED}
        self._utf8_given = "SMTPUTF8" in given
        self.requires_tls = "REQUIRETLS" in given
        for_all = rcpt_parameters(options, SEND_KEYWORDS)
        if to_ext is None or isinstance(to_ext, (str, Mapping, RcptOptions)):
            to_ext = [to_ext] * len(recipients)
        elif len(to_ext) != len(recipients):
            raise ValueError(f"expected to_ext for {len(recipients)} recipients; got it for {len(to_ext)}")
        each = {recipient: parse_ext(ext) for recipient, ext in zip(recipients, to_ext, strict=True)}
        if for_all or any(each.values()):
            self._rcpt_given = [merged(parameters, for_all) for parameters in each.values()]

    def _find_utf8(self) -> None:
        """Determine which addresses and parameters need SMTPUTF8."""
        #: True if an address or parameter needs SMTPUTF8.
        self._utf8_address = not self._mailbox.isascii()
        self.utf8_recipients = ()
        if not all(map(bytes.isascii, self.rcpt_lines)):
            lines = zip(self.recipients, self.rcpt_lines, strict=True)
            self.utf8_recipients = [recipient for recipient, line in lines if not line.isascii()]
            self._utf8_address = True
        if not self._given and not self._rcpt_given:
            return
        for parameters in (self._given, *self._rcpt_given):
            if not all(value is None or value.isascii() for value in parameters.values()):
                self._utf8_address = True

    def part(self, recipients: Collection[str]) -> PreparedMessage:
        """Return the same message for some of its recipients. Do not close it or keep it longer than this one."""
        part = copy.copy(self)
        kept = [index for index, recipient in enumerate(self.recipients) if recipient in recipients]
        part.recipients = tuple(self.recipients[index] for index in kept)
        part._rcpt_given = [self._rcpt_given[index] for index in kept] if self._rcpt_given else ()
        part.rcpt_lines = [rcpt_line(recipient) for recipient in part.recipients]
        part._line_extensions = None
        part._find_utf8()
        return part

    # Analysis

    def _analyse(self, content: bytes, *, derived: bool) -> None:
        """Determine which extensions the message needs.

        :param content: the whole message, or the header section of a file, the rest of which is read now.
        :param derived: True if the recipients were taken from the header section, so that Bcc is removed.
        """
        if self._message is not None:
            content = self._render()
        eight_bit = not content.isascii()
        head = b""
        adds = self._add_fields is True and self._message is None
        if derived or adds or self._rest is not None or eight_bit or len(content) > MAX_MEMORY:
            end = header_envelope.split(content)
            if end > MAX_HEAD and not derived:
                end = 0  # text without a header section
            head = content[:end]
            if self._rest is None and len(content) > MAX_MEMORY and end <= MAX_HEAD:
                self._rest = MessageRest(io.BytesIO(content), end)
                content = head
            if derived and self._message is None:
                head = header_envelope.without_bcc(head)
                content = head if self._rest is not None else head + content[end:]
            if adds and (found := header_envelope.names(head)):
                added = rendering_fields.missing_fields(found, self._mailbox)
                head, content = added + head, added + content
        if eight_bit:
            self._utf8_head = not head.isascii() and header_envelope.is_utf8(head)
        self._head = content
        self._forms: dict[tuple[bool, bool], Form] = {}
        self._form = self._plain = self._rest.scan(content) if self._rest is not None else in_lines(content)

    def _render(self, *, seven_bit: bool = False) -> bytes:
        """Return the bytes of a message object, with Date and Message-ID added if they are missing."""
        message = self._message
        assert message is not None
        if not seven_bit:
            self._added = b""
            if self._add_fields or (self._add_fields is None and rendering_fields.is_composed(message)):
                self._added = rendering_fields.missing_fields({name.lower() for name in message}, self._mailbox)
        length = rendering.size(message)
        data: bytes = offload(length, rendering.render, message, utf8=self._utf8_address, seven_bit=seven_bit)
        return self._added + data

    @property
    def size(self) -> int:
        """The size of the whole message in bytes, before dot-stuffing."""
        return self._form.size

    # The form that a server accepts

    def mail_line(self, extensions: Mapping[str, str]) -> bytes:
        """Pick a form of the message, and return MAIL with the parameters that it needs and the server offers.

        :raises NotOffered: the server lacks an extension that the message needs.
        """
        if extensions is self._line_extensions:
            return self._mail_line
        form = self._fitting(extensions)
        if self._sign is not None:
            form = signed(form, self._sign)
        self._form = form
        words = offered(self._given, extensions) if self._given else []
        if self._rcpt_given:
            self.rcpt_lines = [
                command_builder.rcpt(sent_mailbox(recipient), " ".join(offered(given, extensions)))
                for recipient, given in zip(self.recipients, self._rcpt_given, strict=True)
            ]
        if "SIZE" in extensions:
            words.append(f"SIZE={form.size}")
        if form.binary:
            words.append("BODY=BINARYMIME")
        elif form.eight_bit or self._utf8_address:
            words.append("BODY=8BITMIME")
        if self._utf8_address or (self._utf8_head and takes_utf8(extensions)):
            words.append("SMTPUTF8")
        elif self._utf8_given and "SMTPUTF8" in extensions:
            words.append("SMTPUTF8")  # for the header fields of its parts
        line = f"MAIL FROM:<{self._mailbox}>"
        self._line_extensions = extensions
        self._mail_line = " ".join([line, *words]).encode() + b"\r\n"
        return self._mail_line

    def _fitting(self, extensions: Mapping[str, str]) -> Form:
        """Return a form that the server can accept; encode the parts that need an extension that it does not offer.

        :raises NotOffered: that is impossible, or would break a signature.
        """
        if self._utf8_address:
            for keyword in ("8BITMIME", "SMTPUTF8"):
                if keyword not in extensions:
                    raise NotOffered(keyword, f"{self._what_is_utf8()} has non-ASCII characters")
        form = self._plain
        head = self._utf8_head and not takes_utf8(extensions)
        if head:
            form = self._encoded(head=True, body=False)
        missing = ""
        if form.binary:
            # A server without CHUNKING would parse the bytes after BDAT as commands.
            missing = next((keyword for keyword in ("BINARYMIME", "CHUNKING") if keyword not in extensions), "")
        elif form.eight_bit and "8BITMIME" not in extensions:
            missing = "8BITMIME"
        if missing:
            what = "is binary" if form.binary else "has non-ASCII bytes"
            if self._message is None:
                raise NotOffered(missing, f"the message {what}")
            if rendering.is_signed(self._message):
                raise NotOffered(missing, f"the message {what}, is signed and must not be encoded")
            form = self._encoded(head=head, body=True)
            if form.binary or form.eight_bit:
                raise NotOffered(missing, f"the message {what}")
        return form

    def _what_is_utf8(self) -> str:
        if not self._mailbox.isascii():
            return f"the sender {self.sender!r}"
        return f"the recipient {self.utf8_recipients[0]!r}" if self.utf8_recipients else "a parameter"

    def _encoded(self, *, head: bool, body: bool) -> Form:
        form = self._forms.get((head, body))
        if form is None:
            content = self._render(seven_bit=True) if body else self._plain.content
            if head:
                end = header_envelope.split(content)
                encoded = header_envelope.in_ascii(content[:end])
                if encoded is None or (self._message is not None and rendering.is_signed(self._message)):
                    raise NotOffered("SMTPUTF8", "the header section has non-ASCII characters")
                if self._rest is not None and not body:
                    encoded = with_crlf(encoded)
                    size = self._plain.size - len(content) + len(encoded)
                    form = Form(encoded, size, self._rest.eight_bit, self._plain.binary, rest=self._rest)
                else:
                    content = encoded + content[end:]
            if form is None:
                form = in_lines(content)
            self._forms[head, body] = form
        return form

    def in_chunks(self, extensions: Mapping[str, str]) -> bool:
        """Return True if the message is sent by BDAT, because it must be, or because that is faster."""
        return self._form.binary or ("CHUNKING" in extensions and self._form.size >= CHUNKING_PAYS)

    # The bytes to send

    def prepare(self) -> None:
        """Do the dot-stuffing that ``data`` needs, unless the message is read from a file."""
        if self._form.rest is None:
            self.data()

    def keep(self, extensions: Mapping[str, str]) -> bool:
        """Encode the message; return False if it will still be read from the caller's file.

        :raises NotOffered: as ``mail_line``.
        """
        self.mail_line(extensions)
        self.prepare()
        return self._form.rest is None

    def data(self) -> Iterable[bytes]:
        """Return the bytes to send after 354, in pieces; the last one ends with the final dot."""
        form = self._form
        if form.rest is not None:
            return form.rest.stuffed(form.content)
        if form.stuffed is None:
            data = stuffed(form.content)
            # Appending the final dot copies all of it, so large content is sent in two pieces.
            form.stuffed = (data + b".\r\n",) if len(data) < READ_BYTES else (data, b".\r\n")
        return form.stuffed

    def chunks(self) -> Iterator[bytes]:
        """Return the bytes to send by BDAT, in pieces."""
        yield self._form.content
        if self._form.rest is not None:
            yield from self._form.rest.in_lines(self._head)
