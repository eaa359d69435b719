"""Shell steps: what a program gets, what it may take, and what a hostile one costs, on each kind of kernel.

Each profile is a process that gives something up and runs steps then: as it is, as an ordinary user, and
where a container's engine refuses namespaces, so that Landlock and seccomp are all there is.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from processor.sandbox import syscalls
from processor.sandbox.shell import OUTPUT_BYTES, ShellCells, ShellLimits
from processor.sandbox.shell_jail import lacking, step_filter
from tests.conftest import waited
from tests.sandbox.shell_attacks import ATTACKS, ORDINARY, PROFILES, STAY, attacked, ran, recipe_root, running
from tests.sandbox.test_jail import ALLOW, CONTAINER, EPERM, KILL, MACHINES, verdict

ENOSYS = 0x00050000 | 38


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with recipe_root() as folder:
        yield folder


@asynccontextmanager
async def cells() -> AsyncIterator[ShellCells]:
    started = await ShellCells.start()
    try:
        yield started
    finally:
        await started.close()


# What a step is for.


async def test_a_step_is_a_program_with_arguments_and_an_environment_of_its_own(
    root: Path, monkeypatch
) -> None:
    """The script of the guide counts lines; a program sees its own variables and none of the host's."""
    monkeypatch.setenv("NATS_PASSWORD", "hush")
    async with cells() as started:
        counted = await started.run(["./count-lines.sh"], {"INPUT": "Data/file.txt"}, root)
        assert (counted.code, counted.stdout) == (0, b'{"status":"ok","lines":3}\n'), counted
        seen = await started.run(["env"], {"A": "b=c"}, root)
        lines = dict(line.split("=", 1) for line in seen.stdout.decode().splitlines())
        assert lines == {
            "A": "b=c", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        }  # fmt: skip
        echoed = await started.run(["echo", "$HOME; id", "`id`"], {}, root)
        assert echoed.stdout == b"$HOME; id `id`\n"


async def test_a_step_says_how_its_program_ended(root: Path) -> None:
    """An exit code, the number of a signal, or why there was no program at all."""
    async with cells() as started:
        bad = await started.run(["sh", "-c", "echo out; echo err >&2; exit 7"], {}, root)
        assert (bad.code, bad.stdout, bad.stderr, bad.failure) == (7, b"out\n", b"err\n", None)
        killed = await started.run(["sh", "-c", "kill -9 $$"], {}, root)
        assert (killed.code, killed.failure) == (-9, None)
        for argv, why in [
            (["nope"], "nope: there is no such program"),
            (["./notes.txt"], "./notes.txt: it may not be executed (chmod +x)"),
            (["a\0b"], "the argument 'a\\x00b' has a character that no program gets"),
            ([], "the argv is empty"),
        ]:
            unstarted = await started.run(argv, {}, root)
            assert unstarted.failure is not None
            assert (unstarted.code, unstarted.failure.code) == (None, "E721")
            assert why in unstarted.failure.text


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"cwd": Path("..")}, "is not below the root"),
        ({"writes": [Path("../x")]}, "is not below the root"),
        ({"writes": [Path("/etc")]}, "is not below the root"),
        ({"writes": [Path(".")]}, "is not below the root"),
        ({"writes": [Path("none")]}, "'none' cannot be opened: No such file"),
        ({"writes": [Path("link")]}, "'link' cannot be opened: Too many levels of symbolic links"),
        ({"env": {"A=B": ""}}, "'A=B' is no name of a variable"),
        ({"env": {"": "x"}}, "'' is no name of a variable"),
        ({"env": {"A": "hush\0"}}, "the value of A has a character that no program gets"),
        ({"env": {"A": "\udc80"}}, "the value of A has a character that no program gets"),
        ({"root": Path("/")}, "cannot be the root of the file system"),
        ({"root": Path("/nowhere")}, "'/nowhere' cannot be opened"),
        ({"argv": ["true", "x" * (1 << 20)]}, "bytes long (limit 1048576)"),
    ],
)
async def test_what_cannot_be_started_says_why(root: Path, arguments: dict[str, Any], why: str) -> None:
    """Folders above the root, or behind a link, and what no program can be given: E721 names it."""
    link = root / "link"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc")
    given = {"argv": ["true"], "env": {}, "root": root, **arguments}
    async with cells() as started:
        outcome = await started.run(**given)
    assert outcome.failure is not None
    assert outcome.failure.code == "E721"
    assert why in outcome.failure.text
    assert "hush" not in outcome.failure.text


