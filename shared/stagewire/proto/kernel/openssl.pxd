"""Declares what is used of OpenSSL's EVP (EVP_EncryptInit(3), EVP_DigestInit(3), EVP_MAC(3)). Cipher, hash and mac are never ours."""

cdef extern from "openssl/crypto.h" nogil:
    int CRYPTO_memcmp(const void *first, const void *second, size_t length)
    void OPENSSL_cleanse(void *memory, size_t length)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    int EVP_CTRL_AEAD_GET_TAG
    int EVP_CTRL_AEAD_SET_TAG
    const EVP_CIPHER *EVP_chacha20_poly1305()
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *context)
    int EVP_CipherInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, void *engine, const unsigned char *key,
                          const unsigned char *nonce, int encrypts)
    int EVP_CipherUpdate(EVP_CIPHER_CTX *context, unsigned char *into, int *count, const unsigned char *data, int length)
    int EVP_CipherFinal_ex(EVP_CIPHER_CTX *context, unsigned char *into, int *count)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *context, int command, int argument, void *pointer)

    ctypedef struct EVP_MD:
        pass
    ctypedef struct EVP_MD_CTX:
        pass
    const EVP_MD *EVP_blake2s256()
    EVP_MD_CTX *EVP_MD_CTX_new()
    int EVP_DigestInit_ex(EVP_MD_CTX *context, const EVP_MD *digest, void *engine)
    int EVP_DigestUpdate(EVP_MD_CTX *context, const void *data, size_t length)
    int EVP_DigestFinal_ex(EVP_MD_CTX *context, unsigned char *into, unsigned int *length)

    ctypedef struct EVP_MAC:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    EVP_MAC *EVP_MAC_fetch(void *library, const char *name, const char *properties)
    EVP_MAC_CTX *EVP_MAC_CTX_new(EVP_MAC *mac)
    void EVP_MAC_CTX_free(EVP_MAC_CTX *context)
    int EVP_MAC_init(EVP_MAC_CTX *context, const unsigned char *key, size_t length, const OSSL_PARAM *parameters)
    int EVP_MAC_update(EVP_MAC_CTX *context, const unsigned char *data, size_t length)
    int EVP_MAC_final(EVP_MAC_CTX *context, unsigned char *into, size_t *length, size_t room)

cdef extern from "openssl/params.h" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_size_t(const char *name, size_t *value)
    OSSL_PARAM OSSL_PARAM_construct_end()
