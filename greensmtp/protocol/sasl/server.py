"""The server's SASL mechanisms (RFC 4422), the strongest first. Bytes in and out, without base64 and without a socket.

Each mechanism is a generator as exchange.py describes it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Literal

from greensmtp.protocol import canned
from greensmtp.protocol.sasl.exchange import (
    Channel,
    CredentialQuery,
    Exchange,
    Identity,
    KeysQuery,
    PasswordQuery,
    Refused,
    ScramKeys,
    SecretQuery,
    TokenQuery,
)
from greensmtp.protocol.sasl.messages import (
    parse_cram_md5,
    parse_external,
    parse_name,
    parse_oauthbearer,
    parse_password,
    parse_plain,
    parse_scram_first,
    parse_text,
    parse_xoauth2,
)

#: What a credential store must be able to do for a mechanism: check a password, check a token, return the password, or
#: return SCRAM's keys. ``certificate``: nothing, since TLS has checked the client's certificate.
Need = Literal["check", "token", "secret", "keys", "certificate"]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One mechanism of the table."""

    name: str
    needs: Need
    #: An eavesdropper could log in with what the client sends.
    plaintext: bool
    #: AUTH may come with an initial response (RFC 4954 section 4).
    takes_initial: bool
    begin: Callable[[Channel], Exchange]
    #: Return the user's name in the client's first response, for a server that passes the exchange on.
    name_in: Callable[[bytes], str]


def _plain(channel: Channel) -> Exchange:
    """RFC 4616."""
    authzid, name, password = parse_plain((yield b""))
    user = yield PasswordQuery(username=name, mechanism="PLAIN", authzid=authzid, password=parse_password(password))
    # An authzid equal to the name means the user itself, even if the store knows the user by another name.
    return _identity(user, (user or "") if authzid == name else authzid, "PLAIN")


def _external(channel: Channel) -> Exchange:
    """RFC 4422 appendix A: TLS has authenticated the client by its certificate."""
    authzid = parse_external((yield b""))
    user = parse_name(channel.client or "")
    yield CredentialQuery(username=user, mechanism="EXTERNAL", authzid=authzid)
    return _identity(user, authzid, "EXTERNAL")


def _login(channel: Channel) -> Exchange:
    """Never standardised. The server sends a challenge first, but many clients send the name together with AUTH."""
    name = parse_name(parse_text((yield b"Username:")))
    password = parse_password(parse_text((yield b"Password:")))
    user = yield PasswordQuery(username=name, mechanism="LOGIN", password=password)
    return _identity(user, "", "LOGIN")


def _cram_md5(channel: Channel) -> Exchange:
    """RFC 2195."""
    challenge = f"<{token_hex(16)}@{channel.hostname}>".encode()
    name, digest = parse_cram_md5((yield challenge))
    secret: str | None = yield SecretQuery(username=name, mechanism="CRAM-MD5")
    # An unknown user takes as long as a known one.
    stand_in = token_hex(16)
    key = (secret or stand_in).encode("utf-8", "surrogatepass")
    expected = hmac.new(key, challenge, "md5").hexdigest()
    right = hmac.compare_digest(expected, digest)
    return _identity(name if right and secret else None, "", "CRAM-MD5")


def _scram(channel: Channel) -> Exchange:
    return (yield from _scram_sha_256(channel, "SCRAM-SHA-256"))


def _scram_plus(channel: Channel) -> Exchange:
    return (yield from _scram_sha_256(channel, "SCRAM-SHA-256-PLUS"))


