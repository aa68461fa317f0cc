"""A configuration file that breaks, changes or goes while the gateway runs: nothing happens to the gateway."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("f") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory / "h", {"one": Spoke(1)}) as gateway:
        yield gateway


def written(text: str) -> Callable[[Hub], None]:
    return lambda hub: hub.gateway.write_config(text)


def edited(old: str, new: str) -> Callable[[Hub], None]:
    return lambda hub: hub.gateway.write_config(hub.config.replace(old, new))


EDITS: dict[str, tuple[Callable[[Hub], None], str]] = {
    "a typo": (edited("ListenPort = 51820", "ListenPort = 51820x"), "wg0.conf:3: ListenPort"),
    "empty": (written(""), "has changed since it was read"),
    "deleted": (lambda hub: hub.gateway.config_path.unlink(), "does not exist"),
    "a directory": (lambda hub: hub.gateway.config_path.mkdir(), "is a directory"),
    "a FIFO": (lambda hub: os.mkfifo(hub.gateway.config_path, 0o600), "is a FIFO"),
    "writable by all": (lambda hub: hub.gateway.config_path.chmod(0o666), "can be written by everyone"),
    "another's": (written(f"[Interface]\nPrivateKey = {new_key_pair().private}\n"), "has changed since it was read"),
    "not text": (written("\0\xff" * 1000), "wg0.conf"),
}


def renewed(hub: Hub) -> Callable[[], bool]:
    before = hub.gateway.pid("key")
    return lambda: hub.gateway.held().get(("key", 0), before) != before and hub.gateway.status()["ready"]


@pytest.mark.parametrize("edit", EDITS)
def test_a_key_service_that_starts_anew_goes_on_with_what_is_in_force(network: Topology, hub: Hub, edit: str) -> None:
    change, words = EDITS[edit]
    hub.gateway.write_config(hub.config)
    assert hub.gateway.status()["warnings"] == []
    with hub.wireguard_go(hub.spokes["one"], network.a, GATEWAY[4]):
        assert ping(network.a, "10.66.1.1").received == 1
        if edit in {"a directory", "a FIFO"}:
            hub.gateway.config_path.unlink()
        change(hub)
        try:
            back = renewed(hub)
            hub.gateway.kill("key", signal.SIGKILL)
            until(back, 15, "another key-service to be at work")
            status = hub.gateway.command("status", hub.name)
            assert "warning:" in status.stdout
            assert words in status.stdout
            assert ping(network.a, "10.66.1.1").received == 1
            assert [peer["public_key"] for peer in hub.gateway.status()["peers"]] == [hub.spokes["one"].keys.public]
        finally:
            if hub.gateway.config_path.is_dir():
                shutil.rmtree(hub.gateway.config_path)
            hub.gateway.config_path.unlink(missing_ok=True)
    with hub.wireguard_go(hub.spokes["one"], network.a, GATEWAY[4]):
        assert ping(network.a, "10.66.1.1").received == 1, "a new handshake, with the key that is in force"


def test_restart_key_beside_a_broken_file(hub: Hub) -> None:
    EDITS["a typo"][0](hub)
    restarted = hub.gateway.command("restart", "key", hub.name)
    assert restarted.stdout.startswith("key-service: ")
    assert hub.gateway.status()["healthy"]


def test_a_wiped_run_folder_beside_a_broken_file(network: Topology, lab_directory: Path) -> None:
    """Its spare has inherited what is in force."""
    with Hub(network.b, lab_directory / "w", {"one": Spoke(9)}, name="wg1", port=51900) as hub:
        hub.gateway.env["STAGEWIRE_SPARES"] = "1"
        hub.gateway.down()
        hub.gateway.write_config(hub.config)
        hub.gateway.up()
        EDITS["a typo"][0](hub)
        pid = hub.gateway.pid()
        shutil.rmtree(hub.gateway.run_directory / hub.name)

        def back() -> bool:
            found = hub.gateway.command("status", "--json", hub.name, check=False)
            return found.returncode == 0

        until(back, 30, "all to be at work in a new folder")
        assert hub.gateway.pid() == pid
        with hub.wireguard_go(hub.spokes["one"], network.a, GATEWAY[4]):
            assert ping(network.a, "10.66.9.1").received == 1
        hub.gateway.down()


def test_a_fresh_up_reads_the_file(hub: Hub) -> None:
    hub.gateway.down()
    EDITS["a typo"][0](hub)
    failed = hub.gateway.command("up", str(hub.gateway.config_path), check=False)
    assert failed.returncode == 1
    assert "wg0.conf:3: ListenPort" in failed.stderr
    hub.gateway.write_config(hub.config)
    hub.gateway.up()
