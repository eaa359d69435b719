"""Contexts that owners and editors change in turn, against a plain dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processor.config import load
from processor.context.history import Author
from processor.context.position import Move
from processor.context.reading import read
from processor.context.store import ContextStore
from processor.embedded import EmbeddedServer
from processor.errors import Edited
from processor.operate.edits import ContextEdits
from processor.sandbox.values import TOMBSTONE, decode, encode
from tests.properties.test_context import SOURCE, Model, change_of, numbers, stream_of

ANN = Author("ann@desk")

keys = st.sampled_from(["", "AAPL", "a.b c", "x" * 80])
names = st.sampled_from(["n", "/slash~", "", "ü", "long " * 40])
values = st.one_of(
    st.integers(-(2**80), 2**80),
    st.sampled_from(["", "x" * 3000, "y" * 9000]),
    st.sets(st.integers(0, 5)),
    st.decimals(allow_nan=False, allow_infinity=False),
)
contexts = st.dictionaries(names, values, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), keys, contexts),
        st.tuples(st.sampled_from(["set", "delete item"]), keys, st.tuples(names, values)),
        st.tuples(st.just("delete"), keys, st.none()),
        st.tuples(st.sampled_from(["merge", "replace"]), keys, contexts),
    ),
    max_size=10,
)


def pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, partitions=st.sampled_from([1, 3]))
def test_contexts_are_what_owners_and_editors_made_of_them(
    steps: list[tuple[str, str, Any]],
    partitions: int,
    nats_server: EmbeddedServer,
    tmp_path_factory: Any,
    run_async: Any,
) -> None:
    """Small ones, large ones, and those that move outwards: a successor and readers see the same."""

    app = f"e{next(numbers)}"
    path: Path = tmp_path_factory.mktemp("edits") / "app.yaml"
    route = f"{{input: in.*, code: 'class Runnable: ...', key: subject.2, partitions: {partitions}}}"
    path.write_text(f"app: {app}\nroutes: {{r: {route}}}")

    async def scenario() -> None:
        async with stream_of(app, nats_server) as broker:
            model: Model = {}
            edits = ContextEdits(broker, load(path, {}).routes["r"])
            owner = ContextStore(broker, app, "r", partitions, "owner")
            sequence = await owner.claim(SOURCE, 0)
            for what, key, given_ in steps:
                before = dict(model.get(key, {}))
                if what == "commit":
                    after = {name: encode(value) for name, value in given_.items()}
                    sequence += 1
                    while True:
                        move = {owner.partition(key): Move(sequence)}
                        try:
                            await owner.load([key])
                            await owner.commit([], {key: change_of(before, after)}, move)
                            break
                        except Edited:
                            owner = ContextStore(broker, app, "r", partitions, "owner")
                            await owner.claim(SOURCE, 0)
                    model[key] = after
                elif what == "set":
                    await edits.set(key, pointer(given_[0]), given_[1], ANN)
                    model[key] = {**before, given_[0]: encode(given_[1])}
                elif what == "delete item" and before.get(given_[0], TOMBSTONE) != TOMBSTONE:
                    await edits.delete(key, pointer(given_[0]), ANN)
                    model[key] = {**before, given_[0]: TOMBSTONE}
                elif what == "delete" and before:
                    await edits.delete(key, "", ANN)
                    model.pop(key)
                elif what in ("merge", "replace"):
                    items = {name: encode(value) for name, value in given_.items()}
                    await edits.put({key: items}, ANN, is_whole=what == "replace")
                    model[key] = items if what == "replace" else {**before, **items}
            expected = {key: items for key, items in model.items() if items}
            successor = ContextStore(broker, app, "r", partitions, "next")
            await successor.claim(SOURCE, 0)
            assert {k: v for k, v in (await successor.load(model)).items() if v} == expected
            assert {k: v async for k, v in edits.full() if v} == expected
            for key, items in expected.items():
                assert [found async for _, found in read(broker, app, "r", key)] == [items]
                values_of = {n: decode(v) for n, v in items.items() if v != TOMBSTONE}
                assert await edits.get(key) == values_of

    run_async(scenario())
