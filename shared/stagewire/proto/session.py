"""One session: two keys, a counter that grows, a window that remembers. And the three slots a peer has for sessions.

WireGuard paper, sections 5.4.6 (transport) and 6.1 to 6.3 (limits). A session lives in exactly one process from its
installation to its end; that, and nothing else, is why no counter is used twice and no replay gets through.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.proto import constants as c
from stagewire.proto.messages import TRANSPORT_HEADER
from stagewire.proto.replay import ReplayWindow

_PADDING = [bytes(length) for length in range(c.PADDING_MULTIPLE)]


class Session:
    """One pair of transport keys. `created` is in s on the boot-time clock; indices are the 32-bit ones on the wire."""

    __slots__ = (
        "_encrypt", "asked_for_rekey", "created", "decrypt", "decrypt_into", "encrypt_into", "index", "initiator",
        "remote_index", "send_counter", "window",
    )  # fmt: skip

    def __init__(
        self, index: int, remote_index: int, sender: ChaCha20Poly1305, receiver: ChaCha20Poly1305,
        *, initiator: bool, created: float,
    ) -> None:  # fmt: skip
        self.index = index
        self.remote_index = remote_index
        self.initiator = initiator
        self.created = created
        self.send_counter = 0
        self.window = ReplayWindow()
        self.asked_for_rekey = False
        self._encrypt = sender.encrypt
        self.decrypt = receiver.decrypt
        """(nonce, ciphertext with tag, None) -> packet with padding; raises InvalidTag."""
        self.encrypt_into = sender.encrypt_into
        """(nonce, packet with padding, None, place for it with its tag), which may be one place. Under a counter of
        `take_counters` alone."""
        self.decrypt_into = receiver.decrypt_into
        """The way back; raises InvalidTag."""

    def __repr__(self) -> str:
        return f"Session({self.index:#010x} -> {self.remote_index:#010x})"

    def may_send(self, now: float) -> bool:
        """Young enough, and counters left (paper, section 6.2)."""
        return now - self.created < c.REJECT_AFTER_TIME and self.send_counter < c.REJECT_AFTER_MESSAGES

    def expire_sending(self) -> None:
        """Never sends again; what the other side sends is still received."""
        self.send_counter = c.REJECT_AFTER_MESSAGES

    def expired(self, now: float) -> bool:
        """Too old to receive with."""
        return now - self.created >= c.REJECT_AFTER_TIME

    def outranks(self, other: "Session") -> bool:
        """Whether of two sessions that came about at once, one initiated by each side, this one is to stay.

        Both sides find the same: they know the same indices.
        """
        if abs(self.created - other.created) >= c.REKEY_TIMEOUT:
            return False
        return self.initiator_index > other.initiator_index

    @property
    def initiator_index(self) -> int:
        """The index that the initiator chose."""
        return self.index if self.initiator else self.remote_index

    @property
    def counters_left(self) -> int:
        """How many packets may still be sent."""
        return c.REJECT_AFTER_MESSAGES - self.send_counter

    def take_counters(self, count: int) -> int:
        """The first of `count` counters that are the caller's to seal with, once each.

        Raises OverflowError if there aren't as many.
        """
        counter = self.send_counter
        if count > c.REJECT_AFTER_MESSAGES - counter:
            raise OverflowError("no counters left")
        self.send_counter = counter + count
        return counter

    def seal(self, packets: list[bytes], mtu: int) -> list[bytes]:
        """Transport messages for as many of the packets, from the front, as there are counters left.

        Hot: 2.1 us per 1,420-byte packet in a train of 64, of which 1.3 us are the cipher's; 2.6 us for one alone.
        """
        counter = self.send_counter
        left = c.REJECT_AFTER_MESSAGES - counter
        if len(packets) > left:
            packets = packets[:left]
        # Moved before the first packet is sealed: whatever goes wrong below, no counter serves twice.
        self.send_counter = counter + len(packets)
        encrypt, pack, remote = self._encrypt, TRANSPORT_HEADER.pack, self.remote_index
        sealed = []
        for packet in packets:
            header = pack(c.TYPE_TRANSPORT, remote, counter)
            padding = -len(packet) & 15
            if padding:
                # Never beyond the MTU: the padded packet must not need fragments where the plain one didn't.
                packet += _PADDING[min(padding, max(0, mtu - len(packet)))]  # noqa: PLW2901
            sealed.append(header + encrypt(b"\0\0\0\0" + header[8:], packet, None))
            counter += 1
        return sealed


@dataclass(slots=True)
class SessionSlots:
    """A peer's sessions. Packets are sent with `current` only and received with any of the three.

    Rules (as in the Linux kernel's module, which the paper leaves open):
      1. As initiator we know that the responder has the keys: the new session is `current` at once, and the session
         that was, or an unconfirmed one of the other role, becomes `previous`.
      2. As responder we don't know yet that the initiator has them: the new session waits as `next`, and the first
         authentic packet under it promotes it.
    And two of our own, for when both sides initiated at once, so that there are two new sessions:
      3. The one whose initiator chose the greater index is to stay, or both sides would be initiators and rekey at
         once again and again. If that is the unconfirmed one, it goes on waiting: packets under it may come or may
         not, since most implementations drop their own initiation when they answer another.
      4. What waits still when a later session is installed was never used by its initiator, and is at its end.
    """

    previous: Session | None = None
    current: Session | None = None
    next: Session | None = None

    def __iter__(self) -> Iterator[Session]:
        return (session for session in (self.current, self.next, self.previous) if session is not None)

    def install(self, session: Session) -> list[Session]:
        """Takes a new session in; returns those that are at their end."""
        ended: list[Session | None]
        waiting, current = self.next, self.current
        if not session.initiator:
            ended = [waiting, self.previous]
            self.next, self.previous = session, None
        elif waiting is None or (current is not None and waiting.created <= current.created):
            ended = [waiting, self.previous]
            self.previous, self.current, self.next = current, session, None
        elif waiting.outranks(session):
            ended = [self.previous]
            self.previous, self.current = current, session
        else:
            ended = [self.previous, current]
            self.previous, self.current, self.next = waiting, session, None
        return [old for old in ended if old is not None]

    def promote(self) -> list[Session]:
        """The first authentic packet under `next` has come; returns the sessions at their end."""
        ended = [self.previous] if self.previous is not None else []
        self.previous, self.current, self.next = self.current, self.next, None
        return ended

    def clear(self) -> list[Session]:
        """Forgets all; returns the sessions at their end."""
        ended = list(self)
        self.previous = self.current = self.next = None
        return ended
