"""Takes gateways and peers over from other programs: into a new file, or into the file of a gateway that there is."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from stagewire import config
from stagewire.config import ConfigError, encode_key, gateway, known, operations, peer_names, values
from stagewire.config.operations import AddPeers, NewPeer
from stagewire.config.roster import Refused
from stagewire.environment import Environment
from stagewire.limits import DEFAULT_PORT
from stagewire_cli import init, operands, peers
from stagewire_cli.failures import Failed
from stagewire_cli.imports import sources
from stagewire_cli.imports.found import Found, FoundPeer, Unusable

_SHORT_KEY: Final = 8
_RULES: Final = ("Exit", "Isolation", "Firewall", *gateway.KEYS)
"""Keys of [Interface] without which peers reach more, or less."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Holds the options of the command."""

    only: str = ""
    endpoint: str = ""
    port: int | None = None
    dry_run: bool = False


def take_over(paths: Sequence[Path], environment: Environment, chosen: Chosen, tell: Callable[[str], None]) -> None:
    """Takes all over that can be, in one step, and tells what can't. Raises Failed or ConfigError."""
    found = [_read(path, chosen.only) for path in paths]
    for path, each in zip(paths, found, strict=True):
        if each.gateway or each.peers:
            tell(f"{path} is {each.program}")
    left = [f"{path}: {line}" for path, each in zip(paths, found, strict=True) for line in each.left]
    wanted = _named([each for one in found for each in one.peers])
    path = peers.file_of(environment)
    is_new = not path.exists()
    notes: list[str] = []
    text = (_new_text if is_new else _standing_text)(found, environment, chosen, left, notes)
    if any(each.masquerades for each in found) and config.parse_text(text, path).exit == "off":
        notes.append(
            "its commands masquerade what clients send to other networks: if yours do that, "
            f"put `# stagewire: Exit = on` below [Interface] in {path}"
        )
    now = time.time()
    wanted = [_ended(each, now, notes) for each in wanted]
    try:
        good, bad = operations.sorted_out(text, str(path), [each.peer for each in wanted], now)
    except Refused as refused:
        raise Failed(str(refused)) from None
    places = {id(each.peer): each.where for each in wanted}
    left += [f"{places[id(new)]} ({new.name}): {why}" for new, why in bad]
    if good and not chosen.dry_run:
        _write(text, environment, good, is_new=is_new)
    for new in good:
        tell(_added(new))
        if not new.addresses and not new.networks:
            notes.append(
                f"peer {new.name} has no AllowedIPs of its own there, so it gets a free address: "
                f"give its client the new one (`stagewire peer show`)"
            )
    for line in left:
        tell(f"left out: {line}")
    for line in notes:
        tell(f"note: {line}")
    if not good:
        raise Failed(f"nothing of {', '.join(map(str, paths))} can be taken; nothing is changed")
    into = f"{'into the new file' if is_new else 'into'} {path}"
    tell(f"{'would take' if chosen.dry_run else 'took'} {operands.counted(len(good), 'peer')} {into}")
    if is_new and not chosen.dry_run:
        name = environment.interface
        tell(f"next: stagewire up {name if operands.has_file(name) else path}")


def _standing_text(
    found: list[Found], environment: Environment, chosen: Chosen, left: list[str], notes: list[str]
) -> str:
    """Returns the text of a gateway that there is, which keeps its own settings."""
    path = peers.file_of(environment)
    for option, given in (("--endpoint", chosen.endpoint), ("--port", chosen.port)):
        if given:
            raise Failed(f"{option} is for a new gateway, and {path} exists: leave {option} out; nothing is changed")
    text = config.load_text(path)
    notes += _own_key(found, text, path)
    settings = [setting for each in found for setting in each.gateway if setting[0] in _RULES]
    left += [f"the gateway: {key} = {value}: {path} keeps its own" for key, value in settings]
    return text


def _added(new: NewPeer) -> str:
    allowed = ", ".join((*new.addresses, *new.networks))
    prefixes = f"  AllowedIPs {allowed}" if allowed else ""
    return f"+ peer {peer_names.label(new.public_key, new.name)}{prefixes}{'  out of use' if new.off else ''}"


