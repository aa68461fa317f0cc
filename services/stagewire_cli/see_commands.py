"""Defines the commands that only look at a gateway."""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from stagewire.config import values
from stagewire.environment import Environment
from stagewire.limits import MAX_CAPTURE
from stagewire_cli import completion, operands
from stagewire_cli.failures import Failed


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--targets", is_flag=True, help="Print the addresses of all gateways that are up, for file_sd_configs.")
@click.option(
    "--textfile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to FILE, for node-exporter's textfile collector; the name ends in .prom.",
)
def metrics(file_or_name: str | None, targets: bool, textfile: Path | None) -> None:
    """Prints metrics for Prometheus.

    Prometheus itself reads them from the address that `stagewire status` shows. --targets prints the addresses of all
    gateways as JSON. --textfile replaces FILE in one step.
    """
    from stagewire_cli import metrics

    if targets and (file_or_name is not None or textfile is not None):
        raise click.UsageError("--targets is about all gateways, and goes with nothing else")
    if targets:
        operands.need_root()
        found = []
        for name in operands.interfaces():
            with suppress(Failed):  # it is ending, or serves none
                found.append(metrics.url(operands.environment_of(name)))
        operands.tell(metrics.targets(found))
        return

    def tell(environment: Environment) -> None:
        if textfile is not None:
            metrics.write(environment, textfile)
        else:
            sys.stdout.buffer.write(metrics.text(environment))

    operands.upon(file_or_name, tell)


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--once", is_flag=True, help="Print one picture with all peers; so does a pipe as output.")
@click.option("--plain", is_flag=True, help="Draw without textual, as without `stagewire[top]`.")
@click.option(
    "--interval",
    type=operands.Number(0.5, 60),
    metavar="SECONDS",
    help="Time between two looks, 2 without it. A picture by --once shows the last second, or the rates of so long.",
)
def top(file_or_name: str | None, once: bool, plain: bool, interval: float | None) -> None:
    """Shows live what a gateway does.

    Shows the stages with their CPU time, a ● for each process at work, a ○ for each spare, and the bytes that wait between
    them. Below are the peers with their rates, the age of the last handshake, and what was dropped and why. `s` changes the
    order, `/` filters, `p` pauses, `q` ends. With textual, Enter asks why about the peer under the cursor.
    """
    from stagewire_cli import top

    def show(environment: Environment) -> None:
        if once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            top.once(environment, interval)
        else:
            with suppress(KeyboardInterrupt):
                top.live(environment, interval or 2.0, plain=plain)

    operands.upon(file_or_name, show)


@click.command(epilog=operands.OPTIONAL)
@click.argument("peer", shell_complete=completion.peers)
@operands.INTERFACE
@click.option(
    "-w",
    "--output",
    required=True,
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Write there; - is standard output, for `| wireshark -k -i -`.",
)
@click.option("--whole", is_flag=True, help="Capture payloads as well; without it, headers alone.")
@click.option("--host", "hosts", multiple=True, metavar="ADDRESS", help="Only packets from or to it; may be repeated.")
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=operands.Whole(0, values.MAX_PORT),
    metavar="PORT",
    help="Only this TCP or UDP port.",
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="PROTOCOL",
    shell_complete=lambda _ctx, _param, typed: [each for each in ("tcp", "udp", "icmp") if each.startswith(typed)],
    help="Only tcp, udp, icmp, or a number.",
)
@click.option(
    "--for",
    "seconds",
    type=operands.Number(1, MAX_CAPTURE),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="End after so long.",
)
@click.option(
    "--size",
    "megabytes",
    type=operands.Whole(1, 1 << 20),
    default=100,
    show_default=True,
    metavar="MB",
    help="End at this size.",
)
def capture(
    peer: str, interface: str | None, output: str, whole: bool, seconds: float, megabytes: int, **chosen: Any
) -> None:
    """Captures a peer's packets in clear, for Wireshark.

    Writes pcapng. The log and `stagewire status` say who captures what. The tunnel never waits for FILE; what it can't take
    is missed, and counted. So is the time in which the peer changes its worker. A packet to the peer is captured when it
    comes from this host, also if it must wait for a handshake.
    """
    from stagewire_cli import capturing

    def action(environment: Environment) -> None:
        order = replace(capturing.filtered(**chosen), whole=whole, seconds=seconds, most=megabytes * 1_000_000)
        capturing.peer(environment, peer)  # before it waits for the reader of a pipe
        with capturing.opened(output, lambda text: operands.complain(f"note: {text}")) as descriptor:
            shown, total = capturing.run(
                environment, peer, order, capturing.Output(descriptor, output, order.most), descriptor
            )
        operands.complain(f"{shown}: {total.told()}")

    operands.upon(interface, action)


COMMANDS: Final = (metrics, top, capture)
