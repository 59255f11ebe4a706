"""Middleware together with the real Auth: each counts, logs or delays what another has replied."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn
from gevent.event import Event
from prometheus_client import CollectorRegistry

from greensmtp import SMTPServer, compose, when
from greensmtp.middleware import Auth, ConnectionLimit, Logging, Metrics, RateLimit, Tarpit
from greensmtp.middleware.auth.credentials import Credentials
from greensmtp.predicates import outside, over_tls
from greensmtp.testing import Peer, dial
from tests.helpers import accepting, auth_plain, b64, pairwise_orders

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate, Cuts

ONE, OTHER = ("192.0.2.1", 1), ("198.51.100.1", 1)
USERS = {"jo": "sesame", "Ann": "tahini"}
TOO_MANY = "454 4.7.0 Too many failed attempts to authenticate"


def xoauth2(token: str) -> str:
    return f"AUTH XOAUTH2 {b64(f'user=jo{chr(1)}auth=Bearer {token}{chr(1)}{chr(1)}')}"


WRONG, RIGHT = auth_plain("jo", "wrong"), auth_plain("jo", "sesame")


def is_good(credentials: Credentials) -> bool:
    return credentials.token == "good"


def users(**options: Any) -> Auth:
    """Return an Auth that does not count failures, and allows every mechanism in the clear."""
    options = {"failures_by_client": None, "failures_by_account": None, "check_token": is_good} | options
    return Auth(USERS, allow_plaintext=True, **options)


@pytest.fixture
def greet() -> Iterator[Callable[..., Peer]]:
    """Return a peer that has said EHLO."""
    peers: list[Peer] = []

    def greet(server: SMTPServer, source: tuple[str, int] = ONE) -> Peer:
        peer = dial(server, source=source)
        peers.append(peer)
        peer.hello(verb="LHLO" if server.lmtp else "EHLO")
        return peer

    yield greet
    for peer in peers:
        peer.close()


# RateLimit(on="auth_failures") and Auth


def fail_at_once(peer: Peer) -> None:
    peer.line(WRONG)
    peer.expect("535")


def fail_login(peer: Peer) -> None:
    peer.line("AUTH LOGIN", b64("jo"), b64("wrong"))
    peer.expect("334", "334", "535")


def fail_cram(peer: Peer) -> None:
    peer.line("AUTH CRAM-MD5")
    peer.expect("334")
    peer.line(b64("jo " + "0" * 32))
    peer.expect("535")


def fail_scram(peer: Peer) -> None:
    peer.line(f"AUTH SCRAM-SHA-256 {b64('n,,n=jo,r=abc')}")
    nonce = b64decode(peer.expect("334").split()[1]).decode().split(",")[0]
    peer.line(b64(f"c=biws,{nonce},p={b64('0' * 32)}"))
    peer.expect("535")


def hear_that_a_token_is_bad(peer: Peer) -> None:
    peer.line(xoauth2("bad"))
    peer.expect("334")


def fail_by_token(peer: Peer) -> None:
    hear_that_a_token_is_bad(peer)
    peer.line("")
    peer.expect("535")


def fail_by_token_and_cancel(peer: Peer) -> None:
    hear_that_a_token_is_bad(peer)
    peer.line("*")
    peer.expect("501 5.7.0")


def fail_by_token_and_say_too_much(peer: Peer) -> None:
    hear_that_a_token_is_bad(peer)
    peer.line("A" * 500)
    peer.expect("500 5.5.6")


def fail_by_token_and_never_end(peer: Peer) -> None:
    hear_that_a_token_is_bad(peer)
    peer.send(b"A" * (1024 * 1024 + 32_000))
    peer.expect("421 4.5.2")


def fail_by_token_and_hang_up(peer: Peer) -> None:
    hear_that_a_token_is_bad(peer)
    peer.close()
    peer.let_it_read()


FAILURES = [
    fail_at_once,
    fail_login,
    fail_cram,
    fail_scram,
    fail_by_token,
    fail_by_token_and_cancel,
    fail_by_token_and_say_too_much,
    fail_by_token_and_never_end,
    fail_by_token_and_hang_up,
]


@pytest.mark.parametrize("fail", FAILURES)
def test_every_way_to_fail_counts_as_a_failure(smtp_server: MakeServer, greet: Any, fail: Callable[..., None]) -> None:
    server = accepting(smtp_server, RateLimit("2/minute", on="auth_failures"), users(), max_auth_line_length=400)
    for _ in range(2):
        fail(greet(server))
    peer = greet(server)
    peer.line(RIGHT)
    peer.expect(TOO_MANY)
    other = greet(server, OTHER)
    other.line(RIGHT)
    other.expect("235")


@pytest.mark.parametrize("fail", FAILURES)
def test_every_way_to_fail_counts_for_auth_itself(smtp_server: MakeServer, greet: Any, fail: Any) -> None:
    server = accepting(smtp_server, users(failures_by_client="2/minute"), max_auth_line_length=400)
    for _ in range(2):
        fail(greet(server))
    peer = greet(server)
    peer.line(RIGHT)
    peer.expect("454 4.7.0 Too many failed attempts, try again later")


def test_what_was_no_attempt_does_not_count(smtp_server: MakeServer, greet: Any) -> None:
    server = accepting(smtp_server, RateLimit("1/minute", on="auth_failures"), users())
    peer = greet(server)
    peer.line("AUTH KERBEROS_V4", "MAIL FROM:<a@example.com>", WRONG, "RSET", RIGHT, RIGHT)
    peer.expect("504", "250", "503", "250", "235", "503")
    peer = greet(server)
    peer.line(RIGHT)
    peer.expect("235")


def test_guesses_at_once_get_no_further_than_one_by_one(smtp_server: MakeServer, greet: Any) -> None:
    asked: list[str] = []
    gate = Event()

    def check(credentials: Credentials) -> bool:
        asked.append(credentials.username)
        gate.wait(10)
        return credentials.password == "sesame"

    auth = Auth(check, allow_plaintext=True, failures_by_client=None, failures_by_account=None)
    limit = RateLimit("3/minute", on="auth_failures")
    server = accepting(smtp_server, limit, auth)
    peers = [greet(server) for _ in range(8)]
    for number, peer in enumerate(peers):
        peer.line(auth_plain(f"user{number}", "x"))
    peers[0].let_it_read()  # all of them are under way now
    gate.set()
    assert sorted(peer.reply()[:3] for peer in peers) == ["454"] * 5 + ["535"] * 3
    assert len(asked) == 3


def test_attempts_that_succeed_leave_nothing_behind(smtp_server: MakeServer, greet: Any) -> None:
    limit = RateLimit("2/minute", on="auth_failures")
    server = accepting(smtp_server, limit, users())
    for _ in range(5):
        peer = greet(server)
        peer.line(RIGHT)
        peer.expect("235")
    assert not limit._in_flight


def test_filling_one_limit_has_another_forget_nothing(smtp_server: MakeServer, greet: Any) -> None:
    """Memory is bounded, but a client that chooses keys, such as recipients, must not evict its own failures."""
    failures = RateLimit("1/hour", on="auth_failures")
    recipients = RateLimit("5/hour", by="recipient", on="recipients")
    recipients._store.storage._records.max_weight = 100  # type: ignore[attr-defined]
    server = accepting(smtp_server, failures, recipients, users())
    peer = greet(server)
    peer.line(WRONG)
    peer.expect("535")
    peer.envelope(to=[f"user{number}@example.com" for number in range(30)])
    assert len(recipients._store.storage) < 30  # type: ignore[arg-type]
    peer.line("RSET", RIGHT)
    peer.expect("250", TOO_MANY)


def test_behind_421_nothing_is_tried(smtp_server: MakeServer, greet: Any) -> None:
    asked: list[str | None] = []

    def check(credentials: Credentials) -> bool:
        asked.append(credentials.password)
        return credentials.password == "sesame"

    auth = Auth(check, allow_plaintext=True)
    server = accepting(smtp_server, RateLimit("1/minute", on="auth_failures", code=421), auth)
    peer = greet(server)
    peer.line(WRONG, WRONG, RIGHT, "MAIL FROM:<a@example.com>")
    peer.expect("535", "421 4.7.0")
    peer.expect_end()
    assert asked == ["wrong"]


# RateLimit(by="identity") and Auth


@pytest.mark.parametrize("auth_first", [True, False])
@pytest.mark.parametrize("lmtp", [False, True])
def test_an_identity_is_one_from_wherever_it_comes(
    smtp_server: MakeServer, greet: Any, auth_first: bool, lmtp: bool
) -> None:
    stack = [users(), RateLimit("2/minute", by="identity")]
    server = accepting(smtp_server, *(stack if auth_first else reversed(stack)), lmtp=lmtp)
    for source in (ONE, OTHER):
        peer = greet(server, source)
        peer.line(auth_plain("Ann", "tahini"))
        peer.expect("235")
        assert peer.deliver().startswith("250")
    peer.line("MAIL FROM:<a@example.com>")
    peer.expect("450 4.7.1")
    peer = greet(server, OTHER)
    peer.line(RIGHT)
    peer.expect("235")
    assert peer.deliver().startswith("250")
    peer = greet(server, OTHER)
    for _ in range(3):  # without logging in
        assert peer.deliver().startswith("250")


@pytest.mark.parametrize("auth_first", [True, False])
def test_those_without_an_identity_are_refused_and_not_counted(
    smtp_server: MakeServer, greet: Any, auth_first: bool
) -> None:
    stack = [users(required=True), RateLimit("1/minute", by="identity")]
    server = accepting(smtp_server, *(stack if auth_first else reversed(stack)))
    peer = greet(server)
    peer.line(*["MAIL FROM:<a@example.com>"] * 3, RIGHT, "MAIL FROM:<a@example.com>", "RSET", "MAIL FROM:<>")
    peer.expect("530", "530", "530", "235", "250", "250", "450 4.7.1")


def test_starttls_drops_the_identity(smtp_server: MakeServer, greet: Any, certificate: Certificate) -> None:
    options = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    server = accepting(smtp_server, users(required=True), RateLimit("1/minute", by="identity"), **options)
    peer = greet(server)
    peer.line(RIGHT, "STARTTLS")
    peer.expect("235", "220")
    peer.start_tls()
    peer.line("EHLO x", "MAIL FROM:<a@example.com>", auth_plain("Ann", "tahini"), "MAIL FROM:<a@example.com>", "RSET")
    peer.expect("250", "530", "235", "250", "250")
    peer.line("MAIL FROM:<a@example.com>")
    peer.expect("450")


# What comes in one piece with AUTH


def test_commands_pipelined_after_auth_run_with_its_identity(smtp_server: MakeServer, cuts: Cuts) -> None:
    """AUTH should be the last of a pipeline (RFC 4954 section 4); where it is not, nothing gets ahead of it."""
    script = f"EHLO x\r\n{WRONG}\r\nMAIL FROM:<a@example.com>\r\n{RIGHT}\r\nMAIL FROM:<a@example.com>\r\nQUIT\r\n"
    server = accepting(smtp_server, users(required=True))
    for cut in cuts(script.encode()):
        with dial(server, source=ONE) as peer:
            peer.send(script, cut=cut)
            peer.expect("220", "250", "535", "530", "235", "250", "221")
            peer.expect_end()


@pytest.mark.parametrize("answer", ["QUIT", "NOOP", "RSET", "DATA", "MAIL FROM:<a@example.com>", WRONG])
def test_a_command_in_place_of_an_answer_is_an_answer(smtp_server: MakeServer, greet: Any, answer: str) -> None:
    server = accepting(smtp_server, users())
    for begun in (["AUTH PLAIN"], ["AUTH LOGIN"], ["AUTH LOGIN", b64("jo")], ["AUTH CRAM-MD5"]):
        peer = greet(server)
        peer.line(*begun, answer, RIGHT)
        peer.expect(*["334"] * len(begun), "5*", "235")


def test_auth_between_two_chunks(smtp_server: MakeServer, greet: Any) -> None:
    limit = RateLimit("1/minute", on="auth_failures")
    server = accepting(smtp_server, limit, users())
    peer = greet(server)
    peer.envelope()
    peer.send(f"BDAT 2\r\nab{WRONG}\r\nAUTH LOGIN\r\nBDAT {len(RIGHT) + 2}\r\n{RIGHT}\r\nBDAT 0 LAST\r\n{RIGHT}\r\n")
    peer.expect("250", "503", "503", "250", "250", "235")


# Several in a stack, in every order


STACK: dict[str, Callable[[], Any]] = {
    "logging": Logging,
    "metrics": lambda: Metrics(CollectorRegistry()),
    "tarpit": lambda: Tarpit(0.001, maximum=0.001),
    "failures": lambda: RateLimit("3/minute", on="auth_failures"),
    "auth": lambda: users(required=True),
}


@pytest.mark.parametrize("order", pairwise_orders(STACK), ids="-".join)
def test_in_every_order_no_login_succeeds_and_no_secret_is_logged(
    smtp_server: MakeServer, order: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    members = {kind: STACK[kind]() for kind in order}
    server = accepting(smtp_server, *members.values())
    with dial(server, source=ONE) as peer:
        peer.hello()
        peer.line(WRONG, "MAIL FROM:<a@example.com>", "AUTH LOGIN", b64("jo"), b64("wrong"), RIGHT)
        peer.expect("535", "530", "334", "334", "535", "235")
        assert peer.deliver().startswith("250")
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
    sees_auth = order.index("metrics") < order.index("auth")
    told = members["metrics"].registry.get_sample_value
    labels = {"mechanism": "PLAIN", "outcome": "refused"}
    assert told("greensmtp_auth_total", labels) == (1 if sees_auth else None)
    assert told("greensmtp_connections_open") == 0
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if " message " in line and "-> 250 " in line]
    assert "identity=jo" in line
    for secret in ("sesame", "wrong", RIGHT.split()[2], WRONG.split()[2], b64("wrong")):
        assert not [line for line in lines if secret in line]


# compose and when


def test_the_count_of_connections_comes_back_from_every_end(smtp_server: MakeServer, greet: Any) -> None:
    limit = ConnectionLimit(per_address=1)
    edge = compose(limit, RateLimit("1/minute", on="auth_failures", code=421), users(required=True), name="edge")
    server = accepting(
        smtp_server, Logging(), when(outside("10.0.0.0/8"), edge), max_errors=2, max_auth_line_length=400
    )

    def no_word(peer: Peer) -> None:
        """Send a user name and an empty password."""
        peer.line("AUTH LOGIN", b64("jo"))
        peer.expect("334", "334")

    def hang_up(peer: Peer) -> None:
        no_word(peer)
        peer.close()

    def reset(peer: Peer) -> None:
        no_word(peer)
        peer.reset()

    def quit_(peer: Peer) -> None:
        peer.line("QUIT")

    def err(peer: Peer) -> None:
        peer.line("MAIL FROM:<a@example.com>", "MAIL FROM:<a@example.com>")

    def guess(peer: Peer) -> None:
        peer.line(WRONG)

    for number, end in enumerate((hang_up, reset, quit_, err, guess)):
        source = (f"192.0.2.{number}", 1)
        peer = greet(server, source)
        assert limit.count(source[0]) == 1
        with dial(server, source=source) as another:
            another.expect("421 4.7.0 Too many connections at once")
            another.expect_end()
        end(peer)
        if end is guess:
            peer.line(WRONG)
        peer.let_it_read()
        if peer.socket.fileno() >= 0:
            peer.rest()
            peer.close()
        peer.let_it_read()
        assert limit.count(source[0]) == 0, end


def test_a_stop_ends_challenges_and_tarpit_delays(smtp_server: MakeServer, greet: Any) -> None:
    limit = ConnectionLimit()
    server = accepting(smtp_server, when(outside("10.0.0.0/8"), compose(limit, Tarpit(60.0, maximum=60.0), users())))
    asked, pitted = greet(server), greet(server)
    asked.line("AUTH LOGIN")
    asked.expect("334")
    pitted.line(WRONG)
    pitted.let_it_read()
    assert limit.count(ONE[0]) == 2
    stopping = spawn(server.stop, 5)
    for peer, replies in ((asked, ["421 4.3.2"]), (pitted, ["535", "421 4.3.2"])):
        peer.expect(*replies)
        peer.close()
    stopping.get(timeout=20)
    assert limit.count(ONE[0]) == 0
    assert not server.connections


def test_auth_where_there_is_tls_alone(smtp_server: MakeServer, greet: Any, certificate: Certificate) -> None:
    options = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    refuse = RateLimit("1/day", by=lambda session: "all", message="Say STARTTLS")
    server = accepting(smtp_server, when(over_tls, users(required=True), otherwise=refuse), **options)
    peer = greet(server)
    peer.line(RIGHT, "MAIL FROM:<a@example.com>", "RSET", "MAIL FROM:<a@example.com>", "STARTTLS")
    peer.expect("502", "250", "250", "450 4.7.1 Say STARTTLS", "220")
    peer.start_tls()
    peer.line("EHLO x", "MAIL FROM:<a@example.com>", RIGHT, "MAIL FROM:<a@example.com>")
    assert "AUTH" in peer.expect("250")
    peer.expect("530", "235", "250")


def test_a_predicate_that_raises_refuses_the_client(smtp_server: MakeServer, greet: Any) -> None:
    said: list[str] = []

    def moody(session: Any) -> bool:
        if said:
            raise RuntimeError(said[0])
        return True

    server = accepting(smtp_server, when(moody, users(required=True)))
    peer = greet(server)
    said.append("out of order")
    peer.line("MAIL FROM:<a@example.com>", RIGHT, "DATA")
    peer.expect("451", "451", "451")
