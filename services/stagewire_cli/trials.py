"""Tries a handshake with a peer, then packets through the tunnel, for `stagewire why`."""

import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from stagewire.config import decode_key
from stagewire.control import query
from stagewire.environment import Environment
from stagewire_cli import host_facts, ping, show
from stagewire_cli.causes.tunnel import PINGS
from stagewire_cli.evidence import RECENT, Evidence, Path, Tried

TRY_FOR: Final = 6.5
"""s for a handshake: the protocol may hold it for 5."""
ANSWER_WITHIN: Final = 2.0
"""s from an initiation that has left to its answer."""
COUNTED_WITHIN: Final = 1.2
"""s until status-service knows what a stage has counted."""
ALL_WITHIN: Final = 9.0
"""s for everything that is tried."""
_POLL: Final = 0.1
PING_WITHIN: Final = 0.5
_HOST_FAILS_WITHIN: Final = 3.3
"""s until a router gives up to look for a host."""
_RESTS: Final = (0.0, 0.0, 2.2)
"""s before each ping that a router is to refuse: after some refusals, Linux refuses another only after 2 s of rest."""
_BETWEEN: Final = 0.02
SILENT_BYTES: Final = 500
"""Bytes of handshakes and keepalives: less says that no packet has come."""
_OWN_ADDRESSES: Final = 3

Status = dict[str, Any]
_Address = IPv4Address | IPv6Address


def run(environment: Environment, evidence: Evidence, addresses: list[str], guesses: list[str], begun: float) -> None:
    """Tries all, within ALL_WITHIN from `begun`, and puts what came of it into the evidence.

    `addresses` are the peer's own in the tunnel; `guesses` are tried if there are none, and may be nobody's.
    """
    public_key = evidence.peer["public_key"]
    if evidence.peer["endpoint"] is not None:
        asked = query.handshake_now(environment, decode_key(public_key))
        if asked is not None and not asked.error:
            evidence.tried = _await_answer(environment, evidence, public_key)
    lives = evidence.shaken is not None and evidence.shaken <= RECENT
    before = _peer(environment, public_key) if evidence.connected or lives else None
    if before is not None:  # a session may live though an answer to a handshake was lost
        refused = host_facts.refused_forwards()
        evidence.path = _path(evidence, addresses, guesses, begun + ALL_WITHIN)
        # A peer may send our own pings back, which this host then refuses.
        for version, count in host_facts.refused_forwards().items():
            evidence.refused_forwards[version] += count - refused[version]
    # What the trials have made the stages count belongs to the evidence.
    known = show.known(environment)
    evidence.peer = _of(known["peers"], public_key) or evidence.peer
    evidence.arrives = before is not None and evidence.peer["rx_bytes"] > before["rx_bytes"] + SILENT_BYTES
    evidence.strangers, evidence.now = known["strangers"], time.time()


def _peer(environment: Environment, public_key: str) -> Status | None:
    return _of(show.known(environment)["peers"], public_key)


def _of(peers: list[Status], public_key: str) -> Status | None:
    return next((peer for peer in peers if peer["public_key"] == public_key), None)


# --- the handshake ------------------------------------------------------------------------------------------


def _await_answer(environment: Environment, evidence: Evidence, public_key: str) -> Tried:
    before, begun, place = evidence.peer, time.monotonic(), evidence.peer["endpoint"]
    deadline, sent = begun + TRY_FOR, False
    refused = _counted(before, "response_not_authentic")
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        known = query.key_service(environment)
        now = next((peer for peer in known.peers if peer.public_key == public_key), None) if known else None
        if now is None:
            continue
        if now.last_handshake_unix_s != before["last_handshake_unix_s"]:
            return "answered"
        if now.endpoint != place:  # it has moved meanwhile
            place, sent, deadline = now.endpoint, False, begun + TRY_FOR
            query.handshake_now(environment, decode_key(public_key))
        elif not sent and now.tx_bytes > before["tx_bytes"]:
            sent, deadline = True, min(deadline, time.monotonic() + ANSWER_WITHIN)
    _until(COUNTED_WITHIN, begun)
    after = _peer(environment, public_key)
    more = after is not None and _counted(after, "response_not_authentic") > refused
    return "refused" if more else "unanswered"


