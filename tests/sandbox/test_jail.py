"""The OS layer by itself: plain Python in a sealed process, the filter as a program, and the report."""

from __future__ import annotations

import errno
import os
import re
import signal
import struct
from pathlib import Path

import pytest

from processor.sandbox import jail, syscalls
from tests.sandbox.attacks import SUCCESS, Attack, attacked, attacks

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, EBADF = (0x00050000 | number for number in (errno.EPERM, errno.EBADF))
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
GUEST_PID = 7


def verdict(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would answer: classic BPF, as far as the filter uses it."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, arch, 0, *(word % 2**64 for word in words))
    value, at = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        elif code == 0x05:
            at += operand
        elif code == 0x06:
            return operand
        else:
            held = {0x15: value == operand, 0x25: value > operand, 0x35: value >= operand,
                    0x45: bool(value & operand)}[code]  # fmt: skip
            at += if_true if held else if_false


# What a sealed process cannot do, whatever language it is programmed in: attacks.txt has the attacks.

needs_numbers = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the attacks are x86_64's")


@needs_numbers
@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack.name)
def test_the_jail_holds(attack: Attack) -> None:
    """What only an attack does kills the process by SIGSYS; what may be a mistake is an exception."""
    end = attacked().ends[attack.name]
    assert not end.startswith(SUCCESS)
    assert (end == "killed") == (attack.end == "killed"), end


# An ordinary user; where the tests are one already, nothing changes.
ORDINARY = """
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(1234, 1234, 1234)
    os.setresuid(1234, 1234, 1234)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""

# What the default profiles of container engines do: their list of refused calls, and root's few capabilities.
CONTAINER = """
import errno, struct
from processor.sandbox import syscalls
def refusing(*numbers, code=errno.EPERM):
    one = lambda c, k, t=0, f=0: struct.pack("=HBBI", c, t, f, k)
    rules = [one(0x15, number, 0, 1) + one(0x06, 0x00050000 | code) for number in numbers]
    syscalls.load_filter(one(0x20, 0) + b"".join(rules) + one(0x06, 0x7FFF0000))
def refusing_flags(number, mask):
    one = lambda c, k, t=0, f=0: struct.pack("=HBBI", c, t, f, k)
    steps = [one(0x15, number, 0, 3), one(0x20, 16), one(0x45, mask, 0, 1), one(0x06, 0x00050001)]
    syscalls.load_filter(one(0x20, 0) + b"".join(steps) + one(0x06, 0x7FFF0000))
if os.getuid():
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
kernel = syscalls.SYSCALLS[os.uname().machine]
refusing(*(kernel[name] for name in kernel if name in (
    "unshare", "mount", "umount2", "pivot_root", "setns", "bpf", "perf_event_open", "keyctl", "add_key",
    "request_key", "userfaultfd", "io_uring_setup", "init_module", "finit_module", "kexec_load",
    "process_vm_readv", "process_vm_writev")))
