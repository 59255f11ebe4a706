"""SCRAM-SHA-256-PLUS: channel binding, with scramp's client at the other end."""

from __future__ import annotations

import hashlib
import ssl
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from gevent import ssl as gevent_ssl
from scramp import ScramClient  # type: ignore[import-untyped]
from scramp.core import CBindData  # type: ignore[import-untyped]

from greensmtp.middleware import Auth
from greensmtp.protocol.sasl.channel_binding import end_point_binding
from greensmtp.testing import Peer, dial
from tests.helpers import b64
from tests.middleware.scram import USERS, log_in, log_in_as

if TYPE_CHECKING:
    from pathlib import Path

    from greensmtp.testing.fixtures import MakeServer
    from tests.conftest import Certificate


def secured(
    smtp_server: MakeServer, certificate: Any, version: ssl.TLSVersion, auth: Auth, *, starttls: bool = False
) -> Peer:
    server = smtp_server(
        start=False,
        middleware=[auth],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=not starttls,
    )
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    peer = dial(server, source=("192.0.2.1", 4711))
    if starttls:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
    peer.start_tls(context)
    if starttls:
        peer.line("EHLO x")
        assert "SCRAM-SHA-256-PLUS" in peer.expect("250")
    else:
        assert "SCRAM-SHA-256-PLUS" in peer.hello()
    return peer


def bound(peer: Peer, kind: str) -> Any:
    if kind == "tls-unique":
        data = peer.socket.get_channel_binding(kind)
    else:
        data = CBindData.from_der(peer.socket.getpeercert(True)).data
    return ScramClient(["SCRAM-SHA-256-PLUS"], "jo", "sesame", channel_binding=(kind, data))


@pytest.mark.parametrize("starttls", [False, True])
@pytest.mark.parametrize(
    ("version", "kind"),
    [
        (ssl.TLSVersion.TLSv1_2, "tls-server-end-point"),
        (ssl.TLSVersion.TLSv1_2, "tls-unique"),
    ],
)
def test_a_login_bound_to_the_certificate(
    smtp_server: MakeServer, certificate: Certificate, version: ssl.TLSVersion, kind: str, starttls: bool
) -> None:
    with secured(smtp_server, certificate, version, Auth(USERS), starttls=starttls) as peer:
        assert log_in(peer, bound(peer, kind), "SCRAM-SHA-256-PLUS").startswith("235 2.7.0")


def test_the_binding_is_checked_with_an_authzid_too(smtp_server: MakeServer, certificate: Certificate) -> None:
    with secured(smtp_server, certificate, ssl.TLSVersion.TLSv1_2, Auth(USERS)) as peer:
        header = "p=tls-server-end-point,a=jo,"
        assert log_in_as(peer, header, bound_to=b"x" * 32).startswith("535")
        data = CBindData.from_der(peer.socket.getpeercert(True)).data
        assert log_in_as(peer, header, bound_to=data).startswith("235")


def test_another_binding_is_refused(smtp_server: MakeServer, certificate: Certificate) -> None:
    """An attacker in the middle has another certificate."""
    with secured(smtp_server, certificate, ssl.TLSVersion.TLSv1_2, Auth(USERS)) as peer:
        other = ("tls-server-end-point", b"x" * 32)
        client = ScramClient(["SCRAM-SHA-256-PLUS"], "jo", "sesame", channel_binding=other)
        assert log_in(peer, client, "SCRAM-SHA-256-PLUS").startswith("535 5.7.8")


@pytest.mark.parametrize("starttls", [False, True])
def test_plus_is_not_offered_over_tls_1_3(smtp_server: MakeServer, certificate: Certificate, starttls: bool) -> None:
    """Clients bind to tls-exporter there, which Python's ssl does not offer, so -PLUS would fail."""
    auth = Auth(USERS)
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    server = smtp_server(start=False, middleware=[auth], implicit_tls=not starttls, **files)
    with dial(server) as peer:
        if starttls:
            peer.hello()
            peer.line("STARTTLS")
            peer.expect("220")
        peer.start_tls()
        assert peer.socket.version() == "TLSv1.3"
        if starttls:
            peer.line("EHLO x")
        greeting = peer.expect("250") if starttls else peer.hello()
        assert "SCRAM-SHA-256 CRAM-MD5" in greeting
        assert "PLUS" not in greeting
        for flag in ("p=tls-server-end-point", "p=tls-exporter"):
            peer.line(f"AUTH SCRAM-SHA-256-PLUS {b64(flag + ',,n=jo,r=nonce')}")
            peer.expect("504 5.5.4")
        assert log_in_as(peer, "y,,").startswith("235")  # it could bind, and has not been offered to