def _scram_sha_256(channel: Channel, mechanism: str) -> Exchange:
    """RFC 7677, with RFC 5802 section 6 for the channel binding."""
    from scramp import ScramMechanism  # type: ignore[import-untyped]

    first = yield b""
    flag, authzid, name = parse_scram_first(first)
    binding = flag.removeprefix("p=") if flag.startswith("p=") else None
    # None of these is a failed login: the client has shown nothing yet.
    if (binding is not None) != mechanism.endswith("-PLUS"):
        raise Refused(canned.AUTH_INVALID, is_failure=False)
    if binding is not None and binding not in channel.bindings:
        # RFC 5802's "unsupported-channel-binding-type"; the client may try another mechanism.
        raise Refused(canned.AUTH_UNKNOWN_BINDING, is_failure=False)
    if flag == "y" and channel.bindings:
        # The client supports channel binding and believes that we do not: an attacker has removed -PLUS from our offer.
        raise Refused(canned.AUTH_INVALID, is_failure=False)
    keys: ScramKeys = yield KeysQuery(username=name, mechanism=mechanism, authzid=authzid)
    stored = (keys.salt, keys.stored_key, keys.server_key, keys.iterations)
    bound = None if binding is None else (binding, channel.bindings[binding])
    server: Any = ScramMechanism(mechanism).make_server(lambda _name: stored, channel_binding=bound)
    try:
        if authzid:
            # scramp has no authzid: it gets the message without it, and then the header that the client has signed.
            _, said, bare = first.decode().split(",", 2)
            server.set_client_first(f"{flag},,{bare}")
            server.gs2_header = _Header(f"{flag},{said},", bound)
        else:
            server.set_client_first(first.decode())
        challenge: str = server.get_server_first()
    except Exception:  # scramp's errors, and any that a malformed message causes in it
        raise Refused(canned.AUTH_MALFORMED) from None
    final = parse_text((yield challenge.encode()))
    try:
        server.set_client_final(final)
        proof: str = server.get_server_final()
    except Exception:
        raise Refused(canned.AUTH_INVALID) from None
    if not keys.known:
        raise Refused(canned.AUTH_INVALID)
    # Data that comes with success is sent as a challenge, which gets an empty answer (RFC 4954 section 4).
    if (yield proof.encode()):
        raise Refused(canned.AUTH_MALFORMED)
    return _identity(name, authzid, mechanism)


class _Header:
    """Replaces scramp's header, which has no authzid. (If scramp stopped using it, each proof would be refused.)"""

    def __init__(self, header: str, bound: tuple[str, bytes] | None) -> None:
        self._input = header.encode() + (b"" if bound is None else bound[1])

    def make_cbind_input(self, binding: object) -> bytes:
        """Return the value of ``c=`` in the client's final message (RFC 5802 section 7)."""
        return self._input


def _oauthbearer(channel: Channel) -> Exchange:
    """RFC 7628. The name may be missing; then the token names the user."""
    name, token = parse_oauthbearer((yield b""))
    return (yield from _oauth(name, token, "OAUTHBEARER"))


def _xoauth2(channel: Channel) -> Exchange:
    """The predecessor of RFC 7628 at Google and Microsoft."""
    name, token = parse_xoauth2((yield b""))
    return (yield from _oauth(name, token, "XOAUTH2"))


def _oauth(name: str, token: str, mechanism: str) -> Exchange:
    user = None
    if token:
        user = yield TokenQuery(username=name, mechanism=mechanism, token=token)
    if user is None:
        # The client gets the error as a challenge, and acknowledges it (RFC 7628 section 3.2.3).
        yield _OAUTH_ERROR
    # In OAUTHBEARER the name is the user to act as (RFC 7628 section 3.1); the store says whose token it is.
    return _identity(user, name if user != name else "", mechanism)


_OAUTH_ERROR = json.dumps({"status": "invalid_token", "schemes": "bearer"}).encode()


def _identity(user: str | None, authzid: str, mechanism: str) -> Identity:
    if user is None:
        raise Refused(canned.AUTH_INVALID)
    return Identity(user, authzid, mechanism)


def _scram_name(response: bytes) -> str:
    return parse_scram_first(response)[2]


#: The strongest first.
MECHANISMS: Mapping[str, Mechanism] = {
    mechanism.name: mechanism
    for mechanism in (
        Mechanism("EXTERNAL", "certificate", False, True, _external, parse_external),
        Mechanism("SCRAM-SHA-256-PLUS", "keys", False, True, _scram_plus, _scram_name),
        Mechanism("SCRAM-SHA-256", "keys", False, True, _scram, _scram_name),
        Mechanism("CRAM-MD5", "secret", False, False, _cram_md5, lambda response: parse_cram_md5(response)[0]),
        Mechanism("OAUTHBEARER", "token", True, True, _oauthbearer, lambda response: parse_oauthbearer(response)[0]),
        Mechanism("XOAUTH2", "token", True, True, _xoauth2, lambda response: parse_xoauth2(response)[0]),
        Mechanism("PLAIN", "check", True, True, _plain, lambda response: parse_plain(response)[1]),
        Mechanism("LOGIN", "check", True, True, _login, lambda response: parse_name(parse_text(response))),
    )
}
