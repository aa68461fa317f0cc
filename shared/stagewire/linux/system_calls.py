"""Numbers the system calls that `sandbox` names, on x86_64 and on aarch64 (asm/unistd.h)."""

from typing import Final

_TABLE: Final = """
accept:43:202 accept4:288:242 access:21:- arch_prctl:158:- bind:49:200 brk:12:214 capget:125:90 capset:126:91
chdir:80:49 chmod:90:- clock_getres:229:114 clock_gettime:228:113 clock_nanosleep:230:115 clone:56:220 clone3:435:435
close:3:57 close_range:436:436 connect:42:203 dup:32:23 dup2:33:- dup3:292:24 epoll_create1:291:20 epoll_ctl:233:21
epoll_pwait:281:22 epoll_pwait2:441:441 epoll_wait:232:- eventfd2:290:19 execve:59:221 exit:60:93 exit_group:231:94
faccessat:269:48 faccessat2:439:439 fallocate:285:47 fchmod:91:52 fchmodat:268:53 fchown:93:55 fcntl:72:25
fdatasync:75:83 flock:73:32 fstat:5:80 fstatfs:138:44 fsync:74:82 ftruncate:77:46 futex:202:98 get_robust_list:274:100
getcpu:309:168 getcwd:79:17 getdents64:217:61 getegid:108:177 geteuid:107:175 getgid:104:176 getgroups:115:158
getpeername:52:205 getpgid:121:155 getpgrp:111:- getpid:39:172 getppid:110:173 getpriority:140:141 getrandom:318:278
getresgid:120:150 getresuid:118:148 getrlimit:97:163 getrusage:98:165 getsid:124:156 getsockname:51:204
getsockopt:55:209 gettid:186:178 gettimeofday:96:169 getuid:102:174 ioctl:16:29 kill:62:129 listen:50:201 lseek:8:62
lstat:6:- madvise:28:233 membarrier:324:283 memfd_create:319:279 mkdir:83:- mkdirat:258:34 mmap:9:222 mprotect:10:226
mremap:25:216 msync:26:227 munmap:11:215 nanosleep:35:101 newfstatat:262:79 open:2:- openat:257:56 pause:34:-
pipe2:293:59 poll:7:- ppoll:271:73 prctl:157:167 pread64:17:67 preadv:295:69 preadv2:327:286 prlimit64:302:261
pselect6:270:72 pwrite64:18:68 pwritev:296:70 pwritev2:328:287 read:0:63 readlink:89:- readlinkat:267:78 readv:19:65
recvfrom:45:207 recvmmsg:299:243 recvmsg:47:212 rename:82:- renameat:264:38 renameat2:316:276 restart_syscall:219:128
rseq:334:293 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigtimedwait:128:137
sched_get_priority_max:146:125 sched_get_priority_min:147:126 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_setaffinity:203:122 sched_setscheduler:144:119 sched_yield:24:124 select:23:-
sendmmsg:307:269 sendmsg:46:211 sendto:44:206 set_robust_list:273:99 set_tid_address:218:96 setsid:112:157
setsockopt:54:208 shutdown:48:210 sigaltstack:131:132 socket:41:198 socketpair:53:199 stat:4:- statfs:137:43
statx:332:291 sysinfo:99:179 tgkill:234:131 time:201:- times:100:153 umask:95:166 uname:63:160 unlink:87:-
unlinkat:263:35 utimensat:280:88 vfork:58:- wait4:61:260 waitid:247:95 write:1:64 writev:20:66
"""
"""Name, number on x86_64, number on aarch64; a dash where the architecture has no such call."""


def _number(word: str) -> int | None:
    return None if word == "-" else int(word)


NUMBERS: Final = {
    name: (_number(first), _number(second)) for name, first, second in (each.split(":") for each in _TABLE.split())
}