@pytest.mark.parametrize("flag", ["p=tls-exporter", "p=tls-unique-for-telnet", "p=x", "n", "y"])
def test_an_unavailable_binding_is_no_failed_login(
    smtp_server: MakeServer, certificate: Certificate, flag: str
) -> None:
    asked = []

    class Users:
        def get_password(self, username: str) -> str | None:
            asked.append(username)
            return USERS.get(username)

    auth = Auth(Users(), failures_by_client="1/minute", failures_by_account="1/minute")
    with secured(smtp_server, certificate, ssl.TLSVersion.TLSv1_2, auth) as peer:
        for _ in range(3):
            peer.line(f"AUTH SCRAM-SHA-256-PLUS {b64(flag + ',,n=jo,r=nonce')}")
            peer.expect("504 5.5.4 Unsupported channel binding type" if flag.startswith("p=") else "535")
        assert asked == []
        assert log_in(peer, bound(peer, "tls-server-end-point"), "SCRAM-SHA-256-PLUS").startswith("235")


@pytest.mark.parametrize(
    ("mechanism", "header", "reply"),
    [
        ("SCRAM-SHA-256", "n,,", "334"),
        ("SCRAM-SHA-256", "y,,", "535"),  # an attacker has removed -PLUS from the offer
        ("SCRAM-SHA-256", "p=tls-server-end-point,,", "535"),
        ("SCRAM-SHA-256-PLUS", "n,,", "535"),
        ("SCRAM-SHA-256-PLUS", "y,,", "535"),
        ("SCRAM-SHA-256-PLUS", "p=tls-exporter,,", "504"),
    ],
)
def test_binding_flags(
    smtp_server: MakeServer, certificate: Certificate, mechanism: str, header: str, reply: str
) -> None:
    with secured(smtp_server, certificate, ssl.TLSVersion.TLSv1_2, Auth(USERS)) as peer:
        peer.line(f"AUTH {mechanism} {b64(header + 'n=jo,r=nonce')}")
        peer.expect(reply)


def test_the_flag_y_is_accepted_where_plus_is_not_offered(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, middleware=[Auth(USERS)])) as peer:
        peer.hello()
        peer.line(f"AUTH SCRAM-SHA-256 {b64('y,,n=jo,r=nonce')}")
        peer.expect("334")


def test_plus_is_offered_for_a_context_with_an_unknown_certificate(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
    """-PLUS is offered in TLS 1.2 only, where there is something to bind to."""
    for version, there in ((ssl.TLSVersion.TLSv1_3, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certfile, certificate.keyfile)
        context.maximum_version = version
        server = smtp_server(start=False, middleware=[Auth(USERS)], ssl_context=context, implicit_tls=True)
        assert server.certificate is None
        with dial(server) as peer:
            peer.start_tls()
            assert ("SCRAM-SHA-256-PLUS" in peer.hello()) == there


def test_the_binding_is_what_a_client_makes_of_the_certificate(certificate: Certificate) -> None:
    pem = certificate.certfile.read_text()
    der = ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END") + len("-----END CERTIFICATE-----")])
    assert end_point_binding(der) == hashlib.sha256(der).digest()
    assert end_point_binding(b"not a certificate") is None


@pytest.mark.parametrize(
    ("key", "signed_with", "bound_by"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), hashes.SHA512(), hashlib.sha512),
        (lambda: ec.generate_private_key(ec.SECP384R1()), hashes.SHA384(), hashlib.sha384),
        (ed25519.Ed25519PrivateKey.generate, None, None),  # has no hash function of its own
    ],
)
def test_the_binding_has_the_hash_of_the_signature(key: Any, signed_with: Any, bound_by: Any) -> None:
    private = key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.example.com")])
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1, datetime(2020, 1, 1), datetime(2040, 1, 1))
    der = builder.sign(private, signed_with).public_bytes(serialization.Encoding.DER)
    assert end_point_binding(der) == (bound_by and bound_by(der).digest())


def test_the_key_may_stand_before_the_certificate(smtp_server: MakeServer, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    blob = trustme.CA().issue_cert("mx.example.com").private_key_and_cert_chain_pem
    blob.write_to_path(str(both))
    server = smtp_server(start=False, certfile=both)
    assert server.certificate is not None
    assert ssl.DER_cert_to_PEM_cert(server.certificate).strip() in both.read_text()
