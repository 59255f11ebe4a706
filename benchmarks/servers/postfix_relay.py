"""Postfix, which relays everything from its queue to the port in $BENCH_NEXT_HOP: ``postfix_relay PORT``."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path

_SERVICES = """
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
scache unix - - n - 1 scache
smtp unix - - n - - smtp
"""


def main() -> None:
    """Serve until killed."""
    port = sys.argv[1]
    folder = Path(os.environ["BENCH_FOLDER"]) / f"postfix-relay-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("conf", "queue", "data"):
        (folder / name).mkdir(parents=True)
    os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
    (folder / "conf" / "main.cf").write_text(f"""
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = /dev/stdout
myhostname = mx.example.com
mydestination =
relayhost = [127.0.0.1]:{os.environ["BENCH_NEXT_HOP"]}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtp_dns_support_level = disabled
smtp_tls_security_level = none
alias_maps =
alias_database =
in_flow_delay = 0
""")
    (folder / "conf" / "master.cf").write_text(f"127.0.0.1:{port} inet n - n - - smtpd\n{_SERVICES.lstrip()}")
    os.execv("/usr/sbin/postfix", ["postfix", "-c", str(folder / "conf"), "start-fg"])


if __name__ == "__main__":
    main()
