"""The policy on SASL mechanisms: those that a backend can serve, and those that a connection may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gevent.ssl import SSLSocket

from greensmtp._suggest import did_you_mean
from greensmtp.errors import ArgumentError
from greensmtp.middleware.auth.credentials import Backend, MechanismRelay
from greensmtp.middleware.auth.resolver import CredentialResolver
from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl.channel_binding import END_POINT, UNIQUE, end_point_binding
from greensmtp.protocol.sasl.server import MECHANISMS, Need
from greensmtp.session import Session

_PLUS = "SCRAM-SHA-256-PLUS"
_SCRAM = frozenset({_PLUS, "SCRAM-SHA-256"})
_RANKS = {name: rank for rank, name in enumerate(MECHANISMS)}

#: What a backend needs in order to serve a mechanism, for errors.
_NEEDS: Mapping[Need, str] = {
    "check": "a check of passwords",
    "token": "check_token",
    "secret": "the passwords themselves",
    "keys": "the passwords themselves, or SCRAM keys",
    "certificate": "Auth(external=True)",
}

#: Returns the user that a client's certificate names, as ``session.client_certificate`` has it; None: nobody.
CertificateUser = Callable[[Mapping[str, Any]], str | None]


class MechanismPolicy:
    """The mechanisms of one Auth.

    :param wanted: the names to offer; None: all that the backend can serve.
    :param certificate_user: the users of EXTERNAL; None: it is not offered.
    :raises ValueError, TypeError: a name is unknown, the backend cannot serve it, or no mechanism is left.
    :raises ImportError: SCRAM is wanted, and scramp is missing.
    """

    def __init__(
        self,
        backend: Backend,
        resolver: CredentialResolver,
        wanted: Iterable[str] | None,
        *,
        allow_plaintext: bool,
        certificate_user: CertificateUser | None = None,
    ) -> None:
        self._relays = backend if isinstance(backend, MechanismRelay) else None
        self._serves = resolver.serves
        self._allow_plaintext = allow_plaintext
        self._certificate_user = certificate_user
        able = [name for name, row in MECHANISMS.items() if self._can_serve(row.needs)]
        names = able if wanted is None else _check_names(wanted)
        for name in names:
            if name not in able:
                raise ArgumentError(
                    "mechanisms",
                    f"are limited by the backend: it cannot serve {name}, which needs {_NEEDS[_needs(name)]}",
                )
        if self._serves & {"keys"} and not _SCRAM.isdisjoint(names) and not _have_scramp():
            if wanted is not None:
                raise ModuleNotFoundError("SCRAM needs scramp: pip install 'greensmtp[scram]'", name="scramp")
            names = [name for name in names if name not in _SCRAM]
        if not names:
            raise ValueError("no mechanism is left to offer: pass mechanisms, or a backend that can serve some")
        #: The names, the strongest first.
        self.mechanisms = tuple(sorted(names, key=_RANKS.__getitem__))
        #: True if SCRAM is among them, and not relayed.
        self.has_scram = "keys" in self._serves and not _SCRAM.isdisjoint(self.mechanisms)
        #: True if none of them may be used without TLS.
        self.needs_tls = not allow_plaintext and all(MECHANISMS[name].plaintext for name in self.mechanisms)

    def _can_serve(self, need: Need) -> bool:
        if need == "certificate":
            return self._certificate_user is not None
        return need in self._serves or self._relays is not None

    def is_relayed(self, name: str) -> bool:
        """True if the backend holds this exchange itself."""
        return self._relays is not None and _needs(name) not in self._serves and name != "EXTERNAL"

    def client(self, session: Session) -> str | None:
        """Return the user that the client's certificate names; None if there is none, or EXTERNAL is not offered."""
        if self._certificate_user is None or "EXTERNAL" not in self.mechanisms:
            return None
        certificate = session.client_certificate
        return None if certificate is None else self._certificate_user(certificate) or None

    def usable(self, session: Session, bindings: Mapping[str, bytes]) -> list[str]:
        """Return the mechanisms that this connection may use, the strongest first.

        :raises BaseException: whatever a backend raises when it is asked for its mechanisms.
        """
        relayed = frozenset() if self._relays is None else self._relays.offered_mechanisms()
        secure = session.tls or self._allow_plaintext
        return [
            name
            for name in self.mechanisms
            if (secure or not MECHANISMS[name].plaintext)
            and (bindings or name != _PLUS)
            and (name != "EXTERNAL" or self.client(session) is not None)
            and (name in relayed or not self.is_relayed(name))
        ]

    def bindings(self, session: Session) -> Mapping[str, bytes]:
        """Return the channel bindings of this connection; none where -PLUS is not offered."""
        if not session.tls or _PLUS not in self.mechanisms or self.is_relayed(_PLUS):
            return {}
        socket = session.socket
        if not isinstance(socket, SSLSocket):
            return {}  # TLS has ended at a proxy, to which the client would bind
        # With TLS 1.3 a client binds to tls-exporter (RFC 9266), which Python's ssl does not have. It would choose
        # -PLUS, as the strongest mechanism, and could not log in.
        if socket.version() == "TLSv1.3":
            return {}
        # That of the name which the client has sent (SNI), or else the default one.
        certificate = getattr(socket.context, "certificate", None)
        found = {
            END_POINT: None if certificate is None else end_point_binding(certificate),
            UNIQUE: socket.get_channel_binding(UNIQUE),
        }
        return {name: data for name, data in found.items() if data}

    def refusal(self, session: Session, name: str) -> Reply:
        """Return the reply to a mechanism that this connection may not use."""
        if name in self.mechanisms and MECHANISMS[name].plaintext and not session.tls and not self._allow_plaintext:
            return canned.AUTH_NEEDS_TLS
        # Weaker than every mechanism here: it was left out on purpose.
        if _RANKS.get(name, -1) > max(map(_RANKS.__getitem__, self.mechanisms)):
            return canned.AUTH_TOO_WEAK
        return canned.AUTH_UNKNOWN_MECHANISM


def user_of(certificate: Mapping[str, Any]) -> str | None:
    """Return the mail address in a client's certificate (subjectAltName rfc822Name), or else its common name."""
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "email":
            return str(value)
    names = [value for parts in certificate.get("subject", ()) for key, value in parts if key == "commonName"]
    return str(names[-1]) if names else None


def _needs(name: str) -> Need:
    return MECHANISMS[name].needs


def _check_names(wanted: Any) -> list[str]:
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise TypeError(f"mechanisms takes several names, like ['PLAIN', 'LOGIN'], not {wanted!r}")
    names = [str(name).upper() for name in wanted]
    for name in names:
        if name not in MECHANISMS:
            hint = did_you_mean(name, MECHANISMS)
            raise ArgumentError("mechanisms", f"takes some of {', '.join(MECHANISMS)}, not {name!r}{hint}")
    return list(dict.fromkeys(names))


def _have_scramp() -> bool:
    try:
        import scramp  # type: ignore[import-untyped]  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
