"""``mail_task``: a Celery task that gets the mail of ``CeleryTask``, and handles its success or final failure."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from greensmtp.delivery._store import stored_message, write_durably
from greensmtp.delivery.handed_off import MailContent, MailEnvelope, read_content, read_envelope
from greensmtp.delivery.report import RecipientStatus, delivery_report
from greensmtp.protocol.reply import Reply

logger = logging.getLogger("greensmtp")


def mail_task(app: Any, name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as a task that gets mail: ``@mail_task(app, "tasks.receive")``.

    The function is called as ``(envelope, content)``: a ``MailEnvelope``, a ``MailContent``. The task is acknowledged
    when the function has returned: if a worker is killed while it runs, the task is delivered again. A function that
    raises is called again after 1, 2, 4 and so on up to 600 seconds, ``max_retries`` times.

    :param options: options of ``app.task``, and these:
    :param max_retries: number of retries; 10 by default.
    :param report: called as ``(report, sender)`` with the bytes of an RFC 3464 report and the address to send it to,
        after the last attempt has failed. It is not called for the null sender.
    :param dead_letters: a folder for messages whose last attempt has failed: ID.eml, and ID.json with the envelope
        and the error.
    """
    report, dead_letters = options.pop("report", None), options.pop("dead_letters", None)
    base = _make_base()
    settings = {
        "acks_late": True,
        "reject_on_worker_lost": True,
        "autoretry_for": (Exception,),
        "retry_backoff": True,
        "retry_backoff_max": 600,
        "retry_jitter": True,
        "max_retries": 10,
        "ignore_result": True,
    }

    def register(function: Callable[[MailEnvelope, MailContent], Any]) -> Any:
        def run(envelope: dict[str, Any], content: dict[str, str]) -> None:
            if "path" not in content or not stored_message(content["path"]).is_done():
                function(read_envelope(envelope), read_content(content))

        if function.__name__.isidentifier():  # a lambda's is not
            run.__name__ = function.__name__
        run.__doc__, run.__module__ = function.__doc__, function.__module__
        made = app.task(run, base=base, name=name, **{**settings, **options})
        made.report, made.dead_letters = report, None if dead_letters is None else Path(dead_letters)
        return made

    return register


def _make_base() -> Any:
    from billiard.exceptions import TimeLimitExceeded
    from celery import Task
    from celery.worker.request import Request

    class MailRequest(Request):  # type: ignore[misc]
        """Settle a task that exceeds its hard ``time_limit`` like one that has failed.

        Celery 5.7 calls ``on_failure`` in that case, Celery 5.4 does not. This class calls it before the task is
        acknowledged.
        """

        def on_timeout(self, soft: bool, timeout: float) -> None:
            """Settle the message. Runs in the worker's main process."""
            if soft:
                super().on_timeout(soft, timeout)
                return
            try:
                self.task.on_failure(TimeLimitExceeded(timeout), self.id, self.args, self.kwargs, None)
            except Exception:
                logger.exception("%s: cannot settle the message of a task that exceeded its time limit", self.id)
            self.task.settled.add(self.id)
            try:
                super().on_timeout(soft, timeout)
            finally:
                self.task.settled.discard(self.id)

    class MailTask(Task):  # type: ignore[misc]
        """Handle the success or the final failure of a message."""

        abstract = True
        Request = MailRequest
        #: IDs of tasks that ``MailRequest`` has settled.
        settled: ClassVar[set[str]] = set()
        report: Callable[[bytes, str], object] | None = None
        dead_letters: Path | None = None

        def on_success(self, value: Any, task_id: str, arguments: Any, keywords: Any) -> None:
            """Remove the stored message."""
            _settle(arguments[1])

        def on_failure(self, error: Exception, task_id: str, arguments: Any, keywords: Any, info: Any) -> None:
            """Report the message to its sender, and keep it as a dead letter."""
            if task_id in self.settled:
                return
            envelope, content = read_envelope(arguments[0]), read_content(arguments[1])
            try:
                message = content.read()
            except OSError:
                text = "%s: cannot read %s; it stays in the store, and no report is sent"
                logger.exception(text, envelope.id, content.location)
                return
            is_kept = self.dead_letters is not None and _keep(self.dead_letters, envelope, message, error)
            # A report on a message with the null sender could loop (RFC 5321 section 6.1), so none is sent.
            is_told = self.report is not None and not envelope.sender and self.dead_letters is None
            if self.report is not None and envelope.sender:
                try:
                    self.report(make_report(envelope, message, error), envelope.sender)
                    is_told = True
                except Exception:
                    logger.exception("%s: report raised; its sender %s gets none", envelope.id, envelope.sender)
            if is_kept or is_told:  # else a stored message stays
                _settle(arguments[1])

    return MailTask


def _keep(folder: Path, envelope: MailEnvelope, message: bytes, error: BaseException) -> bool:
    """Keep a dead letter; return False if that is impossible, so that its sender still gets a report."""
    about = json.dumps({**envelope._asdict(), "error": f"{type(error).__name__}: {error}"}, indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / f"{envelope.id}.json", about.encode())
        write_durably(folder / f"{envelope.id}.eml", message)
    except OSError:
        logger.exception("%s: cannot keep the dead letter in %s", envelope.id, folder)
        return False
    return True


def make_report(envelope: MailEnvelope, message: bytes, error: BaseException) -> bytes:
    """Return the report that a message could not be delivered (RFC 3464)."""
    reply = Reply(554, f"5.3.0 {type(error).__name__}")
    return delivery_report(
        [RecipientStatus(recipient=each, action="failed", reply=reply) for each in envelope.recipients],
        sender=envelope.sender,
        hostname=envelope.server,
        message=message,
        arrival=datetime.fromtimestamp(envelope.time, UTC),
    )


def _settle(content: Mapping[str, str]) -> None:
    """Remove a stored message, and leave a mark that it has been processed."""
    if "path" in content:
        stored_message(content["path"]).settle()
