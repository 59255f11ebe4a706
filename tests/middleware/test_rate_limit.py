"""RateLimit: what is counted, by which key, when it is refused, and with which code."""

from __future__ import annotations

from traceback import format_exception
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gevent.event import Event

from greensmtp import Ack, Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import RateLimit
from greensmtp.middleware.rate_limit import memory, store
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked
from tests.helpers import accepting

ONE, OTHER = ("192.0.2.1", 1), ("198.51.100.1", 1)


class Clock:
    """A monotonic clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(memory, "monotonic", clock)
    return clock


def greet(server: SMTPServer, source: tuple[str, int] | None = ONE, verb: str = "EHLO") -> Peer:
    peer = dial(server, source=source)
    peer.hello(verb=verb)
    return peer


# Connections


def test_connections_are_refused_with_421(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("2/minute", on="connections"))
    for _ in range(2):
        greet(server).close()
    with dial(server, source=ONE) as peer:
        peer.expect("421 4.7.0 Too many connections in a short time")
        peer.expect_end()
    greet(server, OTHER).close()
    clock.now += 61
    greet(server).close()


# Messages


def test_messages_are_refused_at_mail_with_450(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("2/minute"))
    with greet(server) as peer:
        assert peer.deliver().startswith("250")
    with greet(server) as peer:
        assert peer.deliver().startswith("250")
        peer.line("MAIL FROM:<a@example.com>", "NOOP")
        peer.expect("450 4.7.1 Too many messages in a short time, try again later", "250")
        with greet(server, OTHER) as other:
            assert other.deliver().startswith("250")
        clock.now += 61
        assert peer.deliver().startswith("250")


def test_every_mail_in_its_place_counts(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("2/minute"))
    with greet(server) as peer:
        peer.line("MAIL FROM:<", "MAIL FROM:<a@example.com>", "MAIL FROM:<a@example.com>", "RSET")
        peer.expect("501", "250", "503", "250")
        assert peer.deliver().startswith("250")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450")


def test_of_concurrent_connections_one_gets_the_last_place(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("2/minute"))
    peers = [greet(server) for _ in range(5)]
    for peer in peers:
        peer.line("MAIL FROM:<a@example.com>")
    assert sorted(peer.reply()[:3] for peer in peers) == ["250", "250", "450", "450", "450"]
    for peer in peers:
        peer.close()


def test_a_message_of_many_chunks_is_one_message(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("1/minute"))
    with greet(server) as peer:
        peer.envelope()
        peer.send(b"BDAT 2\r\nabBDAT 2\r\ncdBDAT 0 LAST\r\n")
        peer.expect("250", "250", "250")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450")


def test_lmtp_counts_messages_too(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("1/minute"), lmtp=True)
    with greet(server, verb="LHLO") as peer:
        assert peer.deliver(to=["a@example.com", "b@example.com"]).startswith("250")
        peer.expect("250")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450")


def test_of_several_limits_the_tightest_holds(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("2/minute; 3/hour"))
    with greet(server) as peer:
        for expected in ("250", "250", "450", "wait", "250", "450", "wait", "450"):
            if expected == "wait":
                clock.now += 61
                continue
            peer.line("MAIL FROM:<a@example.com>")
            peer.expect(expected)
            if expected == "250":
                peer.line("RSET")
                peer.expect("250")


# Recipients


def test_recipients_are_refused_at_rcpt_with_450(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("3/minute", on="recipients"))
    server.on("to", lambda session, address, ack: ack.reject(550) if address.local_part == "no" else ack.accept())
    with greet(server) as peer:
        peer.line("RCPT TO:<a@example.com>", "MAIL FROM:<a@example.com>", "RCPT TO:<", "RCPT TO:<no@example.com>")
        peer.expect("503", "250", "501", "550")
        peer.line("RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "RCPT TO:<d@example.com>", "DATA")
        peer.expect("250", "250", "450 4.7.1 Too many recipients", "354")
        peer.line("Hello.", ".")
        peer.expect("250")
        clock.now += 61
        peer.envelope()


def test_what_one_of_several_limits_refuses_does_not_use_the_others_up(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("3/hour; 2/minute", on="recipients"))
    with greet(server) as peer:
        peer.line("MAIL FROM:<a@example.com>", *["RCPT TO:<b@example.com>"] * 5)
        peer.expect("250", "250", "250", "450", "450", "450")
        clock.now += 61
        peer.line(*["RCPT TO:<b@example.com>"] * 2)
        peer.expect("250", "450")


def test_a_mailbox_can_be_protected(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("1/minute", by="recipient", on="recipients"))
    for source, recipient, reply in (
        (ONE, "a@example.com", "250"),
        (OTHER, "A@Example.COM", "450"),
        (ONE, "b@example.com", "250"),
        (ONE, "a@b\u00fccher.example", "250"),
        (OTHER, "A@xn--bcher-kva.EXAMPLE", "450"),
    ):
        with greet(server, source) as peer:
            peer.line("MAIL FROM:<a@example.com> SMTPUTF8", f"RCPT TO:<{recipient}>")
            peer.expect("250", reply)


# Bytes


def test_octets_are_counted_at_the_end_and_refused_at_mail(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("1000/hour", on="bytes", strategy="fixed-window"))
    with greet(server) as peer:
        peer.line("MAIL FROM:<a@example.com> SIZE=1001", "MAIL FROM:<a@example.com> SIZE=x")
        peer.expect("552 5.3.4 Message exceeds your byte quota", "501")
        assert peer.deliver("x" * 598 + "\r\n").startswith("250")
        peer.line("MAIL FROM:<a@example.com> SIZE=401", "MAIL FROM:<a@example.com> SIZE=400", "RSET")
        peer.expect("450 4.7.1 Too many bytes in a short time", "250", "250")
        assert peer.deliver("x" * 398 + "\r\n").startswith("250")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450 4.7.1")
        clock.now += 3601
        assert peer.deliver().startswith("250")


@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter"])
def test_a_message_larger_than_announced_is_refused_and_uses_up_the_limit(
    smtp_server: MakeServer, clock: Clock, strategy: Any
) -> None:
    received: list[int] = []
    server = accepting(smtp_server, RateLimit("1000/hour", on="bytes", strategy=strategy))

    @server.on("received")
    def note(session: Session, ack: Ack) -> None:
        assert session.message is not None
        received.append(session.message.size)
        ack.accept()

    with greet(server) as peer:
        assert peer.deliver("x" * 98 + "\r\n").startswith("250")
        assert peer.deliver("x" * 998 + "\r\n", sender="a@example.com> SIZE=5").startswith("450 4.7.1")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450 4.7.1")
    assert received == [100]


def test_lmtp_counts_the_octets_of_a_message_once(smtp_server: MakeServer, clock: Clock) -> None:
    server = accepting(smtp_server, RateLimit("1000/hour", on="bytes"), lmtp=True)
    with greet(server, verb="LHLO") as peer:
        for size, expected in ((400, "250"), (400, "250"), (400, "450")):
            body = "x" * (size - 2) + "\r\n"
            assert peer.deliver(body, to=["a@example.com", "b@example.com", "c@example.com"]).startswith(expected)
            peer.expect(expected, expected)


# Failed attempts to authenticate


def test_after_so_many_failures_auth_is_refused_with_454(smtp_server: MakeServer, clock: Clock) -> None:
    tried: list[str] = []

    def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
        tried.append(command.argument)
        return Reply({"good": 235, "unknown": 504}.get(command.argument, 535), "so be it")

    setattr(auth, "verbs", ("AUTH",))  # noqa: B010 - a function has no such attribute, to mypy
    server = accepting(smtp_server, RateLimit("2/minute", on="auth_failures"), auth)
    with greet(server) as peer:
        peer.line("AUTH bad", "AUTH good", "AUTH unknown", "AUTH bad", "AUTH good", "NOOP")
        peer.expect("535", "235", "504", "535", "454 4.7.0 Too many failed attempts", "250")
        with greet(server, OTHER) as other:
            other.line("AUTH good")
            other.expect("235")
        clock.now += 61
        peer.line("AUTH good")
        peer.expect("235")
    assert tried == ["bad", "good", "unknown", "bad", "good", "good"]


@pytest.mark.parametrize(("code", "replies"), [(235, ["235"] * 6), (535, ["454"] * 4 + ["535"] * 2)])
def test_attempts_at_once_wait_for_one_another(smtp_server: MakeServer, code: int, replies: list[str]) -> None:
    open_the_gate = Event()
    tried = 0

    def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
        nonlocal tried
        tried += 1
        open_the_gate.wait(10)
        return Reply(code, "so be it")

    setattr(auth, "verbs", ("AUTH",))  # noqa: B010
    server = accepting(smtp_server, RateLimit("2/minute", on="auth_failures"), auth)
    peers = [greet(server) for _ in range(6)]
    for peer in peers:
        peer.line("AUTH x")
    peers[0].let_it_read()  # two of them are under way now
    assert tried == 2
    open_the_gate.set()
    assert sorted(peer.reply()[:3] for peer in peers) == replies
    for peer in peers:
        peer.close()


def test_a_code_of_421_closes(smtp_server: MakeServer) -> None:
    def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(535, "no")

    setattr(auth, "verbs", ("AUTH",))  # noqa: B010
    server = accepting(smtp_server, RateLimit("1/minute", on="auth_failures", code=421), auth)
    with greet(server) as peer:
        peer.line("AUTH bad", "AUTH bad")
        peer.expect("535", "421 4.7.0 Too many failed attempts")
        peer.expect_end()


# Keys


@pytest.mark.parametrize(
    ("arguments", "together", "apart"),
    [
        ({"by": "address"}, ("192.0.2.1", "::ffff:192.0.2.1"), ("192.0.2.1", "192.0.2.2")),
        ({"by": "address"}, ("2001:db8::1", "2001:db8::2"), ("2001:db8::1", "2001:db8:0:1::1")),
        ({"by": "address", "ipv6_prefix": 128}, ("2001:db8::1", "2001:db8::1"), ("2001:db8::1", "2001:db8::2")),
        ({"by": "network"}, ("192.0.2.1", "192.0.2.200"), ("192.0.2.1", "192.0.3.1")),
        ({"by": "network"}, ("2001:db8::1", "2001:db8::2"), ("2001:db8::1", "2001:db8:0:1::1")),
        ({"by": "network", "ipv4_prefix": 16}, ("192.0.2.1", "192.0.3.1"), ("192.0.2.1", "192.1.2.1")),
        ({"by": "network", "ipv6_prefix": 32}, ("2001:db8::1", "2001:db8:1::1"), ("2001:db8::1", "2001:db9::1")),
    ],
)
def test_limits_that_count_together(
    smtp_server: MakeServer, arguments: dict[str, Any], together: tuple[str, str], apart: tuple[str, str]
) -> None:
    for pair, reply in ((together, "421"), (apart, "220")):
        server = accepting(smtp_server, RateLimit("1/hour", on="connections", **arguments))
        with dial(server, source=(pair[0], 1)) as one, dial(server, source=(pair[1], 1)) as two:
            one.expect("220")
            two.expect(reply)


def test_by_identity_unauthenticated_clients_are_not_limited(smtp_server: MakeServer) -> None:
    def identify(session: Session, command: Command, proceed: Proceed) -> Reply:
        name = command.argument
        session.identity = cast(Any, SimpleNamespace(authcid=name) if name.islower() else name)
        return Reply(235, "welcome")

    setattr(identify, "verbs", ("AUTH",))  # noqa: B010
    server = accepting(smtp_server, RateLimit("1/hour", by="identity"), identify)
    with greet(server) as peer:
        for _ in range(3):
            assert peer.deliver().startswith("250")
        peer.line("AUTH beep")
        peer.expect("235")
        assert peer.deliver().startswith("250")
        peer.line("MAIL FROM:<a@example.com>", "AUTH boop", "MAIL FROM:<a@example.com>")
        peer.expect("450", "235", "250")
    with greet(server, OTHER) as peer:
        peer.line("AUTH BEEP", "MAIL FROM:<a@example.com>")
        peer.expect("235", "450")


def test_by_sender_the_null_sender_is_not_limited(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("1/hour", by="sender"))
    with greet(server) as peer:
        for sender in ("a@example.com", "b@example.com", "", "", ""):
            assert peer.deliver(sender=sender).startswith("250")
        peer.line("MAIL FROM:<A@EXAMPLE.com>", "MAIL FROM:<c@example.com>")
        peer.expect("450", "250")


def test_by_a_function_of_the_session(smtp_server: MakeServer) -> None:
    def by_name(session: Session) -> str | None:
        return None if session.hostname == "friend.example" else session.hostname

    limit = RateLimit("1/hour", by=by_name)
    assert repr(limit).endswith("by_name')")
    server = accepting(smtp_server, limit)
    for name, reply in (
        ("a.example", "250"),
        ("b.example", "250"),
        ("a.example", "450"),
        *[("friend.example", "250")] * 3,
    ):
        with dial(server, source=ONE) as peer:
            peer.hello(name)
            if reply == "250":
                assert peer.deliver().startswith(reply)
            else:
                peer.line("MAIL FROM:<a@example.com>")
                peer.expect(reply)


def test_a_key_function_that_raises_refuses_the_command(smtp_server: MakeServer) -> None:
    def fails(session: Session) -> str | None:
        raise LookupError("meant to happen")

    with greet(accepting(smtp_server, RateLimit("1/hour", by=fails))) as peer:
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("451 4.3.0")


def test_unix_sockets_are_not_limited_by_address(smtp_server: MakeServer) -> None:
    server = accepting(smtp_server, RateLimit("1/hour"), RateLimit("10/hour", on="bytes"))
    with greet(server, None) as peer:
        for _ in range(3):
            assert peer.deliver(sender="a@example.com> SIZE=5000").startswith("250")


def test_a_key_of_any_length_takes_little_room(smtp_server: MakeServer) -> None:
    limit = RateLimit("1/hour", by=lambda session: "\ud800x" * 100_000, storage="memory://long")
    server = accepting(smtp_server, limit)
    with greet(server) as peer:
        assert peer.deliver().startswith("250")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450")
    assert max(map(len, limit._store.storage._records)) < 300  # type: ignore[attr-defined]


# What counts together


def test_in_memory_a_limit_without_a_name_counts_alone(smtp_server: MakeServer) -> None:
    mine, yours = RateLimit("1/hour"), RateLimit("1/hour")
    for limit in (mine, yours):
        with greet(accepting(smtp_server, limit)) as peer:
            assert peer.deliver().startswith("250")
    with greet(accepting(smtp_server, mine)) as peer:  # another server, the same object
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450")


def test_limits_of_one_name_count_together_and_of_two_stores_do_not(smtp_server: MakeServer) -> None:
    def limit(storage: str) -> RateLimit:
        return RateLimit("1/hour", name="all", storage=storage)

    kept = limit("memory://a")
    for each, reply in ((kept, "250"), (limit("memory://a"), "450"), (limit("memory://b"), "250")):
        with greet(accepting(smtp_server, each)) as peer:
            if reply == "250":
                assert peer.deliver().startswith(reply)
            else:
                peer.line("MAIL FROM:<a@example.com>")
                peer.expect(reply)


# Arguments


def test_code_and_text_are_ones_own(smtp_server: MakeServer) -> None:
    for arguments, reply in (
        ({"code": 451}, "451 4.7.1 Too many messages in a short time, try again later"),
        ({"message": "slow down"}, "450 4.7.1 slow down"),
        ({"message": "4.2.1 slow down"}, "450 4.2.1 slow down"),
        ({"message": "slow\r\ndown", "code": 550}, "550-5.7.1 slow\n550 5.7.1 down"),
        ({"code": 550, "message": "5.7.1 never again"}, "550 5.7.1 never again"),
    ):
        server = accepting(smtp_server, RateLimit("1/hour", **arguments))
        with greet(server) as peer:
            peer.deliver()
            peer.line("MAIL FROM:<a@example.com>")
            assert peer.reply() == reply


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("many",), "limit takes '100/minute', or several: '100/minute; 1000/hour', not 'many'"),
        (("0/minute",), "limit takes"),
        (("1/fortnight",), "limit takes"),
        ((7,), "limit takes"),
        (("1/minute", "colour"), "by takes .* not 'colour'"),
        (("1/minute", "address", "sundays"), "on takes .* not 'sundays'"),
        (("1/minute", "identity", "connections"), "on='connections' takes by='address', 'network' or a function"),
        (("1/minute", "recipient", "messages"), "'recipient' is not known then"),
        (("1/minute", {"strategy": "leaky-bucket"}), "strategy takes .* not 'leaky-bucket'"),
        (("1/minute", {"on": "bytes", "strategy": "moving-window"}), 'on="bytes" takes'),
        (("1000000/day",), 'pass "sliding-window-counter" for more'),
        (("1/minute", {"storage": "memory"}), "storage takes 'memory://' or a URI"),
        (("1/minute", {"storage": 7}), "storage takes 'memory://' or a URI"),
        (("1/minute", {"storage": "floppy://a"}), "storage 'floppy://a' is not supported by limits"),
        (("1/minute", {"storage": "async+memory://"}), "is for asyncio"),
        (("1/minute", {"ipv4_prefix": 0}), "ipv4_prefix takes"),
        (("1/minute", {"timeout": 0}), "timeout takes a number of at least 0.01"),
        (("1/minute", {"code": 200}), "code takes"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], says: str) -> None:
    *positional, keywords = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ValueError, match=says):
        RateLimit(*positional, **keywords)


def test_no_secret_is_shown() -> None:
    uri = "redis://user:hunter2@localhost:1/0?password=hunter2"
    limit = RateLimit("1/minute", storage=uri)
    assert repr(limit) == "RateLimit('1/minute', by='address', storage='redis://localhost:1/0')"
    with pytest.raises(ValueError, match="storage 'redis://localhost:nine/0' cannot be opened") as caught:
        RateLimit("1/minute", storage="redis://user:hunter2@localhost:nine/0")
    assert "hunter2" not in repr(caught.value.__cause__) + str(caught.value)
    with pytest.raises(ValueError, match="storage is not a valid URI") as caught:
        RateLimit("1/minute", storage="redis://user:hunter2@local\u2100host:1/0")
    assert "hunter2" not in repr(caught.value.__cause__) + str(caught.value)
    assert store.shown_uri("redis+unix:///run/redis.sock?password=x") == "redis+unix:///run/redis.sock"


@pytest.mark.parametrize("uri", ["redis://h:1/0?tiemout=hunter2", "rediss://h:1?ssl_cert_reqs=hunter2"])
def test_an_option_that_redis_does_not_have_is_an_error_at_once(uri: str) -> None:
    with pytest.raises(ValueError, match=r"storage 'rediss?://h:1.*' cannot be opened .*the options behind") as caught:
        RateLimit("1/minute", storage=uri)
    assert "hunter2" not in "".join(format_exception(caught.value))


@pytest.mark.parametrize(
    "uri",
    [
        "redsi://:hunter2@localhost:1",
        "redis:/:hunter2@localhost:1",
        "redis://user:x/hunter2@localhost:1",
        "redis://user:x#hunter2@localhost:1",
        "redis://user:x?hunter2@localhost:1",
        "floppy://localhost?password=x@hunter2",
    ],
)
def test_no_traceback_of_a_wrong_storage_shows_a_secret(uri: str) -> None:
    with pytest.raises(ValueError, match="storage") as caught:
        RateLimit("1/minute", storage=uri)
    assert "hunter2" not in "".join(format_exception(caught.value))


def test_its_repr_is_short() -> None:
    assert repr(RateLimit("100/minute")) == "RateLimit('100/minute', by='address')"
    assert repr(RateLimit("9/hour", "network", "bytes")) == "RateLimit('9/hour', by='network', on='bytes')"


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("missing", "storage", "says"),
    [("limits", "memory://", "greensmtp[ratelimit]"), ("redis", "redis://localhost", "greensmtp[redis]")],
)
def test_what_is_missing_is_said_when_it_is_made(missing: str, storage: str, says: str) -> None:
    program = f"""
