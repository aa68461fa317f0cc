"""How `stagewire events` writes an event."""

import pytest

from stagewire.control.event import Event
from stagewire_cli import events, flow

CHANGES = ("+ PostUp echo hello (runs at the next up)", "~ MTU 1400 -> 1380", "+ peer " + "long" * 16)
PLACE = "[2001:db8:1234:5678:9abc:def0:1234:5678]:51820"


@pytest.mark.parametrize(
    "event",
    [Event("reloaded", what="apply", changes=CHANGES), Event("connected", public_key="q" * 43 + "=", endpoint=PLACE)],
    ids=lambda event: event.kind,
)
def test_an_event_fits_the_terminal_and_loses_no_word(event: Event) -> None:
    whole = events.line(event)
    assert flow.columns(whole) > 80
    assert events.lines(event, None) == whole
    first, *others = events.lines(event, 80).split("\n")
    assert all(flow.columns(line) <= 80 for line in (first, *others))
    assert all(line.startswith("    ") for line in others)
    assert "".join([first, *others]).replace(" ", "") == whole.replace(" ", "")
