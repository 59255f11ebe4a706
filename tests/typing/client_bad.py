"""A user's client program with mistakes: type checkers must report each line marked so, and no other."""

from __future__ import annotations

from greensmtp import Ack, Pool, Reply, SMTPClient, connect


def right(client: SMTPClient, ack: Ack) -> None: ...
def misnamed(client: SMTPClient, akc: Ack) -> None: ...


Pool(siz=3)  # error
Pool("mx.example.com", starttls="requires")  # error
Pool(username="jo", password=5)  # error
SMTPClient(prot=1)  # error
connect(prot=1)  # error
connect("mx.example.com", prt=25)  # error
connect("mx.example.com", 25, starttls="requires")  # error
connect("mx.example.com", on_secure=misnamed)  # error
mail = connect("mx.example.com", 25)
mail.on("secure", misnamed)  # error
mail.on("secre", right)  # error
mail.from_("jo@example.com", ret="ALL")  # error
mail.from_("jo@example.com", notify="NEVER")  # error
mail.from_("jo@example.com", require_tls="yes")  # error
mail.from_("jo@example.com", deliver_by=3600)  # error
mail.to("jo@example.com", notify="SOMETIMES")  # error
mail.to("jo@example.com", notify=["NEVER", "OFTEN"])  # error
mail.to("jo@example.com", envid="x")  # error
mail.send(b"", notfy="NEVER")  # error
mail.send(b"", size=5)  # error
mail.send(b"", priority="high")  # error
mail.xclient(adr="192.0.2.1")  # error
mail.xforward(login="jo")  # error
connect("mx.example.com", proxy="PROXY UNKNOWN")  # error
Pool("mx.example.com").send(b"", ret="NONE")  # error
with mail.pipeline() as batch:
    batch.to("jo@example.com", notify="SOMETIMES")  # error


@mail.on("greeting")  # error
def greeting(client: SMTPClient, replies: Reply) -> None: ...
