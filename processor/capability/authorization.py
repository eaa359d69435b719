"""`self.authorize(op, target)`: whether something would be done, without doing it.

Two must allow: the configuration, which declares what there is, and the policy, which says who may. The
answer is that of this moment; a call that is made later is decided anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from processor.address import parse_url
from processor.audit import AuditEntry, Decision
from processor.capability.arguments import Argument, Text
from processor.capability.completions import endpoint_of, unserved
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.errors import About, ProcessorError
from processor.policy import Ask, Verdict, asked
from processor.reach import Reach, ToolServer
from processor.subject import matches

TARGET_CHARS = 4000


def details(
    op: str, target: str, verdict_of: Callable[[Ask], Verdict], missing_of: Callable[[Ask, Verdict], str]
) -> dict[str, Any]:
    """What becomes of an operation by the rules, and by what is declared: `missing_of` says what to add.

    Raises ProcessorError E337 for an operation that there is not.
    """
    try:
        ask = asked(op, target)
    except ValueError as err:
        raise ProcessorError("E337", str(err), place="authorize", about=About(op[:100], target)) from None
    verdict = verdict_of(ask)
    may = verdict.is_allowed or verdict.is_shadow
    missing = missing_of(ask, verdict) if may else ""
    reason, remedy = "", ""
    if missing:
        by = f"the policy allows it ({verdict.rule}) and the configuration does not"
        reason, remedy = f"E330 {ask}: {by if verdict.rule else 'it is not declared'}", missing
    elif not may:
        reason, remedy = f"{verdict.code} {verdict.what}", verdict.remedy
    is_authorized = may and not missing
    ends_us = verdict.expires_us
    return {
        "operation": f"{ask.kind}.{ask.method}",
        "target": ask.target,
        "authorized": is_authorized,
        "capability": verdict.rule or ("config" if is_authorized else ""),
        "expires_s": None if ends_us is None else ends_us / 1e6 - time.time(),
        "reason": reason,
        "remedy": remedy,
    }


async def _decide(connections: Connections, arguments: Arguments) -> dict[str, Any]:
    def missing(ask: Ask, verdict: Verdict) -> str:
        return undeclared(ask, connections.reach)

    said = details(arguments["op"], arguments["target"], connections.verdict, missing)
    decision: Decision = "allow" if said["authorized"] else "deny"
    operation, target, rule = said["operation"], said["target"], said["capability"]
    entry = AuditEntry("authorize", decision, operation=operation, target=target, rule=rule)
    connections.remark(entry)
    return said


def undeclared(ask: Ask, reach: Reach) -> str:
    """What to add to the configuration for this; empty where it is declared."""
    match ask.kind:
        case "http":
            url = parse_url(ask.target)
            is_there = any(entry.covers(url) for entry in reach.outbound.allowed.entries)
            return "" if is_there else f"Add to {reach.place}: [{url.authority}]"
        case "secret":
            is_there = any(secret.name == ask.target for secret in reach.secrets)
            return "" if is_there else f"Add to secrets: [{ask.target}]"
        case "emit":
            is_there = any(matches(pattern, ask.target) for pattern in reach.emits)
            return "" if is_there else f'Add to emits: ["{ask.target}"]'
        case "file":
            return _undeclared_file(ask, reach)
        case "tool":
            return _undeclared_tool(ask, reach)
        case "infer":
            return "" if endpoint_of(reach, ask.target) else unserved(reach, ask.target)
        case "stock" | "state_data" | "heap":
            return ""
    return f"Nothing of the kind {ask.kind!r} is there for a Runnable."


def _undeclared_tool(ask: Ask, reach: Reach) -> str:
    own, slash, name = ask.target.partition("/")
    for tool in reach.tools:
        is_it = tool.grants(name) if isinstance(tool, ToolServer) else not slash
        if tool.name == own and is_it:
            return ""
    return f"Add to the route's tools: [{ask.target}], and to `tools` what it is."


def _undeclared_file(ask: Ask, reach: Reach) -> str:
    name, colon, _ = ask.target.partition(":")
    root = next((root for root in reach.files if colon and root.name == name), None)
    if root is None:
        known = ", ".join(f"{root.name}:" for root in reach.files) or "none"
        return f"Name a root in `files`, and the path below it, such as data:/a.csv; its roots are {known}."
    if ask.method in ("write", "delete") and not root.is_writable:
        return f"Set files.{name}.write: true."
    return ""


AUTHORIZE = Capability(
    "authorize",
    (Argument("op", Text(1, 100)), Argument("target", Text(0, TARGET_CHARS))),
    perform=_decide,
    ask=lambda arguments: None,  # to decide is not to do
    event="authorize",
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
