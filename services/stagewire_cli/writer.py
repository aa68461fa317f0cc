"""Writes into the configuration file what key-service changes by itself. It is a process of root's, a new one each time.

supervisord starts it with a connection of key-service's as its standard input (`writer_door.py`):

    {"version": 1, "do": "ExpirePeers"}\\n    -> {"error": ""}\\n    the file and key-service agree

The request says no more than that. Root finds the peers whose time is over in the file, by its own clock. A text of
key-service's has to equal the text that root works out.
"""

import json
import os
import signal
import socket
import sys
import time
from typing import Final

from stagewire import logs
from stagewire.config import ConfigError, marks, operations, roster
from stagewire.config.operations import ExpirePeers, Operation
from stagewire.control.operations import from_json_untrusted
from stagewire.control.shapes import BadOperation
from stagewire.environment import Environment
from stagewire.linux import privileges
from stagewire_cli import peers, peers_file
from stagewire_cli.failures import Failed
from stagewire_cli.peers_file import PeersFile

MAX_REQUEST: Final = 4096
"""Bytes."""
PATIENCE: Final = 10.0
"""s to wait for a command that changes the file."""
_REQUEST_WITHIN: Final = 2.0
"""s."""
_END_WITHIN: Final = 150
"""s, after which the kernel ends this process: a hostile key-service might answer without end."""


def request_untrusted(data: bytes) -> Operation:
    """Reads a request of key-service's. Raises BadOperation for all but the one kind that changes nothing else."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        raise BadOperation("the request is no JSON") from None
    operation = from_json_untrusted(said)
    if not isinstance(operation, ExpirePeers):
        raise BadOperation(f"root's writer takes {ExpirePeers.__name__} alone")
    return operation


def carry_out(environment: Environment, operation: Operation) -> None:
    """Changes the file, wholly or not at all. Raises Failed, Refused or ConfigError."""
    path = environment.config
    with peers_file.locked(path, PATIENCE) as file:

        def write(text: str) -> None:
            if text != _expected(file, operation):
                raise Failed(f"key-service wants another text than root works out from {path}; nothing is written")
            file.write(text)

        peers.by_key_service(environment, operation, file, write)


def _expected(file: PeersFile, operation: Operation) -> str:
    new = operations.carry_out(file.text, str(file.path), operation, {}, time.time()).text
    if marks.uncovered(new) != marks.uncovered(file.text):
        raise Failed(f"{file.path} would change in more than marks; nothing is written")
    return new


def serve(line: socket.socket, environment: Environment) -> None:
    """Reads a request, carries it out and answers. Raises OSError if key-service has gone."""
    line.settimeout(_REQUEST_WITHIN)
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_REQUEST and (piece := line.recv(MAX_REQUEST - len(data))):
        data += piece
    try:
        carry_out(environment, request_untrusted(data))
        error = ""
    except ConfigError as refused:
        error = str(refused.mistakes[0])
    except (Failed, BadOperation, roster.Refused) as refused:
        error = str(refused)
    line.sendall(json.dumps({"error": logs.cleaned(error)}).encode() + b"\n")


def main() -> int:
    """Returns the exit status."""
    signal.alarm(_END_WITHIN)
    privileges.hide_memory()
    with socket.socket(fileno=0) as line:
        try:
            serve(line, Environment.read(os.environ))
        except OSError:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
