"""Puts an edited file in force while traffic flows, all of it or nothing, for `stagewire reload`.

1. The command reads the file. A mistake ends it here.
2. key-service has host-service try its part. A taken port or route, or a refused address, refuses the whole file.
3. The change holds, and the command prints the difference.
4. The command sets DNS anew, and notes PreDown, PostDown and SaveConfig for `down`.

PreUp and PostUp wait for the next `up`.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stagewire import config
from stagewire.config import InterfaceConfig, unconfirmed
from stagewire.environment import Environment
from stagewire_cli import again, bring_up, confirming, dns, host_warnings, key_door, oddities, peers_file, the_file
from stagewire_cli.done import DNS, DoneList, Plan
from stagewire_cli.failures import Failed, NotUp

Say = Callable[[str], None]
_SUCCEEDED: Final = "key-service was replaced in the middle; the change holds"


def reload(
    environment: Environment,
    tell: Say,
    warn: Say,
    *,
    dry_run: bool = False,
    confirm: int = 0,
    confirmed: Callable[[str], None] = lambda _trial: None,
) -> None:
    """Applies the file; with `dry_run` only tells the difference. Raises Failed or ConfigError if nothing is changed.

    With `confirm`, key-service goes back after so many seconds, if anything differs. Then `confirmed` takes the trial's
    number, waits, and raises Failed unless the change holds.
    """
    if not bring_up.is_up(environment):
        raise NotUp(environment.interface)
    try:
        _reload(environment, tell, warn, dry_run=dry_run, confirm=confirm, confirmed=confirmed)
    except KeyboardInterrupt:
        if dry_run:
            raise
        mend = f"`stagewire plan {environment.interface}` tells whether the file is in force"
        if confirm:
            mend = f"if the file is in force, all goes back in {confirm} s, unless you run"
            mend += f" `stagewire confirm {environment.interface}`"
        raise Failed(f"interrupted: {mend}") from None


def _reload(
    environment: Environment, tell: Say, warn: Say, *, dry_run: bool, confirm: int, confirmed: Callable[[str], None]
) -> None:
    path = the_file.of(environment)
    # Another command must not change the file between its reading here and its coming into force.
    with peers_file.locked(path) as file:
        text = file.text
        interface = config.parse_text(text, path)
        # An editor that died half-way leaves an empty file.
        if not any(line.partition("#")[0].strip() for line in text.splitlines()):
            raise Failed(f"{path} is empty, so nothing is changed; `stagewire down` ends the interface")
        for mistake in interface.warnings:
            warn(f"warning: {mistake}")
        before = the_file.as_it_was_read(environment)
        for oddity in oddities.found(before, interface) if before is not None else ():
            warn(f"warning: {oddity}")
        number = unconfirmed.new_number()
        try:
            difference, warning, trial = again.asked(
                lambda: key_door.apply(environment, text, number, dry_run=dry_run, confirm=confirm),
                (key_door.Unanswered,) if dry_run else (),
            )
        except (key_door.NotAsked, key_door.Unanswered) as failed:
            if dry_run or isinstance(failed, key_door.NotAsked):
                raise Failed(again.unchanged(failed)) from None
            expect_to_hold(environment, text)
            difference, warning = config.difference(before, interface) if before is not None else [], _SUCCEEDED
            trial = number if confirm and key_door.trial(environment).left else ""
    for line in difference or [f"nothing differs: {path} is in force already"]:
        tell(line)
    if dry_run:
        return
    if warning:
        warn(f"warning: {warning}")
    if trial:
        confirmed(trial)
    elif difference:
        tell(f"{path} is in force")
    host_warnings.say(environment, interface, lambda text: warn(f"warning: {text}"))
    _note_for_down(environment, interface, before, warn)


def expect_to_hold(environment: Environment, text: str) -> None:
    """Asks the next key-service whether a text is in force. Raises Failed if it is not, or nobody can tell."""
    try:
        left, _, _ = again.asked(lambda: key_door.apply(environment, text, dry_run=True), (key_door.Unanswered,))
    except (key_door.NotAsked, key_door.Unanswered) as failed:
        mend = f"`stagewire plan {environment.interface}` tells later"
        raise Failed(f"{failed}, so it isn't known whether the change holds: {mend}") from None
    if left:
        raise Failed("key-service was replaced in the middle, and the change does not hold: try again")


def confirm(environment: Environment, warn: Say) -> None:
    """Keeps what was applied on trial, and does what waited for that. Raises Failed."""
    confirming.confirm(environment)
    # The command that applied it may be gone.
    if (interface := the_file.as_it_was_read(environment)) is not None:
        _note_for_down(environment, interface, None, warn)


def _note_for_down(
    environment: Environment, interface: InterfaceConfig, before: InterfaceConfig | None, warn: Say
) -> None:
    done_list = DoneList(environment.run)
    done = done_list.read()
    if done is None:
        return  # the interface of a plain supervisord has neither hooks nor DNS
    try:
        done_list.remember(Plan.of(interface))
    except OSError as error:
        warn(f"`down` will run the former PreDown and PostDown: the new ones can't be noted ({error.strerror})")
    known = done.plan.dns if done.plan.dns is not None else before.dns if before is not None else None
    if known is not None and tuple(known) == tuple(interface.dns):
        return
    if done.dns and not interface.dns:
        if problem := dns.unset_servers(done.dns):
            warn(problem)
        with suppress(OSError):
            done_list.undone(DNS)
    elif not interface.dns:
        dns.revert(environment.interface)
    try:
        dns.set_noted(environment.interface, interface.dns, done_list, warn)
    except OSError as error:
        warn(f"DNS is not set: `down` could not undo it, as it can't be noted ({error.strerror})")
