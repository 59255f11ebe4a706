"""``Mail`` and ``Message`` for Flask."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import pytest
from flask import Flask

from greensmtp import RecipientsRefused
from greensmtp.client.flask import Mail, Message
from greensmtp.testing.fixtures import MakeServer
from tests.client.counter import Counter
from tests.client.inbox import Inbox, composed

TO = "b@example.com"


@pytest.fixture
def app(inbox: Inbox) -> Flask:
    address: Any = inbox.server.address
    host, port = address
    app = Flask(__name__)
    app.config |= {"MAIL_SERVER": host, "MAIL_PORT": port, "MAIL_TIMEOUT": 5}
    app.config["MAIL_DEFAULT_SENDER"] = ("Jö", "jo@example.com")
    return app


@pytest.fixture
def mail(app: Flask) -> Iterator[Mail]:
    mail = Mail(app)
    yield mail
    mail.pool.close()


def test_a_message(mail: Mail, inbox: Inbox) -> None:
    message = Message("Hej då", recipients=[TO, ("C, C", "c@example.com")], bcc=["d@example.com"])
    message.body = "text\n"
    message.html = "<b>html</b>\n"
    message.reply_to = "e@example.com"
    message.extra_headers = {"X-Tag": "1"}
    message.attach("a.png", data=b"\0\1")
    sent = mail.send(message)
    assert sent is not None
    assert sent.refused == {}
    assert inbox.senders == ["jo@example.com"]
    assert inbox.recipients == [[TO, "c@example.com", "d@example.com"]]
    received: Any = message_from_bytes(inbox.bodies[0], policy=policy.default)
    assert received["Subject"] == "Hej då"
    assert received["From"] == "Jö <jo@example.com>"
    assert received["To"] == '"C, C" <c@example.com>'.join(["b@example.com, ", ""])
    assert (received["Bcc"], received["Reply-To"], received["X-Tag"]) == (None, "e@example.com", "1")
    parts = [part.get_content_type() for part in received.walk() if not part.is_multipart()]
    assert parts == ["text/plain", "text/html", "image/png"]


def test_text_or_html_alone(mail: Mail, inbox: Inbox) -> None:
    mail.send_message("hi", recipients=[TO], body="text\n")
    mail.send_message("hi", recipients=[TO], html="<b>html</b>\n")
    mail.send_message(recipients=[TO])
    kinds = [message_from_bytes(body).get_content_type() for body in inbox.bodies]
    assert kinds == ["text/plain", "text/html", "text/plain"]


def test_a_message_of_the_email_package_and_options_of_send(mail: Mail, inbox: Inbox) -> None:
    mail.send(composed(From="a@example.com", To=TO), sign=lambda content: b"X-Signed: yes\r\n")
    assert inbox.bodies[0].startswith(b"X-Signed: yes\r\n")
    with pytest.raises(RecipientsRefused):
        mail.send_message("hi", ["no@example.com"])


def test_connections_are_kept(app: Flask, smtp_server: MakeServer) -> None:
    counter = Counter(server := smtp_server())
    app.config["MAIL_PORT"] = server.address[1]
    mail = Mail(app)
    for _ in range(3):
        mail.send_message("hi", [TO])
    assert counter.connections == 1
    mail.pool.close()


def test_what_is_suppressed_can_be_recorded(app: Flask, inbox: Inbox) -> None:
    app.testing = True
    mail = Mail()
    mail.init_app(app)
    with app.app_context():
        with mail.record_messages() as outbox:
            assert mail.send_message("hi", [TO]) is None
        mail.send_message("ho", [TO])
    assert [message["Subject"] for message in outbox] == ["hi"]
    assert inbox.bodies == []


def test_a_message_that_lacks_something_is_an_error(app: Flask, mail: Mail) -> None:
    with pytest.raises(ValueError, match="at least one recipient"):
        mail.send(Message("hi"))
    with pytest.raises(ValueError, match="linefeed"):
        mail.send_message("hi\nBcc: x@example.com", [TO])
    del app.config["MAIL_DEFAULT_SENDER"]
    with pytest.raises(ValueError, match="MAIL_DEFAULT_SENDER"):
        Mail(app).send_message("hi", [TO])


def test_wrong_settings_are_an_error(app: Flask) -> None:
    app.config |= {"MAIL_USE_TLS": True, "MAIL_USE_SSL": True}
    with pytest.raises(ValueError, match="exclude"):
        Mail(app)
    app.config |= {"MAIL_USE_SSL": False, "MAIL_POOL": {"sizes": 3}}
    with pytest.raises(TypeError, match="sizes"):
        Mail(app)


def test_an_application_without_mail_is_an_error(app: Flask) -> None:
    with app.app_context(), pytest.raises(RuntimeError, match="init_app"):
        Mail().send_message("hi", [TO])
