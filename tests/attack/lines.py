"""Lists each attack that the suite tries, and the tests that lie elsewhere and try it.

A letter tells the attacker: M sends malformed or hostile datagrams, F floods, A is a peer that misbehaves, P harms
processes and their surroundings (beyond the faults of `make chaos`), I is a process of the same machine. A line without a
number is a flaw of an earlier version or of another implementation (`lines_flaws`), or a stage that an attacker took over.

A test beside the code counts for a line if it is named here. A test in tests/attack says so itself, by `mark.attack`.
"""

from typing import Final

from tests.attack.line import Line
from tests.attack.lines_flaws import FLAWS
from tests.attack.lines_machine import MACHINE
from tests.attack.lines_network import NETWORK

from stagewire.stages import STAGES

SEED: Final = "STAGEWIRE_ATTACK_SEED"
ONLY: Final = "STAGEWIRE_ATTACK_ONLY"
"""The environment's names of the seed, and of the lines to try, with spaces between."""
FIGURE: Final = "figure"
LINE: Final = "attack"
"""Names of what a test tells the report."""


_UNHARMED: Final = "beside half of what the gateway carries, 1 % of goodput at most; a new peer within 1 s"
_QUEUES: Final = "services/test_host_queues.py"
_CONN: Final = "services/test_conn_service.py"

LINES: Final[dict[str, Line]] = {
    **NETWORK,
    **MACHINE,
    **FLAWS,
    "F1": Line(
        "initiations with a bad mac1", _UNHARMED, ("proto/test_gate.py::test_every_bit_counts_but_those_of_mac2",)
    ),
    "F2": Line(
        "initiations with a good mac1 from one address, also that of the new peer",
        _UNHARMED,
        (
            "proto/test_gate.py::test_a_flood_from_one_source_takes_nothing_from_others",
            "proto/test_gate.py::test_a_flood_from_one_address_leaves_half_to_others",
            f"{_CONN}::test_a_flood_is_answered_by_cookies_from_the_address_that_it_reached",
            f"{_QUEUES}::test_a_full_queue_leaves_the_others_alone",
        ),
    ),
    "F3": Line(
        "initiations with a good mac1 from spoofed addresses",
        "1 % of goodput at most; nothing is kept for a source; a new peer within 1 s, from a new network in the median",
        (
            "proto/test_gate.py::test_beside_a_flood_from_everywhere_a_peer_gets_in_at_once_with_a_new_address_of_its_network",
            "proto/test_admission.py::test_a_network_that_a_peer_came_from_has_an_allowance_beside_that_of_strangers",
            "proto/test_admission.py::test_idle_processors_let_most_of_a_flood_from_everywhere_in_and_busy_ones_few",
            "services/test_conn_service.py::test_the_gate_hears_how_far_visits_wait_for_a_processor",
            "proto/test_gate.py::test_a_flood_from_everywhere_buys_few_and_a_cookie_goes_first",
            "proto/test_gate.py::test_unproven_sources_leave_no_trace",
            f"{_QUEUES}::test_what_may_be_proven_or_awaited_waits_apart",
        ),
    ),
    "flood-answers": Line(
        "responses and cookie replies that no handshake awaits",
        _UNHARMED,
        (
            "proto/test_gate.py::test_an_answer_that_is_not_awaited_costs_no_mac",
            "proto/test_gate.py::test_few_answers_to_one_message_are_looked_at",
        ),
    ),
    "flood-transport": Line(
        "transport messages of no session, all for one worker",
        _UNHARMED,
        ("proto/test_worker.py::test_what_belongs_elsewhere_or_nowhere_is_counted",),
    ),
    "flood-garbage": Line(
        "datagrams that are no messages, or merged with transport messages",
        _UNHARMED,
        (
            f"{_QUEUES}::test_transport_messages_have_the_first_socket_to_themselves",
            f"{_CONN}::test_handshakes_merged_with_transport_messages_take_little_of_their_time",
            f"{_CONN}::test_what_the_kernel_drops_from_a_full_queue_is_counted",
        ),
    ),
    "loop": Line("two tunnels lead through one another", "one packet stops within 1 s and 70,000 B"),
    **{
        f"hostile-{stage}": Line(f"the {stage} stage is the attacker's", "it stays within its part") for stage in STAGES
    },
}
