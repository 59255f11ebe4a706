"""Making a backend of whatever Auth takes for one: a mapping, a callable, a str, an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from greensmtp.middleware.auth.credentials import Backend, Check
from greensmtp.middleware.auth.dovecot import DovecotAuth
from greensmtp.middleware.auth.htpasswd import Htpasswd
from greensmtp.signals import handler_name


class Passwords:
    """A mapping: user -> password. It may change as it goes."""

    def __init__(self, users: Mapping[str, str]) -> None:
        if isinstance(users, dict):
            for name, password in users.items():
                if not isinstance(name, str) or not isinstance(password, str):
                    raise TypeError(f"a mapping has a str for each user, and a str, his password; {name!r} has not")
        self._users = users

    def get_password(self, username: str) -> str | None:
        """His password."""
        return self._users.get(username)

    def __repr__(self) -> str:
        count = len(self._users)
        return f"<{count} user{'' if count == 1 else 's'}>"


class Checker:
    """A callable: ``check(credentials) -> bool``."""

    def __init__(self, check: Check) -> None:
        check_check(check)
        self.check_password = check
        self._name = handler_name(check)

    def __repr__(self) -> str:
        return self._name


def check_check(check: Any) -> None:
    """Raise TypeError unless it can be called with credentials."""
    if not callable(check):
        raise TypeError(f"a check is called as (credentials) -> bool; a {type(check).__name__} cannot be called")
    try:
        signature = inspect.signature(check)
    except ValueError:  # something built in: it tells nothing
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"a check is called as (credentials) -> bool; {handler_name(check)} takes {signature}"
        ) from None


def make_backend(backend: Any) -> Backend:
    """A backend, of whatever ``Auth`` takes for one.

    :raises ValueError, TypeError: it is none; the text says what is taken, and shows nothing of what was given.
    """
    if isinstance(backend, str):
        kind, _, path = backend.partition(":")
        if kind == "htpasswd" and path:
            return Htpasswd(path)
        if kind == "dovecot" and path:
            return DovecotAuth(path)
        raise ValueError("a backend given as a str is 'htpasswd:/path/of/the/file' or 'dovecot:/path/of/the/socket'")
    if isinstance(backend, get_args(Backend)) and not inspect.isclass(backend):
        found: Backend = backend
        return found
    if isinstance(backend, Mapping):
        return Passwords(backend)
    if callable(backend) and not inspect.isclass(backend):
        return Checker(backend)
    raise TypeError(
        "a backend is a mapping of users to passwords, a callable (credentials) -> bool, 'htpasswd:/path', "
        f"'dovecot:/path', or an object with one of the methods of greensmtp.middleware.auth.credentials; not a "
        f"{backend.__name__ if inspect.isclass(backend) else type(backend).__name__}"
    )
