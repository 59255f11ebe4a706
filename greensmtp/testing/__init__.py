"""For tests of what is built on greensmtp: scripted dialogues, connections without a network, a pytest fixture.

The fixture is opt-in: ``pytest_plugins = ["greensmtp.testing.fixtures"]`` in a ``conftest.py``.
"""

from greensmtp.testing.peer import DialogueError, Peer, dial

__all__ = ["DialogueError", "Peer", "dial"]
