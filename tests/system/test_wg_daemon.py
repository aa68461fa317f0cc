"""`stagewire [-f] INTERFACE`, which stands in for `wireguard-go [-f] INTERFACE`: how it begins, and each way it ends."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.stagewire import executable
from lab.wait import until
from lab.wg import Bare, is_ready
from lab.wireguard_go import SOCKETS, new_key_pair

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace("w") as namespace:
        yield namespace


def test_it_returns_when_ready_and_ends_with_its_device(namespace: Namespace, lab_directory: Path) -> None:
    with Bare(namespace, lab_directory) as bare:
        # Nothing is waited for here: it is ready, without a key and without a peer.
        shown = namespace.run("wg", "show", bare.name, "dump").stdout.split("\t")
        assert (shown[0], shown[1], shown[3]) == ("(none)", "(none)", "off\n")
        assert namespace.run("wg", "show", bare.name, "peers").stdout == ""
        link = namespace.run("ip", "-o", "link", "show", bare.name).stdout
        assert "mtu 1420" in link
        assert "UP" not in link, "setting it up is somebody else's"
        assert (bare.socket.stat().st_mode & 0o777, SOCKETS.stat().st_mode & 0o777) == (0o600, 0o755)
        keys = new_key_pair()
        namespace.run("wg", "set", bare.name, "private-key", "/dev/stdin", "listen-port", "4444", input=keys.private)
        assert namespace.run("wg", "show", bare.name, "public-key").stdout.strip() == keys.public
        assert ":4444" in namespace.run("ss", "-lunH").stdout
        again = bare.command(bare.name, check=False)
        assert again.returncode != 0
        assert "is up already" in again.stderr
        assert namespace.run("wg", "show", bare.name, "public-key").stdout.strip() == keys.public
        namespace.run("ip", "link", "delete", bare.name)
        until(bare.gone, 10, "it to end with its device")


def test_it_ends_with_its_socket(namespace: Namespace, lab_directory: Path) -> None:
    with Bare(namespace, lab_directory) as bare:
        bare.socket.unlink()
        until(bare.gone, 10, "it to end with its socket")


def test_a_name_that_is_taken(namespace: Namespace, lab_directory: Path) -> None:
    bare = Bare(namespace, lab_directory)
    namespace.run("ip", "link", "add", bare.name, "type", "veth", "peer", "name", "other")
    try:
        refused = bare.command(bare.name, check=False)
        assert refused.returncode != 0
        assert refused.stderr.startswith(f"stagewire: {bare.name}: ")
        assert refused.stderr.count("\n") == 1
        assert not (bare.run_directory / bare.name).exists()
        assert not bare.socket.exists()
        assert "veth" in namespace.run("ip", "-d", "link", "show", bare.name).stdout
    finally:
        namespace.run("ip", "link", "delete", bare.name)


def test_a_name_that_cannot_be_one(namespace: Namespace, lab_directory: Path) -> None:
    bare = Bare(namespace, lab_directory)
    for name in ("a/b", "sixteen-letters-", "with space"):
        refused = bare.command("-f", name, check=False)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_a_signal_ends_it(namespace: Namespace, lab_directory: Path, number: signal.Signals) -> None:
    level = {signal.SIGTERM: "verbose", signal.SIGINT: "error"}[number]
    bare = Bare(namespace, lab_directory, env={"LOG_LEVEL": level})
    for folder in (bare.run_directory, bare.state_directory, bare.log_directory):
        folder.mkdir()
    with (lab_directory / "said").open("wb") as said:
        process = namespace.popen(executable("stagewire"), "-f", bare.name, env=bare.env, output=said)
        try:
            until(lambda: namespace.run("wg", "show", bare.name, check=False).returncode == 0, 15, "it to serve")
            until(lambda: is_ready(bare), 10, "it to be ready")
            logs = "".join(text for name, text in bare.logs().items() if "supervisord" not in name)
            assert bool(re.search("level=info", logs)) == (level == "verbose")
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(10) == 0
            assert bare.gone()
        finally:
            bare.close()
    assert (lab_directory / "said").read_text() == ""


def test_in_the_foreground_a_signal_ends_a_start(namespace: Namespace, lab_directory: Path) -> None:
    bare = Bare(namespace, lab_directory)
    for folder in (bare.run_directory, bare.state_directory, bare.log_directory):
        folder.mkdir(exist_ok=True)
    process = namespace.popen(executable("stagewire"), "-f", bare.name, env=bare.env)
    try:
        until(lambda: namespace.run("ip", "link", "show", bare.name, check=False).returncode == 0, 15, "its device")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert bare.gone()
    finally:
        bare.close()


def test_it_ends_when_supervisord_does(namespace: Namespace, lab_directory: Path) -> None:
    with Bare(namespace, lab_directory) as bare:
        bare.cut_off()
        until(bare.gone, 10, "the keeper to clean up")


def test_a_wiped_run_folder_costs_what_was_set_and_not_the_device(namespace: Namespace, lab_directory: Path) -> None:
    """The keeper lends the device again, in the new folder."""
    with Bare(namespace, lab_directory) as bare:
        before, held = namespace.run("ip", "-o", "link", "show", bare.name).stdout.split(":")[0], bare.held()
        run = bare.run_directory / bare.name
        run.rename(run.with_name("away"))
        until(lambda: {*bare.held()} == {*held} and is_ready(bare), 60, "all to be at work again")
        assert not {*bare.held().values()} & {*held.values()}
        assert namespace.run("ip", "-o", "link", "show", bare.name).stdout.split(":")[0] == before
        namespace.run("wg", "set", bare.name, "listen-port", "4445")
        namespace.run("ip", "link", "delete", bare.name)
        until(bare.gone, 20, "it to end with its device")
