# cython: language_level=3, cdivision=True, nonecheck=True
"""Opens the cipher trains of one visit into plain trains.

    add       copies a train's runs
    open      decrypts, asks the replay window, checks each packet and its source, merges
    finish    returns the plain trains

What is assumed of a caller: `sessions` has the sessions of this kernel alone.

What is checked here: every length before anything is read by it, and in this order each datagram's receiver, its session's
age, its tag, its counter. A forged counter never reaches the window. A frame may lie in memory that another process changes
meanwhile: it is copied first, because OpenSSL reads what it decrypts twice.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from stagewire.proto.endpoint import place_of

from stagewire.proto.kernel cimport headers as h
from stagewire.proto.kernel.cipher cimport Cipher, Window

cdef enum:
    CAPACITY = 512 * 1024
    SPARE = 1024  # room for the headers of the trains
    BUCKETS = 1024
    RECEIVER = 8  # type, reserved bytes and receiver index, which no tag protects: looking them up checks them
    TAKES_TCP = 1
    TAKES_UDP = 2

cdef uint64_t _SEED = <uint64_t>hash("flows")  # Python draws it anew in each process

cdef struct Packet:
    Py_ssize_t at
    Py_ssize_t length
    int next

cdef struct Flow:
    int first
    int last
    int count
    int bucket_next
    int bucket
    int transport
    int headers
    uint32_t protocol
    Py_ssize_t size
    Py_ssize_t total
    uint32_t next_sequence
    int next_identification  # -1 if identifications mean nothing
    bint closed
    bint checked
    bint pushed

cdef struct Received:
    Py_ssize_t at
    Py_ssize_t length
    Py_ssize_t size
    uint8_t endpoint[h.ENDPOINT_LENGTH]

cdef struct Refused:
    Py_ssize_t forged
    Py_ssize_t forged_size
    Py_ssize_t replayed
    Py_ssize_t replayed_size
    Py_ssize_t malformed
    Py_ssize_t malformed_size
    Py_ssize_t foreign
    Py_ssize_t foreign_at
    Py_ssize_t foreign_size


cdef class Opening:
    """Holds one visit's datagrams and the plain trains made of them."""

    cdef object _lookup
    cdef dict _answers
    cdef dict _sessions
    cdef dict _diverted
    cdef list _aside
    cdef Py_ssize_t _size
    cdef uint8_t *_data
    cdef Py_ssize_t _data_room
    cdef Received *_runs
    cdef int _run_room
    cdef int _run_count
    cdef Packet *_packets
    cdef int _packet_room
    cdef int _packet_count
    cdef Flow *_flows
    cdef int _flow_room
    cdef int _flow_count
    cdef int _buckets[BUCKETS]
    cdef list _refused
    cdef list _groups
    cdef dict _group_of
    cdef bytes _last_source
    cdef object _last_owner
    cdef bytearray _made
    cdef uint8_t *_out
    cdef Py_ssize_t _end
    cdef double _born

    def __init__(self, lookup, dict answers, dict sessions, dict diverted=None):
        """Begins empty. An address's owner stands in `answers`, or `lookup` finds it.

        `sessions` has (owner, session) by a datagram's first 8 bytes. Packets of the owners in `diverted` go to `aside`.
        """
        self._lookup, self._answers, self._sessions = lookup, answers, sessions
        self._diverted = {} if diverted is None else diverted
        self._made = PyByteArray_FromStringAndSize(NULL, CAPACITY)  # not cleared: each page is taken when it is used
        self._out = <uint8_t *>self._made
        self.clear()

    def __dealloc__(self):
        PyMem_Free(self._data)
        PyMem_Free(self._runs)
        PyMem_Free(self._packets)
        PyMem_Free(self._flows)

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def born(self) -> float:
        """Returns the birth (s) of the oldest train of this visit; infinite without any."""
        return self._born

    @property
    def runs(self) -> int:
        """Counts the runs of this visit."""
        return self._run_count

    def add(self, data, Py_ssize_t begin, Py_ssize_t end, double now, double max_age) -> bool:
        """Takes a cipher train in that lies in `data`. False without an effect: `trains` must judge it."""
        cdef Py_buffer buffer
        cdef int runs = self._run_count
        cdef Py_ssize_t size = self._size
        taken = False
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            if 0 <= begin <= end <= buffer.len:
                taken = self._copy(<const uint8_t *>buffer.buf + begin, end - begin, now, max_age)
        finally:
            PyBuffer_Release(&buffer)
            if not taken:
                self._run_count, self._size = runs, size
        return taken

    cdef bint _copy(self, const uint8_t *frame, Py_ssize_t length, double now, double max_age) except -1:
        cdef h.TrainHeader header
        cdef h.RunHeader run
        cdef Py_ssize_t at = sizeof(header), each, room
        cdef uint8_t *made
        if length < <Py_ssize_t>sizeof(header) or self._size + length > CAPACITY - SPARE:
            return False
        memcpy(&header, frame, sizeof(header))
        if header.version != h.VERSION or header.kind != h.CIPHER or not now - header.stamp <= max_age:
            return False
        if self._size + length > self._data_room:
            room = 2 * self._data_room + length
            made = <uint8_t *>PyMem_Realloc(self._data, room)
            if made is NULL:
                raise MemoryError
            self._data, self._data_room = made, room
        for each in range(header.count):
            if length - at < <Py_ssize_t>sizeof(run):
                return False
            memcpy(&run, frame + at, sizeof(run))
            at += sizeof(run)
            if not run.size or not run.length or run.length > length - at or run.length > run.size * h.MAX_SEGMENTS:
                return False
            self._take(&run, frame + at)
            at += run.length
        if at == length and header.count and header.stamp < self._born:
            self._born = header.stamp
        return at == length

    cdef int _take(self, h.RunHeader *run, const uint8_t *data) except -1:
        cdef Received *made
        self._runs = <Received *>h.grown(self._runs, &self._run_room, self._run_count, sizeof(Received))
        made = &self._runs[self._run_count]
        made.at, made.length, made.size = self._size, run.length, run.size
        memcpy(made.endpoint, run.endpoint, h.ENDPOINT_LENGTH)
        memcpy(self._data + self._size, data, run.length)
        self._run_count += 1
        self._size += run.length
        return 0

    # --- opening -------------------------------------------------------------------------------------------

    def open(self, double now) -> list:
        """Opens all. Returns (owner, session, endpoint, bytes, whether there was a packet) for what was authentic."""
        cdef Received *run
        cdef Py_ssize_t at, end, first, length
        cdef int each
        for each in range(self._run_count):
            run = &self._runs[each]
            at, end = run.at, run.at + run.length
            while at < end:
                # Datagrams of one session follow one another.
                first, length = at, min(run.size, end - at)
                while at < end and self._same_receiver(first, length, at, min(run.size, end - at)):
                    at += min(run.size, end - at)
                self._open_group(run, first, at, now)
        return self._groups

    cdef bint _same_receiver(self, Py_ssize_t first, Py_ssize_t length, Py_ssize_t at, Py_ssize_t size) noexcept:
        cdef Py_ssize_t one = min(length, RECEIVER), other = min(size, RECEIVER)
        return one == other and not memcmp(self._data + first, self._data + at, one)

    cdef int _open_group(self, Received *run, Py_ssize_t at, Py_ssize_t end, double now) except -1:
        cdef Py_ssize_t length, received = 0, count = (end - at + run.size - 1) // run.size
        cdef int inner
        cdef bint data = False, diverts
        cdef uint64_t counter
        cdef uint8_t *row
        cdef Cipher key
        cdef Window window
        cdef Refused refused
        cdef PyObject *found
        length = min(run.size, end - at)
        found = PyDict_GetItem(
            self._sessions, PyBytes_FromStringAndSize(<const char *>self._data + at, min(RECEIVER, length))
        )
        if found is NULL:
            self._refused.append(("unknown_receiver", None, _place(run), length, count))
            return 0
        owner, session = <tuple?><object>found
        if session.expired(now):
            self._refused.append(("session_expired", owner, _place(run), length, count))
            return 0
        memset(&refused, 0, sizeof(refused))
        key, window = session.receiver, session.window
        diverts = len(self._diverted) > 0 and owner in self._diverted
        while at < end:
            length = min(run.size, end - at)
            row = self._data + at
            at += length
            if length < h.TRANSPORT_OVERHEAD:
                refused.forged, refused.forged_size = refused.forged + 1, length
                continue
            memcpy(&counter, row + RECEIVER, 8)
            inner = key.open(counter, row + h.TRANSPORT_HEADER_LENGTH, <int>length - h.TRANSPORT_HEADER_LENGTH)
            if inner < 0:
                refused.forged, refused.forged_size = refused.forged + 1, length
            # Only after authentication: a forged counter must not move the window.
            elif not window.take(counter):
                refused.replayed, refused.replayed_size = refused.replayed + 1, length
            else:
                received += length
                if inner:
                    data = True
                    self._deliver(owner, row + h.TRANSPORT_HEADER_LENGTH, inner, diverts, &refused)
        self._refuse(owner, run, &refused)
        if received:
            self._note(owner, session, run, received, data)
        return 0

    cdef int _refuse(self, owner, Received *run, Refused *refused) except -1:
        """Adds to the list of what was refused: of each reason the number, and the newest example."""
        cdef const uint8_t *source = self._data + refused.foreign_at
        if refused.forged:
            self._refused.append(("transport_not_authentic", owner, _place(run), refused.forged_size, refused.forged))
        if refused.replayed:
            self._refused.append(("replayed", owner, _place(run), refused.replayed_size, refused.replayed))
        if refused.malformed:
            self._refused.append(("inner_malformed", owner, b"", refused.malformed_size, refused.malformed))
        if refused.foreign:
            found = source[h.V4_SOURCE : h.V4_DESTINATION] if source[0] >> 4 == 4 else source[h.V6_SOURCE : h.V6_DESTINATION]
            self._refused.append(("inner_source_not_allowed", owner, found, refused.foreign_size, refused.foreign))
        return 0

    cdef int _note(self, owner, session, Received *run, Py_ssize_t received, bint data) except -1:
        """Adds to the summary; of an owner's datagrams, what one endpoint sent under one session in a row is one entry."""
        endpoint = _endpoint(run)
        cdef PyObject *found = PyDict_GetItem(self._group_of, owner)
        cdef Py_ssize_t last
        if found is not NULL:
            last = <object>found
            _, last_session, last_endpoint, before, had_data = self._groups[last]
            if last_session is session and last_endpoint == endpoint:
                self._groups[last] = (owner, session, endpoint, before + received, bool(had_data or data))
                return 0
        self._group_of[owner] = len(self._groups)
        self._groups.append((owner, session, endpoint, received, bool(data)))
        return 0

    cdef int _deliver(self, owner, const uint8_t *packet, Py_ssize_t size, bint diverts, Refused *refused) except -1:
        """Keeps a packet that is well-formed and whose source is its peer's."""
        cdef Py_ssize_t length = _inner_length(packet, size)
        cdef const uint8_t *source
        cdef Py_ssize_t width
        cdef Packet *made
        if not length:
            refused.malformed, refused.malformed_size = refused.malformed + 1, size
            return 0
        if packet[0] >> 4 == 4:
            source, width = packet + h.V4_SOURCE, h.V4_DESTINATION - h.V4_SOURCE
        else:
            source, width = packet + h.V6_SOURCE, h.V6_DESTINATION - h.V6_SOURCE
        if not h.is_address(self._last_source, source, width):
            self._last_source = h.address_at(source, width)
            self._last_owner = h.owner_of(self._answers, self._lookup, self._last_source)
        if self._last_owner is not owner:
            refused.foreign, refused.foreign_size = refused.foreign + 1, length
            refused.foreign_at = packet - self._data
            return 0
        if diverts:
            self._aside.append((owner, PyBytes_FromStringAndSize(<const char *>packet, length)))
            return 0
        self._packets = <Packet *>h.grown(self._packets, &self._packet_room, self._packet_count, sizeof(Packet))
        made = &self._packets[self._packet_count]
        made.at, made.length, made.next = packet - self._data, length, -1
        self._packet_count += 1
        return 0

    def aside(self) -> list:
        """Returns (owner, packet) of what was opened and is not merged, because its owner is diverted."""
        return self._aside

    def refused(self) -> list:
        """Returns (reason, owner, place, bytes, count) of what was refused.

        The place is an address with its port, the source address of a packet, or empty.
        """
        return self._refused

    # --- merging -------------------------------------------------------------------------------------------

    def finish(self, double now, int takes) -> list:
        """Merges what was opened into super-packets that the OS takes.

        Returns the plain trains, each with its packets' number. They are good until the next `finish`.
        """
        cdef int each
        if self._packet_count < 2:
            takes = 0
        memset(self._buckets, -1, sizeof(self._buckets))
        self._flow_count = 0
        for each in range(self._packet_count):
            if not takes or not self._merge(each, takes):
                self._begin(each, 0, 0, 0)
        return self._write(now)

    cdef bint _merge(self, int number, int takes) except -1:
        """Lets a packet go on or begin a flow. False for a packet that stays as it is."""
        cdef Packet *packet = &self._packets[number]
        cdef const uint8_t *data = self._data + packet.at
        cdef uint32_t protocol = 0
        cdef int transport = _transport(data, packet.length, takes, &protocol), headers, flow, bucket
        if not transport:
            # It may be of any flow: later packets must not be merged into earlier ones across it.
            memset(self._buckets, -1, sizeof(self._buckets))
            return False
        if packet.length < transport + h.PORTS_END:
            return False
        bucket = _bucket(data, transport)
        flow = self._find(data, transport, bucket)
        headers = _headers(data, packet.length, transport, protocol)
        if headers and flow >= 0 and self._continue(&self._flows[flow], number, protocol, headers):
            return True
        if flow >= 0:
            self._unlink(flow)
        if not headers:
            return False
        flow = self._begin(number, transport, headers, protocol)
        self._flows[flow].bucket, self._flows[flow].bucket_next = bucket, self._buckets[bucket]
        self._buckets[bucket] = flow
        return True

    cdef int _find(self, const uint8_t *packet, int transport, int bucket) noexcept:
        cdef int found = self._buckets[bucket], start = h.V4_SOURCE if transport == h.V4_HEADER else h.V6_SOURCE
        while found >= 0:
            if self._flows[found].transport == transport and not memcmp(
                self._data + self._packets[self._flows[found].first].at + start,
                packet + start,
                transport + h.PORTS_END - start,
            ):
                return found
            found = self._flows[found].bucket_next
        return -1

    cdef void _unlink(self, int flow) noexcept:
        cdef int *place = &self._buckets[self._flows[flow].bucket]
        while place[0] != flow:
            place = &self._flows[place[0]].bucket_next
        place[0] = self._flows[flow].bucket_next

    cdef int _begin(self, int number, int transport, int headers, uint32_t protocol) except -1:
        """Begins an item with a packet; without headers nothing goes on after it."""
        cdef Packet *packet = &self._packets[number]
        cdef const uint8_t *data = self._data + packet.at
        cdef Flow *flow
        self._flows = <Flow *>h.grown(self._flows, &self._flow_room, self._flow_count, sizeof(Flow))
        flow = &self._flows[self._flow_count]
        flow.first = flow.last = number
        flow.count, flow.bucket, flow.bucket_next = 1, 0, -1
        flow.transport, flow.headers, flow.protocol = transport, headers, protocol
        flow.total, flow.size = packet.length, packet.length - headers
        flow.next_sequence, flow.next_identification = 0, -1
        flow.checked = flow.pushed = flow.closed = False
        if headers:
            if protocol == h.TCP:
                flow.next_sequence = h.get32(data + transport + h.TCP_SEQUENCE) + <uint32_t>flow.size
                flow.pushed = flow.closed = data[transport + h.TCP_FLAGS] & h.TCP_PSH != 0
            if transport == h.V4_HEADER and not h.get16(data + h.V4_FRAGMENT) & h.DONT_FRAGMENT:
                flow.next_identification = (h.get16(data + h.V4_IDENTIFICATION) + 1) & 0xFFFF
        self._flow_count += 1
        return self._flow_count - 1

    cdef bint _continue(self, Flow *flow, int number, uint32_t protocol, int headers) noexcept:
        """Takes the packet in, if it goes on where the flow's last packet ended."""
        cdef Packet *packet = &self._packets[number]
        cdef const uint8_t *data = self._data + packet.at
        cdef const uint8_t *first = self._data + self._packets[flow.first].at
        cdef Py_ssize_t size = packet.length - headers
        cdef int transport = flow.transport
        if flow.closed or headers != flow.headers or protocol != flow.protocol or size > flow.size:
            return False
        if flow.total + size > h.MAX_PACKET or flow.count >= h.MAX_SEGMENTS:
            return False
        if protocol == h.TCP and h.get32(data + transport + h.TCP_SEQUENCE) != flow.next_sequence:
            return False
        if flow.next_identification >= 0 and <int>h.get16(data + h.V4_IDENTIFICATION) != flow.next_identification:
            return False
        if not _same(first, data, transport, protocol, headers):
            return False
        if not flow.checked:
            if not _valid(first, self._packets[flow.first].length, transport, protocol):
                return False
            flow.checked = True
        if not _valid(data, packet.length, transport, protocol):
            return False
        self._packets[flow.last].next = number
        flow.last = number
        flow.count += 1
        flow.total += size
        flow.next_sequence += <uint32_t>size
        if flow.next_identification >= 0:
            flow.next_identification = (flow.next_identification + 1) & 0xFFFF
        flow.pushed = protocol == h.TCP and data[transport + h.TCP_FLAGS] & h.TCP_PSH != 0
        flow.closed = flow.pushed or size < flow.size
        return True

    # --- writing -------------------------------------------------------------------------------------------

    cdef list _write(self, double now):
        cdef int each
        cdef Py_ssize_t start = -1, size = 0, weight = 0
        cdef Flow *flow
        cuts = []
        self._end = 0
        for each in range(self._flow_count):
            flow = &self._flows[each]
            if start < 0 or size + flow.total > h.MAX_FRAME:
                if start >= 0:
                    cuts.append((start, self._end, weight))
                start = self._end
                self._end += sizeof(h.TrainHeader)
                size = weight = 0
            self._write_item(flow)
            size += flow.total
            weight += flow.count
        if start >= 0:
            cuts.append((start, self._end, weight))
        return self._trains(cuts, now)

    cdef list _trains(self, list cuts, double now):
        cdef h.TrainHeader header
        cdef Py_ssize_t start
        whole, found = memoryview(self._made), []
        for start, end, weight in cuts:
            header = h.TrainHeader(version=h.VERSION, kind=h.PLAIN, takes=0, age=0, count=weight, stamp=now)
            h.pass_on(&header, self._born)
            memcpy(self._out + start, &header, sizeof(header))
            found.append((whole[start:end], weight))
        return found

    cdef void _write_item(self, Flow *flow) noexcept:
        cdef Packet *packet = &self._packets[flow.first]
        cdef uint32_t length = <uint32_t>flow.total + h.VNET_HEADER
        cdef uint8_t *out = self._out + self._end
        memcpy(out, &length, 4)
        memset(out + 4, 0, h.VNET_HEADER)
        memcpy(out + 4 + h.VNET_HEADER, self._data + packet.at, packet.length)
        self._end += 4 + length
        if flow.count == 1:
            return
        _join_headers(out + 4, flow)
        out += 4 + h.VNET_HEADER + packet.length
        while packet.next >= 0:
            packet = &self._packets[packet.next]
            memcpy(out, self._data + packet.at + flow.headers, packet.length - flow.headers)
            out += packet.length - flow.headers

    def clear(self) -> None:
        """Forgets the visit."""
        self._size = 0
        self._born = INFINITY
        self._run_count = self._packet_count = self._flow_count = 0
        self._last_source = self._last_owner = None
        self._groups, self._refused, self._aside = [], [], []
        self._group_of = {}


