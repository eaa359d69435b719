"""What the kernel is asked to take away from the zygote and from every guest, layer by layer.

`enter_cell` runs once in the zygote: another user, namespaces, an empty read-only root, no capabilities.
`seal` runs in every guest before it reads its program: resource limits, W^X, Landlock, seccomp. A layer
that the machine refuses is reported with the reason and the rest still applies; `JailReport.level` says
what the sum is worth:

- `isolated`: `confined`, and the guest sees no file, no network device and no process but its own kind
  (namespaces and an empty root);
- `confined`: seccomp, no_new_privs and the resource limits hold: no new file, socket, process or code;
- `process`: less than that; a separate process and nothing to rely on against hostile code.

Nothing here knows what a guest does. The file needs no privilege and must never make a missing one fatal.
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
from collections.abc import Mapping
from dataclasses import dataclass

from processor.sandbox.syscalls import (
    ALLOW,
    AND,
    BITS,
    EQUAL,
    KILL,
    LOAD,
    MNT_DETACH,
    MORE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    PR_CAP_AMBIENT,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_MDWE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    SYSCALLS,
    argument,
    attempt,
    checked,
    has_filter,
    landlock_enter,
    landlock_offer,
    landlock_ruleset,
    libc,
    load_filter,
    mount,
    one_of,
    own_calls,
    prctl,
    refuse,
    rule,
    step,
    syscall,
    where,
)

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

_PROT_EXEC, _MAP_ANONYMOUS = 4, 0x20


def guest_filter(machine: str, pid: int) -> bytes:
    """The seccomp program of the guest `pid` (its own view of it), as classic BPF.

    Reads and writes are limited to the channel, waits to that, resource limits to the
    guest itself, memory to pages that are not executable, and signals to the abort that a crashing C library
    sends to its own process.
    """
    before, after = _fixed_rules(machine)
    abort = rule(
        SYSCALLS[machine]["tgkill"],
        step(LOAD, argument(0)),
        step(EQUAL, pid, 0, 3),
        *where(2, int(signal.SIGABRT)),
        KILL,
    )
    return b"".join((before, *abort, after))


@functools.cache
def _fixed_rules(machine: str) -> tuple[bytes, bytes]:
    """What every guest's filter begins and ends with; the zygote builds it once for all of them."""
    numbers = SYSCALLS[machine]
    no_code = (step(LOAD, argument(2)), step(BITS, _PROT_EXEC, 0, 1), KILL, ALLOW)
    bad_fd, refusal = refuse(errno.EBADF), refuse(errno.EPERM)
    known_clock = (step(LOAD, argument(0)), step(MORE, _LAST_CLOCK, 1, 0), ALLOW, refusal)
    lock = (step(LOAD, argument(1)), step(AND, 0xFFFFFFFF ^ _FUTEX_FLAGS), *one_of(_FUTEX), refusal)
    before = [
        *own_calls(machine),
        *rule(numbers["read"], *where(0, CHANNEL_FD), bad_fd),
        *rule(numbers["write"], *where(0, CHANNEL_FD), bad_fd),
        *rule(numbers["mmap"], step(LOAD, argument(3)), step(BITS, _MAP_ANONYMOUS, 1, 0), refusal, *no_code),
        *rule(numbers["madvise"], step(LOAD, argument(2)), *one_of(_ADVICE), refusal),
        *rule(numbers["prlimit64"], *where(0, 0), refusal),
        *rule(numbers["futex"], *lock),
    ]
    for name in ("clock_gettime", "clock_nanosleep", "clock_getres"):
        before += rule(numbers[name], *known_clock)
    for name in _ALLOWED:
        before += rule(numbers[name], ALLOW) if name in numbers else []
    after = [*rule(numbers["mprotect"], *no_code)]
    for name in ("select", "pselect6"):  # of descriptors up to the channel: it is the only one there is
        after += rule(numbers[name], *where(0, CHANNEL_FD + 1), refusal) if name in numbers else []
    for name in _FATAL:
        after += rule(numbers[name], KILL) if name in numbers else []
    return b"".join(before), b"".join([*after, refusal])


_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000


def enter_cell() -> dict[str, str]:
    """Give up everything that guests need not inherit; return what held.

    Where a PID namespace is made, this forks: the caller goes on as process 1 of the namespace, whose
    death takes every guest along, while the original process waits for it and ends with it. Nothing can be
    imported afterwards: the file system is gone, or belongs to a user that is no longer us.
    """
    layers: dict[str, str] = {}
    original = os.getpid()
    attempt(layers, "oom_first", be_first_out_of_memory)
    if os.geteuid() == 0:
        attempt(layers, "uid_drop", drop_user)
    else:
        layers["uid_drop"] = f"on(already uid {os.geteuid()})"
    if attempt(layers, "namespaces", own_namespaces):
        _become_process_one()
        attempt(layers, "empty_root", _empty_root)
    else:
        layers["empty_root"] = "off(needs namespaces)"
    attempt(layers, "own_keyring", leave_keyring)
    attempt(layers, "no_capabilities", drop_capabilities)
    attempt(layers, "no_new_privs", lambda: prctl(PR_SET_NO_NEW_PRIVS, 1))
    attempt(layers, "undumpable", lambda: prctl(PR_SET_DUMPABLE, 0))
    if os.getpid() != original:
        attempt(layers, "dies_with_host", lambda: die_with_parent(0))  # last: a change of user clears it
    return layers


