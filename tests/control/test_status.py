"""The answers to a StatusQuery: what a command prints of them as JSON keeps its names."""

import json
from dataclasses import asdict

from stagewire.control.messages import FROM_KEY, TO_STATUS
from stagewire.control.status import (
    CountedStatus,
    CountersStatus,
    GatewayStatus,
    HostStatus,
    PeerStatus,
    StageStatus,
    WorkersStatus,
)

PEER = PeerStatus(
    "K" * 43 + "=",
    "Anna",
    None,
    "a.example:5",
    1,
    5.5,
    1,
    2,
    None,
    "",
    ("10.0.0.0/8",),
    "a.example:5",
    "no answer yet",
    25,
    7.5,
    8.5,
)
GATEWAY = GatewayStatus(
    "wg0", None, 51820, None, False, ("tun 0",), (StageStatus("key", 0, 7, True, "", 1, ""),),
    HostStatus(0, ("a warning",), (), None), True, WorkersStatus(2, (0, 1), 0), (PEER,),
)  # fmt: skip
PRINTED = {
    "interface": "wg0",
    "public_key": None,
    "listen_port": 51820,
    "listen_port_set": None,
    "ready": False,
    "waiting_for": ["tun 0"],
    "stages": [{"stage": "key", "number": 0, "pid": 7, "ready": True, "fault": "", "spares": 1, "kernel": ""}],
    "host": {"mark": 0, "warnings": ["a warning"], "put_back": [], "put_back_unix_s": None},
    "link_up": True,
    "workers": {"wanted": 2, "up": [0, 1], "peers_moving": 0},
    "peers": [
        {
            "public_key": "K" * 43 + "=",
            "name": "Anna",
            "endpoint": None,
            "endpoint_set": "a.example:5",
            "worker": 1,
            "last_handshake_unix_s": 5.5,
            "tx_bytes": 1,
            "rx_bytes": 2,
            "clock_skew_s": None,
            "endpoint_fault": "",
            "allowed_ips": ["10.0.0.0/8"],
            "endpoint_name": "a.example:5",
            "unresolved": "no answer yet",
            "persistent_keepalive_s": 25,
            "rx_bytes_per_s": 7.5,
            "tx_bytes_per_s": 8.5,
            "rx_bytes_alone": 0,
        }
    ],
}


def test_key_services_answer_arrives_and_is_printed_under_the_same_names() -> None:
    assert FROM_KEY.unpack_untrusted(FROM_KEY.pack(GATEWAY)) == GATEWAY
    assert json.dumps(asdict(GATEWAY)) == json.dumps(PRINTED)


def test_status_services_answer_arrives_with_counters_by_name() -> None:
    answer = CountersStatus((CountedStatus("tun", 0, 7, 0.25, 2, ("no_peer", "worker_full"), (3, 4)),))
    assert TO_STATUS.unpack_untrusted(TO_STATUS.pack(answer)) == answer
    assert answer.services[0].counters == {"no_peer": 3, "worker_full": 4}
