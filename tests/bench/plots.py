"""Draws the results in SVG: throughput, goodput over offered load, latency, and the cost of a gigabyte."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from tests.bench.contestants import CEILING, ONE_END, REFERENCE, STAGEWIRE
from tests.bench.rows import TIMES, UDP_SIZES, derive, udp_key, udp_rates
from tests.bench.samples import Results, Summary

COLOURS: Final = {STAGEWIRE: "#d1495b", REFERENCE: "#00798c", CEILING: "#8d99ae", ONE_END: "#edae49"}
FURTHER: Final = ("#5b4b8a", "#4c956c")
STAGES: Final = {
    "tun-service": "#f2c14e",
    "device-service": "#d1495b",
    "conn-service": "#f78154",
    "key-service": "#5b4b8a",
    "status-service": "#b4869f",
    "host-service": "#8d99ae",
    "resolver-service": "#c9ada7",
    "supervisord": "#777777",
    "wireguard-go": "#00798c",
}
GENERATOR: Final = "#d5d9e0"
TCP: Final = (
    ("tcp-1", "1 stream"),
    ("tcp-4", "4 streams"),
    ("tcp-16", "16 streams"),
    ("tcp-both", "4 each way"),
    ("tcp-6", "1, IPv6"),
)
_STYLE: Final[Any] = {  # matplotlib types its settings' names as one long Literal
    "svg.fonttype": "none",
    "svg.hashsalt": "stagewire",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def write(results: Results, directory: Path, kind: str = "svg") -> list[Path]:
    """Draws the pictures that have results. Returns the files."""
    derived = derive(results)
    made = []
    with mpl.rc_context(_STYLE):
        for name, draw in (("tcp", _tcp), ("udp", _udp), ("latency", _latency), ("cpu", _cpu)):
            figure = draw(derived)
            if figure is not None:
                path = directory / f"{name}.{kind}"
                # Without a date the same results make the same file.
                figure.savefig(path, dpi=130, metadata={"Date": None} if kind == "svg" else None)
                made.append(path)
    return made


def colours(names: Iterable[str]) -> dict[str, str]:
    """Chooses a colour for each contestant, always the same for the usual ones."""
    further = iter(FURTHER * 4)
    return {name: COLOURS.get(name) or next(further) for name in names}


def _who(results: Results, scenarios: Iterable[str], without: Sequence[str] = ()) -> list[str]:
    names = dict.fromkeys(name for scenario in scenarios for name in results.contestants(scenario))
    order = [name for name in COLOURS if name in names] + [name for name in names if name not in COLOURS]
    return [name for name in order if name not in without]


def _reach(summaries: Sequence[Summary], factor: float) -> tuple[list[float], list[float]]:
    """Returns how far below and above its median each summary goes."""
    low = [(each.median - each.low) * factor for each in summaries]
    return low, [(each.high - each.median) * factor for each in summaries]


def _tcp(results: Results) -> Figure | None:
    shapes = [(key, title) for key, title in TCP if results.contestants(key)]
    names = _who(results, (key for key, _ in shapes), (CEILING, ONE_END))
    if not names:
        return None
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    width, palette = 0.8 / len(names), colours(names)
    for position, name in enumerate(names):
        there = [(place, results.summary(key, name, "goodput")) for place, (key, _) in enumerate(shapes)]
        drawn = [(place, summary) for place, summary in there if summary is not None]
        at = [place + (position - (len(names) - 1) / 2) * width for place, _ in drawn]
        summaries = [summary for _, summary in drawn]
        axes.bar(
            at,
            [each.median / 1e9 for each in summaries],
            width * 0.92,
            yerr=_reach(summaries, 1e-9),
            label=name,
            color=palette[name],
            error_kw={"ecolor": "#333333", "capsize": 2, "lw": 1},
        )
        if name == STAGEWIRE:
            _ratios(axes, results, [shapes[place][0] for place, _ in drawn], at, summaries)
    axes.set_xticks(range(len(shapes)), [title for _, title in shapes])
    axes.set_ylabel("Gb/s, both directions added")
    ceiling = results.summary("tcp-1", CEILING, "goodput")
    said = f"; bare veth: {ceiling.median / 1e9:.1f} Gb/s with 1 stream" if ceiling else ""
    axes.set_title(f"TCP through one tunnel (medians, least to greatest run{said})")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _ratios(axes: Axes, results: Results, keys: Sequence[str], at: Sequence[float], tops: Sequence[Summary]) -> None:
    for key, place, top in zip(keys, at, tops, strict=True):
        ratio = results.ratio(key, STAGEWIRE, REFERENCE, "goodput")
        if ratio is not None:
            axes.annotate(
                f"{ratio.median:.2f}{TIMES}",
                (place, top.high / 1e9),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                fontweight="bold",
                color=COLOURS[STAGEWIRE],
            )


def _udp(results: Results) -> Figure | None:
    sizes = [size for size in UDP_SIZES if len(udp_rates(results, size)) > 1]
    if not sizes:
        return None
    figure = Figure(figsize=(4.6 * len(sizes) + 0.6, 4))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        _udp_size(axes, results, size)
    return figure


def _udp_size(axes: Axes, results: Results, size: int) -> None:
    # Large packets count by their bytes, small ones by their number.
    factor, unit = (size * 8 / 1e9, "Gb/s") if size >= 1000 else (1e-3, "kpackets/s")
    keys = [udp_key(size, rate) for rate in udp_rates(results, size)]
    names = _who(results, keys, (ONE_END,))
    palette = colours(names)
    best = 0.0
    for name in names:
        points = sorted(
            (
                (offered.median * factor, came)
                for key in keys
                if (offered := results.summary(key, name, "offered")) and (came := results.summary(key, name, "pps"))
            ),
            key=lambda point: point[0],
        )
        at, tops = [x for x, _ in points], [each.median * factor for _, each in points]
        if name == CEILING:
            axes.plot(at, tops, "--", color=palette[name], label=name, lw=1.2)
            continue
        best = max(best, *tops)
        axes.fill_between(
            at, [each.low * factor for _, each in points], [each.high * factor for _, each in points],
            color=palette[name], alpha=0.15, lw=0,
        )  # fmt: skip
        axes.plot(at, tops, "o-", color=palette[name], label=name, ms=4)
    axes.set_xscale("log")
    axes.set_ylim(0, best * 1.35)
    axes.set_xlabel(f"offered, {unit}")
    axes.set_ylabel(f"arrived, {unit}")
    _plain_decades(axes)
    axes.set_title(f"UDP, payloads of {size:,} B")
    axes.legend(loc="upper left")


def _plain_decades(axes: Axes) -> None:
    """Labels 1, 2 and 5 of each decade with plain numbers."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _latency(results: Results) -> Figure | None:
    kinds = [("latency-idle", "idle"), ("latency-loaded", "beside a TCP stream")]
    kinds = [(key, title) for key, title in kinds if results.contestants(key)]
    if not kinds:
        return None
    figure = Figure(figsize=(4.6 * len(kinds) + 0.6, 3.8))
    for axes, (key, title) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        names = _who(results, [key], (ONE_END,))
        palette = colours(names)
        for name in names:
            trips = results.curve(key, name, "trips")
            parts = [position / (len(trips) - 1) * 100 for position in range(len(trips))]
            axes.plot(trips, parts, color=palette[name], label=name, lw=1.6)
        for part in (50, 99):
            axes.axhline(part, color="#bbbbbb", lw=0.8, ls=":")
        axes.set_xscale("log")
        axes.set_ylim(0, 101)
        axes.set_xlabel("round trip, ms")
        axes.set_ylabel("% of pings at most")
        _plain_decades(axes)
        axes.set_title(f"Latency, {title}")
        axes.legend(loc="lower right")
    return figure


