# cython: language_level=3, cdivision=True, nonecheck=True
"""Carries one visit's datagrams between UDP sockets and cipher trains: `conn_service.service` does the same in Python.

    CipherRoom   is a train that is being made, as `pipe.train_builder.CipherBuilder` makes it
    UdpReader    receives many runs in one call (recvmmsg(2)), each to the train of the worker that its receiver index names
    UdpWriter    sends the runs of a visit's trains, to whatever places, in one call (sendmmsg(2)); a place's runs are joined
    Way          holds what a send to one place takes, ready for the kernel

What is assumed of a caller: the sockets ask for UDP_GRO and for packet info, as host-service's do.

What is checked here: every length before anything is read by it. A train may lie in memory that another process changes
meanwhile, so each run's header is copied once; the kernel copies the datagrams themselves. Python's lock is open during
system calls.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove, memset

from stagewire.linux.udp_notes cimport (
    ALIGNED,
    CONTROL,
    CONTROL_HEADER,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    NAME,
    SOL_UDP,
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
    MOST = 32  # messages of one call
    MAX_READ = 65536
    CAPACITY = MAX_READ + 52 + h.MAX_ITEM + 16  # 52 for a run's header
    UDP_SEGMENT = 103

cdef struct Run:
    uint8_t endpoint[h.ENDPOINT_LENGTH]
    Py_ssize_t start
    Py_ssize_t length
    Py_ssize_t size
    int train
    int next

cdef struct Message:
    int first
    int last
    int runs
    Py_ssize_t length
    Py_ssize_t size
    double born


cdef class CipherRoom:
    """Builds a cipher train in the place where its datagrams are received to."""

    cdef readonly Py_ssize_t count
    cdef bytearray _buffer
    cdef uint8_t *_data
    cdef Py_ssize_t _end
    cdef uint32_t _runs
    cdef h.RunHeader _run

    def __init__(self):
        """Begins a train."""
        self._buffer = PyByteArray_FromStringAndSize(NULL, CAPACITY)  # not cleared: each page is taken when it is used
        self._data = <uint8_t *>self._buffer
        self._begin()

    cdef void _begin(self) noexcept:
        self.count = 0
        self._end = sizeof(h.TrainHeader)
        self._runs = 0
        memset(&self._run, 0, sizeof(self._run))

    @property
    def full(self) -> bool:
        """Does what `CipherBuilder.full` does."""
        return self.is_full()

    cdef bint is_full(self) noexcept:
        return self._end - <Py_ssize_t>sizeof(h.TrainHeader) >= MAX_READ

    def room(self) -> memoryview:
        """Returns the place for the next datagrams. There must be room: the train isn't full."""
        cdef Py_ssize_t start = self._end + <Py_ssize_t>sizeof(h.RunHeader)
        return memoryview(self._buffer)[start : start + h.MAX_ITEM]

    def add(self, bytes endpoint not None, Py_ssize_t size, Py_ssize_t length) -> None:
        """Takes what was received to `room`: `length` bytes, in datagrams of `size` bytes but for the last."""
        if self.is_full() or len(endpoint) != h.ENDPOINT_LENGTH or not 0 < size <= h.MAX_PACKET or not 0 < length <= h.MAX_ITEM:
            raise ValueError("no room for this run")
        self.take(<const uint8_t *>PyBytes_AS_STRING(endpoint), size, length)

    cdef void take(self, const uint8_t *endpoint, Py_ssize_t size, Py_ssize_t length) noexcept:
        """Moves datagrams that continue the run before them up to it, as `CipherBuilder.add` does."""
        cdef h.RunHeader *run = &self._run
        cdef Py_ssize_t total = run.length + length
        self.count += (length + size - 1) // size
        if (
            run.size
            and size <= run.size
            and run.length % run.size == 0
            and (size == run.size or length == size)
            and total <= h.MAX_DATAGRAM
            and total <= run.size * h.MAX_SEGMENTS
            and not memcmp(run.endpoint, endpoint, h.ENDPOINT_LENGTH)
        ):
            memmove(self._data + self._end, self._data + self._end + sizeof(h.RunHeader), length)
            run.length = <uint32_t>total
            self._end += length
            memcpy(self._data + self._end - total - sizeof(h.RunHeader), run, sizeof(h.RunHeader))
            return
        memcpy(run.endpoint, endpoint, h.ENDPOINT_LENGTH)
        run.size, run.reserved, run.length = <uint16_t>size, 0, <uint32_t>length
        memcpy(self._data + self._end, run, sizeof(h.RunHeader))
        self._end += <Py_ssize_t>sizeof(h.RunHeader) + length
        self._runs += 1

    def finish(self, double now, uint8_t age=0) -> memoryview:
        """Returns the train, whose oldest datagram is `age` ms old, and begins the next in the same place."""
        cdef h.TrainHeader header = h.TrainHeader(
            version=h.VERSION, kind=h.CIPHER, takes=0, age=age, count=self._runs, stamp=now - age * 0.001
        )
        memcpy(self._data, &header, sizeof(header))
        train = memoryview(self._buffer)[: self._end]
        self._begin()
        return train


