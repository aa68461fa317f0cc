"""Host names to endpoints, in a thread: the resolver blocks, and no packet may wait for it."""

import socket
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from stagewire.ipc.control import Resolve, Resolved
from stagewire.ipc.loop import Loop
from stagewire.proto.endpoint import Endpoint


def look_up(question: Resolve) -> Resolved:
    """Asks the host's resolver; takes the first answer, as `wg` does."""
    try:
        found = socket.getaddrinfo(question.host, question.port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP)
        family, _, _, _, address = found[0]
        packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
        scope = int(address[3]) if len(address) == 4 else 0
        return Resolved(question.public_key, Endpoint(packed, question.port, scope).pack(), "")
    except (OSError, UnicodeError, IndexError) as error:
        return Resolved(question.public_key, b"", f"{question.host}: {getattr(error, 'strerror', None) or error}")


def warm_up() -> None:
    """Makes the resolver load what it loads when first used: as another uid we may not be able to read it."""
    look_up(Resolve(b"", "localhost", 1))


class Resolver:
    """Answers questions on the loop, one after another."""

    def __init__(self, loop: Loop, on_answer: Callable[[Resolved], object]) -> None:
        self._on_answer = on_answer
        self._answers: list[Resolved] = []
        self._questions: SimpleQueue[Resolve] = SimpleQueue()
        self._ours, self._theirs = socket.socketpair()
        loop.add(self._ours.fileno(), self._deliver)
        self._thread: Thread | None = None

    def ask(self, question: Resolve) -> None:
        """The answer comes to `on_answer`."""
        if self._thread is None:  # only now: to start one waits for it to run, and packets wait for us
            # A daemon: a look-up that is under way must not keep us from stopping.
            self._thread = Thread(target=self._work, name="resolver", daemon=True)
            self._thread.start()
        self._questions.put(question)

    def _work(self) -> None:
        while True:
            self._answers.append(look_up(self._questions.get()))
            self._theirs.send(b"\0")

    def _deliver(self, _now: float) -> None:
        self._ours.recv(4096)
        while self._answers:
            self._on_answer(self._answers.pop(0))
