"""Headers as one long integer: what is found in it is what is found header by header."""

from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.offload import stacked

stacks = st.integers(1, 60).flatmap(
    lambda length: st.lists(st.binary(min_size=length, max_size=length), min_size=1, max_size=64)
)


@given(stacks, st.data())
def test_a_field_is_its_bytes_in_each(heads: list[bytes], data: st.DataObject) -> None:
    length, count = len(heads[0]), len(heads)
    at = data.draw(st.integers(0, length - 1))
    size = data.draw(st.integers(1, length - at))
    rows = int.from_bytes(b"".join(heads))
    alone = b"".join([bytes(at) + head[at : at + size] + bytes(length - at - size) for head in heads])
    assert rows & stacked.field(length, at, size, count) == int.from_bytes(alone)
    values = [int.from_bytes(head[at : at + size]) for head in heads]
    assert stacked.numbers(values, length, at + size) == int.from_bytes(alone)
    assert stacked.each(length, at + size, count) * values[0] == stacked.numbers(values[:1] * count, length, at + size)


@given(stacks, stacks)
def test_rows_with_anything_are_told_in_order(heads: list[bytes], others: list[bytes]) -> None:
    length, count = len(heads[0]), len(heads)
    others = [(other * length)[:length] for other in others * count][:count]
    changed = [head if number % 3 else other for number, (head, other) in enumerate(zip(heads, others, strict=True))]
    found = int.from_bytes(b"".join(heads)) ^ int.from_bytes(b"".join(changed))
    expected = [number for number in range(count) if heads[number] != changed[number]]
    assert stacked.rows_with_any(found, length, count) == expected
