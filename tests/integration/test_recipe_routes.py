"""Recipes of a configuration: their steps as executions of a graph, on requests, messages and due times."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.embedded import EmbeddedServer
from processor.graphs.history import told
from tests.conftest import waited
from tests.integration.test_graphs import Graphs
from tests.running import started
from tests.sandbox.test_shell import processes_with
from tests.web import answer, serving

STEPS = """
from orchestrator.context import Context
from orchestrator.scriptlets.python.core.base import BaseScriptlet


class Measure(BaseScriptlet):
    def validate(self, ctx, params):
        assert isinstance(params["serial"], str), "serial must be string"

    def run(self, ctx, params):
        ctx.set("dut.serial_v1", params["serial"], who="measure")
        ctx.set("dut.volts_v1", [3.3, 3.2], who="measure")
        return {"status": "ok", "key": "dut.volts_v1"}


class Judge(BaseScriptlet):
    def run(self, ctx, params):
        volts = ctx.get("dut.volts_v1")
        ctx.set("dut.volts_v1", [*volts, sum(volts)], who="judge")
        authors = [each["who"] for each in ctx.get_history("dut.volts_v1")]
        return {"status": params.get("status", "ok"), "authors": authors}


def quiet(ctx, params):
    return {"status": "ok"}
"""
MAIN = """
test_meta: {test_id: HW7, tester: ann}
steps:
  - {idx: 1, name: measure, type: python, module: orchestrator.steps, class: Measure, params: {serial: "A-1"}}
  - {idx: 2, name: count, type: shell, cmd: orchestrator/count.sh, args: {INPUT: orchestrator/Data/list.txt}}
  - {idx: 3, name: judge, type: python, module: orchestrator.steps, class: Judge}
"""
COUNT = """#!/bin/sh
set -eu
echo "counting $INPUT" >&2
echo "{\\"status\\":\\"ok\\",\\"lines\\":$(wc -l < "$INPUT")}"
"""
CONFIG = """
app: app
http: off
drain_s: 5
engine: {concurrency: 1, partitions: 8}
recipes:
  main:
    file: main.yaml
    shell: on
    events: {subject: events.main, level: all}
    output: results.main
    triggers: [{subject: dut.ready, create: true, inputs: {serial: "${{ document.serial }}"}}]
