"""Undoes the command's own changes for an interface, by the list in `done`: PreDown and PostDown hooks, and DNS.

It complains of a step that fails, and goes on.
"""

from collections.abc import Callable
from contextlib import suppress

from stagewire.config import ConfigError
from stagewire.environment import Environment
from stagewire_cli import dns, hooks
from stagewire_cli.done import DNS, POST_UP, PRE_UP, Done, DoneList
from stagewire_cli.failures import Failed


class Undoing:
    """Undoes the list of one interface; `failed` counts the steps that failed."""

    def __init__(self, environment: Environment, done: Done, say: Callable[[str], None]) -> None:
        self._interface = environment.interface
        self._list = DoneList(environment.run)
        self._done = done
        self._say = say
        self.failed = 0

    def run_pre_down(self) -> None:
        """Runs the PreDown hooks; the interface still works."""
        if POST_UP in self._done.steps:
            self._forget(POST_UP)
            hooks.run_all("PreDown", self._done.plan.pre_down, self._interface, self.complain)

    def attempt(self, step: Callable[[], None]) -> None:
        """Runs a step, and complains if it raises Failed or ConfigError."""
        try:
            step()
        except (Failed, ConfigError) as error:
            self.complain(str(error))

    def forget_dns(self) -> None:
        """Makes resolvconf(8) forget the interface's servers."""
        if self._done.dns:
            if problem := dns.unset_servers(self._done.dns):
                self.complain(problem)
            self._forget(DNS)

    def run_post_down(self) -> None:
        """Runs the PostDown hooks; the interface is gone."""
        if PRE_UP in self._done.steps:
            self._forget(PRE_UP)
            hooks.run_all("PostDown", self._done.plan.post_down, self._interface, self.complain)

    def complain(self, text: str) -> None:
        """Says that a step failed, and counts it."""
        self.failed += 1
        self._say(text)

    def _forget(self, step: str) -> None:
        with suppress(OSError):  # in a wiped folder or on a full disk, the step may be undone twice
            self._list.undone(step)
