"""Defines the messages by which key-service learns that a change holds. `messages` has all others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confirm:
    """Asks a stage for Confirmed, once it applies all that key-service said before. A worker also marks its pipes.

    The mark goes to tun- and conn-service behind all packets that the worker judged before, and makes them say Cleared.
    """

    number: int


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Says that a stage applies all that it was told before a Confirm."""

    number: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """Says that a worker's mark has come, so that all packets before it have left."""

    worker: int
    number: int
