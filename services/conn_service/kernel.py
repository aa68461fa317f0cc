"""Chooses what conn-service has compiled: each part by itself, so that a host without one has the others."""

from dataclasses import dataclass
from typing import Any, Final

from conn_service.batch import Batch
from stagewire.proto.admission import Admission
from stagewire.proto.cookie import PLAIN, Macs
from stagewire.proto.kernel import rule

_MODULES: Final = (
    "stagewire.linux.udp_trains", "stagewire.linux.udp_batch", "stagewire.proto.kernel.macs",
    "stagewire.proto.kernel.admission",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """Holds the parts; by default, Python does all work."""

    trains: Any = None
    """`linux.udp_trains`, or None."""
    batch: type[Batch] = Batch
    macs: Macs = PLAIN
    admits: type[Admission] = Admission
    said: str = ""
    """What `status` says of it."""


def load(wanted: str) -> Kernel:
    """Returns the parts for a wish as `rule.decide` takes it. Raises ImportError as it does."""
    found = [rule.load(wanted, module) for module in _MODULES]
    trains, batch, macs, admission = (module for module, _ in found)
    return Kernel(
        trains,
        batch.Batch if batch else Batch,
        macs or PLAIN,
        admission.Admission if admission else Admission,
        next((said for module, said in found if module is None), found[0][1]),
    )
