"""A web application and a mail server in one process: the mail it gets is shown on its page, newest first.

    python examples/flask_app.py [SMTP port [web port]]

Then ``swaks --server 127.0.0.1:9025 --to you@localhost``, and look at http://127.0.0.1:8025/. Port 0 is any free one.

Both are gevent servers, so each connection is a greenlet, of a browser or of a mail client, and all of them share the
mailbox below without a lock: nothing in this file waits while it holds it.
"""

import sys
from collections import deque
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from flask import Flask, render_template_string
from gevent.pywsgi import WSGIServer

import greensmtp
from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.middleware import Logging

#: Messages that are kept; older ones are forgotten.
KEPT = 100

PAGE = """<!doctype html>
<title>{{ mailbox | length }} messages</title>
{% for mail in mailbox %}
<article>
  <h2>{{ mail.subject }}</h2>
  <p>from {{ mail.sender or "nobody" }} to {{ mail.recipients | join(", ") }}</p>
  <pre>{{ mail.text }}</pre>
</article>
{% else %}
<p>No mail yet.</p>
{% endfor %}
"""


@dataclass(frozen=True)
class Mail:
    """What the page shows of a message; plain text, whatever the message holds."""

    sender: str
    recipients: list[str]
    subject: str
    text: str


Mailbox = deque[Mail]


def make_app(mailbox: Mailbox) -> Flask:
    """The web application."""
    app = Flask(__name__)

    @app.get("/")
    def inbox() -> str:
        return render_template_string(PAGE, mailbox=mailbox)  # (which escapes: mail comes from strangers)

    return app


def make_server(mailbox: Mailbox, port: int) -> SMTPServer:
    """The mail server."""
    server = SMTPServer(("127.0.0.1", port), hostname="localhost", max_message_size=1024 * 1024, middleware=[Logging()])

    @server.on("message")
    def keep(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        message = message_from_bytes(stream.read(), policy=policy.default)
        # (What is no character at all in a header would end up in the page, and break it.)
        subject = str(message["Subject"] or "(no subject)").encode("utf-8", "replace").decode()
        mailbox.appendleft(Mail(session.from_ or "", list(session.to), subject, plain_text(message)))

    return server


def plain_text(message: EmailMessage) -> str:
    """The part that is plain text, as well as it can be read."""
    part = message.get_body(("plain",))
    if part is None:
        return "(no plain text)"
    octets = part.get_payload(decode=True)
    charset = part.get_content_charset("utf-8")
    assert isinstance(octets, bytes)
    try:
        return octets.decode(charset, "replace")
    except (LookupError, UnicodeError):  # a charset nobody knows, or that is none
        return octets.decode("ascii", "replace")


def main(port: int = 9025, web_port: int | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    mailbox: Mailbox = deque(maxlen=KEPT)
    if web_port is None:
        web_port = 8025 if port else 0
    web = WSGIServer(("127.0.0.1", web_port), make_app(mailbox), log=None)

    def tell(server: Any) -> None:
        place = "the page is at http://{}:{}/" if server is web else "listening on {}:{}"
        print(place.format(*server.address), flush=True)

    greensmtp.run(make_server(mailbox, port), web, started=tell)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
