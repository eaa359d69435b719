"""What the kernel is asked to take away from the zygote and from every guest, layer by layer.

`enter_cell` runs once in the zygote: another user, namespaces, an empty read-only root, no capabilities.
`seal` runs in every guest before it reads its program: resource limits, W^X, Landlock, seccomp. A layer
that the machine refuses is reported with the reason and the rest still applies; `JailReport.level` says
what the sum is worth:

- `isolated`: `confined`, and the guest sees no file, no network device and no process but its own kind
  (namespaces and an empty root);
- `confined`: seccomp, no_new_privs and the resource limits hold: no new file, socket, process or code;
- `process`: less than that; a separate process and nothing to rely on against hostile code.

Nothing here knows what a guest does. Everything is raw system calls through ctypes, so that no library has
to be installed; the file needs no privilege and must never make a missing one fatal.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LEVELS = ("process", "confined", "isolated")
CHANNEL_FD = 3
# With this code a guest ends itself when code in it does what only escaped code would do.
EXIT_TRIPWIRE = 77

NOBODY = 65534
# Runtime code (JSON, error reports) may use this much above the user's limit: orjson crashes the process
# when a realloc is refused, where Python's own code raises MemoryError.
RESERVE_BYTES = 64 << 20
BALLAST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class JailReport:
    """Which layers hold on this machine ("on", "on(7)", "off(EPERM: ...)") and the level they add up to."""

    level: str
    layers: Mapping[str, str]

    @classmethod
    def of(cls, layers: Mapping[str, str]) -> JailReport:
        def on(*names: str) -> bool:
            return all(layers.get(name, "").startswith("on") for name in names)

        if not on("seccomp", "no_new_privs", "rlimits"):
            return cls("process", dict(layers))
        return cls("isolated" if on("namespaces", "empty_root") else "confined", dict(layers))

    @property
    def off(self) -> str:
        """The layers that do not hold, with their reasons."""
        return "; ".join(
            f"{name}: {state}" for name, state in self.layers.items() if not state.startswith("on")
        )

    def __str__(self) -> str:
        return " ".join(f"{name}={state}" for name, state in {"level": self.level, **self.layers}.items())


# System call numbers, from the kernel's unistd headers (tests compare them with the installed ones).
_X86_64 = {
    "read": 0, "write": 1, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "select": 23,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35,
    "setitimer": 38, "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98, "times": 100,
    "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "restart_syscall": 219,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234,
    "pselect6": 270, "prlimit64": 302, "getrandom": 318,
    "socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "socketpair": 53,
    "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "setuid": 105,
    "setresuid": 117, "capget": 125, "capset": 126, "personality": 135, "pivot_root": 155, "prctl": 157,
    "chroot": 161, "mount": 165, "umount2": 166, "init_module": 175, "tkill": 200, "kexec_load": 246,
    "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "seccomp": 317,
    "memfd_create": 319, "bpf": 321, "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438,
    "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
}  # fmt: skip
_AARCH64 = {
    "read": 63, "write": 64, "mmap": 222, "mprotect": 226, "munmap": 215, "brk": 214, "rt_sigprocmask": 135,
    "rt_sigreturn": 139, "sched_yield": 124, "mremap": 216, "madvise": 233, "nanosleep": 101,
    "setitimer": 103, "getpid": 172, "exit": 93, "gettimeofday": 169, "getrusage": 165, "times": 153,
    "sigaltstack": 132, "gettid": 178, "futex": 98, "restart_syscall": 128, "pselect6": 72,
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "exit_group": 94,
    "tgkill": 131, "prlimit64": 261, "getrandom": 278,
    "socket": 198, "connect": 203, "sendto": 206, "sendmsg": 211, "bind": 200, "listen": 201,
    "socketpair": 199, "clone": 220, "execve": 221, "kill": 129, "ptrace": 117, "setuid": 146,
    "setresuid": 147, "capget": 90, "capset": 91, "personality": 92, "pivot_root": 41, "prctl": 167,
    "chroot": 51, "mount": 40, "umount2": 39, "init_module": 105, "tkill": 130, "kexec_load": 104,
    "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241, "setns": 268,
    "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273, "seccomp": 277,
    "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438,
    "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
}  # fmt: skip
SYSCALLS: Mapping[str, Mapping[str, int]] = {"x86_64": _X86_64, "aarch64": _AARCH64}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Enough for the interpreter to compute, allocate, sleep, tell the time and stop. The busiest come first:
# the kernel walks the filter from the top for every call.
_ALLOWED = (
    "brk", "munmap", "mremap", "setitimer", "rt_sigreturn", "rt_sigprocmask", "getrandom", "nanosleep",
    "gettimeofday", "time", "times", "getrusage", "getpid", "gettid", "sched_yield", "sigaltstack",
    "restart_syscall", "exit", "exit_group",
)  # fmt: skip
# What an allocator says about its own pages. The rest of madvise is for others: it evicts pages that are
# shared with the zygote, merges them with a stranger's, or poisons memory.
_ADVICE = (0, 1, 2, 4, 8, 14, 15)  # normal, random, sequential, dontneed, free, hugepage, nohugepage
# Locks of threads. The operations with priority inheritance are the richest in the kernel's history of holes.
_FUTEX = (0, 1, 3, 4, 5, 9, 10)  # wait, wake, requeue, cmp_requeue, wake_op, wait_bitset, wake_bitset
_FUTEX_FLAGS = 128 | 256  # private, and the choice of a clock
_LAST_CLOCK = 11  # CLOCK_TAI; a negative number names the clock of another process, or of a device
# Nothing in a guest comes here by accident, so the guest dies at once and the run says why. Every other
# call merely fails with EPERM: a stray open() is a PermissionError that user code can read.
_FATAL = (
    "clone", "fork", "vfork", "clone3", "execve", "execveat", "ptrace", "socket", "socketpair", "connect",
    "sendto", "sendmsg", "bind", "listen", "mount", "umount2", "pivot_root", "chroot", "unshare", "setns",
    "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "init_module",
    "finit_module", "kexec_load", "process_vm_readv", "process_vm_writev", "memfd_create",
    "io_uring_setup", "kill", "tkill", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "prctl",
    "seccomp", "setuid", "setresuid", "capset", "personality",
)  # fmt: skip

_KILL_PROCESS, _ERRNO, _ALLOW_CALL = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _MORE, _AT_LEAST, _BITS, _AND, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_PROT_EXEC, _MAP_ANONYMOUS = 4, 0x20
_JUMP = 0x05
_X32_BIT = 0x40000000


def guest_filter(machine: str, pid: int) -> bytes:
    """The seccomp program of the guest `pid` (its own view of it), as classic BPF.

    Reads and writes are limited to the channel, waits to that, resource limits to the
    guest itself, memory to pages that are not executable, and signals to the abort that a crashing C library
    sends to its own process.
    """
    before, after = _fixed_rules(machine)
    abort = _rule(
        SYSCALLS[machine]["tgkill"],
        _step(_LOAD, _argument(0)),
        _step(_EQUAL, pid, 0, 3),
        *_where(2, int(signal.SIGABRT)),
        _KILL,
    )
    return b"".join((before, *abort, after))


@functools.cache
def _fixed_rules(machine: str) -> tuple[bytes, bytes]:
    """What every guest's filter begins and ends with; the zygote builds it once for all of them."""
    numbers = SYSCALLS[machine]
    no_code = (_step(_LOAD, _argument(2)), _step(_BITS, _PROT_EXEC, 0, 1), _KILL, _ALLOW)
    bad_fd, refuse = (_step(_RETURN, _ERRNO | number) for number in (errno.EBADF, errno.EPERM))
    known_clock = (_step(_LOAD, _argument(0)), _step(_MORE, _LAST_CLOCK, 1, 0), _ALLOW, refuse)
    lock = (_step(_LOAD, _argument(1)), _step(_AND, 0xFFFFFFFF ^ _FUTEX_FLAGS), *_one_of(_FUTEX), refuse)
    before = [
        _step(_LOAD, 4),
        _step(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _KILL,
        _step(_LOAD, 0),
        *([_step(_AT_LEAST, _X32_BIT, 0, 1), _KILL] if machine == "x86_64" else []),
        *_rule(numbers["read"], *_where(0, CHANNEL_FD), bad_fd),
        *_rule(numbers["write"], *_where(0, CHANNEL_FD), bad_fd),
        *_rule(
            numbers["mmap"], _step(_LOAD, _argument(3)), _step(_BITS, _MAP_ANONYMOUS, 1, 0), refuse, *no_code
        ),
        *_rule(numbers["madvise"], _step(_LOAD, _argument(2)), *_one_of(_ADVICE), refuse),
        *_rule(numbers["prlimit64"], *_where(0, 0), refuse),
        *_rule(numbers["futex"], *lock),
    ]
    for name in ("clock_gettime", "clock_nanosleep", "clock_getres"):
        before += _rule(numbers[name], *known_clock)
    for name in _ALLOWED:
        before += _rule(numbers[name], _ALLOW) if name in numbers else []
    after = [*_rule(numbers["mprotect"], *no_code)]
    for name in ("select", "pselect6"):  # of descriptors up to the channel: it is the only one there is
        after += _rule(numbers[name], *_where(0, CHANNEL_FD + 1), refuse) if name in numbers else []
    for name in _FATAL:
        after += _rule(numbers[name], _KILL) if name in numbers else []
    return b"".join(before), b"".join([*after, refuse])


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _argument(index: int) -> int:
    """Offset of an argument's low word in struct seccomp_data, on a little-endian machine."""
    return 16 + 8 * index


def _rule(number: int, *steps: bytes) -> list[bytes]:
    """Steps for one system call; they must end in a verdict, for the next rule needs its number again."""
    return [_step(_EQUAL, number, 0, len(steps)), *steps]


def _where(index: int, value: int) -> list[bytes]:
    """Allow the call if that argument has that value, and go on otherwise."""
    return [_step(_LOAD, _argument(index)), _step(_EQUAL, value, 0, 1), _ALLOW]


def _one_of(values: Sequence[int]) -> list[bytes]:
    """Allow the call if what was loaded is one of these, and go on otherwise."""
    ahead = range(len(values), 0, -1)
    tests = [_step(_EQUAL, value, steps) for value, steps in zip(values, ahead, strict=True)]
    return [*tests, _step(_JUMP, 1), _ALLOW]


_KILL, _ALLOW = _step(_RETURN, _KILL_PROCESS), _step(_RETURN, _ALLOW_CALL)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 4, 8, 22
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_SET_MDWE = 24, 38, 47, 65
_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(ctypes.c_int(option), *words))


