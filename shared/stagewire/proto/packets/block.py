"""Keeps a run of datagrams in one piece of memory, as UDP GSO sends it and UDP GRO delivers it."""

from collections.abc import Iterator, Sequence
from typing import overload


class Block(Sequence[bytes]):
    """Reads as a sequence of a run's datagrams. Iteration copies each; fast code takes `data` whole.

    The next train may overwrite the memory of `data`: a block is good until then.
    """

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("data", "size")

    def __init__(self, data: bytes | memoryview, size: int) -> None:
        """Wraps `data`. `size` is the length of each datagram but the last, which may be shorter. In bytes, neither 0."""
        self.data = data
        self.size = size

    def __len__(self) -> int:
        return (len(self.data) + self.size - 1) // self.size

    def __iter__(self) -> Iterator[bytes]:
        data, size = self.data, self.size
        return (bytes(data[at : at + size]) for at in range(0, len(data), size))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return f"Block({len(self)} x {self.size})"
