"""Writes a configuration into a text, new or existing, with as little changed as possible.

Only lines whose key gets another value change. Where order means nothing (peers, Address, AllowedIPs) the text keeps
its own. A written text is parsed before anyone gets it, so that no value can become a line of its own. If the lines of
a text can't say it, the text is first rid of lines that don't count (`tidy`).
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Final

from stagewire.config import gateway, known, values
from stagewire.config import text as texts
from stagewire.config.keys import encode_key
from stagewire.config.known import SectionName
from stagewire.config.loader import load, printable
from stagewire.config.lookups import of_this_host
from stagewire.config.mistakes import ConfigError, Mistake
from stagewire.config.model import ClientSettings, InterfaceConfig, PeerConfig, PeerLimits
from stagewire.config.parser import parse
from stagewire.config.text import BOM, LISTS, Line, Section, Text
from stagewire.config.tidy import key_of_peer, tidy
from stagewire.config.tolerant import BUILT_IN, Lookups
from stagewire.proto.constants import REKEY_AFTER_TIME
from stagewire.whole_files import Lock, WholeFile

_NO_PATH: Final = "the configuration"
_ANY_ORDER: Final = {"Address", "AllowedIPs"}


def merge(text: str, interface: InterfaceConfig) -> str:
    """Changes the text of a file as little as possible so that it says this; an empty text becomes a whole file.

    Peers, addresses and allowed IPs keep the text's order. Raises ConfigError as `parse` when the text isn't valid.
    Raises it with one mistake when no text says this: a value isn't valid, or a command has a `#` or a line's end.
    """
    return _merged(text, interface, _NO_PATH, of_this_host())


def save(path: Path, interface: InterfaceConfig, lock: Lock = None) -> None:
    """Merges into the file and replaces it in one step: a reader finds the old text or the new one, whole.

    Replaces the target of a symbolic link. Doesn't touch a file that says this already. `lock` locks the new file
    in time. Raises ConfigError, with the file as it was: as `load` when that would refuse the file, else with one mistake.
    """
    load(path)
    lookups = of_this_host()
    target, name = path.resolve(), printable(path)
    try:
        with target.open("rb") as file:
            found, data = os.fstat(file.fileno()), file.read()
        text = data.decode("utf-8", "surrogateescape")
        merged = _merged(text, interface, name, lookups)
        if merged != text and not _replaced(target, found, merged.encode("utf-8", "surrogateescape"), lock):
            raise _refusal(name, "was changed by another program just now: look at it, and save again")
    except OSError as error:
        why = f"{error.strerror or 'it failed'}, in {printable(target.parent)}"
        raise _refusal(name, f"can't be saved, and is left as it was: {why}") from None


# --- what stands after each key's `=` -----------------------------------------------------------------------

# For every key of a section, in the order of a new file: the words of a list, the commands of a hook, else one value
# or none for the default. Each word is in its one spelling, so that equal values are equal texts.
_Values = Mapping[str, tuple[str, ...]]


def _of_interface(interface: InterfaceConfig) -> _Values:
    rekey = float(interface.rekey_after_time)
    return {
        "PrivateKey": _unless(interface.private_key is None, encode_key(interface.private_key or b"")),
        "ListenPort": _unless(interface.listen_port is None, interface.listen_port),
        "FwMark": _unless(interface.fwmark == 0, f"{interface.fwmark:#x}"),
        "Address": tuple(map(str, interface.addresses)),
        "DNS": interface.dns,
        "MTU": _unless(interface.mtu is None, interface.mtu),
        "Table": _unless(interface.table == "auto", interface.table),
        "PreUp": interface.pre_up,
        "PostUp": interface.post_up,
        "PreDown": interface.pre_down,
        "PostDown": interface.post_down,
        "SaveConfig": _unless(not interface.save_config, "true"),
        "RekeyAfterTime": _unless(rekey == REKEY_AFTER_TIME, repr(rekey).removesuffix(".0")),
        "ClientEndpoint": _unless(interface.client_endpoint is None, interface.client_endpoint),
        **_of_client(interface.client),
        "Exit": _unless(interface.exit == "off", interface.exit),
        "Isolation": _unless(not interface.isolation, "on"),
        "Firewall": _unless(not interface.open_firewall, "open"),
        **gateway.words(interface.access),
    }


def _of_peer(peer: PeerConfig) -> _Values:
    return {
        "PublicKey": (encode_key(peer.public_key),),
        "PresharedKey": _unless(not any(peer.preshared_key), encode_key(peer.preshared_key)),
        "AllowedIPs": tuple(map(str, peer.allowed_ips)),
        "Endpoint": _unless(peer.endpoint is None, peer.endpoint),
        "PersistentKeepalive": _unless(peer.persistent_keepalive == 0, peer.persistent_keepalive),
        "ResponseTimestamp": _unless(not peer.response_timestamp, "on"),
        "Expires": _unless(peer.expires is None, values.as_time(peer.expires or 0)),
        **_of_limits(peer.limits),
        **_of_client(peer.client),
        **gateway.words(peer.access),
    }


def _of_limits(limits: PeerLimits) -> _Values:
    return {
        "Rate": _unless(not limits.rate_to, values.as_rate(limits.rate_to, limits.rate_from)),
        "Quota": _unless(not limits.quota, values.as_quota(limits.quota)),
    }


def _of_client(client: ClientSettings) -> _Values:
    return {
        "ClientAllowedIPs": _unless(not client.allowed_ips, ", ".join(map(str, client.allowed_ips))),
        "ClientDNS": _unless(not client.dns, ", ".join(client.dns)),
        "ClientMTU": _unless(client.mtu is None, client.mtu),
        "ClientKeepalive": _unless(client.keepalive is None, client.keepalive),
    }


def _unless(default: bool, value: object) -> tuple[str, ...]:
    return () if default else (str(value),)


def _section_text(name: SectionName, wanted: _Values) -> str:
    lines = [f"[{name}]", *(line for key, words in wanted.items() for line in _assignments(key, words))]
    return "".join(f"{line}\n" for line in lines)


def _assignments(key: str, words: tuple[str, ...]) -> list[str]:
    """Makes the lines of a key that isn't in its section yet."""
    each = (", ".join(words),) if words and key in LISTS else words
    prefix = "# stagewire: " if known.KEYS[key.lower()].in_comment else ""
    return [f"{prefix}{key} = {value}" for value in each]


