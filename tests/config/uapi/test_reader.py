"""Every rule of an operation, and its errno."""

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from tests.config.uapi.keys import ONE, PEER, SECRET, TWO

from stagewire.config.uapi import (
    BadOperation,
    Change,
    Get,
    Operation,
    OperationReader,
    PeerChange,
    PrefixChange,
)
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.noise import clamp


def read(text: str) -> list[Operation | BadOperation]:
    return OperationReader().feed_untrusted(text.encode())


def change(lines: str) -> Change:
    [found] = read(f"set=1\n{lines}\n")
    assert isinstance(found, Change), found
    return found


def peer(lines: str) -> PeerChange:
    [found] = change(PEER + lines).peers
    return found


def prefixes(lines: str) -> list[tuple[str, bool]]:
    return [(str(change.prefix), change.add) for change in peer(lines).allowed_ips]


def test_get() -> None:
    assert read("get=1\n\n") == [Get()]


def test_no_repr_shows_a_secret() -> None:
    changed = change(f"private_key={SECRET.hex()}\n{PEER}preshared_key={TWO.hex()}\n")
    for value in (changed, changed.peers[0]):
        for secret in (SECRET, clamp(SECRET), TWO):
            assert repr(secret) not in repr(value).replace(f"public_key={TWO!r}", "")


def test_an_empty_set_changes_nothing() -> None:
    assert change("") == Change(None, None, None, False, ())


def test_everything_at_once() -> None:
    found = change(
        f"private_key={SECRET.hex()}\nlisten_port=1\nfwmark=2\nreplace_peers=true\n{PEER}update_only=true\n"
        f"preshared_key={TWO.hex().upper()}\nendpoint=192.0.2.1:3\npersistent_keepalive_interval=4\n"
        f"replace_allowed_ips=true\nallowed_ip=10.0.0.9/8\nallowed_ip=-::1/0\nprotocol_version=1\n"
        f"public_key={TWO.hex()}\nremove=true\n{PEER}allowed_ip=+10.1.0.0/16\n"
    )
    assert found == Change(
        clamp(SECRET),
        1,
        2,
        True,
        (
            PeerChange(
                ONE,
                line=6,
                update_only=True,
                preshared_key=TWO,
                endpoint=Endpoint(bytes([192, 0, 2, 1]), 3),
                persistent_keepalive=4,
                replace_allowed_ips=True,
                allowed_ips=(
                    PrefixChange(IPv4Network("10.0.0.0/8"), True),
                    PrefixChange(IPv6Network("::/0"), False),
                ),
            ),
            PeerChange(TWO, line=15, remove=True),
            PeerChange(ONE, line=17, allowed_ips=(PrefixChange(IPv4Network("10.1.0.0/16"), True),)),
        ),
    )


def test_zeros_are_no_key_and_not_clamped() -> None:
    assert change(f"private_key={'00' * 32}\n").private_key == bytes(32)
    assert peer(f"preshared_key={'00' * 32}\n").preshared_key == bytes(32)


def test_numbers() -> None:
    assert [change(f"listen_port={text}\n").listen_port for text in ("0", "65535", "007")] == [0, 65535, 7]
    marks = [change(f"fwmark={text}\n").fwmark for text in ("0", "4294967295", "0xffffffff", "0XCa6c")]
    assert marks == [0, 2**32 - 1, 2**32 - 1, 0xCA6C]
    assert [peer(f"persistent_keepalive_interval={n}\n").persistent_keepalive for n in (0, 65535)] == [0, 65535]


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:1", Endpoint(bytes([192, 0, 2, 1]), 1)),
        ("[2001:db8::1]:65535", Endpoint(ip_address("2001:db8::1").packed, 65535)),
        ("[fe80::1%7]:2", Endpoint(ip_address("fe80::1").packed, 2, 7)),
        ("[2001:db8::1%7]:2", Endpoint(ip_address("2001:db8::1").packed, 2)),
        ("[::ffff:192.0.2.1]:2", Endpoint(ip_address("::ffff:192.0.2.1").packed, 2)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert peer(f"endpoint={text}\n").endpoint == endpoint


def test_the_last_of_two_counts_but_allowed_ips_add_up() -> None:
    assert change("listen_port=1\nlisten_port=2\n").listen_port == 2
    assert prefixes("allowed_ip=10.0.0.1/32\nallowed_ip=-10.0.0.1/32\n") == [
        ("10.0.0.1/32", True),
        ("10.0.0.1/32", False),
    ]
    assert prefixes("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=::/0\n") == [("::/0", True)]


def test_what_stands_beside_remove_is_read_and_has_no_effect() -> None:
    assert peer("allowed_ip=::/0\nremove=true\nendpoint=192.0.2.1:1\n") == PeerChange(ONE, line=2, remove=True)
    [mistake] = read(f"set=1\n{PEER}remove=true\nendpoint=x\n\n")
    assert isinstance(mistake, BadOperation)
    assert mistake.line == 4
