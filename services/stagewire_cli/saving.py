"""Writes the configuration in force to its file, for `stagewire save` and SaveConfig, and loses no edit of an operator."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from stagewire import config
from stagewire.config import ConfigError, InterfaceConfig
from stagewire.environment import Environment
from stagewire.whole_files import Lock, WholeFile
from stagewire_cli import again, in_force, key_door, peers_file, the_file
from stagewire_cli.done import DoneList, Plan
from stagewire_cli.failures import Failed

Say = Callable[[str], None]


def save(environment: Environment, tell: Say, *, force: bool = False) -> None:
    """Writes the configuration in force into the file, whose comments stay. Refuses an edited file.

    With `force` it overwrites an edited file, and keeps a copy beside it. Raises Failed or ConfigError if the file is
    unchanged.
    """
    path = the_file.of(environment)
    # Another command must find the new text in force, too.
    with peers_file.locked(path) if path.exists() else nullcontext() as file:
        _save(environment, tell, file.lock_also if file is not None else None, force=force)
        with suppress(Failed):  # key-service may go on with the old text, which means the same
            key_door.apply(environment, config.load_text(path))


def _save(environment: Environment, tell: Say, lock: Lock, *, force: bool) -> None:
    path, read, now = _what_is_in_force(environment)
    if difference := _edited(path, read):
        if not force:
            raise Failed(
                "\n".join(_refusal(environment, path, difference, config.difference(_parsed(read, path), now)))
            )
        backup = _backed_up(path)
        put(path, config.merge(read, now), lock)
        if backup is None:
            tell(f"{path} was gone; it now has the configuration in force")
        else:
            tell(f"{path} had changed since it was read; its old text is in {backup}, and it now has what is in force")
    else:
        config.save(path, now, lock)
        tell(f"{path} has the configuration in force")


def save_as_it_goes_down(environment: Environment, say: Say) -> None:
    """Saves for SaveConfig; leaves an edited file alone and writes another beside it. Raises as `save` does."""
    path, read, now = _what_is_in_force(environment)
    if _edited(path, read):
        kept = beside(path, "in-force", config.merge(read, now).encode("utf-8", "surrogateescape"))
        say(f"{path} has changed since it was read, and stays as it is; the configuration in force is in {kept}")
        return
    try:
        config.save(path, now)
    except ConfigError as error:  # such as a live peer with the key of a peer out of use
        text = config.merge("", now)
        try:
            kept = beside(path, "in-force", text.encode("utf-8", "surrogateescape"))
        except Failed:
            raise error from None
        say(f"{error.mistakes[0].message}; {path} stays as it is; the configuration in force is in {kept}")


def _what_is_in_force(environment: Environment) -> tuple[Path, str, InterfaceConfig]:
    """Returns the file, its text when it was read, and the configuration in force. Raises Failed or ConfigError."""
    path = the_file.of(environment)
    read = the_file.what_was_read(environment)
    text = read.text if read is not None else config.load_text(path)
    lines = in_force.ask(environment.wg / f"{environment.interface}.sock")
    if lines is None:
        raise Failed("the `wg` socket doesn't answer, so the configuration in force isn't known; try again")
    standing = _parsed(text, path)
    _refuse_strange_commands(environment, path, standing)
    try:
        now = in_force.with_expired(in_force.over(standing, lines), standing, time.time())
    except (ValueError, IndexError):
        raise Failed("the `wg` socket gives no good answer, so the configuration in force isn't known") from None
    if standing.listen_port is None and again.asked(lambda: _has_free_port(environment)):
        now = replace(now, listen_port=None)
    return path, text, now


def _has_free_port(environment: Environment) -> bool:
    """Tells whether the open port is just one that was free. Raises NotAsked if key-service is silent."""
    from stagewire.control import query  # slow to import, which `down` avoids without SaveConfig

    answer = query.key_service(environment)
    if answer is None:
        raise key_door.NotAsked("key-service doesn't answer, so the port in force isn't known; try again")
    return answer.listen_port_set is None


def _refuse_strange_commands(environment: Environment, path: Path, standing: InterfaceConfig) -> None:
    """Raises Failed for a command in the text in force that root has not read itself.

    key-service keeps that text. But the next `up` would run its commands as root.
    """
    done = DoneList(environment.run).read()
    known = _commands(done.plan) if done is not None else set()
    with suppress(ConfigError):
        known |= _commands(config.parse_text(config.load_text(path), path))
    if strange := sorted(_commands(standing) - known):
        kind, command = strange[0]
        mend = f"`stagewire reload {environment.interface}` puts the file in force"
        raise Failed(f"the text in force has {kind} = {command}, which {path} hasn't, so nothing is saved; {mend}")


def _commands(of: InterfaceConfig | Plan) -> set[tuple[str, str]]:
    kinds = {"PreUp": of.pre_up, "PostUp": of.post_up, "PreDown": of.pre_down, "PostDown": of.post_down}
    return {(kind, command) for kind, commands in kinds.items() for command in commands}


def _edited(path: Path, read: str) -> list[str]:
    """Returns how the file differs from its text when it was read; nothing if only comments differ."""
    try:
        text = config.load_text(path)
        if text == read:
            return []
        return config.difference(_parsed(read, path), _parsed(text, path))
    except ConfigError as error:
        return [str(mistake) for mistake in error.mistakes]


def _backed_up(path: Path) -> Path | None:
    """Copies a file to one beside it; returns its name, None when there is no file. Raises Failed."""
    try:
        said = path.resolve().read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}; nothing is changed") from None
    return beside(path, "bak", said)


def _refusal(environment: Environment, path: Path, edited: list[str], live: list[str]) -> list[str]:
    name, there = environment.interface, path.exists()
    return [
        f"{path} has changed since it was read, and is left as it is",
        "changed in the file:",
        *(f"  {line}" for line in edited),
        "changed in the running gateway:",
        *(f"  {line}" for line in live or ["nothing"]),
        *([f"`stagewire reload {name}` applies the file, once it has no mistake;"] if there else []),
        f"`stagewire save --force {name}` writes the configuration in force"
        + (", and keeps a copy of the file beside it" if there else ""),
    ]


def _parsed(text: str, path: Path) -> InterfaceConfig:
    return config.parse_text(text, path)


def beside(path: Path, kind: str, data: bytes) -> Path:
    """Writes a new file beside another, for root alone; returns its name. Raises Failed."""
    target = path.resolve()
    names = (target.with_name(f"{target.name}.{kind}{f'.{number}' if number else ''}") for number in range(1000))
    try:
        for name in names:
            with suppress(FileExistsError), WholeFile(name) as file:
                file.write(data)
                file.appear()
                return name
    except OSError as error:
        raise Failed(f"{target.parent}: {error.strerror}; nothing is changed") from None
    raise Failed(f"{target}.{kind}.999 exists already: remove old copies; nothing is changed")


def put(path: Path, text: str, lock: Lock = None) -> None:
    """Replaces a file in one step. Raises Failed."""
    target = path.resolve()
    try:
        with WholeFile(target) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.replace(lock)
    except OSError as error:
        raise Failed(f"{target}: {error.strerror}; nothing is changed") from None
