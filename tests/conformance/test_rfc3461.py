"""RFC 3461 (DSN) as the protocol layer keeps it, where DSN is on. See docs/conformance/rfc3461.md."""

from __future__ import annotations

import pytest

from greensmtp.protocol.command import PathCommand, parse_command
from greensmtp.protocol.esmtp import DSN, ParameterCheck, choose, line_room
from greensmtp.protocol.reply import Reply
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

CHECK = ParameterCheck(choose(on=["DSN"]))


def refusal(line: str) -> Reply | None:
    """Return the reply to a malformed command or parameter, where DSN is on."""
    command = parse_command(line.encode())
    assert isinstance(command, PathCommand)
    return command.error or CHECK.refusal(command.verb, command.address, tls=False)


def test_dsn_is_not_offered_by_default(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        assert "DSN" not in peer.hello()
        peer.line("MAIL FROM:<jo@example.org> RET=HDRS", "MAIL FROM:<jo@example.org>")
        peer.expect("555 5.5.4", "250")
        peer.line("RCPT TO:<ann@example.com> NOTIFY=NEVER", "RCPT TO:<ann@example.com>")
        peer.expect("555 5.5.4", "250")


@pytest.mark.parametrize(
    "parameters",
    ["RET=FULL", "RET=hdrs", "ENVID=QQ314159", "ENVID=a+20b RET=HDRS", f"ENVID={'x' * 100}", "SIZE=1 RET=FULL"],
)
def test_valid_parameters_of_mail_are_accepted(parameters: str) -> None:
    assert refusal(f"MAIL FROM:<jo@example.org> {parameters}") is None
    assert refusal(f"MAIL FROM:<> {parameters}") is None


@pytest.mark.parametrize(
    "parameters",
    [
        "NOTIFY=NEVER",
        "NOTIFY=SUCCESS,FAILURE,DELAY",
        "NOTIFY=success",
        "ORCPT=rfc822;Ann+2B1@Example.COM",
        f"ORCPT=rfc822;{'x' * 493} NOTIFY=SUCCESS,FAILURE,DELAY",
    ],
)
def test_valid_parameters_of_rcpt_are_accepted(parameters: str) -> None:
    assert refusal(f"RCPT TO:<ann@example.com> {parameters}") is None


@pytest.mark.parametrize(
    "line",
    [
        "MAIL FROM:<jo@example.org> RET",
        "MAIL FROM:<jo@example.org> RET=BOTH",
        "MAIL FROM:<jo@example.org> RET=FULL RET=FULL",
        "MAIL FROM:<jo@example.org> ENVID",
        "MAIL FROM:<jo@example.org> ENVID=+0A",
        "MAIL FROM:<jo@example.org> ENVID=a+2b",
        "MAIL FROM:<jo@example.org> ENVID=a ENVID=b",
        "RCPT TO:<ann@example.com> NOTIFY",
        "RCPT TO:<ann@example.com> NOTIFY=NEVER,DELAY",
        "RCPT TO:<ann@example.com> NOTIFY=DELAY NOTIFY=DELAY",
        "RCPT TO:<ann@example.com> ORCPT=ann@example.com",
        "RCPT TO:<ann@example.com> ORCPT=rfc822;a+1",
        "RCPT TO:<ann@example.com> ORCPT=rfc822;a ORCPT=rfc822;a",
    ],
)
def test_malformed_and_repeated_parameters_get_501(line: str) -> None:
    reply = refusal(line)
    assert reply is not None
    assert (reply.code, reply.enhanced) == (501, "5.5.4")


def test_the_lines_have_room_for_the_longest_parameters() -> None:
    room = line_room([DSN])
    assert room["MAIL"] == len(f" ENVID={'x' * 100} RET=FULL")
    assert room["RCPT"] == len(f" ORCPT={'x' * 500} NOTIFY=SUCCESS,FAILURE,DELAY")
    assert 512 + room["RCPT"] >= 1036


def test_an_original_recipient_keeps_its_case() -> None:
    command = parse_command(b"RCPT TO:<ann@example.com> ORCPT=rfc822;Ann@Example.COM")
    assert isinstance(command, PathCommand)
    assert command.address.parameters["ORCPT"] == "rfc822;Ann@Example.COM"
    assert command.address.rcpt_options.orcpt is not None
    assert command.address.rcpt_options.orcpt.address == "Ann@Example.COM"