def _read(path: Path, only: str) -> Found:
    try:
        return sources.read(path, only)
    except Unusable as unusable:
        said = str(unusable)
        raise Failed(said if said.startswith(f"{path}:") else f"{path}: {said}") from None


def _write(text: str, environment: Environment, good: list[NewPeer], *, is_new: bool) -> None:
    operation = AddPeers(tuple(good))
    if not is_new:
        peers.carry_out(environment, operation)
        return
    try:
        outcome = operations.carry_out(text, str(environment.config), operation, {}, time.time())
    except Refused as refused:
        raise Failed(str(refused)) from None
    init.write(environment.config, outcome.text)


# --- the gateway -------------------------------------------------------------------------------------------


def _new_text(
    found: Iterable[Found], environment: Environment, chosen: Chosen, left: list[str], notes: list[str]
) -> str:
    """Returns a new file's [Interface]; what it can't hold goes to `left`, advice to `notes`. Raises Failed."""
    theirs = next((each.gateway for each in found if each.gateway), ())
    own = dict[str, str]()
    if chosen.endpoint:
        said = dict(theirs).get("ListenPort", "")
        port = chosen.port or (int(said) if said.isdecimal() else DEFAULT_PORT)
        own["ClientEndpoint"] = str(init.place_of(chosen.endpoint, port))
    if chosen.port is not None:
        own["ListenPort"] = str(chosen.port)
    pairs = [*((key, value) for key, value in theirs if key not in own), *own.items()]
    given = {key for key, _ in pairs}
    lines = ["[Interface]"]
    for key, value in pairs:
        if "\n" in value or "#" in value:
            left.append(f"the gateway: {key} can't be {values.shown(value)}")
            continue
        line = f"{'# stagewire: ' if known.KEYS[key.lower()].in_comment else ''}{key} = {value}"
        try:
            config.parse(f"[Interface]\n{line}\n", key)
            lines.append(line)
        except ConfigError as error:
            left.append(f"the gateway: {error.mistakes[0].message}")
    for key in ("PrivateKey", "Address"):
        if not any(line.startswith(f"{key} ") for line in lines):
            raise Failed(
                f"{environment.config} does not exist, and what is imported has no {key} for it: "
                f"`stagewire init {environment.interface}` first"
            )
    if "ClientEndpoint" not in given:
        notes.append(
            "nothing says where clients find the gateway: give --endpoint HOST:PORT, or --gateway with `peer add`"
        )
    if "ListenPort" not in given:
        notes.append(f"nothing says the gateway's UDP port, so it gets {DEFAULT_PORT}: give --port for another")
        lines.append(f"ListenPort = {DEFAULT_PORT}")
    return "".join(f"{line}\n" for line in lines)


def _own_key(found: Iterable[Found], text: str, path: Path) -> list[str]:
    """Says that a gateway keeps its own key, by which the imported clients do not know it."""
    own = config.parse_text(text, path).private_key
    theirs = {dict(each.gateway).get("PrivateKey") for each in found} - {None}
    if not theirs or (own is not None and theirs == {encode_key(own)}):
        return []
    return [f"{path} keeps its own private key, so imported clients need that gateway's public key"]


# --- peers -------------------------------------------------------------------------------------------------


def _ended(found: FoundPeer, now: float, notes: list[str]) -> FoundPeer:
    """Returns a peer, out of use if its time is over."""
    new = found.peer
    for setting in new.settings:
        with suppress(ValueError):  # whoever sorts the peers out says it
            if setting.key == "Expires" and setting.value and values.expires(setting.value) <= now:
                notes.append(f"peer {new.name} expired at {setting.value}, so it is out of use")
                return replace(found, peer=replace(new, off=True))
    return found


def _named(wanted: Iterable[FoundPeer]) -> list[FoundPeer]:
    """Gives each peer a name that a file can hold, and that no other imported peer has."""
    taken = set[str]()
    named = []
    for each in wanted:
        name = peer_names.cleaned(each.peer.name)
        if not name or values.MAYBE_KEY.search(name):
            name = f"unnamed {each.peer.public_key[:_SHORT_KEY]}"
        several, number = name, 1
        while peer_names.folded(several) in taken:
            number += 1
            several = f"{name[: peer_names.MAX_NAME - 6]} {number}"
        taken.add(peer_names.folded(several))
        named.append(replace(each, peer=replace(each.peer, name=several)))
    return named
