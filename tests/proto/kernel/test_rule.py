"""Which of Python and a compiled module is taken, and why."""

import sys

import pytest

from stagewire.proto.kernel.rule import COMPILED, PLAIN, decide, load, why_not


@pytest.mark.parametrize(
    ("wanted", "lacking", "taken", "why"),
    [
        ("", "", COMPILED, "by default"),
        (COMPILED, "", COMPILED, "as STAGEWIRE_KERNEL says"),
        (PLAIN, "", PLAIN, "as STAGEWIRE_KERNEL says"),
        (PLAIN, "no compiler", PLAIN, "as STAGEWIRE_KERNEL says"),
        ("", "no compiler", PLAIN, "the compiled kernel can't be loaded: no compiler"),
    ],
)
def test_what_is_compiled_is_taken_unless_it_is_lacking_or_unwanted(
    wanted: str, lacking: str, taken: str, why: str
) -> None:
    assert decide(wanted, lacking) == (taken, why)


def test_what_is_wanted_and_lacking_is_an_error_that_says_why() -> None:
    with pytest.raises(ImportError, match=r"^STAGEWIRE_KERNEL: the compiled kernel can't be loaded: no compiler$"):
        decide(COMPILED, "no compiler")


def test_an_absent_module_and_a_foreign_byte_order_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not(None) == ""
    assert why_not(ImportError("no module")) == "it isn't built here: no module"
    monkeypatch.setattr(sys, "byteorder", "big")
    assert why_not(None) == "it needs a little-endian machine"


def test_a_module_is_loaded_or_its_place_stays_empty() -> None:
    module, why = load("", "json")
    assert (module.__name__, why) == ("json", "compiled, by default")
    assert load(PLAIN, "json") == (None, "plain, as STAGEWIRE_KERNEL says")
    module, why = load("", "stagewire.absent")
    assert module is None
    assert why.startswith("plain, the compiled kernel can't be loaded: it isn't built here")
    with pytest.raises(ImportError, match="isn't built here"):
        load(COMPILED, "stagewire.absent")
