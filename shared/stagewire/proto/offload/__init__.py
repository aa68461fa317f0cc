"""Super-packets: what a TUN device with offloads reads and takes, up to 64 KiB of one TCP or UDP flow in one piece.

virtio     the 10 bytes that say what a packet is
checksum   the Internet checksum (RFC 1071)
segment    a super-packet -> the packets it stands for
rows       packets of one size side by side in one buffer, with room for what sealing adds
wide       segment, as columns of NumPy arrays, straight into rows
coalesce   packets -> super-packets, where one may stand for several
columns    coalesce, for the rows of one run
stacked    the headers of all its packets as one long integer

NumPy may be missing: `segment` and `coalesce` alone do all of it, more slowly. They are also what a lone small packet
takes, for which NumPy would be the dearer way.
"""
