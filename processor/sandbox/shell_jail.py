"""What the kernel is asked to take from the programs of a shell step, layer by layer.

A guest computes and has one socket; a step runs programs of the system, so it keeps files to read, memory to
map and processes to start. What it gets instead of the machine:

- with namespaces, a root of its own: the system's programs and the recipe's root, both read-only, a `/tmp`
  of bounded size, four devices, and only its own processes in `/proc`;
- without them, by Landlock from version 6: the same files to read, a private folder to write to, and
  signals to its own processes only. The names of other files can be seen, and `/tmp` has no bound. No file
  gets another mode, owner or attribute, for Landlock does not tell which file that would be.

In both there is no socket but a pair of its own, and nothing that is root's. `lacking` says whether the sum
is worth anything: where it is not, no program is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import resource
import signal
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from processor.sandbox import jail
from processor.sandbox.syscalls import (
    ALLOW,
    AND,
    AT_LEAST,
    BITS,
    EQUAL,
    LOAD,
    MNT_DETACH,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
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

# What programs of the system need: themselves, their libraries, and where Debian's names for them lead.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives", "/etc/ld.so.cache",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")
LANDLOCK_NEEDED = 6  # the first that keeps signals and abstract sockets from whom they are not for

# Whatever reaches beyond the step's own processes and files, or into parts of the kernel that programs of a
# step do not need. The call fails, as it does for any process without a privilege.
_REFUSED = (
    "socket", "connect", "bind", "listen", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp",
    "pidfd_getfd", "process_madvise", "process_mrelease", "mount", "umount2", "pivot_root", "chroot",
    "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "unshare", "setns",
    "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd", "acct", "swapon", "swapoff",
    "fanotify_init", "fanotify_mark", "lookup_dcookie", "bpf", "perf_event_open", "userfaultfd", "seccomp",
    "keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup",
    "memfd_secret", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
    "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname", "syslog",
    "vhangup", "iopl", "ioperm", "modify_ldt", "uselib", "personality", "mbind", "set_mempolicy",
    "move_pages", "migrate_pages", "shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl",
    "semtimedop", "msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink",
)  # fmt: skip
# Calls of which the first argument names a process: of the step's own only, which is 0.
_OF_ITSELF = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")
# Calls by which a file gets its mode, and the argument that is it: a set-uid file would be one outside, too.
_MODES = {
    "chmod": 1, "fchmod": 1, "fchmodat": 2, "mkdir": 1, "mkdirat": 2, "mknod": 1, "mknodat": 2, "creat": 1,
}  # fmt: skip
_OPENS = {"open": 1, "openat": 2}  # the argument that is the flags; the mode is the next one
_SET_ID = 0o6000
# What Landlock does not see, of files wherever they lie, if they are the user's own: refused where the step
# has no root of its own.
_OF_ANY_FILE = (
    "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat",
    "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "inotify_init",
    "inotify_init1", "inotify_add_watch",
)  # fmt: skip
_CREATES = os.O_CREAT | 0o20000000  # the latter is O_TMPFILE without O_DIRECTORY
_NEW_NAMESPACES = 0x7E020080
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX, which type for whoever has the terminal
# cachestat. What came later was not looked at here: a program is told that its kernel does not have it.
_NEWEST = 451

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_SIGNALS = 2  # of Landlock's scopes

_AT_EMPTY_PATH, _AT_RECURSIVE, _CLONE_TREE = 0x1000, 0x8000, 1
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 1, 2, 4, 0x100000
_CLONE_NEWUSER = 0x10000000
_TO_DESCRIPTOR = 0x04 | 0x40  # move_mount: both ends are descriptors
_BENEATH = 0x02 | 0x04 | 0x08  # openat2: no magic links, no links, nothing above
_USERS = b"nobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUPS = b"nogroup:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Room:
    """What a step has of the machine: its folder, what of it may be written, and how much of all else."""

    root: str
    writes: tuple[str, ...]  # below the root
    memory_mb: int
    processes: int
    descriptors: int
    file_mb: int
    tmp_mb: int
    cpu_s: int


class Misplaced(Exception):
    """A folder of a step that is not there, or that a link leads to; the text names it."""


def look_for(room: Room) -> None:
    """Raise Misplaced unless the root and each folder that may be written can be opened."""
    path = room.root
    try:
        root = os.open(room.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for path in room.writes:
                os.close(open_beneath(root, path))
        finally:
            os.close(root)
    except OSError as err:
        raise Misplaced(f"the folder {path[:200]!r} cannot be opened: {err.strerror}") from None


def lacking(layers: Mapping[str, str]) -> str:
    """Why these layers do not hold a program; empty where they do."""
    number = re.match(r"on\((\d+)\)", layers.get("landlock", ""))
    has_landlock = number is not None and int(number[1]) >= LANDLOCK_NEEDED
    needed = ["seccomp", "no_new_privs", "no_capabilities", "rlimits"]
    missing = [name for name in needed if not _is_on(layers, name)]
    if not (_is_on(layers, "namespaces") or _is_on(layers, "own_signals")):
        missing += ["namespaces", "own_signals"]
    if not (_is_on(layers, "own_root") or has_landlock):
        missing += ["own_root", "landlock"]
    return "; ".join(f"{name} is {layers.get(name, 'not there')}" for name in missing)


def _is_on(layers: Mapping[str, str], name: str) -> bool:
    return layers.get(name, "").startswith("on")


class Trees(NamedTuple):
    """Copies of mounts, by the place that each is for, until `build_root` puts them there."""

    found: dict[str, int]  # descriptors
    links: dict[str, str]  # what in the root of the machine is only a link
    writable: dict[str, int]  # by the path below the room's root

    def close(self) -> None:
        for tree in (*self.found.values(), *self.writable.values()):
            os.close(tree)


def open_trees(room: Room, owner: int | None = None) -> Trees:
    """Copy what a root will be made of, while it can be reached. Raises OSError.

    With an `owner`, from `namespace_of_owner`, files of the room are as that says whose they are.
    """
    found: dict[str, int] = {}
    links: dict[str, str] = {}
    for place in SYSTEM:
        if os.path.islink(place):
            links[place] = os.readlink(place)
        elif os.path.exists(place):
            found[place] = _copied(place, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for place in DEVICES:
        found[place] = _copied(place, _ATTR_NOSUID)
    found[room.root] = _copied(room.root, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, owner)
    writable = {}
    root = os.open(room.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for path in room.writes:
        folder = open_beneath(root, path)
        writable[path] = _copied(folder, _ATTR_NOSUID | _ATTR_NODEV, owner)
        os.close(folder)
    os.close(root)
    return Trees(found, links, writable)


def namespace_of_owner(room: Room) -> int:
    """A user namespace in which the owner of the room's root is the user of the step.

    Root alone can make it: its steps are nobody, who is to read and write what is its recipe's all the same.
    Raises OSError.
    """
    owner = os.stat(room.root)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            checked(libc.unshare(ctypes.c_int(_CLONE_NEWUSER)))
            os.write(told, b"1")
            signal.pause()
        finally:
            os._exit(0)
    os.close(told)
    try:
        if not os.read(ready, 1):
            raise OSError(errno.EPERM, "no user namespace")
        for name, number in (("uid_map", owner.st_uid), ("gid_map", owner.st_gid)):
            _write(f"/proc/{child}/{name}", b"%d %d 1" % (number, jail.NOBODY))
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _copied(source: str | int, attributes: int, owner: int | None = None) -> int:
    """A descriptor of a copy of the mounts at and below a place, which nobody else sees."""
    folder, path = (-100, os.fsencode(source)) if isinstance(source, str) else (source, b"")
    how = _CLONE_TREE | os.O_CLOEXEC | _AT_RECURSIVE | (0 if path else _AT_EMPTY_PATH)
    tree = syscall("open_tree", ctypes.c_int(folder), path, ctypes.c_uint(how))
    attributes |= _ATTR_IDMAP if owner is not None else 0
    wanted = struct.pack("=QQQQ", attributes, 0, MS_PRIVATE, owner or 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE)
    syscall("mount_setattr", ctypes.c_int(tree), b"", flags, wanted, ctypes.c_size_t(len(wanted)))
    return tree


def open_beneath(folder: int, path: str) -> int:
    """A descriptor of a directory below another one, which no link leads to. Raises OSError."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _BENEATH)
    return syscall("openat2", ctypes.c_int(folder), os.fsencode(path), how, ctypes.c_size_t(len(how)))


