"""How `stagewire status` says times and sizes; that it shows what is there, whole, in the columns there are."""

import re

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.control.status import ReasonStatus
from stagewire_cli import layout, reasons


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0 s"), (0.4, "0 s"), (59, "59 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"),
        (7200, "2 h"), (172799, "48 h"), (172800, "2 d"), (10**9, "11574 d"),
    ],
)  # fmt: skip
def test_a_time_as_one_would_say_it(seconds: float | None, said: str) -> None:
    assert layout.span(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"), (1024**4, "1.0 TiB"), (2**64, "16777216.0 TiB"),
    ],
)  # fmt: skip
def test_bytes_as_one_would_say_them(count: int, said: str) -> None:
    assert layout.size(count) == said


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_more_time_is_never_said_as_less(one: float, other: float) -> None:
    factors = {"s": 1, "min": 60, "h": 3600, "d": 86400}

    def back(text: str) -> float:
        number, _, unit = text.partition(" ")
        return float(number) * factors[unit]

    low, high = sorted([one, other])
    # Rounded to a whole unit, of which there are at least two.
    assert back(layout.span(low)) <= back(layout.span(high)) * 1.25 + 1


SERVICE = {
    "service": "device-service", "number": 1, "state": "RUNNING", "pid": 4711, "uptime_s": 65, "ready": True,
    "fault": "", "spares": 1, "kernel": "", "lives": 1,
    "counters": {"datagrams_in": 5, "tun_packets_in": 6, "replayed": 1234},
}  # fmt: skip
PEER = {
    "public_key": "P" * 43 + "=", "endpoint": "192.0.2.1:51820", "worker": 1, "last_handshake_unix_s": None,
    "tx_bytes": 10, "rx_bytes": 2048, "clock_skew_s": None, "allowed_ips": ["10.0.0.0/8"], "persistent_keepalive_s": 0,
}  # fmt: skip
STATUS = {"interface": "wg0", "healthy": True, "warnings": [], "public_key": "K" * 43 + "=", "listen_port": 51820}
LONG_PEER = PEER | {
    "endpoint": "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:51820",
    "allowed_ips": [f"2001:db8:{number:x}::/48" for number in range(40)],
    "tx_bytes": 2**40 - 1,
    "rx_bytes": 2**30 - 1,
    "last_handshake_unix_s": 5.0,
    "clock_skew_s": -1000.0,
}
LONG_SERVICE = SERVICE | {
    "counters": {f"reason_number_{number}": 10**9 for number in range(12)}, "fault": "it does not work " * 20,
    "ready": False, "number": 63, "pid": 4194304, "uptime_s": 10**9,
}  # fmt: skip


def shown(
    services: list[dict[str, object]], peers: list[dict[str, object]], width: int | None = None, **changes: object
) -> str:
    status = {**STATUS, **changes, "services": services, "peers": peers}
    return click.unstyle("\n".join(layout.lines(status, width)))


def test_what_is_there_is_shown() -> None:
    text = shown([SERVICE], [PEER])
    for words in (
        "wg0: up, port 51820",
        "device-service 1",
        "running",
        "4711",
        "65 s",
        "replayed 1,234",
        "2.0 KiB",
        "10 B",
    ):
        assert words in text
    assert "no handshake yet" in text
    assert "allowed ips 10.0.0.0/8" in text
    assert "datagrams_in" not in text  # neither a drop nor a failure
    assert "clock skew" not in text


def test_a_peer_is_two_lines() -> None:
    assert shown([], [PEER]).splitlines()[-2:] == [
        f"peer {PEER['public_key']}  no handshake yet",
        "  endpoint 192.0.2.1:51820; received 2.0 KiB, sent 10 B; allowed ips 10.0.0.0/8",
    ]


def test_a_workers_kernel_is_shown_with_the_reason() -> None:
    assert "  kernel: plain, as STAGEWIRE_KERNEL says\n" in shown(
        [SERVICE | {"kernel": "plain, as STAGEWIRE_KERNEL says"}], []
    )


