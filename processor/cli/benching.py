"""`bench`: which cases to measure, and how the figures are shown."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from processor.bench import CASES, Scale, markdown
from processor.bench import bench as measure_cases
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, say
from processor.telemetry import configure_logging


def measure(
    names: Sequence[str], *, rounds: int, scale: float, latency_s: float, format: str, is_listing: bool
) -> int:
    """Measure the named cases, or all; EXIT_FAILED where a promise or everything was missed."""
    screen = Screen("json" if format == "json" else "human")
    if is_listing:
        for case in CASES.values():
            if screen.is_json:
                screen.document({"case": case.name, "about": case.about})
            else:
                screen.line(f"{case.name:14} {case.about}")
        return EXIT_OK
    for name in names:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            hint = f"did you mean {near[0]}?" if near else "`processor bench --list` has them all"
            raise typer.BadParameter(f"there is no case {name!r}; {hint}", param_hint="CASE")
    configure_logging("human", "error")
    chosen = list(dict.fromkeys(names)) or list(CASES)
    found = measure_cases(chosen, rounds, Scale(scale, latency_s), say)
    if format == "json":
        screen.document(found)
    elif format == "markdown":
        options = f" --rounds {rounds} --scale {scale:g} --latency-seconds {latency_s:g}"
        screen.line(markdown(found, f"processor bench {' '.join(names)}".strip() + options))
    else:
        _show(screen, found)
    is_fine = found["cases"] and all(promise["kept"] for promise in found["promises"])
    return EXIT_OK if is_fine else EXIT_FAILED


def _show(screen: Screen, found: Mapping[str, Any]) -> None:
    if found["cases"]:
        screen.line(f"{found['machine']}, nats-server {found['nats_server']}, {found['rounds']} rounds")
    for name, case in found["cases"].items():
        screen.heading(f"{name}: {CASES[name].about}")
        for figure, spread in case.items():
            screen.line(f"  {figure:26} {_shown(spread)}")
    if found["ratios"]:
        screen.heading("ratios")
    for name, spread in found["ratios"].items():
        screen.line(f"  {name:26} {_shown(spread)}")
    if found["promises"]:
        screen.heading("promises")
    for each in found["promises"]:
        text = (
            f"  {each['what']}: {each['figure']} {each['how']} {each['bound']:g}: {_shown(each['measured'])}"
        )
        (screen.line if each["kept"] else screen.problem)(text)
    for name, why in found["skipped"].items():
        screen.problem(f"{name} was not measured: {why}")


def _shown(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:12,.2f}  ({spread['low']:,.2f} to {spread['high']:,.2f})"
