"""Adds up all stages' counters and answers with a snapshot: status-service. It holds no keys and sees no packets."""
