"""Declares a session's half, for the other compiled modules."""

from libc.stdint cimport uint64_t

from stagewire.proto.kernel.openssl cimport EVP_CIPHER_CTX

cdef enum:
    TAG = 16
    BLOCKS = 128


cdef class Cipher:
    cdef EVP_CIPHER_CTX *_context
    cdef void *_handle
    cdef bint _encrypts

    cdef void _end(self) noexcept
    cdef int seal(self, uint64_t counter, unsigned char *packet, int length) except -1
    cdef int open(self, uint64_t counter, unsigned char *packet, int length) noexcept


cdef class Window:
    cdef uint64_t _seen[BLOCKS]
    cdef uint64_t _next

    cdef bint take(self, uint64_t counter) noexcept
