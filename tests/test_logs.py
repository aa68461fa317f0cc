"""No text of a stage or a peer moves a cursor, reorders a line, forges another or fills a screen, wherever it is shown."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stagewire import logs
from stagewire.control import query
from stagewire.control.status import CountedStatus, CountersStatus, StageStatus
from stagewire.environment import Environment
from stagewire_cli import complaints, key_door, notify, operands
from stagewire_cli.failures import Failed

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\nstagewire: all is well\u202e\u2066\x9b31m\udcff\x00" + "A" * 100_000


def harmless(text: str) -> None:
    assert text.replace("\n", "").isprintable()
    assert "all is well" not in [line[11:22] for line in text.split("\n") if line.startswith("stagewire: ")]
    assert len(text) < 3 * logs.MAX_TEXT


def test_a_cleaned_text_is_one_short_line() -> None:
    harmless(logs.cleaned(HOSTILE))
    assert "\n" not in logs.cleaned(HOSTILE)
    assert logs.cleaned("Grüße an wg0") == "Grüße an wg0"


def test_a_log_file_gets_no_escape_whatever_a_stage_writes() -> None:
    shown = logs.cleaned_output(HOSTILE.encode("utf-8", "surrogateescape") + b"\nlevel=info\n")
    assert shown.decode().replace("\n", "").isprintable()
    assert shown.endswith(b"\nlevel=info\n")


def test_a_field_of_our_own_log_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    logs.Log().error("cannot work", reason=HOSTILE)
    [line] = capfd.readouterr().out.splitlines()
    assert line.isprintable()
    assert len(line) < 20_000


def test_every_text_of_a_status_is_cleaned() -> None:
    said = CountersStatus((CountedStatus(HOSTILE, 0, 1, 0.0, 1, (HOSTILE, "b"), (1, 2)),))
    service = query._cleaned(said).services[0]
    for text in (service.stage, *service.names):
        harmless(text)
    stage = query._cleaned(StageStatus("tun", 0, 1, True, HOSTILE, 0, ""))
    harmless(stage.fault)
    assert asdict(stage) | {"fault": ""} == asdict(StageStatus("tun", 0, 1, True, "", 0, ""))


def test_a_failure_that_a_stage_worded_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    operands.complain(logs.cleaned(HOSTILE))
    harmless(capsys.readouterr().err)
    operands.tell(HOSTILE)
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_a_reason_in_a_log_is_cleaned(tmp_path: Path) -> None:
    environment = Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    for line in (f"level=error reason={HOSTILE}", f'level=error reason="{HOSTILE}"', HOSTILE):
        harmless(complaints.reason(line, environment))


@pytest.mark.parametrize(
    "answer", [{"error": HOSTILE}, {"difference": [HOSTILE], "warning": HOSTILE}, [], {"difference": 1}]
)
def test_key_services_answer_is_cleaned(tmp_path: Path, answer: Any) -> None:
    environment = Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    (environment.run / "key").mkdir(parents=True)

    def reply() -> None:
        line, _ = server.accept()
        with line:
            while line.recv(4096):
                pass
            line.sendall(json.dumps(answer).encode() + b"\n")

    with socket.socket(socket.AF_UNIX) as server, ThreadPoolExecutor(1) as hostile:
        server.bind(str(environment.run / "key/reload"))
        server.listen()
        replied = hostile.submit(reply)
        try:
            difference, warning, trial = key_door.apply(environment, "")
        except Failed as failed:
            harmless(str(failed))
        else:
            harmless("".join(difference))
            harmless(warning)
            harmless(trial)
        replied.result()


def test_no_line_of_ours_tells_systemd_more_than_we_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv(notify.VARIABLE, str(tmp_path / "notify"))
        notify.status("fine\nMAINPID=1")
        assert manager.recv(4096) == b"STATUS=fine\\nMAINPID=1"