import sys
from greensmtp.middleware import RateLimit
assert "limits" not in sys.modules and "redis" not in sys.modules
sys.modules[{missing!r}] = None
try:
    RateLimit("1/minute", storage={storage!r})
except ModuleNotFoundError as error:
    print(error)
"""
    ran = forked.run(forked.python(program), how=forked.UNPATCHED)
    assert says in ran.stdout


@pytest.mark.parametrize("error", [SystemExit(1), RuntimeError("no\nway")])
def test_a_storage_that_fails_in_a_thread_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """gevent's pool would print the exception; here it is only logged."""
    limit = RateLimit("1/minute", storage=f"redis://127.0.0.1:1/{len(str(error))}")  # a separate storage

    def fail(key: str, cost: int) -> bool:
        raise error

    with pytest.raises(store.Unavailable):
        limit._store.ask(fail, "key", 1)
    assert capfd.readouterr().err == ""
    assert type(error).__name__ in caplog.text
    assert "no\nway" not in caplog.text


@pytest.mark.parametrize("password", ["hunter%402", "hunter@2", "%68unter@2"])
def test_no_password_that_a_storage_quotes_is_logged(caplog: pytest.LogCaptureFixture, password: str) -> None:
    """Redis before version 6 quotes the arguments of a command that it does not know."""
    limit = RateLimit("1/minute", storage=f"redis://127.0.0.1:1/7?password={password}")

    def fail(key: str, cost: int) -> bool:
        raise RuntimeError("unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hunter@2`, ")

    with pytest.raises(store.Unavailable):
        limit._store.ask(fail, "key", 1)
    assert "hunter" not in caplog.text
    assert "cannot be asked (RuntimeError: text left out: it quotes a secret)" in caplog.text
