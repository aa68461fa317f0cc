"""Reads QR codes as a phone does, by a library that did not draw them."""

import re

import numpy as np
import zxingcpp


def decoded(shown: str) -> str:
    """Returns what the QR code on a terminal says: two rows of modules to each line of half blocks."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    lines = [line for line in lines if line and set(line) <= set(" ▀▄█")]
    light = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}
    rows = [[light[letter][half] for letter in line] for line in lines for half in (0, 1)]
    width = max(map(len, rows))
    picture = np.array([row + [1] * (width - len(row)) for row in rows], dtype=np.uint8)
    found = zxingcpp.read_barcodes(np.kron(picture, np.ones((4, 4), dtype=np.uint8)) * 255)
    assert len(found) == 1, f"{len(found)} QR codes in {width} modules"
    return str(found[0].text)
