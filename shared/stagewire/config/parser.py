"""Parses lines into a configuration.

Three steps find every mistake in one reading:

1. each line, in turn: a section's header, `key = value`, a `# stagewire:` line, or nothing (other comments);
2. each value, as its line is met, into the draft of its section; a bad value leaves the draft as it was;
3. the whole: missing keys, and claims of two sections (`_check_*`, `peers`).

A line that wg-quick and `wg` take is taken, and means the same; oddities of it are warnings for the author. Strictly,
each warning is a mistake, and so is every spelling that the manuals don't have.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeVar

from stagewire.config import claims, gateway, keys, known, marks, peer_names, places, published, tolerant, values
from stagewire.config.drafts import InterfaceDraft, Names, PeerDraft
from stagewire.config.findings import Findings, TooManyMistakes
from stagewire.config.known import SPACES, Key
from stagewire.config.mistakes import ConfigError
from stagewire.config.model import (
    Access,
    Forward,
    Interface,
    InterfaceConfig,
    PeerConfig,
)
from stagewire.config.peers import settle
from stagewire.config.tolerant import BUILT_IN, STRICT, Lookups
from stagewire.limits import MIN_MTU_IPV6

_T = TypeVar("_T")
_OUR_COMMENT = re.compile(r"[ \t]*stagewire[ \t]*:", re.IGNORECASE)
# Stand-ins of undecodable bytes (PEP 383), which UTF-8 can't hold otherwise.
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")
"""Byte-order marks of UTF-16, as undecodable bytes."""
_MAKE_ONE: Final = "make one with `stagewire genkey`"


def parse(text: str, path: str, *, strict: bool = False, lookups: Lookups = BUILT_IN) -> InterfaceConfig:
    """Parses the text of a configuration file. `path` only goes into messages.

    Raises ConfigError, and nothing else, with every mistake (or the first MAX_MISTAKES). Accepts CRLF and a byte order
    mark. Looks no host's name up and touches no file.
    """
    return _Reading(Findings(path, strict=strict), STRICT if strict else tolerant.readers(lookups)).read(text)


class _Reading:
    """Reads one file, once."""

    def __init__(self, findings: Findings, readers: tolerant.Readers) -> None:
        self.findings, self.readers = findings, readers
        self.interface = InterfaceDraft()
        self.peers: list[PeerDraft] = []
        self.section: InterfaceDraft | PeerDraft | None = None
        self.skipping = False  # in an unknown section
        self.names = Names()
        self.afloat: list[tuple[int, str]] = []
        """Our lines in a block of comments below a blank line, each with its key: the block may touch the next header."""

    def read(self, text: str) -> InterfaceConfig:
        findings, peers = self.findings, tuple[PeerConfig, ...]()
        try:
            self._refuse_binary(text)
            for number, message in marks.misplaced(text.removeprefix("\ufeff")) if marks.are_in(text) else ():
                findings.mistake(number, message)
            self.read_lines(text.removeprefix("\ufeff"))
            self._check_private_key()
            self._check_addresses()
            self._check_dns()
            self._check_claims(self._out_of_use(text) if marks.are_in(text) else [])
            own = self.interface.private_key
            peers = settle(self.peers, keys.public_key(own) if own else None, findings)
        except TooManyMistakes:
            pass
        if findings.mistakes:
            raise ConfigError(findings.mistakes)
        return self._finished(peers)

    def read_lines(self, text: str) -> None:
        """Reads all lines into drafts."""
        for number, line in enumerate(_lines(text), start=1):
            self._line(number, line)
        self._end_names()
        self._end_section()

    # --- lines ---------------------------------------------------------------------------------------------

    def _refuse_binary(self, text: str) -> None:
        """Refuses a text with NUL bytes, in one mistake: each line of a UTF-16 file has one."""
        before, nul, _ = text.partition("\0")
        if nul:
            what = "is UTF-16" if text.startswith(_UTF16) else "holds a NUL byte"
            self.findings.mistake(before.count("\n") + 1, f"{what}: save the file as plain text, in UTF-8")
            raise ConfigError(self.findings.mistakes)

    def _line(self, number: int, line: str) -> None:
        if not line.isascii() and _NOT_UTF8.search(line):
            self.findings.untidy(number, "is not UTF-8 text")
            if self.findings.strict:
                return
        before, hash_sign, comment = line.partition("#")
        before = before.strip(SPACES)
        ours = _OUR_COMMENT.match(comment) if hash_sign else None
        if ours is not None and before:
            name = comment[ours.end() :].partition("=")[0].strip(SPACES)
            self._complaint(name, in_comment=True)(number, "a '# stagewire:' comment needs a line of its own")
        elif ours is not None:
            text = comment[ours.end() :].partition("#")[0]
            self._assignment(number, text.strip(SPACES), in_comment=True)
        elif hash_sign and not before:
            self._name(number, comment)
            if "=" in comment:
                self._almost_ours(number, line, comment)
        if before or not hash_sign:
            self._end_names(blank=not before, header=before.startswith("["))
        if before.startswith("["):
            self._header(number, before)
        elif before:
            self._assignment(number, before, in_comment=False)

    def _almost_ours(self, number: int, line: str, comment: str) -> None:
        """Refuses a comment that is one of our lines but for a slip: what it says would not count."""
        key = known.key_behind_a_slip(comment)
        if key is not None and marks.without_mark(line) is None:
            self.findings.mistake(number, f"is only a comment: write '# stagewire: {key.name} = ...'")

    def _name(self, number: int, comment: str) -> None:
        written = peer_names.in_comment(comment)
        if written is None:
            self.names.dead = self.names.dead or peer_names.is_dead_header(comment)
        elif not self.names.dead:
            name, before = peer_names.cleaned(written), self.names.waiting
            if before and name and name != before:
                self._second_name(number, name)
            if name:
                self.names.waiting, self.names.number = name, number
            if name != written:
                what = f"as {name!r}" if name else "not at all"
                self.findings.untidy(number, f"this name can't be shown as it is written; it is shown {what}")

    def _end_names(self, *, blank: bool = True, header: bool = False) -> None:
        if header:
            for number, key in self.afloat:
                what = f"{key} stands above the next section's header, and would count for the section before"
                self.findings.mistake(number, f"{what}: put it below that header")
        self.afloat.clear()
        if counts := self.names.line(self.section, blank=blank, header=header):
            self._second_name(self.names.number, counts)

    def _second_name(self, number: int, counts: str) -> None:
        self.findings.warning(number, f"a second name of this [Peer]; {counts!r} counts")

    def _header(self, number: int, text: str) -> None:
        self._end_section()
        name, name_above = known.section_of(text), self.names.take()
        if name is None:
            inner = text.strip("[]" + SPACES)
            near = known.nearest(inner, known.SECTIONS)
            hint = f", did you mean [{known.SECTIONS[near]}]?" if near else ": only [Interface] and [Peer] are known"
            if near == inner.lower():
                self.findings.mistake(number, f"is no section as it stands: write [{known.SECTIONS[near]}]")
            else:
                self.findings.mistake(number, f"unknown section{known.quoted(inner)}{hint}")
            name = known.SECTIONS[near] if near else None
        elif text[1:-1].lower() not in known.SECTIONS:
            self.findings.untidy(number, f"write [{name}], without spaces")
        self.section, self.skipping = None, name is None
        match name:
            case "Interface":
                self.section = self.interface
                if self.interface.line is None:
                    self.interface.line = number
                else:
                    first = f"the first is in line {self.interface.line}"
                    self.findings.warning(number, f"a second [Interface], {first}; they count as one")
            case "Peer":
                self.section = PeerDraft(number, name=name_above)
                self.peers.append(self.section)

    def _end_section(self) -> None:
        """Reports a section's missing key as the section ends, so that a file of nothing but headers stops early."""
        if isinstance(self.section, PeerDraft) and "PublicKey" not in self.section.lines:
            self.findings.mistake(self.section.line, "this [Peer] has no PublicKey")

    def _assignment(self, number: int, text: str, *, in_comment: bool) -> None:
        if self.skipping:
            return
        name, equals, value = text.partition("=")
        name, value = name.strip(SPACES), value.strip(SPACES)
        complain = self._complaint(name, in_comment=in_comment)
        # A message repeats nothing of a line without sense: the line may be a key without its name.
        if not equals or not name:
            if in_comment and not known.begins_with_key(text):
                complain = self._ignored
            complain(number, "is neither 'Key = value', nor a section, nor a comment")
            return
        # A name without a value may be the end of a key, which often ends with '=': no message repeats it.
        key = self._known(number, name, in_comment=in_comment, quote=bool(value))
        if key is None or self.section is None:
            return
        if in_comment and not self.names.touches and key.section != "Interface":
            self.afloat.append((number, key.name))
        first = self.section.lines.get(key.name)
        if first is not None and not key.repeatable:
            if key.in_comment and not key.harmless:
                complain(number, f"{key.name} is already given in line {first}: leave one of both out")
            else:
                self.findings.warning(number, f"{key.name} is already given in line {first}; the last one counts")
        self.section.lines[key.name] = number
        if not value and key.name != "AllowedIPs":
            self._empty(number, key)
            return
        try:
            if isinstance(self.section, InterfaceDraft):
                self._set_interface(self.section, number, key, value)
            else:
                self._set_peer(self.section, number, key, value)
        except ValueError as error:
            complain(number, f"{key.name} {error}")

    def _complaint(self, name: str, *, in_comment: bool) -> Callable[[int | None, str], None]:
        """Returns what to do with a mistake. `wg` and wg-quick don't see a comment, so harmless ones are warnings."""
        if not in_comment:
            return self.findings.mistake
        near = known.key_of(name) or known.KEYS.get(known.nearest(name, known.KEYS) or "")
        return self._ignored if near is not None and near.harmless else self.findings.mistake

    def _ignored(self, number: int | None, message: str) -> None:
        self.findings.warning(number, f"{message}; this '# stagewire:' line is ignored")

    def _empty(self, number: int, key: Key) -> None:
        """Takes a key without a value as wg-quick does: it means the default, also after an earlier value."""
        message = f"{key.name} has no value"
        if key.in_comment:
            self._complaint(key.name, in_comment=True)(number, message)
        elif not key.may_be_empty:
            self.findings.mistake(number, message)
        else:
            self.findings.untidy(number, message)
            if key.name == "MTU":
                self.interface.mtu = None
            elif key.name == "Table":
                self.interface.table = "auto"

    def _known(self, number: int, name: str, *, in_comment: bool, quote: bool) -> Key | None:
        """Returns the key of this name if it may stand here, else a mistake and None."""
        complain = self._complaint(name, in_comment=in_comment)
        key = known.key_of(name)
        if key is None:
            near = known.nearest(name, known.KEYS)
            hint = f", did you mean {known.KEYS[near].name}?" if near else ""
            if name.lower() in known.AMNEZIA:
                hint = ": it is AmneziaWG's, whose packets are not WireGuard's; ask its server for a WireGuard file"
            complain(number, f"unknown key{known.quoted(name) if quote else ''}{hint}")
        elif key.in_comment and not in_comment:
            complain(number, f"only Stagewire knows {key.name}: write '# stagewire: {key.name} = ...'")
        elif in_comment and not key.in_comment:
            complain(number, f"{key.name} must not stand in a comment: remove the '# stagewire:'")
        elif self.section is None:
            complain(number, f"{key.name} stands before any section, it belongs in [{key.section or 'Peer'}]")
        elif key.section and isinstance(self.section, InterfaceDraft) != (key.section == "Interface"):
            complain(number, f"{key.name} belongs in [{key.section}]")
        else:
            if name.lower() not in known.KEYS:
                self.findings.untidy(number, f"unknown key, did you mean {key.name}?")
            return key
        return None

    # --- values --------------------------------------------------------------------------------------------

    def _set_interface(self, draft: InterfaceDraft, number: int, key: Key, value: str) -> None:
        read = self.readers
        match key.name:
            case "PrivateKey":
                draft.private_key = self._private_key(number, read.key(value))
            case "ListenPort":
                draft.listen_port = read.listen_port(value)
            case "FwMark":
                draft.fwmark = read.fwmark(value)
            case "Address":
                found = self._each(number, key, read.words(value), read.address)
                draft.addresses += [(number, address) for address in found]
            case "DNS":
                draft.dns += self._dns(number, read.words(value))
            case "MTU":
                draft.mtu = read.mtu(value)
            case "Table":
                draft.table = read.table(value)
            case "SaveConfig":
                draft.save_config = values.choice(value, "true", "false")
            case "RekeyAfterTime":
                draft.rekey_after_time = values.rekey_after_time(value)
            case "ClientEndpoint":
                draft.client_endpoint = values.endpoint(value)
            case name if name in values.CLIENT:
                draft.client = values.CLIENT[name](draft.client, value)
            case name if key.in_comment:
                _set_gateway(draft, number, name, value)
            case hook:
                draft.hooks.setdefault(hook, []).append(value)

    def _set_peer(self, draft: PeerDraft, number: int, key: Key, value: str) -> None:
        read = self.readers
        match key.name:
            case "PublicKey":
                draft.public_key = read.key(value)
            case "PresharedKey":
                draft.preshared_key = read.key(value)
                if where := published.where_published(draft.preshared_key):
                    raise ValueError(f"is {where}: {_MAKE_ONE}")
            case "AllowedIPs":
                items = [item.strip(SPACES) for item in value.split(",")] if value else []
                for added, signed, network in self._each(number, key, items, read.allowed_ip):
                    draft.allowed_ips.append((number, added, network))
                    draft.adds = draft.adds or signed
            case "Endpoint":
                draft.endpoint = read.endpoint(value)
            case "PersistentKeepalive":
                draft.persistent_keepalive = read.keepalive(value)
            case "ResponseTimestamp":
                draft.response_timestamp = values.choice(value, "on", "off")
            case "Expires":
                draft.expires = values.expires(value)
            case name if name in gateway.KEYS:
                draft.access = gateway.add_line(draft.access, name, value)
                _note(draft.forwards, draft.access, number)
            case name if name in values.LIMITS:
                draft.limits = values.LIMITS[name](draft.limits, value)
            case name if name in values.CLIENT:
                draft.client = values.CLIENT[name](draft.client, value)

    def _private_key(self, number: int, key: bytes) -> bytes | None:
        if not any(key):
            self.findings.warning(number, f"PrivateKey is all zeros, which stands for no key: {_MAKE_ONE}")
            return None
        if where := published.where_private_published(key):
            raise ValueError(f"is {where}: {_MAKE_ONE}")
        return key

    def _dns(self, number: int, words: Iterable[str]) -> list[str]:
        """Takes any word, as wg-quick hands it on, and reports odd ones."""
        for word in words:
            if not values.is_literal(word) and not values.is_name(word):
                says = self.findings.untidy if tolerant.is_domain(word) else self.findings.warning
                says(number, f"DNS must be an address or a search domain, not {values.shown(word)}")
        return list(words)

    def _each(self, number: int, key: Key, items: Iterable[str], read: Callable[[str], _T]) -> list[_T]:
        """Reads a list's items one by one, so that one bad item hides no other."""
        good = []
        for item in items:
            try:
                good.append(read(item))
            except ValueError as error:
                self.findings.mistake(number, f"{key.name} {error}")
        return good

    # --- the whole -----------------------------------------------------------------------------------------

    def _check_private_key(self) -> None:
        interface = self.interface
        if interface.line is None:
            self.findings.warning(None, "there is no [Interface] section")
        elif "PrivateKey" not in interface.lines:
            what = "this [Interface] has no PrivateKey"
            self.findings.warning(interface.line, f"{what}: no peer is reached before `wg set` gives it one")

    def _check_addresses(self) -> None:
        interface = self.interface
        seen: dict[IPv4Address | IPv6Address, int] = {}
        kept: dict[Interface, int] = {}
        for line, address in interface.addresses:
            if (first := seen.get(address.ip)) is None:
                seen[address.ip] = line
            else:
                self.findings.warning(line, f"Address {address.ip} is already given in line {first}")
            # The kernel takes an IPv4 address again with another prefix length, but no IPv6 address.
            if first is None or address.version == 4:
                kept.setdefault(address, line)
        interface.addresses = [(line, address) for address, line in kept.items()]
        self._check_mtu([address.version for _, address in interface.addresses])

    def _check_mtu(self, versions: list[int]) -> None:
        mtu = self.interface.mtu
        if mtu is None or mtu >= MIN_MTU_IPV6:
            return
        line, needs = self.interface.lines["MTU"], f"IPv6 needs {MIN_MTU_IPV6}"
        if 6 in versions:
            self.findings.warning(line, f"MTU {mtu} is too small for an IPv6 Address: {needs}")
        elif any(prefix.version == 6 for peer in self.peers for _, _, prefix in peer.allowed_ips):
            self.findings.warning(line, f"MTU {mtu} is too small for AllowedIPs of IPv6, which get nothing: {needs}")

    def _check_dns(self) -> None:
        interface = self.interface
        if interface.dns and all(map(tolerant.is_domain, interface.dns)):
            self.findings.warning(interface.lines["DNS"], "DNS names no server's address, so it changes nothing")

    def _check_claims(self, away: list[PeerDraft]) -> None:
        everybody = [*self.peers, *away]
        claims.check_names(everybody, self.findings)
        claims.check_groups(self.interface.access, self.peers, self.findings)
        claims.check_forwards(self.interface.forwards, everybody, self.interface.listen_port, self.findings)
        claims.check_out_of_use(self.peers, away, self.findings)
        places.check(self.peers, self.interface, self.findings)

    def _out_of_use(self, text: str) -> list[PeerDraft]:
        """Reads the peers out of use. A mistake of theirs refuses the file: no command could change its peers."""
        inner = _Reading(Findings(self.findings.path, strict=False), self.readers)
        if not self.findings.mistakes:
            inner.read_lines(marks.alone(text.removeprefix("\ufeff")))
            if inner.interface.line is not None:
                self.findings.mistake(inner.interface.line, "no [Interface] can be out of use, only a [Peer]")
        for mistake in inner.findings.mistakes:
            self.findings.mistake(mistake.line, mistake.message)
        return inner.peers

    def _finished(self, peers: tuple[PeerConfig, ...]) -> InterfaceConfig:
        interface = self.interface
        hooks = {name: tuple(commands) for name, commands in interface.hooks.items()}
        return InterfaceConfig(
            private_key=interface.private_key,
            listen_port=interface.listen_port,
            fwmark=interface.fwmark,
            addresses=tuple(address for _, address in interface.addresses),
            dns=tuple(interface.dns),
            mtu=interface.mtu,
            table=interface.table,
            pre_up=hooks.get("PreUp", ()),
            post_up=hooks.get("PostUp", ()),
            pre_down=hooks.get("PreDown", ()),
            post_down=hooks.get("PostDown", ()),
            save_config=interface.save_config,
            rekey_after_time=interface.rekey_after_time,
            peers=peers,
            client_endpoint=interface.client_endpoint,
            client=interface.client,
            exit=interface.exit,
            isolation=interface.isolation,
            open_firewall=interface.open_firewall,
            access=interface.access,
            warnings=self.findings.warnings,
        )


def _set_gateway(draft: InterfaceDraft, number: int, name: str, value: str) -> None:
    match name:
        case "Exit":
            draft.exit = gateway.exit_mode(value)
        case "Isolation":
            draft.isolation = values.choice(value, "on", "off")
        case "Firewall":
            draft.open_firewall = values.choice(value, "open", "closed")
        case _:
            draft.access = gateway.add_line(draft.access, name, value, whole=True)
            _note(draft.forwards, draft.access, number)


def _note(forwards: dict[Forward, int], access: Access, number: int) -> None:
    """Notes the line of a new port forward."""
    for each in access.forwards:
        forwards.setdefault(each, number)


def _lines(text: str) -> Iterator[str]:
    # Not splitlines(), for which a form feed or U+2028 ends a line; and no list of ten million empty lines.
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]
