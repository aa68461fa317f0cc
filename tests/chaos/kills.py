"""Makes faults of signals: to one process, several or all; kills, hangs and storms."""

import itertools
import signal
import time
from collections.abc import Callable
from typing import Final

from tests.chaos.house import House, Kind, Limits, Struck, ended, kill
from tests.chaos.processes import SUPERVISORD

from lab.wait import until

HUNG_FOR: Final = 1.5
"""s until the driver itself continues a hung process that no spare has killed."""
STORM: Final = 40
ORDERS: Final = list(itertools.permutations(["tun", "device", "conn", "key"]))


def nothing(_house: House) -> Struck:
    """Does nothing: its figures are the machine's own noise."""
    return Struck(peers=None)


def _victim(house: House, stage: str) -> tuple[int, set[int] | None, str]:
    number = house.worker() if stage == "device" else 0
    peers = {"device": house.at_home(number), "key": set(), "status": set(), "host": set(), "resolver": set()}.get(
        stage
    )
    return number, peers, f"worker {number}" if stage == "device" else stage


def killing(stage: str) -> Callable[[House], Struck]:
    """Makes a fault: SIGKILL of a slot's holder."""

    def strike(house: House) -> Struck:
        number, peers, name = _victim(house, stage)
        pid = house.active(stage, number)
        kill({pid})
        struck = Struck({pid}, peers=peers, note=name)
        if stage == "key":
            struck.measured["new_handshake_ms"] = house.new_handshake() * 1000
        return struck

    return strike


def hanging(stage: str) -> Callable[[House], Struck]:
    """Makes a fault: SIGSTOP of a slot's holder."""

    def strike(house: House) -> Struck:
        number, peers, name = _victim(house, stage)
        pid = house.active(stage, number)
        begun = time.monotonic()
        kill({pid}, signal.SIGSTOP)
        struck = Struck(may_die={pid}, peers=peers, note=f"{name}: ")
        try:
            if ended(pid, HUNG_FOR):
                struck.dead = {pid}
                struck.measured["noticed_ms"] = (time.monotonic() - begun) * 1000
                struck.note += f"killed after {struck.measured['noticed_ms']:.0f} ms"
            else:
                struck.note += "no spare noticed"
        finally:
            kill({pid}, signal.SIGCONT)
        return struck

    return strike


def kill_pair(house: House) -> Struck:
    """Kills a slot's holder and every spare of its stage at the same instant."""
    stage = ("tun", "conn", "device", "key")[house.turn("pair", 4)]
    number, peers, name = _victim(house, stage)
    now = house.now()
    others = {pid for (each, other), pid in now.held.items() if each == stage and other != number}
    pids = now.of(stage) - others
    kill(pids)
    return Struck(pids, peers=peers, note=f"{name}, {len(pids)} processes")


def kill_everything(house: House) -> Struck:
    """Kills all services, then starts them again in one of the 24 orders."""
    order = house.random.sample(ORDERS, 1)[0]
    pids = house.now().services()
    kill(pids)
    programs = house.supervisor.programs()
    since = time.time()
    try:
        house.supervisor.stop(programs)
        for stage in order:
            house.supervisor.start([name for name in programs if name.startswith(f"{stage}-service")])
            since = time.time()
    finally:
        house.supervisor.start(programs)
    return Struck(pids, note=" ".join(order), since=since)


def kill_everything_at_once(house: House) -> Struck:
    """Kills all services; supervisord must start them again."""
    pids = house.now().services()
    kill(pids)
    return Struck(pids)


def hangups(house: House) -> Struck:
    """Sends a storm of SIGHUP, which services ignore."""
    pids = sorted(house.now().services())
    for _ in range(STORM):
        kill({house.random.choice(pids)}, signal.SIGHUP)
        house.pace(0.01)
    return Struck(peers=set(), note=f"{STORM} signals")


def terminations(house: House) -> Struck:
    """Sends a storm of SIGTERM to whichever processes live at the moment."""
    met = house.now().services()
    count = STORM // 4
    for _ in range(count):
        here = house.now().services()
        met |= here
        if here:
            kill({house.random.choice(sorted(here))}, signal.SIGTERM)
        house.pace(0.05)
    return Struck(may_die=met, note=f"{count} signals")


