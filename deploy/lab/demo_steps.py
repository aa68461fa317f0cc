"""Runs the demo's steps in order: each shows one thing and checks its own claims."""

import datetime
import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.text import Text

from lab.demo_fetch import MIB, Fetch, Target, table_of
from lab.demo_network import INTERFACE, WORKERS, Network, environment
from lab.demo_screen import Screen, grid
from lab.demo_watch import KINDS, Report, Watch
from lab.stagewire import executable
from lab.traffic import NumberedStream, ping
from lab.wait import until

FILE_SIZE = 128 * MIB
FILE_SEED = 20
PINGS = 5
SCALE_RATE = 200
"""Packets/s each way."""
ELSEWHERE = "10.9.0.9"
PAIRED = "marker"
MARKER = b"Meet me at the old mill at noon, and bring the map with you."
MARKERS = {PAIRED: MARKER, "ping": bytes(range(0x18, 0x38))}
"""The second is what ping fills its packets with."""
ENOUGH_SLICES = 0.9
"""Share of the slices that the search must find. The others lie across two packets."""
RTT = re.compile(r"time=([\d.]+) ms")

ROLES = {
    "tun": "reads and writes the TUN device",
    "device": "seals and opens packets",
    "conn": "uses UDP sockets, guards the gate",
    "key": "holds long-term keys, shakes hands",
    "status": "adds up the counters",
    "host": "sets addresses, routes and rules",
    "resolver": "looks up names of endpoints",
}
STAGES = tuple(ROLES)
PICTURE = """\
[green]plain[/]      gateway a                                    gateway b     [green]plain[/]
[green]──▶[/] TUN─tun─device x2─conn [red]══ UDP, ciphertext ══[/] conn─device x2─tun─TUN [green]──▶[/]
               └─ key ─┘                           └─ key ─┘"""
TEXTS = (
    (
        "Two gateways, one process per stage",
        (
            "Each stage is a process with a uid of its own: the stage that reads the network holds no long-term key. "
            "Beside each process waits a spare. It takes over when the process dies, and kills it when it hangs."
        ),
    ),
    (
        "The handshake",
        (
            "A gateway sends nothing before its first packet. "
            "That packet waits while two messages make the session's keys."
        ),
    ),
    (
        "Ping, both ways, IPv4 and IPv6",
        "The system's own ping, through both TUN devices and every stage.",
    ),
    (
        "A file over TCP while processes are killed",
        (
            "A killed process loses only the packets in its hands, a stopped one those that it keeps waiting. "
            "TCP sends them again: the connection notices only a pause."
        ),
    ),
    (
        "One more crypto worker, and one fewer",
        "`stagewire scale` moves a peer to another crypto worker and back while numbered packets flow both ways.",
    ),
    (
        "What a listener on the wire sees",
        (
            "A listener has taken every frame between the gateways since before they started. It searches them for "
            "plain text. It searches the TUN device in the same way, to show that the search can find it."
        ),
    ),
    ("What the operator sees", f"`stagewire status {INTERFACE}` on gateway a."),
    (
        "A broken peer, and why",
        (
            "A slip in gateway b's file: the allowed-IPs of its peer a lose an address. The handshake still works, and "
            "traffic does not. `stagewire why` names the cause, and what to do."
        ),
    ),
)


