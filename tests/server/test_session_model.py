"""Random commands, against the server and against a small model of a session: same replies, same envelopes, same mail.

The model is what RFC 5321, RFC 2033 and RFC 3030 say, in the fewest lines: one method for each verb, which returns the
codes of the replies. It knows nothing of chains, signals and bodies that flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial

#: Accepted recipients in a transaction.
MOST = 3


class Said(NamedTuple):
    """One command of the client, and the body or chunk that goes with it."""

    verb: str
    argument: str = ""
    body: bytes = b""

    @property
    def line(self) -> str:
        return f"{self.verb} {self.argument}".rstrip()


class Mail(NamedTuple):
    """A message that was accepted, for these recipients."""

    sender: str
    parameters: Mapping[str, str | None]
    recipients: tuple[str, ...]
    body: bytes


@dataclass
class Model:
    """What a server must do. It refuses the recipient ``no@``, the sender ``no@``, and bodies that begin with "no"."""

    lmtp: bool = False
    chunking: bool = True
    dsn: bool = False
    etrn: bool = False
    greeting: str = ""
    sender: str | None = None
    parameters: Mapping[str, str | None] = field(default_factory=dict)
    recipients: list[str] = field(default_factory=list)
    #: The chunks so far; None: no body is being sent.
    chunks: bytes | None = None
    mail: list[Mail] = field(default_factory=list)

    def handle(self, said: Said) -> list[int]:
        """Return the codes of the replies to a command; after 354, those to the body too."""
        if self.chunks is not None and said.verb in ("RSET", "QUIT", "HELO", "EHLO", "LHLO"):
            self.reset()  # RFC 3030 section 2
        act: Callable[[Said], list[int] | int] = getattr(self, f"on_{said.verb.lower()}", lambda said: 500)
        codes = act(said)
        return codes if isinstance(codes, list) else [codes]

    def reset(self) -> None:
        self.sender, self.parameters, self.recipients, self.chunks = None, {}, [], None

    def on_hello(self, said: Said) -> int:
        if not said.argument:
            return 501
        if (said.verb == "LHLO") is not self.lmtp:
            return 500
        self.reset()
        self.greeting = said.verb
        return 250

    on_helo = on_ehlo = on_lhlo = on_hello

    def refuse_parameters(self, said: Said, allowed: Mapping[str, bool]) -> int | None:
        """Return the refusal of a parameter."""
        for parameter in said.argument.split()[1:]:
            keyword, _, value = parameter.partition("=")
            if keyword != "AUTH" and (self.greeting == "HELO" or not allowed.get(keyword)):
                return 555
            if value == "wrong":
                return 501
            if value == "BINARYMIME" and not self.chunking:
                return 555
        return None

    def on_mail(self, said: Said) -> int:
        if "<" not in said.argument:
            return 501
        if not self.greeting or self.sender is not None:
            return 503
        refused = self.refuse_parameters(said, {"SIZE": True, "BODY": True, "RET": self.dsn})
        if refused:
            return refused
        path, *parameters = said.argument.split()
        self.sender = path.removeprefix("FROM:<").removesuffix(">")
        self.parameters = {each.partition("=")[0]: each.partition("=")[2] for each in parameters}
        return 250

    def on_rcpt(self, said: Said) -> int:
        if "<" not in said.argument:
            return 501
        if "<>" in said.argument:
            return 501
        if self.sender is None or self.chunks is not None:
            return 503
        refused = self.refuse_parameters(said, {"NOTIFY": self.dsn})
        if refused:
            return refused
        if len(self.recipients) >= MOST:
            return 452
        address = said.argument.split()[0].removeprefix("TO:<").removesuffix(">")
        if address.startswith("no@"):
            return 550
        self.recipients.append(address)
        return 250

    def on_data(self, said: Said) -> list[int] | int:
        if said.argument:
            return 501
        if not self.recipients or self.chunks is not None or self.parameters.get("BODY") == "BINARYMIME":
            return 503
        if self.sender == "no@example.org":
            return 550
        return [354, *self.end(said.body)]

    def on_bdat(self, said: Said) -> list[int] | int:
        last = said.argument.endswith("LAST")
        refusal = None
        if not self.chunking:
            refusal = 502
        elif said.argument == "x":
            refusal = 501
        elif not self.recipients:
            refusal = 503
        elif self.chunks is None and self.sender == "no@example.org":
            refusal = 550
        if refusal is not None:
            replies = len(self.recipients) if last and self.lmtp else 1
            if self.recipients:
                self.reset()
            return [refusal] * max(replies, 1)
        self.chunks = (self.chunks or b"") + said.body
        return self.end(self.chunks) if last else 250

    def end(self, body: bytes) -> list[int]:
        """Return the replies to a whole message: in LMTP one for each recipient."""
        accepted = not body.startswith(b"no")
        if accepted:
            self.mail.append(Mail(self.sender or "", self.parameters, tuple(self.recipients), body))
        replies = len(self.recipients) if self.lmtp else 1
        self.reset()
        return [250 if accepted else 554] * replies

    def on_rset(self, said: Said) -> int:
        if said.argument:
            return 501
        self.reset()
        return 250

    def on_noop(self, said: Said) -> int:
        return 250

    def on_vrfy(self, said: Said) -> int:
        return 252 if said.argument else 501

    on_expn = on_vrfy

    def on_help(self, said: Said) -> int:
        return 504 if said.argument == "XYZZY" else 214

    def on_starttls(self, said: Said) -> int:
        return 502

    def on_etrn(self, said: Said) -> int:
        if not self.etrn:
            return 502
        return 458 if self.greeting and self.sender is None else 503

    def on_quit(self, said: Said) -> int:
        return 501 if said.argument else 221


BODIES = st.sampled_from([b"", b"a\r\n", b"no\r\n", b"RSET\r\nMAIL FROM:<x@example.org>\r\n"])
LOCAL_PARTS = st.sampled_from(["a", "b", "no"])
MAIL_PARAMETERS = ["", " SIZE=9", " AUTH=<>", " RET=FULL", " BODY=BINARYMIME", " SIZE=wrong", " X=1"]


def chunk(body: bytes, ending: str) -> Said:
    return Said("BDAT", f"{len(body)}{ending}", body)


#: What clients say: mostly what a client says in order, or a session would rarely get anywhere.
USUAL = st.one_of(
    st.builds(Said, st.sampled_from(["EHLO", "HELO", "LHLO"]), st.just("client.example")),
    st.builds(
        lambda local, rest: Said("MAIL", f"FROM:<{local}@example.org>{rest}"),
        LOCAL_PARTS,
        st.sampled_from(MAIL_PARAMETERS),
    ),
    st.builds(
        lambda local, rest: Said("RCPT", f"TO:<{local}@example.com>{rest}"),
        LOCAL_PARTS,
        st.sampled_from(["", "", " NOTIFY=NEVER", " NOTIFY=wrong"]),
    ),
    st.builds(lambda body: Said("DATA", "", body), BODIES),
    st.builds(chunk, BODIES, st.sampled_from(["", " LAST"])),
)
#: One transaction, which random commands may follow, and which they may interrupt.
TRANSACTION = st.tuples(
    st.just(Said("MAIL", "FROM:<a@example.org>")),
    st.just(Said("RCPT", "TO:<b@example.com>")),
    st.one_of(USUAL, st.just(Said("RCPT", "TO:<a@example.com>"))),
    st.one_of(
        st.builds(lambda body: Said("DATA", "", body), BODIES),
        st.builds(chunk, BODIES, st.sampled_from(["", " LAST"])),
    ),
).map(list)
ODD = st.sampled_from(
    [
        *(Said(verb) for verb in ("RSET", "NOOP", "VRFY", "EXPN", "HELP", "EHLO", "LHLO", "XYZZY", "STARTTLS")),
        *(Said(verb, "jo") for verb in ("RSET", "NOOP", "VRFY", "EXPN", "QUIT", "DATA")),
        Said("HELP", "MAIL"),
        Said("HELP", "XYZZY"),
        Said("ETRN", "example.com"),
        Said("MAIL", "a@example.org"),
        Said("MAIL", "FROM:<>"),
        Said("RCPT", "a@example.com"),
        Said("RCPT", "TO:<>"),
        Said("BDAT", "x"),
    ]
)
SESSIONS = st.lists(st.one_of(USUAL.map(lambda each: [each]), TRANSACTION, ODD.map(lambda each: [each])), max_size=12)


def serve(lmtp: bool, switches: Mapping[str, bool]) -> tuple[SMTPServer, list[Mail], list[Session]]:
    """Return a server that decides as the model does, what it accepts, and its sessions."""
    server = SMTPServer(
        ("127.0.0.1", 0),
        hostname="mx.example.com",
        lmtp=lmtp,
        extensions=switches,
        max_recipients=MOST,
        max_errors=10_000,
        max_idle_commands=10_000,
    )
    mail: list[Mail] = []
    sessions: list[Session] = []

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        (ack.reject if address.local_part == "no" else ack.accept)()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        if session.from_ == "no@example.org":
            ack.reject()
            return
        ack.accept()
        body = stream.read()
        if body.startswith(b"no"):
            stream.abort(554, "5.6.0 no")
            return
        mail.append(Mail(str(session.from_), session.from_ext, tuple(map(str, session.to)), body))

    return server, mail, sessions


def play(peer: Peer, said: Said) -> list[int]:
    """Say one command, and its body where it belongs; return the codes of the replies that have come."""
    peer.send(f"{said.line}\r\n".encode() + (said.body if said.verb == "BDAT" else b""))
    codes = [int(peer.reply()[:3])]
    if codes == [354]:
        peer.send(said.body + b".\r\n")
        codes.append(int(peer.reply()[:3]))
    return codes


SWITCHES: list[dict[str, bool]] = [{}, {"CHUNKING": False, "DSN": True, "ETRN": True}]


@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
@pytest.mark.parametrize("switches", SWITCHES, ids=["usual", "switched"])
@given(groups=SESSIONS)
def test_the_server_does_what_the_model_does(lmtp: bool, switches: dict[str, bool], groups: list[list[Said]]) -> None:
    model = Model(lmtp, switches.get("CHUNKING", True), switches.get("DSN", False), switches.get("ETRN", False))
    server, mail, sessions = serve(lmtp, switches)
    hello = Said("LHLO" if lmtp else "EHLO", "client.example")
    said_all = [hello, *(said for group in groups for said in group)]
    with dial(server, timeout=2) as peer:
        peer.expect("220")
        for said in said_all[len(groups) % 2 :]:  # now and then without a greeting
            expected = model.handle(said)
            codes = play(peer, said)
            while len(codes) < len(expected):
                codes.append(int(peer.reply()[:3]))
            assert codes == expected, peer.transcript
            if codes == [221]:
                break
            (session,) = sessions
            assert (session.from_, session.to) == (model.sender, model.recipients), peer.transcript
        else:
            peer.line("NOOP")
            assert peer.reply().startswith("250 2.0.0 Ok"), peer.transcript  # no reply is left over
    assert mail == model.mail
