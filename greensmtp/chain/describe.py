"""A server's stack as text: ``print(server.stack)``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from greensmtp.chain.chain import Middleware, wanted_verbs
from greensmtp.chain.compose import Composed, When
from greensmtp.chain.validate import describe


class Stack(tuple[Middleware, ...]):
    """The middleware of a server, outermost first. As text: a numbered line for each, with the verbs it sees."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = list(_rows(self))
        if not rows:
            return "no middleware"
        width = max(len(left) for left, _ in rows)
        return "\n".join(f"{left:{width}}  {right}".rstrip() for left, right in rows)


def _rows(members: Iterable[Middleware], prefix: str = "", first: int = 1) -> Iterator[tuple[str, str]]:
    indent = "   " * prefix.count(".")
    for number, member in enumerate(members, first):
        place = f"{prefix}{number}."
        yield f"{indent}{place} {_title(member)}", _verbs(member)
        if isinstance(member, Composed):
            yield from _rows(member.members, place)
        elif isinstance(member, When):
            yield from _rows((member.middleware,), place)
            if member.otherwise is not None:
                yield f"{indent}   otherwise", ""
                yield from _rows((member.otherwise,), place, 2)


def _title(member: Middleware) -> str:
    if isinstance(member, Composed):
        return member.name or "compose"
    if isinstance(member, When):
        return f"when {describe(member.predicate)}"
    return describe(member)


def _verbs(member: Middleware) -> str:
    verbs = wanted_verbs(member)
    return "every command" if verbs is None else ", ".join(sorted(verbs)) or "no command"
