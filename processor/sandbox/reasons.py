"""Why user code failed: what it raised, as the failure of its run, and the place of that in its source.

Only the guest calls this. The exception may be of a class of the user's, with any code behind its attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from processor.model import Failure, Program
from processor.runnable import AuthorityKernelError
from processor.sandbox import capabilities, dialect, documents, facades, wire
from processor.sandbox.bounds import Exceeded
from processor.sandbox.jail import MemoryLimit
from processor.sandbox.languages import Language

BUDGET_WAIT_S = 3600.0  # the longest that a run which used up a budget waits before it is tried again


class Reasons:
    """Explains what a program raises."""

    def __init__(self, language: Language, unwatched: Callable[[], AbstractContextManager[None]]) -> None:
        """`unwatched` is where frames are looked at, which is nothing that user code might do."""
        self.memory: MemoryLimit  # of the guest, from its life on
        self.program = Program("", "")
        self._language = language
        self._unwatched = unwatched

    def place(self, err: BaseException) -> tuple[str, int]:
        """The file and the line of the user's that raised it."""
        place, trace, files = (self.program.filename, 1), err.__traceback__, self.program.sources
        with self._unwatched():
            while trace is not None:
                file = trace.tb_frame.f_code.co_filename
                place = (file, trace.tb_lineno or 1) if file in files else place
                trace = trace.tb_next
        return place

    def fault(self, err: BaseException) -> tuple[str, str]:
        """The code of the fault that it is of a program that is loaded, and its text where that differs."""
        if isinstance(err, facades.UNSUPPORTED):
            return "E203", self.describe(err)[0].partition(": ")[2]
        return "E206", ""

    def describe(self, err: BaseException) -> tuple[str, str]:
        """The exception as one line, and a traceback of the user's own frames."""
        return self._language.describe(err, self.program, self._unwatched)

    def failure(self, err: BaseException) -> Failure:
        """What the run failed of, in the words of the exception."""
        if isinstance(err, MemoryError):
            return out_of_memory(self.memory)
        text, trace = self.describe(err)
        if isinstance(err, dialect.Reject):
            return Failure("E305", err.why)
        if isinstance(err, dialect.Retry):
            return Failure("E304", text, trace, retry_after_s=min(max(float(err.after_s), 0.0), 1e9))
        if isinstance(err, capabilities.EmitError):
            return Failure("E327", text.removeprefix("EmitError: "), trace)
        if isinstance(err, documents.Unwritable):
            return Failure("E306", text.removeprefix("Unwritable: "), trace)
        if isinstance(err, Exceeded) and type(err.code) is str and err.code in wire.RUN_CODES:
            return Failure(err.code, text.removeprefix("Exceeded: "), trace)
        if isinstance(err, AuthorityKernelError):
            told = vars(err)
            code, free_s = told.get("code"), told.get("expires_s")  # anything at all: the user may set them
            code = code if type(code) is str and code in wire.REFUSAL_CODES else "E317"
            after_s = None
            if code == "E332" and isinstance(free_s, (int, float)) and free_s > 0:
                after_s = min(float(free_s), BUDGET_WAIT_S)
            return Failure(code, text, trace, retry_after_s=after_s)
        return Failure("E304", text, trace)


def out_of_memory(memory: MemoryLimit) -> Failure:
    """The failure of a run that used up its memory."""
    memory.drop_ballast()
    return Failure("E313", "the Runnable used more memory than its limit")
