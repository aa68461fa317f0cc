"""Keys that are no longer in force: in no file of ours and no registry once the change is answered."""

import errno
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.services.live import FILE, PRIVATE, A, B, House, apply, peer, remember

from key_service import journal, live
from key_service.registry import Registry
from stagewire import files
from stagewire.config import accepted, encode_key
from stagewire.config.accepted import Accepted
from stagewire.config.parser import parse
from stagewire.loop import boot_time
from stagewire.proto.noise import clamp

OLD, NEW, LIVE = (clamp(sha256(name).digest()) for name in (b"old", b"new", b"live"))
WITH_SECRETS = f"""# PresharedKey = {encode_key(OLD)}
{FILE}PresharedKey = {encode_key(OLD)}
[Peer]
PublicKey = {encode_key(B)}
PresharedKey = {encode_key(LIVE)}
"""


class Kept(House):
    """Keeps a file's text as key-service does."""

    def __init__(self, folder: Path, text: str = WITH_SECRETS) -> None:
        super().__init__(folder, Registry(parse(text, "wg0.conf")))
        self.text = Accepted.first(text)
        self.live.forget = self._forget

    def _forget(self, secrets: set[bytes]) -> None:
        self.text = self.text.without(secrets)

    def holds(self, secret: bytes) -> list[str]:
        """Where a key is."""
        forms = (secret, secret.hex().encode(), encode_key(secret).encode())
        places = {"journal": self.store.read_bytes() if self.store.exists() else b"", "text": self.text.packed()}
        places["registry"] = b"".join(
            each.preshared_key for of in (self.registry.file, self.registry.interface) for each in of.peers
        ) + (self.registry.file.private_key or b"")
        return [name for name, data in places.items() if any(form in data for form in forms)]

    def again(self) -> Registry:
        """What the next key-service has in force."""
        registry = Registry(parse(self.text.text, "wg0.conf"))
        remember(self, registry)
        return registry


@pytest.fixture(autouse=True)
def _in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BUDGET", 60.0)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


CHANGES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "another private key": (PRIVATE, {"private_key": NEW}),
    "no private key": (PRIVATE, {"private_key": bytes(32)}),
    "another pre-shared key": (OLD, {"peers": [peer(A, preshared_key=NEW)]}),
    "no pre-shared key": (OLD, {"peers": [peer(A, preshared_key=bytes(32))]}),
    "no peer": (OLD, {"peers": [peer(A, remove=True)]}),
    "other peers": (OLD, {"peers": [peer(B, preshared_key=LIVE)], "replace_peers": True}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_that_leaves_is_nowhere_once_the_change_is_answered(kept: Kept, name: str) -> None:
    gone, values = CHANGES[name]
    assert kept.holds(gone)
    kept.change(*values.pop("peers", ()), **values)
    assert kept.answers == [0]
    assert kept.holds(gone) == []
    assert "text" in kept.holds(LIVE)
    again = kept.again()
    assert again.peers == kept.registry.peers
    assert again.interface.private_key == kept.registry.interface.private_key


def test_a_key_that_came_by_the_socket_leaves_as_well(kept: Kept) -> None:
    kept.change(peer(A, preshared_key=NEW), private_key=NEW)
    assert "journal" in kept.holds(NEW)
    kept.change(peer(A, preshared_key=OLD), private_key=PRIVATE)
    assert kept.holds(NEW) == []


def test_a_key_that_another_peer_still_has_stays(kept: Kept) -> None:
    kept.change(peer(B, preshared_key=OLD))
    kept.change(peer(A, remove=True))
    assert "text" in kept.holds(OLD)
    assert kept.again().peers == kept.registry.peers


def test_a_reload_takes_a_former_key_out_of_a_comment(kept: Kept) -> None:
    text = WITH_SECRETS.replace(f"\nPresharedKey = {encode_key(OLD)}", "")
    kept.text = Accepted.anew(text)
    apply(kept, text)
    assert kept.holds(OLD) == []
    assert kept.text.was(text)


def test_a_file_without_the_key_takes_effect_though_the_key_was_forgotten(kept: Kept) -> None:
    """The file before had one: so the new file's silence removes the socket's key."""
    kept.change(peer(A, preshared_key=NEW))
    apply(kept, WITH_SECRETS.replace(f"\nPresharedKey = {encode_key(OLD)}", ""))
    assert kept.registry.peers[A].preshared_key == bytes(32)


def test_what_a_killed_life_could_not_finish_the_next_one_does(kept: Kept) -> None:
    before = kept.text
    kept.change(peer(A, preshared_key=NEW))
    assert Registry(parse(before.text, "wg0.conf")).lost() == set()
    again = Registry(parse(before.text, "wg0.conf"))
    remember(kept, again)
    assert again.lost() >= {OLD}
    assert not journal.Journal(kept.store).overgrown
    for _ in journal.Journal(kept.store).append(iter([b"set=1\n\n"])):
        pass
    assert journal.Journal(kept.store).overgrown, "an earlier record may hold keys that a later one replaced"


def test_a_disk_that_takes_nothing_is_tried_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "put_over", full)
        kept.change(peer(A, preshared_key=NEW))
        kept.change(peer(A, preshared_key=LIVE))
    assert kept.answers == [0, 0]
    assert kept.holds(NEW) == ["journal"]
    kept.change(peer(B, persistent_keepalive=5))
    while (due := kept.live.next_deadline()) is not None and due <= boot_time():
        kept.live.act(boot_time())
    assert kept.holds(NEW) == []


def test_the_text_is_recognised_without_its_keys() -> None:
    text = Accepted.first(WITH_SECRETS)
    assert text.without({NEW}) is text
    less = text.without({OLD})
    assert less.text.count(encode_key(OLD)) == 0
    assert less.text.count(encode_key(A)) == text.text.count(encode_key(A)) == 1
    assert less.generation == text.generation
    assert less.was(WITH_SECRETS)
    assert not less.was(less.text)
    assert accepted.unpack(less.packed()) == less
    assert less.without({LIVE}).was(WITH_SECRETS)


def test_an_old_content_is_overwritten(tmp_path: Path) -> None:
    old, fresh = tmp_path / "name", tmp_path / "fresh"
    old.write_bytes(OLD * 70_000)
    fresh.write_bytes(NEW)
    with old.open("rb") as reader:
        files.put_over(fresh, old)
        assert reader.read() == b""
    assert old.read_bytes() == NEW
    fresh.write_bytes(b"to none")
    files.put_over(fresh, tmp_path / "none")
    # A second name is another's file.
    fresh.write_bytes(NEW)
    (tmp_path / "second").hardlink_to(old)
    files.put_over(fresh, old)
    assert (tmp_path / "second").read_bytes() == NEW
