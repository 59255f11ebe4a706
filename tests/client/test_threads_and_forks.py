"""Native threads and forked processes: a pool works in each, a client raises a clear error, and nothing hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import get_hub, spawn
from gevent.event import Event

from greensmtp import Ack, Command, Session, SMTPServer, connect
from tests import forked

#: The processes of development mode that fork are started once for all.
pytestmark = [pytest.mark.subprocess, pytest.mark.xdist_group("threads and forks")]

#: What every program begins with: threads that are native in a patched process too, and a server's port.
PRELUDE = """
import sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
    start, allocate = (monkey.get_original("_thread", name) for name in ("start_new_thread", "allocate_lock"))
    # gevent's hangs if the child ends before gevent has begun to watch it.
    waitpid = monkey.get_original("os", "waitpid")
else:
    from os import waitpid
    from _thread import allocate_lock as allocate, start_new_thread as start
import os
import gevent
from greensmtp import Pool, PoolClosed, connect

port = int(sys.argv[2])
MESSAGE = (b"x", "a@example.com", "b@example.com")

def in_threads(count, work):
    def run(lock):
        try:
            outcomes.append(work())
        except BaseException as error:
            outcomes.append(f"{type(error).__name__}: {error}")
        finally:
            lock.release()
    outcomes = []
    locks = [allocate() for _ in range(count)]
    for lock in locks:
        lock.acquire()
        start(run, (lock,))
    for lock in locks:
        lock.acquire()
    return outcomes

def in_child(work):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            print("child:", work())
        except BaseException as error:
            print("child:", type(error).__name__, error)
        finally:
            sys.stdout.flush()
            os._exit(0)
    waitpid(child, 0)
