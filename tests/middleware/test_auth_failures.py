"""Limits on failed attempts, by client and by account."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from gevent.event import Event

from greensmtp.middleware import Auth
from greensmtp.middleware._accounts import account_of
from greensmtp.middleware.auth.attempt_limiter import AttemptLimiter
from greensmtp.middleware.auth.attempts import DELAY_STEP, MAX_DELAY, SLOW_FROM, Attempt, AttemptLimits
from greensmtp.middleware.auth.credentials import Credentials, Unavailable
from greensmtp.testing import Peer, dial
from greensmtp.thread_pool import in_thread_pool
from tests import forked
from tests.helpers import auth_plain

if TYPE_CHECKING:
    from greensmtp import SMTPServer
    from greensmtp.testing.fixtures import MakeServer

TOO_MANY = "454 4.7.0 Too many failed attempts"


class Check:
    """A check that counts its calls."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, credentials: Credentials) -> bool:
        self.asked += 1
        if credentials.password == "down":
            raise Unavailable("down")
        return credentials.password == "sesame"


def attempt(server: SMTPServer, name: str, password: str, host: str = "192.0.2.1") -> str:
    with dial(server, source=(host, 4711)) as peer:
        peer.hello()
        peer.line(auth_plain(name, password))
        return peer.reply()


def make(smtp_server: MakeServer, **options: Any) -> tuple[SMTPServer, Check]:
    check = Check()
    options = {"failures_by_client": None, "failures_by_account": None} | options
    return smtp_server(start=False, middleware=[Auth(check, allow_plaintext=True, **options)]), check


def test_by_client(smtp_server: MakeServer) -> None:
    server, check = make(smtp_server, failures_by_client="2/minute")
    assert attempt(server, "jo", "x").startswith("535")
    assert attempt(server, "ann", "sesame").startswith("235")  # which counts for nothing
    assert attempt(server, "ann", "x").startswith("535")
    assert check.asked == 3
    assert attempt(server, "jo", "sesame").startswith(TOO_MANY)
    assert check.asked == 3
    assert attempt(server, "jo", "sesame", "192.0.2.2").startswith("235")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("somewhere", "elsewhere", False),
    ],
)
def test_addresses_that_count_as_one_client(smtp_server: MakeServer, one: str, other: str, same: bool) -> None:
    server, _ = make(smtp_server, failures_by_client="1/minute")
    attempt(server, "jo", "x", one)
    assert attempt(server, "jo", "x", other).startswith("454" if same else "535")


def test_a_unix_socket_is_no_client(smtp_server: MakeServer) -> None:
    server, check = make(smtp_server, failures_by_client="1/minute")
    for _ in range(3):
        with dial(server) as peer:
            peer.hello()
            peer.line(auth_plain("jo", "x"))
            peer.expect("535")
    assert check.asked == 3


def test_by_account(smtp_server: MakeServer) -> None:
    server, check = make(smtp_server, failures_by_account="2/minute")
    assert attempt(server, "jo", "x", "192.0.2.1").startswith("535")
    assert attempt(server, "JO", "x", "192.0.2.2").startswith("535")
    assert attempt(server, "jo", "sesame", "192.0.2.3").startswith(TOO_MANY)
    assert check.asked == 2
    assert attempt(server, "ann", "sesame", "192.0.2.3").startswith("235")


def test_an_account_that_is_closed_does_not_close_the_client(smtp_server: MakeServer) -> None:
    server, _ = make(smtp_server, failures_by_account="1/minute", failures_by_client="2/minute")
    attempt(server, "jo", "x")
    for _ in range(5):
        assert attempt(server, "jo", "x").startswith(TOO_MANY)
    assert attempt(server, "ann", "sesame").startswith("235")


def test_a_backend_that_is_down_counts_as_no_failure(smtp_server: MakeServer) -> None:
    server, check = make(smtp_server, failures_by_client="1/minute", failures_by_account="1/minute")
    for _ in range(3):
        assert attempt(server, "jo", "down").startswith("454 4.7.0 Temporary")
    assert check.asked == 3


