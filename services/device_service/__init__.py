"""Seals and opens packets, holds its peers' sessions, and checks allowed-IPs: device-service, the worker."""
