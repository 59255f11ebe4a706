"""Replay the corpus against real servers, and print a table: ``python -m tests.field``.

``--write`` puts the table into docs/conformance/field.md. A server that cannot be had here is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import ROOT, Missing
from greensmtp.testing import Dialogue, DialogueResult, ServerUnderTest
from tests.field.servers import SERVERS, FieldServer, running

CORPUS = ROOT / "tests" / "corpus"
PAGE = ROOT / "docs" / "conformance" / "field.md"
BEGIN, END = "<!-- made by python -m tests.field -->\n", "<!-- until here -->\n"

#: Seconds that a server may take for one reply.
TIMEOUT = 15.0

Results = dict[str, list[DialogueResult]]


def replay(server: FieldServer, dialogues: Iterable[Dialogue]) -> tuple[str, list[DialogueResult]]:
    """Return the version of a server, and what became of each dialogue."""
    with running(server) as place:
        tested = {
            lmtp: ServerUnderTest.at(f"127.0.0.1:{port}", lmtp=lmtp, timeout=TIMEOUT, configured=server.configured)
            for lmtp, port in ((False, place.port), (True, place.lmtp_port))
            if port is not None
        }
        # A dialogue of the other protocol does not apply, and any server says so.
        either = next(iter(tested.values()))
        return place.version, [tested.get(dialogue.lmtp, either).replay(dialogue) for dialogue in dialogues]


def table(versions: dict[str, str], results: Results) -> Iterator[str]:
    """Yield the lines of a table: passed of those that apply, by topic and server."""
    names = list(results)
    yield f"| topic | {' | '.join(SERVERS[name].title for name in names)} |"
    yield f"|---|{'---|' * len(names)}"
    yield f"| version | {' | '.join(versions[name] for name in names)} |"
    topics = list(dict.fromkeys(result.dialogue.topic for result in results[names[0]]))
    for topic in sorted(topics):
        yield f"| {topic} | {' | '.join(_count(results[name], topic) for name in names)} |"
    yield f"| **all** | {' | '.join(f'**{_count(results[name])}**' for name in names)} |"


def _count(results: Iterable[DialogueResult], topic: str = "") -> str:
    verdicts = [each.verdict for each in results if topic in ("", each.dialogue.topic)]
    apply = len(verdicts) - verdicts.count("not applicable")
    return f"{verdicts.count('pass')} of {apply}" if apply else "-"


def differences(results: Results) -> Iterator[str]:
    """Yield the lines of a table: each dialogue that a server does not pass, and what it did instead."""
    yield "| dialogue | RFC | expected | instead |"
    yield "|---|---|---|---|"
    for row in zip(*results.values(), strict=True):
        failed = [(name, result) for name, result in zip(results, row, strict=True) if result.failed]
        if failed:
            dialogue = failed[0][1].dialogue
            words = (word for _, result in failed for word in _short(result.expected).split(" or "))
            expected = " or ".join(dict.fromkeys(words))
            instead = ", ".join(f"{SERVERS[name].title}: {_short(result.got)}" for name, result in failed)
            yield f"| `{Path(dialogue.path).stem}`: {dialogue.name} | {dialogue.rfc} | {expected} | {instead} |"


def _short(text: str) -> str:
    """Return the code of a reply, or the words for what came instead of one."""
    text = text.partition("]")[2].strip() if text.startswith("[") else text
    if not text.startswith("S: "):
        return text.partition(",")[0].partition(": ")[0].replace("|", " or ")
    return text.split(" ")[1].replace("|", " or ")


def main() -> int:
    """Replay, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", help="servers, separated by commas; default: all of them")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--verbose", action="store_true", help="show each dialogue that fails")
    given = parser.parse_args()
    dialogues = [Dialogue.load(path) for path in sorted(CORPUS.glob("*.smtp"))]
    versions: dict[str, str] = {}
    results: Results = {}
    for name in given.only.split(",") if given.only else SERVERS:
        try:
            versions[name], results[name] = replay(SERVERS[name], dialogues)
        except (Missing, OSError, RuntimeError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if given.verbose:
            print(*(f"{name}: {result}" for result in results[name] if result.failed), sep="\n")
    if not results:
        return 1
    lines = [*table(versions, results), "", *differences(results)]
    print("\n".join(lines))
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        made = f"As of {datetime.now(UTC):%Y-%m-%d}, {len(dialogues)} dialogues:\n\n" + "\n".join(lines)
        PAGE.write_text(f"{before}{BEGIN}\n{made}\n\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
