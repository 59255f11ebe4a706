"""Programs of Debian's packages that are unpacked under ``.bench/``, and not installed.

So Exim can be had beside Postfix, although Debian allows one of them only, and no daemon of a package starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".bench" / "debian"


class Unavailable(RuntimeError):
    """A package cannot be had here; the text says why."""


def unpack(package: str) -> Path:
    """Return the folder with what a package holds; it is downloaded on first use.

    :raises Unavailable: this is no Debian, or the package cannot be downloaded.
    """
    root = FOLDER / package
    if not root.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise Unavailable(f"{package} is a Debian package, and apt-get or dpkg is not installed")
        file = _downloaded(package) or _download(package)
        unpacking = FOLDER / f"{package}.{os.getpid()}"
        subprocess.run(["dpkg", "-x", file, unpacking], check=True, timeout=45)
        try:
            unpacking.rename(root)
        except OSError:
            if not root.exists():
                raise
            shutil.rmtree(unpacking)  # another test process was faster
    return root


def _downloaded(package: str) -> Path | None:
    return next(FOLDER.glob(f"{package}_*.deb"), None)


def _download(package: str) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        ["apt-get", "download", package], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=45
    )
    file = _downloaded(package)
    if ran.returncode or file is None:
        raise Unavailable(f"apt-get cannot download {package}: {ran.stderr.strip()[-500:]}")
    return file


def version(package: str) -> str:
    """Return the version of a package that has been unpacked: ``4.96-15+deb12u10``."""
    file = _downloaded(package)
    assert file is not None
    return file.name.split("_")[1]


def exim(folder: Path) -> Path:
    """Copy Exim's program into a folder, and return its path. It runs as the user and the group ``mail``.

    Debian compiles the name of a user in that only the installed package creates, and Exim ends without that user.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root can start a program that changes its user")
    program = folder / "exim4"
    original = (unpack("exim4-daemon-light") / "usr/sbin/exim4").read_bytes()
    user = b"Debian-exim\0"
    program.write_bytes(original.replace(user, b"mail".ljust(len(user), b"\0")))
    program.chmod(0o755)
    return program


def with_users(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which a program finds users that this machine does not have.

    :param folder: where their files are written; every user must be able to read it.
    :raises Unavailable: this is not root, or ``unpack`` says so.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root can start a program that changes its user")
    users = ["root:x:0:0::/root:/bin/sh", "nobody:x:65534:65534::/nonexistent:/bin/false"]
    groups = ["root:x:0:", "nogroup:x:65534:", "mail:x:8:"]
    for number, name in enumerate(names, 60_000):
        users.append(f"{name}:x:{number}:{number}::/nonexistent:/bin/false")
        groups.append(f"{name}:x:{number}:")
    for file, lines in (("passwd", users), ("group", groups)):
        (folder / file).write_text("\n".join(lines) + "\n")
    return {
        "LD_PRELOAD": str(next(unpack("libnss-wrapper").glob("usr/lib/*/libnss_wrapper.so"))),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }
