"""`supervisord -c supervisord.conf`, nothing else: the same programs, in the foreground, from a checkout."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Namespace, stop
from lab.stagewire import Gateway, executable, expect_no_sigsys
from lab.wait import until
from lab.wireguard_go import new_key_pair
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.stages import STAGES

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PRIVATE_RUN = 'mount -t tmpfs none /run && exec "$@"'
"""Its socket and its pid file have fixed names in /run, which another one on this machine may be using."""


class Plain:
    """A supervisord in the foreground."""

    def __init__(self, namespace: Namespace, directory: Path, more: str, **variables: str) -> None:
        self.namespace, self.directory = namespace, directory
        config = directory / "wg0.conf"
        config.write_text(f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n{more}")
        config.chmod(0o600)
        self.variables = {
            "STAGEWIRE_CONFIG": str(config),
            "STAGEWIRE_RUN_DIR": str(directory / "run"),
            "STAGEWIRE_STATE_DIR": str(directory / "state"),
            **variables,
        }
        self.environment = Environment.read(self.variables)
        with (directory / "output").open("ab") as output:
            self.process = namespace.popen(
                *("unshare", "--mount", "sh", "-c", PRIVATE_RUN, "-", "env", f"--chdir={ROOT}"),
                *(executable("supervisord"), "-c", "supervisord.conf"),
                env=self.variables,
                output=output,
            )

    @property
    def output(self) -> str:
        """What it and its programs have written."""
        return (self.directory / "output").read_text()

    def control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`supervisorctl -c supervisord.conf ...` where its socket can be seen."""
        return self.namespace.run(
            *("nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", "env", f"--chdir={ROOT}"),
            executable("supervisorctl"),
            *("-c", "supervisord.conf", *arguments),
            check=False,
        )

    def status(self) -> dict[str, str]:
        """What `supervisorctl status` prints: program and state."""
        lines = [line.split() for line in self.control("status").stdout.splitlines()]
        return {line[0]: line[1] for line in lines}

    def ready(self) -> bool:
        """Whether its gateway is."""
        answer = query.key_service(self.environment)
        return answer is not None and answer.ready


@contextlib.contextmanager
def plain(directory: Path, more: str = "", **variables: str) -> Iterator[Plain]:
    """`more` is what else stands in the [Interface] section."""
    with Namespace("plain") as namespace:
        made = Plain(namespace, directory, more, **variables)
        try:
            yield made
        finally:
            stop(made.process)
        expect_no_sigsys(made.output)


def expected(workers: int, spares: int = 1) -> dict[str, str]:
    counts = {"conn": 1, "device": workers, "key": 1, "status": 1, "tun": 1, "host": 1, "resolver": 1}
    return {
        f"{stage}-service:{stage}-service_{number:02d}": "RUNNING"
        for stage, count in counts.items()
        for number in range(count + spares)
    }


def workers_of(supervisord: Plain) -> list[int]:
    """The numbers of those that key-service knows."""
    answer = query.key_service(supervisord.environment)
    assert answer is not None
    return sorted(stage.number for stage in answer.stages if stage.stage == "device")


def test_it_runs_the_programs_and_a_worker_for_every_core_but_one(lab_directory: Path) -> None:
    workers = max(1, (os.cpu_count() or 1) - 1)
    with plain(lab_directory) as supervisord:
        until(supervisord.ready, 20, f"the gateway to be ready: {supervisord.output}")
        until(lambda: supervisord.status() == expected(workers), 20, "the spares to be started as well")
        assert workers_of(supervisord) == list(range(workers))
        assert "10.9.0.1/24" in supervisord.namespace.run("ip", "address", "show", "wg0").stdout

        supervisord.process.terminate()
        assert supervisord.process.wait(10) == 0
        until(lambda: supervisord.namespace.pids() == [], 2, "all to have ended with it")
        # All on its stdout, each line saying who wrote it.
        for program in STAGES:
            assert re.search(rf"program={program}-service event=started", supervisord.output)
            # On a machine that is busy, one that hasn't ended within 0.7 s is killed.
            ended = rf"program={program}-service event=stopped|{program}-service_\d+ \(terminated by SIGKILL"
            assert re.search(ended, supervisord.output)
        assert "Traceback" not in supervisord.output
        assert supervisord.output.count("INFO supervisord started") == 1


def test_a_program_that_ends_is_started_until_it_can_work(lab_directory: Path) -> None:
    """A configuration that is refused: nothing is given up for good, and once it is mended all work."""
    config = lab_directory / "wg0.conf"
    with plain(lab_directory, "Nonsense = 1\n", STAGEWIRE_WORKERS="3", STAGEWIRE_SPARES="0") as supervisord:
        until(lambda: supervisord.output.count("configuration refused") >= 2, 20, "key-service to have tried twice")
        assert f"{config}:4: " in supervisord.output
        config.write_text(config.read_text().replace("Nonsense = 1\n", ""))
        until(supervisord.ready, 20, "the gateway to be ready")
        assert supervisord.status() == expected(3, spares=0)
        assert workers_of(supervisord) == [0, 1, 2]


def test_an_environment_that_makes_no_sense_is_refused_in_one_line(lab_directory: Path) -> None:
    for number, (variable, value) in enumerate(
        {"WORKERS": "65", "SPARES": "5", "INTERFACE": "a/b", "LOG_LEVEL": "loud"}.items()
    ):
        folder = lab_directory / str(number)
        folder.mkdir()
        with Namespace("plain") as namespace, (folder / "output").open("ab") as output:
            process = namespace.popen(
                *("unshare", "--mount", "sh", "-c", PRIVATE_RUN, "-", "env", f"--chdir={ROOT}"),
                *(executable("supervisord"), "-c", "supervisord.conf"),
                env={f"STAGEWIRE_{variable}": value},
                output=output,
            )
            assert process.wait(10) == 2
        lines = [line for line in (folder / "output").read_text().splitlines() if " INFO " not in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"stagewire: STAGEWIRE_{variable}: {value!r}")


def test_a_device_that_another_gateway_has_is_left_alone_in_one_line(lab_directory: Path) -> None:
    with Namespace("plain") as namespace:
        text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.8.0.1/24\n"
        for folder in ("other", "ours"):
            (lab_directory / folder).mkdir()
        with Gateway(namespace, "wg0", lab_directory / "other", text, workers=1) as other:
            before = namespace.run("ip", "address").stdout
            refused = Plain(namespace, lab_directory / "ours", "")
            assert refused.process.wait(20) == 1
            (line,) = [line for line in refused.output.splitlines() if " INFO " not in line]
            assert line == "stagewire: wg0: interface wg0 is in use by another program; stop it or choose another name"
            assert not (lab_directory / "ours/run").exists()
            assert namespace.run("ip", "address").stdout == before
            assert other.status()["ready"]
