# cython: language_level=3
"""Holds a session's keys in contexts of a library's cipher, and its replay window in bits.

The library is OpenSSL's libcrypto, or libgcrypt where the system has it and it is quicker on this processor: `use` decides.
A key goes from the caller's memory into a context and nowhere else. Both libraries overwrite a context's memory when they
free it, so `forget` and the end of the object leave no key behind. hot: bench traffic
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from cryptography.exceptions import InvalidTag

from stagewire.proto.constants import KEY_LENGTH, REJECT_AFTER_MESSAGES, TAG_LENGTH, WINDOW_SIZE

from stagewire.proto.kernel cimport gcrypt
from stagewire.proto.kernel.openssl cimport (
    EVP_CIPHER_CTX_ctrl,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_CipherFinal_ex,
    EVP_CipherInit_ex,
    EVP_CipherUpdate,
    EVP_CTRL_AEAD_GET_TAG,
    EVP_CTRL_AEAD_SET_TAG,
    EVP_chacha20_poly1305,
)

cdef enum:
    KEY = 32
    NONCE = 12
    BLOCK = 64
    TRIAL = 1424  # bytes; a full packet's
    TRIALS = 8
    PACKETS = 8  # of one trial

cdef uint64_t _REJECT = REJECT_AFTER_MESSAGES
cdef uint64_t _REACH = WINDOW_SIZE - BLOCK

assert (KEY_LENGTH, TAG_LENGTH, WINDOW_SIZE) == (KEY, TAG, BLOCK * BLOCKS)


OPENSSL = "OpenSSL"
LIBGCRYPT = "libgcrypt"

cdef gcrypt.Functions _gcrypt
cdef bint _with_gcrypt = False


cdef bint _load_gcrypt() noexcept:
    """Loads libgcrypt and gets it ready. False where the system has none, or one that refuses this cipher."""
    cdef void *library = gcrypt.dlopen("libgcrypt.so.20", gcrypt.RTLD_NOW | gcrypt.RTLD_LOCAL)
    cdef void *check_version
    cdef void *control
    cdef void *handle = NULL
    if library is NULL:
        return False
    check_version = gcrypt.dlsym(library, "gcry_check_version")
    control = gcrypt.dlsym(library, "gcry_control")
    _gcrypt.open = <gcrypt.Open>gcrypt.dlsym(library, "gcry_cipher_open")
    _gcrypt.close = <gcrypt.Close>gcrypt.dlsym(library, "gcry_cipher_close")
    _gcrypt.set_key = <gcrypt.Set>gcrypt.dlsym(library, "gcry_cipher_setkey")
    _gcrypt.set_nonce = <gcrypt.Set>gcrypt.dlsym(library, "gcry_cipher_setiv")
    _gcrypt.encrypt = <gcrypt.Crypt>gcrypt.dlsym(library, "gcry_cipher_encrypt")
    _gcrypt.decrypt = <gcrypt.Crypt>gcrypt.dlsym(library, "gcry_cipher_decrypt")
    _gcrypt.get_tag = <gcrypt.Get>gcrypt.dlsym(library, "gcry_cipher_gettag")
    _gcrypt.check_tag = <gcrypt.Set>gcrypt.dlsym(library, "gcry_cipher_checktag")
    if (
        check_version is NULL or control is NULL or _gcrypt.open is NULL or _gcrypt.close is NULL
        or _gcrypt.set_key is NULL or _gcrypt.set_nonce is NULL or _gcrypt.encrypt is NULL or _gcrypt.decrypt is NULL
        or _gcrypt.get_tag is NULL or _gcrypt.check_tag is NULL
        or (<gcrypt.CheckVersion>check_version)("1.9.0") is NULL  # the first with this cipher in one pass
    ):
        return False
    # Contexts lie in ordinary memory, as OpenSSL's do: the process has locked all of it.
    (<gcrypt.Control>control)(gcrypt.DISABLE_SECMEM, 0)
    (<gcrypt.Control>control)(gcrypt.INITIALIZATION_FINISHED, 0)
    if _gcrypt.open(&handle, gcrypt.CHACHA20, gcrypt.POLY1305, 0):
        return False
    _gcrypt.close(handle)
    return True


LIBRARIES = (OPENSSL, LIBGCRYPT) if _load_gcrypt() else (OPENSSL,)
"""The libraries whose cipher this process can use."""


def use(str name) -> None:
    """Chooses the library of all keys from now on. Raises ValueError for one that isn't there."""
    global _with_gcrypt
    if name not in LIBRARIES:
        raise ValueError(name)
    _with_gcrypt = name == LIBGCRYPT


