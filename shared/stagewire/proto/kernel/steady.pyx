# cython: language_level=3, cdivision=True
"""Decides about a visit's ordinary peers, as `Worker` and `Tunnel` do, without Python's steps.

    seal      takes counters for the groups of a `Sealing`, has them sealed, notes it
    settle    notes what an `Opening` has opened

An ordinary peer has no limits. Its current session is no older than REKEY_AFTER_TIME and has counters left before
REKEY_AFTER_MESSAGES, so nothing wants a new one. All other peers are left to Python.

What is assumed of a caller: sessions and timers are those of `proto`, and only this thread changes them.
"""

from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

from math import inf

from stagewire.proto.constants import REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME

cdef double _YOUNG = REKEY_AFTER_TIME
cdef uint64_t _FEW = REKEY_AFTER_MESSAGES


def seal(sealing, agenda, double young, double now) -> list:
    """Seals the ordinary groups of a visit. Returns the numbers of the others.

    `young` is the age (s) up to which the operator lets a session go without rekeying.
    """
    cdef int group = -1
    cdef uint64_t counter, count
    cdef dict standing = agenda.standing
    left = []
    young = min(young, _YOUNG)
    for tunnel in sealing.owners():
        group += 1
        session, endpoint = tunnel.slots.current, tunnel.endpoint
        if session is not None and endpoint is not None and tunnel.limits is None:
            counter, count = session.send_counter, sealing.packets(group)
            # The first comparison keeps the sum from running over.
            if (
                counter <= _FEW
                and counter + count <= _FEW
                and now - <double>session.created <= young
                and sealing.ordinary(group)
            ):
                counter = session.take_counters(count)
                tunnel.tx_bytes += sealing.seal(group, session.sender, session.remote_index, counter, endpoint)
                timers = tunnel.timers
                _take(timers, timers.at_packet_sent, tunnel, agenda, standing, now)
                continue
        left.append(group)
    return left


def settle(list opened, agenda, other, double now) -> None:
    """Notes the entries of `Opening.open`, in order. Calls `other` with each that isn't an ordinary peer's at its endpoint."""
    cdef dict standing = agenda.standing
    for entry in opened:
        tunnel, session, endpoint, size, data = <tuple?>entry
        if (
            data
            and tunnel.limits is None
            and session is tunnel.slots.current
            and endpoint == tunnel.endpoint
            and now - <double>session.created <= _YOUNG
        ):
            tunnel.rx_bytes += size
            timers = tunnel.timers
            _take(timers, timers.at_packet_received, tunnel, agenda, standing, now)
        else:
            other(tunnel, session, endpoint, size, data)


cdef int _take(timers, tuple steps, tunnel, agenda, dict standing, double now) except -1:
    """Takes the steps as the timers do, and enters the earliest deadline."""
    cdef list due = timers.due
    cdef double soonest = INFINITY
    cdef Py_ssize_t row
    cdef bint anew
    for row, when, anew in steps:
        if when is None:
            due[row] = inf
        elif anew or <double>due[row] == INFINITY:
            due[row] = when(timers, now)
    for each in due:
        soonest = min(soonest, <double>each)
    if soonest < INFINITY:
        entered = standing.get(tunnel)
        if entered is None or <double>entered > soonest:
            agenda.enter(tunnel, soonest)
    return 0
