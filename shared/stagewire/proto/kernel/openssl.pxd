"""Declares what is used of OpenSSL's EVP (EVP_EncryptInit(3)). The cipher is never ours."""

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
