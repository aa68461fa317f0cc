"""Looks up one name in one family. A look-up blocks, so each has its own thread.

A literal address, with or without a zone, is its own answer. Otherwise the hosts file answers, then DNS (dnspython). Every
socket comes from `door`: a question through a tunnel that is still down would get no answer.
"""

import errno
import io
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.nameserver
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from resolver_service import hosts
from resolver_service.servers import Sources
from stagewire.proto.endpoint import Endpoint

LIFETIME: Final = 15.0
"""s for one look-up; slow servers need half of it."""
DISCARD: Final = 9
"""Any port will do to ask the kernel for a route."""
MOST: Final = 16
"""Addresses kept of one name and family."""
TYPES: Final[dict[int, dns.rdatatype.RdataType]] = {
    socket.AF_INET: dns.rdatatype.A,
    socket.AF_INET6: dns.rdatatype.AAAA,
}
_MET: Final = ("A", "AAAA", "CNAME", "DNAME", "NS", "SOA", "OPT", "RRSIG")
"""Types of record that an answer may hold."""
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
"""A link's number."""
Door = Callable[[int, int], socket.socket]
"""Opens a socket of a family and type whose packets stay outside the tunnel. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Question:
    """Names a host and a family to look up. `avoid` lists DNS servers inside the tunnel."""

    host: str
    family: int
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Carries the addresses of one look-up, or its error."""

    places: tuple[tuple[bytes, bool], ...]
    """(packed endpoint with port 0, whether the kernel has a route to it)"""
    error: str = ""


class NoAddress(Exception):  # noqa: N818 - it is an answer
    """Says why a name has no address."""


def warm_up() -> None:
    """Imports modules that an answer may need: another uid may lack the right to read them."""
    for name in _MET:
        dns.rdata.get_rdata_class(dns.rdataclass.IN, dns.rdatatype.from_text(name))  # type: ignore[no-untyped-call]
    socket.getaddrinfo("::1", 1)


def look_up(question: Question, door: Door, sources: Sources, hosts_file: Path = hosts.HOSTS) -> Outcome:
    """Answers one question. Raises nothing."""
    try:
        found = [_place(each) for each in dict.fromkeys(_addresses(question, door, sources, hosts_file))]
        return Outcome(tuple((place.pack(), _is_reachable(place, door)) for place in found[:MOST]))
    except NoAddress as error:
        return Outcome((), str(error))
    except dns.exception.DNSException as error:
        return Outcome((), f"{question.host}: {error}")
    except (OSError, UnicodeError) as error:
        return Outcome((), f"{question.host}: {getattr(error, 'strerror', None) or error}")


def _addresses(question: Question, door: Door, sources: Sources, hosts_file: Path) -> Iterator[str]:
    version = 4 if question.family == socket.AF_INET else 6
    known = [question.host] if _is_literal(question.host) else hosts.addresses(_text(hosts_file), question.host)
    if known:
        for each in known:
            if ip_address(each.partition("%")[0]).version == version:
                yield each
        return
    for each in _ask(question, door, sources):
        address = ip_address(each)
        if not address.is_unspecified and not address.is_multicast:
            yield each


def _ask(question: Question, door: Door, sources: Sources) -> list[str]:
    servers, rest = sources.read(question.avoid)
    if not servers:
        raise NoAddress(f"{question.host}: all DNS servers lie in the tunnel; add another to {sources.resolv_conf}")
    resolver = dns.resolver.Resolver(configure=False)
    with suppress(dns.resolver.NoResolverConfiguration):  # it misses the servers, which are set below
        resolver.read_resolv_conf(io.StringIO(rest))
    resolver.lifetime = LIFETIME
    asked = [_Server(server, door) for server in servers]
    resolver.nameservers = asked
    try:
        answer = resolver.resolve(question.host, TYPES[question.family], search=True)
        return [record.to_text() for record in answer]
    except dns.resolver.NXDOMAIN:
        raise NoAddress(f"{question.host}: no such name") from None
    except dns.resolver.NoAnswer:
        return []
    except dns.resolver.LifetimeTimeout:
        raise NoAddress(f"{question.host}: no answer from {', '.join(servers)}") from None
    except dns.resolver.NoNameservers as error:
        raise NoAddress(f"{question.host}: {'; '.join(_refusals(error))}") from None
    finally:
        for server in asked:
            server.close()


def _refusals(error: dns.resolver.NoNameservers) -> Iterator[str]:
    for server, _, _, reason, response in error.kwargs["errors"]:
        said = reason if response is not None else getattr(reason, "strerror", None) or str(reason)
        yield f"{server} says {said}" if response is not None else f"{server}: {said}"


class _Server(dns.nameserver.AddressAndPortNameserver):
    """Asks one DNS server through the door's sockets.

    A repeated question keeps its socket and id, so that a late answer to the first try counts.
    """

    def __init__(self, address: str, door: Door) -> None:
        super().__init__(address, 53)
        self._door = door
        self._family = dns.inet.af_for_address(address)
        self._asked: dict[dns.name.Name, tuple[socket.socket, int]] = {}

    def __str__(self) -> str:
        return self.address

    def kind(self) -> str:
        return "Do53"

    def close(self) -> None:
        for opened, _ in self._asked.values():
            opened.close()

    def query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,  # noqa: ARG002 - the door chooses the source
        source_port: int,  # noqa: ARG002
        max_size: bool,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Sends the request and waits for its answer, by TCP if `max_size` is set."""
        if max_size:
            until = time.monotonic() + timeout
            with self._open(socket.SOCK_STREAM, timeout) as stream:
                left = max(0.1, until - time.monotonic())
                return dns.query.tcp(request, self.address, left, sock=stream, one_rr_per_rrset=one_rr_per_rrset,
                                     ignore_trailing=ignore_trailing)  # fmt: skip
        name = request.question[0].name
        if name not in self._asked:
            self._asked[name] = self._open(socket.SOCK_DGRAM, timeout), request.id
        opened, request.id = self._asked[name]
        return dns.query.udp(
            request, self.address, timeout, sock=opened, one_rr_per_rrset=one_rr_per_rrset, ignore_trailing=ignore_trailing,
            ignore_unexpected=True, ignore_errors=True, raise_on_truncation=True,
        )  # fmt: skip

    def _open(self, kind: int, timeout: float) -> socket.socket:
        opened = self._door(self._family, kind)
        try:
            opened.settimeout(timeout)
            opened.connect(dns.inet.low_level_address_tuple((self.address, self.port)))
            opened.setblocking(False)
        except BaseException:
            opened.close()
            raise
        return opened


def _is_reachable(place: Endpoint, door: Door) -> bool:
    """Returns whether the kernel has a route to a place outside the tunnel."""
    family = socket.AF_INET if len(place.address) == 4 else socket.AF_INET6
    try:
        asked = door(family, socket.SOCK_DGRAM)
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT  # without host-service, a place counts as reachable
    with asked:
        try:
            address = (str(place.host), DISCARD)
            asked.connect(address if family == socket.AF_INET else (*address, 0, place.scope))
        except OSError:
            return False
    return True


def _place(text: str) -> Endpoint:
    """Raises OSError if no link has the zone's name or number."""
    address, _, zone = text.partition("%")
    if zone and not zone.isprintable():
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    scope = 0 if not zone else int(zone) if _NUMBER.fullmatch(zone) else socket.if_nametoindex(zone)
    return Endpoint(ip_address(address).packed, 0, scope)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
