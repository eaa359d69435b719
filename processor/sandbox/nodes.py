"""Nodes of graphs in a guest: what their classes derive from, and how one of them is executed.

`NodeKit` is what a program of nodes imports as `exospherehost`, in either language; `NodeRunner` finds the
nodes that a program defines, says what they take and give, and executes them. What a node returns, refuses or
signals becomes one result body; what it raises is for its caller. Everything of the user's that is touched
here is touched within the limits of user code.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import orjson

from processor.errors import Fault, Faults
from processor.model import Failure, Program
from processor.sandbox import documents, entrypoints, wire
from processor.sandbox.bounds import Bounds, Exceeded
from processor.sandbox.capabilities import Capable, Secrets, Voice
from processor.sandbox.languages import Models
from processor.sandbox.reasons import Reasons
from processor.sandbox.results import Unsuccessful, Writer, failed

LONGEST_REQUEUE_S = 366 * 86_400
STORE_KEY_CHARS = 128
STORE_VALUE_BYTES = 64 << 10
STORE_BYTES = 1 << 20
SHOWN_FAULTS = 20
FAULT_CHARS = 200


class GuestPrune(BaseException):
    """Raised by a node that ends its branch: nothing comes after it there, and it is no failure."""

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        if not isinstance(data, (Mapping, type(None))):
            raise TypeError(f"the data of a PruneSignal is a dict, not a {type(data).__name__}")
        self.data = {} if data is None else {name: data[name] for name in data}


class GuestRequeue(BaseException):
    """Raised by a node that is to be executed again after a delay, a timedelta or seconds: the same attempt.

    With `inputs`, those of the next execution.
    """

    def __init__(self, delay: Any, inputs: Mapping[str, Any] | None = None) -> None:
        super().__init__(delay)
        seconds = timedelta.total_seconds(delay) if isinstance(delay, timedelta) else delay
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"the delay is a timedelta or seconds, not a {type(delay).__name__}")
        if not 0 <= seconds <= LONGEST_REQUEUE_S:
            raise ValueError(f"the delay is {seconds} s; it is 0 to {LONGEST_REQUEUE_S} seconds")
        self.delay = delay
        self.inputs = None if inputs is None else {name: inputs[name] for name in inputs}


class GuestStore(Mapping[str, Any]):
    """`self.store`: what the nodes of a run share. It is as it was when the node was sent off; what the node
    sets counts from its result on.
    """

    __slots__ = ("_bytes", "_items", "_sets", "_write")

    def __init__(self, items: dict[str, Any], write: Callable[..., bytes]) -> None:
        self._items = items
        self._write = write
        self._sets: list[tuple[str, bytes]] = []
        self._bytes = 0

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def set(self, key: str, value: Any) -> None:
        """Set a key. Raises ValueError for one with a dot, and for more than the store takes."""
        if not isinstance(key, str):
            raise TypeError(f"a key of the store is a text, not a {type(key).__name__}")
        key = str.__str__(key)
        if not 0 < len(key) <= STORE_KEY_CHARS or "." in key or not wire.is_text(key):
            shown = repr(key[:STORE_KEY_CHARS])
            raise ValueError(
                f"a key of the store is 1 to {STORE_KEY_CHARS} characters without a dot: {shown}"
            )
        text = self._write(value, "store", key)
        if len(text) > STORE_VALUE_BYTES:
            raise ValueError(
                f"store {key}: {len(text)} bytes; a value takes {STORE_VALUE_BYTES}. Keep a reference."
            )
        if self._bytes + len(text) > STORE_BYTES:
            raise ValueError(f"store {key}: more than {STORE_BYTES} bytes are set. Keep references.")
        self._bytes += len(text)
        self._sets.append((key, text))
        self._items[key] = documents.loads(text)

    __setitem__ = set

    def __repr__(self) -> str:
        return f"<store {', '.join(self._items)}>"


for _kind, _name in (
    (GuestPrune, "PruneSignal"),
    (GuestRequeue, "ReQueueAfterSignal"),
    (GuestStore, "Store"),
):
    _kind.__name__ = _kind.__qualname__ = _name  # what user code calls it


def sets_of(store: GuestStore) -> Sequence[tuple[str, bytes]]:
    """What a node has set, in order."""
    return store._sets


class NodeMethods(Capable):
    """What a node inherits beside its models."""

    inputs: Any
    store: GuestStore
    united: Any  # {"success", "errored", "pruned"} where it unites branches, else None
    run_id: str
    execution: str  # the node's identifier in the graph, with its branch
    attempt: int
    idempotency_key: str  # the same for all attempts of an execution

    def __init__(self) -> None:
        """Make a node for one execution."""

    def execute(self) -> Any:
        """The outputs: one `self.Outputs(...)`, a list of them for as many branches, or None."""
        raise NotImplementedError("write execute(self)")


class NodeKit:
    """What programs of nodes import, for one library of models; made once for a guest."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.noted: list[Any] = []  # what Runtime(nodes=[...]) was given
        space = {"__module__": "exospherehost"}
        empty = {name: type(name, (models.base,), dict(space)) for name in ("Inputs", "Outputs", "Secrets")}
        self.base = type("BaseNode", (NodeMethods,), {**space, "__doc__": NodeMethods.__doc__, **empty})

    def names(self) -> dict[str, Any]:
        """What `exospherehost` has."""
        noted = self.noted

        class NotedRuntime:
            """Notes its nodes. What else it is told is for a program of its own, which this is none of."""

            __slots__ = ()

            def __init__(self, namespace: str = "", name: str = "", nodes: Any = (), **_: Any) -> None:
                noted.extend(list(nodes))

            def start(self) -> None:
                """The guest executes nodes already."""

        NotedRuntime.__name__ = NotedRuntime.__qualname__ = "Runtime"
        return {
            "BaseNode": self.base,
            "Runtime": NotedRuntime,
            "PruneSignal": GuestPrune,
            "ReQueueAfterSignal": GuestRequeue,
        }

    @property
    def bases(self) -> tuple[type, ...]:
        """The classes that users may derive from."""
        models = (vars(self.base)[name] for name in ("Inputs", "Outputs", "Secrets"))
        return (self.base, GuestPrune, GuestRequeue, *models)


