"""The folder of a mailbox: ``mail/{domain}/{local}``. No address that a client sends leads out of the tree.

Each placeholder becomes a part of the path by these rules:

- Unicode is normalized (NFC), and ASCII letters become lower case, so different spellings of a mailbox share a folder.
- ASCII letters and digits, ``-``, ``_``, ``=``, ``+``, and a dot that is not the first character stay. Each other
  byte of UTF-8 becomes ``%XX``. So no part is empty, ``.`` or ``..``, begins with a dot, or has a slash or a NUL.
- A part that would be longer than 200 characters is cut, and ends in ``~`` and a hash of the whole. No other part has a
  ``~``.

So two different mailboxes never have the same folder.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from string import Formatter

from greensmtp.errors import ArgumentError
from greensmtp.protocol.address import Address

_MAX_PART = 200
_KEPT_OF_LONG = 150

_UNSAFE = re.compile(rb"[^a-z0-9_=+.-]|\A\.")

#: The placeholders.
NAMES = ("local", "domain", "address")


def read_template(path: str) -> bool:
    """Return whether a path has placeholders.

    :raises ArgumentError: a placeholder is unknown, or a brace is unbalanced.
    """
    try:
        fields = [each[1:] for each in Formatter().parse(path) if each[1] is not None]
    except ValueError as error:
        raise ArgumentError("path", f"{error}; expected a path like 'mail/{{domain}}/{{local}}'") from None
    for name, form, conversion in fields:
        if name not in NAMES or form or conversion:
            raise ArgumentError("path", f"expected {{local}}, {{domain}} or {{address}}; got {{{name}}}")
    return bool(fields)


def fixed_part(path: str) -> str:
    """Return the folder that all mailboxes are in: the path up to the first part with a placeholder."""
    if not read_template(path):
        return path
    before = path[: path.index("{")]
    return before[: before.rfind("/") + 1] or "."


def mailbox(template: str, address: Address, *, hostname: str, subaddress: str) -> Path:
    """Return the folder of a mailbox.

    :param hostname: the domain of ``<postmaster>``.
    :param subaddress: the separator before a detail that is not part of the mailbox, such as ``"+"``; ``""`` for none.
    """
    return _mailbox(template, address.local_part, address.ascii_domain or hostname, subaddress)


@lru_cache(4096)
def _mailbox(template: str, local_part: str, domain: str, subaddress: str) -> Path:
    if subaddress:
        user = local_part.partition(subaddress)[0]
        local_part = user or local_part
    names = {"local": local_part, "domain": domain, "address": f"{local_part}@{domain}"}
    pieces = ((text, names[name] if name else None) for text, name, _, _ in Formatter().parse(template))
    return Path("".join(text + ("" if value is None else safe_part(value)) for text, value in pieces))


def safe_part(text: str) -> str:
    """Encode a text as one part of a path, by the rules above."""
    data = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    safe = _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], data.lower()).decode()
    if len(safe) > _MAX_PART:
        return f"{safe[:_KEPT_OF_LONG]}~{sha256(safe.encode()).hexdigest()[:32]}"
    return safe or "%"
