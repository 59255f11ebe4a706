"""RFC 8689 (REQUIRETLS) as the protocol layer keeps it, where it is on. See docs/conformance/rfc8689.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greensmtp.protocol.command import PathCommand, parse_command
from greensmtp.protocol.esmtp import ParameterCheck, choose
from greensmtp.protocol.reply import Reply
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting

if TYPE_CHECKING:
    from tests.conftest import Certificate


def mail(parameters: str) -> PathCommand:
    """Return MAIL with these parameters."""
    command = parse_command(f"MAIL FROM:<jo@example.org> {parameters}".encode())
    assert isinstance(command, PathCommand)
    assert command.error is None
    return command


def refusal(parameters: str, *, tls: bool) -> Reply | None:
    """Return the reply to MAIL with these parameters where REQUIRETLS is on; None if they are accepted."""
    return ParameterCheck(choose(on=["REQUIRETLS"])).refusal("MAIL", mail(parameters).address, tls=tls)


def test_requiretls_is_not_offered_by_default(smtp_server: MakeServer, certificate: Certificate) -> None:
    with dial(accepting(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile)) as peer:
        assert "REQUIRETLS" not in peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example")
        assert "REQUIRETLS" not in peer.expect("250")
        peer.line("MAIL FROM:<jo@example.org> REQUIRETLS")
        peer.expect("555 5.5.4")


def test_the_parameter_has_no_value_and_needs_tls() -> None:
    assert refusal("REQUIRETLS", tls=True) is None
    for parameters, tls, code, enhanced in (("REQUIRETLS", False, 530, "5.7.10"), ("REQUIRETLS=1", True, 501, "5.5.4")):
        reply = refusal(parameters, tls=tls)
        assert reply is not None
        assert (reply.code, reply.enhanced) == (code, enhanced)


def test_a_handler_can_tell_that_tls_is_required() -> None:
    assert mail("REQUIRETLS").address.mail_options.require_tls
    assert not mail("SIZE=1").address.mail_options.require_tls
