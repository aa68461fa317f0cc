"""Defines the commands about what happens and has happened: ready, events, history and usage."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from stagewire.control.event import KINDS
from stagewire.environment import Environment
from stagewire_cli import completion, operands
from stagewire_cli.failures import Failed

_JSON: Final = click.option("--json", "as_json_object", is_flag=True, help="Print one JSON object.")
_CSV: Final = click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("-f", "--follow", is_flag=True, help="Wait for new events. Without --since, show those alone.")
@click.option("--since", metavar="TIME", help="10min, 2h, 1d, 2030-12-31 or 2030-12-31T18:00Z.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(list(KINDS)),
    multiple=True,
    envvar="STAGEWIRE_EVENT_KINDS",
    metavar="KIND",
    help=f"Only this kind; may be repeated: {', '.join(KINDS)}.",
)
@click.option("--json", "as_json_lines", is_flag=True, help="Print a JSON object a line.")
@click.option(
    "--webhook", "webhooks", metavar="URL", multiple=True, envvar="STAGEWIRE_WEBHOOK", help="Post each event there."
)
@click.option("--exec", "programs", metavar="COMMAND", multiple=True, help="Run it for each event, which it can read.")
@click.option(
    "--cursor", type=click.Path(path_type=Path, dir_okay=False), help="Keep in this file how far the events are read."
)
def events(
    file_or_name: str | None,
    follow: bool,
    since: str | None,
    kinds: tuple[str, ...],
    as_json_lines: bool,
    webhooks: tuple[str, ...],
    programs: tuple[str, ...],
    cursor: Path | None,
) -> None:
    """Shows what has happened.

    Tells which peers came and went, and what was refused, replaced and changed.

    --webhook and --exec follow the events, and hand each over as JSON, one after another. What fails is tried again,
    with longer and longer pauses, while other receivers go on; a webhook's answer from 400 to 499 refuses an event for
    good. With --cursor, the next run goes on where the slowest receiver ended.
    """
    from stagewire_cli import delivery
    from stagewire_cli import events as reading

    def warn(text: str) -> None:
        operands.complain(f"note: {text}")

    def show(environment: Environment) -> None:
        sends: list[delivery.Send] = [*map(delivery.Webhook, webhooks), *map(delivery.Command, programs)]
        pause = time.sleep if sends else reading.pause_while_read
        reader = reading.Reader(environment, kinds or tuple(KINDS), warn, pause)
        place = reading.Cursor(cursor)
        following = follow or bool(sends)
        after = place.id if since is None else reading.since(since, time.time())
        if after is None:
            after = reader.newest(follow=following) if following else 0
            place.advance(after)

        def texts() -> Iterator[tuple[int, bytes]]:
            for event in reader.after(after, follow=True):
                yield event.id, reading.in_json(event, environment.interface).encode()

        if sends:
            delivery.to_each(sends, texts, place.advance, warn)
        for event in reader.after(after, follow=following):
            named = environment.interface
            operands.tell(reading.in_json(event, named) if as_json_lines else reading.lines(event, operands.width()))
            place.advance(event.id)

    try:
        operands.upon(file_or_name, show)
    except KeyboardInterrupt:
        raise SystemExit(0) from None


@click.command(epilog=operands.OPTIONAL)
@click.argument("about", metavar="PEER", shell_complete=completion.peers)
@operands.INTERFACE
@click.option("--stage", is_flag=True, help="PEER is the name of a stage, such as device.")
@_JSON
@_CSV
def history(about: str, interface: str | None, stage: bool, as_json_object: bool, as_csv: bool) -> None:
    """Shows how much a peer has received and sent.

    Shows a day by minute, 92 days by hour, and the peer's connections.

    PEER is a peer's name or public key, or the beginning of either. The interface may be down. What happened in the
    last minute may be missing.
    """
    from stagewire_cli import history as kept

    def find(environment: Environment) -> dict[str, Any]:
        return (kept.of_stage if stage else kept.of_peer)(environment, about, time.time())

    _show(interface, find, lambda found: kept.lines(found, time.time(), operands.width()), as_json_object, as_csv)


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--month", metavar="YYYY-MM", help="The month, in UTC; without it, the present one.")
@_JSON
@_CSV
def usage(file_or_name: str | None, month: str | None, as_json_object: bool, as_csv: bool) -> None:
    """Shows the bytes of each peer in a month.

    The interface may be down.
    """
    from stagewire_cli import history as kept

    def find(environment: Environment) -> dict[str, Any]:
        return kept.usage(environment, month, time.time())

    _show(file_or_name, find, lambda found: kept.usage_lines(found, operands.width()), as_json_object, as_csv)


def _show(
    file_or_name: str | None,
    find: Callable[[Environment], dict[str, Any]],
    lines: Callable[[dict[str, Any]], Iterable[str]],
    as_json_object: bool,
    as_csv: bool,
) -> None:
    from stagewire_cli import history as kept

    if as_json_object and as_csv:
        raise click.UsageError("give --json or --csv")
    operands.need_root()
    environment = operands.environment_of(operands.the_only_gateway() if file_or_name is None else file_or_name)
    try:
        found = find(environment)
        told = [json.dumps(found)] if as_json_object else [kept.as_csv(found)] if as_csv else list(lines(found))
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    except (ValueError, TypeError, OverflowError):  # status-service has written it, which may be an attacker's
        operands.fail(f"{environment.interface}: the history holds nonsense")
    if as_json_object or as_csv:
        click.echo(told[0], nl=not as_csv)
        return
    for line in told:
        operands.tell(line)


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
def ready(file_or_name: str | None) -> None:
    """Tells whether traffic can flow, as /readyz does.

    Exit status 4 says that no traffic can flow, and each line why. A gateway without peers or traffic is ready.
    """
    from stagewire_cli import readiness

    def tell(environment: Environment) -> None:
        reasons = readiness.why_not(environment)
        for line in reasons or ["ready"]:
            operands.tell(line)
        if reasons:
            raise SystemExit(operands.DEGRADED)

    operands.upon(file_or_name, tell)


COMMANDS: Final = (events, history, ready, usage)
