"""All that crosses the wall between host and guest: frames, and what may stand in them.

Both sides use this one codec. A frame is `size, nonce, header, blobs`: the header is a small JSON object,
the blobs are payload bytes that nobody on the way has to parse. Every request carries a fresh nonce that
each frame of its answer must echo, so that a guest can neither answer ahead nor answer for another request.

The host treats everything that it reads as hostile: exact types, exact counts, bounded sizes; whatever does
not fit is a `Violation`, which costs the guest its life. Nothing here interprets a payload, and nothing
that a guest sent is ever more than data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import orjson

from processor.errors import ERRORS, Fault
from processor.model import (
    SAFE_TOKEN,
    ContextChange,
    Emit,
    Event,
    Failed,
    Failure,
    Group,
    HeapOp,
    Limits,
    LogLine,
    Module,
    Output,
    Program,
    Ran,
)
from processor.sandbox import documents, objects
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.offer import NOTHING, HeapGrant, HeapOffer, Offer, Signature
from processor.sandbox.values import DEPTH, NAME_BYTES
from processor.subject import check_subject, matches

HEADER_BYTES = 4 << 20
TEXT_CHARS = 4000
TRACEBACK_CHARS = 16000
LOG_CHARS = 1000
EVENT_NAME_CHARS = 256
EMIT_HEADERS = 32
EMIT_HEADER_BYTES = 4096
EMIT_DELAY_S = 366 * 86_400
CALL_BYTES = 1 << 20
ABOUT_BYTES = 4096  # of what a refusal says of its operation
CODE_BYTES = 64 << 10  # of a source of a compiled program that is kept for other guests
PROGRAM_CODE_BYTES = 4 << 20  # of all of its sources
BODY_BYTES = 4 << 20  # of arguments and of what goes beside them
LOG_LEVELS = frozenset({"debug", "info", "warning", "error"})
# What a guest may say; every other code is for the host to give.
RUN_CODES = frozenset(row.code for row in ERRORS.values() if row.ends_run)
LOAD_CODES = frozenset(row.code for row in ERRORS.values() if row.faults_source)
MESSAGE_CODES = frozenset(row.code for row in ERRORS.values() if row.rejects_message)
REFUSAL_CODES = frozenset(row.code for row in ERRORS.values() if row.refuses_call)
MAX_FAULTS = 1000
MAX_BLOBS = 1 << 30
MAX_CHANGES = 1 << 17  # items of contexts that one run may change
MANIFEST_BYTES = 64 << 10
STEPS_BYTES = 512 << 10  # of the manifest of a program of steps, of which a recipe has 900
KIND_CHARS = 128  # of the name of a class of nodes
STEP_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")

# What a program of nodes has, by the name of the class: the JSON Schemas `inputs`, `outputs` and `secrets`,
# and `doc`, its words on itself.
Manifest = Mapping[str, Mapping[str, Any]]

_PREFIX = struct.Struct("<IQII")  # bytes that follow the size, nonce, header bytes, number of blobs
_SIZE = struct.Struct("<I")
_AFTER_SIZE = _PREFIX.size - _SIZE.size


def reply_bytes(limits: Limits) -> int:
    """The largest frame that a guest with these limits may send."""
    return HEADER_BYTES + 2 * limits.output_bytes + limits.context_bytes + (1 << 20)


def reply_parts(limits: Limits) -> int:
    """The most values and blobs in such a frame: each costs the host many times its few bytes."""
    return 2 * MAX_CHANGES + (1 << 18) + 4 * limits.log_lines + limits.log_bytes


class Violation(Exception):
    """Bytes that no honest peer sends; the text says what is wrong with them, never what they hold."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it arrived; `header` is a JSON object of any content until a `read_*` vetted it."""

    nonce: int
    header: dict[str, Any]
    blobs: Sequence[bytes]


