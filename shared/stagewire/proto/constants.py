"""Names the protocol's numbers as the WireGuard paper does.

Times are in seconds, sizes in bytes. First come the numbers that the specification fixes, then those that Linux's
module chose.
"""

from typing import Final

from stagewire.limits import MAX_DATAGRAM

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
MAX_INNER: Final = MAX_DATAGRAM - TRANSPORT_OVERHEAD
"""Bytes of the largest padded packet that one datagram carries over IPv4."""

# --- chosen, as the Linux kernel's module chose ------------------------------------------------------------

REKEY_TIMEOUT_JITTER_MAX: Final = 0.333
"""Greatest random delay of a retransmission or a new handshake; it takes two peers out of step."""
MAX_HANDSHAKE_ATTEMPTS: Final = int(REKEY_ATTEMPT_TIME / REKEY_TIMEOUT)
"""18: retransmissions go on while the count of attempts is at most this, so there are 20 initiations in all."""
INITIATIONS_PER_SECOND: Final = 50
"""Greatest rate at which one peer's initiations are answered."""
COOKIE_SECRET_GIVEN_AGE: Final = COOKIE_SECRET_MAX_AGE - 2 * (REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX)
"""Age of a secret up to which we give cookies of it: its last cookie still serves the receiver's next two tries."""
COOKIE_USE_AGE: Final = COOKIE_SECRET_MAX_AGE - 5.0
"""Age up to which we use a received cookie: its maker may be a round trip ahead of us."""
WINDOW_SIZE: Final = 8192
"""Bits of the replay window. One block of 64 is always partly unused, so the window reaches 8128 counters back."""
MAX_STAGED_PACKETS: Final = 128
"""Packets that wait for one peer's handshake; the oldest goes first."""
PADDING_MULTIPLE: Final = 16
KEY_WIPE_TIME: Final = 3 * REJECT_AFTER_TIME
"""A peer's silence after which its keys are wiped."""

# --- Stagewire's own, off by default -----------------------------------------------------------------------

STAMPED_RESPONSE_LENGTH: Final = RESPONSE_LENGTH + TIMESTAMP_LENGTH
"""A response whose encrypted payload carries a TAI64N; only a peer that is configured for it gets one."""
MIN_REKEY_AFTER_TIME: Final = REKEY_TIMEOUT
"""Least rekey interval: initiations are REKEY_TIMEOUT apart whatever the configuration says."""
