"""A real resolver-service in a namespace with real DNS servers, asked as key-service asks."""

import time
from collections.abc import Iterator
from pathlib import Path

import dns.rcode
import pytest
from tests.services.conn import HostStandIn
from tests.services.surroundings import KeyStandIn, Surroundings, surroundings

from lab.dns_server import DnsServer
from lab.namespaces import add_addresses
from lab.wait import until
from stagewire.control.messages import Resolve, Resolved
from stagewire.proto.endpoint import unpack_untrusted

NAME = "vpn.example.net"
ONE, TWO = "127.0.0.11", "127.0.0.12"
DISTANT = "198.51.100.53"


class House:
    def __init__(self, around: Surroundings, etc: Path) -> None:
        self.around, self.etc, self.namespace = around, etc, around.namespace
        self.before = around.pipes.run / "resolv.conf"
        self.key = KeyStandIn(around)
        self.host = HostStandIn(around)
        self.program = around.start("resolver-service")
        self.key.welcome()

    def ask(self, host: str = NAME, *avoid: str) -> Resolved:
        self.key.tell(Resolve(host, avoid))
        return self.key.wait_for(Resolved, lambda answer: answer.host == host)

    def find(self, host: str = NAME, *avoid: str) -> list[str]:
        """The addresses that it is found at."""
        answer = self.ask(host, *avoid)
        assert answer.error == ""
        assert {unpack_untrusted(each).port for each in answer.places} == {0}
        return [str(unpack_untrusted(each).host) for each in answer.places]

    def fail(self, host: str = NAME, *avoid: str) -> str:
        """Why it isn't found."""
        answer = self.ask(host, *avoid)
        assert answer.places == ()
        return answer.error

    def resolv_conf(self, text: str) -> None:
        (self.etc / "resolv.conf").write_text(text)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with (
        surroundings("resolver") as around,
        around.namespace.etc(hosts="192.0.2.77 inthefile\n2001:db8::77 inthefile\n", resolv_conf="") as etc,
    ):
        yield House(around, etc)


@pytest.fixture
def server(house: House) -> Iterator[DnsServer]:
    house.resolv_conf(f"nameserver {ONE}\noptions timeout:1\n")
    with DnsServer(house.namespace, ONE, {NAME: ["192.0.2.1", "2600::1"]}) as made:
        yield made


@pytest.fixture
def second(house: House) -> Iterator[DnsServer]:
    house.resolv_conf(f"nameserver {ONE}\nnameserver {TWO}\noptions timeout:1\n")
    with DnsServer(house.namespace, TWO, {NAME: ["192.0.2.2"]}) as made:
        yield made


def test_both_families_and_those_with_a_way_to_them_first(house: House, server: DnsServer) -> None:
    add = house.namespace.run
    for route in (["192.0.2.0/24"], ["2600::/16"]):
        add("ip", "route", "add", *route, "dev", "lo")
        try:
            expected = ["192.0.2.1", "2600::1"]
            assert house.find() == (expected if "." in route[0] else expected[::-1])
        finally:
            add("ip", "route", "del", *route, "dev", "lo")
    for family in ("-4", "-6"):
        add("ip", family, "route", "add", "unreachable", "default")
    assert sorted(house.find()) == ["192.0.2.1", "2600::1"]


def test_a_name_of_one_family(house: House, server: DnsServer) -> None:
    server.records = {"four.example": ["192.0.2.4"], "six.example": ["2001:db8::6"], "none.example": ["x.example"]}
    assert house.find("four.example") == ["192.0.2.4"]
    assert house.find("six.example") == ["2001:db8::6"]
    assert house.fail("none.example") == "none.example: has no address"
    assert house.fail("nowhere.example") == "nowhere.example: no such name"


def test_a_name_behind_another(house: House, server: DnsServer) -> None:
    server.records = {"a.example": ["b.example"], "b.example": ["c.example"], "c.example": ["192.0.2.3"]}
    assert house.find("a.example") == ["192.0.2.3"]


def test_a_cut_answer_is_asked_for_by_tcp(house: House, server: DnsServer) -> None:
    server.truncates = True
    assert sorted(house.find()) == ["192.0.2.1", "2600::1"]
    assert server.count(NAME, "tcp") == 2


def test_many_addresses_do_not_fit_into_one_datagram(house: House, server: DnsServer) -> None:
    server.records = {NAME: [f"192.0.2.{number}" for number in range(1, 101)]}
    assert len(house.find()) == 16


def test_an_answer_that_takes_8_seconds(house: House, server: DnsServer) -> None:
    server.delay = 8.0
    begun = time.monotonic()
    assert sorted(house.find()) == ["192.0.2.1", "2600::1"]
    assert time.monotonic() - begun > 7.5


def test_a_server_that_never_answers_for_one_family(house: House, server: DnsServer) -> None:
    server.silent_for = {"AAAA"}
    begun = time.monotonic()
    assert house.find() == ["192.0.2.1"]
    assert time.monotonic() - begun < 5
    assert house.find("inthefile")  # beside what still waits


