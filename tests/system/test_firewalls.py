"""A gateway beside Debian's ufw and firewalld: what they keep passes by a command that `up` names, or by one line."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.system.test_gateway import FAMILIES, OPENED, OURS, PORT, WORLD, House, refused, seen_as

from lab.firewalls import Room
from lab.wait import until

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def house(shared_directory: Path) -> Iterator[House]:
    with ExitStack() as stack:
        house = House(stack, shared_directory)
        house.host.run("nft", "flush", "ruleset")
        yield house


@pytest.fixture
def room(house: House) -> Iterator[Room]:
    with Room(house.host) as room:
        yield room
    house.host.run("nft", "flush", "ruleset")


@dataclass(frozen=True, slots=True)
class Firewall:
    """How a firewall begins and ends, the commands that `up` must name, and what forgets rules that are not its own."""

    runs: Callable[[Room], AbstractContextManager[None]]
    named: tuple[str, ...]
    reload: str


@contextmanager
def ufw(room: Room) -> Iterator[None]:
    room.run("ufw", "allow", f"{PORT}/udp")
    room.run("ufw", "--force", "enable")
    yield


@contextmanager
def firewalld(room: Room) -> Iterator[None]:
    with room.firewalld():
        for where in ((), ("--permanent",)):
            room.run("firewall-cmd", *where, f"--add-port={PORT}/udp")
        yield


UFW = Firewall(ufw, ("ufw route allow in on wg0",), "ufw reload")
FIREWALLD = Firewall(
    firewalld,
    tuple(f"firewall-cmd {where}--zone=trusted --add-interface=wg0" for where in ("", "--permanent ")),
    "firewall-cmd --reload",
)


def passes(house: House) -> bool:
    return all(
        seen_as(client, WORLD[family], 80, 1) == OURS[family]
        for client in house.clients.values()
        for family in FAMILIES
    )


@pytest.mark.parametrize("firewall", [UFW, FIREWALLD], ids=["ufw", "firewalld"])
def test_what_it_keeps_passes_by_a_line_of_the_file_or_by_its_own_commands(
    house: House, room: Room, firewall: Firewall
) -> None:
    with firewall.runs(room):
        assert house.has(OPENED) == ""
        assert passes(house)
        room.run(*firewall.reload.split())
        until(lambda: passes(house), 15, "packets to pass again")
        assert f"`{'; '.join(firewall.named)}`" in house.has("# stagewire: Exit = on")
        assert "for wg0" not in house.host.run("nft", "list", "ruleset").stdout, "our rules are gone"
        assert refused(house.clients["one"], WORLD[4], 80)
        for command in firewall.named:
            room.run(*command.split())
        assert passes(house)
        if firewall is FIREWALLD:
            room.run(*firewall.reload.split())
            assert passes(house), "it forgets what was not permanent"
        assert house.has("# stagewire: Exit = on\n# stagewire: Isolation = on") == "", "it warns no more"


def test_a_forwarded_port_alone_passes_firewalld_and_is_warned_of_by_nobody(house: House, room: Room) -> None:
    with firewalld(room):
        assert house.has("# stagewire: Isolation = off", one="# stagewire: Forward = tcp 8080 80") == ""
        assert seen_as(house.world, OURS[4], 8080)
        assert seen_as(house.world, OURS[6], 8080)
        assert refused(house.clients["two"], WORLD[4], 80), "there is no exit"
