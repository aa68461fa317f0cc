"""Renews the lock files, audits what they pin, and completes what is delivered: `make lock`, `make audit`, `make dist`.

The tools lie in an environment of their own, `.venv/tools`, which `deploy/setup --tools` makes from `tools.lock`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
TOOLS: Final = ROOT / ".venv/tools/bin"
OLDEST: Final = "3.11"
"""Python version from which on the pins hold."""
LOCKS: Final = {
    "requirements.lock": ("pyproject.toml",),
    "top.lock": ("pyproject.toml", "--extra", "top"),
    "dev.lock": ("pyproject.toml", "--extra", "top", "--group", "dev"),
    "fuzz.lock": ("--group", "fuzz"),
    "tools.lock": ("--group", "tools"),
}
"""What each file pins: a gateway, a gateway with `stagewire[top]`, the checkout's .venv, the fuzzer, these tools."""
HEADER: Final = (
    "# `make lock` makes this file. It pins each wheel and source archive by its hash, for every platform.\n"
)


def lock() -> int:
    """Resolves pyproject.toml anew, to the newest versions that it allows."""
    for name, what in LOCKS.items():
        made = subprocess.run(
            [
                TOOLS / "uv", "pip", "compile", *what, "--universal", "--python-version", OLDEST,
                "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-config", "--quiet",
            ],
            cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if made.returncode:
            return made.returncode
        (DEPLOY / name).write_text(HEADER + made.stdout)
        print(f"{name}: {made.stdout.count('==')} packages")
    return 0


def audit() -> int:
    """Looks each pinned version up among known vulnerabilities. Returns 1 if one has any."""
    failures = 0
    for name in LOCKS:
        known = _known(DEPLOY / name)
        if known is None:
            print(f"{name}: not audited: no database of vulnerabilities could be reached")
            continue
        bad = [each for each in known if each.get("vulns")]
        unknown = [each["name"] for each in known if "skip_reason" in each]
        for each in bad:
            said = "; ".join(
                f"{one['id']} (fixed in {', '.join(one['fix_versions']) or 'none'})" for one in each["vulns"]
            )
            print(f"{name}: {each['name']} {each['version']}: {said}")
        if unknown:
            print(f"{name}: not audited, because the database lacks them: {', '.join(unknown)}")
        print(f"{name}: {len(known) - len(unknown)} packages audited, {len(bad)} with a known vulnerability")
        failures += len(bad)
    return int(failures > 0)


def _known(path: Path) -> list[dict[str, Any]] | None:
    """Returns pip-audit's findings, from the first database that answers; None if none does."""
    for service in ("pypi", "osv"):
        asked = subprocess.run(
            [
                TOOLS / "pip-audit", "--vulnerability-service", service, "--disable-pip", "--require-hashes",
                "--requirement", path, "--format", "json", "--progress-spinner", "off", "--timeout", "10",
            ],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        try:
            found: list[dict[str, Any]] = json.loads(asked.stdout)["dependencies"]
        except (ValueError, KeyError):
            continue  # it could not be reached
        if any("skip_reason" not in each for each in found):
            return found
    return None


def released(wheel: str) -> str:
    """Returns name and version of a wheel, without the platform that its compiled modules are for."""
    return "-".join(wheel.split("-")[:2])


def bill(folder: Path) -> int:
    """Writes a CycloneDX bill of what a gateway is made of, and checks it by CycloneDX's schema."""
    name = released(next(folder.glob("stagewire-*.whl")).name)
    return subprocess.run(
        [
            TOOLS / "cyclonedx-py", "requirements", DEPLOY / "requirements.lock", "--pyproject", ROOT / "pyproject.toml",
            "--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible", "--validate",
            "--output-file", folder / f"{name}.cdx.json",
        ],
        check=False,
    ).returncode  # fmt: skip


def portable(folder: Path) -> int:
    """Replaces each wheel for this Linux alone by a manylinux wheel, with OpenSSL's libcrypto in it."""
    for wheel in folder.glob("stagewire-*-linux_*.whl"):
        # It calls patchelf by its name.
        variables = os.environ | {"PATH": f"{TOOLS}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        made = subprocess.run(
            [TOOLS / "auditwheel", "repair", "--wheel-dir", folder, wheel],
            env=variables, check=False, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if made.returncode:
            print(f"{wheel.name}: not made portable: {made.stderr.strip()}", file=sys.stderr)
            return made.returncode
        wheel.unlink()
    return 0


def main() -> int:
    match sys.argv[1:]:
        case ["lock"]:
            return lock()
        case ["audit"]:
            return audit()
        case ["bill", folder]:
            return bill(Path(folder))
        case ["wheel", folder]:
            return portable(Path(folder))
    print("usage: supply.py lock | audit | bill FOLDER | wheel FOLDER", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