class Show:
    """Runs the steps, which share the network, the listener on its wire, and the screen."""

    def __init__(self, screen: Screen, network: Network, watch: Watch, slices: int) -> None:
        self._screen, self._network, self._watch, self._slices = screen, network, watch, slices
        self._a, self._b = network.sides

    def run(self) -> None:
        """Runs every step. Raises an error of EXPECTED if a step cannot go on."""
        steps = (
            self._bring_up, self._handshake, self._pings, self._fetch, self._scale, self._secrecy, self._status, self._why,
        )  # fmt: skip
        for step, (title, why) in zip(steps, TEXTS, strict=True):
            with self._screen.step(title, why):
                step()

    def _bring_up(self) -> None:
        screen = self._screen
        screen.say_exactly(Text.from_markup(PICTURE))
        sides = self._network.sides
        names = " and ".join(str(side.gateway.config_path) for side in sides)
        with screen.waiting(f"stagewire up {names}"), ThreadPoolExecutor() as both:
            took = dict(zip(("a", "b"), both.map(self._network.start, sides), strict=True))
        self._watch.listen_inside(INTERFACE)
        processes = [side.processes() for side in self._network.sides]
        table = grid("stage", "what it does", "uid on a", "pid on a", "pid on b", right=(2, 3, 4))
        uids: set[int] = set()
        for stage, number in sorted(processes[0], key=lambda place: (STAGES.index(place[0]), place[1])):
            pids = [each[stage, number] for each in processes]
            uids.update(map(_uid, pids))
            shown = f" {number}" if stage == "device" else ""
            table.add_row(f"[bold]{stage}[/]{shown}", ROLES[stage], str(_uid(pids[0])), *map(str, pids))
        screen.table(table)
        count = sum(map(len, processes))
        screen.check(
            0 not in uids and len(uids) == count,
            f"no stage runs as root, and each of the {count} processes has a uid of its own",
        )
        screen.check(
            all(len(each) == len(STAGES) - 1 + WORKERS for each in processes),
            f"{len(processes[0])} processes at work on each gateway, {WORKERS} of them crypto workers",
        )
        with screen.waiting("waiting for the spares"):
            until(lambda: all(len(side.spares()) == len(STAGES) for side in self._network.sides), 30, "the spares")
        screen.check(
            True, f"{len(STAGES)} spares wait on each gateway, one of each stage; on a: {_listed(self._a.spares())}"
        )
        screen.check(
            all(side.gateway.status()["ready"] for side in self._network.sides),
            f"ready for traffic: a after {took['a']:.1f} s, b after {took['b']:.1f} s",
        )
        screen.conclude(
            f"{sum(map(len, processes))} processes and their spares, up in {took['a']:.1f} s and {took['b']:.1f} s"
        )

    def _handshake(self) -> None:
        screen = self._screen
        screen.check(not self._watch.report().handshakes, "no handshake so far")
        begun = time.monotonic()
        first = ping(self._a.namespace, self._b.inner4, timeout=5)
        took = (time.monotonic() - begun) * 1000
        until(
            lambda: all(side.peer()["last_handshake_unix_s"] for side in self._network.sides),
            10,
            "both ends to report the handshake",
        )
        screen.check(
            first.received == 1, f"gateway a pings {self._b.inner4}: answered after {took:.0f} ms, handshake included"
        )
        seen = self._watch.report().handshakes
        owners = {side.outer: side.label for side in self._network.sides}
        table = grid("on the wire", "message", "from")
        for at, source, kind in seen:
            table.add_row(_clock(at), kind, f"gateway {owners[source]} ({source})")
        screen.table(table)
        kinds = [(owners[source], kind) for _, source, kind in seen[:2]]
        if kinds != [("a", "initiation"), ("b", "response")]:
            raise AssertionError(f"expected one initiation of a and one response of b, the wire had {kinds}")
        later = f"{(seen[1][0] - seen[0][0]) * 1000:.1f} ms"
        screen.check(True, f"a initiated, b responded {later} later")
        table = grid("as status tells it", "peer", "its endpoint", "last handshake")
        for side in self._network.sides:
            peer = side.peer()
            table.add_row(
                f"gateway {side.label}",
                f"{peer['public_key'][:12]}…",
                peer["endpoint"],
                _clock(peer["last_handshake_unix_s"]),
            )
        screen.table(table)
        screen.conclude(f"a initiated, b responded {later} later")

    def _pings(self) -> None:
        screen = self._screen
        all_times: list[float] = []
        table = grid("from", "to", "answered", "fastest", "average", "slowest", right=(2, 3, 4, 5))
        lost = 0
        for here, there in ((self._a, self._b), (self._b, self._a)):
            for address in (there.inner4, there.inner6):
                report = ping(here.namespace, address, PINGS, interval=0.1)
                times = [float(each) for each in RTT.findall(report.output)] or [0.0]
                shown = (f"{each:.1f} ms" for each in (min(times), sum(times) / len(times), max(times)))
                table.add_row(f"gateway {here.label}", address, f"{report.received} of {report.sent}", *shown)
                lost += report.sent - report.received
                all_times += times
        screen.table(table)
        screen.check(not lost, f"all {4 * PINGS} requests were answered")
        screen.conclude(
            f"{4 * PINGS - lost} of {4 * PINGS} answered, {sum(all_times) / len(all_times):.1f} ms on average"
        )

    def _fetch(self) -> None:
        screen = self._screen
        a, b = self._a, self._b
        targets = (
            Target(a, "tun"),
            Target(b, "device", b.peer()["worker"]),
            Target(b, "conn"),
            Target(a, "key"),
            Target(a, "conn", fault=signal.SIGSTOP),
        )
        fetch = Fetch(screen, a, b, FILE_SIZE, FILE_SEED)
        handshakes = len(self._watch.report().handshakes)
        fetch.run(targets)
        screen.table(table_of(fetch.faults))
        under_way = [each for each in fetch.faults if each.bytes_then < FILE_SIZE]
        screen.check(
            len(under_way) == len(targets), f"{len(under_way)} processes were killed while the file was on its way"
        )
        screen.check(
            all(each.old_pid != each.new_pid for each in fetch.faults),
            "each time a spare took over, and the one TCP connection went on",
        )
        again = len(self._watch.report().handshakes) - handshakes
        screen.check(again > 0, f"the worker's session keys died with it: {again} messages of new handshakes since")
        report = fetch.report
        screen.check(report.size == FILE_SIZE, f"SHA-256 at both ends: [dim]{report.sha256}[/]")
        rate = report.size * 8 / report.seconds / 1e6
        screen.say(f"  {report.size / MIB:.0f} MiB in {report.seconds:.1f} s, {rate:.0f} Mbit/s", "dim")
        slowest = max((each.took for each in fetch.faults if each.target.fault == signal.SIGKILL), default=0.0)
        pause = max((each.stall for each in fetch.faults), default=0.0)
        screen.conclude(
            f"{report.size / MIB:.0f} MiB intact; {len(under_way)} deaths, killed ones replaced within "
            f"{slowest * 1000:.0f} ms, longest pause {pause:.2f} s"
        )

    def _scale(self) -> None:
        screen, a, b = self._screen, self._a, self._b
        table = grid("gateway a", "took", "worker of its peer", "longest pause", "lost", right=(1, 2, 3, 4))
        worst = 0.0
        for workers in (WORKERS + 1, WORKERS):
            home = a.peer()["worker"]
            with (
                NumberedStream(a.namespace, b.namespace, b.inner4, SCALE_RATE) as out,
                NumberedStream(b.namespace, a.namespace, a.inner4, SCALE_RATE) as back,
            ):
                begun = time.monotonic()
                with screen.waiting(f"stagewire scale {workers}"):
                    a.gateway.command("scale", str(workers), INTERFACE, timeout=60)
                took = time.monotonic() - begun
                reports = out.finish(), back.finish()
            pause = max(report.longest_gap for report in reports)
            worst = max(worst, pause)
            table.add_row(
                f"stagewire scale {workers}",
                f"{took:.1f} s",
                f"{home} → {a.peer()['worker']}",
                f"{pause * 1000:.0f} ms",
                f"{sum(report.lost for report in reports)} of {sum(report.sent for report in reports):,}",
            )
            screen.check(
                sum(stage == "device" for stage, _ in a.processes()) == workers
                and not any(report.duplicates for report in reports),
                f"{workers} workers, and no packet came twice",
            )
        screen.table(table)
        screen.conclude(f"{WORKERS} → {WORKERS + 1} → {WORKERS} workers, longest pause {worst * 1000:.0f} ms")

    def _secrecy(self) -> None:
        screen = self._screen
        self._send_marker()
        until(lambda: self._watch.report().pair, 10, "the sentence on the wire")
        report = self._watch.report()
        self._messages(report)
        self._search(report)
        self._pair(report)
        screen.conclude(f"{report.wire.frames:,} frames, no plain byte, no nonce twice")

    def _send_marker(self) -> None:
        """Sends a sentence in a UDP datagram from a to b, through the tunnel."""
        receiver = self._b.namespace.udp_socket(self._b.inner4)
        receiver.settimeout(5)
        self._a.namespace.udp_socket(self._a.inner4).sendto(MARKER, receiver.getsockname())
        self._screen.check(
            receiver.recv(2048) == MARKER, f"gateway a sent a sentence to b: [italic]{MARKER.decode()}[/]"
        )

    def _messages(self, report: Report) -> None:
        screen = self._screen
        table = grid("frames on the wire", "", right=(1,))
        for kind in KINDS.values():
            table.add_row(f"WireGuard {kind}", f"{report.kinds[kind]:,}")
        table.add_row("  of them keepalives", f"{report.keepalives:,}")
        table.add_row("ARP and IPv6 neighbour discovery on the link", f"{report.link:,}")
        table.add_row("ICMP, sent while conn-service was away", f"{report.refused:,}")
        table.add_row("anything else", f"{len(report.unexpected):,}")
        screen.table(table)
        missed = report.wire.missed + report.inside.missed
        screen.check(
            not missed, "the listener missed no frame" if not missed else f"the listener missed {missed:,} frames"
        )
        others = f": {report.unexpected[0]}" if report.unexpected else ""
        screen.check(not others, f"the wire carries only WireGuard's messages, and what IP itself needs{others}")
        screen.check(
            not report.nonces_again and report.nonces > 0,
            f"{report.nonces:,} transport messages, no (receiver index, counter) twice",
        )

    def _search(self, report: Report) -> None:
        screen, all_slices = self._screen, self._slices
        table = grid("searched for", "in the TUN", "on the wire", right=(1, 2))
        table.add_row(
            f"{all_slices:,} slices of the file, 16 bytes each",
            *(f"{len(found.pieces):,}" for found in (report.inside, report.wire)),
        )
        for name, what in (("marker", "the sentence"), ("ping", "what ping fills its packets with")):
            table.add_row(what, *(f"{found.markers[name]:,}" for found in (report.inside, report.wire)))
        table.add_row("bytes searched", *(f"{found.size / MIB:.0f} MiB" for found in (report.inside, report.wire)))
        screen.table(table)
        inside, wire = report.inside, report.wire
        screen.check(
            len(inside.pieces) >= ENOUGH_SLICES * all_slices and all(inside.markers[name] for name in MARKERS),
            f"in the TUN it finds {len(inside.pieces) / all_slices:.1%} of the slices; the others lie across two packets",
        )
        screen.check(not wire.pieces and not wire.markers.total(), "on the wire, the same search finds nothing")

    def _pair(self, report: Report) -> None:
        """Prints the sentence in the TUN and on the wire."""
        if report.pair is None:
            return
        inner, outer = report.pair
        for title, data in (
            ("the sentence, as it entered the TUN", inner),
            ("the datagram that carried it over the wire", outer),
        ):
            self._screen.gap()
            self._screen.say(title, "dim")
            self._screen.say_exactly(_dump(data))

    def _status(self) -> None:
        screen = self._screen
        ours, theirs = pty.openpty()  # `stagewire status` fits its table to the terminal's width
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, screen.console.width - 4, 0, 0))
        variables = [f"{name}={value}" for name, value in environment(self._a).items()]
        process = self._a.namespace.popen(
            "env", *variables, executable("stagewire"), "status", INTERFACE, output=theirs
        )
        os.close(theirs)
        said = b""
        try:
            while more := os.read(ours, 4096):
                said += more
        except OSError:  # EIO: the last writer has closed the terminal
            pass
        os.close(ours)
        screen.say_exactly(Text.from_ansi(said.decode().replace("\r\n", "\n")), 3)
        until(lambda: self._a.peer()["rx_bytes"] >= FILE_SIZE, 5, "the counters to include the file")
        status = self._a.gateway.status()
        services, peer = status["services"], status["peers"][0]
        screen.gap()
        screen.check(process.wait(5) == 0 and status["ready"], "stagewire status says that all stages are ready")
        screen.check(
            all(each["state"] == "RUNNING" and not each["fault"] for each in services),
            "every process runs, without a fault",
        )
        screen.check(peer["rx_bytes"] >= FILE_SIZE, f"its counters agree: {peer['rx_bytes'] / MIB:.0f} MiB received")
        screen.conclude(f"{len(services)} processes running, {peer['rx_bytes'] / MIB:.0f} MiB received")

    def _why(self) -> None:
        screen, a, b = self._screen, self._a, self._b
        path = b.gateway.config_path
        right = path.read_text()
        path.write_text(right.replace(f"{a.inner4}/32", f"{ELSEWHERE}/32"))
        b.gateway.command("reload", INTERFACE)
        lost = ping(a.namespace, b.inner4, PINGS, timeout=0.2)
        screen.check(not lost.received, f"gateway a pings {b.inner4}: {lost.received} of {lost.sent} answered")
        screen.say("stagewire why 'gateway a'", "dim")
        said = b.gateway.command("why", "gateway a", INTERFACE, check=False)
        screen.say_exactly(said.stdout.rstrip(), 3)
        screen.gap()
        screen.check(a.inner4 in said.stdout, f"it names {a.inner4}, which the file lacks")
        path.write_text(right)
        b.gateway.command("reload", INTERFACE)
        mended = ping(a.namespace, b.inner4, PINGS)
        screen.check(mended.received == mended.sent, f"mended: {mended.received} of {mended.sent} answered")
        screen.conclude(f"the cause named, and mended: {mended.received} of {mended.sent} pings answered")


def _dump(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row)
        lines.append(f"{at:04x}  {row.hex(' '):47}  {text}")
    return "\n".join(lines)


def _uid(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _clock(unix_seconds: float) -> str:
    return datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC).strftime("%H:%M:%S.%f")[:-3] + " UTC"
