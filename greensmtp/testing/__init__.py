"""Test programs that use greensmtp: scripted dialogues, connections without a network, pytest fixtures.

::

    from greensmtp.testing import dial

    def test_strangers_are_refused():
        with dial(make_server()) as peer:       # not started: a socket pair, no port
            peer.converse('''
                S: 220
                C: EHLO client.example
                S: 250
                C: MAIL FROM:<jo@example.org>
                S: 250 2.1.0
                C: RCPT TO:<stranger@example.net>
                S: 550 5.7.1 *denied
                C: QUIT
                S: 221
                S: END
            ''')

Server and test share the hub of one thread, so a test can hold a handler at an ``Event``. A failing assertion names the
line of the dialogue, and shows the dialogue up to that line.

The fixture that starts and stops servers is opt-in: ``pytest_plugins = ["greensmtp.testing.fixtures"]`` in a
``conftest.py``.
"""

from greensmtp.testing.dial import dial
from greensmtp.testing.dialogue import Dialogue, DialogueSyntaxError
from greensmtp.testing.dialogue_client import ServerScript, replay_client
from greensmtp.testing.dialogue_player import DialoguePlayer, DialogueResult
from greensmtp.testing.dialogue_replay import ServerUnderTest, record_events
from greensmtp.testing.dialogue_server import MemoryServer, check_events, replay_in_memory
from greensmtp.testing.peer import DialogueError, Peer
from greensmtp.testing.sink import MessageNotReceived, SMTPSink
from greensmtp.testing.sink_message import Attachment, SinkMessage

__all__ = [
    "Attachment",
    "Dialogue",
    "DialogueError",
    "DialoguePlayer",
    "DialogueResult",
    "DialogueSyntaxError",
    "MemoryServer",
    "MessageNotReceived",
    "Peer",
    "SMTPSink",
    "ServerScript",
    "ServerUnderTest",
    "SinkMessage",
    "check_events",
    "dial",
    "record_events",
    "replay_client",
    "replay_in_memory",
]
