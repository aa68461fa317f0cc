"""An ending key-service asks every worker for its last bytes before it tells status-service that nothing follows."""

from types import SimpleNamespace
from typing import Any, cast

from key_service.hub import Member
from key_service.last_words import LastWords
from stagewire.control.telemetry import CountLast


class Hub:
    """Two workers, the second of which can't be reached if `gone`."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone, self.asked = gone, list[bytes]()

    def numbers(self, _stage: str) -> list[int]:
        return [0, 1]

    def member(self, _stage: str, number: int) -> Member:
        return worker(number)

    def send(self, identity: bytes, message: object) -> bool:
        assert message == CountLast()
        self.asked.append(identity)
        return identity == b"0" or not self.gone


def worker(number: int, generation: int = 7) -> Member:
    return cast("Member", SimpleNamespace(number=number, generation=generation, identity=b"%d" % number))


def made(hub: Hub) -> tuple[LastWords, list[str]]:
    said: list[str] = []
    return LastWords(cast("Any", hub), lambda: said.append("last")), said


def test_nothing_is_said_before_every_worker_has_spoken() -> None:
    words, said = made(Hub())
    words.begin(0.0)
    words.on_counted(worker(1))
    words.on_counted(worker(1))
    assert (words.heard(), said) == (False, [])
    words.on_counted(worker(0))
    words.on_counted(worker(0))
    assert (words.heard(), said) == (True, ["last"])


def test_a_worker_that_has_ended_or_has_spoken_unasked_is_not_waited_for() -> None:
    hub = Hub(gone=True)
    words, said = made(hub)
    words.on_counted(worker(0))
    words.begin(0.0)
    assert (hub.asked, words.heard(), said) == ([b"1"], True, ["last"])


def test_a_successor_of_one_that_has_spoken_is_asked() -> None:
    hub = Hub()
    words, said = made(hub)
    words.on_counted(worker(0, generation=6))
    words.begin(0.0)
    assert (hub.asked, words.heard(), said) == ([b"0", b"1"], False, [])
