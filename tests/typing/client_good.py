"""A user's program of the client, in which type checkers must find nothing."""

from __future__ import annotations

import ssl

from greensmtp import Ack, Pool, Reply, SMTPClient, Timeouts, connect


def secure(client: SMTPClient, ack: Ack) -> None:
    ack.accept()


mail = connect("mx.example.com", 25, timeout=10, on_secure=secure, starttls="require")
connect(25, "mx.example.com", ssl.create_default_context(), Timeouts(connect=5))
connect(("mx.example.com", 25), secure, lmtp=True)
connect({"lmtp": True}, host="mx.example.com")
mail.on("secure", secure)


@mail.on("greeting")
def greeting(client: SMTPClient, reply: Reply) -> None:
    print(reply.code)


Pool(["a.example", ("b.example", 25)], size=3, username="jo", password=lambda: "secret", tls=True, lmtp=False)
