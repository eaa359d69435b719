"""The capability calls of one run of a guest: counted while they are made, and recorded when they ended.

What must stay true: nothing is recorded of a call but where it went, how it ended and how much it was; no
path, query, header or body, which may hold what is not for a log.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from processor.address import parse_url
from processor.errors import ProcessorError
from processor.model import Call, Group, Limits
from processor.sandbox import wire

Perform = Callable[[str, dict[str, Any]], Awaitable[Any]]
# Who makes the calls of one run: gets the group that calls, the name, the arguments, and what makes the call.
Answer = Callable[[int, str, dict[str, Any], Callable[[dict[str, Any]], Awaitable[Any]]], Awaitable[Any]]


class RunCalls:
    """The calls of one run: every message may make `limits.calls`, of which `limits.requests` may leave the
    host. `made` is what was made of them.
    """

    def __init__(
        self, limits: Limits, groups: Sequence[Group], answer: Answer | None, local: Collection[str] = ()
    ) -> None:
        """`local` are the capabilities whose calls do not leave the host."""
        self.answer = answer
        self.counts = [0] * len(groups)
        self.requests = [0] * len(groups)
        self._local = local
        self.refused = 0
        self.made: list[Call] = []
        self.granted: set[tuple[str, str]] = set()  # methods and types of objects that were asked for
        self._limits = limits
        self._groups = groups

    def making(
        self, group: int, name: str, perform: Perform | None
    ) -> Callable[[dict[str, Any]], Awaitable[Any]]:
        """What makes a call of a group. It raises ProcessorError E322 beyond what its messages may make."""

        async def make(arguments: dict[str, Any]) -> Any:
            self._count(group, name)
            if perform is None:
                raise ProcessorError("E317", f"{name}: this Runnable has no such capability")
            code, answer, started_s = "E314", None, time.perf_counter()
            try:
                answer = await perform(name, arguments)
                code = ""
                return answer
            except ProcessorError as err:
                code = err.code
                raise
            finally:
                self.made.append(_call(group, name, arguments, answer, code, time.perf_counter() - started_s))

        return make

    def _count(self, group: int, name: str) -> None:
        messages, limits = len(self._groups[group].documents), self._limits
        whose = "one message" if messages == 1 else f"each of {messages} messages"
        self.counts[group] += 1
        if self.counts[group] > (most := max(limits.calls, limits.requests)) * messages:
            raise ProcessorError("E322", f"{name}: more than {most} calls for {whose} (limits.calls)")
        if name in self._local:
            return
        self.requests[group] += 1
        if self.requests[group] > limits.requests * messages:
            what = f"{name}: more than {limits.requests} requests for {whose} (limits.requests)"
            raise ProcessorError("E322", what)


def _call(
    group: int, name: str, arguments: Mapping[str, Any], answer: Any, code: str, seconds: float
) -> Call:
    """What is recorded of a call; nothing of a path, a query, a header or a body."""
    url, sent = arguments.get("url"), arguments.get("body")
    host, status, bytes_in = "", None, 0
    if type(url) is str:
        with contextlib.suppress(ValueError):
            host = parse_url(url).host
    if isinstance(answer, wire.Attached):
        bytes_in = len(answer.body)
        status = answer.value.get("status")
        code = "E317" if "failed" in answer.value else code
    bytes_out = len(sent) if type(sent) is bytes else 0
    return Call(
        group, name, host, status if type(status) is int else None, code, seconds, bytes_out, bytes_in
    )
