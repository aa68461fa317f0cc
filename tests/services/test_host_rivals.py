"""Routes of others for a prefix of ours: those that go before ours are said, none is replaced, and ours comes back."""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import pytest
from tests.services.host_kept import WANTED, Kept

from host_service.ground import Wanted
from lab.namespaces import Namespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network devices")

V4, V6 = "10.8.0.0/16", "fd08::/48"
TAKES = {
    "prepended": (f"route prepend {V4} via 192.0.2.2", "via 192.0.2.2 dev e0 proto boot"),
    "prepended to the link": (f"route prepend {V4} dev e0 proto 87", "dev e0 proto stagewire"),
    "several ways": (
        f"route prepend {V4} nexthop via 192.0.2.2 nexthop via 192.0.2.3",
        "nexthop via 192.0.2.2 dev e0 nexthop via 192.0.2.3 dev e0 proto boot",
    ),
    "blackhole": (f"route prepend blackhole {V4}", "blackhole proto boot"),
    "unreachable": (f"route prepend unreachable {V4}", "unreachable proto boot"),
    "prohibit": (f"route prepend prohibit {V4}", "prohibit proto boot"),
    "by IPv6": (f"route prepend {V4} via inet6 2001:db8::2 dev e0", "via 2001:db8::2 dev e0 proto boot"),
    "IPv6": (f"-6 route add {V6} via 2001:db8::2 metric 5", "via 2001:db8::2 dev e0 proto boot"),
    "IPv6 blackhole": (f"-6 route add blackhole {V6} metric 5", "blackhole proto boot"),
    "IPv6 appended": (f"-6 route append {V6} via 2001:db8::2", "via 2001:db8::2 dev e0 proto boot"),
    "replaced": (f"route replace {V4} via 192.0.2.2", "via 192.0.2.2 dev e0 proto boot"),
    "changed": (f"route change {V4} dev e0", "dev e0 proto boot"),
}
NARROW = {
    "tos": (f"route add {V4} tos 0x10 via 192.0.2.2", "tos 0x10 via 192.0.2.2 dev e0 proto boot"),
    "tos and a metric": (f"route add {V4} tos 0x10 via 192.0.2.2 metric 9", "tos 0x10 via 192.0.2.2 dev e0 proto boot"),
    "tos to nowhere": (f"route add blackhole {V4} tos 0x10", "blackhole tos 0x10 proto boot"),
    "from": (f"-6 route add {V6} from 2001:db8::1 via 2001:db8::2 metric 5", "via 2001:db8::2 dev e0 proto boot"),
}
BEHIND = {
    "appended": f"route append {V4} via 192.0.2.2",
    "appended blackhole": f"route append blackhole {V4}",
    "metric": f"route add {V4} via 192.0.2.2 metric 100 proto dhcp",
    "IPv6 metric": f"-6 route add {V6} via 2001:db8::2 metric 2000",
    "another table": f"route add {V4} via 192.0.2.2 table 99",
}


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("riv") as made:
        for command in (
            "link add e0 type veth peer name far",
            "link set e0 up",
            "link set far up",
            "address add 192.0.2.1/24 dev e0",
            "address add 2001:db8::1/64 dev e0 nodad",
        ):
            made.run("ip", *command.split())
        yield made


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture(params=["auto", "4242"])
def kept(request: pytest.FixtureRequest, namespace: Namespace, directory: Path) -> Iterator[Kept]:
    made = Kept(namespace, directory, wanted=Wanted(WANTED.addresses, 1420, request.param, 0))
    yield made
    made.close()


def table_of(kept: Kept) -> list[str]:
    wanted = kept.network.routes.wanted
    assert wanted is not None
    return [] if wanted.table == "auto" else ["table", wanted.table]


def in_table(kept: Kept, command: str) -> list[str]:
    """A command's words, for the table that ours are in."""
    table = "" if " table " in command else " ".join(table_of(kept))
    return " ".join(f"{word} {table}" if word in {V4, V6} else word for word in command.split()).split()


def again(kept: Kept) -> None:
    """Compares all, as a new host-service does."""
    wanted = kept.network.routes.wanted
    assert wanted is not None
    kept.begin(replace(wanted, mtu=wanted.mtu - 1))


def standing(kept: Kept) -> str:
    return "".join(kept.shows(family, "route", "show", *table_of(kept)) for family in ("-4", "-6"))


def whole(kept: Kept) -> bool:
    return all(f"{prefix} dev wg0 proto 87" in standing(kept) for prefix in (V4, V6))


def removal(command: str) -> str:
    """What takes the route away that a command has made."""
    return re.sub(r"route \w+", "route del", command)


