# cython: language_level=3, cdivision=True
"""Receives and sends the ordinary messages of a pipe in one system call each: the compiled half of `pipe.direct`.

Ordinary are whole messages, and the commands for trains in memory that both ends share. `zmtp` and `shared_memory` describe
both. What else comes is given back as bytes, and what else is to be sent is refused, for the Python of `pipe.direct`.

What is checked: each length and slot where it is read, and the state of a slot before the first train is taken. The other
end may change the memory at any time, so each byte of state is read once. What is assumed of a caller: the descriptors are
sockets that don't block, and the memory has the size of `shared_memory`.
"""

import mmap

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from stagewire.linux.udp_notes cimport MSG_DONTWAIT, MSG_NOSIGNAL, iovec, msghdr

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int descriptor, void *into, size_t length, int flags)
    ssize_t sendmsg(int descriptor, const msghdr *message, int flags)

cdef enum:
    LONG = 0x02
    COMMAND = 0x04
    FRONT = 9  # bytes before a message: flags, length 8
    SHORT_FRONT = 2
    NAME = 6
    TRAIN = 11  # bytes of a command for a train in memory: its name, slot 1, length 4
    TRAIN_COMMAND = 13
    READ = 128 * 1024
    SLOTS = 8
    SLOT = 192 * 1024
    LEAST = 4096
    FREE = 0
    TOLD = 1
    IN_HAND = 2
    MOST_PARTS = 8
    MOST_ITEMS = 1024

cdef struct Item:
    int slot  # -1: a message among the bytes
    uint32_t start
    uint32_t length

cdef Py_ssize_t _page = mmap.PAGESIZE
cdef Py_ssize_t _memory_size = _page + SLOTS * SLOT
cdef object _NO_ROOM = (0, None)
cdef object _NOTHING = (-1, None)
cdef uint8_t _read[READ]
cdef Item _items[MOST_ITEMS]
"""What one call has received. No call lets another thread run, and the next call begins anew."""


def receive(int descriptor, Py_ssize_t most, Py_ssize_t limit, marks not None, int number, memory, list in_hand not None):
    """Receives `most` bytes at most. Returns a list of messages as `contract.Frame` describes them, empty if nothing came.

    Returns bytes if they aren't only whole messages of at most `limit` bytes: empty ones at the end of the connection, or
    after an error. The byte `marks[number]` is 1 from before the call of the kernel until all messages are whole, so it
    stays 1 with bytes. `memory` is what the pusher shares, or None; `in_hand` lists its slots that the reader has.
    """
    cdef Py_buffer page, shared
    cdef uint8_t *states = NULL
    cdef Py_ssize_t got
    cdef int count, messages = 0, at
    cdef unsigned taken = 0
    PyObject_GetBuffer(marks, &page, PyBUF_WRITABLE)
    try:
        if not 0 <= number < page.len:
            raise IndexError("no byte has this number")
        (<uint8_t *>page.buf)[number] = 1  # first: a death in the middle must leave nothing to be read on
        got = recv(descriptor, _read, <size_t>min(max(most, 0), READ), MSG_DONTWAIT)
        if got < 0 and errno in (EAGAIN, EINTR):
            (<uint8_t *>page.buf)[number] = 0
            return []
        if got <= 0:
            return b""
        count = _cut(got, limit)
        if count <= 0:
            return PyBytes_FromStringAndSize(<char *>_read, got)
        for slot in in_hand:
            taken |= 1U << <unsigned>(slot & 31)
        if memory is not None:
            PyObject_GetBuffer(memory, &shared, PyBUF_WRITABLE)
            if shared.len != _memory_size:
                PyBuffer_Release(&shared)
                raise ValueError("the memory has another size")
            states = <uint8_t *>shared.buf
        try:
            for at in range(count):
                if _items[at].slot < 0:
                    messages += 1
                    continue
                # Once until it is released, whatever the byte says: a pusher could set it again and again.
                if states is NULL or taken >> _items[at].slot & 1 or states[_items[at].slot] != TOLD:
                    return PyBytes_FromStringAndSize(<char *>_read, got)
                taken |= 1U << _items[at].slot
            data = PyBytes_FromStringAndSize(<char *>_read, got) if messages else None
            found = []
            for at in range(count):
                if _items[at].slot < 0:
                    found.append((data, _items[at].start, _items[at].start + _items[at].length))
                else:
                    states[_items[at].slot] = IN_HAND
                    in_hand.append(_items[at].slot)
                    found.append((memory, _items[at].start, _items[at].start + _items[at].length))
        finally:
            if states is not NULL:
                PyBuffer_Release(&shared)
        (<uint8_t *>page.buf)[number] = 0
        return found
    finally:
        PyBuffer_Release(&page)


