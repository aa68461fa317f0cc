"""Pipes by name: where they are, who may enter, and what they refuse."""

import os
import re
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from stagewire.linux import privileges
from stagewire.pipe import names as pipe_names
from stagewire.pipe.names import (
    CIPHER_IN,
    CIPHER_OUT,
    CONTROL,
    HANDSHAKE_IN,
    MAX_REPORT,
    MAX_TRAIN,
    PIPES,
    PLAIN_IN,
    PLAIN_OUT,
    TELEMETRY,
    Pipe,
)
from stagewire.pipe.pipes import Pipes, prepare_folders
from stagewire.stages import STAGES, WORKER

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives folders away, which needs root")


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name, zmq.Context() as context:
        directory = Path(name)
        directory.chmod(0o755)
        for stage in STAGES:
            prepare_folders(directory / "wg0", stage)
        yield Pipes(context, directory / "wg0")


def test_a_worker_has_pipes_of_its_own(pipes: Pipes) -> None:
    assert pipes.path(PLAIN_OUT, 3) == pipes.run / "device/plain-out.3"
    assert pipes.path(CONTROL) == pipes.run / "key/control"


def test_a_path_too_long_for_a_socket_is_refused_with_a_way_out() -> None:
    with zmq.Context() as context:
        for length, fits in ((107, True), (108, False)):
            run = Path("/") / ("x" * (length - len(f"//{CONTROL}")))
            pipes = Pipes(context, run)
            if fits:
                assert len(os.fsencode(pipes.path(CONTROL))) == length
                continue
            with pytest.raises(OSError, match="STAGEWIRE_RUN_DIR"):
                pipes.path(CONTROL)
        umlauts = Pipes(context, Path("/") / ("ü" * 50))  # bytes count, not letters
        with pytest.raises(OSError, match="longer than"):
            umlauts.path(CONTROL)


def test_the_longest_names_fit_the_default_folder() -> None:
    with zmq.Context() as context:
        pipes = Pipes(context, Path("/run/stagewire") / ("w" * 15))
        for pipe in (PLAIN_OUT, CIPHER_IN):
            assert len(os.fsencode(pipes.path(pipe, 63))) < 107


@root_only
def test_folders_belong_to_their_stage_and_the_group_may_only_pass_through(pipes: Pipes) -> None:
    found = pipes.run.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, privileges.group(), 0o710)
    for stage in STAGES:
        found = (pipes.run / stage).stat()
        owner = 0 if stage == WORKER else privileges.uid_of(stage)  # workers share a folder
        assert (found.st_uid, found.st_gid) == (owner, privileges.group())
        assert stat.S_IMODE(found.st_mode) == 0o710
    assert len({privileges.uid_of(stage) for stage in STAGES}) == len(STAGES)


@root_only
def test_wrong_owners_and_modes_are_set_right(pipes: Pipes) -> None:
    folder = pipes.run / "key"
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o777)
    prepare_folders(pipes.run, "key")
    found = folder.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (privileges.uid_of("key"), 0o710)


def as_user(uid: int, gid: int, *command: str) -> subprocess.CompletedProcess[str]:
    identity = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return subprocess.run([*identity, *command], capture_output=True, text=True, check=False)


@root_only
def test_another_user_sees_nothing_and_a_stage_cannot_replace_anothers_pipe(pipes: Pipes) -> None:
    path = pipes.path(CONTROL)
    with pipes.bind(CONTROL):
        for command in (["ls", str(pipes.run)], ["stat", str(path)], ["rm", "-f", str(path)]):
            refused = as_user(NOBODY, NOBODY, *command)
            assert refused.returncode != 0
            assert "Permission denied" in refused.stderr
        # conn-service's own uid may pass through key-service's folder, but neither look nor write.
        conn = privileges.uid_of("conn"), privileges.group()
        assert as_user(*conn, "stat", str(path)).returncode == 0
        for command in (["ls", str(path.parent)], ["rm", str(path)], ["touch", str(path.parent / "mine")]):
            assert as_user(*conn, *command).returncode != 0
        assert path.exists()


@pytest.mark.parametrize(("pipe", "limit"), [(CIPHER_OUT, MAX_TRAIN), (TELEMETRY, MAX_REPORT)])
def test_a_frame_over_the_limit_is_not_taken_in(pipes: Pipes, pipe: Pipe, limit: int) -> None:
    with pipes.bind(pipe) as reader, pipes.connect(pipe) as writer:
        assert writer.poll(2000, zmq.POLLOUT)
        writer.send(bytes(limit))
        assert reader.poll(2000)
        assert len(reader.recv()) == limit
        writer.send(bytes(limit + 1))
        assert not reader.poll(50)
    with pipes.bind(pipe) as reader, pipes.connect(pipe) as writer:
        assert writer.poll(2000, zmq.POLLOUT)  # the next one is served
        writer.send(b"small")
        assert reader.poll(2000)


def test_nothing_waits_for_a_reader_that_is_not_there(pipes: Pipes) -> None:
    with pipes.connect(PLAIN_IN) as writer:
        with pytest.raises(zmq.Again):
            writer.send(b"old", zmq.DONTWAIT)
        with pipes.bind(PLAIN_IN) as reader:
            assert writer.poll(2000, zmq.POLLOUT)
            writer.send(b"new", zmq.DONTWAIT)
            assert reader.poll(2000)
            assert reader.recv() == b"new"


