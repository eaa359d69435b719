"""The tables of the pages in docs/limits: a row for each limit, with its figure as the code has it.

In a row `{limits.outputs messages}` is the default of a key as a figure, `{limits.outputs}` the key and the
most that it takes, and `{sandbox.values.NAME_BYTES bytes}` a figure of the package. The last cell says how to
raise the limit, or to live with it.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

HEAD = ("limit", "figure", "what happens at it", "code", "how to raise it, or live with it")
_FIGURE = re.compile(r"\{([\w.]+)(?: ([\w ]+))?\}")

_TEXTS = {
    "sizes": """
## One value
a text | {limits.max_string_length characters} | a message is a dead letter at once; anything else fails its run | E318 | {limits.max_string_length}
a list, a dict | {limits.max_container_length items} | the same | E319 | {limits.max_container_length}; a message that is a list of documents counts as one list
depth | {limits.max_depth levels} | the same | E320 | {limits.max_depth}: flatten the document
the name of an item of `self.context` | {sandbox.values.NAME_BYTES bytes} | the run fails | E309 | a shorter name, such as a hash
the key of a message | {delivery.codec.MAX_KEY_BYTES bytes} | a dead letter at once | E303 | another `key`
a subject, with the key or fields that are in it | {subject.MAX_SUBJECT_BYTES bytes} | the run fails | E308 | a shorter one
the name of an event | {sandbox.wire.EVENT_NAME_CHARS characters} | the call raises `ValueError` | E304 | put the rest into its data
## One run, which is one batch in a guest
outputs and emits together; events | {limits.outputs of each} | the run fails; a batch of several messages is split first | E324 | {limits.outputs}, for a commit is one batch of the server: one output may be a list
chunks, in stream mode | 100 times that | the run fails | E324 | {limits.outputs}
all outputs and emits; all events; all chunks | {limits.output_bytes bytes} of each | the run fails | E307 | {limits.output_bytes}
the context of one key | {limits.context_bytes bytes} | the run fails | E310 | {limits.context_bytes}; a finer `key`; `deque(maxlen=...)` for a list
objects of `self.heap` in one context | {sandbox.objects.OBJECTS objects} | the call raises | E338 | another key, or several values in one object
the value of one object | {sandbox.objects.VALUE_BYTES bytes} | the call raises | E338 | several objects
one patch of an object | {sandbox.heap.PATCH_BYTES bytes} | the call raises | E338 | several patches
entries of its own in the audit, by `self.audit` | {capability.monitor.REMARKS entries}, {capability.remarks.DATA_BYTES bytes} each | the call raises | E338 | say less
headers of one emit | {sandbox.wire.EMIT_HEADERS headers}, {sandbox.wire.EMIT_HEADER_BYTES bytes} | the call raises `ValueError` | E304 | put the rest into the document
delay of an emit | {sandbox.wire.EMIT_DELAY_S days} | the call raises `ValueError` | E304 | emit to a route that emits again
log | {limits.log_lines lines}, {limits.log_bytes bytes} | dropped and counted; the run goes on | E321 | {limits.log_lines}; {limits.log_bytes}
one line of the log | {sandbox.wire.LOG_CHARS characters} | cut | | several lines
## One graph, and one run of it
nodes | 1,000 nodes | the graph is INVALID | E701 | a graph as a node of another: `node_name: graph:NAME`
elements of the list that a node returns | {graphs.limits.fan_out elements} | the execution fails, for good | E711 | {graphs.limits.fan_out}; a nested graph for each part
executions | {graphs.limits.executions executions} | the same | E711 | {graphs.limits.executions}; several runs
inputs of one execution; what others refer to of its outputs | {graphs.sizes.COLLECTED_BYTES bytes} each | the same | E711 | pass references, such as keys of a bucket, instead of data
the same of all executions in one slice, together | {graphs.sizes.COLLECTED_BYTES bytes} | what looks at it fails, for good | E711 | the same
outputs that nothing refers to | {graphs.sizes.LEAF_BYTES bytes} | they are not kept for people | | refer to them, in `outputs` of the graph
inputs that a run is given; what it returns | {graphs.sizes.RUN_BYTES bytes} each | the run is FAILED | E711 | pass references
a value in the store; all of them | {graphs.definition.STORE_VALUE_BYTES bytes}; {graphs.sizes.STORE_BYTES bytes} | the execution that set it fails, for good | E711 | pass references
changes of a key of the store that a run remembers; all of them | `history` changes; {graphs.history.HISTORY_BYTES bytes} | the oldest are forgotten | | keep what is large in files, and its path in the store
outputs of a fan-out that run in one sub-run | {graphs.sizes.SLICE outputs} | more are cut into several | | nothing; what unites them gets all
graphs in graphs | {graphs.advance.MOST_DEEP levels} | the execution fails, for good | E711 | `next_nodes`
requeues of one execution | {graphs.machine.MOST_REQUEUES requeues} | the same | E711 | a trigger by a schedule
signals that came before their `Wait` | {graphs.sizes.SIGNALS_BYTES bytes} together | more of them are not kept | | send it once the run waits
executions in a record | {graphs.runs.EXECUTIONS_BYTES bytes} together, outputs of each {graphs.runs.OUTPUTS_BYTES bytes} | they are left out, cut | | `outputs` of the graph, for what matters
## Calls to the outside
calls for one message that leave the host | {limits.requests calls} | the call raises | E322 | {limits.requests}
calls of any kind for one message | {limits.calls calls} | the call raises | E322 | {limits.calls}
calls of one guest at a time | {limits.calls_at_once calls} | the rest wait in the guest | | {limits.calls_at_once}
arguments of a call, without a body of HTTP | {sandbox.wire.CALL_BYTES bytes} | the call raises | E323 | several calls
one request | {outbound.request_bytes bytes} | the call raises | E323 | {outbound.request_bytes}
one answer, unpacked | {outbound.response_bytes bytes} | the call raises | E323 | {outbound.response_bytes}
headers of one answer | {capability.answers.HEADERS headers}, {capability.answers.HEADER_BYTES bytes} | the call raises | E323 | ask another server
answers that are read as they come | {capability.streams.OPEN_MAX answers} open in a call of `process`, {capability.streams.ALL_OPEN_MAX answers} in a run | the call raises | E322 | read one to its end, or close it
redirects of one call | {outbound.redirects redirects} | the call raises | E317 | {outbound.redirects}
arguments of a tool, and its result | {sandbox.toolwire.INPUT_BYTES bytes}, {sandbox.toolwire.OUTPUT_BYTES bytes} | the call raises | E333 | several calls
messages of one call of a model | {capability.inference.MESSAGES messages} | the call raises | E317 | a shorter conversation
texts of one call of `self.embed` | {capability.inference.TEXTS texts} | the call raises | E317 | several calls
what a tool says on stderr | {sandbox.toolwire.ERROR_BYTES bytes} | the rest is dropped | | say less
the file of a WebAssembly tool | {sandbox.toolwire.MODULE_BYTES bytes} | the configuration is refused | E506 | build it smaller, as with `-Os -s`
answers that a lane keeps for another run | {delivery.replay.KEPT_BYTES bytes} | the batch is run in parts | | a smaller `batch.max_messages`
## Sources
a Runnable, or a module of yours | {sandbox.dialect.MAX_SOURCE_CHARS characters} | refused where it is loaded | E205 | keep data in messages or in the context
nesting of a source, in the restricted language | {sandbox.dialect.MAX_DEPTH levels} | refused where it is loaded | E205 | names for inner parts
the folder of `modules` | {config.modules.MAX_FILES files}, {config.modules.MAX_BYTES bytes} | refused where it is loaded | E205 | a folder for each route
a data file of a package | {sandbox.packages.DATA_FILE_BYTES bytes} | it is not there | | keep such data in messages or in the context
""",
    "times": """
