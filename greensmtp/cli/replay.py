"""``greensmtp replay``: replay SMTP dialogues against any server."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from greensmtp.testing.dialogue import Dialogue
    from greensmtp.testing.dialogue_player import DialogueResult

#: Exit statuses: no dialogue failed; at least one did. (2: a file is malformed, or the server cannot be reached.)
PASSED, FAILED = 0, 1

#: verdict -> how the text format shows it
_WORDS = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a"}


class Unusable(click.ClickException):
    """The dialogues cannot be replayed: a file is malformed, or the server cannot be reached."""

    exit_code = 2


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--server",
    metavar="URL",
    default="127.0.0.1:1025",
    show_default=True,
    help="Server: host[:port], smtp://, smtps://, lmtp://, unix:/path or lmtp+unix:/path.",
)
@click.option("--lmtp", is_flag=True, help="The server speaks LMTP, also where the URL does not say so.")
@click.option(
    "--replace",
    "replacements",
    metavar="OLD=NEW",
    multiple=True,
    help="Send NEW for OLD, for instance a recipient that the server accepts: bob@example.com=you@your.example. "
    "May be given several times.",
)
@click.option(
    "--configured",
    multiple=True,
    type=click.Choice(["server", "refuse", "users"]),
    help="The server is configured as the headers of dialogues ask: its options, the recipients that it refuses, or "
    "its users. Without it, such dialogues do not apply. May be given several times.",
)
@click.option("--topic", "topics", multiple=True, help="Replay only this topic. May be given several times.")
@click.option("--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds per reply.")
@click.option(
    "--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Report format."
)
@click.option("-v", "--verbose", is_flag=True, help="Show dialogues that passed, and the whole of those that failed.")
def replay(
    files: tuple[Path, ...],
    server: str,
    *,
    lmtp: bool,
    replacements: tuple[str, ...],
    configured: tuple[str, ...],
    topics: tuple[str, ...],
    timeout: float,
    output: str,
    verbose: bool,
) -> None:
    """Replay SMTP dialogues against a server.

    Reports which of them the server passes.

    FILES are dialogues, or folders of them (*.smtp). A dialogue is plain text: what the client sends, and which replies
    are allowed. It sends mail to bob@example.com from ann@example.org, so use a server whose mail goes nowhere.

    A dialogue does not apply (n/a) if it needs an extension that the server does not offer.

    Exit status 0: none failed. Exit status 1: at least one failed. Exit status 2: a file is malformed, or the server
    cannot be reached.

    \b
    Try it:
      greensmtp serve --listen 127.0.0.1:1025 --max-size 1000000
      greensmtp replay tests/corpus --server 127.0.0.1:1025
    \b
    A dialogue of your own, noop.smtp:
      name: NOOP ignores an argument
      rfc: 5321 4.1.1.9
      (an empty line)
      S: 220
      C: NOOP are you there?
      S: 250|501
      C: QUIT
      S: 221
      S: END
    """
    # Not at the top: the other commands need not import it.
    from greensmtp.testing.dialogue_replay import ServerUnderTest

    dialogues = [each for each in _load(files) if not topics or each.topic in topics]
    if not dialogues:
        raise Unusable(
            "there is no dialogue in these files" + (f" with the topic {', '.join(topics)}" if topics else "")
        )
    try:
        tested = ServerUnderTest.at(
            server,
            lmtp=lmtp,
            timeout=timeout,
            replace=dict(map(_read_replacement, replacements)),
            configured=configured,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--server'") from error
    results: list[DialogueResult] = []
    for dialogue in dialogues:
        try:
            result = tested.replay(dialogue)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Unusable(f"cannot replay against {server}: {reason}") from error
        results.append(result)
        if output == "text":
            for line in _describe(result, verbose=verbose):
                click.echo(line)
    if output == "json":
        click.echo(json.dumps(_report(server, results), indent=2, ensure_ascii=False))
    else:
        counted = Counter(result.verdict for result in results)
        tried = "1 dialogue" if len(results) == 1 else f"{len(results)} dialogues"
        click.echo(
            f"{tried}: {counted['pass']} passed, {counted['fail']} failed, {counted['not applicable']} not applicable"
        )
    sys.exit(FAILED if any(result.failed for result in results) else PASSED)


def _load(files: Iterable[Path]) -> Iterator[Dialogue]:
    from greensmtp.testing.dialogue import Dialogue, DialogueSyntaxError

    for file in files:
        for path in sorted(file.glob("*.smtp")) if file.is_dir() else [file]:
            try:
                yield Dialogue.load(path)
            except DialogueSyntaxError as error:
                raise Unusable(str(error)) from error
            except OSError as error:
                raise Unusable(f"cannot read {click.format_filename(path)}: {error.strerror}") from error


def _read_replacement(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise click.BadParameter(f"expected OLD=NEW, not {text!r}", param_hint="'--replace'")
    return old, new


def _describe(result: DialogueResult, *, verbose: bool) -> Iterator[str]:
    dialogue = result.dialogue
    if result.verdict == "pass" and not verbose:
        return
    where = f"{dialogue.path}:{result.line}" if result.line else dialogue.path
    reason = f" ({result.got})" if result.verdict == "not applicable" else ""
    yield f"{_WORDS[result.verdict]:4}  {where}  {dialogue.name}{reason}"
    if result.failed:
        if verbose:
            yield from (f"        {line}" for line in result.transcript)
        yield f"      expected  {result.expected}"
        yield f"      got       {result.got}"


def _report(server: str, results: Iterable[DialogueResult]) -> dict[str, Any]:
    return {
        "server": server,
        "dialogues": [
            {
                "file": result.dialogue.path,
                "name": result.dialogue.name,
                "topic": result.dialogue.topic,
                "rfc": result.dialogue.rfc,
                "verdict": result.verdict,
                "line": result.line,
                "expected": result.expected,
                "got": result.got,
            }
            for result in results
        ],
    }