"""


def write_tree(folder: Path, **recipes: str) -> None:
    """A tree with the steps of these tests, and these recipes beside `main`."""
    folder.chmod(0o755)  # where root runs the tests, shell steps are nobody
    (folder / "orchestrator" / "Data").mkdir(parents=True, exist_ok=True)
    (folder / "orchestrator" / "steps.py").write_text(STEPS)
    (folder / "orchestrator" / "Data" / "list.txt").write_text("a\nb\nc\n")
    executable(folder / "orchestrator" / "count.sh", COUNT)
    for name, text in {"main": MAIN, **recipes}.items():
        (folder / f"{name}.yaml").write_text(text)


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


App = Callable[..., Any]


@pytest.fixture
def app(tmp_path: Path, nats_server: EmbeddedServer) -> App:
    """`async with app() as graphs`: run the recipes of a configuration until the block ends."""

    @asynccontextmanager
    async def start(config: str = CONFIG, **recipes: str) -> AsyncIterator[Graphs]:
        write_tree(tmp_path, **recipes)
        path = tmp_path / "config.yaml"
        path.write_text(config)
        async with started(path, nats_server.url) as running:
            await running.until_ready()
            yield Graphs(running)

    return start


async def test_the_steps_of_a_recipe_share_a_context_with_its_history(app: App) -> None:
    """Python steps and shell steps in turn; the record has the context, and who changed it."""
    async with app() as graphs:
        run = await graphs.start("main")
        record = await graphs.record(run)
        assert (record["state"], record["errors"]) == ("SUCCESS", [])
        assert record["store"] == {"dut.serial_v1": "A-1", "dut.volts_v1": [3.3, 3.2, 6.5]}
        history = told(record["history"])
        assert [(each["who"], each["old"], each["new"]) for each in history["dut.volts_v1"]] == [
            ("measure", None, [3.3, 3.2]),
            ("judge", [3.3, 3.2], [3.3, 3.2, 6.5]),
        ]
        assert [each["ts"] for each in history["dut.volts_v1"]] == sorted(
            each["ts"] for each in history["dut.volts_v1"]
        )
        outputs = {each["x"]: each["outputs"] for each in record["executions"]}
        assert outputs == {
            "measure": {"status": "ok", "key": "dut.volts_v1"},
            "count": {"status": "ok", "lines": 3},
            "judge": {"status": "ok", "authors": ["measure", "judge"]},
        }
        [output] = await graphs.running.documents("results.main", 1)
        assert (output["run"], output["state"]) == (run, "SUCCESS")
        events = await graphs.running.documents("events.main", 2)
        assert [(each["event"], each["test_meta"]["test_id"]) for each in events] == [
            ("started", "HW7"),
            ("completed", "HW7"),
        ]


async def test_a_message_starts_a_run_with_its_parameters(app: App) -> None:
    """Each message is one run, and what its trigger takes from it are parameters of the first step."""
    async with app() as graphs:
        await graphs.running.publish("dut.ready", {"serial": "B-7", "other": 1}, {"serial": 9})
        outputs = await graphs.running.documents("results.main", 2)
        records = {each["run"]: await graphs.record(each["run"]) for each in outputs}
        found = sorted((record["state"], record["store"].get("dut.serial_v1")) for record in records.values())
        assert found == [("FAILED", None), ("SUCCESS", "B-7")]
        [failed] = [record for record in records.values() if record["state"] == "FAILED"]
        [error] = failed["errors"]
        assert (error["x"], error["code"]) == ("measure", "E716")
        assert error["text"] == "step measure: serial must be string"
        assert error["returned"] == {"status": "error", "reason": "serial must be string"}
        assert [(each["x"], each["state"]) for each in failed["executions"]] == [("measure", "ERRORED")]


FAILING = """
steps:
  - {name: measure, type: python, module: orchestrator.steps, class: Measure, params: {serial: "A-1"}}
  - {name: judge, type: python, module: orchestrator.steps, class: Judge, params: {status: failed}}
  - {name: last, type: python, module: orchestrator.steps, function: quiet}
"""


async def test_a_step_that_fails_ends_its_run_with_the_context_before_it(app: App) -> None:
    """What it returned is told with its error, and what it set does not count."""
    config = "app: app\nhttp: off\nengine: {concurrency: 1, partitions: 8}\nrecipes: {r: r.yaml}\n"
    async with app(config, r=FAILING) as graphs:
        record = await graphs.record(await graphs.start("r"))
        assert (record["state"], record["counts"]) == ("FAILED", {"SUCCESS": 1, "ERRORED": 1})
        assert record["store"]["dut.volts_v1"] == [3.3, 3.2]
        [error] = record["errors"]
        assert (error["x"], error["code"], error["returned"]["status"]) == ("judge", "E716", "failed")


UNMET = """
steps:
  - name: python
    type: python
    module: orchestrator.steps
    class: Measure
    params: {serial: "A-1"}
    success: {ctx_has_keys: [dut.serial_v1, dut.amps_v1], files_exist: [orchestrator/Data/list.txt]}
"""
SHELL_UNMET = """
steps:
  - {name: first, type: python, module: orchestrator.steps, class: Measure, params: {serial: "A-1"}}
  - name: shell
    type: shell
    cmd: [sh, -c, 'echo "{\\"status\\": \\"ok\\"}"']
    success: {ctx_has_keys: [dut.serial_v1], files_exist: [orchestrator/Data/plot.svg, orchestrator/steps.py]}
"""


@pytest.mark.parametrize("is_pool", [False, True])
async def test_a_step_has_to_leave_what_its_success_names(app: App, is_pool: bool) -> None:
    """Keys of the context and files below the root: E714 names what is missing, wherever it runs."""
    outbound = "outbound: [api.example.com], " if is_pool else ""
    config = f"""
