"""docs/ leaves nothing out: every public name, every option of a middleware, of the client and of the command line."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import greensmtp
import greensmtp.errors
import greensmtp.testing
from greensmtp import (
    Ack,
    Address,
    MessageStream,
    Pool,
    Reply,
    SendResult,
    Session,
    SMTPServer,
    Timeouts,
    connect,
    signals,
)
from greensmtp import middleware as catalogue
from greensmtp.cli import cli
from greensmtp.config.model import known_keys
from greensmtp.protocol import canned
from greensmtp.protocol.command import PARSERS
from greensmtp.protocol.lenient_path import LENIENCIES
from greensmtp.protocol.sasl import client, server
from greensmtp.server.extensions import SWITCHABLE
from greensmtp.server.limits import Limits
from greensmtp.testing import Attachment, SinkMessage, SMTPSink

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text("utf-8")
    for path in DOCS.rglob("*.md")
    if not {"_build", "generated"} & {*path.parts}
}


def missing(words: Any, text: str) -> list[str]:
    """Return the words that are not in the text."""
    return [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)]


def arguments(function: Any) -> list[str]:
    return [name for name, its in inspect.signature(function).parameters.items() if its.kind != its.VAR_KEYWORD]


def test_every_public_name_is_in_docs() -> None:
    text = PAGES["reference/names.md"] + PAGES["reference/client.md"]
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
    assert (
        missing(
            sorted(own - set(" ".join(internal).split())), PAGES["reference/names.md"] + PAGES["reference/client.md"]
        )
        == []
    )


@pytest.mark.parametrize("name", catalogue.__all__)
def test_every_option_of_a_middleware_is_on_its_page(name: str) -> None:
    assert (
        missing(
            arguments(getattr(catalogue, name)),
            PAGES[f"reference/middleware/{re.sub('(?<=[a-z])(?=[A-Z])', '-', name).lower()}.md"],
        )
        == []
    )


def test_everything_about_the_sink_is_described() -> None:
    def own(given: type) -> list[str]:
        return [name for name in (*vars(given), *given.__annotations__) if not name.startswith("_")]

    internal = {"start", "stop"}
    names = [*own(SMTPSink), *own(SinkMessage), *own(Attachment), *arguments(SMTPSink)]
    assert missing(set(names) - internal - {"host", "hostname", "options"}, PAGES["howto/testing.md"]) == []


def test_every_option_of_server_and_client_is_on_their_pages() -> None:
    assert (
        missing([*arguments(SMTPServer), *arguments(Limits)], PAGES["reference/server.md"] + PAGES["topics/limits.md"])
        == []
    )
    assert missing([*arguments(connect), *arguments(Pool), *arguments(Timeouts)], PAGES["reference/client.md"]) == []


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("serve", "reference/configuration.md"),
        ("check", "reference/configuration.md"),
        ("send", "reference/client.md"),
        ("plugins", "howto/plugins.md"),
        ("replay", "conformance/dialogues.md"),
        ("top", "howto/inside.md"),
        ("trace", "howto/inside.md"),
        ("spool", "howto/spool.md"),
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
    """Links to files and to headings. (Charts are drawn by ``make bench``.)"""

    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        targets = re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}.union(targets)

    for name, text in [*PAGES.items(), ("../README.md", (ROOT / "README.md").read_text("utf-8"))]:
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)]+)\)", prose):
            if link.startswith("https://") or link.endswith(".svg"):
                continue
            target, _, anchor = link.partition("#")
            path = ((DOCS / name).parent / target).resolve() if target else (DOCS / name).resolve()
            assert path.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{name}: {link}"


def test_every_page_is_in_the_table_of_contents() -> None:
    for name in PAGES.keys() - {"index.md"}:
        folder, _, stem = name.removesuffix(".md").rpartition("/")
        index = f"{folder}/index.md" if stem != "index" else f"{folder.rpartition('/')[0]}/index.md".lstrip("/")
        entry = stem if stem != "index" else f"{folder.rpartition('/')[2]}/index"
        assert re.search(rf"^{re.escape(entry)}$", PAGES[index], re.MULTILINE), f"{index} does not list {entry}"


def test_generated_tables_are_complete() -> None:
    """The generator's own texts cover all rows of the code's tables."""
    path = DOCS / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", path)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    made = {name: make() for name, make in generate.FILES.items()}
    assert missing(SWITCHABLE, made["features.md"]) == []
    assert missing([leniency.name for leniency in LENIENCIES], made["leniencies.md"]) == []
    assert missing([*server.MECHANISMS, *client.MECHANISMS, *PARSERS], made["features.md"]) == []
    assert missing([name for name, its in vars(canned).items() if isinstance(its, Reply)], made["replies.md"]) == []
    assert missing(signals.FIELDS, made["signals.md"]) == []
    assert (
        missing([key for keys in known_keys().values() for key in keys], made["configuration.md"] + made["limits.md"])
        == []
    )
    assert missing(arguments(Limits), made["limits.md"]) == []
    assert "|  |\n" not in made["limits.md"]  # each has its comment


def test_each_param_field_names_one_parameter() -> None:
    """Sphinx takes a second name for the first one's type: ``:param code, message:``."""
    wrong = [
        f"{path.name}: {field}"
        for folder in ("greensmtp", "middleware")
        for path in (ROOT / folder).rglob("*.py")
        for field in re.findall(r":param [^:`\n]*[ ,][^:`\n]*:", path.read_text("utf-8"))
    ]
    assert wrong == []


def test_contributing_names_every_module_in_its_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rooms = re.split(r"^  (\w+)/  ", text, flags=re.MULTILINE)
    listed = dict(zip(rooms[1::2], rooms[2::2], strict=True))
    for room, names in listed.items():
        modules = (ROOT / "greensmtp" / room).rglob("*.py")
        assert missing([path.stem for path in modules if not path.stem.startswith("_")], names) == [], f"add to {room}/"


def test_every_public_name_has_its_docstring_in_the_api() -> None:
    text = "".join(path.read_text("utf-8") for path in (DOCS / "reference" / "api").glob("*.rst"))
    left = [
        name
        for name in greensmtp.__all__
        if f" greensmtp.{name}\n" not in text
        and name not in vars(greensmtp.errors)
        and name not in ("__version__", "signals", "client_signals")
    ]
    assert left == []
    assert ".. automodule:: greensmtp.errors\n" in text
    assert ".. automodule:: greensmtp.testing\n" in text
    assert missing([f"greensmtp.middleware.{name}" for name in catalogue.__all__], text) == []
