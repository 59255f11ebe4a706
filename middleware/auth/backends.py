"""Backends from what Auth accepts as one: a mapping, a callable, a str or an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from greensmtp.middleware.auth.credentials import Backend, Check
from greensmtp.middleware.auth.dovecot import DovecotAuth
from greensmtp.middleware.auth.htpasswd import Htpasswd
from greensmtp.signals import handler_name


class Passwords:
    """A mapping of users to passwords, which may change while the server runs."""

    def __init__(self, users: Mapping[str, str]) -> None:
        if isinstance(users, dict):
            for name, password in users.items():
                if not isinstance(name, str) or not isinstance(password, str):
                    raise TypeError(f"a mapping of users to passwords must map str to str; user {name!r} does not")
        self._users = users

    def get_password(self, username: str) -> str | None:
        """Return the user's password; None if there is no such user."""
        return self._users.get(username)

    def __repr__(self) -> str:
        count = len(self._users)
        return f"<{count} user{'' if count == 1 else 's'}>"


class Checker:
    """A callable ``check(credentials) -> bool``."""

    def __init__(self, check: Check) -> None:
        check_check(check)
        self.check_password = check
        self._name = handler_name(check)

    def __repr__(self) -> str:
        return self._name


def check_check(check: Any) -> None:
    """Check that it can be called with credentials.

    :raises TypeError: it cannot.
    """
    if not callable(check):
        raise TypeError(f"a check must be a callable (credentials) -> bool, not a {type(check).__name__}")
    try:
        signature = inspect.signature(check)
    except ValueError:  # a built-in function without a signature
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"a check must be a callable (credentials) -> bool; {handler_name(check)} takes {signature}"
        ) from None


def make_backend(backend: Any) -> Backend:
    """Return a backend made from an argument of ``Auth``.

    :raises ValueError, TypeError: it is not a backend; the text shows nothing of what was given.
    """
    if isinstance(backend, str):
        kind, _, path = backend.partition(":")
        if kind == "htpasswd" and path:
            return Htpasswd(path)
        if kind == "dovecot" and path:
            return DovecotAuth(path)
        raise ValueError(
            "a backend given as a str must be 'htpasswd:/path/of/the/file' or 'dovecot:/path/of/the/socket'"
        )
    if isinstance(backend, get_args(Backend)) and not inspect.isclass(backend):
        found: Backend = backend
        return found
    if isinstance(backend, Mapping):
        return Passwords(backend)
    if callable(backend) and not inspect.isclass(backend):
        return Checker(backend)
    raise TypeError(
        "a backend must be a mapping of users to passwords, a callable (credentials) -> bool, 'htpasswd:/path', "
        f"'dovecot:/path', or an object with one of the methods of greensmtp.middleware.auth.credentials, not a "
        f"{backend.__name__ if inspect.isclass(backend) else type(backend).__name__}"
    )