def pack(nonce: int, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """The bytes of one frame."""
    head = orjson.dumps(header)
    if len(head) > HEADER_BYTES:
        raise ValueError(f"a header of {len(head)} bytes")
    sizes = list(map(len, blobs))
    size = _AFTER_SIZE + len(head) + 4 * len(sizes) + sum(sizes)
    if size > 0xFFFFFFFF:
        raise ValueError(f"a frame of {size} bytes cannot be written")
    prefix = _PREFIX.pack(size, nonce, len(head), len(sizes))
    return b"".join((prefix, head, struct.pack(f"<{len(sizes)}I", *sizes), *blobs))


class Splitter:
    """Turns a stream of bytes into frames; refuses a frame as soon as its size is known to be too large."""

    def __init__(self, max_bytes: int, max_parts: int = MAX_BLOBS) -> None:
        self._max_bytes = max_bytes
        self._max_parts = max_parts
        self._rest = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a frame that has begun and not ended."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """The frames that `data` completes. Raises Violation."""
        if self._rest:
            self._rest += data
            if len(self._rest) < _SIZE.size or len(self._rest) < _SIZE.size + self._size(self._rest, 0):
                return []
            data, self._rest = self._rest, bytearray()
        frames: list[Frame] = []
        position, end = 0, len(data)
        while end - position >= _SIZE.size:
            following = position + _SIZE.size + self._size(data, position)
            if following > end:
                break
            frames.append(_parse(data, position, following, self._max_parts))
            position = following
        if position < end:
            self._rest += data[position:] if position else data
        return frames

    def _size(self, data: bytes | bytearray, position: int) -> int:
        size: int = _SIZE.unpack_from(data, position)[0]
        if size < _AFTER_SIZE or size > self._max_bytes:
            raise Violation(f"a frame of {size} bytes")
        return size


def _parse(data: bytes | bytearray, start: int, end: int, max_parts: int) -> Frame:
    _, nonce, head_bytes, count = _PREFIX.unpack_from(data, start)
    body = start + _PREFIX.size
    table = body + head_bytes
    first = table + 4 * count
    if head_bytes > HEADER_BYTES or first > end:
        raise Violation("a header or a list of blobs that runs past its frame")
    head = bytes(data[body:table])
    if count + head.count(b",") + head.count(b"[") + head.count(b"{") > max_parts:
        raise Violation("more values than any answer has")
    sizes = struct.unpack_from(f"<{count}I", data, table)
    offsets = list(accumulate(sizes, initial=first))
    if offsets[-1] != end:
        raise Violation("blobs that do not fill their frame")
    try:
        header = orjson.loads(head)
    except ValueError:
        raise Violation("a header that is not JSON") from None
    if type(header) is not dict:
        raise Violation("a header that is not an object")
    if isinstance(data, bytearray):  # a large frame: no second copy of the whole of it
        view = memoryview(data)
        return Frame(nonce, header, [bytes(view[a:b]) for a, b in pairwise(offsets)])
    return Frame(nonce, header, [data[a:b] for a, b in pairwise(offsets)])


# What may be emitted: the guest says it to user code, and the host holds the guest to it.

_HEADER_NAME = re.compile(r"[!-9;-~]{1,128}\Z")
# What the server acts on, and what the markers of stream mode are told by.
_RESERVED_HEADERS = ("nats-", "processor-")


def check_emit(subject: object, delay_s: object, headers: Mapping[Any, Any]) -> None:
    """Raise ValueError, with what is wrong, unless a message like this may be emitted somewhere."""
    if type(subject) is not str:
        raise ValueError(f"the subject to emit to is a {type(subject).__name__}, not a text")
    if not is_text(subject):
        raise ValueError("the subject to emit to holds a lone surrogate, which is not text")
    check_subject(subject, wildcards=False)
    if type(delay_s) is not int and type(delay_s) is not float:
        raise ValueError(f"delay_s is a {type(delay_s).__name__}, not a number of seconds")
    if not 0 <= delay_s <= EMIT_DELAY_S:
        raise ValueError(f"delay_s is {delay_s}; it is 0 to {EMIT_DELAY_S} seconds")
    if len(headers) > EMIT_HEADERS:
        raise ValueError(f"{len(headers)} headers; a message takes {EMIT_HEADERS} of them")
    for name, value in headers.items():
        if type(name) is not str or not _HEADER_NAME.match(name):
            shown = repr(name)[:80] if type(name) is str else f"a {type(name).__name__}"
            raise ValueError(f"the name of a header is {shown}; it is visible ASCII without a colon")
        if name.lower().startswith(_RESERVED_HEADERS):
            raise ValueError(
                f"the header {name} cannot be set: Nats-* and Processor-* have meanings of their own"
            )
        if type(value) is not str or not value.isprintable():
            raise ValueError(f"the header {name} is not a text without line breaks and control characters")
    size = sum(len(name) + len(value.encode()) for name, value in headers.items())
    if size > EMIT_HEADER_BYTES:
        raise ValueError(f"{size} bytes of headers; a message takes {EMIT_HEADER_BYTES}")


def is_listed(subject: str, patterns: Iterable[str]) -> bool:
    """Whether a subject is among those that a route emits to."""
    return any(matches(pattern, subject) for pattern in patterns)


def is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


# What the host checks with. `type(x) is` on purpose: a bool is an int to isinstance.


def _integer(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Violation("not a number, or one out of range")
    return value


def _text(value: object, max_chars: int) -> str:
    if type(value) is not str or len(value) > max_chars:
        raise Violation("not a text, or one that is too long")
    return value


def _list(value: object, length: int | None = None, at_most: int | None = None) -> list[Any]:
    if type(value) is not list or (length is not None and len(value) != length):
        raise Violation("not a list, or one of the wrong length")
    if at_most is not None and len(value) > at_most:
        raise Violation("a list that is too long")
    return value


def _fields(header: dict[str, Any], *names: str) -> list[Any]:
    if header.keys() != set(names):
        raise Violation("a header with other fields than its kind has")
    return [header[name] for name in names]


class _Blobs:
    """Hands out a frame's blobs in order, and insists that all of them are asked for."""

    def __init__(self, blobs: Sequence[bytes]) -> None:
        self._blobs = blobs
        self._next = 0

    def take(self, count: int) -> Sequence[bytes]:
        taken = self._blobs[self._next : self._next + count]
        if len(taken) != count:
            raise Violation("fewer blobs than its header says")
        self._next += count
        return taken

    def finish(self) -> None:
        if self._next != len(self._blobs):
            raise Violation("more blobs than its header says")


def _names(blobs: Iterable[bytes]) -> list[str]:
    try:
        return [blob.decode() for blob in blobs]
    except UnicodeDecodeError:
        raise Violation("a name that is not UTF-8") from None


# Host to guest.


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What `Guest.run` and `Guest.stream` ask of a guest."""

    groups: Sequence[Group]
    fields: Sequence[str]
    forget: Sequence[str]
    stream: bool
    messages: bytes = b""  # of all groups, in columns
    isolate: bool = False  # a group that fails is undone alone, and the others count


def write_load(
    nonce: int,
    program: Program,
    limits: Limits,
    offer: Offer = NOTHING,
    code: bytes = b"",
) -> bytes:
    """The program a guest is to load, and what it may use from then on; `code` if one has compiled it."""
    figures = [
        limits.memory_mb,
        limits.outputs,
        limits.output_bytes,
        limits.context_bytes,
        limits.log_lines,
        limits.log_bytes,
        limits.calls_at_once,
        limits.max_string_length,
        limits.max_container_length,
        limits.max_depth,
        limits.wall_s,
        limits.cpu_s,
    ]
    header = {
        "load": program.filename,
        "language": program.language,
        "packages": program.packages,
        "mode": program.mode,
        "class": program.class_name,
        "nan_as_null": program.nan_as_null,
        "bytes_in": program.bytes_in,
        "modules": [[module.name, module.filename] for module in program.modules],
        "limits": figures,
        "capabilities": [[of.name, of.required, of.optional, of.is_method] for of in offer.signatures],
        "secrets": dict(offer.marks),
        "emits": list(offer.emits),
        "heap": [[[*map(list, grants)] for grants in offer.heap.policies], list(offer.heap.schemas)],
    }
    sources = [module.source.encode() for module in program.modules]
    return pack(nonce, header, [program.source.encode(), code, *sources])


def read_load(frame: Frame) -> tuple[Program, Limits]:
    *figures, wall_s, cpu_s = frame.header["limits"]
    memory_mb, outputs, output_bytes, context_bytes, log_lines, log_bytes, *figures = figures
    calls_at_once, string, container, depth = figures
    infinite = float("inf")
    limits = Limits(
        memory_mb=memory_mb,
        outputs=outputs,
        output_bytes=output_bytes,
        context_bytes=context_bytes,
        log_lines=log_lines,
        log_bytes=log_bytes,
        calls_at_once=calls_at_once,
        max_string_length=string,
        max_container_length=container,
        max_depth=depth,
        wall_s=infinite if wall_s is None else wall_s,
        cpu_s=infinite if cpu_s is None else cpu_s,
    )
    header = frame.header
    program = Program(
        frame.blobs[0].decode(),
        header["load"],
        header["language"],
        tuple(header["packages"]),
        header["mode"],
        header["class"],
        header["nan_as_null"],
        header["bytes_in"],
        tuple(
            Module(name, filename, source.decode())
            for (name, filename), source in zip(header["modules"], frame.blobs[2:], strict=True)
        ),
    )
    return program, limits


def read_code(frame: Frame) -> bytes:
    """The program as another guest has compiled it; empty where none has."""
    return frame.blobs[1]


def read_offer(frame: Frame) -> Offer:
    """What a guest that is loaded may use."""
    header = frame.header
    signatures = [
        Signature(name, tuple(required), tuple(optional), is_method)
        for name, required, optional, is_method in header["capabilities"]
    ]
    policies, schemas = header["heap"]
    grants = tuple(
        [HeapGrant(is_deny, types, tuple(methods)) for is_deny, types, methods in lines] for lines in policies
    )
    heap = HeapOffer(grants, frozenset(schemas))
    return Offer(signatures, header["secrets"], tuple(header["emits"]), heap)


def write_run(nonce: int, request: RunRequest) -> bytes:
    groups: list[list[Any]] = []
    blobs: list[bytes] = []
    for group in request.groups:
        if group.context is None:
            groups.append([group.key, len(group.documents), -1])
        else:
            groups.append([group.key, len(group.documents), len(group.context)])
            blobs += [name.encode() for name in group.context]
            blobs += group.context.values()
        blobs += group.documents
    blobs.append(request.messages)
    header: dict[str, Any] = {
        "stream" if request.stream else "run": groups,
        "fields": request.fields,
        "forget": request.forget,
    }
    if request.isolate:
        header["isolate"] = True
    return pack(nonce, header, blobs)


def read_run(frame: Frame) -> RunRequest:
    header = frame.header
    stream = "stream" in header
    blobs = _Blobs(frame.blobs)
    groups = []
    for key, count, items in header["stream" if stream else "run"]:
        context = None
        if items >= 0:
            context = dict(zip(_names(blobs.take(items)), blobs.take(items), strict=True))
        groups.append(Group(key, blobs.take(count), context))
    [messages] = blobs.take(1)
    blobs.finish()
    return RunRequest(groups, header["fields"], header["forget"], stream, messages, "isolate" in header)


@dataclass(frozen=True, slots=True)
class Attached:
    """The result of a capability call that has bytes beside its JSON value."""

    value: Any
    body: bytes


def write_answer(nonce: int, call: int, value: Any) -> bytes:
    """The result of the capability call with this id: a JSON value, or Attached."""
    if isinstance(value, Attached):
        return pack(nonce, {"answer": call}, [documents.dumps(value.value), value.body])
    return pack(nonce, {"answer": call}, [documents.dumps(value)])


def write_refusal(
    nonce: int, call: int, code: str, text: str, about: Mapping[str, Any] | None = None
) -> bytes:
    """Why a capability call brought nothing; `about` are attributes of the exception: texts and numbers."""
    refused = text[:TEXT_CHARS].encode("utf-8", "replace").decode()
    code = code if code in REFUSAL_CODES else "E317"
    header: dict[str, Any] = {"answer": call, "refused": refused, "code": code}
    if about:
        header["about"] = _about(about)
    return pack(nonce, header)


def _about(about: Mapping[str, Any]) -> dict[str, Any]:
    """`about` within ABOUT_BYTES: its texts may be a guest's own."""
    row: dict[str, Any] = {}
    for most in (2000, 800, 160):  # at the last, six bytes for each character of four texts fit
        row = {
            name: _clean(value, most) if isinstance(value, str) else value for name, value in about.items()
        }
        if len(orjson.dumps(row)) <= ABOUT_BYTES:
            break
    return row


# Guest to host: what the guest writes, and how the host reads it.


def write_sealed(layers: Mapping[str, str]) -> bytes:
    """The first frame of a guest: its jail is closed, and this is what holds."""
    return pack(0, {"sealed": layers})


def write_loaded(
    nonce: int,
    faults: Sequence[Fault],
    code: bytes = b"",
    warnings: Sequence[Fault] = (),
    files: Iterable[str] = (),
    manifest: Manifest | None = None,
) -> bytes:
    """The program is loaded, or everything that is wrong with it; `code` is for the next guest that does.

    `files` are those of the program's sources, its own first. A program of nodes has a `manifest`.
    """
    number = {file: index for index, file in enumerate(files)}
    rows, doubts = (
        [
            [number.get(f.file, 0), f.line, f.column, f.code, _clean(f.text, TEXT_CHARS)]
            for f in found[:MAX_FAULTS]
        ]
        for found in (faults, warnings)
    )
    header: dict[str, Any] = {"loaded": rows, "warnings": doubts}
    if manifest is not None:
        header["nodes"] = manifest
    return pack(nonce, header, [code] if code else [])


def write_call(
    nonce: int, call: int, group: int, name: str, arguments: bytes, body: bytes | None = None
) -> bytes:
    """A capability call of a group; `arguments` is a JSON object, and `body` any bytes that go with it.

    `call` is its id: the calls of a run are numbered from 1 on.
    """
    header = {"call": name, "id": call, "group": group}
    return pack(nonce, header, [arguments] if body is None else [arguments, body])


def write_cancel(nonce: int, call: int) -> bytes:
    """Nobody waits for the answer to a call any more; it is answered nonetheless, and soon."""
    return pack(nonce, {"cancel": call})


def write_chunk(nonce: int, chunk: bytes) -> bytes:
    """One piece of what `process_stream` yields."""
    return pack(nonce, {"chunk": True}, [chunk])


def write_failed(nonce: int, failure: Failure, logs: Sequence[LogLine], group: int | None = None) -> bytes:
    """Why the run failed, and in which group; every context it touched is as it was before."""
    return pack(nonce, {"failed": [*_failure_row(failure), group], "logs": _log_rows(logs)})


def _failure_row(failure: Failure) -> list[Any]:
    return [
        failure.code,
        _clean(failure.text, TEXT_CHARS),
        _clean(failure.traceback, TRACEBACK_CHARS, keep_end=True),
        failure.retry_after_s,
    ]


def write_broken(nonce: int, traceback: str) -> bytes:
    """The guest's own runtime failed: a fault of ours, to be reported and not blamed on the user."""
    return pack(nonce, {"broken": _clean(traceback, TRACEBACK_CHARS, keep_end=True)})


@dataclass(slots=True)
class Yield:
    """What a run has brought so far, in the shape in which it crosses."""

    counts: list[int]
    bodies: list[bytes]
    tokens: list[str]
    emits: list[tuple[int, str, float, dict[str, str]]]  # group, subject, delay, headers
    emit_bodies: list[bytes]
    events: list[tuple[int, str]]
    event_bodies: list[bytes]
    rejected: list[tuple[int, int, str, str]]  # group, index in group, code, why
    heap: list[HeapOp]
    failed: (
        list[tuple[int, Failure]] | None
    )  # groups that were undone alone; None where a failure is the run's

    @classmethod
    def of(cls, groups: int, *, isolate: bool = False) -> Yield:
        """Of a run of so many groups that has not begun."""
        return cls([0] * groups, [], [], [], [], [], [], [], [], [] if isolate else None)


def write_ran(
    nonce: int, brought: Yield, contexts: Mapping[str, ContextChange], logs: Sequence[LogLine]
) -> bytes:
    """The run's result. Raises ValueError where it is more than one frame may carry."""
    blobs = [*brought.bodies, *brought.emit_bodies, *brought.event_bodies]
    rows = []
    for key, change in contexts.items():
        kept = {name: value for name, value in change.items.items() if value is not None}
        gone = [name for name, value in change.items.items() if value is None]
        rows.append([key, change.whole, change.size, len(kept), len(gone)])
        blobs += [name.encode() for name in kept]
        blobs += kept.values()
        blobs += [name.encode() for name in gone]
    if sum(len(change.items) for change in contexts.values()) > MAX_CHANGES:
        raise ValueError(f"it changes more than {MAX_CHANGES} items of contexts")
    header = {
        "outputs": brought.counts,
        "tokens": brought.tokens,
        "emits": brought.emits,
        "events": brought.events,
        "contexts": rows,
        "rejected": brought.rejected,
        "heap": [list(op) for op in brought.heap],
        "logs": _log_rows(logs),
    }
    if brought.failed is not None:
        header["undone"] = [[group, *_failure_row(failure)] for group, failure in brought.failed]
    return pack(nonce, header, blobs)


def _log_rows(logs: Sequence[LogLine]) -> list[list[str | int]]:
    return [[line.level, log_text(line.text), line.dropped] for line in logs]


def log_text(text: str) -> str:
    """A line of log as it crosses."""
    return _clean(text, LOG_CHARS)


def _clean(text: str, max_chars: int, *, keep_end: bool = False) -> str:
    """`text` within its bound, and without the lone surrogates that JSON cannot carry."""
    if len(text) > max_chars:
        text = "…" + text[1 - max_chars :] if keep_end else text[: max_chars - 1] + "…"
    return text.encode("utf-8", "replace").decode()


def read_sealed(frame: Frame) -> dict[str, str]:
    """The layers that a guest reports before it reads its program. Raises Violation."""
    (layers,) = _fields(frame.header, "sealed")
    if type(layers) is not dict or len(layers) > 32 or frame.blobs:
        raise Violation("not a report of layers")
    return {_text(name, 64): _text(state, 300) for name, state in layers.items()}


def read_loaded(frame: Frame, program: Program) -> tuple[list[Fault], list[Fault]]:
    """What is wrong with the program, empty when it is loaded; and what may be. Raises Violation."""
    more = ["nodes"] if program.has_kinds else []
    faults, warnings, *_ = _fields(frame.header, "loaded", "warnings", *more)
    return _faults(faults, program), _faults(warnings, program)


def read_manifest(frame: Frame, program: Program) -> Manifest:
    """What executions of graphs are of in a program, by name; none where it is no program of that kind.

    Raises Violation.
    """
    if not program.has_kinds:
        return {}
    nodes = frame.header["nodes"]
    try:
        text = orjson.dumps(nodes)
    except orjson.JSONEncodeError:  # nested deeper than it writes
        raise Violation("a manifest that is nested too deeply") from None
    most = STEPS_BYTES if program.mode == "steps" else MANIFEST_BYTES
    if type(nodes) is not dict or len(text) > most or nests_deeper(text, nodes, DEPTH):
        raise Violation("a manifest that is none, or too large")
    for name, node in nodes.items():
        is_named = name.isidentifier() if program.mode == "nodes" else STEP_NAME.match(name)
        if not is_named or len(name) > KIND_CHARS or type(node) is not dict:
            raise Violation("a node of a manifest without a name")
        *schemas, words = _fields(node, "inputs", "outputs", "secrets", "doc")
        if any(type(schema) is not dict for schema in schemas) or type(words) is not str:
            raise Violation("a node of a manifest without its schemas")
    return nodes


def _faults(rows: object, program: Program) -> list[Fault]:
    return [_fault(row, program) for row in _list(rows, at_most=MAX_FAULTS)]


def code_bytes(program: Program) -> int:
    """How much code of a program is kept for other guests."""
    return min(CODE_BYTES * (1 + len(program.modules)), PROGRAM_CODE_BYTES)


def read_compiled(frame: Frame, most: int = CODE_BYTES) -> bytes:
    """The code of the program that is loaded; empty where the guest gives none. Raises Violation."""
    if len(frame.blobs) > 1 or any(len(code) > most for code in frame.blobs):
        raise Violation("not the code of a program")
    return b"".join(frame.blobs)


def _fault(item: object, program: Program) -> Fault:
    number, line, column, code, text = _list(item, 5)
    files = list(program.sources)
    if type(code) is not str or code not in LOAD_CODES:
        raise Violation("a fault with a code that a guest cannot give")
    top = 1 << 31
    file = files[_integer(number, 0, len(files) - 1)]
    return Fault(file, _integer(line, 0, top), _integer(column, 0, top), code, _text(text, TEXT_CHARS))


def read_call(frame: Frame, call: int, groups: int) -> tuple[int, str, dict[str, Any]]:
    """The group of a run that calls a capability, its name, and its arguments, with bytes as `body`.

    `call` is the id that the call must have. Raises Violation.
    """
    name, number, group = _fields(frame.header, "call", "id", "group")
    if type(number) is not int or number != call:
        raise Violation("a call that is not the next one")
    if len(frame.blobs) not in (1, 2) or len(frame.blobs[0]) > CALL_BYTES:
        raise Violation("a call without arguments, or with too many bytes of them")
    if sum(map(len, frame.blobs)) > BODY_BYTES:
        raise Violation("a call with too many bytes beside its arguments")
    try:
        arguments = documents.loads(frame.blobs[0])
    except ValueError:
        raise Violation("arguments that are not JSON") from None
    if type(arguments) is not dict or nests_deeper(frame.blobs[0], arguments, DEPTH):
        raise Violation("arguments that are not an object, or nested too deeply")
    if len(frame.blobs) == 2:
        arguments["body"] = frame.blobs[1]
    return _integer(group, 0, groups - 1), _text(name, 64), arguments


def read_cancel(frame: Frame, calls: int) -> int:
    """The id of a call, of the so many that a run has made, for which nobody waits. Raises Violation."""
    (call,) = _fields(frame.header, "cancel")
    if frame.blobs:
        raise Violation("bytes beside the id of a call")
    return _integer(call, 1, calls)


def read_chunk(frame: Frame) -> bytes:
    """One chunk of a stream. Raises Violation."""
    _fields(frame.header, "chunk")
    if len(frame.blobs) != 1:
        raise Violation("a chunk that is not one blob")
    return frame.blobs[0]


def read_broken(frame: Frame) -> str:
    """The traceback of the guest's own runtime. Raises Violation."""
    (trace,) = _fields(frame.header, "broken")
    return _text(trace, TRACEBACK_CHARS)


def read_failed(frame: Frame, request: RunRequest, limits: Limits) -> Failed:
    """Why a run failed, and in which group, as the guest tells it. Raises Violation."""
    failed, lines = _fields(frame.header, "failed", "logs")
    *row, group = _list(failed, 5)
    if frame.blobs:
        raise Violation("a failure with something beside it")
    if group is not None:
        _integer(group, 0, len(request.groups) - 1)
    return Failed(_failure(row), _logs(lines, limits), group)


def _failure(row: list[Any]) -> Failure:
    code, text, traceback, after_s = row
    if type(code) is not str or code not in RUN_CODES:
        raise Violation("a failure that a guest cannot report")
    if after_s is not None and (type(after_s) not in (int, float) or not 0 <= after_s <= 1e9):
        raise Violation("not a delay")
    return Failure(code, _text(text, TEXT_CHARS), _text(traceback, TRACEBACK_CHARS), retry_after_s=after_s)


def _logs(lines: object, limits: Limits) -> list[LogLine]:
    logs = []
    for item in _list(lines, at_most=limits.log_lines + 1):  # one more says how many were dropped
        level, text, dropped = _list(item, 3)
        if type(level) is not str or level not in LOG_LEVELS:
            raise Violation("a log level that does not exist")
        logs.append(LogLine(level, _text(text, LOG_CHARS), _integer(dropped, 0, 1 << 62)))
    if sum(len(line.text.encode()) for line in logs if not line.dropped) > limits.log_bytes:
        raise Violation("more bytes of log than the limit")
    if sum(line.dropped > 0 for line in logs) > 1:
        raise Violation("dropped lines that are counted twice")
    return logs


def read_ran(frame: Frame, request: RunRequest, limits: Limits, emits: Sequence[str] = ()) -> Ran:
    """What a run brought, vetted against what was asked and what is allowed. Raises Violation.

    `emits` are the subjects, as patterns, that it may emit to.
    """
    names = "outputs", "tokens", "emits", "events", "contexts", "rejected", "heap", "logs"
    counts, tokens, emitted, events, contexts, rejected, heap, lines, *undone = _fields(
        frame.header, *names, *(["undone"] if request.isolate else [])
    )
    blobs = _Blobs(frame.blobs)
    groups = len(request.groups)
    keeping = 0 if request.isolate else groups  # what is undone alone keeps nothing
    outputs = _outputs(_list(counts, groups), tokens, blobs, request, limits)
    ran = Ran(
        outputs=outputs,
        emits=_emits(_list(emitted), blobs, groups, limits, outputs, emits),
        events=_events(_list(events, at_most=limits.outputs), blobs, groups, limits),
        contexts=_contexts(_list(contexts, at_most=keeping), blobs, request, limits),
        rejected=_rejected(_list(rejected), request),
        logs=_logs(lines, limits),
        heap=_heap(_list(heap, at_most=keeping * objects.OBJECTS), groups),
        failed=tuple(failure for rows in undone for failure in _undone(_list(rows, at_most=groups), groups)),
    )
    blobs.finish()
    if ran.failed:
        _refuse_from_undone(ran)
    return ran


def _undone(items: list[Any], groups: int) -> list[tuple[int, Failure]]:
    failures = []
    for item in items:
        group, *row = _list(item, 5)
        failures.append((_integer(group, 0, groups - 1), _failure(row)))
    return failures


def _refuse_from_undone(ran: Ran) -> None:
    """Raise Violation where a group that was undone is named twice, or brought anything."""
    undone = {group for group, _ in ran.failed}
    brought = {each.group for part in (ran.outputs, ran.emits, ran.events) for each in part}
    if len(undone) != len(ran.failed) or not undone.isdisjoint(brought):
        raise Violation("a group that was undone twice, or brought something")


def _heap(items: list[Any], groups: int) -> list[HeapOp]:
    ops = []
    for item in items:
        group, method, kind, handle, version = _list(item, 5)
        if type(method) is not str or method not in objects.METHODS:
            raise Violation("an operation that a heap does not have")
        if not objects.is_type(kind) or not objects.is_handle(handle):
            raise Violation("an object that a heap cannot have")
        _integer(group, 0, groups - 1)
        ops.append(HeapOp(group, method, kind, handle, _integer(version, 0, 1 << 53)))
    return ops


def _outputs(
    counts: list[Any], tokens: object, blobs: _Blobs, request: RunRequest, limits: Limits
) -> list[Output]:
    if set(map(type, counts)) - {int} or min(counts, default=0) < 0:
        raise Violation("not a count of outputs")
    total = sum(counts)
    if total > limits.outputs:
        raise Violation("more outputs than the limit")
    bodies = blobs.take(total)
    if sum(map(len, bodies)) > limits.output_bytes:
        raise Violation("more bytes of output than the limit")
    width = len(request.fields)
    flat = _list(tokens, total * width)
    if not all(type(token) is str and SAFE_TOKEN.match(token) for token in flat):
        raise Violation("a subject token that is not safe")
    owners = [index for index, count in enumerate(counts) for _ in range(count)]
    if not width:
        return [Output(owner, body) for owner, body in zip(owners, bodies, strict=True)]
    rows = (tuple(flat[at : at + width]) for at in range(0, len(flat), width))
    return [Output(owner, body, row) for owner, body, row in zip(owners, bodies, rows, strict=True)]


def _emits(
    items: list[Any],
    blobs: _Blobs,
    groups: int,
    limits: Limits,
    outputs: Sequence[Output],
    patterns: Sequence[str],
) -> list[Emit]:
    if not items:
        return []
    if len(outputs) + len(items) > limits.outputs:
        raise Violation("more outputs than the limit")
    bodies = blobs.take(len(items))
    if sum(map(len, bodies)) + sum(len(output.body) for output in outputs) > limits.output_bytes:
        raise Violation("more bytes of output than the limit")
    emits = []
    for item, body in zip(items, bodies, strict=True):
        group, subject, delay_s, headers = _list(item, 4)
        if type(headers) is not dict:
            raise Violation("headers that are none")
        try:
            check_emit(subject, delay_s, headers)
        except ValueError:
            raise Violation("a message that cannot be emitted") from None
        if not is_listed(subject, patterns):
            raise Violation("a message for a subject that is not allowed")
        emits.append(Emit(_integer(group, 0, groups - 1), subject, body, float(delay_s), headers))
    return emits


def _events(items: list[Any], blobs: _Blobs, groups: int, limits: Limits) -> list[Event]:
    bodies = blobs.take(len(items))
    if sum(map(len, bodies)) > limits.output_bytes:
        raise Violation("more bytes of events than the limit")
    events = []
    for item, body in zip(items, bodies, strict=True):
        group, name = _list(item, 2)
        _require_json(body, "an event")
        events.append(Event(_integer(group, 0, groups - 1), _text(name, EVENT_NAME_CHARS), body))
    return events


def _contexts(
    items: list[Any], blobs: _Blobs, request: RunRequest, limits: Limits
) -> dict[str, ContextChange]:
    asked = {group.key for group in request.groups}
    changes: dict[str, ContextChange] = {}
    for item in items:
        key, whole, size, kept, deleted = _list(item, 5)
        if type(key) is not str or key not in asked or key in changes or type(whole) is not bool:
            raise Violation("a context that was not asked for")
        _integer(size, 0, limits.context_bytes)
        kept_names = _names(blobs.take(_integer(kept, 0, MAX_BLOBS)))
        values = blobs.take(kept)
        gone = _names(blobs.take(_integer(deleted, 0, MAX_BLOBS)))
        held = sum(map(len, values)) + sum(len(name.encode()) for name in kept_names)
        if held > limits.context_bytes or (whole and gone):
            raise Violation("a context that is too large, or at odds with itself")
        if whole:
            size = held  # what is here is measured; of a part, `Guest` knows the rest
        named: dict[str, bytes | None] = {**dict(zip(kept_names, values, strict=True)), **dict.fromkeys(gone)}
        if len(named) != kept + deleted:
            raise Violation("a context that names an item twice")
        change = ContextChange(named, whole, size)
        # A small context is stored inside of another JSON text, beside those of other keys; a name that does
        # not fit into a subject is in the header of its item otherwise.
        if not change.is_small and any(len(name.encode()) > NAME_BYTES for name in named):
            raise Violation("an item of a context with a name that is too long")
        for value in values:
            _require_json(value, "a context item")
        changes[key] = change
    return changes


def _require_json(text: bytes, what: str) -> None:
    """Raise Violation unless a text can stand in another JSON text, and be read there."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Violation(f"{what} that is not JSON") from None
    if nests_deeper(text, value, DEPTH):
        raise Violation(f"{what} that is nested too deeply")


def _rejected(items: list[Any], request: RunRequest) -> list[tuple[int, int, Failure]]:
    rejected = []
    for item in items:
        group, index, code, text = _list(item, 4)
        documents = request.groups[_integer(group, 0, len(request.groups) - 1)].documents
        _integer(index, 0, len(documents) - 1)
        if type(code) is not str or code not in MESSAGE_CODES:
            raise Violation("a message that is rejected for what is no reason")
        rejected.append((group, index, Failure(code, _text(text, TEXT_CHARS))))
    if len({item[:2] for item in rejected}) != len(rejected):
        raise Violation("a message that is rejected twice")
    return rejected
