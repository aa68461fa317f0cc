"""Defines the operations on an interface's peers, and carries each out on a file's text, whole or not at all.

`stagewire peer` and, while an interface is up, key-service use the same function: nothing else changes peers in a file.
Values are texts as they stand in a file. `control.operations` puts an operation into JSON.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from stagewire.config import keys, peer_checks, peer_names, roster, settings, values
from stagewire.config.differences import difference, rotation, switched, title
from stagewire.config.free import free_addresses
from stagewire.config.mistakes import ConfigError
from stagewire.config.model import InterfaceConfig, Network, PeerConfig
from stagewire.config.roster import Refused, Roster
from stagewire.config.settings import Setting
from stagewire.config.write import merge

Address = IPv4Address | IPv6Address
MAX_PEERS: Final = 10_000
"""Peers of one operation."""
MAX_TEXT: Final = 4096
"""Letters of a text that no limit of its own has."""
_EXPIRES: Final = re.compile(r"^[ \t]*#[ \t]*stagewire[ \t]*:[ \t]*Expires[ \t]*=(.*)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NewPeer:
    """Describes a new peer. Keys are in base64; an empty pre-shared key means none.

    Without `addresses`, the peer gets the next free address of each family. `networks` lie behind the peer. With `off` the
    peer is out of use.
    """

    name: str = field(metadata={"most": peer_names.MAX_NAME})
    public_key: str
    preshared_key: str = field(default="", repr=False)
    addresses: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    off: bool = False


@dataclass(frozen=True, slots=True)
class AddPeers:
    """Adds peers, all of them or none."""

    peers: tuple[NewPeer, ...]


@dataclass(frozen=True, slots=True)
class RemovePeers:
    """Removes peers, by name or public key."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SwitchPeers:
    """Puts peers out of use, or in use again."""

    peers: tuple[str, ...]
    on: bool


@dataclass(frozen=True, slots=True)
class RenamePeer:
    """Gives a peer another name."""

    peer: str
    name: str = field(metadata={"most": peer_names.MAX_NAME})


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Changes settings of a peer."""

    peer: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class RotatePeer:
    """Gives a peer other keys; the pre-shared key stays if none is given."""

    peer: str
    public_key: str
    preshared_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ExpirePeers:
    """Puts the peers out of use whose time is over. Every other operation does so as well."""


Operation = AddPeers | RemovePeers | SwitchPeers | RenamePeer | SetPeer | RotatePeer | ExpirePeers


@dataclass(frozen=True, slots=True)
class Outcome:
    """Describes a change that was worked out: the new text, the peers that it names, and a line for each difference.

    `unchanged` has a line for each peer that was as asked before.
    """

    text: str = field(repr=False)
    public_keys: tuple[bytes, ...]
    changes: tuple[str, ...]
    unchanged: tuple[str, ...] = ()


def carry_out(text: str, path: str, operation: Operation, live: Mapping[Network, bytes], now: float) -> Outcome:
    """Works an operation out. `live` has the owner of each prefix that is in force.

    Raises Refused, or ConfigError if the text itself has mistakes.
    """
    before = roster.read(text, path)
    try:
        match operation:
            case AddPeers():
                change = _add(before, operation, live, now)
            case RemovePeers():
                change = _remove(before, operation)
            case SwitchPeers():
                change = _switch(before, operation, now)
            case RenamePeer():
                change = _rename(before, operation)
            case SetPeer():
                change = _set(before, operation, live, now)
            case RotatePeer():
                change = _rotate(before, operation)
            case ExpirePeers():
                change = _Change(before.text, before.whole.peers, before.off, ())
    except ConfigError as error:
        raise Refused(error.mistakes[0].message.removeprefix("can't be written: ")) from None
    off = change.off | {peer.public_key for peer in change.peers if is_expired(peer, now)}
    new = roster.covered(change.text, off)
    try:
        after = roster.read(new, path)
    except ConfigError as error:
        raise Refused(error.mistakes[0].message) from None
    if after.off != off or _by_key(after.whole) != {peer.public_key: peer for peer in change.peers}:
        raise Refused("this can't be written into the file; look at the values")
    changes = tuple(_changes(before, after, operation))
    return Outcome(new, change.named, changes, tuple(_unchanged(before, after, operation, change.named, changes)))


def told(before: str, after: str, path: str, operation: Operation) -> tuple[str, ...]:
    """Returns the lines about an operation that has made one text of the other. Raises ConfigError as `parse`."""
    return tuple(_changes(roster.read(before, path), roster.read(after, path), operation))


def between(before: str, after: str, path: str) -> tuple[str, ...]:
    """Returns the lines about the peers in which two texts differ. Raises ConfigError as `parse`.

    Pre-shared keys of peers out of use don't count: an accepted text has none.
    """
    rosters = [roster.read(text, path) for text in (before, after)]
    off = frozenset[bytes]().union(*(each.off for each in rosters))
    bare = [
        replace(
            each,
            whole=replace(
                each.whole,
                peers=tuple(
                    replace(peer, preshared_key=keys.NO_KEY) if peer.public_key in off else peer
                    for peer in each.whole.peers
                ),
            ),
        )
        for each in rosters
    ]
    return tuple(_changes(bare[0], bare[1], ExpirePeers()))


def sorted_out(
    text: str, path: str, wanted: Sequence[NewPeer], now: float
) -> tuple[list[NewPeer], list[tuple[NewPeer, str]]]:
    """Tells which new peers a file can take, and why not of the others. Raises Refused or ConfigError as `carry_out`."""
    good: list[NewPeer] = []
    bad: list[tuple[NewPeer, str]] = []
    for new, peer in _tried(roster.read(text, path), wanted, {}, now):
        if isinstance(peer, str):
            bad.append((new, peer))
        else:
            good.append(new)
    return good, bad


def is_expired(peer: PeerConfig, now: float) -> bool:
    """Tells whether a peer's time is over."""
    return peer.expires is not None and peer.expires <= now


