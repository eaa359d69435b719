"""The subjects of an app's stream: every kind built and parsed, and what others may have written there."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from processor.audit import CONTROL
from processor.context.subjects import (
    TABLE,
    WHOLE,
    GraphSubjects,
    Kind,
    RouteSubjects,
    SubjectParts,
    app_stream,
    audit_subject,
    budget_record,
    chain_record,
    committed_subject,
    dead_letter_id,
    every,
    feed_record,
    is_app_stream,
    last_partition,
    names_of,
    policy_record,
    public_subject,
)
from processor.subject import app_patterns, covers, matches

OWN = RouteSubjects("shop", "orders")
GRAPHS = GraphSubjects("shop")

# Each row of the table, as it was written by the first release and has to stay.
BUILT: dict[str, tuple[Callable[[], str], str, SubjectParts]] = {
    "pos.<route>.<partition>": (
        lambda: OWN.position(7), "p.shop.pos.orders.7", SubjectParts("pos", "orders", 7, ()),
    ),
    "ctx.<route>.<partition>.<key>.=all": (
        lambda: OWN.context(7, "c.1", WHOLE),
        "p.shop.ctx.orders.7.c=2E1.=all",
        SubjectParts("ctx", "orders", 7, ("c=2E1", "=all")),
    ),
    "ctx.<route>.<partition>.<key>.<item>": (
        lambda: OWN.context(7, "", "total"),
        "p.shop.ctx.orders.7.=.total",
        SubjectParts("ctx", "orders", 7, ("=", "total")),
    ),
    "out.<subject>": (
        lambda: committed_subject("shop", "invoices.eu.1.x"),
        "p.shop.out.invoices.eu.1.x",
        SubjectParts("out", "invoices", None, ("1", "x")),
    ),
    "emit.<route>.<id>": (
        lambda: OWN.emit("a1b2"), "p.shop.emit.orders.a1b2", SubjectParts("emit", "orders", None, ()),
    ),
    "dlq.<route>.<partition>.<sequence>": (
        lambda: OWN.dead_letter(7, 42), "p.shop.dlq.orders.7.42", SubjectParts("dlq", "orders", 7, ("42",)),
    ),
    "later.<route>.<partition>.<id>": (
        lambda: OWN.later(7, "42-1"),
        "p.shop.later.orders.7.42-1",
        SubjectParts("later", "orders", 7, ("42-1",)),
    ),
    "due.<route>.<partition>.<id>": (
        lambda: OWN.due(7, "42-1"), "p.shop.due.orders.7.42-1", SubjectParts("due", "orders", 7, ("42-1",)),
    ),
    "held.<route>.<partition>.<key>.<sequence>": (
        lambda: OWN.held(7, "c 1", 42),
        "p.shop.held.orders.7.c=201.42",
        SubjectParts("held", "orders", 7, ("c=201", "42")),
    ),
    "hist.<route>.<partition>.<key>": (
        lambda: OWN.history(7, "c1"), "p.shop.hist.orders.7.c1", SubjectParts("hist", "orders", 7, ("c1",)),
    ),
    "in.<route>.<partition>": (
        lambda: OWN.inbox(7), "p.shop.in.orders.7", SubjectParts("in", "orders", 7, ()),
    ),
    "hop.<route>.0": (
        lambda: OWN.position(0, kind="hop"), "p.shop.hop.orders.0", SubjectParts("hop", "orders", 0, ()),
    ),
    "sched.<route>": (lambda: OWN.schedule, "p.shop.sched.orders", SubjectParts("sched", "orders", None, ())),
    "plan.<route>": (lambda: OWN.plan, "p.shop.plan.orders", SubjectParts("plan", "orders", None, ())),
    "ctl.<route>": (lambda: OWN.pause, "p.shop.ctl.orders", SubjectParts("ctl", "orders", None, ())),
    "late.<route>.<partition>": (
        lambda: OWN.late(7), "p.shop.late.orders.7", SubjectParts("late", "orders", 7, ()),
    ),
    "policy": (lambda: policy_record("shop"), "p.shop.policy", SubjectParts("policy", "", None, ())),
    "audit.<route>.<partition>": (
        lambda: audit_subject("shop", "orders.7"),
        "p.shop.audit.orders.7",
        SubjectParts("audit", "orders", 7, ()),
    ),
    "chain.<name>.0": (
        lambda: chain_record("shop", CONTROL), "p.shop.chain.=ctl.0", SubjectParts("chain", "=ctl", 0, ()),
    ),
    "budget.<account>": (
        lambda: budget_record("shop", "team-a"), "p.shop.budget.team-a",
        SubjectParts("budget", "team-a", None, ()),
    ),
    "feed": (lambda: feed_record("shop"), "p.shop.feed", SubjectParts("feed", "", None, ())),
    "graph.<name>": (
        lambda: GRAPHS.graph("refunds"), "p.shop.graph.refunds", SubjectParts("graph", "refunds", None, ()),
    ),
    "graph.<name>.<version>": (
        lambda: GRAPHS.graph("refunds", "0123456789ab"),
        "p.shop.graph.refunds.0123456789ab",
        SubjectParts("graph", "refunds", None, ()),
    ),
    "kind.<namespace>.<node>": (
        lambda: GRAPHS.kind("shop", "PayNode"), "p.shop.kind.shop.PayNode",
        SubjectParts("kind", "shop", None, ()),
    ),
    "run.<graph>.<state>.<run>": (
        lambda: GRAPHS.run("refunds", "success", "r.1"), "p.shop.run.refunds.success.r=2E1",
        SubjectParts("run", "refunds", None, ("r=2E1",)),
    ),
    "timer.graphs.<partition>.<run>.<name>": (
        lambda: GRAPHS.timer(7, "r1/split.64", "retry.pay"),
        "p.shop.timer.graphs.7.r1=2Fsplit=2E64.retry=2Epay",
        SubjectParts("timer", "graphs", 7, ("r1=2Fsplit=2E64", "retry=2Epay")),
    ),
    "ext.<namespace>.<partition>": (
        lambda: GRAPHS.external("shop", 7), "p.shop.ext.shop.7", SubjectParts("ext", "shop", 7, ()),
    ),
    "gone.<run>": (lambda: GRAPHS.gone("r1"), "p.shop.gone.r1", SubjectParts("gone", "r1", None, ())),
    "seen.<run>.<number>": (
        lambda: GRAPHS.seen("r1", 2), "p.shop.seen.r1.2", SubjectParts("seen", "r1", 2, ()),
    ),
    "sec.<graph>.<name>": (
        lambda: GRAPHS.secret("refunds", "api_key"), "p.shop.sec.refunds.api_key",
        SubjectParts("sec", "refunds", None, ()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row, _ in TABLE])
def test_a_kind_is_built_and_parsed(row: str) -> None:
    """Every row of the table is written as it always was, comes apart again, and lies in the app's stream."""
    build, subject, parts = BUILT[row]
    assert build() == subject
    assert SubjectParts.of(subject) == parts
    assert matches(app_patterns("shop")[0], subject)


