"""What a run of a graph is in memory, and what the machine asks of the one that drives it.

`machine` alone changes what is here; `runs` writes it down and reads it again; engine, local driver and tests
hold a `GraphRun` between two messages and look at it. All times are milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from processor.graphs.plan import NodePlan

# Of runs, and the last three of executions, too.
RUNNING, SUCCESS, CANCELLED = "RUNNING", "SUCCESS", "CANCELLED"
CREATED, FAILED = "CREATED", "FAILED"
# Of executions.
QUEUED, WAITING, ERRORED, PRUNED, SKIPPED = "QUEUED", "WAITING", "ERRORED", "PRUNED", "SKIPPED"
OPEN = frozenset((CREATED, QUEUED, WAITING))

Message = dict[str, Any]
NOTHING: Mapping[str, Any] = {}


class Execution(NamedTuple):
    """An execution that is to be run now, inline or by a pool or an external worker.

    `attempt` is the message's `a`: it grows by one each time that this `x` is run, for whatever reason, so
    that (run, x, attempt) names one try for ever; a result has to repeat it. `key` is the same for all tries.
    """

    run: str
    x: str
    node: NodePlan
    attempt: int
    inputs: Mapping[str, Any]
    store: Mapping[str, Any]  # as it is now: later changes make another one
    united: Mapping[str, int] | None
    key: str  # for idempotency: "<run>:<x>"
    history: Mapping[str, Any] = NOTHING  # of the store, see `graphs.history`


class Timer(NamedTuple):
    """`message` is to reach its run at `at_ms`; a timer of the same name in the run replaces it."""

    name: str
    at_ms: int
    message: Message


class Todo:
    """What one message made necessary, in the order in which it came about.

    `sends` are messages to other runs, each with its `run`. `called_back` names timers that are needless now.
    `seen` are values that slices share, to be stored under their number; a slice's message then has `seen_at`
    ({"run", "n"}) instead of `seen`, which is to be read and put there before it is started. With `has_more`
    the run has slices that were not sent yet: leave it a `go`. `is_finished`: the run ended by it, unless
    a retry came after that. `is_gone`: executions that were dispatched may be under way, and nobody waits for
    them any more.
    """

    __slots__ = ("called_back", "has_more", "is_finished", "is_gone", "ready", "seen", "sends", "timers")

    def __init__(self) -> None:
        self.ready: list[Execution] = []
        self.timers: dict[str, Timer] = {}
        self.called_back: dict[str, None] = {}
        self.sends: list[Message] = []
        self.seen: list[tuple[int, Mapping[str, Any]]] = []
        self.has_more = False
        self.is_finished = False
        self.is_gone = False

    def set_timer(self, timer: Timer) -> None:
        """The timer of this name is this one from now on."""
        self.timers[timer.name] = timer

    def call_back(self, name: str) -> None:
        """The timer of this name is not needed; one that was not stored yet is as if it had never been."""
        if self.timers.pop(name, None) is None:
            self.called_back[name] = None

    def add(self, later: Todo) -> None:
        """Join what a later message of the same run and the same commit made necessary."""
        self.ready += later.ready
        for name in later.called_back:
            self.call_back(name)
        self.timers.update(later.timers)
        self.sends += later.sends
        self.seen += later.seen
        self.has_more = self.has_more or later.has_more
        self.is_finished = self.is_finished or later.is_finished
        self.is_gone = self.is_gone or later.is_gone

    @property
    def needless(self) -> Iterator[str]:
        """The timers that are to be called back: those that no new one of the same name replaces."""
        return (name for name in self.called_back if name not in self.timers)

    def __bool__(self) -> bool:
        return bool(
            self.ready
            or self.timers
            or self.called_back
            or self.sends
            or self.seen
            or self.has_more
            or self.is_finished
        )


class SlicedFanOut:
    """A fan-out whose branches run in slices: sub-runs of up to 64 of its outputs.

    `pending` are the messages of slices that were not sent, by their first output, kept in bundles of which
    `bundles` has the first slice each; `done` is what each slice reported. A slice has reported as soon as
    nothing in it holds a unite up, and has ended when nothing is open: `left` and `open` count those that
    have not.
    """

    __slots__ = ("absorbed", "asked", "bundles", "done", "left", "open", "pending", "sent")

    def __init__(self, pending: dict[int, Message]) -> None:
        self.pending = pending
        self.bundles: list[int] = []
        self.sent: list[int] = []
        self.left = self.open = len(pending)
        self.done: dict[int, Message] = {}
        self.asked: dict[int, int] = {}  # how often each was asked to try again
        self.absorbed = 0


class Progress:
    """How far one execution is. `ended` and `sent` are 0 until they are known.

    `attempt` is 0 where nothing was ever to run: a unite that did not come about. `first` is its first
    attempt, above 1 where an earlier one of this name was taken back. `tries` failed since it was last begun
    anew. `timer` is what of `retry` and `late` it waits for. `width` is the number of outputs of a fan-out;
    None: one output. `holds` are the scopes it keeps open, as `units` of its run names them. `number` counts
    what its run made before it.
    """

    __slots__ = (
        "absorbed", "attempt", "branch", "created", "due", "ended", "fan", "first", "gives", "holds",
        "inputs", "node", "number", "outputs", "requeues", "sent", "state", "timer", "tries", "united",
        "waits", "why", "width", "x",
    )  # fmt: skip

    def __init__(
        self, x: str, node: NodePlan, branch: str, created: int, number: int, first: int = 1
    ) -> None:
        self.x = x
        self.number = number
        self.node = node
        self.branch = branch
        self.state = CREATED
        self.attempt = self.first = first
        self.tries = self.requeues = self.waits = 0
        self.created = created
        self.sent = self.ended = 0
        self.inputs: Mapping[str, Any] | None = None  # until it ends
        self.gives = False  # its inputs are not those of the graph: a requeue gave them
        self.outputs: Any = None  # the used fields: an object, or one for each output of a fan-out
        self.width: int | None = None
        self.fan: SlicedFanOut | None = None
        self.why: list[Message] = []  # {"a", "code", "text", "at"}, the last ten
        self.timer = ""
        self.due = 0  # when it is
        self.united: Mapping[str, int] | None = None
        self.holds: tuple[str, ...] = ()
        self.absorbed = False

    @property
    def is_done(self) -> bool:
        """Whether what unites its outputs may go on: it succeeded, or all its slices have reported."""
        return self.state == SUCCESS or (self.fan is not None and self.state == QUEUED and self.fan.left == 0)

    @property
    def is_open(self) -> bool:
        """Whether it may still change by itself."""
        return self.state in OPEN


class SliceOf:
    """Which outputs of which fan-out a sub-run is for, and what its nodes may look at from outside."""

    __slots__ = ("first", "holding", "is_reported", "outputs", "seen", "sets", "x")

    def __init__(self, x: str, first: int, outputs: list[Any], seen: Mapping[str, Any]) -> None:
        self.x = x
        self.first = first
        self.outputs = outputs
        self.seen = seen
        self.sets: dict[str, Any] = {}  # what was set in the store
        self.holding = 0  # open executions that hold up what is outside
        self.is_reported = False


class GraphRun:
    """The state of one run, or of a slice of one; `id` is the key of its context.

    `units` has, for each scope that is not decided (`<x of A>|<U>`), how many executions are open, ERRORED
    and PRUNED in it and how many outputs reached U. `errored` counts executions, `absorbed` those of them
    that an ALL_DONE took. `count` is the number of executions, those of its slices included. `changed` are
    the numbers of executions that changed since the run was last written, and `parts` the slices, by fan-out
    and first output; what else it holds is always written.
    """

    __slots__ = (
        "absorbed", "again", "by", "changed", "count", "created", "depth", "ended", "errored", "executions",
        "fans", "fault", "gathered", "graph", "has_new_history", "history", "id", "ids", "inputs",
        "is_paused", "is_stopping", "made", "open", "orders", "outputs", "parts", "seen", "signals", "sizes",
        "slice", "started", "state", "store", "units", "up", "version",
    )  # fmt: skip

    def __init__(self, id: str, graph: str, version: str, created: int) -> None:
        self.id = id
        self.graph = graph
        self.version = version
        self.state = CREATED
        self.by = ""
        self.created = created
        self.started = self.ended = 0
        self.inputs: Mapping[str, Any] = NOTHING
        self.store: Mapping[str, Any] = NOTHING  # replaced as a whole, never changed in place
        self.history: Mapping[str, Any] = NOTHING  # of the store; replaced as it is
        self.has_new_history = False  # since the run was last written
        self.up: Message | None = None
        self.depth = 0
        self.slice: SliceOf | None = None
        self.units: dict[str, list[int]] = {}
        self.executions: dict[str, Progress] = {}
        self.open = self.errored = self.absorbed = self.count = 0
        self.made = self.orders = 0  # numbers given to executions, and to orders to runs below
        self.is_paused = self.is_stopping = False
        self.fault: Message | None = None  # {"code", "text"}: why it failed beside its executions
        self.ids: list[str] = []  # of the last control messages
        self.signals: dict[str, Any] = {}  # that came before their Wait
        self.again: dict[str, int] = {}  # the last attempts of executions that were taken back
        self.seen = 0  # numbers given to shared values
        self.outputs: Mapping[str, Any] = NOTHING  # what it returns, once it is SUCCESS
        self.changed: set[int] = set()
        self.parts: set[tuple[str, int]] = set()
        self.sizes: dict[str, int] = {}  # of each item as it was last written
        self.gathered: dict[
            str, list[Progress]
        ] = {}  # executions of nodes that are looked at from behind a unite
        self.fans: list[Progress] = []  # executions that had a list of outputs

    def written(self) -> None:
        """What changed until now is written down."""
        self.changed.clear()
        self.parts.clear()
        self.has_new_history = False

    @property
    def is_ended(self) -> bool:
        """Whether it is SUCCESS, FAILED or CANCELLED."""
        return self.state in (SUCCESS, FAILED, CANCELLED)
