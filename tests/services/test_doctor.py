"""What `stagewire doctor` finds wrong, what is a hint alone, and the commands that it runs."""

import sys
from dataclasses import replace
from typing import Any, cast

import pytest
from tests import schemas

from stagewire.config import InterfaceConfig
from stagewire.environment import Environment
from stagewire.proto.kernel import rule
from stagewire_cli import bring_up, daemon, kernels
from stagewire_cli.doctor import Facts, Trouble, answer, examine, lines, mend, written
from stagewire_cli.evidence import Away
from stagewire_cli.failures import Failed
from stagewire_cli.host_facts import Denied, Load
from stagewire_cli.ruleset import Block

AWAY = Away("conn-service", "is down", "see its log")
NOW = 1_800_000_000.0
PEER = {
    "public_key": "P" * 43 + "=", "name": "Anna", "endpoint": "192.0.2.1:5", "unresolved": "", "reasons": [],
    "rx_bytes_alone": 0,
    "last_handshake_unix_s": NOW - 5, "allowed_ips": ["10.0.0.0/24", "0.0.0.0/0"],
}  # fmt: skip
OTHER = PEER | {"public_key": "Q" * 43 + "=", "name": "", "allowed_ips": ["10.1.0.0/24", "10.2.0.0/16"]}
STATUS: dict[str, Any] = {
    "interface": "wg0",
    "link_up": True,
    "warnings": [],
    "listen_port": 51820,
    "peers": [PEER, OTHER],
}
WELL = Facts(STATUS, NOW, forwards={4: True, 6: True}, masquerades=True)

HALVES = ["0.0.0.0/1", "10.0.0.0/8", "128.0.0.0/1"]
CLIENT = replace(WELL, status=STATUS | {"peers": [PEER]})
"""Of a single peer, through which all goes."""


def with_peer(**changes: Any) -> Facts:
    return replace(WELL, status=STATUS | {"peers": [PEER | changes, OTHER]})


@pytest.mark.parametrize(
    ("facts", "found", "wrong"),
    [
        (WELL, [], False),
        (replace(WELL, status=STATUS | {"link_up": False}), ["interface_down"], True),
        (replace(WELL, away=[AWAY]), ["service_away"], True),
        (replace(WELL, unready=["17 packets came, and no datagram left"]), ["not_ready"], True),
        (replace(WELL, away=[AWAY], unready=["waits"]), ["service_away"], True),
        (replace(WELL, status=STATUS | {"warnings": ["it was edited"]}), ["warning"], False),
        (replace(WELL, busy={"device-service 0": Load(0.97), "device-service 1": Load(0.2)}), ["overloaded"], True),
        (replace(WELL, blocked=[Block("a rule", ("nft", "delete"))]), ["port_blocked"], True),
        (replace(WELL, forwards={4: False, 6: False}), ["forwarding_off"], False),
        (replace(WELL, forwards={4: False, 6: True}, refused_forwards={4: 2}), ["forwarding_off"], False),
        (
            replace(with_peer(rx_bytes_alone=900), forwards={4: False, 6: True}, refused_forwards={4: 2}),
            ["forwarding_off"],
            True,
        ),
        (replace(WELL, masquerades=False), ["no_masquerade"], False),
        (replace(CLIENT, forwards={4: False, 6: False}), [], False),
        (replace(CLIENT, masquerades=False), [], False),
        (replace(CLIENT, status=STATUS | {"peers": [PEER | {"allowed_ips": HALVES}]}, masquerades=False), [], False),
        (
            replace(CLIENT, status=STATUS | {"peers": [PEER | {"allowed_ips": HALVES[1:]}]}, masquerades=False),
            ["no_masquerade"],
            False,
        ),
        (replace(WELL, dns_failure="DNS is not set: resolvconf says: no"), ["dns_not_set"], True),
        (replace(WELL, shared_networks=[("10.9.0.0/24", "eth0")]), ["shared_network"], False),
        (
            replace(
                WELL,
                status=STATUS | {"peers": [PEER | {"rx_bytes_alone": 900}]},
                forwards={4: False, 6: True},
                refused_forwards={4: 2},
            ),
            ["forwarding_off"],
            True,
        ),
        (replace(WELL, status=STATUS | {"peers": [OTHER]}, masquerades=False), ["no_masquerade"], False),
        (replace(WELL, legacy=["chain FORWARD of iptables-legacy drops"]), ["legacy_rules"], False),
        (replace(WELL, denied=[Denied("10.0.0.2", "10.9.0.1", 7)]), ["not_allowed"], False),
        (replace(WELL, unprotected=["key-service has no locked memory"]), ["unprotected"], False),
        (replace(WELL, strict_source=True, source_drops=2), ["rp_filter"], False),
        (replace(WELL, now=5.0), ["clock"], True),
        (with_peer(unresolved="a.example: no such name"), ["name_not_resolved"], True),
        (with_peer(allowed_ips=["10.2.3.0/24"]), ["overlap"], False),
        (with_peer(last_handshake_unix_s=None), [], False),
        (with_peer(last_handshake_unix_s=None, reasons=[{"last_unix_s": NOW - 1}]), ["peer_silent"], True),
    ],
)
def test_what_is_wrong_and_what_is_a_hint(facts: Facts, found: list[str], wrong: bool) -> None:
    troubles = examine(facts)
    assert [trouble.id for trouble in troubles] == found
    assert answer(facts, troubles)["healthy"] is not wrong
    schemas.check(answer(facts, troubles), "doctor")
    assert len(lines(facts, troubles)) == 1 + sum(2 + len(trouble.commands) for trouble in troubles)


