"""What operators see: metrics, readiness and the log.

`METRICS` is the whole list of metrics. Workers and the service report facts through `RouteTelemetry` and
`Telemetry`, which only write into dictionaries, so that a report costs a fraction of a microsecond; the
samples are made when Prometheus asks. Only this module imports prometheus_client. The page of our metrics is
written here and not by the client, which takes a second of processor time for a thousand busy routes.

Invariants: labels are `route` and `reason`, of models `endpoint` and `direction`, of what runs now `app` and
`hash`, and of graphs `graph`, `node`, `state` and `outcome`; a reason, state or outcome is a code or another
word of ours, never data. Durations are in seconds, sizes in bytes. A route's series end with `remove`.
Nothing here sees a payload. Reports come from one thread, the event loop's; a scrape may run in another.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Literal, TextIO

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest

from processor.printable import printable, printable_json
from processor.sandbox.jail import LEVELS

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MESSAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
PAGE_TYPE = CONTENT_TYPE_LATEST  # of `Telemetry.page`
# Names of graphs, and of nodes, that have series of their own: clients may make any number of them.
GRAPHS_MAX = 200
NODES_MAX = 500


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("route",)
    bounds: tuple[float, ...] = ()


_LAG = "processor_lag_messages"
_LAG_SECONDS = "processor_lag_seconds"
_STOPPED = "processor_route_stopped"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("processor_received_messages_total", "counter", "Input messages taken from the stream."),
        Metric("processor_processed_messages_total", "counter", "Input messages given to a Runnable."),
        Metric(
            "processor_committed_messages_total", "counter", "Input messages whose effects are committed."
        ),
        Metric("processor_outputs_total", "counter", "Outputs, and what was emitted, committed."),
        Metric("processor_events_total", "counter", "Events committed."),
        Metric("processor_failures_total", "counter", "Failed runs, by error code.", ("route", "reason")),
        Metric(
            "processor_dead_letters_total", "counter", "Dead letters, by error code.", ("route", "reason")
        ),
        Metric("processor_retries_total", "counter", "Messages that failed and will be tried again."),
        Metric(
            "processor_dropped_messages_total",
            "counter",
            "Messages given up by `then: drop`, by error code.",
            ("route", "reason"),
        ),
        Metric("processor_waiting_messages", "gauge", "Messages in memory that wait for a try."),
        Metric("processor_blocked_keys", "gauge", "Keys held by a message that has to succeed first."),
        Metric("processor_guest_restarts_total", "counter", "Guests replaced, by code.", ("route", "reason")),
        Metric(
            "processor_requests_total",
            "counter",
            "Calls to the outside: the class of the answer's status, or the code of why there was none.",
            ("route", "reason"),
        ),
        Metric("processor_request_seconds", "histogram", "Time of one call to the outside.", bounds=SECONDS),
        Metric("processor_tool_seconds", "histogram", "Time of one call of a tool.", bounds=SECONDS),
        Metric(
            "processor_inference_seconds",
            "histogram",
            "Time of one call of a model, to the end of its answer.",
            ("route", "endpoint"),
            bounds=SECONDS,
        ),
        Metric(
            "processor_first_token_seconds",
            "histogram",
            "From the call of a model to the first piece of a streamed answer.",
            ("route", "endpoint"),
            bounds=SECONDS,
        ),
        Metric(
            "processor_tokens_total",
            "counter",
            "Tokens that models were given (in) and have answered with (out).",
            ("route", "endpoint", "direction"),
        ),
        Metric(
            "processor_repeated_requests_total",
            "counter",
            "Calls to the outside that their message had made before, in this process.",
        ),
        Metric(
            "processor_decisions_total",
            "counter",
            "Decisions of the policy: what was asked for, and what was said, as http_deny.",
            ("route", "reason"),
        ),
        Metric(
            "processor_audit_entries_total",
            "counter",
            "Entries that were committed to the audit chains of a route.",
        ),
        Metric(
            "processor_budget_used_ratio",
            "gauge",
            "Part of a budget that is used in its window, or held by a lease; 1 is when nothing is left.",
            ("budget",),
        ),
        Metric(
            "processor_budget_denials_total",
            "counter",
            "Calls that a budget denied, or, where it only warns, would have.",
            ("budget",),
        ),
        Metric("processor_runs_total", "counter", "Runs of graphs that ended, by state.", ("graph", "state")),
        Metric("processor_runs_open", "gauge", "Runs of graphs that have not ended.", ("graph",)),
        Metric(
            "processor_run_seconds",
            "histogram",
            "From a run of a graph being created to its end.",
            ("graph",),
            bounds=SECONDS,
        ),
        Metric(
            "processor_executions_total",
            "counter",
            "Executions of nodes: success, pruned, requeued, or error, of which each try counts.",
            ("graph", "node", "outcome"),
        ),
        Metric(
            "processor_execution_seconds",
            "histogram",
            "Time of one try of a node: its wait in a queue included where it is not run by the engine.",
            ("node",),
            bounds=SECONDS,
        ),
        Metric("processor_process_seconds", "histogram", "Time of one run of a Runnable.", bounds=SECONDS),
        Metric("processor_commit_seconds", "histogram", "Time of one atomic commit.", bounds=SECONDS),
        Metric(
            "processor_end_to_end_seconds",
            "histogram",
            "From a message's time in the input stream to its commit.",
            bounds=SECONDS,
        ),
        Metric("processor_batch_messages", "histogram", "Input messages of one run.", bounds=MESSAGES),
        Metric("processor_commit_messages", "histogram", "Messages of one atomic commit.", bounds=MESSAGES),
        Metric(
            "processor_lag_messages",
            "gauge",
            "Input messages that wait, where they are dealt also in the input.",
        ),
        Metric(
            "processor_lag_seconds",
            "gauge",
            "Time since the oldest of them was stored; 0 where none waits.",
        ),
        Metric("processor_guest_memory_bytes", "gauge", "Memory of the route's guests."),
        Metric("processor_context_bytes", "gauge", "Size of the contexts that the route holds."),
        Metric("processor_route_paused", "gauge", "1 while the route is paused."),
        Metric("processor_route_stopped", "gauge", "1 while something stops the route; the log says what."),
        Metric("processor_breaker_open", "gauge", "1 while the route pauses because its guests keep dying."),
        Metric("processor_breaker_openings_total", "counter", "Times that the circuit breaker opened."),
        Metric("processor_log_lines_dropped_total", "counter", "Lines of Runnables' logs over their limits."),
        Metric(
            "processor_input_retention_used_ratio",
            "gauge",
            "How near the oldest unread message is to being dropped by its stream's limits; 1 is when it is.",
        ),
        Metric("processor_audit_broken", "gauge", "1 after the audit was found to be broken.", ()),
        Metric("processor_audit_sealed_entries", "gauge", "Entries of the audit that are sealed.", ()),
        Metric("processor_app_stream_bytes", "gauge", "Size of the app's own stream.", ()),
        Metric(
            "processor_app_stream_messages",
            "gauge",
            "Messages of the app's own stream, by kind: ctx, out, dlq, held, later, hist, in.",
            ("kind",),
        ),
        Metric(
            "processor_storage_used_ratio",
            "gauge",
            "Part of the storage that the account may use; absent where it has no limit.",
            (),
        ),
        Metric(
            "processor_copy_waiting_messages",
            "gauge",
            "Committed outputs that the stream of their subject has not copied.",
            ("stream", "subject"),
        ),
        Metric(
            "processor_copy_stopped",
            "gauge",
            "1 while a stream does not take the copies of committed outputs (E350).",
            ("stream", "subject"),
        ),
        Metric("processor_connected", "gauge", "1 while the NATS server is connected.", ()),
        Metric("processor_ready", "gauge", "1 while /readyz answers 200.", ()),
        Metric("processor_jail_level", "gauge", "0 process, 1 confined, 2 isolated.", ()),
        Metric("processor_config_info", "gauge", "1 for the configuration that runs.", ("app", "hash")),
        Metric("processor_program_info", "gauge", "1 for the Runnable that runs.", ("route", "hash")),
        Metric("processor_config_outdated", "gauge", "1 while files differ from what was loaded.", ()),
        Metric("processor_reloads_total", "counter", "Reloads: applied, or the code why not.", ("reason",)),
        Metric(
            "processor_reload_refused",
            "gauge",
            "1 while the newest version was refused, by its code.",
            ("reason",),
        ),
    )
}


# What stands for the labels in a template: nothing that a name or a bound has in it.
_LABELS = "\0"


def _template(metric: Metric) -> str:
    """The lines of one series, with its labels and numbers left out."""
    if metric.kind != "histogram":
        return f"{metric.name}{{{_LABELS}}} %r\n" if metric.labels else f"{metric.name} %r\n"
    lines = [f'{metric.name}_bucket{{le="{bound}",{_LABELS}}} %d.0\n' for bound in (*metric.bounds, "+Inf")]
    total = f"{metric.name}_count{{{_LABELS}}} %d.0\n{metric.name}_sum{{{_LABELS}}} %r\n"
    return "".join(lines) + total


_TEMPLATES = {metric.name: _template(metric) for metric in METRICS.values()}


class Distribution:
    """Observed values, counted per bucket; cheaper per value than a lock and a walk over the buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> list[int]:
        """Prometheus' form: for each upper bound, and for none, how many values were at or below it."""
        return list(accumulate(self.counts))