def test_servers_that_fail_are_passed_over(house: House, server: DnsServer, second: DnsServer) -> None:
    server.rcode = dns.rcode.SERVFAIL
    assert house.find() == ["192.0.2.2"]
    server.rcode = dns.rcode.REFUSED
    assert house.find() == ["192.0.2.2"]
    server.rcode, server.silent = None, True
    assert house.find() == ["192.0.2.2"]
    server.silent, second.rcode = False, dns.rcode.SERVFAIL
    assert sorted(house.find()) == ["192.0.2.1", "2600::1"]
    server.rcode = dns.rcode.SERVFAIL
    assert house.fail() == f"{NAME}: {ONE} says SERVFAIL; {TWO} says SERVFAIL"


def test_no_server_there(house: House) -> None:
    house.resolv_conf(f"nameserver {ONE}\n")
    assert house.fail() == f"{NAME}: {ONE}: Connection refused"


def test_no_server_known(house: House) -> None:
    house.resolv_conf("search example.net\n")
    assert house.fail() == f"{NAME}: 127.0.0.1: Connection refused"
    (house.etc / "resolv.conf").chmod(0)  # to delete it would take it from under what is mounted
    try:
        assert house.fail() == f"{NAME}: 127.0.0.1: Connection refused"
        with DnsServer(house.namespace, "127.0.0.1", {NAME: ["192.0.2.8"]}):
            assert house.find() == ["192.0.2.8"]
    finally:
        (house.etc / "resolv.conf").chmod(0o644)


def test_a_server_at_an_interface_that_is_gone_is_passed_over(house: House) -> None:
    add_addresses(house.namespace, "lo", [f"{DISTANT}/32"])
    house.resolv_conf(f"nameserver fe80::1%gone\nnameserver {DISTANT}\n")
    with DnsServer(house.namespace, DISTANT, {NAME: ["192.0.2.9"]}):
        assert house.find() == ["192.0.2.9"]


def test_servers_in_the_tunnel_are_not_asked(house: House, server: DnsServer, second: DnsServer) -> None:
    assert house.find(NAME, ONE) == ["192.0.2.2"]
    assert server.count(NAME) == 0
    assert "all DNS servers lie in the tunnel" in house.fail(NAME, ONE, TWO)


def test_servers_from_before_the_tunnels_were_set(house: House, server: DnsServer, second: DnsServer) -> None:
    house.resolv_conf(f"nameserver {ONE}\n")
    house.before.write_text(f"nameserver {TWO}\n")
    try:
        assert house.find(NAME, ONE) == ["192.0.2.2"]
        assert sorted(house.find(NAME)) == ["192.0.2.1", "2600::1"]
    finally:
        house.before.unlink()


def test_the_search_list(house: House, server: DnsServer) -> None:
    house.resolv_conf(f"nameserver {ONE}\nsearch nothing.example example.net\n")
    assert sorted(house.find("vpn")) == ["192.0.2.1", "2600::1"]
    assert server.count("vpn.nothing.example") == 2
    house.resolv_conf(f"nameserver {ONE}\nsearch example.net\noptions ndots:0\n")
    assert sorted(house.find("vpn")) == ["192.0.2.1", "2600::1"]
    assert server.count("vpn") == 2


def test_the_hosts_file_comes_first(house: House, server: DnsServer) -> None:
    server.records["inthefile"] = ["192.0.2.99"]
    assert sorted(house.find("inthefile")) == ["192.0.2.77", "2001:db8::77"]
    assert server.count("inthefile") == 0


def test_an_address_with_a_zone(house: House) -> None:
    (place,) = house.ask("fe80::1%lo").places
    assert unpack_untrusted(place).scope == 1
    assert "no interface with this name" in house.fail("fe80::1%gone")


def test_names_that_nobody_answers_for_keep_no_other_waiting(house: House, server: DnsServer) -> None:
    server.silent = True
    house.key.tell(*(Resolve(f"n{number}.example", ()) for number in range(30)))
    until(lambda: server.count("n29.example") >= 2, 5, "the questions")
    server.silent = False
    begun = time.monotonic()
    assert house.find("inthefile")
    assert sorted(house.find()) == ["192.0.2.1", "2600::1"]
    assert time.monotonic() - begun < 3
    # Each is asked again after a second, and so has its answer now.
    for _ in range(30):
        house.key.wait_for(Resolved, lambda answer: answer.error.endswith("no such name"))


def test_without_host_service_a_question_fails_and_the_next_is_answered_when_it_is_back(
    house: House, server: DnsServer
) -> None:
    house.host.close()
    try:
        assert house.fail() == f"{NAME}: {ONE}: host-service hands no socket over"
    finally:
        house.host = HostStandIn(house.around)
    assert sorted(house.find()) == ["192.0.2.1", "2600::1"]


def test_it_has_no_capability_and_a_uid_of_its_own(house: House) -> None:
    status = Path(f"/proc/{house.program.process.pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {facts[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
    assert len(set(facts["Uid"].split())) == 1
    assert facts["Uid"].split()[0] != "0"
    assert house.program.stop() == 0
