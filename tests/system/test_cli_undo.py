"""What `up` did is undone by the list it wrote: by `down`, by an `up` that fails, by the next `up` after a crash."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.stagewire import Gateway, executable
from lab.wait import until
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system

KEYS = new_key_pair()
NAME = "wg0"


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Namespace("undo") as namespace:
        yield namespace


def configuration(directory: Path, *lines: str) -> str:
    hooks = [f"{each} = echo {each} %i >> {directory}/record" for each in ("PreUp", "PostUp", "PreDown", "PostDown")]
    address = ["Address = 10.71.0.1/24", "DNS = 192.0.2.53", "ListenPort = 51820"]
    return "\n".join(["[Interface]", f"PrivateKey = {KEYS.private}", *address, *hooks, *lines, ""])


def gateway_in(host: Namespace, directory: Path, *lines: str) -> Gateway:
    """With a resolvconf(8) that writes down how it was called, in one record with the hooks."""
    folder = directory / "bin"
    folder.mkdir()
    stand_in = folder / "resolvconf"
    stand_in.write_text(
        f'#!/bin/sh\necho "resolvconf $*" >> {directory}/record\n[ "$1" = -a ] && cat > /dev/null\nexit 0\n'
    )
    stand_in.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    gateway = Gateway(host, NAME, directory, configuration(directory, *lines), workers=1, env=env)
    gateway.write_config(configuration(directory, *lines))
    for each in (gateway.run_directory, gateway.state_directory, gateway.log_directory):
        each.mkdir()
    return gateway


UP = [f"PreUp {NAME}", f"resolvconf -a {NAME} -m 0 -x", f"PostUp {NAME}"]
DOWN = [f"PreDown {NAME}", f"resolvconf -d {NAME} -f", f"PostDown {NAME}"]


def record(directory: Path) -> list[str]:
    lines = (directory / "record").read_text().splitlines()
    (directory / "record").write_text("")
    return lines


def expect_nothing_left(host: Namespace, gateway: Gateway) -> None:
    assert host.run("ip", "link", "show", NAME, check=False).returncode != 0
    assert not (gateway.run_directory / NAME).exists()
    assert gateway.processes() == []


def test_an_up_that_fails_undoes_what_it_did(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory, "PostUp = false")
    failed = gateway.command("up", str(gateway.config_path), check=False, timeout=60)
    assert failed.returncode == 1
    assert failed.stderr == f"stagewire: {NAME}: PostUp ended with status 1: false\n"
    assert record(lab_directory) == UP + DOWN
    expect_nothing_left(host, gateway)


def test_an_up_that_fails_before_anything_is_there(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory, "PreUp = exit 7")
    failed = gateway.command("up", str(gateway.config_path), check=False, timeout=60)
    assert (failed.returncode, failed.stderr) == (1, f"stagewire: {NAME}: PreUp ended with status 7: exit 7\n")
    assert record(lab_directory) == [UP[0], DOWN[2]]
    expect_nothing_left(host, gateway)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("hook", ["PreUp", "PostUp"])
def test_an_up_that_a_signal_ends_undoes_what_it_did(
    host: Namespace, lab_directory: Path, number: signal.Signals, hook: str
) -> None:
    """As when a session over SSH breaks off."""
    gateway = gateway_in(host, lab_directory, f"{hook} = echo here; exec sleep 60")
    heeding = ("env", "--default-signal", executable("stagewire"))  # the tests may run where signals are ignored
    with host.popen(*heeding, "up", str(gateway.config_path), env=gateway.env, output=subprocess.PIPE) as up:
        assert up.stdout
        assert up.stdout.readline() == b"here\n"
        up.send_signal(number)
        said = up.communicate(timeout=30)[0].decode()
    undone = f"stagewire: {NAME}: interrupted by {number.name}; all that the command did is undone\n"
    assert (up.returncode, said) == (1, undone)
    assert record(lab_directory) == ([UP[0], DOWN[2]] if hook == "PreUp" else UP + DOWN)
    expect_nothing_left(host, gateway)


def test_a_folder_that_the_services_cannot_enter_is_said_in_one_line(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory)
    gateway.state_directory.chmod(0o700)
    failed = gateway.command("up", str(gateway.config_path), check=False, timeout=60)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.startswith(f"stagewire: {NAME}: key-service: ")
    assert failed.stderr.endswith(
        f"the services can't enter {gateway.state_directory}: chmod o+x {gateway.state_directory}\n"
    )
    expect_nothing_left(host, gateway)


@pytest.mark.parametrize("edit", ["broken", "without", "gone", "a folder"])
def test_down_goes_by_what_up_did_whatever_the_file_says_now(host: Namespace, lab_directory: Path, edit: str) -> None:
    """Also when a PreDown fails: that is said, and the rest goes on."""
    fails = edit == "broken"
    gateway = gateway_in(
        host, lab_directory, *(["PreDown = exit 9", f"PreDown = echo on >> {lab_directory}/record"] if fails else [])
    )
    try:
        gateway.up()
        assert record(lab_directory) == UP
        gateway.config_path.unlink()
        match edit:
            case "broken":
                gateway.write_config("[Interface]\nListenPort = 51820x\n")
            case "without":
                gateway.write_config(f"[Interface]\nPrivateKey = {KEYS.private}\n")
            case "a folder":
                gateway.config_path.mkdir()
        down = gateway.command("down", NAME, check=False)
        assert record(lab_directory) == [DOWN[0], *(["on"] if fails else []), *DOWN[1:]]
        said = "stagewire: PreDown ended with status 9: exit 9\n" if fails else ""
        done = f"{NAME} is down, but a step failed\n" if fails else f"{NAME} is down\n"
        assert (down.returncode, down.stdout, down.stderr) == (int(fails), done, said)
        expect_nothing_left(host, gateway)
    finally:
        gateway.close()


def test_the_next_up_undoes_what_a_crash_left(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory)
    try:
        gateway.up()
        gateway.cut_off()
        # What the file says by then is another thing.
        text = configuration(lab_directory).replace("DNS = 192.0.2.53\n", "").replace("Down %i", "Down, another, %i")
        gateway.write_config(text)
        assert record(lab_directory) == UP
        gateway.up()
        assert record(lab_directory) == [*DOWN, UP[0], UP[2]]
        gateway.down()
        assert record(lab_directory) == [f"PreDown, another, {NAME}", f"PostDown, another, {NAME}"]
        expect_nothing_left(host, gateway)
    finally:
        gateway.close()


def test_down_undoes_what_a_crash_left(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory)
    try:
        gateway.up()
        gateway.cut_off()
        gateway.down()
        assert record(lab_directory) == UP + DOWN
        expect_nothing_left(host, gateway)
    finally:
        gateway.close()


def test_a_wiped_run_folder_loses_none_of_it(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory)
    done = gateway.run_directory / NAME / "command/done"
    try:
        gateway.up()
        before = done.read_bytes()
        until(lambda: time.time() > done.stat().st_mtime + 3, 10, "supervisord to look once more")
        gateway.write_config(f"[Interface]\nPrivateKey = {KEYS.private}\n")
        (gateway.run_directory / NAME).rename(lab_directory / "away")
        shutil.rmtree(lab_directory / "away")
        until(lambda: done.exists() and done.read_bytes() == before, 30, "it to be there again")
        until(lambda: gateway.command("status", NAME, check=False).returncode == 0, 30, "all to be at work")
        gateway.down()
        assert record(lab_directory) == UP + DOWN
    finally:
        gateway.close()


def test_a_down_undoes_all_though_killed_processes_have_not_ended_yet(host: Namespace, lab_directory: Path) -> None:
    gateway = gateway_in(host, lab_directory)
    impatient = "from stagewire_cli import __main__, ending; ending.GONE_WITHIN = 0.0; __main__.main()"
    with gateway:
        record(lab_directory)
        done = host.run(sys.executable, "-c", impatient, "down", NAME, check=False, timeout=30, env=gateway.env)
        assert done.returncode == bool(done.stderr)
        assert not done.stderr or "processes do not end though they were killed" in done.stderr
        assert record(lab_directory) == DOWN
        until(lambda: not gateway.processes(), 10, "the killed processes to end")
        expect_nothing_left(host, gateway)
