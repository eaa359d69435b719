"""What a path can lead to below a root: a regular file in it, and nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.capability import roots as roots_module
from processor.capability.roots import LIST_MAX, Roots, target_of
from processor.errors import ProcessorError
from processor.reach import FileRoot

SECRET = b"outside of the root"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory beside a file that nobody may reach."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "root" / "in" / "a.csv").write_bytes(b"1,2")
    return tmp_path / "root"


@pytest.fixture
def roots(root: Path) -> Iterator[Roots]:
    opened = Roots([FileRoot("data", str(root), True, 100), FileRoot("ro", str(root), False, 100)])
    yield opened
    opened.close()


def do(roots: Roots, op: str, path: str, body: bytes = b"") -> object:
    return asyncio.run(roots.run(op, target_of(path), body))


def refusal(roots: Roots, op: str, path: str, body: bytes = b"") -> str:
    with pytest.raises(ProcessorError) as caught:
        do(roots, op, path, body)
    return caught.value.code


def test_a_file_is_written_read_listed_and_deleted(roots: Roots, root: Path) -> None:
    """What is written is there as a whole, and nothing is left beside it."""
    do(roots, "write", "data:/in/b.csv", b"3,4")
    do(roots, "write", "data:/in/b.csv", b"5,6")
    assert do(roots, "read", "data:/in/b.csv") == b"5,6"
    (root / "in" / "deep").mkdir()
    (root / "in" / "link").symlink_to("a.csv")
    assert do(roots, "list", "data:/in") == ["a.csv", "b.csv", "deep/"]
    assert do(roots, "list", "data:/") == ["in/"]
    do(roots, "delete", "data:/in/b.csv")
    assert sorted(os.listdir(root / "in")) == ["a.csv", "deep", "link"]


@pytest.mark.parametrize(
    "path",
    [
        "data:/../secret", "data:/in/../../secret", "data:/./in/a.csv", "data:/in/..", "/etc/passwd",
        "in/a.csv", "data:in/a.csv", "data", ":/in/a.csv", "da ta:/in/a.csv", "data:/in/a.csv\0",
        "data:/in/\0b/a.csv",
        "data:/\ud800", "",
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused_before_anything_is_opened(path: str) -> None:
    """E337; a NUL would end the path for the kernel, and a policy would have been asked for another one."""
    with pytest.raises(ProcessorError) as caught:
        target_of(path)
    assert caught.value.code == "E337"


def test_a_path_has_one_spelling() -> None:
    """A policy is asked for the very path that is opened."""
    assert target_of("data:///in//a.csv/") == "data:/in/a.csv"
    assert target_of("data:/") == "data:/"


@pytest.mark.parametrize("op", ["read", "write", "list", "delete"])
def test_links_are_not_followed(roots: Roots, root: Path, op: str) -> None:
    """Neither at the end of a path nor on its way, wherever they lead."""
    (root / "away").symlink_to(root.parent)
    (root / "inside").symlink_to("in")
    (root / "last").symlink_to(root.parent / "secret")
    (root / "proc").symlink_to("/proc/self/root")
    for path in ("data:/away/secret", "data:/inside/a.csv", f"data:/proc{root.parent}/secret"):
        assert refusal(roots, op, path, b"x") == "E337"
    assert refusal(roots, op, "data:/last", b"x") in ("E337", "E339")
    assert (root.parent / "secret").read_bytes() == SECRET
    assert (root / "last").is_symlink()


def test_what_is_no_regular_file_is_refused(roots: Roots, root: Path) -> None:
    """A FIFO is not waited for, a device not read, a socket not taken for a file."""
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(root / "socket"))
    for name in ("fifo", "socket", "in"):
        assert refusal(roots, "write", f"data:/{name}", b"x") == "E339"
        assert refusal(roots, "delete", f"data:/{name}") == "E339"
        assert refusal(roots, "read", f"data:/{name}") == "E339"
    assert refusal(roots, "write", "data:/", b"x") == "E339"
    devices = Roots([FileRoot("dev", "/dev", True, 100)])
    try:
        assert refusal(devices, "read", "dev:/zero") == "E339"
    finally:
        devices.close()


def test_another_mount_is_not_entered() -> None:
    """What is mounted below a root is not of the root."""
    everything = Roots([FileRoot("all", "/", False, 1 << 20)])
    try:
        assert refusal(everything, "read", "all:/proc/version") == "E337"
    finally:
        everything.close()


def test_what_is_not_there_is_said_so(roots: Roots) -> None:
    """E335; no directory is made on the way."""
    for op in ("read", "list", "delete"):
        assert refusal(roots, op, "data:/nothing") == "E335"
    assert refusal(roots, "write", "data:/nothing/a.csv", b"x") == "E335"
    assert refusal(roots, "read", "data:/in/a.csv/b") == "E335"
    assert refusal(roots, "read", "data:/" + "n" * 300) == "E337"


def test_a_root_bounds_what_is_read_and_written(
    roots: Roots, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E338 beyond its bytes, or for too many names; what was there stays."""
    (root / "in" / "large").write_bytes(b"x" * 101)
    assert refusal(roots, "read", "data:/in/large") == "E338"
    assert refusal(roots, "write", "data:/in/a.csv", b"x" * 101) == "E338"
    assert (root / "in" / "a.csv").read_bytes() == b"1,2"
    assert LIST_MAX == 10_000
    monkeypatch.setattr(roots_module, "LIST_MAX", 1)
    assert refusal(roots, "list", "data:/in") == "E338"


