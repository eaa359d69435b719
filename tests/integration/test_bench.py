"""`processor bench` on small cases: that it measures what it says, not how fast this machine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from processor.bench.cases import CASES
from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK

ROOT = Path(__file__).parent.parent.parent


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "processor", "bench", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, check=False)


def test_every_kind_of_case_gives_its_figures() -> None:
    """A baseline, a route under load, an idle one, a crowd, a graph, shell steps and a long run, as JSON."""
    names = ["pipelined", "keys_64", "idle_memory", "routes_10", "graph_unite", "shell_step", "endurance"]
    done = bench(*names, "--rounds", "1", "--scale", "0.01", "--latency-seconds", "0.3", "--format", "json")
    assert done.returncode in (EXIT_OK, EXIT_FAILED), done.stderr  # a busy machine may miss a promise
    found = json.loads(done.stdout)
    measured = [name for name in names if name not in found["skipped"]]
    assert list(found["cases"]) == [name for name in CASES if name in measured]
    assert set(names) - set(measured) <= {"shell_step"}, found["skipped"]
    for name in ("pipelined", "keys_64", "routes_10", "graph_unite"):
        assert found["cases"][name]["messages_per_s"]["median"] > 0
    case = {figure: spread["median"] for figure, spread in found["cases"]["keys_64"].items()}
    assert case["mean_batch"] >= 1
    assert case["commits_per_s"] > 0
    assert 0 < case["p50_ms_at_10"] <= case["p95_ms_at_10"] <= case["p99_ms_at_10"]
    assert case["host_rss_mb"] > 10
    assert found["cases"]["idle_memory"]["p50_ms"]["median"] > 0
    assert found["cases"]["graph_unite"]["p50_ms"]["median"] > 0
    if "shell_step" in found["skipped"]:
        assert "E715" in found["skipped"]["shell_step"]
    else:
        step = {figure: spread["median"] for figure, spread in found["cases"]["shell_step"].items()}
        assert step["over_ms"] < step["p50_ms"] <= step["p99_ms"]
    assert {"start_s", "idle_cpu_percent", "mb_per_route"} <= found["cases"]["routes_10"].keys()
    assert set(found["ratios"]) == {
        f"{n} / pipelined" for n in ("keys_64", "routes_10", "graph_unite", "endurance")
    }
    endurance = {figure: spread["median"] for figure, spread in found["cases"]["endurance"].items()}
    assert endurance["memory_growth"] == endurance["mb_in_last_fifth"] / endurance["mb_in_second_fifth"]
    assert "round 1 of 1: keys_64: " in done.stderr


def test_latency_and_scale_are_what_is_asked_for() -> None:
    """Without seconds there are no percentiles; the scale decides how many messages there are."""
    done = bench("keys_64", "--rounds", "1", "--scale", "0.01", "--latency-seconds", "0", "--format", "json")
    [case] = json.loads(done.stdout)["cases"].values()
    assert not [figure for figure in case if figure.startswith(("p50", "live"))]
    assert case["messages"]["median"] == 0.01 * CASES["keys_64"].messages


def test_the_results_are_a_report_or_a_page() -> None:
    """Every round is measured, and each figure is written with its spread."""
    for format, begin in (("human", "pipelined: (b) nats-py"), ("markdown", "| pipelined | (b) nats-py")):
        done = bench("pipelined", "--rounds", "2", "--scale", "0.01", "--format", format)
        assert done.returncode == EXIT_OK, done.stderr
        assert begin in done.stdout
        assert "messages_per_s" in done.stdout
        assert "round 2 of 2: pipelined: " in done.stderr
    assert "`processor bench pipelined --rounds 2 --scale 0.01 --latency-seconds 2`" in done.stdout
    assert "Medians of 2 interleaved rounds" in done.stdout


def test_a_case_that_is_not_there_is_refused_with_its_nearest() -> None:
    """Nothing is started for a mistake."""
    done = bench("conter")
    assert done.returncode == EXIT_CONFIG
    assert "did you mean counter?" in done.stderr


def test_the_cases_can_be_listed() -> None:
    """One line each, with what it is."""
    done = bench("--list")
    assert done.returncode == EXIT_OK
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(CASES)
