"""Store large messages in an S3 bucket, ``s3://bucket/prefix``, with boto3; _store.py is the same for a folder.

Rules of this file:

- boto3 finds endpoint, region and credentials itself: environment variables, ``~/.aws``, the role of the machine. They
  never appear in greensmtp.toml, in a URL or in a log.
- boto3 blocks, so the store's methods work in the thread pool. A client may be used by many threads, but not in a child
  process, so each process makes its own.
- Every exception of boto3 becomes an OSError, so a failing bucket is handled like a failing disk.
- Objects: ``prefix/ID.eml``, and for ``resend`` ``prefix/tasks/ID`` (what to do with it) and ``prefix/done/ID``.
- Old objects are not removed here: the bucket needs a lifecycle rule.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, BinaryIO, ParamSpec, TypeVar
from urllib.parse import urlsplit

from greensmtp.errors import ArgumentError
from greensmtp.thread_pool import BoundedPool, Steps, in_thread_pool

#: Timeouts of a connection and of a response, in seconds. boto3 makes three attempts in total.
_CONNECT_TIMEOUT, _READ_TIMEOUT = 5.0, 30.0

#: How many of gevent's ten threads one store may use for messages, so that one that hangs leaves threads for others.
THREADS = 5

logger = logging.getLogger("greensmtp")

P = ParamSpec("P")
T = TypeVar("T")


class S3Store:
    """Messages in a bucket; its methods are called in the hub and run in the thread pool.

    :raises ArgumentError: the URL has no bucket, or parts besides bucket and prefix.
    :raises ModuleNotFoundError: boto3 is missing; the text says how to install it.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.netloc != parts.hostname or parts.query or parts.fragment:
            raise ArgumentError("store", "expected a folder, or a bucket like 's3://bucket/prefix'")
        try:
            import boto3  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError("a store in S3 needs boto3: pip install 'greensmtp[s3]'") from None
        self._bucket = parts.hostname
        self._prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self._pool = BoundedPool(THREADS)

    def start(self) -> None:
        """Check that the bucket can be reached.

        :raises OSError: it cannot be reached.
        """
        try:
            in_thread_pool(_ask, "head_bucket", Bucket=self._bucket)
        except OSError as error:
            raise OSError(
                errno.EIO,
                f"cannot use the bucket {self._bucket!r}: {error.strerror}; check its name, and the endpoint, "
                "region and credentials that boto3 finds",
            ) from None

    def write(self, identifier: str, open_message: Callable[[], BinaryIO]) -> str:
        """Store a message, and return its URL. On return, S3 has the whole message.

        :param open_message: called in a thread of the pool.
        :raises OSError: it cannot be stored.
        """
        url = f"s3://{self._bucket}/{self._prefix}{identifier}.eml"
        upload = partial(_call, _upload, self._bucket, f"{self._prefix}{identifier}.eml", open_message)
        write_or_remove(self._pool, upload, S3Message(url).remove)
        return url

    def note(self, identifier: str, text: str) -> None:
        """Store what to do with a message, until the message is settled.

        :raises OSError: it cannot be written.
        """
        key = f"{self._prefix}tasks/{identifier}"
        self._pool.call(_ask, "put_object", Bucket=self._bucket, Key=key, Body=text.encode())

    def overdue(self, seconds: float) -> list[str]:
        """Return the notes of unsettled messages whose notes are older than ``seconds``.

        Each note that is returned is written again, so that its age starts at 0.
        """
        return in_thread_pool(self._overdue, time.time() - seconds)

    def remove(self, url: str) -> None:
        """Remove a stored message, if it is still there."""
        self._pool.call(S3Message(url).remove)

    def _overdue(self, before: float) -> list[str]:
        found = []
        for each in _call(_list_all, self._bucket, f"{self._prefix}tasks/"):
            key = each["Key"]
            message = S3Message(f"s3://{self._bucket}/{self._prefix}{key.rpartition('/')[2]}.eml")
            if message.is_done():
                _ask("delete_object", Bucket=self._bucket, Key=key)
            elif each["LastModified"].timestamp() < before:
                try:
                    text = _call(_read, self._bucket, key)
                    _ask("put_object", Bucket=self._bucket, Key=key, Body=text)
                except OSError as error:  # settled in the meantime, or to be tried again at the next call
                    logger.warning("%s: %s", key, error)
                else:
                    found.append(text.decode())
        return found


