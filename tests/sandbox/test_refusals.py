"""What the dialect says to write instead of what it refuses: all of that works."""

from __future__ import annotations

import json
import re

from processor.model import Failed, Group, Limits, Program, Ran
from processor.sandbox.dialect import refusals
from processor.sandbox.host import Zygote

# Everything that a refusal advises, written once as a user would.
ADVISED = """
import base64, copy, dataclasses, fnmatch, json, posixpath, re, requests, secrets, time
import traceback, zlib, zoneinfo
from typing import Protocol

class Registered:
    known = []

    def __init_subclass__(cls):
        Registered.known.append(cls)

class Shape(Registered):
    def __getattr__(self, name):
        return name

    def __copy__(self):
        return "copied"

    def __deepcopy__(self, memo):
        return "copied deeply"

    def __enter__(self):
        return "entered"

    def __exit__(self, *why):
        return False

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration

class Sized(Protocol):
    def size(self): ...

@dataclasses.dataclass
class Point:
    x: int

class Runnable:
    def process(self, queries):
        data, shape = b"data" * 100, Shape()
        self.__dict__.update(kept=1)
        setattr(self, "also", getattr(self, "kept") + 1)
        try:
            {}["missing"]
        except KeyError:
            logger.exception("what happened")
            told = traceback.format_exc()
        logger.info("seen")
        print("seen")
        self.context["last"] = 1
        with shape as entered:
            pass
        yield [
            zlib.decompress(zlib.compress(data, wbits=31), wbits=47) == data,
            posixpath.join("a", "b"), posixpath.basename("a/b"), posixpath.dirname("a/b"),
            posixpath.splitext("b.c"),
            len(secrets.token_bytes(4)), dict(self.secrets), callable(requests.get),
            json.loads(json.dumps({"a": 1})), base64.b64encode(b"a").decode(),
            fnmatch.fnmatch("a.py", "*.py"),
            "{:,.2f}".format(1234.5), time.perf_counter() > 0, str(zoneinfo.ZoneInfo("Europe/Berlin")),
            Point(1).x,
            bool(re.compile("a").match("a")), type(self) is Runnable, next(iter([1])), list(shape), entered,
            isinstance(shape, Registered), issubclass(Shape, Registered), len(Registered.known),
            shape.anything,
            copy.copy(shape), copy.deepcopy(shape), "KeyError" in told, self.also, list(queries),
        ]
        if queries[0] == "retry":
            raise Retry(after_s=30)
        if queries[0] == "reject":
            raise Reject('why')
"""
GIVEN = [
    True, "a/b", "b", "a", ["b", ".c"], 4, {}, True, {"a": 1}, "YQ==", True, "1,234.50", True,
    "Europe/Berlin", 1,
    True, True, 1, [], "entered", True, True, 1, "anything", "copied", "copied deeply", True, 2, ["go"],
]  # fmt: skip
NOT_CODE = {"limits.memory_mb"}  # a key of the configuration
_CODE = re.compile(r"\b[a-z]+(?:\.[a-z_]+)+\b|__[a-z_]+__|\b[a-z]+(?=\()")


def texts() -> list[str]:
    found = [*refusals._INSTEAD_OF_MODULE.values(), *refusals.INSTEAD_OF_NAME.values()]
    found += [*refusals.INSTEAD_OF_ATTRIBUTE.values(), *refusals.INSTEAD_OF_DEFINING.values()]
    return found + [instead for _, instead in refusals.INSTEAD_OF_NODE.values()]


def test_every_advice_is_tried() -> None:
    """Each dotted name, call and special method that a refusal advises stands in the program of this file."""
    advised = {name for text in texts() for name in _CODE.findall(text)}
    missing = {name for name in advised - NOT_CODE if name not in ADVISED}
    assert len(advised) > 30
    assert missing == set()


async def test_what_a_refusal_advises_works() -> None:
    """The program compiles, and gives what plain Python would give."""
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(Program(ADVISED, "advised.py"), Limits())
        ran = await guest.run([Group("", [b'["go"]'], {})])
        ended = [await guest.run([Group("", [f'["{way}"]'.encode()], {})]) for way in ("retry", "reject")]
    finally:
        await zygote.close()
    assert isinstance(ran, Ran), ran
    assert json.loads(ran.outputs[0].body) == GIVEN
    failures = [outcome.failure for outcome in ended if isinstance(outcome, Failed)]
    assert [(failure.code, failure.retry_after_s) for failure in failures] == [("E304", 30.0), ("E305", None)]
