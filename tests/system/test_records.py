"""What a real gateway records of itself: events, to their readers and through a webhook, whatever is killed meanwhile."""

import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests import schemas
from tests.system.whys import broken, works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.traffic import ping
from lab.wait import until

pytestmark = pytest.mark.system

ANNA, STRANGER = Spoke(1, name="Anna <b>\u202e\x1b[2J&phone" + "x" * 10_000), Spoke(2)
PINGS = 20
ON_THE_WIRE = 16 + 1040 + 16
"""Bytes of a message with a ping of 1,000 bytes, padded."""
SHOWN = "Anna <b>[2J&phonexxxxxxxxxx"


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("e") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"anna": ANNA}) as gateway:
        gateway.gateway.command("reload", gateway.name)
        until(lambda: kinds(gateway) >= {"reloaded"}, 10, "the reload to be an event")
        yield gateway


def events(hub: Hub, *options: str) -> list[dict[str, Any]]:
    text = hub.gateway.command("events", hub.name, "--json", *options).stdout
    return [json.loads(line) for line in text.splitlines()]


def kinds(hub: Hub) -> set[str]:
    return {event["kind"] for event in events(hub)}


def taken_over(hub: Hub) -> set[str]:
    return {event["stage"] for event in events(hub, "--kind", "taken_over")}


def answers(hub: Hub) -> bool:
    return hub.gateway.command("events", hub.name, check=False).returncode == 0


def written(hub: Hub) -> set[str]:
    """The kinds of events that are on the disk."""
    with closing(sqlite3.connect(hub.gateway.state_directory / hub.name / "history" / "history.db")) as db:
        return {kind for (kind,) in db.execute("SELECT DISTINCT kind FROM events")}


def history(hub: Hub) -> dict[str, Any]:
    found = json.loads(hub.gateway.command("history", ANNA.keys.public, "-i", hub.name, "--json").stdout)
    assert isinstance(found, dict)
    return found