def test_the_table_has_every_kind() -> None:
    """A kind that can be asked for has a row, and a row is of a kind that can be asked for."""
    assert {row.partition(".")[0] for row, _ in TABLE} == set(get_args(Kind))


@pytest.mark.parametrize(
    "pattern, subject",
    [
        (OWN.position(), OWN.position(63)),
        (OWN.position(kind="hop"), OWN.position(0, kind="hop")),
        (OWN.context(7, "k"), OWN.context(7, "k", WHOLE)),
        (OWN.context("*", "k"), OWN.context(9, "k", "item")),
        (OWN.contexts(7), OWN.context(7, "k", "item")),
        (OWN.history("*", "k"), OWN.history(3, "k")),
        (OWN.held(7, "k"), OWN.held(7, "k", 42)),
        (OWN.inbox(), OWN.inbox(5)),
        (OWN.audit(), OWN.audit(5)),
        (OWN.every("late"), OWN.late(5)),
        (OWN.every("dlq"), f"{OWN.dead_letter(1, 42)}.2"),
        (every("shop", "due"), OWN.due(1, "42-1")),
        (RouteSubjects("shop", "*").pause, OWN.pause),
        (RouteSubjects("shop", "*").plan, OWN.plan),
        (committed_subject("shop", "invoices.>"), committed_subject("shop", "invoices.eu")),
        (GRAPHS.heads, GRAPHS.graph("refunds")),
        (every("shop", "graph"), GRAPHS.graph("refunds", "0123456789ab")),
        (every("shop", "kind"), GRAPHS.kind("shop", "PayNode")),
        (GRAPHS.runs(), GRAPHS.run("refunds", "failed", "r.1")),
        (GRAPHS.runs("refunds"), GRAPHS.run("refunds", "failed", "*")),
        (GRAPHS.runs(state="failed"), GRAPHS.run("refunds", "failed", "r1")),
        (GRAPHS.record("r.1"), GRAPHS.run("refunds", "failed", "r.1")),
        (GRAPHS.timers(3, "r.1"), GRAPHS.timer(3, "r.1", "late.pay")),
        (GRAPHS.external("shop"), GRAPHS.external("shop", 3)),
        (GRAPHS.externals(3), GRAPHS.external("shop", 3)),
    ],
)
def test_a_pattern_has_what_it_is_asked_for(pattern: str, subject: str) -> None:
    """A pattern stands for the subjects of its kind, and for none of another route or kind."""
    assert matches(pattern, subject)
    assert covers(app_patterns("shop")[0], pattern)
    kind = SubjectParts.of(subject).kind
    assert not matches(pattern, subject.replace(f".{kind}.", ".none.", 1))