def build_root(trees: Trees, room: Room) -> str:
    """Make those trees, a `/tmp` and a `/proc` the whole file system. Raises OSError.

    The process must be the first of its process namespace, and have its mounts to itself.
    """
    fixed = MS_NOSUID | MS_NODEV | MS_NOEXEC
    base = "/proc"  # any directory that exists everywhere; what is below it is not needed any more
    mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    mount(b"tmpfs", base.encode(), b"tmpfs", fixed, b"size=1m,nr_inodes=1k,mode=755")
    for name in ("dev", "etc", "proc", "tmp"):
        os.mkdir(f"{base}/{name}", 0o755)
    size = f"size={room.tmp_mb}m,nr_inodes={_INODES_PER_MB * room.tmp_mb},mode=1777"
    mount(b"tmpfs", f"{base}/tmp".encode(), b"tmpfs", MS_NOSUID | MS_NODEV, size.encode())
    for place, content in (("passwd", _USERS), ("group", _GROUPS)):
        _write(f"{base}/etc/{place}", content)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{base}/dev/{name}")
    for place, target in trees.links.items():
        os.makedirs(os.path.dirname(base + place), exist_ok=True)
        os.symlink(target, base + place)
    for place, tree in trees.found.items():
        _put(tree, base + place, is_folder=place not in DEVICES and not os.path.isfile(place))
    _put_writable(trees, base + room.root)
    try:
        mount(b"proc", f"{base}/proc".encode(), b"proc", fixed, b"subset=pid")
        detail = ""
    except OSError as err:  # parts of the machine's own are hidden, as in many containers
        detail = f"no /proc: {errno.errorcode.get(err.errno or 0, err.errno)}"
    os.chdir(base)
    syscall("pivot_root", b".", b".")
    checked(libc.umount2(b".", ctypes.c_int(MNT_DETACH)))
    os.chdir("/")
    mount(b"none", b"/", None, MS_REMOUNT | MS_RDONLY | fixed)
    return detail


