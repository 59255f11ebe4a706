"""Become another user once the sockets are bound, and act as that user before."""

from __future__ import annotations

import grp
import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from greensmtp.config.problems import ConfigError

logger = logging.getLogger("greensmtp")


class Identity(NamedTuple):
    """A user and a group to become."""

    name: str
    uid: int
    gid: int
    #: All groups of the user.
    groups: tuple[int, ...]
    home: str


def find_identity(user: str | None, group: str | None) -> Identity | None:
    """Look up a user and a group by name or number; None if neither is given, or this process is that user.

    :param group: None: the user's own.
    :raises ValueError: the user or group does not exist, or this process may not become it; the text says which.
    """
    identity = look_up(user, group)
    if identity is None or (os.geteuid() == identity.uid and os.getegid() == identity.gid):
        return None
    if os.geteuid() != 0:
        raise ValueError(f"only root can become {identity.name!r}: start as root, or as that user without this key")
    return identity


def look_up(user: str | None, group: str | None) -> Identity | None:
    """Look up a user and a group by name or number; None if neither is given. Any process may do that.

    :param group: None: the user's own.
    :raises ValueError: there is none of that name; the text says which.
    """
    if user is None and group is None:
        return None
    if user is None:
        raise ValueError("a group needs a user with it")
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise ValueError(f"there is no user {user!r}") from None
    gid = entry.pw_gid if group is None else _gid(group)
    return Identity(entry.pw_name, entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)), entry.pw_dir)


def _gid(group: str) -> int:
    try:
        return (grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)).gr_gid
    except (KeyError, OverflowError):
        raise ValueError(f"there is no group {group!r}") from None


@contextmanager
def acting_as(identity: Identity) -> Iterator[None]:
    """Have the rights of this user for some time: its files, its groups, and none of root's."""
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(identity.groups)
        os.setegid(identity.gid)
        os.seteuid(identity.uid)
        yield
    finally:
        os.seteuid(uid)  # first, since only root may set groups
        os.setegid(gid)
        os.setgroups(groups)


def become(identity: Identity) -> None:
    """Become this user permanently: groups first, since only root may set them.

    :raises RuntimeError: the process could become root again, so it must end.
    """
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    os.environ.update(HOME=identity.home, USER=identity.name, LOGNAME=identity.name)
    if identity.uid == 0:
        return
    warn_of_unreadable_code(identity)
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise RuntimeError(f"still root after becoming {identity.name}")


@contextmanager
def naming_user(identity: Identity | None) -> Iterator[None]:
    """Add to a ConfigError which user has met it: root has started the server, and could read everything."""
    try:
        yield
    except ConfigError as error:
        if identity is None:
            raise
        line = f"this was checked as user {identity.name!r}, which [service] names"
        raise ConfigError([*error.lines, line], options=error.options) from error


def warn_of_unreadable_code(identity: Identity) -> None:
    """Warn if this process cannot read Python's library or greensmtp: a module that is imported later is missing then.

    That is so if both are in root's home, as pyenv has them.
    """
    unreadable = [str(Path(file).parent) for file in (os.__file__, __file__) if not os.access(file, os.R_OK)]
    if unreadable:
        logger.warning(
            "user %r cannot read the code in %s, so imports will fail; install Python and greensmtp where it can",
            identity.name,
            " and ".join(unreadable),
        )
