"""Commands as a server reads them (RFC 5321 section 4.1): a line in, an object out, by a table of verb and parser.

The rules of this file:

- Parsing never raises. A malformed line becomes a command whose ``error`` is the reply that it gets, so that the
  middleware chain sees what the client sent, whatever that was.
- A client cannot send the pseudo-commands, nor a verb beyond ASCII that Unicode's rules would turn into another one.
- The repr of a command and its form for logs show no password: see ``is_secret``.
- Any client may send any line, so every pattern runs in linear time.

How it works: ``parse_command`` decodes the line, splits off the verb, and calls the verb's entry in ``PARSERS`` with
the argument. MAIL and RCPT, which are most of the traffic, are parsed by one pattern of usual addresses; what it does
not match is parsed again by ``Address.parse``, which knows all of RFC 5321. Adding a verb is adding a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from greensmtp._compiled import mypyc_attr
from greensmtp.protocol import canned
from greensmtp.protocol.address import NO_PARAMETERS, Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.esmtp import parse_parameters
from greensmtp.protocol.mailbox import MAX_DOMAIN, MAX_LABEL, MAX_PATH
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.verb_arguments import Lookup, QueueRequest, parse_etrn, parse_lookup

#: Pseudo-commands: the middleware chain handles the life of a connection as these. No client can send them.
ACCEPT: Final = "ACCEPT"
CONNECT: Final = "CONNECT"
END_OF_DATA: Final = "END-OF-DATA"
DISCONNECT: Final = "DISCONNECT"
PSEUDO_COMMANDS: Final = frozenset({ACCEPT, CONNECT, END_OF_DATA, DISCONNECT})

#: The verb of a line that has none, or that of a pseudo-command.
UNKNOWN: Final = "UNKNOWN"

#: Verbs of RFCs that get 502 rather than 500 where no middleware implements them (RFC 5321 section 4.2.4).
KNOWN_BUT_NOT_IMPLEMENTED = frozenset({"AUTH", "ATRN", "BURL", "SAML", "SEND", "SOML", "TURN", "XCLIENT", "XFORWARD"})

#: The first words of protocols that must not be answered as if they were mail: HTTP's methods (a browser made to
#: post to a mail port), and the first bytes of a TLS handshake.
_FOREIGN = rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PRI) |\x16\x03|[^ ]* [^ ]* HTTP/\d"


@mypyc_attr(allow_interpreted_subclasses=True, serializable=True)  # serializable: copy and pickle
class Command:
    """A command of the client: a verb and its argument.

    The verb is in upper case; ``argument`` is everything behind the first space, stripped. ``error`` is the reply that
    the dispatcher gives to a malformed line, else None. Do not change a Command: one without an argument may be shared
    by all connections.
    """

    __slots__ = ("argument", "error", "verb")

    verb: str
    argument: str
    error: Reply | None

    def __init__(self, verb: str, argument: str = "", error: Reply | None = None) -> None:
        self.verb = verb
        self.argument = argument
        self.error = error

    def __str__(self) -> str:
        """Return the line as it may be logged: ``AUTH ***`` in place of what may be a password."""
        text = f"{self.verb} {self.argument}" if self.argument else self.verb
        return "AUTH ***" if self.is_secret and text != "AUTH" else text

    @property
    def is_secret(self) -> bool:
        """True if it is AUTH, or looks like an attempt at it, so that it may hold a password and must not be logged."""
        return self.verb.startswith("AUTH") or (self.verb == UNKNOWN and "AUTH" in self.argument.upper())

    @property
    def shown_verb(self) -> str:
        """The verb for a log; UNKNOWN in place of an unknown one.

        Some clients send user name and password as lines of their own after AUTH was refused, so a verb may be one.
        """
        if self.is_secret:
            return "AUTH"
        known = self.verb in PARSERS or self.verb in KNOWN_BUT_NOT_IMPLEMENTED or self.verb in PSEUDO_COMMANDS
        return self.verb if known else UNKNOWN

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"


@mypyc_attr(allow_interpreted_subclasses=True)
class HelloCommand(Command):
    """HELO, EHLO or LHLO, with the name that the client gives itself."""

    __slots__ = ("hostname",)

    hostname: str

    def __init__(self, verb: str, argument: str, hostname: str, error: Reply | None = None) -> None:
        self.verb = verb
        self.argument = argument
        self.hostname = hostname
        self.error = error


@mypyc_attr(allow_interpreted_subclasses=True)
class PathCommand(Command):
    """MAIL or RCPT, with its path; ``address`` is the null path where ``error`` says that it is malformed."""

    __slots__ = ("address",)

    address: Address

    def __init__(self, verb: str, argument: str, address: Address, error: Reply | None = None) -> None:
        self.verb = verb
        self.argument = argument
        self.address = address
        self.error = error


@mypyc_attr(allow_interpreted_subclasses=True)
class ChunkCommand(Command):
    """BDAT (RFC 3030): ``size`` bytes follow it; the ``last`` chunk ends the message."""

    __slots__ = ("last", "size")

    size: int
    last: bool

    def __init__(self, verb: str, argument: str, size: int, last: bool, error: Reply | None = None) -> None:
        self.verb = verb
        self.argument = argument
        self.size = size
        self.last = last
        self.error = error


@mypyc_attr(allow_interpreted_subclasses=True)
class LookupCommand(Command):
    """VRFY or EXPN, with what it asks for; ``lookup`` is empty where ``error`` says that it is malformed."""

    __slots__ = ("lookup",)

    def __init__(self, verb: str, argument: str, lookup: Lookup, error: Reply | None = None) -> None:
        self.verb = verb
        self.argument = argument
        self.lookup = lookup
        self.error = error


@mypyc_attr(allow_interpreted_subclasses=True)
class QueueCommand(Command):
    """ETRN (RFC 1985), with the queue that is to be started; empty where ``error`` says that it is malformed."""

    __slots__ = ("queue",)

    def __init__(self, verb: str, argument: str, queue: QueueRequest, error: Reply | None = None) -> None:
        self.verb = verb
        self.argument = argument
        self.queue = queue
        self.error = error


@mypyc_attr(allow_interpreted_subclasses=True)
class EndOfData(Command):
    """The pseudo-command ``END-OF-DATA``: the body is complete. In LMTP there is one for each ``recipient``."""

    __slots__ = ("recipient",)

    recipient: Address | None

    def __init__(self, recipient: Address | None = None) -> None:
        self.verb = END_OF_DATA
        self.argument = recipient or ""
        self.error = None
        self.recipient = recipient


NO_ADDRESS: Final = Address("", "", "")

_new_str: Final = str.__new__

#: ``FROM:<local@domain> parameters``, as nearly every client writes it, matched in one step. What it does not match, or
#: what has a dot beside a dot or a hyphen, ``_parse_any_path`` parses. The pattern has only runs of one class, and
#: letters in both cases, since alternatives, repeated groups and IGNORECASE make a pattern slow. A local part that
#: might make the path too long does not match.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_ATOMS = _ATOM.replace("[", "[.")
_USUAL = rf": *<({_ATOM}(?:{_ATOMS}{{0,188}}{_ATOM})?)@([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)>(?: +(.*))?"
#: A blank behind the colon is wrong, but so common that it is accepted.
_ANY_PATH = r'(FROM|TO): *<((?:"(?:[^"\\]|\\.)*"|[^<>"])*)>(?: +(.*))?'
#: Leading zeros count for nothing: if client and server read a size differently, a body would be run as commands.
_CHUNK = r"(?=[0-9])0*+([0-9]{0,20})(?: +([Ll][Aa][Ss][Tt]))?"


_PATH_TOO_LONG = "Path too long (RFC 5321 section 4.5.3.1.3)"


class _Path(NamedTuple):
    """How one verb's path is parsed."""

    usual: re.Pattern[str]
    word: str
    syntax: Reply
    malformed: Reply
    #: ``<>`` is allowed.
    may_be_null: bool


