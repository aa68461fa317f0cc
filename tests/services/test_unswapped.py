"""key-service holds all pages of the files in its folder, which its locked memory then keeps out of the swap."""

import os
from pathlib import Path

from tests.memory import resident

from key_service.unswapped import Unswapped
from stagewire.linux import mapped_pages

PAGE = os.sysconf("SC_PAGESIZE")


def test_each_file_as_it_is_now_and_nothing_that_is_gone(tmp_path: Path) -> None:
    held = Unswapped(tmp_path)
    (tmp_path / "accepted").write_bytes(bytes(2 * PAGE + 1))
    (tmp_path / "live").write_bytes(b"1")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("live")
    os.mkfifo(tmp_path / "pipe")
    held.look()
    assert resident(os.getpid(), f"{tmp_path}/") == {"accepted": 3 * PAGE, "live": PAGE}

    with (tmp_path / "live").open("ab") as journal:
        journal.write(bytes(PAGE))
    (tmp_path / "accepted.new").write_bytes(bytes(PAGE))
    (tmp_path / "accepted.new").replace(tmp_path / "accepted")
    held.look()
    assert resident(os.getpid(), f"{tmp_path}/") == {"accepted": PAGE, "live": 2 * PAGE}

    (tmp_path / "live").unlink()
    held.look()
    held.look()
    assert resident(os.getpid(), f"{tmp_path}/") == {"accepted": PAGE}
    (tmp_path / "accepted").unlink()
    for left in tmp_path.iterdir():
        left.unlink()
    tmp_path.rmdir()
    held.look()
    assert resident(os.getpid(), f"{tmp_path}/") == {}


def test_a_file_that_has_no_pages_is_none() -> None:
    assert mapped_pages.of(os.memfd_create("empty")) is None
