"""Enhanced status codes (RFC 2034, RFC 3463, and the registry of RFC 5248)."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: ``class.subject.detail``; the class is the reply code's first digit.
CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
#: The same at the beginning of a reply's text.
LEADING = re.compile(rf"({CODE.pattern})(?: +|$)")

#: reply code -> the enhanced code where the text has none
DEFAULTS: Mapping[int, str] = {
    211: "2.0.0",
    214: "2.0.0",
    220: "2.0.0",
    221: "2.0.0",
    250: "2.0.0",
    251: "2.1.5",
    252: "2.5.2",
    421: "4.3.2",
    450: "4.2.0",
    451: "4.3.0",
    452: "4.3.1",
    454: "4.7.0",
    455: "4.5.4",
    500: "5.5.2",
    501: "5.5.4",
    502: "5.5.1",
    503: "5.5.1",
    504: "5.5.4",
    521: "5.3.2",
    523: "5.3.4",
    530: "5.7.0",
    534: "5.7.9",
    535: "5.7.8",
    538: "5.7.11",
    550: "5.0.0",
    551: "5.1.6",
    552: "5.3.4",
    553: "5.1.3",
    554: "5.0.0",
    555: "5.5.4",
    556: "5.1.10",
}


def default_for(code: int) -> str | None:
    """Return the usual enhanced code of a reply code; None for 3xx, which have none (RFC 2034 section 4)."""
    family = code // 100
    if family not in (2, 4, 5):
        return None
    return DEFAULTS.get(code) or f"{family}.0.0"
