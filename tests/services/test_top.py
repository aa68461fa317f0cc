"""`stagewire top`: rates from reports, the picture at two sizes, hostile names, and what each key does."""

import io
import math
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from stagewire.config.peer_names import cleaned
from stagewire.control.status import (
    CountedStatus,
    CountersStatus,
    GatewayStatus,
    PeerStatus,
    ReasonStatus,
    StageStatus,
    WorkersStatus,
)
from stagewire.control.telemetry import CaptureReport, QueueReport
from stagewire_cli import top, top_view
from stagewire_cli.top_model import SORTS, WINDOW, Model, Sample, View

NOW = 1_790_000_000.0
NAMES = ["Anna's phone", "laptop", "", "office Basel", "日本語の名前", "backup", "printer", "Zoë"]


def key(number: int) -> str:
    return b64encode(sha256(b"%d" % number).digest()).decode()


def peer(number: int, at: float, name: str) -> PeerStatus:
    """A peer whose traffic grows by 1,000,000 bytes a second times its number."""
    moved = int(at * 1e6 * number)
    shaken = NOW + at - 100 * number if number != 3 else None
    return PeerStatus(
        key(number),
        name,
        f"192.0.2.{number}:51820",
        None,
        number % 2,
        shaken,
        moved // 4,
        moved,
        None,
        "",
        (),
        None,
        "",
        0,
    )


def sample(at: float, *, names: list[str] = NAMES, away: bool = False, lost: int = 0, workers: int = 2) -> Sample:
    places = [("tun", 0), ("conn", 0), ("key", 0), ("host", 0), ("resolver", 0), ("status", 0)]
    places += [("device", number) for number in range(workers)]
    stages = tuple(StageStatus(stage, number, 100 + at_, True, "", 1, "") for at_, (stage, number) in enumerate(places))
    gateway = GatewayStatus(
        *("wg0", key(99), 51820, 51820, True, (), stages, None, True, WorkersStatus(workers, tuple(range(workers)), 0)),
        tuple(peer(number, at, name) for number, name in enumerate(names)),
    )
    queues = {
        "tun": tuple(QueueReport(f"plain-out.{number}", 300_000 * number, 0) for number in range(workers)),
        "device": (QueueReport("cipher-out", 1500, 700), QueueReport("plain-in", 0, 0)),
        "conn": tuple(QueueReport(f"cipher-in.{number}", 0, 0) for number in range(workers)),
    }
    services = tuple(
        CountedStatus(
            stage,
            number,
            1,
            0.1,
            1,
            ("tun_packets_out",),
            (int(1000 * at) if stage == "tun" else 0,),
            1.0,
            queues.get(stage, ()),
        )
        for stage, number in places
        if stage == "tun" or stage in queues
    )
    reasons = (
        (ReasonStatus("device", 0, "inner_source_not_allowed", key(1), "192.0.2.1", 100, lost, 3.0),) if lost else ()
    )
    used = {
        (place, 100 + at_): at * (0.2 + 0.3 * place[1] + (place[0] == "device") * 0.4)
        for at_, place in enumerate(places)
    }
    return Sample(at, NOW + at, None if away else gateway, CountersStatus(services, reasons), used)


def made(*samples: Sample) -> Model:
    model = Model()
    for each in samples:
        model.take(each)
    return model


def drawn(model: Model, view: View, width: int, height: int | None) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True, highlight=False, emoji=False, markup=False)
    console.print(top_view.draw(model, view, width, height))
    return console.export_text().rstrip("\n").split("\n")


# --- rates --------------------------------------------------------------------------------------------------