app: app
http: off
engine: {{concurrency: 1, partitions: 8}}
recipes: {{python: {{{outbound}file: p.yaml}}, shell: {{{outbound}file: s.yaml, shell: on}}}}
"""
    async with app(config, p=UNMET, s=SHELL_UNMET) as graphs:
        for recipe, missing in (
            ("python", "the context has no 'dut.amps_v1' (success.ctx_has_keys)"),
            ("shell", "there is no 'orchestrator/Data/plot.svg' (success.files_exist)"),
        ):
            record = await graphs.record(await graphs.start(recipe))
            assert record["state"] == "FAILED"
            [error] = record["errors"]
            assert (error["x"], error["code"]) == (recipe, "E714")
            assert error["text"] == f"step {recipe!r} ended well, but {missing}"
            assert error["returned"]["status"] == "ok"
            assert ("dut.serial_v1" in record["store"]) == (recipe == "shell")


PARALLEL = """
steps:
  - {name: a, type: shell, cmd: orchestrator/meet.sh, args: {ME: a, OTHER: b}, writes: orchestrator/Data}
  - {name: b, type: shell, cmd: orchestrator/meet.sh, args: {ME: b, OTHER: a}, writes: orchestrator/Data}
  - {name: main, type: python, module: orchestrator.steps, function: quiet, depends_on: [a, b]}
"""
MEET = """#!/bin/sh
touch "orchestrator/Data/$ME"
while [ ! -e "orchestrator/Data/$OTHER" ]; do sleep 0.01; done
echo '{"status": "ok"}'
"""


async def test_steps_that_do_not_wait_for_each_other_run_at_the_same_time(app: App, tmp_path: Path) -> None:
    """As many shell steps as `concurrency` says; here each waits for what the other writes."""
    config = """
app: app
http: off
engine: {concurrency: 1, partitions: 8}
recipes: {meet: {file: meet.yaml, shell: on, concurrency: 8}}
"""
    write_tree(tmp_path)
    (tmp_path / "orchestrator" / "Data").chmod(0o777)
    executable(tmp_path / "orchestrator" / "meet.sh", MEET)
    async with app(config, meet=PARALLEL) as graphs:
        record = await graphs.record(await graphs.start("meet"))
        assert (record["state"], record["errors"]) == ("SUCCESS", [])
        assert [each["x"] for each in record["executions"]][-1] == "main"


STUBBORN = """
steps:
  - name: again
    type: shell
    cmd: orchestrator/again.sh
    writes: [orchestrator/Data]
    retry: {max_retries: 2, strategy: FIXED, backoff_factor: 50}
  - {name: slow, type: shell, cmd: [sleep, "60"], timeout_s: 0.5}
"""
AGAIN = """#!/bin/sh
echo x >> orchestrator/Data/tries
tries=$(wc -l < orchestrator/Data/tries)
[ "$tries" -eq 3 ] || { echo "try $tries" >&2; exit 4; }
echo "{\\"status\\": \\"ok\\", \\"tries\\": $tries}"
"""


async def test_a_step_is_tried_again_and_may_take_so_long(app: App, tmp_path: Path) -> None:
    """`retry` and `timeout_s` are of the step; a program that takes longer is ended."""
    config = """
app: app
http: off
engine: {concurrency: 1, partitions: 8}
recipes: {r: {file: r.yaml, shell: on}}
"""
    write_tree(tmp_path)
    (tmp_path / "orchestrator" / "Data").chmod(0o777)
    executable(tmp_path / "orchestrator" / "again.sh", AGAIN)
    async with app(config, r=STUBBORN) as graphs:
        record = await graphs.record(await graphs.start("r"))
        again, slow = record["executions"]
        assert (again["state"], again["attempt"], [each["code"] for each in again["why"]]) == (
            "SUCCESS",
            3,
            ["E716", "E716"],
        )
        assert record["state"] == "FAILED"
        assert slow["why"][-1]["code"] in ("E710", "E312")


async def test_two_recipes_may_have_steps_of_one_name(app: App) -> None:
    """Kinds are of a recipe; each runs its own step."""
    other = """
steps:
  - {name: measure, type: python, module: orchestrator.steps, function: quiet}
"""
    config = """
