"""PolicyHook: what a program is asked, what its answers become, and that no answer refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.delivery import Deliveries, Maildir
from greensmtp.middleware import PolicyHook
from greensmtp.middleware.policy_hook import MAX_HEADER, MAX_RECIPIENTS
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from greensmtp.webhook_signature import check_signature
from tests.helpers import free_port


class Policy:
    """A program that keeps questions, and answers each stage from a table."""

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.answers: dict[str, Any] = {}
        self.status = "200 OK"
        self.server = WSGIServer(("127.0.0.1", 0), self._answer, log=None)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/policy"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        self.bodies.append(body)
        self.headers.append({name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items()})
        question = json.loads(body)
        self.questions.append(question)
        start_response(self.status, [("Content-Type", "application/json")])
        answer = self.answers.get(question["stage"], {"action": "accept"})
        return [answer if isinstance(answer, bytes) else json.dumps(answer).encode()]


@pytest.fixture
def policy() -> Iterator[Policy]:
    made = Policy()
    yield made
    made.server.stop(timeout=0)


ALL = ("connect", "from", "to", "message")


@pytest.fixture
def asked(smtp_server: MakeServer, tmp_path: Any) -> Callable[..., SMTPServer]:
    """Return a function that makes a server which asks, and stores in ./maildir."""

    def make(url: str, *, lmtp: bool = False, **options: Any) -> SMTPServer:
        server = smtp_server(start=False, lmtp=lmtp, middleware=[PolicyHook(url, **options)])
        Deliveries([Maildir(tmp_path / "maildir")]).attach(server)
        server.start()
        return server

    return make


def stored(folder: Any) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "maildir/new").iterdir()]


def test_each_stage_says_what_is_known(asked: Callable[..., SMTPServer], policy: Policy, tmp_path: Any) -> None:
    policy.answers["message"] = {"action": "accept", "add_headers": [["X-Policy", "seen"], ["X-Two", "zwö"]]}
    server = asked(policy.url, stages=ALL, secret="s")
    with dial(server, source=("192.0.2.7", 4711)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>", "DATA")
        peer.expect("250", "250", "250", "354")
        peer.send(b"Subject: Tea\r\n for two\r\nX-Odd: \xff\r\n\r\nNo: field\r\n.\r\n")
        reply = peer.expect("250")
    connect, mail, first, second, message = policy.questions
    session = connect["session"]
    assert connect == {
        "stage": "connect",
        "session": session,
        "peer": "192.0.2.7",
        "hello": None,
        "tls": False,
        "protocol": connect["protocol"],
        "identity": None,
        "server": "mx.example.com",
        "from": None,
        "to": [],
    }
    assert (mail["from"], mail["hello"], mail["id"]) == ("ann@example.net", "client.example", reply.split()[-1])
    assert (first["recipient"], first["to"]) == ("bob@example.org", [])
    assert (second["recipient"], second["to"]) == ("cyd@example.org", ["bob@example.org"])
    assert (first["to_count"], second["to_count"]) == (0, 1)
    assert message["headers"] == [["Subject", "Tea for two"], ["X-Odd", "\ufffd"]]
    assert message["size"] == len(b"Subject: Tea\r\n for two\r\nX-Odd: \xff\r\n\r\nNo: field\r\n")
    assert {each["id"] for each in policy.questions[1:]} == {mail["id"]}
    for headers, body in zip(policy.headers, policy.bodies, strict=True):
        check_signature("s", headers, body)
    assert len({each["webhook-id"] for each in policy.headers}) == 5
    (mail_file,) = stored(tmp_path)
    assert b"X-Policy: seen\r\nX-Two: =?utf-8?" in mail_file


def test_each_recipient_does_not_repeat_all_before_it(asked: Callable[..., SMTPServer], policy: Policy) -> None:
    """With 1000 recipients of 300 bytes that would be 150 MB of questions."""
    with dial(asked(policy.url, stages=["to", "message"])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        peer.expect("250")
        for number in range(MAX_RECIPIENTS + 20):
            peer.line(f"RCPT TO:<r{number}@example.org>")
            peer.expect("250")
        peer.line("DATA")
        peer.expect("354")
        peer.send(b"Hi.\r\n.\r\n")
        peer.expect("250")
    *_, last, message = policy.questions
    assert last["to"] == [f"r{number}@example.org" for number in range(MAX_RECIPIENTS)]
    assert (last["recipient"], last["to_count"]) == (f"r{MAX_RECIPIENTS + 19}@example.org", MAX_RECIPIENTS + 19)
    assert len(message["to"]) == MAX_RECIPIENTS + 20


@pytest.mark.parametrize("stage", ["from", "to", "message"])
@pytest.mark.parametrize(
    "case",
    [
        ({"action": "reject"}, "550 5.7.1 Refused by policy"),
        ({"action": "reject", "code": 452, "text": "4.2.2 full\nreally"}, "452-4.2.2 full"),
        ({"action": "reject", "text": "go away"}, "550 5.0.0 go away"),
        ({"action": "defer"}, "451 4.7.1 Try again later"),
        ({"action": "defer", "code": 450}, "450 4.7.1 Try again later"),
    ],
)
def test_its_answer_is_the_reply(
    asked: Callable[..., SMTPServer], policy: Policy, tmp_path: Any, stage: str, case: tuple[Any, str]
) -> None:
    policy.answers[stage], wanted = case
    with dial(asked(policy.url, stages=[stage])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>")
        reply = peer.reply()
        for line in ("RCPT TO:<bob@example.org>", "DATA"):
            if reply.startswith("250"):
                peer.line(line)
                reply = peer.reply()
        if reply.startswith("354"):
            peer.send(b"x\r\n.\r\n")
            reply = peer.reply()
        assert reply.startswith(wanted)
        peer.line("RSET")
        peer.expect("250")
    assert stored(tmp_path) == []


def test_a_connection_is_refused(asked: Callable[..., SMTPServer], policy: Policy) -> None:
    policy.answers["connect"] = {"action": "reject", "text": "5.7.1 not you"}
    with dial(asked(policy.url, stages=["connect"])) as peer:
        peer.expect("554 5.7.1 not you")
        peer.expect_end()


MALFORMED = [
    b"",
    b"yes",
    b"[" * 100_000,
    [],
    {},
    {"action": "maybe"},
    {"action": "accept", "colour": "red"},
    {"action": "reject", "code": 250},
    {"action": "reject", "code": "550"},
    {"action": "defer", "code": 550},
    {"action": "reject", "text": 1},
    {"action": "reject", "code": 550, "text": "4.7.1 two minds"},
    {"action": "accept", "add_headers": {"X": "y"}},
    {"action": "accept", "add_headers": [["X", "y"]]},
]


@pytest.mark.parametrize("answer", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_answer_refuses_unless_it_may_pass(
    asked: Callable[..., SMTPServer], policy: Policy, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    caplog.set_level("WARNING", "greensmtp")
    policy.answers["to"] = answer
    for fail_open, wanted in ((False, "451 4.3.0 The policy cannot be asked"), (True, "250")):
        with dial(asked(policy.url, fail_open=fail_open)) as peer:
            peer.hello()
            peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
            peer.expect("250", wanted)
    lines = [record.getMessage() for record in caplog.records if "policy hook" in record.getMessage()]
    assert [line.rpartition("; ")[2] for line in lines] == ["replying 451", "going on without an answer"]


@pytest.mark.parametrize("status", ["204 No Content", "302 Found", "500 Oops"])
def test_another_status_refuses(asked: Callable[..., SMTPServer], policy: Policy, status: str) -> None:
    policy.status = status
    with dial(asked(policy.url)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "451 4.3.0")


def test_a_program_that_is_gone_refuses(asked: Callable[..., SMTPServer]) -> None:
    with dial(asked(f"http://127.0.0.1:{free_port()}/")) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "451 4.3.0")


def test_a_field_that_cannot_be_added_refuses(asked: Callable[..., SMTPServer], policy: Policy, tmp_path: Any) -> None:
    policy.answers["message"] = {"action": "accept", "add_headers": [["X", "a\r\nY: b"]]}
    with dial(asked(policy.url, stages=["message"])) as peer:
        peer.hello()
        assert peer.deliver("x\r\n").startswith("451 4.3.0 The policy cannot be asked")
    assert stored(tmp_path) == []
    with dial(asked(policy.url, stages=["message"], fail_open=True)) as peer:
        peer.hello()
        assert peer.deliver("x\r\n").startswith("250")
    assert len(stored(tmp_path)) == 1


def test_each_question_has_an_id_of_its_own(asked: Callable[..., SMTPServer], policy: Policy) -> None:
    policy.answers["to"] = {"action": "reject"}
    with dial(asked(policy.url)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>")
        peer.expect("250", "550", "550")
    assert len({headers["webhook-id"] for headers in policy.headers}) == 2


def test_in_lmtp_a_message_is_asked_for_once(asked: Callable[..., SMTPServer], policy: Policy, tmp_path: Any) -> None:
    server = asked(policy.url, lmtp=True, stages=["message"])
    with dial(server) as peer:
        peer.line("LHLO client.example")
        peer.expect("220", "250")
        for wanted in ("250", "550"):
            peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>", "DATA")
            peer.expect("250", "250", "250", "354")
            peer.send(b"x\r\n.\r\n")
            peer.expect(wanted, wanted)
            policy.answers["message"] = {"action": "reject"}
    assert len(policy.questions) == 2
    assert len(stored(tmp_path)) == 1


def test_a_long_header_section_is_cut(asked: Callable[..., SMTPServer], policy: Policy) -> None:
    with dial(asked(policy.url, stages=["message"])) as peer:
        peer.hello()
        assert peer.deliver("X: " + "\r\n y" * MAX_HEADER + "\r\n\r\nz\r\n").startswith("250")
    assert len(policy.bodies[0]) < 2 * MAX_HEADER


def test_a_message_that_another_handler_refuses_is_not_asked_for(smtp_server: MakeServer, policy: Policy) -> None:
    server = smtp_server(start=False, middleware=[PolicyHook(policy.url, stages=["message"])])

    @server.on("message")
    def refuse(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.reject(554, "5.7.1 no")

    server.start()
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "554")
    assert policy.questions == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "x"}, "url: expected a URL"),
        ({"url": "http://x.example", "stages": []}, "stages: expected some of connect, from, to, message"),
        ({"url": "http://x.example", "stages": ["data"]}, "stages: expected some of"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PolicyHook(**options)


def test_a_command_out_of_its_place_is_not_asked_about(asked: Callable[..., SMTPServer], policy: Policy) -> None:
    policy.answers["from"] = {"action": "defer"}
    server = asked(policy.url, stages=["from", "to"])
    with dial(server) as peer:
        peer.line("MAIL FROM:<early@example.net>")
        peer.expect("220", "503")
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("451 4.7.1", "503")
        policy.answers.clear()
        peer.line("MAIL FROM:<ann@example.net>", "MAIL FROM:<cyd@example.net>", "RCPT TO:<bob@example.org>")
        peer.expect("250", "503", "250")
        peer.line("RCPT TO:<dot@example.org>")
        peer.expect("250")
    assert [each.get("recipient", each["from"]) for each in policy.questions] == [
        "ann@example.net",
        "ann@example.net",
        "bob@example.org",
        "dot@example.org",
    ]
