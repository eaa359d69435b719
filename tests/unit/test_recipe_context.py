"""The Context of a recipe in a process of one's own, and the files that it is kept in."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from processor.errors import ProcessorError
from processor.recipes.context import RecipeContext, dump, load, read, save


def test_a_value_is_kept_as_a_copy_with_who_set_it_and_when() -> None:
    """The example of the guide: the value, and an entry of history with time, author, old and new value."""
    context = RecipeContext()
    context.set("metrics.mean_v1", 1.23, who="compute_metrics")
    assert context.get("metrics.mean_v1") == 1.23
    [entry] = context.get_history("metrics.mean_v1")
    assert entry.pop("ts") == context.last_modified("metrics.mean_v1") > 1e9
    assert entry == {"who": "compute_metrics", "old": None, "new": 1.23}
    rows = {"rows": [1]}
    context.set("data", rows)
    rows["rows"].append(2)
    context.get("data")["rows"].append(3)
    context.to_dict()["data"]["rows"].append(4)
    context.get_history("data")[0]["new"]["rows"].append(5)
    assert context.to_dict() == {"metrics.mean_v1": 1.23, "data": {"rows": [1]}}
    assert context.get_history("data")[0]["new"] == {"rows": [1]}
    assert context.get_history("data")[0]["who"] == "unknown"
    assert (context.get("none"), context.get("none", 3), context.last_modified("none")) == (None, 3, None)


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value, kept",
    [
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ([True, None, Colour.RED, 1.5, "é"], [True, None, 1, 1.5, "é"]),
        ((1 << 64) - 1, (1 << 64) - 1),
    ],
)
def test_what_comes_back_as_it_is_is_kept_in_types_of_json(value: Any, kept: Any) -> None:
    """A value that is equal to what its JSON reads as is taken, and comes back in plain types."""
    context = RecipeContext()
    context.set("k", value)
    found = context.get("k")
    assert found == kept == value
    assert json.dumps(found) == json.dumps(kept)


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value, why",
    [
        (float("inf"), "inf"),
        ({"a": [0, {"b": (1,)}]}, "a tuple at ['a'][1]['b']"),
        ({1: 2}, "1 as a key of a dict"),
        ({(1, 2): 2}, "a tuple as a key of a dict"),
        (b"x", "a bytes"),
        (1 << 64, "an integer of more than 64 bits"),
        ("\ud800", "half of a surrogate pair"),
        (_circle(), "it is nested more than 100 levels deep"),
    ],
)
def test_what_would_not_come_back_is_refused(value: Any, why: str) -> None:
    """ValueError names the key and the first thing that JSON would change, and the key is as it was."""
    context = RecipeContext({"k": 1})
    with pytest.raises(ValueError, match="Value for k not JSON-serializable: ") as refused:
        context.set("k", value)
    assert str(refused.value) == f"Value for k not JSON-serializable: {why}"
    assert context.get("k") == 1
    assert context.get_history("k") == []


def test_threads_lose_no_change() -> None:
    """Each of many threads finds its own change in the history, whose entries follow from each other."""
    context = RecipeContext()
    threads = [
        threading.Thread(target=lambda who=f"t{n}": [context.set("k", [who, i], who) for i in range(200)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = context.get_history("k")
    assert Counter(entry["who"] for entry in history) == {f"t{n}": 200 for n in range(8)}
    assert [entry["old"] for entry in history] == [None, *(entry["new"] for entry in history[:-1])]
    assert context.get("k") == history[-1]["new"]


def test_a_key_that_is_deleted_keeps_its_history() -> None:
    """`delete` takes the value, notes who did, and raises KeyError where there is none."""
    context = RecipeContext({"k": 1})
    context.delete("k", "cleanup")
    assert context.to_dict() == {}
    entry = context.get_history("k")[0]
    assert (entry["who"], entry["old"], entry["new"]) == ("cleanup", 1, None)
    with pytest.raises(KeyError, match="k"):
        context.delete("k")


def test_a_snapshot_gives_back_values_history_and_run(tmp_path: Path) -> None:
    """What was saved is read again as it was, and a change of a step elsewhere is taken over as it said."""
    context = RecipeContext()
    context.set("a.b_v1", {"n": [1, 2.5, None]}, who="one")
    context.apply("a.b_v1", "later", "two", 1_700_000_000_123)
    file = tmp_path / "context.json"
    save(file, b"old")
    save(file, dump(context, {"done": ["one"]}))
    found = read(file)
    assert found.run == {"done": ["one"]}
    assert found.context.to_dict() == {"a.b_v1": "later"}
    assert found.context.get_history("a.b_v1") == context.get_history("a.b_v1")
    assert found.context.last_modified("a.b_v1") == 1_700_000_000.123
    assert [each.name for each in tmp_path.iterdir()] == ["context.json"]


def test_an_object_alone_is_the_values() -> None:
    """A file without the mark of a snapshot has the values, whatever their keys are."""
    found = load(b'{"values": {"a": 1}, "n": 2}')
    assert found.context.to_dict() == {"values": {"a": 1}, "n": 2}
    assert found.run == {}


@pytest.mark.parametrize(
    "text, why",
    [
        (b"[1]", "it is a list, and no object with keys"),
        (b"{", "unexpected end of data"),
        (b'{"": 1}', "a key of the context is 1 to 128 printable characters"),
        (b'{"context_format": 2}', "it is of version '2', and this build reads 1"),
        (b'{"context_format": 1, "values": []}', "its values, history or run are no objects"),
        (b'{"context_format": 1, "history": {"k": 1}}', "the history of a key is a list"),
        (b'{"context_format": 1, "history": {"k": [{}]}}', "an entry has ts, who, old and new"),
        (
            b'{"context_format": 1, "history": {"k": [{"ts": -1, "who": "", "old": 0, "new": 0}]}}',
            "the ts of an entry is seconds since 1970",
        ),
        (
            b'{"context_format": 1, "history": {"k": [{"ts": 1, "who": 1, "old": 0, "new": 0}]}}',
            "the who of an entry is a text",
        ),
    ],
)
def test_what_is_no_context_is_refused_with_its_file(text: bytes, why: str, tmp_path: Path) -> None:
    """E719 has the file, and what is wrong with it."""
    file = tmp_path / "c.json"
    file.write_bytes(text)
    with pytest.raises(ProcessorError, match=r"E719 it is no context: ") as refused:
        read(file)
    assert why in str(refused.value)
    assert str(refused.value).startswith(f"{file} E719 ")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """E719 says what the system said."""
    with pytest.raises(ProcessorError, match="E719 the context cannot be read: No such file or directory"):
        read(tmp_path / "none.json")
