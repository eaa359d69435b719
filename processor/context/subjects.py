"""The subjects of an app's stream: what each kind holds, and the one place that builds and parses them.

`TABLE` is the table that README shows. Whoever writes or reads the stream asks `RouteSubjects`, or one of the
functions here, for a subject, and `SubjectParts` for what a subject says. Where the tree begins is known to
the ground (`subject.app_root`), because the rules of a configuration need it, too.

What must stay true: a subject that was written once is read for ever; a stranger's subject can be parsed, and
names no partition, or a kind that nobody asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from processor.model import key_from_token, key_token
from processor.subject import app_root, republished, schedule_subject

Kind = Literal[
    "pos", "ctx", "out", "emit", "dlq", "later", "due", "held", "hist", "in", "hop", "sched", "plan", "ctl",
    "feed", "policy", "audit", "chain", "late", "budget", "graph", "kind", "run", "timer", "gone", "ext",
    "seen", "sec",
]  # fmt: skip

PositionKind = Literal["pos", "hop"]

# What follows the app in a subject, and what is stored there: the rows of README's table, in its order.
TABLE: tuple[tuple[str, str], ...] = (
    ("pos.<route>.<partition>", "position and fence, and contexts while they are few and small"),
    ("ctx.<route>.<partition>.<key>.=all", "the whole context of one key"),
    ("ctx.<route>.<partition>.<key>.<item>", "one top-level item of a context above 4096 bytes"),
    ("out.<subject>", "outputs, emits and events for `<subject>`"),
    ("emit.<route>.<id>", "a delayed message"),
    ("dlq.<route>.<partition>.<sequence>", "a dead letter"),
    ("later.<route>.<partition>.<id>", "a retry that the server sends on when it is due"),
    ("due.<route>.<partition>.<id>", "a message that is due now"),
    ("held.<route>.<partition>.<key>.<sequence>", "a message behind the one that blocks its key"),
    ("hist.<route>.<partition>.<key>", "what commits and people changed in a context"),
    ("in.<route>.<partition>", "what a hop or a schedule brings a partition"),
    ("hop.<route>.0", "how far a hop has read its input, and its fence"),
    ("sched.<route>", "a schedule"),
    ("plan.<route>", "which schedule was stored"),
    ("ctl.<route>", "whether the route is paused, by whom and why"),
    (
        "late.<route>.<partition>",
        "a call that is about to be made, or an entry that its owner could not commit",
    ),
    ("policy", "when each line of the policies was first seen"),
    ("audit.<route>.<partition>", "a record of the audit"),
    ("chain.<name>.0", "where a chain of the audit ends that belongs to no partition"),
    ("budget.<account>", "how much of a budget is used, and who holds leases of it"),
    ("feed", "how far `processor dev` has fed"),
    ("graph.<name>", "which version of a graph is valid, and what is wrong with the last one"),
    ("graph.<name>.<version>", "one version of a graph"),
    ("kind.<namespace>.<node>", "a kind of node: what it takes, gives and needs, and where it runs"),
    ("run.<graph>.<state>.<run>", "the record of a run; a summary while it is open"),
    ("timer.graphs.<partition>.<run>.<name>", "what the server sends to a run when it is due"),
    ("ext.<namespace>.<partition>", "a result of an external worker"),
    ("gone.<run>", "that a run was cancelled: what is left of it is skipped"),
    ("seen.<run>.<number>", "what the slices of a fan-out have in common"),
    ("sec.<graph>.<name>", "a sealed secret of a graph"),
)

# The item of a context that is one message. Not a token that `key_token` makes: there `=` is always followed
# by two hex digits.
WHOLE = "=all"


def app_stream(app: str) -> str:
    """The name of an app's stream."""
    return f"P_{app}"


def audit_stream(app: str) -> str:
    """The name of the stream that keeps an app's audit."""
    return f"AUDIT_{app}"


def is_app_stream(name: str) -> bool:
    """Whether a stream has the name of an app's stream."""
    return name.startswith("P_")


def every(app: str, kind: Kind) -> str:
    """The pattern of all subjects of a kind."""
    return f"{app_root(app)}.{kind}.>"


def committed_subject(app: str, subject: str) -> str:
    """Where an app commits what is for a public subject (or pattern); with "" what all of it begins with."""
    return f"{app_root(app)}.out.{subject}"


def public_subject(app: str, stored: str) -> str:
    """The public subject of what `committed_subject` names; any other subject as it is."""
    return stored.removeprefix(committed_subject(app, ""))


def policy_record(app: str) -> str:
    """Where an app notes when it first saw the lines of its policies."""
    return f"{app_root(app)}.policy"


def audit_subject(app: str, chain: str) -> str:
    """Where the records of a chain are committed."""
    return f"{app_root(app)}.audit.{chain}"


def chain_record(app: str, chain: str) -> str:
    """Where a chain ends that belongs to no partition."""
    return f"{app_root(app)}.chain.{chain}"