cdef struct Arrival:
    iovec piece
    uint8_t name[NAME]
    uint8_t control[CONTROL]


cdef class UdpReader:
    """Receives what has come to a socket, into the trains of the workers that it is for."""

    cdef object _builder
    cdef object _send
    cdef object _sort
    cdef object _drop
    cdef bint _late
    cdef readonly double arrived
    """When the first datagram of the latest visit came that isn't too old (s of the wall clock); 0 if that is unknown."""
    cdef double _begun
    cdef double _oldest
    cdef uint8_t *_scratch
    cdef Arrival _arrivals[MOST]
    cdef mmsghdr _messages[MOST]
    cdef Py_ssize_t _usual

    def __init__(self, builder, send, sort, drop):
        """Takes four functions: `builder` returns a worker's CipherRoom, `send` sends all trains.

        `sort` takes (bytes, size, endpoint) of what isn't for one worker with a pipe, and returns the worker whose train the
        next datagram most likely joins. `drop` takes the same of what has waited too long.
        """
        self._builder, self._send, self._sort, self._drop = builder, send, sort, drop
        self._usual = MAX_READ
        self._scratch = <uint8_t *>PyMem_Malloc(MOST * h.MAX_ITEM)
        if self._scratch is NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self._scratch)

    def visit(self, int descriptor, int last, int workers, bint alone, double begun, double oldest) -> tuple:
        """Receives until nothing waits or a train is full; with `alone`, one datagram if no run comes.

        `last` is the worker whose train the first one most likely joins, of so many `workers`. What came after `begun` and
        before `oldest` (s of the wall clock) has waited too long. Returns (datagrams, worker of the last one, whether one
        was taken alone).
        """
        cdef CipherRoom train = self._builder(last)
        cdef Py_ssize_t received = 0, bytes_seen = 0
        cdef int left = h.MAX_SEGMENTS, count, wanted, done, each, before
        self._late, self._begun, self._oldest, self.arrived = False, begun, oldest, 0
        while left > 0 and not train.is_full():
            wanted = 1 if alone and not received else self._wanted(train, left)
            done = self._receive(descriptor, train, wanted)
            if done < 0:
                if errno == EAGAIN or errno == EINTR:
                    break
                left -= 1  # an ICMP error for a datagram of ours
                continue
            left -= done
            for each in range(done):
                bytes_seen += self._messages[each].msg_len
                before = last
                received += self._deliver(&self._messages[each], wanted > 1, &last, workers, not received)
                if last != before:
                    train = self._builder(last)
            self._usual = max(1, bytes_seen // (h.MAX_SEGMENTS - left)) if left < h.MAX_SEGMENTS else self._usual
            if alone and received == 1 and not self._late:
                return received, last, True
            if done < wanted:
                break
        return received, last, False

    cdef int _wanted(self, CipherRoom train, int left) noexcept:
        """Returns how many messages to ask for: as many of the usual size as fill the train. One is received in its place."""
        cdef Py_ssize_t room = MAX_READ - (train._end - <Py_ssize_t>sizeof(h.TrainHeader))
        return <int>max(1, min(min(MOST, left), (room + self._usual - 1) // self._usual))

    cdef int _receive(self, int descriptor, CipherRoom train, int wanted) noexcept:
        cdef int each
        cdef Arrival *arrival
        cdef msghdr *header
        for each in range(wanted):
            arrival = &self._arrivals[each]
            header = &self._messages[each].msg_hdr
            arrival.piece.iov_base = self._scratch + each * h.MAX_ITEM
            arrival.piece.iov_len = h.MAX_ITEM
            header.msg_name, header.msg_namelen = arrival.name, NAME
            header.msg_iov, header.msg_iovlen = &arrival.piece, 1
            header.msg_control, header.msg_controllen = arrival.control, CONTROL
            header.msg_flags = 0
        if wanted == 1:
            self._arrivals[0].piece.iov_base = train._data + train._end + sizeof(h.RunHeader)
        with nogil:
            each = recvmmsg(descriptor, self._messages, wanted, MSG_DONTWAIT, NULL)
        return each

    cdef Py_ssize_t _deliver(self, mmsghdr *message, bint moves, int *last, int workers, bint first) except -1:
        """Adds a message to its worker's train. Returns how many datagrams it has."""
        cdef const uint8_t *data = <const uint8_t *>message.msg_hdr.msg_iov.iov_base
        cdef Py_ssize_t length = message.msg_len, size = length
        cdef uint8_t endpoint[h.ENDPOINT_LENGTH]
        cdef CipherRoom train
        cdef double arrived
        cdef int worker
        arrived = read_notes(&message.msg_hdr, &size, endpoint)
        if first or self._late:  # what comes after it in the queue is younger
            self._late = self._begun < arrived < self._oldest
            self.arrived = arrived
        if self._late:
            self._drop((<const char *>data)[:length], size, (<const char *>endpoint)[: h.ENDPOINT_LENGTH])
            return (length + size - 1) // size if size else 1
        worker = _worker(data, length, size)
        if worker < 0 or (worker >= workers and worker != last[0]):
            last[0] = self._sort((<const char *>data)[:length], size, (<const char *>endpoint)[: h.ENDPOINT_LENGTH])
            return (length + size - 1) // size if size else 1
        train = self._builder(worker)
        if train.is_full():
            self._send()
        if moves or worker != last[0]:
            memcpy(train._data + train._end + sizeof(h.RunHeader), data, length)
        last[0] = worker
        train.take(endpoint, size, length)
        return (length + size - 1) // size


cdef int _worker(const uint8_t *data, Py_ssize_t length, Py_ssize_t size) noexcept nogil:
    """Does what `index.worker_of_run` does; -1 for None."""
    cdef Py_ssize_t at = 0
    cdef uint32_t kind
    if size <= 0:
        return -1
    while at < length:
        if length - at < h.TRANSPORT_OVERHEAD or size < min(length, <Py_ssize_t>h.TRANSPORT_OVERHEAD):
            return -1
        memcpy(&kind, data + at, 4)
        if kind != h.TYPE_TRANSPORT or data[at + 4] != data[4]:
            return -1
        at += size
    return data[4] if length else -1


cdef class Way:
    """Holds the socket, the address and the ancillary data of a send to one place, as the kernel takes them."""

    cdef int _descriptor
    cdef Py_ssize_t _most
    cdef bytes _name
    cdef bytes _control

    def __init__(self, int descriptor, Py_ssize_t most, bytes name not None, bytes control not None):
        """Takes a `struct sockaddr`, and control messages that leave room for one more. `most`: bytes of a datagram."""
        if len(name) > NAME or len(control) % ALIGNED or len(control) > CONTROL - CONTROL_HEADER - ALIGNED:
            raise ValueError("no such address")
        self._descriptor, self._most, self._name, self._control = descriptor, most, name, control


cdef class UdpWriter:
    """Sends the runs of all trains of a visit. Runs to one place become one run where they may: each costs the kernel a send.

    Datagrams to one place stay in order.
    """

    cdef dict _ways
    cdef list _trains
    cdef Py_buffer *_buffers
    cdef int _buffer_room
    cdef int _buffer_count
    cdef double *_births
    cdef int _birth_room
    cdef Run *_runs
    cdef int _room
    cdef int _count
    cdef bint _joined
    cdef Message *_found
    cdef int _found_room
    cdef int _found_count
    cdef list _places
    cdef int _next
    cdef mmsghdr _messages[h.MAX_SEGMENTS]
    cdef iovec *_pieces
    cdef int _piece_room
    cdef uint8_t _controls[h.MAX_SEGMENTS][CONTROL]

    def __init__(self, dict ways not None):
        """Takes the Way to each endpoint that is known; another run comes back to Python, which may add its way."""
        self._ways = ways
        self._trains, self._places = [], []

    def __dealloc__(self):
        self._release()
        PyMem_Free(self._buffers)
        PyMem_Free(self._births)
        PyMem_Free(self._runs)
        PyMem_Free(self._found)
        PyMem_Free(self._pieces)

    # --- trains --------------------------------------------------------------------------------------------

    def take(self, data, Py_ssize_t begin, Py_ssize_t end, double now, double max_age) -> bool:
        """Takes one more train to be sent. False without an effect: `trains` must judge it.

        The train must stay readable until all is sent. Once `send` or `rest` was called, the next train begins a new visit.
        """
        cdef Py_buffer *buffer
        cdef int runs
        if self._joined:
            self._forget()
        runs = self._count
        self._buffers = <Py_buffer *>h.grown(self._buffers, &self._buffer_room, self._buffer_count, sizeof(Py_buffer))
        self._births = <double *>h.grown(self._births, &self._birth_room, self._buffer_count, sizeof(double))
        buffer = &self._buffers[self._buffer_count]
        taken = False
        PyObject_GetBuffer(data, buffer, PyBUF_SIMPLE)
        try:
            if 0 <= begin <= end <= buffer.len:
                taken = self._read(<const uint8_t *>buffer.buf, begin, end, now, max_age)
        finally:
            if not taken:
                self._count = runs
                PyBuffer_Release(buffer)
        if taken:
            self._buffer_count += 1
            self._trains.append(data)
        return taken

    cdef bint _read(self, const uint8_t *frame, Py_ssize_t at, Py_ssize_t end, double now, double max_age) except -1:
        """Copies the headers, and judges the train as `trains.unpack_cipher_untrusted` does."""
        cdef h.TrainHeader header
        cdef h.RunHeader said
        cdef Run *run
        cdef uint32_t each
        if end - at < <Py_ssize_t>sizeof(header):
            return False
        memcpy(&header, frame + at, sizeof(header))
        if header.version != h.VERSION or header.kind != h.CIPHER or not now - header.stamp <= max_age:
            return False
        self._births[self._buffer_count] = header.stamp
        at += sizeof(header)
        for each in range(header.count):
            if end - at < <Py_ssize_t>sizeof(said):
                return False
            memcpy(&said, frame + at, sizeof(said))
            at += sizeof(said)
            if not said.size or not said.length or said.length > end - at or said.length > said.size * h.MAX_SEGMENTS:
                return False
            self._runs = <Run *>h.grown(self._runs, &self._room, self._count, sizeof(Run))
            run = &self._runs[self._count]
            memcpy(run.endpoint, said.endpoint, h.ENDPOINT_LENGTH)
            run.start, run.length, run.size = at, said.length, said.size
            run.train, run.next = self._buffer_count, -1
            self._count += 1
            at += said.length
        return at == end

    cdef void _release(self) noexcept:
        while self._buffer_count:
            self._buffer_count -= 1
            PyBuffer_Release(&self._buffers[self._buffer_count])

    cdef int _forget(self) except -1:
        self._release()
        self._trains.clear()  # one may be a mapping whose other end has gone
        self._places.clear()
        self._count = self._found_count = self._next = 0
        self._joined = False
        return 0

    # --- messages ------------------------------------------------------------------------------------------

    cdef int _join(self, bint whole, dict in_pieces) except -1:
        """Makes one message of the runs to a place that may be one run."""
        cdef int each
        cdef Run *run
        cdef Message *message
        cdef PyObject *found
        cdef dict latest = {}
        self._joined = True
        for each in range(self._count):
            run = &self._runs[each]
            endpoint = (<const char *>run.endpoint)[: h.ENDPOINT_LENGTH]
            found = PyDict_GetItem(latest, endpoint)
            if found is not NULL and _goes_on(&self._found[<int>(<object>found)], run):
                message = &self._found[<int>(<object>found)]
                self._runs[message.last].next = each
                message.last = each
                message.runs += 1
                message.length += run.length
                message.born = min(message.born, self._births[run.train])
                continue
            if whole and self._count > 1 and endpoint not in in_pieces:
                latest[endpoint] = self._found_count
            self._found = <Message *>h.grown(self._found, &self._found_room, self._found_count, sizeof(Message))
            self._found[self._found_count] = Message(
                first=each, last=each, runs=1, length=run.length, size=run.size, born=self._births[run.train]
            )
            self._found_count += 1
            self._places.append(endpoint)
        return 0

    def send(self, bint whole, dict in_pieces not None) -> tuple:
        """Sends what is left, up to the first run that Python must send: its way is unknown, or the kernel refuses it.

        Runs go whole, where `whole` is set and `in_pieces` hasn't the place. Returns (datagrams sent, that run), which is
        (endpoint, bytes, size, birth in s) or None at the end.
        """
        cdef Py_ssize_t sent = 0
        cdef int ready, done, each
        if not self._joined:
            self._join(whole, in_pieces)
        ways = []
        while self._next < self._found_count:
            del ways[:]
            ready = self._prepare(whole, in_pieces, ways)
            if not ready:
                break
            done = self._send((<Way>ways[0])._descriptor, ready)
            for each in range(self._next, self._next + done):
                sent += _datagrams(&self._found[each])
            self._next += done
            if done < ready:
                break
        if self._next < self._found_count:
            return sent, self._given()
        self._forget()
        return sent, None

    def rest(self) -> list:
        """Takes all runs that are left, each as (endpoint, bytes, size, birth in s)."""
        found = []
        if not self._joined:
            self._join(False, {})
        while self._next < self._found_count:
            found.append(self._given())
        self._forget()
        return found

    cdef tuple _given(self):
        cdef Message *message = &self._found[self._next]
        cdef Run *run
        cdef int at = message.first
        parts = []
        while at >= 0:
            run = &self._runs[at]
            parts.append(memoryview(self._trains[run.train])[run.start : run.start + run.length])
            at = run.next
        endpoint = self._places[self._next]
        self._next += 1
        return endpoint, parts[0] if len(parts) == 1 else b"".join(parts), message.size, message.born

    cdef int _prepare(self, bint whole, dict in_pieces, list ways) except -1:
        """Prepares the next messages that go by one socket. Returns their number."""
        cdef int ready = 0, pieces = 0, at
        cdef Message *message
        cdef Run *run
        cdef Way way
        cdef PyObject *found
        cdef msghdr *header
        while self._piece_room < self._count:
            self._pieces = <iovec *>h.grown(self._pieces, &self._piece_room, self._piece_room, sizeof(iovec))
        while ready < h.MAX_SEGMENTS and self._next + ready < self._found_count:
            message = &self._found[self._next + ready]
            endpoint = self._places[self._next + ready]
            found = PyDict_GetItem(self._ways, endpoint)
            if found is NULL:
                break
            way = <Way?><object>found
            if min(message.size, message.length) > way._most:
                break
            if message.length > message.size and (not whole or endpoint in in_pieces):
                break
            if ready and way._descriptor != (<Way>ways[0])._descriptor:
                break
            ways.append(way)  # its bytes must stay until they are sent
            header = &self._messages[ready].msg_hdr
            header.msg_iov, header.msg_iovlen = &self._pieces[pieces], message.runs
            at = message.first
            while at >= 0:
                run = &self._runs[at]
                self._pieces[pieces].iov_base = <uint8_t *>self._buffers[run.train].buf + run.start
                self._pieces[pieces].iov_len = run.length
                pieces += 1
                at = run.next
            header.msg_name, header.msg_namelen = PyBytes_AS_STRING(way._name), <uint32_t>len(way._name)
            header.msg_control = self._controls[ready]
            header.msg_controllen = _notes(self._controls[ready], way, message)
            header.msg_flags = 0
            ready += 1
        return ready

    cdef int _send(self, int descriptor, int ready) noexcept:
        """Returns how many messages the kernel took."""
        cdef int done
        with nogil:
            done = sendmmsg(descriptor, self._messages, ready, MSG_DONTWAIT | MSG_NOSIGNAL)
            while done < 0 and errno == EINTR:
                done = sendmmsg(descriptor, self._messages, ready, MSG_DONTWAIT | MSG_NOSIGNAL)
        return max(done, 0)


cdef bint _goes_on(const Message *message, const Run *run) noexcept nogil:
    """Tells whether a run may go on where a message ends, as one run: only the last datagram of a run may be shorter."""
    cdef Py_ssize_t total = message.length + run.length
    return (
        message.length % message.size == 0
        and (run.size == message.size or (run.size < message.size and run.length <= run.size))
        and total <= h.MAX_DATAGRAM
        and total <= message.size * h.MAX_SEGMENTS
    )


cdef Py_ssize_t _datagrams(const Message *message) noexcept nogil:
    return (message.length + message.size - 1) // message.size


cdef size_t _notes(uint8_t *control, Way way, const Message *message) noexcept:
    """Copies a way's control messages, and adds the size of a run's datagrams. Returns their length."""
    cdef size_t length = len(way._control)
    cdef cmsghdr note
    cdef uint16_t size = <uint16_t>message.size
    memcpy(control, PyBytes_AS_STRING(way._control), length)
    if message.length > message.size:
        note.cmsg_len, note.cmsg_level, note.cmsg_type = CONTROL_HEADER + 2, SOL_UDP, UDP_SEGMENT
        memset(control + length, 0, CONTROL_HEADER + ALIGNED)
        memcpy(control + length, &note, CONTROL_HEADER)
        memcpy(control + length + CONTROL_HEADER, &size, 2)
        length += CONTROL_HEADER + ALIGNED
    return length