def check_end(peer: PeerConfig, now: float) -> None:
    """Raises Refused for a peer whose time is over before it begins."""
    if is_expired(peer, now):
        end = values.as_time(peer.expires or 0)
        raise Refused(f"Expires {end} is over already: give a time to come, or `stagewire peer disable` it")


def has_expired(text: str, now: float) -> bool:
    """Tells whether a peer in use has a time that is over, without parsing the text."""
    for found in _EXPIRES.finditer(text):
        with suppress(ValueError):
            if values.expires(found[1].strip()) <= now:
                return True
    return False


def in_force(interface: InterfaceConfig, now: float) -> InterfaceConfig:
    """Returns a file's configuration without the peers whose time is over."""
    if not any(is_expired(peer, now) for peer in interface.peers):
        return interface
    return replace(interface, peers=tuple(peer for peer in interface.peers if not is_expired(peer, now)))


def secrets_not_in_force(text: str, interface: InterfaceConfig, now: float) -> frozenset[bytes]:
    """Returns the pre-shared keys in a file's text of peers that are out of use or expired. `interface` is the file's."""
    away = {peer.preshared_key for peer in interface.peers if is_expired(peer, now)}
    kept = {peer.preshared_key for peer in interface.peers if not is_expired(peer, now)}
    return frozenset(roster.marked_secrets(text) | away) - kept - {keys.NO_KEY}


@dataclass(frozen=True, slots=True)
class _Change:
    text: str
    peers: tuple[PeerConfig, ...]
    off: frozenset[bytes]
    named: tuple[bytes, ...]


def _changes(before: Roster, after: Roster, operation: Operation) -> Iterator[str]:
    if isinstance(operation, RotatePeer):
        yield from rotation(before.find(operation.peer), after.peers[keys.decode_key(operation.public_key)])
        return
    yield from difference(before.whole, after.whole)
    for key, peer in after.peers.items():
        if (key in before.off) != (key in after.off):
            yield switched(peer, on=key not in after.off)


def _unchanged(
    before: Roster, after: Roster, operation: Operation, named: Iterable[bytes], changes: Sequence[str]
) -> Iterator[str]:
    match operation:
        case SwitchPeers():
            same = [key for key in dict.fromkeys(named) if (key in before.off) == (key in after.off)]
            what = f"is {'in' if operation.on else 'out of'} use already"
        case RenamePeer():
            same, what = [] if changes else list(named), "has this name already"
        case SetPeer():
            same, what = [] if changes else list(named), "is set so already"
        case _:
            return
    yield from (f"= peer {title(after.peers[key])} {what}" for key in same)


