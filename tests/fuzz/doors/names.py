"""Doors for names: DNS answers of any server, and the host's resolv.conf and hosts."""

import socket
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, cast

import dns.message
import dns.rcode
import dns.rrset
from tests.fuzz.doors.door import Given, door, piece

from resolver_service import hosts, servers
from resolver_service.answers import Pending
from resolver_service.lookup import MOST, Outcome, Question, look_up
from resolver_service.servers import Sources, choose, clean
from stagewire.proto.endpoint import unpack_untrusted

NAME = "vpn.example.net"


@cache
def _folder() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="stagewire-fuzz-")


def _file(name: str, data: bytes) -> Path:
    path = Path(_folder().name, name)
    path.write_bytes(data)
    return path


def _no_sockets(_family: int, _kind: int) -> socket.socket:
    raise OSError(101, "no network")


def _is_in_order(outcome: Outcome) -> None:
    assert len(outcome.places) <= MOST
    assert "\n" not in outcome.error
    pending = Pending(NAME)
    for family in (socket.AF_INET, socket.AF_INET6):
        pending.take(family, outcome, 0.0)
    places, error = pending.answer()
    assert bool(places) != bool(error)
    for place in places:
        unpack_untrusted(place)


HOSTS = (
    b"127.0.0.1 localhost\n192.0.2.1\tVPN.example.net  vpn # more\n2001:db8::1 vpn.example.net.\n",
    b"fe80::1%eth0 vpn.example.net\nfe80::1%99 vpn.example.net\nfe80::1%99999999999 vpn.example.net\n\xff vpn.example.net",
    b"fe80::1%" + b"9" * 5000 + b" vpn.example.net\nfe80::1%\0 vpn.example.net\n1.2.3.4%x vpn.example.net\n",
)


@door(seeds=lambda: HOSTS, milliseconds=40, longest=6000)
def hosts_files(data: bytes) -> None:
    """Looks a name up in a hosts file, whatever is in it."""
    path = _file("hosts", data)
    for address in hosts.addresses(data.decode("utf-8", "replace"), NAME):
        assert address
    nothing = Path(_folder().name, "nothing")
    for family in (socket.AF_INET, socket.AF_INET6):
        _is_in_order(look_up(Question(NAME, family, ()), _no_sockets, Sources(nothing, nothing, ()), path))


RESOLV_CONF = (
    b"nameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch a.example ..b c.example\noptions timeout:3 ndots:2 rotate\n",
    b"nameserver 127.0.0.53\ndomain x\noptions edns0 timeout:900 timeout:" + b"9" * 5000 + b" ndots:" + b"9" * 5000,
    b"nameserver 10.9.0.1\nnameserver ::1%\nsearch \xff\xfe "
    + b"a" * 70
    + b"\noptions ndots:\xd9\xa3 timeout:\xd9\xa3\n",
)


@door(seeds=lambda: RESOLV_CONF, milliseconds=60, longest=6000)
def resolver_files(data: bytes) -> None:
    """Chooses servers by a resolv.conf, whatever is in it, and asks them."""
    text = data.decode("utf-8", "replace")
    chosen = choose(text, (), ("10.9.0.1",))
    assert len(chosen) <= servers.MOST
    assert clean(clean(text)) == clean(text)
    path, nothing = _file("resolv.conf", data), Path(_folder().name, "nothing")
    _is_in_order(
        look_up(Question(NAME, socket.AF_INET, ("10.9.0.1",)), _no_sockets, Sources(nothing, path, ()), nothing)
    )


def _answers() -> Iterator[bytes]:
    query = dns.message.make_query(NAME, "A")
    for records in (
        (("A", "192.0.2.1"), ("A", "192.0.2.2")),
        (("CNAME", "other.example."),),
        (("AAAA", "2001:db8::1"),),
        (("A", "0.0.0.0"), ("A", "224.0.0.1")),
        (),
    ):
        answer = dns.message.make_response(query)
        for kind, text in records:
            answer.answer.append(dns.rrset.from_text(NAME + ".", 60, "IN", kind, text))
        wire = answer.to_wire()
        yield piece(wire[2:])
        yield piece(b"") + piece(wire[2:]) + piece(wire[2:40])
    refused = dns.message.make_response(query)
    refused.set_rcode(dns.rcode.REFUSED)
    yield piece(refused.to_wire()[2:])


class _Server:
    """Stands for a server's socket. It answers each question with its id, as who asks would see, and then anything."""

    family = socket.AF_INET

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._waiting = list(answers)
        self._id = b""

    def settimeout(self, _timeout: float) -> None: ...

    def setblocking(self, _blocking: bool) -> None: ...

    def connect(self, _address: object) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def sendto(self, question: bytes, destination: object) -> int:
        self._id, self._destination = question[:2], destination
        return len(question)

    def recvfrom(self, _most: int) -> tuple[bytes, object]:
        if not self._waiting:
            raise OSError(111, "refused")
        return self._id + self._waiting.pop(0), self._destination


@door(seeds=_answers, milliseconds=80)
def dns_answers(data: bytes) -> None:
    """Takes addresses of any server's answer, or tells in a line why there is none."""
    given = Given(data)
    answers: list[bytes] = []
    while given.left and len(answers) < 3:
        answers.append(given.piece())
    nothing = Path(_folder().name, "nothing")
    conf = Path(_folder().name, "server")
    conf.write_text("nameserver 192.0.2.53\n")

    def ask(_family: int, kind: int) -> socket.socket:
        if kind == socket.SOCK_STREAM:
            raise OSError(111, "refused")
        return cast("socket.socket", _Server(answers))

    outcome = look_up(Question(NAME, socket.AF_INET, ()), ask, Sources(nothing, conf, ()), nothing)
    _is_in_order(outcome)
    for place, _ in outcome.places:
        host = unpack_untrusted(place).host
        assert host.version == 4
        assert not host.is_unspecified
        assert not host.is_multicast
