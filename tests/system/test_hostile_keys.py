"""Searches all memory, files and logs of a gateway for keys: live ones are where they belong, dead ones nowhere."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from tests.memory import in_memory, names_in, resident

from key_service.homes import home_of
from lab.hub import Spoke
from lab.namespaces import Topology
from lab.wait import NeverHappened, until
from lab.wg import WgHub
from lab.wireguard_go import new_key_pair
from stagewire.config import decode_key
from stagewire.loop import boot_time
from stagewire.process import handed
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import InstallSession, SendHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker

pytestmark = pytest.mark.system

STAYS, LEAVES = Spoke(1, psk=True), Spoke(2, psk=True)
WORKERS: Final = 2


def ours(directory: Path) -> dict[int, str]:
    """Every process that was given the gateway's directory, with its name: spares and supervisord as well."""
    found = {}
    for entry in (each for each in Path("/proc").iterdir() if each.name.isdecimal()):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if str(directory).encode() in command + (entry / "environ").read_bytes():
                found[int(entry.name)] = Path(command.split(b"\0")[1].decode()).name
    return found


Places = dict[str, set[str]]


def in_processes(hub: WgHub, keys: Mapping[str, bytes]) -> Places:
    """The programs that have each key in their memory, each with its pid."""
    return _places(
        keys, ((f"{program} {pid}", in_memory(pid, keys)) for pid, program in ours(hub.gateway.run_directory).items())
    )


def in_files(hub: WgHub, keys: Mapping[str, bytes]) -> Places:
    """The files and logs that hold each key."""
    tops = (hub.gateway.log_directory, hub.gateway.run_directory, hub.gateway.state_directory)
    files = (each for top in tops for each in top.rglob("*") if each.is_file() and not each.is_symlink())
    return _places(keys, ((each.name.partition("-")[0], names_in(_content(each), keys)) for each in files))


def _content(file: Path) -> bytes:
    with suppress(FileNotFoundError):  # another has taken its place since it was listed
        return file.read_bytes()
    return b""


def _places(keys: Mapping[str, bytes], found: Iterable[tuple[str, set[str]]]) -> Places:
    places: Places = {name: set() for name in keys}
    for place, names in found:
        for name in names:
            places[name].add(place)
    return places


def expect_soon(hub: WgHub, keys: Mapping[str, bytes], places: Places) -> None:
    """Fails with what differs, unless the keys are in these programs alone within moments."""
    with suppress(NeverHappened):
        until(lambda: in_processes(hub, keys) == places, 2, "keys where they belong alone")
    assert in_processes(hub, keys) == places


def held(hub: WgHub) -> dict[str, int]:
    """The files with keys whose pages key-service maps as a whole: its memory is locked where that is allowed."""
    pid, folder = hub.gateway.pid("key"), hub.gateway.run_directory / hub.name / "key"
    pages = resident(pid, f"{folder}/")
    whole = {name for name, size in pages.items() if size >= (folder / name).stat().st_size}
    return {name: pages[name] for name in whole} | resident(pid, "/memfd:")


class Initiator:
    """A peer by hand, whose session keys a test knows."""

    def __init__(self, network: Topology, hub: WgHub, spoke: Spoke) -> None:
        self._gateway = decode_key(hub.keys.public)
        self._core = Handshaker(
            Identity.from_private_bytes(decode_key(spoke.keys.private)), bytes(12), os.urandom, float
        )
        endpoint = Endpoint(bytes(4), 1).pack()
        self._core.add_peer(self._gateway, decode_key(spoke.preshared_key), 0).endpoint = endpoint
        self._core.worker_up(0, boot_time(), time.time_ns())
        self._udp = network.a.udp_socket(Topology.A4)
        self._udp.settimeout(5)
        self._to = (Topology.B4, hub.port)

    def session(self) -> InstallSession:
        """Shakes hands once."""
        for effect in self._core.want(self._gateway, boot_time(), time.time_ns()):
            if isinstance(effect, SendHandshake):
                self._udp.sendto(effect.data, self._to)
        effects = self._core.receive_untrusted(
            self._udp.recv(1000), Endpoint(bytes(4), 1).pack(), boot_time(), time.time_ns()
        )
        return next(each for each in effects if isinstance(each, InstallSession))


@pytest.fixture
def network() -> Iterator[Topology]:
    with Topology("k") as topology:
        yield topology


def test_live_keys_are_where_they_belong_and_dead_keys_nowhere(network: Topology, lab_directory: Path) -> None:
    new = new_key_pair()
    with (
        WgHub(network.b, lab_directory, {"stays": STAYS, "leaves": LEAVES}, workers=WORKERS) as hub,
        hub.wireguard_go(STAYS, network.a, Topology.B4) as peer,
    ):
        ping = ("ping", "-c1", "-W1", STAYS.gateway_inner[0])
        until(lambda: peer.namespace.run(*ping, check=False).returncode == 0, 10, "traffic")
        session = Initiator(network, hub, LEAVES).session().keys
        own, stays, leaves = map(decode_key, (hub.keys.private, STAYS.preshared_key, LEAVES.preshared_key))
        long_term = {"private key": own, "pre-shared key": stays, "pre-shared key of the other": leaves}
        of_session = {"sending": session.send, "receiving": session.receive}
        key_service, worker = (
            f"key-service {hub.gateway.pid('key')}",
            f"device-service {hub.gateway.pid('device', home_of(decode_key(LEAVES.keys.public), WORKERS))}",
        )
        everything = {**long_term, **of_session}
        expected = {name: {key_service} if name in long_term else {worker} for name in everything}
        expect_soon(hub, everything, expected)
        assert in_files(hub, everything) == {name: {"accepted"} if name in long_term else set() for name in everything}

        assert {name.partition("-")[0] for name in held(hub)} >= {"accepted", handed.CONFIGURATION}

        hub.set("private-key", "/dev/stdin", data=new.private)
        until(lambda: any(name.startswith("live-") for name in held(hub)), 3, "the journal out of the swap's reach")
        assert in_files(hub, {"old": own, "new": decode_key(new.private)}) == {"old": set(), "new": {"live"}}
        hub.set("peer", STAYS.keys.public, "preshared-key", "/dev/null")
        hub.set("peer", LEAVES.keys.public, "remove")
        nowhere: Places = {name: set() for name in everything}
        assert in_files(hub, everything) == nowhere
        expect_soon(hub, everything, nowhere)
        assert in_processes(hub, {"new": decode_key(new.private)}) == {"new": {key_service}}
