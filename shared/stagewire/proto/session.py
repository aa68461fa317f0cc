"""Seals and opens under two keys, a counter that grows and a window that remembers; keeps a peer's three sessions.

WireGuard paper, sections 5.4.6 (transport) and 6.1 to 6.3 (limits). A session lives in exactly one process from
installation to end. For that reason alone no counter is used twice and no replay gets through.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stagewire.proto import constants as c
from stagewire.proto.messages import TRANSPORT_HEADER
from stagewire.proto.replay import ReplayWindow

_PADDING = [bytes(length) for length in range(c.PADDING_MULTIPLE)]


class Sender(Protocol):
    """Encrypts under the sending key."""

    def encrypt(self, nonce: bytes, packet: bytes, associated: None, /) -> bytes:
        """Returns the packet encrypted, with its tag. The nonce is of a counter that was taken for this packet."""


class Receiver(Protocol):
    """Decrypts under the receiving key."""

    def decrypt(self, nonce: bytes, sealed: bytes, associated: None, /) -> bytes:
        """Returns the packet, still padded. Raises InvalidTag."""


@runtime_checkable
class Forgetful(Protocol):
    """Overwrites its key when it is told to."""

    def forget(self) -> None: ...


class Window(Protocol):
    """Remembers counters, as `ReplayWindow` does."""

    def accept(self, counter: int) -> bool:
        """Tells whether a counter is new, and marks it as seen. Only for a counter whose packet was authenticated."""


class Session:
    """Holds one pair of transport keys.

    `created` is in s on the boot-time clock; indices are those on the wire (32 bits). `shaken` is when the handshake was
    complete, 0 before: a responder's is not before the first authentic packet under the session.
    """

    __slots__ = (
        "asked_for_rekey", "created", "index", "initiator", "receiver", "remote_index", "send_counter", "sender", "shaken",
        "window",
    )  # fmt: skip

    def __init__(
        self, index: int, remote_index: int, sender: Sender, receiver: Receiver,
        *, initiator: bool, created: float, window: Window | None = None,
    ) -> None:  # fmt: skip
        self.index = index
        self.remote_index = remote_index
        self.initiator = initiator
        self.created = created
        self.shaken = created if initiator else 0.0
        self.send_counter = 0
        self.window = window or ReplayWindow()
        self.asked_for_rekey = False
        self.sender = sender
        self.receiver = receiver

    def __repr__(self) -> str:
        return f"Session({self.index:#010x} -> {self.remote_index:#010x})"

    def may_send(self, now: float, count: int = 1) -> bool:
        """Tells whether the session is young enough and has `count` counters left (paper, section 6.2)."""
        return now - self.created < c.REJECT_AFTER_TIME and self.send_counter + count <= c.REJECT_AFTER_MESSAGES

    def expire_sending(self) -> None:
        """Ends sending for good; receiving goes on."""
        self.send_counter = c.REJECT_AFTER_MESSAGES

    def forget(self) -> None:
        """Overwrites the keys, as far as their kernel can: the session has ended."""
        for key in (self.sender, self.receiver):
            if isinstance(key, Forgetful):
                key.forget()

    def expired(self, now: float) -> bool:
        """Tells whether the session is too old to receive with."""
        return now - self.created >= c.REJECT_AFTER_TIME

    def outranks(self, other: "Session") -> bool:
        """Tells which of two sessions stays, when each side initiated one at the same time.

        Both sides find the same: they know the same indices.
        """
        if abs(self.created - other.created) >= c.REKEY_TIMEOUT:
            return False
        return self.initiator_index > other.initiator_index

    @property
    def initiator_index(self) -> int:
        return self.index if self.initiator else self.remote_index

    @property
    def counters_left(self) -> int:
        return c.REJECT_AFTER_MESSAGES - self.send_counter

    def take_counters(self, count: int) -> int:
        """Returns the first of `count` counters, with which the caller may seal, once each.

        Raises OverflowError if fewer are left.
        """
        counter = self.send_counter
        if count > c.REJECT_AFTER_MESSAGES - counter:
            raise OverflowError("no counters left")
        self.send_counter = counter + count
        return counter

    def seal(self, packets: list[bytes], mtu: int) -> list[bytes]:
        """Makes transport messages of the packets, in order, as far as counters are left. hot: bench Session.seal"""
        counter = self.send_counter
        left = c.REJECT_AFTER_MESSAGES - counter
        if len(packets) > left:
            packets = packets[:left]
        # Moved before the first packet is sealed: no counter serves twice, whatever fails below.
        self.send_counter = counter + len(packets)
        encrypt, pack, remote = self.sender.encrypt, TRANSPORT_HEADER.pack, self.remote_index
        sealed = []
        for packet in packets:
            header = pack(c.TYPE_TRANSPORT, remote, counter)
            padding = -len(packet) & 15
            if padding:
                # Never beyond the MTU: padding must not make fragments necessary.
                packet += _PADDING[min(padding, max(0, mtu - len(packet)))]  # noqa: PLW2901
            sealed.append(header + encrypt(b"\0\0\0\0" + header[8:], packet, None))
            counter += 1
        return sealed


@dataclass(slots=True)
class SessionSlots:
    """Holds a peer's sessions. `current` alone sends; all three receive.

    Rules (as in Linux's module; the paper leaves them open):

      1. An initiator knows that the responder has the keys. Its new session is `current` at once; the former `current`,
         or an unconfirmed session of the other role, becomes `previous`.
      2. A responder doesn't know yet that the initiator has the keys. Its new session waits as `next`; the first
         authentic packet under it promotes it.

    Two rules of our own, for two sessions from two initiations at the same time:

      3. The session whose initiator chose the greater index stays; otherwise both sides would be initiators and rekey
         at once again and again. If the unconfirmed session stays, it goes on waiting: most implementations drop their
         own initiation when they answer another, so its packets may never come.
      4. A session that still waits when a later one is installed was never used by its initiator, and ends.
    """

    previous: Session | None = None
    current: Session | None = None
    next: Session | None = None

    def __iter__(self) -> Iterator[Session]:
        return (session for session in (self.current, self.next, self.previous) if session is not None)

    def install(self, session: Session) -> list[Session]:
        """Takes a new session in; returns the sessions that end."""
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
        """Makes `next` current, after its first authentic packet; returns the sessions that end."""
        ended = [self.previous] if self.previous is not None else []
        self.previous, self.current, self.next = self.current, self.next, None
        return ended

    def clear(self) -> list[Session]:
        """Forgets all sessions; returns them."""
        ended = list(self)
        self.previous = self.current = self.next = None
        return ended