class Server:
    """A web server in the gateway's namespace. `fails`: it answers 503."""

    def __init__(self, hub: Hub, port: int = 0) -> None:
        self.got: list[dict[str, Any]] = []
        self.fails = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not outer.fails:
                    outer.got.append(json.loads(body))
                self.send_response(503 if outer.fails else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = hub.namespace.call(lambda: http.server.HTTPServer(("127.0.0.1", port), Handler))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"


@contextmanager
def following(hub: Hub, *options: str | Path) -> Iterator[None]:
    process = hub.namespace.popen(
        executable("stagewire"), "events", hub.name, "--follow", *options, env=hub.gateway.env
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_a_peers_way_and_the_gateways_own_are_events_and_reach_a_webhook_that_was_down(
    network: Topology, hub: Hub, tmp_path: Path
) -> None:
    server, cursor = Server(hub), tmp_path / "cursor"
    with following(hub, "--webhook", server.url, "--cursor", cursor):
        until(cursor.exists, 10, "the follower to begin")
        with hub.wireguard_go(ANNA, network.a, Topology.B4):
            assert works(network.a, ANNA.gateway_inner[0])
            until(lambda: "connected" in kinds(hub), 10, "the connection to be an event")
            for stage in ("conn", "key"):
                hub.gateway.kill(stage, signal.SIGKILL)
            until(lambda: {"conn", "key"} <= taken_over(hub), 20, "the take-overs to be events")
            # What happened is on the disk a moment later, and the next status-service goes on from there.
            until(lambda: written(hub) >= {"connected", "taken_over"}, 10, "the events to be written")
            killed = hub.gateway.kill("status", signal.SIGKILL)
            until(lambda: hub.gateway.held().get(("status", 0)) not in (None, killed), 10, "the next status-service")
            until(lambda: answers(hub) and kinds(hub) >= {"connected", "taken_over"}, 10, "the events to be back")
            assert "disconnected" not in kinds(hub)
            assert works(network.a, ANNA.gateway_inner[0])
        server.fails = False
        until(lambda: {event["kind"] for event in server.got} >= {"connected", "taken_over"}, 60, "the webhook")
    [came] = [event for event in server.got if event["kind"] == "connected"]
    assert (came["public_key"], came["interface"]) == (ANNA.keys.public, hub.name)
    assert came["name"].startswith(SHOWN)
    assert len(came["name"]) <= 64
    assert came["endpoint"].endswith(f":{ANNA.port}")
    assert [event["id"] for event in server.got] == sorted({event["id"] for event in server.got})
    # What was delivered is not delivered again.
    with following(hub, "--webhook", server.url, "--cursor", cursor):
        hub.gateway.command("scale", "3", hub.name)
        until(lambda: server.got[-1]["kind"] == "scaled", 15, "the next event")
    assert (server.got[-1]["workers"], server.got[-1]["workers_before"]) == (3, 2)
    assert len([event for event in server.got if event["kind"] == "connected"]) == 1
    server.close()


def test_a_web_server_that_fails_hangs_and_comes_back_gets_all_and_a_command_beside_it_waits_for_nothing(
    hub: Hub, tmp_path: Path
) -> None:
    server, cursor, told = Server(hub), tmp_path / "cursor", tmp_path / "told"
    port = server.server.server_port
    command = f"sh -c 'cat >> {told}; echo >> {told}'"

    def ran() -> list[dict[str, Any]]:
        return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []

    wanted = ["2", "4", "3"]
    with following(hub, "--kind", "scaled", "--webhook", server.url, "--exec", command, "--cursor", cursor):
        until(cursor.exists, 10, "the follower to begin")
        begun = cursor.read_text()
        hub.gateway.command("scale", wanted[0], hub.name)
        until(lambda: len(ran()) == 1, 10, "the command, while the server fails")
        server.close()
        with hub.namespace.call(lambda: socket.create_server(("127.0.0.1", port))) as silent:
            silent.settimeout(20)
            connection, _ = silent.accept()  # it reads nothing and answers nothing
            for number in wanted[1:]:
                hub.gateway.command("scale", number, hub.name)
            until(lambda: len(ran()) == 3, 10, "the command, while the server hangs")
            assert cursor.read_text() == begun, "the slowest has had none yet"
            connection.close()
        back = Server(hub, port)
        back.fails = False
        until(lambda: len(back.got) == 3, 30, "the events at the server that is back")
    assert [str(event["workers"]) for event in back.got] == wanted
    assert ran() == back.got
    until(lambda: cursor.read_text().strip() == str(back.got[-1]["id"]), 10, "the cursor to follow")
    back.close()


def test_a_follower_ends_with_its_reader(hub: Hub) -> None:
    follower = hub.namespace.popen(
        executable("stagewire"), "events", hub.name, "--follow", output=subprocess.PIPE, env=hub.gateway.env
    )
    assert follower.stdout is not None
    follower.stdout.close()
    assert follower.wait(10) == 1


def test_a_stranger_is_refused_by_name_of_its_key_and_place(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(STRANGER, network.a, Topology.B4):
        assert broken(network.a, STRANGER.gateway_inner[0])
        until(lambda: events(hub, "--kind", "refused") != [], 10, "the refusal")
    [refused] = events(hub, "--kind", "refused")
    assert (refused["reason"], refused["public_key"], refused["name"]) == ("unknown_peer", STRANGER.keys.public, "")
    line = hub.gateway.command("events", hub.name, "--kind", "refused", "--since", "1h").stdout
    assert "unknown_peer; if the sender should be a peer, add its public key" in line


def test_a_change_by_wg_is_an_event_with_who_made_it_and_what(hub: Hub) -> None:
    before = len(events(hub, "--kind", "reloaded"))
    key = b64decode(STRANGER.keys.public).hex()
    for change in ("allowed_ip=192.0.2.0/24", "remove=true"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(hub.gateway.wg_directory / f"{hub.name}.sock"))
            line.sendall(f"set=1\npublic_key={key}\n{change}\n\n".encode())
            assert line.recv(64) == b"errno=0\n\n"

    def told() -> str:
        return "\n".join(
            str(each["what"]) + str(each["changes"]) for each in events(hub, "--kind", "reloaded")[before:]
        )

    until(lambda: "removed" in told(), 10, "the changes to be events")
    assert "wg set, by uid 0 (pid " in told()
    assert f"peer {STRANGER.keys.public[:10]}  AllowedIPs 192.0.2.0/24" in told()


@pytest.mark.parametrize(
    ("schema", "command"),
    [
        ("status", "status HUB"), ("peers", "peer list -i HUB"), ("peer", "peer show KEY -i HUB"),
        ("why", "why KEY HUB --no-try"), ("doctor", "doctor HUB"), ("history", "history KEY -i HUB"),
        ("history", "history --stage device -i HUB"), ("usage", "usage HUB"),
    ],
)  # fmt: skip
def test_the_json_of_each_command_is_as_its_schema_says(hub: Hub, schema: str, command: str) -> None:
    words = [{"HUB": hub.name, "KEY": ANNA.keys.public}.get(word, word) for word in command.split()]
    schemas.check(json.loads(hub.gateway.command(*words, "--json", check=False).stdout), schema)


def test_each_event_and_each_of_all_interfaces_is_as_its_schema_says(hub: Hub) -> None:
    found = events(hub)
    assert {"connected", "reloaded", "taken_over"} <= {event["kind"] for event in found}
    for event in found:
        schemas.check(event, "event")
    for each in json.loads(hub.gateway.command("status", "--json").stdout):
        schemas.check(each, "status")


def test_lines_for_people_are_clean_and_mistakes_are_said(hub: Hub) -> None:
    key = ANNA.keys.public
    for command in (
        ["events", hub.name], ["status", hub.name], ["top", hub.name, "--once"], ["why", key, hub.name, "--no-try"],
        ["peer", "list", "-i", hub.name], ["metrics", hub.name], ["history", key, "-i", hub.name],
    ):  # fmt: skip
        text = hub.gateway.command(*command, check=False).stdout
        assert "Anna <b>[2J" in text, command
        assert all(line.isprintable() for line in text.splitlines()), command
    assert all(line.isprintable() for log in hub.gateway.logs().values() for line in log.splitlines())
    for options, said in ((("--since", "soon"), "--since must be"), (("--webhook", "ftp://x"), "must begin with http")):
        refused = hub.gateway.command("events", hub.name, *options, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_sums_outlive_down_and_up_and_kills_and_are_shown_while_it_is_down(network: Topology, hub: Hub) -> None:
    hub.gateway.down()
    first = history(hub)
    assert first["name"].startswith(SHOWN)
    assert first["rx_bytes"] > 0
    assert [each["endpoint"].endswith(f":{ANNA.port}") for each in first["connections"]] == [True]
    assert first["connections"][0]["until_unix_s"] is not None, "down has ended it"
    usage = hub.gateway.command("usage", hub.name).stdout
    assert all(line.isprintable() for line in usage.splitlines())
    assert SHOWN in usage
    folder = hub.gateway.state_directory / hub.name / "history"
    assert folder.stat().st_mode & 0o777 == 0o700
    hub.gateway.up()
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: events(hub)[-1]["kind"] == "connected", 10, "the connection, after the one that down ended")
        assert ping(network.a, ANNA.gateway_inner[0], count=PINGS, interval=0, size=1000).received == PINGS
        hub.gateway.down()  # at once: the last bytes are not even reported
    second = history(hub)
    for way in ("rx_bytes", "tx_bytes"):
        assert PINGS * ON_THE_WIRE <= second[way] - first[way] < PINGS * ON_THE_WIRE + 3000


def test_a_supervisord_that_is_told_to_end_writes_the_last_bytes_as_well(network: Topology, hub: Hub) -> None:
    before = history(hub)
    hub.gateway.up()
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        assert ping(network.a, ANNA.gateway_inner[0], count=PINGS, interval=0, size=1000).received == PINGS
        os.kill(hub.gateway.pid(), signal.SIGTERM)
        until(lambda: not hub.gateway.processes(), 10, "all processes to end")
    after = history(hub)
    for way in ("rx_bytes", "tx_bytes"):
        assert PINGS * ON_THE_WIRE <= after[way] - before[way] < PINGS * ON_THE_WIRE + 3000
