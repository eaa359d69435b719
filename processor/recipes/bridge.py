"""A context for programs that speak lines of JSON: the server behind `processor context serve`.

A request is one line, `{"op": "set", "path": "data.user", "value": {"name": "Alice"}}`, and so is its answer,
`{"ok": true, "value": null}` or `{"ok": false, "error": "..."}`. A path is names with dots between them, of
which a number is an index where a list is. A name of the context may itself have dots: the longest one that
is there is meant, and without one the first part is the name.

`Board` is what a context is to the server: a file, here, or the context of a route (`operate.route_board`).
What must stay true: a change is whole and stored before it is answered, with the name of who made it, or
nothing has changed. Whoever reaches the port may change the context, so it listens on the loopback address
only; and what sends anything but requests, as a web page can by way of a browser, is not listened to any
further.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson

from processor.errors import ProcessorError
from processor.recipes import context as files
from processor.recipes.context import RecipeContext, Snapshot
from processor.sandbox.blackboard import WHO_CHARS
from processor.sandbox.values import encode

HOST = "127.0.0.1"
LINE_BYTES = 1 << 20
_CONNECTIONS = 64
_IDLE_S = 300.0  # without a request
_PATH_CHARS = 1024
_STEPS = 64
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,9})\Z")
_REQUEST = {"op": str, "path": str, "value": object, "index": int, "who": str}
# The keys that an operation needs, and those that it may have besides.
_OPS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "full": (frozenset(), frozenset()),
    "get": (frozenset({"path"}), frozenset()),
    "set": (frozenset({"path", "value"}), frozenset({"who"})),
    "append": (frozenset({"path", "value"}), frozenset({"who"})),
    "delete": (frozenset({"path"}), frozenset({"who"})),
    "pop": (frozenset({"path"}), frozenset({"index", "who"})),
}

Steps = tuple[str, ...]
# Changes what the first step of the second argument names in the first one, and returns the answer.
Act = Callable[[dict[str, Any], Steps], Any]


class NotDone(Exception):
    """A request that is not done; the text says why, and nothing has changed."""


class Alien(Exception):
    """Bytes that are no request; the text says why."""


class Board(Protocol):
    """A context, as the server needs it. Every method may raise NotDone and ProcessorError."""

    async def values(self) -> Mapping[str, Any]:
        """All that it holds, as orjson can write it."""

    async def value(self, path: str) -> Any:
        """What a path leads to, as orjson can write it."""

    async def change(self, path: str, act: Act, who: str) -> Any:
        """What `act` answers, once what it changed is stored. It may be asked several times."""

    def kept(self, value: Any) -> Any:
        """The value that one of a request stands for here."""


# Paths


def steps_of(path: str, names: Collection[str]) -> Steps:
    """The name of an item and the steps into it. Raises NotDone for a path that is none."""
    parts = path.split(".")
    if not all(parts) or len(path) > _PATH_CHARS or len(parts) > _STEPS:
        raise NotDone(f"{path[:80]!r} is no path: names with a dot between them, such as data.user.name")
    for count in range(len(parts), 0, -1):
        if (name := ".".join(parts[:count])) in names:
            return (name, *parts[count:])
    return tuple(parts)


def found_at(root: Any, steps: Steps) -> Any:
    """What steps lead to. Raises NotDone where there is nothing."""
    for number, step in enumerate(steps):
        root = root[_place(root, step, steps[: number + 1])]
    return root


def _place(container: Any, step: str, steps: Steps) -> Any:
    """The name or the index that a step means in a container."""
    if isinstance(container, dict):
        if step in container:
            return step
        raise NotDone(f"{'.'.join(steps)} is not there")
    if not _is_list(container):
        raise NotDone(f"{'.'.join(steps)} is not there: what is around it is {_a(container)}")
    return _index(container, step, steps)


def _index(container: Any, step: str | int, steps: Steps) -> int:
    if isinstance(step, str) and not _NUMBER.match(step):
        raise NotDone(f"{'.'.join(steps)} is not there: what is around it is a list")
    index, length = int(step), len(container)
    if not -length <= index < length:
        raise NotDone(f"{'.'.join(steps)} is not there: the length of the list is {length}")
    return index % length


def _around(root: dict[str, Any], steps: Steps) -> Any:
    """The container of the last step, with what was missing on the way."""
    container: Any = root
    for number, step in enumerate(steps[:-1]):
        if isinstance(container, dict) and step not in container:
            container[step] = {}
        container = container[_place(container, step, steps[: number + 1])]
    return container


def set_at(root: dict[str, Any], steps: Steps, value: Any) -> None:
    """Put a value to where steps lead; what is missing on the way is made of objects. Raises NotDone."""
    container = _around(root, steps)
    place = steps[-1] if isinstance(container, dict) else _place(container, steps[-1], steps)
    container[place] = value


def append_at(root: dict[str, Any], steps: Steps, value: Any) -> None:
    """Append to the list that steps lead to; where nothing is, it begins empty. Raises NotDone."""
    container = _around(root, steps)
    if isinstance(container, dict) and steps[-1] not in container:
        container[steps[-1]] = []
    _listed(container[_place(container, steps[-1], steps)], steps).append(value)


def delete_at(root: dict[str, Any], steps: Steps) -> None:
    """Remove what steps lead to. Raises NotDone."""
    container = found_at(root, steps[:-1])
    del container[_place(container, steps[-1], steps)]


def pop_at(root: dict[str, Any], steps: Steps, index: int) -> Any:
    """Take an element out of the list that steps lead to. Raises NotDone."""
    target = _listed(found_at(root, steps), steps)
    place = _index(target, index, (*steps, str(index)))
    taken = target[place]
    del target[place]
    return taken


def _listed(target: Any, steps: Steps) -> Any:
    if not _is_list(target):
        raise NotDone(f"{'.'.join(steps)} is {_a(target)}, not a list")
    return target


def _is_list(value: Any) -> bool:
    return hasattr(value, "append") and hasattr(value, "__getitem__")


def _a(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return words.get(
        type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    )


# Contexts


class FileBoard:
    """A context in a file, which is written again with every change; for one server at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._snapshot = Snapshot(RecipeContext(), {})
        self._seen: tuple[int, int, int] | None = None  # which state of the file that is
        self._turn = asyncio.Lock()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[FileBoard]:
        """The context of a file, which need not be there yet.

        Raises ProcessorError E719 for one that cannot be read, or that another server has.
        """
        lock_path = path.with_name(f".{path.name}.lock")
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as err:
            raise _unusable(path, f"nothing can be written beside it: {err.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            board = cls(path)
            board._look()
            yield board
        except BlockingIOError:
            raise _unusable(path, "another `processor context serve` has it") from None
        finally:
            os.close(lock)

    async def values(self) -> Mapping[str, Any]:
        async with self._turn:  # what a change has not stored yet is not shown
            return await self._values()

    async def _values(self) -> dict[str, Any]:
        await asyncio.to_thread(self._look)
        return self._snapshot.context.to_dict()

    async def value(self, path: str) -> Any:
        values = await self.values()
        return found_at(values, steps_of(path, values))

    async def change(self, path: str, act: Act, who: str) -> Any:
        async with self._turn:
            values = await self._values()
            steps = steps_of(path, values)
            answer = act(values, steps)
            context, name = self._snapshot.context, steps[0]
            try:
                if name in values:
                    context.set(name, values[name], who)
                else:
                    context.delete(name, who)
            except ValueError as err:
                raise NotDone(str(err)) from None
            await asyncio.to_thread(self._save)
            return answer

    def kept(self, value: Any) -> Any:
        return value

    def _look(self) -> None:
        """Read the file again where it is not as we left it."""
        seen = self._state()
        if seen != self._seen or seen is None:
            self._snapshot = files.read(self._path) if seen else Snapshot(RecipeContext(), {})
            self._seen = seen

    def _save(self) -> None:
        try:
            files.save(self._path, files.dump(*self._snapshot))
            self._seen = self._state()
        except OSError as err:
            self._seen = (0, 0, 0)  # what is in memory is not what is stored
            raise NotDone(f"{self._path} cannot be written: {err.strerror}") from None

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise _unusable(self._path, f"the context cannot be read: {err.strerror}") from None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _unusable(path: Path, what: str) -> ProcessorError:
    return ProcessorError("E719", what, place=str(path), remedy="Give a file that is yours alone to write.")


# Lines


@dataclass(frozen=True, slots=True)
class Request:
    """One line, vetted."""

    op: str
    path: str
    value: Any
    index: int
    who: str


def read_request(line: bytes, who: str) -> Request:
    """Raises Alien for what is no object of JSON, and NotDone for one that asks for nothing that there is."""
    try:
        said = json.loads(line, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise NotDone("the request is nested too deeply") from None
    except ValueError as err:
        raise Alien(f"a request is one line of JSON, and this is not: {str(err)[:200]}") from None
    if not isinstance(said, dict):
        raise Alien('a request is an object, such as {"op": "full"}')
    try:
        orjson.dumps(said)
    except orjson.JSONEncodeError as err:
        raise NotDone(f"the request cannot be kept: {err}") from None
    op = said.get("op")
    if not isinstance(op, str) or op not in _OPS:
        raise NotDone(f"there is no op {str(op)[:40]!r}; there are {', '.join(_OPS)}")
    needed, possible = _OPS[op]
    if missing := needed - said.keys():
        raise NotDone(f"{op} needs {', '.join(sorted(missing))}")
    if more := said.keys() - needed - possible - {"op"}:
        raise NotDone(f"{op} does not take {', '.join(sorted(more))[:80]}")
    for name, kind in _REQUEST.items():
        if name in said and (not isinstance(said[name], kind) or (kind is int and said[name] is True)):
            raise NotDone(f"{name} is {_a(said[name])}, not {'a number' if kind is int else 'a text'}")
    author = said.get("who", who)[:WHO_CHARS] or who
    return Request(op, said.get("path", ""), said.get("value"), said.get("index", -1), author)


def _integer(digits: str) -> int:
    if len(digits) < 20 and -(1 << 63) <= (number := int(digits)) < 1 << 63:
        return number
    raise NotDone(f"{digits[:40]} is an integer of more than 64 bits")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise NotDone(f"{text[:40]} is no number that can be kept")
    return number


def _line(answer: Mapping[str, Any]) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE)


class Bridge:
    """Answers requests about one context, from any number of connections; one change at a time."""

    def __init__(self, board: Board, who: str) -> None:
        """`who` makes the changes that name nobody."""
        self._board = board
        self._who = who
        self._connections: set[asyncio.Task[Any]] = set()
        self._answering: set[asyncio.Task[bytes]] = set()

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[int]:
        """Answer on the loopback address, and yield the port: a free one for 0.

        At the end, what was asked is answered. Raises ProcessorError E109 where the port cannot be had.
        """
        try:
            server = await asyncio.start_server(self._connected, HOST, port, limit=LINE_BYTES)
        except OSError as err:
            raise ProcessorError(
                "E109",
                f"contexts cannot be served on {HOST}:{port}: {err.strerror}",
                remedy="Give another --port.",
            ) from None
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await asyncio.gather(*self._answering, return_exceptions=True)
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > _CONNECTIONS:
                writer.write(_line({"ok": False, "error": f"there are {_CONNECTIONS} connections already"}))
                return
            # Cancelled at the end of `serving`, by nobody else: a stream's own task is to end well.
            with contextlib.suppress(TimeoutError, ConnectionError, asyncio.CancelledError):
                await self._converse(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_open = True
        while is_open:
            try:
                async with asyncio.timeout(_IDLE_S):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as err:  # the last line may lack its end
                line, is_open = err.partial, False
                if not line.strip():
                    return
            except asyncio.LimitOverrunError:
                writer.write(_line({"ok": False, "error": f"a request has at most {LINE_BYTES} bytes"}))
                return
            try:
                request = read_request(line, self._who)
            except NotDone as err:
                writer.write(_line({"ok": False, "error": str(err)}))
                continue
            except Alien as err:
                writer.write(_line({"ok": False, "error": str(err)}))
                return
            task = asyncio.create_task(self._answer(request))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            writer.write(await asyncio.shield(task))
            async with asyncio.timeout(_IDLE_S):
                await writer.drain()

    async def _answer(self, request: Request) -> bytes:
        try:
            return _fitting(await self._done(request))
        except (NotDone, ProcessorError) as err:
            return _line({"ok": False, "error": str(err)})

    async def _done(self, request: Request) -> Any:
        board = self._board
        match request.op:
            case "full":
                return await board.values()
            case "get":
                return await board.value(request.path)
            case "set":
                act: Act = partial(set_at, value=board.kept(request.value))
            case "append":
                act = partial(append_at, value=board.kept(request.value))
            case "delete":
                act = delete_at
            case _:
                act = partial(_popped, index=request.index)
        return await board.change(request.path, act, request.who)


def _popped(root: dict[str, Any], steps: Steps, index: int) -> Any:
    taken = orjson.Fragment(encode(pop_at(root, steps, index)))
    _fitting(taken)  # before it is gone
    return taken


def _fitting(value: Any) -> bytes:
    line = _line({"ok": True, "value": value})
    if len(line) > LINE_BYTES:
        raise NotDone(f"the answer has {len(line)} bytes, more than {LINE_BYTES}: ask for a part of it")
    return line
