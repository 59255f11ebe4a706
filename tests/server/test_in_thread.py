"""A server in a native thread of its own, with clients that block."""

from __future__ import annotations

import smtplib
import socket as native_socket
import subprocess
import sys
import threading
import time

import pytest
from gevent import sleep

from greensmtp import SMTPServer
from greensmtp.testing import dial
from tests.helpers import collect_bodies, refused

# A native thread


def address_of(server: SMTPServer) -> tuple[str, int]:
    assert isinstance(server.address, tuple)
    return server.address


def blocking_client(server: SMTPServer) -> smtplib.SMTP:
    host, port = address_of(server)
    return smtplib.SMTP(host, port, timeout=5)


def test_a_blocking_client_reaches_a_server_in_a_thread() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    threads: list[int] = []
    bodies = collect_bodies(server)
    server.on("quit", lambda session: threads.append(threading.get_ident()))
    for _ in range(2):
        with server.in_thread() as running:
            assert running is server
            with blocking_client(server) as client:
                client.sendmail("a@example.org", ["b@example.com"], "Subject: blocking\n\nhello\n")
            address = server.address
        assert refused(address)
    assert bodies == [b"Subject: blocking\r\n\r\nhello\r\n"] * 2
    assert threading.get_ident() not in threads
    assert len(threads) == 2


def test_several_servers_in_threads_of_their_own() -> None:
    servers = [SMTPServer(("127.0.0.1", 0), hostname=f"mx{number}.example.com") for number in range(3)]
    running = [server.in_thread() for server in servers]
    for each in running:
        each.start()
    for number, server in enumerate(servers):
        with blocking_client(server) as client:
            assert f"mx{number}.example.com".encode() in client.ehlo()[1]
    for each in running:
        each.stop(1)
        each.stop(1)
    assert all(refused(server.address) for server in servers)


def test_a_thread_that_cannot_listen_raises_in_its_caller_and_can_be_started_again() -> None:
    with native_socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        server = SMTPServer(busy.getsockname(), hostname="mx.example.com")
        thread = server.in_thread()
        with pytest.raises(OSError, match="in use"):
            thread.start()
        thread.stop()
    with thread, blocking_client(server) as client:
        assert client.noop()[0] == 250


def test_a_thread_cannot_be_started_twice() -> None:
    thread = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com").in_thread()
    with thread, pytest.raises(RuntimeError, match="already"):
        thread.start()


def test_a_server_that_has_started_elsewhere_is_not_started_in_a_thread() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    with server, pytest.raises(RuntimeError, match="call in_thread"):
        server.in_thread().start()
    with server.in_thread():
        assert server.started


LEFT_RUNNING = """
import os, smtplib, sys
if sys.argv[1] == "threading":
    import threading
from greensmtp import SMTPServer

server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
thread = server.in_thread()
thread.start()
client = smtplib.SMTP(*server.address)
client.ehlo("client.example")
if sys.argv[1] == "fork":
    child = os.fork()
    if not child:
        thread.stop()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert client.noop()[0] == 250
print("end", flush=True)
client.close()  # the server is at work when the process ends
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("case", ["plain", "threading", "fork"])
def test_a_process_ends_that_leaves_a_server_in_its_thread_running(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_RUNNING, case], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_stopping_a_thread_finishes_its_transactions() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    bodies = collect_bodies(server)
    thread = server.in_thread()
    thread.start()
    with native_socket.create_connection(address_of(server), timeout=5) as client, client.makefile("rb") as replies:
        client.sendall(b"HELO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
        assert [replies.readline()[:3] for _ in range(5)] == [b"220", b"250", b"250", b"250", b"354"]
        stopping = threading.Thread(target=thread.stop, args=(10,))
        stopping.start()
        while not refused(server.address):
            time.sleep(0.01)
        client.sendall(b"in time\r\n.\r\n")
        assert [replies.readline()[:3] for _ in range(2)] == [b"250", b"421"]
    while stopping.is_alive():
        sleep(0.01)
    assert bodies == [b"in time\r\n"]


@pytest.mark.usefixtures("clock")
def test_a_server_that_ran_in_a_thread_can_be_stopped_and_used_here_again() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", command_timeout=0.2)
    with server.in_thread():
        pass
    server.stop(1)
    with dial(server) as peer:
        peer.expect("220", "421 4.3.2")  # it is stopped
    server.start()
    with dial(server) as peer:
        peer.hello()
        peer.expect("421 4.4.2")
    server.stop(1)


PATCHED = """
import sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
import smtplib, threading
from greensmtp import SMTPServer
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
server.on("message", lambda session, stream, ack: ack.accept())
with server.in_thread():
    with smtplib.SMTP(*server.address, timeout=5) as client:
        client.sendmail("a@example.org", ["b@example.com"], "hello")
print("done")
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("how", ["patched", "unpatched"])
def test_a_thread_ends_with_its_process(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PATCHED, how], capture_output=True, timeout=30, check=False, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
