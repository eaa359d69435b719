"""What came out, held against what went in: lost, doubled, wrong, out of order, torn."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from processor import context
from processor.jetstream import ApiError, Broker, Message, Unknown

KEYS = [f"k{number}" for number in range(7)]

RUNNABLE = '''
class Runnable:
    """Counts the messages of a key and remembers the last one; some of them are poison."""

    def init(self):
        self.context["n"] = 0
        self.context["ids"] = []

    def process(self, queries):
        outputs = []
        for query in queries:
            if query.get("poison"):
                raise ValueError("poison")
            self.context["n"] += 1
            self.context["ids"] = (self.context["ids"] + [query["id"]])[-50:]
            outputs.append({"id": query["id"], "key": query["key"], "n": self.context["n"]})
        return outputs
'''

STORY = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process_stream(self, query):
        self.context["n"] += 1
        yield f"{query['id']} begins"
        yield f"{query['id']} ends"
"""


def write_config(folder: Path, app: str, **more: str) -> Path:
    """A keyed counting route with small batches, so that there are many commits."""
    (folder / "counter.py").write_text(RUNNABLE)
    (folder / "story.py").write_text(STORY)
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
    path = folder / "config.yaml"
    text = f"app: {app}\nhttp: off\nroutes:\n  r:\n"
    path.write_text(text + "".join(f"    {name}: {value}\n" for name, value in lines.items()))
    return path


async def feed(broker: Broker, count: int, poison: int = 0, first: int = 0) -> list[dict[str, object]]:
    """Publish `count` messages over the keys, `poison` of them poisoned; what was published, in order."""
    chance = random.Random(first)
    bad = set(chance.sample(range(first, first + count), poison))
    sent: list[dict[str, object]] = []
    for number in range(first, first + count):
        key = chance.choice(KEYS)
        message: dict[str, object] = {"id": number, "key": key}
        if number in bad:
            message["poison"] = True
        sent.append(message)
        await broker.publish(Message(f"in.{key}", orjson.dumps(message)))
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

    def __bool__(self) -> bool:
        """Whether there is anything to complain about."""
        return any(vars(self).values())


async def count(broker: Broker, stream: str, subject: str) -> int:
    """How many messages of `subject` the stream holds."""
    try:
        info = await broker.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
    except (ApiError, Unknown):  # it is not made yet, or its server is being killed
        return 0
    subjects = info["state"].get("subjects") or {}
    return sum(subjects.values())


async def settled(broker: Broker, app: str, total: int) -> bool:
    """Whether every input has become an output or a dead letter."""
    outputs = await count(broker, f"{app}-out-any", "out.>")
    dead = await count(broker, f"P_{app}", f"p.{app}.dlq.r.>")
    return outputs + dead >= total


async def examine(broker: Broker, app: str, sent: list[dict[str, object]]) -> Ledger:
    """Read every output, dead letter and context, and compare with a sequential run over `sent`."""
    ledger = Ledger()
    stream = await broker.find_stream("out.*")
    assert stream is not None
    good = [m for m in sent if "poison" not in m]
    expected: dict[object, tuple[object, int]] = {}
    counts: Counter[object] = Counter()
    for message in good:
        counts[message["key"]] += 1
        expected[message["id"]] = (message["key"], counts[message["key"]])
    outputs = [orjson.loads(s.payload) async for s in broker.history(stream, ["out.>"])]
    seen = Counter(output["id"] for output in outputs)
    ledger.lost = [number for number in expected if not seen[number]]
    ledger.doubled = [number for number, times in seen.items() if times > 1]
    ledger.wrong = [o for o in outputs if expected.get(o["id"]) != (o["key"], o["n"])]
    for key in counts:
        numbers = [o["n"] for o in outputs if o["key"] == key]
        if numbers != sorted(numbers):
            ledger.unordered.append(key)
    kept = {key: items async for key, items in context.read(broker, app, "r")}
    for key, total in counts.items():
        ids = [m["id"] for m in good if m["key"] == key][-50:]
        found = {name: orjson.loads(value) for name, value in kept.get(str(key), {}).items()}
        if found != {"n": total, "ids": ids}:
            ledger.context.append((key, total, found))
    dead = [orjson.loads(s.payload)["id"] async for s in broker.history(f"P_{app}", [f"p.{app}.dlq.r.>"])]
    bad = [m["id"] for m in sent if "poison" in m]
    if sorted(dead) != bad:
        ledger.dead_letters.append((bad, dead))
    return ledger
