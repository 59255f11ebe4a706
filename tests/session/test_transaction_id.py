"""One id follows a message: in the session, in log lines, in Received, in the Maildir, in the reply."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery.maildir import Maildir
from greensmtp.delivery.trace import received_field
from greensmtp.middleware import Logging
from greensmtp.session.mail import Mail
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

ID = r"[0-9a-f]{13,14}-[0-9a-f]{6}-[0-9a-f]+"


class Ids:
    """Handlers that note ``session.transaction_id`` at every signal."""

    def __init__(self, server: SMTPServer) -> None:
        self.seen: list[tuple[str, str]] = []
        server.on("from", self._decide("from"))
        server.on("to", self._decide("to"))
        server.on("message", self._decide("message"))
        server.on("received", self._decide("received"))

    def _decide(self, name: str) -> Callable[..., None]:
        def decide(session: Session, ack: Ack, **fields: Any) -> None:
            self.seen.append((name, session.transaction_id))
            ack.accept()

        return decide

    def take(self) -> list[str]:
        """Return the ids that were noted since the last call, each once."""
        ids = list(dict.fromkeys(noted for _, noted in self.seen))
        self.seen.clear()
        return ids


def queued(reply: str) -> str:
    """Return the id in the reply to a message."""
    found = re.fullmatch(rf"250 2\.0\.0 Ok: queued as ({ID})", reply)
    assert found, reply
    return found[1]


def test_one_id_from_mail_to_the_reply(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    ids = Ids(server)
    with dial(server) as peer:
        peer.hello()
        first = queued(peer.deliver("x\r\n"))
        assert ids.take() == [first]
        second = queued(peer.deliver("x\r\n"))
        assert ids.take() == [second]
    assert first < second  # they sort by time


def test_a_message_that_no_handler_of_received_decides_has_its_id_in_the_reply(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        queued(peer.deliver("x\r\n"))
        peer.line("MAIL FROM:<>", "RCPT TO:<b@example.com>", "BDAT 1 LAST")
        peer.send("x")
        peer.expect("250", "250")
        queued(peer.reply())


@pytest.mark.parametrize("end", ["RSET", "EHLO again"])
def test_a_new_id_after_the_transaction_was_given_up(smtp_server: MakeServer, end: str) -> None:
    server = smtp_server(start=False)
    ids = Ids(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<b@example.com>", end)
        peer.expect("250", "250", "250")
        (given_up,) = ids.take()
        assert queued(peer.deliver("x\r\n")) != given_up


def test_a_mail_that_was_refused_keeps_its_id_to_itself(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    refused: list[str] = []

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        refused.append(session.transaction_id)
        ack.reject()

    with dial(server) as peer:
        peer.hello()
        peer.line(*["MAIL FROM:<a@example.org>"] * 3)
        peer.expect("550", "550", "550")
    assert len(set(refused)) == 3


def test_a_data_that_was_refused_and_is_tried_again_belongs_to_the_same_transaction(
    smtp_server: MakeServer, tmp_path: Path
) -> None:
    server = smtp_server(start=False)
    tries: list[str] = []
    Maildir(tmp_path / "mail").attach(server)

    @server.on("received")
    def refuse_no_more(session: Session, ack: Ack) -> None:
        tries.append(session.transaction_id)

    def once(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "DATA" and not tries:
            tries.append(session.transaction_id)
            raise Reject(451, "4.3.0 later")
        return proceed(session, command)

    server.use(once)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("451")
        peer.line("DATA", "x", ".")
        peer.expect("354")
        assert {*tries} == {tries[0]}
        assert {queued(peer.reply())} == set(tries)


def test_lmtp_has_one_id_for_all_recipients(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, lmtp=True)
    ids = Ids(server)
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["a@example.com", "b@example.com"])
        peer.line("DATA", "x", ".")
        peer.expect("354")
        assert [queued(peer.reply()), queued(peer.reply())] == ids.take() * 2


def test_a_text_of_the_handlers_is_left_alone(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: ack.accept(250, "2.0.0 Ok: queued as 4f2a1"))
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("x\r\n") == "250 2.0.0 Ok: queued as 4f2a1"


def test_what_happens_at_the_end_of_a_message_has_its_id(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    names: list[str] = []

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(lambda: names.append(session.log_id))
        ack.accept()

    server.on("disconnect", lambda session, reason: names.append(session.log_id))
    with dial(server) as peer:
        peer.hello()
        assert queued(peer.deliver("x\r\n")) == names[0]
        peer.line("QUIT")
        peer.rest()
    assert names[0].endswith(f"-{names[1]}")


def test_sessions_and_processes_have_ids_of_their_own(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())

    def many(peer: Peer) -> list[str]:
        peer.hello()
        return [queued(peer.deliver("x\r\n")) for _ in range(20)]

    with dial(server) as one, dial(server) as other:
        ids = many(one) + many(other)
    assert len(set(ids)) == 40


def test_mail_has_the_id_that_the_client_is_told(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    ids: list[str] = []

    @server.on_mail
    def note(mail: Mail) -> None:
        ids.append(mail.id)

    with dial(server) as peer:
        peer.hello()
        assert queued(peer.deliver("x\r\n")) == ids[0]


FAULTS = {
    "from": "from: handler {name}.fail raised; replying 451",
    "to": "to: handler {name}.fail raised; replying 451",
    "message": "message: handler {name}.fail raised; replying 451",
    "received": "received: handler {name}.fail raised; replying 451",
}


@pytest.mark.parametrize("signal", FAULTS)
def test_a_handler_that_raises_is_logged_with_the_id(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, signal: str
) -> None:
    caplog.set_level(logging.INFO)
    server = smtp_server(start=False, middleware=[Logging()])
    ids: list[str] = []

    def fail(session: Session, ack: Ack, **fields: Any) -> None:
        ids.append(session.transaction_id)
        raise LookupError

    if signal == "received":
        server.on("message", lambda session, stream, ack: ack.accept())
    server.on(signal, fail)  # type: ignore[call-overload]
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "x", ".", "QUIT")
        peer.rest()
    name = f"{__name__}.test_a_handler_that_raises_is_logged_with_the_id.<locals>"
    lines = [record.getMessage() for record in caplog.records if ids[0] in record.getMessage()]
    assert lines[0] == f"{ids[0]} {FAULTS[signal].format(name=name)}".replace(" ", ": ", 1)
    assert lines[1].startswith(f"{ids[0]} message from=<a@example.org> ")


def test_a_middleware_that_raises_is_logged_with_the_id(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "END-OF-DATA":
            raise LookupError
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[faulty])
    ids = Ids(server)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("x\r\n").startswith("451")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{ids.take()[0]}: middleware ")


def test_received_and_the_file_of_a_maildir_have_it(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = smtp_server(start=False)
    fields: list[bytes] = []
    server.on("received", lambda session, ack: fields.append(received_field(session)))
    Maildir(tmp_path / "mail").attach(server)
    with dial(server) as peer:
        peer.hello()
        name = queued(peer.deliver("x\r\n"))
    (path,) = (tmp_path / "mail" / "new").iterdir()
    assert path.name.split(".")[1] == name
    assert f" id {name}\r\n".encode() in path.read_bytes()
    assert f" id {name}\r\n".encode() in fields[0]


def test_two_maildirs_in_one_folder_keep_a_message_twice(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = smtp_server(start=False)
    for _ in range(2):
        Maildir(tmp_path / "mail").attach(server)
    with dial(server) as peer:
        peer.hello()
        name = queued(peer.deliver("x\r\n"))
    stored = sorted((tmp_path / "mail" / "new").iterdir())
    assert [path.name.split(".")[1] for path in stored] == [name, f"{name}_2"]
    assert stored[0].read_bytes() == stored[1].read_bytes()
