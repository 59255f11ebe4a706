"""Exim and Postfix as relays: greensmtp's client delivers to them, and they deliver to greensmtp's servers.

Their logs, and the commands that the servers saw, show which extensions were used.
"""

from __future__ import annotations

import email
import email.policy
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import ssl as gevent_ssl

from greensmtp import connect
from greensmtp.protocol.option_values import Notify, OriginalRecipient
from greensmtp.protocol.options import RcptOptions
from tests.peers import exim as exims
from tests.peers.exim import Exim
from tests.peers.listeners import NO, PASSWORD, USER, Listener, Mail, listening
from tests.peers.postfix import Postfix

if TYPE_CHECKING:
    from tests.conftest import Certificate

#: One of each relay, and one set of listeners, for all.
pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.xdist_group("relays")]

ANN = "ann@example.com"
HEAD = "Subject: dots\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
BODY = ".\r\n..\r\nFrom here on: ✓\r\n".encode()
MESSAGE = HEAD.encode() + BODY
LARGE = HEAD.encode() + BODY * 10_000

#: Where each relay delivers to: the kind of listener, the mechanism of AUTH, whether there is TLS.
PLACES = {
    "plain": ("plain", None, False),
    "auth": ("plain", "", False),
    "starttls": ("starttls", None, True),
    "tls": ("tls", None, True),
    "lmtp": ("lmtp", None, False),
    "socket": ("lmtp+unix", None, False),
}


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder for the users that relays run as; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="greensmtp-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def all_listeners(certificate: Certificate) -> Iterator[dict[str, Listener]]:
    with open_folder() as folder, listening(folder, certificate) as listeners:
        yield listeners


@pytest.fixture
def listeners(all_listeners: dict[str, Listener]) -> dict[str, Listener]:
    """Return a listener of each kind, without what other tests left in it."""
    for each in all_listeners.values():
        each.clear()
    return all_listeners


@pytest.fixture
def plain(listeners: dict[str, Listener]) -> Listener:
    """Return the listener that relays use in the clear."""
    return listeners["plain"]


def check_deliveries(listeners: dict[str, Listener]) -> str:
    """Check that a message has come to every place, and return the mechanism that the relay used for AUTH."""
    mechanisms: list[str] = []
    for kind in {kind for kind, _, _ in PLACES.values()}:
        for _ in [place for place in PLACES.values() if place[0] == kind]:
            mail = listeners[kind].take()
            assert (kind, mail.sender, mail.tls) == (kind, ANN, kind in ("starttls", "tls"))
            assert mail.body.endswith(BODY)
            mechanisms += [mail.mechanism] if mail.mechanism else []
    (mechanism,) = mechanisms
    return mechanism


# Exim


@pytest.fixture(scope="module")
def exim(all_listeners: dict[str, Listener], certificate: Certificate) -> Iterator[Exim]:
    with exims.exim(all_listeners, certificate) as relay:
        yield relay


@pytest.fixture
def context(certificate: Certificate) -> Any:
    return gevent_ssl.create_default_context(cafile=str(certificate.authority))


def test_exim_relays_over_each_kind_of_listener(exim: Exim, listeners: dict[str, Listener], context: Any) -> None:
    with connect("127.0.0.1", exim.port, ssl_context=context, starttls="require", timeout=20) as mail:
        mail.send(MESSAGE, ANN, [f"bob@{place}.example" for place in PLACES])
    assert check_deliveries(listeners) == "PLAIN"
    logged = {place: exim.wait_for(rf"=> .*bob@{place}\.example\b") for place in PLACES}
    # L: PIPELINING was used; K: CHUNKING. (Exim's LMTP transport, the one for sockets, can do neither. On arrival it is
    # "L.": a dot for PIPECONNECT, its own extension.)
    assert [place for place, line in logged.items() if " L K C=" in line] == [*PLACES][:-1]
    assert [place for place, line in logged.items() if " X=TLS1.3:" in line and " CV=yes " in line] == [
        "starttls",
        "tls",
    ]
    assert [place for place, line in logged.items() if " A=plain " in line] == ["auth"]


