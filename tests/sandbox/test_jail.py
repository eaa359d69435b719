"""The OS layer by itself: plain Python in a sealed process, the filter as a program, and the report."""

from __future__ import annotations

import errno
import os
import re
import signal
import struct
from pathlib import Path

import pytest

from processor.sandbox import jail

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, EBADF = (0x00050000 | number for number in (errno.EPERM, errno.EBADF))
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
GUEST_PID = 7


def verdict(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would answer: classic BPF, as far as the filter uses it."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, arch, 0, *words)
    value, at = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x06:
            return operand
        else:
            held = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += if_true if held else if_false


# What a sealed process cannot do, whatever language it is programmed in.


@pytest.mark.parametrize(
    "attack",
    [
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "threading.Thread(target=print).start()",
        "socket.socket()",
        "socket.socketpair()",
        "os.kill(os.getpid(), 9)",
        "os.kill(1, 0)",
        "os.memfd_create('x')",
        "os.pidfd_open(1)",
        "os.setuid(0)",
        "os.chroot('/')",
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)",
        "ctypes.CDLL(None).unshare(0x10000000)",
        "ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
        "ctypes.CDLL(None).mprotect(ctypes.c_void_p(ctypes.addressof(page) & ~4095), 4096, 7)",
    ],
)
def test_an_escape_is_fatal(jailed, attack: str) -> None:
    """What only an attack does kills the process by SIGSYS before anything happens."""
    outcome = jailed(f"page = ctypes.create_string_buffer(8192)\nresult = repr({attack})")
    assert (outcome.exit, outcome.result) == (-signal.SIGSYS, None)


@pytest.mark.parametrize(
    "attack",
    [
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('/tmp/x', 'w')",
        "os.listdir('/')",
        "os.mkdir('/x')",
        "os.getcwd()",
        "os.dup(3)",
        "os.close(3)",
        "os.pipe()",
        "os.sendfile(3, 3, 0, 1)",
        "resource.prlimit(1, resource.RLIMIT_CORE)",
        "signal.signal(signal.SIGALRM, print)",
        "os.read(4, 1)",
        "os.write(1, b'x')",
    ],
)
def test_a_stray_call_is_refused(jailed, attack: str) -> None:
    """What ordinary code may try by mistake is an OSError that it can read, and has no effect."""
    outcome = jailed(f"result = repr({attack})")
    assert outcome.exit == 0
    assert re.match("(PermissionError|OSError)", outcome.error), outcome


def test_it_knows_nothing_of_the_machine(jailed) -> None:
    """No environment, no privileges, no other user's identity, and no descriptor but the channel."""
    outcome = jailed(
        "result = [dict(os.environ), os.getuid() == 0, resource.getrlimit(resource.RLIMIT_NOFILE)]"
    )
    environment, is_root, files = outcome.result
    assert set(environment) <= {"LC_CTYPE"}  # the interpreter sets this one by itself
    assert not is_root
    assert files == [4, 4]


def test_its_limits_only_go_down(jailed) -> None:
    """A sealed process cannot raise a limit, nor its memory above the reserve."""
    outcome = jailed("resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))")
    assert re.match("(PermissionError|ValueError)", outcome.error)
    outcome = jailed("bytearray(400 << 20)")
    assert outcome.error == "MemoryError: "


def test_an_abort_is_a_crash_and_no_attack(jailed) -> None:
    """A C library that aborts itself dies of SIGABRT; the filter lets that one signal through."""
    assert jailed("os.abort()").exit == -signal.SIGABRT


def test_ordinary_work_goes_on(jailed) -> None:
    """Computing, allocating, sleeping, telling the time and random numbers need nothing that was taken."""
    outcome = jailed(
        """
        time.sleep(0.001)
        result = [len(os.urandom(8)), time.time() > 0, len(bytearray(8 << 20)), sum(range(100000))]
        """
    )
    assert outcome.result == [8, True, 8 << 20, 4999950000]


# Where layers are refused.

# What the default profiles of container engines answer to a process without extra capabilities.
CONTAINER = """
import errno, struct
def refusing(*names, code=errno.EPERM):
    numbers = jail.SYSCALLS[os.uname().machine]
    one = lambda c, k, t=0, f=0: struct.pack("=HBBI", c, t, f, k)
    rules = [one(0x15, numbers[name], 0, 1) + one(0x06, 0x00050000 | code) for name in names]
    jail.load_filter(one(0x20, 0) + b"".join(rules) + one(0x06, 0x7FFF0000))
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
refusing("unshare", "mount", "umount2", "pivot_root", "setns", "bpf", "perf_event_open", "keyctl")
"""