def _cpu(results: Results) -> Figure | None:
    bars = [
        (f"{name}\n{title}", key, name)
        for key, title in (("tcp-1", "1 stream"), ("tcp-16", "16 streams"))
        for name in _who(results, [key], (CEILING,))
        if results.summary(key, name, "cpu")
    ]
    if not bars:
        return None
    figure = Figure(figsize=(max(6.0, 1.5 * len(bars) + 2.4), 4))
    axes = figure.subplots()
    bottoms = [0.0] * len(bars)
    for stage in _stages(results, bars):
        heights = [_median(results.summary(key, name, f"cpu/{stage}")) for _, key, name in bars]
        if max(heights) < 0.005 * max(map(_total(results), bars)):
            continue
        colour = GENERATOR if stage == "iperf3" else STAGES.get(stage, FURTHER[0])
        axes.bar(range(len(bars)), heights, 0.62, bottom=bottoms, color=colour, label=stage)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, top in enumerate(bottoms):
        axes.annotate(f"{top:.1f}", (place, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(bars)), [title for title, _, _ in bars], fontsize=9)
    axes.set_ylabel("s of CPU per GB, both ends")
    axes.set_title("What a gigabyte through TCP costs, by stage")
    axes.grid(visible=False, axis="x")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _median(summary: Summary | None) -> float:
    return summary.median if summary else 0.0


def _total(results: Results) -> Any:
    def total(bar: tuple[str, str, str]) -> float:
        return _median(results.summary(bar[1], bar[2], "cpu"))

    return total


def _stages(results: Results, bars: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lists the stages in the order of packets, then unknown programs, then the makers of load."""
    there = {
        value.removeprefix("cpu/")
        for _, key, name in bars
        for sample in results.of(key, name)
        for value in sample.values
        if value.startswith("cpu/")
    }
    known = [stage for stage in STAGES if stage in there]
    return [*known, *sorted(there - {*known, "iperf3"}), *(["iperf3"] if "iperf3" in there else [])]
