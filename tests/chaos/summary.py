"""Prints the report at the end of a run."""

from typing import Final

from rich.table import Table
from rich.text import Text
from tests.chaos.catalogue import KINDS
from tests.chaos.report import CARRYING, Figures, Run
from tests.chaos.view import View

BUSY: Final = 0.5
"""From this share of the time on the figures describe the machine more than the gateway."""


def conclude(run: Run, view: View, *, strict: bool) -> int:
    """Prints the result. Returns the exit status: 0 if all invariants held, and with `strict` all figures too."""
    figures = run.figures()
    console = view.console
    console.print()
    console.print(_faults(run, figures))
    console.print()
    for check in run.checks:
        mark = Text("✓ ", style="green") if check.holds else Text("✗ ", style="bold red")
        console.print(mark + Text(check.claim).append(f"  ({check.seen})", style="dim"))
    carries = run.carrying_else >= CARRYING
    share = Text("✓ " if carries else "· ", style="green" if carries else "yellow")
    share.append(
        f"{run.carrying_else:.2%} of slots of 0.1 s carried traffic both ways, outside faults that stop it all"
    )
    console.print(share.append(f"  (target {CARRYING:.2%}; with those faults {run.carrying:.2%})", style="dim"))
    if run.waited is not None and run.waited > BUSY:
        console.print(
            Text(f"· busy machine: processes waited for a processor {run.waited:.0%} of the time", style="yellow")
        )
    for text in (run.violations + run.progress.broken)[:30]:
        console.print(Text(f"  {text}", style="red"), soft_wrap=True)
    for name, why in run.progress.skipped.items():
        console.print(Text(f"not tried: {name}: {why}", style="dim"))
    missed = sum(bool(each.missed) for each in figures)
    console.print()
    if not run.sound:
        console.print(Text("Not sound: the gateway broke an invariant", style="bold red"))
    elif missed:
        console.print(
            Text(f"Sound: every invariant held. Kinds of fault with a missed figure: {missed}", style="bold yellow")
        )
    else:
        console.print(Text("Sound: every invariant held, every figure reached its target", style="bold green"))
    return 0 if run.sound and not (strict and missed) else 1


def _faults(run: Run, figures: list[Figures]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("fault", no_wrap=True)
    for heading in (
        "",
        "outage ms\nmedian / worst",
        "target",
        "at once\nmedian / worst",
        "lost\nmedian / worst",
        "target",
        "others\nms / lost",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("wireguard-go\nms / lost", justify="right", no_wrap=True)
    table.add_column("besides")
    by_name = {kind.name: kind for kind in KINDS}
    for each in figures:
        kind = by_name[each.kind]
        reference = run.reference.get(kind.like or "", [])
        besides = [
            f"{name} {median:.0f} / {worst:.0f}"
            + (f" of {limit:.0f}" if (limit := kind.limits.measured.get(name)) else "")
            for name, (median, worst) in each.measured.items()
        ]
        table.add_row(
            kind.what, str(each.count), f"{each.median_ms:.0f} / {each.worst_ms:.0f}",
            _limit(kind.limits.median_ms, kind.limits.worst_ms),
            f"{each.takeover_ms[0]:.0f} / {each.takeover_ms[1]:.0f}", f"{each.median_lost:.0f} / {each.worst_lost}",
            _limit(kind.limits.median_lost, kind.limits.worst_lost), f"{each.others_worst_ms:.0f} / {each.others_lost}",
            f"{max(o.outage for o in reference) * 1000:.0f} / {max(o.lost for o in reference)}" if reference else "",
            "\n".join(besides), style="yellow" if each.missed else "",
        )  # fmt: skip
    return table


def _limit(median: float | None, worst: float | None) -> str:
    if median is None and worst is None:
        return ""
    return " / ".join("" if limit is None else f"{limit:.0f}" for limit in (median, worst)).strip()