@pytest.mark.parametrize("line", ["AUTH PLAIN !", "AUTH LOGIN ="])
def test_what_never_came_to_a_check_counts_for_the_client(smtp_server: MakeServer, line: str) -> None:
    server, _ = make(smtp_server, failures_by_client="1/minute")
    with dial(server, source=("192.0.2.1", 1)) as peer:
        peer.hello()
        peer.line(line, line)
        peer.expect("5", TOO_MANY)


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "SCRAM-SHA-256"])
def test_every_mechanism_counts(smtp_server: MakeServer, mechanism: str) -> None:
    asked = []

    class Users:
        def get_password(self, username: str) -> str | None:
            asked.append(username)
            return None

    server = smtp_server(start=False, middleware=[Auth(Users(), failures_by_account="1/minute")])
    said = {
        "CRAM-MD5": ["", "jo " + "0" * 32],
        "SCRAM-SHA-256": ["", "n,,n=jo,r=abc", "nonsense"],
    }[mechanism]
    for number in range(2):
        with dial(server, source=("192.0.2.1", 1)) as peer:
            peer.hello()
            peer.line(f"AUTH {mechanism}")
            for response in said[1 : 2 if number else None]:
                peer.expect("334")
                peer.line(b64encode(response.encode()).decode())
            peer.expect(TOO_MANY if number else "535")
    assert asked == ["jo"]


def test_attempts_at_once_get_no_further_than_one_by_one(smtp_server: MakeServer) -> None:
    asked = []
    open_the_gate = Event()

    def check(credentials: Credentials) -> bool:
        asked.append(credentials.username)
        open_the_gate.wait(10)
        return False

    auth = Auth(check, allow_plaintext=True, failures_by_client="3/minute", failures_by_account=None)
    server = smtp_server(start=False, middleware=[auth])
    peers: list[Peer] = [dial(server, source=("192.0.2.1", number)) for number in range(8)]
    for number, peer in enumerate(peers):
        peer.hello()
        peer.line(auth_plain(f"user{number}", "x"))
    peers[0].let_it_read()  # all of them are under way now
    open_the_gate.set()
    replies = sorted(peer.reply()[:3] for peer in peers)
    for peer in peers:
        peer.close()
    assert replies == ["454"] * 5 + ["535"] * 3
    assert len(asked) == 3


@pytest.mark.parametrize("same_user", [True, False])
def test_all_correct_logins_at_once_succeed(smtp_server: MakeServer, same_user: bool) -> None:
    """Users behind one address, or a program with many connections, may log in at the same time."""
    open_the_gate = Event()

    def check(credentials: Credentials) -> bool:
        return bool(open_the_gate.wait(10))

    auth = Auth(check, allow_plaintext=True, failures_by_client="3/minute", failures_by_account="3/minute")
    server = smtp_server(start=False, middleware=[auth])
    peers: list[Peer] = [dial(server, source=("192.0.2.1", number)) for number in range(8)]
    for number, peer in enumerate(peers):
        peer.hello()
        peer.line(auth_plain("jo" if same_user else f"user{number}", "x"))
    peers[0].let_it_read()  # three of them are under way now
    open_the_gate.set()
    assert [peer.reply()[:3] for peer in peers] == ["235"] * 8
    for peer in peers:
        peer.close()


