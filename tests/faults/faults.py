"""The table of faults."""

from __future__ import annotations

from tests.faults.clock import clock
from tests.faults.crowd import crowd
from tests.faults.disk import disk
from tests.faults.exhausted import exhausted
from tests.faults.forwarded import forward, forward_many
from tests.faults.killed import kill
from tests.faults.redis_outage import redis
from tests.faults.run import Fault
from tests.faults.signalled import hang_up, terminate
from tests.faults.soak import soak

_ALL = ("plain", "workers", "gunicorn")

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "kill",
            "kill -9 under load, 100 times",
            "every acknowledged message is found whole; none is torn",
            kill,
            _ALL,
        ),
        Fault(
            "forward",
            "kill -9 of a relay and of its next hop under load, 100 times",
            "every message that the relay has acknowledged is found whole at the next hop; none is torn",
            forward,
        ),
        Fault(
            "forward-many",
            "10,000 messages through a relay, in each mode, and a large one",
            "each arrives once; memory flat after the warm-up; no descriptor is left",
            forward_many,
        ),
        Fault(
            "disk",
            "the disk is full, read-only, slow, or hangs",
            "4xx; 250 when it is well again; others are served",
            disk,
        ),
        Fault(
            "sigterm",
            "SIGTERM under load, 50 times",
            "no connection refused, no transaction cut before its grace",
            terminate,
            _ALL,
        ),
        Fault(
            "sighup",
            "SIGHUP under load, 50 times",
            "no connection refused, no transaction cut before its grace",
            hang_up,
            _ALL,
        ),
        Fault(
            "redis", "Redis is gone, back, or does not answer", "as `fail_open` says, no hang beyond the timeout", redis
        ),
        Fault(
            "crowd",
            "5,000 clients that write a byte a second, 1,000 that never read, 1,000 TLS handshakes never finished",
            "well-behaved clients within twice their latency; memory bounded; limits hold before the handshake",
            crowd,
        ),
        Fault("descriptors", "descriptors run out", "it recovers by itself; accepted mail is not lost", exhausted),
        Fault("soak", "30 minutes at full load", "memory flat after warm-up; no greenlet, descriptor, file left", soak),
        Fault(
            "clock",
            "the machine's clock jumps",
            "timeouts neither fire nor hang, limits keep their windows, the date follows, IDs are unique",
            clock,
        ),
    )
}
