"""Moves the clock of a server, and slows its fsync, while it runs: a library that is preloaded into it (shim.c)."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from tests.faults.run import Run, Unavailable


class Shim:
    """The preloaded library, and the file by which it is controlled."""

    def __init__(self, run: Run) -> None:
        """
        :raises Unavailable: there is no C compiler.
        """
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Unavailable("a C compiler is needed: apt install gcc libc6-dev")
        library, control = run.folder / "shim.so", run.folder / "control"
        source = Path(__file__).with_name("shim.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
        control.write_bytes(bytes(16))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 16)
        run.cleanup.callback(self._control.close)
        #: For the server's environment.
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_CONTROL": str(control)}

    def move_clock(self, seconds: float) -> None:
        """Show the server a time of day that is so many seconds later, or earlier, than the real one."""
        struct.pack_into("=q", self._control, 0, int(seconds * 1e9))

    def slow_fsync(self, seconds: float) -> None:
        """Let each fsync take so many seconds; 0 also ends those that wait."""
        struct.pack_into("=q", self._control, 8, int(seconds * 1e9))
