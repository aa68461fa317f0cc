"""What holds for a gateway whatever is done to it: traffic comes back, no place is ever held twice, and in the end as many
processes run as are wanted."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from lab.hub import Hub, Spoke
from lab.namespaces import Namespace, Topology
from lab.stagewire import Gateway
from lab.traffic import NumberedStream
from lab.wait import until
from lab.wg import WgHub
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.process import holders, slots
from stagewire.stages import STAGES
from stagewire_cli import processes, show
from stagewire_cli.supervision import Supervision

BACK_WITHIN = 90.0
"""s; the machine may be busy with others."""
RATE = 100


def environment_of(gateway: Gateway) -> Environment:
    """As its own programs see it."""
    return Environment.read(gateway.env, gateway.name)


class Holders:
    """Looks again and again which processes hold which place, in the run folder as it is and as it was."""

    INTERVAL = 0.1

    def __init__(self, run: Path) -> None:
        self._run = run
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.doubled: list[dict[str, list[int]]] = []
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.INTERVAL):
            self.looks += 1
            if twice := {name: pids for name, pids in self._now().items() if len(pids) > 1}:
                # The files are looked at one after another: one may have changed hands meanwhile.
                again = self._now()
                if still := {name: pids for name, pids in twice.items() if again.get(name) == pids}:
                    self.doubled.append(still)

    def _now(self) -> dict[str, list[int]]:
        locked = {(lock.pid, lock.file.inode) for lock in holders.locks() if lock.exclusive}
        found: dict[str, list[int]] = {}
        for pid in {pid for pid, _ in locked}:
            with suppress(OSError):
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(OSError):
                        name = str(link.readlink()).removesuffix(" (deleted)")
                        if name.startswith(f"{self._run}/{slots.PREFIX}") and (pid, link.stat().st_ino) in locked:
                            found.setdefault(name, []).append(pid)
        return {name: sorted(set(pids)) for name, pids in found.items()}


class Overseen:
    """A gateway with one peer, and packets both ways all the time."""

    def __init__(self, hub: Hub, peer: Namespace, spoke: Spoke) -> None:
        self.hub, self.gateway, self.run = hub, hub.gateway, hub.gateway.run_directory / hub.name
        self.environment = environment_of(hub.gateway)
        self.supervision = Supervision(self.environment)
        self._peer, self.spoke = peer, spoke
        self._streams: list[NumberedStream] = []

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """At the end it must flow again, all be as it should, and never two have been in one place."""
        with ExitStack() as stack:
            holders = stack.enter_context(Holders(self.run))
            self._streams = [
                stack.enter_context(NumberedStream(self.hub.namespace, self._peer, self.spoke.inner[0], RATE)),
                stack.enter_context(NumberedStream(self._peer, self.hub.namespace, self.spoke.gateway_inner[0], RATE)),
            ]
            self.flows()
            yield
            self.flows()
            self.settles()
            for stream in self._streams:
                report = stream.finish(quiet=0)
                print(f"longest pause {report.longest_gap:.2f} s, lost {report.lost} of {report.sent}")
                assert report.duplicates == report.foreign == 0
        assert holders.doubled == []
        assert holders.looks > 0

    def flows(self, count: int = 30) -> None:
        """Waits until so many more packets have come on each side."""
        before = [stream.received for stream in self._streams]
        until(
            lambda: all(each.received >= was + count for each, was in zip(self._streams, before, strict=True)),
            BACK_WITHIN,
            "packets both ways",
        )

    def settles(self) -> None:
        """Waits until as many processes run as are wanted, all the children of one supervisord, and each has a spare."""
        until(self._settled, BACK_WITHIN, f"the right number of processes, {self.census()}")

    def census(self) -> Counter[str]:
        """How many processes each stage has."""
        return Counter({stage: len(slots.contenders(self.run, stage)) for stage in STAGES})

    def _settled(self) -> bool:
        answer = query.key_service(self.environment)
        if answer is None or not answer.ready:
            return False
        supervisords = self.supervision.pids()
        spares = self.environment.spares
        wanted = dict.fromkeys(STAGES, 1 + spares) | {"device": answer.workers.wanted + spares}
        everybody = processes.services(self.environment)
        return (
            len(supervisords) == 1
            and self.census() == wanted
            and len(everybody) == sum(wanted.values())
            and {holders.parent(pid) for pid in everybody} == {*supervisords}
            and len(self.gateway.held()) == len(STAGES) - 1 + answer.workers.wanted
            and all(each.spares >= spares for each in answer.stages if each.stage != "device")
        )

    def fault_of(self, stage: str) -> str:
        """What `stagewire status` says keeps a stage from its work."""
        found = show.gather(self.environment)
        services = found["services"] if found else []
        return next((str(each["fault"]) for each in services if each["service"] == f"{stage}-service"), "")

    def log_of(self, stage: str) -> str:
        """All that the processes of a stage have written."""
        return "".join(text for name, text in self.gateway.logs().items() if f"{stage}-service" in name)


@contextmanager
def overseen(label: str, directory: Path) -> Iterator[Overseen]:
    """A gateway with a spare for each place, and one peer, in namespaces of their own."""
    spoke = Spoke(1, Topology.A4)
    with (
        Topology(label) as topology,
        WgHub(topology.b, directory, {"one": spoke}, workers=1, spares=1) as hub,
        hub.wireguard_go(spoke, topology.a, Topology.B4),
    ):
        yield Overseen(hub, topology.a, spoke)