def test_rates_are_taken_over_some_seconds_and_never_fall_below_zero() -> None:
    model = made(*(sample(2.0 * number) for number in range(10)))
    rows = {row.name: row for row in model.peers(View())}
    assert rows["office Basel"].received == pytest.approx(3e6)
    assert rows["office Basel"].sent == pytest.approx(0.75e6, rel=1e-3)
    assert model.packets("tun_packets_out") == pytest.approx(1000)
    assert len(model._samples) == WINDOW / 2 + 1
    anew = replace(sample(20.0), gateway=sample(1.0).gateway)
    model.take(anew)  # workers have died and count from zero
    assert all(row.received == row.sent == 0 for row in model.peers(View()))


def test_a_first_look_has_the_rates_that_the_services_tell() -> None:
    at = sample(2.0)
    assert at.gateway is not None
    assert at.counted is not None
    told = tuple(replace(each, cpu_share=0.3, per_s=(7.0,)) for each in at.counted.services)
    peers = tuple(replace(each, rx_bytes_per_s=1e6, tx_bytes_per_s=2e6) for each in at.gateway.peers)
    model = made(replace(at, gateway=replace(at.gateway, peers=peers), counted=CountersStatus(told)))
    assert {(row.received, row.sent) for row in model.peers(View())} == {(1e6, 2e6)}
    assert model.packets("tun_packets_out") == 7.0 * len(told)
    assert model.stages()["device", 1].cpu == 0.3
    assert list(model.course) == [(8e6 * len(peers), 16e6 * len(peers))]


def test_what_was_dropped_is_a_rate_and_a_reason() -> None:
    [row] = [row for row in made(sample(0, lost=10), sample(5, lost=60)).peers(View()) if row.lost]
    assert (row.name, row.lost, row.reasons) == ("laptop", 10.0, ("inner_source_not_allowed 60",))


def test_a_stage_shows_its_cpu_its_spare_and_its_queues() -> None:
    stages = made(sample(0), sample(2)).stages()
    assert stages["device", 1].cpu == pytest.approx(0.9)
    assert (stages["device", 1].active, stages["device", 1].spares) == (True, 1)
    assert stages["device", 1].queues == {"cipher-out": 2200, "plain-in": 0}
    gone = replace(sample(4), used={})
    assert not made(sample(0), gone).stages()["conn", 0].active


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_is_total_and_can_be_reversed(sort: str) -> None:
    model = made(sample(0, lost=1), sample(2, lost=9))
    rows = model.peers(View(sort=sort))
    assert len(rows) == len(NAMES)
    assert [SORTS[sort](row) for row in rows] == sorted(SORTS[sort](row) for row in rows)
    backwards = [SORTS[sort](row) for row in model.peers(View(sort=sort, reverse=True))]
    assert backwards == [SORTS[sort](row) for row in rows][::-1]


@pytest.mark.parametrize("text", ["BASEL", "192.0.2.3", key(3)[:10]])
def test_the_filter_looks_at_names_keys_and_addresses(text: str) -> None:
    assert [row.name for row in made(sample(0), sample(2)).peers(View(filter=text))] == ["office Basel"]


# --- the picture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (76, 15), (100, 24), (20, 3)])
@pytest.mark.parametrize("workers", [1, 2, 30])
def test_the_picture_fills_the_terminal_and_no_line_is_longer(width: int, height: int, workers: int) -> None:
    lines = drawn(
        made(*(sample(float(number), lost=3, workers=workers) for number in range(9))), View(), max(width, 76), height
    )
    assert max(map(cell_len, lines)) <= max(width, 76)
    assert len(lines) <= max(height, 24 if workers == 30 else 20)
    if width >= 80:
        assert len(lines) == height
        whole = "\n".join(lines)
        for told in ("wg0 up", "device 0", "●○", "60%", "2 KiB", "office Basel", "24.0 M", "1,000/s", "q quit"):
            assert told in whole, told
        assert ("192.0.2.3:51820" in whole) is (width >= 120)
        assert ("+26 workers" in whole or "+22 workers" in whole) is (workers == 30)