refusing(*range(428, 434), 442)  # the newer calls for mounts, the same numbers on every machine
refusing(kernel["clone3"], code=errno.ENOSYS)
refusing_flags(kernel["clone"], 0x7E020000)
if os.getuid() == 0:
    kept = 0xA80425FB
    for number in range(41):
        if not kept >> number & 1:
            ctypes.CDLL(None).prctl(24, number, 0, 0, 0)
    syscalls.syscall("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0))
"""

REFUSED = "def refused(*_):\n    raise OSError(1, 'Operation not permitted')\n"
LAYERS_OFF = {
    "namespaces": REFUSED + "jail.own_namespaces = refused",
    "empty_root": REFUSED + "jail._empty_root = refused",
    "uid_drop": REFUSED + "jail.drop_user = refused",
    "no_capabilities": REFUSED + "jail.drop_capabilities = refused",
    "write_xor_execute": REFUSED
    + "real = jail.prctl\njail.prctl = lambda o, *a: (refused if o == 65 else real)(o, *a)",
    "landlock": REFUSED + "jail._deny_by_landlock = refused",
    "seccomp": REFUSED + "jail._filter_system_calls = refused",
}


@needs_numbers
@pytest.mark.parametrize("user", ["", ORDINARY], ids=["as it is", "ordinary user"])
@pytest.mark.parametrize("layer", LAYERS_OFF)
def test_no_layer_is_needed_by_the_others(layer: str, user: str) -> None:
    """With one layer refused the rest still hold: all attacks, or without the filter those marked so."""
    names = [attack.name for attack in attacks() if layer != "seccomp" or attack.is_held_without_filter]
    outcome = attacked(user + LAYERS_OFF[layer], *names)
    assert outcome.succeeded() == set()
    if layer == "uid_drop" and (user or os.getuid()):
        assert outcome.layers[layer].startswith("on(already uid")
    else:
        assert outcome.layers[layer] == "off(EPERM: Operation not permitted)"


@needs_numbers
@pytest.mark.parametrize("user", ["", ORDINARY], ids=["as it is", "ordinary user"])
def test_a_container_without_namespaces_is_a_jail(user: str) -> None:
    """Under a container's default profile, root or not, every attack is held, at the level `confined`."""
    outcome = attacked(user + CONTAINER)
    assert outcome.succeeded() == set()
    assert outcome.layers["namespaces"] == "off(EPERM: Operation not permitted)"
    assert outcome.layers["empty_root"] == "off(needs namespaces)"
    assert outcome.layers["uid_drop"].startswith("on")
    assert jail.JailReport.of(outcome.layers).level == "confined"


@needs_numbers
def test_an_ordinary_user_has_the_whole_jail() -> None:
    """Nothing in the jail needs a privilege."""
    outcome = attacked(ORDINARY)
    assert outcome.succeeded() == set()
    assert {name: state for name, state in outcome.layers.items() if not state.startswith("on")} == {}


def test_it_knows_nothing_of_the_machine(jailed) -> None:
    """No environment, no privileges, no other user's identity, and no descriptor but the channel."""
    outcome = jailed(
        "result = [dict(os.environ), os.getuid() == 0, resource.getrlimit(resource.RLIMIT_NOFILE)]"
    )
    environment, is_root, files = outcome.result
    assert set(environment) <= {"LC_CTYPE"}  # the interpreter sets this one by itself
    assert not is_root
    assert files == [0, 0]


def test_it_has_no_key_of_the_host(jailed) -> None:
    """What lies in the host's session keyring is not in a guest's, even if the filter let it look."""
    keyctl, add_key = (syscalls.SYSCALLS[os.uname().machine][name] for name in ("keyctl", "add_key"))
    profile = f"""
    kernel = ctypes.CDLL(None, use_errno=True).syscall
    assert kernel({keyctl}, 1, None) > 0  # a session of its own, for the test leaves nothing behind
    assert kernel({add_key}, b"user", b"host", b"secret", 6, -3) > 0
    assert kernel({keyctl}, 10, -3, b"user", b"host", 0) > 0
    jail._filter_system_calls = lambda: None
    """
    outcome = jailed(f"result = ctypes.CDLL(None).syscall({keyctl}, 10, -3, b'user', b'host', 0)", profile)
    assert outcome.layers["own_keyring"] == "on"
    assert outcome.result == -1


def test_its_memory_is_nobodys_to_read(jailed) -> None:
    """It is not dumpable: no core file, no tracer, and its files in /proc are root's."""
    outcome = jailed(
        "result = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)", "jail._filter_system_calls = lambda: None"
    )
    assert outcome.result == 0


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
        CONTAINER
        + "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"
        + 'refusing(kernel["landlock_create_ruleset"], code=errno.ENOSYS)\n'
        + 'refusing(kernel["seccomp"], kernel["prctl"])\n'
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
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 5, 0x22), KILL),
        ("mmap", (0, 4096, 3, 0x02, 3), EPERM),
        ("madvise", (0, 4096, 4), ALLOW),
        ("madvise", (0, 4096, 21), EPERM),
        ("clock_gettime", (0,), ALLOW),
        ("clock_gettime", (11,), ALLOW),
        ("clock_gettime", (~GUEST_PID << 3 | 2,), EPERM),
        ("clock_nanosleep", (~GUEST_PID << 3 | 2,), EPERM),
        ("futex", (0, 0), ALLOW),
        ("futex", (0, 128 | 256 | 9), ALLOW),
        ("futex", (0, 128 | 6), EPERM),
        ("pselect6", (4,), ALLOW),
        ("pselect6", (5,), EPERM),
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
    number = syscalls.SYSCALLS[machine][name]
    assert verdict(program, MACHINES[machine], number, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_refuses_what_it_does_not_know(machine: str) -> None:
    """A call that nobody listed is EPERM; another machine's call, or one by x32, is fatal."""
    program = jail.guest_filter(machine, GUEST_PID)
    assert verdict(program, MACHINES[machine], 4095) == EPERM
    assert verdict(program, 0x40000003, syscalls.SYSCALLS[machine]["read"], 3) == KILL
    if machine == "x86_64":
        assert verdict(program, MACHINES[machine], 0x40000000 | syscalls.SYSCALLS[machine]["read"], 3) == KILL


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
    for name, number in syscalls.SYSCALLS[machine].items():
        assert int(defined[name]) == number, name


def test_both_machines_have_the_same_calls() -> None:
    """aarch64 lacks only the calls that its kernel never had."""
    missing = syscalls.SYSCALLS["x86_64"].keys() - syscalls.SYSCALLS["aarch64"].keys()
    assert missing == {
        "fork", "vfork", "time", "select", "open", "creat", "chmod", "mkdir", "mknod", "uselib", "iopl",
        "ioperm", "modify_ldt", "chown", "lchown", "utime", "utimes", "futimesat", "inotify_init",
    }  # fmt: skip
    assert syscalls.SYSCALLS["aarch64"].keys() < syscalls.SYSCALLS["x86_64"].keys()


def test_the_test_runs_where_the_jail_can_hold(jailed) -> None:
    """On the machine of this test at least the level `confined` is reached; otherwise nothing here counts."""
    report = jail.JailReport.of(jailed("result = 1").layers)
    assert report.level in ("confined", "isolated"), report
    if os.geteuid() == 0:
        assert report.layers["uid_drop"].startswith("on"), report
