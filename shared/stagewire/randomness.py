"""The randomness that services hand to the core, which has none of its own."""

import random
from typing import Final

from stagewire.proto.constants import REKEY_TIMEOUT_JITTER_MAX

_NO_SECRET: Final = random.Random()
"""Seeded by the system. Jitter only has to differ from others'."""


def jitter() -> float:
    """Seconds, uniformly from 0 to REKEY_TIMEOUT_JITTER_MAX. Hot: without a system call, as each answered train asks."""
    return _NO_SECRET.random() * REKEY_TIMEOUT_JITTER_MAX
