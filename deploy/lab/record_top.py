"""Records `stagewire top` at two sizes, for docs/recordings: `python -m lab.record_top FOLDER`, as root."""

import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.terminal import Terminal
from lab.traffic import ping
from lab.wait import until

SIZES: Final = ((80, 24), (200, 40))
PEERS: Final = {"Anna's phone": 1, "Zoë's laptop": 2, "office Basel": 3, "日本語": 4}
AWAY: Final = 5
"""The number of the peer that never answers."""


def main(folder: Path) -> None:
    spokes = {name: Spoke(number, name=name) for name, number in PEERS.items()}
    spokes["printer"] = Spoke(AWAY, name="printer")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp")))
        directory.chmod(0o755)
        network = stack.enter_context(Topology("r"))
        hub = Hub(network.b, directory, spokes)
        hub.gateway.env["STAGEWIRE_SPARES"] = "1"
        stack.enter_context(hub)
        for name in PEERS:
            stack.enter_context(hub.wireguard_go(spokes[name], network.a, Topology.B4))
            ping(network.a, spokes[name].gateway_inner[0], count=2, timeout=5)
        for name, rate in zip(PEERS, ("80M", "20M", "3M"), strict=False):
            spoke = spokes[name]
            hub.namespace.popen("iperf3", "-s", "-B", spoke.gateway_inner[0], "-p", str(5200 + spoke.number))
            ping(network.a, spoke.gateway_inner[0], count=2, timeout=5)
            way = ["-R"] if spoke.number == 1 else []
            network.a.popen(
                "iperf3", "-c", spoke.gateway_inner[0], "-p", str(5200 + spoke.number), "-t", "200", "-b", rate, *way
            )
        hub.namespace.popen("ping", "-i", "0.2", "-w", "200", spokes["printer"].inner[0])
        for columns, lines in SIZES:
            until(
                lambda: all(service["spares"] for service in hub.gateway.status()["services"]),
                60,
                "spares of all stages",
            )
            argv = hub.namespace.entering([executable("stagewire"), "top", hub.name, "--interval", "1"])
            with Terminal(argv, columns, lines, hub.gateway.env) as terminal:
                terminal.watch(7)
                hub.gateway.kill("device", signal.SIGKILL)
                terminal.watch(4)
                for keys, seconds in (("/printer\r", 1.5), ("\r", 3), ("\x1b", 1.5), ("s", 1.5)):
                    terminal.press(keys)
                    terminal.watch(seconds)
                terminal.press("q")
                terminal.end()
                terminal.record(folder / f"top-{columns}x{lines}.cast", f"stagewire top, {columns}x{lines}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
