"""Holds the long-term keys, the peers and their handshakes. key-service touches no network and sees no packet."""
