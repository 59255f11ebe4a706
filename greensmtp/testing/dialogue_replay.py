"""Replay dialogues against servers over sockets: any server by its address, or one of this process by ``dial``."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import Any

from gevent import Timeout, sleep, socket, with_timeout
from gevent import ssl as gevent_ssl

from greensmtp._hostport import parse_url
from greensmtp.client.dial import PORTS
from greensmtp.errors import Reject
from greensmtp.protocol import esmtp
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import HelloCommand
from greensmtp.protocol.reply import Reply
from greensmtp.server.server import SMTPServer
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream
from greensmtp.testing.dialogue import Dialogue
from greensmtp.testing.dialogue_player import DialoguePlayer, DialogueResult, Wait
from greensmtp.testing.dialogue_server import NO_SUCH_USER, event_of
from greensmtp.testing.dialogue_text import escape

#: Seconds that a server may take for any one thing.
TIMEOUT = 10.0

#: Seconds in which a reply that must not come would have come.
SILENCE = 0.2

#: Makes a connection: a connected gevent socket.
Connect = Callable[[], Any]


class ServerUnderTest:
    """A server that dialogues are replayed against, each over a connection of its own.

    ::

        server = ServerUnderTest(lambda: gevent.socket.create_connection(("127.0.0.1", 1025)))
        for path in sorted(Path("tests/corpus").glob("*.smtp")):
            print(server.replay(Dialogue.load(path)))

    The first replay asks the server what it offers; a dialogue that needs more does not apply. Neither does one that
    needs options, recipients that are refused, or users, unless ``configured`` says that the server has them.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        lmtp: bool = False,
        timeout: float = TIMEOUT,
        silence: float = SILENCE,
        replace: Mapping[str, str] | None = None,
        configured: Collection[str] = (),
    ) -> None:
        """
        :param connect: called without arguments for each connection; returns a gevent socket.
        :param timeout: seconds that the server may take for any one thing.
        :param silence: seconds for which ``S: NOTHING`` waits.
        :param replace: texts in what the client sends -> what is sent instead, such as an address that the server
            accepts for one that it does not know.
        :param configured: those keys of a header, among ``server``, ``refuse`` and ``users``, for which the server is
            configured as every dialogue asks.
        """
        self._connect = connect
        self._lmtp = lmtp
        self._timeout = timeout
        self._silence = silence
        self._replace = {old.encode(): new.encode() for old, new in (replace or {}).items()}
        self._configured = configured
        self._offers: Mapping[str, str] | None = None

    @classmethod
    def at(cls, url: str, **options: Any) -> ServerUnderTest:
        """Make one for a server's URL: ``smtp://``, ``smtps://`` or ``lmtp://host:port``, ``[lmtp+]unix:/path``.

        :param options: those of the class. ``lmtp`` may be given for a URL that does not say it.
        :raises ValueError: it is not such a URL.
        """
        where = parse_url(url)
        options["lmtp"] = options.get("lmtp", False) or where.scheme == "lmtp"

        def connect() -> Any:
            if where.path is not None:
                unix = socket.socket(socket.AF_UNIX)
                unix.connect(where.path)
                return unix
            port = PORTS[where.scheme or "smtp"] if where.port is None else where.port
            sock = socket.create_connection((where.host, port))
            return tls_socket(sock) if where.scheme == "smtps" else sock

        return cls(connect, **options)

    @property
    def offers(self) -> Mapping[str, str]:
        """What the server offers in reply to EHLO or LHLO: keyword -> parameters.

        :raises OSError: it cannot be reached.
        :raises RuntimeError: it does not greet.
        """
        if self._offers is None:
            hello = Dialogue.parse(
                f"name: hello\n\nS: 220\nC: {'LHLO' if self._lmtp else 'EHLO'} client.example\nS: 250\nC: QUIT\n"
                "S: 221|END\n"
            )
            player = DialoguePlayer(hello)
            self._drive(player, None)
            if len(player.replies) < 2 or player.replies[1][0] != 250:
                raise RuntimeError(f"the server does not greet: {player.result}")
            self._offers = esmtp.parse_offers(Reply(250, player.replies[1][1], enhanced=None))
        return self._offers

    def replay(self, dialogue: Dialogue, *, cut: int | None = None) -> DialogueResult:
        """Replay a dialogue over a new connection.

        :param cut: send the client's bytes in two pieces, cut at this place.
        :raises OSError: the server cannot be reached.
        :raises RuntimeError: it does not greet.
        """
        why = self._not_applicable(dialogue)
        if why:
            return DialogueResult(dialogue, "not applicable", got=why)
        player = DialoguePlayer(dialogue)
        self._drive(player, cut)
        assert player.result is not None
        return player.result

    def _not_applicable(self, dialogue: Dialogue) -> str:
        if dialogue.send is not None:
            return "it is for a client"
        if dialogue.lmtp is not self._lmtp:
            return f"it is for {'LMTP' if dialogue.lmtp else 'SMTP'}"
        for key, value, what in (
            ("server", dialogue.server, "with the options"),
            ("refuse", dialogue.refuse, "that refuses"),
            ("users", dialogue.users, "with the users"),
        ):
            if value and key not in self._configured:
                return f"it needs a server {what} {', '.join(value)}"
        for need in dialogue.needs:
            keyword, *wanted = need.split(" ")
            if keyword not in self.offers or not set(wanted) <= set(self.offers[keyword].split(" ")):
                return f"it needs {need}"
        return ""

    def _drive(self, player: DialoguePlayer, cut: int | None) -> None:
        """Connect, and do what the player says until it is done."""
        with Timeout(self._timeout, TimeoutError(f"timed out after {self._timeout:g} s: connecting")):
            sock = self._connect()
        try:
            sent = 0
            # One deadline for a whole reply, which a server could send byte by byte.
            replies, deadline = -1, 0.0
            while (action := player.next_action()) is not None:
                if len(player.replies) != replies:
                    replies, deadline = len(player.replies), monotonic() + self._timeout
                if isinstance(action, bytes):
                    for old, new in self._replace.items():
                        action = action.replace(old, new)
                    self._send(sock, action, None if cut is None else cut - sent)
                    deadline = monotonic() + self._timeout
                    sent += len(action)
                elif action is Wait.TLS:
                    try:
                        with Timeout(self._timeout, TimeoutError(f"timed out after {self._timeout:g} s")):
                            sock = tls_socket(sock)
                    except OSError as error:
                        player.tls_failed(str(error))
                else:
                    seconds = self._silence if action is Wait.SILENCE else max(deadline - monotonic(), 0.0)
                    data = _receive(sock, seconds)
                    if data is None:
                        player.timed_out()
                    else:
                        player.receive(data)
        finally:
            sock.close()

    def _send(self, sock: Any, data: bytes, cut: int | None) -> None:
        """Send; where the server has closed the connection, what it has said before is still to be read."""
        place = 0 if cut is None else min(max(cut, 0), len(data))
        try:
            with Timeout(self._timeout, TimeoutError()):
                for piece in (data[:place], data[place:]):
                    sock.sendall(piece)
                    # In two segments, and where the server runs in this hub, it reads the first one alone.
                    if 0 < place < len(data):
                        sleep(0.001)
        except OSError:
            pass


