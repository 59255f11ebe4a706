"""The server's mechanisms against the examples of their RFCs, our own client, and any bytes."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl import client as sasl
from greensmtp.protocol.sasl import messages
from greensmtp.protocol.sasl.exchange import (
    Channel,
    CredentialQuery,
    Identity,
    KeysQuery,
    PasswordQuery,
    Refused,
    ScramKeys,
    SecretQuery,
    TokenQuery,
)
from greensmtp.protocol.sasl.server import MECHANISMS

CHANNEL = Channel("mx.example.com")
JO = ScramKeys.derive("sesame", b"s" * 16)
NOBODY = ScramKeys.derive("nobody", b"n" * 16, known=False)


def knows(claim: CredentialQuery) -> Any:
    """Answer queries about the one user: jo, sesame, t0ken."""
    is_jo = claim.username == "jo"
    if isinstance(claim, PasswordQuery):
        return "jo" if is_jo and claim.password == "sesame" else None
    if isinstance(claim, TokenQuery):
        return "jo" if claim.username in ("jo", "") and claim.token == "t0ken" else None
    if isinstance(claim, SecretQuery):
        return "sesame" if is_jo else None
    assert isinstance(claim, KeysQuery)
    return JO if is_jo else NOBODY


def hold(mechanism: str, respond: Any, channel: Channel = CHANNEL) -> Identity:
    """Run one exchange; ``respond(challenge)`` is the client."""
    exchange = MECHANISMS[mechanism].begin(channel)
    answer: Any = None
    steps = 0
    try:
        while True:
            step = exchange.send(answer)
            steps += 1
            assert steps < 10
            answer = respond(step) if isinstance(step, bytes) else knows(step)
    except StopIteration as end:
        identity: Identity = end.value
        return identity


def our_client(mechanism: str, username: str, secret: str) -> Any:
    client = sasl.MECHANISMS[mechanism](username, secret)
    first = client.initial()

    def respond(challenge: bytes) -> bytes:
        nonlocal first
        if challenge == b"" and first is not None:
            response, first = first, None
            return response
        return client.respond(challenge)

    return respond


@pytest.mark.parametrize("mechanism", sasl.MECHANISMS)
def test_our_client_logs_in(mechanism: str) -> None:
    secret = "t0ken" if sasl.MECHANISMS[mechanism].takes_token else "sesame"
    assert hold(mechanism, our_client(mechanism, "jo", secret)) == Identity("jo", "", mechanism)
    for name, wrong in (("jo", "wrong"), ("nobody", secret)):
        with pytest.raises(Refused) as caught:
            hold(mechanism, our_client(mechanism, name, wrong))
        assert caught.value.reply.code == 535


def test_the_server_has_every_mechanism_of_our_client() -> None:
    assert set(sasl.MECHANISMS) <= set(MECHANISMS)
    strongest_first = [name for name in MECHANISMS if name in sasl.MECHANISMS]
    assert strongest_first == list(sasl.MECHANISMS)


def test_plain_as_in_rfc_4616() -> None:
    assert messages.parse_plain(b"\0tim\0tanstaaftanstaaf") == ("", "tim", "tanstaaftanstaaf")
    assert messages.parse_plain(b"Ursel\0Kurt\0xipj3plmq") == ("Ursel", "Kurt", "xipj3plmq")


def test_oauthbearer_as_in_rfc_7628() -> None:
    said = (
        b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    )
    name, token = messages.parse_oauthbearer(said)
    assert (name, token) == ("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")


def test_escaped_names_are_decoded() -> None:
    assert messages.parse_scram_first(b"y,a=a=2Cb,n=j=3Do,r=x")[:3] == ("y", "a,b", "j=o")
    assert messages.parse_oauthbearer(b"n,a=j=2Co=3D,\x01auth=Bearer t\x01\x01") == ("j,o=", "t")


@pytest.mark.parametrize(
    ("said", "token"),
    [
        (b"auth=Bearer t\x01", "t"),
        (b"AUTH=BEARER  t\x01", "t"),
        (b"auth=Basic am86eA==\x01", ""),
        (b"auth=\x01", ""),
        (b"xauth=Bearer t\x01", ""),
        (b"auth=Bearer a b\x01", ""),
        (b"auth=Bearer \xc3\xbc\x01", ""),
        (b"", ""),
    ],
)
def test_a_bearer_token_is_found(said: bytes, token: str) -> None:
    assert messages.parse_xoauth2(b"user=jo\x01" + said + b"\x01") == ("jo", token)


def test_a_digest_is_valid_for_its_own_challenge_only() -> None:
    recorded: list[bytes] = []

    def record(challenge: bytes) -> bytes:
        recorded.append(b"jo " + hmac.new(b"sesame", challenge, "md5").hexdigest().encode())
        return recorded[-1]

    hold("CRAM-MD5", record)
    with pytest.raises(Refused):
        hold("CRAM-MD5", lambda challenge: recorded[0])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_secret_is_in_the_repr_of_a_query(mechanism: str) -> None:
    claim = PasswordQuery(username="jo", mechanism=mechanism, password="hunter2")
    assert "hunter2" not in repr(claim)
    assert "hunter2" not in repr(TokenQuery(username="jo", mechanism=mechanism, token="hunter2"))
    assert "stored" not in repr(JO)


# Any bytes

PIECES = st.sampled_from(
    b"\0|\1|,|=| |n|y|p=|a=|n=jo|r=abc|user=|auth=Bearer |t0ken|jo|sesame|c=biws|p=AA==|=2C|=3D|m=|\xff|\xc4".split(
        b"|"
    )
)
RESPONSES = st.one_of(st.binary(max_size=64), st.lists(PIECES, max_size=12).map(b"".join))


@pytest.mark.parametrize("mechanism", MECHANISMS)
@given(said=st.lists(RESPONSES, min_size=4, max_size=4))
def test_any_responses_end_in_a_refusal_or_the_right_user(mechanism: str, said: list[bytes]) -> None:
    """Each exchange ends with a refusal, or with the one user, whose secret must be in the responses then."""
    responses = iter(said)
    channel = Channel("mx.example.com", {"tls-unique": b"x" * 12} if mechanism.endswith("-PLUS") else {})
    got = outcome(lambda: hold(mechanism, lambda challenge: next(responses), channel))
    if isinstance(got, Reply):
        assert got.code in (501, 535)
    else:
        assert got.authcid == "jo"
        assert any(b"sesame" in response or b"t0ken" in response for response in said)


def outcome(attempt: Callable[[], Any]) -> Any:
    """Return the result, or the reply that refuses it."""
    try:
        return attempt()
    except Refused as refused:
        return refused.reply


@pytest.mark.parametrize("mechanism", MECHANISMS)
@given(said=RESPONSES)
def test_the_name_in_any_response_is_found_or_refused(mechanism: str, said: bytes) -> None:
    got = outcome(lambda: MECHANISMS[mechanism].name_in(said))
    if isinstance(got, Reply):
        assert got.code in (501, 535)
    else:
        assert len(got.encode()) <= messages.MAX_NAME
        assert not set(got) & set("\0\r\n\t\x01")


@given(name=st.text(min_size=1, max_size=60), password=st.text(min_size=1, max_size=60))
def test_plain_is_parsed_into_its_parts(name: str, password: str) -> None:
    said = f"\0{name}\0{password}".encode("utf-8", "surrogatepass")
    got = outcome(lambda: messages.parse_plain(said))
    if isinstance(got, Reply):
        assert re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name + password)
    else:
        assert got == ("", name, password)


def test_a_password_has_no_nul_and_is_not_empty() -> None:
    assert messages.parse_password("p\u00e4ss word") == "p\u00e4ss word"
    for password, reply in (("pass\0word", canned.AUTH_MALFORMED), ("", canned.AUTH_INVALID)):
        with pytest.raises(Refused) as caught:
            messages.parse_password(password)
        assert caught.value.reply == reply
