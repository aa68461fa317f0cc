"""Packs the running environment's packages into wheels again, so that pip can install them without an index."""

import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def rebuild(name: str, folder: Path) -> None:
    """Writes a wheel of each dependency of a package into a folder."""
    waiting, done = [name], set()
    while waiting:
        found = distribution(waiting.pop())
        for text in found.requires or ():
            needed = Requirement(text)
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if wanted and needed.name.lower() not in done:
                done.add(needed.name.lower())
                waiting.append(needed.name)
                _wheel(distribution(needed.name), folder)


def _wheel(found: Distribution, folder: Path) -> None:
    lines = (found.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ").split("-") for line in lines if line.startswith("Tag: ")]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    title = f"{found.metadata['Name'].replace('-', '_')}-{found.version}"
    with zipfile.ZipFile(folder / f"{title}-{tag}.whl", "w") as archive:
        for file in found.files or ():
            # pip makes the files outside (programs in bin/) anew.
            if not str(file).startswith("..") and file.suffix != ".pyc" and file.name not in {"INSTALLER", "REQUESTED"}:
                archive.write(str(file.locate()), str(file))
