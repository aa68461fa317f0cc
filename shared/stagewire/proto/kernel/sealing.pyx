# cython: language_level=3, cdivision=True
"""Seals the plain trains of one visit into cipher trains, for all of their peers.

    add       reads a train's items, and finds each item's peer by its destination
    owner     says whose packets a group has; the caller decides whether they are sealed, and takes counters for them
    seal      splits, completes, pads and encrypts a group's packets into runs
    back      gives a group's items back, for Python
    finish    returns the cipher trains

What is assumed of a caller: `seal` gets counters that nothing else uses, as many as the group has packets, and a frame given
to `add` stays readable until `clear`.

What is checked here: every length before anything is read by it. Another process may change a frame meanwhile, for it may lie
in shared memory. So each item's headers are copied once, judged in the copy and sealed from the copy; a payload is read once.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free
from cpython.ref cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from stagewire.proto.kernel cimport headers as h
from stagewire.proto.kernel.cipher cimport Cipher

cdef enum:
    HEAD = 128
    CAPACITY = 512 * 1024
    DEEPEST = 60
    NO_FLOW = 0
    OTHER_FLOW = 1
    OWN_FLOW = 2

cdef struct Item:
    const uint8_t *packet
    Py_ssize_t start
    Py_ssize_t length
    Py_ssize_t count
    int frame
    int next
    bint completes
    bint splits
    bint odd
    int transport
    int place
    int headers
    int segment
    uint32_t protocol
    uint8_t head[HEAD]

cdef struct Group:
    int first
    int last
    Py_ssize_t count
    Py_ssize_t size
    bint odd

cdef struct Run:
    Py_ssize_t at
    Py_ssize_t count
    Py_ssize_t size
    Py_ssize_t total
    Py_ssize_t last


cdef class Sealing:
    """Holds one visit's items and the cipher trains made of them."""

    cdef object _lookup
    cdef dict _answers
    cdef type _home
    cdef public Py_ssize_t mtu
    cdef Py_ssize_t _mtu
    cdef Item *_items
    cdef int _item_room
    cdef int _item_count
    cdef double _born
    cdef Group *_groups
    cdef int _group_room
    cdef dict _group_of
    cdef list _owners
    cdef list _frames
    cdef Py_buffer *_buffers
    cdef int _buffer_room
    cdef int _buffer_count
    cdef list _alone
    cdef bint _astray
    cdef bytes _last_destination
    cdef object _last_owner
    cdef int _last_group
    cdef int *_behind
    cdef int _behind_room
    cdef bytearray _made
    cdef uint8_t *_out
    cdef Py_ssize_t _end
    cdef Py_ssize_t _train
    cdef Py_ssize_t _train_size
    cdef uint32_t _runs
    cdef Py_ssize_t _weight
    cdef list _trains
    cdef Run _run
    cdef const uint8_t *_place

    def __init__(self, lookup, dict answers, type home, Py_ssize_t mtu):
        """Begins empty. An address's owner stands in `answers`, or `lookup` finds it. `home` is the type of our peers."""
        self._lookup, self._answers, self._home, self.mtu = lookup, answers, home, mtu
        self._made = PyByteArray_FromStringAndSize(NULL, CAPACITY)  # not cleared: each page is taken when it is used
        self._out = <uint8_t *>self._made
        self._group_of, self._owners, self._frames, self._alone, self._trains = {}, [], [], [], []
        self._forget()

    def __dealloc__(self):
        self._release()
        PyMem_Free(self._items)
        PyMem_Free(self._groups)
        PyMem_Free(self._buffers)
        PyMem_Free(self._behind)

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def born(self) -> float:
        """Returns the birth (s) of the oldest train of this visit; infinite without any."""
        return self._born

    @property
    def items(self) -> int:
        """Counts the items of this visit."""
        return self._item_count

    def add(self, data, Py_ssize_t begin, Py_ssize_t end, double now, double max_age) -> bool:
        """Takes a plain train in that lies in `data`. False without an effect: `trains` must judge it."""
        cdef Py_buffer *buffer
        cdef const uint8_t *frame
        cdef h.TrainHeader header
        cdef Py_ssize_t at, size, packets, total = 0
        cdef uint32_t length
        cdef int items = self._item_count
        cdef h.VirtioHeader said
        kept = False
        if not self._buffer_count:
            self._mtu = self.mtu  # one for the whole visit: sizes are counted before anything is sealed
        buffer = self._view(data)
        try:
            frame = <const uint8_t *>buffer.buf
            if not 0 <= begin <= end <= buffer.len or end - begin < <Py_ssize_t>sizeof(h.TrainHeader):
                return False
            memcpy(&header, frame + begin, sizeof(header))
            if header.version != h.VERSION or header.kind != h.PLAIN or not now - header.stamp <= max_age:
                return False
            at = begin + <Py_ssize_t>sizeof(header)
            while at < end:
                if end - at < 4:
                    return False
                memcpy(&length, frame + at, 4)
                at += 4
                if length < h.VNET_HEADER or length > h.MAX_ITEM or length > end - at:
                    return False
                size = length - h.VNET_HEADER
                memcpy(&said, frame + at, h.VNET_HEADER)
                packets = h.hinted(&said, size)
                if packets == 1 and size > h.MAX_INNER:
                    return False
                total += packets
                self._read(frame, at + h.VNET_HEADER, size, &said)
                at += length
            if total != header.count:
                return False
            if self._item_count == items:
                return True  # nothing waits for `seal`, which would forget the train
            if header.stamp < self._born:
                self._born = header.stamp
            kept = True
        finally:
            if not kept:
                self._item_count = items
                self._buffer_count -= 1
                PyBuffer_Release(buffer)
        self._frames.append(data)
        self._sort(items)
        return True

    cdef Py_buffer *_view(self, data) except NULL:
        self._buffers = <Py_buffer *>h.grown(self._buffers, &self._buffer_room, self._buffer_count, sizeof(Py_buffer))
        PyObject_GetBuffer(data, &self._buffers[self._buffer_count], PyBUF_SIMPLE)
        self._buffer_count += 1
        return &self._buffers[self._buffer_count - 1]

    cdef int _read(self, const uint8_t *frame, Py_ssize_t at, Py_ssize_t length, h.VirtioHeader *said) except -1:
        """Copies an item's headers and judges the copy. The item is the caller's to read."""
        cdef Item *item
        self._items = <Item *>h.grown(self._items, &self._item_room, self._item_count, sizeof(Item))
        item = &self._items[self._item_count]
        self._item_count += 1
        item.packet = frame + at
        item.start, item.length, item.frame, item.next = at, length, self._buffer_count - 1, -1
        item.count, item.completes, item.splits, item.odd = 1, False, False, False
        item.transport = item.place = item.headers = item.segment = 0
        item.protocol = 0
        memset(item.head, 0, HEAD)
        memcpy(item.head, item.packet, min(length, HEAD))
        if not _judged(item, said):
            item.count = 0
        return 0

    cdef int _sort(self, int first) except -1:
        """Puts each item into its peer's group. Items without a peer at home, and malformed ones, stay alone."""
        cdef int at, group
        cdef Item *item
        cdef Group *found
        for at in range(first, self._item_count):
            item = &self._items[at]
            if item.completes and item.transport < (h.V4_HEADER if item.head[0] >> 4 == 4 else h.V6_HEADER):
                self._astray = True  # its checksum may be its destination
            group = self._group(item) if item.count else -1
            if group < 0:
                self._alone.append(at)
                continue
            found = &self._groups[group]
            if found.first < 0:
                found.first = at
            else:
                self._items[found.last].next = at
            found.last = at
            found.count += item.count
            found.size += _sealed_size(item, self._mtu)
            found.odd |= item.odd or _is_odd(item)
        return 0

    cdef int _group(self, Item *item) except -2:
        """Returns the number of the peer's group, or -1 if no peer at home has the destination."""
        cdef const uint8_t *destination
        cdef Py_ssize_t width
        if item.head[0] >> 4 == 4:
            destination, width = item.head + h.V4_DESTINATION, h.V4_HEADER - h.V4_DESTINATION
        else:
            destination, width = item.head + h.V6_DESTINATION, h.V6_HEADER - h.V6_DESTINATION
        if h.is_address(self._last_destination, destination, width):
            return self._last_group
        self._last_destination = h.address_at(destination, width)
        owner = h.owner_of(self._answers, self._lookup, self._last_destination)
        self._last_group = self._group_for(owner) if type(owner) is self._home else -1
        return self._last_group

    cdef int _group_for(self, owner) except -2:
        cdef PyObject *found = PyDict_GetItem(self._group_of, owner)
        cdef int group
        if found is not NULL:
            return <int>(<object>found)
        group = <int>len(self._owners)
        self._groups = <Group *>h.grown(self._groups, &self._group_room, group, sizeof(Group))
        self._groups[group] = Group(first=-1, last=-1, count=0, size=0, odd=False)
        self._owners.append(owner)
        self._group_of[owner] = group
        return group

    # --- deciding ------------------------------------------------------------------------------------------

    def owners(self) -> list:
        """Returns the peers of this visit, in order of their first packet; a peer's place is its group's number."""
        return self._owners

    def packets(self, int group) -> int:
        """Counts the packets of a group, and so the counters that it takes."""
        return self._found(group).count

    cdef Group *_found(self, int group) except NULL:
        if not 0 <= group < len(self._owners):
            raise IndexError(group)
        return &self._groups[group]

    def ordinary(self, int group) -> bool:
        """Tells whether `seal` may have the group: no tunnel in it, and room for what is made of it."""
        cdef Group *found = self._found(group)
        cdef Py_ssize_t trains = 2 + found.size // (h.MAX_FRAME - h.MAX_PACKET)
        cdef Py_ssize_t most = found.size + found.count * <Py_ssize_t>sizeof(h.RunHeader) + trains * <Py_ssize_t>sizeof(h.TrainHeader)
        return not self._astray and not found.odd and self._end + most <= CAPACITY

    def back(self, int group) -> list:
        """Returns a group's items: each item's place in the visit, its virtio_net_hdr and its packet."""
        found, at = [], self._found(group).first
        while at >= 0:
            found.append(self._given(at))
            at = self._items[at].next
        return found

    def alone(self) -> list:
        """Returns the items of no peer at home, as `back` does."""
        return [self._given(at) for at in self._alone]

    cdef tuple _given(self, int at):
        cdef Item *item = &self._items[at]
        whole = memoryview(self._frames[item.frame])
        return at, bytes(whole[item.start - h.VNET_HEADER : item.start]), whole[item.start : item.start + item.length]

    # --- sealing -------------------------------------------------------------------------------------------

    def seal(self, int group, Cipher key not None, uint32_t receiver, uint64_t counter, bytes place not None) -> int:
        """Seals an ordinary group from `counter` on, to one endpoint; returns the bytes of its datagrams.

        Super-packets overtake single packets of other flows, mostly acknowledgements, which would cut the runs short.
        """
        cdef Group *found
        cdef Item *item
        cdef int at, behind = 0, each
        if len(place) != h.ENDPOINT_LENGTH or not self.ordinary(group):
            raise ValueError("this group must go back")
        found = &self._groups[group]
        at = found.first
        self._place = <const uint8_t *>PyBytes_AS_STRING(place)
        if not self._train_size or self._train_size + found.size > h.MAX_FRAME:
            self._begin_train()
        self._run = Run(at=-1, count=0, size=0, total=0, last=0)
        while at >= 0:
            item = &self._items[at]
            if item.splits:
                if self._overtakes_own(item, behind):
                    for each in range(behind):
                        counter = self._seal_item(&self._items[self._behind[each]], key, receiver, counter)
                    behind = 0
                counter = self._seal_item(item, key, receiver, counter)
            else:
                self._behind = <int *>h.grown(self._behind, &self._behind_room, behind, sizeof(int))
                self._behind[behind] = at
                behind += 1
            at = item.next
        for each in range(behind):
            counter = self._seal_item(&self._items[self._behind[each]], key, receiver, counter)
        self._end_run()
        return found.size

    cdef bint _overtakes_own(self, Item *whole, int behind) noexcept:
        """Tells whether a packet of the super-packet's own flow, or of one that can't be told, waits behind."""
        cdef int each, kind
        cdef int flow = _flow(whole)
        for each in range(behind):
            kind = _flow(&self._items[self._behind[each]])
            if kind == NO_FLOW:
                return True
            if flow == OWN_FLOW and kind == OWN_FLOW and _same_flow(whole, &self._items[self._behind[each]]):
                return True
        return False

    cdef uint64_t _seal_item(self, Item *item, Cipher key, uint32_t receiver, uint64_t counter) except? 0:
        cdef Py_ssize_t part, length
        cdef uint8_t *row
        for part in range(item.count):
            length = _length(item, part)
            row = self._row(padded_size(length, self._mtu))
            memset(row, 0, h.TRANSPORT_HEADER_LENGTH)
            row[0] = h.TYPE_TRANSPORT
            memcpy(row + 4, &receiver, 4)
            memcpy(row + 8, &counter, 8)
            row += h.TRANSPORT_HEADER_LENGTH
            if item.splits:
                _lay_part(item, part, row, length)
            else:
                _lay_whole(item, row)
            memset(row + length, 0, h.padded(length, self._mtu) - length)
            key.seal(counter, row, <int>h.padded(length, self._mtu))
            counter += 1
        return counter

    cdef uint8_t *_row(self, Py_ssize_t size) except NULL:
        """Returns the place of the next datagram, in the run that it belongs to: the last one of a run may be shorter."""
        cdef Run *run = &self._run
        if self._train_size + size > h.MAX_FRAME:
            self._end_run()
            self._begin_train()
        if run.count and (
            run.count == h.MAX_SEGMENTS
            or run.total + size > h.MAX_DATAGRAM
            or size > run.size
            or run.last < run.size
        ):
            self._end_run()
        if not run.count:
            run.at, run.size, run.total = self._end, size, 0
            self._end += sizeof(h.RunHeader)
        run.count += 1
        run.total += size
        run.last = size
        self._end += size
        self._train_size += size
        self._weight += 1
        return self._out + self._end - size

    cdef void _end_run(self) noexcept:
        cdef h.RunHeader header
        if self._run.count:
            memcpy(header.endpoint, self._place, h.ENDPOINT_LENGTH)
            header.size, header.reserved, header.length = self._run.size, 0, self._run.total
            memcpy(self._out + self._run.at, &header, sizeof(header))
            self._runs += 1
            self._run.count = 0

    cdef int _begin_train(self) except -1:
        self._end_train()
        self._train = self._end
        self._end += sizeof(h.TrainHeader)
        return 0

    cdef int _end_train(self) except -1:
        if self._train_size:
            self._trains.append((self._train, self._end, self._runs, self._weight))
        self._train_size = self._weight = 0
        self._runs = 0
        return 0

    # --- the end -------------------------------------------------------------------------------------------

    def finish(self, double now) -> list:
        """Returns the cipher trains, each with its packets' number. They are good until the next `add`."""
        cdef h.TrainHeader header
        self._end_train()
        found = []
        whole = memoryview(self._made)
        for start, end, runs, weight in self._trains:
            header = h.TrainHeader(version=h.VERSION, kind=h.CIPHER, takes=0, age=0, count=runs, stamp=now)
            h.pass_on(&header, self._born)
            memcpy(self._out + <Py_ssize_t>start, &header, sizeof(header))
            found.append((whole[start:end], weight))
        return found

    def clear(self) -> None:
        """Forgets the visit, and gives the frames free."""
        self._release()
        self._forget()

    cdef void _release(self) noexcept:
        cdef int each
        for each in range(self._buffer_count):
            PyBuffer_Release(&self._buffers[each])
        self._buffer_count = 0

    cdef int _forget(self) except -1:
        self._item_count = 0
        self._born = INFINITY
        self._mtu = self.mtu
        self._end = self._train_size = self._weight = 0
        self._runs = 0
        self._last_destination = None
        self._last_group = -1
        self._astray = False
        for each in (self._group_of, self._owners, self._frames, self._alone, self._trains):
            each.clear()
        return 0