def _syscall(name: str, *arguments: object) -> int:
    number = SYSCALLS.get(os.uname().machine, {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name} is not known on {os.uname().machine}")
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments))


def _attempt(layers: dict[str, str], name: str, action: Callable[[], str | None]) -> bool:
    try:
        detail = action()
    except OSError as err:
        code = errno.errorcode.get(err.errno or 0, str(err.errno))
        layers[name] = f"off({code}: {err.strerror})"
        return False
    layers[name] = f"on({detail})" if detail else "on"
    return True


def enter_cell() -> dict[str, str]:
    """Give up everything that guests need not inherit; return what held.

    Where a PID namespace is made, this forks: the caller goes on as process 1 of the namespace, whose
    death takes every guest along, while the original process waits for it and ends with it. Nothing can be
    imported afterwards: the file system is gone, or belongs to a user that is no longer us.
    """
    layers: dict[str, str] = {}
    original = os.getpid()
    _attempt(layers, "oom_first", _be_first_out_of_memory)
    if os.geteuid() == 0:
        _attempt(layers, "uid_drop", _drop_user)
    else:
        layers["uid_drop"] = f"on(already uid {os.geteuid()})"
    if _attempt(layers, "namespaces", _unshare):
        _become_process_one()
        _attempt(layers, "empty_root", _empty_root)
    else:
        layers["empty_root"] = "off(needs namespaces)"
    _attempt(layers, "own_keyring", _leave_keyring)
    _attempt(layers, "no_capabilities", _drop_capabilities)
    _attempt(layers, "no_new_privs", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1))
    _attempt(layers, "undumpable", lambda: _prctl(_PR_SET_DUMPABLE, 0))
    if os.getpid() != original:
        _attempt(layers, "dies_with_host", lambda: _die_with_parent(0))  # last: a change of user clears it
    return layers


