"""`processor bench`: what this machine does with routes, as ratios to what it does without them.

Every case runs on real servers that the bench starts, in processes of its own. Rounds are interleaved, so
that a machine that slows down slows all of them; a figure is the median of the rounds with its spread.

    cases.py       what is measured, and what is promised
    baselines.py   hand-written programs that do the same work without Processor
    routes.py      one case of ours, measured
    programs.py    shell steps
    load.py        documents, backlogs, publishers at a rate
    processes.py   processor time and memory of processes, and the servers
    report.py      medians, ratios, tables
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from processor.bench.cases import CASES, Case
from processor.bench.load import DocumentSource
from processor.bench.processes import AGAIN, Servers, one_server, three_servers
from processor.bench.programs import NoJail, measure_steps
from processor.bench.report import markdown, summary
from processor.bench.routes import Figures, Scale, measure
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Unknown

__all__ = ["CASES", "Scale", "bench", "markdown"]

_OF_OTHERS = {"faststream": "FastStream", "natsio": "natsio"}  # the cases that need one, by its module
_ELECTION_S = 30.0
_BASELINE_S = 600.0


def bench(names: Sequence[str], rounds: int, scale: Scale, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure the cases of these names, round by round; the document of `report.summary`.

    `progress` is called with a line for each case and round; one that fails over an answer of the server is
    left out, and said to be. Raises BrokerError E411 without the `embedded` extra, and E404 for a server or a
    processor that does not come up.
    """
    skipped = {
        name: f"{library} is not installed (the extra `bench` brings it)"
        for name, library in _OF_OTHERS.items()
        if name in names and importlib.util.find_spec(name) is None
    }
    chosen = [CASES[name] for name in names if name not in skipped]
    found: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="processor-bench-")))
        servers: dict[int, Servers] = {}
        for count in sorted({case.servers for case in chosen}):
            start = one_server if count == 1 else three_servers
            servers[count] = stack.enter_context(start(folder / f"servers-{count}"))
            asyncio.run(_ready(servers[count], replicas=count))
        version = asyncio.run(_version(next(iter(servers.values())))) if servers else ""
        for number in range(1, rounds + 1):
            for index, case in enumerate(chosen):
                if case.is_long and number > 1:
                    continue
                app = f"b{number}x{index}"
                try:
                    (folder / app).mkdir()
                    if case.kind == "baseline":
                        figures = _baseline(case, servers[case.servers], app, scale)
                    elif case.kind == "step":
                        count = max(20, int(case.messages * scale.messages))
                        figures = asyncio.run(measure_steps(folder / app, count))
                    else:
                        figures = asyncio.run(measure(case, servers[case.servers], folder / app, app, scale))
                except (Again, ApiError, Unknown, NoJail) as err:  # the others are not to be measured again
                    skipped[case.name] = f"round {number} failed: {err}"
                    progress(f"round {number} of {rounds}: {case.name} failed: {err}")
                    continue
                found.setdefault(case.name, []).append(figures)
                progress(f"round {number} of {rounds}: {case.name}: {_in_short(figures)}")
    return summary(found, skipped, version)


def _baseline(case: Case, servers: Servers, app: str, scale: Scale) -> Figures:
    count = max(100, int(case.messages * scale.messages))
    if case.name == "plain":
        count *= 10  # it is that much faster
    else:
        asyncio.run(_fill(case, servers, app, count))
    command = [sys.executable, "-m", "processor.bench.baselines", case.name, servers.url, app, str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BASELINE_S)
    except subprocess.TimeoutExpired as err:
        what = f"the baseline {case.name} was not done within {_BASELINE_S:g} s"
        raise BrokerError("E404", what, remedy=AGAIN) from err
    asyncio.run(_remove(servers, app))
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        what = f"the baseline {case.name} ended: {said[-1] if said else 'silently'}"
        raise BrokerError("E404", what, remedy=AGAIN)
    told = json.loads(done.stdout)
    return {
        "messages_per_s": count / told["seconds"],
        "host_cpu_s_per_million": told["cpu_s"] / count * 1e6,
        "host_rss_mb": told["rss_mb"],
    }


async def _fill(case: Case, servers: Servers, app: str, count: int) -> None:
    broker = await Broker.connect({"servers": servers.url.split(",")}, name="bench", wait=True)
    await broker.create_stream({"name": app, "subjects": [f"{app}.>"], "allow_direct": True})
    await DocumentSource(replace(case, routes=1), app).backlog(broker, count)
    await broker.close()


async def _remove(servers: Servers, app: str) -> None:
    broker = await Broker.connect({"servers": servers.url.split(",")}, name="bench", wait=True)
    for name in (app, f"{app}-out"):
        with contextlib.suppress(ApiError):
            await broker.api(f"STREAM.DELETE.{name}")
    await broker.close()


async def _ready(servers: Servers, replicas: int) -> None:
    """Return when a stream with so many replicas can be made. Raises BrokerError E404."""
    try:
        async with asyncio.timeout(_ELECTION_S):
            while True:
                with contextlib.suppress(BrokerError, ApiError, Again, Unknown):
                    broker = await Broker.connect(
                        {"servers": servers.url.split(",")}, name="bench", wait=False
                    )
                    try:
                        probe = {"name": "PROBE", "subjects": ["probe"], "num_replicas": replicas}
                        await broker.create_stream(probe)
                        await broker.api("STREAM.DELETE.PROBE")
                        return
                    finally:
                        await broker.close()
                await asyncio.sleep(0.2)
    except TimeoutError:
        what = f"{replicas} servers had no leader after {_ELECTION_S:g} s"
        raise BrokerError("E404", what, remedy=AGAIN) from None


async def _version(servers: Servers) -> str:
    broker = await Broker.connect({"servers": servers.url.split(",")}, name="bench", wait=True)
    version = broker.server_version
    await broker.close()
    return version


def _in_short(figures: Figures) -> str:
    chosen = [
        f"{figures[name]:,.{digits}f} {unit}"
        for name, unit, digits in (
            ("messages_per_s", "messages/s", 0),
            ("p50_ms", "ms p50", 1),
            ("p99_ms", "ms p99", 1),
            ("over_ms", "ms over the program", 1),
            ("start_s", "s to start", 1),
        )
        if name in figures
    ]
    return ", ".join(chosen)