async def test_what_is_said_is_bounded(root: Path) -> None:
    """Too much on stdout ends the step, E307; of stderr the end is kept; time is up after wall_s, E312."""
    async with cells() as started:
        flood = await started.run(["yes"], {}, root)
        assert flood.failure is not None
        assert (flood.code, flood.failure.code, len(flood.stdout)) == (None, "E307", OUTPUT_BYTES)
        noisy = await started.run(["sh", "-c", "yes | head -c 5000000 >&2; echo last >&2"], {}, root)
        assert (noisy.code, len(noisy.stderr), noisy.stderr[-5:]) == (0, OUTPUT_BYTES, b"last\n")
        late = await started.run(["sleep", "60"], {}, root, limits=ShellLimits(wall_s=0.3))
        assert late.failure is not None
        assert (late.code, late.failure.code) == (None, "E312")


async def test_steps_run_beside_each_other(root: Path) -> None:
    """Ten steps that wait for a file which the last one writes all end."""
    (root / "Data" / "go").unlink(missing_ok=True)
    wait = ["sh", "-c", "while [ ! -e Data/go ]; do sleep 0.01; done; echo $0"]
    async with cells() as started:
        waiting = [asyncio.create_task(started.run([*wait, str(n)], {}, root)) for n in range(9)]
        await started.run(["touch", "Data/go"], {}, root, writes=[Path("Data")])
        said = [outcome.stdout for outcome in await asyncio.gather(*waiting)]
    assert said == [b"%d\n" % n for n in range(9)]


