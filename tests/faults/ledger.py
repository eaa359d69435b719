"""What came out, held against what went in: lost, doubled, wrong, out of order, torn."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from processor.context import reading
from processor.jetstream import Again, ApiError, Broker, Outgoing, Stored, Unknown

KEYS = [f"k{number}" for number in range(7)]

RUNNABLE = '''
class Runnable:
    """Counts the messages of a key and remembers the last ones; some are poison, some fail now and then."""

    def init(self):
        self.context["n"] = 0
        self.context["ids"] = []

    def process(self, queries):
        outputs = []
        for query in queries:
            if query.get("poison"):
                raise ValueError("poison")
            if query.get("unsure") and random.random() < 0.7:
                raise ValueError("not this time")
            self.context["n"] += 1
            self.context["ids"] = (self.context["ids"] + [query["id"]])[-50:]
            outputs.append({"id": query["id"], "key": query["key"], "n": self.context["n"]})
        return outputs
'''

REPAIRED = RUNNABLE.replace('query.get("poison")', "False")


def write_config(folder: Path, app: str, **more: str) -> Path:
    """A keyed counting route r with small batches, so that there are many commits; returns the file."""
    (folder / "counter.py").write_text(RUNNABLE)
    path = folder / "config.yaml"
    path.write_text(f"app: {app}\nhttp: off\nroutes:\n{route('r', **more)}")
    return path


def route(name: str, **more: str) -> str:
    """The configuration of a counting route: it reads `in.*` and writes `out.*`, unless `more` says else."""
    lines = {
        "input": "in.*",
        "runnable": "counter.py",
        "key": "subject.2",
        "partitions": "4",
        "output": "out.{key}",
        "events": "events.r",
        "batch": "{max_messages: 20}",
        "retry": "{attempts: 2}",
        **more,
    }
    return f"  {name}:\n" + "".join(f"    {key}: {value}\n" for key, value in lines.items())


Sent = list[dict[str, object]]


async def feed(broker: Broker, count: int, poison: int = 0, first: int = 0, unsure: int = 0) -> Sent:
    """Publish `count` messages over the keys, some of them poison or unsure; what was published, in order."""
    chance = random.Random(first)
    bad = chance.sample(range(first, first + count), poison + unsure)
    sent: Sent = []
    for number in range(first, first + count):
        key = chance.choice(KEYS)
        message: dict[str, object] = {"id": number, "key": key}
        if number in bad:
            message["poison" if number in bad[:poison] else "unsure"] = True
        sent.append(message)
        await broker.publish(Outgoing(f"in.{key}", orjson.dumps(message)))
    await broker.flush()
    return sent


@dataclass
class Ledger:
    """The differences between what should be there and what is; all empty when nothing went wrong."""

    lost: list[object] = field(default_factory=list)
    doubled: list[object] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)
    unordered: list[object] = field(default_factory=list)
    context: list[object] = field(default_factory=list)
    dead_letters: list[object] = field(default_factory=list)
    left_over: list[object] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to complain about."""
        return any(vars(self).values())


async def count(broker: Broker, subject: str) -> int:
    """How many messages of `subject` its stream holds."""
    try:
        stream = await broker.find_stream(subject)
        info = await broker.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
    except (ApiError, Unknown, Again):  # it is not made yet, or its server is being killed
        return 0
    return sum((info["state"].get("subjects") or {}).values())


async def count_is(broker: Broker, subject: str, wanted: int) -> bool:
    """Whether its stream holds so many messages of `subject`; raises AssertionError for more."""
    found = await count(broker, subject)
    assert found <= wanted, f"{found} messages of {subject}, not {wanted}"
    return found == wanted


async def letters(broker: Broker, app: str, route: str = "r") -> list[Stored]:
    """The dead letters of a route."""
    found = [s async for s in broker.history(f"P_{app}", [f"p.{app}.dlq.{route}.>"])]
    return [stored for stored in found if stored.payload]


async def settled(broker: Broker, app: str, total: int, route: str = "r", out: str = "out.*") -> bool:
    """Whether every input has become an output or a dead letter."""
    outputs = await count(broker, out)
    if outputs >= total:
        return True
    try:
        return outputs + len(await letters(broker, app, route)) >= total
    except (ApiError, Unknown, Again):
        return False


async def has_owners(broker: Broker, app: str, number: int) -> bool:
    """Whether that many processors have partitions."""
    stored = await broker.last_of(f"P_{app}", [f"p.{app}.pos.r.*"])
    return len({orjson.loads(s.payload)["owner"] for s in stored}) == number


async def examine(
    broker: Broker,
    app: str,
    sent: Sent,
    apart: Collection[object] = (),
    earlier: int = 0,
    route: str = "r",
    out: str = "out.*",
) -> Ledger:
    """Read every output, dead letter and context, and compare with a sequential run over `sent`.

    Each key is one sequential run over the messages in the order of its outputs, and that order is the order
    in which they were sent but for those in `apart`: what was redriven comes later. The first `earlier`
    outputs are not looked at: they are those of before a reset.
    """
    ledger = Ledger()
    stream = await broker.find_stream(out)
    assert stream is not None
    good = [m for m in sent if "poison" not in m or m["id"] in apart]
    outputs = [orjson.loads(s.payload) async for s in broker.history(stream, [out])]
    outputs = outputs[earlier:]
    seen = Counter(output["id"] for output in outputs)
    ledger.lost = [m["id"] for m in good if not seen[m["id"]]]
    ledger.doubled = [number for number, times in seen.items() if times > 1]
    origin = {m["id"]: m["key"] for m in good}
    ledger.wrong = [o for o in outputs if origin.get(o["id"]) != o["key"]]
    kept = {key: items async for key, items in reading.read(broker, app, route)}
    by_key: dict[object, list[dict[str, int]]] = defaultdict(list)
    for output in outputs:
        by_key[output["key"]].append(output)
    for key, found in by_key.items():
        ids = [o["id"] for o in found]
        ledger.wrong += [o for number, o in enumerate(found, 1) if o["n"] != number]
        in_turn = [number for number in ids if number not in apart]
        if in_turn != sorted(in_turn):
            ledger.unordered.append(key)
        held = {name: orjson.loads(value) for name, value in kept.get(str(key), {}).items()}
        if held != {"n": len(ids), "ids": ids[-50:]}:
            ledger.context.append((key, len(ids), held))
    dead = [orjson.loads(s.payload)["id"] for s in await letters(broker, app, route)]
    bad = [m["id"] for m in sent if "poison" in m and m["id"] not in apart]
    if sorted(dead) != bad:
        ledger.dead_letters.append((bad, dead))
    waiting = [f"p.{app}.{kind}.{route}.>" for kind in ("later", "due", "held")]
    ledger.left_over = [s.subject async for s in broker.history(f"P_{app}", waiting) if s.payload]
    return ledger
