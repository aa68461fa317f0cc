"""Reads and writes the TUN device, and finds each destination's worker. tun-service holds no keys."""