def chain_of(app: str, subject: str) -> str:
    """The chain whose records are committed to a subject; empty where it is of another kind."""
    start = audit_subject(app, "")
    return subject.removeprefix(start) if subject.startswith(start) else ""


def budget_record(app: str, account: str) -> str:
    """Where an app keeps the account of a budget; with ">" that of all, with "" what they begin with."""
    return f"{app_root(app)}.budget.{account}"


def feed_record(app: str) -> str:
    """Where `processor dev` notes how far it has fed."""
    return f"{app_root(app)}.feed"


@dataclass(frozen=True, slots=True)
class RouteSubjects:
    """The subjects of one route; with "*" in place of the route, or of a partition, those of all."""

    app: str
    route: str

    def every(self, kind: Kind) -> str:
        """The pattern of all that the route has of a kind whose subjects go on behind the route."""
        return f"{app_root(self.app)}.{kind}.{self.route}.>"

    def position(self, partition: int | str = "*", *, kind: PositionKind = "pos") -> str:
        """The position of a partition; with `kind` hop, that of the route's hop in its input."""
        return f"{app_root(self.app)}.{kind}.{self.route}.{partition}"

    def context(self, partition: int | str, key: str, item: str = "*") -> str:
        """One item of a context by its token, or WHOLE."""
        return f"{app_root(self.app)}.ctx.{self.route}.{partition}.{key_token(key)}.{item}"

    def contexts(self, partition: int) -> str:
        """All contexts of a partition that are not in its position."""
        return f"{app_root(self.app)}.ctx.{self.route}.{partition}.>"

    def history(self, partition: int | str, key: str) -> str:
        """The records of what changed in a context."""
        return f"{app_root(self.app)}.hist.{self.route}.{partition}.{key_token(key)}"

    def dead_letter(self, partition: int | str, sequence: int | str) -> str:
        """A dead letter; in parts, each has its number as one more token."""
        return f"{app_root(self.app)}.dlq.{self.route}.{partition}.{sequence}"

    def later(self, partition: int, name: str) -> str:
        """A retry that is not due yet."""
        return f"{app_root(self.app)}.later.{self.route}.{partition}.{name}"

    def due(self, partition: int, name: str) -> str:
        """A message that is due now."""
        return f"{app_root(self.app)}.due.{self.route}.{partition}.{name}"

    def held(self, partition: int, key: str, sequence: int | str = "*") -> str:
        """A message of a blocked key."""
        return f"{app_root(self.app)}.held.{self.route}.{partition}.{key_token(key)}.{sequence}"

    def audit(self, partition: int | str = "*") -> str:
        """The entries of a partition's audit chain."""
        return f"{app_root(self.app)}.audit.{self.route}.{partition}"

    def late(self, partition: int | str = "*") -> str:
        """Calls that are about to be made, and entries that stand in no chain yet."""
        return f"{app_root(self.app)}.late.{self.route}.{partition}"

    def inbox(self, partition: int | str = "*") -> str:
        """The messages of a partition that a hop or a schedule brings."""
        return f"{app_root(self.app)}.in.{self.route}.{partition}"

    def emit(self, name: str) -> str:
        """A delayed message; with "" what all of them begin with."""
        return f"{app_root(self.app)}.emit.{self.route}.{name}"

    @property
    def schedule(self) -> str:
        """The schedule of the route's input."""
        return schedule_subject(self.app, self.route)

    @property
    def plan(self) -> str:
        """Which schedule was stored."""
        return f"{app_root(self.app)}.plan.{self.route}"

    @property
    def pause(self) -> str:
        """Whether the route is paused."""
        return f"{app_root(self.app)}.ctl.{self.route}"


def trigger_name(graph: str, index: int) -> str:
    """The name of the route that a trigger of a graph is: one that no route of a configuration can have."""
    return f"=trigger-{graph}-{index}"