cdef bint _judged(Item *item, h.VirtioHeader *said) noexcept nogil:
    """Does what `virtio.unpack_untrusted` and `split.open_untrusted` do. False for an item that Python must judge."""
    cdef uint8_t *head = item.head
    cdef Py_ssize_t length = item.length, ip
    cdef int kind = said.kind & ~h.GSO_ECN, least, place
    if length < h.V4_HEADER:
        return False
    if head[0] >> 4 == 4:
        ip = h.V4_HEADER
    elif head[0] >> 4 == 6 and length >= h.V6_HEADER:
        ip = h.V6_HEADER
    else:
        return False
    if not (said.flags or said.kind or said.segment_size or said.csum_start or said.csum_offset or said.header_length):
        return True
    if said.flags & ~(h.NEEDS_CSUM | h.DATA_VALID):
        return False
    if kind != h.GSO_NONE and kind != h.GSO_TCPV4 and kind != h.GSO_TCPV6 and kind != h.GSO_UDP_L4:
        return False
    item.transport, item.place = said.csum_start, said.csum_start + said.csum_offset
    if said.flags & h.NEEDS_CSUM:
        if said.csum_offset != h.UDP_CHECKSUM and said.csum_offset != h.TCP_CHECKSUM:
            return False
        if item.place + 2 > length:
            return False
    elif kind != h.GSO_NONE:
        return False
    if kind == h.GSO_NONE:
        item.completes = said.flags & h.NEEDS_CSUM
        return not said.kind & h.GSO_ECN
    if not said.segment_size or (kind == h.GSO_TCPV4 and ip != h.V4_HEADER) or (kind == h.GSO_TCPV6 and ip != h.V6_HEADER):
        return False
    item.protocol, place, least = (
        (h.UDP, h.UDP_CHECKSUM, h.UDP_HEADER) if kind == h.GSO_UDP_L4 else (h.TCP, h.TCP_CHECKSUM, h.TCP_HEADER)
    )
    if said.csum_offset != place or length < item.transport + least:
        return False
    if item.transport > DEEPEST:
        item.odd = True
        return True
    if ip == h.V4_HEADER:
        if (
            (head[0] & 0x0F) * 4 != item.transport
            or item.transport < h.V4_HEADER
            or head[h.V4_PROTOCOL] != item.protocol
            or h.get16(head + h.V4_FRAGMENT) & (h.MORE_FRAGMENTS | h.FRAGMENT_OFFSET)
        ):
            return False
    elif item.transport < h.V6_HEADER:
        return False
    elif item.transport == h.V6_HEADER:
        if head[h.V6_NEXT] != item.protocol:
            return False
    elif head[h.V6_NEXT] != h.HOP_BY_HOP and head[h.V6_NEXT] != h.DESTINATION_OPTIONS:
        return False
    item.segment = said.segment_size
    item.headers = item.transport + least
    if kind != h.GSO_UDP_L4:
        item.headers = item.transport + (head[item.transport + h.TCP_DATA_OFFSET] >> 4) * 4
    if item.headers < item.transport + least or item.headers >= length or item.headers + item.segment > h.MAX_INNER:
        return False
    item.splits = length > item.headers + item.segment
    item.completes = not item.splits
    if item.splits:
        item.count = (length - item.headers + item.segment - 1) // item.segment
    return True


