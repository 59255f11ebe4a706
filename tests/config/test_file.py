"""Configuration files: all problems are reported at once, with file, line, key and the nearest valid name."""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from greensmtp.config.conditions import all_of, read_condition
from greensmtp.config.defaults import DEFAULT_STACK
from greensmtp.config.load import MAX_BYTES, Loaded, Override, load
from greensmtp.config.model import known_keys
from greensmtp.config.problems import ConfigError
from greensmtp.server.limits import Limits

Write = Callable[[str], Path]

LISTENER = '[[listeners]]\nurl = "127.0.0.1:0"\n'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write ``greensmtp.toml`` in the current folder, which has nothing else but a module with a middleware."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "grade", raising=False)
    Path("grade.py").write_text("class Grade:\n    def __init__(self, mark: int = 0) -> None: ...\n")

    def write(text: str) -> Path:
        Path("greensmtp.toml").write_text(text, "utf-8")
        return Path("greensmtp.toml")

    return write


def mistakes(path: Path, *overrides: Override) -> list[str]:
    """Return the problems of a configuration file."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.lines


# One problem

WRONG: list[tuple[str, str]] = [
    # names
    ('\n\nhostnam = "x"', "3: hostnam: there is no such key; did you mean hostname?"),
    (
        "[limits]\nmax_mesage_size = 3",
        "2: limits.max_mesage_size: there is no such key; did you mean max_message_size?",
    ),
    ("[limit]", "1: limit: there is no such key; did you mean limits?"),
    ("[[listener]]", "1: listener: there is no such key; did you mean listeners?"),
    ("max_errors = 3", "1: max_errors: there is no such key; did you mean limits.max_errors?"),
    ("[logging]\nqqq = 1", "2: logging.qqq: there is no such key (there are: format, level, target)"),
    (LISTENER + "limits.max_err = 3", "3: listeners.limits.max_err: there is no such key; did you mean max_errors?"),
    (LISTENER + LISTENER + "ur = 3", "5: listeners.ur: there is no such key; did you mean url?"),
    ("[[plugins]]\nname = 'a'\noptionl = true", "3: plugins.optionl: there is no such key; did you mean optional?"),
    # types
    ("hostname = 3", "1: hostname: expected a string; got an integer"),
    ("hostname = true", "1: hostname: expected a value, or false to disable; got true"),
    ("limits = 3", "1: limits: expected a table; got an integer"),
    ("listeners = 3", "1: listeners: expected an array; got an integer"),
    ('listeners = ["127.0.0.1:25"]', "1: listeners: expected a table; got a string"),
    ("[listeners]\nurl = '127.0.0.1:25'", "1: listeners: expected an array; got a table"),
    ("middleware = 1979-05-27", "1: middleware: expected an array; got a date"),
    ("[limits]\nmax_errors = '3'", "2: limits.max_errors: expected an integer; got a string"),
    ("[limits]\nmax_errors = 3.5", "2: limits.max_errors: expected an integer; got a float"),
    ("[limits]\nmax_errors = 3.0", "2: limits.max_errors: expected an integer; got a float"),
    ("[limits]\nmax_errors = false", "2: limits.max_errors: expected an integer; got true or false"),
    ("[limits]\nack_timeout = true", "2: limits.ack_timeout: expected a number; got true or false"),
    ("[limits]\nack_timeout = nan", "2: limits.ack_timeout: takes a number of seconds above 0, not nan"),
    (
        "[[plugins]]\nname = 'a'\noptional = 'yes'",
        "3: plugins.optional: expected true or false; got a string",
    ),
    # values
    ("[limits]\nmax_errors = 0", "2: limits.max_errors: takes a whole number of at least 1, not 0"),
    (
        "[limits]\nmax_message_size = '32X'",
        "2: limits.max_message_size: expected a number of bytes, like 1000, 500k, 32M or 1G; got '32X'",
    ),
    ("[limits]\nbare_newlines = 'eat'", '2: limits.bare_newlines: expected "normalize", "reject" or "keep"'),
    ("[logging]\nformat = 'xml'", '2: logging.format: expected "text" or "json"'),
    (LISTENER + "backlog = -1", "3: listeners.backlog: should be greater than or equal to 0"),
    ("listeners = []", "1: listeners: expected at least 1 entry"),
    # extensions
    ("[extensions]\nDNS = true", "2: extensions.DNS: there is no such key; did you mean DSN?"),
    ("[extensions]\ndsn = true", "2: extensions.dsn: there is no such key; did you mean DSN?"),
    ("[extensions]\nSIZE = 'x'", "2: extensions.SIZE: expected true or false; got a string"),
    (
        "[extensions]\nDELIVERBY = 0",
        "2: extensions.DELIVERBY: takes the least number of seconds for BY=...;R, true or false, not 0",
    ),
    (
        "[extensions]\nFUTURERELEASE = true",
        "2: extensions.FUTURERELEASE: takes the most seconds that a message may be held, or these and a last time with "
        "its time zone, or false, not True",
    ),
    (
        LISTENER + "extensions.CHUNKIN = false",
        "3: listeners.extensions.CHUNKIN: there is no such key; did you mean CHUNKING?",
    ),
    (LISTENER + "lenient_addresses = 1", "3: listeners.lenient_addresses: expected true or false; got an integer"),
    # required keys
    ("[[listeners]]\nhostname = 'x'", "1: listeners.url: must be given"),
    (LISTENER + "[[plugins]]\noptional = true", "3: plugins.name: must be given"),
    (LISTENER + "[[listeners.middleware]]\nlevel = 3", "3: listeners.middleware.use: must be given"),
    # middleware
    ("[[middleware]]\nuse = 'Loging'", "2: middleware.use: there is no middleware 'Loging'; did you mean 'Logging'?"),
    ("[[middleware]]\nuse = 7", "2: middleware.use: expected a string; got an integer"),
    (
        "[[middleware]]\nuse = 'Logging'\nlevl = 3",
        "3: middleware.levl: Logging: there is no such key; did you mean level?",
    ),
    (
        "[[middleware]]\nuse = 'grade:Grade'\nmark = 3.5",
        "3: middleware.mark: grade:Grade: expected an integer; got a float",
    ),
    (
        LISTENER + "[[listeners.middleware]]\nuse = 'grade:Grade'\n\nmark = []",
        "6: listeners.middleware.mark: grade:Grade: expected an integer; got an array",
    ),
    (
        "[[middleware]]\nuse = 'Logging'\nonly = ['over_lts']",
        "3: middleware.only: there is no condition 'over_lts'; did you mean 'over_tls'?",
    ),
    (
        "[[middleware]]\nuse = 'Logging'\nonly = ['outside:10.0.0.0/33']",
        "3: middleware.only: outside takes networks, like '192.0.2.0/24', '2001:db8::/32' or 'unix': "
        "'10.0.0.0/33' does not appear to be an IPv4 or IPv6 network",
    ),
    ("[[middleware]]\nuse = 'Logging'\nonly = 'over_tls'", "3: middleware.only: expected an array; got a string"),
    (
        "[[middleware]]\nuse = 'Logging'\nonyl = []",
        "3: middleware.onyl: Logging: there is no such key; did you mean only?",
    ),
    # dates, times and numbers for text
    ("hostname = 1979-05-27", "1: hostname: expected a string; got a date: put it in quotes"),
    ("[logging]\ntarget = 07:32:00", "2: logging.target: expected a string; got a time: put it in quotes"),
    (
        "[delivery]\nmaildir = 1979-05-27T07:32:00Z",
        "2: delivery.maildir: expected a string; got a date: put it in quotes",
    ),
    ("[[plugins]]\nname = 1979-05-27", "2: plugins.name: expected a string; got a date: put it in quotes"),
    (LISTENER + "tls_cert = 1979-05-27", "3: listeners.tls_cert: expected a string; got a date: put it in quotes"),
    (
        "[[middleware]]\nuse = 'Logging'\nlogger = 1979-05-27",
        "3: middleware.logger: Logging: expected a string; got a date: put it in quotes",
    ),
    (
        "[[middleware]]\nuse = 'AccessList'\nallow = ['10.0.0.1',\n 1979-05-27]",
        "3: middleware.allow: AccessList: expected a string; got a date: put it in quotes",
    ),
    ("hostname = 1.5", "1: hostname: expected a string; got a float"),
    ("hostname = inf", "1: hostname: expected a string; got a float"),
    # texts that no path, name or password can be
    ('[logging]\ntarget = "a\\u0000b"', "2: logging.target: must not contain a NUL character"),
    ('[delivery]\nmaildir = "\\u0000"', "2: delivery.maildir: must not contain a NUL character"),
    ('tls_cert = "\\u0000"', "1: tls_cert: must not contain a NUL character"),
    ('[[listeners]]\nurl = "unix:/tmp/\\u0000"', "2: listeners.url: must not contain a NUL character"),
    ('[[plugins]]\nname = "a\\u0000:b"', "2: plugins.name: must not contain a NUL character"),
    ('[[plugins]]\nname = "a"\nx = ["\\u0000"]', "3: plugins.x: must not contain a NUL character"),
    ('[[middleware]]\nuse = "a\\u0000:b"', "2: middleware.use: must not contain a NUL character"),
    (
        '[[middleware]]\nuse = "Auth"\nbackend = { a = "\\u0000" }',
        "3: middleware.backend.a: must not contain a NUL character",
    ),
    ("[delivery]\nmaildir = ''", "2: delivery.maildir: expected a path; got an empty string"),
    ("[logging]\ntarget = ''", "2: logging.target: expected a path; got an empty string"),
    ("tls_key = ''", "1: tls_key: expected a path; got an empty string"),
    (
        f"[[listeners]]\nurl = 'unix:/{'x' * 107}'",
        f"2: listeners.url: cannot listen on 'unix:/{'x' * 107}': the path is longer than 107 bytes",
    ),
    (LISTENER + "backlog = 10000000000", "3: listeners.backlog: should be less than or equal to 2147483647"),
    # more than the checks can take (the line is unknown: tomlkit cannot read so deep a table)
    ("a" + ".a" * 3000 + " = 1", "1: a: expected at most 32 levels of tables and arrays; got more"),
    (
        "[limits]\nmax_errors = 0xffffffffffffffff",
        "2: limits.max_errors: expected an integer of at most 64 bits; got a larger one",
    ),
    ("\nx = 0x" + "f" * 8000, "2: x: expected an integer of at most 64 bits; got a larger one"),
    # not TOML
    ("a = 1\nb = ", "2: invalid value: strings need quotes, and booleans are true or false"),
    ("hostname = mx.example.com", "1: invalid value: strings need quotes, and booleans are true or false"),
    ("\n[a]\n[a]", "3: cannot declare ('a',) twice"),
]


@pytest.mark.parametrize(("text", "complaint"), WRONG)
def test_a_problem_is_reported_with_file_line_and_key(write: Write, text: str, complaint: str) -> None:
    (line,) = mistakes(write(text))
    assert line == f"greensmtp.toml:{complaint}"


def test_all_problems_are_reported_in_the_order_of_the_file(write: Write) -> None:
    text = (
        'limts = 1\n[[middleware]]\nuse = "Loging"\n[logging]\nlevel = 7\nformt = "text"\n[limits]\nmax_errors = ""\n'
    )
    lines = mistakes(write(text))
    assert [line.split(": ")[0] for line in lines] == [f"greensmtp.toml:{line}" for line in (1, 3, 5, 6, 8)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a = 1\nb = '\xff'\n", "greensmtp.toml:2: not UTF-8"),
        (b"#" * (MAX_BYTES + 1), f"greensmtp.toml: too large for a configuration: more than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_is_not_text_is_an_error(write: Write, content: bytes, complaint: str) -> None:
    path = write("")
    path.write_bytes(content)
    assert mistakes(path) == [complaint]


def test_a_byte_order_mark_is_ignored(write: Write) -> None:
    path = write("\ufeff# saved by some editor\nhostname = 'mx.example.com'\n[logging]\nlevel = 1\n")
    assert mistakes(path) == ['greensmtp.toml:4: logging.level: expected "debug", "info", "warning" or "error"']
    path = write("\ufeffhostname = 'mx.example.com'\n")
    assert load(path).config.hostname == "mx.example.com"


def test_a_date_stays_a_date_for_a_middleware_that_accepts_it(write: Write) -> None:
    Path("dated.py").write_text(
        "import datetime\ndef make(day: datetime.date, at: list[datetime.time], word: str = ''): ...\n"
    )
    text = "[[middleware]]\nuse = 'dated:make'\nday = 1979-05-27\nat = [07:32:00]\n"
    loaded = load(write(text))
    ((_, arguments),) = loaded.arguments.items()
    assert arguments == {"day": datetime.date(1979, 5, 27), "at": [datetime.time(7, 32)]}


def test_what_is_not_utf_8_on_the_command_line_is_an_error(write: Write) -> None:
    """Python decodes it with surrogates, which cannot be printed as TOML."""
    for name in ("hostname", "tls_cert"):
        override = Override(f"--{name}", (name,), "\udcff")
        assert mistakes(write(""), override) == [f"Invalid value for '--{name}': must be UTF-8"]


def test_a_file_that_cannot_be_read(write: Write) -> None:
    assert mistakes(Path("missing.toml")) == ["missing.toml: No such file or directory"]
    assert mistakes(Path("/")) == ["/: Is a directory"]


TABLES = ["", "[limits]", "[delivery]", "[logging]", "[[listeners]]", "[[plugins]]", "[[middleware]]\nuse = 'Logging'"]
KNOWN = {name for names in known_keys().values() for name in names}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["", "# max_errors = 3"]), max_size=4),
    st.sampled_from(TABLES),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
    | st.sampled_from(sorted(KNOWN)).map(lambda name: name[1:] + name[:1]),
    st.sampled_from(["1", "'text'", "[1, 2]", "{ a = 1 }", "true", "1979-05-27", "{ env = 'PATH' }"]),
)
def test_an_unknown_key_is_always_reported_with_its_line(
    write: Write, before: list[str], table: str, key: str, value: str
) -> None:
    assume(key not in KNOWN and key not in ("level", "logger"))
    quoted = '"' + "".join(f"\\U{ord(character):08X}" for character in key) + '"'
    text = "\n".join([*before, table, f"{quoted} = {value}"])
    number = text.count("\n") + 1
    section = re.sub(r"[\[\]]|\n.*", "", table)
    place = f"greensmtp.toml:{number}: {section + '.' if section else ''}{key}: "
    said = [line for line in mistakes(write(text)) if line.startswith(place)]
    assert len(said) == 1
    assert "there is no such key" in said[0]


KEYS = [(path, name) for path, names in known_keys().items() for name in names]
HEADS = {
    (): "",
    ("listeners",): LISTENER,
    ("listeners", "limits"): LISTENER + "[listeners.limits]\n",
    ("listeners", "middleware"): LISTENER + "[[listeners.middleware]]\n",
    ("plugins",): "[[plugins]]\n",
    ("middleware",): "[[middleware]]\n",
}
ODD = [
    *('""', '"x"', '"/"', '"a b"', '"\\u0000"', '"\\n"', f'"{"x" * 5000}"', '"\U0001f4a5"', '"all"', '"stderr"'),
    *("0", "-1", "1", "10000000000000000000000000", "1.5", "-0.0", "inf", "nan", "1e308", "true", "false"),
    *("[]", "[[]]", "{}", "[1]", '["a"]', "{ a = 1 }", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"),
    *('{ env = "" }', '{ file = "/" }', '{ file = "" }'),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KEYS), st.sampled_from(ODD))
def test_no_value_is_a_traceback(write: Write, place: tuple[tuple[str | int, ...], str], value: str) -> None:
    path, name = place
    assert all(isinstance(key, str) for key in path)
    head = HEADS.get(tuple(map(str, path)), f"[{'.'.join(map(str, path))}]\n")
    if f"\n{name} = " in head:
        head = head.partition("url")[0]
    lines = []
    try:
        load(write(f"{head}{name} = {value}\n"))
    except ConfigError as error:
        lines = error.lines
    assert all(line.startswith("greensmtp.toml:") for line in lines)


# Valid files


def test_an_empty_file_means_the_defaults(write: Write) -> None:
    for path in (None, write("")):
        config = load(path).config
        assert [listener.url for listener in config.listeners] == ["127.0.0.1:1025"]
        assert asdict(Limits(**config.limits.given())) == asdict(Limits())
        assert config.delivery.maildir == "maildir"
        assert (config.logging.format, config.logging.level, config.logging.target) == ("text", "warning", "stderr")
        assert config.plugins == []
        assert [entry.use for entry in config.middleware] == [entry["use"] for entry in DEFAULT_STACK]


def test_false_is_none_and_sizes_have_units(write: Write) -> None:
    assert load(write(LISTENER + "backlog = false")).config.listeners[0].backlog is None
    text = "[limits]\nmax_connections = false\nmax_message_size = '3k'\nmin_data_rate = 0\n[delivery]\nmaildir = false"
    config = load(write(text)).config
    assert config.limits.given() == {"max_connections": None, "max_message_size": 3072, "min_data_rate": 0}
    assert config.delivery.maildir is None


def test_no_middleware_is_not_the_default_middleware(write: Write) -> None:
    assert load(write("middleware = []")).config.middleware == []


def test_relative_paths_start_from_the_files_folder(write: Write, tmp_path: Path) -> None:
    text = (
        "tls_cert = 'c.pem'\ntls_key = '/k.pem'\n[delivery]\nmaildir = 'mail'\n[logging]\ntarget = 'log'\n"
        + LISTENER
        + "tls_cert = 'd.pem'"
    )
    (tmp_path / "etc").mkdir()
    write(text).rename("etc/greensmtp.toml")
    config = load(Path("etc/greensmtp.toml")).config
    assert (config.tls_cert, config.tls_key) == ("etc/c.pem", "/k.pem")
    assert config.listeners[0].tls_cert == "etc/d.pem"
    assert config.delivery.maildir == "etc/mail"
    assert config.logging.target == "etc/log"


# The command line's options

OVERRIDDEN = """
hostname = "file.example"
tls_cert = "file.pem"
tls_key = "file.key"
[limits]
max_message_size = 1000
max_errors = 7
[[listeners]]
url = "127.0.0.1:1"
hostname = "own.example"
tls_cert = "own.pem"
tls_key = "own.key"
limits.max_message_size = 2000
limits.max_errors = 8
[[plugins]]
name = "one"
"""

OVERRIDES: list[tuple[Override, Callable[[Any], bool]]] = [
    (
        Override("--hostname", ("hostname",), "option.example"),
        lambda c: c.hostname == "option.example" and c.listeners[0].hostname is None,
    ),
    (
        Override("--tls-cert", ("tls_cert",), "o.pem"),
        lambda c: (
            (c.tls_cert, c.tls_key) == ("o.pem", None) and c.listeners[0].tls_cert is c.listeners[0].tls_key is None
        ),
    ),
    (
        Override("--tls-key", ("tls_key",), "o.key"),
        lambda c: (c.tls_cert, c.tls_key) == ("file.pem", "o.key") and c.listeners[0].tls_key is None,
    ),
    (
        Override("--max-size", ("limits", "max_message_size"), 3000),
        lambda c: (
            c.limits.given() == {"max_message_size": 3000, "max_errors": 7}
            and c.listeners[0].limits.given() == {"max_errors": 8}
        ),
    ),
    (
        Override("--listen", ("listeners",), [{"url": "127.0.0.1:2"}, {"url": "127.0.0.1:3"}]),
        lambda c: [listener.url for listener in c.listeners] == ["127.0.0.1:2", "127.0.0.1:3"],
    ),
    (Override("--plugin", ("plugins",), [{"name": "two"}]), lambda c: [each.name for each in c.plugins] == ["two"]),
    (Override("--no-maildir", ("delivery", "maildir"), False), lambda c: c.delivery.maildir is None),
    (Override("--log-format", ("logging", "format"), "json"), lambda c: c.logging.format == "json"),
]


@pytest.mark.parametrize(("override", "holds"), OVERRIDES, ids=[override.option for override, _ in OVERRIDES])
def test_an_option_overrides_the_file_and_every_listener(
    write: Write, override: Override, holds: Callable[[Any], bool]
) -> None:
    path = write(OVERRIDDEN)
    assert not holds(load(path).config)
    assert holds(load(path, [override]).config)


def test_a_wrong_option_is_reported_by_its_name(write: Write) -> None:
    given = Override("--hostname", ("hostname",), "not a name")
    with pytest.raises(ConfigError) as caught:
        load(write("hostname = 'right.example'\n[limits]\nmax_errors = 0"), [given])
    first, second = caught.value.lines
    assert first.startswith("Invalid value for '--hostname': takes a domain name ")
    assert second.startswith("greensmtp.toml:3: ")
    assert caught.value.options


def test_an_option_does_not_hide_that_its_table_is_no_table(write: Write) -> None:
    path = write("limits = 1\nlisteners = [1]\nlogging = 'x'")
    overrides = [override for override, _ in OVERRIDES if override.option != "--listen"]
    lines = mistakes(path, *overrides)
    assert len(lines) == 3
    assert all(re.search(": expected a table; got ", line) for line in lines)


# Where a middleware applies


class Client:
    """The part of a session that predicates read."""

    def __init__(self, peer_host: str | None, identity: str | None, tls: bool) -> None:
        self.peer_host = peer_host
        self.identity = identity
        self.tls = tls


NEAR, FAR = Client("10.0.0.1", None, False), Client("192.0.2.1", "ann", True)
LOCAL = Client(None, None, False)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["authenticated"], [FAR]),
        (["unauthenticated"], [NEAR, LOCAL]),
        (["over_tls"], [FAR]),
        (["not over_tls"], [NEAR, LOCAL]),
        (["inside:10.0.0.0/8"], [NEAR]),
        (["outside:10.0.0.0/8"], [FAR, LOCAL]),
        (["outside:10.0.0.0/8, unix"], [FAR]),
        (["not outside:10.0.0.0/8,unix"], [NEAR, LOCAL]),
        (["inside:192.0.2.0/24,10.0.0.1", "not authenticated"], [NEAR]),
        (["over_tls", "unauthenticated"], []),
    ],
)
def test_a_middleware_applies_if_all_its_conditions_hold(texts: list[str], expected: list[Client]) -> None:
    condition: Any = all_of(texts)
    assert [client for client in (NEAR, FAR, LOCAL) if condition(client)] == expected


@pytest.mark.parametrize("text", ["", "not", "inside", "inside:", "over_tls:x", "outside:,", "qqq"])
def test_an_unknown_condition_is_an_error(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^there is no condition .*: write \"auth|^(?:in|out)side takes networks, like"
    ):
        read_condition(text)


# Secrets


def test_values_can_come_from_the_environment_and_from_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_NAME", "env.example")
    Path("sub").mkdir()
    Path("sub/name").write_text("file.example\n")
    Path("sub/url").write_bytes(b"127.0.0.1:7\r\n")
    loaded = load(
        write(
            "hostname = { env = 'MAIL_NAME' }\n"
            "[[listeners]]\nurl.file = 'sub/url'\nhostname = { file = 'sub/name' }\n"
            "[[plugins]]\nname = '{ env = MAIL_NAME } $MAIL_NAME ${MAIL_NAME} %(MAIL_NAME)s'\n"
        )
    )
    assert loaded.config.hostname == "env.example"
    assert loaded.config.listeners[0].hostname == "file.example"
    assert loaded.config.listeners[0].url == "127.0.0.1:7"
    assert loaded.config.plugins[0].name == "{ env = MAIL_NAME } $MAIL_NAME ${MAIL_NAME} %(MAIL_NAME)s"
    assert loaded.references[("hostname",)] == {"env": "MAIL_NAME"}
    assert loaded.references[("listeners", 0, "hostname")] == {"file": str(Path("sub/name").absolute())}


@pytest.mark.parametrize("given", [b"", b"\n", b"two\n\n", b"\r\n", b"  spaces \n", b"no newline"])
def test_only_one_final_newline_is_removed(write: Write, given: bytes) -> None:
    Path("value").write_bytes(given)
    config = load(write("[[plugins]]\nname = { file = 'value' }")).config
    wanted = given.removesuffix(b"\n").removesuffix(b"\r").decode()
    assert config.plugins[0].name == wanted


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("{ env = 'NOT_SET' }", "the environment has no variable 'NOT_SET'"),
        ("{ env = 'BINARY' }", "'BINARY' in the environment is not UTF-8"),
        ("{ file = 'missing' }", "cannot read '{folder}/missing': No such file or directory"),
        ("{ file = '/' }", "cannot read '/': Is a directory"),
        ("{ file = 'binary' }", "'{folder}/binary' is not UTF-8"),
        ("{ file = 'long' }", "'{folder}/long' is too large for a value: more than 65536 bytes"),
        ("{ env = 'NOT_SET', file = 'x' }", "expected a string; got a table"),
        ("{ env = 3 }", "expected a string; got a table"),
    ],
)
def test_an_unresolvable_reference_is_reported(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, complaint: str
) -> None:
    monkeypatch.setenv("BINARY", "\udcff")
    Path("binary").write_bytes(b"\xff\xfe")
    Path("long").write_bytes(b"x" * 65537)
    (line,) = mistakes(write(f"\nhostname = {reference}\n"))
    assert line == f"greensmtp.toml:2: hostname: {complaint.replace('{folder}', str(tmp_path))}"


def test_no_error_and_no_repr_shows_a_secret(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "open sesame'")
    lines = mistakes(
        write("hostname = { env = 'SECRET' }\n[[listeners]]\nurl.env = 'SECRET'\n[limits]\nmax_errors.env='SECRET'")
    )
    assert len(lines) == 3
    assert not [line for line in lines if "sesame" in line]
    loaded: Loaded = load(write("[[plugins]]\nname = { env = 'SECRET' }"))
    assert loaded.config.plugins[0].name == os.environ["SECRET"]
    assert "sesame" not in f"{loaded!r} {loaded.config!r} {loaded.config} {loaded.config.plugins!r} {loaded.source!r}"
