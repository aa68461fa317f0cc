"""Makes the randomness that services hand to the core, which has none of its own."""

import os
import random
from typing import Final

from stagewire.proto.constants import REKEY_TIMEOUT_JITTER_MAX

_NO_SECRET: Final = random.Random()
"""Seeded by the system. Jitter is no secret; it only has to differ between gateways."""
os.register_at_fork(after_in_child=_NO_SECRET.seed)


def jitter() -> float:
    """Returns seconds, uniformly from 0 to REKEY_TIMEOUT_JITTER_MAX. Hot, so without a system call."""
    return _NO_SECRET.random() * REKEY_TIMEOUT_JITTER_MAX
