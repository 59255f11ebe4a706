"""Generate the tables of docs/reference from the code: run by conf.py at each build, and by the tests.

Each function returns one file's Markdown. Nothing here imports Sphinx, so the tests need no documentation tools.
"""

from __future__ import annotations

import ast
import re
import tomllib
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from greensmtp import SMTPClient, signals
from greensmtp.cli import cli
from greensmtp.config import model
from greensmtp.middleware.metrics.families import MetricFamilies
from greensmtp.protocol import canned, esmtp
from greensmtp.protocol.command import PARSERS
from greensmtp.protocol.lenient_path import LENIENCIES
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl import client as sasl_client
from greensmtp.protocol.sasl import server as sasl_server
from greensmtp.server.extensions import SWITCHABLE
from greensmtp.server.limits import Limits
from greensmtp.session.ack_rules import RULES

ROOT = Path(__file__).resolve().parent.parent


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Features

#: RFC, EHLO keyword, what it specifies. Keywords of SWITCHABLE that are missing here fail a test.
EXTENSIONS = (
    ("1870", "SIZE", "Message size declaration"),
    ("2034", "ENHANCEDSTATUSCODES", "Enhanced status codes on every reply line"),
    ("2920", "PIPELINING", "Command pipelining"),
    ("3030", "CHUNKING", "Bodies in counted chunks (BDAT)"),
    ("3030", "BINARYMIME", "Binary bodies"),
    ("3207", "STARTTLS", "TLS on a connection that began in the clear"),
    ("6152", "8BITMIME", "8-bit bodies"),
    ("6531", "SMTPUTF8", "Internationalized addresses and headers"),
    ("9422", "LIMITS", "Limits of a session and a transaction"),
    ("1985", "ETRN", "Remote queue start"),
    ("2852", "DELIVERBY", "Delivery by a deadline"),
    ("3461", "DSN", "Delivery status notifications"),
    ("4865", "FUTURERELEASE", "Messages held until a given time"),
    ("6710", "MT-PRIORITY", "Message priorities"),
    ("7293", "RRVS", "Mailboxes whose owner has not changed since a given time"),
    ("8689", "REQUIRETLS", "Required TLS on each hop"),
)

#: RFCs of the SASL mechanisms.
MECHANISMS = {
    "EXTERNAL": "4422",
    "SCRAM-SHA-256-PLUS": "7677, 5929",
    "SCRAM-SHA-256": "7677",
    "CRAM-MD5": "2195",
    "OAUTHBEARER": "7628",
    "XOAUTH2": "",
    "PLAIN": "4616",
    "LOGIN": "",
}

#: Features that are in no table of the code: RFC, feature, server, client, LMTP.
OTHERS = (
    ("2033", "LMTP: one reply for each recipient", "yes", "yes", "yes"),
    ("4954", "AUTH", "with `Auth`", "yes", "with `Auth`"),
    ("4954 section 5", "AUTH= parameter of MAIL", "yes", "yes", "yes"),
    ("5890 to 5893", "Internationalized domain names (IDNA 2008)", "yes", "yes", "yes"),
    ("7435", "Opportunistic TLS", "", '`starttls="opportunistic"`', ""),
    ("8305", "Happy Eyeballs: several addresses tried in turn", "", "yes", ""),
    ("8314", "Implicit TLS", "yes", "yes", "yes"),
    ("", "Unix sockets", "yes", "yes", "yes"),
    ("", "PROXY protocol, versions 1 and 2", "with `proxy_from`", "with `proxy`", "with `proxy_from`"),
    ("", "`XCLIENT`", "with `xclient_from`", "yes", "with `xclient_from`"),
    ("", "`XFORWARD`", "with `xforward_from`", "yes", "with `xforward_from`"),
)


#: RFC, feature, server, client, LMTP.
FeatureRow = tuple[str, str, str, str, str]


def features() -> str:
    """Return the matrix: RFC x server x client x LMTP, in sections."""
    sections = {
        "Commands": _commands(),
        "Extensions": _extensions(),
        "SASL mechanisms": _mechanisms(),
        "Transport and other features": OTHERS,
    }
    return "\n".join(f"## {title}\n\n{_feature_table(rows)}" for title, rows in sections.items())


