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


@mail.on("greeting")  # error
def greeting(client: SMTPClient, replies: Reply) -> None: ...
