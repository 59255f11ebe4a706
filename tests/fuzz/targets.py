"""The targets: functions that take any bytes, and raise only when greensmtp has a fault.

Each compares two ways of doing one thing: whole against cut in two, parsed against formatted and parsed again, our
decoder against a simple one. The first byte of the input says where the rest is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from greensmtp.protocol import address_list, canned, command_builder, header_envelope, lenient_message, xclient
from greensmtp.protocol.chunking import ChunkDecoder
from greensmtp.protocol.command import Command, PathCommand, is_foreign, parse_command
from greensmtp.protocol.content_checks import NormalNewlines
from greensmtp.protocol.dot_stuffing import DotDecoder, DotEncoder, with_crlf
from greensmtp.protocol.errors import ProtocolError, ReplySyntaxError
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.lenient_path import LENIENT_PARSERS
from greensmtp.protocol.line_reader import BadLine, LineReader
from greensmtp.protocol.mime_lines import MimeLines
from greensmtp.protocol.proxy_header import ProxyHeader, ProxyHeaderParser
from greensmtp.protocol.proxy_tlv import ProxyHeaderError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import MAX_BYTES, ReplyParser
from greensmtp.protocol.sasl import messages
from greensmtp.protocol.sasl.exchange import Refused
from greensmtp.testing import Dialogue, DialogueSyntaxError, MemoryServer

CORPUS = sorted((Path(__file__).parent.parent / "corpus").glob("*.smtp"))


#: After these, the reader is not read any more.
FINAL = (canned.NOT_SMTP, canned.LINE_WITHOUT_END)


class Target(NamedTuple):
    """A function to be fuzzed, and inputs to begin with."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _pieces(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the rest behind the first byte, and the two parts into which that byte cuts it."""
    rest = data[1:]
    at = len(rest) * (data[0] if data else 0) // 256
    return rest, rest[:at], rest[at:]


# What clients send


def _serve(pieces: Iterable[bytes], *, lmtp: bool) -> tuple[bytes, list[str]]:
    server = MemoryServer(lmtp=lmtp, max_message_size=5000, max_command=512)
    wire = b""
    for piece in pieces:
        if not server.is_closed:
            wire += server.receive(piece)
    return wire, server.events


def server(data: bytes) -> None:
    """A dialogue has the same replies and events wherever it is cut, and the replies are replies."""
    whole, *cut = _pieces(data)
    for lmtp in (False, True):
        wire, events = _serve([whole], lmtp=lmtp)
        assert _serve(cut, lmtp=lmtp) == (wire, events)
        parser = ReplyParser()
        parser.feed(wire)
        while parser.next_reply() is not None:
            pass
        assert not parser.pending


def _lines(pieces: Iterable[bytes]) -> list[bytes | Reply]:
    reader, lines = LineReader(lambda verb: 600, 600), list[bytes | Reply]()
    for piece in pieces:
        reader.feed(piece)
        while True:
            try:
                line = reader.next_line()
            except BadLine as bad:
                lines.append(bad.reply)
                if bad.reply in FINAL:
                    return lines
                continue
            if line is None:
                break
            if is_foreign(line):  # which the reader's users look for
                return [*lines, canned.NOT_SMTP]
            assert b"\n" not in line
            lines.append(line)
    return lines


def lines(data: bytes) -> None:
    """Lines end with CRLF alone, and are the same wherever the input is cut."""
    whole, *cut = _pieces(data)
    if b" HTTP/" in whole.upper():
        return  # a line of HTTP with a method of its own is known by its end, which a line that is too long lacks
    assert _lines(cut) == _lines([whole])


def command(data: bytes) -> None:
    """A path that is accepted is accepted again as the client would send it, and means the same."""
    line = data.replace(b"\r", b"").replace(b"\n", b"")
    for parsed in (parse_command(line), parse_command(line, LENIENT_PARSERS)):
        assert parsed.error is None or parsed.error.code >= 500
        if isinstance(parsed, PathCommand) and parsed.error is None:
            _again(parsed)


def _again(parsed: PathCommand) -> None:
    address = parsed.address
    build = command_builder.mail if parsed.verb == "MAIL" else command_builder.rcpt
    try:
        sent = build(address, address.parameters)
    except ProtocolError:
        return  # the client is stricter: it sends no control characters, and keywords that it knows
    again: Command = parse_command(sent.removesuffix(b"\r\n"))
    assert isinstance(again, PathCommand)
    assert again.error is None
    assert again.address.ascii_domain == address.ascii_domain
    assert again.address.local_part == address.local_part