def test_attempts_that_do_not_end_are_not_waited_for_for_ever(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greensmtp.middleware._pause._MAX_WAIT", 0.0)
    auth = Auth({"jo": "x"}, allow_plaintext=True, failures_by_client="1/minute", failures_by_account=None)
    server = smtp_server(start=False, middleware=[auth])
    with dial(server, source=("192.0.2.1", 1)) as slow, dial(server, source=("192.0.2.1", 2)) as other:
        slow.hello()
        slow.line("AUTH LOGIN")
        slow.expect("334")
        other.hello()
        other.line(auth_plain("jo", "x"))
        other.expect(TOO_MANY)
        slow.line("*")
        slow.expect("501")
    assert auth._limits.by_client is not None
    assert not auth._limits.by_client.has_attempts_in_flight("192.0.2.1")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "JO",
            "jo ",
            " j\u00a0o",
            "jö",
            "j\u034fo",
            "\uff4a\uff4f",
            "j\u200bo",
            "jo.",
            ".jo",
            "j.o",
            "jo\uff0e",
            "jo\u3002",
        ),
        *(
            "j\u043e",
            "J\u041e",
            "j\u03bf",
            "j\u00f8",
            "\u0458o",
            "j\u3164o",
            "j\u115fo",
            "\U0001d423o",
            "\u24d9\u24de",
            "j\u2060o",
        ),
        *("j\u202eo", "j\ufeffo", "j\u00ado", "j\U000e0061o", "\u1d0a\u1d0f", "j\u0585", "j\u2800o"),
    ],
)
def test_all_spellings_of_a_name_count_as_one_account(smtp_server: MakeServer, name: str) -> None:
    """A directory may treat all of these as jo."""
    server, check = make(smtp_server, failures_by_account="1/minute")
    assert attempt(server, "jo", "x").startswith("535")
    assert attempt(server, name, "sesame").startswith(TOO_MANY)
    assert check.asked == 1


def test_a_name_of_which_nothing_is_left_counts_too(smtp_server: MakeServer) -> None:
    server, check = make(smtp_server, failures_by_account="1/minute")
    assert attempt(server, "\u200b", "x").startswith("535")
    assert attempt(server, "\u200b", "x").startswith(TOO_MANY)
    assert attempt(server, "jo", "sesame").startswith("235")
    assert check.asked == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("stra\u00dfe", "STRASSE"),
        ("\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u03c3\u03b9\u03c3\u03c5\u03c6\u03bf\u03c3"),
        ("user\u0662", "user2"),
        ("jo@XN--bcher-KVA.example.", "jo@b\u00fccher.example"),
        ("jo@xn--.example", "jo@xn--.example"),
    ],
)
def test_spellings_of_one_account(one: str, other: str) -> None:
    assert account_of(one) == account_of(other)


@pytest.mark.parametrize(
    ("one", "other"), [("jo", "joe"), ("jo", "ja"), ("jo1", "jo2"), ("jo@example.com", "jo@example.org")]
)
def test_names_of_two_accounts(one: str, other: str) -> None:
    assert account_of(one) != account_of(other)


# No user is locked out


def test_failures_in_one_network_lock_the_account_in_no_other(smtp_server: MakeServer) -> None:
    server, _ = make(smtp_server, failures_by_account="2/minute")
    for number in range(4):
        attempt(server, "jo", "x", f"192.0.2.{number}")
    assert attempt(server, "jo", "sesame", "192.0.2.9").startswith(TOO_MANY)
    assert attempt(server, "jo", "sesame", "198.51.100.1").startswith("235")
    assert attempt(server, "jo", "sesame", "2001:db8::1").startswith("235")
    for number in range(2):
        attempt(server, "jo", "x", f"2001:db8:1::{number}")
    assert attempt(server, "jo", "sesame", "2001:db8:1::3").startswith(TOO_MANY)
    assert attempt(server, "jo", "sesame", "2001:db8:1:1::1").startswith("235")


def test_an_address_that_has_logged_in_is_not_counted_with_its_network(smtp_server: MakeServer) -> None:
    server, check = make(smtp_server, failures_by_account="2/minute")
    assert attempt(server, "jo", "sesame", "192.0.2.1").startswith("235")
    for _ in range(3):
        attempt(server, "jo", "x", "192.0.2.66")
    assert attempt(server, "jo", "sesame", "192.0.2.2").startswith(TOO_MANY)
    assert attempt(server, "JO", "sesame", "192.0.2.1").startswith("235")
    # Its own failures are bounded too, and a login to one account counts for no other.
    for _ in range(2):
        assert attempt(server, "jo", "x", "192.0.2.1").startswith("535")
    asked = check.asked
    assert attempt(server, "jo", "x", "192.0.2.1").startswith(TOO_MANY)
    assert check.asked == asked
    for _ in range(2):
        assert attempt(server, "ann", "x", "192.0.2.66").startswith("535")
    assert attempt(server, "ann", "sesame", "192.0.2.1").startswith(TOO_MANY)


