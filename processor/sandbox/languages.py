"""What a language of Runnables is: one object for each, and what its guests need of their zygote.

`Language` is what a guest asks; `restricted` and `plain` have the two that there are. `Needs` is what the
host has to know before there is a guest. Nothing else compares the names of languages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple, Protocol

from processor import runnable
from processor.model import Module, Program

Given = Mapping[str, Mapping[str, Any]]  # the names that are in a module from the begin, by its name
Codes = Mapping[str, CodeType | None]  # of modules, by name; a package without a source of its own has None


AUTHORITY = "authority_nanos"  # the module that programs for that SDK import
ERROR_CLASSES: Mapping[str, type[runnable.AuthorityKernelError]] = {
    name: kind
    for name, kind in vars(runnable).items()
    if isinstance(kind, type) and issubclass(kind, runnable.AuthorityKernelError)
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a namespace is made from: the base class, where log lines go, and the HTTP client, if any."""

    base: type
    log: Callable[[str, str], None]
    requests: object | None = None
    # `Language.describe` of the program, for user code that asks
    explain: Callable[[BaseException], tuple[str, str]] | None = None
    calls: Any = None  # by which a guest reaches its host (`channel.GuestCalls`)
    nodes: Any = None  # what programs of nodes import (`nodes.NodeKit`), where there are models
    steps: Any = None  # what programs of steps import (`steps.StepKit`)

    def given(self) -> dict[str, Any]:
        """The classes that are there without an import.

        `TimeoutError` stays Python's, which that of ERROR_CLASSES is, too.
        """
        ours = {name: getattr(runnable, name) for name in runnable.__all__}
        return {**ours, "BaseSecureRunnable": self.base}


@dataclass(frozen=True, slots=True)
class Needs:
    """What guests with programs in a language need of the zygote that they are forked from."""

    words: str  # the language, in a sentence
    has_packages: bool  # each set of packages has a zygote of its own, which imports them
    jail_level: str  # the weakest jail that may hold them


NEEDS = {
    "restricted": Needs("the dialect", has_packages=False, jail_level="process"),
    "python": Needs("plain Python", has_packages=True, jail_level="confined"),
}


class Footing(NamedTuple):
    """What a zygote has in it: a language, and the packages that its guests may import."""

    language: str
    packages: tuple[str, ...] = ()

    @classmethod
    def of(cls, program: Program) -> Footing:
        if not NEEDS[program.language].has_packages:
            return cls(program.language)
        # What nodes say with what they take and give, so that one file runs in every language.
        brought = ["pydantic"] if program.mode == "nodes" else []
        return cls(program.language, tuple(sorted({*program.packages, *brought})))

    @property
    def needs(self) -> Needs:
        return NEEDS[self.language]


class Unusable(Exception):
    """A package that is not available here; `why` completes the sentence that begins with its name."""

    def __init__(self, package: str, why: str, nearest: str = "") -> None:
        super().__init__(f"{package} {why}")
        self.package = package
        self.why = why
        self.nearest = nearest


class Models(NamedTuple):
    """The library of models that nodes say with what they take and give."""

    base: type
    error: type[Exception]  # of a model that refuses, with `title` and `errors()`
    dump: Callable[[Any], Any]  # a model as a document
    # One of these values, the ones by these names not held against the rules of their fields.
    unruled: Callable[[Any, Mapping[str, Any], Collection[str]], Any]


class Language(Protocol):
    """How a guest treats the programs in one language. No method but `describe` runs user code."""

    name: str
    is_watched: bool  # the tripwire ends its programs for what only an escape would do
    is_preparable: bool  # its namespace, and the code of its programs, can be made before a guest needs them
    # What a coroutine comes to that user code has returned, or anything else as it is; None where the
    # language has no coroutines.
    finish: Callable[[Any], Any] | None
    awaited: Callable[..., Any] | None  # makes a call that is awaited

    def models(self) -> Models | None:
        """The models of its programs; None where there are none."""

    def prepare(self, packages: Sequence[str]) -> dict[str, Any]:
        """Import for all guests what they need, in the zygote; what to tell the host. Raises Unusable."""

    def rehearse(self, space: dict[str, object]) -> None:
        """Go once through the load of a program, so that a guest finds all that it takes at hand."""

    def reseed(self) -> None:
        """Give the random functions a seed of their own, in a process that was just forked."""

    def compile(self, program: Program, module: Module | None = None) -> CodeType:
        """The program as code, without its modules; or a module of it. Raises Faults."""

    def accepts(self, code: CodeType, modules: Collection[str]) -> bool:
        """Whether code that another guest has compiled is such as this would compile."""

    def namespace(self, runtime: Runtime) -> dict[str, object]:
        """The globals to run a compiled program in."""

    def bring_modules(
        self,
        program: Program,
        codes: Codes,
        space: dict[str, Any],
        run: Callable[[CodeType, dict[str, Any]], None],
        given: Given,
    ) -> None:
        """Let programs in `space` import these modules; `run` executes a code in its globals.

        Those that are `given` have names of ours.
        """

    def is_found(self, name: str) -> bool:
        """Whether an import of `name`, which is not loaded yet, would find something without us."""

    def runnable_class(self, space: dict[str, object], program: Program) -> type:
        """The class that a program is for, with the base class among its bases. Raises Faults."""

    def describe(
        self, err: BaseException, program: Program, unwatched: Callable[[], AbstractContextManager[None]]
    ) -> tuple[str, str]:
        """An exception as one line, and a traceback of the user's own frames."""

    def end_lines(self) -> None:
        """Send what was printed without a line end to the log; a run is over."""
