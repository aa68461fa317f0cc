"""Looks up names of endpoints outside the tunnel: resolver-service. It holds no keys and sees no packets."""
