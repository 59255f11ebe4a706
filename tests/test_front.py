"""``import greensmtp``: names that are imported on first use, pickled errors, and forked processes."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import greensmtp
from greensmtp import errors
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult

NO = Reply(550, "5.7.1 no")
SENT = SendResult("a@example.org", {"b@example.com": NO}, Reply(250, "Ok"))

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


@pytest.mark.subprocess
def test_every_name_is_there() -> None:
    """In a new process, which has used none of the names."""
    program = "from greensmtp import *; import greensmtp; print(sorted(set(greensmtp.__all__) - set(globals())))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert set(greensmtp.__all__) <= set(dir(greensmtp))


@pytest.mark.subprocess
def test_forked_processes_do_not_share_the_names_of_sessions() -> None:
    program = """
import os
from greensmtp import Session
def name():
    return Session(None, None, "", {}).id
print(name(), flush=True)
for _ in range(2):
    child = os.fork()
    if not child:
        print(name(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert len({name.partition("-")[0] for name in names}) == len(names) == 3


def test_a_name_that_is_not_there_is_an_error() -> None:
    """For type checkers, too: mypy reports an unused ignore."""
    with pytest.raises(AttributeError, match="has no attribute 'SMTPSever'"):
        greensmtp.SMTPSever(("127.0.0.1", 0))  # type: ignore[attr-defined]
