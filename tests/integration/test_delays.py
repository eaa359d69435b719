"""How long a message waits for its next try: all nine strategies, to the millisecond, and the server's part.

The clock of the workers stands still here until a test moves it, and their luck is always the same. All else
is real. A worker looks at its clock when something comes, so a message of another key has it look.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from types import SimpleNamespace

import pytest

from tests.conftest import waited
from tests.running import COUNT, Start

LUCK = 0.25
STRATEGIES = [
    f"{kind}{jitter}"
    for kind in ("exponential", "linear", "fixed")
    for jitter in ("", "_full_jitter", "_equal_jitter")
]
# Of base 1, factor 3 and at most 7: after the first, second and third try.
FULL = {"exponential": (1, 3, 7), "linear": (1, 2, 3), "fixed": (1, 1, 1)}
PART = {"": 1.0, "full_jitter": LUCK, "equal_jitter": 0.5 + LUCK / 2}


def expected_s(strategy: str, base_s: float) -> list[float]:
    """The waits after the first three tries."""
    kind, _, jitter = strategy.partition("_")
    return [base_s * full * PART[jitter] for full in FULL[kind]]


def routes(base_ms: int) -> str:
    """One route for each strategy, of the same name and input."""
    return "".join(
        f"{name}:\n"
        f'  input: {{subject: "{name}.*", create: true}}\n'
        "  runnable: work.py\n"
        "  key: subject.2\n"
        f"  output: out.{name}.{{key}}\n"
        f"  retry: {{attempts: 4, strategy: {name}, base_ms: {base_ms}, factor: 3, max_ms: {7 * base_ms}}}\n"
        for name in STRATEGIES
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The workers' clock; it shows `now_s` and `at` until they are set."""
    shown = SimpleNamespace(now_s=1000.0, at=datetime(2020, 1, 1, tzinfo=UTC))

    class At(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return shown.at.astimezone(tz)

    real = {name: getattr(time, name) for name in ("time", "perf_counter")}
    frozen = SimpleNamespace(monotonic=lambda: shown.now_s, **real)
    monkeypatch.setattr("processor.delivery.worker.time", frozen)
    monkeypatch.setattr("processor.delivery.retrying.time", frozen)
    monkeypatch.setattr("processor.delivery.retrying.datetime", At)
    monkeypatch.setattr("processor.delivery.retrying.random", SimpleNamespace(random=lambda: LUCK))
    return shown


async def test_a_wait_in_memory_ends_at_its_time(
    processor: Start, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A millisecond before it the message is not tried; at that time it is, three times over."""
    monkeypatch.setattr("processor.model.SHORT_WAIT_S", 60)
    async with processor(routes(base_ms=8000), work=COUNT) as running:
        for name in STRATEGIES:
            tries = partial(running.metric, "processor_failures_total", route=name)
            looks = 0

            async def look(name: str = name) -> None:
                nonlocal looks
                looks += 1
                await running.publish(f"{name}.other", {"i": looks})
                await running.documents(f"out.{name}.other", looks)

            await running.publish(f"{name}.a", {"i": 0, "fails": "always"})
            for number, wait_s in enumerate(expected_s(name, 8.0), 1):
                await waited(lambda n=number, tries=tries: tries() == n, f"{name} was tried")
                clock.now_s += wait_s - 0.001
                await look()
                assert tries() == number, f"{name} was tried before {wait_s} s"
                clock.now_s += 0.001
                await look()
            await waited(lambda tries=tries: tries() == 4, f"{name} was tried for the last time")
            [letter] = await running.dead_letters(name)
            assert letter.headers["x-delivery-count"] == "4"


async def test_the_server_is_given_the_exact_time(processor: Start, clock: SimpleNamespace) -> None:
    """What is due is written down in milliseconds. That time is long past, so the next try comes at once."""
    async with processor(routes(base_ms=16_000), work=COUNT) as running:
        heard = await running.listen("p.app.later.>")
        for name in STRATEGIES:
            await running.publish(f"{name}.a", {"i": 0, "fails": "always"})
        for name in STRATEGIES:
            await running.dead_letters(name)
            times = [h.headers["Nats-Schedule"] for h in heard if h.subject.split(".")[3] == name]
            waits_s = [(moment(at) - clock.at).total_seconds() for at in times]
            assert waits_s == expected_s(name, 16.0), name


async def test_a_scheduled_retry_does_not_come_before_its_time(
    processor: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real clocks: the second try fails at the time that the server was given, or later."""
    monkeypatch.setattr("processor.model.SHORT_WAIT_S", 0.1)
    route = routes(base_ms=400).split("exponential_full")[0]
    async with processor(route.replace("attempts: 4", "attempts: 2"), work=COUNT) as running:
        heard = await running.listen("p.app.later.>")
        before = datetime.now(UTC)
        await running.publish("exponential.a", {"i": 0, "fails": "always"})
        [letter] = await running.dead_letters("exponential")
        due = moment(heard[0].headers["Nats-Schedule"])
        assert due >= before + timedelta(seconds=0.399)  # a fraction of a millisecond is not written down
        assert moment(letter.headers["x-failed-at"]) >= due


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.removeprefix("@at "))