def test_a_fault_is_shown_beside_the_drops() -> None:
    text = shown([SERVICE | {"ready": False, "fault": "UDP port 1 is taken"}], [], healthy=False)
    assert "  fault: UDP port 1 is taken\n  drops: replayed 1,234" in text
    assert "wg0: degraded" in text
    assert "running, not ready" in text


def test_drops_and_failures_are_shown_apart_and_nothing_else() -> None:
    counters = {"datagrams_out": 1, "gave_up": 2, "no_peer": 3, "put_back_link": 4, "replayed": 5}
    text = shown([SERVICE | {"counters": counters}], [])
    assert "\n  drops: no_peer 3, replayed 5\n  failures: gave_up 2" in text
    assert not any(name in text for name in ("datagrams_out", "put_back_link"))


def test_a_warning_stands_under_the_interface() -> None:
    assert "\n  warning: it is old\n" in shown([], [], warnings=["it is old"])


def test_a_clock_skew_is_shown_when_there_is_one() -> None:
    assert shown([], [PEER | {"clock_skew_s": -0.25}, PEER]).count("clock skew -0.250 s") == 1


def test_a_peers_reasons_are_shown_with_the_time_and_the_place_of_the_last() -> None:
    told = ReasonStatus("key", 0, "initiation_replayed", str(PEER["public_key"]), "192.0.2.7:5", 148, 1234, 61.0)
    elsewhere = ReasonStatus("key", 0, "unknown_peer", "S" * 43 + "=", "192.0.2.8:5", 148, 1, 0.0)
    of_peers, strangers = reasons.by_peer((told, elsewhere), {str(PEER["public_key"])})
    text = shown([], [PEER | {"reasons": of_peers[str(PEER["public_key"])]}])
    assert text.endswith("\n  reasons: initiation_replayed 1,234 (61 s ago, 192.0.2.7:5)")
    [stranger] = strangers
    assert (stranger["reason"], stranger["public_key"], stranger["example"]["size"]) == (
        "unknown_peer", "S" * 43 + "=", 148
    )  # fmt: skip
    assert stranger["meaning"] == "an initiation came from a key that isn't configured"
    assert stranger["mend"].startswith("if the sender should be a peer, add its public key")


def test_nothing_that_is_missing_is_an_error() -> None:
    service = SERVICE | {"pid": None, "uptime_s": None, "state": "DOWN", "counters": {}}
    text = shown([service], [PEER | {"endpoint": None, "allowed_ips": []}], listen_port=None, public_key=None)
    assert "endpoint (unknown)" in text
    assert "allowed ips (none)" in text


def test_a_name_that_is_not_resolved_yet() -> None:
    reason = "vpn.example.net: no answer from 192.0.2.53, 2001:db8:aaaa:bbbb:cccc:dddd:eeee:53"
    peer = PEER | {"endpoint": None, "endpoint_name": "vpn.example.net:51820", "unresolved": reason}
    assert f"endpoint vpn.example.net:51820 is not resolved yet ({reason});" in shown([], [peer], None)
    assert max(map(len, shown([], [peer], 80).splitlines())) <= 80


def test_80_columns_are_enough_and_nothing_is_cut() -> None:
    warning = "/etc/stagewire/wg0.conf has changed since it was read; `stagewire reload wg0` applies it"
    whole = shown([LONG_SERVICE], [LONG_PEER, PEER], None, warnings=[warning], healthy=False)
    text = shown([LONG_SERVICE], [LONG_PEER, PEER], 80, warnings=[warning], healthy=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    assert re.split(r"\s+", text) == re.split(r"\s+", whole)
    for item in (LONG_PEER["endpoint"], "2001:db8:27::/48", "reason_number_11 1,000,000,000", "received 1024.0 MiB"):
        assert str(item) in text


def test_in_a_pipe_no_line_is_broken() -> None:
    lines = shown([LONG_SERVICE], [LONG_PEER]).splitlines()
    assert [line for line in lines if "2001:db8:0::/48" in line] == [
        line for line in lines if "2001:db8:27::/48" in line
    ]
    assert len(lines) == 3 + 1 + 3 + 1 + 2
