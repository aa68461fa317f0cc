# cython: language_level=3, cdivision=True
"""Admits initiations as `proto.admission` does, by the same numbers and the same hash. hot: bench handshakes"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint32_t
from libc.string cimport memset

from stagewire.proto import admission as rules

cdef enum:
    TABLE = 65536  # entries, a power of two

cdef double ALLOWANCE = rules.ALLOWANCE, SPARE = rules.SPARE, MORE = rules._MORE, BUSY = rules.BUSY
cdef double BURST = rules._BURST, SEEN_FOR = rules._SEEN_FOR
cdef uint32_t SOURCE_ALLOWANCE = rules.SOURCE_ALLOWANCE, ADDRESS_ALLOWANCE = rules.ADDRESS_ALLOWANCE
cdef Py_ssize_t MOST_NETWORKS = rules._NETWORKS, MOST_SEEN = rules._SEEN
cdef int ADMITTED = rules.ADMITTED, REFUSED = rules.REFUSED, SEEN = rules.SEEN

if rules._TABLE != TABLE:
    raise ImportError("another size of tables")

cdef struct Allowance:
    double rate
    double left
    double since


cdef class Admission:
    """Judges initiations by their sources, each an address and a port, packed."""

    cdef bytes _secret
    cdef Allowance _strangers
    cdef Allowance _known
    cdef Allowance _neighbours
    cdef Allowance _spare
    cdef dict _networks
    cdef uint32_t *_sources
    cdef uint32_t *_addresses
    cdef double _counted_until
    cdef set _seen
    cdef set _seen_before
    cdef double _seen_until

    def __cinit__(self, bytes secret not None):
        """Takes random bytes, which no other process knows."""
        self._secret = secret
        self._strangers = self._known = self._neighbours = Allowance(ALLOWANCE, BURST, 0)
        self._spare = Allowance(0, 0, 0)
        self._networks = {}
        self._seen, self._seen_before = set(), set()
        self._counted_until = self._seen_until = 0
        self._sources = <uint32_t *>PyMem_Calloc(2 * TABLE, sizeof(uint32_t))
        if self._sources is NULL:
            raise MemoryError
        self._addresses = self._sources + TABLE

    def __dealloc__(self):
        PyMem_Free(self._sources)

    def admit(self, bytes message not None, bytes source not None, double now, *, bint known, bint loaded=False) -> int:
        """Returns ADMITTED, REFUSED or, for a message that was admitted before, SEEN.

        `loaded`: the queue to key-service is long, so no stranger is admitted.
        """
        cdef bytes mac = message[-32:-16]
        cdef uint32_t *asked
        cdef double keep
        if mac in self._seen or mac in self._seen_before:
            return SEEN
        if now >= self._counted_until:
            memset(self._sources, 0, 2 * TABLE * sizeof(uint32_t))
            self._counted_until = now + 1
        asked = self._sources + self._place(source)
        asked[0] += 1
        if asked[0] > SOURCE_ALLOWANCE:
            return REFUSED
        asked = self._addresses + self._place(_address(source))
        asked[0] += 1
        keep = BURST / 2 if asked[0] > ADDRESS_ALLOWANCE else 0
        if known:
            if not _spend(&self._known, now, 0):
                return REFUSED
        elif not (
            (_network(source) in self._networks and _spend(&self._neighbours, now, keep))
            or (not loaded and (_spend(&self._strangers, now, keep) or (not keep and _spend(&self._spare, now, 0))))
        ):
            return REFUSED
        self._remember(mac, now)
        return ADMITTED

    def note_wait(self, double part, double now) -> None:
        """Notes which part of its visits' time this process has waited for a processor of late."""
        cdef double rate = self._spare.rate
        _gain(&self._spare, now)
        self._spare.rate = rate / 2 if part >= BUSY else min(SPARE, rate + MORE)

    def answered(self, bytes source not None) -> None:
        """Notes that key-service has answered an initiation from here: it was worth its work."""
        cdef uint32_t *asked
        self._strangers.left = min(BURST, self._strangers.left + 1)
        self._known.left = min(BURST, self._known.left + 1)
        self._neighbours.left = min(BURST, self._neighbours.left + 1)
        network = _network(source)
        self._networks.pop(network, None)
        self._networks[network] = None
        if len(self._networks) > MOST_NETWORKS:
            del self._networks[next(iter(self._networks))]
        asked = self._sources + self._place(source)
        asked[0] -= asked[0] > 0
        asked = self._addresses + self._place(_address(source))
        asked[0] -= asked[0] > 0

    cdef Py_ssize_t _place(self, bytes part) except -1:
        return hash(self._secret + part) & (TABLE - 1)

    cdef int _remember(self, bytes mac, double now) except -1:
        if now >= self._seen_until or len(self._seen) >= MOST_SEEN:
            self._seen, self._seen_before = set(), self._seen if now < self._seen_until + SEEN_FOR else set()
            self._seen_until = now + SEEN_FOR
        self._seen.add(mac)
        return 0


cdef bytes _address(bytes source):
    return source[:-2] if len(source) == 6 else source[:8]


cdef bytes _network(bytes source):
    return source[:3] if len(source) == 6 else source[:6]


cdef void _gain(Allowance *allowance, double now) noexcept:
    if now > allowance.since:
        allowance.left = min(BURST, allowance.left + (now - allowance.since) * allowance.rate)
        allowance.since = now


cdef bint _spend(Allowance *allowance, double now, double keep) noexcept:
    """Spends one, unless no more than `keep` are left."""
    _gain(allowance, now)
    if allowance.left < keep + 1:
        return False
    allowance.left -= 1
    return True
