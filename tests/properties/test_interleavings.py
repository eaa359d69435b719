"""Any interleaving of work, failures, crashes and changes against a sequential run of each key.

A plan is a route and a list of steps: messages that succeed, fail, die and ask for time; hosts that end at
named points, stop, join and leave; guests that are killed; reloads, redrives and pauses. The hosts run here,
with real guests and a real server. A host ends by falling silent (`tests/faults/host.py`), which is to the
server what SIGKILL is. In the end the route is healed and what was given up is redriven. Then each key must
have been one sequential run, and each message must have ended once.

`PLANS=500 pytest tests/properties/test_interleavings.py` tries so many plans of its own choice.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from processor.config import load
from processor.context import reading
from processor.embedded import EmbeddedServer
from processor.errors import Faults
from processor.jetstream import Broker, Outgoing, Stored, Unknown
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter
from processor.sandbox.host import Zygote
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import guests_of, waited, without_strays
from tests.faults.host import KINDS, PLACES, STEPS, Silence, install
from tests.running import connected

PLANS = int(os.environ.get("PLANS", "0"))
ATTEMPTS = 3
# Waits above this are the server's; the plans have shorter and longer ones.
SHORT_WAIT_S = 0.03

RUNNABLE = """
VERSION = {version}
IS_HEALED = {is_healed}

class Runnable:
    def init(self):
        self.context["n"] = 0
        self.context["last"] = None

    def process(self, queries):
        for query in queries:
            does, luck = query["does"], random.random()
            if does == "reject":
                raise Reject("never")
            if not IS_HEALED:
                if does == "fail" or does == "fail at times" and luck < 0.5:
                    raise ValueError("not now")
                if does == "die" or does == "die at times" and luck < 0.5:
                    "x" * (1 << 40)
                if does == "ask" and luck < 0.5:
                    raise Retry(after_s=0.05)
            self.context["n"] += 1
            yield {{"id": query["id"], "n": self.context["n"], "last": self.context["last"]}}
            self.context["last"] = query["id"]
            if does == "grow":
                self.context[f"pad {{query['id']}}"] = "x" * 3000
"""
CONFIG = """
app: {app}
http: off
drain_s: 1
routes:
  r:
    input: {app}.in.*
    runnable: {app}.py
    output: {app}.out
    events: {{subject: {app}.happened, level: all}}
    key: {key}
    partitions: {partitions}
    batch: {{max_messages: {batch}}}
    limits: {{contexts: {contexts}}}
    breaker: {{deaths: 1000, pause_s: 0.05}}
    retry: {{attempts: {attempts}, strategy: fixed, base_ms: {wait_ms}, max_ms: {wait_ms}, then: {then}}}
