"""Draws a run: traffic over time, with the faults marked."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from tests.chaos.catalogue import KINDS
from tests.chaos.record import SLOT
from tests.chaos.report import Run

WIDEST: Final = 1200
"""Most points in a line; beyond that several slots share one."""
LEGIBLE: Final = 60
"""Most faults that get their names."""
HEADROOM: Final = 1.9
"""Height of the axis, in usual rates; packets held up come in a burst of several times that."""
UP, DOWN = "#2a7f9e", "#c8553d"

_PALETTE: Final = tuple(
    colour for name in ("tab10", "Dark2", "Set1") for colour in mpl.colormaps[name](range(8)).tolist()
)


def write_plot(run: Run, folder: Path) -> Path:
    """Writes plot.png. Returns its path."""
    mpl.use("Agg")
    progress = run.progress
    figure = Figure(figsize=(16, 9), layout="constrained")
    traffic, outages = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    history = run.record.history(progress.begun, progress.ends)
    _traffic(traffic, history)
    kinds = [kind.name for kind in KINDS if any(outcome.kind == kind.name for outcome in progress.done)]
    colours = {name: _PALETTE[place % len(_PALETTE)] for place, name in enumerate(kinds)}
    for begun, ended, kind in progress.marks:
        start, end = begun - progress.begun, ended - progress.begun
        traffic.axvspan(start, end, color=colours[kind], alpha=0.12, lw=0)
        traffic.axvline(start, color=colours[kind], lw=0.8)
        if len(progress.marks) <= LEGIBLE:
            traffic.text(
                start, 1.01, kind, rotation=60, fontsize=8, transform=traffic.get_xaxis_transform(), color="0.25"
            )
    for name in kinds:
        mine = [outcome for outcome in progress.done if outcome.kind == name]
        outages.scatter(
            [outcome.at - progress.begun for outcome in mine], [max(0.3, outcome.outage * 1000) for outcome in mine],
            color=colours[name], s=28, label=name, edgecolor="white", linewidth=0.4, zorder=3,
        )  # fmt: skip
    outages.set(yscale="log", ylabel="outage of a fault, ms", xlabel="time, s")
    outages.grid(visible=True, color="0.9", zorder=0)
    outages.legend(ncols=1, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.9), frameon=False)
    faults = len(progress.done)
    figure.suptitle(
        f"Stagewire under {faults} faults, seed {run.seed}: packets delivered through the tunnels", fontsize=13
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plot.png"
    figure.savefig(path, dpi=110)
    return path


def _traffic(axes: Any, history: Any) -> None:
    step = max(1, -(-history.shape[1] // WIDEST))
    whole = history.shape[1] // step * step
    for rows, name, colour in ((history[0::2], "gateway to peers", DOWN), (history[1::2], "peers to gateway", UP)):
        total = rows.sum(axis=0)[:whole].reshape(-1, step)
        times = np.arange(len(total)) * step * SLOT
        # A point of a long run would hide a dip, so it shows its least slot.
        axes.fill_between(times, total.min(axis=1) / SLOT, step="post", color=colour, alpha=0.25, lw=0)
        axes.step(times, total.min(axis=1) / SLOT, where="post", color=colour, lw=1.0, label=name)
    usual = max(1.0, float(np.median(history[0::2].sum(axis=0)))) / SLOT
    grain = f", the least {SLOT:g} s of each {step * SLOT:g}" if step > 1 else ""
    axes.set(ylabel=f"packets/s{grain}", ylim=(0, HEADROOM * usual), xlim=(0, whole * SLOT))
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(visible=True, axis="y", color="0.9")
