"""`stagewire save` and SaveConfig lose nothing that a person wrote."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.wg import WgHub
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system

ONE, ADDED = Spoke(1), new_key_pair().public
APPENDED = f"\n[Peer]\n# by hand\nPublicKey = {new_key_pair().public}\nAllowedIPs = 10.97.0.0/16\n"


@pytest.fixture
def hub(lab_directory: Path) -> Iterator[WgHub]:
    with Topology("s") as network, WgHub(network.b, lab_directory / "h", {"one": ONE}, "SaveConfig = true") as gateway:
        gateway.set("peer", ADDED, "allowed-ips", "10.96.0.0/16")
        yield gateway


def beside(hub: WgHub, kind: str) -> list[Path]:
    return sorted(hub.gateway.config_path.parent.glob(f"*.{kind}*"))


def test_an_edited_file_is_refused_with_both_differences(hub: WgHub) -> None:
    hub.gateway.write_config(hub.config + APPENDED)
    refused = hub.gateway.command("save", hub.name, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    in_the_file, while_it_runs = refused.stderr.split("changed in the running gateway:")
    assert "10.97.0.0/16" in in_the_file
    assert ADDED not in in_the_file
    assert ADDED in while_it_runs
    assert hub.gateway.config_path.read_text() == hub.config + APPENDED
    # Forced, what was written is kept beside it.
    hub.gateway.command("save", "--force", hub.name)
    [backup] = beside(hub, "bak")
    assert backup.read_text() == hub.config + APPENDED
    assert backup.stat().st_mode & 0o777 == 0o600
    saved = hub.gateway.config_path.read_text()
    assert ADDED in saved
    assert "10.97.0.0/16" not in saved
    assert hub.gateway.status()["warnings"] == []
    # And again, into another.
    hub.gateway.write_config("broken")
    hub.gateway.command("save", "--force", str(hub.gateway.config_path))
    assert [each.read_text() for each in beside(hub, "bak")] == [hub.config + APPENDED, "broken"]
    assert hub.gateway.config_path.read_text() == saved
    hub.gateway.down()
    assert hub.gateway.config_path.read_text() == saved


def test_a_deleted_file_is_written_anew(hub: WgHub) -> None:
    hub.gateway.config_path.unlink()
    refused = hub.gateway.command("save", hub.name, check=False)
    assert refused.returncode == 1
    assert "does not exist" in refused.stderr
    assert "stagewire reload" not in refused.stderr  # there is nothing to apply
    saved = hub.gateway.command("save", "--force", hub.name)
    assert (saved.stdout, saved.stderr) == (
        f"{hub.gateway.config_path} was gone; it now has the configuration in force\n",
        "",
    )
    assert beside(hub, "bak") == []
    assert ADDED in hub.gateway.config_path.read_text()
    assert hub.gateway.config_path.stat().st_mode & 0o777 == 0o600
    assert hub.gateway.status()["warnings"] == []


def test_a_file_with_other_comments_is_saved_with_them(hub: WgHub) -> None:
    hub.gateway.write_config(f"# mine\n{hub.config}")
    hub.gateway.command("save", hub.name)
    saved = hub.gateway.config_path.read_text()
    assert saved.startswith("# mine\n")
    assert ADDED in saved
    assert hub.gateway.status()["warnings"] == []
    hub.gateway.command("save", hub.name)
    assert hub.gateway.config_path.read_text() == saved


@pytest.mark.parametrize("text", [APPENDED, "broken"])
def test_down_keeps_both(hub: WgHub, text: str) -> None:
    edited = hub.config + text
    hub.gateway.write_config(edited)
    down = hub.gateway.command("down", hub.name)
    assert "stays as it is" in down.stderr
    assert hub.gateway.config_path.read_text() == edited
    [kept] = beside(hub, "in-force")
    assert ADDED in kept.read_text()
    assert "10.97.0.0/16" not in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_down_keeps_a_live_peer_beside_a_file_whose_peer_out_of_use_has_its_key(hub: WgHub) -> None:
    off = f"# stagewire off: [Peer]\n# stagewire off: PublicKey = {ADDED}\n# stagewire off: AllowedIPs = 10.95.0.1/32\n"
    hub.gateway.write_config(hub.config + off)
    hub.gateway.command("reload", hub.name)
    hub.set("peer", ADDED, "allowed-ips", "10.96.0.0/16")
    refused = hub.gateway.command("save", hub.name, check=False)
    assert (refused.returncode, "out of use" in refused.stderr) == (1, True)
    assert "that is a line of the text to be written" in refused.stderr
    assert "is out of use" in hub.gateway.command("down", hub.name).stderr
    assert hub.gateway.config_path.read_text() == hub.config + off
    [kept] = beside(hub, "in-force")
    assert f"PublicKey = {ADDED}\nAllowedIPs = 10.96.0.0/16" in kept.read_text()
    hub.gateway.command("check", str(kept))


@pytest.mark.attack("hostile-key")
@pytest.mark.parametrize("kind", ["PreUp", "PostUp", "PreDown", "PostDown"])
def test_a_command_that_key_service_made_up_is_refused_and_never_written(hub: WgHub, kind: str) -> None:
    """key-service keeps the accepted text, and the next `up` would run its commands as root."""
    kept = hub.gateway.run_directory / hub.name / "key/accepted"
    head, _, text = kept.read_text().partition("\n")
    evil = text.replace("[Interface]\n", f"[Interface]\n{kind} = touch {hub.gateway.run_directory}/owned\n", 1)
    kept.write_text(f"{head}\n{evil}")  # the file stays key-service's own
    for words in (("save",), ("save", "--force")):
        refused = hub.gateway.command(*words, hub.name, check=False)
        assert refused.returncode == 1
        assert f"{kind} = touch" in refused.stderr
        assert "nothing is saved" in refused.stderr
    hub.gateway.command("down", hub.name, check=False)  # SaveConfig would save as well
    assert hub.gateway.config_path.read_text() == hub.config
    assert not [each for each in hub.gateway.config_path.parent.glob("*.in-force*") if kind in each.read_text()]
    assert not (hub.gateway.run_directory / "owned").exists()


def test_each_command_says_in_a_line_what_holds_and_fails_for_no_want_of_an_output(hub: WgHub) -> None:
    file = str(hub.gateway.config_path)
    hub.gateway.write_config(hub.config.replace("[Interface]", "[Interface]\nMTU = 1350"))
    said = {
        ("reload", hub.name): f"{file} is in force",
        ("save", hub.name): f"{file} has the configuration in force",
        ("scale", "1", "-i", hub.name): f"{hub.name}: 1 worker is at work, and each peer is at its worker",
        ("down", hub.name): f"{hub.name} is down",
        ("up", file): f"{hub.name} is up, with {len(hub.spokes)} peer",
    }
    for command, line in said.items():
        done = hub.gateway.command(*command, timeout=60)
        assert done.stdout.splitlines()[-1].startswith(line), command
    for command in said:
        full = ("sh", "-c", 'exec "$@" > /dev/full', "sh", str(executable("stagewire")), *command)
        done = hub.namespace.run(*full, timeout=60, env=hub.gateway.env)
        assert done.stderr == "", command