"""


@dataclass(frozen=True)
class Route:
    """What the plans vary about the route."""

    then: str
    wait_ms: int
    key: str
    retention: str
    partitions: int
    batch: int
    contexts: int

    @property
    def is_scheduled(self) -> bool:
        """Whether a message that failed comes later than others of its key."""
        return self.wait_ms / 1000 > SHORT_WAIT_S and self.then != "block"


@dataclass(frozen=True)
class Step:
    """One thing that happens. `messages` are published first: key, and what the message does."""

    what: str
    messages: tuple[tuple[str, str], ...] = ()
    host: int = 0
    point: str = "none"
    nth: int = 1


@dataclass(frozen=True)
class Plan:
    route: Route
    steps: list[Step] = field(default_factory=list)


DOES = ("fine", "fine", "fine", "grow", "fail", "fail at times", "reject", "ask", "die", "die at times")
POINTS = (
    *STEPS[2:],
    *(place.format(kind) for kind in KINDS[: KINDS.index("unblock") + 1] for place in PLACES),
)
routes = st.builds(
    Route,
    then=st.sampled_from(["dead_letter", "block", "drop"]),
    wait_ms=st.sampled_from([1, 15, 60]),
    key=st.sampled_from(["subject.3", "subject.3", "none"]),
    retention=st.sampled_from(["limits", "limits", "workqueue"]),
    partitions=st.sampled_from([1, 3]),
    batch=st.sampled_from([1, 4, 50]),
    contexts=st.sampled_from([1, 100]),
)
some_messages = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(DOES)), min_size=1, max_size=12
).map(tuple)
steps = st.one_of(
    st.builds(
        Step, st.just("crash"), some_messages, st.integers(0, 1), st.sampled_from(POINTS), st.integers(1, 3)
    ),
    st.builds(
        Step,
        st.sampled_from(
            [
                "go on",
                "settle",
                "stop",
                "join",
                "leave",
                "reload",
                "redrive",
                "pause",
                "resume",
                "kill guests",
            ]
        ),
        some_messages,
        st.integers(0, 1),
    ),
)
plans = st.builds(Plan, routes, st.lists(steps, min_size=2, max_size=8))


class Host:
    """A processor that can end as if it was killed."""

    def __init__(self, path: Path, url: str) -> None:
        self._path, self._url = path, url
        self.crash = Silence()
        self._service = Service(self._load(), Telemetry())

    def _load(self) -> Any:
        return load(self._path, {"NATS_URL": self._url})

    async def start(self) -> None:
        async def begin() -> None:
            install(self.crash)  # for what this task connects
            await self._service.start(wait=False)

        await asyncio.create_task(begin())

    async def reload(self) -> None:
        for _ in range(3):  # a guest that only compiles may be killed like any other
            with suppress(Faults):
                await self._service.reload(self._load())
                return
        await self._service.reload(self._load())

    async def stop(self) -> None:
        await self._service.stop()

    async def end(self) -> None:
        """Let it be dead, and take away what a kernel would have taken: its tasks, guests and sockets."""
        with suppress(Unknown):
            self.crash.end()
        config = self._service._config
        self._service._config = config.model_copy(update={"drain_s": 0})  # there is nothing to wait for
        await self._service.stop()


class Following:
    """A plan being followed: its hosts, what was published, and what became of it."""

    def __init__(self, plan: Plan, app: str, folder: Path, url: str, broker: Broker) -> None:
        self._plan, self._app, self._url, self._broker = plan, app, url, broker
        self._path = folder / f"{app}.yaml"
        route = plan.route
        text = CONFIG.format(app=app, attempts=ATTEMPTS, **vars(route))
        self._path.write_text(
            text.replace(f"    partitions: {route.partitions}\n", "") if route.key == "none" else text
        )
        self._program = folder / f"{app}.py"
        self._version = 0
        self._hosts: list[Host | None] = [None, None]
        self._letters = DeadLetters(broker, app)
        self._control = Control(broker, app)
        self.sent: list[tuple[str, str]] = []  # by id: its key, and what it does
        self.redriven: Counter[int] = Counter()

    async def run(self) -> None:
        config = {"name": f"IN-{self._app}", "subjects": [f"{self._app}.in.*"], "storage": "memory"}
        await self._broker.create_stream({**config, "retention": self._plan.route.retention})
        self._write(is_healed=False)
        await self._start(0)
        for step in self._plan.steps:
            await self._take(step)
        await self._heal()

    async def end(self) -> None:
        for host in self._hosts:
            if host is not None:
                await host.end()
        for name in (await self._broker.api("STREAM.NAMES")).get("streams") or []:
            await self._broker.api(f"STREAM.DELETE.{name}")

    async def _start(self, index: int) -> None:
        host = self._hosts[index] = Host(self._path, self._url)
        await host.start()

    def _write(self, *, is_healed: bool) -> None:
        self._version += 1
        self._program.write_text(RUNNABLE.format(version=self._version, is_healed=is_healed))

    async def _publish(self, messages: tuple[tuple[str, str], ...]) -> None:
        for key, does in messages:
            payload = orjson.dumps({"id": len(self.sent), "does": does})
            await self._broker.publish(Outgoing(f"{self._app}.in.{key}", payload))
            self.sent.append((key if self._plan.route.key != "none" else "", does))
        await self._broker.flush()

    async def _take(self, step: Step) -> None:
        host = self._hosts[step.host]
        if step.what == "crash" and host is not None:
            host.crash.arm(step.point, step.nth)
        await self._publish(step.messages)
        match step.what:
            case "crash" if host is not None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(host.crash.ended.wait(), 0.2)
                await host.end()
                await self._start(step.host)
            case "stop" if host is not None:
                await host.stop()
                await self._start(step.host)
            case "join" if self._hosts[1] is None:
                await self._start(1)
            case "leave" if self._hosts[1] is not None:
                await self._hosts[1].stop()
                self._hosts[1] = None
            case "reload":
                self._write(is_healed=False)
                for each in filter(None, self._hosts):
                    await each.reload()
            case "redrive":
                await self._redrive()
            case "pause" | "resume":
                with suppress(Unknown):
                    await self._control.pause("r", is_paused=step.what == "pause")
            case "kill guests":
                for pid in guests_of(os.getpid()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            case "settle":
                for _ in range(20):  # it may be paused
                    if await self._is_settled():
                        break

    async def _redrive(self) -> None:
        """Two people send the same dead letters back; one of them does."""
        async for letter in self._letters.find(Filter()):
            done = await asyncio.gather(self._letters.redrive(letter), self._letters.redrive(letter))
            assert sorted(done) == [False, True]
            self.redriven[letter.delivery.sequence - 1] += 1

    async def _heal(self) -> None:
        """Nothing fails any more but what is rejected; everything that was given up has its turn."""
        await self._control.pause("r", is_paused=False)
        self._write(is_healed=True)
        for each in filter(None, self._hosts):
            await each.reload()
        await waited(self._is_settled, "all is settled", 30)
        await self._redrive()
        await waited(self._is_settled, "what was redriven is settled", 30)
        for index, host in enumerate(self._hosts):
            if host is not None:
                await host.stop()
                self._hosts[index] = None

    async def _stored(self, kind: str) -> list[Stored]:
        found = [s async for s in self._broker.history(f"P_{self._app}", [f"p.{self._app}.{kind}"])]
        return [stored for stored in found if stored.payload]

    async def _is_settled(self) -> bool:
        """Whether every message has ended, for now, and none waits."""
        outputs = {orjson.loads(s.payload)["id"] for s in await self._stored(f"out.{self._app}.out")}
        ends = (await self.events()).values()
        dropped = sum(1 for kinds in ends if kinds["dropped"])
        letters = await self._stored("dlq.>")
        waiting = [s for kind in ("later.>", "due.>", "held.>") for s in await self._stored(kind)]
        return not waiting and len(outputs) + len(letters) + dropped >= len(self.sent)

    async def events(self) -> dict[int, Counter[str]]:
        """How often each message was said to end, and how, by its id."""
        found: dict[int, Counter[str]] = defaultdict(Counter)
        for stored in await self._stored(f"out.{self._app}.happened"):
            event = orjson.loads(stored.payload)
            if "sequence" in event:
                found[event["sequence"] - 1][event["event"]] += 1
        return found

    async def check(self) -> None:
        """Each message has ended once; each key is one sequential run, in order where that is promised."""
        route, events = self._plan.route, await self.events()
        outputs = [orjson.loads(s.payload) for s in await self._stored(f"out.{self._app}.out")]
        letters = {orjson.loads(s.payload)["id"] for s in await self._stored("dlq.>")}
        times = Counter(output["id"] for output in outputs)
        assert not [number for number, count in times.items() if count > 1], "doubled"
        for number, (_, does) in enumerate(self.sent):
            ends = events[number]
            assert (number in letters) == (does == "reject" and not ends["dropped"])
            assert times[number] + (number in letters) + ends["dropped"] == 1, (number, does, ends)
            assert ends["completed"] == times[number]
            assert ends["dead_lettered"] == self.redriven[number] + (number in letters)
            assert route.then == "drop" or not ends["dropped"]
        faults = Counter(step.what for step in self._plan.steps)
        was_disturbed = faults["kill guests"] > 0 or faults["crash"] >= ATTEMPTS
        if not was_disturbed:
            sound = [n for n, (_, does) in enumerate(self.sent) if does in ("fine", "grow")]
            assert all(events[n] == {"completed": 1} for n in sound), "given up without a reason"
        by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for output in outputs:
            by_key[self.sent[output["id"]][0]].append(output)
        contexts = {key: items async for key, items in reading.read(self._broker, self._app, "r")}
        for key, found in by_key.items():
            ids = [output["id"] for output in found]
            assert [output["n"] for output in found] == list(range(1, len(found) + 1)), "torn"
            assert [output["last"] for output in found] == [None, *ids[:-1]], "torn"
            in_turn = [n for n in ids if not self._may_be_late(n, events[n], was_disturbed=was_disturbed)]
            assert in_turn == sorted(in_turn), "out of order"
            kept = {n: orjson.loads(v) for n, v in contexts.get(key, {}).items() if not n.startswith("pad")}
            assert kept == {"n": len(found), "last": ids[-1]}, "the context is another"
            pads = {n for n in contexts.get(key, {}) if n.startswith("pad")}
            assert pads == {f"pad {n}" for n in ids if self.sent[n][1] == "grow"}

    def _may_be_late(self, number: int, ends: Counter[str], *, was_disturbed: bool) -> bool:
        does = self.sent[number][1]
        if ends["dead_lettered"]:
            return True
        if self._plan.route.then == "block":
            return False
        return does == "ask" or (
            self._plan.route.is_scheduled and (was_disturbed or does not in ("fine", "grow"))
        )


@asynccontextmanager
async def followed(plan: Plan, folder: Path, url: str) -> AsyncIterator[Following]:
    async with connected(url) as broker:
        following = Following(plan, f"a{next(numbers)}", folder, url, broker)
        try:
            await following.run()
            yield following
        finally:
            await following.end()


numbers = itertools.count(1)


async def nothing() -> None:
    """What a host does when it closes the zygote that others share."""


async def follow(plan: Plan, folder: Path, url: str) -> None:
    async with followed(plan, folder, url) as following:
        await following.check()


@pytest.mark.timeout(100 + 60 * PLANS)
def test_any_interleaving_equals_a_sequential_run_of_each_key(
    nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, ends, moves and changes: once, in order, and as if nothing had happened."""
    monkeypatch.setattr("processor.model.SHORT_WAIT_S", SHORT_WAIT_S)
    monkeypatch.setattr("processor.delivery.members.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("processor.delivery.members.LOST_S", 0.5)
    monkeypatch.setattr("processor.service.Broker", None)  # given back in the end; `install` sets it
    monkeypatch.setattr("processor.service.Reader", None)
    with asyncio.Runner() as runner:
        zygote = runner.run(Zygote.start())  # one for all hosts: starting one takes longer than most plans
        close, zygote.close = zygote.close, nothing  # type: ignore[method-assign]

        async def given_zygote() -> Zygote:
            return zygote

        monkeypatch.setattr("processor.service.Zygote.start", given_zygote)

        @settings(
            max_examples=PLANS or 10,
            derandomize=not PLANS,
            database=None,
            deadline=None,
            verbosity=Verbosity.verbose if PLANS else Verbosity.normal,
            phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if os.environ.get("SHRINK") else [])],
            suppress_health_check=list(HealthCheck),
        )
        @given(plan=plans)
        def holds(plan: Plan) -> None:
            runner.run(without_strays(follow(plan, tmp_path, nats_server.url)))

        try:
            holds()
        finally:
            runner.run(close())
