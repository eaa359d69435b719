"""Medians and spreads of what was measured, the promises beside them, and how they are written down."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from processor import __version__
from processor.bench.cases import CASES, GOALS

Rounds = Mapping[str, Sequence[Mapping[str, float]]]  # by case, the figures of each round

_BASELINE = "pipelined"


def summary(rounds: Rounds, skipped: Mapping[str, str], server_version: str) -> dict[str, Any]:
    """Everything that was measured, as one JSON document.

    A figure is `{"median", "low", "high"}` over the rounds. A ratio is made within each round, and then the
    median of those.
    """
    names = [name for name in CASES if name in rounds]
    rated = [n for n in names if "messages_per_s" in rounds[n][0] and n != _BASELINE]
    return {
        "version": __version__,
        "machine": _machine(),
        "nats_server": server_version,
        "rounds": max((len(each) for each in rounds.values()), default=0),
        "cases": {
            name: {
                figure: _spread([found[figure] for found in rounds[name] if figure in found])
                for figure in rounds[name][0]
            }
            for name in names
        },
        "ratios": {
            f"{name} / {_BASELINE}": _ratio(rounds, name, _BASELINE, "messages_per_s")
            for name in rated
            if _BASELINE in rounds
        },
        "promises": [
            promise
            for what, figure, how, bound in GOALS
            if (promise := _promise(rounds, what, figure, how, bound)) is not None
        ],
        "skipped": dict(skipped),
    }


def markdown(found: Mapping[str, Any], command: str) -> str:
    """The document of `summary` as a page."""
    lines = [
        "# Results of `processor bench`",
        "",
        f"Written by `{command}`. {found['machine']}, nats-server {found['nats_server']}, Processor "
        f"{found['version']}.",
        f"Medians of {found['rounds']} interleaved rounds, with the lowest and the highest in brackets.",
        "",
        "## Promises",
        "",
        "| what | figure | promised | measured |",
        "| --- | --- | --- | --- |",
        *(
            f"| {each['what']} | {each['figure']} | {each['how']} {each['bound']:g} | "
            f"{_shown(each['measured'])}{'' if each['kept'] else ' **not reached**'} |"
            for each in found["promises"]
        ),
        "",
        "## Throughput",
        "",
        *_table(
            found,
            ["messages_per_s", "commits_per_s", "mean_batch", "commit_ms"],
            ratio=f"ratio to {_BASELINE}",
        ),
        "",
        "Messages that wait in the input, from the moment they may be taken to the last commit.",
        "",
        "## What it uses",
        "",
        *_table(
            found,
            [
                "host_cpu_s_per_million",
                "guest_cpu_s_per_million",
                "server_cpu_s_per_million",
                "host_rss_mb",
                "guests_mb",
            ],
        ),
        "",
        "Processor seconds for a million messages; resident memory of hosts, and what guests have alone.",
        "",
        "## Latency",
        "",
        *_table(
            found,
            ["live_messages_per_s", *(f"p{p}_ms_at_{level}" for level in (10, 50, 90) for p in (50, 95, 99))],
        ),
        "",
        "From the publisher to the commit of the output (of `stream`: to the sight of its chunk), in ms, at",
        "10, 50 and 90 % of `live_messages_per_s`:",
        "what the route does while a publisher works on the same machine.",
        "",
        "## Idle, and many routes",
        "",
        *_table(
            found,
            [
                "p50_ms",
                "p95_ms",
                "p99_ms",
                "over_ms",
                "start_s",
                "idle_cpu_percent",
                "mb_per_route",
                "host_mb_over_empty",
            ],
        ),
        "",
        "## Memory over time",
        "",
        *_table(found, ["mb_in_second_fifth", "mb_in_last_fifth", "memory_growth"]),
        "",
        "The most that host and guests held in that part of the time.",
        "",
    ]
    if found["skipped"]:
        lines += ["## Not measured", "", *(f"- {name}: {why}" for name, why in found["skipped"].items()), ""]
    return "\n".join(lines)


def _table(found: Mapping[str, Any], figures: Sequence[str], ratio: str = "") -> list[str]:
    rows = {n: c for n, c in found["cases"].items() if any(figure in c for figure in figures)}
    heads = ["case", "what", *figures, *([ratio] if ratio else [])]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, case in rows.items():
        cells = [_shown(case[figure]) if figure in case else "" for figure in figures]
        if ratio:
            made = found["ratios"].get(f"{name} / {_BASELINE}")
            cells.append(_shown(made) if made else "")
        lines.append("| " + " | ".join([name, CASES[name].about, *cells]) + " |")
    return lines


def _shown(spread: Mapping[str, float]) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    return f"{number(spread['median'])} ({number(spread['low'])} to {number(spread['high'])})"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _ratio(rounds: Rounds, ours: str, theirs: str, figure: str) -> dict[str, float]:
    return _spread([a[figure] / b[figure] for a, b in zip(rounds[ours], rounds[theirs], strict=False)])


def _promise(rounds: Rounds, what: str, figure: str, how: str, bound: float) -> dict[str, Any] | None:
    ours, _, theirs = what.partition(" / ")
    if ours not in rounds or (theirs and theirs not in rounds):
        return None
    if theirs:
        measured = _ratio(rounds, ours, theirs, figure)
    else:
        measured = _spread([found[figure] for found in rounds[ours]])
    is_kept = measured["median"] >= bound if how == "at least" else measured["median"] <= bound
    return {"what": what, "figure": figure, "how": how, "bound": bound, "measured": measured, "kept": is_kept}


def _machine() -> str:
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model or platform.machine()}, CPython {platform.python_version()}"
