"""The firewall of a default route: the text for nft, and what nft makes of it in a namespace."""

import os
import shutil
from ipaddress import ip_interface
from pathlib import Path

import pytest

from host_service import firewall
from lab.namespaces import Namespace
from stagewire.linux.nft_names import table_of

ODD_NAME = "a=b+c.d_e-f"
ADDRESSES = [ip_interface(each) for each in ("10.9.0.1/24", "10.9.9.1/32", "fd09::1/64")]


def test_each_family_has_its_own_addresses_and_marks_guarded() -> None:
    text = "\n".join(firewall.lines("wg0", ADDRESSES, [6], 0x77))
    assert "ip6 daddr fd09::1 " in text
    assert "10.9.0.1" not in text
    assert "meta nfproto ipv6 meta l4proto { tcp, udp } ct mark 119 " in text
    assert "ipv4" not in text


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
@pytest.mark.parametrize("name", ["wg0", ODD_NAME])
def test_nft_takes_it_once_and_again_and_gives_it_back(name: str) -> None:
    table = table_of(name)
    with Namespace("nft") as namespace:

        def listed() -> str:
            return namespace.run("nft", "list", "ruleset").stdout

        def make(instead_of: int = 0) -> str:
            return namespace.call(lambda: firewall.make(name, ADDRESSES, [4, 6], 51820, instead_of))

        namespace.run("nft", "add", "table", "inet", "other")
        before = listed()
        assert namespace.call(lambda: firewall.find(table)) is None
        assert make() == ""
        first = listed()
        assert first.count("drop") == 6
        assert first.count("mark set") == 4
        made = namespace.call(lambda: firewall.find(table))
        assert made is not None
        assert made.is_ours
        assert "File exists" in make()
        assert listed() == first
        assert make(made.handle) == ""
        assert listed() == first
        again = namespace.call(lambda: firewall.find(table))
        assert again is not None
        assert again.handle != made.handle
        assert "nft says" in make(made.handle)
        assert listed() == first
        assert namespace.call(lambda: firewall.remove(again.handle)) == ""
        assert listed() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
@pytest.mark.parametrize(
    ("chains", "is_ours"),
    [(["preraw", "premangle", "postmangle"], True), (["preraw"], False), ([], False),
     (["preraw", "premangle", "postmangle", "input"], False)],
)  # fmt: skip
def test_without_a_comment_its_chains_say_whose_a_table_is(chains: list[str], is_ours: bool) -> None:
    with Namespace("nft") as namespace:
        namespace.run("nft", "add", "table", "inet", "stagewire-wg0")
        for chain in chains:
            namespace.run("nft", "add", "chain", "inet", "stagewire-wg0", chain)
        namespace.run("nft", "add", "chain", "ip", "other", "preraw", check=False)
        found = namespace.call(lambda: firewall.find("stagewire-wg0"))
        assert found is not None
        assert found.is_ours == is_ours


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
@pytest.mark.parametrize("lacking", [["fib"], ["ct"], ["fib", "ct"], ["comment"]])
def test_what_a_kernel_has_not_is_done_without(
    lacking: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nft as it answers there: the whole transaction is refused."""
    real, nft = shutil.which("nft"), tmp_path / "nft"
    pattern = "|".join(rf"\b{each} (mark|saddr|\")" for each in lacking)
    nft.write_text(
        "#!/bin/sh\ntext=$(cat)\n"
        f"if echo \"$text\" | grep -Eq '{pattern}'; then echo 'Error: No such file or directory' >&2; exit 1; fi\n"
        f'echo "$text" | {real} -f -\n'
    )
    nft.chmod(0o755)
    with Namespace("nft") as namespace:
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        said = namespace.call(lambda: firewall.make("wg0", ADDRESSES, [4, 6], 51820))
        monkeypatch.undo()
        listed = namespace.run("nft", "list", "ruleset").stdout
        for each in ("fib", "ct"):
            assert (f"no {each}" in said) == (each in lacking)
            assert (f" {each} " in listed) == (each not in lacking)
        assert listed.count("drop") == 6, "what keeps packets from leaving in clear stays"
        found = namespace.call(lambda: firewall.find("stagewire-wg0"))
        assert found is not None
        assert found.is_ours


def test_without_nft_the_operator_is_told_what_that_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = firewall.make("wg0", ADDRESSES, [6], 51820)
    assert "nft" in said
    assert "rp_filter" in said


def test_what_nft_refuses_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = firewall.make("wg0", ADDRESSES, [6], 51820)
    assert said == "the default route's firewall rules are not set: nft says no such thing"
