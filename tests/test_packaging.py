"""Packaging: the content of the wheel, module names, lock files, and tools that must see ``middleware/`` once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

#: One group, so that one wheel is built.
pytestmark = [pytest.mark.subprocess, pytest.mark.xdist_group("packaging")]

ROOT = Path(__file__).resolve().parent.parent
LINK = ROOT / "greensmtp" / "middleware"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the Python settings of this process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def wheel(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel by the build backend, from a copy: a build leaves files beside the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "pytest_greensmtp.py"):
        shutil.copy(ROOT / name, source)
    for name in ("greensmtp", "middleware"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    build = f"from {settings['build-system']['build-backend']} import build_wheel; build_wheel({str(target)!r})"
    built = run(sys.executable, "-c", build, cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel into a directory, as an installer does with one of pure Python."""
    target = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_link_is_a_link() -> None:
    assert LINK.is_symlink()
    assert LINK.readlink() == Path("../middleware")  # relative, or it would break in every other checkout


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    sources = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "greensmtp").rglob("*.py") if LINK not in path.parents
    }
    catalogue = {f"greensmtp/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "middleware").rglob("*.py")}
    assert catalogue
    with ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == sources | catalogue | {"greensmtp/py.typed", "pytest_greensmtp.py"}


IMPORT_ALL = """
import importlib, pkgutil, greensmtp
for module in pkgutil.walk_packages(greensmtp.__path__, "greensmtp."):
    if module.name != "greensmtp.__main__":
        print(module.name, importlib.import_module(module.name).__file__)
"""


def test_the_wheel_is_imported_from_outside(installed: Path, tmp_path: Path) -> None:
    ran = run(sys.executable, "-W", "error", "-c", IMPORT_ALL, cwd=tmp_path, PYTHONPATH=str(installed))
    assert ran.returncode == 0, ran.stderr
    files = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    assert "greensmtp.middleware" in files
    assert all(Path(file).is_relative_to(installed) for file in files.values())


#: What the script does that installers make of the entry point.
COMMAND = """
import sys
from importlib.metadata import distribution
(command,) = distribution("greensmtp").entry_points.select(group="console_scripts", name="greensmtp")
sys.exit(command.load()())
"""


def test_the_command_is_there(installed: Path, tmp_path: Path) -> None:
    ran = run(sys.executable, "-c", COMMAND, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert ran.returncode == 0, ran.stderr
    assert "serve" in ran.stdout


def test_pytest_finds_the_fixtures_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    """By its entry point, and without importing the package."""
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_first():\n    assert not {'gevent', 'greensmtp'} & sys.modules.keys()\n"
        "def test_second(smtp_sink):\n    assert smtp_sink.port\n"
        f"    assert sys.modules['greensmtp'].__file__.startswith({str(installed)!r})\n"
        f"    assert sys.modules['pytest_greensmtp'].__file__.startswith({str(installed)!r})\n"
    )
    command = (sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_it.py")
    ran = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_catalogue_has_one_name_only() -> None:
    """Under a second name, there would be a second set of modules, with other classes and signals."""
    ran = run(sys.executable, "-c", "import middleware", cwd=ROOT)
    assert ran.returncode != 0
    last = ran.stderr.splitlines()[-1]
    assert re.match(r"ImportError: .*greensmtp\.middleware", last), ran.stderr


def test_pyright_is_told_of_the_link(settings: dict[str, Any]) -> None:
    assert "greensmtp/middleware" in settings["tool"]["pyright"]["include"]


def test_mypy_meets_the_catalogue_once(settings: dict[str, Any]) -> None:
    real = ROOT / "middleware"
    named = [ROOT / name for name in settings["tool"]["mypy"]["files"]]
    assert ROOT / "greensmtp" in named
    assert not [path for path in named if path.resolve() == real or real in path.resolve().parents]


def test_coverage_knows_both_names(settings: dict[str, Any]) -> None:
    assert {"greensmtp", "middleware"} <= set(settings["tool"]["coverage"]["run"]["source"])


def test_all_means_every_extra_but_celery(settings: dict[str, Any]) -> None:
    """Celery brings a dozen packages, which ``make serve`` does not need."""
    extras = settings["project"]["optional-dependencies"]
    (reference,) = extras["all"]
    match = re.fullmatch(r"greensmtp\[(.+)\]", reference)
    assert match
    assert set(match[1].split(",")) == extras.keys() - {"all", "celery", "s3"}


def locked(name: str) -> dict[str, str]:
    """Return the requirements of a lock file: name -> version."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def test_the_locks_are_up_to_date(settings: dict[str, Any]) -> None:
    """Every dependency is in the lock files; ``make lock`` updates them."""
    project = settings["project"]
    extras = project["optional-dependencies"]
    wanted = {"serve": project["dependencies"] + extras["cli"]}
    wanted["dev"] = wanted["serve"] + [line for lines in extras.values() for line in lines]
    for name, requirements in wanted.items():
        names = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}
        assert names - {"greensmtp"} <= locked(name).keys()


def test_the_locks_agree() -> None:
    assert locked("serve").items() <= locked("dev").items()  # one .venv serves both


@pytest.mark.parametrize("name", ["serve", "dev"])
def test_a_lock_tells_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    assert not re.findall(r"^.*(?:://|(?<!\S)/|--(?!hash=)).*$", text, re.MULTILINE)
