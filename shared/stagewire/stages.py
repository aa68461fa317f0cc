"""Names every stage once, with its uid, its turn in a rolling restart, and whether packets pass through it."""

from typing import Final, NamedTuple


class StageFacts(NamedTuple):
    """Describes one stage."""

    place: int
    """Place of the stage's uid in its interface's block; a worker's number is added."""
    former_uid: int
    """uid of the stage in versions in which all interfaces shared uids; an upgrade meets processes and files of it."""
    restart_turn: int
    """Place in a rolling restart; stages without packets come first."""
    carries_packets: bool


FACTS: Final = {
    "tun": StageFacts(place=1, former_uid=64821, restart_turn=6, carries_packets=True),
    "device": StageFacts(place=64, former_uid=64822, restart_turn=7, carries_packets=True),
    "conn": StageFacts(place=2, former_uid=64823, restart_turn=5, carries_packets=True),
    "key": StageFacts(place=3, former_uid=64824, restart_turn=4, carries_packets=False),
    "status": StageFacts(place=4, former_uid=64825, restart_turn=1, carries_packets=False),
    "host": StageFacts(place=5, former_uid=64826, restart_turn=3, carries_packets=False),
    "resolver": StageFacts(place=6, former_uid=64827, restart_turn=2, carries_packets=False),
}
STAGES: Final = tuple(FACTS)
"""Every stage, in the order in which commands show them."""
RESTART_ORDER: Final = tuple(sorted(STAGES, key=lambda stage: FACTS[stage].restart_turn))
PACKET_STAGES: Final = frozenset(stage for stage in STAGES if FACTS[stage].carries_packets)
WORKER: Final = "device"
"""The only stage with more than one active process."""

UIDS: Final = 128
"""uids of one interface's block, whose first number is also the gid of its run folder."""
OWN_STAGES_PLACE: Final = 32
"""Place of the first of the operator's own stages."""
MAX_OWN_STAGES: Final = 16
UID_RANGES: Final = ((1879048192, 1879113727), (60578, 61183))
"""Ranges that blocks come from, the preferred first. systemd leaves both unused (systemd.io/UIDS-GIDS); a user namespace
with the usual 65,536 uids has the second."""
