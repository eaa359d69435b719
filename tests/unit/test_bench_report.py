"""How the figures of rounds become medians, ratios, kept promises and a page."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from processor.bench.cases import CASES, GOALS
from processor.bench.report import markdown, summary
from processor.cli import main
from processor.cli.terminal import EXIT_FAILED

ROUNDS = {
    "pipelined": [{"messages_per_s": 10.0}, {"messages_per_s": 20.0}, {"messages_per_s": 40.0}],
    "counter": [{"messages_per_s": 30.0}, {"messages_per_s": 50.0}, {"messages_per_s": 60.0}],
    "idle_file": [
        {"p50_ms": 7.0, "p99_ms": 9.0},
        {"p50_ms": 5.0, "p99_ms": 8.0},
        {"p50_ms": 8.0, "p99_ms": 7.0},
    ],
}


def made() -> dict[str, Any]:
    return summary(ROUNDS, {"faststream": "it is not installed"}, "2.15.1")


def test_a_figure_is_the_median_of_its_rounds_with_the_lowest_and_the_highest() -> None:
    """The spread says how far to trust the median."""
    assert made()["cases"]["counter"]["messages_per_s"] == {"median": 50.0, "low": 30.0, "high": 60.0}
    assert made()["rounds"] == 3


def test_a_ratio_is_made_within_each_round() -> None:
    """A machine that slowed down for one round slowed both sides of its ratio."""
    assert made()["ratios"] == {"counter / pipelined": {"median": 2.5, "low": 1.5, "high": 3.0}}


def test_a_promise_is_kept_or_not_by_its_median() -> None:
    """What was not measured is not among them; what was says what it was held to."""
    promises = {(each["what"], each["figure"]): each["kept"] for each in made()["promises"]}
    assert promises == {
        ("counter / pipelined", "messages_per_s"): True,
        ("idle_file", "p50_ms"): False,
        ("idle_file", "p99_ms"): True,
    }


def test_the_page_shows_every_case_every_promise_and_what_is_missing() -> None:
    """A promise that was not reached stands out."""
    page = markdown(made(), "processor bench --rounds 3")
    assert "`processor bench --rounds 3`" in page
    for name in ROUNDS:
        assert f"| {name} | {CASES[name].about} |" in page
    assert "| idle_file | p50_ms | at most 6 | 7 (5 to 8) **not reached** |" in page
    assert "- faststream: it is not installed" in page


def test_every_promise_is_about_cases_that_there_are() -> None:
    """A promise about a case that was renamed would never be looked at again."""
    for what, _, how, _ in GOALS:
        assert set(what.split(" / ")) <= CASES.keys()
        assert how in ("at least", "at most")


def test_a_baseline_whose_library_is_missing_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it was all that was asked for, nothing is started, and the exit code says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "faststream"]) == EXIT_FAILED
    assert "faststream was not measured: FastStream is not installed" in capsys.readouterr().out
