"""Postfix as a relay, with a folder and a port of its own."""

from __future__ import annotations

import os
import pwd
import smtplib
import socket
import subprocess
from pathlib import Path
from time import monotonic, sleep

from tests.programs import find, missing, need_root

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = /dev/stdout
myhostname = relay.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_dns_support_level = disabled
alias_maps =
alias_database =
local_recipient_maps =
"""

MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
"""


class Postfix:
    """A postfix with its own configuration, queue and port."""

    def __init__(self, folder: Path, services: str = "", **settings: str) -> None:
        """
        :param folder: an empty one, which every user may enter.
        :param services: more lines for ``master.cf``.
        :param settings: more lines for ``main.cf``.
        """
        self._postfix, self._sendmail = find("postfix"), find("sendmail")
        need_root("postfix")
        self._configuration = folder / "configuration"
        for name in ("configuration", "queue", "data"):
            (folder / name).mkdir()
        os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        main = MAIN.format(folder=folder) + "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self._configuration / "main.cf").write_text(main)
        (self._configuration / "master.cf").write_text(MASTER.format(port=self.port) + services)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._postfix, "-c", self._configuration, "start-fg"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.wait_for(b": daemon started -- ")
        except AssertionError as error:
            self.stop()
            missing(f"postfix does not start: {error}")

    @property
    def log(self) -> bytes:
        """Its log so far."""
        return self._log.read_bytes()

    def wait_for(self, words: bytes, timeout: float = 20.0) -> None:
        """Wait until the log contains this."""
        deadline = monotonic() + timeout
        while words not in self.log:
            assert monotonic() < deadline, self.log.decode(errors="replace")
            assert self._process.poll() is None, self.log.decode(errors="replace")
            sleep(0.02)  # a file that grows is no event

    def stop(self) -> None:
        """Stop all processes."""
        subprocess.run([self._postfix, "-c", self._configuration, "stop"], check=False, capture_output=True, timeout=20)
        self._process.wait(10)

    def relay(self, body: bytes, sender: str, *recipients: str) -> None:
        """Submit a message over SMTP."""
        with smtplib.SMTP("127.0.0.1", self.port, "client.example", timeout=20) as client:
            assert client.sendmail(sender, recipients, body, ["BODY=8BITMIME"]) == {}

    def sendmail(self, body: bytes, sender: str, *recipients: str) -> None:
        """Submit a message with the sendmail command."""
        command: list[str | Path] = [self._sendmail, "-C", self._configuration, "-i", "-f", sender, *recipients]
        subprocess.run(command, check=True, input=body.replace(b"\r\n", b"\n"), timeout=20)
