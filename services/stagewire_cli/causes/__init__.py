"""Judges the evidence of `stagewire why`, a module for each part of a packet's way. Pure.

- here: this gateway's processes, and what this host does with its packets
- place: the peer's endpoint, and the way to it
- handshakes: keys, clocks, answers, silence
- tunnel: the session, the prefixes, the path's size
- beyond: hosts behind this one, and hosts behind the peer
"""
