"""The number of workers that is wanted: what was told last counts, unless another was configured since."""

from pathlib import Path

from stagewire.process import worker_count


def test_the_number_of_workers_holds_until_another_is_configured(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    assert worker_count.wanted(tmp_path, 3) == 3
    worker_count.remember(tmp_path, 7, 3)
    assert worker_count.wanted(tmp_path, 3) == 7
    assert worker_count.wanted(tmp_path, 4) == 4
    assert worker_count.earlier(tmp_path, 3) == ()
    worker_count.remember(tmp_path, 7, 3, [2, 4])
    assert worker_count.wanted(tmp_path, 3) == 7
    assert worker_count.earlier(tmp_path, 3) == (2, 4)
    assert worker_count.earlier(tmp_path, 4) == ()
    for text in ("7 3\n65", "7 3\n0 2", "7", "", "x y", "65 3", "0 3", "7 3 1"):
        (tmp_path / "key" / "workers").write_text(text)
        assert worker_count.wanted(tmp_path, 3) == 3
        assert worker_count.earlier(tmp_path, 3) == ()
