"""Plugins of ``greensmtp serve``: discovery, options, the Maildir beside them, and errors."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from greensmtp import SMTPServer
from greensmtp.cli import cli
from greensmtp.middleware import Logging
from greensmtp.plugins import (
    PluginError,
    installed_middleware,
    installed_plugins,
    load_plugin,
    middleware_factory,
    plug_in,
    read_option,
    warn_of_shadowed,
)
from greensmtp.plugins.discovery import is_middleware_class
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked

Serve = Callable[..., Any]


# Wrong ones

BROKEN = {
    "unheard": "",
    "syntax": "def install(server:\n",
    "raising": "\n1 / 0\n",
    "leaving": "import sys\nsys.exit('good-bye')\n",
    "needing": "import not_to_be_found\n",
    "shapes": "number = 7\ndef none(): ...\ndef two(server, more): ...\nclass Some: pass\n"
    "async def later(server): ...\ndef parts(server):\n    yield\n"
    "class Caller:\n    async def __call__(self, server): ...\ncaller = Caller()\n",
    "misnamed": "def install(server):\n    server.on('recieved', print)\n",
    "hostile": "import gevent\ndef __getattr__(name): 1 / 0\ndef kill(server): raise gevent.GreenletExit\n"
    "class Mute(Exception):\n    def __str__(self): 1 / 0\ndef mute(server): raise Mute\n",
}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", r"write MODULE or MODULE:CALLABLE, like 'policy' or 'policy:install', or the name of an"),
        (":install", r"':install': write MODULE or MODULE:CALLABLE"),
        ("unheard:", r"'unheard:': write MODULE or MODULE:CALLABLE"),
        (
            "unheard_of",
            r"cannot import unheard_of: ModuleNotFoundError: No module named 'unheard_of'; and no installed",
        ),
        ("unheard.of", r"cannot import unheard\.of: ModuleNotFoundError: .*'unheard' is not a package"),
        ("unheard:of", r"'unheard:of': unheard has no 'of'$"),
        ("syntax:install", r"cannot import syntax: SyntaxError: .*\(syntax\.py, line 1\)$"),
        ("raising", r"cannot import raising: ZeroDivisionError: division by zero \(.*/raising\.py, line 2\)$"),
        ("leaving", r"cannot import leaving: SystemExit: good-bye \(.*/leaving\.py, line 2\)$"),
        ("needing", r"cannot import needing: ModuleNotFoundError: No module named 'not_to_be_found' \(.*, line 1\)$"),
        ("shapes:number", r"expected number to be callable with one argument, the server$"),
        ("shapes:none", r"expected none to be callable with one argument, the server$"),
        ("shapes:two", r"expected two to be callable with one argument, the server$"),
        ("shapes:Some", r"expected Some to be callable with one argument, the server$"),
        ("shapes:later", r"expected later to be a plain function; got an async def"),
        ("shapes:parts", r"expected parts to be a plain function; got an async def"),
        ("shapes:caller", r"expected caller to be a plain function; got an async def"),
        ("hostile:any", r"cannot read 'any': ZeroDivisionError: division by zero \(.*/hostile\.py, line 2\)$"),
        ("hostile:kill", r"kill failed: GreenletExit \(.*/hostile\.py, line 3\)$"),
        ("hostile:mute", r"mute failed: Mute: \(its text cannot be made\) \(.*/hostile\.py, line 6\)$"),
        ("misnamed:install", r"install failed: ValueError: .* did you mean 'received'\?.*/misnamed\.py, line 2\)$"),
    ],
)
def test_a_broken_plugin_is_reported_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, complaint: str
) -> None:
    for module, text in BROKEN.items():
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(PluginError, match=complaint):
        load_plugin(name)(SMTPServer(("127.0.0.1", 0)))
    for module in BROKEN:
        sys.modules.pop(module, None)


def test_a_broken_plugin_ends_serve_with_status_2(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(BROKEN["raising"])
    server = serve("--plugin", "raising", wait=False)
    assert server.wait() == 2
    complaint = "Error: Invalid value for '--plugin': 'raising': cannot import raising: ZeroDivisionError: "
    assert complaint in " ".join(server.log.split())
    assert "Traceback" not in server.log
    assert server.lines() == []


# Installed ones


class Package:
    """Install packages: a module, and the entry points of its distribution."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, version: str, source: str = "", **entry_points: str) -> None:
        """``add("acme", "1.0", "def install(server): ...", plugins="tea = acme:install")``; a line each."""
        (self.folder / f"{name}.py").write_text(source)
        information = self.folder / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = (f"[greensmtp.{group}]\n{lines}\n" for group, lines in entry_points.items())
        (information / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Return an installer of packages for this test, whose current folder is empty."""
    folder, here = tmp_path / "site", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    before = set(sys.modules)
    yield Package(folder)
    for name in set(sys.modules) - before:
        del sys.modules[name]


WELCOMING = """
def install(server):
    server.on("from", lambda session, address, ack: ack.accept(250, NAME + " was here"))
NAME = __name__
"""

COUNTING = """
calls = []
def install(server):
    calls.append(__name__)
"""


def first_reply(server: SMTPServer) -> str:
    """Return the reply to MAIL."""
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        return peer.reply()


def test_an_installed_plugin_is_found_and_used_by_its_name(package: Package, smtp_server: MakeServer) -> None:
    package.add("acme_mail", "1.5", WELCOMING, plugins="acme = acme_mail:install [fast]\nquiet = acme_mail")
    found = installed_plugins()
    assert [*found] == ["acme", "quiet"]
    acme = found["acme"]
    assert (acme.kind, acme.value, acme.distribution, acme.version) == (
        *("plugin", "acme_mail:install"),
        *("acme_mail", "1.5"),
    )
    assert acme.load() is sys.modules["acme_mail"].install
    assert found["quiet"].load() is sys.modules["acme_mail"]
    server = smtp_server()
    plug_in("quiet", [server])
    assert first_reply(server) == "250 2.1.0 Ok"
    plug_in("acme", [server])
    assert first_reply(server) == "250 2.0.0 acme_mail was here"


def test_all_loads_each_installed_plugin_once_sorted_by_name(package: Package, smtp_server: MakeServer) -> None:
    for name in ("cc", "aa", "bb"):
        source = "from aa import calls\n" + COUNTING.replace("calls = []", "") if name != "aa" else COUNTING
        package.add(name, "1", source, plugins=f"the-{name} = {name}:install")
    servers = [smtp_server(), smtp_server()]
    plug_in("the-bb", servers)
    plug_in("all", servers)
    plug_in("the-cc", servers)
    assert sys.modules["aa"].calls == ["bb", "bb", "aa", "aa", "cc", "cc"]


def test_using_a_name_claimed_by_two_packages_is_an_error(package: Package, smtp_server: MakeServer) -> None:
    package.add("acme", "1.0", WELCOMING, plugins="tea = acme:install", middleware="Milk = acme:install")
    package.add(
        "bolt", "2.0", WELCOMING, plugins="tea = bolt:install\ncoffee = bolt:install", middleware="Milk = bolt:install"
    )
    server = smtp_server()
    claim = r"'tea' is claimed by several packages, acme 1\.0 \(acme:install\) and bolt 2\.0 \(bolt:install\)"
    for use in (lambda: plug_in("tea", [server]), lambda: load_plugin("tea"), lambda: plug_in("all", [smtp_server()])):
        with pytest.raises(PluginError, match=claim):
            use()
    plug_in("acme:install", [server])
    assert "acme was here" in first_reply(server)
    load_plugin("coffee")
    with pytest.raises(PluginError, match=r"middleware 'Milk' is claimed .*acme 1\.0 .* and bolt 2\.0 "):
        middleware_factory("Milk")


def test_the_names_of_the_catalogue_are_reserved(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    package.add("acme", "1.0", "Tarpit = Logging = 7", middleware="Logging = acme:Logging\nTarpit = acme:Tarpit")
    package.add("bolt", "2.0", "Logging = 8", middleware="Logging = bolt:Logging")
    assert middleware_factory("Logging") is Logging
    assert [each.distribution for each in installed_middleware()["Logging"].shadowed] == ["acme", "bolt"]
    warn_of_shadowed(["Logging", "RateLimit", "unheard:of"])
    assert [record.getMessage() for record in caplog.records] == [
        "middleware 'Logging' of acme 1.0 is not used: that name is reserved for greensmtp's own; write 'acme:Logging'",
        "middleware 'Logging' of bolt 2.0 is not used: that name is reserved for greensmtp's own; write 'bolt:Logging'",
    ]
    status, out, _ = listing("--check")
    assert status == 0
    rows = [line.split("\t") for line in out.splitlines() if line.startswith("Logging\t")]
    assert [(row[2], row[5][:21]) for row in rows] == [
        *(("greensmtp", "ok"), ("acme", "this name is reserved")),
        ("bolt", "this name is reserved"),
    ]


def test_a_broken_package_does_not_affect_others(
    package: Package, smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    package.add("acme", "1.0", WELCOMING, plugins="acme = acme:install")
    for name, metadata, points in (
        ("broken_points", b"Metadata-Version: 2.1\nName: x\n", b"\xff\xfe"),
        ("no_value", b"Metadata-Version: 2.1\nName: y\n", b"[greensmtp.plugins]\nnothing\n"),
        ("no_name", b"", b"[greensmtp.plugins]\nnameless = acme:install\n"),
        ("broken_metadata", b"\xff", b"[greensmtp.middleware]\nBroken = acme:install\n"),
        ("empty_value", b"Metadata-Version: 2.1\nName: z\n", b"[greensmtp.plugins]\nempty =\n"),
    ):
        information = package.folder / f"{name}-1.dist-info"
        information.mkdir()
        (information / "METADATA").write_bytes(metadata)
        (information / "entry_points.txt").write_bytes(points)
    assert {"acme", "nameless"} <= installed_plugins().keys()
    assert installed_middleware()["Broken"].distribution == "broken_metadata"
    assert middleware_factory("Logging") is Logging
    server = smtp_server()
    plug_in("acme", [server])
    assert "acme was here" in first_reply(server)
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    _, out, _ = listing("--check")
    assert "acme\tplugin\tacme\t1.0\tacme:install\tok" in out.splitlines()
    assert "Traceback" not in out


def test_a_plugin_with_the_name_of_a_local_module_is_an_error(package: Package, tmp_path: Path) -> None:
    package.add("acme", "1.0", WELCOMING, plugins="policy = acme:install\nacme = acme:install")
    (tmp_path / "here" / "policy.py").write_text("")
    (tmp_path / "here" / "acme.py").write_text(WELCOMING)
    with pytest.raises(PluginError, match=r"plugin 'policy' of acme 1\.0 and 'policy\.py' in the current folder"):
        load_plugin("policy")
    load_plugin("acme")  # its own module, as during development


def test_an_unknown_name_suggests_the_nearest(package: Package) -> None:
    package.add("acme", "1.0", "", plugins="vacation = acme")
    with pytest.raises(PluginError, match=r"and no installed plugin has that name; did you mean 'vacation'\?"):
        load_plugin("vaccation")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", r"plugin 'acme' of acme 1\.0: cannot import acme: ZeroDivisionError: .*acme\.py, line 1\)"),
        ("def instal(server): ...", r"plugin 'acme' of acme 1\.0: acme has no 'install'; did you mean 'instal'\?"),
        ("def install(): ...", r"plugin 'acme' of acme 1\.0: expected install to be callable with one argument"),
        ("def install(server):\n    1 / 0", r"plugin 'acme' of acme 1\.0: install failed: Zero.*acme\.py, line 2\)"),
    ],
)
def test_an_installed_plugin_that_fails_is_reported_with_package_and_line(
    package: Package, smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, source: str, complaint: str
) -> None:
    package.add("acme", "1.0", source, plugins="acme = acme:install")
    package.add("bolt", "1.0", WELCOMING, plugins="bolt = bolt:install")
    server = smtp_server()
    with pytest.raises(PluginError, match=complaint):
        plug_in("acme", [server])
    assert not caplog.records
    plug_in("all", [server], optional=True)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()[:27]) == ("WARNING", "skipped an optional plugin:")
    assert re.search(complaint, record.getMessage())
    assert "bolt was here" in first_reply(server)


OPTIONS = """
def install(server, delay: float = 1.0, *, word="please"):
    server.on("from", lambda session, address, ack: ack.accept(250, f"{word} wait {delay}"))
class Slow:
    def __init__(self, delay: float = 1.0, words: list[str] | None = None): ...
    def __call__(self, session, command, proceed): ...
"""


def test_a_plugin_is_given_options(package: Package, smtp_server: MakeServer) -> None:
    package.add("acme", "1.0", OPTIONS, plugins="acme = acme:install", middleware="Slow = acme:Slow")
    server, other = smtp_server(), smtp_server()
    plug_in("acme", [server], options={"delay": 3, "word": "now"})
    assert first_reply(server) == "250 2.0.0 now wait 3"
    plug_in("all", [server])
    (package.folder / "acme_module.py").touch()
    with pytest.raises(PluginError, match=r"plugin 'acme' of acme 1\.0 is already in this server: name it once"):
        plug_in("acme", [server], options={"delay": 3})
    for optional in (False, True):
        with pytest.raises(PluginError, match=r"install takes no option 'dealy'; did you mean 'delay'\?"):
            plug_in("acme", [other], options={"dealy": 3}, optional=optional)
        with pytest.raises(PluginError, match="'all' takes no options"):
            plug_in("all", [other], options={"delay": 3}, optional=optional)
        with pytest.raises(PluginError, match="'acme_module' takes no options: it is a module"):
            plug_in("acme_module", [other], options={"delay": 3}, optional=optional)
    assert first_reply(other) == "250 2.1.0 Ok"


def test_the_options_are_listed(package: Package) -> None:
    package.add("acme", "1.0", OPTIONS, plugins="acme = acme:install\nbroken = acme:no", middleware="Slow = acme:Slow")
    status, out, _ = listing("--options")
    assert status == 0
    rows = {line.split("\t")[0]: line.split("\t")[5:] for line in out.splitlines()}
    assert rows["acme"] == ["", "delay=1.0, word='please'"]
    assert rows["Slow"] == ["", "delay=1.0, words=None"]
    assert rows["broken"] == []
    assert rows["EarlyTalker"][1].startswith("pause=")


HALF = """
from greensmtp import signals
seen = []
@signals.from_.connect
def at_import(session, address, ack):
    ack.reject()
def install(server):
    server.on("from", lambda session, address, ack: ack.reject())
    if STACK:
        server.use(lambda session, command, proceed: proceed(session, command))
    if len(seen) == AFTER:
        raise OSError("no more")
    seen.append(server)
"""


@pytest.mark.parametrize("after", [0, 1])
def test_a_failed_optional_plugin_leaves_no_handlers(
    package: Package, smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    package.add("acme", "1.0", f"STACK, AFTER = False, {after}{HALF}", plugins="acme = acme:install")
    servers = [smtp_server(), smtp_server()]
    servers[0].on("from", lambda session, address, ack: ack.accept(250, "as ever"))
    plug_in("acme", servers, optional=True)
    assert len(caplog.records) == 1
    assert first_reply(servers[0]) == "250 2.0.0 as ever"
    assert first_reply(servers[1]) == "250 2.1.0 Ok"


def test_a_failed_optional_plugin_that_added_middleware_is_an_error(package: Package, smtp_server: MakeServer) -> None:
    package.add("acme", "1.0", f"STACK, AFTER = True, 0{HALF}", plugins="acme = acme:install")
    with pytest.raises(PluginError, match=r"no more.*has added middleware, which cannot be undone"):
        plug_in("acme", [smtp_server(start=False)], optional=True)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("policy", ("policy", False)),
        ("policy:install,optional", ("policy:install", True)),
        (" all , optional", ("all , optional", False)),
        ("all ,optional ", ("all", True)),
    ],
)
def test_the_form_of_the_plugin_option(text: str, read: tuple[str, bool]) -> None:
    assert read_option(text) == read


# Middleware


def test_middleware_by_name(package: Package, tmp_path: Path) -> None:
    package.add("acme", "1.0", "class Tea: ...\nnumber = 7", middleware="Tea = acme:Tea\nNumber = acme:number")
    (tmp_path / "here" / "own.py").write_text("class Own: ...")
    assert middleware_factory("Logging") is Logging
    assert middleware_factory("Tea") is sys.modules["acme"].Tea
    assert middleware_factory("own:Own") is sys.modules["own"].Own
    found = installed_middleware()
    assert found["Logging"].load() is Logging
    assert (found["Logging"].distribution, found["Logging"].kind) == ("greensmtp", "middleware")
    assert found["Tea"].origin == "acme 1.0"
    for name, complaint in (
        ("Number", "expected a class or another callable; got 7"),
        ("logging", r"there is no middleware 'logging'; did you mean 'Logging'\?"),
        ("Xyzzy", r"there is no middleware 'Xyzzy' \(there are: .*Logging.*Tea.*\)"),
        ("own:Owl", r"middleware 'own:Owl': own has no 'Owl'; did you mean 'Own'\?"),
        ("not_to_be_found:X", r"middleware 'not_to_be_found:X': cannot import not_to_be_found"),
        (":X", r"write NAME or MODULE:ATTRIBUTE"),
        ("own:", r"write NAME or MODULE:ATTRIBUTE"),
    ):
        with pytest.raises(PluginError, match=complaint):
            middleware_factory(name)


def test_the_catalogue_offers_its_middleware_and_nothing_else() -> None:
    class Backend:
        def __call__(self, user: str, password: str) -> bool:
            return False

    assert is_middleware_class(Logging)
    for other in (Backend, Path, load_plugin, 7):
        assert not is_middleware_class(other)


# greensmtp plugins


def listing(*options: str) -> tuple[int, str, str]:
    """Run ``greensmtp plugins``; return its exit status, standard output and standard error."""
    ran = CliRunner().invoke(cli, ["plugins", *options])
    return ran.exit_code, ran.stdout, ran.stderr


def test_the_list_has_name_kind_package_version_and_object(package: Package) -> None:
    package.add("acme", "1.5", "1 / 0", plugins="tea = acme:install", middleware="Tea = acme:Tea")
    package.add("bolt", "2", "Milk = dict", middleware="Milk = bolt:Milk")
    status, out, err = listing()
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == "tea\tplugin\tacme\t1.5\tacme:install"
    assert "Tea\tmiddleware\tacme\t1.5\tacme:Tea" in lines
    assert any(line.startswith("Logging\tmiddleware\tgreensmtp\t") for line in lines)
    status, out, err = listing("--check")
    states = {line.split("\t")[0]: line.split("\t")[5] for line in out.splitlines()}
    assert status == 1
    assert (states["Milk"], states["Logging"]) == ("ok", "ok")
    assert states["tea"].startswith("plugin 'tea' of acme 1.5: cannot import acme: ZeroDivisionError")
    assert states["Tea"].startswith("middleware 'Tea' of acme 1.5: cannot import acme: ZeroDivisionError")


def test_a_name_cannot_give_orders_to_the_terminal(package: Package) -> None:
    package.add("acme", "1", plugins="te\x1b[2J\ta = acme:install")
    _, out, _ = listing()
    assert out.splitlines()[0] == r"te\x1b[2J\ta" + "\tplugin\tacme\t1\tacme:install"


def test_names_claimed_twice_are_listed_twice_and_marked(package: Package) -> None:
    package.add("acme", "1", "install = print", plugins="tea = acme:install")
    package.add("bolt", "2", "install = print", plugins="tea = bolt:install")
    status, out, _ = listing()
    assert status == 1
    assert out.splitlines()[:2] == [
        "tea\tplugin\tacme\t1\tacme:install\tclaimed by several packages",
        "tea\tplugin\tbolt\t2\tbolt:install\tclaimed by several packages",
    ]


@pytest.mark.usefixtures("package")
def test_without_plugins_the_list_says_how_to_provide_one() -> None:
    status, out, err = listing()
    assert (status, out.count("plugin\t")) == (0, 0)
    assert "No plugins are installed" in err
    assert '[project.entry-points."greensmtp.plugins"]' in err


@pytest.mark.subprocess
def test_on_a_terminal_it_has_columns(package: Package) -> None:
    package.add("acme", "1", "install = print", plugins="a-name-of-some-length = acme:install")
    first = f"import sys; sys.path.append({str(package.folder)!r})"
    ours, theirs = pty.openpty()
    assert forked.start(forked.command_line("plugins", "--check", first=first), stdout=theirs).wait(30) == 0
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert re.fullmatch("NAME +KIND +PACKAGE +VERSION +OBJECT +STATUS", lines[0])
    for title, cell in (("KIND", "plugin"), ("PACKAGE", "acme "), ("VERSION", "1 "), ("STATUS", "ok")):
        assert lines[1].find(cell, lines[0].index(title)) == lines[0].index(title)


# greensmtp serve


def test_one_server_instead_of_a_list_is_an_error_that_says_so(smtp_server: MakeServer) -> None:
    with pytest.raises(TypeError, match="servers: expected a list"):
        plug_in("policy", smtp_server(start=False))  # type: ignore[arg-type]
