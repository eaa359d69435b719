"""What a hostile step tries, and the harness that runs steps under a profile, in a process of its own.

A profile is a piece of Python that gives something up before the cells are started: the user, or what a
container's engine refuses. `HOST_PID` in an attack is that process, the one that holds what a step is not
to have, and `HOST_FILE` a file of its user.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sandbox.test_jail import CONTAINER

# An ordinary user; where the tests are one already, nothing changes. The one capability that is left lets it
# execute an interpreter that lies in the home of another.
ORDINARY = """
if os.getuid() == 0:
    from processor.sandbox import syscalls
    os.setgroups([])
    os.setresgid(1234, 1234, 1234)
    syscalls.prctl(8, 1)
    os.setresuid(1234, 1234, 1234)
    syscalls.syscall("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("6I", 4, 4, 4, 0, 0, 0))
    syscalls.prctl(47, 2, 2)
    syscalls.prctl(4, 1)
"""
PROFILES = {
    "as it is": "",
    "ordinary user": ORDINARY,
    "without namespaces": CONTAINER,
    "ordinary user without namespaces": ORDINARY + CONTAINER,
}

_BOOT = """
import asyncio, ctypes, json, os, struct, sys, tempfile
from pathlib import Path
from processor.errors import ProcessorError
from processor.sandbox import jail
from processor.sandbox.shell import ShellCells, ShellLimits
root, steps = json.loads(sys.argv[1])
exec(sys.argv[2])
own = tempfile.NamedTemporaryFile()
async def run():
    try:
        cells = await ShellCells.start()
    except ProcessorError as err:
        return {"refused": str(err)}
    ends = {}
    try:
        for name, (argv, limits) in steps.items():
            for word, meant in (("HOST_PID", str(os.getpid())), ("HOST_FILE", own.name)):
                argv = [each.replace(word, meant) for each in argv]
            done = await cells.run(argv, {}, Path(root), writes=[Path("Data")], limits=ShellLimits(**limits))
            failure = done.failure and done.failure.code
            said = done.stdout[-4000:].decode(errors="replace"), done.stderr[-4000:].decode(errors="replace")
            ends[name] = [done.code, *said, failure]
    finally:
        await cells.close()
    return {"layers": dict(cells.layers), "ends": ends}
print(json.dumps(asyncio.run(run())))
"""


@dataclass(frozen=True)
class End:
    code: int | None
    stdout: str
    stderr: str
    failure: str | None


Steps = Mapping[str, tuple[list[str], Mapping[str, Any]]]


def ran(profile: str, root: Path, steps: Steps) -> dict[str, Any]:
    """What a process under that profile says of its steps, by name, and of its layers."""
    with running(profile, root, steps) as host:
        stdout, stderr = host.communicate(timeout=300)
        assert host.returncode == 0, stderr
    said: dict[str, Any] = json.loads(stdout)
    return said


@contextmanager
def running(profile: str, root: Path, steps: Steps) -> Iterator[subprocess.Popen[str]]:
    """The process that says it, while it runs."""
    given = json.dumps([str(root), steps])
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _BOOT, given, profile]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd="/", env=env) as host:
        try:
            yield host
        finally:
            host.kill()


@contextmanager
def recipe_root() -> Iterator[Path]:
    """A recipe's root that anybody may read, with a folder that anybody may write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "Data").mkdir()
        (path / "Data").chmod(0o777)
        (path / "Data" / "file.txt").write_text("a\nb\nc\n")
        (path / "notes.txt").write_text("read me")
        script = path / "count-lines.sh"
        script.write_text(_COUNT_LINES)
        script.chmod(0o755)
        if os.geteuid() == 0:  # what lies there is the ordinary user's, who has to be kept from it, too
            for place in (path, *path.rglob("*")):
                os.chown(place, 1234, 1234)
        yield path


_COUNT_LINES = """#!/usr/bin/env bash
set -euo pipefail
INPUT="${INPUT:?missing INPUT}"
LINES=$(wc -l < "$INPUT" | tr -d ' ')
echo "{\\"status\\":\\"ok\\",\\"lines\\":$LINES}"
"""


@dataclass(frozen=True)
class Attacked:
    layers: Mapping[str, str]
    ends: Mapping[str, End]


@functools.cache
def attacked(profile: str) -> Attacked:
    """What became of every attack under a profile of PROFILES."""
    with recipe_root() as root:
        steps = {name: (attack.argv, attack.limits) for name, attack in ATTACKS.items()}
        said = ran(PROFILES[profile], root, steps)
    return Attacked(said["layers"], {name: End(*end) for name, end in said["ends"].items()})


# What no step can do, on each kind of kernel.


@dataclass(frozen=True)
class Attack:
    argv: list[str]
    held: Callable[[End], bool]
    limits: Mapping[str, Any]


def sh(text: str, held: Callable[[End], bool], **limits: Any) -> Attack:
    return Attack(["bash", "-c", text], held, limits)


def py(text: str, held: Callable[[End], bool] | None = None, **limits: Any) -> Attack:
    """An attack in Python, which is held where it says so: it prints what became of it."""
    return Attack(["python3", "-c", _PRELUDE + text], held or refused, limits)


_PRELUDE = """
import ctypes, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *given):
    if libc.syscall(number, *given) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def refused(end: End) -> bool:
    """It ended in an error of the kernel's: no permission, no such call, or no such thing here."""
    errors = (
        "PermissionError", "Function not implemented", "FileNotFoundError", "ProcessLookupError", "Read-only"
    )  # fmt: skip
    return end.code == 1 and any(error in end.stderr for error in errors)


def alive(end: End) -> bool:
    return (end.code, end.stdout, end.failure) == (0, "alive\n", None)


def said(*words: str) -> Callable[[End], bool]:
    return lambda end: any(word in end.stdout + end.stderr for word in words)


STAY = f"33{os.getpid()}"  # what the processes that are left behind have as their argument
ATTACKS = {
    "socket": py("socket.socket()"),
    "udp": py("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"),
    "netlink": py("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    "vsock": py("socket.socket(socket.AF_VSOCK)"),
    "packet": py("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    "unix": py("socket.socket(socket.AF_UNIX).connect('\\0processor-test')"),
    "abstract by a pair": py("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"),
    "a pair that connects": py("a, b = socket.socketpair(); a.connect('\\0processor-test')"),
    "a pair that names": py(
        "a, b = socket.socketpair()\n"
        "try: a.sendto(b'x', '\\0processor-test')\n"
        "except OSError as err: raise PermissionError(str(err))"
    ),
    "dev tcp": sh("exec 3<>/dev/tcp/127.0.0.1/4222", said("Operation not permitted")),
    "read etc": sh("cat /etc/shadow /etc/hostname", lambda end: end.stdout == "" and end.code == 1),
    "read home": sh("cat /root/.bashrc ~root/.profile", lambda end: end.stdout == "" and end.code == 1),
    "read proc of the host": sh(
        "cat /proc/HOST_PID/environ /proc/HOST_PID/cmdline", lambda end: end.stdout == "" and end.code == 1
    ),
    "read proc of its watchers": py(
        "found = [open(f'/proc/{os.getppid()}/{name}', 'rb').read() for name in ('mem', 'environ', 'maps')]"
    ),
    "descriptors of its watchers": py("os.listdir(f'/proc/{os.getppid()}/fd')"),
    "read the keys of the kernel": py("open('/proc/keys').read()"),
    "sysctl": py("open('/proc/sys/kernel/core_pattern', 'w')"),
    "sysrq": py("open('/proc/sysrq-trigger', 'w')"),
    "kernel log": py("open('/dev/kmsg')"),
    "memory device": py("open('/dev/mem', 'rb')"),
    "disk": py("open('/dev/vda', 'rb')"),
    "terminal": py("open('/dev/tty')", said("No such device", "FileNotFoundError", "PermissionError")),
    "write to the root": py("open('stolen', 'w')"),
    "change what is read-only": py("open('notes.txt', 'a')"),
    "remove what is read-only": py("os.remove('notes.txt')"),
    "mode of what is read-only": py("os.chmod('notes.txt', 0o777)"),
    "mode of what is open": py("os.fchmod(os.open('notes.txt', os.O_RDONLY), 0o777)"),
    "mode of a file of the host": py("os.chmod('HOST_FILE', 0o777)"),
    "owner of a file of the host": py("os.chown('HOST_FILE', -1, os.getgid())"),
    "times of a file of the host": py("os.utime('HOST_FILE', (1, 1))"),
    "attributes of a file of the host": py("os.setxattr('HOST_FILE', 'user.a', b'x')"),
    "watch a file of the host": py("call(254, libc.inotify_init(), b'HOST_FILE', 0xfff)"),
    "write to usr": py("open('/usr/bin/stolen', 'w')"),
    "write to dev": py("open('/dev/stolen', 'w')"),
    "link out": py("os.link('notes.txt', 'Data/linked')", said("PermissionError", "OSError: [Errno 18]")),
    "rename the root": py("os.rename('Data', 'Elsewhere')", said("PermissionError", "Read-only", "OSError")),
    "signal the host": py("os.kill(HOST_PID, signal.SIGTERM)"),
    "signal its watchers": sh("kill -9 $PPID; echo alive", alive),
    "end its watchers": sh("kill -TERM $PPID; kill -INT $PPID; kill -STOP $PPID; echo alive", alive),
    "signal all": sh("kill -9 -1; echo alive", lambda end: end.failure is None),
    "queue a signal": py("call(129, HOST_PID, 10, ctypes.create_string_buffer(128))"),
    "handle of the host": py("signal.pidfd_send_signal(os.pidfd_open(HOST_PID), signal.SIGTERM)"),
    "limit the host": py("import resource; resource.prlimit(HOST_PID, resource.RLIMIT_NOFILE, (1, 1))"),
    "slow the host": py("os.setpriority(os.PRIO_PROCESS, HOST_PID, 19)"),
    "slow the user": py("os.setpriority(os.PRIO_USER, 0, 19)"),
    "pin the host": py("os.sched_setaffinity(HOST_PID, [0])"),
    "unshare users": py("call(272, 0x10000000)"),
    "unshare mounts": py("call(272, 0x20000)"),
    "clone users": py("call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
    "clone3": py("call(435, ctypes.create_string_buffer(88), 88)"),
    "setns": py("call(308, os.open('.', os.O_RDONLY), 0)"),
    "unshare program": sh("unshare -Ur id", said("Operation not permitted", "failed")),
    "mount": py("call(165, b'none', b'/tmp', b'tmpfs', 0, 0)"),
    "umount": py("call(166, b'/proc', 2)"),
    "remount": py("call(165, b'none', b'/usr', 0, 32, 0)"),
    "open_tree": py("call(428, -100, b'/', 1)"),
    "fsopen": py("call(430, b'tmpfs', 0)"),
    "mount_setattr": py("call(442, -100, b'/', 0, ctypes.create_string_buffer(32), 32)"),
    "pivot_root": py("call(155, b'.', b'.')"),
    "chroot": py("os.chroot('/tmp')"),
    "by handle": py("call(304, -100, ctypes.create_string_buffer(64), 0)"),
    "newer calls": py("call(467, -100, b'/', 1, 0, 0)"),
    "ptrace": py("call(101, 16, os.getppid(), 0, 0)"),
    "ptrace me": py("call(101, 0, 0, 0, 0)"),
    "read the memory of another": py("call(310, os.getppid(), 0, 0, 0, 0, 0)"),
    "take a descriptor of another": py("call(438, os.pidfd_open(os.getppid()), 0, 0)"),
    "type into the terminal": py("import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    "select into the terminal": py("import fcntl; fcntl.ioctl(0, 0x541c, b'\\2')"),
    "keyring": py("call(250, 0, -3, 0)"),
    "add a key": py("call(248, b'user', b'a', b'b', 1, -3)"),
    "io_uring": py("call(425, 8, ctypes.create_string_buffer(120))"),
    "bpf": py("call(321, 0, 0, 0)"),
    "perf": py("call(298, 0, 0, -1, -1, 0)"),
    "userfaultfd": py("call(323, 0)"),
    "module": py("call(313, 0, b'', 0)"),
    "clock": py("call(227, 0, struct.pack('qq', 0, 0))"),
    "host name": py("socket.sethostname('stolen')"),
    "reboot": py("call(169, 0, 0, 0, 0)"),
    "personality": py("call(135, 0x0040000)"),
    "shared memory": py("call(29, 1, 4096, 0o1600)"),
    "message queue": py("call(240, b'/q', 0o102, 0o600, 0)"),
    "set-uid": py("open('Data/x', 'w'); os.chmod('Data/x', 0o4755)"),
    "set-gid": py("open('Data/y', 'w'); os.chmod('Data/y', 0o2755)"),
    "created set-uid": py("os.open('Data/z', os.O_CREAT | os.O_WRONLY, 0o4755)"),
    "made set-gid": py("os.mkdir('Data/d', 0o2755)"),
    "device": py("os.mknod('Data/dev', 0o020666, os.makedev(1, 3))"),
    "become root": py("os.setuid(0)", said("PermissionError", "Invalid argument")),
    "su": sh("su -c id; sudo id; mount /dev/vda /tmp", lambda end: "uid=0" not in end.stdout),
    "descriptors left open": py("print([n for n in range(3, 256) if libc.fcntl(n, 1) != -1])", said("[]")),
    "who it is": sh("id -u", lambda end: end.stdout.strip() in ("65534", "1234")),
    "fork bomb": sh("b() { b | b & }; b 2>/dev/null; sleep 0.3; echo over", lambda _: True, wall_s=3),
    "many processes": py(
        "count = 0\n"
        "try:\n"
        "    while os.fork(): count += 1\n"
        "    signal.pause()\n"
        "except BlockingIOError: print('stopped', count < 40)",
        said("stopped True"),
    ),
    "write": sh('cd; mkdir -p a/b; echo > "$TMPDIR/a/b/c"; pwd', lambda end: not end.stderr),
    "stay": sh(f"setsid sleep {STAY} >/dev/null 2>&1 & (trap '' TERM HUP; sleep {STAY}) & echo alive", alive),
    "more memory": py("x = bytearray(1 << 30)", said("MemoryError")),
    "more files": py("x = [open('/dev/null') for _ in range(200)]", said("Too many open files")),
    "a larger file": py(
        "open('Data/big', 'wb').truncate(1 << 30)", lambda end: end.code in (1, -25)
    ),
    "flood": sh("cat /dev/zero", lambda end: end.failure == "E307"),
    "flood of errors": sh("cat /dev/zero >&2", lambda end: end.failure == "E312", wall_s=1),
    "time": sh("trap '' TERM INT HUP; while :; do :; done", lambda end: end.failure == "E312", wall_s=0.5),
    "stopped": sh("kill -STOP $$", lambda end: end.failure == "E312", wall_s=0.5),
}  # fmt: skip