class KnownNode(NamedTuple):
    """A class of nodes, looked at once."""

    cls: Any
    inputs: Any
    outputs: Any
    secrets: Any
    declared: frozenset[str]  # the names of its secrets
    takes_inputs: bool = False  # as an argument of `execute`


class NodeResult(NamedTuple):
    """What a node came to, before it is written."""

    outcome: str  # outputs, prune or requeue_ms
    value: Any
    inputs: Any = None


class NodeRunner:
    """Executes the nodes of one program."""

    def __init__(
        self, kit: NodeKit, program: Program, reasons: Reasons, finish: Callable[[Any], Any] | None
    ) -> None:
        """`finish` runs a coroutine that a node returned to its end; None where there are none."""
        self.manifest: dict[str, Any] = {}
        self._kit = kit
        self._program = program
        self._reasons = reasons
        self._finish = finish
        self._kinds: dict[str, KnownNode] = {}
        self._wrong: list[tuple[str, str]] = []  # name of a class, and what is wrong with it
        self._common: dict[str, Any] = {}
        self._marks: dict[str, str] = {}
        self._writer: Writer

    def learn(self, space: Mapping[str, Any]) -> None:
        """Take up the nodes that a program in `space` defines. Runs code of the user's."""
        base: Any = self._kit.base
        found = list(self._kit.noted) or [
            value for value in space.values() if _derives(value, base) and value.execute is not base.execute
        ]
        for cls in {id(each): each for each in found}.values():
            why = self._why_no_node(cls)
            if why:
                self._wrong.append((_named(cls), why))
                continue
            kind = self._kind_of(cls)
            self._kinds[cls.__name__] = kind
            self.manifest[cls.__name__] = {
                "inputs": kind.inputs.model_json_schema(),
                "outputs": kind.outputs.model_json_schema(),
                "secrets": kind.secrets.model_json_schema(),
                "doc": inspect.cleandoc(cls.__doc__) if type(cls.__doc__) is str else "",
            }

    def check(self) -> None:
        """Raise Faults for all that is wrong with the nodes; runs no code of the user's."""
        faults = [self._fault(name, f"{name} {why}") for name, why in self._wrong]
        if not (faults or self._kinds):
            text = "no node is defined. Write 'class MyNode(BaseNode):' with a method execute(self)."
            faults.append(Fault(self._program.filename, 1, 1, "E204", text))
        if why := "" if faults else self._unsayable():
            faults.append(Fault(self._program.filename, 1, 1, "E207", f"the schemas of its nodes {why}"))
        if faults:
            raise Faults(faults)
        for name, kind in self._kinds.items():
            takes_inputs = bool(entrypoints.first_parameter(kind.cls, "execute"))
            self._kinds[name] = kind._replace(takes_inputs=takes_inputs)

    def _unsayable(self) -> str:
        """Why the manifest cannot be told to the host; empty where it can."""
        try:
            text = orjson.dumps(self.manifest)
        except TypeError as err:
            return f"are no JSON: {err}."
        self.manifest = orjson.loads(text)  # of exact types
        if len(text) > wire.MANIFEST_BYTES:
            much = f"{len(text)} bytes (limit {wire.MANIFEST_BYTES})"
            return f"have {much}. Divide the nodes among several files."
        return ""

    def _why_no_node(self, cls: Any) -> str:
        base: Any = self._kit.base
        if not _derives(cls, base):
            return "is no class that derives from BaseNode."
        name = cls.__name__
        if cls.execute is base.execute:
            return "has no `execute`. Write 'async def execute(self):' or 'def execute(self):'."
        if cls.__new__ is not object.__new__:
            return "makes its own objects. Keep such an object in an attribute."
        if not name.isidentifier() or len(name) > wire.KIND_CHARS:
            return f"has a name that is none for a node: 1 to {wire.KIND_CHARS} letters, digits and _."
        if name in self._kinds:
            return "is there twice. Rename one of them."
        for part in ("Inputs", "Outputs", "Secrets"):
            model = getattr(cls, part)
            if not _derives(model, self._kit.models.base):
                return f"has {part} that are no model. Write 'class {part}(BaseModel):'."
        return ""

    def _kind_of(self, cls: Any) -> KnownNode:
        names = cls.Secrets.model_json_schema().get("properties", {})
        return KnownNode(cls, cls.Inputs, cls.Outputs, cls.Secrets, frozenset(names))

    def _fault(self, name: str, text: str) -> Fault:
        line, column = 1, 1
        for node in ast.walk(ast.parse(self._program.source)):
            if isinstance(node, ast.ClassDef) and node.name == name:
                line, column = node.lineno, node.col_offset + 1
                break
        return Fault(self._program.filename, line, column, "E207", text)

    def begin(self, voice: Voice, secrets: Secrets, writer: Writer) -> None:
        """Give executions from now on what their nodes reach the outside with."""
        self._common = {
            "_voice": voice,
            "logger": voice.logger,
            "requests": voice.requests,
            "files": voice.files,
            "tools": voice.tools,
        }
        self._marks = {name: str(secrets[name]) for name in secrets}
        self._writer = writer

    def read(self, text: bytes) -> dict[str, Any]:
        """The document of an execution. Raises Unsuccessful for what a node may not be given."""
        return read_execution(text, self._writer.bounds)

    def execute(self, document: Mapping[str, Any]) -> tuple[NodeResult, GuestStore]:
        """Call the node that a document is for. This is user code, and runs as such.

        Raises what the node raises, and Unsuccessful E709 for what a model refuses.
        """
        kind = self._kinds.get(document["kind"])
        if kind is None:
            known = ", ".join(self._kinds)
            raise failed("E304", f"there is no node {document['kind']!r} in this file; it has {known}")
        name = document["kind"]
        settings, declared = document.get("settings") or {}, {}
        for each in kind.declared:
            if each in self._marks:
                declared[each] = self._marks[each]
            elif each in settings:
                declared[each] = settings[each]
        store = GuestStore(document["store"], self._writer.write)
        node = object.__new__(kind.cls)
        object.__getattribute__(node, "__dict__").update(
            self._common,
            inputs=self._taken(kind.inputs, document["inputs"], "inputs", name),
            secrets=self._declared(kind, declared, name),
            store=store,
            united=document.get("united"),
            run_id=document["run"],
            execution=document["x"],
            attempt=document["a"],
            idempotency_key=f"{document['run']}:{document['x']}",
        )
        try:
            node.__init__()
            made = node.execute(node.inputs) if kind.takes_inputs else node.execute()
            if self._finish is not None:
                made = _finished(self._finish, made)
        except GuestPrune as signal:
            return NodeResult("prune", dict(signal.data)), store
        except GuestRequeue as signal:
            return _requeued(signal), store
        except self._kit.models.error as err:
            if _title(err) != kind.outputs.__name__:
                raise
            trace = self._reasons.describe(err)[1]
            raise Unsuccessful(Failure("E709", self._refusal("outputs", name, err), trace)) from None
        return NodeResult("outputs", self._outputs(kind, name, made)), store

    def raised(self, err: Unsuccessful, document: Mapping[str, Any]) -> NoReturn:
        """Raise it: what the code of a node raised is for its caller."""
        raise err

    def _outputs(self, kind: KnownNode, name: str, made: Any) -> Any:
        if isinstance(made, (list, tuple)):
            return [self._output(kind, name, each) for each in made]
        return self._output(kind, name, made)

    def _output(self, kind: KnownNode, name: str, made: Any) -> Any:
        if isinstance(made, kind.outputs):
            return self._kit.models.dump(made)
        if made is None or isinstance(made, dict):
            return self._kit.models.dump(self._taken(kind.outputs, made or {}, "outputs", name))
        was = f"execute returned a {type(made).__name__}"
        text = (
            f"outputs of {name}: {was}; return self.Outputs(...), a list of them, or None. Not tried again."
        )
        raise failed("E709", text)

    def _taken(self, model: Any, values: Any, what: str, name: str) -> Any:
        """A model of these values. Raises Unsuccessful E709 for what it refuses."""
        try:
            return model.model_validate(values)
        except self._kit.models.error as err:
            raise failed("E709", self._refusal(what, name, err)) from None

    def _declared(self, kind: KnownNode, values: Mapping[str, Any], name: str) -> Any:
        """The secrets of a node. Marks stand for values that the host has held against the rules: no rule is
        for them.
        """
        marks, models = self._marks.keys() & values.keys(), self._kit.models
        try:
            return kind.secrets.model_validate(values)
        except models.error as err:
            if not marks:
                raise failed("E709", self._refusal("secrets", name, err)) from None
        try:
            return models.unruled(kind.secrets, values, marks)
        except models.error as err:
            raise failed("E709", self._refusal("secrets", name, err)) from None

    def _refusal(self, what: str, name: str, err: Any) -> str:
        faults = err.errors()
        lines = [_fault_line(fault) for fault in faults[:SHOWN_FAULTS]]
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        return f"{what} of {name}: {'; '.join(lines)}{more}. Not tried again."

    def write(self, result: NodeResult, store: GuestStore) -> bytes:
        """The body of a result. Raises Unwritable and Exceeded."""
        write = self._writer.write
        if result.outcome == "outputs":
            sets = b",".join(b"[%b,%b]" % (orjson.dumps(key), text) for key, text in sets_of(store))
            return b'{"outputs":%b,"sets":[%b]}' % (write(result.value, "outputs"), sets)
        if result.outcome == "prune":
            return b'{"prune":%b}' % write(result.value, "PruneSignal")
        inputs = (
            b"" if result.inputs is None else b',"inputs":%b' % write(result.inputs, "ReQueueAfterSignal")
        )
        return b'{"requeue_ms":%d%b}' % (result.value, inputs)


