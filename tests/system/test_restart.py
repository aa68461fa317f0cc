"""Any stage may restart or be killed under traffic: the tunnel comes back, and no nonce and no packet comes twice."""

import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import pytest

from lab.capture import Capture
from lab.namespaces import Namespace, veth
from lab.stagewire import Gateway
from lab.traffic import NumberedStream, StreamReport, ping
from lab.wait import NeverHappened, until
from lab.wireguard_go import Peer, new_key_pair, new_preshared_key
from stagewire.control import query
from stagewire.control.status import PeerStatus
from stagewire.environment import Environment
from stagewire_cli.supervision import Supervision

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PORT = 51820
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.9.0.1", "10.9.0.2")
BACK_WITHIN = 20.0
"""s; supervisord needs up to two to start a program again, and a busy machine more."""
INITIATION, RESPONSE, COOKIE_REPLY = 1, 2, 3
STARVED = ("worker_full", "train_too_old", "staging_full")
"""What the services count when they themselves had to wait for a processor longer than a packet may."""


class Side:
    """One gateway of a pair, asked and told in this very process where that is quicker than a command."""

    def __init__(self, gateway: Gateway, outer: str, inner: str) -> None:
        self.gateway, self.namespace, self.outer, self.inner = gateway, gateway.namespace, outer, inner
        self.environment = Environment.read(
            {
                "STAGEWIRE_RUN_DIR": str(gateway.run_directory),
                "STAGEWIRE_STATE_DIR": str(gateway.state_directory),
                "STAGEWIRE_LOG_DIR": str(gateway.log_directory),
            },
            gateway.name,
        )
        self.supervision = Supervision(self.environment)

    def pids(self) -> dict[str, int]:
        """Of the programs that run now."""
        held = self.gateway.held().items()
        return {
            f"device-service_{number:02d}" if stage == "device" else f"{stage}-service": pid
            for (stage, number), pid in held
        }

    def ready(self) -> bool:
        """Whether key-service says that everybody is at work."""
        answer = query.key_service(self.environment)
        return answer is not None and answer.ready

    def wait_until_ready(self) -> None:
        until(self.ready, BACK_WITHIN, f"{self.namespace.label} to be ready")

    def peer(self) -> PeerStatus:
        """What key-service knows of the one peer."""
        answer = until(lambda: query.key_service(self.environment), BACK_WITHIN, "key-service's answer")
        assert answer is not None
        return answer.peers[0]

    def home(self) -> str:
        """The worker that the peer is at home in, as supervisord calls it."""
        return f"device-service_{self.peer().worker:02d}"

    def count(self, *names: str) -> int:
        """The sum of some counters of all services."""
        answer = query.status_service(self.environment)
        services = answer.services if answer is not None else ()
        return sum(each.counters.get(name, 0) for each in services for name in names)

    def supervisorctl(self, *arguments: str) -> str:
        return self.gateway.supervisorctl(*arguments).stdout


class Pair:
    """Two gateways joined by a wire that is watched from first to last."""

    def __init__(self, directory: Path, workers: int = 2) -> None:
        self._directory, self._workers = directory, workers
        self._stack = ExitStack()
        self.sides: list[Side] = []
        self.capture: Capture

    @property
    def a(self) -> Side:
        return self.sides[0]

    @property
    def b(self) -> Side:
        return self.sides[1]

    def __enter__(self) -> Self:
        with self._stack:
            a, b = (self._stack.enter_context(Namespace(label)) for label in ("a", "b"))
            link = veth(a, b, [f"{OUTER[0]}/24"], [f"{OUTER[1]}/24"])
            self.capture = self._stack.enter_context(Capture(a, link.a_interface, snap=200))
            gateways = [
                Gateway(namespace, "wg0", self._folder(namespace.label), text, self._workers)
                for namespace, text in zip((a, b), _configurations(), strict=True)
            ]
            with ThreadPoolExecutor() as both:
                list(both.map(self._stack.enter_context, gateways))
            self.sides = [Side(*each) for each in zip(gateways, OUTER, INNER, strict=True)]
            self.wait_for_traffic()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _folder(self, label: str) -> Path:
        folder = self._directory / label
        folder.mkdir(mode=0o755)
        return folder

    def wait_for_traffic(self) -> None:
        for side in self.sides:
            side.wait_until_ready()
        until(self.passes, BACK_WITHIN, "a ping to come back")

    def passes(self) -> bool:
        return ping(self.a.namespace, INNER[1], timeout=1).received == 1

    def no_nonce_twice(self) -> None:
        self.capture.assert_no_duplicate_counters(PORT)

    def everything(self) -> dict[str, dict[str, int]]:
        return {side.namespace.label: side.pids() for side in self.sides}

    def messages(self, kind: int, source: str, since: float = 0) -> list[bytes]:
        """The handshake messages of one type that a side has sent."""
        return [
            each.payload
            for each in self.capture.datagrams(PORT, since)
            if each.source[0] == source and each.payload[:4] == struct.pack("<I", kind)
        ]