cdef bytes _endpoint(Received *run):
    return PyBytes_FromStringAndSize(<const char *>run.endpoint, h.ENDPOINT_LENGTH)


cdef bytes _place(Received *run):
    return place_of(_endpoint(run))


cdef Py_ssize_t _inner_length(const uint8_t *packet, Py_ssize_t size) noexcept nogil:
    """Does what `ip.inner_length` does."""
    cdef Py_ssize_t total, header
    if size < h.V4_HEADER:
        return 0
    if packet[0] >> 4 == 4:
        total, header = h.get16(packet + h.V4_LENGTH), (packet[0] & 0x0F) * 4
        return total if h.V4_HEADER <= header <= total <= size else 0
    if packet[0] >> 4 == 6 and size >= h.V6_HEADER:
        total = h.V6_HEADER + h.get16(packet + h.V6_LENGTH)
        if total > size or (total == h.V6_HEADER and packet[h.V6_NEXT] == h.HOP_BY_HOP):
            return 0
        return total
    return 0


cdef int _transport(const uint8_t *packet, Py_ssize_t length, int takes, uint32_t *protocol) noexcept nogil:
    """Returns the length of the IP header of a packet that may be merged, and its protocol; 0 for another packet.

    The protocol stays 0 for a packet of such a flow that has no payload.
    """
    cdef uint32_t said
    cdef int transport
    if packet[0] == h.V4_FIRST:
        said, transport = packet[h.V4_PROTOCOL], h.V4_HEADER
        if h.get16(packet + h.V4_FRAGMENT) & (h.RESERVED_BIT | h.MORE_FRAGMENTS | h.FRAGMENT_OFFSET):
            return 0
    elif packet[0] >> 4 == 6:
        said, transport = packet[h.V6_NEXT], h.V6_HEADER
    else:
        return 0
    if not ((said == h.TCP and takes & TAKES_TCP) or (said == h.UDP and takes & TAKES_UDP)):
        return 0
    if length > transport + (h.TCP_HEADER if said == h.TCP else h.UDP_HEADER):
        protocol[0] = said
    return transport