_MAIL = _Path(re.compile(f"[Ff][Rr][Oo][Mm]{_USUAL}"), "FROM", canned.MAIL_SYNTAX, canned.BAD_SENDER, True)
_RCPT = _Path(re.compile(f"[Tt][Oo]{_USUAL}"), "TO", canned.RCPT_SYNTAX, canned.BAD_RECIPIENT, False)


def _path_parser(path: _Path) -> Callable[[str, str], Command]:
    """Return the parser of one verb's path and parameters. (A closure each: no look-up by verb on the hot path.)"""
    usual = path.usual.fullmatch

    def parse(verb: str, argument: str) -> Command:
        match = usual(argument)
        if match is None or ".." in argument or ("-" in argument and ("-." in argument or ".-" in argument)):
            return _parse_any_path(verb, argument, path)
        local_part, domain, rest = match.groups()
        if len(domain) > MAX_LABEL:
            return _parse_any_path(verb, argument, path)
        domain = domain.lower()
        parameters = NO_PARAMETERS
        if rest is not None:
            try:
                parameters = parse_parameters(rest)
            except ProtocolError as error:
                return PathCommand(verb, argument, NO_ADDRESS, Reply(501, f"5.5.4 {error}"))
        # As in Address.__new__, which a class calls by a slow way: 1 % of the server's work for a message.
        address = _new_str(Address, f"{local_part}@{domain}")
        address.local_part = local_part
        address.domain = domain
        address.parameters = parameters
        return PathCommand(verb, argument, address)

    return parse


