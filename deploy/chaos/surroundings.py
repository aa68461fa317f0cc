"""Faults of what is around the gateway: its folder, its disk, its port, its interface's name."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chaos.house import House, Kind, Limits, Struck, kill
from chaos.network import GATEWAY

HELD: Final = 1.5
"""s for which somebody else has the port, or the name."""
STRANGER: Final = "4711"
BLOCK: Final = 1 << 20


def wipe(house: House) -> Struck:
    """Everything in the run folder is deleted under the gateway, and it goes on, or comes back by itself."""
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
    """The wiped folder had supervisord's socket and configuration too, which it never makes again."""
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
    """No room for state, logs, pipes; and just then key-service, which writes most, is killed."""
    with _full(house.network.directory):
        house.pace(0.5)
        pid = house.active("key")
        kill({pid})
        served = house.new_handshake(3.0)
        house.pace(0.5)
    return Struck({pid}, peers=set(), measured={"new_handshake_ms": served * 1000})


def port_taken(house: House) -> Struck:
    """conn-service and its spare stop, and somebody else has the port before they are back."""
    names = house.supervisor.of("conn")
    gone = house.now().of("conn")
    house.supervisor.stop(names)
    thief = house.network.gateway.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with thief:
        thief.bind((GATEWAY, house.hub.port))
        house.supervisor.start(names)
        house.pace(HELD)
        said = [text for name, text in house.gateway.logs().items() if "conn-service" in name]
    struck = Struck(gone, since=house.time())
    if not any("is taken" in text for text in said):
        struck.broken.append("conn-service did not say that its port is taken")
    return struck


def name_taken(house: House) -> Struck:
    """tun-service and its spare stop, the device goes, and another program makes one of that name."""
    names, namespace, device = house.supervisor.of("tun"), house.network.gateway, house.gateway.name
    gone = house.now().of("tun")
    house.supervisor.stop(names)
    namespace.run("ip", "link", "delete", device)
    namespace.run("ip", "tuntap", "add", device, "mode", "tun", "user", STRANGER)
    try:
        house.supervisor.start(names)
        house.pace(HELD)
        found = namespace.run("ip", "-details", "link", "show", device, check=False).stdout
        addresses = namespace.run("ip", "-o", "-4", "address", "show", "dev", device, check=False).stdout
    finally:
        with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
            namespace.run("ip", "link", "delete", device)
    struck = Struck(gone, since=house.time())
    if f"user {STRANGER}" not in found or "inet" in addresses:
        struck.broken.append(f"somebody else's interface was taken over: {found} {addresses}")
    return struck


_BACK: Final = Limits(worst_ms=3000)

KINDS: Final = (
    Kind("wipe", "the run directory wiped", wipe, _BACK, tidy=up_again),
    Kind("full-disk", "a full disk, and key-service killed", full_disk, Limits(worst_lost=0)),
    Kind("port-taken", "the UDP port taken", port_taken, _BACK),
    Kind("name-taken", "the TUN name taken", name_taken, _BACK),
)
