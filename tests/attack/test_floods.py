"""Floods beside a stream: what they cost it, and whether a new peer gets in. Turns with and without the flood alternate."""

import statistics
from collections.abc import Iterator

import pytest
from tests.attack import flooded
from tests.attack.flooded import REFERENCE, STAGEWIRE, Compared, Scene, compare, scene
from tests.attack.floods import KINDS, SPOOFED
from tests.attack.marks import Figure
from tests.bench.contestants import short_directory

pytestmark = [pytest.mark.long, pytest.mark.alone]

LINE_OF = {
    "initiations": "F2",
    "spoofed initiations": "F3",
    "bad mac1": "F1",
    "claimed cookies": "F2",
    "responses": "flood-answers",
    "cookie replies": "flood-answers",
    "transport messages": "flood-transport",
    "garbage": "flood-garbage",
}
RATE = 20_000
TURNS = 3
TRIES = 9
AT_ONCE, AT_THE_NEXT_TRY = 1.0, 6.0
"""s of a new peer's handshake. From a new network it gets in among spoofed sources by chance, or with its cookie. A
WireGuard peer uses that at its next try, after 5.3 s at most."""


def each_kind() -> list[object]:
    return [pytest.param(kind, id=kind, marks=pytest.mark.attack(LINE_OF[kind])) for kind in KINDS]


@pytest.fixture(scope="module")
def gateway() -> Iterator[tuple[Scene, float]]:
    """A scene, and half of what its gateway carries."""
    with short_directory() as directory, scene(STAGEWIRE, directory) as made:
        yield made, made.capacity() / 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", each_kind())
def test_a_flood_costs_a_stream_and_a_new_peer_nothing(gateway: tuple[Scene, float], kind: str, figure: Figure) -> None:
    at, rate = gateway
    found = compare(at, rate, kind, RATE, TURNS)
    figure("flood", found.rate, "a second", least=RATE * 0.9)
    figure("goodput", found.share, "of that without", least=0.99)
    figure("handshake", found.handshake, "s", most=AT_ONCE)
    if kind in SPOOFED:
        strange = [at.strange_handshake(kind, RATE) for _ in range(TRIES)]
        figure("handshake from a new network", statistics.median(strange), "s")
        figure("latest of them", max(strange), "s", most=AT_THE_NEXT_TRY)
        figure("first tries that get in", sum(took <= AT_ONCE for took in strange) / TRIES, "of 1", least=0.4)
        beside = [at.strange_handshake(kind, RATE, rate) for _ in range(TRIES)]
        figure("handshake from a new network beside the stream", statistics.median(beside), "s")
        figure("latest of them beside the stream", max(beside), "s", most=AT_THE_NEXT_TRY)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", each_kind())
def test_at_full_speed_it_costs_no_more_than_wireguard_go(kind: str, figure: Figure) -> None:
    found: dict[str, Compared] = {}
    for name in (STAGEWIRE, REFERENCE):
        with short_directory() as directory, scene(name, directory) as at:
            found[name] = compare(at, at.capacity() / 2, kind, None, TURNS)
    ours, theirs = found[STAGEWIRE], found[REFERENCE]
    figure("flood", ours.rate, "a second")
    figure("goodput", ours.share, "of that without", least=min(theirs.share, 1.0) - 0.01)
    figure("handshake", ours.handshake, "s", most=max(theirs.handshake, AT_ONCE) + flooded.MARGIN)
