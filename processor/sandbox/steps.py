"""Steps of recipes in a guest: what their files import as `orchestrator`, and how one of them is executed.

`StepKit` has the modules that a program of steps finds there beside the user's own; `StepRunner` finds the
steps that the program names, and executes them on a context. What a step returns, or how it fails, becomes
one result body. Everything of the user's that is touched here is touched within the limits of user code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import orjson

from processor.errors import Fault, Faults
from processor.model import STEP_MODULES, Program
from processor.sandbox import documents
from processor.sandbox.blackboard import Blackboard, BoardEntry, strict
from processor.sandbox.capabilities import Secrets, Voice
from processor.sandbox.facades import Logger, insist_on_self, plain_text
from processor.sandbox.nodes import STORE_BYTES, STORE_VALUE_BYTES, read_execution
from processor.sandbox.reasons import Reasons
from processor.sandbox.results import Unsuccessful, Writer, failed
from processor.sandbox.usage import tracker

NAMED = "STEPS"  # where a program of steps says which step is which class or function
GOOD = frozenset(("ok", "success"))
_OBJECT = {"type": "object", "additionalProperties": True}  # whatever it is
_REASON_CHARS = 2000
_RETURNED_BYTES = 64 << 10  # of a step that failed
_DOC_CHARS = 200
_DOCS_BYTES = 64 << 10  # of all steps: the later ones are without
_NOT_HERE = ", or set 'nan_as_null: true' for the route"  # the end of a sentence about NaN


class GuestContext(Blackboard):
    """`ctx`: what the steps of a run share. What a step sets counts once it has ended well."""

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        history: Mapping[str, Sequence[BoardEntry]] | None = None,
        who: str = "unknown",
    ) -> None:
        super().__init__(values, history, who)
        self._bytes = 0
        self._sets: list[tuple[str, Any, str, int]] = []

    def _put(self, key: str, value: Any, who: str) -> BoardEntry:
        size = len(documents.dumps(value))
        if size > STORE_VALUE_BYTES:
            raise ValueError(
                f"Value for {key} is {size} bytes; a value takes {STORE_VALUE_BYTES}. Keep it in a file, and "
                "its path here."
            )
        if self._bytes + size > STORE_BYTES:
            raise ValueError(f"Value for {key}: more than {STORE_BYTES} bytes are set. Keep them in files.")
        self._bytes += size
        entry = super()._put(key, value, who)
        self._sets.append((key, value, who, entry.ts_ms))
        return entry


def sets_of(context: GuestContext) -> Sequence[tuple[str, Any, str, int]]:
    """What a step has set, in order: key, value, who and when."""
    return context._sets


class GuestScriptlet:
    """What a step may derive from: `validate` asserts what its parameters have to be, and `run` works."""

    def validate(self, ctx: Any, params: Any) -> None:
        """Nothing: a step without a method of its own takes what it is given."""

    def run(self, ctx: Any, params: Any) -> Any:
        raise NotImplementedError("write run(self, ctx, params)")


for _kind, _name in ((GuestContext, "Context"), (GuestScriptlet, "BaseScriptlet")):
    _kind.__name__ = _kind.__qualname__ = _name  # what user code calls it
# `Context.set(x, ...)` of a class that is given as x would be a call of its metaclass's.
for _method in ("set", "get", "get_history", "last_modified", "to_dict"):
    setattr(GuestContext, _method, vars(Blackboard)[_method])
    insist_on_self(GuestContext, _method)


class StepKit:
    """What programs of steps import; made once for a guest."""

    bases: tuple[type, ...] = (GuestScriptlet,)  # the classes that users may derive from

    def __init__(self, log: Callable[[str, str], None], *, has_coroutines: bool) -> None:
        self._log = log
        self._has_coroutines = has_coroutines
        self._loggers: dict[str, Logger] = {}

    def logger(self, name: object = "root") -> Logger:
        """`get_logger`: its lines name the module that they are of."""
        key = plain_text(name)
        if key not in self._loggers:
            log = self._log
            self._loggers[key] = Logger(lambda level, text: log(level, f"{key} | {text}"), key)
        return self._loggers[key]

    def modules(self) -> dict[str, dict[str, Any]]:
        """The names of each module."""
        context, base, logging, usage = STEP_MODULES
        say = self.logger(usage).info
        return {
            context: {"Context": GuestContext},
            base: {"BaseScriptlet": GuestScriptlet},
            logging: {"get_logger": self.logger},
            usage: {"track_resources": tracker(say, has_coroutines=self._has_coroutines)},
        }


class KnownStep(NamedTuple):
    """A step, looked at once."""

    made_of: Any
    is_class: bool
    arguments: int = 2  # of a function: context and parameters, or the parameters alone


class StepResult(NamedTuple):
    """What a step came to, before it is written."""

    step: str
    returned: Any
    why: str | None = None  # it is bad
    traceback: str = ""


class StepRunner:
    """Executes the steps of one program."""

    def __init__(self, program: Program, reasons: Reasons, finish: Callable[[Any], Any] | None) -> None:
        """`finish` runs a coroutine that a step returned to its end; None where there are none."""
        self.manifest: dict[str, Any] = {}
        self._program = program
        self._reasons = reasons
        self._finish = finish
        self._steps: dict[str, KnownStep] = {}
        self._wrong: list[str] = []
        self._writer: Writer

    def learn(self, space: Mapping[str, Any]) -> None:
        """Take up the steps that a program in `space` names."""
        room = _DOCS_BYTES
        for name, (kind, found) in space[NAMED].items():
            is_class = kind == "class"
            if is_class and not (isinstance(found, type) and callable(getattr(found, "run", None))):
                self._wrong.append(f"step {name}: it is no class with a method run(self, ctx, params)")
            elif not is_class and not callable(found):
                self._wrong.append(f"step {name}: it is no function of (ctx, params) or (params)")
            self._steps[name] = KnownStep(found, is_class)
            words = getattr(found, "__doc__", None)
            doc = inspect.cleandoc(words)[:_DOC_CHARS] if type(words) is str else ""
            room -= len(orjson.dumps(doc.encode(errors="replace").decode()))
            if room < 0:
                doc = ""
            self.manifest[name] = {
                "inputs": _OBJECT,
                "outputs": _OBJECT,
                "secrets": _OBJECT,
                "doc": _encodable(doc),
            }

    def check(self) -> None:
        """Raise Faults for all that is wrong with the steps; runs no code of the user's."""
        if self._wrong:
            raise Faults([Fault(self._program.filename, 1, 1, "E207", text) for text in self._wrong])
        for name, step in self._steps.items():
            self._steps[name] = step._replace(arguments=_arguments(step.made_of))

    def begin(self, voice: Voice, secrets: Secrets, writer: Writer) -> None:
        """Write what executions give with this from now on."""
        self._writer = writer

    def read(self, text: bytes) -> dict[str, Any]:
        """The document of an execution. Raises Unsuccessful for what a step may not be given."""
        return read_execution(text, self._writer.bounds)

    def execute(self, document: Mapping[str, Any]) -> tuple[StepResult, GuestContext]:
        """Run the step that a document is for. This is user code, and runs as such.

        Raises what the step raises, but for AssertionError, with which it says what its parameters lack.
        """
        name = document["kind"]
        step = self._steps.get(name)
        if step is None:
            raise failed("E304", f"there is no step {name!r} here; there are {', '.join(self._steps)}")
        history = {key: _entries(*changes) for key, changes in document.get("history", {}).items()}
        context = GuestContext(document["store"], history, name)
        try:
            made = self._call(step, context, document["inputs"])
        except AssertionError as err:
            why, trace = self._reasons.describe(err)
            return StepResult(name, None, why.removeprefix("AssertionError: "), trace), context
        return _judged(name, made), context

    def raised(self, err: Unsuccessful, document: Mapping[str, Any]) -> tuple[StepResult, GuestContext]:
        """The result of a step whose code raised. Raises `err` again where it is more than that."""
        failure = err.failure
        if failure.code != "E304" or failure.retry_after_s is not None or document["kind"] not in self._steps:
            raise err
        return StepResult(document["kind"], None, failure.text, failure.traceback), GuestContext()

    def write(self, result: StepResult, context: GuestContext) -> bytes:
        """The body of a result. Raises Exceeded."""
        name, returned, why, trace = result
        if why is None:
            try:
                text = self._writer.write(returned, "output")
            except documents.Unwritable as err:
                why, returned = str(err).removesuffix(_NOT_HERE), None
        if why is None:
            sets = b",".join(documents.dumps(list(change)) for change in sets_of(context))
            return b'{"outputs":%b,"sets":[%b]}' % (text, sets)
        why = _encodable(why[:_REASON_CHARS])
        error = {"code": "E716", "text": f"step {name}: {why}", "traceback": _encodable(trace)}
        text = b"" if returned is None else self._writer.write(returned, "output")
        if not 0 < len(text) <= _RETURNED_BYTES:
            text = orjson.dumps({"status": "error", "reason": why})
        return b'{"error":%b,"returned":%b}' % (orjson.dumps(error), text)

    def _call(self, step: KnownStep, context: GuestContext, params: Any) -> Any:
        if step.is_class:
            made = step.made_of()
            validate = getattr(made, "validate", None)
            if validate is not None:
                self._finished(validate(context, params))
            return self._finished(made.run(context, params))
        arguments = (context, params) if step.arguments > 1 else (params,)[: step.arguments]
        return self._finished(step.made_of(*arguments))

    def _finished(self, made: Any) -> Any:
        return made if self._finish is None else self._finish(made)