def tls_socket(sock: Any) -> Any:
    """Shake hands as a client that verifies nothing; return the TLS socket."""
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return gevent_ssl.SSLSocket(sock=sock, _context=context)


def _receive(sock: Any, seconds: float) -> bytes | None:
    """Return what comes, ``b""`` at the end, and None if nothing comes in time."""
    try:
        data: bytes | None = with_timeout(seconds, sock.recv, 65536, timeout_value=None)
    except OSError:
        return b""
    return data


def record_events(server: SMTPServer, dialogue: Dialogue) -> list[str]:
    """Connect handlers to a server that has not started, which accept everything but what the dialogue refuses.

    :return: the events that the handlers see, as a dialogue writes them. The list grows.
    """
    events: list[str] = []

    @server.on("greeting")
    def greeting(session: Session, greeting: HelloCommand, ack: Ack) -> None:
        ack.accept()
        events.append(f"hello {greeting.verb} {greeting.hostname}")

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        ack.accept()
        events.append(event_of("from", address))

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        if str(address) in dialogue.refuse:
            raise Reject(NO_SUCH_USER.code, f"{NO_SUCH_USER.enhanced} {NO_SUCH_USER.text}")
        ack.accept()
        events.append(event_of("to", address))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        events.append(f"message {escape(stream.read())}")

    @server.on("reset")
    def reset(session: Session) -> None:
        events.append("reset")

    @server.on("quit")
    def quit(session: Session) -> None:
        events.append("quit")

    return events
