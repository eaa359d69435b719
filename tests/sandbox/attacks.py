"""Runs the attacks of attacks.txt: plain Python in sealed processes, all forked from one cell.

`attacked(profile)` gives what became of each. The profile runs before the cell closes: it takes layers away
or changes the user. Nothing of the language layer is there; what holds is the kernel.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SUCCESS = "it succeeded"

# The calls that the attacks make by number, on x86_64.
NUMBERS = {
    "open": 2, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "ioctl": 16,
    "pread64": 17, "readv": 19, "writev": 20, "select": 23, "mremap": 25, "madvise": 28, "shmget": 29,
    "shmat": 30, "dup2": 33, "sendfile": 40, "connect": 42, "sendto": 44, "recvfrom": 45, "shutdown": 48,
    "bind": 49, "listen": 50, "getsockname": 51, "getpeername": 52, "setsockopt": 54, "getsockopt": 55,
    "clone": 56, "fork": 57, "vfork": 58, "semget": 64, "msgget": 68, "fcntl": 72, "flock": 73, "truncate":
    76, "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "readlink": 89, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "ptrace": 101,
    "syslog": 103, "capset": 126, "rt_sigpending": 127, "rt_sigqueueinfo": 129, "mknod": 133, "personality":
    135, "mlock": 149, "mlockall": 151, "vhangup": 153, "modify_ldt": 154, "pivot_root": 155, "arch_prctl":
    158, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "init_module": 175,
    "delete_module": 176, "quotactl": 179, "setxattr": 188, "fsetxattr": 190, "getxattr": 191, "tkill": 200,
    "futex": 202, "io_setup": 206, "remap_file_pages": 216, "timer_create": 222, "clock_nanosleep": 230,
    "tgkill": 234, "mq_open": 240, "kexec_load": 246, "waitid": 247, "add_key": 248, "request_key": 249,
    "keyctl": 250, "ioprio_set": 251, "migrate_pages": 256, "openat": 257, "unshare": 272,
    "set_robust_list": 273, "get_robust_list": 274, "splice": 275, "tee": 276, "vmsplice": 278,
    "move_pages": 279, "utimensat": 280, "timerfd_create": 283, "accept4": 288, "signalfd4": 289,
    "epoll_create1": 291, "dup3": 292, "inotify_init1": 294, "rt_tgsigqueueinfo": 297, "perf_event_open":
    298, "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "sched_setattr": 314, "renameat2": 316, "seccomp": 317, "memfd_create": 319, "bpf": 321, "execveat":
    322, "userfaultfd": 323, "membarrier": 324, "copy_file_range": 326, "pwritev2": 328, "pkey_mprotect":
    329, "pkey_alloc": 330, "statx": 332, "rseq": 334, "pidfd_send_signal": 424, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435, "close_range": 436, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "landlock_create_ruleset": 444,
    "memfd_secret": 447, "process_mrelease": 448, "futex_waitv": 449,
}  # fmt: skip


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    end: str  # "killed" or "refused"
    is_held_without_filter: bool


def attacks() -> list[Attack]:
    found = []
    for line in (HERE / "attacks.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            head, _, code = line.partition(": ")
            end, mark, name = head.split()
            found.append(Attack(name, code, end, mark == "+"))
    return found


@dataclass(frozen=True)
class Attacked:
    layers: Mapping[str, str]
    ends: Mapping[str, str]  # "killed" by SIGSYS, SUCCESS, or the exception's text

    def succeeded(self) -> set[str]:
        return {name for name, end in self.ends.items() if end == SUCCESS}


_BOOT = r"""
import sys
profile, numbers, table, success = sys.argv[1:5]
sys.path += sys.argv[5:]
import array, ctypes, encodings.idna, json, mmap, os, pickle, pty, resource, select, signal, socket, struct
import subprocess, tempfile, threading, time
from processor.sandbox import jail

NUMBERS, HOSTPID = json.loads(numbers), os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
room = ctypes.create_string_buffer

def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

def call(which, *words):
    number = NUMBERS[which] if isinstance(which, str) else which
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    return checked(libc.syscall(ctypes.c_long(number), *words))

