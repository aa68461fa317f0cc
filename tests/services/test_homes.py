"""Which worker a peer is at home in: the same one always, spread evenly, and few move when the number changes."""

import random
from collections import Counter

import pytest

from key_service.homes import home_of

KEYS = [random.Random(seed).randbytes(32) for seed in range(4000)]


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 64])
def test_peers_are_spread_evenly(workers: int) -> None:
    homes = Counter(home_of(key, workers) for key in KEYS)
    assert set(homes) == set(range(workers))
    expected = len(KEYS) / workers
    assert max(homes.values()) < expected + 5 * expected**0.5
    assert min(homes.values()) > expected - 5 * expected**0.5


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 20])
def test_only_those_move_whose_first_choice_came(workers: int) -> None:
    moved = [key for key in KEYS if home_of(key, workers) != home_of(key, workers + 1)]
    assert all(home_of(key, workers + 1) == workers for key in moved)
    expected = len(KEYS) / (workers + 1)
    assert abs(len(moved) - expected) < 5 * expected**0.5


def test_a_home_is_for_good() -> None:
    """Versions that disagree would leave a peer without a session while an upgrade lasts."""
    assert [home_of(bytes([number]) * 32, 8) for number in range(12)] == [6, 6, 1, 4, 0, 5, 7, 6, 4, 5, 4, 5]
