"""What the servers of Postfix have in common: its configuration, in a folder of its own."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NoReturn

_SETTINGS = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = /dev/stdout
myhostname = mx.example.com
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtp_dns_support_level = disabled
alias_maps =
alias_database =
in_flow_delay = 0
"""

_SERVICES = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
"""


def become_postfix(folder: Path, port: int, settings: str, services: str) -> NoReturn:
    """Become Postfix, which runs until it is killed.

    :param settings: more lines of main.cf.
    :param services: more lines of master.cf.
    """
    for name in ("conf", "queue", "data"):
        (folder / name).mkdir(parents=True)
    os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
    (folder / "conf" / "main.cf").write_text(_SETTINGS.format(folder=folder) + settings)
    (folder / "conf" / "master.cf").write_text(_SERVICES.format(port=port).lstrip() + services)
    os.execv("/usr/sbin/postfix", ["postfix", "-c", str(folder / "conf"), "start-fg"])