_INODES_PER_MB = 256
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "shm": "/tmp",
}


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _put(tree: int, place: str, *, is_folder: bool) -> None:
    if not os.path.lexists(place):
        os.makedirs(os.path.dirname(place) if not is_folder else place, exist_ok=True)
        if not is_folder:
            _write(place, b"")
    target = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    _attach(tree, target)


def _put_writable(trees: Trees, root: str) -> None:
    for path, tree in trees.writable.items():
        folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        target = open_beneath(folder, path)
        os.close(folder)
        _attach(tree, target)


def _attach(tree: int, target: int) -> None:
    syscall("move_mount", ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(_TO_DESCRIPTOR))
    os.close(tree)
    os.close(target)


def take_no_privileges() -> None:
    """Let nothing that is executed get what this process has not. Landlock asks for it, too."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def keep_signals() -> str:
    """Let no process of the step signal one that is not of the step, and be the parent of all that it leaves.

    For where there is no process namespace: `os.kill(-1, ...)` by this process then means the step.
    """
    version, _ = landlock_offer()
    if version < LANDLOCK_NEEDED:
        raise OSError(errno.ENOSYS, f"Landlock is of version {version}, below {LANDLOCK_NEEDED}")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    landlock_enter(landlock_ruleset(struct.pack("=QQQ", 0, 0, _SIGNALS)))
    return str(version)


def take_along(parent: int) -> None:
    """Kill the step when `parent` dies, where no namespace does: all that this process may signal."""

    def end(*_: object) -> None:
        os.kill(-1, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


def restrict_files(room: Room, readable: Sequence[str], tmp: str) -> str:
    """Leave files and folders to read, the devices, and what may be written. Raises OSError."""
    version, attributes = landlock_offer()
    (handled,) = struct.unpack_from("=Q", attributes)
    ruleset = landlock_ruleset(attributes)
    read, use = _EXECUTE | _READ_FILE | _READ_DIR, _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL
    places = [(_opened(place), read) for place in readable if os.path.exists(place)]
    places += [(_opened(place), use) for place in DEVICES]
    root = os.open(room.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    places += [(open_beneath(root, path), handled) for path in room.writes]
    places.append((_opened(tmp), handled))
    for opened, rights in places:
        fits = rights if stat.S_ISDIR(os.fstat(opened).st_mode) else rights & _OF_A_FILE
        below = ctypes.create_string_buffer(struct.pack("=Qi", fits & handled, opened), 12)
        syscall("landlock_add_rule", ctypes.c_int(ruleset), ctypes.c_int(1), below, ctypes.c_uint32(0))
        os.close(opened)
    os.close(root)
    landlock_enter(ruleset)
    return str(version)


def _opened(place: str) -> int:
    return os.open(place, os.O_PATH | os.O_CLOEXEC)


def limit_resources(room: Room, tasks: int) -> None:
    """Bound what each process of the step may take; `tasks` are those of its user that are not the step's."""
    none = ("CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO")
    limits = {
        **dict.fromkeys(none, 0),
        "AS": room.memory_mb << 20,
        "CPU": room.cpu_s,
        "FSIZE": room.file_mb << 20,
        "NOFILE": room.descriptors,
        "NPROC": tasks + room.processes,
    }
    for name, most in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (allowed, allowed))


