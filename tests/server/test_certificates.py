"""Certificates: SNI, renewal, versions and ciphers, tickets, certificates of clients."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent import ssl as gevent_ssl
from hypothesis import given
from hypothesis import strategies as st

from greensmtp import Ack, Certificate, Certificates, Session, SMTPServer
from greensmtp.middleware import Auth, Logging
from greensmtp.server import certificates as module
from greensmtp.server.tls import names_in
from greensmtp.testing.fixtures import MakeServer
from tests import forked
from tests.helpers import b64

AUTHORITY = trustme.CA()


def issue(folder: Path, *names: str, by: trustme.CA = AUTHORITY, **fields: Any) -> Certificate:
    """Write a certificate for these names."""
    made = by.issue_cert(*names, **fields)
    stem = re.sub(r"\W", "_", names[0])
    cert, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    return Certificate(cert, key)


def client_context(**options: Any) -> ssl.SSLContext:
    context: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def shake(server: SMTPServer, name: str | None, context: ssl.SSLContext | None = None) -> Any:
    """Connect with TLS, and return the socket, which has received the banner."""
    connection = gevent.socket.create_connection(("127.0.0.1", server.address[1]), 10)
    if context is None:
        context = client_context()
        context.check_hostname = False
    connection.settimeout(10)
    try:
        secure = context.wrap_socket(connection, server_hostname=name)
    except BaseException:
        connection.close()
        raise
    try:
        assert secure.recv(1000).startswith(b"220")
    except BaseException:
        secure.close()
        raise
    return secure


def names_shown(server: SMTPServer, name: str | None) -> set[str]:
    """Return the names in the certificate that a client of this SNI gets."""
    with shake(server, name) as secure:
        return {value for _, value in secure.getpeercert()["subjectAltName"]}


@pytest.fixture
def tls_server(smtp_server: MakeServer) -> Callable[..., SMTPServer]:
    return lambda *given, **options: smtp_server(tls=Certificates(*given, **options), implicit_tls=True)


def test_the_certificate_is_that_of_the_name(tls_server: Callable[..., SMTPServer], tmp_path: Path) -> None:
    server = tls_server(
        issue(tmp_path, "mx.example.com"),
        issue(tmp_path, "*.example.org", "example.org"),
        issue(tmp_path, "bücher.example"),
        issue(tmp_path, "unused.example")._replace(names=("given.example",)),
    )
    for name, shown in [
        ("mx.example.com", "mx.example.com"),
        ("MX.example.org", "*.example.org"),
        ("example.org", "*.example.org"),
        ("a.b.example.org", "mx.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("given.example", "unused.example"),
        ("unused.example", "mx.example.com"),
        ("other.example", "mx.example.com"),
        (None, "mx.example.com"),
    ]:
        assert shown in names_shown(server, name), name


def test_starttls_has_it_too_and_channel_binding_follows(smtp_server: MakeServer, tmp_path: Path) -> None:
    both = issue(tmp_path, "mx.example.com"), issue(tmp_path, "mx.example.org")
    server = smtp_server(tls=Certificates(*both), middleware=[Auth({"jo": "secret"})])
    for name in ("mx.example.com", "mx.example.org"):
        with gevent.socket.create_connection(("127.0.0.1", server.address[1]), 10) as connection:
            connection.recv(1000)
            connection.sendall(b"EHLO x\r\n")
            while b"STARTTLS" not in connection.recv(1000):
                pass
            connection.sendall(b"STARTTLS\r\n")
            assert connection.recv(1000).startswith(b"220")
            with client_context().wrap_socket(connection, server_hostname=name) as secure:
                secure.sendall(b"QUIT\r\n")
                assert secure.recv(1000).startswith(b"221")


@given(name=st.text(max_size=80))
def test_any_name_finds_a_certificate(name: str) -> None:
    made: Any = object.__new__(module._Loaded)
    made.default, other = object(), object()
    made._names = {"*.example.org": other}
    found = made.find(name)
    assert found is (other if re.fullmatch(r"[^.]*\.example\.org\.?", module._normal(name)) else made.default)


# Python's ssl reports a name that is not ASCII so, and ends the handshake.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hostile_names_end_one_handshake_at_most(tls_server: Callable[..., SMTPServer], tmp_path: Path) -> None:
    server = tls_server(issue(tmp_path, "mx.example.com"), issue(tmp_path, "mx.example.org"))
    # A ClientHello with the name changed in its bytes: OpenSSL's own client refuses to send such names.
    outgoing = ssl.MemoryBIO()
    client = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mx.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for name in (
        b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6\xf5\xf4\xf3\xf2",
        b"mx.example\0org",
        b"..............",
        b"mx.example.or\n",
    ):
        with gevent.socket.create_connection(("127.0.0.1", server.address[1]), 10) as connection:
            connection.sendall(hello.replace(b"mx.example.org", name))
            connection.settimeout(10)
            connection.recv(100)
    assert "mx.example.org" in names_shown(server, "mx.example.org")


def renewed(server: SMTPServer, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    return names_shown(server, None)


def test_a_renewed_certificate_is_taken_up(
    tls_server: Callable[..., SMTPServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    first = issue(tmp_path, "mx.example.com")
    server = tls_server(first)
    with shake(server, None) as before:
        second = issue(tmp_path, "new.example.com")
        assert names_shown(server, None) == {"mx.example.com"}  # too early for a look
        shutil.copy(second.certfile, first.certfile)
        # The key does not match yet.
        assert renewed(server, monkeypatch) == {"mx.example.com"}
        assert renewed(server, monkeypatch) == {"mx.example.com"}
        assert caplog.text.count("cannot be used") == 1
        shutil.move(str(second.keyfile), str(first.keyfile))
        assert renewed(server, monkeypatch) == {"new.example.com"}
        assert caplog.text.count("the certificates have changed") == 1
        before.sendall(b"NOOP\r\n")
        assert before.recv(100).startswith(b"250")
    Path(first.certfile).unlink()
    assert renewed(server, monkeypatch) == {"new.example.com"}


def test_a_symlink_may_be_swapped(
    tls_server: Callable[..., SMTPServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    for number, name in enumerate(("one.example", "two.example")):
        (tmp_path / name).mkdir()
        made = issue(tmp_path / name, name)
        for link, target in zip(live.files, made.files, strict=True):
            Path(f"{link}.new").symlink_to(target)
            Path(f"{link}.new").rename(link)
        if number == 0:
            server = tls_server(live)
            assert names_shown(server, None) == {"one.example"}
    assert renewed(server, monkeypatch) == {"two.example"}


def test_certfile_and_keyfile_are_taken_up_as_well(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = issue(tmp_path, "mx.example.com")
    server = smtp_server(certfile=first.certfile, keyfile=first.keyfile, implicit_tls=True)
    der = server.certificate
    second = issue(tmp_path, "new.example.com")
    for old, new in zip(first.files, second.files, strict=True):
        shutil.copy(new, old)
    assert renewed(server, monkeypatch) == {"new.example.com"}
    assert server.certificate not in (der, None)


def test_handshakes_under_renewal(
    tls_server: Callable[..., SMTPServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    live = issue(tmp_path, "mx.example.com")
    (tmp_path / "other").mkdir()
    other = issue(tmp_path / "other", "mx.example.com")
    server = tls_server(live)
    shaken = [gevent.spawn(names_shown, server, "mx.example.com") for _ in range(30)]
    for _ in range(5):
        for old, new in zip(live.files, other.files, strict=True):
            shutil.copy(new, old)
        gevent.sleep(0)
    assert [each.get(timeout=20) for each in shaken] == [{"mx.example.com"}] * 30


def s_client(server: SMTPServer, *options: str) -> str:
    """Run openssl's client, and return all of its output."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.address[1]}", *options]
    pool = gevent.get_hub().threadpool
    ran: Any = pool.apply(
        lambda: subprocess.run(command, input=b"QUIT\r\n", capture_output=True, timeout=30, check=False)
    )
    return str((ran.stdout + ran.stderr).decode(errors="replace"))


