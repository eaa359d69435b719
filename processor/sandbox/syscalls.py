"""System calls of Linux, made and filtered: their numbers, the few that Python has no function for, and the
rules of a seccomp program.

`jail` takes away from guests with these, `shell_jail` from the programs of a shell step. Everything is raw
calls through ctypes, so that no library has to be installed. Nothing here decides what is taken away.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence

# From the kernel's unistd headers (tests compare them with the installed ones).
_X86_64 = {
    "read": 0, "write": 1, "open": 2, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "shmget": 29, "shmat": 30, "shmctl": 31, "nanosleep": 35, "setitimer": 38, "getpid": 39,
    "socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "socketpair": 53,
    "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "exit": 60, "kill": 62, "semget": 64, "semop": 65,
    "semctl": 66, "shmdt": 67, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mkdir": 83,
    "creat": 85, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "gettimeofday": 96,
    "getrusage": 98, "times": 100, "ptrace": 101, "syslog": 103, "setuid": 105, "setresuid": 117,
    "capget": 125, "capset": 126, "sigaltstack": 131, "utime": 132, "mknod": 133, "uselib": 134,
    "personality": 135, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144,
    "vhangup": 153, "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "adjtimex": 159, "chroot": 161,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
    "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "init_module": 175,
    "delete_module": 176, "quotactl": 179, "gettid": 186, "setxattr": 188, "lsetxattr": 189,
    "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "tkill": 200,
    "time": 201, "futex": 202, "sched_setaffinity": 203, "io_setup": 206, "lookup_dcookie": 212,
    "restart_syscall": 219, "semtimedop": 220, "clock_settime": 227, "clock_gettime": 228,
    "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234, "utimes": 235,
    "mbind": 237, "set_mempolicy": 238, "mq_open": 240, "mq_unlink": 241, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "ioprio_set": 251, "inotify_init": 253, "inotify_add_watch": 254,
    "migrate_pages": 256, "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "futimesat": 261,
    "fchmodat": 268, "pselect6": 270, "unshare": 272, "move_pages": 279, "utimensat": 280,
    "inotify_init1": 294, "perf_event_open": 298, "fanotify_init": 300, "fanotify_mark": 301,
    "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "sched_setattr": 314, "seccomp": 317, "getrandom": 318, "memfd_create": 319, "kexec_file_load": 320,
    "bpf": 321, "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
    "memfd_secret": 447, "process_mrelease": 448,
}  # fmt: skip
_AARCH64 = {
    "io_setup": 0, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
    "fremovexattr": 16, "lookup_dcookie": 18, "inotify_init1": 26, "inotify_add_watch": 27, "ioctl": 29,
    "ioprio_set": 30, "mknodat": 33, "mkdirat": 34, "umount2": 39, "mount": 40, "pivot_root": 41,
    "chroot": 51, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "openat": 56, "vhangup": 58,
    "quotactl": 60, "read": 63, "write": 64, "pselect6": 72, "utimensat": 88, "acct": 89, "capget": 90,
    "capset": 91, "personality": 92, "exit": 93, "exit_group": 94, "unshare": 97, "futex": 98,
    "nanosleep": 101, "setitimer": 103, "kexec_load": 104, "init_module": 105, "delete_module": 106,
    "clock_settime": 112, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "syslog": 116,
    "ptrace": 117, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122,
    "sched_yield": 124, "restart_syscall": 128, "kill": 129, "tkill": 130, "tgkill": 131,
    "sigaltstack": 132, "rt_sigprocmask": 135, "rt_sigreturn": 139, "setpriority": 140, "reboot": 142,
    "setuid": 146, "setresuid": 147, "times": 153, "sethostname": 161, "setdomainname": 162,
    "getrusage": 165, "prctl": 167, "gettimeofday": 169, "settimeofday": 170, "adjtimex": 171,
    "getpid": 172, "gettid": 178, "mq_open": 180, "mq_unlink": 181, "msgget": 186, "msgctl": 187,
    "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191, "semtimedop": 192, "semop": 193,
    "shmget": 194, "shmctl": 195, "shmat": 196, "shmdt": 197, "socket": 198, "socketpair": 199, "bind": 200,
    "listen": 201, "connect": 203, "sendto": 206, "sendmsg": 211, "brk": 214, "munmap": 215, "mremap": 216,
    "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221, "mmap": 222,
    "swapon": 224, "swapoff": 225, "mprotect": 226, "madvise": 233, "mbind": 235, "set_mempolicy": 237,
    "migrate_pages": 238, "move_pages": 239, "perf_event_open": 241, "prlimit64": 261, "fanotify_init": 262,
    "fanotify_mark": 263, "name_to_handle_at": 264, "open_by_handle_at": 265, "clock_adjtime": 266,
    "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273,
    "sched_setattr": 274, "seccomp": 277, "getrandom": 278, "memfd_create": 279, "bpf": 280,
    "execveat": 281, "userfaultfd": 282, "kexec_file_load": 294, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "quotactl_fd": 443, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446, "memfd_secret": 447, "process_mrelease": 448,
}  # fmt: skip
SYSCALLS: Mapping[str, Mapping[str, int]] = {"x86_64": _X86_64, "aarch64": _AARCH64}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

KILL_PROCESS, ERRNO, ALLOW_CALL = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, EQUAL, MORE, AT_LEAST, BITS, AND, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
JUMP = 0x05
_X32_BIT = 0x40000000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 4, 8, 22
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38
PR_CAP_AMBIENT, PR_SET_MDWE = 47, 65
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    checked(libc.prctl(ctypes.c_int(option), *words))


def syscall(name: str, *arguments: object) -> int:
    number = SYSCALLS.get(os.uname().machine, {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name} is not known on {os.uname().machine}")
    return checked(libc.syscall(ctypes.c_long(number), *arguments))


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), options))


def attempt(layers: dict[str, str], name: str, action: Callable[[], str | None]) -> bool:
    """Whether a layer could be had, which `layers` then says with what `action` returned, or why not."""
    try:
        detail = action()
    except OSError as err:
        layers[name] = off(err)
        return False
    layers[name] = f"on({detail})" if detail else "on"
    return True


def off(err: OSError) -> str:
    """What is said of a layer that the kernel refused."""
    return f"off({errno.errorcode.get(err.errno or 0, str(err.errno))}: {err.strerror})"


@functools.cache
def landlock_offer() -> tuple[int, bytes]:
    """The version of the kernel's Landlock, and the attributes that name all it can deny. Raises OSError."""
    version = syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    files = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):  # refer, truncate, ioctl_dev
        files |= (version >= since) << bit
    words = [files, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("=QQQ", *words)[:size]
    # A newer kernel can deny more; it says so by taking the bit.
    for index in range(size // 8):
        while True:
            words[index] = 2 * words[index] + 1
            wider = struct.pack("=QQQ", *words)[:size]
            try:
                os.close(landlock_ruleset(wider))
            except OSError:
                words[index] //= 2
                break
            attributes = wider
    return version, attributes


def landlock_ruleset(attributes: bytes) -> int:
    """A descriptor of a new ruleset that denies what the attributes name."""
    return syscall(
        "landlock_create_ruleset", attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )


def landlock_enter(ruleset: int) -> None:
    """Put this process under a ruleset, for good, and close it."""
    try:
        syscall("landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction of classic BPF."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


KILL, ALLOW = step(RETURN, KILL_PROCESS), step(RETURN, ALLOW_CALL)


def refuse(number: int) -> bytes:
    """The verdict that a call fails with this error number."""
    return step(RETURN, ERRNO | number)


def argument(index: int) -> int:
    """Offset of an argument's low word in struct seccomp_data, on a little-endian machine."""
    return 16 + 8 * index


def rule(number: int, *steps: bytes) -> list[bytes]:
    """Steps for one system call; they must end in a verdict, for the next rule needs its number again."""
    return [step(EQUAL, number, 0, len(steps)), *steps]


def where(index: int, value: int) -> list[bytes]:
    """Allow the call if that argument has that value, and go on otherwise."""
    return [step(LOAD, argument(index)), step(EQUAL, value, 0, 1), ALLOW]


def one_of(values: Sequence[int]) -> list[bytes]:
    """Allow the call if what was loaded is one of these, and go on otherwise."""
    ahead = range(len(values), 0, -1)
    tests = [step(EQUAL, value, steps) for value, steps in zip(values, ahead, strict=True)]
    return [*tests, step(JUMP, 1), ALLOW]


def own_calls(machine: str) -> list[bytes]:
    """What a filter begins with: a call by another machine's numbers, or by those of x32, is fatal."""
    return [
        step(LOAD, 4),
        step(EQUAL, AUDIT_ARCH[machine], 1, 0),
        KILL,
        step(LOAD, 0),
        *([step(AT_LEAST, _X32_BIT, 0, 1), KILL] if machine == "x86_64" else []),
    ]


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def has_filter(machine: str) -> bool:
    """Whether filters can be made for this machine."""
    return machine in SYSCALLS and sys.byteorder == "little"


def load_filter(program: bytes) -> None:
    """Put this process under a classic BPF program, for good. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = _FilterProgram(len(program) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(header))