def _parse_any_path(verb: str, argument: str, path: _Path) -> PathCommand:
    """Parse a path that is not a usual one."""
    match = re.fullmatch(_ANY_PATH, argument, re.IGNORECASE)
    if match is None or match[1].upper() != path.word:
        return PathCommand(verb, argument, NO_ADDRESS, path.syntax)
    try:
        parameters = parse_parameters(match[3] or "")
    except ProtocolError as error:
        return PathCommand(verb, argument, NO_ADDRESS, Reply(501, f"5.5.4 {error}"))
    malformed = path.malformed
    if len(match[2].encode()) > MAX_PATH:
        return PathCommand(verb, argument, NO_ADDRESS, Reply(501, f"{malformed.enhanced} {_PATH_TOO_LONG}"))
    try:
        address = Address.parse(match[2], parameters)
    except ProtocolError as error:
        return PathCommand(verb, argument, NO_ADDRESS, Reply(malformed.code, f"{malformed.enhanced} {error}"))
    return PathCommand(verb, argument, address, None if address or path.may_be_null else malformed)


def _parse_greeting(verb: str, argument: str) -> Command:
    # RFC 5321 section 4.1.4 forbids refusing a client for a name that does not resolve. Printers and PCs send names
    # with spaces and umlauts. Code that shows the name escapes it.
    if not argument.isprintable():
        argument = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in argument)
    error = None if 0 < len(argument) <= MAX_DOMAIN else canned.NEEDS_HOSTNAME
    return HelloCommand(verb, argument, argument, error)


def _parse_bdat(verb: str, argument: str) -> Command:
    match = re.fullmatch(_CHUNK, argument)
    if match is None:
        return ChunkCommand(verb, argument, 0, False, canned.BDAT_SYNTAX)
    return ChunkCommand(verb, argument, int(match[1] or 0), match[2] is not None)


def _parse_lone(verb: str, argument: str) -> Command:
    return Command(verb, argument, canned.NO_ARGUMENT if argument else None)


_NO_LOOKUP, _NO_QUEUE = Lookup("", None), QueueRequest("domain", "")


def _parse_lookup(verb: str, argument: str) -> Command:
    try:
        return LookupCommand(verb, argument, parse_lookup(argument))
    except ProtocolError as error:
        return LookupCommand(verb, argument, _NO_LOOKUP, _malformed_argument(argument, error))


def _parse_etrn(verb: str, argument: str) -> Command:
    try:
        return QueueCommand(verb, argument, parse_etrn(argument))
    except ProtocolError as error:
        return QueueCommand(verb, argument, _NO_QUEUE, _malformed_argument(argument, error))


def _malformed_argument(argument: str, error: ProtocolError) -> Reply:
    return Reply(501, f"5.5.4 {error}") if argument else canned.NEEDS_ARGUMENT