def test_old_versions_and_tickets_are_off(tls_server: Callable[..., SMTPServer], tmp_path: Path) -> None:
    server = tls_server(issue(tmp_path, "mx.example.com"))
    assert "Cipher is (NONE)" in s_client(server, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    for version in ("-tls1_2", "-tls1_3"):
        said = s_client(server, version, "-servername", "mx.example.com", "-ign_eof")
        assert "ticket" not in said.lower()
        assert "221 2.0.0" in said
    with_tickets = tls_server(issue(tmp_path, "mx.example.com"), tickets=True)
    assert "ticket" in s_client(with_tickets, "-tls1_2", "-ign_eof").lower()


def test_versions_and_ciphers_are_chosen(tls_server: Callable[..., SMTPServer], tmp_path: Path) -> None:
    made = issue(tmp_path, "mx.example.com")
    assert "Cipher is (NONE)" in s_client(tls_server(made, minimum="1.3"), "-tls1_2")
    server = tls_server(made, ciphers="ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384")
    assert re.search("Cipher is ECDHE-.*-AES256-GCM-SHA384", s_client(server, "-tls1_2"))
    assert "Cipher is (NONE)" in s_client(server, "-tls1_2", "-cipher", "AES128-SHA")


# Certificates of clients


def ca_file(folder: Path) -> Path:
    path = folder / "clients.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    return path


def external(server: SMTPServer, context: ssl.SSLContext, said: str) -> tuple[bool, bytes]:
    """Return whether EXTERNAL is offered, and the reply to a login with it."""
    with shake(server, "mx.example.com", context) as secure:
        secure.sendall(b"EHLO client.example\r\n")
        offer = b""
        while not re.search(rb"^250 .*\n", offer, re.MULTILINE):
            offer += secure.recv(4000)
        secure.sendall(f"AUTH EXTERNAL {said}\r\n".encode())
        return b"EXTERNAL" in offer, secure.recv(1000)


def login_server(smtp_server: MakeServer, folder: Path, auth: Auth, **options: Any) -> SMTPServer:
    tls = Certificates(issue(folder, "mx.example.com"), client_ca=ca_file(folder), **options)
    return smtp_server(tls=tls, implicit_tls=True, middleware=[Logging(), auth])


def with_certificate(made: Certificate) -> ssl.SSLContext:
    context = client_context()
    context.load_cert_chain(*made.files)
    return context


def test_a_clients_certificate_is_an_identity(smtp_server: MakeServer, tmp_path: Path) -> None:
    seen = []
    server = login_server(smtp_server, tmp_path, Auth({}, external=True), client_auth="optional")

    @server.on("auth")
    def note(session: Session, identity: Any, ack: Ack) -> None:
        seen.append((str(identity), identity.mechanism))
        ack.accept()

    jo = with_certificate(issue(tmp_path, "jo@example.com"))
    assert external(server, jo, "=") == (True, b"235 2.7.0 Authentication succeeded\r\n")
    assert seen == [("jo@example.com", "EXTERNAL")]
    assert external(server, jo, b64("jo@example.com"))[1].startswith(b"235")
    assert external(server, jo, b64("ann@example.com"))[1].startswith(b"535")
    named = with_certificate(issue(tmp_path, "host.example", common_name="gateway"))
    assert external(server, named, "=")[1].startswith(b"235")
    assert seen[-1] == ("gateway", "EXTERNAL")


def test_without_a_certificate_it_is_not_offered(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = login_server(smtp_server, tmp_path, Auth({"jo": "x"}, external=True), client_auth="optional")
    offered, reply = external(server, client_context(), "=")
    assert not offered
    assert reply.startswith(b"504")
    not_asked = login_server(smtp_server, tmp_path, Auth({"jo": "x"}, external=True))
    assert not external(not_asked, with_certificate(issue(tmp_path, "jo@example.com")), "=")[0]
    off = login_server(smtp_server, tmp_path, Auth({"jo": "x"}), client_auth="optional")
    assert not external(off, with_certificate(issue(tmp_path, "jo@example.com")), "=")[0]


def test_a_callable_names_the_user(smtp_server: MakeServer, tmp_path: Path) -> None:
    def user(certificate: Any) -> str | None:
        names = {value for _, value in certificate["subjectAltName"]}
        return "jo" if "jo@example.com" in names else None

    server = login_server(smtp_server, tmp_path, Auth({}, external=user), client_auth="optional")
    assert external(server, with_certificate(issue(tmp_path, "jo@example.com")), b64("jo"))[1].startswith(b"235")
    assert not external(server, with_certificate(issue(tmp_path, "ann@example.com")), "=")[0]


def test_certificates_of_other_authorities_end_the_handshake(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = login_server(smtp_server, tmp_path, Auth({}, external=True), client_auth="optional")
    stranger = with_certificate(issue(tmp_path, "jo@example.com", by=trustme.CA()))
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        external(server, stranger, "=")


def test_a_certificate_may_be_required(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = login_server(smtp_server, tmp_path, Auth({}, external=True), client_auth="required")
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        external(server, client_context(), "=")
    assert external(server, with_certificate(issue(tmp_path, "jo@example.com")), "=")[1].startswith(b"235")


# Arguments


def test_names_in_a_certificate(tmp_path: Path) -> None:
    assert names_in(issue(tmp_path, "a.example", "*.b.example").certfile) == ["a.example", "*.b.example"]
    assert names_in(issue(tmp_path, "jo@example.com", common_name="gateway").certfile) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"minimum": "1.1"}, "minimum takes '1.2' or '1.3', not '1.1'"),
        ({"minimum": ["1.2"]}, r"minimum takes '1.2' or '1.3', not \['1.2'\]"),
        ({"ciphers": 5}, "ciphers 5 names no cipher that OpenSSL has"),
        ({"ciphers": "nonsense"}, "ciphers 'nonsense' names no cipher"),
        ({"client_ca": "/nonexistent"}, "client_ca '/nonexistent' cannot be used: No such file"),
        ({"client_ca": __file__}, "client_ca .* cannot be used: no certificates in PEM"),
        ({"client_auth": "required"}, "client_auth needs client_ca"),
        ({"client_auth": "always", "client_ca": __file__}, "client_auth takes 'optional', 'required' or False"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Certificates(issue(tmp_path, "mx.example.com"), **options)


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    made = issue(tmp_path, "mx.example.com")
    with pytest.raises(ValueError, match="at least one Certificate"):
        Certificates()
    with pytest.raises(ValueError, match="not several of them"):
        SMTPServer(("127.0.0.1", 0), certfile=made.certfile, keyfile=made.keyfile, tls=Certificates(made))
    with pytest.raises(TypeError, match="tls takes a Certificates"):
        SMTPServer(("127.0.0.1", 0), tls=made)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="external takes True, False or a callable"):
        Auth({}, external="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(("days", "text"), [(-1, "has expired"), (7, "expires in 7.0 days"), (60, "")])
def test_the_end_of_a_certificate_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int, text: str
) -> None:
    end = datetime.now(UTC) + timedelta(days=days, minutes=1)
    Certificates(issue(tmp_path, "mx.example.com", not_before=end - timedelta(days=90), not_after=end))
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text in each and "mx_example_com" in each for each in logged] == ([True] if text else [])


def test_check_warns_of_it_too(tmp_path: Path) -> None:
    end = datetime.now(UTC) - timedelta(days=1)
    expired = issue(tmp_path, "mx.example.com", not_before=end - timedelta(days=90), not_after=end)
    (tmp_path / "greensmtp.toml").write_text(f'tls_cert = "{expired.certfile}"\ntls_key = "{expired.keyfile}"\n')
    ran = forked.run(forked.command_line("check", "--quiet", "--config", "greensmtp.toml"), cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert [line.endswith("has expired") for line in ran.stderr.splitlines()] == [True]  # once
