"""Knows the keys that everybody can read: those of our own example, and of WireGuard's manuals.

A private key is known by its public key, whatever its insignificant bits are.
"""

from typing import Final

from stagewire.config.keys import decode_key, public_key

_EXAMPLE: Final = "the example's published key"
_MANUAL: Final = "a key published in WireGuard's manuals"

_PUBLISHED: Final = {
    decode_key(text): where
    for where, texts in (
        (
            _EXAMPLE,
            (
                "qBeObI0G3b+RJFYhwaB+vsOJk/25y/5KwjJZOkflqUM=",  # of its private key
                "ntugDQ/dhxrZGF0+zJVPY1UsZv7CXVHxPyEjPaVBfzc=",
                "dRG+Y+oIIX9pushYA8MvAaEy1aNWYlnkxE2/DpaKg74=",  # a pre-shared one
                "8XqOe53mFe/0KMWFCj7+A50dyznmF3X/lcwsOHA+/Qg=",
                "2+qKEbTwZgOiljusVzb0UXPa08Jmbk7+SvDMxTHzx8E=",  # a pre-shared one
                "0hXGdWGKhmK4H9K3rrgFCELSkAMJdsEZ7p0d60cTohg=",
            ),
        ),
        (
            _MANUAL,
            (
                "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",  # of wg(8)'s and wg-quick(8)'s private key
                "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
                "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
                "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",  # its private key stands in WireGuard's introduction
                "cL9S5KV5wAy/AsKyYct3qz9BHxe5FYqxlb/eDthF/VY=",  # of wg-quick(8)'s second private key
                "GtL7fZc/bLnqZldpVofMCD6hDjrK28SsdLxevJ+qtKU=",
                "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=",  # a pre-shared one
            ),
        ),
    )
    for text in texts
}


def where_published(key: bytes) -> str:
    """Names the place where a public or pre-shared key is published; an empty text for any other key."""
    return _PUBLISHED.get(key, "")


def where_private_published(private: bytes) -> str:
    """Names the place where a private key (32 bytes) is published; an empty text for any other key."""
    return _PUBLISHED.get(public_key(private), "")