def test_failures_from_many_networks_are_slowed_down_and_not_refused(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("greensmtp.middleware.auth.exchange.pause", lambda session, seconds: waited.append(seconds))
    server, check = make(smtp_server, failures_by_account="2/minute", timeout=0.5)
    attempt(server, "jo", "sesame", "192.0.2.1")
    for number in range(2 * SLOW_FROM):
        assert attempt(server, "jo", "x", f"10.0.{number}.1").startswith("535")
    assert waited == []
    for number in range(3):
        assert attempt(server, "jo", "x", f"10.1.{number}.1").startswith("535")
    assert waited == [DELAY_STEP, 2 * DELAY_STEP, 3 * DELAY_STEP]
    for number in range(40):
        attempt(server, "jo", "x", f"10.2.{number}.1")
    assert max(waited) == MAX_DELAY
    asked = check.asked
    waited.clear()
    assert attempt(server, "jo", "sesame", "192.0.2.1").startswith("235")  # it is known
    assert attempt(server, "ann", "sesame", "10.3.0.1").startswith("235")
    assert waited == []
    assert attempt(server, "jo", "sesame", "10.3.0.1").startswith("235")  # late, but in
    assert waited == [MAX_DELAY]
    assert check.asked == asked + 3


@pytest.mark.parametrize("name", ["jo@{}.example", "J.O%{}", "D{}\\jo", "jo\uff20{}"])
def test_a_domain_gives_a_name_no_guesses_of_its_own(name: str) -> None:
    limits = AttemptLimits(None, "5/minute", clock=Clock())
    waits = [Attempt(limits, "192.0.2.1").count_for_account(name.format(number)) for number in range(7)]
    assert waits == [0.0] * 5 + [None] * 2
    assert Attempt(limits, "192.0.2.1").count_for_account("jo") is None
    assert Attempt(limits, "192.0.2.1").count_for_account("ann") == 0.0


def test_a_login_to_one_account_does_not_make_the_client_known_in_another_domain() -> None:
    limits = AttemptLimits(None, "1/minute", clock=Clock())
    attempt = Attempt(limits, "192.0.2.1")
    attempt.count_for_account("info@one.example")
    attempt.succeed()
    assert [limits.knows(account_of(f"info@{domain}.example"), "192.0.2.1") for domain in ("one", "other")] == [
        True,
        False,
    ]


def test_an_account_that_does_not_exist_is_slowed_down_like_others() -> None:
    limits = AttemptLimits(None, "1/minute", clock=Clock())
    seconds = {
        name: [Attempt(limits, f"10.0.{number}.1").count_for_account(name) for number in range(30)]
        for name in ("jo", "nobody")
    }
    assert seconds["jo"] == seconds["nobody"]


def test_what_is_remembered_of_successes_is_bounded_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greensmtp.middleware.auth.attempts._MAX_KNOWN", 10)
    clock = Clock()
    limits = AttemptLimits("5/minute", "1/minute", clock=clock)
    for number in range(50):
        attempt = Attempt(limits, f"192.0.2.{number}")
        assert attempt.begin()
        assert attempt.count_for_account("jo") == 0.0
        attempt.succeed()
    assert len(limits._known) == 10
    assert limits.knows("jo", "192.0.2.49")
    assert not limits.knows("jo", "192.0.2.1")
    clock.now += 8 * 86400
    assert not limits.knows("jo", "192.0.2.49")
    for failures in (limits.by_client, limits.by_account, limits.everywhere):
        assert failures is not None
        assert len(failures) == 0


@pytest.mark.parametrize("how", [SystemExit(2), SystemExit(), RuntimeError("no")])
def test_a_backend_that_ends_the_program_ends_this_attempt_alone(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, how: BaseException
) -> None:
    def check(credentials: Credentials) -> bool:
        raise how

    for auth in (
        Auth(check, allow_plaintext=True),
        Auth(lambda credentials: in_thread_pool(check, credentials), allow_plaintext=True),
    ):
        caplog.clear()
        server = smtp_server(start=False, middleware=[auth])
        with dial(server, source=("192.0.2.1", 1)) as peer:
            peer.hello()
            peer.line(auth_plain("jo", "sesame"), "NOOP")
            peer.expect("454 4.7.0", "250")
        assert f"raised {type(how).__name__}" in caplog.text
        assert "sesame" not in caplog.text


@pytest.mark.subprocess
def test_an_interrupt_in_a_backend_ends_the_program_without_a_login() -> None:
    program = """
from greensmtp import SMTPServer
from greensmtp.middleware import Auth
from greensmtp.testing import dial

def check(credentials):
    raise KeyboardInterrupt

known = []
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", middleware=[Auth(check, allow_plaintext=True)])
server.on("auth", lambda session, identity, ack: known.append(identity))
try:
    with dial(server) as peer:
        peer.hello()
        peer.line("AUTH PLAIN AGpvAHNlc2FtZQ==")
        peer.reply()
except KeyboardInterrupt:
    print("interrupted", known)
"""
    ran = forked.run(forked.python(program), how=forked.UNPATCHED)
    assert ran.stdout == "interrupted []\n", ran.stderr
    assert "raised KeyboardInterrupt" in ran.stderr


# The counter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_time_begins_with_the_first_failure() -> None:
    clock = Clock()
    failures = AttemptLimiter("2/minute", clock=clock)
    assert failures.take("a")
    clock.now += 59
    assert failures.take("a")
    assert not failures.take("a")
    assert failures.take("b")
    clock.now += 1
    assert failures.take("a")
    assert failures.take("a")
    assert not failures.take("a")


def test_an_attempt_that_is_given_back_does_not_count() -> None:
    failures = AttemptLimiter("2/hour", clock=Clock())
    for _ in range(5):
        taken = failures.take("a")
        assert taken is not None
        taken.give_back()
    assert len(failures) == 0
    first, second = failures.take("a"), failures.take("a")
    assert first is not None
    first.give_back()
    assert failures.take("a")
    assert not failures.take("a")
    assert len(failures) == 1
    assert second is not None
    assert second.failures == 2


def test_an_attempt_of_the_last_window_gives_nothing_back_in_this_one() -> None:
    clock = Clock()
    failures = AttemptLimiter("1/minute", clock=clock)
    held = failures.take("a")
    clock.now += 60
    assert failures.take("a")
    assert held is not None
    held.give_back()
    assert not failures.take("a")


def test_it_is_bounded() -> None:
    clock = Clock()
    failures = AttemptLimiter("1/minute", max_keys=10, clock=clock)
    for number in range(1000):
        assert failures.take(str(number))
    assert len(failures) == 10
    assert not failures.take("999")
    assert failures.take("0")  # forgotten early
    clock.now += 60
    for number in range(5):  # each new key drops two that are over
        assert failures.take(f"new {number}")
    assert len(failures) == 5


@pytest.mark.parametrize(
    "limit", ["10/minute", "1/second", "5/15 minutes", "5 per 15 minutes", "100/hour", "1000/day", "3/2days"]
)
def test_a_limit_is_written_as_text(limit: str) -> None:
    assert repr(AttemptLimiter(limit)) == f"AttemptLimiter({limit!r})"


@pytest.mark.parametrize("limit", ["", "10", "minute", "0/minute", "1/0 minutes", "-1/minute", "1/fortnight", None, 10])
def test_a_malformed_limit_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="'10/minute'"):
        AttemptLimiter(limit)


def test_no_name_makes_a_long_key() -> None:
    """Case folding makes fifteen letters of each of these."""
    names = ["\ufdfa" * 84 + letter for letter in "ab"]
    keys = [account_of(name) for name in names]
    assert max(map(len, keys)) <= 64
    assert len({*keys}) == 2
    assert account_of(names[0].upper() + "!") == keys[0]
