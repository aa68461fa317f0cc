"""Datagrams of one size in one piece of memory: what UDP GSO sends and UDP GRO delivers in one call."""

from collections.abc import Iterator, Sequence
from typing import overload


class Block(Sequence[bytes]):
    """A run as it lies in memory. To go through it costs a copy of each datagram; who can, takes `data` whole.

    What `data` points to may be laid anew with the next train: a block is good until then.
    """

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("data", "size")

    def __init__(self, data: bytes | memoryview, size: int) -> None:
        """`size` is each datagram's but the last's, which may be shorter. In bytes, neither 0."""
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
