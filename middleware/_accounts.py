"""The many names of one account, folded into one key."""

from __future__ import annotations

import re
from hashlib import sha256
from unicodedata import category, decimal, normalize

#: A key that is longer is hashed: a name of 255 octets may fold into 2,550, and a hundred thousand keys are kept.
_MAX_KEY = 64

_A_LABEL = re.compile(r"\bxn--([a-z0-9-]{1,59})", re.IGNORECASE)

#: Small letters that look like Latin ones, or that collations of databases take for them, and that Unicode does not
#: decompose.
_ALIKE = str.maketrans(
    {
        **dict(zip("авеѕіјкмнорстухүһԁԛԝӏґѵԍ", "abesijkmhopctyxyhdqwlrvg", strict=True)),  # Cyrillic
        **dict(zip("αβεηικμνορτυχγωϲϳ", "abenikmvoptyxywcj", strict=True)),  # Greek
        **dict(zip("օոսցհյզԼ", "onugqjql", strict=True)),  # Armenian
        **dict(zip("łøđħŧıȷɑɡɩɨƀ", "lodhtijagiib", strict=True)),
        **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),
        **{"æ": "ae", "œ": "oe", "ð": "d", "þ": "th"},
        **dict.fromkeys("\u115f\u1160", ""),  # fillers of Hangul: letters that show nothing
    }
)


def account_of(name: str) -> str:
    """Return the key that a user's failures are counted by: the letters and digits of the name, folded.

    Directories and databases take many names for one: in either case, with blanks, accents and dots and without, in
    wide or invisible letters, with letters that look like others. What may be the same user counts as the same, or
    each way to write a name would have guesses of its own. That two users may share a key does little harm, since
    their clients are told apart by address.
    """
    name = _A_LABEL.sub(_u_label, name)
    folded = _fold(_fold(name))  # what the first round comes to may have compatibility forms of its own
    key = folded or normalize("NFKC", name).casefold()
    return key if len(key) <= _MAX_KEY else sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _u_label(match: re.Match[str]) -> str:
    """What an A-label stands for (RFC 5891), if it is one."""
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
        return str(decimal(char))  # databases take the digits of all scripts for the same
    return char if kind[0] in "LN" else ""
