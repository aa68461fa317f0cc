"""Where rules of a default route go beside others', and what is free; which of the kernel's are plain."""

import os

import pytest

from host_service import rules as messages
from host_service.rules import MAIN, Rule, ours, passing, place, taken_numbers, wanted
from lab.namespaces import Namespace
from stagewire.linux.netlink import Netlink

KERNEL = [Rule(4, 0, 1, 255, protocol=2), Rule(4, 32766, 1, MAIN, protocol=2), Rule(4, 32767, 1, 253, protocol=2)]


def placed(rules: list[Rule], number: int) -> list[Rule]:
    return wanted(rules, 4, number, place(rules, number))


def lookups(rules: list[Rule]) -> list[int]:
    """Marks in the order in which their tables are looked into."""
    return [rule.tunnel for rule in sorted(rules, key=lambda rule: rule.priority) if rule.tunnel]


def way(rules: list[Rule], mark: int) -> int:
    """The table of a tunnel that a packet with this mark looks into first; 0 for none."""
    at = 0
    for rule in sorted(rules, key=lambda each: each.priority):
        if rule.priority < at:
            continue
        if rule.goto and rule.mark == mark:
            at = rule.goto
        elif rule.tunnel and rule.tunnel != mark:
            return rule.table
    return 0


def test_each_tunnel_goes_through_the_older_ones_and_none_round_and_round() -> None:
    rules = list(KERNEL)
    for number in (51820, 51821, 51822):
        rules += placed(rules, number)
    assert lookups(rules) == [51822, 51821, 51820]
    assert way(rules, 0) == 51822
    assert way(rules, 51822) == 51821
    assert way(rules, 51821) == 51820
    assert way(rules, 51820) == 0


def test_wg_quicks_are_tunnels_as_well() -> None:
    theirs = [Rule(4, 32764, 1, MAIN, suppress=0, protocol=3), Rule(4, 32765, 1, 51820, 51820, True, protocol=3)]
    rules = KERNEL + theirs
    assert taken_numbers(rules) >= {51820}
    rules += placed(rules, 51821)
    assert (way(rules, 51821), way(rules, 51820)) == (51820, 0)


def test_ours_go_past_a_newer_one_of_wg_quicks() -> None:
    rules = KERNEL + placed(KERNEL, 51820)
    first = place(rules, 51820)
    theirs = [Rule(4, first - 1, 1, MAIN, suppress=0, protocol=3), Rule(4, first, 1, 51821, 51821, True, protocol=3)]
    rules += theirs
    rules = [*theirs, *KERNEL, *wanted(rules, 4, 51820, place(rules, 51820))]
    assert (way(rules, 0), way(rules, 51821), way(rules, 51820)) == (51821, 51820, 0)


def test_while_a_number_is_changed_either_mark_passes_both_sets() -> None:
    older = KERNEL + placed(KERNEL, 51819)
    first = place(older, 51820)
    before = older + wanted(older, 4, 51820, first)
    during = before + placed(before, 9)
    assert (way(during, 0), way(during, 51820)) == (9, 51819)
    during += passing(4, 9, first)
    assert (way(during, 0), way(during, 51820), way(during, 9), way(during, 51819)) == (9, 51819, 51819, 0)


def test_our_own_keep_their_place() -> None:
    rules = KERNEL + placed(KERNEL, 51820)
    first = place(rules, 51820)
    assert set(wanted(rules, 4, 51820, first)) == ours(rules, 51820, first) == set(placed(KERNEL, 51820))
    newer = rules + placed(rules, 51821)
    assert place(newer, 51820) == first
    assert set(wanted(newer, 4, 51820, first)) == set(placed(KERNEL, 51820)), "the newer one comes first anyway"


def test_a_rule_for_some_packets_only_is_no_tunnels() -> None:
    narrow = Rule(4, 100, 0, 77, 5, True, protocol=3)  # `parse` gives those no action
    assert narrow.tunnel == 0
    assert place([*KERNEL, narrow], 51820) == place(KERNEL, 51820)


def test_of_the_rules_in_our_place_only_ours_are() -> None:
    first = place(KERNEL, 51820)
    others = [Rule(4, first + 2, 1, 51820, 51820, True, protocol=3), Rule(4, first + 1, 1, 99, protocol=87)]
    assert ours(KERNEL + others, 51820, first) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
@pytest.mark.parametrize(
    "narrow",
    ["from 10.0.0.0/8", "to 10.0.0.0/8", "iif lo", "oif lo", "tos 0x10", "uidrange 1000-2000", "ipproto udp",
     "sport 53", "dport 1000-2000", "tun_id 7", "suppress_ifgroup 3", "realms 1/2", "fwmark 0x51/0xff"],
)  # fmt: skip
def test_one_for_some_packets_only_is_not_plain(narrow: str) -> None:
    words = ["not", *([] if "fwmark" in narrow else ["fwmark", "0x51"]), "table", "81", "pref", "100"]
    with Namespace("rule") as namespace:

        def standing() -> list[Rule]:
            with Netlink() as kernel:
                return messages.standing(kernel, 4)

        namespace.run("ip", "rule", "add", *words, *narrow.split())
        (found,) = (rule for rule in namespace.call(standing) if rule.priority == 100)
        assert found.tunnel == 0
        assert found.table == 81, "it is a number that is taken all the same"
        namespace.run("ip", "rule", "add", "not", "fwmark", "0x51", "table", "81", "pref", "101")
        assert [rule.tunnel for rule in namespace.call(standing) if rule.priority in {100, 101}] == [0, 0x51]