def be_first_out_of_memory() -> None:
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def drop_user() -> str:
    """Be nobody. The capabilities stay for the moment: the namespaces may need them."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    prctl(PR_SET_KEEPCAPS, 1)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(PR_SET_KEEPCAPS, 0)
    header, sets = _capability_sets()
    syscall("capget", header, sets)
    permitted = struct.unpack("6I", sets.raw)[1::3]
    syscall("capset", header, struct.pack("6I", permitted[0], permitted[0], 0, permitted[1], permitted[1], 0))
    # Changing user hides /proc/self from us, and the user namespace's maps are written there.
    prctl(PR_SET_DUMPABLE, 1)
    return f"uid {NOBODY}"


def own_namespaces() -> str:
    """Have users, processes, network, mounts and all else to itself, and forbid more of that inside."""
    how = unshare()
    forbid_namespaces()
    return how


def unshare() -> str:
    """Go into namespaces of every kind; the next process that is forked is the first of its own."""
    kinds = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWPID
    user, group = os.geteuid(), os.getegid()
    try:
        checked(libc.unshare(ctypes.c_int(kinds | _CLONE_NEWUSER)))
    except OSError as err:
        # With CAP_SYS_ADMIN it works without a user namespace, which a machine may have switched off.
        try:
            checked(libc.unshare(ctypes.c_int(kinds)))
        except OSError:
            raise err from None
        return "no user namespace"
    _tell({"setgroups": "deny", "uid_map": f"{NOBODY} {user} 1", "gid_map": f"{NOBODY} {group} 1"}, "self")
    return "user"


def forbid_namespaces() -> None:
    """Allow none inside of ours: they would give back all capabilities in them."""
    _tell({f"max_{kind}_namespaces": "0" for kind in _NAMESPACES}, "sys/user")


def _tell(facts: Mapping[str, str], place: str) -> None:
    for name, text in facts.items():
        with contextlib.suppress(OSError), open(f"/proc/{place}/{name}", "w") as file:
            file.write(text)


_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time")


def leave_keyring() -> None:
    """Join a new, empty session keyring; the one we were started with may hold the host's keys."""
    syscall("keyctl", ctypes.c_int(1), None)


def _become_process_one() -> None:
    child = os.fork()
    if child:
        os.closerange(3, 1 << 16)  # the control channel must close when process 1 goes, not when we do
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when `parent` (as `os.getppid()` shows it) dies."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _empty_root() -> None:
    locked = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    # Any directory that exists everywhere will do; the namespace is ours and /proc is no longer needed.
    mount(b"tmpfs", b"/proc", b"tmpfs", locked, b"size=4k,nr_inodes=2,mode=555")
    os.chdir("/proc")
    syscall("pivot_root", b".", b".")
    checked(libc.umount2(b".", ctypes.c_int(MNT_DETACH)))
    os.chdir("/")
    mount(b"none", b"/", None, MS_REMOUNT | MS_RDONLY | locked)


def drop_capabilities() -> None:
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one, or not ours to drop: the sets below are what counts
            break
    try:
        prctl(PR_CAP_AMBIENT, 4)
    except OSError:
        pass
    header, none = _capability_sets()
    syscall("capset", header, none)


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
    if has_filter(machine):
        _fixed_rules(machine)
    with contextlib.suppress(OSError):  # a guest's own attempt will say why
        landlock_offer()


def seal(memory: MemoryLimit, parent: int) -> dict[str, str]:
    """Take the rest away from this process, for good; return what held. Only the channel stays open."""
    layers: dict[str, str] = {}
    attempt(layers, "dies_with_zygote", lambda: die_with_parent(parent))
    os.closerange(0, CHANNEL_FD)
    os.closerange(CHANNEL_FD + 1, 1 << 16)
    attempt(layers, "write_xor_execute", lambda: prctl(PR_SET_MDWE, 1))
    attempt(layers, "landlock", _deny_by_landlock)
    attempt(layers, "rlimits", lambda: _limit_resources(memory))  # from here on nothing opens any more
    attempt(layers, "seccomp", _filter_system_calls)
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
    version, attributes = landlock_offer()
    landlock_enter(landlock_ruleset(attributes))
    return str(version)


def _filter_system_calls() -> None:
    machine = os.uname().machine
    if not has_filter(machine):
        raise OSError(errno.ENOSYS, f"no system call filter for {machine}")
    load_filter(guest_filter(machine, os.getpid()))
