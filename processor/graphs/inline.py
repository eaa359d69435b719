"""The guests of one engine: nodes that reach nothing outside run here, within the commit of their run.

The engine gives executions of one group at a time, from many runs. They go to the guest of that group in
parts that are small enough for its limits. What a user's code does is a result of its execution: it raises,
gives the wrong thing, or ends its guest; then the part is halved until the execution that does it is alone.
Those beside it run again, which nobody can tell, since what runs here has no effect outside of its commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from processor.delivery.codec import failed_result, read_result
from processor.errors import Faults, GuestError
from processor.graphs.outbox import EVENTS_MAX
from processor.graphs.progress import Execution
from processor.graphs.steps import judged
from processor.model import Emit, Event, Failed, Failure, Group, LogLine, Ran
from processor.policy import Ask
from processor.route import NodeGroup
from processor.sandbox.host import Guest

log = logging.getLogger("processor")

Spawn = Callable[[NodeGroup], Awaitable[Guest]]

AT_ONCE = 400  # executions that a guest is given together
EMITS_MAX = 300  # of one execution: the commit of its run has room for no more
ROOM = 960 << 10  # for a message where the server has its default limit
_AT_FIRST = 16  # as long as nobody knows how long they take
_PART = 4  # of its time limit that they may take together
_PAUSES_S = (0.02, 0.1, 0.5, 2.0)
_NOTHING: Mapping[str, bytes] = {}


@dataclass(slots=True)
class Given:
    """What one execution gave: the outcome part of its `result` message, and what was said meanwhile."""

    result: dict[str, Any]
    emits: list[Emit] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class _GroupGuest:
    """A group, its guest, and how long its executions take on average."""

    group: NodeGroup
    guest: Guest | None = None
    mean_s: float | None = None

    @property
    def size(self) -> int:
        """How many executions its guest may be given together."""
        if self.mean_s is None:
            return _AT_FIRST
        limits = self.group.limits
        room_s = min(limits.wall_s, limits.cpu_s) / _PART
        return max(1, min(AT_ONCE, limits.outputs, int(room_s / max(self.mean_s, 1e-6))))


class InlineGuests:
    """Runs executions of inline groups, in guests that it starts when they are needed, and replaces."""

    def __init__(self, groups: Mapping[str, NodeGroup], spawn: Spawn, room: int = ROOM) -> None:
        """A message that a node emits may have `room` bytes."""
        self._spawn = spawn
        self._room = room
        self._cells = {name: _GroupGuest(group) for name, group in groups.items() if not group.is_pool}
        self.logs: list[LogLine] = []  # of what ran since somebody took them
        self.cpu_s = 0.0
        self.memory_bytes = 0

    def __contains__(self, group: str) -> bool:
        return group in self._cells

    async def run(self, group: str, executions: Sequence[Execution]) -> list[Given]:
        """What each of these executions of a group gave, in their order."""
        cell = self._cells[group]
        given: dict[int, Given] = {}
        waiting = [list(range(len(executions)))]
        while waiting:
            part = waiting.pop()
            if len(part) > cell.size:
                waiting.append(part[cell.size :])
                part = part[: cell.size]
            ran = await self._ask(cell, [executions[index] for index in part])
            if isinstance(ran, Ran):
                found = _read(ran, cell.group, self._room)
                for place, each in found.items():
                    each.seconds = ran.wall_s / len(part)
                    execution = executions[part[place]]
                    name = execution.node.kind.rpartition("/")[2]
                    each.result = judged(each.result, cell.group.steps, name, execution.store)
                given |= {part[place]: each for place, each in found.items()}
                left = [index for place, index in enumerate(part) if place not in found]
                failure = Failure("E318", "the node gave more than one run may bring")
            else:
                left, failure = part, ran.failure
            if not left:
                continue
            if len(left) < len(part):
                waiting.append(left)
            elif len(part) == 1:
                given[part[0]] = Given(failed_result(failure))
            else:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
        return [given[index] for index in range(len(executions))]

    async def close(self) -> None:
        """End the guests, and wait until they are gone."""
        guests = [cell.guest for cell in self._cells.values() if cell.guest is not None]
        await asyncio.gather(*(guest.close() for guest in guests))

    async def _ask(self, cell: _GroupGuest, executions: Sequence[Execution]) -> Ran | Failed:
        guest = await self._living(cell)
        settings, reads_history = cell.group.settings, cell.group.reads_history
        documents = [document(each, settings, reads_history=reads_history) for each in executions]
        groups = [Group("", [text], _NOTHING) for text in documents]
        outcome = await guest.run(groups, isolate=True)
        self.cpu_s += outcome.cpu_s
        self.logs += outcome.logs
        if isinstance(outcome, Ran):
            mean_s = outcome.wall_s / len(executions)
            cell.mean_s = mean_s if cell.mean_s is None else 0.8 * cell.mean_s + 0.2 * mean_s
            self.memory_bytes = outcome.memory_bytes
        return outcome

    async def _living(self, cell: _GroupGuest) -> Guest:
        if cell.guest is not None and cell.guest.alive:
            return cell.guest
        if cell.guest is not None:
            await cell.guest.close()
            cell.guest = None
        tries = 0
        while True:
            try:
                cell.guest = await self._spawn(cell.group)
                return cell.guest
            except (Faults, GuestError) as err:
                # The program was loaded before, so this is the machine: memory is short, or somebody kills.
                level = logging.DEBUG if tries else logging.ERROR
                log.log(level, "E502 a guest of nodes.%s could not be started: %s", cell.group.name, err)
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1


def document(execution: Execution, settings: Mapping[str, str], *, reads_history: bool = True) -> bytes:
    """What a guest is given of an execution; the history of the store only where its source may read that."""
    said: dict[str, Any] = {
        "kind": execution.node.kind.rpartition("/")[2],
        "run": execution.run,
        "x": execution.x,
        "a": execution.attempt,
        "inputs": execution.inputs,
        "store": execution.store,
        "settings": settings,
    }
    if execution.united is not None:
        said["united"] = execution.united
    if reads_history and execution.history:
        said["history"] = execution.history
    return orjson.dumps(said)


def _read(ran: Ran, group: NodeGroup, room: int) -> dict[int, Given]:
    """What executions gave, by their place; one that is not there was not run."""
    now_us = time.time_ns() // 1000
    found = {place: Given(failed_result(failure)) for place, failure in ran.failed}
    bodies: dict[int, list[bytes]] = {}
    for output in ran.outputs:
        bodies.setdefault(output.group, []).append(output.body)
    for place, outputs in bodies.items():
        try:
            found[place] = Given(read_result(outputs[0] if len(outputs) == 1 else b""))
        except ValueError as err:
            found[place] = Given(failed_result(Failure("E709", str(err))))
    for emit in ran.emits:
        if (given := found.get(emit.group)) is not None and "error" not in given.result:
            verdict = group.policy.decide(group.route_name, Ask("emit", "publish", emit.subject), now_us)
            if verdict.is_allowed or verdict.is_shadow:
                given.emits.append(emit)
            else:
                found[emit.group] = Given(failed_result(Failure(verdict.code, verdict.what)))
    said = Counter(event.group for event in ran.events)
    for place, given in found.items():
        if said[place] > EVENTS_MAX and "error" not in given.result:
            failure = Failure("E324", f"one execution may have {EVENTS_MAX} events")
            found[place] = Given(failed_result(failure))
            continue
        if len(given.emits) > EMITS_MAX or any(len(emit.body) > room for emit in given.emits):
            what = f"one execution may emit {EMITS_MAX} messages of {room} bytes each"
            found[place] = Given(failed_result(Failure("E324", what)))
    for event in ran.events:
        if (given := found.get(event.group)) is not None and "error" not in given.result:
            given.events.append(replace(event, group=0))
    return found
