"""What the keys of a route come to: the `Route` that runs, apart from the file that it was written in."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.address import Binding
from processor.config import load
from processor.model import Limits, Program, RetryPolicy
from processor.reach import BoundSecret, FileRoot, Outbound, Reach, StateApi, Stock
from processor.route import (
    BatchLimits,
    BreakerPolicy,
    EventAttributes,
    KeySource,
    Route,
    RouteEvents,
    RouteInput,
    RouteOutput,
    RouteSchedule,
    StreamLimits,
)
from processor.schema import Schema
from processor.subject import Template

SECRET = "a value of a secret"
SCHEMA = Schema(b'{"type": "object"}')
# Every key of a route but those of other kinds of inputs, each with another value than its default.
KEYS: dict[str, Any] = {
    "input": {
        "subject": "ticks.*.*",
        "create": {"max_age": "1h"},
        "start": "new",
        "codec": "cloudevents",
        "delete_markers": "skip",
        "repartition": True,
    },
    "code": "class Runnable: pass",
    "key": "subject.2",
    "partitions": 8,
    "concurrency": 3,
    "output": {"subject": "out.{key}", "durable": False, "ttl": "2h", "max_bytes": "1MiB"},
    "events": {"subject": "events.r", "level": "all"},
    "emits": ["alerts", "orders.*"],
    "nan_as_null": True,
    "batch": {"max_messages": 7, "max_bytes": 2048, "max_wait_ms": 9},
    "retry": {"attempts": 4, "strategy": "fixed", "base_ms": 1, "factor": 3, "max_ms": 2, "then": "block"},
    "limits": {
        **{each.name: 16 + number for number, each in enumerate(fields(Limits))},
        "contexts": 5,
        "calls_alone": True,
    },
    "calls": {"replay": "writes"},
    "breaker": {"deaths": 9, "window_s": 8, "pause_s": 7},
    "dlq": "1d",
    "history": {"keep": "2d", "edits": "3d"},
    "stock": {"base_url": "http://stock.example", "api_key_env": "STOCK_KEY"},
    "state_api": {"base_url": "https://states.example", "secret": "k"},
    "outbound": {
        "allowed_domains": ["a.example"],
        "timeout_s": 1,
        "request_bytes": 2,
        "response_bytes": 3,
        "redirects": 4,
    },
    "secrets": ["k"],
    "files": ["data"],
    "heap": {"counter": "counter.json"},
    "language": "python",
    "packages": ["orjson"],
    "cloudevents": {"type": "t", "source": "/s"},
}
BOUND = BoundSecret("k", SECRET, (Binding.parse("states.example"),))
ROUTE = Route(
    app="shop",
    name="r",
    program=Program(
        "class Runnable: pass",
        "routes.r.code",
        language="python",
        packages=("orjson",),
        mode="batch",
        nan_as_null=True,
        bytes_in="data_base64",
    ),
    input=RouteInput(
        ("ticks.*.*",),
        codec="cloudevents",
        start="new",
        create=StreamLimits(3600, 10 << 30, frozenset({"max_age"})),
        skips_delete_markers=True,
        repartition=True,
    ),
    key=KeySource("subject", 2),
    partitions=8,
    concurrency=3,
    output=RouteOutput(
        Template("out.{key}"), False, 7200, StreamLimits(7 * 86_400, 1 << 20, frozenset({"max_bytes"}))
    ),
    events=RouteEvents("events.r", "all"),
    emits=("alerts", "orders.*"),
    batch=BatchLimits(7, 2048, 9),
    retry=RetryPolicy(4, "fixed", 1, 3, 2, "block"),
    breaker=BreakerPolicy(9, 8, 7),
    limits=Limits(*(16 + number for number in range(len(fields(Limits))))),
    contexts=5,
    calls_alone=True,
    replay="writes",
    dead_letters_keep_s=86_400,
    history_keep_s=2 * 86_400,
    edits_keep_s=3 * 86_400,
    cloudevents=EventAttributes("t", "/s"),
    reach=Reach(
        "routes.r.outbound.allowed_domains",
        Outbound(("a.example",), 1, 2, 3, 4),
        Stock("http://stock.example", "STOCK_KEY"),
        StateApi("https://states.example"),
        (BOUND,),
        BOUND,
        (FileRoot("data", "/", True, 5),),
        ("alerts", "orders.*"),
        {"counter": SCHEMA},
    ),
)


def loaded(folder: Path, keys: dict[str, Any]) -> Route:
    """The route of a file with these keys; its program is named after the key and not the file."""
    secrets = {"k": {"env": "KEY", "hosts": ["states.example"]}}
    file = folder / "app.yaml"
    (folder / "counter.json").write_bytes(SCHEMA.text)
    roots = {"data": {"path": "/", "write": True, "max_bytes": 5}}
    app = {"app": "shop", "routes": {"r": keys}, "secrets": secrets, "files": roots}
    file.write_text(yaml.safe_dump(app))
    route = load(file, {"KEY": SECRET}).routes["r"]
    name = route.program.filename.removeprefix(f"{file}:")
    return replace(route, program=replace(route.program, filename=name))


def test_every_key_of_a_route_is_in_the_route_that_runs(tmp_path: Path) -> None:
    """A file with every key makes the same route as constructing it by hand."""
    assert loaded(tmp_path, KEYS) == ROUTE


def test_a_schedule_is_read_from_the_stream_of_the_app(tmp_path: Path) -> None:
    """The keys of a schedule, and the subject under which the server keeps it."""
    schedule = {
        "schedule": "0 0 9 * * *",
        "time_zone": "Europe/Berlin",
        "document": {"at": "{time}"},
        "catch_up": False,
    }
    route = loaded(tmp_path, {"input": schedule, "code": "class Runnable: pass"})
    assert route.input == RouteInput(
        ("p.shop.sched.r",),
        schedule=RouteSchedule("0 0 9 * * *", "Europe/Berlin", {"at": "{time}"}, catches_up=False),
    )
    assert route.input.is_own


def test_what_a_file_leaves_out_is_what_code_may_leave_out(tmp_path: Path) -> None:
    """The defaults of the keys and those of the values are the same."""
    keys = {"input": "ticks.*", "output": "out", "events": "events", "code": "class Runnable: pass"}
    assert loaded(tmp_path, keys) == Route(
        app="shop",
        name="r",
        program=Program("class Runnable: pass", "routes.r.code", mode="batch"),
        input=RouteInput(("ticks.*",)),
        output=RouteOutput(Template("out")),
        events=RouteEvents("events"),
        reach=Reach("routes.r.outbound.allowed_domains"),
    )
    created = loaded(tmp_path, {**keys, "input": {"subject": "ticks.*", "create": True}})
    assert created.input.create == StreamLimits()


@pytest.mark.parametrize("written", ["none", "subject.12", "header.X-Key", "json./a/b~1c"])
def test_a_key_is_shown_as_it_is_written(written: str) -> None:
    """Faults and guarantees name it as the file does."""
    assert str(KeySource.parse(written)) == written


def test_a_host_that_cannot_be_reached_is_refused_at_once() -> None:
    """Code that lists one learns of it where it does, and not at the first call."""
    with pytest.raises(ValueError, match="it must be a host alone, not a URL"):
        Outbound(("http://a.example",))