def library() -> str:
    """Names the library that is in use."""
    return LIBGCRYPT if _with_gcrypt else OPENSSL


def quickest() -> str:
    """Names the library that seals and opens full packets in the least time on this processor.

    It depends on the processor: OpenSSL knows vectors of 512 bits, libgcrypt does all in one pass.
    """
    standing = library()
    try:
        return min(LIBRARIES, key=_trial)
    finally:
        use(standing)


def _trial(str name) -> float:
    """Returns the least time (s) of several trials. The key is no session's."""
    cdef unsigned char packet[TRIAL + TAG]
    cdef timespec begun, done
    cdef double least = 1.0
    cdef int trial
    cdef uint64_t each
    use(name)
    cdef Cipher sender = Cipher(bytes(KEY), True), receiver = Cipher(bytes(KEY), False)
    memset(packet, 0, sizeof(packet))
    for trial in range(TRIALS):
        clock_gettime(CLOCK_MONOTONIC, &begun)
        for each in range(PACKETS):
            sender.seal(each, packet, TRIAL)
            receiver.open(each, packet, TRIAL + TAG)
        clock_gettime(CLOCK_MONOTONIC, &done)
        least = min(least, done.tv_sec - begun.tv_sec + 1e-9 * (done.tv_nsec - begun.tv_nsec))
    return least


