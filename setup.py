"""Build greensmtp: compiled with ``GREENSMTP_COMPILE=1 pip install .``, otherwise plain Python.

mypyc (https://mypyc.readthedocs.io) compiles the modules below to C extensions, from the same sources and their type
annotations. All other metadata of the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup

#: Folder -> the modules that run for each command and each chunk of a body. A class that users derive from is marked
#: with ``mypyc_attr(allow_interpreted_subclasses=True)``. address.py is plain Python: mypyc cannot derive from str.
MODULES = {
    "protocol": "chunking command content_checks dot_stuffing line_reader log_text",
    "session": "ack_state body_pipes chunk_reader emitter handlers session stream",
    "chain": "chain",
    "middleware": "_message_replies logging/format logging/records logging/recorder logging/transaction",
    "server": (
        "body command_loop continuations dispatcher handler line_transport message_actions proxy replier routes "
        "supervised transport"
    ),
}

#: Options of mypy. Only errors in these modules count: the others import packages of extras, which may be missing.
OPTIONS = ["--config-file=pyproject.toml", "--no-warn-unused-configs", "--follow-imports=silent"]

#: mypyc is part of mypy; the other packages are needed for their types.
REQUIREMENTS = ["mypy>=2.4", "gevent>=24.2", "blinker>=1.8", "idna>=3.7", "types-gevent"]


def compiled() -> dict[str, object]:
    """Return the arguments of ``setup`` for the compiled build.

    :raises SystemExit: there is no C compiler.
    """
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"GREENSMTP_COMPILE is set, but there is no C compiler ({compiler}). Install one (Debian: gcc), "
            "or unset GREENSMTP_COMPILE to install greensmtp as plain Python."
        )
    try:
        from mypyc.build import mypycify
    except ImportError:
        return {"setup_requires": REQUIREMENTS}  # the installer installs them first, and then runs this again
    link = Path("greensmtp/middleware")
    if not link.exists():  # a source distribution has no symbolic links
        link.symlink_to("../middleware")
    paths = [f"greensmtp/{room}/{name}.py" for room, names in MODULES.items() for name in names.split()]
    return {"ext_modules": mypycify([*OPTIONS, *paths], opt_level="3", debug_level="0", group_name="greensmtp")}


setup(**(compiled() if os.environ.get("GREENSMTP_COMPILE", "") not in ("", "0") else {}))
