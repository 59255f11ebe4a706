"""The key of an account: its name, folded so that all ways to write it count as one."""

from __future__ import annotations

import re
from hashlib import sha256
from unicodedata import category, decimal, normalize

#: Longer keys are hashed: a name of 255 bytes may fold into 2,550, and a hundred thousand keys are kept.
_MAX_KEY = 64

_A_LABEL = re.compile(r"\bxn--([a-z0-9-]{1,59})", re.IGNORECASE)

#: What begins a domain behind a name.
_DOMAIN = re.compile("[@%]")

#: Small letters that look like Latin ones, or that the collations of databases treat as equal. Unicode does not
#: decompose them.
_ALIKE = str.maketrans(
    {
        **dict(zip("авеѕіјкмнорстухүһԁԛԝӏґѵԍ", "abesijkmhopctyxyhdqwlrvg", strict=True)),  # Cyrillic
        **dict(zip("αβεηικμνορτυχγωϲϳ", "abenikmvoptyxywcj", strict=True)),  # Greek
        **dict(zip("օոսցհյզԼ", "onugqjql", strict=True)),  # Armenian
        **dict(zip("łøđħŧıȷɑɡɩɨƀ", "lodhtijagiib", strict=True)),
        **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),
        **{"æ": "ae", "œ": "oe", "ð": "d", "þ": "th"},
        **dict.fromkeys("\u115f\u1160", ""),  # Hangul fillers: invisible letters
    }
)


def account_of(name: str) -> str:
    """Return the key that a user's failures are counted by: the letters and digits of the name, folded.

    Directories and databases treat many spellings as one name: with or without case, blanks, accents and dots, in wide
    or invisible letters, in letters that look like others. Spellings that may mean one user share a key, or each would
    have its own guesses. That two users may share a key does little harm: their clients are counted by address.
    """
    name = _A_LABEL.sub(_u_label, name)
    folded = _fold(_fold(name))  # the first round may yield new compatibility forms
    key = folded or normalize("NFKC", name).casefold()
    return key if len(key) <= _MAX_KEY else sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def without_domain(name: str) -> str:
    """Return a name without its domain: ``jo`` for ``jo@example.com``, ``jo%example.com`` and ``EXAMPLE\\jo``."""
    text = normalize("NFKC", name)
    return _DOMAIN.split(text.rpartition("\\")[2], maxsplit=1)[0] or text


def _u_label(match: re.Match[str]) -> str:
    """Return the U-label of an A-label (RFC 5891); other text unchanged."""
    try:
        return match[1].encode().decode("punycode")
    except UnicodeError:
        return match[0]


def _fold(name: str) -> str:
    kept = "".join(map(_letter_or_digit, normalize("NFKD", name)))
    return kept.casefold().translate(_ALIKE)


def _letter_or_digit(char: str) -> str:
    kind = category(char)
    if kind == "Nd":
        return str(decimal(char))  # databases treat the digits of all scripts as equal
    return char if kind[0] in "LN" else ""
