"""Hands a client's configuration over to the operator: as text, as a QR code, or in a file."""

import sys
from collections.abc import Sequence
from typing import IO, Any

import click

from stagewire.config import HostPort, InterfaceConfig, PeerConfig, values
from stagewire_cli import client_config, operands
from stagewire_cli.failures import Failed


def gateway(text: str | None) -> HostPort | None:
    """Reads --gateway. Raises Failed."""
    try:
        return None if text is None else values.endpoint(text)
    except ValueError as error:
        raise Failed(f"--gateway {error}") from None


def expect_gateway(interface: InterfaceConfig, text: str | None) -> None:
    """Raises Failed before anything is changed if no client configuration can be made afterwards."""
    client_config.endpoint(interface, gateway(text))


def show(
    interface: InterfaceConfig,
    one: PeerConfig,
    private: bytes | None,
    chosen: dict[str, Any],
    files: Sequence[IO[str]],
) -> None:
    """Prints a client's configuration, or writes it into the first of `files`; draws the QR code on a terminal."""
    text = client_config.text(interface, one, private, gateway(chosen["gateway"]))
    wants_qr = chosen["qr"] if chosen["qr"] is not None else private is not None and sys.stdout.isatty()
    if files:
        files[0].write(text)
    else:
        click.echo(text, nl=False)
    if wants_qr:
        try:
            click.echo(client_config.qr(text, operands.width()), nl=False)
        except Failed as failed:  # the peer is made, and its configuration is shown
            operands.complain(str(failed))


def tell_of_file(chosen: dict[str, Any]) -> None:
    """Says where the configuration lies, if it lies in a file."""
    if chosen["output"] is not None:
        operands.tell(f"wrote {chosen['output']}")
