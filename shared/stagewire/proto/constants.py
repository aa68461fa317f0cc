"""The protocol's numbers, under the WireGuard paper's names.

Times are seconds, sizes are bytes. What the specification fixes comes first; what an implementation chooses
(and the Linux kernel's module chose before us) comes after.
"""

from typing import Final

# --- fixed by the specification (WireGuard paper, sections 5.4 and 6) -------------------------------------

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"

REKEY_AFTER_MESSAGES: Final = 2**60
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1
REKEY_AFTER_TIME: Final = 120.0
REJECT_AFTER_TIME: Final = 180.0
REKEY_ATTEMPT_TIME: Final = 90.0
REKEY_TIMEOUT: Final = 5.0
KEEPALIVE_TIMEOUT: Final = 10.0
COOKIE_SECRET_MAX_AGE: Final = 120.0

KEY_LENGTH: Final = 32
TAG_LENGTH: Final = 16
MAC_LENGTH: Final = 16
COOKIE_LENGTH: Final = 16
COOKIE_NONCE_LENGTH: Final = 24
TIMESTAMP_LENGTH: Final = 12

TYPE_INITIATION: Final = 1
TYPE_RESPONSE: Final = 2
TYPE_COOKIE_REPLY: Final = 3
TYPE_TRANSPORT: Final = 4

INITIATION_LENGTH: Final = 148
RESPONSE_LENGTH: Final = 92
COOKIE_REPLY_LENGTH: Final = 64
TRANSPORT_HEADER_LENGTH: Final = 16
TRANSPORT_OVERHEAD: Final = TRANSPORT_HEADER_LENGTH + TAG_LENGTH
KEEPALIVE_LENGTH: Final = TRANSPORT_OVERHEAD
MAX_INNER: Final = 65507 - TRANSPORT_OVERHEAD
"""Bytes of a padded packet that one datagram can still carry over IPv4."""

# --- chosen, as the Linux kernel's module chose ------------------------------------------------------------

REKEY_TIMEOUT_JITTER_MAX: Final = 0.333
"""Added to each retransmission and new-handshake delay, uniformly, so that two peers fall out of step."""
MAX_HANDSHAKE_ATTEMPTS: Final = int(REKEY_ATTEMPT_TIME / REKEY_TIMEOUT)
"""Retransmissions are sent while the count of attempts is at most this (18), so 20 initiations in all."""
INITIATIONS_PER_SECOND: Final = 50
"""A peer's initiations are answered at most this often."""
COOKIE_USE_AGE: Final = COOKIE_SECRET_MAX_AGE - 5.0
"""How long we use a cookie we were given: its maker may be a round trip ahead of us."""
WINDOW_SIZE: Final = 8192
"""Bits of the replay window. One block of 64 is always being cleared, so 8128 counters back are accepted."""
MAX_STAGED_PACKETS: Final = 128
"""Packets held for one peer while its handshake is under way; the oldest goes first."""
PADDING_MULTIPLE: Final = 16
KEY_WIPE_TIME: Final = 3 * REJECT_AFTER_TIME
"""Key material of a peer that is silent for this long is wiped."""

# --- Stagewire's own, off by default -----------------------------------------------------------------------

STAMPED_RESPONSE_LENGTH: Final = RESPONSE_LENGTH + TIMESTAMP_LENGTH
"""A response whose encrypted payload carries a TAI64N; sent only to a peer that is configured for it."""
MIN_REKEY_AFTER_TIME: Final = REKEY_TIMEOUT
"""The rekey interval may be lowered to this: initiations are at least REKEY_TIMEOUT apart whatever is set."""
