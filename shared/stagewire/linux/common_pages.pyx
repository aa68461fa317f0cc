# cython: language_level=3
"""Lets forks of one process give pages back to the memory that they share.

A fork shares each page until it writes to it. Python counts references in each object, so a fork that only uses an object
makes the page its own. Mostly it takes the count back, but the kernel never shares such a page again. Here it does:

- `share` copies the parent's pages into a sealed memory file, and maps the file privately in their place.
- `give_back` compares a fork's pages with the file. Where a copy says the same, the kernel drops it and shows the file's.

Two pages also say the same if they differ in nothing but

- counts of objects that never end. `share` adds LASTING to the counts of functions, classes, code, names and constants. A
  word with LASTING in both pages is such a count, and the file's never comes near 0;
- how often code was called that isn't optimized yet, and a function's version. Python begins both anew.

What is assumed: all these pages are pools of Python's allocator for small objects. Each pool has an object that never ends,
so it is never freed, and only the holder of the interpreter's lock writes to it. What is checked: the interpreter's version,
each pool's header, and that `share` has the process for itself. All other memory stays as it was.

Source: Objects/obmalloc.c and Include/cpython/code.h of CPython 3.11; memfd_create(2), madvise(2).
"""

import fcntl
import gc
import os
import sys
import types

from libc.stdint cimport int16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport bsearch, free, malloc, qsort, realloc

cdef extern from *:
    """
    #if PY_VERSION_HEX >> 16 == 0x030B
    #define COMMON_PAGES_KNOWN 1
    #define CALLS_OF(code) (&((PyCodeObject *)(code))->co_warmup)
    #define NAMES_OF(code) (((PyCodeObject *)(code))->co_localsplusnames)
    #define VERSION_OF(function) (&((PyFunctionObject *)(function))->func_version)
    #else
    #define COMMON_PAGES_KNOWN 0
    #define CALLS_OF(code) NULL
    #define NAMES_OF(code) NULL
    #define VERSION_OF(function) NULL
    #endif
    """
    bint COMMON_PAGES_KNOWN
    int16_t *CALLS_OF(const void *code) nogil
    PyObject *NAMES_OF(const void *code) nogil
    uint32_t *VERSION_OF(const void *function) nogil

cdef extern from "Python.h":
    ctypedef struct PyObject:
        Py_ssize_t ob_refcnt
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        PyObject *tp_dict
    ctypedef struct PyCodeObject:
        PyObject *co_consts
        PyObject *co_names
        PyObject *co_exceptiontable
        PyObject *co_filename
        PyObject *co_name
        PyObject *co_qualname
        PyObject *co_linetable
    PyTypeObject *Py_TYPE(PyObject *)
    bint PyType_Check(PyObject *)
    bint PyObject_IS_GC(PyObject *)
    PyTypeObject PyFunction_Type, PyCode_Type, PyDict_Type, PyUnicode_Type, PyBytes_Type, PyLong_Type, PyFloat_Type
    PyTypeObject PyTuple_Type, PyFrozenSet_Type, PyCFunction_Type, PyMethodDescr_Type, PyWrapperDescr_Type
    PyTypeObject PyGetSetDescr_Type, PyMemberDescr_Type, PyClassMethodDescr_Type, PyProperty_Type, PyClassMethod_Type
    PyTypeObject PyStaticMethod_Type, PyModule_Type

cdef extern from "<unistd.h>" nogil:
    int getpid()
    ssize_t pwrite(int descriptor, const void *data, size_t length, long offset)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int rights, int flags, int descriptor, long offset)
    int madvise(void *address, size_t length, int advice)
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_POPULATE, MADV_DONTNEED
    void *MAP_FAILED

cdef enum:
    PAGE = 4096
    POOL = 16384  # bytes; a pool begins at a multiple of them
    HEADER = 48
    UNIT = 16
    MOST_UNITS = 32
    MOST_RUNS = 4096
    LASTING_FROM = 48
    HALF = 32
    POPULATE_READ = 22  # have these pages in the page table, as a read would; Linux 5.14
    DONTNEED_LOCKED = 24  # as MADV_DONTNEED, also where memory is locked; Linux 5.18

