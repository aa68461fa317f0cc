"""Defines the commands that only look at a gateway."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from stagewire.environment import Environment
from stagewire.limits import MAX_CAPTURE, MAX_PORT
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
    type=operands.Whole(0, MAX_PORT),
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


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; without NAME, a list of them.")
def status(file_or_name: str | None, as_json: bool) -> None:
    """Shows services, peers, handshakes and transfer.

    Shows one interface, or all that are up. Exits with 0 when everything works, 3 when no interface is up, and 4 when
    an interface is up but not everything works.
    """
    from stagewire.control import query
    from stagewire_cli import layout, show

    name = None if file_or_name is None else operands.environment_of(file_or_name).interface
    names = [name] if name else operands.interfaces()
    for each in names:
        operands.expect_access(operands.environment_of(each))
    try:
        found = [answer for each in names if (answer := show.gather(operands.environment_of(each))) is not None]
    except query.OtherVersion as other:
        operands.fail(str(other))
    if as_json and (found or not name):
        click.echo(json.dumps(found[0] if name else found, indent=2))
    if not found:
        if not as_json or name:
            operands.complain(operands.not_up(name) if name else operands.NONE_UP)
        sys.exit(operands.NOT_RUNNING)
    if not as_json:
        click.echo("\n\n".join("\n".join(layout.lines(answer, operands.width())) for answer in found))
    if not all(answer["healthy"] for answer in found):
        sys.exit(operands.DEGRADED)


@click.command(epilog=operands.OPTIONAL)
@click.argument("peer", metavar="PEER|ADDRESS", shell_complete=completion.peers)
@click.argument("file_or_name", metavar="", required=False, shell_complete=completion.interfaces)
@operands.INTERFACE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--no-try", is_flag=True, help="Try no handshake and send no packet; answer at once.")
def why(peer: str, file_or_name: str | None, interface: str | None, as_json: bool, no_try: bool) -> None:
    """Says why a peer has no traffic, and what to do first.

    PEER is a peer's name or public key, or the beginning of either. ADDRESS is a peer's endpoint, or an address behind
    it. The command tries a handshake and packets through the tunnel, for 10 s at most. Exit status 4 says that something
    is wrong.
    """
    from stagewire_cli import why

    def tell(environment: Environment) -> None:
        found = why.answer(environment, peer, trying=not no_try)
        _print(found, why.lines(found, operands.width()), as_json=as_json)
        if not found["healthy"]:
            sys.exit(operands.DEGRADED)

    operands.upon(operands.either(file_or_name, interface), tell)


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--fix", is_flag=True, help="Run the commands that mend what is wrong, and show each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(file_or_name: str | None, fix: bool, as_json: bool) -> None:
    """Examines an interface and its host.

    Each trouble comes with the exact commands that mend it. What --fix changes lasts until the next boot. Exit status 4
    says that something is wrong; a hint is not.
    """
    from stagewire_cli import doctor

    def tell(environment: Environment) -> None:
        facts = doctor.gather(environment)
        troubles = doctor.examine(facts)
        if fix and any(trouble.wrong and trouble.commands for trouble in troubles):
            mended = doctor.mend(troubles, operands.complain if as_json else operands.tell)
            facts = doctor.gather(environment)
            troubles = doctor.examine(facts)
            if not mended:
                operands.complain("not every command could be run")
        found = doctor.answer(facts, troubles)
        _print(found, doctor.lines(facts, troubles, operands.width()), as_json=as_json)
        if not found["healthy"]:
            sys.exit(operands.DEGRADED)

    operands.upon(file_or_name, tell)


def _print(found: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Prints an answer as JSON, which is ASCII and of any length, or as clean lines."""
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in lines:
        operands.tell(line)


COMMANDS: Final = (metrics, top, capture, status, why, doctor)
