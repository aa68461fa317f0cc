"""Declares what is used of libgcrypt (gnupg.org, The Libgcrypt Reference Manual): functions of a library that is loaded
where the system has it. The numbers are its interface's; version 20 of the library keeps them."""

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOW
    int RTLD_LOCAL
    void *dlopen(const char *path, int how)
    void *dlsym(void *library, const char *name)

cdef enum:
    CHACHA20 = 316  # GCRY_CIPHER_CHACHA20
    POLY1305 = 10  # GCRY_CIPHER_MODE_POLY1305
    DISABLE_SECMEM = 37  # GCRYCTL_DISABLE_SECMEM
    INITIALIZATION_FINISHED = 38  # GCRYCTL_INITIALIZATION_FINISHED

ctypedef unsigned int Error
ctypedef const char *(*CheckVersion)(const char *least) noexcept nogil
ctypedef Error (*Control)(int command, ...) noexcept nogil
ctypedef Error (*Open)(void **handle, int algorithm, int mode, unsigned int flags) noexcept nogil
ctypedef void (*Close)(void *handle) noexcept nogil
ctypedef Error (*Set)(void *handle, const void *data, size_t length) noexcept nogil
ctypedef Error (*Crypt)(void *handle, void *out, size_t room, const void *data, size_t length) noexcept nogil
ctypedef Error (*Get)(void *handle, void *out, size_t room) noexcept nogil

cdef struct Functions:
    Open open
    Close close
    Set set_key
    Set set_nonce
    Crypt encrypt
    Crypt decrypt
    Get get_tag
    Set check_tag
