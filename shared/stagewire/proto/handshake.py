"""Makes and reads the initiation and the response: Noise_IKpsk2 as WireGuard defines it.

WireGuard paper, sections 5.4.2 and 5.4.3. `tunnel` sends the third step, an empty transport message that confirms the
session.

    initiator                                                   responder
    initiate ──── e, es, s, ss, {timestamp} ────▶ open_initiation_untrusted   names the sender    (1 DH)
                                                  authenticate_untrusted      proves the sender   (precomputed)
    read_response_untrusted ◀──── e, ee, se, psk, {} ──────── respond

Between two Stagewire gateways `{}` of the response may be `{timestamp}`, a TAI64N: the receiver tells by the length.

Contract: a function that raises has changed nothing. The state that waits for a response outlives every bad response.
"""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from stagewire.proto import constants as c
from stagewire.proto import messages, noise
from stagewire.proto.messages import BadMessage, Initiation, Response


@dataclass(frozen=True, slots=True)
class Identity:
    """Holds our long-term key pair."""

    private_key: X25519PrivateKey = field(repr=False)
    public_key: bytes

    @classmethod
    def from_private_bytes(cls, private_key: bytes) -> "Identity":
        """Makes the pair of a private key of 32 bytes, clamped or not."""
        key = X25519PrivateKey.from_private_bytes(private_key)
        return cls(key, noise.public_key_of(key))


@dataclass(slots=True)
class Remote:
    """Holds the peer's long-term facts.

    `point` is its public key; `static_shared`, DH of both static keys, is computed once.
    """

    public_key: bytes
    point: X25519PublicKey = field(repr=False)
    static_shared: bytes = field(repr=False)
    preshared_key: bytes = field(repr=False)

    @classmethod
    def of(cls, identity: Identity, public_key: bytes, preshared_key: bytes = bytes(c.KEY_LENGTH)) -> "Remote":
        """Computes the facts of a peer.

        Raises BadMessage for a public key of low order: nothing may be sent to such a peer.
        """
        point = noise.point_of(public_key)
        return cls(public_key, point, noise.dh(identity.private_key, point), preshared_key)

    def with_preshared_key(self, preshared_key: bytes) -> "Remote":
        """Returns the same facts with another pre-shared key. hot"""
        return Remote(self.public_key, self.point, self.static_shared, preshared_key)


@dataclass(slots=True)
class TransportKeys:
    """Holds a handshake's yield: our sending and our receiving key, 32 bytes each."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SentInitiation:
    """Keeps our index, our ephemeral and the state after `{timestamp}` until the response."""

    sender: int
    ephemeral: X25519PrivateKey = field(repr=False)
    state: noise.SymmetricState = field(repr=False)


@dataclass(slots=True)
class OpenedInitiation:
    """Holds an initiation that names its sender without proof. Nothing may be stored or answered for it."""

    message: Initiation
    point: X25519PublicKey = field(repr=False)
    """The initiation's ephemeral key."""
    public_key: bytes
    state: noise.SymmetricState = field(repr=False)


@dataclass(slots=True)
class AuthenticInitiation:
    """Holds an initiation whose sender is proven. It may be a replay: compare `timestamp` (TAI64N, as bytes)."""

    message: Initiation
    point: X25519PublicKey = field(repr=False)
    """The initiation's ephemeral key."""
    timestamp: bytes
    state: noise.SymmetricState = field(repr=False)


def initiate(
    identity: Identity, remote: Remote, sender: int, ephemeral: bytes, timestamp: bytes
) -> tuple[bytes, SentInitiation]:
    """Makes an initiation without its macs. `ephemeral` is 32 fresh random bytes, `timestamp` a TAI64N."""
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    public = noise.public_key_of(private)
    state = noise.initial_state(remote.public_key)
    state.mix_chain(public)
    state.mix_hash(public)
    state.mix_key(noise.dh(private, remote.point))
    static = state.seal(identity.public_key)
    state.mix_key(remote.static_shared)
    stamp = state.seal(timestamp)
    return messages.pack_initiation(sender, public, static, stamp), SentInitiation(sender, private, state)


def open_initiation_untrusted(identity: Identity, message: Initiation) -> OpenedInitiation:
    """Finds the public key that an initiation claims; costs one DH. Raises BadMessage."""
    point = noise.point_of(message.ephemeral)
    state = noise.initial_state(identity.public_key)
    state.mix_chain(message.ephemeral)
    state.mix_hash(message.ephemeral)
    state.mix_key(noise.dh(identity.private_key, point))
    public_key = state.open_untrusted(message.encrypted_static, "initiation_not_for_us")
    return OpenedInitiation(message, point, public_key, state)


def authenticate_untrusted(opened: OpenedInitiation, remote: Remote) -> AuthenticInitiation:
    """Proves that the sender holds the private key of `remote`, whose public key it named. Raises BadMessage."""
    state = opened.state.copy()
    state.mix_key(remote.static_shared)
    timestamp = state.open_untrusted(opened.message.encrypted_timestamp, "initiation_not_authentic")
    return AuthenticInitiation(opened.message, opened.point, timestamp, state)


def respond(
    initiation: AuthenticInitiation, remote: Remote, sender: int, ephemeral: bytes, timestamp: bytes = b""
) -> tuple[bytes, TransportKeys]:
    """Makes the response without its macs, and the session's keys. `timestamp` is empty, or a TAI64N to include.

    Raises BadMessage when the initiator's ephemeral is of low order.
    """
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    public = noise.public_key_of(private)
    state = initiation.state.copy()
    state.mix_chain(public)
    state.mix_hash(public)
    state.mix_chain(noise.dh(private, initiation.point))
    state.mix_chain(noise.dh(private, remote.point))
    state.mix_preshared_key(remote.preshared_key)
    payload = state.seal(timestamp)
    first, second = state.split()
    packed = messages.pack_response(sender, initiation.message.sender, public, payload)
    return packed, TransportKeys(send=second, receive=first)


def read_response_untrusted(
    identity: Identity, remote: Remote, sent: SentInitiation, message: Response, *, stamped: bool
) -> tuple[TransportKeys, bytes]:
    """Reads the response to `sent`; returns the session's keys and the response's timestamp, empty unless `stamped`.

    `stamped` names the expected form; the other form is refused. Raises BadMessage.
    """
    expected = c.TAG_LENGTH + (c.TIMESTAMP_LENGTH if stamped else 0)
    if len(message.encrypted_payload) != expected:
        raise BadMessage("response_without_timestamp" if stamped else "response_with_timestamp")
    state = sent.state.copy()
    point = noise.point_of(message.ephemeral)
    state.mix_chain(message.ephemeral)
    state.mix_hash(message.ephemeral)
    state.mix_chain(noise.dh(sent.ephemeral, point))
    state.mix_chain(noise.dh(identity.private_key, point))
    state.mix_preshared_key(remote.preshared_key)
    timestamp = state.open_untrusted(message.encrypted_payload, "response_not_authentic")
    first, second = state.split()
    return TransportKeys(send=first, receive=second), timestamp