cdef int _headers(const uint8_t *packet, Py_ssize_t length, int transport, uint32_t protocol) noexcept nogil:
    """Returns the length of all headers of a packet that may be merged; 0 for another packet."""
    cdef int headers
    if protocol == h.TCP:
        headers = transport + (packet[transport + h.TCP_DATA_OFFSET] >> 4) * 4
        if packet[transport + h.TCP_FLAGS] & ~h.TCP_PSH != h.TCP_ACK or packet[transport + h.TCP_DATA_OFFSET] & 0x0F:
            return 0
        return headers if transport + h.TCP_HEADER <= headers < length else 0
    if protocol == h.UDP:
        if h.get16(packet + transport + h.UDP_LENGTH) + transport != length:
            return 0
        return transport + h.UDP_HEADER if h.get16(packet + transport + h.UDP_CHECKSUM) else 0
    return 0


cdef bint _same(const uint8_t *one, const uint8_t *other, int transport, uint32_t protocol, int headers) noexcept nogil:
    """Compares all header bytes that the packets of a super-packet share, beyond those that tell the flow."""
    if transport == h.V4_HEADER:
        if memcmp(one, other, h.V4_LENGTH) or memcmp(
            one + h.V4_FRAGMENT, other + h.V4_FRAGMENT, h.V4_CHECKSUM - h.V4_FRAGMENT
        ):
            return False
    elif memcmp(one, other, h.V6_LENGTH) or memcmp(one + h.V6_NEXT, other + h.V6_NEXT, h.V6_SOURCE - h.V6_NEXT):
        return False
    if protocol == h.UDP:
        return True
    one += transport
    other += transport
    return not (
        memcmp(one + h.TCP_ACKNOWLEDGEMENT, other + h.TCP_ACKNOWLEDGEMENT, h.TCP_FLAGS - h.TCP_ACKNOWLEDGEMENT)
        or memcmp(one + h.TCP_WINDOW, other + h.TCP_WINDOW, h.TCP_CHECKSUM - h.TCP_WINDOW)
        or memcmp(one + h.TCP_URGENT, other + h.TCP_URGENT, headers - transport - h.TCP_URGENT)
    )


