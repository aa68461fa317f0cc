"""The TUN device, in a namespace of its own: made, found again, and never taken from anybody else."""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from lab.namespaces import Namespace
from lab.wait import until
from stagewire.limits import MAX_PACKET
from stagewire.linux import privileges, tun
from stagewire.linux.tun import TunUnavailable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network devices")

TUNSETIFF, IFF_TUN_NO_PI = 0x400454CA, 0x1001
OURS = privileges.uid_of("tun")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("tun") as made:
        yield made


@pytest.fixture
def clone(namespace: Namespace) -> Iterator[Callable[[], int]]:
    """Opens descriptors of /dev/net/tun, closed at the end."""
    opened: list[int] = []

    def another() -> int:
        opened.append(namespace.call(tun.open_clone))
        return opened[-1]

    yield another
    for descriptor in opened:
        os.close(descriptor)


def attach(namespace: Namespace, descriptor: int, name: str = "wg0") -> None:
    namespace.call(lambda: tun.attach(descriptor, name, OURS))


def refusal(namespace: Namespace, descriptor: int, name: str = "wg0") -> str:
    with pytest.raises(TunUnavailable) as refused:
        attach(namespace, descriptor, name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def described(namespace: Namespace, name: str = "wg0") -> str:
    return namespace.run("ip", "-details", "address", "show", "dev", name).stdout


def test_it_is_made_persistent_and_ours(namespace: Namespace, clone: Callable[[], int]) -> None:
    attach(namespace, clone())
    assert f"tun type tun pi off vnet_hdr off persist on user {OURS}" in described(namespace)


def test_it_is_found_again_with_all_that_belongs_to_it(namespace: Namespace) -> None:
    first = namespace.call(tun.open_clone)
    attach(namespace, first)
    namespace.run("ip", "address", "add", "10.9.0.1/24", "dev", "wg0")
    os.close(first)  # as the death of the process does
    before = described(namespace)
    second = namespace.call(tun.open_clone)
    try:
        attach(namespace, second)
        assert described(namespace) == before
    finally:
        os.close(second)


def test_packets_go_through_it(namespace: Namespace, clone: Callable[[], int]) -> None:
    descriptor = clone()
    attach(namespace, descriptor)
    namespace.run("ip", "address", "add", "10.9.0.1/24", "dev", "wg0")
    namespace.run("ip", "link", "set", "wg0", "up")
    sender = namespace.udp_socket("10.9.0.1")
    sender.sendto(b"hello", ("10.9.0.2", 9))

    def arrived() -> bytes:
        try:
            packet = os.read(descriptor, MAX_PACKET)
        except BlockingIOError:
            return b""
        return packet if packet[0] >> 4 == 4 else b""

    packet = until(arrived, 2, "the packet")
    assert packet[-5:] == b"hello"  # bare: no header of the device's before it


def test_one_that_is_in_use_is_not_taken(namespace: Namespace, clone: Callable[[], int]) -> None:
    attach(namespace, clone())
    assert refusal(namespace, clone()) == "interface wg0 is in use by another program; stop it or choose another name"


def test_a_name_that_is_no_tun_device_is_left_alone(namespace: Namespace, clone: Callable[[], int]) -> None:
    namespace.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "other")
    before = described(namespace)
    assert refusal(namespace, clone()) == (
        "interface wg0 exists and is no TUN device; remove it or choose another name"
    )
    assert described(namespace) == before


@pytest.mark.parametrize("owner", [[], ["user", "1000"]])
def test_a_tun_device_of_somebody_else_is_left_alone(
    namespace: Namespace, clone: Callable[[], int], owner: list[str]
) -> None:
    namespace.run("ip", "tuntap", "add", "dev", "wg0", "mode", "tun", *owner)
    before = described(namespace)
    words = "interface wg0 exists and is not ours; remove it or choose another name"
    assert refusal(namespace, clone()) == words
    assert described(namespace) == before


def test_a_tap_device_is_left_alone(namespace: Namespace, clone: Callable[[], int]) -> None:
    namespace.run("ip", "tuntap", "add", "dev", "wg0", "mode", "tap")
    before = described(namespace)
    assert "wg0 exists" in refusal(namespace, clone())
    assert described(namespace) == before


def test_a_tun_device_that_another_program_holds_is_left_alone(namespace: Namespace, clone: Callable[[], int]) -> None:
    fcntl.ioctl(clone(), TUNSETIFF, struct.pack("16sH22x", b"wg0", IFF_TUN_NO_PI))
    before = described(namespace)
    assert "wg0 exists and is not ours" in refusal(namespace, clone())
    assert described(namespace) == before


def test_without_the_capability_it_says_so() -> None:
    """In a user namespace, where we may do what we like, but not in the network we come from."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setresuid(65534, 65534, 65534)
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            tun.attach(descriptor, "wg0", 65534)
        except TunUnavailable as refused:
            os.write(write, str(refused).encode())
        except OSError as error:
            os.write(write, f"no device: {error.strerror}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    if not said.startswith("no device"):  # the node's mode is the host's to choose
        assert said == "interface wg0 cannot be made: CAP_NET_ADMIN is lacking; start as root with this capability"