def test_exim_and_our_client_send_a_large_message_in_chunks(exim: Exim, plain: Listener) -> None:
    with connect("127.0.0.1", exim.port, starttls="never", timeout=20) as mail:
        mail.send(LARGE, ANN, "large@plain.example")
    assert plain.take().body.endswith(BODY * 10_000)
    assert " P=esmtp L. K " in exim.wait_for(r"<= .* for large@plain\.example")
    assert " L K C=" in exim.wait_for(r"=> large@plain\.example ")
    chunks = [command for command in plain.commands if command.startswith("BDAT ")]
    assert len(chunks) > 1
    assert [chunk.endswith(" LAST") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_exim_and_our_client_send_to_addresses_beyond_ascii(exim: Exim, plain: Listener) -> None:
    with connect("127.0.0.1", exim.port, starttls="never", timeout=20) as mail:
        mail.send(MESSAGE, "josé@example.com", "дана@plain.example")
    arrived = plain.take()
    assert (arrived.sender, arrived.recipients) == ("josé@example.com", ("дана@plain.example",))
    assert arrived.sender.mail_options.smtputf8
    assert " P=utf8esmtp L. " in exim.wait_for(r"<= josé@example.com ")


# Postfix

#: The one for mail in the clear logs each command that it sends, and each reply.
SERVICES = """\
plain unix - - n - - smtp
  -o debug_peer_list=127.0.0.1
  -o debug_peer_level=1
starttls unix - - n - - smtp
  -o smtp_tls_security_level=verify
tls unix - - n - - smtp
  -o smtp_tls_security_level=verify
  -o smtp_tls_wrappermode=yes
auth unix - - n - - smtp
  -o smtp_sasl_auth_enable=yes
"""


@pytest.fixture(scope="module")
def postfix(all_listeners: dict[str, Listener], certificate: Certificate) -> Iterator[Postfix]:
    ports = {kind: listener.port for kind, listener in all_listeners.items() if listener.path is None}
    transports = {
        "plain": f"plain:[127.0.0.1]:{ports['plain']}",
        "auth": f"auth:[127.0.0.1]:{ports['plain']}",
        "starttls": f"starttls:[127.0.0.1]:{ports['starttls']}",
        "tls": f"tls:[127.0.0.1]:{ports['tls']}",
        "lmtp": f"lmtp:inet:127.0.0.1:{ports['lmtp']}",
        "socket": f"lmtp:unix:{all_listeners['lmtp+unix'].path}",
    }
    with open_folder() as folder:
        (folder / "transports").write_text("".join(f"{place}.example {where}\n" for place, where in transports.items()))
        (folder / "passwords").write_text(f"[127.0.0.1]:{ports['plain']} {USER}:{PASSWORD}\n")
        shutil.copyfile(certificate.authority, folder / "authority.pem")
        relay = Postfix(
            folder,
            SERVICES,
            relayhost=f"[127.0.0.1]:{ports['plain']}",
            transport_maps=f"texthash:{folder}/transports",
            smtp_sasl_password_maps=f"texthash:{folder}/passwords",
            smtp_sasl_security_options="noanonymous",
            smtp_tls_CAfile=f"{folder}/authority.pem",
            smtp_tls_verify_cert_match="mx.example.com",
        )
        try:
            yield relay
        finally:
            relay.stop()


def test_postfix_relays_over_each_kind_of_listener(postfix: Postfix, listeners: dict[str, Listener]) -> None:
    with connect("127.0.0.1", postfix.port, starttls="never", timeout=20) as mail:
        mail.send(MESSAGE, ANN, [f"bob@{place}.example" for place in PLACES])
    assert check_deliveries(listeners) == "SCRAM-SHA-256"
    assert all("BODY=8BITMIME" in line for each in listeners.values() for line in each.commands if "MAIL FROM" in line)


def spoken(postfix: Postfix) -> list[str]:
    """Return what Postfix logged of its SMTP in the clear: ``> command`` and ``< reply``, without names and texts."""
    lines = re.findall(rb"/smtp\[\d+\]: ([<>]) 127\.0\.0\.1\[127\.0\.0\.1\]:\d+: (\S+)", postfix.log)
    return [f"{way.decode()} {word.decode()}" for way, word in lines]


def test_postfix_pipelines_to_us(postfix: Postfix, plain: Listener) -> None:
    with connect("127.0.0.1", postfix.port, starttls="never", timeout=20) as mail:
        mail.send(MESSAGE, ANN, ["pat@plain.example", "cyd@plain.example"])
    plain.take()
    postfix.wait_for(b"to=<cyd@plain.example>, ")
    together = "> MAIL, > RCPT, > RCPT, > DATA, < 250, < 250, < 250, < 354, > ., > QUIT, < 250"
    assert together in ", ".join(spoken(postfix))


def test_postfix_takes_a_large_message_in_chunks(postfix: Postfix, plain: Listener) -> None:
    with connect("127.0.0.1", postfix.port, starttls="never", timeout=20) as mail:
        mail.send(LARGE, ANN, "large@plain.example")
    assert plain.take().body.endswith(BODY * 10_000)
    # Postfix counts the commands of a session. It has no BDAT as a client.
    postfix.wait_for(b" ehlo=1 mail=1 rcpt=1 bdat=1 quit=1 commands=5")


def test_postfix_and_our_client_send_to_addresses_beyond_ascii(postfix: Postfix, plain: Listener) -> None:
    with connect("127.0.0.1", postfix.port, starttls="never", timeout=20) as mail:
        mail.send(MESSAGE, "josé@example.com", "дана@plain.example")
    arrived = plain.take()
    assert (arrived.sender, arrived.recipients) == ("josé@example.com", ("дана@plain.example",))
    assert arrived.sender.mail_options.smtputf8
    assert arrived.recipients[0].rcpt_options.orcpt == OriginalRecipient("utf-8", "дана@plain.example")


# Delivery status notifications, by either


@pytest.fixture(params=["exim", "postfix"])
def relay(request: pytest.FixtureRequest) -> Exim | Postfix:
    """Return each relay in turn."""
    relay: Exim | Postfix = request.getfixturevalue(request.param)
    return relay


def send_asking(relay: Exim | Postfix, recipient: str, *notify: Notify) -> None:
    """Send a message to a relay with each parameter of DSN."""
    with connect("127.0.0.1", relay.port, starttls="never", timeout=20) as mail:
        mail.send(
            MESSAGE,
            ANN,
            recipient,
            ret="HDRS",
            envid="a+b",
            notify=notify,
            to_ext=RcptOptions(orcpt=OriginalRecipient("rfc822", "first@example.net")),
        )


def report_in(mail: Mail) -> str:
    """Check that this is a notification about such a message, with its header only, and return its status part."""
    assert (mail.sender, mail.recipients) == ("", (ANN,))
    message = email.message_from_bytes(mail.body, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report"
    _, status, returned = message.iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    assert returned.get_content_type() == "text/rfc822-headers"
    text = str(status).lower()
    assert re.search(r"original-envelope-id: a\+(b|2bb)\n", text)  # Exim leaves the xtext as it is
    assert "original-recipient: rfc822;first@example.net\n" in text.replace("; ", ";")
    return text


def test_a_relay_hands_on_what_our_client_asks_of_notifications(relay: Exim | Postfix, plain: Listener) -> None:
    with connect("127.0.0.1", relay.port, starttls="never", timeout=20) as client:
        client.begin()
        client.from_(ANN, body="8BITMIME", ret="HDRS", envid="a+b")
        client.to("dan@plain.example", notify=("SUCCESS", "FAILURE"), orcpt="first@example.net")
        client.data()
        assert client.message(MESSAGE).code == 250
    mail = plain.take()
    assert (mail.sender.mail_options.ret, mail.sender.mail_options.envid) == ("HDRS", "a+b")
    (recipient,) = mail.recipients
    assert recipient.rcpt_options == RcptOptions(
        notify=frozenset({"SUCCESS", "FAILURE"}), orcpt=OriginalRecipient("rfc822", "first@example.net")
    )


def test_a_relay_notifies_our_clients_user_of_a_refusal(relay: Exim | Postfix, plain: Listener) -> None:
    send_asking(relay, NO, "FAILURE")
    status = report_in(plain.take())
    assert "action: failed\n" in status
    assert "550 5.1.1 no such user" in status


def test_a_relay_notifies_our_clients_user_of_success(relay: Exim | Postfix, listeners: dict[str, Listener]) -> None:
    send_asking(relay, "dan@lmtp.example", "SUCCESS")
    assert listeners["lmtp"].take().recipients == ("dan@lmtp.example",)
    assert re.search("action: (delivered|relayed)\n", report_in(listeners["plain"].take()))