def test_all_peers_come_out_without_a_height() -> None:
    names = [f"peer {number:03}" for number in range(200)]
    text = "\n".join(drawn(made(sample(0, names=names), sample(2, names=names)), View(), 80, None))
    assert all(name in text for name in names)


def test_scrolling_ends_at_the_last_peer() -> None:
    names = [f"peer {number:03}" for number in range(100)]
    model = made(sample(0, names=names), sample(2, names=names))
    assert "peer 099" in "\n".join(drawn(model, View(sort="name", first=10_000), 80, 24))


@given(st.lists(st.text(max_size=60), min_size=3, max_size=3))
def test_a_hostile_name_breaks_no_line(names: list[str]) -> None:
    names = [cleaned(name) for name in [*names, "[bold red]x[/]", "\x1b[2J\u202eabc", "ab" * 5000]]
    lines = drawn(made(sample(0, names=names), sample(2, names=names)), View(), 80, 24)
    assert len(lines) == 24
    assert max(map(cell_len, lines)) <= 80
    assert "[bold red]x[/]" in "\n".join(lines)
    assert not any(ord(letter) < 32 or letter in "\u202e\u2066" for line in lines for letter in line)


def test_a_capture_is_shown_with_its_peer_and_who_wants_it() -> None:
    at_work = sample(2)
    assert at_work.counted is not None
    captured = CaptureReport(sha256(b"1").digest(), "martin", NOW, "headers", 1, 0)
    services = (replace(at_work.counted.services[0], captures=(captured,)), *at_work.counted.services[1:])
    model = made(sample(0), replace(at_work, counted=CountersStatus(services)))
    assert f" packets are captured: laptop ({key(1)[:10]}) by martin" in "\n".join(drawn(model, View(), 80, 24))


def test_without_key_service_the_last_answer_stays_and_that_is_said() -> None:
    text = "\n".join(drawn(made(sample(0), sample(2), sample(4, away=True)), View(), 80, 24))
    assert "key-service does not answer" in text
    assert "office Basel" in text
    assert drawn(made(sample(0, away=True)), View(), 80, 24) == ["key-service does not answer"]


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0 bit/s"), (999, "999 bit/s"), (1000, "1.0 kbit/s"), (2.5e9, "2.5 Gbit/s"), (3e12, "3000.0 Gbit/s")],
)
def test_rates_have_a_unit(rate: float, text: str) -> None:
    assert top_view.bits(rate) == text
    assert math.isfinite(rate)


# --- keys ---------------------------------------------------------------------------------------------------


def typed(*keys: str) -> View:
    view = View()
    for each in keys:
        view = top.after(view, each)
    return view


def test_what_the_keys_do() -> None:
    assert typed("s").sort == "in"
    assert typed(*["s"] * len(SORTS)) == View()
    assert typed("r").reverse
    assert typed("p").paused
    assert not typed("p", "p").paused
    assert typed("down", "down", "up").first == 1
    assert typed("up").first == 0
    assert typed("/", "a", "q", "x", "\x7f", "\r") == View(filter="aq")
    assert typed("/", "a", "escape") == View()
    assert typed("/", "\x01", "up").filter == ""
    assert typed("x") == View()


@pytest.mark.parametrize("width", [80, 200])
def test_lines_of_very_many_peers_stand_in_columns_as_wide_as_the_terminal(width: int) -> None:
    model = Model()
    model.take(sample(0.0))
    model.take(sample(2.0, lost=4))
    head, *lines = top_view.lines_of_many(model, width)
    assert len(lines) == len(NAMES)
    assert all(cell_len(line) <= width for line in (head, *lines))
    ends = {name: head.index(name) + len(name) for name in ("handshake", "lost/s")}
    [anna] = [line for line in lines if line.startswith(" Anna's phone")]
    assert all(anna[end - 1] != " " and anna[end : end + 1] in {"", " "} for end in ends.values())
    assert ("192.0.2.0:51820" in anna) == (width == 200)
