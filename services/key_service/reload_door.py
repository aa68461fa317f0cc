"""Takes edited files and operations on peers from the command, through a socket in key-service's folder, for root alone.

Each connection carries one of `control.requests`: a line of JSON with a text's length, and the text. The answer is a line
of JSON. A thread reads the text and works out the difference, which may take long. The loop makes the change.

    {"do": "apply", "dry_run": false, "confirm": 0, "trial": "…", "length": N}\\n<text>
          puts the file in force, unless `dry_run` is true
          -> {"error": "", "warning": "", "difference": ["~ MTU 1420 -> 1380"]}
          With `confirm`, all goes back to what was in force unless it is confirmed within so many seconds. Then the answer
          repeats `trial`, the number of this trial, unless nothing differs.
    {"do": "confirm", "length": 0}\\n    keeps it    -> {"error": ""}
    {"do": "unconfirmed", "trial": "…", "length": 0}\\n    -> {"error": "", "left": 17.5, "ended": ""}
          `left` is 0 if nothing waits for confirmation; `ended` is "kept" or "back" once that trial ended so.
    {"do": "backed_up", "output": "wg0.backup", "length": 0}\\n    notes it in the audit    -> {"error": ""}
    {"do": "operate", "operation": {...}, "length": N}\\n<text>    changes peers of the file, which must be in force
          -> {"error": "", "write": N}\\n<new text>    the client puts this into the file, and says {"error": ""}\\n
          -> {"error": "", "warning": "", "difference": [...]}    the change holds
    {"do": "adopt", "length": N}\\n<text>    puts a file in force that differs in peers alone
          -> as for "apply"

The file comes first: a process that is killed in between leaves a change that `stagewire reload` completes.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from key_service import door_wire, in_force, trial_run
from key_service.live import LiveConfiguration, Task
from key_service.prepared import Prepared
from key_service.trial_run import Before
from key_service.waiting_trial import WaitingTrial
from stagewire import config, files, logs
from stagewire.audit import Asker, Audit
from stagewire.config import (
    ConfigError,
    InterfaceConfig,
    accepted,
    encode_key,
    guard,
    operations,
    peer_names,
    roster,
    unconfirmed,
)
from stagewire.config.accepted import Accepted
from stagewire.config.operations import Operation
from stagewire.config.roster import Refused
from stagewire.control import requests
from stagewire.control.requests import Asked
from stagewire.control.shapes import BadOperation
from stagewire.linux import privileges
from stagewire.linux.peer_credentials import credentials, peer_uid
from stagewire.loop import boot_time
from stagewire.process.stage import Stage

TIMEOUT: Final = 30.0
"""s that the command may pause while it sends a file or takes the answer."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Describes a change to make: a file's text, its configuration, and the audit's line.

    `whole` has the peers that are expired, too, and `file` only those that come into force. `only` has the peers to change;
    None stands for the whole configuration.
    """

    text: str = field(repr=False)
    whole: InterfaceConfig
    file: InterfaceConfig
    only: frozenset[bytes] | None
    what: str
    changes: list[str]
    asker: Asker
    confirm: int = 0
    """s within which the change must be confirmed; 0 for none."""
    off: tuple[frozenset[bytes], frozenset[bytes]] = (frozenset(), frozenset())
    """Peers of the text in force, and of the new one, that are out of use."""
    trial: str = ""
    """The number of the trial that waits for its confirmation."""
    exact: InterfaceConfig | None = None
    """What comes into force, if that is more than `file`: live changes that were there before."""


@dataclass(slots=True)
class _Request:
    """Holds a change that the thread has worked out, and the outcome of the loop's part."""

    wanted: _Wanted
    kept: Accepted
    fresh: Path
    """The path of the text that will replace the accepted text."""
    made: threading.Event = field(default_factory=threading.Event)
    code: int = 0
    said: str = ""
    """host-service's refusal or silence, in a line."""
    before: InterfaceConfig | None = None
    after: InterfaceConfig | None = None
    """The configuration in force before and after the change."""