def _feature_table(rows: Iterable[FeatureRow]) -> str:
    def first_rfc(row: FeatureRow) -> int:
        return int(re.findall(r"\d+", row[0])[0]) if row[0] else 10**6

    return table(
        ("RFC", "Feature", "SMTP server", "Client", "LMTP server"),
        (
            (re.sub(r"\b(\d{4})\b", r"[\1](https://www.rfc-editor.org/rfc/rfc\1)", rfc), *cells)
            for rfc, *cells in sorted(rows, key=first_rfc)
        ),
    )


def _yes(has: bool) -> str:
    return "yes" if has else "no"


def _commands() -> Iterable[FeatureRow]:
    for verb in PARSERS:
        method = {"MAIL": "from_", "RCPT": "to", "RSET": "reset"}.get(verb, verb.lower())
        rfc = {"LHLO": "2033", "BDAT": "3030", "STARTTLS": "3207", "ETRN": "1985"}.get(verb, "5321")
        smtp, lmtp = _yes(verb != "LHLO"), _yes(verb not in ("HELO", "EHLO"))
        if verb.lower() in RULES:
            smtp = lmtp = f"signal `{verb.lower()}`"
        client = "yes" if hasattr(SMTPClient, method) else "by `command`"
        yield rfc, f"`{verb}`", smtp, client, lmtp


def _extensions() -> Iterable[FeatureRow]:
    for rfc, keyword, text in EXTENSIONS:
        extension = SWITCHABLE[keyword]
        client = _yes(keyword in esmtp.USED or keyword == "ENHANCEDSTATUSCODES")
        if client == "no" and extension.mail | extension.rcpt:
            client = "passes parameters on"
        server = "with a certificate" if keyword == "STARTTLS" else "yes"
        if extension in esmtp.OPTIONAL:
            server = "enabled by `extensions`"
        yield rfc, f"{text} (`{keyword}`)", server, client, server


def _mechanisms() -> Iterable[FeatureRow]:
    for name, rfc in MECHANISMS.items():
        offered = "with `Auth`" if name in sasl_server.MECHANISMS else "no"
        yield rfc, name, offered, _yes(name in sasl_client.MECHANISMS), offered


def leniencies() -> str:
    """Return the forms that a server with ``lenient_addresses`` accepts."""
    return table(("Accepted", "Sent by"), ((each.name, each.devices) for each in LENIENCIES))


# Replies and signals


def replies() -> str:
    """Return every reply of the protocol itself."""
    names = {id(value): name for name, value in vars(canned).items() if isinstance(value, Reply)}
    found = [value for value in vars(canned).values() if isinstance(value, Reply)]
    found.sort(key=lambda reply: (reply.code, reply.enhanced or ""))
    return table(
        ("Code", "Enhanced", "Text", "Name"),
        (
            (reply.code, reply.enhanced or "", _literal(" ".join(reply.lines)), f"`{names[id(reply)]}`")
            for reply in found
        ),
    )


def _literal(text: str) -> str:
    return f"`{text}`"


def signal_table() -> str:
    """Return each signal: the arguments of handlers, and the default replies of its ack."""
    rows = []
    for name, fields in signals.FIELDS.items():
        takes = ", ".join(("session", *fields))
        rules = RULES.get(name)
        if rules is None:
            rows.append((f"`{name}`", f"`({takes})`", "no ack", "", ""))
            continue
        unheard = "default action" if rules.default is None else f"`{rules.default.code}`"
        accepted = "lets the command pass" if rules.optional else f"`{rules.accepted.code}`"
        rows.append((f"`{name}`", f"`({takes})`", accepted, f"`{rules.rejected}`", unheard))
    return table(("Signal", "Handler", "`ack.accept()`", "`ack.reject()`", "No handler"), rows)


# Configuration and command line


