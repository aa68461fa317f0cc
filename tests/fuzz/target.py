"""Runs one door under atheris: `python -m tests.fuzz.target DOOR FOUND [libFuzzer's options] [corpora]`.

A failure is kept once for each kind, by exception and place, and the search goes on. libFuzzer ends the process only
where one input never returns or takes all memory.
"""

import hashlib
import shlex
import sys
import traceback
from pathlib import Path
from typing import Final

import atheris

ROOMS: Final = (
    "stagewire", "key_service", "host_service", "resolver_service", "status_service", "stagewire_cli", "conn_service",
    "device_service", "tun_service",
)  # fmt: skip
"""Packages whose branches are counted; dnspython's too, where its answers are read."""


def main() -> None:
    """Instruments what is imported for the door, then hands over to libFuzzer."""
    name, found = sys.argv[1], Path(sys.argv[2])
    more = ["dns"] if name.startswith("dns_") else []
    with atheris.instrument_imports(include=[*ROOMS, *more], enable_loader_override=False):
        from tests.fuzz.doors import DOORS  # noqa: PLC0415 - only what is imported here is instrumented
    door = DOORS[name]
    known: set[str] = set()

    def take(data: bytes) -> None:
        try:
            door.check(data)
        except Exception as error:  # noqa: BLE001 - any exception is a failure of the door
            kind = signature(error)
            if kind not in known:
                known.add(kind)
                found.mkdir(parents=True, exist_ok=True)
                digest = hashlib.blake2s(kind.encode(), digest_size=6).hexdigest()
                (found / digest).write_bytes(data)
                (found / f"{digest}.txt").write_text("".join(traceback.format_exception(error)))

    # To merge corpora, libFuzzer has a shell start this program again, by its first word.
    again = shlex.join([sys.executable, "-m", "tests.fuzz.target", name, str(found)])
    atheris.Setup([again, *sys.argv[3:]], take)
    atheris.Fuzz()


def signature(error: Exception) -> str:
    """Names the kind of a failure: its exception and the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}"


if __name__ == "__main__":
    main()