# --- the merge ----------------------------------------------------------------------------------------------


def _merged(text: str, interface: InterfaceConfig, path: str, lookups: Lookups) -> str:
    old = parse(text, path, lookups=lookups)
    mark = BOM if text.startswith(BOM) else ""
    new = texts.read(text.removeprefix(BOM))
    _merge(new, old, interface)
    try:
        return _checked(mark + str(new), interface, path, lookups)
    except ConfigError:
        if not old.warnings:
            raise
    new = texts.read(text.removeprefix(BOM))
    tidy(new, old)
    _merge(new, old, interface)
    return _checked(mark + str(new), interface, path, lookups)


def _merge(new: Text, old: InterfaceConfig, interface: InterfaceConfig) -> None:
    sections = [section for section in new.sections if section.name == "Interface"]
    if sections:
        _merge_sections(sections, _of_interface(old), _of_interface(interface))
    elif _of_interface(old) != _of_interface(interface):
        new.append("Interface", _section_text("Interface", _of_interface(interface)))
    of_peer: dict[bytes, list[Section]] = {}
    for section in new.sections:
        if section.name == "Peer":
            of_peer.setdefault(key_of_peer(section), []).append(section)
    wanted = {peer.public_key: peer for peer in interface.peers}
    for had in old.peers:
        peer = wanted.pop(had.public_key, None)
        if peer is not None:
            _merge_sections(of_peer[had.public_key], _of_peer(had), _of_peer(peer))
            if peer.name not in ("", had.name):
                _put_name(of_peer[had.public_key], peer.name)
            continue
        for section in of_peer[had.public_key]:
            new.remove(section)
    for peer in wanted.values():
        new.append("Peer", _section_text("Peer", _of_peer(peer)))
        if peer.name:
            _put_name(new.sections[-1:], peer.name)


def _merge_sections(sections: list[Section], had: _Values, wanted: _Values) -> None:
    """Merges into all sections of one kind; the last gets new keys."""
    for key, words in wanted.items():
        if had[key] == words or (key in _ANY_ORDER and set(had[key]) == set(words)):
            continue
        bodies = [section.body for section in sections if any(line.key == key for line in section.body)]
        body = bodies[-1] if bodies else sections[-1].body
        lines = [line for line in body if line.key == key]
        if not lines:
            body += [Line(text) for text in _assignments(key, words)]
        elif key in LISTS:
            _merge_list(body, lines, words)
        elif known.KEYS[key.lower()].repeatable:
            _merge_lines(body, lines, words)
        else:
            _merge_one(bodies, lines[-1], words)


def _put_name(sections: list[Section], name: str) -> None:
    """Changes each line that names a peer, or adds one below the header. A peer's name can't be taken away here."""
    lines = [line for section in sections for line in texts.names_in([*section.above, *section.body])]
    for line in lines:
        line.text = f"{line.text.partition('=')[0]}= {name}"
    if not lines:
        sections[0].body.insert(1, Line(f"# Name = {name}", "comment"))