def _be_first_out_of_memory() -> None:
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def _drop_user() -> str:
    """Be nobody. The capabilities stay for the moment: the namespaces may need them."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_PR_SET_KEEPCAPS, 0)
    header, sets = _capability_sets()
    _syscall("capget", header, sets)
    permitted = struct.unpack("6I", sets.raw)[1::3]
    _syscall(
        "capset", header, struct.pack("6I", permitted[0], permitted[0], 0, permitted[1], permitted[1], 0)
    )
    # Changing user hides /proc/self from us, and the user namespace's maps are written there.
    _prctl(_PR_SET_DUMPABLE, 1)
    return f"uid {NOBODY}"


def _unshare() -> str:
    kinds = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWPID
    user, group = os.geteuid(), os.getegid()
    try:
        _checked(_libc.unshare(ctypes.c_int(kinds | _CLONE_NEWUSER)))
    except OSError as err:
        # With CAP_SYS_ADMIN it works without a user namespace, which a machine may have switched off.
        try:
            _checked(_libc.unshare(ctypes.c_int(kinds)))
        except OSError:
            raise err from None
        return "no user namespace"
    facts = {"setgroups": "deny", "uid_map": f"{NOBODY} {user} 1", "gid_map": f"{NOBODY} {group} 1"}
    for path, text in [
        *((f"/proc/self/{name}", text) for name, text in facts.items()),
        # Namespaces inside of ours would give back all capabilities in them.
        *((f"/proc/sys/user/max_{kind}_namespaces", "0") for kind in _NAMESPACES),
    ]:
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(text)
    return "user"


_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time")


def _leave_keyring() -> None:
    """Join a new, empty session keyring; the one we were started with may hold the host's keys."""
    _syscall("keyctl", ctypes.c_int(1), None)