def configuration() -> str:
    """Return every key of the configuration file."""
    parts: list[str] = []
    tables: Mapping[str, type[BaseModel]] = {
        "": model.Config,
        "[[listeners]]": model.ListenerSection,
        "[[middleware]]": model.MiddlewareSection,
        "[[plugins]]": model.PluginSection,
        "[extensions]": model.ExtensionsSection,
        "[delivery]": model.DeliverySection,
        "[logging]": model.LoggingSection,
        "[service]": model.ServiceSection,
        "[http]": model.HTTPSection,
        "[tls]": model.TLSSection,
        "[[tls.certificates]]": model.CertificateSection,
    }
    for title, section in tables.items():
        rows = []
        for name, field in section.model_fields.items():
            kind = _kind(field.annotation)
            default = "required" if field.is_required() else _default(field.default, kind)
            rows.append((f"`{name}`", kind, default))
        parts.append(f"**`{title or 'top level'}`**\n\n{table(('Key', 'Type', 'Default'), rows)}\n")
    return "".join(parts)


def limits() -> str:
    """Return every key of ``[limits]``, with the comment above its field."""
    comments = _comments(ROOT / "greensmtp" / "server" / "limits.py", "Limits")
    hints = typing.get_type_hints(Limits)
    made = Limits()
    return table(
        ("Keyword", "Type", "Default", "Meaning"),
        ((f"`{name}`", _kind(kind), _default(getattr(made, name), ""), comments[name]) for name, kind in hints.items()),
    )


