"""Defines `stagewire peer …`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stagewire import config
from stagewire.config import (
    InterfaceConfig,
    encode_key,
)
from stagewire.config.operations import (
    AddPeers,
    NewPeer,
    Operation,
    RemovePeers,
    RenamePeer,
    RotatePeer,
    SetPeer,
    SwitchPeers,
)
from stagewire.config.settings import Setting
from stagewire.environment import Environment
from stagewire_cli import completion, operands
from stagewire_cli.failures import Failed
from stagewire_cli.later import peer

# --- options that several commands have --------------------------------------------------------------------


def _of_a_peer(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that set something of a peer."""
    options = [
        click.option("--full-tunnel", is_flag=True, help="The client sends everything through the tunnel."),
        click.option("--split", is_flag=True, help="The client sends only the gateway's networks through the tunnel."),
        click.option(
            "--exclude", multiple=True, metavar="NET", help="The client sends NET past the tunnel; may be repeated."
        ),
        click.option("--dns", metavar="ADDRESSES", help="DNS servers and search domains of the client, with commas."),
        click.option("--keepalive", metavar="SECONDS", help="The client sends a packet so often: 25; off for none."),
        click.option("--mtu", metavar="BYTES", help="MTU of the client's tunnel, such as 1380."),
        click.option(
            "--expires", metavar="WHEN", help="30m, 12h, 30d, 8w, or a day or a time in UTC; never for no end."
        ),
        click.option(
            "--rate", metavar="BITS", help="At most so many bits/s: 20M each way, or 20M/5M; none for no bound."
        ),
        click.option("--quota", metavar="BYTES", help="At most so many bytes a month, such as 50G; none for no bound."),
        click.option("--endpoint", metavar="HOST:PORT", help="Where the gateway finds the peer."),
        click.option("--group", multiple=True, metavar="NAME", help="A group of the peer; may be repeated."),
        click.option(
            "--allow", multiple=True, metavar="NET", help="The peer reaches this, and nothing else; may be repeated."
        ),
        click.option(
            "--forward", multiple=True, metavar="PORTS", help="A gateway's port leads to the peer; may be repeated."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _output(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options about the client's configuration."""
    options = [
        click.option("--gateway", metavar="HOST:PORT", help="Where the client finds the gateway."),
        click.option(
            "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the configuration to FILE."
        ),
        click.option("--qr/--no-qr", default=None, help="Show a QR code; the default on a terminal."),
        operands.INTERFACE,
    ]
    for option in reversed(options):
        command = option(command)
    return command


# --- commands ----------------------------------------------------------------------------------------------


@peer.command()
@click.argument("name", required=False)
@click.option(
    "--from", "--csv", "table", type=click.Path(path_type=Path), metavar="CSV", help="Add a peer for each line of CSV."
)
@click.option("--public-key", metavar="KEY", help="The peer made its own key, and this is the public one.")
@click.option("--psk/--no-psk", default=True, help="Make a pre-shared key; the default.")
@click.option(
    "--address", "addresses", multiple=True, metavar="ADDRESS", help="Address of the peer; else the next free ones."
)
@click.option("--network", "networks", multiple=True, metavar="NET", help="A network behind the peer; may be repeated.")
@_of_a_peer
@_output
def add(name: str | None, table: Path | None, interface: str | None, **chosen: Any) -> None:
    """Adds a peer, and prints its client's configuration.

    Makes the client's keys, unless --public-key gives one. The private key is shown once and kept nowhere.

    CSV has a line that names the columns: name, public_key, address, network, dns, keepalive, mtu, expires, rate, quota,
    group, allow. Only name is needed. Commas separate columns, semicolons several groups or destinations in one. With
    --from, --output names a folder for the configurations.

    \b
    Examples:
      stagewire peer add phone
      stagewire peer add laptop --full-tunnel --output laptop.conf
      stagewire peer add office --public-key KEY --network 192.168.7.0/24
      stagewire peer add web --forward 'tcp 8080 80' --allow 'any tcp 443'
      stagewire peer add --from staff.csv --output staff
    """
    if (name is None) == (table is None):
        raise click.UsageError("give the peer's NAME, or --from CSV")
    if table is not None:
        _expect_no_column(chosen)

    def action(environment: Environment) -> None:
        from stagewire_cli import bulk, client_output, output_files, peer_options, peers

        whole = peers.read(environment).whole
        client_output.expect_gateway(whole, chosen["gateway"])
        if table is not None:
            _warn_anew(whole, bulk.add(environment, table, chosen, client_output.gateway(chosen["gateway"]), whole))
            _warn(whole, chosen)
            return
        own, public, psk = peers.new_keys()
        key, private = (chosen["public_key"], None) if chosen["public_key"] else (encode_key(public), own)
        peer_options.check_name(name or "")
        peer_options.check_addresses(whole, {"address": chosen["addresses"], "network": chosen["networks"]})
        new = NewPeer(
            name or "", key, encode_key(psk) if chosen["psk"] else "", chosen["addresses"], chosen["networks"],
            peer_options.settings(whole, chosen),
        )  # fmt: skip
        public = _decoded(key)
        with output_files.made([chosen["output"]]) as files:
            done = _do(environment, AddPeers((new,)))
            after = peers.after(done)
            peers.tell(done, beside=not files)
            _warn_anew(whole, after.whole)
            client_output.show(after.whole, peers.added(after, public), private, chosen, files)
        client_output.tell_of_file(chosen)
        _warn(whole, chosen)

    _upon(interface, action)


@peer.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@operands.INTERFACE
def list_(as_json: bool, interface: str | None) -> None:
    """Lists the peers of the file, also those out of use."""

    def action(environment: Environment) -> None:
        from stagewire_cli import peer_layout, peer_rows, peers

        found = peers.read(environment)
        used = peers.used(environment)
        rows = [peer_rows.row(each, each.public_key in found.off, used) for each in found.whole.peers]
        if as_json:
            click.echo(json.dumps({"version": 1, "peers": rows}, indent=2))
            return
        for line in peer_layout.list_lines(rows, peer_layout.width()):
            operands.tell(line)

    _upon(interface, action)


@peer.command()
@click.argument("who", metavar="PEER", shell_complete=completion.peers)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@operands.INTERFACE
def show(who: str, as_json: bool, interface: str | None) -> None:
    """Shows a peer as the file has it."""

    def action(environment: Environment) -> None:
        from stagewire_cli import peer_layout, peer_rows, peers

        found = peers.read(environment)
        one = found.find(who)
        row = peer_rows.row(one, one.public_key in found.off, peers.used(environment))
        if as_json:
            click.echo(json.dumps({"version": 1, **row}, indent=2))
            return
        for line in peer_layout.show_lines(row, peer_layout.width()):
            operands.tell(line)

    _upon(interface, action)


@peer.command("config")
@click.argument("who", metavar="PEER", shell_complete=completion.peers)
@_output
def config_(who: str, interface: str | None, **chosen: Any) -> None:
    """Prints the configuration of a peer's client again.

    The client's private key is kept nowhere: a placeholder stands there. `stagewire peer rotate` makes new keys.
    """

    def action(environment: Environment) -> None:
        from stagewire_cli import client_output, output_files, peers

        found = peers.read(environment)
        with output_files.made([chosen["output"]], mend="") as files:
            client_output.show(found.whole, found.find(who), None, chosen, files)
        client_output.tell_of_file(chosen)

    _upon(interface, action)


@peer.command()
@click.argument("who", metavar="PEER", shell_complete=completion.peers)
@click.option("--public-key", metavar="KEY", help="The peer made its own key, and this is the public one.")
@_output
def rotate(who: str, public_key: str | None, interface: str | None, **chosen: Any) -> None:
    """Gives a peer new keys, and prints its configuration.

    The old keys are worth nothing from then on. With --public-key the pre-shared key stays.
    """

    def action(environment: Environment) -> None:
        from stagewire_cli import client_output, output_files, peers

        client_output.expect_gateway(peers.read(environment).whole, chosen["gateway"])
        private, public, psk = peers.new_keys()
        operation = RotatePeer(who, encode_key(public), encode_key(psk))
        if public_key is not None:
            try:
                config.decode_key(public_key)
            except ValueError as error:
                raise Failed(f"--public-key {error}") from None
            operation, private = RotatePeer(who, public_key), b""
        with output_files.made([chosen["output"]]) as files:
            done = _do(environment, operation)
            after = peers.after(done)
            peers.tell(done, beside=not files)
            one = peers.added(after, config.decode_key(operation.public_key))
            client_output.show(after.whole, one, private or None, chosen, files)
        client_output.tell_of_file(chosen)

    _upon(interface, action)


@peer.command("set")
@click.argument("who", metavar="PEER", shell_complete=completion.peers)
@click.option("--allowed-ips", metavar="NETS", help="All addresses and networks of the peer.")
@_of_a_peer
@operands.INTERFACE
def set_(who: str, allowed_ips: str | None, interface: str | None, **chosen: Any) -> None:
    """Changes settings of a peer.

    An option replaces what was set before, and settings that no option names stay. So give all values of an option that
    may be repeated. An empty value removes a setting.

    K, M, G and T stand for thousands. --rate 20M/5M is to the peer and from it. --quota counts both ways together, in
    months of UTC. --allow takes a network or any, then tcp, udp or icmp, then ports. --forward takes tcp or udp, the
    gateway's port, then the peer's.

    \b
    Examples:
      stagewire peer set phone --expires 30d --rate 20M/5M --quota 50G
      stagewire peer set phone --allow '10.0.0.0/8 tcp 443' --allow 'any icmp'
      stagewire peer set server --forward 'tcp 8080 80' --forward 'udp 53 53'
      stagewire peer set phone --expires never --quota none --allow ''
    """

    def action(environment: Environment) -> None:
        from stagewire_cli import peer_options, peers

        whole = peers.read(environment).whole
        settings = peer_options.settings(whole, chosen)
        if allowed_ips is not None:
            if not allowed_ips.strip():
                raise Failed(
                    "--allowed-ips must name an address at least: `stagewire peer disable` puts a peer out of use"
                )
            all_ips = peer_options.checked("--allowed-ips", Setting("AllowedIPs", allowed_ips))
            settings = (all_ips, *settings)
        if not settings:
            raise Failed("say what to change, such as --expires 30d; `stagewire peer set --help` lists the options")
        done = _do(environment, SetPeer(who, settings))
        _tell(done)
        _warn_anew(whole, peers.after(done).whole)
        _warn(whole, chosen)

    _upon(interface, action)


@peer.command()
@click.argument("who", metavar="PEER", shell_complete=completion.peers)
@click.argument("name")
@operands.INTERFACE
def rename(who: str, name: str, interface: str | None) -> None:
    """Gives a peer another name."""
    _upon(interface, lambda environment: _tell(_do(environment, RenamePeer(who, name))))


@peer.command()
@click.argument("who", metavar="PEER...", nargs=-1, required=True, shell_complete=completion.peers)
@operands.INTERFACE
def remove(who: tuple[str, ...], interface: str | None) -> None:
    """Removes peers from the file; their traffic ends."""
    _upon(interface, lambda environment: _tell(_do(environment, RemovePeers(who))))


@peer.command()
@click.argument("who", metavar="PEER...", nargs=-1, required=True, shell_complete=completion.peers)
@operands.INTERFACE
def disable(who: tuple[str, ...], interface: str | None) -> None:
    """Puts peers out of use until `enable`.

    They keep their addresses and keys, as comments in the file.
    """
    _upon(interface, lambda environment: _tell(_do(environment, SwitchPeers(who, on=False))))


@peer.command()
@click.argument("who", metavar="PEER...", nargs=-1, required=True, shell_complete=completion.peers)
@operands.INTERFACE
def enable(who: tuple[str, ...], interface: str | None) -> None:
    """Puts peers in use again."""
    _upon(interface, lambda environment: _tell(_do(environment, SwitchPeers(who, on=True))))


# --- what they share ---------------------------------------------------------------------------------------


def _upon(interface: str | None, action: Callable[[Environment], None]) -> None:
    def carry_out(environment: Environment) -> None:
        from stagewire.config.roster import Refused

        try:
            action(environment)
        except Refused as refused:  # such as of a name that no peer has
            raise Failed(str(refused)) from None

    operands.upon_a_file(interface or operands.the_only_gateway(), carry_out)


def _do(environment: Environment, operation: Operation) -> Any:
    from stagewire_cli import peers

    done = peers.carry_out(environment, operation)
    if done.warning:
        operands.complain(f"warning: {done.warning}")
    return done


def _tell(done: Any) -> None:
    from stagewire_cli import peers

    peers.tell(done)


def _expect_no_column(chosen: dict[str, Any]) -> None:
    """Raises UsageError for an option that a column of the CSV file stands for."""
    for option, column in (("public_key", "public_key"), ("addresses", "address"), ("networks", "network")):
        if chosen[option]:
            raise click.UsageError(f"with --from, the column {column} says it for each peer")


def _decoded(key: str) -> bytes:
    try:
        return config.decode_key(key)
    except ValueError as error:
        raise Failed(f"--public-key {error}") from None


def _warn(interface: InterfaceConfig, chosen: dict[str, Any]) -> None:
    from stagewire_cli import peer_options

    for line in peer_options.warnings(interface, chosen):
        operands.complain(f"warning: {line}")


def _warn_anew(before: InterfaceConfig, after: InterfaceConfig) -> None:
    """Says what is odd in the file only since a change, such as a group that may reach nothing."""
    from stagewire_cli import oddities

    known = {warning.message for warning in before.warnings}
    for warning in after.warnings:
        if warning.message not in known:
            operands.complain(f"warning: {warning}")
    for line in oddities.found(before, after):
        operands.complain(f"warning: {line}")
