"""A process that has imported greensmtp and forks one child for each program that a test starts.

``tests/forked.py`` starts it, as ``python tests/fork_server.py FD PATCHED``, and sends it programs over the socket FD.
It never makes a gevent hub, so a child begins as a fresh interpreter does, but without the 0.4 seconds of imports.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from importlib import import_module
from signal import SIG_DFL, SIGHUP, SIGINT, default_int_handler, signal
from socket import recv_fds, socket
from typing import Any

from gevent import monkey

# As they are before gevent patches them: this process has no hub.
fork, waitpid = os.fork, os.waitpid

#: What the command line imports once it has patched, and what ``serve`` and ``send`` import later.
COMMAND_LINE = ("greensmtp.cli", "greensmtp.config.build", "greensmtp.config.dump")
LATER = (
    "greensmtp.middleware.rate_limit.memory",
    "pythonjsonlogger.json",
    "gevent.resolver.thread",
    "gevent.threadpool",
)


def import_everything(*, patched: bool) -> None:
    """Import what programs need; the command line in its own order."""
    if patched:
        monkey.patch_all()
    names = ["greensmtp.__main__", *COMMAND_LINE, *LATER] if patched else ["greensmtp.middleware"]
    for name in (*names, "greensmtp.testing"):
        import_module(name)


def next_program(control: socket) -> dict[str, Any]:
    """Serve requests; return in each child, with its program."""
    while True:
        message, descriptors, _, _ = recv_fds(control, 1 << 20, 4)
        while has_waited_for_a_child():
            pass
        if not message:
            control.close()
            sys.exit()
        if not fork():
            control.close()
            return supervise(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def has_waited_for_a_child() -> bool:
    """Wait for one of the children that have ended, if any have."""
    try:
        return waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def supervise(program: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    """Fork the program, and return in the child; send its process id and its exit status to the first descriptor.

    Only a parent can wait for a process, and the test is not the program's parent.
    """
    status, *streams = descriptors
    child = fork()
    if child:
        for stream in streams:
            os.close(stream)
        os.write(status, b"%d " % child)
        os.write(status, b"%d" % os.waitstatus_to_exitcode(waitpid(child, 0)[1]))
        os._exit(0)
    os.close(status)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return program


def become(program: dict[str, Any]) -> None:
    """Set up what an interpreter takes from its command line and its environment."""
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["env"])
    signal(SIGINT, default_int_handler)  # a shell's background jobs ignore it, and so does what they start
    signal(SIGHUP, SIG_DFL)  # what nohup starts ignores it
    for number in program["closed"]:
        os.close(number)
        name = ("stdin", "stdout", "stderr")[number]
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
    sys.argv = program["argv"]


def main() -> None:
    control = socket(fileno=int(sys.argv[1]))
    sys.path.pop(0)  # the folder of this file
    import_everything(patched=sys.argv[2] == "patched")
    gc.freeze()  # collections in children leave these objects, and their memory, alone
    program = next_program(control)
    become(program)
    if "code" in program:
        sys.path.insert(0, "")
        exec(compile(program["code"], "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif "script" in program:
        from runpy import run_path

        sys.path.insert(0, os.path.dirname(program["script"]))  # noqa: PTH120
        run_path(program["script"], run_name="__main__")
    else:
        from greensmtp.__main__ import main as command_line

        command_line()


if __name__ == "__main__":
    main()
