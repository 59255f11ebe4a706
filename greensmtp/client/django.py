"""Django's ``EMAIL_BACKEND = "greensmtp.client.django.EmailBackend"``: mail over pooled connections.

The backends of a process share one ``Pool`` for each combination of settings. ``open`` and ``close`` keep Django's
contract, but the connections stay open for the next backend.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from django.conf import settings  # type: ignore[import-untyped]
from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
from django.core.mail.backends.base import BaseEmailBackend  # type: ignore[import-untyped]
from django.core.mail.message import EmailMessage  # type: ignore[import-untyped]

from greensmtp.client.pool import Pool
from greensmtp.client.smtplib_errors import smtplib_error
from greensmtp.errors import CannotConnect, GreenSMTPError, PoolClosed
from greensmtp.protocol import address_list


class EmailBackend(BaseEmailBackend):  # type: ignore[misc]
    """Send mail like Django's SMTP backend, with the same settings and arguments, and the same errors of smtplib.

    More options of ``Pool`` are in the setting ``GREENSMTP_POOL``, a mapping, or are given as keywords:
    ``GREENSMTP_POOL = {"size": 5, "retries": 2}``. ``EMAIL_USE_TLS`` stands for ``starttls="require"``; without it and
    ``EMAIL_USE_SSL``, ``starttls="never"``.
    """

    def __init__(  # noqa: PLR0917 - Django's SMTP backend has them in this order
        self,
        host: str | None = None,
        port: int | None = None,
        username: str | None = None,
        password: str | None = None,
        use_tls: bool | None = None,
        fail_silently: bool = False,
        use_ssl: bool | None = None,
        timeout: float | None = None,
        ssl_keyfile: str | None = None,
        ssl_certfile: str | None = None,
        **options: Any,
    ) -> None:
        """
        :param options: options of ``Pool`` that take precedence over ``GREENSMTP_POOL``.
        :raises ImproperlyConfigured: an option is invalid.
        """
        super().__init__(fail_silently=fail_silently)
        use_tls = settings.EMAIL_USE_TLS if use_tls is None else use_tls
        use_ssl = settings.EMAIL_USE_SSL if use_ssl is None else use_ssl
        if use_tls and use_ssl:
            raise ValueError("EMAIL_USE_TLS and EMAIL_USE_SSL exclude each other: set one of them")
        username = settings.EMAIL_HOST_USER if username is None else username
        password = settings.EMAIL_HOST_PASSWORD if password is None else password
        given: dict[str, Any] = {
            "host": host or settings.EMAIL_HOST,
            "port": port or settings.EMAIL_PORT,
            "timeout": settings.EMAIL_TIMEOUT if timeout is None else timeout,
            "tls": bool(use_ssl),
            "starttls": "require" if use_tls else None if use_ssl else "never",
        }
        if username and password:
            given |= {"username": username, "password": password}
        given |= getattr(settings, "GREENSMTP_POOL", {})
        given |= options
        files = (
            settings.EMAIL_SSL_CERTFILE if ssl_certfile is None else ssl_certfile,
            settings.EMAIL_SSL_KEYFILE if ssl_keyfile is None else ssl_keyfile,
        )
        try:
            self._pool = _pool(tuple(sorted(given.items())), files)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"the options of greensmtp.Pool in EMAIL_... and GREENSMTP_POOL: {error}"
            ) from error
        self._is_open = False

    def open(self) -> bool | None:
        """Check that there is a connection; return True, False if it was already open, None if it failed silently.

        :raises SMTPException: there is no connection, and ``fail_silently`` is False.
        """
        if self._is_open:
            return False
        try:
            with self._pool.connection():
                self._is_open = True
        except GreenSMTPError as error:
            if self.fail_silently:
                return None
            raise smtplib_error(error) from error
        return True

    def close(self) -> None:
        """Mark the backend as closed. Its connections are kept for the next one."""
        self._is_open = False

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send the messages one after another, and return how many were sent.

        A message is sent if at least one of its recipients was accepted.

        :raises SMTPException: a message was not sent, and ``fail_silently`` is False; those after it are not tried.
        """
        sent = 0
        for message in email_messages:
            try:
                sent += self._send(message)
            except GreenSMTPError as error:
                if not self.fail_silently:
                    raise smtplib_error(error, str(message.from_email)) from error
                if isinstance(error, (CannotConnect, PoolClosed)):
                    break  # the others would fail, too
        return sent

    def _send(self, message: EmailMessage) -> bool:
        recipients = [each for text in message.recipients() for each in address_list.read(str(text), "To")]
        if not recipients:
            return False
        (sender, *_) = address_list.read(str(message.from_email), "From") or [""]
        self._pool.send(message.message(), sender, recipients)
        return True


@lru_cache(maxsize=32)
def _pool(options: tuple[tuple[str, Any], ...], files: tuple[str | None, str | None]) -> Pool:
    """Return the pool with these options. (A pool that is dropped closes its connections when they have been idle.)

    :param files: the client's certificate, and its key.
    """
    given = dict(options)
    certificate, key = files
    if certificate is not None:
        context = ssl.create_default_context()
        context.load_cert_chain(certificate, key)
        given["ssl_context"] = context
    return Pool(**given)
