"""Gives a gateway a wall clock of its own, which a test moves: a library that its programs load before all others.

The library adds an offset to CLOCK_REALTIME, and to the times of the kernel's that come with
datagrams. It maps the offset's file as a program begins, before the sandbox closes.
"""

import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

static const volatile long long *offset;
static int (*real)(clockid_t, struct timespec *);
static ssize_t (*one)(int, struct msghdr *, int);
static int (*many)(int, struct mmsghdr *, unsigned, int, struct timespec *);

static void move(struct msghdr *got) {
    for (struct cmsghdr *note = CMSG_FIRSTHDR(got); note && offset; note = CMSG_NXTHDR(got, note)) {
        if (note->cmsg_level == SOL_SOCKET && note->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec at;
            memcpy(&at, CMSG_DATA(note), sizeof at);
            at.tv_sec += *offset;
            memcpy(CMSG_DATA(note), &at, sizeof at);
        }
    }
}

ssize_t recvmsg(int from, struct msghdr *got, int flags) {
    ssize_t length = one(from, got, flags);
    if (length >= 0)
        move(got);
    return length;
}

int recvmmsg(int from, struct mmsghdr *got, unsigned most, int flags, struct timespec *patience) {
    int count = many(from, got, most, flags, patience);
    for (int each = 0; each < count; each++)
        move(&got[each].msg_hdr);
    return count;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LAB_WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real = dlsym(RTLD_NEXT, "clock_gettime");
    one = dlsym(RTLD_NEXT, "recvmsg");
    many = dlsym(RTLD_NEXT, "recvmmsg");
    if (file >= 0) {
        void *mapped = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
        offset = mapped == MAP_FAILED ? 0 : mapped;
    }
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = real(clock, at);
    if (!failed && offset && clock == CLOCK_REALTIME)
        at->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """Moves the wall clock of programs that run with `env`."""

    def __init__(self, folder: Path) -> None:
        """Compiles the library into `folder`, which every user may enter."""
        library, source = folder / "clock.so", folder / "clock.c"
        self._offset = folder / "clock"
        source.write_text(SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self._offset.write_bytes(bytes(8))
        self._offset.chmod(0o644)
        self.env = {"LD_PRELOAD": str(library), "LAB_WALL_CLOCK": str(self._offset)}

    def be_ahead(self, seconds: int) -> None:
        """Has the wall clock go ahead of the machine's by so much, in one step."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("=q", seconds))