def prctl(option, *words):
    full = [ctypes.c_ulong(word % 2**64) for word in (*words, 0, 0, 0, 0)[:4]]
    return checked(libc.prctl(ctypes.c_int(option), *full))

def page():  # memory of its own
    return call('mmap', 0, 4096, 3, 0x22, -1, 0)

def text():  # a page of the C library's code
    return ctypes.cast(libc.abs, ctypes.c_void_p).value & ~4095

def works(function, descriptors, *arguments):
    for descriptor in descriptors:
        try:
            function(descriptor, *arguments)
        except OSError:
            continue
        return True
    return False

# Code that enters the kernel by the door of 32-bit programs, from a page that was there before the seal.
OTHER_DOOR = mmap.mmap(-1, 4096, prot=7, flags=0x22)
OTHER_DOOR.write(bytes.fromhex("89f8cd80c3"))
INT80 = ctypes.addressof(ctypes.c_char.from_buffer(OTHER_DOOR))

def call_code(where, number):
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(where)(number)

listener = socket.create_server(("127.0.0.1", 0))
PORT = listener.getsockname()[1]
programs = {name: compile(code, name, "exec") for name, code in json.loads(table).items()}
ends = {}

def sealed(program):
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    os.dup2(theirs.fileno(), 3)
    layers = jail.seal(jail.MemoryLimit(baseline, 32), parent)
    def say(word):
        os.write(3, json.dumps(word).encode() + b"\n")
    say(layers)
    try:
        exec(program, globals())
    except BaseException as err:
        say(f"{type(err).__name__}: {err}")
    else:
        say(success)
    os._exit(0)

def end_of(pid):
    ready, _, _ = select.select([reader[pid]], [], [], 10)
    while ready:
        got = reader[pid].recv(1 << 16)
        said[pid] += got
        if not got or said[pid].count(b"\n") == 2:
            break
        ready, _, _ = select.select([reader[pid]], [], [], 10)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    lines = said[pid].splitlines()
    if len(lines) > 1:
        try:
            return json.loads(lines[1])
        except ValueError:  # it wrote to the channel by a way that it should not have
            return success
    if not ready:
        return success + ", for it did not end"
    return {-signal.SIGSYS: "killed"}.get(os.waitstatus_to_exitcode(status), f"wait status {status}")

exec(profile)
baseline, _ = jail.memory_in_use()
jail.prepare()
told, tell = os.pipe()
if os.fork():
    os.close(tell)
    with open(told, "rb") as report:
        sys.stdout.buffer.write(report.read())
    sys.stdout.flush()
    os._exit(0)
layers = jail.enter_cell()
parent = os.getpid()
said, reader = {}, {}
SIBLING, channel = sealed(compile("while True: time.sleep(9)", "sibling", "exec"))
for name, program in programs.items():
    pid, reader_ = sealed(program)
    said[pid], reader[pid] = b"", reader_
    ends[name] = end_of(pid)
    layers.update(json.loads(said[pid].splitlines()[0]))
    reader_.close()
    ended, _ = os.waitpid(SIBLING, os.WNOHANG)
    if ended:
        ends[name] = success + ", for its sibling died"
        SIBLING, channel = sealed(compile("while True: time.sleep(9)", "sibling", "exec"))
os.write(tell, json.dumps([layers, ends]).encode())
os._exit(0)
"""


@functools.cache
def attacked(profile: str = "", *names: str) -> Attacked:
    """What becomes of the attacks (all, or those named) after `profile` was run."""
    table = {attack.name: attack.code for attack in attacks() if not names or attack.name in names}
    paths = [*filter(os.path.exists, sys.path), str(HERE.parents[1])]
    arguments = [profile, json.dumps(NUMBERS), json.dumps(table), SUCCESS, *paths]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _BOOT, *arguments],
        env={},
        cwd="/",
        capture_output=True,
        timeout=100,
    )
    assert done.stdout, done.stderr.decode()
    layers, ends = json.loads(done.stdout)
    return Attacked(layers, ends)