"""


@pytest.fixture
def server() -> Iterator[SMTPServer]:
    server = SMTPServer(("127.0.0.1", 0))
    server.on("message", lambda session, stream, ack: ack.accept())
    with server.in_thread():
        yield server


@pytest.fixture(params=["unpatched", "patched"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(mode: str, server: SMTPServer, program: str, folder: Path) -> list[str]:
    """Return the lines that the program prints; warnings of Python's development mode are errors."""
    address: Any = server.address
    ran = forked.run(
        forked.python(PRELUDE + program, mode, address[1]),
        # (Python 3.12 warns of every fork in a process that has threads.)
        how=(mode, "-X", "dev", "-W", "ignore::DeprecationWarning"),
        cwd=folder,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def test_a_pool_works_in_several_native_threads(mode: str, server: SMTPServer, tmp_path: Path) -> None:
    program = """
pool = Pool("127.0.0.1", port, 2, timeout=10)
print(pool.send(*MESSAGE).reply.code)
print(in_threads(4, lambda: [pool.send(*MESSAGE).reply.code for _ in range(3)]))
print(pool.idle, pool.busy)
with pool:
    print(pool.send(*MESSAGE).reply.code)
print(in_threads(1, lambda: pool.send(*MESSAGE)))
"""
    assert run(mode, server, program, tmp_path) == [
        "250",
        str([[250] * 3] * 4),
        "1 0",
        "250",
        "['PoolClosed: this pool has been closed']",
    ]


def test_a_thread_for_each_message_leaves_no_descriptors(mode: str, server: SMTPServer, tmp_path: Path) -> None:
    """The development servers of Flask and Django start a native thread for each request."""
    program = """
def descriptors():
    return len(os.listdir("/proc/self/fd"))

pool = Pool("localhost", port, timeout=10)
in_threads(1, lambda: pool.send(*MESSAGE))
gevent.sleep(0)  # makes this thread's hub, which keeps descriptors too
before = descriptors()
for _ in range(20):
    assert in_threads(1, lambda: pool.send(*MESSAGE).reply.code) == [250]
    assert in_threads(1, lambda: connect("localhost", port).quit().code) == [221]
for _ in range(500):  # a lock is released before its thread has ended
    if descriptors() <= before:
        break
    gevent.sleep(0.01)
print(descriptors() <= before, pool)
"""
    assert run(mode, server, program, tmp_path) == ["True <Pool of 10: 0 busy, 0 idle>"]


def test_closing_a_pool_ends_the_sends_of_other_native_threads(mode: str, server: SMTPServer, tmp_path: Path) -> None:
    """One thread uses a connection, and its send waits for another one."""
    program = """
pool = Pool("127.0.0.1", port, 1, timeout=10)
there, over = allocate(), allocate()
there.acquire(); over.acquire()

def work():
    try:
        with pool.connection():
            there.release()
            pool.send(*MESSAGE)
    except PoolClosed as error:
        print(error)
    over.release()

start(work, ())
there.acquire()
pool.close(0.01)
over.acquire()
"""
    assert run(mode, server, program, tmp_path) == ["this pool has been closed"]


def test_a_client_used_in_another_native_thread_is_a_runtime_error(
    mode: str, server: SMTPServer, tmp_path: Path
) -> None:
    program = """
mail = connect("127.0.0.1", port)
mail.ehlo()
for call in (mail.noop, mail.ehlo, mail.starttls, lambda: mail.send(*MESSAGE), lambda: mail.bdat(b"x")):
    print(in_threads(1, call))
print(mail.noop().code)
in_threads(1, mail.close)
gevent.sleep(0.01)
print(mail.closed)
"""
    *refused, still, closed = run(mode, server, program, tmp_path)
    assert (still, closed) == ("250", "True")
    assert refused[-1].startswith("['NotOffered") or "connect() in each thread, or use a Pool" in refused[-1]
    assert len(refused) == 5
    for line in refused[:-1]:
        assert "connect() in each thread, or use a Pool" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_pool_opens_new_connections_after_a_fork(mode: str, server: SMTPServer, tmp_path: Path, host: str) -> None:
    program = f"""
pool = Pool({host!r}, port, 2, timeout=10)
print(pool.send(*MESSAGE).reply.code)

def child():
    was = pool.idle
    sent = pool.send(*MESSAGE).reply.code
    now = pool.idle
    pool.close()
    return was, sent, now

in_child(child)
print(pool.send(*MESSAGE).reply.code, pool.idle)
pool.close()
"""
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    assert run(mode, server, program, tmp_path) == ["250", "child: (0, 250, 1)", "250 1"]
    assert reasons == ["quit", "quit"]  # two connections: the child's and the parent's own


def test_a_client_used_after_a_fork_is_a_runtime_error(mode: str, server: SMTPServer, tmp_path: Path) -> None:
    program = """
mail = connect("127.0.0.1", port)
mail.ehlo()
in_child(mail.noop)
in_child(lambda: mail.quit())
print(mail.noop().code, mail.quit().code)
"""
    said = "child: RuntimeError this connection belongs to the parent process: connect() in the child"
    first, second, parent = run(mode, server, program, tmp_path)
    assert first.startswith(said)
    assert second.startswith(said)
    assert parent == "250 221"


def test_a_forked_greenlet_does_not_read_the_parents_reply(mode: str, server: SMTPServer, tmp_path: Path) -> None:
    """The child has a copy of each greenlet, but only the parent may send and receive."""
    held: list[Ack] = []
    going: list[bool] = []

    @server.on("received")
    def hold(session: Session, ack: Ack) -> None:
        if going:
            ack.accept()
        else:
            held.append(ack)

    @server.on("command")
    def let_go(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "NOOP":
            going.append(True)
            while held:
                held.pop().accept()

    program = """
pool = Pool("127.0.0.1", port, 1, timeout=10)

def send():
    try:
        return pool.send(*MESSAGE).reply.code
    except Exception as error:
        return type(error).__name__

sending, waiting = gevent.spawn(send), gevent.spawn(send)
gevent.sleep(0.001)
while not any(member.client._transport.message_sent for member in pool._local.connections._busy):
    gevent.sleep(0.001)

def outcomes():
    gevent.joinall([sending, waiting], timeout=20)
    return sending.value, waiting.value

in_child(outcomes)
with connect("127.0.0.1", port) as mail:
    mail.noop()
print(outcomes())
pool.close()
"""
    assert run(mode, server, program, tmp_path) == ["child: ('RuntimeError', 'RuntimeError')", "(250, 250)"]


def test_a_connection_whose_hub_was_destroyed_can_be_closed(server: SMTPServer) -> None:
    """Its native thread has ended."""
    gone, made = Event(), []
    reasons: list[str] = []

    def note(session: object, reason: str) -> None:
        reasons.append(reason)
        here.loop.run_callback_threadsafe(gone.set)

    here = get_hub()
    server.on("disconnect", note)

    def work() -> None:
        made.append(connect(*server.address))
        get_hub().destroy(destroy_loop=True)

    here.threadpool.apply(work)
    made[0].close()
    assert made[0].closed
    assert gone.wait(10)
    assert reasons == ["closed"]


def test_the_check_for_unsolicited_replies_does_not_switch_greenlets() -> None:
    """The check precedes every command; in a patched process, gevent's ``poll`` would switch."""
    program = """
from gevent import monkey
monkey.patch_all()
from select import poll as patched
from greensmtp.client.transport import poll
print(poll is monkey.get_original("select", "poll"), poll is patched)
"""
    ran = forked.run(forked.python(program))
    assert ran.stdout.split() == ["True", "False"]


def test_greenlets_of_one_thread_are_told_apart_from_threads(server: SMTPServer) -> None:
    with connect(*server.address) as mail:
        assert spawn(mail.noop).get(timeout=10).code == 250
