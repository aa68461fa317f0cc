"""Lines into a configuration.

In three steps, so that one reading finds every mistake:

1. each line, in turn: a section's header, `key = value`, a `# stagewire:` line, or nothing (other comments);
2. each value, as its line is met, into the draft of its section; a bad one leaves the draft as it was;
3. what only the whole shows: what is missing, and what two sections both claim (`_check_*`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeVar

from stagewire.config import keys, known, values
from stagewire.config.known import Key
from stagewire.config.model import (
    ConfigError,
    HostPort,
    Interface,
    InterfaceConfig,
    Mistake,
    Network,
    PeerConfig,
    Table,
)
from stagewire.proto.constants import KEY_LENGTH, REKEY_AFTER_TIME

MAX_MISTAKES: Final = 1000
"""Reading stops after this many: a large file that is no configuration must cost neither time nor memory."""

_T = TypeVar("_T")
_OUR_COMMENT = re.compile(r"[ \t]*stagewire[ \t]*:", re.IGNORECASE)
# The second range is what undecodable bytes become (PEP 383), and can't be in UTF-8 otherwise.
_NOT_TEXT = re.compile("\0|[\ud800-\udfff]")
# The C locale's spaces, as `wg` sees them; str.strip() alone would also take those of Unicode.
_SPACES: Final = " \t\r\v\f"


@dataclass(slots=True, repr=False)
class _InterfaceDraft:
    line: int
    lines: dict[str, int] = field(default_factory=dict)  # of each key's first use
    private_key: bytes | None = None
    listen_port: int | None = None
    fwmark: int = 0
    addresses: list[tuple[int, Interface]] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    mtu: int | None = None
    table: Table = "auto"
    hooks: dict[str, list[str]] = field(default_factory=dict)
    save_config: bool = False
    rekey_after_time: float = REKEY_AFTER_TIME


@dataclass(slots=True, repr=False)
class _PeerDraft:
    line: int
    lines: dict[str, int] = field(default_factory=dict)
    public_key: bytes | None = None
    preshared_key: bytes = bytes(KEY_LENGTH)
    allowed_ips: dict[Network, int] = field(default_factory=dict)  # each with its line; in order, none twice
    endpoint: HostPort | None = None
    persistent_keepalive: int = 0
    response_timestamp: bool = False


def parse(text: str, path: str) -> InterfaceConfig:
    """Reads the text of a configuration file. `path` only goes into messages.

    Raises ConfigError, and nothing else, with every mistake in it (or the first MAX_MISTAKES). CRLF and
    a byte order mark are accepted. No name is looked up, no file touched.
    """
    return _Reading(path).read(text)


class _TooManyMistakes(Exception):  # noqa: N818 - never leaves this file
    pass


class _Reading:
    """One reading of one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.mistakes: list[Mistake] = []
        self.interface: _InterfaceDraft | None = None
        self.peers: list[_PeerDraft] = []
        self.section: _InterfaceDraft | _PeerDraft | None = None
        self.skipping = False  # in a section that nothing is known about

    def read(self, text: str) -> InterfaceConfig:
        try:
            for number, line in enumerate(_lines(text.removeprefix("\ufeff")), start=1):
                self._line(number, line)
            self._end_section()
            if self.interface is None:
                self._mistake(None, "there is no [Interface] section")
            self._check_addresses()
            self._check_public_keys()
            self._check_prefixes()
        except _TooManyMistakes:
            pass
        if self.mistakes or self.interface is None:
            raise ConfigError(sorted(self.mistakes, key=lambda mistake: mistake.line or 0))
        return _finished(self.interface, self.peers)

    def _mistake(self, line: int | None, message: str) -> None:
        self.mistakes.append(Mistake(self.path, line, message))
        if len(self.mistakes) == MAX_MISTAKES:
            self.mistakes.append(Mistake(self.path, line, "too many mistakes, nothing more was checked"))
            raise _TooManyMistakes

    # --- lines ---------------------------------------------------------------------------------------------

    def _line(self, number: int, line: str) -> None:
        if (bad := _NOT_TEXT.search(line)) is not None:
            self._mistake(number, "holds a NUL byte" if bad[0] == "\0" else "is not UTF-8 text")
            return
        before, hash_sign, comment = line.partition("#")
        before = before.strip(_SPACES)
        ours = _OUR_COMMENT.match(comment) if hash_sign else None
        if ours is not None and before:
            self._mistake(number, "a '# stagewire:' comment needs a line of its own")
        elif ours is not None:
            text = comment[ours.end() :].partition("#")[0]
            self._assignment(number, text.strip(_SPACES), in_comment=True)
        if before.startswith("["):
            self._header(number, before)
        elif before:
            self._assignment(number, before, in_comment=False)

    def _header(self, number: int, text: str) -> None:
        self._end_section()
        name = known.SECTIONS.get(text[1:-1].lower()) if text.endswith("]") else None
        if name is None:
            inner = text.strip("[]" + _SPACES)
            near = known.nearest(inner, known.SECTIONS)
            hint = f", did you mean [{known.SECTIONS[near]}]?" if near else ": only [Interface] and [Peer] are known"
            self._mistake(number, f"unknown section{known.quoted(inner)}{hint}")
            name = known.SECTIONS[near] if near else None
        self.section, self.skipping = None, name is None
        match name:
            case "Interface":
                self.section = _InterfaceDraft(number)
                if self.interface is None:
                    self.interface = self.section
                else:
                    self._mistake(number, f"a second [Interface], the first is in line {self.interface.line}")
            case "Peer":
                self.section = _PeerDraft(number)
                self.peers.append(self.section)

    def _end_section(self) -> None:
        """What a section lacks is said as it ends, so that a file of nothing but headers stops early."""
        match self.section:
            case _InterfaceDraft() as section if section is self.interface and "PrivateKey" not in section.lines:
                self._mistake(section.line, "this [Interface] has no PrivateKey")
            case _PeerDraft() as section if "PublicKey" not in section.lines:
                self._mistake(section.line, "this [Peer] has no PublicKey")

    def _assignment(self, number: int, text: str, *, in_comment: bool) -> None:
        if self.skipping:
            return
        name, equals, value = text.partition("=")
        name, value = name.strip(_SPACES), value.strip(_SPACES)
        # Of a line that makes no sense nothing is repeated, for it may be a key without its name.
        if not equals or not name:
            self._mistake(number, "is neither 'Key = value', nor a section, nor a comment")
            return
        # What ends with its '=' may be the end of a key, which so often does: such a name isn't repeated either.
        key = self._known(number, name, in_comment=in_comment, quote=bool(value))
        if key is None or self.section is None:
            return
        first = self.section.lines.setdefault(key.name, number)
        if first != number and not key.repeatable:
            self._mistake(number, f"{key.name} is already given in line {first}")
        if not value and key.name != "AllowedIPs":
            self._mistake(number, f"{key.name} has no value")
            return
        try:
            if isinstance(self.section, _InterfaceDraft):
                self._set_interface(self.section, number, key, value)
            else:
                self._set_peer(self.section, number, key, value)
        except ValueError as error:
            self._mistake(number, f"{key.name} {error}")

    def _known(self, number: int, name: str, *, in_comment: bool, quote: bool) -> Key | None:
        """The key of this name when it may stand here, else a mistake and None."""
        key = known.KEYS.get(name.lower())
        if key is None:
            near = known.nearest(name, known.KEYS)
            hint = f", did you mean {known.KEYS[near].name}?" if near else ""
            self._mistake(number, f"unknown key{known.quoted(name) if quote else ''}{hint}")
        elif key.in_comment and not in_comment:
            self._mistake(number, f"only Stagewire knows {key.name}: write '# stagewire: {key.name} = ...'")
        elif in_comment and not key.in_comment:
            self._mistake(number, f"{key.name} must not stand in a comment: remove the '# stagewire:'")
        elif self.section is None:
            self._mistake(number, f"{key.name} stands before any section, it belongs in [{key.section}]")
        elif isinstance(self.section, _InterfaceDraft) != (key.section == "Interface"):
            self._mistake(number, f"{key.name} belongs in [{key.section}]")
        else:
            return key
        return None

    # --- values --------------------------------------------------------------------------------------------

    def _set_interface(self, draft: _InterfaceDraft, number: int, key: Key, value: str) -> None:
        match key.name:
            case "PrivateKey":
                private_key = keys.decode_key(value)
                if not any(private_key):
                    raise ValueError("is all zeros, which stands for no key: make one with 'wg genkey'")
                draft.private_key = private_key
            case "ListenPort":
                draft.listen_port = values.listen_port(value)
            case "FwMark":
                draft.fwmark = values.fwmark(value)
            case "Address":
                read = self._each(number, key, values.split_words(value), values.address)
                draft.addresses += [(number, address) for address in read]
            case "DNS":
                draft.dns += self._each(number, key, values.split_words(value), values.dns)
            case "MTU":
                draft.mtu = values.mtu(value)
            case "Table":
                draft.table = values.table(value)
            case "SaveConfig":
                draft.save_config = values.choice(value, "true", "false")
            case "RekeyAfterTime":
                draft.rekey_after_time = values.rekey_after_time(value)
            case hook:
                draft.hooks.setdefault(hook, []).append(value)

    def _set_peer(self, draft: _PeerDraft, number: int, key: Key, value: str) -> None:
        match key.name:
            case "PublicKey":
                draft.public_key = keys.decode_key(value)
            case "PresharedKey":
                draft.preshared_key = keys.decode_key(value)
            case "AllowedIPs":
                items = [item.strip(_SPACES) for item in value.split(",")] if value else []
                for network in self._each(number, key, items, values.network):
                    draft.allowed_ips.setdefault(network, number)
            case "Endpoint":
                draft.endpoint = values.endpoint(value)
            case "PersistentKeepalive":
                draft.persistent_keepalive = values.keepalive(value)
            case "ResponseTimestamp":
                draft.response_timestamp = values.choice(value, "on", "off")

    def _each(self, number: int, key: Key, items: Iterable[str], read: Callable[[str], _T]) -> list[_T]:
        """Reads a list's items one by one, so that one bad item hides no other."""
        good = []
        for item in items:
            try:
                good.append(read(item))
            except ValueError as error:
                self._mistake(number, f"{key.name} {error}")
        return good

    # --- the whole -----------------------------------------------------------------------------------------

    def _check_addresses(self) -> None:
        if self.interface is None:
            return
        seen: dict[IPv4Address | IPv6Address, int] = {}
        for line, address in self.interface.addresses:
            if address.ip in seen:
                self._mistake(line, f"Address {address.ip} is already given in line {seen[address.ip]}")
            else:
                seen[address.ip] = line
        mtu = self.interface.mtu
        if mtu is not None and mtu < values.MIN_MTU_IPV6 and any(ip.version == 6 for ip in seen):
            line = self.interface.lines["MTU"]
            self._mistake(line, f"MTU {mtu} is too small for an IPv6 Address: IPv6 needs {values.MIN_MTU_IPV6}")

    def _check_public_keys(self) -> None:
        own = self.interface.private_key if self.interface else None
        own_public = keys.public_key(own) if own else None
        seen: dict[bytes, _PeerDraft] = {}
        for peer in self.peers:
            if peer.public_key is None:
                continue
            line = peer.lines["PublicKey"]
            first = seen.setdefault(peer.public_key, peer)
            if first is not peer:
                where = f"the [Peer] in line {first.line} and the [Peer] in line {peer.line}"
                self._mistake(line, f"{where} have the same PublicKey")
            elif peer.public_key == own_public:
                self._mistake(line, "PublicKey is that of our own PrivateKey: a gateway can't be its own peer")
            elif keys.is_low_order(peer.public_key):
                self._mistake(line, "PublicKey is a point of low order, with which nothing can be kept secret")

    def _check_prefixes(self) -> None:
        owners: dict[Network, _PeerDraft] = {}
        for peer in self.peers:
            for network, line in peer.allowed_ips.items():
                owner = owners.setdefault(network, peer)
                # Of a peer that is there twice it is enough to say just that.
                if owner is peer or (owner.public_key is not None and owner.public_key == peer.public_key):
                    continue
                other = f"the [Peer] in line {owner.line} (its line {owner.allowed_ips[network]})"
                self._mistake(line, f"{network} of the [Peer] in line {peer.line} also belongs to {other}")


def _finished(interface: _InterfaceDraft, peers: list[_PeerDraft]) -> InterfaceConfig:
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
        peers=tuple(
            PeerConfig(
                public_key=peer.public_key,
                preshared_key=peer.preshared_key,
                allowed_ips=tuple(peer.allowed_ips),
                endpoint=peer.endpoint,
                persistent_keepalive=peer.persistent_keepalive,
                response_timestamp=peer.response_timestamp,
                line=peer.line,
            )
            for peer in peers
            if peer.public_key is not None
        ),
    )


def _lines(text: str) -> Iterator[str]:
    # Not splitlines(), for which a form feed or U+2028 ends a line; and no list of ten million empty ones.
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]