def processes_with(word: str) -> list[int]:
    """The processes of this machine that have a word in their arguments, the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes().split(b"\0", 1)[-1]:
                    found.append(int(entry.name))
    return sorted(found)


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("end", ["time", "cancel", "exit", "close"])
async def test_no_process_outlives_its_step(root: Path, end: str) -> None:
    """A process in a session of its own ends with its step, however that ends."""
    stamp = f"31{os.getpid()}7{len(end)}"
    left = f"setsid sleep {stamp} >/dev/null 2>&1 & "
    async with cells() as started:
        text = left + ("exit 3" if end == "exit" else f"touch Data/{stamp}; sleep 60")
        limits = ShellLimits(wall_s=0.5 if end == "time" else 60)
        run = started.run(["sh", "-c", text], {}, root, writes=[Path("Data")], limits=limits)
        task = asyncio.create_task(run)
        if end in ("cancel", "close"):
            await waited((root / "Data" / stamp).exists, "the step has begun")
            if end == "cancel":
                task.cancel()
            else:
                await started.close()
        await asyncio.wait([task])
        if end == "close":
            await waited(lambda: not processes_with(stamp), "its processes have ended")
        assert not processes_with(stamp)


@pytest.mark.parametrize("profile", ["as it is", "without namespaces", "ordinary user without namespaces"])
async def test_a_host_that_is_killed_takes_its_steps_along(root: Path, profile: str) -> None:
    """SIGKILL of the process that asked: every process of the step ends, in whichever session it is."""
    stamp = f"32{os.getpid()}{len(profile)}"
    (root / "Data" / stamp).unlink(missing_ok=True)
    text = f"setsid sleep {stamp} >/dev/null 2>&1 & touch Data/{stamp}; sleep 60"
    with running(PROFILES[profile], root, {"left": (["sh", "-c", text], {})}) as host:
        await waited((root / "Data" / stamp).exists, "the step has begun")
        assert processes_with(stamp)
        host.kill()
        await waited(lambda: not processes_with(stamp), "every process of the step has ended")


@pytest.mark.parametrize("profile", ["as it is", "without namespaces", "ordinary user without namespaces"])
async def test_a_watcher_that_is_killed_takes_its_step_along(root: Path, profile: str) -> None:
    """As when memory runs out: the step is lost, E314, and the next one runs."""
    stamp = f"34{os.getpid()}{len(profile)}"
    (root / "Data" / stamp).unlink(missing_ok=True)
    text = f"setsid sleep {stamp} >/dev/null 2>&1 & touch Data/{stamp}; sleep 60"
    steps = {"left": (["sh", "-c", text], {}), "next": (["true"], {})}
    with running(PROFILES[profile], root, steps) as host:
        await waited((root / "Data" / stamp).exists, "the step has begun")
        program = next(
            pid for pid in processes_with(stamp) if pid != host.pid and b"python" not in command_of(pid)
        )
        os.kill(parent_of(parent_of(program)), signal.SIGKILL)
        stdout, _ = await asyncio.to_thread(host.communicate, timeout=60)
    ends = json.loads(stdout)["ends"]
    assert (ends["left"][3], ends["next"][0]) == ("E314", 0)
    assert not processes_with(stamp)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's steps are another user than it is")
async def test_files_of_roots_recipe_are_the_steps_own(tmp_path: Path) -> None:
    """Steps of root's read and write what only the owner of the root may, and write it as the owner."""
    (tmp_path / "Data").mkdir(mode=0o700)
    (tmp_path / "secret.txt").write_text("read me")
    (tmp_path / "secret.txt").chmod(0o600)
    tmp_path.parent.chmod(0o700)
    async with cells() as started:
        text = "cat secret.txt; echo written > Data/new; echo more >> secret.txt"
        done = await started.run(["sh", "-c", text], {}, tmp_path, writes=[Path("Data")])
    assert done.stdout == b"read me"
    assert b"Read-only file system" in done.stderr
    made = (tmp_path / "Data" / "new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)
    assert (tmp_path / "Data" / "new").read_text() == "written\n"


# What no step can do, on each kind of kernel: shell_attacks.py has the attacks.

needs_numbers = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the attacks are x86_64's")


@needs_numbers
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_cell_holds(profile: str, attack: str) -> None:
    """Under each profile, every attack ends as one that is held does."""
    end = attacked(profile).ends[attack]
    assert ATTACKS[attack].held(end), end


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_of_a_step_is_left(profile: str) -> None:
    """A program that ends leaves no process behind, in a session of its own or deaf to signals."""
    assert attacked(profile).ends["stay"].code == 0
    assert not processes_with(STAY)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_step_has_a_place_to_write_that_goes_with_it(profile: str) -> None:
    """`/tmp` of its own, or where there is none a folder that is removed with all that it holds."""
    folder = attacked(profile).ends["write"].stdout.strip()
    if "without" in profile:
        assert folder.startswith(tempfile.gettempdir())
        assert not Path(folder).exists()
    else:
        assert folder == "/tmp"


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_kernel_lacks_is_said(profile: str) -> None:
    """Every layer is on, or named with the reason; what is left is enough for a step."""
    layers = attacked(profile).layers
    off = {name: state for name, state in layers.items() if not state.startswith("on")}
    if "without" in profile:
        assert off == {
            "namespaces": "off(EPERM: Operation not permitted)",
            "own_root": "off(needs namespaces)",
            "own_keyring": "off(EPERM: Operation not permitted)",
        }
        assert layers["own_signals"].startswith("on")
    else:
        assert off == {}
    assert not lacking(layers)


NO_LANDLOCK = CONTAINER.replace(
    "refusing(kernel", "refusing(444, 445, 446, code=errno.ENOSYS)\nrefusing(kernel", 1
)


@pytest.mark.parametrize("user", ["", ORDINARY], ids=["as it is", "ordinary user"])
def test_without_namespaces_and_landlock_there_are_no_steps(root: Path, user: str) -> None:
    """Where neither is there, cells do not start: E715 names what is missing."""
    said = ran(user + NO_LANDLOCK, root, {})
    assert said["refused"].startswith("E715 shell steps have no jail here: namespaces is off(EPERM")
    assert "own_signals is off(ENOSYS" in said["refused"]
    assert "landlock is off(ENOSYS" in said["refused"]


LAYERS = dict.fromkeys(("seccomp", "no_new_privs", "no_capabilities", "rlimits"), "on")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"namespaces": "on(user)", "own_root": "on", "landlock": "off(ENOSYS)"}, ""),
        ({"namespaces": "on(user)", "own_root": "off(ENOSYS)", "landlock": "on(6)"}, ""),
        ({"own_signals": "on(6)", "landlock": "on(6)"}, ""),
        ({"own_signals": "off(ENOSYS)", "landlock": "on(5)"}, "namespaces is not there"),
        ({"namespaces": "on(user)", "own_root": "off(EPERM)", "landlock": "on(5)"}, "landlock is on(5)"),
        ({"namespaces": "on", "own_root": "on", "seccomp": "off(ENOSYS)"}, "seccomp is off(ENOSYS)"),
        ({"namespaces": "on", "own_root": "on", "rlimits": "off"}, "rlimits is off"),
    ],
)
def test_what_a_jail_needs(more: dict[str, str], words: str) -> None:
    """Files and processes are each kept by namespaces or by Landlock 6; the rest has no substitute."""
    why = lacking({**LAYERS, **more})
    assert words in why
    assert bool(words) == bool(why)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (2,), EPERM),
        ("socketpair", (1, 1 | 0o2000000), ALLOW),
        ("socketpair", (1, 2), EPERM),
        ("socketpair", (2, 1), EPERM),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x10000011,), EPERM),
        ("clone3", (), ENOSYS),
        ("openat2", (), ENOSYS),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0xFFFFFFFF00005412), EPERM),
        ("ioctl", (0, 0x541C), EPERM),
        ("fchmodat", (0, 0, 0o755), ALLOW),
        ("fchmodat", (0, 0, 0o4755), EPERM),
        ("fchmod", (0, 0o2755), EPERM),
        ("openat", (0, 0, os.O_RDONLY, 0o4000), ALLOW),
        ("openat", (0, 0, os.O_CREAT, 0o4000), EPERM),
        ("openat", (0, 0, os.O_TMPFILE, 0o4000), EPERM),
        ("openat", (0, 0, os.O_CREAT, 0o644), ALLOW),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), EPERM),
        ("setpriority", (0, 0), ALLOW),
        ("setpriority", (0, 7), EPERM),
        ("setpriority", (2, 0), EPERM),
        ("ioprio_set", (1, 0), ALLOW),
        ("ioprio_set", (3, 0), EPERM),
        ("execve", (), ALLOW),
        ("kill", (1, 9), ALLOW),
        ("keyctl", (), EPERM),
    ],
)
def test_the_filter_of_a_step_decides(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    """The filter's verdict per call and argument, on each machine that it is built for."""
    number = syscalls.SYSCALLS[machine][name]
    assert verdict(step_filter(machine, has_root=True), MACHINES[machine], number, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("fchmod", (3, 0o644), EPERM),
        ("fchownat", (), EPERM),
        ("fsetxattr", (), EPERM),
        ("inotify_add_watch", (), EPERM),
        ("utimensat", (3, 0), ALLOW),
        ("utimensat", (3, 0x1000), EPERM),
        ("utimensat", (3, 1 << 32), EPERM),
        ("openat", (0, 0, os.O_CREAT, 0o644), ALLOW),
    ],
)
def test_the_filter_is_stricter_without_a_root(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    """What Landlock does not see is refused there: modes, owners, times by a path, attributes and watches."""
    number = syscalls.SYSCALLS[machine][name]
    program = step_filter(machine, has_root=False)
    assert verdict(program, MACHINES[machine], number, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_of_a_step_knows_its_machine(machine: str) -> None:
    """Another machine's calls are fatal, and calls that are newer than the filter are not there."""
    program = step_filter(machine, has_root=True)
    assert verdict(program, 0x40000003, 1) == KILL
    assert verdict(program, MACHINES[machine], 452) == ENOSYS
    assert verdict(program, MACHINES[machine], 9999) == ENOSYS
    if machine == "x86_64":
        assert verdict(program, MACHINES[machine], 0x40000001) == KILL
