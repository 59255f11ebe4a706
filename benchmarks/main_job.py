"""The main job: each message is in a Maildir before its reply, from 1, 20 and 100 connections.

Postfix's ``local`` delivers from a queue. So rate and CPU time are measured until the last file exists. CPU time is the
sum over the server's process and its descendants.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks import load, machine, measure
from benchmarks.contenders import Running

#: Numbers of connections, and their share of the messages: a single one waits for the disk with each message.
CONNECTIONS = {20: 1.0, 1: 0.1, 100: 1.0}

#: The servers to compare. All flush the file; only those named ``..._folder``, ours and Dovecot's flush the folder.
SERVERS = (
    "storing",
    "storing_compiled",
    "storing_aiosmtpd",
    "storing_aiosmtpd_folder",
    "storing_aiosmtpd_unsafe",
    "storing_dovecot",
    "storing_postfix",
    "storing_opensmtpd",
)


#: Servers that take seconds for a thousand messages get fewer.
FEWER = {"storing_dovecot": 0.3, "storing_postfix": 0.3, "storing_opensmtpd": 0.1}


def main_job(server: Running, count: int) -> dict[str, float]:
    """Send messages of 1 kB, and wait until all are in a Maildir; ``count`` of them over 20 connections."""
    sample: dict[str, float] = {}
    count = int(count * FEWER.get(server.name, 1.0))
    for connections, share in CONNECTIONS.items():
        suffix = "" if connections == 20 else f"_{connections}"
        rate, cpu = _store(server, max(connections, int(count * share)), connections)
        sample |= {f"rate{suffix}": rate, f"cpu{suffix}": cpu}
    return sample


def _store(server: Running, messages: int, connections: int) -> tuple[float, float]:
    """Return messages per second, and seconds of CPU per message."""
    folder = machine.WORK / f"storing-{server.name.partition('_')[2] or 'greensmtp'}-{server.port}"
    before, cpu = stored(folder), measure.cpu_of_family(server.pid)
    began = time.perf_counter()
    load.smtp_source(
        server.port,
        sessions=connections,
        messages=messages,
        size=1_000,
        kept=True,
        lmtp="dovecot" in server.name,
        recipient="mail@example.com",
    )
    while (there := stored(folder)) < before + messages:
        if time.perf_counter() - began > load.TIMEOUT:
            raise RuntimeError(f"{there - before} of {messages} messages are stored")
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    return messages / seconds, (measure.cpu_of_family(server.pid) - cpu) / messages


def stored(folder: Path) -> int:
    """Return the number of messages in a server's Maildirs."""
    return sum(1 for new in folder.glob("mail/**/new") for _ in os.scandir(new))
