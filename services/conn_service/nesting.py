"""Follows the way to an endpoint that lies in our own tunnel, behind another peer.

Datagrams to such an endpoint are sealed twice. That works, unless the endpoint lies behind itself: then a datagram would be
sealed again and again. The kernel's WireGuard refuses every endpoint in the tunnel; wireguard-go refuses none.

key-service knows which peer has an address. It sends the endpoints through which a datagram would go, one behind the other
(`Chain`). The routing table knows which of them lies outside the tunnel. If none does, conn-service refuses the endpoint.

Other interfaces' peers are unknown here. A loop through them ends by `proto.packets.carried` and by `room`.

A chain holds until key-service says that chains changed. The conclusion from it holds until routes change. Datagrams to an
endpoint without a known chain wait for it, up to WAITS_FOR and MAX_WAITING.
"""

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from conn_service.egress import Egress
from stagewire.control.chains import Chain, ChainJudged, Nested
from stagewire.proto.endpoint import Endpoint, unpack_untrusted, with_limit, without_source
from stagewire.proto.packets.carried import EACH, HOPS

WAITS_FOR: Final = 1.0
"""s that a datagram waits for a chain, less than REKEY_TIMEOUT: a later handshake message would be of no use."""
MAX_WAITING: Final = 64
"""Runs and lone datagrams of all endpoints that may wait; beyond it the oldest is dropped."""
ASK_AGAIN: Final = 0.25
"""s between two questions about one endpoint."""
MAX_CHAINS: Final = 4096
MAX_CARRIED: Final = 2048
"""Bytes of a packet that one tunnel of this host carries for a second, and that for a third."""
THREE_DEEP: Final = HOPS - 2 * EACH
"""Hop limit that a datagram of two tunnels exceeds. It may enter a third tunnel in pieces, if that is Stagewire's."""
FOUR_DEEP: Final = HOPS - 3 * EACH
"""Hop limit that such a piece exceeds in the third tunnel. It may enter a fourth one whole, if that is Stagewire's."""

_Waiting = tuple[bytes, Sequence[bytes], float]


class Undecided(OSError):  # noqa: N818 - nothing is wrong
    """Tells that the endpoint's chain isn't known yet."""


