# cython: language_level=3, cdivision=True, nonecheck=True
"""Carries one visit's items between a TUN device with offloads and plain trains: `tun_service.packets` does the same in Python.

    PlainRoom   is a train that is being made, as `pipe.train_builder.PlainBuilder` makes it
    TunReader   reads all that waits, each item to the train of its destination's worker
    TunWriter   writes a train's items, as far as their worker may deliver them

What is assumed of a caller: the descriptor is a device's with a virtio_net_hdr before each packet, or a socket of packets
that stands for one.

What is checked here: every length before anything is read by it. A train may lie in memory that another process changes
meanwhile, so each length is copied once, and so are the headers that are judged; the kernel copies the rest. Python's lock
is open during system calls.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.long cimport PyLong_AsUnsignedLongLongMask
from cpython.mem cimport PyMem_Free
from libc.errno cimport EAGAIN, EINTR, EINVAL, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from stagewire.proto.kernel cimport headers as h

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int descriptor, void *room, size_t size)
    ssize_t write(int descriptor, const void *data, size_t size)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int descriptor, const iovec *parts, int count)

cdef enum:
    LENGTH = 4
    MAX_READ = 65536
    ONE_RUN = 60000
    SHORT = 2048
    HEAD = h.VNET_HEADER + h.V6_HEADER
    # proto.carriers
    WORKER_BITS = 8
    # tun_service.packets
    ANY = -1
    CAPACITY = MAX_READ + LENGTH + h.MAX_ITEM + 16

cdef struct Span:
    Py_ssize_t start
    Py_ssize_t length
    Py_ssize_t packets
    bint allowed
    uint8_t head[HEAD]


cdef class PlainRoom:
    """Builds a plain train in the place where its items are read to."""

    cdef readonly Py_ssize_t count
    cdef int _takes
    cdef bytearray _buffer
    cdef uint8_t *_data
    cdef Py_ssize_t _end
    cdef Py_ssize_t _last

    def __init__(self, int takes=0):
        """Begins a train. `takes` says which super-packets the device takes that the packets come from."""
        self._takes = takes
        self._buffer = PyByteArray_FromStringAndSize(NULL, CAPACITY)  # not cleared: each page is taken when it is used
        self._data = <uint8_t *>self._buffer
        self._begin()

    cdef void _begin(self) noexcept:
        self.count = self._last = 0
        self._end = sizeof(h.TrainHeader)

    @property
    def full(self) -> bool:
        """Does what `PlainBuilder.full` does."""
        return self.is_full()

    cdef bint is_full(self) noexcept:
        cdef Py_ssize_t size = self._end - <Py_ssize_t>sizeof(h.TrainHeader)
        cdef Py_ssize_t more = size + self._last
        return size >= MAX_READ or (more > ONE_RUN and _filled(size) > _filled(more))

    def room(self) -> memoryview:
        """Returns the place for the next item, its virtio_net_hdr first. There must be room: the train isn't full."""
        return memoryview(self._buffer)[self._end + LENGTH : self._end + LENGTH + h.MAX_ITEM]

    def add(self, Py_ssize_t length, Py_ssize_t packets) -> None:
        """Takes what was read to `room`: so many bytes, for so many packets."""
        if self.is_full() or not 0 <= length <= h.MAX_ITEM:
            raise ValueError("no room for this item")
        self.take(length, packets)

    cdef void take(self, Py_ssize_t length, Py_ssize_t packets) noexcept:
        cdef uint32_t said = <uint32_t>length
        memcpy(self._data + self._end, &said, LENGTH)
        self._last = LENGTH + length
        self._end += self._last
        self.count += packets

    def finish(self, double now, uint8_t age=0) -> memoryview:
        """Does what `PlainBuilder.finish` does."""
        cdef h.TrainHeader header = h.TrainHeader(
            version=h.VERSION, kind=h.PLAIN, takes=self._takes, age=0, count=<uint32_t>self.count, stamp=now
        )
        memcpy(self._data, &header, sizeof(header))
        train = memoryview(self._buffer)[: self._end]
        self._begin()
        return train


