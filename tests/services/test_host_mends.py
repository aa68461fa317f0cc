"""Upkeep of a host's network in one process: what others do to it, and what changes while it runs."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.services.disks import full_disk, small_disk
from tests.services.host_kept import WANTED, Kept, whole

from host_service import firewall
from host_service.ground import Wanted
from host_service.ledger import AddressAdded, LinkMoved, NftTableMade, RuleAdded, Unwritten
from lab.namespaces import Namespace
from stagewire.loop import boot_time

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network devices")


TABLE = "inet stagewire-wg0"


@pytest.fixture
def kept() -> Iterator[Kept]:
    with tempfile.TemporaryDirectory() as directory, Namespace("mend") as namespace:
        made = Kept(namespace, Path(directory))
        yield made
        made.close()


def test_a_deleted_interface_is_made_again_and_packets_are_held_back_meanwhile(kept: Kept) -> None:
    assert whole(kept)
    before = kept.shows("route", "show", "type", "unreachable")
    kept.namespace.run("ip", "link", "delete", "wg0")
    assert kept.shows("route", "show", "type", "unreachable") == before
    kept.until(lambda: whole(kept), "all to be back")
    assert kept.shows("route", "show", "type", "unreachable").count("10.8.0.0/16") == 1
    assert set(kept.said) == {""}


def test_a_renamed_interface_is_said_and_no_other_is_made(kept: Kept) -> None:
    kept.namespace.run("sh", "-c", "ip link set wg0 down; ip link set wg0 name other; ip link set other up")
    kept.until(lambda: "renamed to other" in kept.said[-1], "that to be said")
    assert "wg0" not in kept.shows("link")
    kept.namespace.run("sh", "-c", "ip link set other down; ip link set other name wg0; ip link set wg0 up")
    kept.until(lambda: kept.said[-1] == "" and whole(kept), "all to be back")


def test_a_route_that_is_replaced_is_made_again_when_that_goes(kept: Kept) -> None:
    assert kept.ground.warnings == {}
    kept.namespace.run("ip", "route", "replace", "10.8.0.0/16", "dev", "lo", "proto", "static")
    kept.until(lambda: "route 10.8.0.0/16" in kept.ground.warnings, f"the warning, not {kept.ground.warnings}")
    assert kept.ground.warnings["route 10.8.0.0/16"].startswith("route 10.8.0.0/16 is taken: dev lo proto static")
    kept.namespace.run("ip", "route", "del", "10.8.0.0/16", "dev", "lo")
    kept.until(lambda: whole(kept) and not kept.ground.warnings, "ours to be back")


def test_a_default_route_comes_changes_its_mark_and_goes(kept: Kept) -> None:
    default = ip_network("0.0.0.0/0")
    kept.prefixes[default] = None
    kept.namespace.call(lambda: kept.network.add([default]))
    kept.until(lambda: not kept.network.busy, "the default route")
    assert "default dev wg0 proto 87" in kept.shows("route", "show", "table", "51820")
    kept.begin(Wanted(WANTED.addresses, 1420, "auto", 0x77))
    assert kept.network.policy.number == 0x77
    assert "default dev wg0 proto 87" in kept.shows("route", "show", "table", "119")
    assert kept.shows("route", "show", "table", "51820") == ""
    rules = kept.shows("rule")
    assert "not from all fwmark 0x77 lookup 119" in rules
    assert "51820" not in rules
    del kept.prefixes[default]
    kept.namespace.call(lambda: kept.network.remove([default]))
    kept.until(lambda: not kept.network.busy, "it to go")
    assert "proto 87" not in kept.shows("rule") + kept.shows("route", "show", "table", "119")
    assert not [each for each in kept.ground.ledger.operations() if isinstance(each, RuleAdded)]
    assert whole(kept)


def test_a_table_that_somebody_makes_instead_of_ours_is_said_and_stays(kept: Kept) -> None:
    default = ip_network("0.0.0.0/0")
    kept.prefixes[default] = None
    kept.namespace.call(lambda: kept.network.add([default]))
    kept.until(lambda: not kept.network.busy, "the default route")
    kept.namespace.run("sh", "-c", f"nft delete table {TABLE}; nft add table {TABLE}; nft add chain {TABLE} theirs")
    said = f"nftables table {TABLE} is not ours; remove it, or choose another name for the interface; "
    kept.until(lambda: kept.ground.warnings, "that to be said")
    assert kept.ground.warnings == {"firewall": f"{said}ours is made when that table goes"}
    before = kept.namespace.run("nft", "list", "ruleset").stdout
    del kept.prefixes[default]
    kept.namespace.call(lambda: kept.network.remove([default]))
    kept.until(lambda: not kept.network.busy, "it to go")
    assert kept.ground.warnings == {}
    kept.prefixes[default] = None
    kept.namespace.call(lambda: kept.network.add([default]))
    kept.until(lambda: kept.ground.warnings, "that to be said again")
    assert kept.namespace.run("nft", "list", "ruleset").stdout == before
    kept.namespace.run("nft", "delete", "table", *TABLE.split())
    kept.until(lambda: "chain preraw" in kept.namespace.run("nft", "list", "ruleset").stdout, "ours to be back")
    kept.until(lambda: not kept.ground.warnings, "the warning to go")
    assert set(kept.said) == {""}


def test_a_table_that_another_program_makes_while_ours_is_missing_is_said(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our look and our try."""
    made = firewall.make

    def too_late(*given: Any) -> str:
        kept.namespace.run("nft", "add", "table", *TABLE.split())
        return made(*given)

    monkeypatch.setattr(firewall, "make", too_late)
    default = ip_network("0.0.0.0/0")
    kept.prefixes[default] = None
    kept.namespace.call(lambda: kept.network.add([default]))
    kept.until(lambda: not kept.network.busy, "the default route")
    assert kept.ground.warnings["firewall"].startswith(f"nftables table {TABLE} is not ours; remove it")
    assert not [each for each in kept.ground.ledger.operations() if isinstance(each, NftTableMade)]
    monkeypatch.undo()
    kept.namespace.run("nft", "delete", "table", *TABLE.split())
    kept.until(lambda: "chain preraw" in kept.namespace.run("nft", "list", "ruleset").stdout, "ours to be made")
    kept.until(lambda: not kept.ground.warnings, "the warning to go")


