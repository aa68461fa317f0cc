import mmap
from collections.abc import Callable, Mapping
from typing import Any

class PlainRoom:
    count: int
    @property
    def full(self) -> bool: ...
    def __init__(self, takes: int = 0) -> None: ...
    def room(self) -> memoryview: ...
    def add(self, length: int, packets: int) -> None: ...
    def finish(self, now: float, age: int = 0) -> memoryview: ...

class TunReader:
    def __init__(
        self, device: int, lookup: Callable[[bytes], int | None], answers: Mapping[bytes, int | None]
    ) -> None: ...
    def visit(
        self, builder: Callable[[int], Any], last: int, alone: bool
    ) -> tuple[int, int, list[tuple[bytes, int]], int]: ...

class TunWriter:
    odd: list[tuple[bool, bytes, int, int]]
    def __init__(
        self,
        device: int,
        apart: Callable[[bytes], None],
        lookup: Callable[[bytes], int | None],
        answers: Mapping[bytes, int | None],
    ) -> None: ...
    def write(
        self, data: bytes | bytearray | mmap.mmap, begin: int, end: int, now: float, max_age: float, worker: int
    ) -> tuple[int, int, int] | None: ...