def test_a_refused_namespace_leaves_the_rest(jailed) -> None:
    """Under a container's default profile the jail is `confined`, says why, and holds the same attacks."""
    outcome = jailed("result = os.fork()", CONTAINER)
    assert outcome.exit == -signal.SIGSYS
    assert outcome.layers["namespaces"] == "off(EPERM: Operation not permitted)"
    assert outcome.layers["empty_root"] == "off(needs namespaces)"
    assert jail.JailReport.of(outcome.layers).level == "confined"
    outcome = jailed("open('/etc/passwd')", CONTAINER)
    assert outcome.error.startswith("PermissionError")


def test_no_layer_is_missed_when_it_is_refused(jailed) -> None:
    """Without Landlock and seccomp the process still runs, and the report admits the level `process`."""
    profile = (
        CONTAINER + 'refusing("landlock_create_ruleset", code=errno.ENOSYS)\nrefusing("seccomp", "prctl")\n'
    )
    outcome = jailed("result = 1", profile)
    assert outcome.result == 1
    assert outcome.layers["landlock"] == "off(ENOSYS: Function not implemented)"
    assert outcome.layers["seccomp"].startswith("off(EPERM")
    assert jail.JailReport.of(outcome.layers).level == "process"


# The report.


@pytest.mark.parametrize(
    "missing, level",
    [
        ((), "isolated"),
        (("landlock", "write_xor_execute", "uid_drop"), "isolated"),
        (("namespaces", "empty_root"), "confined"),
        (("empty_root",), "confined"),
        (("seccomp",), "process"),
        (("no_new_privs",), "process"),
        (("rlimits",), "process"),
    ],
)
def test_the_level_is_what_the_layers_add_up_to(missing: tuple[str, ...], level: str) -> None:
    """Confined needs the filter, no_new_privs and limits; isolated needs namespaces and an empty root too."""
    names = (
        "namespaces", "empty_root", "uid_drop", "no_new_privs", "rlimits", "write_xor_execute", "landlock",
        "seccomp",
    )  # fmt: skip
    layers = {name: "off(EPERM: no)" if name in missing else "on" for name in names}
    report = jail.JailReport.of(layers)
    assert report.level == level
    assert str(report).startswith(f"level={level} namespaces=")


# The filter as a program, for both machines.


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("read", (3,), ALLOW),
        ("read", (0,), EBADF),
        ("write", (3,), ALLOW),
        ("write", (4,), EBADF),
        ("write", (3 | 1 << 32,), ALLOW),  # the kernel too looks at the low word of a descriptor
        ("mmap", (0, 4096, 3), ALLOW),
        ("mmap", (0, 4096, 5), KILL),
        ("mprotect", (0, 4096, 1), ALLOW),
        ("mprotect", (0, 4096, 4), KILL),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (GUEST_PID,), EPERM),
        ("tgkill", (GUEST_PID, GUEST_PID, signal.SIGABRT), ALLOW),
        ("tgkill", (GUEST_PID, GUEST_PID, signal.SIGKILL), KILL),
        ("tgkill", (1, 1, signal.SIGABRT), KILL),
        ("brk", (), ALLOW),
        ("exit_group", (), ALLOW),
        ("clone", (), KILL),
        ("execve", (), KILL),
        ("socket", (), KILL),
        ("io_uring_setup", (), KILL),
    ],
)
def test_the_filter_decides(machine: str, name: str, arguments: tuple[int, ...], expected: int) -> None:
    """The filter's verdict per call and argument, on each machine that it is built for."""
    program = jail.guest_filter(machine, GUEST_PID)
    number = jail.SYSCALLS[machine][name]
    assert verdict(program, MACHINES[machine], number, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_refuses_what_it_does_not_know(machine: str) -> None:
    """A call that nobody listed is EPERM; another machine's call, or one by x32, is fatal."""
    program = jail.guest_filter(machine, GUEST_PID)
    assert verdict(program, MACHINES[machine], 4095) == EPERM
    assert verdict(program, 0x40000003, jail.SYSCALLS[machine]["read"], 3) == KILL
    if machine == "x86_64":
        assert verdict(program, MACHINES[machine], 0x40000000 | jail.SYSCALLS[machine]["read"], 3) == KILL


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    """Every system call number equals the one in the kernel's headers, where these are installed."""
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    for name, number in jail.SYSCALLS[machine].items():
        assert int(defined[name]) == number, name


def test_both_machines_have_the_same_calls() -> None:
    """aarch64 lacks only the calls that its kernel never had."""
    assert jail.SYSCALLS["x86_64"].keys() - jail.SYSCALLS["aarch64"].keys() == {"fork", "vfork", "time"}
    assert jail.SYSCALLS["aarch64"].keys() < jail.SYSCALLS["x86_64"].keys()


def test_the_test_runs_where_the_jail_can_hold(jailed) -> None:
    """On the machine of this test at least the level `confined` is reached; otherwise nothing here counts."""
    report = jail.JailReport.of(jailed("result = 1").layers)
    assert report.level in ("confined", "isolated"), report
    if os.geteuid() == 0:
        assert report.layers["uid_drop"].startswith("on"), report