app: app
http: off
engine: {concurrency: 1, partitions: 8}
recipes: {one: {file: one.yaml, shell: off}, other: other.yaml}
"""
    async with app(
        config,
        one=UNMET.replace(", dut.amps_v1", "").replace("python\n    type", "measure\n    type"),
        other=other,
    ) as graphs:
        records = [await graphs.record(await graphs.start(name)) for name in ("one", "other")]
        assert [(each["state"], sorted(each["store"])) for each in records] == [
            ("SUCCESS", ["dut.serial_v1", "dut.volts_v1"]),
            ("SUCCESS", []),
        ]


async def test_steps_that_may_ask_others_have_commits_of_their_own(app: App) -> None:
    """With `outbound` the python steps are a pool; their context and its history are the same."""
    config = CONFIG.replace("shell: on", "shell: on\n    outbound: [api.example.com]")
    async with app(config) as graphs:
        run = await graphs.start("main")
        record = await graphs.record(run)
        assert (record["state"], record["errors"]) == ("SUCCESS", [])
        outputs = {each["x"]: each["outputs"] for each in record["executions"]}
        assert outputs["judge"] == {"status": "ok", "authors": ["measure", "judge"]}
        assert record["store"]["dut.volts_v1"] == [3.3, 3.2, 6.5]
        assert await graphs.running.contexts("nodes-recipe-main") == {}


async def test_a_run_remembers_so_many_changes(app: App) -> None:
    """`history` says how many of each key; 0 is none."""
    for kept, authors in ((0, []), (1, ["judge"])):
        config = f"""
