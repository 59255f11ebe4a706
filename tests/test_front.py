"""``import greensmtp``: names that are imported when they are first used, and errors that survive a process."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import greensmtp
from greensmtp import errors
from greensmtp.outgoing import Sent
from greensmtp.protocol.replies import Reply

NO = Reply(550, "5.7.1 no")
SENT = Sent("a@example.org", {"b@example.com": NO}, Reply(250, "Ok"))

ERRORS: list[errors.GreenSMTPError] = [
    errors.Reject(451, "later"),
    errors.AlreadyAcknowledged("decided"),
    errors.ConnectionLost("timeout"),
    errors.TransactionReset("gave up"),
    errors.MessageRefused(552, "5.3.4 too large"),
    errors.CannotConnect("nobody there", NO),
    errors.AuthenticationFailed("wrong", NO),
    errors.NotOffered("SIZE", "it is large"),
    errors.RecipientsRefused("RCPT", NO, {"b@example.com": NO}),
    errors.PartiallyRefused("RCPT", NO, {"b@example.com": NO}, SENT),
    errors.Disconnected("closed", after_content=True, reply=NO),
    errors.PeerProtocolError("what", after_content=True),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled(error: errors.GreenSMTPError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_name_is_there() -> None:
    """In a process that has used none of them."""
    program = "from greensmtp import *; import greensmtp; print(sorted(set(greensmtp.__all__) - set(globals())))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert set(greensmtp.__all__) <= set(dir(greensmtp))


def test_a_name_that_is_not_there_is_an_error() -> None:
    """To type checkers too: an ignore without an error is one to mypy."""
    with pytest.raises(AttributeError, match="has no attribute 'SMTPSever'"):
        greensmtp.SMTPSever(("127.0.0.1", 0))  # type: ignore[attr-defined]
