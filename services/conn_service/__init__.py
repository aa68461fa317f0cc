"""conn-service: the UDP sockets, and the gate in front of everything that comes through them. It holds no keys."""