cdef bint _valid(const uint8_t *packet, Py_ssize_t length, int transport, uint32_t protocol) noexcept nogil:
    """Tells whether a packet's checksums are right."""
    cdef uint32_t rest = <uint32_t>(length - transport)
    if transport == h.V4_HEADER and h.remainder(packet, h.V4_HEADER):
        return False
    return (h.remainder(packet + transport, rest) + h.pseudo_header(packet, protocol, rest)) % 0xFFFF == 0


cdef int _bucket(const uint8_t *packet, int transport) noexcept nogil:
    """Spreads flows over the buckets, differently in each process: no peer can choose flows that share one."""
    cdef uint64_t mixed = (<uint64_t>h.get32(packet + transport - 4) << 32 | h.get32(packet + transport)) ^ _SEED
    mixed = (mixed ^ mixed >> 32) * <uint64_t>0x9E3779B97F4A7C15
    mixed = (mixed ^ mixed >> 29) * (_SEED | 1)
    return <int>(mixed >> 48) % BUCKETS


cdef void _join_headers(uint8_t *item, Flow *flow) noexcept nogil:
    """Makes the headers of a super-packet out of its first packet's, which lie behind a virtio_net_hdr of zeros."""
    cdef h.VirtioHeader said
    cdef uint8_t *packet = item + h.VNET_HEADER
    cdef uint8_t *transport = packet + flow.transport
    cdef uint32_t rest = <uint32_t>(flow.total - flow.transport), place = h.TCP_CHECKSUM, pseudo
    said.flags, said.kind = h.NEEDS_CSUM, h.GSO_TCPV4 if flow.transport == h.V4_HEADER else h.GSO_TCPV6
    if flow.protocol == h.UDP:
        said.kind, place = h.GSO_UDP_L4, h.UDP_CHECKSUM
        h.put16(transport + h.UDP_LENGTH, rest)
    elif flow.pushed:
        transport[h.TCP_FLAGS] |= h.TCP_PSH
    said.header_length, said.segment_size = flow.headers, flow.size
    said.csum_start, said.csum_offset = flow.transport, place
    memcpy(item, &said, h.VNET_HEADER)
    if flow.transport == h.V4_HEADER:
        h.put16(packet + h.V4_LENGTH, <uint32_t>flow.total)
        h.put16(packet + h.V4_CHECKSUM, 0)
        h.put16(packet + h.V4_CHECKSUM, h.complement(h.remainder(packet, h.V4_HEADER)))
    else:
        h.put16(packet + h.V6_LENGTH, rest)
    pseudo = h.pseudo_header(packet, flow.protocol, rest) % 0xFFFF
    h.put16(transport + place, pseudo if pseudo else 0xFFFF)