## A run
wall time | {limits.wall_s s} | the guest is killed and replaced; tries, then a dead letter | E312 | {limits.wall_s}; smaller batches
processor time | {limits.cpu_s s} | the same | E311 | {limits.cpu_s}; smaller batches
memory, beyond that of an empty guest | {limits.memory_mb MB} | `MemoryError`; where it is not caught, the same | E313 | {limits.memory_mb}
one call to the outside | {outbound.timeout_s s} | the call raises `Timeout` | E317 | {outbound.timeout_s}; it counts as wall time
one call of a tool | {config.tools.CALL_TIMEOUT_MS ms}, {config.tools.SERVER_TIMEOUT_MS ms} of an MCP server | the tool is stopped, and the call raises | E333 | {tools.timeout_ms}; it counts as wall time
one call of a model | {inference.timeout_s s} | the call raises | E334 | {inference.timeout_s}; it counts as wall time
tokens of one answer of a model | {inference.max_tokens tokens} | the answer ends there | | {inference.max_tokens}
fuel of one call of a WebAssembly tool | {tools.fuel of it} | the call raises | E333 | {tools.fuel}
processor time while nothing is asked of the guest | {sandbox.clock.IDLE_CPU_S s}, and {sandbox.clock.IDLE_SHARE percent} of the time | the guest is replaced | E367 | end what `process` began before it returns
## Start and end
loading a Runnable | as a run | refused | E206 | the limits of a run; less work at module level
start of a guest | {sandbox.host.START_S s} | tried again; then the breaker opens | E502 | give the host processor time and memory
import of a route's `packages` | {sandbox.host.IMPORT_S s} | the route stays stopped | E505 | name fewer packages
settling what is in hand, at SIGTERM | {drain_s s} | exit code 4; it is done again | | {drain_s}; the grace period of a container has to be longer
## Waiting
a batch that is not full, while a commit is under way | {batch.max_wait_ms ms} | it runs | | {batch.max_wait_ms}
the wait before another try | {retry.max_ms ms} | waits grow no longer | | {retry.max_ms}
guests that die in a row | {breaker.deaths guests} in {breaker.window_s s} | the route pauses for {breaker.pause_s s}, and longer each time | E503 | {breaker.deaths}
an edit of a context against a busy owner | {operate.edits.EDIT_S s} | nothing has changed | E405 | pause the route
""",
    "order": """