class S3Message:
    """A stored message as the receiving program sees it, by its URL. Its methods block."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._bucket, self._key = str(parts.hostname), parts.path.lstrip("/")
        folder, _, name = self._key.rpartition("/")
        self._prefix, self._id = f"{folder}/" if folder else "", name.removesuffix(".eml")

    def read(self) -> bytes:
        """Return the content.

        :raises OSError: it cannot be read.
        """
        return _call(_read, self._bucket, self._key)

    def remove(self) -> None:
        """Remove the message."""
        _ask("delete_object", Bucket=self._bucket, Key=self._key)

    def settle(self) -> None:
        """Remove the message, and leave a mark that it has been processed."""
        _ask("put_object", Bucket=self._bucket, Key=f"{self._prefix}done/{self._id}", Body=b"")
        self.remove()
        _ask("delete_object", Bucket=self._bucket, Key=f"{self._prefix}tasks/{self._id}")

    def is_done(self) -> bool:
        """Return True if it has been settled."""
        return _exists(self._bucket, f"{self._prefix}done/{self._id}") and not _exists(self._bucket, self._key)


def write_or_remove(pool: BoundedPool, write: Callable[[], object], remove: Callable[[], object]) -> None:
    """Write in the thread pool. If the wait is interrupted, have what the thread still writes removed afterwards."""
    steps = Steps(pool)
    try:
        steps.run(write)
    except BaseException:
        if steps.busy:
            steps.end(remove)
        raise


def _upload(bucket: str, key: str, open_message: Callable[[], BinaryIO]) -> None:
    from boto3.s3.transfer import TransferConfig

    with open_message() as source:
        # In parts of 8 MB, one after the other, so that no further threads start and memory stays flat.
        _client().upload_fileobj(source, bucket, key, Config=TransferConfig(use_threads=False))


def _read(bucket: str, key: str) -> bytes:
    content: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def _list_all(bucket: str, prefix: str) -> list[dict[str, Any]]:
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [each for page in pages for each in page.get("Contents", ())]


def _ask(name: str, **arguments: Any) -> Any:
    """Call a method of the client. Call this in the thread pool: making the client reads files and may use the network.

    :raises OSError: the call failed.
    """
    return _call(lambda: getattr(_client(), name)(**arguments))


def _exists(bucket: str, key: str) -> bool:
    found = _ask("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(each["Key"] == key for each in found.get("Contents", ()))


def _client() -> Any:
    return _client_of(os.getpid())


@cache
def _client_of(pid: int) -> Any:
    import boto3
    from botocore.config import Config

    timeouts = {"connect_timeout": _CONNECT_TIMEOUT, "read_timeout": _READ_TIMEOUT}
    config = Config(retries={"mode": "standard", "max_attempts": 3}, **timeouts)
    try:
        # Its own session: boto3's default one is not safe if two threads make a client at the same time.
        return boto3.session.Session().client("s3", config=config)
    except ValueError:  # its text is left out: it quotes the URL, which may have a password
        raise OSError(errno.EIO, "S3: boto3 cannot make a client; is the endpoint a URL?") from None


def _call(function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> T:
    """Call a function of boto3.

    :raises OSError: boto3 raised an error.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return function(*arguments, **keywords)
    except ClientError as error:
        about = error.response.get("Error", {})
        raise OSError(errno.EIO, f"S3: {about.get('Code', 'error')} at {error.operation_name}") from None
    except (BotoCoreError, Boto3Error) as error:
        raise OSError(errno.EIO, f"S3: {type(error).__name__}") from None