# Bodies


def _decode(pieces: Iterable[bytes]) -> tuple[bytes, bool, bytes]:
    decoder, body, rest = DotDecoder(), b"", b""
    for piece in pieces:
        if decoder.complete:
            rest += piece
        else:
            body += decoder.feed(piece)
            rest = decoder.rest
    return body, decoder.complete, rest


def body(data: bytes) -> None:
    """Nothing but CRLF.CRLF ends data; the client's dot-stuffing and the server's undoing of it are inverse."""
    whole, *cut = _pieces(data)
    end = (b"\r\n" + whole).find(b"\r\n.\r\n")
    decoded, complete, rest = _decode([whole])
    assert complete == (end >= 0)
    if complete:
        assert rest == whole[end + 3 :]
        assert _decode(cut) == (decoded, complete, rest)
    encoder = DotEncoder()
    sent = encoder.feed(cut[0]) + encoder.feed(cut[1]) + encoder.finish()
    received = with_crlf(whole)
    if received and not received.endswith(b"\r\n"):
        received += b"\r\n"
    assert _decode([sent + b"NOOP\r\n"]) == (received, True, b"NOOP\r\n")
    normal = NormalNewlines()
    pieces = normal.feed(cut[0]) + normal.feed(cut[1], last=True)
    assert pieces == NormalNewlines().feed(whole, last=True)
    assert pieces.replace(b"\r\n", b"").count(b"\n") == 0


def chunk(data: bytes) -> None:
    """A chunk has as many bytes as BDAT has announced."""
    whole, *cut = _pieces(data)
    size = len(whole) // 2
    decoder = ChunkDecoder()
    decoder.begin(size, True)
    taken = b"".join(decoder.feed(piece) for piece in cut if not decoder.complete)
    assert taken == whole[: len(taken)]
    assert len(taken) <= size


def message(data: bytes) -> None:
    """Any bytes can be read as a message; the header section is the same wherever the message is cut."""
    whole, *cut = _pieces(data)
    parsed = lenient_message.parse(BytesIO(whole))
    for part in parsed.walk():
        part.get_content_type()
        part.get_filename()
        str(part.get("Subject"))
        part.get_payload(decode=True)
    list(parsed.iter_attachments())
    parsed.get_body()
    parsed.as_bytes()
    section, again = HeaderSection(), HeaderSection()
    assert section.feed(whole, last=True) == again.feed(cut[0]) + again.feed(cut[1], last=True)
    lines_of, in_pieces = MimeLines(), MimeLines()
    sent = lines_of.feed(whole) + lines_of.finish()
    assert in_pieces.feed(cut[0]) + in_pieces.feed(cut[1]) + in_pieces.finish() == sent


def envelope(data: bytes) -> None:
    """Header fields give an envelope, or a ProtocolError; addresses that are encoded are ASCII and mean the same."""
    try:
        fields = header_envelope.parse(data[: header_envelope.split(data)])
        header_envelope.sender(fields)
        header_envelope.recipients(fields)
    except ProtocolError:
        pass
    text = data.decode("utf-8", "replace")
    try:
        was = address_list.read(text, "To")
        encoded = address_list.encode(text, "To")
    except ProtocolError:
        return
    assert encoded.isascii()
    assert len(address_list.read(encoded, "To")) == len(was)


# What servers send


def _replies(pieces: Iterable[bytes]) -> tuple[list[Reply], bool]:
    parser, replies = ReplyParser(), list[Reply]()
    try:
        for piece in pieces:
            parser.feed(piece)
            while (reply := parser.next_reply()) is not None:
                replies.append(reply)
    except ReplySyntaxError:
        return replies, True
    return replies, False


def reply(data: bytes) -> None:
    """Replies are the same wherever the input is cut, bounded, and free of control characters."""
    whole, *cut = _pieces(data)
    replies, broken = _replies([whole])
    assert _replies(cut) == (replies, broken)
    for each in replies:
        assert 200 <= each.code < 600
        assert sum(map(len, each.lines)) <= MAX_BYTES
        assert not any(character in line for line in each.lines for character in "\r\n\x00\x1b")
    again, _ = _replies([each.encode() for each in replies])
    assert [each.code for each in again] == [each.code for each in replies]


# What proxies send


