"""P29: the kernel has no randomness yet. A handshake waits or fails, and never goes on with weak bytes."""

import errno
import os
import secrets
from collections.abc import Callable
from typing import Final

import pytest
from tests.proto.far import PLACE, PSK, WALL, Far, T, receive, stamp

from stagewire.linux import sandbox, seccomp
from stagewire.linux.seccomp import Argument, Call, fails_with
from stagewire.proto.cookie import CookieChecker
from stagewire.proto.events import InstallSession, SendHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker

pytestmark = [
    pytest.mark.attack("P29"),
    pytest.mark.skipif(os.geteuid() != 0, reason="root alone may load a filter without more ado"),
]

SENT, NO_BYTES, NOTHING_SENT = 0, 50, 51
NO_ENTROPY = Call((), fails_with(errno.EAGAIN))
PATIENT_ALONE = Call(((Argument(2, (0,)),),))
"""Flags of 0: the call waits for entropy. Any other call kills."""


def initiate() -> int:
    """Begins a handshake as key-service does."""
    ours = Handshaker(Identity.from_private_bytes(bytes(range(32))), bytes(12), secrets.token_bytes, float)
    far = Far(ours.identity)
    ours.add_peer(far.identity.public_key, PSK, 0).endpoint = PLACE
    ours.worker_up(0, T, WALL)
    try:
        effects = ours.want(far.identity.public_key, T, WALL)
    except OSError:
        return NO_BYTES
    return SENT if any(isinstance(each, SendHandshake) for each in effects) else NOTHING_SENT


def respond() -> int:
    """Answers a handshake as key-service does."""
    ours = Handshaker(Identity.from_private_bytes(bytes(range(32))), bytes(12), secrets.token_bytes, float)
    far = Far(ours.identity)
    ours.add_peer(far.identity.public_key, PSK, 0)
    ours.worker_up(0, T, WALL)
    try:
        effects = receive(ours, far.initiation(stamp(1)))
    except OSError:
        return NO_BYTES
    (index,) = (each.index for each in effects if isinstance(each, InstallSession))
    return SENT if any(isinstance(each, SendHandshake) for each in ours.installed(index, T)) else NOTHING_SENT


def demand_a_cookie() -> int:
    """Answers an initiation as conn-service does while there are too many."""
    checker = CookieChecker(bytes(32), secrets.token_bytes)
    try:
        return SENT if checker.cookie_reply(bytes(148), bytes(6), T) else NOTHING_SENT
    except OSError:
        return NO_BYTES


SENDS: Final = {"an initiation": initiate, "a response": respond, "a cookie reply": demand_a_cookie}


def under(getrandom: Call, does: Callable[[], int]) -> int:
    """Returns how a child ends whose system calls are key-service's, but for one."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 99
    try:
        seccomp.load(seccomp.program({**sandbox.calls("key"), "getrandom": getrandom}))
        status = does()
    finally:
        os._exit(status)


@pytest.mark.parametrize("message", SENDS)
def test_without_entropy_no_handshake_message_leaves(message: str) -> None:
    SENDS[message]()  # all modules are imported
    assert under(NO_ENTROPY, SENDS[message]) == NO_BYTES


@pytest.mark.parametrize("message", SENDS)
def test_every_random_byte_of_a_handshake_comes_from_a_call_that_waits_for_entropy(message: str) -> None:
    SENDS[message]()
    assert under(PATIENT_ALONE, SENDS[message]) == SENT
