"""URLs of listeners: every valid form, and errors for all others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.config.urls import HELP, Listen

#: what is written, what it means, how it is written back
FORMS: list[tuple[str, Listen, str]] = [
    ("127.0.0.1:1025", Listen(("127.0.0.1", 1025)), "smtp://127.0.0.1:1025"),
    ("smtp://127.0.0.1:1025", Listen(("127.0.0.1", 1025)), "smtp://127.0.0.1:1025"),
    ("smtp://127.0.0.1:1025/", Listen(("127.0.0.1", 1025)), "smtp://127.0.0.1:1025"),
    ("localhost:25", Listen(("localhost", 25)), "smtp://localhost:25"),
    ("mx-1.example.com:25", Listen(("mx-1.example.com", 25)), "smtp://mx-1.example.com:25"),
    ("0.0.0.0:0", Listen(("0.0.0.0", 0)), "smtp://0.0.0.0:0"),
    ("0.0.0.0:65535", Listen(("0.0.0.0", 65535)), "smtp://0.0.0.0:65535"),
    ("[::1]:1025", Listen(("::1", 1025)), "smtp://[::1]:1025"),
    ("[::]:0", Listen(("::", 0)), "smtp://[::]:0"),
    ("smtp://[2001:db8::1]:25", Listen(("2001:db8::1", 25)), "smtp://[2001:db8::1]:25"),
    ("[fe80::1%eth0]:25", Listen(("fe80::1%eth0", 25)), "smtp://[fe80::1%eth0]:25"),
    ("smtps://127.0.0.1:465", Listen(("127.0.0.1", 465), implicit_tls=True), "smtps://127.0.0.1:465"),
    ("smtps://[::1]:465", Listen(("::1", 465), implicit_tls=True), "smtps://[::1]:465"),
    ("lmtp://127.0.0.1:24", Listen(("127.0.0.1", 24), lmtp=True), "lmtp://127.0.0.1:24"),
    ("lmtp://[::1]:24", Listen(("::1", 24), lmtp=True), "lmtp://[::1]:24"),
    ("unix:/run/mail.sock", Listen("/run/mail.sock"), "unix:/run/mail.sock"),
    ("unix:///run/mail.sock", Listen("/run/mail.sock"), "unix:/run/mail.sock"),
    ("unix:/run/with space:1", Listen("/run/with space:1"), "unix:/run/with space:1"),
    ("lmtp+unix:/run/lmtp.sock", Listen("/run/lmtp.sock", lmtp=True), "lmtp+unix:/run/lmtp.sock"),
    ("lmtp+unix:///run/lmtp.sock", Listen("/run/lmtp.sock", lmtp=True), "lmtp+unix:/run/lmtp.sock"),
]


@pytest.mark.parametrize(("text", "listen", "url"), FORMS)
def test_a_listener_url_is_parsed_and_formatted(text: str, listen: Listen, url: str) -> None:
    assert Listen.parse(text) == listen
    assert listen.url() == url
    assert Listen.parse(url) == listen


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "1025",
        ":1025",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:smtp",
        "127.0.0.1:65536",
        "127.0.0.1:100000",
        "127.0.0.1:-1",
        "127.0.0.1:+25",
        "127.0.0.1:2 5",
        "127.0.0.1:25\n",
        "127.0.0.1:\uff12\uff15",
        "127.0.0.1:\u0662\u0665",
        "127.0.0.1:25/path",
        "127.0.0.1:25//",
        " 127.0.0.1:25",
        "two words:25",
        "host\n:25",
        "::1:25",
        "[::1]",
        "[::1]25",
        "[::1:25",
        "[]:25",
        "[127.0.0.1]:25",
        "[localhost]:25",
        "[::1]x:25",
        "smtp:127.0.0.1:25",
        "smtp:/127.0.0.1:25",
        "smtp://:25",
        "http://127.0.0.1:80",
        "lmtps://127.0.0.1:24",
        "smtp://127.0.0.1",
        "unix:",
        "unix:/",
        "unix://",
        "unix:mail.sock",
        "unix:./mail.sock",
        "unix://run/mail.sock",  # as a URL that would be the host run
        "unix:////",
        "unix:/run/two\nlines",
        "smtps+unix:/run/mail.sock",
        "lmtp+unix:lmtp.sock",
        "/run/mail.sock",
    ],
)
def test_another_text_is_an_error_that_lists_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(expected a URL like|cannot listen on) ") as caught:
        Listen.parse(text)
    said = str(caught.value)
    assert repr(text) in said
    assert HELP in said or "is not an IPv6 address" in said


def test_the_examples_in_the_help_are_valid() -> None:
    examples = HELP.replace(" or ", ", ").split(", ")
    assert len(examples) == 6
    for example in examples:
        Listen.parse(example)


@pytest.mark.parametrize(
    ("listen", "bound", "url"),
    [
        (Listen(("127.0.0.1", 0)), ("127.0.0.1", 40123), "smtp://127.0.0.1:40123"),
        (Listen(("::1", 0), implicit_tls=True), ("::1", 40123, 0, 0), "smtps://[::1]:40123"),
        (Listen(("localhost", 0), lmtp=True), ("127.0.0.1", 40123), "lmtp://127.0.0.1:40123"),
        (Listen("/run/lmtp.sock", lmtp=True), "/run/lmtp.sock", "lmtp+unix:/run/lmtp.sock"),
    ],
)
def test_the_url_has_the_port_that_was_bound(listen: Listen, bound: Any, url: str) -> None:
    assert listen.url(bound) == url


@given(st.text(st.characters()) | st.text("unix:/smtpl+[]0123456789.% \n"))
def test_any_text_is_parsed_or_an_error(text: str) -> None:
    try:
        listen = Listen.parse(text)
    except ValueError:
        return
    assert Listen.parse(listen.url()) == listen
