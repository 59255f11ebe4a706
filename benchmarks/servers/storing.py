"""Servers that store each message in a Maildir, durable before its reply: ``storing NAME PORT``.

Each gets a new folder of its own in $BENCH_FOLDER, ``storing-NAME-PORT``, and its Maildirs are in ``mail`` there.
Standard library only, since aiosmtpd's environment has no greensmtp.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.servers.postfix import become_postfix

#: A user whom Postfix and Dovecot deliver as.
USER = "mail"


def greensmtp(folder: Path, port: int) -> None:
    """Run ``greensmtp serve``, with its default stack; only the rate limit is higher than the load."""
    (folder / "greensmtp.toml").write_text(f"""
[[listeners]]
url = "127.0.0.1:{port}"
[delivery]
maildir = "mail"
[[middleware]]
use = "Logging"
[[middleware]]
use = "ConnectionLimit"
per_address = 500
per_network = false
[[middleware]]
use = "Tarpit"
[[middleware]]
use = "RateLimit"
limit = "60000000/minute"
strategy = "fixed-window"
""")
    os.chdir(folder)
    python = os.environ.get("STORING_PYTHON", sys.executable)
    # The environment may have another checkout's package: this one, or that of --before, comes first.
    checkout = Path(python).parents[2] if "STORING_PYTHON" in os.environ else Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": os.environ.get("STORING_COMPILED", str(checkout))}
    os.execve(python, [python, "-m", "greensmtp", "serve", "--config", "greensmtp.toml"], environment)


def aiosmtpd_folder(folder: Path, port: int) -> None:
    """Run it with a flush of ``new/`` after each message, without which a crash may lose the file's name."""
    import mailbox

    add = mailbox.Maildir.add

    def add_and_flush(self: mailbox.Maildir, message: mailbox._MessageData) -> str:
        key = add(self, message)
        descriptor = os.open(folder / "mail" / "new", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        return key

    mailbox.Maildir.add = add_and_flush  # type: ignore[method-assign]
    aiosmtpd(folder, port)


def aiosmtpd_unsafe(folder: Path, port: int) -> None:
    """Run it without any flush, so that a crash loses messages: a bound on what a faster disk could bring."""
    import mailbox

    mailbox._sync_flush = lambda file: file.flush()  # type: ignore[attr-defined]
    aiosmtpd(folder, port)


def aiosmtpd(folder: Path, port: int) -> None:
    """Run aiosmtpd with its Mailbox handler, which writes and flushes in the event loop; it does not flush folders."""
    from aiosmtpd.handlers import Mailbox
    from aiosmtpd.smtp import SMTP

    async def serve() -> None:
        handler = Mailbox(folder / "mail")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(handler, hostname="mx.example.com"), "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


def postfix(folder: Path, port: int) -> None:
    """Run Postfix, whose ``local`` delivers from its queue: a message is written twice."""
    (folder / "mail").mkdir()
    os.chown(folder / "mail", pwd.getpwnam(USER).pw_uid, -1)
    settings = f"""
mydestination = example.com
local_recipient_maps =
mail_spool_directory = {folder}/mail/
local_destination_concurrency_limit = 20
"""
    become_postfix(folder, port, settings, "local unix - n n - - local\n")


def dovecot(folder: Path, port: int) -> None:
    """Run Dovecot's LMTP server."""
    (folder / "mail").mkdir()
    shutil.chown(folder / "mail", USER, USER)
    (folder / "users").write_text(f"{USER}:{{PLAIN}}secret\n")
    (folder / "users").chmod(0o644)
    (folder / "dovecot.conf").write_text(f"""
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
protocols = lmtp
listen = 127.0.0.1
hostname = mx.example.com
ssl = no
mail_location = maildir:{folder}/mail/%n
mail_uid = {USER}
mail_gid = {USER}
first_valid_uid = 1
auth_username_format = %Ln
passdb {{
  driver = passwd-file
  args = username_format=%n {folder}/users
}}
userdb {{
  driver = static
  args = uid={USER} gid={USER} home={folder}/mail/%n
}}
service lmtp {{
  process_min_avail = 20
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
""")
    os.execv("/usr/sbin/dovecot", ["dovecot", "-F", "-c", str(folder / "dovecot.conf")])


#: Mounts what OpenSMTPD's program expects at fixed paths, where only its own processes see it.
_OPENSMTPD = """
set -e
mount --bind "$FOLDER/passwd" /etc/passwd
mount --bind "$FOLDER/group" /etc/group
mount --bind "$UNPACKED/usr/libexec" /usr/libexec
mount --bind "$FOLDER/lib" /var/lib
mount --bind "$FOLDER/spool" /var/spool
mount -t tmpfs tmpfs /run
exec "$UNPACKED/usr/sbin/smtpd" -d -f "$FOLDER/smtpd.conf"
"""


def opensmtpd(folder: Path, port: int) -> None:
    """Run OpenSMTPD, which delivers from its queue, with a process for each message."""
    for name in ("mail", "lib/opensmtpd/empty", "spool/smtpd"):
        (folder / name).mkdir(parents=True)
    (folder / "spool" / "smtpd").chmod(0o711)
    for name in ("passwd", "group"):
        lines = Path("/etc", name).read_text()
        for number, user in enumerate(("opensmtpd", "opensmtpq"), 64990):
            rest = f":{number}:{user}:/var/lib/opensmtpd/empty:/bin/false" if name == "passwd" else ":"
            lines += f"{user}:x:{number}{rest}\n"
        (folder / name).write_text(lines)
    shutil.chown(folder / "mail", USER, USER)
    # Its sessions come from one address.
    (folder / "smtpd.conf").write_text(f"""
smtp max-message-size 100M
listen on 127.0.0.1 port {port} hostname mx.example.com
action "local" maildir "{folder}/mail/mail" user {USER}
match from any for any action "local"
""")
    environment = os.environ | {"FOLDER": str(folder), "UNPACKED": os.environ["STORING_OPENSMTPD"]}
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OPENSMTPD]
    os.execvpe("unshare", command, environment)


SERVERS: dict[str, Callable[[Path, int], None]] = {
    "greensmtp": greensmtp,
    "compiled": greensmtp,
    "aiosmtpd": aiosmtpd,
    "aiosmtpd_folder": aiosmtpd_folder,
    "aiosmtpd_unsafe": aiosmtpd_unsafe,
    "postfix": postfix,
    "dovecot": dovecot,
    "opensmtpd": opensmtpd,
}


def main() -> None:
    """Serve until killed."""
    name, port = sys.argv[1:]
    folder = Path(os.environ["BENCH_FOLDER"]) / f"storing-{name}-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    SERVERS[name](folder, int(port))


if __name__ == "__main__":
    main()
