"""A name server on loopback, over UDP and TCP, with a table of records."""

from __future__ import annotations

import struct
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from gevent import sleep
from gevent.server import DatagramServer, StreamServer


class DNSServer:
    """Answers from ``records``: ``("example.com", "MX") -> ["10 mx.example.com."]``."""

    def __init__(self, records: dict[tuple[str, str], list[str]]) -> None:
        self.records = records
        #: Names -> ``SERVFAIL``, ``silent``, ``truncate``.
        self.does: dict[str, str] = {}
        #: Names -> the records of an answer with aliases, as in a zone file.
        self.chains: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.tcp_questions = 0
        # A number that is free for both: TCP's are scarce, so that one is chosen first.
        self._tcp = StreamServer(("127.0.0.1", 0), self._serve)
        self._tcp.start()
        port = int(self._tcp.server_port or 0)
        self._udp = _UDP(("127.0.0.1", port), self)
        self._udp.start()
        self.address = f"127.0.0.1:{port}"

    def answer(self, wire: bytes, *, over_tcp: bool) -> bytes | None:
        question = dns.message.from_wire(wire)
        name, kind = question.question[0].name.to_text().rstrip("."), question.question[0].rdtype.name
        self.asked.append((name, kind))
        does = self.does.get(name, "")
        if does == "silent":
            return None
        reply = dns.message.make_response(question)
        reply.flags |= dns.flags.RA
        found = self.records.get((name, kind))
        if does == "SERVFAIL":
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif does == "truncate" and not over_tcp:
            reply.flags |= dns.flags.TC
        elif name in self.chains:
            for each in self.chains[name]:
                owner, ttl, _, of, data = each.split(" ", 4)
                reply.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", of, data))
        elif found:
            reply.answer.append(dns.rrset.from_text(name + ".", 300, "IN", kind, *found))
        elif not any(each == name for each, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        made: bytes = reply.to_wire()
        return made

    def _serve(self, connection: Any, address: Any) -> None:
        self.tcp_questions += 1
        size = struct.unpack("!H", connection.recv(2))[0]
        answer = self.answer(connection.recv(size), over_tcp=True)
        if answer is not None:
            connection.sendall(struct.pack("!H", len(answer)) + answer)
        sleep(0.1)

    def stop(self) -> None:
        self._udp.stop()
        self._tcp.stop(timeout=0)


class _UDP(DatagramServer):
    def __init__(self, address: tuple[str, int], owner: DNSServer) -> None:
        super().__init__(address)
        self._owner = owner

    def handle(self, data: Any, address: Any) -> None:
        answer = self._owner.answer(data, over_tcp=False)
        if answer is not None:
            self.socket.sendto(answer, address)