def tasks_beside(layers: Mapping[str, str]) -> int:
    """How many tasks the kernel counts for the user of a step besides those of the step.

    That is 0 where the step has a user namespace, if the kernel counts in each of them alone.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    counts_apart = release is not None and (int(release[1]), int(release[2])) >= (5, 14)
    if layers.get("namespaces") == "on(user)" and counts_apart:
        return 0
    user, found = str(os.getuid()), 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/status") as status:
                words = dict(line.split(":", 1) for line in status)
                if words["Uid"].split()[0] == user:
                    found += int(words["Threads"])
    return found


def filter_system_calls(*, has_root: bool) -> None:
    machine = os.uname().machine
    if not has_filter(machine):
        raise OSError(errno.ENOSYS, f"no system call filter for {machine}")
    load_filter(step_filter(machine, has_root=has_root))


def step_filter(machine: str, *, has_root: bool) -> bytes:
    """The seccomp program of every process of a step, as classic BPF: all but what is named is allowed.

    More is named where the step has no root of its own.
    """
    numbers = SYSCALLS[machine]
    eperm, enosys = refuse(errno.EPERM), refuse(errno.ENOSYS)
    program = [*own_calls(machine), step(AT_LEAST, _NEWEST + 1, 0, 1), enosys]
    for name in _REFUSED if has_root else (*_REFUSED, *_OF_ANY_FILE):
        program += rule(numbers[name], eperm) if name in numbers else []
    # Their flags are in memory, which a filter cannot read; libraries go back to the calls before them.
    for name in ("clone3", "openat2"):
        program += rule(numbers[name], enosys)
    for name in _OF_ITSELF:
        program += rule(numbers[name], *where(0, 0), eperm)
    for name, index in _MODES.items():
        if name in numbers:
            program += rule(numbers[name], *_unless(index, _SET_ID))
    for name, index in _OPENS.items():
        if name in numbers:
            creates = (step(LOAD, argument(index)), step(BITS, _CREATES, 1, 0), ALLOW)
            program += rule(numbers[name], *creates, *_unless(index + 1, _SET_ID))
    program += rule(numbers["clone"], *_unless(0, _NEW_NAMESPACES))
    typed = [step(LOAD, argument(1))]
    for command in _TERMINAL_INPUT:
        typed += [step(EQUAL, command, 0, 1), eperm]
    program += rule(numbers["ioctl"], *typed, ALLOW)
    # A pair of its own that can name no other end: AF_UNIX and SOCK_STREAM, with whatever flags.
    kind = (step(LOAD, argument(1)), step(AND, 0xF), *one_of((1,)))
    program += rule(numbers["socketpair"], *_if(0, 1, *kind), eperm)
    program += rule(numbers["setpriority"], *_if(0, 0, *where(1, 0)), eperm)
    program += rule(numbers["ioprio_set"], *_if(0, 1, *where(1, 0)), eperm)
    if not has_root:
        # Of what is open, without a path: both halves of the pointer to it are 0.
        no_path = (step(LOAD, argument(1) + 4), step(EQUAL, 0, 0, 3), *where(1, 0))
        program += rule(numbers["utimensat"], *no_path, eperm)
    return b"".join([*program, ALLOW])


def _unless(index: int, bits: int) -> list[bytes]:
    """Refuse the call if that argument has one of these bits, and allow it otherwise."""
    return [step(LOAD, argument(index)), step(BITS, bits, 0, 1), refuse(errno.EPERM), ALLOW]


def _if(index: int, value: int, *steps: bytes) -> list[bytes]:
    """Go on with these steps if that argument has that value, and behind them otherwise."""
    return [step(LOAD, argument(index)), step(EQUAL, value, 0, len(steps)), *steps]


def reset_signals() -> None:
    """Give a program the signals that it expects: Python ignores two, and our parent listens to others."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def seal(room: Room, layers: dict[str, str], *, tmp: str, tasks: int) -> None:
    """Take the rest away from this process, which is about to become the program of the step."""
    readable = ("/",) if _is_on(layers, "own_root") else (*SYSTEM, room.root)
    attempt(layers, "landlock", lambda: restrict_files(room, readable, tmp))
    attempt(layers, "rlimits", lambda: limit_resources(room, tasks))
    has_root = _is_on(layers, "own_root")
    attempt(layers, "seccomp", lambda: filter_system_calls(has_root=has_root))


def drop_privileges(layers: dict[str, str]) -> None:
    """Give up what no process of a step needs, the one that waits for its program among them."""
    attempt(layers, "own_keyring", jail.leave_keyring)
    attempt(layers, "no_capabilities", jail.drop_capabilities)
    attempt(layers, "undumpable", lambda: prctl(PR_SET_DUMPABLE, 0))  # programs are again, once executed
