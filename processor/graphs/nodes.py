"""Nodes of graphs in the user's own process: what they derive from, how one runs, and what came of it.

`runtime` calls `perform` for each execution; what it returns is the part of a result message that the node
decides. Nodes in guests have the same classes by the same names, from the sandbox.

What must stay true: whatever a node does, `perform` returns; no value of a secret is in an error that it
returns.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError

from processor.errors import ERRORS

# A shorter secret is in texts by chance; to hide it would spoil them and keep nothing.
_HIDDEN_CHARS = 4
_TEXT_CHARS = 500
_TRACEBACK_CHARS = 2000
_OURS = str(Path(__file__).parent.parent)


class PruneSignal(BaseException):
    """Raised by a node: nothing that comes after it runs. `data` is kept as what it said."""

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self.data = dict(data or {})
        super().__init__(self.data)


class ReQueueAfterSignal(BaseException):
    """Raised by a node: run it again after `delay`, a timedelta or seconds; with other `inputs` if given."""

    def __init__(self, delay: timedelta | float, inputs: Mapping[str, Any] | None = None) -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not seconds > 0:
            raise ValueError("a delay must be longer than nothing")
        self.delay = timedelta(seconds=seconds)
        self.inputs = None if inputs is None else dict(inputs)
        super().__init__(delay)


class NodeStore:
    """The store of a run, as it was when the execution was sent, with what the node has set in it since."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self.sets: list[list[Any]] = []

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        return self._values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Give a key a value, which is JSON, for what runs after this node. A key is a text without dots."""
        if not isinstance(key, str) or not key or "." in key:
            raise ValueError(f"a key of the store is a text without dots, not {key!r}")
        value = orjson.loads(orjson.dumps(value))
        self._values[key] = value
        self.sets.append([key, value])


class BaseNode:
    """What a node derives from. `Inputs`, `Outputs` and, if it wants any, `Secrets` are pydantic models.

    `execute` returns an `Outputs`, a list of them, each of which goes on by itself, or None. It may raise
    PruneSignal and ReQueueAfterSignal; anything else that it raises is an error of this try.
    """

    Inputs: ClassVar[type[BaseModel]]
    Outputs: ClassVar[type[BaseModel]]
    Secrets: ClassVar[type[BaseModel]]

    inputs: Any
    secrets: Any
    run_id: str
    execution: str
    attempt: int
    idempotency_key: str  # the same for all tries of an execution
    store: NodeStore
    united: dict[str, int] | None
    logger: logging.Logger

    async def execute(self) -> Any:
        """Do what the node is for."""
        raise NotImplementedError(f"{type(self).__name__} has no `execute`")

    def emit(self, subject: str, data: Any) -> None:
        """Not here: it raises RuntimeError."""
        raise RuntimeError(
            "self.emit is for nodes that run in a processor: publish with a client of this program"
        )

    def event(self, name: str, data: Any = None) -> None:
        """Not here: it raises RuntimeError."""
        raise RuntimeError("self.event is for nodes that run in a processor: log it, or publish it here")


class _NoFields(BaseModel):
    """The model that a node has where it declares none."""


@dataclass(frozen=True, slots=True)
class NodeClass:
    """A class of nodes with its models."""

    node: type[BaseNode]
    inputs: type[BaseModel]
    outputs: type[BaseModel]
    secrets: type[BaseModel]

    @classmethod
    def of(cls, node: type[BaseNode]) -> NodeClass:
        """Raises ValueError where one of its models is not a pydantic model."""
        models = [getattr(node, name, _NoFields) for name in ("Inputs", "Outputs", "Secrets")]
        for name, model in zip(("Inputs", "Outputs", "Secrets"), models, strict=True):
            if not isinstance(model, type) or not issubclass(model, BaseModel):
                raise ValueError(f"{node.__name__}.{name} is not a subclass of pydantic.BaseModel")
        return cls(node, *models)

    @property
    def name(self) -> str:
        """The name of the kind."""
        return self.node.__name__

    @property
    def secret_names(self) -> list[str]:
        """The secrets that it needs."""
        return [field.alias or name for name, field in self.secrets.model_fields.items()]

    @property
    def required_secrets(self) -> list[str]:
        """Those that have no default."""
        fields = self.secrets.model_fields.items()
        return [field.alias or name for name, field in fields if field.is_required()]

    def manifest(self) -> dict[str, Any]:
        """What graphs are checked against."""
        return {
            "name": self.name,
            "inputs": self.inputs.model_json_schema(),
            "outputs": self.outputs.model_json_schema(mode="serialization"),
            "secrets": self.secret_names,
            "optional": [name for name in self.secret_names if name not in self.required_secrets],
            "doc": inspect.getdoc(self.node) if self.node.__doc__ else "",
        }


def classes_of(nodes: Sequence[type[BaseNode]]) -> dict[str, NodeClass]:
    """The classes by name. Raises ValueError with everything that is wrong with them."""
    faults = [] if nodes else ["there are no nodes"]
    found: dict[str, NodeClass] = {}
    for node in nodes:
        if not isinstance(node, type) or not issubclass(node, BaseNode):
            faults.append(f"{node!r} is not a subclass of BaseNode")
            continue
        if node.__name__ in found:
            faults.append(f"two nodes are called {node.__name__}")
        try:
            found[node.__name__] = NodeClass.of(node)
        except ValueError as err:
            faults.append(str(err))
    if faults:
        raise ValueError("; ".join(faults))
    return found


class Task(NamedTuple):
    """An execution, as the engine sends it."""

    run: str
    x: str
    attempt: int
    graph: str
    inputs: Mapping[str, Any]
    store: Mapping[str, Any]
    united: Mapping[str, int] | None

    @classmethod
    def read(cls, payload: bytes) -> Task:
        """The execution that a message holds. Raises ValueError for any other."""
        try:
            body = orjson.loads(payload)
            if body["v"] != 1 or body["t"] != "exec":
                raise ValueError(f"it is {str(body['t'])[:20]!r} of version {str(body['v'])[:20]}")
            found = cls(
                body["run"],
                body["x"],
                body["a"],
                body["graph"],
                body["inputs"],
                body.get("store") or {},
                body.get("united"),
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"it lacks {err}") from None
        texts = found.run, found.x, found.graph
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(found.attempt, int):
            raise ValueError("its run, x, graph or a is of another type")
        if not isinstance(found.inputs, dict) or not isinstance(found.store, dict):
            raise ValueError("its inputs or store are not objects")
        return found

    @property
    def key(self) -> str:
        """The same for all tries of the execution."""
        return f"{self.run}:{self.x}"


def result_head(task: Task) -> dict[str, Any]:
    """Which try of which execution a result is of."""
    return {"v": 1, "t": "result", "run": task.run, "x": task.x, "a": task.attempt}


async def perform(node_class: NodeClass, task: Task, secrets: Mapping[str, str]) -> dict[str, Any]:
    """What came of an execution, as a part of its result: one of outputs, error, prune and requeue_ms.

    Raises CancelledError where the caller is cancelled, and nothing else.
    """
    hidden = _Hidden(secrets.values())
    name = node_class.name
    try:
        given = {key: secrets[key] for key in node_class.secret_names if key in secrets}
        own_secrets = node_class.secrets.model_validate(given)
    except ValidationError as err:
        return error_of("E709", hidden.text(f"secrets of {name}: {_listed(err)}. Not tried again."))
    try:
        inputs = node_class.inputs.model_validate(dict(task.inputs))
    except ValidationError as err:
        return error_of("E709", hidden.text(f"inputs of {name}: {_listed(err)}. Not tried again."))
    work = asyncio.create_task(_outcome(node_class, task, inputs, own_secrets, hidden), name=task.key)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if not work.cancelled():  # it is the caller who is cancelled
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise
    return error_of("E304", f"CancelledError: {name} cancelled its own task")


async def _outcome(
    node_class: NodeClass, task: Task, inputs: BaseModel, secrets: BaseModel, hidden: _Hidden
) -> dict[str, Any]:
    try:
        node = node_class.node()
        node.inputs, node.secrets = inputs, secrets
        node.run_id, node.execution, node.attempt = task.run, task.x, task.attempt
        node.idempotency_key = task.key
        node.store = NodeStore(task.store)
        node.united = None if task.united is None else dict(task.united)
        node.logger = logging.getLogger(f"exospherehost.{node_class.name}")
        takes_inputs = len(inspect.signature(node.execute).parameters) > 0
        returned = node.execute(inputs) if takes_inputs else node.execute()  # type: ignore[call-arg]
        returned = await returned if inspect.isawaitable(returned) else returned
        result = _returned(node_class, returned)
        return {**result, "sets": node.store.sets} if "outputs" in result else result
    except PruneSignal as signal:
        return _jsonable({"prune": signal.data}, "data of PruneSignal", node_class)
    except ReQueueAfterSignal as signal:
        delay_ms = max(1, round(signal.delay.total_seconds() * 1000))
        again = {"requeue_ms": delay_ms} | ({} if signal.inputs is None else {"inputs": signal.inputs})
        return _jsonable(again, "inputs of ReQueueAfterSignal", node_class)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as err:  # the user's code: whatever it raises is an error of this try
        trace, text = _described(err)
        return error_of("E304", hidden.text(text), hidden.text(trace))


def _returned(node_class: NodeClass, value: Any) -> dict[str, Any]:
    """The outputs that a node returned, or the error of those that it may not return."""
    if value is None:
        return {"outputs": None}
    model = node_class.outputs
    many = value if isinstance(value, list) else [value]
    written = []
    for number, one in enumerate(many):
        try:
            valid = one if isinstance(one, model) else model.model_validate(one)
            written.append(valid.model_dump(mode="json"))
        except ValidationError as err:
            which = f" element {number}" if isinstance(value, list) else ""
            return error_of("E709", f"outputs of {node_class.name}:{which} {_listed(err)}. Not tried again.")
    return {"outputs": written if isinstance(value, list) else written[0]}


def _jsonable(document: dict[str, Any], what: str, node_class: NodeClass) -> dict[str, Any]:
    try:
        orjson.dumps(document)
    except orjson.JSONEncodeError as err:
        return error_of("E709", f"{what} of {node_class.name} is not JSON: {err}. Not tried again.")
    return document


def error_of(code: str, text: str, traceback: str = "") -> dict[str, Any]:
    """An error as a part of a result; whether it is final is that of its code."""
    told = {"code": code, "text": text[:_TEXT_CHARS], "traceback": traceback[-_TRACEBACK_CHARS:]}
    return {"error": told, "final": ERRORS[code].is_final}


def _listed(err: ValidationError) -> str:
    """Field and sentence of each fault; not the value."""
    found = err.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in found)


def _described(err: BaseException) -> tuple[str, str]:
    """The frames of the user's code, as Python shows them, and the last line of that."""
    told = traceback.TracebackException.from_exception(err)
    seen: traceback.TracebackException | None = told
    while seen is not None:
        frames = [frame for frame in seen.stack if not frame.filename.startswith(_OURS)]
        seen.stack = traceback.StackSummary.from_list(frames)
        seen = seen.__cause__ or seen.__context__
    *_, text = told.format_exception_only()
    return "".join(told.format()), text.strip()


class _Hidden:
    """Values that no text may hold."""

    def __init__(self, values: Sequence[str] | Any) -> None:
        # The longest first, as one may hold another.
        self._values = sorted((v for v in values if len(v) >= _HIDDEN_CHARS), key=len, reverse=True)

    def text(self, text: str) -> str:
        """The same with `***` in place of each of them."""
        for value in self._values:
            text = text.replace(value, "***")
        return text
