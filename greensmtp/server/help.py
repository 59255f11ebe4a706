"""The replies to HELP (RFC 5321 section 4.1.1.8): the list of verbs, and the syntax of one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from greensmtp.protocol.esmtp import SUBMITTER, Extension, allowed_parameters
from greensmtp.protocol.reply import Reply

#: verb -> its syntax, where it is more than the verb
SYNTAX: Mapping[str, str] = {
    "HELO": "HELO hostname",
    "EHLO": "EHLO hostname",
    "LHLO": "LHLO hostname",
    "MAIL": "MAIL FROM:<address> [parameters]",
    "RCPT": "RCPT TO:<address> [parameters]",
    "BDAT": "BDAT size [LAST]",
    "NOOP": "NOOP [text]",
    "VRFY": "VRFY user",
    "EXPN": "EXPN list",
    "HELP": "HELP [verb]",
    "ETRN": "ETRN domain, or ETRN @domain, or ETRN #queue",
    "AUTH": "AUTH mechanism [initial-response]",
}


def help_replies(verbs: Iterable[str], extensions: Iterable[Extension]) -> dict[str, Reply]:
    """Return verb -> the reply to ``HELP verb``; ``""`` -> that to HELP alone."""
    verbs = tuple(verbs)
    parameters = allowed_parameters((*extensions, SUBMITTER))
    replies = {"": Reply(214, f"2.0.0 {' '.join(verbs)}", "2.0.0 See RFC 5321")}
    for verb in verbs:
        lines = [SYNTAX.get(verb, verb)]
        if parameters.get(verb):
            lines.append(f"Parameters: {' '.join(sorted(parameters[verb]))}")
        replies[verb] = Reply(214, *lines)
    return replies
