"""How `stagewire status` says times and sizes, and that it shows what is there and nothing else."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stagewire_cli import show


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0 s"), (0.4, "0 s"), (59, "59 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"),
        (7200, "2 h"), (172799, "48 h"), (172800, "2 d"), (10**9, "11574 d"),
    ],
)  # fmt: skip
def test_a_time_as_one_would_say_it(seconds: float | None, said: str) -> None:
    assert show.span(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"), (1024**4, "1.0 TiB"), (2**64, "16777216.0 TiB"),
    ],
)  # fmt: skip
def test_bytes_as_one_would_say_them(count: int, said: str) -> None:
    assert show.size(count) == said


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_more_time_is_never_said_as_less(one: float, other: float) -> None:
    factors = {"s": 1, "min": 60, "h": 3600, "d": 86400}

    def back(text: str) -> float:
        number, _, unit = text.partition(" ")
        return float(number) * factors[unit]

    low, high = sorted([one, other])
    # Rounded to a whole unit, of which there are at least two.
    assert back(show.span(low)) <= back(show.span(high)) * 1.25 + 1


SERVICE = {
    "service": "device-service", "number": 1, "state": "RUNNING", "pid": 4711, "uptime_s": 65, "ready": True,
    "fault": "", "spares": 1, "lives": 1, "counters": {"datagrams_in": 5, "tun_packets_in": 6, "replayed": 1234},
}  # fmt: skip
PEER = {
    "public_key": "P" * 43 + "=", "endpoint": "192.0.2.1:51820", "worker": 1, "last_handshake_unix_s": None,
    "tx_bytes": 10, "rx_bytes": 2048, "clock_skew_s": None, "allowed_ips": ["10.0.0.0/8"], "persistent_keepalive_s": 0,
}  # fmt: skip
STATUS = {"interface": "wg0", "ready": True, "public_key": "K" * 43 + "=", "listen_port": 51820}


def shown(services: list[dict[str, object]], peers: list[dict[str, object]], **changes: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    show.render({**STATUS, **changes, "services": services, "peers": peers}, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_is_there_is_shown() -> None:
    text = shown([SERVICE], [PEER])
    for words in (
        "wg0",
        "up",
        "51820",
        "device-service 1",
        "running",
        "4711",
        "65 s",
        "replayed 1,234",
        "2.0 KiB",
        "10 B",
    ):
        assert words in text
    assert "never" in text
    assert "10.0.0.0/8" in text
    assert "datagrams_in" not in text  # neither a drop nor a failure
    assert "clock skew" not in text


def test_a_fault_stands_where_the_drops_would() -> None:
    text = shown([SERVICE | {"ready": False, "fault": "UDP port 1 is taken"}], [], ready=False)
    assert "UDP port 1 is taken" in text
    assert "replayed" not in text
    assert text.count("not ready") == 2


def test_a_clock_skew_has_a_column_when_there_is_one() -> None:
    text = shown([], [PEER | {"clock_skew_s": -0.25}, PEER])
    assert "clock skew" in text
    assert "-0.250 s" in text


def test_nothing_that_is_missing_is_an_error() -> None:
    service = SERVICE | {"pid": None, "uptime_s": None, "state": "DOWN", "counters": {}}
    text = shown([service], [PEER | {"endpoint": None, "allowed_ips": []}], listen_port=None)
    assert "(unknown)" in text
    assert "(none)" in text