@pytest.mark.parametrize(
    "subject, partition",
    [
        ("p.shop.due.orders.x.1", None),
        ("p.shop.due.orders.-1.1", None),
        ("p.shop.due.orders.1234567890.1", None),
        ("p.shop.due.orders.²", None),
        ("p.shop.due.orders", None),
        ("p.shop.due.orders.", None),
        ("p", None),
        ("", None),
        ("p.shop.due.orders.123456789", 123456789),
    ],
)
def test_a_stranger_s_subject_is_parsed(subject: str, partition: int | None) -> None:
    """What others wrote to the stream names a partition only where that is a number of ours."""
    assert SubjectParts.of(subject).partition == partition


def test_a_dead_letter_has_the_same_id_in_every_part() -> None:
    """The id is route, partition and sequence; another subject has none."""
    assert dead_letter_id("p.shop.dlq.orders.7.42") == "orders.7.42"
    assert dead_letter_id("p.shop.dlq.orders.7.42.2") == "orders.7.42"
    assert dead_letter_id("p.shop.held.orders.7.c1.42") is None
    assert dead_letter_id("p.shop.dlq.orders.x.42") is None
    assert dead_letter_id("p.shop.dlq.orders.7") is None


def test_a_public_subject_is_what_listeners_know() -> None:
    """What was committed for a subject has that subject again; what is not of that kind stays as it is."""
    assert public_subject("shop", committed_subject("shop", "a.b")) == "a.b"
    assert public_subject("shop", "p.other.out.a.b") == "p.other.out.a.b"


def test_the_last_partition_is_that_of_a_position_and_an_inbox() -> None:
    """A subject that ends in its partition says which that is."""
    assert last_partition(OWN.position(12)) == last_partition(OWN.inbox(12)) == 12


def test_an_app_stream_is_known_by_its_name() -> None:
    """Streams of apps are told from others by how they are called."""
    assert app_stream("shop") == "P_shop"
    assert is_app_stream("P_shop")
    assert not is_app_stream("shop")


@pytest.mark.parametrize("name", ["r1", "a.b", "*", ">", "", "r1/leaf/split.3", "r1~sub", "ü x", "=41"])
def test_any_text_is_the_name_of_a_run(name: str) -> None:
    """A run may be called anything: its subjects stay subjects, without wildcards, and name it again."""
    subject = GRAPHS.run("refunds", "success", name)
    assert names_of(subject) == ("refunds", "success", name)
    assert subject.count(".") == 5
    assert not set(subject) & set("*> ")


def test_the_names_of_a_stranger_s_subject_are_its_tokens() -> None:
    """What nobody here wrote is taken apart as it stands, whatever it holds."""
    assert names_of("p.shop.gone.=FF") == ("=FF",)
    assert names_of("p.shop.graph") == ()
    assert names_of("") == ()


def test_the_work_of_external_workers_is_an_output() -> None:
    """The executions of an external kind have a public subject and a stream of the app."""
    assert GRAPHS.work("shop", "PayNode") == "work.shop.shop.PayNode"
    assert GRAPHS.work_stream == "shop-work"
