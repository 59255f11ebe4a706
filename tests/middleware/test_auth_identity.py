"""The identity of a session after AUTH (RFC 4954), and the parameter AUTH= of MAIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greensmtp.testing import dial
from tests.helpers import b64
from tests.middleware.logins import PLAIN_JO, PLAIN_WRONG, USERS, ignore, in_the_clear, keeping, offered

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate


# The identity


def test_the_identity_survives_rset_and_ehlo_but_not_starttls(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
    sessions: list[Any] = []
    server = smtp_server(
        middleware=[in_the_clear()], certfile=certificate.certfile, keyfile=certificate.keyfile, start=True
    )
    server.on("from", keeping(sessions, lambda session, address: session.identity))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>", "RSET", "MAIL FROM:<>", "EHLO x", "MAIL FROM:<>", "RSET")
        peer.expect("235", "250", "250", "250", "250", "250", "250")
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO x", "MAIL FROM:<>")
        assert "PLAIN" in offered(peer.expect("250"))
        peer.expect("250")
        peer.line("RSET", f"AUTH PLAIN {b64('ann' + chr(0) + 'ann' + chr(0) + USERS['ann'])}", "MAIL FROM:<>")
        peer.expect("250", "235", "250")
    assert [str(identity) for identity in sessions] == ["jo", "jo", "jo", "None", "ann"]
    first, last = sessions[0], sessions[-1]
    assert (first.authcid, first.authzid, first.mechanism) == ("jo", "", "PLAIN")
    assert (last.authcid, last.authzid) == ("ann", "ann")
    with pytest.raises(AttributeError):
        first.authcid = "root"


def test_the_protocol_is_esmtpa_after_a_login(peer_of: Any, smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: session.protocol))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RSET", f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>")
        peer.expect("250", "250", "235", "250")
    assert seen == ["ESMTP", "ESMTPA"]


@pytest.mark.parametrize(
    ("handler", "reply", "known"),
    [
        (lambda session, identity, ack: ack.accept(), "235 2.7.0", True),
        (lambda session, identity, ack: ack.accept(235, "2.7.0 Hello"), "235 2.7.0 Hello", True),
        (lambda session, identity, ack: ack.reject(), "535 5.7.8", False),
        (lambda session, identity, ack: ack.reject(534, "5.7.9 use SCRAM"), "534 5.7.9 use SCRAM", False),
        (lambda session, identity, ack: None, "451", False),
        (lambda session, identity, ack: 1 / 0, "451", False),
    ],
)
def test_the_handler_of_auth_decides(
    smtp_server: MakeServer, handler: Any, reply: str, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(middleware=[in_the_clear(required=True)], start=False)
    server.on("auth", handler)
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", "MAIL FROM:<>")
        peer.expect(reply, "250" if known else "530")
    assert "sesame" not in caplog.text


def test_wrong_credentials_do_not_reach_the_handler_of_auth(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    server.on("auth", lambda session, identity, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_WRONG}")
        peer.expect("535")


def test_the_handler_of_auth_may_decide_later(smtp_server: MakeServer) -> None:
    from gevent import spawn

    server = smtp_server(middleware=[in_the_clear()], start=False)
    server.on("auth", lambda session, identity, ack: ignore(spawn(ack.reject, 454, "4.7.0 later")))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 later")


def test_the_command_signal_is_emitted_for_auth_and_may_decide(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    heard = []

    @server.on("command")
    def closed_at_night(session: Any, command: Any, ack: Any) -> None:
        heard.append(repr(command))
        if command.verb == "AUTH" and len(heard) == 2:
            ack.reject(454, "4.7.0 closed at night")

    with dial(server) as peer:
        peer.hello()
        peer.line(f"AUTH PLAIN {PLAIN_JO}", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("454 4.7.0 closed at night", "235")
    assert heard == ["<HelloCommand 'EHLO client.example'>", "<Command 'AUTH ***'>", "<Command 'AUTH ***'>"]


def test_authorize_decides_about_acting_as_another_user(peer_of: Any) -> None:
    asked = []

    def authorize(identity: Any, session: Any) -> bool:
        asked.append((identity.authcid, identity.authzid))
        return bool(identity.authzid == "office")

    as_office = b64("office\0jo\0sesame")
    with peer_of(in_the_clear(authorize=authorize)) as peer:
        peer.line(f"AUTH PLAIN {b64('boss' + chr(0) + 'jo' + chr(0) + 'sesame')}", f"AUTH PLAIN {as_office}")
        peer.expect("535 5.7.8", "235")
    assert asked == [("jo", "boss"), ("jo", "office")]
    with peer_of(in_the_clear(authorize=lambda identity, session: 1)) as peer:  # which is not True
        peer.line(f"AUTH PLAIN {as_office}")
        peer.expect("535 5.7.8")
    with peer_of(in_the_clear(authorize=lambda identity, session: 1 / 0)) as peer:
        peer.line(f"AUTH PLAIN {as_office}")
        peer.expect("454 4.7.0")


def test_an_authzid_equal_to_the_name_needs_no_authorization(peer_of: Any) -> None:
    with peer_of(in_the_clear(lambda credentials: f"{credentials.username}@example.com")) as peer:
        peer.line(f"AUTH PLAIN {b64('ann' + chr(0) + 'jo' + chr(0) + 'sesame')}")
        peer.expect("535 5.7.8")
        peer.line(f"AUTH PLAIN {b64('jo' + chr(0) + 'jo' + chr(0) + 'sesame')}")
        peer.expect("235")


# AUTH= of MAIL


@pytest.mark.parametrize(
    ("value", "known", "stranger"),
    [
        ("<>", "<>", "<>"),
        ("e+3Dmc2@example.com", "e=mc2@example.com", "<>"),
        ("jo@example.com", "jo@example.com", "<>"),
    ],
)
def test_the_submitter_is_kept_after_a_login_only(
    smtp_server: MakeServer, value: str, known: str, stranger: str
) -> None:
    server = smtp_server(middleware=[in_the_clear()], start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: address.parameters["AUTH"]))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<a@example.com> AUTH={value} SIZE=9", "RSET", f"AUTH PLAIN {PLAIN_JO}")
        peer.expect("250", "250", "235")
        peer.line(f"MAIL FROM:<a@example.com> SIZE=9 AUTH={value}")
        peer.expect("250")
    assert seen == [stranger, known]


@pytest.mark.parametrize("value", ["", "=+3", "=+zz", "=jo", "=jo+40", "=+FF@x", "=jo+0Ax@example.com", "=beep"])
@pytest.mark.parametrize("stack", [(), (in_the_clear,)], ids=["without Auth", "with Auth"])
def test_a_submitter_that_is_not_a_mailbox_is_null(smtp_server: MakeServer, stack: Any, value: str) -> None:
    """Dovecot's submission service sends the user's login name."""
    server = smtp_server(middleware=[each() for each in stack], start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: address.parameters["AUTH"]))
    with dial(server) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<a@example.com> AUTH{value}", "RSET")
        peer.expect("250", "250")
        if stack:
            peer.line(f"AUTH PLAIN {PLAIN_JO}", f"MAIL FROM:<a@example.com> AUTH{value}")
            peer.expect("235", "250")
    assert set(seen) == {"<>"}


@pytest.mark.parametrize("value", ["=", "=a=b"])
def test_a_submitter_that_is_no_parameter_is_refused(peer_of: Any, value: str) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line(f"MAIL FROM:<a@example.com> AUTH{value}")
        peer.expect("501 5.5.4")


def test_a_submitter_is_null_without_auth(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []
    server.on("from", keeping(seen, lambda session, address: dict(address.parameters)))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com> AUTH=<>", "RSET", "MAIL FROM:<a@example.com> SIZE=9 AUTH=jo@example.com")
        peer.expect("250", "250", "250")
    assert seen == [{"AUTH": "<>"}, {"SIZE": "9", "AUTH": "<>"}]


def test_the_submitter_has_its_room_on_the_line(peer_of: Any) -> None:
    with peer_of(in_the_clear()) as peer:
        peer.line(f"MAIL FROM:<a@example.com> AUTH=jo@{'.'.join(['x' * 60] * 4)}{' ' * 300}")
        peer.expect("250")
