"""Removes an interface that was moved or renamed, by tun-service's descriptor of it."""

import fcntl
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from stagewire.environment import Environment
from stagewire.linux import privileges, uids
from stagewire.process import slots
from stagewire_cli.networks import Network

_WITHIN: Final = 0.3
"""s that tun-service, which may hang, gets to give a copy."""
_TUNSETPERSIST: Final = 0x400454CB


@contextmanager
def released(environment: Environment, network: Network | None) -> Iterator[bool]:
    """Yields whether the interface vanishes by itself after the block, in which the caller ends tun-service.

    It does so if it isn't in `network` under its own name; otherwise host-service removes it there.
    """
    device = None
    if network is not None and not _is_there(environment.interface, network):
        device = _copy_of_device(environment)
    try:
        if device is not None:
            with suppress(OSError):  # the device may be deleted
                fcntl.ioctl(device, _TUNSETPERSIST, 0)
        yield device is not None
    finally:
        if device is not None:
            os.close(device)


def _is_there(interface: str, network: Network) -> bool:
    try:
        return bool(network.call(lambda: socket.if_nametoindex(interface)))
    except OSError:
        return False


def _copy_of_device(environment: Environment) -> int | None:
    """Returns the descriptor that tun-service hands down to its spare; the kernel vouches for the sender's uid."""
    from stagewire.linux import tun  # both are slow to import, and `down` seldom needs them
    from stagewire.process import hand_down

    if ("tun", 0) not in slots.held(environment.run):
        return None
    uids.look(environment)
    line = hand_down.ask(environment.run / "tun", 0, privileges.uid_of("tun"))
    if line is None:
        return None
    with line:
        given = hand_down.receive(line) if select.select([line], [], [], _WITHIN)[0] else None
    device = (given or {}).pop(tun.DESCRIPTOR, None)
    for other in (given or {}).values():
        os.close(other)
    return device