def _proxy(pieces: Iterable[bytes]) -> tuple[ProxyHeader | None, bytes] | None:
    parser, header = ProxyHeaderParser(), None
    rest = b""
    for piece in pieces:
        if header is not None:
            rest += piece
            continue
        try:
            header = parser.feed(piece)
        except ProxyHeaderError:
            return None
        if header is not None:
            rest = parser.rest
    return header, rest


def proxy(data: bytes) -> None:
    """A PROXY header is the same wherever it is cut, and the same again when it is formatted."""
    whole, *cut = _pieces(data)
    parsed = _proxy([whole])
    assert _proxy(cut) == parsed
    if parsed is None or parsed[0] is None:
        return
    header = parsed[0]
    try:
        wire = header.format()
    except ValueError:
        return  # more than a header of this version can hold
    again = ProxyHeaderParser().feed(wire)
    assert again == header


def attributes(data: bytes) -> None:
    """XCLIENT and XFORWARD attributes are the same again when they are formatted."""
    text = data.decode("utf-8", "replace")
    for verb in ("XCLIENT", "XFORWARD"):
        try:
            parsed = xclient.parse(verb, text)
        except ProtocolError:
            continue
        assert xclient.parse(verb, xclient.format(verb, parsed)) == parsed


# Logins, and files


_SASL = (
    messages.parse_plain,
    messages.parse_cram_md5,
    messages.parse_scram_first,
    messages.parse_oauthbearer,
    messages.parse_xoauth2,
    messages.parse_text,
)


def sasl(data: bytes) -> None:
    """A response of any mechanism is parsed, or refused."""
    for parse in _SASL:
        try:
            parse(data)
        except Refused:
            pass


def dialogue(data: bytes) -> None:
    """A file of a dialogue is read, or a DialogueSyntaxError says what is wrong."""
    try:
        Dialogue.parse(data.decode("utf-8", "replace"))
    except DialogueSyntaxError:
        pass


# Seeds


def _dialogues() -> Iterable[bytes]:
    for path in CORPUS:
        steps = Dialogue.load(path).steps
        yield b"\x80" + b"".join(step.data for step in steps)[:4000]


def _files() -> Iterable[bytes]:
    return (path.read_bytes() for path in CORPUS)


def _given(*seeds: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: seeds


_MESSAGE = (
    b"\x60From: =?utf-8?q?J=C3=B6?= <jo@example.com>\r\nTo: a@b.example, Group: c@d.example, e;\r\nSubject: x\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nHi\r\n--b\r\n'
    b"Content-Transfer-Encoding: binary\r\n\r\n\x00\n\r\n--b--\r\n"
)

TARGETS: dict[str, Target] = {
    "server": Target(server, _dialogues),
    "lines": Target(lines, _dialogues),
    "command": Target(
        command,
        _given(
            b"MAIL FROM:<jo@example.com> SIZE=3 BODY=8BITMIME RET=HDRS ENVID=a+2Bb",
            b'RCPT TO:<"a b"@[IPv6:::1]> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@b',
            b"MAIL FROM: a@b..c  SIZE=1",
            b"EHLO [127.0.0.1]",
            b"BDAT 10 LAST",
            b"RCPT TO:<@a.example,@b.example:jo@c.example>",
        ),
    ),
    "body": Target(body, _given(b"\x80Hi\r\n..\r\n.a\r\n.\r\nNOOP\r\n", b"\x40a\n.\nb\r.\r\r\n.\r\n")),
    "chunk": Target(chunk, _given(b"\x80abcdef")),
    "message": Target(message, _given(_MESSAGE)),
    "envelope": Target(envelope, _given(_MESSAGE[1:], b'"J, D" <jo@example.com>, (c) a @ b.example, G: x@y;')),
    "reply": Target(reply, _given(b"\x80250-a\r\n250 b\r\n354 c\r\n550 5.1.1 d\r\n", b"\x20220 a\r\n421 \xff\x1b\r\n")),
    "proxy": Target(
        proxy,
        _given(
            b"\x80PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nEHLO",
            b"\x80PROXY UNKNOWN\r\n",
            b"\x80\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x00\x01\x00\x02",
            b"\x80\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
        ),
    ),
    "attributes": Target(
        attributes, _given(b"NAME=a.example ADDR=IPV6:::1 PORT=25 LOGIN=[UNAVAILABLE]", b"NAME=a+20b SOURCE=LOCAL")
    ),
    "sasl": Target(
        sasl, _given(b"\x00jo\x00secret", b"jo 0123", b"n,,n=jo,r=abc", b"n,a=jo,\x01auth=Bearer x\x01\x01")
    ),
    "dialogue": Target(dialogue, _files),
}
