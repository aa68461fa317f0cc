"""The randomness that services hand to the core, which has none of its own."""

import secrets

from stagewire.proto.constants import REKEY_TIMEOUT_JITTER_MAX


def jitter() -> float:
    """Seconds, uniformly from 0 to REKEY_TIMEOUT_JITTER_MAX."""
    return secrets.randbelow(1000) * REKEY_TIMEOUT_JITTER_MAX / 1000