def test_the_configuration_decides_too(roots: Roots, root: Path) -> None:
    """E330 for a root that the route does not have, and for a change below one that is to be read."""
    assert refusal(roots, "read", "other:/in/a.csv") == "E330"
    for op in ("write", "delete"):
        assert refusal(roots, op, "ro:/in/a.csv", b"x") == "E330"
    assert do(roots, "read", "ro:/in/a.csv") == b"1,2"


def test_a_root_is_what_it_was_when_it_was_opened(roots: Roots, root: Path) -> None:
    """Whoever puts another directory in its place changes nothing for those who have it open."""
    roots.open()
    root.rename(root.parent / "moved")
    root.symlink_to("/etc")
    assert do(roots, "read", "data:/in/a.csv") == b"1,2"


def test_a_root_is_closed_when_nothing_is_done_below_it(
    roots: Roots, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that begins late finds the directory that it was to read, and not what got its number."""
    begun, closed = threading.Event(), threading.Event()

    def late(*of: object) -> bytes:
        begun.set()
        assert closed.wait(10)
        return read(*of)  # type: ignore[arg-type]

    read = roots_module._read
    monkeypatch.setattr(roots_module, "_read", late)

    async def close_meanwhile() -> object:
        reading = asyncio.create_task(roots.run("read", "data:/in/a.csv", b""))
        await asyncio.to_thread(begun.wait, 10)
        roots.close()
        others = [os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY) for _ in range(20)]
        closed.set()
        try:
            return await reading
        finally:
            for other in others:
                os.close(other)

    assert asyncio.run(close_meanwhile()) == b"1,2"


def test_a_root_that_is_gone_keeps_the_route_from_starting(tmp_path: Path) -> None:
    """It is named, with the key that has its path."""
    with pytest.raises(ProcessorError, match=r"files\.data\.path E339 .*gone: No such file or directory"):
        Roots([FileRoot("data", str(tmp_path / "gone"))]).open()


def test_a_directory_that_is_swapped_for_a_link_leads_nowhere(roots: Roots, root: Path) -> None:
    """While another process swaps a directory and a link 1,000 times, nothing outside is read or written."""
    (root / "way").mkdir()
    (root / "way" / "secret").write_bytes(b"inside")
    (root / "link").symlink_to(root.parent)
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            for one, other in (("way", "kept"), ("link", "way"), ("way", "link"), ("kept", "way")):
                os.rename(root / one, root / other)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen: set[object] = set()

    async def race() -> None:
        for number in range(1000):
            try:
                if number % 4:
                    seen.add(await roots.run("read", "data:/way/secret", b""))
                else:
                    await roots.run("write", "data:/way/secret", b"inside")
            except ProcessorError as err:
                seen.add(err.code)

    try:
        asyncio.run(race())
    finally:
        is_over.set()
        swapping.join()
    assert seen <= {b"inside", "E335", "E337", "E339"}
    assert len(seen) > 1, "nobody swapped anything"
    assert (root.parent / "secret").read_bytes() == SECRET


def test_a_write_that_fails_leaves_nothing(roots: Roots, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is E339: the old file is there, and no part of a new one."""

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    assert refusal(roots, "write", "data:/in/a.csv", b"x") == "E339"
    assert os.listdir(root / "in") == ["a.csv"]
    assert (root / "in" / "a.csv").read_bytes() == b"1,2"
