"""Each dialogue of tests/corpus, against a server in memory and against gevent's: whole, and cut in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from greensmtp import SMTPServer
from greensmtp.middleware import Auth
from greensmtp.protocol import esmtp
from greensmtp.testing import (
    Dialogue,
    DialogueResult,
    ServerUnderTest,
    check_events,
    dial,
    record_events,
    replay_client,
    replay_in_memory,
)
from tests.conftest import Certificate
from tests.cuts import interesting_cuts

CORPUS = sorted((Path(__file__).parent.parent / "corpus").glob("*.smtp"))

#: Dialogues that send more bytes than these are cut at interesting places only.
LONG = 1000

#: The extensions that are switched on where a dialogue needs them.
OPTIONAL = {each.keyword: True for each in esmtp.OPTIONAL} | {"FUTURERELEASE": 3600}

CLIENT_CORPUS = sorted((Path(__file__).parent.parent / "corpus" / "client").glob("*.smtp"))

each_dialogue = pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)


def cuts(dialogue: Dialogue, *, every: bool) -> Sequence[int]:
    """Return where to cut what the client sends."""
    wire = b"".join(step.data for step in dialogue.steps)
    if every and len(wire) < LONG:
        return range(1, len(wire))
    places = interesting_cuts(wire, 1, len(wire))
    return places if len(wire) < LONG else places[:: len(places) // 50 + 1]


def passes(result: DialogueResult) -> bool:
    assert not result.failed, "\n".join((str(result), *result.transcript))
    return result.verdict == "pass"


def test_the_corpus_covers_its_topics_and_names_are_unique() -> None:
    dialogues = [Dialogue.load(path) for path in (*CORPUS, *CLIENT_CORPUS)]
    assert len(dialogues) > 170
    assert len({dialogue.name for dialogue in dialogues}) == len(dialogues)
    assert all(dialogue.topic and dialogue.rfc for dialogue in dialogues)


@each_dialogue
def test_a_server_in_memory_passes_at_every_cut(path: Path) -> None:
    dialogue = Dialogue.load(path)
    if not passes(replay_in_memory(dialogue)):
        # What it does not have.
        assert any(need.startswith(("AUTH", "ETRN", "FUTURERELEASE")) for need in dialogue.needs)
        return
    for cut in cuts(dialogue, every=True):
        assert passes(replay_in_memory(dialogue, cut=cut)), cut


@pytest.fixture
def replay(certificate: Certificate) -> Callable[..., DialogueResult]:
    """Replay a dialogue against gevent's server, which is configured as its header says."""

    def replay(dialogue: Dialogue, cut: int | None = None) -> DialogueResult:
        server = SMTPServer(
            ("127.0.0.1", 0),
            hostname="mx.example.com",
            lmtp=dialogue.lmtp,
            certfile=certificate.certfile,
            keyfile=certificate.keyfile,
            middleware=[Auth(dict(dialogue.users), allow_plaintext=True)] if dialogue.users else [],
            extensions={need: OPTIONAL[need] for need in dialogue.needs if need in OPTIONAL},
            **{"max_message_size": 1_000_000, **dialogue.server},  # type: ignore[arg-type]
        )
        events = record_events(server, dialogue)
        tested = ServerUnderTest(
            lambda: dial(server).socket, lmtp=dialogue.lmtp, configured=("server", "refuse", "users"), silence=0.01
        )
        assert tested.offers
        events.clear()
        try:
            return check_events(tested.replay(dialogue, cut=cut), events)
        finally:
            server.stop(timeout=1)

    return replay


@each_dialogue
def test_the_server_passes(path: Path, replay: Callable[..., DialogueResult]) -> None:
    assert passes(replay(Dialogue.load(path)))


@pytest.mark.parametrize("path", CLIENT_CORPUS, ids=lambda path: path.stem)
def test_the_client_passes_at_interesting_cuts(path: Path) -> None:
    dialogue = Dialogue.load(path)
    assert passes(replay_client(dialogue))
    for cut in cuts(dialogue, every=False):
        assert passes(replay_client(dialogue, cut=cut)), cut


def test_a_dialogue_of_a_client_does_not_apply_to_a_server() -> None:
    dialogue = Dialogue.load(CLIENT_CORPUS[0])
    assert replay_in_memory(dialogue).verdict == "not applicable"
    assert ServerUnderTest(lambda: None).replay(dialogue).got == "it is for a client"


@pytest.mark.exhaustive
@each_dialogue
def test_the_server_passes_at_interesting_cuts(path: Path, replay: Callable[..., DialogueResult]) -> None:
    dialogue = Dialogue.load(path)
    for cut in cuts(dialogue, every=False):
        assert passes(replay(dialogue, cut)), cut
