"""The Logging middleware: its lines, its fields, and secrets, which no log record shows."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import pytest
from gevent import sleep
from gevent.event import Event

from greensmtp import Ack, Address, Command, ProtocolError, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Logging
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

USUAL = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that the middleware has added to a record."""
    return {name: value for name, value in record.__dict__.items() if name not in USUAL}


@pytest.fixture
def server(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> SMTPServer:
    """A server that logs everything, and accepts mail."""
    caplog.set_level(logging.DEBUG)
    server = smtp_server(start=False, middleware=[Logging()])
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


def play(server: SMTPServer, *, mail: bool = True) -> None:
    """Run a session from beginning to end."""
    over = Event()

    @server.on("disconnect")
    def disconnected(session: Session, reason: str) -> None:
        over.set()

    with dial(server, source=("192.0.2.1", 4711)) as peer:
        peer.hello()
        if mail:
            peer.deliver(b"12345\r\n", sender="jo@example.org", to=["a@example.com", "b@example.com"])
        peer.line("XYZZY", "QUIT")
        peer.expect("500", "221")
        peer.expect_end()
        assert over.wait(5)
        peer.let_it_read()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "greensmtp.session"]


# Lines


def of_event(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.__dict__.get("event") == event]


def test_a_session_reads_as_a_dialogue(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    play(server)
    expected = [
        ("CONNECT from 192.0.2.1", "220 "),
        ("EHLO client.example", "250 "),
        ("MAIL FROM:<jo@example.org>", "250 2.1.0 "),
        ("RCPT TO:<a@example.com>", "250 2.1.5 "),
        ("RCPT TO:<b@example.com>", "250 2.1.5 "),
        ("DATA", "354 "),
        ("message from=<jo@example.org> to=<a@example.com>,<b@example.com> size=7 peer=192.0.2.1", "250 2.0.0 "),
        ("XYZZY", "500 5.5.1 "),
        ("QUIT", "221 2.0.0 "),
        (
            "session peer=192.0.2.1 tls=- greeting=ehlo:client.example identity=- messages=1 recipients=2 octets=7",
            "quit",
        ),
    ]
    got = lines(caplog)
    assert len(got) == len(expected)
    session_id = got[0].split()[0]
    transaction_id = got[2].split()[0]
    assert transaction_id.endswith(f"-{session_id}")
    for number, (line, (command, reply)) in enumerate(zip(got, expected, strict=True)):
        name = transaction_id if 2 <= number <= 6 else session_id
        assert line.startswith(f"{name} {command} -> {reply}"), line
        assert line.endswith(" ms)")
        assert "\n" not in line


def test_sessions_and_transactions_are_information_and_commands_are_for_debugging(
    server: SMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    play(server)
    records = [record for record in caplog.records if record.name == "greensmtp.session"]
    assert [record.__dict__["event"] for record in records if record.levelno == logging.INFO] == [
        "transaction",
        "session",
    ]
    assert {record.__dict__["event"] for record in records if record.levelno == logging.DEBUG} == {"command"}
    caplog.clear()
    caplog.set_level(logging.INFO)
    play(server)
    assert [record.__dict__["event"] for record in caplog.records] == ["transaction", "session"]


@pytest.mark.parametrize("level", [logging.WARNING, "WARNING", "warning"])
def test_the_level_and_the_logger_can_be_chosen(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, level: int | str
) -> None:
    caplog.set_level(logging.INFO)
    own = Logging("mail.of.mine", level=level)
    assert own.logger is Logging(logging.getLogger("mail.of.mine")).logger
    play(smtp_server(start=False, middleware=[own]), mail=False)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mail.of.mine", logging.WARNING)
    assert record.__dict__["event"] == "session"


@pytest.mark.parametrize("level", ["LOUD", 0, -1, True, None, 1.5])
def test_a_level_that_is_none_is_refused(level: Any) -> None:
    with pytest.raises(ValueError, match="level takes a number of at least 1, or a name like 'INFO'"):
        Logging(level=level)


def test_a_logger_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"logger takes a logging\.Logger, or the name of one"):
        Logging(logging.NullHandler())  # type: ignore[arg-type]


def test_it_shows_in_a_stack() -> None:
    assert repr(Logging()) == "Logging(level='INFO')"
    assert repr(Logging("mail", "debug")) == "Logging('mail', level='DEBUG')"


def test_what_the_logger_does_not_want_is_not_logged(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="greensmtp.session")
    play(server)
    assert lines(caplog) == []


def test_nothing_a_peer_says_breaks_a_line(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    evil = [b"NOOP a\rb\r\n", b"NOOP \x1b[31mred\r\n", b"NOOP \x00\x07\r\n", b"VRFY \xff\xfe\r\n", b"one\ntwo\r\n"]
    unicode = "NOOP \u2028 \u0085 \u202e\r\n".encode()
    with dial(server) as peer:
        peer.hello()
        for line in (*evil, unicode):
            peer.send(line)
            peer.reply()
        peer.line("QUIT")
        assert b"221" in peer.rest()
    assert len(lines(caplog)) >= len(evil)
    for shown in lines(caplog):
        assert shown.isprintable(), shown


# Facts


def test_every_record_carries_its_facts(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    play(server)
    (message,) = map(facts_of, of_event(caplog, "transaction"))
    (session,) = map(facts_of, of_event(caplog, "session"))
    commands = {facts["verb"]: facts for facts in map(facts_of, of_event(caplog, "command"))}
    for facts in (message, session, *commands.values()):
        assert facts["session"] == session["session"]
        assert facts["peer"] == "192.0.2.1"
        assert isinstance(facts["seconds"], float)
        assert 0 <= facts["seconds"] < 10
    assert commands["EHLO"]["argument"] == "client.example"
    assert (commands["XYZZY"]["reply"], commands["XYZZY"]["reply_text"]) == (500, "5.5.1 Command unrecognized")
    assert commands["MAIL"]["reply"] == 250
    transaction = message.pop("transaction")
    assert {verb: facts["transaction"] for verb, facts in commands.items()} == {
        **dict.fromkeys(commands),
        **dict.fromkeys(("MAIL", "RCPT", "DATA"), transaction),
    }
    for known in ("session", "peer", "seconds", "event"):
        del message[known], session[known]
    assert message == {
        "tls": None,
        "cipher": None,
        "identity": None,
        "forwarded": None,
        "sender": "jo@example.org",
        "recipients": ["a@example.com", "b@example.com"],
        "recipient_count": 2,
        "refused": [],
        "refused_count": 0,
        "size": 7,
        "outcome": "accepted",
        "reason": None,
        "reply": 250,
        "reply_text": f"2.0.0 Ok: queued as {transaction}",
        "queue_id": transaction,
    }
    assert session == {
        "tls": None,
        "cipher": None,
        "greeting": "ehlo",
        "hostname": "client.example",
        "identity": None,
        "messages": 1,
        "recipient_count": 2,
        "octets": 7,
        "reason": "quit",
        "reply": None,
        "reply_text": None,
    }


def test_the_facts_can_be_made_json_of(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    play(server)
    for record in caplog.records:
        facts = facts_of(record)
        assert json.loads(json.dumps(facts)) == facts


def test_the_time_is_that_of_the_answer(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    @server.on("from")
    def slow(session: Session, address: Address, ack: Ack) -> None:
        sleep(0.05)
        ack.accept()

    play(server)
    seconds = {record.__dict__.get("verb"): record.__dict__["seconds"] for record in of_event(caplog, "command")}
    assert seconds["MAIL"] >= 0.05 > seconds["RCPT"]
    for event in ("transaction", "session"):
        assert of_event(caplog, event)[0].__dict__["seconds"] >= 0.05


def test_a_unix_peer_has_a_name_too(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    with dial(server) as peer:
        peer.hello()
    assert caplog.records[0].__dict__["peer"] == "unix"


# Secrets

SECRET = base64.b64encode(b"\0jo\0hunter2").decode()
AUTH_LINES = [
    b"AUTH PLAIN %s",
    b"auth plain %s",
    b"AUTH  PLAIN   %s",
    b"AUTH\tPLAIN\t%s",
    b" AUTH PLAIN %s",
    b"\tAUTH PLAIN %s",
    b"AUTH PLAIN \x00%s",
    b"AUTH\x00PLAIN %s",
    b"\x00AUTH PLAIN %s",
    b"AUTH PLAIN \xff%s",
    b"AUTH\xffPLAIN %s",
    b"AUTH=PLAIN %s",
    b"AUTH:PLAIN %s",
    b"AUTHPLAIN %s",
    b"AUTH=%s",
    b"AUTH PLAIN %s\n",
    b"AUTH PLAIN\n%s",
    b"AUTH PLAIN\r%s",
    b"AUTH PLAIN %s" + b"x" * 13_000,
]


def check_secret(caplog: pytest.LogCaptureFixture, secret: str) -> None:
    """Check that no record of any logger has the secret in its text, arguments, attributes or traceback."""
    assert caplog.records
    everything = caplog.text + "".join(f"{record.__dict__!r} {record.getMessage()}" for record in caplog.records)
    assert secret.lower() not in everything.lower()


@pytest.mark.parametrize("line", AUTH_LINES)
def test_what_is_behind_auth_is_never_shown(server: SMTPServer, caplog: pytest.LogCaptureFixture, line: bytes) -> None:
    with dial(server) as peer:
        peer.hello()
        peer.send(line.replace(b"%s", SECRET.encode()) + b"\r\n")
        peer.expect("5")
        peer.line("QUIT")
        peer.rest()
    check_secret(caplog, SECRET)


def test_what_is_behind_auth_is_shown_as_stars(server: SMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {SECRET}")
        peer.expect("502")
    (record,) = [record for record in caplog.records if record.__dict__.get("verb") == "AUTH"]
    assert "AUTH *** -> 502" in record.getMessage()
    assert record.__dict__["argument"] == "***"


@pytest.mark.parametrize("secret", ["hunter2", "hunter two", "aHVudGVyMg==", "jo hunter2"])
def test_answers_that_go_on_after_auth_was_refused_are_not_shown(
    server: SMTPServer, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    with dial(server) as peer:
        peer.hello()
        peer.line("AUTH LOGIN", "am8=", secret, "NOOP")
        peer.expect("502", "500", "500", "250")
    check_secret(caplog, secret)
    assert any("NOOP" in line for line in lines(caplog))  # what is known is shown as ever


def test_answers_to_challenges_are_not_shown(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers: list[bytes] = []

    def login(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "AUTH":
            return proceed(session, command)
        answers.append(session.challenge("UGFzc3dvcmQ6"))
        return Reply(235, "2.7.0 welcome")

    with dial(smtp_server(start=False, middleware=[Logging(), login])) as peer:
        peer.hello()
        peer.line("AUTH LOGIN")
        peer.expect("334")
        peer.line(SECRET)
        peer.expect("235")
        peer.line("XYZZY")
        peer.expect("500")
    assert answers == [SECRET.encode()]
    check_secret(caplog, SECRET)
    assert any("XYZZY" in line for line in lines(caplog))


@pytest.mark.parametrize("answer", [SECRET + "x" * 20_000, SECRET + "\nmore"])
def test_a_failure_in_the_middle_of_auth_shows_nothing_either(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    caplog.set_level(logging.DEBUG)

    def clumsy(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "AUTH":
            return proceed(session, command)
        try:
            session.challenge()
        except ProtocolError as error:
            raise LookupError(f"cannot handle {command!r}: {error}") from error
        return Reply(235)

    def provoke(peer: Peer) -> None:
        peer.hello()
        peer.line(f"AUTH PLAIN {SECRET}")
        peer.expect("334")
        peer.line(answer)
        peer.expect("451")

    with dial(smtp_server(start=False, middleware=[Logging(), clumsy])) as peer:
        provoke(peer)
    assert "LookupError" in caplog.text
    check_secret(caplog, SECRET)


@pytest.mark.parametrize("wrap", [repr, lambda command: f"{[command]}", lambda command: f"{command!r:>80}"])
def test_commands_own_repr_shows_nothing(server: SMTPServer, caplog: pytest.LogCaptureFixture, wrap: Any) -> None:
    @server.on("command")
    def clumsy(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "AUTH":
            raise LookupError(wrap(command))

    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {SECRET}")
        peer.expect("451")
    assert "<Command 'AUTH ***'>" in caplog.text
    check_secret(caplog, SECRET)
