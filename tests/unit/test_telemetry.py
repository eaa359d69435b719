"""Metrics, readiness and the log, as Prometheus, a probe and a person see them."""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Literal

import httpx
import pytest
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from processor.health import Health
from processor.telemetry import (
    GRAPHS_MAX,
    METRICS,
    GraphTelemetry,
    LogStream,
    Telemetry,
    configure_logging,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(telemetry: Telemetry) -> Samples:
    """What Prometheus would read, through the real server and Prometheus' own parser."""
    return read((await get(telemetry, "/metrics")).text)


def read(page: str) -> Samples:
    """The samples of a page, by Prometheus' own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def get(telemetry: Telemetry, path: str) -> httpx.Response:
    health = Health(telemetry)
    await health.start()
    try:
        async with httpx.AsyncClient() as client:
            return await client.get(health.url + path)
    finally:
        await health.stop()


def report_everything(telemetry: Telemetry, name: str) -> None:
    route = telemetry.route(name)
    route.received(7)
    route.processed(5, 0.02)
    route.committed(5, 0.003, 9)
    route.end_to_end([0.004, 0.2])
    route.outputs(4)
    route.events(2)
    route.failed("E304")
    route.dead_lettered("E304", 2)
    route.retried()
    route.dropped("E304")
    route.waiting(3, 1)
    route.guest_restarted("E313")
    route.called("E325", 0.02)
    route.tool_took(0.02)
    route.inferred("local", 0.3, 12, 5, 0.05)
    route.decided("http", "deny")
    route.budget_used("team-a", 0.95)
    route.budget_denied("team-a")
    graphs = GraphTelemetry(telemetry)
    graphs.run_ended("refunds", "success", 0.02)
    graphs.executed("refunds", "pay", "error", 0.004)
    graphs.executed("refunds", "pay", "success", None)
    graphs.runs_open({"refunds": 3})
    telemetry.audit_broken()
    telemetry.sealed(12)
    route.lag(3, 1.5)
    route.guest_memory(1000)
    route.context(200)
    route.stopped(True)
    route.paused(True)
    route.runs("1b2c3d4e5f60")
    route.retention_used(0.5)
    telemetry.copies("OUT", "out", 3, is_stopped=True)
    telemetry.app_stream(4096, {"out": 2})
    telemetry.storage_used(0.25)
    telemetry.jail("confined", {"seccomp": "on"})
    telemetry.connected(True)
    telemetry.configured("market", "0f1e2d3c4b5a")
    telemetry.outdated(True)
    telemetry.reloaded("applied")
    telemetry.reloaded("E203")


async def test_every_fact_that_is_reported_can_be_scraped() -> None:
    """Each report of a route appears under its metric, with the route and the reason as its labels."""
    telemetry = Telemetry()
    report_everything(telemetry, "stats")
    samples = await scrape(telemetry)
    route = ("route", "stats")
    for name, labels, value in (
        ("processor_received_messages_total", (route,), 7),
        ("processor_processed_messages_total", (route,), 5),
        ("processor_committed_messages_total", (route,), 5),
        ("processor_outputs_total", (route,), 4),
        ("processor_events_total", (route,), 2),
        ("processor_failures_total", (("reason", "E304"), route), 1),
        ("processor_dead_letters_total", (("reason", "E304"), route), 2),
        ("processor_guest_restarts_total", (("reason", "E313"), route), 1),
        ("processor_requests_total", (("reason", "E325"), route), 1),
        ("processor_request_seconds_sum", (route,), 0.02),
        ("processor_tool_seconds_sum", (route,), 0.02),
        ("processor_inference_seconds_sum", (("endpoint", "local"), route), 0.3),
        ("processor_first_token_seconds_sum", (("endpoint", "local"), route), 0.05),
        ("processor_tokens_total", (("direction", "in"), ("endpoint", "local"), route), 12),
        ("processor_tokens_total", (("direction", "out"), ("endpoint", "local"), route), 5),
        ("processor_lag_messages", (route,), 3),
        ("processor_lag_seconds", (route,), 1.5),
        ("processor_guest_memory_bytes", (route,), 1000),
        ("processor_context_bytes", (route,), 200),
        ("processor_route_stopped", (route,), 1),
        ("processor_batch_messages_sum", (route,), 5),
        ("processor_process_seconds_sum", (route,), 0.02),
        ("processor_commit_messages_sum", (route,), 9),
        ("processor_commit_seconds_count", (route,), 1),
        ("processor_end_to_end_seconds_count", (route,), 2),
        ("processor_end_to_end_seconds_bucket", (("le", "0.005"), route), 1),
        ("processor_end_to_end_seconds_bucket", (("le", "0.25"), route), 2),
        ("processor_end_to_end_seconds_bucket", (("le", "+Inf"), route), 2),
        ("processor_input_retention_used_ratio", (route,), 0.5),
        ("processor_copy_waiting_messages", (("stream", "OUT"), ("subject", "out")), 3),
        ("processor_copy_stopped", (("stream", "OUT"), ("subject", "out")), 1),
        ("processor_app_stream_bytes", (), 4096),
        ("processor_app_stream_messages", (("kind", "out"),), 2),
        ("processor_storage_used_ratio", (), 0.25),
        ("processor_connected", (), 1),
        ("processor_ready", (), 1),
        ("processor_jail_level", (), 1),
        ("processor_reloads_total", (("reason", "applied"),), 1),
        ("processor_runs_total", (("graph", "refunds"), ("state", "success")), 1),
        ("processor_runs_open", (("graph", "refunds"),), 3),
        ("processor_run_seconds_sum", (("graph", "refunds"),), 0.02),
        ("processor_executions_total", (("graph", "refunds"), ("node", "pay"), ("outcome", "error")), 1),
        ("processor_execution_seconds_sum", (("node", "pay"),), 0.004),
    ):
        assert samples[name, labels] == value, name


async def test_names_that_clients_give_make_no_end_of_series() -> None:
    """Beyond a number, graphs and nodes share a series."""
    telemetry = Telemetry()
    graphs = GraphTelemetry(telemetry)
    for number in range(GRAPHS_MAX + 3):
        graphs.run_ended(f"g{number}", "failed", 0.1)
    samples = await scrape(telemetry)
    runs = {labels: value for (name, labels), value in samples.items() if name == "processor_runs_total"}
    assert len(runs) == GRAPHS_MAX + 1
    assert runs[("graph", "other"), ("state", "failed")] == 3


async def test_every_metric_of_the_table_is_reported_by_something() -> None:
    """The table has no metric that nothing writes, and nothing writes a metric that is not in the table."""
    telemetry = Telemetry()
    report_everything(telemetry, "stats")
    exported = {name for name, _ in await scrape(telemetry) if name.startswith("processor_")}
    for suffix in ("_bucket", "_count", "_sum"):
        exported = {name.removesuffix(suffix) for name in exported}
    assert exported == set(METRICS)


FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class Library(Collector):
    """The same facts, for the client library to write."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for metric in METRICS.values():
            family = FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            if isinstance(family, HistogramMetricFamily):
                for labels, distribution in self.telemetry.distributions[metric.name].items():
                    bounds = [*map(str, metric.bounds), "+Inf"]
                    counts = itertools.accumulate(distribution.counts)
                    family.add_metric(labels, list(zip(bounds, counts, strict=True)), distribution.total)
            else:
                for labels, number in self.telemetry.counted(metric).items():
                    family.add_metric(labels, number)
            yield family


def test_the_page_is_what_the_client_library_would_write() -> None:
    """Help, types, labels, buckets and values are those of its registry, whatever a label has in it."""
    telemetry = Telemetry()
    for name in ("stats", "prices-2_b", 'a "b" \\n \\ \n 100% {c} %d'):
        report_everything(telemetry, name)
        telemetry.route(name).hop_lag(4)
        telemetry.route(name).hop_stopped(True)
        telemetry.route(name).processed(5000, 61.5)
        telemetry.route(name).received(123_456_789)
    telemetry.route("idle")
    ours = telemetry.page().decode()
    registry = CollectorRegistry()
    registry.register(Library(telemetry))
    ProcessCollector(registry=registry)
    theirs = generate_latest(registry).decode()

    def of_routes(samples: Samples) -> Samples:
        return {key: value for key, value in samples.items() if key[0].startswith("processor_")}

    assert of_routes(read(ours)) == of_routes(read(theirs))
    assert read(ours).keys() == read(theirs).keys()
    comments = [[line for line in page.splitlines() if line.startswith("#")] for page in (ours, theirs)]
    assert comments[0] == comments[1]


def test_metrics_follow_the_rules_of_their_names() -> None:
    """Names start with processor_, counters end in _total; labels are bounded."""
    for name, metric in METRICS.items():
        assert name.startswith("processor_")
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert set(metric.labels) <= {
            "route",
            "reason",
            "app",
            "hash",
            "kind",
            "stream",
            "subject",
            "budget",
            "graph",
            "node",
            "state",
            "outcome",
            "endpoint",
            "direction",
        }, name
        assert bool(metric.bounds) == (metric.kind == "histogram"), name
        assert not name.endswith(("_ms", "_count", "_sum", "_bucket")), name


async def test_a_version_that_runs_has_one_hash() -> None:
    """A reload replaces the hashes of configuration and programs; a refusal ends with its cause."""
    telemetry = Telemetry()
    for version in ("1", "2"):
        telemetry.configured("market", version)
        telemetry.route("stats").runs(f"program {version}")
    telemetry.outdated(True)
    telemetry.reloaded("E203")
    telemetry.reloaded("E104")

    def of_versions(samples: Samples) -> Samples:
        names = ("_info", "_outdated", "_refused")
        return {series: n for series, n in samples.items() if series[0].endswith(names)}

    running = {
        ("processor_config_info", (("app", "market"), ("hash", "2"))): 1.0,
        ("processor_program_info", (("hash", "program 2"), ("route", "stats"))): 1.0,
    }
    refused = {
        ("processor_config_outdated", ()): 1.0,
        ("processor_reload_refused", (("reason", "E104"),)): 1.0,
    }
    assert of_versions(await scrape(telemetry)) == running | refused
    telemetry.outdated(False)
    assert of_versions(await scrape(telemetry)) == running | {("processor_config_outdated", ()): 0.0}
    telemetry.route("stats").remove()
    assert "processor_program_info" not in {name for name, _ in await scrape(telemetry)}


async def test_a_new_route_counts_from_zero() -> None:
    """Counters exist from the start, so that the first message is an increase; what is unknown is absent."""
    telemetry = Telemetry()
    telemetry.route("idle")
    samples = await scrape(telemetry)
    route = (("route", "idle"),)
    assert samples["processor_received_messages_total", route] == 0
    assert samples["processor_route_stopped", route] == 0
    assert ("processor_lag_messages", route) not in samples


async def test_gauges_of_lanes_are_summed_and_end_with_them() -> None:
    """What nobody knows any more is absent; what waits in the stream is not of lanes."""
    telemetry = Telemetry()
    route = telemetry.route("stats")
    lanes = [route.lane(number) for number in range(2)]
    for lane, size in zip(lanes, (100, 20), strict=True):
        lane.context(size)
        lane.guest_memory(10 * size)
        lane.waiting(size, 1)
        lane.outputs(size)

    route.lag(7)

    async def gauges() -> list[float | None]:
        samples = await scrape(telemetry)
        names = ("context_bytes", "guest_memory_bytes", "waiting_messages", "blocked_keys", "lag_messages")
        return [samples.get((f"processor_{name}", (("route", "stats"),))) for name in names]

    assert await gauges() == [120, 1200, 120, 2, 7]
    lanes[0].ended()
    assert await gauges() == [20, 200, 20, 1, 7]
    lanes[1].ended()
    assert await gauges() == [None] * 4 + [7]
    route.lag_unknown()
    assert await gauges() == [None] * 5
    assert (await scrape(telemetry))["processor_outputs_total", (("route", "stats"),)] == 120


async def test_a_removed_route_leaves_no_series() -> None:
    """A route that a reload took away disappears from the metrics, and no other route does."""
    telemetry = Telemetry()
    report_everything(telemetry, "old")
    report_everything(telemetry, "kept")
    telemetry.route("old").remove()
    routes = {dict(labels).get("route") for _, labels in await scrape(telemetry)}
    assert "old" not in routes
    assert "kept" in routes


async def test_a_process_reports_its_own_memory_and_files() -> None:
    """The standard process metrics are there beside ours."""
    assert ("process_resident_memory_bytes", ()) in await scrape(Telemetry())


async def test_not_ready_says_why() -> None:
    """/readyz is 503 with every reason until the last is cleared; the jail's layers are always listed."""
    telemetry = Telemetry()
    telemetry.jail("confined", {"seccomp": "on", "netns": "off(EPERM)"})
    telemetry.readiness.block("nats", "The NATS server is not connected.")
    telemetry.readiness.block("route.stats", "stats is stopped: E406.")
    blocked = await get(telemetry, "/readyz")
    assert blocked.status_code == 503
    assert blocked.json()["reasons"] == {
        "nats": "The NATS server is not connected.",
        "route.stats": "stats is stopped: E406.",
    }
    assert (await scrape(telemetry))["processor_ready", ()] == 0
    telemetry.readiness.clear("nats")
    telemetry.readiness.clear("route.stats")
    telemetry.readiness.clear("never blocked")
    ready = await get(telemetry, "/readyz")
    assert ready.status_code == 200
    assert ready.json()["ready"] is True
    assert ready.json()["jail"] == {"level": "confined", "layers": {"seccomp": "on", "netns": "off(EPERM)"}}


async def test_alive_is_not_ready() -> None:
    """A process that waits for its server is alive: a restart would not help."""
    telemetry = Telemetry()
    telemetry.readiness.block("nats", "The NATS server is not connected.")
    assert (await get(telemetry, "/livez")).status_code == 200


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged in a test; the loggers are as they were afterwards."""
    ours, root = logging.getLogger("processor"), logging.getLogger()
    level = ours.level
    yield io.StringIO()
    ours.setLevel(level)
    for handler in [handler for handler in root.handlers if isinstance(handler, LogStream)]:
        root.removeHandler(handler)


FIELDS = {"route": "stats", "seq": 1042, "attempt": 3, "code": "E312"}


def test_json_lines_have_fixed_keys(log: io.StringIO) -> None:
    """A JSON log line has the time in UTC, level, logger, message, and the fields that were given."""
    configure_logging("json", "info", stream=log)
    logging.getLogger("processor.delivery.worker").warning("stopped after %.2f s", 2.0, extra=FIELDS)
    line = json.loads(log.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "processor.delivery.worker",
        "message": "stopped after 2.00 s",
        **FIELDS,
    }


def test_a_traceback_stays_in_its_json_line(log: io.StringIO) -> None:
    """An exception is part of its line, so that a line is always one record."""
    configure_logging("json", "info", stream=log)
    try:
        raise ValueError("no price")
    except ValueError:
        logging.getLogger("processor").exception("unexpected")
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: no price")


def test_human_lines_are_aligned(log: io.StringIO) -> None:
    """A line for people has its level and route in columns, then the sentence, then the other fields."""
    configure_logging("human", "info", stream=log)
    logging.getLogger("processor").info("ready")
    logging.getLogger("processor").warning("E312 stopped", extra=FIELDS)
    first, second = (line[len("12:34:56.789") :] for line in log.getvalue().splitlines())
    assert first == " INFO    -            ready"
    assert second == " WARNING stats        E312 stopped seq=1042 attempt=3"


def test_nothing_in_a_line_can_start_another(log: io.StringIO) -> None:
    """Line ends and terminal codes in a sentence or a field are shown, not obeyed."""
    configure_logging("human", "info", stream=log)
    logging.getLogger("processor").info("a\nb\x1b[2J", extra={"code": "c\r\nd\u2028"})
    (line,) = log.getvalue().splitlines()
    assert line.endswith(r"a\nb\x1b[2J code=c\r\nd\u2028")


def test_what_a_runnable_logs_has_its_lines(log: io.StringIO) -> None:
    """A traceback that it logs is read line by line; none of them can pass for a line of the log."""
    configure_logging("human", "info", stream=log)
    said = "it failed\nTraceback:\n  12:00:00.000 ERROR forged\x1b[2J"
    logging.getLogger("processor.runnable").info("%s", said, extra={"route": "stats"})
    first, *below = log.getvalue().splitlines()
    assert first.endswith(" INFO    stats        it failed")
    assert below == ["    | Traceback:", r"    |   12:00:00.000 ERROR forged\x1b[2J"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_colour", [False, True])
def test_only_a_terminal_gets_colour(
    no_colour: bool, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings are coloured on a terminal unless NO_COLOR is set, and never in a file."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure_logging("human", "info", stream=terminal)
    logging.getLogger("processor").warning("look")
    assert ("\x1b[33m" in terminal.getvalue()) == (not no_colour)
    configure_logging("human", "info", stream=log)
    logging.getLogger("processor").warning("look")
    assert "\x1b" not in log.getvalue()


@pytest.mark.parametrize("format", ["human", "json"])
def test_the_level_is_ours_alone(format: Literal["human", "json"], log: io.StringIO) -> None:
    """`debug` shows our details and not those of libraries, whose warnings always appear."""
    configure_logging(format, "debug", stream=log)
    configure_logging(format, "debug", stream=log)
    logging.getLogger("processor.x").debug("ours")
    logging.getLogger("library").info("theirs")
    logging.getLogger("library").warning("their warning")
    text = log.getvalue()
    assert [text.count(said) for said in ("ours", "theirs", "their warning")] == [1, 0, 1]


def test_logs_go_to_standard_error(log: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to a command's results."""
    configure_logging("human", "info")
    logging.getLogger("processor").info("ready")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ready" in captured.err
