"""Undoes host-service's changes to the host after its end, by `host-service --undo`."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from stagewire.environment import Environment
from stagewire_cli import networks
from stagewire_cli.failures import Failed
from stagewire_cli.networks import Identity, Network
from stagewire_cli.supervision import Supervision

_PROGRAM: Final = Path(sys.executable).parent / "host-service"
WITHIN: Final = 30.0
"""s that `host-service --undo` may take."""


@contextmanager
def network_of(pids: Iterable[int], noted: Identity | None) -> Iterator[Network | None]:
    """Yields the network namespace that the living processes share, else the noted one, else ours. Raises Failed.

    Yields None if the noted one is gone. The command may run in another namespace than the interface. key-service and each
    worker have an empty one of their own.
    """
    shared = networks.shared_by(pids, least=1 if noted is None else 2)
    network = networks.of_process(shared) if shared is not None else None
    with ExitStack() as stack:
        try:
            if network is None:
                network = networks.find(noted) if noted is not None else networks.of_process(os.getpid())
            if network is not None:
                stack.callback(network.close)
                network.call(lambda: None)
        except OSError as error:
            raise Failed(f"{error.strerror}; run the command inside it") from None
        yield network


def undo_host(environment: Environment, network: Network | None = None, *, link_is_gone: bool = False) -> str:
    """Undoes the changes in `network`, by default in this process's; returns a line for each that it couldn't undo.

    To undo a change twice does no harm. `link_is_gone` says that the interface exists in no namespace any more.
    """
    if not environment.managed:
        return ""
    elsewhere = network is not None and not network.is_here
    try:
        done = subprocess.run(
            [str(_PROGRAM), "--undo", *(["--link-is-gone"] if link_is_gone else [])],
            env=Supervision(environment).variables(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=WITHIN,
            preexec_fn=network.enter if network is not None and elsewhere else None,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"host-service --undo: {error}"
    return done.stderr.strip()