cdef bint _is_odd(Item *item) noexcept nogil:
    """Tells whether a tunnel's datagram may be in the packet (`packets.carried`), or its checksum lies elsewhere."""
    cdef uint8_t *head = item.head
    cdef uint32_t ip = h.V6_HEADER, kind
    if head[0] >> 4 == 4:
        if head[h.V4_PROTOCOL] != h.UDP:
            return False
        if head[0] != h.V4_FIRST or h.get16(head + h.V4_FRAGMENT) & (h.MORE_FRAGMENTS | h.FRAGMENT_OFFSET):
            return True
        ip = h.V4_HEADER
    elif head[h.V6_NEXT] == h.FRAGMENT:
        return True
    elif head[h.V6_NEXT] != h.UDP:
        return False
    if item.completes and item.transport != <int>ip:
        return True
    if item.length < ip + h.UDP_HEADER + 4:
        return False
    memcpy(&kind, head + ip + h.UDP_HEADER, 4)
    return h.TYPE_INITIATION <= kind <= h.TYPE_TRANSPORT


cdef int _flow(Item *item) noexcept nogil:
    """Tells what is known of an item's flow, as `ip.flow` does."""
    cdef uint8_t *head = item.head
    if head[0] == h.V4_FIRST:
        if h.get16(head + h.V4_FRAGMENT) & (h.MORE_FRAGMENTS | h.FRAGMENT_OFFSET):
            return NO_FLOW
        return OWN_FLOW if head[h.V4_PROTOCOL] == h.TCP or head[h.V4_PROTOCOL] == h.UDP else OTHER_FLOW
    if head[0] >> 4 == 6:
        if head[h.V6_NEXT] == h.TCP or head[h.V6_NEXT] == h.UDP:
            return OWN_FLOW
        return OTHER_FLOW if head[h.V6_NEXT] == h.ICMPV6 else NO_FLOW
    return NO_FLOW


