"""Reads any wg-quick file, with the comments in which other programs name peers or put them out of use.

# Client: phone (4f2d…)           wg-easy, above [Peer]
### begin phone ###               pivpn, above [Peer]; a peer out of use has `#[disabled] ` before each line
### Client phone                  angristan/wireguard-install, above [Peer]
# BEGIN_PEER phone                Nyr/wireguard-install, above [Peer]
# -WGP- Display name: phone       WireGuard Portal, in [Peer]
"""

import re
from typing import Final

from stagewire.config import ConfigError, InterfaceConfig, PeerConfig, encode_key, gateway, peer_names, roster, values
from stagewire.config import text as texts
from stagewire.config.known import SPACES
from stagewire.config.operations import NewPeer
from stagewire.proto.constants import REKEY_AFTER_TIME
from stagewire_cli.imports.fields import pair, setting
from stagewire_cli.imports.found import Found, FoundPeer, Unusable

_ABOVE: Final = re.compile(r"# Client: (.*?)(?: \([^()]*\))?$|### begin (.+) ###$|### Client (.+)$|# BEGIN_PEER (.+)$")
_WITHIN: Final = re.compile(r"# -WGP- Display name: (.+)$")
_OFF: Final = "#[disabled] "
_MAX_LINE: Final = 1024
"""Letters of a comment that are looked at."""


def read(text: str, path: str) -> Found:
    """Reads a file. Raises Unusable."""
    in_use = "\n".join(line.removeprefix(_OFF) for line in text.split("\n"))
    names, off = _comments(text)
    try:
        found = roster.read(in_use, path)
    except ConfigError as error:
        raise Unusable("\n".join(map(str, error.mistakes))) from None
    whole = found.whole
    peers = tuple(
        FoundPeer(
            f"{path}:{each.line}",
            _peer(each, names.get(each.line) or each.name, off=each.line in off or each.public_key in found.off),
        )
        for each in whole.peers
    )
    left = [f"line {number}: a command, {key}" for number, key in _hooks(in_use)]
    if whole.dns:
        left.append("DNS of the [Interface]: the gateway's own, not its clients'")
    if whole.save_config:
        left.append("SaveConfig: `stagewire save` writes live changes back")
    left += [f"line {each.line}: ResponseTimestamp of a [Peer]" for each in whole.peers if each.response_timestamp]
    hooks = (*whole.pre_up, *whole.post_up, *whole.pre_down, *whole.post_down)
    masquerades = any("masquerade" in each.lower() for each in hooks)
    return Found(_kind(whole), _gateway(whole), peers, tuple(left), masquerades)


def _kind(whole: InterfaceConfig) -> str:
    """Says what a file is: a gateway waits at a port, and a client calls each of its peers."""
    places = [str(each.endpoint) for each in whole.peers if each.endpoint is not None]
    if whole.listen_port or not places or len(places) < len(whole.peers):
        return "a wg-quick file"
    return f"a client's configuration: no ListenPort, and its peers are gateways, at {', '.join(places)}"


def _gateway(whole: InterfaceConfig) -> tuple[tuple[str, str], ...]:
    rekey = whole.rekey_after_time
    return (
        *pair("PrivateKey", encode_key(whole.private_key) if whole.private_key else ""),
        *pair("Address", ", ".join(map(str, whole.addresses))),
        *pair("ListenPort", whole.listen_port),
        *pair("MTU", whole.mtu),
        *pair("FwMark", whole.fwmark),
        *pair("Table", "" if whole.table == "auto" else whole.table),
        *pair("RekeyAfterTime", "" if rekey == REKEY_AFTER_TIME else f"{rekey:g}"),
        *pair("ClientEndpoint", whole.client_endpoint),
        *pair("ClientAllowedIPs", ", ".join(map(str, whole.client.allowed_ips))),
        *pair("ClientDNS", ", ".join(whole.client.dns)),
        *pair("ClientMTU", whole.client.mtu),
        *pair("ClientKeepalive", whole.client.keepalive),
        *pair("Exit", "" if whole.exit == "off" else whole.exit),
        *pair("Isolation", "on" if whole.isolation else ""),
        *pair("Firewall", "open" if whole.open_firewall else ""),
        *((key, value) for key, lines in gateway.words(whole.access).items() for value in lines),
    )


def _peer(peer: PeerConfig, name: str, *, off: bool) -> NewPeer:
    prefixes = tuple(map(str, peer.allowed_ips))
    return NewPeer(
        name,
        encode_key(peer.public_key),
        encode_key(peer.preshared_key) if any(peer.preshared_key) else "",
        prefixes,
        (),
        (
            *setting("Endpoint", peer.endpoint),
            *setting("PersistentKeepalive", peer.persistent_keepalive),
            *setting("Expires", values.as_time(peer.expires) if peer.expires is not None else ""),
            *setting("ClientAllowedIPs", ", ".join(map(str, peer.client.allowed_ips))),
            *setting("ClientDNS", ", ".join(peer.client.dns)),
            *setting("ClientMTU", peer.client.mtu),
            *setting("ClientKeepalive", peer.client.keepalive),
            *setting("Rate", values.as_rate(peer.limits.rate_to, peer.limits.rate_from) if peer.limits.rate_to else ""),
            *setting("Quota", values.as_quota(peer.limits.quota) if peer.limits.quota else ""),
            *(each for key, lines in gateway.words(peer.access).items() for each in setting(key, "; ".join(lines))),
        ),
        off=off,
    )


def _comments(text: str) -> tuple[dict[int, str], set[int]]:
    """Finds the name of each [Peer], and those out of use, by the line of the header."""
    names: dict[int, str] = {}
    off: set[int] = set()
    waiting, header = "", 0
    for number, whole in enumerate(text.removeprefix(texts.BOM).split("\n"), start=1):
        line = whole.removeprefix(_OFF)[:_MAX_LINE].strip(SPACES)
        if (section := texts.header_of(line)) is not None:
            header = number if section == "Peer" else 0
            if header and waiting:
                names[header] = peer_names.cleaned(waiting)
            if header and whole.startswith(_OFF):
                off.add(header)
            waiting = ""
        elif found := _ABOVE.match(line):
            waiting = next(name for name in found.groups() if name is not None)
        elif header and (found := _WITHIN.match(line)):
            names[header] = peer_names.cleaned(found[1])
    return names, off


def _hooks(text: str) -> list[tuple[int, str]]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        key, is_key, value = line.partition("#")[0].partition("=")
        name = key.strip(SPACES).lower()
        if is_key and name in _HOOK_NAMES and value.strip(SPACES):
            found.append((number, _HOOK_NAMES[name]))
    return found


_HOOK_NAMES: Final = {name.lower(): name for name in ("PreUp", "PostUp", "PreDown", "PostDown")}
