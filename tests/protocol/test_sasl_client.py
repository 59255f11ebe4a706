"""The client's mechanisms against the examples of their RFCs."""

from __future__ import annotations

import pytest

from greensmtp.protocol.errors import ProtocolError, SaslFailed
from greensmtp.protocol.sasl import client as sasl


def test_plain() -> None:
    mechanism = sasl.Plain("jo", "secret")
    assert mechanism.initial() == b"\0jo\0secret"
    with pytest.raises(SaslFailed):
        mechanism.respond(b"")


def test_login() -> None:
    mechanism = sasl.Login("jo", "secret")
    assert mechanism.initial() is None
    assert [mechanism.respond(b"Username:"), mechanism.respond(b"Password:")] == [b"jo", b"secret"]
    with pytest.raises(SaslFailed):
        mechanism.respond(b"And?")


def test_cram_md5_as_in_rfc_2195() -> None:
    mechanism = sasl.CramMD5("tim", "tanstaaftanstaaf")
    answer = mechanism.respond(b"<1896.697170952@postoffice.reston.mci.net>")
    assert answer == b"tim b913a602c7eda7a495b4e6e7334d3890"


def test_oauth() -> None:
    assert sasl.XOAuth2("jo@x.example", "t0k").initial() == b"user=jo@x.example\x01auth=Bearer t0k\x01\x01"
    bearer = sasl.OAuthBearer("j,o=", "t0k")
    assert bearer.initial() == b"n,a=j=2Co=3D,\x01auth=Bearer t0k\x01\x01"
    assert bearer.respond(b"{}") == b"\x01"
    assert sasl.XOAuth2("jo", "t0k").respond(b"{}") == b""


def test_scram_with_a_real_server() -> None:
    from scramp import ScramMechanism  # type: ignore[import-untyped]

    mechanism = ScramMechanism("SCRAM-SHA-256")
    salt, stored, server_key, iterations = mechanism.make_auth_info("secret")
    server = mechanism.make_server(lambda _name: (salt, stored, server_key, iterations))
    client = sasl.ScramSHA256("jo", "secret")
    server.set_client_first(client.initial().decode())
    server.set_client_final(client.respond(server.get_server_first().encode()).decode())
    with pytest.raises(SaslFailed, match="did not prove"):
        client.check_success()
    assert client.respond(server.get_server_final().encode()) == b""
    client.check_success()


@pytest.mark.parametrize("challenge", [b"", b"nonsense", b"r=another,s=AAAA,i=4096", b"\xff"])
def test_scram_refuses_malformed_challenges(challenge: bytes) -> None:
    client = sasl.ScramSHA256("jo", "secret")
    client.initial()
    with pytest.raises(SaslFailed):
        client.respond(challenge)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("LOGIN PLAIN CRAM-MD5 SCRAM-SHA-256 XOAUTH2", "SCRAM-SHA-256"),
        ("LOGIN PLAIN CRAM-MD5", "CRAM-MD5"),
        ("login plain", "PLAIN"),
        ("LOGIN", "LOGIN"),
    ],
)
def test_the_strongest_mechanism_for_a_password_is_chosen(offered: str, chosen: str) -> None:
    assert sasl.choose(offered.split(), None, "jo", "secret", None).name == chosen


def test_a_token_needs_an_oauth_mechanism() -> None:
    assert sasl.choose(["PLAIN", "XOAUTH2", "OAUTHBEARER"], None, "jo", None, "t").name == "OAUTHBEARER"
    with pytest.raises(SaslFailed, match="PLAIN"):
        sasl.choose(["PLAIN"], None, "jo", None, "t")


def test_a_wanted_mechanism_need_not_be_offered() -> None:
    assert sasl.choose([], "login", "jo", "secret", None).name == "LOGIN"
    with pytest.raises(ValueError, match="DIGEST-MD5"):
        sasl.choose([], "DIGEST-MD5", "jo", "secret", None)
    with pytest.raises(ValueError, match="token"):
        sasl.choose([], "XOAUTH2", "jo", None, None)


def test_the_secret_is_in_no_repr() -> None:
    assert "secret" not in repr(sasl.Plain("jo", "secret"))


@pytest.mark.parametrize("iterations", [1, 4095, 1_000_001, 2_000_000_000])
def test_scram_bounds_the_iterations_that_a_server_requests(iterations: int) -> None:
    """With too few, a false server can guess the password; too many take hours of CPU time."""
    client = sasl.ScramSHA256("jo", "secret")
    nonce = client.initial().decode().rpartition("r=")[2]
    with pytest.raises(SaslFailed, match=r"requested \d+ SCRAM|must not be"):  # scramp has bounds of its own
        client.respond(f"r={nonce}x,s=AAAAAAAAAAAAAAAAAAAA,i={iterations}".encode())


@pytest.mark.parametrize("kind", [sasl.OAuthBearer, sasl.XOAuth2])
@pytest.mark.parametrize("credentials", [("jo\x01auth=Bearer other", "secret"), ("jo", "secret\x01host=x")])
def test_oauth_cannot_be_injected_into(kind: type[sasl.Mechanism], credentials: tuple[str, str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        kind(*credentials)
    assert "secret" not in str(caught.value)


def test_a_password_that_scram_refuses_is_not_shown() -> None:
    with pytest.raises(SaslFailed) as caught:
        sasl.ScramSHA256("jo", "sec\x07ret")
    assert "sec" not in str(caught.value)
    assert caught.value.__cause__ is None
