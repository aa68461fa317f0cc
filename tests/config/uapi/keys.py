"""Keys for the tests of the configuration socket."""

from base64 import b64encode

SECRET = bytes(range(1, 33))
ONE, TWO = bytes([1] * 32), bytes([2] * 32)
PEER = f"public_key={ONE.hex()}\n"


def base64(key: bytes) -> str:
    return b64encode(key).decode()