def _comments(path: Path, class_name: str) -> Mapping[str, str]:
    """Return the ``#:`` comments above the fields of a class, as Markdown."""
    source = path.read_text("utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name).body
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            number = node.lineno - 2
            while lines[number].strip().startswith("#:"):
                above.insert(0, lines[number].strip()[2:].strip())
                number -= 1
            found[node.target.id] = " ".join(above).replace("``", "`")
    return found


def _kind(annotation: Any) -> str:
    if annotation is type(None):
        return "`false`"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if arguments:
        return " or ".join(dict.fromkeys(_kind(each) for each in arguments))
    return {"str": "text", "int": "integer", "float": "number", "bool": "boolean"}.get(annotation.__name__, "value")


def _default(value: Any, kind: str) -> str:
    if "table" in kind or repr(value) == "PydanticUndefined":
        return "see `greensmtp check`"
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`".replace("'", '"')


def command_line() -> str:
    """Return every command of ``greensmtp`` with its options."""
    parts = []
    context = click.Context(cli, info_name="greensmtp")
    for name, command in cli.commands.items():
        rows = [
            (", ".join(f"`{option}`" for option in (*its.opts, *its.secondary_opts)), _help(its, context))
            for its in command.params
            if isinstance(its, click.Option)
        ]
        summary = command.get_short_help_str(200)
        parts.append(f"### `greensmtp {name}`\n\n{summary}\n\n{table(('Option', 'Meaning'), rows)}\n")
    return "".join(parts)


def _help(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    text = record[1] if record else option.help or ""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")


# Conformance

#: What a row of docs/conformance may say.
SIDES = ("server", "client", "both")
LEVELS = ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "text")
STATUSES = ("does", "partly", "refuses", "application", "does not")
GAPS = ("partly", "does not")


#: The pages with such rows.
CONFORMANCE = sorted((ROOT / "docs" / "conformance").glob("rfc*.md"))


class Requirement(typing.NamedTuple):
    """A row of a page of docs/conformance."""

    #: The page and the line.
    place: str
    section: str
    side: str
    level: str
    requirement: str
    status: str
    greensmtp: str
    #: Their IDs for pytest, or paths of dialogues.
    tests: tuple[str, ...]


def requirements(page: Path) -> Iterator[Requirement]:
    """Return the rows of one page.

    :raises ValueError: a row does not have seven cells.
    """
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if not line.startswith("|") or re.match(r"\| *(Section|:?-)", line):
            continue
        place = f"{page.name}:{number}"
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 7:
            raise ValueError(f"{place}: expected 7 cells, got {len(cells)}")
        yield Requirement(place, *cells[:6], tests=tuple(re.findall("`([^`]+)`", cells[6])))


def conformance() -> str:
    """Return for each RFC how many requirements have which status."""
    rows = []
    for page in CONFORMANCE:
        counts = Counter(row.status for row in requirements(page))
        title = page.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        rows.append((f"[{title}]({page.name})", sum(counts.values()), *(counts[status] or "" for status in STATUSES)))
    total = [sum(row[column] or 0 for row in rows) for column in range(1, len(STATUSES) + 2)]
    return table(("RFC", "Rows", *(f"`{status}`" for status in STATUSES)), (*rows, ("**all**", *total)))


def conformance_gaps() -> str:
    """Return the requirements that are not met, or only partly."""
    return table(
        ("RFC", "Side", "Level", "Requirement", "greensmtp"),
        (
            (f"[{page.stem[3:]}]({page.name}) {row.section}", row.side, row.level, row.requirement, row.greensmtp)
            for page in CONFORMANCE
            for row in requirements(page)
            if row.status in GAPS
        ),
    )


# Metrics and extras


def metrics() -> str:
    """Return every metric."""
    rows = []
    for metric in MetricFamilies("greensmtp").all:
        described = next(iter(metric.describe()))
        suffix = "_total" if described.type == "counter" else ""
        labels = "{" + ",".join(metric._labelnames) + "}" if metric._labelnames else ""
        rows.append((f"`{described.name}{suffix}{labels}`", described.type, described.documentation))
    return table(("Name", "Type", "Meaning"), rows)


#: What each extra is for. One that is missing here fails a test.
EXTRAS = {
    "cli": "the command `greensmtp` and configuration files",
    "scram": "SCRAM-SHA-256, in `Auth` and in the client",
    "passwords": "bcrypt and argon2 hashes in htpasswd files",
    "celery": "`CeleryTask`",
    "s3": "a `store` for large messages in S3, of `CeleryTask`, `RedisStream` and `Webhook`",
    "dns": "`Spool` and `MX`: mail to the hosts of each domain",
    "ratelimit": "`RateLimit`",
    "redis": "`RateLimit` with a Redis that several machines share; `RedisStream`",
    "metrics": "`Metrics`",
    "workers": "several processes: `serve --workers`, and a worker class for gunicorn",
    "tracing": "`Tracing`: OpenTelemetry spans",
    "all": "all of these but `celery` and `s3`",
}


def extras() -> str:
    """Return each extra and what it installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    rows = [
        ("(none)", "server, client, `greensmtp.testing`", ", ".join(f"`{each}`" for each in project["dependencies"]))
    ]
    for name, needs in project["optional-dependencies"].items():
        rows.append((f"`greensmtp[{name}]`", EXTRAS[name], ", ".join(f"`{each}`" for each in needs)))
    return table(("Install", "For", "Brings"), rows)


# Modules

#: The rooms, from the top of the import rules to the bottom, and what each is for.
ROOMS = {
    "cli": "the command line",
    "config": "configuration files",
    "plugins": "plugins by name",
    "testing": "tools for tests",
    "middleware": "the catalogue",
    "delivery": "where accepted mail goes",
    "server": "the server",
    "client": "the client",
    "chain": "the middleware machinery",
    "session": "what handlers are given",
    "protocol": "SMTP without a socket",
}


def modules() -> str:
    """Return every public module of each room, with the first line of its docstring."""
    parts = []
    for room, purpose in ROOMS.items():
        folder = ROOT / ("middleware" if room == "middleware" else f"greensmtp/{room}")
        rows = []
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if not any(part.startswith("_") for part in path.relative_to(folder).parts):
                docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
                rows.append((f"`{name}`", re.sub(r"``", "`", docstring.splitlines()[0])))
        parts.append(f"## {room}: {purpose}\n\n{table(('Module', 'What it is'), rows)}")
    return "\n".join(parts)


FILES: Mapping[str, Callable[[], str]] = {
    "modules.md": modules,
    "features.md": features,
    "leniencies.md": leniencies,
    "replies.md": replies,
    "signals.md": signal_table,
    "configuration.md": configuration,
    "limits.md": limits,
    "cli.md": command_line,
    "metrics.md": metrics,
    "extras.md": extras,
    "conformance.md": conformance,
    "conformance-gaps.md": conformance_gaps,
}


def write_all(folder: Path) -> None:
    """Write every file; one that has not changed is left alone, so that Sphinx does not build its page again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        path, text = folder / name, make()
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
