import mmap
from collections.abc import Sequence

from stagewire.pipe.trains import Part

def receive(
    descriptor: int,
    most: int,
    limit: int,
    marks: mmap.mmap,
    number: int,
    memory: mmap.mmap | None,
    in_hand: list[int],
) -> list[tuple[bytes | mmap.mmap, int, int]] | bytes: ...
def send(
    descriptor: int, memory: mmap.mmap | None, lengths: list[int], parts: Sequence[Part]
) -> tuple[int, bytes | None]: ...
