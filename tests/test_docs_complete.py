"""docs/ leaves nothing out: every public name, every option of a middleware, of the client and of the command line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import greensmtp
import greensmtp.testing
from greensmtp import Ack, Address, MessageStream, Pool, Reply, SendResult, Session, SMTPServer, Timeouts, connect
from greensmtp import middleware as catalogue
from greensmtp.cli import cli
from greensmtp.server.limits import Limits
from greensmtp.testing import Attachment, SinkMessage, SMTPSink

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}

#: middleware -> the page that has its options
PAGE_OF = {
    "AccessList": "limits.md",
    "Auth": "auth.md",
    "Chaos": "limits.md",
    "ConnectionLimit": "limits.md",
    "EarlyTalker": "limits.md",
    "Logging": "observability.md",
    "Metrics": "observability.md",
    "RateLimit": "limits.md",
    "Tarpit": "limits.md",
}


def missing(words: Any, text: str) -> list[str]:
    """Those that are not in the text."""
    return [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)]


def arguments(function: Any) -> list[str]:
    return [name for name, its in inspect.signature(function).parameters.items() if its.kind != its.VAR_KEYWORD]


def test_every_public_name_is_in_docs() -> None:
    text = PAGES["names.md"] + PAGES["client.md"]
    assert missing(greensmtp.__all__, text) == []
    assert missing(greensmtp.testing.__all__, text) == []


@pytest.mark.parametrize("given", [Session, Ack, Address, MessageStream, Reply, SendResult])
def test_what_handlers_are_given_is_described(given: Any) -> None:
    # What only the framework uses, or every binary file has.
    internal = {
        "close closed complete drain failure end fail fileno flush isatty open opened readable readinto1 readlines",
        "seek seekable tell truncate writable writelines encode ends_connection wire parse",
    }
    own = {
        name
        for base in given.__mro__
        if base.__module__.startswith("greensmtp")
        for name in (*vars(base), *getattr(base, "__annotations__", {}))
        if not name.startswith("_")
    }
    assert missing(sorted(own - set(" ".join(internal).split())), PAGES["names.md"] + PAGES["client.md"]) == []


@pytest.mark.parametrize("name", catalogue.__all__)
def test_every_option_of_a_middleware_is_on_its_page(name: str) -> None:
    assert missing(arguments(getattr(catalogue, name)), PAGES[PAGE_OF[name]]) == []


def test_everything_about_the_sink_is_described() -> None:
    def own(given: type) -> list[str]:
        return [name for name in (*vars(given), *given.__annotations__) if not name.startswith("_")]

    internal = {"start", "stop"}
    names = [*own(SMTPSink), *own(SinkMessage), *own(Attachment), *arguments(SMTPSink)]
    assert missing(set(names) - internal - {"host", "hostname", "options"}, PAGES["testing.md"]) == []


def test_every_option_of_server_and_client_is_on_their_pages() -> None:
    assert missing([*arguments(SMTPServer), *arguments(Limits)], PAGES["server.md"]) == []
    assert missing([*arguments(connect), *arguments(Pool), *arguments(Timeouts)], PAGES["client.md"]) == []


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("serve", "configuration.md"),
        ("check", "configuration.md"),
        ("send", "client.md"),
        ("plugins", "plugins.md"),
    ],
)
def test_every_option_of_the_command_line_is_described(command: str, page: str) -> None:
    options = [
        option
        for its in cli.commands[command].params
        for option in (*its.opts, *its.secondary_opts)
        if option[0] == "-"
    ]
    assert missing([option for option in options if option != "-c"], PAGES[page]) == []


def test_every_command_is_described() -> None:
    assert missing([f"greensmtp {name}" for name in cli.commands], "".join(PAGES.values())) == []


def test_links_lead_somewhere() -> None:
    """To files that are there, and to headings that are there. (Charts are drawn by ``make bench``.)"""

    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for name, text in [*PAGES.items(), ("../README.md", (ROOT / "README.md").read_text("utf-8"))]:
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)]+)\)", prose):
            if link.startswith("https://") or link.endswith(".svg"):
                continue
            target, _, anchor = link.partition("#")
            path = ((ROOT / "docs" / name).parent / target).resolve() if target else (ROOT / "docs" / name).resolve()
            assert path.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{name}: {link}"
