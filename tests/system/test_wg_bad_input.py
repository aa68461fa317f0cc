"""What the configuration socket may be sent by mistake or malice: at most it costs its sender the connection."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY, WgHub, connected, say
from lab.wireguard_go import SOCKETS

pytestmark = pytest.mark.system

KEY = f"public_key={7:064x}\n"
EINVAL, EPROTO, E2BIG = b"errno=-22\n\n", b"errno=-71\n\n", b"errno=-7\n\n"
ANSWERS = {
    "set=1\nrabbit=1\n\n": EINVAL,
    "set=1\nlisten_port=65536\n\n": EINVAL,
    "set=1\nlisten_port=\n\n": EINVAL,
    "set=1\nprivate_key=00\n\n": EINVAL,
    f"set=1\n{KEY}rabbit=1\n\n": EINVAL,
    f"set=1\n{KEY}endpoint=example.com:1\n\n": EINVAL,
    f"set=1\n{KEY}allowed_ip=10.0.0.0/33\n\n": EINVAL,
    f"set=1\n{KEY}allowed_ip=10.0.0.0\n\n": EINVAL,
    f"set=1\n{KEY}remove=false\n\n": EINVAL,
    f"set=1\n{KEY}protocol_version=2\n\n": EINVAL,
    f"set=1\nfwmark=9\n{KEY}listen_port=1\n\n": EINVAL,
    "set=1\nlisten_port\n\n": EPROTO,
    "set=1\nfwmark=9\n": EPROTO,
    f"set=1\nfwmark=9\n{KEY}allowed_ip=10.9": EPROTO,
    f"set=1\nfwmark={'1' * 5000}\n\n": E2BIG,
    "get=1\nrabbit=1\n\n": b"errno=22\n\n",
    "get=1\n": b"errno=71\n\n",
    "hello\n\n": b"",
    "set=2\n\n": b"",
    "": b"",
}
MIB = 1 << 20


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("x") as topology:
        yield topology


@pytest.fixture(params=["up", "bare"])
def hub(request: pytest.FixtureRequest, network: Topology, both: dict[str, WgHub]) -> Iterator[WgHub]:
    """Streams over IPv4 and IPv6 and the whole configuration go through every test here, untouched."""
    hub = both[request.param]
    four, six = hub.over(4), hub.over(6)
    inner = [four.gateway_inner[0], six.gateway_inner[1]]
    with hub.wireguard_go(four, network.a, GATEWAY[4]), hub.wireguard_go(six, network.a, GATEWAY[6]):
        for address in inner:
            assert ping(network.a, address).received == 1
        before, pid = hub.wg("showconf", hub.name).stdout, hub.gateway.pid("key")
        with Pulse(network.a, network.b, inner, rate=500) as pulse:
            until(lambda: pulse.received > 20, 5, "the streams")
            yield hub
            report = pulse.finish()
        print(report)
        hub.expect_whole(report)
        assert hub.wg("showconf", hub.name).stdout == before
        assert hub.gateway.pid("key") == pid


def answers(hub: WgHub) -> bool:
    return set(hub.show("peers").split()) == {spoke.keys.public for spoke in hub.spokes.values()}


def resident(hub: WgHub) -> int:
    """key-service's memory, in MiB."""
    status = Path(f"/proc/{hub.gateway.pid('key')}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def test_every_mistake_has_its_errno(hub: WgHub) -> None:
    for text, answer in ANSWERS.items():
        assert say(hub.name, text) == answer, text
    # One mistake costs one operation; the next on the same connection is served, pipelined as it may be.
    answer = say(hub.name, "set=1\nrabbit=1\n\nget=1\n\nset=1\nfwmark=1\n\nset=1\nfwmark=0\n\n")
    assert answer.startswith(EINVAL)
    assert answer.endswith(b"\nerrno=0\n\nerrno=0\n\nerrno=0\n\n")


def test_wg_says_it_in_words(network: Topology, hub: WgHub) -> None:
    """Such as of an interface that is another namespace's."""
    place = f"[fe80::1%{network.link_a.b_interface}]:1"
    refused = network.c.run("wg", "set", hub.name, "peer", "A" * 43 + "=", "endpoint", place, check=False)
    assert refused.returncode != 0
    assert refused.stderr == "Unable to modify interface: Invalid argument\n"


def test_a_thousand_connections_that_say_nothing(hub: WgHub) -> None:
    before, descriptors = resident(hub), Path(f"/proc/{hub.gateway.pid('key')}/fd")
    open_before = len(list(descriptors.iterdir()))
    with contextlib.ExitStack() as clients:
        opened = [clients.enter_context(connected(hub.name)) for _ in range(1000)]
        opened[-1].sendall(b"get=1\n")
        begun = time.monotonic()
        assert answers(hub)
        assert time.monotonic() - begun < 2
        # The ones idle longest were let go; the youngest is still served.
        opened[0].settimeout(5)
        assert opened[0].recv(1) == b""
        opened[-1].sendall(b"\n")
        assert opened[-1].recv(65536).endswith(b"errno=0\n\n")
    assert resident(hub) - before < 20
    until(lambda: len(list(descriptors.iterdir())) < open_before + 10, 5, "its descriptors to be closed")


def test_a_client_that_does_not_read(hub: WgHub) -> None:
    """It asks again and again, and takes no answer: it isn't listened to for long."""
    before = resident(hub)
    with connected(hub.name) as client:
        client.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            while sent < 20 * MIB:
                sent += client.send(b"get=1\n\n" * 1000)
        assert sent < 20 * MIB
        assert answers(hub)
    assert resident(hub) - before < 20


@pytest.mark.parametrize(
    "line",
    [b"rabbit=" + b"x" * 1000 + b"\n", b"x" * 65536, KEY.encode() * 800],
    ids=["unknown keys", "no line", "peers"],
)
def test_a_set_of_100_megabytes(hub: WgHub, line: bytes) -> None:
    before = peak = resident(hub)
    piece = line * (1 + MIB // 16 // len(line))
    with connected(hub.name) as client:
        client.sendall(b"set=1\n")
        sent = 0
        try:
            while sent < 100 * MIB:
                client.sendall(piece)
                sent += len(piece)
                if sent % (4 * MIB) < len(piece):
                    peak = max(peak, resident(hub))
        except OSError:
            pass  # it has heard enough
        assert sent < 70 * MIB
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) in {EINVAL, E2BIG, b""}
    print(f"{sent // MIB} MiB were taken in; key-service grew by {peak - before} MiB")
    assert peak - before < 200
    assert answers(hub)


def test_wg_unlinks_no_socket_that_is_served(hub: WgHub) -> None:
    """Whoever finds connections refused removes the file: it must not happen to a service with many clients."""
    with contextlib.ExitStack() as clients:
        for _ in range(200):
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            with contextlib.suppress(BlockingIOError):
                client.connect(str(SOCKETS / f"{hub.name}.sock"))
        assert hub.wg("show", hub.name, "listen-port").stdout == f"{hub.port}\n"
    assert (SOCKETS / f"{hub.name}.sock").exists()
