"""Declares the kernel's calls on many datagrams, and reads what the kernel notes with each that it received.

`tests/proto/kernel` compares each number with its home.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from stagewire.proto.kernel cimport headers as h

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
        AF_INET
        SOL_SOCKET
    int recvmmsg(int descriptor, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int sendmmsg(int descriptor, mmsghdr *messages, unsigned int count, int flags)

cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_IP
        IPPROTO_IPV6
        IP_PKTINFO
        IPV6_PKTINFO

cdef enum:
    NAME = 32
    CONTROL = 128
    CONTROL_HEADER = 16
    ALIGNED = 8
    SOL_UDP = 17
    SO_TIMESTAMPNS = 35


cdef inline double read_notes(const msghdr *header, Py_ssize_t *size, uint8_t *endpoint) noexcept nogil:
    """Makes the endpoint as `endpoint.Endpoint.pack` does, and reads the size of a run's datagrams.

    Returns when the first of them came (s of the wall clock), 0 if the kernel doesn't say.
    """
    cdef const uint8_t *name = <const uint8_t *>header.msg_name
    cdef const uint8_t *control = <const uint8_t *>header.msg_control
    cdef const uint8_t *info = NULL
    cdef Py_ssize_t at = 0, end = header.msg_controllen, length = 0, found = 0
    cdef cmsghdr note
    cdef uint16_t family
    cdef uint32_t number
    cdef int segment
    cdef int64_t moment[2]
    cdef double arrived = 0
    while end - at >= CONTROL_HEADER:
        memcpy(&note, control + at, CONTROL_HEADER)
        if note.cmsg_len < CONTROL_HEADER or <Py_ssize_t>note.cmsg_len > end - at:
            break
        length = note.cmsg_len - CONTROL_HEADER
        if note.cmsg_level == SOL_UDP:
            if length >= 4:
                memcpy(&segment, control + at + CONTROL_HEADER, 4)
                size[0] = segment
        elif note.cmsg_level == SOL_SOCKET:
            if note.cmsg_type == SO_TIMESTAMPNS and length >= 16:
                memcpy(moment, control + at + CONTROL_HEADER, 16)
                arrived = moment[0] + moment[1] * 1e-9
        else:
            info, found = control + at + CONTROL_HEADER, length
        at += (note.cmsg_len + ALIGNED - 1) // ALIGNED * ALIGNED
    memset(endpoint, 0, h.ENDPOINT_LENGTH)
    memcpy(&family, name, 2)
    memcpy(endpoint + 2, name + 2, 2)
    if family == AF_INET:
        endpoint[0] = 4
        memcpy(endpoint + 8, name + 4, 4)
        if found >= 12:
            memcpy(endpoint + 24, info + 4, 4)  # no interface is named, so the answer may take a better route
        return arrived
    endpoint[0] = 6
    memcpy(&number, name + 24, 4)
    h.put32(endpoint + 4, number)
    memcpy(endpoint + 8, name + 8, 16)
    if found >= 20:
        memcpy(endpoint + 24, info, 16)
        if number:
            memcpy(&number, info + 16, 4)
            h.put32(endpoint + 40, number)
    return arrived
