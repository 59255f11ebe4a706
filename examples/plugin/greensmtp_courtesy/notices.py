"""Automatic responses: which messages may get one, and its content (RFC 3834)."""

import re
from collections.abc import Mapping
from email.message import EmailMessage, Message
from email.utils import formatdate, getaddresses, make_msgid

#: Local parts of machines: an answer would not be read, or would be answered automatically.
_MACHINES = re.compile(
    r"(?:owner-.*|.*-(?:request|owner|bounces?)|mailer-daemon|postmaster|listserv|majordomo|(?:no|do-?not)-?reply)(?:\+.*)?",
    re.IGNORECASE,
)
_BULK = frozenset({"bulk", "junk", "list"})


def may_be_answered(head: Message, sender: str, recipient: str) -> bool:
    """Return whether a person has written the message to this recipient by name (RFC 3834 section 2)."""
    local_part = sender.rpartition("@")[0]
    if not local_part or _MACHINES.fullmatch(local_part) or sender.lower() == recipient.lower():
        return False
    kind = str(head.get("Auto-Submitted", "no")).partition(";")[0].strip().lower()
    if kind != "no" or str(head.get("Precedence", "")).strip().lower() in _BULK:
        return False
    if any(name.lower().startswith("list-") for name in head):
        return False
    named = [str(value) for field in ("To", "Cc") for value in head.get_all(field, [])]
    return recipient.lower() in {address.lower() for _, address in getaddresses(named)}


def make_notice(head: Message, sender: str, recipient: str, text: str) -> EmailMessage:
    """Return the notice (RFC 3834 section 3)."""
    notice = EmailMessage()
    notice["From"], notice["To"] = recipient, sender
    notice["Subject"] = f"Auto: {_one_line(head, 'Subject') or 'your message'}"
    notice["Date"], notice["Message-ID"] = formatdate(), make_msgid(domain=recipient.rpartition("@")[2])
    notice["Auto-Submitted"] = "auto-replied"
    message_id = re.fullmatch(r"<[!-;=?-~]{3,250}>", _one_line(head, "Message-ID"))
    if message_id is not None:
        notice["In-Reply-To"] = notice["References"] = message_id[0]
    notice.set_content(text + "\n")
    return notice


def read_texts(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the table ``away`` of the settings: address -> text.

    :raises ValueError: the table is missing or malformed.
    """
    away = settings.get("away")
    if not isinstance(away, dict) or not all(isinstance(text, str) for text in away.values()):
        raise ValueError('write a table [away] with a text for each address: "jo@example.com" = "Back on the 14th."')
    return {address.lower(): text for address, text in away.items()}


def _one_line(head: Message, field: str) -> str:
    """Return a header field of the message as text that is safe in a field of the notice."""
    text = str(head.get(field, ""))[:200].encode("ascii", "replace").decode()
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