def called(operation: Operation) -> str:
    """Names an operation as an operator types it, for events and the audit."""
    if isinstance(operation, SwitchPeers):
        return ENABLING if operation.on else DISABLING
    return _CALLED[type(operation)]


ENABLING: Final = "peer enable"
DISABLING: Final = "peer disable"
_CALLED: Final = {
    AddPeers: "peer add",
    RemovePeers: "peer remove",
    RenamePeer: "peer rename",
    SetPeer: "peer set",
    RotatePeer: "peer rotate",
    ExpirePeers: "expiry",
}


# --- each operation ----------------------------------------------------------------------------------------


def _add(before: Roster, operation: AddPeers, live: Mapping[Network, bytes], now: float) -> _Change:
    if not 0 < len(operation.peers) <= MAX_PEERS:
        raise Refused(f"one command adds 1 to {MAX_PEERS} peers")
    added: list[PeerConfig] = []
    off = set(before.off)
    for new, peer in _tried(before, operation.peers, live, now):
        if isinstance(peer, str):
            raise Refused(f"peer {new.name}: {peer}" if len(operation.peers) > 1 else peer)
        added.append(peer)
        if new.off:
            off.add(peer.public_key)
    peers = (*before.whole.peers, *added)
    return _Change(_merged(before, peers), peers, frozenset(off), tuple(peer.public_key for peer in added))


def _tried(
    before: Roster, wanted: Sequence[NewPeer], live: Mapping[Network, bytes], now: float
) -> Iterator[tuple[NewPeer, PeerConfig | str]]:
    """Yields each new peer with what it becomes, or with a line that says why it can't be added."""
    names = peer_checks.names_of(before)
    owners = _owners(before, live)
    known = {*before.peers, *live.values()}
    ports = peer_checks.ports_of(before)
    free = _free(before, wanted, owners)
    for new in wanted:
        try:
            peer_checks.check_name(new.name, names)
            key = peer_checks.public_key(new.public_key, known, before)
            prefixes = _prefixes(new, free)
            peer = PeerConfig(key, peer_checks.preshared_key(new.preshared_key), (), None, 0, False, 0, new.name)
            peer = _with_settings(replace(peer, allowed_ips=prefixes), new.settings)
            if not new.off:
                check_end(peer, now)
            for prefix in peer.allowed_ips:
                peer_checks.check_prefix(before, prefix, owners)
            peer_checks.check_forwards(peer, ports)
        except (Refused, ValueError) as error:
            yield new, str(error)
            continue
        names[peer_names.folded(new.name)] = peer_names.label(new.public_key, new.name)
        ports.update(peer_checks.ports_of_peer(peer, peer_names.label(new.public_key, new.name)))
        known.add(key)
        owners.update(dict.fromkeys(peer.allowed_ips, key))
        yield new, peer


def _remove(before: Roster, operation: RemovePeers) -> _Change:
    gone = tuple(before.find(word).public_key for word in operation.peers)
    peers = tuple(peer for peer in before.whole.peers if peer.public_key not in gone)
    return _Change(_merged(before, peers), peers, before.off.difference(gone), gone)


def _switch(before: Roster, operation: SwitchPeers, now: float) -> _Change:
    named = tuple(before.find(word) for word in operation.peers)
    for peer in named:
        if operation.on and is_expired(peer, now):
            end = values.as_time(peer.expires or 0)
            raise Refused(
                f"peer {before.label(peer.public_key)} expired at {end}: `stagewire peer set --expires` first"
            )
    changed = tuple(peer.public_key for peer in named)
    off = before.off.difference(changed) if operation.on else before.off.union(changed)
    return _Change(before.text, before.whole.peers, off, changed)


def _rename(before: Roster, operation: RenamePeer) -> _Change:
    peer = before.find(operation.peer)
    peer_checks.check_name(operation.name, peer_checks.names_of(before, peer))
    new = replace(peer, name=operation.name)
    peers = _with(before, peer, new)
    return _Change(_merged(before, peers), peers, before.off, (peer.public_key,))


