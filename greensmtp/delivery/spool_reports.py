"""Reports to the sender of a spooled message: failure, delay, success (RFC 3461 sections 4 and 5, RFC 3464).

A report is a message of the same spool, with the null sender. Its name is made of the message's name, the kind of
report and the number of the attempt. If a process is killed after it has added a report, the next process
replaces that report and does not add a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from greensmtp.delivery.report import Action, RecipientStatus, delivery_report
from greensmtp.delivery.spool_folder import Entry, Folder, describe
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply

#: Maximum size in bytes of a message that a report includes.
_RETURNED = 1024 * 1024

#: The first digit of the number in a report's name.
_KINDS: dict[Action, int] = {"failed": 1, "delayed": 2, "relayed": 3, "delivered": 4}


class Outcome(NamedTuple):
    """The last reply to a recipient."""

    recipient: Address
    reply: Reply


def is_wanted(event: Literal["SUCCESS", "FAILURE", "DELAY"], recipient: Address) -> bool:
    """Return True if NOTIFY asks for a report of an event. Without NOTIFY, failure and delay are reported.

    RFC 3461 section 4.1.
    """
    notify = recipient.parameters.get("NOTIFY")
    return event != "SUCCESS" if not notify else event in notify.upper().split(",")


def add_report(
    folder: Folder,
    entry: Entry,
    action: Action,
    outcomes: Sequence[Outcome],
    *,
    hostname: str,
    will_retry_until: float | None = None,
) -> str:
    """Add a report about some recipients of a message to the spool; return its name. Call it in a native thread.

    :param will_retry_until: for a delay, seconds since 1970.
    :raises OSError: it cannot be stored.
    """
    parameters = entry.sender.parameters
    # Section 4.3: RET is about failures. Other reports return the header section.
    whole = action == "failed" and str(parameters.get("RET") or "").upper() == "FULL" and entry.size <= _RETURNED
    now = datetime.now().astimezone()
    content = delivery_report(
        [
            RecipientStatus(
                recipient=str(recipient),
                action=action,
                reply=reply,
                original=recipient.parameters.get("ORCPT"),
                last_attempt=now,
                will_retry_until=_time(will_retry_until),
            )
            for recipient, reply in outcomes
        ],
        sender=str(entry.sender),
        hostname=hostname,
        message=entry.read(0, _RETURNED),
        headers_only=not whole,
        envelope_id=parameters.get("ENVID"),
        arrival=_time(entry.arrived),
        now=now,
    )
    needs: dict[str, str | None] = {} if content.isascii() else {"BODY": "8BITMIME"}
    if not str(entry.sender).isascii():
        needs["SMTPUTF8"] = None
    # An ID may end with ``_2``: the second message of a transaction. Its reports have names of their own.
    identifier, _, number = entry.name.partition("_")
    name = f"{identifier}_{_KINDS[action]}{entry.state.attempts:04}{number}"
    to = Address(str(entry.sender), entry.sender.local_part, entry.sender.domain)
    folder.add(name, describe(Address("", "", "", needs), [to]), content)
    return name


def _time(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):  # an impossible time, from a damaged file
        return None
