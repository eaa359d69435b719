"""What a Runnable hands over is written as it is at that moment, whatever becomes of the object later."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from processor.model import Group, Limits, Program, Ran
from processor.sandbox.host import Zygote

LANGUAGES = pytest.mark.parametrize("language", ["restricted", "python"])


@asynccontextmanager
async def loaded(source: str, language: str, **limits: int):
    """A guest with that program, of a zygote of its own."""
    zygote = await Zygote.start()
    try:
        yield await zygote.spawn(Program(source, "r.py", language), Limits(**limits), emits=["e"])
    finally:
        await zygote.close()


def numbers(first: int, last: int) -> Group:
    return Group("", [str(number).encode() for number in range(first, last + 1)], {} if first == 1 else None)


def totals(ran: object) -> list[bytes]:
    assert isinstance(ran, Ran), ran
    return [output.body for output in ran.outputs]


KEPT = """
class Runnable:
    def init(self):
        self.context["sum"] = {"n": 0, "all": []}

    def process(self, queries):
        for query in queries:
            total = self.context["sum"]
            total["n"] += query
            total["all"].append(query)
            yield total
            yield {"shared": total["all"]}
            yield {"n": total["n"]}
            yield total["n"]
"""


@LANGUAGES
async def test_an_output_is_what_it_was_when_it_was_yielded(language: str) -> None:
    """Nested, shared or flat, in one batch or in three: the outputs are the same, and in order."""
    expected = []
    for last in range(1, 5):
        total, drawn = sum(range(1, last + 1)), ",".join(map(str, range(1, last + 1)))
        expected += [
            f'{{"n":{total},"all":[{drawn}]}}',
            f'{{"shared":[{drawn}]}}',
            f'{{"n":{total}}}',
            str(total),
        ]
    written = [text.encode() for text in expected]
    async with loaded(KEPT, language) as guest:
        assert totals(await guest.run([numbers(1, 4)])) == written
    async with loaded(KEPT, language) as guest:
        parts = [await guest.run([numbers(*part)]) for part in ((1, 1), (2, 3), (4, 4))]
        assert [body for part in parts for body in totals(part)] == written


@LANGUAGES
async def test_a_flat_document_may_be_used_again(language: str) -> None:
    """One dict that is yielded a hundred times is a hundred documents, each with the subject of then."""
    source = """
class Runnable:
    def process(self, queries):
        document = {}
        for number in range(100):
            document["n"] = number
            yield document
            yield None
            document["n"] = -1
"""
    async with loaded(source, language) as guest:
        ran = await guest.run([numbers(1, 1)], fields=["n"])
    assert isinstance(ran, Ran), ran
    assert [(output.body, output.fields) for output in ran.outputs] == [
        (b'{"n":%d}' % number, (str(number),)) for number in range(100)
    ]


@LANGUAGES
async def test_an_iterator_that_yields_nothing_for_long_is_read_to_its_end(language: str) -> None:
    """`None` is no output, and does not count as one."""
    source = "class Runnable:\n  def process(self, queries): return iter([None] * 3000 + ['last'])\n"
    async with loaded(source, language) as guest:
        assert totals(await guest.run([numbers(1, 1)])) == [b'"last"']


@LANGUAGES
async def test_emits_events_and_a_list_are_what_they_were(language: str) -> None:
    """emit and event write at once; a list is handed over when process returns."""
    source = """
class Runnable:
    def process(self, queries):
        document, outputs = {"n": [0]}, []
        for number in queries:
            document["n"][0] = number
            self.emit("e", document)
            self.event("seen", document)
            outputs += [document, {"n": number}]
        return outputs
"""
    async with loaded(source, language) as guest:
        ran = await guest.run([numbers(1, 2)])
    assert isinstance(ran, Ran), ran
    assert [emit.body for emit in ran.emits] == [b'{"n":[1]}', b'{"n":[2]}']
    assert [event.body for event in ran.events] == [b'{"n":[1]}', b'{"n":[2]}']
    assert totals(ran) == [b'{"n":[2]}', b'{"n":1}', b'{"n":[2]}', b'{"n":2}']


@LANGUAGES
async def test_a_chunk_is_what_it_was_when_it_was_yielded(language: str) -> None:
    """Stream mode sends each chunk before the next is made."""
    source = """
class Runnable:
    def process_stream(self, query):
        document = {"n": []}
        for number in range(3):
            document["n"].append(number)
            yield document
"""
    chunks: list[bytes] = []

    async def emit(chunk: bytes) -> None:
        chunks.append(chunk)

    async with loaded(source, language) as guest:
        assert isinstance(await guest.stream(numbers(1, 1), emit), Ran)
    assert chunks == [b'{"n":[0]}', b'{"n":[0,1]}', b'{"n":[0,1,2]}']


@LANGUAGES
async def test_writing_an_output_takes_nothing_of_the_users_memory(language: str) -> None:
    """A document near the limit of memory is written all the same, and the generator goes on."""
    source = """
class Runnable:
    def process(self, queries):
        text = "x" * 100_000
        for _ in range(2):
            yield [text] * 60
        yield "end"
"""
    async with loaded(source, language, memory_mb=16, output_bytes=16 << 20) as guest:
        assert [len(body) for body in totals(await guest.run([numbers(1, 1)]))] == [6_000_181, 6_000_181, 5]