cdef int _cut(Py_ssize_t total, Py_ssize_t limit) noexcept nogil:
    """Cuts what was received into `_items`. Returns how many; 0 if not all of it is ordinary."""
    cdef Py_ssize_t offset = 0, start
    cdef uint64_t length
    cdef uint32_t size
    cdef uint8_t flags
    cdef int count = 0
    while offset < total:
        if total - offset < SHORT_FRONT or count == MOST_ITEMS:
            return 0
        flags = _read[offset]
        if flags == LONG:
            start = offset + FRONT
            if start > total:
                return 0
            length = _big_endian(_read + offset + 1, 8)
        elif flags == 0 or flags == COMMAND:
            start = offset + SHORT_FRONT
            length = _read[offset + 1]
        else:
            return 0
        if length > <uint64_t>(total - start):
            return 0
        if flags != COMMAND:
            if length > <uint64_t>limit:
                return 0
            _items[count] = Item(-1, <uint32_t>start, <uint32_t>length)
        else:
            if length != TRAIN or memcmp(_read + start, b"\x05TRAIN", NAME) != 0 or _read[start + NAME] >= SLOTS:
                return 0
            size = <uint32_t>_big_endian(_read + start + NAME + 1, 4)
            if size > SLOT:
                return 0
            _items[count] = Item(_read[start + NAME], <uint32_t>(_page + _read[start + NAME] * SLOT), size)
        count += 1
        offset = start + <Py_ssize_t>length
    return count


cdef inline uint64_t _big_endian(const uint8_t *data, int count) noexcept nogil:
    cdef uint64_t found = 0
    cdef int at
    for at in range(count):
        found = found << 8 | data[at]
    return found


def send(int descriptor, memory, list lengths not None, tuple parts not None):
    """Sends a train that lies in some pieces of memory. Returns its size (bytes), and what is left if the kernel took a part.

    The size is 0 if there is no room. It is -1, and nothing is sent, if the train isn't ordinary or the kernel has another
    reason. `memory` is shared with the reader, or None; `lengths` are of the trains that were laid there.
    """
    cdef Py_buffer views[MOST_PARTS]
    cdef Py_buffer shared
    cdef iovec pieces[MOST_PARTS + 1]
    cdef uint8_t front[TRAIN_COMMAND]
    cdef int count = 0, slot = -1, at
    cdef Py_ssize_t size = 0
    cdef bint shares = memory is not None
    if len(parts) > MOST_PARTS:
        return _NOTHING
    if shares:
        PyObject_GetBuffer(memory, &shared, PyBUF_WRITABLE)
    try:
        if shares and shared.len != _memory_size:
            raise ValueError("the memory has another size")
        for part in parts:
            PyObject_GetBuffer(part, &views[count], PyBUF_SIMPLE)
            pieces[count + 1] = iovec(views[count].buf, <size_t>views[count].len)
            size += views[count].len
            count += 1
        if shares and LEAST <= size <= SLOT:
            slot = _lay(<uint8_t *>shared.buf, pieces + 1, count)
        if slot < 0 and not 0 < size < LEAST:
            return _NOTHING  # of a long one the kernel might take a part
        if slot >= 0:
            lengths[slot] = size
        return _push(descriptor, <uint8_t *>shared.buf if shares else NULL, slot, pieces, count, size, front)
    finally:
        for at in range(count):
            PyBuffer_Release(&views[at])
        if shares:
            PyBuffer_Release(&shared)


cdef int _lay(uint8_t *memory, const iovec *pieces, int count) noexcept nogil:
    """Lays a train in the lowest free slot, which is still in the caches. Returns its number; -1 if none is free."""
    cdef int slot, at
    cdef uint8_t *place
    for slot in range(SLOTS):
        if memory[slot] == FREE:
            place = memory + _page + slot * SLOT
            for at in range(count):
                memcpy(place, pieces[at].iov_base, pieces[at].iov_len)
                place += pieces[at].iov_len
            memory[slot] = TOLD
            return slot
    return -1


cdef object _push(
    int descriptor, uint8_t *memory, int slot, iovec *pieces, int count, Py_ssize_t size, uint8_t *front
):
    """Sends a train, or the command for one that lies in a slot, as `send` returns it."""
    cdef msghdr header = msghdr(NULL, 0, pieces, 0, NULL, 0, 0)
    cdef Py_ssize_t whole, sent
    if slot >= 0:
        front[0] = COMMAND
        front[1] = TRAIN
        memcpy(front + SHORT_FRONT, b"\x05TRAIN", NAME)
        front[SHORT_FRONT + NAME] = <uint8_t>slot
        _write_big_endian(front + SHORT_FRONT + NAME + 1, <uint64_t>size, 4)
        whole = TRAIN_COMMAND
        pieces[0] = iovec(front, TRAIN_COMMAND)
        header.msg_iovlen = 1
    else:
        front[0] = LONG
        _write_big_endian(front + 1, <uint64_t>size, 8)
        whole = FRONT + size
        pieces[0] = iovec(front, FRONT)
        header.msg_iovlen = <size_t>count + 1
    sent = sendmsg(descriptor, &header, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent == whole:
        return size, None
    if sent > 0:
        joined = b"".join([(<uint8_t *>pieces[at].iov_base)[: pieces[at].iov_len] for at in range(<int>header.msg_iovlen)])
        return size, joined[sent:]
    if slot >= 0:
        memory[slot] = FREE
    return _NO_ROOM if errno in (EAGAIN, EINTR) else _NOTHING


cdef inline void _write_big_endian(uint8_t *place, uint64_t number, int count) noexcept nogil:
    cdef int at
    for at in range(count):
        place[at] = <uint8_t>(number >> 8 * (count - 1 - at))
