"""Carries packets for a worker: a plain kernel in Python, and a compiled one beside it with one meaning.

The compiled kernel takes whole trains in and gives whole trains back, for all peers of a visit at once. Sessions' lives,
timers, staged packets and endpoints stay in Python's objects. For an ordinary peer compiled code takes Python's decisions;
what isn't ordinary comes back as items, for the plain kernel.

- choice: which kernel a process has, and why
- cipher: a session's keys and its replay window
- sealing, opening: one visit, outbound and inbound
- steady: what is decided about an ordinary peer of a visit
- headers, openssl, gcrypt: what they read and call

The plain kernel is `Worker.outbound` and `Worker.inbound`: the reference, and always there. A build without a compiler or
OpenSSL's headers leaves the compiled one out.
"""
