"""Lists the attacks on processes and by processes of the same machine; `attack.lines` explains the list."""

from typing import Final

from tests.attack.line import Line

BY_CHAOS: Final[dict[str, tuple[str, ...]]] = {
    "P1": ("kill-tun", "kill-conn", "kill-key", "kill-worker"),
    "P3": ("kill-pair",),
    "P6": ("kill-supervisord",),
    "P7": ("hang-tun", "hang-conn", "hang-key", "hang-worker"),
    "P21": ("flood",),
    "P30": (),
}
"""Lists the attacks on processes that `make chaos` tries, with its kinds of fault. P30 is a soak, which takes most kinds."""

MACHINE: Final[dict[str, Line]] = {
    "killed-together": Line(
        "key-service and workers killed in one moment",
        "their peers' tunnels are back within 2.5 s",
        (
            "services/test_remembered.py::test_the_next_life_initiates_for_a_worker_that_died_with_it",
            "services/test_remembered.py::test_ten_thousand_peers_take_turns",
        ),
    ),
    "P4": Line(
        "all stages killed, and started in every order",
        "each order works unattended",
        ("system/test_restart_orders.py::test_every_order_works_unattended",),
    ),
    "P5": Line(
        "restarts by supervisorctl",
        "as a kill",
        (
            "system/test_any_time.py::test_supervisorctl_restarts_one_or_some_or_all_with_their_spares",
            "system/test_any_time.py::test_supervisord_may_be_told_to_begin_anew",
        ),
    ),
    "P9": Line(
        "a loop that stands still or turns without end",
        "the spare takes over",
        (
            "process/test_spare.py::test_a_holder_whose_loop_stands_still_is_killed",
            "process/test_spare.py::test_a_holder_that_has_announced_long_work_is_left_alone",
        ),
    ),
    "P10": Line(
        "workers come and go again and again, and far too many are wanted",
        "no packet comes twice; beyond 64 is refused",
        (
            "system/test_scale.py::test_workers_come_and_go_under_load",
            "system/test_scale.py::test_nonsense_is_refused",
        ),
    ),
    "frozen-holder": Line(
        "a control group freezes a stage",
        "its spare takes over; the frozen process never runs again",
        ("process/test_spare.py::test_a_holder_that_is_frozen_loses_its_slot_and_never_runs_again",),
    ),
    "wiped-folder": Line(
        "the run folder is wiped beside holders that work, hang or sleep",
        "all comes back, and no two processes hold one place",
        (
            "process/test_spare.py::test_a_wiped_folder_never_makes_two",
            "process/test_spare.py::test_a_wiped_folder_makes_no_two_beside_a_holder_that_sleeps",
            "system/test_any_time.py::test_a_wiped_run_folder_comes_back_with_all_that_was_in_it",
            "system/test_any_time.py::test_a_folder_that_is_wiped_while_it_is_made_again",
        ),
    ),
    "P11": Line("a stage runs out of memory", "that stage dies alone, as by a kill"),
    "P13": Line(
        "errors of the network and the device",
        "counted; the next packet is served",
        (
            "services/test_conn_service.py::test_a_place_that_cannot_be_reached_is_counted_and_the_next_is_served",
            "services/test_tun_service.py::test_what_the_os_refuses_is_counted",
            "system/test_host_watch.py::test_an_interface_that_is_deleted_is_made_again",
        ),
    ),
    "P14": Line(
        "the UDP port is taken",
        "said, and tried again",
        (
            "system/test_supervision.py::test_a_port_that_is_taken_is_named",
            "services/test_host_sockets.py::test_a_port_that_is_taken_at_the_start_is_explained_and_tried_again",
        ),
    ),
    "P15": Line(
        "the interface's name is taken",
        "said; the other device stays",
        (
            "system/test_supervision.py::test_a_name_that_is_taken_by_no_tun_device_is_left_alone",
            "system/test_supervision.py::test_a_tun_device_of_another_program_is_left_alone",
            "system/test_supervision.py::test_a_persistent_tun_device_of_somebody_else_is_left_alone",
        ),
    ),
    "P17": Line(
        "MTUs that change, inside and outside",
        "nothing is lost for long; padding fits",
        (
            "system/test_netns_mtu.py::test_padding_follows_the_mtu_as_it_changes",
            "system/test_paths_mtu.py::test_packets_of_exactly_the_mtu_pass_whole",
            "system/test_paths_mtu.py::test_datagrams_cut_on_their_way_arrive",
        ),
    ),
    "P18": Line(
        "outer addresses that go, come, and are several",
        "answers leave from where they must",
        (
            "system/test_netns_sources.py::test_when_the_address_goes_the_next_packet_finds_another",
            "system/test_netns_sources.py::test_answers_leave_from_the_address_that_was_contacted",
            "system/test_netns_sources.py::test_when_a_link_fails_the_other_serves",
        ),
    ),
    "P20": Line(
        "a stage gets a tenth of the processor",
        "loss at the pipe's entry alone, the gateway delivers nothing that is older than 250 ms, commands wait 50 ms",
        ("linux/test_udp_trains.py::test_what_a_full_socket_keeps_grows_no_older_than_250_ms",),
    ),
    "P22": Line(
        "a full disk",
        "packets flow; it is said",
        (
            "system/test_any_time_places.py::test_a_disk_that_fills_up_stops_nobody_from_taking_over",
            "system/test_any_time_places.py::test_up_on_a_full_disk_says_so_and_leaves_nothing",
            "services/test_timestamps.py::test_a_full_disk_is_an_error_and_costs_nothing_that_was_stored",
            "services/test_journal.py::test_a_full_disk",
        ),
    ),
    "P23": Line(
        "a broken configuration of any kind",
        "the old one stays in force; the line is named",
        (
            "config/test_mistakes.py::test_all_at_once_in_the_files_order",
            "config/test_parse.py::test_any_text_is_read_or_refused",
            "config/test_parse.py::test_ten_megabytes_of_anything_are_refused_in_seconds",
            "system/test_cli_reload.py::test_what_cannot_be_is_refused_whole",
            "system/test_cli_reload.py::test_an_empty_file_costs_nothing",
            "system/test_supervision.py::test_every_mistake_in_the_file_is_named_with_its_line",
        ),
    ),
    "P24": Line(
        "a file that others can write, a FIFO, a folder",
        "refused in one line, without a wait",
        (
            "config/test_load.py::test_what_is_no_file_is_refused_at_once",
            "config/test_load.py::test_a_file_that_everyone_may_write",
            "config/test_load.py::test_a_folder_where_anyone_may_replace_it",
            "config/test_load.py::test_modes_that_let_others_in",
            "config/test_load.py::test_a_file_of_another_user",
        ),
    ),
    "P25": Line(
        "state files that are cut, random, old or another's",
        "as absent, safely",
        (
            "services/test_timestamps.py::test_random_bytes_count_as_absent",
            "services/test_timestamps.py::test_a_truncated_file_keeps_what_is_whole",
            "services/test_timestamps.py::test_another_programs_file_counts_as_absent",
            "services/test_journal.py::test_whatever_a_crash_left_is_cut_off",
            "services/test_host_ledger.py::test_lines_that_are_none_are_left_out",
        ),
    ),
    "P27": Line(
        "the machine sleeps for longer than a session lives",
        "one handshake, and no old key serves",
    ),
    "P28": Line(
        "stages of two versions",
        "unknown versions are refused and counted",
        (
            "system/test_upgrade.py::test_every_process_runs_the_new_code_and_packets_flow_all_the_while",
            "system/test_upgrade.py::test_a_version_that_nobody_else_speaks_stops_at_the_first_step_and_harms_nothing",
            "pipe/test_trains.py::test_another_version_is_told_apart",
            "control/test_codec.py::test_another_version_is_refused",
        ),
    ),
    "P29": Line("the kernel has no randomness yet", "a handshake waits, or fails; none is weak"),
    "I1": Line(
        "another user looks for our sockets and connects",
        "refused at the folder",
        (
            "system/test_supervision.py::test_another_user_can_reach_none_of_it",
            "system/test_interop_network.py::test_other_users_cannot_enter_the_run_directory",
        ),
    ),
    "I2": Line(
        "another user has a way to our sockets all the same",
        "refused by the uid that the kernel tells",
        ("pipe/test_speakers.py::test_strangers_and_other_interfaces_connect_nowhere_and_root_everywhere",),
    ),
    "I3": Line(
        "a stage puts a socket in another's place",
        "refused by the folder",
        (
            "pipe/test_pipes.py::test_another_user_sees_nothing_and_a_stage_cannot_replace_anothers_pipe",
            "pipe/test_pipes.py::test_folders_belong_to_their_stage_and_the_group_may_only_pass_through",
        ),
    ),
    "I4": Line(
        "garbage, half a greeting, thousands of idle connections",
        "bounded; the others are served",
        (
            "fuzz/test_ipc_doors.py::test_idle_and_babbling_strangers_at_every_socket",
            "pipe/direct/test_direct.py::test_only_so_many_may_connect",
            "system/test_wg_bad_input.py::test_a_thousand_connections_that_say_nothing",
            "control/test_socket_door.py::test_a_flood_of_connections_leaves_a_bounded_number",
        ),
    ),
    "I5": Line(
        "messages that are short, deep, huge, or of another stage",
        "dropped and counted",
        (
            "fuzz/test_ipc_doors.py::test_damaged_control_messages",
            "fuzz/test_ipc_doors.py::test_damaged_trains_and_handshakes",
            "fuzz/test_ipc_doors.py::test_every_message_that_a_stage_may_say_with_anything_in_it",
            "fuzz/test_ipc_doors.py::test_too_much_in_one_message_costs_its_sender_the_connection",
            "services/test_allowed.py::test_key_service_hears_from_a_stage_what_is_allowed",
            "services/test_hub.py::test_a_stage_that_connects_is_asked_to_say_hello_and_an_empty_message_after_that_is_malformed",
        ),
    ),
    "I6": Line(
        "conn-service asks key-service for keys, sessions, and work without end",
        "its messages have no such question; others are served",
        (
            "services/test_allowed.py::test_key_service_hears_from_a_stage_what_is_allowed",
            "services/test_allowed.py::test_a_stage_hears_from_key_service_what_is_allowed",
        ),
    ),
    "I7": Line(
        "a worker asks for sessions that are not its own",
        "refused",
        (
            "services/test_hub.py::test_whoever_claims_to_be_a_worker_is_not_spoken_to_in_place_of_the_one_with_the_line",
            "control/test_session_keys.py::test_a_process_with_another_uid_than_the_workers_gets_no_session",
            "proto/test_handshaker_lives.py::test_a_worker_speaks_only_of_its_own_sessions",
        ),
    ),
    "I8": Line(
        "one stage looks into another, or kills it",
        "refused by the kernel",
        (
            "system/test_supervision.py::test_no_service_can_look_into_another_or_into_its_own_kind",
            "system/test_supervision.py::test_each_service_runs_as_its_own_user_with_no_more_than_it_needs",
        ),
    ),
    "I10": Line(
        "a search for keys where they do not belong",
        "none is found",
        (
            "system/test_hostile_keys.py::test_live_keys_are_where_they_belong_and_dead_keys_nowhere",
            "system/test_supervision.py::test_no_secret_is_anywhere_it_can_be_read",
            "control/test_session_keys.py::test_the_page_is_wiped_by_the_time_the_session_is_there",
            "services/test_sweeps.py::test_keys_of_sessions_that_were_given_are_in_no_memory_after_the_sweep",
        ),
    ),
    "I11": Line(
        "supervisord's socket and files",
        "root alone",
        ("system/test_supervision.py::test_supervisord_obeys_root_alone",),
    ),
    "I12": Line(
        "storms of signals",
        "no effect but the documented one",
        (
            "system/test_any_time.py::test_storms_of_signals",
            "system/test_restart.py::test_a_hangup_does_nothing",
            "test_loop.py::test_a_storm_of_signals_ends_it_once_and_cleanly",
        ),
    ),
}
