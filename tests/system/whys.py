"""Asks a gateway `why` about a peer, and breaks what lies between the two."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from tests import schemas

from lab import wait
from lab.hub import Hub, Spoke
from lab.namespaces import Namespace
from lab.traffic import ping

WITHIN_TRIED = 10.0
"""s that an answer may take, with a handshake tried and packets sent."""


def why(hub: Hub, about: Spoke | str, *options: str) -> dict[str, Any]:
    """Returns the JSON object of `stagewire why`, which must come in time."""
    text = about if isinstance(about, str) else about.keys.public
    begun = time.monotonic()
    asked = hub.gateway.command("why", text, hub.name, "--json", *options, check=False)
    assert time.monotonic() - begun < WITHIN_TRIED * wait.slack
    assert asked.stderr == "", asked.stderr
    found = json.loads(asked.stdout)
    assert asked.returncode == (0 if found["healthy"] else 4), asked.stdout
    assert isinstance(found, dict)
    schemas.check(found, "why")
    return found


def first(hub: Hub, about: Spoke | str, *options: str) -> str:
    """Returns the name of the first finding."""
    return str(why(hub, about, *options)["findings"][0]["id"])


def broken(namespace: Namespace, address: str, size: int | None = None) -> bool:
    """Tells that no packet comes back from an address."""
    return ping(namespace, address, size=size, timeout=0.5).received == 0


def works(namespace: Namespace, address: str) -> bool:
    """Tells that a packet comes back, if need be at the second try: the first may wait for a handshake."""
    return ping(namespace, address, count=2, timeout=3).received > 0


@contextlib.contextmanager
def rules(namespace: Namespace, hook: str, *texts: str) -> Iterator[None]:
    """Has nftables apply rules at a hook."""
    lines = ["add table inet broken", f"add chain inet broken c {{ type filter hook {hook} priority 0; }}"]
    namespace.run(
        "nft", "-f", "-", input="\n".join([*lines, *(f"add rule inet broken c {text}" for text in texts), ""])
    )
    try:
        yield
    finally:
        namespace.run("nft", "delete", "table", "inet", "broken")


def counted(hub: Hub, spoke: Spoke, reason: str) -> int:
    """Returns how often something happened to a peer, as `status` has it."""
    with contextlib.suppress(subprocess.SubprocessError, StopIteration):
        return sum(each["count"] for each in hub.peer(spoke)["reasons"] if each["reason"] == reason)
    return 0
