"""What an unconfirmed file goes back to: written down whole, read back the same, and overwritten afterwards."""

from pathlib import Path

import pytest

from key_service import trial_run
from key_service.trial_run import Before
from stagewire.config import encode_key, unconfirmed
from stagewire.config.accepted import Accepted

KEYS = [bytes([number]) * 32 for number in range(1, 4)]
TEXT = f"[Interface]\nPrivateKey = {encode_key(KEYS[0])}\nMTU = 1400\n[Peer]\nPublicKey = {encode_key(KEYS[1])}\n"
LIVE = f"set=1\npublic_key={KEYS[2].hex()}\npersistent_keepalive_interval=7\n\n".encode()
BEFORE = Before(17.25, Accepted.first(TEXT), LIVE, "0123456789abcdef")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "key").mkdir()
    return tmp_path


def test_it_is_read_as_it_was_written(run: Path) -> None:
    assert trial_run.recalled(run) is None
    trial_run.store(run, BEFORE)
    assert trial_run.recalled(run) == BEFORE
    assert (run / "key" / "unconfirmed").stat().st_mode & 0o777 == 0o600


def test_live_changes_come_back_upon_the_file(run: Path) -> None:
    file, in_force = BEFORE.configurations(run / "wg0.conf")
    assert {peer.public_key for peer in file.peers} == {KEYS[1]}
    assert {peer.public_key: peer.persistent_keepalive for peer in in_force.peers} == {KEYS[1]: 0, KEYS[2]: 7}
    assert in_force.mtu == 1400


def test_nothing_of_it_stays(run: Path) -> None:
    trial_run.store(run, BEFORE)
    opened = (run / "key" / "unconfirmed").open("rb")
    trial_run.forget(run)
    with opened:
        assert not opened.read().strip(b"\0")
    assert list((run / "key").iterdir()) == []
    trial_run.forget(run)


def test_the_command_reads_how_long_it_lasts(run: Path) -> None:
    assert unconfirmed.left(run, 10.0) == 0
    trial_run.store(run, BEFORE)
    assert unconfirmed.left(run, 10.0) == 7.25
    assert unconfirmed.left(run, 17.25) == 0
    for odd in (b"", b"inf 1 2\n", b"nan 1 2\n", b"x" * 100):
        (run / "key" / "unconfirmed").write_bytes(odd)
        assert unconfirmed.left(run, 10.0) == 0


@pytest.mark.parametrize("cut", [0, 3, 8, 40])
def test_a_record_that_is_cut_or_odd_counts_as_none(run: Path, cut: int) -> None:
    trial_run.store(run, BEFORE)
    path = run / "key" / "unconfirmed"
    path.write_bytes(path.read_bytes()[:cut])
    assert trial_run.recalled(run) is None
    path.write_bytes(b"1.0 -5\nabc")
    assert trial_run.recalled(run) is None
    path.write_bytes(b"x y\nabc")
    assert trial_run.recalled(run) is None
    trial_run.store(run, BEFORE)
    whole = path.read_bytes()
    for until in (b"nan", b"inf", b"-1", b"1e300"):  # it would never go back
        path.write_bytes(until + whole[whole.index(b" ") :])
        assert trial_run.recalled(run) is None


def test_how_a_trial_ended_is_known_of_that_trial_alone(run: Path) -> None:
    trial_run.store(run, BEFORE)
    assert trial_run.ended(run, BEFORE.number) == ""
    trial_run.end(run, BEFORE.number, trial_run.KEPT)
    assert trial_run.recalled(run) is None
    assert trial_run.ended(run, BEFORE.number) == trial_run.KEPT
    assert trial_run.ended(run, "1") == ""
    (run / "key" / "trial-ended").write_text(f"{BEFORE.number} blessed")
    assert trial_run.ended(run, BEFORE.number) == ""