class Nesting:
    """Finds the interface by which the kernel would send to an endpoint. Follows the way if that is the tunnel."""

    def __init__(
        self,
        egress: Egress,
        say: Callable[[Nested | ChainJudged], bool],
        send: Callable[[bytes, Sequence[bytes]], None],
    ) -> None:
        """Takes `say`, which tells key-service or returns False, and `send`, for datagrams that have waited."""
        self._egress = egress
        self._say = say
        self._send = send
        self._chains: dict[bytes, tuple[bytes, ...]] = {}
        self._passes: dict[bytes, bool] = {}
        """Whether a way leaves the tunnel, by endpoint without source; emptied when routes change."""
        self._refused: set[bytes] = set()
        """Endpoints whose refusal the present key-service knows."""
        self._doubted: set[bytes] = set()
        """Endpoints whose refusal an earlier key-service knew."""
        self._mark = self._port = 0
        """Mark and port of the latest question."""
        self._asked: dict[bytes, float] = {}
        self._waiting: deque[_Waiting] = deque()

    def interface(self, endpoint: Endpoint, mark: int, port: int) -> int | None:
        """Returns the interface's number for datagrams from the endpoint's source and our port; None without a route.

        Raises Undecided while the chain isn't known, and OSError (ELOOP) if the endpoint lies behind itself.
        """
        found = self._egress.interface(endpoint, mark, port)
        if found is None or found != self._egress.tunnel():
            return found
        self._mark, self._port = mark, port
        place = _place(endpoint.pack())
        passes = self._passes.get(place)
        if passes is None:
            chain = self._chains.get(place)
            if chain is None:
                raise Undecided(errno.EINPROGRESS, f"it isn't known yet whether {endpoint} lies behind itself")
            passes = self._passes[place] = any(map(self._leaves, chain))
            self._judged(place, passes)
        if not passes:
            raise OSError(errno.ELOOP, f"{endpoint} lies behind itself")
        return found

    def room(self, interface: int, limit: int, *, cut: bool) -> int | None:
        """Returns the longest packet that may carry a tunnel's datagram into another tunnel of this host; None if any may.

        Such a packet may be on its way round, longer each time. Where it no longer fits, its fragments would multiply.
        Stagewire's tunnels keep its hop `limit`, which tells how deep the packet is, and whether it was in pieces. Others
        begin with a new one: no piece may come to them. `cut` tells whether the datagram carries a fragment itself.
        """
        tunnel = self._egress.other_tunnel(interface)
        if tunnel is None:
            return None
        if tunnel.stagewires:
            if limit > THREE_DEEP:
                return None
            stays = limit > FOUR_DEEP or not cut
        else:
            stays = not cut and (limit > THREE_DEEP or limit % EACH == 0)
        return min(tunnel.mtu, MAX_CARRIED) if stays else 0

    def _leaves(self, packed: bytes) -> bool:
        endpoint = unpack_untrusted(packed)
        found = self._egress.interface(endpoint, self._mark, self._port)
        if found is None and endpoint.source:  # `Sockets` sends from another address if this one is gone
            found = self._egress.interface(endpoint._replace(source=b"", source_interface=0), self._mark, self._port)
        return found != self._egress.tunnel()

    def _judged(self, place: bytes, passes: bool) -> None:
        if passes == (place in self._refused) and (passes or len(self._refused) < MAX_CHAINS):
            self._say(ChainJudged(place, passes))
            (self._refused.discard if passes else self._refused.add)(place)

    def _look_again(self, place: bytes) -> None:
        """Judges a refused endpoint anew, so that `stagewire status` stays true. Sends no datagram."""
        self._judged(place, any(map(self._leaves, (place, *self._chains[place]))))

    def wait(self, packed: bytes, datagrams: Sequence[bytes], now: float) -> list[tuple[bytes, Sequence[bytes]]]:
        """Keeps datagrams until their chain comes, and asks for it. Returns the older ones that it drops."""
        place = _place(packed)
        if now >= self._asked.get(place, 0.0) and self._say(Nested(place)):
            if len(self._asked) >= MAX_CHAINS:
                self._asked.clear()
            self._asked[place] = now + ASK_AGAIN
        self._waiting.append((packed, datagrams, now))
        lost: list[tuple[bytes, Sequence[bytes]]] = []
        while len(self._waiting) > MAX_WAITING or self._waiting[0][2] < now - WAITS_FOR:
            lost.append(self._waiting.popleft()[:2])
        return lost

    def on_chain(self, message: Chain, now: float) -> None:
        """Sends what waited for this chain; `send` refuses an endpoint that lies behind itself."""
        place = without_source(message.endpoint)
        if len(self._chains) >= MAX_CHAINS:
            self._chains.clear()
        self._chains[place] = message.through
        self._asked.pop(place, None)
        if place in self._refused or place in self._doubted:
            self._doubted.discard(place)
            self._look_again(place)
        waiting, self._waiting = self._waiting, deque()
        for packed, datagrams, since in waiting:
            if _place(packed) != place:
                self._waiting.append((packed, datagrams, since))
            elif since >= now - WAITS_FOR:
                self._send(packed, datagrams)

    def start_anew(self) -> None:
        """Begins with a new key-service, which knows of no refusal."""
        self._doubted, self._refused = self._refused, set()
        self.forget_chains()

    def forget_chains(self) -> None:
        """Drops all chains, since a peer's addresses or endpoint changed, and asks again for those that are needed."""
        self._chains.clear()
        self._asked.clear()
        self.routes_changed()
        for place in {_place(packed) for packed, _, _ in self._waiting} | self._refused | self._doubted:
            self._say(Nested(place))

    def routes_changed(self) -> None:
        """Follows every way anew; to be called when routes change."""
        self._passes.clear()
        for place in [place for place in self._refused if place in self._chains]:
            self._look_again(place)


def _place(packed: bytes) -> bytes:
    return with_limit(without_source(packed), 0)
