"""Scripts of servers, for several test files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.client.conftest import Script


def take(*offers: str) -> tuple[Callable[[Script], None], list[bytes], list[str]]:
    """Return a script that accepts messages by DATA and offers these extensions, the messages, and the MAIL lines."""
    bodies: list[bytes] = []
    mails: list[str] = []

    def script(script: Script) -> None:
        script.greet(*offers)
        while line := script.hear():
            if line.startswith("MAIL"):
                mails.append(line)
            if line == "DATA":
                script.say("354 go")
                bodies.append(script.body())
            script.say("250 Ok")

    return script, bodies, mails


def session(*, after: int, goodbye: str | None = None) -> Callable[[Script], None]:
    """Accept a number of messages, then send the reply, if one is given, and close the connection."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        for _ in range(after):
            assert transaction(script)
        if goodbye:
            script.say(goodbye)

    return script


def transaction(script: Script) -> bool:
    while line := script.hear():
        if line == "DATA":
            script.say("354 go")
            script.body()
            script.say("250 Ok")
            return True
        script.say("250 Ok")
    return False


def for_ever(script: Script) -> None:
    script.greet("PIPELINING")
    while transaction(script):
        pass
