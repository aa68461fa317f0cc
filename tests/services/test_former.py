"""What the audit tells of a key that no peer has any more."""

import json
from pathlib import Path

import pytest

from stagewire.environment import Environment
from stagewire_cli import former
from stagewire_cli.former import Former

OLD, NEW = "A" * 42 + "E=", "B" * 42 + "E="


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment.read({"STAGEWIRE_STATE_DIR": str(tmp_path / "state"), "STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    made.state.mkdir(parents=True)
    return made


def write(environment: Environment, *records: tuple[str, list[str]], name: str = "audit") -> None:
    lines = [json.dumps({"when": when, "what": "x", "changes": changes}) for when, changes in records]
    (environment.state / name).write_text("\n".join([*lines, '{"when": cut']))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([f"~ peer Anna ({OLD[:10]})", f"    ~ PublicKey {OLD} -> {NEW}"], Former("t", "Anna", NEW)),
        ([f"~ peer {OLD}", f"    ~ PublicKey {OLD} -> {NEW}"], Former("t", "", NEW)),
        ([f"- peer Anna ({OLD[:10]})  AllowedIPs 10.0.0.2/32"], Former("t", "Anna", "")),
        ([f"- peer {OLD}  AllowedIPs 10.0.0.2/32"], Former("t", "", "")),
        ([f"- peer Anna (B.) ({OLD[:10]})"], Former("t", "Anna (B.)", "")),
        (
            [f"- peer Anna ({OLD[:10]})", f"+ peer Anna ({NEW[:10]})  AllowedIPs 10.0.0.2/32"],
            Former("t", "Anna", NEW[:10]),
        ),
        ([f"- peer {OLD}", f"+ peer {NEW}"], Former("t", "", "")),
        ([f"+ peer Anna ({OLD[:10]})"], None),
        ([f"- peer Anna ({NEW[:10]})"], None),
    ],
)
def test_a_key_that_was_replaced_or_removed(environment: Environment, changes: list[str], found: Former | None) -> None:
    write(environment, ("t", changes))
    assert former.find(environment, OLD) == found


def test_the_newest_change_counts_and_an_older_file_is_read_as_well(environment: Environment) -> None:
    write(environment, ("1", [f"- peer Anna ({OLD[:10]})"]), name="audit.1")
    assert former.find(environment, OLD) == Former("1", "Anna", "")
    write(environment, ("2", [f"+ peer Bert ({OLD[:10]})"]), ("3", [f"- peer Bert ({OLD[:10]})"]))
    assert former.find(environment, OLD) == Former("3", "Bert", "")


@pytest.mark.parametrize("text", ["anna", "Anna", OLD[:10], OLD])
def test_a_peer_that_was_removed_is_found_by_name_and_by_key(environment: Environment, text: str) -> None:
    write(environment, ("1", [f"- peer Anna ({OLD[:10]})  AllowedIPs 10.0.0.2/32", f"- peer Bert ({NEW[:10]})"]))
    assert former.removed(environment, text) == (text if text == OLD else OLD[:10], Former("1", "Anna", ""))
    assert former.removed(environment, "Zoe") is None


def test_no_audit_and_an_audit_of_nonsense_tell_nothing(environment: Environment) -> None:
    assert former.find(environment, OLD) is None
    (environment.state / "audit").write_bytes(f"[1]\n{OLD[:10]} \xff\n".encode("latin-1"))
    assert former.find(environment, OLD) is None
    write(environment, ("\x1b[2J", [f"- peer \u202eAnna ({OLD[:10]})"]))
    gone = former.find(environment, OLD)
    assert gone is not None
    assert (gone.when + gone.name).isprintable()


def test_nothing_tells_of_a_peer_that_was_never_connected(environment: Environment) -> None:
    assert former.last_seen(environment, OLD) == ""
