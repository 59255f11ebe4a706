"""A crowd of clients that behave badly, in one cheap process: ``crowd_load.py KIND PORT COUNT``.

It connects from many loopback addresses, prints ``ready`` once every client has connected, and goes on until its
standard input ends. Then it prints how many clients were connected, and how often one had to connect again. A client
whose connection ends connects again after some seconds: this is a crowd of slow clients, no flood of new ones.
"""

from __future__ import annotations

import json
import random
import resource
import select
import socket
import struct
import sys
from collections import Counter
from time import monotonic, sleep

_ENVELOPE = b"EHLO c.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
#: The first bytes of a TLS record of a handshake, of which the rest never comes.
_HALF_HELLO = bytes.fromhex("16030102000100 01fc0303".replace(" ", ""))

#: kind -> what a client sends at once, and what it then repeats, a byte a second
KINDS = {
    "writers": (b"", b"NOOP                       "),
    "bodies": (_ENVELOPE, b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n"),
    "readers": (b"EHLO c.example\r\n" * 99, b""),
    "handshakes": (_HALF_HELLO, b""),
}
#: Linux: the port is chosen by connect. (``socket`` has no name for it.)
_BIND_ADDRESS_NO_PORT = 24
#: Clients from one address; slices of a second, in each of which some of the clients send a byte.
PER_ADDRESS, _SLICES = 250, 500
#: Seconds until a client connects again.
_PAUSE = 5, 15
_READABLE, _OVER = select.EPOLLIN, select.EPOLLHUP | select.EPOLLERR


def _connect(kind: str, port: int, number: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    # Close with a reset, so that thousands of connections leave no ports in TIME_WAIT.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if kind == "readers":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.bind((f"127.0.{1 + list(KINDS).index(kind)}.{2 + number // PER_ADDRESS}", 0))
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    try:
        client.send(KINDS[kind][0])
    except OSError:
        pass  # it is seen when it is read from
    return client


def main(kind: str, port: int, count: int) -> None:
    """Connect, and be slow."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, count + 100), most))
    poll, told = select.epoll(), Counter[str]()
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    clients: list[socket.socket | None] = []
    numbers: dict[int, int] = {}
    #: Number -> when it connects again.
    away: dict[int, float] = {}

    def join(number: int) -> None:
        try:
            client = _connect(kind, port, number)
        except OSError as error:
            told[f"connect: {error.strerror or error}"] += 1
            away[number] = monotonic() + random.uniform(*_PAUSE)
            return
        clients[number] = client
        numbers[client.fileno()] = number
        poll.register(client, _OVER if kind == "readers" else _READABLE)

    def leave(client: socket.socket) -> None:
        number = numbers.pop(client.fileno())
        poll.unregister(client)
        client.close()
        clients[number] = None
        away[number] = monotonic() + random.uniform(*_PAUSE)
        told["ended by the server"] += 1

    for number in range(count):
        clients.append(None)
        join(number)
        if number % 100 == 99:
            sleep(0.02)  # no faster than a listen queue is emptied
    print("ready", flush=True)
    slot, place, text = 0, 0, KINDS[kind][1]
    due = monotonic()
    while True:
        for descriptor, _ in poll.poll(max(0.0, due - monotonic())):
            if descriptor == sys.stdin.fileno():
                told["connected at the end"] = len(numbers)
                print(json.dumps(told), flush=True)
                return
            client = clients[numbers[descriptor]]
            assert client is not None
            try:
                # What the server says is read and forgotten, except by those who never read.
                gone = kind == "readers" or not client.recv(65536)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                leave(client)
        if monotonic() < due:
            continue
        due += 1 / _SLICES
        slot = (slot + 1) % _SLICES
        place += slot == 0
        if text:
            for client in clients[slot::_SLICES]:
                try:
                    if client is not None:
                        client.send(text[place % len(text) :][:1])
                except OSError:
                    pass
        for number in [number for number, when in away.items() if when < monotonic()]:
            del away[number]
            join(number)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