def test_a_moved_interface_is_none_that_was_deleted_whichever_is_read_first(kept: Kept) -> None:
    with Namespace("away") as elsewhere:
        kept.namespace.run("ip", "link", "set", "wg0", "netns", elsewhere.name)

        def looks_before_it_reads() -> None:
            kept.network.begin(WANTED)
            kept.network.act(boot_time())

        kept.namespace.call(looks_before_it_reads)
        assert "was moved to another network namespace" in kept.said[-1]
        assert "wg0" not in kept.shows("link"), "no other is made"
        elsewhere.run("ip", "link", "set", "wg0", "netns", kept.namespace.name)
    kept.until(lambda: whole(kept) and kept.said[-1] == "", "all to be back")


def test_a_full_disk_is_said_and_ends_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, Namespace("mend") as namespace:
        with full_disk(disk) as ballast:
            kept = Kept(namespace, disk)
            assert kept.said[-1] == f"{disk}/ledger cannot be written: No space left on device"
            assert "wg0" not in kept.shows("link"), "nothing is done that isn't written down"
            ballast.unlink()
        kept.begin(WANTED)
        assert kept.said[-1] == ""
        assert whole(kept)
        # As many lines as fit, then what ends a comparison, and what the kernel tells of.
        with full_disk(disk) as ballast:
            number = 0
            with suppress(Unwritten):
                for number in range(200):
                    kept.ground.ledger.do(AddressAdded(f"10.99.{number}.1/24"))
            assert number
            kept.prefixes[ip_network("10.7.0.0/16")] = None
            kept.namespace.call(lambda: kept.network.add([ip_network("10.7.0.0/16")]))
            kept.until(lambda: not kept.network.busy, "the work to be done")
            assert "cannot be written" in kept.said[-1]
            with Namespace("away") as elsewhere:
                namespace.run("ip", "link", "set", "wg0", "netns", elsewhere.name)
                kept.until(lambda: kept.ground.index == 0 and not kept.network.busy, "it to be noticed")
                assert "cannot be written" in kept.said[-1]
                kept.begin(WANTED)
                assert "wg0" not in kept.shows("link"), "no other is made"
                ballast.unlink()
                kept.begin(WANTED)
                assert "was moved to another network namespace" in kept.said[-1]
                assert LinkMoved("wg0") in kept.ground.ledger
                elsewhere.run("ip", "link", "set", "wg0", "netns", namespace.name)
            kept.until(lambda: whole(kept) and kept.said[-1] == "", "all to be back")
        kept.close()
