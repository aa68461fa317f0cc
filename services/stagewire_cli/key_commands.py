"""Defines the commands that make keys."""

import os
import sys
from typing import Final

import click

from stagewire.config import keys
from stagewire_cli import operands


@click.command()
def genkey() -> None:
    """Prints a new private key."""
    _print_key(keys.generate_private_key(os.urandom(32)))


@click.command()
def pubkey() -> None:
    """Prints the public key of a private key on stdin."""
    try:
        private_key = keys.decode_key(sys.stdin.read().strip())
    except ValueError as error:
        operands.fail(f"standard input {error}")
    _print_key(keys.public_key(private_key))


def _print_key(key: bytes) -> None:
    try:
        # Bypasses Python's buffer: Python would write that again at exit, and fail with a traceback.
        os.write(1, f"{keys.encode_key(key)}\n".encode())
    except OSError as error:
        operands.fail(f"standard output: {error.strerror}")


COMMANDS: Final = (genkey, pubkey)
