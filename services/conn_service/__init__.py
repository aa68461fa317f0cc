"""Uses the UDP sockets, and judges each handshake message before key-service sees it. conn-service holds no keys."""