def _entries(old: Any, *changes: Any) -> list[BoardEntry]:
    """The changes of a key as the store of a run remembers them: its first value, and what came after."""
    found = []
    for ts_ms, who, new in changes:
        found.append(BoardEntry(ts_ms, who, old, new))
        old = new
    return found


def _judged(name: str, made: Any) -> StepResult:
    """What a step has returned, as good or bad."""
    if type(made) is int and made == 0:
        return StepResult(name, {"status": "ok"})
    if not isinstance(made, dict):
        kind = type.__dict__["__name__"].__get__(type(made))
        shown = str(made) if type(made) in (int, float, bool) else f"a {kind}" if made is not None else "None"
        return StepResult(name, None, f'it returned {shown}; a step returns {{"status": "ok", ...}}, or 0')
    status = _plain(dict.get(made, "status"))
    if status in GOOD:
        return StepResult(name, made)
    reason = _plain(dict.get(made, "reason")) or f"it returned the status {status!r}"
    try:
        returned = strict("output", made)
    except ValueError:
        returned = None
    return StepResult(name, returned, reason)


def _encodable(text: str) -> str:
    """A text without the lone surrogates that JSON cannot carry."""
    return text.encode(errors="replace").decode()


def _plain(value: Any) -> str | None:
    return str.__str__(value) if isinstance(value, str) else None


def _arguments(function: Any) -> int:
    """How many arguments a function takes: 2 where it takes any number, or does not say."""
    for _level in range(10):  # of decorators
        inner = vars(function).get("__wrapped__") if type(function) is FunctionType else None
        if type(inner) is not FunctionType:
            break
        function = inner
    if type(function) is not FunctionType or function.__code__.co_flags & inspect.CO_VARARGS:
        return 2
    return min(function.__code__.co_argcount, 2)


def source_of(steps: Mapping[str, tuple[str, str, bool]]) -> str:
    """The program that names these steps: by name the module, the name in it, and whether that is a class."""
    lines, rows = [], []
    for number, (name, (module, attribute, is_class)) in enumerate(steps.items()):
        lines.append(f"from {module} import {attribute} as step_{number}")
        rows.append(f"    {name!r}: ({'class' if is_class else 'function'!r}, step_{number}),")
    return "\n".join([*lines, f"{NAMED} = {{", *rows, "}", ""])
