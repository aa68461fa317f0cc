"""Makes faults that an operator asks for: restarts, and other numbers of workers."""

import re
from typing import Final

from tests.chaos.house import House, Kind, Limits, Skipped, Struck
from tests.chaos.network import WORKERS

NUMBERS: Final = (1, 4, 2, 3)
PAUSE: Final = 2.0
"""s at each number of workers."""


def restart_one(house: House) -> Struck:
    """Runs `supervisorctl restart` of one program, which may be a spare."""
    name = house.random.choice(house.supervisor.programs())
    return _restart(house, [name])


def restart_some(house: House) -> Struck:
    """Runs `supervisorctl restart` of a few programs."""
    return _restart(house, house.random.sample(house.supervisor.programs(), 3))


def restart_all(house: House) -> Struck:
    """Runs `supervisorctl restart all`."""
    return _restart(house, house.supervisor.programs())


def _restart(house: House, names: list[str]) -> Struck:
    pids = house.supervisor.pids()
    meant = {pids[name] for name in names if pids.get(name)}
    house.supervisor.restart(names)
    return Struck(meant, note="all" if len(names) > 3 else ", ".join(name.rpartition(":")[2] for name in names))


def commands(house: House) -> set[str]:
    """Lists the commands of `stagewire`."""
    said = house.gateway.command("--help").stdout.partition("Commands:")[2]
    return set(re.findall(r"^  (\w+)", said, re.MULTILINE))


def _need(house: House, command: str) -> None:
    if command not in commands(house):
        raise Skipped(f"this stagewire has no command {command!r}")


def scale(house: House) -> Struck:
    """Sets other numbers of workers, each for two seconds, then the usual one."""
    _need(house, "scale")
    struck, before, record = Struck(), WORKERS, house.record
    for number in (*NUMBERS, WORKERS):
        first, old, new = record.ticks, house.network.homes(before), house.network.homes(number)
        struck.may_die |= house.now().of("device")
        house.gateway.command("scale", str(number), house.gateway.name)
        house.pace(PAUSE)
        struck.may_die |= house.now().of("device")
        struck.steps.append((first, record.ticks, {peer for peer in old if old[peer] != new[peer]}))
        before = number
    struck.note = ", ".join(map(str, (*NUMBERS, WORKERS)))
    return struck


def rolling(house: House) -> Struck:
    """Runs `stagewire restart NAME all`, which replaces one process after the other."""
    _need(house, "restart")
    before = house.now()
    house.gateway.command("restart", "all", house.gateway.name, timeout=90)
    after = house.now()
    stayed = [
        f"{stage} {number}" for (stage, number), pid in before.held.items() if after.held.get((stage, number)) == pid
    ]
    struck = Struck(may_die=before.services() | after.services())
    if stayed:
        struck.broken.append(f"`stagewire restart all` did not replace: {', '.join(stayed)}")
    return struck


_STEP: Final = Limits(median_ms=50, worst_ms=200)

KINDS: Final = (
    Kind("restart-one", "supervisorctl restart of one", restart_one),
    Kind("restart-some", "supervisorctl restart of some", restart_some, dark=True),
    Kind("restart-all", "supervisorctl restart all", restart_all, Limits(worst_ms=3000), dark=True),
    Kind(
        "scale",
        f"stagewire scale {', '.join(map(str, NUMBERS))}",
        scale,
        Limits(50, 200, others_lost=0),
        short=True,
        lasting=True,
    ),
    Kind("rolling", "stagewire restart all, rolling", rolling, _STEP, short=True, lasting=True),
)
