"""Makes network namespaces: hosts of a small network inside one machine.

A namespace's name carries the pid of the run (`sw-<pid>-<label>`), so several runs can share a machine. Leaving the
context closes its sockets, ends its processes, kills all other processes in the namespace, and deletes it. Each step
happens even if an earlier one failed.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final, Self, TypeVar

from lab.wait import until

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
"""As SO_RCVBUF, beyond rmem_max. A buffer of rmem_max overflows in a burst while Python is busy."""
NETLINK_NETFILTER: Final = 12
CTNETLINK_DELETE: Final = 1 << 8 | 2
NLM_F_REQUEST_ACK: Final = 1 | 4
STARTED_IN: Final = "LAB_NAMESPACE"
"""Variable that names the namespace in which a command was started."""

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """Makes a network namespace, with `lo` up and without IPv6 duplicate address detection."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"sw-{os.getpid()}-{label}"
        self._interfaces: set[str] = set()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []

    def __repr__(self) -> str:
        return f"Namespace({self.name})"

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            self.run("ip", "link", "set", "lo", "up")
            # No socket can bind an address while the kernel looks for duplicates of it.
            for scope in ("all", "default"):
                self.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
                self.sysctl(f"net.ipv6.conf.{scope}.dad_transmits", 0)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything in the namespace and removes it. Does nothing the second time."""
        if not self.exists():
            return
        with contextlib.ExitStack() as steps:  # steps run from last to first, even if one raises
            steps.callback(_ip, "netns", "delete", self.name)
            steps.callback(self._kill_everything)
            for process in self._processes:
                steps.callback(stop, process)
            for opened in self._sockets:
                steps.callback(opened.close)

    def exists(self) -> bool:
        return self.path.exists()

    @property
    def path(self) -> Path:
        """Returns the file that names the namespace."""
        return Path("/run/netns") / self.name

    def udp_overflows(self) -> int:
        """Counts the datagrams that a full socket in the namespace has cost."""
        text = self.run("cat", "/proc/net/snmp", "/proc/net/snmp6").stdout
        names, values = (line.split() for line in text.splitlines() if line.startswith("Udp: "))
        six = next(line.split()[1] for line in text.splitlines() if line.startswith("Udp6RcvbufErrors"))
        return int(values[names.index("RcvbufErrors")]) + int(six)

    def pids(self) -> list[int]:
        """Returns the processes in the namespace, and those started here that left it for an empty one, without this one."""
        found = {*map(int, _ip("netns", "pids", self.name).stdout.split()), *_away(self.name)}
        return sorted(found - {os.getpid()})

    def _kill_everything(self) -> None:
        def none_left() -> bool:
            # A supervisor may have started another child since the last round.
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        until(none_left, 5, f"the processes in {self.name} to die")

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        timeout: float = 10,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - subprocess.run calls it so
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end in the namespace. `env` adds to the environment."""
        result = subprocess.run(
            self.entering(argv),
            check=False,
            timeout=timeout,
            env={**os.environ, STARTED_IN: self.name, **(env or {})},
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return checked(result) if check else result

    def popen(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        output: int | IO[bytes] = subprocess.DEVNULL,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Starts a command, which ends with the namespace at the latest. `output` gets stdout and stderr.

        The command gets a session of its own: Linux shares processors by session, and it would have to share the
        test's.
        """
        process = subprocess.Popen(
            self.entering(argv),
            env={**os.environ, STARTED_IN: self.name, **(env or {})},
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def entering(self, argv: Sequence[str | Path]) -> list[str]:
        # `ip netns exec` becomes the command without a fork, so the pid is the command's.
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def call(self, function: Callable[[], T]) -> T:
        """Calls `function` inside the namespace, in a thread of its own, so the caller stays outside.

        A socket or TUN device belongs to the namespace that made it, whichever process uses it later.
        """

        def entered() -> T:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # Python has os.setns only since 3.12.
                if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                    error = ctypes.get_errno()
                    raise OSError(error, os.strerror(error), self.name)
            finally:
                os.close(descriptor)
            return function()

        with ThreadPoolExecutor(max_workers=1) as one_thread:
            return one_thread.submit(entered).result()

    def udp_socket(self, address: str = "0.0.0.0", port: int = 0, buffer: int = 8 << 20) -> socket.socket:
        """Binds a UDP socket in the namespace, with large buffers. The namespace closes it at the latest."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
        self._sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, buffer)
        made.bind((address, port))
        return made

    def sysctl(self, key: str, value: int | str) -> None:
        """Sets a `net.` kernel parameter of the namespace."""
        # /proc/sys/net shows the namespace of the reading thread.
        self.call(lambda: Path("/proc/sys", *key.split(".")).write_text(f"{value}\n"))

    @contextlib.contextmanager
    def etc(self, **files: str) -> Iterator[Path]:
        """Shows files in /etc to later commands: `hosts="..."`, `resolv_conf="..."`. Yields their folder."""
        # ip-netns(8) binds these files over /etc, in a mount namespace of the command's own.
        folder = Path("/etc/netns") / self.name
        while not folder.exists():
            with contextlib.suppress(FileNotFoundError):  # another run may remove the parent meanwhile
                folder.mkdir(parents=True)
        try:
            for name, text in files.items():
                (folder / name.replace("_", ".")).write_text(text)
            yield folder
        finally:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # another run's files are still in it
                folder.parent.rmdir()

    def new_interface_name(self, wanted: str) -> str:
        """Returns `wanted`, with a number if a link already has that name; at most 15 characters."""
        name, number = wanted[:15], 2
        while name in self._interfaces:
            name, number = f"{wanted[:12]}{number}", number + 1
        self._interfaces.add(name)
        return name


def is_inside(pid: int, namespace: Namespace) -> bool:
    """Tells whether a process is in a namespace, or was started there and has left for one of its own. Raises OSError."""
    process = Path(f"/proc/{pid}")
    if (process / "ns/net").stat().st_ino == namespace.path.stat().st_ino:
        return True
    return _mark(namespace.name) in (process / "environ").read_bytes()


def _mark(name: str) -> bytes:
    return f"{STARTED_IN}={name}\0".encode()


def _away(name: str) -> Iterator[int]:
    """Yields the processes that were started in a namespace, and are in none that has a name now."""
    mark, folder = _mark(name), Path("/run/netns")
    named = {path.stat().st_ino for path in (*folder.iterdir(), Path("/proc/thread-self/ns/net")) if path.exists()}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone
            if (process / "ns/net").stat().st_ino not in named and mark in (process / "environ").read_bytes():
                yield int(process.name)


class Link:
    """Joins two namespaces by a veth pair, which goes with either of them."""

    def __init__(self, a: Namespace, a_interface: str, b: Namespace, b_interface: str) -> None:
        self.a, self.a_interface = a, a_interface
        self.b, self.b_interface = b, b_interface

    def up(self) -> None:
        """Sets both ends up and waits for the carrier: IPv6 sends nothing before it."""
        self.a.run("ip", "link", "set", self.a_interface, "up")
        self.b.run("ip", "link", "set", self.b_interface, "up")
        until(self._carrier, 5, f"the link {self.a.name} - {self.b.name} to be up")

    def down(self) -> None:
        """Cuts the link. The kernel forgets the IPv6 addresses and the routes of the end in `a`."""
        self.a.run("ip", "link", "set", self.a_interface, "down")

    def _carrier(self) -> bool:
        ends = ((self.a, self.a_interface), (self.b, self.b_interface))
        return all("state UP" in end.run("ip", "-o", "link", "show", name).stdout for end, name in ends)


def veth(a: Namespace, b: Namespace, a_addresses: Sequence[str], b_addresses: Sequence[str], mtu: int = 1500) -> Link:
    """Joins two namespaces by interfaces `to-<label of the other>`; addresses carry their prefix length."""
    a_interface, b_interface = a.new_interface_name(f"to-{b.label}"), b.new_interface_name(f"to-{a.label}")
    _ip(
        *("link", "add", a_interface, "mtu", str(mtu), "netns", a.name, "type", "veth"),
        *("peer", "name", b_interface, "mtu", str(mtu), "netns", b.name),
    )
    add_addresses(a, a_interface, a_addresses)
    add_addresses(b, b_interface, b_addresses)
    link = Link(a, a_interface, b, b_interface)
    link.up()
    return link


def add_addresses(namespace: Namespace, interface: str, addresses: Sequence[str]) -> None:
    """Gives an interface its addresses, the IPv6 ones usable at once."""
    for address in addresses:
        at_once = ("nodad",) if ":" in address else ()
        namespace.run("ip", "address", "add", address, "dev", interface, *at_once)


class Topology:
    """Makes A - C - B, where C routes. All outer addresses are documentation addresses."""

    A4: Final = "192.0.2.1"
    A6: Final = "2001:db8:a::1"
    B4: Final = "198.51.100.1"
    B6: Final = "2001:db8:b::1"
    # C's addresses, towards A and towards B.
    CA4: Final = "192.0.2.254"
    CA6: Final = "2001:db8:a::fe"
    CB4: Final = "198.51.100.254"
    CB6: Final = "2001:db8:b::fe"

    def __init__(self, label: str = "", mtu: int = 1500) -> None:
        """Takes a label that tells the topologies of one process apart."""
        self.a, self.b, self.c = (Namespace(f"{label}{letter}") for letter in "abc")
        self._mtu = mtu
        self._stack = contextlib.ExitStack()
        self.link_a: Link
        self.link_b: Link

    def __enter__(self) -> Self:
        with self._stack:
            for namespace in (self.a, self.b, self.c):
                self._stack.enter_context(namespace)
            self._join()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _join(self) -> None:
        self.c.sysctl("net.ipv4.ip_forward", 1)
        self.c.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.link_a = veth(*(self.a, self.c), *_pair(self.A4, self.A6, self.CA4, self.CA6), self._mtu)
        self.link_b = veth(*(self.b, self.c), *_pair(self.B4, self.B6, self.CB4, self.CB6), self._mtu)
        for end, via4, via6 in ((self.a, self.CA4, self.CA6), (self.b, self.CB4, self.CB6)):
            end.run("ip", "-4", "route", "add", "default", "via", via4)
            end.run("ip", "-6", "route", "add", "default", "via", via6)


def _pair(end4: str, end6: str, router4: str, router6: str) -> tuple[Sequence[str], Sequence[str]]:
    return (f"{end4}/24", f"{end6}/64"), (f"{router4}/24", f"{router6}/64")


class Nat:
    """Translates the source addresses of packets that leave a router by one interface."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        self._namespace, self._interface = namespace, interface

    def apply(self, udp_ports: tuple[int, int] | None = None) -> None:
        """Sets or replaces the rules. UDP source ports are mapped into the range `udp_ports`."""
        rule = f'add rule inet lab_nat out oifname "{self._interface}"'
        lines = [
            "add table inet lab_nat",
            "add chain inet lab_nat out { type nat hook postrouting priority srcnat; }",
            "flush chain inet lab_nat out",
        ]
        if udp_ports:
            lines.append(f"{rule} meta l4proto udp masquerade to :{udp_ports[0]}-{udp_ports[1]}")
        lines.append(f"{rule} masquerade\n")
        self._namespace.run("nft", "-f", "-", input="\n".join(lines))

    def remove(self) -> None:
        """Removes the rules. Flows that are mapped already stay so until `forget`."""
        self._namespace.run("nft", "delete", "table", "inet", "lab_nat")

    def forget(self) -> None:
        """Drops every mapping, as a restarting router does. A flow's next mapping often gets the same port again."""
        self._namespace.call(_flush_conntrack)

    def rebind(self, port: int, last: int | None = None) -> None:
        """Drops every mapping. UDP flows get `port` from now on, or a port up to `last`."""
        self.apply((port, last or port))
        self.forget()


def masquerade(namespace: Namespace, interface: str) -> Nat:
    """Makes a router hide its other networks from the network at `interface`, in IPv4 and IPv6."""
    nat = Nat(namespace, interface)
    nat.apply()
    return nat


def _flush_conntrack() -> None:
    """Deletes all of the namespace's connections, as `conntrack -F` does, which Debian installs only on demand."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        # nlmsghdr (length, type, flags, sequence, port) and nfgenmsg (family, version, resource).
        netlink.send(struct.pack("=IHHIIBBH", 20, CTNETLINK_DELETE, NLM_F_REQUEST_ACK, 1, 0, 0, 0, 0))
        netlink.settimeout(2)
        error = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if error:
        raise OSError(error, os.strerror(error), "flush of the connection table")


def stop(process: subprocess.Popen[bytes], patience: float = 3) -> int:
    """Ends a child: asks first, kills after `patience` seconds. Returns its exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return checked(subprocess.run(["ip", *arguments], check=False, timeout=10, capture_output=True, text=True))


def checked(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Raises RuntimeError with the command's own output if it failed."""
    if result.returncode != 0:
        said = (result.stderr + result.stdout).strip()
        raise RuntimeError(f"{' '.join(map(str, result.args))} exited {result.returncode}: {said}")
    return result