cdef bint _same_flow(Item *one, Item *other) noexcept nogil:
    """Compares the addresses and ports of two items with a flow of their own."""
    if one.head[0] == h.V4_FIRST:
        return other.head[0] == h.V4_FIRST and other.length >= h.V4_HEADER + h.PORTS_END and not memcmp(
            one.head + h.V4_SOURCE, other.head + h.V4_SOURCE, h.V4_HEADER + h.PORTS_END - h.V4_SOURCE
        )
    return other.head[0] >> 4 == 6 and other.length >= h.V6_HEADER + h.PORTS_END and not memcmp(
        one.head + h.V6_SOURCE, other.head + h.V6_SOURCE, h.V6_HEADER + h.PORTS_END - h.V6_SOURCE
    )


cdef Py_ssize_t padded_size(Py_ssize_t length, Py_ssize_t mtu) noexcept nogil:
    return h.padded(length, mtu) + h.TRANSPORT_OVERHEAD


cdef Py_ssize_t _length(Item *item, Py_ssize_t part) noexcept nogil:
    """Returns the length of an item's packet."""
    if not item.splits:
        return item.length
    return item.headers + min(item.segment, item.length - item.headers - part * item.segment)


cdef Py_ssize_t _sealed_size(Item *item, Py_ssize_t mtu) noexcept nogil:
    """Counts the bytes of the datagrams that an item makes."""
    cdef Py_ssize_t size = padded_size(_length(item, item.count - 1), mtu)
    if item.splits:
        size += (item.count - 1) * padded_size(item.headers + item.segment, mtu)
    return size


