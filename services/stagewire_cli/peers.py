"""Has operations on peers carried out: by key-service while the interface is up, otherwise on the file alone."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stagewire import config
from stagewire.config import PeerConfig, operations, roster
from stagewire.config.operations import Operation
from stagewire.control import usage
from stagewire.environment import Environment
from stagewire_cli import again, bring_up, key_door, noting, operands, peers_file, the_file
from stagewire_cli.failures import Failed
from stagewire_cli.peers_file import PeersFile


@dataclass(frozen=True, slots=True)
class Done:
    """Describes a change that holds: the file's text and path, a line for each difference, and a warning or nothing."""

    text: str = field(repr=False)
    path: Path
    changes: list[str]
    warning: str = ""


def file_of(environment: Environment) -> Path:
    """Returns the file of an interface, which may be down. Raises Failed for an interface without a file."""
    if not bring_up.is_up(environment):
        return environment.config
    if the_file.what_was_read(environment) is None:
        raise Failed("it was brought up without a configuration file; use `wg` to change its peers")
    return the_file.of(environment)


def read(environment: Environment) -> roster.Roster:
    """Returns the peers of an interface's file. Raises Failed or ConfigError."""
    path = file_of(environment)
    try:
        return roster.read(config.load_text(path), str(path))
    except roster.Refused as refused:
        raise Failed(str(refused)) from None


def carry_out(environment: Environment, operation: Operation) -> Done:
    """Carries an operation out, wholly or not at all. Raises Failed or ConfigError if nothing is changed."""
    path = file_of(environment)
    with peers_file.locked(path) as file:
        if bring_up.is_up(environment):
            return by_key_service(environment, operation, file, file.write)
        try:
            outcome = operations.carry_out(file.text, str(path), operation, {}, time.time())
        except roster.Refused as refused:
            raise Failed(again.unchanged(refused)) from None
        if outcome.text != file.text:
            file.write(outcome.text)
            try:
                noting.write(environment, operations.called(operation), outcome.changes)
            except OSError as error:
                file.put_back()
                raise Failed(f"{noting.unwritten(environment, error)}; nothing is changed") from None
        return Done(file.text, file.path, [*outcome.changes, *outcome.unchanged])


def by_key_service(
    environment: Environment, operation: Operation, file: PeersFile, write: Callable[[str], None]
) -> Done:
    """Has key-service carry an operation out on a locked file, into which `write` puts the new text. Raises Failed."""
    before = file.text
    try:
        changes, warning = again.asked(lambda: key_door.operate(environment, operation, file.text, write))
    except key_door.Unanswered:
        changes, warning = _taken_up(environment, file, operation, before)
    except Failed as failed:
        file.put_back()
        raise Failed(again.unchanged(failed)) from None
    return Done(file.text, file.path, changes, warning)


def _taken_up(environment: Environment, file: PeersFile, operation: Operation, before: str) -> tuple[list[str], str]:
    """Asks the next key-service: the one before has died, before or after the change came into force."""
    try:
        _, warning = again.asked(lambda: key_door.adopt(environment, file.text), repeat=(key_door.Unanswered,))
    except (key_door.Unanswered, key_door.NotAsked) as failed:
        mend = f"`stagewire reload {environment.interface}` puts it in force"
        raise Failed(f"{failed}; the change stands in {file.path}, and may not hold yet: {mend}") from None
    except Failed as failed:
        file.put_back()
        raise Failed(again.unchanged(failed)) from None
    return [*operations.told(before, file.text, str(file.path), operation)], warning


def tell(done: Done, *, beside: bool = False) -> None:
    """Tells of each change. `beside`: on stderr, as a client's configuration goes to stdout."""
    for line in done.changes:
        operands.tell(line, beside=beside)


def after(done: Done) -> roster.Roster:
    """Returns the file's peers after a change."""
    return roster.read(done.text, str(done.path))


def added(found: roster.Roster, public_key: bytes) -> PeerConfig:
    """Returns a peer that was added. Raises Failed if it isn't there: key-service may be hostile."""
    peer = found.peers.get(public_key)
    if peer is None:
        raise Failed("key-service did not add the peer")
    return peer


def used(environment: Environment) -> dict[bytes, int]:
    """Returns the bytes of this month that count towards quotas, as key-service has last stored them. Raises Failed."""
    try:
        month = usage.month_of(time.time())
        return {key: each.in_month(month) for key, each in usage.read(environment.state).items()}
    except (OSError, usage.BadUsage) as error:
        raise Failed(f"{environment.state / usage.NAME}: {error}") from None


def new_keys() -> tuple[bytes, bytes, bytes]:
    """Makes a private key, its public key, and a pre-shared key."""
    private = config.generate_private_key(os.urandom(32))
    return private, config.public_key(private), os.urandom(32)
