"""Real programs at the other end: where they are, and what they can do.

A program that is missing, or that lacks what a test needs, skips the test. Where ``GREENSMTP_REQUIRE_PEERS=1``, as in
CI, it fails it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from typing import NoReturn

import pytest

#: Where distributions put what users do not call by hand.
_PLACES = ("/usr/sbin", "/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/local/sbin")


def missing(why: str) -> NoReturn:
    """Skip the test, or fail it where every peer is required."""
    if os.environ.get("GREENSMTP_REQUIRE_PEERS") == "1":
        pytest.fail(f"{why}, and GREENSMTP_REQUIRE_PEERS=1 requires every peer")
    pytest.skip(why)


def find(name: str) -> str:
    """Return the path of a program."""
    path = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], *_PLACES)))
    if path is None:
        missing(f"{name} is not installed")
    return path


def need_root(name: str) -> None:
    """Require that this user may start a program that changes its user."""
    if os.geteuid() != 0:
        missing(f"only root can start {name}")


def need_capabilities(name: str, arguments: Sequence[object]) -> None:
    """Require that a program was built, or is installed, with all that these arguments ask for."""
    for what, pattern in _needs(name, [str(argument) for argument in arguments]):
        if not re.search(pattern, _description(name), re.MULTILINE | re.IGNORECASE):
            missing(f"{name} does not support {what}")


def _needs(name: str, words: list[str]) -> list[tuple[str, str]]:
    """Return what the arguments ask for, each with the pattern of the line that promises it."""
    needs: list[tuple[str, str]] = []
    if name == "swaks":
        if any(word.startswith("--tls") for word in words):
            needs.append(("TLS", r"^=== TLS supported"))
        if "--auth" in words and (mechanism := words[words.index("--auth") + 1]) not in ("PLAIN", "LOGIN"):
            needs.append((mechanism, rf"^=== AUTH {mechanism} supported"))
    elif name == "msmtp":
        if any(word.startswith("--tls=on") for word in words):
            needs.append(("TLS", r"^TLS/SSL library: (?!none|disabled)"))
        methods = [word.removeprefix("--auth=") for word in words if word.startswith("--auth=")]
        needs += [(method, rf"^Supported authentication methods:\s.*\b{method}\b") for method in methods]
    elif name == "curl":
        schemes = {word.partition("://")[0] for word in words if "://" in word}
        needs += [(scheme, rf"^Protocols:.* {scheme}( |$)") for scheme in sorted(schemes)]
        if any(word in ("--ssl-reqd", "--cacert") for word in words):
            needs.append(("TLS", r"^Features:.* SSL( |$)"))
        if any("AUTH=SCRAM" in word for word in words):
            needs.append(("SCRAM", r"^Features:.* gsasl( |$)"))
    return needs


@cache
def _description(name: str) -> str:
    """Return a program's description of its features."""
    option = "--support" if name == "swaks" else "--version"
    return subprocess.run([find(name), option], check=False, capture_output=True, text=True, timeout=20).stdout