def test_only_commands_may_be_wider_than_the_terminal() -> None:
    facts = replace(
        WELL, masquerades=False, away=[replace(AWAY, command=("stagewire", "restart", "conn", "-i", "wg0"))]
    )
    told = lines(facts, examine(facts), 60)
    commands = [line for line in told if len(line) > 60]
    assert [line.split()[0] for line in commands] == ["nft"]
    assert "    stagewire restart conn -i wg0" in told


def test_the_worst_comes_first_with_its_exact_command() -> None:
    facts = replace(
        WELL, masquerades=False, blocked=[Block("a rule in chain c", ("nft", "delete", "rule", "handle", "7"))]
    )
    told = lines(facts, examine(facts))
    assert told[:4] == [
        "wg0: one trouble",
        "wrong: this host drops datagrams to UDP port 51820: a rule in chain c",
        "  do: let them in",
        "    nft delete rule handle 7",
    ]
    assert told[4].startswith("hint: no rule changes source addresses")
    assert "    nft 'add chain ip nat post { type nat hook postrouting priority 100; }'" in told


def test_only_what_is_wrong_is_mended_and_each_command_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stagewire_cli.doctor._SETTLES", 0)
    good, bad = (
        (sys.executable, "-c", "open(1, 'w').write('x')"),
        (sys.executable, "-c", "raise SystemExit('no right')"),
    )
    said: list[str] = []
    hint = Trouble("h", "a hint", "do it", (("no-such-program",),), wrong=False)
    assert mend([Trouble("g", "it", "do it", (good,)), hint], said.append)
    assert said == [f"# {written(good)}"]
    assert not mend([Trouble("b", "it", "do it", (bad, ("no-such-program",), good))], said.append)
    assert next(line for line in said if "failed" in line) == "  failed: no right"
    assert len(said) == 1 + 5
    assert capfd.readouterr().out == ""


def test_ten_thousand_peers_are_examined_in_a_moment() -> None:
    peers = [
        PEER | {"public_key": f"{number:043}=", "allowed_ips": [f"10.{number >> 8}.{number & 255}.1/32"]}
        for number in range(10_000)
    ]
    assert examine(replace(WELL, status=STATUS | {"peers": peers})) == []


def test_it_names_the_kernels_and_one_that_is_lacking_is_a_hint() -> None:
    def with_kernels(*found: str) -> Facts:
        names = ("tun-service", "device-service", "device-service", "key-service")
        services = [{"service": name, "kernel": kernel} for name, kernel in zip(names, found, strict=True)]
        return replace(WELL, status=STATUS | {"services": services})

    same = with_kernels(*["compiled, by default"] * 3, "")
    assert lines(same, examine(same)) == ["wg0: all is well", "  kernel: compiled, by default"]
    lacking = f"plain, {rule.CANNOT}: it isn't built here"
    mixed = with_kernels(lacking, "compiled, by default", "compiled, by default", "")
    assert answer(mixed, [])["kernels"] == [f"{lacking} (tun-service)", "compiled, by default (device-service)"]
    [trouble] = examine(mixed)
    assert (trouble.id, trouble.wrong) == ("plain_kernel", False)


def test_a_start_with_a_kernel_that_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, unread = Environment.read({"STAGEWIRE_KERNEL": "compiled"}, "wg0"), cast("InterfaceConfig", None)
    monkeypatch.setattr(kernels, "MODULES", ("stagewire.linux.nowhere",))
    kernels.refuse_unloadable(Environment.read({}, "wg0"))
    lacking = r"STAGEWIRE_KERNEL: the compiled kernel can't be loaded: .*nowhere"
    with pytest.raises(Failed, match=lacking):
        bring_up.up(wanted, unread, print)
    with pytest.raises(Failed, match=lacking):
        daemon.run(wanted, print, foreground=True)
