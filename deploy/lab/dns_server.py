"""Runs a DNS server in a namespace, which answers as a test wants: rightly, late, briefly, wrongly, or not at all."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from lab.namespaces import Namespace

_TYPES: Final = {4: "A", 6: "AAAA"}
_POLL: Final = 0.1
"""s until a thread notices that the server ends."""


class DnsServer:
    """Answers from `records`, by name without its last dot: addresses, or one other name (a CNAME)."""

    def __init__(self, namespace: Namespace, address: str, records: dict[str, Sequence[str]] | None = None) -> None:
        self.records: dict[str, Sequence[str]] = records or {}
        self.delay = 0.0
        """s from a question to its answer."""
        self.rcode: dns.rcode.Rcode | None = None
        """If set, every answer is this code without records."""
        self.silent = False
        self.silent_for: set[str] = set()
        """Types, such as AAAA, that get no answer."""
        self.truncates = False
        """Answers by UDP are empty, with the flag TC."""
        self.asked: Counter[tuple[str, str, str]] = Counter()
        """Questions by name, type and transport."""
        self._ended = threading.Event()
        self._udp = namespace.udp_socket(address, 53)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._tcp = namespace.call(lambda: socket.socket(family, socket.SOCK_STREAM))
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, 53))
        self._tcp.listen()
        for opened in (self._udp, self._tcp):
            opened.settimeout(_POLL)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def count(self, name: str, transport: str = "udp") -> int:
        """Counts the questions for a name."""
        return sum(number for (asked, _, by), number in self.asked.items() if (asked, by) == (name, transport))

    def _serve_udp(self) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                data, source = self._udp.recvfrom(4096)
                self._answer(data, "udp", lambda answer, to=source: self._udp.sendto(answer, to))  # type: ignore[misc]

    def _serve_tcp(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):
                connection, _ = self._tcp.accept()
                with connection:
                    connection.settimeout(1.0)
                    (length,) = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))
                    data = connection.recv(length, socket.MSG_WAITALL)
                    self._answer(data, "tcp", lambda answer, to=connection: to.sendall(_framed(answer)))  # type: ignore[misc]

    def _answer(self, data: bytes, transport: str, send: Callable[[bytes], object]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind, transport] += 1
        if self.silent or kind in self.silent_for:
            return
        answer = self._made(query, name, kind)
        if self.truncates and transport == "udp":
            answer.flags |= dns.flags.TC
            answer.answer = []
        packed = answer.to_wire()
        if not self.delay:
            send(packed)
            return
        late = threading.Timer(self.delay, lambda: self._ended.is_set() or send(packed))
        late.daemon = True
        late.start()

    def _made(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        answer = dns.message.make_response(query, recursion_available=True)
        if self.rcode is not None:
            answer.set_rcode(self.rcode)
            return answer
        if name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        while name in self.records:
            values = self.records[name]
            if len(values) == 1 and not _version(values[0]):
                answer.answer.append(dns.rrset.from_text(f"{name}.", 5, "IN", "CNAME", f"{values[0]}."))
                name = values[0]
                continue
            if found := [each for each in values if _TYPES.get(_version(each)) == kind]:
                answer.answer.append(dns.rrset.from_text(f"{name}.", 5, "IN", kind, *found))
            break
        return answer


def _version(text: str) -> int:
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        with suppress(OSError):
            socket.inet_pton(family, text)
            return version
    return 0


def _framed(answer: bytes) -> bytes:
    return struct.pack("!H", len(answer)) + answer
