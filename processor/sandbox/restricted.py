"""The restricted language as the language of a guest: `dialect`, and what is around it.

Called by the guest, and only there.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

from processor.model import Module, Program
from processor.sandbox import dialect, httpx, values
from processor.sandbox.facades import MODEL, MODEL_ERROR, deque, unruled
from processor.sandbox.languages import Codes, Given, Models, Runtime
from processor.sandbox.requests import within_deadline

_REHEARSED = Program("class Runnable:\n    def process(self, queries):\n        return 1 / 0\n", "warm.py")
_REHEARSAL = marshal.dumps(dialect.compile_program(_REHEARSED))


class Restricted:
    """`language: restricted`, which is what a route has that names none."""

    name = "restricted"
    is_watched = True
    is_preparable = True
    finish: Callable[[Any], Any] | None = None
    awaited: Callable[..., Any] | None = None

    def models(self) -> Models | None:
        return Models(MODEL, MODEL_ERROR, lambda model: model, unruled)  # a document as it stands

    def prepare(self, packages: Sequence[str]) -> dict[str, Any]:
        dialect.preload()
        values.read_deques_as(deque)
        return {}

    def rehearse(self, space: dict[str, object]) -> None:
        code, space = marshal.loads(_REHEARSAL), dict(space)
        dialect.verify(code)
        exec(code, space)
        dialect.runnable_class(space)

    def warm_up(self, base: type) -> None:
        """Go once through a whole run that fails."""
        space = dialect.namespace(Runtime(base, lambda *_: None))
        exec(marshal.loads(_REHEARSAL), space)
        cls = dialect.runnable_class(space)
        try:
            cls().process([])
        except ZeroDivisionError as err:
            dialect.describe(err, _REHEARSED)

    def reseed(self) -> None:
        dialect.reseed()

    def compile(self, program: Program, module: Module | None = None) -> CodeType:
        return dialect.compile_module(program, module) if module else dialect.compile_program(program)

    def accepts(self, code: CodeType, modules: Collection[str]) -> bool:
        return not dialect.verify(code, modules)

    def namespace(self, runtime: Runtime) -> dict[str, object]:
        call = runtime.calls.call if runtime.calls else None
        return dialect.namespace(runtime, httpx.client(within_deadline(call)) if call else None)

    def bring_modules(
        self,
        program: Program,
        codes: Codes,
        space: dict[str, Any],
        run: Callable[[CodeType, dict[str, Any]], None],
        given: Given,
    ) -> None:
        dialect.bring_modules(space, codes, run, given)

    def is_found(self, name: str) -> bool:
        return False  # an import finds what the language has, which is loaded, and the user's own modules

    def runnable_class(self, space: dict[str, object], program: Program) -> type:
        return dialect.runnable_class(space, program)

    def describe(
        self, err: BaseException, program: Program, unwatched: Callable[[], AbstractContextManager[None]]
    ) -> tuple[str, str]:
        return dialect.describe(err, program, unwatched)

    def end_lines(self) -> None:
        """There are none: `print` writes whole lines."""