def _until(seconds: float, since: float) -> None:
    time.sleep(max(0.0, since + seconds - time.monotonic()))


def _counted(peer: Status, reason: str) -> int:
    return sum(each["count"] for each in peer["reasons"] if each["reason"] == reason)


# --- packets ------------------------------------------------------------------------------------------------


def _path(evidence: Evidence, addresses: list[str], guesses: list[str], end: float) -> Path:
    """Pings the target, or the peer's own addresses, with small packets and with one of the MTU's size."""
    path = Path(mtu=evidence.path.mtu)
    targets = [evidence.target] if evidence.target else addresses[:_OWN_ADDRESSES]
    if not path.mtu:
        return path
    tried = _Tried(evidence.interface, end)
    try:
        if not targets:
            targets = [each for each in guesses if tried.answers(ip_address(each))][:1]
        if not targets:
            return path
        works = [each for each in targets if tried.passes(ip_address(each), ping.SMALL)]
        path.small = bool(works)
        if works:
            _measure(path, tried, ip_address(works[0]))
        if not evidence.target:
            silent = [each for each in targets if each not in works]
            tcp = [each for each in silent if ping.answers_tcp(each, tried.interface, tried.within(PING_WITHIN))]
            path.answering, path.silent = tuple(works), tuple(each for each in silent if each not in tcp)
            path.other_answer = tcp[0] if tcp else ""
        elif not works:
            _look_behind(path, tried, ip_address(evidence.target), addresses)
    except OSError:  # no right to open such a socket
        return Path(mtu=path.mtu)
    return path


class _Tried:
    """Sends pings through an interface until an end."""

    def __init__(self, interface: str, end: float) -> None:
        self.interface, self.end = interface, end
        self.refused: dict[_Address, ping.Heard] = {}
        """What answered that it can't hand a packet to an address on."""

    def within(self, seconds: float) -> float:
        return max(0.0, min(seconds, self.end - time.monotonic()))

    def answers(self, address: _Address) -> bool:
        """Pings once, without another try."""
        return ping.answered(address, self.interface, ping.SMALL, self.within(PING_WITHIN))

    def passes(self, address: _Address, size: int) -> bool:
        """Pings twice, as one packet may be lost."""
        for _ in range(2):
            heard = ping.ask(address, self.interface, size, self.within(PING_WITHIN))
            if heard is not None and heard.kind == "echo":
                return True
            if heard is not None and heard.kind == "unreachable":
                self.refused[address] = heard
                break  # routers say so a few times only
        return False


def _measure(path: Path, tried: _Tried, address: _Address) -> None:
    path.large = tried.passes(address, path.mtu)
    path.fits = path.mtu
    if not path.large:
        path.fits = ping.largest(address, tried.interface, path.mtu, tried.within(PING_WITHIN))
    for _ in range(PINGS):
        time.sleep(_BETWEEN)
        wait = tried.within(PING_WITHIN / 2)
        path.lost += wait > 0 and not ping.answered(address, tried.interface, ping.SMALL, wait)


def _look_behind(path: Path, tried: _Tried, target: _Address, addresses: list[str]) -> None:
    """Finds out how far packets to a target come that doesn't answer: to the peer, through the peer, to the last router."""
    same = [each for each in map(ip_address, addresses[:_OWN_ADDRESSES]) if each.version == target.version]
    path.answering = tuple(str(each) for each in same[:2] if tried.passes(each, ping.SMALL))
    path.refused = tried.refused.get(target)
    for rest in () if path.refused else _RESTS:
        time.sleep(tried.within(rest))
        heard = ping.ask(target, tried.interface, ping.SMALL, tried.within(PING_WITHIN), hops=1)
        if heard is not None and heard.kind == "exceeded":
            path.forwards = heard
        if heard is not None and heard.kind == "unreachable":
            path.refused = heard
        if heard is not None:
            break
    if path.refused is None:
        wait = _HOST_FAILS_WITHIN if path.forwards is not None else PING_WITHIN
        heard = ping.ask(target, tried.interface, ping.SMALL, tried.within(wait))
        path.refused = heard if heard is not None and heard.kind == "unreachable" else None