cdef double _filled(Py_ssize_t size) noexcept:
    """Returns how full the runs are that so many bytes make, from 0 to 1."""
    return size / <double>((size + ONE_RUN - 1) // ONE_RUN * ONE_RUN)


cdef class TunReader:
    """Reads a device's items into the trains of their workers."""

    cdef int _device
    cdef object _lookup
    cdef dict _answers

    def __init__(self, int device, lookup, dict answers):
        """Takes an address's workers from `answers`, as `carriers` packs them, or asks `lookup`, which may answer None."""
        self._device, self._lookup, self._answers = device, lookup, answers

    def visit(self, builder, int last, bint alone) -> tuple:
        """Reads until nothing waits or a train is full; with `alone`, one packet if it is no super-packet.

        `builder` returns a worker's PlainRoom; `last` is the worker whose train the first item most likely joins. Returns
        (packets read, worker of the last item, items without a worker, error number or 0). Such an item comes as
        (bytes, packets); `Packets` says what becomes of it.
        """
        cdef PlainRoom train = builder(last), other
        cdef uint8_t *room
        cdef Py_ssize_t length, packets, taken = 0
        cdef int worker, at, error = 0
        cdef const uint8_t *place = NULL
        cdef Py_ssize_t width
        cdef h.VirtioHeader said
        cdef bytes known = None
        cdef object owner = None
        odd = []
        if train.is_full():
            raise ValueError("the train must be sent first")
        for at in range(h.MAX_SEGMENTS):
            room = train._data + train._end + LENGTH
            with nogil:
                length = read(self._device, room, h.MAX_ITEM)
            if length < 0:
                if errno != EAGAIN and errno != EINTR:
                    error = errno
                break
            packets = 1
            worker = -1
            if length >= h.VNET_HEADER:
                memcpy(&said, room, h.VNET_HEADER)
                packets = h.hinted(&said, length - h.VNET_HEADER)
                if packets > 1 or length <= h.MAX_INNER + h.VNET_HEADER:
                    width = _destination(room + h.VNET_HEADER, length - h.VNET_HEADER, &place)
                    if width and not h.is_address(known, place, width):
                        known = h.address_at(place, width)
                        owner = h.owner_of(self._answers, self._lookup, known)
                    if width and owner is not None:
                        worker = PyLong_AsUnsignedLongLongMask(owner) & (1 << WORKER_BITS) - 1
            taken += packets
            if worker < 0:
                odd.append(((<char *>room)[:length], packets))
                continue
            if worker != last:
                other = builder(worker)
                if other.is_full():
                    raise ValueError("the train must be sent first")
                memcpy(other._data + other._end + LENGTH, room, length)
                train, last = other, worker
            train.take(length, packets)
            if alone and taken == 1:
                break
            if train.is_full():
                break
        return taken, last, odd, error


cdef bint _may_deliver(owner, int worker) except -1:
    """Tells what `carriers.may_deliver` does."""
    cdef int bit = WORKER_BITS + worker
    if bit < 64:
        return PyLong_AsUnsignedLongLongMask(owner) >> bit & 1
    return owner >> bit & 1


cdef Py_ssize_t _source(const uint8_t *packet, Py_ssize_t length, const uint8_t **place) noexcept:
    """Finds a packet's source as `ip.source` does. Returns its length, 0 without a whole header."""
    if length >= h.V4_HEADER and packet[0] >> 4 == 4:
        place[0] = packet + h.V4_SOURCE
        return h.V4_DESTINATION - h.V4_SOURCE
    if length >= h.V6_HEADER and packet[0] >> 4 == 6:
        place[0] = packet + h.V6_SOURCE
        return h.V6_DESTINATION - h.V6_SOURCE
    return 0


cdef Py_ssize_t _destination(const uint8_t *packet, Py_ssize_t length, const uint8_t **place) noexcept:
    """Finds a packet's destination as `ip.destination` does. Returns its length, 0 without a whole header."""
    if length >= h.V4_HEADER and packet[0] >> 4 == 4:
        place[0] = packet + h.V4_DESTINATION
        return h.V4_HEADER - h.V4_DESTINATION
    if length >= h.V6_HEADER and packet[0] >> 4 == 6:
        place[0] = packet + h.V6_DESTINATION
        return h.V6_HEADER - h.V6_DESTINATION
    return 0


cdef class TunWriter:
    """Writes the items of plain trains to a device."""

    cdef int _device
    cdef object _apart
    cdef object _lookup
    cdef dict _answers
    cdef Span *_spans
    cdef int _room
    cdef int _count
    cdef readonly list odd

    def __init__(self, int device, apart, lookup, dict answers):
        """Takes `apart`, which writes a super-packet that the device refuses. An address's workers come as to `TunReader`."""
        self._device, self._apart = device, apart
        self._lookup, self._answers = lookup, answers
        self.odd = []

    def __dealloc__(self):
        PyMem_Free(self._spans)

    def write(self, data, Py_ssize_t begin, Py_ssize_t end, double now, double max_age, int worker) -> tuple:
        """Writes a train's items in order. Returns how many packets the OS took and refused, and `worker` may not deliver.

        None without an effect for a train that isn't in order: `trains` must judge it. `odd` lists what wasn't written.
        """
        cdef Py_buffer buffer
        cdef const uint8_t *frame
        cdef Py_ssize_t done, head, written = 0, refused = 0, strange = 0
        cdef Span *span
        cdef int each
        if self.odd:
            self.odd = []
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            frame = <const uint8_t *>buffer.buf
            if not 0 <= begin <= end <= buffer.len or not self._read(frame, begin, end, now, max_age):
                return None
            if worker != ANY:
                self._judge(worker)
            for each in range(self._count):
                span = &self._spans[each]
                if not span.allowed:
                    strange += span.packets
                    self._refuse(span, True)
                    continue
                head = span.length if span.length < HEAD else HEAD
                with nogil:
                    done = self._written(span, head, frame + span.start + head)
                    while done < 0 and errno == EINTR:
                        done = self._written(span, head, frame + span.start + head)
                if done >= 0:
                    written += span.packets
                elif errno == EINVAL and span.packets > 1:
                    self._apart(h.address_at(span.head, head) + h.address_at(frame + span.start + head, span.length - head))
                else:
                    refused += span.packets
                    self._refuse(span, False)
        finally:
            PyBuffer_Release(&buffer)
        return written, refused, strange

    cdef int _refuse(self, const Span *span, bint strange) except -1:
        """Adds (whether the worker may not deliver it, its beginning, bytes, packets) to `odd`."""
        cdef Py_ssize_t size = span.length - h.VNET_HEADER
        head = h.address_at(span.head + h.VNET_HEADER, min(size, HEAD - h.VNET_HEADER))
        self.odd.append((bool(strange), head, size, span.packets))
        return 0

    cdef ssize_t _written(self, const Span *span, Py_ssize_t head, const uint8_t *rest) noexcept nogil:
        """Writes an item with the head that was judged. A copy of a short one costs less than a second part does."""
        cdef uint8_t whole[SHORT]
        cdef iovec parts[2]
        if span.length <= SHORT:
            memcpy(whole, span.head, head)
            memcpy(whole + head, rest, span.length - head)
            return write(self._device, whole, span.length)
        parts[0].iov_base, parts[0].iov_len = <void *>span.head, head
        parts[1].iov_base, parts[1].iov_len = <void *>rest, span.length - head
        return writev(self._device, parts, 2)

    cdef int _judge(self, int worker) except -1:
        """Marks the items whose source's worker is another."""
        cdef const uint8_t *place = NULL
        cdef Py_ssize_t width
        cdef bytes known = None
        cdef object owner
        cdef bint allowed = False
        cdef Span *span
        cdef int each
        for each in range(self._count):
            span = &self._spans[each]
            width = _source(span.head + h.VNET_HEADER, span.length - h.VNET_HEADER, &place)
            if width and not h.is_address(known, place, width):
                known = h.address_at(place, width)
                owner = h.owner_of(self._answers, self._lookup, known)
                allowed = owner is not None and _may_deliver(owner, worker)
            span.allowed = width and allowed
        return 0

    cdef bint _read(self, const uint8_t *frame, Py_ssize_t at, Py_ssize_t end, double now, double max_age) except -1:
        """Copies where the items are, and judges the train as `trains.spans_untrusted` does."""
        cdef h.TrainHeader header
        cdef h.VirtioHeader said
        cdef Span *span
        cdef uint32_t length
        cdef Py_ssize_t total = 0
        self._count = 0
        if end - at < <Py_ssize_t>sizeof(header):
            return False
        memcpy(&header, frame + at, sizeof(header))
        if header.version != h.VERSION or header.kind != h.PLAIN or not now - header.stamp <= max_age:
            return False
        at += sizeof(header)
        while at < end:
            if end - at < LENGTH:
                return False
            memcpy(&length, frame + at, LENGTH)
            at += LENGTH
            if length < h.VNET_HEADER or length > h.MAX_ITEM or length > end - at:
                return False
            self._spans = <Span *>h.grown(self._spans, &self._room, self._count, sizeof(Span))
            span = &self._spans[self._count]
            span.start, span.length, span.allowed = at, length, True
            memcpy(span.head, frame + at, length if length < HEAD else HEAD)
            memcpy(&said, span.head, h.VNET_HEADER)
            span.packets = h.hinted(&said, length - h.VNET_HEADER)
            if span.packets == 1 and length > h.MAX_INNER + h.VNET_HEADER:
                return False
            total += span.packets
            self._count += 1
            at += length
        return total == header.count
