"""The workers' side: a task that gets each message, here to write it to a folder."""

import os
from pathlib import Path

from celery import Celery

from greensmtp.delivery.handed_off import MailContent, MailEnvelope
from greensmtp.delivery.mail_task import mail_task

BROKER = os.environ.get("BROKER", "redis://127.0.0.1:6379/0")
FOLDER = Path(os.environ.get("PIPELINE", "."))

app = Celery("pipeline", broker=BROKER)
app.conf.update(
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    # Redis gives the tasks of a dead worker to another one after so many seconds. It must be longer than a task takes,
    # and than the longest wait between two tries.
    broker_transport_options={"visibility_timeout": float(os.environ.get("VISIBILITY", "3600"))},
)


@mail_task(app, "tasks.receive", max_retries=5, retry_backoff_max=60, dead_letters=FOLDER / "dead")
def receive(envelope: MailEnvelope, content: MailContent) -> None:
    """Keep the message under its ID: if the task comes twice, there is still one file."""
    folder = FOLDER / "received"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{envelope.id}.{os.getpid()}"
    partial.write_bytes(f"X-For: {', '.join(envelope.recipients)}\r\n".encode() + content.read())
    partial.replace(folder / f"{envelope.id}.eml")
