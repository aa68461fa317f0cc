from collections.abc import Callable

from stagewire.proto.agenda import Agenda
from stagewire.proto.kernel.sealing import Sealing
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Tunnel

def seal(sealing: Sealing, agenda: Agenda[Tunnel], young: float, now: float) -> list[int]: ...
def settle(
    opened: list[tuple[Tunnel, Session, bytes, int, bool]],
    agenda: Agenda[Tunnel],
    other: Callable[[Tunnel, Session, bytes, int, bool], None],
    now: float,
) -> None: ...
