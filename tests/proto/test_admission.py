"""Which initiations reach key-service though their sources have proved nothing."""

import itertools

import pytest

from stagewire.proto.admission import (
    ADDRESS_ALLOWANCE,
    ADMITTED,
    ALLOWANCE,
    BUSY,
    REFUSED,
    SEEN,
    SOURCE_ALLOWANCE,
    SPARE,
    Admission,
    Allowance,
)

T = 1000.0
messages = (bytes(116) + number.to_bytes(16, "little") + bytes(16) for number in itertools.count())
ONE, OTHER = bytes([192, 0, 2, 1, 0, 7]), bytes([192, 0, 2, 2, 0, 7])


def source(number: int) -> bytes:
    return (0x0A000000 + 977 * number).to_bytes(4, "big") + b"\0\7"


def admitted(admission: Admission, places: list[bytes], now: float = T, *, known: bool = False) -> int:
    return [admission.admit(next(messages), place, now, known=known) for place in places].count(ADMITTED)


@pytest.fixture
def admission() -> Admission:
    return Admission(bytes(16))


def test_an_allowance_is_a_rate_and_a_burst() -> None:
    allowance = Allowance(100)
    assert [allowance.spend(T) for _ in range(300)].count(True) == 256
    assert [allowance.spend(T + 1) for _ in range(300)].count(True) == 100
    allowance.give_back()
    assert allowance.spend(T + 1)
    assert not allowance.spend(T + 1)


def test_a_source_has_its_allowance_each_second(admission: Admission) -> None:
    assert admitted(admission, [ONE] * 100) == SOURCE_ALLOWANCE
    assert admitted(admission, [OTHER] * 100) == SOURCE_ALLOWANCE
    assert admitted(admission, [ONE] * 100, T + 1) == SOURCE_ALLOWANCE


def test_all_sources_together_have_one_too(admission: Admission) -> None:
    assert admitted(admission, [source(n) for n in range(2000)]) == 256
    assert admitted(admission, [source(n) for n in range(2000)], T + 0.1) == pytest.approx(ALLOWANCE / 10, abs=2)


def looks(admission: Admission, part: float, count: int, now: float = T) -> None:
    for _ in range(count):
        admission.note_wait(part, now)


def spoofed(admission: Admission, begin: float) -> int:
    """How many are admitted of 20,000 in a second, each from another address."""
    return sum(admitted(admission, [source(n)], begin + n / 20_000) for n in range(20_000))


def test_idle_processors_let_most_of_a_flood_from_everywhere_in_and_busy_ones_few(admission: Admission) -> None:
    assert spoofed(admission, T) == pytest.approx(ALLOWANCE, abs=300)
    looks(admission, 0.0, 10, T + 1)
    assert spoofed(admission, T + 1) == pytest.approx(ALLOWANCE + SPARE, abs=600)
    looks(admission, BUSY, 10, T + 2)
    assert spoofed(admission, T + 2) == pytest.approx(ALLOWANCE, abs=600)


def test_idle_processors_give_one_address_no_more(admission: Admission) -> None:
    looks(admission, 0.0, 20)
    ports = [ONE[:4] + (port % 60_000).to_bytes(2, "big") for port in range(20_000)]
    got = sum(admitted(admission, [place], T + 1 + n / 20_000) for n, place in enumerate(ports))
    assert got <= ALLOWANCE + 256 + ADDRESS_ALLOWANCE


def test_an_answer_gives_back_what_was_spent(admission: Admission) -> None:
    for number in range(3000):
        assert admission.admit(next(messages), source(number % 100), T, known=False) == ADMITTED
        admission.answered(source(number % 100))


@pytest.mark.parametrize("address", [bytes([192, 0, 2, 1]), bytes(8) + bytes(range(8))])
def test_an_address_that_asks_much_leaves_half_to_others(admission: Admission, address: bytes) -> None:
    ports = [address + port.to_bytes(2, "big") for port in range(1000)]
    assert admitted(admission, ports) <= max(ADDRESS_ALLOWANCE, 128)
    assert admitted(admission, [source(n) for n in range(100)]) == 100


def test_one_network_of_ipv6_is_one_address(admission: Admission) -> None:
    network = bytes(range(8))
    places = [network + number.to_bytes(8, "big") + b"\0\7" for number in range(1000)]
    assert admitted(admission, places) <= 128


def test_known_places_have_an_allowance_of_their_own(admission: Admission) -> None:
    assert admitted(admission, [source(n) for n in range(2000)]) == 256
    assert admitted(admission, [OTHER] * 10, known=True) == 10


@pytest.mark.parametrize(
    ("former", "near", "far"),
    [
        (bytes([192, 0, 2, 1, 0, 7]), bytes([192, 0, 2, 77, 9, 9]), bytes([192, 0, 3, 1, 0, 7])),
        (bytes(range(18)), bytes(range(6)) + bytes(12), bytes(range(5)) + bytes(13)),
    ],
    ids=["IPv4", "IPv6"],
)
def test_a_network_that_a_peer_came_from_has_an_allowance_beside_that_of_strangers(
    admission: Admission, former: bytes, near: bytes, far: bytes
) -> None:
    admission.admit(next(messages), former, T, known=False)
    admission.answered(former)
    assert admitted(admission, [source(n) for n in range(2000)]) == 256
    assert admitted(admission, [near] * 10) == 10
    assert admitted(admission, [far] * 10) == 0


def test_a_flood_from_the_network_of_a_peer_leaves_its_peers_no_less_than_strangers(admission: Admission) -> None:
    admission.answered(ONE)
    flood = [ONE[:3] + bytes([n % 256, n >> 8, 0]) for n in range(2000)]
    assert admitted(admission, flood) == 2 * 256
    assert admitted(admission, [OTHER] * 10, T + 1) == 10


def test_the_networks_of_peers_are_bounded_and_the_last_ones_stay(admission: Admission) -> None:
    for number in range(5000):
        admission.answered(number.to_bytes(3, "big") + b"\1\0\7")
    assert len(admission._networks) == 4096
    assert (4999).to_bytes(3, "big") in admission._networks


def test_the_same_message_again_is_told_even_from_elsewhere(admission: Admission) -> None:
    message = next(messages)
    assert admission.admit(message, ONE, T, known=False) == ADMITTED
    assert admission.admit(message, OTHER, T + 1, known=False) == SEEN
    assert admission.admit(message[:-16] + b"\1" * 16, OTHER, T + 9, known=True) == SEEN
    assert admission.admit(message, ONE, T + 100, known=False) == SEEN  # nothing has been admitted since
    for number in range(3):
        admitted(admission, [OTHER], T + 200 + 20 * number)
    assert admission.admit(message, ONE, T + 300, known=False) == ADMITTED


def test_what_was_refused_is_not_remembered(admission: Admission) -> None:
    admitted(admission, [ONE] * 100)
    message = next(messages)
    assert admission.admit(message, ONE, T, known=False) == REFUSED
    assert admission.admit(message, ONE, T + 1, known=False) == ADMITTED


def test_memory_is_bounded(admission: Admission) -> None:
    for number in range(50_000):
        admission.admit(next(messages), source(number), T + number / 1000, known=False)
        admission.answered(source(number))
    assert len(admission._seen) + len(admission._seen_before) <= 2 * 8192