def _merge_one(bodies: list[list[Line]], last: Line, wanted: tuple[str, ...]) -> None:
    """Merges a key with one value, of which the last line counts."""
    if wanted:
        last.put(wanted[0])
        return
    for body in bodies:
        body[:] = [line for line in body if line.key != last.key]


def _merge_lines(body: list[Line], lines: list[Line], wanted: tuple[str, ...]) -> None:
    """Merges a key with several lines: changes, removes and inserts lines where values differ."""
    matcher = SequenceMatcher(None, [line.value for line in lines], wanted, autojunk=False)
    for what, start, stop, new_start, new_stop in reversed(matcher.get_opcodes()):
        if what == "equal":
            continue
        cut = start + min(stop - start, new_stop - new_start)
        new_cut = new_start + cut - start
        for line, value in zip(lines[start:cut], wanted[new_start:new_cut], strict=True):
            line.put(value)
        place = body.index(lines[cut - 1]) + 1 if cut else body.index(lines[0])
        body[place:place] = [lines[max(0, cut - 1)].with_value(value) for value in wanted[new_cut:new_stop]]
        for line in lines[cut:stop]:
            body.remove(line)


def _merge_list(body: list[Line], lines: list[Line], wanted: tuple[str, ...]) -> None:
    """Merges a list, in one line or in several. Lines that lose no word stay as they are."""
    one_spelling = LISTS[lines[0].key]
    spelt = {one_spelling(word): word for line in reversed(lines) for word in reversed(line.words)}
    asked = set(wanted)
    kept = [word for line in lines for word in map(one_spelling, line.words) if word in asked]
    new = [word for word in wanted if word not in spelt]
    new_last = lines[0].key in _ANY_ORDER or (*kept, *new) == wanted
    if len(lines) > 1 and kept and new_last:
        stay = []
        for line in lines:
            left = [word for word in line.words if one_spelling(word) in asked]
            if left and len(left) < len(line.words):
                line.put_words(left)
            if left or not line.words:
                stay.append(line)
        if new:
            body.insert(body.index(stay[-1]) + 1, stay[-1].with_value(", ".join(new)))
    else:
        in_order = [word for word in wanted if word in spelt] == kept
        order = wanted if in_order or not new_last else (*kept, *new)
        lines[0].put_words(spelt.get(word, word) for word in order)
        stay = lines[:1] if order else []
    gone = set(lines).difference(stay)
    body[:] = [line for line in body if line not in gone]


def _checked(text: str, interface: InterfaceConfig, path: str, lookups: Lookups = BUILT_IN) -> str:
    """Returns the text, after checking that it says this."""
    try:
        read = _sorted(parse(text, path, lookups=lookups))
    except ConfigError as error:
        why = error.mistakes[0].message
        lines = "; that is a line of the text to be written" if " in line " in why else ""
        raise _refusal(path, f"can't be written: {why}{lines}") from None
    wanted = _sorted(interface)
    names = {peer.public_key: peer.name for peer in read.peers}
    unsaid = [peer.name for peer in wanted.peers if peer.name and peer.name != names.get(peer.public_key)]
    if unsaid:
        raise _refusal(path, f"can't be written: no file can hold the name {values.shown(unsaid[0])}")
    if read != wanted:
        pairs = [(_of_interface(read), _of_interface(wanted))]
        pairs += [(_of_peer(one), _of_peer(other)) for one, other in zip(read.peers, wanted.peers, strict=False)]
        keys = (key for one, other in pairs for key in one if one[key] != other[key])
        raise _refusal(path, f"can't be written: {next(keys, 'a peer')} has a value that no file can hold")
    return text


def _sorted(interface: InterfaceConfig) -> InterfaceConfig:
    peers = [replace(peer, allowed_ips=tuple(sorted(set(peer.allowed_ips), key=str))) for peer in interface.peers]
    return replace(
        interface,
        addresses=tuple(sorted(interface.addresses, key=str)),
        peers=tuple(sorted(peers, key=lambda peer: peer.public_key)),
    )


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError([Mistake(path, None, message)])


# --- the disk -----------------------------------------------------------------------------------------------


def _replaced(target: Path, found: os.stat_result, data: bytes, lock: Lock) -> bool:
    """Puts a new file in place of the one that was found; False if that has changed meanwhile."""
    with WholeFile(target) as new:
        os.fchown(new.descriptor, found.st_uid, found.st_gid)
        new.write(data)
        os.fsync(new.descriptor)
        if _version(target.stat()) != _version(found):
            return False
        new.replace(lock)
    return True


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
