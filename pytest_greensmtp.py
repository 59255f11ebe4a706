"""greensmtp's pytest plugin: the fixtures ``smtp_sink`` and ``make_smtp_sink``.

pytest imports this module in every run if greensmtp is installed. So it is not inside the package, whose import would
import gevent; the package is imported when a fixture is used. Nothing is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from greensmtp.testing import SMTPSink


@pytest.fixture
def make_smtp_sink() -> Iterator[Callable[..., SMTPSink]]:
    """Create sinks with options: ``make_smtp_sink(tls="starttls", users={"jo": "secret"})``; see ``SMTPSink``."""
    from greensmtp.testing import SMTPSink

    with ExitStack() as sinks:
        yield lambda **options: sinks.enter_context(SMTPSink(**options))


@pytest.fixture
def smtp_sink(make_smtp_sink: Callable[..., SMTPSink]) -> SMTPSink:
    """A mail server on a free port of 127.0.0.1 that keeps all messages, for tests of code that sends mail.

    ``.host``, ``.port``, ``.messages``, ``.wait_for(to=, subject=)``, ``.refuse("RCPT", 451)``; see ``SMTPSink``. It
    is listening when the test starts.
    """
    return make_smtp_sink()
