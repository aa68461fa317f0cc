"""Names what the compiled modules read of headers, sums it and looks it up. `tests/proto/kernel` compares each number with
its home.

All functions read no more than the bytes that they are given. Integers of trains are little endian, as is the machine.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Realloc
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    # proto.packets.fields
    TCP = 6
    UDP = 17
    V4_FIRST = 0x45
    V4_LENGTH = 2
    V4_IDENTIFICATION = 4
    V4_FRAGMENT = 6
    V4_PROTOCOL = 9
    V4_CHECKSUM = 10
    V4_SOURCE = 12
    V4_DESTINATION = 16
    V4_HEADER = 20
    RESERVED_BIT = 0x8000
    DONT_FRAGMENT = 0x4000
    MORE_FRAGMENTS = 0x2000
    FRAGMENT_OFFSET = 0x1FFF
    V6_LENGTH = 4
    V6_NEXT = 6
    V6_SOURCE = 8
    V6_DESTINATION = 24
    V6_HEADER = 40
    HOP_BY_HOP = 0
    FRAGMENT = 44
    ICMPV6 = 58
    DESTINATION_OPTIONS = 60
    PORTS_END = 4
    TCP_SEQUENCE = 4
    TCP_ACKNOWLEDGEMENT = 8
    TCP_DATA_OFFSET = 12
    TCP_FLAGS = 13
    TCP_WINDOW = 14
    TCP_CHECKSUM = 16
    TCP_URGENT = 18
    TCP_HEADER = 20
    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_CWR = 0x80
    UDP_LENGTH = 4
    UDP_CHECKSUM = 6
    UDP_HEADER = 8
    VNET_HEADER = 10
    NEEDS_CSUM = 1
    DATA_VALID = 2
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80
    # proto.constants and limits
    TYPE_INITIATION = 1
    TYPE_TRANSPORT = 4
    TAG_LENGTH = 16
    TRANSPORT_HEADER_LENGTH = 16
    TRANSPORT_OVERHEAD = 32
    PADDING_MULTIPLE = 16
    MAX_INNER = 65475
    MAX_DATAGRAM = 65507
    MAX_PACKET = 65535
    MAX_SEGMENTS = 64
    # pipe.trains
    VERSION = 2
    PLAIN = 1
    CIPHER = 2
    MAX_FRAME = 163840
    MAX_ITEM = 65545
    # proto.endpoint
    ENDPOINT_LENGTH = 44

cdef struct TrainHeader:
    uint8_t version
    uint8_t kind
    uint8_t takes
    uint8_t age
    uint32_t count
    double stamp

cdef struct RunHeader:
    uint8_t endpoint[ENDPOINT_LENGTH]
    uint16_t size
    uint16_t reserved
    uint32_t length

cdef struct VirtioHeader:
    uint8_t flags
    uint8_t kind
    uint16_t header_length
    uint16_t segment_size
    uint16_t csum_start
    uint16_t csum_offset


cdef inline void pass_on(TrainHeader *header, double born) noexcept nogil:
    """Gives a train the birth of its oldest packet, to the ms, as `trains.age_of` does. Its stamp is the present."""
    cdef double age = (header.stamp - born) * 1000
    if age >= 1:
        header.age = <uint8_t>(age if age < 255 else 255)
        header.stamp -= header.age * 0.001


cdef inline uint32_t get16(const uint8_t *at) noexcept nogil:
    return at[0] << 8 | at[1]


cdef inline void put16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    put16(at, value >> 16)
    put16(at + 2, value)


cdef inline uint32_t remainder(const uint8_t *data, Py_ssize_t length) noexcept nogil:
    """Sums `data` as big-endian words modulo 65,535, with a zero after an odd byte: 0 to 65,534."""
    cdef uint64_t total = 0
    cdef uint32_t words[4]
    cdef uint32_t word
    cdef uint16_t half
    while length >= 16:
        memcpy(words, data, 16)
        total += <uint64_t>words[0] + words[1] + words[2] + words[3]
        data += 16
        length -= 16
    while length >= 4:
        memcpy(&word, data, 4)
        total += word
        data += 4
        length -= 4
    if length >= 2:
        memcpy(&half, data, 2)
        total += half
        data += 2
        length -= 2
    if length:
        total += data[0]
    word = <uint32_t>(total % 0xFFFF)
    return (word & 0xFF) << 8 | word >> 8  # of little-endian words the same sum, with its bytes swapped


cdef inline uint32_t complement(uint32_t total) noexcept nogil:
    """Makes an IPv4 header's checksum of the sum of its other words."""
    return (0xFFFF - total % 0xFFFF) % 0xFFFF


cdef inline uint32_t checksum_of(uint32_t total) noexcept nogil:
    """Makes the checksum of TCP or UDP, which is never 0."""
    return 0xFFFF - total % 0xFFFF


cdef inline uint32_t pseudo_header(const uint8_t *packet, uint32_t protocol, uint32_t length) noexcept nogil:
    """Sums what the checksums of TCP and UDP cover of the IP header. There must be a whole one."""
    if packet[0] >> 4 == 4:
        return remainder(packet + V4_SOURCE, V4_HEADER - V4_SOURCE) + protocol + length
    return remainder(packet + V6_SOURCE, V6_HEADER - V6_SOURCE) + protocol + length


cdef inline Py_ssize_t padded(Py_ssize_t length, Py_ssize_t mtu) noexcept nogil:
    """Returns a packet's padded length: a multiple of 16, but never beyond the MTU."""
    cdef Py_ssize_t padding = -length & (PADDING_MULTIPLE - 1)
    if padding > mtu - length:
        padding = mtu - length if mtu > length else 0
    return length + padding


cdef inline Py_ssize_t hinted(const VirtioHeader *said, Py_ssize_t length) noexcept nogil:
    """Counts packets as `virtio.count` does."""
    if not said.kind or not said.segment_size or length <= said.header_length:
        return 1
    return (length - said.header_length + said.segment_size - 1) // said.segment_size


cdef inline void *grown(void *memory, int *room, int count, size_t size) except NULL:
    """Returns memory for one more than `count` entries of `size` bytes. `room` says how many there is memory for."""
    cdef int more = 2 * room[0] + 64
    cdef void *found
    if count < room[0]:
        return memory
    found = PyMem_Realloc(memory, more * size)
    if found is NULL:
        raise MemoryError
    room[0] = more
    return found


cdef inline bint is_address(bytes known, const uint8_t *address, Py_ssize_t width) noexcept:
    """Tells whether the latest address that was looked up is this one. None: there is none."""
    return known is not None and len(known) == width and not memcmp(PyBytes_AS_STRING(known), address, width)


cdef inline bytes address_at(const uint8_t *address, Py_ssize_t width):
    return PyBytes_FromStringAndSize(<const char *>address, width)


cdef inline object owner_of(dict answers, lookup, bytes address):
    """Asks `AllowedIps` for an address's owner: in its recent answers first."""
    cdef PyObject *found = PyDict_GetItem(answers, address)
    return <object>found if found is not NULL else lookup(address)