def test_each_connection_has_a_name_of_its_own_and_an_answer_to_nobody_is_said(pipes: Pipes) -> None:
    """A stage must not be able to take another's name."""
    with ExitStack() as lives, pipes.bind(CONTROL) as router:
        names = []
        for word in (b"first", b"second"):
            dealer = lives.enter_context(pipes.connect(CONTROL))
            assert dealer.poll(2000, zmq.POLLOUT)
            dealer.send(word)
            assert router.poll(2000)
            name, said = router.recv_multipart()
            assert said == word
            names.append(name)
        assert names[0] != names[1]
        router.send_multipart([names[1], b"answer"])
        assert dealer.poll(2000)
        assert dealer.recv() == b"answer"
        with pytest.raises(zmq.ZMQError):  # nobody of that name: said, not swallowed
            router.send_multipart([b"conn.0.1", b"answer"])


@pytest.mark.parametrize("garbage", [b"", b"\0", bytes(64), b"\xff" * 9 + b"\x7f", b"GET / HTTP/1.0\r\n\r\n"])
def test_whatever_connects_and_talks_nonsense_the_others_are_served(pipes: Pipes, garbage: bytes) -> None:
    with pipes.bind(HANDSHAKE_IN) as reader:
        strangers = [socket.socket(socket.AF_UNIX) for _ in range(100)]
        for stranger in strangers:
            stranger.connect(str(pipes.path(HANDSHAKE_IN)))
            stranger.send(garbage)
        with pipes.connect(HANDSHAKE_IN) as writer:
            assert writer.poll(2000, zmq.POLLOUT)
            writer.send(b"honest")
            assert reader.poll(2000)
            assert reader.recv() == b"honest"
        for stranger in strangers:
            stranger.close()


def test_a_pipe_that_is_left_to_another_is_found_without_looking_again(pipes: Pipes) -> None:
    """Whoever connects between two holders waits in the kernel's queue of the socket that listens."""
    contexts: list[zmq.Context[zmq.Socket[bytes]]] = [zmq.Context() for _ in range(3)]
    run = pipes.run
    try:
        first = Pipes(contexts[0], run)
        file = first.path(PLAIN_IN)
        holder = first.bind(PLAIN_IN)
        left = {name: os.dup(descriptor) for name, descriptor in first.listeners.items()}
        made = file.stat().st_ino
        holder.close()
        contexts[0].destroy(linger=0)  # returns when it has closed its socket that listens; until then it would welcome
        first.close_listeners()
        writer = Pipes(contexts[1], run).connect(PLAIN_IN)
        assert not writer.poll(0, zmq.POLLOUT)
        second = Pipes(contexts[2], run, {**left, "pipe:other:0:0": os.open(os.devnull, os.O_RDONLY)})
        with second.bind(PLAIN_IN) as reader:
            assert file.stat().st_ino == made
            assert writer.poll(5000, zmq.POLLOUT)
            writer.send(b"train")
            assert reader.recv() == b"train"
        assert [name.split(":")[1] for name in second.inherited] == ["other"]
        second.close_inherited()
        assert not second.inherited
        file.unlink()
        third = Pipes(contexts[2], run, second.listeners.copy())
        third.bind(PLAIN_IN).close()  # its file is gone: another in its place
        assert file.exists()
        assert third.inherited
        for each in (second, third):
            each.close_listeners()
    finally:
        for context in contexts:
            context.destroy(linger=0)


def test_a_pipe_that_each_worker_has_needs_a_number_and_no_other_takes_one(pipes: Pipes) -> None:
    for pipe in PIPES:
        with pytest.raises(ValueError, match=f"{pipe}: (needs|has no) worker's number"):
            pipes.path(pipe, None if pipe.per_worker else 0)


def test_what_carries_descriptors_or_text_is_no_pipe_of_zeromqs(pipes: Pipes) -> None:
    for pipe in PIPES:
        if pipe.limits is None:
            for call in (pipes.bind, pipes.connect):
                with pytest.raises(ValueError, match=str(pipe)):
                    call(pipe)


def test_a_service_names_only_the_pipes_that_it_binds_or_connects_to() -> None:
    names = {pipe: name for name, pipe in vars(pipe_names).items() if isinstance(pipe, Pipe)}
    everywhere = {CONTROL, TELEMETRY}  # `process` connects for every stage
    for stage in STAGES:
        folder = Path(__file__).parents[2] / "services" / f"{stage}_service"
        words = set(re.findall(r"\w+", "".join(file.read_text() for file in folder.rglob("*.py"))))
        expected = {
            pipe for pipe in PIPES if stage == pipe.binder or (stage in pipe.connects and pipe not in everywhere)
        }
        assert {pipe for pipe in PIPES if names[pipe] in words} == expected, stage


def test_the_page_for_writers_of_stages_lists_every_pipe_of_zeromqs() -> None:
    page = (Path(__file__).parents[2] / "docs/PIPES.md").read_text()
    words: dict[int, str] = {
        zmq.PULL: "PULL",
        zmq.PUSH: "PUSH",
        zmq.ROUTER: "ROUTER",
        zmq.DEALER: "DEALER",
        zmq.REP: "REP",
        zmq.REQ: "REQ",
    }
    listed = re.findall(r"^\| `(\S+)` \| (\w+) \| (\w+: [\w, ]+) \| .* \| (\d+) \|$", page, re.MULTILINE)
    expected = []
    for pipe in PIPES:
        if pipe.limits is not None and pipe.kind.binds is not None and pipe.kind.connects is not None:
            connects = ", ".join(pipe.connects).replace(", ".join(STAGES), "every stage")
            row = (f"{pipe}.<n>" if pipe.per_worker else f"{pipe}", words[pipe.kind.binds])
            expected.append((*row, f"{words[pipe.kind.connects]}: {connects}", str(pipe.limits.high_water)))
    assert listed == expected
