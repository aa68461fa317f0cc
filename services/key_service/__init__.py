"""key-service: the long-term keys, the handshakes, the peers. It touches no network and sees no packet."""
