"""Django's EMAIL_BACKEND over a pool, by Django's own functions."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings  # type: ignore[import-untyped]
from django.core import mail  # type: ignore[import-untyped]
from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
from django.test.utils import override_settings  # type: ignore[import-untyped]

from greensmtp import ClientError
from greensmtp.client import django as backends
from greensmtp.client.pool import Pool
from greensmtp.middleware import Auth
from greensmtp.testing.fixtures import MakeServer
from tests.client.counter import Counter
from tests.client.inbox import Inbox

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

FROM, TO = "Jo <jo@example.com>", "b@example.com"


@pytest.fixture(autouse=True, scope="module")
def configured() -> None:
    if not settings.configured:
        settings.configure()


@pytest.fixture(autouse=True)
def pools(smtp_server: MakeServer) -> Iterator[None]:
    """Each test has pools of its own, which are closed before the servers."""
    made: list[Pool] = []

    def make(**options: Any) -> Pool:
        made.append(Pool(**options))
        return made[-1]

    backends._pool.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "Pool", make)
        yield
    for pool in made:
        pool.close()
    backends._pool.cache_clear()


def using(server: Any, **others: Any) -> Any:
    """Return the settings for mail to this server."""
    host, port = ("127.0.0.1", server.port) if hasattr(server, "port") else server.address
    base = {"EMAIL_BACKEND": "greensmtp.client.django.EmailBackend", "EMAIL_TIMEOUT": 5}
    return override_settings(**{**base, "EMAIL_HOST": host, "EMAIL_PORT": port, **others})


def test_send_mail(inbox: Inbox) -> None:
    with using(inbox.server):
        assert mail.send_mail("Hej då", "Så är det.\n", FROM, ["Bé <b@example.com>", "c@example.com"]) == 1
    assert [str(sender) for sender in inbox.senders] == ["jo@example.com"]
    assert inbox.recipients == [["b@example.com", "c@example.com"]]
    message: Any = message_from_bytes(inbox.bodies[0], policy=policy.default)
    assert message["Subject"] == "Hej då"
    assert message["To"] == "Bé <b@example.com>, c@example.com"
    assert message["Message-ID"]
    assert message.get_content() == "Så är det.\r\n"


def test_a_message_with_everything(inbox: Inbox) -> None:
    message = mail.EmailMultiAlternatives(
        "hi", "text", FROM, [TO], bcc=["d@example.com"], cc=["c@example.com"], headers={"X-Tag": "1"}
    )
    message.attach_alternative("<b>html</b>", "text/html")
    message.attach("a.bin", b"\0\1\2", "application/octet-stream")
    with using(inbox.server):
        assert message.send() == 1
    assert inbox.recipients == [[TO, "c@example.com", "d@example.com"]]
    assert b"d@example.com" not in inbox.bodies[0]
    parts = [part.get_content_type() for part in message_from_bytes(inbox.bodies[0]).walk() if not part.is_multipart()]
    assert parts == ["text/plain", "text/html", "application/octet-stream"]


def test_backends_share_the_connections(inbox: Inbox, smtp_server: MakeServer) -> None:
    counter = Counter(server := smtp_server())
    with using(server):
        for _ in range(3):
            mail.send_mail("hi", "ho", FROM, [TO])
        with mail.get_connection() as connection:
            messages = [mail.EmailMessage("hi", "ho", FROM, [TO], connection=connection) for _ in range(3)]
            assert connection.send_messages(messages) == 3
            assert connection.open() is False
        assert connection.open() is True
        assert mail.send_mass_mail([("hi", "ho", FROM, [TO])] * 2) == 2
    assert counter.connections == 1
    assert len(counter.bodies) == 8


def test_messages_without_recipients_are_not_sent(inbox: Inbox) -> None:
    with using(inbox.server):
        connection = mail.get_connection()
        messages = [mail.EmailMessage("hi", "ho", FROM, []), mail.EmailMessage("hi", "ho", FROM, [TO])]
        assert connection.send_messages(messages) == 1
        assert connection.send_messages([]) == 0
        assert mail.EmailMessage("hi", "ho", FROM, []).send() == 0


@pytest.mark.parametrize(
    ("recipients", "error", "words"),
    [
        (["no@example.com"], smtplib.SMTPRecipientsRefused, {"no@example.com": (550, b"5.1.1 no such user")}),
        (["later@example.com"], smtplib.SMTPRecipientsRefused, {"later@example.com": (450, b"4.2.1 busy")}),
    ],
)
def test_refused_recipients_are_smtplibs_error(
    inbox: Inbox, recipients: list[str], error: type[Exception], words: dict[str, Any]
) -> None:
    with using(inbox.server):
        with pytest.raises(error) as failed:
            mail.send_mail("hi", "ho", FROM, recipients)
        assert mail.send_mail("hi", "ho", FROM, recipients, fail_silently=True) == 0
        assert mail.send_mail("hi", "ho", FROM, [*recipients, TO]) == 1
    assert failed.value.recipients == words  # type: ignore[attr-defined]
    assert isinstance(failed.value.__cause__, ClientError)


def answering(verb: str, reply: str) -> Callable[[Script], None]:
    """Return a script that answers one command with this reply, or closes the connection for ``""``."""

    def script(script: Script) -> None:
        if verb == "banner":
            script.say(reply)
            return
        script.greet()
        while line := script.hear():
            if line.startswith(verb):
                if not reply:
                    return
                script.say(reply)
            elif line == "DATA":
                script.say("354 go")
                script.body()
                if verb == "." and not reply:
                    return
                script.say(reply if verb == "." else "250 Ok")
            else:
                script.say("250 Ok")

    return script


@pytest.mark.parametrize(
    ("verb", "reply", "error", "code"),
    [
        ("banner", "554 5.7.1 no", smtplib.SMTPConnectError, 554),
        ("MAIL", "550 5.7.1 no", smtplib.SMTPSenderRefused, 550),
        ("DATA", "451 4.3.0 no", smtplib.SMTPDataError, 451),
        (".", "554 5.7.1 spam", smtplib.SMTPDataError, 554),
        (".", "", smtplib.SMTPServerDisconnected, None),
    ],
)
def test_errors_are_those_of_smtplib(
    scripted: Start, verb: str, reply: str, error: type[Exception], code: int | None
) -> None:
    with using(scripted(answering(verb, reply))):
        with pytest.raises(error) as failed:
            mail.send_mail("hi", "ho", FROM, [TO])
        assert getattr(failed.value, "smtp_code", None) == code
        assert mail.send_mail("hi", "ho", FROM, [TO], fail_silently=True) == 0


def test_no_server_is_an_oserror_too(scripted: Start) -> None:
    server = scripted(lambda script: None)
    server.stop()
    with using(server):
        with pytest.raises(smtplib.SMTPConnectError, match="cannot connect"):
            mail.send_mail("hi", "ho", FROM, [TO])
        with pytest.raises(OSError, match="cannot connect"):
            mail.get_connection().open()
        silent = mail.get_connection(fail_silently=True)
        assert silent.open() is None
        assert silent.send_messages([mail.EmailMessage("hi", "ho", FROM, [TO])] * 2) == 0


def test_after_a_failure_the_following_messages_are_sent_only_silently(inbox: Inbox) -> None:
    messages = [mail.EmailMessage("hi", "ho", FROM, [to]) for to in (TO, "no@example.com", "not an address", TO)]
    with using(inbox.server):
        assert mail.get_connection(fail_silently=True).send_messages(messages) == 2
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            mail.get_connection().send_messages(messages)
    assert len(inbox.bodies) == 3


def test_a_line_end_in_a_header_field_is_an_error_even_if_silent(inbox: Inbox) -> None:
    with using(inbox.server), pytest.raises(mail.BadHeaderError):
        mail.send_mail("hi\nBcc: x@example.com", "ho", FROM, [TO], fail_silently=True)
    assert inbox.bodies == []


def test_tls_is_verified(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)
    with using(server, EMAIL_USE_TLS=True), pytest.raises(smtplib.SMTPException, match="does not verify"):
        mail.send_mail("hi", "ho", FROM, [TO])
    with using(server, EMAIL_USE_TLS=True, EMAIL_USE_SSL=True), pytest.raises(ValueError, match="exclude"):
        mail.get_connection()
    with (
        using(server, EMAIL_SSL_CERTFILE=str(certificate.certfile), EMAIL_SSL_KEYFILE=str(certificate.keyfile)),
        pytest.raises(smtplib.SMTPDataError),
    ):
        mail.send_mail("hi", "ho", FROM, [TO])  # (EMAIL_USE_TLS is off)


def test_credentials(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[Auth({"jo": "secret"}, ["PLAIN"], allow_plaintext=True)])
    server.on("message", lambda session, stream, ack: ack.accept())
    login = {"EMAIL_HOST_USER": "jo", "EMAIL_HOST_PASSWORD": "secret"}
    with using(server, **login), pytest.raises(smtplib.SMTPAuthenticationError, match="in the clear"):
        mail.send_mail("hi", "ho", FROM, [TO])
    with using(server, **login, GREENSMTP_POOL={"allow_plaintext": True}):
        assert mail.send_mail("hi", "ho", FROM, [TO]) == 1
        with pytest.raises(smtplib.SMTPAuthenticationError):
            mail.send_mail("hi", "ho", FROM, [TO], auth_user="jo", auth_password="wrong")


def test_options_of_the_pool(inbox: Inbox) -> None:
    with using(inbox.server, GREENSMTP_POOL={"local_hostname": "web.example.com", "size": 2}):
        mail.send_mail("hi", "ho", FROM, [TO])
        connection = mail.get_connection(local_hostname="other.example.com")
        assert connection.send_messages([mail.EmailMessage("hi", "ho", FROM, [TO])]) == 1
    assert [command for command in inbox.commands if "EHLO" in command] == [
        "EHLO web.example.com",
        "EHLO other.example.com",
    ]


@pytest.mark.parametrize("options", [{"sizes": 5}, {"size": 0}, {"ignore": ["SIZE"]}])
def test_a_wrong_option_is_improperly_configured(inbox: Inbox, options: dict[str, Any]) -> None:
    with using(inbox.server, GREENSMTP_POOL=options), pytest.raises(ImproperlyConfigured, match="GREENSMTP_POOL"):
        mail.get_connection()
