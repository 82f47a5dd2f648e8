"""Restrict a process (resource limits, system call filter) before it reads untrusted bytes.

Limits of memory, file size and processor time hold on every POSIX system that enforces them. On
Linux (x86-64 and ARM64), an allow-list filter of system calls is added: threads, memory, clocks,
and reads and writes of open files. A process behind the filter cannot open files or sockets, even
for reading, start another process, or remove the filter.
"""

from __future__ import annotations

import platform
import re
import struct
import sys

from cfqa_data.errors import CodecError

__all__ = ["FILTERED", "filter_calls", "set_limits"]

# System calls that pass, with their numbers in Linux's tables for x86-64 and for ARM64.
_CALLS = """
read 0 63 | write 1 64 | readv 19 65 | writev 20 66 | close 3 57 | fstat 5 80 | lseek 8 62
mmap 9 222 | mprotect 10 226 | munmap 11 215 | mremap 25 216 | madvise 28 233 | brk 12 214
rt_sigaction 13 134 | rt_sigprocmask 14 135 | rt_sigreturn 15 139 | sigaltstack 131 132
restart_syscall 219 128 | setitimer 38 103 | nanosleep 35 101 | clock_nanosleep 230 115
clock_gettime 228 113 | clock_getres 229 114 | sched_yield 24 124 | sched_getaffinity 204 123
getpid 39 172 | gettid 186 178 | getrandom 318 278 | futex 202 98 | set_robust_list 273 99
rseq 334 293 | exit 60 93 | exit_group 231 94
"""
_CLONE, _CLONE3, _SECCOMP = (56, 220), (435, 435), (317, 277)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*

_CLONE_THREAD = 0x10000
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

# Instructions of classic BPF and answers of a filter (linux/bpf_common.h, linux/seccomp.h).
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

FILTERED = sys.platform == "linux" and platform.machine() in _MACHINES and sys.maxsize > 2**32
"""Whether system calls are filtered on this platform."""


def set_limits(memory: int, seconds: int) -> None:
    """Set resource limits of this process, which can lower but not raise them afterwards.

    Args:
        memory: Bytes of address space. (macOS does not enforce this limit.)
        seconds: Seconds of processor time, over all threads.
    """
    import resource

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, requested in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = requested if hard == resource.RLIM_INFINITY else min(requested, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def filter_calls() -> None:
    """Restrict this process and its threads to harmless system calls, on platforms with a filter.

    Raises:
        CodecError: If the kernel rejects the filter although the platform should support it.
    """
    if not FILTERED:
        return
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    code = _program(*_MACHINES[platform.machine()])
    program = Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    column = _MACHINES[platform.machine()][0]
    arguments = (_SECCOMP[column], _SET_MODE_FILTER, _ALL_THREADS)
    failed = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if failed or libc.syscall(*map(ctypes.c_long, arguments), ctypes.byref(program)):
        raise CodecError(
            "untrusted: this kernel cannot filter system calls (seccomp, error "
            f"{ctypes.get_errno()}); decode on another system, or, if you trust the data, without "
            "it"
        )


def _program(column: int, machine: int) -> bytes:
    """Return the filter, a BPF program of (code, jump if true, jump if false, operand)."""
    allowed = [int(call.split()[1 + column]) for call in re.split(r"[|\n]", _CALLS.strip())]
    size = len(allowed)
    code = [
        (_LOAD, 0, 0, _MACHINE),
        (_IF_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        # Jump to _ALLOW, past the rest of this list and the six instructions that follow it.
        *((_IF_EQUAL, size - index + 5, 0, number) for index, number in enumerate(allowed)),
        (_IF_EQUAL, 3, 0, _CLONE3[column]),  # the C library falls back to clone
        (_IF_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_IF_SET, 2, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