class Readiness:
    """Why this process should get no traffic; ready while there is no reason."""

    def __init__(self) -> None:
        self._blocks: dict[str, str] = {}
        self._since_s: dict[str, float] = {}

    def block(self, reason: str, sentence: str) -> None:
        """Not ready until `clear(reason)`; `sentence` tells an operator what happened and what to do."""
        self._blocks[reason] = sentence
        self._since_s.setdefault(reason, time.time())

    def clear(self, reason: str) -> None:
        self._blocks.pop(reason, None)
        self._since_s.pop(reason, None)

    @property
    def since_s(self) -> dict[str, float]:
        """When each reason began, seconds since 1970; its sentence may have changed meanwhile."""
        return dict(self._since_s)

    @property
    def blocks(self) -> dict[str, str]:
        return dict(self._blocks)


class Telemetry:
    """The facts of one process."""

    def __init__(self) -> None:
        self.readiness = Readiness()
        # What the inbox of a route adds to what its lanes say.
        self.inboxes: dict[str, dict[tuple[str, ...], float]] = {_LAG: {}, _STOPPED: {}}
        self.jail_level = ""
        self.jail_layers: dict[str, str] = {}
        self.numbers: dict[str, dict[tuple[str, ...], float]] = {
            metric.name: {} for metric in METRICS.values() if metric.kind != "histogram"
        }
        self.distributions: dict[str, dict[tuple[str, ...], Distribution]] = {
            metric.name: {} for metric in METRICS.values() if metric.kind == "histogram"
        }
        self.numbers["processor_connected"][()] = 0
        self._process = ProcessCollector(registry=None)

    def route(self, name: str) -> RouteTelemetry:
        """Where the worker of this route reports."""
        return RouteTelemetry(self, name)

    def jail(self, level: str, layers: Mapping[str, str]) -> None:
        self.jail_level = level
        self.jail_layers = dict(layers)
        self.numbers["processor_jail_level"][()] = LEVELS.index(level)

    def audit_broken(self) -> None:
        """An entry of the audit was found to be changed, or to be missing."""
        self.numbers["processor_audit_broken"][()] = 1.0

    def sealed(self, entries: int) -> None:
        """The audit is sealed up to so many entries."""
        self.numbers["processor_audit_sealed_entries"][()] = float(entries)

    def connected(self, is_connected: bool) -> None:
        self.numbers["processor_connected"][()] = float(is_connected)

    def configured(self, app: str, hash_: str) -> None:
        """The configuration that runs from now on."""
        self.numbers["processor_config_info"] = {(app, hash_): 1.0}

    def outdated(self, is_outdated: bool) -> None:
        """Whether the files of the configuration differ from what was loaded. If not, none is refused."""
        self.numbers["processor_config_outdated"][()] = float(is_outdated)
        if not is_outdated:
            self.numbers["processor_reload_refused"] = {}

    def reloaded(self, result: str) -> None:
        """One reload is over: `applied`, or the code of the error that kept the old version running."""
        reloads = self.numbers["processor_reloads_total"]
        reloads[(result,)] = reloads.get((result,), 0) + 1
        self.numbers["processor_reload_refused"] = {} if result == "applied" else {(result,): 1.0}

    def made(self, route: str) -> float:
        """Outputs and events that a route has committed so far."""
        both = ("processor_outputs_total", "processor_events_total")
        return sum(self.numbers[name].get((route,), 0) for name in both)

    def copies(self, stream: str, subject: str, waiting: int | None, *, is_stopped: bool) -> None:
        """How many copies wait for a stream, and whether it takes none; None where nothing goes there now."""
        series = {"processor_copy_waiting_messages": waiting, "processor_copy_stopped": is_stopped}
        for name, value in series.items():
            self.numbers[name].pop((stream, subject), None)
            if waiting is not None:
                self.numbers[name][stream, subject] = float(value or 0)

    def app_stream(self, size: int, messages: Mapping[str, int]) -> None:
        """What the app's own stream holds: bytes, and messages by kind."""
        self.numbers["processor_app_stream_bytes"][()] = float(size)
        self.numbers["processor_app_stream_messages"] = {(k,): float(n) for k, n in messages.items()}

    def storage_used(self, ratio: float | None) -> None:
        """The part of its storage that the account has used; None where it has no limit."""
        self.numbers["processor_storage_used_ratio"] = {} if ratio is None else {(): ratio}

    def page(self) -> bytes:
        """Every metric as it is now, in Prometheus' text format."""
        self.numbers["processor_ready"][()] = float(not self.readiness.blocks)
        parts: list[str] = []
        for metric in METRICS.values():
            parts.append(f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n")
            template = _TEMPLATES[metric.name]
            if metric.kind == "histogram":
                for labels, distribution in list(self.distributions[metric.name].items()):
                    counts = distribution.cumulated()
                    lines = template.replace(_LABELS, _labels(metric, labels))
                    parts.append(lines % (*counts, counts[-1], distribution.total))
            else:
                for labels, number in self.counted(metric).items():
                    parts.append(template.replace(_LABELS, _labels(metric, labels)) % float(number))
        return "".join(parts).encode() + generate_latest(self._process)

    def counted(self, metric: Metric) -> dict[tuple[str, ...], float]:
        """A counter or gauge as it is now, by its labels."""
        numbers = dict(self.numbers[metric.name])
        for labels, more in list(self.inboxes.get(metric.name, {}).items()):
            both = numbers.get(labels, 0) + more
            numbers[labels] = both if metric.name == _LAG else min(both, 1.0)
        return numbers


class GraphTelemetry:
    """The facts of an app's graphs. Whatever names clients give, only so many series are made: `_bounded`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._numbers = telemetry.numbers
        self._distributions = telemetry.distributions
        self._graphs: set[str] = set()
        self._nodes: set[str] = set()

    def run_ended(self, graph: str, state: str, seconds: float) -> None:
        """A run has ended in a state, so long after it was created."""
        graph = _bounded(self._graphs, graph, GRAPHS_MAX)
        self._count("processor_runs_total", graph, state)
        self._observe("processor_run_seconds", graph, seconds)

    def executed(self, graph: str, node: str, outcome: str, seconds: float | None) -> None:
        """One try of a node has ended; None where nobody knows how long it took."""
        graph, node = _bounded(self._graphs, graph, GRAPHS_MAX), _bounded(self._nodes, node, NODES_MAX)
        self._count("processor_executions_total", graph, node, outcome)
        if seconds is not None:
            self._observe("processor_execution_seconds", node, seconds)

    def runs_open(self, counts: Mapping[str, int]) -> None:
        """How many runs of each graph have not ended, as this processor has counted them for the app."""
        found: dict[tuple[str, ...], float] = {}
        for graph, count in counts.items():
            label = (_bounded(self._graphs, graph, GRAPHS_MAX),)
            found[label] = found.get(label, 0) + count
        self._numbers["processor_runs_open"] = found

    def _count(self, name: str, *labels: str) -> None:
        numbers = self._numbers[name]
        numbers[labels] = numbers.get(labels, 0) + 1

    def _observe(self, name: str, label: str, seconds: float) -> None:
        distributions = self._distributions[name]
        if (label,) not in distributions:
            distributions[label,] = Distribution(METRICS[name].bounds)
        distributions[label,].observe(seconds)


def _bounded(known: set[str], name: str, most: int) -> str:
    """The name, as long as there are fewer than `most`; then `other` for each new one."""
    if name in known:
        return name
    if len(known) >= most:
        return "other"
    known.add(name)
    return name


class RouteTelemetry:
    """The facts of one route, or of one of its lanes: those are counted together and their gauges summed."""

    def __init__(self, telemetry: Telemetry, route: str) -> None:
        self._labels = (route,)
        self._lane = 0
        self._parts: dict[str, dict[int, float]] = {}  # of the gauges, by lane; shared by the route's lanes
        self._numbers = telemetry.numbers
        self._readiness = telemetry.readiness
        self._distributions = telemetry.distributions
        self._inboxes = telemetry.inboxes
        for metric in METRICS.values():
            if metric.kind == "counter" and metric.labels == ("route",):
                self._numbers[metric.name].setdefault(self._labels, 0)
        for gauge in ("processor_route_stopped", "processor_breaker_open"):
            self._numbers[gauge].setdefault(self._labels, 0)

    def lane(self, number: int) -> RouteTelemetry:
        """Where one lane of the route reports. Its part of the gauges is gone after `ended`."""
        lane = copy.copy(self)
        lane._lane = number
        return lane

    def ended(self) -> None:
        """This lane runs no more. A gauge to which no lane adds is absent: nobody knows its value."""
        for name, parts in self._parts.items():
            if parts.pop(self._lane, None) is not None:
                self._sum(name, parts)

    def received(self, n: int) -> None:
        self._count("processor_received_messages_total", n)

    def processed(self, messages: int, seconds: float) -> None:
        """One run of the Runnable over `messages` input messages, successful or not."""
        self._count("processor_processed_messages_total", messages)
        self._observe("processor_batch_messages", messages)
        self._observe("processor_process_seconds", seconds)

    def committed(self, messages: int, commit_s: float, batch_size: int) -> None:
        """One commit that covers `messages` input messages and is `batch_size` messages itself."""
        self._count("processor_committed_messages_total", messages)
        self._observe("processor_commit_messages", batch_size)
        self._observe("processor_commit_seconds", commit_s)

    def end_to_end(self, seconds: Sequence[float]) -> None:
        """Per input message of a commit: the time since the input stream stored it."""
        if seconds:
            self._observe("processor_end_to_end_seconds", *seconds)

    def outputs(self, n: int) -> None:
        self._count("processor_outputs_total", n)

    def events(self, n: int) -> None:
        self._count("processor_events_total", n)

    def failed(self, reason: str, n: int = 1) -> None:
        self._count("processor_failures_total", n, reason)

    def dead_lettered(self, reason: str, n: int = 1) -> None:
        self._count("processor_dead_letters_total", n, reason)

    def retried(self) -> None:
        self._count("processor_retries_total", 1)

    def dropped(self, reason: str) -> None:
        self._count("processor_dropped_messages_total", 1, reason)

    def waiting(self, messages: int, blocked_keys: int) -> None:
        self._add("processor_waiting_messages", messages)
        self._add("processor_blocked_keys", blocked_keys)

    def guest_restarted(self, reason: str) -> None:
        self._count("processor_guest_restarts_total", 1, reason)

    def log_lines_dropped(self, n: int) -> None:
        self._count("processor_log_lines_dropped_total", n)

    def breaker_opened(self, sentence: str) -> None:
        """The route pauses, and the process is not ready until `breaker_closed`; `sentence` says why."""
        self._numbers["processor_breaker_open"][self._labels] = 1
        self._readiness.block(f"breaker {self._labels[0]}", sentence)
        self._count("processor_breaker_openings_total", 1)

    def breaker_closed(self) -> None:
        self._numbers["processor_breaker_open"][self._labels] = 0
        self._readiness.clear(f"breaker {self._labels[0]}")

    def called(self, result: str, seconds: float) -> None:
        """A call of a guest to the outside: the class of its answer, as `2xx`, or the code instead of one."""
        self._count("processor_requests_total", 1, result)
        self._observe("processor_request_seconds", seconds)

    def tool_took(self, seconds: float) -> None:
        """A call of a tool has ended."""
        self._observe("processor_tool_seconds", seconds)

    def inferred(
        self, endpoint: str, seconds: float, tokens_in: int, tokens_out: int, first_s: float | None
    ) -> None:
        """A call of a model of an endpoint has ended; `first_s` is when its first piece had come."""
        if first_s is not None:
            self._observe_of("processor_first_token_seconds", (*self._labels, endpoint), first_s)
        self._observe_of("processor_inference_seconds", (*self._labels, endpoint), seconds)
        self._count("processor_tokens_total", tokens_in, endpoint, "in")
        self._count("processor_tokens_total", tokens_out, endpoint, "out")

    def decided(self, kind: str, decision: str) -> None:
        """The policy was asked for a kind of thing: allow, deny, expired or shadow."""
        self._count("processor_decisions_total", 1, f"{kind}_{decision}")

    def audited(self, entries: int) -> None:
        """Entries were added to the route's audit chains."""
        if entries:
            self._count("processor_audit_entries_total", entries)

    def budget_used(self, account: str, ratio: float | None) -> None:
        """How much of a budget is used in its window, or held; None where nobody here knows any more."""
        if ratio is None:
            self._numbers["processor_budget_used_ratio"].pop((account,), None)
        else:
            self._numbers["processor_budget_used_ratio"][(account,)] = ratio

    def budget_denied(self, account: str) -> None:
        """A call was denied, or would have been, because a budget is used up."""
        denied = self._numbers["processor_budget_denials_total"]
        denied[(account,)] = denied.get((account,), 0) + 1

    def budget_waits(self, sentence: str | None) -> None:
        """The route takes nothing until a budget is free again, and why; None when it goes on."""
        if sentence is None:
            self._readiness.clear(f"budget {self._labels[0]}")
        else:
            self._readiness.block(f"budget {self._labels[0]}", sentence)

    def repeated(self) -> None:
        """A call was made that its message had made before, in another run."""
        self._count("processor_repeated_requests_total", 1)

    def lag(self, messages: int, age_s: float = 0.0) -> None:
        """How many messages wait for the whole route, and how long ago the oldest of them was stored."""
        self._numbers[_LAG][self._labels] = messages
        self._numbers[_LAG_SECONDS][self._labels] = age_s

    def lag_unknown(self) -> None:
        """What waits for the route is for others to say."""
        self._numbers[_LAG].pop(self._labels, None)
        self._numbers[_LAG_SECONDS].pop(self._labels, None)

    def hop_lag(self, n: int) -> None:
        """Messages that wait in an input until they are dealt to the route's partitions; part of its lag."""
        if n:
            self._inboxes[_LAG][self._labels] = n
        else:
            self._inboxes[_LAG].pop(self._labels, None)

    def hop_stopped(self, is_stopped: bool) -> None:
        """Whether something keeps messages from the route's partitions; the route is stopped then, too."""
        if is_stopped:
            self._inboxes[_STOPPED][self._labels] = 1
        else:
            self._inboxes[_STOPPED].pop(self._labels, None)

    def retention_used(self, ratio: float) -> None:
        """How near the route's oldest unread message is to being dropped; absent until there was one."""
        ratios = self._numbers["processor_input_retention_used_ratio"]
        if ratio or self._labels in ratios:
            ratios[self._labels] = ratio

    def guest_memory(self, bytes_: int) -> None:
        self._add("processor_guest_memory_bytes", bytes_)

    def context(self, bytes_: int) -> None:
        self._add("processor_context_bytes", bytes_)

    def runs(self, program: str) -> None:
        """The program of the route from now on; the hash of the one before is gone."""
        series = self._numbers["processor_program_info"]
        for labels in [labels for labels in series if labels[0] == self._labels[0]]:
            del series[labels]
        series[(*self._labels, program)] = 1.0

    def paused(self, is_paused: bool) -> None:
        self._numbers["processor_route_paused"][self._labels] = float(is_paused)

    def stopped(self, is_stopped: bool) -> None:
        self._numbers["processor_route_stopped"][self._labels] = float(is_stopped)

    def remove(self) -> None:
        """The route is gone from the configuration, and so are its series."""
        for added in self._inboxes.values():
            added.pop(self._labels, None)
        all_series: list[dict[tuple[str, ...], float] | dict[tuple[str, ...], Distribution]] = [
            *(self._numbers[name] for name in self._numbers if METRICS[name].labels[:1] == ("route",)),
            *self._distributions.values(),
        ]
        for series in all_series:
            for labels in [labels for labels in series if labels[:1] == self._labels]:
                del series[labels]

    def _add(self, name: str, n: float) -> None:
        parts = self._parts.setdefault(name, {})
        parts[self._lane] = n
        self._sum(name, parts)

    def _sum(self, name: str, parts: Mapping[int, float]) -> None:
        if parts:
            self._numbers[name][self._labels] = sum(parts.values())
        else:
            self._numbers[name].pop(self._labels, None)

    def _count(self, name: str, n: float, *reason: str) -> None:
        series = self._numbers[name]
        labels = (*self._labels, *reason)
        series[labels] = series.get(labels, 0) + n

    def _observe(self, name: str, *values: float) -> None:
        self._observe_of(name, self._labels, *values)

    def _observe_of(self, name: str, labels: tuple[str, ...], *values: float) -> None:
        series = self._distributions[name]
        distribution = series.get(labels)
        if distribution is None:  # made late: a thousand idle routes must not make a scrape of megabytes
            distribution = series[labels] = Distribution(METRICS[name].bounds)
        for value in values:
            distribution.observe(value)


def _labels(metric: Metric, values: tuple[str, ...]) -> str:
    """The labels of a series as the page has them, for a template."""
    if len(values) == 1:
        return f'{metric.labels[0]}="{_escape(values[0])}"'
    pairs = sorted(zip(metric.labels, values, strict=True))
    return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)


