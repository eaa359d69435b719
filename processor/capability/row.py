"""What a capability is: one row, which says all that there is to know of it.

A row stands beside the function that performs it, and `registry` lists the rows. From it come the method by
which a Runnable calls it, the check of its arguments, what a policy is asked before it is performed, what a
budget is charged, and what an entry of the audit says of it. Nothing else of Processor knows a capability by
its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from processor.audit import Event
from processor.capability.arguments import Argument, shown
from processor.capability.connections import Connections
from processor.capability.permit import Show
from processor.errors import ProcessorError
from processor.policy import Ask, Verdict
from processor.runnable import BaseSecureRunnable
from processor.sandbox import documents
from processor.sandbox.offer import Signature
from processor.sandbox.wire import Attached

Arguments = Mapping[str, Any]


def one_request(arguments: Arguments) -> dict[str, int]:
    """The cost of most calls."""
    return {"requests": 1}


def no_more(answer: Any) -> dict[str, int]:
    """What the answer of most calls costs beyond the call."""
    return {}


def nothing(connections: Connections, arguments: Arguments) -> Arguments:
    """What the host adds to the arguments of most calls."""
    return {}


def _as_it_is(arguments: Arguments) -> Show:
    return str


def _as_decided(arguments: Arguments, verdict: Verdict) -> Verdict:
    return verdict


def _served(answer: Any) -> str:
    return "2xx"


def _written(arguments: Arguments) -> bytes:
    """All of them as JSON, and behind it those that are bytes."""
    bodies = [value for value in arguments.values() if type(value) is bytes]
    said = {name: value for name, value in arguments.items() if type(value) is not bytes}
    return b"\n".join([documents.dumps(said), *bodies])


def _answered(answer: Any) -> tuple[int, bytes]:
    if isinstance(answer, Attached):
        return 0, documents.dumps(answer.value) + b"\n" + answer.body
    return 0, documents.dumps(answer)


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a guest may ask of its host.

    `perform` gets what the route has at hand and the checked arguments, each of them there; it gives a JSON
    value, or `wire.Attached`, and raises ProcessorError with one of `wire.REFUSAL_CODES`. `ask` is the
    question for a policy, None of what does nothing, and `cost` what a budget reserves, by its kind; both are
    known before it is performed. `answer_cost` is what its answer adds to that. `result` is the class of an
    answer in the metrics, and `is_request` whether a call counts in `limits.requests`. What is not
    `is_counted` goes on with a call that was, and counts in no limit and no metric. A Runnable calls it as
    `self.<name>(...)`, unless `is_method` is off, for one that the base class has helpers of its own for.

    `narrow` is what becomes of a call that the policy allows, and may deny it: what the configuration does
    not declare, or a bound of the line forbids.

    `added` is what the host knows of the arguments before anything is asked: `ask`, `show` and `perform` get
    it with them, what is counted and written down does not have it. `show` takes out of a sentence about
    the call, and out of its target, what nobody may read.

    An entry of the audit is of its `event`, None of what does nothing, and has hashes of the bytes that
    `sent` and `received` give: the request, with marks where secrets will stand, and the status of the
    answer, 0 where it has none, with its body. What `is_outside` may be written down before it is made.
    """

    name: str
    arguments: tuple[Argument, ...]
    perform: Callable[[Connections, Arguments], Awaitable[Any]]
    ask: Callable[[Arguments], Ask | None]
    event: Event | None
    added: Callable[[Connections, Arguments], Arguments] = nothing
    narrow: Callable[[Arguments, Verdict], Verdict] = _as_decided
    show: Callable[[Arguments], Show] = _as_it_is
    cost: Callable[[Arguments], Mapping[str, int]] = one_request
    answer_cost: Callable[[Any], Mapping[str, int]] = no_more
    result: Callable[[Any], str] = _served
    sent: Callable[[Arguments], bytes] = _written
    received: Callable[[Any], tuple[int, bytes]] = _answered
    is_outside: bool = True
    is_request: bool = True
    is_counted: bool = True
    is_method: bool = True

    @property
    def is_callable(self) -> bool:
        """Whether its name is free on the base class of Runnables, where it is to be a method."""
        is_free = not hasattr(BaseSecureRunnable, self.name) or not self.is_method
        return self.name.isidentifier() and not self.name.startswith("_") and is_free

    @property
    def signature(self) -> Signature:
        """What a guest is told of it."""
        required = tuple(argument.name for argument in self.arguments if argument.required)
        optional = tuple(argument.name for argument in self.arguments if not argument.required)
        return Signature(self.name, required, optional, self.is_method, self.is_request, self.is_counted)

    def read(self, given: Arguments) -> dict[str, Any]:
        """The arguments of a call, checked and complete. Raises ProcessorError E317.

        What is given comes from a guest.
        """
        checked = {}
        for argument in self.arguments:
            value = given.get(argument.name)
            if value is None and not argument.required:
                value = argument.default
            elif not argument.kind.fits(value):
                raise self._refused(argument.refused(value), argument.remedy)
            checked[argument.name] = value
        for name in given:
            if name not in checked:
                known = ", ".join(checked) or "none"
                raise self._refused(f"there is no argument {shown(name)}; its arguments are {known}")
        return checked

    def _refused(self, what: str, remedy: str = "") -> ProcessorError:
        return ProcessorError("E317", what, place=self.name, remedy=remedy)