cdef void _lay_whole(Item *item, uint8_t *row) noexcept nogil:
    """Copies a single packet, and completes its checksum, whose field holds the pseudo-header's sum."""
    memcpy(row, item.packet, item.length)
    memcpy(row, item.head, min(item.length, HEAD))
    if item.completes:
        h.put16(row + item.place, h.checksum_of(h.remainder(row + item.transport, item.length - item.transport)))


cdef void _lay_part(Item *item, Py_ssize_t part, uint8_t *row, Py_ssize_t length) noexcept nogil:
    """Makes one packet of a super-packet, as `packets.split` tells."""
    cdef uint8_t *transport = row + item.transport
    cdef Py_ssize_t rest = length - item.transport
    memcpy(row, item.head, item.headers)
    memcpy(row + item.headers, item.packet + item.headers + part * item.segment, length - item.headers)
    if row[0] >> 4 == 4:
        h.put16(row + h.V4_LENGTH, length)
        h.put16(row + h.V4_IDENTIFICATION, h.get16(item.head + h.V4_IDENTIFICATION) + part)
        h.put16(row + h.V4_CHECKSUM, 0)
        h.put16(row + h.V4_CHECKSUM, h.complement(h.remainder(row, item.transport)))
    else:
        h.put16(row + h.V6_LENGTH, length - h.V6_HEADER)
    if item.protocol == h.UDP:
        h.put16(transport + h.UDP_LENGTH, rest)
    else:
        h.put32(transport + h.TCP_SEQUENCE, h.get32(item.head + item.transport + h.TCP_SEQUENCE) + part * item.segment)
        if part < item.count - 1:
            transport[h.TCP_FLAGS] &= ~(h.TCP_FIN | h.TCP_PSH) & 0xFF
        if part:
            transport[h.TCP_FLAGS] &= ~h.TCP_CWR & 0xFF
    h.put16(row + item.place, 0)
    h.put16(
        row + item.place, h.checksum_of(h.pseudo_header(row, item.protocol, rest) + h.remainder(transport, rest))
    )
