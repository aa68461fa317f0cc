"""device-service: one crypto worker. It holds its peers' sessions, seals and opens, and judges by allowed-IPs."""