cdef class Cipher:
    """Encrypts or decrypts under one key (RFC 8439), never both."""

    def __cinit__(self, const unsigned char[::1] key not None, bint encrypts):
        """Expands a key of 32 bytes; the caller may wipe it afterwards."""
        if key.shape[0] != KEY:
            raise ValueError(f"a key has {KEY} bytes")
        self._encrypts = encrypts
        if _with_gcrypt:
            if _gcrypt.open(&self._handle, gcrypt.CHACHA20, gcrypt.POLY1305, 0):
                self._handle = NULL
                raise MemoryError
            if _gcrypt.set_key(self._handle, &key[0], KEY):
                raise RuntimeError("libgcrypt has no ChaCha20-Poly1305")
            return
        self._context = EVP_CIPHER_CTX_new()
        if self._context is NULL:
            raise MemoryError
        if EVP_CipherInit_ex(self._context, EVP_chacha20_poly1305(), NULL, &key[0], NULL, encrypts) != 1:
            raise RuntimeError("OpenSSL has no ChaCha20-Poly1305")

    def __dealloc__(self):
        self._end()

    def forget(self):
        """Overwrites the key. Nothing can be sealed or opened afterwards."""
        self._end()

    cdef void _end(self) noexcept:
        EVP_CIPHER_CTX_free(self._context)
        self._context = NULL
        if self._handle is not NULL:
            _gcrypt.close(self._handle)
            self._handle = NULL

    cdef int seal(self, uint64_t counter, unsigned char *packet, int length) except -1:
        """Encrypts `length` bytes where they lie and puts the tag behind them: there must be room for it.

        The caller has taken the counter, for this packet alone.
        """
        cdef unsigned char nonce[NONCE]
        cdef int made = 0
        if (self._context is NULL and self._handle is NULL) or not self._encrypts:
            raise RuntimeError("this key does not seal")
        memset(nonce, 0, 4)
        memcpy(nonce + 4, &counter, 8)
        if self._handle is not NULL:
            if (
                _gcrypt.set_nonce(self._handle, nonce, NONCE)
                or _gcrypt.encrypt(self._handle, packet, length, NULL, 0)
                or _gcrypt.get_tag(self._handle, packet + length, TAG)
            ):
                raise RuntimeError("libgcrypt did not seal")
            return 0
        if (
            EVP_CipherInit_ex(self._context, NULL, NULL, NULL, nonce, 1) != 1
            or EVP_CipherUpdate(self._context, packet, &made, packet, length) != 1
            or EVP_CipherFinal_ex(self._context, packet + length, &made) != 1
            or EVP_CIPHER_CTX_ctrl(self._context, EVP_CTRL_AEAD_GET_TAG, TAG, packet + length) != 1
        ):
            raise RuntimeError("OpenSSL did not seal")
        return 0

    cdef int open(self, uint64_t counter, unsigned char *packet, int length) noexcept:
        """Decrypts `length` bytes, of which the last are the tag, where they lie. Returns the packet's length, or -1.

        The memory must be ours alone: OpenSSL reads it twice.
        """
        cdef unsigned char nonce[NONCE]
        cdef int made = 0
        cdef int inner = length - TAG
        if inner < 0 or (self._context is NULL and self._handle is NULL) or self._encrypts:
            return -1
        memset(nonce, 0, 4)
        memcpy(nonce + 4, &counter, 8)
        if self._handle is not NULL:
            if (
                _gcrypt.set_nonce(self._handle, nonce, NONCE)
                or _gcrypt.decrypt(self._handle, packet, inner, NULL, 0)
                or _gcrypt.check_tag(self._handle, packet + inner, TAG)
            ):
                return -1
            return inner
        if (
            EVP_CipherInit_ex(self._context, NULL, NULL, NULL, nonce, 0) != 1
            or EVP_CIPHER_CTX_ctrl(self._context, EVP_CTRL_AEAD_SET_TAG, TAG, packet + inner) != 1
            or EVP_CipherUpdate(self._context, packet, &made, packet, inner) != 1
            or EVP_CipherFinal_ex(self._context, packet + inner, &made) != 1
        ):
            return -1
        return inner

    def encrypt(self, const unsigned char[::1] nonce not None, bytes packet not None, _associated) -> bytes:
        """Returns the packet encrypted, with its tag; as `cryptography` does, but under a counter's nonce alone."""
        cdef Py_ssize_t length = len(packet)
        made = PyBytes_FromStringAndSize(NULL, length + TAG)
        cdef unsigned char *place = <unsigned char *>PyBytes_AS_STRING(made)
        memcpy(place, PyBytes_AS_STRING(packet), length)
        self.seal(_counter(nonce), place, <int>length)
        return made

    def decrypt(self, const unsigned char[::1] nonce not None, bytes sealed not None, _associated) -> bytes:
        """Returns the packet. Raises InvalidTag, and ValueError for a nonce that is no counter's."""
        cdef bytearray copy = bytearray(sealed)
        cdef int length = self.open(_counter(nonce), copy, <int>len(copy))
        if length < 0:
            raise InvalidTag
        return bytes(copy[:length])


cdef uint64_t _counter(const unsigned char[::1] nonce) except? 0:
    cdef uint64_t counter
    if nonce.shape[0] != NONCE or nonce[0] | nonce[1] | nonce[2] | nonce[3]:
        raise ValueError("a nonce is 4 zero bytes and a counter")
    memcpy(&counter, &nonce[4], 8)
    return counter


cdef class Window:
    """Remembers which counters of a session were seen, as `proto.replay` does."""

    cdef bint take(self, uint64_t counter) noexcept:
        """Tells whether `counter` is new, and marks it as seen. Only for a counter whose packet was authenticated."""
        cdef uint64_t block = counter // BLOCK, last, each
        cdef uint64_t bit = (<uint64_t>1) << (counter % BLOCK)
        if counter >= self._next:
            if counter >= _REJECT:
                return False
            last = (self._next - 1) // BLOCK if self._next else 0
            if block - last >= BLOCKS:
                memset(self._seen, 0, sizeof(self._seen))
            else:
                for each in range(last + 1, block + 1):
                    self._seen[each % BLOCKS] = 0
            self._next = counter + 1
        elif self._next - 1 - counter > _REACH or self._seen[block % BLOCKS] & bit:
            return False
        self._seen[block % BLOCKS] |= bit
        return True

    def accept(self, uint64_t counter) -> bool:
        """Does what `ReplayWindow.accept` does."""
        return self.take(counter)
