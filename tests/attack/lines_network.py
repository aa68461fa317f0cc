"""Lists the attacks by datagrams, from strangers and from peers; `attack.lines` explains the list."""

from typing import Final

from tests.attack.line import Line

NETWORK: Final[dict[str, Line]] = {
    "M1": Line(
        "0 to 3 bytes",
        "dropped",
        (
            "proto/test_gate.py::test_every_type_at_every_length",
            "proto/test_worker.py::test_classification_of_datagrams",
        ),
    ),
    "M2": Line(
        "an unknown type, at any length",
        "dropped",
        (
            "proto/test_gate.py::test_every_type_at_every_length",
            "proto/test_messages.py::test_other_types",
            "services/test_conn_service.py::test_what_is_neither_goes_nowhere_and_is_counted",
        ),
    ),
    "M3": Line(
        "reserved bytes that are not zero",
        "dropped, since the type has 4 bytes",
        (
            "proto/test_gate.py::test_reserved_bytes_are_part_of_the_type",
            "proto/test_messages.py::test_reserved_bytes_are_zero",
            "proto/test_worker.py::test_the_type_is_checked_though_no_tag_protects_it",
            "proto/kernel/test_opening.py::test_a_damaged_frame_is_judged_the_same",
        ),
    ),
    "M4": Line(
        "a handshake message of another length",
        "dropped before any hash",
        (
            "proto/test_gate.py::test_every_type_at_every_length",
            "proto/test_messages.py::test_every_length",
        ),
    ),
    "M5": Line(
        "a transport message without room for its tag",
        "dropped",
        ("proto/test_worker.py::test_datagrams_too_short_for_a_tag_are_dropped",),
    ),
    "M6": Line(
        "a receiver index of no session, or of an old one",
        "dropped without an answer",
        (
            "proto/test_worker.py::test_what_belongs_elsewhere_or_nowhere_is_counted",
            "proto/test_tunnel.py::test_an_ended_session_is_found_no_more",
            "proto/test_tunnel.py::test_a_session_too_old_receives_no_more",
            "services/test_device_service.py::test_what_is_replayed_foreign_or_too_old_is_counted_and_goes_nowhere",
        ),
    ),
    "M8": Line(
        "a valid initiation, cut or extended",
        "dropped",
        (
            "proto/test_messages.py::test_every_length",
            "proto/test_gate.py::test_every_type_at_every_length",
        ),
    ),
    "M9": Line(
        "a wrong mac1",
        "dropped in conn-service, which holds no key",
        (
            "proto/test_gate.py::test_every_bit_counts_but_those_of_mac2",
            "system/test_interop_handshakes.py::test_who_does_not_know_our_key_does_not_pass_the_gate",
        ),
    ),
    "M10": Line(
        "a good mac1 over garbage",
        "dropped after one X25519",
        ("proto/test_handshake.py::test_an_initiation_with_a_bit_flipped_is_refused",),
    ),
    "M11": Line(
        "a wrong mac2 without load",
        "as without mac2",
        ("proto/test_gate.py::test_without_load_mac2_is_ignored",),
    ),
    "M12": Line(
        "under load no mac2, or an old or another place's",
        "a cookie reply alone",
        (
            "proto/test_gate.py::test_under_load_a_cookie_is_demanded",
            "proto/test_gate.py::test_a_cookie_is_good_for_its_address_and_port_alone",
            "proto/test_gate.py::test_a_cookie_is_not_good_for_long",
            "proto/test_cookie.py::test_mac2_of_another_place",
            "proto/test_cookie.py::test_mac2_of_zeros",
            "proto/test_cookie.py::test_mac2_of_the_previous_secret",
        ),
    ),
    "M13": Line(
        "an ephemeral key of low order or not canonical",
        "dropped",
        (
            "proto/test_handshake.py::test_low_order_ephemeral_in_an_initiation",
            "proto/test_handshake.py::test_low_order_ephemeral_in_a_response",
            "proto/test_noise.py::test_low_order_points_are_refused",
            "proto/test_noise.py::test_non_canonical_point_of_great_order_is_the_same_as_its_canonical_form",
        ),
    ),
    "M14": Line(
        "a static key of low order, our own, or of no peer",
        "dropped",
        (
            "proto/test_handshake.py::test_low_order_static",
            "proto/test_handshaker.py::test_strangers_are_refused",
            "proto/test_handshaker.py::test_our_own_key_as_a_peer_is_refused",
            "proto/test_handshaker_lives.py::test_a_removed_peer_leaves_nothing_under_way",
            "system/test_interop_handshakes.py::test_a_key_we_do_not_know_is_counted_and_not_answered",
        ),
    ),
    "M15": Line(
        "a configured key of low order, or our own",
        "refused, or never spoken to",
        (
            "system/test_netns_peers.py::test_a_peer_with_our_own_key_or_one_of_low_order_is_never_spoken_to",
            "config/test_mistakes.py::test_public_keys_of_low_order",
            "proto/test_handshaker.py::test_low_order_keys_are_never_answered_nor_sent_to",
        ),
    ),
    "M16": Line(
        "an initiation again, at once, later, or from elsewhere",
        "silence",
        (
            "proto/test_handshaker.py::test_replays_and_older_ones_are_refused_newer_ones_not",
            "proto/test_sim_lives.py::test_replays_after_the_fact_change_nothing",
            "system/test_paths_faults.py::test_what_is_replayed_is_neither_delivered_nor_answered",
        ),
    ),
    "M17": Line(
        "an initiation again, after stages were killed",
        "silence",
        (
            "system/test_restart.py::test_an_initiation_from_before_is_not_answered_after",
            "proto/test_sim_lives.py::test_replays_after_everything_restarted_change_nothing",
            "proto/test_sim_lives.py::test_replays_after_key_service_restarted_change_nothing",
            "services/test_device_service.py::test_a_dead_key_service_costs_no_packet_and_no_old_initiation_is_answered_after",
        ),
    ),
    "M18": Line(
        "a timestamp that is equal, older, absurd, or malformed",
        "dropped; an absurd one can be forgotten",
        (
            "proto/test_handshaker.py::test_any_timestamp_that_grows_will_do",
            "proto/test_peer.py::test_only_a_newer_stamp_will_do",
            "proto/test_tai64n.py::test_bad_stamps",
            "services/test_odd_stamps.py::test_a_stamp_of_the_future_is_named_with_its_peer",
            "services/test_odd_stamps.py::test_removed_and_added_again_in_one_operation",
        ),
    ),
    "M19": Line(
        "many valid initiations of one peer",
        "50 in a second at most",
        ("proto/test_handshaker.py::test_initiations_of_one_peer_are_20_ms_apart",),
    ),
    "M20": Line(
        "a response to another initiation, doubled, or late",
        "dropped, and the session goes on",
        (
            "proto/test_handshaker.py::test_a_response_names_the_initiation_it_answers",
            "proto/test_handshaker.py::test_only_the_last_initiation_is_answered_and_only_once",
            "proto/test_handshake.py::test_a_response_to_another_initiation_is_refused",
            "proto/test_handshake.py::test_a_response_with_a_bit_flipped_is_refused_and_the_good_one_still_welcome",
        ),
    ),
    "M21": Line(
        "a cookie reply that is not awaited, again, or forged",
        "dropped; no endpoint moves",
        (
            "proto/test_cookie.py::test_a_reply_nobody_asked_for",
            "proto/test_cookie.py::test_a_reply_again",
            "proto/test_cookie.py::test_a_reply_to_an_older_message",
            "proto/test_cookie.py::test_a_reply_with_another_nonce",
            "proto/test_handshaker.py::test_cookie_replies_move_nothing_but_the_cookie",
        ),
    ),
    "M22": Line(
        "data before the session is confirmed or installed",
        "no session ends",
        (
            "proto/test_tunnel.py::test_data_before_confirmation_is_parked_and_goes_with_the_first_packet",
            "proto/test_sim_lives.py::test_a_response_leaves_only_when_its_session_is_installed",
            "services/test_device_service.py::test_a_response_leaves_only_when_the_worker_has_the_session",
        ),
    ),
    "M24": Line(
        "both sides initiate at once",
        "one session, and no livelock",
        (
            "proto/test_sim_network.py::test_both_sides_at_once_a_thousand_times",
            "proto/test_sim_network.py::test_both_sides_at_once_with_delays_and_loss",
        ),
    ),
    "M25": Line(
        "anything",
        "dropped and counted; the honest tunnel goes on",
        (
            "fuzz/test_doors.py::test_mutated_inputs",
            "fuzz/test_doors.py::test_inputs_that_are_kept",
        ),
    ),
    "F4": Line(
        "a flood of a configured peer's valid initiations",
        "that peer alone is limited",
        (
            "proto/test_handshaker.py::test_initiations_of_one_peer_are_20_ms_apart",
            "proto/test_gate.py::test_a_flood_from_one_source_takes_nothing_from_others",
        ),
    ),
    "F6": Line(
        "a counter far ahead under a wrong tag",
        "the window stays",
        ("proto/test_tunnel.py::test_a_forged_counter_moves_neither_window_nor_endpoint",),
    ),
    "F7": Line(
        "10,000 peers initiate at once",
        "all get a session within 30 s",
        (
            "proto/test_pace.py::test_so_many_begin_and_the_next_when_one_is_answered_or_late",
            "proto/test_handshaker_lives.py::test_many_peers_of_a_worker_that_comes_back_take_turns",
        ),
    ),
    "F8": Line(
        "initiations with a victim's address",
        "no more bytes leave than came",
    ),
    "A1": Line(
        "counters around the edges of the window",
        "the kernel's verdicts",
        (
            "proto/test_replay.py::test_counters_at_the_edges",
            "proto/test_replay.py::test_the_bulk_cases",
            "proto/test_replay.py::test_the_steps",
        ),
    ),
    "A2": Line(
        "counters at the limit",
        "refused; the window does not wrap",
        (
            "proto/test_replay.py::test_the_last_counters",
            "proto/test_tunnel.py::test_counters_at_the_limit_are_refused",
        ),
    ),
    "A3": Line(
        "our own counter near its limits",
        "a rekey at 2^60, then silence",
        (
            "proto/test_sim_timers.py::test_either_rekeys_after_2_60_messages",
            "proto/test_sim_timers.py::test_at_the_last_counter_sending_stops_and_a_new_session_takes_over",
            "proto/test_session.py::test_counters_end_before_they_could_repeat",
            "proto/kernel/test_sealing.py::test_counters_that_run_out_end_sealing",
        ),
    ),
    "A4": Line(
        "datagrams doubled, out of order by 8,000, lost",
        "each arrives once",
        (
            "proto/test_sim_network.py::test_packets_8000_out_of_order_arrive_all_and_once",
            "proto/test_sim_network.py::test_a_terrible_network_delays_but_never_corrupts",
            "system/test_paths_faults.py::test_no_fault_doubles_a_packet_or_costs_another",
            "system/test_lab.py::test_a_faulty_and_replaying_network_lets_no_packet_through_twice",
        ),
    ),
    "A5": Line(
        "old datagrams again, also after rekeys and kills",
        "none is delivered",
        (
            "proto/test_sim_lives.py::test_replays_after_a_rekey_change_nothing",
            "proto/test_sim_lives.py::test_replays_after_the_end_of_the_session_change_nothing",
            "system/test_paths_faults.py::test_what_is_replayed_is_neither_delivered_nor_answered",
        ),
    ),
    "A6": Line(
        "a session older than 180 s",
        "refused both ways; keys wiped after 540 s",
        (
            "proto/test_sim_timers.py::test_nothing_is_received_under_a_session_of_180_s",
            "proto/test_sim_timers.py::test_nothing_is_sent_under_a_session_of_180_s",
            "proto/test_sim_timers.py::test_keys_are_wiped_540_s_after_the_last_session",
        ),
    ),
    "A7": Line(
        "malformed inner packets of every kind",
        "dropped or trimmed",
        (
            "proto/test_worker.py::test_malformed_inner_packets_are_dropped",
            "proto/test_worker.py::test_other_versions_are_malformed",
            "proto/test_worker.py::test_packets_are_trimmed_to_their_own_length",
            "proto/test_worker.py::test_a_packet_of_65535_bytes_passes",
            "proto/packets/test_ip.py::test_ipv4_lengths",
            "proto/packets/test_ip.py::test_ipv6_lengths",
            "proto/kernel/test_opening.py::test_both_kernels_open_the_same",
        ),
    ),
    "A8": Line(
        "an inner source of another peer, or of nobody",
        "dropped; the endpoint may move",
        (
            "proto/test_worker.py::test_source_must_be_the_peers_by_the_longest_prefix_of_all",
            "proto/test_worker.py::test_the_endpoint_moves_although_the_inner_source_is_refused",
            "proto/kernel/test_opening.py::test_both_kernels_open_the_same",
            "system/test_netns_peers.py::test_what_comes_from_anothers_address_is_not_delivered_but_the_peer_has_moved",
        ),
    ),
    "A9": Line(
        "payloads without padding, or with any",
        "accepted",
        (
            "proto/test_worker.py::test_packets_are_trimmed_to_their_own_length",
            "proto/kernel/test_opening.py::test_both_kernels_open_the_same",
        ),
    ),
    "A10": Line(
        "a storm of keepalives",
        "nothing is delivered or answered",
        (
            "proto/test_worker.py::test_a_keepalive_is_no_packet_and_moves_the_endpoint",
            "proto/test_timers.py::test_a_keepalive_received_asks_for_none",
        ),
    ),
    "A11": Line(
        "an authentic packet from a new place",
        "answers go there",
        (
            "system/test_paths_roaming.py::test_the_peers_port_changes",
            "system/test_paths_roaming.py::test_the_peers_address_changes_and_its_family",
            "system/test_paths_roaming.py::test_the_nat_gives_another_port",
        ),
    ),
    "A12": Line(
        "a copy that comes first, and old ones, from elsewhere",
        "old ones move nothing; the next genuine one moves back",
        (
            "proto/test_sim_network.py::test_a_copy_that_comes_first_moves_the_endpoint_until_the_next_genuine_packet",
            "proto/test_tunnel.py::test_a_replay_is_dropped_and_moves_nothing",
        ),
    ),
    "A14": Line(
        "another pre-shared key, on one side, or changed",
        "no new session; the live one goes on",
        (
            "system/test_interop_handshakes.py::test_another_pre_shared_key_yields_no_session",
            "proto/test_sim_lives.py::test_a_preshared_key_on_one_side_only_lets_nothing_through",
            "proto/test_sim_lives.py::test_a_changed_preshared_key_leaves_the_session_alone_and_holds_for_the_next",
            "system/test_wg_live.py::test_preshared_key_holds_from_the_next_handshake",
        ),
    ),
    "A16": Line(
        "two idle hours, then data",
        "one round trip; the packet is not lost",
        ("proto/test_sim_keepalive.py::test_two_idle_hours_then_a_packet_costs_one_round_trip",),
    ),
}
