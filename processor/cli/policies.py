"""`policy`: what the policy files of a configuration allow, and which line says so."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import moment_s, route_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, complain, say
from processor.config import Config, load
from processor.context.sightings import renew
from processor.errors import ProcessorError
from processor.jetstream import Again, ApiError, Unknown
from processor.operate.audits import AuditFilter, Audits
from processor.operate.budgets import budget_states
from processor.operate.journal import Journal
from processor.policy import (
    KINDS,
    Ask,
    Budget,
    Expectation,
    Policy,
    Rule,
    Rules,
    Verdict,
    asked,
    asks_of,
    changes,
    lines_for,
    lints,
    near,
    to_cedar,
)
from processor.policy import load as load_policy
from processor.printable import printable
from processor.route import Route
from processor.telemetry import configure_logging

_ASKED_S = 3.0  # how long `explain` waits for a server

# What calls of a kind are charged in.
_CHARGED: Mapping[str, tuple[str, ...]] = {
    "http": ("requests", "bytes"),
    "stock": ("requests",),
    "state_data": ("requests",),
    "file": ("file_bytes",),
    "tool": ("tool_calls",),
}


def policy(
    action: str,
    file: Path,
    route: str | None,
    op: str | None,
    target: str | None,
    *,
    format: str | None,
    junit: Path | None,
    since: str,
) -> int:
    """Do one action of the verb. Raises Faults, and ProcessorError for a route that is not there."""
    if format in ("toml", "cedar") and action != "show":
        raise typer.BadParameter(f"{format} is a format of show", param_hint="--format")
    if junit is not None and action != "test":
        raise typer.BadParameter("only test has results for a file", param_hint="--junit")
    if action == "renew":
        if route is None or op is not None:
            raise typer.BadParameter("renew needs LINE, such as policy.toml:12", param_hint="ROUTE")
        return _renew(load(file, needs_secrets=False), route)
    if action in ("learn", "diff"):
        if (route is None) is not (action == "learn") or op is not None:
            what = (
                "learn needs nothing but CONFIG" if action == "learn" else "diff needs FILE, the other policy"
            )
            raise typer.BadParameter(what, param_hint="ROUTE")
        recorded = asyncio.run(_recorded(config := load(file, needs_secrets=False), since))
        return _learn(recorded) if route is None else _diff(Screen(format), config, Path(route), recorded)
    config = load(file, needs_login=False, needs_secrets=False)
    if format == "cedar":
        return _show_cedar(config, route)
    screen = Screen("human" if format == "toml" else format)
    if action == "explain":
        if route is None or op is None or target is None:
            raise typer.BadParameter("explain needs ROUTE, OP and TARGET", param_hint="ROUTE")
        return _explain(screen, config, route, op, target)
    if action == "show":
        return _show(screen, config, route)
    if action == "test":
        return _test(screen, config, junit)
    return _check(screen, config)


def _now_us() -> int:
    return time.time_ns() // 1000


def _explain(screen: Screen, config: Config, name: str, op: str, target: str) -> int:
    rules = route_of(config, name).policy
    try:
        ask = asked(op, target)
    except ValueError as err:
        raise typer.BadParameter(str(err), param_hint="OP") from None
    verdict = rules.decide(name, ask, _now_us())
    budgets = asyncio.run(_budgets(config, rules, name, ask))
    also = [rule.place for rule in rules.about(name, ask) if rule.place != verdict.rule]
    if screen.is_json:
        screen.document(
            {
                "route": name,
                "kind": ask.kind,
                "method": ask.method,
                "target": ask.target,
                "verdict": _word(verdict),
                "rule": verdict.rule,
                "also": also,
                "what": verdict.what,
                "remedy": verdict.remedy,
                "budgets": budgets,
            }
        )
    elif verdict.is_allowed:
        by = verdict.rule or "no policy file is named, so what the configuration declares is allowed"
        screen.line(f"allow: {ask} ({by})")
    else:
        screen.line(f"{_word(verdict)}: {verdict.code} {verdict.what}. {verdict.remedy}")
    if also and not screen.is_json:
        screen.line(f"other lines that match: {', '.join(also)}")
    for each in budgets if not screen.is_json else ():
        left = "" if each["left"] is None else f", of which {each['left']:,} are left"
        what = f"{each['limit']:,} {each['kind']} in a {each['window']}{left}"
        screen.line(f"charged to budget {each['budget']} ({each['place']}): {what}")
    return EXIT_OK if verdict.is_allowed else EXIT_FAILED


async def _budgets(config: Config, rules: Rules, name: str, ask: Ask) -> list[dict[str, Any]]:
    """The budgets that a thing is charged to; what is left is None where no server is there to be asked."""
    charged = [each for each in rules.budgets_of(name) if each.kind in _CHARGED.get(ask.kind, ())]
    left: dict[str, int] = {}
    if any(budget.window != "run" for budget in charged) and not config.nats.embedded:
        with suppress(ProcessorError, ApiError, Unknown, Again, TimeoutError):
            async with asyncio.timeout(_ASKED_S), connected_to_app(config, "policy") as broker:
                states = await budget_states(broker, config.app, [route_of(config, name)])
                left = {state["budget"]: state["left"] for state in states}
    return [
        {
            "budget": budget.account(name),
            "kind": budget.kind,
            "limit": budget.limit,
            "left": budget.limit if budget.window == "run" else left.get(budget.account(name)),
            "window": budget.window,
            "place": budget.place,
        }
        for budget in charged
    ]


def _renew(config: Config, place: str) -> int:
    """Let the time of a line begin again."""
    rules = [
        rule for each in config.routes.values() for policy in each.policy.policies for rule in policy.rules
    ]
    named = [rule for rule in rules if rule.place == place]
    ending = {rule.digest for rule in named if rule.expires_minutes is not None}
    if not ending:
        known = [rule.place for rule in rules if rule.expires_minutes is not None]
        what = "has no expires_minutes" if named else f"is no line of the policy{near(place, known)}"
        there = f"; lines that can be renewed: {', '.join(dict.fromkeys(known)) or 'none'}"
        raise typer.BadParameter(f"{place} {what}{there}", param_hint="LINE")
    configure_logging("human", "warning")

    async def tell() -> int:
        async with (
            connected_to_app(config, "policy") as broker,
            Journal(broker, config).act("policy.renew", "", data={"rule": place}),
        ):
            await renew(broker, config.app, ending, _now_us())
        say(f"the time of {place} begins again; processors that run know it within 30 s")
        return EXIT_OK

    return asyncio.run(tell())


async def _recorded(config: Config, since: str) -> Counter[tuple[str, Ask]]:
    """What the routes were allowed, by the audit, and how often. Raises BrokerError where there is none."""
    configure_logging("human", "warning")
    which = AuditFilter(events=frozenset(KINDS), since_us=round(moment_s(since) * 1e6))
    found: Counter[tuple[str, Ask]] = Counter()
    async with connected_to_app(config, "policy") as broker:
        async for entry in Audits(broker, config).entries(which):
            found.update(asks_of(entry))
    return found


def _learn(recorded: Counter[tuple[str, Ask]]) -> int:
    """Print the lines that allow what was done."""
    Screen("human").line(lines_for(recorded))
    say(f"lines for {len(recorded)} things that were done; read them before you use them")
    return EXIT_OK


def _diff(screen: Screen, config: Config, file: Path, recorded: Counter[tuple[str, Ask]]) -> int:
    """Show what was done and another policy would decide otherwise; EXIT_FAILED where it denies any."""
    other = load_policy([file])
    before = {name: route.policy for name, route in config.routes.items()}
    found = changes(recorded, before, dict.fromkeys(before, other), _now_us())
    for each in found:
        if screen.is_json:
            screen.document(
                {
                    "route": each.route,
                    "kind": each.ask.kind,
                    "method": each.ask.method,
                    "target": each.ask.target,
                    "count": each.times,
                    "before": _word(each.before),
                    "after": _word(each.after),
                    "rule": each.after.rule,
                }
            )
        else:
            by = f" ({each.after.rule})" if each.after.rule else ""
            words = f"{_word(each.before)} becomes {_word(each.after)}{by}"
            often = f"{each.times} time{'s' * (each.times != 1)}"
            screen.line(f"route {each.route}: {each.ask}, {often}: {words}")
    if not screen.is_json:
        screen.line(f"{len(found)} of {len(recorded)} things that were done are decided otherwise")
    return EXIT_FAILED if any(not each.after.is_allowed for each in found) else EXIT_OK


def _word(verdict: Verdict) -> str:
    if verdict.is_allowed:
        return "allow"
    if verdict.is_shadow:
        return "shadow"
    return "expired" if verdict.code == "E331" else "deny"


def _show(screen: Screen, config: Config, name: str | None) -> int:
    shown: dict[tuple[str, str], Rule | Budget] = {}
    for route in _routes(config, name):
        for policy in route.policy.policies:
            lines: list[Rule | Budget] = [*policy.rules, *policy.budgets]
            for line in lines:
                if name is None or line.is_for(name):
                    shown.setdefault((line.place, line.text), line)
    for line in shown.values():
        if screen.is_json:
            screen.document(_said(line) if isinstance(line, Rule) else _budget_said(line))
        else:
            screen.line(f"# {line.place}\n{line.text}\n")
    return EXIT_OK


def _routes(config: Config, name: str | None) -> list[Route]:
    return [route_of(config, name)] if name is not None else [*config.routes.values()]


def _show_cedar(config: Config, name: str | None) -> int:
    files: dict[Policy, None] = {}
    for route in _routes(config, name):
        files |= dict.fromkeys(route.policy.policies)
    try:
        Screen("human").line(to_cedar(Rules(tuple(files)), [*config.routes]))
    except ValueError as err:
        complain(f"the policy cannot be written as Cedar: {err}")
        return EXIT_FAILED
    return EXIT_OK


def _said(rule: Rule) -> dict[str, Any]:
    return {
        "place": rule.place,
        "effect": "deny" if rule.is_deny else "allow",
        "name": rule.kind,
        "resource": rule.resource,
        "methods": sorted(rule.methods),
        "routes": list(rule.routes),
        "expires_minutes": rule.expires_minutes,
        "expires_at_us": rule.expires_at_us,
        "max_tokens": rule.max_tokens,
    }


def _budget_said(budget: Budget) -> dict[str, Any]:
    return {
        "place": budget.place,
        "budget": budget.name,
        "kind": budget.kind,
        "limit": budget.limit,
        "window": budget.window,
        "routes": list(budget.routes),
        "scope": budget.scope,
        "then": budget.then,
    }


def _test(screen: Screen, config: Config, junit: Path | None) -> int:
    """Try every [[test]] against the policy of its route."""
    failed = count = 0
    results = ElementTree.Element("testsuite", name="policy")
    cases: dict[str, Expectation] = {}
    for route in config.routes.values():
        for policy in route.policy.policies:
            cases |= {case.place: case for case in policy.cases}
    for case in cases.values():
        rules = config.routes[case.route].policy if case.route in config.routes else Rules()
        verdict = rules.decide(case.route, case.ask, _now_us())
        found = _word(verdict) if case.route in config.routes else "no such route"
        is_right = found == case.expect
        count += 1
        failed += not is_right
        by = f" ({verdict.rule})" if verdict.rule else ""
        name = printable(f"{case.route} {case.ask} is {case.expect}")
        result = ElementTree.SubElement(results, "testcase", classname=case.place, name=name)
        if not is_right:
            ElementTree.SubElement(result, "failure", message=f"expected {case.expect}, found {found}{by}")
        if screen.is_json:
            screen.document(
                {"place": case.place, "expect": case.expect, "found": found, "rule": verdict.rule}
            )
        elif not is_right:
            screen.line(f"{case.place} {case.route} {case.ask}: expected {case.expect}, found {found}{by}")
    if junit is not None:
        results.set("tests", str(count))
        results.set("failures", str(failed))
        try:
            junit.write_bytes(ElementTree.tostring(results, encoding="utf-8", xml_declaration=True))
        except OSError as err:
            raise typer.BadParameter(
                f"{junit} cannot be written: {err.strerror}", param_hint="--junit"
            ) from err
    if not screen.is_json:
        screen.line(f"{count - failed} of {count} tests are as expected")
    return EXIT_FAILED if failed else EXIT_OK


def _check(screen: Screen, config: Config) -> int:
    """The files have no fault, or `load` had raised it; what may be a mistake is told."""
    found = list(
        dict.fromkeys(
            (place, text)
            for route in config.routes.values()
            for place, text in lints(route.policy, [*config.routes], [*config.secrets], _now_us())
        )
    )
    for place, text in found:
        if screen.is_json:
            screen.document({"place": place, "text": text})
        else:
            screen.line(f"{place} {text}")
    files = {policy.file for route in config.routes.values() for policy in route.policy.policies}
    if not screen.is_json:
        count = f"{len(files)} policy file{'s' * (len(files) != 1)} without a fault"
        screen.line(count if files else "no policy file is named (`policy`)")
    return EXIT_OK
