# cython: language_level=3
"""Computes the symmetric half of the handshake as `proto.noise` does, with OpenSSL's BLAKE2s and ChaCha20-Poly1305.

HMAC and HKDF lie here as they lie there, between calls of OpenSSL's hash. Chaining keys and message keys stay in a state's
own memory, which is overwritten with its end; what is derived on the way, on the stack, is overwritten at once.
hot: bench handshakes
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from stagewire.proto.messages import BadMessage

from stagewire.proto.kernel.openssl cimport (
    CRYPTO_memcmp,
    EVP_CIPHER_CTX,
    EVP_CIPHER_CTX_ctrl,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_CipherFinal_ex,
    EVP_CipherInit_ex,
    EVP_CipherUpdate,
    EVP_CTRL_AEAD_GET_TAG,
    EVP_CTRL_AEAD_SET_TAG,
    EVP_DigestFinal_ex,
    EVP_DigestInit_ex,
    EVP_DigestUpdate,
    EVP_MD_CTX,
    EVP_MD_CTX_new,
    EVP_blake2s256,
    EVP_chacha20_poly1305,
    OPENSSL_cleanse,
)

cdef enum:
    HASH = 32
    BLOCK = 64
    NONCE = 12
    TAG = 16
    INNER = 0x36
    OUTER = 0x5C
    MOST = 1024  # bytes of a message's part, far above what a handshake has

cdef EVP_MD_CTX *_hash = EVP_MD_CTX_new()
"""Serves every hash: no function here lets another thread run. OpenSSL overwrites what a hash has worked on at its end."""

if _hash is NULL or EVP_DigestInit_ex(_hash, EVP_blake2s256(), NULL) != 1:
    raise ImportError("OpenSSL has no BLAKE2s")  # such as in FIPS mode


cdef int _hash_two(
    unsigned char *into, const unsigned char *first, size_t length, const unsigned char *second, size_t more
) except -1:
    """Hashes two parts, one after another. `into` may be either of them."""
    if (
        EVP_DigestInit_ex(_hash, NULL, NULL) != 1
        or EVP_DigestUpdate(_hash, first, length) != 1
        or EVP_DigestUpdate(_hash, second, more) != 1
        or EVP_DigestFinal_ex(_hash, into, NULL) != 1
    ):
        raise RuntimeError("OpenSSL did not hash")
    return 0


cdef int _hmac(unsigned char *into, const unsigned char *key, const unsigned char *data, size_t length) except -1:
    """Computes HMAC-BLAKE2s (RFC 2104) under a key of 32 bytes. `into` may be the key or lie in `data`."""
    cdef unsigned char pad[BLOCK]
    cdef unsigned char inner[HASH]
    cdef int at
    memset(pad, INNER, BLOCK)
    for at in range(HASH):
        pad[at] ^= key[at]
    try:
        _hash_two(inner, pad, BLOCK, data, length)
        for at in range(BLOCK):
            pad[at] ^= INNER ^ OUTER
        _hash_two(into, pad, BLOCK, inner, HASH)
    finally:
        OPENSSL_cleanse(pad, BLOCK)
        OPENSSL_cleanse(inner, HASH)
    return 0


cdef int _kdf(
    unsigned char *outputs, int count, const unsigned char *chaining_key, const unsigned char *material, size_t length
) except -1:
    """Writes the first `count` outputs of HKDF, 32 bytes each, as `noise.kdf` returns them."""
    cdef unsigned char secret[HASH]
    cdef unsigned char block[HASH + 1]
    cdef int number
    try:
        _hmac(secret, chaining_key, material, length)
        for number in range(count):
            block[HASH if number else 0] = <unsigned char>(number + 1)
            _hmac(outputs + number * HASH, secret, block, HASH + 1 if number else 1)
            memcpy(block, outputs + number * HASH, HASH)
    finally:
        OPENSSL_cleanse(secret, HASH)
        OPENSSL_cleanse(block, HASH + 1)
    return 0


cdef class SymmetricState:
    """Holds the running pair of one handshake, and the key of its next message. See `noise.SymmetricState`."""

    cdef unsigned char _chaining_key[HASH]
    cdef unsigned char _digest[HASH]
    cdef unsigned char _key[HASH]
    cdef bint _has_key

    def __cinit__(self, const unsigned char[::1] chaining_key not None, const unsigned char[::1] hash not None):
        if chaining_key.shape[0] != HASH or hash.shape[0] != HASH:
            raise ValueError(f"a chaining key and a hash have {HASH} bytes each")
        memcpy(self._chaining_key, &chaining_key[0], HASH)
        memcpy(self._digest, &hash[0], HASH)

    def __dealloc__(self):
        OPENSSL_cleanse(self._chaining_key, HASH)
        OPENSSL_cleanse(self._key, HASH)

    @property
    def hash(self) -> bytes:
        return PyBytes_FromStringAndSize(<char *>self._digest, HASH)

    def copy(self) -> SymmetricState:
        """Forks the state."""
        cdef SymmetricState other = SymmetricState.__new__(
            SymmetricState, <const unsigned char[:HASH]>self._chaining_key, <const unsigned char[:HASH]>self._digest
        )
        memcpy(other._key, self._key, HASH)
        other._has_key = self._has_key
        return other

    def __eq__(self, other) -> bool:
        cdef SymmetricState state
        if not isinstance(other, SymmetricState):
            return NotImplemented
        state = other
        return self._has_key == state._has_key and not (
            CRYPTO_memcmp(self._chaining_key, state._chaining_key, HASH)
            | CRYPTO_memcmp(self._digest, state._digest, HASH)
            | CRYPTO_memcmp(self._key, state._key, HASH)
        )

    def mix_hash(self, bytes data not None) -> None:
        """Sets h = HASH(h || data)."""
        self._mix(<const unsigned char *>PyBytes_AS_STRING(data), len(data))

    cdef int _mix(self, const unsigned char *data, size_t length) except -1:
        return _hash_two(self._digest, self._digest, HASH, data, length)

    def mix_chain(self, bytes material not None) -> None:
        """Sets ck = KDF1(ck, material)."""
        self._derive(1, material)

    def mix_key(self, bytes material not None) -> None:
        """Sets (ck, k) = KDF2(ck, material)."""
        self._derive(2, material)

    def mix_preshared_key(self, bytes preshared_key not None) -> None:
        """Sets (ck, t, k) = KDF3(ck, psk) and h = HASH(h || t)."""
        self._derive(3, preshared_key)

    cdef int _derive(self, int count, bytes material) except -1:
        cdef unsigned char outputs[3 * HASH]
        try:
            _kdf(outputs, count, self._chaining_key, <const unsigned char *>PyBytes_AS_STRING(material), len(material))
            memcpy(self._chaining_key, outputs, HASH)
            if count == 3:
                self._mix(outputs + HASH, HASH)
            if count > 1:
                memcpy(self._key, outputs + (count - 1) * HASH, HASH)
                self._has_key = True
        finally:
            OPENSSL_cleanse(outputs, sizeof(outputs))
        return 0

    def seal(self, bytes plaintext not None) -> bytes:
        """Encrypts under the key and nonce 0, and mixes the ciphertext in. The key is gone then."""
        # Safe with a constant nonce because each key comes fresh from a KDF and seals one message.
        cdef Py_ssize_t length = len(plaintext)
        if not self._has_key:
            raise RuntimeError("the key is used up")
        made = PyBytes_FromStringAndSize(NULL, length + TAG)
        cdef unsigned char *place = <unsigned char *>PyBytes_AS_STRING(made)
        if length > MOST or not self._crypt(place, <const unsigned char *>PyBytes_AS_STRING(plaintext), <int>length, True):
            raise RuntimeError("OpenSSL did not seal")
        self._mix(place, length + TAG)
        self._drop_key()
        return made

    def open_untrusted(self, bytes ciphertext not None, reason) -> bytes:
        """Decrypts a ciphertext of `seal` and mixes it in. Raises BadMessage(reason) if it isn't authentic."""
        cdef Py_ssize_t length = len(ciphertext) - TAG
        if not self._has_key:
            raise RuntimeError("the key is used up")
        if not 0 <= length <= MOST:
            raise BadMessage(reason)
        made = PyBytes_FromStringAndSize(NULL, length)
        cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(ciphertext)
        if not self._crypt(<unsigned char *>PyBytes_AS_STRING(made), data, <int>length, False):
            raise BadMessage(reason)
        self._mix(data, length + TAG)
        self._drop_key()
        return made

    cdef void _drop_key(self) noexcept:
        OPENSSL_cleanse(self._key, HASH)
        self._has_key = False

    cdef bint _crypt(self, unsigned char *into, const unsigned char *data, int length, bint encrypts) noexcept:
        """Encrypts or decrypts `length` bytes, with the hash as associated data; the tag lies behind the ciphertext."""
        cdef unsigned char nonce[NONCE]
        cdef unsigned char tag[TAG]
        cdef int made = 0
        cdef EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new()
        if context is NULL:
            return False
        memset(nonce, 0, NONCE)
        if not encrypts:
            memcpy(tag, data + length, TAG)
        done = (
            EVP_CipherInit_ex(context, EVP_chacha20_poly1305(), NULL, self._key, nonce, encrypts) == 1
            and (encrypts or EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG, tag) == 1)
            and EVP_CipherUpdate(context, NULL, &made, self._digest, HASH) == 1
            and (not length or EVP_CipherUpdate(context, into, &made, data, length) == 1)
            and EVP_CipherFinal_ex(context, into + length, &made) == 1
            and (not encrypts or EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG, into + length) == 1)
        )
        EVP_CIPHER_CTX_free(context)  # which overwrites it
        return done

    def split(self) -> tuple[bytes, bytes]:
        """Returns (T1, T2) = KDF2(ck, "")."""
        cdef unsigned char outputs[2 * HASH]
        try:
            _kdf(outputs, 2, self._chaining_key, NULL, 0)
            return (
                PyBytes_FromStringAndSize(<char *>outputs, HASH), PyBytes_FromStringAndSize(<char *>outputs + HASH, HASH)
            )
        finally:
            OPENSSL_cleanse(outputs, sizeof(outputs))