@pytest.mark.parametrize("kind", [kind for kind in TAKES if "proto 87" not in TAKES[kind][0]])
def test_what_goes_before_ours_is_said_and_stays_and_ours_comes_back(kept: Kept, kind: str) -> None:
    command, text = TAKES[kind]
    about = f"route {V6 if '-6' in command else V4}"
    kept.namespace.run("ip", *in_table(kept, command))
    kept.until(lambda: about in kept.ground.warnings, f"the warning, not {kept.ground.warnings}")
    assert kept.ground.warnings == {about: f"{about} is taken: {text}; ours is made when that route goes"}
    kept.until(lambda: not kept.network.busy, "all to be done")
    after = standing(kept)
    again(kept)
    assert standing(kept) == after
    assert about in kept.ground.warnings
    kept.namespace.run("ip", *in_table(kept, removal(command)))
    kept.until(lambda: whole(kept) and not kept.ground.warnings, f"ours to be back, not {kept.ground.warnings}")
    assert set(kept.said) == {""}


@pytest.mark.parametrize("kind", NARROW)
def test_what_goes_before_ours_for_some_packets_is_said_and_ours_stays(kept: Kept, kind: str) -> None:
    command, text = NARROW[kind]
    about = f"route {V6 if '-6' in command else V4}"
    said = {about: f"{about} does not hold for all packets: {text} precedes it for some"}
    kept.namespace.run("ip", *in_table(kept, command))
    kept.until(lambda: about in kept.ground.warnings, f"the warning, not {kept.ground.warnings}")
    again(kept)
    assert kept.ground.warnings == said
    assert whole(kept)
    kept.namespace.run("ip", *in_table(kept, removal(command)))
    kept.until(lambda: not kept.ground.warnings, "the warning to go")
    assert whole(kept)


@pytest.mark.parametrize("kind", BEHIND)
def test_what_comes_after_ours_is_none_of_our_business(kept: Kept, kind: str) -> None:
    before = len(kept.said)
    kept.namespace.run("ip", *in_table(kept, BEHIND[kind]))
    kept.until(lambda: len(kept.said) > before or kind == "another table", "it to be looked at")
    again(kept)
    assert whole(kept)
    assert kept.ground.warnings == {}


@pytest.mark.parametrize("kind", [kind for kind in TAKES if kind not in {"replaced", "changed"}])
def test_what_stands_first_is_named_at_the_start(namespace: Namespace, directory: Path, kind: str) -> None:
    command, text = TAKES[kind]
    namespace.run("ip", *command.split())
    kept = Kept(namespace, directory)
    prefix = V6 if "-6" in command else V4
    assert kept.said[-1] == (f"route {prefix} is taken: {text}; remove that route, or the prefix from AllowedIPs")
    assert "proto 87" not in kept.shows("route", "show", "dev", "wg0")
    kept.close()


def test_what_stands_first_for_some_packets_is_said_at_the_start(namespace: Namespace, directory: Path) -> None:
    command, text = NARROW["tos"]
    namespace.run("ip", *command.split())
    kept = Kept(namespace, directory)
    assert kept.said == [""]
    about = f"route {V4}"
    assert kept.ground.warnings == {about: f"{about} does not hold for all packets: {text} precedes it for some"}
    kept.close()


@pytest.mark.parametrize(
    ("ours", "theirs", "allowed"),
    [("10.77.0.5/24", "10.77.0.1/24", "10.77.0.9/32"), ("fd77::5/64", "fd77::1/64", "fd77::/64")],
)
def test_a_network_of_our_address_that_leads_elsewhere_is_said(
    namespace: Namespace, directory: Path, ours: str, theirs: str, allowed: str
) -> None:
    """As with wg-quick its route stays the first, and packets for the peer go there."""
    lan = ["address", "add", theirs, "dev", "e0", *(["nodad"] if ":" in theirs else [])]
    namespace.run("ip", *lan)
    kept = Kept(namespace, directory, (allowed,), Wanted((ours,), 1420, "auto", 0))
    network = ip_interface(ours).network
    said = {f"route {network}": f"route {network} is taken: dev e0 proto kernel; "
                                "packets for our address's network go there until that route goes"}  # fmt: skip
    assert kept.said == [""]
    assert kept.ground.warnings == said
    namespace.run("ip", "address", "del", theirs, "dev", "e0")
    kept.until(lambda: not kept.ground.warnings, "the warning to go")
    assert "dev wg0" in kept.shows("route", "get", str(network[9]))
    namespace.run("ip", *lan)
    kept.until(lambda: not kept.network.busy and kept.network.next_deadline() is None, "it to be looked at")
    assert kept.ground.warnings == {}, "ours is the first"
    kept.close()
