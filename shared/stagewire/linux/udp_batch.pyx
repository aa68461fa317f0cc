# cython: language_level=3, cdivision=True
"""Receives and answers many handshake messages in one system call: `conn_service.batch` does the same with ctypes.

What is assumed of a caller: the sockets ask for packet info, as host-service's do.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from stagewire.linux.udp_notes cimport (
    ALIGNED,
    AF_INET,
    CONTROL,
    CONTROL_HEADER,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    IP_PKTINFO,
    MSG_DONTWAIT,
    NAME,
    cmsghdr,
    iovec,
    mmsghdr,
    msghdr,
    read_notes,
    recvmmsg,
    sendmmsg,
)
from stagewire.proto.kernel cimport headers as h

cdef enum:
    MOST = 64  # datagrams or runs of one call
    SLOT = 18944  # bytes for one of them; the rest of a longer run is cut off, as it is no handshake
    COOKIE_REPLY_LENGTH = 64
    INFO4_LENGTH = 12
    INFO6_LENGTH = 20
    NAME4_LENGTH = 16
    NAME6_LENGTH = 28

cdef struct Arrival:
    iovec piece
    uint8_t name[NAME]
    uint8_t control[CONTROL]
    uint8_t endpoint[h.ENDPOINT_LENGTH]

cdef struct Answer:
    iovec piece
    uint8_t data[COOKIE_REPLY_LENGTH]
    uint8_t control[CONTROL]


cdef class Batch:
    """Receives datagrams, and sends answers to their sources. What it received holds until it receives again."""

    cdef uint8_t *_data
    cdef int _received
    cdef int _answered
    cdef int _count
    cdef Arrival _arrivals[MOST]
    cdef mmsghdr _messages[MOST]
    cdef Answer _answers[MOST]
    cdef mmsghdr _sent[MOST]

    def __cinit__(self):
        self._answered = -1
        self._data = <uint8_t *>PyMem_Malloc(MOST * SLOT)
        if self._data is NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self._data)

    def receive(self, opened, int most=MOST) -> list:
        """Receives up to `most` datagrams or runs: (data, size of each but the last, address and port). hot"""
        cdef int descriptor = opened.fileno(), each
        cdef msghdr *header
        cdef Arrival *arrival
        cdef Py_ssize_t size
        cdef const uint8_t *data
        self._answered, self._received, self._count = -1, 0, 0
        for each in range(max(0, min(most, MOST))):
            arrival, header = &self._arrivals[each], &self._messages[each].msg_hdr
            arrival.piece.iov_base, arrival.piece.iov_len = self._data + each * SLOT, SLOT
            header.msg_name, header.msg_namelen = arrival.name, NAME
            header.msg_iov, header.msg_iovlen = &arrival.piece, 1
            header.msg_control, header.msg_controllen = arrival.control, CONTROL
            header.msg_flags = 0
        with nogil:
            each = recvmmsg(descriptor, self._messages, max(0, min(most, MOST)), MSG_DONTWAIT, NULL)
        self._received = max(0, each)
        found = []
        for each in range(self._received):
            arrival = &self._arrivals[each]
            size = self._messages[each].msg_len
            read_notes(&self._messages[each].msg_hdr, &size, arrival.endpoint)
            data = <const uint8_t *>arrival.piece.iov_base
            found.append(((<const char *>data)[: self._messages[each].msg_len], size, _place(arrival.endpoint)))
        return found

    def endpoint(self, int number) -> bytes:
        """Returns where an arrival of the latest call came from, and our address that it reached, packed. hot"""
        if not 0 <= number < self._received:
            raise IndexError("no such arrival")
        return PyBytes_FromStringAndSize(<const char *>self._arrivals[number].endpoint, h.ENDPOINT_LENGTH)

    def answer(self, int number, bytes data not None) -> None:
        """Keeps a cookie reply to an arrival for `send`; of a run, the first message alone is answered. hot"""
        cdef Answer *answer
        cdef const uint8_t *endpoint
        cdef msghdr *header
        cdef cmsghdr head
        cdef uint32_t interface
        if not 0 <= number < self._received or len(data) != COOKIE_REPLY_LENGTH:
            raise ValueError("no answer to an arrival")
        if number <= self._answered:
            return
        self._answered = number
        answer, header = &self._answers[self._count], &self._sent[self._count].msg_hdr
        self._count += 1
        endpoint = self._arrivals[number].endpoint
        memcpy(answer.data, PyBytes_AS_STRING(data), COOKIE_REPLY_LENGTH)
        answer.piece.iov_base, answer.piece.iov_len = answer.data, COOKIE_REPLY_LENGTH
        memset(header, 0, sizeof(msghdr))
        header.msg_iov, header.msg_iovlen = &answer.piece, 1
        header.msg_name = self._arrivals[number].name
        header.msg_namelen = NAME4_LENGTH if endpoint[0] == 4 else NAME6_LENGTH
        if not _any(endpoint + 24, 16):
            return
        memset(answer.control, 0, CONTROL)
        if endpoint[0] == 4:  # it names no interface, so the answer may take a better route
            head = cmsghdr(cmsg_len=CONTROL_HEADER + INFO4_LENGTH, cmsg_level=IPPROTO_IP, cmsg_type=IP_PKTINFO)
            memcpy(answer.control + CONTROL_HEADER + 4, endpoint + 24, 4)
        else:
            head = cmsghdr(cmsg_len=CONTROL_HEADER + INFO6_LENGTH, cmsg_level=IPPROTO_IPV6, cmsg_type=IPV6_PKTINFO)
            memcpy(answer.control + CONTROL_HEADER, endpoint + 24, 16)
            interface = h.get32(endpoint + 40)
            memcpy(answer.control + CONTROL_HEADER + 16, &interface, 4)
        memcpy(answer.control, &head, CONTROL_HEADER)
        header.msg_control = answer.control
        header.msg_controllen = (head.cmsg_len + ALIGNED - 1) // ALIGNED * ALIGNED

    def send(self, opened) -> int:
        """Sends the answers that wait, and forgets those that can't be sent. Returns how many it sent."""
        cdef int descriptor = opened.fileno(), at = 0, sent = 0, count = self._count, done
        self._count = 0
        while at < count:
            with nogil:
                done = sendmmsg(descriptor, self._sent + at, count - at, MSG_DONTWAIT)
            if done < 0 and errno == EAGAIN:
                break
            sent += max(done, 0)
            at += done if done > 0 else 1
        return sent


cdef bytes _place(const uint8_t *endpoint):
    """Returns address and port, as `endpoint.place_of` does."""
    cdef Py_ssize_t width = 4 if endpoint[0] == 4 else 16
    place = PyBytes_FromStringAndSize(NULL, width + 2)
    memcpy(PyBytes_AS_STRING(place), endpoint + 8, width)
    memcpy(PyBytes_AS_STRING(place) + width, endpoint + 2, 2)
    return place


cdef bint _any(const uint8_t *data, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(length):
        if data[at]:
            return True
    return False
