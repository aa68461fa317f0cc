"""status-service: counters in, a snapshot of them out. It holds no keys and sees no packets."""