def kill_supervisord(house: House) -> Struck:
    """Kills supervisord, starts another beside its orphans, and waits until these go one by one."""
    (pid,) = house.now().of(SUPERVISORD)
    before = house.now()
    begun = time.time()
    kill({pid})
    ended(pid, 5)
    house.pace(1.0)
    struck = Struck({pid}, peers=set(), note=f"{len(before.services())} left behind")
    struck.measured["orphaned_outage_ms"] = max(house.outages(begun).values()) * 1000
    house.supervisor.start_again()
    usual = len(before.services() & before.ready)
    # The new supervisord may have ended the orphaned spares by then.
    until(lambda: len((now := house.now()).ready & now.services() - before.services()) >= usual, 60, "another set")
    after = house.now()
    told = "\n".join(house.gateway.logs().values())
    for slot, holder in before.held.items():
        if after.held.get(slot) != holder and f"ends {holder}, which an earlier supervisord has left" not in told:
            struck.broken.append(f"slot {slot[0]} {slot[1]} got another holder though {holder} lived")
    struck.until = time.time()
    return struck


def end_orphans(house: House) -> None:
    """Ends the orphans of a dead supervisord, which would stay as spares and spoil the count."""
    for pid in sorted(house.now().services()):
        if _parent(pid) == 1:
            kill({pid}, signal.SIGTERM)
            ended(pid, 5)


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 - open() is faster for many processes
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


_FAST = Limits(median_ms=10, worst_ms=50, median_lost=1, worst_lost=300)
_WORKER = Limits(median_ms=100, worst_ms=400, others_lost=0)
_HANG = Limits(median_ms=500, worst_ms=800)
_ALL = Limits(worst_ms=3000)
_KEY = Limits(worst_lost=0, measured={"new_handshake_ms": 200})

KINDS: Final = (
    Kind("nothing", "no fault: the noise of the machine", nothing),
    Kind("kill-tun", "SIGKILL of tun-service", killing("tun"), _FAST, like="kill", short=True),
    Kind("kill-conn", "SIGKILL of conn-service", killing("conn"), _FAST, like="kill", short=True),
    Kind("kill-worker", "SIGKILL of a worker", killing("device"), _WORKER, like="kill", short=True),
    Kind("kill-key", "SIGKILL of key-service", killing("key"), _KEY, like="kill", short=True),
    Kind("kill-status", "SIGKILL of status-service", killing("status"), Limits(worst_lost=0)),
    Kind("kill-host", "SIGKILL of host-service", killing("host"), Limits(worst_lost=0)),
    Kind("kill-resolver", "SIGKILL of resolver-service", killing("resolver"), Limits(worst_lost=0)),
    Kind("hang-tun", "SIGSTOP of tun-service", hanging("tun"), _HANG, like="hang", short=True, dark=True),
    Kind("hang-conn", "SIGSTOP of conn-service", hanging("conn"), _HANG, like="hang", short=True, dark=True),
    Kind("hang-worker", "SIGSTOP of a worker", hanging("device"), _HANG, like="hang", short=True),
    Kind("hang-key", "SIGSTOP of key-service", hanging("key"), _HANG, like="hang", short=True),
    Kind(
        "kill-pair", "active and spares of one stage", kill_pair, Limits(worst_ms=2500),
        like="kill", short=True, dark=True,
    ),
    Kind("kill-all", "everything, supervisord restarts it", kill_everything_at_once, _ALL, like="kill", dark=True),
    Kind("start-order", "everything, started in some order", kill_everything, _ALL, short=True, dark=True),
    Kind("hup-storm", "SIGHUP storm", hangups, Limits(worst_lost=0)),
    Kind("term-storm", "SIGTERM storm", terminations, dark=True),
    Kind(
        "kill-supervisord", "supervisord killed, started again", kill_supervisord,
        Limits(worst_lost=0), tidy=end_orphans,
    ),
)  # fmt: skip
