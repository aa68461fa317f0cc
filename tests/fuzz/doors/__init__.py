"""Holds every door; `DOORS` has them by name."""

from tests.fuzz.doors import control, datagrams, ends, files, inner, kernels, names, pages, trains_and_pipes
from tests.fuzz.doors.door import DOORS

__all__ = ["DOORS", "control", "datagrams", "ends", "files", "inner", "kernels", "names", "pages", "trains_and_pipes"]
