"""The sockets of an arbiter: what a plan needs is open, what it does not need is closed."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from greensmtp.service.errors import StartError
from greensmtp.service.plan import Plan
from greensmtp.service.worker_sockets import WorkerSockets
from tests.helpers import refused


def plan(*ports: int, workers: int = 2, http: str | None = None) -> Plan:
    """Return a plan with listeners on 127.0.0.1."""
    return Plan(
        text=None,
        workers=workers,
        urls=[f"smtp://127.0.0.1:{port}" for port in ports],
        backlogs=[None] * len(ports),
        places=[f"listeners[{number}]" for number in range(len(ports))],
        reuse_port=False,
        user=None,
        group=None,
        pid_file=None,
        control=None,
        stop_timeout=1.0,
        log=("text", "info", "stderr"),
        maildirs=[],
        http=http,
        metrics=False,
        counted=[],
    )


def port_of(opened: Any) -> int:
    port: int = opened.getsockname()[1]
    return port


@pytest.mark.parametrize("reuse_port", [False, True])
def test_what_a_new_plan_does_not_need_is_closed(reuse_port: bool) -> None:
    sockets = WorkerSockets((), reuse_port=reuse_port)
    before, after = plan(0, 0, workers=3, http="127.0.0.1:0"), plan(0, workers=2, http="localhost:0")
    try:
        sockets.open(before)
        kept, dropped = (port_of(sockets.opened(0)[key]) for key in before.keys)
        old_http = port_of(sockets.http(before))
        assert len(sockets.all) == (7 if reuse_port else 3)
        sockets.open(after)
        assert sockets.http(before) is not sockets.http(after)  # both, until the new plan is served
        sockets.keep(after)
        assert list(sockets.opened(0)) == list(sockets.opened(1)) == after.keys
        assert port_of(sockets.opened(0)[after.keys[0]]) == kept
        assert sockets.http(before) is None
        assert refused(("127.0.0.1", dropped))
        assert refused(("127.0.0.1", old_http))
        assert len(sockets.all) == (3 if reuse_port else 2)
    finally:
        sockets.close()
    assert refused(("127.0.0.1", kept))


def test_all_are_closed_in_the_end() -> None:
    sockets = WorkerSockets((), reuse_port=True)
    served = plan(0, http="127.0.0.1:0")
    sockets.open(served)
    every = sockets.all
    sockets.close()
    assert [each.fileno() for each in every] == [-1] * 3


def test_workers_have_sockets_of_their_own_at_one_address() -> None:
    sockets = WorkerSockets((), reuse_port=True)
    served = plan(0)
    try:
        sockets.open(served)
        first, second = (sockets.opened(slot)[served.keys[0]] for slot in range(2))
        assert first is not second
        assert first.getsockname() == second.getsockname()
    finally:
        sockets.close()


def test_an_address_in_use_is_named_with_its_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sockets = WorkerSockets((), reuse_port=False)
        with pytest.raises(StartError, match=r"listeners\[0\]: cannot listen on smtp://127.0.0.1:\d+: "):
            sockets.open(plan(port_of(taken)))
        with pytest.raises(StartError, match=r"http\.listen: "):
            sockets.open(plan(http=f"127.0.0.1:{port_of(taken)}"))
        sockets.close()
