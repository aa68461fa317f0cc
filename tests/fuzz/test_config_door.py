"""The door for configuration files: files from real life cut, joined and mutated, as bytes.

`doors.files.configurations` says what must hold.
"""

import random
from pathlib import Path

import pytest
from tests.fuzz.doors.files import configurations

from stagewire.config import encode_key

CORPUS = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "config" / "corpus").glob("*.conf"))]
PIECES = [
    *(b"\0", b"\r", b"\n", b"\xff", b"\xef\xbb\xbf", b"#", b"=", b"[", b"]", b":", b",", b"/", b" ", b"\t", b"%", b"-"),
    *(b"[Peer]\n", b"[Interface]\n", b"# stagewire:", b"0x", b"9" * 400, b"~.", b"AllowedIPs", b"+", b"\xc2\xa0"),
    *(b"\xd9\xa3", b"off", b"main", b"255.255.255.0", b"::", b"\x1b[31m", encode_key(bytes(32)).encode()),
]


def mutated(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(CORPUS))
    for _ in range(chance.randint(1, 2)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 5):
            case 0:
                del data[at : at + chance.randint(1, 60)]
            case 1:
                data[at:at] = chance.choice(PIECES)
            case 2 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case 3:
                other = chance.choice(CORPUS)
                start = chance.randint(0, len(other))
                data[at:at] = other[start : start + chance.randint(0, 200)]
            case 4:
                data += b"\n" + chance.choice(CORPUS)
            case _:
                lines = data.split(b"\n")
                line = chance.choice(lines)
                lines.insert(chance.randint(0, len(lines)), line)
                data = bytearray(b"\n".join(lines))
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_mutated_files(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(300):
        configurations(mutated(chance))
