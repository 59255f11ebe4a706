"""A user's program of the client, in which type checkers must find nothing."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from greensmtp import Ack, Pool, Reply, SMTPClient, Timeouts, connect
from greensmtp.protocol.option_values import DeliverBy, OriginalRecipient, ValidSince
from greensmtp.protocol.options import MailOptions, RcptOptions
from greensmtp.protocol.proxy_header import ProxyHeader
from greensmtp.protocol.xclient import Missing


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

now = datetime.now(UTC)
mail.from_("jo@example.com", size=5, body="8BITMIME", smtputf8=True, auth="", ret="HDRS", envid="x", require_tls=True)
mail.from_("jo@example.com", {"X": "1"}, priority=-3, deliver_by=DeliverBy(60, "N"), hold_for=5, hold_until=None)
mail.to("jo@example.com", notify="NEVER", orcpt="jo@example.com", valid_since=now)
mail.to("jo@example.com", notify={"DELAY"}, orcpt=OriginalRecipient("x400", "x"), valid_since=ValidSince(now, "C"))
sent = mail.send(b"", notify=("SUCCESS", "FAILURE"), ret="FULL", from_ext=MailOptions(), to_ext=[RcptOptions(), None])
names: tuple[str, ...] = sent.queue_ids
Pool("mx.example.com", proxy=ProxyHeader(1, "UNKNOWN")).send(b"", hold_until=now, priority=9)
mail.xclient(name=Missing.UNAVAILABLE, addr="192.0.2.1", port=25, login=None)
mail.xforward(source="LOCAL", ident="Q1")
with mail.pipeline() as batch:
    batch.from_("jo@example.com", ret="FULL")
    batch.to("jo@example.com", notify="NEVER")
    batch.vrfy("jo")