cdef struct Pool:
    uint64_t used
    void *free
    void *after
    void *before
    uint32_t arena
    uint32_t units
    uint32_t next_offset
    uint32_t last_offset

cdef struct Run:
    char *begin
    size_t size

cdef struct Passing:  # a word of which some bits don't matter
    uintptr_t word
    uint64_t bits
    const int16_t *calls  # NULL, or what must not be 0: from then on, code is optimized

cdef struct Kept:
    PyObject **all
    size_t count
    size_t room
    bint is_full

cdef Py_ssize_t LASTING = <Py_ssize_t>0x0A17 << LASTING_FROM  # the garbage collector needs two bits above it
cdef Run runs[MOST_RUNS]
cdef int run_count = 0
cdef char *file_view = NULL
cdef int parent = 0
cdef Passing *passing = NULL
cdef size_t passing_count = 0

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


# --- the parent --------------------------------------------------------------------------------------------


def share():
    """Makes this process's small objects shareable by its forks. Returns how many bytes they take. Raises OSError.

    Returns 0, and does nothing, in an interpreter of another version, beside other threads, and the second time.
    """
    cdef Kept kept = Kept(NULL, 0, 0, False)
    cdef size_t size = 0
    if file_view != NULL or not _is_known():
        return 0
    try:
        _keep_all(&kept)
        if not kept.is_full:
            size = _note_runs(&kept)
            _note_passing(&kept)
    finally:
        free(kept.all)
    if not size:
        return 0
    descriptor = os.memfd_create("stagewire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, size)
        _lay_out(descriptor, size)
    finally:
        os.close(descriptor)
    return size


def _is_known():
    """Tells whether this interpreter's allocator is the one that this module knows, and no other thread runs."""
    usual = not os.environ.get("PYTHONMALLOC") and not sys.flags.dev_mode and not hasattr(sys, "gettotalrefcount")
    known = COMMON_PAGES_KNOWN and sys.implementation.name == "cpython" and sys.byteorder == "little"
    return known and usual and os.sysconf("SC_PAGESIZE") == PAGE and len(os.listdir("/proc/self/task")) == 1


cdef void _keep_all(Kept *kept) noexcept:
    """Lets all objects of known kinds last that code uses, and lists them."""
    cdef PyObject *found
    cdef size_t next = 0
    everything = gc.get_objects()
    for each in everything:
        found = <PyObject *>each
        if _is_root(found):
            _keep(found, kept)
        if PyObject_IS_GC(found):
            Py_TYPE(found).tp_traverse(found, _visit_plain, kept)
    for each in list(sys.modules.values()):
        if type(each) is types.ModuleType:
            names = vars(each)
            _keep(<PyObject *>names, kept)
    while next < kept.count:
        found = kept.all[next]
        next += 1
        if PyObject_IS_GC(found):
            Py_TYPE(found).tp_traverse(found, _visit, kept)
        if Py_TYPE(found) == &PyCode_Type:
            _keep_parts(<const PyCodeObject *>found, kept)
        elif PyType_Check(found) and (<PyTypeObject *>found).tp_dict != NULL:
            _keep((<PyTypeObject *>found).tp_dict, kept)


cdef void _keep_parts(const PyCodeObject *code, Kept *kept) noexcept:
    """Keeps what code refers to: the garbage collector doesn't ask it."""
    _keep(code.co_consts, kept)
    _keep(code.co_names, kept)
    _keep(code.co_exceptiontable, kept)
    _keep(code.co_filename, kept)
    _keep(code.co_name, kept)
    _keep(code.co_qualname, kept)
    _keep(code.co_linetable, kept)
    _keep(NAMES_OF(code), kept)


cdef bint _is_root(PyObject *found) noexcept:
    return PyType_Check(found) or Py_TYPE(found) == &PyFunction_Type or Py_TYPE(found) == &PyCFunction_Type


cdef bint _is_plain(const PyTypeObject *kind) noexcept:
    return (
        kind == &PyUnicode_Type or kind == &PyBytes_Type or kind == &PyLong_Type or kind == &PyFloat_Type
        or kind == &PyCode_Type
    )


cdef bint _may_last(PyObject *found) noexcept:
    """Tells whether an object may last as long as the process: its end closes nothing."""
    cdef const PyTypeObject *kind = Py_TYPE(found)
    return (
        _is_plain(kind) or _is_root(found) or kind == &PyTuple_Type or kind == &PyFrozenSet_Type
        or kind == &PyMethodDescr_Type or kind == &PyWrapperDescr_Type or kind == &PyGetSetDescr_Type
        or kind == &PyMemberDescr_Type or kind == &PyClassMethodDescr_Type or kind == &PyProperty_Type
        or kind == &PyClassMethod_Type or kind == &PyStaticMethod_Type or kind == &PyModule_Type
    )


cdef int _visit(PyObject *found, void *kept) noexcept:
    if _may_last(found):
        _keep(found, <Kept *>kept)
    return 0


cdef int _visit_plain(PyObject *found, void *kept) noexcept:
    if _is_plain(Py_TYPE(found)):
        _keep(found, <Kept *>kept)
    return 0


cdef void _keep(PyObject *found, Kept *kept) noexcept:
    """Lets an object last, and lists it, unless it already does."""
    cdef PyObject **more
    if found == NULL or found.ob_refcnt >= LASTING or kept.is_full:
        return
    if kept.count == kept.room:
        more = <PyObject **>realloc(kept.all, (2 * kept.room + PAGE) * sizeof(PyObject *))
        if more == NULL:
            kept.is_full = True
            return
        kept.all, kept.room = more, 2 * kept.room + PAGE
    found.ob_refcnt += LASTING
    kept.all[kept.count] = found
    kept.count += 1


cdef size_t _note_runs(const Kept *kept) except? 0:
    """Notes the runs of neighbouring pools in which these objects are. Returns their bytes."""
    global run_count
    cdef size_t size = 0, number
    cdef uintptr_t pool = 0, last = 0
    cdef uintptr_t *pools = <uintptr_t *>malloc((kept.count + 1) * sizeof(uintptr_t))
    if pools == NULL:
        raise MemoryError
    limits = _nameless()
    for number in range(kept.count):
        pools[number] = <uintptr_t>kept.all[number] & ~<uintptr_t>(POOL - 1)
    qsort(pools, kept.count, sizeof(uintptr_t), _compare)
    for number in range(kept.count):
        pool = pools[number]
        if pool == last or run_count == MOST_RUNS:
            continue
        last = pool
        if not any([begin <= pool and pool + POOL <= end for begin, end in limits]) or not _is_pool(<const Pool *>pool):
            continue
        if run_count and <uintptr_t>runs[run_count - 1].begin + runs[run_count - 1].size == pool:
            runs[run_count - 1].size += POOL
        else:
            runs[run_count] = Run(<char *>pool, POOL)
            run_count += 1
        size += POOL
    free(pools)
    return size


def _nameless():
    """Lists the limits of nameless mappings: those of libraries' own variables, and those of the allocator."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            limits, rights, _, _, _, *name = line.split(maxsplit=5)
            if rights == "rw-p" and not name:
                begin, end = limits.split("-")
                found.append((int(begin, 16), int(end, 16)))
    return found


cdef bint _is_pool(const Pool *pool) noexcept:
    cdef uint32_t size = (pool.units + 1) * UNIT
    return (
        pool.units < MOST_UNITS and pool.last_offset == POOL - size and pool.next_offset <= POOL
        and 0 < pool.used <= (POOL - HEADER) // size
    )


cdef int _note_passing(const Kept *kept) except -1:
    """Notes the words of code and of functions that Python changes as it runs them."""
    global passing, passing_count
    cdef size_t number
    cdef PyObject *found
    passing = <Passing *>malloc((kept.count + 1) * sizeof(Passing))
    if passing == NULL:
        raise MemoryError
    for number in range(kept.count):
        found = kept.all[number]
        if Py_TYPE(found) == &PyCode_Type:
            passing[passing_count] = _passing(<const char *>CALLS_OF(found), sizeof(int16_t), CALLS_OF(found))
            passing_count += 1
        elif Py_TYPE(found) == &PyFunction_Type:
            passing[passing_count] = _passing(<const char *>VERSION_OF(found), sizeof(uint32_t), NULL)
            passing_count += 1
    qsort(passing, passing_count, sizeof(Passing), _compare)
    passing = <Passing *>realloc(passing, (passing_count + 1) * sizeof(Passing))
    return 0


cdef Passing _passing(const char *place, size_t size, const int16_t *calls) noexcept:
    """Describes `size` bytes within one word."""
    cdef size_t offset = <uintptr_t>place % sizeof(uint64_t)
    return Passing(<uintptr_t>place - offset, ((<uint64_t>1 << (8 * size)) - 1) << (8 * offset), calls)


cdef int _compare(const void *one, const void *other) noexcept nogil:
    """Compares addresses, also those at which a Passing begins."""
    cdef uintptr_t a = (<const uintptr_t *>one)[0], b = (<const uintptr_t *>other)[0]
    return (a > b) - (a < b)


cdef int _lay_out(int descriptor, size_t size) except -1:
    """Puts the file in the place of all runs, seals it, and keeps a view of it."""
    global run_count, file_view, parent
    cdef bint copied
    cdef void *view
    with nogil:  # no Python may write between the copy and the last mapping
        copied = _copy(descriptor)
        run_count = _map(descriptor) if copied else 0
    if not copied:
        raise OSError("the memory file can't be written")
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    # All pages: so each counts as this process's, even while no fork uses it.
    view = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, descriptor, 0)
    if view != MAP_FAILED:
        file_view, parent = <char *>view, getpid()
    return 0


cdef bint _copy(int descriptor) noexcept nogil:
    cdef size_t offset = 0, done
    cdef ssize_t written
    cdef int number
    for number in range(run_count):
        done = 0
        while done < runs[number].size:
            written = pwrite(descriptor, runs[number].begin + done, runs[number].size - done, <long>(offset + done))
            if written <= 0:
                return False
            done += written
        offset += done
    return True


cdef int _map(int descriptor) noexcept nogil:
    """Maps the file over the runs, which have the same content. Returns over how many."""
    cdef size_t offset = 0
    cdef int number
    for number in range(run_count):
        if mmap(
            runs[number].begin, runs[number].size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, descriptor, <long>offset
        ) == MAP_FAILED:
            return number
        offset += runs[number].size
    return run_count


# --- a fork ------------------------------------------------------------------------------------------------


def give_back():
    """Drops each page of this fork that says the same as the shared one. Returns how many pages say so."""
    cdef size_t offset = 0, place, begin, same = 0
    cdef char *ours
    cdef int number
    if file_view == NULL:
        return 0
    for number in range(run_count):
        ours, place = runs[number].begin, 0
        while place < runs[number].size:
            begin = place
            while place < runs[number].size and _says_the_same(ours + place, file_view + offset + place):
                place += PAGE
            if place > begin:
                same += (place - begin) // PAGE
                _drop(ours + begin, place - begin)
            place += PAGE
        # Else the first use of each page would be a fault, at a take-over while packets wait.
        madvise(ours, runs[number].size, POPULATE_READ)
        offset += runs[number].size
    if getpid() != parent:
        _drop(file_view, offset)
    return same


cdef void _drop(char *begin, size_t size) noexcept nogil:
    """Has the kernel drop copies, or entries of a page table."""
    if madvise(begin, size, DONTNEED_LOCKED) != 0:
        madvise(begin, size, MADV_DONTNEED)


cdef bint _says_the_same(const char *ours, const char *theirs) noexcept nogil:
    cdef const uint64_t *our_words = <const uint64_t *>ours
    cdef const uint64_t *their_words = <const uint64_t *>theirs
    cdef int word
    for word in range(PAGE // sizeof(uint64_t)):
        if our_words[word] != their_words[word] and not _is_passing(&our_words[word], their_words[word]):
            return False
    return True


cdef bint _is_passing(const uint64_t *ours, uint64_t theirs) noexcept nogil:
    """Tells whether the difference of two words doesn't matter."""
    cdef uintptr_t place = <uintptr_t>ours
    cdef const Passing *found
    if ours[0] >> HALF == theirs >> HALF and theirs >> LASTING_FROM == <uint64_t>LASTING >> LASTING_FROM:
        return True
    found = <const Passing *>bsearch(&place, passing, passing_count, sizeof(Passing), _compare)
    return found != NULL and (ours[0] ^ theirs) & ~found.bits == 0 and (found.calls == NULL or found.calls[0] != 0)
