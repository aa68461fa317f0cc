"""The protocol's numbers, as the paper and the layouts have them."""

import pytest

from stagewire.proto import constants as c


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REKEY_AFTER_MESSAGES", 2**60),
        ("REJECT_AFTER_MESSAGES", 2**64 - 2**13 - 1),
        ("REKEY_AFTER_TIME", 120),
        ("REJECT_AFTER_TIME", 180),
        ("REKEY_ATTEMPT_TIME", 90),
        ("REKEY_TIMEOUT", 5),
        ("KEEPALIVE_TIMEOUT", 10),
    ],
)
def test_the_table_of_section_6(name: str, value: float) -> None:
    assert getattr(c, name) == value


def test_the_labels() -> None:
    assert c.CONSTRUCTION == b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
    assert c.IDENTIFIER == b"WireGuard v1 zx2c4 Jason@zx2c4.com"
    assert (c.LABEL_MAC1, c.LABEL_COOKIE) == (b"mac1----", b"cookie--")


def test_lengths_are_the_sums_of_their_fields() -> None:
    sealed_key, sealed_stamp, macs = c.KEY_LENGTH + c.TAG_LENGTH, c.TIMESTAMP_LENGTH + c.TAG_LENGTH, 2 * c.MAC_LENGTH
    assert 4 + 4 + c.KEY_LENGTH + sealed_key + sealed_stamp + macs == c.INITIATION_LENGTH
    assert 4 + 4 + 4 + c.KEY_LENGTH + c.TAG_LENGTH + macs == c.RESPONSE_LENGTH
    assert 4 + 4 + 4 + c.KEY_LENGTH + sealed_stamp + macs == c.STAMPED_RESPONSE_LENGTH
    assert c.COOKIE_REPLY_LENGTH == 4 + 4 + c.COOKIE_NONCE_LENGTH + 16 + c.TAG_LENGTH
    assert c.TRANSPORT_OVERHEAD == 4 + 4 + 8 + c.TAG_LENGTH


def test_timers_leave_room_for_one_another() -> None:
    assert c.REKEY_AFTER_TIME + c.REKEY_ATTEMPT_TIME > c.REJECT_AFTER_TIME
    assert c.MIN_REKEY_AFTER_TIME >= c.REKEY_TIMEOUT
    assert c.COOKIE_USE_AGE < c.COOKIE_SECRET_MAX_AGE
    assert c.MAX_HANDSHAKE_ATTEMPTS == 18
