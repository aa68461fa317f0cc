# cython: language_level=3
"""Computes macs and cookies as `proto.cookie` does, with OpenSSL's keyed BLAKE2s (EVP_MAC-BLAKE2(7)) and ChaCha20-Poly1305.

hot: bench handshakes
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from stagewire.proto.kernel.openssl cimport (
    CRYPTO_memcmp,
    EVP_CIPHER_CTX,
    EVP_CIPHER_CTX_ctrl,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_CTRL_AEAD_GET_TAG,
    EVP_CipherFinal_ex,
    EVP_CipherInit_ex,
    EVP_CipherUpdate,
    EVP_MAC,
    EVP_MAC_CTX,
    EVP_MAC_CTX_free,
    EVP_MAC_CTX_new,
    EVP_MAC_fetch,
    EVP_MAC_final,
    EVP_MAC_init,
    EVP_MAC_update,
    OSSL_PARAM,
    OSSL_PARAM_construct_end,
    OSSL_PARAM_construct_size_t,
    EVP_chacha20_poly1305,
)

cdef enum:
    MAC_LENGTH = 16
    KEY_LENGTH = 32
    TYPE_COOKIE_REPLY = 3
    COOKIE_REPLY_LENGTH = 64
    NONCE = 12
    START = 16  # of a cookie reply's nonce
    SEALED = 32  # where the sealed cookie begins in a reply

cdef EVP_MAC *_blake2s = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL)

if _blake2s is NULL:
    raise ImportError("OpenSSL has no keyed BLAKE2s")  # such as in FIPS mode


cdef class Mac:
    """Computes macs under one key, which lies in OpenSSL's memory alone and is overwritten with its end."""

    cdef EVP_MAC_CTX *_context

    def __cinit__(self, const unsigned char[::1] key not None):
        """Takes a key of 1 to 32 bytes."""
        cdef size_t length = MAC_LENGTH
        cdef OSSL_PARAM parameters[2]
        if not 0 < key.shape[0] <= KEY_LENGTH:
            raise ValueError(f"a mac's key has 1 to {KEY_LENGTH} bytes")
        parameters[0] = OSSL_PARAM_construct_size_t("size", &length)
        parameters[1] = OSSL_PARAM_construct_end()
        self._context = EVP_MAC_CTX_new(_blake2s)
        if self._context is NULL or EVP_MAC_init(self._context, &key[0], key.shape[0], parameters) != 1:
            raise MemoryError

    def __dealloc__(self):
        EVP_MAC_CTX_free(self._context)

    def of(self, bytes data not None) -> bytes:
        """Computes the mac of all of `data`."""
        made = PyBytes_FromStringAndSize(NULL, MAC_LENGTH)
        self._compute(<unsigned char *>PyBytes_AS_STRING(made), data, len(data))
        return made

    def fits(self, bytes message not None, Py_ssize_t end) -> bool:
        """Tells whether the 16 bytes at `end` are the mac of those before. There must be as many."""
        cdef unsigned char mac[MAC_LENGTH]
        if not 0 <= end <= len(message) - MAC_LENGTH:
            raise ValueError("a message without a mac")
        self._compute(mac, message, end)
        return CRYPTO_memcmp(mac, PyBytes_AS_STRING(message) + end, MAC_LENGTH) == 0

    cdef int _compute(self, unsigned char *into, bytes data, Py_ssize_t length) except -1:
        cdef size_t made = 0
        if (
            EVP_MAC_init(self._context, NULL, 0, NULL) != 1  # the same key again
            or EVP_MAC_update(self._context, <const unsigned char *>PyBytes_AS_STRING(data), length) != 1
            or EVP_MAC_final(self._context, into, &made, MAC_LENGTH) != 1
            or made != MAC_LENGTH
        ):
            raise RuntimeError("OpenSSL did not compute a mac")
        return 0


cdef class Cookies:
    """Makes cookies and seals them in replies, as `proto.cookie.Cookies` does."""

    cdef Mac _mac
    cdef EVP_CIPHER_CTX *_context
    cdef unsigned char _reply[COOKIE_REPLY_LENGTH]
    cdef uint64_t _count

    def __cinit__(self, bytes secret not None, bytes key not None, bytes start not None):
        """Takes a secret and a key of 32 bytes, and the 16 bytes of all nonces' start."""
        if len(key) != KEY_LENGTH or len(start) != START:
            raise ValueError(f"a key has {KEY_LENGTH} bytes, a start {START}")
        self._mac = Mac(secret)
        memset(self._reply, 0, COOKIE_REPLY_LENGTH)
        self._reply[0] = TYPE_COOKIE_REPLY
        memcpy(self._reply + 8, PyBytes_AS_STRING(start), START)
        self._context = EVP_CIPHER_CTX_new()
        if self._context is NULL or EVP_CipherInit_ex(
            self._context, EVP_chacha20_poly1305(), NULL, <const unsigned char *>PyBytes_AS_STRING(key), NULL, 1
        ) != 1:
            raise MemoryError

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self._context)  # which overwrites it

    def of(self, bytes source not None) -> bytes:
        """Returns the cookie (16 bytes) of a source."""
        return self._mac.of(source)

    def reply(self, bytes message not None, bytes source not None) -> bytes:
        """Seals the cookie of `source` in a reply (64 bytes) to a handshake message."""
        cdef unsigned char nonce[NONCE]
        cdef unsigned char cookie[MAC_LENGTH]
        cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(message)
        cdef Py_ssize_t length = len(message)
        cdef int made = 0
        if length < 2 * MAC_LENGTH + 8:
            raise ValueError("a message without macs")
        # Safe under the one key: the count never repeats, and another start of nonces comes with another object.
        memset(nonce, 0, NONCE)
        memcpy(nonce + 4, &self._count, 8)
        memcpy(self._reply + 4, data + 4, 4)
        memcpy(self._reply + 8 + START, &self._count, 8)
        self._count += 1
        self._mac._compute(cookie, source, len(source))
        if (
            EVP_CipherInit_ex(self._context, NULL, NULL, NULL, nonce, 1) != 1
            or EVP_CipherUpdate(self._context, NULL, &made, data + length - 2 * MAC_LENGTH, MAC_LENGTH) != 1
            or EVP_CipherUpdate(self._context, self._reply + SEALED, &made, cookie, MAC_LENGTH) != 1
            or EVP_CipherFinal_ex(self._context, self._reply + SEALED + MAC_LENGTH, &made) != 1
            or EVP_CIPHER_CTX_ctrl(self._context, EVP_CTRL_AEAD_GET_TAG, MAC_LENGTH, self._reply + SEALED + MAC_LENGTH) != 1
        ):
            raise RuntimeError("OpenSSL did not seal")
        return PyBytes_FromStringAndSize(<const char *>self._reply, COOKIE_REPLY_LENGTH)