def _configurations() -> list[str]:
    keys, psk = [new_key_pair() for _ in range(2)], new_preshared_key()
    texts = []
    for me, other in ((0, 1), (1, 0)):
        peer = Peer(keys[other].public, [f"{INNER[other]}/32"], f"{OUTER[other]}:{PORT}", psk)
        interface = f"[Interface]\nPrivateKey = {keys[me].private}\nListenPort = {PORT}\nAddress = {INNER[me]}/24\n"
        texts.append(interface + peer.section() + "\n")
    return texts


class Streams:
    """Numbered packets both ways while something happens."""

    def __init__(self, pair: Pair, rate: float = 400) -> None:
        self._streams = [
            NumberedStream(pair.a.namespace, pair.b.namespace, INNER[1], rate),
            NumberedStream(pair.b.namespace, pair.a.namespace, INNER[0], rate),
        ]
        self._stack = ExitStack()
        self._pair = pair
        self._starved = self._count_starved()

    def __enter__(self) -> Self:
        for stream in self._streams:
            self._stack.enter_context(stream)
        self.flow()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def flow(self, count: int = 100) -> None:
        """Waits until so many more have arrived on each side."""
        at = [stream.received for stream in self._streams]
        until(
            lambda: all(stream.received >= was + count for stream, was in zip(self._streams, at, strict=True)),
            BACK_WITHIN,
            f"packets to flow both ways, {[(stream.sent, stream.received) for stream in self._streams]}",
        )

    def finish(self) -> int:
        """Ends them; no packet may have come twice. Returns how many were lost for another reason than a busy machine."""
        reports: list[StreamReport] = [stream.finish() for stream in self._streams]
        for report in reports:
            assert report.duplicates == report.foreign == 0
        lost = sum(report.lost for report in reports)
        if lost:
            with suppress(NeverHappened):
                until(lambda: self._count_starved() - self._starved >= lost, 2.5, "the losses to be counted")
        # A new status-service knows nothing of lives before its own, and so may know of less.
        return max(0, lost - max(0, self._count_starved() - self._starved))

    def _count_starved(self) -> int:
        return sum(side.count(*STARVED) for side in self._pair.sides)


@pytest.fixture(scope="module")
def pair(shared_directory: Path) -> Iterator[Pair]:
    with Pair(shared_directory) as made:
        yield made
        made.no_nonce_twice()
        for side in made.sides:
            for name, text in side.gateway.logs().items():
                assert "Traceback" not in text, f"{name}: {text}"


def restart(side: Side, program: str) -> None:
    processes = {process.pid: process for process in side.supervision.processes() or []}
    process = processes[side.pids()[program]]
    assert "started" in side.supervisorctl("restart", f"{process.group}:{process.name}")


def kill(side: Side, program: str) -> None:
    os.kill(side.pids()[program], signal.SIGKILL)


def lost_by(pair: Pair, program: str, fault: Callable[[Side, str], None]) -> int:
    """Lets it happen to a program of A's under traffic; returns the packets that were lost."""
    before = pair.everything()
    with Streams(pair) as streams:
        fault(pair.a, program)
        until(lambda: pair.a.pids().get(program, 0) not in (0, before["a"][program]), BACK_WITHIN, "another process")
        pair.a.wait_until_ready()
        streams.flow()
        lost = streams.finish()
    after = pair.everything()
    assert {name for name in before["a"] if after["a"][name] != before["a"][name]} == {program}
    assert after["b"] == before["b"]
    pair.no_nonce_twice()
    return lost


@pytest.mark.parametrize("fault", [restart, kill])
@pytest.mark.parametrize("stage", ["tun", "device", "conn"])
def test_any_stage_that_packets_pass_through_may_go(pair: Pair, stage: str, fault: Callable[[Side, str], None]) -> None:
    lost_by(pair, pair.a.home() if stage == "device" else f"{stage}-service", fault)


@pytest.mark.parametrize("fault", [restart, kill])
@pytest.mark.parametrize("stage", ["key", "status"])
def test_a_stage_that_packets_pass_by_costs_none_of_them(
    pair: Pair, stage: str, fault: Callable[[Side, str], None]
) -> None:
    # Where others use the processors too, a loss now and then is theirs; what the fault costs, it costs each time.
    assert 0 in (lost_by(pair, f"{stage}-service", fault) for _ in range(4))


