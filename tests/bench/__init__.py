"""Measures Stagewire beside wireguard-go and bare veth (`make bench`), interleaved on one machine."""
