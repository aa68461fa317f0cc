"""What `stagewire scale` asks of supervisord when there are too many workers."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from stagewire.environment import Environment
from stagewire.process import slots
from stagewire_cli import rolling
from stagewire_cli.supervision import WORKERS_GROUP, Process, Supervision


class Supervisord:
    """As supervisord is with its processes: whoever has ended is started again, unless it was told to end."""

    def __init__(self, *states: str) -> None:
        self.all = {
            f"{WORKERS_GROUP}_{number:02}": Process(WORKERS_GROUP, f"{WORKERS_GROUP}_{number:02}", state, 0, 0, None)
            for number, state in enumerate(states)
        }
        for number, name in enumerate(self.all):
            self._is(name, self.all[name].state, 100 + number)

    def _is(self, name: str, state: str, pid: int) -> None:
        self.all[name] = replace(self.all[name], state=state, pid=pid if state in {"RUNNING", "STOPPING"} else 0)

    def processes(self) -> list[Process]:
        seen = list(self.all.values())
        for process in seen:
            after = {"EXITED": "RUNNING", "STOPPING": "STOPPED"}.get(process.state, process.state)
            self._is(process.name, after, process.pid or 200)
        return seen

    def stop(self, process: Process) -> None:
        if self.all[process.name].state == "RUNNING":
            self._is(process.name, "STOPPING", process.pid)

    def drop(self, process: Process) -> bool:
        if self.all[process.name].pid:
            return False
        del self.all[process.name]
        return True


@pytest.mark.parametrize(
    "states",
    [("RUNNING",) * 4, ("RUNNING", "RUNNING", "RUNNING", "EXITED"), ("RUNNING", "RUNNING", "EXITED", "EXITED")],
)
def test_a_worker_too_many_goes_even_if_it_is_just_being_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...]
) -> None:
    supervisord = Supervisord(*states)
    monkeypatch.setattr(rolling, "STEP_WITHIN", 1.0)
    monkeypatch.setattr(rolling, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(slots, "held", lambda _run: {("device", 0): 100})
    rolling._take_away_surplus(
        Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}), cast("Supervision", supervisord), 2
    )
    assert list(supervisord.all) == [f"{WORKERS_GROUP}_00", f"{WORKERS_GROUP}_01"]
    assert supervisord.all[f"{WORKERS_GROUP}_00"].state == "RUNNING"
