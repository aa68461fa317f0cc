"""`make bench`: Stagewire beside wireguard-go and bare veth, interleaved on one machine, as a table, JSON and plots."""