@dataclass(frozen=True, slots=True)
class GraphSubjects:
    """The subjects of an app's graphs, their runs and what runs these. Any text is a name; see `names_of`."""

    app: str

    def graph(self, name: str, version: str = "") -> str:
        """Which version of a graph is valid; with a version, where that is kept."""
        return self._subject("graph", name, *((version,) if version else ()))

    @property
    def heads(self) -> str:
        """The pattern of what says of each graph which version is valid."""
        return f"{app_root(self.app)}.graph.*"

    def versions(self, name: str = "*") -> str:
        """The pattern of all versions of a graph, or of all graphs."""
        token = name if name == "*" else key_token(name)
        return f"{app_root(self.app)}.graph.{token}.*"

    def kind(self, namespace: str, node: str) -> str:
        """What is known of a kind of node."""
        return self._subject("kind", namespace, node)

    @property
    def kinds(self) -> str:
        """The pattern of what is known of each kind of node."""
        return f"{app_root(self.app)}.kind.*.*"

    def run(self, graph: str, state: str, run: str) -> str:
        """The record of a run in that state."""
        return self._subject("run", graph, state, run)

    def runs(self, graph: str | None = None, state: str | None = None) -> str:
        """The pattern of the records of runs: of one graph, or in one state, where that is given."""
        tokens = ("*" if name is None else key_token(name) for name in (graph, state))
        return f"{app_root(self.app)}.run.{'.'.join(tokens)}.*"

    def record(self, run: str) -> str:
        """The pattern of the records of one run, whatever its graph and state."""
        return f"{app_root(self.app)}.run.*.*.{key_token(run)}"

    def live_record(self, graph: str, run: str) -> str:
        """The public subject on which onlookers get the record of a run that has ended."""
        return republished(self.app, f"graphs.{key_token(graph)}.{key_token(run)}")

    @property
    def live(self) -> str:
        """The pattern of those."""
        return republished(self.app, "graphs.>")

    def timer(self, partition: int, run: str, name: str) -> str:
        """A timer of a run, by a name of its own in the run."""
        return f"{app_root(self.app)}.timer.graphs.{partition}.{key_token(run)}.{key_token(name)}"

    def timers(self, partition: int, run: str) -> str:
        """The pattern of all timers of a run."""
        return f"{app_root(self.app)}.timer.graphs.{partition}.{key_token(run)}.*"

    @property
    def every_timer(self) -> str:
        """The pattern of the timers of all runs."""
        return f"{app_root(self.app)}.timer.graphs.>"

    @property
    def every_gone(self) -> str:
        """The pattern of what says which runs were cancelled."""
        return f"{app_root(self.app)}.gone.*"

    @property
    def every_seen(self) -> str:
        """The pattern of what the slices of all runs have in common."""
        return f"{app_root(self.app)}.seen.>"

    def gone(self, run: str) -> str:
        """Where it is said that a run was cancelled."""
        return self._subject("gone", run)

    def external(self, namespace: str, partition: int | str = "*") -> str:
        """The results of the external workers of a namespace."""
        return f"{app_root(self.app)}.ext.{key_token(namespace)}.{partition}"

    def externals(self, partition: int | str = "*") -> str:
        """The pattern of the results of all external workers for a partition."""
        return f"{app_root(self.app)}.ext.*.{partition}"

    def seen(self, run: str, number: int) -> str:
        """What the slices of a fan-out have in common, by its number in the run."""
        return self._subject("seen", run, str(number))

    def secret(self, graph: str, name: str) -> str:
        """A sealed secret of a graph."""
        return self._subject("sec", graph, name)

    def secrets(self, graph: str) -> str:
        """The pattern of the sealed secrets of a graph."""
        return f"{app_root(self.app)}.sec.{key_token(graph)}.*"

    def work(self, namespace: str, node: str) -> str:
        """The public subject of the executions of an external kind; they are committed as outputs for it."""
        return f"work.{self.app}.{key_token(namespace)}.{key_token(node)}"

    @property
    def work_pattern(self) -> str:
        """The pattern of the executions of all external kinds."""
        return f"work.{self.app}.*.*"

    @property
    def work_stream(self) -> str:
        """The name of the stream that external workers take executions from."""
        return f"{self.app}-work"

    def _subject(self, kind: Kind, *names: str) -> str:
        return f"{app_root(self.app)}.{kind}.{'.'.join(map(key_token, names))}"


def names_of(subject: str) -> tuple[str, ...]:
    """The names behind the kind of a subject of `GraphSubjects`, as it was asked for; a stranger's tokens."""
    return tuple(map(_name_of, subject.split(".")[3:]))


def _name_of(token: str) -> str:
    try:
        return key_from_token(token)
    except UnicodeDecodeError:
        return token


class SubjectParts(NamedTuple):
    """What a subject of an app's stream says; empty, or None, where it ends before that."""

    kind: str
    route: str
    partition: int | None
    rest: tuple[str, ...]  # the tokens behind the partition

    @classmethod
    def of(cls, subject: str) -> SubjectParts:
        """The parts of any subject; a partition is a number of at most nine digits."""
        tokens = subject.split(".")
        kind, route, partition = tokens[2:5] if len(tokens) > 4 else (*tokens[2:], "", "", "")[:3]
        is_number = len(partition) < 10 and partition.isascii() and partition.isdigit()
        return cls(kind, route, int(partition) if is_number else None, tuple(tokens[5:]))


def last_partition(subject: str) -> int:
    """The partition at the end of a subject of ours: of a position, a hop, or an inbox."""
    return int(subject.rsplit(".", 1)[1])


def dead_letter_id(subject: str) -> str | None:
    """The id of the dead letter that a subject names, `<route>.<partition>.<sequence>`; None for another."""
    kind, route, partition, rest = SubjectParts.of(subject)
    return f"{route}.{partition}.{rest[0]}" if kind == "dlq" and partition is not None and rest else None