def test_a_killed_worker_gives_its_peers_a_new_session_by_our_initiation(pair: Pair) -> None:
    at = pair.capture.frames()[-1].time + 1e-9
    before = pair.a.peer().last_handshake_unix_s or 0.0
    kill(pair.a, pair.a.home())  # and not a packet that would ask for one
    until(lambda: (pair.a.peer().last_handshake_unix_s or 0.0) > before, BACK_WITHIN, "a handshake")
    assert len(pair.messages(INITIATION, OUTER[0], at)) == 1
    assert len(pair.messages(RESPONSE, OUTER[1], at)) == 1
    assert pair.messages(INITIATION, OUTER[1], at) == []
    with Streams(pair) as streams:  # at once, and none is lost
        streams.flow()
        assert streams.finish() == 0


def test_a_hangup_does_nothing(pair: Pair) -> None:
    before = pair.everything()
    with Streams(pair) as streams:
        for _ in range(5):
            for pids in before.values():
                for pid in pids.values():
                    os.kill(pid, signal.SIGHUP)
        streams.flow()
        assert streams.finish() == 0
    assert pair.everything() == before


@pytest.mark.parametrize("fault", [restart, kill])
def test_an_initiation_from_before_is_not_answered_after(pair: Pair, fault: Callable[[Side, str], None]) -> None:
    """Recorded on the wire, from every handshake so far, and sent again after B's key-service is another process."""
    recorded = pair.messages(INITIATION, OUTER[0])
    assert recorded
    # conn-service refuses what has just come, and more than a few of one source.
    refusals = ("initiation_replayed", "handshake_repeated", "cookie_demanded")
    refused = pair.b.count(*refusals)
    endpoint = pair.b.peer().endpoint
    pid = pair.b.pids()["key-service"]
    fault(pair.b, "key-service")
    until(lambda: pair.b.pids().get("key-service", pid) != pid, BACK_WITHIN, "another process")
    pair.b.wait_until_ready()
    attacker = pair.a.namespace.udp_socket(OUTER[0])
    place = attacker.getsockname()
    for initiation in recorded:
        attacker.sendto(initiation, (OUTER[1], PORT))
    until(
        lambda: pair.b.count(*refusals) >= refused + len(recorded),
        BACK_WITHIN,
        f"{len(recorded)} replays to be refused",
    )
    answers = [each.payload[0] for each in pair.capture.datagrams(place[1]) if each.destination == place]
    assert set(answers) <= {COOKIE_REPLY}  # which says nothing of its sender
    assert pair.b.peer().endpoint == endpoint
    assert pair.passes()


def wait_until_replaced(side: Side, programs: list[str], old: dict[str, int]) -> None:
    def replaced() -> bool:
        pids = side.pids()
        return all(pids.get(name, old[name]) != old[name] for name in programs)

    until(replaced, BACK_WITHIN, f"other processes of {programs}")


def descriptors(pids: dict[str, int]) -> dict[str, int]:
    return {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in pids.items()}


def test_ten_deaths_of_their_neighbours_leave_no_descriptor_behind(pair: Pair) -> None:
    """In A conn- and key-service die at once each time, in B tun-service and the worker; the others live on."""
    victims = {"a": ["conn-service", "key-service"], "b": ["tun-service", pair.b.home()]}
    pair.wait_for_traffic()
    start = pair.everything()
    before = {label: descriptors(pids) for label, pids in start.items()}
    for _ in range(10):
        at = pair.everything()
        for side in pair.sides:
            for program in victims[side.namespace.label]:
                os.kill(at[side.namespace.label][program], signal.SIGKILL)
        for side in pair.sides:
            wait_until_replaced(side, victims[side.namespace.label], at[side.namespace.label])
            side.wait_until_ready()
    pair.wait_for_traffic()
    after = pair.everything()
    for label, pids in start.items():
        assert {name for name in pids if after[label][name] != pids[name]} == set(victims[label])

    def as_before() -> bool:
        return {label: descriptors(pids) for label, pids in after.items()} == before

    until(as_before, 5, f"as many descriptors as before: {before}")
    pair.no_nonce_twice()


def test_all_at_once(pair: Pair) -> None:
    """Also: all of B's processes killed without a word, in some order."""
    before = pair.everything()
    with Streams(pair) as streams:
        pair.a.supervisorctl("restart", "all")
        pair.wait_for_traffic()
        streams.flow()
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        for pid in random.Random(seed).sample(sorted(before["b"].values()), len(before["b"])):
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(pair.b.pids().values()) - set(before["b"].values())) == len(before["b"]), 20, "all anew")
        pair.wait_for_traffic()
        streams.flow()
        streams.finish()
    after = pair.everything()
    for label, pids in before.items():
        assert set(after[label]) == set(pids)
        assert not set(after[label].values()) & set(pids.values())
