"""Makes faults of the gateway's surroundings: its folder, its disk, its port, its interface's name."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.chaos.house import House, Kind, Limits, Struck, kill
from tests.chaos.network import GATEWAY

from lab.wait import NeverHappened, until

COMPLAINS_WITHIN: Final = 30.0
HELD: Final = 0.5
"""s for which another program keeps the port or the name after the stage has complained."""
STRANGER: Final = "4711"
BLOCK: Final = 1 << 20


def wipe(house: House) -> Struck:
    """Deletes everything in the run folder. The gateway must go on, or come back by itself."""
    services = house.now().services()
    for folder, names, files in os.walk(house.run, topdown=False):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                Path(folder, name).unlink()
        for name in names:
            with contextlib.suppress(OSError):
                Path(folder, name).rmdir()
    return Struck(may_die=services)


def up_again(house: House) -> None:
    """Starts the gateway anew: it never makes the wiped socket and configuration of supervisord again."""
    kill(set(house.now().roles))
    house.gateway.cut_off()
    house.gateway.up()


@contextlib.contextmanager
def _full(folder: Path) -> Iterator[None]:
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        size, step = 0, BLOCK
        while step >= 1:
            try:
                os.posix_fallocate(descriptor, size, step)
                size += step
            except OSError:
                step //= 2
        yield
    finally:
        os.close(descriptor)
        ballast.unlink()


def full_disk(house: House) -> Struck:
    """Leaves no room for state, logs and pipes, and kills key-service, which writes most."""
    with _full(house.network.directory):
        house.pace(0.5)
        pid = house.active("key")
        kill({pid})
        served = house.new_handshake(3.0)
        house.pace(0.5)
    return Struck({pid}, peers=set(), measured={"new_handshake_ms": served * 1000})


def _says(house: House, stage: str) -> Callable[[], bool]:
    """Returns a function that tells whether a stage has complained in its log since this call."""

    def complaints() -> int:
        logs = house.gateway.logs().items()
        return sum(text.count('event="cannot work"') for name, text in logs if f"{stage}-service" in name)

    before = complaints()
    return lambda: complaints() > before


def _start_in_vain(house: House, stage: str, names: list[str], struck: Struck) -> None:
    """Starts a stage that cannot work now, and waits until it has complained, and a little longer."""
    says = _says(house, stage)
    house.supervisor.start(names)
    try:
        until(says, COMPLAINS_WITHIN, "a complaint")
    except NeverHappened:
        struck.broken.append(f"{stage}-service did not log why it cannot work")
    house.pace(HELD)


def port_taken(house: House) -> Struck:
    """Stops host- and conn-service and their spares, which all have the sockets; another program takes the port."""
    names = house.supervisor.of("host") + house.supervisor.of("conn")
    struck = Struck(house.now().of("host") | house.now().of("conn"))
    try:
        house.supervisor.stop(names)
        with house.network.gateway.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as thief:
            thief.bind((GATEWAY, house.hub.port))
            _start_in_vain(house, "host", names, struck)
    finally:
        house.supervisor.start(names)
    struck.since = house.time()
    return struck


def name_taken(house: House) -> Struck:
    """Stops tun-service and its spare, removes the device, and lets another program make one of that name."""
    names, run, device = house.supervisor.of("tun"), house.network.gateway.run, house.gateway.name
    struck = Struck(house.now().of("tun"))
    try:
        house.supervisor.stop(names)
        run("ip", "link", "delete", device)
        run("ip", "tuntap", "add", device, "mode", "tun", "user", STRANGER)
        _start_in_vain(house, "tun", names, struck)
        found = run("ip", "-details", "link", "show", device, check=False).stdout
        addresses = run("ip", "-o", "-4", "address", "show", "dev", device, check=False).stdout
        if f"user {STRANGER}" not in found or "inet" in addresses:
            struck.broken.append(f"the gateway took over another program's interface: {found} {addresses}")
    finally:
        run("ip", "link", "delete", device, check=False)
        house.supervisor.start(names)
    struck.since = house.time()
    return struck


_BACK: Final = Limits(worst_ms=3000)

KINDS: Final = (
    Kind("wipe", "the run directory wiped", wipe, _BACK, tidy=up_again, dark=True),
    Kind("full-disk", "a full disk, and key-service killed", full_disk, Limits(worst_lost=0)),
    Kind("port-taken", "the UDP port taken", port_taken, _BACK, dark=True),
    Kind("name-taken", "the TUN name taken", name_taken, _BACK, dark=True),
)
