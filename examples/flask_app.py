"""A web application and a mail server in one process. The page shows the received mail, newest first.

    python examples/flask_app.py [SMTP port [web port]]

Then ``swaks --server 127.0.0.1:9025 --to you@localhost``, and look at http://127.0.0.1:8025/. Port 0 is any free port.

Both are gevent servers: each connection of a browser or a mail client is a greenlet. They share the mailbox below
without a lock, since nothing here waits while it uses it.
"""

import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

from flask import Flask, render_template_string
from gevent.pywsgi import WSGIServer

import greensmtp
from greensmtp import Mail, SMTPServer
from greensmtp.middleware import Logging

#: Messages that are kept; older ones are dropped.
KEPT = 100

PAGE = """<!doctype html>
<title>{{ mailbox | length }} messages</title>
{% for mail in mailbox %}
<article>
  <h2>{{ mail.subject }}</h2>
  <p>from {{ mail.sender or "the null sender" }} to {{ mail.recipients | join(", ") }}</p>
  <pre>{{ mail.text }}</pre>
</article>
{% else %}
<p>No mail yet.</p>
{% endfor %}
"""


@dataclass(frozen=True)
class Entry:
    """The part of a message that the page shows. All of it is plain text."""

    sender: str
    recipients: list[str]
    subject: str
    text: str


Mailbox = deque[Entry]


def make_app(mailbox: Mailbox) -> Flask:
    """Return the web application."""
    app = Flask(__name__)

    @app.get("/")
    def inbox() -> str:
        return render_template_string(PAGE, mailbox=mailbox)  # escapes the text, which is untrusted

    return app


def make_server(mailbox: Mailbox, port: int) -> SMTPServer:
    """Return the mail server."""
    server = SMTPServer(("127.0.0.1", port), hostname="localhost", max_message_size=1024 * 1024, middleware=[Logging()])

    @server.on_mail
    def keep(mail: Mail) -> None:
        message = mail.parse()  # raises on no input, however malformed
        part = message.get_body(("plain",))
        text = "(no plain text)" if part is None else str(part.get_content())
        subject = str(message["Subject"] or "(no subject)")
        # Replace lone surrogates, which a header may contain and a page cannot.
        subject = subject.encode("utf-8", "replace").decode()
        mailbox.appendleft(Entry(mail.sender, list(mail.recipients), subject, text))

    return server


def main(port: int = 9025, web_port: int | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    mailbox: Mailbox = deque(maxlen=KEPT)
    if web_port is None:
        web_port = 8025 if port else 0
    web = WSGIServer(("127.0.0.1", web_port), make_app(mailbox), log=None)

    def announce(server: Any) -> None:
        text = "the page is at http://{}:{}/" if server is web else "listening on {}:{}"
        print(text.format(*server.address), flush=True)

    greensmtp.run(make_server(mailbox, port), web, started=announce)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
