"""What nodes declare of their secrets, held against the values that they would get.

A node has a class `Secrets`, whose schema a guest tells of in its manifest. Guests get marks in place of
values, which no rule of that class is for; so the values are checked here, when a group of nodes starts and
when it is loaded again. What is said of a value is the name of its field and of the rule that it breaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from processor.errors import Fault
from processor.route import NodeGroup
from processor.schema import Schema


def misfits(group: NodeGroup, manifest: Mapping[str, Mapping[str, Any]]) -> list[Fault]:
    """The secrets and settings of a group that do not fit what its nodes declare (E705), without a value.

    What is not there at all is the affair of the graphs that need it, and a check may have no values. Of one
    name the secret is the one that counts. The manifest comes from a guest, and may be anything that
    `wire.read_manifest` takes.
    """
    secrets = {secret.name: secret.value for secret in group.reach.secrets if secret.value}
    found: list[str] = []
    for node, told in manifest.items():
        schema = told["secrets"]
        fields = schema.get("properties") if isinstance(schema, dict) else None
        if not isinstance(fields, dict):
            continue
        shared = {name: schema[name] for name in ("$defs", "definitions", "$schema") if name in schema}
        for name, field in fields.items():
            if name not in secrets and name not in group.settings:
                continue
            is_secret = name in secrets
            value = secrets[name] if is_secret else group.settings[name]
            try:
                broken = _broken({**shared, "properties": {name: field}}, name, value, is_secret)
            except ValueError as err:
                found.append(f"{node}.Secrets.{name} cannot be checked: {err}")
                continue
            if broken:
                what = f"the {'secret' if is_secret else 'setting'} '{name}' of group {group.name}"
                text = f"{what} does not fit {node}.Secrets: it breaks {', '.join(broken)}."
                if is_secret and any(rule.startswith("type ") for rule in broken):
                    text += " A secret is a text: declare it as str."
                found.append(text)
    return [Fault(group.program.filename, 1, 1, "E705", text) for text in found]


def _broken(schema: Mapping[str, Any], name: str, value: str, is_secret: bool) -> list[str]:
    """The rules that a value breaks. Raises ValueError for what is no schema."""
    rules = Schema(orjson.dumps(schema))
    broken = rules.broken({name: value})
    if broken and not is_secret and not rules.broken({name: _read(value)}):
        return []  # a number, say, which its class reads from a text
    return broken


def _read(text: str) -> Any:
    """A value that is written as JSON; the text itself where it is not."""
    try:
        return orjson.loads(text)
    except ValueError:
        return text