#: verb -> parser of its argument. Anything may follow NOOP and HELP (RFC 5321 sections 4.1.1.8, 4.1.1.9).
PARSERS: Mapping[str, Callable[[str, str], Command]] = {
    "HELO": _parse_greeting,
    "EHLO": _parse_greeting,
    "LHLO": _parse_greeting,
    "MAIL": _path_parser(_MAIL),
    "RCPT": _path_parser(_RCPT),
    "DATA": _parse_lone,
    "BDAT": _parse_bdat,
    "RSET": _parse_lone,
    "NOOP": Command,
    "VRFY": _parse_lookup,
    "EXPN": _parse_lookup,
    "ETRN": _parse_etrn,
    "HELP": Command,
    "QUIT": _parse_lone,
    "STARTTLS": _parse_lone,
}


def is_foreign(data: bytes) -> bool:
    """Return True if this begins another protocol (HTTP, TLS), which must not be answered as if it were SMTP."""
    return re.match(_FOREIGN, data, re.IGNORECASE) is not None


def parse_command(line: bytes, parsers: Mapping[str, Callable[[str, str], Command]] = PARSERS) -> Command:
    """Parse one command line, given without its CRLF. Never raises: a malformed line has its ``error`` set.

    :param parsers: other ones, such as ``lenient_path.LENIENT_PARSERS``.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return _malformed(line)
    if not text.isprintable():
        # A tab is not in the grammar, but scripts send it. Any other control character is refused.
        text = text.replace("\t", " ")
        # The joiner and the non-joiner are not printable, but occur in Persian and Indic domains (RFC 5892 A.1, A.2).
        if not text.replace("\u200c", "").replace("\u200d", "").isprintable():
            return _malformed(line)
    verb, _, argument = text.partition(" ")
    if not verb.isascii():
        return Command(UNKNOWN, text)  # upper() would make MAIL of "ma\u0131l"
    verb = verb.upper()
    parser = parsers.get(verb)
    if parser is not None:
        return parser(verb, argument.strip())
    if verb in PSEUDO_COMMANDS or not verb:
        return Command(UNKNOWN, text)
    return Command(verb, argument.strip())


def _malformed(line: bytes) -> Command:
    """Return a command that is not text; with its verb if that is known, so that a malformed AUTH is redacted too.

    The reply is 501 if the argument alone is malformed (RFC 5321 section 4.1.2), else 500.
    """
    verb = line[:4].decode("ascii", "replace").upper()
    verb = verb if verb in PARSERS or verb in KNOWN_BUT_NOT_IMPLEMENTED else UNKNOWN
    argument = line if verb == UNKNOWN else line[4:].strip(b" \t")
    error = canned.ARGUMENT_NOT_TEXT if verb != UNKNOWN and line[4:5] in (b" ", b"\t") else canned.NOT_TEXT
    text = repr(argument)[2:-1]  # escaped: this goes into logs
    if verb == "BDAT":
        return ChunkCommand(verb, text, 0, False, error)
    if verb in ("MAIL", "RCPT"):
        return PathCommand(verb, text, NO_ADDRESS, error)
    if verb in ("VRFY", "EXPN"):
        return LookupCommand(verb, text, _NO_LOOKUP, error)
    if verb == "ETRN":
        return QueueCommand(verb, text, _NO_QUEUE, error)
    if verb in ("HELO", "EHLO", "LHLO"):
        name = _legacy_text(line[4:])
        return HelloCommand(verb, text, "", error) if name is None else _parse_greeting(verb, name.strip())
    return Command(verb, text, error)


def _legacy_text(argument: bytes) -> str | None:
    """Decode a greeting's argument that is not UTF-8, as Latin-1; escape it where it is another code page.

    Return None if it has control characters, or if it is UTF-8 that is not printable.
    """
    argument = argument.replace(b"\t", b" ")
    if not argument.startswith(b" ") or re.search(rb"[\x00-\x1f\x7f]", argument):
        return None
    try:
        argument.decode()
    except UnicodeDecodeError:
        text = argument.decode("latin-1")
        return text if text.isprintable() else argument.decode("ascii", "backslashreplace")
    return None