def _become_process_one() -> None:
    child = os.fork()
    if child:
        os.closerange(3, 1 << 16)  # the control channel must close when process 1 goes, not when we do
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def _die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when `parent` (as `os.getppid()` shows it) dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _mount(
    source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None
) -> None:
    _checked(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options))


def _empty_root() -> None:
    locked = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    # Any directory that exists everywhere will do; the namespace is ours and /proc is no longer needed.
    _mount(b"tmpfs", b"/proc", b"tmpfs", locked, b"size=4k,nr_inodes=2,mode=555")
    os.chdir("/proc")
    _syscall("pivot_root", b".", b".")
    _checked(_libc.umount2(b".", ctypes.c_int(_MNT_DETACH)))
    os.chdir("/")
    _mount(b"none", b"/", None, _MS_REMOUNT | _MS_RDONLY | locked)


def _drop_capabilities() -> None:
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one, or not ours to drop: the sets below are what counts
            break
    try:
        _prctl(_PR_CAP_AMBIENT, 4)
    except OSError:
        pass
    header, none = _capability_sets()
    _syscall("capset", header, none)


def _capability_sets() -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
    """What capget and capset take: a header that names this process, and three sets of none."""
    return ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8), ctypes.create_string_buffer(24)


class MemoryLimit:
    """The guest's address space: what user code may use, and the reserve that only the runtime may use."""

    def __init__(self, baseline_bytes: int, memory_mb: int = 0) -> None:
        self._baseline = baseline_bytes
        self.allow(memory_mb)
        # Address space only, for its pages are never touched: room to say so when the reserve is used up.
        self._ballast = mmap.mmap(-1, BALLAST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def allow(self, memory_mb: int) -> None:
        """Set the limit from the next `for_user` or `for_runtime` on; 0 is none. It can only go down."""
        self._user = self._baseline + (memory_mb << 20)
        self._hard = self._user + RESERVE_BYTES
        self._is_lifted = memory_mb <= 0

    def for_user(self) -> None:
        if not self._is_lifted:
            resource.setrlimit(resource.RLIMIT_AS, (self._user, self._hard))

    def for_runtime(self) -> None:
        if not self._is_lifted:
            resource.setrlimit(resource.RLIMIT_AS, (self._hard, self._hard))

    def drop_ballast(self) -> None:
        self._ballast.close()


def memory_in_use() -> tuple[int, int]:
    """Bytes of address space and of memory that this process takes: the floor under its guests' limits."""
    with open("/proc/self/statm", "rb") as statm:
        mapped, resident, *_ = map(int, statm.read().split())
    return mapped * resource.getpagesize(), resident * resource.getpagesize()


def prepare() -> None:
    """Make what every seal needs, once for all guests to be forked from this process."""
    machine = os.uname().machine
    if _has_filter(machine):
        _fixed_rules(machine)
    with contextlib.suppress(OSError):  # a guest's own attempt will say why
        _landlock()


def _has_filter(machine: str) -> bool:
    return machine in SYSCALLS and sys.byteorder == "little"


def seal(memory: MemoryLimit, parent: int) -> dict[str, str]:
    """Take the rest away from this process, for good; return what held. Only the channel stays open."""
    layers: dict[str, str] = {}
    _attempt(layers, "dies_with_zygote", lambda: _die_with_parent(parent))
    os.closerange(0, CHANNEL_FD)
    os.closerange(CHANNEL_FD + 1, 1 << 16)
    _attempt(layers, "write_xor_execute", lambda: _prctl(_PR_SET_MDWE, 1))
    _attempt(layers, "landlock", _deny_by_landlock)
    _attempt(layers, "rlimits", lambda: _limit_resources(memory))  # from here on nothing opens any more
    _attempt(layers, "seccomp", _filter_system_calls)
    return layers


def _limit_resources(memory: MemoryLimit) -> None:
    # NOFILE too: the channel stays open, and there can be no other descriptor, whatever would give one.
    for kind in ("CORE", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RTPRIO", "SIGPENDING"):
        number = getattr(resource, f"RLIMIT_{kind}", None)
        if number is not None:
            resource.setrlimit(number, (0, 0))
    memory.for_runtime()


def _deny_by_landlock() -> str:
    """An empty ruleset that handles everything this kernel's version knows: files, TCP, IPC scopes."""
    version, attributes = _landlock()
    ruleset = _landlock_ruleset(attributes)
    try:
        _syscall("landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return str(version)


@functools.cache
def _landlock() -> tuple[int, bytes]:
    """The version of the kernel's Landlock, and the attributes that name all it can deny. Raises OSError."""
    version = _syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint32(1))
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
                os.close(_landlock_ruleset(wider))
            except OSError:
                words[index] //= 2
                break
            attributes = wider
    return version, attributes


def _landlock_ruleset(attributes: bytes) -> int:
    return _syscall(
        "landlock_create_ruleset", attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _filter_system_calls() -> None:
    machine = os.uname().machine
    if not _has_filter(machine):
        raise OSError(errno.ENOSYS, f"no system call filter for {machine}")
    load_filter(guest_filter(machine, os.getpid()))


def load_filter(program: bytes) -> None:
    """Put this process under a classic BPF program, for good. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = _FilterProgram(len(program) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(header))
