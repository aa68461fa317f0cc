"""Defines the failures that a command reports to the operator."""


class Failed(Exception):  # noqa: N818 - the text is what the operator reads
    """Says what went wrong, in one line."""


class NotUp(Failed):
    """Says that nothing of an interface runs."""

    def __init__(self, interface: str) -> None:
        super().__init__(f"{interface} is not up")
