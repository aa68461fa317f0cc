"""tun-service: the TUN device, its addresses and routes, and which worker a destination belongs to. It holds no keys."""
