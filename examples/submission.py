"""A submission server (RFC 6409): users log in, over STARTTLS or by SCRAM, and send mail under their own name.

    python examples/submission.py [port [cert.pem key.pem]]

Then, in another terminal:

    swaks --server 127.0.0.1:9587 --tls -au beep -ap boop --from beep@example.com --to you@example.org

Without a certificate there is no STARTTLS, and only mechanisms that do not send the password are offered. To make a
certificate for a test:

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem

Port 0 is any free port.
"""

import sys

import greensmtp
from greensmtp import Ack, Address, MessageStream, Session, SMTPServer
from greensmtp.middleware import Auth

#: Or "htpasswd:/etc/mail/users", "dovecot:/run/dovecot/auth-client", or a function; see the documentation of Auth.
USERS = {"beep": "boop"}


def make_server(port: int = 9587, certfile: str | None = None, keyfile: str | None = None) -> SMTPServer:
    """Return the server, with its handlers."""
    server = SMTPServer(
        ("127.0.0.1", port),
        hostname="localhost",
        certfile=certfile,
        keyfile=keyfile,
        middleware=[Auth(USERS, required=True)],
    )

    @server.on("from")
    def own_name_only(session: Session, address: Address, ack: Ack) -> None:
        if address.lower() == f"{session.identity}@example.com":
            ack.accept()
        else:
            ack.reject(550, f"5.7.1 {session.identity} may only send as {session.identity}@example.com")

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        size = sum(map(len, stream))
        identity = session.identity
        assert identity is not None  # Auth(required=True)
        print(f"{identity} ({identity.mechanism}) -> {', '.join(session.to)}: {size} bytes", flush=True)

    return server


def main(port: str = "9587", certfile: str | None = None, keyfile: str | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(int(port), certfile, keyfile),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
