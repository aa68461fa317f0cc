"""What a command says of a file that is not there."""

from pathlib import Path

import pytest

from stagewire.config import ConfigError, load_text
from stagewire_cli import operands


def test_of_a_file_that_is_not_there_it_is_said_which_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "stagewire", tmp_path / "wireguard"
    for folder in (ours, theirs):
        folder.mkdir()
        monkeypatch.setattr(operands, "_OUR_FILES" if folder == ours else "_WG_QUICK_FILES", folder)

    def said(path: Path) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load_text(path)
        return operands.mistakes(error.value)

    assert said(ours / "wg7.conf") == [f"{ours}/wg7.conf: does not exist: `stagewire init wg7` makes it"]
    (ours / "wg0.conf").touch()
    assert said(ours / "wg7.conf") == [f"{ours}/wg7.conf: does not exist: `stagewire init wg7` makes it; wg0 exists"]
    assert said(Path("wg0.conf")) == [f"wg0.conf: does not exist, but {ours}/wg0.conf does: give that path"]
    (theirs / "wg7.conf").touch()
    assert said(ours / "wg7.conf") == [f"{ours}/wg7.conf: does not exist, but {theirs}/wg7.conf does: give that path"]
