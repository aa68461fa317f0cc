"""Opens Unix sockets as root, in folders that a stage can write."""

import os
import socket
from pathlib import Path

from stagewire import files
from stagewire.linux import descriptors


def listen(path: Path, waiting: int, owner: tuple[int, int] | None = None) -> socket.socket:
    """Opens a socket for root alone, or for `owner` (uid, gid) as well, whatever has its name. Raises OSError.

    The socket gets its name once it listens. `waiting` is how many connections may wait to be accepted.
    """
    fresh = path.with_name(f".{path.name}")
    files.clear(fresh)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    descriptors.allow(opened, allowed=False)
    before = os.umask(0o177)
    try:
        opened.bind(str(fresh))
        if owner is not None:
            os.chown(fresh, *owner)
        opened.listen(waiting)
        files.put(fresh, path)
    except OSError:
        opened.close()
        raise
    finally:
        os.umask(before)
    return opened
