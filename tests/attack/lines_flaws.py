"""Lists flaws that came once: of earlier versions of ours by a word, of other implementations by their number or name."""

from typing import Final

from tests.attack.line import Line

_PLANTED: Final = "services/test_hostile_planted.py"
_HOLDER: Final = "process/test_hostile_holder.py"
_STAMPS: Final = "proto/test_tai64n.py"

FLAWS: Final[dict[str, Line]] = {
    "answered-early": Line(
        "packets follow a change that was answered",
        "none comes from the former owner, or goes there",
        (
            "system/test_answers.py::test_a_prefix_moves_between_peers",
            "system/test_answers.py::test_a_peer_is_removed",
            "services/test_answers.py::test_an_answer_waits_for_each_stage_and_each_mark",
        ),
    ),
    "jumping-clock": Line(
        "the wall clock is 10 years ahead, once",
        "our stamps do not follow within one boot; it is said",
        (
            f"{_STAMPS}::test_a_jump_ahead_is_not_followed",
            f"{_STAMPS}::test_the_floor_of_a_clock_that_was_ahead_is_passed",
            "services/test_clock.py::test_the_first_life_decides_for_all_of_this_up",
            "services/test_timestamps.py::test_a_stamp_beyond_all_times_is_no_floor_of_ours",
        ),
    ),
    "forged-packets": Line(
        "status-service's uid puts packets of any peer into the host",
        "it reaches no pipe of packets",
        ("system/test_hostile_speakers.py::test_status_services_uid_puts_no_packets_into_the_host",),
    ),
    "collected-keys": Line(
        "one worker's uid collects other peers' session keys",
        "it gets its own peers' alone",
        (
            "system/test_hostile_speakers.py::test_one_workers_uid_collects_no_keys_of_another_workers_peers",
            "services/test_moves.py::test_a_worker_gets_no_peer_by_its_word_whose_home_it_never_was",
        ),
    ),
    "mirrored-plaintext": Line(
        "conn-service mirrors inner packets to the outer link",
        "no capability, and no other kernel call",
        (
            "system/test_hostile_stages.py::test_a_hostile_stage_gets_nothing_more",
            "system/test_hostile_stages.py::test_every_thread_at_work_is_locked_up",
        ),
    ),
    "foreign-locks": Line(
        "a stage locks the slots of others, and another user the folder of all interfaces",
        "no process can open what another waits to lock",
        (
            "system/test_hostile_stages.py::test_no_stage_can_open_what_another_process_locks",
            "test_uids.py::test_a_folder_that_another_user_has_locked_stops_no_start",
        ),
    ),
    "usurped-place": Line(
        "a second process speaks for a place that is held",
        "refused; the true one is told everything again",
        (
            "pipe/test_speakers.py::test_a_second_process_for_a_place_that_is_held_is_refused_and_asks_for_nothing",
            "pipe/test_speakers.py::test_a_usurper_makes_way_for_the_holder_once_it_is_read",
            "system/test_hostile_speakers.py::test_a_usurper_of_conn_service_on_control_makes_way_for_the_true_one",
        ),
    ),
    "filled-pipes": Line(
        "one uid opens 1,200 connections, or 300 idle ones before a take-over, or sends frames of 8 MB",
        "bounded for the uid; a successor is served",
        (
            "pipe/test_doorman.py::test_1200_connections_of_one_uid_leave_a_few_and_others_are_served",
            "system/test_hostile_speakers.py::test_1200_connections_of_one_uid_to_control_harm_nobody",
            "system/test_hostile_speakers.py::test_idle_pushers_of_one_uid_stay_few_and_a_successor_is_served",
            "system/test_hostile_speakers.py::test_a_frame_of_8_mb_costs_its_sender_the_line_and_nobody_memory",
        ),
    ),
    "changing-memory": Line(
        "a stage changes a train that it has sent, or tells of memory that it doesn't share",
        "what was judged is what goes on; nobody ends",
        (
            "pipe/direct/test_shared_memory.py::test_a_slot_is_taken_once_a_turn_whatever_its_pusher_makes_of_the_state",
            "pipe/direct/test_shared_memory.py::test_what_may_become_shorter_or_is_no_memory_is_not_taken",
            "pipe/direct/test_direct_memory.py::test_a_pusher_that_tells_of_memory_it_does_not_share_is_hung_up_on",
            "pipe/direct/test_direct_memory.py::test_a_pusher_that_hands_over_something_else_is_served_without_memory",
            "linux/test_tun_trains.py::test_what_is_written_is_what_was_judged",
            "proto/test_worker_lent.py::test_a_super_packet_that_changes_after_it_was_judged_ends_nobody",
            "services/test_device_service.py::test_packets_larger_than_any_datagram_cost_a_worker_nothing",
        ),
    ),
    "roaming-storm": Line(
        "a peer moves with each datagram",
        "key-service hears of it ten times a second at most",
    ),
    "lost-stamps": Line(
        "something else lies in the place of the time stamps",
        "said; key-service goes on",
        (f"{_PLANTED}::test_lost_time_stamps_are_said_and_stop_nobody",),
    ),
    "planted": Line(
        "a stage leaves pipes, links, folders or huge files under all names of its folder",
        "no successor waits or obeys",
        (
            f"{_PLANTED}::test_the_wanted_number_of_workers",
            f"{_PLANTED}::test_the_accepted_text",
            "test_files.py::test_only_what_is_on_the_disk_is_overwritten",
            f"{_PLANTED}::test_the_journal",
            f"{_PLANTED}::test_the_door_for_reload_and_the_clock",
            f"{_PLANTED}::test_the_time_stamps",
            f"{_PLANTED}::test_who_had_sessions",
            f"{_PLANTED}::test_the_port_that_was_free",
            f"{_PLANTED}::test_the_ledger",
            f"{_PLANTED}::test_sockets",
            "system/test_hostile_planted.py::test_pipes_in_every_place_stop_nobody",
            "test_files.py::test_only_a_file_with_one_name_is_given_away",
        ),
    ),
    "believed-holder": Line(
        "a holder lies to its spare, which is root",
        "the kernel's word alone counts",
        (
            f"{_HOLDER}::test_a_holder_that_lies_about_its_life_is_killed",
            f"{_HOLDER}::test_a_holder_that_hangs_up_and_runs_on_gets_no_priority",
            f"{_HOLDER}::test_a_lock_that_was_left_to_another_process_keeps_no_slot",
            f"{_HOLDER}::test_a_process_without_the_lock_is_no_holder_whatever_its_pid",
            "process/test_handed.py::test_a_thing_passes_under_a_name_that_means_it",
            "process/test_handed.py::test_what_passes_never_makes_its_reader_wait",
        ),
    ),
    "any-sysctl": Line(
        "host-service's ledger names another kernel parameter",
        "the line is none",
        ("services/test_host_ledger.py::test_lines_that_are_none_are_left_out",),
    ),
    "forged-text": Line(
        "a stage or a peer writes escapes and line ends",
        "they reach no terminal, log or page",
        (
            "test_logs.py::test_a_cleaned_text_is_one_short_line",
            "test_logs.py::test_a_log_file_gets_no_escape_whatever_a_stage_writes",
            "test_logs.py::test_every_text_of_a_status_is_cleaned",
            "test_logs.py::test_a_failure_that_a_stage_worded_forges_no_line",
            "test_logs.py::test_no_line_of_ours_tells_systemd_more_than_we_mean",
        ),
    ),
    "lasting-keys": Line(
        "a key that was replaced or removed is searched for",
        "it is in no file of ours, and soon in no memory",
        (
            "services/test_forgotten_keys.py::test_a_key_that_leaves_is_nowhere_once_the_change_is_answered",
            "services/test_forgotten_keys.py::test_what_a_killed_life_could_not_finish_the_next_one_does",
            "services/test_forgotten_keys.py::test_a_reload_takes_a_former_key_out_of_a_comment",
        ),
    ),
    "endless-chain": Line(
        "peers lie behind one another in a ring",
        "conn-service sends nothing there",
        ("services/test_nesting.py::test_a_chain_without_an_end_outside_is_refused",),
    ),
    "CVE-2021-46873": Line(
        "a clock that was once ahead keeps a key from being answered for ever",
        "removing the peer forgets its stamp",
        (
            "services/test_odd_stamps.py::test_removed_and_added_again_in_one_operation",
            "services/test_odd_stamps.py::test_removing_a_peer_forgets_its_stamp_though_key_service_is_killed_at_once",
            f"{_STAMPS}::test_a_jump_ahead_is_not_followed",
        ),
    ),
    "CVE-2024-26861": Line(
        "a counter is judged while the window moves",
        "the window has one reader, and a refused counter changes nothing",
        (
            "proto/test_replay.py::test_a_rejected_counter_changes_nothing",
            "proto/kernel/test_cipher.py::test_the_window_judges_as_the_plain_one",
        ),
    ),
    "CVE-2017-7478": Line(
        "a handshake message that is too large",
        "dropped, and nothing ends",
        ("proto/test_gate.py::test_every_type_at_every_length", "proto/test_messages.py::test_every_length"),
    ),
    "CVE-2017-7479": Line(
        "the send counter reaches its end",
        "sending stops, and the process goes on",
        (
            "proto/test_session.py::test_counters_end_before_they_could_repeat",
            "proto/test_tunnel.py::test_what_counters_are_left_for_goes_and_the_rest_waits",
        ),
    ),
    "CVE-2020-11810": Line(
        "data with another's index, before its keys are ready",
        "no session ends",
        ("proto/test_tunnel.py::test_data_before_confirmation_is_parked_and_goes_with_the_first_packet",),
    ),
    "CVE-2025-13086": Line(
        "a cookie of another place, or of nobody",
        "no cookie",
        (
            "proto/test_cookie.py::test_mac2_of_another_place",
            "proto/test_gate.py::test_a_cookie_is_good_for_its_address_and_port_alone",
        ),
    ),
    "CVE-2023-41913": Line(
        "a public value of a wrong length or kind",
        "refused at every door",
        ("proto/test_wycheproof.py::test_no_door_takes_a_key_whose_secret_is_zeros",),
    ),
    "CVE-2020-16088": Line(
        "an authentic handshake by a key that is no peer's",
        "no session",
        ("proto/test_handshaker.py::test_strangers_are_refused",),
    ),
    "CVE-2015-6563": Line(
        "a process without rights speaks for another",
        "the kernel tells it apart",
        ("pipe/test_speakers.py::test_a_party_connects_to_the_pipes_that_list_it_and_to_no_other",),
    ),
    "CVE-2023-36672": Line(
        "routes of the local network lead packets around the tunnel",
        "nothing leaves in clear",
        ("system/test_netns_default_route.py::test_another_mark_neither_stops_the_tunnel_nor_lets_anything_out",),
    ),
    "gotatun-limiter": Line(
        "one source takes the handshakes of all",
        "each source has its own limit",
        (
            "proto/test_gate.py::test_under_load_a_proven_source_has_twenty_a_second_and_leaves_others_theirs",
            "proto/test_gate.py::test_a_flood_from_one_source_takes_nothing_from_others",
        ),
    ),
    "gotatun-roaming": Line(
        "a cookie reply from elsewhere",
        "no endpoint moves",
        ("proto/test_handshaker.py::test_cookie_replies_move_nothing_but_the_cookie",),
    ),
    "gotatun-nonce": Line(
        "more than 2^32 packets under one session",
        "the counter has 64 bits",
        ("proto/test_sim_network.py::test_counters_beyond_32_bits",),
    ),
}
