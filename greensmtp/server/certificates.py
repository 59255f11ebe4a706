"""The certificates of a server: one for each host name, taken up again when their files change."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic, time
from typing import Any, Literal, NamedTuple

from gevent.lock import RLock

from greensmtp._log import logger
from greensmtp.errors import ArgumentError
from greensmtp.protocol.mailbox import ascii_domain
from greensmtp.server.tls import ServerContext, end_of, names_in, server_context
from greensmtp.thread_pool import in_thread_pool

#: Seconds between two looks at the files. A look precedes a handshake, so an idle server looks at nothing.
CHECK_SECONDS = 2.0

#: Seconds before the end of a certificate in which it is warned of, when it is loaded: tools renew them earlier.
WARN_SECONDS = 14 * 86400

ClientAuth = Literal["optional", "required", False]

#: What tells that a file has changed: inode, time and size of what the path leads to.
_Stamp = tuple[int, int, int] | None


class Certificate(NamedTuple):
    """A certificate and its private key.

    :param certfile: PEM, the certificate followed by its chain.
    :param keyfile: PEM; None: the key is in ``certfile``.
    :param names: the host names that it is for, like ``mx.example.com`` or ``*.example.com``; by default those in the
        certificate.
    """

    certfile: str | Path
    keyfile: str | Path | None = None
    names: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The paths."""
        return tuple(str(each) for each in (self.certfile, self.keyfile) if each is not None)


class Certificates:
    """TLS of a server: its certificates, versions and ciphers, and what it asks clients for.

    A client that names a host (SNI) gets the certificate of that name; all others get the first one. When a file
    changes, all are read again before the next handshake. If that fails, because a key does not match its certificate
    yet for example, those from before stay in use, and a line is logged.

    One object may serve several servers.

    :param certificates: the first one is the default.
    :param minimum: the lowest version, ``"1.2"`` or ``"1.3"``.
    :param ciphers: those of TLS 1.2, in OpenSSL's syntax. None: Python's.
    :param tickets: let clients resume sessions by tickets. Some large senders fail when they do.
    :param client_ca: PEM, the authorities whose certificates clients may present.
    :param client_auth: ask clients for a certificate: ``"optional"``, or ``"required"``: the handshake fails without
        one.
    :raises ValueError: a file cannot be read, or an argument is invalid; the text says which.
    """

    def __init__(
        self,
        *certificates: Certificate,
        minimum: str = "1.2",
        ciphers: str | None = None,
        tickets: bool = False,
        client_ca: str | Path | None = None,
        client_auth: ClientAuth = False,
    ) -> None:
        if not certificates:
            raise ValueError("Certificates takes at least one Certificate")
        if client_auth and client_ca is None:
            raise ArgumentError("client_auth", "needs client_ca, the authorities of clients' certificates")
        self._certificates = tuple(Certificate(*each) for each in certificates)
        self._options: dict[str, Any] = {
            "minimum": minimum,
            "ciphers": ciphers,
            "tickets": tickets,
            "client_ca": client_ca,
            "client_auth": client_auth,
        }
        self._files = [file for each in self._certificates for file in each.files]
        self._files += [] if client_ca is None else [str(client_ca)]
        self._stamps = _stamps(self._files)
        self._loaded = _Loaded(self._certificates, self._options)
        self._checked = monotonic()
        self._checking = RLock()
        #: The error that was logged last.
        self._error = ""

    @property
    def context(self) -> ServerContext:
        """The context for handshakes; it changes to that of the client's SNI by itself."""
        return self._loaded.default

    def refresh(self) -> ServerContext:
        """Look whether files have changed, if the last look was a while ago; return the context.

        In a greenlet; the files are read in the thread pool.
        """
        if monotonic() - self._checked >= CHECK_SECONDS and self._checking.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._checked = monotonic()
                self._checking.release()
        return self._loaded.default

    def _refresh(self) -> None:
        stamps = in_thread_pool(_stamps, self._files)
        if stamps == self._stamps:
            return
        try:
            self._loaded = in_thread_pool(_Loaded, self._certificates, self._options)
        except (ValueError, OSError) as error:
            # The stamps stay, so the next look tries again.
            if str(error) != self._error:
                self._error = str(error)
                logger.error("the certificates that have changed cannot be used: %s; the old ones stay in use", error)
            return
        self._stamps, self._error = stamps, ""
        logger.info("the certificates have changed: %s", ", ".join(self._files))

    def __repr__(self) -> str:
        return f"<Certificates {', '.join(self._files)}>"


class _Loaded:
    """The contexts of all certificates, as their files were at one moment."""

    def __init__(self, certificates: Sequence[Certificate], options: Mapping[str, Any]) -> None:
        self._names: dict[str, ServerContext] = {}
        contexts = []
        for each in certificates:
            context = server_context(each.certfile, each.keyfile, **options)
            contexts.append(context)
            for name in each.names or names_in(each.certfile):
                self._names.setdefault(_normal(name), context)
        for certfile in dict.fromkeys(each.certfile for each in certificates):
            _warn_of_end(certfile)
        self.default = contexts[0]
        if len(contexts) > 1 or options["client_auth"]:
            self.default.sni_callback = self._choose

    def _choose(self, socket: Any, name: str | None, context: ssl.SSLContext) -> None:
        """Use the context of the name that the client has sent (RFC 6066 section 3). Called by OpenSSL."""
        found = self.find(name)
        if found is not self.default:
            socket.context = found

    def find(self, name: str | None) -> ServerContext:
        """Return the context of a host name: by the name itself, by a wildcard for its first label, or the default."""
        if not name:
            return self.default
        name = _normal(name)
        found = self._names.get(name) or self._names.get("*." + name.partition(".")[2])
        return self.default if found is None else found


def _warn_of_end(certfile: str | Path) -> None:
    left = end_of(certfile) - time()
    if left < 0:
        logger.warning("the certificate %s has expired", certfile)
    elif left < WARN_SECONDS:
        logger.warning("the certificate %s expires in %.1f days", certfile, left / 86400)


def _normal(name: str) -> str:
    return ascii_domain(name).lower().rstrip(".")


def _stamps(files: Iterable[str]) -> list[_Stamp]:
    return [_stamp(file) for file in files]


def _stamp(file: str) -> _Stamp:
    try:
        found = Path(file).stat()  # follows symlinks, which is how some tools swap certificates
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