def _escape(value: str) -> str:
    """A label's value between quotes, with `%` doubled for the template."""
    if value.replace("-", "").replace("_", "").isalnum():
        return value
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").replace("%", "%%")


RUNNABLE_LOG = "processor.runnable"
# `id` is that of a dead letter, as `processor dlq` takes it.
FIELDS = ("route", "seq", "key", "attempt", "code", "id")
COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}


def traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback that belongs to a line: a Runnable's, or that of an error of ours."""
    theirs: str = vars(record).get("traceback") or ""
    return theirs or (formatter.formatException(record.exc_info) if record.exc_info else "")


class JsonLines(logging.Formatter):
    """One JSON object per line; the keys of `FIELDS` appear where the record has them."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in FIELDS if vars(record).get(name) is not None}
        if traceback := traceback_of(self, record):
            line["traceback"] = traceback
        return printable_json(json.dumps(line, ensure_ascii=False, default=str))


class HumanLines(logging.Formatter):
    """One aligned line for people: time, level, route, what happened, and the other fields.

    What else a Runnable logged at once, and the lines of a traceback, follow behind a bar, so that none can
    pass for a line of the log.
    """

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = {name: vars(record)[name] for name in FIELDS if vars(record).get(name) is not None}
        route = printable(str(fields.pop("route", "-")))
        message, below = record.getMessage(), ""
        if record.name == RUNNABLE_LOG:
            message, _, below = message.partition("\n")
        if str(fields.get("code", "")) in message:
            fields.pop("code", None)
        rest = "".join(f" {name}={value}" for name, value in fields.items())
        line = f"{time} {record.levelname:<7} {route:<12} {printable(message + rest)}"
        if self._colour and record.levelname in COLOURS:
            line = f"\x1b[{COLOURS[record.levelname]}m{line}\x1b[0m"
        for each in f"{below}\n{traceback_of(self, record)}".split("\n"):
            line += f"\n    | {printable(each)}" if each else ""
        return line


class LogStream(logging.StreamHandler[TextIO]):
    """Our handler on the root logger, told from others' by its class."""


def configure_logging(format: Literal["human", "json"], level: str, *, stream: TextIO | None = None) -> None:
    """Log to standard error from now on: this package from `level` up, others' warnings and errors.

    A second call replaces what the first one set up. The fixed keys are given as `extra={"route": ...}`.
    """
    handler = LogStream(stream or sys.stderr)
    is_terminal = handler.stream.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(JsonLines() if format == "json" else HumanLines(colour=is_terminal))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, LogStream)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("processor").setLevel(level.upper())