def read_execution(text: bytes, bounds: Bounds) -> dict[str, Any]:
    """The document of an execution. Raises Unsuccessful for what user code may not be given."""
    try:
        document: dict[str, Any] = documents.loads(text)
        if bounds.may_be_exceeded(text):
            bounds.check(document, "the inputs")
        return document
    except Exceeded as err:
        raise failed(err.code, str(err)) from None


def _finished(finish: Callable[[Any], Any], made: Any) -> Any:
    """What a node that may have returned a coroutine comes to; a signal as if no TaskGroup were around it."""
    try:
        return finish(made)
    except BaseExceptionGroup as err:
        only: BaseException = err
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        if isinstance(only, (GuestPrune, GuestRequeue)):
            raise only from None
        raise


def _requeued(signal: GuestRequeue) -> NodeResult:
    delay = signal.delay  # checked when it was made; a subclass of the user's may have changed its mind
    seconds = timedelta.total_seconds(delay) if isinstance(delay, timedelta) else float(delay)
    if not 0 <= seconds <= LONGEST_REQUEUE_S:
        raise ValueError(f"the delay is {seconds} s; it is 0 to {LONGEST_REQUEUE_S} seconds")
    return NodeResult("requeue_ms", round(seconds * 1000), signal.inputs)


def _fault_line(fault: Mapping[str, Any]) -> str:
    """A fault in the words of its library, without the value that it is about."""
    place = ".".join(map(str, fault["loc"]))
    return (f"{place}: {fault['msg']}" if place else str(fault["msg"]))[:FAULT_CHARS]


def _title(err: Any) -> str:
    return str(getattr(err, "title", ""))


def _derives(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _named(cls: Any) -> str:
    return str(getattr(cls, "__name__", "") or type(cls).__name__)[: wire.KIND_CHARS]
