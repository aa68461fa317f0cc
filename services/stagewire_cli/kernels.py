"""Says which kernels carry a gateway's packets and handshakes, and refuses a start with one that can't be loaded."""

from typing import Any, Final

from stagewire.environment import Environment
from stagewire.proto.kernel import rule
from stagewire_cli.failures import Failed

MODULES: Final = (
    "stagewire.proto.kernel.cipher", "stagewire.proto.kernel.sealing", "stagewire.proto.kernel.opening",
    "stagewire.proto.kernel.steady", "stagewire.proto.kernel.symmetric", "stagewire.proto.kernel.macs",
    "stagewire.proto.kernel.admission", "stagewire.linux.tun_trains", "stagewire.linux.udp_trains",
    "stagewire.linux.udp_batch", "stagewire.linux.pipe_trains", "stagewire.linux.common_pages",
)  # fmt: skip
"""All compiled modules."""
MEND: Final = "install gcc, python3-dev and libssl-dev, then Stagewire again"


def refuse_unloadable(environment: Environment) -> None:
    """Raises Failed if the compiled kernel is asked for and one of its modules can't be loaded."""
    if environment.kernel != rule.COMPILED:
        return
    for module in MODULES:
        try:
            rule.load(environment.kernel, module)
        except ImportError as error:
            raise Failed(f"{error}; unset it, or {MEND}") from None


def in_use(status: dict[str, Any]) -> list[str]:
    """Names the kernels that the services of a status have, and why: one if all have the same, otherwise each service's."""
    found: dict[str, list[str]] = {}
    for service in status.get("services", []):
        if service.get("kernel"):
            found.setdefault(service["kernel"], []).append(service["service"])
    if len(found) < 2:
        return list(found)
    return [f"{kernel} ({', '.join(dict.fromkeys(services))})" for kernel, services in found.items()]
