"""Events on their way to a real web server that fails, hangs and comes back, and to a command."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.wait import until
from stagewire_cli.delivery import FIRST_PAUSE, LONGEST_PAUSE, Command, Undelivered, Webhook, deliver, to_each
from stagewire_cli.failures import Failed

BODY = json.dumps({"kind": "connected", "name": "\u202eevil"}).encode()


class Server:
    """Answers each POST with the next of `answers`: a status, or a way to misbehave. Afterwards with 200."""

    def __init__(self) -> None:
        self.answers: list[int | str] = []
        self.got: list[tuple[str, bytes, str]] = []
        outer, self.done = self, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, body, self.headers["Content-Type"]))
                answer = outer.answers.pop(0) if outer.answers else 200
                if answer == "hang":
                    outer.done.wait(60)
                elif answer == "drip":
                    for _ in range(600):
                        if outer.done.wait(0.05):
                            return
                        self.wfile.write(b"H")
                elif answer == "close":
                    self.connection.close()
                else:
                    assert isinstance(answer, int)
                    self.send_response(answer)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

            def finish(self) -> None:
                with suppress(OSError, ValueError):
                    super().finish()

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

        self.handler = Handler
        self.start(0)

    def start(self, port: int) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), self.handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.done.set()
    made.stop()


class Clock:
    """Pauses without waiting, and does something at the next pause."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.then: list[object] = []

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.then:
            step = self.then.pop(0)
            assert callable(step)
            step()


def test_a_server_that_fails_and_closes_is_tried_again_with_longer_pauses(server: Server) -> None:
    server.answers = [500, "close", 429, 301]
    said: list[str] = []
    clock = Clock()
    deliver(BODY, Webhook(f"http://127.0.0.1:{server.port}/in?x=1", 10), said.append, clock)
    assert server.got == [("/in?x=1", BODY, "application/json")] * 5
    assert clock.pauses == [FIRST_PAUSE * 2**step for step in range(4)]
    assert said == [
        "an event could not be delivered, and is tried again: the server answered 500",
        "delivered again, after 4 failures",
    ]


def test_a_server_that_is_away_and_comes_back_gets_the_event(server: Server) -> None:
    server.stop()
    clock, said, port = Clock(), list[str](), server.port
    clock.then = [lambda: None, lambda: server.start(port)]
    deliver(BODY, Webhook(f"http://127.0.0.1:{port}/", 10), said.append, clock)
    assert [body for _, body, _ in server.got] == [BODY]
    assert "Connection refused" in said[0]


@pytest.mark.parametrize("way", ["hang", "drip"])
def test_a_server_that_hangs_or_drips_is_given_up_in_time(server: Server, way: str) -> None:
    server.answers = [way]
    begun = time.monotonic()
    with pytest.raises(Undelivered) as failed:
        Webhook(f"http://127.0.0.1:{server.port}/", 0.5)(BODY)
    assert 0.4 < time.monotonic() - begun < 10
    assert not failed.value.for_good


def test_an_event_that_the_server_refuses_is_passed_over(server: Server) -> None:
    server.answers = [413]
    said: list[str] = []
    deliver(BODY, Webhook(f"http://127.0.0.1:{server.port}", 10), said.append, Clock())
    assert (len(server.got), said) == (1, ["an event was refused, and is passed over: the server answered 413"])


def test_a_receiver_that_is_down_holds_up_no_other_and_the_slowest_tells_how_far_all_are() -> None:
    down, got, reached = True, dict[str, list[bytes]](dead=[], alive=[]), list[int]()
    bodies = [(number + 1, b"%d" % number) for number in range(5)]

    class Over(Exception):  # noqa: N818
        pass

    def read() -> Iterator[tuple[int, bytes]]:
        yield from bodies
        until(lambda: reached[-1:] == [5], 10, "all to be delivered")
        raise Over

    def dead(body: bytes) -> None:
        nonlocal down
        if down:
            until(lambda: len(got["alive"]) == 5, 10, "the other to get everything")
            down = False
            raise Undelivered("down")
        got["dead"].append(body)

    with pytest.raises(Over):
        to_each([dead, got["alive"].append], read, reached.append, lambda _: None)
    assert got["dead"] == got["alive"] == [body for _, body in bodies]
    assert reached == [1, 2, 3, 4, 5]


def test_what_fails_in_reading_ends_all() -> None:
    def read() -> Iterator[tuple[int, bytes]]:
        for number in range(3):
            if number == 2:
                raise Failed("status-service does not answer")
            yield number, b""

    with pytest.raises(Failed, match="does not answer"):
        to_each([lambda _: None] * 2, read, lambda _: None, lambda _: None)


def test_pauses_are_bounded() -> None:
    attempts = iter(range(30))

    def send(_body: bytes) -> None:
        if next(attempts) < 29:
            raise Undelivered("no")

    clock = Clock()
    deliver(BODY, send, lambda _: None, clock)
    assert max(clock.pauses) == LONGEST_PAUSE


@pytest.mark.parametrize(
    "url", ["", "ftp://a/", "http://", "http://a b/", "http://a:x/", "http://me:secret@a/", "http://a/\r\nX: y"]
)
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(Failed) as refused:
        Webhook(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_command_reads_the_event_and_no_shell_does(tmp_path: Path) -> None:
    Command(f"sh -c 'cat > {tmp_path}/got'")(BODY)
    assert (tmp_path / "got").read_bytes() == BODY
    Command("true ; touch /nonexistent/x")(BODY)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("false", "false ended with status 1"),
        ("/nonexistent/x", "/nonexistent/x: No such file or directory"),
        ("sh -c 'printf \"a\\nb\\033[2J\" >&2; exit 3'", "sh ended with status 3: b\\x1b[2J"),
        ("sleep 60", "sleep did not end in 1 s"),
    ],
)
def test_a_command_that_fails_says_why(line: str, said: str) -> None:
    with pytest.raises(Undelivered) as failed:
        Command(line, 1.0)(BODY)
    assert str(failed.value) == said


@pytest.mark.parametrize("line", ["", "  ", "a 'b"])
def test_what_is_no_command_is_refused(line: str) -> None:
    with pytest.raises(Failed):
        Command(line)
