"""Super-packets as the kernel itself makes, cuts and takes them: what `proto.offload` has to come to."""

import hashlib
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.proto.packets.flows import ACK, CWR, FIN, PSH, TCP, UDP, Shape, sums_are_right

from lab.namespaces import Namespace, add_addresses
from lab.wait import until
from stagewire.limits import MAX_PACKET
from stagewire.linux import privileges, tun
from stagewire.proto.packets import fields, merge, split, virtio
from stagewire.proto.packets.merge import Merged
from stagewire.proto.packets.split import SuperPacket

BOTH = merge.TAKES_TCP | merge.TAKES_UDP
SIZE = 5_000_000


class Device:
    """A TUN device of the test's own, and what goes through it."""

    def __init__(self, namespace: Namespace, name: str, *, offload: bool) -> None:
        self.namespace, self.name = namespace, name
        self.descriptor = namespace.call(tun.open_clone)
        uid = privileges.uid_of("tun")
        namespace.call(lambda: tun.attach(self.descriptor, name, uid, persistent=False, offload=offload))
        self.takes = tun.switch_offloads(self.descriptor)
        namespace.run("ip", "link", "set", name, "mtu", "1420", "up")

    def close(self) -> None:
        """And it is gone."""
        os.close(self.descriptor)

    def read(self) -> bytes | None:
        """What is there now, header and all."""
        try:
            return os.read(self.descriptor, fields.VNET_HEADER + MAX_PACKET)
        except BlockingIOError:
            return None


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace("ka") as one, Namespace("kb") as other:
        yield one, other


@pytest.fixture
def router() -> Iterator[tuple[Device, Device]]:
    """What is written to the first comes out of the second, which takes no super-packets: the kernel cuts them."""
    with Namespace("kr") as namespace:
        namespace.sysctl("net.ipv4.ip_forward", 1)
        namespace.sysctl("net.ipv6.conf.all.forwarding", 1)
        namespace.sysctl("net.ipv4.conf.all.rp_filter", 0)
        namespace.sysctl("net.ipv4.conf.default.rp_filter", 0)
        one, other = Device(namespace, "in", offload=True), Device(namespace, "out", offload=False)
        namespace.run("ip", "route", "add", "10.9.9.0/24", "dev", "out")
        namespace.run("ip", "route", "add", "fd01::/16", "dev", "out")
        namespace.run("ip", "-6", "route", "add", "default", "dev", "out")
        yield one, other
        one.close()
        other.close()


SHAPES = [
    Shape(version, protocol, size=size, payload=random.Random(7).randbytes(length), flags=flags, options=options)
    for version in (4, 6)
    for protocol, flags, options in (
        (TCP, ACK, b""),
        (TCP, ACK | PSH | FIN | CWR, bytes([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])),
        (UDP, 0, b""),
    )
    for size, length in ((1300, 1300 * 40), (1301, 1301 * 7 + 1), (8, 500))
]


def forwarded(device: Device, count: int) -> list[bytes]:
    found: list[bytes] = []

    def all_there() -> bool:
        while (packet := device.read()) is not None:
            if packet[9 if packet[0] >> 4 == 4 else 6] in (TCP, UDP):
                found.append(packet)
        return len(found) >= count

    until(all_there, 3, f"{count} packets from the kernel")
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_we_cut_as_the_kernel_does(router: tuple[Device, Device], shape: Shape) -> None:
    one, other = router
    if shape.protocol == UDP and not one.takes & merge.TAKES_UDP:
        pytest.skip("the kernel knows no super-packets of UDP")
    os.write(one.descriptor, b"".join(shape.as_read()))
    expected = replace(shape, hops=shape.hops - 1).train()
    assert list(map(but_zero, forwarded(other, len(expected)))) == list(map(but_zero, expected))


