"""Parameters and commands of extensions: what is on the wire, what is left out, and what needs an offer."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket
from gevent import ssl as gevent_ssl

from greensmtp import NotOffered, Pool, ProtocolError, SMTPClient, TLSRefused, TLSUnverified, connect
from greensmtp.client.pipeline import Pipeline
from greensmtp.protocol.option_values import DeliverBy, OriginalRecipient, ValidSince
from greensmtp.protocol.proxy_header import ProxyHeader
from greensmtp.protocol.xclient import Missing
from tests.client.scripts import take

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
TIME = datetime(2030, 1, 31, 12, tzinfo=UTC)
ALL = (
    "SIZE 1000",
    "8BITMIME",
    "SMTPUTF8",
    "AUTH PLAIN",
    "DSN",
    "MT-PRIORITY",
    "DELIVERBY",
    "FUTURERELEASE 86400 2031-01-31T12:00:00Z",
    "RRVS",
    "ETRN",
)


def listen(*offers: str, replies: dict[str, str] | None = None) -> tuple[Callable[[Script], None], list[str]]:
    """Return a script that answers every command with 250, or with the reply to its verb, and the lines it hears."""
    lines: list[str] = []

    def script(script: Script) -> None:
        script.greet(*offers)
        while line := script.hear():
            lines.append(line)
            script.say((replies or {}).get(line.split()[0], "250 Ok"))

    return script, lines


# MAIL and RCPT

MAIL: list[tuple[dict[str, Any], str, str]] = [
    ({"size": 7}, "SIZE=7", ""),
    ({"auth": "jo@example.com"}, "AUTH=jo@example.com", ""),
    ({"auth": ""}, "AUTH=<>", ""),
    ({"ret": "HDRS", "envid": "a b+c"}, "RET=HDRS ENVID=a+20b+2Bc", ""),
    ({"priority": -9}, "MT-PRIORITY=-9", ""),
    ({"body": "7BIT"}, "BODY=7BIT", ""),
    ({"body": "8BITMIME"}, "BODY=8BITMIME", "8BITMIME"),
    ({"smtputf8": True}, "SMTPUTF8", "SMTPUTF8"),
    ({"deliver_by": DeliverBy(-5, "N", trace=True)}, "BY=-5;NT", "DELIVERBY"),
    ({"hold_for": 60}, "HOLDFOR=60", "FUTURERELEASE"),
    ({"hold_until": TIME}, "HOLDUNTIL=2030-01-31T12:00:00Z", "FUTURERELEASE"),
]
RCPT: list[tuple[dict[str, Any], str, str]] = [
    ({"notify": "NEVER"}, "NOTIFY=NEVER", ""),
    ({"notify": ["DELAY", "SUCCESS"]}, "NOTIFY=SUCCESS,DELAY", ""),
    ({"orcpt": "jo+x@example.com"}, "ORCPT=rfc822;jo+2Bx@example.com", ""),
    ({"orcpt": "j\u00f6@example.com"}, "ORCPT=utf-8;j\\x{F6}@example.com", ""),
    ({"orcpt": OriginalRecipient("x400", "a b")}, "ORCPT=x400;a+20b", ""),
    ({"valid_since": TIME}, "RRVS=2030-01-31T12:00:00Z", "RRVS"),
    ({"valid_since": ValidSince(TIME, "C")}, "RRVS=2030-01-31T12:00:00Z;C", ""),
]


@pytest.mark.parametrize(("options", "words", "_needed"), MAIL)
@pytest.mark.parametrize("pipelined", [False, True])
def test_the_keywords_of_mail_on_the_wire(
    scripted: Start, options: Any, words: str, _needed: str, pipelined: bool
) -> None:
    script, lines = listen(*ALL)
    with scripted(script).connect() as mail:
        mail.ehlo()
        if pipelined:
            with mail.pipeline() as batch:
                batch.from_(FROM, **options)
        else:
            mail.from_(FROM, **options)
    assert lines[0] == f"MAIL FROM:<{FROM}> {words}"


@pytest.mark.parametrize(("options", "words", "_needed"), RCPT)
@pytest.mark.parametrize("pipelined", [False, True])
def test_the_keywords_of_rcpt_on_the_wire(
    scripted: Start, options: Any, words: str, _needed: str, pipelined: bool
) -> None:
    script, lines = listen(*ALL)
    with scripted(script).connect() as mail:
        mail.ehlo()
        if pipelined:
            with mail.pipeline() as batch:
                batch.to(TO, **options)
        else:
            mail.to(TO, **options)
    assert lines[0] == f"RCPT TO:<{TO}> {words}"


@pytest.mark.parametrize(
    ("verb", "options", "needed"),
    [
        *(("from_", options, needed) for options, _, needed in MAIL),
        *(("to", options, needed) for options, _, needed in RCPT),
    ],
)
def test_without_the_offer_a_keyword_is_left_out_or_not_offered(
    scripted: Start, verb: str, options: Any, needed: str
) -> None:
    script, lines = listen()
    with scripted(script).connect() as mail:
        mail.ehlo()
        call = getattr(mail, verb)
        if needed:
            with pytest.raises(NotOffered) as caught:
                call(TO, **options)
            assert caught.value.extension == needed
        else:
            call(TO, **options)
    assert lines == ["QUIT"] if needed else lines[0] in (f"MAIL FROM:<{TO}>", f"RCPT TO:<{TO}>")


def test_keywords_and_more_parameters_go_together(scripted: Start) -> None:
    script, lines = listen("DSN")
    with scripted(script).connect() as mail:
        mail.ehlo()
        mail.from_(FROM, "XPRIVATE=1", ret="FULL")
        mail.to(TO, {"XPRIVATE": "2"}, notify="NEVER")
        with pytest.raises(ProtocolError, match="given twice: RET"):
            mail.from_(FROM, {"RET": "HDRS"}, ret="FULL")
    assert lines == [f"MAIL FROM:<{FROM}> RET=FULL XPRIVATE=1", f"RCPT TO:<{TO}> NOTIFY=NEVER XPRIVATE=2", "QUIT"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"return_": "HDRS"}, TypeError),
        ({"notify": "NEVER"}, TypeError),  # a keyword of to()
        ({"ret": "ALL"}, ProtocolError),
        ({"envid": 5}, TypeError),
        ({"envid": "x" * 101}, ProtocolError),
        ({"envid": "a\r\nRSET"}, ProtocolError),
        ({"auth": "a b"}, ProtocolError),
        ({"size": -1}, ProtocolError),
        ({"priority": 10}, ProtocolError),
        ({"deliver_by": 3600}, TypeError),
        ({"deliver_by": DeliverBy(0, "R")}, ProtocolError),
        ({"hold_for": 0}, ProtocolError),
        ({"hold_for": 5, "hold_until": TIME}, ProtocolError),
        ({"hold_until": "soon"}, TypeError),
        ({"hold_until": datetime(2030, 1, 31)}, ProtocolError),
    ],
)
def test_wrong_keywords_of_mail_are_refused_before_anything_is_sent(
    scripted: Start, options: Any, error: type[Exception]
) -> None:
    script, lines = listen(*ALL)
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(error):
            mail.from_(FROM, **options)
        with pytest.raises(error):
            Pipeline(mail._exchange).from_(FROM, **options)
    assert lines == ["QUIT"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ret": "HDRS"}, TypeError),  # a keyword of from_()
        ({"notify": "SOMETIMES"}, ProtocolError),
        ({"notify": ["NEVER", "DELAY"]}, ProtocolError),
        ({"notify": []}, ProtocolError),
        ({"notify": 5}, TypeError),
        ({"orcpt": ""}, ProtocolError),
        ({"orcpt": "x" * 500}, ProtocolError),
        ({"valid_since": "2030"}, TypeError),
    ],
)
def test_wrong_keywords_of_rcpt_are_refused_before_anything_is_sent(
    scripted: Start, options: Any, error: type[Exception]
) -> None:
    script, lines = listen(*ALL)
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(error):
            mail.to(TO, **options)
    assert lines == ["QUIT"]


def test_send_takes_the_keywords(scripted: Start) -> None:
    script, lines = listen(*ALL, replies={"DATA": "554 5.6.0 no"})
    with scripted(script).connect() as mail, pytest.raises(Exception, match="no"):
        mail.send(b"x", FROM, [TO, "c@example.com"], ret="HDRS", envid="e", notify="FAILURE", priority=3)
    assert lines[:3] == [
        f"MAIL FROM:<{FROM}> RET=HDRS ENVID=e MT-PRIORITY=3 SIZE=3",
        f"RCPT TO:<{TO}> NOTIFY=FAILURE",
        "RCPT TO:<c@example.com> NOTIFY=FAILURE",
    ]


def test_a_pool_sends_the_keywords(scripted: Start) -> None:
    script, _, mails = take("DSN", "PIPELINING")
    server = scripted(script)
    with Pool("127.0.0.1", server.port, timeout=5) as pool:
        pool.send(b"x", FROM, TO, envid="e")
    assert mails == [f"MAIL FROM:<{FROM}> ENVID=e"]


@pytest.mark.parametrize("options", [{"hold_for": 5}, {"deliver_by": DeliverBy(5, "R")}, {"valid_since": TIME}])
def test_send_without_the_offer_sends_nothing(scripted: Start, options: Any) -> None:
    script, lines = listen("DSN", "PIPELINING")
    with scripted(script).connect() as mail, pytest.raises(NotOffered):
        mail.send(b"x", FROM, TO, **options)
    assert lines == ["QUIT"]


def test_send_refuses_unknown_and_repeated_keywords(scripted: Start) -> None:
    script, lines = listen(*ALL)
    with scripted(script).connect() as mail:
        mail.ehlo()
        options: Any = {"notfy": "NEVER"}
        with pytest.raises(TypeError, match="did you mean 'notify'"):
            mail.send(b"x", FROM, TO, **options)
        with pytest.raises(ProtocolError, match="given twice"):
            mail.send(b"x", FROM, TO, from_ext="RET=FULL", ret="HDRS")
    assert lines == ["QUIT"]


# REQUIRETLS (RFC 8689)


def secured(*offers: str, certificate: Certificate) -> tuple[Callable[[Script], None], list[str]]:
    """Return a script that offers STARTTLS, and these extensions over TLS; and the lines that it hears then."""
    lines: list[str] = []
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)

    def script(script: Script) -> None:
        script.greet("STARTTLS", "REQUIRETLS")
        if script.hear() != "STARTTLS":
            return
        script.say("220 go")
        with context.wrap_socket(script.socket, server_side=True) as script.socket:
            script.expect("EHLO ")
            script.say("250-mx.example.com", *(f"250-{offer}" for offer in offers), "250 HELP")
            while line := script.hear():
                lines.append(line)
                if line == "DATA":
                    script.say("354 go")
                    script.body()
                script.say("250 Ok")

    return script, lines


def trusting(certificate: Certificate) -> ssl.SSLContext:
    context: ssl.SSLContext = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    return context


def careless() -> ssl.SSLContext:
    context: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_requiretls_over_verified_tls(scripted: Start, certificate: Certificate) -> None:
    script, lines = secured("REQUIRETLS", certificate=certificate)
    with scripted(script).connect(trusting(certificate)) as mail:
        mail.send(b"x", FROM, TO, require_tls=True)
        assert mail.tls_verified
        mail.from_(FROM, require_tls=True)
    assert [line for line in lines if line.startswith("MAIL")] == [f"MAIL FROM:<{FROM}> REQUIRETLS"] * 2


def test_requiretls_without_tls_sends_nothing(scripted: Start) -> None:
    script, lines = listen("REQUIRETLS", "PIPELINING")
    with scripted(script).connect() as mail:
        with pytest.raises(TLSRefused, match="REQUIRETLS"):
            mail.send(b"x", FROM, TO, require_tls=True)
        with pytest.raises(TLSRefused):
            mail.from_(FROM, require_tls=True)
        with pytest.raises(TLSRefused):
            mail.send(b"x", FROM, TO, from_ext="REQUIRETLS")
    assert lines == ["QUIT"]


@pytest.mark.parametrize("context", ["careless", "opportunistic"])
def test_requiretls_over_unverified_tls_sends_nothing(scripted: Start, certificate: Certificate, context: str) -> None:
    script, lines = secured("REQUIRETLS", certificate=certificate)
    options: Any = {"starttls": "opportunistic"} if context == "opportunistic" else {"ssl_context": careless()}
    with scripted(script).connect(**options) as mail:
        with pytest.raises(TLSUnverified, match="REQUIRETLS"):
            mail.send(b"x", FROM, TO, require_tls=True)
        assert mail.tls
        assert not mail.tls_verified
    assert lines == ["QUIT"]


def test_a_handler_of_secure_verifies_for_requiretls(scripted: Start, certificate: Certificate) -> None:
    script, lines = secured("REQUIRETLS", certificate=certificate)
    with scripted(script).connect(careless(), lambda client, ack: ack.accept()) as mail:
        mail.send(b"x", FROM, TO, require_tls=True)
    assert lines[0] == f"MAIL FROM:<{FROM}> REQUIRETLS"


def test_requiretls_that_tls_does_not_offer(scripted: Start, certificate: Certificate) -> None:
    script, lines = secured(certificate=certificate)
    with scripted(script).connect(trusting(certificate)) as mail, pytest.raises(NotOffered) as caught:
        mail.send(b"x", FROM, TO, require_tls=True)
    assert caught.value.extension == "REQUIRETLS"
    assert lines == ["QUIT"]


# VRFY, EXPN, HELP, NOOP, ETRN


def test_commands_with_arguments(scripted: Start) -> None:
    script, lines = listen("ETRN", replies={"EXPN": "250-a@example.com\r\n250 b@example.com"})
    with scripted(script).connect() as mail:
        mail.ehlo()
        mail.vrfy("jo")
        assert mail.expn("staff").lines == ("a@example.com", "b@example.com")
        mail.noop("still here")
        mail.help("MAIL")
        mail.etrn("example.com")
        mail.etrn("@example.com")
        mail.etrn("#queue")
    assert lines == [
        "VRFY jo",
        "EXPN staff",
        "NOOP still here",
        "HELP MAIL",
        "ETRN example.com",
        "ETRN @example.com",
        "ETRN #queue",
        "QUIT",
    ]


def test_lookups_beyond_ascii_need_smtputf8(scripted: Start) -> None:
    script, lines = listen("8BITMIME", "SMTPUTF8")
    with scripted(script).connect() as mail:
        mail.ehlo()
        mail.vrfy("j\u00f6rg")
        mail.expn("gr\u00e4fin@b\u00fccher.example")
        mail.vrfy("jo@b\u00fccher.example")  # A-labels are enough
    assert lines[:3] == [
        "VRFY j\u00f6rg SMTPUTF8",
        "EXPN gr\u00e4fin@b\u00fccher.example SMTPUTF8",
        "VRFY jo@xn--bcher-kva.example",
    ]


def test_lookups_beyond_ascii_without_smtputf8_send_nothing(scripted: Start) -> None:
    script, lines = listen()
    with scripted(script).connect() as mail:
        mail.ehlo()
        for call in (mail.vrfy, mail.expn):
            with pytest.raises(NotOffered, match="SMTPUTF8"):
                call("j\u00f6rg")
            with pytest.raises(ProtocolError):
                call("")
            with pytest.raises(ProtocolError):
                call("jo\r\nRSET")
        with pytest.raises(NotOffered, match="SMTPUTF8"), mail.pipeline() as batch:
            batch.vrfy("j\u00f6rg")
    assert lines == ["QUIT"]


def test_lookups_end_a_group(scripted: Start) -> None:
    for name in ("vrfy", "expn", "noop"):
        script, lines = listen("PIPELINING")
        with scripted(script).connect() as mail:
            mail.ehlo()
            with mail.pipeline() as batch:
                batch.reset()
                getattr(batch, name)("jo")
                with pytest.raises(ProtocolError, match="last command"):
                    batch.reset()
            assert len(batch.replies) == 2
        assert lines == ["RSET", f"{name.upper()} jo", "QUIT"]


@pytest.mark.parametrize("node", ["", "a b", "@", "#", "no..domain"])
def test_etrn_takes_a_domain_or_a_queue(scripted: Start, node: str) -> None:
    script, lines = listen("ETRN")
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(ProtocolError):
            mail.etrn(node)
    assert lines == ["QUIT"]


@pytest.mark.parametrize(
    "call",
    [
        lambda mail: mail.etrn("example.com"),
        lambda mail: mail.xclient(addr="192.0.2.1"),
        lambda mail: mail.xforward(addr="192.0.2.1"),
    ],
)
def test_commands_that_are_not_offered_send_nothing(scripted: Start, call: Callable[[SMTPClient], Any]) -> None:
    script, lines = listen()
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(NotOffered):
            call(mail)
    assert lines == ["QUIT"]


# XCLIENT, XFORWARD


def test_xclient_begins_another_session(scripted: Start) -> None:
    def asked(script: Script) -> None:
        script.greet("XCLIENT NAME ADDR PORT LOGIN", "LIMITS MAILMAX=1", "DSN")
        script.expect("MAIL")
        script.say("250 Ok")
        script.expect("XCLIENT NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::1 PORT=25 LOGIN=j+2Bo")
        script.say("220 mx2.example.com ESMTP")
        script.expect("EHLO ")
        script.say("250 mx.example.com")
        for verb, reply in (("MAIL", "250 Ok"), ("RCPT", "250 Ok"), ("DATA", "354 go")):
            line = script.hear()
            assert line.startswith(verb)
            assert "ENVID" not in line
            script.say(reply)
        script.body()
        script.say("250 Ok")
        script.rest()

    with scripted(asked).connect() as mail:
        mail.ehlo()
        mail.from_(FROM)
        mail.authenticated = True
        reply = mail.xclient(name=Missing.UNAVAILABLE, addr="2001:db8::1", port=25, login="j+o", helo=None)
        assert reply.code == 220
        assert mail.greeting == reply
        assert mail.hello is None
        assert not mail.extensions
        assert not mail.authenticated
        assert not mail.needs_reset
        mail.send(b"x", FROM, TO, envid="e")


def test_xclient_that_is_refused_changes_nothing(scripted: Start) -> None:
    script, _ = listen("XCLIENT ADDR", replies={"XCLIENT": "550 5.7.0 no"})
    with scripted(script).connect() as mail:
        hello = mail.ehlo()
        mail.from_(FROM)
        assert mail.xclient(addr="192.0.2.1").code == 550
        assert mail.hello == hello
        assert mail.needs_reset


def test_xforward_on_the_wire(scripted: Start) -> None:
    script, lines = listen("XFORWARD NAME ADDR SOURCE IDENT")
    with scripted(script).connect() as mail:
        hello = mail.ehlo()
        mail.xforward(name="client.example", addr="192.0.2.1", source="REMOTE", ident=Missing.TEMPORARILY)
        assert mail.hello == hello
    assert lines[0] == "XFORWARD NAME=client.example ADDR=192.0.2.1 SOURCE=REMOTE IDENT=[TEMPUNAVAIL]"


def test_wrong_attributes_send_nothing(scripted: Start) -> None:
    script, lines = listen("XCLIENT NAME ADDR", "XFORWARD NAME HELO")
    wrong: Any = {"login": "jo"}
    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(NotOffered, match="XCLIENT PORT"):
            mail.xclient(port=25)
        with pytest.raises(ProtocolError):
            mail.xclient(addr="nowhere")
        with pytest.raises(ProtocolError):
            mail.xclient()
        with pytest.raises(ProtocolError):
            mail.xforward(**wrong)
        with pytest.raises(ProtocolError, match="more than 512 bytes"):
            mail.xforward(name="x" * 255, helo="y" * 255)
        with pytest.raises(ProtocolError, match="XCLIENT has"):
            mail.command("XCLIENT ADDR=192.0.2.1")
    assert lines == ["QUIT"]


def test_a_pool_does_not_keep_a_connection_that_speaks_for_another_client(scripted: Start) -> None:
    script, _ = listen("XCLIENT ADDR", replies={"XCLIENT": "220 mx"})
    server = scripted(script)
    with Pool("127.0.0.1", server.port, timeout=5) as pool:
        with pool.connection() as mail:
            mail.xclient(addr="192.0.2.1")
        assert pool.idle == 0
        with pool.connection() as mail:
            assert mail.hello is not None
        assert pool.idle == 1


# PROXY

HEADER = ProxyHeader(2, "TCP4", ("192.0.2.1", 40000), ("198.51.100.2", 25))


@pytest.mark.parametrize("header", [HEADER, ProxyHeader(1, "UNKNOWN"), ProxyHeader(2, "UNKNOWN", is_local=True)])
def test_the_proxy_header_goes_before_the_banner(scripted: Start, header: ProxyHeader) -> None:
    heard: list[bytes] = []

    def script(script: Script) -> None:
        heard.append(script.exactly(len(header.format())))
        script.greet()
        script.rest()

    server = scripted(script)
    with server.connect(proxy=header) as mail:
        mail.ehlo()
    with Pool("127.0.0.1", server.port, timeout=5, proxy=header) as pool, pool.connection():
        pass
    assert heard == [header.format()] * 2


def test_the_proxy_header_goes_before_tls(scripted: Start, certificate: Certificate) -> None:
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)

    def script(script: Script) -> None:
        size = len(HEADER.format())
        assert script.socket.recv(size, socket.MSG_WAITALL) == HEADER.format()
        with context.wrap_socket(script.socket, server_side=True) as script.socket:
            script.greet()
            script.rest()

    with scripted(script).connect(trusting(certificate), tls=True, proxy=HEADER) as mail:
        mail.ehlo()
        assert mail.tls


def test_wrong_proxy_headers() -> None:
    wrong: Any = "PROXY UNKNOWN"
    for make in (connect, Pool):
        with pytest.raises(TypeError, match="ProxyHeader"):
            make("127.0.0.1", 1, proxy=wrong)
        with pytest.raises(ValueError, match="expected"):
            make("127.0.0.1", 1, proxy=ProxyHeader(1, "TCP4"))


def test_no_proxy_header_inside_of_tls(scripted: Start, certificate: Certificate) -> None:
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)

    def script(script: Script) -> None:
        with context.wrap_socket(script.socket, server_side=True) as secured:
            assert secured.recv(1) == b""

    plain = socket.create_connection(("127.0.0.1", scripted(script).port), timeout=5)
    client = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(certificate.authority)
    stream = client.wrap_socket(plain, server_hostname="mx.example.com")
    with pytest.raises(ValueError, match="without TLS"):
        connect(stream=stream, proxy=HEADER)
