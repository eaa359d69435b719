"""Directories that a route may use, and what is done below them.

A path is looked up by the kernel below a root's directory (`openat2`): it follows no link, crosses no mount
and never leaves the root, whatever others rename meanwhile. Only regular files are read. A file is replaced
as a whole: who reads it gets what was there before, or what was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from processor.errors import About, ProcessorError
from processor.reach import FileRoot

LIST_MAX = 10_000
_SHOWN_CHARS = 300
_ROOT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TEMPORARY = ".processor-"  # begins the name of what is not whole yet
_OPENAT2 = 437  # on every architecture of Linux
# What openat2(2) may resolve: nothing beyond the root, by no link, on no other mount.
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_RACES = 20  # renames beside us may have the kernel ask for another try
_COMMON = os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _COMMON
_READ = os.O_RDONLY | os.O_NONBLOCK | _COMMON  # a FIFO is no file, and must not be waited for


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def _openat2(folder: int, path: str, flags: int) -> int:
    """A descriptor of `path` below the open `folder`. Raises OSError."""
    how = _OpenHow(flags, 0, _RESOLVE)
    name = ctypes.c_char_p(os.fsencode(path))
    for _ in range(_RACES):
        opened = int(_libc.syscall(_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how)))
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))


class Roots:
    """The roots of one route, each opened once: what they are is decided then, and not by a later rename."""

    def __init__(self, roots: Sequence[FileRoot]) -> None:
        self._roots = {root.name: root for root in roots}
        self._folders: dict[str, int] = {}
        self._closing = threading.Lock()

    def open(self) -> None:
        """Open them. Idempotent. Raises ProcessorError E508 where the kernel cannot, E339 for one that cannot
        be opened.
        """
        for name, root in self._roots.items():
            if name in self._folders:
                continue
            place = f"files.{name}.path"
            try:
                folder = os.open(root.path, _FOLDER)
            except OSError as err:
                raise ProcessorError("E339", f"{root.path}: {err.strerror}", place=place) from None
            try:
                os.close(_openat2(folder, ".", _FOLDER))
            except OSError as err:
                os.close(folder)
                what = f"openat2 on {root.path}: {err.strerror}"
                raise ProcessorError("E508", what, place=place) from None
            self._folders[name] = folder

    def close(self) -> None:
        """Close them. Idempotent."""
        with self._closing:
            while self._folders:
                os.close(self._folders.popitem()[1])

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[int]:
        """A root for a thread that works on when the roots are closed: a number that was closed may be that
        of another directory soon. Raises OSError where they are closed.
        """
        with self._closing:
            if name not in self._folders:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            folder = os.dup(self._folders[name])
        try:
            yield folder
        finally:
            os.close(folder)

    async def run(self, op: str, target: str, body: bytes) -> Any:
        """Do one operation on a `target`, beside the event loop.

        Raises ProcessorError E330 for a root that is not there or not to be changed, E335 for what is not
        there, E337 for what leads elsewhere, E338 for too many bytes or names, and E339 where the system
        refuses.
        """
        name, _, path = target.partition(":")
        if name not in self._roots:
            known = ", ".join(f"{known}:" for known in self._roots) or "none"
            remedy = f"Add {name} to the route's `files`; its roots are {known}."
            raise _failed(op, target, "E330", f"the configuration gives the route no files {name!r}", remedy)
        root = self._roots[name]
        self.open()
        if op in ("write", "delete") and not root.is_writable:
            remedy = f"Set files.{name}.write: true, if the Runnable should change them."
            raise _failed(op, target, "E330", "the configuration gives the root to be read", remedy)
        if op == "write" and len(body) > root.max_bytes:
            what = f"{len(body)} bytes are more than {root.max_bytes}"
            raise _failed(op, target, "E338", what, f"Raise files.{name}.max_bytes, or write less.")

        def work() -> Any:
            with self._held(name) as folder:
                match op:
                    case "read":
                        return _read(folder, path, root.max_bytes)
                    case "list":
                        return _list(folder, path)
                    case "write":
                        return _write(folder, path, body)
                    case _:
                        return _delete(folder, path)

        try:
            return await asyncio.to_thread(work)
        except OSError as err:
            code, what, remedy = _why(err)
            raise _failed(op, target, code, what, remedy) from None
        except _TooMuch as err:
            remedy = (
                f"Raise files.{name}.max_bytes, or split the file." if op == "read" else "Use more folders."
            )
            raise _failed(op, target, "E338", str(err), remedy) from None


def target_of(path: str) -> str:
    """`root:/path` in its one spelling. Raises ProcessorError E337 for what is no such path."""
    name, colon, rest = path.partition(":")
    what, remedy = "", "Name the file itself."
    if not colon or not rest.startswith("/"):
        what, remedy = "a path is root:/path", "The roots are those of `files` in the configuration."
    elif _ROOT.fullmatch(name) is None:
        what, remedy = f"{name[:40]!a} cannot be the name of a root", "It has letters, digits, - and _."
    elif "\0" in rest:
        what = "a path has no NUL"
    elif any(part in (".", "..") for part in rest.split("/")):
        what = "a path has no . and no .."
    elif any(0xD800 <= ord(char) < 0xE000 for char in rest):
        what = "a path has no half of a surrogate pair"
    if what:
        shown = ascii(path[:_SHOWN_CHARS])[1:-1]
        raise ProcessorError("E337", f"{shown}: {what}", remedy=remedy, about=About("file", shown))
    return f"{name}:/{'/'.join(part for part in rest.split('/') if part)}"


def _failed(op: str, target: str, code: str, what: str, remedy: str) -> ProcessorError:
    shown = ascii(target[:_SHOWN_CHARS])[1:-1]
    about = About(f"file.{op}", shown, "config" if code == "E330" else "")
    return ProcessorError(code, f"file {op} {shown}: {what}", remedy=remedy, about=about)


class _TooMuch(Exception):
    """More bytes, or names, than are given out."""


_LEADS_AWAY = {errno.ELOOP: "there is a link on the way", errno.EXDEV: "it leads out of the root"}
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def _why(err: OSError) -> tuple[str, str, str]:
    """The code, the sentence and the remedy for what the system says."""
    number = err.errno or 0
    if number in _LEADS_AWAY:
        return "E337", _LEADS_AWAY[number], "Name the file itself; links are not followed."
    if number in _ABSENT:
        return "E335", "it is not there", "A folder is not made by a write; `list` says what there is."
    if number == errno.ENAMETOOLONG:
        return "E337", "a name in it is too long", "Use a shorter one."
    if number == errno.EISDIR:
        return "E339", "it is no regular file", "Only regular files are read, written and deleted."
    return "E339", err.strerror or "it failed", "Look at the file, its permissions and its disk."


@contextlib.contextmanager
def _opened(folder: int, path: str, flags: int) -> Iterator[int]:
    descriptor = _openat2(folder, path.lstrip("/") or ".", flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


def _read(folder: int, path: str, most: int) -> bytes:
    with _opened(folder, path, _READ) as descriptor:
        found = os.fstat(descriptor)
        _check_regular(found)
        if found.st_size > most:
            raise _TooMuch(f"{found.st_size} bytes are more than {most}")
        parts: list[bytes] = []
        left = most + 1  # it may grow meanwhile
        while left and (part := os.read(descriptor, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        if not left:
            raise _TooMuch(f"it has more than {most} bytes")
        return b"".join(parts)


def _list(folder: int, path: str) -> list[str]:
    """The names in a folder, in order; those of folders end in a slash. What is neither is left out."""
    names: list[str] = []
    with _opened(folder, path, _FOLDER) as descriptor, os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.name.startswith(_TEMPORARY):
                continue
            if entry.is_dir(follow_symlinks=False):
                names.append(f"{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                names.append(entry.name)
            if len(names) > LIST_MAX:
                raise _TooMuch(f"the folder has more than {LIST_MAX} names")
    return sorted(name.encode("utf-8", "replace").decode() for name in names)


def _split(path: str) -> tuple[str, str]:
    above, _, name = path.rpartition("/")
    if not name:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    return above, name


def _write(folder: int, path: str, body: bytes) -> None:
    """Replace a file as a whole: after a crash it is the old one or the new one."""
    above, name = _split(path)
    with _opened(folder, above, _FOLDER) as parent:
        with contextlib.suppress(FileNotFoundError):
            _check_regular(os.stat(name, dir_fd=parent, follow_symlinks=False))
        temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _COMMON
        descriptor = os.open(temporary, flags, 0o666, dir_fd=parent)
        try:
            try:
                left = memoryview(body)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        os.fsync(parent)


def _delete(folder: int, path: str) -> None:
    above, name = _split(path)
    with _opened(folder, above, _FOLDER) as parent:
        _check_regular(os.stat(name, dir_fd=parent, follow_symlinks=False))
        os.unlink(name, dir_fd=parent)
        os.fsync(parent)