## Figures
a wait that keeps the order of its key | {model.SHORT_WAIT_S s} | later messages of the key are processed meanwhile | | `retry: {max_ms: 2000}`, or `then: block`
messages in memory behind keys that wait | {delivery.waiting.HELD_MAX a lane} | nothing new is taken for the moment | | shorter waits
tries of a message | {retry.attempts tries} | `retry.then`: a dead letter, nothing, or its key is blocked | | {retry.attempts}
silence of a processor | {delivery.members.LOST_S s} | the others take its partitions; the fence refuses its commits | E405 | nothing to do
copies of outputs that wait for their stream | a day, or `output.ttl` | gone | E350 | `output.ttl`
""",
    "server": """
## Figures
version of the server | {jetstream.api.SERVER_MIN or later} | the process does not start (exit 3) | E402 | upgrade it
version, for schedules with `@every` or cron | {delivery.repartition.SCHEDULES_MIN or later} | the route stays stopped | E402 | `@at`, which needs no more than the first
messages of one commit | {jetstream.broker.BATCH_MAX messages} | a run that needs more fails | E324 | see [Sizes and counts](sizes.md)
one message with its headers (`max_payload`) | {delivery.memory.MAX_PAYLOAD bytes} unless it is set | an output fails its run; a dead letter is stored in parts | E307 | `max_payload` of the server
one message of a stream (`max_msg_size`) | as it is set | an output fails its run | E307 | `max_msg_size` of the stream
storage of the account | warned of at {operate.retention.WARN_STORAGE percent} | when it is full, every route waits; nothing is lost | E406 | see [Disk full](../operate/disk-full.md)
retention of the input | warned of at {operate.retention.WARN_INPUT percent} | messages that were not read are gone | E409 | `max_age` and `max_bytes` of the input
""",
    "scale": """
## Figures
owners of a route's keys | {partitions partitions} | further processors have nothing of the route to do | | {partitions}; fixed once the route has run (E410)
guests of a route in one process | {concurrency guest} | messages wait in their stream | | {concurrency}; more processors
one batch | {batch.max_messages messages}, {batch.max_bytes bytes} | the next batch has the rest | | {batch.max_messages}; {batch.max_bytes}
what waits in memory for a lane | {delivery.lanes.ROOM messages}, {delivery.lanes.ROOM_BYTES bytes} | the other lanes wait for the slow one | | keys that spread the work
contexts that a guest holds | {limits.contexts keys} | others are read again, at a cost for each message | | {limits.contexts}; `limits.memory_mb` has to hold them
what is dealt ahead of a route with `repartition` | {delivery.repartition.BACKLOG_MESSAGES messages}, {delivery.repartition.BACKLOG_BYTES bytes} | the rest waits in the input | | nothing to do
what `processor status` counts | {operate.status.COUNTED_MAX of a kind} | it says that there are more | | `processor dlq ls` has all
""",
}  # fmt: skip
PAGES = tuple(_TEXTS)


def tables_of(page: str) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The headings of a page with the rows below each."""
    tables: list[tuple[str, list[tuple[str, ...]]]] = []
    for line in _TEXTS[page].strip().splitlines():
        if line.startswith("## "):
            tables.append((line.removeprefix("## "), []))
        else:
            cells = _FIGURE.sub(lambda found: _shown(found[1], found[2]), line).split("|")
            tables[-1][1].append(tuple(cell.strip() for cell in cells))
    return tables


def _shown(place: str, unit: str | None) -> str:
    info = _key(place)
    if info is None:
        return _amount(_constant(place), unit or "")
    if unit:
        return _amount(info.default, unit)
    most = next((bound.le for bound in info.metadata if hasattr(bound, "le")), None)
    if most is None:
        return f"`{place}`"
    if most == info.default:
        return f"`{place}` can only lower it"
    return f"`{place}`, at most {_amount(most, 'bytes' if place.endswith('_bytes') else '').strip()}"


def _key(place: str) -> Any:
    """The field of a key of a route, or of the top; None where the name is no key."""
    from processor.config import Config
    from processor.config.forms import alias_of, inner_model
    from processor.config.keys import RouteSettings

    for found in (RouteSettings, Config):
        for name in place.split("."):
            model: Any = inner_model(found.annotation) if hasattr(found, "annotation") else found
            fields = {alias_of(*field): field[1] for field in model.model_fields.items()} if model else {}
            found = fields.get(name)
        if found is not None:
            return found
    return None


def _constant(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(f"processor.{module}"), name)


def _amount(value: Any, unit: str) -> str:
    """A figure as people write it: `8 MiB`, `1,000,000 characters`, `2 s`, `85 %`."""
    if isinstance(value, tuple):
        return f"{'.'.join(map(str, value))} {unit}"
    if unit == "percent":
        return f"{value * 100:g} %"
    if unit == "days":
        return f"{value / 86_400:g} days"
    if unit == "bytes":
        for size, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value >= 1 << size and value % (1 << size) == 0:
                return f"{value >> size} {name}"
    return f"{value:,} {unit}".replace(".0 ", " ")