def but_zero(packet: bytes) -> bytes:
    """A TCP checksum of 0 and one of 65,535 are the same number; the kernel writes now this, now that."""
    assert sums_are_right(packet)
    at = 36 if packet[0] >> 4 == 4 else 56
    return packet[:at] + b"\xff\xff" + packet[at + 2 :] if packet[at : at + 2] == b"\0\0" else packet


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.flags in (0, ACK)], ids=str)
def test_what_we_merged_the_kernel_cuts_into_what_it_was(router: tuple[Device, Device], shape: Shape) -> None:
    one, other = router
    train = replace(shape, identification=0xFFF0).train()
    for item in merge.merge(train, one.takes):
        os.write(one.descriptor, item.header + item.packet if isinstance(item, Merged) else virtio.NONE + item)
    expected = replace(shape, hops=shape.hops - 1, identification=0xFFF0).train()
    assert list(map(but_zero, forwarded(other, len(expected)))) == list(map(but_zero, expected))


# --- a real connection through our hands -------------------------------------------------------------------

Way = Callable[[bytes], list[bytes]]


def whole(item: bytes) -> list[bytes]:
    """As the kernel gave it."""
    return [item]


def cut(item: bytes) -> list[bytes]:
    """Packet by packet."""
    found = split.open_untrusted(item[: fields.VNET_HEADER], item[fields.VNET_HEADER :])
    train = split.split(found) if isinstance(found, SuperPacket) else [found]
    assert all(map(sums_are_right, train))
    return [virtio.NONE + packet for packet in train]


def merged(item: bytes) -> list[bytes]:
    """Cut and merged again."""
    train = [packet[fields.VNET_HEADER :] for packet in cut(item)]
    found = merge.merge(train, BOTH)
    return [each.header + each.packet if isinstance(each, Merged) else virtio.NONE + each for each in found]


class Bridge:
    """Carries what is read from either device to the other, in one of three ways."""

    def __init__(self, devices: list[Device], way: Way) -> None:
        one, other = devices
        self._ways = {one.descriptor: other.descriptor, other.descriptor: one.descriptor}
        self._way = way
        self._stop = threading.Event()
        self.largest = 0
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for descriptor in select.select(list(self._ways), [], [], 0.1)[0]:
                    item = os.read(descriptor, fields.VNET_HEADER + MAX_PACKET)
                    self.largest = max(self.largest, len(item))
                    if item[fields.VNET_HEADER] >> 4 == 6 and item[fields.VNET_HEADER + 6] not in (TCP, UDP):
                        continue  # solicitations
                    for each in self._way(item):
                        os.write(self._ways[descriptor], each)
        except BaseException as error:  # noqa: BLE001 - the test is to know
            self.failed = error

    def stop(self) -> None:
        """Raises what went wrong."""
        self._stop.set()
        self._thread.join()
        if self.failed is not None:
            raise self.failed


@pytest.mark.parametrize("way", [whole, cut, merged])
@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_through_our_hands_is_whole(
    namespaces: tuple[Namespace, Namespace], way: Way, version: int
) -> None:
    devices = [Device(namespace, "sw0", offload=True) for namespace in namespaces]
    addresses = [f"10.9.0.{end}" if version == 4 else f"fd00::{end}" for end in (1, 2)]
    for device, address in zip(devices, addresses, strict=True):
        add_addresses(device.namespace, "sw0", [f"{address}/{24 if version == 4 else 64}"])
    bridge = Bridge(devices, way)
    try:
        assert transfer(namespaces, addresses) == hashlib.sha256(CONTENT).digest()
    finally:
        bridge.stop()
        for device in devices:
            device.close()
    assert 10_000 < bridge.largest <= tun.MAX_SUPER_PACKET + fields.VNET_HEADER
    for namespace in namespaces:
        snmp = namespace.call(lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
        names, values = (line.split() for line in snmp if line.startswith("Tcp:"))
        assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"


CONTENT = random.Random(3).randbytes(SIZE)


def transfer(namespaces: tuple[Namespace, Namespace], addresses: list[str]) -> bytes:
    """Sends it from the first to the second; returns the hash of what arrived."""
    family = socket.AF_INET if "." in addresses[0] else socket.AF_INET6
    with (
        namespaces[1].call(lambda: socket.create_server((addresses[1], 0), family=family)) as server,
        namespaces[0].call(lambda: socket.socket(family)) as client,
    ):
        client.settimeout(20)
        client.connect(server.getsockname())
        taken, _ = server.accept()

        def send() -> None:
            client.sendall(CONTENT)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        digest = hashlib.sha256()
        with taken:
            taken.settimeout(20)
            while data := taken.recv(1 << 20):
                digest.update(data)
        sender.join()
        return digest.digest()
