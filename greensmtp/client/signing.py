"""Sign a message in the form in which it is sent: the hook for DKIM."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from greensmtp.client.message_content import Form
from greensmtp.thread_pool import in_thread_pool

#: Returns the header fields to put before a message, such as ``DKIM-Signature: ...``. It gets all of the message, with
#: CRLF at its line ends, before dot-stuffing.
Signer = Callable[[bytes], bytes]

#: One or more header fields, each with its CRLF, in printable ASCII.
_FIELDS = re.compile(rb"(?:[!-9;-~]++:(?:[ -~\t]++|\r\n(?=[ \t]))*+\r\n)++")


def check_signer(sign: Signer) -> Signer:
    """Return the signer.

    :raises TypeError: it is not callable.
    """
    if not callable(sign):
        raise TypeError(f"expected a function of the message's bytes as sign; got {sign!r}")
    return sign


def signed(form: Form, sign: Signer) -> Form:
    """Return this form of a message with the fields of the signer before it; each form is signed once.

    The signer runs in the thread pool, and has all of the message in memory: the signature stands before the body that
    it covers.

    :raises TypeError, ValueError: the signer does not return header fields.
    """
    if form.signed is None:
        content = form.content
        if form.rest is not None:
            content = b"".join((content, *form.rest.in_lines(content)))
        fields = in_thread_pool(sign, content)
        if not isinstance(fields, bytes):
            raise TypeError(f"expected header fields as bytes from sign; got {type(fields).__name__}")
        if not _FIELDS.fullmatch(fields):
            raise ValueError(f"expected header fields from sign, in ASCII, each with its CRLF; got {fields[:60]!r}")
        form.signed = replace(form, content=fields + form.content, size=form.size + len(fields), stuffed=None)
    return form.signed