def _set(before: Roster, operation: SetPeer, live: Mapping[Network, bytes], now: float) -> _Change:
    peer = before.find(operation.peer)
    try:
        new = _with_settings(peer, operation.settings)
    except ValueError as error:
        raise Refused(str(error)) from None
    keys_set = {each.key for each in operation.settings}
    if "Expires" in keys_set and new.expires != peer.expires:
        check_end(new, now)
    if "AllowedIPs" in keys_set and not new.allowed_ips:
        raise Refused("AllowedIPs must name an address at least: `stagewire peer disable` puts a peer out of use")
    owners = {prefix: owner for prefix, owner in _owners(before, live).items() if owner != peer.public_key}
    for prefix in new.allowed_ips:
        if prefix not in peer.allowed_ips:
            peer_checks.check_prefix(before, prefix, owners)
    if new.access.forwards != peer.access.forwards or new.allowed_ips != peer.allowed_ips:
        peer_checks.check_forwards(new, peer_checks.ports_of(before, peer))
    peers = _with(before, peer, new)
    revives = is_expired(peer, now) and not is_expired(new, now)
    off = before.off - {peer.public_key} if revives else before.off
    return _Change(_merged(before, peers), peers, off, (peer.public_key,))


def _rotate(before: Roster, operation: RotatePeer) -> _Change:
    peer = before.find(operation.peer)
    try:
        key = peer_checks.public_key(operation.public_key, set(before.peers), before)
        psk = peer_checks.preshared_key(operation.preshared_key) if operation.preshared_key else None
    except ValueError as error:
        raise Refused(str(error)) from None
    new = replace(peer, public_key=key, preshared_key=peer.preshared_key if psk is None else psk)
    off = before.off - {peer.public_key} | ({key} if peer.public_key in before.off else frozenset())
    return _Change(roster.rekeyed(before.text, peer.public_key, key, psk), _with(before, peer, new), off, (key,))


def _merged(before: Roster, peers: tuple[PeerConfig, ...]) -> str:
    return merge(before.text, replace(before.whole, peers=peers))


# --- values ------------------------------------------------------------------------------------------------


def _by_key(interface: InterfaceConfig) -> dict[bytes, PeerConfig]:
    return {peer.public_key: peer for peer in interface.peers}


def _with(before: Roster, peer: PeerConfig, new: PeerConfig) -> tuple[PeerConfig, ...]:
    return tuple(new if each is peer else each for each in before.whole.peers)


def _owners(before: Roster, live: Mapping[Network, bytes]) -> dict[Network, bytes]:
    return {**live, **{prefix: peer.public_key for peer in before.whole.peers for prefix in peer.allowed_ips}}


def _free(
    before: Roster, wanted: Iterable[NewPeer], owners: Iterable[Network]
) -> list[tuple[Network, Iterator[Address]]]:
    """Returns our first network of each family that has room, with its free addresses."""
    taken = [*owners]
    for new in wanted:
        with suppress(ValueError):  # `_prefixes` meets it again
            taken += map(values.network, (*new.addresses, *new.networks))
    found = []
    for version in (4, 6):
        ours = next((each for each in before.whole.addresses if each.version == version), None)
        if ours is not None and ours.network.num_addresses > 1:
            found.append((ours.network, free_addresses(ours, taken)))
    return found


def _prefixes(new: NewPeer, free: list[tuple[Network, Iterator[Address]]]) -> tuple[Network, ...]:
    """Returns a new peer's addresses and networks."""
    own: list[Network] = [values.network(each) for each in new.addresses]
    for network, addresses in free if not own else ():
        address = next(addresses, None)
        if address is None:
            raise Refused(f"no address of {network} is free: remove a peer, or widen the gateway's Address")
        own.append(ip_network(address))
    if not own:
        raise Refused(
            "the gateway's Address names no network such as 10.8.0.1/24 to take an address from: give the peer one"
        )
    return tuple(dict.fromkeys([*own, *map(values.network, new.networks)]))


def _with_settings(peer: PeerConfig, wanted: Iterable[Setting]) -> PeerConfig:
    for each in wanted:
        if each.key not in settings.KEYS:
            raise Refused(f"a peer has no setting {values.shown(each.key)}; there are {', '.join(settings.KEYS)}")
        try:
            peer = settings.with_setting(each, peer)
        except ValueError as error:
            raise Refused(f"{each.key} {error}") from None
    return peer