class ReloadDoor:
    """Listens on the loop. `door_wire.listen` opens `listener` as root."""

    def __init__(
        self,
        stage: Stage,
        listener: socket.socket,
        live: LiveConfiguration,
        text: in_force.Kept,
        audit: Audit,
        tell: Callable[[str, list[str], InterfaceConfig, InterfaceConfig], None],
    ) -> None:
        """Takes `tell`, which hears of each change: what it is, a line for each difference, and what was and is in force."""
        self._stage = stage
        self._tell = tell
        self._audit = audit
        self._text = text
        self._listener = listener
        self._live = live
        self._asked: _Request | None = None
        self._busy = threading.Lock()
        self._waiting = WaitingTrial(stage.environment.run)
        stage.loop.add_timed(self)
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        stage.loop.add(listener.fileno(), self._accept)
        stage.loop.add(self._wakeup.fileno(), self._on_asked)

    # --- on the loop ---------------------------------------------------------------------------------------

    def _accept(self, _now: float) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            if peer_uid(connection) not in {0, os.geteuid()}:
                connection.close()
                return
            connection.settimeout(TIMEOUT)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _on_asked(self, _now: float) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(64)
        request, self._asked = self._asked, None
        if request is None:
            return
        registry, wanted = self._live.registry, request.wanted

        def work_out(prepared: Prepared) -> Iterator[None]:
            request.before = registry.snapshot()
            if wanted.only is None:
                return self._whole(prepared, wanted)
            return prepared.work_out_peers(wanted.file, wanted.only)

        def remember() -> Iterator[None]:
            if wanted.confirm:
                self._remember_before(wanted)
            self._audit.write(wanted.asker, wanted.what, wanted.changes)
            try:
                files.put_over(request.fresh, accepted.path(self._stage.environment.run))
            except OSError:
                self._audit.take_back()
                raise
            yield

        def made() -> None:
            request.after = registry.snapshot()
            self._keep(request, with_all=wanted.file != request.after)
            self._begin_trial(wanted)
            self._tell_of(request)
            if wanted.only is not None and (lost := registry.lost()):
                registry.forget(lost)
                self._text.forget(lost)

        def done(code: int) -> None:
            request.code = code
            if code:
                with suppress(OSError):
                    files.clear(request.fresh)
                if wanted.confirm:
                    self._forget_trial()
            request.made.set()

        def said(line: str) -> None:
            request.said = line

        self._live.make(Task(work_out, remember, done, whole=True, said=said, made=made))

    def _tell_of(self, request: _Request) -> None:
        if request.before is not None and request.after is not None:
            self._tell(request.wanted.what, request.wanted.changes, request.before, request.after)

    def _keep(self, request: _Request, *, with_all: bool) -> None:
        """Begins a new journal upon the new text."""
        try:
            self._text.accept(request.kept)
            store = in_force.journal_of(self._stage.environment.run, request.kept)
        except OSError as error:
            self._stage.log.error("cannot store live changes", reason=str(error))
            return
        self._live.begin_journal(store, with_all=with_all)

    def _whole(self, prepared: Prepared, wanted: _Wanted) -> Iterator[None]:
        yield from prepared.work_out_file(wanted.exact or wanted.file)
        prepared.file = wanted.file

    # --- a file that waits for its confirmation ----------------------------------------------------------------

    def _remember_before(self, wanted: _Wanted) -> None:
        """Stores what is in force now. Raises OSError."""
        unconfirmed.note(self._stage.environment.state, wanted.text)
        operation = b"".join(self._live.as_operation())
        before = Before(boot_time() + wanted.confirm, self._text.kept, operation, wanted.trial)
        trial_run.store(self._stage.environment.run, before)

    def _begin_trial(self, wanted: _Wanted) -> None:
        """Begins a trial of what is in force now, if it is one. Any other change confirms itself."""
        if wanted.confirm:
            self._waiting.begin()
        elif wanted.exact is None:
            unconfirmed.forget(self._stage.environment.state)

    def _forget_trial(self) -> None:
        """Forgets a trial whose change was not made."""
        trial_run.forget(self._stage.environment.run)
        unconfirmed.forget(self._stage.environment.state)

    def next_deadline(self) -> float | None:
        """Returns when to go back."""
        return self._waiting.due()

    def act(self, now: float) -> None:
        """Goes back once the time for the confirmation is over."""
        due = self._waiting.due()
        # A thread may confirm it meanwhile.
        if due is not None and due <= now and (before := self._waiting.try_to_go_back()) is not None:
            threading.Thread(target=self._go_back, args=(before,), daemon=True).start()

    def _go_back(self, before: Before) -> None:
        with self._busy:
            if self._waiting.before is not before:  # confirmed meanwhile
                self._waiting.tried()
                return
            reason = ""
            try:
                whole, exact = before.configurations(self._stage.environment.config)
                changes = config.difference(self._live.registry.snapshot(), exact)
                file = operations.in_force(whole, time.time())
                asker = Asker(os.geteuid(), os.getpid(), "key-service")
                what = "back to the file before"
                wanted = _Wanted(before.kept.text, whole, file, None, what, changes, asker, exact=exact)
                reason = self._have_made(wanted)["error"]
            except ConfigError as error:
                reason = str(error)
            if reason:
                self._stage.log.error("cannot go back to what was in force", reason=reason)
                self._waiting.put_off(before)
            else:
                self._stage.log.warning("went back to what was in force: no confirmation came")
                self._waiting.end(before, trial_run.BACK)
            self._waiting.tried()

    def _confirmed(self, asker: Asker) -> dict[str, Any]:
        if (before := self._waiting.before) is None:
            late = ": no confirmation came in time, so all went back" if self._waiting.last_went_back else ""
            return {"error": f"nothing waits for a confirmation{late}"}
        unconfirmed.forget(self._stage.environment.state)
        self._waiting.end(before, trial_run.KEPT)
        self._stage.log.info("confirmed what was applied")
        with suppress(OSError):  # the log has it too
            self._audit.write(asker, "confirm", [])
        return {"error": ""}

    def _backed_up(self, output: str, asker: Asker) -> dict[str, Any]:
        try:
            self._audit.write(asker, "backup", [f"to {logs.cleaned(output)}"])
        except OSError as error:
            return {"error": f"{self._stage.environment.state}: {error.strerror}"}
        return {"error": ""}

    # --- in the thread -------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, suppress(OSError):
            try:
                asked = requests.from_json_untrusted(door_wire.heard(stream))
                text = door_wire.text(stream, asked.length)
                if isinstance(asked.request, requests.Unconfirmed):
                    number = asked.request.trial
                    # In this order: a trial that ends in between has ended, and is not an unknown one.
                    left, ended = self._waiting.left(), self._waiting.how_it_ended(number)
                    answer: dict[str, Any] = {"error": "", "left": left, "ended": ended}
                else:
                    with self._busy:
                        answer = self._answer(asked, text, connection, stream)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                why = f" ({error})" if isinstance(error, BadOperation) else ""
                mend = "use the `stagewire` of its version"
                answer = {"error": f"key-service does not understand this command{why}; {mend}"}
            door_wire.say(connection, answer)

    def _answer(self, asked: Asked, text: str, connection: socket.socket, stream: BinaryIO) -> dict[str, Any]:
        theirs, request = credentials(connection), asked.request
        asker = Asker(theirs.uid, theirs.pid, logs.cleaned(asked.by))
        if isinstance(request, requests.Confirm):
            return self._confirmed(asker)
        if isinstance(request, requests.BackedUp):
            return self._backed_up(request.output, asker)
        if self._waiting.before is not None and not (isinstance(request, requests.Apply) and request.dry_run):
            name = self._stage.environment.interface
            left = f"{self._waiting.left():.0f} s"
            return {"error": f"a file waits for {left} for its confirmation: `stagewire confirm {name}`"}
        try:
            match request:
                case requests.Apply(dry_run, confirm, trial):
                    number = trial or unconfirmed.new_number()
                    if not number.isalnum() or not number.isascii():
                        raise ValueError
                    return self._apply(text, asker, confirm, number, dry_run=dry_run)
                case requests.Operate(operation):
                    return self._operate(operation, text, asker, connection, stream)
                case requests.Adopt():
                    return self._adopt(text, asker)
        except ConfigError as error:
            return {"error": str(error)}
        except Refused as refused:
            return {"error": str(refused)}
        raise ValueError

    def _apply(self, text: str, asker: Asker, confirm: int, number: str, *, dry_run: bool) -> dict[str, Any]:
        registry, whole = self._live.registry, self._parsed(text)
        file = operations.in_force(whole, time.time())
        self._expect_ends_to_come(whole)
        off = self._off(self._text.kept.text), self._off(text)
        changes = _difference(registry.snapshot(), registry.with_file(file), off)
        if dry_run:
            return {"error": "", "difference": changes}
        trial = number if confirm and changes else ""
        what = f"apply --confirm {confirm}" if trial else "apply"
        wanted = _Wanted(text, whole, file, None, what, changes, asker, confirm if trial else 0, off, trial)
        answer = self._have_made(wanted)
        return answer if answer["error"] or not trial else {**answer, "trial": trial}

    def _off(self, text: str) -> frozenset[bytes]:
        """Returns the peers of a text that are out of use or expired."""
        found = roster.read(text, str(self._stage.environment.config))
        return found.off | {peer.public_key for peer in found.whole.peers if operations.is_expired(peer, time.time())}

    def _expect_ends_to_come(self, whole: InterfaceConfig) -> None:
        """Raises Refused for a peer whose time an edited file sets, and is over."""
        known = {(peer.public_key, peer.expires) for peer in self._parsed(self._text.kept.text).peers}
        for peer in whole.peers:
            if (peer.public_key, peer.expires) not in known:
                try:
                    operations.check_end(peer, time.time())
                except Refused as refused:
                    raise Refused(
                        f"peer {peer_names.label(encode_key(peer.public_key), peer.name)}: {refused}"
                    ) from None

    def _operate(
        self, operation: Operation, text: str, asker: Asker, connection: socket.socket, stream: BinaryIO
    ) -> dict[str, Any]:
        path = self._stage.environment.config
        if not self._is_in_force(text):
            mend = f"`stagewire reload {self._stage.environment.interface}` applies it"
            return {"error": f"{path} has changed since it was read: {mend}, then try again"}
        live = {prefix: peer.public_key for peer in self._live.registry.snapshot().peers for prefix in peer.allowed_ips}
        outcome = operations.carry_out(text, str(path), operation, live, time.time())
        told = [*outcome.changes, *outcome.unchanged]
        if outcome.text == text:
            return {"error": "", "warning": "", "difference": told}
        wanted = self._wanted(text, outcome.text, operations.called(operation), list(outcome.changes), asker)
        data = outcome.text.encode("utf-8", "surrogateescape")
        door_wire.say(connection, {"error": "", "write": len(data)})
        connection.sendall(data)
        if error := door_wire.heard(stream)["error"]:
            return {"error": str(error)}
        answer = self._have_made(wanted)
        return answer if answer["error"] else {**answer, "difference": told}

    def _adopt(self, text: str, asker: Asker) -> dict[str, Any]:
        if (what := guard.beyond_peers(self._text.kept.text, text)) is not None:
            return {"error": f"the file differs from the one in force in {what}"}
        kept = self._text.kept
        wanted = self._wanted(kept.text, text, "change taken up again", [], asker)
        new = in_force.without_others(Accepted.anew(text), wanted.whole)
        changes = operations.between(kept.text, new.text, str(self._stage.environment.config))
        return self._have_made(replace(wanted, changes=[*changes]))

    def _wanted(self, before_text: str, text: str, what: str, changes: list[str], asker: Asker) -> _Wanted:
        """Describes a change of those peers in which two texts differ."""
        old, whole = self._parsed(before_text), self._parsed(text)
        file = operations.in_force(whole, time.time())
        before, after = ({peer.public_key: peer for peer in each.peers} for each in (old, file))
        only = frozenset(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        return _Wanted(text, whole, file, only, what, changes, asker)

    def _parsed(self, text: str) -> InterfaceConfig:
        return config.parse_text(text, self._stage.environment.config)

    def _is_in_force(self, text: str) -> bool:
        """Tells whether this is the text in force, comments aside."""
        kept = self._text.kept
        return kept.was(text) or self._parsed(text) == self._parsed(kept.text)

    def _have_made(self, wanted: _Wanted) -> dict[str, Any]:
        try:
            kept = in_force.without_others(Accepted.anew(wanted.text), wanted.whole)
            fresh = kept.prepare(self._stage.environment.run, privileges.uid_of("key"), privileges.group())
            request = _Request(wanted, kept, fresh)
        except OSError as error:
            return {"error": f"{self._stage.environment.run}: {error.strerror}"}
        self._asked = request
        self._waker.send(b"\0")
        request.made.wait()
        if request.code:
            return {"error": request.said or os.strerror(request.code)}
        assert request.before is not None and request.after is not None  # noqa: S101, PT018 - it was made
        return {
            "error": "",
            "warning": request.said,
            "difference": _difference(request.before, request.after, wanted.off),
        }


def _difference(
    before: InterfaceConfig, after: InterfaceConfig, off: tuple[frozenset[bytes], frozenset[bytes]]
) -> list[str]:
    return config.difference(before, after, off_before=off[0], off_after=off[1])