app: app{kept}
http: off
engine: {{concurrency: 1, partitions: 8}}
recipes: {{r: {{file: r.yaml, history: {kept}}}}}
"""
        recipe = FAILING.replace(", params: {status: failed}", "")
        async with app(config, r=recipe) as graphs:
            record = await graphs.record(await graphs.start("r"))
            assert record["state"] == "SUCCESS"
            found = told(record.get("history", {})).get("dut.volts_v1", [])
            assert [each["who"] for each in found] == authors


async def test_what_a_program_says_on_stderr_is_logged(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """With the name of its step; what it prints is its result alone."""
    caplog.set_level("INFO", "processor")
    async with app() as graphs:
        await graphs.record(await graphs.start("main"))
        lines = [each.getMessage() for each in caplog.records if "counting" in each.getMessage()]
        assert lines == ["count: counting orchestrator/Data/list.txt"]


async def test_a_changed_step_counts_for_runs_from_then_on(app: App, tmp_path: Path) -> None:
    """A reload takes up the recipe and its modules; nobody else has to be told."""
    config = "app: app\nhttp: off\nengine: {concurrency: 1, partitions: 8}\nrecipes: {r: r.yaml}\n"
    recipe = "steps: [{name: quiet, type: python, module: orchestrator.steps, function: quiet}]"
    async with app(config, r=recipe) as graphs:
        record = await graphs.record(await graphs.start("r"))
        assert record["executions"][0]["outputs"] == {"status": "ok"}
        steps = tmp_path / "orchestrator" / "steps.py"
        assert steps in load(graphs.running.path).files
        steps.write_text(STEPS.replace('return {"status": "ok"}', 'return {"status": "ok", "new": True}'))
        (tmp_path / "r.yaml").write_text(
            recipe.replace(
                "[{", "[{name: first, type: python, module: orchestrator.steps, function: quiet}, {"
            )
        )
        await graphs.running.reload()
        record = await graphs.record(await graphs.start("r"))
        assert [(each["x"], each["outputs"]) for each in record["executions"]] == [
            ("first", {"status": "ok", "new": True}),
            ("quiet", {"status": "ok", "new": True}),
        ]


async def said(graphs: Graphs, *words: str) -> tuple[int, str, str]:
    """What `processor` says with these words, beside the app."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", *words),
        cwd=graphs.running.path.parent,
        env={"PATH": "/usr/bin:/bin", "NATS_URL": graphs.running.broker.address, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_runs_of_recipes_are_started_listed_and_shown(app: App) -> None:
    """A run by hand, its context with who changed it, and the list of runs of one recipe or of all."""
    async with app() as graphs:
        code, out, _ = await said(
            graphs, "graph", "trigger", "config.yaml", "main", "--run-id", "r7", "--wait", "30s"
        )
        assert code == 0, out
        code, out, _ = await said(graphs, "graph", "run", "config.yaml", "r7", "--format", "human")
        assert code == 0
        lines = out.splitlines()
        assert any(re.fullmatch(r'  dut.serial_v1 = "A-1" by measure at \d{4}-.*', line) for line in lines), (
            out
        )
        assert any(
            re.fullmatch(r"  dut.volts_v1 = \[3.3,3.2,6.5\] by judge at .*, change 2 of it", line)
            for line in lines
        )
        code, out, _ = await said(graphs, "graph", "run", "config.yaml", "r7", "--format", "json")
        [first, _] = orjson.loads(out)["history"]["dut.volts_v1"]
        assert (first["who"], first["old"], first["new"]) == ("measure", None, [3.3, 3.2])
        for words in (("config.yaml",), ("config.yaml", "main")):
            code, out, _ = await said(graphs, "recipe", "runs", *words, "--format", "json")
            assert (code, [orjson.loads(line)["run"] for line in out.splitlines()]) == (0, ["r7"])
        code, _, err = await said(graphs, "recipe", "runs", "config.yaml", "mian")
        assert (code, "has no recipe 'mian'. Did you mean main?" in err) == (1, True)


async def test_check_shows_recipes_and_tries_their_steps(app: App, tmp_path: Path) -> None:
    """Each recipe is a graph, its groups are named, and a step that does not compile has its line."""
    async with app() as graphs:
        code, out, err = await said(graphs, "check", "config.yaml", "--format", "human")
        assert code == 0, err
        assert re.search(r"main +measure, count, judge +dut.ready, request +results.main", out), out
        assert re.search(r"recipe-main +with their runs", out), out
        assert re.search(r"shell-main +in cells, 1 at a time", out), out
        code, out, err = await said(graphs, "graph", "try", "config.yaml", "main")
        assert (code, "processor recipe run" in err) == (2, True)
        (tmp_path / "orchestrator" / "steps.py").write_text(STEPS + "\nimport os\n")
        code, out, err = await said(graphs, "check", "config.yaml")
        assert code == 2
        assert "orchestrator/steps.py:27:1 E203 'import os' is not allowed" in err


ASKING = """
import httpx


def ask(ctx, params):
    said = httpx.get(params["url"]).text
    ctx.set("said_v1", said, who="ask")
    return {"status": "ok", "said": said}
"""


async def test_a_step_asks_others_once_for_each_execution(app: App, tmp_path: Path) -> None:
    """Hosts that `outbound` lists, and no others; what was asked is not asked again for a step after it."""
    write_tree(tmp_path)
    (tmp_path / "asking.py").write_text(ASKING)
    step = "type: python, module: asking, function: ask"
    async with serving(lambda asked: answer(asked.target.encode())) as web:
        recipe = f"""
steps:
  - {{name: first, {step}, params: {{url: "{web.url}/one"}}}}
  - {{name: second, {step}, params: {{url: "{web.url}/two"}}}}
  - {{name: judge, type: python, module: orchestrator.steps, function: quiet}}
"""
        config = f"""
app: app
http: off
engine: {{concurrency: 1, partitions: 8}}
recipes: {{open: {{file: r.yaml, outbound: ["{web.host}"]}}, closed: r.yaml}}
"""
        async with app(config, r=recipe) as graphs:
            record = await graphs.record(await graphs.start("open"))
            assert (record["state"], record["errors"], record["store"]) == (
                "SUCCESS",
                [],
                {"said_v1": "/two"},
            )
            assert [each.target for each in web.asked] == ["/one", "/two"]
            record = await graphs.record(await graphs.start("closed"))
            assert (record["state"], record["errors"][0]["code"]) == ("FAILED", "E317")
            assert len(web.asked) == 2


async def test_a_run_that_failed_goes_on_where_it_was(app: App, tmp_path: Path) -> None:
    """A retry runs the step that failed again, in the context that the steps before it left."""
    listed = tmp_path / "orchestrator" / "Data" / "list.txt"
    write_tree(tmp_path)
    async with app() as graphs:
        listed.unlink()
        record = await graphs.record(await graphs.start("main", "r1"))
        assert (record["state"], record["errors"][0]["x"]) == ("FAILED", "count")
        assert record["errors"][0]["returned"] == {"status": "error", "reason": "non-json stdout"}
        listed.write_text("a\n")
        code, _, err = await said(graphs, "graph", "retry", "config.yaml", "r1")
        assert code == 0, err
        [good] = [
            each for each in await graphs.running.documents("results.main", 2) if each["state"] == "SUCCESS"
        ]
        assert good["run"] == "r1"
        code, out, _ = await said(graphs, "graph", "run", "config.yaml", "r1", "--format", "json")
        shown = orjson.loads(out)
        assert shown["store"]["dut.volts_v1"] == [3.3, 3.2, 6.5]
        assert [each["who"] for each in shown["history"]["dut.volts_v1"]] == ["measure", "judge"]
        attempts = {each["x"]: each["attempt"] for each in shown["executions"]}
        assert attempts == {"measure": 1, "count": 2, "judge": 1}


LARGE = """
steps:
  - {name: large, type: shell, cmd: orchestrator/large.sh, args: {SIZE: "%d"}}
"""
SAY = """#!/bin/sh
printf '{"status": "ok", "v": "%0*d"}' "$SIZE" 0
"""


async def test_a_step_that_says_more_than_a_message_takes_fails_alone(app: App, tmp_path: Path) -> None:
    """Its run says so, and the next one goes on; what is small enough is no failure, and is not kept."""
    config = """
app: app
http: off
engine: {concurrency: 1, partitions: 8}
recipes: {large: {file: large.yaml, shell: on}, fits: {file: fits.yaml, shell: on}}
"""
    write_tree(tmp_path)
    executable(tmp_path / "orchestrator" / "large.sh", SAY)
    async with app(config, large=LARGE % 1_045_000, fits=LARGE % 900_000) as graphs:
        runs = [await graphs.start(name) for name in ("large", "fits", "large", "fits")]
        records = [await graphs.record(run) for run in runs]
        assert [record["state"] for record in records] == ["FAILED", "SUCCESS", "FAILED", "SUCCESS"]
        assert records[1]["executions"][0]["outputs"] == {}
        assert records[0]["errors"][0]["code"] == "E307"


HANGING = """
steps:
  - {name: begin, type: python, module: orchestrator.steps, function: quiet}
  - {name: hang, type: shell, cmd: [orchestrator/hang.sh, %s], writes: orchestrator/Data, depends_on: begin}
  - {name: fail, type: shell, cmd: orchestrator/fail.sh, writes: orchestrator/Data, depends_on: begin}
"""
HANG = """#!/bin/sh
touch orchestrator/Data/began
while :; do sleep 0.1; done
"""
FAIL = """#!/bin/sh
while [ ! -e orchestrator/Data/fail ]; do sleep 0.02; done
exit 3
"""


@pytest.mark.parametrize("end", ["cancel", "failure"])
async def test_a_program_ends_with_its_run(app: App, tmp_path: Path, end: str) -> None:
    """When the run is cancelled, and when a step beside it has failed for good: nothing of it is left."""
    config = """
app: app
http: off
engine: {concurrency: 1, partitions: 8}
recipes: {r: {file: r.yaml, shell: on, concurrency: 8}}
"""
    write_tree(tmp_path)
    data = tmp_path / "orchestrator" / "Data"
    data.chmod(0o777)
    executable(tmp_path / "orchestrator" / "hang.sh", HANG)
    executable(tmp_path / "orchestrator" / "fail.sh", FAIL)
    word = f"{end}-{os.getpid()}"  # no other process has it among its arguments
    async with app(config, r=HANGING % word) as graphs:
        run = await graphs.start("r")
        await waited((data / "began").exists, "the program runs", 30)
        assert processes_with(word)
        if end == "cancel":
            assert (await said(graphs, "graph", "cancel", "config.yaml", run))[0] == 0
        else:
            (data / "fail").touch()
        record = await graphs.record(run)
        assert record["state"] == ("CANCELLED" if end == "cancel" else "FAILED")
        await waited(lambda: not processes_with(word), "the program has ended", 30)
